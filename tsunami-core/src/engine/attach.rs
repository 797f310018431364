//! Machines that an earlier process left up: connecting to them, using them, moving their end.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::TryFutureExt;
use futures_util::future::try_join;
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::Tsunami;
use super::monitor::{LIST_TIMEOUT, Watch, not_listed};
use super::run::{BodyOutcome, Run};
use crate::cluster::{Cluster, Host};
use crate::error::{Error, in_time};
use crate::limits::DURATION_LIMIT;
use crate::machine::{Deadline, Machine, MachineState};
use crate::outcome::gravest;
use crate::provider::{ProviderError, ProviderErrorKind, RunFilter};
use crate::record::{RunEntry, RunRecord};

/// How long a machine that is up may take for a session.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the provider may take to move the end of a run, or of a machine: longer than its own attempts.
const EXTEND_TIMEOUT: Duration = Duration::from_secs(180);

/// A run's connections to machines that stay up. Dropping it lets go of them in the background.
#[derive(Debug)]
pub(super) struct Connections {
    run: Arc<Run>,
    closed: bool,
}

impl Connections {
    pub(super) fn new(run: Arc<Run>) -> Self {
        Self { run, closed: false }
    }

    pub(super) async fn close(mut self) {
        self.run.disconnect().await;
        self.closed = true;
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        if !self.closed {
            self.run.cancel.cancel();
            let run = self.run.clone();
            drop(self.run.spawn(async move { run.disconnect().await }));
        }
    }
}

/// Connections to machines that are somebody else's to tear down, or left to themselves.
///
/// # When it is dropped
///
/// It lets go of the machines in the background, on the runtime that it was made on, and commands that still run on
/// them end. [`Tsunami::wait_idle`] and [`Tsunami::shutdown`] wait for that. The machines stay up.
#[derive(Debug)]
pub struct AttachedRun {
    connections: Connections,
    cluster: Cluster,
    experiment: String,
}

impl AttachedRun {
    /// The machines.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Sets what the events of [`run`](Self::run) call the experiment. Default: as the run was recorded.
    pub fn experiment(mut self, name: impl Into<String>) -> Self {
        self.experiment = name.into();
        self
    }

    /// Runs `body` on the machines, then lets go of them. For the rest it is like [`Tsunami::run`].
    ///
    /// # Errors
    ///
    /// What `body` returns, [`Error::Cancelled`] and [`Error::LifetimeOver`].
    pub async fn run<T, F, Fut>(self, body: F) -> Result<T, Error>
    where
        F: FnOnce(Cluster) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let Self { connections, cluster, experiment } = self;
        connections.run.emit_started(experiment);
        match connections.run.experiment(cluster, body).await {
            BodyOutcome::Result(result) => {
                connections.run.emit_finished(&result);
                connections.close().await;
                result
            }
            BodyOutcome::Panic(panic) => {
                connections.close().await;
                resume_unwind(panic)
            }
        }
    }

    /// Lets go of the machines, which stay as they are.
    pub async fn detach(self) {
        self.connections.close().await;
    }
}

impl Tsunami {
    /// Connects to those machines of a recorded run that `wanted` accepts. They stay up afterwards. Commands on a
    /// machine that is interrupted or gone end as they do in the process that launched it; nothing is replaced.
    ///
    /// If the future is dropped, the connections are let go of in the background.
    ///
    /// ```no_run
    /// # use tsunami_core::{Error, RunStore, Tsunami};
    /// # async fn example(tsunami: &Tsunami) -> Result<(), Error> {
    /// let run = RunStore::standard()?.find("redis")?;
    /// let servers = tsunami.attach(&run, |machine| machine.group == "server").await?;
    /// println!("{}", servers.cluster().hosts()[0].run("uptime").await?.stdout());
    /// servers.detach().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// What a record is refused for, [`Error::Prepare`], what the provider says where its machines can't be listed, or the
    /// machine that can't be connected to.
    pub async fn attach(
        &self,
        directory: &RunEntry,
        wanted: impl Fn(&Machine) -> bool,
    ) -> Result<AttachedRun, Error> {
        let record = directory.record()?;
        let run = self.open(&record, directory.clone(), None, self.cancellation(), String::new());
        let run = Arc::new(run);
        // From here on whatever happens lets go of what was prepared and connected.
        let connections = Connections::new(run.clone());
        self.runs.hold(&run);
        let connecting = async {
            // Neither needs the other, and both may take a while.
            let preparing = run.connector.prepare(&run.id, directory.path()).map_err(Error::Prepare);
            let (_, machines) = try_join(preparing, run.machines_up(wanted)).await?;
            run.reconnect(machines).await
        };
        match run.cancel.run_until_cancelled(connecting).await.unwrap_or(Err(Error::Cancelled)) {
            Ok(hosts) => {
                run.follow_all(&hosts);
                let (events, deadline) = (run.events.clone(), run.deadline.clone());
                let cluster = Cluster::new(run.id.clone(), hosts, events, deadline, None);
                Ok(AttachedRun { connections, cluster, experiment: record.experiment })
            }
            Err(error) => {
                connections.close().await;
                Err(error)
            }
        }
    }

