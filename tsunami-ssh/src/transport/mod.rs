//! How machines are reached: connections, and channels on them.
//!
//! A transport knows how to connect to one machine; a connection opens channels, each of which runs one line that the
//! login shell reads. [`Pool`](crate::pool::Pool) alone uses them: it counts channels and decides when another
//! connection is worth it. A further transport is a file here, and a kind with its word and what makes it.

#[cfg(feature = "in-process")]
pub(crate) mod in_process;
pub(crate) mod openssh;

use std::fmt::{self, Debug};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio::time::Instant;
use tsunami_core::{Backoff, ByteStream, Machine, SessionError, SessionErrorKind};

#[cfg(feature = "in-process")]
use self::in_process::InProcessTransport;
use self::openssh::OpensshTransport;
use crate::connector::RunSsh;

/// How sessions are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TransportKind {
    /// One `ssh` master process a machine, all commands multiplexed over it.
    #[default]
    OpenSsh,
    /// Connections of this process's own, without a process for each: a machine costs the controller about a tenth of
    /// what a master does. Logs in with ed25519 and ECDSA keys, and with all that an agent has; what a host's
    /// ssh_config asks for beyond that is refused by name. Key exchange is mlkem768x25519, then curve25519; sntrup761 it
    /// hasn't, nor RSA host keys. It takes the feature `in-process`, which is on by default: a run that asks for it
    /// without that can't be prepared.
    InProcess,
}

impl TransportKind {
    /// All kinds, by their words in a file.
    #[cfg(feature = "experiment")]
    pub(crate) const WORDS: [(&str, Self); 2] = [("openssh", Self::OpenSsh), ("in-process", Self::InProcess)];

    /// Whether this program was built with it.
    pub(crate) fn check(self) -> Result<(), SessionError> {
        if self == Self::InProcess && !cfg!(feature = "in-process") {
            let message = "this program was built without the transport \"in-process\"";
            return Err(SessionError::new(SessionErrorKind::Local, message)
                .help("build tsunami-ssh with its feature `in-process`, or use the transport \"openssh\""));
        }
        Ok(())
    }

    /// What connects to a machine of a run. No run is prepared with a kind that isn't [here](Self::check).
    pub(crate) fn to(self, machine: &Machine, ssh: &Arc<RunSsh>) -> Arc<dyn Transport> {
        match self {
            #[cfg(feature = "in-process")]
            Self::InProcess => Arc::new(InProcessTransport::new(ssh.clone(), machine.clone())),
            _ => Arc::new(OpensshTransport::new(ssh.clone(), machine.clone())),
        }
    }
}

/// What connects to one machine.
#[async_trait]
pub(crate) trait Transport: Debug + Send + Sync {
    /// Opens a connection, beside those that there are. May be dropped at any await; nothing stays behind.
    async fn connect(&self, deadline: Instant) -> Result<Arc<dyn Connection>, ConnectError>;

    /// When the machine was first seen to answer an attempt, where an attempt tells.
    fn answered(&self) -> Option<Instant> {
        None
    }

    /// Whether an attempt costs so little that it is itself the way to find out whether sshd answers yet.
    fn is_cheap(&self) -> bool {
        false
    }

    /// Whether this side takes no more on a channel than sshd does before it has answered.
    fn is_narrow(&self) -> bool {
        true
    }

    /// The pauses between two attempts at a machine that is not ready yet.
    fn pauses(&self) -> Backoff {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(2))
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) struct ConnectError {
    pub(crate) error: SessionError,
    /// What calls for an answer of its own.
    pub(crate) reason: Reason,
}

/// What can be the matter with a connection that is not to be had, beyond the kind of its error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reason {
    #[default]
    Other,
    /// The machine answered, and let nobody in who could show what we have.
    LoginRefused,
    /// What answers is no SSH server.
    NotSsh,
    /// Words that ssh says of its configuration, or of what two sides can't agree on. A proxy may have said them.
    Configuration,
    /// The machine shows a key that nobody has told of. A transport that has seen it says which.
    UnknownKey(Option<ShownKey>),
    /// The machine shows another key than the known one.
    ChangedKey,
    /// The machine shows a key that is marked as revoked.
    RevokedKey,
}

/// A host key that somebody has to judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShownKey {
    pub(crate) fingerprint: String,
    /// What would stand in known_hosts.
    pub(crate) line: String,
}

impl ConnectError {
    pub(crate) fn new(reason: Reason, error: SessionError) -> Self {
        Self { error, reason }
    }
}

impl From<SessionError> for ConnectError {
    fn from(error: SessionError) -> Self {
        Self { error, reason: Reason::Other }
    }
}

impl From<ConnectError> for SessionError {
    fn from(error: ConnectError) -> Self {
        error.error
    }
}

/// A connection to a machine. Dropping the last handle of it closes it.
#[async_trait]
pub(crate) trait Connection: Debug + Send + Sync {
    /// Opens a channel that runs a line. It reads `stdin`, and writes to `stdout` unless that is `None`: then the
    /// channel has what it writes, as it always has standard error.
    ///
    /// An error of the kind [`Remote`](tsunami_core::SessionErrorKind::Remote) says that the machine refuses, which is
    /// a sign of life. May be dropped at any await; the channel is closed then.
    async fn open(
        &self,
        line: &str,
        stdin: OwnedFd,
        stdout: Option<OwnedFd>,
    ) -> Result<Channel, SessionError>;

