//! Connections to the machines of runs.

mod entries;
mod explain;
mod routes;

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tsunami_core::{Connector, Login, Machine, RunId, Session, SessionError, SessionErrorKind, private};

use crate::blocking::{Together, blocking};
use crate::config::{self, CommandLine, Entry, Files, JUMP, Resolved, Setting, SshOptions, Unfit, Word};
use crate::hosts::HostAddress;
use crate::janitor::Janitor;
use crate::limits::LAST_LOOK_TIMEOUT;
use crate::pool::Parked;
use crate::resolver::{self, Resolver};
use crate::session::SshSession;
use crate::transport::openssh::master::Master;
use crate::transport::{ConnectError, Reason, Transport, TransportKind};
use crate::{keys, probe, proxy};
use entries::{Unwritten, lock, replace};
use explain::helped;

/// How much time a last attempt is worth: a pause that would take all that is left is cut so that there is another one.
const SHORTEST_LAST_ATTEMPT: Duration = Duration::from_secs(1);

/// A control socket's path may be this long: the system allows some 107 bytes, and ssh appends 17 while it
/// makes the socket.
const SOCKET_PATH_BYTES: usize = 88;

/// Makes [`Session`]s over SSH.
///
/// A run has an ssh_config of its own in its private directory, with the run's key, its pinned host keys, and
/// one alias a machine; `ssh -F` with that file reaches the machines as tsunami does. It holds the options that the run
/// began with: another process that takes up the run goes by those.
///
/// One connector serves any number of runs at once. [`finish`](Connector::finish) lets go of one; what is dropped without
/// that ends with the connector.
///
/// ```
/// use tsunami_ssh::{SshConnector, SshOptions, TransportKind};
///
/// let options = SshOptions::default().user("ubuntu").transport(TransportKind::InProcess);
/// let connector = SshConnector::new(options);
/// # let _ = connector;
/// ```
#[derive(Debug, Default)]
pub struct SshConnector {
    options: SshOptions,
    /// Whether a port that refuses is an answer: else it may be that of a machine that boots.
    believes_refusals: bool,
    runs: Mutex<HashMap<RunId, Arc<RunSsh>>>,
    /// One run is prepared once, whoever asks for it at the same time.
    preparing: tokio::sync::Mutex<()>,
    /// Held by whatever makes files of a run, which goes on where whoever prepares it gives up.
    making: Arc<tokio::sync::Mutex<()>>,
    defaults: OnceCell<Arc<Resolved>>,
    resolver: Arc<Resolver>,
}

/// What is shared by the connections of a run in this process.
#[derive(Debug)]
pub(crate) struct RunSsh {
    files: Files,
    options: SshOptions,
    /// What ssh does without any configuration, once somebody has asked.
    defaults: OnceCell<Arc<Resolved>>,
    resolver: Arc<Resolver>,
    /// What the run's ssh_config says about hosts that existed before it.
    entries: Mutex<HashMap<String, Entry>>,
    jump: OnceCell<Master>,
    /// Done once the way through the jump host is written down.
    jump_written: OnceCell<()>,
    next_socket: AtomicU32,
    /// Entries for files of the run.
    unwritten: Together<Unwritten>,
    /// Connections of closed sessions to machines that existed before the run, which teardown visits once
    /// more.
    parked: Mutex<HashMap<String, Parked>>,
    /// Ends all connections of this process's own once the run is finished, whoever still holds a session.
    over: CancellationToken,
    /// Gone once the run is finished, whoever still holds a session.
    janitor: Mutex<Option<Janitor>>,
}

/// The ssh_config that a run keeps in its directory. Fails if another user may have written it, or what it
/// names.
pub fn run_config(run_directory: &Path) -> io::Result<PathBuf> {
    let directory = run_directory.join("ssh");
    private::check_run(run_directory)?;
    private::check_subdirectory(&directory)?;
    let files = Files::in_directory(&directory);
    for file in [&files.config, &files.hosts, &files.known_hosts, &files.key] {
        private::check(file)?;
    }
    match private::check(&files.proxy) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(files.config),
    }
}

