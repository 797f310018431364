//! Runs side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::built::read_report;
use super::inputs::other_contents;
use super::markdown::line;
use super::results_csv::row;
use super::{Given, INPUTS, ResultsError};
use crate::analysis::NO_RATIO;
use crate::condition::{Facts, OTHERS, differences, unlike};
use crate::statistics::{FEWEST_FOR_MEDIAN, Interval, Summary, Threshold, significant, times};
use crate::text::{quoted, shorten};
use crate::trial::Parameters;
use crate::{Check, MachineReport, Report, RunId};

/// How many differences between machines are told.
const DIFFERENCES: usize = 10;

/// How many characters of a line of a file are shown.
const LINE: usize = 60;

/// The number of the form of [`SideBySide::json`].
const COMPARE_SCHEMA: u32 = 1;

/// What several runs measured, each by itself.
///
/// Nothing that happened between the runs is taken out: where one must know whether variants differ, they belong into
/// one run, in rounds.
#[derive(Clone, Debug)]
pub struct SideBySide {
    runs: Vec<Side>,
    /// In the order of the first run that has them.
    rows: Vec<Key>,
    /// The parameters of each row, as the first run that has it tells them.
    parameters: BTreeMap<Key, Parameters>,
}

#[derive(Clone, Debug)]
struct Side {
    /// What it is called beside the others.
    name: String,
    directory: PathBuf,
    /// The values, by `--set` or as the file has them, and the experiment file, as far as they were kept.
    given: Option<BTreeMap<String, String>>,
    source: Option<Vec<u8>>,
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
        let mut parameters = BTreeMap::new();
        let mut runs = Vec::new();
        for directory in directories {
            let directory = directory.as_ref();
            let (side, keys) = Side::new(directory, &read_report(directory)?);
            for (key, own) in keys {
                parameters.entry(key.clone()).or_insert_with(|| {
                    rows.push(key);
                    own
                });
            }
            runs.push(side);
        }
        name(&mut runs);
        Ok(Self { runs, rows, parameters })
    }

    /// Whether all runs have a metric in common, of the same parameters.
    pub fn is_comparable(&self) -> bool {
        self.rows.iter().any(|key| self.runs.iter().all(|run| run.measured.contains_key(key)))
    }

    /// The runs that have no value of any metric, as those that were killed or brought machines up alone.
    pub fn without_values(&self) -> Vec<&str> {
        self.runs.iter().filter(|run| run.measured.is_empty()).map(|run| run.name.as_str()).collect()
    }

    /// In what the machines of the runs differ from those of the first, or that this isn't known, a line each; empty if
    /// they are alike.
    pub fn unlike(&self) -> Vec<String> {
        let Some((first, others)) = self.runs.split_first() else { return Vec::new() };
        let mut told = Vec::new();
        for run in &self.runs {
            if run.groups.values().all(Vec::is_empty) {
                told.push(format!("{} doesn't say what its machines were", run.name));
            }
        }
        for run in others {
            let groups: BTreeSet<&String> = first.groups.keys().chain(run.groups.keys()).collect();
            for group in groups {
                match (first.groups.get(group), run.groups.get(group)) {
                    (Some(ours), Some(theirs)) => {
                        let found = unlike(theirs, ours, OTHERS);
                        told.extend(found.iter().map(|text| format!("{}, {group}: {text}", run.name)));
                    }
                    (None, _) => told.push(format!("{} has machines called {group}", run.name)),
                    (_, None) => told.push(format!("{} has no machines called {group}", run.name)),
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

    /// In what the runs were given something else than the first, a line each: values, experiment files, what was uploaded
    /// and scripts, and units of what they measured. Blocks.
    pub fn changed(&self) -> Vec<String> {
        let Some((first, others)) = self.runs.split_first() else { return Vec::new() };
        let mut told = Vec::new();
        for run in others {
            if let (Some(ours), Some(theirs)) = (&first.given, &run.given) {
                for name in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
                    let [then, now] = [ours, theirs]
                        .map(|set| set.get(name).map_or("not set".into(), |value| quoted(value)));
                    if then != now {
                        told.push(format!("{}: {name} is {now}, and {then} in {}", run.name, first.name));
                    }
                }
            }
            if let (Some(then), Some(now)) = (&first.source, &run.source)
                && then != now
            {
                let line = first_difference(now, then);
                let file = format!("its experiment file differs from that of {}", first.name);
                told.push(format!("{}: {file}{line}", run.name));
            }
            if first.given.is_some() && run.given.is_some() {
                // What can't be read tells of no difference.
                let [now, then] = [run, first].map(|side| side.directory.join(INPUTS));
                let others = other_contents(&now, &then).unwrap_or_default();
                told.extend(
                    others.iter().map(|what| format!("{}: {what} is not as in {}", run.name, first.name)),
                );
            }
            let mut units = BTreeSet::new();
            for (key, then) in
                run.measured.keys().flat_map(|key| first.measured.keys().map(move |then| (key, then)))
            {
                if key.differs_in_unit(then) {
                    let [now, then] = [key, then].map(Key::in_unit);
                    units.insert(format!(
                        "{}: {} is {now}, and {then} in {}",
                        run.name, key.metric, first.name
                    ));
                }
            }
            told.extend(units);
        }
        told
    }

    /// That a metric's unit is not the same in all runs, in words, if so: no check can judge it.
    pub fn other_unit(&self, metric: &str) -> Option<String> {
        let rows = || self.rows.iter().filter(|key| key.metric == metric);
        let (first, other) = rows()
            .find_map(|key| rows().find(|other| key.differs_in_unit(other)).map(|other| (key, other)))?;
        Some(format!("{metric} is {} in one run, and {} in another", first.in_unit(), other.in_unit()))
    }

    /// What becomes of lines of `fail_if`, for each run beside the first and each combination of parameters: the variant is
    /// the run. The ratio is that of the medians, and its interval has whatever both intervals of medians allow, so that it
    /// is wide. Without these, and where values are not above zero, nothing is decided.
    pub fn checks(&self, fail_if: &[Threshold]) -> Vec<Check> {
        let Some((first, others)) = self.runs.split_first() else { return Vec::new() };
        let mut checks = Vec::new();
        for threshold in fail_if {
            for key in self.rows.iter().filter(|key| key.metric == threshold.metric) {
                for run in others {
                    let judged = ratios(first, run, key)
                        .map(|interval| threshold.judge_interval(interval, threshold.ratio).holds());
                    checks.push(Check {
                        measured: None,
                        fail_if: threshold.to_string(),
                        metric: key.metric.clone(),
                        parameters: self.parameters.get(key).cloned().unwrap_or_default(),
                        variant: run.name.clone().into(),
                        holds: judged.as_ref().ok().copied().flatten(),
                        unjudged: judged.err(),
                    });
                }
            }
        }
        checks
    }

    /// All of it as a value that the guide (`json.md`) describes.
    pub fn json(&self) -> serde_json::Value {
        let runs = self.runs.iter().map(|run| {
            serde_json::json!({
                "name": run.name, "run": run.run, "directory": run.directory.to_string_lossy(),
                "started": run.started.map(|at| humantime::format_rfc3339_seconds(at).to_string()),
            })
        });
        let rows = self.rows.iter().map(|key| {
            let first = self.runs.first().and_then(|run| run.measured.get(key));
            let values = self.runs.iter().map(|run| {
                run.measured.get(key).map(|measured| {
                    serde_json::json!({
                        "median": measured.median,
                        "low": measured.interval.map(|interval| interval.low),
                        "high": measured.interval.map(|interval| interval.high),
                        "ratio": ratio(measured, first),
                    })
                })
            });
            serde_json::json!({
                "step": key.step, "metric": key.metric, "unit": (!key.unit.is_empty()).then_some(&key.unit),
                "parameters": self.parameters.get(key), "values": values.collect::<Vec<_>>(),
            })
        });
        serde_json::json!({
            "schema": COMPARE_SCHEMA, "runs": runs.collect::<Vec<_>>(), "rows": rows.collect::<Vec<_>>(),
            "changed": self.changed(), "unlike": self.unlike(),
        })
    }

    /// A table of Markdown: medians of each run with their intervals, and how far they are from the first run's. Nothing
    /// of it acts on a terminal.
    pub fn markdown(&self) -> String {
        let mut heads = vec!["metric".to_owned(), "parameters".to_owned()];
        for (index, run) in self.runs.iter().enumerate() {
            heads.push(run.name.clone());
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
                    let ratio = measured.and_then(|measured| ratio(measured, first));
                    cells.push(ratio.map(times).unwrap_or_default());
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

/// The ratios that the intervals of both medians allow, or why there are none.
fn ratios(first: &Side, run: &Side, key: &Key) -> Result<Interval, String> {
    let interval = |side: &Side| {
        let summary = side.measured.get(key).ok_or_else(|| format!("{} has no value", side.name))?;
        let too_few = || format!("{} has fewer than {FEWEST_FOR_MEDIAN} trials", side.name);
        summary.interval.ok_or_else(too_few)
    };
    let (first, run) = (interval(first)?, interval(run)?);
    match first.low > 0.0 && run.low > 0.0 {
        true => Ok(Interval { low: run.low / first.high, high: run.high / first.low }),
        false => Err(NO_RATIO.to_owned()),
    }
}

/// How much it is, of what the first run measured.
fn ratio(measured: &Summary, first: Option<&Summary>) -> Option<f64> {
    first.map(|first| measured.median / first.median).filter(|ratio| ratio.is_finite() && *ratio > 0.0)
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
    /// Whether this is the same, measured in another unit.
    fn differs_in_unit(&self, other: &Self) -> bool {
        let of = |key: &Self| (key.step.clone(), key.metric.clone(), key.parameters.clone());
        self.unit != other.unit && of(self) == of(other)
    }

    fn in_unit(&self) -> String {
        match self.unit.as_str() {
            "" => "without a unit".to_owned(),
            unit => format!("in {unit}"),
        }
    }

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
    fn new(directory: &Path, report: &Report) -> (Self, Vec<(Key, Parameters)>) {
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
                    measured.insert(key.clone(), summary.clone());
                    keys.push((key, parameters));
                }
            }
        }
        let groups = kinds(report.sets().flat_map(|set| &set.machines));
        // Of its first set, as everything else calls a run that was resumed, or whose machines depend on a parameter.
        let first = report.sets().next();
        let (run, started) = first.map_or((None, None), |set| (set.run.clone(), set.started));
        let source = std::fs::read(directory.join("experiment.toml")).ok();
        let given = Given::read(directory).ok().map(|given| {
            let mut values = source.as_deref().map(variables).unwrap_or_default();
            values.extend(given.set);
            values
        });
        let name = String::new();
        (Self { name, directory: directory.to_owned(), given, source, run, started, measured, groups }, keys)
    }
}

/// The first line in which two texts differ, to be told behind that they do.
fn first_difference(now: &[u8], then: &[u8]) -> String {
    let [now, then] = [now, then].map(String::from_utf8_lossy);
    let (mut now, mut then) = (now.lines(), then.lines());
    let shown = |line: Option<&str>| match line {
        Some(line) => format!("`{}`", shorten(line.trim(), LINE)),
        None => "nothing".to_owned(),
    };
    for number in 1.. {
        match (now.next(), then.next()) {
            (None, None) => break,
            (now, then) if now == then => {}
            (now, then) => {
                return format!(", first in line {number}: {} and not {}", shown(now), shown(then));
            }
        }
    }
    // Only in how lines end.
    String::new()
}

/// The values that an experiment file has for its variables, as `--set` would give them.
fn variables(source: &[u8]) -> BTreeMap<String, String> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        vars: BTreeMap<String, serde_json::Value>,
    }
    let file = std::str::from_utf8(source).ok().and_then(|text| toml::from_str::<File>(text).ok());
    let vars = file.map(|file| file.vars).unwrap_or_default().into_iter();
    vars.map(|(name, value)| (name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect()
}

/// Calls each run by what the directory of its results is called, whatever link leads there: its own id, unless somebody
/// has given it a name. Runs on the same machines (`--on`) have one id in their events. Where two are called alike, all are
/// called by their directories.
fn name(runs: &mut [Side]) {
    let directory = |run: &Side| run.directory.to_string_lossy().into_owned();
    let last = |run: &Side| {
        let real = run.directory.canonicalize().unwrap_or_else(|_| run.directory.clone());
        real.file_name().map_or_else(|| directory(run), |name| name.to_string_lossy().into_owned())
    };
    let names: [&dyn Fn(&Side) -> String; 2] = [&last, &directory];
    for name in names {
        let all: Vec<String> = runs.iter().map(name).collect();
        let distinct: BTreeSet<&String> = all.iter().collect();
        let is_last_way = distinct.len() == all.len();
        runs.iter_mut().zip(&all).for_each(|(run, name)| run.name.clone_from(name));
        if is_last_way {
            break;
        }
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

/// What sorts machines as people count them: by the group and the number that the name tells.
pub(super) fn by_number(machine: &str) -> (&str, Option<u32>, &str) {
    let group = group_of(machine);
    let number = machine.get(group.len() + 1..).and_then(|number| number.parse().ok());
    (group, number, machine)
}

/// The group that a machine's name tells.
pub(super) fn group_of(machine: &str) -> &str {
    machine.rsplit_once('-').map_or(machine, |(group, _)| group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_called_by_their_directories() {
        let home = tempfile::tempdir().unwrap();
        let side = |directory: PathBuf| Side {
            name: String::new(),
            directory,
            given: None,
            source: None,
            run: Some("20261128-082330-x3pph4b3rq9vs".parse().unwrap()),
            started: None,
            measured: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        let make = |path: &str| {
            let path = home.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let latest = home.path().join("x/latest");
        let (first, second, other) = (make("x/1"), make("x/2"), make("y/1"));
        std::os::unix::fs::symlink("2", &latest).unwrap();
        let called = |directories: [&PathBuf; 2]| {
            let mut sides = directories.map(|directory| side(directory.clone()));
            name(&mut sides);
            sides.map(|side| side.name)
        };
        assert_eq!(called([&first, &second]), ["1", "2"]);
        assert_eq!(called([&first, &latest]), ["1", "2"], "what a link leads to is named");
        assert_eq!(
            called([&first, &other]),
            [&first, &other].map(|path| path.to_string_lossy().into_owned())
        );
    }
}
