//! How often `tsunami_core::statistics` is right, as `docs/TRUST.md` has it.

use std::process::Command;

use clap::Args;

use crate::setup::python_environment;
use crate::{Failure, Result, cargo, root, succeeds};

const FIGURES: &str = "tsunami-core/tests/fixtures/statistics.json";

#[derive(Debug, Args)]
pub(crate) struct Statistics {
    /// What chance begins with
    #[arg(long)]
    seed: Option<u64>,
    /// How many simulations a cell of a table has
    #[arg(long)]
    simulations: Option<u64>,
}

/// The figures by scipy first: they are soon there.
pub(crate) fn statistics(statistics: &Statistics) -> Result {
    let home = root().join("target/statistics");
    python_environment(&home, &root().join("xtask/statistics/requirements.txt"))?;
    let mut reference = Command::new(home.join("bin/python"));
    reference.current_dir(root()).args(["xtask/statistics/reference.py", FIGURES]);
    let mut ours = cargo(["test", "--package", "tsunami-core", "--lib", "statistics::"]);
    let mut tables = cargo(["bench", "--package", "tsunami-core", "--bench", "statistics", "--"]);
    for (name, value) in [("--seed", statistics.seed), ("--simulations", statistics.simulations)] {
        if let Some(value) = value {
            tables.args([name.to_owned(), value.to_string()]);
        }
    }
    for task in [&mut reference, &mut ours, &mut tables] {
        if !succeeds(task)? {
            return Err(Failure::new("the statistics were not checked: see above"));
        }
    }
    Ok(())
}
