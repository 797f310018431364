//! The words for what happens, the same in plain lines and above the live ones.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use tsunami_core::condition::Account;
use tsunami_core::statistics::significant;
use tsunami_core::text::{Lines, number, quoted, sanitize_bytes, shorten};
use tsunami_core::trial::{Measured, PlannedTrial, SweepPlan};
use tsunami_core::{Event, EventKind, Origin, Stream};

use super::Verbosity;
use super::waits::{Signs, Waits, are};
use crate::terminal::{Message, Style, one_line};

/// Makes lines of events and output.
#[derive(Debug)]
pub(super) struct Text {
    verbosity: Verbosity,
    run: String,
    /// How wide names are.
    width: usize,
    /// What has no end of line yet, by command and stream.
    partial: HashMap<u64, [Lines; 2]>,
    sweep: Sweep,
    waits: Waits,
    /// How the last command of each machine failed that was told.
    failed: HashMap<String, String>,
    /// The groups of more machines than are told of one by one: how many there are, and were ready.
    crowds: HashMap<String, (usize, usize)>,
}

/// What is known of the trials of a run that has many.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    /// How many of them count.
    trials: usize,
    /// The parameters of each, in words.
    parameters: HashMap<String, String>,
    units: HashMap<String, String>,
    /// What was measured in the trial that goes on, in words.
    measured: Vec<String>,
    /// What disturbed it.
    disturbed: Option<String>,
    /// The words without figures of what was last told to have disturbed one.
    cause: Option<String>,
}

impl Sweep {
    pub(crate) fn of(plan: &SweepPlan) -> Self {
        let order = |trial: &PlannedTrial| {
            let part =
                |name: &String| Some(format!("{name}={}", quoted(&trial.parameters.get(name)?.to_string())));
            plan.parameters.iter().filter_map(|parameter| part(&parameter.name)).collect::<Vec<_>>().join(" ")
        };
        let metrics = plan.metrics.iter();
        Self {
            trials: plan.trials.iter().filter(|trial| !trial.warmup).count(),
            parameters: plan.trials.iter().map(|trial| (trial.name.clone(), order(trial))).collect(),
            units: metrics.filter_map(|metric| Some((metric.name.clone(), metric.unit.clone()?))).collect(),
            measured: Vec::new(),
            disturbed: None,
            cause: None,
        }
    }

    pub(crate) fn has_many(&self) -> bool {
        self.parameters.len() > 1
    }

    /// The trial as people see which of many it is.
    pub(crate) fn called(&self, trial: &str) -> String {
        let parameters = self.parameters.get(trial).filter(|parameters| !parameters.is_empty());
        let parameters = parameters.map(|parameters| format!(" ({parameters})")).unwrap_or_default();
        match trial.parse::<u32>() {
            Ok(number) if self.has_many() => format!("trial {number} of {}{parameters}", self.trials),
            _ if self.has_many() => format!("warm-up {trial}{parameters}"),
            _ => format!("trial {trial}"),
        }
    }

    fn note_disturbed(&mut self, account: &Account) {
        if let (None, Some(by)) = (&self.disturbed, &account.disturbed) {
            self.disturbed = Some(by.clone());
        }
    }

    fn note(&mut self, measured: &Measured) {
        if let (None, Some(value)) = (&measured.machine, measured.value) {
            let unit = self.units.get(&measured.metric).map(|unit| format!(" {unit}")).unwrap_or_default();
            self.measured.push(format!("{} {}{unit}", measured.metric, significant(value)));
        }
    }
}

/// Where a line begins, when there is no time to show.
const NO_TIME: &str = "         ";
/// Names wider than this don't set in what stands beside them any further.
pub(super) const WIDEST: usize = 128;
/// Of a group of more machines than this, single ones are told of only where something is the matter.
const CROWD: u32 = 12;
/// How many machines of a step are named.
const NAMED: usize = 6;
/// How much of a command is shown where it ends: of many machines it is the same.
const COMMAND: usize = 60;

impl Text {
    pub(super) fn new(verbosity: Verbosity) -> Self {
        Self {
            verbosity,
            run: String::new(),
            width: 0,
            partial: HashMap::new(),
            sweep: Sweep::default(),
            waits: Waits::default(),
            failed: HashMap::new(),
            crowds: HashMap::new(),
        }
    }

