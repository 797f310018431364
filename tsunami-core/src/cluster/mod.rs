//! The running machines, as experiments see them.

mod command;
mod files;
mod host;
mod hosts;
mod lines;
mod list;
mod output;
mod process;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, select_all};

use crate::engine::{Provisioner, RunDeadline};
use crate::error::Error;
use crate::event::{Events, UserEvent};
use crate::machine::RunId;

pub use command::HostCommand;
pub use files::Transfer;
#[cfg(feature = "testing")]
pub(crate) use files::WRITE_NAME;
pub use host::Host;
pub use hosts::Hosts;
pub use lines::{Line, OutputLines};
#[cfg(feature = "experiment")]
pub(crate) use list::Turns;
pub(crate) use output::OutputWatcher;
#[cfg(feature = "experiment")]
pub(crate) use output::Tail;
pub use output::{Output, OutputRefused};
pub use process::{Process, ProcessStdin};

/// All machines of a run. Cheap to clone. Dropping it ends nothing: the run does.
///
/// ```
/// # use tsunami_core::{Cluster, Error};
/// # async fn example(cluster: &Cluster) -> Result<(), Error> {
/// let server = cluster.host("server-0").ok_or("there is no server")?;
/// let clients = cluster.group("client");
/// let rates = clients.for_each(None, async |client| {
///     client.program("bin/load").arg(client.ip_of(server)?).json::<f64>().await
/// });
/// println!("{} requests a second", rates.await?.iter().sum::<f64>());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Cluster {
    inner: Arc<ClusterInner>,
}

#[derive(Debug)]
struct ClusterInner {
    run: RunId,
    hosts: Hosts,
    events: Events,
    deadline: Arc<RunDeadline>,
    provisioner: Option<Provisioner>,
}

impl Cluster {
    pub(crate) fn new(
        run: RunId,
        hosts: Vec<Host>,
        events: Events,
        deadline: Arc<RunDeadline>,
        provisioner: Option<Provisioner>,
    ) -> Self {
        let hosts = hosts.into_iter().collect();
        Self { inner: Arc::new(ClusterInner { run, hosts, events, deadline, provisioner }) }
    }

    /// How long it is until the lifetime is over, as the record says it now.
    pub(crate) fn time_left(&self) -> Duration {
        self.inner.deadline.read().at.duration_since(self.inner.events.now()).unwrap_or_default()
    }

    /// Whether the machines were launched for this run of ours, and are not attached to.
    pub(crate) fn is_of_this_run(&self) -> bool {
        self.inner.provisioner.is_some()
    }

    /// Whether any machine may be [replaced](Self::repair).
    pub(crate) fn may_be_repaired(&self) -> bool {
        let groups = self.inner.provisioner.as_ref().map(|provisioner| &*provisioner.plan.groups);
        groups.into_iter().flatten().any(|group| group.replace_interrupted)
    }

    /// Whether the run was cancelled.
    pub(crate) fn is_ending(&self) -> bool {
        self.hosts().iter().any(|host| host.is_ending())
    }

    /// The error of the first machine that is gone, or that its provider takes back, if there is one.
    pub(crate) async fn departure(&self) -> Option<Error> {
        let departures = join_all(self.hosts().iter().map(Host::departure)).await;
        departures.into_iter().flatten().next()
    }

    pub(crate) fn events(&self) -> &Events {
        &self.inner.events
    }

    /// Waits until a machine is interrupted, and returns its error. May be dropped at any await.
    ///
    /// What the other machines do from then on follows from that, more likely than not: clients of a server that
    /// is taken away fail too, or wait for it.
    ///
    /// ```
    /// # use tsunami_core::{Cluster, Error};
    /// # async fn example(cluster: &Cluster, client: &tsunami_core::Host) -> Result<(), Error> {
    /// tokio::select! {
    ///     measured = client.run("./measure") => println!("{}", measured?.stdout()),
    ///     interrupted = cluster.interrupted() => return Err(interrupted),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn interrupted(&self) -> Error {
        let waiting = self.hosts().iter().map(|host| Box::pin(host.interrupted()));
        let waiting: Vec<_> = waiting.collect();
        if !waiting.is_empty() {
            select_all(waiting).await;
        }
        match self.hosts().iter().find_map(Host::interruption) {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Waits until a machine is interrupted or gone.
    pub(crate) async fn leaving(&self) {
        let waiting: Vec<_> = self.hosts().iter().map(|host| Box::pin(host.leaving(false))).collect();
        match waiting.is_empty() {
            true => std::future::pending().await,
            false => drop(select_all(waiting).await),
        }
    }

    /// Replaces the machines that were interrupted and waits until their replacements are set up. The answer
    /// has those in place of the old ones, under the same names, and the other machines as they were.
    ///
    /// Machines that are lost without a word of their provider's are not replaced. Where no interruption is known yet, it
    /// waits a quarter of a minute for one. May be dropped at any await; what was
    /// launched by then is torn down with the run.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`] of a machine that may not be replaced: because its
    /// [group](crate::Group::replace_interrupted) does not say so, because it is a replacement itself, or because this
    /// process did not launch it. And why a replacement can't be had, connected to or set up, as [`Tsunami::run`] has it.
    ///
    /// [`Tsunami::run`]: crate::Tsunami::run
    pub async fn repair(&self) -> Result<Cluster, Error> {
        match &self.inner.provisioner {
            Some(provisioner) => provisioner.repair(self).await,
            None => match self.hosts().iter().find_map(Host::interruption) {
                Some(error) => Err(error),
                None => Ok(self.clone()),
            },
        }
    }

    /// The run.
    pub fn run_id(&self) -> &RunId {
        &self.inner.run
    }

    /// All machines, by group in the plan's order, then by index.
    pub fn hosts(&self) -> &Hosts {
        &self.inner.hosts
    }

    /// The machines of a group, by index; none if there is no such group.
    pub fn group(&self, name: &str) -> Hosts {
        self.inner.hosts.iter().filter(|host| host.group() == name).cloned().collect()
    }

    /// A machine by its name, such as `client-0`.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.inner.hosts.iter().find(|host| host.name() == name)
    }

    /// Adds to the run's story. For layers above the engine that tell more of it, such as steps.
    ///
    /// ```
    /// # use tsunami_core::{Cluster, UserEvent};
    /// # fn example(cluster: &Cluster) {
    /// let data = serde_json::json!({ "rows": 1_000_000 });
    /// cluster.emit(UserEvent::Custom { name: "loaded".to_owned(), data });
    /// # }
    /// ```
    pub fn emit(&self, event: UserEvent) {
        self.inner.events.emit(event.into());
    }
}
