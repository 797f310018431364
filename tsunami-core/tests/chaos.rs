//! "Nothing left behind", on thousands of random schedules: plans, faults, and ends of a run at every call and
//! time, the crash of its controller included.
//!
//! `TSUNAMI_CHAOS_RUNS` sets how many schedules there are, and `TSUNAMI_CHAOS_SEED` replays one and tells its story.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use fastrand::Rng;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tsunami_core::testing::{Call, FakeCloud, Fault, MachineFault};
use tsunami_core::{
    Cluster, Command, Download, Error, EventKind, Group, Host, LaunchRequest, Leftover, Machine, MachineId,
    MachineSpec, Plan, Provider, ProviderError, ProviderErrorKind, Quote, Recorder, RunFilter, RunId,
    RunStore, Session, Tsunami,
};

/// Takes 20 to 30 seconds in a debug build on two cores.
const RUNS: u64 = 10_000;

/// Runs and teardowns have deadlines of their own, all of them earlier than this.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What a user would not wait for. A run that was not over by then is cancelled.
const BORED: Duration = Duration::from_secs(2 * 3600);

/// The payload of panics that a schedule wants. They are resumed, not raised, so that nothing is printed.
const PANIC: &str = "a panic of the schedule";

/// The calls at which a run can end.
const CALLS: [Call; 11] = [
    Call::Quote,
    Call::Prepare,
    Call::Launch,
    Call::List,
    Call::Connect,
    Call::Verify,
    Call::Exec,
    Call::Upload,
    Call::Download,
    Call::Close,
    Call::Terminate,
];

fn epoch() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// All that happens in one run. It follows from the seed.
#[derive(Clone, Debug)]
struct Schedule {
    seed: u64,
    groups: Vec<GroupPlan>,
    lifetime: Duration,
    connect_timeout: Duration,
    latency: std::ops::Range<Duration>,
    lag: Duration,
    faults: Vec<(Call, u32, Fault)>,
    machine_faults: Vec<(String, MachineFault)>,
    body: Body,
    ending: Ending,
    /// Whether the program brings the machines up first and then uses them, in place of `run`, which does both.
    in_two_steps: bool,
    /// When somebody else takes the run down as well, and how long after that this process crashes, if it does.
    second_down: Option<(Duration, Option<Duration>)>,
    /// Whether the first `down` after the run comes while there are faults yet.
    early_down: bool,
    /// Whether machines that were left are left until their deadline.
    wait_for_deadline: bool,
}

#[derive(Clone, Debug)]
struct GroupPlan {
    count: u32,
    setup: Setup,
    replace: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Setup {
    None,
    Works,
    TakesTime,
    Fails,
    Panics,
}

#[derive(Clone, Copy, Debug)]
enum Body {
    Returns,
    Commands,
    Fails,
    Panics,
    Repairs,
    /// Returns, and leaves a command and a task behind that go on.
    Leaves,
    Sleeps(Duration),
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Nothing,
    Cancelled(When),
    Dropped(When),
    SetupPanics,
    Crashed(When),
}

#[derive(Clone, Copy, Debug)]
enum When {
    At(Duration),
    /// When the nth call of a kind begins, or this long after.
    Call(Call, u32, Duration),
}

impl Ending {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "left alone",
            Self::Cancelled(_) => "cancelled",
            Self::Dropped(_) => "dropped",
            Self::SetupPanics => "panicked in set-up",
            Self::Crashed(_) => "crashed",
        }
    }
}

fn millis(rng: &mut Rng, most: u64) -> Duration {
    Duration::from_millis(rng.u64(0..=most))
}

fn one<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(0..of.len())]
}

