//! What was measured, as plots and tables.

use serde::Serialize;

use super::{DataTable, Figure, Plots, TABLE_ROWS};
use crate::results::built::Source;
use crate::results::html::plots::{self, Entry, Lost, Row};
use crate::results::results_csv::outcome;
use crate::results::results_json::planned;
use crate::statistics::{Direction, Scale, change, significant};
use crate::trial::{Compare, MetricPlan, PlannedTrial};
use crate::{Combination, MetricAnalysis, TrialOutcome, TrialReport, VariantAnalysis};

#[derive(Serialize)]
pub(super) struct MetricView {
    name: String,
    about: String,
    pub(super) figures: Vec<Figure>,
}

pub(super) fn metric_view(metric: &MetricAnalysis, source: &Source<'_>, plots: &mut Plots) -> MetricView {
    let plan = &metric.metric;
    let unit = plan.unit.as_deref();
    let mut figures = Vec::new();
    if let Some(compare) = source.analysis.compare.as_ref() {
        figures.extend(forest(metric, compare, plots));
    }
    figures.extend(points(metric, plots));
    let better = match plan.better {
        Some(Direction::Higher) => "higher is better",
        Some(Direction::Lower) => "lower is better",
        None => "",
    };
    let step = if plan.step.is_empty() { String::new() } else { format!("step {}", plan.step) };
    let value = only_value(metric).unwrap_or_default();
    let about = [&value, unit.unwrap_or_default(), better, &step];
    let about: Vec<&str> = about.into_iter().filter(|part| !part.is_empty()).collect();
    MetricView { name: plan.name.clone(), about: about.join(" · "), figures }
}

/// What all trials came to, where nothing tells them apart.
fn only_value(metric: &MetricAnalysis) -> Option<String> {
    let [Combination { variants, .. }] = &metric.combinations[..] else { return None };
    let [VariantAnalysis { values, summary: Some(summary), .. }] = &variants[..] else { return None };
    let median = significant(summary.median);
    let interval =
        summary.interval.map(|of| format!(" ({} to {})", significant(of.low), significant(of.high)));
    Some(match values.len() {
        1 => median,
        trials => format!("median of {trials} trials: {median}{}", interval.unwrap_or_default()),
    })
}

/// `rps (1/s)`.
fn with_unit(metric: &MetricAnalysis) -> String {
    let MetricPlan { name, unit, .. } = &metric.metric;
    unit.as_ref().map_or_else(|| name.clone(), |unit| format!("{name} ({unit})"))
}

/// How much each variant differs from the baseline.
fn forest(metric: &MetricAnalysis, compare: &Compare, plots: &mut Plots) -> Option<Figure> {
    let compared = |scale: Scale| {
        let mut rows = Vec::new();
        for combination in &metric.combinations {
            let entries = combination.variants.iter().enumerate().filter_map(|(series, variant)| {
                let comparison = &variant.compared.as_ref()?.comparison;
                let shown = |value: f64| match scale {
                    Scale::Ratio => 100.0 * (value - 1.0),
                    Scale::Difference => value,
                };
                (comparison.scale == scale).then(|| Entry {
                    series,
                    estimate: shown(comparison.estimate),
                    interval: Some((shown(comparison.interval.low), shown(comparison.interval.high))),
                })
            });
            let entries: Vec<Entry> = entries.collect();
            if !entries.is_empty() {
                rows.push(Row { label: combination.label(), entries });
            }
        }
        rows
    };
    // Ratios and differences have no axis in common; the table has both.
    let (ratios, differences) = (compared(Scale::Ratio), compared(Scale::Difference));
    let (rows, axis, band) = match ratios.len() >= differences.len() {
        true => {
            let margin = 100.0 * compare.margin;
            (ratios, format!("% against {}", compare.baseline), Some((-margin, margin)))
        }
        false => (differences, format!("difference to {}", compare.baseline), Some((0.0, 0.0))),
    };
    let mut table = DataTable {
        caption: format!("{}: difference to {}", metric.metric.name, compare.baseline),
        heads: ["parameters", &compare.by, "rounds", "difference", "interval"].map(str::to_owned).into(),
        ..DataTable::default()
    };
    for combination in &metric.combinations {
        for variant in &combination.variants {
            let Some(compared) = &variant.compared else { continue };
            let (estimate, interval) = change(&compared.comparison);
            let name = variant.counts.variant.as_ref().map(ToString::to_string).unwrap_or_default();
            let rounds = compared.comparison.rounds.to_string();
            table.rows.push(vec![combination.label(), name, rounds, estimate, interval]);
        }
    }
    if table.rows.is_empty() {
        return None;
    }
    let caption = format!("{} against {}", metric.metric.name, compare.baseline);
    let description = format!(
        "Estimates with their intervals. Within the shaded margin of {} % differences don't matter.",
        significant(100.0 * compare.margin)
    );
    plots.figure(caption, &description, Some(table), |about| plots::rows(about, &rows, &axis, band))
}

