//! Provider `hosts`: machines that exist already. Here they are another run's local machines.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::world::{World, eventually};

/// Machines to be used as hosts, and the words that a file needs for them.
pub(crate) struct Existing {
    pub(crate) world: World,
    pub(crate) hosts: Vec<String>,
    pub(crate) known_hosts: PathBuf,
    key: PathBuf,
}

impl Existing {
    pub(crate) fn new(count: u32) -> Self {
        let world = World::new();
        let file = world.write("existing.toml", &format!("name = 'existing'\n[group.e]\ncount = {count}\n"));
        let run = world.tsunami([&"up".into(), &file]).assert_status(0).stdout.trim().to_owned();
        let directory = world.path("state/tsunami/runs").join(run);
        let machines: serde_json::Value =
            serde_json::from_slice(&fs::read(directory.join("machines.json")).unwrap()).unwrap();
        let (mut hosts, mut known) = (Vec::new(), String::new());
        for machine in machines.as_array().unwrap() {
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            let (login, address) = (&machine["login"], text(&machine["addresses"]["private"]));
            hosts.push(format!("{}@{address}:{}", text(&login["user"]), login["port"]));
            known.push_str(&format!("[{address}]:{} {}\n", login["port"], text(&login["host_key"])));
        }
        let known_hosts = world.write("known", &known);
        Self { hosts, known_hosts, key: directory.join("ssh/id_ed25519"), world }
    }

    pub(crate) fn file(&self, known_hosts: &str, rest: &str) -> PathBuf {
        let text = format!(
            "name = \"x\"\nprovider = \"hosts\"\nlifetime = \"5m\"\n[ssh]\nkey = {:?}\nknown_hosts = {known_hosts:?}\n\
             connect_timeout = \"20s\"\n[group.node]\nhosts = {:?}\n{rest}",
            self.key, self.hosts
        );
        self.world.write("x.toml", &text)
    }

    fn known(&self) -> &str {
        self.known_hosts.to_str().unwrap()
    }

    /// Nothing of a run is on the hosts: no directory, and no process but their own.
    pub(crate) fn assert_left_as_found(&self) {
        let ls = self.world.tsunami([
            "exec",
            "existing",
            "--",
            "ls -A . .tsunami 2>/dev/null | grep -v '^$' || true",
        ]);
        for line in ls.assert_status(0).stdout.lines() {
            assert!(
                ["e-0 | .:", "e-1 | .:", ".tsunami", ".tsunami:", ".:"].iter().any(|own| line.ends_with(own)),
                "{line}"
            );
        }
        let watchdogs = self.world.processes().into_iter().filter(|process| is_watchdog_of_a_host(process));
        assert_eq!(watchdogs.collect::<Vec<_>>(), Vec::<String>::new());
    }
}

fn is_watchdog_of_a_host(process: &str) -> bool {
    process.contains("tsunami-watchdog:") && process.contains("/.tsunami/")
}

#[test]
fn an_experiment_on_existing_hosts_leaves_them_as_it_found_them() {
    let existing = Existing::new(2);
    let file = existing.file(
        existing.known(),
        "setup = \"pwd; touch here\"\n[[step]]\nname = \"s\"\non = \"node-0\"\nstart = \"sleep 1005\"\n\
         [[step]]\nname = \"w\"\non = \"node\"\nrun = \"ls; echo {{ node[0].ip }} > out.txt\"\ncollect = [\"out.txt\"]\n",
    );
    existing.world.tsunami([&"run".into(), &file, &"-o".into(), &"out".into()]).assert_status(0);
    let setup = fs::read_to_string(existing.world.path("work/out/logs/node-1/setup.log")).unwrap();
    assert!(setup.contains("/.tsunami/"), "{setup}");
    assert!(
        fs::read_to_string(existing.world.path("work/out/trials/1/w/node-1/out.txt"))
            .unwrap()
            .starts_with("127.")
    );
    existing.assert_left_as_found();
}

#[test]
fn an_unknown_host_is_refused_with_its_fingerprint_or_accepted_on_request() {
    let existing = Existing::new(1);
    let nobody = existing.world.write("nobody", "");
    let file = existing.file(nobody.to_str().unwrap(), "setup = \"true\"\n");
    let run = existing.world.tsunami([&"run".into(), &file, &"-o".into(), &"out1".into()]);
    run.assert_status(4).assert_says(&["SHA256:", "ssh-ed25519 AAAA", "--accept-new-hosts"]);
    // The key was asked for, and nobody logged in.
    let log = existing.key.parent().unwrap().parent().unwrap().join("local/e-0/sshd.log");
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("[preauth]") && !log.contains(" user "), "{log}");
    let accepted = [&"run".into(), &file, &"-o".into(), &"out2".into(), &"--accept-new-hosts".into()];
    existing.world.tsunami(accepted).assert_status(0);
    assert_eq!(fs::read_to_string(nobody).unwrap(), "", "the user's file is read, never written");
    existing.assert_left_as_found();
}

