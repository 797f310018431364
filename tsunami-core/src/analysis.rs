//! What the numbers of a run say: summaries, comparisons and verdicts, from its [`Report`] alone.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Serialize;

use crate::report::{Report, TrialReport};
use crate::statistics::{
    Comparison, Judgement, Placed, Round, Scale, Summary, Threshold, Verdict, Words, across_sets, bonferroni,
    change, compare, significant, summary, verdict,
};
use crate::text::{number, quoted};
use crate::trial::{Compare, MetricPlan, ParameterValue, Parameters, PlannedTrial, SweepPlan, VoidReason};

/// The confidence of all intervals of a comparison together.
pub const CONFIDENCE: f64 = 0.95;

/// From this difference on between the numbers of lost trials of two variants, what is left may be a selection.
const SELECTED_FROM: u32 = 2;

/// Why a threshold can't be judged where values are not as ratios need them.
pub(crate) const NO_RATIO: &str = "values are not above zero, so there is no ratio";

/// What the numbers of a run say.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Analysis {
    /// What is compared, if anything is.
    pub compare: Option<Compare>,
    /// The confidence of each interval of a comparison: more than [`CONFIDENCE`] if there are many, so that all hold
    /// together with that.
    pub confidence: f64,
    /// The trials of each variant; without a comparison, all trials.
    pub counts: Vec<Counts>,
    /// The metrics, in the order of the plan.
    pub metrics: Vec<MetricAnalysis>,
    /// What became of each line of `fail_if`, for each comparison that it is about.
    pub checks: Vec<Check>,
    /// What is to be known before somebody believes the rest.
    pub warnings: Vec<String>,
    /// Why there are fewer trials than planned, if so.
    pub incomplete: Option<String>,
}

/// How the trials of a variant ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// The variant; `None` without a comparison.
    pub variant: Option<ParameterValue>,
    /// How many were planned that count.
    pub planned: u32,
    /// How many succeeded.
    pub ok: u32,
    /// How many failed for a cause inside the experiment.
    pub failed: u32,
    /// How many attempts don't count for a cause of their own, outside of the experiment.
    pub voided: u32,
    /// How many attempts don't count since another of their round doesn't.
    pub voided_with_round: u32,
    /// How many of those that were planned are lost: they failed, or were tried and don't count in the end, for a cause
    /// of their own. What was done again and counts is not lost.
    pub lost: u32,
}

/// What was measured of one metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MetricAnalysis {
    /// What the plan says of it.
    pub metric: MetricPlan,
    /// Each combination of the parameters that aren't compared, in the order of their values.
    pub combinations: Vec<Combination>,
}

/// One combination of the parameters that aren't compared.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Combination {
    /// The parameters.
    pub parameters: Parameters,
    /// The variants, in their order; without a comparison there is one.
    pub variants: Vec<VariantAnalysis>,
}

/// What one variant measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct VariantAnalysis {
    /// How its trials ended.
    pub counts: Counts,
    /// The values of trials that count and succeeded, in the order in which they were done.
    pub values: Vec<TrialValue>,
    /// How many such trials have no value.
    pub missing: u32,
    /// Of the values, if there are any.
    pub summary: Option<Summary>,
    /// How it compares with the baseline, unless it is that itself.
    pub compared: Option<Compared>,
    /// Why that can't be said.
    pub not_compared: Option<String>,
}

/// What one trial measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TrialValue {
    /// The trial.
    pub trial: String,
    /// Its set of machines.
    pub set: u32,
    /// Its round.
    pub round: u32,
    /// Its place in the round, from 1.
    pub place: u32,
    /// How many trials began before it, in the whole run.
    pub order: u32,
    /// The number.
    pub value: f64,
}

/// A variant compared with the baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Compared {
    /// The figures. They hold for the machines that were measured.
    pub comparison: Comparison,
    /// The same for other machines of the kind, where enough sets of them were launched.
    pub across_sets: Option<Comparison>,
    /// What they mean.
    pub verdict: Verdict,
    /// That in words.
    pub sentence: String,
    /// Whether one of both lost more trials than the other, so that the rest may be a selection.
    pub selected: bool,
    /// The comparison with the values of trials that failed or don't count, where there are such values and it may be a
    /// selection.
    pub with_all: Option<Comparison>,
}

/// What became of a line of `fail_if` for one comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Check {
    /// The line.
    pub fail_if: String,
    /// The metric.
    pub metric: String,
    /// The combination.
    pub parameters: Parameters,
    /// The variant.
    pub variant: ParameterValue,
    /// Whether it holds, so that the experiment fails; `None` if that can't be decided.
    pub holds: Option<bool>,
    /// Why it can't be judged at all, if so.
    pub unjudged: Option<String>,
    /// The ratio that it was judged by, in words, if there is one.
    #[serde(skip)]
    pub(crate) measured: Option<String>,
}

/// Why something can't be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnalysisError {
    /// There were no trials of a plan.
    #[error("there were no planned trials")]
    NoTrials,
    /// No parameter has this name.
    #[error("no parameter is called {0}")]
    NoParameter(String),
    /// Nothing of this name was measured.
    #[error("no metric is called {0}")]
    NoMetric(String),
}

