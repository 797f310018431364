//! The commands, one file each.

mod cp;
mod down;
mod exec;
mod extend;
mod gc;
mod logs;
mod ls;
mod plan;
mod run;
mod ssh;
mod up;

use std::sync::Arc;

use tsunami_core::experiment::{Experiment, Loader};
use tsunami_core::{Error as CoreError, RunDirectory, State, Tsunami};

use crate::args::{Args, Command, FileArgs};
use crate::compose::{self, Backend, aws};
use crate::error::Error;
use crate::signals;
use crate::terminal::say;

/// Carries out a command and returns the exit status.
pub(crate) async fn run(args: Args) -> Result<u8, Error> {
    signals::outlive_full_files();
    let (colour, verbosity) = (args.colour(), args.verbosity());
    if !matches!(args.command, Command::Ls { .. } | Command::Down { .. } | Command::Gc { .. }) {
        name_abandoned_runs();
    }
    match args.command {
        Command::Run(args) => run::run(args, colour, verbosity).await,
        Command::Plan(args) => plan::plan(&args).await,
        Command::Up(args) => up::up(args, colour, verbosity).await,
        Command::Ls { json, cloud } => ls::ls(json, &cloud).await,
        Command::Extend { run, duration } => extend::extend(&run, duration).await,
        Command::Gc { cloud, mine, dry_run, json } => gc::gc(&cloud, mine, dry_run, json).await,
        Command::Exec { run, group, machine, command } => exec::exec(&run, &group, &machine, command).await,
        Command::Ssh { run, machine, command } => ssh::ssh(&run, machine.as_deref(), &command),
        Command::Cp { run, paths } => cp::cp(&run, &paths).await,
        Command::Logs { run, machine, follow } => logs::logs(&run, machine.as_deref(), follow).await,
        Command::Down { runs, all } => down::down(&runs, all).await,
    }
}

/// Names runs whose controller died: killed with signal 9, or with its computer; and those that another user may have
/// written, or a later version has. What else can't be read is told by `tsunami ls`.
fn name_abandoned_runs() {
    let runs = State::standard().and_then(|state| state.runs()).unwrap_or_default();
    for run in &runs {
        match run.check() {
            Err(CoreError::Untrusted(untrusted)) => {
                say(&format!("run {} is left alone: refused: {untrusted}", run.id()));
            }
            Err(CoreError::NewerRecord { run, source }) => say(&format!("run {run} is left alone: {source}")),
            _ => {}
        }
    }
    let abandoned = |run: &RunDirectory| {
        run.is_controlled().is_ok_and(|controlled| !controlled)
            && run.record().is_ok_and(|record| !record.kept)
    };
    for run in runs.iter().filter(|run| abandoned(run)) {
        let id = run.id();
        say(&format!(
            "run {id} was abandoned by its controller; `tsunami down {id}` removes what is left of it"
        ));
    }
}

/// Reads and checks an experiment file.
fn load(args: &FileArgs) -> Result<Arc<Experiment>, Error> {
    let loader = args.set.iter().fold(Loader::new(), |loader, (name, value)| loader.set(name, value));
    let mut experiment = loader.load(&args.file)?;
    aws::check_groups(&experiment)?;
    compose::specify(&mut experiment)?;
    Ok(Arc::new(experiment))
}

/// The engine for a recorded run.
async fn recorded(directory: &RunDirectory, state: &State) -> Result<Tsunami, Error> {
    let backend = Backend::recorded(&directory.record()?, state).await?;
    Ok(Tsunami::new(backend.provider, backend.connector).state(state.clone()))
}

/// The engine for a recorded run that is looked for or ended. Where its provider can't even be asked, all that is
/// known of the run may remain.
async fn recorded_or_remains(directory: &RunDirectory, state: &State) -> Result<Tsunami, Error> {
    recorded(directory, state).await.map_err(|error| aws::remains(directory, state, error))
}
