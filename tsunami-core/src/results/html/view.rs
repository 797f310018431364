//! What the page says, as the template has it: texts, numbers as texts, and plots.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::plots::{self, About, Entry, Lane, Phase, Row};
use crate::analysis::label;
use crate::limits::{REPORT_LIMIT, REPORT_LOG_LIMIT, REPORT_TAIL_LIMIT, REPORT_TRACE_LIMIT};
use crate::names::is_experiment_name;
use crate::results::built::Source;
use crate::results::markdown::notes;
use crate::results::results_csv::outcome;
use crate::results::results_json::planned;
use crate::results::side_by_side::group_of;
use crate::results::{files, logs};
use crate::statistics::{Direction, Scale, Verdict, change, significant};
use crate::text::{number, sanitize_bytes, shorten};
use crate::trial::MetricPlan;
use crate::{
    Combination, CommandReport, GroupSize, Leftover, MachineReport, MetricAnalysis, Price, Repeats, Report,
    TrialOutcome, TrialReport, VariantAnalysis,
};

/// How many failures are shown, each with the end of its log.
const FAILURES: usize = 20;

/// How many lines of the end of a log are shown, each so many characters long.
const TAIL_LINES: usize = 20;
const TAIL_LINE: usize = 300;

/// How many of them are shown without being asked for.
const OPEN_TAILS: usize = 2;

/// Up to so many machines are shown one by one; else groups are, and so many of the slowest.
const SINGLE_MACHINES: usize = 100;
const SLOWEST: usize = 10;

/// How many rows a table of trials, machines or events has.
const TABLE_ROWS: usize = 300;

/// How many sets of machines have a timeline.
const TIMELINES: usize = 8;

/// How many machines' traces are shown, and how many points each line has.
const TRACES: usize = 12;
const TRACE_POINTS: usize = 200;

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

#[derive(Serialize)]
struct Failure {
    what: String,
    why: String,
    tail: Vec<String>,
    /// Whether its end is shown at once.
    open: bool,
    link: Option<Link>,
    /// Whose part of the log is shown.
    #[serde(skip)]
    command: Option<CommandReport>,
}

#[derive(Serialize)]
struct Conclusion {
    /// `better`, `worse`, `differs`, `same`, `unknown`.
    kind: &'static str,
    word: &'static str,
    text: String,
}

#[derive(Serialize)]
struct MetricView {
    name: String,
    about: String,
    figures: Vec<Figure>,
}

#[derive(Serialize)]
struct LegendEntry {
    name: String,
    mark: &'static str,
    colour: usize,
}

#[derive(Serialize)]
struct TimelineView {
    title: String,
    path: String,
    figure: Figure,
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

/// A set of machines, the last or an earlier one.
struct Set<'a> {
    set: u32,
    groups: &'a [GroupSize],
    machines: &'a BTreeMap<String, MachineReport>,
    ready: Option<Duration>,
    teardown: Option<Duration>,
    finished: Option<Duration>,
    leftovers: &'a [Leftover],
    error: Option<&'a str>,
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
        let sets = sets(report);
        let mut plots = Plots { next: 0, room: room / 10 * 6, left_out: 0 };
        let (failures, more_failures) = failures(source, &sets);
        let names: Vec<String> = analysis
            .counts
            .iter()
            .filter_map(|counts| counts.variant.as_ref().map(ToString::to_string))
            .collect();
        let legend = names.iter().enumerate().map(|(index, name)| {
            let (mark, colour) = plots::mark(index);
            LegendEntry { name: name.clone(), mark, colour }
        });
        let legend = legend.collect();
        // Where there isn't room for all, what sums up comes first.
        let timelines = timelines(report, &sets, &mut plots);
        let mut metrics: Vec<MetricView> = analysis
            .metrics
            .iter()
            .take(METRICS)
            .map(|metric| metric_view(metric, source, &mut plots))
            .collect();
        let traces = traces(directory, &mut plots);
        for (view, metric) in metrics.iter_mut().zip(&analysis.metrics) {
            let each = metric.combinations.iter();
            view.figures.extend(each.filter_map(|one| in_order(metric, one, &names, &mut plots)));
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
            outcome: said_outcome(report, &run_json),
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

fn sets(report: &Report) -> Vec<Set<'_>> {
    let earlier = report.earlier_sets.iter().map(|set| Set {
        set: set.set,
        groups: &set.groups,
        machines: &set.machines,
        ready: set.ready,
        teardown: set.teardown,
        finished: set.finished,
        leftovers: &set.leftovers,
        error: set.error.as_deref(),
    });
    let last = Set {
        set: report.set,
        groups: &report.groups,
        machines: &report.machines,
        ready: report.ready,
        teardown: report.teardown,
        finished: report.finished,
        leftovers: &report.leftovers,
        error: report.error.as_deref(),
    };
    earlier.chain([last]).collect()
}

fn said_outcome(report: &Report, run: &RunJson) -> String {
    match (report.ok, run.outcome.as_str()) {
        (_, outcome) if !outcome.is_empty() => outcome.to_owned(),
        (Some(true), _) => "success".to_owned(),
        (Some(false), _) => "failed".to_owned(),
        (None, _) => "its end was not recorded".to_owned(),
    }
}

fn facts(report: &Report, run: &RunJson, metrics: usize) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if !run.provider.is_empty() {
        facts.push(("Provider", run.provider.clone()));
    }
    let machines: usize = sets(report).iter().map(|set| set.machines.len()).sum();
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
    let ends =
        sets(report).iter().map(|set| set.finished.or(set.teardown)).collect::<Option<Vec<Duration>>>();
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
        seconds => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
    }
}

