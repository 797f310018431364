//! `tsunami extend`: move the end of a run's machines.

use std::time::Duration;

use tsunami_core::limits::DURATION_LIMIT;
use tsunami_core::{Error as CoreError, RunStore};

use super::{Context, Execute};
use crate::backend;
use crate::error::Error;
use crate::terminal::{clock, say};

/// Move the end of a run's machines, on the machines too
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Extend {
    /// A run id, a prefix of one, or an experiment's name
    run: String,
    /// How much longer than now planned, as `30m` or `1h30m`
    #[arg(value_parser = humantime::parse_duration)]
    duration: Duration,
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
        backend::engine(context.registry, &directory, &state).await?.extend(&directory, until).await?;
        say(&format!("{}: its machines end at {}", record.run, clock(until)));
        Ok(0)
    }
}
