//! Commands in the background.

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Output;
use crate::error::Error;

/// A command that runs in the background.
///
/// Dropping it begins to stop the command and returns at once; [`stop`](Self::stop) waits until it is gone.
#[derive(Debug)]
pub struct Process {
    stop: CancellationToken,
    state: ProcessState,
}

#[derive(Debug)]
enum ProcessState {
    Running(JoinHandle<Result<Output, Error>>),
    Ended(Output),
    /// Its error has been handed out.
    Failed,
}

impl Process {
    pub(super) fn new(stop: CancellationToken, task: JoinHandle<Result<Output, Error>>) -> Self {
        Self { stop, state: ProcessState::Running(task) }
    }

    /// Waits until the command ends by itself. May be dropped and called again, also when it has ended; an error
    /// is told once.
    pub async fn wait(&mut self) -> Result<Output, Error> {
        let ended = match &mut self.state {
            ProcessState::Running(task) => task.await.map_err(Error::other).flatten(),
            ProcessState::Ended(output) => return Ok(output.clone()),
            ProcessState::Failed => return Err(Error::other("the process failed, as was told before")),
        };
        self.state = match &ended {
            Ok(output) => ProcessState::Ended(output.clone()),
            Err(_) => ProcessState::Failed,
        };
        ended
    }

    /// Whether the command has ended, so that nothing is left to wait for.
    pub(crate) fn has_ended(&self) -> bool {
        !matches!(&self.state, ProcessState::Running(task) if !task.is_finished())
    }

    /// Ends the command: TERM, five seconds, then KILL. Returns once it is confirmed gone, with how it ended if
    /// that happened before, and without an error that [`wait`](Self::wait) has told already.
    pub async fn stop(mut self) -> Result<Option<Output>, Error> {
        self.stop.cancel();
        if matches!(self.state, ProcessState::Failed) {
            return Ok(None);
        }
        match self.wait().await {
            Ok(output) => Ok(Some(output)),
            Err(Error::Cancelled) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
