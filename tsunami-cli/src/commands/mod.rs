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
mod schema;
mod ssh;
mod up;

use std::sync::Arc;

use tsunami_core::experiment::{Experiment, Loader};
use tsunami_core::registry::Registry;
use tsunami_core::{Error as CoreError, RunStore};

use crate::args::{Args, Command, FileArgs};
use crate::error::Error;
use crate::signals;
use crate::terminal::say;

/// Carries out a command and returns the exit status.
pub(crate) async fn run(args: Args, registry: &Registry) -> Result<u8, Error> {
    signals::outlive_full_files();
    let (colour, verbosity) = (args.colour(), args.verbosity());
    if !matches!(args.command, Command::Ls { .. } | Command::Down { .. } | Command::Gc { .. }) {
        name_abandoned_runs();
    }
    match args.command {
        Command::Run(args) => run::run(args, registry, colour, verbosity).await,
        Command::Plan(args) => plan::plan(&args, registry).await,
        Command::Up(args) => up::up(args, registry, colour, verbosity).await,
        Command::Ls { json, cloud } => ls::ls(registry, json, &cloud).await,
        Command::Extend { run, duration } => extend::extend(registry, &run, duration).await,
        Command::Gc { cloud, mine, dry_run, json } => gc::gc(registry, &cloud, mine, dry_run, json).await,
        Command::Exec { run, group, machine, command } => {
            exec::exec(registry, &run, &group, &machine, command).await
        }
        Command::Ssh { run, machine, command } => ssh::ssh(&run, machine.as_deref(), &command),
        Command::Cp { run, paths } => cp::cp(registry, &run, &paths).await,
        Command::Logs { run, machine, follow } => logs::logs(&run, machine.as_deref(), follow).await,
        Command::Schema { reference } => schema::schema(registry, reference),
        Command::Down { runs, all } => down::down(registry, &runs, all).await,
    }
}

/// Names runs whose controller died: killed with signal 9, or with its computer; and those that another user may have
/// written, or a later version has. What else can't be read is told by `tsunami ls`.
fn name_abandoned_runs() {
    let runs = RunStore::standard().and_then(|state| state.runs()).unwrap_or_default();
    for run in &runs {
        match run.check() {
            Err(CoreError::Untrusted(untrusted)) => {
                say(&format!("run {} is left alone: refused: {untrusted}", run.id()));
            }
            Err(CoreError::NewerRecord { run, source }) => say(&format!("run {run} is left alone: {source}")),
            _ => {}
        }
    }
    for run in runs.iter().filter(|run| run.is_abandoned()) {
        let id = run.id();
        say(&format!(
            "run {id} was abandoned by its controller; `tsunami down {id}` removes what is left of it"
        ));
    }
}

/// Reads and checks an experiment file.
fn load(args: &FileArgs, registry: &Registry) -> Result<Arc<Experiment>, Error> {
    let loader = Loader::new().registry(registry).values_called("--set");
    let loader = args.set.iter().fold(loader, |loader, (name, value)| loader.set(name, value));
    Ok(Arc::new(loader.load(&args.file)?))
}
