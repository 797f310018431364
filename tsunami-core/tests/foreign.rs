//! A teardown goes on, whatever the code around it does: observers, providers, connectors, and the runtime itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tsunami_core::testing::{Call, FakeCloud, Fault, MachineFault, Unreliable};
use tsunami_core::{
    Cluster, Command, Error, Event, Group, Keep, Leftover, MachineSpec, MockProvider, Observer, Origin, Plan,
    Quote, RunStore, Stream, Tsunami,
};

struct World {
    cloud: FakeCloud,
    state: RunStore,
    _directory: TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = RunStore::at(directory.path().join("runs"));
        Self { cloud: FakeCloud::new(1), state, _directory: directory }
    }

    fn tsunami(&self) -> Tsunami {
        Tsunami::new(Arc::new(self.cloud.clone()), Arc::new(self.cloud.clone())).state(self.state.clone())
    }

    fn assert_clear(&self) {
        assert!(self.cloud.is_empty(), "left: {:?}", self.cloud);
        assert_eq!(self.state.runs().unwrap(), []);
    }
}

fn plan() -> Plan {
    Plan::new("test").group(Group::new("node", MachineSpec::default()).count(2))
}

async fn command(cluster: Cluster) -> Result<(), Error> {
    cluster.hosts()[0].run("echo one").await?;
    cluster.hosts()[1].run("echo two").await.map(drop)
}

/// Panics the `nth` time that it is told something.
#[derive(Debug)]
struct Panics {
    nth: usize,
    told: AtomicUsize,
}

impl Panics {
    fn count(&self) {
        if self.told.fetch_add(1, Ordering::Relaxed) + 1 == self.nth {
            panic!("an observer's panic");
        }
    }
}

impl Observer for Panics {
    fn event(&self, _: &Event) {
        self.count();
    }

