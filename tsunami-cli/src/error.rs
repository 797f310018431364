//! What went wrong, for people, and the exit status that says it to programs.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tsunami_core::experiment::Problems;
use tsunami_core::limits::SHOWN_MESSAGE_LIMIT;
use tsunami_core::results::{ResultsError, Secrets};
use tsunami_core::text::shorten;
use tsunami_core::{
    Error as CoreError, ErrorChain, Failures, Outcome, ProviderError, QuoteFailure, Remedy, RunId,
};

use crate::tails::Tails;
use crate::terminal::{self, Message, Style, clean_lines};

/// The command line, the experiment file or a local tool is at fault.
pub(crate) const USAGE: u8 = Outcome::Misused.exit_status();
/// No machines could be had.
pub(crate) const LAUNCH: u8 = Outcome::NotLaunched.exit_status();
/// A machine was lost.
pub(crate) const LOST: u8 = Outcome::MachineLost.exit_status();
/// The user interrupted it, and everything is torn down.
pub(crate) const INTERRUPTED: u8 = Outcome::Interrupted.exit_status();
/// Something may remain.
pub(crate) const REMAINS: u8 = Outcome::Remains.exit_status();
/// `exec` ended the command at its time-out, as `timeout` says it.
pub(crate) const EXEC_TIMEOUT: u8 = 124;
/// `exec` and `ssh` themselves failed.
pub(crate) const EXEC_FAILED: u8 = 125;
/// `exec` has nobody to print to any more, as a program that SIGPIPE ends.
pub(crate) const UNREAD: u8 = 128 + 13;
/// `exec` and `ssh` lost contact.
pub(crate) const EXEC_LOST: u8 = 255;

/// How many kinds of failures are told beside the first.
const OTHERS: usize = 20;

/// How many machines are named of those that failed alike.
const NAMED: usize = 6;

/// An error of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Experiment(#[from] Problems),
    #[error("{0}")]
    Usage(String),
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    /// What a run has left could not be written to its end.
    #[error("cannot write all results to {}", results.display())]
    Unwritten {
        results: PathBuf,
        source: Box<dyn StdError + Send + Sync>,
        /// Whether it is events and logs, of which the rest is made.
        is_lost: bool,
        /// Whether there are trials left to be resumed.
        has_rest: bool,
    },
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The provider could not even be asked.
    #[error(transparent)]
    Provider(ProviderError),
    /// A run failed whose logs are in this directory.
    #[error("the run failed")]
    Run {
        #[source]
        error: Box<CoreError>,
        logs: PathBuf,
        /// Its results, if there are trials left to be resumed.
        rest: Option<PathBuf>,
        tails: Arc<Tails>,
        secrets: Secrets,
        /// Whether its machines are another run's, and stay.
        is_attached: bool,
    },
    /// Whatever failed then only followed from that.
    #[error("run {0} was torn down by another process")]
    TornDown(RunId),
    /// An error of `exec`, `ssh` or `forward`, whose statuses are their own.
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

    /// What a command that fails with it came to.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Experiment(_) | Self::Usage(_) | Self::File { .. } | Self::Unwritten { .. } => {
                Outcome::Misused
            }
            Self::TornDown(_) => Outcome::Interrupted,
            Self::Core(error) | Self::Exec(error) => Outcome::of(error),
            Self::Run { error, .. } => Outcome::of(error),
            Self::Provider(error) => Outcome::of_launch(error.kind),
        }
    }

    /// The exit status of the contract.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Exec(error) => Self::exec_status(error),
            error => error.outcome().exit_status(),
        }
    }

    /// The exit status of `exec`, `ssh` and `forward` for an error.
    pub(crate) fn exec_status(error: &CoreError) -> u8 {
        match error {
            CoreError::Lost { .. } | CoreError::Interrupted { .. } | CoreError::Connect { .. } => EXEC_LOST,
            CoreError::Timeout { .. } => EXEC_TIMEOUT,
            _ => EXEC_FAILED,
        }
    }

    /// Says all that there is to say.
    pub(crate) fn show(&self) {
        terminal::show(&self.tell(terminal::message(), "", &Removal::Down));
    }

    /// The same of one of many.
    pub(crate) fn show_of(&self, who: &str) {
        terminal::show(&self.tell(terminal::message(), &format!("{who}: "), &Removal::Down));
    }

    /// The same where the remedy is another than `tsunami down`.
    pub(crate) fn show_with(&self, who: &str, removal: &Removal) {
        terminal::show(&self.tell(terminal::message(), who, removal));
    }

    /// All that there is to say, without colours.
    pub(crate) fn text(&self, removal: &Removal) -> String {
        self.tell(Message::new(false), "", removal).to_string()
    }

    fn tell(&self, message: Message, who: &str, removal: &Removal) -> Message {
        let mut told = Told { who, message, removal, secrets: None };
        let error = match self {
            Self::Experiment(problems) => {
                let colour = told.message.has_colour();
                told.message.drawing(&match told.message.width() {
                    Some(columns) => problems.render_within(colour, columns),
                    None => problems.render(colour),
                });
                return told.message;
            }
            Self::Usage(_) | Self::TornDown(_) => {
                told.chain(self);
                return told.message;
            }
            Self::File { action, .. } => {
                told.chain(self);
                told.help(is_full(self).then_some(OWN_DISK));
                let is_made = *action == "make the results directory";
                told.help(is_made.then_some("`-o DIR` has results go elsewhere"));
                return told.message;
            }
            Self::Unwritten { results, is_lost, has_rest, .. } => {
                told.chain(self);
                told.unwritten(results, *is_lost, is_full(self));
                told.rest(has_rest.then_some(results));
                return told.message;
            }
            Self::Provider(error) => {
                told.chain(error);
                told.help(error.help.as_deref());
                told.help(error.remedy.and_then(option_for));
                return told.message;
            }
            Self::Core(CoreError::Cancelled) | Self::Exec(CoreError::Cancelled) => {
                told.entry(&[(Style::Plain, who)], "interrupted");
                return told.message;
            }
            Self::Run { error, rest, is_attached, .. } if matches!(**error, CoreError::Cancelled) => {
                told.line(match is_attached {
                    true => "interrupted; the machines stay up",
                    false => "interrupted; everything is torn down",
                });
                told.rest(rest.as_deref());
                return told.message;
            }
            Self::Core(error) | Self::Exec(error) => error,
            Self::Run { error, logs, rest, tails, secrets, .. } => {
                told.secrets = Some(secrets);
                told.core(error, Some((logs, tails)));
                told.rest(rest.as_deref());
                return told.message;
            }
        };
        told.core(error, None);
        told.message
    }
}

