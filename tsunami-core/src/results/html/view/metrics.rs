//! What was measured, as plots and tables.

use serde::Serialize;

use super::{DataTable, Figure, Plots, TABLE_ROWS};
use crate::results::built::Source;
use crate::results::html::plots::{self, Entry, Row};
use crate::statistics::{Direction, Scale, change, significant};
use crate::trial::{Compare, MetricPlan};
use crate::{Combination, MetricAnalysis, VariantAnalysis};

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
    let about = [unit.unwrap_or_default(), better, &step];
    let about: Vec<&str> = about.into_iter().filter(|part| !part.is_empty()).collect();
    MetricView { name: plan.name.clone(), about: about.join(" · "), figures }
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
                let label = combination.label();
                let label = if label.is_empty() { "all trials".to_owned() } else { label };
                rows.push(Row { label, entries });
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
        let label = combination.label();
        rows.push(Row { label: if label.is_empty() { "all trials".to_owned() } else { label }, entries });
    }
    let description = "Medians over trials with bootstrap intervals of the median, for looking at.";
    let caption = format!("{}: medians", metric.metric.name);
    plots.figure(caption, description, Some(table), |about| plots::rows(about, &rows, &with_unit, None))
}

/// What one combination measured, in the order of the trials: what drifts is seen.
pub(super) fn in_order(
    metric: &MetricAnalysis,
    combination: &Combination,
    names: &[String],
    plots: &mut Plots,
) -> Option<Figure> {
    let with_unit = with_unit(metric);
    let mut found = Vec::new();
    for (series, variant) in combination.variants.iter().enumerate() {
        found.extend(variant.values.iter().map(|value| (series, value)));
    }
    if found.is_empty() {
        return None;
    }
    found.sort_by_key(|(_, value)| value.order);
    let points: Vec<(usize, f64, f64)> =
        found.iter().map(|(series, value)| (*series, f64::from(value.order) + 1.0, value.value)).collect();
    let changes = found.windows(2).filter(|pair| pair[0].1.set != pair[1].1.set);
    let breaks: Vec<f64> =
        changes.map(|pair| (f64::from(pair[0].1.order) + f64::from(pair[1].1.order)) / 2.0 + 1.0).collect();
    let rows = found.iter().map(|(series, value)| {
        vec![
            value.trial.clone(),
            names.get(*series).cloned().unwrap_or_default(),
            value.set.to_string(),
            value.round.to_string(),
            value.place.to_string(),
            significant(value.value),
        ]
    });
    let place = combination.label();
    let place = if place.is_empty() { String::new() } else { format!(" where {place}") };
    let table = DataTable {
        caption: format!("{with_unit}{place}, trial by trial"),
        heads: ["trial", "variant", "set", "round", "place", "value"].map(str::to_owned).into(),
        rows: rows.take(TABLE_ROWS).collect(),
        more: found.len().saturating_sub(TABLE_ROWS),
    };
    let caption = format!("{}{place}, in the order of trials", metric.metric.name);
    let description = "Each trial's value by its place in the whole run. Lines part sets of machines.";
    let axes = (plots::PLACES, with_unit.as_str());
    plots.figure(caption, description, Some(table), |about| plots::order(about, &points, &breaks, axes))
}