/// What each variant measured: its median with an interval.
fn points(metric: &MetricAnalysis, plots: &mut Plots) -> Option<Figure> {
    let with_unit = with_unit(metric);
    let mut table = DataTable {
        caption: format!("{with_unit}: medians"),
        heads: [
            "parameters",
            "variant",
            "trials",
            "failed",
            "median",
            "95 % interval of the median",
            "least",
            "most",
        ]
        .map(str::to_owned)
        .into(),
        ..DataTable::default()
    };
    let mut rows = Vec::new();
    for combination in &metric.combinations {
        let mut entries = Vec::new();
        for (series, variant) in combination.variants.iter().enumerate() {
            let VariantAnalysis { counts, values, summary, .. } = variant;
            let name = counts.variant.as_ref().map(ToString::to_string).unwrap_or_default();
            let mut cells =
                vec![combination.label(), name, values.len().to_string(), counts.failed.to_string()];
            if let Some(summary) = summary {
                let interval = summary.interval.map(|interval| (interval.low, interval.high));
                entries.push(Entry { series, estimate: summary.median, interval });
                let interval =
                    interval.map(|(low, high)| format!("{} to {}", significant(low), significant(high)));
                cells.extend([
                    significant(summary.median),
                    interval.unwrap_or_default(),
                    significant(summary.min),
                    significant(summary.max),
                ]);
            } else {
                cells.extend([const { String::new() }; 4]);
            }
            table.rows.push(cells);
        }
        rows.push(Row { label: combination.label(), entries });
    }
    let description = "Medians over trials with bootstrap intervals of the median, for looking at.";
    let caption = format!("{}: medians", metric.metric.name);
    plots.figure(caption, description, Some(table), |about| plots::rows(about, &rows, &with_unit, None))
}

/// The attempts at trials that failed or don't count, without warm-ups: how many began before each, and what it was.
pub(super) type LostTrials<'a> = Vec<(u32, &'a TrialReport, &'a PlannedTrial)>;

pub(super) fn lost_trials<'a>(source: &Source<'a>) -> LostTrials<'a> {
    let planned = planned(source.report.sweep.as_ref());
    let numbered = (0..).zip(&source.report.trials).filter(|(_, trial)| trial.outcome() != TrialOutcome::Ok);
    let of = |(order, trial): (u32, &'a TrialReport)| {
        let plan = planned.get(trial.planned_name()).copied().filter(|plan| !plan.warmup)?;
        Some((order, trial, plan))
    };
    numbered.filter_map(of).collect()
}

/// What one combination measured, in the order of the trials: what drifts is seen, and where trials were lost.
pub(super) fn in_order(
    metric: &MetricAnalysis,
    combination: &Combination,
    names: &[String],
    source: &Source<'_>,
    lost_trials: &LostTrials<'_>,
    plots: &mut Plots,
) -> Option<Figure> {
    let with_unit = with_unit(metric);
    let mut points = Vec::new();
    // The place in the run, the set, and the row of the table.
    let mut rows: Vec<(u32, u32, Vec<String>)> = Vec::new();
    let mut add = |order: u32,
                   series: usize,
                   (trial, set, round, place): (&str, u32, u32, u32),
                   value: String| {
        let name = names.get(series).cloned().unwrap_or_default();
        let numbers = [set, round, place].map(|number| number.to_string());
        rows.push((order, set, [trial.to_owned(), name].into_iter().chain(numbers).chain([value]).collect()));
    };
    for (series, variant) in combination.variants.iter().enumerate() {
        for value in &variant.values {
            points.push((series, f64::from(value.order) + 1.0, value.value));
            let place = (value.trial.as_str(), value.set, value.round, value.place);
            add(value.order, series, place, significant(value.value));
        }
    }
    if points.is_empty() {
        return None;
    }
    let by = source.analysis.compare.as_ref().map(|compare| &compare.by);
    let mut lost = Vec::new();
    for (order, trial, plan) in lost_trials {
        let of = |name: &String| plan.parameters.get(name);
        let is_of = |variant: &VariantAnalysis| by.is_none_or(|by| variant.counts.variant.as_ref() == of(by));
        if combination.parameters.iter().all(|(name, value)| of(name) == Some(value))
            && let Some(series) = combination.variants.iter().position(is_of)
        {
            let is_failed = trial.outcome() == TrialOutcome::Failed;
            lost.push((series, f64::from(*order) + 1.0, if is_failed { Lost::Failed } else { Lost::Void }));
            let place = (trial.name.as_str(), trial.set, plan.round, plan.place + 1);
            add(*order, series, place, outcome(trial).to_owned());
        }
    }
    rows.sort_by_key(|(order, ..)| *order);
    let changes = rows.windows(2).filter(|pair| pair[0].1 != pair[1].1);
    let breaks: Vec<f64> =
        changes.map(|pair| (f64::from(pair[0].0) + f64::from(pair[1].0)) / 2.0 + 1.0).collect();
    let place = combination.label();
    let place = if place.is_empty() { String::new() } else { format!(" where {place}") };
    let table = DataTable {
        caption: format!("{with_unit}{place}, trial by trial"),
        heads: ["trial", "variant", "set", "round", "place", "value"].map(str::to_owned).into(),
        more: rows.len().saturating_sub(TABLE_ROWS),
        rows: rows.into_iter().take(TABLE_ROWS).map(|(.., row)| row).collect(),
    };
    let caption = format!("{}{place}, in the order of trials", metric.metric.name);
    let mut description =
        "Each trial's value by its place in the whole run. Lines part sets of machines.".to_owned();
    if !lost.is_empty() {
        description
            .push_str(" In the strip at the foot: trials that failed (diamonds) or don't count (rings).");
    }
    let axes = (plots::PLACES, with_unit.as_str());
    plots.figure(caption, &description, Some(table), |about| {
        plots::order(about, &points, &lost, &breaks, axes)
    })
}