    fn output(&self, _: &Origin<'_>, _: Stream, _: &[u8]) -> std::io::Result<()> {
        self.count();
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_is_left_out_and_the_run_goes_on() {
    let world = World::new();
    let told_in_all = {
        let counts = Arc::new(Panics { nth: 0, told: AtomicUsize::new(0) });
        world.tsunami().observer(counts.clone()).run(plan(), command).await.unwrap();
        counts.told.load(Ordering::Relaxed)
    };
    assert!(told_in_all > 15, "{told_in_all}");
    for nth in 1..=told_in_all {
        let world = World::new();
        let panics = Arc::new(Panics { nth, told: AtomicUsize::new(0) });
        let other = Arc::new(Panics { nth: 0, told: AtomicUsize::new(0) });
        let tsunami = world.tsunami().observer(panics.clone()).observer(other.clone());
        tsunami.run(plan(), command).await.unwrap();
        assert_eq!(panics.told.load(Ordering::Relaxed), nth, "asked again");
        assert_eq!(other.told.load(Ordering::Relaxed), told_in_all, "the others hear all of it");
        world.assert_clear();
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_panics_at_any_call_is_asked_again_until_nothing_is_left() {
    let calls = [
        Call::Quote,
        Call::Launch,
        Call::List,
        Call::Terminate,
        Call::Prepare,
        Call::Connect,
        Call::Verify,
        Call::Exec,
        Call::Close,
    ];
    for call in calls {
        let counting = World::new();
        counting.tsunami().run(plan(), command).await.unwrap();
        for nth in 1..=counting.cloud.calls(call) {
            let world = World::new();
            world.cloud.at(call, nth, move || panic!("a panic at {call:?}"));
            let tsunami = world.tsunami();
            let run = tokio::spawn(async move { tsunami.run(plan(), command).await });
            match run.await {
                // Whether it has launched something is not known.
                Ok(Err(Error::Remains { .. })) if call == Call::Launch => {
                    let runs = world.state.runs().unwrap();
                    world.tsunami().down(&runs[0]).await.unwrap();
                }
                // User code called that, and its panic is its own.
                Err(panic) => assert!(panic.is_panic() && call == Call::Exec),
                Ok(Err(error)) => {
                    assert!(tsunami_core::ErrorChain(&error).to_string().contains("a panic at"))
                }
                Ok(Ok(())) => assert!(matches!(call, Call::List | Call::Terminate | Call::Close), "{call:?}"),
            }
            world.assert_clear();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_never_finishes_does_not_hold_a_teardown() {
    #[derive(Debug)]
    struct Stuck(FakeCloud);
    #[async_trait::async_trait]
    impl tsunami_core::Connector for Stuck {
        async fn prepare(
            &self,
            run: &tsunami_core::RunId,
            directory: &std::path::Path,
        ) -> Result<String, tsunami_core::SessionError> {
            tsunami_core::Connector::prepare(&self.0, run, directory).await
        }
        async fn connect(
            &self,
            machine: &tsunami_core::Machine,
            deadline: tokio::time::Instant,
        ) -> Result<Box<dyn tsunami_core::Session>, tsunami_core::SessionError> {
            tsunami_core::Connector::connect(&self.0, machine, deadline).await
        }
        async fn finish(&self, run: &tsunami_core::RunId) {
            tsunami_core::Connector::finish(&self.0, run).await;
            std::future::pending().await
        }
    }
    let world = World::new();
    let stuck = Arc::new(Stuck(world.cloud.clone()));
    let tsunami = Tsunami::new(Arc::new(world.cloud.clone()), stuck).state(world.state.clone());
    let run = tsunami.run(plan(), command);
    timeout(Duration::from_secs(3600), run).await.expect("it never ends").unwrap();
    world.assert_clear();
}

fn paused() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

#[test]
fn a_handle_that_is_dropped_outside_of_any_runtime_is_torn_down_on_its_own() {
    for elsewhere in [false, true] {
        let (world, runtime) = (World::new(), paused());
        let tsunami = world.tsunami();
        let running = runtime.block_on(tsunami.up(plan())).unwrap();
        if elsewhere {
            std::thread::spawn(move || drop(running)).join().unwrap();
        } else {
            drop(running);
        }
        let idle = async { timeout(Duration::from_secs(3600), tsunami.wait_idle()).await };
        runtime.block_on(idle).expect("never idle");
        // By the runtime's clock.
        runtime.block_on(async { world.assert_clear() });
    }
}

async fn command_without_end(cluster: Cluster) -> Result<(), Error> {
    cluster.hosts()[0].run("sleep 3000").await.map(drop)
}

/// What `main` does before it returns.
type Main = fn(&Runtime, &World);

/// As `timeout(run).await??` does.
fn gives_up(runtime: &Runtime, world: &World) {
    let tsunami = world.tsunami();
    let run = tsunami.run(plan(), command_without_end);
    runtime.block_on(async { assert!(timeout(Duration::from_secs(2), run).await.is_err()) });
    assert_eq!(world.cloud.commands().len(), 1);
}

fn forgets(runtime: &Runtime, world: &World) {
    let (tsunami, cloud) = (world.tsunami(), world.cloud.clone());
    runtime.spawn(async move { tsunami.run(plan(), command_without_end).await });
    runtime.block_on(async {
        while cloud.commands().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    });
}

fn gives_up_its_teardown(runtime: &Runtime, world: &World) {
    world.cloud.machine_fault("node-1", MachineFault::SlowTerminate(Duration::from_secs(1)));
    runtime.block_on(async {
        let down = world.tsunami().up(plan()).await.unwrap().down();
        assert!(timeout(Duration::from_millis(200), down).await.is_err());
    });
}

fn gives_up_another_processs_teardown(runtime: &Runtime, world: &World) {
    world.cloud.machine_fault("node-1", MachineFault::SlowTerminate(Duration::from_secs(1)));
    runtime.block_on(async {
        world.tsunami().up(plan()).await.unwrap().keep().await.unwrap();
        let (tsunami, directory) = (world.tsunami(), world.state.find("test").unwrap());
        assert!(timeout(Duration::from_millis(100), tsunami.down(&directory)).await.is_err());
    });
}

#[test]
fn a_runtime_that_ends_waits_until_its_runs_are_torn_down() {
    let runtimes: [fn() -> Runtime; 2] = [
        || Builder::new_current_thread().enable_all().build().unwrap(),
        || Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
    ];
    let mains: [Main; 4] = [gives_up, forgets, gives_up_its_teardown, gives_up_another_processs_teardown];
    std::thread::scope(|scope| {
        for (runtime, main) in mains.iter().flat_map(|main| runtimes.map(|runtime| (runtime, main))) {
            scope.spawn(move || {
                let (world, runtime) = (World::new(), runtime());
                // Nobody's clock is paused here.
                world.cloud.latency(Duration::from_millis(1)..Duration::from_millis(5));
                for name in ["node-0", "node-1"] {
                    world.cloud.machine_fault(name, MachineFault::SlowBoot(Duration::from_millis(20)));
                }
                main(&runtime, &world);
                assert!(!world.cloud.is_empty(), "there is nothing to tear down");
                drop(runtime);
                world.assert_clear();
            });
        }
    });
}

#[test]
fn what_was_being_asked_for_when_the_runtime_ended_is_named() {
    #[derive(Debug, Default)]
    struct Named(std::sync::Mutex<Vec<Leftover>>);
    impl Observer for Named {
        fn event(&self, event: &Event) {
            if let tsunami_core::EventKind::TornDown { leftovers, .. } = &event.kind {
                self.0.lock().unwrap().clone_from(leftovers);
            }
        }
    }
    let (world, named) = (World::new(), Arc::new(Named::default()));
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    world.cloud.latency(Duration::from_millis(1)..Duration::from_millis(5));
    world.cloud.fault(Call::Launch, 1, Fault::Slow(Duration::from_secs(600)));
    let (tsunami, cloud) = (world.tsunami().observer(named.clone()), world.cloud.clone());
    runtime.block_on(async {
        let run = tsunami.run(plan(), command);
        let asked = async {
            while cloud.calls(Call::Launch) == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            _ = run => panic!("it ended"),
            () = asked => {}
        }
    });
    drop(runtime);
    let leftovers = named.0.lock().unwrap().clone();
    assert!(leftovers.iter().any(|left| left.what.contains("launch request")), "{leftovers:?}");
    assert_eq!(world.state.runs().unwrap().len(), 1, "it is named, and recorded");
}

#[test]
fn a_program_can_have_its_runtime_end_at_once() {
    let (world, runtime) = (World::new(), paused());
    let tsunami = world.tsunami().outlive_runtime(false).keep(Keep::Never);
    drop(runtime.block_on(tsunami.up(plan())).unwrap());
    drop(runtime);
    // By the system's clock, to which their end has yet to come.
    assert_eq!((world.cloud.machines().len(), world.state.runs().unwrap().len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_down_goes_on_and_leaves_nothing_prepared() {
    for milliseconds in [1, 50, 400, 2_000, 9_000] {
        let world = World::new();
        world.tsunami().up(plan()).await.unwrap().keep().await.unwrap();
        world.cloud.machine_fault("node-0", MachineFault::SlowTerminate(Duration::from_secs(10)));
        let (tsunami, directory) = (world.tsunami(), world.state.find("test").unwrap());
        let down = tsunami.down(&directory);
        assert!(timeout(Duration::from_millis(milliseconds), down).await.is_err());
        tsunami.wait_idle().await;
        world.assert_clear();
    }
}

#[tokio::test(start_paused = true)]
async fn an_attached_handle_ends_with_all_that_it_began() {
    let world = World::new();
    world.tsunami().up(plan()).await.unwrap().keep().await.unwrap();
    let (tsunami, directory) = (world.tsunami(), world.state.find("test").unwrap());
    let idle = async |what: &str| {
        timeout(Duration::from_secs(60), tsunami.wait_idle())
            .await
            .unwrap_or_else(|_| panic!("{what}: never idle"));
        let listed = world.cloud.calls(Call::List);
        sleep(Duration::from_secs(600)).await;
        assert_eq!(world.cloud.calls(Call::List), listed, "{what}: it polls for ever");
        assert_eq!(world.cloud.machines().len(), 2, "{what}: they are not its own");
    };
    let closed = || world.cloud.calls(Call::Close);

    let attached = tsunami.attach(&directory, |_| true).await.unwrap();
    let before = closed();
    let mut process = attached.cluster().hosts()[0].command(Command::shell("sleep 5000")).start();
    drop(attached);
    idle("dropped").await;
    assert_eq!(closed(), before + 2);
    assert!(matches!(process.wait().await, Err(Error::Cancelled)));

    let attached = tsunami.attach(&directory, |_| true).await.unwrap();
    let before = closed();
    let run = tokio::spawn(attached.run(|_| async {
        if true {
            panic!("oh no")
        }
        Ok(())
    }));
    assert!(run.await.unwrap_err().is_panic());
    assert_eq!(closed(), before + 2);
    idle("panicked").await;

    for milliseconds in [50, 250, 450] {
        let attaching = tsunami.attach(&directory, |_| true);
        let _ = timeout(Duration::from_millis(milliseconds), attaching).await;
        idle("dropped while connecting").await;
    }
    tsunami.down(&directory).await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_never_answers_does_not_hold_a_run() {
    let hour = Duration::from_secs(3600);
    for call in [Call::Prepare, Call::Connect, Call::Close] {
        let world = World::new();
        world.cloud.fault(call, 1, Fault::Hang);
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(300)).await;
            token.cancel();
        });
        let tsunami = world.tsunami().cancel_on(cancel);
        let ended = timeout(hour, tsunami.run(plan(), command)).await;
        match (call, ended.unwrap_or_else(|_| panic!("{call:?}: it never ends"))) {
            (Call::Prepare, Err(Error::Cancelled)) | (Call::Connect, Err(Error::Connect { .. })) => {}
            (Call::Close, Ok(())) => {}
            (call, ended) => panic!("{call:?}: {ended:?}"),
        }
        world.assert_clear();
    }
    let world = World::new();
    world.tsunami().up(plan()).await.unwrap().keep().await.unwrap();
    world.cloud.fault(Call::Prepare, world.cloud.calls(Call::Prepare) + 1, Fault::Hang);
    let directory = world.state.find("test").unwrap();
    timeout(hour, world.tsunami().down(&directory)).await.expect("it never ends").unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_provider_or_connector_that_never_answers_does_not_hold_who_attaches() {
    let hour = Duration::from_secs(3600);
    for call in [Call::Prepare, Call::List, Call::Connect, Call::Extend] {
        let world = World::new();
        world.tsunami().up(plan()).await.unwrap().keep().await.unwrap();
        let directory = world.state.find("test").unwrap();
        let until = directory.record().unwrap().deadline.at + Duration::from_secs(600);
        world.cloud.fault(call, world.cloud.calls(call) + 1, Fault::Hang);
        let cancel = CancellationToken::new();
        let (token, soon) = (cancel.clone(), Duration::from_secs(300));
        tokio::spawn(async move {
            sleep(soon).await;
            token.cancel();
        });
        let tsunami = world.tsunami().cancel_on(cancel);
        let ended = timeout(hour, tsunami.extend(&directory, until)).await;
        match (call, ended.unwrap_or_else(|_| panic!("{call:?}: it never ends"))) {
            (Call::Prepare, Err(Error::Cancelled)) | (Call::Connect, Err(Error::Connect { .. })) => {}
            (Call::List | Call::Extend, Err(error)) if error.to_string().contains("no answer") => {}
            (call, ended) => panic!("{call:?}: {ended:?}"),
        }
        world.tsunami().down(&directory).await.unwrap();
        world.assert_clear();
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_never_says_that_a_command_is_gone_does_not_hold_its_end() {
    let world = World::new();
    let connector = Unreliable::new(Arc::new(world.cloud.clone()), 1);
    for nth in [1, 2] {
        connector.fault(Call::Exec, nth, Fault::Hang);
    }
    let tsunami = Tsunami::new(Arc::new(world.cloud.clone()), Arc::new(connector)).state(world.state.clone());
    let run = tsunami.run(plan(), |cluster| async move {
        let command = || cluster.hosts()[0].command(Command::shell("sleep 3000"));
        let timed_out = command().timeout(Duration::from_secs(5)).run().await.unwrap_err();
        assert!(matches!(timed_out, Error::Timeout { gone: false, .. }), "{timed_out:?}");
        let unconfirmed = command().start().stop().await.unwrap_err();
        assert!(unconfirmed.to_string().contains("failed"), "{unconfirmed:?}");
        Ok(())
    });
    timeout(Duration::from_secs(1800), run).await.expect("it never ends").unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_panics_when_it_is_asked_its_name_ends_the_run_before_it_begins() {
    let world = World::new();
    let mut provider = MockProvider::new();
    provider.expect_choose().returning(|_, _| Ok(None));
    provider.expect_quote().returning(|_, _| Ok(Quote::free("a mock")));
    provider.expect_name().returning(|| panic!("nameless"));
    let tsunami = Tsunami::new(Arc::new(provider), Arc::new(world.cloud.clone())).state(world.state.clone());
    let error = tsunami.run(plan(), command).await.unwrap_err();
    let shown = format!("{error:?}");
    assert!(shown.contains("nameless") && shown.contains("that was a panic"), "{shown}");
    world.assert_clear();
}