impl From<ResultsError> for Error {
    fn from(error: ResultsError) -> Self {
        match error {
            ResultsError::File { action, path, source } => Self::File { action, path, source },
            unusable => Self::Usage(unusable.to_string()),
        }
    }
}

/// What `tsunami report` does for results whose run could not.
pub(crate) const REPORT_MAKES: &str = "makes results.json, results.csv and report.html of it";

/// A path as a word of a shell's command line.
pub(crate) fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    shlex::try_quote(&path).map_or_else(|_| path.to_string(), Cow::into_owned)
}

/// What is full where people would rather think of a machine's.
const OWN_DISK: &str = "that is a disk of this computer, not a machine's";

/// Whether an error stems from a disk of this computer that takes no more.
fn is_full(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if let Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem) = kind
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// What removes what may remain.
#[derive(Debug)]
pub(crate) enum Removal {
    /// `tsunami down`.
    Down,
    /// Another `tsunami down`, after one that could not: what keeps it comes first.
    DownAgain,
    /// The same command again, for a run that is not recorded here, once what keeps it is mended.
    Again(String),
}

impl Removal {
    fn text(&self, run: &RunId) -> String {
        let again = |command: &str| format!("once what keeps it is mended or over, run `{command}` again");
        match self {
            Self::Down => format!("run `tsunami down {run}`"),
            Self::DownAgain => again(&format!("tsunami down {run}")),
            Self::Again(command) => again(command),
        }
    }
}

/// How a library's remedy is called on this command line.
fn option_for(remedy: Remedy) -> Option<&'static str> {
    match remedy {
        Remedy::TrustNewHosts => Some("or trust it for this run: pass --accept-new-hosts"),
        Remedy::RemoveOldRuns => Some("`tsunami gc` removes what is left of runs that are over"),
        // Whoever knows the directory says it.
        _ => None,
    }
}

/// An error as it is being told.
struct Told<'a> {
    /// What its first line begins with.
    who: &'a str,
    message: Message,
    removal: &'a Removal,
    secrets: Option<&'a Secrets>,
}

