//! `tsunami`: short experiments on short-lived machines.
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     tsunami_cli::main(tsunami_cli::registry())
//! }
//! ```
//!
//! That is the whole program: [`main`] over a [`Registry`] of the providers that it knows, which are `local` and `hosts`, and
//! `aws` with the feature of that name. `tsunami --help` says what it does. What a run is, and what is guaranteed of it, is
//! [`tsunami_core`]'s, for programs of one's own as for this one: [`Experiment::run`](tsunami_core::experiment::Experiment::run)
//! does what `tsunami run` does.
//!
//! # With one provider more
//!
//! Somebody's own `tsunami` knows one provider more.
//!
//! [`Registration`](tsunami_core::registry::Registration) says what it tells of itself; `examples/own-provider` is a
//! whole one.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use std::sync::Arc;
//!
//! use tsunami_core::registry::{Backend, ConnectRequest, Registration};
//! use tsunami_core::{ProviderError, RunRecord};
//! use tsunami_ssh::LocalProvider;
//!
//! /// Machines on this computer, by another name.
//! #[derive(Debug)]
//! struct Mine;
//!
//! #[async_trait::async_trait]
//! impl Registration for Mine {
//!     fn name(&self) -> &'static str {
//!         "mine"
//!     }
//!
//!     async fn connect(&self, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
//!         let provider = Arc::new(LocalProvider::new(request.state.root()));
//!         Ok(Backend::new(provider, request.connector()?))
//!     }
//!
//!     async fn reconnect(&self, _: &RunRecord, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
//!         self.connect(request).await
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     tsunami_cli::main(tsunami_cli::registry().with(Arc::new(Mine)))
//! }
//! ```

mod args;
mod backend;
mod commands;
#[cfg(test)]
mod documents;
mod error;
#[cfg(test)]
mod fuzz;
mod reporter;
mod signals;
mod table;
mod tails;
mod terminal;

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tsunami_core::registry::Registry;

/// As many files as it may ever be good to have open.
const OPEN_FILES: u64 = 1 << 16;

/// How many files a machine takes while two commands run on it: connections, their outputs and its logs.
const FILES_PER_MACHINE: u64 = 8;

/// How many files the program takes beside its machines.
const FILES_BESIDE: u64 = 64;

/// The providers that the program knows by itself.
pub fn registry() -> Registry {
    let registry = tsunami_ssh::registry();
    #[cfg(feature = "aws")]
    let registry = registry.with(std::sync::Arc::new(tsunami_aws::Ec2Registration));
    #[cfg(not(feature = "aws"))]
    let registry = registry.without("aws", WITHOUT_AWS);
    registry
}

/// Why there is no EC2 in a program that was built without it.
#[cfg(not(feature = "aws"))]
const WITHOUT_AWS: &str = "this tsunami was built without the provider \"aws\"; `cargo install --path tsunami-cli` builds it with EC2";

/// The whole program, with its arguments, its terminal and its signals, over the providers that it is to know.
pub fn main(registry: Registry) -> ExitCode {
    let args =
        args::Args::read(&registry, std::env::args_os()).unwrap_or_else(|error| misused(&registry, error));
    terminal::use_colour(args.colour());
    terminal::tell_panics();
    allow_open_files();
    let filter = tracing_subscriber::EnvFilter::builder().with_env_var("TSUNAMI_LOG");
    let filter = filter.try_from_env().unwrap_or_else(|error| {
        if std::env::var_os("TSUNAMI_LOG").is_some() {
            terminal::say(&format!("TSUNAMI_LOG is ignored: {error}"));
        }
        Default::default()
    });
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(terminal::Diagnostics).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            terminal::complain(&format!("cannot start: {error}"));
            terminal::finish();
            return ExitCode::from(error::USAGE);
        }
    };
    let status = match runtime.block_on(commands::run(args, &registry)) {
        Ok(status) => status,
        Err(error) => {
            error.show();
            error.status()
        }
    };
    terminal::finish();
    // Nothing that matters runs any more; a blocking read must not hold the process.
    runtime.shutdown_background();
    ExitCode::from(status)
}

/// Says how the program is to be used, or what is wrong with how it was, which shows the user's own words.
fn misused(registry: &Registry, error: clap::Error) -> ! {
    let words = std::env::args_os().map(|word| tsunami_core::text::mark(&word.to_string_lossy()));
    let error = match args::Args::read(registry, words) {
        Err(marked) => marked,
        // Words that aren't UTF-8 are right once they are marked.
        Ok(_) => error,
    };
    let is_help = !error.use_stderr();
    let colour = match is_help {
        true => args::colour_asked(std::env::args_os(), &std::io::stdout()),
        false => args::colour_asked(std::env::args_os(), &std::io::stderr()),
    };
    let mut message = terminal::Message::new(colour);
    let text = error.render();
    message.drawing(&if colour { text.ansi().to_string() } else { text.to_string() });
    let mut status = error.exit_code();
    if !is_help {
        terminal::show(&message);
    } else if let Err(unwritten) = terminal::print_message(&message) {
        unwritten.show();
        status = unwritten.status().into();
    }
    terminal::finish();
    std::process::exit(status)
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

/// What is to be known before so many machines are launched: that they may take more files than may be open.
fn too_few_open_files(machines: usize) -> Option<String> {
    let needed = machines as u64 * FILES_PER_MACHINE + FILES_BESIDE;
    let allowed = getrlimit(Resource::Nofile).current.filter(|&allowed| allowed < needed)?;
    Some(format!(
        "{machines} machines take about {needed} open files, and this system allows {allowed} (`ulimit -Hn`): \
         what can't be opened will fail"
    ))
}
