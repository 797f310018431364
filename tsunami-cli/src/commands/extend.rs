//! `tsunami extend`: move the end of a run's machines.

use std::time::Duration;

use tsunami_core::limits::DURATION_LIMIT;
use tsunami_core::registry::Registry;
use tsunami_core::{Error as CoreError, RunStore};

use crate::backend;
use crate::error::Error;
use crate::terminal::say;

pub(crate) async fn extend(registry: &Registry, name: &str, longer: Duration) -> Result<u8, Error> {
    let state = RunStore::standard()?;
    let directory = state.find(name)?;
    let record = directory.record()?;
    let limit = DURATION_LIMIT;
    let too_long = CoreError::LifetimeTooLong { lifetime: longer, limit };
    let until = record.deadline.at.checked_add(longer).ok_or(too_long)?;
    backend::engine(registry, &directory, &state).await?.extend(&directory, until).await?;
    say(&format!("{}: its machines end at {}", record.run, humantime::format_rfc3339_seconds(until)));
    Ok(0)
}
