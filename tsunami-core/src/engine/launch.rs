//! From nothing to machines that are set up: all groups at once, each machine as soon as it can.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::foreign::has_panicked;
use super::watch::{LISTING, REASON_TIMEOUT, Watch, not_listed};
use super::{Ended, Run};
use crate::cluster::{Cluster, Host};
use crate::error::Error;
use crate::event::EventKind;
use crate::machine::{Machine, MachineId, MachineState, machine_name};
use crate::outcome::gravest;
use crate::plan::Plan;
use crate::provider::{LaunchRequest, Notes, ProviderError, ProviderErrorKind, RunFilter};
use crate::session::{SessionError, SessionErrorKind};

/// How often a create is repeated when the service is throttling or unavailable.
const LAUNCH_ATTEMPTS: u32 = 8;

/// The pause before the first repetition; every further one takes twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// How long after a machine's time is over its connector may take to say so.
const CONNECT_GRACE: Duration = Duration::from_secs(10);

/// How much longer than that the provider may take to check it. Its own limits for one answer of a machine say better
/// what was missing, and end before this.
const ADMIT_GRACE: Duration = Duration::from_secs(90);

/// How long after the first failure of a machine others are heard of. What fails for the same reason fails at the
/// same time, more or less; nobody wants to wait for more.
const FAILURES_GRACE: Duration = Duration::from_millis(500);

/// What a task of the launch comes back with.
enum Done {
    Launched {
        group: usize,
        ids: Vec<MachineId>,
    },
    Up {
        group: usize,
        host: Host,
    },
    /// The provider took the machine back before it was set up.
    Interrupted {
        group: usize,
        index: u32,
        id: MachineId,
        error: Error,
    },
}

type Tasks = JoinSet<Result<Done, Error>>;

/// Brings machines up, and replaces those that are interrupted.
#[derive(Clone, Debug)]
pub(crate) struct Mender {
    run: Arc<Run>,
    plan: Arc<Plan>,
    watch: Watch,
    /// The machines that were replaced, by the places of their groups and their own.
    replaced: Arc<Mutex<BTreeMap<(usize, u32), MachineId>>>,
}

impl Run {
    /// Launches all groups and sets all machines up. Everything that was begun has ended when this returns,
    /// except for requests that create something, which teardown awaits.
    pub(super) async fn bring_up<T>(self: &Arc<Self>, plan: Plan) -> Result<Cluster, Ended<T>> {
        let (watcher, watch) = Watch::new(self.clone());
        let watcher = self.tasks.spawn(self.cancel.clone().run_until_cancelled_owned(watcher));
        let mender = Mender { run: self.clone(), plan: Arc::new(plan), watch, replaced: Arc::default() };
        let mut tasks = JoinSet::new();
        for place in 0..mender.plan.groups.len() {
            tasks.spawn(mender.clone().launch(place));
        }
        let result = mender.gather(tasks, BTreeMap::new()).await;
        if result.is_err() {
            watcher.abort();
        }
        result
    }
}

