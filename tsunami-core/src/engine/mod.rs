//! The engine: launch, watch, connect, set up, hand over, tear down.

mod attach;
mod deadline;
mod foreign;
mod machine_task;
mod monitor;
mod provision;
mod run;
mod shutdown;
mod teardown;

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::error::{Error, QuoteFailure};
use crate::event::{EventCounts, Guarded as GuardedObserver, Observer};
use crate::machine::{Machine, RunId};
use crate::plan::Plan;
use crate::provider::{Choice, Choices, Provider, ProviderError, ProviderErrorKind, Quote, RunFilter};
use crate::record::RunStore;
#[cfg(feature = "experiment")]
use crate::record::{RunEntry, RunRecord};
use crate::session::Connector;

use foreign::Guarded;
#[cfg(feature = "experiment")]
use foreign::described;
use run::joined;
use shutdown::{Runs, any_of};

pub use attach::AttachedRun;
pub(crate) use deadline::RunDeadline;
pub(crate) use provision::Provisioner;
pub use run::RunHandle;

/// Runs experiments: the place where a provider and a connector meet.
///
/// ```
/// # use std::sync::Arc;
/// # use tsunami_core::testing::FakeCloud;
/// # use tsunami_core::{Error, Group, MachineSpec, Plan, RunStore, Tsunami};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Error> {
/// # let cloud = FakeCloud::new(1);
/// # let (provider, connector) = (cloud.clone(), cloud.clone());
/// # let state = RunStore::at(tempfile::tempdir()?.path().join("runs"));
/// let tsunami = Tsunami::new(Arc::new(provider), Arc::new(connector)).state(state);
/// let plan = Plan::new("hello").group(Group::new("node", MachineSpec::default()).count(3));
/// let hosts = tsunami
///     .run(plan, |cluster| async move {
///         for host in cluster.hosts() {
///             host.run("hostname").await?;
///         }
///         Ok(cluster.hosts().len())
///     })
///     .await?;
/// assert_eq!(hosts, 3);
/// # assert!(cloud.is_empty());
/// # Ok(()) }
/// ```
///
/// One is enough for a program, however many runs there are at once: a clone is the same engine, and cheap. What is set on
/// an engine holds for all of its runs; [`one_run`](Self::one_run) is for what is one run's own. It runs on tokio: what
/// waits is awaited in a runtime with its clock and its input and output enabled, and panics elsewhere.
///
/// # Before the runtime ends
///
/// **Await [`shutdown`](Self::shutdown)**, above all in a program in which the future of a run may be dropped: by a
/// time-out, by a `select!`, or with its task. It cancels what still runs, waits until everything is torn down, and says
/// what may remain.
///
/// **Without it**, the end of a runtime finds runs in the middle of their teardown. It then waits until a thread with a
/// runtime of its own has finished that, several minutes at most, and what was being asked for at that moment is named as
/// what may remain, in a log line that nobody may read. Where that is turned off
/// ([`outlive_runtime`](Self::outlive_runtime)), or the process is killed or calls [`std::process::exit`], machines live
/// until their deadline, or until somebody asks for [`down`](Self::down).
#[derive(Clone, Debug)]
pub struct Tsunami {
    provider: Arc<dyn Provider>,
    connector: Arc<dyn Connector>,
    observers: Vec<GuardedObserver>,
    state: Option<RunStore>,
    results: Option<PathBuf>,
    cancel: CancellationToken,
    /// The tokens of the engines that this one does one run of.
    cancel_beside: Vec<CancellationToken>,
    /// The id of the one run.
    id: Option<RunId>,
    keep: Keep,
    started_at: Option<SystemTime>,
    seed: Option<u64>,
    outlive_runtime: bool,
    runs: Arc<Runs>,
    /// How many events and commands were told of before, in a story that goes on over several runs.
    counts: Option<EventCounts>,
    /// What was chosen so far, for all runs.
    choices: Arc<Mutex<Choices>>,
}

/// When machines outlive their run, until their lifetime is over or somebody tears them down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Keep {
    /// Never.
    #[default]
    Never,
    /// When set-up or the experiment failed, so that somebody can look. Not when the run was cancelled.
    OnFailure,
    /// Always, except when the run was cancelled.
    Always,
}

