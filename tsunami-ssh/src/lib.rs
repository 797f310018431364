//! Sessions over OpenSSH, and the two providers that need nothing but SSH.
//!
//! [`SshConnector`] starts one `ssh` master process a machine and runs every command as a channel of it, through
//! the native multiplexing protocol of the [`openssh`] crate: no process is spent on a command. Host keys are
//! checked from the first byte, against a known-hosts file of the run's own; `~/.ssh` is never written.
//!
//! [`LocalProvider`] makes machines out of `sshd` processes on this computer's loopback addresses;
//! [`HostsProvider`] takes machines that exist already.
//!
//! ```no_run
//! use std::sync::Arc;
//! use tsunami_core::{Error, Group, MachineSpec, Plan, State, Tsunami};
//! use tsunami_ssh::{LocalProvider, SshConnector, SshOptions};
//!
//! # async fn example() -> Result<(), Error> {
//! let provider = LocalProvider::new(State::standard()?.root());
//! let connector = SshConnector::new(SshOptions::default());
//! let tsunami = Tsunami::new(Arc::new(provider), Arc::new(connector));
//! let plan = Plan::new("hello").group(Group::new("node", MachineSpec::default()).count(3));
//! tsunami.run(plan, |cluster| async move {
//!     for host in cluster.hosts() {
//!         println!("{}", host.run("echo hello from $PWD").await?.stdout());
//!     }
//!     Ok(())
//! }).await
//! # }
//! ```

mod command;
mod config;
mod connector;
mod files;
mod hosts;
mod janitor;
mod keys;
mod local;
mod pool;
mod probe;
#[cfg(feature = "experiment")]
mod registration;
mod session;
mod shell;
mod transport;
mod watchdog;

pub use config::{SshOptions, Transport};
pub use connector::{SshConnector, run_config};
pub use hosts::{HostAddress, HostsProvider, HostsSpec, InvalidHost};
pub use local::LocalProvider;
#[cfg(feature = "experiment")]
pub use registration::{HostsRegistration, LocalRegistration, registry};

/// What others may write, at random.
#[cfg(test)]
mod fuzz {
    use proptest::prelude::ProptestConfig;

    /// As many cases as are asked for, or a few.
    pub(crate) fn cases(few: u32) -> ProptestConfig {
        let cases = tsunami_core::testing::fuzz_cases(few);
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
    }
}
