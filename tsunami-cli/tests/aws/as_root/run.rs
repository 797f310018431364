//! Whole runs.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cloud::Cloud;
use crate::world::eventually;

const SPOT_THEN_ON_DEMAND: &str = "region = \"eu-west-1\"\nmarket = [\"spot\", \"on-demand\"]";
const SERVER: &str = "instance = \"c7g.xlarge\"";
const CLIENTS: &str = "instance = [\"c7g.large\", \"c6g.large\"]";

fn report(cloud: &Cloud) -> Value {
    serde_json::from_slice(&fs::read(cloud.world.results().join("run.json")).unwrap()).unwrap()
}

#[test]
fn a_server_and_three_clients_run_and_leave_nothing() {
    let cloud = Cloud::new();
    let file = cloud.server_and_clients(SPOT_THEN_ON_DEMAND, SERVER, CLIENTS);
    cloud.run(&file).assert_status(0);
    for client in 0..3 {
        let out = cloud.world.results().join(format!("trials/1/load/client-{client}/out.csv"));
        assert_eq!(fs::read_to_string(out).unwrap(), "set up\n");
    }
    let run = report(&cloud);
    assert_eq!(run["provider"], "aws");
    let server = &run["machines"]["server-0"];
    assert!(server["description"].as_str().unwrap().starts_with("c7g.xlarge in eu-west-1"), "{server}");
    let kind = &server["kind"];
    assert_eq!((&kind["type"], &kind["region"]), (&json!("c7g.xlarge"), &json!("eu-west-1")), "{server}");
    assert!(kind["image"].as_str().unwrap().starts_with("ami-"), "{server}");
    // Each point of a machine's way up is known, in this order.
    let points = ["requested", "launched", "running", "answered", "connected", "verified", "ready"];
    for machine in run["machines"].as_object().unwrap().values() {
        let times = points.map(|point| machine[point].as_f64());
        assert!(times[0].is_some() && times.is_sorted(), "{machine}");
    }
    assert!(run["estimated_cost"].as_f64().unwrap() > 0.0, "{run}");
    cloud.assert_clean();
}

#[test]
fn two_regions_work_together() {
    let cloud = Cloud::new();
    let file = cloud.server_and_clients(
        "open_ports = [7777]\nmarket = \"spot-block\"",
        &format!("{SERVER}\nregion = \"eu-west-1\""),
        &format!("{CLIENTS}\nregion = \"us-east-1\""),
    );
    cloud.run(&file).assert_status(0);
    let out = cloud.world.results().join("trials/1/load/client-2/out.csv");
    assert_eq!(fs::read_to_string(out).unwrap(), "set up\n");
    cloud.assert_clean();
}

/// As an Instance Connect Endpoint does: a command that is told a machine's id leads to its private address.
#[test]
fn machines_without_public_addresses_are_reached_by_a_proxy_that_is_told_their_ids() {
    let cloud = Cloud::new();
    let file = cloud.server_and_clients(
        "region = \"eu-west-1\"\nreach = \"private\"\ninstance = \"c7g.large\"",
        "",
        "",
    );
    let way = cloud.world.write(
        "way",
        "#!/bin/bash\necho \"$1 $2\" >> \"$0.said\"\nexec 3<>/dev/tcp/$2/$3; cat <&3 & exec cat >&3\n",
    );
    fs::set_permissions(&way, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}\n[ssh]\nproxy = [\"./way\", \"{{id}}\", \"{{host}}\", \"{{port}}\"]\n"))
        .unwrap();
    let plan = cloud.tsunami([std::ffi::OsStr::new("plan"), file.as_os_str()]);
    plan.assert_status(0).assert_shows(&["private ones (172.31.0.0/16)", "SSH is open to 172.31.0.0/16"]);
    cloud.run(&file).assert_status(0);
    let instances = cloud.emulator.instances();
    let said = fs::read_to_string(cloud.world.path("work/way.said")).unwrap();
    for instance in &instances {
        let private = said.lines().find_map(|line| line.strip_prefix(instance["id"].as_str().unwrap()));
        assert!(private.is_some_and(|address| address.starts_with(" 127.")), "{instance} {said}");
    }
    assert_eq!(instances.len(), 4);
    cloud.assert_clean();
}

