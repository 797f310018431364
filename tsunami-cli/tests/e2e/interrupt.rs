//! Whatever ends a run, nothing is left behind.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::world::{Ended, Going, World, eventually};

/// A run with something going on in every stage: set-up takes a moment, a server runs, a step takes forever.
const FILE: &str = r#"name = "x"
[group.server]
setup = "sleep 1"
[group.client]
count = 2
setup = ["sleep 0.5", "sleep 0.5"]
[[step]]
name = "serve"
on = "server"
start = "sleep 1001 & sleep 1002"
[[step]]
name = "work"
on = "client"
run = "sleep 1003 | sleep 1004"
"#;

/// The same over each transport.
fn over_each_transport(text: &str) -> [String; 2] {
    ["openssh", "in-process"].map(|transport| format!("{text}[ssh]\ntransport = \"{transport}\"\n"))
}

fn interrupted(signal: Signal, at: &[&str]) {
    for text in over_each_transport(FILE) {
        let world = World::new();
        let file = world.write("x.toml", &text);
        let mut run = world.start(&file);
        run.wait_for(at);
        run.signal(signal);
        run.end().assert_status(5).assert_says(&["stopping and tearing down", "torn down: "]);
        world.assert_clean();
    }
}

#[test]
fn an_interrupt_during_launch_leaves_nothing() {
    interrupted(Signal::INT, &["\"launching\""]);
}

#[test]
fn an_interrupt_while_something_is_prepared_ends_that_and_launches_nothing() {
    let world = World::new();
    let killed = world
        .write("killed.toml", "name = 'x'\nprepare = 'touch killed; sleep 1007 | sleep 1008'\n[group.a]\n");
    let run = world.start(&killed);
    let has_begun = || world.path("work/killed").exists();
    eventually("the command begins", || has_begun().then_some(()).ok_or("it has not".to_owned()));
    run.signal(Signal::KILL);
    assert_eq!(run.end().status, None);
    // Nobody else would end or name it.
    world.assert_clean();
    let text = "name = 'x'\nprepare = 'touch begun; sleep 1005 | sleep 1006'\n[group.a]\n";
    let file = world.write("x.toml", text);
    let run = world.start(&file);
    let has_begun = || world.path("work/begun").exists();
    eventually("the command begins", || has_begun().then_some(()).ok_or("it has not".to_owned()));
    run.signal(Signal::INT);
    let ended = run.end();
    ended.assert_status(5).assert_says(&["interrupted"]);
    assert!(!ended.stdout.contains("launching"), "{}", ended.stdout);
    world.assert_clean();
}

#[test]
fn an_interrupt_while_connecting_leaves_nothing() {
    interrupted(Signal::INT, &["\"running\"", "client-1"]);
}

#[test]
fn an_interrupt_during_set_up_leaves_nothing() {
    interrupted(Signal::INT, &["\"command_started\"", "setup"]);
}

#[test]
fn an_interrupt_during_a_step_leaves_nothing() {
    interrupted(Signal::INT, &["\"command_started\"", "\"work\""]);
}

#[test]
fn a_termination_during_set_up_leaves_nothing() {
    interrupted(Signal::TERM, &["\"command_started\"", "setup"]);
}

#[test]
fn a_termination_during_a_step_leaves_nothing() {
    interrupted(Signal::TERM, &["\"command_started\"", "\"work\""]);
}

#[test]
fn a_hang_up_during_set_up_leaves_nothing() {
    interrupted(Signal::HUP, &["\"command_started\"", "setup"]);
}

#[test]
fn a_hang_up_during_a_step_leaves_nothing() {
    interrupted(Signal::HUP, &["\"command_started\"", "\"work\""]);
}

