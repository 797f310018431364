//! The fake cloud does what it is told, or panics with what it can't do.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tsunami_core::testing::{Call, FakeCloud, Fault, MachineFault, Reply, Unreliable};
use tsunami_core::{
    Command, Connector, Deadline, Download, Exit, LaunchRequest, Login, Machine, MachineSpec, MachineState,
    Provider, ProviderErrorKind, RunFilter, RunId, Session, SessionError, SessionErrorKind,
};

async fn machine(cloud: &FakeCloud) -> Machine {
    let run = RunId::generate(SystemTime::UNIX_EPOCH, 1);
    let lifetime = Duration::from_secs(36_000);
    let request = LaunchRequest::new(
        run.clone(),
        "node",
        std::num::NonZeroU32::MIN,
        MachineSpec::default(),
        Deadline { at: SystemTime::UNIX_EPOCH + lifetime, lifetime },
    )
    .experiment("test")
    .authorized_key(cloud.prepare(&run, Path::new("unused")).await.unwrap());
    cloud.launch(&request).await.unwrap();
    sleep(Duration::from_secs(30)).await;
    cloud.list(&RunFilter::Run(run)).await.unwrap().remove(0)
}

async fn connect(cloud: &FakeCloud, machine: &Machine) -> Result<Box<dyn Session>, SessionError> {
    cloud.connect(machine, Instant::now() + Duration::from_secs(10)).await
}

async fn exec(session: &dyn Session, line: &str) -> Result<Exit, SessionError> {
    session.exec(&Command::shell(line), Arc::new(()), &CancellationToken::new()).await
}

/// A fake with a command that takes its time.
fn cloud() -> FakeCloud {
    let cloud = FakeCloud::new(1);
    cloud.on_command(|_, command| {
        let line = command.to_string();
        let reply = Reply::status(0).after(Duration::from_secs(100)).file("left", "");
        (line == "leave a file").then_some(reply)
    });
    cloud
}

/// Makes one call of a kind.
async fn make(call: Call, cloud: &FakeCloud, machine: &Machine, session: &dyn Session, home: &Path) -> Made {
    let run = RunId::generate(SystemTime::UNIX_EPOCH, 2);
    let download = Download::new(["back"], home);
    let made = match call {
        Call::Prepare => cloud.prepare(&run, Path::new("unused")).await.map(drop),
        Call::Connect => connect(cloud, machine).await.map(drop),
        Call::Exec => exec(session, "leave a file").await.map(drop),
        Call::Upload => session.upload(&home.join("here"), "there").await,
        Call::Download => session.download(&download).await.map(drop),
        Call::Close => session.close().await,
        _ => panic!("{call:?} is a provider's"),
    };
    made.map_err(|error| error.kind)
}

type Made = Result<(), SessionErrorKind>;

