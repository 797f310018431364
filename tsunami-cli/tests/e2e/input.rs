//! Bad input: a clear error with its place, exit status 2, and nothing started.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::world::{Ended, World, checks, eventually, of};

#[track_caller]
fn refused(text: &str, says: &[&str]) {
    let world = World::new();
    let file = world.write("x.toml", text);
    for command in ["run", "plan", "up"] {
        world.tsunami([&command.into(), &file]).assert_status(2).assert_says(says);
    }
    assert!(!world.path("work/results").exists());
    world.assert_clean();
}

#[test]
fn all_problems_of_a_file_come_at_once_with_their_places() {
    refused(
        r#"name = "x"
lifetme = "1h"
[group.Server]
[group.client]
count = 2
upload = [{ from = "missing", to = "x" }]
setup = "echo {{ nmae }}"
[[step]]
on = "clients"
run = "docker ps --format '{{.Names}}'"
[[step]]
on = "client"
[[step]]
on = "client"
run = "true"
start = "true"
timeout = "soon"
"#,
        &[
            "x.toml:2:1",
            "lifetime",
            "x.toml:3:",
            "x.toml:6:20",
            "missing",
            "nmae",
            "x.toml:9:",
            "client",
            "{{ '{{' }}",
            "soon",
        ],
    );
}

#[test]
fn a_group_without_machines_is_no_group() {
    refused("name = 'x'\n[group.a]\ncount = 0\n", &["x.toml:3:9", "from 1 to"]);
}

#[test]
fn what_is_not_built_in_says_so() {
    // Without EC2, that is all there is to say of such a file.
    let world = World::new();
    let has_ec2 = world.has_ec2();
    if !has_ec2 {
        world.tsunami(["gc", "--dry-run"]).assert_status(2).assert_says(&["tsunami gc --mine"]);
    }
    let of_ec2: &[&str] = match has_ec2 {
        true => &["x.toml:3:8", "no `instance`"],
        false => &["x.toml:2:12", "this tsunami was built without the provider \"aws\"; `cargo install"],
    };
    refused("name = 'x'\nprovider = 'aws'\n[group.a]\n", of_ec2);
}

#[test]
fn a_file_that_is_no_toml_or_is_not_there_says_so() {
    refused("name = \n", &["x.toml:1:"]);
    let world = World::new();
    world.tsunami(["run", "nowhere.toml"]).assert_status(2).assert_says(&["nowhere.toml", "No such file"]);
    world.assert_clean();
}

#[test]
fn results_go_to_a_new_directory_that_can_be_written() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\n");
    world
        .tsunami([&"run".into(), &file, &"-o".into(), &"/dev/null/x".into()])
        .assert_status(2)
        .assert_says(&["/dev/null/x"]);
    fs::create_dir(world.path("work/full")).unwrap();
    world.write("full/file", "");
    world.write("results", "in the way");
    world.tsunami([&"run".into(), &file]).assert_status(2).assert_says(&["results", "`-o DIR`"]);
    world
        .tsunami([&"run".into(), &file, &"-o".into(), &"full".into()])
        .assert_status(2)
        .assert_says(&["isn't empty"]);
    world.assert_clean();
}

#[test]
fn a_missing_tool_is_named_with_what_installs_it() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\n");
    let output = world.command([&"run".into(), &file]).env("PATH", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("not installed") && stderr.contains("apt-get install"), "{stderr}");
    // An ssh that can't read what a run gives it, as OpenSSH 7.2 says it.
    let old = "#!/bin/sh\n[ \"$1\" != -V ] || { echo OpenSSH_7.2p2 >&2; exit 0; }\n\
               echo 'command-line: line 0: Bad configuration option: proxyjump' >&2\nexit 255\n";
    let ssh = world.write("ssh", old);
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", world.path("work").display(), std::env::var("PATH").unwrap());
    let ended = |command: &mut Command| Ended::from(command.env("PATH", &path).output().unwrap());
    let run = ended(&mut world.command([&"run".into(), &file]));
    run.assert_status(2).assert_says(&["needs 7.3 or later"]);
    assert!(!run.stderr.contains("launching"), "{run:?}");
    let all = checks(ended(&mut world.command(["doctor", "--json"])).assert_status(2));
    assert!(of(&all, "ssh")[2].contains("needs 7.3 or later"), "{all:?}");
    world.assert_clean();
}