#[test]
fn a_host_with_another_key_is_never_connected_to() {
    let existing = Existing::new(1);
    let known = fs::read_to_string(&existing.known_hosts).unwrap();
    let address = known.split(' ').next().unwrap();
    let wrong = format!(
        "{address} ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJhQ1mY0rN3Lk4T7m8O1x9vHb2cQnT6yZr0eWfXkUd5g\n"
    );
    let wrong = existing.world.write("wrong", &wrong);
    let file = existing.file(wrong.to_str().unwrap(), "setup = \"true\"\n");
    for accept in [None, Some("--accept-new-hosts")] {
        let out = accept.map_or("out1", |_| "out2");
        let mut command = existing.world.command([&"run".into(), &file, &"-o".into(), &out.into()]);
        let output = command.args(accept).output().unwrap();
        assert_eq!(output.status.code(), Some(4));
        assert!(String::from_utf8_lossy(&output.stderr).contains("IDENTIFICATION HAS CHANGED"));
    }
    existing.assert_left_as_found();
}

#[test]
fn a_machine_that_never_answers_is_given_up_in_time() {
    let world = World::new();
    // It accepts connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!(
        "name = 'x'\nprovider = 'hosts'\n[ssh]\nconnect_timeout = '3s'\n[group.n]\nhosts = ['{}']\n",
        silent.local_addr().unwrap()
    );
    let file = world.write("x.toml", &text);
    let begun = Instant::now();
    world.tsunami([&"run".into(), &file]).assert_status(4).assert_says(&[
        "n-0",
        "no session after 3s",
        "no answer",
    ]);
    assert!(begun.elapsed() < Duration::from_secs(15));
    world.assert_clean();
}

#[test]
fn after_kill_9_hosts_are_freed_by_down_from_elsewhere() {
    let existing = Existing::new(1);
    let file =
        existing.file(existing.known(), "[[step]]\nname = \"w\"\non = \"node\"\nrun = \"sleep 1006\"\n");
    let mut run = existing.world.start(&file);
    run.wait_for(&["\"command_started\"", "\"w\""]);
    eventually("the step's process runs", || {
        let all = existing.world.processes();
        if all.iter().any(|process| process.contains("sleep 1006")) { Ok(()) } else { Err(all.join("\n")) }
    });
    run.signal(Signal::KILL);
    run.end();
    let mut down = existing.world.command(["down", "x"]);
    assert!(down.current_dir("/").status().unwrap().success());
    let left = existing.world.processes();
    assert!(!left.iter().any(|process| process.contains("sleep 1006")), "{left:?}");
    existing.assert_left_as_found();
}

#[test]
fn after_kill_9_the_deadline_ends_what_runs_on_hosts() {
    let existing = Existing::new(1);
    let file =
        existing.file(existing.known(), "[[step]]\nname = \"w\"\non = \"node\"\nrun = \"sleep 1007\"\n");
    let text = fs::read_to_string(&file).unwrap().replace("\"5m\"", "\"6s\"");
    fs::write(&file, text).unwrap();
    let mut run = existing.world.start(&file);
    run.wait_for(&["\"command_started\"", "\"w\""]);
    run.signal(Signal::KILL);
    run.end();
    eventually("the step's process is gone", || {
        let left = existing.world.processes();
        let of_the_run = |process: &String| process.contains("sleep 1007") || is_watchdog_of_a_host(process);
        if left.iter().any(of_the_run) { Err(left.join("\n")) } else { Ok(()) }
    });
    existing.assert_left_as_found();
    existing.world.tsunami(["down", "x"]).assert_status(0);
}

#[test]
fn a_jump_host_reaches_machines() {
    let existing = Existing::new(2);
    // The first machine is the bastion for the second.
    let (bastion, target) = (&existing.hosts[0], &existing.hosts[1]);
    let text = format!(
        "name = \"x\"\nprovider = \"hosts\"\n[ssh]\nkey = {:?}\nknown_hosts = {:?}\njump = {bastion:?}\n\
         [group.node]\nhosts = [{target:?}]\nsetup = \"echo through\"\n",
        existing.key, existing.known_hosts
    );
    let file = existing.world.write("x.toml", &text);
    existing.world.tsunami([&"run".into(), &file, &"-o".into(), &"out".into()]).assert_status(0);
    let setup = fs::read_to_string(existing.world.path("work/out/logs/node-0/setup.log")).unwrap();
    assert!(setup.contains("through"), "{setup}");
}