impl Mender {
    /// Waits until all machines are up. Whatever of `tasks` is left when this fails has ended.
    async fn gather<T>(
        &self,
        mut tasks: Tasks,
        mut hosts: BTreeMap<(usize, u32), Host>,
    ) -> Result<Cluster, Ended<T>> {
        let run = &self.run;
        // The machines that were begun with, by the places of their groups and their own.
        let mut begun: BTreeMap<(usize, u32), MachineId> =
            hosts.iter().map(|(place, host)| (*place, host.machine().id.clone())).collect();
        let mut over = std::pin::pin!(run.lifetime_over());
        // In the order of time, and until when others are heard of.
        let (mut failures, mut grace) = (Vec::new(), None);
        let ended = loop {
            let joined = tokio::select! {
                biased;
                () = run.cancel.cancelled() => break Some(Error::Cancelled.into()),
                over = &mut over => break Some(over.into()),
                refusal = self.watch.refused() => break Some(Error::other(refusal).into()),
                joined = tasks.join_next() => joined,
                () = tokio::time::sleep_until(grace.unwrap_or_else(Instant::now)), if grace.is_some() => break None,
            };
            let done = match joined.map(|joined| joined.map_err(panicked)) {
                None => break None,
                Some(Err(ended)) => break Some(ended),
                Some(Ok(done)) => done,
            };
            match done {
                // Once something has failed, what comes after it is only torn down.
                Ok(Done::Launched { .. }) if grace.is_some() => {}
                Ok(Done::Launched { group, ids }) => self.welcome(group, ids, &mut begun, &mut tasks),
                Ok(Done::Up { group, host }) => drop(hosts.insert((group, host.index()), host)),
                Ok(Done::Interrupted { group, index, id, error }) => {
                    match self.replace((group, index), &id, error) {
                        Ok(()) if grace.is_some() => {}
                        Ok(()) => drop(tasks.spawn(self.clone().launch(group))),
                        Err(error) => failures.push(error),
                    }
                }
                Err(error) => failures.push(error),
            }
            if !failures.is_empty() {
                grace.get_or_insert_with(|| Instant::now() + FAILURES_GRACE);
            }
        };
        tasks.shutdown().await;
        match ended {
            Some(Ended::Result(result)) => failures.extend(result.err()),
            Some(panic) => return Err(panic),
            None => {}
        }
        gravest(failures).map_or(Ok(()), Err)?;
        // A hint for other processes; the tags are the truth.
        let machines: Vec<Machine> = hosts.values().map(|host| host.machine().clone()).collect();
        run.directory.write_machines(&machines).map_err(Ended::from)?;
        self.watch.calm_down();
        let hosts = hosts.into_values().collect();
        Ok(Cluster::new(run.id.clone(), hosts, run.events.clone(), Some(self.clone())))
    }

    /// Sets out to reach those of a group's machines that are new.
    fn welcome(
        &self,
        place: usize,
        ids: Vec<MachineId>,
        begun: &mut BTreeMap<(usize, u32), MachineId>,
        tasks: &mut Tasks,
    ) {
        let deadline = Instant::now() + self.plan.connect_timeout;
        for (index, id) in (0..).zip(ids) {
            if begun.insert((place, index), id.clone()).as_ref() != Some(&id) {
                tasks.spawn(self.clone().machine_up(Awaited { id, group: place, index, deadline }));
            }
        }
        self.watch.look_now();
    }

    /// Notes that a machine no longer counts, if it may be replaced: once in each place, which is what a budget
    /// reckons with.
    fn replace(&self, place: (usize, u32), id: &MachineId, interrupted: Error) -> Result<(), Error> {
        let mut replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        match replaced.get(&place) {
            // By an attempt before this one, which was dropped, or whose cluster the caller did not take.
            Some(before) if before == id => Ok(()),
            None if self.plan.groups[place.0].replace_interrupted => {
                replaced.insert(place, id.clone());
                Ok(())
            }
            _ => Err(interrupted),
        }
    }

