//! Errors that say what happened where, and what may remain.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};

use crate::event::NewerSchema;
use crate::limits::SHOWN_COMMAND_LIMIT;
use crate::machine::{MachineId, RunId};
use crate::plan::Problem;
use crate::private::Untrusted;
use crate::provider::{Leftover, ProviderError};
use crate::session::{Exit, SessionError, SessionErrorKind};
use crate::text::number;

/// Any error at all, as programs hand it to tsunami.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a run, or a part of it, failed.
///
/// Display says this level only; [`source`](std::error::Error::source) has the rest. What closures return is an
/// `Error` too, so that `?` works on tsunami's own calls; anything else becomes one through
/// [`Error::other`] or the `From` implementations. Debug is for people too: it is what a `main` that returns an error
/// shows.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The plan cannot be run. Nothing was started.
    #[error("the plan has {}", number(problems.len(), "problem"))]
    Plan {
        /// All that is wrong with it.
        problems: Vec<Problem>,
    },
    /// Groups cannot be had as they are described. Nothing was started.
    #[error("the plan cannot be launched{}", failures.iter().map(|f| format!("\n  group {}: {}", f.group, f.error)).collect::<String>())]
    Quote {
        /// All groups that cannot be had.
        failures: Vec<QuoteFailure>,
    },
    /// A group could not be launched.
    #[error("could not launch group {group}")]
    Launch {
        /// The group.
        group: String,
        /// What the provider said.
        source: ProviderError,
    },
    /// No session to a machine could be had, or not in time.
    #[error("{machine} ({id}): no session after {}", humantime::format_duration(*after))]
    Connect {
        /// The machine.
        machine: String,
        /// Its id.
        id: MachineId,
        /// How long that took, to the second.
        after: Duration,
        /// What was seen last.
        source: SessionError,
    },
    /// A machine ended, or the connection to it did.
    #[error("{machine}: lost in stage {stage}{}", running(command.as_deref()))]
    Lost {
        /// The machine.
        machine: String,
        /// What it was doing.
        stage: String,
        /// The command that ran at that time.
        command: Option<String>,
        /// What was seen.
        source: BoxError,
    },
    /// A machine's provider takes it back before its time.
    #[error("{machine} ({id}): interrupted in stage {stage}: {reason}")]
    Interrupted {
        /// The machine.
        machine: String,
        /// Its id.
        id: MachineId,
        /// What it was doing.
        stage: String,
        /// What the provider says.
        reason: String,
    },
    /// A new machine is not what its provider promised.
    #[error("{machine} ({id}): not fit for use")]
    Unfit {
        /// The machine.
        machine: String,
        /// Its id.
        id: MachineId,
        /// What is wrong with it.
        source: ProviderError,
    },
    /// The run might cost more than its budget. Nothing was started.
    #[error("{}", over_budget(*budget, *max_cost, *spent))]
    Budget {
        /// The budget, in US dollars.
        budget: f64,
        /// The most the run can cost, in US dollars; `None` if a price is not known.
        max_cost: Option<f64>,
        /// What it has cost before that, in US dollars: an estimate, where it is resumed.
        spent: f64,
    },
    /// A command ended with a status other than 0, or by a signal.
    #[error("{machine}: stage {stage}: `{}` ended with {exit}", shown(command))]
    Command {
        /// The machine.
        machine: String,
        /// The stage.
        stage: String,
        /// The command.
        command: String,
        /// How it ended.
        exit: Exit,
        /// The last lines it wrote to standard output, as [`FailedOutput`] has them.
        stdout: String,
        /// The last lines it wrote to standard error, as [`FailedOutput`] has them.
        stderr: String,
    },
    /// A command, or a transfer, took longer than it may.
    #[error("{machine}: stage {stage}: `{}` timed out after {}{}", shown(command),
        humantime::format_duration(*after),
        if *gone { "" } else { "; it may still be running" })]
    Timeout {
        /// The machine.
        machine: String,
        /// The stage.
        stage: String,
        /// The command.
        command: String,
        /// The time it was given.
        after: Duration,
        /// Whether all of it is confirmed gone.
        gone: bool,
        /// The last lines it wrote to standard output, as [`FailedOutput`] has them.
        stdout: String,
        /// The last lines it wrote to standard error, as [`FailedOutput`] has them.
        stderr: String,
    },
    /// A command on this computer failed, before anything was launched.
    #[error("`{}` ended with {exit} on this computer; nothing was launched, and {} has all that it said", shown(command),
        log.display())]
    Local {
        /// The command.
        command: String,
        /// How it ended.
        exit: Exit,
        /// The last lines it wrote to either output, as [`FailedOutput`] has them.
        output: String,
        /// Where all of them are.
        log: std::path::PathBuf,
    },
    /// A command could not be run, or a file not be copied, for a reason that isn't the machine's loss.
    #[error("{machine}: stage {stage}: {action} failed")]
    Session {
        /// The machine.
        machine: String,
        /// The stage.
        stage: String,
        /// What was being done.
        action: String,
        /// What went wrong.
        source: SessionError,
    },
    /// Something else went wrong with a machine, as the program that uses tsunami sees it.
    #[error("{machine}: stage {stage} failed")]
    At {
        /// The machine.
        machine: String,
        /// The stage.
        stage: String,
        /// What went wrong.
        source: BoxError,
    },
    /// The run's login key or other means of connecting could not be made. Nothing was started.
    #[error("could not prepare the connections")]
    Prepare(#[source] SessionError),
    /// The run's record could not be read or written. A run that cannot be recorded is not started.
    #[error("cannot {action} the record of runs at {}", path.display())]
    Record {
        /// What was being done: `read`, `write`.
        action: &'static str,
        /// The file or directory.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another user may have written what is recorded here, so it is neither read nor touched.
    #[error("refused: {0}")]
    Untrusted(Untrusted),
    /// A later version of tsunami recorded the run, and only that may touch it.
    #[error("run {run} is left alone")]
    NewerRecord {
        /// The run.
        run: RunId,
        /// What this version knows.
        source: NewerSchema,
    },
    /// No run of that name is known on this computer.
    #[error("no run `{name}` is known here")]
    UnknownRun {
        /// What was asked for.
        name: String,
    },
    /// More than one run fits.
    #[error("`{name}` fits {} runs: {}", runs.len(), runs.iter().map(RunId::as_str).collect::<Vec<_>>().join(", "))]
    AmbiguousRun {
        /// What was asked for.
        name: String,
        /// What fits.
        runs: Vec<RunId>,
    },
    /// The run was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The run's lifetime is over.
    #[error("the lifetime of {} is over", crate::text::span(*.0))]
    LifetimeOver(Duration),
    /// Not all trials of a sweep are done that are to count.
    #[error("{done} of {of} trials are done: {why}")]
    Incomplete {
        /// How many are.
        done: u32,
        /// How many there were to be.
        of: u32,
        /// Why not all.
        why: String,
        /// Whether the rest can be done by resuming it, as it can't be where a lifetime is too short for a trial.
        is_resumable: bool,
    },
    /// A run's end can't be moved that far. Nothing was changed.
    #[error("the lifetime would be {}, longer than {}", crate::text::span(*lifetime),
        crate::text::span(*limit))]
    LifetimeTooLong {
        /// What it would be.
        lifetime: Duration,
        /// The longest there is.
        limit: Duration,
    },
    /// After the run ended, something may still exist. [`Tsunami::down`](crate::Tsunami::down) removes it.
    #[error("run {run}: {} may remain", number(leftovers.len(), "thing"))]
    Remains {
        /// The run.
        run: RunId,
        /// What may remain, and why.
        leftovers: Vec<Leftover>,
        /// What ended the run, if that was an error too.
        #[source]
        cause: Option<Box<Error>>,
    },
    /// Several machines failed.
    #[error(transparent)]
    Several(Failures),
    /// An error of the program that uses tsunami.
    #[error(transparent)]
    Other(BoxError),
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", ErrorChain(self))?;
        if let Some(place) = self.place_in_file() {
            write!(f, "\n  --> {place}")?;
        }
        for line in self.written().iter().flat_map(|written| written.lines()) {
            write!(f, "\n  | {line}")?;
        }
        if let Self::Remains { leftovers, .. } = self {
            leftovers.iter().try_for_each(|leftover| write!(f, "\n  may remain: {leftover}"))?;
        }
        if let Self::Several(Failures { others, .. }) = self {
            others.iter().try_for_each(|other| write!(f, "\n  then: {other}"))?;
        }
        if let Self::Plan { problems } = self {
            problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))?;
        }
        self.help().map_or(Ok(()), |help| write!(f, "\nhelp: {help}"))
    }
}

