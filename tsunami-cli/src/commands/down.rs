//! `tsunami down`: tear runs down, from anywhere, also after a crash.

use std::io::ErrorKind;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tsunami_core::{
    Error as CoreError, ErrorChain, Event, EventKind, Leftover, Observer, RunDirectory, RunId, State,
};

use tsunami_ssh::SshOptions;

use super::recorded_or_remains;
use crate::compose::{Backend, aws};
use crate::error::{Error, REMAINS, Remedy};
use crate::signals;
use crate::terminal::{one_line, say};

pub(crate) async fn down(names: &[String], all: bool) -> Result<u8, Error> {
    let state = State::standard()?;
    let directories = match all {
        true => state.runs()?,
        false => names.iter().map(|name| state.find(name)).collect::<Result<_, _>>()?,
    };
    if directories.is_empty() {
        say("no runs");
    }
    // A first signal ends the patience with what does not go; a second one gives up altogether.
    let give_up = Arc::new(|| {
        say("may remain: whatever was not reported as gone; `tsunami ls` shows it");
        REMAINS
    });
    let hasty = CancellationToken::new();
    signals::watch(hasty.clone(), "one more attempt", say, give_up)?;
    let mut status = 0;
    for (directory, result) in
        join_all(directories.iter().map(async |directory| (directory, one(directory, &state, &hasty).await)))
            .await
    {
        match result {
            // Whoever tears it down as well forgets it only once everything is gone.
            Err(_) if is_forgotten(directory) => say(&format!("{}: everything is gone", directory.id())),
            Ok(()) => say(&format!("{}: everything is gone", directory.id())),
            Err(error) => {
                error.show_with(&format!("{}: ", directory.id()), &Remedy::DownAgain);
                let untouched = matches!(error, Error::Core(CoreError::Untrusted(_)));
                status = status.max(if untouched { REMAINS } else { error.status() });
            }
        }
    }
    Ok(status)
}

fn is_forgotten(directory: &RunDirectory) -> bool {
    directory.path().symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

async fn one(directory: &RunDirectory, state: &State, hasty: &CancellationToken) -> Result<(), Error> {
    // What another user may have written is neither believed nor removed.
    directory.check()?;
    if let Err(error) = directory.record() {
        if let CoreError::Untrusted(_) = error {
            return Err(error.into());
        }
        return unrecorded(directory, state, error).await;
    }
    let waiting = Arc::new(Waiting(directory.id()));
    let engine = recorded_or_remains(directory, state).await?;
    Ok(engine.observer(waiting).cancel_on(hasty.clone()).down(directory).await?)
}

/// Tears down a run whose record cannot be read: what a provider keeps beside it tells enough.
async fn unrecorded(directory: &RunDirectory, state: &State, error: CoreError) -> Result<(), Error> {
    let run = directory.id();
    say(&format!("{run}: {}; going by what lies beside it", one_line(&ErrorChain(&error).to_string())));
    let is_told = ["local", "hosts", "aws"].iter().any(|name| directory.path().join(name).exists());
    let mut leftovers = Vec::new();
    // Providers that keep something there keep it under their own names.
    for name in ["local", "hosts"] {
        if directory.path().join(name).exists() {
            let make = if name == "local" { Backend::local } else { Backend::hosts };
            let Backend { provider, connector } = make(state, SshOptions::default());
            leftovers.extend(provider.terminate(&run).await.map_err(CoreError::other)?);
            connector.finish(&run).await;
        }
    }
    if directory.path().join("aws").exists() {
        let tsunami = aws::unrecorded(directory, state).await;
        let tsunami = tsunami.map_err(|error| aws::remains(directory, state, error))?;
        tsunami.collect(&run).await?;
    }
    if !is_told {
        let what = "whatever the run created".to_owned();
        let why = format!(
            "its record can't be read, and nothing beside it tells; if you know that nothing is left, `rm -r {}` \
             forgets it",
            directory.path().display()
        );
        leftovers.push(Leftover { what, why });
    }
    if !leftovers.is_empty() {
        return Err(Error::Core(CoreError::Remains { run, leftovers, cause: None }));
    }
    std::fs::remove_dir_all(directory.path()).map_err(Error::file("remove", directory.path()))
}

/// Says what is being waited for.
#[derive(Debug)]
struct Waiting(RunId);

impl Observer for Waiting {
    fn event(&self, event: &Event) {
        if let EventKind::StillThere { leftovers } = &event.kind {
            for leftover in leftovers {
                say(&format!("{}: still there: {leftover}", self.0));
            }
        }
    }
}