#[test]
fn a_machine_that_is_lost_during_a_step_is_named_and_leaves_nothing() {
    let texts = over_each_transport(&FILE.replace("count = 2", ""));
    for (text, keep) in texts.into_iter().zip([true, false]) {
        let world = World::new();
        let file = world.write("x.toml", &text);
        let mut command = world.command([OsStr::new("run"), OsStr::new("--json"), file.as_os_str()]);
        command.args(keep.then_some("--keep-on-failure"));
        let mut run = Going::of(command);
        run.wait_for(&["\"command_started\"", "\"work\"", "client-0"]);
        // Its sshd, and what that has made of itself for each connection.
        let end = |of: i32| {
            let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap();
            let children = children.split(' ').filter_map(|child| child.parse().ok());
            for pid in children.chain([of]) {
                let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
        };
        let processes = world.processes();
        let of_the_machine =
            |process: &&String| process.contains("/client-0/") && process.contains("sshd_config");
        let sshd = processes.iter().find(of_the_machine).unwrap();
        end(sshd.split(' ').next().unwrap().parse().unwrap());
        let ended = run.end();
        ended.assert_status(4).assert_says(&["client-0", "work"]);
        if keep {
            ended.assert_says(&["1 machine up for", "costs nothing: server-0", "tsunami exec "]);
            assert!(!ended.stderr.contains("--on"), "{ended:?}");
            world.tsunami(["down", "x"]).assert_status(0);
        } else {
            ended.assert_says(&["torn down: "]);
        }
        world.assert_clean();
    }
}

#[test]
fn an_interrupt_during_teardown_changes_nothing() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.n]\ncount = 3\n");
    let mut run = world.start(&file);
    run.wait_for(&["\"tearing_down\""]);
    run.signal(Signal::INT);
    let ended = run.end();
    assert!(matches!(ended.status, Some(0 | 5)), "{ended:?}");
    world.assert_clean();
}

#[test]
fn a_second_interrupt_gives_the_terminal_back_and_names_what_remains() {
    let world = World::new();
    // Deaf to TERM, so that the teardown takes its five seconds.
    let text = "name = 'x'\n[group.n]\n[[step]]\nname = 'deaf'\non = 'n'\nrun = \"trap '' TERM; while :; do sleep 0.1; done\"\n";
    let file = world.write("x.toml", text);
    let mut run = world.start(&file);
    run.wait_for(&["\"command_started\"", "deaf"]);
    std::thread::sleep(Duration::from_millis(500));
    run.signal(Signal::INT);
    run.wait_for(&["\"tearing_down\""]);
    // Signals that come at once are one: a shell may pass on what the terminal sends as well.
    run.signal(Signal::INT);
    run.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(1200));
    let second = Instant::now();
    run.signal(Signal::INT);
    let ended = run.end();
    ended.assert_status(6).assert_says(&["may remain", "n-0", "`tsunami down"]);
    ended.assert_says(&["SIGINT: within a second of the first it counts as the same"]);
    ended.assert_says(&[
        "results: ",
        "`tsunami report ",
        "makes results.json, results.csv and report.html of it",
    ]);
    assert!(second.elapsed() < Duration::from_secs(2), "{:?}", second.elapsed());
    let run = world.runs().pop().unwrap();
    world.tsunami(["down", &run]).assert_status(0);
    world.assert_clean();
}

#[test]
fn after_kill_9_the_next_command_names_the_run_and_down_removes_it() {
    for at in
        [["\"launched\"", "client"], ["\"command_started\"", "setup"], ["\"command_started\"", "\"work\""]]
    {
        let world = World::new();
        let file = world.write("x.toml", FILE);
        let mut run = world.start(&file);
        run.wait_for(&at);
        run.signal(Signal::KILL);
        assert_eq!(run.end().status, None);
        // What runs on this computer for the controller goes with it.
        eventually("ssh masters and control sockets are gone", || {
            let masters: Vec<_> =
                world.processes().into_iter().filter(|process| process.contains("ssh -F")).collect();
            if masters.is_empty() { Ok(()) } else { Err(masters.join("\n")) }
        });
        let ls = world.tsunami(["ls"]);
        ls.assert_status(0).assert_says(&["its controller is gone", "tsunami down"]);
        world.tsunami([&"plan".into(), &file]).assert_status(0).assert_says(&["abandoned", &world.runs()[0]]);
        world.tsunami(["down", &world.runs()[0]]).assert_status(0);
        world.assert_clean();
    }
}

/// One machine has it then, and gives it to others.
#[test]
fn whatever_ends_a_run_while_machines_hand_on_files_leaves_nothing() {
    for signal in [Signal::INT, Signal::KILL] {
        let world = World::new();
        fs::write(world.path("work/large"), vec![b'x'; 48 << 20]).unwrap();
        let large = "name = 'x'\n[group.a]\ncount = 5\nupload = [{ from = 'large', to = 'in/' }]\n\
                     [[step]]\non = 'a'\nrun = 'sleep 1001'\n";
        let mut run = world.start(&world.write("x.toml", large));
        run.wait_for(&["\"uploaded\""]);
        run.signal(signal);
        let ended = run.end();
        if signal == Signal::KILL {
            world.tsunami(["down", &world.runs()[0]]).assert_status(0);
        } else {
            ended.assert_status(5).assert_says(&["torn down: "]);
        }
        world.assert_clean();
    }
}