/// Whether a call took effect, where that can be seen.
async fn effect(call: Call, session: &dyn Session, home: &Path) -> Option<bool> {
    let there = async |name: &str| exec(session, &format!("cat {name}")).await.unwrap().success();
    match call {
        Call::Exec => Some(there("left").await),
        Call::Upload => Some(there("there").await),
        Call::Download => Some(home.join("back").exists()),
        Call::Close => Some(session.check().await.is_err()),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn every_fault_of_every_call_to_a_connector_or_a_session_happens() {
    let calls = [
        (Call::Prepare, SessionErrorKind::Local),
        (Call::Connect, SessionErrorKind::Connect),
        (Call::Exec, SessionErrorKind::Remote),
        (Call::Upload, SessionErrorKind::Transfer),
        (Call::Download, SessionErrorKind::Transfer),
        (Call::Close, SessionErrorKind::Lost),
    ];
    let slow = Duration::from_secs(1000);
    let faults = [
        Fault::Error(ProviderErrorKind::Unavailable),
        Fault::LostReply(ProviderErrorKind::Unavailable),
        Fault::Hang,
        Fault::Slow(slow),
    ];
    for (call, kind) in calls {
        for fault in faults {
            // Before the call begins, while it begins, and while it is under way.
            for when in 0..3 {
                let cloud = cloud();
                let machine = machine(&cloud).await;
                let session = connect(&cloud, &machine).await.unwrap();
                let home = tempfile::tempdir().unwrap();
                let (session, home) = (&*session, home.path());
                fs::write(home.join("here"), "").unwrap();
                session.upload(&home.join("here"), "back").await.unwrap();
                let (nth, teller) = (cloud.calls(call) + 1, cloud.clone());
                match when {
                    0 => cloud.fault(call, nth, fault),
                    1 => cloud.at(call, nth, move || teller.fault(call, nth, fault)),
                    _ => cloud.at(call, nth, move || {
                        tokio::spawn(async move { teller.fault(call, nth, fault) });
                    }),
                }
                let what = format!("{call:?}, {fault:?}, {when}");
                let begun = Instant::now();
                let made = timeout(slow * 2, make(call, &cloud, &machine, session, home)).await;
                let (expected, takes_effect) = match fault {
                    Fault::Error(_) => (Some(Err(kind)), false),
                    Fault::LostReply(_) => (Some(Err(kind)), true),
                    Fault::Hang => (None, true),
                    _ => (Some(Ok(())), true),
                };
                assert_eq!(made.ok(), expected, "{what}");
                assert_eq!(begun.elapsed() >= slow, matches!(fault, Fault::Hang | Fault::Slow(_)), "{what}");
                assert_eq!(effect(call, session, home).await.unwrap_or(takes_effect), takes_effect, "{what}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_command_can_be_cancelled() {
    let cloud = cloud();
    let machine = machine(&cloud).await;
    let session = connect(&cloud, &machine).await.unwrap();
    cloud.fault(Call::Exec, 1, Fault::Hang);
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(10)).await;
        token.cancel();
    });
    let ended = session.exec(&Command::shell("true"), Arc::new(()), &cancel).await;
    assert_eq!(ended.map_err(|error| error.kind), Err(SessionErrorKind::Cancelled));
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_a_machine_strikes_what_runs_there() {
    let short = Duration::from_secs(40);
    for fault in
        [MachineFault::DropsSession(short), MachineFault::Dies(short), MachineFault::Interrupted(short)]
    {
        let cloud = cloud();
        let machine = machine(&cloud).await;
        let session = connect(&cloud, &machine).await.unwrap();
        let teller = cloud.clone();
        tokio::spawn(async move {
            sleep(Duration::from_secs(5)).await;
            teller.machine_fault("node-0", fault);
        });
        let begun = Instant::now();
        let ended = exec(&*session, "sleep 10000").await.map_err(|error| error.kind);
        assert_eq!(ended, Err(SessionErrorKind::Lost), "{fault:?}");
        assert!(begun.elapsed() <= short + Duration::from_secs(1), "{fault:?}: {:?}", begun.elapsed());
        let now = cloud.list(&RunFilter::All).await.unwrap().remove(0);
        let is_gone = now.state == MachineState::Gone;
        assert_eq!(is_gone, !matches!(fault, MachineFault::DropsSession(_)), "{fault:?}");
        assert_eq!(now.interrupted.is_some(), matches!(fault, MachineFault::Interrupted(_)), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_it_cannot_do_is_a_panic() {
    let cloud = cloud();
    machine(&cloud).await;
    let refuses = |what: &str, tell: &dyn Fn()| {
        assert!(catch_unwind(AssertUnwindSafe(tell)).is_err(), "{what}");
    };
    refuses("a call that is over", &|| cloud.fault(Call::Launch, 1, Fault::Hang));
    refuses("a part of a listing", &|| cloud.fault(Call::List, 9, Fault::Partial(1)));
    refuses("a part of a command", &|| cloud.fault(Call::Exec, 9, Fault::Partial(1)));
    refuses("another boot", &|| cloud.machine_fault("node-0", MachineFault::NeverBoots));
    refuses("a slower boot", &|| cloud.machine_fault("node-0", MachineFault::SlowBoot(Duration::ZERO)));
    cloud.fault(Call::Launch, 2, Fault::Partial(0));
    cloud.machine_fault("node-1", MachineFault::NeverBoots);
    assert_eq!(cloud.machines(), ["node-0"]);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_ends_with_its_launch_may_also_be_slow_to_boot() {
    let cloud = cloud();
    cloud.machine_fault("node-0", MachineFault::Dies(Duration::ZERO));
    cloud.machine_fault("node-0", MachineFault::SlowBoot(Duration::from_secs(60)));
    assert_eq!(machine(&cloud).await.state, MachineState::Gone);
}

#[tokio::test]
async fn a_login_without_a_host_leads_nowhere() {
    assert_eq!(cloud().resolve(&Login::default().host("box")).await.unwrap(), "box");
    let error = cloud().resolve(&Login::default()).await.unwrap_err();
    assert_eq!(error.kind, SessionErrorKind::Local);
}

#[tokio::test(start_paused = true)]
async fn only_the_runs_key_gets_in_and_only_to_the_machine_that_is_meant() {
    let cloud = cloud();
    let good = machine(&cloud).await;
    let kind = async |machine: &Machine| connect(&cloud, machine).await.map(drop).map_err(|error| error.kind);
    assert_eq!(kind(&good).await, Ok(()));
    let mut bad = good.clone();
    bad.run = RunId::generate(SystemTime::UNIX_EPOCH, 2);
    assert_eq!(kind(&bad).await, Err(SessionErrorKind::Connect));
    for key in [None, Some("ssh-ed25519 AAAA".to_owned())] {
        let mut bad = good.clone();
        bad.login.host_key = key;
        assert_eq!(kind(&bad).await, Err(SessionErrorKind::HostKey));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_unreliable_fails_slows_and_throttles_as_it_is_told_and_the_same_way_every_time() {
    let run = RunId::generate(SystemTime::UNIX_EPOCH, 1);
    let unavailable = Fault::Error(ProviderErrorKind::Unavailable);
    let quiet = || {
        let cloud = FakeCloud::new(1);
        cloud.latency(Duration::ZERO..Duration::ZERO);
        Arc::new(cloud)
    };
    // Which calls fail does not depend on what is called in between.
    let mut failing = Vec::new();
    for (seed, between) in [(7, 0), (7, 1), (8, 0)] {
        let cloud = Unreliable::new(quiet(), seed);
        cloud.share(Call::List, 0.25, unavailable);
        let mut failed = Vec::new();
        for _ in 0..200 {
            for _ in 0..between {
                cloud.terminate(&run).await.unwrap();
            }
            failed.push(cloud.list(&RunFilter::All).await.is_err());
        }
        let count = failed.iter().filter(|failed| **failed).count();
        assert!((25..75).contains(&count), "{count} of 200");
        failing.push(failed);
    }
    assert!(failing[0] == failing[1] && failing[0] != failing[2]);

    let cloud = Unreliable::new(quiet(), 1);
    cloud.limit(Call::List, 0.5);
    cloud.latency(Duration::from_secs(10)..Duration::from_secs(11));
    let begun = Instant::now();
    let all = RunFilter::All;
    let (first, second, third) = tokio::join!(cloud.list(&all), cloud.list(&all), cloud.list(&all));
    assert!([first, second, third].iter().all(Result::is_ok));
    assert!((14..=15).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    cloud.calm();

    let lifetime = Duration::from_secs(36_000);
    let request = LaunchRequest::new(
        run.clone(),
        "node",
        std::num::NonZeroU32::new(3).unwrap(),
        MachineSpec::default(),
        Deadline { at: SystemTime::UNIX_EPOCH + lifetime, lifetime },
    )
    .authorized_key(cloud.prepare(&run, Path::new("unused")).await.unwrap());
    for (nth, fault) in [unavailable, Fault::Partial(1), Fault::LostReply(ProviderErrorKind::Throttled)]
        .into_iter()
        .enumerate()
    {
        cloud.fault(Call::Launch, nth as u32 + 1, fault);
    }
    for (kind, machines) in [
        (ProviderErrorKind::Unavailable, 0),
        (ProviderErrorKind::Capacity, 1),
        (ProviderErrorKind::Throttled, 3),
    ] {
        assert_eq!(cloud.launch(&request).await.unwrap_err().kind, kind);
        assert_eq!(cloud.get_ref().machines().len(), machines);
    }
    assert_eq!((cloud.launch(&request).await.unwrap().len(), cloud.calls(Call::Launch)), (3, 4));

    sleep(Duration::from_secs(30)).await;
    let machine = cloud.list(&RunFilter::Run(run)).await.unwrap().remove(0);
    cloud.fault(Call::Exec, 1, unavailable);
    cloud.fault(Call::Exec, 2, Fault::LostReply(ProviderErrorKind::Unavailable));
    cloud.fault(Call::Exec, 3, Fault::Slow(Duration::from_secs(100)));
    let session = cloud.connect(&machine, Instant::now() + Duration::from_secs(10)).await.unwrap();
    for ran in [0, 1] {
        assert_eq!(exec(&*session, "true").await.unwrap_err().kind, SessionErrorKind::Remote);
        assert_eq!(cloud.get_ref().commands().len(), ran);
    }
    let begun = Instant::now();
    exec(&*session, "true").await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 100);
    // What is over can't go wrong any more.
    let fault = || cloud.fault(Call::Exec, 3, unavailable);
    assert!(catch_unwind(AssertUnwindSafe(fault)).is_err());
}
