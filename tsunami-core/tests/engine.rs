//! The engine on the fake cloud and paused time. Every test ends with an empty cloud.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tsunami_core::limits::DURATION_LIMIT;
use tsunami_core::testing::{Call, FakeCloud, Fault, MachineFault, Reply};
use tsunami_core::{
    Addresses, Cluster, Command, Download, Error, ErrorClass, Event, EventKind, Exit, Group, Keep,
    LaunchRequest, Leftover, Machine, MachineId, MachineSpec, MachineState, MockConnector, MockProvider,
    Observer, Plan, Price, Provider, ProviderError, ProviderErrorKind, Quote, Recorder, Report, RunFilter,
    RunId, RunStore, Session, SessionError, SessionErrorKind, Tsunami,
};

/// A fake cloud, an engine on it, and a place for records.
struct World {
    cloud: FakeCloud,
    events: Arc<Recorder>,
    cancel: CancellationToken,
    state: RunStore,
    _directory: TempDir,
}

impl World {
    fn new() -> Self {
        Self::seeded(1)
    }

    fn seeded(seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            cloud: FakeCloud::new(seed),
            events: Arc::default(),
            cancel: CancellationToken::new(),
            state: RunStore::at(directory.path().join("runs")),
            _directory: directory,
        }
    }

    fn tsunami(&self) -> Tsunami {
        Tsunami::new(Arc::new(self.cloud.clone()), Arc::new(self.cloud.clone()))
            .observer(self.events.clone())
            .state(self.state.clone())
            .cancel_on(self.cancel.clone())
            .started_at(std::time::UNIX_EPOCH + Duration::from_secs(1_800_000_000))
            .seed(7)
    }

    async fn run<T, F, Fut>(&self, plan: Plan, body: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(Cluster) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.tsunami().run(plan, body).await
    }

    fn position(&self, what: impl Fn(&EventKind) -> bool) -> Option<usize> {
        self.events.events().iter().position(|event| what(&event.kind))
    }

    /// Nothing is left in the cloud, and nothing is remembered.
    fn assert_clear(&self) {
        assert!(self.cloud.is_empty(), "left: {:?}", self.cloud);
        assert_eq!(self.state.runs().unwrap(), []);
    }
}

fn server_and_clients() -> Plan {
    Plan::new("test")
        .group(
            Group::new("server", MachineSpec::default())
                .setup(|m| async move { m.run("install server").await }),
        )
        .group(
            Group::new("client", MachineSpec::default())
                .count(3)
                .setup(async |m| m.run("install client").await),
        )
}

