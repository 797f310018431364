//! Finds the programs that are missing, and has apt-get install them.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{Failure, Result, emulator, is_root, root, silently, succeeds};

/// Programs that tsunami calls, and the Debian packages that have them.
const TOOLS: [(&str, &str); 5] = [
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("ssh-keyscan", "openssh-client"),
    ("sshd", "openssh-server"),
    ("setsid", "util-linux"),
];

/// Those that only the tests call. The first four are shells that machines or users may have; `chromium` shows reports; the last
/// ones make and boot a machine.
const TEST_TOOLS: [(&str, &str); 18] = [
    ("busybox", "busybox"),
    ("tcsh", "tcsh"),
    ("fish", "fish"),
    ("zsh", "zsh"),
    ("shellcheck", "shellcheck"),
    ("pgrep", "procps"),
    ("pkill", "procps"),
    ("ip", "iproute2"),
    ("setpriv", "util-linux"),
    ("useradd", "passwd"),
    ("python3", "python3"),
    ("chromium", "chromium"),
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mpirun", "openmpi-bin"),
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-tools"),
];

const INSTALL: [&str; 4] = ["apt-get", "install", "-y", "--no-install-recommends"];

/// Where daemons are, which an ordinary user's PATH may leave out.
const SYSTEM_PATHS: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];

/// Debian's own: others may be where only their owner can run them.
const PYTHON: &str = "/usr/bin/python3";

/// Everything that people need to work on tsunami, or only to use it.
pub(crate) fn setup(tests: bool) -> Result {
    programs_present(tests)?;
    if !tests {
        return Ok(());
    }
    // Reads what `tsunami compare --csv` prints.
    python_environment(
        &root().join("target/otava"),
        &root().join("tsunami-core/tests/report/requirements.txt"),
    )?;
    emulator::install()
}

/// Makes a Python environment with what a file requires, unless it is there.
pub(crate) fn python_environment(home: &Path, requirements: &Path) -> Result {
    // Copied when all of it is installed.
    let installed = home.join("requirements.txt");
    let wanted = fs::read(requirements)?;
    if fs::read(&installed).is_ok_and(|present| present == wanted) {
        return Ok(());
    }
    let done = succeeds(Command::new(PYTHON).args(["-m", "venv", "--clear"]).arg(home))?
        && succeeds(
            Command::new(home.join("bin/pip"))
                .args(["install", "--quiet", "--disable-pip-version-check", "--requirement"])
                .arg(requirements),
        )?;
    if !done {
        return Err(Failure::new(format!(
            "what {} asks for could not be installed: see above",
            requirements.display()
        )));
    }
    fs::write(installed, wanted)?;
    Ok(())
}

fn programs_present(tests: bool) -> Result {
    let missing = missing(tests);
    if missing.is_empty() {
        eprintln!("xtask: nothing to install");
        return Ok(());
    }
    let packages: BTreeSet<&str> = missing.iter().map(|(_, package)| *package).collect();
    let packages: Vec<&str> = packages.into_iter().collect();
    let install = format!("{} {}", INSTALL.join(" "), packages.join(" "));
    eprintln!("xtask: tsunami needs {}, missing here", programs(&missing));

    if find("apt-get").is_none() {
        return Err(unusable(format!(
            "there is no apt-get here: install what has these programs (on Debian: {install}), then try again"
        )));
    }
    let Some(prefix) = become_root() else {
        return Err(unusable(format!(
            "this takes root or sudo: run `apt-get update && {install}` as root, then try again"
        )));
    };
    eprintln!("xtask: installing {} with {install}", packages.join(" "));
    if packages.contains(&"openssh-server") {
        eprintln!(
            "xtask: Debian starts an SSH server on port 22 with it, except in most containers; tsunami does \
             not use that one, and `sudo systemctl disable --now ssh` ends it"
        );
    }

    wait_for_apt();
    let as_root = |command: &[&str]| {
        let words = [prefix, &["env", "DEBIAN_FRONTEND=noninteractive"], command].concat();
        succeeds(Command::new(words[0]).args(&words[1..]))
    };
    if !as_root(&["apt-get", "update"])? {
        eprintln!("xtask: going on with the package lists that are here");
    }
    let installed = as_root(&[&INSTALL, packages.as_slice()].concat())?;
    let missing = self::missing(tests);
    if installed && missing.is_empty() {
        return Ok(());
    }
    Err(unusable(format!("apt-get did not bring {}: see above", programs(&missing))))
}

/// What apt and dpkg lock while they work.
const APT_LOCKS: [&str; 3] =
    ["/var/lib/apt/lists/lock", "/var/lib/dpkg/lock-frontend", "/var/cache/apt/archives/lock"];

/// How long somebody else's apt is waited for.
const APT_TIMEOUT: Duration = Duration::from_secs(900);

/// Waits until no other apt works, saying so.
fn wait_for_apt() {
    let begun = Instant::now();
    let mut said = false;
    while begun.elapsed() < APT_TIMEOUT && APT_LOCKS.iter().any(|lock| is_locked(Path::new(lock))) {
        if !said {
            eprintln!("xtask: waiting for another apt-get to end");
            said = true;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Whether a process has locked a file, as the system lists it: by the file's number.
fn is_locked(file: &Path) -> bool {
    let Ok(found) = fs::metadata(file) else { return false };
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let number = found.ino().to_string();
    let of_file = |lock: &str| {
        lock.split_whitespace().any(|word| word.rsplit(':').next() == Some(&number) && word.contains(':'))
    };
    locks.lines().any(of_file)
}

fn missing(tests: bool) -> Vec<(&'static str, &'static str)> {
    let test_tools = if tests { TEST_TOOLS.as_slice() } else { &[] };
    let absent = |(program, _): &&(&str, &str)| find(program).is_none();
    let mut missing: Vec<_> = TOOLS.iter().chain(test_tools).filter(absent).copied().collect();
    // Debian's Python comes without what makes virtual environments.
    if tests && !silently(Command::new(PYTHON).args(["-c", "import ensurepip, venv"])) {
        missing.push(("python3 with venv", "python3-venv"));
    }
    if tests && !silently(Command::new(PYTHON).args(["-c", "import mpi4py"])) {
        missing.push(("python3 with mpi4py", "python3-mpi4py"));
    }
    missing
}

fn programs(tools: &[(&str, &str)]) -> String {
    tools.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", ")
}

pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories = std::env::split_paths(&path).chain(SYSTEM_PATHS.map(PathBuf::from));
    directories.find_map(|directory| {
        let file = directory.join(program);
        let found = fs::metadata(&file).ok()?;
        (found.is_file() && found.permissions().mode() & 0o111 != 0).then_some(file)
    })
}

/// What to put before a command to run it as root, if there is a way.
fn become_root() -> Option<&'static [&'static str]> {
    if is_root() {
        Some(&[])
    } else if sudo_asks_nothing() {
        Some(&["sudo", "-n"])
    } else if find("sudo").is_some() && io::stdin().is_terminal() {
        Some(&["sudo"])
    } else {
        None
    }
}

pub(crate) fn sudo_asks_nothing() -> bool {
    silently(Command::new("sudo").args(["-n", "true"]))
}

/// The status that tsunami itself has for a missing local tool.
fn unusable(message: String) -> Failure {
    Failure { message, status: 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_of_another_process_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("lock");
        fs::write(&file, "").unwrap();
        assert!(!is_locked(&file) && !is_locked(&directory.path().join("none")));
        let held = fs::File::open(&file).unwrap();
        held.lock().unwrap();
        assert!(is_locked(&file));
    }
}
