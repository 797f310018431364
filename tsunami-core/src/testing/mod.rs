//! A cloud that isn't there, for tests; and the promises that every real one must keep.
//!
//! [`FakeCloud`] is a [`Provider`](crate::Provider) and a [`Connector`](crate::Connector) in one. On tokio's
//! paused clock it runs an experiment of an hour in milliseconds, the same way every time for the same seed.
//! `MockProvider`, `MockConnector` and `MockSession`, made by mockall, are for tests that want to see single
//! calls. [`conformance`] is for those who write a provider or a session of their own.

pub mod conformance;
mod fake;

pub use fake::{Call, FakeCloud, Fault, MachineFault, Reply};

/// How many cases a property is tried with: `TSUNAMI_FUZZ_CASES`, or a few.
#[doc(hidden)]
pub fn fuzz_cases(few: u32) -> u32 {
    std::env::var("TSUNAMI_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(few)
}
