//! Runs side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::ResultsError;
use super::built::read_report;
use super::markdown::line;
use super::results_csv::row;
use crate::condition::{Facts, OTHERS, differences, unlike};
use crate::statistics::{Summary, signed, significant};
use crate::text::quoted;
use crate::trial::Parameters;
use crate::{MachineReport, Report, RunId};

/// How many differences between machines are told.
const DIFFERENCES: usize = 10;

/// What several runs measured, each by itself.
///
/// Nothing that happened between the runs is taken out: where one must know whether variants differ, they belong into
/// one run, in rounds.
#[derive(Clone, Debug)]
pub struct SideBySide {
    runs: Vec<Side>,
    /// In the order of the first run that has them.
    rows: Vec<Key>,
}

#[derive(Clone, Debug)]
struct Side {
    directory: PathBuf,
    run: Option<RunId>,
    started: Option<SystemTime>,
    measured: BTreeMap<Key, Summary>,
    /// What the machines of each group are, every kind of them once.
    groups: BTreeMap<String, Vec<Facts>>,
}

/// A metric and what the parameters are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    step: String,
    metric: String,
    unit: String,
    /// Each by itself: values may look like other names.
    parameters: BTreeMap<String, String>,
}

impl SideBySide {
    /// Reads the results directories of runs, of this or an earlier form. Blocks.
    ///
    /// # Errors
    ///
    /// What can't be read.
    pub fn read(directories: &[impl AsRef<Path>]) -> Result<Self, ResultsError> {
        let mut rows = Vec::new();
        let mut runs = Vec::new();
        for directory in directories {
            let directory = directory.as_ref();
            let (side, keys) = Side::new(directory, &read_report(directory)?);
            rows.extend(keys.into_iter().filter(|key| !rows.contains(key)).collect::<Vec<_>>());
            runs.push(side);
        }
        Ok(Self { runs, rows })
    }

    /// Whether all runs have a metric in common, of the same parameters.
    pub fn is_comparable(&self) -> bool {
        self.rows.iter().any(|key| self.runs.iter().all(|run| run.measured.contains_key(key)))
    }

    /// In what the machines of the runs differ from those of the first, or that this isn't known, a line each; empty if
    /// they are alike.
    pub fn unlike(&self) -> Vec<String> {
        let Some((first, others)) = self.runs.split_first() else { return Vec::new() };
        let mut told = Vec::new();
        for run in &self.runs {
            if run.groups.values().all(Vec::is_empty) {
                told.push(format!("{} doesn't say what its machines were", run.name()));
            }
        }
        for run in others {
            let groups: BTreeSet<&String> = first.groups.keys().chain(run.groups.keys()).collect();
            for group in groups {
                match (first.groups.get(group), run.groups.get(group)) {
                    (Some(ours), Some(theirs)) => {
                        let found = unlike(theirs, ours, OTHERS);
                        told.extend(found.iter().map(|text| format!("{}, {group}: {text}", run.name())));
                    }
                    (None, _) => told.push(format!("{} has machines called {group}", run.name())),
                    (_, None) => told.push(format!("{} has no machines called {group}", run.name())),
                }
            }
        }
        if told.len() > DIFFERENCES {
            let more = told.len() - DIFFERENCES;
            told.truncate(DIFFERENCES);
            told.push(format!("and {more} more"));
        }
        told
    }

    /// A table of Markdown: medians of each run with their intervals, and how far they are from the first run's. Nothing
    /// of it acts on a terminal.
    pub fn markdown(&self) -> String {
        let mut heads = vec!["metric".to_owned(), "parameters".to_owned()];
        for (index, run) in self.runs.iter().enumerate() {
            heads.push(run.name());
            if index > 0 {
                heads.push("change".to_owned());
            }
        }
        let mut text = line(&heads);
        text.push_str(&line(&heads.iter().map(|_| "---".to_owned()).collect::<Vec<_>>()));
        for key in &self.rows {
            let unit = if key.unit.is_empty() { String::new() } else { format!(" ({})", key.unit) };
            let mut cells = vec![format!("{}{unit}", key.metric), key.label(", ")];
            let first = self.runs.first().and_then(|run| run.measured.get(key));
            for (index, run) in self.runs.iter().enumerate() {
                let measured = run.measured.get(key);
                cells.push(measured.map(shown).unwrap_or_default());
                if index > 0 {
                    let ratio = measured.zip(first).map(|(now, first)| now.median / first.median);
                    let ratio = ratio.filter(|ratio| ratio.is_finite() && *ratio > 0.0);
                    cells.push(
                        ratio.map(|ratio| format!("{} %", signed(100.0 * (ratio - 1.0)))).unwrap_or_default(),
                    );
                }
            }
            text.push_str(&line(&cells));
        }
        text
    }

