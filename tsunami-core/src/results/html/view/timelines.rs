//! What happened when: a plot for each set of machines.

use std::time::Duration;

use serde::Serialize;

use super::{DataTable, Figure, Plots, SINGLE_MACHINES, Set, span};
use crate::results::html::plots::{self, Lane, Phase};
use crate::results::side_by_side::group_of;
use crate::{MachineReport, Report, TrialOutcome, TrialReport};

/// How many sets of machines have a timeline.
const TIMELINES: usize = 8;

/// Where there are more machines than are shown one by one, so many of the slowest are.
const SLOWEST: usize = 10;

#[derive(Serialize)]
pub(super) struct TimelineView {
    title: String,
    path: String,
    figure: Figure,
}

pub(super) fn timelines(report: &Report, sets: &[Set<'_>], plots: &mut Plots) -> Vec<TimelineView> {
    let shown = sets.iter().filter(|set| !set.machines.is_empty()).take(TIMELINES);
    shown.filter_map(|set| timeline(report, set, sets.len() > 1, plots)).collect()
}

fn timeline(report: &Report, set: &Set<'_>, several: bool, plots: &mut Plots) -> Option<TimelineView> {
    let trials: Vec<&TrialReport> = report.trials.iter().filter(|trial| trial.set == set.set).collect();
    let last = |trial: &&&TrialReport| trial.started + trial.took.unwrap_or_default();
    let trials_end = trials.iter().map(|trial| last(&trial)).max();
    let times = set.machines.values().flat_map(|machine| [machine.running, machine.connected, machine.ready]);
    let end = set.finished.or(set.teardown).into_iter().chain(trials_end).chain(times.flatten()).max()?;
    let slowest = set
        .machines
        .iter()
        .filter(|(_, machine)| machine.ready.is_some())
        .max_by_key(|(_, machine)| machine.ready);
    let slowest = slowest.map(|(name, _)| name.as_str());
    let lane = |label: String, machine: &MachineReport, critical: bool| {
        let mut stretches = Vec::new();
        let mut since = Duration::ZERO;
        let phases = [
            (machine.running, Phase::Launch),
            (machine.connected, Phase::Connect),
            (machine.ready, Phase::Setup),
        ];
        for (until, phase) in phases {
            if let Some(until) = until {
                stretches.push((since.as_secs_f64(), until.as_secs_f64(), phase));
                since = until;
            }
        }
        if let Some(gone) = machine.gone {
            stretches.push((gone.as_secs_f64(), end.as_secs_f64(), Phase::Failed));
        }
        Lane { label, stretches, critical }
    };
    let mut lanes = Vec::new();
    if set.machines.len() <= SINGLE_MACHINES {
        for (name, machine) in set.machines {
            lanes.push(lane(name.clone(), machine, Some(name.as_str()) == slowest));
        }
    } else {
        for group in set.groups {
            let members = set.machines.iter().filter(|(name, _)| group_of(name) == group.name);
            let members: Vec<&MachineReport> = members.map(|(_, machine)| machine).collect();
            let middle = |of: fn(&MachineReport) -> Option<Duration>| {
                let mut times: Vec<Duration> = members.iter().filter_map(|machine| of(machine)).collect();
                times.sort_unstable();
                times.get(times.len() / 2).copied()
            };
            let typical = MachineReport {
                running: middle(|machine| machine.running),
                connected: middle(|machine| machine.connected),
                ready: middle(|machine| machine.ready),
                ..MachineReport::default()
            };
            lanes.push(lane(format!("{} × {}", group.name, members.len()), &typical, false));
        }
        let mut slow: Vec<_> = set.machines.iter().collect();
        slow.sort_by_key(|(_, machine)| std::cmp::Reverse(machine.ready));
        for (name, machine) in slow.into_iter().take(SLOWEST) {
            lanes.push(lane(name.clone(), machine, Some(name.as_str()) == slowest));
        }
    }
    let seconds = |time: Duration| time.as_secs_f64();
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
        lanes.push(Lane {
            label: "trials".to_owned(),
            stretches: trials.iter().map(stretch).collect(),
            critical: true,
        });
        let steps = trials.iter().flat_map(|trial| &trial.steps);
        // More than this is one block on any screen.
        let steps = steps.take(400).map(|step| {
            let until = step.took.map_or(step.started, |took| step.started + took);
            (
                seconds(step.started),
                seconds(until),
                if step.ok == Some(false) { Phase::Failed } else { Phase::Step },
            )
        });
        lanes.push(Lane { label: "steps".to_owned(), stretches: steps.collect(), critical: false });
    }
    if let (Some(from), Some(until)) = (set.teardown, set.finished) {
        let stretches = vec![(seconds(from), seconds(until), Phase::Teardown)];
        lanes.push(Lane { label: "teardown".to_owned(), stretches, critical: true });
    }
    let mut path = Vec::new();
    if let Some((name, machine)) = slowest.and_then(|name| Some((name, set.machines.get(name)?))) {
        let phases =
            [("launch", machine.running), ("boot and connect", machine.connected), ("set-up", machine.ready)];
        let mut since = Duration::ZERO;
        for (what, until) in phases {
            if let Some(until) = until {
                path.push(format!("{what} {}", span(until.saturating_sub(since))));
                since = until;
            }
        }
        path.push(format!("(of {name}, the last to be ready)"));
    }
    let ready = set.ready.or_else(|| trials.first().map(|trial| trial.started));
    if let (Some(ready), Some(until)) = (ready, set.teardown.or(trials_end)) {
        path.push(format!("trials {}", span(until.saturating_sub(ready))));
    }
    if let (Some(from), Some(until)) = (set.teardown, set.finished) {
        path.push(format!("teardown {}", span(until.saturating_sub(from))));
    }
    let title = if several { format!("Set {}", set.set) } else { "Timeline".to_owned() };
    let description =
        "A row for each machine: launch, boot and connect, set-up; then trials, steps and teardown.";
    let table = times_table(set);
    let figure = plots.figure(
        match set.machines.len() <= SINGLE_MACHINES {
            true => format!("{title}: when each machine was ready, and when trials ran"),
            false => format!("{title}: the middle of each group, the slowest machines, and when trials ran"),
        },
        description,
        Some(table),
        |about| plots::timeline(about, &lanes, seconds(end)),
    )?;
    Some(TimelineView { title, path: path.join(" → ").replace(" → (", " ("), figure })
}

fn times_table(set: &Set<'_>) -> DataTable {
    let mut slow: Vec<_> = set.machines.iter().collect();
    if set.machines.len() > SINGLE_MACHINES {
        slow.sort_by_key(|(_, machine)| std::cmp::Reverse(machine.ready));
    }
    let shown = if set.machines.len() > SINGLE_MACHINES { SLOWEST } else { SINGLE_MACHINES };
    let at = |time: Option<Duration>| time.map(span).unwrap_or_default();
    let rows = slow.iter().take(shown).map(|(name, machine)| {
        vec![(*name).clone(), at(machine.running), at(machine.connected), at(machine.ready), at(machine.gone)]
    });
    DataTable {
        caption: "When each machine ran, was connected, was ready and was gone".to_owned(),
        heads: ["machine", "ran", "connected", "ready", "gone"].map(str::to_owned).into(),
        rows: rows.collect(),
        more: set.machines.len().saturating_sub(shown),
    }
}
