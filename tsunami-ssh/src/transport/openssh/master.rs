//! One `ssh` master process: a connection whose channels are used through its control socket.
//!
//! tsunami starts the master itself, in the foreground and as a child, where the `openssh` crate would let it
//! detach: so an abandoned connection attempt is killed, the end of the connection is noticed at once (the
//! process ends), and what ssh had to say is at hand.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tsunami_core::{Backoff, SessionError, SessionErrorKind};

use crate::config::{Setting, Word};
use crate::limits::SSH_STDERR_LIMIT;
use crate::transport::{ConnectError, Reason};

/// The pauses between two looks for the control socket, which ssh makes once it has logged in. They grow with the time
/// that a login takes, so that a thousand that wait for each other are not looked for all the time.
const POLL_SOCKET: Backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(100)).factor(1.05);

/// A connected master. Dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Master {
    socket: PathBuf,
    ended: CancellationToken,
    stderr: CapturedOutput,
    stop: DropGuard,
}

/// What ssh wrote to its standard error, the last of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct CapturedOutput(Arc<Mutex<Vec<u8>>>);

impl CapturedOutput {
    pub(crate) fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).trim().replace("\r\n", "\n")
    }

    pub(crate) async fn listen(self, mut stderr: ChildStderr) {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
            let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            said.extend_from_slice(&buffer[..count]);
            let excess = said.len().saturating_sub(SSH_STDERR_LIMIT);
            said.drain(..excess);
        }
    }
}

impl Master {
    /// Connects to an alias of a config, with a control socket at `socket`, and with these options before
    /// those of the config. The process joins the process group `group`.
    pub(crate) async fn start(
        config: &Path,
        alias: &Word,
        socket: PathBuf,
        group: i32,
        options: &[Setting],
        deadline: Instant,
    ) -> Result<Self, ConnectError> {
        let mut command = Command::new("ssh");
        command.arg("-F").arg(config).args(["-M", "-N", "-T", "-S"]).arg(&socket);
        command.args(arguments(options)).arg(alias.to_string());
        // ssh hands what a connection goes through to the user's shell, which may read it in ways of its own.
        command.env("SHELL", "/bin/sh");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.kill_on_drop(true).process_group(group);
        let mut child = command.spawn().map_err(|error| cannot_run_ssh(&error))?;
        let captured = CapturedOutput::default();
        let stderr = child.stderr.take().map(|stderr| tokio::spawn(captured.clone().listen(stderr)));
        let mut pauses = POLL_SOCKET;
        loop {
            // The socket appears only after authentication. To look takes microseconds: sockets are on this computer.
            if socket.exists() {
                break;
            }
            tokio::select! {
                _ = child.wait() => return Err(explain(&finished(stderr, &captured).await)),
                () = sleep_until(deadline.min(Instant::now() + pauses.wait())) => {}
            }
            if Instant::now() >= deadline {
                let _ = child.kill().await;
                let text = finished(stderr, &captured).await;
                let text = if text.is_empty() { "ssh did not log in in time".to_owned() } else { text };
                return Err(SessionError::new(SessionErrorKind::Connect, text).into());
            }
        }
        let (ended, stop) = (CancellationToken::new(), CancellationToken::new());
        tokio::spawn(watch(child, stop.clone(), ended.clone()));
        Ok(Self { socket, ended, stderr: captured, stop: stop.drop_guard() })
    }

    /// The path of the control socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether the process has ended, and the connection with it.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Resolves when the process has ended.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Ends the process, as dropping the master does.
    pub(crate) fn end(&self) {
        self.stop.token().cancel();
    }

    /// The error of a connection that has ended.
    pub(crate) fn reason(&self) -> SessionError {
        let said = self.stderr.text();
        let said =
            if said.is_empty() { "ssh ended without a word".to_owned() } else { format!("ssh said: {said}") };
        SessionError::new(SessionErrorKind::Lost, format!("the connection is lost; {said}"))
    }
}

/// Waits for the process's end, or brings it about.
async fn watch(mut child: Child, stop: CancellationToken, ended: CancellationToken) {
    tokio::select! {
        _ = child.wait() => {}
        () = stop.cancelled() => {
            let _ = child.kill().await;
        }
    }
    ended.cancel();
}