/// What a command that failed had written by then, and how it ended: [`Error::output`].
///
/// The lines are the last ten at most, of the last 4 KiB, which may begin within a line. They are joined by `\n`, with none after
/// the last; what isn't UTF-8 is replaced, and control characters are as they came. Who wants more has
/// [`HostCommand::output`](crate::HostCommand::output) or [`HostCommand::lines`](crate::HostCommand::lines).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailedOutput<'a> {
    /// How it ended by itself; `None` if its time was over before that.
    pub exit: Option<Exit>,
    /// The time it was given, if that was over.
    pub timed_out: Option<Duration>,
    /// The last lines of its standard output; none of a command on this computer.
    pub stdout: &'a str,
    /// The last lines of its standard error; of a command on this computer, those of both.
    pub stderr: &'a str,
}

/// Several errors, of which the first in time is shown: the others may only follow from it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failures {
    /// The first.
    pub first: Box<Error>,
    /// The others, in the order of time.
    pub others: Vec<Error>,
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Several machines fail in each of several trials: how many that were is said once.
        let (mut first, mut others) = (&*self.first, self.others.len());
        while let Error::Several(earlier) = first {
            (first, others) = (&*earlier.first, others + earlier.others.len());
        }
        write!(f, "{first}; {} followed", number(others, "failure"))
    }
}

