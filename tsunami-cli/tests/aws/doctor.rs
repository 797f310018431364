//! `tsunami doctor FILE` with an account: what it lacks, and the fix. Nothing is ever made.

use std::ffi::OsStr;
use std::process::Command;

use serde_json::{Value, json};

use crate::cloud::Cloud;
use crate::emulator::Emulator;
use crate::world::{Ended, checks, of};

/// Examines one group of two machines, with these lines about them and about the rest of the file.
fn doctor(cloud: &Cloud, aws: &str, rest: &str) -> Command {
    let text = format!("name = \"x\"\nprovider = \"aws\"\n[aws]\n{aws}\n[group.a]\ncount = 2\n{rest}");
    let file = cloud.world.write("x.toml", &text);
    cloud.command([OsStr::new("doctor"), OsStr::new("--json"), file.as_os_str()])
}

/// What is found out with this exit status.
#[track_caller]
fn found(mut doctor: Command, status: i32) -> Vec<Value> {
    checks(Ended::from(doctor.output().unwrap()).assert_status(status))
}

const PLAIN: &str = "region = \"eu-west-1\"\ninstance = [\"c7g.large\", \"c6g.large\", \"m7g.large\"]\nmarket = [\"spot\", \"on-demand\"]";

/// A subnet of a network of its own, whose machines get no public addresses, and that leads nowhere.
fn inner_subnet(cloud: &Cloud) -> String {
    let ask = |parameters: &[(&str, &str)], name: &str| {
        let answer = cloud.emulator.ec2("eu-west-1", parameters);
        let mut words = answer.split(['<', '>']);
        words.find(|word| *word == name).unwrap_or_else(|| panic!("no {name} in {answer}"));
        words.next().unwrap_or_default().to_owned()
    };
    let network = ask(&[("Action", "CreateVpc"), ("CidrBlock", "10.93.0.0/16")], "vpcId");
    let subnet = [
        ("Action", "CreateSubnet"),
        ("VpcId", &*network),
        ("CidrBlock", "10.93.1.0/24"),
        ("AvailabilityZone", "eu-west-1a"),
    ];
    ask(&subnet, "subnetId")
}

