//! The story of a run, as it happens.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::machine::{MachineId, RunId};
use crate::provider::{Leftover, Price};
use crate::session::{Exit, Stream};

/// One thing that happened in a run.
///
/// As JSON it is one flat object: `at` and `elapsed` in seconds, `event` the kind in snake case, and the kind's
/// own fields beside them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, in seconds since 1970.
    pub at: f64,
    /// Seconds since the run began.
    pub elapsed: f64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are named after what they hold, the same everywhere")]
pub enum EventKind {
    /// The run is recorded and begins.
    RunStarted { run: RunId, experiment: String, deadline: f64, groups: Vec<GroupSize> },
    /// A group is asked for.
    Launching { group: String, count: u32 },
    /// A request to a provider will be repeated.
    Retrying { group: String, error: String, delay: f64 },
    /// The provider says what happens on the way.
    Note { group: String, text: String },
    /// A group was launched.
    Launched { group: String, machines: Vec<MachineId> },
    /// A machine runs and has an address.
    Running { machine: String, id: MachineId, address: String, description: String, price: Price },
    /// A session to a machine stands.
    Connected { machine: String },
    /// A machine's set-up is done.
    Ready { machine: String },
    /// A machine could not be connected or set up.
    Failed { machine: String, stage: String, error: String },
    /// A file or directory is on the machine.
    Uploaded { machine: String, stage: String, from: String, to: String, seconds: f64 },
    /// A command begins.
    CommandStarted { machine: String, stage: String, command: String },
    /// A command ended: `exit` says how, unless `error` says why that is not known.
    CommandFinished {
        machine: String,
        stage: String,
        command: String,
        exit: Option<Exit>,
        error: Option<String>,
        seconds: f64,
    },
    /// Files were brought home.
    Collected { machine: String, stage: String, into: String, files: usize },
    /// The provider takes a machine back before its time, at once or within minutes.
    Interrupted { machine: String, id: MachineId, reason: String },
    /// A machine that should be running is not, or its listing fails.
    MachineGone { machine: String, id: MachineId },
    /// The provider's listing failed; it is tried again.
    ListingFailed { error: String },
    /// A trial begins.
    TrialStarted { trial: String },
    /// A trial ended.
    TrialFinished { trial: String, ok: bool, seconds: f64 },
    /// A trial was interrupted with these machines; it is done again on their replacements, and what it brought
    /// home is set aside.
    TrialInterrupted { trial: String, machines: Vec<String> },
    /// A step begins on these machines.
    StepStarted { trial: String, step: String, machines: Vec<String> },
    /// A step ended.
    StepFinished { trial: String, step: String, ok: bool, seconds: f64 },
    /// The run's machines are being ended.
    TearingDown { reason: String },
    /// These are still there; they are asked to end once more.
    StillThere { leftovers: Vec<Leftover> },
    /// The run's machines are gone, except for these.
    TornDown { leftovers: Vec<Leftover>, seconds: f64 },
    /// The run's machines are left running.
    Kept { until: f64 },
    /// The run is over.
    RunFinished { ok: bool, error: Option<String> },
}

/// A group's name and how many machines it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSize {
    /// The name.
    pub name: String,
    /// The number of machines.
    pub count: u32,
}

/// Watches a run. Both methods are called from within the engine and must not block for long. One that panics is
/// left out from then on; the run goes on without it.
pub trait Observer: Debug + Send + Sync + 'static {
    /// Something happened.
    fn event(&self, event: &Event);

    /// A command wrote something. The bytes are as they came, cut anywhere.
    fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        let _ = (origin, stream, bytes);
        Ok(())
    }
}

/// Where output comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin<'a> {
    /// The machine's name.
    pub machine: &'a str,
    /// The stage it is in.
    pub stage: &'a str,
}

/// Keeps all events in memory. Useful in tests.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<Event>>);

impl Recorder {
    /// The events so far.
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Observer for Recorder {
    fn event(&self, event: &Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
    }
}

/// An observer, for as long as it does not panic: nothing that it does may keep a run from being torn down.
#[derive(Clone, Debug)]
pub(crate) struct Guarded {
    observer: Arc<dyn Observer>,
    panicked: Arc<AtomicBool>,
}

impl Guarded {
    pub(crate) fn new(observer: Arc<dyn Observer>) -> Self {
        Self { observer, panicked: Arc::default() }
    }

    /// Tells it something, and what it answers, if it does.
    fn tell<T>(&self, tell: impl FnOnce(&dyn Observer) -> T) -> Option<T> {
        if self.panicked.load(Ordering::Relaxed) {
            return None;
        }
        let told = catch_unwind(AssertUnwindSafe(|| tell(&*self.observer)));
        if told.is_err() && !self.panicked.swap(true, Ordering::Relaxed) {
            tracing::error!(observer = ?std::any::type_name_of_val(&*self.observer), "an observer panicked and is left out");
        }
        told.ok()
    }
}

/// Stamps events and hands them to all observers.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    observers: Arc<[Guarded]>,
    started_at: SystemTime,
    started: Instant,
}

impl Events {
    pub(crate) fn new(observers: &[Guarded], started_at: SystemTime) -> Self {
        Self { observers: observers.into(), started_at, started: Instant::now() }
    }

    pub(crate) fn emit(&self, kind: EventKind) {
        let elapsed = self.started.elapsed();
        tracing::debug!(?elapsed, ?kind);
        let at = seconds_since_epoch(self.started_at + elapsed);
        let event = Event { at, elapsed: rounded(elapsed), kind };
        for observer in &*self.observers {
            observer.tell(|observer| observer.event(&event));
        }
    }

    pub(crate) fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        let tell = |observer: &Guarded| observer.tell(|observer| observer.output(origin, stream, bytes));
        self.observers.iter().filter_map(tell).collect()
    }

    /// The time it is, by tokio's clock.
    pub(crate) fn now(&self) -> SystemTime {
        self.started_at + self.started.elapsed()
    }
}

/// Seconds, to the millisecond.
pub(crate) fn rounded(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

/// Seconds since 1970, to the millisecond.
pub(crate) fn seconds_since_epoch(time: SystemTime) -> f64 {
    rounded(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
