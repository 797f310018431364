//! What can be set about SSH, and the ssh_config of a run.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tsunami_core::Machine;

/// What can be set about SSH. The default needs nothing.
///
/// A run remembers the options it began with: whoever takes it up later uses those, not its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SshOptions {
    /// An extra ssh_config. What tsunami sets itself stands before it. Without one, `~/.ssh/config` is read
    /// for machines that existed before the run.
    pub config: Option<PathBuf>,
    /// A jump host (`user@bastion`) for all machines. One connection to it serves all.
    pub jump: Option<String>,
    /// The user to log in as, where the provider does not say.
    pub user: Option<String>,
    /// The private key for machines that existed before the run. Machines of the run get a key of the run.
    pub key: Option<PathBuf>,
    /// Where the host keys of machines that existed before the run are known from, in place of the user's own
    /// `known_hosts`. Read, never written.
    pub known_hosts: Option<PathBuf>,
    /// Accept, for this run, the keys of hosts that are not known at all.
    pub accept_new_hosts: bool,
    /// The pause between two signs of life on an idle connection. After three without an answer it counts as
    /// lost.
    pub keepalive: Duration,
    /// The key exchanges to use, as ssh_config's `KexAlgorithms` takes them. By default mlkem768x25519 stands
    /// first where ssh has it (since OpenSSH 9.9), then curve25519: the default of older OpenSSH,
    /// sntrup761x25519, costs the client some 90 ms of CPU a connection, six times what curve25519 does.
    pub kex: Option<String>,
    /// How sessions are made.
    pub transport: Transport,
}

/// How sessions are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Transport {
    /// One `ssh` master process a machine, all commands multiplexed over it.
    #[default]
    OpenSsh,
}

impl Default for SshOptions {
    fn default() -> Self {
        Self {
            config: None,
            jump: None,
            user: None,
            key: None,
            known_hosts: None,
            accept_new_hosts: false,
            keepalive: Duration::from_secs(5),
            kex: None,
            transport: Transport::default(),
        }
    }
}

/// The alias of the jump host in a run's ssh_config.
pub(crate) const JUMP: &str = "tsunami-jump";

/// The files of a run's SSH, in one private directory.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) config: PathBuf,
    pub(crate) hosts: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) known_hosts: PathBuf,
    pub(crate) options: PathBuf,
}

impl Files {
    pub(crate) fn in_directory(directory: &Path) -> Self {
        Self {
            config: directory.join("config"),
            hosts: directory.join("hosts"),
            key: directory.join("id_ed25519"),
            known_hosts: directory.join("known_hosts"),
            options: directory.join("options.json"),
        }
    }

    /// Exists once something was put on a machine that existed before the run.
    pub(crate) fn connected(&self, machine: &str) -> PathBuf {
        self.config.with_file_name(format!("connected.{machine}"))
    }
}

/// The run's ssh_config: what holds for all machines, then the machines, then what the user includes. ssh takes
/// the first value that it finds, so nothing the user includes can loosen what stands before it.
pub(crate) fn main_config(options: &SshOptions, files: &Files, kex: &str) -> String {
    let strict = if options.accept_new_hosts { "accept-new" } else { "yes" };
    let alive = options.keepalive.as_secs().max(1);
    let mut text = format!(
        "# Made by tsunami for one run. `ssh -F <this file> <machine>` works for as long as the run does.\n\
         Host *\n\
         \x20 BatchMode yes\n\
         \x20 StrictHostKeyChecking {strict}\n\
         \x20 GlobalKnownHostsFile /dev/null\n\
         \x20 UpdateHostKeys no\n\
         \x20 VerifyHostKeyDNS no\n\
         \x20 HashKnownHosts no\n\
         \x20 KexAlgorithms {kex}\n\
         \x20 ConnectTimeout 15\n\
         \x20 ServerAliveInterval {alive}\n\
         \x20 ServerAliveCountMax 3\n\
         \x20 ForwardAgent no\n\
         \x20 ForwardX11 no\n\
         \x20 ClearAllForwardings yes\n\
         \x20 PermitLocalCommand no\n\
         \x20 ControlPersist no\n\
         \x20 LogLevel INFO\n\
         Include {}\n",
        quoted(&files.hosts)
    );
    if let Some(config) = &options.config {
        let _ = writeln!(text, "Host *\nInclude {}", quoted(config));
    }
    text
}

