//! `tsunami run`, from end to end.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tsunami_core::{EventKind, Exit};

use crate::world::{Ended, World, example};

fn demo() -> PathBuf {
    example("demo/experiment.toml")
}

#[test]
fn the_demo_brings_its_results_home_and_leaves_nothing() {
    let world = World::new();
    let demo = demo();
    let ran = world.tsunami(["run", demo.to_str().unwrap()]);
    ran.assert_status(0).assert_says(&["results: ", "torn down: 4 machines are gone"]);
    let results = world.results();
    assert_eq!(ran.stdout, format!("{}\n", results.display()), "a script has the path, and nothing else");
    assert_eq!(world.path("work/results/demo/latest").canonicalize().unwrap(), results);
    let index = fs::read_to_string(world.path("work/results/demo/index.csv")).unwrap();
    assert!(index.starts_with("run,began,outcome\n") && index.ends_with(",success\n"), "{index}");
    for client in ["client-0", "client-1", "client-2"] {
        let csv = fs::read_to_string(results.join(format!("trials/1/small/{client}/small.csv"))).unwrap();
        assert!(csv.contains(&format!("{client},64,20000,")), "{csv}");
    }
    let run: serde_json::Value =
        serde_json::from_slice(&fs::read(results.join("run.json")).unwrap()).unwrap();
    assert_eq!(run["outcome"], "success");
    assert_eq!(run["machines"].as_object().unwrap().len(), 4);
    assert_eq!(run["schema"], 2);
    let events = tsunami_core::read_events(&fs::read(results.join("events.jsonl")).unwrap()[..]).unwrap();
    let report: tsunami_core::Report = events.iter().collect();
    assert_eq!((report.ok, report.leftovers.len()), (Some(true), 0));
    assert!(fs::read_to_string(results.join("logs/server-0/serve.log")).unwrap().contains("listening on"));
    assert!(
        fs::read_to_string(results.join("logs/client-1/setup.log")).unwrap().contains("client-1 at 127.")
    );
    assert!(results.join("inputs/client/describe-machine.sh").exists());
    assert_eq!(fs::read(results.join("experiment.toml")).unwrap(), fs::read(demo).unwrap());
    let page = fs::read(results.join("report.html")).unwrap();
    fs::remove_dir_all(results.join("logs")).unwrap();
    for name in ["report.html", "results.json", "results.csv", "manifest.json"] {
        fs::remove_file(results.join(name)).unwrap();
    }
    let made = world.tsunami([OsStr::new("report"), results.as_os_str()]);
    made.assert_status(0).assert_says(&["made ", "results.csv"]);
    let table = "| trial | outcome | seconds |\n| --- | --- | --- |\n| 1 | ok | ";
    assert!(
        made.stdout.starts_with(table) && made.stdout.contains("nothing was measured"),
        "{}",
        made.stdout
    );
    let again = fs::read(results.join("report.html")).unwrap();
    assert!(again.len() > 5000 && again.len() <= page.len(), "the logs are gone");
    let results = results.as_os_str();
    let starts = world
        .tsunami(["report", "--cold-start", "--csv"].map(OsStr::new).into_iter().chain([results, results]));
    for phase in ["request", "start", "boot", "login", "verify", "request to verified", "set-up"] {
        let row = format!("sshd on this computer's loopback,,,{phase},4,");
        assert!(starts.assert_status(0).stdout.contains(&row), "no {row} in {}", starts.stdout);
    }
    let compared = world.tsunami([OsStr::new("compare"), results, results]);
    compared.assert_status(2).assert_says(&["no metric in common"]);
    world.assert_clean();
}

#[test]
fn what_is_prepared_is_uploaded_and_what_fails_launches_nothing() {
    let world = World::new();
    let text = "name = 'x'\nprepare = ['echo made > made', 'cat made >&2']\n[group.n]\n\
                upload = [{ from = 'made', to = 'in' }]\nsetup = 'grep made in'\n";
    let file = world.write("x.toml", text);
    world.tsunami([&"plan".into(), &file]).assert_status(0);
    assert!(!world.path("work/made").exists(), "a plan does nothing");
    world.tsunami([&"run".into(), &file]).assert_status(0).assert_says(&["preparing on this computer"]);
    let log = fs::read_to_string(world.results().join("logs/prepare.log")).unwrap();
    assert!(
        log.starts_with("$ echo made > made\n# status 0") && log.contains("$ cat made >&2\nmade\n"),
        "{log}"
    );
    assert!(fs::read_to_string(world.results().join("inputs/uploads.json")).unwrap().contains("sha256"));
    let file = world.write("x.toml", &text.replace("cat made >&2", "echo why; exit 7"));
    let failed = world.tsunami([&"run".into(), &"-o".into(), &world.path("work/failed"), &file]);
    failed.assert_status(1).assert_says(&[
        "`echo why; exit 7` ended with status 7",
        "  | why",
        "nothing was launched",
    ]);
    assert!(!failed.stderr.contains("launching"), "{}", failed.stderr);
    world.assert_clean();
}