    /// Appends what there is to say of an event, as whole lines.
    pub(super) fn event(&mut self, event: &Event, out: &mut Message) {
        use Verbosity::{Normal, Quiet, Verbose};
        self.waits.event(event);
        match &event.kind {
            EventKind::RunStarted { run, groups, .. } => {
                self.run = run.to_string();
                let names = groups.iter().map(|group| {
                    group.name.len()
                        + 1
                        + group.count.saturating_sub(1).checked_ilog10().unwrap_or(0) as usize
                        + 1
                });
                self.width = names.max().unwrap_or(0).min(WIDEST);
                let crowds = groups.iter().filter(|group| group.count > CROWD);
                self.crowds = crowds.map(|group| (group.name.clone(), (group.count as usize, 0))).collect();
            }
            EventKind::Ready { machine, .. } => {
                if let Some((_, ready)) = self.crowds.get_mut(group_of(machine)) {
                    *ready += 1;
                }
            }
            EventKind::CommandFinished { machine, stage, command_id, .. } => {
                self.finish(*command_id, machine, stage, out)
            }
            EventKind::SweepPlanned { plan } => self.sweep = Sweep::of(plan),
            EventKind::TrialStarted { .. } => {
                self.sweep.measured.clear();
                self.sweep.disturbed = None;
            }
            EventKind::Accounted { account, .. } => self.sweep.note_disturbed(account),
            EventKind::Measured { measured, .. } => self.sweep.note(measured),
            _ => {}
        }
        // Of many machines the group is a line.
        let of_one =
            |machine: &str| if self.crowds.contains_key(group_of(machine)) { Verbose } else { Normal };
        // Of many trials each is a line.
        let detail = if self.sweep.has_many() { Verbose } else { Normal };
        let (level, style, who, what) = match &event.kind {
            EventKind::RunStarted { run, experiment, deadline, groups } => {
                let groups: Vec<_> = groups.iter().map(|g| format!("{} × {}", g.count, g.name)).collect();
                let left = rest(*deadline, event.at);
                let what = format!("run {run} of {experiment}: {}; ends within {left}", groups.join(", "));
                (Normal, Style::Plain, "", what)
            }
            EventKind::Launching { group, count } => (
                Normal,
                Style::Plain,
                group.as_str(),
                format!("launching {}", number(*count as usize, "machine")),
            ),
            EventKind::Retrying { group, error, delay } => {
                (Normal, Style::Warning, group.as_str(), format!("trying again in {}: {error}", span(*delay)))
            }
            EventKind::Launched { group, machines } => {
                let mut what = format!("launched {}", number(machines.len(), "machine"));
                if self.verbosity >= Verbose {
                    machines.iter().for_each(|id| what.extend([" ", id.as_str()]));
                }
                (Normal, Style::Plain, group.as_str(), what)
            }
            EventKind::Chosen { group, asked, chosen } => {
                (Verbose, Style::Plain, group.as_str(), format!("{asked}: any of {}", chosen.join(", ")))
            }
            EventKind::Note { group, text } => (Normal, Style::Warning, group.as_str(), text.clone()),
            EventKind::Running { machine, id, address, description, .. } => {
                let at = address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default();
                let what = format!("running{at} ({id}, {description})");
                (of_one(machine), Style::Plain, machine.as_str(), what)
            }
            EventKind::Interrupted { machine, id, reason } => {
                (Quiet, Style::Bad, machine.as_str(), format!("interrupted: {id}: {reason}"))
            }
            EventKind::Connected { machine, .. } => {
                (of_one(machine), Style::Plain, machine.as_str(), "connected".to_owned())
            }
            EventKind::Verified { machine, .. } => {
                (Verbose, Style::Plain, machine.as_str(), "verified".to_owned())
            }
            EventKind::Ready { machine, .. } => match self.crowds.get(group_of(machine)) {
                Some((all, ready)) if ready == all && self.verbosity < Verbose => {
                    (Normal, Style::Good, group_of(machine), format!("all {all} machines are ready"))
                }
                // A replacement, when all were.
                Some((all, ready)) if ready > all => {
                    (Normal, Style::Good, machine.as_str(), "ready".to_owned())
                }
                _ => (of_one(machine), Style::Good, machine.as_str(), "ready".to_owned()),
            },
            EventKind::Failed { machine, stage, error, .. } => {
                let error = error.strip_prefix(&format!("{machine}: stage {stage}: ")).unwrap_or(error);
                let is_told = self
                    .failed
                    .get(machine)
                    .is_some_and(|how| error.ends_with(how.as_str()) || error.contains(&format!("{how}\n")));
                let why = if is_told { String::new() } else { format!(": {error}") };
                (Quiet, Style::Bad, machine.as_str(), format!("{stage} failed{why}"))
            }
            EventKind::Uploaded { machine, stage, from, to, took, .. } => {
                let what = format!("{stage}: uploaded {from} to {to} after {}", span(*took));
                (Verbose, Style::Faint, machine.as_str(), what)
            }
            EventKind::CommandStarted { machine, stage, command, .. } => {
                (Verbose, Style::Plain, machine.as_str(), format!("{stage}: $ {command}"))
            }
            EventKind::CommandFinished { machine, stage, command, exit, error, cancelled, took, .. } => {
                let after = span(*took);
                let (level, style, how) = match (exit, error.as_deref()) {
                    (Some(exit), None) if exit.success() => {
                        (Verbose, Style::Faint, format!("done after {after}"))
                    }
                    (Some(exit), None) => {
                        self.failed.insert(machine.clone(), format!("ended with {exit}"));
                        (Quiet, Style::Bad, format!("ended with {exit} after {after}"))
                    }
                    (None, Some(_)) if *cancelled => {
                        (Verbose, Style::Faint, format!("cancelled after {after}"))
                    }
                    (_, error) => {
                        let error = error.unwrap_or("no reason is known");
                        // Where that was, and what, stands there already.
                        let error = error.strip_prefix(&format!("{machine}: ")).unwrap_or(error);
                        let place = format!(" in stage {stage} while running `");
                        let error = one_line(error.split_once(&place).map_or(error, |(error, _)| error));
                        // As errors say it that stem from it.
                        self.failed.insert(machine.clone(), format!("{command} failed"));
                        (Quiet, Style::Bad, format!("failed after {after}: {error}"))
                    }
                };
                let command = first_line(command);
                (level, style, machine.as_str(), format!("{stage}: `{}` {how}", shorten(&command, COMMAND)))
            }
            EventKind::Collected { machine, stage, into, files, .. } => {
                let what = format!("{stage}: {} brought to {into}", number(*files, "file"));
                (Verbose, Style::Faint, machine.as_str(), what)
            }
            EventKind::MachineGone { machine, id } => {
                (Quiet, Style::Bad, machine.as_str(), format!("gone: {id} ended before it should"))
            }
            EventKind::ListingFailed { error } => {
                (Normal, Style::Warning, "", format!("could not list the machines, trying again: {error}"))
            }
            EventKind::Custom { name, data } => (Verbose, Style::Plain, "", format!("{name}: {data}")),
            EventKind::TrialInterrupted { trial, machines } => {
                let machines = machines.join(", ");
                let what = format!(
                    "trial {trial} was interrupted; it is done again with a replacement for {machines}"
                );
                (Quiet, Style::Warning, "", what)
            }
            EventKind::SweepPlanned { plan } => {
                let rounds = plan.trials.iter().map(|trial| trial.round).max().unwrap_or_default() as usize;
                let (trials, rounds) = (number(self.sweep.trials, "trial"), number(rounds, "round"));
                let level = if self.sweep.has_many() { Normal } else { Verbose };
                (level, Style::Plain, "", format!("{trials} in {rounds}, in the order of seed {}", plan.seed))
            }
            EventKind::SetStarted { set, .. } => {
                let level = if *set > 1 { Normal } else { Verbose };
                (level, Style::Plain, "", format!("the trials of machine set {set} begin"))
            }
            EventKind::Fingerprint { machine, facts, .. } => {
                let facts: Vec<_> = facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
                (Verbose, Style::Faint, machine.as_str(), facts.join(", "))
            }
            EventKind::OddMachine { machine, differences } => {
                let what = format!("differs from the others of its group: {}", differences.join(", "));
                (Quiet, Style::Warning, machine.as_str(), what)
            }
            EventKind::Repeats { run, differences } if differences.is_empty() => (
                Normal,
                Style::Plain,
                "",
                format!("the machines are like those of run {run}, which is repeated"),
            ),
            EventKind::Repeats { run, differences } => {
                let mut what = format!("the machines beside those of run {run}, which is repeated:");
                differences.iter().for_each(|text| what.extend(["\n", &one_line(text)]));
                (Quiet, Style::Warning, "", what)
            }
            EventKind::Canary { machine, results } => {
                let results: Vec<_> =
                    results.iter().map(|(name, value)| format!("{name} {}", significant(*value))).collect();
                (Verbose, Style::Faint, machine.as_str(), format!("by itself: {}", results.join(", ")))
            }
            EventKind::TrialStarted { trial } => (detail, Style::Plain, "", self.sweep.called(trial)),
            EventKind::Measured { trial, measured } => match &measured.missing {
                Some(missing) if measured.machine.is_none() => {
                    let (trial, metric) = (self.sweep.called(trial), &measured.metric);
                    (Quiet, Style::Bad, "", format!("{trial}: {metric} can't be read: {missing}"))
                }
                missing => {
                    let value = measured.value.map(significant).or(missing.clone()).unwrap_or_default();
                    let who = measured.machine.as_deref().unwrap_or_default();
                    (Verbose, Style::Faint, who, format!("{}: {value}", measured.metric))
                }
            },
            EventKind::Accounted { account, .. } => {
                let what = format!("trial watched for {:.1}s", account.seconds);
                (Verbose, Style::Faint, account.machine.as_str(), what)
            }
            EventKind::TrialFinished { trial, ok, took, .. } => {
                let (level, style, who, mut what) = ended(self.sweep.called(trial), *ok, *took);
                if *ok && self.sweep.has_many() && !self.sweep.measured.is_empty() {
                    let _ = write!(what, ": {}", self.sweep.measured.join(", "));
                }
                if let Some(by) = &self.sweep.disturbed {
                    // What is as it was before but for its figures is told by what they are of.
                    let words = by.split(|c: char| c.is_ascii_digit()).next().unwrap_or_default();
                    let known = self.sweep.cause.replace(words.to_owned());
                    let _ = match by.rsplit_once(": ").filter(|_| known.as_deref() == Some(words)) {
                        Some((_, figures)) => write!(what, "; disturbed likewise: {figures}"),
                        None => write!(what, "; disturbed: {by}"),
                    };
                }
                (level, style, who, what)
            }
            EventKind::TrialVoided { trial, text, attempt, .. } => {
                let trial = self.sweep.called(trial);
                let why = self.unless_told(text);
                (
                    Quiet,
                    Style::Warning,
                    "",
                    // What disturbed it was said when it ended, unless only what went wrong is.
                    match self.sweep.disturbed.take_if(|told| told == text) {
                        Some(_) if self.verbosity > Quiet => {
                            format!("{trial} doesn't count, and is {attempt} from here on")
                        }
                        _ => format!("{trial} doesn't count, and is {attempt} from here on: {why}"),
                    },
                )
            }
            EventKind::SweepFinished { done, of, why } => match why {
                Some(why) => {
                    // Of a single one, the run's own error says it.
                    let level = if self.sweep.has_many() { Quiet } else { Verbose };
                    (level, Style::Bad, "", format!("{done} of {of} trials: {why}"))
                }
                None => {
                    let level = if self.sweep.has_many() { Normal } else { Verbose };
                    (
                        level,
                        Style::Good,
                        "",
                        match of {
                            1 => "the trial is done".to_owned(),
                            of => format!("all {of} trials are done"),
                        },
                    )
                }
            },
            EventKind::StepStarted { trial, step, machines } => {
                let on = in_rows(machines, NAMED);
                (detail, Style::Plain, "", format!("trial {trial}: step {step} on {on}"))
            }
            EventKind::StepFinished { trial, step, ok, took } => {
                let (level, style, who, what) = ended(format!("trial {trial}: step {step}"), *ok, *took);
                (if *ok { detail } else { level }, style, who, what)
            }
            EventKind::TearingDown { reason } => {
                // That all is done says nothing new.
                let why = match reason.as_str() {
                    "done" => String::new(),
                    reason => format!(": {}", self.unless_told(reason)),
                };
                (Normal, Style::Plain, "", format!("tearing down{why}"))
            }
            EventKind::StillThere { leftovers } => {
                let count = number(leftovers.len(), "thing");
                (Normal, Style::Warning, "", format!("{count} still there, asked to end once more"))
            }
            EventKind::TornDown { leftovers, took } if leftovers.is_empty() => {
                let gone = match self.waits.launched() {
                    0 => "nothing was launched".to_owned(),
                    machines => format!("{} gone", are(machines)),
                };
                (Normal, Style::Good, "", format!("torn down: {gone}, after {}", span(*took)))
            }
            EventKind::TornDown { leftovers, took } => {
                let count = number(leftovers.len(), "thing");
                let mut what = format!("torn down after {}, but {count} may remain:", span(*took));
                leftovers.iter().for_each(|leftover| what.extend(["\n", &one_line(&leftover.to_string())]));
                (Quiet, Style::Bad, "", what)
            }
            EventKind::Kept { until } => {
                let left = rest(*until, event.at);
                // Whoever ran it says at its end what can be done with them, if more is said than this.
                let end = match self.verbosity {
                    Quiet => format!("; `tsunami down {}` ends them", self.run),
                    _ => String::new(),
                };
                (Quiet, Style::Warning, "", format!("the machines are kept, for {left} at most{end}"))
            }
            EventKind::RunFinished { ok: true, .. } => (Normal, Style::Good, "", "finished".to_owned()),
            EventKind::RunFinished { ok: false, error: Some(error) }
                if *error == tsunami_core::Error::Cancelled.to_string() =>
            {
                (Normal, Style::Bad, "", "cancelled".to_owned())
            }
            // Whoever ran it says why.
            EventKind::RunFinished { ok: false, .. } => (Normal, Style::Bad, "", "failed".to_owned()),
            // A kind that is newer than this program; a test sees to it that there is none.
            _ => return,
        };
        if level <= self.verbosity {
            self.lines(event.elapsed, who, style, &what, out);
        }
    }

