//! A machine's own sshd: its files, its address, its start.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use tsunami_core::{
    Addresses, LaunchRequest, Login, Machine, MachineId, MachineState, Price, ProviderError,
    ProviderErrorKind, RunId, private,
};

use super::known::{KnownMachine, SshdProcess};
use super::launch_error;
use super::tree::{private_directory, remove_tree};
use crate::blocking::blocking;
use crate::keys;
use crate::watchdog::ControlGroup;

/// The port that every machine's sshd listens on, or one of the next few if somebody has that on all addresses.
const PORT: u16 = 2222;

/// How long an sshd may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// One machine that is about to be.
pub(super) struct Sshd {
    pub(super) sshd: PathBuf,
    pub(super) user: String,
    pub(super) group: Option<ControlGroup>,
    pub(super) directory: PathBuf,
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
    pub(super) port: u16,
    pub(super) index: u32,
}

impl Sshd {
    /// Makes the machine's directory and starts its sshd. It waits for the disk.
    pub(super) fn start(&self, request: &LaunchRequest) -> io::Result<(Machine, Child)> {
        let at = |name: &str| self.directory.join(name);
        remove_tree(&self.directory)?;
        private_directory(&self.directory)?;
        private_directory(&at("home"))?;
        let host_key = keys::obtain(&at("host_key"), &self.name)?;
        private::write(&at("authorized_keys"), request.authorized_key.as_bytes())?;
        let enter = self.enter(request);
        private::write_whole(&at("enter"), 0o700, |file| file.write_all(enter.as_bytes()))?;
        private::write(&at("sshd_config"), self.config().as_bytes())?;
        let (run, address) = (request.run.clone(), self.address.to_string());
        let id = MachineId::new(format!("{run}/{}", self.name));
        let machine = Machine::new(id, run, &request.group, self.index, MachineState::Running)
            .addresses(Addresses::default().public(&address).private(address).network("loopback"))
            .login(Login::default().user(&self.user).port(self.port).host_key(host_key))
            .expires(request.deadline.at)
            .description("sshd on this computer's loopback")
            .price(Price::Free);
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(at("sshd.log"))?;
        let mut sshd = std::process::Command::new(&self.sshd);
        sshd.arg("-D").arg("-e").arg("-f").arg(at("sshd_config")).current_dir("/");
        // A group of its own keeps the terminal's Ctrl-C away from it.
        sshd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        Ok((machine, Command::from(sshd).spawn()?))
    }

    /// The sshd's configuration. `SHLVL` keeps bash from reading the `~/.bashrc` of the user's real home, as it
    /// does for the first shell below sshd.
    fn config(&self) -> String {
        let Self { address, port, user, .. } = self;
        let file = |name: &str| crate::config::quoted(&self.directory.join(name));
        let (host_key, authorized, enter) =
            (file("host_key"), file("authorized_keys"), shell_quoted(&self.directory.join("enter")));
        // Root's account may be locked, which only PAM overlooks.
        let pam = if rustix::process::geteuid().is_root() && is_locked(user) { "yes" } else { "no" };
        let sftp = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server"];
        let sftp = sftp.iter().find(|path| Path::new(path).exists());
        let sftp = sftp.map(|path| format!("Subsystem sftp {path}\n")).unwrap_or_default();
        format!(
            "ListenAddress {address}:{port}\n\
             HostKey {host_key}\n\
             AuthorizedKeysFile {authorized}\n\
             AllowUsers {user}\n\
             ForceCommand {enter}\n\
             PermitRootLogin prohibit-password\n\
             PasswordAuthentication no\n\
             KbdInteractiveAuthentication no\n\
             UsePAM {pam}\n\
             StrictModes no\n\
             PidFile none\n\
             MaxStartups 100\n\
             PrintMotd no\n\
             PrintLastLog no\n\
             X11Forwarding no\n\
             ClientAliveInterval 15\n\
             SetEnv SHLVL=1\n\
             {sftp}"
        )
    }

