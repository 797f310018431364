//! What a run came to: a fold over its events.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::event::{Event, EventKind, GroupSize, known};
use crate::machine::{MachineId, RunId};
use crate::provider::{Leftover, Price};
use crate::seconds;
use crate::session::Exit;

/// The summary of a run, built from its events alone: now, or from a saved stream later.
///
/// Times are since the run began. As JSON they are numbers of seconds; how long something `took` is called `seconds`
/// there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The run.
    pub run: Option<RunId>,
    /// The experiment's name, if the stream says so.
    #[serde(with = "known")]
    pub experiment: Option<String>,
    /// When the run began, if its stream says so. As JSON in seconds since 1970, 0 if not.
    #[serde(with = "seconds")]
    pub started: Option<SystemTime>,
    /// The groups.
    pub groups: Vec<GroupSize>,
    /// The machines by name.
    pub machines: BTreeMap<String, MachineReport>,
    /// The commands that ended, in the order in which they did.
    pub commands: Vec<CommandReport>,
    /// The trials that began, in the order in which they did. One that was done again is there again.
    #[serde(default)]
    pub trials: Vec<TrialReport>,
    /// When the last machine was ready, if all were.
    #[serde(default, with = "seconds::optional")]
    pub ready: Option<Duration>,
    /// When the teardown began.
    #[serde(default, with = "seconds::optional")]
    pub teardown: Option<Duration>,
    /// When the run was over.
    #[serde(default, with = "seconds::optional")]
    pub finished: Option<Duration>,
    /// What may remain.
    pub leftovers: Vec<Leftover>,
    /// Whether the run succeeded; `None` while it is not over, or if its end was not recorded.
    pub ok: Option<bool>,
    /// Why it did not.
    pub error: Option<String>,
    /// How many machines are ready: a report of many costs no look at all of them at each event.
    #[serde(skip)]
    ready_machines: Counter,
}

/// A count that follows from the rest: it is not saved, and equal to any other.
#[derive(Clone, Copy, Debug, Default)]
struct Counter(u32);

impl PartialEq for Counter {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// The summary of one machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MachineReport {
    /// The provider's id.
    pub id: Option<MachineId>,
    /// Its address as seen by the controller, once it is known.
    #[serde(with = "known")]
    pub address: Option<String>,
    /// What it is.
    pub description: String,
    /// What it costs.
    pub price: Price,
    /// Those that it replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<Replaced>,
    /// Why its provider took it, or one that it replaced, before its time.
    pub interrupted: Option<String>,
    /// When it ran with an address.
    #[serde(default, with = "seconds::optional")]
    pub running: Option<Duration>,
    /// When the session stood.
    #[serde(default, with = "seconds::optional")]
    pub connected: Option<Duration>,
    /// When it was set up.
    #[serde(default, with = "seconds::optional")]
    pub ready: Option<Duration>,
    /// When it was seen to be gone before the teardown.
    #[serde(default, with = "seconds::optional")]
    pub gone: Option<Duration>,
    /// Why it could not be connected or set up.
    pub error: Option<String>,
}

/// A machine that was interrupted and replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Replaced {
    /// The provider's id.
    pub id: MachineId,
    /// What it cost.
    pub price: Price,
    /// When it ran with an address.
    #[serde(default, with = "seconds::optional")]
    pub running: Option<Duration>,
}

/// The summary of one command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CommandReport {
    /// The machine.
    pub machine: String,
    /// Its provider's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<MachineId>,
    /// The stage.
    pub stage: String,
    /// The command's number, as its events have it.
    #[serde(default)]
    pub command_id: u64,
    /// The command.
    pub command: String,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Why that is not known.
    pub error: Option<String>,
    /// When it ended.
    #[serde(with = "seconds")]
    pub finished: Duration,
    /// How long it took.
    #[serde(rename = "seconds", with = "seconds")]
    pub took: Duration,
}

/// The summary of one trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrialReport {
    /// Its name.
    pub name: String,
    /// When it began.
    #[serde(with = "seconds")]
    pub started: Duration,
    /// Whether it succeeded; `None` if it did not end.
    pub ok: Option<bool>,
    /// How long it took.
    #[serde(rename = "seconds", default, with = "seconds::optional")]
    pub took: Option<Duration>,
    /// Whether a machine was taken back meanwhile, so that it was done again.
    pub interrupted: bool,
    /// Its steps that began, in the order in which they did.
    pub steps: Vec<StepReport>,
}

/// The summary of one step of a trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepReport {
    /// Its name.
    pub name: String,
    /// When it began.
    #[serde(with = "seconds")]
    pub started: Duration,
    /// Whether it succeeded; `None` if it did not end.
    pub ok: Option<bool>,
    /// How long it took.
    #[serde(rename = "seconds", default, with = "seconds::optional")]
    pub took: Option<Duration>,
    /// Whether it was this step that did not succeed in a trial that was interrupted.
    pub interrupted: bool,
}

