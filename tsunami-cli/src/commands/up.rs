//! `tsunami up`: launch and set up, and leave it running.

use tsunami_core::{Keep, RunStore};

use super::run::{Answer, Part, Stage, StageArgs};
use super::{Context, Execute};
use crate::error::Error;
use crate::terminal::print;

/// Launch and set up machines, and leave them running
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Up {
    #[command(flatten)]
    stage: StageArgs,
}

const EXAMPLES: &str = "\
Examples:
  tsunami up redis.toml
  run=$(tsunami up -q redis.toml) && tsunami exec $run -- uptime";

impl Execute for Up {
    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let stage =
            Stage::prepare(&self.stage, context, None, Keep::Never, RunStore::standard()?, Part::default())
                .await?;
        stage.tell_first_set();
        let outcome = match stage.run.up().await {
            Ok(running) => running.keep().await,
            Err(error) => Err(error),
        };
        let (run, json) = (stage.run.id().clone(), stage.json);
        let status = stage.finish(outcome, Answer::Run).await?;
        // The first event has it.
        if !json {
            print(&format!("{run}\n"))?;
        }
        Ok(status)
    }
}