impl When {
    fn random(rng: &mut Rng, groups: &[GroupPlan]) -> Self {
        if rng.u8(0..4) == 0 {
            let most = one(rng, &[1_000, 20_000, 60_000, 200_000]);
            return Self::At(millis(rng, most));
        }
        let call = one(rng, &CALLS);
        let machines: u32 = groups.iter().map(|group| group.count).sum();
        let most = match call {
            Call::Prepare => 1,
            Call::Quote => groups.len() as u32,
            Call::Launch => groups.len() as u32 + 1,
            Call::Terminate => 4,
            Call::List => 30,
            _ => machines,
        };
        let after = one(rng, &[0, 0, 200, 2_000]);
        // Low numbers more often: they come in every run.
        let nth = rng.u32(1..=most).min(rng.u32(1..=most));
        Self::Call(call, nth, millis(rng, after))
    }
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let rng = &mut Rng::with_seed(seed);
        let mut groups: Vec<GroupPlan> = (0..rng.u32(1..=3))
            .map(|_| GroupPlan {
                count: rng.u32(1..=4),
                setup: match rng.u8(0..20) {
                    0..8 => Setup::None,
                    8..15 => Setup::Works,
                    15..19 => Setup::TakesTime,
                    _ => Setup::Fails,
                },
                replace: rng.bool(),
            })
            .collect();
        let machines: Vec<String> = groups
            .iter()
            .enumerate()
            .flat_map(|(group, plan)| (0..plan.count).map(move |index| format!("g{group}-{index}")))
            .collect();
        let ending = match rng.u8(0..16) {
            0..3 => Ending::Nothing,
            3..6 => Ending::Cancelled(When::random(rng, &groups)),
            6..9 => Ending::Dropped(When::random(rng, &groups)),
            9..10 => Ending::SetupPanics,
            _ => Ending::Crashed(When::random(rng, &groups)),
        };
        if let Ending::SetupPanics = ending {
            let group = rng.usize(0..groups.len());
            groups[group].setup = Setup::Panics;
        }
        let body = match rng.u8(0..12) {
            0..2 => Body::Returns,
            2..5 => Body::Commands,
            5 => Body::Fails,
            6 => Body::Panics,
            7..9 => Body::Repairs,
            9..11 => Body::Leaves,
            _ => Body::Sleeps(millis(rng, 1_000_000)),
        };
        // The calls that nothing else makes.
        let body = match ending {
            Ending::Cancelled(When::Call(Call::Upload | Call::Download, ..))
            | Ending::Dropped(When::Call(Call::Upload | Call::Download, ..))
            | Ending::Crashed(When::Call(Call::Upload | Call::Download, ..)) => Body::Commands,
            _ => body,
        };
        let shortest = one(rng, &[1, 10, 100]);
        Self {
            seed,
            faults: faults(rng),
            machine_faults: machine_faults(rng, &machines),
            groups,
            lifetime: Duration::from_secs(one(rng, &[60, 200, 600, 600, 600, 3600])),
            connect_timeout: Duration::from_secs(one(rng, &[40, 120, 300])),
            latency: Duration::from_millis(shortest)..Duration::from_millis(shortest * rng.u64(2..=20)),
            lag: if rng.bool() { Duration::ZERO } else { millis(rng, 15_000) },
            body,
            ending,
            second_down: (rng.u8(0..5) == 0).then(|| {
                let most = one(rng, &[3_000, 60_000, 300_000]);
                let crash = (rng.u8(0..3) == 0).then(|| millis(rng, 20_000));
                (millis(rng, most), crash)
            }),
            early_down: rng.bool(),
            in_two_steps: rng.u8(0..3) == 0,
            wait_for_deadline: rng.u8(0..4) == 0,
        }
    }

    fn plan(&self) -> Plan {
        let plan = Plan::new("chaos").lifetime(self.lifetime).connect_timeout(self.connect_timeout);
        self.groups.iter().enumerate().fold(plan, |plan, (place, wanted)| {
            let group = Group::new(format!("g{place}"), MachineSpec::default())
                .count(wanted.count)
                .replace_interrupted(wanted.replace);
            let setup = wanted.setup;
            plan.group(match setup {
                Setup::None => group,
                _ => group.setup(move |host: Host| async move { set_up(&host, setup).await }),
            })
        })
    }

    /// Whether it is the engine's shutdown that cancels the run, and not a token.
    fn shuts_down(&self) -> bool {
        self.seed % 2 == 1
    }

    /// Arms the ending.
    fn arm(&self, world: &World) {
        let (when, what) = match self.ending {
            Ending::Nothing | Ending::SetupPanics => return,
            Ending::Cancelled(when) => (when, world.cancel.clone()),
            Ending::Dropped(when) => (when, world.dropped.clone()),
            Ending::Crashed(when) => (when, world.crashed.clone()),
        };
        let (cloud, over, hit) = (world.first.clone(), world.over.clone(), world.hit.clone());
        let struck = world.struck.clone();
        let crashes = matches!(self.ending, Ending::Crashed(_));
        let strike = move || {
            if over.is_cancelled() {
                return;
            }
            struck.cancel();
            if crashes {
                cloud.crash();
            }
            what.cancel();
        };
        match when {
            When::At(time) => drop(tokio::spawn(async move {
                sleep(time).await;
                strike();
            })),
            When::Call(call, nth, after) => {
                let (cloud, over) = (world.first.clone(), world.over.clone());
                world.first.clone().at(call, nth, move || {
                    if over.is_cancelled() {
                        return;
                    }
                    *lock(&hit) = Some((call, cloud.calls(Call::Terminate) > 0));
                    if after.is_zero() {
                        strike();
                    } else {
                        tokio::spawn(async move {
                            sleep(after).await;
                            strike();
                        });
                    }
                });
            }
        }
    }
}

