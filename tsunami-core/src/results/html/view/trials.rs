//! All trials.

use super::{DataTable, span};
use crate::analysis::label;
use crate::results::built::Source;
use crate::results::results_csv::outcome;
use crate::results::results_json::planned;

/// All trials, as far as they fit.
pub(super) fn trials(source: &Source<'_>, limit: usize) -> Option<DataTable> {
    let report = source.report;
    let planned = planned(report.sweep.as_ref());
    let rows = report.trials.iter().take(limit).map(|trial| {
        let plan = planned.get(trial.planned_name());
        let round = plan.map(|plan| if plan.warmup { "warm-up".to_owned() } else { plan.round.to_string() });
        vec![
            trial.name.clone(),
            plan.map(|plan| label(&plan.parameters)).unwrap_or_default(),
            if trial.set == 0 { String::new() } else { trial.set.to_string() },
            round.unwrap_or_default(),
            plan.filter(|plan| !plan.warmup).map(|plan| (plan.place + 1).to_string()).unwrap_or_default(),
            outcome(trial).to_owned(),
            span(trial.started),
            trial.took.map(span).unwrap_or_default(),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    (!rows.is_empty()).then(|| DataTable {
        caption: "Trials in the order in which they were done".to_owned(),
        heads: ["trial", "parameters", "set", "round", "place", "outcome", "began", "took"]
            .map(str::to_owned)
            .into(),
        more: report.trials.len() - rows.len(),
        rows,
    })
}