    /// Moves the end of a recorded run's machines to `until`: on the machines first, then where the provider
    /// keeps it, then in the record. A controller that is waiting for the end learns of it. If some of it fails,
    /// each machine ends at the earlier or the later of the two, and no later; it can be repeated.
    ///
    /// If the future is dropped, it stops where it is, as if that had failed; what the provider was asked for goes on.
    ///
    /// # Errors
    ///
    /// With nothing moved, [`Error::LifetimeTooLong`] if the lifetime would be longer than [`DURATION_LIMIT`],
    /// [`Error::Budget`], and those of [`attach`](Self::attach). Else what could not be moved.
    pub async fn extend(&self, directory: &RunEntry, until: SystemTime) -> Result<(), Error> {
        let lifetime = until.duration_since(directory.record()?.created).unwrap_or_default();
        if lifetime > DURATION_LIMIT {
            return Err(Error::LifetimeTooLong { lifetime, limit: DURATION_LIMIT });
        }
        let attached = self.attach(directory, |_| true).await?;
        let moved = attached.connections.run.extend(attached.cluster.hosts(), until).await;
        attached.detach().await;
        moved
    }
}

impl Run {
    /// Connects to machines that an earlier process left up.
    async fn reconnect(self: &Arc<Self>, machines: Vec<Machine>) -> Result<Vec<Host>, Error> {
        let mut tasks = JoinSet::new();
        for machine in machines {
            let run = self.clone();
            tasks.spawn(async move { run.connect_and_renew(machine.into(), RECONNECT_TIMEOUT).await });
        }
        let (mut hosts, mut failures) = (BTreeMap::new(), Vec::new());
        while let Some(joined) = tasks.join_next().await {
            match joined.map_err(Error::other).flatten() {
                Ok(host) => {
                    let order = self.groups.iter().position(|group| group.name == host.group());
                    hosts.insert((order, host.index()), host);
                }
                Err(error) => failures.push(error),
            }
        }
        match gravest(failures) {
            Some(error) => Err(error),
            None => Ok(hosts.into_values().collect()),
        }
    }

    /// The machines that run and have a place, one for each name.
    async fn machines_up(&self, wanted: impl Fn(&Machine) -> bool) -> Result<Vec<Machine>, Error> {
        let recorded = self.directory.machines()?;
        let filter = RunFilter::Run(self.id.clone());
        let listing = timeout(LIST_TIMEOUT, self.provider.list(&filter)).await;
        let mut listed = listing.unwrap_or_else(not_listed).map_err(Error::other)?;
        let recorded: BTreeMap<_, _> =
            recorded.into_iter().map(|machine| (machine.id, machine.index)).collect();
        // The last of a name has it. Where one is being replaced, that is the one that is not recorded yet.
        listed.sort_by_key(|machine| (machine.interrupted.is_none(), !recorded.contains_key(&machine.id)));
        let mut machines = BTreeMap::new();
        for mut machine in listed {
            machine.check().map_err(Error::other)?;
            machine.index = recorded.get(&machine.id).copied().unwrap_or(machine.index);
            // One that was replaced may live on for a while, but has no place any more.
            let group = self.groups.iter().find(|group| group.name == machine.group);
            let is_placed = group.is_none_or(|group| machine.index < group.count);
            if machine.state == MachineState::Running && is_placed && wanted(&machine) {
                machines.insert(machine.name(), machine);
            }
        }
        Ok(machines.into_values().collect())
    }

    /// Keeps an eye on machines that an earlier process left up.
    fn follow_all(self: &Arc<Self>, hosts: &[Host]) {
        let (watcher, watch) = Watch::new(self.clone());
        watch.calm_down();
        watch.show(hosts.iter().map(|host| host.machine().clone()));
        self.spawn_until_cancelled(watcher);
        hosts.iter().for_each(|host| self.follow(host, &watch));
    }

    /// Moves the end on these machines, where the provider keeps it, and in the record.
    async fn extend(&self, hosts: &[Host], until: SystemTime) -> Result<(), Error> {
        let record = self.directory.record()?;
        let lifetime = until.duration_since(record.created).unwrap_or_default();
        let longer = lifetime.as_secs_f64() / record.deadline.lifetime.as_secs_f64();
        let max_cost = record.max_cost.map(|max_cost| max_cost * longer);
        if let Some(budget) = record.budget
            && max_cost.is_none_or(|max_cost| max_cost > budget)
        {
            return Err(Error::Budget { budget, max_cost, spent: 0.0 });
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
        self.directory.write_record(&RunRecord { deadline, max_cost, ..record })?;
        self.deadline.moved(deadline);
        Ok(())
    }
}

/// What moving an end comes to that had no answer in its time.
fn not_extended(_: Elapsed) -> Result<(), ProviderError> {
    let after = format!("no answer after {}", humantime::format_duration(EXTEND_TIMEOUT));
    Err(ProviderError::new(ProviderErrorKind::Unavailable, "extend", after))
}
