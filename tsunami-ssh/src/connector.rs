//! Connections to the machines of runs.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use ssh_key::PublicKey;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};
use tsunami_core::limits::JUMPS_LIMIT;
use tsunami_core::{Connector, Machine, RunId, Session, SessionError, SessionErrorKind, private};

use crate::config::{
    self, CommandLine, Entry, Files, JUMP, Resolved, Setting, SshOptions, Unfit, Word, jump_hosts,
};
use crate::hosts::HostAddress;
use crate::janitor::Janitor;
use crate::master::{Master, arguments, cannot_run_ssh};
use crate::session::SshSession;
use crate::{keys, probe};

/// A control socket's path may be this long: the system allows some 107 bytes, and ssh appends 17 while it
/// makes the socket.
const SOCKET_PATH: usize = 88;

/// How long a host that is not known may take to show its key.
const SHOWING_TIMEOUT: Duration = Duration::from_secs(10);

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
    defaults: OnceCell<Arc<Resolved>>,
}

/// What is shared by the connections of a run in this process.
#[derive(Debug)]
pub(crate) struct RunSsh {
    run: RunId,
    files: Files,
    options: SshOptions,
    /// What ssh does without any configuration.
    defaults: Arc<Resolved>,
    jump: OnceCell<Master>,
    /// Done once the way through the jump host is written down.
    jump_written: OnceCell<()>,
    next_socket: AtomicU32,
    writing: Mutex<()>,
    /// Connections of closed sessions to machines that existed before the run, which teardown visits once more.
    parked: Mutex<HashMap<String, Master>>,
    /// Gone once the run is finished, whoever still holds a session.
    janitor: Mutex<Option<Janitor>>,
}

/// The ssh_config that a run keeps in its directory. Fails if another user may have written it, or what it names.
pub fn run_config(run_directory: &Path) -> io::Result<PathBuf> {
    let directory = run_directory.join("ssh");
    private::check_directory(run_directory)?;
    private::make_directory(&directory)?;
    let files = Files::in_directory(&directory);
    for file in [&files.config, &files.hosts, &files.known_hosts, &files.key] {
        private::check(file)?;
    }
    Ok(files.config)
}

impl SshConnector {
    /// Connects with these options.
    pub fn new(options: SshOptions) -> Self {
        Self { options, ..Self::default() }
    }

    fn prepared(&self, run: &RunId) -> Option<Arc<RunSsh>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).get(run).cloned()
    }

    /// What ssh does without any configuration.
    async fn defaults(&self) -> Result<Arc<Resolved>, SessionError> {
        let ask = async || {
            let mut ssh = Command::new("ssh");
            Ok(Arc::new(resolved(ssh.args(["-F", "none", "-G", "--", "localhost"])).await?))
        };
        self.defaults.get_or_try_init(ask).await.cloned()
    }
}