fn faults(rng: &mut Rng) -> Vec<(Call, u32, Fault)> {
    use ProviderErrorKind::{Capacity, Other, Quota, Throttled, Unauthorized, Unavailable};
    let mut faults = Vec::new();
    for _ in 0..one(rng, &[0, 0, 1, 1, 2, 3, 6]) {
        let (call, most) = match rng.u8(0..13) {
            0..5 => (Call::Launch, 4),
            5..8 => (Call::List, 30),
            8..11 => (Call::Terminate, 3),
            11 => (Call::Verify, 4),
            _ => (Call::Quote, 3),
        };
        let kind = one(rng, &[Throttled, Unavailable, Unavailable, Capacity, Quota, Unauthorized, Other]);
        let fault = match rng.u8(0..10) {
            0..3 => Fault::Error(kind),
            3..5 => Fault::LostReply(kind),
            5 => Fault::Partial(rng.u32(0..4)),
            6..9 => {
                let most = one(rng, &[3_000, 30_000, 200_000]);
                Fault::Slow(millis(rng, most))
            }
            _ => Fault::Hang,
        };
        let nth = rng.u32(1..=most);
        if call == Call::Launch || !matches!(fault, Fault::Partial(_)) {
            faults.push((call, nth, fault));
        }
    }
    if rng.u8(0..16) == 0 {
        // The service is out of order for long.
        let call = one(rng, &[Call::Terminate, Call::List, Call::Launch]);
        let kind = one(rng, &[Throttled, Unavailable, Unauthorized]);
        let first = rng.u32(1..20);
        faults.extend((first..first + 300).map(|nth| (call, nth, Fault::Error(kind))));
    }
    faults
}

fn machine_faults(rng: &mut Rng, machines: &[String]) -> Vec<(String, MachineFault)> {
    let mut faults = Vec::new();
    for _ in 0..one(rng, &[0, 0, 1, 1, 2, 4]) {
        let mut time = |most: u64| millis(rng, most * 1000);
        let every = [
            MachineFault::SlowBoot(time(150)),
            MachineFault::NeverBoots,
            MachineFault::RefusesSsh,
            MachineFault::DropsSession(time(60)),
            MachineFault::Dies(time(120)),
            MachineFault::Interrupted(time(300)),
            MachineFault::Interrupted(time(180)),
            MachineFault::SlowTerminate(time(400)),
        ];
        faults.push((machines[rng.usize(0..machines.len())].clone(), one(rng, &every)));
    }
    faults
}

async fn set_up(host: &Host, setup: Setup) -> Result<(), Error> {
    host.run("install").await?;
    match setup {
        Setup::None | Setup::Works => {}
        Setup::TakesTime => drop(host.run("sleep 30").await?),
        Setup::Fails => drop(host.run("exit 3").await?),
        Setup::Panics => resume_unwind(Box::new(PANIC)),
    }
    Ok(())
}

