//! Two variants, compared within rounds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Interval;
use super::condition::{self, Trial, Warning};
use super::sample::{mean, squares, t_p_value, t_quantile, variance};

/// With fewer rounds than this, a degree of freedom is dear: places are adjusted for only where they clearly matter.
const ALWAYS_ADJUSTED: usize = 8;

/// With fewer rounds than this, places are never adjusted for.
const FEWEST_ADJUSTED: usize = 4;

/// What counts as clear: the chance of seeing it where places don't matter.
const CLEAR: f64 = 0.05;

/// Values beyond this don't count, since their squares would be infinite.
const LARGEST: f64 = 1e150;

/// From how many sets of machines [`across_sets`] infers to others.
pub const SETS_NEEDED: usize = 5;

/// How often [`across_sets`] draws sets.
const RESAMPLES: usize = 4000;

/// One trial of each variant, on one unchanged set of machines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// The set of machines, as numbered by whoever launched it.
    pub set: u32,
    /// What each variant measured, in an order of variants that is the same in all rounds. `None`: no value.
    pub values: Vec<Option<Placed>>,
}

/// What was measured, and when in its round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placed {
    /// The metric.
    pub value: f64,
    /// How many trials of the round ran before.
    pub place: u32,
}

/// How two variants are set against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The geometric mean of variant / baseline: 1 is "no difference". The calculation is with natural logarithms.
    Ratio,
    /// The mean of variant − baseline, in the metric's unit: 0 is "no difference". It stands in where a value is ≤ 0.
    Difference,
}

impl Scale {
    /// A value as it is calculated with.
    pub(super) fn work(self, value: f64) -> f64 {
        match self {
            Self::Ratio => value.ln(),
            Self::Difference => value,
        }
    }

    /// The way back from [`work`](Self::work).
    fn show(self, worked: f64) -> f64 {
        match self {
            Self::Ratio => worked.exp(),
            Self::Difference => worked,
        }
    }
}

/// A variant set against the baseline, over rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Comparison {
    /// What `estimate` and `interval` are.
    pub scale: Scale,
    /// The best guess.
    pub estimate: f64,
    /// Where the truth is, with `confidence`, if what `warnings` name doesn't prevent it.
    pub interval: Interval,
    /// Of the interval: 0.95 is 95 %.
    pub confidence: f64,
    /// How many rounds have both values.
    pub rounds: usize,
    /// How many rounds were left out, since one value is missing or isn't finite.
    pub left_out: usize,
    /// How many sets of machines were drawn from, if the interval is for other machines too ([`across_sets`]).
    pub sets: Option<usize>,
    /// Whether what the place in the round does was estimated and taken away.
    pub adjusted_for_place: bool,
    /// How far the estimate may be off: of its natural logarithm where `scale` is a ratio.
    pub standard_error: f64,
    /// Of the t distribution that the interval was made with.
    pub degrees_of_freedom: f64,
    /// The baseline's mean over the rounds, in the metric's unit.
    pub baseline_mean: f64,
    /// What speaks against trusting the interval.
    pub warnings: Vec<Warning>,
}

/// Why there is no comparison: it takes two rounds in which both variants have a finite value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a comparison takes at least 2 rounds with both values; there are {rounds}{}", self.rest())]
#[non_exhaustive]
pub struct TooFew {
    /// How many there are: 0 or 1.
    pub rounds: usize,
    /// How many rounds were left out, since one value is missing or isn't finite.
    pub left_out: usize,
}

impl TooFew {
    fn rest(self) -> String {
        match self.left_out {
            0 => String::new(),
            left_out => format!(", and {left_out} without"),
        }
    }
}

/// The confidence that each of several intervals needs, so that all of them together hold with the one that is given.
///
/// # Examples
///
/// ```
/// # use tsunami_core::statistics::bonferroni;
/// assert_eq!(bonferroni(0.95, 5), 0.99);
/// ```
#[must_use]
pub fn bonferroni(confidence: f64, comparisons: usize) -> f64 {
    1.0 - (1.0 - confidence) / comparisons.max(1) as f64
}