#[test]
fn after_kill_9_the_machines_end_at_their_deadline_by_themselves() {
    let world = World::new();
    let file = world.write("x.toml", &FILE.replace("name = \"x\"", "name = \"x\"\nlifetime = \"8s\""));
    let mut run = world.start(&file);
    run.wait_for(&["\"command_started\"", "\"work\""]);
    run.signal(Signal::KILL);
    run.end();
    assert!(!world.processes().is_empty());
    world.assert_no_processes();
    let run = world.runs().pop().unwrap();
    assert!(!world.path("state/tsunami/runs").join(&run).join("local").exists());
    world.tsunami(["down", &run]).assert_status(0);
    world.assert_clean();
}

#[test]
fn what_outlives_its_deadline_is_named() {
    let world = World::new();
    let file = world.write("x.toml", &FILE.replace("name = \"x\"", "name = \"x\"\nlifetime = \"8s\""));
    let mut run = world.start(&file);
    run.wait_for(&["\"command_started\"", "\"work\""]);
    run.signal(Signal::KILL);
    run.end();
    // Somebody has killed the watchdog too.
    let processes = world.processes();
    let watchdogs = processes.iter().filter(|process| process.contains(" tsunami-watchdog:"));
    for watchdog in watchdogs.map(|process| process.split(' ').next().unwrap().parse().unwrap()) {
        kill_process(Pid::from_raw(watchdog).unwrap(), Signal::KILL).unwrap();
    }
    eventually("the run is overdue", || {
        let ls = world.tsunami(["ls"]);
        match ls.stdout.contains("overdue") && ls.stderr.contains("its lifetime is over") {
            true => Ok(()),
            false => Err(format!("{ls:?}")),
        }
    });
    world.tsunami(["down", "x"]).assert_status(0);
    world.assert_clean();
}

#[test]
fn down_ends_a_run_that_is_still_going() {
    for keep in [None, Some("--keep")] {
        let world = World::new();
        let file = world.write("x.toml", FILE);
        let mut command = world.command([OsStr::new("run"), OsStr::new("--json"), file.as_os_str()]);
        command.args(keep);
        let mut run = Going::of(command);
        run.wait_for(&["\"command_started\"", "\"work\""]);
        let (one, two) = (world.runs()[0].clone(), world.runs()[0].clone());
        std::thread::scope(|scope| {
            let both = [one, two].map(|run| scope.spawn(|| world.tsunami(["down".to_owned(), run])));
            for down in both {
                // Whoever comes second may find the record gone already.
                let ended = down.join().unwrap();
                assert!(ended.status == Some(0) || ended.stderr.contains("no run"), "{ended:?}");
            }
        });
        let ended = run.end();
        ended.assert_status(5).assert_says(&["was torn down by another process"]);
        let says = |what: &str| ended.stderr.contains(what);
        assert!(!says("error: client") && !says(" up for "), "{ended:?}");
        world.assert_clean();
    }
}

