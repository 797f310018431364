//! What a controller leaves that was killed, and how others clear it away.

use std::ffi::OsStr;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::cloud::Cloud;
use crate::emulator::Emulator;
use crate::world::{Ended, eventually};

/// An experiment of two groups, which asks for one machine each and does nothing with them.
fn two_groups(cloud: &Cloud, lifetime: &str) -> std::path::PathBuf {
    let text = format!(
        r#"
        name = "two"
        provider = "aws"
        lifetime = "{lifetime}"
        [aws]
        region = "eu-west-1"
        market = ["spot", "on-demand"]
        instance = "c7g.large"
        user = "root"
        ssh_from = "127.0.0.1/32"
        [group.a]
        placement_group = true
        [group.b]
        "#
    );
    cloud.world.write("two.toml", &text)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    /// The request has not reached EC2's insides.
    Before,
    /// It has, and the answer is held back.
    After,
    /// It will, a while after the controller is gone.
    Later,
}

/// Runs until the kth request to EC2, and kills the controller there. Whether there was a kth request.
fn killed_at(cloud: &Cloud, k: u32, when: When) -> bool {
    cloud.emulator.post("faults/clear", &json!({}));
    cloud.emulator.post("log/clear", &json!({}));
    let file = two_groups(cloud, "45m");
    let rule = match when {
        When::Before => json!({"action": "*", "nth": k, "kind": "hold_before"}),
        When::After => json!({"action": "*", "nth": k, "kind": "hold_after"}),
        When::Later => json!({"action": "*", "nth": k, "kind": "delay_effect", "seconds": 1.0, "hold": true}),
    };
    cloud.emulator.fault(rule);
    let mut command = cloud.command([OsStr::new("run"), file.as_os_str()]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let reached = loop {
        let held = !cloud.emulator.get("held").as_array().unwrap().is_empty();
        let delayed = when == When::Later && cloud.emulator.calls().iter().any(|call| call.fault.is_some());
        if held || delayed {
            break true;
        }
        if child.try_wait().unwrap().is_some() {
            break false;
        }
        assert!(Instant::now() < deadline, "neither held nor ended at {k} {when:?}");
        std::thread::sleep(Duration::from_millis(10));
    };
    if reached {
        kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    }
    child.wait().unwrap();
    if when == When::Before {
        // The client is gone, and what it asked for never happens.
        eventually("the held request is dropped", || match cloud.emulator.get("held") {
            Value::Array(held) if held.is_empty() => Ok(()),
            held => Err(held.to_string()),
        });
    }
    cloud.emulator.post("release", &json!({}));
    cloud.emulator.post("faults/clear", &json!({}));
    reached
}

/// The requests of a run at which something is about to be created or removed; those that only look leave
/// nothing behind wherever they are cut off.
fn points(cloud: &Cloud) -> Vec<u32> {
    cloud.emulator.post("log/clear", &json!({}));
    cloud.run(&two_groups(cloud, "45m")).assert_status(0);
    let calls = cloud.emulator.calls().into_iter().filter(|call| call.service == "ec2");
    let calls: Vec<_> = calls.map(|call| call.action).collect();
    let _ = fs::remove_dir_all(cloud.world.path("work/results"));
    let all = std::env::var_os("TSUNAMI_CHAOS").is_some();
    (1..).zip(&calls).filter(|(_, action)| all || !action.starts_with("Describe")).map(|(k, _)| k).collect()
}

/// Kills a run at every point, has `clear` clear it away each time, and sees that nothing is left.
fn at_every_point(cloud: &Cloud, command: &str, clear: impl Fn(When) -> Ended) {
    let (mut tried, mut left) = (0, 0);
    for k in points(cloud) {
        for when in [When::Before, When::After, When::Later] {
            if !killed_at(cloud, k, when) {
                continue;
            }
            tried += 1;
            let cleared = clear(when);
            let remaining = cloud.emulator.remaining();
            left += remaining.len();
            assert!(remaining.is_empty(), "killed {when:?} request {k}: {remaining:?}\n{cleared:?}");
            cleared.assert_status(0);
            cloud.world.assert_no_processes();
        }
    }
    println!("kill points tried: {tried}, resources left after `{command}`: {left}");
    assert!(tried >= 20, "{tried}");
}

#[test]
fn a_run_that_is_killed_at_any_request_is_cleared_away_by_down() {
    let cloud = Cloud::new();
    at_every_point(&cloud, "down", |_| cloud.tsunami(["down", "--all"]));
    cloud.assert_clean();
}

#[test]
fn a_run_that_is_killed_at_any_request_is_cleared_away_by_gc_from_anywhere() {
    let cloud = Cloud::new();
    at_every_point(&cloud, "gc", |when| {
        // Another computer, where nothing is recorded, an hour later by the service's clock.
        fs::remove_dir_all(cloud.world.path("state")).unwrap();
        fs::create_dir(cloud.world.path("state")).unwrap();
        std::thread::sleep(Duration::from_millis(if when == When::Later { 1200 } else { 0 }));
        cloud.emulator.configure(json!({"clock_skew": 3600.0}));
        let cleared = cloud.tsunami(["gc", "--region", "eu-west-1", "--json"]);
        cloud.emulator.configure(json!({"clock_skew": 0.0}));
        cleared
    });
    cloud.emulator.assert_empty();
}

#[test]
fn gc_leaves_the_living_alone_and_says_what_it_would_do() {
    let cloud = Cloud::new();
    let up = cloud.tsunami([OsStr::new("up"), two_groups(&cloud, "45m").as_os_str()]);
    let run = up.assert_status(0).stdout.trim().to_owned();
    let gc = |args: &[&str]| cloud.tsunami([&["gc", "--region", "eu-west-1"], args].concat());
    gc(&[]).assert_status(0).assert_says(&["nothing to remove"]);
    let ls = cloud.tsunami(["ls", "--provider", "aws", "--region", "eu-west-1"]);
    assert!(
        ls.assert_status(0).stdout.contains(&run) && ls.stdout.contains("security group"),
        "{}",
        ls.stdout
    );
    // Past its expiry, but it may still be tearing itself down.
    cloud.emulator.configure(json!({"clock_skew": 46.0 * 60.0}));
    gc(&[]).assert_status(0).assert_says(&["nothing to remove"]);
    cloud.emulator.configure(json!({"clock_skew": 56.0 * 60.0}));
    let dry = gc(&["--dry-run"]);
    assert!(dry.assert_status(0).stdout.contains("would be removed"), "{}", dry.stdout);
    assert_eq!(cloud.emulator.living().len(), 2);
    // A permission is missing: what remains is named, and a cron job hears of it.
    cloud.emulator.post("permissions", &json!({"deny": ["ec2:DescribeInstances"]}));
    gc(&["--dry-run"])
        .assert_status(6)
        .assert_says(&["could not look in eu-west-1: machines", "ec2:DescribeInstances"]);
    cloud.emulator.post("permissions", &json!({"deny": []}));
    let done = gc(&["--json"]);
    let row: Value = serde_json::from_str(done.assert_status(0).stdout.trim()).unwrap();
    assert_eq!((row["run"].as_str(), row["outcome"].as_str()), (Some(run.as_str()), Some("removed")));
    cloud.emulator.assert_empty();
    cloud.emulator.configure(json!({"clock_skew": 0.0}));
    cloud.tsunami(["down", &run]).assert_status(0);
    cloud.assert_clean();
}

#[test]
fn gc_of_ones_own_removes_abandoned_runs_and_no_others() {
    let cloud = Cloud::new();
    let file = two_groups(&cloud, "45m");
    let kept = cloud.tsunami([OsStr::new("up"), file.as_os_str()]);
    let kept = kept.assert_status(0).stdout.trim().to_owned();
    let mut abandoned = cloud.start(&file);
    abandoned.wait_for(&["\"event\":\"launched\""]);
    abandoned.signal(Signal::KILL);
    abandoned.end();
    assert_eq!(cloud.world.runs().len(), 2);
    cloud.tsunami(["gc", "--mine"]).assert_status(0);
    assert_eq!(cloud.world.runs(), std::slice::from_ref(&kept));
    assert_eq!(cloud.emulator.living().len(), 2);
    cloud.tsunami(["down", &kept]).assert_status(0);
    cloud.assert_clean();
}

#[test]
fn an_extended_run_lives_longer_on_the_machines_and_in_its_tags() {
    let cloud = Cloud::new();
    let up = cloud.tsunami([OsStr::new("up"), two_groups(&cloud, "45m").as_os_str()]);
    let run = up.assert_status(0).stdout.trim().to_owned();
    let armed = |cloud: &Cloud| {
        let status = cloud.tsunami(["ssh", &run, "a-0", "--", "tsunami-deadline", "status"]);
        let words: Vec<u64> =
            status.assert_status(0).stdout.split_whitespace().filter_map(|it| it.parse().ok()).collect();
        (words[0], words[1])
    };
    let before = armed(&cloud);
    let expires =
        |cloud: &Cloud| cloud.emulator.living()[0]["tags"]["tsunami:expires"].as_str().unwrap().to_owned();
    let tag = expires(&cloud);
    cloud.tsunami(["extend", &run, "30m"]).assert_status(0);
    let after = armed(&cloud);
    assert_eq!((after.0 - before.0, after.1 - before.1), (1800, 1800));
    assert_ne!(expires(&cloud), tag);
    cloud.tsunami(["down", &run]).assert_status(0);
    cloud.assert_clean();
}

#[test]
fn two_downs_at_once_and_one_beside_the_run_itself_do_no_harm() {
    let cloud = Cloud::new();
    let mut going = cloud.start(&two_groups(&cloud, "45m"));
    going.wait_for(&["\"event\":\"launched\""]);
    let run = cloud.world.runs().pop().unwrap();
    let downs: Vec<_> = (0..2).map(|_| cloud.command(["down", &run]).spawn().unwrap()).collect();
    for mut down in downs {
        down.wait().unwrap();
    }
    let ended = going.end();
    assert!(matches!(ended.status, Some(0 | 3 | 4 | 5)), "{ended:?}");
    cloud.tsunami(["down", "--all"]);
    cloud.assert_clean();
}

#[test]
fn a_run_whose_record_is_broken_is_found_by_its_journal() {
    let cloud = Cloud::new();
    let up = cloud.tsunami([OsStr::new("up"), two_groups(&cloud, "45m").as_os_str()]);
    let run = up.assert_status(0).stdout.trim().to_owned();
    let record = cloud.world.path("state/tsunami/runs").join(&run).join("record.json");
    fs::write(record, "{").unwrap();
    cloud.tsunami(["down", &run]).assert_status(0).assert_says(&["going by what lies beside it"]);
    cloud.assert_clean();
}

#[test]
fn credentials_that_expired_are_said_with_what_may_remain_and_new_ones_are_picked_up() {
    let cloud = Cloud::new();
    let up = cloud.tsunami([OsStr::new("up"), two_groups(&cloud, "45m").as_os_str()]);
    let run = up.assert_status(0).stdout.trim().to_owned();
    let ids: Vec<String> =
        cloud.emulator.living().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
    let expired =
        json!({"service": "*", "action": "*", "kind": "error", "code": "ExpiredToken", "status": 403});
    cloud.emulator.fault(expired);
    for command in [&["ls"][..], &["down", &run]] {
        let said = cloud.tsunami(command);
        said.assert_status(6).assert_says(&[
            &ids[0],
            &ids[1],
            "have expired: get new ones",
            "security group sg-",
        ]);
        if command[0] == "down" {
            said.assert_says(&[&format!(
                "once what keeps it is mended or over, run `tsunami down {run}` again"
            )]);
        }
        assert!(!said.stderr.contains("no runs"), "{}", said.stderr);
    }
    cloud.emulator.post("faults/clear", &json!({}));
    cloud.tsunami(["down", &run]).assert_status(0);
    cloud.assert_clean();
}

#[test]
fn a_machine_that_may_not_be_ended_is_named_with_the_command_and_the_others_are_gone() {
    let cloud = Cloud::new();
    let up = cloud.tsunami([OsStr::new("up"), two_groups(&cloud, "45m").as_os_str()]);
    let run = up.assert_status(0).stdout.trim().to_owned();
    let id = cloud.emulator.living()[0]["id"].as_str().unwrap().to_owned();
    cloud.emulator.post("protect", &json!({"instance": id}));
    cloud.emulator.post("permissions", &json!({"deny": ["ec2:ModifyInstanceAttribute"]}));
    let command = format!(
        "aws ec2 modify-instance-attribute --no-disable-api-termination --instance-id {id} --region eu-west-1"
    );
    cloud.tsunami(["down", &run]).assert_status(6).assert_says(&[
        "may remain: machine ",
        &command,
        "ec2:ModifyInstanceAttribute",
    ]);
    assert_eq!(cloud.emulator.living().len(), 1);
    // `gc`, from anywhere, says the same.
    cloud.emulator.configure(json!({"clock_skew": 3600.0}));
    cloud.tsunami(["gc", "--region", "eu-west-1"]).assert_status(6).assert_says(&[&command]);
    cloud.emulator.configure(json!({"clock_skew": 0.0}));
    // Somebody who may follows the advice; the run's own user still may not.
    cloud.emulator.post("permissions", &json!({"deny": []}));
    let lifted = cloud.emulator.ec2(
        "eu-west-1",
        &[
            ("Action", "ModifyInstanceAttribute"),
            ("InstanceId", &id),
            ("DisableApiTermination.Value", "false"),
        ],
    );
    assert!(lifted.contains("200 OK"), "{lifted}");
    cloud.emulator.post("permissions", &json!({"deny": ["ec2:ModifyInstanceAttribute"]}));
    cloud.tsunami(["down", &run]).assert_status(0);
    cloud.assert_clean();
}

/// The command of tsunami's that a text names, in its last backticks.
fn named_command(said: &Ended) -> Vec<String> {
    let text = said.stderr.rsplit('`').nth(1).unwrap_or_else(|| panic!("no command: {said:?}"));
    let words = text.strip_prefix("tsunami ").unwrap_or_else(|| panic!("`{text}`: {said:?}"));
    words.split(' ').map(str::to_owned).collect()
}

#[test]
fn machines_that_nobody_may_end_are_named_at_once_and_the_command_named_ends_them_once_that_is_mended() {
    let cloud = Cloud::new();
    let deny = |actions: &[&str]| cloud.emulator.post("permissions", &json!({"deny": actions}));
    deny(&["ec2:TerminateInstances"]);
    let begun = Instant::now();
    let ran = cloud.run(&two_groups(&cloud, "45m"));
    let cause = "lack the permission ec2:TerminateInstances";
    ran.assert_status(6).assert_says(&["may remain: machine i-", cause]);
    // It names another one, which says the cause as well, and what comes first.
    let down = named_command(&ran);
    assert_eq!(down[0], "down");
    let again = cloud.tsunami(&down);
    again.assert_status(6).assert_says(&["may remain: machine i-", cause, "once what keeps it is mended"]);
    assert_eq!(named_command(&again), down);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(cloud.emulator.living().len(), 2);
    deny(&[]);
    cloud.tsunami(&down).assert_status(0);
    cloud.assert_clean();
}

#[test]
fn gc_names_a_command_that_works_for_a_run_that_is_recorded_elsewhere() {
    let cloud = Cloud::new();
    let up = cloud.tsunami([OsStr::new("up"), two_groups(&cloud, "45m").as_os_str()]);
    let run = up.assert_status(0).stdout.trim().to_owned();
    fs::remove_dir_all(cloud.world.path("state")).unwrap();
    fs::create_dir(cloud.world.path("state")).unwrap();
    cloud.emulator.configure(json!({"clock_skew": 3600.0}));
    cloud.emulator.post("permissions", &json!({"deny": ["ec2:TerminateInstances"]}));
    let gc = cloud.tsunami(["gc", "--region", "eu-west-1"]);
    gc.assert_status(6).assert_says(&[&run, "lack the permission ec2:TerminateInstances"]);
    let again = named_command(&gc);
    assert_eq!(again, ["gc", "--region", "eu-west-1"]);
    cloud.emulator.post("permissions", &json!({"deny": []}));
    cloud.tsunami(&again).assert_status(0);
    cloud.emulator.assert_empty();
    cloud.emulator.configure(json!({"clock_skew": 0.0}));
}

#[test]
fn a_run_is_looked_for_nowhere_but_at_its_own_endpoint() {
    let cloud = Cloud::new();
    let up = cloud.tsunami([OsStr::new("up"), two_groups(&cloud, "45m").as_os_str()]);
    let run = up.assert_status(0).stdout.trim().to_owned();
    let id = cloud.emulator.living()[0]["id"].as_str().unwrap().to_owned();
    let other = Emulator::without_machines();
    for command in [&["down", &run][..], &["ls"], &["gc", "--mine"]] {
        let elsewhere = cloud.command(command).env("AWS_ENDPOINT_URL", other.endpoint()).output().unwrap();
        let said = Ended::from(elsewhere);
        if command[0] == "gc" {
            // It is kept, and so nobody's to remove.
            said.assert_status(0);
        } else {
            said.assert_status(6).assert_says(&[&run, &id, "set AWS_ENDPOINT_URL"]);
        }
    }
    // Also where only EC2's own endpoint is another.
    let elsewhere =
        cloud.command(["down", &run]).env("AWS_ENDPOINT_URL_EC2", other.endpoint()).output().unwrap();
    Ended::from(elsewhere).assert_status(6).assert_says(&[&id, "set AWS_ENDPOINT_URL"]);
    assert_eq!(other.calls().len(), 0, "another endpoint was asked");
    let file = cloud.world.path("state/tsunami/runs").join(&run).join("record.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let settings = record["settings"].as_object_mut().unwrap();
    let digest = settings.remove("endpoint").unwrap();
    assert!(digest.as_str().unwrap().bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest}");
    assert!(!record.to_string().contains("127.0.0.1"), "{record}");
    // As records of old are.
    fs::write(&file, record.to_string()).unwrap();
    cloud.tsunami(["down", &run]).assert_status(0);
    cloud.assert_clean();
}