#[test]
fn what_an_account_lacks_is_said_with_what_mends_it_and_nothing_is_made() {
    let cloud = Cloud::with(Emulator::without_machines());
    let emulator = &cloud.emulator;

    let all = found(doctor(&cloud, PLAIN, ""), 0);
    for (check, part) in [
        ("credentials", "in account 123456789012"),
        ("clock of AWS", "agrees"),
        ("region eu-west-1", "enabled"),
        ("image of a", "ubuntu-24.04 is ami-"),
        ("network of a", "public addresses, with a way to the internet"),
        ("security group of a", "SSH is let in from 127.0.0.1/32"),
        ("quota of a", "room for 2 more"),
        ("spot capacity of a", "9 of 10"),
        (
            "permissions in eu-west-1",
            "CreateLaunchTemplate, CreateSecurityGroup, ImportKeyPair, RunInstances would be",
        ),
        ("group a", "2 × c"),
    ] {
        let [result, found, _] = of(&all, check);
        assert!(result == "ok" && found.contains(part), "{check}: {result}: {found}");
    }
    assert_eq!(of(&all, "path of a")[0], "not checked");
    assert!(of(&all, "role for spot in eu-west-1")[2].contains("create-service-linked-role"));
    let asked = emulator.calls();
    let changing = asked.iter().filter(|call| {
        call.service == "ec2" && !call.action.starts_with("Describe") && !call.action.starts_with("Get")
    });
    assert!(changing.clone().count() >= 5 && changing.clone().all(|call| call.params["DryRun"] == "true"));

    // Permissions that a run needs, to make and to find what it has made, and one that it doesn't.
    let denied = ["ec2:CreateLaunchTemplate", "ec2:DescribeKeyPairs", "ec2:GetSpotPlacementScores"];
    emulator.post("permissions", &json!({"deny": denied}));
    let all = found(doctor(&cloud, PLAIN, ""), 3);
    for needed in ["CreateLaunchTemplate", "DescribeKeyPairs"] {
        let [result, _, fix] = of(&all, &format!("permission for {needed}"));
        assert!(result == "failed" && fix.contains(&format!("lack the permission ec2:{needed}")), "{fix}");
    }
    let [result, found_, _] = of(&all, "spot capacity of a");
    assert!(result == "not checked" && found_.contains("which no run needs"), "{found_}");
    emulator.post("permissions", &json!({"deny": []}));

    // Quotas: one market has no room, then none has.
    emulator.configure(json!({"quotas": {"L-34B43A08": 1}, "placement_score": 2}));
    let all = found(doctor(&cloud, PLAIN, ""), 0);
    let [result, _, fix] = of(&all, "quota of a");
    assert!(result == "warning" && fix.contains("--quota-code L-34B43A08 --region eu-west-1"), "{fix}");
    let [result, _, fix] = of(&all, "spot capacity of a");
    assert!(result == "warning" && fix.starts_with("market = [\"spot\", \"on-demand\"]"), "{fix}");
    emulator.configure(json!({"quotas": {"L-1216C47A": 1}, "placement_score": 9}));
    let [result, told, fix] = of(&found(doctor(&cloud, PLAIN, ""), 3), "group a").map(str::to_owned);
    assert!(result == "failed" && told.contains("quotas have no room"), "{told}");
    assert!(fix.contains("aws service-quotas request-service-quota-increase"), "{fix}");
    emulator.configure(json!({"quotas": {"L-34B43A08": 1920, "L-1216C47A": 1920}}));

    // A subnet without public addresses, with and without a way there; and one that leads nowhere, asked for them.
    let inner = format!("{PLAIN}\nsubnet = \"{}\"", inner_subnet(&cloud));
    let all = found(doctor(&cloud, &inner, ""), 0);
    let [result, told, fix] = of(&all, "path of a");
    assert!(result == "warning" && told.contains("10.93.0.0/16"), "{told}");
    assert!(fix.contains("reach = \"public\"") && fix.contains("jump = \"user@bastion\""), "{fix}");
    assert!(of(&all, "network of a")[1].contains("private addresses alone"));
    let all = found(doctor(&cloud, &inner, "[ssh]\njump = \"me@bastion\"\n"), 0);
    assert_eq!(of(&all, "path of a")[..2], ["ok", "machines are reached by the jump host me@bastion"]);
    let outer = format!("{inner}\nreach = \"public\"");
    let all = found(doctor(&cloud, &outer, ""), 2);
    let [result, told, fix] = of(&all, "group a");
    assert!(result == "failed" && told.contains("no route to an internet gateway"), "{told}");
    assert!(fix.contains("reach = \"private\""), "{fix}");
    assert_eq!(emulator.instances(), Vec::<Value>::new());
    cloud.assert_clean();
}

#[test]
fn an_account_that_is_not_reached_or_not_believed_says_what_mends_it() {
    let cloud = Cloud::with(Emulator::without_machines());
    let emulator = &cloud.emulator;

    let nowhere = PLAIN.replace("eu-west-1", "eu-nowhere-1");
    let all = found(doctor(&cloud, &nowhere, ""), 3);
    let [result, _, fix] = of(&all, "region eu-nowhere-1");
    assert!(result == "failed" && fix.starts_with("aws ec2 describe-regions"), "{all:#?}");

    let mut without = doctor(&cloud, PLAIN, "");
    without.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let [result, _, fix] = of(&found(without, 3), "aws").map(str::to_owned);
    assert!(result == "failed" && fix.contains("AWS_PROFILE") && fix.contains("aws sso login"), "{fix}");

    emulator.fault(json!({"service": "sts", "action": "GetCallerIdentity", "kind": "error", "code": "InvalidClientTokenId", "status": 403}));
    let [result, _, fix] = of(&found(doctor(&cloud, PLAIN, ""), 3), "aws").map(str::to_owned);
    assert!(result == "failed" && fix.contains("aws sts get-caller-identity --region eu-west-1"), "{fix}");
    emulator.post("faults/clear", &json!({}));

    emulator.configure(json!({"clock_skew": 200.0, "signature_window": 300.0}));
    let [result, told, fix] = of(&found(doctor(&cloud, PLAIN, ""), 0), "clock of AWS").map(str::to_owned);
    assert!(result == "warning" && told.contains("3m 20s behind EC2's"), "{told}");
    assert_eq!(fix, "sudo timedatectl set-ntp true");
    emulator.configure(json!({"clock_skew": 3600.0}));
    let [result, told, fix] = of(&found(doctor(&cloud, PLAIN, ""), 3), "aws").map(str::to_owned);
    assert!(result == "failed" && told.contains("this computer's clock is 1h behind EC2's"), "{told}");
    assert!(fix.contains("sudo timedatectl set-ntp true"), "{fix}");
    cloud.assert_clean();
}