/// There is no `ssh` at all, and the files that go there and come back are the same.
#[test]
fn machines_of_the_runs_own_are_reached_from_within_the_process_where_the_file_says_so() {
    let world = World::new();
    let file = world.write(
        "x.toml",
        r#"name = "x"
        [ssh]
        transport = "in-process"
        [group.n]
        count = 2
        upload = [{ from = "input", to = "in" }]
        setup = "cat in && echo hint >&2"
        [[step]]
        on = "n"
        run = "cat in in > out"
        collect = ["out"]
        "#,
    );
    world.write("input", "words\n");
    world.write("ssh", "#!/bin/sh\necho \"$@\" >> ssh-was-asked\nexit 1\n");
    fs::set_permissions(world.path("work/ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", world.path("work").display(), std::env::var("PATH").unwrap());
    let ended = Ended::from(world.command([&"run".into(), &file]).env("PATH", path).output().unwrap());
    ended.assert_status(0);
    let results = world.results();
    for machine in ["n-0", "n-1"] {
        let log = fs::read_to_string(results.join("logs").join(machine).join("setup.log")).unwrap();
        assert!(log.contains("words\n") && log.contains("hint\n"), "{log}");
        let out = fs::read_dir(results.join("trials/1")).unwrap().next().unwrap().unwrap().path();
        assert_eq!(fs::read_to_string(out.join(machine).join("out")).unwrap(), "words\nwords\n");
    }
    assert!(!world.path("work/ssh-was-asked").exists());
    world.assert_clean();
}

/// What one machine was given it gives to the others, and by the first step nothing of that is left.
#[test]
fn a_large_upload_is_the_same_on_all_machines() {
    let world = World::new();
    let file = world.write(
        "x.toml",
        r#"name = "x"
        [group.n]
        count = 4
        upload = [{ from = "large", to = "in-{{ index }}/" }]
        [[step]]
        on = "n"
        run = "cksum <in-$TSUNAMI_INDEX/large >out; ls -a >>out"
        collect = ["out"]
        "#,
    );
    fs::write(world.path("work/large"), (0..5 << 20).map(|n: u32| (n >> 9) as u8).collect::<Vec<_>>())
        .unwrap();
    world.tsunami([&"run".into(), &file]).assert_status(0);
    let out = fs::read_dir(world.results().join("trials/1")).unwrap().next().unwrap().unwrap().path();
    let out = |n: u32| fs::read_to_string(out.join(format!("n-{n}/out"))).unwrap();
    for n in 0..4 {
        assert_eq!(out(n).lines().next(), out(0).lines().next());
        assert!(!out(n).contains("spread"), "{}", out(n));
    }
    world.assert_clean();
}

#[test]
fn a_failing_set_up_says_where_and_why() {
    let world = World::new();
    let file = world.write(
        "x.toml",
        r#"name = "x"
        [group.good]
        [group.bad]
        count = 2
        setup = ["true", "if [ $TSUNAMI_INDEX = 1 ]; then echo 'no such package' >&2; exit 100; fi"]
        "#,
    );
    let ended = world.tsunami([&"run".into(), &file]);
    ended.assert_status(1).assert_says(&["bad-1", "setup", "status 100", "no such package", "setup.log"]);
    let log = fs::read_to_string(world.results().join("logs/bad-1/setup.log")).unwrap();
    assert!(log.contains("no such package"), "{log}");
    let run = fs::read_to_string(world.results().join("run.json")).unwrap();
    assert!(run.contains(r#""outcome": "failed""#), "{run}");
    world.assert_clean();
}

#[test]
fn a_failing_step_still_brings_its_files_home() {
    let world = World::new();
    let file = world.write(
        "x.toml",
        r#"name = "x"
        [group.node]
        count = 2
        [[step]]
        name = "lenient"
        on = "node-1"
        run = "exit 9"
        on_error = "continue"
        [[step]]
        name = "job"
        on = "node"
        run = "echo $TSUNAMI_NAME > out.txt; echo {{ node[1].ip }} {{ trial }}; kill -9 $$"
        collect = ["out.txt", "no-such-file?"]
        [[step]]
        name = "never"
        on = "all"
        run = "touch never"
        "#,
    );
    let ended = world.tsunami([&"run".into(), &file]);
    ended.assert_status(1).assert_says(&["node-", "stage job", "signal 9 (SIGKILL)", "job.log"]);
    let results = world.results();
    assert_eq!(fs::read_to_string(results.join("trials/1/job/node-0/out.txt")).unwrap(), "node-0\n");
    assert!(!results.join("logs/node-0/never.log").exists());
    world.assert_clean();
}

#[test]
fn steps_know_addresses_variables_and_time() {
    let world = World::new();
    world.write("hello.sh", "#!/bin/sh\necho \"hello from $0 on $TSUNAMI_GROUP\"\n");
    let file = world.write(
        "x.toml",
        r#"name = "x"
        [group.server]
        env = { COLOUR = "{{ name }}-blue" }
        setup = { script = "hello.sh" }
        [group.client]
        count = 2
        upload = [{ from = "hello.sh", to = "bin/" }]
        [[step]]
        on = "server"
        start = "echo up > state; exec sleep 1000"
        ready = { command = "grep -q up state", timeout = "10s" }
        [[step]]
        name = "see"
        on = "client"
        cwd = "bin"
        env = { EXTRA = "x {{ index }}" }
        run = "echo {{ server.ip }} $TSUNAMI_SERVER_IPS $TSUNAMI_CLIENT_IPS $EXTRA {{ greeting | q }}; ls; test $(basename $PWD) = bin"
        [[step]]
        name = "late"
        on = "client-1"
        run = "sleep 1000"
        timeout = "1s"
        "#,
    );
    let ended = world.tsunami([&"run".into(), &file, &"--set".into(), &"greeting=it's me".into()]);
    ended.assert_status(1).assert_says(&["client-1", "stage late", "timed out after 1s"]);
    let results = world.results();
    let seen = fs::read_to_string(results.join("logs/client-1/see.log")).unwrap();
    let output = seen.lines().find(|line| line.starts_with("127.")).unwrap();
    let words: Vec<&str> = output.split(' ').collect();
    assert_eq!(words[0], words[1], "the server's address by template and by variable");
    assert!(output.ends_with("x 1 it's me"), "{output}");
    assert!(seen.contains("hello.sh"), "{seen}");
    let setup = fs::read_to_string(results.join("logs/server-0/setup.log")).unwrap();
    assert!(setup.contains("on server"), "{setup}");
    world.assert_clean();
}

#[test]
fn a_server_that_dies_or_never_listens_fails_its_step() {
    let world = World::new();
    for (start, ready, says) in [
        ("echo cannot bind >&2; exit 3", "{ port = 7000 }", ["status 3", "cannot bind"]),
        ("exec sleep 1000", r#"{ port = 7000, timeout = "1s" }"#, ["not ready within 1s", "port 7000"]),
        (
            "exec sleep 1000",
            r#"{ log = "ready", timeout = "1s" }"#,
            ["not ready within 1s", "does not have `ready`"],
        ),
    ] {
        let text = format!("name = 'x'\n[group.s]\n[[step]]\non = 's'\nstart = '{start}'\nready = {ready}\n");
        let file = world.write("x.toml", &text);
        world.tsunami([&"run".into(), &file]).assert_status(1).assert_says(&says);
        world.assert_clean();
    }
}

#[test]
fn a_port_is_seen_when_something_listens_on_it() {
    let world = World::new();
    let listen = r#"exec perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(LocalAddr => "{{ ip }}", LocalPort => 7001, Listen => 1) or die; sleep 1000'"#;
    let text = format!(
        "name = \"x\"\n[group.s]\n[[step]]\non = \"s\"\nstart = '''sleep 0.5; {listen}'''\nready = {{ port = 7001, timeout = \"20s\" }}\n"
    );
    let file = world.write("x.toml", &text);
    world.tsunami([&"run".into(), &file]).assert_status(0);
    world.assert_clean();
}

#[test]
fn templates_and_trees_arrive_and_a_server_is_ready_when_it_answers() {
    let world = World::new();
    let conf = world.write("serve.conf", "{{ name }} at {{ ip }}\n");
    fs::set_permissions(&conf, fs::Permissions::from_mode(0o640)).unwrap();
    for (name, text) in
        [("src/main.c", "1"), ("src/main.o", "2"), ("src/target/deep/x", "3"), ("src/doc/x", "4")]
    {
        let path = world.path("work").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let text = r#"
name = "x"
[group.s]
count = 2
upload = [
  { from = "serve.conf", to = "etc/", template = true },
  { from = "src", to = "src", exclude = ["target", "*.o", "*.none"] },
]
[[step]]
name = "serve"
on = "s"
start = """
exec perl -MIO::Socket::INET -e '
    open my $conf, "<", "etc/serve.conf" or die;
    my ($address) = <$conf> =~ / at (.*)$/;
    my $server = IO::Socket::INET->new(LocalAddr => $address, LocalPort => 7005, Listen => 5, ReuseAddr => 1) or die;
    my $asked = 0;
    while (my $client = $server->accept) {
        while (<$client>) { last if /^\\r?$/ }
        print $client "HTTP/1.1 ", $asked++ < 2 ? 503 : 204, " X\\r\\nConnection: close\\r\\n\\r\\n";
        close $client;
    }
'
"""
ready = { http = "/up", port = 7005, timeout = "20s" }
[[step]]
name = "see"
on = "s"
run = "cat etc/serve.conf > seen; stat -c %a etc/serve.conf >> seen; find src -type f | sort >> seen"
collect = ["seen"]
"#;
    let file = world.write("x.toml", text);
    let plan = world.tsunami([&"plan".into(), &file]);
    plan.assert_status(0).assert_shows(&["nothing there is `*.none`"]);
    world.tsunami([&"run".into(), &file]).assert_status(0);
    let results = world.results();
    let addresses = [0, 1].map(|index| {
        let seen = fs::read_to_string(results.join(format!("trials/1/see/s-{index}/seen"))).unwrap();
        let address =
            seen.strip_prefix(&format!("s-{index} at ")).unwrap().lines().next().unwrap().to_owned();
        assert_eq!(seen, format!("s-{index} at {address}\n640\nsrc/doc/x\nsrc/main.c\n"));
        address
    });
    assert_ne!(addresses[0], addresses[1]);
    let uploads = fs::read_to_string(results.join("inputs/uploads.json")).unwrap();
    assert!(uploads.contains("main.c") && !uploads.contains("main.o"), "{uploads}");
    for (from, to, timeout, says) in [
        ("< 2", "< 2000", "2s", "answers with status 503"),
        ("close $client;", "close $client; exit 0 if $asked > 3;", "20s", "ended with status 0 before"),
    ] {
        let text = text.replace(from, to).replace("20s", timeout);
        // Until it answers no more, and no longer: its end may not be known here yet.
        let over = "run = \"while curl -s {{ ip }}:7005; do sleep 0.1; done; cat";
        let file = world.write("x.toml", &text.replace("run = \"cat", over));
        world.tsunami([&"run".into(), &file]).assert_status(1).assert_says(&[says]);
    }
    world.assert_clean();
}

#[test]
fn a_script_runs_by_its_own_interpreter_or_says_which_is_missing() {
    let world = World::new();
    world.write("args.sh", "#!/usr/bin/env -S bash -eu\necho \"$BASH_VERSION\" \"$0\" $#\n");
    world.write("odd.sh", "#!/no/such interpreter\n");
    let file = world
        .write("x.toml", "name = 'x'\n[group.n]\nsetup = [{ script = 'args.sh' }, { script = 'odd.sh' }]\n");
    let ended = world.tsunami([&"run".into(), &file]);
    ended.assert_status(1).assert_says(&["status 127", "interpreter /no/such is not on this machine"]);
    let log = fs::read_to_string(world.results().join("logs/n-0/setup.log")).unwrap();
    assert!(log.contains(" ./.tsunami-setup-0 0"), "{log}");
    world.assert_clean();
}

#[test]
fn commands_see_nothing_of_how_they_are_reached() {
    let world = World::new();
    let text = "name = 'x'\n[group.n]\nenv = { OWN = 'x' }\n[[step]]\nname = 'see'\non = 'n'\nrun = 'env > env.txt'\n\
                collect = ['env.txt']\n";
    let file = world.write("x.toml", text);
    world.tsunami([&"run".into(), &file]).assert_status(0);
    let env = fs::read_to_string(world.results().join("trials/1/see/n-0/env.txt")).unwrap();
    let mut ours: Vec<&str> = env.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    ours.retain(|name| name.starts_with("TSUNAMI_") || name.starts_with('_') || name.contains("COMMAND"));
    ours.sort_unstable();
    let facts = ["GROUP", "INDEX", "IP", "NAME", "N_IPS", "RUN_ID", "STEP", "TRIAL"];
    let facts: Vec<String> =
        facts.iter().map(|name| format!("TSUNAMI_{name}")).chain(["_".to_owned()]).collect();
    assert_eq!(ours, facts, "{env}");
    world.assert_clean();
}

#[test]
fn a_stranger_on_the_port_is_not_taken_for_the_server() {
    let world = World::new();
    let strangers = ["127.0.0.1:0", "[::1]:0"].map(|address| std::net::TcpListener::bind(address).unwrap());
    for port in strangers.iter().map(|stranger| stranger.local_addr().unwrap().port()) {
        let text = format!(
            "name = 'x'\n[group.s]\n[[step]]\non = 's'\nstart = 'exec sleep 1000'\n\
             ready = {{ port = {port}, timeout = '2s' }}\n"
        );
        let file = world.write("x.toml", &text);
        let ended = world.tsunami([&"run".into(), &file]);
        ended.assert_status(1).assert_says(&["not ready within 2s", "was not started by this step"]);
    }
    // Nor is a server that the other machines can't reach.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let text = r#"
name = "x"
[group.s]
[[step]]
on = "s"
start = "exec perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => \"127.0.0.1:PORT\") or die; sleep 99'"
ready = { port = PORT, timeout = "2s" }
"#;
    let ended = world.tsunami([&"run".into(), &world.write("x.toml", &text.replace("PORT", &port))]);
    ended
        .assert_status(1)
        .assert_says(&[&format!("what listens on port {port}, at 127.0.0.1, is this step's, but nobody")]);
    world.assert_clean();
}

#[test]
fn a_server_that_puts_itself_in_the_background_is_told_not_to() {
    let world = World::new();
    for ready in ["{ port = 7002 }", "{ log = 'never' }"] {
        let text = format!(
            "name = 'x'\n[group.s]\n[[step]]\nname = 'serve'\non = 's'\n\
             start = 'setsid sleep 1013 >/dev/null 2>&1 & sleep 0.1; exit 0'\nready = {ready}\n"
        );
        let file = world.write("x.toml", &text);
        world.tsunami([&"run".into(), &file]).assert_status(1).assert_says(&["stays in the foreground"]);
        world.assert_clean();
    }
}

#[test]
fn a_setup_of_several_commands_tells_of_each() {
    let world = World::new();
    let file = world.write(
        "x.toml",
        "name = 'x'\n[group.n]\nsetup = ['echo one; echo uno >&2', 'printf two; sleep 1 &', 'kill -9 $$', 'echo no']\n",
    );
    let ended = world.tsunami([&"run".into(), &file]);
    ended.assert_status(1).assert_says(&["n-0", "setup", "kill -9 $$", "signal 9 (SIGKILL)"]);
    let log = fs::read_to_string(world.results().join("logs/n-0/setup.log")).unwrap();
    let places = ["one", "uno", "two", "kill -9"].map(|said| log.rfind(said));
    assert!(
        places.iter().all(Option::is_some) && places[..3].iter().max() < places[3..].iter().max(),
        "{log}"
    );
    assert!(!log.contains("echo no"), "{log}");
    let events = fs::read(world.results().join("events.jsonl")).unwrap();
    let told =
        tsunami_core::read_events(&events[..]).unwrap().into_iter().filter_map(|event| match event.kind {
            EventKind::CommandStarted { command_id, .. } => Some((command_id, None)),
            EventKind::CommandFinished { command_id, exit, .. } => Some((command_id, exit)),
            _ => None,
        });
    let told: Vec<_> = told.collect();
    let ids: Vec<_> = told.iter().map(|(id, _)| *id).collect();
    assert!(ids.chunks(2).all(|pair| pair[0] == pair[1]) && ids.is_sorted() && ids.len() == 6, "{told:?}");
    let exits = [None, Some(Exit::Status(0)), None, Some(Exit::Status(0)), None, Some(Exit::Signal(9))];
    assert_eq!(told.iter().map(|(_, exit)| *exit).collect::<Vec<_>>(), exits);
    world.assert_clean();
}

#[test]
fn steps_of_one_machine_in_a_row_are_told_apart_and_end_by_themselves() {
    let world = World::new();
    let file = world.write(
        "x.toml",
        r#"name = "x"
        [group.n]
        [[step]]
        name = "one"
        on = "n"
        run = "printf $TSUNAMI_STEP; echo uno >&2; mkdir d; sleep 0.2; echo $ODD > written"
        env = { ODD = "1" }
        [[step]]
        name = "two"
        on = "n"
        run = "printf \"$TSUNAMI_STEP $PWD $ODD.\"; sleep 1016 &"
        cwd = "d"
        [[step]]
        name = "three"
        on = "n"
        run = "pgrep -f 'sleep 101[6]' >/dev/null && cat written && kill -9 $$"
        on_error = "continue"
        [[step]]
        name = "four"
        on = "n"
        run = "printf $TSUNAMI_STEP; sleep 1017"
        timeout = "1s"
        [[step]]
        name = "five"
        on = "n"
        run = "touch unreached"
        "#,
    );
    let ended = world.tsunami([&"run".into(), &file, &"--keep-on-failure".into()]);
    ended.assert_status(1).assert_says(&["n-0", "four", "sleep 1017", "timed out after 1s"]);
    let log = |step: &str| fs::read_to_string(world.results().join(format!("logs/n-0/{step}.log")));
    let logs = ["one", "two", "three", "four"].map(|step| log(step).unwrap());
    assert!(logs[0].contains("one") && logs[0].contains("uno\n"), "{logs:?}");
    assert!(logs[1].contains("two /") && logs[1].contains("/d ."), "{logs:?}");
    assert!(logs[2].contains("\n1\n") && logs[2].contains("signal 9"), "{logs:?}");
    assert!(logs[3].contains("four") && log("five").is_err(), "{logs:?}");
    let events = fs::read(world.results().join("events.jsonl")).unwrap();
    let told =
        tsunami_core::read_events(&events[..]).unwrap().into_iter().filter_map(|event| match event.kind {
            EventKind::StepStarted { step, .. } => Some((step, None)),
            EventKind::StepFinished { step, ok, .. } => Some((step, Some(ok))),
            _ => None,
        });
    let told: Vec<_> = told.collect();
    let ends = [("one", true), ("two", true), ("three", false), ("four", false)];
    let expected = ends.iter().flat_map(|(step, ok)| [None, Some(*ok)].map(|end| ((*step).to_owned(), end)));
    assert_eq!(told, expected.collect::<Vec<_>>());
    let left = world.processes();
    assert!(!left.iter().any(|process| process.contains("sleep 101")), "{left:?}");
    world.tsunami(["down", "x"]).assert_status(0);
    world.assert_clean();
}

#[test]
fn readiness_leaves_no_trace_in_a_servers_log() {
    let world = World::new();
    let text = "name = 'x'\n[group.s]\n[[step]]\nname = 'serve'\non = 's'\n\
                start = 'sleep 1; touch up; echo serving; exec sleep 1000'\n\
                ready = { command = 'echo asked; test -e up' }\n";
    let file = world.write("x.toml", text);
    world.tsunami([&"run".into(), &file]).assert_status(0);
    let log = |name: &str| fs::read_to_string(world.results().join(format!("logs/s-0/{name}.log"))).unwrap();
    assert!(log("serve").contains("serving") && !log("serve").contains("asked"), "{}", log("serve"));
    world.assert_clean();
}

#[test]
fn a_trial_removes_only_what_is_the_machines_own() {
    let world = World::new();
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("data.csv"), "precious").unwrap();
    world.write("input.csv", "given");
    let file = world.write(
        "x.toml",
        &format!(
            r#"name = "x"
            [group.n]
            upload = [{{ from = "input.csv", to = "input.csv" }}]
            setup = "ln -s {0} way; echo old > own.csv"
            [[step]]
            name = "linked"
            on = "n"
            run = "ls own.csv input.csv || true; echo new > new.csv"
            collect = ["way/*.csv?", "*.csv"]
            [[step]]
            name = "outside"
            on = "n"
            cwd = "{0}"
            run = "true"
            collect = ["data.csv?"]
            [[step]]
            name = "made"
            on = "n"
            cwd = "{0}"
            run = "echo new > made.csv"
            collect = ["*.csv"]
            [[step]]
            name = "given"
            on = "n"
            run = "true"
            collect = ["input.csv"]
            "#,
            outside.display()
        ),
    );
    let ended = world.tsunami([&"run".into(), &file]);
    ended
        .assert_status(1)
        .assert_says(&["all that matches `input.csv` in `collect` is older than the trial"]);
    assert_eq!(fs::read_to_string(outside.join("data.csv")).unwrap(), "precious");
    let home = world.results().join("trials/1");
    assert_eq!(fs::read_to_string(home.join("linked/n-0/new.csv")).unwrap(), "new\n");
    assert!(fs::read_to_string(home.join("linked/n-0/input.csv")).is_err(), "it was uploaded");
    assert!(!home.join("linked/n-0/own.csv").exists() && !home.join("linked/n-0/way").exists());
    assert!(!home.join("made/n-0/data.csv").exists(), "it is older than the trial");
    assert!(!home.join("outside/n-0/data.csv").exists(), "it is older than the trial");
    assert_eq!(fs::read_to_string(home.join("made/n-0/made.csv")).unwrap(), "new\n");
    world.assert_clean();
}

#[test]
fn what_a_trial_leaves_in_the_background_ends_with_it() {
    let world = World::new();
    let text = "name = 'x'\n[group.n]\n[[step]]\non = 'n'\nstart = 'setsid sleep 1011 >/dev/null 2>&1 & exec sleep 1016'\n\
                [[step]]\non = 'n'\nrun = 'setsid sleep 1012 >/dev/null 2>&1 & sleep 0.5'\n";
    let file = world.write("x.toml", text);
    world.tsunami([&"run".into(), &file, &"--keep".into()]).assert_status(0);
    let left = world.processes();
    assert!(!left.iter().any(|process| process.contains("sleep 101")), "{left:?}");
    world.tsunami(["down", "x"]).assert_status(0);
    world.assert_clean();
}

/// A child that has lost the trial's mark is adopted elsewhere when its parent is ended, and then ignores TERM.
#[test]
fn what_a_trial_ends_does_not_hide_its_children() {
    let world = World::new();
    let text = r#"name = 'x'
[group.n]
[[step]]
on = 'n'
run = """
setsid sh -c 'env -u TSUNAMI_TRIAL -u TSUNAMI_RUN_ID setsid sh -c "trap \\"\\" TERM; exec sleep 1015" & wait' >log 2>&1 &
sleep 0.5
"""
"#;
    let file = world.write("x.toml", text);
    world.tsunami([&"run".into(), &file, &"--keep".into()]).assert_status(0);
    let left = world.processes();
    assert!(!left.iter().any(|process| process.contains("sleep 1015")), "{left:?}");
    world.tsunami(["down", "x"]).assert_status(0);
    world.assert_clean();
}

#[test]
fn an_odd_state_directory_works_or_is_refused() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.n]\nsetup = 'true'\n");
    for (name, status) in [("üñí çode", 0), ("with space", 0), ("per%cent", 2), ("a[b]", 2)] {
        let mut command = world.command([&"run".into(), &file]);
        let output = command.env("XDG_STATE_HOME", world.path(name)).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{name}: {stderr}");
        world.assert_clean();
    }
}

#[test]
fn a_failing_server_brings_its_files_home() {
    let world = World::new();
    let text = "name = 'x'\n[group.n]\n[[step]]\nname = 's'\non = 'n'\nstart = 'echo why > log; exec sleep 1013'\n\
                ready = { port = 7009, timeout = '1s' }\ncollect = ['log']\n";
    let file = world.write("x.toml", text);
    world.tsunami([&"run".into(), &file]).assert_status(1);
    assert_eq!(fs::read_to_string(world.results().join("trials/1/s/n-0/log")).unwrap(), "why\n");
    world.assert_clean();
}

#[test]
fn what_cannot_come_home_is_named_and_the_rest_comes() {
    let world = World::new();
    let text = "name = 'x'\n[group.n]\n[[step]]\nname = 's'\non = 'n'\n\
                run = 'mkdir out; ln -s /etc/hostname out/a; ln -s z out/b; echo 1 > out/z; echo 2 > y.csv'\n\
                collect = ['out', 'out/z', '*.csv']\n";
    let file = world.write("x.toml", text);
    let ended = world.tsunami([&"run".into(), &file]);
    ended.assert_status(1).assert_says(&["n-0", "`out/a`: a link to `/etc/hostname`"]);
    let home = world.results().join("trials/1/s/n-0");
    assert!(home.join("out/a").symlink_metadata().is_err());
    assert_eq!(fs::read_to_string(home.join("out/b")).unwrap(), "1\n");
    assert_eq!(fs::read_to_string(home.join("y.csv")).unwrap(), "2\n");
    world.assert_clean();
}

#[test]
fn nobody_else_writes_to_results_at_any_umask() {
    fn check(directory: &Path) {
        for entry in fs::read_dir(directory).unwrap() {
            let (path, metadata) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
            // A link has no mode of its own.
            if metadata.is_symlink() {
                continue;
            }
            assert_eq!(metadata.mode() & 0o7022, 0, "{} has mode {:o}", path.display(), metadata.mode());
            if metadata.is_dir() {
                check(&path);
            }
        }
    }
    let world = World::new();
    world.write(
        "open.sh",
        "#!/bin/sh\numask 000; mkdir out; echo 1 > out/file; chmod 4777 out/file; chmod 1777 out",
    );
    let mode = fs::Permissions::from_mode(0o777);
    fs::set_permissions(world.path("work/open.sh"), mode).unwrap();
    let text = "name = 'x'\n[group.n]\nsetup = { script = 'open.sh' }\n[[step]]\nname = 's'\non = 'n'\n\
                run = 'mkdir -p out; mv out new'\ncollect = ['new']\n";
    let file = world.write("x.toml", text);
    let command = world.command([&"run".into(), &file]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 000; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    shell.current_dir(world.path("work"));
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    Ended::from(shell.output().unwrap()).assert_status(0);
    let results = world.results();
    for name in ["run.json", "logs/n-0/setup.log", "inputs/n/open.sh", "trials/1/s/n-0/new/file"] {
        assert!(results.join(name).exists(), "{name}");
    }
    check(&world.path("work/results"));
    world.assert_clean();
}

#[test]
fn no_trial_brings_home_what_was_there_before() {
    let world = World::new();
    let file = world.write(
        "x.toml",
        r#"name = "x"
        trials = { repeat = 2 }
        [group.node]
        setup = "echo stale > out.csv"
        [[step]]
        name = "work"
        on = "node"
        run = "true"
        collect = ["*.csv"]
        "#,
    );
    let says = ["nothing matches `*.csv`", "\n  in: trial 1 of 2\n"];
    world.tsunami([&"run".into(), &file]).assert_status(1).assert_says(&says);
    world.assert_clean();
}

#[test]
fn secrets_are_nowhere_to_be_read() {
    let world = World::new();
    let file = world.write(
        "x.toml",
        r#"name = "x"
        [group.node]
        env = { TOKEN = { from_env = "E2E_TOKEN" } }
        setup = "test ${#TOKEN} = 11; echo $TOKEN"
        [[step]]
        on = "node"
        run = "echo $TOKEN >&2; exit 1"
        "#,
    );
    let mut command = world.command([&"run".into(), &file, &"-v".into()]);
    let output = command.env("E2E_TOKEN", "hunter2-abc").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = fs::read_to_string(world.results().join("logs/node-0/setup.log")).unwrap();
    assert!(log.contains("[secret]"), "{log}");
    let found =
        std::process::Command::new("grep").args(["-r", "hunter2"]).arg(world.path("work")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("hunter2"));
    world.assert_clean();
}

#[test]
fn a_flood_of_output_is_logged_whole_in_bounded_memory() {
    let world = World::new();
    let file = world.write(
        "x.toml",
        r#"name = "x"
        [group.node]
        [[step]]
        name = "flood"
        on = "node"
        run = "head -c 300000000 /dev/zero; head -c 10000000 /dev/zero | tr '\\0' x >&2"
        "#,
    );
    let mut child = world.command([&"run".into(), &file]).spawn().unwrap();
    let mut peak = 0;
    let status = loop {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0).max(peak);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success());
    assert!(peak > 0 && peak < 150 << 10, "{peak} KiB");
    let log = fs::metadata(world.results().join("logs/node-0/flood.log")).unwrap();
    assert!(log.len() >= 310_000_000, "{} bytes", log.len());
    world.assert_clean();
}

#[test]
fn a_hundred_machines_need_no_tuning() {
    let world = World::new();
    let text = "name = 'many'\n[group.node]\ncount = 100\nsetup = 'echo set up'\n[[step]]\non = 'node'\nrun = 'true'\n";
    let file = world.write("x.toml", text);
    world.tsunami([&"run".into(), &file]).assert_status(0);
    assert_eq!(fs::read_dir(world.results().join("logs")).unwrap().count(), 100);
    world.assert_clean();
}

#[test]
fn machines_are_kept_when_that_is_asked_for() {
    let world = World::new();
    let text = "name = 'x'\n[group.node]\ncount = 2\nsetup = 'exit {{ index }}'\n[[step]]\non = 'all'\nrun = 'true'\n";
    let file = world.write("x.toml", text);
    let kept = world.tsunami([&"run".into(), &file, &"--keep-on-failure".into()]);
    assert!(!kept.assert_status(1).assert_says(&["2 machines up for"]).stderr.contains("--on"), "{kept:?}");
    world.tsunami(["exec", "x", "-m", "node-1", "--", "echo", "still here"]).assert_status(0);
    let on = world.tsunami([&"run".into(), &file, &"--on".into(), &"x".into()]);
    on.assert_status(2).assert_says(&["the set-up of node-1 failed in run", "isn't done again"]);
    // What was refused leaves no results: those of the first run are the only ones.
    assert!(on.stdout.is_empty() && !on.stderr.contains("results: "), "{on:?}");
    world.results();
    world.tsunami(["down", "x"]).assert_status(0);
    world.assert_clean();

    let file =
        world.write("y.toml", "name = 'y'\n[group.node]\n[[step]]\non = 'all'\nrun = 'touch was-here'\n");
    world.tsunami([&"run".into(), &file, &"--keep".into(), &"-o".into(), &"out".into()]).assert_status(0);
    let again =
        world.write("z.toml", "name = 'z'\n[group.node]\n[[step]]\non = 'all'\nrun = 'test -e was-here'\n");
    world
        .tsunami([&"run".into(), &again, &"--on".into(), &"y".into(), &"-o".into(), &"out2".into()])
        .assert_status(0);
    let other = world.write("w.toml", "name = 'w'\n[group.other]\n[[step]]\non = 'all'\nrun = 'true'\n");
    let on =
        world.tsunami([&"run".into(), &other, &"--on".into(), &"y".into(), &"-o".into(), &"out3".into()]);
    on.assert_status(2).assert_says(&["w needs 1 × other", "has 1 × node"]);
    let set_up = world
        .write("v.toml", "name = 'v'\n[group.node]\nsetup = 'true'\n[[step]]\non = 'all'\nrun = 'true'\n");
    let on =
        world.tsunami([&"run".into(), &set_up, &"--on".into(), &"y".into(), &"-o".into(), &"out4".into()]);
    on.assert_status(2).assert_says(&["setup of group node is not what", "put it back"]);
    world.tsunami(["down", "--all"]).assert_status(0).assert_says(&["everything is gone"]);
    world.assert_clean();
}

#[test]
fn a_lifetime_that_is_over_ends_the_run() {
    let world = World::new();
    let file = world
        .write("x.toml", "name = 'x'\nlifetime = '3s'\n[group.n]\n[[step]]\non = 'n'\nrun = 'sleep 1000'\n");
    let begun = Instant::now();
    world.tsunami([&"run".into(), &file]).assert_status(4);
    assert!(begun.elapsed() < Duration::from_secs(30));
    world.assert_clean();
}

/// A shell's usual limit is 1,024 open files, and a machine takes several.
#[test]
fn more_machines_than_the_usual_limit_of_open_files_allows() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.n]\ncount = 24\nsetup = 'true'\n");
    let tsunami = world.command(["run", "-q"]);
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -Sn 40 && exec \"$@\"", "sh"]).arg(tsunami.get_program());
    limited.args(tsunami.get_args()).arg(&file);
    limited.current_dir(tsunami.get_current_dir().unwrap());
    for (name, value) in tsunami.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    Ended::from(limited.output().unwrap()).assert_status(0);
    world.assert_clean();
}

