//! Comparisons of two variants that are the same, measured in real trials: how often they seem to differ.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::time::Duration;

use tsunami_core::condition::Account;
use tsunami_core::statistics::{Placed, Round, Verdict, compare, median, verdict};
use tsunami_core::trial::{Measured, Trials, VoidReason};
use tsunami_core::{Combination, Report, TrialOutcome, TrialReport, read_events};

use crate::simulate::{NOISE, simulations};
use crate::tables::{CONFIDENCE, MARGIN};

/// How many alarms are asked for at most, of how many comparisons. Where each is one with 5 %, there are so few with 98.8 %.
const MOST_ALARMS: (usize, usize) = (17, 200);

/// What a run of such comparisons came to. Times are milliseconds.
#[derive(Debug)]
pub(crate) struct Figures {
    comparisons: usize,
    /// How many rounds each of them has.
    rounds: usize,
    /// Those whose 95 % interval excludes "no difference", each by itself.
    alarms: usize,
    /// Those whose verdict by that interval is that they differ, by more than the margin perhaps.
    differ: usize,
    /// The same in the run's own table, whose intervals hold all together.
    differ_in_table: usize,
    counting: usize,
    counting_disturbed: usize,
    void_disturbed: usize,
    void_otherwise: usize,
    failed: usize,
    /// Of one trial, as a part of its value: the median over comparisons.
    noise: f64,
    /// From one trial's beginning to the next one's, on average.
    between: f64,
    took: f64,
    watched: f64,
    cpu: f64,
    own_cpu: f64,
    measured: f64,
}

/// Reads a run's results, and prints what it came to. Returns whether that is as was asked for: of another number of
/// comparisons nothing is asked.
pub(crate) fn judge(results: &Path) -> io::Result<bool> {
    let mut report = Report::default();
    let events = read_events(BufReader::new(File::open(results.join("events.jsonl"))?))?;
    events.iter().for_each(|event| report.add(event));
    let figures = Figures::of(&report);
    println!("{}", figures.table());
    Ok(figures.held())
}

impl Figures {
    fn of(report: &Report) -> Self {
        let analysis = report.analysis();
        let combinations: Vec<&Combination> =
            analysis.metrics.iter().flat_map(|metric| &metric.combinations).collect();
        let compared: Vec<_> = combinations
            .iter()
            .filter_map(|combination| compare(&rounds(combination), 0, 1, CONFIDENCE).ok())
            .collect();
        let differs = |verdict: &Verdict| matches!(verdict, Verdict::Differs { .. });
        let in_table = combinations.iter().flat_map(|combination| &combination.variants);
        let in_table = in_table.filter_map(|variant| variant.compared.as_ref());
        let noises: Vec<f64> = compared
            .iter()
            .map(|comparison| comparison.standard_error * (comparison.rounds as f64 / 2.0).sqrt())
            .collect();
        let ended = |outcome| report.trials.iter().filter(move |trial| trial.outcome() == outcome).count();
        let counting: Vec<&TrialReport> =
            report.trials.iter().filter(|trial| trial.outcome() == TrialOutcome::Ok).collect();
        let disturbed =
            |trial: &&&TrialReport| trial.accounts.iter().any(|account| account.disturbed.is_some());
        let reasons = || report.trials.iter().filter_map(|trial| Some(trial.voided.as_ref()?.reason));
        let of_accounts = |of: fn(&Account) -> Option<f64>| {
            let seconds = counting.iter().filter_map(|trial| trial.accounts.first().and_then(of));
            median(&seconds.map(|seconds| 1000.0 * seconds).collect::<Vec<f64>>())
        };
        let begun = report.trials.iter().map(|trial| trial.started).min().unwrap_or_default();
        let over = report.trials.iter().filter_map(|trial| Some(trial.started + trial.took?)).max();
        let whole = milliseconds(over.unwrap_or_default().saturating_sub(begun));
        let took: Vec<f64> = counting.iter().filter_map(|trial| trial.took).map(milliseconds).collect();
        let values = counting.iter().flat_map(|trial| &trial.measured).filter_map(|measured| measured.value);
        Self {
            comparisons: combinations.len(),
            rounds: compared.iter().map(|comparison| comparison.rounds).min().unwrap_or_default(),
            alarms: compared.iter().filter(|comparison| !comparison.interval.contains(1.0)).count(),
            differ: compared.iter().filter(|&one| differs(&verdict(one, MARGIN, None))).count(),
            differ_in_table: in_table.filter(|compared| differs(&compared.verdict)).count(),
            counting: counting.len(),
            counting_disturbed: counting.iter().filter(disturbed).count(),
            void_disturbed: reasons().filter(|reason| *reason == VoidReason::Disturbed).count(),
            void_otherwise: reasons().filter(|reason| *reason != VoidReason::Disturbed).count(),
            failed: ended(TrialOutcome::Failed),
            noise: median(&noises),
            between: whole / report.trials.len().max(1) as f64,
            took: median(&took),
            watched: of_accounts(|account| Some(account.seconds)),
            cpu: of_accounts(|account| account.cpu),
            own_cpu: of_accounts(|account| account.own_cpu),
            measured: median(&values.map(|microseconds| microseconds / 1000.0).collect::<Vec<f64>>()),
        }
    }

