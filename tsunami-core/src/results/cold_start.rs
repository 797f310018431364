//! How long machines took to come up, over runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::ResultsError;
use super::built::read_report;
use super::markdown::line;
use super::results_csv::{row, seconds};
use crate::{MachineReport, Report, StartPhase};

/// What is looked at beside single phases: the way up without what the experiment itself set up.
const UP: &str = "request to verified";

/// The number of the form of [`ColdStarts::json`].
const COLD_START_SCHEMA: u32 = 1;

/// How long machines took to come up, by what they were made from.
///
/// A machine counts in each phase that it went through, whether or not it came further; of one that was replaced, its
/// replacement does. What older runs, or a connector, don't tell apart is a phase of its own: `boot and login`.
#[derive(Clone, Debug, Default)]
pub struct ColdStarts {
    took: BTreeMap<Kind, BTreeMap<Row, Vec<Duration>>>,
}

/// Type, image and region of a machine, as far as they are known.
type Kind = [String; 3];

/// The phase at whose end it ends, whether it sums up those before, and its name: what comes in this order.
type Row = (StartPhase, bool, String);

impl ColdStarts {
    /// Reads the results directories of runs, of this or an earlier form. Blocks.
    ///
    /// # Errors
    ///
    /// What can't be read.
    pub fn read(directories: &[impl AsRef<Path>]) -> Result<Self, ResultsError> {
        let mut starts = Self::default();
        for directory in directories {
            starts.add(&read_report(directory.as_ref())?);
        }
        Ok(starts)
    }

    /// Adds the machines of a run.
    pub fn add(&mut self, report: &Report) {
        let earlier = report.earlier_sets.iter().flat_map(|set| set.machines.values());
        earlier.chain(report.machines.values()).for_each(|machine| self.add_machine(machine));
    }

    fn add_machine(&mut self, machine: &MachineReport) {
        let start = machine.start();
        if start.is_empty() {
            return;
        }
        let known = |text: &Option<String>| text.clone().unwrap_or_default();
        let mut kind = [&machine.kind.machine_type, &machine.kind.image, &machine.kind.region].map(known);
        if machine.kind.is_unknown() {
            kind[0].clone_from(&machine.description);
        }
        let rows = self.took.entry(kind).or_default();
        for part in &start {
            rows.entry((part.last, false, part.name())).or_default().push(part.took());
        }
        if let Some(up) =
            machine.requested.zip(machine.verified).and_then(|(from, until)| until.checked_sub(from))
        {
            rows.entry((StartPhase::Verify, true, UP.to_owned())).or_default().push(up);
        }
    }

    /// Whether no run tells how its machines came up.
    pub fn is_empty(&self) -> bool {
        self.took.is_empty()
    }

    /// A table of Markdown, in seconds. Nothing of it acts on a terminal.
    pub fn markdown(&self) -> String {
        let heads = ["type", "image", "region", "phase", "machines", "median (s)", "least (s)", "most (s)"];
        let mut text = line(&heads.map(str::to_owned));
        text.push_str(&line(&heads.map(|_| "---".to_owned())));
        self.each(|cells, [median, least, most]| {
            let shown = [median, least, most].map(|time| format!("{:.2}", time.as_secs_f64()));
            text.push_str(&line(&cells.into_iter().chain(shown).collect::<Vec<_>>()));
        });
        text
    }

    /// The same as CSV.
    pub fn csv(&self) -> String {
        let mut text = String::new();
        let heads = [
            "type",
            "image",
            "region",
            "phase",
            "machines",
            "median_seconds",
            "least_seconds",
            "most_seconds",
        ];
        row(&mut text, heads.map(str::to_owned));
        self.each(|cells, times| {
            row(&mut text, cells.into_iter().chain(times.map(|time| seconds(time).to_string())));
        });
        text
    }

    /// The same as a value that the guide (`json.md`) describes.
    pub fn json(&self) -> serde_json::Value {
        let mut rows = Vec::new();
        self.each(|cells, times| {
            let [median, least, most] = times.map(seconds);
            let [machine_type, image, region, phase, machines] = &cells[..] else { return };
            rows.push(serde_json::json!({
                "type": machine_type, "image": image, "region": region, "phase": phase,
                "machines": machines.parse::<usize>().unwrap_or_default(),
                "median_seconds": median, "least_seconds": least, "most_seconds": most,
            }));
        });
        serde_json::json!({ "schema": COLD_START_SCHEMA, "phases": rows })
    }

    /// Shows each row: its first cells, and median, least and most.
    fn each(&self, mut show: impl FnMut(Vec<String>, [Duration; 3])) {
        for (kind, rows) in &self.took {
            for ((_, _, name), took) in rows {
                let mut took = took.clone();
                took.sort_unstable();
                let (middle, last) = (took.len() / 2, took.len() - 1);
                let median = (took[(took.len() - 1) / 2] + took[middle]) / 2;
                let cells = kind.iter().chain([name]).cloned().chain([took.len().to_string()]);
                show(cells.collect(), [median, took[0], took[last]]);
            }
        }
    }
}
