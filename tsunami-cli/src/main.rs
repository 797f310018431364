//! `tsunami`: short experiments on short-lived machines.

use std::process::ExitCode;

fn main() -> ExitCode {
    tsunami_cli::main(tsunami_cli::registry())
}