impl Tsunami {
    /// Machines from `provider`, reached through `connector`.
    pub fn new(provider: Arc<dyn Provider>, connector: Arc<dyn Connector>) -> Self {
        Self {
            provider: Arc::new(Guarded(provider)),
            connector: Arc::new(Guarded(connector)),
            observers: Vec::new(),
            state: None,
            results: None,
            cancel: CancellationToken::new(),
            cancel_beside: Vec::new(),
            id: None,
            keep: Keep::Never,
            started_at: None,
            seed: None,
            outlive_runtime: true,
            runs: Arc::default(),
            counts: None,
            choices: Arc::default(),
        }
    }

    /// The same engine with other machines.
    #[cfg(feature = "experiment")]
    pub(crate) fn backend(mut self, backend: crate::registry::Backend) -> Self {
        self.provider = Arc::new(Guarded(backend.provider));
        self.connector = Arc::new(Guarded(backend.connector));
        self
    }

    /// Numbers the events and commands of all runs as those of one story.
    #[cfg(feature = "experiment")]
    pub(crate) fn one_story(mut self, counts: EventCounts) -> Self {
        self.counts = Some(counts);
        self
    }

    /// Of the runs of a program, those that are recorded here.
    #[cfg(feature = "experiment")]
    pub(crate) fn recorded(&self, run: &RunId) -> Option<RunEntry> {
        let state = self.state.clone().map_or_else(RunStore::standard, Ok).ok()?;
        state.find(run.as_str()).ok()
    }

    /// Whether a recorded run's machines are those of this engine's provider.
    #[cfg(feature = "experiment")]
    pub(crate) fn has_machines_of(&self, record: &RunRecord) -> bool {
        let own = described(&*self.provider);
        own.is_ok_and(|(name, settings)| name == record.provider && settings == record.settings)
    }

    /// When machines outlive their run.
    #[cfg(feature = "experiment")]
    pub(crate) fn keeps(&self) -> Keep {
        self.keep
    }

    /// This engine for one run, which may have options of its own beside those of all runs. Whatever is set on what this
    /// returns is that run's alone: observers are added to the others', a token ends that run as the others' do, and the
    /// rest is in place of what holds for all. It is handed wherever the run begins: [`run`](Self::run), [`up`](Self::up),
    /// [`attach`](Self::attach), `Experiment::run`.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tsunami_core::testing::FakeCloud;
    /// # use tsunami_core::{CancellationToken, Error, Group, MachineSpec, Plan, Recorder, RunStore, Tsunami};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Error> {
    /// # let (cloud, directory) = (Arc::new(FakeCloud::new(1)), tempfile::tempdir()?);
    /// # let tsunami = Tsunami::new(cloud.clone(), cloud).state(RunStore::at(directory.path()));
    /// # let plan = Plan::new("hello").group(Group::new("node", MachineSpec::default()));
    /// let (id, stop, story) = (tsunami.next_run_id(), CancellationToken::new(), Arc::new(Recorder::default()));
    /// let run = tsunami.one_run().id(id).cancel_on(stop.clone()).observer(story.clone());
    /// run.run(plan, |cluster| async move { cluster.hosts()[0].run("hostname").await }).await?;
    /// # assert!(!story.events().is_empty());
    /// # Ok(()) }
    /// ```
    pub fn one_run(&self) -> Self {
        let mut one = self.clone();
        let cancel = std::mem::take(&mut one.cancel);
        one.cancel_beside.push(cancel);
        one
    }

    /// Sets the id of a run, which is recorded under it. No two runs can have the same, so it is for [one](Self::one_run).
    /// Default: [a new one](Self::next_run_id).
    pub fn id(mut self, id: RunId) -> Self {
        self.id = Some(id);
        self
    }