impl Told<'_> {
    /// Adds a line of ours with a text of somebody else's, of which no secret is shown.
    fn entry(&mut self, start: &[(Style, &str)], text: &str) {
        match self.secrets {
            // Cleaned first, which may put together what was no secret before.
            Some(secrets) => self.message.entry(start, &secrets.redact(&clean_lines(text.as_bytes()))),
            None => self.message.entry(start, text),
        }
    }

    fn line(&mut self, text: &str) {
        self.entry(&[], text);
    }

    /// Where the file says what is refused.
    fn place(&mut self, place: Option<&str>) {
        if let Some(place) = place {
            self.entry(&[(Style::Plain, "  --> ")], place);
        }
    }

    fn help(&mut self, help: Option<&str>) {
        if let Some(help) = help {
            self.entry(&[(Style::Help, "help"), (Style::Plain, ": ")], help);
        }
    }

    /// What is lost of results that could not be written, and what makes the rest.
    fn unwritten(&mut self, results: &Path, is_lost: bool, is_full: bool) {
        let (disk, then) = match is_full {
            true => (format!("{OWN_DISK}. "), "Once there is room, "),
            false => (String::new(), ""),
        };
        let lost = match is_lost {
            true => {
                "What commands wrote and what happened after that is not in the results; what is there stays. "
            }
            false => "All that was measured is in events.jsonl. ",
        };
        self.help(Some(&format!("{disk}{lost}{then}`tsunami report {}` {REPORT_MAKES}", quoted(results))));
    }

    /// What does the trials that are left of the results in a directory.
    fn rest(&mut self, results: Option<&Path>) {
        if let Some(results) = results {
            self.help(Some(&format!("`tsunami run --resume {}` does the rest", quoted(results))));
        }
    }

    fn title(&mut self, text: &str) {
        self.entry(&[(Style::Plain, self.who), (Style::Error, "error"), (Style::Plain, ": ")], text);
    }

    /// An error and all that it stems from.
    fn chain(&mut self, error: &dyn StdError) {
        self.title(&error.to_string());
        self.sources(error);
    }

    fn sources(&mut self, error: &dyn StdError) {
        let mut next = error.source();
        while let Some(error) = next {
            self.entry(&[(Style::Plain, "  because: ")], &error.to_string());
            next = error.source();
        }
    }

    /// A line each of what failed later than what was told, and one of all that failed alike.
    fn others(&mut self, error: &CoreError) {
        let Failures { first, others, .. } = match error {
            CoreError::Several(failures) => failures,
            CoreError::Remains { cause: Some(cause), .. } => return self.others(cause),
            _ => return,
        };
        // What was told comes first. What differs in the machine alone is alike.
        let mut kinds: Vec<(String, Vec<&CoreError>)> = vec![(without_machine(first), Vec::new())];
        for other in others {
            let words = without_machine(other);
            match kinds.iter_mut().find(|(known, _)| *known == words) {
                Some((_, alike)) => alike.push(other),
                None => kinds.push((words, vec![other])),
            }
        }
        let told = usize::from(kinds[0].1.is_empty());
        let shown = kinds[told..].iter().take(OTHERS);
        for (nth, (_, alike)) in shown.enumerate() {
            let is_as_told = nth + told == 0;
            let mut text = match is_as_told {
                true => "the same".to_owned(),
                false => words(alike[0]),
            };
            if is_as_told || alike.len() > 1 {
                let times = match alike.len() {
                    1 => "once more".to_owned(),
                    times => format!("{times} times{}", if is_as_told { " more" } else { "" }),
                };
                text.extend([", ", &times, &machines(alike)]);
            }
            self.entry(&[(Style::Plain, "  then: ")], &shortened(&text));
        }
        if let more @ 1.. = kinds.iter().skip(told + OTHERS).map(|(_, alike)| alike.len()).sum() {
            self.line(&format!("  then: {more} more"));
        }
    }

    fn core(&mut self, error: &CoreError, run: Option<(&PathBuf, &Arc<Tails>)>) {
        match error {
            // Its own words list the groups, with whatever their provider said.
            CoreError::Quote { failures } => {
                self.title("the plan cannot be launched");
                for QuoteFailure { group, error, .. } in failures {
                    self.entry(
                        &[(Style::Plain, "  group "), (Style::Plain, group), (Style::Plain, ": ")],
                        &error.to_string(),
                    );
                    self.place(error.place.as_deref());
                }
            }
            CoreError::Several(failures) => self.chain(&*failures.first),
            _ => self.chain(error),
        }
        if !matches!(error, CoreError::Quote { .. }) {
            self.place(error.place_in_file());
        }
        if let CoreError::Plan { problems } = error {
            for problem in problems {
                self.entry(&[(Style::Plain, "  ")], &problem.to_string());
            }
        }
        if let Some(trial) = run.and_then(|(_, tails)| tails.trial_of(error)) {
            self.entry(&[(Style::Plain, "  in: ")], &trial);
        }
        let place = error.place();
        let tail = run.zip(place).map(|((_, tails), (machine, stage))| tails.of(machine, stage));
        let written = || error.written().iter().flat_map(|text| text.lines()).map(str::to_owned).collect();
        for line in tail.filter(|tail| !tail.is_empty()).unwrap_or_else(written) {
            self.entry(&[(Style::Plain, "  | ")], &shortened(&line));
        }
        if let (Some((logs, _)), Some((machine, stage))) = (run, place) {
            let log = logs.join(machine).join(format!("{stage}.log"));
            if log.exists() {
                self.message.entry(&[(Style::Plain, "  full log: ")], &log.to_string_lossy());
            }
        }
        self.others(error);
        self.help(error.help());
        self.help(is_full(error).then_some(OWN_DISK));
        self.help(error.remedy().and_then(option_for));
        if let CoreError::Remains { run, leftovers, .. } = error {
            for leftover in leftovers {
                self.entry(&[(Style::Plain, "  may remain: ")], &leftover.to_string());
            }
            self.help(Some(&self.removal.text(run)));
        }
    }
}