impl Report {
    /// Takes in the next event.
    pub fn add(&mut self, event: &Event) {
        let now = event.elapsed;
        match &event.kind {
            EventKind::RunStarted { run, experiment, groups, .. } => {
                self.run = Some(run.clone());
                self.experiment = Some(experiment.clone());
                self.groups.clone_from(groups);
                self.started = Some(event.at);
            }
            EventKind::Running { machine, id, address, description, price } => {
                let Self { machines, ready_machines: Counter(ready), .. } = self;
                let machine = machines.entry(machine.clone()).or_default();
                if let Some(earlier) = machine.id.replace(id.clone()).filter(|earlier| earlier != id) {
                    *ready = ready.saturating_sub(machine.ready.is_some().into());
                    machine.replaced.push(Replaced {
                        id: earlier,
                        price: machine.price,
                        running: machine.running,
                    });
                    (machine.connected, machine.ready, machine.gone) = (None, None, None);
                    machine.error = None;
                }
                machine.address.clone_from(address);
                machine.description.clone_from(description);
                machine.price = *price;
                machine.running = Some(now);
            }
            EventKind::Interrupted { machine, reason, .. } => {
                self.machine(machine).interrupted = Some(reason.clone());
            }
            EventKind::Connected { machine, .. } => self.machine(machine).connected = Some(now),
            EventKind::Ready { machine, .. } => {
                let is_another = self.machine(machine).ready.replace(now).is_none();
                self.ready_machines.0 += u32::from(is_another);
                let wanted: u32 = self.groups.iter().map(|group| group.count).sum();
                if self.ready_machines.0 == wanted {
                    self.ready = Some(now);
                }
            }
            EventKind::Failed { machine, error, .. } => self.machine(machine).error = Some(error.clone()),
            EventKind::MachineGone { machine, id } => {
                let machine = self.machine(machine);
                // One that was replaced may go long after.
                if machine.id.as_ref() == Some(id) {
                    machine.gone = Some(now);
                }
            }
            EventKind::CommandFinished {
                machine, id, stage, command_id, command, exit, error, took, ..
            } => {
                self.commands.push(CommandReport {
                    machine: machine.clone(),
                    id: id.clone(),
                    stage: stage.clone(),
                    command_id: *command_id,
                    command: command.clone(),
                    exit: *exit,
                    error: error.clone(),
                    finished: now,
                    took: *took,
                });
            }
            EventKind::TrialStarted { trial } => {
                self.trials.push(TrialReport { name: trial.clone(), started: now, ..TrialReport::default() })
            }
            EventKind::TrialFinished { trial, ok, took } => {
                if let Some(trial) = self.trial(trial) {
                    (trial.ok, trial.took) = (Some(*ok), Some(*took));
                }
            }
            EventKind::TrialInterrupted { trial, .. } => {
                if let Some(trial) = self.trial(trial) {
                    trial.interrupted = true;
                    let steps = trial.steps.iter_mut().filter(|step| step.ok != Some(true));
                    steps.for_each(|step| step.interrupted = true);
                }
            }
            EventKind::StepStarted { trial, step, .. } => {
                if let Some(trial) = self.trial(trial) {
                    let step = StepReport { name: step.clone(), started: now, ..StepReport::default() };
                    trial.steps.push(step);
                }
            }
            EventKind::StepFinished { trial, step, ok, took } => {
                let steps = self.trial(trial).into_iter().flat_map(|trial| &mut trial.steps);
                if let Some(step) = steps.rev().find(|known| known.name == *step) {
                    (step.ok, step.took) = (Some(*ok), Some(*took));
                }
            }
            EventKind::TearingDown { .. } => self.teardown = Some(now),
            EventKind::TornDown { leftovers, .. } => self.leftovers.clone_from(leftovers),
            EventKind::RunFinished { ok, error } => {
                self.finished = Some(now);
                self.ok = Some(*ok);
                self.error.clone_from(error);
            }
            // They change nothing of what a run came to.
            EventKind::Launching { .. }
            | EventKind::Retrying { .. }
            | EventKind::Note { .. }
            | EventKind::Launched { .. }
            | EventKind::Uploaded { .. }
            | EventKind::CommandStarted { .. }
            | EventKind::Collected { .. }
            | EventKind::ListingFailed { .. }
            | EventKind::Custom { .. }
            | EventKind::StillThere { .. }
            | EventKind::Kept { .. } => {}
        }
    }

    /// What the machines cost, in US dollars: an estimate, from when each ran with an address to the end of the
    /// run. `None` if a price is not known.
    pub fn estimated_cost(&self) -> Option<f64> {
        let end = self.finished.or(self.teardown)?;
        let cost = |price: Price, running: Option<Duration>| {
            let time = running.map(|running| end.saturating_sub(running));
            price.dollars(1, time.unwrap_or_default())
        };
        let machines = self.machines.values().filter(|machine| machine.id.is_some());
        let mut sum = 0.0;
        for machine in machines {
            sum += cost(machine.price, machine.running)?;
            for replaced in &machine.replaced {
                sum += cost(replaced.price, replaced.running)?;
            }
        }
        Some(sum)
    }

    /// The last attempt at a trial.
    fn trial(&mut self, name: &str) -> Option<&mut TrialReport> {
        self.trials.iter_mut().rev().find(|trial| trial.name == name)
    }

    fn machine(&mut self, name: &str) -> &mut MachineReport {
        self.machines.entry(name.to_owned()).or_default()
    }
}

impl<'a> FromIterator<&'a Event> for Report {
    fn from_iter<I: IntoIterator<Item = &'a Event>>(events: I) -> Self {
        let mut report = Self::default();
        events.into_iter().for_each(|event| report.add(event));
        report
    }
}
