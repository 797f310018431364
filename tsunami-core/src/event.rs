//! The story of a run, as it happens.

use std::fmt::Debug;
use std::io::{self, BufRead};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::time::Instant;

use crate::condition::{Account, Facts};
use crate::machine::{MachineId, MachineKind, RunId};
use crate::provider::{Leftover, Price};
use crate::report::Report;
use crate::seconds::{self, Milliseconds};
use crate::session::{Exit, Stream};
use crate::trial::{Measured, SweepPlan, VoidReason};

/// The number of the form in which events are saved, as [`EventsHeader`] says it. The first had neither that line nor
/// [`seq`](Event::seq), nor the ids of commands.
pub const EVENTS_SCHEMA: u32 = 2;

/// The first line of a saved stream of events.
///
/// ```
/// # use tsunami_core::{EVENTS_SCHEMA, EventsHeader};
/// let line = serde_json::to_string(&EventsHeader::default())?;
/// assert_eq!(line, format!("{{\"schema\":{EVENTS_SCHEMA}}}"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EventsHeader {
    /// The number of the form of the lines that follow.
    pub schema: u32,
}

impl Default for EventsHeader {
    fn default() -> Self {
        Self { schema: EVENTS_SCHEMA }
    }
}

/// Reads a saved stream of events, of this or an earlier form. What is of a kind that this version does not know is left
/// out, so that a new kind makes no new form; and so is a last line without an end: whoever wrote it was killed.
///
/// ```
/// use tsunami_core::{Report, read_events};
///
/// # fn example() -> std::io::Result<()> {
/// let saved = std::fs::File::open("results/redis/latest/events.jsonl")?;
/// let report: Report = read_events(std::io::BufReader::new(saved))?.iter().collect();
/// println!("{:?} came to {:?}", report.experiment, report.ok);
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// What can't be read, and a whole line that is no event. The error of a stream of a later form has a [`NewerSchema`] in it.
pub fn read_events(mut stream: impl BufRead) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        stream.read_until(b'\n', &mut line)?;
        if line.pop_if(|end| *end == b'\n').is_none() {
            break;
        }
        let odd = |error| io::Error::new(io::ErrorKind::InvalidData, format!("line {number}: {error}"));
        if number == 1
            && let Ok(EventsHeader { schema }) = serde_json::from_slice(&line)
        {
            NewerSchema::check(schema, EVENTS_SCHEMA).map_err(io::Error::other)?;
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(event) => events.push(event),
            Err(_) if is_of_another_kind(&line) => {}
            Err(error) => return Err(odd(error)),
        }
    }
    Ok(events)
}

/// Whether a line is an event of a kind that this version does not know.
fn is_of_another_kind(line: &[u8]) -> bool {
    /// An event's kind alone; whatever else it has, it is one of the known kinds or none of them.
    #[derive(Deserialize)]
    struct Kind {
        event: String,
    }
    let unknown = |Kind { event }: Kind| {
        let alone = serde_json::from_value::<EventKind>(serde_json::json!({ "event": event }));
        alone.is_err_and(|error| error.to_string().starts_with("unknown variant"))
    };
    serde_json::from_slice(line).is_ok_and(unknown)
}

/// Something was saved in a form that this version does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it was written by a later version of tsunami: its form is number {schema}, and this version knows {known}"
)]
#[non_exhaustive]
pub struct NewerSchema {
    /// The number of its form.
    pub schema: u32,
    /// The last that is known here.
    pub known: u32,
}

impl NewerSchema {
    /// Fails if a form is later than the last that is known.
    pub(crate) fn check(schema: u32, known: u32) -> Result<(), Self> {
        if schema > known { Err(Self { schema, known }) } else { Ok(()) }
    }
}

/// One thing that happened in a run.
///
/// As JSON it is one flat object: `seq`, `at` and `elapsed`, `event` the kind in snake case, and the kind's own fields
/// beside them. Its times have milliseconds. They are saved as numbers of seconds, since 1970 or since the run began; how
/// long something `took` is called `seconds` there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// Its number in the story that this process tells of the run, from 1; 0 where an earlier version told it. Events
    /// that happen at the same time may reach an observer in another order.
    #[serde(default)]
    pub seq: u64,
    /// When.
    #[serde(with = "seconds")]
    pub at: SystemTime,
    /// How long after the run began.
    #[serde(with = "seconds")]
    pub elapsed: Duration,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

impl Event {
    /// An event without a number, for tests of observers.
    pub fn new(at: SystemTime, elapsed: Duration, kind: EventKind) -> Self {
        Self { seq: 0, at, elapsed, kind }
    }
}

