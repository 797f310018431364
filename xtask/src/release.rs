//! What is checked before a release, and takes longer than anybody waits for CI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::ValueEnum;

use crate::setup::setup;
use crate::test::{Failures, Outcome, Parts, cargo_deny, cargo_test, processors};
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
    /// Known holes in the dependencies.
    Advisories,
    /// That nothing breaks for those who use the last release.
    Semver,
    /// That each combination of features compiles.
    Features,
    /// What the packages are made of, and that they compile from what crates.io would get.
    Packages,
    /// That the oldest versions that the manifests ask for are enough.
    MinimalVersions,
    /// That the oldest toolchains that the manifests name are enough.
    OldestRust,
    /// Installing the program as people do, with the newest versions of everything, and how large and fast it is to build.
    Install,
    /// The tests of EC2 and the end-to-end tests with the release build.
    Tests,
}

/// All that can be checked is, whatever fails before it.
pub(crate) fn release(release: &Release) -> Result {
    let (mut parts, mut failures, mut program) = (Parts::default(), Failures::default(), None);
    let all = Part::value_variants();
    for part in all.iter().filter(|part| release.parts.is_empty() || release.parts.contains(part)) {
        match part {
            Part::Advisories => parts.part("advisories", advisories)?,
            Part::Semver => parts.part("semver", semver)?,
            Part::Features => parts.part("features", features)?,
            Part::Packages => parts.part("packages", packages)?,
            Part::MinimalVersions => parts.part("minimal versions", minimal_versions)?,
            Part::OldestRust => parts.part("oldest Rust", oldest_rust)?,
            Part::Install => parts.part("installation", || install(&mut program))?,
            Part::Tests => {
                parts.part("tests of the release build with EC2", || tests(program.take(), &mut failures))?;
            }
        }
    }
    failures.tell();
    parts.tell()
}

/// Where what is only checked is compiled. Parts that ask for the same features of dependencies share it, so that the AWS SDK
/// is checked once.
fn checked() -> PathBuf {
    root().join("target/release-checks")
}

fn features() -> Result<Outcome> {
    // Without those of tests, it takes dependencies out of manifests while it works.
    let directory = copy()?;
    let powerset = |tests| -> Result<_> {
        let Some(mut hack) = installed("cargo-hack", "0.6.46")? else { return Ok(None) };
        hack.args(["hack", "check", "--feature-powerset", tests, "--exclude-features", "aws,default"]);
        hack.args(WITHOUT_AWS).current_dir(directory.path());
        Ok(Some(hack))
    };
    let Some(mut hack) = powerset("--no-dev-deps")? else { return Ok(Outcome::Failed) };
    let Some(mut with_tests) = powerset("--tests")? else { return Ok(Outcome::Failed) };
    // `tsunami-aws` without and with its feature. Beside `tsunami-ssh`, as in the program, dependencies of the AWS SDK have the
    // same features both times.
    let mut without = cargo(["check", "--locked", "--package", "tsunami-ssh", "--package", "tsunami-aws"]);
    let mut with = cargo(["check", "--locked", "--package", "tsunami-cli"]);
    let mut all = true;
    for command in [&mut hack, &mut with_tests, &mut without, &mut with] {
        all &= succeeds(command.env("CARGO_TARGET_DIR", checked()))?;
    }
    Ok(all.into())
}

/// That the packages are whole, and that what crates.io would get of them compiles: unpacked, and each using the others so.
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
    let unpacked = tempfile::Builder::new().prefix("tsunami-release-").tempdir()?;
    let packed = unpacked.path().join("packed");
    // Verified by cargo itself, each package would compile the AWS SDK once more.
    let mut package = cargo(["package", "--no-verify", "--target-dir"]);
    package.arg(&packed).args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    let mut publish = cargo(["publish", "--dry-run", "--no-verify", "--workspace", "--target-dir"]);
    publish.arg(unpacked.path().join("published"));
    if !succeeds(&mut package)? || !succeeds(&mut publish)? {
        return Ok(Outcome::Failed);
    }
    let version = value_in("Cargo.toml", "version")?;
    let names = PACKAGES.map(|package| format!("{package}-{version}"));
    for name in &names {
        let mut unpack = Command::new("tar");
        unpack.arg("-xzf").arg(packed.join("package").join(format!("{name}.crate"))).arg("-C");
        if !succeeds(unpack.arg(unpacked.path()))? {
            return Ok(Outcome::Failed);
        }
    }
    // Nothing uses the program.
    let each = PACKAGES[..3].iter().zip(&names);
    let patches: String =
        each.map(|(package, name)| format!("{package} = {{ path = {name:?} }}\n")).collect();
    let manifest = format!(
        "[workspace]\nresolver = \"3\"\nmembers = {names:?}\n[patch.crates-io]\n{patches}\
         [profile.dev.package.\"*\"]\ndebug = false\n"
    );
    fs::write(unpacked.path().join("Cargo.toml"), manifest)?;
    fs::copy(root().join("Cargo.lock"), unpacked.path().join("Cargo.lock"))?;
    let mut check = cargo(["check", "--workspace"]);
    check.current_dir(unpacked.path()).env("CARGO_TARGET_DIR", checked());
    let compiles = succeeds(&mut check)?;
    if compiles {
        // It holds gigabytes.
        let _ = fs::remove_dir_all(checked());
    }
    Ok(compiles.into())
}

