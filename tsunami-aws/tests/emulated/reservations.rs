//! Capacity that is reserved: on demand, as blocks with an end, and lent by others.

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tsunami_aws::{Ec2Spec, Market, Reservation};
use tsunami_core::{
    Deadline, Error, ErrorChain, Group, MachineSpec, Plan, Provider, ProviderErrorKind, RunFilter, RunStore,
};

use crate::world::{REGION, World, listed, plan, request, run_id, spec, terminate};

const ZONE: &str = "eu-west-1b";

/// Reserves so many machines, as `more` says.
fn reserve(world: &World, id: &str, count: u32, more: Value) {
    let mut given = json!({"region": REGION, "id": id, "type": "c7g.large", "zone": ZONE, "count": count});
    given.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    world.emulator.post("reservation", &given);
}

fn reserved(reservations: impl IntoIterator<Item = Reservation>) -> Ec2Spec {
    spec().markets([Market::Reservation, Market::OnDemand]).reservations(reservations)
}

/// In which reservations the living machines are.
fn places(world: &World) -> Vec<String> {
    let living = world.emulator.living();
    let mut places: Vec<_> =
        living.iter().map(|instance| instance["reservation"].as_str().unwrap_or("none").to_owned()).collect();
    places.sort();
    places
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_into_a_reservation_with_room_for_it_and_else_to_the_next_market() {
    let world = World::new();
    reserve(&world, "cr-small", 1, json!({"tags": {"team": "blue"}}));
    reserve(&world, "cr-large", 3, json!({"tags": {"team": "blue"}, "type": "c6g.large"}));
    reserve(&world, "cr-other", 9, json!({"tags": {"team": "blue"}, "type": "m7g.large"}));
    let provider = world.provider().await;
    let wanted = reserved([Reservation::id("cr-small"), Reservation::tag("team", "blue")]);
    let quote = provider.quote(&MachineSpec::new(wanted.clone()), NonZeroU32::MIN).await.unwrap();
    let offers: Vec<_> = quote.offers.iter().map(|offer| offer.description.as_str()).collect();
    assert_eq!(
        offers,
        [
            "c7g.large in eu-west-1b, reservation cr-small, with room for 1",
            "c6g.large in eu-west-1b, reservation cr-large, with room for 3",
            "c6g.large in eu-west-1a, on-demand",
        ]
    );
    assert!(quote.notes.iter().any(|note| note.contains("paid for in any case")), "{:?}", quote.notes);
    for (nth, count, mixed, expected) in [
        // What has no room for all of a group that is alike gets none of it.
        (1, 2, false, vec!["cr-large", "cr-large"]),
        (2, 4, false, vec!["none"; 4]),
        (3, 5, true, vec!["cr-large", "cr-large", "cr-large", "cr-small", "none"]),
    ] {
        let run = run_id(nth);
        provider.launch(&request(&run, count, wanted.clone().mixed(mixed))).await.unwrap();
        assert_eq!(places(&world), expected, "{nth}");
        let machines = listed(&provider, &run).await;
        let market = if expected[0] == "none" { "on-demand" } else { "reservation" };
        assert!(machines.iter().any(|machine| machine.description.ends_with(market)), "{machines:?}");
        terminate(&provider, &run).await;
    }
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_alone_that_is_full_says_so() {
    let world = World::new();
    reserve(&world, "cr-one", 1, json!({}));
    let (provider, run) = (world.provider().await, run_id(1));
    let wanted = reserved([Reservation::id("cr-one")]).markets([Market::Reservation]);
    let error = provider.launch(&request(&run, 2, wanted.clone())).await.unwrap_err();
    assert_eq!(error.kind, ProviderErrorKind::Capacity);
    assert!(error.message.contains("reservation cr-one, with room for 1"), "{error}");
    // Somebody else took it after it was looked at.
    let full = json!({"action": "CreateFleet", "kind": "error", "code": "ReservationCapacityExceeded"});
    world.emulator.fault(full);
    let error = provider.launch(&request(&run, 1, wanted)).await.unwrap_err();
    assert!(error.help.clone().is_some_and(|help| help.contains("more of `reservation`")), "{error:?}");
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_that_does_not_fit_is_an_error_before_anything_is_launched() {
    let world = World::new();
    reserve(&world, "cr-type", 1, json!({"type": "m7g.large", "tags": {"team": "blue"}}));
    reserve(&world, "cr-windows", 1, json!({"platform": "Windows", "tags": {"team": "blue"}}));
    reserve(&world, "cr-over", 1, json!({"state": "expired", "tags": {"team": "blue"}}));
    reserve(&world, "cr-good", 1, json!({}));
    let provider = world.provider().await;
    for (wanted, said) in [
        (reserved([Reservation::id("cr-type")]), "cr-type is of m7g.large, and `instance` is c7g.large"),
        (reserved([Reservation::id("cr-windows")]), "cr-windows is for Windows"),
        (reserved([Reservation::id("cr-over")]), "cr-over is expired"),
        (
            reserved([Reservation::id("cr-good")]).zone("eu-west-1a"),
            "cr-good is in eu-west-1b, and machines may",
        ),
        (reserved([Reservation::id("cr-none")]), "InvalidCapacityReservationId.NotFound"),
        (reserved([Reservation::tag("team", "red")]), "the tag team=red can't be used: there is none"),
        (
            reserved([Reservation::tag("team", "blue")]),
            "cr-type is of m7g.large, and `instance` is c7g.large",
        ),
        (reserved([]), "and no reservation"),
    ] {
        let error = provider.quote(&MachineSpec::new(wanted), NonZeroU32::MIN).await.unwrap_err();
        assert_eq!(error.kind, ProviderErrorKind::InvalidSpec, "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_do_not_outlive_a_capacity_block() {
    let world = World::new();
    // Its machines are ended half an hour before it.
    reserve(&world, "cr-block", 2, json!({"kind": "capacity-block", "ends": 3600}));
    let tsunami = world.tsunami(world.provider().await);
    let wanted =
        |markets: &[Market]| reserved([Reservation::id("cr-block")]).markets(markets.iter().copied());
    let alone = plan(&[("node", 2, wanted(&[Market::Reservation]))]);
    let error = tsunami.quote(&alone).await.unwrap_err();
    let Error::Quote { failures } = &error else { panic!("{error:?}") };
    assert!(failures[0].error.message.contains("before their lifetime of 1h is over"), "{error:?}");
    let short = alone.lifetime(Duration::from_secs(1200));
    tsunami.run(short, async |cluster| Ok(cluster.hosts().len())).await.unwrap();
    let both = plan(&[("node", 2, wanted(&[Market::Reservation, Market::OnDemand]))]);
    tsunami.run(both, async |cluster| Ok(cluster.hosts().len())).await.unwrap();
    let markets: Vec<_> = world.emulator.instances().iter().map(|one| one["reservation"].clone()).collect();
    assert_eq!(markets.iter().filter(|place| place.is_null()).count(), 2, "{markets:?}");
    assert!(world.notes().iter().any(|note| note.contains("until their end")), "{:?}", world.notes());
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_end_is_moved_beyond_that_of_a_capacity_block() {
    let world = World::new();
    reserve(&world, "cr-block", 2, json!({"kind": "capacity-block", "ends": 2 * 3600}));
    let tsunami = world.tsunami(world.provider().await);
    let wanted = reserved([Reservation::id("cr-block")]).markets([Market::Reservation]);
    let short = plan(&[("node", 2, wanted)]).lifetime(Duration::from_secs(1200));
    let running = tsunami.up(short).await.unwrap();
    let run = running.cluster().run_id().clone();
    let entry = RunStore::at(world.root.path()).find(run.as_str()).unwrap();
    let (before, tagged) = (entry.record().unwrap().deadline, world.emulator.count("CreateTags"));
    let error = tsunami.extend(&entry, SystemTime::now() + Duration::from_secs(3 * 3600)).await.unwrap_err();
    let said = ErrorChain(&error).to_string();
    assert!(said.contains("is in the Capacity Block cr-block, whose machines EC2 ends at 20"), "{said}");
    assert!(error.help().is_some_and(|help| help.starts_with("extend it to less than 20")), "{error:?}");
    // Nothing was moved, on the machines or elsewhere.
    assert_eq!((entry.record().unwrap().deadline, world.emulator.count("CreateTags")), (before, tagged));
    let provider = world.provider().await;
    let error = provider.extend(&run, SystemTime::now() + Duration::from_secs(3 * 3600)).await.unwrap_err();
    assert_eq!(error.kind, ProviderErrorKind::InvalidSpec);
    provider.extend(&run, SystemTime::now() + Duration::from_secs(3600)).await.unwrap();
    assert_eq!(world.emulator.count("CreateTags"), tagged + 1);
    running.down().await.unwrap();
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lender_takes_back_is_interrupted_and_replaced_from_the_next_market() {
    let world = World::new();
    reserve(&world, "cr-lent", 1, json!({"kind": "interruptible-capacity-reservation"}));
    let tsunami = world.tsunami(world.provider().await);
    let wanted = MachineSpec::new(reserved([Reservation::id("cr-lent")]));
    let group = Group::new("node", wanted).replace_interrupted(true);
    let running = tsunami.up(Plan::new("test").group(group)).await.unwrap();
    let cluster = running.cluster().clone();
    assert_eq!(places(&world), ["cr-lent"]);
    world.emulator.configure(json!({"shutting_down": 5.0}));
    world.emulator.post("reclaim", &json!({"region": REGION, "id": "cr-lent", "notice": 0}));
    let error = cluster.hosts()[0].run("sleep 60").await.unwrap_err();
    assert!(
        matches!(&error, Error::Interrupted { reason, .. } if reason.contains("the lender takes its capacity back")),
        "{error}"
    );
    let repaired = cluster.repair().await.unwrap();
    let replacement = &repaired.hosts()[0].machine().description;
    assert!(replacement.ends_with("on-demand"), "{replacement}");
    running.down().await.unwrap();
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_ends_with_its_block_is_interrupted() {
    let world = World::new();
    reserve(&world, "cr-block", 1, json!({"kind": "capacity-block", "ends": 1804}));
    let (provider, run) = (world.provider().await, run_id(1));
    let mut request = request(&run, 1, reserved([Reservation::id("cr-block")]));
    let lifetime = Duration::from_secs(1);
    request.deadline = Deadline { at: SystemTime::now() + lifetime, lifetime };
    provider.launch(&request).await.unwrap();
    assert_eq!(places(&world), ["cr-block"]);
    let begun = std::time::Instant::now();
    let why = loop {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never ends");
        match provider
            .list(&RunFilter::Run(run.clone()))
            .await
            .unwrap()
            .pop()
            .and_then(|machine| machine.interrupted)
        {
            Some(why) => break why,
            None => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    };
    assert!(why.contains("its Capacity Block ends"), "{why}");
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}