async fn nothing(_: Cluster) -> Result<(), Error> {
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_experiment_gets_its_machines_and_returns_its_result() {
    let world = World::new();
    world.cloud.on_command(|machine, command| {
        let line = command.to_string();
        line.starts_with("bench").then(|| Reply::stdout(format!("{machine} did {line}")))
    });
    let results = world
        .tsunami()
        .run(server_and_clients(), |cluster| async move {
            let server = cluster.host("server-0").ok_or("no server")?.clone();
            let mut results = Vec::new();
            for client in cluster.group("client") {
                let output = client.run(format!("bench {}", client.ip_of(&server)?)).await?;
                results.push(output.stdout().into_owned());
            }
            Ok(results)
        })
        .await
        .unwrap();
    assert_eq!(results.len(), 3);
    assert!(results[2].starts_with("client-2 did bench 10.0."), "{results:?}");
    world.assert_clear();
    let report: Report = world.events.events().iter().collect();
    assert_eq!((report.ok, report.machines.len(), report.commands.len()), (Some(true), 4, 7));
    assert!(report.ready.is_some() && report.leftovers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_story() {
    let mut stories = Vec::new();
    for _ in 0..2 {
        let world = World::seeded(99);
        world.run(server_and_clients(), nothing).await.unwrap();
        stories.push(serde_json::to_string(&world.events.events()).unwrap());
        world.assert_clear();
    }
    assert_eq!(stories[0], stories[1]);
}

#[tokio::test(start_paused = true)]
async fn a_bad_plan_asks_for_nothing() {
    let world = World::new();
    let error = world.run(Plan::new("no machines"), nothing).await.unwrap_err();
    assert!(matches!(error, Error::Plan { .. }));
    assert_eq!(world.cloud.total_calls(), 0);
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn machines_that_would_be_ended_before_their_lifetime_is_over_are_not_launched() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let mut provider = MockProvider::new();
    provider.expect_choose().returning(|_, _| Ok(None));
    let ends = now + Duration::from_secs(600);
    provider.expect_quote().returning(move |_, _| Ok(Quote::free("a block").ends(ends)));
    let tsunami = Tsunami::new(Arc::new(provider), Arc::new(FakeCloud::new(1))).started_at(now);
    let plan = |minutes: u64| {
        let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()));
        plan.lifetime(Duration::from_secs(60 * minutes))
    };
    tsunami.quote(&plan(10)).await.unwrap();
    let error = tsunami.quote(&plan(11)).await.unwrap_err();
    let Error::Quote { failures } = &error else { panic!("{error:?}") };
    let said = &failures[0].error.message;
    assert!(said.contains("in 10m, before their lifetime of 11m is over"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_quote_asks_for_nothing_more() {
    let world = World::new();
    world.cloud.fault(Call::Quote, 1, Fault::Error(ProviderErrorKind::InvalidSpec));
    world.cloud.fault(Call::Quote, 2, Fault::Error(ProviderErrorKind::Unauthorized));
    let error = world.run(server_and_clients(), nothing).await.unwrap_err();
    assert!(matches!(error, Error::Quote { failures } if failures.len() == 2));
    assert_eq!(world.cloud.calls(Call::Launch), 0);
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_run_that_cannot_be_recorded_asks_for_nothing() {
    let world = World::new();
    let tsunami = world.tsunami().state(RunStore::at("/dev/null/runs"));
    let error = tsunami.run(server_and_clients(), nothing).await.unwrap_err();
    assert!(matches!(error, Error::Record { action: "write", .. }), "{error:?}");
    assert_eq!((world.cloud.calls(Call::Launch), world.cloud.calls(Call::Prepare)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_machine_does_not_delay_the_others() {
    let world = World::new();
    world.cloud.machine_fault("client-1", MachineFault::SlowBoot(Duration::from_secs(90)));
    world.run(server_and_clients(), nothing).await.unwrap();
    let ready = |name: &'static str| {
        world
            .position(move |event| matches!(event, EventKind::Ready { machine, .. } if machine == name))
            .unwrap()
    };
    let slow = world
        .position(|event| matches!(event, EventKind::Running { machine, .. } if machine == "client-1"))
        .unwrap();
    assert!(ready("server-0") < slow && ready("client-0") < slow && ready("client-2") < slow);
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_failing_set_up_names_the_machine_and_the_command() {
    let world = World::new();
    world.cloud.on_command(|machine, _| {
        let reply = || Reply { exit: Exit::Status(100), ..Reply::stdout("reading lists\n") };
        (machine == "client-1").then(|| reply().stderr("E: no package\n"))
    });
    let error = world.run(server_and_clients(), nothing).await.unwrap_err();
    assert_eq!(error.written(), ["reading lists", "E: no package"]);
    let shown = format!("{error:?}");
    assert!(shown.ends_with("\n  | reading lists\n  | E: no package"), "{shown}");
    let Error::Command { machine, stage, command, exit, .. } = error else { panic!("{error:?}") };
    assert_eq!((machine.as_str(), stage.as_str(), command.as_str()), ("client-1", "setup", "install client"));
    assert_eq!(exit, Exit::Status(100));
    world.assert_clear();
}

/// Makes all clients boot at one time, later than the server.
fn boot_together(world: &World) {
    for client in ["client-0", "client-1", "client-2"] {
        world.cloud.machine_fault(client, MachineFault::SlowBoot(Duration::from_secs(30)));
    }
}

#[tokio::test(start_paused = true)]
async fn set_ups_that_fail_at_the_same_time_are_all_told_the_first_in_full() {
    let world = World::new();
    boot_together(&world);
    // In an order that is not that of their names, and one of them much later.
    let after = |machine: &str| match machine {
        "client-0" => Duration::from_millis(10_200),
        "client-1" => Duration::from_secs(60),
        _ => Duration::from_secs(10),
    };
    world.cloud.latency(Duration::from_millis(1)..Duration::from_millis(5));
    world.cloud.on_command(move |machine, command| {
        let failure = || Reply::status(100).stderr(format!("{machine} broke\n")).after(after(machine));
        (command.to_string() == "install client").then(failure)
    });
    let begun = Instant::now();
    let error = world.run(server_and_clients(), nothing).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(45), "{:?}", begun.elapsed());
    assert_eq!((error.place(), error.written()), (Some(("client-2", "setup")), ["", "client-2 broke"]));
    let Error::Several(failures) = &error else { panic!("{error:?}") };
    let others: Vec<_> = failures.others.iter().map(ToString::to_string).collect();
    assert_eq!(others, ["client-0: stage setup: `install client` ended with status 100"]);
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn machines_that_cannot_be_reached_are_all_told() {
    let world = World::new();
    for client in ["client-0", "client-2"] {
        world.cloud.machine_fault(client, MachineFault::RefusesSsh);
    }
    let error = world.run(server_and_clients(), nothing).await.unwrap_err();
    let Error::Several(failures) = &error else { panic!("{error:?}") };
    let all = std::iter::once(&*failures.first).chain(&failures.others);
    let mut machines: Vec<_> = all.filter_map(|error| error.place()).map(|(machine, _)| machine).collect();
    machines.sort_unstable();
    assert_eq!(machines, ["client-0", "client-2"]);
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_is_followed_by_others_ends_the_run_without_delay() {
    // None follows, a panic follows, the user interrupts.
    for follows in ["nothing", "panic", "cancel"] {
        let world = World::new();
        boot_together(&world);
        world.cloud.latency(Duration::from_millis(1)..Duration::from_millis(2));
        let (cancel, failed) = (world.cancel.clone(), Arc::new(Mutex::new(None)));
        let at = failed.clone();
        let plan = Plan::new("test").group(Group::new("client", MachineSpec::default()).count(3).setup(
            move |host| {
                let (cancel, at) = (cancel.clone(), at.clone());
                async move {
                    if host.index() == 0 {
                        at.lock().unwrap().get_or_insert_with(Instant::now);
                        return Err(host.error("broken"));
                    }
                    sleep(Duration::from_millis(200)).await;
                    match follows {
                        "panic" => panic!("oh dear"),
                        "cancel" => cancel.cancel(),
                        _ => sleep(Duration::from_secs(100)).await,
                    }
                    Ok(())
                }
            },
        ));
        let torn_down = Arc::new(Mutex::new(None));
        let begun = torn_down.clone();
        let note = move || *begun.lock().unwrap() = Some(Instant::now());
        let observer = Arc::new(OnTeardown(Mutex::new(Some(Box::new(note)))));
        let tsunami = world.tsunami().observer(observer).keep(Keep::OnFailure);
        let ended = tokio::spawn(async move { tsunami.run(plan, nothing).await }).await;
        match (follows, ended) {
            ("panic", Err(panic)) => assert!(panic.is_panic()),
            ("nothing", Ok(Err(Error::At { .. }))) => {
                let directory = world.state.find("test").unwrap();
                world.tsunami().down(&directory).await.unwrap();
            }
            ("cancel", Ok(Err(Error::At { .. }))) => {}
            (follows, ended) => panic!("{follows}: {ended:?}"),
        }
        if let Some(torn_down) = *torn_down.lock().unwrap() {
            let failed: Instant = failed.lock().unwrap().unwrap();
            assert!(torn_down - failed <= Duration::from_secs(1), "{follows}: {:?}", torn_down - failed);
        }
        world.assert_clear();
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_of_a_new_machine_that_never_ends_is_given_up_by_its_name() {
    let world = World::new();
    world.cloud.fault(Call::Verify, 3, Fault::Hang);
    let begun = Instant::now();
    let plan = server_and_clients().connect_timeout(Duration::from_secs(40));
    let error = world.run(plan, nothing).await.unwrap_err();
    let Error::Unfit { machine, source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(error.place(), Some((machine.as_str(), "connect")));
    assert!(source.to_string().contains("2m 10s after its launch"), "{source}");
    assert!(error.help().is_some_and(|help| help.contains("connect_timeout")));
    assert!(begun.elapsed() < Duration::from_secs(140), "{:?}", begun.elapsed());
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_its_provider_refuses_is_named() {
    let world = World::new();
    world.cloud.fault(Call::Verify, 1, Fault::Error(ProviderErrorKind::Other));
    let error = world.run(server_and_clients(), nothing).await.unwrap_err();
    assert!(matches!(&error, Error::Unfit { .. }), "{error:?}");
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_experiment_goes_on_after_the_teardown() {
    let world = World::new();
    let tsunami = world.tsunami();
    let run = tokio::spawn(async move {
        tsunami
            .run(server_and_clients(), |_| async {
                if true {
                    panic!("oh no")
                }
                Ok(())
            })
            .await
    });
    assert_eq!(run.await.unwrap_err().into_panic().downcast_ref::<&str>(), Some(&"oh no"));
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_set_up_goes_on_after_the_teardown() {
    let world = World::new();
    let tsunami = world.tsunami();
    let plan = server_and_clients().group(Group::new("bad", MachineSpec::default()).setup(|_| async {
        if true {
            panic!("oh dear")
        }
        Ok(())
    }));
    let run = tokio::spawn(async move { tsunami.run(plan, nothing).await });
    assert_eq!(run.await.unwrap_err().into_panic().downcast_ref::<&str>(), Some(&"oh dear"));
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_experiment_comes_back() {
    let world = World::new();
    let run = world.run(server_and_clients(), |_| async { Err::<(), _>("not today".into()) });
    assert_eq!(run.await.unwrap_err().to_string(), "not today");
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_at_any_call_leaves_nothing() {
    let work = |cluster: Cluster| async move {
        let mut background = cluster.hosts()[0].command(Command::shell("sleep 100")).start();
        cluster.hosts()[1].run("sleep 10").await?;
        background.wait().await.map(drop)
    };
    let calls = {
        let world = World::new();
        world.run(server_and_clients(), work).await.unwrap();
        world.cloud.total_calls()
    };
    assert!(calls > 30, "{calls} calls");
    let mut cancelled = 0;
    for nth in 1..=calls {
        let world = World::new();
        let cancel = world.cancel.clone();
        world.cloud.at_call(nth, move || cancel.cancel());
        match world.run(server_and_clients(), work).await {
            Err(Error::Cancelled) => cancelled += 1,
            Ok(()) => {}
            Err(error) => panic!("cancelled at call {nth}: {error:?}"),
        }
        world.assert_clear();
    }
    assert!(cancelled > 20, "{cancelled} of {calls}");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_run_is_torn_down_in_the_background() {
    for seconds in [0.05, 0.3, 1.0, 6.0, 12.0, 25.0] {
        let world = World::new();
        let tsunami = world.tsunami();
        let run = tsunami.run(server_and_clients(), |_| async {
            sleep(Duration::from_secs(100)).await;
            Ok(())
        });
        assert!(timeout(Duration::from_secs_f64(seconds), run).await.is_err());
        tsunami.wait_idle().await;
        world.assert_clear();
    }
}

#[tokio::test(start_paused = true)]
async fn no_capacity_is_an_error_and_what_was_launched_is_released() {
    let world = World::new();
    world.cloud.fault(Call::Launch, 2, Fault::Partial(2));
    let error = world.run(server_and_clients(), nothing).await.unwrap_err();
    assert!(
        matches!(&error, Error::Launch { source, .. } if source.kind == ProviderErrorKind::Capacity),
        "{error:?}"
    );
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn throttling_and_lost_answers_are_retried_without_a_second_machine() {
    let world = World::new();
    world.cloud.fault(Call::Launch, 1, Fault::Error(ProviderErrorKind::Throttled));
    world.cloud.fault(Call::Launch, 2, Fault::LostReply(ProviderErrorKind::Unavailable));
    world.cloud.fault(Call::List, 1, Fault::Error(ProviderErrorKind::Throttled));
    let machines = world.run(server_and_clients(), {
        let cloud = world.cloud.clone();
        |_| async move { Ok(cloud.machines()) }
    });
    assert_eq!(machines.await.unwrap().len(), 4);
    assert!(world.position(|event| matches!(event, EventKind::Retrying { .. })).is_some());
    assert!(world.position(|event| matches!(event, EventKind::ListingFailed { .. })).is_some());
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_launch_without_answer_is_named_as_what_may_remain() {
    let world = World::new();
    world.cloud.fault(Call::Launch, 1, Fault::Hang);
    let cancel = world.cancel.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(30)).await;
        cancel.cancel();
    });
    let error = world.run(server_and_clients(), nothing).await.unwrap_err();
    let Error::Remains { leftovers, cause, .. } = error else { panic!("{error:?}") };
    assert!(leftovers[0].what.contains("launch request"), "{leftovers:?}");
    assert!(matches!(cause.as_deref(), Some(Error::Cancelled)));
    // The record is still there, and enough to finish the job.
    let runs = world.state.runs().unwrap();
    world.tsunami().cancel_on(CancellationToken::new()).down(&runs[0]).await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_teardown_that_is_not_answered_is_repeated() {
    for call in [Call::Terminate, Call::List] {
        let world = World::new();
        let (cloud, hour) = (world.cloud.clone(), Duration::from_secs(3600));
        let run = world.run(server_and_clients(), move |_| async move {
            cloud.fault(call, cloud.calls(call) + 1, Fault::Hang);
            Ok(())
        });
        timeout(hour, run).await.expect("it never ends").unwrap();
        let unanswered = |event: &EventKind| matches!(event, EventKind::StillThere { leftovers } if leftovers[0].why.contains("no answer"));
        assert!(world.position(unanswered).is_some(), "{call:?}");
        world.assert_clear();
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_unanswered_teardown_may_have_left_is_named() {
    let world = World::new();
    for nth in 1..200 {
        world.cloud.fault(Call::Terminate, nth, Fault::Hang);
    }
    let error = world.run(server_and_clients(), nothing).await.unwrap_err();
    let Error::Remains { leftovers, .. } = error else { panic!("{error:?}") };
    let named = |machine: &str| leftovers.iter().any(|left| left.what.contains(&format!("({machine})")));
    for machine in ["server-0", "client-0", "client-1", "client-2"] {
        assert!(named(machine), "{machine}: {leftovers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_is_final_ends_the_teardown_at_once() {
    let world = World::new();
    world.cloud.fault(Call::Terminate, 1, Fault::Error(ProviderErrorKind::Unauthorized));
    let error = world.run(server_and_clients(), nothing).await.unwrap_err();
    let Error::Remains { leftovers, .. } = &error else { panic!("{error:?}") };
    assert_eq!((world.cloud.calls(Call::Terminate), leftovers.len()), (1, 5), "{leftovers:?}");
    // Allowed again, another process finishes the job.
    let runs = world.state.runs().unwrap();
    world.tsunami().down(&runs[0]).await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_quote_that_is_not_answered_can_be_cancelled() {
    let world = World::new();
    world.cloud.fault(Call::Quote, 2, Fault::Hang);
    let tsunami = world.tsunami();
    let run = tsunami.run(server_and_clients(), nothing);
    assert!(timeout(Duration::from_secs(60), run).await.is_err());
    timeout(Duration::from_secs(60), tsunami.wait_idle()).await.expect("a dropped run goes on");
    world.cloud.fault(Call::Quote, 4, Fault::Hang);
    let (run, cancel) = (world.run(server_and_clients(), nothing), world.cancel.clone());
    let cancelled = async {
        sleep(Duration::from_secs(60)).await;
        cancel.cancel();
        sleep(Duration::from_secs(60)).await;
    };
    let result = tokio::select! {
        biased;
        result = run => result,
        () = cancelled => panic!("a cancelled run goes on"),
    };
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert_eq!(world.cloud.calls(Call::Launch), 0);
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_is_not_answered_does_not_blind_the_run() {
    let world = World::new();
    world.cloud.fault(Call::List, 8, Fault::Hang);
    let plan = server_and_clients().connect_timeout(Duration::from_secs(200));
    world.run(plan, nothing).await.unwrap();
    assert!(world.position(|event| matches!(event, EventKind::ListingFailed { .. })).is_some());
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_never_boots_fails_within_its_time_and_the_others_work() {
    let world = World::new();
    world.cloud.machine_fault("client-2", MachineFault::NeverBoots);
    let begun = Instant::now();
    let plan = server_and_clients().connect_timeout(Duration::from_secs(40));
    let error = world.run(plan, nothing).await.unwrap_err();
    assert!(matches!(&error, Error::Connect { machine, .. } if machine == "client-2"), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(50));
    let report: Report = world.events.events().iter().collect();
    assert_eq!(report.machines.values().filter(|machine| machine.ready.is_some()).count(), 3);
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_refuses_ssh_says_what_was_seen() {
    let world = World::new();
    world.cloud.machine_fault("server-0", MachineFault::RefusesSsh);
    let error = world.run(server_and_clients(), nothing).await.unwrap_err();
    assert!(tsunami_core::ErrorChain(&error).to_string().contains("connection refused"));
    assert_eq!(error.place(), Some(("server-0", "connect")));
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_dies_is_lost_whatever_it_was_doing() {
    for seconds in [2, 8, 21, 60, 200] {
        let world = World::new();
        world.cloud.machine_fault("client-0", MachineFault::Dies(Duration::from_secs(seconds)));
        let run = world.run(server_and_clients(), |cluster| async move {
            cluster.group("client")[0].run("sleep 300").await.map(drop)
        });
        let error = run.await.unwrap_err();
        assert!(
            matches!(&error, Error::Lost { machine, .. } if machine == "client-0"),
            "{seconds} s: {error:?}"
        );
        world.assert_clear();
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_session_is_lost_contact() {
    let world = World::new();
    world.cloud.machine_fault("client-0", MachineFault::DropsSession(Duration::from_secs(5)));
    let run = world.run(server_and_clients(), |cluster| async move {
        cluster.group("client")[0].run("sleep 300").await.map(drop)
    });
    let error = run.await.unwrap_err();
    let Error::Lost { stage, command, .. } = &error else { panic!("{error:?}") };
    assert_eq!((stage.as_str(), command.as_deref()), ("run", Some("sleep 300")));
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn teardown_waits_for_slow_machines() {
    let world = World::new();
    world.cloud.machine_fault("client-1", MachineFault::SlowTerminate(Duration::from_secs(120)));
    world.run(server_and_clients(), nothing).await.unwrap();
    assert!(world.cloud.calls(Call::Terminate) > 2);
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_teardown_that_fails_names_what_remains_and_down_removes_it() {
    let world = World::new();
    for nth in 1..200 {
        world.cloud.fault(Call::Terminate, nth, Fault::Error(ProviderErrorKind::Unavailable));
    }
    let error = world.run(server_and_clients(), nothing).await.unwrap_err();
    assert!(matches!(&error, Error::Remains { cause: None, .. }), "{error:?}");
    let Error::Remains { run, leftovers, .. } = &error else { unreachable!() };
    assert!(error.to_string().starts_with(&format!("run {run}: ")) && !leftovers.is_empty(), "{error}");
    assert_eq!(world.cloud.machines().len(), 4);
    let runs = world.state.runs().unwrap();
    assert_eq!(runs.len(), 1);
    world.cloud.calm();
    // Somebody without patience gets one attempt.
    let hasty = CancellationToken::new();
    hasty.cancel();
    world.cloud.machine_fault("server-0", MachineFault::SlowTerminate(Duration::from_secs(60)));
    let begun = Instant::now();
    let error = world.tsunami().cancel_on(hasty).down(&runs[0]).await.unwrap_err();
    assert!(matches!(&error, Error::Remains { leftovers, .. } if leftovers.len() == 1), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    world.tsunami().down(&runs[0]).await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_lifetime_ends_the_run() {
    let world = World::new();
    let plan = server_and_clients().lifetime(Duration::from_secs(60));
    let run = world.run(plan, |_| async {
        sleep(Duration::from_secs(1000)).await;
        Ok(())
    });
    assert!(matches!(run.await.unwrap_err(), Error::LifetimeOver(_)));
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_command_that_times_out_says_after_how_long() {
    let world = World::new();
    let run = world.run(server_and_clients(), |cluster| async move {
        let slow = cluster.hosts()[0].command(Command::shell("sleep 300")).timeout(Duration::from_secs(5));
        slow.run().await.map(drop)
    });
    let error = run.await.unwrap_err();
    assert_eq!(error.to_string(), "server-0: stage run: `sleep 300` timed out after 5s");
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_background_process_runs_until_it_is_stopped() {
    let world = World::new();
    world.cloud.on_command(|_, command| {
        (command.to_string() == "serve")
            .then(|| Reply::stdout("ready\n").after(Duration::from_secs(1_000_000)))
    });
    let run = world.run(server_and_clients(), |cluster| async move {
        let server = cluster.hosts()[0].command(Command::shell("serve")).start();
        let mut short = cluster.hosts()[1].command(Command::shell("exit 3")).start();
        assert_eq!(short.wait().await?.exit, Exit::Status(3));
        assert!(server.stop().await?.is_none());
        Ok(())
    });
    run.await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn files_come_home() {
    let world = World::new();
    world.cloud.on_command(|machine, command| {
        (command.to_string() == "bench").then(|| Reply::status(0).file("out.csv", machine.to_owned()))
    });
    let home = tempfile::tempdir().unwrap();
    let into = home.path().to_owned();
    let run = world.run(server_and_clients(), |cluster| async move {
        for host in cluster.group("client") {
            host.run("bench").await?;
            let download = Download::new(["*.csv"], into.join(host.name()));
            assert_eq!(host.download(&download).await?, [1]);
        }
        Ok(())
    });
    run.await.unwrap();
    assert_eq!(std::fs::read_to_string(home.path().join("client-2/out.csv")).unwrap(), "client-2");
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn machines_that_are_kept_can_be_attached_to_and_taken_down_later() {
    let world = World::new();
    world.tsunami().up(server_and_clients()).await.unwrap().keep().await.unwrap();
    assert_eq!(world.cloud.machines().len(), 4);
    let directory = world.state.find("test").unwrap();
    assert!(directory.record().unwrap().kept && !directory.is_controlled().unwrap());

    let attached = world.tsunami().attach(&directory, |machine| machine.group == "client").await.unwrap();
    let names: Vec<_> = attached.cluster().hosts().iter().map(|host| host.name().to_owned()).collect();
    assert_eq!(names, ["client-0", "client-1", "client-2"]);
    attached.detach().await;
    assert_eq!(world.cloud.machines().len(), 4);

    world.tsunami().down(&directory).await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn machines_that_are_up_are_used_after_one_listing_and_no_call_waits_for_one_that_it_does_not_need() {
    let world = World::new();
    world.tsunami().up(server_and_clients()).await.unwrap().keep().await.unwrap();
    let directory = world.state.find("test").unwrap();
    let call = Duration::from_millis(100);
    world.cloud.latency(call..call);
    let (listed, begun) = (world.cloud.calls(Call::List), Instant::now());
    let attached = world.tsunami().attach(&directory, |_| true).await.unwrap();
    let commands = attached.cluster().hosts().iter().map(|host| host.run("true"));
    try_join_all(commands).await.unwrap();
    // The listing beside the preparations, a connection, what its provider keeps on the machine, and the command.
    assert!(begun.elapsed() < call * 9 / 2, "{:?}", begun.elapsed());
    assert_eq!(world.cloud.calls(Call::List) - listed, 1);
    attached.detach().await;
    world.tsunami().down(&directory).await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_provider_sees_to_a_new_machine_and_to_one_that_another_process_connects_to() {
    let world = World::new();
    let tsunami = Seen::tsunami(&world, |_| {});
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()));
    tsunami.up(plan).await.unwrap().keep().await.unwrap();
    let asked = || world.cloud.commands().into_iter().map(|(_, script)| script).collect::<Vec<_>>();
    assert_eq!(asked(), ["is it new"]);
    let directory = world.state.find("test").unwrap();
    tsunami.attach(&directory, |_| true).await.unwrap().detach().await;
    assert_eq!(asked(), ["is it new", "is it as it was"]);
    world.cloud.on_command(|_, command| {
        (command.to_string() == "is it as it was").then(|| Reply::status(1).stderr("it is not"))
    });
    let error = tsunami.attach(&directory, |_| true).await.map(drop).unwrap_err();
    assert!(matches!(&error, Error::Unfit { machine, .. } if machine == "node-0"), "{error:?}");
    tsunami.down(&directory).await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_replacement_lives_as_long_as_the_run_has_been_extended() {
    let world = World::new();
    world.cloud.machine_fault("client-0", MachineFault::Interrupted(Duration::from_secs(300)));
    let running = world.tsunami().up(replaceable()).await.unwrap();
    let directory = world.state.find("test").unwrap();
    let until = directory.record().unwrap().deadline.at + Duration::from_secs(3600);
    world.tsunami().extend(&directory, until).await.unwrap();
    running.cluster().interrupted().await;
    let repaired = running.cluster().repair().await.unwrap();
    assert_eq!(repaired.host("client-0").unwrap().machine().expires, Some(until));
    running.down().await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn another_process_finds_the_replacement_where_its_predecessor_still_lives() {
    let world = World::new();
    world.cloud.machine_fault("client-0", MachineFault::Interrupted(Duration::from_secs(300)));
    let running = world.tsunami().up(replaceable()).await.unwrap();
    running.cluster().interrupted().await;
    let repaired = running.cluster().repair().await.unwrap();
    assert_eq!(world.cloud.machines().len(), 4, "the old one has its notice still to run");
    let directory = world.state.find("test").unwrap();
    let attached = world.tsunami().attach(&directory, |_| true).await.unwrap();
    let ids = |cluster: &Cluster| -> Vec<_> {
        cluster.hosts().iter().map(|host| host.machine().id.clone()).collect()
    };
    assert_eq!(ids(attached.cluster()), ids(&repaired));
    attached.detach().await;
    running.down().await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn commands_of_another_process_end_too_when_their_machine_is_interrupted_or_gone() {
    let world = World::new();
    world.cloud.machine_fault("client-0", MachineFault::Interrupted(Duration::from_secs(600)));
    world.cloud.machine_fault("client-1", MachineFault::Dies(Duration::from_secs(500)));
    world.tsunami().up(server_and_clients()).await.unwrap().keep().await.unwrap();
    let directory = world.state.find("test").unwrap();
    let attached = world.tsunami().attach(&directory, |machine| machine.group == "client").await.unwrap();
    let cluster = attached.cluster();
    let interrupted = cluster.hosts()[0].run("sleep 10000").await.unwrap_err();
    assert!(matches!(interrupted, Error::Interrupted { .. }), "{interrupted}");
    let lost = cluster.hosts()[1].run("sleep 10000").await.unwrap_err();
    assert!(matches!(lost, Error::Lost { .. }), "{lost}");
    assert!(matches!(cluster.repair().await, Err(Error::Interrupted { .. })));
    attached.detach().await;
    world.tsunami().down(&directory).await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn no_machine_is_kept_of_a_run_that_was_cancelled_or_whose_lifetime_is_over() {
    for (keep, is_cancelled) in
        [Keep::Always, Keep::OnFailure].into_iter().flat_map(|keep| [(keep, true), (keep, false)])
    {
        let world = World::new();
        let (tsunami, cancel) = (world.tsunami().keep(keep), world.cancel.clone());
        let run = tsunami.run(server_and_clients(), async move |_| {
            if is_cancelled {
                cancel.cancel();
            }
            sleep(Duration::from_secs(3 * 3600)).await;
            Ok(())
        });
        match run.await.unwrap_err() {
            Error::Cancelled => assert!(is_cancelled),
            error => assert!(matches!(error, Error::LifetimeOver(_)) && !is_cancelled, "{error}"),
        }
        world.assert_clear();
    }
}

#[tokio::test(start_paused = true)]
async fn machines_that_nobody_keeps_are_torn_down_when_dropped() {
    let world = World::new();
    let tsunami = world.tsunami();
    drop(tsunami.up(server_and_clients()).await.unwrap());
    tsunami.wait_idle().await;
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_teardown_that_is_dropped_goes_on_in_the_background() {
    for seconds in [0.01, 0.2, 5.0] {
        let world = World::new();
        world.cloud.machine_fault("client-1", MachineFault::SlowTerminate(Duration::from_secs(30)));
        let tsunami = world.tsunami();
        let running = tsunami.up(server_and_clients()).await.unwrap();
        assert!(timeout(Duration::from_secs_f64(seconds), running.down()).await.is_err());
        tsunami.wait_idle().await;
        world.assert_clear();
    }
}

#[tokio::test(start_paused = true)]
async fn taking_down_a_run_that_is_still_going_ends_it() {
    let world = World::new();
    let tsunami = world.tsunami();
    let (state, other) = (world.state.clone(), world.tsunami().cancel_on(CancellationToken::new()));
    tokio::spawn(async move {
        sleep(Duration::from_secs(60)).await;
        let directory = state.find("test").unwrap();
        other.down(&directory).await.unwrap();
    });
    let run = tsunami.run(server_and_clients(), |cluster| async move {
        cluster.hosts()[0].run("sleep 3000").await.map(drop)
    });
    assert!(matches!(run.await.unwrap_err(), Error::Lost { .. }));
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_launched_once_somebody_takes_the_run_down() {
    let world = World::new();
    world.cloud.fault(Call::Launch, 1, Fault::Error(ProviderErrorKind::Unavailable));
    // The second attempt would come when the other process has ended everything and has yet to see that.
    world.cloud.fault(Call::List, 1, Fault::Slow(Duration::from_secs(5)));
    let (state, cloud) = (world.state.clone(), world.cloud.controller());
    let other = Tsunami::new(Arc::new(cloud.clone()), Arc::new(cloud)).state(state.clone());
    let down = tokio::spawn(async move {
        sleep(Duration::from_millis(500)).await;
        other.down(&state.find("test").unwrap()).await
    });
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()));
    let error = world.run(plan, nothing).await.unwrap_err();
    assert!(matches!(&error, Error::Launch { .. }), "{error:?}");
    assert_eq!(world.cloud.calls(Call::Launch), 1);
    down.await.unwrap().unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_thousand_machines_take_no_more_calls_than_ten() {
    let listings = async |count| {
        let world = World::new();
        world.cloud.latency(Duration::from_millis(1)..Duration::from_millis(2));
        let plan = Plan::new("many").group(Group::new("node", MachineSpec::default()).count(count));
        world.run(plan, nothing).await.unwrap();
        world.assert_clear();
        assert_eq!(world.cloud.calls(Call::Launch), 1);
        world.cloud.calls(Call::List)
    };
    assert!(listings(1000).await <= listings(10).await + 5);
}

#[tokio::test(start_paused = true)]
async fn a_spawned_run_is_send() {
    let world = World::new();
    let tsunami = world.tsunami();
    let run = tokio::spawn(async move {
        tsunami.run(server_and_clients(), async |cluster: Cluster| cluster.hosts()[0].run("true").await).await
    });
    assert!(run.await.unwrap().unwrap().exit.success());
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn mocks_stand_in_for_single_calls() {
    let world = World::new();
    let mut provider = MockProvider::new();
    provider.expect_name().return_const("mock".to_owned());
    provider.expect_settings().return_const(serde_json::Value::Null);
    provider.expect_choose().returning(|_, _| Ok(None));
    provider.expect_quote().returning(|_, _| Ok(Quote::free("a mock")));
    provider.expect_launch().times(1).returning(|request| {
        assert_eq!((request.group.as_str(), request.count.get()), ("node", 2));
        Err(ProviderError::new(ProviderErrorKind::Quota, "RunInstances", "VcpuLimitExceeded")
            .help("ask for more"))
    });
    provider.expect_terminate().times(2).returning(|_| Ok(Vec::new()));
    provider.expect_list().returning(|_| Ok(Vec::new()));
    provider.expect_consistency().return_const(Duration::from_secs(3));
    let mut connector = MockConnector::new();
    connector.expect_prepare().times(1).returning(|_, _| Ok("ssh-ed25519 key".to_owned()));
    connector.expect_finish().times(1).return_const(());
    let tsunami = Tsunami::new(Arc::new(provider), Arc::new(connector)).state(world.state.clone());
    let plan = Plan::new("mocked").group(Group::new("node", MachineSpec::default()).count(2));
    let error = tsunami.run(plan, nothing).await.unwrap_err();
    assert_eq!(error.help(), Some("ask for more"));
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_machine_whose_address_is_none_is_not_connected_to() {
    let world = World::new();
    let mut provider = MockProvider::new();
    provider.expect_name().return_const("mock".to_owned());
    provider.expect_settings().return_const(serde_json::Value::Null);
    provider.expect_choose().returning(|_, _| Ok(None));
    provider.expect_quote().returning(|_, _| Ok(Quote::free("a mock")));
    provider.expect_launch().returning(|_| Ok(vec![MachineId::new("i-1")]));
    provider.expect_terminate().returning(|_| Ok(Vec::new()));
    let ended = Arc::new(AtomicBool::new(false));
    let gone = ended.clone();
    provider.expect_list().returning(move |filter| {
        let RunFilter::Run(run) = filter else { return Ok(Vec::new()) };
        let address = "10.0.0.1\nerror: all is lost".to_owned();
        let id = MachineId::new("i-1");
        let machine = Machine::new(id, run.clone(), "node", 0, MachineState::Running)
            .addresses(Addresses::default().public(address))
            .price(Price::Free);
        Ok(if gone.load(Ordering::Relaxed) { Vec::new() } else { vec![machine] })
    });
    provider.expect_consistency().return_const(Duration::ZERO);
    let mut connector = MockConnector::new();
    connector.expect_prepare().returning(|_, _| Ok("ssh-ed25519 key".to_owned()));
    connector.expect_connect().never();
    connector.expect_finish().return_const(());
    let recorder = Arc::new(Recorder::default());
    let tsunami = Tsunami::new(Arc::new(provider), Arc::new(connector)).state(world.state.clone());
    let tsunami = tsunami.observer(recorder.clone());
    let plan = Plan::new("odd").group(Group::new("node", MachineSpec::default()));
    let plan = plan.connect_timeout(Duration::from_secs(5));
    let run = tokio::spawn(async move { tsunami.run(plan, nothing).await });
    tokio::time::sleep(Duration::from_secs(6)).await;
    ended.store(true, Ordering::Relaxed);
    assert!(matches!(run.await.unwrap().unwrap_err(), Error::Connect { .. }));
    let told = recorder.events().into_iter().any(|event| {
        let EventKind::ListingFailed { error } = event.kind else { return false };
        error.contains(r"10.0.0.1\n") && !error.contains('\n')
    });
    assert!(told, "the field is named, in one line");
}

fn replaceable() -> Plan {
    Plan::new("test")
        .group(Group::new("server", MachineSpec::default()))
        .group(
            Group::new("client", MachineSpec::default())
                .count(2)
                .replace_interrupted(true)
                .setup(async |m| m.run("sleep 30").await),
        )
        .connect_timeout(Duration::from_secs(600))
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_interrupted_during_set_up_is_replaced() {
    let world = World::new();
    // The notice comes at 25 s, in the middle of set-up.
    world.cloud.machine_fault("client-1", MachineFault::Interrupted(Duration::from_secs(145)));
    let ids = world
        .run(replaceable(), |cluster| async move {
            Ok(cluster.hosts().iter().map(|host| host.machine().id.to_string()).collect::<Vec<_>>())
        })
        .await
        .unwrap();
    assert_eq!(ids.len(), 3);
    assert!(ids.contains(&"fake-0004".to_owned()), "{ids:?}");
    let report: Report = world.events.events().iter().collect();
    let client = &report.machines["client-1"];
    assert_eq!((client.replaced.len(), client.interrupted.is_some()), (1, true));
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_interrupted_in_the_experiment_can_be_replaced() {
    let world = World::new();
    world.cloud.machine_fault("client-0", MachineFault::Interrupted(Duration::from_secs(300)));
    world
        .run(replaceable(), |cluster| async move {
            let client = cluster.host("client-0").ok_or("no client")?;
            let error = client.run("sleep 1000").await.unwrap_err();
            assert!(matches!(&error, Error::Interrupted { machine, .. } if machine == "client-0"), "{error}");
            assert!(client.run("sleep 10").await.is_err(), "nothing new begins there");
            client.command(Command::shell("sleep 10")).despite_interruption().run().await?;
            let repaired = cluster.repair().await?;
            let names: Vec<_> = repaired.hosts().iter().map(|host| host.name().to_owned()).collect();
            assert_eq!(names, ["server-0", "client-0", "client-1"]);
            assert_ne!(repaired.hosts()[1].machine().id, client.machine().id);
            assert_eq!(repaired.hosts()[2].machine().id, cluster.hosts()[2].machine().id);
            repaired.hosts()[1].run("sleep 1000").await?;
            Ok(())
        })
        .await
        .unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_alone_was_told_of_its_interruption_is_replaced_before_it_ends() {
    let world = World::new();
    let ends = Duration::from_secs(300);
    world.cloud.machine_fault("client-0", MachineFault::Notified(ends));
    let begun = tokio::time::Instant::now();
    world
        .run(replaceable(), move |cluster| async move {
            let client = cluster.host("client-0").ok_or("no client")?;
            let error = client.run("sleep 1000").await.unwrap_err();
            assert!(matches!(&error, Error::Interrupted { machine, .. } if machine == "client-0"), "{error}");
            assert!(begun.elapsed() < ends, "{:?}", begun.elapsed());
            let repaired = cluster.repair().await?;
            assert_ne!(repaired.hosts()[1].machine().id, client.machine().id);
            Ok(())
        })
        .await
        .unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_was_dropped_or_forgotten_is_made_good_by_the_next() {
    let world = World::new();
    world.cloud.machine_fault("client-0", MachineFault::Interrupted(Duration::from_secs(300)));
    world
        .run(replaceable(), |cluster| async move {
            let error = cluster.interrupted().await;
            assert!(matches!(&error, Error::Interrupted { machine, .. } if machine == "client-0"), "{error}");
            // In the middle of launching, connecting or set-up, and at the end.
            for patience in [0, 1, 15, 40] {
                let _ = tokio::time::timeout(Duration::from_secs(patience), cluster.repair()).await;
            }
            let first = cluster.repair().await?;
            let second = cluster.repair().await?;
            let id = |cluster: &Cluster| cluster.host("client-0").map(|host| host.machine().id.clone());
            assert_ne!(id(&first), id(&cluster));
            assert_eq!(id(&second), id(&first), "one replacement is enough");
            assert_eq!(second.hosts().len(), 3);
            second.host("client-0").ok_or("no client")?.run("sleep 1000").await.map(drop)
        })
        .await
        .unwrap();
    let report: Report = world.events.events().iter().collect();
    assert_eq!(report.machines["client-0"].gone, None, "its predecessor is gone, not it");
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn an_interruption_that_is_not_to_be_repaired_ends_the_run() {
    let world = World::new();
    world.cloud.machine_fault("server-0", MachineFault::Interrupted(Duration::from_secs(300)));
    let error = world
        .run(replaceable(), |cluster| async move {
            let _ = cluster.hosts()[0].run("sleep 1000").await;
            cluster.repair().await.map(drop)
        })
        .await
        .unwrap_err();
    assert!(matches!(&error, Error::Interrupted { machine, .. } if machine == "server-0"), "{error}");
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_may_cost_more_than_its_budget_asks_for_nothing() {
    for (price, fits) in [(Price::PerHour(1.0), true), (Price::PerHour(1.01), false), (Price::Unknown, false)]
    {
        let world = World::new();
        let mut provider = MockProvider::new();
        provider.expect_choose().returning(|_, _| Ok(None));
        provider.expect_quote().returning(move |_, _| Ok(Quote::new(Quote::free("a mock").offers, price)));
        provider.expect_name().return_const("mock".to_owned());
        provider.expect_settings().return_const(serde_json::Value::Null);
        let error = || ProviderError::new(ProviderErrorKind::Capacity, "launch", "none");
        provider.expect_launch().times(usize::from(fits)).returning(move |_| Err(error()));
        provider.expect_terminate().returning(|_| Ok(vec![]));
        provider.expect_consistency().return_const(Duration::ZERO);
        provider.expect_list().returning(|_| Ok(vec![]));
        let plan = Plan::new("test")
            .group(Group::new("node", MachineSpec::default()).count(2))
            .lifetime(Duration::from_secs(1800))
            .budget(1.0);
        let tsunami =
            Tsunami::new(Arc::new(provider), Arc::new(world.cloud.clone())).state(world.state.clone());
        let error = tsunami.run(plan, nothing).await.unwrap_err();
        assert_eq!(matches!(error, Error::Budget { .. }), !fits, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_is_torn_down_although_no_connection_could_be_prepared() {
    let world = World::new();
    let running = world.tsunami().keep(Keep::Always).up(server_and_clients()).await.unwrap();
    running.keep().await.unwrap();
    let directory = world.state.runs().unwrap().remove(0);
    let mut connector = MockConnector::new();
    let full = || SessionError::new(SessionErrorKind::Local, "no space left on device");
    connector.expect_prepare().returning(move |_, _| Err(full()));
    connector.expect_finish().return_const(());
    let tsunami = Tsunami::new(Arc::new(world.cloud.clone()), Arc::new(connector)).state(world.state.clone());
    tsunami.down(&directory).await.unwrap();
    world.assert_clear();
}

/// The fake, of whose machines something else is seen. An hour of one costs a dollar.
struct Seen {
    cloud: FakeCloud,
    see: Box<dyn Fn(&mut Machine) + Send + Sync>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.cloud.fmt(f)
    }
}

impl Seen {
    fn tsunami(world: &World, see: impl Fn(&mut Machine) + Send + Sync + 'static) -> Tsunami {
        let (cloud, provider) =
            (world.cloud.clone(), Self { cloud: world.cloud.clone(), see: Box::new(see) });
        let tsunami = Tsunami::new(Arc::new(provider), Arc::new(cloud)).state(world.state.clone());
        tsunami.observer(world.events.clone())
    }
}

#[async_trait::async_trait]
impl Provider for Seen {
    fn name(&self) -> String {
        self.cloud.name()
    }
    async fn quote(&self, spec: &MachineSpec, count: NonZeroU32) -> Result<Quote, ProviderError> {
        Ok(Quote::new(self.cloud.quote(spec, count).await?.offers, Price::PerHour(1.0)))
    }
    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        self.cloud.launch(request).await
    }
    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        let mut machines = self.cloud.list(filter).await?;
        machines.iter_mut().for_each(&self.see);
        Ok(machines)
    }
    async fn verify(&self, _: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        ask(session, "is it new").await
    }
    async fn renew(&self, _: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        ask(session, "is it as it was").await
    }
    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        self.cloud.extend(run, until).await
    }
    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        self.cloud.terminate(run).await
    }
}

async fn ask(session: &Arc<dyn Session>, script: &str) -> Result<(), ProviderError> {
    let failed = |error| ProviderError::new(ProviderErrorKind::Other, "verify", "it is not").source(error);
    session.administer(script, &[]).await.map(drop).map_err(failed)
}

/// Says that machines of the name `client-0` were taken back, some time after they fulfil a condition.
fn taken_back(when: fn(&Machine) -> bool, after: Duration) -> impl Fn(&mut Machine) + Send + Sync + 'static {
    let seen = Mutex::new(BTreeMap::new());
    move |machine: &mut Machine| {
        if machine.name() == "client-0" && when(machine) {
            let mut seen = seen.lock().unwrap();
            let first = seen.entry(machine.id.clone()).or_insert_with(Instant::now);
            if first.elapsed() >= after {
                machine.interrupted = Some("its capacity is wanted back".to_owned());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reason_that_comes_after_its_machine_is_gone_is_heard() {
    let gone = |machine: &Machine| machine.state == MachineState::Gone;
    // While it boots, at the very beginning of its set-up, in the middle of it, and in the experiment.
    for dies in [4, 21, 40, 300] {
        let world = World::new();
        let dies = Duration::from_secs(dies);
        world.cloud.machine_fault("client-0", MachineFault::Dies(dies));
        let cloud = world.cloud.clone();
        let in_setup = dies < Duration::from_secs(60);
        let begun = Instant::now();
        let plan = replaceable();
        if in_setup {
            // Only the first of that name has the fault.
            tokio::spawn(async move {
                sleep(dies).await;
                cloud.calm();
            });
        }
        let tsunami = Seen::tsunami(&world, taken_back(gone, Duration::from_secs(4)));
        let cloud = world.cloud.clone();
        let run = tsunami.run(plan, move |cluster| async move {
            if in_setup {
                return Ok(());
            }
            cloud.calm();
            let client = cluster.host("client-0").ok_or("no client")?.clone();
            let error = client.command(Command::shell("sleep 1000")).run().await.unwrap_err();
            assert!(matches!(error, Error::Lost { .. } | Error::Interrupted { .. }), "{error}");
            let repaired = cluster.repair().await?;
            assert_ne!(repaired.host("client-0").ok_or("no client")?.machine().id, client.machine().id);
            assert!(matches!(client.interruption(), Some(Error::Interrupted { .. })));
            Ok(())
        });
        run.await.unwrap_or_else(|error| panic!("{dies:?}: {error:?}"));
        assert!(begun.elapsed() < Duration::from_secs(600));
        assert_eq!(world.cloud.calls(Call::Launch), 3, "{dies:?}: one for each group, and a replacement");
        world.assert_clear();
    }
}

#[tokio::test(start_paused = true)]
async fn a_replacement_is_not_replaced() {
    // With one machine in each place replaced, the group's number is not yet reached.
    let running = |machine: &Machine| machine.state == MachineState::Running;
    let world = World::new();
    let tsunami = Seen::tsunami(&world, taken_back(running, Duration::from_secs(100)));
    let error = tsunami
        .run(replaceable(), |cluster| async move {
            cluster.interrupted().await;
            let repaired = cluster.repair().await?;
            repaired.interrupted().await;
            repaired.repair().await.map(drop)
        })
        .await
        .unwrap_err();
    assert!(matches!(&error, Error::Interrupted { machine, .. } if machine == "client-0"), "{error}");
    assert_eq!(world.cloud.calls(Call::Launch), 3);
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn an_extended_run_goes_by_its_new_end() {
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    for (until, after, ends) in
        [(hours(4), Duration::from_secs(4000), false), (hours(4), hours(5), true), (hours(2), hours(3), true)]
    {
        let world = World::new();
        world.cloud.machine_fault("client-0", MachineFault::Interrupted(hours(3) / 2));
        let running = world.tsunami().up(replaceable()).await.unwrap();
        let directory = world.state.find("test").unwrap();
        let end = directory.record().unwrap().created + until;
        world.tsunami().extend(&directory, end).await.unwrap();
        // After the first hour, whoever begins to wait for the end.
        sleep(Duration::from_secs(3700)).await;
        let begun = Instant::now();
        let result = running
            .run(|cluster| async move {
                cluster.interrupted().await;
                let repaired = cluster.repair().await?;
                sleep(after).await;
                repaired.hosts()[0].run("echo here").await.map(drop)
            })
            .await;
        match ends {
            true => assert!(matches!(result, Err(Error::LifetimeOver(_) | Error::Lost { .. })), "{result:?}"),
            false => result.unwrap(),
        }
        assert!(begun.elapsed() < until, "{:?}", begun.elapsed());
        world.assert_clear();
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_made_shorter_ends_earlier() {
    let world = World::new();
    let (other, state) = (world.tsunami(), world.state.clone());
    tokio::spawn(async move {
        sleep(Duration::from_secs(60)).await;
        let directory = state.find("test").unwrap();
        let end = directory.record().unwrap().created + Duration::from_secs(600);
        other.extend(&directory, end).await.unwrap();
    });
    let begun = Instant::now();
    let run = world.run(server_and_clients(), |_| async {
        sleep(Duration::from_secs(3000)).await;
        Ok(())
    });
    assert!(matches!(run.await, Err(Error::LifetimeOver(_))));
    assert!(begun.elapsed() < Duration::from_secs(700));
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_too_far_away_moves_nothing() {
    let world = World::new();
    let running = world.tsunami().up(server_and_clients()).await.unwrap();
    let directory = world.state.find("test").unwrap();
    let before = directory.record().unwrap();
    for years in [2, 8000] {
        let until = before.deadline.at + Duration::from_secs(years * 365 * 24 * 3600);
        let refused = world.tsunami().extend(&directory, until).await;
        assert!(matches!(refused, Err(Error::LifetimeTooLong { .. })), "{refused:?}");
        assert_eq!((directory.record().unwrap(), world.cloud.calls(Call::Extend)), (before.clone(), 0));
    }
    world.tsunami().extend(&directory, before.created + DURATION_LIMIT).await.unwrap();
    running.down().await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn an_end_that_the_provider_does_not_move_is_not_recorded_and_can_be_moved_again() {
    let world = World::new();
    let running = world.tsunami().up(server_and_clients()).await.unwrap();
    let directory = world.state.find("test").unwrap();
    let before = directory.record().unwrap();
    let until = before.deadline.at + Duration::from_secs(3600);
    world.cloud.fault(Call::Extend, 1, Fault::Error(ProviderErrorKind::Unauthorized));
    let refused = world.tsunami().extend(&directory, until).await.unwrap_err();
    assert_eq!((refused.class(), directory.record().unwrap()), (ErrorClass::Credentials, before));
    world.tsunami().extend(&directory, until).await.unwrap();
    assert_eq!(directory.record().unwrap().deadline.at, until);
    running.down().await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn an_end_that_costs_more_than_the_budget_moves_nothing() {
    let world = World::new();
    let tsunami = Seen::tsunami(&world, |_| ());
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()).count(2));
    let running = tsunami.up(plan.lifetime(Duration::from_secs(3600)).budget(3.0)).await.unwrap();
    let directory = world.state.find("test").unwrap();
    let created = directory.record().unwrap().created;
    let extend = |minutes: u64| tsunami.extend(&directory, created + Duration::from_secs(minutes * 60));
    for (nth, moved) in (1..).zip([60, 80, 89]) {
        let before = directory.record().unwrap();
        let refused = extend(91).await;
        assert!(
            matches!(refused, Err(Error::Budget { max_cost: Some(most), .. }) if most > 3.0),
            "{refused:?}"
        );
        assert_eq!((directory.record().unwrap(), world.cloud.calls(Call::Extend)), (before, nth - 1));
        extend(moved).await.unwrap();
        let cost = directory.record().unwrap().max_cost.unwrap();
        assert!((cost - moved as f64 / 30.0).abs() < 1e-9, "{cost}");
    }
    running.down().await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_is_refused_for_good_ends_the_launch_with_the_reason() {
    let world = World::new();
    for nth in 2..200 {
        world.cloud.fault(Call::List, nth, Fault::Error(ProviderErrorKind::Unauthorized));
    }
    let (cloud, plan) =
        (world.cloud.clone(), server_and_clients().connect_timeout(Duration::from_secs(1800)));
    let begun = Instant::now();
    // What the teardown may see is another matter.
    let observer = Arc::new(OnTeardown(Mutex::new(Some(Box::new(move || cloud.calm())))));
    let error = world.tsunami().observer(observer).run(plan, nothing).await.unwrap_err();
    assert!(matches!(&error, Error::Other(_)) && error.to_string().starts_with("List"), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    world.assert_clear();
}

struct OnTeardown(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl std::fmt::Debug for OnTeardown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnTeardown")
    }
}

impl Observer for OnTeardown {
    fn event(&self, event: &Event) {
        if let EventKind::TearingDown { .. } = event.kind
            && let Some(act) = self.0.lock().unwrap().take()
        {
            act();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_is_refused_later_leaves_the_run_alone() {
    let world = World::new();
    let cloud = world.cloud.clone();
    let run = world.run(server_and_clients(), move |cluster| async move {
        let before = cloud.calls(Call::List);
        cloud.fault(Call::List, before + 1, Fault::Error(ProviderErrorKind::Unauthorized));
        cluster.hosts()[0].run("sleep 60").await?;
        assert!(cloud.calls(Call::List) > before + 2);
        Ok(())
    });
    run.await.unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_run_is_finished_once_whatever_becomes_of_its_record() {
    for fails in [false, true] {
        let world = World::new();
        let state = world.state.clone();
        let tsunami = world.tsunami().keep(Keep::Always);
        let run = tsunami.run(server_and_clients(), move |_| async move {
            let record = state.find("test")?.path().join("record.json");
            std::fs::remove_file(&record)?;
            std::fs::create_dir(&record)?;
            if fails { Err("not today".into()) } else { Ok(()) }
        });
        let error = run.await.unwrap_err();
        assert_eq!(matches!(error, Error::Untrusted(_)), !fails, "{error:?}");
        let events = world.events.events();
        let finished = |event: &&Event| matches!(event.kind, EventKind::RunFinished { .. });
        let finished: Vec<_> = events.iter().filter(finished).collect();
        assert_eq!(finished.len(), 1, "{finished:?}");
        assert!(matches!(finished[0].kind, EventKind::RunFinished { ok: false, .. }));
        world.assert_clear();
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_waited_for_can_be_stopped() {
    let world = World::new();
    let run = world.run(server_and_clients(), |cluster| async move {
        let host = cluster.hosts()[0].clone();
        let mut ended = host.command(Command::shell("echo done")).start();
        assert_eq!(ended.wait().await?.stdout(), "done\n");
        assert_eq!(ended.wait().await?.stdout(), "done\n", "and waited for again");
        assert_eq!(ended.stop().await?.ok_or("no output")?.stdout(), "done\n");
        let short = Duration::from_secs(1);
        let mut failed = host.command(Command::shell("sleep 100")).timeout(short).start();
        assert!(matches!(failed.wait().await, Err(Error::Timeout { .. })));
        assert!(failed.stop().await?.is_none());
        let mut running = host.command(Command::shell("sleep 100")).start();
        assert!(timeout(short, running.wait()).await.is_err());
        assert!(running.stop().await?.is_none());
        Ok(())
    });
    run.await.unwrap();
    world.assert_clear();
}

fn one() -> Plan {
    Plan::new("test").group(Group::new("node", MachineSpec::default()))
}

/// The commands' events of a run, in order: what began, and how it ended.
fn commands_of(world: &World) -> Vec<String> {
    let told = world.events.events().into_iter().filter_map(|event| match event.kind {
        EventKind::CommandStarted { command_id, command, stage, .. } => {
            Some(format!("{stage} {command_id} {command}"))
        }
        EventKind::CommandFinished { command_id, exit: Some(exit), .. } => {
            Some(format!("{command_id} {exit}"))
        }
        EventKind::CommandFinished { command_id, error, .. } => {
            Some(format!("{command_id} {}", error.unwrap_or_default()))
        }
        _ => None,
    });
    told.collect()
}

#[tokio::test(start_paused = true)]
async fn a_list_goes_over_as_one_and_is_told_of_as_if_run_one_by_one() {
    let lines = ["echo one", "sleep 3", "exit 4", "echo unreached"];
    let in_a_list = World::new();
    let failed = in_a_list.run(one(), async move |cluster| {
        let host = &cluster.hosts()[0];
        host.run_all(lines.map(|line| host.command(Command::shell(line)))).await.map(drop)
    });
    let failed = failed.await.unwrap_err();
    let by_itself = World::new();
    let alone = by_itself.run(one(), async move |cluster| {
        for line in lines {
            cluster.hosts()[0].run(line).await?;
        }
        Ok(())
    });
    assert_eq!(failed.to_string(), alone.await.unwrap_err().to_string());
    assert!(matches!(failed, Error::Command { command, exit: Exit::Status(4), .. } if command == "exit 4"));
    let kinds = |world: &World| -> Vec<_> {
        let kinds = world.events.events().into_iter().map(|event| serde_json::to_value(event.kind).unwrap());
        kinds.filter(|kind| kind["machine"] == "node-0" && !kind["command"].is_null()).collect()
    };
    let told = kinds(&in_a_list);
    assert_eq!(told.len(), 6);
    assert_eq!(told, kinds(&by_itself));
    assert_eq!(in_a_list.cloud.lists(), [("node-0".to_owned(), lines.map(str::to_owned).to_vec())]);
    assert_eq!(by_itself.cloud.lists(), []);
    in_a_list.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_list_returns_what_each_wrote_and_is_of_one_machine() {
    let world = World::new();
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()).count(2));
    world
        .run(plan, async |cluster| {
            let [host, other] = &cluster.hosts()[..] else { panic!() };
            let lines = ["echo one", "echo two", "sleep 1"].map(|line| host.command(Command::shell(line)));
            let outputs = host.run_all(lines.clone()).await?;
            let said: Vec<_> = outputs.iter().map(|output| output.stdout().into_owned()).collect();
            assert_eq!(said, ["one\n", "two\n", ""]);
            assert!(host.run_all([]).await?.is_empty());
            assert!(other.run_all(lines).await.unwrap_err().to_string().contains("node-1"));
            Ok(())
        })
        .await
        .unwrap();
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn each_of_a_list_has_its_own_timeout() {
    let world = World::new();
    world
        .run(one(), async |cluster| {
            let host = &cluster.hosts()[0];
            let command = |line: &str, seconds| {
                host.command(Command::shell(line)).timeout(Duration::from_secs(seconds))
            };
            let list =
                [command("sleep 9", 10), command("sleep 19", 20), command("sleep 9", 5), command("echo", 5)];
            let begun = Instant::now();
            let timed_out = host.run_all(list).await.unwrap_err();
            assert_eq!(begun.elapsed().as_secs(), 33);
            assert!(matches!(timed_out, Error::Timeout { after, gone: true, .. } if after.as_secs() == 5));
            Ok(())
        })
        .await
        .unwrap();
    let told = commands_of(&world);
    assert_eq!(told.len(), 6, "{told:?}");
    assert!(told[4].ends_with("sleep 9") && told[5].contains("5s"), "{told:?}");
    world.assert_clear();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_is_lost_in_a_list_ends_it_where_it_was() {
    let world = World::new();
    world.cloud.machine_fault("node-0", MachineFault::DropsSession(Duration::from_secs(300)));
    let run = world.run(one(), async |cluster| {
        let host = &cluster.hosts()[0];
        let lines = ["sleep 100", "sleep 1000", "echo unreached"];
        let lost = host.run_all(lines.map(|line| host.command(Command::shell(line)))).await.unwrap_err();
        assert!(
            matches!(&lost, Error::Lost { command: Some(command), .. } if command == "sleep 1000"),
            "{lost:?}"
        );
        Ok(())
    });
    let _ = run.await;
    let told = commands_of(&world);
    assert_eq!(told.len(), 4, "{told:?}");
    world.assert_clear();
}
