//! What is checked before a release, and takes longer than anybody waits for CI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::test::{Failures, Outcome, Parts, cargo_test};
use crate::{Failure, Result, cargo, is_root, root, silently, succeeds};

/// What crates.io gets, in the order in which it has to get them.
const PACKAGES: [&str; 4] = ["tsunami-core", "tsunami-ssh", "tsunami-aws", "tsunami-cli"];

/// What doesn't compile the AWS SDK.
const WITHOUT_AWS: [&str; 6] =
    ["--package", "tsunami-core", "--package", "tsunami-ssh", "--package", "tsunami-cli"];

/// Which parts are done.
#[derive(Debug, clap::Args)]
pub(crate) struct Release {
    /// Only these parts.
    #[arg(value_enum)]
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// What the packages are made of, and that each compiles from what crates.io would get.
    Packages,
    /// That each combination of features compiles.
    Features,
    /// That the oldest versions that the manifests ask for are enough.
    MinimalVersions,
    /// That the oldest toolchain that the manifests name is enough.
    OldestRust,
    /// Installing the program as people do, with the newest versions of everything, and how large and fast it is to build.
    Install,
    /// Known holes in the dependencies.
    Advisories,
    /// That nothing breaks for those who use the last release.
    Semver,
    /// The tests of EC2 and the end-to-end tests with the release build.
    Tests,
}

/// All that can be checked is, whatever fails before it.
pub(crate) fn release(release: &Release) -> Result {
    let (mut parts, mut failures) = (Parts::default(), Failures::default());
    let all = [
        Part::Packages,
        Part::Features,
        Part::MinimalVersions,
        Part::OldestRust,
        Part::Install,
        Part::Advisories,
        Part::Semver,
        Part::Tests,
    ];
    for part in all {
        if !release.parts.is_empty() && !release.parts.contains(&part) {
            continue;
        }
        match part {
            Part::Packages => parts.part("packages", packages)?,
            Part::Features => parts.part("features", features)?,
            Part::MinimalVersions => parts.part("minimal versions", minimal_versions)?,
            Part::OldestRust => parts.part("oldest Rust", oldest_rust)?,
            Part::Install => parts.part("installation", install)?,
            Part::Advisories => parts.part("advisories", advisories)?,
            Part::Semver => parts.part("semver", semver)?,
            Part::Tests => parts.part("tests of the release build with EC2", || tests(&mut failures))?,
        }
    }
    failures.tell();
    parts.tell()
}

fn packages() -> Result<Outcome> {
    for package in PACKAGES {
        let mut list = cargo(["package", "--list", "--allow-dirty", "--package", package]);
        let listed = list.output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for file in ["README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
            if !listed.lines().any(|line| line == file) {
                eprintln!("xtask: {package} would be published without {file}");
                return Ok(Outcome::Failed);
            }
        }
    }
    let mut publish = cargo(["publish", "--dry-run", "--workspace"]);
    Ok(succeeds(&mut publish)?.into())
}

fn features() -> Result<Outcome> {
    let Some(mut hack) = installed("cargo-hack", "0.6.46")? else { return Ok(Outcome::Failed) };
    let powerset = ["hack", "check", "--feature-powerset", "--no-dev-deps", "--workspace"];
    hack.args(powerset).args(["--exclude", "xtask", "--exclude", "tsunami-examples"]);
    Ok(succeeds(&mut hack)?.into())
}

/// A copy of the repository's manifests and sources, whose lock file may be another one.
fn copy() -> Result<tempfile::TempDir> {
    let directory = tempfile::Builder::new().prefix("tsunami-release-").tempdir()?;
    let listed = Command::new("git").current_dir(root()).args(["ls-files", "-z"]).output()?;
    for file in String::from_utf8_lossy(&listed.stdout).split_terminator('\0') {
        let to = directory.path().join(file);
        fs::create_dir_all(to.parent().unwrap_or(directory.path()))?;
        let from = root().join(file);
        // What was removed and not yet committed is still listed.
        if from.is_file() {
            fs::copy(from, to)?;
        }
    }
    Ok(directory)
}

fn minimal_versions() -> Result<Outcome> {
    let directory = copy()?;
    let mut update = cargo(["update", "-Z", "direct-minimal-versions"]);
    // Cargo has no stable way to ask for this.
    update.env("RUSTC_BOOTSTRAP", "1").current_dir(directory.path());
    if !succeeds(&mut update)? {
        return Ok(Outcome::Failed);
    }
    let mut check = cargo(["check", "--locked", "--no-default-features"]);
    check.args(WITHOUT_AWS).current_dir(directory.path());
    check.env("CARGO_TARGET_DIR", root().join("target/minimal-versions"));
    eprintln!("xtask: tsunami-aws is resolved with the oldest versions, and not compiled with them");
    Ok(succeeds(&mut check)?.into())
}

