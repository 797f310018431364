//! `tsunami extend`: move the end of a run's machines.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tsunami_core::State;

use super::recorded;
use crate::error::Error;
use crate::terminal::say;

/// Later than this, in seconds since 1970, no timestamp is written: the year 10000 begins.
const LATEST: u64 = 253_402_300_800;

fn is_written(time: &SystemTime) -> bool {
    time.duration_since(UNIX_EPOCH).is_ok_and(|since| since.as_secs() < LATEST)
}

pub(crate) async fn extend(name: &str, longer: Duration) -> Result<u8, Error> {
    let state = State::standard()?;
    let directory = state.find(name)?;
    let record = directory.record()?;
    let until = record.deadline.at.checked_add(longer).filter(is_written);
    let until = until.ok_or_else(|| Error::Usage("no machine lives that long".to_owned()))?;
    recorded(&directory, &state).await?.extend(&directory, until).await?;
    say(&format!("{}: its machines end at {}", record.run, humantime::format_rfc3339_seconds(until)));
    Ok(0)
}
