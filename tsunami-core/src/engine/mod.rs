//! The engine: launch, watch, connect, set up, hand over, tear down.

mod foreign;
mod launch;
mod teardown;
mod watch;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::task::JoinError;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::{Cluster, Host};
use crate::error::{Error, QuoteFailure, in_time};
use crate::event::{EventKind, Events, GroupSize, Guarded as GuardedObserver, Observer, seconds_since_epoch};
use crate::limits::DURATION_LIMIT;
use crate::machine::{Deadline, Machine, MachineId, RunId, machine_name};
use crate::outcome::gravest;
use crate::plan::Plan;
use crate::provider::{Leftover, Provider, ProviderError, ProviderErrorKind, Quote, RunFilter};
use crate::record::{RunDirectory, RunLock, RunRecord, State};
use crate::session::{Connector, Session};

use foreign::Guarded;
pub(crate) use launch::Mender;
use teardown::{Assured, Ending};

/// How long a connector may take to make ready for a teardown, which goes on without it, or to let go of what it
/// could not prepare.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the provider may take to move the end of a run, or of a machine: longer than its own attempts.
const EXTEND_TIMEOUT: Duration = Duration::from_secs(180);

/// How often the record is asked whether somebody has moved the end of the lifetime.
const DEADLINE_LOOK_PAUSE: Duration = Duration::from_secs(60);

/// Runs experiments: the place where a provider and a connector meet.
///
/// ```
/// # use std::sync::Arc;
/// # use tsunami_core::testing::FakeCloud;
/// # use tsunami_core::{Error, Group, MachineSpec, Plan, State, Tsunami};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Error> {
/// # let cloud = FakeCloud::new(1);
/// # let (provider, connector) = (cloud.clone(), cloud.clone());
/// # let state = State::at(tempfile::tempdir()?.path().join("runs"));
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
#[derive(Clone, Debug)]
pub struct Tsunami {
    provider: Arc<dyn Provider>,
    connector: Arc<dyn Connector>,
    observers: Vec<GuardedObserver>,
    state: Option<State>,
    results: Option<std::path::PathBuf>,
    cancel: CancellationToken,
    keep: Keep,
    started_at: Option<SystemTime>,
    seed: Option<u64>,
    outlive_runtime: bool,
    tasks: TaskTracker,
}