/// What failed, the whole before its parts, and how many more there are.
fn failures(source: &Source<'_>, sets: &[Set<'_>]) -> (Vec<Failure>, usize) {
    let Source { directory, report, analysis } = source;
    let mut failures = Vec::new();
    for set in sets {
        failures.extend(
            set.leftovers.iter().map(|leftover| plain("May remain".to_owned(), &leftover.to_string())),
        );
    }
    for set in sets {
        let what = if sets.len() > 1 { format!("The run of set {}", set.set) } else { "The run".to_owned() };
        failures.extend(set.error.map(|error| plain(what, error)));
    }
    for check in analysis.checks.iter().filter(|check| check.holds == Some(true)) {
        failures.push(plain("fail_if".to_owned(), &check.to_string()));
    }
    // The run mostly says so itself.
    let why = report.swept.as_ref().and_then(|swept| swept.why.as_deref());
    let is_told =
        sets.iter().filter_map(|set| set.error).any(|error| why.is_some_and(|why| error.contains(why)));
    let incomplete = analysis.incomplete.iter().filter(|_| !is_told);
    failures.extend(incomplete.map(|why| plain("Incomplete".to_owned(), why)));
    for set in sets {
        for (name, machine) in set.machines {
            failures.extend(machine.error.iter().map(|error| plain(name.clone(), error)));
        }
    }
    failures.extend(failed_trials(report));
    failures.extend(failed_commands(report));
    // Only what is shown is read.
    let mut tails = 0;
    for failure in failures.iter_mut().take(FAILURES) {
        let Some((command, log)) = failure.command.as_ref().zip(failure.link.as_ref()) else { continue };
        match tail(&directory.join(&log.text), command) {
            Ok(tail) => {
                failure.open = !tail.is_empty() && tails < OPEN_TAILS;
                tails += usize::from(!tail.is_empty());
                failure.tail = tail;
            }
            Err(_) => failure.link = None,
        }
    }
    let more = failures.len().saturating_sub(FAILURES);
    failures.truncate(FAILURES);
    (failures, more)
}

/// What failed without a log of its own.
fn plain(what: String, why: &str) -> Failure {
    Failure { what, why: why.to_owned(), tail: Vec::new(), open: false, link: None, command: None }
}

