//! The commands for machines that are up.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::world::{Ended, Going, World, binary, checks, eventually, of};

#[test]
fn machines_that_are_up_can_be_used_and_taken_down() {
    let world = World::new();
    let file =
        world.write("x.toml", "name = 'x'\n[group.a]\nsetup = 'echo preparing'\n[group.b]\ncount = 2\n");
    let up = world.tsunami([&"up".into(), &file]);
    let run = up.assert_status(0).stdout.trim().to_owned();
    up.assert_says(&["3 machines up for ", "costs nothing", "tsunami ssh", &format!("--on {run}")]);

    let ls = world.tsunami(["ls", "--json"]);
    let row: serde_json::Value = serde_json::from_str(&ls.stdout).unwrap();
    assert_eq!(row["schema"], 1);
    assert_eq!(
        (&row["run"], &row["state"], &row["machines_running"]),
        (&run.clone().into(), &"kept".into(), &3.into())
    );

    let exec = world.tsunami([
        "exec",
        &run,
        "-g",
        "b",
        "--",
        "echo to out; echo to err >&2; exit $((TSUNAMI_RUN_ID))",
    ]);
    assert_ne!(exec.status, Some(0));
    let exec = world.tsunami(["exec", &run, "-g", "b", "--", "echo to out; echo to err >&2"]);
    let mut lines: Vec<&str> = exec.assert_status(0).stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["b-0 | to out", "b-1 | to out"]);
    assert!(exec.stderr.contains("b-0 | to err"), "{}", exec.stderr);
    let one = world.tsunami(["exec", &run[..16], "-m", "a-0", "--", "printf", "%s", "a  $HOME 'b'"]);
    assert_eq!(one.assert_status(0).stdout, "a  $HOME 'b'");
    world.tsunami(["exec", &run, "--", "exit $(( $(echo $HOME | grep -c b-1) * 40 ))"]).assert_status(40);
    world.tsunami(["exec", &run, "--", "kill -9 $$"]).assert_status(137);
    world
        .tsunami(["exec", &run, "-m", "c-9", "--", "true"])
        .assert_status(125)
        .assert_says(&["no such machine or group: c-9"]);
    world.tsunami(["exec", "nobody", "--", "true"]).assert_status(125).assert_says(&["no run `nobody`"]);

    let ssh = world.tsunami(["ssh", "x", "b-1", "--", "sh", "-c", "pwd; exit 5"]);
    assert!(ssh.assert_status(5).stdout.trim().ends_with("b-1/home"), "{}", ssh.stdout);
    world.tsunami(["ssh", "x", "a-0", "--", "kill -9 $$"]).assert_status(137);
    world.tsunami(["ssh", "x"]).assert_status(125).assert_says(&["say which machine", "a-0, b-0, b-1"]);

    let plain =
        world.shell(r#""$@" > inventory && exec ssh -F inventory b-1 pwd"#, ["inventory", &run]).output();
    let plain = Ended::from(plain.unwrap());
    assert!(plain.assert_status(0).stdout.trim().ends_with("b-1/home"), "{}", plain.stdout);
    let ansible = world.tsunami(["inventory", &run, "--format", "ansible"]);
    assert!(ansible.assert_status(0).stdout.starts_with("[a]\na-0 "), "{}", ansible.stdout);
    let listing = world.tsunami(["inventory", &run, "--format", "json"]).assert_status(0).stdout.clone();
    let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
    assert_eq!(listing["machines"][2]["name"], "b-1");

    fs::create_dir_all(world.path("work/tree/sub")).unwrap();
    world.write("tree/sub/file", "content");
    world.tsunami(["cp", &run, "tree", "x.toml", "b:place/"]).assert_status(0);
    world.tsunami(["cp", &run, "b:place/tree/sub", "back"]).assert_status(0);
    assert_eq!(fs::read_to_string(world.path("work/back/b-1/sub/file")).unwrap(), "content");
    for _ in 0..2 {
        world.tsunami(["cp", &run, "b-0:place/.", "all"]).assert_status(0);
        assert_eq!(fs::read_to_string(world.path("work/all/tree/sub/file")).unwrap(), "content");
    }
    world.tsunami(["cp", &run, "b-0:place/x.toml", "copy.toml"]).assert_status(0);
    assert_eq!(fs::read(world.path("work/copy.toml")).unwrap(), fs::read(&file).unwrap());
    for round in ["one", "two"] {
        world
            .tsunami(["cp", &run, "b-0:place/x.toml", "b-0:place/tree", "b-0:place/t*", round])
            .assert_status(0);
        assert_eq!(
            fs::read(world.path("work").join(round).join("x.toml")).unwrap(),
            fs::read(&file).unwrap()
        );
        assert_eq!(fs::read_dir(world.path("work").join(round)).unwrap().count(), 2);
    }
    world.tsunami(["cp", &run, "b-0:place/tree", "renamed"]).assert_status(0);
    assert_eq!(fs::read_to_string(world.path("work/renamed/sub/file")).unwrap(), "content");
    world
        .tsunami(["cp", &run, "b-0:missing", "."])
        .assert_status(1)
        .assert_says(&["b-0: stage copy failed", "there is no missing"]);
    world.tsunami(["cp", &run, "missing", "b:"]).assert_status(2).assert_says(&["there is no missing"]);
    world.tsunami(["cp", &run, "x.toml", "y.toml"]).assert_status(2).assert_says(&["MACHINE:path"]);

    let logs = world.tsunami(["logs", &run]);
    let expected = "a-0  setup | $ echo preparing\na-0  setup | preparing\na-0  setup | # status 0 after ";
    assert!(logs.assert_status(0).stdout.starts_with(expected), "{}", logs.stdout);
    let followed = world.tsunami(["logs", &run, "-f"]);
    assert_eq!(followed.assert_status(0).assert_says(&["nothing is going on there"]).stdout, logs.stdout);
    let by_group = world.tsunami(["logs", &run, "a", "b-1"]);
    assert_eq!(
        by_group.assert_status(2).assert_says(&["no logs of b-1; there are those of a-0"]).stdout,
        logs.stdout
    );

    world.tsunami(["cp", &run, "x.toml", "d:"]).assert_status(2).assert_says(&["group `d`; it has a-0, b-0"]);
    // One that is lost keeps nothing from the others.
    let sshd = world.processes().into_iter().find(|process| process.contains("/b-1/sshd_config")).unwrap();
    let sshd = sshd.split(' ').next().unwrap().parse().ok().and_then(Pid::from_raw).unwrap();
    kill_process(sshd, Signal::KILL).unwrap();
    let lost = ["b-1", "is not running any more"];
    world.tsunami(["cp", &run, "x.toml", "b:late"]).assert_status(4).assert_says(&lost);
    world.tsunami(["cp", &run, "b:late", "late"]).assert_status(4).assert_says(&lost);
    assert_eq!(fs::read(world.path("work/late/b-0/late")).unwrap(), fs::read(&file).unwrap());
    world.tsunami(["exec", &run, "-g", "b", "--", "true"]).assert_status(255).assert_says(&lost);
    world.tsunami(["forward", &run, "b-1", "0:80"]).assert_status(255).assert_says(&lost);

    world.tsunami(["down", &run]).assert_status(0).assert_says(&["everything is gone"]);
    world.tsunami(["down", &run]).assert_status(2).assert_says(&["no run"]);
    // The logs are in the results, which are still there.
    let results = world.results();
    for name in [run.as_str(), "x", results.to_str().unwrap()] {
        assert_eq!(world.tsunami(["logs", name, "a-0"]).assert_status(0).stdout, logs.stdout, "{name}");
    }
    world.assert_clean();
}

