//! `tsunami schema`: what an experiment file may hold, for editors and for people.

use tsunami_core::Error as CoreError;
use tsunami_core::experiment::Experiment;
use tsunami_core::registry::Registry;

use crate::error::Error;
use crate::terminal::print;

pub(crate) fn schema(registry: &Registry, reference: bool) -> Result<u8, Error> {
    let text = match reference {
        true => Experiment::reference(registry),
        false => {
            let schema = serde_json::to_string_pretty(&Experiment::schema(registry));
            schema.map_err(CoreError::from)? + "\n"
        }
    };
    print(&text)?;
    Ok(0)
}