/// `TSUNAMI_LAUNCHES` says how often.
#[test]
fn local_machines_are_there_whenever_they_are_asked_for() {
    let launches: u32 = std::env::var("TSUNAMI_LAUNCHES").map_or(5, |launches| launches.parse().unwrap());
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\n[group.b]\ncount = 2\n");
    for launch in 1..=launches {
        let run = world.tsunami([&"run".into(), &file, &"-q".into()]);
        assert_eq!(run.status, Some(0), "launch {launch} of {launches}: {run:?}");
    }
    println!("launches of local machines: {launches}, all of them succeeded");
    world.assert_clean();
}

/// Whoever may write there could lead what machines send to any place of the user's.
#[test]
fn results_go_to_no_directory_that_others_may_write() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\n");
    let results = world.path("work/results");
    fs::create_dir(&results).unwrap();
    fs::set_permissions(&results, fs::Permissions::from_mode(0o777)).unwrap();
    let run = world.tsunami([&"run".into(), &file]);
    run.assert_status(2).assert_says(&["may be written by others", "mode 0777"]);
    assert!(!run.stderr.contains("launching"), "{}", run.stderr);
    let among_runs = world.path("state/tsunami/runs/x");
    let run = world.tsunami([&"run".into(), &file, &"-o".into(), &among_runs]);
    run.assert_status(2).assert_says(&["where runs are recorded"]);
    world.assert_clean();
}

