//! One sample: its summary, and intervals for what it was drawn from.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, FisherSnedecor, Normal, StudentsT};

/// Resamples for the interval of a summary's median.
const RESAMPLES: usize = 2000;

/// Fewer values than this have no interval of their median: it would span all of them, and still promise too much.
pub(crate) const FEWEST_FOR_MEDIAN: usize = 5;

/// No interval is surer than this.
const SUREST: f64 = 1.0 - 1e-12;

/// The longest sample whose signed ranks are counted exactly.
const MOST_EXACT: usize = 50;

/// From `low` to `high`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end, at least `low`.
    pub high: f64,
}

impl Interval {
    /// Whether a value lies within, the ends included.
    #[must_use]
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// From the lower to the upper end.
    #[must_use]
    pub fn width(&self) -> f64 {
        self.high - self.low
    }
}

/// What a sample looks like. Values that aren't finite don't count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Summary {
    /// How many finite values there are. If there is none, all figures are NaN.
    pub n: usize,
    /// The arithmetic mean.
    pub mean: f64,
    /// The value in the middle, or the mean of both that are.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// The standard deviation of the population, estimated with n − 1; of one value 0.
    pub sd: f64,
    /// The median distance from the median, not scaled.
    pub mad: f64,
    /// 95 % percentile bootstrap interval of the median, of five values and more. It is for looking at: with so few
    /// values it is rather too narrow.
    pub interval: Option<Interval>,
}

/// Summarises a sample. The seed is for the bootstrap.
#[must_use]
pub fn summary(values: &[f64], seed: u64) -> Summary {
    let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    Summary {
        n: values.len(),
        mean: mean(&values),
        median: median(&values),
        min: values.iter().copied().fold(f64::NAN, f64::min),
        max: values.iter().copied().fold(f64::NAN, f64::max),
        sd: if values.len() == 1 { 0.0 } else { variance(&values).sqrt() },
        mad: mad(&values),
        interval: (values.len() >= FEWEST_FOR_MEDIAN)
            .then(|| bootstrap(&values, median, RESAMPLES, 0.95, seed))
            .flatten(),
    }
}

/// The arithmetic mean; of nothing NaN.
pub(super) fn mean(values: &[f64]) -> f64 {
    // Divided first, so that no sum of finite values is infinite.
    let n = values.len() as f64;
    if values.is_empty() { f64::NAN } else { values.iter().map(|value| value / n).sum() }
}

/// The sum of squared distances from the mean.
pub(super) fn squares(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|value| (value - mean).powi(2)).sum()
}

/// The variance of the population, estimated; of fewer than two values NaN.
pub(super) fn variance(values: &[f64]) -> f64 {
    if values.len() < 2 { f64::NAN } else { squares(values) / (values.len() as f64 - 1.0) }
}

/// The value in the middle, or the mean of both that are; of nothing NaN.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The median distance from the median, not scaled; of nothing NaN.
#[must_use]
pub fn mad(values: &[f64]) -> f64 {
    let middle = median(values);
    median(&values.iter().map(|value| (value - middle).abs()).collect::<Vec<_>>())
}

/// The value below which a fraction of the sample lies, interpolated linearly between neighbours (as R's type 7); of
/// nothing NaN.
#[must_use]
pub fn quantile(values: &[f64], fraction: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    quantile_of_sorted(&sorted, fraction)
}

fn quantile_of_sorted(sorted: &[f64], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = fraction.clamp(0.0, 1.0) * last as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let (low, high) = (sorted[below], sorted[(below + 1).min(last)]);
    low * (1.0 - part) + high * part
}

/// A percentile bootstrap interval of a statistic: the sample is drawn anew from itself, with replacement, that many
/// times. `None` if the sample is empty or nothing is drawn.
#[must_use]
pub fn bootstrap(
    values: &[f64],
    mut statistic: impl FnMut(&[f64]) -> f64,
    resamples: usize,
    confidence: f64,
    seed: u64,
) -> Option<Interval> {
    if values.is_empty() || resamples == 0 {
        return None;
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut drawn = values.to_vec();
    let mut statistics: Vec<f64> = (0..resamples)
        .map(|_| {
            drawn.fill_with(|| values[random.usize(..values.len())]);
            statistic(&drawn)
        })
        .collect();
    statistics.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - confidence) / 2.0;
    Some(Interval {
        low: quantile_of_sorted(&statistics, tail),
        high: quantile_of_sorted(&statistics, 1.0 - tail),
    })
}

/// The mean of what a sample was drawn from, by Student's t.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The sample's mean.
    pub mean: f64,
    /// How far it may be off: the standard deviation over the root of n.
    pub standard_error: f64,
    /// n − 1.
    pub degrees_of_freedom: f64,
    /// Where the true mean is, with the confidence that was asked for.
    pub interval: Interval,
    /// How often a sample is at least as far from zero, if the true mean is zero (two-sided). Of values that are all
    /// alike it is 0, or 1 if they are zero.
    pub p_value: f64,
}