/// The text of [`run_config`] for other programs: what they forward (`ssh -L`, `-R`, `-D`) is forwarded. Blocks, and fails
/// as that does, or where it can't be read.
pub fn run_config_for_others(run_directory: &Path) -> io::Result<String> {
    // The line clears what the command line asks for, too. No other configuration is read, and what is taken over from the
    // user's has no forwards.
    Ok(std::fs::read_to_string(run_config(run_directory)?)?.replace("  ClearAllForwardings yes\n", ""))
}

impl SshConnector {
    /// Connects with these options.
    pub fn new(options: SshOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// The same, where a port that refuses is not waited for.
    #[cfg(feature = "experiment")]
    pub(crate) fn believing_refusals(mut self) -> Self {
        self.believes_refusals = true;
        self
    }

    fn prepared(&self, run: &RunId) -> Option<Arc<RunSsh>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).get(run).cloned()
    }

    /// What ssh does without any configuration.
    async fn defaults(&self) -> Result<Arc<Resolved>, SessionError> {
        self.defaults.get_or_try_init(ask_defaults).await.cloned()
    }
}

pub(crate) async fn ask_defaults() -> Result<Arc<Resolved>, SessionError> {
    let mut ssh = Command::new("ssh");
    // Changes nothing, but is refused by an ssh that is too old to read a run's ssh_config. Better now than when machines are
    // up.
    ssh.args(["-F", "none", "-o", "ProxyJump=none", "-G", "--", "localhost"]);
    let (defaults, _) = resolver::ask(&mut ssh).await.map_err(|error| {
        match error.message.contains("Bad configuration option") {
            true => error.help("the OpenSSH client is too old: tsunami needs 7.3 or later"),
            false => error,
        }
    })?;
    Ok(Arc::new(defaults))
}

/// The key exchanges to offer, unless somebody said which, given those that ssh offers by itself.
pub(crate) fn preferred_kex(defaults: &Resolved) -> Option<String> {
    let offered = defaults.get("kexalgorithms").unwrap_or_default();
    let wanted = ["mlkem768x25519-sha256", "curve25519-sha256", "curve25519-sha256@libssh.org"];
    let is_wanted = |kex: &&str| wanted.contains(kex);
    let first = wanted.into_iter().filter(|kex| offered.split(',').any(|it| it == *kex));
    // `^` would say the same, but not to OpenSSH before 8.1.
    let all: Vec<_> = first.chain(offered.split(',').filter(|kex| !is_wanted(kex))).collect();
    offered.split(',').any(|kex| is_wanted(&kex)).then(|| all.join(","))
}

