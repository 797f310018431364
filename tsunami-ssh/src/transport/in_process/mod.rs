//! The transport in this process: a connection is a task and a socket, by the `russh` crate.
//!
//! It goes by the run's ssh_config, as `ssh` does: by the same settings, before they are written down
//! ([`RunSsh::settings`]). What those ask for and only OpenSSH can do is an error that says so.

mod channel;
mod known_hosts;
mod login;
mod stream;
mod target;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use russh::client::{self, ChannelOpenHandle, DisconnectReason, Handle, Msg};
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use russh::{Preferred, SshId, compression, kex};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tsunami_core::{Backoff, ByteStream, Machine, SessionError, SessionErrorKind, shown};

use self::known_hosts::{KnownKeys, Standing};
use self::stream::{Proxy, Stream, Way};
use self::target::Target;
use super::openssh::master::{self, CapturedOutput};
use super::{Channel, ConnectError, Connection, Reason, ShownKey, Transport, not_dialed};
use crate::connector::RunSsh;
use crate::probe;

/// How long an address may take to answer: what boots answers nobody, and is asked again.
const TCP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection that refuses a channel may take to be gone, if it is ending.
const ENDING_TIMEOUT: Duration = Duration::from_millis(100);

/// How much may be on its way on one channel: at a sixth of a second there and back, some 50 MiB/s. It is memory only
/// as far as somebody does not read.
const WINDOW_BYTES: u32 = 16 << 20;

/// The messages of a channel that wait for the task that hands them on.
const CHANNEL_MESSAGES: usize = 16;

/// Connects to a machine from within this process.
#[derive(Debug)]
pub(crate) struct InProcessTransport {
    ssh: Arc<RunSsh>,
    machine: Machine,
    answered: Answered,
}

/// When the other side first said something, on any of some connections.
type Answered = Arc<OnceLock<Instant>>;

impl InProcessTransport {
    pub(crate) fn new(ssh: Arc<RunSsh>, machine: Machine) -> Self {
        Self { ssh, machine, answered: Answered::default() }
    }
}

#[async_trait]
impl Transport for InProcessTransport {
    async fn connect(&self, deadline: Instant) -> Result<Arc<dyn Connection>, ConnectError> {
        let (settings, pinned) = self.ssh.settings(&self.machine, deadline).await?;
        let mut target = Target::of(&settings)?;
        if target.proxy.is_some() {
            target.groups = Some(self.ssh.sockets()?);
            // What it has said is told when the time is over.
            let left = deadline.saturating_duration_since(Instant::now());
            target.connect_timeout = target.connect_timeout.min(left.saturating_sub(ENDING_TIMEOUT));
        }
        let known = known_keys(&target, pinned).await?;
        let accept = target.accepts_new.then(|| self.ssh.clone());
        let end = self.ssh.over().child_token();
        if end.is_cancelled() {
            return Err(SessionError::new(SessionErrorKind::Lost, "the run is over").into());
        }
        let connected =
            timeout_at(deadline, connect(target, known, accept, end, self.answered.clone())).await;
        let connection =
            connected.unwrap_or_else(|_| Err(late("it did not let anybody in in time").into()))?;
        Ok(Arc::new(connection))
    }