/// The trials that failed, together those that failed in the same words.
fn failed_trials(report: &Report) -> Vec<Failure> {
    let planned = planned(report.sweep.as_ref());
    let mut causes: Vec<(&str, Vec<String>)> = Vec::new();
    for trial in report.trials.iter().filter(|trial| trial.outcome() == TrialOutcome::Failed) {
        let why = trial.error.as_deref().unwrap_or("a step failed");
        let parameters = planned.get(trial.planned_name()).map(|plan| label(&plan.parameters));
        let name = match parameters.filter(|parameters| !parameters.is_empty()) {
            Some(parameters) => format!("{} ({parameters})", trial.name),
            None => trial.name.clone(),
        };
        match causes.iter_mut().find(|(known, _)| *known == why) {
            Some((_, names)) => names.push(name),
            None => causes.push((why, vec![name])),
        }
    }
    let failures = causes.into_iter().map(|(why, names)| {
        let what = if names.len() == 1 { "Trial" } else { "Trials" };
        let shown = names.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
        let more = names.len().saturating_sub(10);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let what = format!("{what} {shown}{more}");
        plain(what, why)
    });
    failures.collect()
}

/// The commands that failed, together those that are the same and failed alike, with the log of the last of them.
fn failed_commands(report: &Report) -> Vec<Failure> {
    let mut causes: Vec<(&CommandReport, String, usize)> = Vec::new();
    for command in report.commands.iter().filter(|command| !command.cancelled) {
        let why = match (&command.exit, &command.error) {
            (_, Some(error)) => error.clone(),
            (Some(exit), None) if !exit.success() => exit.to_string(),
            _ => continue,
        };
        let same = |known: &CommandReport| {
            (&known.machine, &known.stage, &known.command)
                == (&command.machine, &command.stage, &command.command)
        };
        match causes.iter_mut().find(|(known, of, _)| same(known) && *of == why) {
            Some((last, _, count)) => (*last, *count) = (command, *count + 1),
            None => causes.push((command, why, 1)),
        }
    }
    let failures = causes.into_iter().map(|(command, why, count)| {
        let CommandReport { machine, stage, .. } = command;
        let log = format!("logs/{machine}/{stage}.log");
        let has_log = is_experiment_name(machine) && is_experiment_name(stage);
        let what = format!("{stage} on {machine}: {}", shorten(&command.command, 120));
        let why = if count > 1 {
            format!("{why}, {count} times")
        } else {
            format!("{why} after {}", span(command.took))
        };
        Failure { link: has_log.then(|| link(&log)), command: Some(command.clone()), ..plain(what, &why) }
    });
    failures.collect()
}

/// The last lines of what a command wrote to its stage's log, which other commands write to before and after it; none
/// where its end isn't found in what is read of the log.
fn tail(path: &Path, command: &CommandReport) -> io::Result<Vec<String>> {
    let mut file = files::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(REPORT_LOG_LIMIT)))?;
    let mut bytes = Vec::new();
    file.take(REPORT_LOG_LIMIT).read_to_end(&mut bytes)?;
    let end = logs::ending(command.exit.as_ref(), command.error.as_deref(), command.took);
    let Some(at) = last_lines(&bytes, end.as_bytes()) else { return Ok(Vec::new()) };
    let start = last_lines(&bytes[..at], logs::beginning(&command.command).as_bytes()).unwrap_or_default();
    let own = &bytes[start..at + end.len()];
    let own = &own[own.len().saturating_sub(REPORT_TAIL_LIMIT)..];
    let lines: Vec<&[u8]> = own.trim_ascii_end().split(|byte| *byte == b'\n').collect();
    let shown = lines.iter().skip(lines.len().saturating_sub(TAIL_LINES));
    Ok(shown.map(|line| shorten(&sanitize_bytes(line), TAIL_LINE).into_owned()).collect())
}

