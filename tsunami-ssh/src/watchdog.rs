//! The script that ends a run's processes where they are: at its deadline, or when asked to.
//!
//! Where the user who logs in may make a control group (cgroup v2: root, or somebody to whom one is delegated), the
//! run's commands begin in one of the run's own, and nothing that descends from them gets out of reach. Where none can
//! be made, the run's processes are known by their environment, by what they descend from, and by what they have open;
//! then a process is not found that has detached, has put another environment in the place of its own, has left the
//! run's directory, runs no program and writes no file of it, and listens at no address of the run's machines. Neither
//! way finds what another service starts on a command's behalf: systemd, cron, at, a container engine.

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use tsunami_core::{Leftover, PROCESSES_SCRIPT, RunId, compact_script};

/// The script; the beginning of its second part says how to call it.
pub(crate) fn script() -> &'static str {
    static SCRIPT: LazyLock<String> =
        LazyLock::new(|| compact_script(&[PROCESSES_SCRIPT, include_str!("watchdog.sh")].concat()));
    &SCRIPT
}

/// The variable in which a watchdog has its script, to begin again where its shell gives up.
pub(crate) const VARIABLE: &str = "TSUNAMI_WATCHDOG";

/// What a watchdog's shell is given, so that its command line stays short. `arm.sh` has it, too.
pub(crate) const BEGIN: &str = r#"eval "$TSUNAMI_WATCHDOG""#;

/// What a watchdog says once it watches, before the path of the run's control group.
const ARMED: &str = "armed";

/// The longest time that a watchdog waits: a year. What a shell reckons with may have 32 bits.
const LONGEST_WATCH: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a watchdog does about one of its run that watches already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arming {
    /// Leaves it in its place.
    Ensure,
    /// Ends it: the deadline has moved.
    Replace,
}

/// The control group that the run's commands join, where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControlGroup(String);

impl ControlGroup {
    /// Shell that moves itself, and with it what it starts, into the group: a single write. It goes on without if it
    /// can't.
    pub(crate) fn join(&self) -> String {
        let file = shlex::try_quote(&self.0).map(Cow::into_owned).unwrap_or_default();
        format!("{{ echo 0 >{file}/cgroup.procs; }} 2>/dev/null")
    }
}

/// Shell that joins, as [`ControlGroup::join`] does, the group that a file in the run's directory on a host names: a
/// read and a write.
pub(crate) fn join_named_in(directory: &str) -> String {
    let file = shlex::try_quote(directory).map(Cow::into_owned).unwrap_or_default();
    format!(
        "{{ read -r _group <{file}/.tsunami-control-group && echo 0 >\"$_group/cgroup.procs\"; }} 2>/dev/null"
    )
}

/// Reads what a watchdog says once it watches: the run's control group, if it has one. `None` if it does not watch.
pub(crate) fn armed(said: &str) -> Option<Option<ControlGroup>> {
    let path = said.trim().strip_prefix(ARMED)?.trim();
    let is_path = path.starts_with('/') && !path.contains(char::is_control);
    (path.is_empty() || is_path).then(|| Some(ControlGroup(path.to_owned())).filter(|_| is_path))
}

/// The name by which the watchdogs of a run's directory are known: the script's `$0`.
pub(crate) fn name(run: &RunId, directory: &str) -> String {
    format!("tsunami-watchdog:{run}:{directory}")
}

/// What follows the script's name for a watchdog that watches until `until`.
pub(crate) fn watch(run: &RunId, directory: &str, until: SystemTime, arming: Arming) -> [String; 5] {
    let left = until.duration_since(SystemTime::now()).unwrap_or_default().min(LONGEST_WATCH);
    // The script has a clock of whole seconds, which may be behind by one.
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    let how = match arming {
        Arming::Ensure => "ensure",
        Arming::Replace => "replace",
    };
    ["watch".to_owned(), run.to_string(), directory.to_owned(), seconds.to_string(), how.to_owned()]
}

