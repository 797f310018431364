//! A sweep: all trials of a plan in their order, and those that don't count done again.

#[cfg(feature = "experiment")]
use std::collections::HashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::mem;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::schedule::{OddMachines, Parameters, PlannedTrial, SweepPlan, Trials, VoidReason};
use super::{MetricPlan, Trial, lock};
use crate::cluster::{Cluster, Host, OutputRefused};
use crate::condition::{Accounting, Facts, Traces, canary, fingerprint, odd};
use crate::error::{Error, ErrorChain, Failures};
use crate::event::UserEvent;
#[cfg(feature = "experiment")]
use crate::experiment::problem::suggest;
use crate::machine::MachineId;
use crate::outcome::gravest;
#[cfg(feature = "experiment")]
use crate::report::TrialReport;
use crate::report::{MachineReport, Report};
use crate::statistics::Direction;
#[cfg(feature = "experiment")]
use crate::text::{number, quoted};

/// How often a trial is begun at most: done again twice.
const ATTEMPTS: u32 = 3;

/// How long trials go on before traces of what machines do begin: a process each, for nothing where all is over by then.
const TRACES_AFTER: Duration = Duration::from_secs(1);

/// How long the end of a set of machines may take, after its last trial.
const TEARDOWN_RESERVE: Duration = Duration::from_secs(20);

/// How many values of a parameter are named to who asks for another.
#[cfg(feature = "experiment")]
const VALUES_SHOWN: usize = 10;

/// How many errors of failed trials are kept to be told at the end.
const ERRORS_KEPT: usize = 20;

/// What a sweep's trials are made of.
pub(crate) trait Measure {
    /// Whether a trial is nothing but its name, so that its machines need no look.
    fn does_nothing(&self) -> bool {
        false
    }

    /// Whether anything is to be [prepared](Self::prepare).
    fn prepares(&self) -> bool {
        false
    }

    /// What is done once on a set of machines, before its first trial. What it starts goes on until the last is over: if it
    /// ends before that, the trial under way has failed, and no other is begun.
    fn prepare(&self, trial: Trial) -> impl Future<Output = Result<(), Error>> {
        let _ = trial;
        async { Ok(()) }
    }

    /// Called when it is known what the machines are, as far as that is looked at.
    fn looked_at(&self, cluster: &Cluster) {
        let _ = cluster;
    }

    /// A trial, which may be the first on its machines.
    fn measure(&self, trial: Trial, is_first: bool) -> impl Future<Output = Result<(), Error>>;

    /// Where traces of what machines do are written, if they are.
    fn traces(&self) -> Option<PathBuf> {
        None
    }

    /// Keeps what a trial that doesn't count brought home from mixing with what the next attempt does.
    fn set_aside(&self, trial: &str, attempt: &str) -> io::Result<()> {
        let _ = (trial, attempt);
        Ok(())
    }
}

/// Trials that are measured by a program's own closure.
struct Closure<F>(F);

impl<F, Fut> Measure for Closure<F>
where
    F: Fn(Trial) -> Fut,
    Fut: Future<Output = Result<(), Error>>,
{
    fn measure(&self, trial: Trial, _: bool) -> impl Future<Output = Result<(), Error>> {
        (self.0)(trial)
    }
}

