//! `tsunami run`: the whole thing.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tsunami_core::experiment::{ExperimentRun, RunOptions};
use tsunami_core::registry::{Backend, Registry};
use tsunami_core::results::{Json, markdown};
use tsunami_core::{
    Error as CoreError, Event, EventKind, Keep, Observer, Outcome, OutputRefused, RunEntry, RunId, RunStore,
    Tsunami,
};

use super::{Context, Execute, load, load_again};
use crate::args::{FileArgs, assignment};
use crate::backend;
use crate::error::{Error, REMAINS};
use crate::reporter::{self, Reporter, Verbosity};
use crate::signals;
use crate::tails::Tails;
use crate::terminal::{Events, print, say};

/// How long a process that gives up lets a slow disk take for what was told before.
const LAST_WRITES_TIMEOUT: Duration = Duration::from_secs(2);

/// Run an experiment: launch, set up, run the steps, bring the results home, tear down
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    #[command(flatten)]
    stage: StageArgs,
    /// Leave the machines up, until their lifetime is over
    #[arg(long)]
    keep: bool,
    /// Leave the machines up if the experiment fails
    #[arg(long, conflicts_with = "keep")]
    keep_on_failure: bool,
    /// Use the machines of a run that is up, without setting them up again
    #[arg(long, value_name = "RUN", conflicts_with_all = ["keep", "keep_on_failure"])]
    on: Option<String>,
    /// Do the trials that are left of a run: FILE is the directory of its results
    #[arg(long, conflicts_with_all = ["on", "set", "output"])]
    resume: bool,
    /// Do only the trials in which a parameter has this value (may be repeated)
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    only: Vec<(String, String)>,
}

/// Which trials are done.
#[derive(Default)]
pub(super) struct Part {
    /// Whether those that are left of an earlier run.
    resume: bool,
    /// What parameters are in them.
    only: Vec<(String, String)>,
}

/// What a run of an experiment file is made from.
#[derive(Debug, clap::Args)]
pub(super) struct StageArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Where logs go: a new or empty directory [default: results/NAME/RUN-ID]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print every event as a line of JSON
    #[arg(long)]
    json: bool,
}

impl Execute for Run {
    /// Those that are resumed are told of by what resumes them.
    fn names_abandoned_runs(&self) -> bool {
        !self.resume
    }

    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let state = RunStore::standard()?;
        let on = self.on.as_deref().map(|name| state.find(name)).transpose()?;
        let keep = match (&on, self.keep, self.keep_on_failure) {
            (None, true, _) => Keep::Always,
            (None, false, true) => Keep::OnFailure,
            _ => Keep::Never,
        };
        let part = Part { resume: self.resume, only: self.only };
        let stage = Stage::prepare(&self.stage, context, on.as_ref(), keep, state, part).await?;
        stage.end_abandoned(context.registry).await?;
        let outcome = match on {
            Some(directory) => {
                let ended = stage.run.run_on(&directory).await;
                stage.elsewhere.look();
                ended
            }
            None => stage.run.run().await,
        };
        stage.finish(outcome).await
    }
}

/// Everything that a run of an experiment file needs, ready before anything is launched.
pub(super) struct Stage {
    pub(super) run: ExperimentRun,
    /// Whether events go to standard output.
    pub(super) json: bool,
    tails: Arc<Tails>,
    reporter: Arc<dyn Reporter>,
    elsewhere: Arc<Elsewhere>,
    quiet: bool,
    /// Whether the machines are another run's, and stay.
    is_attached: bool,
}

