//! The end of an engine with all that it began, and what is one run's own beside what holds for all.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tsunami_core::testing::{Call, FakeCloud, Fault, MachineFault};
use tsunami_core::{
    CancellationToken, Cluster, Error, ErrorClass, EventKind, Failures, Group, MachineSpec, Plan,
    ProviderErrorKind, Recorder, RunStore, Tsunami,
};

const MINUTE: Duration = Duration::from_secs(60);

struct World {
    cloud: FakeCloud,
    state: RunStore,
    tsunami: Tsunami,
    _directory: TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (cloud, state) = (FakeCloud::new(1), RunStore::at(directory.path().join("runs")));
        let tsunami = Tsunami::new(Arc::new(cloud.clone()), Arc::new(cloud.clone())).state(state.clone());
        Self { cloud, state, tsunami, _directory: directory }
    }

    fn assert_clear(&self) {
        assert!(self.cloud.is_empty(), "left: {:?}", self.cloud);
        assert_eq!(self.state.runs().unwrap(), []);
    }
}

fn plan(name: &str) -> Plan {
    Plan::new(name).group(Group::new(name, MachineSpec::default()).count(2))
}

async fn without_end(cluster: Cluster) -> Result<(), Error> {
    cluster.hosts()[0].run("sleep 30000").await.map(drop)
}

