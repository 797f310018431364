//! A cloud that isn't there, trouble on the way to one that is, and the promises that every real one must keep.
//!
//! - [`FakeCloud`] is a [`Provider`](crate::Provider) and a [`Connector`](crate::Connector) in one. On tokio's
//!   paused clock it runs an experiment of an hour in milliseconds, the same way every time for the same seed.
//! - [`Unreliable`] wraps any provider or connector, slows and throttles calls, and lets some of them fail.
//! - [`MockProvider`](crate::MockProvider), [`MockConnector`](crate::MockConnector) and
//!   [`MockSession`](crate::MockSession), made by [mockall](https://docs.rs/mockall), are for tests that want to see single
//!   calls.
//! - [`conformance`] is for those who write a provider or a session of their own.
//!
//! # Mocks whose answers wait
//!
//! What a mock `returning`s is an answer, not a future: a mock answers at once. One whose answers take time, come when the
//! test says so, or never, is a mock in an [`Unreliable`]:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use tokio::sync::oneshot;
//! use tokio::time::timeout;
//! use tsunami_core::testing::{Call, Fault, Unreliable};
//! use tsunami_core::{MockProvider, Provider, ProviderError, RunFilter};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), ProviderError> {
//! let mut mock = MockProvider::new();
//! mock.expect_list().times(3).returning(|_| Ok(Vec::new()));
//! let provider = Unreliable::new(Arc::new(mock), 1);
//! let (answer, may_answer) = oneshot::channel::<()>();
//! provider.wait_for(Call::List, 1, async { drop(may_answer.await) });
//! provider.fault(Call::List, 2, Fault::Slow(Duration::from_secs(90)));
//! provider.fault(Call::List, 3, Fault::Hang);
//!
//! let listing = tokio::spawn({
//!     let provider = provider.clone();
//!     async move { provider.list(&RunFilter::All).await }
//! });
//! tokio::time::sleep(Duration::from_secs(3600)).await;
//! assert!(!listing.is_finished());
//! answer.send(()).expect("the first call waits for it");
//! listing.await.expect("it does not panic")?;
//! provider.list(&RunFilter::All).await?;
//! let third = provider.list(&RunFilter::All);
//! assert!(timeout(Duration::from_secs(3600), third).await.is_err());
//! # Ok(()) }
//! ```

pub mod conformance;
mod fake;
mod unreliable;

pub use fake::{Call, FakeCloud, Fault, MachineFault, Reply};
pub use unreliable::Unreliable;

/// How many cases a property is tried with: `TSUNAMI_FUZZ_CASES`, or a few.
#[doc(hidden)]
pub fn fuzz_cases(few: u32) -> u32 {
    std::env::var("TSUNAMI_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(few)
}
