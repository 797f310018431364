//! How often the intervals of `tsunami_core::statistics` are right, and what they can see: simulations with known truth,
//! printed as Markdown tables, each with what was asked of it.
//!
//! `cargo xtask statistics`, or `cargo bench -p tsunami-core --bench statistics [-- --seed SEED] [-- --simulations N]`.
//! With `--real DIR` it judges the results of a real run of equal variants instead (`cargo xtask statistics --real`).
//! As a test (`cargo test`) it makes all tables with few simulations, and judges none.

#![expect(clippy::print_stdout, reason = "it tells figures")]

mod real;
mod simulate;
mod tables;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use tables::Tables;

const SEED: u64 = 2026;
const SIMULATIONS: u64 = 10_000;
const SIMULATIONS_OF_A_TEST: u64 = 4;

fn main() -> ExitCode {
    // Cargo says whether it benches. What it passes on else is for tests with a harness.
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let bench = arguments.iter().any(|argument| argument == "--bench");
    let given = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    if let Some(results) = given("--real") {
        return match real::judge(Path::new(results)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                println!("{results} can't be read: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let number = |name: &str| given(name)?.parse().ok();
    let simulations = if bench { SIMULATIONS } else { SIMULATIONS_OF_A_TEST };
    let (seed, simulations) =
        (number("--seed").unwrap_or(SEED), number("--simulations").unwrap_or(simulations));
    let begun = Instant::now();
    let mut tables = Tables { seed, simulations, judged: bench, ..Tables::default() };
    tables.coverage();
    tables.three_variants();
    tables.many();
    tables.other_machines();
    tables.power();
    tables.pairing();
    tables.more_repeats();
    if bench {
        println!(
            "Seed {seed}, {simulations} simulations a cell where nothing else is said.\n{}",
            tables.text
        );
        println!("{}{} s.", tables.verdict(), begun.elapsed().as_secs());
    } else {
        real::check(seed);
        println!("the tables of the statistics can be made ({} bytes)", tables.text.len());
    }
    ExitCode::SUCCESS
}
