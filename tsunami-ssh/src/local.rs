//! Machines on this computer: one sshd each, on a loopback address of its own.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tsunami_core::{
    Addresses, LaunchRequest, Leftover, Login, Machine, MachineId, MachineSpec, MachineState, Price,
    Provider, ProviderError, ProviderErrorKind, Quote, RunFilter, RunId, private,
};

use crate::keys;
use crate::watchdog::{self, Arming, ControlGroup};

/// The port that every machine's sshd listens on, or one of the next few if somebody has that on all addresses.
const PORT: u16 = 2222;

/// How long an sshd may take to listen.
const STARTING: Duration = Duration::from_secs(15);

/// How long a watchdog may take to say that it watches.
const ARMING: Duration = Duration::from_secs(15);

/// Where Debian, Fedora and others keep programs that are not for everybody's `PATH`.
const SYSTEM_PATHS: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];

/// Launches "machines" on this computer (Linux), without an account anywhere.
///
/// Every machine is a real `sshd` on a loopback address of its own, with its own host key and its own home
/// directory. Nothing else is isolated: commands run as the user who runs tsunami, on the same system. At
/// teardown, and at the deadline even if tsunami was killed, every process of the run is ended and every home
/// removed. It works as root and as an ordinary user.
#[derive(Debug)]
pub struct LocalProvider {
    root: PathBuf,
    launching: Mutex<()>,
}

/// The directories and files of a run's machines.
struct Place {
    directory: PathBuf,
}

impl Place {
    fn machine(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What is remembered of the run's machines, each with its directory.
    fn remembered(&self) -> Vec<(PathBuf, Remembered)> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let directories = entries.map(|entry| entry.path());
        directories.filter_map(|path| Remembered::read(&path).map(|known| (path, known))).collect()
    }

    /// Has a watchdog end the run's processes at `until`, whatever becomes of this one. Returns the control group that
    /// the run's commands join, if it has one.
    async fn arm(&self, run: &RunId, until: SystemTime, arming: Arming) -> io::Result<Option<ControlGroup>> {
        let directory = self.directory.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
        let mut watchdog = Command::new("setsid");
        watchdog.args(["sh", "-c", watchdog::SCRIPT, &watchdog::name(run, directory)]);
        watchdog
            .args(watchdog::watch(run, directory, until, arming))
            .env(watchdog::VARIABLE, watchdog::SCRIPT);
        // A marked environment would make it a process of the run.
        watchdog.env_remove("TSUNAMI_RUN_ID").current_dir("/");
        watchdog.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut watchdog = watchdog.spawn()?;
        let (stdout, stderr) = (watchdog.stdout.take(), watchdog.stderr.take());
        // It closes both once it watches.
        let said = timeout(ARMING, async { tokio::join!(read_all(stdout), read_all(stderr)) }).await;
        match said {
            Ok((stdout, stderr)) => watchdog::armed(&stdout)
                .ok_or_else(|| io::Error::other(format!("it ended: {}", stderr.trim()))),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// What is remembered of a machine, in its directory, once its sshd listens: written whole, or not at all.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    #[serde(flatten)]
    machine: Machine,
    sshd: Option<Listener>,
}

/// A process, known by its number and the moment at which it began, in clock ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Listener {
    pid: u32,
    started: u64,
}

impl Remembered {
    fn read(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&private::read(&directory.join("machine.json")).ok()?).ok()
    }

    fn write(&self, directory: &Path) -> io::Result<()> {
        write_private(&directory.join("machine.json"), &serde_json::to_vec_pretty(self)?, 0o600)
    }

    /// Only a process that is known to be gone makes a machine one that is.
    fn state(&self) -> MachineState {
        match self.sshd.map(Listener::is_alive) {
            Some(true) => MachineState::Running,
            Some(false) => MachineState::Gone,
            None => MachineState::Pending,
        }
    }
}

impl Listener {
    /// A process that has just been started, unless it has ended again.
    fn of(pid: u32) -> io::Result<Option<Self>> {
        Ok(Self::started(pid)?.map(|started| Self { pid, started }))
    }