async fn experiment(body: Body, cluster: Cluster, scratch: std::path::PathBuf) -> Result<(), Error> {
    let everywhere = async |cluster: &Cluster, line: &'static str| {
        let ran = cluster.hosts().iter().map(|host| host.run(line));
        join_all(ran).await.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
    };
    match body {
        Body::Returns => Ok(()),
        Body::Commands => {
            for host in cluster.hosts() {
                host.upload(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "file").await?;
            }
            everywhere(&cluster, "sleep 20").await?;
            let download = Download::new(["file"], scratch);
            for host in cluster.hosts() {
                host.download(&download).await?;
            }
            Ok(())
        }
        Body::Fails => {
            everywhere(&cluster, "sleep 3").await?;
            Err("not today".into())
        }
        Body::Panics => resume_unwind(Box::new(PANIC)),
        Body::Repairs => {
            let mut cluster = cluster;
            for _ in 0..4 {
                if let Err(error) = everywhere(&cluster, "sleep 100").await {
                    if !matches!(error, Error::Interrupted { .. } | Error::Lost { .. }) {
                        return Err(error);
                    }
                    cluster = cluster.repair().await?;
                }
            }
            Ok(())
        }
        Body::Leaves => {
            let host = cluster.hosts()[0].clone();
            let mut process = host.command(Command::shell("sleep 5000")).start();
            tokio::spawn(async move {
                let _ = process.wait().await;
                while host.run("sleep 1").await.is_ok() {}
            });
            sleep(Duration::from_secs(3)).await;
            Ok(())
        }
        Body::Sleeps(time) => {
            sleep(time).await;
            Ok(())
        }
    }
}

/// A fake cloud, the first controller's view of it, and what ends that controller.
struct World {
    cloud: FakeCloud,
    first: FakeCloud,
    state: RunStore,
    cancel: CancellationToken,
    dropped: CancellationToken,
    crashed: CancellationToken,
    /// It is too late for the ending.
    over: CancellationToken,
    /// The ending came in time.
    struck: CancellationToken,
    /// At which call the ending came, and whether the run was being torn down then.
    hit: Arc<Mutex<Option<(Call, bool)>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn new(schedule: &Schedule, state: RunStore) -> Self {
        let cloud = FakeCloud::new(schedule.seed);
        cloud.latency(schedule.latency.clone());
        cloud.lag(schedule.lag);
        cloud.clock(epoch());
        for (call, nth, fault) in &schedule.faults {
            cloud.fault(*call, *nth, *fault);
        }
        for (machine, fault) in &schedule.machine_faults {
            cloud.machine_fault(machine, *fault);
        }
        Self {
            first: cloud.controller(),
            cloud,
            state,
            cancel: CancellationToken::new(),
            dropped: CancellationToken::new(),
            crashed: CancellationToken::new(),
            over: CancellationToken::new(),
            struck: CancellationToken::new(),
            hit: Arc::default(),
        }
    }

    /// What another process on the same computer would use.
    fn tsunami(&self) -> Tsunami {
        self.tsunami_on(self.cloud.controller())
    }

    fn tsunami_on(&self, cloud: FakeCloud) -> Tsunami {
        // What crashes finishes nothing.
        let tsunami = Tsunami::new(Arc::new(cloud.clone()), Arc::new(cloud)).outlive_runtime(false);
        tsunami.state(self.state.clone()).started_at(epoch())
    }

    fn is_recorded(&self) -> bool {
        !self.state.runs().unwrap().is_empty()
    }

    /// What is alive is among what may remain, and what may remain is recorded.
    fn assert_named(&self, leftovers: &[Leftover], alone: bool) {
        for id in self.cloud.ids() {
            let covers = |leftover: &Leftover| {
                let what = &leftover.what;
                what.starts_with("anything") || what.contains(" may ") || what.contains(id.as_str())
            };
            assert!(leftovers.iter().any(covers), "{id} is alive and not named by {leftovers:?}");
        }
        if leftovers.is_empty() {
            assert!(!self.is_recorded(), "clear, and the record is still there");
        } else if alone {
            assert!(self.is_recorded(), "named, and the record is gone");
        }
    }