#[test]
fn terminals_ports_and_many_machines_are_as_if_they_were_here() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\n[group.long]\ncount = 3\n");
    let run = world.tsunami([&"up".into(), &file]).assert_status(0).stdout.trim().to_owned();
    let on_terminal = |steps: serde_json::Value, args: &[&str]| {
        let mut command = world.shell("exec /usr/bin/python3 -c \"$DRIVER\" \"$STEPS\" \"$@\"", args);
        command.env("DRIVER", include_str!("terminal.py")).env("STEPS", steps.to_string());
        Ended::from(command.output().unwrap())
    };
    // The sshd of an ordinary user gives terminals only where they are the group's that sshd wants them to be.
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let is_usual = |mount: &str| mount.contains(" devpts ") && mount.contains("gid=");
    if rustix::process::geteuid().is_root() || mounts.lines().any(is_usual) {
        let steps = json!([
            ["size", 30, 100],
            ["send", "PS1='ready'; echo st''art\n"],
            ["expect", "start"],
            ["send", "stty size; echo \"<$TSUNAMI_NAME $TSUNAMI_INDEX $TSUNAMI_LONG_IPS>\"; pwd\n"],
            ["expect", "30 100"],
            ["expect", "<long-1 1 127."],
            ["expect", "long-1/home"],
            ["send", "sh -c 'trap \"stty size\" WINCH; echo wait\"\"ing; while :; do sleep 0.1; done'\n"],
            ["expect", "waiting"],
            ["size", 40, 132],
            ["expect", "40 132"],
            ["send", "\u{3}"],
            ["expect", "ready"],
            ["send", "echo inter''rupted; exit 3\n"],
            ["expect", "interrupted"],
        ]);
        on_terminal(steps, &["ssh", &run, "long-1"]).assert_status(3);
        // Ctrl-C is for the command, which may go on.
        let line = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.1; done";
        let steps = json!([["expect", "ready"], ["send", "\u{3}"], ["expect", "caught"]]);
        let caught = on_terminal(steps, &["ssh", &run, "a", "--", line]);
        assert!(!caught.assert_status(7).stdout.contains("closed"), "{}", caught.stdout);
        let steps = json!([["expect", "ready"], ["send", "\u{3}"]]);
        on_terminal(steps, &["ssh", &run, "a", "--", "echo ready; exec sleep 600"]).assert_status(130);
    } else {
        let steps = json!([
            ["expect", "no terminal"],
            ["send", "echo \"<$TSUNAMI_NAME>\"; exit 3\n"],
            ["expect", "<long-1>"]
        ]);
        on_terminal(steps, &["ssh", &run, "long-1"]).assert_status(3);
        let steps = json!([["expect", "the command runs without one"]]);
        on_terminal(steps, &["ssh", &run, "long-1", "--", "true"]).assert_status(0);
    }
    let words = ["ssh", &run, "a", "--", "sh", "-c", "echo $TSUNAMI_GROUP $TSUNAMI_A_IPS"];
    assert!(world.tsunami(words).assert_status(0).stdout.starts_with("a 127."));

    let line = "echo \"$TSUNAMI_NAME ${TSUNAMI_LONG_IPS%% *}\" | cut -c -8; exit $TSUNAMI_INDEX";
    let exec = world.tsunami(["exec", &run, "--sorted", "--", line]);
    let lines = "a-0    | a-0 127.\nlong-0 | long-0 1\nlong-1 | long-1 1\nlong-2 | long-2 1\n";
    assert_eq!(exec.assert_status(2).stdout, lines);
    assert_eq!(exec.stderr, "error: it failed on 2 of 4 machines\n  status 1: long-1\n  status 2: long-2\n");
    let coloured = world.tsunami(["exec", &run, "--color", "always", "-g", "long", "--", "exit 3"]);
    let said = "it failed on 3 of 3 machines\n  \u{1b}[31mstatus 3\u{1b}[0m: long-0 to long-2\n";
    coloured.assert_status(3).assert_says(&[said]);
    let json = world.tsunami(["exec", &run, "--json", "--", "echo \"$TSUNAMI_NAME\"; kill -9 $$"]);
    let mut lines: Vec<serde_json::Value> =
        json.assert_status(137).stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines.sort_by_key(|line| (line["machine"].to_string(), line.get("status").is_some()));
    assert_eq!(lines[0], json!({ "schema": 1, "machine": "a-0", "stream": "stdout", "line": "a-0" }));
    let end = json!({ "schema": 1, "machine": "a-0", "status": 137, "exit": { "signal": 9 }, "error": null });
    assert_eq!((&lines[1], lines.len()), (&end, 8));
    for flag in ["--json", "--sorted"] {
        let mut command = world.command(["exec", &run, flag, "-m", "a-0", "--", "printf it"]);
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ended = Ended::from(command.stdout(full).stderr(Stdio::piped()).output().unwrap());
        ended.assert_status(125).assert_says(&["a-0", "No space left on device"]);
    }
    let late = world.tsunami(["exec", &run, "--timeout", "1s", "--", "sleep", "600"]);
    late.assert_status(124).assert_says(&["a-0: ", "timed out after 1s", "the same, 3 times more"]);

    let server = "exec python3 -u -m http.server 0 --bind $TSUNAMI_IP";
    let mut server = Going::of(world.command(["exec", &run, "-m", "a-0", "--", server]));
    let serving = server.wait_for(&["Serving HTTP on 127."]);
    let port = serving.split_whitespace().skip_while(|word| *word != "port").nth(1).unwrap();
    let mut forward = Going::of(world.command(["forward", &run, "a", &format!("0:{port}"), "0:1"]));
    let mut here =
        || forward.wait_for(&["http://127.0.0.1:"]).trim().strip_prefix("http://").unwrap().to_owned();
    let (page, nothing) = (here(), here());
    let get = |address: &str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer));
        answer
    };
    for _ in 0..2 {
        assert!(get(&page).contains("Directory listing for /"));
        assert_eq!(get(&nothing), "");
    }
    let taken = format!("{}:80", page.rsplit_once(':').unwrap().1);
    world.tsunami(["forward", &run, "a", &taken]).assert_status(125).assert_says(&[
        "listening for port 80",
        "can't listen on 127.0.0.1:",
        "help: `0:80` takes any",
    ]);
    forward.signal(Signal::INT);
    let ended = forward.end();
    ended.assert_status(0).assert_says(&["SIGINT: closing the ports", "a-0: ", "port 1", "nothing"]);
    assert_eq!(ended.stderr.matches("error: ").count(), 1, "{}", ended.stderr);
    server.signal(Signal::INT);
    server.end().assert_status(125);

    // Ctrl-C ends what runs there.
    let steps = json!([
        ["expect", "long-2 |"],
        ["expect", "ready"],
        ["send", "\u{3}"],
        ["expect", "ended on a-0, long-2"]
    ]);
    // Its characters may come in pieces.
    let line = "printf 'caf\\303'; sleep 0.5; printf '\\251\\n'";
    let whole = json!([["expect", "caf\u{e9}"]]);
    on_terminal(whole, &["exec", &run, "-m", "a-0", "--", line]).assert_status(0);
    let line = "echo ready; exec sleep 4711";
    on_terminal(steps, &["exec", &run, "-m", "long-2", "-g", "a", "--", line]).assert_status(125);
    let runs_on = |line: &str| world.processes().iter().any(|process| process.contains(line));
    assert!(!runs_on("sleep 4711"));
    // So does the end of whoever wanted it, whatever ended that.
    for (line, signals) in [
        ("echo ready; exec sleep 4712", &[Signal::KILL][..]),
        ("setsid -w sh -c 'echo ready; exec sleep 4712'", &[Signal::KILL]),
        ("trap '' TERM; echo ready; sleep 4712", &[Signal::INT, Signal::INT]),
    ] {
        let mut exec = Going::of(world.command(["exec", &run, "-m", "long-2", "--", line]));
        exec.wait_for(&["ready"]);
        for signal in signals {
            exec.signal(*signal);
            // A second one that comes at once is taken for the first.
            std::thread::sleep(std::time::Duration::from_millis(1200));
        }
        let ended = exec.end();
        if let [_, _] = signals {
            let says = ["may still be running on long-2", &format!("tsunami down {run}")];
            ended.assert_status(125).assert_says(&says);
        }
        eventually("the command has ended", || {
            if runs_on("sleep 4712") { Err(line.to_owned()) } else { Ok(()) }
        });
    }
    // Where contact is lost, nobody knows.
    let mut exec =
        Going::of(world.command(["exec", &run, "-m", "long-2", "--", "echo ready; exec sleep 4713"]));
    exec.wait_for(&["ready"]);
    let processes = world.processes();
    let mut sshd = processes.iter().filter(|process| process.contains("/long-2/sshd_config"));
    let sshd: i32 = sshd.next().unwrap().split(' ').next().unwrap().parse().unwrap();
    let children = fs::read_to_string(format!("/proc/{sshd}/task/{sshd}/children")).unwrap();
    for pid in children.split_whitespace().map(|pid| pid.parse().unwrap()).chain([sshd]) {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
    exec.end().assert_status(255).assert_says(&["may still be running on long-2; it ends once"]);
    world.tsunami(["down", &run]).assert_status(0);
    world.assert_clean();
}

