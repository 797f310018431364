//! `tsunami compare`: runs side by side.

use std::path::PathBuf;

use tokio::task::spawn_blocking;
use tsunami_core::Error as CoreError;
use tsunami_core::results::{SideBySide, json as to_json};
use tsunami_core::statistics::Threshold;

use super::{Context, Execute, results_directories};
use crate::error::Error;
use crate::table::print_markdown;
use crate::terminal::{one_line, print, say};

/// Set what runs measured side by side
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Compare {
    /// Results directories of runs; the first is what the others are compared with
    #[arg(required = true, num_args = 2.., value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// Print CSV, a row for each run, for tools that look for points of change
    #[arg(long)]
    csv: bool,
    /// Print one JSON object
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// End with 1 if a run is beyond this ratio to the first by both their intervals, as `rps < 0.95` (may be repeated)
    #[arg(long, value_name = "CHECK")]
    fail_if: Vec<Threshold>,
    /// Compare them although their machines differ
    #[arg(long)]
    unlike_machines: bool,
}

const EXAMPLES: &str = "\
Examples:
  tsunami compare results/redis/20260101-* results/redis/latest
  tsunami compare --fail-if 'rps < 0.95' results/base results/new
  tsunami compare --csv results/redis/2026*";

impl Execute for Compare {
    fn names_abandoned_runs(&self) -> bool {
        false
    }

    async fn execute(self, _: &Context<'_>) -> Result<u8, Error> {
        let Self { directories, csv, json, fail_if, unlike_machines } = self;
        let directories = results_directories(directories)?;
        let alone = (directories.len() == 1).then(|| directories[0].clone());
        let read = spawn_blocking(move || SideBySide::read(&directories));
        let runs = read.await.map_err(CoreError::other)??;
        if !runs.is_comparable() {
            let without = runs.without_values();
            if !without.is_empty() {
                return Err(Error::Usage(format!(
                    "these runs have no metric in common: no value was measured in {}",
                    without.join(", ")
                )));
            }
            let each: String = runs.changed().iter().map(|line| format!("\n  {line}")).collect();
            let why = if each.is_empty() { String::new() } else { format!("; they differ in this:{each}") };
            return Err(Error::Usage(format!(
                "these runs have no metric in common, of the same parameters{why}"
            )));
        }
        // A history may begin with one run.
        if let Some(alone) = alone.filter(|_| !csv || !fail_if.is_empty()) {
            let alone = one_line(&alone.to_string_lossy());
            return Err(Error::Usage(format!(
                "only one run is named, {alone}: there is nothing to compare it with"
            )));
        }
        let unlike = runs.unlike();
        if !unlike.is_empty() && !unlike_machines {
            let each: String = unlike.iter().map(|line| format!("\n  {line}")).collect();
            return Err(Error::Usage(format!(
                "these runs were not on like machines; --unlike-machines compares them all the same:{each}"
            )));
        }
        unlike.iter().for_each(|line| say(&format!("unlike machines: {line}")));
        runs.changed().iter().for_each(|line| say(&format!("not the same: {line}")));
        let checks = runs.checks(&fail_if);
        let is_known = |line: &&Threshold| checks.iter().any(|check| check.metric == line.metric);
        if let Some(line) = fail_if.iter().find(|line| !is_known(line)) {
            return Err(Error::Usage(format!("`{line}`: these runs have no metric {}", line.metric)));
        }
        for line in &fail_if {
            if let Some(why) = runs.other_unit(&line.metric) {
                return Err(Error::Usage(format!("`{line}` can't be judged: {why}")));
            }
        }
        if csv {
            print(&runs.csv())?;
        } else if json {
            let mut json = runs.json();
            json["checks"] = serde_json::to_value(&checks).map_err(CoreError::other)?;
            print(&to_json(&json).map_err(CoreError::from)?)?;
        } else {
            print_markdown(&runs.markdown())?;
            say(
                "each interval is of that run's own median: what changed between the runs beside the experiment is not \
                 taken out",
            );
        }
        let (held, rest): (Vec<_>, Vec<_>) = checks
            .iter()
            .filter(|check| check.holds != Some(false))
            .partition(|check| check.holds == Some(true));
        rest.iter().for_each(|check| say(&check.to_string()));
        let held: Vec<String> = held.iter().map(ToString::to_string).collect();
        match held.is_empty() {
            true => Ok(0),
            false => Err(CoreError::other(held.join("; ")).into()),
        }
    }
}
