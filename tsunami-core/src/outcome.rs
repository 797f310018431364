//! What a run came to, in one word, what kind of trouble ended it, and which of several errors says it.

use std::error::Error as StdError;

use crate::error::{Error, Failures};
use crate::provider::{ProviderError, ProviderErrorKind};
use crate::session::{SessionError, SessionErrorKind};

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
        judge(error).1
    }

    /// The same for machines that could not be had.
    pub fn of_launch(kind: ProviderErrorKind) -> Self {
        judge_quote(kind).1
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

/// What kind of trouble an [`Error`] is, as [`Error::class`] says it: whose it is, and so what may help.
///
/// A program that goes on by itself branches on this:
///
/// ```
/// use tsunami_core::{Error, ErrorClass};
///
/// /// Whether the same again, a little later, may go well.
/// fn is_worth_another_try(error: &Error) -> bool {
///     matches!(error.class(), ErrorClass::Capacity | ErrorClass::Unavailable | ErrorClass::Lost)
/// }
///
/// assert!(!is_worth_another_try(&"the numbers do not add up".into()));
/// ```
///
/// What a run came to, and the exit status that says so, is another question: [`Outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorClass {
    /// The experiment's own: a command failed or timed out, a closure returned an error, trials are missing.
    Experiment,
    /// What was asked for can't be: a plan, a kind of machine, a name. The same again fails again.
    Invalid,
    /// This computer: a file, a program, a record.
    Local,
    /// It might cost more than it may.
    Budget,
    /// Nothing of that kind is free at the provider now: another kind, another place, or later.
    Capacity,
    /// The account may not have that many: other places may help, and other runs' ends; waiting does not.
    Quota,
    /// The provider refuses these credentials, or a machine is not known to be what it says it is.
    Credentials,
    /// The provider did not do what it was asked, for another reason: later, if at all.
    Unavailable,
    /// A machine can't be reached, isn't fit for use, was lost or taken back: other machines.
    Lost,
    /// The lifetime was over.
    Expired,
    /// Somebody cancelled it.
    Cancelled,
    /// Something may still exist, which comes before all else. What ended the run is the error's source.
    Remains,
}

impl ErrorClass {
    fn of_provider(kind: ProviderErrorKind) -> Self {
        match kind {
            ProviderErrorKind::InvalidSpec | ProviderErrorKind::Unsupported => Self::Invalid,
            ProviderErrorKind::Capacity => Self::Capacity,
            ProviderErrorKind::Quota => Self::Quota,
            ProviderErrorKind::Unauthorized => Self::Credentials,
            ProviderErrorKind::Throttled | ProviderErrorKind::Unavailable | ProviderErrorKind::Other => {
                Self::Unavailable
            }
        }
    }

    fn of_session(kind: SessionErrorKind) -> Self {
        match kind {
            SessionErrorKind::Connect | SessionErrorKind::Lost => Self::Lost,
            SessionErrorKind::HostKey => Self::Credentials,
            SessionErrorKind::Cancelled | SessionErrorKind::CancelledUnconfirmed => Self::Cancelled,
            SessionErrorKind::Remote | SessionErrorKind::Transfer => Self::Experiment,
            SessionErrorKind::Local => Self::Local,
        }
    }
}

impl Error {
    /// What kind of trouble it is. Of several errors, it is that of the one that counts most; of a program's own error,
    /// that of the first of ours among its sources.
    pub fn class(&self) -> ErrorClass {
        judge(self).0
    }
}

