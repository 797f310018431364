//! `results.json`: the plan, what became of each trial, and what the numbers say.

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;

use super::built::Source;
use super::json::escaped;
use super::results_csv::seconds;
use crate::report::Voided;
use crate::trial::{Measured, Parameters, PlannedTrial, SweepPlan};
use crate::{Analysis, RunId, SweepEnd, TrialOutcome, TrialReport};

/// The number of the form of `results.json`.
pub(super) const RESULTS_SCHEMA: u32 = 1;

#[derive(Serialize)]
struct ResultsJson<'a> {
    schema: u32,
    tsunami: &'static str,
    run: Option<&'a RunId>,
    experiment: Option<&'a str>,
    plan: Option<&'a SweepPlan>,
    swept: Option<&'a SweepEnd>,
    trials: Vec<Trial<'a>>,
    analysis: &'a Analysis,
}

/// An attempt at a trial.
#[derive(Serialize)]
struct Trial<'a> {
    name: &'a str,
    /// What it is called in the plan.
    trial: &'a str,
    outcome: TrialOutcome,
    error: Option<&'a str>,
    void: Option<&'a Voided>,
    set: u32,
    round: Option<u32>,
    place: Option<u32>,
    warmup: bool,
    parameters: Option<&'a Parameters>,
    /// Since the run of its set began.
    started: f64,
    seconds: Option<f64>,
    metrics: &'a [Measured],
}

pub(super) fn build(source: &Source<'_>) -> io::Result<String> {
    let Source { report, analysis, .. } = source;
    let planned = planned(report.sweep.as_ref());
    let trials =
        report.trials.iter().map(|trial| Trial::new(trial, planned.get(trial.planned_name()).copied()));
    let results = ResultsJson {
        schema: RESULTS_SCHEMA,
        tsunami: env!("CARGO_PKG_VERSION"),
        run: report.run.as_ref(),
        experiment: report.experiment.as_deref(),
        plan: report.sweep.as_ref(),
        swept: report.swept.as_ref(),
        trials: trials.collect(),
        analysis,
    };
    Ok(escaped(&serde_json::to_string_pretty(&results)?) + "\n")
}

/// The trials of a plan by their names.
pub(super) fn planned(plan: Option<&SweepPlan>) -> BTreeMap<&str, &PlannedTrial> {
    let trials = plan.into_iter().flat_map(|plan| &plan.trials);
    trials.map(|trial| (trial.name.as_str(), trial)).collect()
}

impl<'a> Trial<'a> {
    fn new(trial: &'a TrialReport, planned: Option<&'a PlannedTrial>) -> Self {
        Self {
            name: &trial.name,
            trial: trial.planned_name(),
            outcome: trial.outcome(),
            error: trial.error.as_deref(),
            void: trial.voided.as_ref(),
            set: trial.set,
            round: planned.filter(|planned| !planned.warmup).map(|planned| planned.round),
            place: planned.filter(|planned| !planned.warmup).map(|planned| planned.place + 1),
            warmup: planned.is_some_and(|planned| planned.warmup),
            parameters: planned.map(|planned| &planned.parameters),
            started: seconds(trial.started),
            seconds: trial.took.map(seconds),
            metrics: &trial.measured,
        }
    }
}
