//! `tsunami extend`: move the end of a run's machines.

use std::time::Duration;

use tsunami_core::State;

use super::recorded;
use crate::error::Error;
use crate::terminal::say;

pub(crate) async fn extend(name: &str, longer: Duration) -> Result<u8, Error> {
    let state = State::standard()?;
    let directory = state.find(name)?;
    let record = directory.record()?;
    let until = record.deadline.at + longer;
    recorded(&directory, &state).await?.extend(&directory, until).await?;
    say(&format!("{}: its machines end at {}", record.run, humantime::format_rfc3339_seconds(until)));
    Ok(0)
}
