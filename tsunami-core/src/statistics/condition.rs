//! What data look like where an interval deserves less trust.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::compare::{Placed, Scale};
use super::sample::{mad, mean, median, squares, t_p_value};

/// With fewer rounds than this, little is known of how rounds differ.
const FEW_ROUNDS: usize = 5;

/// A round this many times as far from the median as is usual is an outlier.
const FAR: f64 = 6.0;

/// How often a warning may come of chance alone.
const BY_CHANCE: f64 = 0.01;

/// How far chance takes a standard normal value above zero that seldom.
const FAR_FROM_NORMAL: f64 = 2.326;

/// With fewer trials than this, nothing is said of how they follow each other.
const FEWEST_IN_SEQUENCE: usize = 8;

/// What speaks against trusting an interval, or for reading it with care. Each is a sentence, as it is displayed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Warning {
    /// There are fewer than five rounds.
    FewRounds {
        /// How many there are.
        rounds: usize,
    },
    /// All rounds say exactly the same.
    NoSpread,
    /// One variant always ran as many places after the other, so that places and variants can't be told apart.
    AlwaysTheSameOrder,
    /// One variant ran first much more often, and what places do wasn't taken away.
    Unbalanced,
    /// What ran one place later clearly measured something else.
    PlaceMatters {
        /// Relative where values are compared as ratios, else in the metric's unit.
        change: f64,
        /// Whether it was taken away.
        adjusted: bool,
    },
    /// Some rounds are far from the others.
    Outliers {
        /// How many.
        rounds: usize,
    },
    /// What was measured rose or fell along the run.
    Drift {
        /// From the first trial on a set of machines to its last: relative where values are compared as ratios, else in
        /// the metric's unit.
        change: f64,
    },
    /// Trials that follow each other are alike, beyond what they should be.
    Correlated {
        /// Of neighbours, from −1 to 1.
        correlation: f64,
    },
    /// Some rounds have no value of one variant.
    LeftOut {
        /// How many.
        rounds: usize,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FewRounds { rounds } => write!(f, "{rounds} rounds are few: the interval rests on the assumption that rounds differ as a normal distribution does"),
            Self::NoSpread => f.write_str("all rounds say exactly the same, so the interval has no width"),
            Self::AlwaysTheSameOrder => f.write_str("the variants always ran in the same order: what the order does can't be told from what they do"),
            Self::Unbalanced => f.write_str("one variant ran first much more often: what the order does may be taken for what they do"),
            Self::PlaceMatters { adjusted, .. } => {
                f.write_str("the place in the round matters")?;
                f.write_str(if *adjusted { "; it was adjusted for" } else { ", and there are too few rounds to adjust for it" })
            }
            Self::Outliers { rounds: 1 } => f.write_str("one round is far from the others"),
            Self::Outliers { rounds } => write!(f, "{rounds} rounds are far from the others"),
            Self::Drift { .. } => f.write_str("what was measured drifted along the run"),
            Self::Correlated { .. } => f.write_str("trials that follow each other are alike: the interval may be too narrow"),
            Self::LeftOut { rounds: 1 } => f.write_str("one round was left out, since a value is missing"),
            Self::LeftOut { rounds } => write!(f, "{rounds} rounds were left out, since a value is missing"),
        }
    }
}

/// A change as users read it: a part of the whole where it is between logarithms.
fn change(scale: Scale, worked: f64) -> f64 {
    match scale {
        Scale::Ratio => worked.exp_m1(),
        Scale::Difference => worked,
    }
}

/// Of how many places the variant ran after the baseline, and of what a place does: its slope, and how probable that is
/// by chance.
pub(super) fn of_places(
    places: &[f64],
    adjusted: bool,
    slope: Option<(f64, f64)>,
    scale: Scale,
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let middle = mean(places);
    if squares(places) == 0.0 {
        warnings.push(Warning::AlwaysTheSameOrder);
    } else if !adjusted && middle.powi(2) > squares(places) / places.len() as f64 / 3.0 {
        // The mean is more than half of what it would be in always the same order.
        warnings.push(Warning::Unbalanced);
    }
    if let Some((slope, p_value)) = slope
        && p_value < BY_CHANCE
    {
        warnings.push(Warning::PlaceMatters { change: change(scale, slope), adjusted });
    }
    warnings
}

