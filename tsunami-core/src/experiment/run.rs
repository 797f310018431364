//! Running an experiment: its results, its sets of machines, and its trials on them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::{OptionFuture, join_all};
use tokio::task::spawn_blocking;

use super::Experiment;
use super::prepare::prepare;
use super::spent::spent;
use super::steps::FileTrials;
use crate::cluster::{Cluster, Host};
use crate::condition::{differences, fingerprint};
use crate::engine::{AttachedRun, Keep, RunHandle, Tsunami};
use crate::error::Error;
use crate::event::{EventCounts, Observer};
use crate::machine::RunId;
use crate::outcome::Outcome;
use crate::plan::Problem;
use crate::record::{RunEntry, SetUp};
use crate::registry::Backend;
use crate::report::Report;
use crate::results::{Redacted, Repeated, Results, ResultsError, Secrets, check_inputs, lies_in};
use crate::trial::{Sweep, new_seed};

/// How many machines are named that are not set up.
const UNREADY_SHOWN: usize = 8;

/// What can be said of a run beside its file.
#[derive(Clone, Default)]
#[must_use = "options do nothing until an experiment is run with them"]
pub struct RunOptions {
    id: Option<RunId>,
    results: Option<PathBuf>,
    observers: Vec<Arc<dyn Observer>>,
    connect: Option<Connect>,
    only: Vec<(String, String)>,
}

impl fmt::Debug for RunOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, results, observers, connect: _, only } = self;
        let mut shown = f.debug_struct("RunOptions");
        shown.field("id", id).field("results", results).field("observers", observers).field("only", only);
        shown.finish_non_exhaustive()
    }
}

