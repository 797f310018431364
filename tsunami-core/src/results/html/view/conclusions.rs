//! What the numbers say, in words.

use serde::Serialize;

use super::DataTable;
use crate::results::built::Source;
use crate::results::markdown::notes;
use crate::statistics::Verdict;
use crate::{MetricAnalysis, Repeats};

#[derive(Serialize)]
pub(super) struct Conclusion {
    /// `better`, `worse`, `differs`, `same`, `unknown`.
    kind: &'static str,
    word: &'static str,
    text: String,
}

/// What the comparisons of a metric say.
pub(super) fn conclusions(metric: &MetricAnalysis) -> Vec<Conclusion> {
    let mut conclusions = Vec::new();
    for combination in &metric.combinations {
        let place = combination.label();
        let place = if place.is_empty() { place } else { format!("{place}: ") };
        for variant in &combination.variants {
            if let Some(compared) = &variant.compared {
                let (kind, word) = match compared.verdict {
                    Verdict::Differs { better: Some(true), .. } => ("better", "better"),
                    Verdict::Differs { better: Some(false), .. } => ("worse", "worse"),
                    Verdict::Differs { .. } => ("differs", "differs"),
                    Verdict::Same => ("same", "the same"),
                    Verdict::CannotTell { .. } => ("unknown", "can’t tell"),
                };
                let text = format!("{place}{}", compared.told());
                conclusions.push(Conclusion { kind, word, text });
            } else if let Some(why) = &variant.not_compared {
                let name = variant.counts.variant.as_ref().map(ToString::to_string).unwrap_or_default();
                let text = format!("{place}{} of {name}: {why}", metric.metric.name);
                conclusions.push(Conclusion { kind: "unknown", word: "can’t tell", text });
            }
        }
    }
    conclusions
}

/// What is to be known beside the conclusions.
pub(super) fn page_notes(source: &Source<'_>) -> Vec<String> {
    let told: Vec<String> = source.analysis.metrics.iter().flat_map(MetricAnalysis::sentences).collect();
    let others = notes(source.analysis).into_iter().filter(|note| !told.contains(note));
    // What failed stands at the top.
    let held = |note: &String| {
        source.analysis.checks.iter().any(|check| check.holds == Some(true) && check.to_string() == *note)
    };
    let others = others.filter(|note| Some(note) != source.analysis.incomplete.as_ref() && !held(note));
    source.report.repeats.iter().map(repeats_note).chain(others).collect()
}

/// What is repeated, and on which machines.
fn repeats_note(Repeats { run, differences }: &Repeats) -> String {
    match &differences[..] {
        [] => format!("This repeats run {run}, on machines like those of that run."),
        some => {
            format!("This repeats run {run}. Its machines beside those of that run: {}.", some.join("; "))
        }
    }
}

pub(super) fn counts(source: &Source<'_>) -> Option<DataTable> {
    let compare = source.analysis.compare.as_ref()?;
    let rows = source.analysis.counts.iter().map(|counts| {
        let name = counts.variant.as_ref().map(ToString::to_string).unwrap_or_default();
        let numbers = [counts.planned, counts.ok, counts.failed, counts.voided, counts.voided_with_round];
        std::iter::once(name).chain(numbers.map(|number| number.to_string())).collect()
    });
    Some(DataTable {
        caption: format!("Trials by {}", compare.by),
        heads: [&compare.by, "planned", "succeeded", "failed", "void", "void with round"]
            .map(str::to_owned)
            .into(),
        rows: rows.collect(),
        more: 0,
    })
}