/// Of the differences within rounds.
pub(super) fn of_differences(differences: &[f64]) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if differences.len() < FEW_ROUNDS {
        warnings.push(Warning::FewRounds { rounds: differences.len() });
    }
    if squares(differences) == 0.0 {
        warnings.push(Warning::NoSpread);
    }
    // 1.4826 makes the MAD of a normal distribution its standard deviation.
    let (middle, usual) = (median(differences), 1.4826 * mad(differences));
    let far = differences.iter().filter(|value| (*value - middle).abs() > FAR * usual).count();
    if far > 0 && usual > 0.0 && differences.len() >= FEW_ROUNDS {
        warnings.push(Warning::Outliers { rounds: far });
    }
    warnings
}

/// One trial, as it is calculated with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    pub(super) set: u32,
    pub(super) of_variant: bool,
    pub(super) placed: Placed,
}

/// Of all trials, in the order in which they ran.
pub(super) fn of_sequence(mut trials: Vec<Trial>, scale: Scale) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let n = trials.len() as f64;
    if trials.len() < FEWEST_IN_SEQUENCE {
        return warnings;
    }
    // What is explained is taken away: what variants, places and machines do.
    center(&mut trials, |trial| u32::from(trial.of_variant));
    center(&mut trials, |trial| trial.placed.place);
    center(&mut trials, |trial| trial.set);
    let times = times(&trials);
    let values = trials.iter().map(|trial| trial.placed.value);
    let (spread, apart): (f64, f64) =
        (values.clone().map(|value| value * value).sum(), times.iter().map(|time| time * time).sum());
    let together: f64 = values.zip(&times).map(|(value, time)| value * time).sum();
    if spread == 0.0 || apart == 0.0 {
        return warnings;
    }
    let slope = together / apart;
    let residual = (spread - slope * together).max(0.0);
    let t = slope / (residual / (n - 3.0) / apart).sqrt();
    if t_p_value(t, n - 3.0) < BY_CHANCE {
        let longest = times.iter().copied().fold(0.0, f64::max) - times.iter().copied().fold(0.0, f64::min);
        warnings.push(Warning::Drift { change: change(scale, slope * longest) });
    }
    for (trial, time) in trials.iter_mut().zip(&times) {
        trial.placed.value -= slope * time;
    }
    let neighbours = trials.windows(2).filter(|pair| pair[0].set == pair[1].set);
    let correlation =
        neighbours.map(|pair| pair[0].placed.value * pair[1].placed.value).sum::<f64>() / residual;
    if correlation * n.sqrt() > FAR_FROM_NORMAL {
        warnings.push(Warning::Correlated { correlation });
    }
    warnings
}

/// Takes the mean of each class away.
fn center(trials: &mut [Trial], class: impl Fn(&Trial) -> u32) {
    let mut sums = std::collections::BTreeMap::<u32, (f64, f64)>::new();
    for trial in &*trials {
        let (sum, count) = sums.entry(class(trial)).or_default();
        *sum += trial.placed.value;
        *count += 1.0;
    }
    for trial in trials {
        let (sum, count) = sums[&class(trial)];
        trial.placed.value -= sum / count;
    }
}

/// When each trial ran, counted in trials from the middle of its stretch on one set of machines.
fn times(trials: &[Trial]) -> Vec<f64> {
    let stretches = trials.chunk_by(|a, b| a.set == b.set);
    stretches
        .flat_map(|stretch| {
            let middle = (stretch.len() as f64 - 1.0) / 2.0;
            (0..stretch.len()).map(move |time| time as f64 - middle)
        })
        .collect()
}
