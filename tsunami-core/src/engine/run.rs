//! A run in this process, and the handle by which its machines are used, kept and torn down.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use futures_util::FutureExt;
use tokio::sync::OnceCell;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::future::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attach::Connections;
use super::deadline::RunDeadline;
use super::shutdown::Runs;
use super::teardown::{self, Assured};
use super::{Keep, Tsunami};
use crate::ErrorChain;
use crate::cluster::Cluster;
use crate::error::Error;
use crate::event::{EventKind, Events, GroupSize, cut};
use crate::machine::{MachineId, RunId, machine_name};
use crate::provider::{Leftover, Provider};
use crate::record::{RunEntry, RunLock, RunRecord};
use crate::session::{Connector, Session};
use crate::spread::Spreads;

/// A run in this process: all that its tasks share.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) id: RunId,
    pub(super) experiment: String,
    pub(super) groups: Vec<GroupSize>,
    pub(super) deadline: Arc<RunDeadline>,
    pub(super) directory: RunEntry,
    pub(super) authorized_key: String,
    pub(super) provider: Arc<dyn Provider>,
    pub(super) connector: Arc<dyn Connector>,
    pub(super) events: Events,
    pub(super) cancel: CancellationToken,
    /// Nobody wants to wait for another attempt at removing what is left.
    pub(super) stop_retrying: CancellationToken,
    /// Requests that create something. Never aborted: awaited in teardown.
    pub(super) creates: TaskTracker,
    /// How many of `creates` have no answer.
    pub(super) undecided: AtomicUsize,
    /// What they are known to have created, by which it is named if it may remain.
    launched: Mutex<BTreeSet<String>>,
    /// The runs of its engine.
    runs: Arc<Runs>,
    /// Whether its machines are nobody's any more: they are torn down, or left to themselves.
    released: AtomicBool,
    /// What its teardown left behind, once that is over.
    pub(super) torn_down: OnceCell<Vec<Leftover>>,
    sessions: Mutex<Vec<Arc<dyn Session>>>,
    pub(super) spreads: Spreads,
    pub(super) seed: u64,
    /// Says to other processes that somebody is in charge.
    lock: Mutex<Option<RunLock>>,
    /// Where it runs, for what is begun from elsewhere.
    runtime: tokio::runtime::Handle,
    pub(super) outlive_runtime: bool,
    pub(super) runtime_ended: AtomicBool,
}

impl Tsunami {
    /// Takes up a recorded run. `lock` is there where it is this process that is in charge of it.
    pub(super) fn open(
        &self,
        record: &RunRecord,
        directory: RunEntry,
        lock: Option<RunLock>,
        cancel: CancellationToken,
        authorized_key: String,
    ) -> Run {
        let started_at = self.started_at.unwrap_or_else(SystemTime::now);
        let events = Events::new(&self.observers, started_at, self.counts.clone().unwrap_or_default());
        Run {
            id: record.run.clone(),
            experiment: record.experiment.clone(),
            groups: record.groups.clone(),
            deadline: Arc::new(RunDeadline::new(directory.clone(), record.deadline)),
            directory,
            authorized_key,
            provider: self.provider.clone(),
            connector: self.connector.clone(),
            spreads: Spreads::new(record.groups.clone(), events.clone()),
            events,
            cancel,
            stop_retrying: CancellationToken::new(),
            creates: TaskTracker::new(),
            undecided: AtomicUsize::new(0),
            launched: Mutex::default(),
            runs: self.runs.clone(),
            released: AtomicBool::new(false),
            torn_down: OnceCell::new(),
            sessions: Mutex::default(),
            seed: self.seed.unwrap_or_default(),
            lock: Mutex::new(lock),
            runtime: tokio::runtime::Handle::current(),
            outlive_runtime: self.outlive_runtime,
            runtime_ended: AtomicBool::new(false),
        }
    }
}