#[test]
fn a_plan_shows_what_would_be_and_touches_nothing() {
    let world = World::new();
    let file = world.write(
        "x.toml",
        "name = 'x'\nlifetime = '5m'\n[group.a]\n[group.b]\ncount = 20\n[[step]]\non = 'b'\nrun = 'true'\n",
    );
    let plan = world.tsunami([&"plan".into(), &file]);
    plan.assert_status(0).assert_shows(&["21 machines", "5m", "20 ×", "costs nothing", "step 1"]);
    let json = world.tsunami([&"plan".into(), &file, &"--json".into()]).assert_status(0).stdout.clone();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["schema"], &json["most"], &json["trials"]), (&1.into(), &0.0.into(), &1.into()));
    assert_eq!(json["sets"][0]["groups"][1]["count"], 20);
    assert!(!world.path("work/results").exists());
    world.assert_clean();
}

#[test]
fn json_events_are_one_object_a_line() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\nsetup = 'echo \"a\"'\n");
    let run = world.tsunami([&"run".into(), &"--json".into(), &file]);
    let events: Vec<serde_json::Value> =
        run.assert_status(0).stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0], serde_json::json!({ "schema": 2 }));
    assert_eq!(events[1]["event"], "run_started");
    assert_eq!(events.last().unwrap()["event"], "run_finished");
    world.assert_clean();
}

