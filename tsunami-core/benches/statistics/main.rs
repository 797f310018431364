//! How often the intervals of `tsunami_core::statistics` are right, and what they can see: simulations with known truth,
//! printed as Markdown tables, each with what was asked of it.
//!
//! `cargo xtask statistics`, or `cargo bench -p tsunami-core --bench statistics [-- --seed SEED] [-- --simulations N]`.
//! As a test (`cargo test`) it makes all tables with few simulations, and judges none.

#![expect(clippy::print_stdout, reason = "it tells figures")]

mod simulate;
mod tables;

use std::time::Instant;

use tables::Tables;

const SEED: u64 = 2026;
const SIMULATIONS: u64 = 10_000;
const SIMULATIONS_OF_A_TEST: u64 = 4;

fn main() {
    // Cargo says whether it benches. What it passes on else is for tests with a harness.
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    let bench = arguments.iter().any(|argument| argument == "--bench");
    let number = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse().ok()
    };
    let simulations = if bench { SIMULATIONS } else { SIMULATIONS_OF_A_TEST };
    let (seed, simulations) =
        (number("--seed").unwrap_or(SEED), number("--simulations").unwrap_or(simulations));
    let begun = Instant::now();
    let mut tables = Tables { seed, simulations, judged: bench, missed: 0, text: String::new() };
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
        println!("{} cells missed; {} s.", tables.missed, begun.elapsed().as_secs());
    } else {
        println!("the tables of the statistics can be made ({} bytes)", tables.text.len());
    }
}