/// What is torn down is so when the shutdown returns, wherever it found the run.
#[tokio::test(start_paused = true)]
async fn after_a_time_out_at_any_moment_a_shutdown_leaves_nothing() {
    for milliseconds in (50..30_000).step_by(1_450) {
        let world = World::new();
        world.cloud.machine_fault("a-1", MachineFault::SlowTerminate(Duration::from_secs(20)));
        let run = world.tsunami.run(plan("a"), without_end);
        assert!(timeout(Duration::from_millis(milliseconds), run).await.is_err());
        world.tsunami.shutdown().await.unwrap();
        world.assert_clear();
        let launches = world.cloud.calls(Call::Launch);
        let later = world.tsunami.clone().run(plan("b"), without_end).await;
        assert!(matches!(later, Err(Error::Cancelled)), "{later:?}");
        assert_eq!(world.cloud.calls(Call::Launch), launches, "nothing begins after the end");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_all_that_goes_on_whoever_holds_it() {
    let world = World::new();
    let tsunami = &world.tsunami;
    let up = async |name: &str| tsunami.one_run().up(plan(name)).await.unwrap();
    // Kept machines are nobody's.
    up("kept").await.keep().await.unwrap();
    let kept = world.state.find("kept").unwrap();
    let attached = tsunami.attach(&kept, |_| true).await.unwrap();
    let (held, used, keeping) = (up("held").await, up("used").await, up("keeping").await);
    let in_use = tokio::spawn(used.run(without_end));
    let spawn = |name: &str, seconds| {
        let (tsunami, plan) = (tsunami.clone(), plan(name));
        tokio::spawn(async move {
            let panics = async move |cluster: Cluster| {
                cluster.hosts()[0].run(format!("sleep {seconds}")).await?;
                if true {
                    panic!("a bug");
                }
                Ok(())
            };
            tsunami.run(plan, panics).await
        })
    };
    let (panicking, running, launching) = (spawn("p", 1), spawn("r", 30_000), spawn("l", 30_000));
    world.cloud.machine_fault("p-0", MachineFault::SlowTerminate(MINUTE));
    world.cloud.machine_fault("l-0", MachineFault::SlowBoot(10 * MINUTE));
    while !world.cloud.commands().iter().any(|(machine, _)| machine == "p-0") {
        sleep(Duration::from_millis(100)).await;
    }
    sleep(Duration::from_secs(2)).await;
    assert!(!panicking.is_finished(), "it is torn down before");
    assert_eq!(world.cloud.machines().len(), 13, "{:?}", world.cloud);

    let closed = world.cloud.calls(Call::Close);
    timeout(10 * MINUTE, tsunami.shutdown()).await.expect("it never ends").unwrap();
    assert_eq!(world.cloud.machines(), ["kept-0", "kept-1"]);
    assert!(world.cloud.calls(Call::Close) >= closed + 2 * 5, "what is attached is let go of, too");
    assert_eq!(world.state.runs().unwrap().len(), 1);
    for (name, run) in [("running", running), ("launching", launching), ("in use", in_use)] {
        let ended = run.await.unwrap();
        assert!(matches!(ended, Err(Error::Cancelled)), "{name}: {ended:?}");
    }
    assert!(panicking.await.unwrap_err().is_panic());
    // Whoever had machines learns that they are gone.
    assert!(held.down().await.is_ok());
    assert!(matches!(keeping.keep().await, Err(Error::Cancelled)));
    assert!(matches!(attached.run(without_end).await, Err(Error::Cancelled)));
    assert!(matches!(tsunami.attach(&kept, |_| true).await, Err(Error::Cancelled)));
    // What can be removed can still be.
    tsunami.down(&kept).await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn what_a_shutdown_could_not_remove_is_named_for_every_run() {
    let world = World::new();
    let tsunami = &world.tsunami;
    let runs: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .map(|name| {
            let tsunami = tsunami.clone();
            tokio::spawn(async move { tsunami.run(plan(name), without_end).await })
        })
        .collect();
    while world.cloud.commands().len() < 3 {
        sleep(Duration::from_millis(100)).await;
    }
    for nth in [1, 2] {
        world.cloud.fault(Call::Terminate, nth, Fault::Error(ProviderErrorKind::Unauthorized));
    }
    runs.iter().for_each(tokio::task::JoinHandle::abort);
    let error = tsunami.shutdown().await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Remains);
    let Error::Several(Failures { first, others, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(others.len(), 1, "{error:?}");
    let left: Vec<_> = std::iter::once(&**first)
        .chain(others)
        .map(|error| match error {
            Error::Remains { run, leftovers, .. } if leftovers.len() == 3 => world.state.find(run.as_str()),
            error => panic!("{error:?}"),
        })
        .collect();
    for run in left {
        tsunami.down(&run.unwrap()).await.unwrap();
    }
    tsunami.shutdown().await.expect("nothing remains any more");
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn one_run_has_its_own_token_observer_id_and_results_beside_those_of_all() {
    let (world, all) = (World::new(), CancellationToken::new());
    let (whole, own) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    let tsunami = world.tsunami.clone().cancel_on(all.clone()).observer(whole.clone()).results("everybody's");
    let (id, stop) = (tsunami.next_run_id(), CancellationToken::new());
    let one = tsunami.one_run().id(id.clone()).cancel_on(stop.clone()).observer(own.clone()).results("one's");
    let first = tokio::spawn({
        let one = one.clone();
        async move { one.run(plan("first"), without_end).await }
    });
    let second = tokio::spawn(async move { tsunami.run(plan("second"), without_end).await });
    while world.cloud.commands().len() < 2 {
        sleep(Duration::from_millis(100)).await;
    }
    let results = |name: &str| world.state.find(name).unwrap().record().unwrap().results.unwrap();
    assert_eq!(world.state.find("first").unwrap().id(), id);
    assert_eq!([results("first"), results("second")], ["one's", "everybody's"].map(std::path::PathBuf::from));
    assert!(
        matches!(one.run(plan("again"), without_end).await, Err(Error::Record { .. })),
        "one id, two runs"
    );

    stop.cancel();
    assert!(matches!(first.await.unwrap(), Err(Error::Cancelled)));
    sleep(MINUTE).await;
    assert!(!second.is_finished(), "it is not the token of that one");
    let starts = |recorder: &Recorder| {
        let events = recorder.events();
        events.iter().filter(|event| matches!(event.kind, EventKind::RunStarted { .. })).count()
    };
    assert_eq!((starts(&whole), starts(&own)), (2, 1));
    // The token of all ends one that has its own, too.
    let third = world.tsunami.clone().cancel_on(all.clone()).one_run().cancel_on(CancellationToken::new());
    let third = tokio::spawn(async move { third.run(plan("third"), without_end).await });
    while world.cloud.commands().len() < 3 {
        sleep(Duration::from_millis(100)).await;
    }
    all.cancel();
    for run in [second, third] {
        assert!(matches!(run.await.unwrap(), Err(Error::Cancelled)));
    }
    world.assert_clear();
}
