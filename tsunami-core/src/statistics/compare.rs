//! Two variants, compared within rounds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Interval;
use super::condition::{self, Trial, Warning};
use super::sample::{f_p_value, mean, squares, t_quantile, variance};

/// With fewer rounds than this for each coefficient, a degree of freedom is dear: places are adjusted for only where they
/// clearly matter.
pub(super) const ALWAYS_ADJUSTED: usize = 8;

/// With fewer degrees of freedom than this, places are never adjusted for.
const FEWEST_FREE: usize = 2;

/// What counts as clear: a chance of seeing it where places don't matter that is so much of the chance that the interval
/// is wrong. Else that choice would make intervals that are to be very sure much less so.
const CLEAR: f64 = 0.4;

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
#[error("can't be compared: it takes 2 rounds in which both have a value, and there is {}", if *rounds == 1 { "one" } else { "none" })]
#[non_exhaustive]
pub struct TooFew {
    /// How many there are: 0 or 1.
    pub rounds: usize,
    /// How many rounds were left out, since one value is missing or isn't finite.
    pub left_out: usize,
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
/// What a place in the round does is estimated and taken away: a slope over places and, where rounds are of more than two,
/// what the first of a round has besides (it finds cold caches, say). That costs a degree of freedom for each, which is
/// dear where rounds are few. So with fewer than 8 rounds (16 where it takes two) it is done only if places clearly matter
/// (an F test: p < 2 % for 95 % confidence, and in proportion for others).
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
    let fit = pairs.fit(confidence);
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
    let mut fit = pairs.fit(confidence);
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

    /// Whether the variant ran first of its round (1), or the baseline (−1).
    fn first(&self) -> f64 {
        f64::from(self.variant.place == 0) - f64::from(self.baseline.place == 0)
    }
}

/// What places do to differences, by least squares: a slope over places, and what the first of a round has besides.
#[derive(Debug)]
struct Places {
    slope: f64,
    /// `None` if it can't be told from the slope, as where rounds are of two.
    first: Option<f64>,
    /// How much of the sum of squares that explains.
    explained: f64,
    /// What it comes to in the mean round.
    at_mean: f64,
    /// How much its error adds to that of the mean, in residual variances.
    leverage: f64,
}

impl Places {
    /// `None` if places don't differ, or rounds are too few.
    fn of(pairs: &[Pair], differences: &[f64]) -> Option<Self> {
        let places: Vec<f64> = pairs.iter().map(Pair::places).collect();
        let first: Vec<f64> = pairs.iter().map(Pair::first).collect();
        let (place, ran_first) = (mean(&places), mean(&first));
        let (xx, zz) = (products(&places, &places), products(&first, &first));
        let (xz, xy, zy) =
            (products(&places, &first), products(&places, differences), products(&first, differences));
        let determinant = xx * zz - xz * xz;
        // Sums of squares of small whole numbers: what is not zero is far from it.
        if determinant > 1e-6 * xx * zz && pairs.len() >= FEWEST_FREE + 3 {
            let (slope, first) = ((zz * xy - xz * zy) / determinant, (xx * zy - xz * xy) / determinant);
            return Some(Self {
                slope,
                first: Some(first),
                explained: slope * xy + first * zy,
                at_mean: slope * place + first * ran_first,
                leverage: (zz * place * place - 2.0 * xz * place * ran_first + xx * ran_first * ran_first)
                    / determinant,
            });
        }
        (xx > 0.0 && pairs.len() >= FEWEST_FREE + 2).then(|| Self {
            slope: xy / xx,
            first: None,
            explained: xy * xy / xx,
            at_mean: xy / xx * place,
            leverage: place * place / xx,
        })
    }

    fn coefficients(&self) -> usize {
        1 + usize::from(self.first.is_some())
    }

    fn effect(&self, pair: &Pair) -> f64 {
        self.slope * pair.places() + self.first.unwrap_or(0.0) * pair.first()
    }

    fn second_over_first(&self) -> f64 {
        self.slope - self.first.unwrap_or(0.0)
    }
}

/// The sum of products of both distances from the means.
fn products(left: &[f64], right: &[f64]) -> f64 {
    let (middle, other) = (mean(left), mean(right));
    left.iter().zip(right).map(|(left, right)| (left - middle) * (right - other)).sum()
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
    /// By how much the second of a round is above the first, and how often places seem to do that much if they do
    /// nothing; where that can be estimated.
    place: Option<(f64, f64)>,
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

    fn fit(&self, confidence: f64) -> Fit {
        let differences: Vec<f64> = self.pairs.iter().map(Pair::difference).collect();
        let (count, n) = (differences.len(), differences.len() as f64);
        let (middle, total) = (mean(&differences), squares(&differences));
        let mut fit = Fit {
            estimate: middle,
            standard_error: (total / (n - 1.0) / n).sqrt(),
            degrees_of_freedom: n - 1.0,
            adjusted_for_place: false,
            place: None,
            adjusted: differences,
        };
        let Some(places) = Places::of(&self.pairs, &fit.adjusted) else { return fit };
        let coefficients = places.coefficients();
        let free = n - 1.0 - coefficients as f64;
        let residual = (total - places.explained).max(0.0) / free;
        let p_value = match places.explained {
            ..=0.0 => 1.0,
            explained => f_p_value(explained / coefficients as f64 / residual, coefficients as f64, free),
        };
        fit.place = Some((places.second_over_first(), p_value));
        if count < ALWAYS_ADJUSTED * coefficients && p_value > CLEAR * (1.0 - confidence) {
            return fit;
        }
        fit.adjusted_for_place = true;
        fit.estimate -= places.at_mean;
        fit.standard_error = (residual * (1.0 / n + places.leverage)).sqrt();
        fit.degrees_of_freedom = free;
        for (difference, pair) in fit.adjusted.iter_mut().zip(&self.pairs) {
            *difference -= places.effect(pair);
        }
        fit
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
        let mut warnings = condition::of_places(&places, fit.adjusted_for_place, fit.place, self.scale);
        let values = self.pairs.iter().flat_map(|pair| [pair.baseline.value, pair.variant.value]);
        let largest = values.fold(0.0, |largest, value| value.abs().max(largest));
        warnings.extend(condition::of_differences(&fit.adjusted, largest));
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