#[test]
fn without_spot_it_runs_on_demand_and_says_so() {
    let cloud = Cloud::new();
    cloud.emulator.post("capacity", &json!([{"market": "spot", "free": 0}]));
    let file = cloud.server_and_clients(SPOT_THEN_ON_DEMAND, SERVER, CLIENTS);
    cloud.run(&file).assert_status(0).assert_says(&["trying on-demand next", "Capacity"]);
    cloud.assert_clean();
}

#[test]
fn a_plan_tells_prices_and_asks_for_nothing() {
    let cloud = Cloud::new();
    let file = cloud.server_and_clients(SPOT_THEN_ON_DEMAND, SERVER, CLIENTS);
    let plan = cloud.tsunami([std::ffi::OsStr::new("plan"), file.as_os_str()]);
    plan.assert_status(0).assert_shows(&[
        "c7g.xlarge in eu-west-1",
        "spot",
        "on-demand",
        "/h each",
        "SSH is open to 127.0.0.1/32",
        "at most",
        "within the budget of $2.00",
    ]);
    let created = cloud.emulator.calls().into_iter().filter(|call| {
        ["Create", "Run", "Import", "Authorize", "Delete"].iter().any(|verb| call.action.starts_with(verb))
    });
    assert_eq!(created.count(), 0);
    let text = fs::read_to_string(&file).unwrap().replace("budget = 2.0", "budget = 0.1");
    fs::write(&file, text).unwrap();
    cloud.run(&file).assert_status(3).assert_says(&["more than its budget of $0.10"]);
    cloud.assert_clean();
}

#[test]
fn the_examples_can_be_planned_and_fit_their_budgets() {
    let cloud = Cloud::new();
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/experiments/redis");
    for name in ["experiment.toml", "two-regions.toml"] {
        let plan = cloud.tsunami([std::ffi::OsString::from("plan"), examples.join(name).into()]);
        plan.assert_status(0).assert_shows(&["within the budget"]);
    }
    cloud.assert_clean();
}

#[test]
fn what_cannot_be_had_is_said_within_seconds_and_leaves_nothing() {
    let cloud = Cloud::new();
    let refused = |aws: &str, status: i32, says: &[&str]| {
        let begun = Instant::now();
        let file = cloud.server_and_clients(aws, "", "");
        let ended = cloud.run(&file);
        ended.assert_status(status).assert_says(says);
        assert!(!ended.stderr.contains("launching"), "{}", ended.stderr);
        println!("{says:?} after {:.1} s", begun.elapsed().as_secs_f64());
        let _ = fs::remove_dir_all(cloud.world.path("work/results"));
        cloud.assert_clean();
    };
    refused("instance = \"c7g.lrage\"\nregion = \"eu-west-1\"", 2, &["c7g.lrage", "describe-instance-types"]);
    refused("instance = \"c7g.large\"", 2, &["no region is given", "AWS_REGION"]);
    let file = cloud.server_and_clients(
        SPOT_THEN_ON_DEMAND,
        SERVER,
        &format!("{CLIENTS}\nssh_from = \"127.0.0.1/32\""),
    );
    cloud.run(&file).assert_status(2).assert_says(&["share one security group", "ssh_from"]);
    let _ = fs::remove_dir_all(cloud.world.path("work/results"));
    refused(
        "instance = \"c7g.large\"\nregion = \"eu-west-1\"\nprofile = \"nobody\"",
        3,
        &["NoCredentials", "the profile `nobody`", "aws configure list-profiles"],
    );
    cloud.emulator.post("permissions", &json!({"deny": ["ec2:DescribeImages"]}));
    refused(
        "instance = \"c7g.large\"\nregion = \"eu-west-1\"",
        3,
        &["UnauthorizedOperation", "ec2:DescribeImages"],
    );
}