impl std::error::Error for Failures {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.first.source()
    }
}

/// Awaits all of them at once. The results come in the order of time.
pub(crate) async fn in_time<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    futures.into_iter().collect::<FuturesUnordered<_>>().collect().await
}

/// What the user can do about an error by a command or an option of the program at hand. Only that program knows how it
/// is called, so that the error's [help](Error::help) does not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Remedy {
    /// Trust hosts whose keys are not known.
    TrustNewHosts,
    /// Remove what is left of runs that are over.
    RemoveOldRuns,
    /// Do the trials that are left.
    Resume,
}

/// A group that cannot be had, and why.
#[derive(Debug)]
#[non_exhaustive]
pub struct QuoteFailure {
    /// The group.
    pub group: String,
    /// What the provider said.
    pub error: ProviderError,
}

impl QuoteFailure {
    /// A group, and why it cannot be had.
    pub fn new(group: impl Into<String>, error: ProviderError) -> Self {
        Self { group: group.into(), error }
    }
}

impl Error {
    /// Wraps any error, or a text.
    ///
    /// ```
    /// # use tsunami_core::Error;
    /// fn count(text: &str) -> Result<u32, Error> {
    ///     text.trim().parse().map_err(Error::other)
    /// }
    /// assert!(count("seven").is_err());
    /// ```
    pub fn other(error: impl Into<BoxError>) -> Self {
        Self::Other(error.into())
    }

    /// What the user can do about it, where that is known.
    pub fn help(&self) -> Option<&str> {
        let longer = "where a machine takes longer to come up, give it more time: `connect_timeout`";
        let is_silent =
            matches!(self, Self::Connect { source, .. } if source.kind == SessionErrorKind::Connect);
        self.advice().0.or(is_silent.then_some(longer))
    }

    /// What the user can do about it by the program at hand, beside what [`help`](Self::help) says.
    pub fn remedy(&self) -> Option<Remedy> {
        self.advice().1
    }

    /// Where a file says what a provider refuses, as `redis.toml:7:12`, if the plan was made from one. Of several that are
    /// refused, it is that of the first.
    pub fn place_in_file(&self) -> Option<&str> {
        match self {
            Self::Quote { failures } => failures.iter().find_map(|failure| failure.error.place.as_deref()),
            Self::Launch { source, .. } => source.place.as_deref(),
            Self::Remains { cause, .. } => cause.as_ref().and_then(|cause| cause.place_in_file()),
            Self::Several(failures) => failures.first.place_in_file(),
            _ => None,
        }
    }

    fn advice(&self) -> (Option<&str>, Option<Remedy>) {
        fn of_provider(error: &ProviderError) -> (Option<&str>, Option<Remedy>) {
            (error.help.as_deref(), error.remedy)
        }
        match self {
            Self::Quote { failures } => {
                failures.iter().map(|failure| of_provider(&failure.error)).find(|(help, _)| help.is_some())
            }
            Self::Launch { source, .. } | Self::Unfit { source, .. } => Some(of_provider(source)),
            Self::Connect { source, .. } | Self::Session { source, .. } | Self::Prepare(source) => {
                Some((source.help.as_deref(), source.remedy))
            }
            Self::Remains { cause, .. } => cause.as_ref().map(|cause| (cause.help(), cause.remedy())),
            Self::At { source, .. } | Self::Other(source) => source.downcast_ref().map(of_provider),
            // A full disk is no worse than another would be.
            Self::Record { action: "find" | "write", source, .. }
                if source.kind() != io::ErrorKind::StorageFull =>
            {
                Some((
                    Some("set XDG_STATE_HOME to a directory, by its whole path, that you may write to"),
                    None,
                ))
            }
            Self::Several(failures) => Some((failures.first.help(), failures.first.remedy())),
            Self::Incomplete { is_resumable: true, .. } => Some((None, Some(Remedy::Resume))),
            Self::Plan { .. }
            | Self::Lost { .. }
            | Self::Interrupted { .. }
            | Self::Budget { .. }
            | Self::Incomplete { is_resumable: false, .. }
            | Self::Command { .. }
            | Self::Timeout { .. }
            | Self::Local { .. }
            | Self::Record { .. }
            | Self::Untrusted(_)
            | Self::NewerRecord { .. }
            | Self::UnknownRun { .. }
            | Self::AmbiguousRun { .. }
            | Self::Cancelled
            | Self::LifetimeOver(_)
            | Self::LifetimeTooLong { .. } => None,
        }
        .unwrap_or_default()
    }