/// Compares a variant with the baseline, both as indexes into [`Round::values`]: a t interval of the mean log ratio
/// within rounds or, where a value is ≤ 0, of the mean difference. The interval is over rounds: it holds for the
/// machines that they ran on. Rounds are given in the order in which they ran.
///
/// What a place in the round does (the first trial finds cold caches, say) is estimated as a slope over places and taken
/// away, at the cost of a degree of freedom. With fewer than eight rounds that costs more than it brings, so there it is
/// done only if the slope is clear (p < 5 %).
///
/// # Errors
///
/// If fewer than two rounds have both values.
pub fn compare(
    rounds: &[Round],
    baseline: usize,
    variant: usize,
    confidence: f64,
) -> Result<Comparison, TooFew> {
    let pairs = Pairs::of(rounds, baseline, variant)?;
    let fit = pairs.fit();
    let reach = t_quantile(confidence, fit.degrees_of_freedom) * fit.standard_error;
    Ok(pairs.comparison(&fit, reach, confidence))
}

/// Compares as [`compare`] does, but for other machines of the kind too: whole sets of machines are drawn, with their
/// rounds, to see how far the estimate depends on them, and the interval is Student's with as many degrees of freedom as
/// there are sets, less one. `None` if fewer than [`SETS_NEEDED`] sets have a round with both values.
#[must_use]
pub fn across_sets(
    rounds: &[Round],
    baseline: usize,
    variant: usize,
    confidence: f64,
    seed: u64,
) -> Option<Comparison> {
    let pairs = Pairs::of(rounds, baseline, variant).ok()?;
    let mut fit = pairs.fit();
    let mut by_set = BTreeMap::<u32, (f64, f64)>::new();
    for (pair, difference) in pairs.pairs.iter().zip(&fit.adjusted) {
        let (sum, count) = by_set.entry(pair.set).or_default();
        *sum += difference;
        *count += 1.0;
    }
    let sets: Vec<(f64, f64)> = by_set.into_values().collect();
    if sets.len() < SETS_NEEDED {
        return None;
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let drawn: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let of_sets = sets.iter().map(|_| sets[random.usize(..sets.len())]);
            let (sum, count) = of_sets.fold((0.0, 0.0), |all, set| (all.0 + set.0, all.1 + set.1));
            sum / count
        })
        .collect();
    let number = sets.len() as f64;
    // Drawing from a sample shows its own spread, which is smaller than that of what it stands for.
    fit.standard_error = (variance(&drawn) * number / (number - 1.0)).sqrt();
    fit.degrees_of_freedom = number - 1.0;
    let reach = t_quantile(confidence, fit.degrees_of_freedom) * fit.standard_error;
    Some(Comparison { sets: Some(sets.len()), ..pairs.comparison(&fit, reach, confidence) })
}

/// A round's two values, on the scale that is calculated with.
#[derive(Debug)]
struct Pair {
    set: u32,
    baseline: Placed,
    variant: Placed,
}

impl Pair {
    fn difference(&self) -> f64 {
        self.variant.value - self.baseline.value
    }

    /// How many places the variant ran after the baseline.
    fn places(&self) -> f64 {
        f64::from(self.variant.place) - f64::from(self.baseline.place)
    }
}

#[derive(Debug)]
struct Pairs {
    scale: Scale,
    baseline_mean: f64,
    left_out: usize,
    pairs: Vec<Pair>,
}

/// What the differences within rounds come to.
#[derive(Debug)]
struct Fit {
    estimate: f64,
    standard_error: f64,
    degrees_of_freedom: f64,
    adjusted_for_place: bool,
    /// What a place does, and how often it seems to do that much if it does nothing; where places differ.
    slope: Option<(f64, f64)>,
    /// Each round's difference, without what places do if that is taken away.
    adjusted: Vec<f64>,
}