/// Where whole lines stand for the last time.
fn last_lines(bytes: &[u8], lines: &[u8]) -> Option<usize> {
    let is_start = |at: &usize| *at == 0 || bytes[at - 1] == b'\n';
    (0..(bytes.len() + 1).saturating_sub(lines.len()))
        .rev()
        .filter(is_start)
        .find(|at| bytes[*at..].starts_with(lines))
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

/// What the comparisons of a metric say.
fn conclusions(metric: &MetricAnalysis) -> Vec<Conclusion> {
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
fn page_notes(source: &Source<'_>) -> Vec<String> {
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
        some => format!(
            "This repeats run {run}, on machines that differ from those of that run: {}.",
            some.join("; ")
        ),
    }
}

fn counts(source: &Source<'_>) -> Option<DataTable> {
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

fn metric_view(metric: &MetricAnalysis, source: &Source<'_>, plots: &mut Plots) -> MetricView {
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
fn forest(metric: &MetricAnalysis, compare: &crate::trial::Compare, plots: &mut Plots) -> Option<Figure> {
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
fn in_order(
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

/// What ran where, and for how much: a row for each group of each set.
fn places(sets: &[Set<'_>]) -> DataTable {
    let mut rows = Vec::new();
    let several = sets.len() > 1;
    for set in sets {
        let end = set.finished.or(set.teardown);
        for group in set.groups {
            let machines: Vec<&MachineReport> = set
                .machines
                .iter()
                .filter(|(name, _)| group_of(name) == group.name)
                .map(|(_, machine)| machine)
                .collect();
            let mut what: Vec<&str> = machines.iter().map(|machine| machine.description.as_str()).collect();
            what.sort_unstable();
            what.dedup();
            let shown = what.iter().take(3).copied().collect::<Vec<_>>().join("; ");
            let what = if what.len() > 3 { format!("{shown}; and {} more", what.len() - 3) } else { shown };
            let hourly: Option<f64> = machines.iter().map(|machine| hourly(machine.price)).sum();
            let cost = machines.iter().map(|machine| {
                let time = end?.saturating_sub(machine.running.unwrap_or_default());
                machine.price.dollars(1, time)
            });
            let cost: Option<f64> = cost.sum();
            let dollars = |sum: Option<f64>, digits: usize| match sum {
                Some(0.0) => "nothing".to_owned(),
                Some(sum) => format!("${sum:.digits$}"),
                None => "not known".to_owned(),
            };
            let mut cells = vec![group.name.clone(), group.count.to_string(), what];
            cells.extend([dollars(hourly, 4), dollars(cost, 2)]);
            if several {
                cells.insert(0, set.set.to_string());
            }
            rows.push(cells);
        }
    }
    let mut heads = ["group", "machines", "what and where", "an hour", "cost"].map(str::to_owned).to_vec();
    if several {
        heads.insert(0, "set".to_owned());
    }
    let more = rows.len().saturating_sub(TABLE_ROWS);
    rows.truncate(TABLE_ROWS);
    DataTable { caption: "Groups of machines".to_owned(), heads, rows, more }
}

fn hourly(price: Price) -> Option<f64> {
    price.dollars(1, Duration::from_secs(3600))
}

fn timelines(report: &Report, sets: &[Set<'_>], plots: &mut Plots) -> Vec<TimelineView> {
    let shown = sets.iter().filter(|set| !set.machines.is_empty()).take(TIMELINES);
    shown.filter_map(|set| timeline(report, set, sets.len() > 1, plots)).collect()
}

fn timeline(report: &Report, set: &Set<'_>, several: bool, plots: &mut Plots) -> Option<TimelineView> {
    let trials: Vec<&TrialReport> = report.trials.iter().filter(|trial| trial.set == set.set).collect();
    let last = |trial: &&&TrialReport| trial.started + trial.took.unwrap_or_default();
    let trials_end = trials.iter().map(|trial| last(&trial)).max();
    let times = set.machines.values().flat_map(|machine| [machine.running, machine.connected, machine.ready]);
    let end = set.finished.or(set.teardown).into_iter().chain(trials_end).chain(times.flatten()).max()?;
    let slowest = set
        .machines
        .iter()
        .filter(|(_, machine)| machine.ready.is_some())
        .max_by_key(|(_, machine)| machine.ready);
    let slowest = slowest.map(|(name, _)| name.as_str());
    let lane = |label: String, machine: &MachineReport, critical: bool| {
        let mut stretches = Vec::new();
        let mut since = Duration::ZERO;
        let phases = [
            (machine.running, Phase::Launch),
            (machine.connected, Phase::Connect),
            (machine.ready, Phase::Setup),
        ];
        for (until, phase) in phases {
            if let Some(until) = until {
                stretches.push((since.as_secs_f64(), until.as_secs_f64(), phase));
                since = until;
            }
        }
        if let Some(gone) = machine.gone {
            stretches.push((gone.as_secs_f64(), end.as_secs_f64(), Phase::Failed));
        }
        Lane { label, stretches, critical }
    };
    let mut lanes = Vec::new();
    if set.machines.len() <= SINGLE_MACHINES {
        for (name, machine) in set.machines {
            lanes.push(lane(name.clone(), machine, Some(name.as_str()) == slowest));
        }
    } else {
        for group in set.groups {
            let members = set.machines.iter().filter(|(name, _)| group_of(name) == group.name);
            let members: Vec<&MachineReport> = members.map(|(_, machine)| machine).collect();
            let middle = |of: fn(&MachineReport) -> Option<Duration>| {
                let mut times: Vec<Duration> = members.iter().filter_map(|machine| of(machine)).collect();
                times.sort_unstable();
                times.get(times.len() / 2).copied()
            };
            let typical = MachineReport {
                running: middle(|machine| machine.running),
                connected: middle(|machine| machine.connected),
                ready: middle(|machine| machine.ready),
                ..MachineReport::default()
            };
            lanes.push(lane(format!("{} × {}", group.name, members.len()), &typical, false));
        }
        let mut slow: Vec<_> = set.machines.iter().collect();
        slow.sort_by_key(|(_, machine)| std::cmp::Reverse(machine.ready));
        for (name, machine) in slow.into_iter().take(SLOWEST) {
            lanes.push(lane(name.clone(), machine, Some(name.as_str()) == slowest));
        }
    }
    let seconds = |time: Duration| time.as_secs_f64();
    if !trials.is_empty() {
        let stretch = |trial: &&TrialReport| {
            let phase = match trial.outcome() {
                TrialOutcome::Ok => Phase::Done,
                TrialOutcome::Failed => Phase::Failed,
                TrialOutcome::Void | TrialOutcome::Unfinished => Phase::Void,
            };
            let until = trial.took.map_or(end, |took| trial.started + took);
            (seconds(trial.started), seconds(until), phase)
        };
        lanes.push(Lane {
            label: "trials".to_owned(),
            stretches: trials.iter().map(stretch).collect(),
            critical: true,
        });
        let steps = trials.iter().flat_map(|trial| &trial.steps);
        // More than this is one block on any screen.
        let steps = steps.take(400).map(|step| {
            let until = step.took.map_or(step.started, |took| step.started + took);
            (
                seconds(step.started),
                seconds(until),
                if step.ok == Some(false) { Phase::Failed } else { Phase::Step },
            )
        });
        lanes.push(Lane { label: "steps".to_owned(), stretches: steps.collect(), critical: false });
    }
    if let (Some(from), Some(until)) = (set.teardown, set.finished) {
        let stretches = vec![(seconds(from), seconds(until), Phase::Teardown)];
        lanes.push(Lane { label: "teardown".to_owned(), stretches, critical: true });
    }
    let mut path = Vec::new();
    if let Some((name, machine)) = slowest.and_then(|name| Some((name, set.machines.get(name)?))) {
        let phases =
            [("launch", machine.running), ("boot and connect", machine.connected), ("set-up", machine.ready)];
        let mut since = Duration::ZERO;
        for (what, until) in phases {
            if let Some(until) = until {
                path.push(format!("{what} {}", span(until.saturating_sub(since))));
                since = until;
            }
        }
        path.push(format!("(of {name}, the last to be ready)"));
    }
    let ready = set.ready.or_else(|| trials.first().map(|trial| trial.started));
    if let (Some(ready), Some(until)) = (ready, set.teardown.or(trials_end)) {
        path.push(format!("trials {}", span(until.saturating_sub(ready))));
    }
    if let (Some(from), Some(until)) = (set.teardown, set.finished) {
        path.push(format!("teardown {}", span(until.saturating_sub(from))));
    }
    let title = if several { format!("Set {}", set.set) } else { "Timeline".to_owned() };
    let description =
        "A row for each machine: launch, boot and connect, set-up; then trials, steps and teardown.";
    let table = times_table(set);
    let figure = plots.figure(
        match set.machines.len() <= SINGLE_MACHINES {
            true => format!("{title}: when each machine was ready, and when trials ran"),
            false => format!("{title}: the middle of each group, the slowest machines, and when trials ran"),
        },
        description,
        Some(table),
        |about| plots::timeline(about, &lanes, seconds(end)),
    )?;
    Some(TimelineView { title, path: path.join(" → ").replace(" → (", " ("), figure })
}

fn times_table(set: &Set<'_>) -> DataTable {
    let mut slow: Vec<_> = set.machines.iter().collect();
    if set.machines.len() > SINGLE_MACHINES {
        slow.sort_by_key(|(_, machine)| std::cmp::Reverse(machine.ready));
    }
    let shown = if set.machines.len() > SINGLE_MACHINES { SLOWEST } else { SINGLE_MACHINES };
    let at = |time: Option<Duration>| time.map(span).unwrap_or_default();
    let rows = slow.iter().take(shown).map(|(name, machine)| {
        vec![(*name).clone(), at(machine.running), at(machine.connected), at(machine.ready), at(machine.gone)]
    });
    DataTable {
        caption: "When each machine ran, was connected, was ready and was gone".to_owned(),
        heads: ["machine", "ran", "connected", "ready", "gone"].map(str::to_owned).into(),
        rows: rows.collect(),
        more: set.machines.len().saturating_sub(shown),
    }
}

/// The machines that are to be named: all, or if they are many those of which there is something to say.
fn machines(sets: &[Set<'_>], limit: usize) -> Option<DataTable> {
    let total: usize = sets.iter().map(|set| set.machines.len()).sum();
    let mut rows = Vec::new();
    for set in sets {
        for (name, machine) in set.machines {
            let said = remarks(machine);
            if total > SINGLE_MACHINES && said.is_empty() {
                continue;
            }
            let canary = canaries(machine);
            let id = machine.id.as_ref().map(ToString::to_string).unwrap_or_default();
            rows.push(vec![
                name.clone(),
                if set.set == 0 { String::new() } else { set.set.to_string() },
                id,
                machine.address.clone().unwrap_or_default(),
                machine.description.clone(),
                canary,
                said,
            ]);
        }
    }
    let more = rows.len().saturating_sub(limit);
    rows.truncate(limit);
    let caption = match total > SINGLE_MACHINES {
        true => format!("Machines with something to say, of {total}"),
        false => "Machines".to_owned(),
    };
    let mut heads =
        ["machine", "set", "id", "address", "what", "canary", "remarks"].map(str::to_owned).to_vec();
    // What nothing has needs no column.
    for column in (1..heads.len()).rev() {
        if rows.iter().all(|row| row[column].is_empty()) {
            heads.remove(column);
            rows.iter_mut().for_each(|row| drop(row.remove(column)));
        }
    }
    (!rows.is_empty()).then_some(DataTable { caption, heads, rows, more })
}

/// What there is to say of a machine.
fn remarks(machine: &MachineReport) -> String {
    let mut said = machine.differences.clone();
    said.extend(machine.interrupted.iter().map(|why| format!("interrupted: {why}")));
    said.extend(machine.replaced.iter().map(|replaced| format!("took the place of {}", replaced.id)));
    said.extend(machine.gone.map(|_| "gone before the teardown".to_owned()));
    said.join("; ")
}

/// What a machine's canaries did, the first and the last time.
fn canaries(machine: &MachineReport) -> String {
    let Some((first, last)) = machine.canaries.first().zip(machine.canaries.last()) else {
        return String::new();
    };
    let each = first.iter().take(8).map(|(name, value)| match last.get(name) {
        Some(last) if machine.canaries.len() > 1 => {
            format!("{name} {} → {}", significant(*value), significant(*last))
        }
        _ => format!("{name} {}", significant(*value)),
    });
    each.collect::<Vec<_>>().join(", ")
}

/// What is known of the machines of each group: what they have in common, and what not.
fn hardware(sets: &[Set<'_>]) -> Vec<DataTable> {
    let mut groups: BTreeMap<&str, BTreeMap<&str, BTreeMap<&str, usize>>> = BTreeMap::new();
    for (name, machine) in sets.iter().flat_map(|set| set.machines) {
        for (fact, value) in &machine.facts {
            let values = groups.entry(group_of(name)).or_default().entry(fact).or_default();
            *values.entry(value).or_default() += 1;
        }
    }
    let tables = groups.into_iter().take(20).map(|(group, facts)| {
        let rows = facts.into_iter().take(60).map(|(fact, values)| {
            let alone = values.len() == 1;
            let mut values: Vec<_> = values.into_iter().collect();
            values.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let shown = values.iter().take(4).map(|(value, count)| match alone {
                true => shorten(value, 200).into_owned(),
                false => format!("{} ({count})", shorten(value, 80)),
            });
            let mut shown = shown.collect::<Vec<_>>().join("; ");
            if values.len() > 4 {
                shown.push_str(&format!("; and {} more", values.len() - 4));
            }
            vec![fact.to_owned(), shown]
        });
        DataTable {
            caption: format!("Machines of {group}"),
            heads: ["fact", "value (how many machines, where they differ)"].map(str::to_owned).into(),
            rows: rows.collect(),
            more: 0,
        }
    });
    tables.collect()
}

/// What happened beside the experiment: void trials, disturbances, and what machines accounted for.
fn conditions(report: &Report, sets: &[Set<'_>], limit: usize) -> Vec<DataTable> {
    let mut tables = Vec::new();
    let odd =
        sets.iter().flat_map(|set| set.machines).map(|(name, machine)| vec![name.clone(), remarks(machine)]);
    let mut odd: Vec<Vec<String>> = odd.filter(|row| !row[1].is_empty()).collect();
    if !odd.is_empty() {
        let more = odd.len().saturating_sub(limit);
        odd.truncate(limit);
        tables.push(DataTable {
            caption: "Machines that are to be known of".to_owned(),
            heads: ["machine", "remarks"].map(str::to_owned).into(),
            rows: odd,
            more,
        });
    }
    let mut void: Vec<Vec<String>> = report
        .trials
        .iter()
        .filter_map(|trial| {
            let voided = trial.voided.as_ref()?;
            let reason = serde_json::to_value(voided.reason).ok()?;
            let machines = voided.machines.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
            Some(vec![
                trial.name.clone(),
                voided.trial.clone(),
                reason.as_str()?.to_owned(),
                machines,
                voided.text.clone(),
            ])
        })
        .collect();
    if !void.is_empty() {
        let more = void.len().saturating_sub(limit);
        void.truncate(limit);
        tables.push(DataTable {
            caption: "Trials that don’t count".to_owned(),
            heads: ["attempt", "of trial", "cause", "machines", "what happened"].map(str::to_owned).into(),
            rows: void,
            more,
        });
    }
    let mut disturbed = Vec::new();
    for trial in &report.trials {
        for account in &trial.accounts {
            let mut said: Vec<String> = account.disturbed.iter().cloned().collect();
            said.extend(account.kernel_messages.iter().take(3).cloned());
            let kills = account.oom_kills.filter(|kills| *kills > 0);
            said.extend(kills.map(|kills| format!("killed for want of memory: {kills}")));
            if !said.is_empty() {
                disturbed.push(vec![trial.name.clone(), account.machine.clone(), said.join("; ")]);
            }
        }
    }
    if !disturbed.is_empty() {
        let more = disturbed.len().saturating_sub(limit);
        disturbed.truncate(limit);
        tables.push(DataTable {
            caption: "Disturbances".to_owned(),
            heads: ["trial", "machine", "what was seen"].map(str::to_owned).into(),
            rows: disturbed,
            more,
        });
    }
    tables.extend(accounts(report, limit));
    tables
}

/// What machines accounted for over all trials.
fn accounts(report: &Report, limit: usize) -> Option<DataTable> {
    let mut sums: BTreeMap<&str, [Option<f64>; 8]> = BTreeMap::new();
    for account in report.trials.iter().flat_map(|trial| &trial.accounts) {
        let own = [
            Some(account.seconds),
            account.cpu,
            account.own_cpu,
            account.steal,
            account.cpu_pressure,
            account.memory_pressure,
            account.io_pressure,
            account.throttled,
        ];
        let known = sums.entry(&account.machine).or_default();
        for (sum, value) in known.iter_mut().zip(own) {
            *sum = value.map(|value| sum.unwrap_or_default() + value).or(*sum);
        }
    }
    let heads = [
        "machine",
        "watched",
        "CPU",
        "own CPU",
        "stolen",
        "waited for CPU",
        "for memory",
        "for disks",
        "throttled",
    ];
    let rows = sums.iter().take(limit).map(|(machine, sums)| {
        let shown = sums.map(|sum| sum.map(|sum| format!("{sum:.1}")).unwrap_or_default());
        std::iter::once((*machine).to_owned()).chain(shown).collect()
    });
    let rows: Vec<Vec<String>> = rows.collect();
    (!rows.is_empty()).then(|| DataTable {
        caption: "Seconds that machines accounted for, over all trials".to_owned(),
        heads: heads.map(str::to_owned).into(),
        more: sums.len() - rows.len(),
        rows,
    })
}

/// What machines were busy with, once a second, thinned.
fn traces(directory: &Path, plots: &mut Plots) -> Vec<Figure> {
    let mut names: Vec<String> = fs::read_dir(directory.join("traces"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok()?.strip_suffix(".csv").map(str::to_owned))
        .collect();
    names.sort_unstable();
    let mut figures = Vec::new();
    for name in names.into_iter().take(TRACES) {
        let Some((columns, rows)) = trace(&directory.join("traces").join(format!("{name}.csv"))) else {
            continue;
        };
        // The processor, or what comes first.
        let busy = columns.iter().position(|column| column.contains("cpu")).unwrap_or(1);
        let Some(column) = columns.get(busy) else { continue };
        let points = thinned(&rows, busy);
        if points.len() < 2 {
            continue;
        }
        let caption = format!("{name}: {column}");
        let description = "What the machine was busy with over the run, thinned; its file has all.";
        let axes = ("seconds", column.as_str());
        figures
            .extend(plots.figure(caption, description, None, |about| plots::lines(about, &[points], axes)));
    }
    figures
}

/// The columns of a trace and its rows.
fn trace(path: &Path) -> Option<(Vec<String>, Vec<Vec<f64>>)> {
    let mut text = String::new();
    files::open(path).ok()?.take(REPORT_TRACE_LIMIT).read_to_string(&mut text).ok()?;
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let columns: Vec<String> = lines.next()?.split(',').map(|name| shorten(name, 40).into_owned()).collect();
    let row =
        |line: &str| line.split(',').map(|field| field.parse().unwrap_or(f64::NAN)).collect::<Vec<f64>>();
    Some((columns, lines.map(row).collect()))
}

/// The means of stretches of a column, by the first column.
fn thinned(rows: &[Vec<f64>], column: usize) -> Vec<(f64, f64)> {
    let points: Vec<(f64, f64)> = rows
        .iter()
        .filter_map(|row| Some((*row.first()?, *row.get(column)?)))
        .filter(|(x, y)| x.is_finite() && y.is_finite())
        .collect();
    let start = points.first().map_or(0.0, |(x, _)| *x);
    let stretch = points.len().div_ceil(TRACE_POINTS).max(1);
    let mean = |points: &[(f64, f64)]| {
        let count = points.len() as f64;
        let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / count - start, sum.1 / count)
    };
    points.chunks(stretch).map(mean).collect()
}

/// All trials, as far as they fit.
fn trials(source: &Source<'_>, limit: usize) -> Option<DataTable> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exit;

    #[test]
    fn a_failed_command_shows_its_own_part_of_the_log() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("load.log");
        let log = "$ load 1\nfine\n# status 0 after 1.0 s\n$ load 1\nno $ load 1\n# status 2 after 1.5 s\n\
                   $ load 1\nfine again\n# status 0 after 1.5 s\n";
        fs::write(&path, log).unwrap();
        let mut command = CommandReport {
            machine: "client-0".to_owned(),
            id: None,
            stage: "load".to_owned(),
            command_id: 0,
            command: "load 1".to_owned(),
            exit: Some(Exit::Status(2)),
            error: None,
            cancelled: false,
            finished: Duration::ZERO,
            took: Duration::from_millis(1_500),
        };
        assert_eq!(tail(&path, &command).unwrap(), ["$ load 1", "no $ load 1", "# status 2 after 1.5 s"]);
        command.exit = Some(Exit::Status(3));
        assert!(tail(&path, &command).unwrap().is_empty(), "no later success is shown for it");
    }
}
