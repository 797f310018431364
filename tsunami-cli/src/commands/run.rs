//! `tsunami run`: the whole thing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use tokio_util::sync::CancellationToken;
use tsunami_core::{
    Cluster, Error as CoreError, ErrorChain, Event, EventKind, Failures, Keep, Observer, Outcome,
    RunDirectory, RunId, State, Tsunami,
};

use super::load;
use crate::args::{RunArgs, UpArgs};
use crate::compose::{self, Backend};
use crate::error::{Error, REMAINS};
use crate::reporter::{Live, Plain, Tails, Verbosity};
use crate::signals;
use crate::steps::{FIRST_TRIAL, Signs, Trial, check_machines};
use crate::terminal::{self, Events, is_interactive, say};
use tsunami_core::experiment::{Experiment, Group, OnInterruption};
use tsunami_core::results::Json;
use tsunami_core::results::Results;
use tsunami_core::results::{Redacted, Secrets};

pub(crate) async fn run(args: RunArgs, colour: bool, verbosity: Verbosity) -> Result<u8, Error> {
    let state = State::standard()?;
    let on = args.on.as_deref().map(|name| state.find(name)).transpose()?;
    let stage = Stage::set(&args.up, on.as_ref(), state, colour, verbosity).await?;
    let outcome = match (on, args.keep, args.keep_on_failure) {
        (Some(directory), ..) => stage.on(&directory).await,
        (None, true, _) => stage.run(Keep::Always).await,
        (None, false, true) => stage.run(Keep::OnFailure).await,
        (None, false, false) => stage.run(Keep::Never).await,
    };
    stage.finish(outcome)
}

/// Everything that a run of an experiment file needs, ready before anything is launched.
pub(super) struct Stage {
    pub(super) experiment: Arc<Experiment>,
    pub(super) tsunami: Tsunami,
    pub(super) run: RunId,
    /// Whether events go to standard output.
    pub(super) json: bool,
    results: Arc<Results>,
    signs: Arc<Signs>,
    tails: Arc<Tails>,
    secrets: Secrets,
    live: Option<Arc<Live>>,
    elsewhere: Arc<Elsewhere>,
    quiet: bool,
}

impl Stage {
    /// Checks the file, makes the results directory and the observers, and listens for signals. `on` is the
    /// run whose machines are used in place of new ones.
    pub(super) async fn set(
        args: &UpArgs,
        on: Option<&RunDirectory>,
        state: State,
        colour: bool,
        verbosity: Verbosity,
    ) -> Result<Self, Error> {
        let UpArgs { file, output, json } = args;
        let experiment = load(file)?;
        let Backend { provider, connector } = match on {
            Some(directory) => Backend::recorded(&directory.record()?, &state).await?,
            None => Backend::of(&experiment, file.accept_new_hosts, &state).await?,
        };
        let mut tsunami = Tsunami::new(provider, connector).state(state.clone());
        let run = tsunami.next_run_id();
        let elsewhere = Arc::new(Elsewhere {
            state,
            machines_of: on.map_or_else(|| run.clone(), RunDirectory::id),
            torn_down: AtomicBool::new(false),
        });
        let results = Arc::new(Results::create(&experiment, &run, output.as_deref())?);
        let (signs, cancel, progress) =
            (Arc::new(Signs::default()), CancellationToken::new(), Arc::new(Progress::default()));
        let tails = Arc::new(Tails::default());
        let mut observers = results.observers();
        observers.push(tails.clone());
        let live = (is_interactive() && verbosity != Verbosity::Quiet)
            .then(|| Arc::new(Live::new(colour, verbosity)));
        match &live {
            Some(live) => observers.push(live.clone()),
            None => observers.push(Arc::new(Plain::new(Box::new(terminal::Progress), verbosity, colour))),
        }
        if *json {
            observers.push(Arc::new(Json::new(Box::new(Events))));
        }
        let secrets = Secrets::of(&experiment);
        let crowded = crate::too_few_open_files(experiment.machines().count());
        secrets.warnings().chain(crowded).for_each(|warning| say(&warning));
        tsunami = tsunami
            .observer(Arc::new(Redacted::new(secrets.clone(), observers)))
            .observer(signs.clone())
            .observer(progress.clone())
            .observer(elsewhere.clone())
            .results(results.directory())
            .cancel_on(cancel.clone());
        let bars = live.clone();
        let tell = move |line: &str| match &bars {
            Some(live) => live.say(line),
            None => say(line),
        };
        let (bars, run_id, attached) = (live.clone(), elsewhere.machines_of.clone(), on.is_some());
        let give_up = Arc::new(move || {
            if let Some(live) = &bars {
                live.finish();
            }
            progress.give_up(&run_id, attached)
        });
        let doing = if on.is_some() { "stopping" } else { "stopping and tearing down" };
        signals::watch(cancel, doing, tell, give_up)?;
        let quiet = verbosity == Verbosity::Quiet;
        Ok(Self {
            experiment,
            tsunami,
            run,
            results,
            signs,
            tails,
            secrets,
            live,
            elsewhere,
            quiet,
            json: *json,
        })
    }

    /// Launches, runs the steps, and tears down or keeps.
    async fn run(&self, keep: Keep) -> Result<(), CoreError> {
        let plan = compose::plan(&self.experiment).map_err(CoreError::other)?;
        self.tsunami.clone().keep(keep).run_as(self.run.clone(), plan, self.steps()).await
    }

