//! What makes a run fail by its measurements: a line of `fail_if`.

use std::fmt;
use std::str::FromStr;

use super::Interval;
use super::compare::{Comparison, Scale};

/// `rps < 0.95`: holds if the metric's ratio to the baseline lies beyond.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Threshold {
    /// Of which metric.
    pub metric: String,
    /// On which side it fails.
    pub op: Op,
    /// Variant / baseline, above 0.
    pub ratio: f64,
}

/// On which side of a [`Threshold`] a run fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// `<`
    Below,
    /// `>`
    Above,
}

/// Whether a [`Threshold`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Judgement {
    /// The whole interval lies beyond it: the run fails.
    Holds,
    /// It lies within the interval.
    Undecided,
    /// The whole interval lies on the other side.
    Not,
    /// The baseline's values are not above zero, so that there is no ratio.
    NoRatio,
}

/// Why a text is no [`Threshold`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidThreshold {
    /// It has neither `<` nor `>`.
    #[error("`{0}` has neither `<` nor `>`; write it as `rps < 0.95`")]
    NoOperator(String),
    /// It has `<=`, or more than one comparison.
    #[error("`{0}` has more than one sign; write it as `rps < 0.95`")]
    Operator(String),
    /// Nothing stands before the operator.
    #[error("`{0}` names no metric; write it as `rps < 0.95`")]
    NoMetric(String),
    /// What stands behind the operator is no number above 0.
    #[error("`{0}` is no ratio to the baseline; write a number above 0, such as 0.95")]
    Ratio(String),
}

impl Judgement {
    /// Whether it holds; `None` if that is not decided.
    pub(crate) fn holds(self) -> Option<bool> {
        match self {
            Self::Holds => Some(true),
            Self::Not => Some(false),
            Self::Undecided | Self::NoRatio => None,
        }
    }
}

impl FromStr for Threshold {
    type Err = InvalidThreshold;

    fn from_str(text: &str) -> Result<Self, InvalidThreshold> {
        let at = text.find(['<', '>']).ok_or_else(|| InvalidThreshold::NoOperator(text.to_owned()))?;
        let (metric, rest) = text.split_at(at);
        let op = if rest.starts_with('<') { Op::Below } else { Op::Above };
        let (metric, ratio) = (metric.trim(), rest[1..].trim());
        if ratio.contains(['<', '>', '=']) || metric.ends_with('=') {
            return Err(InvalidThreshold::Operator(text.to_owned()));
        }
        if metric.is_empty() {
            return Err(InvalidThreshold::NoMetric(text.to_owned()));
        }
        match ratio.parse::<f64>() {
            Ok(number) if number.is_finite() && number > 0.0 => {
                Ok(Self { metric: metric.to_owned(), op, ratio: number })
            }
            _ => Err(InvalidThreshold::Ratio(ratio.to_owned())),
        }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = match self.op {
            Op::Below => '<',
            Op::Above => '>',
        };
        write!(f, "{} {op} {}", self.metric, self.ratio)
    }
}

impl Threshold {
    /// Whether it holds for a comparison of its metric. Where that has differences in place of ratios, the threshold is
    /// taken of the baseline's mean; if that isn't above 0, there is no ratio.
    #[must_use]
    pub fn judge(&self, comparison: &Comparison) -> Judgement {
        let threshold = match comparison.scale {
            Scale::Ratio => self.ratio,
            Scale::Difference if comparison.baseline_mean > 0.0 => {
                (self.ratio - 1.0) * comparison.baseline_mean
            }
            Scale::Difference => return Judgement::NoRatio,
        };
        self.judge_interval(comparison.interval, threshold)
    }

    /// Whether a whole interval lies beyond `threshold`, which stands for the ratio.
    pub(crate) fn judge_interval(&self, interval: Interval, threshold: f64) -> Judgement {
        match self.op {
            Op::Below if interval.high < threshold => Judgement::Holds,
            Op::Above if interval.low > threshold => Judgement::Holds,
            _ if interval.contains(threshold) => Judgement::Undecided,
            _ => Judgement::Not,
        }
    }
}
