//! What a user reads who asked for something that can't be had. Within seconds, and nothing is left behind.

use serde_json::json;
use tsunami_aws::{Disk, Ec2Spec, Market, Reach};
use tsunami_core::{MachineSpec, Price, Provider, ProviderError, ProviderErrorKind};

use crate::world::{World, request, run_id, spec, terminate};

async fn refused(world: &World, spec: Ec2Spec) -> ProviderError {
    let provider = world.provider().await;
    let error = provider.quote(&MachineSpec::new(spec), 2.try_into().unwrap()).await.unwrap_err();
    world.emulator.assert_empty();
    error
}

#[track_caller]
fn says(error: &ProviderError, parts: &[&str]) {
    let text = format!("{error}\nhelp: {}", error.help.as_deref().unwrap_or_default());
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_without_a_market_is_refused_where_nobody_asked_for_a_quote() {
    let world = World::new();
    let (provider, run) = (world.provider().await, run_id(1));
    let error = provider.launch(&request(&run, 1, spec().markets([]))).await.unwrap_err();
    assert_eq!(error.kind, ProviderErrorKind::InvalidSpec, "{error}");
    says(&error, &["no market is given"]);
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spec_that_cannot_be_had_is_refused_before_anything_is_created() {
    let world = World::new();
    world.emulator.configure(json!({"not_offered": {"c7g.large": ["eu-west-1a"]}}));
    let invalid = |error: &ProviderError| assert_eq!(error.kind, ProviderErrorKind::InvalidSpec, "{error}");

    let error = refused(&world, spec().instances(["c7g.lrage"])).await;
    invalid(&error);
    says(&error, &["c7g.lrage", "describe-instance-types --region eu-west-1"]);

    let error = refused(&world, spec().instances(["c7g.large"]).zone("eu-west-1a")).await;
    invalid(&error);
    says(&error, &["none of eu-west-1a has c7g.large", "c7g.large is in eu-west-1b"]);

    let error = refused(&world, spec().zone("us-east-1a")).await;
    invalid(&error);
    says(&error, &["us-east-1a", "eu-west-1a"]);

    let error = refused(&world, spec().instances(["c7g.large", "c6i.large"])).await;
    invalid(&error);
    says(&error, &["c7g.large (arm64)", "c6i.large (x86_64)", "one architecture"]);

    let error = refused(&world, spec().image("ubuntu-99.04")).await;
    invalid(&error);
    says(&error, &["ubuntu-99.04", "no public parameter"]);

    let error = refused(&world, spec().image("windows")).await;
    invalid(&error);
    says(&error, &["`windows` names no image", "ubuntu-24.04"]);

    let error = refused(&world, spec().image("ami-0123456789abcdef0")).await;
    invalid(&error);
    says(&error, &["ami-0123456789abcdef0"]);

    let disk = |kind: &str| Disk::new(kind).gib(4);
    let error = refused(&world, spec().disk(disk("gp3"))).await;
    invalid(&error);
    says(&error, &["4 GiB is too small"]);

    for (kind, why) in [("io2", "needs `iops`"), ("io1", "needs `iops`"), ("st1", "can't boot")] {
        let disk = disk(kind).gib(500);
        let error = refused(&world, spec().disk(disk)).await;
        invalid(&error);
        says(&error, &[kind, why]);
    }

    let windows = spec().image(image_of_windows(&world)).instances(["c6i.large"]);
    let error = refused(&world, windows).await;
    invalid(&error);
    says(&error, &["is of Windows"]);

    let error = refused(&world, spec().subnet("subnet-0123456789abcdef0")).await;
    invalid(&error);
    says(&error, &["subnet-0123456789abcdef0"]);

    let error = refused(&world, spec().ssh_from(["203.0.113.7"])).await;
    invalid(&error);
    says(&error, &["203.0.113.7", "203.0.113.7/32"]);

    let error = refused(&world, spec().tag("team", "x".repeat(257))).await;
    invalid(&error);
    says(&error, &["`team` is too long"]);

    for profile in ["arn:aws:iam::123456789012:role/worker", "a/b", "\u{e4}"] {
        let error = refused(&world, spec().iam_profile(profile)).await;
        invalid(&error);
        says(&error, &["is no instance profile", ":instance-profile/"]);
    }

    let users = "#cloud-config\nusers:\n- name: me\n".to_owned();
    let error = refused(&world, spec().user_data(users)).await;
    invalid(&error);
    says(&error, &["`users` without `default`"]);

    let keys = "#cloud-config\nssh_keys: {}\n".to_owned();
    let error = refused(&world, spec().user_data(keys)).await;
    invalid(&error);
    says(&error, &["ssh_keys"]);
}

fn image_of_windows(world: &World) -> String {
    let found = world.emulator.ec2(
        "eu-west-1",
        &[("Action", "DescribeImages"), ("Filter.1.Name", "platform"), ("Filter.1.Value.1", "windows")],
    );
    value(&found, "imageId")
}

/// The first value of a name in an answer of EC2's.
#[track_caller]
fn value(answer: &str, name: &str) -> String {
    let mut words = answer.split(['<', '>']);
    words.find(|word| *word == name).unwrap_or_else(|| panic!("no {name} in {answer}"));
    words.next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_network_means_for_machines_is_known_beforehand() {
    let world = World::new();
    let ask = |parameters: &[(&str, &str)]| world.emulator.ec2("eu-west-1", parameters);
    let quote = async |subnet: String| {
        let provider = world.provider().await;
        let spec = spec().subnet(subnet);
        provider.quote(&MachineSpec::new(spec), 1.try_into().unwrap()).await
    };
    let network = |tenancy: &str, block: &str| {
        let vpc = value(
            &ask(&[("Action", "CreateVpc"), ("CidrBlock", block), ("InstanceTenancy", tenancy)]),
            "vpcId",
        );
        let subnet = [
            ("Action", "CreateSubnet"),
            ("VpcId", &*vpc),
            ("CidrBlock", block),
            ("AvailabilityZone", "eu-west-1a"),
        ];
        value(&ask(&subnet), "subnetId")
    };
    let plain = network("default", "10.1.0.0/24");
    let quoted = quote(plain.clone()).await.unwrap();
    assert!(matches!(quoted.max_price, Price::PerHour(_)), "{quoted:?}");
    assert!(quoted.notes.iter().any(|note| note.contains("no public address")), "{:?}", quoted.notes);

    // Public addresses there would lead nobody to machines.
    let provider = world.provider().await;
    let wanted = MachineSpec::new(spec().subnet(plain.clone()).reach(Reach::Public));
    let error = provider.quote(&wanted, 1.try_into().unwrap()).await.unwrap_err();
    says(&error, &[&plain, "no route to an internet gateway", "reach = \"private\""]);
    world.emulator.post("permissions", &json!({"deny": ["ec2:DescribeRouteTables"]}));
    let quoted = provider.quote(&wanted, 1.try_into().unwrap()).await.unwrap();
    assert!(quoted.notes.iter().any(|note| note.contains("ec2:DescribeRouteTables")), "{:?}", quoted.notes);
    world.emulator.post("permissions", &json!({"deny": []}));

    let quoted = quote(network("dedicated", "10.2.0.0/24")).await.unwrap();
    assert_eq!(quoted.max_price, Price::Unknown, "it would fit a budget");
    assert!(quoted.notes.iter().any(|note| note.contains("dedicated tenancy")), "{:?}", quoted.notes);

    // Who may not look does not know.
    world.emulator.post("permissions", &json!({"deny": ["ec2:DescribeVpcs"]}));
    let quoted = quote(plain).await.unwrap();
    assert_eq!(quoted.max_price, Price::Unknown);
    assert!(quoted.notes.iter().any(|note| note.contains("ec2:DescribeVpcs")), "{:?}", quoted.notes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_default_network_without_subnets_is_told_from_none() {
    let world = World::new();
    world.emulator.configure(json!({"default_subnets": false}));
    let error = refused(&world, spec()).await;
    assert_eq!(error.kind, ProviderErrorKind::InvalidSpec, "{error}");
    says(&error, &["has no subnets", "create-default-subnet --region eu-west-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_another_architecture_is_refused() {
    let world = World::new();
    // Any image of the other kind.
    let provider = world.provider().await;
    let x86 = spec().instances(["c6i.large"]);
    let quote = provider.quote(&MachineSpec::new(x86), 1.try_into().unwrap()).await.unwrap();
    let id = quote.notes[0].split(['(', ')']).find(|word| word.starts_with("ami-")).unwrap();
    let error = refused(&world, spec().image(id)).await;
    assert_eq!(error.kind, ProviderErrorKind::InvalidSpec);
    says(&error, &[id, "for x86_64", "for arm64"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_without_a_default_network_is_told_what_to_do() {
    let world = World::new();
    world.emulator.configure(json!({"default_vpc": {"eu-west-1": false}}));
    let error = refused(&world, spec()).await;
    assert_eq!(error.kind, ProviderErrorKind::InvalidSpec, "{error}");
    says(&error, &["no default network", "create-default-vpc --region eu-west-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_cannot_be_found_out_is_said() {
    let world = World::new();
    let options = tsunami_aws::Ec2Options::default()
        .regions(["eu-west-1"])
        .address_service(format!("{}/_sim/config", world.emulator.endpoint()));
    let config = aws_config::SdkConfig::builder()
        .behavior_version(aws_config::BehaviorVersion::latest())
        .endpoint_url(world.emulator.endpoint())
        .credentials_provider(aws_sdk_ec2::config::SharedCredentialsProvider::new(
            aws_sdk_ec2::config::Credentials::new("test", "test", None, None, "test"),
        ))
        .build();
    let provider = tsunami_aws::Ec2Provider::with_config(world.root.path(), config, options).await.unwrap();
    let open = spec().ssh_from(Vec::<String>::new());
    let error = provider.quote(&MachineSpec::new(open), 1.try_into().unwrap()).await.unwrap_err();
    says(&error, &["address", "ssh_from = "]);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_not_accepted_are_explained() {
    for (code, help) in [
        ("ExpiredToken", "have expired"),
        ("InvalidClientTokenId", "does not accept the credentials"),
        ("AccessDenied", "sts:GetCallerIdentity"),
    ] {
        let world = World::new();
        world.emulator.fault(json!({"service": "sts", "kind": "error", "code": code, "status": 403,
            "message": "User: arn:aws:iam::1:user/u is not authorized to perform: sts:GetCallerIdentity"}));
        let error = world.try_provider(&["eu-west-1"]).await.unwrap_err();
        assert_eq!(error.kind, ProviderErrorKind::Unauthorized, "{error}");
        says(&error, &[code, help]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_quota_is_named_with_the_command_that_raises_it() {
    let world = World::new();
    world
        .emulator
        .post("capacity", &json!([{"market": "on-demand", "free": 0, "code": "VcpuLimitExceeded"}]));
    let (provider, run) = (world.provider().await, run_id(1));
    let on_demand = spec().markets([Market::OnDemand]);
    let error = provider.launch(&request(&run, 2, on_demand)).await.unwrap_err();
    assert_eq!(error.kind, ProviderErrorKind::Quota, "{error}");
    says(&error, &["2 of 2 machines could not be had", "VcpuLimitExceeded", "L-1216C47A"]);
    terminate(&provider, &run).await;
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_without_room_is_said_before_anything_is_launched() {
    let world = World::new();
    let quota =
        |value: u32| world.emulator.configure(json!({"quotas": {"L-1216C47A": value, "L-34B43A08": 4}}));
    let quote = async |count: u32, spec: Ec2Spec| {
        let provider = world.provider().await;
        provider.quote(&MachineSpec::new(spec), count.try_into().unwrap()).await
    };
    // Two of two virtual processors each.
    quota(4);
    let told = |quote: tsunami_core::Quote| quote.notes.into_iter().filter(|note| note.contains("quota"));
    assert_eq!(told(quote(2, spec()).await.unwrap()).collect::<Vec<_>>(), [""; 0]);
    let error = quote(3, spec()).await.unwrap_err();
    assert_eq!(error.kind, ProviderErrorKind::Quota, "{error}");
    says(
        &error,
        &[
            "spot: the quota \"All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests\" has 4 virtual",
            "3 of c7g.large take 6",
            "on-demand: the quota \"Running On-Demand Standard",
            "--quota-code L-34B43A08 --region eu-west-1",
        ],
    );
    // Another market has room.
    quota(100);
    let notes: Vec<String> = told(quote(3, spec()).await.unwrap()).collect();
    assert!(notes.len() == 1 && notes[0].starts_with("spot: the quota"), "{notes:?}");
    // What runs already counts, and what has ended does not.
    let (provider, run) = (world.provider().await, run_id(1));
    provider.launch(&request(&run, 1, spec().markets([Market::Spot]))).await.unwrap();
    let spot = spec().markets([Market::Spot]);
    let error = quote(2, spot.clone()).await.unwrap_err();
    says(&error, &["has 2 virtual processors left, and 2 of c7g.large take 4"]);
    terminate(&provider, &run).await;
    quote(2, spot).await.unwrap();
    world.emulator.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_that_cannot_be_looked_at_are_said_to_be_unchecked() {
    let world = World::new();
    world.emulator.configure(json!({"quotas": {"L-1216C47A": 0, "L-34B43A08": 0}}));
    world.emulator.post("permissions", &json!({"deny": ["servicequotas:GetServiceQuota"]}));
    let quote = async || {
        let provider = world.provider().await;
        let quote = provider.quote(&MachineSpec::new(spec()), 2.try_into().unwrap()).await.unwrap();
        quote.notes.into_iter().find(|note| note.contains("quotas")).unwrap_or_default()
    };
    let note = quote().await;
    assert!(note.contains("are not checked") && note.contains("servicequotas:GetServiceQuota"), "{note}");
    world.emulator.post("permissions", &json!({"deny": []}));
    world.emulator.fault(json!({"service": "servicequotas", "kind": "drop_before"}));
    let begun = std::time::Instant::now();
    let note = quote().await;
    assert!(note.contains("are not checked"), "{note}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}