/// A planned trial, and one attempt at it.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    planned: &'a PlannedTrial,
    trial: &'a TrialReport,
    order: u32,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TrialOutcome {
    /// It succeeded.
    Ok,
    /// It failed.
    Failed,
    /// It doesn't count.
    Void,
    /// Its end is not known.
    Unfinished,
}

impl TrialReport {
    /// Whether it ended and counts.
    fn counts(&self) -> bool {
        matches!(self.outcome(), TrialOutcome::Ok | TrialOutcome::Failed)
    }

    /// How it ended.
    pub fn outcome(&self) -> TrialOutcome {
        match self.ok {
            _ if self.voided.is_some() || self.interrupted => TrialOutcome::Void,
            Some(true) => TrialOutcome::Ok,
            Some(false) => TrialOutcome::Failed,
            None => TrialOutcome::Unfinished,
        }
    }

    /// The name that it has in the plan.
    pub fn planned_name(&self) -> &str {
        self.voided.as_ref().map_or(&self.name, |voided| &voided.trial)
    }

    /// What was measured of a metric for the whole trial, if it is a number.
    pub fn value_of(&self, metric: &MetricPlan) -> Option<f64> {
        let whole = |measured: &&crate::trial::Measured| {
            measured.machine.is_none() && measured.metric == metric.name && measured.step == metric.step
        };
        let found = self.measured.iter().rev().find(whole);
        found.and_then(|measured| measured.value).filter(|value| value.is_finite())
    }
}

impl Report {
    /// What its numbers say.
    pub fn analysis(&self) -> Analysis {
        self.sweep.as_ref().map_or_else(Analysis::default, |plan| Analysis::of(self, plan))
    }

    /// Compares the values of a parameter by one metric. The baseline is the plan's if that compares by this parameter,
    /// else the parameter's first value.
    ///
    /// ```
    /// # use tsunami_core::{AnalysisError, Report};
    /// # fn example(report: &Report) -> Result<(), AnalysisError> {
    /// for combination in &report.compare("variant", "rps")?.combinations {
    ///     for compared in combination.variants.iter().filter_map(|variant| variant.compared.as_ref()) {
    ///         println!("{}", compared.sentence);
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// If there were no trials, the plan has no such parameter, or no such metric was measured.
    pub fn compare(&self, by: &str, metric: &str) -> Result<MetricAnalysis, AnalysisError> {
        let plan = self.sweep.as_ref().ok_or(AnalysisError::NoTrials)?;
        let parameter = plan.parameters.iter().find(|parameter| parameter.name == by);
        let first = parameter.and_then(|parameter| parameter.values.first());
        let first = first.ok_or_else(|| AnalysisError::NoParameter(by.to_owned()))?;
        let planned = plan.compare.clone().filter(|compare| compare.by == by);
        let compare = planned.unwrap_or_else(|| Compare::new(by, first.clone()));
        let table = Table::new(self, plan, Some(&compare));
        let metrics: Vec<_> = metrics(self, plan).into_iter().filter(|known| known.name == metric).collect();
        let measured = table.analyse(&metrics, Some(&compare), table.confidence(metrics.len()));
        measured.into_iter().next().ok_or_else(|| AnalysisError::NoMetric(metric.to_owned()))
    }
}

/// The plan's metrics, and those that a program measured beside them.
fn metrics(report: &Report, plan: &SweepPlan) -> Vec<MetricPlan> {
    let mut metrics = plan.metrics.clone();
    for measured in report.trials.iter().flat_map(|trial| &trial.measured) {
        if !metrics.iter().any(|known| known.name == measured.metric && known.step == measured.step) {
            let (name, step) = (measured.metric.clone(), measured.step.clone());
            metrics.push(MetricPlan { name, step, ..MetricPlan::default() });
        }
    }
    metrics
}

/// All attempts, by combination and by variant.
struct Table<'a> {
    seed: u64,
    /// The values that are compared; without a comparison, none.
    variants: Vec<Option<&'a ParameterValue>>,
    baseline: usize,
    combinations: Vec<(Parameters, Vec<Cell<'a>>)>,
}

/// One variant in one combination.
#[derive(Clone, Default)]
struct Cell<'a> {
    counts: Counts,
    attempts: Vec<Attempt<'a>>,
}

