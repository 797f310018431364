//! Who is measured: how each is started, and how it says which hosts it has set up.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::fleet::{DIRECTORY, place};
use crate::setup::{find, python_environment};
use crate::{Failure, Result, cargo, given_tsunami, root, succeeds};

/// Those that are built before they are measured. tsunami's own come first.
pub(super) const BUILT: [&str; 4] = ["tsunami", "tsunami-in-process", MINIMAL_OPENSSH, MINIMAL_RUSSH];
pub(super) const MINIMAL_OPENSSH: &str = "minimal-openssh";
pub(super) const MINIMAL_RUSSH: &str = "minimal-russh";

/// What the experiment is called, and with it the one run that is up.
const RUN: &str = "bench";

/// The peer that PyPI has not, and the newest version of it that the Rust of this repository compiles.
const BSSH: &str = "bssh@2.2.3";

#[derive(Debug)]
pub(super) struct Contender {
    pub(super) name: &'static str,
    /// Nothing, if it is not installed.
    program: Option<PathBuf>,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    says: Says,
    /// What sets machines up, if it is tsunami.
    file: Option<String>,
    attached: bool,
}

/// How a contender says that a host is set up.
#[derive(Clone, Copy, Debug)]
enum Says {
    /// A line `done NAME`.
    Done,
    /// An event of tsunami's.
    Events,
    /// Ansible's last lines.
    Recap,
    /// Its exit status, for all of them.
    Status,
}

fn built(program: &str) -> PathBuf {
    root().join("target/without-aws/release").join(program)
}

/// What delays, which is built with the minimal programs.
pub(super) fn delay() -> PathBuf {
    built("delay")
}

fn python_home() -> PathBuf {
    root().join("target/bench/python")
}

fn cargo_home() -> PathBuf {
    root().join("target/bench/cargo")
}

fn sources() -> PathBuf {
    root().join("xtask/bench/peers")
}

/// A peer's program, where [`install`] or the system has it.
fn peer(program: &str) -> Option<PathBuf> {
    let here = [python_home(), cargo_home()].map(|home| home.join("bin").join(program));
    here.into_iter().find(|file| file.exists()).or_else(|| find(program))
}

/// Everybody, for that many machines.
pub(super) fn all(machines: usize) -> Vec<Contender> {
    let contender = |name, program: Option<PathBuf>, arguments: &[&str]| Contender {
        name,
        program,
        arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        environment: Vec::new(),
        says: Says::Done,
        file: None,
        attached: false,
    };
    let tsunami = |name, file| {
        let program = given_tsunami().unwrap_or_else(|| built("tsunami"));
        let file = place(file).display().to_string();
        let arguments = ["run", "-v", "--json", "-o", "results", &file];
        let tsunami = contender(name, Some(program), &arguments);
        Contender { says: Says::Events, file: Some(file.clone()), ..tsunami }
    };
    let source = |file: &str| sources().join(file).display().to_string();
    let python = |name, library: &str, script| {
        // A library is there if what came with it is.
        let installed = python_home().join("lib").read_dir().into_iter().flatten().flatten();
        let found = installed.into_iter().any(|it| it.path().join("site-packages").join(library).exists());
        contender(name, found.then(|| python_home().join("bin/python")), &[&source(script)])
    };
    let machines = machines.to_string();
    let steps = |name, tool: Option<PathBuf>| {
        let tool_name = tool.as_deref().map(|it| it.display().to_string()).unwrap_or_default();
        let shell = tool.and_then(|_| find("sh"));
        contender(name, shell, &[&source("steps.sh"), name, &tool_name, &machines])
    };
    let inventory = place("inventory").display().to_string();
    let playbook = place("playbook.yml").display().to_string();
    let ansible = Contender {
        says: Says::Recap,
        environment: vec![
            ("ANSIBLE_PIPELINING", "1".to_owned()),
            ("ANSIBLE_NOCOLOR", "1".to_owned()),
            ("ANSIBLE_HOST_KEY_CHECKING", "1".to_owned()),
            ("ANSIBLE_SSH_CONTROL_PATH_DIR", place("work/cp").display().to_string()),
            (
                "ANSIBLE_SSH_ARGS",
                format!("-F {} -o ControlMaster=auto -o ControlPersist=60s", place("ssh_config").display()),
            ),
        ],
        ..contender("ansible", peer("ansible-playbook"), &["-i", &inventory, "-f", &machines, &playbook])
    };
    vec![
        tsunami("tsunami", "openssh.toml"),
        tsunami("tsunami-in-process", "in-process.toml"),
        contender(MINIMAL_OPENSSH, Some(built(MINIMAL_OPENSSH)), &[]),
        contender(MINIMAL_RUSSH, Some(built(MINIMAL_RUSSH)), &[]),
        contender("one-script", find("sh"), &[&source("one-script.sh"), &machines]),
        python("asyncssh", "asyncssh", "with_asyncssh.py"),
        python("parallel-ssh", "pssh/clients", "with_parallel_ssh.py"),
        python("fabric", "fabric", "with_fabric.py"),
        contender(
            "pyinfra",
            peer("pyinfra"),
            &["-y", &source("pyinfra_inventory.py"), &source("pyinfra_deploy.py")],
        ),
        steps("pssh", peer("parallel-ssh")),
        steps("clush", peer("clush")),
        ansible,
        steps("bssh", peer("bssh")),
    ]
}

