//! The commands for machines that are up.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::json;

use crate::world::{Ended, World};

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
    world.tsunami(["cp", &run, "b-0:missing", "."]).assert_status(1).assert_says(&["there is no missing"]);
    world.tsunami(["cp", &run, "x.toml", "y.toml"]).assert_status(2).assert_says(&["MACHINE:path"]);

    let logs = world.tsunami(["logs", &run]);
    assert!(logs.assert_status(0).stdout.contains("preparing"), "{}", logs.stdout);

    world.tsunami(["down", &run]).assert_status(0).assert_says(&["everything is gone"]);
    world.tsunami(["down", &run]).assert_status(2).assert_says(&["no run"]);
    // The logs are in the results, which are still there.
    assert!(world.tsunami(["logs", &run, "a-0"]).assert_status(0).stdout.contains("preparing"));
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
    for part in ["21 machines", "5m", "20 x", "costs nothing", "step 1"] {
        assert!(plan.assert_status(0).stdout.contains(part), "{}", plan.stdout);
    }
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
    use std::io::Read;
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
    let file = world.write("x.toml", "name = 'x'\n[group.a]\ncount = 2\n");
    let run = world.tsunami([&"up".into(), &file]).assert_status(0).stdout.trim().to_owned();
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
    assert!(page.contains(".TH tsunami-run 1") && page.contains("Exit status"), "{page}");
    world.assert_clean();
}

/// Two runs of one trial of each variant, as their events tell them.
#[test]
fn runs_are_compared_by_their_directories_alone() {
    let world = World::new();
    let trial = |name: &str, variant: &str| json!({ "name": name, "set": 1, "round": 1, "place": 0, "parameters": { "variant": variant } });
    let parameter = json!({ "name": "variant", "values": ["old", "new"] });
    let metric = json!({ "name": "rps", "step": "load", "unit": "1/s" });
    let plan = json!({
        "seed": 1, "order": "balanced", "repeat": 1, "parameters": [parameter], "metrics": [metric],
        "trials": [trial("1", "old"), trial("2", "new")],
    });
    for (run, rps) in [("a", 100.0), ("b", 110.0)] {
        let mut lines = vec![json!({ "schema": 2 })];
        let mut tell = |event: &str, fields: serde_json::Value| {
            let mut line = json!({ "at": 1.7e9, "elapsed": lines.len(), "event": event });
            line.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            lines.push(line);
        };
        tell("sweep_planned", json!({ "plan": plan }));
        for (trial, value) in [("1", rps), ("2", 2.0 * rps)] {
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
    assert!(world.path("work/a/report.html").exists());
    world.tsunami(["report", "nowhere"]).assert_status(2).assert_says(&["events.jsonl"]);
}
