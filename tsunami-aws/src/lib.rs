//! The room for tsunami's provider for Amazon EC2: spot, spot blocks and on-demand machines.
//!

//! on top of `aws-sdk-ec2`, and is the only crate that compiles the AWS SDK.
//!
//! [`tsunami_core::Provider`]: https://docs.rs/tsunami-core/latest/tsunami_core/trait.Provider.html
