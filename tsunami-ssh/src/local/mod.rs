//! Machines on this computer: one sshd each, on a loopback address of its own.

mod known;
mod sshd;
pub(crate) mod system;
mod tree;

use std::fs::DirBuilder;
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::SystemTime;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::process::Command;
use tokio::sync::Mutex;
use tsunami_core::{
    BoxError, LaunchRequest, Leftover, Machine, MachineId, MachineSpec, MachineState, Provider,
    ProviderError, ProviderErrorKind, Quote, RunEntry, RunFilter, RunId, RunStore,
};

use crate::blocking::blocking;
use crate::watchdog::{self, Arming};
use known::{KnownMachine, RunPlace};
use sshd::{Sshd, candidates};
use system::{find_program, find_sshd, login_name};
use tree::private_directory;

/// Launches "machines" on this computer (Linux), without an account anywhere.
///
/// Every machine is a real `sshd` on a loopback address of its own, with its own host key and its own home
/// directory. Nothing else is isolated: commands run as the user who runs tsunami, on the same system. At
/// teardown, and at the deadline even if tsunami was killed, every process of the run is ended and every home
/// removed. It works as root and as an ordinary user, who needs `sshd` to be installed. Dropping it ends nothing.
#[derive(Debug)]
pub struct LocalProvider {
    root: PathBuf,
    launching: Mutex<()>,
}

impl LocalProvider {
    /// Keeps the machines of a run in `<root>/<run-id>/local`. With the root of tsunami's records that is the
    /// run's own private directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), launching: Mutex::default() }
    }

    fn place(&self, run: &RunId) -> RunPlace {
        RunPlace { directory: self.root.join(run.as_str()).join("local") }
    }

    /// The runs that may have machines here.
    fn runs(&self) -> Result<Vec<RunId>, ProviderError> {
        let runs = RunStore::at(&self.root).runs().map_err(unreadable)?;
        Ok(runs.iter().map(RunEntry::id).collect())
    }
}

#[async_trait]
impl Provider for LocalProvider {
    fn name(&self) -> String {
        "local".to_owned()
    }

    async fn quote(&self, spec: &MachineSpec, _count: NonZeroU32) -> Result<Quote, ProviderError> {
        if !spec.is_default() {
            let message = format!("a local machine has nothing to specify, but was given {spec:?}");
            return Err(ProviderError::new(ProviderErrorKind::InvalidSpec, "quote", message));
        }
        find_sshd()?;
        find_program("setsid", "util-linux")?;
        login_name().await?;
        Ok(Quote::free("sshd on this computer's loopback"))
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        let sshd = find_sshd()?;
        let user = login_name().await?;
        let place = self.place(&request.run);
        let failed = |error| launch_error(format!("cannot write below {}", place.directory.display()), error);
        if rustix::process::geteuid().is_root() {
            // sshd insists, and a system without an init does not make it.
            let _ = DirBuilder::new().mode(0o755).create("/run/sshd");
        }
        // One at a time, so that two groups do not choose the same address.
        let _launching = self.launching.lock().await;
        private_directory(&place.directory).map_err(failed)?;
        // Before the first sshd.
        let armed = place.arm(&request.run, request.deadline.at, Arming::Ensure).await;
        let group = armed.map_err(|error| launch_error("the watchdog of the run does not start", error))?;
        let mut ids = Vec::new();
        let mut starting = Vec::new();
        let mut hosts = candidates(&request.run);
        for index in 0..request.count.get() {
            let name = format!("{}-{index}", request.group);
            let directory = place.machine(&name);
            let is_there = |known: &KnownMachine| known.state() == MachineState::Running;
            if let Some(known) = KnownMachine::read(&directory).map_err(unreadable)?.filter(is_there) {
                ids.push(known.machine.id);
                continue;
            }
            let (address, port) = hosts.next().ok_or_else(|| {
                let message = "no loopback address has a free port";
                ProviderError::new(ProviderErrorKind::Capacity, "launch", message)
            })?;
            let (sshd, user, group) = (sshd.clone(), user.clone(), group.clone());
            let plan = Sshd { sshd, user, group, directory, name, address, port, index };
            let request = request.clone();
            let start = move || plan.start(&request).map(|(machine, child)| (plan, machine, child));
            let (plan, machine, child) = blocking(start).await.map_err(failed)?;
            ids.push(machine.id.clone());
            starting.push(plan.until_listening(machine, child));
        }
        // All of them, so that each that listens is known to the next attempt.
        join_all(starting).await.into_iter().collect::<Result<(), _>>()?;
        Ok(ids)
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        let places = match filter {
            RunFilter::Run(run) => vec![self.place(run)],
            RunFilter::All => self.runs()?.iter().map(|run| self.place(run)).collect(),
        };
        let list = move || {
            let mut machines = Vec::new();
            for place in places {
                machines.extend(place.remembered()?.into_iter().map(|(_, known)| {
                    let state = known.state();
                    let mut machine = known.machine;
                    machine.state = state;
                    machine
                }));
            }
            Ok(machines)
        };
        let mut machines: Vec<Machine> = blocking(list).await.map_err(unreadable)?;
        machines.sort_by(|a, b| (&a.run, &a.group, a.index).cmp(&(&b.run, &b.group, b.index)));
        Ok(machines)
    }

    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        let failed = |message: String, error| {
            ProviderError::new(ProviderErrorKind::Other, "extend", message).source(error)
        };
        let place = self.place(run);
        let armed = place.arm(run, until, Arming::Replace).await;
        armed.map_err(|error| failed("the watchdog of the run does not start".to_owned(), error))?;
        let below = place.directory.clone();
        let remembered = blocking(move || place.remembered()).await.map_err(unreadable)?;
        let write = move || {
            remembered.into_iter().try_for_each(|(directory, mut known)| {
                known.machine.expires = Some(until);
                known.write(&directory)
            })
        };
        let written = blocking(write).await;
        written.map_err(|error| failed(format!("cannot write below {}", below.display()), error))
    }

    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        let place = self.place(run);
        let mut reap = Command::new("sh");
        reap.args(["-c", watchdog::script(), "tsunami-reaper", "reap", run.as_str()]).arg(&place.directory);
        // A marked environment would make it a process of the run.
        reap.env_remove("TSUNAMI_RUN_ID").stdin(Stdio::null()).process_group(0);
        let output = reap.output().await.map_err(|error| {
            ProviderError::new(ProviderErrorKind::Other, "terminate", "cannot run `sh`").source(error)
        })?;
        let mut left = watchdog::leftovers(&String::from_utf8_lossy(&output.stdout), "this computer");
        if left.is_empty() && place.directory.try_exists().unwrap_or(true) {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            left.push(Leftover::new(format!("directory {}", place.directory.display()), why));
        }
        Ok(left)
    }
}

