//! Connections to the machines of runs.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use ssh_key::PublicKey;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};
use tsunami_core::{Connector, Machine, RunId, Session, SessionError, SessionErrorKind};

use crate::config::{self, Files, JUMP, Resolved, SshOptions};
use crate::hosts::HostAddress;
use crate::janitor::Janitor;
use crate::master::{Master, cannot_run_ssh};
use crate::session::SshSession;
use crate::watchdog::Arming;
use crate::{keys, probe};

/// A control socket's path may be this long: the system allows some 107 bytes, and ssh appends 17 while it
/// makes the socket.
const SOCKET_PATH: usize = 88;

/// For how long a machine that refuses the login is tried again: its keys may still be on their way.
const LOGIN_PATIENCE: Duration = Duration::from_secs(15);

/// Makes [`Session`]s over OpenSSH.
///
/// A run has an ssh_config of its own in its private directory, with the run's key, its pinned host keys, and
/// one alias a machine; `ssh -F` with that file reaches the machines as tsunami does.
#[derive(Debug, Default)]
pub struct SshConnector {
    options: SshOptions,
    runs: Mutex<HashMap<RunId, Arc<RunSsh>>>,
    kex: OnceCell<String>,
}

/// What is shared by the connections of a run in this process.
#[derive(Debug)]
pub(crate) struct RunSsh {
    run: RunId,
    files: Files,
    options: SshOptions,
    jump: OnceCell<Master>,
    next_socket: AtomicU32,
    writing: Mutex<()>,
    /// Connections of closed sessions to machines that existed before the run, which teardown visits once more.
    parked: Mutex<HashMap<String, Master>>,
    /// Gone once the run is finished, whoever still holds a session.
    janitor: Mutex<Option<Janitor>>,
}

/// The ssh_config that a run keeps in its directory.
pub fn run_config(run_directory: &Path) -> PathBuf {
    Files::in_directory(&run_directory.join("ssh")).config
}

impl SshConnector {
    /// Connects with these options.
    pub fn new(options: SshOptions) -> Self {
        Self { options, ..Self::default() }
    }

    fn prepared(&self, run: &RunId) -> Option<Arc<RunSsh>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).get(run).cloned()
    }

    /// The key exchanges to offer, given what this computer's ssh knows.
    async fn kex(&self, options: &SshOptions) -> Result<String, SessionError> {
        if let Some(kex) = &options.kex {
            return Ok(kex.clone());
        }
        let ask = async || {
            let output = Command::new("ssh").args(["-Q", "kex"]).output().await;
            let known = output.map_err(|error| cannot_run_ssh(&error))?.stdout;
            let known = String::from_utf8_lossy(&known).into_owned();
            let wanted = ["mlkem768x25519-sha256", "curve25519-sha256", "curve25519-sha256@libssh.org"];
            let wanted: Vec<_> =
                wanted.into_iter().filter(|kex| known.lines().any(|line| line == *kex)).collect();
            Ok(format!("^{}", wanted.join(",")))
        };
        self.kex.get_or_try_init(ask).await.cloned()
    }
}

#[async_trait]
impl Connector for SshConnector {
    async fn prepare(&self, run: &RunId, directory: &Path) -> Result<String, SessionError> {
        let directory = directory.join("ssh");
        let failed = |error| local(format!("cannot write to {}", directory.display()), error);
        if let Some(odd) =
            directory.to_string_lossy().chars().find(|c| c.is_control() || "%\"\\$*?[]".contains(*c))
        {
            let message = format!(
                "ssh cannot be given the path {}: it contains `{}`",
                directory.display(),
                odd.escape_debug()
            );
            return Err(SessionError::new(SessionErrorKind::Local, message)
                .help("set XDG_STATE_HOME to a directory with a plainer name"));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        let files = Files::in_directory(&directory);
        let key = keys::obtain(&files.key, &format!("tsunami-{run}")).map_err(failed)?;
        if self.prepared(run).is_some() {
            return Ok(key);
        }
        let options = remembered(&files, &self.options).map_err(failed)?;
        let mut main = config::main_config(&options, &files, &self.kex(&options).await?);
        if let Some(jump) = &options.jump {
            main.push_str(&config::jump_host(jump, &options, &files));
        }
        write_private(&files.config, &main).map_err(failed)?;
        open_appending(&files.hosts).and_then(|_| open_appending(&files.known_hosts)).map_err(failed)?;
        let janitor = Janitor::start(&socket_directories(&directory));
        let janitor = janitor.map_err(|error| local("cannot make a directory for control sockets", error))?;
        let ssh = RunSsh {
            run: run.clone(),
            files,
            options,
            jump: OnceCell::new(),
            next_socket: AtomicU32::new(0),
            writing: Mutex::default(),
            parked: Mutex::default(),
            janitor: Mutex::new(Some(janitor)),
        };
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).insert(run.clone(), Arc::new(ssh));
        Ok(key)
    }

