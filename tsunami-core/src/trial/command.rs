//! Commands in a trial, to their end or in the background.

use std::sync::atomic::Ordering;

use serde::de::DeserializeOwned;

use super::{Collect, Ready, TrialHost};
use crate::cluster::{Host, HostCommand, Output, OutputLines, Process};
use crate::error::Error;
use crate::session::Stream;

/// A command that is about to run on a machine in a trial. It is prepared as any [`HostCommand`] is, has the trial's
/// [environment](super::MachineContext::variables), and ends with the trial at the latest.
pub type TrialCommand = HostCommand<InTrial>;

/// What a command has of the trial that it runs in.
#[derive(Clone, Debug)]
pub struct InTrial {
    pub(super) host: TrialHost,
    pub(super) collect: Option<Collect>,
}

/// In a trial.
impl HostCommand<InTrial> {
    /// Brings these files home once it has ended or was stopped, whether or not it succeeded. A pattern that must match
    /// something and doesn't is an error of a command that has succeeded.
    pub fn collect(mut self, collect: Collect) -> Self {
        self.scope_mut().collect = Some(collect);
        self
    }

    /// Runs it to its end, which must be status 0, brings its files home, and returns what it wrote. If the future is
    /// dropped, the command is ended in the background, and nothing is brought home.
    ///
    /// # Errors
    ///
    /// As for [any command](HostCommand::run), and what could not be [collected](TrialHost::collect).
    pub async fn run(self) -> Result<Output, Error> {
        self.and_collect(<HostCommand>::run).await
    }

    /// Runs it to its end, whatever that is, brings its files home, and returns what it wrote. If the future is dropped, it
    /// is as with `run`.
    ///
    /// # Errors
    ///
    /// As for any command's `output`, and what could not be [collected](TrialHost::collect).
    pub async fn output(self) -> Result<Output, Error> {
        self.and_collect(<HostCommand>::output).await
    }

    /// Runs it to its end, which must be status 0, brings its files home, and reads what it wrote to standard output as
    /// JSON. If the future is dropped, it is as with `run`.
    ///
    /// # Errors
    ///
    /// As for any command's `json`, and what could not be [collected](TrialHost::collect).
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        self.and_collect(<HostCommand>::json).await
    }

    async fn and_collect<T, F>(self, run: impl FnOnce(HostCommand) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (command, InTrial { host, collect }) = self.split();
        let ran = run(command).await;
        let collected = collected(&host, collect.as_ref()).await;
        ran.and_then(|value| collected.map(|()| value))
    }

    /// Starts it, and hands over the lines of both of its outputs as they come, each at once, as for any command. It ends
    /// with the trial at the latest. Files are not brought home then: [`TrialHost::collect`] does that once it has ended.
    pub fn lines(self) -> OutputLines {
        self.split().0.lines()
    }

    /// Starts it in the background, where it runs until the trial ends, or [`Service::stop`]. One that ends by itself
    /// before that fails the trial unless its status is 0. Its files come home when it has ended.
    pub fn start(self) -> Service {
        let (command, InTrial { host, collect }) = self.split();
        let line = command.line();
        Background { host, line, collect, process: command.start() }.keep()
    }

    /// Starts it in the background and waits until it is ready. If the future is dropped, it is ended in the background.
    ///
    /// # Errors
    ///
    /// That it has ended before it was ready, or was not ready in time. It is gone and its files are home when this returns.
    pub async fn start_until(self, ready: Ready) -> Result<Service, Error> {
        let (command, InTrial { host, collect }) = self.split();
        let line = command.line();
        let (command, waiting) = ready.prepare(&host, command).await?;
        let mut process = command.start();
        if let Err(error) = waiting.until_ready(&line, &mut process).await {
            // Its files tell why, more likely than not. What else goes wrong now only follows from that.
            let _ = process.stop().await;
            let _ = collected(&host, collect.as_ref()).await;
            return Err(error);
        }
        Ok(Background { host, line, collect, process }.keep())
    }
}

impl TrialHost {
    /// Runs commands of this machine one after another, each of which must succeed, as [`Host::run_all`] does; files come
    /// home as each says. If the future is dropped, the one whose turn it is is ended in the background.
    ///
    /// # Errors
    ///
    /// Of the first that fails, what [`TrialCommand::run`](HostCommand::run) would return.
    pub async fn run_all(
        &self,
        commands: impl IntoIterator<Item = TrialCommand>,
    ) -> Result<Vec<Output>, Error> {
        let (mut together, mut outputs) = (Vec::new(), Vec::new());
        for command in commands {
            let (command, InTrial { host, collect }) = command.split();
            together.push(command);
            if collect.is_some() {
                let ran = Host::run_all(self, std::mem::take(&mut together)).await;
                let collected = collected(&host, collect.as_ref()).await;
                outputs.extend(ran.and_then(|ran| collected.map(|()| ran))?);
            }
        }
        outputs.extend(Host::run_all(self, together).await?);
        Ok(outputs)
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
    /// this returns. If the future is dropped, it is ended in the background, and nothing is brought home.
    ///
    /// # Errors
    ///
    /// That it failed before that, can't be confirmed gone, or what could not be [collected](TrialHost::collect).
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
