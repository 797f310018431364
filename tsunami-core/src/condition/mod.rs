//! What machines are, and how undisturbed: fingerprints, accounting over trials, canaries and traces.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What is known of a machine by name: `cpu_model`, `kernel` and so on.
pub type Facts = BTreeMap<String, String>;

/// What happened on a machine while a trial ran. What can't be read there is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Account {
    /// The machine.
    pub machine: String,
    /// How long it was watched, in seconds.
    pub seconds: f64,
    /// Processor seconds that its processes had.
    pub cpu: Option<f64>,
    /// Processor seconds that the run's own processes had.
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