    /// Connects to a port as the machine would. An error of the kind [`Remote`](tsunami_core::SessionErrorKind::Remote) says
    /// that the machine can't. May be dropped at any await; nothing stays behind.
    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, SessionError>;

    /// Whether the connection has ended.
    fn is_closed(&self) -> bool;

    /// Why the connection has ended, as an error of the kind [`Lost`](tsunami_core::SessionErrorKind::Lost).
    fn reason(&self) -> SessionError;

    /// Ends the connection, whoever still holds it and whatever runs on its channels.
    fn close(&self);
}

/// The error of a port to which a machine does not connect. Why not, a master keeps to itself.
fn not_dialed(host: &str, port: u16) -> SessionError {
    SessionError::new(
        SessionErrorKind::Remote,
        format!("nothing that it reaches listens on {host} port {port}"),
    )
}

/// What comes from a channel.
pub(crate) type Output = Box<dyn AsyncRead + Send + Unpin>;

/// A channel of a connection. Dropping it closes it, which does not end what it runs.
pub(crate) struct Channel {
    /// What was written to standard output, unless somebody else takes that.
    pub(crate) stdout: Option<Output>,
    /// What was written to standard error.
    pub(crate) stderr: Option<Output>,
    /// Waits for the end of what it runs, and says whether that succeeded. It can't tell a failure from a signal.
    pub(crate) end: BoxFuture<'static, io::Result<bool>>,
}

impl Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A machine that is this computer: every channel is a process here.

    use std::process::Stdio;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::process::Command;
    use tokio::sync::Semaphore;
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// What a fake machine allows.
    #[derive(Debug)]
    pub(crate) struct Fake {
        /// Channels on one connection.
        pub(crate) channels: usize,
        /// Connections at a time.
        pub(crate) connections: Arc<Semaphore>,
        /// How long a connection takes.
        pub(crate) delay: Duration,
        /// Connections that were asked for.
        pub(crate) asked: AtomicUsize,
    }

    impl Fake {
        pub(crate) fn with(channels: usize, connections: usize) -> Self {
            Self {
                channels,
                connections: Arc::new(Semaphore::new(connections)),
                delay: Duration::ZERO,
                asked: AtomicUsize::new(0),
            }
        }

        pub(crate) async fn connected(&self) -> Arc<dyn Connection> {
            self.connect(Instant::now() + Duration::from_secs(5)).await.unwrap()
        }
    }

    #[async_trait]
    impl Transport for Fake {
        async fn connect(&self, deadline: Instant) -> Result<Arc<dyn Connection>, ConnectError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.delay).await;
            let refused = || SessionError::new(SessionErrorKind::Connect, "too many connections");
            let allowed = tokio::time::timeout_at(deadline, self.connections.clone().acquire_owned()).await;
            let allowed = allowed.map_err(|_| refused())?.map_err(|_| refused())?;
            let closed = CancellationToken::new();
            let ended = closed.clone();
            tokio::spawn(async move {
                ended.cancelled().await;
                drop(allowed);
            });
            Ok(Arc::new(FakeConnection { channels: Arc::new(Semaphore::new(self.channels)), closed }))
        }
    }

    #[derive(Debug)]
    struct FakeConnection {
        channels: Arc<Semaphore>,
        closed: CancellationToken,
    }

    impl Drop for FakeConnection {
        fn drop(&mut self) {
            self.closed.cancel();
        }
    }

    #[async_trait]
    impl Connection for FakeConnection {
        async fn open(
            &self,
            line: &str,
            stdin: OwnedFd,
            stdout: Option<OwnedFd>,
        ) -> Result<Channel, SessionError> {
            if self.is_closed() {
                return Err(self.reason());
            }
            let refused = |_| SessionError::new(SessionErrorKind::Remote, "no more channels");
            let place = self.channels.clone().try_acquire_owned().map_err(refused)?;
            let mut shell = Command::new("sh");
            shell.args(["-c", line]).stdin(stdin).stderr(Stdio::piped()).process_group(0);
            shell.stdout(stdout.map_or_else(Stdio::piped, Stdio::from));
            let mut shell = shell
                .spawn()
                .map_err(|error| SessionError::new(SessionErrorKind::Remote, "no process").source(error))?;
            let output = |stream| -> Output { Box::new(stream) };
            let stdout = shell.stdout.take().map(|stdout| -> Output { Box::new(stdout) });
            let stderr = shell.stderr.take().map(output);
            // As at an sshd, the place is taken until the process has ended.
            let ended = tokio::spawn(async move {
                let ended = shell.wait().await;
                drop(place);
                ended.map(|status| status.success())
            });
            let closed = self.closed.clone();
            let end = Box::pin(async move {
                let ended = closed.run_until_cancelled(ended).await;
                ended.and_then(Result::ok).unwrap_or_else(|| Err(io::ErrorKind::BrokenPipe.into()))
            });
            Ok(Channel { stdout, stderr, end })
        }

        async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, SessionError> {
            let refused = |error| SessionError::new(SessionErrorKind::Remote, "no").source(error);
            Ok(Box::new(tokio::net::TcpStream::connect((host, port)).await.map_err(refused)?))
        }

        fn is_closed(&self) -> bool {
            self.closed.is_cancelled()
        }

        fn reason(&self) -> SessionError {
            SessionError::new(SessionErrorKind::Lost, "the connection is closed")
        }

        fn close(&self) {
            self.closed.cancel();
        }
    }
}
