//! From nothing to machines that are set up: all groups at once, each machine as soon as it can.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::watch::Watch;
use super::{Ended, Run};
use crate::cluster::{Cluster, Host};
use crate::error::Error;
use crate::event::EventKind;
use crate::machine::{Machine, MachineId, MachineState, machine_name};
use crate::plan::{Group, Plan, Setup};
use crate::provider::{LaunchRequest, ProviderError, RunFilter};

/// How often a create is repeated when the service is throttling or unavailable.
const LAUNCH_ATTEMPTS: u32 = 8;

/// The pause before the first repetition; every further one takes twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// What a task of the launch comes back with.
enum Done {
    Launched { group: usize, ids: Vec<MachineId> },
    Up { group: usize, host: Host },
}

impl Run {
    /// Launches all groups and sets all machines up. Everything that was begun has ended when this returns,
    /// except for requests that create something, which teardown awaits.
    pub(super) async fn bring_up<T>(self: &Arc<Self>, plan: &Plan) -> Result<Cluster, Ended<T>> {
        let (watcher, watch) = Watch::new(self.clone());
        let watcher = self.tasks.spawn(self.cancel.clone().run_until_cancelled_owned(watcher));
        let mut tasks = JoinSet::new();
        for (index, group) in plan.groups.iter().enumerate() {
            tasks.spawn(self.clone().launch(index, group.clone()));
        }
        let result = self.gather(plan, &mut tasks, &watch).await;
        if result.is_err() {
            tasks.shutdown().await;
            watcher.abort();
        }
        result
    }

