//! Checks and tests. What `local` does depends on being root, so its tests run as root and as an ordinary user.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::setup::{find, setup, sudo_asks_nothing};
use crate::{Failure, Result, cargo, guest, is_root, root, say, silently, succeeds};

const USER: &str = "tsunami-test";

/// Where tests run from.
const PACKAGES: [&str; 6] =
    ["tsunami-core", "tsunami-aws", "tsunami-ssh", "tsunami-cli", "examples", "xtask"];

/// The tests on local machines, and those that cost nothing. The others don't care who runs them. They are
/// chosen by target: with other packages chosen, cargo would build the AWS SDK once more.
const AS_ANOTHER: [&str; 6] = ["--lib", "--bins", "--test", "conformance", "--test", "e2e"];

/// Settings of the one who runs the tests that reach them as another user too.
const KEPT: [&str; 4] = ["CI", "RUST_BACKTRACE", "RUST_TEST_THREADS", "TSUNAMI_LOG"];

#[derive(Debug)]
enum Outcome {
    Passed,
    Failed,
    LeftOut(&'static str),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed => f.write_str("FAILED"),
            Self::LeftOut(reason) => write!(f, "left out ({reason})"),
        }
    }
}

impl From<bool> for Outcome {
    fn from(success: bool) -> Self {
        if success { Self::Passed } else { Self::Failed }
    }
}

