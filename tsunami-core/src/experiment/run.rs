//! Running an experiment: its results, its trial, and another go after an interruption.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::{Experiment, steps};
use crate::cluster::{Cluster, Host};
use crate::engine::{RunHandle, Tsunami};
use crate::error::{Error, Failures};
use crate::event::{Observer, UserEvent};
use crate::machine::RunId;
use crate::outcome::Outcome;
use crate::record::RunEntry;
use crate::report::Report;
use crate::results::{Redacted, Results, ResultsError, Secrets};

/// The name of the only trial.
const FIRST_TRIAL: &str = "1";

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
        Ok(Self { experiment, tsunami, id, results, secrets })
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
        self.tsunami.run_as(self.id.clone(), self.experiment.plan(), self.steps()).await
    }

    /// Launches and sets up, and leaves the machines to the caller. If the future is dropped, everything is torn down.
    ///
    /// # Errors
    ///
    /// As [`Tsunami::up`] has them. Everything is torn down then.
    pub async fn up(&self) -> Result<RunHandle, Error> {
        self.tsunami.up_as(self.id.clone(), self.experiment.plan()).await
    }

    /// Runs the steps on machines of another run, which are up and stay up. If the future is dropped, the steps end and the
    /// connections are let go of.
    ///
    /// # Errors
    ///
    /// As [`Tsunami::attach`] has them, those of the steps, and a machine that the experiment has and the run doesn't.
    pub async fn run_on(&self, directory: &RunEntry) -> Result<(), Error> {
        let attached = self.tsunami.attach(directory, |_| true).await?;
        let usable = self.experiment.check_machines(attached.cluster().hosts());
        let steps = self.steps();
        let attached = attached.experiment(&self.experiment.name);
        attached.run(async |cluster| usable.map(|()| steps(cluster))?.await).await
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

    /// The experiment's steps, as a closure for the engine.
    fn steps(&self) -> impl FnOnce(Cluster) -> SendFuture + Send + 'static {
        let (experiment, results) = (self.experiment.clone(), self.results.clone());
        move |cluster| Box::pin(async move { trials(&experiment, cluster, &results).await })
    }
}

type SendFuture = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// The trial, and another go at it wherever machines were interrupted that may be replaced.
async fn trials(experiment: &Experiment, mut cluster: Cluster, results: &Results) -> Result<(), Error> {
    loop {
        match steps::trial(experiment, &cluster, results, FIRST_TRIAL).await {
            Err(error) if experiment.may_go_on_after(&error) => {
                cluster = repaired(&cluster, results, error).await?;
            }
            ended => return ended,
        }
    }
}

/// Replaces the machines that were interrupted, for another go at the trial; fails with `error` if there are none.
async fn repaired(cluster: &Cluster, results: &Results, error: Error) -> Result<Cluster, Error> {
    let repaired = cluster.repair().await?;
    let pairs = cluster.hosts().iter().zip(repaired.hosts());
    let replaced = pairs.filter(|(old, new)| old.machine().id != new.machine().id);
    let machines: Vec<String> = replaced.map(|(old, _)| old.name().to_owned()).collect();
    if machines.is_empty() {
        return Err(error);
    }
    let trial = FIRST_TRIAL.to_owned();
    results.set_aside(&trial)?;
    cluster.emit(UserEvent::TrialInterrupted { trial, machines });
    Ok(repaired)
}

impl Experiment {
    /// Whether it goes on after such an error, on a replacement of the machine.
    fn may_go_on_after(&self, error: &Error) -> bool {
        let lost = |error: &Error| matches!(error, Error::Interrupted { .. } | Error::Lost { .. });
        let any_lost = match error {
            Error::Several(Failures { first, others }) => lost(first) || others.iter().any(lost),
            error => lost(error),
        };
        any_lost && self.groups.iter().any(|group| group.replace_interrupted)
    }

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