impl Cluster {
    /// Runs trials in a [planned order](Trials::plan), and reports what came of them. `body` measures one: it is called
    /// once for each, one after another, and each is like [`trial`](Self::trial).
    ///
    /// A trial that fails is a result: it is reported as failed, not done again, and the others go on. What a machine
    /// that was interrupted or lost has cut doesn't count, and is done again at most twice, with all trials of its round:
    /// on a replacement, where the [group](crate::Group::replace_interrupted) may have one. So is a trial that other
    /// processes of its machines disturbed, in its place; if they do so each time, it counts and its
    /// [accounts](crate::TrialReport::accounts) say so, as the trials after it do until one isn't
    /// disturbed; so does a single trial that measures nothing. If a trial can't be expected to end before the lifetime is over, it
    /// is not begun, and the report says so.
    ///
    /// The report begins where the sweep does: what its machines did before is not in it.
    ///
    /// ```
    /// use tsunami_core::statistics::Direction;
    /// use tsunami_core::trial::{Trial, Trials};
    /// use tsunami_core::{Cluster, Error, Report};
    ///
    /// async fn compare(cluster: &Cluster) -> Result<Report, Error> {
    ///     let trials = Trials::matrix([("variant", ["old", "new"])]).compare("variant").repeat(10).seed(7);
    ///     cluster
    ///         .trials(trials, async |trial: Trial| {
    ///             let line = format!("bin/{} --requests 100000", trial.parameter("variant")?);
    ///             let output = trial.host("client-0")?.run(line).await?;
    ///             trial.metric("rps", Direction::Higher, output.stdout().trim().parse()?);
    ///             Ok(())
    ///         })
    ///         .await
    /// }
    /// ```
    ///
    /// # When the future is dropped
    ///
    /// The trial that is under way ends as [`trial`](Self::trial) says, and does not count.
    ///
    /// # Errors
    ///
    /// What is wrong with `trials`, or an interrupted or lost machine that was not replaced.
    pub async fn trials<F, Fut>(&self, trials: Trials, body: F) -> Result<Report, Error>
    where
        F: Fn(Trial) -> Fut,
        Fut: Future<Output = Result<(), Error>>,
    {
        let problems = trials.problems();
        if !problems.is_empty() {
            return Err(Error::other(problems.join("; ")));
        }
        let plan = trials.plan(trials.seed.unwrap_or_else(new_seed), |_| 1);
        let report = Arc::new(Mutex::new(self.first_report()));
        self.events().sum_up_in(&report);
        let sweep = Sweep::new(plan, &trials);
        sweep.on_set(1, 1, self.clone(), &Closure(body)).await?;
        let report = mem::take(&mut *lock(&report));
        Ok(report)
    }

    /// What is known of the run without having heard of it.
    fn first_report(&self) -> Report {
        let machine = |host: &Host| {
            let id = Some(host.machine().id.clone());
            (host.name().to_owned(), MachineReport { id, ..MachineReport::default() })
        };
        let mut report = Report::default();
        report.run = Some(self.run_id().clone());
        report.machines = self.hosts().iter().map(machine).collect();
        report
    }
}

/// By what an order is drawn if nobody says so; short enough to be written into a file.
pub(crate) fn new_seed() -> u64 {
    RandomState::new().hash_one(std::process::id()) >> 32
}

/// How far a sweep is. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Progress(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    plan: SweepPlan,
    /// By their place in the plan.
    trials: Vec<TrialState>,
    /// How long trials took, by what their parameters were.
    took: BTreeMap<String, Vec<Duration>>,
    /// What machines are.
    facts: BTreeMap<MachineId, Facts>,
    /// The machines that were measured by themselves.
    canaries: BTreeSet<MachineId>,
    /// The machines that differ from their groups, and in what.
    odd: BTreeMap<String, String>,
    /// Why trials failed: the first of them.
    errors: Vec<Error>,
    /// Why the first set stopped that did before its time.
    stopped: Option<String>,
    /// How long the machines of the set that is under way had for trials when these began. `None`: it is not known, or they
    /// were made for something else before.
    room: Option<Duration>,
    /// Whether that was too short for a trial, as it would be once more on new machines.
    is_too_short: bool,
    is_planned: bool,
    /// Whether the last successful trial counts although it was disturbed each time.
    is_noisy: bool,
}

#[derive(Clone, Debug, Default)]
struct TrialState {
    /// Whether it succeeded, once it counts.
    counted: Option<bool>,
    /// How many attempts didn't count.
    voided: u32,
    /// How often this process has begun it.
    begun: u32,
    /// Whether a process that was killed has left it as it was.
    is_cut: bool,
}

impl Progress {
    /// Adds a metric that nobody has named beforehand, for which the plan is told once more.
    pub(super) fn add_metric(&self, cluster: &Cluster, name: &str, better: Direction) {
        let plan = {
            let mut state = lock(&self.0);
            if state.plan.metrics.iter().any(|metric| metric.name == name) {
                return;
            }
            let (name, better) = (name.to_owned(), Some(better));
            state.plan.metrics.push(MetricPlan { name, better, ..MetricPlan::default() });
            state.plan.clone()
        };
        cluster.emit(UserEvent::SweepPlanned { plan });
    }

    /// How many trials that count are done, and how many there are to be.
    fn done(&self) -> (u32, u32) {
        let state = lock(&self.0);
        let counted = state.plan.trials.iter().zip(&state.trials).filter(|(planned, _)| !planned.warmup);
        counted.fold((0, 0), |(done, of), (_, trial)| (done + u32::from(trial.counted.is_some()), of + 1))
    }
}

/// The trials of a plan, on one set of machines after another. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Sweep {
    progress: Progress,
    plan: Arc<SweepPlan>,
    odd: OddMachines,
    canary: bool,
    /// What parameters are in the part that is done.
    only: Arc<[(String, String)]>,
}

