//! Runs an experiment file on local machines, as `tsunami run` does, and gets the report.
//!
//! ```text
//! cargo run --example run-a-file examples/experiments/demo/experiment.toml
//! ```
#![expect(clippy::print_stdout, reason = "an example says what it does")]

use std::sync::Arc;

use tsunami_core::experiment::{Experiment, RunOptions};
use tsunami_core::{Error, State, Tsunami};
use tsunami_ssh::{LocalProvider, SshConnector};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let file = std::env::args().nth(1).ok_or("which file?")?;
    let experiment = Experiment::load(file)?;
    let provider = LocalProvider::new(State::standard()?.root());
    let tsunami = Tsunami::new(Arc::new(provider), Arc::new(SshConnector::default()));
    let report = experiment.run(&tsunami, RunOptions::default()).await?;
    for command in &report.commands {
        println!("{} {}: {:.1} s", command.machine, command.stage, command.seconds);
    }
    Ok(())
}
