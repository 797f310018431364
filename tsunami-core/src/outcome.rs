//! What a run came to, in one word, and which of several errors says it.

use crate::error::{Error, Failures};
use crate::provider::ProviderErrorKind;

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// All went well.
    Success,
    /// The experiment failed: a command failed or timed out.
    Failed,
    /// What the user asked for can't be: the plan, the experiment file or a local tool is at fault.
    Misused,
    /// No machines could be had.
    NotLaunched,
    /// A machine was lost.
    MachineLost,
    /// It was cancelled, and everything is torn down.
    Interrupted,
    /// Something may remain.
    Remains,
}

impl Outcome {
    /// What ended a run. Where several apply, the outermost is the one that counts most.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::Remains { .. } | Error::NewerRecord { .. } => Self::Remains,
            Error::Cancelled => Self::Interrupted,
            Error::Lost { .. }
            | Error::Interrupted { .. }
            | Error::Unfit { .. }
            | Error::Connect { .. }
            | Error::LifetimeOver(_) => Self::MachineLost,
            Error::Launch { .. } | Error::Budget { .. } => Self::NotLaunched,
            Error::Several(Failures { first, others }) => {
                let all = std::iter::once(&**first).chain(others).map(Self::of);
                all.min_by_key(|outcome| outcome.rank()).unwrap_or(Self::Failed)
            }
            Error::Quote { failures } => {
                // What the user can mend in the file comes before what the account lacks.
                let all = failures.iter().map(|failure| Self::of_launch(failure.error.kind));
                all.min_by_key(|outcome| outcome.exit_status()).unwrap_or(Self::NotLaunched)
            }
            Error::Plan { .. }
            | Error::Prepare(_)
            | Error::Record { .. }
            | Error::Untrusted(_)
            | Error::UnknownRun { .. }
            | Error::AmbiguousRun { .. }
            | Error::LifetimeTooLong { .. } => Self::Misused,
            Error::Incomplete { .. }
            | Error::Command { .. }
            | Error::Timeout { .. }
            | Error::Local { .. }
            | Error::Session { .. }
            | Error::At { .. }
            | Error::Other(_) => Self::Failed,
        }
    }

    /// The same for machines that could not be had.
    pub fn of_launch(kind: ProviderErrorKind) -> Self {
        match kind {
            ProviderErrorKind::InvalidSpec | ProviderErrorKind::Unsupported => Self::Misused,
            _ => Self::NotLaunched,
        }
    }

    /// The exit status by which programs say it.
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::Misused => 2,
            Self::NotLaunched => 3,
            Self::MachineLost => 4,
            Self::Interrupted => 5,
            Self::Remains => 6,
        }
    }

    /// The words by which results say it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failed | Self::Misused => "failed",
            Self::NotLaunched => "not launched",
            Self::MachineLost => "machine lost",
            Self::Interrupted => "interrupted",
            Self::Remains => "something may remain",
        }
    }

    /// From what counts most to what counts least.
    fn rank(self) -> u8 {
        match self {
            Self::Remains => 0,
            Self::MachineLost => 1,
            Self::NotLaunched => 2,
            Self::Failed | Self::Misused | Self::Success => 3,
            Self::Interrupted => 4,
        }
    }
}

/// One error of several that came in this order. What was only cancelled, or failed on a machine that had failed
/// before, tells nothing new unless it counts for more.
///
/// ```
/// # use tsunami_core::{Error, gravest};
/// let error = gravest(vec![Error::Cancelled, "the first".into(), "the second".into()]).unwrap();
/// assert_eq!(error.to_string(), "the first; 1 failure followed");
/// ```
pub fn gravest(errors: Vec<Error>) -> Option<Error> {
    let flat = errors.into_iter().flat_map(|error| match error {
        Error::Several(Failures { first, others }) => std::iter::once(*first).chain(others).collect(),
        error => vec![error],
    });
    let mut kept: Vec<Error> = Vec::new();
    for error in flat {
        let tells_nothing_new = |earlier: &Error| {
            let same = match (earlier.place(), error.place()) {
                (Some((machine, _)), Some((same, _))) => machine == same,
                _ => matches!(error, Error::Cancelled),
            };
            same && Outcome::of(earlier).rank() <= Outcome::of(&error).rank()
        };
        if !kept.iter().any(tells_nothing_new) {
            kept.push(error);
        }
    }
    if kept.iter().any(|error| !matches!(error, Error::Cancelled)) {
        kept.retain(|error| !matches!(error, Error::Cancelled));
    }
    let mut kept = kept.into_iter();
    let (first, others) = (kept.next()?, kept.collect::<Vec<_>>());
    if others.is_empty() {
        return Some(first);
    }
    Some(Error::Several(Failures { first: Box::new(first), others }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_end_that_is_asked_for_and_cannot_be_is_no_failed_experiment() {
        let (limit, lifetime) = (Duration::from_secs(60), Duration::from_secs(61));
        assert_eq!(Outcome::of(&Error::LifetimeTooLong { lifetime, limit }), Outcome::Misused);
    }

    #[test]
    fn the_first_in_time_comes_first_and_the_gravest_decides() {
        let at = |machine: &str, what: &str| Error::At {
            machine: machine.to_owned(),
            stage: "load".to_owned(),
            source: what.into(),
        };
        let lost = |machine: &str| Error::Lost {
            machine: machine.to_owned(),
            stage: "load".to_owned(),
            command: None,
            source: "gone".into(),
        };
        let one = gravest(vec![Error::Cancelled, at("a", "x"), Error::Cancelled, at("a", "again")]);
        assert!(matches!(&one, Some(Error::At { .. })), "{one:?}");
        let step = gravest(vec![at("b", "boom"), at("a", "no file"), lost("a")]).unwrap();
        let all = gravest(vec![step, at("c", "left"), lost("a")]).unwrap();
        assert_eq!(Outcome::of(&all), Outcome::MachineLost);
        assert!(matches!(gravest(vec![Error::Cancelled]), Some(Error::Cancelled)));
        assert!(gravest(Vec::new()).is_none());
    }
}
