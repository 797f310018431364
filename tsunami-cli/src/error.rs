//! What went wrong, for people, and the exit status that says it to programs.

use std::fmt::Write as _;
use std::path::PathBuf;

use tsunami_core::{Error as CoreError, ErrorChain, ProviderError, ProviderErrorKind};

use crate::experiment::Problems;
use crate::reporter::{sanitize, sanitize_lines};
use crate::secrets::Secrets;

/// The experiment failed: a command failed or timed out.
pub(crate) const FAILED: u8 = 1;
/// The command line, the experiment file or a local tool is at fault.
pub(crate) const USAGE: u8 = 2;
/// No machines could be had.
pub(crate) const LAUNCH: u8 = 3;
/// A machine was lost.
pub(crate) const LOST: u8 = 4;
/// The user interrupted it, and everything is torn down.
pub(crate) const INTERRUPTED: u8 = 5;
/// Something may remain.
pub(crate) const REMAINS: u8 = 6;
/// `exec` and `ssh` themselves failed.
pub(crate) const EXEC_FAILED: u8 = 125;
/// `exec` and `ssh` lost contact.
pub(crate) const EXEC_LOST: u8 = 255;

/// An error of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Experiment(#[from] Problems),
    #[error("{0}")]
    Usage(String),
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The provider could not even be asked.
    #[cfg_attr(not(feature = "aws"), expect(dead_code, reason = "only EC2 has to be asked first"))]
    #[error(transparent)]
    Provider(ProviderError),
    /// A run failed whose logs are in this directory.
    #[error("the run failed")]
    Run {
        #[source]
        error: CoreError,
        logs: PathBuf,
        secrets: Secrets,
    },
    /// An error of `exec` or `ssh`, whose statuses are their own.
    #[error(transparent)]
    Exec(CoreError),
}

impl Error {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// The exit status of the contract.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Experiment(_) | Self::Usage(_) | Self::File { .. } => USAGE,
            Self::Core(error) | Self::Run { error, .. } => status(error),
            Self::Provider(error) => launch_status(error.kind),
            Self::Exec(error) => match error {
                CoreError::Lost { .. } | CoreError::Interrupted { .. } | CoreError::Connect { .. } => {
                    EXEC_LOST
                }
                _ => EXEC_FAILED,
            },
        }
    }

    /// All that there is to say, for standard error.
    pub(crate) fn render(&self, colour: bool) -> String {
        let text = self.text(colour);
        match self {
            Self::Run { secrets, .. } => secrets.redact(&text),
            _ => text,
        }
    }

    fn text(&self, colour: bool) -> String {
        let (error, logs) = match self {
            Self::Experiment(problems) => return problems.render(colour),
            Self::Usage(message) => {
                return format!("{}: {}", label("error", colour), sanitize_lines(message));
            }
            Self::File { .. } => {
                return format!(
                    "{}: {}",
                    label("error", colour),
                    sanitize_lines(&ErrorChain(self).to_string())
                );
            }
            Self::Provider(error) => {
                let what = sanitize_lines(&ErrorChain(error).to_string());
                let help = error
                    .help
                    .as_deref()
                    .map(|help| format!("\n{}: {}", label("help", colour), sanitize_lines(help)));
                return format!("{}: {what}{}", label("error", colour), help.unwrap_or_default());
            }
            Self::Core(CoreError::Cancelled) | Self::Exec(CoreError::Cancelled) => {
                return "interrupted".to_owned();
            }
            Self::Run { error: CoreError::Cancelled, .. } => {
                return "interrupted; everything is torn down".to_owned();
            }
            Self::Core(error) | Self::Exec(error) => (error, None),
            Self::Run { error, logs, .. } => (error, Some(logs)),
        };
        let mut text =
            format!("{}: {}", label("error", colour), sanitize_lines(&ErrorChain(error).to_string()));
        if let CoreError::Plan { problems } = error {
            for problem in problems {
                let _ = write!(text, "\n  {}", sanitize_lines(&problem.to_string()));
            }
        }
        if let Some(stderr) = error.stderr() {
            for line in stderr.lines() {
                let _ = write!(text, "\n  | {}", sanitize(line));
            }
        }
        if let (Some(logs), Some((machine, stage))) = (logs, error.place()) {
            let log = logs.join(machine).join(format!("{stage}.log"));
            if log.exists() {
                let _ = write!(text, "\n  full log: {}", log.display());
            }
        }
        if let Some(help) = error.help() {
            let _ = write!(text, "\n{}: {}", label("help", colour), sanitize_lines(help));
        }
        if let CoreError::Remains { run, leftovers, .. } = error {
            for leftover in leftovers {
                let _ = write!(text, "\n  may remain: {}", sanitize_lines(&leftover.to_string()));
            }
            let _ = write!(text, "\n{}: run `tsunami down {run}`", label("help", colour));
        }
        text
    }
}

fn label(text: &str, colour: bool) -> String {
    match (colour, text) {
        (false, _) => text.to_owned(),
        (true, "error") => format!("\x1b[1;31m{text}\x1b[0m"),
        (true, _) => format!("\x1b[1;36m{text}\x1b[0m"),
    }
}

/// The exit status for what ended a run. Where several apply, the outermost is the one that counts most.
fn status(error: &CoreError) -> u8 {
    match error {
        CoreError::Remains { .. } => REMAINS,
        CoreError::Cancelled => INTERRUPTED,
        CoreError::Lost { .. }
        | CoreError::Interrupted { .. }
        | CoreError::Unfit { .. }
        | CoreError::Connect { .. }
        | CoreError::LifetimeOver(_) => LOST,
        CoreError::Launch { .. } | CoreError::Budget { .. } => LAUNCH,
        CoreError::Quote { failures } => {
            // What the user can mend in the file comes before what the account lacks.
            failures.iter().map(|failure| launch_status(failure.error.kind)).min().unwrap_or(LAUNCH)
        }
        CoreError::Plan { .. }
        | CoreError::Prepare(_)
        | CoreError::Record { .. }
        | CoreError::Untrusted(_)
        | CoreError::UnknownRun { .. }
        | CoreError::AmbiguousRun { .. } => USAGE,
        _ => FAILED,
    }
}

/// The exit status for machines that could not be had.
fn launch_status(kind: ProviderErrorKind) -> u8 {
    match kind {
        ProviderErrorKind::InvalidSpec | ProviderErrorKind::Unsupported => USAGE,
        _ => LAUNCH,
    }
}

/// Of several errors, the one that decides about the exit status: 4 before 1, and the first of its kind.
pub(crate) fn gravest(errors: Vec<CoreError>) -> Option<CoreError> {
    let rank = |error: &CoreError| match status(error) {
        LOST => 0,
        INTERRUPTED => 2,
        _ => 1,
    };
    errors.into_iter().min_by_key(rank)
}