    /// Why something happened; of what was told of a command only where it failed.
    fn unless_told<'a>(&self, reason: &'a str) -> Cow<'a, str> {
        let is_told = |(machine, how): &(&String, &String)| {
            let rest = reason.strip_prefix(machine.as_str()).and_then(|rest| rest.strip_prefix(": "));
            rest.is_some_and(|rest| rest.contains(how.as_str()))
        };
        match self.failed.iter().find(is_told) {
            Some((machine, _)) => Cow::Owned(format!("a command failed on {machine}")),
            None => Cow::Borrowed(reason),
        }
    }

    /// Takes note of an event of which nothing is to be said.
    pub(super) fn note(&mut self, event: &Event) {
        self.waits.event(event);
    }

    /// What is waited for, and whether a line said so when it began.
    pub(super) fn waits(&self) -> Option<(bool, String)> {
        (self.verbosity > Verbosity::Quiet).then(|| self.waits.words()).flatten()
    }

    /// What the step that goes on is waited for, beyond its name.
    pub(super) fn step_waits(&self) -> Option<String> {
        self.waits.step()
    }

    /// Takes note of how steps are known to have come up.
    pub(super) fn know(&mut self, signs: Signs) {
        self.waits.know(signs);
    }

    /// Appends that something is waited for; how long the run goes on is known once it has begun.
    pub(super) fn wait(&self, elapsed: Option<Duration>, words: &str, out: &mut Message) {
        let words = format!("waiting {}", one_line(words));
        match elapsed {
            Some(elapsed) => self.lines(elapsed, "", Style::Faint, &words, out),
            None => out.line(&[(Style::Faint, &words)]),
        }
    }

    /// What goes on, if this begins something that takes a while.
    pub(super) fn phase(&self, event: &Event) -> Option<String> {
        match &event.kind {
            EventKind::TrialStarted { trial } => Some(one_line(&self.sweep.called(trial))),
            EventKind::StepStarted { trial, step, .. } => {
                Some(one_line(&format!("{}: {step}", self.sweep.called(trial))))
            }
            EventKind::StepFinished { trial, .. } => Some(one_line(&self.sweep.called(trial))),
            EventKind::TrialFinished { trial, .. } => {
                Some(one_line(&format!("{} is over", self.sweep.called(trial))))
            }
            _ => None,
        }
    }

    /// Appends the lines of output that these bytes complete, if output is shown at all.
    pub(super) fn output(&mut self, origin: &Origin<'_>, stream: Stream, bytes: &[u8], out: &mut Message) {
        if self.verbosity < Verbosity::Verbose {
            return;
        }
        let [stdout, stderr] = self.partial.entry(origin.command_id).or_default();
        let lines = if stream == Stream::Stdout { stdout } else { stderr };
        lines.push(bytes, |line| output_line(self.width, origin.machine, origin.stage, line, out));
    }

    /// Appends what a command wrote without an end of line.
    fn finish(&mut self, command_id: u64, machine: &str, stage: &str, out: &mut Message) {
        for mut lines in self.partial.remove(&command_id).into_iter().flatten() {
            lines.finish(|line| output_line(self.width, machine, stage, line, out));
        }
    }

    /// Appends a line; what `what` has beyond its first line comes below, indented so that it can't be taken for
    /// a line of ours.
    fn lines(&self, elapsed: Duration, who: &str, style: Style, what: &str, out: &mut Message) {
        let time = format!("[{:5.1}s]", elapsed.as_secs_f64());
        let who = one_line(who);
        let indent = if who.is_empty() { 0 } else { self.width.max(who.len()).min(WIDEST) + 2 };
        let hang = NO_TIME.len() + 1 + indent + 2;
        for (i, line) in what.trim_end().split('\n').enumerate() {
            match i {
                0 => out.hanging(
                    hang,
                    &[
                        (Style::Faint, &time),
                        (Style::Plain, " "),
                        (Style::Plain, &format!("{who:indent$}")),
                        (style, line),
                    ],
                ),
                _ => {
                    out.hanging(hang, &[(Style::Plain, &format!("{NO_TIME} {:indent$}", "")), (style, line)])
                }
            }
        }
    }
}

