//! What a comparison means to somebody who has to decide.

use serde::{Deserialize, Serialize};

use super::compare::{Comparison, Scale};
use super::sample::{quantile, t_quantile};

/// How many futures are drawn to say how many more repeats it takes. They are always the same ones.
const FUTURES: usize = 400;

/// Further repeats than this aren't looked at.
pub const MOST_MORE_REPEATS: usize = 1000;

/// Which values are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The higher, as of throughput.
    Higher,
    /// The lower, as of latency.
    Lower,
}

/// Whether two variants differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    /// They do, and it may be by more than the margin.
    Differs {
        /// Whether the variant is higher than the baseline.
        higher: bool,
        /// Whether the variant is better than the baseline, if somebody said which values are.
        better: Option<bool>,
    },
    /// They don't by more than the margin.
    Same,
    /// What was measured doesn't say.
    CannotTell {
        /// How many more repeats would. `None` if more than [`MOST_MORE_REPEATS`], or repeats don't help.
        more: Option<MoreRepeats>,
    },
}

/// How many more rounds are needed until [`verdict()`] tells: counted in futures that what was measured makes probable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoreRepeats {
    /// In half of them so many are enough.
    pub estimate: usize,
    /// In a tenth of them so many are enough.
    pub low: usize,
    /// In nine tenths of them so many are enough; [`MOST_MORE_REPEATS`] if it takes more.
    pub high: usize,
}

/// The difference that doesn't matter, on the scale that is calculated with.
#[derive(Clone, Copy, Debug)]
struct Margin {
    below: f64,
    above: f64,
}

impl Margin {
    fn of(comparison: &Comparison, margin: f64) -> Self {
        match comparison.scale {
            Scale::Ratio => Self { below: (1.0 - margin).max(0.0).ln(), above: margin.ln_1p() },
            Scale::Difference => {
                let above = margin * comparison.baseline_mean.abs();
                Self { below: -above, above }
            }
        }
    }

    fn holds(self, low: f64, high: f64) -> bool {
        self.below <= low && high <= self.above
    }

    /// Whether an interval tells anything: that there is a difference, or none that matters.
    fn tells(self, low: f64, high: f64) -> bool {
        low > 0.0 || high < 0.0 || self.holds(low, high)
    }
}

/// Says what a comparison comes to. Differences within `margin` don't matter: 0.03 is 3 % of the baseline. One that is
/// certain but lies within it counts as none.
#[must_use]
pub fn verdict(comparison: &Comparison, margin: f64, direction: Option<Direction>) -> Verdict {
    let none = match comparison.scale {
        Scale::Ratio => 1.0,
        Scale::Difference => 0.0,
    };
    let interval = comparison.interval;
    let (low, high) = (comparison.scale.work(interval.low), comparison.scale.work(interval.high));
    let margin = Margin::of(comparison, margin);
    if margin.holds(low, high) {
        Verdict::Same
    } else if interval.low > none || interval.high < none {
        let higher = interval.low > none;
        let better = direction.map(|direction| higher == (direction == Direction::Higher));
        Verdict::Differs { higher, better }
    } else {
        Verdict::CannotTell { more: more_repeats(comparison, margin) }
    }
}

/// Draws what is true from what was measured (the posterior where all was equally probable before), then rounds until
/// they tell.
fn more_repeats(comparison: &Comparison, margin: Margin) -> Option<MoreRepeats> {
    // Further rounds on the same sets say little of other machines.
    if comparison.sets.is_some() || !comparison.standard_error.is_finite() || comparison.standard_error <= 0.0
    {
        return None;
    }
    let n = comparison.rounds as f64;
    let estimate = comparison.scale.work(comparison.estimate);
    let freedom = comparison.degrees_of_freedom;
    let squares = comparison.standard_error.powi(2) * n * freedom;
    let reaches: Vec<f64> = (1..=MOST_MORE_REPEATS)
        .map(|more| t_quantile(comparison.confidence, freedom + more as f64))
        .collect();
    let mut random = Normals(fastrand::Rng::with_seed(0x7e11), None);
    let needed: Vec<f64> = (0..FUTURES)
        .map(|_| {
            let chi_squared: f64 = (0..freedom as usize).map(|_| random.next().powi(2)).sum();
            let deviation = (squares / chi_squared).sqrt();
            let truth = estimate + random.next() * deviation / n.sqrt();
            let (mut count, mut mean, mut squares, mut freedom) = (n, estimate, squares, freedom);
            let told = reaches.iter().position(|reach| {
                let away = truth + random.next() * deviation - mean;
                count += 1.0;
                freedom += 1.0;
                mean += away / count;
                squares += away * away * (count - 1.0) / count;
                let reach = reach * (squares / freedom / count).sqrt();
                margin.tells(mean - reach, mean + reach)
            });
            told.map_or(MOST_MORE_REPEATS, |before| before + 1) as f64
        })
        .collect();
    let part = |fraction| quantile(&needed, fraction).round() as usize;
    let estimate = part(0.5);
    (estimate < MOST_MORE_REPEATS).then(|| MoreRepeats { estimate, low: part(0.1), high: part(0.9) })
}

/// Normal values, by pairs as Marsaglia's polar method makes them.
#[derive(Debug)]
struct Normals(fastrand::Rng, Option<f64>);

impl Normals {
    fn next(&mut self) -> f64 {
        if let Some(kept) = self.1.take() {
            return kept;
        }
        loop {
            let (x, y) = (2.0 * self.0.f64() - 1.0, 2.0 * self.0.f64() - 1.0);
            let square = x * x + y * y;
            if square > 0.0 && square < 1.0 {
                let factor = (-2.0 * square.ln() / square).sqrt();
                self.1 = Some(y * factor);
                return x * factor;
            }
        }
    }
}
