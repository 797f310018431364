//! What measurements say: summaries, comparisons within rounds, verdicts, and the sentences that tell them.
//!
//! Everything here is a pure function of its arguments. Where chance is needed, the caller gives the seed or, for
//! [`verdict()`], it is always the same.
//!
//! - The unit is the trial. A [`Round`] holds one trial of each variant on one set of machines, and [`compare`] looks
//!   at the differences within rounds: what a round's trials share cancels.
//! - [`compare`]'s interval is over rounds and holds for *these* machines. [`across_sets`] infers to other machines,
//!   where rounds ran on at least [`SETS_NEEDED`] sets that were launched separately.
//! - [`verdict()`] makes one of three answers of a comparison: they differ, they don't by more than the margin, or it
//!   can't be told. [`Words`] has the sentences, for terminals and reports alike.
//! - A [`Threshold`] is a line of `fail_if`. Whoever makes many comparisons corrects the confidence: [`bonferroni`].
//! - [`summary`], [`bootstrap`], [`t_interval`] and [`wilcoxon_signed_rank`] are for looking at samples.
//!
//! How often the intervals are right is measured by `cargo xtask statistics`; `docs/TRUST.md` has the figures.
//!
//! ```
//! use tsunami_core::statistics::{Direction, Placed, Round, Words, compare, verdict};
//!
//! // Requests a second of `old` and `new`, which take turns at going first.
//! let measured = [(100.0, 109.0), (101.0, 112.0), (99.0, 109.5), (100.5, 110.0), (98.5, 108.0), (101.5, 113.0)];
//! let rounds: Vec<Round> = (0..)
//!     .zip(measured)
//!     .map(|(round, (old, new))| {
//!         let place = round % 2;
//!         Round { set: 1, values: vec![Some(Placed { value: old, place }), Some(Placed { value: new, place: 1 - place })] }
//!     })
//!     .collect();
//! let comparison = compare(&rounds, 0, 1, 0.95)?;
//! let words = Words { metric: "rps", unit: Some("1/s"), baseline: "old", variant: "new" };
//! let told = verdict(&comparison, 0.03, Some(Direction::Higher));
//! assert_eq!(words.sentence(&comparison, &told, 0.03), "rps of new is 9.2 to 11.1 % higher (better)");
//! # Ok::<(), tsunami_core::statistics::TooFew>(())
//! ```

mod compare;
mod condition;
mod sample;
#[cfg(test)]
mod tests;
mod threshold;
mod verdict;
mod words;

pub use compare::{Comparison, Placed, Round, SETS_NEEDED, Scale, TooFew, across_sets, bonferroni, compare};
pub use condition::Warning;
#[cfg(feature = "experiment")]
pub(crate) use sample::FEWEST_FOR_MEDIAN;
pub use sample::{
    Interval, Mean, SignedRank, Summary, bootstrap, mad, median, quantile, summary, t_interval,
    wilcoxon_signed_rank,
};
pub use threshold::{InvalidThreshold, Judgement, Op, Threshold};
pub use verdict::{Direction, MOST_MORE_REPEATS, MoreRepeats, Verdict, verdict};
pub use words::Words;
pub(crate) use words::change;
#[doc(hidden)]
pub use words::significant;
#[cfg(feature = "experiment")]
pub(crate) use words::times;