/// What each error is, and what a run came to that ended with it: the one place that says so.
fn judge(error: &Error) -> (ErrorClass, Outcome) {
    match error {
        Error::Remains { .. } | Error::NewerRecord { .. } => (ErrorClass::Remains, Outcome::Remains),
        Error::Cancelled => (ErrorClass::Cancelled, Outcome::Interrupted),
        Error::Lost { .. } | Error::Interrupted { .. } | Error::Unfit { .. } => {
            (ErrorClass::Lost, Outcome::MachineLost)
        }
        Error::Connect { source, .. } => (ErrorClass::of_session(source.kind), Outcome::MachineLost),
        Error::LifetimeOver(_) => (ErrorClass::Expired, Outcome::MachineLost),
        Error::Launch { source, .. } => (ErrorClass::of_provider(source.kind), Outcome::NotLaunched),
        Error::Budget { .. } => (ErrorClass::Budget, Outcome::NotLaunched),
        Error::Several(Failures { first, others }) => {
            let all = std::iter::once(&**first).chain(others).map(judge);
            all.min_by_key(|(_, outcome)| outcome.rank()).unwrap_or(OWN)
        }
        Error::Quote { failures } => {
            // What the user can mend in the file comes before what the account lacks.
            let all = failures.iter().map(|failure| judge_quote(failure.error.kind));
            let none = (ErrorClass::Unavailable, Outcome::NotLaunched);
            all.min_by_key(|(_, outcome)| outcome.exit_status()).unwrap_or(none)
        }
        Error::Plan { .. }
        | Error::UnknownRun { .. }
        | Error::AmbiguousRun { .. }
        | Error::LifetimeTooLong { .. } => (ErrorClass::Invalid, Outcome::Misused),
        Error::Prepare(_) | Error::Record { .. } | Error::Untrusted(_) => {
            (ErrorClass::Local, Outcome::Misused)
        }
        Error::Session { source, .. } => (ErrorClass::of_session(source.kind), Outcome::Failed),
        Error::Incomplete { .. } | Error::Command { .. } | Error::Timeout { .. } | Error::Local { .. } => OWN,
        Error::At { source, .. } | Error::Other(source) => judge_foreign(&**source),
    }
}

/// An error of the experiment's own.
const OWN: (ErrorClass, Outcome) = (ErrorClass::Experiment, Outcome::Failed);

/// A machine that can't be had as it is described is the description's fault.
fn judge_quote(kind: ProviderErrorKind) -> (ErrorClass, Outcome) {
    let class = ErrorClass::of_provider(kind);
    (class, if class == ErrorClass::Invalid { Outcome::Misused } else { Outcome::NotLaunched })
}