/// The group that a machine's name tells.
fn group_of(machine: &str) -> &str {
    machine.rsplit_once('-').map_or(machine, |(group, _)| group)
}

/// The names of machines: those in a row by the first and the last, and so many of what that makes.
pub(crate) fn in_rows(machines: &[String], most: usize) -> String {
    fn parts(name: &str) -> Option<(&str, u32)> {
        let (group, index) = name.rsplit_once('-')?;
        Some((group, index.parse().ok()?))
    }
    let follows = |one: &String, other: &String| match (parts(one), parts(other)) {
        (Some((group, index)), Some((next, after))) => group == next && index.checked_add(1) == Some(after),
        _ => false,
    };
    let rows: Vec<&[String]> = machines.chunk_by(follows).collect();
    let named = |row: &&[String]| match row {
        [first, .., last] if row.len() > 2 => vec![format!("{first} to {last}")],
        few => few.to_vec(),
    };
    let mut names = rows.iter().take(most).flat_map(named).collect::<Vec<_>>().join(", ");
    let more: usize = rows.iter().skip(most).map(|row| row.len()).sum();
    if more > 0 {
        let _ = write!(names, " and {more} more");
    }
    names
}

fn output_line(width: usize, machine: &str, stage: &str, line: &[u8], out: &mut Message) {
    let (machine, stage) = (one_line(machine), one_line(stage));
    let start = format!("{NO_TIME}{machine:width$}  {stage} | ");
    out.line(&[(Style::Plain, &start), (Style::Plain, &sanitize_bytes(line))]);
}

