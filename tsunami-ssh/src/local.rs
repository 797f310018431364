//! Machines on this computer: one sshd each, on a loopback address of its own.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, DirBuilder, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::num::NonZeroU32;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::future::try_join_all;
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tsunami_core::{
    Addresses, LaunchRequest, Leftover, Login, Machine, MachineId, MachineSpec, MachineState, Price,
    Provider, ProviderError, ProviderErrorKind, Quote, RunFilter, RunId,
};

use crate::{keeper, keys};

/// The port that every machine's sshd listens on, or one of the next few if somebody has that on all addresses.
const PORT: u16 = 2222;

/// How long an sshd may take to listen.
const STARTING: Duration = Duration::from_secs(15);

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

    fn deadline(&self) -> PathBuf {
        self.directory.join(".deadline")
    }
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
        // One at a time, so that two groups do not choose the same address.
        let _launching = self.launching.lock().await;
        private_directory(&place.directory).map_err(failed)?;
        start_keeper(&place, request)
            .await
            .map_err(|error| launch_error("cannot start the keeper", error))?;
        let mut ids = Vec::new();
        let mut starting = Vec::new();
        let mut hosts = candidates(&request.run);
        for index in 0..request.count.get() {
            let name = format!("{}-{index}", request.group);
            let directory = place.machine(&name);
            if let Some(machine) = read_machine(&directory).filter(|_| listener(&directory).is_some()) {
                ids.push(machine.id);
                continue;
            }
            let (address, port) = hosts.next().ok_or_else(|| {
                let message = "no loopback address has a free port";
                ProviderError::new(ProviderErrorKind::Capacity, "launch", message)
            })?;
            let plan = Sshd { sshd: &sshd, user: &user, directory, name, address, port, index };
            let machine = plan.start(request).map_err(failed)?;
            ids.push(machine.id);
            starting.push(plan.until_listening());
        }
        try_join_all(starting).await?;
        Ok(ids)
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        let runs = match filter {
            RunFilter::Run(run) => vec![run.clone()],
            RunFilter::All => self.runs(),
        };
        let mut machines = Vec::new();
        for run in runs {
            let place = self.place(&run);
            let deadline = fs::read_to_string(place.deadline()).ok();
            let expires = deadline.as_deref().and_then(keeper::parse_deadline);
            for entry in fs::read_dir(&place.directory).into_iter().flatten().flatten() {
                if let Some(mut machine) = read_machine(&entry.path()) {
                    let alive = listener(&entry.path()).is_some();
                    machine.state = if alive { MachineState::Running } else { MachineState::Gone };
                    machine.expires = expires.or(machine.expires);
                    machines.push(machine);
                }
            }
        }
        machines.sort_by(|a, b| (&a.run, &a.group, a.index).cmp(&(&b.run, &b.group, b.index)));
        Ok(machines)
    }

    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        let path = self.place(run).deadline();
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        let write = || write_deadline(&path, until, left);
        write().map_err(|error| {
            let message = format!("cannot write {}", path.display());
            ProviderError::new(ProviderErrorKind::Other, "extend", message).source(error)
        })
    }

    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        let place = self.place(run);
        let mut reap = Command::new("sh");
        reap.args(["-c", keeper::SCRIPT, "tsunami-keeper", "reap"]).arg(&place.directory).arg(run.as_str());
        // A marked environment would make it a process of the run.
        reap.env_remove("TSUNAMI_RUN_ID").stdin(Stdio::null()).process_group(0);
        let output = reap.output().await.map_err(|error| {
            ProviderError::new(ProviderErrorKind::Other, "terminate", "cannot run `sh`").source(error)
        })?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let left = said.lines().map(|line| Leftover {
            what: format!("{line} on this computer"),
            why: "it does not end".to_owned(),
        });
        let mut left: Vec<Leftover> = left.collect();
        if left.is_empty() && place.directory.exists() {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            left.push(Leftover { what: format!("directory {}", place.directory.display()), why });
        }
        Ok(left)
    }
}

/// Starts the process that ends the run's processes at its deadline, or moves the deadline of the one that
/// runs. Before the first sshd.
async fn start_keeper(place: &Place, request: &LaunchRequest) -> io::Result<()> {
    if !place.deadline().exists() {
        write_deadline(&place.deadline(), request.deadline.at, request.deadline.lifetime)?;
    }
    let pid_file = place.directory.join(".keeper.pid");
    let alive = |pid: u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        contains(&command, place.directory.as_os_str().as_encoded_bytes())
    };
    let running = fs::read_to_string(&pid_file).ok().and_then(|pid| pid.trim().parse().ok());
    if running.is_some_and(alive) {
        return Ok(());
    }
    let mut keeper = std::process::Command::new("setsid");
    keeper.args(["sh", "-c", keeper::SCRIPT, "tsunami-keeper", "keep"]).arg(&place.directory);
    keeper.arg(request.run.as_str()).env_remove("TSUNAMI_RUN_ID").current_dir("/");
    keeper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let keeper = Command::from(keeper).spawn()?;
    write_pid(&pid_file, keeper.id())
}

