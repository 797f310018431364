//! The end of an engine: of all runs that it and its clones have begun.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::future::select_all;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Tsunami;
use super::run::Run;
use crate::error::Error;
use crate::machine::RunId;
use crate::outcome::gravest;
use crate::provider::Leftover;

/// What an engine and its clones have begun.
#[derive(Debug, Default)]
pub(super) struct Runs {
    tasks: TaskTracker,
    shut_down: CancellationToken,
    /// Those whose machines are in the hands of the program, which may hold them as long as it likes.
    held: Mutex<Vec<Weak<Run>>>,
    /// What teardowns could not remove.
    remains: Mutex<BTreeMap<RunId, Vec<Leftover>>>,
}

impl Runs {
    /// Where work goes that outlives a dropped future.
    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Fires when nothing is to go on any more.
    pub(super) fn shut_down(&self) -> &CancellationToken {
        &self.shut_down
    }

    /// Remembers a run that ends only when the program says so, or the engine does.
    pub(super) fn hold(&self, run: &Arc<Run>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|run| run.strong_count() > 0);
        held.push(Arc::downgrade(run));
        drop(held);
        if self.shut_down.is_cancelled() {
            run.let_go();
        }
    }

    /// Notes what the last teardown of a run has left.
    pub(super) fn note(&self, run: &RunId, leftovers: &[Leftover]) {
        let mut remains = self.remains.lock().unwrap_or_else(PoisonError::into_inner);
        if leftovers.is_empty() {
            remains.remove(run);
        } else {
            remains.insert(run.clone(), leftovers.to_owned());
        }
    }
}

impl Tsunami {
    /// Ends all that was begun by this engine and its clones: cancels every run, also those that are
    /// [up](Self::up) and in somebody's hands, lets go of machines that it is [attached](Self::attach) to, and waits until
    /// everything is torn down. What was kept, or handed over by [`RunHandle::keep`](crate::RunHandle::keep), stays up.
    ///
    /// To be awaited before the runtime ends: see [above](Self#before-the-runtime-ends). It takes as long as the slowest
    /// teardown: seconds as a rule, several minutes where a provider does not answer. If the future is dropped, all goes on in the background,
    /// and it can be called again. Whatever is begun afterwards ends with [`Error::Cancelled`], except for
    /// what removes ([`down`](Self::down), [`terminate_by_id`](Self::terminate_by_id)) or only asks.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use std::time::Duration;
    /// # use tsunami_core::testing::FakeCloud;
    /// # use tsunami_core::{Error, Group, MachineSpec, Plan, RunStore, Tsunami};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Error> {
    /// # let (cloud, directory) = (Arc::new(FakeCloud::new(1)), tempfile::tempdir()?);
    /// # let tsunami = Tsunami::new(cloud.clone(), cloud.clone()).state(RunStore::at(directory.path()));
    /// # let plan = Plan::new("hello").group(Group::new("node", MachineSpec::default()));
    /// let run = tsunami.run(plan, |cluster| async move { cluster.hosts()[0].run("sleep 1000").await });
    /// assert!(tokio::time::timeout(Duration::from_secs(60), run).await.is_err());
    /// assert_eq!(cloud.machines(), ["node-0"]);
    /// tsunami.shutdown().await?;
    /// assert!(cloud.is_empty());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Remains`] for what may remain of any run of this engine, whoever has heard of it before; for several runs in
    /// an [`Error::Several`].
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.runs.shut_down.cancel();
        let held = std::mem::take(&mut *self.runs.held.lock().unwrap_or_else(PoisonError::into_inner));
        held.iter().filter_map(Weak::upgrade).for_each(|run| run.let_go());
        self.wait_idle().await;
        let remains = self.runs.remains.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let remains = remains.into_iter();
        let errors = remains.map(|(run, leftovers)| Error::Remains { run, leftovers, cause: None });
        gravest(errors.collect()).map_or(Ok(()), Err)
    }

    /// Waits until every run and teardown that was begun by this engine and its clones is over, also those whose future was
    /// dropped, and ends none: [`shutdown`](Self::shutdown) does. For programs that go on after a time-out.
    pub async fn wait_idle(&self) {
        self.runs.tasks.close();
        self.runs.tasks.wait().await;
        self.runs.tasks.reopen();
    }
}

/// A child of `own` that fires when one of `others` does, too. To be cancelled when nobody needs it any more.
pub(super) fn any_of(own: &CancellationToken, others: Vec<CancellationToken>) -> CancellationToken {
    let any = own.child_token();
    if others.iter().any(CancellationToken::is_cancelled) {
        any.cancel();
    } else if !others.is_empty() {
        let fired = any.clone();
        tokio::spawn(async move {
            let others = select_all(others.iter().map(|other| Box::pin(other.cancelled())));
            fired.run_until_cancelled(others).await;
            fired.cancel();
        });
    }
    any
}