/// What a program made of an error may still have one of ours beneath it.
fn judge_foreign(error: &(dyn StdError + 'static)) -> (ErrorClass, Outcome) {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<Error>() {
            return judge(error);
        }
        // Nobody asked for machines there, so that none were refused.
        if let Some(error) = error.downcast_ref::<ProviderError>() {
            return (ErrorClass::of_provider(error.kind), Outcome::Failed);
        }
        if let Some(error) = error.downcast_ref::<SessionError>() {
            return (ErrorClass::of_session(error.kind), Outcome::Failed);
        }
        next = error.source();
    }
    OWN
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
    use crate::error::QuoteFailure;
    use crate::event::NewerSchema;
    use crate::machine::{MachineId, RunId};
    use crate::private;
    use crate::session::Exit;

    /// Every error, with what it is and the exit status of a run that ends with it.
    #[test]
    fn every_error_has_its_class_and_its_exit_status() {
        use ErrorClass::{
            Budget, Cancelled, Capacity, Credentials, Experiment, Expired, Invalid, Local, Lost, Quota,
            Remains, Unavailable,
        };
        let run: RunId = "20231114-221320-abcd".parse().unwrap();
        let text = || "x".to_owned();
        let second = Duration::from_secs(1);
        let exit = Exit::Status(1);
        let (stdout, stderr) = (String::new, String::new);
        let provider = |kind| ProviderError::new(kind, "launch", "no");
        let session = |kind| SessionError::new(kind, "no");
        let launch = |kind| Error::Launch { group: text(), source: provider(kind) };
        let quote = |kinds: &[ProviderErrorKind]| Error::Quote {
            failures: kinds.iter().map(|kind| QuoteFailure::new("a", provider(*kind))).collect(),
        };
        let connect = |kind| Error::Connect {
            machine: text(),
            id: MachineId::new("i"),
            after: second,
            source: session(kind),
        };
        let ran =
            |kind| Error::Session { machine: text(), stage: text(), action: text(), source: session(kind) };
        let lost = || Error::Lost { machine: text(), stage: text(), command: None, source: "gone".into() };
        let at = |source| Error::At { machine: text(), stage: text(), source };
        let remains = |cause| Error::Remains { run: run.clone(), leftovers: Vec::new(), cause };
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        let untrusted = Error::record("read", &link, private::read(&link).unwrap_err());
        assert!(matches!(untrusted, Error::Untrusted(_)));
        #[derive(Debug, thiserror::Error)]
        #[error("a program's own")]
        struct Own(#[source] Error);
        let wrapped = |error| Error::other(Own(error));
        for (error, class, status) in [
            (Error::Plan { problems: Vec::new() }, Invalid, 2),
            (quote(&[ProviderErrorKind::Quota, ProviderErrorKind::InvalidSpec]), Invalid, 2),
            (quote(&[ProviderErrorKind::Unsupported]), Invalid, 2),
            (quote(&[ProviderErrorKind::Unauthorized]), Credentials, 3),
            (launch(ProviderErrorKind::Capacity), Capacity, 3),
            (launch(ProviderErrorKind::Quota), Quota, 3),
            (launch(ProviderErrorKind::Unauthorized), Credentials, 3),
            (launch(ProviderErrorKind::Throttled), Unavailable, 3),
            (launch(ProviderErrorKind::Unavailable), Unavailable, 3),
            (launch(ProviderErrorKind::Other), Unavailable, 3),
            (launch(ProviderErrorKind::InvalidSpec), Invalid, 3),
            (connect(SessionErrorKind::Connect), Lost, 4),
            (connect(SessionErrorKind::HostKey), Credentials, 4),
            (lost(), Lost, 4),
            (
                Error::Interrupted {
                    machine: text(),
                    id: MachineId::new("i"),
                    stage: text(),
                    reason: text(),
                },
                Lost,
                4,
            ),
            (
                Error::Unfit {
                    machine: text(),
                    id: MachineId::new("i"),
                    source: provider(ProviderErrorKind::Other),
                },
                Lost,
                4,
            ),
            (Error::Budget { budget: 1.0, max_cost: None, spent: 0.0 }, Budget, 3),
            (
                Error::Command {
                    machine: text(),
                    stage: text(),
                    command: text(),
                    exit,
                    stdout: stdout(),
                    stderr: stderr(),
                },
                Experiment,
                1,
            ),
            (
                Error::Timeout {
                    machine: text(),
                    stage: text(),
                    command: text(),
                    after: second,
                    gone: true,
                    stdout: stdout(),
                    stderr: stderr(),
                },
                Experiment,
                1,
            ),
            (Error::Local { command: text(), exit, output: text(), log: "log".into() }, Experiment, 1),
            (ran(SessionErrorKind::Remote), Experiment, 1),
            (ran(SessionErrorKind::Transfer), Experiment, 1),
            (ran(SessionErrorKind::Local), Local, 1),
            (ran(SessionErrorKind::CancelledUnconfirmed), Cancelled, 1),
            (at("boom".into()), Experiment, 1),
            (at(lost().into()), Lost, 4),
            (Error::Prepare(session(SessionErrorKind::Local)), Local, 2),
            (Error::record("read", "/x".as_ref(), std::io::Error::other("no")), Local, 2),
            (untrusted, Local, 2),
            (
                Error::NewerRecord { run: run.clone(), source: NewerSchema::check(2, 1).unwrap_err() },
                Remains,
                6,
            ),
            (Error::UnknownRun { name: text() }, Invalid, 2),
            (Error::AmbiguousRun { name: text(), runs: Vec::new() }, Invalid, 2),
            (Error::Cancelled, Cancelled, 5),
            (Error::LifetimeOver(second), Expired, 4),
            (Error::Incomplete { done: 1, of: 2, why: text(), is_resumable: true }, Experiment, 1),
            // An end that is asked for and can't be is no failed experiment.
            (Error::LifetimeTooLong { lifetime: second, limit: second }, Invalid, 2),
            (remains(None), Remains, 6),
            (remains(Some(Box::new(lost()))), Remains, 6),
            (gravest(vec!["boom".into(), lost()]).unwrap(), Lost, 4),
            (gravest(vec!["boom".into(), "bang".into()]).unwrap(), Experiment, 1),
            ("boom".into(), Experiment, 1),
            (wrapped(lost()), Lost, 4),
            (wrapped(Error::other(provider(ProviderErrorKind::Unauthorized))), Credentials, 1),
            (Error::other(session(SessionErrorKind::Lost)), Lost, 1),
        ] {
            assert_eq!((error.class(), Outcome::of(&error).exit_status()), (class, status), "{error:?}");
        }
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