impl Contender {
    pub(super) fn installed(&self) -> bool {
        self.program.as_ref().is_some_and(|program| program.exists())
    }

    /// In tsunami's place, its two ways to run a command on machines that are up; anybody else as they are.
    pub(super) fn attached(self) -> Vec<Self> {
        let Some(file) = self.file.as_deref() else { return vec![self] };
        let names = match self.name {
            "tsunami" => ["tsunami exec", "tsunami run --on"],
            _ => ["tsunami-in-process exec", "tsunami-in-process run --on"],
        };
        let exec = vec!["exec", RUN, "--", "true"];
        let run = vec!["run", "--on", RUN, "-o", "results", file];
        let ways = names.into_iter().zip([exec, run]).map(|(name, arguments)| Self {
            name,
            program: self.program.clone(),
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            environment: self.environment.clone(),
            says: Says::Status,
            file: self.file.clone(),
            attached: true,
        });
        ways.collect()
    }

    /// What has its machines up before it runs, and what takes them down after it, if that is how it is measured.
    pub(super) fn around(&self) -> Option<[Vec<&str>; 2]> {
        let file = self.file.as_deref().filter(|_| self.attached)?;
        Some([vec!["up", "-o", "up", file], vec!["down", RUN]])
    }

    /// What is measured, in the place where it is.
    pub(super) fn command(&self, enter: Command) -> Command {
        let mut command = self.program(enter);
        command.args(&self.arguments);
        command
    }

    /// Adds its program to what enters the place where it is measured. Nothing of our own environment reaches it.
    pub(super) fn program(&self, mut enter: Command) -> Command {
        let system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let homes = [python_home(), cargo_home()].map(|home| home.join("bin").display().to_string());
        enter.env_clear().env("PATH", format!("{}:{system}", homes.join(":")));
        enter
            .env("HOME", place("work/home"))
            .env("LANG", "C.UTF-8")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env(super::account::MARK, DIRECTORY);
        enter.envs(self.environment.iter().map(|(name, value)| (name, value)));
        enter.arg(self.program.as_deref().unwrap_or(Path::new("false")));
        enter
    }

    /// The hosts that it says it has set up, by number: of so many, with what it has printed and whether it succeeded.
    pub(super) fn done(&self, output: &str, succeeded: bool, machines: usize) -> BTreeSet<usize> {
        match self.says {
            Says::Status => (0..if succeeded { machines } else { 0 }).collect(),
            says => output.lines().filter_map(|line| says.done(line)).collect(),
        }
    }
}