    /// The machine and the stage that failed, where one did.
    pub fn place(&self) -> Option<(&str, &str)> {
        match self {
            Self::Lost { machine, stage, .. }
            | Self::Interrupted { machine, stage, .. }
            | Self::Command { machine, stage, .. }
            | Self::Timeout { machine, stage, .. }
            | Self::Session { machine, stage, .. }
            | Self::At { machine, stage, .. } => Some((machine, stage)),
            Self::Connect { machine, .. } | Self::Unfit { machine, .. } => Some((machine, "connect")),
            Self::Remains { cause: Some(cause), .. } => cause.place(),
            Self::Several(failures) => failures.first.place(),
            Self::Remains { cause: None, .. }
            | Self::Plan { .. }
            | Self::Quote { .. }
            | Self::Launch { .. }
            | Self::Budget { .. }
            | Self::Local { .. }
            | Self::Prepare(_)
            | Self::Record { .. }
            | Self::Untrusted(_)
            | Self::NewerRecord { .. }
            | Self::UnknownRun { .. }
            | Self::AmbiguousRun { .. }
            | Self::Cancelled
            | Self::LifetimeOver(_)
            | Self::Incomplete { .. }
            | Self::LifetimeTooLong { .. }
            | Self::Other(_) => None,
        }
    }

    /// The last lines that the failing command wrote to standard output, and those to standard error. Both are empty
    /// where no command failed.
    pub fn written(&self) -> [&str; 2] {
        self.output().map_or([""; 2], |output| [output.stdout, output.stderr])
    }

    /// What the failing command wrote, and how it ended; `None` where no command failed.
    ///
    /// ```
    /// # use tsunami_core::{Error, Exit, Host};
    /// # async fn example(host: &Host) -> Result<(), Error> {
    /// match host.run("grep -c error server.log").await {
    ///     Err(error) if error.output().is_some_and(|output| output.exit == Some(Exit::Status(1))) => {
    ///         println!("no errors");
    ///     }
    ///     counted => println!("{} errors", counted?.stdout().trim()),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn output(&self) -> Option<FailedOutput<'_>> {
        match self {
            Self::Command { exit, stdout, stderr, .. } => {
                Some(FailedOutput { exit: Some(*exit), timed_out: None, stdout, stderr })
            }
            Self::Timeout { after, stdout, stderr, .. } => {
                Some(FailedOutput { exit: None, timed_out: Some(*after), stdout, stderr })
            }
            Self::Local { exit, output, .. } => {
                Some(FailedOutput { exit: Some(*exit), timed_out: None, stdout: "", stderr: output })
            }
            Self::Remains { cause: Some(cause), .. } => cause.output(),
            Self::Several(failures) => failures.first.output(),
            Self::Remains { cause: None, .. }
            | Self::Plan { .. }
            | Self::Quote { .. }
            | Self::Launch { .. }
            | Self::Connect { .. }
            | Self::Lost { .. }
            | Self::Interrupted { .. }
            | Self::Unfit { .. }
            | Self::Budget { .. }
            | Self::Session { .. }
            | Self::At { .. }
            | Self::Prepare(_)
            | Self::Record { .. }
            | Self::Untrusted(_)
            | Self::NewerRecord { .. }
            | Self::UnknownRun { .. }
            | Self::AmbiguousRun { .. }
            | Self::Cancelled
            | Self::LifetimeOver(_)
            | Self::Incomplete { .. }
            | Self::LifetimeTooLong { .. }
            | Self::Other(_) => None,
        }
    }

    /// What the system said of a record, or why the record is not believed.
    pub(crate) fn record(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        match Untrusted::of(&source) {
            Some(untrusted) => Self::Untrusted(untrusted.clone()),
            None => Self::Record { action, path: path.to_owned(), source },
        }
    }

    /// Turns a session's error into one that names the machine, the stage and what was being done there.
    pub(crate) fn session(machine: &str, stage: &str, action: &str, source: SessionError) -> Self {
        let (machine, stage) = (machine.to_owned(), stage.to_owned());
        match source.kind {
            SessionErrorKind::Cancelled => Self::Cancelled,
            SessionErrorKind::Lost => {
                Self::Lost { machine, stage, command: Some(action.to_owned()), source: source.into() }
            }
            _ => Self::Session { machine, stage, action: action.to_owned(), source },
        }
    }
}

