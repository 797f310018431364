//! From nothing to machines that are set up: all groups at once, each machine as soon as it can.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Tsunami;
use super::foreign::{described, has_panicked};
use super::machine_task::PendingMachine;
use super::monitor::{REASON_TIMEOUT, Watch};
use super::run::{BodyOutcome, OwnedMachines, Run, RunHandle};
use super::teardown::PREPARE_TIMEOUT;
use crate::backoff::Backoff;
use crate::cluster::{Cluster, Host};
use crate::error::Error;
use crate::event::{EventKind, GroupSize, cut};
use crate::machine::{Deadline, Machine, MachineId, RunId};
use crate::outcome::gravest;
use crate::plan::Plan;
use crate::provider::{Choice, LaunchRequest, ProgressSink, ProviderError, ProviderErrorKind};
use crate::record::{RunRecord, RunStore, SetUp};

/// How often a create is repeated when the service is throttling or unavailable.
const LAUNCH_ATTEMPTS: u32 = 8;

/// The pause before the first repetition; it doubles up to the longest, before the last one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(32);

/// How long after the first failure of a machine the failures of others are collected. Those with the same reason
/// come at about the same time.
const FAILURES_GRACE: Duration = Duration::from_millis(500);

/// How often a repair looks whether its machines' interruptions are known by now.
const POLL_INTERRUPTIONS: Duration = Duration::from_millis(100);

/// Which machine of the plan it is: its group's number in the plan, and its own in the group.
type Slot = (usize, u32);

/// What a task of the launch comes back with.
pub(super) enum TaskResult {
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

type Tasks = JoinSet<Result<TaskResult, Error>>;

impl Tsunami {
    /// Records a run and brings its machines up; tears them down if that fails.
    pub(super) async fn launch(
        self,
        run: RunId,
        mut plan: Plan,
        cancel: CancellationToken,
    ) -> Result<RunHandle, Error> {
        let quoted = cancel.run_until_cancelled(self.quote_chosen(&plan)).await.ok_or(Error::Cancelled)??;
        let (quotes, choices): (Vec<_>, Vec<_>) = quoted.into_iter().unzip();
        let max_cost = plan.max_cost(&quotes);
        if let Some(budget) = plan.budget
            && max_cost.is_none_or(|max_cost| max_cost > budget)
        {
            return Err(Error::Budget { budget, max_cost, spent: 0.0 });
        }
        let record = self.record_of(run, &plan, max_cost)?;
        let state = self.state.clone().map_or_else(RunStore::standard, Ok)?;
        let (directory, lock) = state.create(&record)?;
        let preparing = self.connector.prepare(&record.run, directory.path());
        let prepared = cancel.run_until_cancelled(preparing).await;
        let run = match prepared.map_or(Err(Error::Cancelled), |prepared| prepared.map_err(Error::Prepare)) {
            Ok(key) => Arc::new(self.open(&record, directory, Some(lock), cancel, key)),
            Err(error) => {
                let finished = timeout(PREPARE_TIMEOUT, self.connector.finish(&record.run)).await;
                tracing::debug!(?finished, "a run that was not prepared");
                directory.remove(Some(lock))?;
                return Err(error);
            }
        };
        run.emit_started(record.experiment);
        for (group, choice) in plan.groups.iter_mut().zip(choices) {
            if let Some(Choice { asked, chosen, spec }) = choice {
                group.spec = spec;
                run.events.emit(EventKind::Chosen { group: group.name.clone(), asked, chosen });
            }
        }
        let machines = OwnedMachines::new(run, self.keep);
        match machines.run().bring_up(plan).await {
            Ok(cluster) => Ok(RunHandle { machines, cluster }),
            Err(outcome) => machines.end(outcome).await,
        }
    }

