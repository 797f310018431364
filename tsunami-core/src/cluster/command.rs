//! One command on one machine, to its end.

use std::ffi::OsString;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use serde::de::DeserializeOwned;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::lines::{LineQueue, OutputLines};
use super::list::CurrentTurn;
use super::output::{Capture, Kept, Output, OutputWatcher};
use super::{Host, Process, ProcessStdin};
use crate::error::{BoxError, Error, ErrorChain, shown};
use crate::event::{EventKind, cut};
use crate::limits::{OUTPUT_LIMIT, SHOWN_MESSAGE_LIMIT};
use crate::session::{Command, Exit, SessionError, SessionErrorKind, Stdin, Stream};
use crate::text::shorten;

/// How long a session may take to confirm that a command is gone that was told to end: longer than its own limits.
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// A command that is about to run on a machine. In a trial, it is one [in a trial](crate::trial::TrialCommand).
///
/// It is prepared as `std::process::Command` is, and then ended in one of these ways, each of which waits, unless it says
/// otherwise: [`run`](Self::run) (it must succeed), [`output`](Self::output) (whatever comes of it), [`json`](Self::json),
/// [`lines`](Self::lines) (as they come) and [`start`](Self::start) (in the background, at once).
///
/// ```
/// # use std::time::Duration;
/// # use tsunami_core::{Error, Host};
/// # async fn example(host: &Host) -> Result<(), Error> {
/// let build = host.program("make").args(["-j", "8"]).env("CC", "clang").cwd("src").timeout(Duration::from_secs(300));
/// println!("{}", build.run().await?.stdout());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a command does nothing until `run`, `output`, `json`, `lines` or `start` is called"]
pub struct HostCommand<S = ()> {
    pub(super) host: Host,
    pub(super) command: Command,
    settings: Settings,
    /// What it is a part of.
    scope: S,
}

/// How it runs, beside what it is.
#[derive(Clone, Debug, Default)]
struct Settings {
    /// What it is called in place of its command line.
    words: Option<String>,
    unobserved: bool,
    timeout: Option<Duration>,
    /// Each of them ends it.
    cancel: Vec<CancellationToken>,
    despite_interruption: bool,
    /// Who looks at its output, beside the observers.
    watcher: Option<Arc<dyn OutputWatcher>>,
}

impl HostCommand {
    pub(super) fn new(host: Host, command: Command) -> Self {
        Self { host, command, settings: Settings::default(), scope: () }
    }
}

impl<S> HostCommand<S> {
    /// The same command as a part of something else.
    pub(crate) fn within<T>(self, scope: T) -> HostCommand<T> {
        let Self { host, command, settings, .. } = self;
        HostCommand { host, command, settings, scope }
    }

    /// The command by itself, and what it was a part of.
    pub(crate) fn split(self) -> (HostCommand, S) {
        let Self { host, command, settings, scope } = self;
        (HostCommand { host, command, settings, scope: () }, scope)
    }

    /// What it is a part of.
    pub(crate) fn scope_mut(&mut self) -> &mut S {
        &mut self.scope
    }

    /// Adds an argument, which reaches it byte for byte. To a shell line it is a positional parameter: `$1`, `$2`, …
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.command = self.command.arg(arg);
        self
    }

    /// Adds arguments, as [`arg`](Self::arg) does each.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.command = self.command.args(args);
        self
    }

    /// Adds variables to its environment.
    pub fn envs(
        mut self,
        variables: impl IntoIterator<Item = (impl Into<String>, impl Into<OsString>)>,
    ) -> Self {
        self.command = self.command.envs(variables);
        self
    }

    /// Adds a variable to its environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Self {
        self.command = self.command.env(name, value);
        self
    }

    /// Sets the directory it runs in, relative to the session's own. It must be there.
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.command = self.command.cwd(directory);
        self
    }

    /// Sets what it reads: nothing, unless this says otherwise.
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.command = self.command.stdin(stdin);
        self
    }

    /// Sets how long it may take; without limit, unless this says so. On time-out the command and its process group get
    /// TERM, five seconds, then KILL, and the error is [`Error::Timeout`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = Some(timeout);
        self
    }

    /// Lets `token` end it, too, as a time-out would; the error is [`Error::Cancelled`]. What ends it anyway still does:
    /// other tokens, the end of its trial and that of the run.
    pub fn cancel_on(mut self, token: CancellationToken) -> Self {
        self.settings.cancel.push(token);
        self
    }

    /// Lets events and errors call it by these words, where its command line is nobody's business: the program's own
    /// way to do something.
    pub fn called(mut self, words: impl Into<String>) -> Self {
        self.settings.words = Some(words.into());
        self
    }

    /// Tells no observer of it or its output: it is none of the commands that the run is about.
    pub fn unobserved(mut self) -> Self {
        self.settings.unobserved = true;
        self
    }

    /// Lets its output be watched.
    pub(crate) fn watched_by(mut self, watcher: Arc<dyn OutputWatcher>) -> Self {
        self.settings.watcher = Some(watcher);
        self
    }

    /// What events and errors call it.
    pub(crate) fn line(&self) -> String {
        self.settings.words.clone().unwrap_or_else(|| self.command.to_string())
    }
}