#[async_trait]
impl Connector for SshConnector {
    async fn prepare(&self, run: &RunId, directory: &Path) -> Result<String, SessionError> {
        let directory = directory.join("ssh");
        let failed = |error| local(format!("cannot write to {}", directory.display()), error);
        if let Some(odd) = odd_in_a_path(&directory) {
            let message = format!(
                "ssh cannot be given the path {}: it contains `{}`",
                directory.display(),
                odd.escape_debug()
            );
            return Err(SessionError::new(SessionErrorKind::Local, message)
                .help("set XDG_STATE_HOME to a directory with a plainer name"));
        }
        let _one_at_a_time = self.preparing.lock().await;
        let files = Files::in_directory(&directory);
        let (place, key, comment) = (directory.clone(), files.key.clone(), format!("tsunami-{run}"));
        let making = self.making.clone().lock_owned().await;
        let make = move || {
            let _making = making;
            let run_directory = place.parent().unwrap_or(Path::new("/"));
            DirBuilder::new().recursive(true).mode(0o700).create(run_directory)?;
            private::check_run(run_directory)?;
            private::make_directory(&place)?;
            // Whoever gave up waiting may have left another one at it.
            let _one_at_a_time = lock(&place)?;
            keys::obtain(&key, &comment)
        };
        let key = blocking(make).await.map_err(failed)?;
        if self.prepared(run).is_some() {
            return Ok(key);
        }
        let unread = |error| local(format!("cannot read or write {}", files.options.display()), error);
        let (known, options) = (files.clone(), self.options.clone());
        let options = blocking(move || remembered(&known, &options)).await.map_err(unread)?;
        let unfit = |error: Unfit| SessionError::new(SessionErrorKind::Local, error.to_string());
        options.check().map_err(unfit)?;
        options.transport.check()?;
        let defaults = OnceCell::new();
        let kex = match (&options.kex, options.transport) {
            (Some(kex), _) => Some(kex.clone()),
            // Machines of the run's own are reached without any ssh, which may be a program that isn't here.
            (None, TransportKind::InProcess) => None,
            (None, TransportKind::OpenSsh) => {
                let known = self.defaults().await?;
                defaults.set(known.clone()).ok();
                preferred_kex(&known)
            }
        };
        let main = config::main_config(&options, &files, kex.as_deref()).map_err(unfit)?;
        let proxy = options.proxy.as_deref().map(proxy::script);
        let (write, sockets) = (files.clone(), directory.clone());
        let making = self.making.clone().lock_owned().await;
        let write = move || {
            let _making = making;
            replace(&write.config, |_| main)?;
            proxy.map_or(Ok(()), |script| replace(&write.proxy, |_| script))?;
            let files = [&write.hosts, &write.known_hosts];
            files.into_iter().try_for_each(|file| {
                private::open_appending(file)?;
                private::check(file)
            })
        };
        blocking(write).await.map_err(failed)?;
        let making = self.making.clone().lock_owned().await;
        let start = move || {
            let _making = making;
            Janitor::start(&socket_directories(&sockets))
        };
        let janitor = blocking(start).await;
        let janitor = janitor.map_err(|error| local("cannot make a directory for control sockets", error))?;
        let ssh = RunSsh {
            files,
            options,
            defaults,
            resolver: self.resolver.clone(),
            entries: Mutex::default(),
            jump: OnceCell::new(),
            jump_written: OnceCell::new(),
            next_socket: AtomicU32::new(0),
            unwritten: Together::default(),
            parked: Mutex::default(),
            over: CancellationToken::new(),
            janitor: Mutex::new(Some(janitor)),
        };
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).insert(run.clone(), Arc::new(ssh));
        Ok(key)
    }

    async fn connect(&self, machine: &Machine, deadline: Instant) -> Result<Box<dyn Session>, SessionError> {
        let session = self.open(machine, deadline).await?;
        if machine.login.directory.is_some() {
            // A host of somebody's may be anything.
            let met = timeout_at(deadline, session.meet()).await;
            let late = |_| {
                SessionError::new(SessionErrorKind::Connect, "logged in, and then no answer from its shell")
            };
            met.map_err(late).flatten()?;
        }
        Ok(Box::new(session))
    }

    async fn resolve(&self, login: &Login) -> Result<String, SessionError> {
        self.host_name(&HostAddress::of(login)).await
    }

    async fn finish(&self, run: &RunId) {
        let ssh = self.runs.lock().unwrap_or_else(PoisonError::into_inner).remove(run);
        if let Some(ssh) = ssh {
            ssh.parked.lock().unwrap_or_else(PoisonError::into_inner).clear();
            ssh.over.cancel();
            let janitor = ssh.janitor.lock().unwrap_or_else(PoisonError::into_inner).take();
            // It waits for a process. Where no thread is to be had, the janitor ends all the same.
            let _ = spawn_blocking(move || drop(janitor)).await;
        }
        // Who removes the run's directory next must not find it made again.
        drop(self.making.lock().await);
    }
}