    async fn gather<T>(
        self: &Arc<Self>,
        plan: &Plan,
        tasks: &mut JoinSet<Result<Done, Error>>,
        watch: &Watch,
    ) -> Result<Cluster, Ended<T>> {
        let mut hosts: BTreeMap<(usize, u32), Host> = BTreeMap::new();
        let lifetime = self.record.deadline.lifetime;
        let over = Instant::now() + lifetime;
        loop {
            let joined = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(Error::Cancelled.into()),
                () = tokio::time::sleep_until(over) => return Err(Error::LifetimeOver(lifetime).into()),
                joined = tasks.join_next() => joined,
            };
            let Some(joined) = joined else { break };
            match joined.map_err(panicked)? {
                Ok(Done::Launched { group: place, ids }) => {
                    let group = &plan.groups[place];
                    let deadline = Instant::now() + plan.connect_timeout;
                    for (index, id) in (0..).zip(ids) {
                        let awaited =
                            Awaited { id, group: place, index, deadline, setup: group.setup.clone() };
                        tasks.spawn(self.clone().machine_up(
                            group.name.clone(),
                            awaited,
                            watch.clone(),
                            plan.connect_timeout,
                        ));
                    }
                    watch.look_now();
                }
                Ok(Done::Up { group, host }) => {
                    hosts.insert((group, host.index()), host);
                }
                Err(error) => return Err(error.into()),
            }
        }
        // A hint for other processes; the tags are the truth.
        let machines: Vec<Machine> = hosts.values().map(|host| host.machine().clone()).collect();
        self.directory.write_machines(&machines).map_err(Ended::from)?;
        watch.calm_down();
        Ok(Cluster::new(self.id.clone(), hosts.into_values().collect(), self.events.clone()))
    }

    /// Launches a group. The request itself runs in a task of its own that nothing aborts.
    async fn launch(self: Arc<Self>, index: usize, group: Group) -> Result<Done, Error> {
        self.events.emit(EventKind::Launching { group: group.name.clone(), count: group.count });
        let request = LaunchRequest {
            run: self.id.clone(),
            experiment: self.record.experiment.clone(),
            group: group.name.clone(),
            count: group.size(),
            spec: group.spec.clone(),
            deadline: self.record.deadline,
            authorized_key: self.authorized_key.clone(),
        };
        let create = self.creates.spawn(self.clone().create(request));
        let launched = create.await.map_err(Error::other)?;
        let ids = launched.map_err(|source| Error::Launch { group: group.name.clone(), source })?;
        self.events.emit(EventKind::Launched { group: group.name, machines: ids.clone() });
        Ok(Done::Launched { group: index, ids })
    }

    /// Repeats the request for as long as that may help and the run wants it.
    async fn create(self: Arc<Self>, request: LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        let mut attempt = 0;
        loop {
            let error = match self.provider.launch(&request).await {
                Ok(ids) => return Ok(ids),
                Err(error) => error,
            };
            attempt += 1;
            if !error.kind.is_transient() || attempt >= LAUNCH_ATTEMPTS {
                return Err(error);
            }
            let delay = FIRST_PAUSE * 2u32.pow(attempt - 1) + self.jitter(&request.group, attempt);
            self.events.emit(EventKind::Retrying {
                group: request.group.clone(),
                error: error.to_string(),
                delay: crate::event::rounded(delay),
            });
            if self.cancel.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                return Err(error);
            }
        }
    }

    /// Up to half a second that differs between runs, groups and attempts, so that they don't come together.
    fn jitter(&self, group: &str, attempt: u32) -> Duration {
        let mut mixed = self.seed ^ u64::from(attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for byte in self.id.as_str().bytes().chain(group.bytes()) {
            mixed = (mixed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Duration::from_millis(mixed % 500)
    }

    /// One machine's way: wait for its address, connect, set up. Nobody else's machine is waited for.
    async fn machine_up(
        self: Arc<Self>,
        group: String,
        awaited: Awaited,
        watch: Watch,
        connect_timeout: Duration,
    ) -> Result<Done, Error> {
        let name = machine_name(&group, awaited.index);
        let place = awaited.group;
        let mut stage = "launch";
        let result = async {
            let setup = awaited.setup.clone();
            let host = self.reach(&name, &group, &awaited, watch, connect_timeout, &mut stage).await?;
            if let Some(setup) = setup {
                stage = "setup";
                setup(host.stage(stage)).await?;
            }
            Ok(host)
        }
        .await;
        match result {
            Ok(host) => {
                self.events.emit(EventKind::Ready { machine: name });
                Ok(Done::Up { group: place, host })
            }
            Err(error) => {
                let said = crate::ErrorChain(&error).to_string();
                self.events.emit(EventKind::Failed { machine: name, stage: stage.to_owned(), error: said });
                Err(error)
            }
        }
    }

    /// Waits for a machine's address and connects to it.
    async fn reach(
        self: &Arc<Self>,
        name: &str,
        group: &str,
        awaited: &Awaited,
        watch: Watch,
        connect_timeout: Duration,
        stage: &mut &'static str,
    ) -> Result<Host, Error> {
        let too_late = |message: &str| Error::Connect {
            machine: name.to_owned(),
            id: awaited.id.clone(),
            after: connect_timeout,
            source: crate::SessionError::new(crate::SessionErrorKind::Connect, message),
        };
        let lost = |stage: &str, what: &str| Error::Lost {
            machine: name.to_owned(),
            stage: stage.to_owned(),
            command: None,
            source: format!("{} {what}", awaited.id).into(),
        };
        let running = tokio::time::timeout_at(awaited.deadline, watch.running(&awaited.id)).await;
        let machine = running.map_err(|_| too_late("it was not seen running with an address"))?;
        if machine.state != MachineState::Running {
            return Err(lost(stage, "ended before it could be reached"));
        }
        // The launch's answer decides which machine is which, not the order of a listing.
        let machine = Machine { group: group.to_owned(), index: awaited.index, ..machine };
        self.events.emit(EventKind::Running {
            machine: name.to_owned(),
            id: machine.id.clone(),
            address: machine.addresses.from_outside().unwrap_or_default().to_owned(),
        });
        *stage = "connect";
        let host = tokio::select! {
            biased;
            host = self.connect(machine, awaited.deadline, connect_timeout) => host?,
            () = watch.gone(&awaited.id) => return Err(lost(stage, "ended before it could be reached")),
        };
        self.tasks.spawn(self.cancel.clone().run_until_cancelled_owned(tell_when_gone(
            self.clone(),
            host.clone(),
            watch,
        )));
        Ok(host)
    }

    /// Connects to a machine, until the deadline.
    async fn connect(&self, machine: Machine, deadline: Instant, within: Duration) -> Result<Host, Error> {
        let launched = deadline - within;
        let connecting = self.connector.connect(&machine, deadline);
        let session = connecting.await.map_err(|source| Error::Connect {
            machine: machine.name(),
            id: machine.id.clone(),
            after: Duration::from_secs(launched.elapsed().as_secs_f64().round() as u64),
            source,
        })?;
        let session: Arc<dyn crate::Session> = session.into();
        self.sessions().push(session.clone());
        self.events.emit(EventKind::Connected { machine: machine.name() });
        Ok(Host::new(
            machine,
            session,
            self.events.clone(),
            self.cancel.child_token(),
            CancellationToken::new(),
        ))
    }

    /// Connects to machines that an earlier process left up.
    pub(super) async fn reconnect(
        self: &Arc<Self>,
        wanted: impl Fn(&Machine) -> bool,
    ) -> Result<Vec<Host>, Error> {
        let recorded = self.directory.machines()?;
        let listed = self.provider.list(&RunFilter::Run(self.id.clone())).await.map_err(Error::other)?;
        let mut tasks = JoinSet::new();
        for mut machine in listed {
            if let Some(known) = recorded.iter().find(|known| known.id == machine.id) {
                machine.index = known.index;
            }
            if machine.state == MachineState::Running && wanted(&machine) {
                let run = self.clone();
                let within = Duration::from_secs(30);
                tasks.spawn(async move { run.connect(machine, Instant::now() + within, within).await });
            }
        }
        let mut hosts = BTreeMap::new();
        while let Some(joined) = tasks.join_next().await {
            let host = joined.map_err(Error::other)??;
            let order = self.record.groups.iter().position(|group| group.name == host.group());
            hosts.insert((order, host.index()), host);
        }
        Ok(hosts.into_values().collect())
    }
}

/// A machine that was launched and not seen yet.
#[derive(Clone)]
struct Awaited {
    id: MachineId,
    group: usize,
    index: u32,
    deadline: Instant,
    setup: Option<Setup>,
}

/// Tells a host's commands when the provider says that the machine is gone: the connection may take long to
/// notice.
async fn tell_when_gone(run: Arc<Run>, host: Host, watch: Watch) {
    watch.gone(&host.machine().id).await;
    run.events
        .emit(EventKind::MachineGone { machine: host.name().to_owned(), id: host.machine().id.clone() });
    host.mark_gone();
}

/// A set-up closure's panic is kept for later; a task that was aborted belongs to a run that is ending.
fn panicked<T>(error: JoinError) -> Ended<T> {
    match error.try_into_panic() {
        Ok(panic) => Ended::Panic(panic),
        Err(_) => Error::Cancelled.into(),
    }
}