impl HostCommand {
    /// Lets it run although the machine is interrupted, for as long as there is one: to clean up, to save what it
    /// has measured. In a trial, whose commands all end then, it takes a command of the [`Host`] itself.
    pub fn despite_interruption(mut self) -> Self {
        self.settings.despite_interruption = true;
        self
    }

    /// Another command, which runs where and as this one does.
    pub(crate) fn alike(&self, mut other: Command) -> Self {
        other.env.extend(self.command.env.iter().cloned());
        other.cwd.clone_from(&self.command.cwd);
        let mut other = self.host.command(other);
        other.settings.cancel.clone_from(&self.settings.cancel);
        other
    }

    /// Runs it to its end, which must be status 0, and returns what it wrote. If the future is dropped, the command is
    /// ended in the background.
    ///
    /// # Errors
    ///
    /// [`Error::Command`] for any other end, and for the rest as [`output`](Self::output) has them.
    #[expect(clippy::manual_async_fn, reason = "an async function holds what it is given twice")]
    pub fn run(self) -> impl Future<Output = Result<Output, Error>> + Send {
        async move {
            let output = self.execute().await?;
            self.succeeded(output)
        }
    }

    /// What it wrote, if it has succeeded.
    pub(super) fn succeeded(&self, output: Output) -> Result<Output, Error> {
        if output.exit.success() {
            return Ok(output);
        }
        Err(Error::Command {
            machine: self.host.name().to_owned(),
            stage: self.host.stage.to_string(),
            command: self.line(),
            exit: output.exit,
            stdout: output.last_lines(Stream::Stdout),
            stderr: output.last_lines(Stream::Stderr),
        })
    }

    /// Runs it to its end, whatever that is, and returns what it wrote. If the future is dropped, the command is ended in
    /// the background.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] once its time is over, [`Error::Cancelled`] when it is ended on purpose or the run ends,
    /// [`Error::Interrupted`] or [`Error::Lost`] when the machine does, and [`Error::Session`] where it could not be begun,
    /// or its output not be taken ([`OutputRefused`](crate::OutputRefused)).
    #[expect(clippy::manual_async_fn, reason = "an async function holds what it is given twice")]
    pub fn output(self) -> impl Future<Output = Result<Output, Error>> + Send {
        async move { self.execute().await }
    }

    /// Runs it to its end, which must be status 0, and reads what it wrote to standard output as JSON. If the future is
    /// dropped, the command is ended in the background.
    ///
    /// ```
    /// # use std::collections::BTreeMap;
    /// # use tsunami_core::{Error, Host};
    /// # async fn example(host: &Host) -> Result<(), Error> {
    /// let limits: BTreeMap<String, u64> = host.shell("cat limits.json").json().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::At`] if it isn't such JSON, or is longer than [`OUTPUT_LIMIT`](crate::limits::OUTPUT_LIMIT), and for the
    /// rest as [`run`](Self::run) has them.
    #[expect(clippy::manual_async_fn, reason = "an async function holds what it is given twice")]
    pub fn json<T: DeserializeOwned>(self) -> impl Future<Output = Result<T, Error>> + Send {
        async move {
            let output = self.execute().await?;
            let output = self.succeeded(output)?;
            let about = |error: BoxError| {
                let begins = shorten(&output.stdout(), SHOWN_MESSAGE_LIMIT).trim_end().to_owned();
                let message = format!("`{}` has not printed the JSON that was expected", shown(&self.line()));
                self.host.error(NotJson {
                    message: format!("{message}; it begins with `{begins}`"),
                    source: error,
                })
            };
            if output.stdout.len() >= OUTPUT_LIMIT {
                return Err(about(format!("it is longer than {} MiB", OUTPUT_LIMIT >> 20).into()));
            }
            serde_json::from_slice(&output.stdout).map_err(|error| about(error.into()))
        }
    }

