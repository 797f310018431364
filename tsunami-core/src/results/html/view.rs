//! What the page says, as the template has it: texts, numbers as texts, and plots.

mod conclusions;
mod conditions;
mod failures;
mod machines;
mod metrics;
mod timelines;
mod traces;
mod trials;

use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::conclusions::{Conclusion, conclusions, counts, page_notes};
use self::conditions::conditions;
use self::failures::{Failure, failures};
use self::machines::{hardware, machines, places};
use self::metrics::{MetricView, in_order, lost_trials, metric_view};
use self::timelines::{PhaseEntry, TimelineView, timelines};
use self::traces::traces;
use self::trials::trials;
use super::plots::{self, About};
use crate::limits::REPORT_LIMIT;
use crate::results::built::Source;
use crate::results::results_json::planned;
use crate::results::{files, goes_on};
use crate::text::number;
use crate::{Report, SetReport, TrialOutcome, TrialReport};

/// Up to so many machines are shown one by one; else groups are.
const SINGLE_MACHINES: usize = 100;

/// How many rows a table of trials, machines or events has.
const TABLE_ROWS: usize = 300;
/// How many conclusions, and how many metrics, are shown.
const CONCLUSIONS: usize = 200;
const METRICS: usize = 40;

/// The page.
#[derive(Serialize)]
pub(super) struct View {
    title: String,
    run: String,
    started: String,
    outcome: String,
    ok: Option<bool>,
    facts: Vec<(&'static str, String)>,
    failures: Vec<Failure>,
    more_failures: usize,
    conclusions: Vec<Conclusion>,
    notes: Vec<String>,
    counts: Option<DataTable>,
    metrics: Vec<MetricView>,
    legend: Vec<LegendEntry>,
    phases: Vec<PhaseEntry>,
    places: DataTable,
    timelines: Vec<TimelineView>,
    machines: Option<DataTable>,
    hardware: Vec<DataTable>,
    conditions: Vec<DataTable>,
    traces: Vec<Figure>,
    trials: Option<DataTable>,
    links: Vec<Link>,
    left_out: Vec<String>,
    version: &'static str,
}

/// A plot and its words.
#[derive(Serialize)]
struct Figure {
    caption: String,
    svg: Option<String>,
    table: Option<DataTable>,
}

/// A table; the first column holds the heads of rows.
#[derive(Clone, Default, Serialize)]
struct DataTable {
    caption: String,
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
    /// How many rows are not shown.
    more: usize,
}

impl DataTable {
    /// What nothing has needs no column.
    fn drop_empty_columns(&mut self) {
        for column in (1..self.heads.len()).rev() {
            if self.rows.iter().all(|row| row[column].is_empty()) {
                self.heads.remove(column);
                self.rows.iter_mut().for_each(|row| drop(row.remove(column)));
            }
        }
    }
}

#[derive(Serialize)]
struct LegendEntry {
    name: String,
    mark: &'static str,
    colour: usize,
}

#[derive(Serialize)]
struct Link {
    text: String,
    href: String,
}

/// What `run.json` has beside the report.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RunJson {
    tsunami: String,
    provider: String,
    outcome: String,
}

/// Numbers plots and keeps what they may take.
struct Plots {
    next: usize,
    room: usize,
    left_out: usize,
}