    fn answered(&self) -> Option<Instant> {
        self.answered.get().copied()
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn is_narrow(&self) -> bool {
        false
    }

    fn pauses(&self) -> Backoff {
        Backoff::new(Duration::from_millis(20), Duration::from_secs(1))
    }
}

/// What is known of the host's keys: what the run pins, or what stands in files.
async fn known_keys(target: &Target, pinned: Option<String>) -> Result<KnownKeys, ConnectError> {
    let mut known = KnownKeys::default();
    let name = target.known_name();
    if let Some(line) = pinned {
        known.add(&name, &line);
        return Ok(known);
    }
    let mut texts = Vec::new();
    for file in &target.known_hosts {
        match tokio::fs::read(file).await {
            Ok(bytes) => texts.push(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let message = format!("cannot read {}", file.display());
                return Err(SessionError::new(SessionErrorKind::Local, message).source(error).into());
            }
        }
    }
    texts.iter().for_each(|text| known.add(&name, text));
    // As ssh does: a host's key is trusted at another port, too.
    if target.key_name.is_none() && target.port != 22 {
        let name = known_hosts::name(&target.host, 22);
        texts.iter().for_each(|text| known.add_elsewhere(&name, text));
    }
    Ok(known)
}

/// Connects and logs in. A key that nobody has told of goes to `accept`, if there is one. `end` ends it; so does being
/// dropped, at any time.
async fn connect(
    target: Target,
    known: KnownKeys,
    accept: Option<Arc<RunSsh>>,
    end: CancellationToken,
    answered: Answered,
) -> Result<InProcessConnection, ConnectError> {
    let guard = end.clone().drop_guard();
    let (way, proxy) = match &target.proxy {
        Some(line) => {
            let started = Proxy::start(line, target.groups.clone()).map_err(|error| {
                SessionError::new(SessionErrorKind::Local, "cannot run the ProxyCommand").source(error)
            })?;
            (Way::Proxy(Box::new(started.0)), Some(started.1))
        }
        None => {
            let reached = timeout(TCP_TIMEOUT, stream::tcp(&target)).await;
            let reached = reached.map_err(|_| late("no answer")).and_then(|reached| {
                reached.map_err(|error| SessionError::new(SessionErrorKind::Connect, error.to_string()))
            });
            (Way::Tcp(reached.map_err(|error| at(&target, error))?), None)
        }
    };
    let patience =
        target.keepalive * u32::try_from(target.keepalive_limit).unwrap_or(u32::MAX).saturating_add(1);
    let stream = Stream::new(way, end.clone(), patience, answered);
    let outcome = Arc::new(Mutex::new(Outcome::default()));
    let config = Arc::new(config(&target, &known));
    let check = HostKeyCheck {
        known,
        name: target.known_name(),
        principal: target.key_name.as_ref().unwrap_or(&target.host).to_ascii_lowercase(),
        accept,
        outcome: outcome.clone(),
        _ended: end.clone().drop_guard(),
    };
    let shaking_hands = timeout(target.connect_timeout, client::connect_stream(config, stream, check)).await;
    let mut handle = match shaking_hands {
        Ok(Ok(handle)) => handle,
        Ok(Err(error)) => return Err(no_connection(&target, error, &outcome, proxy).await),
        Err(_) => {
            let said = proxy.map(|proxy| proxy.text()).unwrap_or_default();
            let lines = [&said, "no answer in time"].join("\n");
            return Err(match (said.is_empty(), &target.proxy) {
                (false, _) => master::explain(&lines),
                (true, Some(_)) => late("no answer in time, and not a word").into(),
                (true, None) => at(&target, late("connected, then no answer")).into(),
            });
        }
    };
    login::log_in(&mut handle, &target).await.map_err(|ConnectError { error, reason }| {
        let said = taken(&outcome).lost.take();
        match said.filter(|_| reason == Reason::Other) {
            Some(said) => SessionError::new(error.kind, format!("{}: {said}", error.message)).into(),
            None => ConnectError { error, reason },
        }
    })?;
    let nearest = Arc::new(AtomicU64::new(u64::MAX));
    Ok(InProcessConnection { handle: Arc::new(handle), end, outcome, nearest, _guard: guard })
}

fn config(target: &Target, known: &KnownKeys) -> client::Config {
    let mut kex = target.algorithms.kex.clone();
    kex.extend([kex::EXTENSION_SUPPORT_AS_CLIENT, kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT]);
    let mut host_key = target.algorithms.host_key.clone();
    known.prefer(&mut host_key);
    client::Config {
        client_id: SshId::Standard(Cow::Borrowed(concat!("SSH-2.0-tsunami_", env!("CARGO_PKG_VERSION")))),
        limits: target.limits.clone(),
        window_size: WINDOW_BYTES,
        channel_buffer_size: CHANNEL_MESSAGES,
        keepalive_interval: Some(target.keepalive),
        keepalive_max: target.keepalive_limit,
        preferred: Preferred {
            kex: kex.into(),
            key: host_key.clone().into(),
            cipher: target.algorithms.cipher.clone().into(),
            mac: target.algorithms.mac.clone().into(),
            compression: Cow::Borrowed(&[compression::NONE]),
            host_key_certificates: if known.takes_certificates() {
                host_key.clone().into()
            } else {
                Cow::Borrowed(&[])
            },
        },
        ..client::Config::default()
    }
}

/// What there is to say of a connection that is no more, or never was.
#[derive(Debug, Default)]
struct Outcome {
    /// What is the matter with the host's key.
    key: Option<ConnectError>,
    lost: Option<String>,
    #[cfg(test)]
    exchanges: Vec<String>,
}

fn taken(outcome: &Mutex<Outcome>) -> std::sync::MutexGuard<'_, Outcome> {
    outcome.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why there is no connection to log in on.
async fn no_connection(
    target: &Target,
    error: russh::Error,
    outcome: &Mutex<Outcome>,
    proxy: Option<CapturedOutput>,
) -> ConnectError {
    if let Some(key) = taken(outcome).key.take() {
        return key;
    }
    let said = match proxy {
        Some(proxy) => {
            // It may end before its last words are here.
            tokio::time::sleep(ENDING_TIMEOUT).await;
            proxy.text()
        }
        None => String::new(),
    };
    if !said.is_empty() {
        // What leads there may be an ssh.
        return master::explain(&said);
    }
    if target.proxy.is_some()
        && matches!(error, russh::Error::Disconnect | russh::Error::HUP | russh::Error::IO(_))
    {
        return late("it ended without a word").into();
    }
    if let Some(lost) = taken(outcome).lost.take() {
        return at(target, SessionError::new(SessionErrorKind::Connect, lost)).into();
    }
    let (kind, message) = match error {
        // What two sides cannot agree on today they cannot agree on in a minute.
        russh::Error::NoCommonAlgo { kind, ours, theirs } => {
            let theirs = shown(&theirs.join(","));
            let message =
                format!("no {kind:?} algorithm in common: it offers {theirs}, we {}", ours.join(","));
            let error = SessionError::new(SessionErrorKind::Local, message);
            return at(target, error.help("the transport over OpenSSH may know one")).into();
        }
        russh::Error::Version => {
            let error = at(target, SessionError::new(SessionErrorKind::Connect, probe::NOT_SSH));
            return ConnectError::new(Reason::NotSsh, error);
        }
        error => (SessionErrorKind::Connect, format!("connected, then: {}", words(&error))),
    };
    at(target, SessionError::new(kind, message)).into()
}

/// What an error of russh's means.
fn words(error: &russh::Error) -> String {
    match error {
        russh::Error::KeepaliveTimeout => "the machine is silent".to_owned(),
        russh::Error::Disconnect | russh::Error::HUP => "the machine closed the connection".to_owned(),
        russh::Error::IO(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ) =>
        {
            "the machine closed the connection".to_owned()
        }
        error => shown(&error.to_string()),
    }
}

fn late(message: &str) -> SessionError {
    SessionError::new(SessionErrorKind::Connect, message)
}

fn at(target: &Target, error: SessionError) -> SessionError {
    let mut error = error;
    error.message = format!("{} port {}: {}", shown(&target.host), target.port, error.message);
    error
}

/// Judges the host's key, and hears of the connection's end.
pub(super) struct HostKeyCheck {
    known: KnownKeys,
    name: String,
    /// Its name for those who vouch for it.
    principal: String,
    /// Who notes an unknown key.
    accept: Option<Arc<RunSsh>>,
    outcome: Arc<Mutex<Outcome>>,
    /// It goes when the connection's task does.
    _ended: DropGuard,
}

impl HostKeyCheck {
    async fn judge(&self, shown: &PublicKeyOrCertificate) -> Result<(), ConnectError> {
        let unshown = |error: russh::keys::ssh_key::Error| {
            let message = "the machine's key cannot be written down";
            ConnectError::from(SessionError::new(SessionErrorKind::HostKey, message).source(error))
        };
        let refused = |reason, what: &str| {
            let message = format!("{}: {what}", self.name);
            Err(ConnectError::new(reason, SessionError::new(SessionErrorKind::HostKey, message)))
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        match self.known.standing(shown, &self.principal, now) {
            Standing::Known => Ok(()),
            Standing::Revoked => refused(Reason::RevokedKey, "the host showed a revoked key"),
            Standing::Changed => refused(Reason::ChangedKey, "the host's key is not the known one"),
            Standing::BadCertificate => {
                refused(Reason::ChangedKey, "the host's certificate is for another host or another time")
            }
            Standing::Unknown => {
                let key = PublicKey::new(shown.public_key().key_data().clone(), "")
                    .to_openssh()
                    .map_err(unshown)?;
                let line = format!("{} {}", self.name, key.trim());
                let Some(accept) = &self.accept else {
                    let fingerprint = PublicKey::from_openssh(&key).map_err(unshown)?;
                    let fingerprint = fingerprint.fingerprint(Default::default()).to_string();
                    let shown = ShownKey { fingerprint, line };
                    return refused(Reason::UnknownKey(Some(shown)), "the host's key is not known");
                };
                let kind = key.split(' ').next().unwrap_or_default();
                accept.accept(format!("{} {kind} ", self.name), line + "\n").await.map_err(ConnectError::from)
            }
        }
    }
}

impl client::Handler for HostKeyCheck {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let judged = self.judge(shown).await;
        let is_known = judged.is_ok();
        taken(&self.outcome).key = judged.err();
        Ok(is_known)
    }

