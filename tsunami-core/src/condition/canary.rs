//! What a machine can do by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::Host;
use crate::error::Error;
use crate::trial::own_script;

const SCRIPT: &str = include_str!("canary.sh");

/// What errors call that.
const MEASURING: &str = "the measurement of the machine by itself";

/// How long it may take. It takes two seconds, unless something is very slow.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What is measured.
const RESULTS: [&str; 3] = ["cpu", "memory", "disk"];

/// Measures a machine by itself, while nothing else should run there, for at most three seconds. More is better:
///
/// | result | is |
/// |---|---|
/// | `cpu` | rounds of a loop in `awk`, in a second |
/// | `memory` | bytes that the kernel fills and the next call overwrites, in a second |
/// | `disk` | bytes that reach the disk under the working directory, 4 MiB at a time, in a second |
///
/// The numbers mean something only beside others of the same machine or of its like; they are good to some percent. What
/// could not be measured, or not in time, is left out. If the future is dropped, what runs is ended in the background.
///
/// # Errors
///
/// As [`HostCommand::run`](crate::HostCommand::run) has them.
pub async fn canary(host: &Host) -> Result<BTreeMap<String, f64>, Error> {
    let command = host.stage("canary").command(own_script("canary", SCRIPT));
    let said = match command.called(MEASURING).unobserved().timeout(TIMEOUT).run().await {
        Ok(output) => output.stdout().into_owned(),
        Err(Error::Timeout { gone: true, stdout, .. }) => stdout,
        Err(error) => return Err(error),
    };
    Ok(results_of(&said))
}

fn results_of(said: &str) -> BTreeMap<String, f64> {
    let lines = said.lines().filter_map(|line| line.split_once(' '));
    let known = lines.filter(|(name, _)| RESULTS.contains(name));
    let numbers = known.filter_map(|(name, value)| Some((name, value.trim().parse::<u64>().ok()?)));
    #[expect(clippy::cast_precision_loss, reason = "it is a measurement")]
    numbers.map(|(name, value)| (name.to_owned(), value as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SHELLS, says};
    use super::*;

    #[test]
    fn every_shell_measures_in_any_language_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let script = format!("cd '{}' || exit\n{SCRIPT}", directory.path().display());
        for shell in SHELLS {
            let results = results_of(&says(shell, &script, &[], &[("LC_ALL", "de_DE.UTF-8")]));
            assert!(results.keys().eq(["cpu", "disk", "memory"]), "{shell:?}: {results:?}");
            assert!(results.values().all(|rate| *rate > 0.0), "{shell:?}: {results:?}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_result_is_left_out() {
        let said = "cpu 5\ncpu -1\nrm 7\nmemory 1e9\ndisk 99999999999999999999\ndisk\n\u{1b}[2J 3\n";
        assert_eq!(results_of(said), BTreeMap::from([("cpu".to_owned(), 5.0)]));
    }
}
