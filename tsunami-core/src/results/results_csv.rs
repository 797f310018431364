//! `results.csv`: a row for each trial, machine and metric.

use std::io;
use std::time::Duration;

use super::built::Source;
use super::results_json::planned;
use crate::text::sanitize_lines;
use crate::{TrialOutcome, TrialReport};

/// The columns before the parameters, and those behind them.
const BEFORE: [&str; 11] =
    ["trial", "of", "outcome", "void", "set", "round", "place", "warmup", "order", "started", "seconds"];
const BEHIND: [&str; 6] = ["step", "metric", "machine", "value", "unit", "missing"];

pub(super) fn build(source: &Source<'_>) -> io::Result<String> {
    let report = source.report;
    let planned = planned(report.sweep.as_ref());
    let parameters: Vec<&str> = report
        .sweep
        .iter()
        .flat_map(|plan| plan.parameters.iter().map(|parameter| parameter.name.as_str()))
        .collect();
    let metrics = report.sweep.as_ref().map(|plan| plan.metrics.as_slice()).unwrap_or_default();
    let column = |name: &&str| match BEFORE.contains(name) || BEHIND.contains(name) {
        true => format!("parameter_{name}"),
        false => (*name).to_owned(),
    };
    let mut text = String::new();
    let names = BEFORE.map(str::to_owned).into_iter().chain(parameters.iter().map(column));
    row(&mut text, names.chain(BEHIND.map(str::to_owned)));
    for (order, trial) in report.trials.iter().enumerate() {
        let plan = planned.get(trial.planned_name());
        let counted = plan.filter(|plan| !plan.warmup);
        let number = |value: Option<u32>| value.map(|value| value.to_string()).unwrap_or_default();
        let before = [
            trial.name.clone(),
            trial.planned_name().to_owned(),
            outcome(trial).to_owned(),
            void(trial),
            trial.set.to_string(),
            number(counted.map(|plan| plan.round)),
            number(counted.map(|plan| plan.place + 1)),
            plan.is_some_and(|plan| plan.warmup).to_string(),
            order.to_string(),
            seconds(trial.started).to_string(),
            trial.took.map(|took| seconds(took).to_string()).unwrap_or_default(),
        ];
        let values = parameters.iter().map(|name| {
            plan.and_then(|plan| plan.parameters.get(*name)).map(ToString::to_string).unwrap_or_default()
        });
        let before: Vec<String> = before.into_iter().chain(values).collect();
        if trial.measured.is_empty() {
            row(&mut text, before.iter().cloned().chain(BEHIND.map(|_| String::new())));
        }
        for measured in &trial.measured {
            let unit = metrics.iter().find(|plan| plan.name == measured.metric && plan.step == measured.step);
            let behind = [
                measured.step.clone(),
                measured.metric.clone(),
                measured.machine.clone().unwrap_or_default(),
                measured.value.map(|value| value.to_string()).unwrap_or_default(),
                unit.and_then(|plan| plan.unit.clone()).unwrap_or_default(),
                measured.missing.clone().unwrap_or_default(),
            ];
            row(&mut text, before.iter().cloned().chain(behind));
        }
    }
    Ok(text)
}

/// Seconds with no more digits than milliseconds have: events are no more exact.
pub(super) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e3).round() / 1e3
}

/// How a trial ended, in a word.
pub(super) fn outcome(trial: &TrialReport) -> &'static str {
    match trial.outcome() {
        TrialOutcome::Ok => "ok",
        TrialOutcome::Failed => "failed",
        TrialOutcome::Void => "void",
        TrialOutcome::Unfinished => "unfinished",
    }
}

/// Why a trial doesn't count, in a word.
pub(super) fn void(trial: &TrialReport) -> String {
    let reason = trial.voided.as_ref().and_then(|voided| serde_json::to_value(voided.reason).ok());
    let reason = reason.and_then(|reason| reason.as_str().map(str::to_owned));
    reason.unwrap_or_else(|| if trial.interrupted { "interrupted".to_owned() } else { String::new() })
}

/// Adds a row. A field is quoted where it must be; what a terminal would act on is taken out, and lines are joined.
pub(super) fn row(text: &mut String, fields: impl IntoIterator<Item = String>) {
    for (index, field) in fields.into_iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        let field = sanitize_lines(&field);
        if field.contains([',', '"']) || field.starts_with(' ') || field.ends_with(' ') {
            text.push('"');
            text.push_str(&field.replace('"', "\"\""));
            text.push('"');
        } else {
            text.push_str(&field);
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[test]
    fn seconds_have_the_digits_of_milliseconds() {
        let told = [
            Duration::from_secs_f64(8.649_000_000_4),
            Duration::from_millis(8_649) + Duration::from_nanos(1),
        ];
        assert_eq!(told.map(|time| super::seconds(time).to_string()), ["8.649", "8.649"]);
    }

    #[test]
    fn a_field_is_one_field_whatever_it_holds() {
        let mut text = String::new();
        super::row(&mut text, ["a,b", "say \"x\"", "two\nlines", " ", "plain\u{1b}[2J"].map(str::to_owned));
        assert_eq!(text, "\"a,b\",\"say \"\"x\"\"\",two lines,\" \",plain\n");
    }
}