    fn is_alive(self) -> bool {
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
        let _ = stream.take(64 << 10).read_to_string(&mut text).await;
    }
    text
}

impl LocalProvider {
    /// Keeps the machines of a run in `<root>/<run-id>/local`. With the root of tsunami's records that is the
    /// run's own private directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), launching: Mutex::default() }
    }

    fn place(&self, run: &RunId) -> Place {
        Place { directory: self.root.join(run.as_str()).join("local") }
    }

    /// The runs that have machines here.
    fn runs(&self) -> Vec<RunId> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
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
            let known = Remembered::read(&directory).filter(|known| known.state() == MachineState::Running);
            if let Some(known) = known {
                ids.push(known.machine.id);
                continue;
            }
            let (address, port) = hosts.next().ok_or_else(|| {
                let message = "no loopback address has a free port";
                ProviderError::new(ProviderErrorKind::Capacity, "launch", message)
            })?;
            let group = group.as_ref();
            let plan = Sshd { sshd: &sshd, user: &user, group, directory, name, address, port, index };
            let (machine, child) = plan.start(request).map_err(failed)?;
            ids.push(machine.id.clone());
            starting.push(plan.until_listening(machine, child));
        }
        // All of them, so that each that listens is known to the next attempt.
        join_all(starting).await.into_iter().collect::<Result<(), _>>()?;
        Ok(ids)
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        let runs = match filter {
            RunFilter::Run(run) => vec![run.clone()],
            RunFilter::All => self.runs(),
        };
        let mut machines = Vec::new();
        for run in runs {
            let remembered = self.place(&run).remembered();
            let listed =
                remembered.into_iter().map(|(_, known)| Machine { state: known.state(), ..known.machine });
            machines.extend(listed);
        }
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
        for (directory, mut known) in place.remembered() {
            known.machine.expires = Some(until);
            let written = known.write(&directory);
            written.map_err(|error| failed(format!("cannot write to {}", directory.display()), error))?;
        }
        Ok(())
    }

    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        let place = self.place(run);
        let mut reap = Command::new("sh");
        reap.args(["-c", watchdog::SCRIPT, "tsunami-reaper", "reap", run.as_str()]).arg(&place.directory);
        // A marked environment would make it a process of the run.
        reap.env_remove("TSUNAMI_RUN_ID").stdin(Stdio::null()).process_group(0);
        let output = reap.output().await.map_err(|error| {
            ProviderError::new(ProviderErrorKind::Other, "terminate", "cannot run `sh`").source(error)
        })?;
        let mut left = watchdog::leftovers(&String::from_utf8_lossy(&output.stdout), "this computer");
        if left.is_empty() && place.directory.exists() {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            left.push(Leftover { what: format!("directory {}", place.directory.display()), why });
        }
        Ok(left)
    }
}

/// One machine that is about to be.
struct Sshd<'a> {
    sshd: &'a Path,
    user: &'a str,
    group: Option<&'a ControlGroup>,
    directory: PathBuf,
    name: String,
    address: Ipv4Addr,
    port: u16,
    index: u32,
}