/// What came of an attempt.
enum Attempt {
    /// It counts.
    Counts,
    /// It doesn't, for a reason that may have gone.
    Void,
    /// Whether or not it does, no other is done on these machines, for this reason.
    Last(String),
}

impl Sweep {
    /// A sweep of which nothing is done.
    pub(crate) fn new(plan: SweepPlan, wanted: &Trials) -> Self {
        let trials = vec![TrialState::default(); plan.trials.len()];
        let shared = Arc::new(plan.clone());
        let state = State {
            plan,
            trials,
            took: BTreeMap::new(),
            facts: BTreeMap::new(),
            canaries: BTreeSet::new(),
            odd: BTreeMap::new(),
            errors: Vec::new(),
            stopped: None,
            room: None,
            is_too_short: false,
            is_planned: false,
            is_noisy: false,
        };
        let (progress, only) = (Progress(Arc::new(Mutex::new(state))), Arc::default());
        Self { progress, plan: shared, odd: wanted.odd, canary: wanted.canary, only }
    }

    /// Whether a trial is of the part that is done.
    fn is_wanted(&self, planned: &PlannedTrial) -> bool {
        planned.is_of(&self.only)
    }

    /// What parameters are in the part that is done.
    #[cfg(feature = "experiment")]
    pub(crate) fn part(&self) -> &[(String, String)] {
        &self.only
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.progress.0)
    }

    /// The number of its last set of machines.
    pub(crate) fn set_count(&self) -> u32 {
        self.plan.trials.iter().map(|trial| trial.set).max().unwrap_or(1)
    }

    /// How many trials that count are done, and how many there are to be.
    pub(crate) fn done(&self) -> (u32, u32) {
        self.progress.done()
    }

    /// Whether nothing is left to do on a set.
    pub(crate) fn is_done(&self, set: u32) -> bool {
        let state = self.state();
        !self.left(&state).any(|planned| planned.set == set)
    }

    /// Whether new machines have no time for what is left either.
    #[cfg(feature = "experiment")]
    pub(crate) fn is_too_short(&self) -> bool {
        self.state().is_too_short
    }

    /// Whether a trial that was to be done is not.
    pub(crate) fn is_given_up(&self) -> bool {
        let state = self.state();
        self.left(&state).next().is_some()
    }

    /// The trials that are to be done and count, and are not done.
    fn left<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a PlannedTrial> {
        let all = self.plan.trials.iter().zip(&state.trials);
        let left = all.filter(|(planned, trial)| !planned.warmup && trial.counted.is_none());
        left.map(|(planned, _)| planned).filter(|planned| self.is_wanted(planned))
    }

    /// Keeps why a set stopped before its time, to be told at the end.
    pub(crate) fn stop(&self, why: String) {
        self.state().stopped.get_or_insert(why);
    }

    fn why_not_all(&self) -> String {
        if self.is_given_up() {
            return self.state().stopped.clone().unwrap_or_else(|| GIVEN_UP.to_owned());
        }
        let only: Vec<_> = self.only.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("only {} was to be done", only.join(", "))
    }

    /// Tells that no more trials are done.
    pub(crate) fn finish(&self, cluster: &Cluster, why: Option<String>) {
        let (done, of) = self.done();
        let why = why.or_else(|| (done < of).then(|| self.why_not_all()));
        cluster.emit(UserEvent::SweepFinished { done, of, why });
    }

    /// Does what is left of a set on machines that are up, which are the `number`th set of the sweep, and tells the end of
    /// the sweep if nothing is left of any. Says why it stopped before its time, if it did.
    ///
    /// If the future is dropped, the trial that is under way does not count.
    pub(crate) async fn on_set<M: Measure>(
        &self,
        set: u32,
        number: u32,
        mut cluster: Cluster,
        measure: &M,
    ) -> Result<Option<String>, Error> {
        // Once more where it is resumed: not all who observe it know what was told before.
        if !mem::replace(&mut self.state().is_planned, true) {
            cluster.emit(UserEvent::SweepPlanned { plan: (*self.plan).clone() });
        }
        cluster.emit(UserEvent::SetStarted { set: number, run: cluster.run_id().clone() });
        self.state().room = None;
        // Whoever drops this has nobody else to tell it.
        let mut ending = Ending { sweep: self, cluster: cluster.clone(), is_over: false };
        let ended = loop {
            let ended = if measure.prepares() {
                let trial = Trial::new(&cluster, format!("set-{number}"), Parameters::new(), None)?;
                let body = async |trial: Trial| {
                    measure.prepare(trial.clone()).await?;
                    self.go(set, &cluster, measure, Some(&trial)).await
                };
                cluster.attempt(trial, false, body).await
            } else {
                self.go(set, &cluster, measure, None).await
            };
            match ended {
                Err(error) if loss(&error).is_some() && !cluster.is_ending() => {
                    match repaired(&cluster, error).await {
                        Ok(repaired) => cluster = repaired,
                        Err(error) => break Err(error),
                    }
                }
                ended => break ended,
            }
        };
        ending.is_over = true;
        let is_last = (set + 1..=self.set_count()).all(|set| self.is_done(set));
        if let Ok(Some(why)) = &ended {
            self.stop(why.clone());
        }
        match &ended {
            Ok(_) if !is_last => {}
            Ok(why) => self.finish(&cluster, why.clone()),
            Err(error) => self.finish(&cluster, Some(ErrorChain(error).to_string())),
        }
        ended
    }

    /// Does what is left of a set on machines none of which is lost meanwhile. Says why it stopped, if it did before that
    /// was done.
    async fn go<M: Measure>(
        &self,
        set: u32,
        cluster: &Cluster,
        measure: &M,
        prepared: Option<&Trial>,
    ) -> Result<Option<String>, Error> {
        if self.is_done(set) {
            return Ok(None);
        }
        if measure.does_nothing() {
            measure.looked_at(cluster);
            return self.rounds(set, cluster, measure, prepared).await;
        }
        self.look_at(cluster).await;
        measure.looked_at(cluster);
        if self.canary {
            self.canaries(cluster, false).await;
        }
        let ended = traced(cluster, measure, self.rounds(set, cluster, measure, prepared)).await;
        if self.canary && matches!(ended, Ok(None)) {
            self.canaries(cluster, true).await;
        }
        ended
    }

    /// Tells what machines are, and which of them differ from their groups.
    async fn look_at(&self, cluster: &Cluster) {
        let known = self.state().facts.clone();
        let new = cluster.hosts().iter().filter(|host| !known.contains_key(&host.machine().id));
        for (host, facts) in join_all(new.map(async |host| (host, fingerprint(host).await))).await {
            // One that can't be asked is no worse for that, or its trial will tell.
            let Ok(facts) = facts else { continue };
            let (machine, id) = (host.name().to_owned(), host.machine().id.clone());
            self.state().facts.insert(id.clone(), facts.clone());
            cluster.emit(UserEvent::Fingerprint { machine, id: Some(id), facts });
        }
        let facts = self.state().facts.clone();
        let machine = |host: &Host| {
            Some((host.name().to_owned(), host.group().to_owned(), facts.get(&host.machine().id)?.clone()))
        };
        let machines: Vec<_> = cluster.hosts().iter().filter_map(machine).collect();
        let machines: Vec<_> =
            machines.iter().map(|(name, group, facts)| (&**name, &**group, facts)).collect();
        let mut all = BTreeMap::new();
        for (machine, differences) in odd(&machines) {
            all.insert(machine.clone(), differences.join("; "));
            cluster.emit(UserEvent::OddMachine { machine, differences });
        }
        self.state().odd = all;
    }

    /// Measures machines by themselves: all, or those that were not.
    async fn canaries(&self, cluster: &Cluster, all: bool) {
        let known = self.state().canaries.clone();
        let wanted = cluster.hosts().iter().filter(|host| all || !known.contains(&host.machine().id));
        for (host, results) in join_all(wanted.map(async |host| (host, canary(host).await))).await {
            if let Ok(results) = results {
                self.state().canaries.insert(host.machine().id.clone());
                cluster.emit(UserEvent::Canary { machine: host.name().to_owned(), results });
            }
        }
    }

    /// The warm-ups and rounds of that.
    async fn rounds<M: Measure>(
        &self,
        set: u32,
        cluster: &Cluster,
        measure: &M,
        prepared: Option<&Trial>,
    ) -> Result<Option<String>, Error> {
        let mut is_first = true;
        if cluster.is_of_this_run() {
            self.state().room.get_or_insert_with(|| cluster.time_left());
        }
        let of_set = |planned: &&PlannedTrial| planned.set == set && self.is_wanted(planned);
        let indexed = self.plan.trials.iter().enumerate().filter(|(_, planned)| of_set(planned));
        let (warmups, counted): (Vec<_>, Vec<_>) = indexed.partition(|(_, planned)| planned.warmup);
        let rounds = rounds(&counted);
        if !rounds.iter().any(|round| self.may_be_done(round)) {
            return Ok(None);
        }
        for (at, _) in warmups {
            // Those of an earlier time were on other machines.
            self.void_round(cluster, measure, at..at + 1)?;
            if let Some(why) = self.too_late(cluster, at..at + 1) {
                return Ok(Some(why));
            }
            let attempt = self.attempt(at, cluster, measure, prepared, mem::take(&mut is_first));
            if let Attempt::Last(why) = attempt.await? {
                return Ok(Some(why));
            }
        }
        for round in rounds.into_iter().filter(|round| self.may_be_done(round)) {
            if let Some(departed) = cluster.departure().await {
                return Err(departed);
            }
            self.void_round(cluster, measure, round.clone())?;
            if self.plan.compare.is_some()
                && let Some(why) = self.too_late(cluster, round.clone())
            {
                return Ok(Some(why));
            }
            for at in round {
                while self.may_begin(at) {
                    if let Some(why) = self.too_late(cluster, at..at + 1) {
                        return Ok(Some(why));
                    }
                    let attempt = self.attempt(at, cluster, measure, prepared, mem::take(&mut is_first));
                    match attempt.await? {
                        Attempt::Counts => break,
                        Attempt::Void => {}
                        Attempt::Last(why) => return Ok(Some(why)),
                    }
                }
            }
        }
        Ok(None)
    }

    /// Whether a round is not done, and each of its trials may be begun once more.
    fn may_be_done(&self, round: &Range<usize>) -> bool {
        let trials = &self.state().trials[round.clone()];
        let is_done = trials.iter().all(|trial| trial.counted.is_some());
        !is_done && trials.iter().all(|trial| trial.begun < ATTEMPTS)
    }

    fn may_begin(&self, at: usize) -> bool {
        self.state().trials[at].begun < ATTEMPTS
    }

    /// Lets what is done of a round not count, before it is done again whole.
    fn void_round<M: Measure>(
        &self,
        cluster: &Cluster,
        measure: &M,
        round: Range<usize>,
    ) -> Result<(), Error> {
        for at in round {
            let (counted, is_cut) = {
                let trial = &mut self.state().trials[at];
                (trial.counted.take(), mem::take(&mut trial.is_cut))
            };
            let voided = match counted {
                Some(_) if self.plan.trials[at].warmup => {
                    Some((VoidReason::Round, "the machines are warmed up again"))
                }
                Some(_) => Some((VoidReason::Round, "the round is done again whole")),
                None => is_cut.then_some((VoidReason::Cut, CUT)),
            };
            if let Some((reason, text)) = voided {
                self.void(at, cluster, measure, reason, text.to_owned(), Vec::new())?;
            }
        }
        Ok(())
    }

    /// Lets an attempt not count, and gives it and what it brought home a name of its own.
    fn void<M: Measure>(
        &self,
        at: usize,
        cluster: &Cluster,
        measure: &M,
        reason: VoidReason,
        text: String,
        machines: Vec<String>,
    ) -> Result<(), Error> {
        let trial = self.plan.trials[at].name.clone();
        let attempt = {
            let state = &mut self.state().trials[at];
            state.voided += 1;
            format!("{trial}.{}", state.voided)
        };
        let set_aside = measure.set_aside(&trial, &attempt);
        cluster.emit(UserEvent::TrialVoided { trial, attempt, reason, text, machines });
        Ok(set_aside?)
    }

    /// One attempt at a trial, which counts on what was `prepared` to go on.
    async fn attempt<M: Measure>(
        &self,
        at: usize,
        cluster: &Cluster,
        measure: &M,
        prepared: Option<&Trial>,
        is_first: bool,
    ) -> Result<Attempt, Error> {
        // What it measured would not be what was planned, even if it ran elsewhere.
        if let Some(departed) = cluster.departure().await {
            return Err(departed);
        }
        if let Some(error) = ended_services(prepared).await {
            let why = service_ended(&error);
            self.state().errors.push(error);
            return Ok(Attempt::Last(why));
        }
        let planned = &self.plan.trials[at];
        let (name, parameters) = (planned.name.clone(), planned.parameters.clone());
        let trial = Trial::new(cluster, name, parameters, Some(self.progress.clone()))?;
        self.state().trials[at].begun += 1;
        let mut under_way = UnderWay { sweep: self, at, cluster, measure, is_over: false };
        let begun = Instant::now();
        let (disturbed, last) = (Mutex::new(Vec::new()), Mutex::new(None));
        let body = async |trial: Trial| {
            let accounting = match measure.does_nothing() {
                true => None,
                false => Some(Accounting::begin(cluster.hosts()).await),
            };
            let measured = measure.measure(trial.clone(), is_first).await;
            // While what it has begun still runs: the time of what has ended may pass for somebody else's.
            if let Some(accounting) = accounting.filter(|_| !trial.has_ended()) {
                for account in accounting.end().await {
                    let by = account.disturbed.clone().map(|by| (account.machine.clone(), by));
                    lock(&disturbed).extend(by);
                    cluster.emit(UserEvent::Accounted { trial: trial.name().to_owned(), account });
                }
            }
            let Some(ended) = ended_services(prepared).await else { return measured };
            *lock(&last) = Some(service_ended(&ended));
            // What failed besides follows from that, more likely than not.
            gravest([Some(ended), measured.err()].into_iter().flatten().collect()).map_or(Ok(()), Err)
        };
        let ended = cluster.attempt(trial.clone(), true, body).await;
        let took = begun.elapsed();
        under_way.is_over = true;
        drop(under_way);
        let void = |reason, text, machines| self.void(at, cluster, measure, reason, text, machines);
        let error = match ended {
            Ok(()) => None,
            // What fails then says nothing of the experiment.
            Err(error) if cluster.is_ending() => {
                void(VoidReason::Cut, CUT.to_owned(), Vec::new())?;
                return Err(error);
            }
            Err(error) if OutputRefused::is_source_of(&error) || is_own_disk(&error) => {
                void(VoidReason::Cut, error.to_string(), Vec::new())?;
                return Err(error);
            }
            Err(error) => match loss(&error) {
                Some((reason, machines)) => {
                    void(reason, error.to_string(), machines)?;
                    return Err(error);
                }
                None => Some(error),
            },
        };
        if !planned.warmup && error.is_none() {
            let by = lock(&disturbed).clone();
            if let Some((_, first)) = by.first().filter(|_| !self.is_noisy(at)) {
                let text = first.clone();
                self.state().took.entry(kind(planned)).or_default().push(took);
                void(VoidReason::Disturbed, text, by.into_iter().map(|(machine, _)| machine).collect())?;
                return Ok(Attempt::Void);
            }
            let odd = self.state().odd.clone();
            let odd: Vec<_> = odd.into_iter().filter(|(machine, _)| trial.used().contains(machine)).collect();
            if self.odd == OddMachines::Void
                && let Some((machine, differences)) = odd.first()
            {
                let text = format!("{machine} differs from its group: {differences}");
                void(
                    VoidReason::Odd,
                    text.clone(),
                    odd.iter().map(|(machine, _)| machine.clone()).collect(),
                )?;
                return Ok(Attempt::Last(text));
            }
        }
        let mut state = self.state();
        let ok = error.is_none();
        // Neither a warm-up nor a failed trial is done again for being disturbed, so that they tell nothing of whether it ends.
        if ok && !planned.warmup {
            state.is_noisy = !lock(&disturbed).is_empty();
        }
        state.trials[at].counted = Some(ok);
        if ok {
            state.took.entry(kind(planned)).or_default().push(took);
        }
        let last = lock(&last).take();
        let is_kept = last.is_some() || (!planned.warmup && state.errors.len() < ERRORS_KEPT);
        state.errors.extend(error.filter(|_| is_kept));
        Ok(last.map_or(Attempt::Counts, Attempt::Last))
    }

    /// Whether a trial that was disturbed counts all the same, marked as such: when it was each time that it was tried, or
    /// when that is how the last one came to count. What never ends is how these machines are, and more of it is no better.
    /// So does a single one that measures nothing: no number is wrong for it, and nobody asked for commands to run twice.
    fn is_noisy(&self, at: usize) -> bool {
        let state = self.state();
        state.plan.is_plain() || state.is_noisy || state.trials[at].begun >= ATTEMPTS
    }

    /// Why these trials are not begun: they can't be expected to end before the lifetime is over. Where nothing is known
    /// of such trials, they may.
    fn too_late(&self, cluster: &Cluster, trials: Range<usize>) -> Option<String> {
        let mut state = self.state();
        let each = self.plan.trials[trials].iter().map(|planned| median(state.took.get(&kind(planned))?));
        let needed: Duration = each.flatten().map(|median| median.mul_f64(1.5)).sum();
        if needed.is_zero() || cluster.time_left() >= needed + TEARDOWN_RESERVE {
            return None;
        }
        let late = "the lifetime of the machines leaves no time for another";
        if state.room.is_none_or(|room| room >= needed + TEARDOWN_RESERVE) {
            return Some(late.to_owned());
        }
        state.is_too_short = true;
        Some(format!("{late}, nor would that of new ones: begin anew with a longer `lifetime`"))
    }
}

