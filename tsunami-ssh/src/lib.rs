//! Sessions over SSH, and the two providers that need nothing but SSH.
//!
//! ```no_run
//! use std::sync::Arc;
//! use tsunami_core::{Cluster, Error, Group, MachineSpec, Plan, RunStore, Tsunami};
//! use tsunami_ssh::{LocalProvider, SshConnector};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Error> {
//!     let provider = LocalProvider::new(RunStore::standard()?.root());
//!     let tsunami = Tsunami::new(Arc::new(provider), Arc::new(SshConnector::default()));
//!     let plan = Plan::new("hello").group(Group::new("node", MachineSpec::default()).count(3));
//!     let hello = async |cluster: Cluster| cluster.hosts()[2].run("echo hello from $PWD").await;
//!     println!("{}", tsunami.run(plan, hello).await?.stdout());
//!     Ok(())
//! }
//! ```
//!
//! - [`SshConnector`] connects to machines of any provider, with one `ssh` master process a machine. Every command,
//!   script and transfer is a channel of it, through the native multiplexing protocol of the [`openssh`] crate: no
//!   process is spent on a command. With [`TransportKind::InProcess`], a machine is a connection of this process's own.
//!   [`SshOptions`] has the ways there: users, keys, jump hosts, proxies.
//! - [`LocalProvider`] makes machines out of `sshd` processes on this computer's loopback addresses. Commands run on
//!   **this computer**, as its user.
//! - [`HostsProvider`] takes machines that exist already.
//!
//! What a run is and what is guaranteed of it is [`tsunami_core`]'s; here is what sessions and these machines add to that.
//!
//! # Who is at the other end
//!
//! Host keys are checked from the first byte, against a known-hosts file of the run's own; `~/.ssh` is never written.
//! A machine of the run's own has its key pinned, and is asked again while it shows another one, since it may be young;
//! it is never logged in to before it shows the right one. Where an ssh_config of the user's says how to reach a host or
//! a jump host, ssh itself is asked what that means. What connects has an ssh_config of its own in the run's directory,
//! see [`run_config`].
//!
//! # Which transport
//!
//! Both go by the same ssh_config and known_hosts, and keep the same promises. Differences:
//!
//! - Over OpenSSH, all is done that `ssh` does without asking anybody: smart cards, users' certificates in
//!   files, GSSAPI. In this process, keys come from files (ed25519, ECDSA) and from an agent (all kinds); what
//!   else an ssh_config asks for is an error that names it, never something that is left out. RSA keys in files, and
//!   hosts that have no other, stay with OpenSSH as long as the implementation that there is here (the crate `rsa`) lets
//!   its timing tell of a key (RUSTSEC-2023-0071, without a release that mends it).
//! - In this process, machines of the run's own need no `ssh` on this computer. Hosts do, since `ssh -G` tells what their
//!   configuration means, and so do jump hosts, which an `ssh` passes.
//! - In this process, an output that is not read holds up the other channels of its connection once a mebibyte of it
//!   waits; over OpenSSH, only itself: russh opens a window again when it has received, and lets nobody hold that back.
//!   Commands' outputs are always read, and a download is as fast as this computer's disk. So with a connection to a port of
//!   the machine ([`Session::dial`](tsunami_core::Session::dial)) that nobody reads, once half a mebibyte waits.
//! - What comes from a machine that is far away comes as fast as 16 MiB a round trip allow in this process, and 12 MiB over
//!   OpenSSH, where that takes seven channels; what goes there, as fast as eight channels of 2 MiB.
//! - The one in this process takes the feature `in-process`, which is on by default.
//!
//! # Commands
//!
//! A login shell may be anything. It is given one line, which every shell reads alike and which starts `sh`; scripts
//! and commands go to that `sh` over standard input, and what comes back is read from the sign on that it gives. A login
//! that runs no `sh` is named by what it said, and is given nothing.
//!
//! Each command runs under a small supervisor there, in a process group of its own. The supervisor says how the command
//! ended: a status and a signal are told apart, and neither is taken for a lost connection. The connection is only said
//! to be lost when it fails a check.
//!
//! A command begins only if it can be ended. sshd takes so many channels on a connection (`MaxSessions`, usually 10): one
//! is kept for that and for scripts about the machine, on a second connection where the first takes a single channel.
//! Where the machine gives a single channel in all, one command runs at a time, and what ends it comes over a new
//! connection in the place of the command's. More commands than channels get further connections, up to eight, and then
//! wait.
//!
//! # Machines that hand on what was uploaded
//!
//! What was uploaded to one machine, others take from it: it keeps the tar stream in a private directory of the run's (which
//! takes the room of the content once more, and is not done where that would leave less than 64 MiB), and starts an sshd of
//! the login's user on a free port of its private address, with keys that are made for that alone. The others need `ssh`,
//! and both `sha256sum`. [`Session::withdraw`](tsunami_core::Session::withdraw) ends and removes all of it.
//!
//! # When it is dropped or cancelled
//!
//! - A command that is cancelled, or whose future is dropped, gets TERM with all that descends from it, KILL after five
//!   seconds, and is confirmed gone: before the answer where it was cancelled, in the background where it was dropped.
//!   [`Session::close`](tsunami_core::Session::close) waits for that. Where it can't be confirmed, the answer is
//!   [`CancelledUnconfirmed`](tsunami_core::SessionErrorKind::CancelledUnconfirmed).
//! - An upload or download that is dropped ends in the same way; what has arrived by then stays. One that stands still
//!   for [`TRANSFER_STALL_TIMEOUT`](crate::limits::TRANSFER_STALL_TIMEOUT), on a connection that is alive, is
//!   given up. One that moves at all, however slowly, is not.
//! - A script of a provider's ([`Session::administer`](tsunami_core::Session::administer)) is ended by nobody.
//! - A connect that is dropped leaves nothing behind.
//! - Dropping a session without closing it ends its connections, once the commands that are being ended are gone.
//! - If this process ends, however it ends, its `ssh` processes and their sockets go with it: one small process a run
//!   sees to that. Commands on the machines go on until they end, or until the deadline.
//!
//! # Deadlines
//!
//! Machines of [`LocalProvider`] and [`HostsProvider`] have a watchdog on the machine itself, which is there before
//! anything else of the run's and needs neither this process nor a network. At the deadline, as when a run is torn down,
//! all processes of the run get TERM, five seconds, KILL, and its directory is removed, but nothing that is mounted in it.
//!
//! A process belongs to the run by its environment, by what it descends from, or by what it has open: the run's
//! directory, a program or a file of it, an address of the run's machines. Where the user may make a control group (cgroup
//! v2: root, or somebody to whom one is delegated), the run's commands begin in one of the run's own, and whatever they
//! start belongs to the run, even if it leaves all of that behind. **What is not found**: for other users, a daemon that
//! detaches, clears its environment, leaves the directory and closes its files; for everybody, what another service starts
//! on a command's behalf, such as systemd, cron or a container engine.
//!
//! # Errors
//!
//! A [`SessionError`](tsunami_core::SessionError) has a [kind](tsunami_core::SessionErrorKind) to go by:
//! `HostKey` and `Connect` before there is a session, `Lost` for a connection that failed a check, `Remote` for a machine
//! that could not do what it was asked (no shell, no such directory), `Transfer` for files, `Local` for this computer. Its
//! message has what ssh or the machine said, its help what the user can do.

mod attendant;
mod blocking;
mod command;
mod config;
mod connector;
#[cfg(feature = "experiment")]
mod examination;
mod files;
mod hosts;
mod janitor;
mod keys;
pub mod limits;
mod local;
mod pool;
mod probe;
mod proxy;
#[cfg(feature = "experiment")]
mod registration;
mod resolver;
mod session;
mod shell;
mod terminal;
mod transport;
mod watchdog;

pub use config::SshOptions;
pub use connector::{SshConnector, run_config, run_config_for_others};
pub use hosts::{HostAddress, HostsProvider, HostsSpec, InvalidHost};
pub use local::LocalProvider;
#[cfg(feature = "experiment")]
pub use registration::{HostsRegistration, LocalRegistration, registry};
pub use terminal::{lacks_terminals, terminal};
pub use transport::TransportKind;

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