impl Run {
    /// Begins something that outlives a dropped handle.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        doing: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.runs.tasks().spawn_on(doing, &self.runtime)
    }

    /// Begins something that ends with the run.
    pub(super) fn spawn_until_cancelled(
        &self,
        doing: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<Option<()>> {
        self.runs.tasks().spawn(doing.with_cancellation_token_owned(self.cancel.clone()))
    }

    /// Whether the caller is the one to decide about the machines: nobody was before.
    fn release(&self) -> bool {
        !self.released.swap(true, Ordering::Relaxed)
    }

    /// Ends it in the background, whoever holds its machines: those that were launched here are torn down.
    pub(super) fn let_go(self: &Arc<Self>) {
        if !self.release() {
            return;
        }
        let run = self.clone();
        if self.is_ours() {
            drop(self.spawn(Assured::new(&run, "shut down").finish()));
        } else {
            drop(self.spawn(async move { run.disconnect().await }));
        }
    }

    /// Whether this process is in charge of it.
    fn is_ours(&self) -> bool {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Notes what its teardown left behind.
    pub(super) fn note_remains(&self, leftovers: &[Leftover]) {
        self.runs.note(&self.id, leftovers);
    }

    /// Leaves the machines as they are.
    pub(super) async fn disconnect(&self) {
        self.cancel.cancel();
        self.spreads.end().await;
        self.close_sessions().await;
        self.finish().await;
        drop(self.unlocked());
    }

    /// Takes the lock out of it: this process is in charge no more once that is dropped.
    pub(super) fn unlocked(&self) -> Option<RunLock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits until the lifetime is over.
    pub(super) async fn lifetime_over(&self) -> Error {
        self.deadline.over(&self.events).await
    }

    /// Runs user code on the machines until it ends, is cancelled, or the lifetime is over.
    pub(super) async fn experiment<T, F, Fut>(&self, cluster: Cluster, body: F) -> BodyOutcome<T>
    where
        F: FnOnce(Cluster) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        // The closure itself may panic before it has made a future.
        let body = AssertUnwindSafe(async move { body(cluster).await }).catch_unwind();
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Error::Cancelled.into(),
            ended = body => match ended {
                Ok(result) => BodyOutcome::Result(result),
                Err(panic) => BodyOutcome::Panic(panic),
            },
            over = self.lifetime_over() => over.into(),
        }
    }

    pub(super) fn note_launched(&self, group: &str, ids: &[MachineId]) {
        let names =
            (0..).zip(ids).map(|(index, id)| format!("machine {id} ({})", machine_name(group, index)));
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
    }

    pub(super) fn launched(&self) -> Vec<String> {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    pub(super) fn sessions(&self) -> MutexGuard<'_, Vec<Arc<dyn Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn emit_started(&self, experiment: String) {
        self.events.emit(EventKind::RunStarted {
            run: self.id.clone(),
            experiment,
            deadline: cut(self.deadline.read().at),
            groups: self.groups.clone(),
        });
    }

    pub(super) fn emit_finished<T>(&self, result: &Result<T, Error>) {
        let error = result.as_ref().err().map(|error| ErrorChain(error).to_string());
        let error = error.or_else(|| self.events.failure().cloned());
        self.events.emit(EventKind::RunFinished { ok: error.is_none(), error });
    }
}

/// How user code came to its end: with a result, or with a panic that goes on after the teardown.
pub(super) enum BodyOutcome<T> {
    Result(Result<T, Error>),
    Panic(Box<dyn Any + Send>),
}

impl<T> From<Error> for BodyOutcome<T> {
    fn from(error: Error) -> Self {
        Self::Result(Err(error))
    }
}

/// The machines of a run that this process launched, or is launching. Dropping it tears them down.
#[derive(Debug)]
pub(super) struct OwnedMachines {
    run: Arc<Run>,
    keep: Keep,
}

impl OwnedMachines {
    pub(super) fn new(run: Arc<Run>, keep: Keep) -> Self {
        Self { run, keep }
    }

    pub(super) fn run(&self) -> &Arc<Run> {
        &self.run
    }

    /// Tears down or keeps, now that user code has ended.
    pub(super) async fn end<T>(self, outcome: BodyOutcome<T>) -> Result<T, Error> {
        let result = match outcome {
            BodyOutcome::Result(result) if self.is_kept_after(&result) => result,
            outcome => return self.tear_down(outcome).await,
        };
        match self.record_kept() {
            Ok(record) => {
                self.run.emit_finished(&result);
                self.leave(&record).await;
                result
            }
            Err(error) => {
                tracing::error!(%error, "the machines are not kept");
                self.tear_down(BodyOutcome::Result(result.and(Err(error)))).await
            }
        }
    }

    fn is_kept_after<T>(&self, result: &Result<T, Error>) -> bool {
        let over = |error: &Error| match error {
            Error::Several(failures) => {
                failures.others.iter().any(|other| matches!(other, Error::LifetimeOver(_)))
            }
            error => matches!(error, Error::Cancelled | Error::LifetimeOver(_)),
        };
        let is_over = self.run.cancel.is_cancelled() || result.as_ref().is_err_and(over);
        !is_over && (self.keep == Keep::Always || self.keep == Keep::OnFailure && result.is_err())
    }