#[test]
fn a_machine_without_a_deadline_does_not_stay() {
    let cloud = Cloud::new();
    // What the first boot armed is taken away before anybody looks.
    let spoil = cloud.emulator.machines();
    let spoiler = std::thread::spawn(move || {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            for machine in fs::read_dir(&spoil).into_iter().flatten().flatten() {
                let root = machine.path().join("root");
                if root.join("run/tsunami/beat").exists() {
                    fs::remove_file(root.join("usr/local/bin/tsunami-deadline")).unwrap();
                    return;
                }
            }
        }
    });
    let file = cloud.server_and_clients(SPOT_THEN_ON_DEMAND, SERVER, CLIENTS);
    let ended = cloud.run(&file);
    spoiler.join().unwrap();
    // Either the boothook itself found out and powered the machine off, or the controller did.
    ended.assert_status(4);
    cloud.assert_clean();
}

#[test]
fn a_machine_that_answers_logins_with_words_is_quoted() {
    let cloud = Cloud::new();
    let words = "Please login as the user \"ubuntu\" rather than the user \"root\".";
    cloud.emulator.configure(json!({"login_words": words}));
    let file = cloud.server_and_clients(SPOT_THEN_ON_DEMAND, SERVER, CLIENTS);
    let begun = Instant::now();
    let ended = cloud.run(&file);
    ended.assert_status(4).assert_says(&[words, "`user`"]);
    assert!(!ended.stderr.contains("setsid"), "{}", ended.stderr);
    println!("said after {:.1} s", begun.elapsed().as_secs_f64());
    cloud.assert_clean();
}

#[test]
fn what_a_young_machine_refuses_is_asked_again_and_what_it_shows_wrongly_is_never_trusted() {
    for manner in ["key_delay", "other_host_key", "boot_delay"] {
        let cloud = Cloud::new();
        cloud.emulator.configure(json!({manner: 6.0}));
        let file = cloud.server_and_clients(SPOT_THEN_ON_DEMAND, SERVER, CLIENTS);
        let ended = cloud.run(&file);
        ended.assert_status(0);
        assert!(!ended.stderr.contains("@@@"), "ssh's banner: {}", ended.stderr);
        cloud.assert_clean();
        // For as long as the file says, and then the setting is named.
        cloud.emulator.configure(json!({manner: 60.0}));
        let text = fs::read_to_string(&file).unwrap() + "\n[ssh]\nconnect_timeout = \"8s\"\n";
        fs::write(&file, text).unwrap();
        let _ = fs::remove_dir_all(cloud.world.path("work/results"));
        let ended = cloud.run(&file);
        let says = if manner == "other_host_key" {
            "it shows another host key than the run's"
        } else {
            "connect_timeout"
        };
        ended.assert_status(4).assert_says(&[says]);
        cloud.assert_clean();
    }
}

#[test]
fn a_machine_that_ends_before_it_runs_is_told_with_the_reason_of_ec2() {
    let cloud = Cloud::new();
    cloud.emulator.configure(json!({
        "start_error": ["Client.InternalError", "Client error on launch"], "shutting_down": 1.0,
    }));
    let file = cloud.server_and_clients(SPOT_THEN_ON_DEMAND, SERVER, CLIENTS);
    let says = ["Client.InternalError: Client error on launch", "KMS key"];
    cloud.run(&file).assert_status(4).assert_says(&says);
    cloud.assert_clean();
}

/// The beginning of an experiment whose interrupted machines are replaced.
const REPLACED: &str = r#"
name = "interrupted"
provider = "aws"
lifetime = "30m"
[aws]
region = "eu-west-1"
market = "spot-block"
user = "root"
instance = "c7g.large"
on_interruption = "replace"
"#;