/// Who gives the machines of one of several sets.
type Connect = Arc<dyn Fn(Arc<Experiment>) -> ConnectFuture + Send + Sync>;
type ConnectFuture = Pin<Box<dyn Future<Output = Result<Backend, Error>> + Send>>;

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

    /// Sets who gives the machines of each set, where they depend on parameters: what a provider has read for itself may
    /// differ between sets. Default: the engine's own provider and connector have all of them.
    pub fn connect<F, Fut>(mut self, connect: F) -> Self
    where
        F: Fn(Arc<Experiment>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Backend, Error>> + Send + 'static,
    {
        self.connect = Some(Arc::new(move |experiment| Box::pin(connect(experiment))));
        self
    }

    /// Does only the trials in which a parameter has this value, as it is written in a file. May be said of several.
    pub fn only(mut self, parameter: impl Into<String>, value: impl Into<String>) -> Self {
        self.only.push((parameter.into(), value.into()));
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
    /// For the rest it is like [`Tsunami::run`]. A run with a token of its own is handed what
    /// [`Tsunami::one_run`] returns.
    ///
    /// ```no_run
    /// # use tsunami_core::experiment::{Experiment, RunOptions};
    /// # use tsunami_core::{CancellationToken, Error, Tsunami};
    /// # async fn example(tsunami: &Tsunami, stop: CancellationToken) -> Result<(), Error> {
    /// let experiment = Experiment::load("redis.toml")?;
    /// let options = RunOptions::default().results("results/tonight");
    /// let report = experiment.run(&tsunami.one_run().cancel_on(stop), options).await?;
    /// println!("{} trials", report.trials.len());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`ExperimentRun::prepare`] and [`ExperimentRun::run`] have them, and what could not be written.
    pub async fn run(&self, tsunami: &Tsunami, options: RunOptions) -> Result<Report, Error> {
        ExperimentRun::prepare(Arc::new(self.clone()), tsunami.clone(), options).await?.run_and_finish().await
    }

    /// Does the trials that are left of a run, by the directory of its results. The experiment is the one that it was, as
    /// [`Loader::load_again`](super::Loader::load_again) reads it. For the rest it is like [`run`](Self::run).
    pub async fn resume(
        &self,
        tsunami: &Tsunami,
        options: RunOptions,
        directory: impl AsRef<Path>,
    ) -> Result<Report, Error> {
        let (experiment, directory) = (Arc::new(self.clone()), directory.as_ref());
        let run = ExperimentRun::resume(experiment, tsunami.clone(), options, directory).await?;
        run.run_and_finish().await
    }

    /// Repeats a run, by the directory of its results, which stay as they are. The experiment is the one that it was, as
    /// [`Loader::load_again`](super::Loader::load_again) reads it. In what the machines differ from those of that run is
    /// [told](crate::EventKind::Repeats). For the rest it is like [`run`](Self::run).
    pub async fn repeat(
        &self,
        tsunami: &Tsunami,
        options: RunOptions,
        directory: impl AsRef<Path>,
    ) -> Result<Report, Error> {
        let (experiment, directory) = (Arc::new(self.clone()), directory.as_ref());
        let run = ExperimentRun::repeat(experiment, tsunami.clone(), options, directory).await?;
        run.run_and_finish().await
    }
}

impl ExperimentRun {
    async fn run_and_finish(&self) -> Result<Report, Error> {
        let mut ended = self.run().await;
        if ended.is_ok()
            && let Some(error) = self.unwritten().await
        {
            ended = Err(error.into());
        }
        let outcome = ended.as_ref().err().map_or(Outcome::Success, Outcome::of);
        let finished = self.finish(outcome).await;
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
    /// The run that this one repeats, if it does.
    repeated: Option<Arc<Repeated>>,
    /// What its runs have cost before it was resumed, in US dollars; `None` where a price is not known.
    spent: BTreeMap<RunId, Option<f64>>,
    options: RunOptions,
}

impl ExperimentRun {
    /// Makes the results directory, and lets it and the observers of `options` hear of the run. If the future is dropped,
    /// the directory may be there, with what is known beforehand.
    ///
    /// # Errors
    ///
    /// Why the directory can't be used, or what is wrong with [`only`](RunOptions::only). Nothing is launched.
    pub async fn prepare(
        experiment: Arc<Experiment>,
        tsunami: Tsunami,
        options: RunOptions,
    ) -> Result<Self, ResultsError> {
        Self::begin(experiment, tsunami, options, None).await
    }

    /// The same for a run that repeats one, by the directory of its results: all of its trials, or the part that it did
    /// unless [`only`](RunOptions::only) names another. What is done on this computer first is done
    /// only where something is not as it was that machines were given.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare) has them, and what of the inputs has changed, unless that is prepared first: then the
    /// run ends with it before anything is launched.
    pub async fn repeat(
        experiment: Arc<Experiment>,
        tsunami: Tsunami,
        options: RunOptions,
        directory: &Path,
    ) -> Result<Self, ResultsError> {
        let (of, from, output) = (experiment.clone(), directory.to_owned(), options.results.clone());
        let read = spawn_blocking(move || {
            if let Some(output) = output.filter(|output| lies_in(output, &from)) {
                return Err(ResultsError::InRepeated(output));
            }
            let repeated = Repeated::read(&from)?;
            let unchanged = check_inputs(&of, &from);
            Ok((repeated, unchanged))
        });
        let (repeated, unchanged) = read.await.map_err(ResultsError::unmade).flatten()?;
        let mut options = options;
        if options.only.is_empty() {
            options.only = repeated.part();
        }
        let is_unchanged = unchanged.is_ok();
        if experiment.prepare.is_empty() {
            unchanged?;
        }
        let run = Self::begin(experiment, tsunami, options, Some(Arc::new(repeated))).await?;
        if is_unchanged && run.prepares() {
            run.write_inputs().await?;
        }
        Ok(run)
    }

    async fn begin(
        experiment: Arc<Experiment>,
        tsunami: Tsunami,
        options: RunOptions,
        repeated: Option<Arc<Repeated>>,
    ) -> Result<Self, ResultsError> {
        let trials = &experiment.trials;
        let seed = trials.seed.unwrap_or_else(new_seed);
        let mut plan = trials.plan(seed, |parameters| experiment.set_of(parameters));
        plan.only.clone_from(&options.only);
        let sweep = Sweep::new(plan, trials).only(options.only.clone()).map_err(ResultsError::NoSuchPart)?;
        let id = options.id.clone().unwrap_or_else(|| tsunami.next_run_id());
        // It may read much.
        let (of, run, output) = (experiment.clone(), id.clone(), options.results.clone());
        let created = spawn_blocking(move || Results::create(&of, &run, output.as_deref())).await;
        let results = created.map_err(ResultsError::unmade).flatten()?;
        let run =
            Self::new(experiment, tsunami.one_story(EventCounts::default()), id, results, sweep, options);
        Ok(Self { repeated, ..run })
    }

    /// Takes up the directory of a run that did not do all of its trials, whatever ended it. What was done of rounds that
    /// are not complete will not count; they are done again whole. If the future is dropped, nothing has changed.
    ///
    /// # Errors
    ///
    /// What is wrong with the directory, such as another process that still writes to it, an input that has changed, or
    /// what is wrong with [`only`](RunOptions::only). Nothing is launched.
    pub async fn resume(
        experiment: Arc<Experiment>,
        tsunami: Tsunami,
        options: RunOptions,
        directory: &Path,
    ) -> Result<Self, ResultsError> {
        let id = options.id.clone().unwrap_or_else(|| tsunami.next_run_id());
        let (of, from) = (experiment.clone(), directory.to_owned());
        let taken_up = spawn_blocking(move || Results::resume(&of, &from)).await;
        let (results, events) = taken_up.map_err(ResultsError::unmade).flatten()?;
        let report = results.report();
        let Some(plan) = report.sweep.clone() else {
            return Err(ResultsError::NotResumable(directory.to_owned()));
        };
        let is_left = |trial: &str| results.has_trial(trial);
        let sweep = Sweep::resumed(plan, &experiment.trials, &report, is_left);
        let sweep = sweep.only(options.only.clone()).map_err(ResultsError::NoSuchPart)?;
        let spent = spent(&events, SystemTime::now());
        let tsunami = tsunami.one_story(EventCounts::of(&events)).choices(report.choices);
        let run = Self::new(experiment, tsunami, id, results, sweep, options);
        Ok(Self { spent, ..run })
    }

    fn new(
        experiment: Arc<Experiment>,
        tsunami: Tsunami,
        id: RunId,
        results: Results,
        sweep: Sweep,
        options: RunOptions,
    ) -> Self {
        let (results, secrets) = (Arc::new(results), Secrets::of(&experiment));
        let observers = results.observers().into_iter().chain(options.observers.clone()).collect();
        let redacted = Arc::new(Redacted::new(secrets.clone(), observers));
        let tsunami = tsunami.observer(redacted).results(results.directory());
        Self {
            experiment,
            tsunami,
            id,
            results,
            secrets,
            sweep,
            repeated: None,
            spent: BTreeMap::new(),
            options,
        }
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

    /// Launches, runs the trials, and tears down or keeps; one set of machines after another, where there are several. Of
    /// those only the last is kept, and any on which the experiment ends with an error. If the future is dropped, it is
    /// like [`Tsunami::run`]'s.
    ///
    /// # Errors
    ///
    /// As [`Tsunami::run`] has them, and those of the trials: once all sets are done, if the lifetime of one left no time for
    /// all of its trials, or an odd machine stopped them.
    pub async fn run(&self) -> Result<(), Error> {
        self.make_ready().await?;
        self.write_index().await?;
        self.end_abandoned().await?;
        let left: Vec<u32> = (1..=self.sweep.set_count()).filter(|set| !self.sweep.is_done(*set)).collect();
        let sets = self.sets(&left).await?;
        let mut kept = match sets.first() {
            Some(first) => self.kept(first).await,
            None => None,
        };
        let spent =
            match self.check_budget(&sets, kept.as_ref().map(|(_, attached)| attached.cluster())).await {
                Ok(spent) => spent,
                Err(error) => {
                    OptionFuture::from(kept.map(|(_, attached)| attached.detach())).await;
                    return Err(error);
                }
            };
        let count = sets.len();
        for (nth, MachineSet { number, experiment, tsunami }) in sets.into_iter().enumerate() {
            let is_last = nth + 1 == count;
            if let Some((again, attached)) = kept.take() {
                let trials = self.trials(experiment, number, again, is_last);
                let trials = async |cluster: Cluster| {
                    cluster.end_earlier_trials().await?;
                    trials(cluster).await
                };
                if attached.run(trials).await? {
                    continue;
                }
                return Ok(());
            }
            let id = if nth == 0 { self.id.clone() } else { tsunami.run_id(nth as u64) };
            let keep = match tsunami.keeps() {
                Keep::Always if !is_last => Keep::OnFailure,
                keep => keep,
            };
            let trials = self.trials(experiment.clone(), number, self.next_set(), is_last);
            let mut plan = experiment.plan();
            plan.budget = plan.budget.map(|budget| (budget - spent).max(0.0));
            match tsunami.keep(keep).run_as(id, plan, trials).await {
                Err(error @ Error::LifetimeOver(_)) if !is_last => self.sweep.stop(error.to_string()),
                Ok(true) => {}
                ended => return ended.map(drop),
            }
        }
        // There was nothing left to do.
        verdict(&self.sweep, self.results.clone()).await
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

    /// Refuses machines that were given something else than is written down of this run: they are not set up again.
    async fn check_set_up(&self, machines: &RunEntry) -> Result<(), Error> {
        let Some(theirs) = machines.record()?.results else { return Ok(()) };
        let results = self.results.clone();
        let compared =
            spawn_blocking(move || results.given_otherwise(&theirs)).await.map_err(Error::other)?;
        let Some(what) = compared? else { return Ok(()) };
        let message = format!(
            "{what} is not what those of run {} were set up with, which isn't done again: put it back, or bring new \
             machines up",
            machines.id()
        );
        Err(Error::Plan { problems: vec![Problem { about: "machines".to_owned(), message }] })
    }

    /// Runs the steps on machines of another run, which are up and stay up. If the future is dropped, the steps end and the
    /// connections are let go of.
    ///
    /// # Errors
    ///
    /// As [`Tsunami::attach`] has them, those of the steps, a machine that the experiment has and the run doesn't,
    /// machines that another run's trials are done on or that are not set up, and uploads, set-up or an environment other
    /// than they were given.
    pub async fn run_on(&self, directory: &RunEntry) -> Result<(), Error> {
        if self.experiment.set_count() > 1 {
            let message = "its machines depend on parameters: they can't be those of another run".to_owned();
            return Err(Error::Plan { problems: vec![Problem { about: "trials".to_owned(), message }] });
        }
        let Some(_machines) = directory.lock_machines()? else {
            let message = format!(
                "those of run {} are in use: it goes on yet, or another run does its trials there. Wait for its end",
                directory.id()
            );
            return Err(Error::Plan { problems: vec![Problem { about: "machines".to_owned(), message }] });
        };
        self.make_ready().await?;
        self.check_set_up(directory).await?;
        let attached = self.tsunami.attach(directory, |_| true).await?;
        let hosts = attached.cluster().hosts();
        let usable = self.experiment.check_machines(hosts);
        let usable = usable.and_then(|()| self.experiment.check_ready(directory, hosts));
        self.write_index().await?;
        let trials = self.trials(self.experiment.clone(), 1, 1, true);
        let attached = attached.experiment(&self.experiment.name);
        let trials = async |cluster: Cluster| {
            usable?;
            cluster.end_earlier_trials().await?;
            trials(cluster).await
        };
        attached.run(trials).await.map(drop)
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

    /// Whether it begins with commands on this computer, whose log is `prepare.log` among [`Results::logs`]. What is
    /// resumed was prepared before.
    pub fn prepares(&self) -> bool {
        !self.results.has_inputs()
    }

    /// Whether there are trials left that [`resume`](Self::resume) would do: the first had begun, and not all are done. Of a
    /// single one that measures nothing there is no rest, although it can be resumed, too. Nor is there any that the lifetime
    /// of new machines has no time for.
    pub fn is_resumable(&self) -> bool {
        let is_sweep = self.results.report().sweep.is_some_and(|plan| !plan.is_plain());
        is_sweep && self.sweep.is_given_up() && !self.sweep.is_too_short()
    }

    /// Whether all trials are done that are to be, as those of a finished run are when it is resumed.
    pub fn is_done(&self) -> bool {
        !self.sweep.is_given_up()
    }

    /// Does what is to be done on this computer first, and then writes down what machines will be given.
    async fn make_ready(&self) -> Result<(), Error> {
        if !self.prepares() {
            return Ok(());
        }
        let cancel = self.tsunami.cancellation();
        let _over = cancel.clone().drop_guard();
        prepare(&self.experiment, &self.results, &self.secrets, &cancel).await?;
        Ok(self.write_inputs().await?)
    }

    /// Writes down what machines will be given, which is what they were given before where a run is repeated.
    async fn write_inputs(&self) -> Result<(), ResultsError> {
        let (results, experiment) = (self.results.clone(), self.experiment.clone());
        let repeated = self.repeated.clone();
        let written = spawn_blocking(move || {
            let unchanged =
                repeated.map_or(Ok(()), |repeated| check_inputs(&experiment, repeated.directory()));
            unchanged.map_err(|error| match error {
                ResultsError::Changed { what, file } if !experiment.prepare.is_empty() => {
                    ResultsError::PreparedOtherwise { what, file }
                }
                error => error,
            })?;
            results.write_inputs(&experiment)
        });
        written.await.map_err(|error| ResultsError::unwritten(self.results.directory(), error)).flatten()
    }

    /// The run that this one repeats, if it does and that is known.
    pub fn repeats(&self) -> Option<RunId> {
        self.repeated.as_ref()?.run()
    }

    /// What parameters are in the part of its trials that is done; none where that is all of them.
    pub fn part(&self) -> &[(String, String)] {
        self.sweep.part()
    }

    /// Writes down what trials there are.
    async fn write_index(&self) -> Result<(), Error> {
        let (results, plan) = (self.results.clone(), self.sweep.plan().clone());
        spawn_blocking(move || results.write_index(&plan)).await.map_err(Error::other)?.map_err(Error::from)
    }

    /// The sets of machines of these numbers.
    async fn sets(&self, numbers: &[u32]) -> Result<Vec<MachineSet>, Error> {
        let mut sets = Vec::new();
        for &number in numbers {
            let experiment = Arc::new(self.experiment.on_set(number));
            let tsunami = match &self.options.connect {
                Some(connect) if self.experiment.set_count() > 1 => {
                    self.tsunami.clone().backend(connect(experiment.clone()).await?)
                }
                _ => self.tsunami.clone(),
            };
            sets.push(MachineSet { number, experiment, tsunami });
        }
        Ok(sets)
    }

    /// Whether all of these sets may be launched, except for the first one, if it is kept: returns what was spent before.
    async fn check_budget(&self, sets: &[MachineSet], kept: Option<&Cluster>) -> Result<f64, Error> {
        let kept = kept.map(Cluster::run_id);
        let before = self.spent.iter().filter(|(run, _)| Some(*run) != kept).map(|(_, spent)| *spent);
        let before: Option<f64> = before.sum();
        let new = if kept.is_some() { &sets[1..] } else { sets };
        // One set alone is looked at by its launch.
        if new.is_empty() || (sets.len() == 1 && before == Some(0.0)) {
            return Ok(before.unwrap_or_default());
        }
        let most_of = |run| self.tsunami.recorded(run).and_then(|entry| entry.record().ok()?.max_cost);
        let mut all = kept.map_or(Some(0.0), most_of);
        for MachineSet { experiment, tsunami, .. } in new {
            let plan = experiment.plan();
            let own = plan.max_cost(&tsunami.quote(&plan).await?);
            all = all.zip(own).map(|(all, own)| all + own);
        }
        let max_cost = all.filter(|_| before.is_some());
        let spent = before.unwrap_or_default();
        match self.experiment.budget {
            Some(budget) if max_cost.is_none_or(|most| spent + most > budget) => {
                Err(Error::Budget { budget, max_cost, spent })
            }
            _ => Ok(spent),
        }
    }

    /// The runs of this sweep so far, the last one first.
    fn runs(&self) -> Vec<RunEntry> {
        let report = self.results.report();
        let mut runs: Vec<_> = report.sets().filter_map(|set| set.run.as_ref()).collect();
        runs.reverse();
        runs.into_iter().filter_map(|run| self.tsunami.recorded(run)).collect()
    }

    /// The runs of this sweep whose controller was killed, and whose machines may still be there.
    pub fn abandoned(&self) -> Vec<RunEntry> {
        self.runs().into_iter().filter(RunEntry::is_abandoned).collect()
    }

    /// Tears down what a process that was killed has left of this sweep: what goes on there would disturb the rest.
    async fn end_abandoned(&self) -> Result<(), Error> {
        for run in self.abandoned() {
            if !self.tsunami.has_machines_of(&run.record()?) {
                let why = format!("run {} was abandoned by its controller: tear it down first", run.id());
                return Err(Error::other(why));
            }
            self.tsunami.down(&run).await?;
        }
        Ok(())
    }

    /// The machines of the last run of this sweep, if they are up, were kept, are those of this set, and are what they were;
    /// and the number that the set had.
    async fn kept(
        &self,
        MachineSet { number: set, experiment, tsunami }: &MachineSet,
    ) -> Option<(u32, AttachedRun)> {
        let report = self.results.report();
        let last = self.runs().into_iter().next().filter(|run| Some(run.id()) == report.run)?;
        let record = last.record().ok().filter(|record| record.kept && tsunami.has_machines_of(record))?;
        let is_of_set = |trial: &str| self.sweep.plan().trial(trial).is_some_and(|trial| trial.set == *set);
        let done = report.trials.iter().rev().find(|trial| trial.set == report.set)?;
        if report.set == 0 || !is_of_set(done.planned_name()) || record.groups != report.groups {
            return None;
        }
        // Those that can't be reached are left to their lifetime, and others take their place.
        let attached = tsunami.attach(&last, |_| true).await.ok()?;
        let hosts = attached.cluster().hosts();
        let is_as_it_was = async |host: &Host| {
            let before = report.machines.get(host.name())?;
            let now = fingerprint(host).await.ok()?;
            differences(&before.facts, &now).is_empty().then_some(())
        };
        let are_as_they_were = join_all(hosts.iter().map(is_as_it_was)).await.iter().all(Option::is_some);
        let checked = experiment.check_machines(hosts).and_then(|()| experiment.check_ready(&last, hosts));
        if !are_as_they_were || checked.is_err() {
            attached.detach().await;
            return None;
        }
        Some((report.set, attached.experiment(&self.experiment.name)))
    }

    /// The number of the next set of machines.
    fn next_set(&self) -> u32 {
        let report = self.results.report();
        report.sets().map(|set| set.set).max().unwrap_or_default() + 1
    }

    /// The trials on a set of machines, as a closure for the engine. It returns whether there are more sets to come.
    fn trials(
        &self,
        experiment: Arc<Experiment>,
        set: u32,
        number: u32,
        is_last: bool,
    ) -> impl FnOnce(Cluster) -> TrialsFuture + Send + 'static {
        let (results, sweep, repeated) = (self.results.clone(), self.sweep.clone(), self.repeated.clone());
        move |cluster| {
            Box::pin(async move {
                let repeated = repeated.as_deref();
                let measure = FileTrials { experiment: &experiment, results: &results, set, repeated };
                let events = cluster.events().clone();
                let stopped = sweep.on_set(set, number, cluster, &measure).await?;
                // Each set has a lifetime and results of its own: what is wrong with one is an error at the end of all.
                if !is_last {
                    stopped.or_else(|| sweep.failure_of(set)).into_iter().for_each(|why| events.fail(why));
                    return Ok(true);
                }
                verdict(&sweep, results).await?;
                Ok(false)
            })
        }
    }
}

/// What the trials came to, once no more of them are done.
async fn verdict(sweep: &Sweep, results: Arc<Results>) -> Result<(), Error> {
    sweep.outcome()?;
    if sweep.plan().compare.as_ref().is_none_or(|compare| compare.fail_if.is_empty()) {
        return Ok(());
    }
    // There is much to reckon.
    let analysis = spawn_blocking(move || results.report().analysis()).await;
    let checks = analysis.map_err(Error::other)?.checks;
    let held = checks.iter().filter(|check| check.holds == Some(true)).map(ToString::to_string);
    let held: Vec<_> = held.collect();
    if held.is_empty() { Ok(()) } else { Err(Error::other(held.join("; "))) }
}

type TrialsFuture = Pin<Box<dyn Future<Output = Result<bool, Error>> + Send>>;

/// One of the sets of machines of an experiment, and what runs it.
struct MachineSet {
    number: u32,
    experiment: Arc<Experiment>,
    tsunami: Tsunami,
}

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

    /// Whether all machines of the experiment that a run has are set up.
    fn check_ready(&self, directory: &RunEntry, hosts: &[Host]) -> Result<(), Error> {
        let ours: BTreeSet<String> = self.machines().map(|(name, ..)| name).collect();
        let ours = hosts.iter().map(Host::machine).filter(|machine| ours.contains(&machine.name()));
        let unready = directory.unready(ours)?;
        let of = |came_to, what: &str| {
            let names =
                unready.iter().filter(|(_, other)| *other == came_to).map(|(machine, _)| machine.name());
            let names: Vec<_> = names.collect();
            let shown = names[..names.len().min(UNREADY_SHOWN)].join(", ");
            let more = names.len().saturating_sub(UNREADY_SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            (!names.is_empty()).then(|| format!("the set-up of {shown}{more} {what}"))
        };
        let came_to = [of(SetUp::Failed, "failed"), of(SetUp::Unended, "never ended")];
        let came_to: Vec<_> = came_to.into_iter().flatten().collect();
        if came_to.is_empty() {
            return Ok(());
        }
        let message = format!(
            "{} in run {}, and isn't done again: look at what there is (`exec`), then tear it down (`down`) and begin anew",
            came_to.join(", "),
            directory.id()
        );
        Err(Error::Plan { problems: vec![Problem { about: "machines".to_owned(), message }] })
    }
}