/// What files ask of it.
#[cfg(feature = "experiment")]
impl Sweep {
    /// The rest of a sweep that has come as far as its report says. What `is_left` says was left of a trial is of an attempt
    /// of which nobody could tell.
    pub(crate) fn resumed(
        plan: SweepPlan,
        wanted: &Trials,
        report: &Report,
        is_left: impl Fn(&str) -> bool,
    ) -> Self {
        let sweep = Self::new(plan, wanted);
        {
            let state = &mut *sweep.state();
            let mut known = HashMap::<&str, Vec<&TrialReport>>::new();
            for attempt in &report.trials {
                known.entry(attempt.planned_name()).or_default().push(attempt);
            }
            for (planned, trial) in sweep.plan.trials.iter().zip(&mut state.trials) {
                for known in known.get(planned.name.as_str()).into_iter().flatten() {
                    match (&known.voided, known.ok) {
                        (Some(_), _) => trial.voided += 1,
                        (None, ok) => (trial.counted, trial.is_cut) = (ok, ok.is_none()),
                    }
                    if let (None, Some(true), Some(took)) = (&known.voided, known.ok, known.took) {
                        state.took.entry(kind(planned)).or_default().push(took);
                    }
                }
                trial.is_cut |= trial.counted.is_none() && is_left(&planned.name);
            }
        }
        sweep
    }

