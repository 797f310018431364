//! The summary of a sweep as a table of Markdown.

use std::fmt::Write as _;

use super::results_csv::{outcome, seconds, void};
use super::results_json::planned;
use crate::analysis::label;
use crate::statistics::{FEWEST_FOR_MEDIAN, Warning, change, significant};
use crate::text::{number, sanitize_lines};
use crate::{Analysis, Compared, Report};

/// How many trials are shown one by one.
const TRIALS: usize = 100;

/// What a run came to: its metrics, as [`markdown`] has them, or where nothing was measured a table of Markdown of its
/// trials, with what measures them.
///
/// Nothing of it acts on a terminal.
pub fn summary(report: &Report) -> String {
    let analysis = report.analysis();
    let metrics = markdown(&analysis);
    if metrics.is_empty() { trials(report, &analysis) } else { metrics }
}

fn trials(report: &Report, analysis: &Analysis) -> String {
    let planned = planned(report.sweep.as_ref());
    let parameters = |name: &str| planned.get(name).map(|plan| label(&plan.parameters)).unwrap_or_default();
    let has_parameters = planned.values().any(|plan| !plan.parameters.is_empty());
    let row = |[trial, parameters, outcome, took]: [&str; 4]| {
        let cells = [Some(trial), has_parameters.then_some(parameters), Some(outcome), Some(took)];
        line(&cells.into_iter().flatten().map(str::to_owned).collect::<Vec<_>>())
    };
    let mut text = String::new();
    if !report.trials.is_empty() {
        text.push_str(&row(["trial", "parameters", "outcome", "seconds"]));
        text.push_str(&row(["---"; 4]));
    }
    for trial in report.trials.iter().take(TRIALS) {
        let why = void(trial);
        let outcome =
            if why.is_empty() { outcome(trial).to_owned() } else { format!("{} ({why})", outcome(trial)) };
        let took = trial.took.map(|took| seconds(took).to_string()).unwrap_or_default();
        text.push_str(&row([&trial.name, &parameters(trial.planned_name()), &outcome, &took]));
    }
    if !text.is_empty() {
        text.push('\n');
    }
    let mut said = Vec::new();
    if report.trials.is_empty() {
        said.push("no trial began".to_owned());
    }
    if report.trials.len() > TRIALS {
        said.push(format!("{} more; results.csv has all", number(report.trials.len() - TRIALS, "trial")));
    }
    if analysis.metrics.is_empty() {
        said.push("nothing was measured: the key `metrics` of a step says what is".to_owned());
    }
    said.extend(notes(analysis));
    for note in said {
        let _ = writeln!(text, "- {}", cell(&note));
    }
    text
}

/// What the metrics of a run came to: a table of Markdown to paste anywhere, and below it what is to be said of it. Empty
/// if nothing was measured.
///
/// Nothing of it acts on a terminal.
pub fn markdown(analysis: &Analysis) -> String {
    let measured = |combination: &crate::Combination| {
        combination.variants.iter().any(|variant| variant.counts.planned > 0)
    };
    if !analysis.metrics.iter().flat_map(|metric| &metric.combinations).any(measured) {
        return String::new();
    }
    let by = analysis.compare.as_ref();
    let parameters: Vec<String> = analysis
        .metrics
        .iter()
        .flat_map(|metric| &metric.combinations)
        .flat_map(|combination| combination.parameters.keys().cloned())
        .fold(Vec::new(), |mut names, name| {
            if !names.contains(&name) {
                names.push(name);
            }
            names
        });
    let mut heads = vec!["metric".to_owned()];
    heads.extend(parameters.iter().cloned());
    heads.extend(by.map(|by| by.by.clone()));
    heads.extend(["trials", "median", "95 % of the median"].map(str::to_owned));
    if let Some(by) = by {
        heads.push(format!("against {}", by.baseline));
        heads.push("interval".to_owned());
    }
    let mut text = line(&heads);
    text.push_str(&line(&heads.iter().map(|_| "---".to_owned()).collect::<Vec<_>>()));
    for metric in &analysis.metrics {
        let unit = metric.metric.unit.as_ref().map(|unit| format!(" ({unit})")).unwrap_or_default();
        for combination in &metric.combinations {
            for variant in &combination.variants {
                let mut cells = vec![format!("{}{unit}", metric.metric.name)];
                cells.extend(parameters.iter().map(|name| {
                    combination.parameters.get(name).map(ToString::to_string).unwrap_or_default()
                }));
                if by.is_some() {
                    cells.push(variant.counts.variant.as_ref().map(ToString::to_string).unwrap_or_default());
                }
                let failed = match variant.counts.failed {
                    0 => String::new(),
                    failed => format!(" ({failed} failed)"),
                };
                cells.push(format!("{}{failed}", variant.values.len()));
                let summary = variant.summary.as_ref();
                cells.push(summary.map(|summary| significant(summary.median)).unwrap_or_default());
                let interval = summary.and_then(|summary| summary.interval);
                cells.push(interval.map(|own| range(own.low, own.high)).unwrap_or_default());
                if by.is_some() {
                    let compared = variant.compared.as_ref().map(|compared| &compared.comparison);
                    let (estimate, interval) = compared.map(change).unwrap_or_default();
                    cells.extend([estimate, interval]);
                }
                text.push_str(&line(&cells));
            }
        }
    }
    let notes = notes(analysis);
    if !notes.is_empty() {
        text.push('\n');
    }
    for note in notes {
        let _ = writeln!(text, "- {}", cell(&note));
    }
    text
}