/// All that ssh said, once it has ended.
async fn finished(listener: Option<JoinHandle<()>>, captured: &CapturedOutput) -> String {
    if let Some(listener) = listener {
        // A proxy command may hold the pipe open.
        let _ = timeout(Duration::from_millis(500), listener).await;
    }
    captured.text()
}

/// Settings as arguments of `ssh`.
pub(crate) fn arguments(options: &[Setting]) -> impl Iterator<Item = String> {
    options.iter().flat_map(|option| ["-o".to_owned(), option.to_string()])
}

pub(crate) fn cannot_run_ssh(error: &std::io::Error) -> SessionError {
    let message = format!("cannot run `ssh`: {error}");
    let told = SessionError::new(SessionErrorKind::Local, message);
    if error.kind() == std::io::ErrorKind::NotFound {
        told.help("install the OpenSSH client: `apt-get install openssh-client`")
    } else if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) {
        told.help("let the process have more open files, some ten for each machine: `ulimit -n 20000`")
    } else {
        told
    }
}

/// What ssh's words mean when it could not log in: here, and nowhere else, they are read.
pub(crate) fn explain(said: &str) -> ConnectError {
    let message = if said.is_empty() { "ssh ended without a word".to_owned() } else { said.to_owned() };
    let means = |kind, reason| ConnectError::new(reason, SessionError::new(kind, message.clone()));
    let signs = [
        ("REVOKED HOST KEY", Reason::RevokedKey),
        ("IDENTIFICATION HAS CHANGED", Reason::ChangedKey),
        ("Host key verification failed", Reason::UnknownKey(None)),
        ("host key is known for", Reason::UnknownKey(None)),
    ];
    if let Some((_, reason)) = signs.into_iter().find(|(sign, _)| said.contains(sign)) {
        return means(SessionErrorKind::HostKey, reason);
    }
    // ssh says by which methods it tried. What it goes through may be denied other things.
    if said.contains("Permission denied (") {
        return means(SessionErrorKind::Connect, Reason::LoginRefused);
    }
    let not_ssh = ["banner line contains invalid characters", "Bad remote protocol version"];
    if not_ssh.iter().any(|sign| said.contains(sign)) {
        return means(SessionErrorKind::Connect, Reason::NotSsh);
    }
    // What two sides cannot agree on today they cannot agree on in a minute.
    let configuration = [
        "Bad configuration option",
        "no such identity",
        "Unsupported",
        "Bad SSH2",
        "keyword",
        "Unable to negotiate",
    ];
    if configuration.iter().any(|sign| said.contains(sign)) {
        return means(SessionErrorKind::Local, Reason::Configuration);
    }
    means(SessionErrorKind::Connect, Reason::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_ssh_that_call_for_an_answer_are_understood() {
        let changed = "@@@@\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key verification failed.";
        let revoked =
            "@       WARNING: REVOKED HOST KEY DETECTED!               @\nHost key verification failed.";
        for (said, kind, reason) in [
            (changed, SessionErrorKind::HostKey, Reason::ChangedKey),
            (revoked, SessionErrorKind::HostKey, Reason::RevokedKey),
            ("Host key verification failed.", SessionErrorKind::HostKey, Reason::UnknownKey(None)),
            ("me@box: Permission denied (publickey).", SessionErrorKind::Connect, Reason::LoginRefused),
            ("Unable to negotiate with ::1 port 22", SessionErrorKind::Local, Reason::Configuration),
            ("way: /run/x: Permission denied", SessionErrorKind::Connect, Reason::Other),
            (
                "kex_exchange_identification: banner line contains invalid characters",
                SessionErrorKind::Connect,
                Reason::NotSsh,
            ),
            ("connect to host box port 22: Connection refused", SessionErrorKind::Connect, Reason::Other),
            ("", SessionErrorKind::Connect, Reason::Other),
        ] {
            let error = explain(said);
            assert_eq!((error.error.kind, error.reason), (kind, reason), "{said}");
        }
    }
}
