//! What a user can do about a connection that is not to be had.

use std::process::Stdio;

use ssh_key::PublicKey;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::{Instant, timeout_at};
use tsunami_core::{Machine, Remedy, SessionError, SessionErrorKind};

use super::RunSsh;
use crate::config::{JUMP, Setting, Word};
use crate::limits::{HOST_KEY_TIMEOUT, SSH_STDERR_LIMIT};
use crate::transport::openssh::master::arguments;
use crate::transport::{ConnectError, Reason, ShownKey};

impl RunSsh {
    /// Adds to an error what the user can do about it.
    pub(super) async fn explain(
        &self,
        machine: &Machine,
        error: ConnectError,
        deadline: Instant,
    ) -> SessionError {
        let ConnectError { error, reason } = error;
        if error.kind != SessionErrorKind::HostKey {
            let mut error = helped(machine, ConnectError::new(reason, error));
            if let Some(words) = &self.options.proxy {
                let proxy = tsunami_core::shown(&words.join(" "));
                error.message = format!("by way of the proxy `{proxy}`: {}", error.message);
                if error.kind == SessionErrorKind::Connect && error.help.is_none() {
                    error = error.help(
                        "see what the proxy says by itself; where it takes longer, give it more time: \
                         `connect_timeout`",
                    );
                }
            }
            return error;
        }
        let is_jump = self.options.jump.is_some() && self.jump.get().is_none();
        if machine.login.host_key.is_some() && !is_jump {
            let message = "it shows another host key than the run's, and was not logged in to";
            return SessionError::new(SessionErrorKind::HostKey, message);
        }
        let name = if is_jump { JUMP.to_owned() } else { machine.name() };
        let shown = match reason {
            Reason::RevokedKey => {
                return error.help("the key that the host showed is marked as revoked: do not connect");
            }
            Reason::ChangedKey => {
                return error.help(
                    "the host's key is not the known one: if that is expected, remove the old key with \
                     `ssh-keygen -R`, else do not connect",
                );
            }
            Reason::UnknownKey(Some(shown)) => Some(shown),
            Reason::UnknownKey(None)
            | Reason::LoginRefused
            | Reason::NotSsh
            | Reason::Configuration
            | Reason::Other => {
                let way = if is_jump { Ok(Vec::new()) } else { self.way(machine, deadline).await };
                match way {
                    Ok(way) => self.shown_key(&name, way, deadline).await,
                    Err(_) => None,
                }
            }
        };
        match shown {
            Some(ShownKey { fingerprint, line }) => error.remedy(Remedy::TrustNewHosts).help(format!(
                "{name} showed the key {fingerprint}. If it is the right one, add this line to your \
                 known_hosts:\n  {line}"
            )),
            None => error,
        }
    }

    /// The key that a host shows to those who come the same way, as a fingerprint and as a line of known_hosts. The
    /// connection ends with the key exchange: nobody is named to the host, and nothing is logged in to.
    async fn shown_key(&self, alias: &str, way: Vec<Setting>, deadline: Instant) -> Option<ShownKey> {
        /// Tells the name that ssh looks for, and the key that it is shown, which stays unknown.
        const TELL: &str = "KnownHostsCommand=/bin/sh -c 'echo \"$1 $2 $3\" >&2' sh %H %t %K";
        let group = self.socket().ok()?.1;
        let mut options = vec![Setting::new("StrictHostKeyChecking", Word::ours("yes"))];
        options.extend(way);
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(&self.files.config).args(arguments(&options)).args(["-o", TELL, alias, "true"]);
        ssh.env("SHELL", "/bin/sh").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut ssh = ssh.kill_on_drop(true).process_group(group).spawn().ok()?;
        let mut said = Vec::new();
        let read = ssh.stderr.take()?.take(SSH_STDERR_LIMIT as u64);
        // What was said before the time is over may be enough.
        let _ = timeout_at(deadline.min(Instant::now() + HOST_KEY_TIMEOUT), read_all(read, &mut said)).await;
        String::from_utf8_lossy(&said).lines().find_map(|line| {
            let (name, key) = line.split_once(' ')?;
            let key = PublicKey::from_openssh(key).ok()?;
            let line = format!("{name} {}", key.to_openssh().ok()?);
            Some(ShownKey { fingerprint: key.fingerprint(Default::default()).to_string(), line })
        })
    }
}

/// Adds what the user can do where more time would help nobody.
pub(super) fn helped(machine: &Machine, error: ConnectError) -> SessionError {
    let ConnectError { error, reason } = error;
    match reason {
        Reason::LoginRefused if machine.login.directory.is_some() => {
            error.help("it takes none of the keys for this user: name others with `user` and `[ssh] key`")
        }
        // A young machine may get the key later than its sshd.
        Reason::LoginRefused => error.help(
            "it does not take the run's key for this user: name the image's own with `user`, or, where it boots for \
             longer, give it more time: `connect_timeout`",
        ),
        Reason::NotSsh => {
            error.help("something else than sshd listens there: look at the address and the port")
        }
        _ => error,
    }
}

async fn read_all(mut from: impl AsyncRead + Unpin, into: &mut Vec<u8>) {
    // What came before an error is all there is.
    let _ = from.read_to_end(into).await;
}