    /// Whether nothing is missed, so far as something is asked.
    fn held(&self) -> bool {
        let (most, of) = MOST_ALARMS;
        self.comparisons != of || (self.alarms <= most && self.rounds > 1)
    }

    fn table(&self) -> String {
        let (most, of) = MOST_ALARMS;
        let asked = if self.comparisons == of { format!("at most {most}") } else { "nothing is".to_owned() };
        let alarms =
            if self.held() { self.alarms.to_string() } else { format!("**{} missed**", self.alarms) };
        let rows = [
            ("comparisons", self.comparisons.to_string()),
            ("rounds of each", self.rounds.to_string()),
            ("95 % intervals that exclude \"no difference\"", format!("{alarms} (asked: {asked})")),
            ("verdicts by these intervals: \"differ\"", self.differ.to_string()),
            (
                "verdicts of the run's own table, whose intervals hold together: \"differ\"",
                self.differ_in_table.to_string(),
            ),
            (
                "trials that count, of these disturbed",
                format!("{}, {}", self.counting, self.counting_disturbed),
            ),
            (
                "void for being disturbed, for another reason",
                format!("{}, {}", self.void_disturbed, self.void_otherwise),
            ),
            ("failed", self.failed.to_string()),
            ("noise of a trial", format!("{:.1} %", 100.0 * self.noise)),
            ("from a trial's beginning to the next one's, on average", format!("{:.0} ms", self.between)),
            ("a trial; what it measures (medians)", format!("{:.0} ms; {:.1} ms", self.took, self.measured)),
            (
                "watched; processors meanwhile; of that the run's (medians)",
                format!("{:.0} ms; {:.0} ms; {:.0} ms", self.watched, self.cpu, self.own_cpu),
            ),
        ];
        let rows: String = rows.iter().map(|(what, figure)| format!("| {what} | {figure} |\n")).collect();
        format!("| | |\n|---|---:|\n{rows}")
    }
}

/// What was measured of both variants, in the order of the rounds.
fn rounds(combination: &Combination) -> Vec<Round> {
    let mut rounds = BTreeMap::<u32, Round>::new();
    for (at, variant) in combination.variants.iter().enumerate() {
        for value in &variant.values {
            let round = rounds.entry(value.round).or_default();
            round.set = value.set;
            round.values.resize(combination.variants.len(), None);
            round.values[at] = Some(Placed { value: value.value, place: value.place.saturating_sub(1) });
        }
    }
    rounds.into_values().collect()
}

fn milliseconds(duration: Duration) -> f64 {
    1000.0 * duration.as_secs_f64()
}

/// Sees whether alarms are counted, in comparisons of which so many differ by far.
pub(crate) fn check(seed: u64) {
    const DIFFER: i64 = 30;
    let trials = Trials::matrix([("comparison", 1..=200_i64)]).parameter("variant", ["a", "b"]);
    let plan = trials.compare("variant").repeat(6).plan(seed, |_| 1);
    let mut noise = simulations(seed, plan.trials.len() as u64, |chance| chance.normal()).into_iter();
    let mut report = Report::default();
    for planned in &plan.trials {
        let is = |name: &str, value: &str| planned.parameters[name].to_string() == value;
        let differs = is("variant", "b") && (1..=DIFFER).any(|number| is("comparison", &number.to_string()));
        let mut measured = Measured::default();
        measured.metric = "time".to_owned();
        measured.value = noise.next().map(|noise| (NOISE * noise).exp() * if differs { 2.0 } else { 1.0 });
        let mut trial = TrialReport::default();
        (trial.name, trial.set, trial.ok) = (planned.name.clone(), planned.set, Some(true));
        trial.measured.push(measured);
        report.trials.push(trial);
    }
    report.sweep = Some(plan);
    let figures = Figures::of(&report);
    assert!(!figures.held() && figures.differ_in_table >= DIFFER as usize, "{figures:?}");
    assert!((DIFFER as usize..60).contains(&figures.alarms), "{figures:?}");
    assert_eq!((figures.comparisons, figures.rounds, figures.counting), (200, 6, 2400), "{figures:?}");
    assert!((0.8 * NOISE..1.2 * NOISE).contains(&figures.noise), "{figures:?}");
}
