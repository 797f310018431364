//! The sentences that tell a verdict.

use super::compare::{Comparison, Scale};
use super::verdict::{MOST_MORE_REPEATS, Verdict};

/// From this ratio on, it reads better than a percentage.
const TIMES: f64 = 3.0;

/// Where an interval reaches this ratio, percentages are too long to be read.
const FACTORS: f64 = 100.0;

/// More decimals than this aren't shown.
const MOST_DECIMALS: usize = 12;

/// What the sentences speak of. Names are put in as they are: whoever prints them on a terminal sees to what is harmless
/// there.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a> {
    /// The metric's name.
    pub metric: &'a str,
    /// The metric's unit, for differences.
    pub unit: Option<&'a str>,
    /// The baseline's name.
    pub baseline: &'a str,
    /// The variant's name.
    pub variant: &'a str,
}

impl Words<'_> {
    /// Says what a comparison came to. The verdict is its own, and the margin the one that it was made with.
    #[must_use]
    pub fn sentence(&self, comparison: &Comparison, verdict: &Verdict, margin: f64) -> String {
        let Self { metric, unit, baseline, variant } = self;
        let interval = comparison.interval;
        let (low, high, unit, margin) = match comparison.scale {
            Scale::Ratio => (percent(interval.low), percent(interval.high), Some("%"), 100.0 * margin),
            Scale::Difference => {
                (interval.low, interval.high, *unit, margin * comparison.baseline_mean.abs())
            }
        };
        let line = if *verdict == Verdict::Same { margin } else { 0.0 };
        let shown = Shown::new(low, high, line);
        let with_unit = |number: String| match unit {
            Some(unit) => format!("{number} {unit}"),
            None => number,
        };
        let range = factors(comparison).map(|(_, range)| range);
        let range = range.unwrap_or_else(|| with_unit(shown.signed_range(low, high)));
        match verdict {
            Verdict::Differs { higher, better } => {
                let better = match better {
                    Some(true) => " (better)",
                    Some(false) => " (worse)",
                    None => "",
                };
                let is_long = comparison.scale == Scale::Ratio && interval.high >= FACTORS;
                if comparison.scale == Scale::Ratio && (interval.low >= TIMES || is_long) {
                    let times = match is_long {
                        true => format!("{} to {}", factor(interval.low), factor(interval.high)),
                        false => {
                            Shown::new(interval.low, interval.high, 0.0).range(interval.low, interval.high)
                        }
                    };
                    return format!("{metric} of {variant} is {times} times that of {baseline}{better}");
                }
                let (way, near, far) = if *higher { ("higher", low, high) } else { ("lower", -high, -low) };
                format!("{metric} of {variant} is {} {way}{better}", with_unit(shown.range(near, far)))
            }
            Verdict::Same if low == 0.0 && high == 0.0 => {
                format!("{metric} of {baseline} and {variant} is the same")
            }
            Verdict::Same => {
                let margin = with_unit(plain(margin));
                format!("{metric} of {baseline} and {variant} differ by less than {margin} ({range})")
            }
            Verdict::CannotTell { more } => {
                let mut told =
                    format!("whether {metric} of {baseline} and {variant} differ can't be told ({range})");
                if let Some(more) = more {
                    let repeats = if more.estimate == 1 { "repeat" } else { "repeats" };
                    let over = if more.high >= MOST_MORE_REPEATS { "over " } else { "" };
                    let about = format!("; about {} more {repeats}", more.estimate);
                    told.push_str(&about);
                    if more.low < more.high {
                        told.push_str(&format!(", {} to {over}{},", more.low, more.high));
                    }
                    told.push_str(" would tell");
                }
                told
            }
        }
    }
}

fn percent(ratio: f64) -> f64 {
    100.0 * (ratio - 1.0)
}