    /// Machines that nobody would find again are not kept, nor are those that are being torn down.
    fn record_kept(&self) -> Result<RunRecord, Error> {
        if !self.run.release() {
            return Err(Error::Cancelled);
        }
        if self.run.directory.is_ending() {
            return Err(Error::other("another process tears the run down"));
        }
        let record = RunRecord { kept: true, ..self.run.directory.record()? };
        self.run.directory.write_record(&record).map(|()| record)
    }

    async fn leave(self, record: &RunRecord) {
        self.run.events.emit(EventKind::Kept { until: cut(record.deadline.at) });
        Connections::new(self.run.clone()).close().await;
    }

    /// Tears down after user code has ended, and passes on what it ended with.
    async fn tear_down<T>(self, outcome: BodyOutcome<T>) -> Result<T, Error> {
        let reason = match &outcome {
            BodyOutcome::Result(Ok(_)) => "done".to_owned(),
            BodyOutcome::Result(Err(error)) => ErrorChain(error).to_string(),
            BodyOutcome::Panic(_) => "the program panicked".to_owned(),
        };
        self.run.release();
        // In a task of its own, so that it goes on if this is dropped.
        let leftovers = match self.run.spawn(Assured::new(&self.run, &reason).finish()).await {
            Ok(leftovers) => leftovers,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(error) => teardown::unknown(&error, &self.run.launched()), // The runtime is shutting down.
            },
        };
        let result = match outcome {
            BodyOutcome::Result(result) => ended(self.run.id.clone(), result, leftovers),
            BodyOutcome::Panic(panic) => resume_unwind(panic),
        };
        self.run.emit_finished(&result);
        result
    }
}

impl Drop for OwnedMachines {
    fn drop(&mut self) {
        if self.run.release() {
            drop(self.run.spawn(Assured::new(&self.run, "dropped").finish()));
        }
    }
}

/// Machines that are up, and this process's own.
///
/// # When it is dropped
///
/// Wherever that is, the machines are torn down in the background, on the runtime that the handle was made on.
/// [`Tsunami::shutdown`] waits for that, and should be awaited before the runtime ends: see
/// [there](Tsunami#before-the-runtime-ends). The same holds if a future of its methods is dropped. It tears down what is
/// in a handle yet, too.
#[derive(Debug)]
pub struct RunHandle {
    pub(super) machines: OwnedMachines,
    pub(super) cluster: Cluster,
}

impl RunHandle {
    /// The machines.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Runs `body` on the machines, then tears them down or keeps them, as [`Tsunami::keep`] says. For the rest it
    /// is like [`Tsunami::run`].
    ///
    /// # Errors
    ///
    /// What `body` returns, [`Error::Cancelled`], [`Error::LifetimeOver`], [`Error::Remains`], and why machines could not be
    /// kept that were to be, which are torn down then.
    pub async fn run<T, F, Fut>(self, body: F) -> Result<T, Error>
    where
        F: FnOnce(Cluster) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let outcome = self.machines.run.experiment(self.cluster, body).await;
        self.machines.end(outcome).await
    }

    /// Tears everything down.
    ///
    /// # Errors
    ///
    /// [`Error::Remains`].
    pub async fn down(self) -> Result<(), Error> {
        self.machines.tear_down(BodyOutcome::Result(Ok(()))).await
    }

    /// Leaves the machines up, until their lifetime is over or somebody tears them down, and disconnects.
    ///
    /// # Errors
    ///
    /// Why they can't be kept, above all that it can't be recorded, or that somebody tears them down. They are torn down
    /// then.
    pub async fn keep(self) -> Result<(), Error> {
        match self.machines.record_kept() {
            Ok(record) => self.machines.leave(&record).await,
            Err(error) => return self.machines.tear_down(error.into()).await,
        }
        Ok(())
    }
}

/// What a run ends with, given what it left behind.
pub(super) fn ended<T>(run: RunId, result: Result<T, Error>, leftovers: Vec<Leftover>) -> Result<T, Error> {
    if leftovers.is_empty() {
        return result;
    }
    Err(Error::Remains { run, leftovers, cause: result.err().map(Box::new) })
}

/// The result of an engine task; its panic goes on here.
pub(super) fn joined<T>(joined: Result<Result<T, Error>, JoinError>) -> Result<T, Error> {
    match joined.map_err(JoinError::try_into_panic) {
        Ok(result) => result,
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime is shutting down.
        Err(Err(_)) => Err(Error::Cancelled),
    }
}