    /// Does a part alone: the trials in which these parameters are so.
    ///
    /// # Errors
    ///
    /// There is no such part, or it would cut rounds.
    pub(crate) fn only(mut self, only: Vec<(String, String)>) -> Result<Self, String> {
        for (name, value) in &only {
            let Some(parameter) = self.plan.parameters.iter().find(|parameter| parameter.name == *name)
            else {
                let known = self.plan.parameters.iter().map(|parameter| parameter.name.as_str());
                let help = suggest(name, known).map(|help| format!(" ({help})")).unwrap_or_default();
                return Err(format!("there is no parameter {name}{help}"));
            };
            if !parameter.values.iter().any(|known| known.is_written(value)) {
                let known = parameter.values.iter().take(VALUES_SHOWN);
                let known = known.map(|known| quoted(&known.to_string()).into_owned());
                let known = known.collect::<Vec<_>>().join(", ");
                let more = if parameter.values.len() > VALUES_SHOWN { ", …" } else { "" };
                return Err(format!("parameter {name} is never {}: it is {known}{more}", quoted(value)));
            }
            if self.plan.compare.as_ref().is_some_and(|compare| compare.by == *name) {
                return Err(format!("{name} is compared: rounds are done whole"));
            }
        }
        self.only = only.into();
        Ok(self)
    }