    async fn kex_done(
        &mut self,
        _: Option<&[u8]>,
        names: &russh::Names,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        tracing::trace!(
            name = self.name,
            kex = names.kex.as_ref(),
            cipher = names.cipher.as_ref(),
            "keys exchanged"
        );
        #[cfg(test)]
        taken(&self.outcome).exchanges.push(names.kex.as_ref().to_owned());
        Ok(())
    }

    async fn disconnected(&mut self, reason: DisconnectReason<russh::Error>) -> Result<(), russh::Error> {
        let said = match reason {
            DisconnectReason::ReceivedDisconnect(said) => {
                format!("the machine said: {}", shown(&said.message))
            }
            DisconnectReason::Error(error) => words(&error),
        };
        taken(&self.outcome).lost.get_or_insert(said);
        Ok(())
    }

    // A machine has no business to open channels here. A handle that is dropped refuses.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: russh::Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: russh::Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: russh::Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: russh::Channel<Msg>,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: russh::Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: russh::Channel<Msg>,
        _: &str,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: russh::Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }
}

/// A connection, which ends when this is dropped, whatever its task is at.
struct InProcessConnection {
    handle: Arc<Handle<HostKeyCheck>>,
    /// Ends it, or says that it has ended.
    end: CancellationToken,
    outcome: Arc<Mutex<Outcome>>,
    /// How long it took to open a channel, in microseconds, at best.
    nearest: Arc<AtomicU64>,
    _guard: DropGuard,
}

