//! `tsunami`: short experiments on short-lived machines.

mod args;
mod commands;
mod compose;
mod error;
mod experiment;
mod files;
mod reporter;
mod results;
mod secrets;
mod signals;
mod steps;
mod terminal;

use std::process::ExitCode;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many files as it may ever be good to have open.
const OPEN_FILES: u64 = 1 << 16;

fn main() -> ExitCode {
    let args = args::Args::parse();
    allow_open_files();
    let filter = tracing_subscriber::EnvFilter::from_env("TSUNAMI_LOG");
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal::say(&format!("error: cannot start: {error}"));
            return ExitCode::from(error::USAGE);
        }
    };
    let colour = args.colour();
    let status = match runtime.block_on(commands::run(args)) {
        Ok(status) => status,
        Err(error) => {
            terminal::say(&error.render(colour));
            error.status()
        }
    };
    // Nothing that matters runs any more; a blocking read must not hold the process.
    runtime.shutdown_background();
    ExitCode::from(status)
}

/// Every machine takes a few open files, and a shell allows 1,024 by default, where the system allows more.
fn allow_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
    if current.is_some_and(|current| current < wanted) {
        // Where that is refused, the first file that can't be opened is named.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
}