    /// Starts it, and hands over the lines of both of its outputs as they come, each at once. In the end it must have
    /// status 0. What is dropped, ends.
    ///
    /// Events and logs have the output as well. Of the lines, as much waits for its reader as
    /// [`LINES_AHEAD_LIMIT`](crate::limits::LINES_AHEAD_LIMIT) says. Beyond that the command waits, as one does that writes
    /// into a pipe which nobody reads; and with it, where `tsunami-ssh` makes connections of its own, the other commands of
    /// the machine. So read on, or drop what this returns.
    ///
    /// ```
    /// # use tsunami_core::{Error, Host};
    /// # async fn example(host: &Host) -> Result<(), Error> {
    /// let mut lines = host.shell("ping -c 3 10.0.0.7").lines();
    /// while let Some(line) = lines.next_line().await? {
    ///     println!("{}: {line}", host.name());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn lines(self) -> OutputLines {
        let queue = Arc::new(LineQueue::default());
        let process = self.watched_by(queue.clone()).spawn(<HostCommand>::run);
        OutputLines::new(process, queue)
    }

    async fn execute(&self) -> Result<Output, Error> {
        self.close_stdin();
        let begun = self.begin();
        let inner = &self.host.inner;
        let stop = inner.cancel.child_token();
        let running = inner.session.exec(&self.command, begun.capture.clone(), &stop);
        let result = self.host.attend(slice::from_ref(self), &CurrentTurn::first(), &stop, running).await;
        self.settle(begun, result)
    }

    /// Tells that it begins.
    pub(super) fn begin(&self) -> Begun {
        let events = &self.host.inner.events;
        let command_id = (!self.settings.unobserved).then(|| events.next_command());
        if let Some(command_id) = command_id {
            let (machine, id) = (self.host.name().to_owned(), self.host.id());
            let (stage, command) = (self.host.stage.to_string(), self.line());
            events.emit(EventKind::CommandStarted { machine, id, stage, command_id, command });
        }
        let (host, watcher) = (self.host.clone(), self.settings.watcher.clone());
        let capture = Arc::new(Capture::new(host, command_id, watcher));
        Begun { at: Instant::now(), capture }
    }

    /// Tells how it has ended, and returns what it wrote.
    pub(super) fn settle(&self, begun: Begun, result: Result<Exit, Error>) -> Result<Output, Error> {
        let Begun { at, capture } = begun;
        let Kept { stdout, stderr, truncated, tails, refused } = capture.take();
        let result = result.map_err(|error| match error {
            Error::Session { machine, stage, action, source } => {
                let refused = refused.filter(|_| source.kind == SessionErrorKind::Local);
                let source = refused.into_iter().fold(source, SessionError::source);
                Error::Session { machine, stage, action, source }
            }
            error => error,
        });
        if let Some(command_id) = capture.command_id {
            let (exit, error) = match &result {
                Ok(exit) => (Some(*exit), None),
                Err(error) => (None, Some(self.words_of(error))),
            };
            let cancelled = matches!(result, Err(Error::Cancelled));
            self.host.inner.events.emit(EventKind::CommandFinished {
                machine: self.host.name().to_owned(),
                id: self.host.id(),
                stage: self.host.stage.to_string(),
                command_id,
                command: self.line(),
                exit,
                error,
                cancelled,
                took: cut(at.elapsed()),
            });
        }
        match result {
            Ok(exit) => Ok(Output { exit, stdout, stderr, truncated, tails }),
            Err(Error::Timeout { machine, stage, command, after, gone, .. }) => {
                let [stdout, stderr] = tails.map(|tail| tail.text());
                Err(Error::Timeout { machine, stage, command, after, gone, stdout, stderr })
            }
            Err(error) => Err(error),
        }
    }

    /// An error of the command's, without what its event says beside it.
    fn words_of(&self, error: &Error) -> String {
        if let Error::Session { source, .. } = error {
            return ErrorChain(source).to_string();
        }
        let text = error.to_string();
        let own = format!("{}: stage {}: `{}` ", self.host.name(), self.host.stage, shown(&self.line()));
        text.strip_prefix(&own).unwrap_or(&text).to_owned()
    }

    /// Starts it in the background at once, where it runs until [`Process::stop`], or until the process is dropped. What goes
    /// wrong, also with its beginning, is what waiting for it tells.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, as [`lines`](Self::lines) does.
    ///
    /// ```
    /// # use tsunami_core::{Command, Error, Host};
    /// # async fn example(server: &Host, client: &Host) -> Result<(), Error> {
    /// let redis = server.command(Command::shell("redis-server --protected-mode no")).start();
    /// client.run(format!("redis-benchmark -h {}", client.ip_of(server)?)).await?;
    /// redis.stop().await?;
    /// # Ok(()) }
    /// ```
    pub fn start(self) -> Process {
        self.spawn(<HostCommand>::output)
    }

    fn spawn<F>(self, run: impl FnOnce(Self) -> F) -> Process
    where
        F: Future<Output = Result<Output, Error>> + Send + 'static,
    {
        let pipe = if let Stdin::Piped(piped) = &self.command.stdin { piped.take_writer() } else { None };
        let stdin = ProcessStdin::new(self.host.clone(), self.line(), pipe);
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(self.cancel_on(stop.clone())));
        Process::new(stop, stdin, task)
    }

    /// Where nobody can write to what it reads, that has ended.
    pub(super) fn close_stdin(&self) {
        if let Stdin::Piped(piped) = &self.command.stdin {
            drop(piped.take_writer());
        }
    }
}