/// What can happen in a run.
///
/// A machine is told by its name and, as `id`, by its provider's: a replacement has the name of its predecessor, and
/// another id. A command is told by its machine, its stage and what it is called, and by its `command_id`, which no
/// other command of the stream has. Both are missing (the latter is 0) where an earlier version told it.
///
/// Tests of observers may make events, so the kinds are open to that. Match them with `..`: one may get more fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are named after what they hold, the same everywhere")]
pub enum EventKind {
    /// The run is recorded and begins.
    RunStarted {
        run: RunId,
        experiment: String,
        #[serde(with = "seconds")]
        deadline: SystemTime,
        groups: Vec<GroupSize>,
    },
    /// What the provider chose where the group leaves it open: any one of these will do, in a run that goes on with this
    /// one, too.
    Chosen { group: String, asked: String, chosen: Vec<String> },
    /// A group is asked for.
    Launching { group: String, count: u32 },
    /// A request to a provider will be repeated.
    Retrying {
        group: String,
        error: String,
        #[serde(with = "seconds")]
        delay: Duration,
    },
    /// The provider says what happens on the way, or the engine why a machine has its files from here and not from another.
    Note { group: String, text: String },
    /// A group was launched.
    Launched { group: String, machines: Vec<MachineId> },
    /// A machine runs. `address` is how the controller reaches it, if its provider tells.
    Running {
        machine: String,
        id: MachineId,
        #[serde(with = "known")]
        address: Option<String>,
        description: String,
        /// What it was made from. Older streams don't tell.
        #[serde(default, skip_serializing_if = "MachineKind::is_unknown")]
        kind: MachineKind,
        price: Price,
    },
    /// A session to a machine stands. `answered` is how long after the beginning of the run the machine was first seen to
    /// answer, where its session tells.
    Connected {
        machine: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<MachineId>,
        #[serde(default, skip_serializing_if = "Option::is_none", with = "seconds::optional")]
        answered: Option<Duration>,
    },
    /// Its provider has checked a machine, and its set-up begins. Older streams don't tell.
    Verified {
        machine: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<MachineId>,
    },
    /// A machine's set-up is done.
    Ready {
        machine: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<MachineId>,
    },
    /// A machine could not be connected or set up.
    Failed {
        machine: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<MachineId>,
        stage: String,
        error: String,
    },
    /// A file or directory is on the machine.
    Uploaded {
        machine: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<MachineId>,
        stage: String,
        from: String,
        to: String,
        #[serde(rename = "seconds", with = "seconds")]
        took: Duration,
    },
    /// A command begins.
    CommandStarted {
        machine: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<MachineId>,
        stage: String,
        #[serde(default)]
        command_id: u64,
        command: String,
    },
    /// A command ended: `exit` says how, unless `error` says why that is not known.
    CommandFinished {
        machine: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<MachineId>,
        stage: String,
        #[serde(default)]
        command_id: u64,
        command: String,
        exit: Option<Exit>,
        error: Option<String>,
        /// Whether it was ended on purpose, as commands in the background are. Older streams don't tell.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        cancelled: bool,
        #[serde(rename = "seconds", with = "seconds")]
        took: Duration,
    },
    /// Files were brought home.
    Collected {
        machine: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<MachineId>,
        stage: String,
        into: String,
        files: usize,
    },
    /// The provider takes a machine back before its time, at once or within minutes.
    Interrupted { machine: String, id: MachineId, reason: String },
    /// A machine that should be running is not, or its listing fails.
    MachineGone { machine: String, id: MachineId },
    /// The provider's listing failed; it is tried again.
    ListingFailed { error: String },
    /// What trials there will be. It is told before the first set of machines, and again where a trial measures something
    /// that was not planned.
    SweepPlanned { plan: SweepPlan },
    /// The trials of a set of machines begin. What is told from here on is of this set.
    SetStarted { set: u32, run: RunId },
    /// What a machine is.
    Fingerprint {
        machine: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<MachineId>,
        facts: Facts,
    },
    /// A machine differs from the others of its group.
    OddMachine { machine: String, differences: Vec<String> },
    /// The run repeats another one, whose machines were not like these in `differences`. It is told before the first trial,
    /// and again where later machines differ in more.
    Repeats { run: RunId, differences: Vec<String> },
    /// A machine was measured by itself: what, and how much, more being better.
    Canary { machine: String, results: std::collections::BTreeMap<String, f64> },
    /// A trial begins.
    TrialStarted { trial: String },
    /// A number was read of a trial, or could not be.
    Measured {
        trial: String,
        #[serde(flatten)]
        measured: Measured,
    },
    /// What happened on a machine during a trial.
    Accounted {
        trial: String,
        #[serde(flatten)]
        account: Account,
    },
    /// A trial ended. `error` says why it failed, unless an older stream tells of it.
    TrialFinished {
        trial: String,
        ok: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        #[serde(rename = "seconds", with = "seconds")]
        took: Duration,
    },
    /// A trial was interrupted with these machines; it is done again on their replacements, and what it brought
    /// home is set aside.
    TrialInterrupted { trial: String, machines: Vec<String> },
    /// A trial doesn't count, for a cause outside of the experiment. From here on it is called `attempt`, as what it
    /// brought home is; it is done again, or the sweep ends without it.
    TrialVoided { trial: String, attempt: String, reason: VoidReason, text: String, machines: Vec<String> },
    /// No more trials are done: so many of those that count were, of all in the plan. `why` says it if that is not all.
    SweepFinished { done: u32, of: u32, why: Option<String> },
    /// A step begins on these machines.
    StepStarted { trial: String, step: String, machines: Vec<String> },
    /// A step ended.
    StepFinished {
        trial: String,
        step: String,
        ok: bool,
        #[serde(rename = "seconds", with = "seconds")]
        took: Duration,
    },
    /// Something that only the program knows the meaning of.
    Custom { name: String, data: serde_json::Value },
    /// The run's machines are being ended.
    TearingDown { reason: String },
    /// These are still there; they are asked to end once more.
    StillThere { leftovers: Vec<Leftover> },
    /// The run's machines are gone, except for these.
    TornDown {
        leftovers: Vec<Leftover>,
        #[serde(rename = "seconds", with = "seconds")]
        took: Duration,
    },
    /// The run's machines are left running.
    Kept {
        #[serde(with = "seconds")]
        until: SystemTime,
    },
    /// The run is over. Of several sets of machines each has its own: `ok` says of each whether all of its trials succeeded
    /// that were to be done, and of the last one whether those of all sets did.
    RunFinished { ok: bool, error: Option<String> },
}