    async fn connect(&self, machine: &Machine, deadline: Instant) -> Result<Box<dyn Session>, SessionError> {
        let session = self.open(machine, deadline).await?;
        if let Some(directory) = &machine.login.directory {
            let was_connected = self.note_connected(machine)?;
            let until = machine.expires.unwrap_or_else(SystemTime::now);
            let armed = session.arm(directory, until, Arming::Ensure).await;
            if armed.is_err() && !session.has_shell() && !was_connected {
                // Nothing was put there.
                self.forget_connected(machine)?;
            }
            armed?;
        }
        Ok(Box::new(session))
    }

    async fn finish(&self, run: &RunId) {
        let ssh = self.runs.lock().unwrap_or_else(PoisonError::into_inner).remove(run);
        if let Some(ssh) = ssh {
            ssh.parked.lock().unwrap_or_else(PoisonError::into_inner).clear();
            ssh.janitor.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

impl SshConnector {
    /// Connects, and leaves the machine as it is.
    pub(crate) async fn open(
        &self,
        machine: &Machine,
        deadline: Instant,
    ) -> Result<SshSession, SessionError> {
        let ssh = self.prepared(&machine.run).ok_or_else(|| not_prepared(&machine.run))?;
        if let Some(master) = ssh.unpark(&machine.name()) {
            return Ok(SshSession::new(ssh, machine, master));
        }
        let route = ssh.route(machine).await?;
        if let Some((host, port)) = &route {
            let answering = probe::until_answering(host, *port, deadline).await;
            answering.map_err(|seen| SessionError::new(SessionErrorKind::Connect, seen))?;
        }
        let begun = Instant::now();
        let mut pause = Duration::from_millis(100);
        let master = loop {
            let error = match ssh.master(machine, deadline).await {
                Ok(master) => break master,
                Err(error) => error,
            };
            let refused = error.message.contains("Permission denied");
            let hopeless = error.kind != SessionErrorKind::Connect
                || refused && (machine.login.directory.is_some() || begun.elapsed() > LOGIN_PATIENCE);
            if hopeless || Instant::now() + pause >= deadline {
                return Err(ssh.explain(machine, route.as_ref(), error).await);
            }
            tracing::debug!(machine = machine.name(), %error, "not connected yet");
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        };
        Ok(SshSession::new(ssh, machine, master))
    }

    /// Notes that something is about to be put on a machine that existed before the run. Returns whether that had
    /// been noted before.
    fn note_connected(&self, machine: &Machine) -> Result<bool, SessionError> {
        let ssh = self.prepared(&machine.run).ok_or_else(|| not_prepared(&machine.run))?;
        let path = ssh.files.connected(&machine.name());
        let noted = path.exists();
        let written = write_private(&path, "");
        written.map_err(|error| local(format!("cannot write {}", path.display()), error)).map(|()| noted)
    }

    fn forget_connected(&self, machine: &Machine) -> Result<(), SessionError> {
        let ssh = self.prepared(&machine.run).ok_or_else(|| not_prepared(&machine.run))?;
        let path = ssh.files.connected(&machine.name());
        fs::remove_file(&path).map_err(|error| local(format!("cannot remove {}", path.display()), error))
    }

    /// Whether the run ever came so far as to put something on a machine that existed before it.
    pub(crate) fn was_connected(&self, root: &Path, machine: &Machine) -> bool {
        let directory = root.join(machine.run.as_str()).join("ssh");
        Files::in_directory(&directory).connected(&machine.name()).exists()
    }

    /// The name or address that ssh would connect to for a host.
    pub(crate) async fn host_name(&self, host: &HostAddress) -> Result<String, SessionError> {
        let resolved = resolve(&self.options, &host.host, host.user.as_deref(), host.port).await?;
        Ok(resolved.get("hostname").unwrap_or(&host.host).to_owned())
    }
}

impl RunSsh {
    pub(crate) fn run(&self) -> &RunId {
        &self.run
    }

    /// Keeps a connection for whoever opens the next session to the machine.
    pub(crate) fn park(&self, alias: &str, master: Master) {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).insert(alias.to_owned(), master);
    }

    fn unpark(&self, alias: &str) -> Option<Master> {
        let master = self.parked.lock().unwrap_or_else(PoisonError::into_inner).remove(alias);
        master.filter(|master| !master.is_dead())
    }

    /// Starts a master for a machine, or for one more connection to it.
    pub(crate) async fn master(&self, machine: &Machine, deadline: Instant) -> Result<Master, SessionError> {
        let mut options = Vec::new();
        if let Some((host, port)) = config::endpoint(machine) {
            // What the config says of the name may be about its predecessor again: another process, which fetches
            // files from that, has written it.
            options.extend([format!("HostName={host}"), format!("Port={port}")]);
        }
        if self.options.jump.is_some() {
            let jump = self.jump.get_or_try_init(|| self.start(JUMP, &[], deadline)).await?;
            // One connection to the jump host serves all.
            let [config, socket] = [self.files.config.as_path(), jump.socket()].map(config::quoted);
            let proxy = format!("ProxyCommand=ssh -F {config} -S {socket} -W [%h]:%p {JUMP}");
            options.push(proxy);
        }
        self.start(&machine.name(), &options, deadline).await
    }

    async fn start(
        &self,
        alias: &str,
        options: &[String],
        deadline: Instant,
    ) -> Result<Master, SessionError> {
        let number = self.next_socket.fetch_add(1, Ordering::Relaxed);
        let (socket, group) = match &*self.janitor.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(janitor) => (janitor.directory().join(number.to_string()), janitor.group()),
            None => return Err(SessionError::new(SessionErrorKind::Lost, "the run is over")),
        };
        Master::start(&self.files.config, alias, socket, group, options, deadline).await
    }

    /// Writes down how to reach a machine. Returns the address and port to probe, unless the way is not a
    /// direct one.
    async fn route(&self, machine: &Machine) -> Result<Option<(String, u16)>, SessionError> {
        let (text, probe) = match &machine.login.host_key {
            Some(key) => {
                let probe = config::endpoint(machine).ok_or_else(|| {
                    SessionError::new(SessionErrorKind::Connect, format!("{} has no address", machine.name()))
                })?;
                let alias = format!("{} ", machine.name());
                self.write(|| put(&self.files.known_hosts, &alias, &format!("{alias}{key}\n")))?;
                (config::owned_machine(machine, &self.options, &self.files), Some(probe))
            }
            None => {
                let login = &machine.login;
                let host = login.host.as_deref().unwrap_or_default();
                let resolved = resolve(&self.options, host, login.user.as_deref(), login.port).await?;
                let text = config::existing_machine(machine, &self.options, &self.files, &resolved);
                let host = resolved.get("hostname").unwrap_or_default().to_owned();
                let port = resolved.get("port").and_then(|port| port.parse().ok()).unwrap_or(22);
                (text, (!resolved.is_proxied()).then_some((host, port)))
            }
        };
        let alias = format!("Host {}\n", machine.name());
        self.write(|| put(&self.files.hosts, &alias, &text))?;
        Ok(probe.filter(|_| self.options.jump.is_none()))
    }

    fn write(&self, write: impl FnOnce() -> io::Result<()>) -> Result<(), SessionError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        write().map_err(|error| local(format!("cannot write beside {}", self.files.config.display()), error))
    }

