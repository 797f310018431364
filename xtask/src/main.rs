//! What people do in this repository: `cargo xtask --help`.

#![expect(clippy::print_stderr, reason = "it talks to whoever runs it")]

mod bench;
mod contract;
mod docs;
mod emulator;
mod guest;
mod picture;
mod release;
mod setup;
mod statistics;
mod test;

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use clap::Parser;

const DEMO: &str = "examples/experiments/demo/experiment.toml";

/// What people do in this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Install the programs that are missing, having said which.
    Setup {
        /// Also those that only the tests need.
        #[arg(long)]
        tests: bool,
    },
    /// Set up, then run a real experiment on local machines.
    Demo {
        /// Passed on to `tsunami run`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Set up, check format, lints and docs, and run all tests, as root and as an ordinary user.
    #[command(visible_alias = "ci")]
    Test {
        /// Only the tests, and only as who you are.
        #[arg(long)]
        quick: bool,
    },
    /// The tests of "nothing left behind", of interrupted trials and of hostile input in their long form, with a summary.
    Chaos(test::Chaos),
    /// What it takes to set machines up over SSH, beside what people would use in tsunami's place; as root.
    Bench(bench::Bench),
    /// How often statements about measurements are right: simulations, as the tables of docs/TRUST.md, and scipy's figures.
    Statistics(statistics::Statistics),
    /// What is checked before a release: packages, features, oldest versions, installation, advisories, tests with EC2.
    Release(release::Release),
    /// Make the guide, a book, and the documentation of all crates.
    Docs {
        /// Only the guide.
        #[arg(long)]
        quick: bool,
    },
    /// Make the README's pictures from a real run: what a terminal shows of it, and its report.
    Picture {
        /// Where to [default: docs].
        directory: Option<PathBuf>,
    },
    /// Build the machines that tests boot, small Debians; as root.
    Guest,
    /// Ask a real AWS account whether EC2 is what the tests take it to be, having said what that costs.
    AwsContract(contract::Contract),
    /// Start the emulator of EC2, for trying things by hand.
    #[command(alias = "moto")]
    Emulator {
        /// The port to listen on, on 127.0.0.1.
        #[arg(long, default_value_t = 5555)]
        port: u16,
    },
    /// What cargo calls in place of a test's program, to run it as an ordinary user.
    #[command(hide = true)]
    RunAsUser {
        directory: PathBuf,
        program: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// Why a task failed, and the exit status that says so.
#[derive(Debug)]
struct Failure {
    message: String,
    status: u8,
}

type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), status: 1 }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(error.to_string())
    }
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Setup { tests } => setup::setup(tests),
        Task::Demo { arguments } => demo(&arguments),
        Task::Test { quick } => test::test(quick),
        Task::Bench(bench) => bench::bench(&bench),
        Task::Statistics(statistics) => statistics::statistics(&statistics),
        Task::Docs { quick } => docs::docs(quick),
        Task::Chaos(chaos) => test::chaos(&chaos),
        Task::Release(release) => release::release(&release),
        Task::Picture { directory } => picture::picture(directory.as_deref()),
        Task::Guest => setup::setup(true).and_then(|()| guest::guests()),
        Task::AwsContract(contract) => contract::contract(&contract),
        Task::Emulator { port } => emulator::run(port),
        Task::RunAsUser { directory, program, arguments } => {
            test::run_as_user(&directory, &program, &arguments)
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, status }) => {
            if !message.is_empty() {
                eprintln!("xtask: {message}");
            }
            ExitCode::from(status)
        }
    }
}

fn demo(arguments: &[OsString]) -> Result {
    setup::setup(false)?;
    let mut run = cargo(["run", "--package", "tsunami-cli", "--no-default-features", "--bin", "tsunami"]);
    run.args(["--", "run", DEMO]).args(arguments);
    // In this process's place, so that Ctrl-C and the exit status are between the user and tsunami.
    say(&run);
    Err(Failure::new(format!("cannot run cargo: {}", run.exec())))
}

/// The cargo that runs this, in the root of the repository.
fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).current_dir(root());
    cargo
}

/// Builds the program that people run, without EC2: that part would take as long to compile as all of it. `None` if it
/// does not build.
fn release_build() -> Result<Option<PathBuf>> {
    let target = root().join("target/without-aws");
    let mut build = cargo(["build", "--release", "--package", "tsunami-cli", "--no-default-features"]);
    let built = succeeds(build.arg("--target-dir").arg(&target))?;
    Ok(built.then(|| target.join("release/tsunami")))
}

/// The tsunami that is to be measured in place of one that is built.
fn given_tsunami() -> Option<PathBuf> {
    let given = PathBuf::from(std::env::var_os("TSUNAMI_BIN")?);
    // It is run in another directory.
    Some(std::path::absolute(&given).unwrap_or(given))
}

fn root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(xtask).parent().map(PathBuf::from).unwrap_or_default()
}

/// Says what is going to run.
fn say(command: &Command) {
    let program = command.get_program().to_string_lossy();
    let name = program.rsplit('/').next().unwrap_or_default();
    let arguments = command.get_args().map(|argument| format!(" {}", argument.to_string_lossy()));
    eprintln!("xtask: {name}{}", arguments.collect::<String>());
}

/// Runs a command where its output can be seen; whether it succeeded.
fn succeeds(command: &mut Command) -> Result<bool> {
    say(command);
    let status = command.status().map_err(|error| {
        Failure::new(format!("cannot run {}: {error}", command.get_program().to_string_lossy()))
    })?;
    Ok(status.success())
}

/// Whether a command succeeds, of which nobody wants to hear.
fn silently(command: &mut Command) -> bool {
    let null = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    null.status().is_ok_and(|status| status.success())
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