    fn record_of(&self, run: RunId, plan: &Plan, max_cost: Option<f64>) -> Result<RunRecord, Error> {
        let (provider, settings) = described(&*self.provider).map_err(Error::other)?;
        let created = self.started_at.unwrap_or_else(SystemTime::now);
        let groups = plan.groups.iter();
        Ok(RunRecord {
            run,
            experiment: plan.name.clone(),
            provider,
            settings,
            created,
            deadline: Deadline { at: created + plan.lifetime, lifetime: plan.lifetime },
            groups: groups.map(|group| GroupSize { name: group.name.clone(), count: group.count }).collect(),
            results: self.results.clone(),
            kept: false,
            budget: plan.budget,
            max_cost,
        })
    }
}

impl Run {
    /// Launches all groups and sets all machines up. Everything that was begun has ended when this returns,
    /// except for requests that create something, which teardown awaits.
    async fn bring_up<T>(self: &Arc<Self>, plan: Plan) -> Result<Cluster, BodyOutcome<T>> {
        let (watcher, watch) = Watch::new(self.clone());
        let watcher = self.spawn_until_cancelled(watcher);
        let provisioner =
            Provisioner { run: self.clone(), plan: Arc::new(plan), watch, replaced: Arc::default() };
        let mut tasks = JoinSet::new();
        for group in 0..provisioner.plan.groups.len() {
            tasks.spawn(provisioner.clone().launch_group(group));
        }
        let result = provisioner.gather(tasks, BTreeMap::new()).await;
        if result.is_err() {
            watcher.abort();
        }
        result
    }
}

/// Brings machines up, and replaces those that are interrupted.
#[derive(Clone, Debug)]
pub(crate) struct Provisioner {
    pub(super) run: Arc<Run>,
    pub(crate) plan: Arc<Plan>,
    pub(super) watch: Arc<Watch>,
    /// The machines that were replaced.
    replaced: Arc<Mutex<BTreeMap<Slot, MachineId>>>,
}

impl Provisioner {
    /// Waits until all machines are up. Whatever of `tasks` is left when this fails has ended.
    async fn gather<T>(&self, tasks: Tasks, hosts: BTreeMap<Slot, Host>) -> Result<Cluster, BodyOutcome<T>> {
        let begun = hosts.iter().map(|(place, host)| (*place, host.machine().id.clone())).collect();
        let gathering =
            Gathering { provisioner: self, tasks, hosts, begun, failures: Vec::new(), grace: None };
        let held = self.run.spreads.hold();
        let hosts = gathering.until_all_are_up().await?;
        drop(held);
        self.run.spreads.settle().await;
        // It makes other processes faster; what there is they ask the provider.
        let machines: Vec<&Machine> = hosts.values().map(Host::machine).collect();
        self.run.directory.write_machines(&machines).map_err(BodyOutcome::from)?;
        self.run.directory.clear_unready();
        self.watch.calm_down();
        let (hosts, events) = (hosts.into_values().collect(), self.run.events.clone());
        let deadline = self.run.deadline.clone();
        Ok(Cluster::new(self.run.id.clone(), hosts, events, deadline, Some(self.clone())))
    }

    /// Notes that a machine no longer counts, if it may be replaced: once in each place, which is what a budget
    /// reckons with.
    fn replace(&self, place: Slot, id: &MachineId, interrupted: Error) -> Result<(), Error> {
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
        self.hear_of_interruptions(cluster).await;
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
            tasks.spawn(self.clone().launch_group(group));
        }
        match self.gather::<Cluster>(tasks, hosts).await {
            Ok(cluster) => Ok(cluster),
            Err(BodyOutcome::Result(result)) => result,
            Err(BodyOutcome::Panic(panic)) => resume_unwind(panic),
        }
    }

