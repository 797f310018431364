//! What happened when: a plot for each set of machines.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use super::machines::numbered;
use super::traces::Busy;
use super::{DataTable, Figure, Plots, SINGLE_MACHINES, span};
use crate::results::built::Source;
use crate::results::html::plots::{self, Lane, Phase};
use crate::results::side_by_side::group_of;
use crate::statistics::significant;
use crate::{MachineReport, SetReport, TrialOutcome, TrialReport};

/// How many sets of machines have a timeline.
const TIMELINES: usize = 8;

/// Where there are more machines than are shown one by one, so many of the slowest are.
const SLOWEST: usize = 10;

/// How many points the lines of all traces in a timeline have together, and one of them at most.
const BUSY_POINTS: usize = 5000;
const BUSY_POINTS_OF_A_LANE: usize = 200;

#[derive(Serialize)]
pub(super) struct TimelineView {
    title: String,
    about: String,
    path: String,
    figure: Figure,
}

/// What a colour of timelines means.
#[derive(Serialize)]
pub(super) struct PhaseEntry {
    name: String,
    fill: String,
    /// Whether only its edge has the colour.
    is_hollow: bool,
}

/// What was shown of which phase.
type Shown = BTreeSet<(Phase, String)>;

pub(super) fn timelines(
    source: &Source<'_>,
    sets: &[&SetReport],
    plots: &mut Plots,
) -> (Vec<TimelineView>, Vec<PhaseEntry>) {
    let with_machines = sets.iter().filter(|set| !set.machines.is_empty()).take(TIMELINES);
    let mut shown = Shown::new();
    let views = with_machines.filter_map(|set| timeline(source, set, sets.len() > 1, plots, &mut shown));
    let views = views.collect();
    let entries = shown.into_iter().map(|(phase, name)| PhaseEntry {
        name,
        fill: phase.fill(),
        is_hollow: phase == Phase::Void,
    });
    (views, entries.collect())
}

fn timeline(
    source: &Source<'_>,
    set: &SetReport,
    several: bool,
    plots: &mut Plots,
    shown: &mut Shown,
) -> Option<TimelineView> {
    let report = source.report;
    let trials: Vec<&TrialReport> = report.trials.iter().filter(|trial| trial.set == set.set).collect();
    let last = |trial: &&&TrialReport| trial.started + trial.took.unwrap_or_default();
    let trials_end = trials.iter().map(|trial| last(&trial)).max();
    let times = set.machines.values().flat_map(|machine| {
        let up = machine.start().last().map(|part| part.until);
        [up, machine.running, machine.connected]
    });
    let end = set.finished.or(set.teardown).into_iter().chain(trials_end).chain(times.flatten()).max()?;
    let slowest = set
        .machines
        .iter()
        .filter(|(_, machine)| machine.ready.is_some())
        .max_by_key(|(_, machine)| machine.ready);
    let slowest = slowest.map(|(name, _)| name.as_str());
    let seconds = |time: Duration| time.as_secs_f64();
    let mut lane = |label: String, machine: &MachineReport, critical: bool| {
        let mut stretches = Vec::new();
        for part in machine.start() {
            let phase = Phase::Up(part.first);
            stretches.push((seconds(part.from), seconds(part.until), phase));
            shown.insert((phase, part.name()));
        }
        if let Some(gone) = machine.gone {
            stretches.push((seconds(gone), seconds(end), Phase::Failed));
        }
        Lane { label, stretches, busy: Vec::new(), critical }
    };
    let is_single = set.machines.len() <= SINGLE_MACHINES;
    let mut lanes = Vec::new();
    let mut named = numbered(set);
    if !is_single {
        for group in &set.groups {
            let members = set.machines.iter().filter(|(name, _)| group_of(name) == group.name);
            let members: Vec<&MachineReport> = members.map(|(_, machine)| machine).collect();
            let label = format!("{} × {}", group.name, members.len());
            lanes.push(lane(label, &middle(&members), false));
        }
        named.sort_by_key(|(_, machine)| std::cmp::Reverse(machine.ready));
        named.truncate(SLOWEST);
    }
    let groups = lanes.len();
    for (name, machine) in &named {
        lanes.push(lane((*name).clone(), machine, Some(name.as_str()) == slowest));
    }
    let most = add_traces(source, set, &mut lanes[groups..], end);
    if !trials.is_empty() {
        let stretch = |trial: &&TrialReport| {
            let phase = match trial.outcome() {
                TrialOutcome::Ok => Phase::Done,
                TrialOutcome::Failed => Phase::Failed,
                TrialOutcome::Void | TrialOutcome::Unfinished => Phase::Void,
            };
            let until = trial.took.map_or(end, |took| trial.started + took);
            (seconds(trial.started), seconds(until), phase)
        };
        let stretches = trials.iter().map(stretch).collect();
        lanes.push(Lane { label: "trials".to_owned(), stretches, busy: Vec::new(), critical: true });
        let steps = trials.iter().flat_map(|trial| &trial.steps);
        // More than this is one block on any screen.
        let steps = steps.take(400).map(|step| {
            let until = step.took.map_or(step.started, |took| step.started + took);
            let phase = if step.ok == Some(false) { Phase::Failed } else { Phase::Step };
            (seconds(step.started), seconds(until), phase)
        });
        let stretches = steps.collect();
        lanes.push(Lane { label: "steps".to_owned(), stretches, busy: Vec::new(), critical: false });
    }
    if let (Some(from), Some(until)) = (set.teardown, set.finished) {
        let stretches = vec![(seconds(from), seconds(until), Phase::Teardown)];
        lanes.push(Lane { label: "teardown".to_owned(), stretches, busy: Vec::new(), critical: true });
    }
    let phases = lanes.iter().flat_map(|lane| &lane.stretches).map(|(.., phase)| *phase);
    shown.extend(phases.filter_map(|phase| Some((phase, phase.name()?.to_owned()))));
    let title = if several { format!("Set {}", set.set) } else { "Timeline".to_owned() };
    let mut description = "A row for each machine, with the phases of its way up; then trials, steps and \
                           teardown. Bold rows are the critical path."
        .to_owned();
    if let Some(most) = most {
        description.push_str(&format!(
            " Grey below a machine's row: how many of its processors were busy; its full height is {}.",
            significant(most)
        ));
    }
    let figure = plots.figure(
        match is_single {
            true => format!("{title}: when each machine was ready, and when trials ran"),
            false => format!("{title}: the middle of each group, the slowest machines, and when trials ran"),
        },
        &description,
        Some(times_table(&named, set.machines.len() - named.len())),
        |about| plots::timeline(about, &lanes, seconds(end)),
    )?;
    let path = critical_path(set, slowest, &trials, trials_end);
    Some(TimelineView { title, about: description, path, figure })
}

