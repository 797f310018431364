//! `tsunami schema`: what an experiment file may hold, for editors and for people.

use tsunami_core::Error as CoreError;
use tsunami_core::experiment::Experiment;

use super::{Context, Execute};
use crate::error::Error;
use crate::terminal::print;

/// Print the JSON Schema of experiment files
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Schema {
    /// Print the reference of all keys in place of it, as Markdown
    #[arg(long)]
    reference: bool,
}

const EXAMPLES: &str = "\
Examples:
  tsunami schema >experiment.schema.json   # then `#:schema ./experiment.schema.json` in a file
  tsunami schema --reference | less";

impl Execute for Schema {
    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let text = match self.reference {
            true => Experiment::reference(context.registry),
            false => {
                let schema = serde_json::to_string_pretty(&Experiment::schema(context.registry));
                schema.map_err(CoreError::from)? + "\n"
            }
        };
        print(&text)?;
        Ok(0)
    }
}