/// What a manifest says of a key, in a line of its own.
fn value_in(manifest: &str, key: &str) -> Result<String> {
    let text = fs::read_to_string(root().join(manifest))?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.trim().strip_prefix('=')?.trim().strip_prefix('"'));
    let value = value.map(|value| value.trim_end_matches('"').to_owned());
    value.ok_or_else(|| Failure::new(format!("{manifest} has no {key}")))
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
    check.args(WITHOUT_AWS).args(["--features", "tsunami-ssh/in-process"]).current_dir(directory.path());
    check.env("CARGO_TARGET_DIR", directory.path().join("target"));
    eprintln!("xtask: tsunami-aws is resolved with the oldest versions, and not compiled with them");
    Ok(succeeds(&mut check)?.into())
}

/// That the oldest toolchains that the manifests name are enough.
fn oldest_rust() -> Result<Outcome> {
    // The libraries do with less than the AWS SDK, and the program, which has it, needs as much.
    let libraries = ["--package", "tsunami-core", "--package", "tsunami-ssh", "--all-features"];
    let mut all = true;
    for (package, arguments) in
        [("tsunami-core", &libraries[..]), ("tsunami-cli", &["--package", "tsunami-cli"])]
    {
        let mut version = value_in(&format!("{package}/Cargo.toml"), "rust-version")?;
        // rustup takes `1.91` for the newest of these.
        if version.matches('.').count() == 1 {
            version += ".0";
        }
        let mut get = Command::new("rustup");
        get.args(["toolchain", "install", "--profile", "minimal", "--no-self-update", &version]);
        if !silently(Command::new("rustup").args(["run", &version, "cargo", "--version"]))
            && !succeeds(&mut get)?
        {
            return Ok(match all {
                true => Outcome::LeftOut("not all of the oldest toolchains could be fetched"),
                false => Outcome::Failed,
            });
        }
        let target = tempfile::Builder::new().prefix("tsunami-release-").tempdir()?;
        let mut check = Command::new("rustup");
        check.args(["run", &version, "cargo", "check", "--locked"]).args(arguments);
        all &= succeeds(check.current_dir(root()).env("CARGO_TARGET_DIR", target.path()))?;
    }
    Ok(all.into())
}

/// Leaves the program with EC2 where it is found.
fn install(found: &mut Option<PathBuf>) -> Result<Outcome> {
    let program = root().join("target/installed/bin/tsunami");
    for (name, arguments) in [("without EC2", &["--no-default-features"][..]), ("with EC2", &[])] {
        let target = tempfile::Builder::new().prefix("tsunami-release-").tempdir()?;
        let begun = Instant::now();
        let mut install =
            cargo(["install", "--path", "tsunami-cli", "--force", "--root", "target/installed"]);
        install.args(arguments).env("CARGO_TARGET_DIR", target.path());
        if !succeeds(&mut install)? || !silently(Command::new(&program).arg("--version")) {
            return Ok(Outcome::Failed);
        }
        let mebibytes = fs::metadata(&program)?.len() as f64 / f64::from(1 << 20);
        let seconds = begun.elapsed().as_secs();
        let processors = processors();
        eprintln!(
            "xtask: the program {name}: {mebibytes:.1} MiB, built from nothing in {seconds} s on {processors} processors"
        );
    }
    *found = Some(program);
    Ok(Outcome::Passed)
}

fn advisories() -> Result<Outcome> {
    let mut fetch = cargo_deny()?;
    if !succeeds(fetch.args(["fetch", "db"]))? {
        return Ok(Outcome::LeftOut("the database of advisories could not be fetched"));
    }
    Ok(succeeds(cargo_deny()?.args(["--locked", "check", "advisories"]))?.into())
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

/// Runs the tests of EC2 and those of the program with that which was installed, or else with one that is built.
fn tests(installed: Option<PathBuf>, failures: &mut Failures) -> Result<Outcome> {
    if !is_root() {
        return Ok(Outcome::LeftOut("takes root: the emulator's machines listen on port 22"));
    }
    setup(true)?;
    let tsunami = match installed {
        Some(tsunami) => tsunami,
        None => {
            let target = root().join("target/with-aws");
            let mut build =
                cargo(["build", "--release", "--locked", "--package", "tsunami-cli", "--target-dir"]);
            if !succeeds(build.arg(&target))? {
                return Ok(Outcome::Failed);
            }
            target.join("release/tsunami")
        }
    };
    let mut tests = cargo_test();
    tests.args(["--test", "aws", "--test", "e2e"]).env("TSUNAMI_BIN", tsunami);
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
