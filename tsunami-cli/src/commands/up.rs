//! `tsunami up`: launch and set up, and leave it running.

use tsunami_core::State;

use super::run::Stage;
use crate::args::UpArgs;
use crate::compose;
use crate::error::Error;
use crate::reporter::Verbosity;
use crate::terminal::print;

pub(crate) async fn up(args: UpArgs, colour: bool, verbosity: Verbosity) -> Result<u8, Error> {
    let stage = Stage::set(&args, None, State::standard()?, colour, verbosity).await?;
    let plan = compose::plan(&stage.experiment)?;
    let outcome = match stage.tsunami.up_as(stage.run.clone(), plan).await {
        Ok(running) => running.keep().await,
        Err(error) => Err(error),
    };
    let (run, json) = (stage.run.clone(), stage.json);
    let status = stage.finish(outcome)?;
    // The first event has it.
    if !json {
        print(&format!("{run}\n"))?;
    }
    Ok(status)
}
