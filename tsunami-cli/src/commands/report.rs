//! `tsunami report`: what a run came to, made anew from its directory.

use std::path::PathBuf;

use tokio::task::spawn_blocking;
use tsunami_core::Error as CoreError;
use tsunami_core::results::{ResultsError, markdown, rebuild};

use super::{Context, Execute};
use crate::error::Error;
use crate::reporter::Verbosity;
use crate::terminal::{one_line, print, say};

/// Make report.html, results.json and results.csv anew from a run's directory
#[derive(Debug, clap::Args)]
pub(crate) struct Report {
    /// The results directory of a run, of this or an earlier version
    directory: PathBuf,
}

impl Execute for Report {
    fn names_abandoned_runs(&self) -> bool {
        false
    }

    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let built = spawn_blocking(move || {
            let (report, built) = rebuild(&self.directory)?;
            Ok::<_, ResultsError>((markdown(&report.analysis()), built))
        });
        let (table, built) = built.await.map_err(CoreError::other)??;
        if context.verbosity != Verbosity::Quiet {
            print(&table)?;
            for path in built {
                say(&format!("made {}", one_line(&path.to_string_lossy())));
            }
        }
        Ok(0)
    }
}
