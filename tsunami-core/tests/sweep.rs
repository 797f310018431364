//! Sweeps of trials on the fake cloud and paused time. Every test ends with an empty cloud.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tsunami_core::statistics::Direction;
use tsunami_core::testing::{FakeCloud, MachineFault, Reply};
use tsunami_core::trial::{OddMachines, Trial, Trials, VoidReason};
use tsunami_core::{
    Cluster, Error, Event, EventKind, Group, LaunchRequest, Leftover, Machine, MachineId, MachineSpec,
    MachineState, Observer, Outcome, Plan, Provider, ProviderError, Quote, Recorder, Report, RunFilter,
    RunId, RunStore, Tsunami,
};

/// A fake cloud, and what was heard of a run on it.
struct World {
    cloud: FakeCloud,
    events: Arc<Recorder>,
    cancel: CancellationToken,
    directory: TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cloud = FakeCloud::new(1);
        cloud.on_command(|_, command| {
            let line = command.to_string();
            let seconds = line.strip_prefix("measure ")?.parse().ok()?;
            Some(Reply::stdout("17\n").after(Duration::from_secs(seconds)))
        });
        Self { cloud, events: Arc::default(), cancel: CancellationToken::new(), directory }
    }

    /// Runs trials on four machines, each of which may be replaced.
    async fn sweep<F, Fut>(&self, lifetime: Duration, trials: Trials, body: F) -> Result<Report, Error>
    where
        F: Fn(Trial) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Error>> + Send,
    {
        let tsunami = Tsunami::new(Arc::new(self.cloud.clone()), Arc::new(self.cloud.clone()))
            .state(RunStore::at(self.directory.path().join("runs")))
            .cancel_on(self.cancel.clone())
            .observer(self.events.clone() as Arc<dyn Observer>);
        let group = Group::new("node", MachineSpec::default()).count(4).replace_interrupted(true);
        let plan =
            Plan::new("sweep").group(group.setup(async |host| host.run("install").await)).lifetime(lifetime);
        let ended =
            tsunami.run(plan, |cluster: Cluster| async move { cluster.trials(trials, body).await }).await;
        assert!(self.cloud.is_empty(), "left: {:?}", self.cloud);
        ended
    }

    fn report(&self) -> Report {
        self.events.events().iter().collect()
    }
}

/// Measures on all machines at once.
async fn measure(trial: Trial, seconds: u64) -> Result<(), Error> {
    let part = async |host: tsunami_core::trial::TrialHost| host.run(format!("measure {seconds}")).await;
    let outputs = trial.step("load", trial.hosts(), part).await?;
    trial.metric("rps", Direction::Higher, outputs[0].stdout().trim().parse()?);
    Ok(())
}

fn two_by(repeat: u32) -> Trials {
    Trials::matrix([("variant", ["old", "new"])]).compare("variant").repeat(repeat).seed(7)
}

const HOUR: Duration = Duration::from_secs(3600);

/// Which trials count, in the order in which they began.
fn counted(report: &Report) -> Vec<&str> {
    let counted = report.trials.iter().filter(|trial| trial.voided.is_none());
    counted.map(|trial| trial.name.as_str()).collect()
}

/// What doesn't count, and why.
fn voided(report: &Report) -> Vec<(&str, VoidReason)> {
    let voided = report.trials.iter().filter_map(|trial| Some((&trial.name, trial.voided.as_ref()?)));
    voided.map(|(name, voided)| (name.as_str(), voided.reason)).collect()
}