/// The key exchanges to offer, unless somebody said which, given those that ssh offers by itself.
fn preferred_kex(defaults: &Resolved) -> Option<String> {
    let offered = defaults.get("kexalgorithms").unwrap_or_default();
    let wanted = ["mlkem768x25519-sha256", "curve25519-sha256", "curve25519-sha256@libssh.org"];
    let wanted: Vec<_> = wanted.into_iter().filter(|kex| offered.split(',').any(|it| it == *kex)).collect();
    (!wanted.is_empty()).then(|| format!("^{}", wanted.join(",")))
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
        let run_directory = directory.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(run_directory).map_err(failed)?;
        private::check_directory(run_directory).map_err(failed)?;
        private::make_directory(&directory).map_err(failed)?;
        let files = Files::in_directory(&directory);
        let key = keys::obtain(&files.key, &format!("tsunami-{run}")).map_err(failed)?;
        if self.prepared(run).is_some() {
            return Ok(key);
        }
        let options = remembered(&files, &self.options).map_err(failed)?;
        let unfit = |error: Unfit| SessionError::new(SessionErrorKind::Local, error.to_string());
        options.check().map_err(unfit)?;
        let defaults = self.defaults().await?;
        let kex = options.kex.clone().or_else(|| preferred_kex(&defaults));
        let main = config::main_config(&options, &files, kex.as_deref()).map_err(unfit)?;
        replace(&files.config, |_| main).map_err(failed)?;
        for file in [&files.hosts, &files.known_hosts] {
            private::open_appending(file).and_then(|_| private::check(file)).map_err(failed)?;
        }
        let janitor = Janitor::start(&socket_directories(&directory));
        let janitor = janitor.map_err(|error| local("cannot make a directory for control sockets", error))?;
        let ssh = RunSsh {
            run: run.clone(),
            files,
            options,
            defaults,
            jump: OnceCell::new(),
            jump_written: OnceCell::new(),
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
            self.note_connected(machine)?;
            let until = machine.expires.unwrap_or_else(SystemTime::now);
            session.keep_until(directory, until).await?;
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
                return Err(ssh.explain(machine, error, deadline).await);
            }
            tracing::debug!(machine = machine.name(), %error, "not connected yet");
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        };
        Ok(SshSession::new(ssh, machine, master))
    }

    /// Notes that something is about to be put on a machine that existed before the run.
    fn note_connected(&self, machine: &Machine) -> Result<(), SessionError> {
        let ssh = self.prepared(&machine.run).ok_or_else(|| not_prepared(&machine.run))?;
        let path = ssh.files.connected(&machine.name());
        private::write(&path, b"").map_err(|error| local(format!("cannot write {}", path.display()), error))
    }

    /// Whether the run ever came so far as to put something on a machine that existed before it.
    pub(crate) fn was_connected(&self, root: &Path, machine: &Machine) -> bool {
        let directory = root.join(machine.run.as_str()).join("ssh");
        Files::in_directory(&directory).connected(&machine.name()).exists()
    }

    /// The name or address that ssh would connect to for a host.
    pub(crate) async fn host_name(&self, host: &HostAddress) -> Result<String, SessionError> {
        let resolved = resolve(&self.options, host, self.options.user.as_deref(), true).await?;
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
        let options = self.way(machine, deadline).await?;
        self.start(&machine.name(), &options, deadline).await
    }

    /// What stands before the config's settings for a connection to a machine.
    async fn way(&self, machine: &Machine, deadline: Instant) -> Result<Vec<Setting>, SessionError> {
        let unfit = |error: Unfit| error.of(&machine.name());
        let mut options = Vec::new();
        if let Some((host, port)) = config::endpoint(machine) {
            // What the config says of the name may be about its predecessor again: another process, which fetches
            // files from that, has written it.
            options.extend(config::destination(&host, port).map_err(unfit)?);
        }
        if self.options.jump.is_some() {
            let jump = self.jump.get_or_try_init(|| self.start(JUMP, &[], deadline)).await?;
            // One connection to the jump host serves all.
            let proxy = CommandLine::through(JUMP, &self.files.config, Some(jump.socket()));
            options.push(Setting::proxy(proxy.map_err(unfit)?));
        }
        Ok(options)
    }

    async fn start(
        &self,
        alias: &str,
        options: &[Setting],
        deadline: Instant,
    ) -> Result<Master, SessionError> {
        let (socket, group) = self.socket()?;
        let alias = Word::alias(alias).map_err(|error| error.of(alias))?;
        Master::start(&self.files.config, &alias, socket, group, options, deadline).await
    }

    /// A name of its own in the directory of control sockets, and the process group of those who use it.
    fn socket(&self) -> Result<(PathBuf, i32), SessionError> {
        let number = self.next_socket.fetch_add(1, Ordering::Relaxed);
        match &*self.janitor.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(janitor) => Ok((janitor.directory().join(number.to_string()), janitor.group())),
            None => Err(SessionError::new(SessionErrorKind::Lost, "the run is over")),
        }
    }

    /// Writes down how to reach a machine. Returns the address and port to probe, unless the way is not a
    /// direct one.
    async fn route(&self, machine: &Machine) -> Result<Option<(String, u16)>, SessionError> {
        let name = machine.name();
        machine.check().map_err(|error| SessionError::new(SessionErrorKind::Local, error.to_string()))?;
        let unfit = |error: Unfit| error.of(&name);
        if let Some(jump) = &self.options.jump {
            let write = async || self.write_jumps(jump, Some(JUMP), &mut { JUMPS_LIMIT }).await.map(drop);
            self.jump_written.get_or_try_init(write).await?;
        }
        let (entry, probe) = match &machine.login.host_key {
            Some(key) => {
                let probe = config::endpoint(machine).ok_or_else(|| {
                    SessionError::new(SessionErrorKind::Connect, format!("{name} has no address"))
                })?;
                let line = config::known_host(machine, key).map_err(unfit)?;
                self.write(|| put(&self.files.known_hosts, &format!("{name} "), &line))?;
                let entry = Entry::of_machine(machine, &self.options, &self.files);
                (entry.map_err(unfit)?, Some(probe))
            }
            None => {
                let login = &machine.login;
                let host = HostAddress {
                    user: login.user.clone(),
                    host: login.host.clone().unwrap_or_default(),
                    port: login.port,
                };
                let resolved = resolve(&self.options, &host, self.options.user.as_deref(), true).await?;
                let through = match (&self.options.jump, resolved.jumps()) {
                    (Some(_), _) => Some(JUMP.to_owned()),
                    (None, Some(jumps)) => Some(self.write_jumps(jumps, None, &mut { JUMPS_LIMIT }).await?),
                    (None, None) => None,
                };
                let entry = Entry::of_host(
                    &name,
                    &resolved,
                    &self.defaults,
                    through.as_deref(),
                    &self.options,
                    &self.files,
                );
                let host = resolved.get("hostname").unwrap_or_default().to_owned();
                let port = resolved.get("port").and_then(|port| port.parse().ok()).unwrap_or(22);
                (entry.map_err(unfit)?, (!resolved.is_proxied()).then_some((host, port)))
            }
        };
        self.write(|| put(&self.files.hosts, &entry.head(), &entry.to_string()))?;
        Ok(probe.filter(|_| self.options.jump.is_none()))
    }

    /// Writes down how to reach jump hosts, the first as the user reaches it and each other one through the one
    /// before, and returns the last one's alias. At most `left` of them.
    async fn write_jumps(
        &self,
        list: &str,
        last: Option<&str>,
        left: &mut usize,
    ) -> Result<String, SessionError> {
        let unfit = |error: Unfit| error.of(JUMP);
        let mut through: Option<String> = None;
        let hosts = jump_hosts(list).map_err(unfit)?;
        for (number, host) in (1..).zip(&hosts) {
            *left = left.checked_sub(1).ok_or_else(|| {
                let message = format!("more than {JUMPS_LIMIT} jump hosts: {}", tsunami_core::shown(list));
                SessionError::new(SessionErrorKind::Local, message)
            })?;
            // A key that was given is for hosts that were named beside it, not for what the user's ssh_config names.
            let resolved = resolve(&self.options, host, None, last.is_some()).await?;
            if through.is_none()
                && let Some(jumps) = resolved.jumps()
            {
                through = Some(Box::pin(self.write_jumps(jumps, None, left)).await?);
            }
            let alias = match last.filter(|_| number == hosts.len()) {
                Some(alias) => alias.to_owned(),
                None => {
                    let mut hasher = DefaultHasher::new();
                    (host.to_string(), &through).hash(&mut hasher);
                    format!("{JUMP}-{:016x}", hasher.finish())
                }
            };
            let entry = Entry::of_host(
                &alias,
                &resolved,
                &self.defaults,
                through.as_deref(),
                &self.options,
                &self.files,
            );
            let entry = entry.map_err(unfit)?;
            self.write(|| put(&self.files.hosts, &entry.head(), &entry.to_string()))?;
            through = Some(alias);
        }
        through.ok_or_else(|| SessionError::new(SessionErrorKind::Local, "no jump host is named"))
    }

    fn write(&self, write: impl FnOnce() -> io::Result<()>) -> Result<(), SessionError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        write().map_err(|error| local(format!("cannot write beside {}", self.files.config.display()), error))
    }

    /// Adds to an error what the user can do about it.
    async fn explain(&self, machine: &Machine, error: SessionError, deadline: Instant) -> SessionError {
        if error.kind != SessionErrorKind::HostKey {
            return error;
        }
        let is_jump = self.options.jump.is_some() && self.jump.get().is_none();
        if machine.login.host_key.is_some() && !is_jump {
            return error;
        }
        let name = if is_jump { JUMP.to_owned() } else { machine.name() };
        if error.message.contains("REVOKED HOST KEY") {
            return error.help("the key that the host showed is marked as revoked: do not connect");
        }
        if error.message.contains("IDENTIFICATION HAS CHANGED") {
            return error.help(
                "the host's key is not the known one: if that is expected, remove the old key with \
                 `ssh-keygen -R`, else do not connect",
            );
        }
        let way = if is_jump { Ok(Vec::new()) } else { self.way(machine, deadline).await };
        let shown = match way {
            Ok(way) => self.shown_key(&name, way).await,
            Err(_) => None,
        };
        match shown {
            Some((fingerprint, line)) => error.help(format!(
                "{name} showed the key {fingerprint}. If it is the right one, add this line to your \
                 known_hosts, or pass --accept-new-hosts:\n  {line}"
            )),
            None => error,
        }
    }

    /// The key that a host shows to those who come the same way, as a fingerprint and as a line of known_hosts.
    /// Nothing but the user's name is shown to the host.
    async fn shown_key(&self, alias: &str, way: Vec<Setting>) -> Option<(String, String)> {
        let (place, group) = self.socket().ok()?;
        let known = place.with_extension("known");
        private::write(&known, b"").ok()?;
        let mut options = vec![
            Setting::new("UserKnownHostsFile", Word::path("path", &known).ok()?),
            Setting::new("StrictHostKeyChecking", Word::ours("accept-new")),
            Setting::new("PreferredAuthentications", Word::ours("none")),
        ];
        options.extend(way);
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(&self.files.config).args(arguments(&options)).args([alias, "true"]);
        ssh.env("SHELL", "/bin/sh").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut ssh = ssh.kill_on_drop(true).process_group(group).spawn().ok()?;
        let _ = timeout(SHOWING_TIMEOUT, ssh.wait()).await;
        let text = String::from_utf8(private::read(&known).ok()?).ok()?;
        let line = text.lines().next()?;
        let key = PublicKey::from_openssh(line.split_once(' ')?.1).ok()?;
        Some((key.fingerprint(Default::default()).to_string(), line.to_owned()))
    }
}