impl Says {
    fn done(self, line: &str) -> Option<usize> {
        let number = |name: &str| name.strip_prefix('h')?.parse().ok();
        match self {
            Self::Done => number(line.strip_prefix("done ")?),
            Self::Events => {
                let event: Value = serde_json::from_str(line).ok()?;
                // Machines are called by their group.
                let ready = event.get("event")?.as_str()? == "ready";
                if ready { number(&event.get("machine")?.as_str()?.replace('-', "")) } else { None }
            }
            Self::Recap => {
                let (name, counts) = line.split_once(" : ok=").or_else(|| line.split_once(": ok="))?;
                let is_zero = |what: &str| counts.split_whitespace().any(|count| count == what);
                let done = is_zero("unreachable=0") && is_zero("failed=0");
                if done { number(name.trim()) } else { None }
            }
            Self::Status => None,
        }
    }
}

/// Builds what is measured in release mode: tsunami, unless it is given, and the minimal programs.
pub(super) fn build() -> Result {
    let given = given_tsunami();
    if let Some(given) = given.as_deref().filter(|given| !given.is_file()) {
        return Err(Failure::new(format!("TSUNAMI_BIN is {}, which is no file", given.display())));
    }
    let mut build = cargo(["build", "--release", "--target-dir"]);
    build.arg(root().join("target/without-aws"));
    build.args(["--package", "xtask", "--features", "xtask/bench", "--no-default-features"]);
    build.args(["--bin", MINIMAL_OPENSSH, "--bin", MINIMAL_RUSSH, "--bin", "delay"]);
    if given.is_none() {
        // Without EC2, which has no part in it and takes long to compile.
        build.args(["--package", "tsunami-cli", "--bin", "tsunami"]);
    }
    if succeeds(&mut build)? { Ok(()) } else { Err(Failure::new("what is to be measured does not build")) }
}

/// Installs those peers below `target` that PyPI and crates.io have. (pssh is a package of Debian's.)
pub(super) fn install() -> Result {
    python_environment(&python_home(), &sources().join("requirements.txt"))?;
    let mut install = cargo(["install", "--locked", BSSH, "--root"]);
    install.arg(cargo_home()).arg("--target-dir").arg(root().join("target/bench/build"));
    if succeeds(&mut install)? { Ok(()) } else { Err(Failure::new("bssh could not be installed: see above")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(says: Says, output: &str) -> Vec<usize> {
        output.lines().filter_map(|line| says.done(line)).collect()
    }

    #[test]
    fn a_host_is_done_only_if_its_contender_says_so() {
        assert_eq!(done(Says::Done, "done h0\nundone h1\ndone\ndone h12\n"), [0, 12]);
        let events = "{\"schema\":2}\n\
                      {\"seq\":1,\"event\":\"connected\",\"machine\":\"h-0\"}\n\
                      h-1: {\"event\":\"ready\",\"machine\":\"h-1\"}\n\
                      {\"seq\":2,\"event\":\"ready\",\"machine\":\"h-2\",\"id\":\"x\"}\n\
                      {\"seq\":3,\"event\":\"failed\",\"machine\":\"h-3\",\"error\":\"ready\"}\n";
        assert_eq!(done(Says::Events, events), [2]);
        let recap = "PLAY RECAP ****\n\
                     h0                         : ok=9    changed=7    unreachable=0    failed=0    skipped=0\n\
                     h1                         : ok=1    changed=0    unreachable=1    failed=0    skipped=0\n\
                     h2                         : ok=1    changed=0    unreachable=0    failed=10   skipped=0\n";
        assert_eq!(done(Says::Recap, recap), [0]);
    }

    #[test]
    fn only_tsunami_finds_machines_up_and_by_its_status_all_of_them_are_done() {
        let measured: Vec<Contender> = all(2).into_iter().flat_map(Contender::attached).collect();
        let around: Vec<&str> =
            measured.iter().filter(|it| it.around().is_some()).map(|it| it.name).collect();
        let ours =
            ["exec", "run --on"].map(|way| [format!("tsunami {way}"), format!("tsunami-in-process {way}")]);
        let [[exec, exec_in_process], [run, run_in_process]] = &ours;
        assert_eq!(around, [exec, run, exec_in_process, run_in_process]);
        assert_eq!(measured[0].done("", true, 2), BTreeSet::from([0, 1]));
        assert_eq!(measured[0].done("done h0", false, 2), BTreeSet::new());
        assert!(measured.iter().any(|it| it.name == MINIMAL_RUSSH));
    }
}