impl Stage {
    /// Checks the file, makes the results directory and the observers, and listens for signals. `on` is the
    /// run whose machines are used in place of new ones.
    pub(super) async fn prepare(
        args: &StageArgs,
        context: &Context<'_>,
        on: Option<&RunEntry>,
        keep: Keep,
        state: RunStore,
        Part { resume, only }: Part,
    ) -> Result<Self, Error> {
        let StageArgs { file, output, json } = args;
        let Context { registry, colour, verbosity } = *context;
        let (experiment, is_repeated) = match resume {
            true => (load_again(&file.file, registry)?, false),
            false => load(file, registry)?,
        };
        let connections = Arc::new(registry.connections(&state, file.accept_new_hosts));
        let Backend { provider, connector, .. } = match on {
            Some(directory) => backend::recorded(registry, directory, &state).await?,
            None => connections.of(&experiment).await.map_err(Error::Provider)?,
        };
        let tsunami = Tsunami::new(provider, connector).state(state.clone()).keep(keep);
        let id = tsunami.next_run_id();
        let elsewhere = Arc::new(Elsewhere {
            state: state.clone(),
            machines_of: Mutex::new(on.map_or_else(|| id.clone(), RunEntry::id)),
            torn_down: AtomicBool::new(false),
        });
        let (cancel, progress) = (CancellationToken::new(), Arc::new(Progress::default()));
        let tsunami =
            tsunami.observer(progress.clone()).observer(elsewhere.clone()).cancel_on(cancel.clone());
        let tails = Arc::new(Tails::default());
        let reporter = reporter::choose(verbosity, colour);
        let mut options = RunOptions::default().id(id).observer(tails.clone()).observer(reporter.clone());
        if *json {
            options = options.observer(Arc::new(Json::new(Box::new(Events))));
        }
        if let Some(output) = output {
            options = options.results(output);
        }
        for (name, value) in only {
            options = options.only(name, value);
        }
        options = options.connect(move |experiment| {
            let connections = connections.clone();
            async move { connections.of(&experiment).await.map_err(CoreError::other) }
        });
        let crowded = crate::too_few_open_files(experiment.machines().count());
        let notes = experiment.notes();
        let run = match (resume, is_repeated) {
            (true, _) => ExperimentRun::resume(experiment, tsunami, options, &file.file).await?,
            (_, true) => ExperimentRun::repeat(experiment, tsunami, options, &file.file).await?,
            _ => ExperimentRun::prepare(experiment, tsunami, options).await?,
        };
        if let Some(repeated) = run.repeats().filter(|_| verbosity != Verbosity::Quiet) {
            say(&format!("run {repeated} is repeated"));
        }
        run.secrets().warnings().chain(notes).chain(crowded).for_each(|warning| say(&warning));
        if run.prepares() && verbosity != Verbosity::Quiet {
            say("preparing on this computer first");
        }
        let telling = reporter.clone();
        let tell = move |line: &str| telling.say(line);
        let (shown, whose, attached) = (reporter.clone(), elsewhere.clone(), on.is_some());
        let results = run.results().clone();
        let give_up = Arc::new(move || {
            shown.finish();
            results.settle(LAST_WRITES_TIMEOUT);
            progress.give_up(&whose.machines_of(), attached)
        });
        let doing = if on.is_some() { "stopping" } else { "stopping and tearing down" };
        signals::watch(cancel, doing, tell, give_up)?;
        let quiet = verbosity == Verbosity::Quiet;
        Ok(Self { run, tails, reporter, elsewhere, quiet, is_attached: on.is_some(), json: *json })
    }

    /// Tears down what a process that was killed has left of the run that is resumed.
    async fn end_abandoned(&self, registry: &Registry) -> Result<(), Error> {
        for run in self.run.abandoned() {
            say(&format!("run {} was abandoned by its controller; what is left of it is removed", run.id()));
            let engine = backend::engine_or_remains(registry, &run, &self.elsewhere.state).await?;
            engine.down(&run).await?;
        }
        Ok(())
    }