#[test]
fn a_state_directory_that_cannot_be_written_starts_nothing() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\n");
    fs::write(world.path("state/tsunami"), "in the way").unwrap();
    world.tsunami([&"run".into(), &file]).assert_status(2).assert_says(&[
        "record",
        "tsunami",
        "XDG_STATE_HOME",
    ]);
    // A path that is elsewhere for each working directory is none.
    let mut run = world.command([&"run".into(), &file]);
    let run = Ended::from(run.env_remove("XDG_STATE_HOME").env("HOME", "here").output().unwrap());
    run.assert_status(2).assert_says(&["neither HOME nor XDG_STATE_HOME is the whole path"]);
    assert!(!world.path("work/here").exists());
    world.assert_no_processes();
}

#[test]
fn an_unused_or_unusable_value_is_refused() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\n");
    world
        .tsunami([&"run".into(), &file, &"--set".into(), &"n=1".into()])
        .assert_status(2)
        .assert_says(&["n"]);
    world
        .tsunami([&"run".into(), &file, &"--set".into(), &"n".into()])
        .assert_status(2)
        .assert_says(&["NAME=VALUE"]);
    world.assert_clean();
}

#[test]
fn what_could_be_read_forever_is_no_upload() {
    refused(
        "name = 'x'\n[group.a]\nupload = [{ from = '/dev/zero', to = 'x' }]\n",
        &["x.toml:3:20", "`/dev/zero` is neither a file nor a directory"],
    );
}