    pub(crate) fn plan(&self) -> &SweepPlan {
        &self.plan
    }

    /// Why a set has failed that went on to its end, if so: trials that failed there, or that are not done.
    pub(crate) fn failure_of(&self, set: u32) -> Option<String> {
        if !self.is_done(set) {
            return Some(GIVEN_UP.to_owned());
        }
        let state = self.state();
        let trials = self.plan.trials.iter().zip(&state.trials);
        let own = trials.filter(|(planned, trial)| planned.set == set && !planned.warmup && trial.begun > 0);
        let (failed, of) = own.fold((0, 0), |(failed, of), (_, trial)| {
            (failed + usize::from(trial.counted == Some(false)), of + 1)
        });
        (failed > 0).then(|| format!("{failed} of {} failed", number(of, "trial")))
    }

    /// What a program ends with that shows failed trials as an error, as files do.
    pub(crate) fn outcome(&self) -> Result<(), Error> {
        let (done, of) = self.done();
        let mut errors = mem::take(&mut self.state().errors);
        if self.is_given_up() {
            let why = self.why_not_all();
            errors.push(Error::Incomplete { done, of, why, is_resumable: !self.is_too_short() });
        } else if errors.is_empty() && self.state().trials.iter().any(|trial| trial.counted == Some(false)) {
            errors.push(Error::other("trials failed before the sweep was resumed"));
        }
        let mut errors = errors.into_iter();
        let (Some(first), others) = (errors.next(), errors.collect::<Vec<_>>()) else { return Ok(()) };
        if others.is_empty() {
            return Err(first);
        }
        Err(Error::Several(Failures { first: Box::new(first), others }))
    }
}

