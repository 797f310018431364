//! `tsunami compare`: runs side by side.

use std::path::PathBuf;

use tokio::task::spawn_blocking;
use tsunami_core::Error as CoreError;
use tsunami_core::results::SideBySide;

use super::{Context, Execute};
use crate::error::Error;
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
        let Self { directories, csv, unlike_machines } = self;
        let read = spawn_blocking(move || SideBySide::read(&directories));
        let runs = read.await.map_err(CoreError::other)??;
        if !runs.is_comparable() {
            return Err(Error::Usage("these runs have no metric in common".to_owned()));
        }
        let unlike = runs.unlike();
        if !unlike.is_empty() && !unlike_machines {
            let each: String = unlike.iter().map(|line| format!("\n  {line}")).collect();
            return Err(Error::Usage(format!(
                "these runs were not on like machines; --unlike-machines compares them all the same:{each}"
            )));
        }
        unlike.iter().for_each(|line| say(&format!("unlike machines: {line}")));
        if csv {
            return print(&runs.csv()).map(|()| 0);
        }
        print(&runs.markdown())?;
        say(
            "each interval is of that run's own median: what changed between the runs beside the experiment is not \
             taken out",
        );
        Ok(0)
    }
}