    /// Waits until an interruption is known, and the reason of every machine that is gone, for as long as that may
    /// take. It is no error if there is none: there may be nothing to repair.
    async fn hear_of_interruptions(&self, cluster: &Cluster) {
        self.watch.look_now();
        let unheard = |host: &Host| !host.is_interrupted() && self.watch.is_unexplained(&host.machine().id);
        let heard = async {
            while !cluster.hosts().iter().any(Host::is_interrupted) || cluster.hosts().iter().any(unheard) {
                sleep(POLL_INTERRUPTIONS).await;
            }
        };
        let _ = timeout(REASON_TIMEOUT, heard).await;
    }

    /// Launches a group. The request itself runs in a task of its own that nothing aborts.
    async fn launch_group(self, group_place: usize) -> Result<TaskResult, Error> {
        let (run, group) = (&self.run, &self.plan.groups[group_place]);
        run.events.emit(EventKind::Launching { group: group.name.clone(), count: group.count });
        let (creating, request) = (run.clone(), self.request(group_place));
        run.undecided.fetch_add(1, Ordering::Relaxed);
        let create = run.creates.spawn(async move {
            let created = creating.clone().create(request).await;
            // One that panicked may have asked for something, like one that is dropped.
            if !created.as_ref().is_err_and(has_panicked) {
                creating.undecided.fetch_sub(1, Ordering::Relaxed);
            }
            created
        });
        let launched = create.await.map_err(Error::other)?;
        let refused = |error| Error::Launch { group: group.name.clone(), source: group.placed(error) };
        let ids = launched.map_err(refused)?;
        run.events.emit(EventKind::Launched { group: group.name.clone(), machines: ids.clone() });
        Ok(TaskResult::Launched { group: group_place, ids })
    }

    fn request(&self, group_place: usize) -> LaunchRequest {
        let (run, group) = (&self.run, &self.plan.groups[group_place]);
        let (events, name) = (run.events.clone(), group.name.clone());
        let note =
            move |text: &str| events.emit(EventKind::Note { group: name.clone(), text: text.to_owned() });
        let replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        let replaced = replaced.iter().filter(|((group, _), _)| *group == group_place);
        LaunchRequest {
            run: run.id.clone(),
            experiment: run.experiment.clone(),
            group: group.name.clone(),
            count: group.size(),
            spec: group.spec.clone(),
            // Somebody may have moved it since.
            deadline: run.deadline.read(),
            authorized_key: run.authorized_key.clone(),
            replace: replaced.map(|(_, id)| id.clone()).collect(),
            notes: ProgressSink::new(note),
        }
    }
}

/// Machines on their way up.
struct Gathering<'a> {
    provisioner: &'a Provisioner,
    tasks: Tasks,
    hosts: BTreeMap<Slot, Host>,
    /// The machines that were begun with.
    begun: BTreeMap<Slot, MachineId>,
    /// In the order of time.
    failures: Vec<Error>,
    /// From the first failure on, until when others are heard of.
    grace: Option<Instant>,
}