/// What a trial of a killed process has left would hold the port of the next one's server. What set-up has started stays.
#[test]
fn after_kill_9_the_next_trials_on_the_machines_begin_without_those_of_the_killed_ones() {
    let world = World::new();
    let text = "name = 'x'\n[group.n]\nsetup = 'setsid sleep 1023 </dev/null >/dev/null 2>&1 &'\n\
                [[step]]\non = 'n'\nstart = 'exec sleep 1021'\n\
                [[step]]\nname = 'work'\non = 'n'\nrun = 'exec sleep 1022'\n";
    let file = world.write("x.toml", text);
    let up = world.tsunami([&"up".into(), &file]).assert_status(0).stdout.trim().to_owned();
    let run = || {
        let args = ["run".as_ref(), "--json".as_ref(), "--on".as_ref(), up.as_ref(), file.as_os_str()];
        let mut run = Going::of(world.command(args));
        run.wait_for(&["\"command_started\"", "\"work\""]);
        run
    };
    let of = |line: &str| -> Vec<String> {
        let processes = world.processes().into_iter();
        let processes = processes.filter_map(|process| {
            let (pid, command) = process.split_once(' ')?;
            (command.trim() == line).then(|| pid.to_owned())
        });
        processes.collect()
    };
    let begun = |line: &str| {
        eventually(
            "it has begun",
            || if of(line).len() == 1 { Ok(()) } else { Err(format!("{:?}", of(line))) },
        );
        of(line)
    };
    let killed = run();
    let (server, of_set_up) = (begun("sleep 1021"), begun("sleep 1023"));
    killed.signal(Signal::KILL);
    killed.end();
    let next = run();
    let new = begun("sleep 1021");
    assert!(new != server && of("sleep 1023") == of_set_up, "{new:?} {server:?} {of_set_up:?}");
    next.signal(Signal::INT);
    next.end().assert_status(5);
    world.tsunami(["down", &up]).assert_status(0);
    world.assert_clean();
}

#[test]
fn down_at_any_moment_says_who_ended_the_run_and_minds_no_end_beside_its_own() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.n]\ncount = 2\nsetup = 'sleep 0.2'\n");
    for moment in 0..12 {
        let run = world.command([&"run".into(), &file]).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(moment * 150));
        world.tsunami(["down", "--all"]).assert_status(0);
        let ended = Ended::from(run.wait_with_output().unwrap());
        // It may have ended before, or be recorded only later.
        let said = ended.stderr.contains("was torn down by another process");
        assert!(ended.status == Some(0) || ended.status == Some(5) && said, "{moment}: {ended:?}");
        world.assert_clean();
    }
}

#[test]
fn giving_up_steps_on_machines_of_another_run_names_that_run() {
    let world = World::new();
    let text = "name = 'x'\n[group.n]\n[[step]]\nname = 'deaf'\non = 'n'\nrun = \"trap '' TERM; while :; do sleep 0.1; done\"\n";
    let file = world.write("x.toml", text);
    let up = world.tsunami([&"up".into(), &file]).assert_status(0).stdout.trim().to_owned();
    let args = ["run".as_ref(), "--json".as_ref(), "--on".as_ref(), up.as_ref(), file.as_os_str()];
    let mut run = Going::of(world.command(args));
    run.wait_for(&["\"command_started\"", "deaf"]);
    std::thread::sleep(Duration::from_millis(500));
    run.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(1500));
    run.signal(Signal::INT);
    let ended = run.end();
    ended
        .assert_status(6)
        .assert_says(&["may remain: what the steps began", &format!("`tsunami down {up}`")]);
    world.tsunami(["down", &up]).assert_status(0);
    world.assert_clean();
}

#[test]
fn what_is_interrupted_on_machines_of_another_run_says_that_they_stay() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.n]\n[[step]]\non = 'n'\nrun = 'sleep 1016'\n");
    let up = world.tsunami([&"up".into(), &file]).assert_status(0).stdout.trim().to_owned();
    let args = ["run".as_ref(), "--json".as_ref(), "--on".as_ref(), up.as_ref(), file.as_os_str()];
    let mut run = Going::of(world.command(args));
    run.wait_for(&["\"command_started\"", "sleep 1016"]);
    // Trials of two runs would end each other's commands, and bring home each other's files.
    let beside =
        ["run".as_ref(), "--on".as_ref(), up.as_ref(), file.as_os_str(), "-o".as_ref(), "out2".as_ref()];
    world.tsunami(beside).assert_status(2).assert_says(&["in use"]);
    run.signal(Signal::INT);
    run.end().assert_status(5).assert_says(&["interrupted; the machines stay up"]);
    world.tsunami(["exec", &up, "--", "true"]).assert_status(0);
    world.tsunami(["down", &up]).assert_status(0);
    world.assert_clean();
}

