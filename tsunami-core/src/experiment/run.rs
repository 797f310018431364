//! Running an experiment: its results, its sets of machines, and its trials on them.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::Experiment;
use super::prepare::prepare;
use super::steps::FileTrials;
use crate::cluster::{Cluster, Host};
use crate::engine::{RunHandle, Tsunami};
use crate::error::Error;
use crate::event::Observer;
use crate::machine::RunId;
use crate::outcome::Outcome;
use crate::record::RunEntry;
use crate::report::Report;
use crate::results::{Redacted, Results, ResultsError, Secrets};
use crate::trial::{Sweep, new_seed};

/// What can be said of a run beside its file.
#[derive(Clone, Debug, Default)]
#[must_use = "options do nothing until an experiment is run with them"]
pub struct RunOptions {
    id: Option<RunId>,
    results: Option<PathBuf>,
    observers: Vec<Arc<dyn Observer>>,
}

impl RunOptions {
    /// Sets the run's id. Default: a new one.
    pub fn id(mut self, id: RunId) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets where the results go, a directory that is empty or not there yet. Default:
    /// `results/<experiment>/<run>` in the working directory.
    pub fn results(mut self, directory: impl Into<PathBuf>) -> Self {
        self.results = Some(directory.into());
        self
    }

    /// Adds an observer, which sees no [secrets](Secrets).
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(observer);
        self
    }
}

impl Experiment {
    /// Runs the experiment as the command line does: launches its machines, sets them up, runs its steps, brings the
    /// files home and tears everything down, or keeps it, as [`Tsunami::keep`] says. All that happened is in the results
    /// directory, and summed up in the report.
    ///
    /// For the rest it is like [`Tsunami::run`].
    pub async fn run(&self, tsunami: &Tsunami, options: RunOptions) -> Result<Report, Error> {
        let run = ExperimentRun::prepare(Arc::new(self.clone()), tsunami.clone(), options).await?;
        let mut ended = run.run().await;
        if ended.is_ok()
            && let Some(error) = run.unwritten().await
        {
            ended = Err(error.into());
        }
        let outcome = ended.as_ref().err().map_or(Outcome::Success, Outcome::of);
        let finished = run.finish(outcome).await;
        ended?;
        Ok(finished?)
    }
}

/// An experiment that is about to run: the directory of its results is there, and nothing is launched yet.
///
/// For programs that show a run, or choose how it goes on; others call [`Experiment::run`].
#[derive(Clone, Debug)]
pub struct ExperimentRun {
    experiment: Arc<Experiment>,
    tsunami: Tsunami,
    id: RunId,
    results: Arc<Results>,
    secrets: Secrets,
    sweep: Sweep,
}

impl ExperimentRun {
    /// Makes the results directory, and lets it and the observers of `options` hear of the run. If the future is dropped,
    /// the directory may be there, with what is known beforehand.
    ///
    /// # Errors
    ///
    /// Why the directory can't be used. Nothing is launched.
    pub async fn prepare(
        experiment: Arc<Experiment>,
        tsunami: Tsunami,
        options: RunOptions,
    ) -> Result<Self, ResultsError> {
        let RunOptions { id, results, observers } = options;
        let id = id.unwrap_or_else(|| tsunami.next_run_id());
        // It may read much.
        let (of, run) = (experiment.clone(), id.clone());
        let created = spawn_blocking(move || Results::create(&of, &run, results.as_deref())).await;
        let results = Arc::new(created.map_err(ResultsError::unmade).flatten()?);
        let secrets = Secrets::of(&experiment);
        let observers = results.observers().into_iter().chain(observers).collect();
        let redacted = Arc::new(Redacted::new(secrets.clone(), observers));
        let tsunami = tsunami.observer(redacted).results(results.directory());
        let trials = &experiment.trials;
        let plan = trials.plan(trials.seed.unwrap_or_else(new_seed), |_| 1);
        // A single trial that measures nothing is nothing but its steps.
        let told = plan.trials.len() > 1 || !plan.metrics.is_empty();
        let sweep = Sweep::new(plan, trials.odd, told);
        Ok(Self { experiment, tsunami, id, results, secrets, sweep })
    }

    /// The run's id, unless it goes [on](Self::run_on) machines of another run.
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// Its results.
    pub fn results(&self) -> &Arc<Results> {
        &self.results
    }