#[test]
fn plain_output_has_no_control_characters() {
    let world = World::new();
    let text = "name = 'x'\n[group.a]\nsetup = \"printf '\\\\033]0;ow''ned\\\\007\\\\033[31mred\\\\r\\\\n' >&2; false\"\n";
    let file = world.write("x.toml", text);
    let run = world.tsunami([&"run".into(), &"-v".into(), &file]);
    run.assert_status(1).assert_says(&["red"]);
    assert!(run.stderr.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", run.stderr);
    assert!(!run.stderr.contains("owned"));
    world.assert_clean();
}

#[test]
fn a_slow_reader_loses_nothing() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\n");
    world.tsunami([&"up".into(), &file]).assert_status(0);
    let mut exec = world.command(["exec", "x", "--", "seq 1 500000"]);
    let mut child = exec.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let (mut stdout, mut buffer, mut total) = (child.stdout.take().unwrap(), vec![0; 1 << 16], 0);
    while let count @ 1.. = stdout.read(&mut buffer).unwrap() {
        total += count;
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(total, 3_388_895);
    world.tsunami(["down", "x"]).assert_status(0);
    world.assert_clean();
}

#[test]
fn nothing_is_called_gone_of_a_run_that_nothing_tells_of() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.n]\n");
    let run = world.tsunami([&"up".into(), &file]).assert_status(0).stdout.trim().to_owned();
    let directory = world.path("state/tsunami/runs").join(&run);
    let local = fs::read(directory.join("record.json")).unwrap();
    fs::write(directory.join("record.json"), "{").unwrap();
    fs::rename(directory.join("local"), world.path("local")).unwrap();
    world.tsunami(["down", &run]).assert_status(6).assert_says(&["whatever the run created", "rm -r"]);
    fs::rename(world.path("local"), directory.join("local")).unwrap();
    fs::write(directory.join("record.json"), local).unwrap();
    world.tsunami(["down", &run]).assert_status(0);
    world.assert_clean();
}

#[test]
fn a_run_with_a_broken_record_is_named_and_can_be_removed() {
    let world = World::new();
    let group = "[group.a]\ncount = '{{ n }}'\n[matrix]\nn = [2, 1]\n";
    let file =
        world.write("x.toml", &format!("name = 'x'\n{group}[[step]]\nname = 's'\non = 'a'\nrun = 'true'\n"));
    let up = world.tsunami([&"up".into(), &file]);
    up.assert_status(0).assert_says(&["only set 1 of 2 (n = 2) is launched", "2 machines up"]);
    assert!(!up.stderr.contains("--on"), "its machines can't be another run's: {}", up.stderr);
    let run = up.stdout.trim().to_owned();
    fs::write(world.path("state/tsunami/runs").join(&run).join("record.json"), "{").unwrap();
    world.tsunami(["ls"]).assert_says(&[&run, "cannot read the record"]);
    world.tsunami(["down", &run]).assert_status(0).assert_says(&["everything is gone"]);
    world.assert_clean();
}

#[test]
fn a_run_that_an_earlier_version_recorded_is_taken_down_and_one_of_a_later_version_left_alone() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\n");
    let up = || world.tsunami([&"up".into(), &file]).assert_status(0).stdout.trim().to_owned();
    let (earlier, later) = (up(), up());
    let directory = |run: &str| world.path("state/tsunami/runs").join(run);
    let edit = |run: &str, edit: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let record = directory(run).join("record.json");
        let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
        edit(value.as_object_mut().unwrap());
        fs::write(&record, serde_json::to_vec(&value).unwrap()).unwrap();
    };
    edit(&earlier, &|record| assert!(record.remove("schema").is_some()));
    let known = fs::read(directory(&later).join("record.json")).unwrap();
    edit(&later, &|record| drop(record.insert("schema".to_owned(), 1000.into())));

    let before = listing(&directory(&later));
    let why = [later.as_str(), "left alone", "later version"];
    let ls = world.tsunami(["ls", "--json"]);
    ls.assert_status(6).assert_says(&why);
    assert!(ls.stdout.contains(&earlier) && !ls.stdout.contains(&later), "{}", ls.stdout);
    world.tsunami(["down", &later]).assert_status(6).assert_says(&why);
    let down = world.tsunami(["down", "--all"]);
    down.assert_status(6).assert_says(&why).assert_says(&[&format!("{earlier}: everything is gone")]);
    assert_eq!(listing(&directory(&later)), before, "nothing of it is touched");

    // Of one that can't be read, nobody knows whether it was to be kept.
    fs::write(directory(&later).join("record.json"), "{").unwrap();
    let gc = world.tsunami(["gc", "--mine", "--dry-run"]);
    gc.assert_status(6).assert_says(&["cannot read the record", &format!("`tsunami down {later}` ends it")]);
    let all = checks(world.tsunami(["doctor", "--json"]).assert_status(0));
    assert_eq!(of(&all, &format!("run {later}"))[2], format!("tsunami down {later}"));
    fs::write(directory(&later).join("record.json"), known).unwrap();
    world.tsunami(["down", &later]).assert_status(0);
    world.assert_clean();
}

