//! What stands in the way of a teardown, and what is ended all the same.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use tsunami_aws::{Ec2Provider, Ec2Spec, Market};
use tsunami_core::{Error, Leftover, Provider, ProviderErrorKind, RunId};

use crate::world::{World, plan, request, run_id, spec, terminate};

/// A run of so many machines.
async fn up(world: &World, count: u32, spec: Ec2Spec) -> (Ec2Provider, RunId, Vec<String>) {
    let (provider, run) = (world.provider().await, run_id(1));
    let ids = provider.launch(&request(&run, count, spec)).await.unwrap();
    (provider, run, ids.iter().map(ToString::to_string).collect())
}

/// Ends a run until nothing but a person can bring it further, and says what is left.
async fn stuck(provider: &dyn Provider, run: &RunId) -> Vec<Leftover> {
    let begun = Instant::now();
    loop {
        match provider.terminate(run).await {
            Err(error) => {
                assert_eq!(error.kind, ProviderErrorKind::Unauthorized, "{error}");
                return error.remains;
            }
            Ok(left) => assert!(begun.elapsed() < Duration::from_secs(30), "goes on and on: {left:?}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn living(world: &World) -> BTreeSet<String> {
    let running = world.emulator.living().into_iter().filter(|instance| instance["state"] != "shutting-down");
    running.map(|instance| instance["id"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn says(left: &[Leftover], what: &str, why: &[&str]) {
    let found = left.iter().find(|left| left.what.contains(what));
    let found = found.unwrap_or_else(|| panic!("{what} is not named: {left:#?}"));
    for part in why {
        assert!(found.why.contains(part), "no `{part}` in: {found}");
    }
}

fn deny(world: &World, actions: &[&str]) {
    world.emulator.post("permissions", &json!({"deny": actions}));
}

/// An instant fleet stays active by itself when its machines are gone.
#[tokio::test(flavor = "multi_thread")]
async fn fleets_are_deleted_with_and_without_machines() {
    let world = World::new();
    world.emulator.post("capacity", &json!([{"market": "spot", "free": 0}]));
    let (provider, run) = (world.provider().await, run_id(1));
    provider.launch(&request(&run, 2, spec())).await.unwrap();
    let states = || {
        let fleets = world.emulator.get("fleets");
        let fleets = fleets.as_object().unwrap().values();
        fleets.map(|state| state.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(states().iter().filter(|state| *state == "active").count(), 1, "{:?}", states());
    terminate(&provider, &run).await;
    assert_eq!(states(), ["deleted_terminating"; 2]);
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spot_request_that_is_disabled_is_still_there_and_is_cancelled() {
    let world = World::new();
    let (provider, run, ids) = up(&world, 2, spec()).await;
    for id in &ids {
        let disabled = json!({"instance": id, "state": "disabled", "code": "instance-stopped-by-user"});
        world.emulator.post("spot_request", &disabled);
    }
    // Their end does not end such requests, and who may not cancel them is told of each.
    deny(&world, &["ec2:CancelSpotInstanceRequests"]);
    let left = stuck(&provider, &run).await;
    assert_eq!(left.iter().filter(|left| left.what.starts_with("spot request sir-")).count(), 2, "{left:?}");
    says(&left, "spot request sir-", &["ec2:CancelSpotInstanceRequests"]);
    assert_eq!(provider.survey().await.runs.len(), 1);
    deny(&world, &[]);
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_machine_keeps_no_other_and_its_protection_is_lifted() {
    let world = World::new();
    let (provider, run, ids) = up(&world, 3, spec()).await;
    world.emulator.post("protect", &json!({"instance": ids[1]}));
    provider.terminate(&run).await.unwrap();
    assert_eq!(living(&world), BTreeSet::new());
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_machine_that_may_not_be_changed_is_named_with_the_command_that_does() {
    let world = World::new();
    let (provider, run, ids) = up(&world, 3, spec()).await;
    world.emulator.post("protect", &json!({"instance": ids[0]}));
    deny(&world, &["ec2:ModifyInstanceAttribute"]);
    let left = stuck(&provider, &run).await;
    assert_eq!(living(&world), BTreeSet::from([ids[0].clone()]));
    let command = format!(
        "aws ec2 modify-instance-attribute --no-disable-api-termination --instance-id {} --region eu-west-1",
        ids[0]
    );
    says(&left, &ids[0], &[&command, "disableApiTermination", "ec2:ModifyInstanceAttribute"]);
    says(&left, "security group sg-", &["machines"]);
    // The others are gone with what was only theirs.
    assert!(
        !left.iter().any(|left| left.what.contains(&ids[1]) || left.what.contains("key pair")),
        "{left:?}"
    );
    world.emulator.post("protect", &json!({"instance": ids[0], "on": false}));
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_refuses_options_keeps_no_other_running() {
    let world = World::new();
    let of = |kind: &str| spec().instances([kind]).markets([Market::OnDemand]);
    let (provider, run, _) = up(&world, 2, of("c6i.large")).await;
    let mut old = request(&run, 1, of("t2.micro"));
    old.group = "old".to_owned();
    provider.launch(&old).await.unwrap();
    assert_eq!(living(&world).len(), 3);
    provider.terminate(&run).await.unwrap();
    assert_eq!(living(&world), BTreeSet::new());
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn known_machines_are_ended_although_no_listing_is_answered() {
    for fault in [
        json!({"kind": "throttle"}),
        json!({"kind": "error", "code": "UnauthorizedOperation", "status": 403}),
    ] {
        let world = World::new();
        let (provider, run, ids) = up(&world, 2, spec()).await;
        world.emulator.fault(
            json!({"action": ["DescribeInstances"], "kind": fault["kind"], "code": fault["code"], "status": fault["status"]}),
        );
        let ended = provider.terminate(&run).await;
        assert_eq!(living(&world), BTreeSet::new(), "{fault}");
        let left = ended.unwrap_or_else(|error| error.remains);
        says(&left, "whatever else carries the run's tag in eu-west-1", &["DescribeInstances"]);
        says(&left, &ids[0], &[]);
        // Nothing is said to be gone while there is no listing to prove it.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let left = provider.terminate(&run).await.unwrap_or_else(|error| error.remains);
        assert!(!left.is_empty() && !left.iter().any(|left| left.what.contains(&ids[0])), "{left:?}");
        world.emulator.post("faults/clear", &json!({}));
        terminate(&provider, &run).await;
        world.emulator.assert_empty();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_cannot_be_looked_at_keeps_no_other_and_is_named() {
    for (action, kind) in [
        ("DescribeKeyPairs", "key pairs"),
        ("DescribeSecurityGroups", "security groups"),
        ("DescribePlacementGroups", "placement groups"),
        ("DescribeLaunchTemplates", "launch templates"),
        ("DescribeVolumes", "volumes"),
        ("DescribeSpotInstanceRequests", "spot requests"),
    ] {
        let world = World::new();
        let (provider, run, _) = up(&world, 2, spec().placement_group(true)).await;
        deny(&world, &[&format!("ec2:{action}")]);
        let left = stuck(&provider, &run).await;
        assert_eq!(left.len(), 1, "{action}: {left:?}");
        says(&left, kind, &[&format!("lack the permission ec2:{action}")]);
        // Its journal knows what there was of it.
        world.emulator.assert_empty();
        deny(&world, &[]);
        terminate(&provider, &run).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_the_run_never_made_needs_no_permission() {
    let world = World::new();
    let (provider, run, _) = up(&world, 2, spec().markets([Market::OnDemand])).await;
    deny(&world, &["ec2:DescribePlacementGroups", "ec2:DescribeSpotInstanceRequests"]);
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_use_for_a_moment_longer_is_waited_for() {
    let world = World::new();
    let (provider, run, _) = up(&world, 2, spec().placement_group(true)).await;
    for (action, code) in [
        ("DeletePlacementGroup", "InvalidPlacementGroup.InUse"),
        ("DeleteSecurityGroup", "DependencyViolation"),
        ("DeleteKeyPair", "InvalidParameterValue"),
    ] {
        world.emulator.fault(json!({"action": action, "nth": 1, "kind": "error", "code": code}));
    }
    // No attempt calls it final.
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_at_hides_nothing_else_from_a_survey_or_an_extension() {
    let world = World::new();
    let (provider, run, _) = up(&world, 2, spec().markets([Market::OnDemand])).await;
    deny(&world, &["ec2:DescribeVolumes", "ec2:DescribePlacementGroups"]);
    let survey = provider.survey().await;
    assert_eq!(survey.runs.iter().map(|found| &found.run).collect::<Vec<_>>(), [&run]);
    let things = survey.runs[0].things.join("\n");
    assert!(things.contains("machine i-") && things.contains("security group sg-"), "{things}");
    let failures = survey.failures.join("\n");
    assert!(failures.contains("volumes") && failures.contains("ec2:DescribePlacementGroups"), "{failures}");
    // Those that the run has made must be found to be extended; it has made no placement group.
    let until = std::time::SystemTime::now() + Duration::from_secs(7200);
    let error = provider.extend(&run, until).await.unwrap_err();
    assert!(error.help.unwrap().contains("ec2:DescribeVolumes"));
    deny(&world, &["ec2:DescribePlacementGroups"]);
    provider.extend(&run, until).await.unwrap();
    deny(&world, &[]);
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_ends_the_waiting_and_everything_is_named() {
    let world = World::new();
    let tsunami = world.tsunami(world.provider().await);
    let running = tsunami.up(plan(&[("node", 2, spec())])).await.unwrap();
    world.emulator.fault(json!({"action": "*", "kind": "error", "code": "RequestExpired"}));
    let begun = Instant::now();
    let ended = running.down().await;
    let Err(Error::Remains { leftovers, .. }) = ended else { panic!("{ended:?}") };
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(world.emulator.living().len(), 2);
    for instance in world.emulator.living() {
        says(&leftovers, instance["id"].as_str().unwrap(), &["RequestExpired", "have expired: get new ones"]);
    }
    says(&leftovers, "security group sg-", &["machines"]);
    says(&leftovers, "key pair tsunami-", &["RequestExpired"]);
    let refused = world.emulator.calls().iter().filter(|call| call.action == "TerminateInstances").count();
    assert!(refused <= 2, "asked {refused} times");
    // Renewed, and another process.
    world.emulator.post("faults/clear", &json!({}));
    let runs = tsunami_core::RunStore::at(world.root.path()).runs().unwrap();
    world.tsunami(world.provider().await).down(&runs[0]).await.unwrap();
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fails_as_a_whole_is_ended_in_parts() {
    let world = World::new();
    let (provider, run, ids) = up(&world, 5, spec()).await;
    // EC2 fails by itself, at whatever has this one in it.
    world.emulator.configure(json!({"unendable": [ids[2]]}));
    let left = provider.terminate(&run).await.unwrap();
    assert_eq!(living(&world), BTreeSet::from([ids[2].clone()]));
    says(&left, &ids[2], &["InternalError"]);
    world.emulator.configure(json!({"unendable": []}));
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_a_repeated_request_does_not_settle_the_first() {
    let world = World::new();
    let (provider, run) = (world.provider().await, run_id(1));
    world.emulator.fault(json!({"action": "CreateFleet", "kind": "drop_after"}));
    provider.launch(&request(&run, 2, spec())).await.unwrap_err();
    assert_eq!(world.emulator.living().len(), 2);
    // Its answer was lost, and now nobody may ask for it again, nor look.
    world.emulator.post("faults/clear", &json!({}));
    deny(&world, &["ec2:CreateFleet", "ec2:DescribeInstances"]);
    let left = provider.terminate(&run).await.unwrap_or_else(|error| error.remains);
    says(&left, "what the request instances-", &["ec2:CreateFleet"]);
    deny(&world, &["ec2:DescribeInstances"]);
    // By the journal alone.
    let _: Vec<Leftover> = provider.terminate(&run).await.unwrap_or_else(|error| error.remains);
    assert_eq!(living(&world), BTreeSet::new());
    deny(&world, &[]);
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_has_made_is_known_where_nobody_can_be_asked() {
    let world = World::new();
    let (provider, run, ids) = up(&world, 2, spec()).await;
    let left = tsunami_aws::recorded_leftovers(world.root.path(), &run, "nobody to ask");
    for id in &ids {
        says(&left, &format!("machine {id} (node) in eu-west-1"), &["nobody to ask"]);
    }
    says(&left, "security group sg-", &[]);
    says(&left, &format!("key pair tsunami-{run}"), &[]);
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}
