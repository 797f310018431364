//! The commands, one file each.

mod compare;
mod completions;
mod cp;
mod doctor;
mod down;
mod exec;
mod extend;
mod forward;
mod gc;
mod init;
mod inventory;
mod logs;
mod ls;
mod machines;
mod man;
mod plan;
mod report;
mod run;
mod schema;
mod ssh;
mod up;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tsunami_core::experiment::{Experiment, Loader};
use tsunami_core::registry::Registry;
use tsunami_core::results::{check_inputs, is_results, repeated};
use tsunami_core::{Error as CoreError, RunId, RunStore};

use crate::args::{Args, FileArgs};
use crate::error::Error;
use crate::reporter::Verbosity;
use crate::signals;
use crate::terminal::say;
use machines::{Facts, Known, names};

/// The commands; `args.rs` has the order in which help lists them. Each one's file has its arguments and what it does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Run(run::Run),
    Plan(plan::Plan),
    Doctor(doctor::Doctor),
    Up(up::Up),
    Ls(ls::Ls),
    Exec(exec::Exec),
    Ssh(ssh::Ssh),
    Forward(forward::Forward),
    Inventory(inventory::Inventory),
    Cp(cp::Cp),
    Logs(logs::Logs),
    Report(report::Report),
    Compare(compare::Compare),
    Extend(extend::Extend),
    Gc(gc::Gc),
    Schema(schema::Schema),
    Down(down::Down),
    Init(init::Init),
    Completions(completions::Completions),
    Man(man::Man),
}

/// The arguments of one command, and what it does.
trait Execute {
    /// Whether runs that were abandoned are named before it begins. Commands that show or remove them have no need.
    fn names_abandoned_runs(&self) -> bool {
        true
    }

    /// Does it, and returns the exit status.
    async fn execute(self, context: &Context<'_>) -> Result<u8, Error>;
}

/// What a command may use beside its arguments.
struct Context<'a> {
    registry: &'a Registry,
    colour: bool,
    colour_of_stdout: bool,
    verbosity: Verbosity,
}

/// Carries out a command and returns the exit status.
pub(crate) async fn run(args: Args, registry: &Registry) -> Result<u8, Error> {
    signals::outlive_full_files();
    let (colour, colour_of_stdout) = (args.colour(), args.colour_of(&std::io::stdout()));
    let context = &Context { registry, colour, colour_of_stdout, verbosity: args.verbosity() };
    match args.command {
        Command::Run(command) => begin(command, context).await,
        Command::Plan(command) => begin(command, context).await,
        Command::Doctor(command) => begin(command, context).await,
        Command::Up(command) => begin(command, context).await,
        Command::Ls(command) => begin(command, context).await,
        Command::Exec(command) => begin(command, context).await,
        Command::Ssh(command) => begin(command, context).await,
        Command::Forward(command) => begin(command, context).await,
        Command::Inventory(command) => begin(command, context).await,
        Command::Cp(command) => begin(command, context).await,
        Command::Logs(command) => begin(command, context).await,
        Command::Report(command) => begin(command, context).await,
        Command::Compare(command) => begin(command, context).await,
        Command::Extend(command) => begin(command, context).await,
        Command::Gc(command) => begin(command, context).await,
        Command::Schema(command) => begin(command, context).await,
        Command::Down(command) => begin(command, context).await,
        Command::Init(command) => begin(command, context).await,
        Command::Completions(command) => begin(command, context).await,
        Command::Man(command) => begin(command, context).await,
    }
}

async fn begin(command: impl Execute, context: &Context<'_>) -> Result<u8, Error> {
    if command.names_abandoned_runs() {
        name_abandoned_runs();
    }
    command.execute(context).await
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

/// Reads and checks an experiment file, or what a run was made from whose results are in a directory: says whether it is that.
fn load(args: &FileArgs, registry: &Registry) -> Result<(Arc<Experiment>, bool), Error> {
    if args.file.is_dir() {
        if !args.set.is_empty() {
            let why = "is repeated with the values that its run had: `--set` goes with an experiment file";
            return Err(Error::Usage(format!("{} {why}", args.file.display())));
        }
        // Whether this version can read it is told before all else.
        if is_results(&args.file)? {
            repeated(&args.file)?;
        }
        return Ok((load_again(&args.file, registry)?, true));
    }
    let loader = Loader::new().registry(registry).values_called("--set");
    let loader = args.set.iter().fold(loader, |loader, (name, value)| loader.set(name, value));
    Ok((Arc::new(loader.load(&args.file)?), false))
}

/// Reads and checks what a run was made from, by the directory of its results.
fn load_again(results: &Path, registry: &Registry) -> Result<Arc<Experiment>, Error> {
    let loader = Loader::new().registry(registry).values_called("--set");
    Ok(Arc::new(loader.load_again(results)?))
}

/// The results directories that a command names, each once, whatever links lead to it. A pattern such as `results/redis/*`
/// names the index of these runs, too, which is passed over.
fn results_directories(mut named: Vec<PathBuf>) -> Result<Vec<PathBuf>, Error> {
    let mut known = Vec::new();
    named.retain(|directory| {
        let is_index = directory.ends_with("index.csv") && directory.is_file();
        let real = directory.canonicalize().unwrap_or_else(|_| directory.clone());
        let is_new = !is_index && !known.contains(&real);
        known.push(real);
        is_new
    });
    match named.is_empty() {
        true => Err(Error::Usage("no results directory is named".to_owned())),
        false => Ok(named),
    }
}

/// Compares what a repeated run would be given with what it was given, unless that is prepared first.
fn check_repeated(experiment: &Experiment, results: &Path) -> Result<(), Error> {
    if experiment.prepare.is_empty() {
        check_inputs(experiment, results)?;
    }
    Ok(())
}

/// The run that is repeated, in words, and which of its trials.
fn words_of_repeated(run: &RunId, part: &[(String, String)]) -> String {
    let part: Vec<_> = part.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    match part.is_empty() {
        true => format!("run {run} is repeated"),
        false => format!("run {run} is repeated: only trials with {}, as it did", part.join(", ")),
    }
}
