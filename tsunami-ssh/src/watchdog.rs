//! The script that ends a run's processes where they are: at its deadline, or when asked to.

use std::time::{Duration, SystemTime};

use tsunami_core::{Leftover, RunId};

/// The script; its beginning says how to call it.
pub(crate) const SCRIPT: &str = include_str!("watchdog.sh");

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

    /// As under a fork bomb of the same user's.
    #[test]
    fn a_watchdog_outlives_a_time_without_processes() {
        use std::io::Read;
        use std::process::{Child, Command, Stdio};
        let run: RunId = format!("20260101-000000-forks-{}", std::process::id()).parse().unwrap();
        // Limits mean nothing to root.
        let as_a_user = |program: &str| match rustix::process::geteuid().is_root() {
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]);
                command
            }
            false => Command::new(program),
        };
        let spawn = |command: &mut Command| -> Child { command.stdin(Stdio::null()).spawn().unwrap() };
        let mut of_the_run = spawn(as_a_user("sleep").arg("1000").env("TSUNAMI_RUN_ID", run.as_str()));
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
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
