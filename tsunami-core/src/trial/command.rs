//! Commands in a trial, to their end or in the background.

use std::ffi::OsString;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Collect, Ready, TrialHost};
use crate::cluster::{Host, HostCommand, Output, OutputLines, Process};
use crate::error::Error;
use crate::session::{Stdin, Stream};

/// A command that is about to run on a machine in a trial.
#[derive(Clone, Debug)]
#[must_use = "a command does nothing until `run`, `output`, `start` or `start_until` is called"]
pub struct TrialCommand {
    pub(super) host: TrialHost,
    pub(super) command: HostCommand,
    pub(super) collect: Option<Collect>,
}

impl TrialCommand {
    pub(super) fn new(host: TrialHost, command: HostCommand) -> Self {
        Self { host, command, collect: None }
    }

    /// Adds an argument; see [`HostCommand::arg`].
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.command = self.command.arg(arg);
        self
    }

    /// Adds arguments, as [`arg`](Self::arg) does each.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.command = self.command.args(args);
        self
    }

    /// Adds a variable to its environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Self {
        self.command = self.command.env(name, value);
        self
    }

    /// Sets the directory it runs in.
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.command = self.command.cwd(directory);
        self
    }

    /// Sets what it reads.
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.command = self.command.stdin(stdin);
        self
    }

    /// Sets how long it may take; see [`HostCommand::timeout`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.command = self.command.timeout(timeout);
        self
    }

    /// Lets events and errors call it by these words.
    pub fn called(mut self, words: impl Into<String>) -> Self {
        self.command = self.command.called(words);
        self
    }

    /// Brings these files home once it has ended or was stopped, whether or not it succeeded.
    pub fn collect(mut self, collect: Collect) -> Self {
        self.collect = Some(collect);
        self
    }

    /// Runs it to its end, which must be status 0, and returns what it wrote.
    pub async fn run(self) -> Result<Output, Error> {
        let ran = self.command.run().await;
        let collected = collected(&self.host, self.collect.as_ref()).await;
        ran.and_then(|output| collected.map(|()| output))
    }

    /// Runs it to its end, whatever that is, and returns what it wrote.
    pub async fn output(self) -> Result<Output, Error> {
        let ran = self.command.output().await;
        let collected = collected(&self.host, self.collect.as_ref()).await;
        ran.and_then(|output| collected.map(|()| output))
    }

    /// Runs it to its end, which must be status 0, and reads what it wrote as JSON; see [`HostCommand::json`].
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        let read = self.command.json().await;
        let collected = collected(&self.host, self.collect.as_ref()).await;
        read.and_then(|value| collected.map(|()| value))
    }

    /// Starts it, and hands over its lines as they come; see [`HostCommand::lines`]. It ends with the trial at the latest.
    /// Files are not brought home then: [`TrialHost::collect`] does that once it has ended.
    pub fn lines(self) -> OutputLines {
        self.command.lines()
    }

    /// Starts it in the background, where it runs until the trial ends, or [`Service::stop`].
    pub fn start(self) -> Service {
        let line = self.command.line();
        let process = self.command.start();
        Background { host: self.host, line, collect: self.collect, process }.keep()
    }

    /// Starts it in the background and waits until it is ready. One that ends before that, or isn't ready in time, is
    /// an error, and stopped when this returns.
    pub async fn start_until(self, ready: Ready) -> Result<Service, Error> {
        let line = self.command.line();
        let (command, waiting) = ready.prepare(&self.host, self.command).await?;
        let mut process = command.start();
        if let Err(error) = waiting.until_ready(&line, &mut process).await {
            // Its files tell why, more likely than not. What else goes wrong now only follows from that.
            let _ = process.stop().await;
            let _ = collected(&self.host, self.collect.as_ref()).await;
            return Err(error);
        }
        Ok(Background { host: self.host, line, collect: self.collect, process }.keep())
    }
}

async fn collected(host: &TrialHost, collect: Option<&Collect>) -> Result<(), Error> {
    match collect {
        Some(collect) => host.collect(collect).await.map(drop),
        None => Ok(()),
    }
}

/// Something that runs in the background of a trial, until the trial ends; dropping this changes nothing.
#[derive(Debug)]
pub struct Service {
    host: TrialHost,
    /// Its place among the trial's services.
    number: usize,
}

impl Service {
    /// The machine it runs on.
    pub fn host(&self) -> &TrialHost {
        &self.host
    }

    /// Ends it before the trial ends: TERM, five seconds, then KILL. It is confirmed gone, and its files are home, once
    /// this returns. One that failed before that is an error.
    pub async fn stop(self) -> Result<(), Error> {
        let service = self.host.trial.services().get_mut(self.number).and_then(Option::take);
        match service {
            Some(background) => background.stop().await,
            // The trial is over, and has stopped it.
            None => Ok(()),
        }
    }
}

/// A command that goes on until the trial ends.
#[derive(Debug)]
pub(super) struct Background {
    host: TrialHost,
    line: String,
    collect: Option<Collect>,
    process: Process,
}

impl Background {
    /// Leaves it to the trial.
    fn keep(self) -> Service {
        let host = self.host.clone();
        let mut services = host.trial.services();
        let number = services.len();
        services.push(Some(self));
        drop(services);
        Service { host, number }
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    /// Brings the files home of one that has ended, and returns how it did, which is an error whatever its status. None if it
    /// did not end by itself.
    pub(super) async fn ended(self) -> Option<Error> {
        let Self { host, line, collect, process } = self;
        let ended = process.stop().await;
        // What else goes wrong now only follows from that.
        let _ = collected(&host, collect.as_ref()).await;
        ended.map(|output| output.map(|output| ended_too_soon(&host, line, &output))).unwrap_or_else(Some)
    }

    /// Ends it and brings its files home. One that failed before its time is an error, and where services go on until the
    /// trial ends, so is one that succeeded.
    pub(super) async fn stop(self) -> Result<(), Error> {
        let Self { host, line, collect, process } = self;
        let trial = &host.trial.inner;
        let goes_on = trial.services_go_on.load(Ordering::Relaxed) && !trial.over.is_cancelled();
        let ended = process.stop().await;
        let collected = collected(&host, collect.as_ref()).await;
        match ended? {
            Some(output) if goes_on || !output.exit.success() => Err(ended_too_soon(&host, line, &output)),
            _ => collected,
        }
    }
}

/// The error of a service that ended by itself before the trial did.
fn ended_too_soon(host: &Host, line: String, output: &Output) -> Error {
    if output.exit.success() {
        return host.error(format!(
            "`{line}` ended with status 0 before the trial did, and a `start` goes on until then. If it may end by itself, \
             let something else go on: `…; sleep infinity`"
        ));
    }
    ended_early(host, line, output)
}

/// The error of a background command that ended by itself while it was needed.
pub(super) fn ended_early(host: &Host, line: String, output: &Output) -> Error {
    Error::Command {
        machine: host.name().to_owned(),
        stage: host.stage_name().to_owned(),
        command: line,
        exit: output.exit,
        stdout: output.last_lines(Stream::Stdout),
        stderr: output.last_lines(Stream::Stderr),
    }
}