impl Gathering<'_> {
    async fn until_all_are_up<T>(mut self) -> Result<BTreeMap<Slot, Host>, BodyOutcome<T>> {
        let ended = self.until_ended().await;
        self.tasks.shutdown().await;
        match ended {
            Some(BodyOutcome::Result(result)) => self.failures.extend(result.err()),
            Some(panic) => return Err(panic),
            None => {}
        }
        if !self.failures.is_empty() && !self.provisioner.run.cancel.is_cancelled() {
            self.note_unready();
        }
        match gravest(self.failures) {
            Some(error) => Err(error.into()),
            None => Ok(self.hosts),
        }
    }

    /// Writes down what machines there are, for whoever looks at them if they are kept, and which of them are not set up.
    fn note_unready(&self) {
        let Provisioner { run, plan, watch, .. } = self.provisioner;
        let (mut machines, mut unready) = (Vec::new(), BTreeMap::new());
        for (place @ (group, index), id) in &self.begun {
            let Some(machine) = watch.machine(id) else { continue };
            let group = plan.groups[*group].name.clone();
            let machine = Machine { group, index: *index, ..(*machine).clone() };
            if !self.hosts.contains_key(place) {
                let name = machine.name();
                let mut failed = self.failures.iter().filter_map(Error::place);
                let is_failed = failed.any(|(machine, _)| machine == name);
                unready.insert(id.clone(), if is_failed { SetUp::Failed } else { SetUp::Unended });
            }
            machines.push(machine);
        }
        let directory = &run.directory;
        // Machines that are written down count as set up, but for these.
        let noted = directory.write_unready(&unready);
        if let Err(error) =
            noted.and_then(|()| directory.write_machines(&machines.iter().collect::<Vec<_>>()))
        {
            tracing::debug!(%error, "machines that are not set up are not written down");
        }
    }

    /// Goes on until all are up or there were failures, or until something else ends it.
    async fn until_ended<T>(&mut self) -> Option<BodyOutcome<T>> {
        let run = &self.provisioner.run;
        let mut over = pin!(run.lifetime_over());
        loop {
            let grace = self.grace;
            let joined = tokio::select! {
                biased;
                () = run.cancel.cancelled() => return Some(Error::Cancelled.into()),
                over = &mut over => return Some(over.into()),
                refusal = self.provisioner.watch.refused() => return Some(Error::other(refusal).into()),
                joined = self.tasks.join_next() => joined?,
                () = sleep_until(grace.unwrap_or_else(Instant::now)), if grace.is_some() => return None,
            };
            match joined {
                Ok(Ok(result)) => self.take(result),
                Ok(Err(error)) => self.failures.push(error),
                Err(error) => return Some(panicked(error)),
            }
            if !self.failures.is_empty() {
                self.grace.get_or_insert_with(|| Instant::now() + FAILURES_GRACE);
            }
        }
    }

    fn take(&mut self, result: TaskResult) {
        let has_failed = !self.failures.is_empty();
        match result {
            // Once something has failed, what comes after it is only torn down.
            TaskResult::Launched { .. } if has_failed => {}
            TaskResult::Launched { group, ids } => self.spawn_machine_tasks(group, ids),
            TaskResult::Up { group, host } => drop(self.hosts.insert((group, host.index()), host)),
            TaskResult::Interrupted { group, index, id, error } => {
                match self.provisioner.replace((group, index), &id, error) {
                    Ok(()) if has_failed => {}
                    Ok(()) => drop(self.tasks.spawn(self.provisioner.clone().launch_group(group))),
                    Err(error) => self.failures.push(error),
                }
            }
        }
    }

    /// Sets out to reach those of a group's machines that are new.
    fn spawn_machine_tasks(&mut self, group: usize, ids: Vec<MachineId>) {
        let provisioner = self.provisioner;
        let deadline = Instant::now() + provisioner.plan.connect_timeout;
        for (index, id) in (0..).zip(ids) {
            if self.begun.insert((group, index), id.clone()).as_ref() != Some(&id) {
                let pending = PendingMachine { id, group, index, deadline };
                self.tasks.spawn(provisioner.clone().bring_machine_up(pending));
            }
        }
        provisioner.watch.look_now();
    }
}

impl Run {
    /// Repeats the request for as long as that may help and the run wants it.
    async fn create(self: Arc<Self>, request: LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        let mut attempt = 0;
        let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            if !self.directory.may_create() || self.cancel.is_cancelled() {
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
            let delay = pauses.wait() + self.jitter(&request.group, attempt);
            self.events.emit(EventKind::Retrying {
                group: request.group.clone(),
                error: error.to_string(),
                delay: cut(delay),
            });
            if self.cancel.run_until_cancelled(sleep(delay)).await.is_none() {
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
}

/// A set-up closure's panic is kept for later; a task that was aborted belongs to a run that is ending.
fn panicked<T>(error: JoinError) -> BodyOutcome<T> {
    match error.try_into_panic() {
        Ok(panic) => BodyOutcome::Panic(panic),
        Err(_) => Error::Cancelled.into(),
    }
}