#[test]
fn a_limit_on_the_size_of_files_is_no_reason_to_leave_machines_behind() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\nsetup = 'head -c 300000 /dev/zero'\n");
    let mut limited = std::process::Command::new("prlimit");
    let tsunami = world.command([&"run".into(), &file]);
    limited.arg("--fsize=100000").arg(tsunami.get_program()).args(tsunami.get_args());
    limited.envs(tsunami.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ended = limited.current_dir(world.path("work")).stdin(std::process::Stdio::null()).output().unwrap();
    assert!(ended.status.code().is_some(), "it was killed: {ended:?}");
    world.tsunami(["down", "--all"]).assert_status(0);
    world.assert_clean();
}

#[test]
fn of_several_failures_the_first_is_told_in_full_and_the_others_are_named() {
    let world = World::new();
    let file = world.write(
        "x.toml",
        r#"name = "x"
[group.n]
count = 3
[[step]]
name = "load"
on = "n"
run = """
case $TSUNAMI_INDEX in
1) echo 'cannot bind'; exit 3 ;;
0) sleep 1.5 ;;
esac
sleep 0.5"""
collect = ["missing"]
"#,
    );
    let ended = world.tsunami([&"run".into(), &"-q".into(), &file]);
    ended.assert_status(1);
    let told = &ended.stderr[ended.stderr.find("error: ").unwrap()..];
    let mut lines = told.lines();
    assert!(lines.next().unwrap().starts_with("error: n-1: stage load: "), "{told}");
    let others: Vec<_> = told.lines().filter(|line| line.starts_with("  then: ")).collect();
    assert!(told.contains("\n  | cannot bind\n") && told.contains("n-1/load.log"), "{told}");
    assert!(others[0].ends_with(", 2 times (n-2, n-0)") && others.len() == 1, "{told}");
    world.assert_clean();
}

