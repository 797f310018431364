//! Commands of one machine, one after another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::command::Begun;
use super::{Host, HostCommand, Output};
use crate::error::Error;
use crate::session::{Command, Exit, OutputSink, SequenceObserver};

impl Host {
    /// Runs commands of this machine one after another, each of which must succeed, and returns what they wrote. The
    /// first that does not ends the list, with the error that it would have by itself.
    ///
    /// All is as if each were [run](HostCommand::run) when the one before has ended: its events, its settings and its
    /// output are its own. But over a network they are sent at once, so that no time goes by between them. If the future is
    /// dropped, the one that runs is ended in the background, and none of those after it begins.
    ///
    /// ```
    /// # use tsunami_core::{Command, Error, Host};
    /// # async fn example(host: &Host) -> Result<(), Error> {
    /// let build = ["git clone -q https://example.org/it", "cd it && make", "sudo make -C it install"];
    /// host.run_all(build.map(|line| host.command(Command::shell(line)))).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Of the first that fails, what [`HostCommand::run`] would return; [`Error::At`], with nothing run, if one is another
    /// machine's.
    pub async fn run_all(
        &self,
        commands: impl IntoIterator<Item = HostCommand>,
    ) -> Result<Vec<Output>, Error> {
        self.run_list(commands.into_iter().collect(), true).await
    }

    /// Runs commands one after another, and returns what they wrote if somebody wants to keep it.
    pub(crate) async fn run_list(
        &self,
        mut commands: Vec<HostCommand>,
        keep: bool,
    ) -> Result<Vec<Output>, Error> {
        if commands.len() < 2 {
            return match commands.pop() {
                Some(command) => Ok(vec![command.run().await?]),
                None => Ok(Vec::new()),
            };
        }
        self.run_in_turn(commands, keep, Arc::new(())).await
    }

    /// Runs commands one after another in one conversation, and lets `turns` hear of each.
    pub(crate) async fn run_in_turn(
        &self,
        commands: Vec<HostCommand>,
        keep: bool,
        turns: Arc<dyn Turns>,
    ) -> Result<Vec<Output>, Error> {
        if let Some(other) = commands.iter().find(|command| !Arc::ptr_eq(&command.host.inner, &self.inner)) {
            return Err(self.error(format!("a command of {} can't run here", other.host.name())));
        }
        commands.iter().for_each(HostCommand::close_stdin);
        let lines: Vec<Command> = commands.iter().map(|command| command.command.clone()).collect();
        let turn = CurrentTurn::first();
        let list = Arc::new(List { commands, keep, turns, turn, progress: Mutex::default() });
        let stop = self.inner.cancel.child_token();
        let running = self.inner.session.exec_all(&lines, list.clone(), &stop);
        let result = self.attend(&list.commands, &list.turn, &stop, running).await;
        let Progress { begun, ended, mut outputs } = std::mem::take(&mut *list.progress());
        match (result, list.commands.get(ended), begun) {
            (Ok(()), Some(_), Some(begun)) => {
                let error = self.error("its session does not say how a command has ended");
                list.settle(ended, begun, Err(error)).map(drop)
            }
            // It failed before a turn, which is the turn's failure.
            (Err(error), Some(_), begun) => {
                list.settle(ended, begun.unwrap_or_else(|| list.begin(ended)), Err(error)).map(drop)
            }
            (result, ..) => result,
        }?;
        if let Some(output) = outputs.pop_if(|output| !output.exit.success()) {
            list.commands[ended.saturating_sub(1)].succeeded(output)?;
        }
        if ended < list.commands.len() {
            return Err(self.error("its session has not run all of a list of commands"));
        }
        Ok(outputs)
    }
}

/// Hears of commands that run one after another, by their places: right before events tell that one begins, and right
/// after they have told how it ended, which is a success or not.
pub(crate) trait Turns: Send + Sync {
    fn begins(&self, index: usize);
    fn ended(&self, index: usize, ok: bool);
}

/// Hears nothing.
impl Turns for () {
    fn begins(&self, _: usize) {}
    fn ended(&self, _: usize, _: bool) {}
}

/// Commands that run one after another.
struct List {
    commands: Vec<HostCommand>,
    /// Whether somebody wants all that they wrote.
    keep: bool,
    turns: Arc<dyn Turns>,
    turn: CurrentTurn,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    begun: Option<Begun>,
    /// How many have ended.
    ended: usize,
    outputs: Vec<Output>,
}

impl List {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, index: usize) -> Begun {
        self.turns.begins(index);
        self.commands[index].begin()
    }

    fn settle(&self, index: usize, begun: Begun, result: Result<Exit, Error>) -> Result<Output, Error> {
        let settled = self.commands[index].settle(begun, result);
        self.turns.ended(index, settled.as_ref().is_ok_and(|output| output.exit.success()));
        settled
    }
}

impl SequenceObserver for List {
    fn begins(&self, index: usize) -> Arc<dyn OutputSink> {
        let begun = self.begin(index);
        let capture = begun.capture.clone();
        self.turn.take(Turn { index, since: begun.at });
        self.progress().begun = Some(begun);
        capture
    }

    fn ended(&self, index: usize, exit: Exit) {
        let begun = self.progress().begun.take();
        let output = begun.and_then(|begun| self.settle(index, begun, Ok(exit)).ok());
        let mut progress = self.progress();
        if !self.keep {
            progress.outputs.clear();
        }
        progress.outputs.extend(output);
        progress.ended = index + 1;
    }
}

/// Whose turn it is of several commands, and since when.
#[derive(Clone, Copy)]
pub(super) struct Turn {
    pub(super) index: usize,
    pub(super) since: Instant,
}

/// Tells the one who waits for them about the turns.
pub(super) struct CurrentTurn {
    turn: Mutex<Turn>,
    pub(super) next: Notify,
}

impl CurrentTurn {
    /// It is the first one's turn.
    pub(super) fn first() -> Self {
        Self { turn: Mutex::new(Turn { index: 0, since: Instant::now() }), next: Notify::new() }
    }

    pub(super) fn turn(&self) -> Turn {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, turn: Turn) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = turn;
        self.next.notify_one();
    }
}