/// When machines outlive their run, until their lifetime is over or somebody tears them down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
            keep: Keep::Never,
            started_at: None,
            seed: None,
            outlive_runtime: true,
            tasks: TaskTracker::new(),
        }
    }

    /// Adds an observer of the runs' events and output.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(GuardedObserver::new(observer));
        self
    }

    /// Sets where runs are recorded. Default: [`State::standard`].
    pub fn state(mut self, state: State) -> Self {
        self.state = Some(state);
        self
    }

    /// Notes in the record where the results go. The engine itself writes none.
    pub fn results(mut self, directory: impl Into<std::path::PathBuf>) -> Self {
        self.results = Some(directory.into());
        self
    }

    /// Ends runs when `token` fires: what is under way stops and everything is torn down.
    pub fn cancel_on(mut self, token: CancellationToken) -> Self {
        self.cancel = token;
        self
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

    /// Asks for a run id, as the next run would get it.
    pub fn next_run_id(&self) -> RunId {
        let seed = self.seed.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()));
        RunId::generate(self.started_at.unwrap_or_else(SystemTime::now), seed)
    }

    /// Validates a plan and asks the provider about every group. Creates nothing.
    pub async fn quote(&self, plan: &Plan) -> Result<Vec<Quote>, Error> {
        plan.validate()?;
        let quotes = plan.groups.iter().map(|group| self.provider.quote(&group.spec, group.size()));
        let (mut quoted, mut failures) = (Vec::new(), Vec::new());
        for (group, quote) in plan.groups.iter().zip(join_all(quotes).await) {
            match quote {
                Ok(quote) => quoted.push(quote),
                Err(error) => failures.push(QuoteFailure { group: group.name.clone(), error }),
            }
        }
        if failures.is_empty() { Ok(quoted) } else { Err(Error::Quote { failures }) }
    }

    /// Runs an experiment: launches the plan's machines, sets them all up, hands them to `body`, and tears
    /// everything down, whatever happens. Returns what `body` returns.
    ///
    /// If `body` or a set-up closure panics, the panic goes on after the teardown. `body` is dropped where it
    /// stands when the run is cancelled or its lifetime is over.
    ///
    /// # When the future is dropped
    ///
    /// The run is cancelled and torn down in the background. **Await [`idle`](Self::idle) before the runtime
    /// ends**, as after a time-out in `main`:
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tsunami_core::{Error, Plan, Tsunami};
    /// # async fn example(tsunami: Tsunami, plan: Plan) -> Result<(), Error> {
    /// let run = tsunami.run(plan, |cluster| async move { cluster.hosts()[0].run("./measure").await });
    /// let measured = tokio::time::timeout(Duration::from_secs(600), run).await;
    /// tsunami.idle().await;
    /// println!("{}", measured.map_err(Error::other)??.stdout());
    /// # Ok(()) }
    /// ```
    ///
    /// A runtime that ends before that waits for the teardown, which is finished on another one; what was being
    /// asked for by then is named as what may remain. See [`outlive_runtime`](Self::outlive_runtime).
    pub async fn run<T, F, Fut>(&self, plan: Plan, body: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(Cluster) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.run_as(self.next_run_id(), plan, body).await
    }

    /// [`run`](Self::run) under an id that the caller knows beforehand.
    pub async fn run_as<T, F, Fut>(&self, run: RunId, plan: Plan, body: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(Cluster) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let cancel = self.cancel.child_token();
        let _guard = cancel.clone().drop_guard();
        let engine = self.clone();
        let task = self.tasks.spawn(async move { engine.launch(run, plan, cancel).await?.run(body).await });
        joined(task.await)
    }

    /// Launches and sets up the plan's machines and leaves them to the caller.
    ///
    /// If anything fails, or the future is dropped, everything is torn down.
    pub async fn up(&self, plan: Plan) -> Result<Running, Error> {
        self.up_as(self.next_run_id(), plan).await
    }

    /// [`up`](Self::up) under an id that the caller knows beforehand.
    pub async fn up_as(&self, run: RunId, plan: Plan) -> Result<Running, Error> {
        let cancel = self.cancel.child_token();
        let guard = cancel.clone().drop_guard();
        let engine = self.clone();
        let task = self.tasks.spawn(async move { engine.launch(run, plan, cancel).await });
        let running = joined(task.await)?;
        guard.disarm();
        Ok(running)
    }

    /// Connects to those machines of a recorded run that `wanted` accepts. They stay up afterwards. Commands on a
    /// machine that is interrupted or gone end as they do in the process that launched it; nothing is replaced.
    pub async fn attach(
        &self,
        directory: &RunDirectory,
        wanted: impl Fn(&Machine) -> bool,
    ) -> Result<Running, Error> {
        let record = directory.record()?;
        let run = self.open(record, directory.clone(), None, self.cancel.child_token(), String::new());
        let run = Arc::new(run);
        // From here on whatever happens lets go of what was prepared and connected.
        let mut running =
            Running { run: run.clone(), cluster: None, keep: self.keep, charge: Charge::Attached };
        let connecting = async {
            run.connector.prepare(&run.id, directory.path()).await.map_err(Error::Prepare)?;
            run.reconnect(wanted).await
        };
        match run.cancel.run_until_cancelled(connecting).await.unwrap_or(Err(Error::Cancelled)) {
            Ok(hosts) => {
                running.run.watch_over(&hosts);
                running.cluster =
                    Some(Cluster::new(running.run.id.clone(), hosts, running.run.events.clone(), None));
                Ok(running)
            }
            Err(error) => {
                running.detach().await;
                Err(error)
            }
        }
    }

    /// Tears a recorded run down. Idempotent, and safe while another process does the same or still runs it. If
    /// the future is dropped, it goes on in the background; [`idle`](Self::idle) waits for that.
    ///
    /// The token of [`cancel_on`](Self::cancel_on) does not stop it, but ends its patience: what cannot be
    /// removed by then is not tried again.
    pub async fn down(&self, directory: &RunDirectory) -> Result<(), Error> {
        let record = directory.record()?;
        let mut run = self.open(record, directory.clone(), None, CancellationToken::new(), String::new());
        run.impatient = self.cancel.clone();
        let run = Arc::new(run);
        let (connector, assured) = (self.connector.clone(), Assured::new(&run, "asked to"));
        let task = self.tasks.spawn(async move {
            // Only launches need the key: a disk without room for it keeps nothing from being ended.
            let prepared = connector.prepare(&run.id, run.directory.path());
            let prepared = timeout(PREPARE_TIMEOUT, prepared).await;
            tracing::debug!(?prepared, "for a teardown");
            Ok(assured.finish().await)
        });
        ended(directory.id(), Ok(()), joined(task.await)?)
    }

    /// Tears down a run of which nothing is known but its id: what the provider finds by tag. For runs that were
    /// recorded elsewhere; see [`down`](Self::down) for those that are known here.
    pub async fn collect(&self, run: &RunId) -> Result<(), Error> {
        let events = Events::new(&self.observers, self.started_at.unwrap_or_else(SystemTime::now));
        let provider = &self.provider;
        let ending = Ending { provider, run, events: &events, impatient: &self.cancel, launched: Vec::new() };
        let leftovers = ending.until_gone().await;
        ended(run.clone(), Ok(()), leftovers)
    }

    /// Moves the end of a recorded run's machines to `until`: on the machines first, then where the provider
    /// keeps it, then in the record. A controller that is waiting for the end learns of it. If some of it fails,
    /// each machine ends at the earlier or the later of the two, and no later; it can be repeated.
    ///
    /// Nothing is moved if the lifetime would be longer than [`DURATION_LIMIT`].
    pub async fn extend(&self, directory: &RunDirectory, until: SystemTime) -> Result<(), Error> {
        let lifetime = until.duration_since(directory.record()?.created).unwrap_or_default();
        if lifetime > DURATION_LIMIT {
            return Err(Error::LifetimeTooLong { lifetime, limit: DURATION_LIMIT });
        }
        let running = self.attach(directory, |_| true).await?;
        let moved = running.run.extend(running.cluster().hosts(), until).await;
        running.detach().await;
        moved
    }

    /// Lists machines that the provider knows of, by tag.
    pub async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, Error> {
        self.provider.list(filter).await.map_err(Error::other)
    }

    /// Waits until every run and teardown that was begun here is over, also those whose future was dropped.
    pub async fn idle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }

    /// Records a run and brings its machines up; tears them down if that fails.
    async fn launch(self, run: RunId, plan: Plan, cancel: CancellationToken) -> Result<Running, Error> {
        let quotes = cancel.run_until_cancelled(self.quote(&plan)).await.ok_or(Error::Cancelled)??;
        let most = plan.most(&quotes);
        if let Some(budget) = plan.budget
            && most.is_none_or(|most| most > budget)
        {
            return Err(Error::Budget { budget, most });
        }
        let created = self.started_at.unwrap_or_else(SystemTime::now);
        let record = RunRecord {
            run,
            experiment: plan.name.clone(),
            provider: self.provider.name(),
            settings: self.provider.settings(),
            created,
            deadline: Deadline { at: created + plan.lifetime, lifetime: plan.lifetime },
            groups: plan
                .groups
                .iter()
                .map(|group| GroupSize { name: group.name.clone(), count: group.count })
                .collect(),
            results: self.results.clone(),
            kept: false,
            budget: plan.budget,
            most,
        };
        let state = self.state.clone().map_or_else(State::standard, Ok)?;
        let (directory, lock) = state.create(&record)?;
        let prepared =
            cancel.run_until_cancelled(self.connector.prepare(&record.run, directory.path())).await;
        let run = match prepared.map_or(Err(Error::Cancelled), |prepared| prepared.map_err(Error::Prepare)) {
            Ok(key) => Arc::new(self.open(record, directory, Some(lock), cancel, key)),
            Err(error) => {
                let finishing = self.connector.finish(&record.run);
                let finished = timeout(PREPARE_TIMEOUT, finishing).await;
                tracing::debug!(?finished, "a run that was not prepared");
                directory.remove()?;
                return Err(error);
            }
        };
        run.events.emit(EventKind::RunStarted {
            run: run.id.clone(),
            experiment: plan.name.clone(),
            deadline: seconds_since_epoch(run.record.deadline.at),
            groups: run.record.groups.clone(),
        });
        let mut running = Running { run, cluster: None, keep: self.keep, charge: Charge::Ours };
        match running.run.bring_up(plan).await {
            Ok(cluster) => {
                running.cluster = Some(cluster);
                Ok(running)
            }
            Err(ended) => running.end(ended).await,
        }
    }

    fn open(
        &self,
        record: RunRecord,
        directory: RunDirectory,
        lock: Option<RunLock>,
        cancel: CancellationToken,
        authorized_key: String,
    ) -> Run {
        let started_at = self.started_at.unwrap_or_else(SystemTime::now);
        Run {
            id: record.run.clone(),
            events: Events::new(&self.observers, started_at),
            provider: self.provider.clone(),
            connector: self.connector.clone(),
            creates: TaskTracker::new(),
            launched: Mutex::default(),
            tasks: self.tasks.clone(),
            sessions: Mutex::default(),
            seed: self.seed.unwrap_or_default(),
            authorized_key,
            record,
            directory,
            cancel,
            impatient: CancellationToken::new(),
            lock: Mutex::new(lock),
            runtime: tokio::runtime::Handle::current(),
            outlive_runtime: self.outlive_runtime,
            runtime_ended: AtomicBool::new(false),
            undecided: AtomicUsize::new(0),
        }
    }
}

