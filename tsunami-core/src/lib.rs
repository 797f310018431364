//! Launch short-lived machines, set them all up at once, run an experiment, tear everything down.
//!
//! ```no_run
//! use std::sync::Arc;
//! use tsunami_core::testing::FakeCloud;
//! use tsunami_core::{Error, Group, MachineSpec, Plan, Tsunami};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Error> {
//!     let cloud = Arc::new(FakeCloud::new(1));
//!     let tsunami = Tsunami::new(cloud.clone(), cloud);
//!     let nodes = Group::new("node", MachineSpec::default()).count(3);
//!     let nodes = nodes.setup(|host| async move { host.run("echo installing").await });
//!     let hello = async |cluster: tsunami_core::Cluster| cluster.hosts()[0].run("echo hello").await;
//!     println!("{}", tsunami.run(Plan::new("hello").group(nodes), hello).await?.stdout());
//!     Ok(())
//! }
//! ```
//!
//! This crate knows neither a cloud nor SSH: the machines of that program are nowhere. On this computer, it takes
//! `LocalProvider` and `SshConnector` of `tsunami-ssh` in place of the fake; on Amazon EC2, `Ec2Provider` of `tsunami-aws`.
//!
//! # The model
//!
//! A [`Provider`] launches and ends machines, a [`Connector`] makes [`Session`]s to them, and [`Tsunami`] does the rest:
//!
//! 1. You describe groups of machines in a [`Plan`], each [`Group`] with an async set-up closure.
//! 2. [`Tsunami::run`] checks the plan, records the run, launches all groups at once, and connects and sets up
//!    each machine the moment it answers.
//! 3. Your closure gets the [`Cluster`]: [`Host`]s that run commands, and know each other's addresses.
//! 4. When it returns, fails, panics, is cancelled or dropped, everything is torn down. What could not be is
//!    named: [`Error::Remains`].
//!
//! ```text
//! Plan ─ quote ─ record ─ Provider::launch, a call a group
//!                              │
//!              one watcher a run lists all machines, and tells
//!                              │
//!              one task a machine: connect ─ check ─ set up
//!                              │
//!                           Cluster ─ your closure
//!                              │
//!          Provider::terminate ─ empty listings ─ the record goes
//! ```
//!
//! A machine is [`Pending`](MachineState::Pending) until it has an address, then
//! [`Running`](MachineState::Running), [`Stopping`](MachineState::Stopping) and [`Gone`](MachineState::Gone). One
//! that runs can be *interrupted*, when its provider says that it takes it back, and then be replaced by
//! [`Cluster::repair`].
//!
//! # What is guaranteed
//!
//! - **Recorded first.** Nothing is asked for before the run is [recorded](RunStore). [`Tsunami::down`] ends it from any
//!   process, on any day.
//! - **An end without anybody.** Every machine has a [deadline](Deadline) of its own from its birth, which needs no
//!   controller; [`Provider::verify`] sees that it is armed before anything is set up.
//! - **Found by its id.** Whatever is created carries the run's id from the [request](LaunchRequest) that creates it, so
//!   that no list of machines has to be remembered: [`Provider::list`], [`Provider::terminate`].
//! - **Gone means gone.** A teardown is over when all requests are answered, the provider says that nothing is left, and its
//!   [listings](Provider::consistency) are empty. Anything else is an [`Error::Remains`], which names it.
//! - **Cancelled or dropped anywhere.** Futures of set-up closures, of the experiment and of [`Tsunami`]'s methods may be
//!   dropped at any await; [`Tsunami::cancel_on`] ends a run from outside. What was begun by then is torn down in the
//!   background: [**await `Tsunami::shutdown`**](Tsunami#before-the-runtime-ends) before the runtime ends.
//! - **Others' code may fail.** What others write, as observers, providers, connectors and closures, may panic or never
//!   answer. A teardown goes on.
//! - **Errors that tell.** An [`Error`] names the machine, the stage and the command, has the last lines of both outputs,
//!   and says what may remain and [what may help](Error::help). A program branches on its [class](ErrorClass). Of several
//!   machines that fail at once it tells the first in full: [`Error::Several`].
//! - **Commands end.** One that is cancelled, timed out or left behind is [ended](Session::exec) with its process group,
//!   and known to be gone, or [said not to be](Error::Timeout::gone).
//! - **Bounded.** What others may make us hold, read or wait for has a [limit](limits).
//!
//! # Where to look
//!
//! | for | see |
//! |---|---|
//! | one command or many, in the background, with a time-out; files | [`Host`], [`HostCommand`], [`Process`] |
//! | readiness, services, files to bring home, parameters, repetitions | [`trial`] |
//! | what a sweep came to: compared, in sentences, as a table | [`Report::compare`], [`Report::analysis`], `results::markdown` (feature `experiment`) |
//! | experiments from files, their results | `experiment`, `results` (feature `experiment`) |
//! | a run's own token, observer, id or results | [`Tsunami::one_run`] |
//! | machines that stay up, and coming back to them | [`Tsunami::up`], [`Keep`], [`Tsunami::attach`], [`Tsunami::extend`] |
//! | what happens, while it does and later | [`Observer`], [`Event`], [`Report`] |
//! | a provider or a connector of one's own | [`Provider`], [`Connector`], `testing::conformance` |
//! | tests without machines: a fake cloud on virtual time, mocks, trouble | `testing` (feature `testing`) |
//!
//! [`Observer`]s hear of everything as it happens, in [`Event`]s that alone tell the whole story: a [`Report`] is made
//! of them, now or from a stream that was saved.