impl EventKind {
    /// Shows `visit` every text of it: what people, programs and machines wrote. Names, ids and places are none: whoever
    /// reads a record must find in it what it is about.
    pub fn for_each_text(&mut self, mut visit: impl FnMut(&mut String)) {
        match self {
            Self::Retrying { error, .. } | Self::ListingFailed { error } | Self::Failed { error, .. } => {
                visit(error);
            }
            Self::Note { text, .. } => visit(text),
            Self::Running { description, .. } => visit(description),
            Self::CommandStarted { command, .. } => visit(command),
            Self::CommandFinished { command, error, .. } => {
                visit(command);
                error.iter_mut().for_each(visit);
            }
            Self::Interrupted { reason, .. } | Self::TearingDown { reason } => visit(reason),
            Self::Custom { data, .. } => for_each_text_of(data, &mut visit),
            Self::StillThere { leftovers } | Self::TornDown { leftovers, .. } => {
                leftovers.iter_mut().for_each(|leftover| visit(&mut leftover.why));
            }
            Self::RunFinished { error, .. } | Self::TrialFinished { error, .. } => {
                error.iter_mut().for_each(visit);
            }
            Self::TrialVoided { text, .. } => visit(text),
            Self::SweepFinished { why, .. } => why.iter_mut().for_each(visit),
            Self::Measured { measured, .. } => measured.missing.iter_mut().for_each(visit),
            Self::Fingerprint { facts, .. } => facts.values_mut().for_each(visit),
            Self::OddMachine { differences, .. } | Self::Repeats { differences, .. } => {
                differences.iter_mut().for_each(visit);
            }
            Self::Accounted { account, .. } => {
                account.kernel_messages.iter_mut().for_each(&mut visit);
                account.disturbed.iter_mut().for_each(visit);
            }
            Self::SweepPlanned { .. }
            | Self::SetStarted { .. }
            | Self::Canary { .. }
            | Self::RunStarted { .. }
            | Self::Chosen { .. }
            | Self::Launching { .. }
            | Self::Launched { .. }
            | Self::Connected { .. }
            | Self::Verified { .. }
            | Self::Ready { .. }
            | Self::Uploaded { .. }
            | Self::Collected { .. }
            | Self::MachineGone { .. }
            | Self::TrialStarted { .. }
            | Self::TrialInterrupted { .. }
            | Self::StepStarted { .. }
            | Self::StepFinished { .. }
            | Self::Kept { .. } => {}
        }
    }
}

