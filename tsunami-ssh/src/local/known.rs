//! What is known of a run's machines, and of the processes that are theirs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;
use tsunami_core::limits::SCRIPT_OUTPUT_LIMIT;
use tsunami_core::{Machine, MachineState, RunId, private};

use crate::watchdog::{self, Arming, ControlGroup};

/// How long a watchdog may take to say that it watches.
const ARM_TIMEOUT: Duration = Duration::from_secs(15);

/// The directories and files of a run's machines.
pub(super) struct RunPlace {
    pub(super) directory: PathBuf,
}

impl RunPlace {
    pub(super) fn machine(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What is remembered of the run's machines, each with its directory. What can't be read is an error: a machine
    /// that is missing here counts as gone.
    pub(super) fn remembered(&self) -> io::Result<Vec<(PathBuf, KnownMachine)>> {
        let mut remembered = Vec::new();
        for path in entries(&self.directory)? {
            remembered.extend(KnownMachine::read(&path)?.map(|known| (path, known)));
        }
        Ok(remembered)
    }

    /// Has a watchdog end the run's processes at `until`, whatever becomes of this one. Returns the control group that
    /// the run's commands join, if it has one.
    pub(super) async fn arm(
        &self,
        run: &RunId,
        until: SystemTime,
        arming: Arming,
    ) -> io::Result<Option<ControlGroup>> {
        let directory = self.directory.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
        let mut watchdog = Command::new("setsid");
        watchdog.args(["sh", "-c", watchdog::BEGIN, &watchdog::name(run, directory)]);
        watchdog
            .args(watchdog::watch(run, directory, until, arming))
            .env(watchdog::VARIABLE, watchdog::script());
        // A marked environment would make it a process of the run.
        watchdog.env_remove("TSUNAMI_RUN_ID").current_dir("/");
        watchdog.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut watchdog = watchdog.spawn()?;
        let (stdout, stderr) = (watchdog.stdout.take(), watchdog.stderr.take());
        // It closes both once it watches.
        let said = timeout(ARM_TIMEOUT, async { tokio::join!(read_all(stdout), read_all(stderr)) }).await;
        match said {
            Ok((stdout, stderr)) => watchdog::armed(&stdout)
                .ok_or_else(|| io::Error::other(format!("it ended: {}", stderr.trim()))),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// What is remembered of a machine, in its directory, once its sshd listens: written whole, or not at all.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KnownMachine {
    #[serde(flatten)]
    pub(super) machine: Machine,
    pub(super) sshd: Option<SshdProcess>,
}

/// A process, known by its number and the moment at which it began, in clock ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SshdProcess {
    pub(super) pid: u32,
    pub(super) started: u64,
}

impl KnownMachine {
    /// Reads what is remembered in a directory: nothing of a machine that is being made, or being removed.
    pub(super) fn read(directory: &Path) -> io::Result<Option<Self>> {
        match private::read(&directory.join("machine.json")) {
            Ok(json) => Ok(Some(serde_json::from_slice(&json)?)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        private::write(&directory.join("machine.json"), &serde_json::to_vec_pretty(self)?)
    }

    /// A machine is gone once its sshd is known to have ended; it is pending where no sshd is known.
    pub(super) fn state(&self) -> MachineState {
        match self.sshd.map(SshdProcess::is_alive) {
            Some(true) => MachineState::Running,
            Some(false) => MachineState::Gone,
            None => MachineState::Pending,
        }
    }
}

/// What is in a directory; nothing if there is none.
pub(super) fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether there is nothing of that name, or what it would be in is a file.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

impl SshdProcess {
    /// A process that has just been started, unless it has ended again.
    pub(super) fn of(pid: u32) -> io::Result<Option<Self>> {
        Ok(Self::started(pid)?.map(|started| Self { pid, started }))
    }

    pub(super) fn is_alive(self) -> bool {
        // What can't be read may live.
        Self::started(self.pid).map_or(true, |started| started == Some(self.started))
    }

    /// When a process began; `None` if there is none with this number that still runs.
    fn started(pid: u32) -> io::Result<Option<u64>> {
        let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat,
            // The second comes of a process that ends while it is read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // After the name, which may hold anything: the state and 18 others, then the moment.
        let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
        let state = fields.next().unwrap_or_default();
        let started = fields.nth(18).and_then(|field| field.parse().ok());
        let started =
            started.ok_or_else(|| io::Error::other(format!("odd status of process {pid}: {stat}")))?;
        Ok(Some(started).filter(|_| !matches!(state, "Z" | "X")))
    }
}

async fn read_all(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut text = String::new();
    if let Some(stream) = stream {
        // What came before an error is all there is.
        let _ = stream.take(SCRIPT_OUTPUT_LIMIT as u64).read_to_string(&mut text).await;
    }
    text
}