    /// Adds an observer of the runs' events and output.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(GuardedObserver::new(observer));
        self
    }

    /// Sets where runs are recorded. Default: [`RunStore::standard`].
    pub fn state(mut self, state: RunStore) -> Self {
        self.state = Some(state);
        self
    }

    /// Notes in the record where the results go. The engine itself writes none.
    pub fn results(mut self, directory: impl Into<PathBuf>) -> Self {
        self.results = Some(directory.into());
        self
    }

    /// Ends runs when `token` fires: what is under way stops and everything is torn down. The token is in place of an
    /// earlier one of the same engine. The library handles no signals: a program that Ctrl-C may end fires a token then.
    pub fn cancel_on(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
    }

    /// What says that a run is to end. It is to be cancelled when the run is over.
    pub(crate) fn cancellation(&self) -> CancellationToken {
        let others = self.cancel_beside.iter().chain([self.runs.shut_down()]);
        any_of(&self.cancel, others.cloned().collect())
    }

    /// What says that nobody wants to wait for another attempt. It is to be cancelled when nobody waits.
    fn impatience(&self) -> CancellationToken {
        any_of(&self.cancel, self.cancel_beside.clone())
    }

    /// Sets whether machines outlive their run. Default: never.
    pub fn keep(mut self, keep: Keep) -> Self {
        self.keep = keep;
        self
    }

    /// Sets the time at which the runs begin, in place of the system's clock. For tests.
    pub fn started_at(mut self, time: SystemTime) -> Self {
        self.started_at = Some(time);
        self
    }

    /// Sets what run ids and delays draw their randomness from. For tests.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets whether a runtime that ends while a run is being torn down is made to wait until another one, on a
    /// thread of its own, has finished that: several minutes at most. Default: it is. Without it, what is left is
    /// [`down`](Self::down)'s to remove, and the machines' own deadlines'.
    pub fn outlive_runtime(mut self, outlive: bool) -> Self {
        self.outlive_runtime = outlive;
        self
    }

    /// Goes by what was chosen before, as [`Report::choices`](crate::Report::choices) has it, where specs leave it open: see
    /// [`Provider::choose`]. What its runs choose is gone by in the next ones in any case.
    pub fn choices(self, choices: Choices) -> Self {
        Self { choices: Arc::new(Mutex::new(choices)), ..self }
    }

    /// Asks for a run id, as the next run would get it.
    pub fn next_run_id(&self) -> RunId {
        self.id.clone().unwrap_or_else(|| self.run_id(0))
    }

    /// A run id for another of several runs.
    pub(crate) fn run_id(&self, nth: u64) -> RunId {
        let seed = self.seed.map(|seed| seed.wrapping_add(nth));
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()));
        RunId::generate(self.started_at.unwrap_or_else(SystemTime::now), seed)
    }

    /// Validates a plan and asks the provider about every group. Creates nothing, and may be dropped at any await.
    ///
    /// # Errors
    ///
    /// [`Error::Plan`] with all that is wrong with the plan, or [`Error::Quote`] with all groups that can't be had.
    pub async fn quote(&self, plan: &Plan) -> Result<Vec<Quote>, Error> {
        Ok(self.quote_chosen(plan).await?.into_iter().map(|(quote, _)| quote).collect())
    }

    /// The same, with what the provider chose for each group.
    async fn quote_chosen(&self, plan: &Plan) -> Result<Vec<(Quote, Option<Choice>)>, Error> {
        plan.validate()?;
        // One after the other, since groups that leave the same open are to have the same.
        let mut specs = Vec::new();
        for group in &plan.groups {
            let known = self.choices.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let choice = self.provider.choose(&group.spec, &known).await;
            if let Ok(Some(Choice { asked, chosen, .. })) = &choice {
                let mut known = self.choices.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert(asked.clone(), chosen.clone());
            }
            specs.push(choice);
        }
        let quotes = plan.groups.iter().zip(specs).map(async |(group, choice)| {
            let choice = choice?;
            let spec = choice.as_ref().map_or(&group.spec, |choice| &choice.spec);
            let quote = self.provider.quote(spec, group.size()).await?;
            self.check_end(&quote, plan.lifetime)?;
            Ok((quote, choice))
        });
        let (mut quoted, mut failures) = (Vec::new(), Vec::new());
        for (group, quote) in plan.groups.iter().zip(join_all(quotes).await) {
            match quote {
                Ok(quote) => quoted.push(quote),
                Err(error) => {
                    failures.push(QuoteFailure { group: group.name.clone(), error: group.placed(error) });
                }
            }
        }
        if failures.is_empty() { Ok(quoted) } else { Err(Error::Quote { failures }) }
    }

    /// Whether machines may live as long as they are to.
    fn check_end(&self, quote: &Quote, lifetime: Duration) -> Result<(), ProviderError> {
        let now = self.started_at.unwrap_or_else(SystemTime::now);
        let Some(left) = quote.ends.map(|ends| ends.duration_since(now).unwrap_or_default()) else {
            return Ok(());
        };
        if left >= lifetime {
            return Ok(());
        }
        let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
        let message = format!(
            "the provider ends such machines in {left}, before their lifetime of {} is over",
            humantime::format_duration(lifetime)
        );
        let error = ProviderError::new(ProviderErrorKind::InvalidSpec, "lifetime", message).key("lifetime");
        Err(error.help("give a shorter `lifetime`, or let them be had elsewhere"))
    }

    /// Runs an experiment: launches the plan's machines, sets them all up, hands them to `body`, and tears
    /// everything down, whatever happens. Returns what `body` returns.
    ///
    /// If `body` or a set-up closure panics, the panic goes on after the teardown. `body` is dropped where it
    /// stands when the run is cancelled or its lifetime is over.
    ///
    /// # Errors
    ///
    /// With nothing launched: [`Error::Plan`], [`Error::Quote`], [`Error::Budget`], [`Error::Record`],
    /// [`Error::Untrusted`] or [`Error::Prepare`]. Of machines: [`Error::Launch`], [`Error::Connect`], [`Error::Unfit`],
    /// what set-up closures return, and [`Error::Lost`] or [`Error::Interrupted`] while they are set up. Then what `body`
    /// returns; [`Error::Cancelled`] and [`Error::LifetimeOver`]. Of several the first in time, in an [`Error::Several`].
    /// Whatever it was, it is the cause in an [`Error::Remains`] if something may have been left behind.
    ///
    /// # When the future is dropped
    ///
    /// The run is cancelled and torn down in the background. **Await [`shutdown`](Self::shutdown) before the runtime
    /// ends**, as after a time-out in `main`; or [`wait_idle`](Self::wait_idle) where the program goes on:
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tsunami_core::{Error, Plan, Tsunami};
    /// # async fn example(tsunami: Tsunami, plan: Plan) -> Result<(), Error> {
    /// let run = tsunami.run(plan, |cluster| async move { cluster.hosts()[0].run("./measure").await });
    /// let measured = tokio::time::timeout(Duration::from_secs(600), run).await;
    /// tsunami.shutdown().await?;
    /// println!("{}", measured.map_err(Error::other)??.stdout());
    /// # Ok(()) }
    /// ```
    ///
    /// What happens without is [said above](Self#before-the-runtime-ends).
    pub async fn run<T, F, Fut>(&self, plan: Plan, body: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(Cluster) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.run_as(self.next_run_id(), plan, body).await
    }

    /// [`run`](Self::run) under an id that the caller knows beforehand: short for `one_run().id(run)`.
    pub async fn run_as<T, F, Fut>(&self, run: RunId, plan: Plan, body: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(Cluster) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let cancel = self.cancellation();
        let _guard = cancel.clone().drop_guard();
        let engine = self.clone();
        let task =
            self.runs.tasks().spawn(async move { engine.launch(run, plan, cancel).await?.run(body).await });
        joined(task.await)
    }

    /// Launches and sets up the plan's machines and leaves them to the caller.
    ///
    /// ```
    /// # use tsunami_core::{Error, Plan, Tsunami};
    /// # async fn example(tsunami: &Tsunami, plan: Plan) -> Result<(), Error> {
    /// let run = tsunami.up(plan).await?;
    /// let measured = run.cluster().hosts()[0].run("./measure").await;
    /// run.down().await?;
    /// println!("{}", measured?.stdout());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run) has them, with everything torn down. If the future is dropped, that happens in the background.
    pub async fn up(&self, plan: Plan) -> Result<RunHandle, Error> {
        self.up_as(self.next_run_id(), plan).await
    }

    /// [`up`](Self::up) under an id that the caller knows beforehand: short for `one_run().id(run)`.
    pub async fn up_as(&self, run: RunId, plan: Plan) -> Result<RunHandle, Error> {
        let cancel = self.cancellation();
        let guard = cancel.clone().drop_guard();
        let engine = self.clone();
        let task = self.runs.tasks().spawn(async move {
            let runs = engine.runs.clone();
            let running = engine.launch(run, plan, cancel).await?;
            runs.hold(running.machines.run());
            Ok(running)
        });
        let running = joined(task.await)?;
        guard.disarm();
        Ok(running)
    }

    /// Lists machines that the provider knows of, by tag. May be dropped at any await.
    ///
    /// # Errors
    ///
    /// [`Error::Other`] with the [`ProviderError`](crate::ProviderError).
    pub async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, Error> {
        self.provider.list(filter).await.map_err(Error::other)
    }
}