/// Where a machine that the run made is reached.
pub(crate) fn endpoint(machine: &Machine) -> Option<(String, u16)> {
    let login = machine.login.host_key.as_ref().map(|_| &machine.login)?;
    let host = login.host.as_deref().or(machine.addresses.from_outside())?;
    Some((host.to_owned(), login.port.unwrap_or(22)))
}

/// The part of the ssh_config about a machine that the run made: its key is pinned, and only the run's identity
/// is shown to it.
pub(crate) fn owned_machine(machine: &Machine, options: &SshOptions, files: &Files) -> String {
    let mut text = format!("Host {}\n", machine.name());
    let (host, port) = endpoint(machine).unwrap_or_default();
    let user = machine.login.user.as_deref().or(options.user.as_deref());
    let _ = writeln!(text, "  HostName {host}\n  HostKeyAlias {}", machine.name());
    if let Some(user) = user {
        let _ = writeln!(text, "  User {user}");
    }
    let _ = writeln!(text, "  Port {port}");
    let _ = writeln!(text, "  UserKnownHostsFile {}", quoted(&files.known_hosts));
    let _ = writeln!(text, "  IdentityFile {}", quoted(&files.key));
    text.push_str("  IdentitiesOnly yes\n  IdentityAgent none\n");
    if options.jump.is_some() {
        let _ = writeln!(text, "  ProxyJump {JUMP}");
    }
    text
}

/// What `ssh -G` says about a name: the options that decide where a connection goes and as whom.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resolved {
    options: Vec<(String, String)>,
}

impl Resolved {
    pub(crate) fn parse(output: &str) -> Self {
        let options = output.lines().filter_map(|line| line.split_once(' '));
        Self { options: options.map(|(key, value)| (key.to_owned(), value.to_owned())).collect() }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Whether the connection goes through something else than TCP to the host itself.
    pub(crate) fn is_proxied(&self) -> bool {
        ["proxyjump", "proxycommand"].iter().any(|key| self.get(key).is_some_and(|value| value != "none"))
    }
}

/// The part of the ssh_config about a machine that existed before the run: reached as the user reaches it.
pub(crate) fn existing_machine(
    machine: &Machine,
    options: &SshOptions,
    files: &Files,
    resolved: &Resolved,
) -> String {
    const COPIED: [&str; 9] = [
        "hostname",
        "port",
        "user",
        "hostkeyalias",
        "identityfile",
        "certificatefile",
        "identitiesonly",
        "identityagent",
        "proxycommand",
    ];
    let mut text = format!("Host {}\n", machine.name());
    for (key, value) in &resolved.options {
        if COPIED.contains(&key.as_str()) {
            let _ = writeln!(text, "  {key} {value}");
        }
    }
    let jump = options.jump.is_some().then_some(JUMP).or(resolved.get("proxyjump"));
    if let Some(jump) = jump.filter(|jump| *jump != "none") {
        let _ = writeln!(text, "  ProxyJump {jump}");
    }
    let theirs = match &options.known_hosts {
        Some(path) => quoted(path),
        None => resolved.get("userknownhostsfile").unwrap_or("~/.ssh/known_hosts").to_owned(),
    };
    let _ = writeln!(text, "  UserKnownHostsFile {} {theirs}", quoted(&files.known_hosts));
    text
}

/// The part of the ssh_config about the jump host.
pub(crate) fn jump_host(jump: &str, options: &SshOptions, files: &Files) -> String {
    let (user, host) = jump.rsplit_once('@').map_or((None, jump), |(user, host)| (Some(user), host));
    let (host, port) = host.rsplit_once(':').map_or((host, None), |(host, port)| (host, Some(port)));
    let mut text = format!("Host {JUMP}\n  HostName {host}\n");
    for (key, value) in [("User", user), ("Port", port)] {
        if let Some(value) = value {
            let _ = writeln!(text, "  {key} {value}");
        }
    }
    let theirs = options.known_hosts.as_deref().map_or_else(|| "~/.ssh/known_hosts".to_owned(), quoted);
    let _ = writeln!(text, "  UserKnownHostsFile {} {theirs}", quoted(&files.known_hosts));
    if let Some(key) = &options.key {
        let _ = writeln!(text, "  IdentityFile {}", quoted(key));
    }
    text
}

/// A path as ssh_config takes it.
pub(crate) fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""))
}
