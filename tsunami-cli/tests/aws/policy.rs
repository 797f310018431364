//! The policy in the README allows what tsunami does, and nothing it doesn't.