fn unreadable(error: impl Into<BoxError>) -> ProviderError {
    let message = "what is known of the machines on this computer can't be read";
    ProviderError::new(ProviderErrorKind::Unavailable, "list", message).source(error)
}

fn launch_error(message: impl Into<String>, error: io::Error) -> ProviderError {
    ProviderError::new(ProviderErrorKind::Other, "launch", message).source(error)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::known::SshdProcess;
    use super::*;

    /// A run with one machine, of which only its watchdog knows that it is to end.
    struct Launched {
        root: tempfile::TempDir,
        provider: LocalProvider,
        run: RunId,
        directory: PathBuf,
        sshd: SshdProcess,
    }

    impl Launched {
        async fn for_seconds(name: &str, seconds: u64) -> Self {
            let root = tempfile::tempdir().unwrap();
            let provider = LocalProvider::new(root.path());
            let run: RunId = format!("20260101-000000-{name}-{}", std::process::id()).parse().unwrap();
            provider.launch(&request(&run, seconds)).await.unwrap();
            let directory = provider.place(&run).directory;
            let sshd = KnownMachine::read(&directory.join("node-0")).unwrap().unwrap().sshd.unwrap();
            Self { root, provider, run, directory, sshd }
        }

        async fn ends(&self) {
            let deadline = Instant::now() + Duration::from_secs(30);
            while self.sshd.is_alive() || !self.watchdogs().is_empty() {
                assert!(Instant::now() < deadline, "the watchdog did nothing");
                sleep(Duration::from_millis(100)).await;
            }
        }

        /// The run's watchdogs, each with the moment at which it began.
        fn watchdogs(&self) -> Vec<String> {
            let name = watchdog::name(&self.run, self.directory.to_str().unwrap());
            let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
            let is_one = |process: &PathBuf| {
                let command = fs::read(process.join("cmdline")).unwrap_or_default();
                command.starts_with(b"sh\0")
                    && command.split(|&byte| byte == 0).any(|arg| arg == name.as_bytes())
            };
            let leads = |stat: &String| {
                let pid = stat.split(' ').next();
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(2) == pid)
            };
            let stats =
                processes.filter(is_one).filter_map(|process| fs::read_to_string(process.join("stat")).ok());
            stats.filter(leads).map(|stat| stat.split(' ').next().unwrap_or_default().to_owned()).collect()
        }
    }

    impl Drop for Launched {
        fn drop(&mut self) {
            // Its watchdog takes that for the end.
            let _ = fs::remove_dir_all(self.root.path());
        }
    }

    fn request(run: &RunId, seconds: u64) -> LaunchRequest {
        let lifetime = Duration::from_secs(seconds);
        LaunchRequest::new(
            run.clone(),
            "node",
            NonZeroU32::MIN,
            MachineSpec::default(),
            tsunami_core::Deadline { at: SystemTime::now() + lifetime, lifetime },
        )
        .experiment("test")
        .authorized_key("ssh-ed25519 none")
    }

    #[tokio::test]
    async fn a_watchdog_ends_the_run_at_its_deadline_by_itself() {
        let launched = Launched::for_seconds("deadline", 3).await;
        launched.ends().await;
        assert!(!launched.directory.exists());
        assert_eq!(launched.provider.list(&RunFilter::Run(launched.run.clone())).await.unwrap(), []);
    }

    #[tokio::test]
    async fn no_file_that_a_run_removes_disarms_its_deadline() {
        let launched = Launched::for_seconds("files", 4).await;
        let mut emptied = std::process::Command::new("find");
        emptied.arg(&launched.directory).args(["-type", "f", "-delete"]);
        assert!(emptied.status().unwrap().success());
        launched.ends().await;
    }

    #[tokio::test]
    async fn a_run_whose_directory_is_gone_is_over() {
        let launched = Launched::for_seconds("gone", 600).await;
        fs::remove_dir_all(launched.root.path()).unwrap();
        launched.ends().await;
    }

    #[tokio::test]
    async fn a_deadline_that_moves_has_one_watchdog_all_the_time() {
        let launched = Launched::for_seconds("moves", 8).await;
        let before = launched.watchdogs();
        assert_eq!(before.len(), 1, "{before:?}");
        // As a second group does, several at once.
        let place = launched.provider.place(&launched.run);
        let until = SystemTime::now() + Duration::from_secs(8);
        let ensure = || place.arm(&launched.run, until, Arming::Ensure);
        let (a, b, c) = tokio::join!(ensure(), ensure(), ensure());
        a.and(b).and(c).unwrap();
        // Those that are not needed end by themselves.
        let deadline = Instant::now() + Duration::from_secs(3);
        while launched.watchdogs() != before {
            assert!(Instant::now() < deadline, "{before:?}, then {:?}", launched.watchdogs());
            sleep(Duration::from_millis(10)).await;
        }
        let later = SystemTime::now() + Duration::from_secs(600);
        launched.provider.extend(&launched.run, later).await.unwrap();
        let after = launched.watchdogs();
        assert!(after.len() == 1 && after != before, "{before:?}, then {after:?}");
        sleep(Duration::from_secs(9)).await;
        assert!(launched.sshd.is_alive(), "it ended at the old hour");
        let listed = launched.provider.list(&RunFilter::Run(launched.run.clone())).await.unwrap();
        assert_eq!(listed[0].expires, Some(later));
        assert_eq!(launched.provider.terminate(&launched.run).await.unwrap(), []);
        assert_eq!(launched.watchdogs(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn only_a_process_that_is_known_to_be_gone_makes_its_machine_gone() {
        let launched = Launched::for_seconds("evidence", 600).await;
        let directory = launched.directory.join("node-0");
        let state = || KnownMachine::read(&directory).unwrap().map(|known| known.state());
        assert_eq!(state(), Some(MachineState::Running));
        // A machine that is being made is none yet.
        fs::create_dir_all(launched.directory.join("node-1/home")).unwrap();
        assert_eq!(launched.provider.list(&RunFilter::All).await.unwrap().len(), 1);
        let mut known = KnownMachine::read(&directory).unwrap().unwrap();
        known.sshd = None;
        known.write(&directory).unwrap();
        assert_eq!(state(), Some(MachineState::Pending), "nothing is known of its process");
        // The number of another process.
        known.sshd = Some(SshdProcess { pid: std::process::id(), started: launched.sshd.started });
        known.write(&directory).unwrap();
        assert_eq!(state(), Some(MachineState::Gone));
        // What can't be read is no evidence at all.
        let file = directory.join("machine.json");
        fs::write(&file, "{").unwrap();
        assert!(launched.provider.list(&RunFilter::All).await.is_err());
        fs::remove_file(&file).unwrap();
        assert_eq!(launched.provider.list(&RunFilter::All).await.unwrap(), []);
    }
}