#[tokio::test(start_paused = true)]
async fn trials_are_done_in_their_order_and_reported() {
    let world = World::new();
    let begun = Arc::new(Mutex::new(Vec::new()));
    let noted = begun.clone();
    let report = world.sweep(HOUR, two_by(4).warmup(1), move |trial| {
        let noted = noted.clone();
        async move {
            noted.lock().unwrap().push((trial.name().to_owned(), trial.parameter("variant")?.to_string()));
            measure(trial, 10).await
        }
    });
    let report = report.await.unwrap();
    let plan = report.sweep.as_ref().unwrap();
    let planned =
        plan.trials.iter().map(|trial| (trial.name.clone(), trial.parameters["variant"].to_string()));
    assert_eq!(*begun.lock().unwrap(), planned.collect::<Vec<_>>());
    assert_eq!(counted(&report), ["w1", "w2", "1", "2", "3", "4", "5", "6", "7", "8"]);
    assert!(report.trials.iter().all(|trial| trial.ok == Some(true) && trial.set == 1));
    assert_eq!(report.trials[2].measured[0].value, Some(17.0));
    assert_eq!((plan.metrics.len(), plan.metrics[0].better), (1, Some(Direction::Higher)));
    let swept = report.swept.as_ref().unwrap();
    assert_eq!((swept.done, swept.of, &swept.why), (8, 8, &None));
    // What observers hear comes to the same.
    let heard = world.report();
    assert_eq!(
        (heard.trials.len(), heard.swept, heard.sweep),
        (10, report.swept.clone(), report.sweep.clone())
    );
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_a_result_and_the_others_go_on() {
    let world = World::new();
    let report = world.sweep(HOUR, two_by(3), async |trial: Trial| {
        if trial.parameter("variant")?.to_string() == "new" {
            trial.host("node-0")?.run("exit 3").await?;
        }
        measure(trial, 10).await
    });
    let report = report.await.unwrap();
    assert_eq!(counted(&report).len(), 6);
    let failed: Vec<_> = report.trials.iter().filter(|trial| trial.ok == Some(false)).collect();
    assert_eq!(failed.len(), 3);
    assert!(failed[0].error.as_ref().unwrap().contains("exit 3"), "{:?}", failed[0].error);
    let swept = report.swept.unwrap();
    assert_eq!((swept.done, swept.of, swept.why), (6, 6, None));
}

#[tokio::test(start_paused = true)]
async fn a_round_that_lost_a_machine_is_done_again_whole_on_another_wherever_that_was() {
    let undisturbed = {
        let (world, begun) = (World::new(), Instant::now());
        world.sweep(HOUR, two_by(3), async |trial| measure(trial, 100).await).await.unwrap();
        begun.elapsed()
    };
    for after in (60..undisturbed.as_secs()).step_by(7) {
        let world = World::new();
        world.cloud.machine_fault("node-2", MachineFault::Interrupted(Duration::from_secs(after)));
        let report = world.sweep(HOUR, two_by(3), async |trial| measure(trial, 100).await).await.unwrap();
        let mut names = counted(&report);
        names.sort_unstable();
        assert_eq!(names, ["1", "2", "3", "4", "5", "6"], "after {after} s");
        assert!(report.trials.iter().all(|trial| trial.voided.is_some() || trial.ok == Some(true)));
        assert_eq!(report.swept.as_ref().unwrap().done, 6);
        none_is_mixed(&world);
    }
}

/// Each round's trials that count were measured on the same machines, one after another.
fn none_is_mixed(world: &World) {
    let (events, report) = (world.events.events(), world.report());
    let machines = |from: Duration, to: Duration| {
        let within = events.iter().filter(|event| (from..=to).contains(&event.elapsed));
        let used = |event: &Event| match &event.kind {
            EventKind::CommandStarted { machine, id, command, .. } if command.starts_with("measure") => {
                Some(format!("{machine} {id:?}"))
            }
            _ => None,
        };
        within.filter_map(used).collect::<std::collections::BTreeSet<_>>()
    };
    let plan = report.sweep.as_ref().unwrap();
    let counted = report.trials.iter().filter(|trial| trial.voided.is_none());
    let mut rounds = std::collections::BTreeMap::<_, Vec<_>>::new();
    for trial in counted {
        let round = plan.trial(&trial.name).unwrap().round;
        rounds.entry(round).or_default().push(machines(trial.started, trial.started + trial.took.unwrap()));
    }
    for (round, machines) in rounds {
        assert!(machines.windows(2).all(|pair| pair[0] == pair[1]), "round {round}: {machines:?}");
        assert!(machines.iter().all(|machines| machines.len() == 4), "round {round}: {machines:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn thirteen_in_a_hundred_trials_are_interrupted_and_all_rounds_complete_soon() {
    // Set-up takes about half a minute; a trial takes ten times as long.
    const TRIALS: u32 = 30;
    let day = 24 * HOUR;
    let body = async |trial: Trial| measure(trial, 300).await;
    let undisturbed = {
        let (world, begun) = (World::new(), Instant::now());
        world.sweep(day, two_by(TRIALS / 2), body).await.unwrap();
        begun.elapsed()
    };
    let mut lots = fastrand::Rng::with_seed(3);
    for _ in 0..4 {
        let (world, begun) = (World::new(), Instant::now());
        // Four of thirty, each of another machine.
        for machine in 0..4 {
            let at = Duration::from_secs_f64(60.0 + lots.f64() * (undisturbed.as_secs_f64() - 60.0));
            world.cloud.machine_fault(format!("node-{machine}"), MachineFault::Interrupted(at));
        }
        let report = world.sweep(day, two_by(TRIALS / 2), body).await.unwrap();
        assert_eq!(report.swept.as_ref().unwrap().done, TRIALS);
        none_is_mixed(&world);
        let times = begun.elapsed().as_secs_f64() / undisturbed.as_secs_f64();
        assert!(times <= 1.4, "{times}: {:?}", voided(&report));
    }
}

#[tokio::test(start_paused = true)]
async fn a_trial_is_done_again_twice_at_most_and_the_sweep_goes_on_without_it() {
    let world = World::new();
    for (machine, after) in [("node-0", 400), ("node-1", 800), ("node-2", 1200)] {
        world.cloud.machine_fault(machine, MachineFault::Interrupted(Duration::from_secs(after)));
    }
    // One variant takes so long that each of its attempts loses a machine.
    let report = world.sweep(HOUR, two_by(1), async |trial| {
        let is_new = trial.parameter("variant")?.to_string() == "new";
        measure(trial, if is_new { 1000 } else { 10 }).await
    });
    let report = report.await.unwrap();
    let swept = report.swept.clone().unwrap();
    assert_eq!((swept.done, swept.of), (1, 2), "{:?}", voided(&report));
    assert!(swept.why.unwrap().contains("done again twice"));
    let cut = report.trials.iter().filter_map(|trial| trial.voided.as_ref());
    assert_eq!(cut.filter(|voided| voided.reason == VoidReason::Interrupted).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_lost_and_not_replaced_ends_the_sweep() {
    let world = World::new();
    world.cloud.machine_fault("node-1", MachineFault::Dies(Duration::from_secs(250)));
    let error = world.sweep(HOUR, two_by(4), async |trial| measure(trial, 100).await).await.unwrap_err();
    assert_eq!(Outcome::of(&error), Outcome::MachineLost, "{error:?}");
    let report = world.report();
    assert_eq!(voided(&report).last().unwrap().1, VoidReason::Lost);
    assert!(report.swept.unwrap().why.unwrap().contains("node-1"));
}

/// Shows a machine as gone while it is told to, though it is there.
#[derive(Debug)]
struct Mistaken(FakeCloud, Arc<Mutex<Option<&'static str>>>);

#[async_trait]
impl Provider for Mistaken {
    fn name(&self) -> String {
        self.0.name()
    }
    async fn quote(&self, spec: &MachineSpec, count: NonZeroU32) -> Result<Quote, ProviderError> {
        self.0.quote(spec, count).await
    }
    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        self.0.launch(request).await
    }
    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        let mut machines = self.0.list(filter).await?;
        let gone = *self.1.lock().unwrap();
        for machine in machines.iter_mut().filter(|machine| Some(machine.name().as_str()) == gone) {
            machine.state = MachineState::Gone;
        }
        Ok(machines)
    }
    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        self.0.extend(run, until).await
    }
    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        *self.1.lock().unwrap() = None;
        self.0.terminate(run).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_listed_as_gone_is_lost_though_its_session_stands_and_nothing_runs_there() {
    // The trial is over before, or after, it is known that nobody has taken the machine back.
    for seconds in [10, 100] {
        let (world, gone) = (World::new(), Arc::new(Mutex::new(None)));
        let provider = Mistaken(world.cloud.clone(), gone.clone());
        let tsunami = Tsunami::new(Arc::new(provider), Arc::new(world.cloud.clone()))
            .state(RunStore::at(world.directory.path().join("runs")))
            .observer(world.events.clone() as Arc<dyn Observer>);
        let group = Group::new("node", MachineSpec::default()).count(4);
        let body = move |trial: Trial| {
            if trial.name() == "2" {
                *gone.lock().unwrap() = Some("node-1");
            }
            async move { trial.host("node-0")?.run(format!("measure {seconds}")).await.map(drop) }
        };
        let sweep = async move |cluster: Cluster| cluster.trials(two_by(2), body).await;
        let error = tsunami.run(Plan::new("sweep").group(group).lifetime(HOUR), sweep).await.unwrap_err();
        assert!(world.cloud.is_empty(), "left: {:?}", world.cloud);
        assert_eq!(Outcome::of(&error), Outcome::MachineLost, "{error:?}");
        let report = world.report();
        assert_eq!((counted(&report), voided(&report)), (vec!["1"], vec![("2.1", VoidReason::Lost)]));
        assert!(report.swept.unwrap().why.unwrap().contains("node-1"));
    }
}

#[tokio::test(start_paused = true)]
async fn no_trial_begins_that_can_t_end_in_time() {
    let world = World::new();
    let lifetime = Duration::from_secs(600);
    let report = world.sweep(lifetime, two_by(10), async |trial| measure(trial, 100).await).await.unwrap();
    let swept = report.swept.clone().unwrap();
    assert!(swept.done >= 2 && swept.done < 6, "{swept:?}");
    assert!(swept.done.is_multiple_of(2), "half a round is worth nothing: {swept:?}");
    assert!(swept.why.unwrap().contains("lifetime"));
    assert!(voided(&report).is_empty());
    assert!(world.report().finished.unwrap() < lifetime);
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_the_lifetime_cuts_does_not_count() {
    let world = World::new();
    let trials = Trials::matrix([("n", [1, 1000])]).seed(1);
    let error = world.sweep(Duration::from_secs(300), trials, async |trial| {
        let seconds = trial.parameter("n")?.to_string().parse()?;
        measure(trial, seconds).await
    });
    let error = error.await.unwrap_err();
    assert_eq!(Outcome::of(&error), Outcome::MachineLost, "{error:?}");
    let report = world.report();
    assert_eq!(voided(&report).last().unwrap().1, VoidReason::Cut, "{:?}", report.trials);
    assert!(report.swept.unwrap().why.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_is_cancelled_tells_its_end_and_what_was_under_way_does_not_count() {
    for after in (1..400).step_by(9) {
        let world = World::new();
        let cancel = world.cancel.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(after)).await;
            cancel.cancel();
        });
        let ended = world.sweep(HOUR, two_by(2), async |trial| measure(trial, 50).await).await;
        let report = world.report();
        let Err(error) = ended else { continue };
        assert!(matches!(error, Error::Cancelled), "{error:?}");
        let cut = report.trials.iter().filter(|trial| trial.ok != Some(true));
        let cut: Vec<_> = cut.map(|trial| trial.voided.as_ref().map(|voided| voided.reason)).collect();
        assert!(
            cut.len() <= 1 && cut.iter().all(|cut| *cut == Some(VoidReason::Cut)),
            "{cut:?} after {after}"
        );
        if report.sweep.is_some() {
            assert!(report.swept.unwrap().why.is_some());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_trial_goes_on_after_the_teardown() {
    let world = Arc::new(World::new());
    let swept = world.clone();
    let panicking = tokio::spawn(async move {
        let body = async |trial: Trial| {
            measure(trial.clone(), 10).await?;
            assert_ne!(trial.name(), "3", "as a test");
            Ok(())
        };
        swept.sweep(HOUR, two_by(2), body).await
    });
    assert!(panicking.await.unwrap_err().is_panic());
    assert!(world.cloud.is_empty());
    let report = world.report();
    assert_eq!((counted(&report), voided(&report)), (vec!["1", "2"], vec![("3.1", VoidReason::Cut)]));
}

#[tokio::test(start_paused = true)]
async fn trials_that_can_t_be_planned_are_an_error() {
    let world = World::new();
    let trials = two_by(1).baseline("other").repeat(0);
    let error = world.sweep(HOUR, trials, async |_| Ok(())).await.unwrap_err();
    assert!(error.to_string().contains("baseline other"), "{error}");
}

/// Answers what machines are asked of themselves: what they are, and what they have done so far.
fn looked_at(cloud: &FakeCloud, kernel: fn(&str) -> &'static str, looks: fn(u32) -> u32) {
    let count = Arc::new(std::sync::atomic::AtomicU32::new(0));
    cloud.on_command(move |machine, command| {
        let line = command.to_string();
        if let Some(seconds) = line.strip_prefix("measure ") {
            let seconds = Duration::from_secs(seconds.parse().ok()?);
            return Some(Reply::stdout("17\n").after(seconds));
        }
        if line.contains("cpu_model") {
            return Some(Reply::stdout(format!("kernel\t{}\n", kernel(machine))));
        }
        // All are on one computer, so that the first alone is asked. Ten seconds go by between two looks.
        let asked =
            line.contains("boot_id").then(|| count.fetch_add(1, std::sync::atomic::Ordering::Relaxed))?;
        let (seconds, stolen) = (100 + 10 * asked, looks(asked));
        Some(Reply::stdout(format!("uptime {seconds}\nboot a\ncpu  {seconds}00 0 0 0 0 0 0 {stolen}\n")))
    });
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_others_disturb_is_done_again_in_its_place_and_twice_at_most() {
    let world = World::new();
    // The first look is at each of four machines. A hypervisor takes much between the next two pairs of looks.
    looked_at(&world.cloud, |_| "6.1", |asked| if asked < 7 { 1000 * asked } else { 7000 });
    let report = world.sweep(HOUR, two_by(2), async |trial| measure(trial, 10).await).await.unwrap();
    assert_eq!(voided(&report), [("1.1", VoidReason::Disturbed), ("1.2", VoidReason::Disturbed)]);
    assert_eq!(counted(&report), ["1", "2", "3", "4"]);
    assert!(
        report.trials.iter().any(|trial| trial.accounts.iter().any(|account| account.disturbed.is_some()))
    );
}

#[tokio::test(start_paused = true)]
async fn where_something_always_disturbs_trials_they_count_and_are_marked() {
    let world = World::new();
    // The fourth trial is between the looks 13 and 14, in which nothing is taken.
    looked_at(&world.cloud, |_| "6.1", |asked| if asked == 14 { 13_000 } else { 1000 * asked });
    let report = world.sweep(HOUR, two_by(3), async |trial| measure(trial, 10).await).await.unwrap();
    let disturbed = |name: &str| {
        let trial = report.trials.iter().find(|trial| trial.name == name).unwrap();
        trial.accounts.iter().any(|account| account.disturbed.is_some())
    };
    let first = [("1.1", VoidReason::Disturbed), ("1.2", VoidReason::Disturbed)];
    assert_eq!(&voided(&report)[..2], first, "only then is it known that it goes on");
    assert_eq!(report.swept.clone().unwrap().done, 6);
    assert_eq!(["1", "2", "3", "4"].map(disturbed), [true, true, true, false]);
    assert_eq!(voided(&report).iter().filter(|(name, _)| name.starts_with(['2', '3', '4'])).count(), 0);
    assert!(voided(&report).iter().any(|(name, _)| name.starts_with('5')), "an undisturbed one came between");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_done_again_does_not_tell_that_trials_are_always_disturbed() {
    let world = World::new();
    // Two warm-ups, a trial that fails and the first attempt at the next are disturbed.
    looked_at(&world.cloud, |_| "6.1", |asked| 1000 * asked.min(11));
    let report = world.sweep(HOUR, two_by(2).warmup(1), async |trial: Trial| {
        measure(trial.clone(), 10).await?;
        if trial.name() == "1" { Err(Error::other("no")) } else { Ok(()) }
    });
    assert_eq!(voided(&report.await.unwrap()), [("2.1", VoidReason::Disturbed)]);
}

#[tokio::test(start_paused = true)]
async fn an_odd_machine_is_named_before_the_first_trial_and_voids_those_that_use_it_if_asked_to() {
    for (odd, name, done) in
        [(OddMachines::Warn, "node-3", 4), (OddMachines::Void, "node-3", 0), (OddMachines::Void, "node-0", 4)]
    {
        let world = World::new();
        looked_at(&world.cloud, |machine| if machine == "node-3" { "6.2" } else { "6.1" }, |_| 0);
        let report = world.sweep(HOUR, two_by(2).odd(odd), async move |trial| {
            trial.host(name)?.run("measure 10").await.map(drop)
        });
        let report = report.await.unwrap();
        assert_eq!(report.machines["node-3"].differences, ["kernel is 6.2, of the others 6.1"]);
        assert_eq!(report.machines["node-0"].facts["kernel"], "6.1");
        let swept = report.swept.clone().unwrap();
        assert_eq!(swept.done, done, "{odd:?} {name}");
        if done == 0 {
            assert_eq!(voided(&report), [("1.1", VoidReason::Odd)], "no more is done in vain");
            assert!(swept.why.unwrap().contains("node-3 differs from its group"));
        }
        let events = world.events.events();
        let at = |kind: fn(&EventKind) -> bool| events.iter().position(|event| kind(&event.kind));
        let named = at(|kind| matches!(kind, EventKind::OddMachine { .. }));
        assert!(named.is_some() && named < at(|kind| matches!(kind, EventKind::TrialStarted { .. })));
    }
}

/// It is no fault of the experiment's, and each further trial would meet the same.
#[tokio::test(start_paused = true)]
async fn a_disk_of_this_computer_that_is_full_ends_a_sweep_and_voids_the_trial() {
    let world = World::new();
    let error = world.sweep(HOUR, two_by(2), async |trial| {
        measure(trial.clone(), 10).await?;
        if trial.name() == "1" {
            return Ok(());
        }
        Err(trial.host("node-0")?.error(std::io::Error::from(std::io::ErrorKind::StorageFull)))
    });
    assert_eq!(error.await.unwrap_err().place(), Some(("node-0", "run")));
    let report = world.report();
    assert_eq!((voided(&report), counted(&report)), (vec![("2.1", VoidReason::Cut)], vec!["1"]));
}

#[tokio::test(start_paused = true)]
async fn a_replacement_is_looked_at_for_itself() {
    let world = World::new();
    let canaries = Arc::new(Mutex::new(0));
    let count = canaries.clone();
    world.cloud.on_command(move |_, command| {
        let line = command.to_string();
        let seconds = line.strip_prefix("measure ").and_then(|seconds| seconds.parse().ok());
        if let Some(seconds) = seconds {
            return Some(Reply::stdout("17\n").after(Duration::from_secs(seconds)));
        }
        if line.contains("cpu_model") {
            return Some(Reply::stdout("kernel\t6.1\n"));
        }
        line.ends_with(" canary").then(|| {
            let mut count = count.lock().unwrap();
            *count += 1;
            Reply::stdout(format!("cpu {count}\n")).after(Duration::from_secs(2))
        })
    });
    world.cloud.machine_fault("node-2", MachineFault::Interrupted(Duration::from_secs(300)));
    let trials = two_by(3).canary(true);
    let report = world.sweep(HOUR, trials, async |trial| measure(trial, 100).await).await.unwrap();
    let machine = &report.machines["node-2"];
    let [replaced] = &machine.replaced[..] else { panic!("{machine:?}") };
    assert_eq!((&replaced.facts["kernel"], replaced.canaries.len()), (&"6.1".to_owned(), 1));
    assert_eq!((&machine.facts["kernel"], machine.canaries.len()), (&"6.1".to_owned(), 2));
    // Four before the first trial, the new one, and four after the last.
    assert_eq!(*canaries.lock().unwrap(), 9);
    assert!(["node-0", "node-1", "node-3"].iter().all(|name| report.machines[*name].canaries.len() == 2));
}