/// All texts of a value, whatever their fields are called.
fn for_each_text_of(value: &mut serde_json::Value, visit: &mut dyn FnMut(&mut String)) {
    match value {
        serde_json::Value::String(text) => visit(text),
        serde_json::Value::Array(values) => {
            values.iter_mut().for_each(|value| for_each_text_of(value, visit));
        }
        serde_json::Value::Object(fields) => {
            fields.values_mut().for_each(|value| for_each_text_of(value, visit));
        }
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {}
    }
}

/// What a program adds to the story of its run: see [`Cluster::emit`](crate::Cluster::emit). The rest is the engine's.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the event of the same name")]
pub enum UserEvent {
    SweepPlanned { plan: SweepPlan },
    SetStarted { set: u32, run: RunId },
    Fingerprint { machine: String, id: Option<MachineId>, facts: Facts },
    OddMachine { machine: String, differences: Vec<String> },
    Repeats { run: RunId, differences: Vec<String> },
    Canary { machine: String, results: std::collections::BTreeMap<String, f64> },
    TrialStarted { trial: String },
    Measured { trial: String, measured: Measured },
    Accounted { trial: String, account: Account },
    TrialFinished { trial: String, ok: bool, error: Option<String>, took: Duration },
    TrialInterrupted { trial: String, machines: Vec<String> },
    TrialVoided { trial: String, attempt: String, reason: VoidReason, text: String, machines: Vec<String> },
    SweepFinished { done: u32, of: u32, why: Option<String> },
    StepStarted { trial: String, step: String, machines: Vec<String> },
    StepFinished { trial: String, step: String, ok: bool, took: Duration },
    Custom { name: String, data: serde_json::Value },
}

impl From<UserEvent> for EventKind {
    fn from(event: UserEvent) -> Self {
        match event {
            UserEvent::SweepPlanned { plan } => Self::SweepPlanned { plan },
            UserEvent::SetStarted { set, run } => Self::SetStarted { set, run },
            UserEvent::Fingerprint { machine, id, facts } => Self::Fingerprint { machine, id, facts },
            UserEvent::OddMachine { machine, differences } => Self::OddMachine { machine, differences },
            UserEvent::Repeats { run, differences } => Self::Repeats { run, differences },
            UserEvent::Canary { machine, results } => Self::Canary { machine, results },
            UserEvent::TrialStarted { trial } => Self::TrialStarted { trial },
            UserEvent::Measured { trial, measured } => Self::Measured { trial, measured },
            UserEvent::Accounted { trial, account } => Self::Accounted { trial, account },
            UserEvent::TrialFinished { trial, ok, error, took } => {
                Self::TrialFinished { trial, ok, error, took: cut(took) }
            }
            UserEvent::TrialVoided { trial, attempt, reason, text, machines } => {
                Self::TrialVoided { trial, attempt, reason, text, machines }
            }
            UserEvent::SweepFinished { done, of, why } => Self::SweepFinished { done, of, why },
            UserEvent::TrialInterrupted { trial, machines } => Self::TrialInterrupted { trial, machines },
            UserEvent::StepStarted { trial, step, machines } => Self::StepStarted { trial, step, machines },
            UserEvent::StepFinished { trial, step, ok, took } => {
                Self::StepFinished { trial, step, ok, took: cut(took) }
            }
            UserEvent::Custom { name, data } => Self::Custom { name, data },
        }
    }
}

/// A group's name and how many machines it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GroupSize {
    /// The name.
    pub name: String,
    /// The number of machines.
    pub count: u32,
}

impl GroupSize {
    /// A group of this name, of so many machines.
    pub fn new(name: impl Into<String>, count: u32) -> Self {
        Self { name: name.into(), count }
    }
}

/// Watches a run. Both methods are called where things happen, from any thread and several at once, and must not block for
/// long: whatever happens there waits for them. One that panics is left out from then on; the run goes on without it.
///
/// ```
/// use tsunami_core::{Event, EventKind, Observer};
///
/// /// Says when machines are ready.
/// #[derive(Debug)]
/// struct Ready;
///
/// impl Observer for Ready {
///     fn event(&self, event: &Event) {
///         if let EventKind::Ready { machine, .. } = &event.kind {
///             println!("{machine} is ready after {:.1} s", event.elapsed.as_secs_f64());
///         }
///     }
/// }
/// ```
pub trait Observer: Debug + Send + Sync + 'static {
    /// Something happened.
    fn event(&self, event: &Event);

    /// A command wrote something. The bytes are as they came, cut anywhere. Of one output they come in their order.
    ///
    /// # Errors
    ///
    /// That it takes no more. The command ends as if it were cancelled, and its error has an
    /// [`OutputRefused`](crate::OutputRefused) with this one.
    fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        let _ = (origin, stream, bytes);
        Ok(())
    }
}