#[test]
fn an_interrupted_machine_is_replaced_and_the_trial_done_again() {
    let cloud = Cloud::new();
    let file = cloud.world.write(
        "experiment.toml",
        &[
            REPLACED,
            r#"
        [group.node]
        count = 2
        [[step]]
        name = "measure"
        on = "node"
        run = "date +%s.%N > out.txt; sleep 4"
        collect = ["out.txt"]
        "#,
        ]
        .concat(),
    );
    let mut going = cloud.start(&file);
    going.wait_for(&["\"event\":\"step_started\""]);
    let victim = cloud.emulator.living()[0]["id"].as_str().unwrap().to_owned();
    cloud.emulator.post("interrupt", &json!({"instance": victim, "notice": 20}));
    let ended = going.end();
    ended.assert_status(0).assert_says(&["interrupted", "trial 1 doesn't count"]);
    let run = report(&cloud);
    let interrupted: Vec<_> =
        run["machines"].as_object().unwrap().values().filter(|m| !m["interrupted"].is_null()).collect();
    assert_eq!(interrupted.len(), 1, "{run}");
    // What the interrupted trial brought home is not among the clean one's.
    let trials = cloud.world.results().join("trials");
    assert!(
        trials.join("1/measure/node-0/out.txt").exists() && trials.join("1/measure/node-1/out.txt").exists()
    );
    assert!(trials.join("1.1").exists());
    assert_eq!(cloud.emulator.instances().len(), 3);
    cloud.assert_clean();
}

#[test]
fn the_clients_of_an_interrupted_server_do_not_wait_for_it_but_for_its_replacement() {
    let cloud = Cloud::new();
    let file = cloud.world.write(
        "experiment.toml",
        &[
            REPLACED,
            r#"
        [group.server]
        [group.client]
        [[step]]
        name = "serve"
        on = "server"
        start = "setsid sleep 98765 & echo $! > started; sleep 1000"
        ready = { command = "test -e started" }
        [[step]]
        name = "load"
        on = "client"
        run = """
test -e again || { touch again; sleep 600; }
echo $TSUNAMI_SERVER_IPS > server.txt
pgrep -fc '^sleep 98765$' > servers.txt || true
"""
        collect = ["*.txt"]
        "#,
        ]
        .concat(),
    );
    let mut going = cloud.start(&file);
    going.wait_for(&["\"command_started\"", "again"]);
    let server =
        cloud.emulator.living().into_iter().find(|it| it["tags"]["tsunami:group"] == "server").unwrap();
    cloud.emulator.post("interrupt", &json!({"instance": server["id"], "notice": 60}));
    going.end().assert_status(0);
    let collected = cloud.world.results().join("trials/1/load/client-0");
    let told = fs::read_to_string(collected.join("server.txt")).unwrap();
    assert_ne!(told.trim(), server["private"].as_str().unwrap(), "the old server's address");
    // All of these machines share one computer.
    let servers = fs::read_to_string(collected.join("servers.txt")).unwrap();
    assert_eq!(servers.trim(), "1", "the new server works, the old one does not");
    let run = report(&cloud);
    assert!(run["machines"]["server-0"]["gone"].is_null(), "{run}");
    cloud.assert_clean();
}

#[test]
fn an_interruption_that_only_the_machine_hears_of_is_a_lost_machine_where_none_is_replaced() {
    let cloud = Cloud::new();
    let file = cloud.server_and_clients(
        &format!("{SPOT_THEN_ON_DEMAND}\nwait_for_cloud_init = false"),
        SERVER,
        CLIENTS,
    );
    let text = fs::read_to_string(&file).unwrap().replace("tee out.csv", "tee out.csv; sleep 30");
    fs::write(&file, text).unwrap();
    let mut going = cloud.start(&file);
    going.wait_for(&["\"event\":\"step_started\"", "load"]);
    let spot = cloud.emulator.living().into_iter().find(|it| it["type"] != "c7g.xlarge").unwrap();
    cloud.emulator.post("interrupt", &json!({"instance": spot["id"], "notice": 25, "outside": false}));
    let says = ["interrupted in stage load", "as the machine was told: terminate at 20"];
    going.end().assert_status(4).assert_says(&says);
    cloud.assert_clean();
}