    /// Runs the steps on machines that are up already.
    async fn on(&self, directory: &RunDirectory) -> Result<(), CoreError> {
        let running = self.tsunami.attach(directory, |_| true).await?;
        let (cluster, record) = (running.cluster(), directory.record()?);
        cluster.emit(EventKind::RunStarted {
            run: record.run,
            experiment: self.experiment.name.clone(),
            deadline: record.deadline.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            groups: record.groups,
        });
        let usable = check_machines(&self.experiment, cluster.hosts());
        let steps = self.steps();
        let ended = running
            .run(async |cluster| usable.map(|()| steps(cluster)).map_err(CoreError::other)?.await)
            .await;
        self.elsewhere.look();
        ended
    }

    /// The experiment's steps, as a closure for the engine.
    fn steps(&self) -> impl FnOnce(Cluster) -> SendFuture + Send + 'static {
        let (experiment, results, signs) =
            (self.experiment.clone(), self.results.clone(), self.signs.clone());
        move |cluster| {
            Box::pin(async move {
                let mut cluster = cluster;
                loop {
                    let ended = Trial::new(&cluster, &experiment, &results, &signs).run().await;
                    cluster = match ended {
                        Err(error) if may_be_replaced(&error, &experiment) => {
                            again(&cluster, &results, error).await?
                        }
                        ended => return ended,
                    };
                }
            })
        }
    }

    /// Writes down what came of it, and says where.
    pub(super) fn finish(self, outcome: Result<(), CoreError>) -> Result<u8, Error> {
        if let Some(live) = &self.live {
            live.finish();
        }
        let logs = self.results.logs();
        let (tails, secrets) = (self.tails.clone(), self.secrets.clone());
        let error = outcome.err().map(|error| match error {
            error @ (CoreError::Cancelled | CoreError::Remains { .. }) => {
                Error::Run { error, logs, tails, secrets }
            }
            _ if self.elsewhere.has_torn_down() => Error::TornDown(self.elsewhere.machines_of.clone()),
            error => Error::Run { error, logs, tails, secrets },
        });
        // A command whose output can't be written down fails for nothing that its machine has done.
        let local = self.results.error();
        let only_follows = |error: &Error| local.as_ref().is_some_and(|local| follows(error, local));
        let error = error.filter(|error| error.status() == REMAINS || !only_follows(error));
        let local = local.map(Error::file("write to", self.results.directory()));
        let outcome = error.as_ref().or(local.as_ref()).map_or(Outcome::Success, Error::outcome);
        let written = self.results.finish(&self.experiment, outcome).err().map(Error::from);
        if !self.quiet {
            say(&format!("results: {}", self.results.directory().display()));
        }
        let events = if self.json { Events::finish().err() } else { None };
        // The gravest comes last, where it is seen.
        let failures = [events, written, local, error];
        let mut failures = failures.into_iter().flatten().collect::<Vec<_>>();
        let last = failures.pop();
        failures.iter().for_each(Error::show);
        last.map_or(Ok(0), Err)
    }
}

/// Whether an error of a run stems from one on this computer.
fn follows(error: &Error, local: &std::io::Error) -> bool {
    ErrorChain(error).to_string().contains(&local.to_string())
}

/// Whether another process tore the run down: what fails then says nothing of the experiment.
#[derive(Debug)]
struct Elsewhere {
    state: State,
    machines_of: RunId,
    torn_down: AtomicBool,
}

impl Elsewhere {
    /// Looked at before a teardown of our own, which would look the same.
    fn look(&self) {
        let ending = match self.state.find(self.machines_of.as_str()) {
            Ok(directory) => directory.is_ending(),
            Err(error) => matches!(error, CoreError::UnknownRun { .. }),
        };
        self.torn_down.store(ending, Ordering::Relaxed);
    }

    fn has_torn_down(&self) -> bool {
        self.torn_down.load(Ordering::Relaxed)
    }
}

impl Observer for Elsewhere {
    fn event(&self, event: &Event) {
        if let EventKind::TearingDown { .. } = event.kind {
            self.look();
        }
    }
}

/// Whether the experiment goes on after such an error, on a replacement of the machine.
fn may_be_replaced(error: &CoreError, experiment: &Experiment) -> bool {
    let replaces =
        |group: &Group| group.aws.as_ref().is_some_and(|aws| aws.on_interruption == OnInterruption::Replace);
    let lost = |error: &CoreError| matches!(error, CoreError::Interrupted { .. } | CoreError::Lost { .. });
    let any_lost = match error {
        CoreError::Several(Failures { first, others }) => lost(first) || others.iter().any(lost),
        error => lost(error),
    };
    any_lost && experiment.groups.iter().any(replaces)
}

/// Replaces the machines that were interrupted, for another go at the trial; fails with `error` if there are
/// none.
async fn again(cluster: &Cluster, results: &Results, error: CoreError) -> Result<Cluster, CoreError> {
    let repaired = cluster.repair().await?;
    let pairs = cluster.hosts().iter().zip(repaired.hosts());
    let replaced = pairs.filter(|(old, new)| old.machine().id != new.machine().id);
    let machines: Vec<String> = replaced.map(|(old, _)| old.name().to_owned()).collect();
    if machines.is_empty() {
        return Err(error);
    }
    let trial = FIRST_TRIAL.to_owned();
    results.set_aside(&trial)?;
    cluster.emit(EventKind::TrialInterrupted { trial, machines });
    Ok(repaired)
}

type SendFuture = std::pin::Pin<Box<dyn Future<Output = Result<(), CoreError>> + Send>>;

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
