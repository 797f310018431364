//! `tsunami extend`: move the end of a run's machines.

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use tsunami_core::limits::DURATION_LIMIT;
use tsunami_core::results::json as to_json;
use tsunami_core::{Error as CoreError, RunId, RunStore};

use super::{Context, Execute};
use crate::backend;
use crate::error::Error;
use crate::terminal::{clock, print, say, saying};

/// Move the end of a run's machines, on the machines too
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Extend {
    /// A run id, a prefix of one, or an experiment's name
    run: String,
    /// How much longer than now planned, as `30m` or `1h30m`
    #[arg(value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Print the new end as JSON
    #[arg(long)]
    json: bool,
}

/// The number of the form of the JSON.
const SCHEMA: u32 = 1;

/// The new end, as `--json` shows it: in seconds since 1970.
#[derive(Serialize)]
struct Answer {
    schema: u32,
    run: RunId,
    until: u64,
}

const EXAMPLES: &str = "\
Example:
  tsunami extend redis 30m";

impl Execute for Extend {
    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let longer = self.duration;
        let state = RunStore::standard()?;
        let directory = state.find(&self.run)?;
        let record = directory.record()?;
        let limit = DURATION_LIMIT;
        let too_long = CoreError::LifetimeTooLong { lifetime: longer, limit };
        let until = record.deadline.at.checked_add(longer).ok_or(too_long)?;
        let engine = backend::engine(context.registry, &directory, &state).await?;
        let what = format!("{}: its provider and its machines are told", record.run);
        saying(&what, engine.extend(&directory, until)).await?;
        if self.json {
            let until = until.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let answer = Answer { schema: SCHEMA, run: record.run, until };
            print(&(to_json(&answer).map_err(CoreError::from)? + "\n"))?;
            return Ok(0);
        }
        say(&format!("{}: its machines end at {}", record.run, clock(until)));
        Ok(0)
    }
}