/// An error and all that it stems from, in one line.
fn words(error: &CoreError) -> String {
    ErrorChain(error).to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The same without the machine that it begins with.
fn without_machine(error: &CoreError) -> String {
    let words = words(error);
    let machine = error.place().map(|(machine, _)| format!("{machine}: "));
    machine.and_then(|machine| words.strip_prefix(&machine).map(str::to_owned)).unwrap_or(words)
}

/// ` (a-0, a-1 and 3 more)`: the machines of errors, a few of them.
fn machines(errors: &[&CoreError]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (machine, _) in errors.iter().filter_map(|error| error.place()) {
        if !names.contains(&machine) {
            names.push(machine);
        }
    }
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    names.truncate(NAMED);
    if names.is_empty() { String::new() } else { format!(" ({}{more})", names.join(", ")) }
}

/// A line that may have been meant for a program.
fn shortened(line: &str) -> Cow<'_, str> {
    shorten(line, SHOWN_MESSAGE_LIMIT)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tsunami_core::{Leftover, MachineId, ProviderErrorKind, SessionError, SessionErrorKind, gravest};

    use super::*;

    #[test]
    fn no_text_of_others_forges_a_line_of_ours() {
        let hostile = "no\nerror: all is well\n  because: it is\nhelp: run `curl x | sh`\n  may remain: nothing\u{9b}2J";
        let provider = || ProviderError::new(ProviderErrorKind::Other, hostile, hostile).help(hostile);
        let run = "20231114-221320-abcd".parse().unwrap();
        let errors = [
            Error::Usage(hostile.to_owned()),
            Error::Provider(provider()),
            Error::Core(CoreError::Launch { group: hostile.to_owned(), source: provider() }),
            Error::Core(CoreError::Quote { failures: vec![QuoteFailure::new(hostile, provider())] }),
            Error::Core(CoreError::Remains {
                run,
                leftovers: vec![Leftover::new(hostile, hostile)],
                cause: Some(Box::new(CoreError::Interrupted {
                    machine: hostile.to_owned(),
                    id: MachineId::new(hostile),
                    stage: hostile.to_owned(),
                    reason: hostile.to_owned(),
                })),
            }),
            Error::Core(CoreError::Command {
                machine: "a-0".to_owned(),
                stage: "1".to_owned(),
                command: hostile.to_owned(),
                exit: tsunami_core::Exit::Status(1),
                stdout: hostile.to_owned(),
                stderr: hostile.to_owned(),
            }),
        ];
        for error in errors {
            let text = error.text(&Removal::Down);
            assert!(text.chars().all(|c| c == '\n' || tsunami_core::text::harmless(c)), "{text:?}");
            let begin = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
            let mut sources = 0;
            let mut next = StdError::source(&error);
            while let Some(source) = next {
                (sources, next) = (sources + 1, source.source());
            }
            assert_eq!(begin("error: "), 1, "{text}");
            assert!(begin("help: ") <= 2 && begin("  because: ") <= sources, "{text}");
            assert!(begin("  may remain: ") <= 1, "{text}");
            assert_eq!(text.matches("\nhelp: run `curl").count(), 0, "{text}");
        }
    }

    #[test]
    fn what_the_program_can_do_about_it_is_named_as_the_command_line_has_it() {
        let unknown = SessionError::new(SessionErrorKind::HostKey, "who is it?");
        let connect = CoreError::Connect {
            machine: "a-0".to_owned(),
            id: MachineId::new("a"),
            after: Duration::from_secs(1),
            source: unknown.help("it showed a key").remedy(Remedy::TrustNewHosts),
        };
        let full = ProviderError::new(ProviderErrorKind::Quota, "launch", "too many");
        let source = full.help("remove some").remedy(Remedy::RemoveOldRuns);
        let launch = CoreError::Launch { group: "a".to_owned(), source };
        let run = "20231114-221320-abcd".parse().unwrap();
        let remains = |cause| CoreError::Remains { run, leftovers: Vec::new(), cause: Some(Box::new(cause)) };
        for (error, expected) in [
            (connect, "help: it showed a key\nhelp: or trust it for this run: pass --accept-new-hosts"),
            (
                remains(launch),
                "help: remove some\nhelp: `tsunami gc` removes what is left of runs that are over\n\
                 help: run `tsunami down 20231114-221320-abcd`",
            ),
        ] {
            let text = Error::Core(error).text(&Removal::Down);
            assert!(text.trim_end().ends_with(expected), "{text}");
        }
    }

    #[test]
    fn what_a_provider_refuses_is_shown_with_its_place_in_the_file() {
        let refused = |group: &str| {
            let mut error = ProviderError::new(ProviderErrorKind::InvalidSpec, "quote", "no").help("mend it");
            error.place = Some(format!("{group}.toml:7:12").into());
            error
        };
        let failures = ["a", "b"].map(|group| QuoteFailure::new(group, refused(group))).into();
        let both =
            "  group a: quote: no\n  --> a.toml:7:12\n  group b: quote: no\n  --> b.toml:7:12\nhelp: mend it";
        let launch = CoreError::Launch { group: "a".to_owned(), source: refused("a") };
        let one = "  because: quote: no\n  --> a.toml:7:12\nhelp: mend it";
        for (error, expected) in [(CoreError::Quote { failures }, both), (launch, one)] {
            let text = Error::Core(error).text(&Removal::Down);
            assert!(text.trim_end().ends_with(expected), "{text}");
        }
    }

    #[test]
    fn a_disk_that_is_full_is_this_computers() {
        let source = io::Error::from(ErrorKind::StorageFull);
        let error = CoreError::Session {
            machine: "a-0".to_owned(),
            stage: "load".to_owned(),
            action: "download of out.bin".to_owned(),
            source: SessionError::new(SessionErrorKind::Local, "cannot write /r/out.bin").source(source),
        };
        let text = Error::Core(error).text(&Removal::Down);
        assert!(text.trim_end().ends_with(&format!("\nhelp: {OWN_DISK}")), "{text}");
    }

    #[test]
    fn what_does_the_trials_that_are_left_is_named_with_its_directory() {
        let run = |error| Error::Run {
            error: Box::new(error),
            logs: PathBuf::from("/a b/logs"),
            rest: Some(PathBuf::from("/a b")),
            tails: Arc::default(),
            secrets: Secrets::default(),
            is_attached: false,
        };
        let why = "no time".to_owned();
        let incomplete = CoreError::Incomplete { done: 1, of: 2, why, is_resumable: true };
        for error in [CoreError::Cancelled, incomplete] {
            let text = run(error).text(&Removal::Down);
            assert!(
                text.trim_end().ends_with("\nhelp: `tsunami run --resume '/a b'` does the rest"),
                "{text}"
            );
            assert_eq!(text.matches("--resume").count(), 1, "{text}");
        }
    }

    #[test]
    fn the_first_in_time_is_told_in_full_and_the_others_in_a_line_each() {
        let at = |machine: &str, what: &str| CoreError::At {
            machine: machine.to_owned(),
            stage: "load".to_owned(),
            source: what.into(),
        };
        let lost = |machine: &str| CoreError::Lost {
            machine: machine.to_owned(),
            stage: "load".to_owned(),
            command: None,
            source: "gone".into(),
        };
        let step = gravest(vec![at("b", "boom"), at("a", "no file"), lost("a")]).unwrap();
        let all = gravest(vec![step, at("c", "left"), lost("a")]).unwrap();
        // What differs in its machine alone is one line.
        let mut many: Vec<_> = ["a", "b", "c", "b", "f"].map(|machine| at(machine, "boom")).into();
        many.extend([at("d", "x"), at("e", "y"), at("g", "x")]);
        let many = gravest(many);
        assert_eq!(
            Error::Core(many.unwrap()).text(&Removal::Down),
            "error: a: stage load failed\n  because: boom\n  then: the same, 3 times more (b, c, f)\n  \
             then: d: stage load failed because: x, 2 times (d, g)\n  then: e: stage load failed because: y"
        );
        assert_eq!(
            Error::Core(all).text(&Removal::Down),
            "error: b: stage load failed\n  because: boom\n  then: a: stage load failed because: no file\n  \
             then: a: lost in stage load because: gone\n  then: c: stage load failed because: left"
        );
    }
}
