//! Logging in with keys: those in files, and those that an agent has.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{self, Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey};
use russh::{AgentAuthError, MethodKind};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::task::spawn_blocking;
use tsunami_core::{SessionError, SessionErrorKind};

use super::HostKeyCheck;
use super::target::{Target, not_here};
use crate::transport::{ConnectError, Reason};

/// Where ssh looks for keys if nobody has said where, of those kinds that can be had from a file here.
const DEFAULT_IDENTITIES: [&str; 2] = [".ssh/id_ecdsa", ".ssh/id_ed25519"];

/// What was found in the place of a key.
enum File {
    Private(Arc<PrivateKey>),
    /// Only its public half could be read, and why.
    Public(PublicKey, String),
    /// Nothing could be read, and why.
    Unusable(String),
}

/// Logs in, with one key after the other as ssh would offer them.
pub(super) async fn log_in(handle: &mut Handle<HostKeyCheck>, target: &Target) -> Result<(), ConnectError> {
    let user = match &target.user {
        Some(user) => user.clone(),
        None => own_name().await?,
    };
    let home = std::env::home_dir().unwrap_or_default();
    let named = target.identities.clone();
    let paths = named.clone().unwrap_or_else(|| DEFAULT_IDENTITIES.map(|name| home.join(name)).to_vec());
    let mut files = Vec::new();
    for path in paths {
        let read = {
            let path = path.clone();
            spawn_blocking(move || read(&path)).await.map_err(io::Error::other).flatten()
        };
        match read {
            Ok(file) => files.push((path, file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => {}
            Err(error) => files.push((path, File::Unusable(error.to_string()))),
        }
    }
    let mut unused = Vec::new();
    let (mut agent, held) = match &target.agent {
        Some(socket) => agent(socket, &mut unused).await,
        None => (None, Vec::new()),
    };
    let mut refused = Refused::default();
    // Those that both name come first, then what else the agent has, then what only files have.
    let mut offered = Vec::new();
    for (_, file) in &files {
        if let Some(key) = file.public()
            && let Some(identity) =
                held.iter().find(|it| is_plain(it) && it.public_key().key_data() == key.key_data())
        {
            offered.push(identity.clone());
        }
    }
    if !target.identities_only {
        let is_new = |it: &&AgentIdentity| {
            !offered.iter().any(|other| is_plain(it) && other.public_key() == it.public_key())
        };
        let others: Vec<_> = held.iter().filter(is_new).cloned().collect();
        offered.extend(others);
    }
    if let Some(agent) = &mut agent {
        for identity in &offered {
            if let Some(answer) = offer(handle, agent, &user, identity, target).await?
                && refused.take(answer)
            {
                return Ok(());
            }
        }
    }
    for (path, file) in files {
        let held = |key: &PublicKey| offered.iter().any(|it| it.public_key().key_data() == key.key_data());
        match file {
            File::Private(key) if held(key.public_key()) || !takes(target, &key.algorithm()) => {}
            File::Private(key) if matches!(key.algorithm(), Algorithm::Rsa { .. } | Algorithm::Dsa) => {
                unused.push(format!(
                    "{}: the in-process transport uses RSA keys only where an agent has them",
                    path.display()
                ));
            }
            File::Private(key) => {
                let key = PrivateKeyWithHashAlg::new(key, None);
                let answer = handle.authenticate_publickey(&user, key).await.map_err(broken_off)?;
                if refused.take(answer) {
                    return Ok(());
                }
            }
            File::Public(key, _) if held(&key) => {}
            File::Public(_, why) | File::Unusable(why) => unused.push(format!("{}: {why}", path.display())),
        }
    }
    if handle.is_closed() {
        return Err(SessionError::new(
            SessionErrorKind::Connect,
            "the machine closed the connection during the login",
        )
        .into());
    }
    Err(refused.error(&user, unused, target))
}

impl File {
    fn public(&self) -> Option<&PublicKey> {
        match self {
            Self::Private(key) => Some(key.public_key()),
            Self::Public(key, _) => Some(key),
            Self::Unusable(_) => None,
        }
    }
}

fn is_plain(identity: &AgentIdentity) -> bool {
    matches!(identity, AgentIdentity::PublicKey { .. })
}

fn read(path: &Path) -> io::Result<File> {
    // An agent may hold the private half, or it has a password, and this tells which key it is.
    let public = |why: String| {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".pub");
        [PathBuf::from(beside), path.to_owned()]
            .iter()
            .find_map(|file| PublicKey::from_openssh(std::fs::read_to_string(file).ok()?.trim()).ok())
            .map(|key| File::Public(key, why))
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return public("only its public half is here".to_owned()).ok_or(error),
    };
    if std::fs::metadata(path)?.permissions().mode() & 0o077 != 0 && text.contains("PRIVATE KEY") {
        let why = "others may read it, so it is not used: `chmod 600`".to_owned();
        return Ok(public(why.clone()).unwrap_or(File::Unusable(why)));
    }
    let why = match keys::decode_secret_key(&text, None) {
        Ok(key) => return Ok(File::Private(Arc::new(key))),
        Err(keys::Error::KeyIsEncrypted) => {
            let why = "it has a password, and no agent holds it: `ssh-add`".to_owned();
            // OpenSSH's own form tells its public half without the password.
            if let Ok(key) = PrivateKey::from_openssh(&text) {
                return Ok(File::Public(key.public_key().clone(), why));
            }
            why
        }
        Err(error) => error.to_string(),
    };
    Ok(public(why.clone()).unwrap_or(File::Unusable(why)))
}

/// An agent, and what it holds.
async fn agent(
    socket: &Path,
    unused: &mut Vec<String>,
) -> (Option<AgentClient<UnixStream>>, Vec<AgentIdentity>) {
    let ask = async {
        let mut agent = AgentClient::connect_uds(socket).await?;
        let held = agent.request_identities().await?;
        Ok::<_, keys::Error>((agent, held))
    };
    match ask.await {
        Ok((agent, held)) => (Some(agent), held),
        Err(error) => {
            unused.push(format!("the agent at {}: {error}", socket.display()));
            (None, Vec::new())
        }
    }
}

/// Whether keys of this kind are to be offered.
fn takes(target: &Target, algorithm: &Algorithm) -> bool {
    let names: &[&str] = match algorithm {
        Algorithm::Rsa { .. } => &["rsa-sha2-512", "rsa-sha2-256"],
        other => &[other.as_str()],
    };
    names.iter().any(|name| target.algorithms.login.iter().any(|it| it == name))
}

/// Offers a key of an agent's. `None` if the agent does not sign with it, or it is of a kind that isn't wanted.
async fn offer(
    handle: &mut Handle<HostKeyCheck>,
    agent: &mut AgentClient<UnixStream>,
    user: &str,
    identity: &AgentIdentity,
    target: &Target,
) -> Result<Option<AuthResult>, ConnectError> {
    let algorithm = identity.public_key().algorithm();
    if !takes(target, &algorithm) {
        return Ok(None);
    }
    let hash = match algorithm {
        Algorithm::Rsa { .. } => match handle.best_supported_rsa_hash().await.map_err(broken_off)? {
            Some(Some(hash)) => Some(hash),
            // It has not said, or knows SHA-1 only, which nobody should use.
            _ => Some(HashAlg::Sha512),
        },
        _ => None,
    };
    let answer = match identity {
        AgentIdentity::PublicKey { key, .. } => {
            handle.authenticate_publickey_with(user, key.clone(), hash, agent).await
        }
        AgentIdentity::Certificate { certificate, .. } => {
            handle.authenticate_certificate_with(user, certificate.clone(), hash, agent).await
        }
    };
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(AgentAuthError::Send(_)) => Err(broken_off("the connection has ended")),
        Err(AgentAuthError::Key(error)) => {
            tracing::debug!(%error, "the agent does not sign");
            Ok(None)
        }
    }
}