/// Another user who may write where runs are kept could name a program for ssh to run, or machines to end.
#[test]
fn runs_that_another_user_may_have_written_are_named_and_left_alone() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\n");
    let run = world.tsunami([&"up".into(), &file]).assert_status(0).stdout.trim().to_owned();
    let other = world.tsunami([&"up".into(), &file]).assert_status(0).stdout.trim().to_owned();
    let directory = world.path("state/tsunami/runs").join(&run);
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();

    // What would run if the options were believed.
    let ran = world.path("ran");
    let theirs = world.write("theirs", &format!("Match exec \"touch {}\"\n", ran.display()));
    let options = directory.join("ssh/options.json");
    let text = fs::read_to_string(&options).unwrap();
    let planted = text.replace("\"config\": null", &format!("\"config\": {theirs:?}"));
    assert_ne!(planted, text);
    fs::write(&options, planted.replace("\"jump\": null", "\"jump\": \"127.0.0.1\"")).unwrap();

    set(&directory, 0o722);
    let before = listing(&directory);
    let why = ["may be written by others", directory.to_str().unwrap(), "0722", "ls -ld"];
    let ls = world.tsunami(["ls", "--json"]);
    ls.assert_status(6).assert_says(&why).assert_says(&["unreadable"]);
    assert!(ls.stdout.contains(&other) && !ls.stdout.contains(&run), "{}", ls.stdout);
    world.tsunami(["down", &run]).assert_status(6).assert_says(&why);
    for command in ["exec", "ssh"] {
        assert_ne!(world.tsunami([command, &run, "--", "true"]).assert_says(&why).status, Some(0));
    }
    let down = world.tsunami(["down", "--all"]);
    down.assert_status(6).assert_says(&why).assert_says(&[&format!("{other}: everything is gone")]);
    assert_eq!(world.runs(), std::slice::from_ref(&run));
    assert_eq!(listing(&directory), before, "nothing of it is touched");

    // The directory above all of them is no better.
    set(&directory, 0o700);
    set(&world.path("state/tsunami/runs"), 0o777);
    world.tsunami(["down", "--all"]).assert_status(6).assert_says(&["may be written by others", &run]);
    world.tsunami([&"run".into(), &file]).assert_status(2).assert_says(&["may be written by others"]);
    set(&world.path("state/tsunami/runs"), 0o700);
    assert!(!ran.exists());

    fs::write(&options, text).unwrap();
    world.tsunami(["down", "--all"]).assert_status(0);
    world.assert_clean();
}

/// The names, modes and times of all that is in a directory.
fn listing(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        found.push(format!("{} {:o} {:?}", path.display(), metadata.mode(), metadata.modified().unwrap()));
        if metadata.is_dir() {
            found.extend(listing(&path));
        }
    }
    found.sort();
    found
}

#[test]
fn what_will_fail_for_want_of_open_files_or_is_no_secret_is_said_beforehand() {
    let world = World::new();
    let text = "name = 'x'\n[group.n]\ncount = 100\nenv = { PIN = { from_env = 'E2E_PIN' } }\n[group.few]\ncount = 2\n";
    let file = world.write("x.toml", text);
    let limited = |limit: &str| {
        let mut command = world.shell(&format!("ulimit -n {limit}; exec \"$@\""), [&"plan".into(), &file]);
        Ended::from(command.env("E2E_PIN", "1234").output().unwrap()).assert_status(0).stdout.clone()
    };
    let planned = limited("800");
    assert!(planned.contains("102 machines take about 880 open files"), "{planned}");
    assert!(planned.contains("E2E_PIN has fewer than 8 bytes"), "{planned}");
    assert!(!limited("900").contains("open files"));
}

#[test]
fn with_json_nothing_else_is_printed_and_quiet_names_what_is_kept() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\n");
    let up = world.tsunami([&"up".into(), &"--json".into(), &file]);
    for line in up.assert_status(0).stdout.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(event.is_object(), "{line}");
    }
    let kept = world.tsunami([&"run".into(), &"-q".into(), &"--keep".into(), &file]);
    let named = |run: &String| kept.stderr.contains(&format!("`tsunami down {run}`"));
    // An hour, less what the launch took.
    kept.assert_status(0).assert_says(&["the machines are kept, for ", " at most"]);
    assert!(world.runs().iter().any(named), "{}", kept.stderr);
    world.tsunami(["down", "--all"]).assert_status(0);
    world.assert_clean();
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let world = World::new();
    let text = "name = 'x'\n[group.a]\ncount = 2\nsetup = 'seq 300000'\n";
    let file = world.write("x.toml", text);
    let run = world.tsunami([&"up".into(), &file]).assert_status(0).stdout.trim().to_owned();
    let head = |args: &[&str]| {
        let mut command = world.shell("\"$@\" | head -n 1; exit ${PIPESTATUS[0]}", args);
        Ended::from(command.output().unwrap())
    };
    for (args, status) in [
        (&["logs", &run, "a-0"][..], 0),
        (&["exec", &run, "--", "yes"], 141),
        (&["exec", &run, "-m", "a-0", "--", "yes"], 141),
    ] {
        let ended = head(args);
        ended.assert_status(status);
        assert_eq!((ended.stdout.lines().count(), ended.stderr.as_str()), (1, ""), "{args:?}");
    }
    world.tsunami(["down", &run]).assert_status(0);
    world.assert_clean();
}

