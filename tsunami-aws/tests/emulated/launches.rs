//! Markets, pools, places, and what a machine is born with.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::{Value, json};
use tsunami_aws::{Disk, Market, Reach, Shape};
use tsunami_core::{
    Choices, Error, EventKind, Group, MachineId, MachineSpec, MachineState, Plan, Price, Provider,
    ProviderErrorKind, Report, RunFilter,
};

use crate::world::{REGION, World, listed, plan, request, run_id, spec, terminate};

const HOUR: Duration = Duration::from_secs(3600);

fn field(instances: &[Value], name: &str) -> BTreeSet<String> {
    instances.iter().map(|instance| instance[name].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_born_with_all_that_was_promised() {
    let world = World::new();
    let (provider, run) = (world.provider().await, run_id(1));
    let wanted = spec()
        .tag("team", "blue")
        .tag("Name", "mine")
        .user_data("#cloud-config\npackages: [redis]\n")
        .disk(Disk::new("gp2").gib(30));
    let request = request(&run, 2, wanted);
    provider.launch(&request).await.unwrap();
    let instances = world.emulator.living();
    assert_eq!((field(&instances, "type").len(), field(&instances, "zone").len()), (1, 1), "they are alike");
    for instance in &instances {
        let tags = &instance["tags"];
        assert_eq!((tags["tsunami:run"].as_str(), tags["team"].as_str()), (Some(run.as_str()), Some("blue")));
        assert_eq!(tags["Name"], "mine");
        for tag in
            ["tsunami:owner", "tsunami:created", "tsunami:expires", "tsunami:experiment", "tsunami:group"]
        {
            assert!(tags[tag].is_string(), "{tag}: {tags}");
        }
        let text = instance.to_string();
        let user_data = instance["user_data"].as_str().unwrap();
        assert!(user_data.contains("tsunami-boothook.sh") && user_data.contains("packages: [redis]"));
        assert!(!user_data.contains("authorized") && !text.contains("stop\""), "{text}");
        assert_eq!(instance["shutdown_behavior"], "terminate", "{text}");
        assert_eq!(instance["market"], "spot", "{text}");
        assert!(text.contains("\"required\""), "IMDSv2 only: {text}");
    }
    // Templates hold the user data, and do not outlive the launch.
    assert!(!world.emulator.remaining().iter().any(|thing| thing.starts_with("launch_templates")));
    let machines = listed(&provider, &run).await;
    assert!(machines.iter().all(|machine| matches!(machine.price, Price::PerHour(_))), "{machines:?}");
    assert!(machines.iter().all(|machine| machine.login.user.as_deref() == Some("ubuntu")));
    assert!(
        machines.iter().all(|machine| machine
            .login
            .host_key
            .as_ref()
            .is_some_and(|key| key.starts_with("ssh-ed25519 ")))
    );
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_without_capacity_is_passed_over_for_the_next_type() {
    let world = World::new();
    world.emulator.post("capacity", &json!([{"type": "c7g.large", "free": 1}]));
    let (provider, run) = (world.provider().await, run_id(1));
    provider.launch(&request(&run, 3, spec())).await.unwrap();
    assert_eq!(field(&world.emulator.living(), "type"), BTreeSet::from(["c6g.large".to_owned()]));
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_types_have_to_have_is_looked_up_once_and_the_cheapest_are_taken() {
    let world = World::new();
    let shape = Shape::default().vcpus(2..=4).memory_gib(4..=8).arch("arm64").exclude(["t*"]);
    let wanted = spec().markets([Market::OnDemand]).shape(shape);
    let (provider, run) = (world.provider().await, run_id(1));
    let machines = MachineSpec::new(wanted.clone());
    let choice = provider.choose(&machines, &Choices::new()).await.unwrap().unwrap();
    // Sold here, and by price.
    let expected = ["c6g.large", "c7g.large", "m6g.large", "m7g.large", "c6g.xlarge", "c7g.xlarge"];
    assert_eq!(choice.chosen, expected);
    assert!(choice.asked.contains("2 to 4 vCPUs, 4 to 8 GiB, arm64") && choice.asked.contains("eu-west-1"));
    let quote = provider.quote(&choice.spec, NonZeroU32::MIN).await.unwrap();
    let told = quote.notes.iter().find(|note| note.contains("any of c6g.large ($0.0820/h), c7g.large"));
    assert!(told.is_some_and(|note| note.ends_with("c7g.xlarge ($0.1667/h)")), "{:?}", quote.notes);
    assert!(matches!(quote.max_price, Price::PerHour(_)));
    // What was chosen before is gone by, whatever there is now.
    let known = Choices::from([(choice.asked.clone(), vec!["m6g.large".to_owned()])]);
    let again = provider.choose(&machines, &known).await.unwrap().unwrap();
    assert_eq!((again.asked, again.chosen), (choice.asked, known.into_values().next().unwrap()));
    assert_eq!(world.emulator.count("GetInstanceTypesFromInstanceRequirements"), 1);
    // Nothing is chosen where types are named.
    assert!(provider.choose(&choice.spec, &Choices::new()).await.unwrap().is_none());
    provider.launch(&request(&run, 2, wanted)).await.unwrap();
    assert_eq!(field(&world.emulator.living(), "type"), BTreeSet::from(["c6g.large".to_owned()]));
    terminate(&provider, &run).await;
    let tsunami = world.tsunami(provider);
    let plan = plan(&[("node", 1, spec().shape(Shape::default().vcpus(..=2).memory_gib(..=4)))]);
    tsunami.run(plan, async |_| Ok(())).await.unwrap();
    let chosen = world.events.events().into_iter().filter_map(|event| match event.kind {
        EventKind::Chosen { chosen, .. } => Some(chosen),
        _ => None,
    });
    let chosen: Vec<_> = chosen.collect();
    assert!(chosen.len() == 1 && chosen[0].contains(&"t3.medium".to_owned()), "{chosen:?}");
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_that_no_type_has_is_told_with_what_leaves_none() {
    let world = World::new();
    let provider = world.provider().await;
    let shape = Shape::default().vcpus(2..=4).memory_gib(8..=8).arch("arm64");
    for (spec, said, help) in [
        (
            spec().shape(shape.clone().memory_gib(4000..)),
            "no instance type there has 2 to 4",
            "without `memory`",
        ),
        (spec().shape(shape.clone().exclude(["*"])), "none of *", "without `exclude`"),
        (spec().shape(shape.clone().memory_gib(4000..).exclude(["*"])), "4000", "loosen more than one"),
        (spec().shape(shape.clone().memory_gib(..1)), "ends before it begins", ""),
        (spec().shape(shape.clone()).zone("eu-west-1z"), "zone eu-west-1z is not among", ""),
    ] {
        let error = provider.choose(&MachineSpec::new(spec), &Choices::new()).await.unwrap_err();
        assert_eq!(error.kind, ProviderErrorKind::InvalidSpec, "{error}");
        let told = error.help.clone().unwrap_or_default();
        assert!(error.to_string().contains(said) && told.contains(help), "{error}: {told}");
    }
    let denied = json!({"deny": ["ec2:GetInstanceTypesFromInstanceRequirements"]});
    world.emulator.post("permissions", &denied);
    let error = provider.choose(&MachineSpec::new(spec().shape(shape)), &Choices::new()).await.unwrap_err();
    let told = error.help.unwrap_or_default();
    assert!(told.contains("lack the permission ec2:GetInstanceTypesFromInstanceRequirements"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_spot_the_next_market_is_tried_and_the_memory_keeps_for_a_while() {
    let world = World::new();
    world.emulator.post("capacity", &json!([{"market": "spot", "free": 0}]));
    let tsunami = world.tsunami(world.provider().await);
    let run = async |plan| tsunami.run(plan, async |cluster| Ok(cluster.hosts().len())).await;
    assert_eq!(run(plan(&[("node", 2, spec())])).await.unwrap(), 2);
    assert_eq!(field(&world.emulator.instances(), "market"), BTreeSet::from(["on-demand".to_owned()]));
    assert!(world.notes().iter().any(|note| note.contains("trying on-demand next")), "{:?}", world.notes());
    let asked = world.emulator.count("CreateFleet");
    assert_eq!(asked, 2);
    assert_eq!(run(plan(&[("again", 2, spec())])).await.unwrap(), 2);
    assert_eq!(world.emulator.count("CreateFleet"), asked + 1, "spot was asked for again at once");
    world.emulator.assert_empty();
}

/// What a fault that is about spot alone fires for.
fn spot_only() -> Value {
    json!({"TargetCapacitySpecification.DefaultTargetCapacityType": "spot"})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_counts_as_running_once_it_has_its_public_address() {
    let world = World::new();
    world.emulator.configure(json!({"address_delay": 1.5}));
    let (provider, run) = (world.provider().await, run_id(1));
    provider.launch(&request(&run, 1, spec())).await.unwrap();
    let begun = std::time::Instant::now();
    let machine = loop {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never runs");
        let mut machines = listed(&provider, &run).await;
        match machines.pop() {
            Some(machine) if machine.state == MachineState::Running => break machine,
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    assert!(machine.addresses.public.is_some(), "{machine:?}");
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_have_public_addresses_or_none_as_is_asked_for() {
    let world = World::new();
    let provider = world.provider().await;
    let quote = async |spec| provider.quote(&MachineSpec::new(spec), 1.try_into().unwrap()).await.unwrap();
    let nobody: [&str; 0] = [];
    let private = spec().reach(Reach::Private).ssh_from(nobody);
    let quoted = quote(private.clone()).await;
    for told in ["private ones (172.31.0.0/16)", "SSH is open to 172.31.0.0/16"] {
        assert!(quoted.notes.iter().any(|note| note.contains(told)), "{:?}", quoted.notes);
    }
    let dearer = quote(spec().reach(Reach::Public)).await;
    assert!(dearer.max_price.dollars(1, HOUR) > quoted.max_price.dollars(1, HOUR), "{quoted:?} {dearer:?}");

    let run = run_id(1);
    provider.launch(&request(&run, 2, private)).await.unwrap();
    for machine in listed(&provider, &run).await {
        assert_eq!(machine.addresses.public, None, "{machine:?}");
    }
    let opened = |n: usize| {
        let calls = world.emulator.calls().into_iter();
        let mut opened = calls.filter(|call| call.action == "AuthorizeSecurityGroupIngress");
        opened.nth(n).unwrap().params.to_string()
    };
    assert!(opened(0).contains(r#"CidrIp":"172.31.0.0/16""#), "{}", opened(0));
    let until_running = async |run| {
        while listed(&provider, run).await.iter().any(|machine| machine.state != MachineState::Running) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    until_running(&run).await;
    terminate(&provider, &run).await;

    let run = run_id(2);
    let both = ["192.0.2.0/24", "2001:db8::/56"];
    provider.launch(&request(&run, 1, spec().reach(Reach::Public).ssh_from(both))).await.unwrap();
    until_running(&run).await;
    assert!(listed(&provider, &run).await[0].addresses.public.is_some());
    for range in [r#"CidrIp":"192.0.2.0/24""#, r#"CidrIpv6":"2001:db8::/56""#] {
        assert!(opened(1).contains(range), "{}", opened(1));
    }
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_in_a_subnet_for_ipv6_only_have_such_addresses_everywhere() {
    let world = World::new();
    let provider = world.provider().await;
    let there = |leads_out| spec().subnet(world.emulator.ipv6_subnet(REGION, leads_out));
    let quote = async |spec| provider.quote(&MachineSpec::new(spec), 1.try_into().unwrap()).await;
    let error = quote(there(false)).await.unwrap_err();
    assert!(error.message.contains("no route to an internet gateway"), "{error}");
    let nobody: [&str; 0] = [];
    let private = quote(there(false).reach(Reach::Private).ssh_from(nobody)).await.unwrap();
    assert!(
        private.notes.iter().any(|note| note.starts_with("SSH is open to ") && note.contains("::/56")),
        "{private:?}"
    );
    // This computer is seen at an address of IPv4 there, and nobody has one who is named like this.
    for spec in [there(true).ssh_from(nobody), there(true)] {
        let error = quote(spec).await.unwrap_err();
        assert!(error.message.contains("127.0.0.1/32") && error.message.contains("IPv6"), "{error}");
    }

    let (run, from) = (run_id(1), "2001:db8::/56");
    let public = there(true).ssh_from([from]);
    // Nothing is to be paid for the address.
    let dearer = quote(spec()).await.unwrap().max_price.dollars(1, HOUR);
    assert!(quote(public.clone()).await.unwrap().max_price.dollars(1, HOUR) < dearer);
    provider.launch(&request(&run, 2, public)).await.unwrap();
    let machines = listed(&provider, &run).await;
    for machine in &machines {
        let address = machine.addresses.private.as_deref().unwrap();
        assert!(address.starts_with("fd00::"), "{machine:?}");
        assert_eq!(machine.addresses.public.as_deref(), Some(address));
    }
    let call = |action: &str| {
        let mut calls = world.emulator.calls().into_iter();
        calls.rfind(|call| call.action == action).unwrap().params.to_string()
    };
    let opened = call("AuthorizeSecurityGroupIngress");
    assert!(opened.contains(&format!(r#"CidrIpv6":"{from}""#)) && !opened.contains("CidrIp\""), "{opened}");
    let template = call("CreateLaunchTemplate");
    assert!(template.contains(r#"HttpProtocolIpv6":"enabled""#), "{template}");
    terminate(&provider, &run).await;

    let run = run_id(2);
    provider.launch(&request(&run, 1, there(false).reach(Reach::Private).ssh_from(["::/0"]))).await.unwrap();
    let machine = listed(&provider, &run).await.remove(0);
    assert!(machine.addresses.public.is_none(), "{machine:?}");
    assert!(machine.addresses.external().unwrap().starts_with("fd00::"), "{machine:?}");
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_go_by_the_clock_of_ec2() {
    let world = World::new();
    world.emulator.configure(json!({"clock_skew": 200.0}));
    let (provider, run) = (world.provider().await, run_id(1));
    let request = request(&run, 1, spec());
    let quote = provider.quote(&request.spec, request.count).await.unwrap();
    assert!(quote.notes.iter().any(|note| note.contains("3m 20s behind EC2's")), "{:?}", quote.notes);
    provider.launch(&request).await.unwrap();
    let seconds = |time: std::time::SystemTime| {
        time.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs()
    };
    let at = seconds(request.deadline.at);
    let instance = world.emulator.living().remove(0);
    let user_data = instance["user_data"].as_str().unwrap();
    assert!(user_data.contains(&format!("\n{} 3600\n", at + 200)), "{user_data}");
    let tag = humantime::parse_rfc3339(instance["tags"]["tsunami:expires"].as_str().unwrap()).unwrap();
    assert_eq!(seconds(tag), at + 200);
    // Who lists them is told on this computer's clock.
    let expires = listed(&provider, &run).await[0].expires.unwrap();
    assert_eq!(seconds(expires), at);
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn provisioned_operations_are_asked_for() {
    let world = World::new();
    let (provider, run) = (world.provider().await, run_id(1));
    let disk = Disk::new("gp3").gib(20).iops(4000).throughput(250);
    provider.launch(&request(&run, 1, spec().disk(disk))).await.unwrap();
    let calls = world.emulator.calls();
    let call = calls.iter().find(|call| call.action == "CreateLaunchTemplate").unwrap();
    let of_disk = |name: &str| {
        call.params[format!("LaunchTemplateData.BlockDeviceMapping.1.Ebs.{name}")].as_str().map(str::to_owned)
    };
    assert_eq!((of_disk("Iops"), of_disk("Throughput")), (Some("4000".into()), Some("250".into())));
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_is_refused_leaves_the_others() {
    for code in ["InvalidParameterCombination", "OptInRequired", "UnauthorizedOperation", "SomethingNew"] {
        let world = World::new();
        let refused = json!({"type": "c7g.large", "free": 0, "code": code});
        world
            .emulator
            .post("capacity", &json!([refused, {"type": "c6g.large", "market": "spot", "free": 0}]));
        let (provider, run) = (world.provider().await, run_id(1));
        let ids = provider.launch(&request(&run, 2, spec())).await;
        assert_eq!(ids.unwrap_or_else(|error| panic!("{code}: {error}")).len(), 2);
        let living = world.emulator.living();
        assert_eq!(field(&living, "type"), BTreeSet::from(["c6g.large".to_owned()]), "{code}");
        assert_eq!(field(&living, "market"), BTreeSet::from(["on-demand".to_owned()]), "{code}");
        terminate(&provider, &run).await;
        world.emulator.assert_empty();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_but_others_can_mend_is_told_with_whose_it_is() {
    let user = "You are not authorized to perform this operation. User: arn:aws:iam::1:user/u is not authorized to \
                perform: ec2:RunInstances on resource: x with an explicit deny in a service control policy";
    let encoded =
        "You are not authorized to perform this operation. Encoded authorization failure message: AbC";
    let product = "In order to use this AWS Marketplace product you need to accept terms and subscribe. To do so \
                   please visit https://aws.amazon.com/marketplace/pp?sku=abc";
    for (code, message, help) in [
        ("UnauthorizedOperation", user, "is denied explicitly, in the service control policy"),
        ("UnauthorizedOperation", encoded, "decode-authorization-message"),
        (
            "OptInRequired",
            product,
            "has to subscribe to it first: https://aws.amazon.com/marketplace/pp?sku=abc",
        ),
    ] {
        let world = World::new();
        // There is no spot, and on-demand is refused, pool by pool or as a whole.
        world.emulator.post("capacity", &json!([{"market": "spot", "free": 0}]));
        let on_demand = json!({"TargetCapacitySpecification.DefaultTargetCapacityType": "on-demand"});
        world.emulator.fault(
            json!({"action": "CreateFleet", "kind": "error", "code": code, "message": message, "where": on_demand}),
        );
        let (provider, run) = (world.provider().await, run_id(1));
        let error = provider.launch(&request(&run, 2, spec())).await.unwrap_err();
        let told = error.help.unwrap_or_default();
        assert!(told.contains(help) && !told.contains("has a policy"), "{code}: {told}");
        terminate(&provider, &run).await;
        world.emulator.assert_empty();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_market_that_fails_inside_ec2_is_given_up_for_the_next() {
    // With and without an effect behind the failure.
    for kind in ["error", "fails_after"] {
        let world = World::new();
        world.emulator.fault(json!({"action": "CreateFleet", "kind": kind, "where": spot_only()}));
        let tsunami = world.tsunami(world.provider().await);
        let run = tsunami.run(plan(&[("node", 2, spec())]), async |cluster| Ok(cluster.hosts().len()));
        assert_eq!(run.await.unwrap(), 2, "{kind}");
        let markets = field(&world.emulator.instances(), "market");
        let expected = if kind == "error" { "on-demand" } else { "spot" };
        assert_eq!(markets, BTreeSet::from([expected.to_owned()]), "{kind}");
        assert!(world.emulator.count("CreateFleet") <= 4, "{kind}: {}", world.emulator.count("CreateFleet"));
        world.emulator.assert_empty();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_ec2_says_that_there_is_capacity_is_where_it_is_asked_next() {
    let world = World::new();
    let message = "We currently do not have sufficient c6g.large capacity in the Availability Zone you requested \
                   (eu-west-1a). Our system will be working on provisioning additional capacity. You can currently \
                   get c6g.large capacity by not specifying an Availability Zone in your request or choosing \
                   eu-west-1b.";
    let unsupported = "Your requested instance type (c6g.large) is not supported in your requested Availability Zone \
                       (eu-west-1a). Please retry your request by not specifying an Availability Zone or choosing \
                       eu-west-1b.";
    let (provider, mut asked) = (world.provider().await, 0);
    for (nth, code, message) in
        [(1, "InsufficientInstanceCapacity", message), (2, "Unsupported", unsupported)]
    {
        world.emulator.post("faults/clear", &json!({}));
        world.emulator.fault(
            json!({"action": "CreateFleet", "nth": 1, "kind": "error", "code": code, "message": message}),
        );
        let run = run_id(nth);
        provider.launch(&request(&run, 2, spec())).await.unwrap();
        let living = world.emulator.living();
        assert_eq!(field(&living, "zone"), BTreeSet::from(["eu-west-1b".to_owned()]), "{code}");
        assert_eq!(field(&living, "market"), BTreeSet::from(["spot".to_owned()]), "{code}");
        asked += 2;
        assert_eq!(world.emulator.count("CreateFleet"), asked, "{code}");
        terminate(&provider, &run).await;
    }
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_had_no_room_for_three_is_asked_for_one() {
    let world = World::new();
    world.emulator.post("capacity", &json!([{"market": "spot", "free": 2}]));
    let provider = world.provider().await;
    for (nth, count, market) in [(1, 3, "on-demand"), (2, 1, "spot"), (3, 3, "on-demand")] {
        let run = run_id(nth);
        provider.launch(&request(&run, count, spec())).await.unwrap();
        assert_eq!(field(&world.emulator.living(), "market"), BTreeSet::from([market.to_owned()]), "{nth}");
        terminate(&provider, &run).await;
    }
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_on_spot_leads_to_the_next_market() {
    let world = World::new();
    let quota = json!([{"market": "spot", "free": 0, "code": "MaxSpotInstanceCountExceeded"}]);
    world.emulator.post("capacity", &quota);
    let (provider, run) = (world.provider().await, run_id(1));
    assert_eq!(provider.launch(&request(&run, 2, spec())).await.unwrap().len(), 2);
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_nothing_at_all_every_market_is_named_and_nothing_stays() {
    let world = World::new();
    world.emulator.post("capacity", &json!([{"free": 1}]));
    let tsunami = world.tsunami(world.provider().await);
    let error = tsunami.run(plan(&[("node", 2, spec())]), async |_| Ok(())).await.unwrap_err();
    let Error::Launch { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind, ProviderErrorKind::Capacity);
    assert!(source.message.contains("2 of 2 machines could not be had: spot: "), "{source}");
    assert!(source.message.contains("on-demand: "), "{source}");
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_group_takes_what_there_is_and_completes_it_elsewhere() {
    let world = World::new();
    world.emulator.post("capacity", &json!([{"market": "spot", "free": 1}]));
    let (provider, run) = (world.provider().await, run_id(1));
    let mixed = spec().mixed(true);
    let ids = provider.launch(&request(&run, 8, mixed)).await.unwrap();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 8);
    let living = world.emulator.living();
    assert_eq!(living.len(), 8);
    assert_eq!(field(&living, "market").len(), 2, "some of both markets");
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_finds_the_same_machines_and_launches_none() {
    let world = World::new();
    let run = run_id(1);
    let request = request(&run, 3, spec());
    let first = world.provider().await.launch(&request).await.unwrap();
    let again = world.provider().await;
    assert_eq!(again.launch(&request).await.unwrap(), first);
    assert_eq!(world.emulator.living().len(), 3);
    let order: Vec<MachineId> = listed(&again, &run).await.into_iter().map(|machine| machine.id).collect();
    assert_eq!(order, first, "places are kept");
    terminate(&again, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_native_spot_block_is_asked_for_where_it_can_be_had() {
    let world = World::new();
    let block = spec().markets([Market::SpotBlock]).native_spot_block(true);
    let (provider, run) = (world.provider().await, run_id(1));
    let error = provider.launch(&request(&run, 1, block.clone())).await.unwrap_err();
    assert!(error.message.contains("BlockDurationMinutes"), "{error}");
    world.emulator.configure(json!({"accept_block_duration": true}));
    let run = run_id(2);
    provider.launch(&request(&run, 1, block)).await.unwrap();
    let calls = world.emulator.calls();
    let call = calls.iter().rfind(|call| call.action == "RunInstances").unwrap();
    assert_eq!(call.params["InstanceMarketOptions.SpotOptions.BlockDurationMinutes"], "60");
    terminate(&provider, &run).await;
    terminate(&provider, &run_id(1)).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_machine_is_noticed_within_seconds_and_replaced() {
    let world = World::new();
    let tsunami = world.tsunami(world.provider().await);
    let spec = spec().markets([Market::SpotBlock, Market::OnDemand]);
    let emulator = &world.emulator;
    let group = Group::new("node", MachineSpec::new(spec)).count(2).replace_interrupted(true);
    let running = tsunami.up(Plan::new("test").group(group)).await.unwrap();
    let cluster = running.cluster().clone();
    let victim = cluster.host("node-1").unwrap().machine().id.clone();
    emulator.post("interrupt", &json!({"instance": victim.as_str(), "notice": 30}));
    let begun = std::time::Instant::now();
    let error = cluster.host("node-1").unwrap().run("sleep 60").await.unwrap_err();
    assert!(
        matches!(&error, Error::Interrupted { reason, .. } if reason.contains("marked-for-termination")),
        "{error}"
    );
    println!("noticed after {:.1} s", begun.elapsed().as_secs_f64());
    let repaired = cluster.repair().await.unwrap();
    let names: Vec<_> = repaired.hosts().iter().map(|host| host.name().to_owned()).collect();
    assert_eq!(names, ["node-0", "node-1"]);
    let replacement = repaired.host("node-1").unwrap().machine();
    assert_ne!(replacement.id, victim);
    let kind = &replacement.kind;
    assert_eq!(kind, &repaired.hosts()[0].machine().kind, "alike");
    assert!([&kind.machine_type, &kind.image, &kind.region].into_iter().all(Option::is_some), "{kind:?}");
    running.down().await.unwrap();
    emulator.assert_empty();
    let interrupted = |kind: &EventKind| matches!(kind, EventKind::Interrupted { .. });
    assert!(world.events.events().iter().any(|event| interrupted(&event.kind)));
    // The way up of a replacement begins with its own request.
    let report: Report = world.events.events().iter().collect();
    let [kept, new] = ["node-0", "node-1"].map(|name| &report.machines[name]);
    assert!(kept.verified.is_some() && new.requested > kept.verified, "{kept:?} {new:?}");
    assert!(new.verified > new.connected && new.running > new.launched, "{new:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interruption_during_teardown_changes_nothing() {
    let world = World::new();
    let (provider, run) = (world.provider().await, run_id(1));
    let ids = provider.launch(&request(&run, 2, spec())).await.unwrap();
    world.emulator.post("interrupt", &json!({"instance": ids[0].as_str(), "notice": 1}));
    world.emulator.configure(json!({"shutting_down": 2.0}));
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_powers_itself_off_is_gone_and_not_stopped() {
    let world = World::new();
    let (provider, run) = (world.provider().await, run_id(1));
    let ids = provider.launch(&request(&run, 1, spec())).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Why it ends is known while it does.
    world.emulator.configure(json!({"shutting_down": 2.0}));
    world.emulator.post("poweroff", &json!({"instance": ids[0].as_str()}));
    let machines = provider.list(&RunFilter::Run(run.clone())).await.unwrap();
    assert_eq!(machines[0].state, MachineState::Stopping);
    let ended = machines[0].ended.as_deref();
    assert!(ended.is_some_and(|why| why.contains("InstanceInitiatedShutdown")), "{ended:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let machines = provider.list(&RunFilter::Run(run.clone())).await.unwrap();
    assert!(
        machines.iter().all(|machine| machine.state == MachineState::Gone && machine.interrupted.is_none())
    );
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_are_launched_at_once_and_let_each_other_in() {
    let world = World::new();
    let provider = world.provider_in(&["eu-west-1", "us-east-1"]).await;
    let here = spec().region("eu-west-1").open_ports([6379]);
    let there = spec().region("us-east-1");
    world.emulator.fault(json!({"action": "CreateFleet", "kind": "slow", "seconds": 1.5}));
    let begun = std::time::Instant::now();
    let running =
        world.tsunami(provider).up(plan(&[("server", 1, here), ("client", 2, there)])).await.unwrap();
    println!("two regions, 1.5 s each, took {:.1} s", begun.elapsed().as_secs_f64());
    let (server, client) =
        (running.cluster().host("server-0").unwrap(), running.cluster().host("client-0").unwrap());
    assert_eq!(client.ip_of(server).ok(), server.machine().addresses.public.as_deref());
    let opened =
        world.emulator.calls().into_iter().filter(|call| call.action == "AuthorizeSecurityGroupIngress");
    let opened: Vec<String> = opened.map(|call| format!("{} {}", call.region, call.params)).collect();
    for client in running.cluster().group("client") {
        let address = format!("{}/32", client.machine().addresses.public.as_deref().unwrap());
        assert!(
            opened.iter().any(|call| call.starts_with("eu-west-1")
                && call.contains(&address)
                && call.contains("6379"))
        );
    }
    assert!(!opened.iter().any(|call| call.starts_with("us-east-1") && call.contains("6379")));
    running.down().await.unwrap();
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quote_tells_every_market_and_the_most_it_can_cost() {
    let world = World::new();
    let provider = world.provider().await;
    let quote = async |spec| provider.quote(&MachineSpec::new(spec), 2.try_into().unwrap()).await.unwrap();
    let both = quote(spec()).await;
    let prices: Vec<f64> =
        both.offers.iter().filter_map(|offer| offer.price.dollars(1, Duration::from_secs(3600))).collect();
    assert_eq!(prices.len(), 2);
    assert!(prices[0] < prices[1], "spot is cheaper: {both:?}");
    let most = both.max_price.dollars(1, Duration::from_secs(3600)).unwrap();
    assert!(most >= prices[1], "on-demand is what it may come to");
    // What spot cost in the last day is told, of each pool; the emulator's prices fell an hour ago.
    let ranges =
        both.notes.iter().filter(|note| note.contains("in the last day: ") && note.contains(": from $"));
    assert_eq!(ranges.count(), 6, "{:?}", both.notes);
    let limited = quote(spec().max_price(0.0001)).await;
    for part in ["makes interruptions likelier", "above max_price in 6 of 6 pools"] {
        assert!(limited.notes.iter().any(|note| note.contains(part)), "{part}: {:?}", limited.notes);
    }
    // A price that can't be had is unknown, and never a guess.
    world.emulator.post("permissions", &json!({"deny": ["pricing:*"]}));
    let unknown =
        world.provider().await.quote(&MachineSpec::new(spec()), 2.try_into().unwrap()).await.unwrap();
    assert_eq!(unknown.max_price, Price::Unknown);
    assert!(unknown.notes.iter().any(|note| note.contains("on-demand price")), "{:?}", unknown.notes);
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_network_and_group_are_used_and_left_alone() {
    let world = World::new();
    let config = |name: &str| world.emulator.get(name);
    let _ = config("config");
    let (provider, run) = (world.provider().await, run_id(1));
    let given = spec().security_group("sg-00000000000000000");
    let error = provider.launch(&request(&run, 1, given)).await.unwrap_err();
    assert!(error.message.contains("sg-00000000000000000"), "{error}");
    terminate(&provider, &run).await;
    assert_eq!(world.emulator.count("CreateSecurityGroup"), 0);
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_machine_keeps_the_places_of_the_others() {
    let world = World::new();
    let (provider, run) = (world.provider().await, run_id(1));
    let first = provider.launch(&request(&run, 3, spec())).await.unwrap();
    let again = request(&run, 3, spec()).replace([first[1].clone()]);
    let second = provider.launch(&again).await.unwrap();
    assert_eq!((&second[0], &second[2]), (&first[0], &first[2]));
    assert_ne!(second[1], first[1]);
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}
