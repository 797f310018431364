//! What goes wrong on the way to EC2 and back: at every call of a launch, with a stated outcome.

use std::fs;

use serde_json::{Value, json};
use tsunami_core::{Provider, ProviderErrorKind};

use crate::world::{World, listed, plan, request, run_id, spec, terminate, terminate_within};

/// The calls to EC2 of a launch, in the order of their first time.
async fn calls_of_a_launch(world: &World) -> Vec<String> {
    let (provider, run) = (world.provider().await, run_id(0));
    provider.launch(&request(&run, 3, everything())).await.unwrap();
    let mut actions = Vec::new();
    for call in world.emulator.calls() {
        if call.service == "ec2" && !actions.contains(&call.action) {
            actions.push(call.action);
        }
    }
    terminate(&provider, &run).await;
    actions
}

/// A spec that needs all that a spec can.
fn everything() -> tsunami_aws::Ec2Spec {
    spec().placement_group(true)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_waited_out_at_every_call() {
    let world = World::new();
    let actions = calls_of_a_launch(&world).await;
    assert!(actions.iter().any(|action| action == "CreateFleet") && actions.len() > 9, "{actions:?}");
    let faults = [
        json!({"kind": "throttle"}),
        json!({"kind": "unavailable"}),
        json!({"kind": "error", "code": "InternalError"}),
        json!({"kind": "drop_before"}),
        json!({"kind": "drop_after"}),
        json!({"kind": "slow", "seconds": 0.5}),
    ];
    let mut nth = 0;
    for action in &actions {
        for fault in &faults {
            nth += 1;
            let (provider, run) = (world.provider().await, run_id(nth));
            let mut rule = fault.clone();
            rule["action"] = json!(action);
            rule["nth"] = json!(1);
            world.emulator.post("faults/clear", &json!({}));
            world.emulator.fault(rule);
            let ids = provider.launch(&request(&run, 3, everything())).await;
            let ids = ids.unwrap_or_else(|error| panic!("{action} {fault}: {error}"));
            assert_eq!(ids.len(), 3, "{action} {fault}");
            assert_eq!(world.emulator.living().len(), 3, "{action} {fault}: too many machines");
            terminate(&provider, &run).await;
            world.emulator.assert_empty();
        }
    }
    println!("faults that were waited out: {nth}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_stops_everything_and_is_named_at_every_call() {
    let world = World::new();
    let actions = calls_of_a_launch(&world).await;
    for (nth, action) in (1..).zip(actions.iter().filter(|action| *action != "DeleteLaunchTemplate")) {
        world.emulator.post("permissions", &json!({"deny": [format!("ec2:{action}")]}));
        let (provider, run) = (world.provider().await, run_id(nth));
        let error = provider.launch(&request(&run, 3, everything())).await.unwrap_err();
        assert_eq!(error.kind, ProviderErrorKind::Unauthorized, "{action}: {error}");
        let help = error.help.unwrap_or_default();
        assert!(help.contains(&format!("ec2:{action}")), "{action}: {help}");
        world.emulator.post("permissions", &json!({"deny": []}));
        terminate(&provider, &run).await;
        world.emulator.assert_empty();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_learnt_by_whoever_tears_down() {
    // The controller dies before the answer comes; another process has only the journal.
    for kind in ["drop_after", "drop_before"] {
        for action in [
            "CreateSecurityGroup",
            "ImportKeyPair",
            "CreatePlacementGroup",
            "CreateLaunchTemplate",
            "CreateFleet",
        ] {
            let world = World::new();
            let (provider, run) = (world.provider().await, run_id(1));
            world.emulator.fault(json!({"action": action, "kind": kind}));
            let error = provider.launch(&request(&run, 2, everything())).await.unwrap_err();
            assert_eq!(error.kind, ProviderErrorKind::Unavailable, "{error}");
            drop(provider);
            world.emulator.post("faults/clear", &json!({}));
            terminate(&world.provider().await, &run).await;
            world.emulator.assert_empty();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_cannot_be_seen_yet_are_not_forgotten() {
    let world = World::new();
    world.emulator.configure(json!({"invisible": 2.0, "invisible_to_changes": true}));
    // The second time, the clock is set back just after the launch.
    for (nth, set_back) in [(1, 0), (2, 60)] {
        let (provider, run) = (world.provider().await, run_id(nth));
        provider.launch(&request(&run, 3, spec())).await.unwrap();
        for file in fs::read_dir(world.root.path().join(run.as_str()).join("aws")).unwrap() {
            let file = file.unwrap().path();
            let Ok(mut entry) = serde_json::from_slice::<Value>(&fs::read(&file).unwrap()) else { continue };
            if let Some(Value::Number(asked)) = entry.pointer_mut("/asked/secs_since_epoch") {
                *asked = (asked.as_u64().unwrap() + set_back).into();
                fs::write(&file, entry.to_string()).unwrap();
            }
        }
        // At once, as when somebody presses Ctrl-C.
        assert_eq!(listed(&provider, &run).await, []);
        let left = provider.terminate(&run).await.unwrap();
        assert_eq!(left.iter().filter(|left| left.what.starts_with("machine i-")).count(), 3, "{left:?}");
        terminate(&provider, &run).await;
    }
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_teardown_says_what_it_could_not_remove_and_goes_on_later() {
    let world = World::new();
    let (provider, run) = (world.provider().await, run_id(1));
    provider.launch(&request(&run, 2, spec())).await.unwrap();
    world.emulator.post("permissions", &json!({"deny": ["ec2:TerminateInstances"]}));
    let left = provider.terminate(&run).await.unwrap_err().remains;
    assert!(left[0].why.contains("ec2:TerminateInstances"), "{left:?}");
    assert_eq!(world.emulator.living().len(), 2);
    world.emulator.post("permissions", &json!({"deny": []}));
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_run_survives_a_storm() {
    let world = World::new();
    world.emulator.fault(json!({"action": "*", "kind": "throttle", "probability": 0.2, "seed": 1}));
    world.emulator.fault(json!({"action": "*", "kind": "drop_after", "probability": 0.1, "seed": 2}));
    world.emulator.fault(json!({"action": "*", "kind": "unavailable", "probability": 0.05, "seed": 3}));
    world.emulator.configure(json!({"invisible": 1.0}));
    let tsunami = world.tsunami(world.provider().await);
    let machines = tsunami
        .run(plan(&[("server", 1, spec()), ("client", 3, spec())]), async |cluster| Ok(cluster.hosts().len()))
        .await
        .unwrap();
    assert_eq!(machines, 4);
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_just_made_may_be_unknown_for_a_moment() {
    for (action, code) in [
        ("AuthorizeSecurityGroupIngress", "InvalidGroup.NotFound"),
        ("CreateFleet", "InvalidLaunchTemplateName.NotFoundException"),
        ("CreateFleet", "InvalidKeyPair.NotFound"),
    ] {
        let world = World::new();
        let (provider, run) = (world.provider().await, run_id(1));
        world.emulator.fault(json!({"action": action, "nth": 1, "kind": "error", "code": code}));
        let ids = provider.launch(&request(&run, 2, everything())).await;
        assert_eq!(ids.unwrap_or_else(|error| panic!("{action} {code}: {error}")).len(), 2);
        terminate(&provider, &run).await;
        world.emulator.assert_empty();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_journal_keeps_no_machine_running_and_is_named() {
    let world = World::new();
    let (provider, run) = (world.provider().await, run_id(1));
    provider.launch(&request(&run, 2, spec())).await.unwrap();
    let file = world.root.path().join(run.as_str()).join("aws/create-broken.json");
    std::fs::write(&file, "{").unwrap();
    let left = terminate_within(&provider, &run, std::time::Duration::from_secs(5)).await;
    assert!(left.iter().any(|left| left.why.contains("create-broken.json")), "{left:?}");
    assert_eq!(world.emulator.living().len(), 0);
    std::fs::remove_file(file).unwrap();
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}
