//! `tsunami report`: what a run came to, made anew from its directory.

use std::fs;
use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;
use tsunami_core::Error as CoreError;
use tsunami_core::results::{ColdStarts, ResultsError, goes_on, json as to_json, rebuild, summary};

use super::{Context, Execute, results_directories};
use crate::error::Error;
use crate::reporter::Verbosity;
use crate::table::print_markdown;
use crate::terminal::{one_line, print, say};

/// Make report.html and a run's other results anew
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Report {
    /// The results directories of runs, of this or an earlier version
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// Make nothing; print how long machines took to come up, over all these runs, by type, image and region
    #[arg(long)]
    cold_start: bool,
    /// Print that as CSV
    #[arg(long, requires = "cold_start")]
    csv: bool,
    /// Print results.json, or with --cold-start its figures, as one JSON object a line
    #[arg(long, conflicts_with = "csv")]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  tsunami report results/redis/latest
  tsunami report --cold-start results/redis/*";

impl Execute for Report {
    fn names_abandoned_runs(&self) -> bool {
        false
    }

    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let Self { directories, cold_start, csv, json } = self;
        let directories = results_directories(directories)?;
        if cold_start {
            let read = spawn_blocking(move || ColdStarts::read(&directories));
            let starts = read.await.map_err(CoreError::other)??;
            if starts.is_empty() {
                return Err(Error::Usage("these runs don't tell how any machine came up".to_owned()));
            }
            if json {
                return print(&to_json(&starts.json()).map_err(CoreError::from)?).map(|()| 0);
            }
            let printed = if csv { print(&starts.csv()) } else { print_markdown(&starts.markdown()) };
            return printed.map(|()| 0);
        }
        let mut failed = None;
        for directory in directories {
            if goes_on(&directory) {
                let run = one_line(&directory.to_string_lossy());
                say(&format!("{run}: the run goes on, so this is of what it has done by now"));
            }
            let built = spawn_blocking(move || {
                let (report, built) = rebuild(&directory)?;
                Ok::<_, ResultsError>((summary(&report), built))
            });
            let (table, built) = match built.await.map_err(CoreError::other)? {
                Ok(built) => built,
                Err(error) => {
                    // The last one is told by whoever ends the program.
                    failed.replace(Error::from(error)).iter().for_each(Error::show);
                    continue;
                }
            };
            if json {
                let results = built.iter().find(|path| path.ends_with("results.json"));
                results.map_or(Ok(()), |path| print(&in_one_line(path)?))?;
            } else if context.verbosity != Verbosity::Quiet {
                print_markdown(&table)?;
                for path in built {
                    say(&format!("made {}", one_line(&path.to_string_lossy())));
                }
            }
        }
        failed.map_or(Ok(0), Err)
    }
}

/// A file of JSON in one line: no string of it goes on in another.
fn in_one_line(path: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    Ok(text.lines().map(str::trim_start).collect())
}