/// Puts under each lane how busy the machine was, all by one measure, which is returned.
fn add_traces(source: &Source<'_>, set: &SetReport, lanes: &mut [Lane], end: Duration) -> Option<f64> {
    let started = set.started?;
    let points = (BUSY_POINTS / lanes.len().max(1)).clamp(2, BUSY_POINTS_OF_A_LANE);
    for lane in &mut *lanes {
        if let Some(busy) = Busy::read(source.directory, &lane.label) {
            lane.busy = busy.since(started, end.as_secs_f64(), points);
        }
    }
    let values = lanes.iter().flat_map(|lane| &lane.busy).map(|(_, value)| *value);
    let most = values.reduce(f64::max).filter(|most| *most > 0.0)?;
    lanes.iter_mut().flat_map(|lane| &mut lane.busy).for_each(|(_, value)| *value /= most);
    Some(most)
}

/// A machine that has come to each point of its way up when half of a group had.
fn middle(members: &[&MachineReport]) -> MachineReport {
    let middle = |of: fn(&MachineReport) -> Option<Duration>| {
        let mut times: Vec<Duration> = members.iter().filter_map(|machine| of(machine)).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    };
    MachineReport {
        requested: middle(|machine| machine.requested),
        launched: middle(|machine| machine.launched),
        running: middle(|machine| machine.running),
        answered: middle(|machine| machine.answered),
        connected: middle(|machine| machine.connected),
        verified: middle(|machine| machine.verified),
        ready: middle(|machine| machine.ready),
        ..MachineReport::default()
    }
}

/// What the run could not have been shorter than: the way up of the machine that was ready last, then trials, then the
/// teardown.
fn critical_path(
    set: &SetReport,
    slowest: Option<&str>,
    trials: &[&TrialReport],
    trials_end: Option<Duration>,
) -> String {
    let mut path = Vec::new();
    if let Some((name, machine)) = slowest.and_then(|name| Some((name, set.machines.get(name)?))) {
        let parts = machine.start();
        let parts = parts.iter().map(|part| format!("{} {}", part.name(), span(part.took())));
        path.push(format!("{name}, the last to be ready ({})", parts.collect::<Vec<_>>().join(", ")));
    }
    let ready = set.ready.or_else(|| trials.first().map(|trial| trial.started));
    if let (Some(ready), Some(until)) = (ready, set.teardown.or(trials_end)) {
        path.push(format!("trials {}", span(until.saturating_sub(ready))));
    }
    if let (Some(from), Some(until)) = (set.teardown, set.finished) {
        path.push(format!("teardown {}", span(until.saturating_sub(from))));
    }
    path.join(" → ")
}

fn times_table(machines: &[(&String, &MachineReport)], more: usize) -> DataTable {
    let at = |time: Option<Duration>| time.map(span).unwrap_or_default();
    let rows = machines.iter().map(|(name, machine)| {
        let MachineReport {
            requested, launched, running, answered, connected, verified, ready, gone, ..
        } = machine;
        let times = [requested, launched, running, answered, connected, verified, ready, gone];
        std::iter::once((*name).clone()).chain(times.into_iter().map(|time| at(*time))).collect()
    });
    let mut table = DataTable {
        caption: "When each machine was at which point, since the run began".to_owned(),
        heads: [
            "machine",
            "requested",
            "launched",
            "had an address",
            "answered",
            "logged in",
            "verified",
            "ready",
            "gone",
        ]
        .map(str::to_owned)
        .into(),
        rows: rows.collect(),
        more,
    };
    table.drop_empty_columns();
    table
}