impl Pairs {
    fn of(rounds: &[Round], baseline: usize, variant: usize) -> Result<Self, TooFew> {
        let usable = |round: &Round, index: usize| {
            let value = round.values.get(index).copied().flatten();
            value.filter(|placed| placed.value.is_finite() && placed.value.abs() <= LARGEST)
        };
        let mut pairs: Vec<Pair> = rounds
            .iter()
            .filter_map(|round| {
                let (baseline, variant) = (usable(round, baseline)?, usable(round, variant)?);
                Some(Pair { set: round.set, baseline, variant })
            })
            .collect();
        let left_out = rounds.len() - pairs.len();
        if pairs.len() < 2 {
            return Err(TooFew { rounds: pairs.len(), left_out });
        }
        let baseline_mean = mean(&pairs.iter().map(|pair| pair.baseline.value).collect::<Vec<_>>());
        let positive = |pair: &Pair| pair.baseline.value > 0.0 && pair.variant.value > 0.0;
        let scale = if pairs.iter().all(positive) { Scale::Ratio } else { Scale::Difference };
        for pair in &mut pairs {
            pair.baseline.value = scale.work(pair.baseline.value);
            pair.variant.value = scale.work(pair.variant.value);
        }
        Ok(Self { scale, baseline_mean, left_out, pairs })
    }

    fn fit(&self) -> Fit {
        let differences: Vec<f64> = self.pairs.iter().map(Pair::difference).collect();
        let places: Vec<f64> = self.pairs.iter().map(Pair::places).collect();
        let n = differences.len() as f64;
        let (middle, place, apart) = (mean(&differences), mean(&places), squares(&places));
        let total = squares(&differences);
        let plain = Fit {
            estimate: middle,
            standard_error: (total / (n - 1.0) / n).sqrt(),
            degrees_of_freedom: n - 1.0,
            adjusted_for_place: false,
            slope: None,
            adjusted: differences.clone(),
        };
        if differences.len() < FEWEST_ADJUSTED || apart == 0.0 {
            return plain;
        }
        let together: f64 = places.iter().zip(&differences).map(|(x, y)| (x - place) * (y - middle)).sum();
        let slope = together / apart;
        let residual = (total - slope * together).max(0.0) / (n - 2.0);
        let p_value = match (slope, residual) {
            (0.0, _) => 1.0,
            _ => t_p_value(slope / (residual / apart).sqrt(), n - 2.0),
        };
        if differences.len() < ALWAYS_ADJUSTED && p_value > CLEAR {
            return Fit { slope: Some((slope, p_value)), ..plain };
        }
        Fit {
            estimate: middle - slope * place,
            standard_error: (residual * (1.0 / n + place * place / apart)).sqrt(),
            degrees_of_freedom: n - 2.0,
            adjusted_for_place: true,
            slope: Some((slope, p_value)),
            adjusted: places.iter().zip(&differences).map(|(x, y)| y - slope * x).collect(),
        }
    }

    fn comparison(&self, fit: &Fit, reach: f64, confidence: f64) -> Comparison {
        Comparison {
            scale: self.scale,
            estimate: self.scale.show(fit.estimate),
            interval: Interval {
                low: self.scale.show(fit.estimate - reach),
                high: self.scale.show(fit.estimate + reach),
            },
            confidence,
            rounds: self.pairs.len(),
            left_out: self.left_out,
            sets: None,
            adjusted_for_place: fit.adjusted_for_place,
            standard_error: fit.standard_error,
            degrees_of_freedom: fit.degrees_of_freedom,
            baseline_mean: self.baseline_mean,
            warnings: self.warnings(fit),
        }
    }

    fn warnings(&self, fit: &Fit) -> Vec<Warning> {
        let places: Vec<f64> = self.pairs.iter().map(Pair::places).collect();
        let mut warnings = condition::of_places(&places, fit.adjusted_for_place, fit.slope, self.scale);
        warnings.extend(condition::of_differences(&fit.adjusted));
        let mut trials = Vec::with_capacity(2 * self.pairs.len());
        for pair in &self.pairs {
            let baseline = Trial { set: pair.set, of_variant: false, placed: pair.baseline };
            let variant = Trial { set: pair.set, of_variant: true, placed: pair.variant };
            let baseline_first = pair.baseline.place <= pair.variant.place;
            trials.extend(if baseline_first { [baseline, variant] } else { [variant, baseline] });
        }
        warnings.extend(condition::of_sequence(trials, self.scale));
        if self.left_out > 0 {
            warnings.push(Warning::LeftOut { rounds: self.left_out });
        }
        warnings
    }
}