#[test]
fn errors_of_all_commands_have_colours_where_they_are_asked_for() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\n");
    let run = world.tsunami([&"up".into(), &file]).assert_status(0).stdout.trim().to_owned();
    let record = world.path("state/tsunami/runs").join(&run).join("record.json");
    let good = fs::read(&record).unwrap();
    fs::write(&record, "{}").unwrap();
    for args in [&["ls"][..], &["down", "nobody"], &["exec", &run, "--", "true"]] {
        let ended = world.tsunami([&["--color", "always"], args].concat());
        assert!(ended.stderr.contains("\u{1b}[1;31merror\u{1b}[0m: "), "{ended:?}");
        assert!(!world.tsunami(args).stderr.contains('\u{1b}'));
    }
    fs::write(&record, good).unwrap();
    world.tsunami(["down", &run]).assert_status(0);
    world.assert_clean();
}

#[test]
fn the_schema_and_the_reference_know_the_keys_of_all_providers() {
    let world = World::new();
    let schema = world.tsunami(["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&schema.assert_status(0).stdout).unwrap();
    let group = &schema["properties"]["group"]["additionalProperties"]["properties"];
    assert!(group["count"].is_object() && group["hosts"].is_object(), "{group}");
    assert_eq!(group["instance"].is_object(), world.has_ec2(), "{group}");
    let reference = world.tsunami(["schema", "--reference"]);
    reference.assert_status(0);
    assert!(reference.stdout.contains("| `lifetime` |") && reference.stdout.contains("**`hosts`**"));
}

/// What the program gives somebody to begin with: files that run, completions that shells read, a manual.
#[test]
fn files_to_begin_with_run_and_are_never_overwritten() {
    let world = World::new();
    for (template, more) in [("first", &[][..]), ("server", &[]), ("sweep", &["--set", "lines=1000"])] {
        let file = format!("{template}.toml");
        world.tsunami(["init", &file, "--template", template]).assert_status(0).assert_says(&["tsunami run"]);
        world.tsunami([&["plan", &file], more].concat()).assert_status(0);
        world.tsunami([&["run", &file], more].concat()).assert_status(0);
    }
    let mine = world.path("work/first.toml");
    fs::write(&mine, "mine").unwrap();
    world.tsunami(["init", "first.toml"]).assert_status(2).assert_says(&["not overwritten"]);
    assert_eq!(fs::read(mine).unwrap(), b"mine");
    let printed = world.tsunami(["init", "-", "--template", "aws"]);
    assert!(printed.assert_status(0).stdout.contains("provider = \"aws\""));

    for shell in ["bash", "zsh", "fish"] {
        let check = format!("\"$@\" >completions && exec {shell} -n completions");
        let checked = Ended::from(world.shell(&check, ["completions", shell]).output().unwrap());
        checked.assert_status(0);
        let script = fs::read_to_string(world.path("work/completions")).unwrap();
        assert!(script.contains("keep-on-failure"), "{shell}");
    }
    world.tsunami(["man", "-o", "pages"]).assert_status(0);
    let page = fs::read_to_string(world.path("work/pages/tsunami-run.1")).unwrap();
    assert!(page.contains(".TH tsunami-run 1") && page.contains(".SH EXIT STATUS\n.nf"), "{page}");
    world.assert_clean();
}

#[test]
fn shells_complete_the_names_of_runs_and_machines_and_pass_over_what_is_damaged() {
    let world = World::new();
    let runs = world.path("state/tsunami/runs");
    let record = |run: &str, experiment: &str| {
        let directory = runs.join(run);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).unwrap();
        let time = json!({ "secs_since_epoch": 0, "nanos_since_epoch": 0 });
        let deadline = json!({ "at": time, "lifetime": { "secs": 60, "nanos": 0 } });
        let record = json!({
            "schema": 2, "run": run, "experiment": experiment, "provider": "local", "created": time,
            "deadline": deadline, "groups": [], "results": null, "kept": false,
        });
        fs::write(directory.join("record.json"), record.to_string()).unwrap();
        directory
    };
    let machine = |group: &str| {
        json!({
            "id": group, "run": "20260101-000000-aaaa", "group": group, "index": 0, "state": "running",
            "addresses": { "public": null, "private": null }, "login": {}, "expires": null,
        })
    };
    let machines = json!([machine("server"), machine("client")]).to_string();
    fs::write(record("20260101-000000-aaaa", "redis").join("machines.json"), machines).unwrap();
    record("20260101-000000-bbbb", "kafka");
    record("20260101-000000-cccc", "kafka");
    record("20260101-000000-dddd", "$(touch evil)");
    fs::write(record("20260101-000000-eeee", "x").join("record.json"), "{").unwrap();
    let kept = listing(&runs);

    // Each shell is asked as it asks itself; zsh, whose own functions want a terminal, with others in their place.
    let asks = [
        (
            "bash",
            r#"compopt() { :; }; set -u; COMP_WORDS=("$0" "$@") COMP_CWORD=$#; _tsunami "$0" "${@: -1}" "${@: -2:1}"; printf '%s\n' "${COMPREPLY[@]}""#,
        ),
        ("fish", r#"complete -C "$(string join ' ' -- $argv)""#),
        (
            "zsh",
            r#"_describe() { print -l ${names%%:*}; }; compadd() { print -l $names; }; _files() { print -l *; }; _arguments() { :; }
            words=("$0" "$@") CURRENT=$(($# + 1)); _tsunami"#,
        ),
    ];
    let ids = ["aaaa", "bbbb", "cccc", "dddd", "eeee"].map(|end| format!("20260101-000000-{end}"));
    symlink(binary(), world.path("work/tsunami")).unwrap();
    for (shell, ask) in asks {
        let script = format!("completions.{shell}");
        world.write(&script, &world.tsunami(["completions", shell]).assert_status(0).stdout);
        let complete_of = |program: &str, line: &str| {
            let compdef = if shell == "zsh" { "compdef() :; " } else { "" };
            let mut command = world.program(shell.as_ref());
            command.args(["-c", &format!("{compdef}source ./{script}; {ask}")]);
            // The program's path begins at `~`, as people write it.
            command.env("HOME", world.path("work")).arg(program);
            let ended = Ended::from(command.args(line.split(' ')).output().unwrap());
            assert_eq!(ended.stderr, "", "{shell}: {line}");
            let names = ended.stdout.lines().map(|line| line.split('\t').next().unwrap().to_owned());
            names.collect::<BTreeSet<String>>()
        };
        let complete = |line: &str| complete_of("~/tsunami", line);
        complete_of("tsunami", "exec ");
        let all = ids.iter().cloned().chain(["redis".to_owned()]).collect();
        assert_eq!(complete("exec "), all, "{shell}");
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        for (line, expected) in [
            ("down 20260101-000000-b", &[ids[1].as_str()][..]),
            ("run x.toml --on re", &["redis"]),
            ("exec redis -g ", &["client", "server"]),
            ("ssh 20260101-000000-aaaa s", &["server-0"]),
            ("logs redis c", &["client", "client-0"]),
        ] {
            assert_eq!(complete(line), of(expected), "{shell}: {line}");
        }
        // Where a file may come, clap's script for bash would offer options. Bash itself offers files for want of words.
        if shell == "bash" {
            let none = of(&[""]);
            for line in ["run ", "report ", "run --resume ", "logs results/"] {
                assert_eq!(complete(line), none, "{line}");
            }
            assert!(complete("run --res").contains("--resume") && complete("").contains("report"));
            assert!(!complete("").contains("--help") && complete("completions ").contains("fish"));
        }
        let copied = complete("cp redis ");
        assert!(copied.is_superset(&of(&["client:", "client-0:", &script])), "{shell}: {copied:?}");
    }
    assert_eq!((listing(&runs), world.path("work/evil").exists()), (kept, false));
    let mut nowhere = world.command(["completions", "bash", "--", "exec", ""]);
    let nowhere = Ended::from(nowhere.env("XDG_STATE_HOME", "/dev/null").output().unwrap());
    assert_eq!((nowhere.assert_status(0).stdout.as_str(), nowhere.stderr.as_str()), ("", ""));
    // What looks after a test that failed has nothing to take down.
    fs::remove_dir_all(runs).unwrap();
}

/// Two runs of one trial of each variant, as their events tell them.
#[test]
fn runs_are_compared_by_their_directories_alone() {
    let world = World::new();
    let trial = |round: u32, variant: &str| json!({ "name": format!("{round}-{variant}"), "set": 1, "round": round, "place": 0, "parameters": { "variant": variant } });
    let parameter = json!({ "name": "variant", "values": ["old", "new"] });
    let metric = json!({ "name": "rps", "step": "load", "unit": "1/s" });
    for (run, rps, rounds) in [("a", 100.0, 1), ("b", 110.0, 1), ("base", 100.0, 5), ("slow", 50.0, 5)] {
        let trials: Vec<_> =
            (1..=rounds).flat_map(|round| ["old", "new"].map(|variant| trial(round, variant))).collect();
        let plan = json!({
            "seed": 1, "order": "balanced", "repeat": rounds, "parameters": [parameter], "metrics": [metric],
            "trials": trials,
        });
        let mut lines = vec![json!({ "schema": 2 })];
        let mut tell = |event: &str, fields: serde_json::Value| {
            let mut line = json!({ "at": 1.7e9, "elapsed": lines.len(), "event": event });
            line.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            lines.push(line);
        };
        tell("sweep_planned", json!({ "plan": plan }));
        for trial in &trials {
            let value = if trial["parameters"]["variant"] == "new" { 2.0 * rps } else { rps };
            let trial = &trial["name"];
            tell("trial_started", json!({ "trial": trial }));
            tell("measured", json!({ "trial": trial, "step": "load", "metric": "rps", "value": value }));
            tell("trial_finished", json!({ "trial": trial, "ok": true, "seconds": 1.0 }));
        }
        let directory = world.path("work").join(run);
        fs::create_dir(&directory).unwrap();
        let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(directory.join("events.jsonl"), lines).unwrap();
    }
    let refused = world.tsunami(["compare", "a", "b"]);
    refused.assert_status(2).assert_says(&["--unlike-machines", "a doesn't say what its machines were"]);
    let table = world.tsunami(["compare", "--unlike-machines", "a", "b"]);
    let expected = "| metric | parameters | a | b | change |\n| --- | --- | --- | --- | --- |\n\
                    | rps (1/s) | variant=old | 100 | 110 | +10.0 % |\n\
                    | rps (1/s) | variant=new | 200 | 220 | +10.0 % |\n";
    assert_eq!(table.assert_status(0).stdout, expected);
    // As `results/redis/*` names them.
    fs::write(world.path("work/index.csv"), "run\n").unwrap();
    symlink("b", world.path("work/latest")).unwrap();
    let pattern = ["compare", "--unlike-machines", "a", "b", "index.csv", "latest"];
    assert_eq!(world.tsunami(pattern).assert_status(0).stdout, expected);
    world.tsunami(["report", "index.csv"]).assert_status(2).assert_says(&["no results directory"]);
    let against = |line: &str, directories: [&str; 2]| {
        world.tsunami(["compare", "--unlike-machines", "--fail-if", line].into_iter().chain(directories))
    };
    let slower = against("rps < 0.95", ["base", "slow"]);
    slower
        .assert_status(1)
        .assert_says(&["`rps < 0.95` holds for slow where variant=old; `rps < 0.95` holds"]);
    assert!(slower.stdout.contains("| −50.0 % |"), "{}", slower.stdout);
    against("rps > 1.05", ["base", "slow"]).assert_status(0);
    let few = against("rps < 0.95", ["a", "b"]);
    few.assert_status(0).assert_says(&["`rps < 0.95` can't be judged for b", "a has fewer than 5 trials"]);
    against("p99 > 1.1", ["a", "b"])
        .assert_status(2)
        .assert_says(&["`p99 > 1.1`: these runs have no metric p99"]);
    against("rps", ["a", "b"]).assert_status(2).assert_says(&["write it as `rps < 0.95`"]);
    let json =
        world.tsunami(["compare", "--unlike-machines", "--json", "a", "b"]).assert_status(0).stdout.clone();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["schema"], &json["rows"][1]["values"][1]["ratio"]), (&1.into(), &1.1.into()));
    crate::json::assert_fields("tsunami compare DIR DIR… --json", &json);
    // A third one, whose unit is another, and whose machines were the same as those of the second.
    let changed = fs::read_to_string(world.path("work/b/events.jsonl")).unwrap().replace("1/s", "k/s");
    fs::create_dir_all(world.path("work/c/inputs")).unwrap();
    for (file, text) in [("events.jsonl", changed.as_str()), ("inputs/set.json", r#"{"n":"2"}"#)] {
        fs::write(world.path("work/c").join(file), text).unwrap();
    }
    fs::create_dir(world.path("work/b/inputs")).unwrap();
    fs::write(world.path("work/b/inputs/set.json"), "{}").unwrap();
    let differs = ["c: n is 2, and not set in b", "c: rps is in k/s, and in 1/s in b"];
    world.tsunami(["compare", "--unlike-machines", "b", "c"]).assert_status(2).assert_says(&differs);
    // With another metric that all have.
    for (run, rps) in [("d", "1/s"), ("e", "k/s")] {
        let events = fs::read_to_string(world.path("work/a/events.jsonl")).unwrap();
        let metrics =
            json!([{ "name": "n", "step": "load" }, { "name": "rps", "step": "load", "unit": rps }]);
        let mut lines = Vec::new();
        for line in events.lines() {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            if line["event"] == "sweep_planned" {
                line["plan"]["metrics"] = metrics.clone();
            }
            lines.push(line.to_string());
            if line["event"] == "measured" {
                line["metric"] = "n".into();
                lines.push(line.to_string());
            }
        }
        fs::create_dir(world.path("work").join(run)).unwrap();
        let text = lines.join("\n").replace("\"old\"", "1").replace("\"new\"", "2") + "\n";
        fs::write(world.path("work").join(run).join("events.jsonl"), text).unwrap();
    }
    against("rps < 0.95", ["d", "e"])
        .assert_status(2)
        .assert_says(&["`rps < 0.95` can't be judged: rps is in 1/s in one run, and in k/s in another"]);
    against("n < 0.95", ["d", "e"]).assert_status(0);
    let numbers =
        world.tsunami(["compare", "--unlike-machines", "--json", "--fail-if", "n < 0.95", "d", "e"]);
    let numbers: serde_json::Value = serde_json::from_str(&numbers.assert_status(0).stdout).unwrap();
    for of in ["rows", "checks"] {
        assert_eq!(numbers[of][0]["parameters"]["variant"], 1, "{numbers}");
    }
    // One run alone, however often and by whatever name: but it may begin a history.
    let alone = ["compare", "--unlike-machines", "b", "index.csv", "latest"];
    world
        .tsunami(alone)
        .assert_status(2)
        .assert_says(&["only one run is named, b: there is nothing to compare it with"]);
    against("rps < 0.95", ["b", "latest"]).assert_status(2).assert_says(&["only one run is named"]);
    world.tsunami(alone.into_iter().chain(["--csv"])).assert_status(0);
    fs::remove_dir_all(world.path("work/b/inputs")).unwrap();
    let csv =
        world.tsunami(["compare", "--unlike-machines", "--csv", "a", "b"]).assert_status(0).stdout.clone();
    assert!(
        csv.starts_with("time,run,directory,rps[variant=old],rps[variant=new]\n")
            && csv.ends_with(",b,110,220\n"),
        "{csv}"
    );
    world.tsunami(["report", "--cold-start", "a"]).assert_status(2).assert_says(&["how any machine came up"]);
    world
        .tsunami(["report", "a", "b"])
        .assert_status(0)
        .assert_says(&["made a/report.html", "made b/report.html"]);
    let json = world.tsunami(["report", "a", "b", "--json"]).assert_status(0).stdout.clone();
    let lines = json.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    assert_eq!(lines.map(|line| line["schema"].clone()).collect::<Vec<_>>(), [1, 1]);
    assert!(world.path("work/a/report.html").exists());
    world.tsunami(["report", "nowhere"]).assert_status(2).assert_says(&["events.jsonl"]);
}