    fn assert_no_machines(&self, when: &str) {
        let ids = self.cloud.ids();
        assert!(ids.is_empty(), "{when}: {ids:?}");
    }
}

/// The fake, watched: whether anything is asked for that no record covers.
#[derive(Debug)]
struct Watched {
    cloud: FakeCloud,
    state: RunStore,
    crashed: CancellationToken,
    unrecorded: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Provider for Watched {
    fn name(&self) -> String {
        self.cloud.name()
    }

    async fn quote(&self, spec: &MachineSpec, count: NonZeroU32) -> Result<Quote, ProviderError> {
        self.cloud.quote(spec, count).await
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        let record = self.state.root().join(request.run.as_str()).join("record.json");
        if !self.crashed.is_cancelled() && !record.exists() {
            lock(&self.unrecorded).push(format!("group {} at {:?}", request.group, Instant::now()));
        }
        self.cloud.launch(request).await
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        self.cloud.list(filter).await
    }

    async fn verify(&self, machine: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        self.cloud.verify(machine, session).await
    }

    async fn interruption_notice(&self, machine: &Machine, session: &Arc<dyn Session>) -> String {
        self.cloud.interruption_notice(machine, session).await
    }

    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        self.cloud.extend(run, until).await
    }

    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        self.cloud.terminate(run).await
    }

    fn consistency(&self) -> Duration {
        self.cloud.consistency()
    }
}

/// What became of a schedule.
struct Outcome {
    hit: Option<(Call, bool)>,
    /// Whether the ending came before the run was over.
    in_time: bool,
    named: usize,
    recorded: bool,
    after_down: usize,
    story: String,
}

/// How the first controller's part ended.
enum End {
    Result(Result<(), Error>),
    Panic(Box<dyn Any + Send>),
    Dropped,
    Crashed,
}

