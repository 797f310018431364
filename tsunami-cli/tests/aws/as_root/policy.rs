//! The policy in the guide allows what tsunami does, and little else.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::cloud::Cloud;

/// What `doctor` asks for if it may, and no run needs: the policy has none of it.
const OPTIONAL: [&str; 1] = ["ec2:GetSpotPlacementScores"];

/// What a policy must allow although no request of that name is made: EC2 asks for it in the course of others,
/// or only where something was left half done.
const IMPLIED: [&str; 5] = [
    "ec2:DescribeFleets",
    "ec2:DescribeVpcs",
    "ec2:DeleteVolume",
    "ec2:CancelSpotInstanceRequests",
    "iam:PassRole",
];

fn policy() -> Value {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guide/src/ec2.md");
    let page = fs::read_to_string(page).unwrap();
    let policy = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    serde_json::from_str(policy).unwrap()
}

fn allowed() -> BTreeSet<String> {
    let policy = policy();
    let statements = policy["Statement"].as_array().unwrap();
    let actions = statements.iter().flat_map(|statement| statement["Action"].as_array().unwrap());
    actions.map(|action| action.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_policy_in_the_guide_is_complete_and_no_more_than_that() {
    let cloud = Cloud::new();
    cloud.emulator.post("policy", &policy());
    let file = cloud.server_and_clients(
        "open_ports = [7777]\nmarket = [\"spot\", \"on-demand\"]",
        "instance = \"c7g.xlarge\"\nregion = \"eu-west-1\"\nreach = \"public\"\nplacement_group = true\niam_profile = \"bench\"",
        "instance = { vcpus = 2, memory = \"4GiB\", arch = \"arm64\" }\nregion = \"us-east-1\"\n\
         market = [\"reservation\", \"spot\"]\nreservation = \"cr-1\"",
    );
    let reserved =
        json!({"region": "us-east-1", "zone": "us-east-1a", "type": "c7g.large", "count": 9, "id": "cr-1"});
    cloud.emulator.post("reservation", &reserved);
    cloud.tsunami([OsStr::new("doctor"), file.as_os_str()]).assert_status(0);
    cloud.run(&file).assert_status(0);
    let up = cloud.tsunami([OsStr::new("up"), file.as_os_str()]);
    let run = up.assert_status(0).stdout.trim().to_owned();
    cloud.tsunami(["extend", &run, "10m"]).assert_status(0);
    cloud.emulator.post("protect", &json!({"instance": cloud.emulator.living()[0]["id"]}));
    cloud.tsunami(["down", &run]).assert_status(0);
    cloud.tsunami(["gc", "--region", "eu-west-1"]).assert_status(0);
    cloud.tsunami(["gc", "--region", "eu-west-1", "--dry-run"]).assert_status(0);
    let asked = cloud.emulator.calls().into_iter().map(|call| format!("{}:{}", call.service, call.action));
    // Everybody may ask who they are.
    let mut asked: BTreeSet<String> = asked.filter(|action| action != "sts:GetCallerIdentity").collect();
    let allowed = allowed();
    for optional in OPTIONAL {
        assert!(asked.remove(optional) && !allowed.contains(optional), "{optional}");
    }
    let missing: Vec<_> = asked.difference(&allowed).collect();
    assert!(missing.is_empty(), "the policy lacks {missing:?}");
    let idle: Vec<_> =
        allowed.difference(&asked).filter(|action| !IMPLIED.contains(&action.as_str())).collect();
    assert!(idle.is_empty(), "nothing asks for {idle:?}");
    println!("{} actions asked for, all allowed", asked.len());
    cloud.assert_clean();
}

#[test]
fn without_a_permission_of_the_policy_the_run_names_it() {
    let cloud = Cloud::new();
    let file = cloud.server_and_clients(
        "region = \"eu-west-1\"",
        "instance = \"c7g.large\"",
        "instance = \"c7g.large\"",
    );
    for action in ["ec2:CreateFleet", "ec2:ImportKeyPair", "ssm:GetParameter"] {
        cloud.emulator.post("permissions", &json!({"deny": [action]}));
        cloud.run(&file).assert_status(3).assert_says(&[&format!("lack the permission {action}")]);
        let _ = fs::remove_dir_all(cloud.world.path("work/results"));
        cloud.assert_clean();
    }
}

#[test]
fn who_has_the_policy_can_tag_and_end_nothing_of_anybody_elses() {
    let cloud = Cloud::new();
    let file = cloud.world.write(
        "one.toml",
        r#"
        name = "one"
        provider = "aws"
        [aws]
        region = "eu-west-1"
        instance = "c7g.large"
        user = "root"
        ssh_from = "127.0.0.1/32"
        [group.a]
        "#,
    );
    let up = cloud.tsunami([OsStr::new("up"), file.as_os_str()]);
    let run = up.assert_status(0).stdout.trim().to_owned();
    let own = cloud.emulator.living().remove(0);
    let (own, image) = (own["id"].as_str().unwrap(), own["image"].as_str().unwrap());
    let ec2 = |parameters: &[(&str, &str)]| cloud.emulator.ec2("eu-west-1", parameters);
    let launched = ec2(&[
        ("Action", "RunInstances"),
        ("ImageId", image),
        ("InstanceType", "c7g.large"),
        ("MinCount", "1"),
        ("MaxCount", "1"),
    ]);
    let stranger = launched
        .split(['<', '>'])
        .find(|word| word.starts_with("i-"))
        .unwrap_or_else(|| panic!("{launched}"));
    cloud.emulator.post("policy", &policy());
    let tag = |id: &str, key: &str| {
        ec2(&[("Action", "CreateTags"), ("ResourceId.1", id), ("Tag.1.Key", key), ("Tag.1.Value", "mine")])
    };
    let lift = ("DisableApiTermination.Value", "false");
    for answer in [
        tag(stranger, "tsunami:run"),
        tag(stranger, "tsunami:expires"),
        tag(own, "tsunami:run"),
        ec2(&[("Action", "TerminateInstances"), ("InstanceId.1", stranger)]),
        ec2(&[("Action", "TerminateInstances"), ("InstanceId.1", own), ("InstanceId.2", stranger)]),
        ec2(&[("Action", "ModifyInstanceAttribute"), ("InstanceId", stranger), lift]),
        ec2(&[("Action", "ModifyInstanceAttribute"), ("InstanceId", own), ("UserData.Value", "aWQ=")]),
    ] {
        assert!(answer.contains("UnauthorizedOperation"), "{answer}");
    }
    let answer = tag(own, "tsunami:expires");
    assert!(answer.contains("200 OK"), "{answer}");
    cloud.tsunami(["down", &run]).assert_status(0);
    let living = cloud.emulator.living();
    assert!(living.len() == 1 && living[0]["id"] == stranger, "{living:?}");
    cloud.emulator.post("policy", &json!({}));
    ec2(&[("Action", "TerminateInstances"), ("InstanceId.1", stranger)]);
    cloud.assert_clean();
}