impl Sshd<'_> {
    /// Makes the machine's directory and starts its sshd.
    fn start(&self, request: &LaunchRequest) -> io::Result<(Machine, Child)> {
        let at = |name: &str| self.directory.join(name);
        remove_tree(&self.directory)?;
        private_directory(&self.directory)?;
        private_directory(&at("home"))?;
        let host_key = keys::obtain(&at("host_key"), &self.name)?;
        write_private(&at("authorized_keys"), request.authorized_key.as_bytes(), 0o600)?;
        write_private(&at("enter"), self.enter(request).as_bytes(), 0o700)?;
        write_private(&at("sshd_config"), self.config().as_bytes(), 0o600)?;
        let machine = Machine {
            id: MachineId::new(format!("{}/{}", request.run, self.name)),
            run: request.run.clone(),
            group: request.group.clone(),
            index: self.index,
            state: MachineState::Running,
            addresses: Addresses {
                public: Some(self.address.to_string()),
                private: Some(self.address.to_string()),
                network: Some("loopback".to_owned()),
            },
            login: Login {
                user: Some(self.user.to_owned()),
                host: None,
                port: Some(self.port),
                host_key: Some(host_key),
                directory: None,
            },
            expires: Some(request.deadline.at),
            description: "sshd on this computer's loopback".to_owned(),
            price: Price::Free,
            ended: None,
            interrupted: None,
        };
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(at("sshd.log"))?;
        let mut sshd = std::process::Command::new(self.sshd);
        sshd.arg("-D").arg("-e").arg("-f").arg(at("sshd_config")).current_dir("/");
        // A group of its own keeps the terminal's Ctrl-C away from it.
        sshd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        Ok((machine, Command::from(sshd).spawn()?))
    }

    /// The sshd's configuration. `SHLVL` keeps bash from reading the `~/.bashrc` of the user's real home, as it
    /// does for the first shell below sshd.
    fn config(&self) -> String {
        let Self { address, port, user, .. } = self;
        let file = |name: &str| crate::config::quoted(&self.directory.join(name));
        let (host_key, authorized, enter) =
            (file("host_key"), file("authorized_keys"), shell_quoted(&self.directory.join("enter")));
        // Root's account may be locked, which only PAM overlooks.
        let pam = if rustix::process::geteuid().is_root() && is_locked(user) { "yes" } else { "no" };
        let sftp = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server"];
        let sftp = sftp.iter().find(|path| Path::new(path).exists());
        let sftp = sftp.map(|path| format!("Subsystem sftp {path}\n")).unwrap_or_default();
        format!(
            "ListenAddress {address}:{port}\n\
             HostKey {host_key}\n\
             AuthorizedKeysFile {authorized}\n\
             AllowUsers {user}\n\
             ForceCommand {enter}\n\
             PermitRootLogin prohibit-password\n\
             PasswordAuthentication no\n\
             KbdInteractiveAuthentication no\n\
             UsePAM {pam}\n\
             StrictModes no\n\
             PidFile none\n\
             MaxStartups 100\n\
             PrintMotd no\n\
             PrintLastLog no\n\
             X11Forwarding no\n\
             ClientAliveInterval 15\n\
             SetEnv SHLVL=1\n\
             {sftp}"
        )
    }

    /// The script that every login goes through: it gives the machine its home, and marks all that runs there
    /// as the run's. sshd's own processes are no part of that: they end with their sshd.
    fn enter(&self, request: &LaunchRequest) -> String {
        let home = shell_quoted(&self.directory.join("home"));
        let run = &request.run;
        let join = self.group.map(ControlGroup::join).unwrap_or_default();
        format!(
            "#!/bin/sh\n\
             HOME={home} TSUNAMI_RUN_ID={run}\n\
             export HOME TSUNAMI_RUN_ID\n\
             cd \"$HOME\" || exit\n\
             {join}\n\
             line=$SSH_ORIGINAL_COMMAND\n\
             unset SSH_ORIGINAL_COMMAND\n\
             [ -n \"$line\" ] || exec \"${{SHELL:-/bin/sh}}\"\n\
             exec \"${{SHELL:-/bin/sh}}\" -c \"$line\"\n"
        )
    }

    /// Waits until the sshd listens, and then makes the machine known. A connection would do, but costs sshd a
    /// process; its log costs nothing.
    async fn until_listening(self, machine: Machine, mut sshd: Child) -> Result<(), ProviderError> {
        let deadline = Instant::now() + STARTING;
        let log = || fs::read_to_string(self.directory.join("sshd.log")).unwrap_or_default();
        let ended = loop {
            // In this order: what has ended has said all.
            let ended = sshd.try_wait().is_ok_and(|status| status.is_some());
            if ended || log().contains("Server listening on") || Instant::now() > deadline {
                break ended;
            }
            sleep(Duration::from_millis(5)).await;
        };
        let log = log();
        if !ended && log.contains("Server listening on") {
            let known = || -> io::Result<()> {
                let sshd = sshd.id().map(Listener::of).transpose()?.flatten();
                Remembered { machine, sshd }.write(&self.directory)
            };
            let message = || format!("cannot write to {}", self.directory.display());
            return known().map_err(|error| launch_error(message(), error));
        }
        let busy = log.contains("Address already in use");
        // Somebody was faster; the next attempt takes another address.
        let kind = if busy { ProviderErrorKind::Unavailable } else { ProviderErrorKind::Other };
        let message = format!("sshd of {} does not start: {}", self.name, log.trim());
        Err(ProviderError::new(kind, "launch", message))
    }
}