/// Runs `plan` with 1 GiB of address space, most of which threads on many processors may take; a bomb ends in an error that says where it is, and in little more.
#[track_caller]
fn defused(text: &str, says: &str) {
    let world = World::new();
    let file = world.write("x.toml", text);
    let tsunami = world.command(["plan"]);
    let mut limited = Command::new("sh");
    limited.arg("-c").arg("ulimit -v 1048576; exec \"$0\" plan \"$1\"").arg(tsunami.get_program()).arg(file);
    limited.current_dir(world.path("work")).env("MALLOC_ARENA_MAX", "2");
    limited.envs(tsunami.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = limited.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let start: String = text.chars().skip(60).take(120).collect();
    assert_eq!(output.status.code(), Some(2), "{start}\n{stderr}");
    assert!(stderr.contains(says), "{start}\n{stderr}");
    assert!(stderr.len() < 16 << 10, "{start} gave {} bytes", stderr.len());
}

#[test]
fn templates_that_explode_are_errors_in_their_place() {
    for (bomb, part, times, end) in [
        ("{{ 'x' | indent(2000000000) }}", "", 0, ""),
        ("{{ '%4000000000d' | format(1) }}", "", 0, ""),
        ("{{ [1] | batch(2000000000, 0) | length }}", "", 0, ""),
        ("{{ range(100000) | join('aaaaaaaaaaaaaaaaaaaa') }}", "", 0, ""),
        ("{{ 'x' * 1000000000 }}", "", 0, ""),
        ("{{ [[1] * 100000000] == [[1] * 100000000] }}", "", 0, ""),
        ("{{ (client * 100000000) | list }}", "", 0, ""),
        ("{{ client | map('default', client, true) | join }}", "", 0, ""),
        ("{{ client | map(attribute='ip', default=client) | string }}", "", 0, ""),
        ("{{ 'a'", " | replace('a', 'aaaaaaaaaa')", 30, " }}"),
        ("{{ client | map(attribute='ip') | join('", "z", 900, "') }}"),
        ("{{ 1", "+1", 200_000, " }}"),
        ("{{ ip", "~ip", 200_000, " }}"),
        ("{{ ip", "|q", 200_000, " }}"),
        ("{{ ip", "[0:]", 200_000, " }}"),
        ("{{ ", "(", 200_000, " }}"),
        ("{{ ", "not ", 200_000, "1 }}"),
        ("{{ ", "9", 500_000, " }}"),
        ("{{ 'abc'[::-9223372036854775808] }}", "", 0, ""),
        ("", "{{ client | map(attribute='ip') | join(' ') }}", 15_000, ""),
        ("", "{{ nope }}", 90_000, ""),
    ] {
        let template = format!("{bomb}{}{end}", part.repeat(times));
        defused(
            &format!(
                "name = 'x'\n[group.client]\ncount = 10000\n[[step]]\non = 'client'\nrun = \"\"\"\n{template}\"\"\"\n"
            ),
            "x.toml:",
        );
    }
}

#[test]
fn files_that_would_take_for_ever_are_refused() {
    let machines = "name = 'x'\n[group.a]\ncount = 10000\n";
    let names: String = (0..70_000).map(|i| format!("'b-{i}',")).collect();
    let long: String = (0..9_000).map(|i| format!("'{}{i}',", "b".repeat(90))).collect();
    let keys: String = (0..70_000).map(|i| format!("nam{i} = 1\n")).collect();
    for (text, says) in [
        (format!("{machines}{}", "#".repeat(2 << 20)), "larger than 1024 KiB"),
        (format!("{keys}name = 'x'\n[group.a]\n"), "and 69980 more problems"),
        (
            format!(
                "name = 'x'\n[group.{}]\ncount = 9999\n[[step]]\nrun = 'x'\non = [{long}]\n",
                "a".repeat(95)
            ),
            "and 8980 more problems",
        ),
        (format!("{machines}[[step]]\nrun = 'x'\non = [{names}]\n"), "and 69980 more problems"),
        (
            format!("{machines}[[step]]\nrun = 'x'\non = [{}]\n", "'all',".repeat(100_000) + "'none'"),
            "`none`",
        ),
        (format!("{machines}setup = [{}]\n", "'{{ nope }}',".repeat(70_000)), "`nope` is undefined"),
        ("[".repeat(1 << 20), "x.toml:1:"),
        (format!("a = {}", "[".repeat(1 << 19)), "recursion depth"),
        (format!("{}a = 1", "a.".repeat(1 << 18)), "recursion limit"),
        ("=\n".repeat(1 << 18), "more problems"),
        (format!("name = '{}'\n", "x".repeat(1 << 19)), "longer than 100 bytes"),
    ] {
        defused(&text, says);
    }
    let world = World::new();
    let pipe = world.path("work/pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut plan = world.command(["plan", "pipe"]).stderr(Stdio::piped()).spawn().unwrap();
    eventually("a pipe is refused without anybody writing to it", || match plan.try_wait() {
        Ok(Some(status)) if status.code() == Some(2) => Ok(()),
        status => Err(format!("{status:?}")),
    });
}

#[test]
fn nothing_that_a_terminal_acts_on_comes_from_arguments_or_files() {
    let world = World::new();
    let hostile = "x\nerror: forged\u{1b}]0;t\u{7}\u{9b}2J\u{202e}\u{e0041}";
    let file =
        world.write("x.toml", &format!("name = 'x'\n[group.a] # \u{9b}2J\u{202e}\n'{}' = 1\n", "\u{9b}1m"));
    let with = |value: &str| format!("{value}={hostile}");
    for (args, status) in [
        (vec!["plan", hostile], 2),
        (vec!["logs", hostile], 2),
        (vec!["down", hostile], 2),
        (vec!["exec", hostile, "--", "true"], 125),
        (vec![hostile], 2),
        (vec!["ls", hostile], 2),
        (vec!["extend", "x", hostile], 2),
        (vec!["plan", "x.toml"], 2),
        (vec!["plan", "x.toml", "--set", &with("n")], 2),
        (vec!["plan", "x.toml", "--set", &with(hostile)], 2),
    ] {
        let ended = world.tsunami(&args);
        ended.assert_status(status);
        let acts = |c: char| c != '\n' && c.is_control() || "\u{202e}\u{e0041}".contains(c);
        assert!(
            !ended.stderr.contains(acts) && !ended.stderr.contains("\nerror: forged"),
            "{:?}",
            ended.stderr
        );
    }
    assert!(file.exists());
    world.assert_clean();
}