    /// The script that every login goes through: it gives the machine its home, and marks all that runs there
    /// as the run's. sshd's own processes are no part of that: they end with their sshd.
    fn enter(&self, request: &LaunchRequest) -> String {
        let home = shell_quoted(&self.directory.join("home"));
        let run = &request.run;
        let join = self.group.as_ref().map(ControlGroup::join).unwrap_or_default();
        format!(
            "#!/bin/sh\n\
             HOME={home} TSUNAMI_RUN_ID={run}\n\
             export HOME TSUNAMI_RUN_ID\n\
             cd \"$HOME\" || exit\n\
             {join}\n\
             line=$SSH_ORIGINAL_COMMAND\n\
             unset SSH_ORIGINAL_COMMAND\n\
             [ -n \"$line\" ] || exec \"${{SHELL:-/bin/sh}}\"\n\
             exec \"${{SHELL:-/bin/sh}}\" -c \"$line\"\n"
        )
    }

    /// Waits until the sshd listens, and then makes the machine known. A connection would do, but costs sshd a
    /// process; its log costs nothing.
    pub(super) async fn until_listening(
        self,
        machine: Machine,
        mut sshd: Child,
    ) -> Result<(), ProviderError> {
        let deadline = Instant::now() + START_TIMEOUT;
        // A few lines of a file that was just written: to read them waits for nothing.
        let log = || fs::read_to_string(self.directory.join("sshd.log")).unwrap_or_default();
        let ended = loop {
            // In this order: what has ended has said all.
            let ended = sshd.try_wait().is_ok_and(|status| status.is_some());
            if ended || log().contains("Server listening on") || Instant::now() > deadline {
                break ended;
            }
            sleep(Duration::from_millis(5)).await;
        };
        let log = log();
        if !ended && log.contains("Server listening on") {
            let (pid, directory) = (sshd.id(), self.directory.clone());
            let known = move || {
                let sshd = pid.map(SshdProcess::of).transpose()?.flatten();
                KnownMachine { machine, sshd }.write(&directory)
            };
            let message = || format!("cannot write to {}", self.directory.display());
            return blocking(known).await.map_err(|error| launch_error(message(), error));
        }
        let busy = log.contains("Address already in use");
        // Somebody was faster; the next attempt takes another address.
        let kind = if busy { ProviderErrorKind::Unavailable } else { ProviderErrorKind::Other };
        let message = format!("sshd of {} does not start: {}", self.name, log.trim());
        Err(ProviderError::new(kind, "launch", message))
    }
}

/// Loopback addresses of nobody's, with a port that is free there: beginning at a place of the run's own, so that
/// runs don't meet.
pub(super) fn candidates(run: &RunId) -> impl Iterator<Item = (Ipv4Addr, u16)> {
    const RANGE: u32 = 1 << 22;
    let mut hasher = DefaultHasher::new();
    run.hash(&mut hasher);
    let start = (hasher.finish() % u64::from(RANGE)) as u32;
    // 127.64.0.0 to 127.127.255.255, without those that look like a network's own.
    let addresses = (0..RANGE).map(move |step| Ipv4Addr::from_bits(0x7f40_0000 + (start + step) % RANGE));
    let addresses = addresses.filter(|address| !matches!(address.octets()[3], 0 | 255));
    let free = |address: Ipv4Addr, port| TcpListener::bind((address, port)).is_ok();
    // A port that is taken on many addresses is taken on all of them, by a server that listens everywhere.
    let usable = |port: &u16| addresses.clone().take(64).any(|address| free(address, *port));
    let port = (PORT..PORT + 10).find(usable);
    addresses.filter_map(move |address| port.filter(|port| free(address, *port)).map(|port| (address, port)))
}

/// Whether an account is locked in the way that sshd minds.
fn is_locked(user: &str) -> bool {
    let shadow = fs::read_to_string("/etc/shadow").unwrap_or_default();
    let entry = shadow.lines().find_map(|line| line.strip_prefix(user)?.strip_prefix(':'));
    entry.is_some_and(|password| password.starts_with('!'))
}

fn shell_quoted(path: &Path) -> String {
    let quoted = shlex::bytes::try_quote(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
    String::from_utf8_lossy(&quoted).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_free_and_of_the_runs_own() {
        let run: RunId = "20260101-000000-aaaa".parse().unwrap();
        let first = candidates(&run).next().unwrap();
        let taken = TcpListener::bind(first).unwrap();
        let second = candidates(&run).next().unwrap();
        assert_ne!(first.0, second.0, "two machines must not share an address");
        drop(taken);
        let other: RunId = "20260101-000000-bbbb".parse().unwrap();
        assert_ne!(candidates(&other).next().unwrap().0, first.0);
    }
}