    /// Adds to an error what the user can do about it.
    async fn explain(
        &self,
        machine: &Machine,
        route: Option<&(String, u16)>,
        error: SessionError,
    ) -> SessionError {
        if error.kind != SessionErrorKind::HostKey || machine.login.host_key.is_some() {
            return error;
        }
        match route {
            Some((host, port)) if error.message.contains("host key is known for") => {
                match shown_key(host, *port).await {
                    Some((fingerprint, line)) => error.help(format!(
                        "{host} showed the key {fingerprint}. If it is the right one, add this line to your \
                     known_hosts, or pass --accept-new-hosts:\n  {line}"
                    )),
                    None => error,
                }
            }
            _ => error.help(
                "the host's key is not the known one: if that is expected, remove the old key with \
                             `ssh-keygen -R`, else do not connect",
            ),
        }
    }
}

/// The options that the run began with; these, if it begins now.
fn remembered(files: &Files, options: &SshOptions) -> io::Result<SshOptions> {
    match fs::read(&files.options) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write_private(&files.options, &serde_json::to_string_pretty(options)?)?;
            Ok(options.clone())
        }
        Err(error) => Err(error),
    }
}

/// Asks ssh what it would do to reach a host that existed before the run.
async fn resolve(
    options: &SshOptions,
    host: &str,
    user: Option<&str>,
    port: Option<u16>,
) -> Result<Resolved, SessionError> {
    let mut command = Command::new("ssh");
    command.arg("-G");
    if let Some(config) = &options.config {
        command.arg("-F").arg(config);
    }
    if let Some(user) = user.or(options.user.as_deref()) {
        command.args(["-l", user]);
    }
    if let Some(port) = port {
        command.args(["-p", &port.to_string()]);
    }
    if let Some(key) = &options.key {
        command.arg("-i").arg(key);
    }
    let output = command.arg("--").arg(host).output().await.map_err(|error| cannot_run_ssh(&error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(SessionError::new(SessionErrorKind::Local, said));
    }
    Ok(Resolved::parse(&String::from_utf8_lossy(&output.stdout)))
}

/// The key that a host shows, as a fingerprint and as a line of known_hosts.
async fn shown_key(host: &str, port: u16) -> Option<(String, String)> {
    let mut scan = Command::new("ssh-keyscan");
    scan.args(["-T", "5", "-t", "ed25519,ecdsa,rsa", "-p", &port.to_string(), "--", host]);
    let output = scan.output().await.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines.sort_by_key(|line| !line.contains("ssh-ed25519"));
    let line = *lines.first()?;
    let key = PublicKey::from_openssh(line.split_once(' ')?.1).ok()?;
    Some((key.fingerprint(Default::default()).to_string(), line.to_owned()))
}

/// Where control sockets may go, as templates: below `preferred` if that path is short enough.
fn socket_directories(preferred: &Path) -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let elsewhere = runtime.into_iter().chain([std::env::temp_dir(), PathBuf::from("/tmp")]);
    let elsewhere = elsewhere.map(|place| place.join("tsunami-XXXXXX"));
    let short = |template: &PathBuf| template.as_os_str().len() + "/NNNNN".len() <= SOCKET_PATH;
    std::iter::once(preferred.join("ctl-XXXXXX")).chain(elsewhere).filter(short).collect()
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

/// Puts an entry, whose further lines are indented, into a file: in place of the one that begins with `key`.
/// Appends in one write, or replaces the file, so that an ssh that reads it meanwhile sees whole entries.
fn put(path: &Path, key: &str, entry: &str) -> io::Result<()> {
    // Other processes may be at it, in the same directory.
    let directory = fs::File::open(path.parent().unwrap_or(Path::new(".")))?;
    directory.lock()?;
    let present = fs::read_to_string(path)?;
    let (mut old, mut others) = (String::new(), String::new());
    let mut is_old = false;
    for line in present.split_inclusive('\n') {
        if !line.starts_with(' ') {
            is_old = line.starts_with(key);
        }
        if is_old { &mut old } else { &mut others }.push_str(line);
    }
    if old == entry {
        return Ok(());
    }
    if old.is_empty() {
        return open_appending(path)?.write_all(entry.as_bytes());
    }
    let new = path.with_extension("new");
    write_private(&new, &(others + entry))?;
    fs::rename(new, path)
}

fn open_appending(path: &Path) -> io::Result<fs::File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn not_prepared(run: &RunId) -> SessionError {
    SessionError::new(SessionErrorKind::Local, format!("run {run} was not prepared"))
}

fn local(message: impl Into<String>, error: io::Error) -> SessionError {
    SessionError::new(SessionErrorKind::Local, message).source(error)
}