impl<'a> Table<'a> {
    fn new(report: &'a Report, plan: &'a SweepPlan, compare: Option<&Compare>) -> Self {
        let by = compare.and_then(|compare| plan.parameters.iter().find(|known| known.name == compare.by));
        let variants: Vec<_> = match by {
            Some(by) => by.values.iter().map(Some).collect(),
            None => vec![None],
        };
        let baseline = variants.iter().position(|value| *value == compare.map(|compare| &compare.baseline));
        let place_of = |trial: &PlannedTrial| {
            let others =
                plan.parameters.iter().filter(|parameter| by.is_none_or(|by| by.name != parameter.name));
            let places = others.map(|parameter| {
                let value = trial.parameters.get(&parameter.name);
                parameter.values.iter().position(|known| Some(known) == value).unwrap_or(usize::MAX)
            });
            places.collect::<Vec<usize>>()
        };
        let empty = |variant: &Option<&ParameterValue>| Cell {
            counts: Counts { variant: variant.cloned(), ..Counts::default() },
            attempts: Vec::new(),
        };
        let mut combinations = BTreeMap::new();
        let mut known = BTreeMap::new();
        for planned in plan.trials.iter().filter(|planned| !planned.warmup) {
            let value = by.map(|by| planned.parameters.get(&by.name));
            let Some(variant) = variants.iter().position(|known| value.is_none_or(|value| *known == value))
            else {
                continue;
            };
            let combination = place_of(planned);
            let (_, cells) = combinations.entry(combination.clone()).or_insert_with(|| {
                let mut parameters = planned.parameters.clone();
                parameters.retain(|name, _| by.is_none_or(|by| by.name != *name));
                (parameters, variants.iter().map(empty).collect::<Vec<_>>())
            });
            cells[variant].counts.planned += 1;
            known.insert(planned.name.as_str(), (planned, combination, variant));
        }
        let counting = report.trials.iter().filter(|trial| trial.counts()).map(TrialReport::planned_name);
        // A trial is lost once, however often it was tried.
        let mut settled: HashSet<&str> = counting.collect();
        for (order, trial) in (0..).zip(&report.trials) {
            let Some((planned, combination, variant)) = known.get(trial.planned_name()) else { continue };
            let Some((_, cells)) = combinations.get_mut(combination) else { continue };
            let Cell { counts, attempts } = &mut cells[*variant];
            let is_of_its_own = trial.voided.as_ref().is_none_or(|voided| voided.reason != VoidReason::Round);
            let is_lost = match trial.outcome() {
                TrialOutcome::Failed => true,
                TrialOutcome::Void => is_of_its_own && settled.insert(&planned.name),
                TrialOutcome::Ok | TrialOutcome::Unfinished => false,
            };
            counts.lost += u32::from(is_lost);
            match (trial.outcome(), &trial.voided) {
                (TrialOutcome::Ok, _) => counts.ok += 1,
                (TrialOutcome::Failed, _) => counts.failed += 1,
                (TrialOutcome::Void, Some(voided)) if voided.reason == VoidReason::Round => {
                    counts.voided_with_round += 1;
                }
                (TrialOutcome::Void, _) => counts.voided += 1,
                (TrialOutcome::Unfinished, _) => {}
            }
            attempts.push(Attempt { planned, trial, order });
        }
        let combinations = combinations.into_values().collect();
        Self { seed: plan.seed, variants, baseline: baseline.unwrap_or_default(), combinations }
    }

    /// The counts of each variant over all combinations.
    fn counts(&self) -> Vec<Counts> {
        let mut all: Vec<Counts> = self
            .variants
            .iter()
            .map(|variant| Counts { variant: variant.cloned(), ..Counts::default() })
            .collect();
        for (_, cells) in &self.combinations {
            for (sum, Cell { counts, .. }) in all.iter_mut().zip(cells) {
                sum.planned += counts.planned;
                sum.ok += counts.ok;
                sum.failed += counts.failed;
                sum.voided += counts.voided;
                sum.voided_with_round += counts.voided_with_round;
                sum.lost += counts.lost;
            }
        }
        all
    }

    /// The confidence of each interval, where all of so many metrics are to hold together.
    fn confidence(&self, metrics: usize) -> f64 {
        let others = self.variants.len().saturating_sub(1);
        bonferroni(CONFIDENCE, metrics * self.combinations.len() * others)
    }

    fn analyse(
        &self,
        metrics: &[MetricPlan],
        compare: Option<&Compare>,
        confidence: f64,
    ) -> Vec<MetricAnalysis> {
        let totals = self.counts();
        let all = metrics.iter().map(|metric| {
            let combinations = self.combinations.iter().map(|(parameters, cells)| {
                let mut variants: Vec<_> = cells.iter().map(|cell| self.variant(cell, metric)).collect();
                if let Some(compare) = compare {
                    for (index, variant) in variants.iter_mut().enumerate() {
                        if index != self.baseline {
                            let made = self.compared(cells, &totals, index, metric, compare, confidence);
                            match made {
                                Ok(compared) => variant.compared = Some(compared),
                                Err(why) => variant.not_compared = Some(why),
                            }
                        }
                    }
                }
                Combination { parameters: parameters.clone(), variants }
            });
            MetricAnalysis { metric: metric.clone(), combinations: combinations.collect() }
        });
        all.collect()
    }

    fn variant(&self, cell: &Cell<'_>, metric: &MetricPlan) -> VariantAnalysis {
        let counted = cell.attempts.iter().filter(|attempt| attempt.trial.outcome() == TrialOutcome::Ok);
        let values: Vec<TrialValue> = counted
            .filter_map(|attempt| {
                Some(TrialValue {
                    trial: attempt.trial.name.clone(),
                    set: attempt.trial.set,
                    round: attempt.planned.round,
                    place: attempt.planned.place + 1,
                    order: attempt.order,
                    value: attempt.trial.value_of(metric)?,
                })
            })
            .collect();
        let numbers: Vec<f64> = values.iter().map(|value| value.value).collect();
        let missing = cell.counts.ok.saturating_sub(u32::try_from(values.len()).unwrap_or(u32::MAX));
        let summary = (!numbers.is_empty()).then(|| summary(&numbers, self.seed));
        let counts = cell.counts.clone();
        VariantAnalysis { counts, values, missing, summary, compared: None, not_compared: None }
    }

