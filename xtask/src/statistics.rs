//! How often `tsunami_core::statistics` is right, as `docs/TRUST.md` has it.

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::Args;

use crate::setup::python_environment;
use crate::{Failure, Result, cargo, given_tsunami, release_build, root, succeeds};

const FIGURES: &str = "tsunami-core/tests/fixtures/statistics.json";

/// What both variants of the real comparisons do.
const WORK: &str = "xtask/statistics/real/work";

#[derive(Debug, Args)]
pub(crate) struct Statistics {
    /// What chance begins with
    #[arg(long)]
    seed: Option<u64>,
    /// How many simulations a cell of a table has
    #[arg(long)]
    simulations: Option<u64>,
    /// Compare equal variants in real trials instead, by the released program on a local machine; on a computer that does
    /// nothing else
    #[arg(long, conflicts_with_all = ["seed", "simulations"])]
    real: bool,
    /// How many such comparisons there are; only 200 are judged
    #[arg(long, requires = "real", default_value_t = 200)]
    comparisons: u32,
    /// How many rounds each of them has
    #[arg(long, requires = "real", default_value_t = 6)]
    rounds: u32,
}

pub(crate) fn statistics(statistics: &Statistics) -> Result {
    if statistics.real {
        return real(statistics.comparisons, statistics.rounds);
    }
    // The figures by scipy first: they are soon there.
    let home = root().join("target/statistics");
    python_environment(&home, &root().join("xtask/statistics/requirements.txt"))?;
    let mut reference = Command::new(home.join("bin/python"));
    reference.current_dir(root()).args(["xtask/statistics/reference.py", FIGURES]);
    let mut ours = cargo(["test", "--package", "tsunami-core", "--lib", "statistics::"]);
    let mut tables = tables();
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

/// What makes the tables, and judges real trials.
fn tables() -> Command {
    cargo(["bench", "--package", "tsunami-core", "--bench", "statistics", "--"])
}

/// Comparisons of the same with the same, as somebody would run them.
fn real(comparisons: u32, rounds: u32) -> Result {
    let tsunami = match given_tsunami() {
        Some(given) => given,
        None => release_build()?.ok_or_else(|| Failure::new("tsunami does not build"))?,
    };
    // It is compiled before anything is measured.
    let mut judge = cargo(["bench", "--package", "tsunami-core", "--bench", "statistics", "--no-run"]);
    if !succeeds(&mut judge)? {
        return Err(Failure::new("what judges the trials does not build"));
    }
    let home = root().join("target/statistics-real");
    if home.exists() {
        fs::remove_dir_all(&home)?;
    }
    fs::create_dir_all(&home)?;
    fs::write(home.join("experiment.toml"), experiment(&root().join(WORK), comparisons, rounds))?;
    let results = home.join("results");
    let mut run = Command::new(tsunami);
    run.current_dir(&home).args(["run", "--quiet", "experiment.toml", "--output"]).arg(&results);
    if !succeeds(&mut run)? {
        return Err(Failure::new("the trials did not succeed: see above"));
    }
    let judged = succeeds(tables().arg("--real").arg(&results))?;
    if judged { Ok(()) } else { Err(Failure::new("equal variants seemed to differ too often: see above")) }
}

/// An experiment whose comparisons have no trial in common. Chance puts their rounds in one order.
fn experiment(work: &Path, comparisons: u32, rounds: u32) -> String {
    let all: Vec<String> = (1..=comparisons).map(|number| number.to_string()).collect();
    format!(
        r#"# Do two variants that are the same seem to differ? `cargo xtask statistics --real` made this.
name = "the-same"
lifetime = "2h"

[matrix]
comparison = [{}]
variant = ["a", "b"]

[trials]
repeat = {rounds}

[compare]
by = "variant"

[group.machine]
upload = [{{ from = {work:?}, to = "a" }}, {{ from = {work:?}, to = "b" }}]

[[step]]
name = "work"
on = "machine"
run = "./{{{{ variant }}}} # of comparison {{{{ comparison }}}}"
[step.metrics]
time = {{ regex = "microseconds=([0-9]+)", better = "lower", unit = "us" }}
"#,
        all.join(", "),
    )
}