/// Why a sweep is not complete that went on to its end.
const GIVEN_UP: &str = "the others were done again twice, and don't count";

/// What ended a trial that did not end by itself.
const CUT: &str = "the run was ended";

/// Has what machines do noted while `rounds` go on. What is over before there could be a second line begins no trace.
async fn traced<M: Measure, T>(cluster: &Cluster, measure: &M, rounds: impl Future<Output = T>) -> T {
    let Some(directory) = measure.traces() else { return rounds.await };
    let mut rounds = Box::pin(rounds);
    if let Ok(ended) = timeout(TRACES_AFTER, &mut rounds).await {
        return ended;
    }
    let traces = Traces::start(cluster.hosts(), directory);
    let ended = rounds.await;
    if let Err(error) = traces.stop().await {
        tracing::warn!(%error, "there are machines without a whole trace");
    }
    ended
}

/// Trials of one round follow one another.
fn rounds(trials: &[(usize, &PlannedTrial)]) -> Vec<Range<usize>> {
    let rounds = trials.chunk_by(|(_, one), (_, next)| one.round == next.round);
    rounds.map(|round| round[0].0..round[0].0 + round.len()).collect()
}

/// What trials have in common that take about the same time.
fn kind(planned: &PlannedTrial) -> String {
    format!("{:?}", planned.parameters)
}