#[test]
fn what_cannot_be_written_is_said_and_fails_the_command() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.n]\nsetup = ['true']\n");
    let written_to_a_full_disk = |words: &[&str]| {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ended = world.command(words).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let ended = Ended::from(ended);
        ended.assert_status(2).assert_says(&["No space left on device"]);
        ended
    };
    let ended = written_to_a_full_disk(&["run", "--json", file.to_str().unwrap()]);
    ended.assert_says(&["torn down: ", "standard output"]);
    let results = world.results();
    let run = fs::read_to_string(results.join("run.json")).unwrap();
    assert!(run.contains("\"success\""), "{run}");
    let help = ["--help", "--version", "help run", "run -h", "man", "schema", "completions bash", "init -"];
    for words in help {
        written_to_a_full_disk(&words.split(' ').collect::<Vec<_>>())
            .assert_says(&["cannot write to standard output"]);
    }
    written_to_a_full_disk(&["logs", results.to_str().unwrap()]).assert_says(&["cannot show the logs"]);
    world.assert_clean();
}

/// Neither what stands beside the results nor a full disk under them changes what the experiment came to.
#[test]
fn what_of_the_results_cannot_be_written_is_said_with_what_is_lost() {
    let world = World::new();
    let talk = "i=0; while [ $i -lt 5000 ]; do echo line $i of so many; i=$((i + 1)); done";
    let step = format!("[[step]]\nname = 'talk'\non = 'n'\nrun = '{talk}'\n");
    world.write("x.toml", &format!("name = 'x'\n[group.n]\n{step}"));
    fs::create_dir_all(world.path("work/results/x/index.csv")).unwrap();
    let ran = world.tsunami(["run", "x.toml"]);
    ran.assert_status(0).assert_says(&["results/x/index.csv does not list this run: it is no file"]);
    let results = fs::canonicalize(world.path("work/results/x/latest")).unwrap();
    assert_eq!(ran.stdout, format!("{}\n", results.display()));
    world.assert_clean();

    if !rustix::process::geteuid().is_root() {
        // An ordinary user mounts nothing; these tests run as root too.
        return;
    }
    let small = "mount -t tmpfs -o size=48k none results && exec \"$@\"";
    let mut command =
        world.shell(&format!("exec unshare --mount sh -c '{small}' sh \"$@\""), ["run", "x.toml"]);
    let ended = Ended::from(command.output().unwrap());
    ended.assert_status(2).assert_says(&[
        "s: this computer could not take the command's output because: cannot write /",
        "error: cannot write all results to /",
        "/logs/n-0/talk.log: No space left on device",
        "help: that is a disk of this computer, not a machine's. What commands wrote and what happened after that is not in",
        "Once there is room, `tsunami report /",
    ]);
    // What follows from it doesn't tell it once more.
    for (once, times) in
        [("error: ", 1), ("could not take", 1), ("talk.log: No space left", 2), ("a disk of this", 1)]
    {
        assert_eq!(ended.stderr.matches(once).count(), times, "{once}: {}", ended.stderr);
    }
    world.assert_clean();

    let step = "[[step]]\nname = 'w'\non = 'n'\nrun = 'seq 20000 >out.bin'\ncollect = ['out.bin']\n";
    world.write("y.toml", &format!("name = 'y'\n[group.n]\n{step}"));
    let mut command =
        world.shell(&format!("exec unshare --mount sh -c '{small}' sh \"$@\""), ["run", "y.toml"]);
    let ended = Ended::from(command.output().unwrap());
    ended.assert_says(&[
        "cannot write /",
        "/out.bin",
        "help: that is a disk of this computer, not a machine's",
    ]);
    world.assert_clean();
}