mod analysis;
mod backoff;
mod cluster;
pub mod condition;
mod engine;
mod error;
mod event;
mod exclude;
#[cfg(feature = "experiment")]
pub mod experiment;
mod forward;
#[cfg(all(test, feature = "experiment"))]
mod fuzz;
pub mod limits;
mod machine;
pub mod names;
mod outcome;
mod plan;
pub mod private;
mod provider;
mod record;
#[cfg(feature = "experiment")]
pub mod registry;
mod report;
#[cfg(feature = "experiment")]
pub mod results;
mod seconds;
mod session;
mod spread;
mod start_phase;
pub mod statistics;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
pub mod trial;

pub use analysis::{
    Analysis, AnalysisError, CONFIDENCE, Check, Combination, Compared, Counts, MetricAnalysis, TrialOutcome,
    TrialValue, VariantAnalysis,
};
pub use backoff::Backoff;
pub use cluster::{
    Cluster, Host, HostCommand, Hosts, Line, Output, OutputLines, OutputRefused, Process, ProcessStdin,
    Transfer,
};
pub use engine::{AttachedRun, Keep, RunHandle, Tsunami};
pub use error::{BoxError, Error, ErrorChain, FailedOutput, Failures, QuoteFailure, Remedy};
pub use event::{
    EVENTS_SCHEMA, Event, EventKind, EventsHeader, GroupSize, NewerSchema, Observer, Origin, Recorder,
    UserEvent, read_events,
};
pub use exclude::{Exclude, InvalidExclude};
pub use forward::Forward;
pub use machine::{
    Addresses, Deadline, InvalidMachine, InvalidRunId, Login, Machine, MachineId, MachineKind, MachineState,
    RunId, shown,
};
pub use names::{is_experiment_name, is_group_name};
pub use outcome::{ErrorClass, Outcome, gravest};
pub use plan::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_LIFETIME, Group, Plan, Problem};
#[cfg(feature = "testing")]
pub use provider::MockProvider;
pub use provider::{
    Choice, Choices, DiscoveredRun, LaunchRequest, Leftover, MachineSpec, Offer, Price, ProgressSink,
    Provider, ProviderError, ProviderErrorKind, Quote, RunFilter, Survey,
};
pub use record::{RECORD_SCHEMA, RunEntry, RunRecord, RunStore};
pub use report::{
    CommandReport, MachineReport, Repeats, Report, SetReport, StepReport, SweepEnd, TrialReport, Voided,
};
pub use session::{
    ByteStream, Command, Connector, ContentOffer, Download, Exit, OutputSink, PipedStdin, Program,
    SequenceObserver, Session, SessionError, SessionErrorKind, SharedContent, Stdin, Stream,
};
#[cfg(feature = "testing")]
pub use session::{MockConnector, MockSession};
pub use start_phase::{StartPhase, StartStretch};

/// Cancels a run or a command, and is told to [`Tsunami::cancel_on`] and [`HostCommand::cancel_on`]. It is tokio-util's,
/// of the version that goes with this crate.
pub use tokio_util::sync::CancellationToken;

/// Shell that finds processes with all that belongs to them, and ends them. The scripts that do so begin with it.
#[doc(hidden)]
pub const PROCESSES_SCRIPT: &str = include_str!("processes.sh");

/// A script without what only people read. The `sh` that is sent one reads it byte by byte.
#[doc(hidden)]
pub fn compact_script(script: &str) -> String {
    let lines = script.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    // A line break between quotes is a line by itself.
    lines.collect::<Vec<_>>().join("\n")
}