/// `TSUNAMI_KILLS` says how many moments are tried.
#[test]
fn a_run_killed_at_any_moment_of_its_launch_leaves_nothing_that_down_does_not_find() {
    let kills: u32 = std::env::var("TSUNAMI_KILLS").map_or(15, |kills| kills.parse().unwrap());
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.n]\ncount = 6\n");
    let run = || {
        let mut run = world.command([&"run".into(), &file, &"-q".into()]);
        run.stdout(Stdio::null()).spawn().unwrap()
    };
    // What a run takes that nobody kills, here and now: its teardown is hit, too.
    let begun = Instant::now();
    assert!(run().wait().unwrap().success());
    let whole = begun.elapsed();
    for kill in 0..kills {
        let mut run = run();
        // By the golden ratio, moments spread evenly, however many there are.
        std::thread::sleep(whole.mul_f64((f64::from(kill) * 0.618_034).fract()));
        run.kill().unwrap();
        run.wait().unwrap();
        world.tsunami(["down", "--all"]).assert_status(0);
        world.assert_clean();
    }
    println!("kills of a local launch: {kills}, 0 things left");
}

#[test]
fn after_kill_9_down_ends_what_has_lost_its_mark_too() {
    let world = World::new();
    let text = "name = 'x'\n[group.n]\n[[step]]\nname = 'bare'\non = 'n'\nstart = 'env -i sleep 1014'\n[[step]]\non = 'n'\nrun = 'sleep 1015'\n";
    let file = world.write("x.toml", text);
    let mut run = world.start(&file);
    run.wait_for(&["\"command_started\"", "sleep 1015"]);
    run.signal(Signal::KILL);
    run.end();
    world.tsunami(["down", "x"]).assert_status(0);
    let left = std::process::Command::new("pgrep").args(["-f", "^sleep 101[45]$"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
    world.assert_clean();
}

/// Fills a pipe so that whoever writes to it waits. The reader's end must be kept.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let (sent, progress) = std::sync::mpsc::channel();
    let mut filling = writer.try_clone().unwrap();
    // Its size is the system's business: it is full once a byte more has to wait.
    std::thread::spawn(move || while filling.write_all(b" ").is_ok() && sent.send(()).is_ok() {});
    while progress.recv_timeout(Duration::from_millis(200)).is_ok() {}
    (reader, writer)
}

/// Interrupts a step of a run of which nobody reads what it says, and returns what it wrote to the other stream.
fn interrupted_unread(args: &[&str], stalled: fn(&mut Command, std::io::PipeWriter)) -> Ended {
    let world = World::new();
    let file = world.write("x.toml", FILE);
    let (reader, writer) = full_pipe();
    let mut command = world.command([&"run".into(), &file]);
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    stalled(&mut command, writer);
    let child = command.spawn().unwrap();
    drop(command);
    eventually("the step has begun", || {
        let processes = world.processes();
        match processes.iter().any(|process| process.contains("sleep 1004")) {
            true => Ok(()),
            false => Err(processes.join("\n")),
        }
    });
    let interrupted = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = Ended::from(child.wait_with_output().unwrap());
    ended.assert_status(5);
    assert!(interrupted.elapsed() < Duration::from_secs(30), "{:?}", interrupted.elapsed());
    world.assert_clean();
    let events = fs::read_to_string(world.results().join("events.jsonl")).unwrap();
    assert!(events.contains("\"torn_down\"") && events.contains("\"run_finished\""), "{events}");
    drop(reader);
    ended
}

#[test]
fn a_reader_of_standard_error_that_stands_still_stops_nothing() {
    interrupted_unread(&["-v"], |command, writer| {
        command.stderr(writer);
    });
}

#[test]
fn output_of_many_machines_that_nobody_reads_can_be_interrupted() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.n]\ncount = 5\n");
    let run = world.tsunami([&"up".into(), &file]).assert_status(0).stdout.trim().to_owned();
    let mut command = world.command(["exec", &run, "--", "while :; do echo sleep 1016; done"]);
    let (reader, writer) = full_pipe();
    let child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    drop(command);
    std::thread::sleep(Duration::from_secs(2));
    let interrupted = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = Ended::from(child.wait_with_output().unwrap());
    ended.assert_status(125).assert_says(&["stopping the command"]);
    assert!(interrupted.elapsed() < Duration::from_secs(60), "{:?}", interrupted.elapsed());
    drop(reader);
    world.tsunami(["down", &run]).assert_status(0);
    world.assert_clean();
}

#[test]
fn a_reader_of_events_that_stands_still_stops_nothing_and_the_loss_is_said() {
    let ended = interrupted_unread(&["--json"], |command, writer| {
        command.stdout(writer);
    });
    ended.assert_says(&["torn down: ", "cannot write to standard output", "nobody reads it"]);
}