/// A run in this process: all that its tasks share.
#[derive(Debug)]
struct Run {
    id: RunId,
    record: RunRecord,
    directory: RunDirectory,
    authorized_key: String,
    provider: Arc<dyn Provider>,
    connector: Arc<dyn Connector>,
    events: Events,
    cancel: CancellationToken,
    /// Nobody wants to wait for another attempt at removing what is left.
    impatient: CancellationToken,
    /// Requests that create something. Never aborted: awaited in teardown.
    creates: TaskTracker,
    /// What they are known to have created, by which it is named if it may remain.
    launched: Mutex<BTreeSet<String>>,
    /// Where work goes that outlives a dropped handle.
    tasks: TaskTracker,
    sessions: Mutex<Vec<Arc<dyn Session>>>,
    seed: u64,
    /// Says to other processes that somebody is in charge.
    lock: Mutex<Option<RunLock>>,
    /// Where it runs, for what is begun from elsewhere.
    runtime: tokio::runtime::Handle,
    outlive_runtime: bool,
    runtime_ended: AtomicBool,
    /// How many of `creates` have no answer.
    undecided: AtomicUsize,
}

impl Run {
    async fn extend(&self, hosts: &[Host], until: SystemTime) -> Result<(), Error> {
        let record = self.directory.record()?;
        let lifetime = until.duration_since(record.created).unwrap_or_default();
        let longer = lifetime.as_secs_f64() / record.deadline.lifetime.as_secs_f64();
        let most = record.most.map(|most| most * longer);
        if let Some(budget) = record.budget
            && most.is_none_or(|most| most > budget)
        {
            return Err(Error::Budget { budget, most });
        }
        let on_machines = hosts.iter().map(async |host| {
            let moving = self.provider.extend_on(host.machine(), host.session(), until);
            let moved = timeout(EXTEND_TIMEOUT, moving).await.unwrap_or_else(not_extended);
            moved.map_err(|error| host.stage("extend").error(error))
        });
        let failures = in_time(on_machines).await.into_iter().filter_map(Result::err).collect();
        gravest(failures).map_or(Ok(()), Err)?;
        // In a task of its own, as it is never dropped.
        let (provider, run) = (self.provider.clone(), self.id.clone());
        let moving = self.spawn(async move { provider.extend(&run, until).await });
        match timeout(EXTEND_TIMEOUT, moving).await {
            Ok(moved) => moved.map_err(Error::other)?.map_err(Error::other)?,
            Err(late) => not_extended(late).map_err(Error::other)?,
        }
        let deadline = Deadline { at: until, lifetime };
        self.directory.write_record(&RunRecord { deadline, most, ..record })
    }

