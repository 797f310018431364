//! Steps of a single machine, one after another in one conversation.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::{InTrial, TrialCommand, TrialHost, lock};
use crate::cluster::Turns;
use crate::error::Error;

/// Runs commands of one machine one after another, until one fails. Each is told of as the [step](super::Trial::step) of
/// its stage, and none but the last may collect anything. Returns the place of the one that was the last to begin, and
/// what came of it.
///
/// If the future is dropped, the command whose turn it is is ended in the background, and no event tells the end of its step.
pub(crate) async fn in_a_row(commands: Vec<TrialCommand>) -> (usize, Result<(), Error>) {
    let (commands, parts): (Vec<_>, Vec<_>) = commands.into_iter().map(TrialCommand::split).unzip();
    let Some(InTrial { host, collect }) = parts.last().cloned() else { return (0, Ok(())) };
    let steps = parts.into_iter().map(|part| part.host).collect();
    let row = Arc::new(Row { steps, collects: collect.is_some(), turn: Mutex::new((0, Instant::now())) });
    let ran = host.run_in_turn(commands, false, row.clone()).await.map(drop);
    let (last, _) = *lock(&row.turn);
    match collect {
        Some(collect) if last + 1 == row.steps.len() => {
            let collected = host.collect(&collect).await.map(drop);
            let done = ran.and(collected);
            row.tell_end(last, done.is_ok());
            (last, done)
        }
        _ => (last, ran),
    }
}

/// Tells of steps as their commands have their turns.
struct Row {
    steps: Vec<TrialHost>,
    /// Whether the last step goes on when its command has ended.
    collects: bool,
    /// Whose turn it is, and since when.
    turn: Mutex<(usize, Instant)>,
}

impl Row {
    fn tell_end(&self, index: usize, ok: bool) {
        let (host, (_, begun)) = (&self.steps[index], *lock(&self.turn));
        host.trial.tell_end_of_step(host.stage_name(), begun, ok);
    }
}

impl Turns for Row {
    fn begins(&self, index: usize) {
        let host = &self.steps[index];
        *lock(&self.turn) = (index, Instant::now());
        host.trial.tell_step(host.stage_name(), vec![host.name().to_owned()]);
    }

    fn ended(&self, index: usize, ok: bool) {
        if !self.collects || index + 1 < self.steps.len() {
            self.tell_end(index, ok);
        }
    }
}