async fn play(schedule: &Schedule, root: &Path) -> Outcome {
    let begun = Instant::now();
    let deadline = begun + schedule.lifetime + Duration::from_secs(1);
    let world = World::new(schedule, RunStore::at(root.join("runs")));
    let events = Arc::new(Recorder::default());
    let unrecorded = Arc::default();
    let provider = Watched {
        cloud: world.first.clone(),
        state: world.state.clone(),
        crashed: world.crashed.clone(),
        unrecorded: Arc::clone(&unrecorded),
    };
    let tsunami = Tsunami::new(Arc::new(provider), Arc::new(world.first.clone()))
        .observer(events.clone())
        .state(world.state.clone())
        .cancel_on(if schedule.shuts_down() { CancellationToken::new() } else { world.cancel.clone() })
        .outlive_runtime(false)
        .started_at(epoch())
        .seed(schedule.seed);
    schedule.arm(&world);
    if schedule.shuts_down() {
        let (tsunami, cancel) = (tsunami.clone(), world.cancel.clone());
        tokio::spawn(async move {
            cancel.cancelled().await;
            drop(tsunami.shutdown().await);
        });
    }
    let second = schedule.second_down.map(|(time, crash)| {
        let cloud = world.cloud.controller();
        let (other, state) = (world.tsunami_on(cloud.clone()), world.state.clone());
        tokio::spawn(async move {
            sleep(time).await;
            let Some(run) = state.runs().unwrap().first().cloned() else { return };
            let down = tokio::spawn(async move { other.down(&run).await });
            let Some(crash) = crash else { return drop(down.await.expect("a panic")) };
            sleep(crash).await;
            cloud.crash();
        })
    });

    let end = first_controller(schedule, &world, &tsunami, root).await;
    world.over.cancel();
    let crashed = matches!(end, End::Crashed);
    let told = events.events();
    let torn_down: Vec<&Vec<Leftover>> = told
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::TornDown { leftovers, .. } => Some(leftovers),
            _ => None,
        })
        .collect();
    let mut named = 0;
    if !crashed {
        let begun = told.iter().any(|event| matches!(event.kind, EventKind::RunStarted { .. }));
        assert_eq!(torn_down.len(), usize::from(begun), "teardowns");
        let leftovers = torn_down.first().map_or(&[][..], |leftovers| leftovers);
        named = leftovers.len();
        match &end {
            End::Result(Err(Error::Remains { leftovers: returned, .. })) => assert_eq!(returned, leftovers),
            End::Result(_) => assert_eq!(leftovers, [], "not returned"),
            End::Panic(payload) => {
                assert_eq!(payload.downcast_ref::<&str>(), Some(&PANIC), "a panic of the engine");
            }
            End::Dropped | End::Crashed => {}
        }
        let left = match timeout(PATIENCE, tsunami.shutdown()).await.expect("never shut down") {
            Err(Error::Remains { leftovers, .. }) => leftovers,
            shut_down => shut_down.map(|()| Vec::new()).expect("a shutdown"),
        };
        assert_eq!(&left, leftovers, "what the shutdown says");
        world.assert_named(leftovers, second.is_none());
    }
    if let Some(second) = second {
        // It may have failed, above all for want of a record. It may not panic or hang.
        timeout(PATIENCE, second).await.expect("the second `down` never ends").expect("a panic");
    }
    if let Some(run) = world.state.runs().unwrap().first().filter(|_| schedule.early_down) {
        let down = timeout(PATIENCE, world.tsunami().down(run)).await.expect("`down` never ends");
        let leftovers = match down {
            Err(Error::Remains { leftovers, .. }) => leftovers,
            down => down.map(|()| Vec::new()).expect("`down`"),
        };
        named += leftovers.len();
        world.assert_named(&leftovers, true);
    }

    let when = "without a record";
    world.cloud.calm();
    let recorded = world.is_recorded();
    let mut after_down = 0;
    if recorded {
        if schedule.wait_for_deadline {
            sleep_until(deadline).await;
            world.assert_no_machines("after the deadline");
        }
        let runs = world.state.runs().unwrap();
        let down = timeout(PATIENCE, world.tsunami().down(&runs[0])).await.expect("`down` never ends");
        if let Err(Error::Remains { leftovers, .. }) = &down {
            after_down = leftovers.len();
        }
        down.expect("`down`");
        assert!(!world.is_recorded(), "`down` left the record");
    }
    assert!(world.cloud.is_empty(), "{}: {:?}", if recorded { "after `down`" } else { when }, world.cloud);
    // Whatever was under way when the run ended has arrived by then.
    for _ in 0..50 {
        sleep(Duration::from_secs(5)).await;
        world.assert_no_machines(if recorded { "some time after `down`" } else { when });
    }
    assert_eq!(*lock(&unrecorded), Vec::<String>::new(), "asked for without a record");
    let story = told
        .iter()
        .map(|event| format!("{:>10.3} {:?}\n", event.elapsed.as_secs_f64(), event.kind))
        .collect();
    let in_time = world.struck.is_cancelled();
    let hit = lock(&world.hit).filter(|_| in_time);
    Outcome { hit, in_time, named, recorded, after_down, story }
}

/// Lets the run happen until it ends, by itself or as the schedule says.
async fn first_controller(schedule: &Schedule, world: &World, tsunami: &Tsunami, root: &Path) -> End {
    let (engine, plan, dropped) = (tsunami.clone(), schedule.plan(), world.dropped.clone());
    let (body, scratch) = (schedule.body, root.join("scratch"));
    let in_two_steps = schedule.in_two_steps;
    let mut run = tokio::spawn(async move {
        let experiment = move |cluster| experiment(body, cluster, scratch);
        let run = async {
            match in_two_steps {
                true => engine.up(plan).await?.run(experiment).await,
                false => engine.run(plan, experiment).await,
            }
        };
        tokio::select! {
            biased;
            () = dropped.cancelled() => None,
            result = run => Some(result),
        }
    });
    let ended = async {
        let joined = match timeout(BORED, &mut run).await {
            Ok(joined) => joined,
            Err(_) => {
                world.cancel.cancel();
                timeout(PATIENCE, &mut run).await.expect("the cancelled run never ends")
            }
        };
        timeout(PATIENCE, tsunami.wait_idle()).await.expect("never idle");
        match joined {
            Ok(Some(result)) => End::Result(result),
            Ok(None) => End::Dropped,
            Err(error) => End::Panic(error.into_panic()),
        }
    };
    tokio::select! {
        biased;
        () = world.crashed.cancelled() => End::Crashed,
        end = ended => end,
    }
}

