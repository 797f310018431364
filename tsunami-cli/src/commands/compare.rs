//! `tsunami compare`: runs side by side.

use std::path::PathBuf;

use tokio::task::spawn_blocking;
use tsunami_core::Error as CoreError;
use tsunami_core::results::{SideBySide, json as to_json};

use super::{Context, Execute, results_directories};
use crate::error::Error;
use crate::table::print_markdown;
use crate::terminal::{print, say};

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
    /// Compare them although their machines differ
    #[arg(long)]
    unlike_machines: bool,
}

const EXAMPLES: &str = "\
Examples:
  tsunami compare results/redis/20260101-* results/redis/latest
  tsunami compare --csv results/redis/2026*";

impl Execute for Compare {
    fn names_abandoned_runs(&self) -> bool {
        false
    }

    async fn execute(self, _: &Context<'_>) -> Result<u8, Error> {
        let Self { directories, csv, json, unlike_machines } = self;
        let directories = results_directories(directories)?;
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
        let unlike = runs.unlike();
        if !unlike.is_empty() && !unlike_machines {
            let each: String = unlike.iter().map(|line| format!("\n  {line}")).collect();
            return Err(Error::Usage(format!(
                "these runs were not on like machines; --unlike-machines compares them all the same:{each}"
            )));
        }
        unlike.iter().for_each(|line| say(&format!("unlike machines: {line}")));
        runs.changed().iter().for_each(|line| say(&format!("not the same: {line}")));
        if csv {
            return print(&runs.csv()).map(|()| 0);
        }
        if json {
            return print(&to_json(&runs.json()).map_err(CoreError::from)?).map(|()| 0);
        }
        print_markdown(&runs.markdown())?;
        say(
            "each interval is of that run's own median: what changed between the runs beside the experiment is not \
             taken out",
        );
        Ok(0)
    }
}
