//! `tsunami doctor`: what would fail, and the fix.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::hosts::Existing;
use crate::world::{Ended, World, binary, checks, of};

#[test]
fn a_healthy_computer_has_nothing_that_fails_and_what_was_left_over_is_named() {
    let world = World::new();
    let here = world.tsunami(["doctor"]);
    here.assert_status(0);
    assert!(here.stderr.is_empty() && here.stdout.starts_with("this computer\n"), "{here:?}");
    // A path is one word, however long.
    let path = world.path("");
    let fits = |line: &str| line.chars().count() <= 80 || line.contains(path.to_str().unwrap());
    assert!(here.stdout.lines().all(fits), "{here:?}");

    let file = world.write("x.toml", "name = 'x'\n[group.a]\n[[step]]\non = 'a'\nrun = 'sleep 1011'\n");
    let tried = world.tsunami([&"doctor".into(), &file, &"--json".into()]);
    let all = checks(tried.assert_status(0));
    assert_eq!(of(&all, "local machine")[0], "ok");
    assert!(of(&all, "local machine")[1].contains("an sshd started, let in, and was ended"), "{all:?}");
    assert_eq!(of(&all, "group a")[0], "ok");
    world.assert_clean();

    let mut run = world.start(&file);
    run.wait_for(&["\"command_started\""]);
    run.signal(Signal::KILL);
    run.end();
    let id = world.runs().pop().unwrap();
    let all = checks(world.tsunami(["doctor", "--json"]).assert_status(0));
    let [result, _, fix] = of(&all, &format!("run {id}"));
    assert_eq!((result, fix), ("warning", &*format!("tsunami down {id}")));
    world.tsunami(["down", &id]).assert_status(0);
    world.assert_clean();
}

#[test]
fn what_is_wrong_on_this_computer_or_in_the_file_ends_with_2_and_says_what_mends_it() {
    let world = World::new();
    // A file in the place of a directory can't be written below, whoever tries.
    let file = world.write("taken", "");
    let mut doctor = world.command(["doctor", "--json"]);
    let all = checks(Ended::from(doctor.env("XDG_STATE_HOME", &file).output().unwrap()).assert_status(2));
    let [result, found, fix] = of(&all, "state directory");
    assert!(result == "failed" && found.contains("can't be written to"), "{all:?}");
    assert!(fix.contains("export XDG_STATE_HOME="), "{fix}");

    let experiment = world.write("x.toml", "name = 'x'\n[group.a]\ncuont = 1\n");
    let all = checks(world.tsunami([&"doctor".into(), &experiment, &"--json".into()]).assert_status(2));
    assert!(of(&all, "file")[1].contains("did you mean `count`"), "{all:?}");

    let Some(without) = without_sshd(&world) else {
        println!("sshd can't be hidden by this user");
        return;
    };
    let doctor = |more: &[&str]| {
        let mut doctor = without();
        Ended::from(doctor.args(["doctor", "--json"]).args(more).output().unwrap())
    };
    // Whoever has their machines elsewhere needs none. In a namespace of one's own, /tmp is nobody's, and counts.
    let looked = doctor(&[]);
    let all = checks(if rustix::process::geteuid().is_root() { looked.assert_status(0) } else { &looked });
    let [result, found, fix] = of(&all, "sshd");
    assert!(result == "warning" && found.contains("which the provider \"local\" needs"), "{found}");
    assert_eq!(fix, "sudo apt-get install openssh-server");
    world.write("x.toml", "name = 'x'\n[group.a]\n");
    let all = checks(doctor(&["x.toml"]).assert_status(2));
    let [result, found, fix] = of(&all, "group a");
    assert!(result == "failed" && found.contains("`sshd` is not installed"), "{found}");
    assert!(fix.contains("apt-get install openssh-server"), "{fix}");
}

/// Makes commands of the program on a computer without sshd, where this user may hide it from some processes.
fn without_sshd(world: &World) -> Option<impl Fn() -> Command> {
    let places = ["/usr/sbin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd"].map(PathBuf::from);
    let places: Vec<_> = places.into_iter().filter(|place| place.is_file()).collect();
    let hide = places.iter().map(|place| format!("mount --bind /dev/null {} && ", place.display()));
    let script = format!("{}exec \"$@\"", hide.collect::<String>());
    let hidden = move |program: &std::ffi::OsStr| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", &script, "sh"]).arg(program);
        command
    };
    let works = hidden("true".as_ref()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let (work, state, tmp) = (world.path("work"), world.path("state"), world.path("tmp"));
    let make = move || {
        let mut command = hidden(&binary());
        command.current_dir(&work).stdin(Stdio::null());
        command.env("XDG_STATE_HOME", &state).env("TMPDIR", &tmp).env_remove("XDG_RUNTIME_DIR");
        command
    };
    works.is_ok_and(|status| status.success()).then_some(make)
}

#[test]
fn hosts_are_tried_and_left_as_they_were_and_each_says_what_keeps_it() {
    let existing = Existing::new(2);
    let known = fs::read_to_string(&existing.known_hosts).unwrap();
    // Of two hosts one is known, nobody listens at a third, and a fourth is silent, so that it is waited for.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap();
    let known = existing.world.write("known", known.lines().next().unwrap());
    let file = existing.file(known.to_str().unwrap(), "");
    let (good, unknown) = (&existing.hosts[0], &existing.hosts[1]);
    let text = fs::read_to_string(&file)
        .unwrap()
        .replace("hosts = [", &format!("hosts = ['127.0.0.1:1', '{silent}', "));
    fs::write(&file, text).unwrap();
    let tried = existing.world.tsunami([&"doctor".into(), &file, &"--json".into()]);
    let all = checks(tried.assert_status(3).assert_says(&["asking hosts about 1 group"]));
    let [result, found, _] = of(&all, &format!("host {good}"));
    assert!(result == "ok" && found.contains("its deadline could be armed"), "{found}");
    let [result, found, fix] = of(&all, &format!("host {unknown}"));
    assert!(result == "failed" && found.contains("ey"), "{found}");
    for part in ["SHA256:", "ssh-ed25519 AAAA", "add this line to your known_hosts", "--accept-new-hosts"] {
        assert!(fix.contains(part), "no {part} in {fix}");
    }
    let [result, found, _] = of(&all, "host 127.0.0.1:1");
    assert_eq!(
        (result, found),
        ("failed", "127.0.0.1 port 1: the connection is refused: no sshd listens there")
    );
    let [result, found, _] = of(&all, &format!("host {silent}"));
    assert!(result == "failed" && !found.contains("refused"), "{found}");
    assert_eq!(existing.world.runs().len(), 1, "that of the hosts themselves");
    existing.assert_left_as_found();
}