    /// Replaces what was interrupted since the cluster was brought up.
    pub(crate) async fn repair(&self, cluster: &Cluster) -> Result<Cluster, Error> {
        self.watch.look_now();
        let unheard =
            |host: &Host| host.interruption().is_none() && self.watch.is_unexplained(&host.machine().id);
        let heard = async {
            while !cluster.hosts().iter().any(|host| host.interruption().is_some())
                || cluster.hosts().iter().any(unheard)
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        // None is no error: there may be nothing to repair.
        let _ = tokio::time::timeout(REASON_TIMEOUT, heard).await;
        let mut hosts = BTreeMap::new();
        let mut groups = BTreeSet::new();
        for host in cluster.hosts() {
            let Some(group) = self.plan.groups.iter().position(|group| group.name == host.group()) else {
                continue;
            };
            match host.interruption() {
                Some(error) => {
                    self.replace((group, host.index()), &host.machine().id, error)?;
                    groups.insert(group);
                }
                None => drop(hosts.insert((group, host.index()), host.clone())),
            }
        }
        if groups.is_empty() {
            return Ok(cluster.clone());
        }
        self.watch.hurry();
        let mut tasks = JoinSet::new();
        for group in groups {
            tasks.spawn(self.clone().launch(group));
        }
        match self.gather::<Cluster>(tasks, hosts).await {
            Ok(cluster) => Ok(cluster),
            Err(Ended::Result(result)) => result,
            Err(Ended::Panic(panic)) => std::panic::resume_unwind(panic),
        }
    }

    /// Launches a group. The request itself runs in a task of its own that nothing aborts.
    async fn launch(self, place: usize) -> Result<Done, Error> {
        let (run, group) = (&self.run, &self.plan.groups[place]);
        run.events.emit(EventKind::Launching { group: group.name.clone(), count: group.count });
        let (events, name) = (run.events.clone(), group.name.clone());
        let note =
            move |text: &str| events.emit(EventKind::Note { group: name.clone(), text: text.to_owned() });
        let replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let request = LaunchRequest {
            run: run.id.clone(),
            experiment: run.record.experiment.clone(),
            group: group.name.clone(),
            count: group.size(),
            spec: group.spec.clone(),
            // Somebody may have moved it since.
            deadline: run.directory.record().map_or(run.record.deadline, |record| record.deadline),
            authorized_key: run.authorized_key.clone(),
            replace: replaced
                .into_iter()
                .filter(|((group, _), _)| *group == place)
                .map(|(_, id)| id)
                .collect(),
            notes: Notes::new(note),
        };
        run.undecided.fetch_add(1, Ordering::Relaxed);
        let creating = run.clone();
        let create = run.creates.spawn(async move {
            let created = creating.clone().create(request).await;
            // One that panicked may have asked for something, like one that is dropped.
            if !created.as_ref().is_err_and(has_panicked) {
                creating.undecided.fetch_sub(1, Ordering::Relaxed);
            }
            created
        });
        let launched = create.await.map_err(Error::other)?;
        let ids = launched.map_err(|source| Error::Launch { group: group.name.clone(), source })?;
        run.events.emit(EventKind::Launched { group: group.name.clone(), machines: ids.clone() });
        Ok(Done::Launched { group: place, ids })
    }

    /// One machine's way: wait for its address, connect, set up. Nobody else's machine is waited for.
    async fn machine_up(self, awaited: Awaited) -> Result<Done, Error> {
        let group = &self.plan.groups[awaited.group];
        let name = machine_name(&group.name, awaited.index);
        let mut stage = "launch";
        let result = async {
            let host = self.reach(&name, &group.name, &awaited, &mut stage).await?;
            if let Some(setup) = &group.setup {
                stage = "setup";
                if let Err(error) = setup(host.stage(stage)).await {
                    if matches!(error, Error::Lost { .. }) {
                        self.watch.look_now();
                        let _ = tokio::time::timeout(REASON_TIMEOUT, host.interrupted()).await;
                    }
                    return Err(host.stage(stage).interruption().unwrap_or(error));
                }
            }
            Ok(host)
        }
        .await;
        match result {
            Ok(host) => {
                self.run.events.emit(EventKind::Ready { machine: name });
                Ok(Done::Up { group: awaited.group, host })
            }
            Err(error) => {
                let said = crate::ErrorChain(&error).to_string();
                let stage = stage.to_owned();
                self.run.events.emit(EventKind::Failed { machine: name, stage, error: said });
                match error {
                    Error::Interrupted { .. } => {
                        let Awaited { id, group, index, .. } = awaited;
                        Ok(Done::Interrupted { group, index, id, error })
                    }
                    error => Err(error),
                }
            }
        }
    }

    /// Waits for a machine's address and connects to it.
    async fn reach(
        &self,
        name: &str,
        group: &str,
        awaited: &Awaited,
        stage: &mut &'static str,
    ) -> Result<Host, Error> {
        let (run, watch, within) = (&self.run, &self.watch, self.plan.connect_timeout);
        let too_late = |message: &str| Error::Connect {
            machine: name.to_owned(),
            id: awaited.id.clone(),
            after: within,
            source: SessionError::new(SessionErrorKind::Connect, message),
        };
        let lost = |stage: &str, machine: Machine| match machine.interrupted {
            Some(reason) => {
                run.events.emit(EventKind::Interrupted {
                    machine: name.to_owned(),
                    id: machine.id.clone(),
                    reason: reason.clone(),
                });
                Error::Interrupted {
                    machine: name.to_owned(),
                    id: machine.id,
                    stage: stage.to_owned(),
                    reason,
                }
            }
            None => Error::Lost {
                machine: name.to_owned(),
                stage: stage.to_owned(),
                command: None,
                source: match machine.ended {
                    Some(why) => format!("{} ended before it could be reached: {why}", machine.id),
                    None => format!("{} ended before it could be reached", machine.id),
                }
                .into(),
            },
        };
        let running = tokio::time::timeout_at(awaited.deadline, watch.running(&awaited.id)).await;
        let machine = running.map_err(|_| too_late("it was not seen running with an address"))?;
        if machine.state != MachineState::Running || machine.interrupted.is_some() {
            return Err(lost(stage, watch.explained(machine).await));
        }
        // The launch's answer decides which machine is which, not the order of a listing.
        let machine = Machine { group: group.to_owned(), index: awaited.index, ..machine };
        run.events.emit(EventKind::Running {
            machine: name.to_owned(),
            id: machine.id.clone(),
            address: machine.addresses.from_outside().unwrap_or_default().to_owned(),
            description: machine.description.clone(),
            price: machine.price,
        });
        *stage = "connect";
        let host = tokio::select! {
            biased;
            host = run.admitted(machine, awaited.deadline, within) => host?,
            machine = watch.leaving(&awaited.id) => {
                return Err(lost(stage, watch.explained(machine).await));
            }
        };
        run.tell_when_leaving(&host, watch);
        Ok(host)
    }
}

impl Run {
    /// Repeats the request for as long as that may help and the run wants it.
    async fn create(self: Arc<Self>, request: LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        let mut attempt = 0;
        loop {
            if !self.directory.may_create() {
                // What came now would outlive its record.
                let why = "the run is being torn down";
                return Err(ProviderError::new(ProviderErrorKind::Other, "launch", why));
            }
            let error = match self.provider.launch(&request).await {
                Ok(ids) => {
                    self.note_launched(&request.group, &ids);
                    return Ok(ids);
                }
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

    /// Connects to a new machine and has its provider check it.
    async fn admitted(&self, machine: Machine, deadline: Instant, within: Duration) -> Result<Host, Error> {
        let host = self.connect(machine, deadline, within).await?;
        let admitting = self.provider.admit(host.machine(), host.session());
        let admitted = tokio::time::timeout_at(deadline + ADMIT_GRACE, admitting).await;
        let unanswered = |_| {
            let after = humantime::format_duration(within + ADMIT_GRACE);
            let message = format!("the check of the new machine had no end {after} after its launch");
            let longer = "where its first boot takes longer, give it more time: `connect_timeout`";
            Err(ProviderError::new(ProviderErrorKind::Unavailable, "admit", message).help(longer))
        };
        admitted.unwrap_or_else(unanswered).map_err(|source| Error::Unfit {
            machine: host.name().to_owned(),
            id: host.machine().id.clone(),
            source,
        })?;
        Ok(host)
    }

    /// Connects to a machine that an earlier process left up, and has its provider see to it.
    async fn readmitted(&self, machine: Machine, within: Duration) -> Result<Host, Error> {
        let deadline = Instant::now() + within;
        let host = self.connect(machine, deadline, within).await?;
        let readmitting = self.provider.readmit(host.machine(), host.session());
        let readmitted = tokio::time::timeout_at(deadline + ADMIT_GRACE, readmitting).await;
        let unanswered = |_| {
            let message = "what it keeps on the machine could not be seen to in time";
            Err(ProviderError::new(ProviderErrorKind::Unavailable, "admit", message))
        };
        readmitted.unwrap_or_else(unanswered).map_err(|source| Error::Unfit {
            machine: host.name().to_owned(),
            id: host.machine().id.clone(),
            source,
        })?;
        Ok(host)
    }

    /// Connects to a machine, until the deadline.
    async fn connect(&self, machine: Machine, deadline: Instant, within: Duration) -> Result<Host, Error> {
        let launched = deadline - within;
        let connecting = self.connector.connect(&machine, deadline);
        // The connector says best what it saw last, and gets the time for that.
        let connected = tokio::time::timeout_at(deadline + CONNECT_GRACE, connecting).await;
        let unanswered =
            |_| Err(SessionError::new(SessionErrorKind::Connect, "the connector gave no answer"));
        let session = connected.unwrap_or_else(unanswered).map_err(|source| Error::Connect {
            machine: machine.name(),
            id: machine.id.clone(),
            after: Duration::from_secs(launched.elapsed().as_secs_f64().round() as u64),
            source,
        })?;
        let session: Arc<dyn crate::Session> = session.into();
        self.sessions().push(session.clone());
        self.events.emit(EventKind::Connected { machine: machine.name() });
        Ok(Host::new(machine, session, self.events.clone(), self.cancel.child_token()))
    }

    /// Keeps an eye on machines that an earlier process left up.
    pub(super) fn watch_over(self: &Arc<Self>, hosts: &[Host]) {
        let (watcher, watch) = Watch::new(self.clone());
        self.tasks.spawn(self.cancel.clone().run_until_cancelled_owned(watcher));
        watch.calm_down();
        watch.look_now();
        hosts.iter().for_each(|host| self.tell_when_leaving(host, &watch));
    }

    fn tell_when_leaving(self: &Arc<Self>, host: &Host, watch: &Watch) {
        let telling = tell_when_leaving(self.clone(), host.clone(), watch.clone());
        self.tasks.spawn(self.cancel.clone().run_until_cancelled_owned(telling));
    }

    /// Connects to machines that an earlier process left up.
    pub(super) async fn reconnect(
        self: &Arc<Self>,
        wanted: impl Fn(&Machine) -> bool,
    ) -> Result<Vec<Host>, Error> {
        let recorded = self.directory.machines()?;
        let filter = RunFilter::Run(self.id.clone());
        let listing = tokio::time::timeout(LISTING, self.provider.list(&filter)).await;
        let mut listed = listing.unwrap_or_else(not_listed).map_err(Error::other)?;
        let known = |machine: &Machine| recorded.iter().find(|known| known.id == machine.id);
        // The last of a name has it. Where one is being replaced, that is the one that is not recorded yet.
        listed.sort_by_key(|machine| (machine.interrupted.is_none(), known(machine).is_none()));
        let mut machines = BTreeMap::new();
        for mut machine in listed {
            machine.check().map_err(Error::other)?;
            machine.index = known(&machine).map_or(machine.index, |known| known.index);
            // One that was replaced may live on for a while, but has no place any more.
            let group = self.record.groups.iter().find(|group| group.name == machine.group);
            let is_placed = group.is_none_or(|group| machine.index < group.count);
            if machine.state == MachineState::Running && is_placed && wanted(&machine) {
                machines.insert(machine.name(), machine);
            }
        }
        let mut tasks = JoinSet::new();
        for machine in machines.into_values() {
            let run = self.clone();
            let within = Duration::from_secs(30);
            tasks.spawn(async move { run.readmitted(machine, within).await });
        }
        let (mut hosts, mut failures) = (BTreeMap::new(), Vec::new());
        while let Some(joined) = tasks.join_next().await {
            match joined.map_err(Error::other).flatten() {
                Ok(host) => {
                    let order = self.record.groups.iter().position(|group| group.name == host.group());
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
}

/// A machine that was launched and not seen yet.
#[derive(Clone)]
struct Awaited {
    id: MachineId,
    group: usize,
    index: u32,
    deadline: Instant,
}

/// Tells a host's commands when the provider, or the machine itself, says that the machine is going, or gone: the
/// connection may take long to notice.
async fn tell_when_leaving(run: Arc<Run>, host: Host, watch: Watch) {
    let (machine, id) = (host.name(), &host.machine().id);
    let interrupted = |reason: String| {
        let (machine, id) = (machine.to_owned(), id.clone());
        run.events.emit(EventKind::Interrupted { machine, id, reason: reason.clone() });
        host.mark_interrupted(&reason);
    };
    tokio::select! {
        biased;
        reason = watch.interrupted(id) => interrupted(reason),
        reason = run.provider.notice(host.machine(), host.session()) => interrupted(reason),
        () = watch.gone(id) => {}
    }
    watch.gone(id).await;
    run.events.emit(EventKind::MachineGone { machine: machine.to_owned(), id: id.clone() });
    if host.interruption().is_none()
        && let Ok(reason) = tokio::time::timeout(REASON_TIMEOUT, watch.interrupted(id)).await
    {
        interrupted(reason);
    }
    host.mark_gone();
    if host.interruption().is_none() {
        // Too late for what ran there, and not for a replacement.
        interrupted(watch.interrupted(id).await);
    }
}

/// A set-up closure's panic is kept for later; a task that was aborted belongs to a run that is ending.
fn panicked<T>(error: JoinError) -> Ended<T> {
    match error.try_into_panic() {
        Ok(panic) => Ended::Panic(panic),
        Err(_) => Error::Cancelled.into(),
    }
}