/// Loopback addresses of nobody's, with a port that is free there: beginning at a place of the run's own, so that
/// runs don't meet.
fn candidates(run: &RunId) -> impl Iterator<Item = (Ipv4Addr, u16)> {
    const RANGE: u32 = 1 << 22;
    let mut hasher = DefaultHasher::new();
    run.hash(&mut hasher);
    let start = (hasher.finish() % u64::from(RANGE)) as u32;
    // 127.64.0.0 to 127.127.255.255, without those that look like a network's own.
    let addresses = (0..RANGE).map(move |step| Ipv4Addr::from_bits(0x7f40_0000 + (start + step) % RANGE));
    let addresses = addresses.filter(|address| !matches!(address.octets()[3], 0 | 255));
    let free = |address: Ipv4Addr, port| TcpListener::bind((address, port)).is_ok();
    // A port that is taken on many addresses is taken on all of them, by a server that listens everywhere.
    let usable = |port: &u16| addresses.clone().take(64).any(|address| free(address, *port));
    let port = (PORT..PORT + 10).find(usable);
    addresses.filter_map(move |address| port.filter(|port| free(address, *port)).map(|port| (address, port)))
}

fn find_sshd() -> Result<PathBuf, ProviderError> {
    find_program("sshd", "openssh-server")
}

fn find_program(name: &str, package: &str) -> Result<PathBuf, ProviderError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories = std::env::split_paths(&path).chain(SYSTEM_PATHS.map(PathBuf::from));
    directories.find_map(|directory| Some(directory.join(name)).filter(|path| path.is_file())).ok_or_else(
        || {
            let message = format!("`{name}` is not installed");
            ProviderError::new(ProviderErrorKind::Unsupported, "look for local tools", message)
                .help(format!("install it: `apt-get install {package}`"))
        },
    )
}

/// The user that sshd lets in, which is whoever runs it. sshd goes by the system's list of users, and by the shell
/// that stands there.
async fn login_name() -> Result<String, ProviderError> {
    let uid = rustix::process::geteuid();
    let refused = |message: String| {
        ProviderError::new(ProviderErrorKind::Unsupported, "look for the user", message)
            .help("run tsunami as a user that can log in")
    };
    let uid = uid.as_raw().to_string();
    let output = Command::new("getent").args(["passwd", &uid]).output().await;
    let entry = output.map_err(|error| refused(format!("cannot run `getent`: {error}")))?.stdout;
    let entry = String::from_utf8_lossy(&entry).trim().to_owned();
    let (name, shell) =
        entry.split_once(':').zip(entry.rsplit_once(':')).map_or(("", ""), |(a, b)| (a.0, b.1));
    if name.is_empty() {
        return Err(refused(format!(
            "sshd lets nobody in whom the system does not know: user {uid} has no name"
        )));
    }
    if shell.ends_with("/nologin") || shell.ends_with("/false") {
        return Err(refused(format!("{name} cannot log in: the login shell is {shell}")));
    }
    Ok(name.to_owned())
}

/// Whether an account is locked in the way that sshd minds.
fn is_locked(user: &str) -> bool {
    let shadow = fs::read_to_string("/etc/shadow").unwrap_or_default();
    let entry = shadow.lines().find_map(|line| line.strip_prefix(user)?.strip_prefix(':'));
    entry.is_some_and(|password| password.starts_with('!'))
}

fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes a directory, unless something is mounted in it.
fn remove_tree(path: &Path) -> io::Result<()> {
    let real = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        real => real?,
    };
    match mounted_in(&real, &fs::read("/proc/self/mountinfo")?) {
        Some(mount) => Err(io::Error::other(format!("unmount {} first", mount.display()))),
        None => fs::remove_dir_all(&real),
    }
}

