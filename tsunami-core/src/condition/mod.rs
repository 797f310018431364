//! What machines are, and how undisturbed: fingerprints, accounting over trials, canaries and traces.
//!
//! [`fingerprint`] says what a machine is, and [`odd`] which machines differ from their groups. An [`Accounting`] looks
//! twice at all machines of a trial, and tells what happened on them in between. [`canary`] measures a machine by
//! itself, and [`Traces`] note what machines do, once a second.
//!
//! All of it is asked of a machine with scripts of tsunami's own, which need nothing but `sh` and what every system has
//! beside it, and which no event tells of. What a machine doesn't show, or forbids, is not known, which is no error.

mod accounting;
mod canary;
mod fingerprint;
mod traces;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use accounting::Accounting;
pub use canary::canary;
#[cfg(feature = "experiment")]
pub(crate) use fingerprint::{OTHERS, unlike};
pub use fingerprint::{differences, fingerprint, odd};
pub use traces::{TRACE_COLUMNS, Traces};

/// Ticks a second, in which the kernel tells of processor time. It is the same on every Linux that there is.
const TICKS: f64 = 100.0;

/// What is known of a machine by name: `cpu_model`, `kernel` and so on.
pub type Facts = BTreeMap<String, String>;

/// What happened on a machine while a trial ran. What can't be read there is `None`.
///
/// Where several machines share a computer, as all of the provider `local` do, this is about the computer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Account {
    /// The machine.
    pub machine: String,
    /// How long it was watched, in seconds.
    pub seconds: f64,
    /// Processor seconds that its processes had, the kernel's own threads among them. What interrupts took is left out.
    pub cpu: Option<f64>,
    /// Processor seconds that the run's own processes had, and, on its own computer, the program that does the run.
    pub own_cpu: Option<f64>,
    /// Processor seconds that a hypervisor gave to others.
    pub steal: Option<f64>,
    /// Seconds in which something waited for a processor, by the kernel's pressure counters.
    pub cpu_pressure: Option<f64>,
    /// The same for memory.
    pub memory_pressure: Option<f64>,
    /// The same for disks.
    pub io_pressure: Option<f64>,
    /// Seconds for which the run's processes were throttled.
    pub throttled: Option<f64>,
    /// Processes that were killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Messages of the kernel that speak of trouble, a few.
    pub kernel_messages: Vec<String>,
    /// What disturbed the trial and was not its own doing, in words.
    pub disturbed: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// The shells in which every script must do the same. The third takes all that it can from busybox.
    pub(super) const SHELLS: [&[&str]; 3] = [&["sh"], &["bash", "--posix"], &["busybox", "sh"]];

    /// Runs a script, which must succeed without a complaint, and returns what it says.
    pub(super) fn says(shell: &[&str], script: &str, args: &[&str], env: &[(&str, &str)]) -> String {
        let mut command = Command::new(shell[0]);
        command.args(&shell[1..]).args(["-c", &crate::compact_script(script), "sh"]).args(args);
        let output = command.envs(env.iter().copied()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{shell:?}: {} {said}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