    fn compared(
        &self,
        cells: &[Cell<'_>],
        totals: &[Counts],
        variant: usize,
        metric: &MetricPlan,
        with: &Compare,
        confidence: f64,
    ) -> Result<Compared, String> {
        let baseline = self.baseline;
        let rounds = rounds(cells, metric, false);
        let comparison = compare(&rounds, baseline, variant, confidence).map_err(|few| few.to_string())?;
        let verdict = verdict(&comparison, with.margin, metric.better);
        let name =
            |index: usize| self.variants[index].map(|value| called(value, &with.by)).unwrap_or_default();
        let (baseline_name, variant_name) = (name(baseline), name(variant));
        let words = Words {
            metric: &metric.name,
            unit: metric.unit.as_deref(),
            baseline: &baseline_name,
            variant: &variant_name,
        };
        let sentence = words.sentence(&comparison, &verdict, with.margin);
        let selected = differ(&cells[baseline].counts, &cells[variant].counts)
            || differ(&totals[baseline], &totals[variant]);
        let lost = [baseline, variant].iter().any(|index| cells[*index].counts.lost > 0);
        let with_all = (selected && lost)
            .then(|| compare(&self::rounds(cells, metric, true), baseline, variant, confidence).ok())
            .flatten()
            .filter(|all| all.rounds != comparison.rounds);
        let across_sets = across_sets(&rounds, baseline, variant, confidence, self.seed);
        Ok(Compared { comparison, across_sets, verdict, sentence, selected, with_all })
    }
}

/// Whether so many more were lost of one variant that the others may be a selection.
fn differ(one: &Counts, other: &Counts) -> bool {
    one.lost.abs_diff(other.lost) >= SELECTED_FROM
}

/// The rounds of a combination, in the order in which they began. With all attempts, those that don't count make rounds
/// of their own.
fn rounds(cells: &[Cell<'_>], metric: &MetricPlan, all: bool) -> Vec<Round> {
    let mut rounds = BTreeMap::new();
    for (variant, cell) in cells.iter().enumerate() {
        for attempt in &cell.attempts {
            let outcome = attempt.trial.outcome();
            if outcome != TrialOutcome::Ok && !all {
                continue;
            }
            // The attempts at a round that don't count have the same number behind their names.
            let nth = match outcome {
                TrialOutcome::Void => attempt.trial.name.rsplit_once('.').map_or("", |(_, nth)| nth),
                _ => "",
            };
            let key = (attempt.planned.set, attempt.planned.round, nth);
            let (first, round) = rounds.entry(key).or_insert_with(|| {
                let values = vec![None; cells.len()];
                (attempt.order, Round { set: attempt.trial.set, values })
            });
            *first = attempt.order.min(*first);
            let value = attempt.trial.value_of(metric);
            round.values[variant] = value.map(|value| Placed { value, place: attempt.planned.place });
        }
    }
    let mut rounds: Vec<_> = rounds.into_values().collect();
    rounds.sort_by_key(|(first, _)| *first);
    rounds.into_iter().map(|(_, round)| round).collect()
}

impl Analysis {
    /// Of a run's report, by the plan that it has.
    fn of(report: &Report, plan: &SweepPlan) -> Self {
        let compare = plan.compare.as_ref();
        let table = Table::new(report, plan, compare);
        let known = metrics(report, plan);
        let confidence = table.confidence(known.len());
        let metrics = table.analyse(&known, compare, confidence);
        let counts = table.counts();
        let compared = || {
            let combinations = metrics.iter().flat_map(|metric| &metric.combinations);
            combinations.flat_map(|combination| &combination.variants)
        };
        let mut warnings = Vec::new();
        if let Some((first, rest)) = counts.split_first().filter(|_| compare.is_some()) {
            let all = || std::iter::once(first).chain(rest);
            let most = all().map(|counts| counts.lost).max().unwrap_or_default();
            let least = all().map(|counts| counts.lost).min().unwrap_or_default();
            if most - least >= SELECTED_FROM {
                let each: Vec<String> = all().map(Counts::losses).collect();
                // Most trials that fail have no value that could be compared.
                let both = compared().filter_map(|variant| variant.compared.as_ref());
                let both = both.into_iter().any(|compared| compared.with_all.is_some());
                let both = if both { ", so comparisons are given with and without them" } else { "" };
                warnings.push(format!(
                    "the variants lost unequal numbers of trials ({}): what is left may be a selection{both}",
                    each.join("; ")
                ));
            }
        }
        let missing: u32 = compared().map(|variant| variant.missing).sum();
        if missing > 0 {
            warnings.push(format!("{} missing", number(missing as usize, "value")));
        }
        warnings.extend(disturbed(report, plan));
        let checks = compare.map(|compare| checks(compare, &metrics)).unwrap_or_default();
        let incomplete = incomplete(report, &counts);
        Self { compare: plan.compare.clone(), confidence, counts, metrics, checks, warnings, incomplete }
    }

    /// The lines of `fail_if` that hold, if any do: the experiment failed by its numbers.
    pub fn held(&self) -> Option<String> {
        let held = self.checks.iter().filter(|check| check.holds == Some(true)).map(ToString::to_string);
        Some(held.collect::<Vec<_>>().join("; ")).filter(|held| !held.is_empty())
    }

    /// Why the experiment failed, if it did: a line of `fail_if` holds, trials failed, or there are fewer than planned.
    pub fn failure(&self) -> Option<String> {
        let failed: u32 = self.counts.iter().map(|counts| counts.failed).sum();
        let planned: u32 = self.counts.iter().map(|counts| counts.planned).sum();
        let failed = (failed > 0).then(|| {
            let each: Vec<String> =
                self.counts.iter().filter_map(Counts::failures).filter(|_| self.counts.len() > 1).collect();
            let each = if each.is_empty() { String::new() } else { format!(" ({})", each.join(", ")) };
            format!("{failed} of {} failed{each}", number(planned as usize, "trial"))
        });
        let all: Vec<String> = self.held().into_iter().chain(self.incomplete.clone()).chain(failed).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// All sentences, a line each: comparisons, then what is undecided, then warnings.
    pub fn sentences(&self) -> Vec<String> {
        let compared = self.metrics.iter().flat_map(MetricAnalysis::sentences);
        let undecided = self.checks.iter().filter(|check| check.holds != Some(false));
        let failed = self.counts.iter().filter_map(|counts| {
            let trials = if counts.planned == 1 { "trial" } else { "trials" };
            Some(format!("{} {trials} failed", counts.failures()?))
        });
        compared
            .chain(undecided.map(ToString::to_string))
            .chain(failed)
            .chain(self.warnings.iter().cloned())
            .collect()
    }
}

/// That trials count although something disturbed them, if there are such.
fn disturbed(report: &Report, plan: &SweepPlan) -> Option<String> {
    let counts = |name: &String| plan.trials.iter().any(|trial| trial.name == *name && !trial.warmup);
    let by = |trial: &TrialReport| trial.accounts.iter().find_map(|account| account.disturbed.clone());
    let trials = report.trials.iter().filter(|trial| trial.counts() && counts(&trial.name));
    let (mut all, mut first, mut disturbed) = (0_usize, None, 0_usize);
    for trial in trials {
        all += 1;
        if let Some(by) = by(trial) {
            disturbed += 1;
            first.get_or_insert((&trial.name, by));
        }
    }
    let (name, by) = first?;
    let which = match (disturbed, all) {
        (_, 1) => "the trial that counts was".to_owned(),
        (1, _) => format!("1 of {all} trials that count was"),
        _ => format!("{disturbed} of {all} trials that count were"),
    };
    Some(format!(
        "{which} disturbed by other processes (trial {name}: {by}): other things keep their machines busy, so trust \
         small differences less"
    ))
}

/// Why there are fewer trials than planned.
fn incomplete(report: &Report, counts: &[Counts]) -> Option<String> {
    let ended: u32 = counts.iter().map(|counts| counts.ok + counts.failed).sum();
    let planned: u32 = counts.iter().map(|counts| counts.planned).sum();
    // A sentence is one line, also where it tells causes.
    let why = report.swept.as_ref().and_then(|swept| swept.why.as_ref());
    let why = why.map(|why| why.replace("\n  because: ", " because: "));
    let (done, of) = report.swept.as_ref().map_or((ended, planned), |swept| (swept.done, swept.of));
    match why {
        Some(why) if done < of => Some(format!("{done} of {of} trials: {why}")),
        _ if done < of && of == 1 => Some("the trial was not done".to_owned()),
        _ if done < of => Some(format!("{done} of {of} trials were done")),
        _ => None,
    }
}

/// What a variant is called in a sentence: a number by itself would not say what it is of.
fn called(value: &ParameterValue, by: &str) -> String {
    match value {
        ParameterValue::Text(text) => text.clone(),
        value => format!("{by}={value}"),
    }
}

/// What becomes of each line of `fail_if`. Those that can't be read were refused with the plan.
fn checks(compare: &Compare, metrics: &[MetricAnalysis]) -> Vec<Check> {
    let baseline_of = |combination: &'_ Combination| {
        combination.variants.iter().position(|one| one.counts.variant.as_ref() == Some(&compare.baseline))
    };
    let mut checks = Vec::new();
    for line in &compare.fail_if {
        let Ok(threshold) = line.parse::<Threshold>() else { continue };
        for known in metrics.iter().filter(|known| known.metric.name == threshold.metric) {
            for combination in &known.combinations {
                for variant in &combination.variants {
                    let Some(value) =
                        variant.counts.variant.clone().filter(|value| *value != compare.baseline)
                    else {
                        continue;
                    };
                    let without =
                        [baseline_of(combination).map(|at| &combination.variants[at]), Some(variant)];
                    let without = without.into_iter().flatten().filter(|variant| variant.values.is_empty());
                    let without = without.filter_map(|variant| variant.counts.variant.as_ref()).next();
                    let judged =
                        variant.compared.as_ref().map(|compared| threshold.judge(&compared.comparison));
                    let unjudged = match judged {
                        Some(Judgement::NoRatio) => Some(NO_RATIO.to_owned()),
                        Some(_) => None,
                        None => without
                            .map(|name| format!("{name} has no value"))
                            .or_else(|| variant.not_compared.clone()),
                    };
                    let compared = variant.compared.as_ref().map(|compared| &compared.comparison);
                    let compared = compared.filter(|comparison| comparison.scale == Scale::Ratio);
                    let measured = compared.map(|Comparison { interval, .. }| {
                        let (low, high) = (significant(interval.low), significant(interval.high));
                        let range = if low == high { low } else { format!("{low} to {high}") };
                        let (own, baseline) =
                            (called(&value, &compare.by), called(&compare.baseline, &compare.by));
                        format!("{} of {own} is {range} times that of {baseline}", known.metric.name)
                    });
                    checks.push(Check {
                        measured,
                        fail_if: threshold.to_string(),
                        metric: known.metric.name.clone(),
                        parameters: combination.parameters.clone(),
                        variant: value,
                        holds: judged.and_then(Judgement::holds),
                        unjudged,
                    });
                }
            }
        }
    }
    checks
}

impl Counts {
    /// `new: 3 of 10`, if any failed.
    fn failures(&self) -> Option<String> {
        let of = |variant: &ParameterValue| format!("{variant}: ");
        let variant = self.variant.as_ref().map(of).unwrap_or_default();
        (self.failed > 0).then(|| format!("{variant}{} of {}", self.failed, self.planned))
    }

    /// `new: 3 of 10, 2 failed, 4 void`.
    fn losses(&self) -> String {
        let variant = self.variant.as_ref().map(ToString::to_string).unwrap_or_default();
        format!("{variant}: {} of {}, {} failed, {} void", self.lost, self.planned, self.failed, self.voided)
    }
}

impl MetricAnalysis {
    /// What the comparisons say, a line each.
    pub fn sentences(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for combination in &self.combinations {
            let place = combination.label();
            let place = if place.is_empty() { place } else { format!("{place}: ") };
            for variant in &combination.variants {
                let name = variant.counts.variant.as_ref().map(ToString::to_string).unwrap_or_default();
                if let Some(compared) = &variant.compared {
                    lines.push(format!("{place}{}", compared.told()));
                } else if let Some(why) = &variant.not_compared {
                    lines.push(format!("{place}{} of {name}: {why}", self.metric.name));
                }
            }
        }
        lines
    }
}

impl fmt::Display for MetricAnalysis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentences().join("\n"))
    }
}