/// The first mount in a directory, or at it, by what the kernel says of mounts.
fn mounted_in(directory: &Path, mounts: &[u8]) -> Option<PathBuf> {
    let points = mounts.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&b| b == b' ').nth(4));
    points.map(unescape).find(|point| point.starts_with(directory))
}

/// Reads a path in which spaces, line breaks and backslashes are written as `\040`.
fn unescape(text: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| first == b'\\').and_then(|code| str::from_utf8(code).ok());
        let byte = code.and_then(|code| u8::from_str_radix(code, 8).ok());
        path.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(path).into()
}

/// Writes a file whole, or not at all.
fn write_private(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    file.write_all(content)?;
    fs::rename(new, path)
}

fn shell_quoted(path: &Path) -> String {
    let quoted = shlex::bytes::try_quote(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
    String::from_utf8_lossy(&quoted).into_owned()
}

fn launch_error(message: impl Into<String>, error: io::Error) -> ProviderError {
    ProviderError::new(ProviderErrorKind::Other, "launch", message).source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_free_and_of_the_runs_own() {
        let run: RunId = "20260101-000000-aaaa".parse().unwrap();
        let first = candidates(&run).next().unwrap();
        let taken = TcpListener::bind(first).unwrap();
        let second = candidates(&run).next().unwrap();
        assert_ne!(first.0, second.0, "two machines must not share an address");
        drop(taken);
        let other: RunId = "20260101-000000-bbbb".parse().unwrap();
        assert_ne!(candidates(&other).next().unwrap().0, first.0);
    }

    #[test]
    fn what_is_mounted_in_a_directory_is_found_whatever_it_is_called() {
        let mounts = b"36 35 98:0 / / rw - ext4 /dev/sda rw\n\
                       37 36 98:0 /x /a\\040b\\134c\\0401/d rw,noatime master:1 - ext4 /dev/sda rw\n\
                       38 36 98:0 /x /ab/d rw - ext4 /dev/sda rw\n";
        let mounted = |directory: &str| mounted_in(Path::new(directory), mounts);
        assert_eq!(mounted("/a b\\c 1"), Some("/a b\\c 1/d".into()));
        assert_eq!(mounted("/ab/d"), Some("/ab/d".into()));
        assert_eq!(mounted("/a"), None);
    }

    /// A run with one machine, of which only its watchdog knows that it is to end.
    struct Launched {
        root: tempfile::TempDir,
        provider: LocalProvider,
        run: RunId,
        directory: PathBuf,
        sshd: Listener,
    }

    impl Launched {
        async fn for_seconds(name: &str, seconds: u64) -> Self {
            let root = tempfile::tempdir().unwrap();
            let provider = LocalProvider::new(root.path());
            let run: RunId = format!("20260101-000000-{name}-{}", std::process::id()).parse().unwrap();
            provider.launch(&request(&run, seconds)).await.unwrap();
            let directory = provider.place(&run).directory;
            let sshd = Remembered::read(&directory.join("node-0")).unwrap().sshd.unwrap();
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
        LaunchRequest {
            run: run.clone(),
            experiment: "test".to_owned(),
            group: "node".to_owned(),
            count: NonZeroU32::MIN,
            spec: MachineSpec::default(),
            deadline: tsunami_core::Deadline { at: SystemTime::now() + lifetime, lifetime },
            authorized_key: "ssh-ed25519 none".to_owned(),
            replace: Vec::new(),
            notes: tsunami_core::Notes::default(),
        }
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
        let state = || Remembered::read(&directory).map(|known| known.state());
        assert_eq!(state(), Some(MachineState::Running));
        // A machine that is being made is none yet.
        fs::create_dir_all(launched.directory.join("node-1/home")).unwrap();
        assert_eq!(launched.provider.list(&RunFilter::All).await.unwrap().len(), 1);
        let mut known = Remembered::read(&directory).unwrap();
        known.sshd = None;
        known.write(&directory).unwrap();
        assert_eq!(state(), Some(MachineState::Pending), "nothing is known of its process");
        // The number of another process.
        known.sshd = Some(Listener { pid: std::process::id(), started: launched.sshd.started });
        known.write(&directory).unwrap();
        assert_eq!(state(), Some(MachineState::Gone));
    }
}
