//! `tsunami down`: tear runs down, from anywhere, also after a crash.

use std::io::ErrorKind;
use std::sync::Arc;

use futures_util::future::join_all;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tsunami_core::registry::{Backend, Registry};
use tsunami_core::results::json as to_json;
use tsunami_core::{
    Error as CoreError, ErrorChain, Event, EventKind, Leftover, Observer, RunEntry, RunId, RunStore, Tsunami,
};

use super::{Context, Execute};
use crate::backend;
use crate::error::{Error, REMAINS, Removal};
use crate::signals;
use crate::terminal::{one_line, print, say, saying};

/// Tear runs down, also after a crash
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Down {
    /// Run ids, prefixes of them, or experiments' names
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    runs: Vec<String>,
    /// All runs that are known here
    #[arg(long)]
    all: bool,
    /// Print a line of JSON for each run
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  tsunami down redis
  tsunami down 20260101-0800 redis
  tsunami down --all";

impl Execute for Down {
    fn names_abandoned_runs(&self) -> bool {
        false
    }

    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let registry = context.registry;
        let state = RunStore::standard()?;
        let mut unknown = Vec::new();
        let directories = match self.all {
            true => state.runs()?,
            false => {
                let mut known: Vec<RunEntry> = Vec::new();
                for name in &self.runs {
                    match state.find(name) {
                        // Named twice, by its id and its experiment, it is one run all the same.
                        Ok(run) if known.iter().any(|known| known.id() == run.id()) => {}
                        Ok(run) => known.push(run),
                        // The others are ended all the same.
                        Err(error) => unknown.push((name, Error::Core(error))),
                    }
                }
                known
            }
        };
        if directories.is_empty() && unknown.is_empty() {
            say("no runs");
        }
        // A first signal ends the patience with what does not go; a second one gives up altogether.
        let give_up = Arc::new(|| {
            say("may remain: whatever was not reported as gone; `tsunami ls` shows it");
            REMAINS
        });
        let hasty = CancellationToken::new();
        signals::watch(hasty.clone(), "one more attempt", say, give_up)?;
        let mut rows: Vec<_> =
            unknown.into_iter().map(|(name, error)| Row::failed(None, name, error, &Removal::Down)).collect();
        let work = directories.iter().map(async |directory| {
            let what = format!("{}: being torn down", directory.id());
            (directory, saying(&what, one(registry, directory, &state, &hasty)).await)
        });
        for (directory, result) in join_all(work).await {
            let (run, name) = (directory.id(), directory.id().to_string());
            rows.push(match result {
                // Whoever tears it down as well forgets it only once everything is gone.
                Err(error) if !is_forgotten(directory) => {
                    Row::failed(Some(run), &name, error, &Removal::DownAgain)
                }
                _ => {
                    say(&format!("{name}: everything is gone"));
                    Row {
                        schema: SCHEMA,
                        run: Some(run),
                        name,
                        outcome: "gone",
                        remains: Vec::new(),
                        error: None,
                        status: 0,
                    }
                }
            });
        }
        if self.json {
            let lines = rows.iter().map(|row| to_json(row).map(|line| line + "\n"));
            print(&lines.collect::<Result<String, _>>().map_err(CoreError::from)?)?;
        }
        Ok(rows.iter().map(|row| row.status).max().unwrap_or_default())
    }
}

/// The number of the form of the JSON.
const SCHEMA: u32 = 1;

/// What became of one run, as `--json` shows it.
#[derive(Serialize)]
struct Row {
    schema: u32,
    /// `None` where no run is called that.
    run: Option<RunId>,
    name: String,
    /// `gone`, `remains`, `failed` or `unknown`.
    outcome: &'static str,
    remains: Vec<Leftover>,
    error: Option<String>,
    #[serde(skip)]
    status: u8,
}

impl Row {
    /// Says why a run could not be ended, and enters it.
    fn failed(run: Option<RunId>, name: &str, error: Error, removal: &Removal) -> Self {
        error.show_with(&run.as_ref().map(|_| format!("{name}: ")).unwrap_or_default(), removal);
        let untouched = matches!(error, Error::Core(CoreError::Untrusted(_)));
        let status = if untouched { REMAINS } else { error.status() };
        let outcome = match (&run, status) {
            (None, _) => "unknown",
            (_, REMAINS) => "remains",
            _ => "failed",
        };
        let text = Some(error.text(removal));
        let remains = match error {
            Error::Core(CoreError::Remains { leftovers, .. }) => leftovers,
            _ => Vec::new(),
        };
        Self { schema: SCHEMA, run, name: name.to_owned(), outcome, remains, error: text, status }
    }
}

fn is_forgotten(directory: &RunEntry) -> bool {
    directory.path().symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

async fn one(
    registry: &Registry,
    directory: &RunEntry,
    state: &RunStore,
    hasty: &CancellationToken,
) -> Result<(), Error> {
    // What another user may have written is neither believed nor removed.
    directory.check()?;
    if let Err(error) = directory.record() {
        if let CoreError::Untrusted(_) = error {
            return Err(error.into());
        }
        return unrecorded(registry, directory, state, hasty, error).await;
    }
    let waiting = Arc::new(Waiting(directory.id()));
    let engine = backend::engine_or_remains(registry, directory, state).await?;
    Ok(engine.observer(waiting).cancel_on(hasty.clone()).down(directory).await?)
}

/// Tears down a run whose record cannot be read: what a provider keeps beside it tells enough.
async fn unrecorded(
    registry: &Registry,
    directory: &RunEntry,
    state: &RunStore,
    hasty: &CancellationToken,
    error: CoreError,
) -> Result<(), Error> {
    let run = directory.id();
    say(&format!("{run}: {}; going by what lies beside it", one_line(&ErrorChain(&error).to_string())));
    let (mut is_told, mut leftovers) = (false, Vec::new());
    if let Some(name) = registry.absent_names().find(|name| directory.path().join(name).exists()) {
        return Err(Error::Usage(registry.absent(name).unwrap_or_default().to_owned()));
    }
    for registered in registry.providers().filter(|provider| backend::keeps(&***provider, directory)) {
        is_told = true;
        let connected = registry.reconnect_unrecorded(registered.name(), directory, state).await;
        let connected = connected.map_err(Error::Provider);
        let Backend { provider, connector, .. } =
            connected.map_err(|error| backend::remains(registry, directory, state, error))?;
        let engine = Tsunami::new(provider, connector.clone()).observer(Arc::new(Waiting(run.clone())));
        let ended = engine.cancel_on(hasty.clone()).terminate_by_id(&run).await;
        connector.finish(&run).await;
        match ended {
            Ok(()) => {}
            Err(CoreError::Remains { leftovers: left, .. }) => leftovers.extend(left),
            Err(error) => return Err(error.into()),
        }
    }
    if !is_told {
        let what = "whatever the run created".to_owned();
        let why = format!(
            "its record can't be read, and nothing beside it tells; if you know that nothing is left, `rm -r {}` \
             forgets it",
            directory.path().display()
        );
        leftovers.push(Leftover::new(what, why));
    }
    if !leftovers.is_empty() {
        return Err(Error::Core(CoreError::Remains { run, leftovers, cause: None }));
    }
    tokio::fs::remove_dir_all(directory.path()).await.map_err(Error::file("remove", directory.path()))
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
