//! What a run came to: a fold over its events.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::condition::{Account, Facts};
use crate::event::{Event, EventKind, GroupSize, known};
use crate::machine::{MachineId, MachineKind, RunId};
use crate::provider::{Choices, Leftover, Price};
use crate::seconds;
use crate::session::Exit;
use crate::trial::{Measured, SweepPlan, VoidReason};

/// The summary of a run, built from its events alone: now, or from a saved stream later. What is of its machines alone is
/// read as if it were here: `report.machines`.
///
/// Times are since the run began. As JSON they are numbers of seconds; how long something `took` is called `seconds`
/// there.
///
/// ```
/// use tsunami_core::{Recorder, Report};
///
/// # let recorder = Recorder::default();
/// // After a run that `recorder` has observed:
/// let report: Report = recorder.events().iter().collect();
/// for (name, machine) in &report.machines {
///     println!("{name} was ready after {:?}", machine.ready);
/// }
/// ```
///
/// [`read_events`](crate::read_events) has those of a run of another day.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The machines, or the last set of them, whose numbers are among all others'.
    #[serde(flatten)]
    pub last_set: SetReport,
    /// The experiment's name, if the stream says so.
    #[serde(with = "known")]
    pub experiment: Option<String>,
    /// What the provider chose where groups left it open.
    #[serde(default, skip_serializing_if = "Choices::is_empty")]
    pub choices: Choices,
    /// The commands that ended, in the order in which they did.
    pub commands: Vec<CommandReport>,
    /// The trials that began, in the order in which they did. One that was done again is there again.
    #[serde(default)]
    pub trials: Vec<TrialReport>,
    /// What it repeats, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeats: Option<Repeats>,
    /// What trials were planned, if any were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<SweepPlan>,
    /// How the trials ended, if they did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swept: Option<SweepEnd>,
    /// The sets before it, in order: each has its own run. Their trials are among all others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_sets: Vec<SetReport>,
    /// How many machines are ready: a report of many costs no look at all of them at each event.
    #[serde(skip)]
    ready_machines: Counter,
    #[serde(skip)]
    launches: Launches,
}

/// When groups were asked for, and when those machines were that the answers named. It follows from the rest, as a
/// [`Counter`] does.
#[derive(Clone, Debug, Default)]
struct Launches {
    groups: BTreeMap<String, Duration>,
    machines: BTreeMap<MachineId, (Option<Duration>, Duration)>,
}

impl PartialEq for Launches {
    fn eq(&self, _: &Self) -> bool {
        true
    }
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
    /// What it was made from, where its provider tells.
    #[serde(default, skip_serializing_if = "MachineKind::is_unknown")]
    pub kind: MachineKind,
    /// What it costs.
    pub price: Price,
    /// Those that it replaced, the first first; each as it was, and none of them with others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<MachineReport>,
    /// Why its provider took it, or one that it replaced, before its time.
    pub interrupted: Option<String>,
    /// When its group was asked for.
    #[serde(default, with = "seconds::optional")]
    pub requested: Option<Duration>,
    /// When its provider had answered that.
    #[serde(default, with = "seconds::optional")]
    pub launched: Option<Duration>,
    /// When it ran with an address.
    #[serde(default, with = "seconds::optional")]
    pub running: Option<Duration>,
    /// When it was first seen to answer, before anybody logged in.
    #[serde(default, with = "seconds::optional")]
    pub answered: Option<Duration>,
    /// When the session stood.
    #[serde(default, with = "seconds::optional")]
    pub connected: Option<Duration>,
    /// When its provider had checked it.
    #[serde(default, with = "seconds::optional")]
    pub verified: Option<Duration>,
    /// When it was set up.
    #[serde(default, with = "seconds::optional")]
    pub ready: Option<Duration>,
    /// When it was seen to be gone before the teardown.
    #[serde(default, with = "seconds::optional")]
    pub gone: Option<Duration>,
    /// Why it could not be connected or set up.
    pub error: Option<String>,
    /// What it is, by name.
    #[serde(default, skip_serializing_if = "Facts::is_empty")]
    pub facts: Facts,
    /// In what it differs from the others of its group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<String>,
    /// What it was measured to do by itself, each time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub canaries: Vec<BTreeMap<String, f64>>,
}

/// An earlier run that this one repeats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Repeats {
    /// The other run.
    pub run: RunId,
    /// In what these machines are not like those of that run, each once.
    pub differences: Vec<String>,
}

/// How a sweep ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SweepEnd {
    /// How many trials that count were done.
    pub done: u32,
    /// How many there were to be.
    pub of: u32,
    /// Why that is not all, if so.
    pub why: Option<String>,
}

impl Deref for Report {
    type Target = SetReport;

    fn deref(&self) -> &SetReport {
        &self.last_set
    }
}

