//! Runs an experiment file as `tsunami run` does, and gets the report.
//!
//! ```text
//! cargo run --example run-a-file examples/experiments/demo/experiment.toml
//! ```
#![expect(clippy::print_stdout, reason = "an example says what it does")]

use tsunami_core::experiment::{Loader, RunOptions};
use tsunami_core::registry::Backend;
use tsunami_core::{Error, RunStore, Tsunami};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let file = std::env::args().nth(1).ok_or("which file?")?;
    let (registry, state) = (tsunami_ssh::registry(), RunStore::standard()?);
    let experiment = Loader::new().registry(&registry).load(file)?;
    let backend = registry.connect(&experiment, &state, false).await;
    let Backend { provider, connector, .. } = backend.map_err(Error::other)?;
    let tsunami = Tsunami::new(provider, connector).state(state);
    let report = experiment.run(&tsunami, RunOptions::default()).await?;
    for command in &report.commands {
        println!("{} {}: {:.1} s", command.machine, command.stage, command.took.as_secs_f64());
    }
    Ok(())
}