    /// A row for each run, in the order in which they began, with the medians in columns: history as tools that look for
    /// points of change read it, such as Apache Otava. A value that is missing is `nan`.
    pub fn csv(&self) -> String {
        let mut text = String::new();
        let heads = ["time", "run", "directory"].map(str::to_owned);
        row(&mut text, heads.into_iter().chain(self.rows.iter().map(Key::column)));
        let mut runs: Vec<&Side> = self.runs.iter().collect();
        runs.sort_by_key(|run| run.started);
        for run in runs {
            let started = run.started.unwrap_or(SystemTime::UNIX_EPOCH);
            let before = [
                humantime::format_rfc3339_seconds(started).to_string(),
                run.run.as_ref().map(ToString::to_string).unwrap_or_default(),
                run.directory.to_string_lossy().into_owned(),
            ];
            let values = self.rows.iter().map(|key| match run.measured.get(key) {
                Some(summary) => summary.median.to_string(),
                None => "nan".to_owned(),
            });
            row(&mut text, before.into_iter().chain(values));
        }
        text
    }
}

fn shown(summary: &Summary) -> String {
    let median = significant(summary.median);
    match summary.interval {
        Some(interval) => {
            format!("{median} ({} to {})", significant(interval.low), significant(interval.high))
        }
        None => median,
    }
}

impl Key {
    fn label(&self, between: &str) -> String {
        let pair = |(name, value): (&String, &String)| format!("{name}={}", quoted(value));
        self.parameters.iter().map(pair).collect::<Vec<_>>().join(between)
    }

    /// The metric and its parameters, in one word.
    fn column(&self) -> String {
        let parameters = self.label(" ");
        if parameters.is_empty() { self.metric.clone() } else { format!("{}[{parameters}]", self.metric) }
    }
}

impl Side {
    /// What a run measured, and that in its order.
    fn new(directory: &Path, report: &Report) -> (Self, Vec<Key>) {
        let mut measured = BTreeMap::new();
        let mut keys = Vec::new();
        let analysis = report.analysis();
        for metric in &analysis.metrics {
            for combination in &metric.combinations {
                for variant in &combination.variants {
                    let Some(summary) = &variant.summary else { continue };
                    let mut parameters: Parameters = combination.parameters.clone();
                    let by = analysis.compare.as_ref().map(|compare| compare.by.clone());
                    parameters.extend(by.zip(variant.counts.variant.clone()));
                    let key = Key {
                        step: metric.metric.step.clone(),
                        metric: metric.metric.name.clone(),
                        unit: metric.metric.unit.clone().unwrap_or_default(),
                        parameters: parameters
                            .iter()
                            .map(|(name, value)| (name.clone(), value.to_string()))
                            .collect(),
                    };
                    keys.push(key.clone());
                    measured.insert(key, summary.clone());
                }
            }
        }
        let groups = kinds(report.sets().flat_map(|set| &set.machines));
        let (run, started) = (report.run.clone(), report.started);
        (Self { directory: directory.to_owned(), run, started, measured, groups }, keys)
    }

    fn name(&self) -> String {
        self.run.as_ref().map_or_else(|| self.directory.to_string_lossy().into_owned(), ToString::to_string)
    }
}

/// The kinds of machines that each group has: of those that are alike, the first. One of which nothing is known is of no
/// kind.
pub(super) fn kinds<'m>(
    machines: impl Iterator<Item = (&'m String, &'m MachineReport)>,
) -> BTreeMap<String, Vec<Facts>> {
    let mut groups: BTreeMap<String, Vec<Facts>> = BTreeMap::new();
    for (name, machine) in machines {
        let kinds = groups.entry(group_of(name).to_owned()).or_default();
        let is_known = kinds.iter().any(|known| differences(known, &machine.facts).is_empty());
        if !machine.facts.is_empty() && !is_known {
            kinds.push(machine.facts.clone());
        }
    }
    groups
}

/// The group that a machine's name tells.
pub(super) fn group_of(machine: &str) -> &str {
    machine.rsplit_once('-').map_or(machine, |(group, _)| group)
}