impl DerefMut for Report {
    fn deref_mut(&mut self) -> &mut SetReport {
        &mut self.last_set
    }
}

/// The machines of one run. A sweep may take several such sets, one after another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SetReport {
    /// Its number, from 1; 0 if it is none of a sweep's.
    #[serde(default)]
    pub set: u32,
    /// Its run.
    pub run: Option<RunId>,
    /// Its groups.
    pub groups: Vec<GroupSize>,
    /// Its machines by name.
    pub machines: BTreeMap<String, MachineReport>,
    /// When its run began, if its stream says so. As JSON in seconds since 1970, 0 if not.
    #[serde(with = "seconds")]
    pub started: Option<SystemTime>,
    /// When the last of its machines was ready, if all were.
    #[serde(default, with = "seconds::optional")]
    pub ready: Option<Duration>,
    /// When its teardown began.
    #[serde(default, with = "seconds::optional")]
    pub teardown: Option<Duration>,
    /// When its run was over.
    #[serde(default, with = "seconds::optional")]
    pub finished: Option<Duration>,
    /// What may remain of it.
    pub leftovers: Vec<Leftover>,
    /// Whether its run succeeded; `None` while it is not over, or if its end was not recorded.
    pub ok: Option<bool>,
    /// Why it did not.
    pub error: Option<String>,
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
    /// Whether it was ended on purpose.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancelled: bool,
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
    /// The number of the set of machines it was done on, from 1; 0 if there are no sets.
    #[serde(default)]
    pub set: u32,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why it doesn't count, if it doesn't. Its name is that of the attempt then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voided: Option<Voided>,
    /// What was read of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<Measured>,
    /// What happened on its machines meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<Account>,
    /// Its steps that began, in the order in which they did.
    pub steps: Vec<StepReport>,
}

