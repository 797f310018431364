//! The script that ends a run's processes where they are: at its deadline, or when asked to.

use std::time::{Duration, SystemTime};

use tsunami_core::{Leftover, RunId};

/// The script; the beginning of its second part says how to call it.
pub(crate) const SCRIPT: &str = concat!(include_str!("processes.sh"), include_str!("watchdog.sh"));

/// The variable in which a watchdog has its script, to begin again where its shell gives up.
pub(crate) const VARIABLE: &str = "TSUNAMI_WATCHDOG";

/// What a watchdog says once it watches.
pub(crate) const ARMED: &str = "armed";

/// The longest time that a watchdog waits: a year. What a shell reckons with may have 32 bits.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a watchdog does about one of its run that watches already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arming {
    /// Leaves it in its place.
    Ensure,
    /// Ends it: the deadline has moved.
    Replace,
}

/// The name by which the watchdogs of a run's directory are known: the script's `$0`.
pub(crate) fn name(run: &RunId, directory: &str) -> String {
    format!("tsunami-watchdog:{run}:{directory}")
}

/// What follows the script's name for a watchdog that watches until `until`.
pub(crate) fn watch(run: &RunId, directory: &str, until: SystemTime, arming: Arming) -> [String; 5] {
    let left = until.duration_since(SystemTime::now()).unwrap_or_default().min(LONGEST);
    let how = match arming {
        Arming::Ensure => "ensure",
        Arming::Replace => "replace",
    };
    ["watch".to_owned(), run.to_string(), directory.to_owned(), left.as_secs().to_string(), how.to_owned()]
}

/// Reads what `reap` says is left, on the computer that `place` names.
pub(crate) fn leftovers(said: &str, place: &str) -> Vec<Leftover> {
    let lines = said.lines().filter(|line| !line.trim().is_empty());
    let leftover = |line: &str| {
        let (what, why) = line.split_once('\t').unwrap_or((line, "the machine did not say why"));
        Leftover { what: format!("{what} on {place}"), why: why.trim().to_owned() }
    };
    lines.map(leftover).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_lifetime_is_too_long_for_a_shell() {
        let run: RunId = "20260101-000000-aaaa".parse().unwrap();
        let until = SystemTime::now() + Duration::from_secs(1 << 40);
        assert_eq!(watch(&run, "d", until, Arming::Ensure)[3], "31536000");
        assert_eq!(watch(&run, "d", SystemTime::UNIX_EPOCH, Arming::Replace)[3..], ["0", "replace"]);
    }

    use std::fs;
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
            reap.args(&shell[1..]).args(["-c", SCRIPT, "sh", "reap", &self.run]).arg(self.directory());
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
            drop(log);
            assert_eq!(place.reap(shell), "", "{shell:?}");
            for (index, child) in place.started.iter_mut().enumerate() {
                assert_eq!(child.try_wait().unwrap().is_some(), index < theirs, "{shell:?}: {index}");
            }
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
            inside.args(&shell).args(["-c", SCRIPT, "sh", "reap", &place.run]).arg(place.directory());
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
            said_by(reap.args(["-c", SCRIPT, "sh", "reap", &place.run]).arg(&directory))
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
        watchdog.args(["sh", "-c", SCRIPT, &name(&run, path)]).args(watch(&run, path, until, Arming::Ensure));
        watchdog.env(VARIABLE, SCRIPT).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut watchdog = spawn(&mut watchdog);
        let mut said = String::new();
        watchdog.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said.trim(), ARMED);
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