/// The options that the run began with; these, if it begins now.
fn remembered(files: &Files, options: &SshOptions) -> io::Result<SshOptions> {
    match private::read(&files.options) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            private::write(&files.options, &serde_json::to_vec_pretty(options)?)?;
            Ok(options.clone())
        }
        Err(error) => Err(error),
    }
}

/// Asks ssh what it would do to reach a host that existed before the run, as `user` if nobody else is named for it,
/// and with the options' key if that is meant for it.
async fn resolve(
    options: &SshOptions,
    host: &HostAddress,
    user: Option<&str>,
    with_key: bool,
) -> Result<Resolved, SessionError> {
    // What comes from a run's directory has not been read as an address yet.
    let odd = |_| {
        SessionError::new(SessionErrorKind::Local, format!("`{}` names no host", host.host.escape_debug()))
    };
    host.to_string().parse::<HostAddress>().map_err(odd)?;
    let mut command = Command::new("ssh");
    command.arg("-G");
    if let Some(config) = &options.config {
        // It may name programs.
        private::check_chosen(config)
            .map_err(|error| local(format!("ssh_config {} is refused", config.display()), error))?;
        command.arg("-F").arg(config);
    }
    if let Some(user) = host.user.as_deref().or(user) {
        command.args(["-l", user]);
    }
    if let Some(port) = host.port {
        command.args(["-p", &port.to_string()]);
    }
    if let Some(key) = options.key.as_ref().filter(|_| with_key) {
        command.arg("-i").arg(key);
    }
    resolved(command.arg("--").arg(&host.host)).await
}