/// What is to be said beside the figures, a line each.
pub(super) fn notes(analysis: &Analysis) -> Vec<String> {
    let mut notes = analysis.sentences();
    let compared = analysis.metrics.iter().flat_map(|metric| &metric.combinations);
    let compared =
        compared.flat_map(|combination| &combination.variants).filter_map(|one| one.compared.as_ref());
    let compared: Vec<&Compared> = compared.collect();
    // Which rounds are left out is seen from the counts.
    let warnings = compared.iter().flat_map(|compared| &compared.comparison.warnings);
    let mut counted: Vec<(String, usize)> = Vec::new();
    for warning in warnings.filter(|warning| !matches!(warning, Warning::LeftOut { .. })) {
        let text = warning.to_string();
        match counted.iter_mut().find(|(known, _)| *known == text) {
            Some((_, count)) => *count += 1,
            None => counted.push((text, 1)),
        }
    }
    let all = compared.len();
    notes.extend(counted.into_iter().map(|(text, count)| match all {
        1 => text,
        _ => format!("{text} (in {count} of {all} comparisons)"),
    }));
    notes.extend(analysis.incomplete.clone());
    let variants =
        analysis.metrics.iter().flat_map(|metric| &metric.combinations).flat_map(|one| &one.variants);
    let mut summaries = variants.filter_map(|variant| variant.summary.as_ref());
    if summaries.any(|summary| summary.interval.is_none() && summary.n < FEWEST_FOR_MEDIAN) {
        notes.push(format!(
            "a median of fewer than {FEWEST_FOR_MEDIAN} trials has no interval: `repeat` in the experiment file makes more"
        ));
    }
    if !compared.is_empty() {
        // As many as the confidence is corrected for, whether or not all of them could be made.
        let combinations = analysis.metrics.iter().flat_map(|metric| &metric.combinations);
        let all: usize = combinations.map(|one| one.variants.len().saturating_sub(1)).sum();
        notes.push(match all {
            1 => format!(
                "the interval is over rounds and holds for these machines, with {:.0} % confidence",
                100.0 * analysis.confidence
            ),
            _ => format!(
                "intervals are over rounds and hold for these machines; each has {:.2} % confidence, so that all {all} \
                 hold together with 95 %",
                100.0 * analysis.confidence
            ),
        });
    }
    notes
}

fn range(low: f64, high: f64) -> String {
    format!("{} to {}", significant(low), significant(high))
}

pub(super) fn line(cells: &[String]) -> String {
    let cells: Vec<String> = cells.iter().map(|text| cell(text)).collect();
    format!("| {} |\n", cells.join(" | "))
}

/// Text that is nothing but text in Markdown, as far as tables and markup go.
fn cell(text: &str) -> String {
    let mut cell = String::with_capacity(text.len());
    let mut rest = sanitize_lines(text);
    rest.push(' ');
    for (c, next) in rest.chars().zip(rest.chars().skip(1)) {
        // What stands before a space begins no tag.
        if matches!(c, '\\' | '|' | '[') || c == '<' && next != ' ' {
            cell.push('\\');
        }
        cell.push(c);
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_four_digits_and_text_is_only_text() {
        let shown = [0.0, 12345.678, 1234.5, 3.0, 0.012_345, 1e-9, 2.5e15, f64::NAN].map(significant);
        assert_eq!(shown, ["0", "12346", "1234", "3", "0.01235", "1.000e-9", "2.500e15", "NaN"]);
        assert_eq!(cell("a|b <img src=x> [x](y)\u{1b}[2J"), "a\\|b \\<img src=x> \\[x](y)");
        assert_eq!(cell("two\r\nlines\n"), "two lines");
        assert_eq!(cell("`rps < 0.95` holds"), "`rps < 0.95` holds");
    }
}