impl SshConnector {
    async fn open(&self, machine: &Machine, deadline: Instant) -> Result<SshSession, SessionError> {
        let ssh = self.prepared(&machine.run).ok_or_else(|| not_prepared(&machine.run))?;
        if let Some(parked) = ssh.unpark(&machine.name()) {
            return Ok(SshSession::resume(ssh, machine, parked));
        }
        let route = ssh.route(machine).await?;
        if self.believes_refusals
            && let Some((host, port)) = &route
            && probe::is_refused(host, *port).await
        {
            let seen = format!("{host} port {port}: the connection is refused: no sshd listens there");
            return Err(SessionError::new(SessionErrorKind::Connect, seen));
        }
        let transport = ssh.transport(machine);
        let (mut probe, cheap) = if transport.is_cheap() { (None, route) } else { (route, None) };
        let answering = async |probe: &mut Option<(String, u16)>| match probe.take() {
            Some((host, port)) => probe::until_answering(&host, port, deadline)
                .await
                .map(|()| Some(Instant::now()))
                .map_err(|seen| {
                    let reason = if seen.ends_with(probe::NOT_SSH) { Reason::NotSsh } else { Reason::Other };
                    let error = SessionError::new(SessionErrorKind::Connect, seen);
                    helped(machine, ConnectError::new(reason, error))
                }),
            None => Ok(None),
        };
        // What costs little is tried at once, but not so often that it would find out by itself when sshd begins.
        let mut begins = pin!(
            async {
                match &cheap {
                    Some((host, port)) => probe::until_it_begins(host, *port).await,
                    None => std::future::pending().await,
                }
            }
            .fuse()
        );
        // A machine of the run's own is young: its login key may come later than sshd, its host key later than
        // another one. It is asked again, and never logged in to before it shows the right key.
        let is_young = machine.login.directory.is_none() && machine.login.host_key.is_some();
        let mut answered = if is_young { answering(&mut probe).await? } else { None };
        // What has a process for each attempt is asked less often.
        let pauses = || if ssh.options.proxy.is_some() { proxy::PAUSES } else { transport.pauses() };
        let mut wait = pauses();
        let mut before = None;
        let connection = loop {
            // An attempt that runs out of time does not tell whether anybody is there at all.
            let look = probe.as_ref().map(|_| LAST_LOOK_TIMEOUT.min((deadline - Instant::now()) / 4));
            let begun = Instant::now();
            let mut attempt = transport.connect(deadline - look.unwrap_or_default());
            let connected = tokio::select! {
                connected = &mut attempt => connected,
                // It was begun when nobody answered, and would wait for long.
                silent = &mut begins => if begun < silent { continue } else { attempt.await },
            };
            let error = match (connected, before.take()) {
                (Ok(connection), _) => break connection,
                // An attempt that runs out of time tells less than one that came to its end.
                (Err(_), Some(before)) if Instant::now() >= deadline => before,
                (Err(error), _) => error,
            };
            let hopeless = match error.error.kind {
                SessionErrorKind::Connect => error.reason == Reason::LoginRefused && !is_young,
                SessionErrorKind::HostKey => !is_young || ssh.options.jump.is_some(),
                // They may be the proxy's words, which had another reason.
                _ => error.reason != Reason::Configuration || ssh.options.proxy.is_none(),
            };
            let (mut pause, left) = (wait.wait(), deadline - Instant::now());
            let is_too_long = pause >= left;
            if hopeless || (is_too_long && left < SHORTEST_LAST_ATTEMPT) {
                return Err(ssh.explain(machine, error, deadline).await);
            }
            if is_too_long {
                // It gives up no attempt that there is time for.
                pause = left / 2;
            }
            tracing::debug!(machine = machine.name(), error = %error.error, "not connected yet");
            before = Some(error);
            tokio::select! {
                () = sleep(pause) => {}
                _ = &mut begins => wait = pauses(),
            }
            // A host that is there lets in at once. Where it isn't, a look costs less than another attempt.
            let seen = answering(&mut probe).await?;
            answered = answered.or(seen);
        };
        let answered = answered.or_else(|| transport.answered());
        Ok(SshSession::new(ssh, machine, connection, answered))
    }

    /// The name or address that ssh would connect to for a host.
    async fn host_name(&self, host: &HostAddress) -> Result<String, SessionError> {
        let resolved = self.resolver.resolve(&self.options, host, self.options.user.as_deref(), true).await?;
        Ok(resolved.get("hostname").unwrap_or(&host.host).to_owned())
    }
}

impl RunSsh {
    /// What connects to a machine.
    pub(crate) fn transport(self: &Arc<Self>, machine: &Machine) -> Arc<dyn Transport> {
        self.options.transport.to(machine, self)
    }

    /// Whether a machine can hand on to others what it was given.
    pub(crate) fn spreads(&self, machine: &Machine) -> bool {
        let address = machine.addresses.private.as_deref().map(str::parse::<IpAddr>);
        self.options.spread.unwrap_or_else(|| !matches!(address, Some(Ok(address)) if address.is_loopback()))
    }