/// A t interval of the mean. `None` if there are fewer than two values, or one isn't finite.
#[must_use]
pub fn t_interval(values: &[f64], confidence: f64) -> Option<Mean> {
    if values.len() < 2 || values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let mean = mean(values);
    let standard_error = (variance(values) / values.len() as f64).sqrt();
    let degrees_of_freedom = values.len() as f64 - 1.0;
    let reach = t_quantile(confidence, degrees_of_freedom) * standard_error;
    let p_value = match (mean, standard_error) {
        (0.0, 0.0) => 1.0,
        _ => t_p_value(mean / standard_error, degrees_of_freedom),
    };
    let interval = Interval { low: mean - reach, high: mean + reach };
    Some(Mean { mean, standard_error, degrees_of_freedom, interval, p_value })
}

fn students_t(degrees_of_freedom: f64) -> Option<StudentsT> {
    StudentsT::new(0.0, 1.0, degrees_of_freedom).ok()
}

/// How many standard errors to each side have that confidence, which is taken as at least 0 and a little less than 1.
pub(super) fn t_quantile(confidence: f64, degrees_of_freedom: f64) -> f64 {
    let confidence = if confidence > 0.0 { confidence.min(SUREST) } else { 0.0 };
    students_t(degrees_of_freedom).map_or(f64::INFINITY, |t| -t.inverse_cdf((1.0 - confidence) / 2.0))
}

/// How often Student's t is at least that far from zero.
pub(super) fn t_p_value(t: f64, degrees_of_freedom: f64) -> f64 {
    students_t(degrees_of_freedom).map_or(1.0, |distribution| 2.0 * distribution.cdf(-t.abs()))
}

/// How often a ratio of variances is at least that much.
pub(super) fn f_p_value(ratio: f64, above: f64, below: f64) -> f64 {
    if ratio.is_infinite() {
        return 0.0;
    }
    FisherSnedecor::new(above, below).map_or(1.0, |distribution| distribution.sf(ratio))
}

/// What Wilcoxon's signed-rank test says of differences.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SignedRank {
    /// The smaller of both sums of ranks.
    pub statistic: f64,
    /// How often it is as small, if differences are as often below zero as above (two-sided).
    pub p_value: f64,
    /// How many differences aren't zero; the others are left out.
    pub n: usize,
}

/// Wilcoxon's signed-rank test of differences against zero: counted exactly where there are at most 50 and no two are
/// of one size, else by the normal distribution, corrected for ties. `None` if all are zero, or one isn't finite.
#[must_use]
pub fn wilcoxon_signed_rank(differences: &[f64]) -> Option<SignedRank> {
    let mut sorted: Vec<f64> = differences.iter().copied().filter(|value| *value != 0.0).collect();
    if sorted.is_empty() || sorted.iter().any(|value| !value.is_finite()) {
        return None;
    }
    sorted.sort_unstable_by(|a, b| a.abs().total_cmp(&b.abs()));
    let n = sorted.len();
    let (mut below, mut above, mut ties, mut ranked) = (0.0, 0.0, 0.0, 0.0);
    for alike in sorted.chunk_by(|a, b| a.abs() == b.abs()) {
        let size = alike.len() as f64;
        let rank = ranked + f64::midpoint(size, 1.0);
        for value in alike {
            *(if *value < 0.0 { &mut below } else { &mut above }) += rank;
        }
        ties += size.powi(3) - size;
        ranked += size;
    }
    let statistic = f64::min(below, above);
    let exact = n <= MOST_EXACT && ties == 0.0 && n == differences.len();
    let p_value = if exact { exact_rank_p(n, statistic) } else { normal_rank_p(n, statistic, ties) };
    Some(SignedRank { statistic, p_value, n })
}

/// Of all ways to give signs to the ranks 1 to n, the part whose smaller sum is at most this.
fn exact_rank_p(n: usize, statistic: f64) -> f64 {
    // How probable each sum of the ranks above zero is.
    let mut sums = vec![0.0; n * (n + 1) / 2 + 1];
    sums[0] = 1.0;
    for rank in 1..=n {
        for sum in (0..sums.len()).rev() {
            let with = if sum >= rank { sums[sum - rank] } else { 0.0 };
            sums[sum] = f64::midpoint(sums[sum], with);
        }
    }
    let tail: f64 = sums[..=statistic as usize].iter().sum();
    (2.0 * tail).min(1.0)
}

fn normal_rank_p(n: usize, statistic: f64, ties: f64) -> f64 {
    let n = n as f64;
    let deviation = ((n * (n + 1.0) * (2.0 * n + 1.0) - ties / 2.0) / 24.0).sqrt();
    let z = (statistic - n * (n + 1.0) / 4.0) / deviation;
    2.0 * Normal::standard().cdf(-z.abs())
}