/// Why a trial doesn't count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Voided {
    /// The trial's name in the plan.
    pub trial: String,
    /// The kind of cause.
    pub reason: VoidReason,
    /// The cause in words.
    pub text: String,
    /// The machines that it came from.
    #[serde(default)]
    pub machines: Vec<String>,
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
                self.put_set_aside();
                self.run = Some(run.clone());
                self.experiment = Some(experiment.clone());
                self.groups.clone_from(groups);
                self.started = Some(event.at);
            }
            EventKind::Chosen { asked, chosen, .. } => {
                self.choices.insert(asked.clone(), chosen.clone());
            }
            EventKind::Launching { group, .. } => drop(self.launches.groups.insert(group.clone(), now)),
            EventKind::Launched { group, machines } => {
                let asked = self.launches.groups.get(group).copied();
                for id in machines {
                    // Those of an earlier launch are named once more where others are replaced.
                    self.launches.machines.entry(id.clone()).or_insert((asked, now));
                }
            }
            EventKind::Running { machine, id, address, description, kind, price } => {
                let Self { last_set, ready_machines: Counter(ready), launches, .. } = self;
                let machine = last_set.machines.entry(machine.clone()).or_default();
                if machine.id.as_ref().is_some_and(|earlier| earlier != id) {
                    *ready = ready.saturating_sub(machine.ready.is_some().into());
                    let mut earlier = std::mem::take(machine);
                    machine.interrupted.clone_from(&earlier.interrupted);
                    machine.replaced = std::mem::take(&mut earlier.replaced);
                    machine.replaced.push(earlier);
                }
                machine.id = Some(id.clone());
                machine.address.clone_from(address);
                machine.description.clone_from(description);
                machine.kind.clone_from(kind);
                let launch = launches.machines.get(id).copied();
                machine.requested = launch.and_then(|(asked, _)| asked);
                machine.launched = launch.map(|(_, answered)| answered);
                machine.price = *price;
                machine.running = Some(now);
            }
            EventKind::Interrupted { machine, reason, .. } => {
                self.machine(machine).interrupted = Some(reason.clone());
            }
            EventKind::Connected { machine, answered, .. } => {
                let machine = self.machine(machine);
                (machine.answered, machine.connected) = (*answered, Some(now));
            }
            EventKind::Verified { machine, .. } => self.machine(machine).verified = Some(now),
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
                machine,
                id,
                stage,
                command_id,
                command,
                exit,
                error,
                cancelled,
                took,
            } => {
                self.commands.push(CommandReport {
                    machine: machine.clone(),
                    id: id.clone(),
                    stage: stage.clone(),
                    command_id: *command_id,
                    command: command.clone(),
                    exit: *exit,
                    error: error.clone(),
                    cancelled: *cancelled,
                    finished: now,
                    took: *took,
                });
            }
            EventKind::SweepPlanned { plan } => self.sweep = Some(plan.clone()),
            EventKind::SetStarted { set, .. } => self.set = *set,
            EventKind::Fingerprint { machine, facts, .. } => {
                self.machine(machine).facts.clone_from(facts);
            }
            EventKind::OddMachine { machine, differences } => {
                self.machine(machine).differences.clone_from(differences);
            }
            EventKind::Repeats { run, differences } => {
                let none = || Repeats { run: run.clone(), differences: Vec::new() };
                let known = &mut self.repeats.get_or_insert_with(none).differences;
                let new: Vec<_> = differences.iter().filter(|text| !known.contains(text)).cloned().collect();
                known.extend(new);
            }
            EventKind::Canary { machine, results } => self.machine(machine).canaries.push(results.clone()),
            EventKind::TrialStarted { trial } => {
                let set = self.set;
                let trial = TrialReport { name: trial.clone(), started: now, set, ..TrialReport::default() };
                self.trials.push(trial);
            }
            EventKind::Measured { trial, measured } => {
                if let Some(trial) = self.trial(trial) {
                    trial.measured.push(measured.clone());
                }
            }
            EventKind::Accounted { trial, account } => {
                if let Some(trial) = self.trial(trial) {
                    trial.accounts.push(account.clone());
                }
            }
            EventKind::TrialFinished { trial, ok, error, took } => {
                if let Some(trial) = self.trial(trial) {
                    (trial.ok, trial.took) = (Some(*ok), Some(*took));
                    trial.error.clone_from(error);
                }
            }
            EventKind::TrialVoided { trial, attempt, reason, text, machines } => {
                if let Some(known) = self.trial(trial) {
                    let (trial, reason) = (trial.clone(), *reason);
                    let (text, machines) = (text.clone(), machines.clone());
                    known.name.clone_from(attempt);
                    known.interrupted = matches!(reason, VoidReason::Interrupted | VoidReason::Lost);
                    if known.interrupted {
                        let steps = known.steps.iter_mut().filter(|step| step.ok != Some(true));
                        steps.for_each(|step| step.interrupted = true);
                    }
                    known.voided = Some(Voided { trial, reason, text, machines });
                }
            }
            EventKind::SweepFinished { done, of, why } => {
                self.swept = Some(SweepEnd { done: *done, of: *of, why: why.clone() });
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
            EventKind::Retrying { .. }
            | EventKind::Note { .. }
            | EventKind::Uploaded { .. }
            | EventKind::CommandStarted { .. }
            | EventKind::Collected { .. }
            | EventKind::ListingFailed { .. }
            | EventKind::Custom { .. }
            | EventKind::StillThere { .. }
            | EventKind::Kept { .. } => {}
        }
    }

    /// Makes room for the run of another set of machines.
    fn put_set_aside(&mut self) {
        if self.set == 0 {
            return;
        }
        let now = std::mem::take(self);
        *self = Self {
            repeats: now.repeats,
            sweep: now.sweep,
            swept: now.swept,
            choices: now.choices,
            earlier_sets: now.earlier_sets,
            commands: now.commands,
            trials: now.trials,
            ..Self::default()
        };
        self.earlier_sets.push(now.last_set);
    }

    /// All sets of machines, in order.
    pub fn sets(&self) -> impl Iterator<Item = &SetReport> {
        self.earlier_sets.iter().chain([&self.last_set])
    }

    /// What the machines cost, in US dollars: an estimate, from when each ran with an address to the end of the
    /// run. `None` if a price is not known.
    pub fn estimated_cost(&self) -> Option<f64> {
        self.sets().map(|set| cost_of(&set.machines, set.finished.or(set.teardown))).sum()
    }

    /// The last attempt at a trial.
    fn trial(&mut self, name: &str) -> Option<&mut TrialReport> {
        self.trials.iter_mut().rev().find(|trial| trial.name == name)
    }

    fn machine(&mut self, name: &str) -> &mut MachineReport {
        self.machines.entry(name.to_owned()).or_default()
    }
}

/// What machines cost until `end`; `None` if that or a price is not known.
fn cost_of(machines: &BTreeMap<String, MachineReport>, end: Option<Duration>) -> Option<f64> {
    let end = end?;
    let cost = |price: Price, running: Option<Duration>| {
        let time = running.map(|running| end.saturating_sub(running));
        price.dollars(1, time.unwrap_or_default())
    };
    let machines = machines.values().filter(|machine| machine.id.is_some());
    let mut sum = 0.0;
    for machine in machines {
        sum += cost(machine.price, machine.running)?;
        for replaced in &machine.replaced {
            sum += cost(replaced.price, replaced.running)?;
        }
    }
    Some(sum)
}

impl<'a> FromIterator<&'a Event> for Report {
    fn from_iter<I: IntoIterator<Item = &'a Event>>(events: I) -> Self {
        let mut report = Self::default();
        events.into_iter().for_each(|event| report.add(event));
        report
    }
}