/// A command of the user's leads to hosts, and so it does for whoever takes up the run after its controller was killed. No
/// process of it is left, deaf as it is to whoever asks it to end.
#[test]
fn a_proxy_leads_to_hosts_and_ends_with_its_controller() {
    let existing = Existing::new(1);
    let deaf = "trap '' TERM HUP PIPE INT; exec 3<>/dev/tcp/$1/$2; cat <&3 & cat >&3; sleep 1008";
    for transport in ["openssh", "in-process"] {
        let marker = existing.world.path(transport);
        let text = format!(
            "name = \"x\"\nprovider = \"hosts\"\n[ssh]\nkey = {:?}\nknown_hosts = {:?}\ntransport = {transport:?}\n\
             proxy = [\"bash\", \"-c\", {deaf:?}, {marker:?}, \"{{host}}\", \"{{port}}\"]\n[group.node]\nhosts = {:?}\n\
             setup = \"echo through\"\n[[step]]\nname = \"w\"\non = \"node\"\nrun = \"sleep 1009\"\n",
            existing.key, existing.known_hosts, existing.hosts
        );
        let file = existing.world.write("x.toml", &text);
        let of_the_proxy = || {
            let all = existing.world.processes().into_iter();
            all.filter(|process| process.contains("cat <&3")).collect::<Vec<_>>()
        };
        let mut run = existing.world.start(&file);
        run.wait_for(&["\"command_started\"", "\"w\""]);
        assert!(!of_the_proxy().is_empty());
        run.signal(Signal::KILL);
        run.end();
        let gone = || match of_the_proxy() {
            left if left.is_empty() => Ok(()),
            left => Err(left.join("\n")),
        };
        eventually("the proxies are gone", gone);
        let mut down = existing.world.command(["down", "x"]);
        assert!(down.current_dir("/").status().unwrap().success());
        eventually("the proxies are gone", gone);
        existing.assert_left_as_found();
    }
}

/// A name in an ssh_config means there what it means to ssh: with its own jump host, under another name, with a key
/// and known hosts whose paths have spaces.
#[test]
fn a_name_in_an_ssh_config_is_reached_as_ssh_reaches_it() {
    let existing = Existing::new(2);
    let (spaced, key) = (existing.world.path("work/my keys"), existing.world.path("work/my keys/the key"));
    fs::create_dir(&spaced).unwrap();
    fs::copy(&existing.key, &key).unwrap();
    let known = existing.world.write("my keys/known hosts", &fs::read_to_string(existing.known()).unwrap());
    let mut config = String::new();
    for (name, host, more) in
        [("bastion", &existing.hosts[0], ""), ("box", &existing.hosts[1], "  ProxyJump bastion\n")]
    {
        let (user, address) = host.split_once('@').unwrap();
        let (address, port) = address.split_once(':').unwrap();
        config.push_str(&format!(
            "Host {name}\n  HostName {address}\n  Port {port}\n  User {user}\n  IdentityFile {key:?}\n  \
             UserKnownHostsFile {known:?}\n{more}"
        ));
    }
    config.push_str("Host *\n  RemoteCommand false\n  ForwardAgent yes\n  ControlPath none\n");
    let config = existing.world.write("config", &config);
    let text = format!(
        "name = \"x\"\nprovider = \"hosts\"\n[ssh]\nconfig = {config:?}\nconnect_timeout = \"20s\"\n[group.node]\n\
         hosts = [\"box\"]\nsetup = \"echo through\"\n"
    );
    let file = existing.world.write("x.toml", &text);
    existing.world.tsunami([&"run".into(), &file, &"-o".into(), &"out".into()]).assert_status(0);
    let setup = fs::read_to_string(existing.world.path("work/out/logs/node-0/setup.log")).unwrap();
    assert!(setup.contains("through"), "{setup}");

    // Whoever is not known is told of, also behind the jump host.
    let jump = existing.hosts[0].split_once('@').unwrap().1.split_once(':').unwrap().0.to_owned();
    let lines = fs::read_to_string(&known).unwrap();
    let lines = lines.lines().filter(|line| line.contains(&format!("[{jump}]"))).collect::<Vec<_>>();
    fs::write(&known, lines.join("\n") + "\n").unwrap();
    let run = existing.world.tsunami([&"run".into(), &file, &"-o".into(), &"out2".into()]);
    run.assert_status(4).assert_says(&["SHA256:", "ssh-ed25519 AAAA", "--accept-new-hosts"]);
    assert!(!run.stderr.contains("ssh-keygen -R"), "{}", run.stderr);
    existing.assert_left_as_found();
}
