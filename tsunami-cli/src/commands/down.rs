//! `tsunami down`: tear runs down, from anywhere, also after a crash.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tsunami_core::{RunDirectory, State};

use super::recorded;
use crate::error::{Error, REMAINS};
use crate::signals;
use crate::terminal::say;

pub(crate) async fn down(names: &[String], all: bool) -> Result<u8, Error> {
    let state = State::standard()?;
    let directories = match all {
        true => state.runs()?,
        false => names.iter().map(|name| state.find(name)).collect::<Result<_, _>>()?,
    };
    if directories.is_empty() {
        say("no runs");
    }
    // A first signal asks for what is being done already; a second one gives up.
    let give_up = Arc::new(|| {
        say("may remain: whatever was not reported as gone; `tsunami ls` shows it");
        REMAINS
    });
    signals::watch(CancellationToken::new(), "tearing down", say, give_up)?;
    let mut status = 0;
    for (directory, result) in
        join_all(directories.iter().map(async |directory| (directory, one(directory, &state).await))).await
    {
        match result {
            Ok(()) => say(&format!("{}: everything is gone", directory.id())),
            Err(error) => {
                say(&format!("{}: {}", directory.id(), error.render(false)));
                status = status.max(error.status());
            }
        }
    }
    Ok(status)
}

async fn one(directory: &RunDirectory, state: &State) -> Result<(), Error> {
    Ok(recorded(directory, state)?.down(directory).await?)
}