fn write_deadline(path: &Path, at: SystemTime, left: Duration) -> io::Result<()> {
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime = uptime.split(['.', ' ']).next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default();
    let new = path.with_extension("new");
    write_private(&new, keeper::deadline(at, left, uptime).as_bytes(), 0o600)?;
    fs::rename(new, path)
}

/// One machine that is about to be.
struct Sshd<'a> {
    sshd: &'a Path,
    user: &'a str,
    directory: PathBuf,
    name: String,
    address: Ipv4Addr,
    port: u16,
    index: u32,
}

impl Sshd<'_> {
    /// Makes the machine's directory and starts its sshd.
    fn start(&self, request: &LaunchRequest) -> io::Result<Machine> {
        let at = |name: &str| self.directory.join(name);
        let _ = fs::remove_dir_all(&self.directory);
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
        write_private(&at("machine.json"), &serde_json::to_vec_pretty(&machine)?, 0o600)?;
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(at("sshd.log"))?;
        let mut sshd = std::process::Command::new(self.sshd);
        sshd.arg("-D").arg("-e").arg("-f").arg(at("sshd_config")).current_dir("/");
        // A group of its own keeps the terminal's Ctrl-C away from it.
        sshd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let sshd = Command::from(sshd).spawn()?;
        write_pid(&at("sshd.pid"), sshd.id())?;
        Ok(machine)
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
    /// as the run's.
    fn enter(&self, request: &LaunchRequest) -> String {
        let home = shell_quoted(&self.directory.join("home"));
        let run = &request.run;
        format!(
            "#!/bin/sh\n\
             HOME={home} TSUNAMI_RUN_ID={run}\n\
             export HOME TSUNAMI_RUN_ID\n\
             cd \"$HOME\" || exit\n\
             [ -n \"$SSH_ORIGINAL_COMMAND\" ] || exec \"${{SHELL:-/bin/sh}}\"\n\
             exec \"${{SHELL:-/bin/sh}}\" -c \"$SSH_ORIGINAL_COMMAND\"\n"
        )
    }

    /// Waits until the sshd listens. A connection would do, but costs sshd a process; its log costs nothing.
    async fn until_listening(self) -> Result<(), ProviderError> {
        let deadline = Instant::now() + STARTING;
        loop {
            let log = fs::read_to_string(self.directory.join("sshd.log")).unwrap_or_default();
            if log.contains("Server listening on") {
                return Ok(());
            }
            let ended = listener(&self.directory).is_none() && !log.is_empty();
            if ended || Instant::now() > deadline {
                let busy = log.contains("Address already in use");
                // Somebody was faster; the next attempt takes another address.
                let kind = if busy { ProviderErrorKind::Unavailable } else { ProviderErrorKind::Other };
                let message = format!("sshd of {} does not start: {}", self.name, log.trim());
                return Err(ProviderError::new(kind, "launch", message));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The pid of a machine's sshd, if it runs. Known by the run's id and the machine's name: sshd shows the rest of
/// the path in an encoding of its own.
fn listener(directory: &Path) -> Option<u32> {
    let pid: u32 = fs::read_to_string(directory.join("sshd.pid")).ok()?.trim().parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let parts: Vec<_> = directory.components().rev().take(3).map(|part| part.as_os_str()).collect();
    let [name, local, run] = parts[..] else { return None };
    let own: PathBuf = [run, local, name].iter().collect();
    contains(&command, own.as_os_str().as_encoded_bytes()).then_some(pid)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// What is remembered of a machine, in its directory.
fn read_machine(directory: &Path) -> Option<Machine> {
    serde_json::from_slice(&fs::read(directory.join("machine.json")).ok()?).ok()
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
    if uid.is_root() {
        // sshd insists, and a system without an init does not make it.
        let _ = DirBuilder::new().mode(0o755).create("/run/sshd");
    }
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

fn write_private(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(content)
}

/// Writes a pid as the keeper's script reads it: a whole line.
fn write_pid(path: &Path, pid: Option<u32>) -> io::Result<()> {
    write_private(path, format!("{}\n", pid.unwrap_or_default()).as_bytes(), 0o600)
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

    #[tokio::test]
    async fn a_keeper_ends_the_run_at_its_deadline_by_itself() {
        let root = tempfile::tempdir().unwrap();
        let provider = LocalProvider::new(root.path());
        let run: RunId = "20260101-000000-keep".parse().unwrap();
        let lifetime = Duration::from_secs(3);
        let request = LaunchRequest {
            run: run.clone(),
            experiment: "test".to_owned(),
            group: "node".to_owned(),
            count: NonZeroU32::MIN,
            spec: MachineSpec::default(),
            deadline: tsunami_core::Deadline { at: SystemTime::now() + lifetime, lifetime },
            authorized_key: "ssh-ed25519 none".to_owned(),
            replace: Vec::new(),
            notes: tsunami_core::Notes::default(),
        };
        provider.launch(&request).await.unwrap();
        let directory = provider.place(&run).directory;
        let sshd = listener(&directory.join("node-0")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while directory.exists() {
            assert!(Instant::now() < deadline, "the keeper did nothing");
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(provider.list(&RunFilter::Run(run)).await.unwrap(), []);
        assert!(!fs::read(format!("/proc/{sshd}/cmdline")).is_ok_and(|command| !command.is_empty()));
    }
}