/// All that can be checked is, whatever fails before it.
pub(crate) fn test(quick: bool) -> Result {
    setup(true)?;
    let mut outcomes = Vec::new();
    let guest = is_root() || sudo_asks_nothing();
    if guest {
        guest::guest()?;
    } else {
        outcomes.push((
            "tests in a machine",
            Outcome::LeftOut("building it takes root, or sudo without a password"),
        ));
    }
    if !quick {
        outcomes.push(("format", check("fmt", &["--all", "--check"])?));
        let lints = ["--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
        outcomes.push(("lints", check("clippy", &lints)?));
        let mut docs = cargo(["doc", "--workspace", "--no-deps", "--all-features"]);
        outcomes.push(("docs", succeeds(docs.env("RUSTDOCFLAGS", "-D warnings"))?.into()));
    }
    // Some tests tell figures.
    let mut tests = cargo(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    if !is_root() {
        tests.args(["--skip", "as_root::"]);
    }
    if !guest {
        tests.args(["--skip", "booted::"]);
    }
    let tests = succeeds(&mut tests)?;
    let (here, there) = if is_root() { ("root", "an ordinary user") } else { ("an ordinary user", "root") };
    let (here, there) = (format!("tests as {here}"), format!("tests as {there}"));
    outcomes.push((&here, tests.into()));
    if !quick {
        outcomes.push((&there, if is_root() { test_as_user()? } else { test_as_root()? }));
    }
    let summary = outcomes.iter().map(|(what, outcome)| format!("{what} {outcome}")).collect::<Vec<_>>();
    eprintln!("xtask: {}", summary.join(", "));
    match outcomes.iter().any(|(_, outcome)| matches!(outcome, Outcome::Failed)) {
        true => Err(Failure::new("")),
        false => Ok(()),
    }
}

/// What tests print of their figures begins with one of these.
const FIGURES: [&str; 5] =
    ["chaos:", "kill points", "storm:", "all machines ended themselves", "kills of a local launch"];

/// The tests of "nothing left behind", for longer than anybody waits for CI.
pub(crate) fn chaos(schedules: u32, storms: u32, kills: u32) -> Result {
    setup(true)?;
    if !is_root() {
        return Err(Failure::new("this takes root: the emulator's machines listen on port 22"));
    }
    let targets = ["--test", "chaos", "--test", "emulated", "--test", "aws", "--test", "e2e"];
    let chosen = ["left_behind", "storm", "killed", "signal"];
    let mut tests = cargo(["test", "--workspace", "--no-fail-fast"]);
    tests.args(targets).args(["--", "--nocapture"]).args(chosen);
    tests.env("TSUNAMI_CHAOS", "1").env("TSUNAMI_KILLS", kills.to_string());
    tests.env("TSUNAMI_CHAOS_RUNS", schedules.to_string()).env("TSUNAMI_STORM_RUNS", storms.to_string());
    say(&tests);
    let mut child = tests.stdout(Stdio::piped()).spawn()?;
    let mut figures = Vec::new();
    for line in BufReader::new(child.stdout.take().ok_or_else(|| Failure::new("no output"))?).lines() {
        let line = line?;
        eprintln!("{line}");
        let figure = FIGURES.iter().find_map(|sign| line.find(sign).map(|at| line[at..].to_owned()));
        figures.extend(figure);
    }
    let passed = child.wait()?.success();
    eprintln!("xtask: {}", figures.join("\nxtask: "));
    if passed { Ok(()) } else { Err(Failure::new("something was left behind, or went wrong: see above")) }
}

/// A cargo command that not every toolchain has.
fn check(command: &str, arguments: &[&str]) -> Result<Outcome> {
    if !silently(&mut cargo([command, "--version"])) {
        eprintln!("xtask: going on without `cargo {command}`, which this toolchain has not");
        return Ok(Outcome::LeftOut("not in this toolchain"));
    }
    Ok(succeeds(cargo([command]).args(arguments))?.into())
}

fn test_as_root() -> Result<Outcome> {
    if !sudo_asks_nothing() {
        return Ok(Outcome::LeftOut("takes root, or sudo without a password"));
    }
    let mut runner: Vec<OsString> = ["sudo", "-n", "-H", "env"].map(OsString::from).into();
    runner.extend(environment(&root()));
    test_through(&runner)
}

fn test_as_user() -> Result<Outcome> {
    if !silently(Command::new("id").arg(USER)) {
        eprintln!("xtask: adding a system user to run tests as; `userdel --remove {USER}` removes it");
        let mut useradd = Command::new(find("useradd").unwrap_or_else(|| "useradd".into()));
        let home = ["--system", "--user-group", "--create-home", "--shell", "/bin/bash", USER];
        if !succeeds(useradd.args(home))? {
            return Ok(Outcome::Failed);
        }
    }
    // The repository and the target directory may be where only root can read.
    let directory = tempfile::Builder::new().prefix("tsunami-").tempdir_in("/tmp")?;
    let mut copy = Command::new("cp");
    copy.current_dir(root()).arg("-R").args(PACKAGES).arg("Cargo.toml").arg(directory.path());
    fs::create_dir(directory.path().join("bin"))?;
    fs::create_dir(directory.path().join("tmp"))?;
    let mut own = Command::new("chown");
    own.args(["-R", &format!("{USER}:{USER}")]).arg(directory.path());
    if !succeeds(&mut copy)? || !succeeds(&mut own)? {
        return Ok(Outcome::Failed);
    }
    let xtask = std::env::current_exe()?;
    test_through(&[xtask.into(), "run-as-user".into(), directory.path().into()])
}

/// Has cargo run the tests' programs through another one.
fn test_through(runner: &[OsString]) -> Result<Outcome> {
    // Rust writes a string as TOML reads it, unless it has control characters.
    let runner = format!("target.'cfg(unix)'.runner = {runner:?}");
    let mut tests = cargo(["test", "--workspace", "--no-fail-fast", "--config", &runner]);
    tests.args(AS_ANOTHER);
    if !is_root() {
        tests.args(["--test", "aws"]);
    }
    Ok(succeeds(&mut tests)?.into())
}

/// Runs a test's program as `USER`, in and from a copy of what it needs.
pub(crate) fn run_as_user(directory: &Path, program: &Path, arguments: &[OsString]) -> Result {
    let copied = |from: &Path| -> Result<_> {
        let to = directory.join("bin").join(from.file_name().unwrap_or_default());
        if !to.exists() {
            fs::copy(from, &to)?;
            fs::set_permissions(&to, Permissions::from_mode(0o755))?;
        }
        Ok(to)
    };
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let package = directory.join(Path::new(&package).file_name().unwrap_or_default());
    let test = copied(program)?;

    let mut command = Command::new(find("setpriv").unwrap_or_else(|| "setpriv".into()));
    command.args(["--reuid", USER, "--regid", USER, "--init-groups", "--reset-env", "env"]);
    command.args(environment(directory));
    command.arg(format!("TMPDIR={}", directory.join("tmp").display()));
    if let Some(tsunami) = std::env::var_os("CARGO_BIN_EXE_tsunami") {
        command.arg(format!("TSUNAMI_BIN={}", copied(Path::new(&tsunami))?.display()));
    }
    let status = command.arg(&test).args(arguments).current_dir(package).status()?;
    fs::remove_file(test)?;
    let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1);
    if code == 0 { Ok(()) } else { Err(Failure { message: String::new(), status: code as u8 }) }
}

/// What tests have to know where they can't ask cargo.
fn environment(root: &Path) -> Vec<OsString> {
    let mut variables = vec![OsString::from("INSTA_UPDATE=no")];
    variables.push(format!("INSTA_WORKSPACE_ROOT={}", root.display()).into());
    variables.push(format!("TSUNAMI_EXAMPLES={}", root.join("examples").display()).into());
    let kept = KEPT.iter().filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?).into()));
    variables.extend(kept);
    variables
}