fn median(took: &[Duration]) -> Option<Duration> {
    let mut sorted = took.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

/// Whether an error is that of machines that were interrupted or lost, and which they are.
fn loss(error: &Error) -> Option<(VoidReason, Vec<String>)> {
    let all: Vec<&Error> = match error {
        Error::Several(Failures { first, others }) => std::iter::once(&**first).chain(others).collect(),
        error => vec![error],
    };
    let lost = |error: &&&Error| matches!(error, Error::Interrupted { .. } | Error::Lost { .. });
    let lost: Vec<_> = all.iter().filter(lost).collect();
    let is_interrupted = lost.iter().any(|error| matches!(error, Error::Interrupted { .. }));
    let reason = if is_interrupted { VoidReason::Interrupted } else { VoidReason::Lost };
    let mut machines: Vec<_> =
        lost.iter().filter_map(|error| error.place()).map(|(machine, _)| machine.to_owned()).collect();
    machines.sort();
    machines.dedup();
    (!lost.is_empty()).then_some((reason, machines))
}

/// Whether an error stems from a disk of this computer that takes no more: what a machine says of its own is no such error.
fn is_own_disk(error: &Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let all =
        std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| error.source());
    let mut kinds = all.filter_map(|error| error.downcast_ref::<io::Error>()).map(io::Error::kind);
    kinds.any(|kind| matches!(kind, StorageFull | QuotaExceeded | ReadOnlyFilesystem))
}

/// How services ended that were to go on for all trials, if some did.
async fn ended_services(prepared: Option<&Trial>) -> Option<Error> {
    prepared?.ended_services().await
}

/// Why no other trial is done.
fn service_ended(error: &Error) -> String {
    format!("what was started for all trials has ended: {}", ErrorChain(error))
}

/// Replaces the machines that were interrupted; fails with `error` if there are none.
async fn repaired(cluster: &Cluster, error: Error) -> Result<Cluster, Error> {
    if !cluster.may_be_repaired() {
        return Err(error);
    }
    let repaired = cluster.repair().await?;
    let mut pairs = cluster.hosts().iter().zip(repaired.hosts());
    let is_another = pairs.any(|(old, new)| old.machine().id != new.machine().id);
    if is_another { Ok(repaired) } else { Err(error) }
}

/// A trial that is under way. If it is dropped before it is over, it doesn't count.
struct UnderWay<'a, M: Measure> {
    sweep: &'a Sweep,
    at: usize,
    cluster: &'a Cluster,
    measure: &'a M,
    is_over: bool,
}

impl<M: Measure> Drop for UnderWay<'_, M> {
    fn drop(&mut self) {
        if !self.is_over {
            let Self { sweep, at, cluster, measure, .. } = self;
            let voided = sweep.void(*at, cluster, *measure, VoidReason::Cut, CUT.to_owned(), Vec::new());
            if let Err(error) = voided {
                tracing::error!(%error, "what a trial brought home is not set aside");
            }
        }
    }
}

/// A sweep that goes on. If it is dropped before it is over, it says so.
struct Ending<'a> {
    sweep: &'a Sweep,
    cluster: Cluster,
    is_over: bool,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.sweep.finish(&self.cluster, Some(CUT.to_owned()));
        }
    }
}