/// Why what a command printed is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct NotJson {
    message: String,
    source: BoxError,
}

/// A command that has begun.
pub(super) struct Begun {
    pub(super) at: Instant,
    pub(super) capture: Arc<Capture>,
}

impl Host {
    /// Waits for commands that the session runs, and ends them at the time-out of the one whose turn it is, or when the
    /// run is cancelled.
    pub(super) async fn attend<T>(
        &self,
        commands: &[HostCommand],
        current: &CurrentTurn,
        stop: &CancellationToken,
        mut running: impl Future<Output = Result<T, SessionError>> + Unpin,
    ) -> Result<T, Error> {
        let mut timed_out = None;
        let ended = loop {
            let turn = current.turn();
            let command = &commands[turn.index];
            tokio::select! {
                biased;
                result = &mut running => break Some(result),
                () = current.next.notified() => {}
                () = self.leaving(command.settings.despite_interruption) => return Err(self.lost(Some(&command.line()))),
                () = passed(command.settings.timeout.map(|timeout| turn.since + timeout)) => {
                    timed_out = Some(turn.index);
                    break None;
                }
                () = cancelled(&command.settings.cancel) => break None,
                () = self.inner.cancel.cancelled() => break None,
            }
        };
        let result = match ended {
            Some(result) => result,
            None => {
                stop.cancel();
                timeout(END_TIMEOUT, running).await.unwrap_or_else(not_confirmed)
            }
        };
        result.map_err(|error| match (timed_out, error.kind) {
            // The time-out of one may end the next, which had just begun.
            (Some(index), SessionErrorKind::Cancelled | SessionErrorKind::CancelledUnconfirmed) => {
                Error::Timeout {
                    machine: self.name().to_owned(),
                    stage: commands[index].host.stage.to_string(),
                    command: commands[index].line(),
                    after: commands[index].settings.timeout.unwrap_or_default(),
                    gone: error.kind == SessionErrorKind::Cancelled,
                    stdout: String::new(),
                    stderr: String::new(),
                }
            }
            _ => {
                let command = &commands[current.turn().index];
                Error::session(self.name(), &command.host.stage, &command.line(), error)
            }
        })
    }
}

/// What ending a command comes to that had no answer in its time.
fn not_confirmed<T>(_: Elapsed) -> Result<T, SessionError> {
    let after = humantime::format_duration(END_TIMEOUT);
    let message = format!("whether the command is gone was not known {after} after it was told to end");
    Err(SessionError::new(SessionErrorKind::CancelledUnconfirmed, message))
}

/// Resolves when the time has come; never without one. It takes memory only where there is one, as for most commands there
/// isn't.
async fn passed(time: Option<Instant>) {
    match time {
        Some(time) => Box::pin(sleep_until(time)).await,
        None => std::future::pending().await,
    }
}

/// Resolves when one of the tokens fires; never without one, which takes no memory.
async fn cancelled(tokens: &[CancellationToken]) {
    if tokens.is_empty() {
        return std::future::pending().await;
    }
    select_all(tokens.iter().map(|token| Box::pin(token.cancelled()))).await;
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::event::{EventCounts, Events};
    use crate::machine::{Machine, MachineId, MachineState, RunId};
    use crate::session::MockSession;
    use crate::spread::Spreads;

    #[tokio::test]
    async fn what_waits_for_a_command_is_small_since_ten_thousand_may_run_at_once() {
        let run = RunId::generate(SystemTime::UNIX_EPOCH, 1);
        let machine = Machine::new(MachineId::new("m-1"), run, "node", 0, MachineState::Running);
        let events = Events::new(&[], SystemTime::UNIX_EPOCH, EventCounts::default());
        let (session, spreads) = (Arc::new(MockSession::new()), Spreads::new(Vec::new(), events.clone()));
        let host = Host::new(machine.into(), session, events, spreads, CancellationToken::new());
        let bytes = size_of_val(&host.command(Command::shell("true")).run());
        assert!(bytes <= 1024, "{bytes} bytes");
    }
}