    /// Begins something that outlives a dropped handle.
    fn spawn<T: Send + 'static>(
        &self,
        doing: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.tasks.spawn_on(doing, &self.runtime)
    }

    /// Leaves the machines as they are.
    async fn disconnect(&self) {
        self.cancel.cancel();
        self.close_sessions().await;
        self.finish().await;
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits until the lifetime is over, also if somebody has moved its end, or moves it meanwhile.
    async fn lifetime_over(&self) -> Error {
        let mut deadline = self.record.deadline;
        loop {
            // What can't be read has not moved.
            deadline = self.directory.record().map_or(deadline, |record| record.deadline);
            let left = deadline.at.duration_since(self.events.now()).unwrap_or_default();
            if left.is_zero() {
                return Error::LifetimeOver(deadline.lifetime);
            }
            tokio::time::sleep(left.min(DEADLINE_LOOK_PAUSE)).await;
        }
    }

    fn note_launched(&self, group: &str, ids: &[MachineId]) {
        let names =
            (0..).zip(ids).map(|(index, id)| format!("machine {id} ({})", machine_name(group, index)));
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
    }

    fn launched(&self) -> Vec<String> {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, Vec<Arc<dyn Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How user code came to its end: with a result, or with a panic that goes on after the teardown.
enum Ended<T> {
    Result(Result<T, Error>),
    Panic(Box<dyn std::any::Any + Send>),
}

impl<T> From<Error> for Ended<T> {
    fn from(error: Error) -> Self {
        Self::Result(Err(error))
    }
}

/// What a handle owes to its machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Charge {
    /// They are its own to tear down.
    Ours,
    /// Somebody else's to tear down, or left to themselves: it only disconnects.
    Attached,
    /// Nothing any more.
    None,
}

/// Machines that are up.
///
/// Dropping it, wherever that is, tears them down in the background, on the runtime that it was made on; it
/// disconnects from those that it came to by [`Tsunami::attach`]. [`Tsunami::idle`] waits for that, and should be
/// awaited before the runtime ends: see [`Tsunami::run`].
#[derive(Debug)]
pub struct Running {
    run: Arc<Run>,
    cluster: Option<Cluster>,
    keep: Keep,
    charge: Charge,
}

impl Running {
    /// The machines.
    pub fn cluster(&self) -> &Cluster {
        self.cluster.as_ref().expect("a handle is given out only when its machines are up")
    }

    /// Runs `body` on the machines, then tears them down or keeps them, as [`Tsunami::keep`] says; machines
    /// that were attached to are left as they are. For the rest it is like [`Tsunami::run`].
    pub async fn run<T, F, Fut>(self, body: F) -> Result<T, Error>
    where
        F: FnOnce(Cluster) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let ended = self.experiment(body).await;
        self.end(ended).await
    }

    /// Tears everything down.
    pub async fn down(self) -> Result<(), Error> {
        self.tear_down(Ended::Result(Ok(()))).await
    }

    /// Leaves the machines up, until their lifetime is over or somebody tears them down, and disconnects.
    pub async fn keep(self) -> Result<(), Error> {
        match self.record_kept() {
            Ok(record) => self.leave(&record).await,
            Err(error) => return self.tear_down(error.into()).await,
        }
        Ok(())
    }

    /// Machines that nobody would find again are not kept.
    fn record_kept(&self) -> Result<RunRecord, Error> {
        let record = RunRecord { kept: true, ..self.run.directory.record()? };
        self.run.directory.write_record(&record).map(|()| record)
    }

    async fn leave(self, record: &RunRecord) {
        self.run.events.emit(EventKind::Kept { until: seconds_since_epoch(record.deadline.at) });
        self.detach().await;
    }

    /// Disconnects from machines that were attached to, and leaves them as they are.
    pub async fn detach(mut self) {
        self.charge = Charge::Attached;
        self.run.disconnect().await;
        self.charge = Charge::None;
    }

    /// Runs user code on the machines until it ends, is cancelled, or the lifetime is over.
    async fn experiment<T, F, Fut>(&self, body: F) -> Ended<T>
    where
        F: FnOnce(Cluster) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let cluster = self.cluster().clone();
        // The closure itself may panic before it has made a future.
        let body = AssertUnwindSafe(async move { body(cluster).await }).catch_unwind();
        tokio::select! {
            biased;
            () = self.run.cancel.cancelled() => Error::Cancelled.into(),
            ended = body => match ended {
                Ok(result) => Ended::Result(result),
                Err(panic) => Ended::Panic(panic),
            },
            over = self.run.lifetime_over() => over.into(),
        }
    }

    /// Tears down, keeps, or disconnects, now that user code has ended.
    async fn end<T>(self, how: Ended<T>) -> Result<T, Error> {
        let over = |error: &Error| match error {
            Error::Several(failures) => {
                failures.others.iter().any(|other| matches!(other, Error::LifetimeOver(_)))
            }
            error => matches!(error, Error::Cancelled | Error::LifetimeOver(_)),
        };
        let keep = match &how {
            Ended::Result(result) => {
                let over = self.run.cancel.is_cancelled() || result.as_ref().is_err_and(over);
                !over && (self.keep == Keep::Always || self.keep == Keep::OnFailure && result.is_err())
            }
            Ended::Panic(_) => false,
        };
        match how {
            how if !keep && self.charge == Charge::Ours => self.tear_down(how).await,
            Ended::Panic(panic) => {
                self.detach().await;
                resume_unwind(panic)
            }
            Ended::Result(result) if self.charge == Charge::Ours => match self.record_kept() {
                Ok(record) => {
                    self.finished(&result);
                    self.leave(&record).await;
                    result
                }
                Err(error) => {
                    tracing::error!(%error, "the machines are not kept");
                    self.tear_down(Ended::Result(result.and(Err(error)))).await
                }
            },
            Ended::Result(result) => {
                self.finished(&result);
                self.detach().await;
                result
            }
        }
    }

    /// Tears down after user code has ended, and passes on what it ended with.
    async fn tear_down<T>(mut self, how: Ended<T>) -> Result<T, Error> {
        let reason = match &how {
            Ended::Result(Ok(_)) => "done".to_owned(),
            Ended::Result(Err(error)) => error.to_string(),
            Ended::Panic(_) => "the program panicked".to_owned(),
        };
        self.charge = Charge::None;
        // In a task of its own, so that it goes on if this is dropped.
        let leftovers = match self.run.spawn(Assured::new(&self.run, &reason).finish()).await {
            Ok(leftovers) => leftovers,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(error) => teardown::unknown(&error, &self.run.launched()), // The runtime is shutting down.
            },
        };
        let result = match how {
            Ended::Result(result) => ended(self.run.id.clone(), result, leftovers),
            Ended::Panic(panic) => resume_unwind(panic),
        };
        self.finished(&result);
        result
    }

    fn finished<T>(&self, result: &Result<T, Error>) {
        let error = result.as_ref().err().map(|error| crate::ErrorChain(error).to_string());
        self.run.events.emit(EventKind::RunFinished { ok: error.is_none(), error });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        match self.charge {
            Charge::None => {}
            Charge::Ours => drop(self.run.spawn(Assured::new(&self.run, "dropped").finish())),
            Charge::Attached => {
                self.run.cancel.cancel();
                let run = self.run.clone();
                drop(self.run.spawn(async move { run.disconnect().await }));
            }
        }
    }
}

/// What moving an end comes to that had no answer in its time.
fn not_extended(_: Elapsed) -> Result<(), ProviderError> {
    let after = format!("no answer after {}", humantime::format_duration(EXTEND_TIMEOUT));
    Err(ProviderError::new(ProviderErrorKind::Unavailable, "extend", after))
}

/// What a run ends with, given what it left behind.
fn ended<T>(run: RunId, result: Result<T, Error>, leftovers: Vec<Leftover>) -> Result<T, Error> {
    if leftovers.is_empty() {
        return result;
    }
    Err(Error::Remains { run, leftovers, cause: result.err().map(Box::new) })
}

/// The result of an engine task; its panic goes on here.
fn joined<T>(joined: Result<Result<T, Error>, JoinError>) -> Result<T, Error> {
    match joined.map_err(JoinError::try_into_panic) {
        Ok(result) => result,
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime is shutting down.
        Err(Err(_)) => Err(Error::Cancelled),
    }
}