fn oldest_rust() -> Result<Outcome> {
    let oldest = |package: &str| {
        let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap_or_default();
        let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \""));
        version.map(|version| version.trim_end_matches('"').to_owned())
    };
    let Some(version) = oldest("tsunami-core") else {
        return Err(Failure::new("tsunami-core/Cargo.toml names no oldest Rust"));
    };
    if !silently(Command::new("rustup").args(["run", &version, "cargo", "--version"])) {
        return Ok(Outcome::LeftOut("the oldest toolchain is not here: `rustup toolchain install` gets it"));
    }
    let mut check = Command::new("rustup");
    check.args(["run", &version, "cargo", "check", "--locked", "--no-default-features"]).args(WITHOUT_AWS);
    check.current_dir(root()).env("CARGO_TARGET_DIR", root().join("target/oldest-rust"));
    Ok(succeeds(&mut check)?.into())
}

fn install() -> Result<Outcome> {
    for (name, arguments) in [("without EC2", &["--no-default-features"][..]), ("with EC2", &[])] {
        let directory = tempfile::Builder::new().prefix("tsunami-release-").tempdir()?;
        let begun = Instant::now();
        let mut install = cargo(["install", "--path", "tsunami-cli", "--root"]);
        install.arg(directory.path()).args(arguments);
        install.env("CARGO_TARGET_DIR", directory.path().join("target"));
        let program = directory.path().join("bin/tsunami");
        if !succeeds(&mut install)? || !silently(Command::new(&program).arg("--version")) {
            return Ok(Outcome::Failed);
        }
        let mebibytes = fs::metadata(&program)?.len() >> 20;
        let seconds = begun.elapsed().as_secs();
        eprintln!("xtask: the program {name}: {mebibytes} MiB, built from nothing in {seconds} s");
    }
    Ok(Outcome::Passed)
}

fn advisories() -> Result<Outcome> {
    let deny = root().join("target/deny/bin/cargo-deny");
    let fetched = deny.exists() && succeeds(Command::new(&deny).current_dir(root()).args(["fetch", "db"]))?;
    if !fetched {
        return Ok(Outcome::LeftOut("the database of advisories could not be fetched"));
    }
    Ok(succeeds(Command::new(deny).current_dir(root()).args(["check", "advisories"]))?.into())
}

fn semver() -> Result<Outcome> {
    let mut last = Command::new("git");
    let last =
        last.current_dir(root()).args(["describe", "--tags", "--abbrev=0", "--match", "v*"]).output()?;
    if !last.status.success() {
        return Ok(Outcome::LeftOut("there is no earlier release"));
    }
    let last = String::from_utf8_lossy(&last.stdout).trim().to_owned();
    let Some(mut checks) = installed("cargo-semver-checks", "0.51.0")? else { return Ok(Outcome::Failed) };
    checks.args(["semver-checks", "--baseline-rev", &last, "--exclude", "xtask"]);
    Ok(succeeds(&mut checks)?.into())
}

fn tests(failures: &mut Failures) -> Result<Outcome> {
    if !is_root() {
        return Ok(Outcome::LeftOut("takes root: the emulator's machines listen on port 22"));
    }
    let target = root().join("target/with-aws");
    let mut build = cargo(["build", "--release", "--package", "tsunami-cli", "--target-dir"]);
    if !succeeds(build.arg(&target))? {
        return Ok(Outcome::Failed);
    }
    let mut tests = cargo_test();
    tests.args(["--test", "aws", "--test", "e2e"]).env("TSUNAMI_BIN", target.join("release/tsunami"));
    Ok(failures.run(&mut tests)?.into())
}

/// A program that extends cargo, installed below `target`. `None` if it can't be.
fn installed(package: &str, version: &str) -> Result<Option<Command>> {
    let home: PathBuf = root().join("target").join(format!("{package}-{version}"));
    let program = home.join("bin").join(package);
    if !program.exists() {
        let mut install = cargo(["install", "--locked", package, "--version", version, "--root"]);
        install.arg(&home).env("CARGO_TARGET_DIR", Path::new(&home).join("target"));
        if !succeeds(&mut install)? {
            return Ok(None);
        }
        let _ = fs::remove_dir_all(home.join("target"));
    }
    let mut program = Command::new(program);
    program.current_dir(root());
    Ok(Some(program))
}