/// Reads what `reap` says is left, on the computer that `place` names.
pub(crate) fn leftovers(said: &str, place: &str) -> Vec<Leftover> {
    let lines = said.lines().filter(|line| !line.trim().is_empty());
    let leftover = |line: &str| {
        let (what, why) = line.split_once('\t').unwrap_or((line, "the machine did not say why"));
        Leftover::new(format!("{what} on {place}"), why.trim())
    };
    lines.map(leftover).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_second_is_cut_off_a_lifetime() {
        let run: RunId = "20260101-000000-aaaa".parse().unwrap();
        let until = SystemTime::now() + Duration::from_millis(9900);
        assert_eq!(watch(&run, "d", until, Arming::Ensure)[3], "10");
    }

    #[test]
    fn no_lifetime_is_too_long_for_a_shell() {
        let run: RunId = "20260101-000000-aaaa".parse().unwrap();
        let until = SystemTime::now() + Duration::from_secs(1 << 40);
        assert_eq!(watch(&run, "d", until, Arming::Ensure)[3], "31536000");
        assert_eq!(watch(&run, "d", SystemTime::UNIX_EPOCH, Arming::Replace)[3..], ["0", "replace"]);
    }

    use std::fs;
    use std::io;
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};

    /// A command of somebody who is not root, to whom limits and permissions mean nothing.
    fn as_a_user(program: &str) -> Command {
        if !rustix::process::geteuid().is_root() {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]);
        command
    }

    /// A run's directory, and what may be left of its processes.
    struct Place {
        above: tempfile::TempDir,
        run: String,
        started: Vec<Child>,
    }

    impl Place {
        fn new(name: &str) -> Self {
            let above = tempfile::tempdir().unwrap();
            fs::set_permissions(above.path(), fs::Permissions::from_mode(0o755)).unwrap();
            let run = format!("20260101-000000-{name}-{}", std::process::id());
            fs::create_dir_all(above.path().join(&run).join("local/it's 1/s")).unwrap();
            Self { above, run, started: Vec::new() }
        }

        fn directory(&self) -> PathBuf {
            self.above.path().join(&self.run).join("local")
        }

        /// Starts a command without a mark, elsewhere and with outputs of nobody's unless it is told otherwise.
        fn start(&mut self, program: &Path, told: impl FnOnce(&mut Command) -> &mut Command) {
            let mut command = Command::new(program);
            command.env_remove("TSUNAMI_RUN_ID").current_dir("/").stdin(Stdio::null());
            command.stdout(Stdio::null()).stderr(Stdio::null());
            self.started.push(told(&mut command).spawn().unwrap());
        }

        fn reap(&self, shell: &[&str]) -> String {
            let mut reap = Command::new(shell[0]);
            reap.args(&shell[1..]).args(["-c", script(), "sh", "reap", &self.run]).arg(self.directory());
            said_by(&mut reap)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            for child in &mut self.started {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }

    fn said_by(command: &mut Command) -> String {
        String::from_utf8(command.stdin(Stdio::null()).output().unwrap().stdout).unwrap()
    }

    fn shells() -> Vec<Vec<&'static str>> {
        let known = [vec!["bash", "--posix"], vec!["dash"], vec!["busybox", "sh"]];
        let runs = |shell: &Vec<&str>| Command::new(shell[0]).arg("--help").output().is_ok();
        known.into_iter().filter(runs).collect()
    }

    /// Waits for a process to say its number, by a file.
    fn number_in(file: &Path) -> u32 {
        for _ in 0..1000 {
            if let Ok(number) = fs::read_to_string(file).unwrap_or_default().trim().parse() {
                return number;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} says nothing", file.display());
    }

    fn runs(pid: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    #[test]
    fn what_ends_does_not_hide_its_children() {
        for shell in shells() {
            for child in ["trap '' TERM; ", "(sleep 0.2; kill -STOP $$) & "] {
                let mut place = Place::new("children");
                let file = place.above.path().join("number");
                let run = place.run.clone();
                let script = format!("{child} echo $$ >\"$FILE\"; while :; do sleep 1000; done");
                place.start(Path::new("sh"), |parent| {
                    parent.args(["-c", "env -u TSUNAMI_RUN_ID setsid sh -c \"$SCRIPT\" & sleep 1000"]);
                    parent.env("TSUNAMI_RUN_ID", run).env("SCRIPT", script).env("FILE", &file)
                });
                let number = number_in(&file);
                std::thread::sleep(Duration::from_millis(500));
                assert_eq!(place.reap(&shell), "", "{shell:?} {child}");
                assert!(!runs(number), "{shell:?} {child}");
                assert!(!place.directory().exists());
            }
        }
    }

    #[test]
    fn a_daemon_without_marks_is_known_by_the_runs_directory_and_addresses() {
        for (shell, last) in shells().iter().zip(1..) {
            let mut place = Place::new("daemons");
            let machine = place.directory().join("it's 1");
            let log = fs::File::create(machine.join("log")).unwrap();
            let address = format!("127.90.{}.{last}:0", std::process::id() % 250);
            let tcp = TcpListener::bind(&address).unwrap();
            let udp = UdpSocket::bind(&address).unwrap();
            let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
            fs::write(machine.join("sshd_config"), format!("ListenAddress {address}\n")).unwrap();
            fs::copy("/bin/sleep", machine.join("sleep")).unwrap();
            let (sleep, its_own) = (Path::new("sleep"), machine.join("sleep"));
            place.start(sleep, |sleep| sleep.arg("1000").current_dir(machine.join("s")));
            place.start(sleep, |sleep| sleep.arg("1000").stderr(log.try_clone().unwrap()));
            place.start(sleep, |sleep| sleep.arg("1000").stdin(OwnedFd::from(tcp)));
            place.start(sleep, |sleep| sleep.arg("1000").stdin(OwnedFd::from(udp)));
            place.start(&its_own, |sleep| sleep.arg("1000"));
            let theirs = place.started.len();
            place.start(sleep, |sleep| sleep.arg("1000"));
            place.start(sleep, |sleep| sleep.arg("1000").stdin(OwnedFd::from(elsewhere)));
            // It is read only.
            let read = fs::File::open(machine.join("log")).unwrap();
            place.start(sleep, |sleep| sleep.arg("1000").stdin(read));
            // It is a controller, at work in the directory.
            let lock = fs::File::create(place.directory().with_file_name("lock")).unwrap();
            place.start(sleep, |sleep| sleep.arg("1000").stdin(lock).stderr(log.try_clone().unwrap()));
            drop(log);
            assert_eq!(place.reap(shell), "", "{shell:?}");
            for (index, child) in place.started.iter_mut().enumerate() {
                assert_eq!(child.try_wait().unwrap().is_some(), index < theirs, "{shell:?}: {index}");
            }
        }
    }

    /// Whether whoever runs this may make control groups: whether one can be made.
    fn may_make_control_groups() -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::"));
        mounts.lines().filter(|line| line.contains(" - cgroup2 ")).any(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            let below = own.and_then(|own| own.strip_prefix(fields[3].trim_end_matches('/')));
            let group = format!("{}{}/try-{}", fields[4], below.unwrap_or_default(), std::process::id());
            fs::create_dir(&group).is_ok() && fs::remove_dir(&group).is_ok()
        })
    }

    /// A daemon that leaves behind its parent, session, environment, directory and files.
    #[test]
    fn a_daemon_that_leaves_all_behind_is_known_by_the_control_group_where_there_may_be_one() {
        let me: fn(&str) -> Command = |program| Command::new(program);
        for (who, may) in [(me, may_make_control_groups()), (as_a_user, false)] {
            // For who is an ordinary user anyway, both are the same.
            let may = if rustix::process::geteuid().is_root() { may } else { may_make_control_groups() };
            // A watchdog tells which group it is; where there is none that tells, all are searched.
            for (shell, tells) in
                shells().into_iter().flat_map(|shell| [(shell.clone(), false), (shell, true)])
            {
                let place = Place::new("control-groups");
                let file = place.above.path().join("number");
                fs::set_permissions(place.above.path(), fs::Permissions::from_mode(0o777)).unwrap();
                let directory = place.above.path().join("theirs");
                assert!(who("mkdir").arg(&directory).status().unwrap().success());
                let run_script = |called: &str, mode: &str| {
                    let mut command = who("setsid");
                    command.args(&shell).args(["-c", script(), called, mode, &place.run]).arg(&directory);
                    command
                };
                let run: RunId = place.run.parse().unwrap();
                let name = name(&run, directory.to_str().unwrap());
                let mut watch = run_script(if tells { &name } else { "sh" }, "watch");
                let mut watchdog = watch.args(["600", "ensure"]).env(VARIABLE, script()).current_dir("/");
                watchdog = watchdog.stdin(Stdio::null()).stdout(Stdio::piped());
                let mut watchdog = watchdog.spawn().unwrap();
                let mut said = String::new();
                io::Read::read_to_string(&mut watchdog.stdout.take().unwrap(), &mut said).unwrap();
                if tells {
                    let again = said_by(run_script(&name, "watch").args(["600", "ensure"]));
                    assert_eq!(again, said, "{shell:?}");
                }
                let group = armed(&said).unwrap();
                assert_eq!(group.is_some(), may, "{shell:?}: {said}");
                let daemon =
                    "cd / && env -i setsid sh -c 'echo $$ >\"$1\"; exec sleep 1000 <&- >&- 2>&-' sh \"$0\" &";
                let join = group.as_ref().map(ControlGroup::join).unwrap_or_default();
                let mut command = who("sh");
                command
                    .arg("-c")
                    .arg(format!("{join}\n{daemon}"))
                    .arg(&file)
                    .env("TSUNAMI_RUN_ID", &place.run);
                assert!(command.status().unwrap().success());
                let number = number_in(&file);
                assert_eq!(said_by(&mut run_script("sh", "reap")), "", "{shell:?}");
                assert_eq!(runs(number), !may, "{shell:?}: {said}");
                if let Some(ControlGroup(path)) = group {
                    assert!(!Path::new(&path).exists(), "{shell:?}: {path} is left");
                }
                let _ = watchdog.kill();
                watchdog.wait().unwrap();
                if !may {
                    // As its documentation says.
                    let pid = rustix::process::Pid::from_raw(number.cast_signed()).unwrap();
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
                }
            }
        }
    }

    /// The clock may have been set, and a machine may have been suspended.
    #[test]
    fn whichever_moment_comes_first_ends_the_run() {
        let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let up = fs::read_to_string("/proc/uptime").unwrap();
        let up: u64 = up.split('.').next().unwrap().parse().unwrap();
        for shell in shells() {
            for (clock, boot) in [(epoch - 5, up + 600), (epoch + 600, up)] {
                let mut place = Place::new("clocks");
                let run = place.run.clone();
                place.start(Path::new("sleep"), |sleep| sleep.arg("1000").env("TSUNAMI_RUN_ID", run));
                let mut watchdog = Command::new(shell[0]);
                watchdog.args(&shell[1..]).args(["-c", script(), "sh", "again", &place.run]);
                watchdog.arg(place.directory()).args([clock.to_string(), boot.to_string()]).current_dir("/");
                assert!(watchdog.stdin(Stdio::null()).status().unwrap().success(), "{shell:?}");
                assert!(place.started[0].try_wait().unwrap().is_some(), "{shell:?}: {clock} {boot}");
                assert!(!place.directory().exists(), "{shell:?}");
            }
        }
    }

    #[test]
    fn what_a_watchdog_says_is_read_as_what_it_may_be() {
        let group = |path: &str| Some(Some(ControlGroup(path.to_owned())));
        assert_eq!(armed("armed \n"), Some(None));
        assert_eq!(armed("armed /sys/fs/cgroup/a b\n"), group("/sys/fs/cgroup/a b"));
        for odd in ["", "sh: cannot fork", "armed elsewhere", "armed /a\n/b"] {
            assert_eq!(armed(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_is_mounted_in_the_directory_is_neither_entered_nor_removed() {
        for shell in shells() {
            let place = Place::new("mounts");
            let (precious, at) = (place.above.path().join("precious"), place.directory().join("it's 1/s"));
            fs::create_dir(&precious).unwrap();
            fs::write(precious.join("data"), "").unwrap();
            let mut inside = Command::new("unshare");
            let mount = "mount --bind \"$FROM\" \"$AT\" || exit; exec \"$@\"";
            inside.arg(if rustix::process::geteuid().is_root() { "-m" } else { "-rm" });
            inside.args(["sh", "-c", mount, "sh"]).env("FROM", &precious).env("AT", &at);
            inside.args(&shell).args(["-c", script(), "sh", "reap", &place.run]).arg(place.directory());
            let said = said_by(&mut inside);
            assert!(said.contains(&format!("unmount that first: {}", at.display())), "{shell:?}: {said}");
            assert!(precious.join("data").exists(), "{shell:?}");
            // Once it is not mounted any more.
            assert_eq!(place.reap(&shell), "", "{shell:?}");
            assert!(!place.directory().exists() && precious.join("data").exists(), "{shell:?}");
        }
    }

    #[test]
    fn directories_without_permissions_are_removed_and_what_cannot_be_is_told_with_a_command() {
        let place = Place::new("permissions");
        let (directory, kept) = (place.above.path().join("theirs/d"), place.above.path().join("kept"));
        let make = "mkdir -p theirs/d/cache/m && echo x >theirs/d/cache/m/f && ln theirs/d/cache/m/f kept && \
                    chmod 400 kept && chmod -R a-w theirs/d/cache";
        fs::set_permissions(place.above.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            as_a_user("sh").args(["-c", make]).current_dir(place.above.path()).status().unwrap().success()
        );
        let reap = || {
            let mut reap = as_a_user("sh");
            said_by(reap.args(["-c", script(), "sh", "reap", &place.run]).arg(&directory))
        };
        fs::set_permissions(place.above.path().join("theirs"), fs::Permissions::from_mode(0o555)).unwrap();
        let said = reap();
        // Where sudo asks nothing, it is removed.
        let told = format!("`sudo rm -rf -- '{}'`", directory.display());
        assert!(said.contains(&told) == directory.exists(), "{said}");
        fs::set_permissions(place.above.path().join("theirs"), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(reap(), "");
        assert!(!directory.exists());
        let mode = fs::metadata(kept).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o400, "a file has other names");
    }

    /// As under a fork bomb of the same user's.
    #[test]
    fn a_watchdog_outlives_a_time_without_processes() {
        use std::io::Read;
        let run: RunId = format!("20260101-000000-forks-{}", std::process::id()).parse().unwrap();
        let spawn = |command: &mut Command| -> Child { command.stdin(Stdio::null()).spawn().unwrap() };
        let mut of_the_run = spawn(as_a_user("sleep").arg("1000").env("TSUNAMI_RUN_ID", run.as_str()));
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let until = SystemTime::now() + Duration::from_secs(4);
        let path = directory.path().to_str().unwrap();
        let mut watchdog = as_a_user("setsid");
        watchdog.args(["sh", "-c", BEGIN, &name(&run, path)]).args(watch(&run, path, until, Arming::Ensure));
        watchdog.env(VARIABLE, script()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut watchdog = spawn(&mut watchdog);
        let mut said = String::new();
        watchdog.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(armed(&said).is_some(), "{said}");
        let limit = |processes: &str| {
            let pid = watchdog.id().to_string();
            let limited =
                as_a_user("prlimit").args(["--pid", &pid, &format!("--nproc={processes}:")]).status();
            assert!(limited.unwrap().success());
        };
        limit("1");
        std::thread::sleep(Duration::from_secs(6));
        assert!(of_the_run.try_wait().unwrap().is_none(), "without a process it can't end any");
        limit("10000");
        let ended = (0..300).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            of_the_run.try_wait().unwrap().is_some()
        });
        let _ = of_the_run.kill();
        watchdog.kill().unwrap();
        watchdog.wait().unwrap();
        assert!(ended, "the watchdog is gone");
    }

    #[test]
    fn what_is_left_is_named_with_its_reason() {
        let left = leftovers("process 7: sleep\tit does not end\n\nodd line\n", "h");
        let told: Vec<_> = left.iter().map(|left| (left.what.as_str(), left.why.as_str())).collect();
        assert_eq!(
            told,
            [("process 7: sleep on h", "it does not end"), ("odd line on h", "the machine did not say why")]
        );
    }
}