fn ended(what: String, ok: bool, took: Duration) -> (Verbosity, Style, &'static str, String) {
    let (level, style, how) =
        if ok { (Verbosity::Normal, Style::Good, "done") } else { (Verbosity::Quiet, Style::Bad, "failed") };
    (level, style, "", format!("{what} {how} after {}", span(took)))
}

/// The first line of a command that isn't empty, marked if there is more.
pub(super) fn first_line(command: &str) -> String {
    let mut lines = command.lines().map(str::trim_end).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    if lines.next().is_some() { format!("{first} …") } else { first.to_owned() }
}

/// A time as people say it: `1.2s`, `2m 5s`.
pub(crate) fn span(time: Duration) -> String {
    if time < Duration::from_secs(60) && time.subsec_nanos() != 0 {
        return format!("{:.1}s", time.as_secs_f64());
    }
    tsunami_core::text::span(whole_seconds(time))
}

/// The time that is left until `end`, in whole seconds as people say it.
fn rest(end: SystemTime, now: SystemTime) -> String {
    span(whole_seconds(end.duration_since(now).unwrap_or_default()))
}

fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs() + u64::from(time.subsec_millis() >= 500))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tsunami_core::{Exit, GroupSize, Leftover, MachineId, Observer as _};

    use super::*;
    use tsunami_core::text::sanitize;

    use crate::reporter::{Plain, lock};

    /// A writer whose text can be read.
    #[derive(Clone, Default)]
    pub(crate) struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(lock(&self.0).clone()).unwrap()
        }
    }

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn began() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    pub(crate) fn at(elapsed: f64, kind: EventKind) -> Event {
        let elapsed = Duration::from_secs_f64(elapsed);
        Event::new(began() + elapsed, elapsed, kind)
    }

    pub(crate) fn started(machine: &str, stage: &str, command: &str) -> EventKind {
        EventKind::CommandStarted {
            machine: machine.into(),
            id: None,
            command_id: 0,
            stage: stage.into(),
            command: command.into(),
        }
    }

    pub(crate) fn finished(machine: &str, stage: &str, command: &str, exit: Result<Exit, &str>) -> EventKind {
        EventKind::CommandFinished {
            machine: machine.into(),
            id: None,
            command_id: 0,
            stage: stage.into(),
            command: command.into(),
            exit: exit.ok(),
            error: exit.err().map(Into::into),
            cancelled: false,
            took: Duration::from_millis(1250),
        }
    }

    /// The same event of a command that was ended on purpose.
    fn on_purpose(mut kind: EventKind) -> EventKind {
        if let EventKind::CommandFinished { cancelled, .. } = &mut kind {
            *cancelled = true;
        }
        kind
    }

    /// The same event of the command of this number.
    pub(crate) fn numbered(mut kind: EventKind, number: u64) -> EventKind {
        if let EventKind::CommandStarted { command_id, .. } | EventKind::CommandFinished { command_id, .. } =
            &mut kind
        {
            *command_id = number;
        }
        kind
    }

    /// One server and two clients, of which one fails.
    pub(crate) fn little_run() -> Vec<Event> {
        use EventKind::*;
        let groups = [("server", 1), ("client", 2)].map(|(name, count)| GroupSize::new(name, count));
        let run = "20231114-221320-abcd".parse().unwrap();
        let machine = || "client-0".to_owned();
        let (trial, step) = (|| "1".to_owned(), || "load".to_owned());
        let id = || MachineId::new("i-0c");
        vec![
            at(
                0.0,
                RunStarted {
                    run,
                    experiment: "redis".into(),
                    deadline: began() + Duration::from_secs(2700),
                    groups: groups.into(),
                },
            ),
            at(0.0, Launching { group: "client".into(), count: 2 }),
            at(
                0.1,
                Retrying {
                    group: "server".into(),
                    error: "no capacity".into(),
                    delay: Duration::from_secs(2),
                },
            ),
            at(0.9, Launched { group: "client".into(), machines: vec![id(), MachineId::new("i-1c")] }),
            at(
                1.0,
                Running {
                    machine: machine(),
                    id: id(),
                    address: Some("192.0.2.7".into()),
                    description: "a fake machine".into(),
                    kind: tsunami_core::MachineKind::default(),
                    price: tsunami_core::Price::Free,
                },
            ),
            at(1.3, Connected { machine: machine(), id: None, answered: None }),
            at(1.4, started("client-0", "setup", "apt-get update\napt-get install \x1b]0;x\x07redis")),
            at(
                2.7,
                finished("client-0", "setup", "apt-get update\napt-get install redis", Ok(Exit::Status(0))),
            ),
            at(2.8, Ready { machine: machine(), id: None }),
            at(3.0, started("client-1", "setup", "false")),
            at(3.0, finished("client-1", "setup", "false", Ok(Exit::Status(1)))),
            at(
                3.1,
                Failed {
                    machine: "client-1".into(),
                    id: None,
                    stage: "setup".into(),
                    error: "bad\n[  9.9s] \x1b[2Jforged".into(),
                },
            ),
            at(3.5, TrialStarted { trial: trial() }),
            at(3.5, StepStarted { trial: trial(), step: step(), machines: vec![machine()] }),
            at(3.6, started("client-0", "load", "load")),
            at(9.0, finished("client-0", "load", "load", Ok(Exit::Signal(9)))),
            at(9.0, on_purpose(finished("server-0", "server", "redis-server", Err("cancelled")))),
            at(
                9.0,
                finished(
                    "server-0",
                    "server",
                    "redis-server",
                    Err("server-0: lost in stage server while running `redis-server`"),
                ),
            ),
            at(
                9.1,
                StepFinished { trial: trial(), step: step(), ok: false, took: Duration::from_millis(5600) },
            ),
            at(
                9.2,
                TrialFinished { trial: trial(), ok: true, error: None, took: Duration::from_millis(5700) },
            ),
            at(
                9.3,
                TearingDown { reason: "client-0: stage load: `load` ended with signal 9 (SIGKILL)".into() },
            ),
            at(
                75.0,
                TornDown {
                    leftovers: vec![Leftover::new("machine i-0c (client-0)", "timed out")],
                    took: Duration::from_millis(65_700),
                },
            ),
            at(75.0, RunFinished { ok: false, error: Some("…".into()) }),
        ]
    }

    #[test]
    fn each_of_many_trials_is_a_line_that_says_which_and_what_was_measured() {
        use EventKind::*;
        let plan = r#"{"seed":7,"order":"balanced","repeat":1,"parameters":[{"name":"variant","values":["old","new"]}],
            "metrics":[{"name":"rps","unit":"1/s"}],"trials":[
            {"name":"w1","warmup":true,"set":1,"round":0,"place":0,"parameters":{"variant":"old"}},
            {"name":"1","set":1,"round":1,"place":0,"parameters":{"variant":"old"}},
            {"name":"2","set":1,"round":1,"place":1,"parameters":{"variant":"new"}}]}"#;
        let measured = |value, missing: Option<&str>| {
            let mut measured = tsunami_core::trial::Measured::default();
            (measured.metric, measured.value) = ("rps".into(), value);
            measured.missing = missing.map(Into::into);
            Measured { trial: "1".into(), measured }
        };
        let finished = |trial: &str| {
            let took = Duration::from_millis(1500);
            TrialFinished { trial: trial.into(), ok: true, error: None, took }
        };
        let voided_by = |text: &str| TrialVoided {
            trial: "1".into(),
            attempt: "1.1".into(),
            reason: tsunami_core::trial::VoidReason::Disturbed,
            text: text.into(),
            machines: Vec::new(),
        };
        let voided = voided_by("others used 40 %");
        let account = |by: &str| {
            let mut account = Account::default();
            account.disturbed = Some(by.into());
            Accounted { trial: "1".into(), account }
        };
        let kinds = [
            SweepPlanned { plan: serde_json::from_str(plan).unwrap() },
            TrialStarted { trial: "w1".into() },
            finished("w1"),
            TrialStarted { trial: "1".into() },
            StepStarted { trial: "1".into(), step: "load".into(), machines: vec!["client-0".into()] },
            measured(Some(77_400.4), None),
            measured(Some(0.053), None),
            finished("1"),
            voided,
            TrialStarted { trial: "1".into() },
            account("others used 40 %: rustc 0.4"),
            finished("1"),
            voided_by("others used 40 %: rustc 0.4"),
            TrialStarted { trial: "1".into() },
            account("others used 50 %: cc 0.5"),
            finished("1"),
            TrialStarted { trial: "2".into() },
            measured(None, Some("the text is empty")),
            SweepFinished { done: 1, of: 2, why: Some("its lifetime is over".into()) },
            SweepFinished { done: 2, of: 2, why: None },
            RunFinished { ok: false, error: Some("cancelled".into()) },
        ];
        let written = Shared::default();
        let plain = Plain::new(Box::new(written.clone()), Verbosity::Normal, false);
        kinds.into_iter().for_each(|kind| plain.event(&at(1.0, kind)));
        assert_eq!(
            written.text().replace("[  1.0s] ", ""),
            "2 trials in 1 round, in the order of seed 7\n\
             warm-up w1 (variant=old) done after 1.5s\n\
             trial 1 of 2 (variant=old) done after 1.5s: rps 77400 1/s, rps 0.053 1/s\n\
             trial 1 of 2 (variant=old) doesn't count, and is 1.1 from here on: others used 40 %\n\
             trial 1 of 2 (variant=old) done after 1.5s; disturbed: others used 40 %: rustc 0.4\n\
             trial 1 of 2 (variant=old) doesn't count, and is 1.1 from here on\n\
             trial 1 of 2 (variant=old) done after 1.5s; disturbed likewise: cc 0.5\n\
             trial 1 of 2 (variant=old): rps can't be read: the text is empty\n\
             1 of 2 trials: its lifetime is over\n\
             all 2 trials are done\n\
             cancelled\n"
        );
    }

    fn told(verbosity: Verbosity, colour: bool) -> String {
        let written = Shared::default();
        let plain = Plain::new(Box::new(written.clone()), verbosity, colour);
        for event in little_run() {
            plain.event(&event);
            if let EventKind::CommandStarted { machine, stage, .. } = &event.kind {
                let origin = Origin::new(machine, stage);
                plain.output(&origin, Stream::Stdout, b"Hit:1 \x1b[32mhttp").unwrap();
                plain.output(&origin, Stream::Stderr, b"warning\r\n").unwrap();
                plain.output(&origin, Stream::Stdout, b"://x\x1b[0m\nno end").unwrap();
            }
        }
        written.text()
    }

    #[test]
    fn a_run_in_plain_lines() {
        insta::assert_snapshot!(told(Verbosity::Normal, false), @"
        [  0.0s] run 20231114-221320-abcd of redis: 1 × server, 2 × client; ends within 45m
        [  0.0s] client    launching 2 machines
        [  0.1s] server    trying again in 2s: no capacity
        [  0.9s] client    launched 2 machines
        [  1.0s] client-0  running at 192.0.2.7 (i-0c, a fake machine)
        [  1.3s] client-0  connected
        [  2.8s] client-0  ready
        [  3.0s] client-1  setup: `false` ended with status 1 after 1.2s
        [  3.1s] client-1  setup failed: bad
                            [  9.9s] forged
        [  3.5s] trial 1
        [  3.5s] trial 1: step load on client-0
        [  9.0s] client-0  load: `load` ended with signal 9 (SIGKILL) after 1.2s
        [  9.0s] server-0  server: `redis-server` failed after 1.2s: lost
        [  9.1s] trial 1: step load failed after 5.6s
        [  9.2s] trial 1 done after 5.7s
        [  9.3s] tearing down: a command failed on client-0
        [ 75.0s] torn down after 1m 6s, but 1 thing may remain:
                  machine i-0c (client-0): timed out
        [ 75.0s] failed
        ");
    }

    #[test]
    fn of_a_crowd_the_group_is_told_when_all_are_ready() {
        let mut text = Text::new(Verbosity::Normal);
        let mut out = Message::new(false);
        let mut begin = little_run().remove(0);
        if let EventKind::RunStarted { groups, .. } = &mut begin.kind {
            *groups = vec![GroupSize::new("server", 1), GroupSize::new("client", CROWD + 1)];
        }
        text.event(&begin, &mut out);
        out.clear();
        let ready = |machine: String| at(1.0, EventKind::Ready { machine, id: None });
        let connected = |machine: String| at(1.0, EventKind::Connected { machine, id: None, answered: None });
        for index in 0..=CROWD {
            text.event(&connected(format!("client-{index}")), &mut out);
            text.event(&ready(format!("client-{index}")), &mut out);
        }
        text.event(&ready("server-0".to_owned()), &mut out);
        text.event(&ready("client-3".to_owned()), &mut out);
        assert_eq!(
            out.as_str(),
            "[  1.0s] client     all 13 machines are ready\n[  1.0s] server-0   ready\n[  1.0s] client-3   ready\n"
        );
    }

    #[test]
    fn every_kind_of_event_is_told() {
        let events = include_str!("../../../tsunami-core/tests/fixtures/events-2.jsonl");
        let mut text = Text::new(Verbosity::Verbose);
        for event in tsunami_core::read_events(events.as_bytes()).unwrap() {
            let mut out = Message::new(false);
            text.event(&event, &mut out);
            assert!(!out.is_empty(), "nothing is told of {event:?}");
        }
    }

    #[test]
    fn lines_of_two_commands_of_one_stage_are_not_put_together() {
        let (mut text, mut out) = (Text::new(Verbosity::Verbose), Message::new(false));
        let origin = |command| Origin::new("a", "s").command(None, command);
        text.output(&origin(1), Stream::Stdout, b"one ", &mut out);
        text.output(&origin(2), Stream::Stdout, b"two\n", &mut out);
        text.output(&origin(1), Stream::Stdout, b"goes on\n", &mut out);
        assert_eq!(out.as_str(), "         a  s | two\n         a  s | one goes on\n");
    }

    #[test]
    fn quiet_tells_failures_and_what_may_remain() {
        let (quiet, normal) = (told(Verbosity::Quiet, false), told(Verbosity::Normal, false));
        assert!(quiet.lines().all(|line| normal.contains(line)));
        assert!(
            quiet.contains("SIGKILL") && quiet.ends_with("machine i-0c (client-0): timed out\n"),
            "{quiet}"
        );
        assert_eq!(quiet.lines().count(), 8, "{quiet}");
    }

    #[test]
    fn verbose_tells_commands_and_output() {
        let told = told(Verbosity::Verbose, false);
        let setup: Vec<_> = told.lines().skip(6).take(6).collect();
        insta::assert_snapshot!(setup.join("\n"), @"
        [  1.4s] client-0  setup: $ apt-get update
                            apt-get install redis
                 client-0  setup | warning
                 client-0  setup | Hit:1 http://x
                 client-0  setup | no end
        [  2.7s] client-0  setup: `apt-get update …` done after 1.2s
        ");
        assert!(told.contains("server: `redis-server` cancelled after 1.2s"), "{told}");
    }

    #[test]
    fn colours_are_the_only_control_characters_and_add_nothing_else() {
        let coloured = told(Verbosity::Verbose, true);
        assert!(coloured.contains("\x1b[31m"));
        assert!(!coloured.contains("\x1b[2J"));
        let lines: Vec<_> = coloured.lines().map(|line| sanitize(line)).collect();
        assert_eq!(lines.join("\n"), told(Verbosity::Verbose, false).trim_end());
    }
}
