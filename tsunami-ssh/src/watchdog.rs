//! The script that ends a run's processes where they are: at its deadline, or when asked to.

use std::time::{Duration, SystemTime};

use tsunami_core::{Leftover, RunId};

/// The script; its beginning says how to call it.
pub(crate) const SCRIPT: &str = include_str!("watchdog.sh");

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