#[test]
fn the_deadline_ends_machines_whose_controller_was_killed() {
    let cloud = Cloud::new();
    let file = cloud.server_and_clients(SPOT_THEN_ON_DEMAND, SERVER, CLIENTS);
    let text = fs::read_to_string(&file).unwrap().replace("lifetime = \"45m\"", "lifetime = \"20s\"");
    fs::write(&file, text.replace("tee out.csv", "tee out.csv; sleep 30")).unwrap();
    let mut going = cloud.start(&file);
    going.wait_for(&["\"event\":\"step_started\""]);
    let begun = Instant::now();
    going.signal(Signal::KILL);
    going.end();
    let run = cloud.world.runs().pop().unwrap();
    cloud.tsunami(["ls"]).assert_says(&[&format!("`tsunami down {run}` removes it")]);
    while !cloud.emulator.living().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", cloud.emulator.living());
        std::thread::sleep(Duration::from_millis(200));
    }
    println!(
        "all machines ended themselves {:.0} s after the controller was killed",
        begun.elapsed().as_secs_f64()
    );
    // The rest costs nothing, and goes when it is asked to.
    cloud.tsunami(["down", &run]).assert_status(0);
    cloud.assert_clean();
}

#[test]
fn machines_that_are_up_are_listed_entered_used_and_torn_down_by_other_processes() {
    let cloud = Cloud::new();
    let file = cloud.server_and_clients(SPOT_THEN_ON_DEMAND, SERVER, CLIENTS);
    let up = cloud.tsunami([std::ffi::OsStr::new("up"), file.as_os_str()]);
    let run = up.assert_status(0).stdout.trim().to_owned();
    let ls = cloud.tsunami(["ls"]);
    assert!(ls.assert_status(0).stdout.contains("4/4"), "{}", ls.stdout);
    let exec = cloud.tsunami(["exec", &run, "-g", "client", "--", "echo hello from $HOME"]);
    assert_eq!(exec.assert_status(0).stdout.lines().filter(|line| line.contains("hello from")).count(), 3);
    let ssh = cloud.tsunami(["ssh", &run, "server-0", "--", "tsunami-deadline", "status"]);
    assert!(ssh.assert_status(0).stdout.starts_with("armed "), "{}", ssh.stdout);
    cloud
        .tsunami([std::ffi::OsStr::new("run"), std::ffi::OsStr::new("--on"), run.as_ref(), file.as_os_str()])
        .assert_status(0);
    assert_eq!(cloud.emulator.living().len(), 4);
    cloud.tsunami(["down", &run]).assert_status(0);
    cloud.assert_clean();
}

#[test]
fn a_signal_tears_down_whatever_is_under_way() {
    for (stage, signal) in [
        ("launching", Signal::INT),
        ("running", Signal::TERM),
        ("connected", Signal::HUP),
        ("ready", Signal::INT),
    ] {
        let cloud = Cloud::new();
        let file = cloud.server_and_clients(SPOT_THEN_ON_DEMAND, SERVER, CLIENTS);
        let mut going = cloud.start(&file);
        going.wait_for(&[&format!("\"event\":\"{stage}\"")]);
        going.signal(signal);
        going.end().assert_status(5);
        cloud.assert_clean();
    }
}

#[test]
fn a_second_signal_gives_the_terminal_back_and_names_what_remains() {
    let cloud = Cloud::new();
    cloud.emulator.configure(json!({"shutting_down": 10}));
    let file = cloud.server_and_clients(SPOT_THEN_ON_DEMAND, SERVER, CLIENTS);
    let mut going = cloud.start(&file);
    going.wait_for(&["\"event\":\"ready\""]);
    going.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(1500));
    let begun = Instant::now();
    going.signal(Signal::INT);
    let ended = going.end();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let run = cloud.world.runs().pop().unwrap();
    ended.assert_status(6).assert_says(&["may remain", &format!("`tsunami down {run}`")]);
    cloud.emulator.configure(json!({"shutting_down": 0.2}));
    cloud.tsunami(["down", &run]).assert_status(0);
    eventually("nothing is left", || match cloud.emulator.remaining() {
        left if left.is_empty() => Ok(()),
        left => Err(left.join("\n")),
    });
    cloud.assert_clean();
}