impl Compared {
    /// The sentence and, where there is one, the interval with the trials that were lost.
    pub(crate) fn told(&self) -> String {
        match &self.with_all {
            Some(all) => format!("{}; with lost trials: {}", self.sentence, change(all).1),
            None => self.sentence.clone(),
        }
    }
}

impl Combination {
    /// `clients=4, size=big`; empty where nothing is combined.
    pub fn label(&self) -> String {
        label(&self.parameters)
    }
}

/// Parameters in a line.
pub(crate) fn label(parameters: &Parameters) -> String {
    let pair = |(name, value): (&String, &ParameterValue)| format!("{name}={}", quoted(&value.to_string()));
    let each: Vec<String> = parameters.iter().map(pair).collect();
    each.join(", ")
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fail_if, variant, measured, .. } = self;
        let measured = measured.as_ref().map(|measured| format!(": {measured}")).unwrap_or_default();
        let place = label(&self.parameters);
        let place = if place.is_empty() { place } else { format!(" where {place}") };
        if let Some(why) = &self.unjudged {
            return write!(f, "`{fail_if}` can't be judged for {variant}{place}: {why}");
        }
        match self.holds {
            Some(true) => write!(f, "`{fail_if}` holds for {variant}{place}{measured}"),
            Some(false) => write!(f, "`{fail_if}` does not hold for {variant}{place}{measured}"),
            None => write!(f, "undecided: `{fail_if}` for {variant}{place}{measured}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::{SweepEnd, Voided};
    use crate::statistics::Direction;
    use crate::trial::{Measured, Parameter};

    /// A sweep of `old` and `new`, whose places alternate, for each size. The value of each trial is told by its round,
    /// its size and whether it is new; `None` fails it.
    fn sweep(rounds: u32, sizes: &[i64], value: impl Fn(u32, i64, bool) -> Option<f64>) -> Report {
        let metric = MetricPlan {
            name: "rps".to_owned(),
            step: "load".to_owned(),
            better: Some(Direction::Higher),
            unit: None,
        };
        let mut plan = SweepPlan {
            parameters: vec![
                Parameter::new("size", sizes.to_vec()),
                Parameter::new("variant", ["old", "new"]),
            ],
            compare: Some(Compare::new("variant", "old")),
            metrics: vec![metric],
            ..SweepPlan::default()
        };
        let mut report = Report::default();
        for round in 1..=rounds {
            for size in sizes {
                for place in 0..2 {
                    let is_new = (round + place) % 2 == 0;
                    let name = (plan.trials.len() + 1).to_string();
                    let variant = if is_new { "new" } else { "old" };
                    let parameters =
                        [("size".to_owned(), (*size).into()), ("variant".to_owned(), variant.into())].into();
                    plan.trials.push(PlannedTrial {
                        name: name.clone(),
                        warmup: false,
                        set: 1,
                        round,
                        place,
                        parameters,
                    });
                    report.trials.push(trial(&name, value(round, *size, is_new)));
                }
            }
        }
        report.sweep = Some(plan);
        report
    }

    fn trial(name: &str, value: Option<f64>) -> TrialReport {
        let (step, metric) = ("load".to_owned(), "rps".to_owned());
        TrialReport {
            name: name.to_owned(),
            set: 1,
            ok: Some(value.is_some()),
            took: Some(Duration::from_secs(1)),
            measured: vec![Measured { step, metric, value, ..Measured::default() }],
            ..TrialReport::default()
        }
    }

    fn wave(round: u32) -> f64 {
        100.0 + f64::from(round * 7 % 5)
    }

    fn plan_of(report: &mut Report) -> &mut SweepPlan {
        report.sweep.as_mut().unwrap()
    }

    #[test]
    fn variants_are_compared_for_each_combination_and_all_intervals_hold_together() {
        let faster = |size: i64| if size == 1 { 1.0 } else { 1.25 };
        let mut report = sweep(8, &[4, 1], |round, size, is_new| {
            let noise = f64::from(round % 3) * if is_new { 0.2 } else { 0.1 };
            Some(wave(round) * if is_new { faster(size) } else { 1.0 } + noise)
        });
        let measured = report.compare("variant", "rps").unwrap();
        let estimate = measured.combinations[0].variants[1].compared.clone().unwrap().comparison.estimate;
        let compare = plan_of(&mut report).compare.as_mut().unwrap();
        let middle = format!("rps < {estimate}");
        compare.fail_if = ["rps > 1.2", "rps < 0.9", &middle].map(str::to_owned).into();
        let analysis = report.analysis();
        assert!((analysis.confidence - 0.975).abs() < 1e-12, "two comparisons");
        let [rps] = analysis.metrics.as_slice() else { panic!("one metric") };
        let labels: Vec<String> = rps.combinations.iter().map(Combination::label).collect();
        assert_eq!(labels, ["size=4", "size=1"], "in the order of whoever wrote them");
        let [old, new] = rps.combinations[0].variants.as_slice() else { panic!("two variants") };
        assert_eq!((old.values.len(), &old.compared, old.counts.ok), (8, &None, 8));
        assert_eq!((new.values[0].round, new.values[0].place, new.values[0].order), (1, 2, 1));
        let compared = new.compared.as_ref().unwrap();
        assert!((compared.comparison.estimate - 1.25).abs() < 0.01 && compared.comparison.rounds == 8);
        assert!(!compared.selected && compared.with_all.is_none() && compared.across_sets.is_none());
        let [faster, same] = &analysis.sentences()[..2] else { panic!("two sentences") };
        assert!(
            faster.starts_with("size=4: rps of new is 25") && faster.ends_with("higher (better)"),
            "{faster}"
        );
        assert!(same.starts_with("size=1: rps of old and new differ by less than 3 %"), "{same}");
        let holds: Vec<_> = analysis.checks.iter().map(|check| check.holds).collect();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(holds, [yes, no, no, no, None, yes]);
        let held = analysis.held().unwrap();
        let (first, second) = held.split_once("; ").unwrap();
        let starts = |text: &str, start: &str, low: &str| {
            assert!(text.starts_with(&format!("{start}: rps of new is {low}")), "{text}");
            assert!(text.contains(" to ") && text.ends_with(" times that of old"), "{text}");
        };
        starts(first, "`rps > 1.2` holds for new where size=4", "1.2");
        starts(second, &format!("`{middle}` holds for new where size=1"), "1 to 1.0");
        assert_eq!(analysis.failure(), Some(held.clone()));
        let sentences = analysis.sentences();
        let undecided = sentences.iter().find(|line| line.starts_with("undecided")).unwrap();
        starts(undecided, &format!("undecided: `{middle}` for new where size=4"), "1.2");

        let other = report.compare("size", "rps").unwrap();
        assert_eq!(other.combinations.len(), 2);
        assert!(other.sentences().iter().all(|line| line.contains(" of size=")), "{:?}", other.sentences());
        assert_eq!(report.compare("colour", "rps"), Err(AnalysisError::NoParameter("colour".to_owned())));
        assert_eq!(report.compare("size", "p99"), Err(AnalysisError::NoMetric("p99".to_owned())));
        assert_eq!(Report::default().compare("size", "rps"), Err(AnalysisError::NoTrials));
    }

    #[test]
    fn where_a_variant_lost_more_trials_the_comparison_is_given_with_and_without() {
        let noise = |round: u32| f64::from(round % 4) / 10.0;
        let mut report = sweep(6, &[1], |round, _, is_new| {
            (!is_new || round > 2).then(|| wave(round) + if is_new { noise(round) } else { 0.0 })
        });
        // Two attempts at the last round came to something else, and don't count for what happened to the new one.
        for nth in ["1", "2"] {
            for (name, value) in [("11", 70.0), ("12", 100.0)] {
                let reason = if name == "11" { VoidReason::Lost } else { VoidReason::Round };
                let voided =
                    Voided { trial: name.to_owned(), reason, text: String::new(), machines: Vec::new() };
                let void = trial(&format!("{name}.{nth}"), Some(value));
                report.trials.push(TrialReport { voided: Some(voided), ..void });
            }
        }
        let analysis = report.analysis();
        let [old, new] = analysis.counts.as_slice() else { panic!("two variants") };
        assert_eq!((old.planned, old.ok, old.failed, old.voided + old.voided_with_round), (6, 6, 0, 2));
        assert_eq!((new.planned, new.ok, new.failed, new.voided + new.voided_with_round), (6, 4, 2, 2));
        let compared = analysis.metrics[0].combinations[0].variants[1].compared.clone().unwrap();
        assert_eq!((compared.selected, compared.comparison.rounds), (true, 4));
        let all = compared.with_all.unwrap();
        assert_eq!(all.rounds, 6);
        assert!(all.interval.width() > 2.0 * compared.comparison.interval.width());
        assert!(analysis.warnings[0].contains("may be a selection"), "{:?}", analysis.warnings);
        assert_eq!(analysis.failure().unwrap(), "2 of 12 trials failed (new: 2 of 6)");
    }

    /// Makes an attempt at a trial of what was planned, which doesn't count.
    fn void(trial: &TrialReport, nth: u32, reason: VoidReason) -> TrialReport {
        let voided = Voided { trial: trial.name.clone(), reason, text: String::new(), machines: Vec::new() };
        TrialReport { name: format!("{}.{nth}", trial.name), voided: Some(voided), ..trial.clone() }
    }

    #[test]
    fn what_was_done_again_and_counts_is_not_lost_and_what_never_counts_is() {
        let mut report = sweep(6, &[1], |round, _, _| Some(wave(round)));
        let news: Vec<TrialReport> = report.trials.iter().step_by(2).cloned().collect();
        report.trials.extend(news.iter().map(|trial| void(trial, 1, VoidReason::Disturbed)));
        let analysis = report.analysis();
        assert!(analysis.warnings.is_empty(), "{:?}", analysis.warnings);
        let lost = |analysis: &Analysis| analysis.counts.iter().map(|counts| counts.lost).collect::<Vec<_>>();
        let voided: u32 = analysis.counts.iter().map(|counts| counts.voided).sum();
        assert_eq!((lost(&analysis), voided), (vec![0, 0], 6));
        // Trials 2 and 3 are of the same variant, and neither came to an attempt that counts.
        for name in ["2", "3"] {
            let at = report.trials.iter().position(|trial| trial.name == name).unwrap();
            let trial = report.trials.remove(at);
            report.trials.extend([1, 2].map(|nth| void(&trial, nth, VoidReason::Lost)));
        }
        let analysis = report.analysis();
        assert_eq!(lost(&analysis).iter().sum::<u32>(), 2);
        assert!(analysis.warnings[0].contains("2 of 6, 0 failed"), "{:?}", analysis.warnings);
    }

    #[test]
    fn what_is_disturbed_is_told_of_trials_that_count() {
        let mut report = sweep(1, &[1], |round, _, _| Some(wave(round)));
        let disturbed =
            crate::condition::Account { disturbed: Some("cron".to_owned()), ..Default::default() };
        report.trials[0].accounts.push(disturbed);
        let told = |report: &Report| report.analysis().warnings.join("; ");
        let rest = "disturbed by other processes (trial 1: cron): other things keep their machines busy, so trust \
                    small differences less";
        assert_eq!(told(&report), format!("1 of 2 trials that count was {rest}"));
        report.trials[1].ok = None;
        assert_eq!(told(&report), format!("the trial that counts was {rest}"));
        report.trials[0].ok = None;
        assert_eq!(told(&report), "");
    }

    #[test]
    fn a_check_that_has_no_ratio_says_so() {
        let mut report = sweep(6, &[1], |round, _, is_new| Some(if is_new { wave(round) } else { -1.0 }));
        plan_of(&mut report).compare.as_mut().unwrap().fail_if = vec!["rps > 2".to_owned()];
        let said = report.analysis().checks[0].to_string();
        let why = "can't be judged for new where size=1: values are not above zero, so there is no ratio";
        assert_eq!(said, format!("`rps > 2` {why}"));
        for trial in &mut report.trials {
            trial.measured.clear();
        }
        let said = report.analysis().checks[0].to_string();
        assert_eq!(said, "`rps > 2` can't be judged for new where size=1: old has no value");
    }

    #[test]
    fn parameters_are_told_apart() {
        let of = |pairs: &[(&str, &str)]| {
            label(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect())
        };
        assert_eq!(of(&[("a", "1, b=2"), ("c", "")]), "a='1, b=2', c=''");
        assert_eq!(of(&[("a", "it's"), ("b", "x")]), "a='it''s', b=x");
    }

    #[test]
    fn without_a_comparison_there_are_summaries_and_a_sweep_that_was_cut_says_so() {
        let mut report = sweep(3, &[1, 2], |round, size, is_new| {
            Some(wave(round) * size as f64 + f64::from(u8::from(is_new)))
        });
        plan_of(&mut report).compare = None;
        report.trials.truncate(8);
        let why = Some("a-0: lost\n  because: gone".to_owned());
        report.swept = Some(SweepEnd { done: 8, of: 12, why });
        let mut warmup = trial("w1", Some(1e9));
        warmup.set = 1;
        let named = PlannedTrial { name: "w1".to_owned(), warmup: true, ..PlannedTrial::default() };
        plan_of(&mut report).trials.push(named);
        report.trials.push(warmup);
        let analysis = report.analysis();
        assert_eq!(analysis.metrics[0].combinations.len(), 4);
        let one = &analysis.metrics[0].combinations[0];
        assert_eq!((one.label().as_str(), one.variants.len()), ("size=1, variant=old", 1));
        let summary = one.variants[0].summary.clone().unwrap();
        assert_eq!((summary.n, one.variants[0].compared.is_none()), (2, true));
        assert!(summary.max < 1000.0, "what warms up doesn't count");
        assert_eq!(analysis.failure().unwrap(), "8 of 12 trials: a-0: lost because: gone");
        assert!(analysis.sentences().is_empty());
    }
}