    /// Keeps a connection for whoever opens the next session to the machine.
    pub(crate) fn park(&self, alias: &str, parked: Parked) {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).insert(alias.to_owned(), parked);
    }

    fn unpark(&self, alias: &str) -> Option<Parked> {
        let parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner).remove(alias);
        parked.filter(Parked::is_alive)
    }

    /// Starts a master for a machine, or for one more connection to it.
    pub(crate) async fn master(&self, machine: &Machine, deadline: Instant) -> Result<Master, ConnectError> {
        let options = self.way(machine, deadline).await?;
        self.start(&machine.name(), &options, deadline).await
    }

    /// All that the run's ssh_config says for a connection to a machine, in the order in which it counts, and what its
    /// known_hosts says beyond the files that are named there.
    #[cfg(feature = "in-process")]
    pub(crate) async fn settings(
        &self,
        machine: &Machine,
        deadline: Instant,
    ) -> Result<(Vec<Setting>, Option<String>), ConnectError> {
        let name = machine.name();
        let unfit = |error: Unfit| error.of(&name);
        let mut settings = self.way(machine, deadline).await?;
        settings.extend(config::always(&self.options));
        let known = match &machine.login.host_key {
            Some(key) => {
                let entry = Entry::of_machine(machine, &self.options, &self.files).map_err(unfit)?;
                settings.extend_from_slice(entry.settings());
                Some(config::known_host(machine, key).map_err(unfit)?)
            }
            None => {
                let entries = || self.entries.lock().unwrap_or_else(PoisonError::into_inner);
                if !entries().contains_key(&name) {
                    self.route(machine).await?;
                }
                settings.extend(entries().get(&name).into_iter().flat_map(Entry::settings).cloned());
                None
            }
        };
        settings.extend(config::otherwise(&self.files, self.options.kex.as_deref()).map_err(unfit)?);
        Ok((settings, known))
    }

    /// Cancelled once the run is over.
    #[cfg(feature = "in-process")]
    pub(crate) fn over(&self) -> &CancellationToken {
        &self.over
    }

    /// Notes the key of a host that was accepted, as ssh does.
    #[cfg(feature = "in-process")]
    pub(crate) async fn accept(&self, name_and_type: String, line: String) -> Result<(), SessionError> {
        self.put(&self.files.known_hosts, name_and_type, line);
        self.written().await
    }

    /// What stands before the config's settings for a connection to a machine.
    async fn way(&self, machine: &Machine, deadline: Instant) -> Result<Vec<Setting>, ConnectError> {
        let unfit = |error: Unfit| error.of(&machine.name());
        let mut options = Vec::new();
        if let Some((host, port)) = config::endpoint(machine) {
            // What the config says of the name may be about its predecessor again: another process, which
            // fetches files from that, has written it.
            options.extend(config::destination(&host, port).map_err(unfit)?);
            options.extend(config::by_proxy(&self.options, &self.files, machine.id.as_str()).map_err(unfit)?);
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
    ) -> Result<Master, ConnectError> {
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

    /// The directory of control sockets, which the janitor looks into when the controller is gone.
    #[cfg(feature = "in-process")]
    pub(crate) fn sockets(&self) -> Result<PathBuf, SessionError> {
        match &*self.janitor.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(janitor) => Ok(janitor.directory().to_owned()),
            None => Err(SessionError::new(SessionErrorKind::Lost, "the run is over")),
        }
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

/// Where control sockets may go, as templates: below `preferred` if that path is short enough.
pub(crate) fn socket_directories(preferred: &Path) -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let elsewhere = runtime.into_iter().chain([std::env::temp_dir(), PathBuf::from("/tmp")]);
    let elsewhere = elsewhere.filter(|place| private::check_place(place).is_ok());
    let elsewhere = elsewhere.map(|place| place.join("tsunami-XXXXXX"));
    let short = |template: &PathBuf| template.as_os_str().len() + "/NNNNN".len() <= SOCKET_PATH_BYTES;
    let plain = |template: &PathBuf| odd_in_a_path(template).is_none();
    std::iter::once(preferred.join("ctl-XXXXXX")).chain(elsewhere).filter(short).filter(plain).collect()
}

/// What ssh would not take for itself in a path of ours.
pub(crate) fn odd_in_a_path(path: &Path) -> Option<char> {
    path.to_string_lossy().chars().find(|c| c.is_control() || "%\"\\$*?[]\u{fffd}".contains(*c))
}

fn not_prepared(run: &RunId) -> SessionError {
    SessionError::new(SessionErrorKind::Local, format!("run {run} was not prepared"))
}

fn local(message: impl Into<String>, error: io::Error) -> SessionError {
    SessionError::new(SessionErrorKind::Local, message).source(error)
}

#[cfg(test)]
mod tests {
    use super::entries::put_all;
    use super::*;
    use crate::config::tests::hostile;
    use crate::limits::JUMPS_LIMIT;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use tempfile::TempDir;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn run() -> RunId {
        "20260101-000000-aaaa".parse().unwrap()
    }

    #[test]
    fn the_key_exchange_that_is_offered_first_is_the_best_that_ssh_knows() {
        for (offered, preferred) in [
            (
                "mlkem768x25519-sha256,sntrup761x25519-sha512,curve25519-sha256,curve25519-sha256@libssh.org,\
                 ecdh-sha2-nistp256",
                Some(
                    "mlkem768x25519-sha256,curve25519-sha256,curve25519-sha256@libssh.org,\
                      sntrup761x25519-sha512,ecdh-sha2-nistp256",
                ),
            ),
            (
                "sntrup761x25519-sha512@openssh.com,curve25519-sha256,curve25519-sha256@libssh.org",
                Some("curve25519-sha256,curve25519-sha256@libssh.org,sntrup761x25519-sha512@openssh.com"),
            ),
            ("ecdh-sha2-nistp256", None),
        ] {
            let defaults = Resolved::parse(&format!("port 22\nkexalgorithms {offered}\n"));
            assert_eq!(preferred_kex(&defaults).as_deref(), preferred);
        }
    }

    async fn prepared(options: SshOptions, root: &TempDir) -> (SshConnector, PathBuf) {
        let connector = SshConnector::new(options);
        let directory = root.path().join(run().as_str());
        connector.prepare(&run(), &directory).await.unwrap();
        (connector, directory)
    }

    #[tokio::test]
    async fn what_a_dropped_preparation_still_makes_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join(run().as_str());
        private::make_directory(&directory).unwrap();
        private::make_directory(&directory.join("ssh")).unwrap();
        let held = lock(&directory.join("ssh")).unwrap();
        let connector = SshConnector::default();
        let moment = Duration::from_millis(300);
        assert!(tokio::time::timeout(moment, connector.prepare(&run(), &directory)).await.is_err());
        let run = run();
        let mut finished = pin!(connector.finish(&run));
        assert!(tokio::time::timeout(moment, &mut finished).await.is_err());
        drop(held);
        finished.await;
        assert!(directory.join("ssh/id_ed25519.pub").exists() || directory.join("ssh/id_ed25519").exists());
        fs::remove_dir_all(&directory).unwrap();
        tokio::time::sleep(moment).await;
        assert!(!directory.exists());
    }

    #[tokio::test]
    async fn whoever_reads_a_runs_configuration_sees_all_of_it() {
        let root = tempfile::tempdir().unwrap();
        let (_first, directory) = prepared(SshOptions::default(), &root).await;
        let config = run_config(&directory).unwrap();
        let for_others = directory.join("for-others");
        fs::write(&for_others, run_config_for_others(&directory).unwrap()).unwrap();
        for (config, forwards) in [(&config, false), (&for_others, true)] {
            let mut ssh = Command::new("ssh");
            let ask = ssh.arg("-F").arg(config).args(["-L", "1234:localhost:80", "-G", "a-0"]);
            let (resolved, _) = resolver::ask(ask).await.unwrap();
            assert_eq!(resolved.get("localforward").is_some(), forwards, "{config:?}");
        }
        let state =
            |path: &Path| fs::metadata(path).map(|it| (it.ino(), it.mtime(), it.mtime_nsec())).unwrap();
        let (before, text) = (state(&config), fs::read_to_string(&config).unwrap());
        let (_second, _) = prepared(SshOptions::default(), &root).await;
        assert_eq!(state(&config), before, "another process has nothing to change");

        let hosts = directory.join("ssh/hosts");
        let put = |key: &str, entry: &str| {
            let (file, key, entry) = (hosts.clone(), key.to_owned(), entry.to_owned());
            put_all(&hosts, &[Unwritten { file, key, entry }]).unwrap();
        };
        put("Host a-0\n", "Host a-0\n  Port 1\n");
        for (key, entry) in [("Host b-0\n", "Host b-0\n  Port 2\n"), ("Host a-0\n", "Host a-0\n  Port 3\n")] {
            let mut reader = fs::File::open(&hosts).unwrap();
            let whole = fs::read_to_string(&hosts).unwrap();
            put(key, entry);
            let mut read = String::new();
            io::Read::read_to_string(&mut reader, &mut read).unwrap();
            assert_eq!(read, whole, "what was opened before stays what it was");
        }
        assert_eq!(fs::read_to_string(&hosts).unwrap(), "Host b-0\n  Port 2\nHost a-0\n  Port 3\n");
        let before = state(&hosts);
        put("Host a-0\n", "Host a-0\n  Port 3\n");
        assert_eq!(state(&hosts), before);

        // What an older version wrote, or half wrote, is replaced.
        private::write(&config, b"Host *\n  Inclu").unwrap();
        let (_third, _) = prepared(SshOptions::default(), &root).await;
        assert_eq!(fs::read_to_string(&config).unwrap(), text);
    }

    #[tokio::test]
    async fn a_run_that_is_prepared_by_many_at_once_has_one_key_and_one_janitor() {
        // Below a longer path the sockets would be elsewhere.
        let root = tempfile::tempdir_in("/tmp").unwrap();
        let run = run();
        let directory = root.path().join(run.as_str());
        let connector = SshConnector::default();
        // Somebody who gives up does not take back what is under way.
        let given_up = connector.prepare(&run, &directory);
        assert!(tokio::time::timeout(std::time::Duration::ZERO, given_up).await.is_err());
        let prepared = (0..8).map(|_| connector.prepare(&run, &directory));
        let keys = futures_util::future::try_join_all(prepared).await.unwrap();
        let kept = keys::obtain(&directory.join("ssh/id_ed25519"), "").unwrap();
        assert!(keys.iter().all(|key| *key == kept), "{keys:?}");
        let sockets = || {
            let files = fs::read_dir(directory.join("ssh")).unwrap().map(|file| file.unwrap().file_name());
            files.filter(|name| name.to_string_lossy().starts_with("ctl-")).count()
        };
        assert_eq!(sockets(), 1);
        connector.finish(&run).await;
        assert_eq!(sockets(), 0);
    }

    #[tokio::test]
    async fn whoever_waits_for_an_entry_finds_it_or_hears_why_not() {
        let root = tempfile::tempdir().unwrap();
        let (connector, directory) = prepared(SshOptions::default(), &root).await;
        let ssh = connector.prepared(&run()).unwrap();
        let write = |number: u32| {
            let (ssh, hosts) = (ssh.clone(), directory.join("ssh/hosts"));
            async move {
                ssh.put(&hosts, format!("Host a-{number}\n"), format!("Host a-{number}\n  Port 1\n"));
                ssh.written().await.map(|()| fs::read_to_string(&hosts).unwrap())
            }
        };
        let tasks: Vec<_> = (0..100).map(|number| tokio::spawn(write(number))).collect();
        for (number, task) in (0..).zip(tasks) {
            let seen = task.await.unwrap().unwrap();
            assert!(seen.contains(&format!("Host a-{number}\n")), "{seen}");
        }
        fs::remove_file(directory.join("ssh/hosts")).unwrap();
        fs::create_dir(directory.join("ssh/hosts")).unwrap();
        let hosts = directory.join("ssh/hosts");
        ssh.put(&hosts, "Host a-200\n".to_owned(), "Host a-200\n".to_owned());
        for _ in 0..2 {
            ssh.written().await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_runs_directory_that_others_may_write_is_not_used() {
        let root = tempfile::tempdir().unwrap();
        let (_connector, directory) = prepared(SshOptions::default(), &root).await;
        for path in [directory.clone(), directory.join("ssh"), directory.join("ssh/options.json")] {
            let mode = fs::metadata(&path).unwrap().mode();
            set_mode(&path, mode | 0o022);
            let error = SshConnector::default().prepare(&run(), &directory).await.unwrap_err();
            let chain = tsunami_core::ErrorChain(&error).to_string();
            assert!(chain.contains("may be written by others"), "{}: {chain}", path.display());
            set_mode(&path, mode);
        }
        for name in ["config", "hosts", "known_hosts", "id_ed25519"] {
            set_mode(&directory.join("ssh").join(name), 0o620);
            assert!(run_config(&directory).is_err(), "{name}");
            set_mode(&directory.join("ssh").join(name), 0o600);
        }
        run_config(&directory).unwrap();
    }

    #[tokio::test]
    async fn a_remembered_configuration_that_others_may_write_runs_nothing() {
        let root = tempfile::tempdir().unwrap();
        let open = root.path().join("open");
        fs::create_dir(&open).unwrap();
        let (theirs, ran) = (open.join("ssh_config"), root.path().join("ran"));
        fs::write(&theirs, format!("Match exec \"touch {}\"\n  User x\n", ran.display())).unwrap();
        set_mode(&theirs, 0o644);
        let options = SshOptions { config: Some(theirs.clone()), ..SshOptions::default() };
        let (connector, _) = prepared(options, &root).await;
        let host: HostAddress = "box".parse().unwrap();
        for (path, mode) in [(&open, 0o777), (&theirs, 0o646)] {
            let before = fs::metadata(path).unwrap().mode();
            set_mode(path, mode);
            let error = connector.host_name(&host).await.unwrap_err();
            assert!(error.message.contains(theirs.to_str().unwrap()), "{error}");
            assert!(!ran.exists());
            set_mode(path, before);
        }
        connector.host_name(&host).await.unwrap();
        assert!(ran.exists(), "a user's own configuration is used");
    }

    #[cfg(not(feature = "in-process"))]
    #[tokio::test]
    async fn a_transport_that_is_not_built_in_is_named() {
        let root = tempfile::tempdir().unwrap();
        let connector = SshConnector::new(SshOptions::default().transport(TransportKind::InProcess));
        let error = connector.prepare(&run(), &root.path().join(run().as_str())).await.unwrap_err();
        assert!(error.message.contains("in-process") && error.help.is_some(), "{error:?}");
    }

    #[tokio::test]
    async fn jump_hosts_that_lead_to_each_other_are_an_error() {
        let root = tempfile::tempdir().unwrap();
        let theirs = root.path().join("ssh_config");
        fs::write(&theirs, "Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n").unwrap();
        let options = SshOptions { config: Some(theirs), ..SshOptions::default() };
        let (connector, _) = prepared(options, &root).await;
        let ssh = connector.prepared(&run()).unwrap();
        let error = ssh.write_jumps("a", None, &mut { JUMPS_LIMIT }).await.unwrap_err();
        assert!(error.message.contains("more than 8 jump hosts"), "{error}");
    }

    #[tokio::test]
    async fn several_jump_hosts_are_passed_in_their_order() {
        let root = tempfile::tempdir().unwrap();
        let options = SshOptions { jump: Some("a@one,[::1]:2222,two".to_owned()), ..SshOptions::default() };
        let jump = options.jump.clone().unwrap();
        let (connector, directory) = prepared(options, &root).await;
        let ssh = connector.prepared(&run()).unwrap();
        let last = ssh.write_jumps(&jump, Some(JUMP), &mut { JUMPS_LIMIT }).await.unwrap();
        ssh.written().await.unwrap();
        let (mut alias, mut passed) = (last, Vec::new());
        loop {
            let mut ask = Command::new("ssh");
            let entry =
                resolver::ask(ask.arg("-F").arg(run_config(&directory).unwrap()).args(["-G", &alias]));
            let entry = entry.await.unwrap().0;
            passed.push(format!("{}:{}", entry.get("hostname").unwrap(), entry.get("port").unwrap()));
            let Some(through) = entry.get("proxycommand") else { break };
            alias = through.rsplit_once(' ').unwrap().1.to_owned();
        }
        assert_eq!(passed, ["two:22", "::1:2222", "one:22"]);
    }

    proptest! {
        #![proptest_config(crate::fuzz::cases(32))]

        #[test]
        fn options_that_make_no_sense_are_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..64), jump in hostile(), user in hostile(),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let files = Files::in_directory(directory.path());
            let options = SshOptions { jump: Some(jump), user: Some(user), ..SshOptions::default() };
            for bytes in [bytes, serde_json::to_vec(&options).unwrap()] {
                private::write(&files.options, &bytes).unwrap();
                if let Ok(read) = remembered(&files, &SshOptions::default())
                    && read.check().is_ok()
                {
                    let odd = |text: &str| {
                        // A machine's account ends in a `$`.
                        let text = text.strip_suffix('$').unwrap_or(text);
                        text.contains(|c: char| c.is_control() || c.is_whitespace() || "$`'\"".contains(c))
                    };
                    prop_assert!(!read.jump.as_deref().is_some_and(odd) && !read.user.as_deref().is_some_and(odd));
                }
            }
        }
    }
}