/// A number above zero with three digits that count, or fewer if the others are zero.
fn plain(number: f64) -> String {
    let decimals = (2.0 - number.log10().floor()).clamp(0.0, MOST_DECIMALS as f64) as usize;
    let text = format!("{number:.decimals$}");
    if decimals == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

/// How many decimals an interval is shown with: so few that it reads well, so many that no end seems to lie on another
/// side of zero or of a line than it does, and that its width is seen.
#[derive(Clone, Copy, Debug)]
struct Shown(usize);

impl Shown {
    fn new(low: f64, high: f64, line: f64) -> Self {
        let same_sides = |decimals: usize| {
            let unit = 10_f64.powi(-(decimals as i32));
            let rounded = |value: f64| (value / unit).round() * unit;
            let wide = (high - low) >= 2.0 * unit || high == low;
            let sides = [low, high].into_iter().all(|value| {
                [-line, 0.0, line].into_iter().all(|line| {
                    let (truly, seemingly) = (value.total_cmp(&line), (rounded(value) - line));
                    value == line || (seemingly.abs() > unit / 10.0 && seemingly.total_cmp(&0.0) == truly)
                })
            });
            wide && sides
        };
        Self((0..MOST_DECIMALS).find(|decimals| same_sides(*decimals)).unwrap_or(MOST_DECIMALS))
    }

    fn number(self, value: f64) -> String {
        format!("{value:.0$}", self.0)
    }

    /// Of two values that are not below zero.
    fn range(self, near: f64, far: f64) -> String {
        let (near, far) = (self.number(near), self.number(far));
        if near == far { near } else { format!("{near} to {far}") }
    }

    fn signed(self, value: f64) -> String {
        let number = self.number(value.abs());
        let is_zero = number.chars().all(|digit| matches!(digit, '0' | '.'));
        match (is_zero, value < 0.0) {
            (true, _) => number,
            (false, true) => format!("−{number}"),
            (false, false) => format!("+{number}"),
        }
    }

    fn signed_range(self, low: f64, high: f64) -> String {
        let (low, high) = (self.signed(low), self.signed(high));
        if low == high { low } else { format!("{low} to {high}") }
    }
}

/// How much a variant differs, and the interval of that.
pub(crate) fn change(comparison: &Comparison) -> (String, String) {
    if let Some(factors) = factors(comparison) {
        return factors;
    }
    let (low, high) = (comparison.interval.low, comparison.interval.high);
    match comparison.scale {
        Scale::Ratio => {
            let percent = |ratio: f64| signed(100.0 * (ratio - 1.0));
            (
                format!("{} %", percent(comparison.estimate)),
                format!("{} to {} %", percent(low), percent(high)),
            )
        }
        Scale::Difference => (signed(comparison.estimate), format!("{} to {}", signed(low), signed(high))),
    }
}

/// The same as factors, where percentages would be too long.
fn factors(comparison: &Comparison) -> Option<(String, String)> {
    let (low, high) = (comparison.interval.low, comparison.interval.high);
    let is_long = comparison.scale == Scale::Ratio && high >= FACTORS;
    is_long.then(|| {
        (format!("×{}", factor(comparison.estimate)), format!("×{} to ×{}", factor(low), factor(high)))
    })
}

/// A ratio as how much more that is, or as a factor where that would be too long.
#[cfg(feature = "experiment")]
pub(crate) fn times(ratio: f64) -> String {
    if ratio >= FACTORS { format!("×{}", factor(ratio)) } else { format!("{} %", signed(percent(ratio))) }
}

/// A ratio with three or four digits that count.
fn factor(ratio: f64) -> String {
    if (1e-3..1e5).contains(&ratio) { significant(ratio) } else { format!("{ratio:.2e}") }
}

/// A number with its sign and two decimals at most.
pub(super) fn signed(value: f64) -> String {
    let text = match value.abs() {
        size @ 0.0..10.0 => format!("{size:.2}"),
        size @ ..1e4 => format!("{size:.1}"),
        size => significant(size),
    };
    match value {
        _ if text.chars().all(|digit| matches!(digit, '0' | '.')) => text,
        value if value < 0.0 => format!("−{text}"),
        _ => format!("+{text}"),
    }
}

/// A number with four digits that count.
pub fn significant(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let magnitude = value.abs().log10().floor();
    if !(-5.0..12.0).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    let decimals = (3.0 - magnitude).clamp(0.0, 8.0) as usize;
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}