    /// What is not to be shown.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Launches, runs the steps, and tears down or keeps. If the future is dropped, it is like [`Tsunami::run`]'s.
    ///
    /// # Errors
    ///
    /// As [`Tsunami::run`] has them, and those of the steps.
    pub async fn run(&self) -> Result<(), Error> {
        self.make_ready().await?;
        self.write_index().await?;
        self.tsunami.run_as(self.id.clone(), self.experiment.plan(), self.trials()).await
    }

    /// Launches and sets up, and leaves the machines to the caller. If the future is dropped, everything is torn down.
    ///
    /// # Errors
    ///
    /// As [`Tsunami::up`] has them. Everything is torn down then.
    pub async fn up(&self) -> Result<RunHandle, Error> {
        self.make_ready().await?;
        self.tsunami.up_as(self.id.clone(), self.experiment.plan()).await
    }

    /// Runs the steps on machines of another run, which are up and stay up. If the future is dropped, the steps end and the
    /// connections are let go of.
    ///
    /// # Errors
    ///
    /// As [`Tsunami::attach`] has them, those of the steps, and a machine that the experiment has and the run doesn't.
    pub async fn run_on(&self, directory: &RunEntry) -> Result<(), Error> {
        self.make_ready().await?;
        let attached = self.tsunami.attach(directory, |_| true).await?;
        let usable = self.experiment.check_machines(attached.cluster().hosts());
        self.write_index().await?;
        let trials = self.trials();
        let attached = attached.experiment(&self.experiment.name);
        attached.run(async |cluster| usable.map(|()| trials(cluster))?.await).await
    }

    /// Waits until all that happened by now is written, and says why it isn't, if so: [`Results::error`], without
    /// holding up other tasks.
    pub async fn unwritten(&self) -> Option<io::Error> {
        let results = self.results.clone();
        spawn_blocking(move || results.error()).await.unwrap_or_else(|error| Some(error.into()))
    }

    /// Writes down what came of it, and sums up all that happened. If the future is dropped, it is written all the
    /// same.
    ///
    /// # Errors
    ///
    /// What could not be written. All else is.
    pub async fn finish(&self, outcome: Outcome) -> Result<Report, ResultsError> {
        let (results, experiment) = (self.results.clone(), self.experiment.clone());
        let finished = spawn_blocking(move || results.finish(&experiment, outcome)).await;
        finished.map_err(|error| ResultsError::unwritten(self.results.directory(), error)).flatten()
    }

    /// Does what is to be done on this computer first, and then writes down what machines will be given.
    async fn make_ready(&self) -> Result<(), Error> {
        if self.experiment.prepare.is_empty() {
            return Ok(());
        }
        prepare(&self.experiment, &self.results, &self.secrets, self.tsunami.cancellation()).await?;
        let (results, experiment) = (self.results.clone(), self.experiment.clone());
        let written = spawn_blocking(move || results.write_inputs(&experiment)).await;
        written.map_err(Error::other)?.map_err(Error::from)
    }

    /// Writes down what trials there are.
    async fn write_index(&self) -> Result<(), Error> {
        if !self.sweep.is_told() {
            return Ok(());
        }
        let (results, plan) = (self.results.clone(), self.sweep.plan().clone());
        spawn_blocking(move || results.write_index(&plan)).await.map_err(Error::other)?.map_err(Error::from)
    }

    /// The experiment's trials on a set of machines, as a closure for the engine.
    fn trials(&self) -> impl FnOnce(Cluster) -> SendFuture + Send + 'static {
        let (experiment, results, sweep) =
            (self.experiment.clone(), self.results.clone(), self.sweep.clone());
        move |cluster| {
            Box::pin(async move {
                let measure = FileTrials { experiment: &experiment, results: &results };
                let stopped = sweep.on_set(1, 1, cluster, &measure).await?;
                sweep.outcome(stopped)
            })
        }
    }
}

type SendFuture = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

impl Experiment {
    /// Whether a run has all machines of the experiment.
    fn check_machines(&self, hosts: &[Host]) -> Result<(), Error> {
        let has = |name: &String| hosts.iter().any(|host| host.name() == name);
        let missing: Vec<String> = self.machines().map(|(name, ..)| name).filter(|name| !has(name)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::other(format!("the run has no machine {}", missing.join(", "))))
    }
}
