//! `tsunami up`: launch and set up, and leave it running.

use tsunami_core::registry::Registry;
use tsunami_core::{Keep, RunStore};

use super::run::Stage;
use crate::args::UpArgs;
use crate::error::Error;
use crate::reporter::Verbosity;
use crate::terminal::print;

pub(crate) async fn up(
    args: UpArgs,
    registry: &Registry,
    colour: bool,
    verbosity: Verbosity,
) -> Result<u8, Error> {
    let stage =
        Stage::prepare(&args, registry, None, Keep::Never, RunStore::standard()?, colour, verbosity).await?;
    let outcome = match stage.run.up().await {
        Ok(running) => running.keep().await,
        Err(error) => Err(error),
    };
    let (run, json) = (stage.run.id().clone(), stage.json);
    let status = stage.finish(outcome)?;
    // The first event has it.
    if !json {
        print(&format!("{run}\n"))?;
    }
    Ok(status)
}