impl Plots {
    fn figure(
        &mut self,
        caption: String,
        description: &str,
        table: Option<DataTable>,
        draw: impl FnOnce(About<'_>) -> Option<String>,
    ) -> Option<Figure> {
        self.next += 1;
        let svg = draw(About { id: self.next, title: &caption, description });
        let weight =
            |table: &DataTable| table.rows.iter().flatten().map(|cell| cell.len() + 16).sum::<usize>();
        let size = svg.as_ref().map_or(0, String::len) + table.as_ref().map_or(0, weight) + 500;
        if size > self.room {
            self.left_out += 1;
            return None;
        }
        self.room -= size;
        Some(Figure { caption, svg, table })
    }
}

impl View {
    /// The page of a run, whose plots take no more than most of so many bytes.
    pub(super) fn new(source: &Source<'_>, room: usize) -> Self {
        let Source { directory, report, analysis } = source;
        let run_json = run_json(directory);
        let sets: Vec<&SetReport> = report.sets().collect();
        let mut plots = Plots { next: 0, room: room / 10 * 6, left_out: 0 };
        let (failures, more_failures) = failures(source, &sets);
        let names: Vec<String> = analysis
            .counts
            .iter()
            .filter_map(|counts| counts.variant.as_ref().map(ToString::to_string))
            .collect();
        let lost = |outcome| report.trials.iter().any(|trial| trial.outcome() == outcome);
        let is_void = lost(TrialOutcome::Void) || lost(TrialOutcome::Unfinished);
        let lost_marks = [("failed", lost(TrialOutcome::Failed), "diamond"), ("void", is_void, "ring")];
        let legend = names.iter().enumerate().map(|(index, name)| {
            let (mark, colour) = plots::mark(index);
            LegendEntry { name: name.clone(), mark, colour }
        });
        let lost_marks = lost_marks.into_iter().filter(|(_, is_there, _)| *is_there);
        let lost_marks =
            lost_marks.map(|(name, _, mark)| LegendEntry { name: name.to_owned(), mark, colour: 0 });
        let legend = legend.chain(lost_marks).collect();
        // Where there isn't room for all, what sums up comes first.
        let (timelines, phases) = timelines(source, &sets, &mut plots);
        let mut metrics: Vec<MetricView> = analysis
            .metrics
            .iter()
            .take(METRICS)
            .map(|metric| metric_view(metric, source, &mut plots))
            .collect();
        let (traces, lost_trials) = (traces(source, &mut plots), lost_trials(source));
        for (view, metric) in metrics.iter_mut().zip(&analysis.metrics) {
            let each = metric.combinations.iter();
            view.figures.extend(
                each.filter_map(|one| in_order(metric, one, &names, source, &lost_trials, &mut plots)),
            );
        }
        let rows = if room < REPORT_LIMIT { TABLE_ROWS / 6 } else { TABLE_ROWS };
        let conclusions: Vec<Conclusion> = analysis.metrics.iter().flat_map(conclusions).collect();
        let mut left_out = Vec::new();
        let more =
            [(conclusions.len(), CONCLUSIONS, "conclusion"), (analysis.metrics.len(), METRICS, "metric")];
        for (count, limit, what) in more.into_iter().filter(|(count, limit, _)| count > limit) {
            left_out.push(format!("{} left out; results.json has all", number(count - limit, what)));
        }
        if plots.left_out > 0 {
            left_out.push(format!(
                "{} left out to keep this page small; results.csv has all figures",
                number(plots.left_out, "plot")
            ));
        }
        let title = report.experiment.clone().unwrap_or_else(|| "A run".to_owned());
        Self {
            run: report.run.as_ref().map(ToString::to_string).unwrap_or_default(),
            started: report
                .started
                .map(|at| humantime::format_rfc3339_seconds(at).to_string())
                .unwrap_or_default(),
            outcome: said_outcome(directory, report, &run_json),
            ok: report.ok,
            facts: facts(report, &run_json, analysis.metrics.len()),
            failures,
            more_failures,
            conclusions: conclusions.into_iter().take(CONCLUSIONS).collect(),
            notes: page_notes(source),
            counts: counts(source),
            metrics,
            legend,
            places: places(&sets),
            timelines,
            phases,
            machines: machines(&sets, rows),
            hardware: hardware(&sets),
            conditions: conditions(report, &sets, rows),
            traces,
            trials: trials(source, rows),
            links: links(directory),
            left_out,
            version: env!("CARGO_PKG_VERSION"),
            title,
        }
    }
}

fn run_json(directory: &Path) -> RunJson {
    let file = files::open(&directory.join("run.json")).ok();
    file.and_then(|file| serde_json::from_reader(BufReader::new(file)).ok()).unwrap_or_default()
}

fn said_outcome(directory: &Path, report: &Report, run: &RunJson) -> String {
    match (report.ok, run.outcome.as_str()) {
        (_, outcome) if !outcome.is_empty() => outcome.to_owned(),
        (Some(true), _) => "success".to_owned(),
        (Some(false), _) => "failed".to_owned(),
        (None, _) if goes_on(directory) => "it went on when this was made".to_owned(),
        (None, _) => "its end was not recorded".to_owned(),
    }
}

fn facts(report: &Report, run: &RunJson, metrics: usize) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if !run.provider.is_empty() {
        facts.push(("Provider", run.provider.clone()));
    }
    let machines: usize = report.sets().map(|set| set.machines.len()).sum();
    facts.push(("Machines", machines.to_string()));
    let done = report
        .trials
        .iter()
        .filter(|trial| matches!(trial.outcome(), TrialOutcome::Ok | TrialOutcome::Failed));
    let done = done.count();
    let warmups = planned(report.sweep.as_ref());
    let warm = |trial: &&TrialReport| warmups.get(trial.planned_name()).is_some_and(|plan| plan.warmup);
    let warm = report.trials.iter().filter(warm).count();
    facts.push((
        "Trials",
        match (&report.swept, warm) {
            (Some(swept), _) => format!("{} of {}", swept.done, swept.of),
            (None, warm) => done.saturating_sub(warm).to_string(),
        },
    ));
    if metrics > 0 {
        facts.push(("Metrics", metrics.to_string()));
    }
    let ends = report.sets().map(|set| set.finished.or(set.teardown)).collect::<Option<Vec<Duration>>>();
    if let Some(took) = ends.map(|ends| ends.into_iter().sum::<Duration>()) {
        facts.push(("Took", span(took)));
    }
    let cost = report.estimated_cost();
    facts.push((
        "Cost",
        match cost {
            Some(0.0) => "nothing".to_owned(),
            Some(..0.01) => "under $0.01".to_owned(),
            Some(cost) => format!("about ${cost:.2}"),
            None => "not known".to_owned(),
        },
    ));
    if let Some(plan) = report.sweep.as_ref().filter(|plan| plan.trials.len() > 1) {
        facts.push(("Seed", plan.seed.to_string()));
    }
    if !run.tsunami.is_empty() {
        facts.push(("tsunami", run.tsunami.clone()));
    }
    facts
}

/// A time for people.
fn span(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds => crate::text::span(Duration::from_secs(seconds)),
    }
}

fn link(path: &str) -> Link {
    let mut href = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' | b'~' => {
                href.push(char::from(byte))
            }
            byte => href.push_str(&format!("%{byte:02X}")),
        }
    }
    Link { text: path.to_owned(), href }
}

fn links(directory: &Path) -> Vec<Link> {
    let all = [
        "results.csv",
        "results.json",
        "run.json",
        "events.jsonl",
        "experiment.toml",
        "manifest.json",
        "inputs",
        "logs",
        "traces",
        "trials",
    ];
    // The manifest is made after this page.
    let is_there = |name: &&&str| **name == "manifest.json" || directory.join(name).exists();
    all.iter().filter(is_there).map(|name| link(name)).collect()
}