/// Refused offers so far.
#[derive(Debug, Default)]
struct Refused {
    offers: usize,
    left: Vec<MethodKind>,
    wants_more: bool,
}

impl Refused {
    /// Returns whether that let us in.
    fn take(&mut self, answer: AuthResult) -> bool {
        match answer {
            AuthResult::Success => true,
            AuthResult::Failure { remaining_methods, partial_success } => {
                self.offers += 1;
                self.left = remaining_methods.iter().copied().collect();
                self.wants_more |= partial_success;
                false
            }
        }
    }

    fn error(self, user: &str, unused: Vec<String>, target: &Target) -> ConnectError {
        if let Some(method) = target.other_logins.first() {
            return not_here(method, "yes").into();
        }
        let user = tsunami_core::shown(user);
        let mut message = format!("{user}@{}: permission denied", tsunami_core::shown(&target.host));
        if !self.left.is_empty() {
            let left: Vec<_> = self.left.iter().map(String::from).collect();
            let _ = write!(message, " ({})", left.join(","));
        }
        if self.wants_more {
            message.push_str(": it wants more than a key");
        }
        for unused in &unused {
            let _ = write!(message, "; {unused}");
        }
        // Where there is nothing to show, this computer is at fault.
        let kind = if self.offers == 0 && !unused.is_empty() {
            SessionErrorKind::Local
        } else {
            SessionErrorKind::Connect
        };
        ConnectError::new(Reason::LoginRefused, SessionError::new(kind, message))
    }
}

fn broken_off(error: impl Into<tsunami_core::BoxError>) -> ConnectError {
    let message = "the connection broke off during the login";
    SessionError::new(SessionErrorKind::Connect, message).source(error).into()
}

/// Whom ssh would log in as.
async fn own_name() -> Result<String, ConnectError> {
    let output = Command::new("id").arg("-un").output().await;
    let name = output.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    match name.trim() {
        "" => Err(SessionError::new(SessionErrorKind::Local, "`id -un` does not say who runs this").into()),
        name => Ok(name.to_owned()),
    }
}