/// Plays a schedule in a runtime of its own.
fn run(seed: u64, root: &Path) -> Result<Outcome, String> {
    let schedule = Schedule::new(seed);
    let root = root.join(seed.to_string());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let played = catch_unwind(AssertUnwindSafe(|| runtime.block_on(play(&schedule, &root))));
    drop(runtime);
    if root.exists() {
        std::fs::remove_dir_all(&root).unwrap();
    }
    played.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        format!("seed {seed}: {}\n  {schedule:?}", text.unwrap_or_default())
    })
}

fn say(line: &str) {
    // Not through `println!`, which shows nothing unless the test fails.
    let _ = writeln!(io::stderr(), "{line}");
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

#[derive(Default)]
struct Tally {
    endings: BTreeMap<&'static str, u64>,
    hits: BTreeSet<(&'static str, Call, bool)>,
    named: usize,
    records: u64,
    after_down: usize,
    failures: Vec<String>,
}

#[test]
fn nothing_is_left_behind() {
    // Records are synced to disk, which takes longer than all the rest.
    let memory = Path::new("/dev/shm");
    let root = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    if let Some(seed) = number("TSUNAMI_CHAOS_SEED") {
        say(&format!("{:#?}", Schedule::new(seed)));
        let outcome = run(seed, root.path()).unwrap_or_else(|failure| panic!("{failure}"));
        say(&outcome.story);
        return;
    }
    let runs = number("TSUNAMI_CHAOS_RUNS").unwrap_or(RUNS);
    let begun = std::time::Instant::now();
    let (next, tally) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= runs || lock(&tally).failures.len() >= 10 {
                return;
            }
            let ending = Schedule::new(seed).ending;
            let outcome = run(seed, root.path());
            let mut tally = lock(&tally);
            match outcome {
                Ok(outcome) => {
                    let timed = !matches!(ending, Ending::Nothing | Ending::SetupPanics);
                    let late = timed && !outcome.in_time;
                    let ending = if late { "over before their end came" } else { ending.name() };
                    *tally.endings.entry(ending).or_default() += 1;
                    tally.hits.extend(outcome.hit.map(|(call, ending_run)| (ending, call, ending_run)));
                    tally.named += outcome.named;
                    tally.records += u64::from(outcome.recorded);
                    tally.after_down += outcome.after_down;
                }
                Err(failure) => tally.failures.push(failure),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let tally = tally.into_inner().unwrap();
    let endings: Vec<_> = tally.endings.iter().map(|(ending, count)| format!("{count} {ending}")).collect();
    say(&format!(
        "chaos: {} schedules in {:.0?}: {}; {} leftovers named, {} records left to `down`, {} left after it",
        tally.endings.values().sum::<u64>(),
        begun.elapsed(),
        endings.join(", "),
        tally.named,
        tally.records,
        tally.after_down,
    ));
    let failures = &tally.failures;
    assert!(
        failures.is_empty(),
        "{} failed; replay one with TSUNAMI_CHAOS_SEED=n\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert_eq!(tally.after_down, 0);
    if runs >= RUNS {
        // Every await of the engine that makes a call has seen every ending.
        for ending in ["cancelled", "dropped", "crashed"] {
            for call in CALLS {
                let seen = |tearing_down| tally.hits.contains(&(ending, call, tearing_down));
                assert!(seen(false) || seen(true), "never {ending} at {call:?}");
            }
            assert!(tally.hits.contains(&(ending, Call::List, true)), "never {ending} at the last listing");
        }
    }
}

#[test]
fn a_seed_always_tells_the_same_story() {
    let root = tempfile::tempdir().unwrap();
    for seed in 0..20 {
        let story = |_| run(seed, root.path()).map(|outcome| outcome.story).unwrap_or_else(|failure| failure);
        let [first, second] = [(), ()].map(story);
        assert_eq!(first, second, "seed {seed}");
    }
}
