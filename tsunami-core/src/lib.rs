//! Launch short-lived machines, set them all up at once, run an experiment, tear everything down.
//!
//! This crate knows neither a cloud nor SSH. A [`Provider`] launches and ends machines, a [`Connector`] makes
//! [`Session`]s to them, and [`Tsunami`] does the rest:
//!
//! 1. You describe groups of machines in a [`Plan`], each [`Group`] with an async set-up closure.
//! 2. [`Tsunami::run`] checks the plan, records the run, launches all groups at once, and connects and sets up
//!    each machine the moment it answers.
//! 3. Your closure gets the [`Cluster`]: [`Host`]s that run commands, and know each other's addresses.
//! 4. When it returns, fails, panics, is cancelled or dropped, everything is torn down. What could not be is
//!    named: [`Error::Remains`].
//!
//! [`Observer`]s hear of everything as it happens. The feature `testing` has a fake cloud that runs on virtual
//! time, mocks of the traits, and the conformance suites that every provider and session passes.

mod cluster;
mod engine;
mod error;
mod event;
#[cfg(feature = "experiment")]
pub mod experiment;
#[cfg(all(test, feature = "experiment"))]
mod fuzz;
pub mod limits;
mod machine;
mod outcome;
mod plan;
pub mod private;
mod provider;
mod record;
mod report;
#[cfg(feature = "experiment")]
pub mod results;
mod session;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
pub mod trial;

pub use cluster::{Cluster, Host, HostCommand, OUTPUT_LIMIT, Output, Process};
pub use engine::{AttachedRun, Keep, RunHandle, Tsunami};
pub use error::{BoxError, Error, ErrorChain, Failures, QuoteFailure};
pub use event::{
    EVENTS_SCHEMA, Event, EventKind, EventsHeader, GroupSize, NewerSchema, Observer, Origin, Recorder,
    UserEvent, read_events,
};
pub use machine::{
    Addresses, Deadline, InvalidMachine, InvalidRunId, Login, Machine, MachineId, MachineState, RunId, shown,
};
pub use outcome::{Outcome, gravest};
pub use plan::{
    DEFAULT_CONNECT_TIMEOUT, DEFAULT_LIFETIME, Group, Plan, Problem, is_experiment_name, is_group_name,
};
#[cfg(feature = "testing")]
pub use provider::MockProvider;
pub use provider::{
    LaunchRequest, Leftover, MachineSpec, Notes, Offer, Price, Provider, ProviderError, ProviderErrorKind,
    Quote, RunFilter,
};
pub use record::{RECORD_SCHEMA, RunDirectory, RunRecord, State};
pub use report::{CommandReport, MachineReport, Replaced, Report, StepReport, TrialReport};
pub use session::{
    Command, Connector, Download, Exit, OutputSink, Program, Session, SessionError, SessionErrorKind, Stdin,
    Stream,
};
#[cfg(feature = "testing")]
pub use session::{MockConnector, MockSession};

/// Shell that finds processes with all that belongs to them, and ends them. The scripts that do so begin with it.
#[doc(hidden)]
pub const PROCESSES_SCRIPT: &str = include_str!("processes.sh");