impl std::fmt::Debug for InProcessConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InProcessConnection").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

#[async_trait]
impl Connection for InProcessConnection {
    async fn open(
        &self,
        line: &str,
        stdin: OwnedFd,
        stdout: Option<OwnedFd>,
    ) -> Result<Channel, SessionError> {
        let (handle, end, line) = (self.handle.clone(), self.end.clone(), line.to_owned());
        let nearest = self.nearest.clone();
        // In a task, so that a channel that opens after nobody wants it any more is closed.
        let opening = tokio::spawn(async move {
            let open = async {
                let begun = Instant::now();
                let channel = handle.channel_open_session().await?;
                let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                let distance = Duration::from_micros(nearest.fetch_min(took, Ordering::Relaxed).min(took));
                channel::run(channel, distance, &line, stdin, stdout, end.clone()).await
            };
            end.run_until_cancelled(open).await.unwrap_or(Err(russh::Error::Disconnect))
        });
        let error = match opening.await {
            Ok(Ok(channel)) => return Ok(channel),
            Ok(Err(error)) => error,
            Err(error) => {
                return Err(SessionError::new(SessionErrorKind::Local, "the program is ending").source(error));
            }
        };
        match error {
            russh::Error::ChannelOpenFailure(_) => {
                Err(SessionError::new(SessionErrorKind::Remote, "the machine opened no channel")
                    .source(error))
            }
            russh::Error::IO(error) => {
                Err(SessionError::new(SessionErrorKind::Local, "no pipe for a channel").source(error))
            }
            // The connection is ending, and may be about to say why.
            _ => {
                let _ = timeout(ENDING_TIMEOUT, self.end.cancelled()).await;
                Err(self.reason())
            }
        }
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, SessionError> {
        let (handle, end, name) = (self.handle.clone(), self.end.clone(), host.to_owned());
        // As with a channel that runs something.
        let opening = tokio::spawn(async move {
            let open = handle.channel_open_direct_tcpip(name, port.into(), "127.0.0.1", 0);
            let open = async { open.await.map(russh::Channel::into_stream) };
            end.run_until_cancelled(open).await.unwrap_or(Err(russh::Error::Disconnect))
        });
        match opening.await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(russh::Error::ChannelOpenFailure(
                russh::ChannelOpenFailure::AdministrativelyProhibited,
            ))) => {
                let message = "its sshd allows no connections to ports (`AllowTcpForwarding`)";
                Err(SessionError::new(SessionErrorKind::Remote, message))
            }
            Ok(Err(russh::Error::ChannelOpenFailure(_))) => Err(not_dialed(host, port)),
            Ok(Err(_)) => {
                let _ = timeout(ENDING_TIMEOUT, self.end.cancelled()).await;
                Err(self.reason())
            }
            Err(error) => {
                Err(SessionError::new(SessionErrorKind::Local, "the program is ending").source(error))
            }
        }
    }

    fn is_closed(&self) -> bool {
        self.end.is_cancelled() || self.handle.is_closed()
    }

    fn reason(&self) -> SessionError {
        let lost = taken(&self.outcome).lost.clone();
        let lost = lost.unwrap_or_else(|| "it was closed here".to_owned());
        SessionError::new(SessionErrorKind::Lost, format!("the connection is lost; {lost}"))
    }

    fn close(&self) {
        self.end.cancel();
    }
}