/// Where output comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Origin<'a> {
    /// The machine's name.
    pub machine: &'a str,
    /// Its provider's id.
    pub id: Option<&'a MachineId>,
    /// The stage it is in.
    pub stage: &'a str,
    /// The command's number, as its events have it.
    pub command_id: u64,
}

impl<'a> Origin<'a> {
    /// An origin of which nothing more is known.
    pub fn new(machine: &'a str, stage: &'a str) -> Self {
        Self { machine, id: None, stage, command_id: 0 }
    }

    /// The same, of this command.
    pub fn command(self, id: Option<&'a MachineId>, command_id: u64) -> Self {
        Self { id, command_id, ..self }
    }
}

/// Keeps all events in memory, without bound, and no output. Useful in tests.
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

/// How many events and commands there were in a story. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventCounts {
    events: Arc<AtomicU64>,
    commands: Arc<AtomicU64>,
}

impl EventCounts {
    /// Those of a saved story.
    #[cfg(feature = "experiment")]
    pub(crate) fn of(story: &[Event]) -> Self {
        let command = |event: &Event| match &event.kind {
            EventKind::CommandStarted { command_id, .. } => *command_id,
            _ => 0,
        };
        let events = story.iter().map(|event| event.seq).max().unwrap_or_default();
        let commands = story.iter().map(command).max().unwrap_or_default();
        Self { events: Arc::new(events.into()), commands: Arc::new(commands.into()) }
    }
}

/// Stamps events and hands them to all observers.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    observers: Arc<[Guarded]>,
    started_at: SystemTime,
    started: Instant,
    /// How many events and how many commands there were.
    counts: EventCounts,
    /// Who sums up a part of the story, for as long as anybody wants it.
    summaries: Arc<Mutex<Vec<Weak<Mutex<Report>>>>>,
    /// Why the run will have failed, although what goes on in it comes to an end without an error.
    failure: Arc<OnceLock<String>>,
}

impl Events {
    pub(crate) fn new(observers: &[Guarded], started_at: SystemTime, counts: EventCounts) -> Self {
        let (observers, started) = (observers.into(), Instant::now());
        Self { observers, started_at, started, counts, summaries: Arc::default(), failure: Arc::default() }
    }

    /// Lets the run have failed, whatever it ends with. The first reason is told.
    #[cfg(feature = "experiment")]
    pub(crate) fn fail(&self, why: String) {
        let _ = self.failure.set(why);
    }

    /// Why it will have failed, if so.
    pub(crate) fn failure(&self) -> Option<&String> {
        self.failure.get()
    }

    /// Sums up what is told from now on in `report`, until that is dropped.
    pub(crate) fn sum_up_in(&self, report: &Arc<Mutex<Report>>) {
        self.summaries.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(report));
    }

    /// The number of the next command.
    pub(crate) fn next_command(&self) -> u64 {
        self.counts.commands.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn emit(&self, kind: EventKind) {
        let elapsed = self.started.elapsed();
        tracing::debug!(?elapsed, ?kind);
        let at = cut(self.started_at + elapsed);
        let seq = self.counts.events.fetch_add(1, Ordering::Relaxed) + 1;
        let event = Event { seq, at, elapsed: cut(elapsed), kind };
        for observer in &*self.observers {
            observer.tell(|observer| observer.event(&event));
        }
        self.summaries.lock().unwrap_or_else(PoisonError::into_inner).retain(|summary| {
            let Some(summary) = summary.upgrade() else { return false };
            summary.lock().unwrap_or_else(PoisonError::into_inner).add(&event);
            true
        });
    }

    pub(crate) fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        let tell = |observer: &Guarded| observer.tell(|observer| observer.output(origin, stream, bytes));
        self.observers.iter().filter_map(tell).collect()
    }

    /// How long after the beginning something was, as exact as an event is.
    pub(crate) fn elapsed_at(&self, at: Instant) -> Duration {
        cut(at.saturating_duration_since(self.started))
    }

    /// The time it is, by tokio's clock.
    pub(crate) fn now(&self) -> SystemTime {
        self.started_at + self.started.elapsed()
    }
}

/// A text as streams and reports have it: empty where it is not known.
pub(crate) mod known {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
        text.as_deref().unwrap_or_default().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<String>, D::Error> {
        Ok(Some(String::deserialize(deserializer)?).filter(|text| !text.is_empty()))
    }
}

/// A time of an event, as exact as a saved stream has it.
pub(crate) fn cut<T: Milliseconds>(time: T) -> T {
    time.cut().unwrap_or(time)
}