#[test]
fn what_the_program_does_by_itself_is_no_part_of_the_story() {
    let world = World::new();
    let script = world.write("prepare.sh", "#!/bin/sh\necho prepared\n");
    fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
    let text = r#"name = "x"
[group.n]
setup = { script = "prepare.sh" }
[[step]]
name = "serve"
on = "n"
start = "sleep 0.5; touch up; exec sleep 60"
ready = { command = "echo asked; test -e up" }
[[step]]
name = "load"
on = "n"
run = "echo 1 > out.csv"
collect = ["out.csv"]
"#;
    let file = world.write("x.toml", text);
    let ended = world.tsunami([&"run".into(), &"-v".into(), &file]);
    ended.assert_status(0).assert_says(&["setup: $ ", "prepare.sh", "serve: $ sleep 0.5"]);
    let results = world.results();
    let mut logs: Vec<_> =
        fs::read_dir(results.join("logs/n-0")).unwrap().map(|log| log.unwrap().file_name()).collect();
    logs.sort();
    assert_eq!(logs, ["load.log", "serve.log", "setup.log"]);
    let read = |name: &str| fs::read_to_string(results.join(name)).unwrap();
    assert!(!read("logs/n-0/serve.log").contains("asked"), "{}", read("logs/n-0/serve.log"));
    for told in [ended.stderr.clone(), read("events.jsonl"), read("run.json"), read("logs/n-0/setup.log")] {
        // Where others use the computer, it says what it waits for, and until when.
        let told = told.lines().filter(|line| !line.contains("] waiting ")).collect::<Vec<_>>().join("\n");
        for internal in ["IFS=", "/proc/", "until ", "exec ./", "\"sweep\",", "\"clean\","] {
            assert!(!told.contains(internal), "`{internal}` in:\n{told}");
        }
    }
    world.assert_clean();
}