    /// Writes down what came of it, and says where.
    pub(super) async fn finish(self, outcome: Result<(), CoreError>) -> Result<u8, Error> {
        self.reporter.finish();
        let logs = self.run.results().logs();
        let (tails, secrets) = (self.tails.clone(), self.run.secrets().clone());
        let rest = self.run.is_resumable().then(|| self.run.results().directory().to_owned());
        let error = outcome.err().map(|error| match error {
            error @ (CoreError::Cancelled | CoreError::Remains { .. }) => {
                Error::Run { error, logs, rest, tails, secrets, is_attached: self.is_attached }
            }
            _ if self.elsewhere.has_torn_down() => Error::TornDown(self.elsewhere.machines_of()),
            error => Error::Run { error, logs, rest, tails, secrets, is_attached: self.is_attached },
        });
        // A command whose output can't be written down fails for nothing that its machine has done.
        let local = self.run.unwritten().await;
        let only_follows = |error: &Error| local.is_some() && OutputRefused::is_source_of(error);
        let error = error.filter(|error| error.status() == REMAINS || !only_follows(error));
        let local = local.map(Error::file("write to", self.run.results().directory()));
        let outcome = error.as_ref().or(local.as_ref()).map_or(Outcome::Success, Error::outcome);
        let (written, table) = match self.run.finish(outcome).await {
            Ok(report) if !self.quiet && !self.json => (None, print(&markdown(&report.analysis())).err()),
            Ok(_) => (None, None),
            Err(error) => (Some(Error::from(error)), None),
        };
        if !self.quiet {
            say(&format!("results: {}", self.run.results().directory().display()));
        }
        let events = if self.json { Events::finish().err() } else { None };
        // The gravest comes last, where it is seen.
        let failures = [events, table, written, local, error];
        let mut failures = failures.into_iter().flatten().collect::<Vec<_>>();
        let last = failures.pop();
        failures.iter().for_each(Error::show);
        last.map_or(Ok(0), Err)
    }
}

/// Whether another process tore the run down: what fails then says nothing of the experiment.
#[derive(Debug)]
struct Elsewhere {
    state: RunStore,
    /// The run that has the machines: another one for each set of them.
    machines_of: Mutex<RunId>,
    torn_down: AtomicBool,
}

impl Elsewhere {
    /// Looked at before a teardown of our own, which would look the same.
    fn look(&self) {
        let ending = match self.state.find(self.machines_of().as_str()) {
            Ok(directory) => directory.is_ending(),
            Err(error) => matches!(error, CoreError::UnknownRun { .. }),
        };
        self.torn_down.store(ending, Ordering::Relaxed);
    }

    fn machines_of(&self) -> RunId {
        self.machines_of.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_torn_down(&self) -> bool {
        self.torn_down.load(Ordering::Relaxed)
    }
}

impl Observer for Elsewhere {
    fn event(&self, event: &Event) {
        match &event.kind {
            EventKind::RunStarted { run, .. } => {
                run.clone_into(&mut self.machines_of.lock().unwrap_or_else(PoisonError::into_inner));
            }
            EventKind::TearingDown { .. } => self.look(),
            _ => {}
        }
    }
}

/// What is known to exist, for the moment when the user stops waiting.
#[derive(Debug, Default)]
struct Progress(Mutex<(Vec<String>, bool)>);

impl Progress {
    /// Says what may remain and how to remove it; returns the exit status for that. Machines that were `attached`
    /// to stay anyway.
    fn give_up(&self, run: &RunId, attached: bool) -> u8 {
        let (machines, clear) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *clear {
            return crate::error::INTERRUPTED;
        }
        if attached {
            say(&format!("may remain: what the steps began on the machines of {run}, which stay up"));
        } else if machines.is_empty() {
            say("may remain: machines whose launch was not answered");
        }
        for machine in machines {
            say(&format!("may remain: {machine}"));
        }
        say(&format!("`tsunami down {run}` removes {}", if attached { "both" } else { "what is left" }));
        REMAINS
    }
}

impl Observer for Progress {
    fn event(&self, event: &Event) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &event.kind {
            EventKind::RunStarted { .. } => *state = Default::default(),
            EventKind::Launched { machines, .. } => {
                state.0.extend(machines.iter().map(|id| format!("machine {id}")));
            }
            EventKind::TornDown { leftovers, .. } => {
                state.0 = leftovers.iter().map(ToString::to_string).collect();
                state.1 = leftovers.is_empty();
            }
            _ => {}
        }
    }
}