/// What `ssh -G` says.
async fn resolved(ssh: &mut Command) -> Result<Resolved, SessionError> {
    let output = ssh.stdin(Stdio::null()).output().await.map_err(|error| cannot_run_ssh(&error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(SessionError::new(SessionErrorKind::Local, said));
    }
    Ok(Resolved::parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Where control sockets may go, as templates: below `preferred` if that path is short enough.
fn socket_directories(preferred: &Path) -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let elsewhere = runtime.into_iter().chain([std::env::temp_dir(), PathBuf::from("/tmp")]);
    let elsewhere = elsewhere.filter(|place| private::check_place(place).is_ok());
    let elsewhere = elsewhere.map(|place| place.join("tsunami-XXXXXX"));
    let short = |template: &PathBuf| template.as_os_str().len() + "/NNNNN".len() <= SOCKET_PATH;
    std::iter::once(preferred.join("ctl-XXXXXX")).chain(elsewhere).filter(short).collect()
}

/// Puts an entry, whose further lines are indented, into a file: in place of the one that begins with `key`.
fn put(path: &Path, key: &str, entry: &str) -> io::Result<()> {
    replace(path, |present| {
        let (mut old, mut others) = (String::new(), String::new());
        let mut is_old = false;
        for line in present.split_inclusive('\n') {
            if !line.starts_with(' ') {
                is_old = line.starts_with(key);
            }
            if is_old { &mut old } else { &mut others }.push_str(line);
        }
        if old == entry { present.to_owned() } else { others + entry }
    })
}

/// Replaces a file as a whole by what is made of it, so that an ssh that reads it meanwhile sees the one or the other.
/// What stays the same is not written.
fn replace(path: &Path, change: impl FnOnce(&str) -> String) -> io::Result<()> {
    // Other processes may be at it, in the same directory.
    let directory = fs::File::open(path.parent().unwrap_or(Path::new(".")))?;
    directory.lock()?;
    let present = match private::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        present => Some(String::from_utf8_lossy(&present?).into_owned()),
    };
    let changed = change(present.as_deref().unwrap_or_default());
    if present.as_ref() == Some(&changed) { Ok(()) } else { private::write(path, changed.as_bytes()) }
}

fn not_prepared(run: &RunId) -> SessionError {
    SessionError::new(SessionErrorKind::Local, format!("run {run} was not prepared"))
}

fn local(message: impl Into<String>, error: io::Error) -> SessionError {
    SessionError::new(SessionErrorKind::Local, message).source(error)
}