macro_rules! other {
    ($($type:ty),*) => {$(
        impl From<$type> for Error {
            fn from(error: $type) -> Self {
                Self::Other(error.into())
            }
        }
    )*};
}
other!(
    BoxError,
    String,
    &str,
    std::io::Error,
    std::fmt::Error,
    std::num::ParseIntError,
    std::num::ParseFloatError,
    std::str::Utf8Error,
    std::string::FromUtf8Error,
    std::time::SystemTimeError,
    serde_json::Error
);

/// Shows an error with all that it stems from, one level a line.
///
/// ```
/// # use tsunami_core::{Error, ErrorChain};
/// let error = std::io::Error::other("disk on fire");
/// assert_eq!(ErrorChain(&error).to_string(), "disk on fire");
/// ```
#[derive(Debug)]
pub struct ErrorChain<'a>(pub &'a (dyn std::error::Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, "\n  because: {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

fn over_budget(budget: f64, max_cost: Option<f64>, spent: f64) -> String {
    let Some(max_cost) = max_cost else {
        return format!("what the run may cost is not known, so it does not fit its budget of ${budget:.2}");
    };
    let spent =
        if spent > 0.0 { format!(" beside the ${spent:.2} that it has cost so far") } else { String::new() };
    format!("the run may cost up to ${max_cost:.2}{spent}, more than its budget of ${budget:.2}")
}

fn running(command: Option<&str>) -> String {
    command.map(|command| format!(" while running `{}`", shown(command))).unwrap_or_default()
}

/// The beginning of a command.
pub(crate) fn shown(command: &str) -> String {
    let (lines, characters) = SHOWN_COMMAND_LIMIT;
    let of_lines = command.match_indices('\n').nth(lines - 1).map_or(command.len(), |(at, _)| at);
    let of_characters = command.char_indices().nth(characters).map_or(command.len(), |(at, _)| at);
    let end = of_lines.min(of_characters);
    let more = if command[end..].trim().is_empty() { "" } else { " …" };
    format!("{}{more}", &command[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::ProviderErrorKind;

    #[test]
    fn what_a_main_function_shows_of_an_error_is_for_people() {
        let source =
            ProviderError::new(ProviderErrorKind::Capacity, "no room", "no room").help("ask elsewhere");
        let launch = Error::Launch { group: "a".to_owned(), source };
        let leftovers = vec![Leftover { what: "machine i-1".to_owned(), why: "no answer".to_owned() }];
        let run = "20231114-221320-abcd".parse().unwrap();
        let error = Error::Remains { run, leftovers, cause: Some(Box::new(launch)) };
        let shown = format!("{error:?}");
        assert!(shown.starts_with("run 20231114-221320-abcd: 1 thing may remain\n"), "{shown}");
        assert!(shown.contains("\n  because: could not launch group a\n"), "{shown}");
        assert!(shown.ends_with("\n  may remain: machine i-1: no answer\nhelp: ask elsewhere"), "{shown}");
    }

    #[test]
    fn an_error_shows_the_beginning_of_a_long_command() {
        assert_eq!(shown("a\nb\n"), "a\nb\n");
        let (lines, characters) = SHOWN_COMMAND_LIMIT;
        assert_eq!(shown(&"x\n".repeat(4000)).lines().count(), lines);
        assert_eq!(shown(&"é".repeat(1 << 17)), format!("{} …", "é".repeat(characters)));
    }

    #[test]
    fn who_waited_too_briefly_is_told_what_to_set() {
        let error = |kind| Error::Connect {
            machine: "node-0".to_owned(),
            id: MachineId::new("i-1"),
            after: Duration::from_secs(120),
            source: SessionError::new(kind, "nothing answers"),
        };
        assert!(error(SessionErrorKind::Connect).help().unwrap().contains("`connect_timeout`"));
        // More time mends no wrong key.
        assert_eq!(error(SessionErrorKind::HostKey).help(), None);
    }
}
