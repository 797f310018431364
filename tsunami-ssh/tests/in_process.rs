//! Hosts as a user's ssh_config leads to them, without ssh.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{Machines, unique_run};
use tempfile::TempDir;
use tokio::time::Instant;
use tsunami_core::{Connector, Download, Machine, Session, SessionError, SessionErrorKind};
use tsunami_ssh::{SshConnector, SshOptions, TransportKind};

/// A host that exists, and what a user has to reach it.
struct User {
    existing: Machines,
    home: TempDir,
}

impl User {
    async fn new() -> Self {
        let user = Self {
            existing: Machines::launch(2, TransportKind::OpenSsh).await,
            home: tempfile::tempdir().unwrap(),
        };
        fs::copy(user.existing.directory().join("ssh/id_ed25519"), user.path("id")).unwrap();
        fs::set_permissions(user.path("id"), fs::Permissions::from_mode(0o600)).unwrap();
        let public = user.tool("ssh-keygen", &["-y", "-f", user.path("id").to_str().unwrap()]);
        fs::write(user.path("id.pub"), public).unwrap();
        user.knows(&format!("{} {}\n", user.place(), user.host_key()));
        user
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn tool(&self, program: &str, args: &[&str]) -> String {
        let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn knows(&self, text: &str) {
        fs::write(self.path("known"), text).unwrap();
    }

    fn machine(&self) -> &Machine {
        &self.existing.machines[0]
    }

    fn host_key(&self) -> &str {
        self.machine().login.host_key.as_deref().unwrap()
    }

    fn address(&self) -> (&str, u16) {
        (self.machine().addresses.internal().unwrap(), self.machine().login.port.unwrap())
    }

    /// Its name in known_hosts.
    fn place(&self) -> String {
        let (address, port) = self.address();
        format!("[{address}]:{port}")
    }

    /// Reaches `box` by an ssh_config that says this of it, beside where it is.
    async fn reach(
        &self,
        settings: &str,
        change: impl FnOnce(&mut SshOptions),
    ) -> Result<Reached, SessionError> {
        let (address, port) = self.address();
        let (place, user) = (self.home.path().display(), self.machine().login.user.as_deref().unwrap());
        let config = format!(
            "Host box\n  {settings}\n  HostName {address}\n  Port {port}\n  User {user}\n  IdentityFile {place}/id\n  \
             UserKnownHostsFile {place}/known\n  IdentityAgent none\n"
        );
        fs::write(self.path("config"), config).unwrap();
        let mut options =
            SshOptions::default().config(self.path("config")).transport(TransportKind::InProcess);
        change(&mut options);
        let (connector, run, root) = (SshConnector::new(options), unique_run(), tempfile::tempdir().unwrap());
        connector.prepare(&run, &root.path().join(run.as_str())).await.unwrap();
        let mut machine = self.machine().clone();
        machine.run = run;
        machine.login.user = None;
        machine.login.host = Some("box".to_owned());
        (machine.login.port, machine.login.host_key) = (None, None);
        let session = connector.connect(&machine, Instant::now() + Duration::from_secs(20)).await?;
        Ok(Reached { session, connector, machine, root })
    }

    async fn is_let_in(&self, settings: &str) {
        let reached =
            self.reach(settings, |_| ()).await.unwrap_or_else(|error| panic!("{settings}: {error:?}"));
        assert_eq!(reached.said("echo hello").await, "hello\n", "{settings}");
        reached.leave().await;
    }

    async fn is_refused(&self, settings: &str) -> SessionError {
        self.reach(settings, |_| ()).await.map(drop).expect_err(settings)
    }
}

struct Reached {
    session: Box<dyn Session>,
    connector: SshConnector,
    machine: Machine,
    root: TempDir,
}

impl Reached {
    async fn said(&self, script: &str) -> String {
        self.session.administer(script, &[]).await.unwrap()
    }

    async fn leave(self) {
        self.session.close().await.unwrap();
        self.connector.finish(&self.machine.run).await;
    }
}

/// An agent with nothing in it, until it is dropped.
struct Agent(std::process::Child, PathBuf);

impl Agent {
    fn start(user: &User) -> Self {
        let socket = user.path("agent");
        let agent =
            Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
        while !socket.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Self(agent, socket)
    }

    fn add(&self, key: PathBuf) {
        let added =
            Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &self.1).status().unwrap();
        assert!(added.success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_known_as_ssh_knows_it() {
    let user = User::new().await;
    user.is_let_in("").await;
    user.tool("ssh-keygen", &["-Hf", user.path("known").to_str().unwrap()]);
    user.is_let_in("").await;
    let (key, (address, port)) = (user.host_key(), user.address());
    user.knows(&format!("name {key}\n"));
    user.is_let_in("HostKeyAlias name").await;
    user.knows(&format!("[127.*]:{port} {key}\n"));
    user.is_let_in("").await;
    // As it would be at the usual port.
    user.knows(&format!("{address} {key}\n"));
    user.is_let_in("").await;

    user.knows("");
    let error = user.is_refused("").await;
    assert_eq!(error.kind, SessionErrorKind::HostKey, "{error:?}");
    let help = error.help.unwrap();
    let line = format!("{} {}", user.place(), key.split(' ').take(2).collect::<Vec<_>>().join(" "));
    assert!(help.contains("SHA256:") && help.contains(&line), "{help}");
    user.knows(&format!("{line}\n@revoked * {key}\n"));
    let error = user.is_refused("").await;
    assert!(error.kind == SessionErrorKind::HostKey && error.help.unwrap().contains("revoked"));
    let other = fs::read_to_string(user.path("id.pub")).unwrap();
    user.knows(&format!("{} {other}", user.place()));
    let error = user.is_refused("").await;
    assert!(error.kind == SessionErrorKind::HostKey && error.help.unwrap().contains("ssh-keygen -R"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_host_is_accepted_for_the_run_if_that_is_asked_for() {
    let user = User::new().await;
    user.knows("");
    let reached = user.reach("", |options| options.accept_new_hosts = true).await.unwrap();
    let noted = reached.root.path().join(reached.machine.run.as_str()).join("ssh/known_hosts");
    let noted = fs::read_to_string(noted).unwrap();
    assert!(noted.starts_with(&format!("{} ssh-ed25519 ", user.place())), "{noted}");
    assert_eq!(fs::read_to_string(user.path("known")).unwrap(), "");
    reached.leave().await;
    // A known one that has changed is none.
    let other = fs::read_to_string(user.path("id.pub")).unwrap();
    user.knows(&format!("{} {other}", user.place()));
    let error = user.reach("", |options| options.accept_new_hosts = true).await.map(drop).unwrap_err();
    assert_eq!(error.kind, SessionErrorKind::HostKey, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_from_files_and_from_an_agent() {
    let user = User::new().await;
    let agent = Agent::start(&user);
    let by_agent = format!("IdentityAgent {}", agent.1.display());
    let (id, locked) = (user.path("id"), user.path("locked"));
    fs::copy(&id, &locked).unwrap();
    user.tool("ssh-keygen", &["-q", "-p", "-N", "secret", "-f", locked.to_str().unwrap()]);
    let only_locked = format!("IdentityFile {}", locked.display());
    fs::rename(&id, user.path("away")).unwrap();
    fs::remove_file(user.path("id.pub")).unwrap();

    let error = user.is_refused(&only_locked).await;
    assert!(error.kind == SessionErrorKind::Local && error.message.contains("password"), "{error:?}");
    let error = user.is_refused(&by_agent).await;
    assert!(error.message.contains("permission denied"), "{error:?}");
    agent.add(user.path("away"));
    user.is_let_in(&by_agent).await;
    user.is_let_in(&format!("{only_locked}\n  {by_agent}\n  IdentitiesOnly yes")).await;
    // Nothing that an agent has is shown where only files are meant.
    let error = user.is_refused(&format!("{by_agent}\n  IdentitiesOnly yes")).await;
    assert!(error.message.contains("permission denied"), "{error:?}");

    fs::rename(user.path("away"), &id).unwrap();
    user.is_let_in(&format!("IdentityAgent {}", user.path("none").display())).await;
    fs::set_permissions(&id, fs::Permissions::from_mode(0o644)).unwrap();
    let error = user.is_refused("").await;
    assert!(error.kind == SessionErrorKind::Local && error.message.contains("chmod 600"), "{error:?}");
    fs::set_permissions(&id, fs::Permissions::from_mode(0o600)).unwrap();
    // A file that is no key, and one that is not the right one.
    fs::write(&id, "no key").unwrap();
    let error = user.is_refused("").await;
    assert!(error.kind == SessionErrorKind::Local && error.message.contains("/id: "), "{error:?}");
    let other = user.path("other");
    user.tool("ssh-keygen", &["-q", "-t", "ecdsa", "-N", "", "-f", other.to_str().unwrap()]);
    let error = user.is_refused(&format!("IdentityFile {}", other.display())).await;
    assert!(
        error.kind == SessionErrorKind::Connect && error.message.contains("permission denied"),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_ssh_can_do_is_refused_by_name() {
    let user = User::new().await;
    for setting in [
        "PKCS11Provider /none",
        "SecurityKeyProvider /none",
        "CertificateFile /none",
        "KnownHostsCommand /bin/false",
        "RevokedHostKeys /none",
        "ProxyUseFdpass yes",
        "Compression yes",
        "IPQoS lowdelay",
        "BindInterface lo",
        "PubkeyAuthentication no",
        "PreferredAuthentications password",
        "RequiredRSASize 4096",
        "KexAlgorithms sntrup761x25519-sha512@openssh.com",
        "HostKeyAlgorithms rsa-sha2-512",
    ] {
        let error = user.is_refused(setting).await;
        let keyword = setting.split(' ').next().unwrap();
        assert!(
            error.kind == SessionErrorKind::Local && error.message.contains(keyword),
            "{setting}: {error:?}"
        );
        assert!(error.help.unwrap().contains("OpenSSH"), "{setting}");
    }
    // Where a key lets in, no other way is tried.
    user.is_let_in("GSSAPIAuthentication yes").await;
    fs::rename(user.path("id"), user.path("away")).unwrap();
    let error = user.is_refused("GSSAPIAuthentication yes").await;
    assert!(
        error.kind == SessionErrorKind::Local && error.message.contains("GSSAPIAuthentication"),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ssh_can_do_and_this_can_is_done() {
    let user = User::new().await;
    let (address, port) = user.address();
    for setting in [
        "KexAlgorithms diffie-hellman-group16-sha512",
        "KexAlgorithms ecdh-sha2-nistp256",
        "Ciphers aes256-gcm@openssh.com",
        "Ciphers chacha20-poly1305@openssh.com",
        "Ciphers aes256-ctr\n  MACs hmac-sha2-512",
        "HostKeyAlgorithms ssh-ed25519",
        "PubkeyAcceptedAlgorithms ssh-ed25519",
        "AddressFamily inet",
        "BindAddress 127.0.0.1",
        "TCPKeepAlive no",
        "RekeyLimit 1M 10m",
        &format!(
            "ProxyCommand bash -c 'exec 3<>/dev/tcp/{address}/%p; cat <&3 & exec cat >&3'\n  HostName elsewhere\n  HostKeyAlias [{address}]:{port}"
        ),
    ] {
        user.is_let_in(setting).await;
    }
    let error = user.is_refused("AddressFamily inet6").await;
    assert!(error.kind == SessionErrorKind::Connect && error.message.contains("no address"), "{error:?}");
}

/// One host leads to the other, by an ssh of the user's.
#[tokio::test(flavor = "multi_thread")]
async fn a_jump_host_is_a_way() {
    let user = User::new().await;
    let other = &user.existing.machines[1];
    let (address, port) = (other.addresses.internal().unwrap(), other.login.port.unwrap());
    let known = fs::read_to_string(user.path("known")).unwrap();
    user.knows(&format!("{known}[{address}]:{port} {}\n", other.login.host_key.as_deref().unwrap()));
    let place = user.home.path().display();
    let here = other.login.user.as_deref().unwrap();
    let hop = format!(
        "Host hop\n  HostName {address}\n  Port {port}\n  User {here}\n  IdentityFile {place}/id\n  \
         UserKnownHostsFile {place}/known\nHost box"
    );
    for is_given in [false, true] {
        let settings = if is_given { hop.clone() } else { format!("ProxyJump hop\n{hop}") };
        let jump = is_given.then(|| "hop".to_owned());
        let reached = user.reach(&settings, |options| options.jump = jump).await;
        let reached = reached.unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(reached.said("echo hello").await, "hello\n");
        reached.leave().await;
    }
    let known = user.path("known");
    fs::write(&known, fs::read_to_string(&known).unwrap().lines().next().unwrap()).unwrap();
    let error = user.is_refused(&format!("ProxyJump hop\n{hop}")).await;
    assert_eq!(error.kind, SessionErrorKind::HostKey, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_transfers_go_through_many_keys_both_ways() {
    let user = User::new().await;
    let reached = user.reach("RekeyLimit 200K", |_| ()).await.unwrap();
    let sent: Vec<u8> = (0..6_000_000_u32).map(|number| number.to_le_bytes()[number as usize % 4]).collect();
    fs::write(user.path("sent"), &sent).unwrap();
    reached.session.upload(&user.path("sent"), "there").await.unwrap();
    let download = Download::new(["there"], user.path("came"));
    reached.session.download(&download).await.unwrap();
    assert!(fs::read(user.path("came/there")).unwrap() == sent);
    reached.leave().await;
}

/// For machines of the run's own there needs to be no ssh.
#[tokio::test(flavor = "multi_thread")]
async fn many_sessions_at_a_time_end_with_their_run() {
    let machines = Machines::launch(8, TransportKind::InProcess).await;
    let connector = &machines.connector;
    let connect = |machine: Machine| {
        let connector = connector.clone();
        async move {
            let session =
                connector.connect(&machine, Instant::now() + Duration::from_secs(20)).await.unwrap();
            assert_eq!(session.administer("echo hello", &[]).await.unwrap(), "hello\n");
            session
        }
    };
    let sessions: Vec<Arc<dyn Session>> =
        futures_util::future::join_all(machines.machines.iter().cloned().map(connect))
            .await
            .into_iter()
            .map(Arc::from)
            .collect();
    for session in &sessions {
        session.check().await.unwrap();
        session.close().await.unwrap();
        assert_eq!(session.check().await.unwrap_err().kind, SessionErrorKind::Lost);
    }
    // Whoever still holds one.
    let left = connect(machines.machines[0].clone()).await;
    connector.finish(&machines.run).await;
    assert_eq!(left.check().await.unwrap_err().kind, SessionErrorKind::Lost);
}
