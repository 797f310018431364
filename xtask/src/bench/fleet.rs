//! The hosts: each an sshd with an address, a host key, a name, processes, files and control groups of its own. All of it
//! is below one directory, and gone with this process.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::account::{self, Account, Side};
use super::workload::{PAYLOAD, TOKEN, Workload};
use crate::setup::find;
use crate::{Failure, Result, silently};

/// Only root writes here; control sockets have short paths, and what is written costs no disk on most systems.
pub(super) const DIRECTORY: &str = "/run/tsunami-bench";

const HOST: &str = include_str!("host.sh");

/// Where sshd listens on every host, and where what delays does.
const PORT: u16 = 2222;
const DELAYED_PORT: u16 = 2223;

/// How long all hosts together may take to be there.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How long hosts may take to end what a contender has left there.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Fleet {
    hosts: Vec<Host>,
    delay: Option<Child>,
    pub(super) account: Account,
    _alone: File,
}

#[derive(Debug)]
struct Host {
    name: String,
    address: Ipv4Addr,
    /// As known_hosts has it.
    key: String,
    process: Child,
}

/// Where something is that belongs to a bench.
pub(super) fn place(name: impl AsRef<Path>) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

pub(super) fn payload(workload: Workload) -> PathBuf {
    place(format!("payload-{}", workload.payload().unwrap_or_default()))
}

/// What a host's [`TOKEN`] ends with. Before it stands most of a kilobyte, which some contenders show as many lines.
pub(super) fn token(host: &str) -> String {
    format!("<{host}>")
}

impl Fleet {
    /// Starts that many hosts; with a program that delays, so many milliseconds away and back.
    pub(super) fn start(count: usize, delay: Option<(&Path, u64)>) -> Result<Self> {
        let alone = File::create("/run/tsunami-bench.lock")?;
        alone.try_lock().map_err(|_| Failure::new("another bench is under way here"))?;
        if Path::new(DIRECTORY).exists() {
            fs::remove_dir_all(DIRECTORY)?;
        }
        for directory in ["", "key", "config", "log"] {
            fs::create_dir(place(directory))?;
        }
        fs::create_dir_all("/run/sshd")?;
        keygen(&place("id"))?;
        fs::copy(place("id.pub"), place("authorized_keys"))?;
        for size in [0, 256 << 10, 8 << 20] {
            let payload = place(format!("payload-{size}"));
            std::io::copy(
                &mut std::io::Read::take(File::open("/dev/urandom")?, size),
                &mut File::create(payload)?,
            )?;
        }
        let account = Account::new(DIRECTORY);
        let mut fleet = Self { hosts: Vec::new(), delay: None, account, _alone: alone };
        for index in 0..count {
            let host = fleet.host(index)?;
            fleet.hosts.push(host);
        }
        fleet.wait()?;
        if let Some((program, round_trip)) = delay {
            fleet.delay = Some(fleet.delay(program, round_trip)?);
        }
        Ok(fleet)
    }

    fn host(&self, index: usize) -> Result<Host> {
        let name = format!("h{index}");
        let [high, low] = u16::try_from(index + 1).map_err(|_| Failure::new("too many hosts"))?.to_be_bytes();
        let address = Ipv4Addr::new(127, 77, high, low);
        let [key, config, log] = ["key", "config", "log"].map(|kind| place(kind).join(&name));
        keygen(&key)?;
        let public = fs::read_to_string(key.with_extension("pub"))?;
        fs::write(&config, sshd_config(address, &key))?;
        fs::write(&log, "")?;
        let sshd = find("sshd").ok_or_else(|| Failure::new("there is no sshd here: `cargo xtask setup`"))?;
        let mut start = self.account.enter(Side::Hosts, Some(&name))?;
        // All of a host ends when its first process does, and that with unshare, and that with this process.
        start.args([
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--uts",
            "--pid",
            "--cgroup",
            "--fork",
        ]);
        start.args(["--kill-child", "--mount-proc", "sh", "-c", HOST, "host", &name]);
        start.arg(format!("{:.>1024}", token(&name)));
        start.arg(self.account.unified().unwrap_or(Path::new(""))).arg(sshd);
        start.args(["-D", "-f"]).arg(config).arg("-E").arg(log);
        // Somebody's interrupt goes to this process alone, and ends the hosts with it.
        let quiet = start.stdin(Stdio::null()).stdout(Stdio::null());
        let key = public.split(' ').take(2).collect::<Vec<_>>().join(" ");
        Ok(Host { name, address, key, process: quiet.spawn()? })
    }

    fn wait(&mut self) -> Result {
        let begun = Instant::now();
        for host in &mut self.hosts {
            let log = place("log").join(&host.name);
            while !fs::read_to_string(&log)?.contains("Server listening") {
                if host.process.try_wait()?.is_some() || begun.elapsed() > START_TIMEOUT {
                    let said = fs::read_to_string(&log)?;
                    return Err(Failure::new(format!("{} does not start: {said}", host.name)));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn delay(&self, program: &Path, round_trip: u64) -> Result<Child> {
        let mut delay = Command::new("setpriv");
        delay.args(["--pdeathsig", "KILL"]).arg(program);
        delay.args([(round_trip * 1000 / 2).to_string(), DELAYED_PORT.to_string(), PORT.to_string()]);
        delay.args(self.hosts.iter().map(|host| host.address.to_string()));
        let mut child = delay.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut word = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut word)?;
        }
        if word.is_empty() { Err(Failure::new("what delays does not start: see above")) } else { Ok(child) }
    }

    /// Writes what the contenders are told: the first so many hosts, and what each is set up with.
    pub(super) fn describe(&self, workload: Workload, machines: usize, kex: Option<&str>) -> Result {
        let port = if self.delay.is_some() { DELAYED_PORT } else { PORT };
        let hosts = &self.hosts[..machines];
        let lines = |line: &dyn Fn(&Host) -> String| hosts.iter().map(line).collect::<String>();
        let names: Vec<String> = hosts.iter().map(|host| host.name.clone()).collect();
        let known = place("known_hosts");
        fs::write(&known, lines(&|host| format!("[{}]:{port} {}\n", host.address, host.key)))?;
        fs::write(place("hosts"), lines(&|host| format!("{} {} {port}\n", host.name, host.address)))?;
        fs::write(place("names"), lines(&|host| format!("{}\n", host.name)))?;

        let aliases = lines(&|host| format!("Host {}\n  HostName {}\n", host.name, host.address));
        let config = format!("{aliases}{}", ssh_config(port, &known));
        fs::write(place("ssh_config_plain"), &config)?;
        let preferred = kex.map_or_else(preferred_kex, str::to_owned);
        fs::write(place("ssh_config"), format!("{config}  KexAlgorithms {preferred}\n"))?;

        let payload = payload(workload);
        fs::copy(&payload, place("input"))?;
        fs::write(place("plan"), workload.plan(&payload))?;
        fs::write(place("script"), workload.script())?;
        // tsunami says itself which key exchanges it prefers.
        let plain = place("ssh_config_plain").to_string_lossy().into_owned();
        let mut ssh = vec![("config", plain.as_str())];
        ssh.extend(kex.map(|kex| ("kex", kex)));
        fs::write(place("openssh.toml"), workload.experiment(&names, &payload, &ssh))?;
        ssh.push(("transport", "in-process"));
        fs::write(place("in-process.toml"), workload.experiment(&names, &payload, &ssh))?;
        fs::write(place("playbook.yml"), workload.playbook(&payload))?;
        let inventory = lines(&|host| {
            format!("{} ansible_host={} ansible_port={port} ansible_user=root\n", host.name, host.address)
        });
        fs::write(
            place("inventory"),
            format!("{inventory}[all:vars]\nansible_python_interpreter=/usr/bin/python3\n"),
        )?;
        Ok(())
    }

    /// An empty directory for a contender to work in, with a home.
    pub(super) fn workplace(&self) -> Result<PathBuf> {
        let work = place("work");
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        fs::create_dir_all(work.join("home"))?;
        Ok(work)
    }

    /// Waits until nothing runs on the hosts but sshd, for what the last contender has left there to end by itself; on
    /// those that are up and watched, until nobody is logged in. On how many it is not so.
    pub(super) fn settle(&self, up: bool) -> usize {
        let begun = Instant::now();
        loop {
            let is_busy = |host: &&Host| {
                let proc = host.file("/proc");
                let is_sshd = |pid: &u32| {
                    let name = fs::read_to_string(proc.join(pid.to_string()).join("comm"));
                    name.is_ok_and(|name| name.starts_with("sshd"))
                };
                let counts = |pid: &u32| !up || is_sshd(pid);
                account::all_processes(&proc).into_iter().filter(counts).count() > 1
            };
            let busy = self.hosts.iter().filter(is_busy).count();
            if busy == 0 || begun.elapsed() > SETTLE_TIMEOUT {
                return busy;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Removes what the last contender has left in the hosts' home directories.
    pub(super) fn clean(&self) -> Result {
        for host in &self.hosts {
            for entry in fs::read_dir(host.file("/root"))? {
                let entry = entry?;
                match entry.file_type()?.is_dir() {
                    true => fs::remove_dir_all(entry.path())?,
                    false if entry.path() == host.file(TOKEN) => {}
                    false => fs::remove_file(entry.path())?,
                }
            }
        }
        Ok(())
    }

    /// Removes what sshd has said of those who came.
    pub(super) fn forget_visits(&self) -> Result {
        for host in &self.hosts {
            // sshd appends to it.
            File::options().write(true).open(place("log").join(&host.name))?.set_len(0)?;
        }
        Ok(())
    }

    /// What the hosts can tell of the workload: of each of the first so many, whether somebody came, and what he was to
    /// bring is there whole; and how often somebody did on all of them.
    pub(super) fn seen(&self, workload: Workload, machines: usize) -> Result<(Vec<bool>, Visits)> {
        let wanted = fs::read(payload(workload))?;
        let mut all = Visits::default();
        let mut done = Vec::new();
        for host in &self.hosts[..machines] {
            let visits = Visits::read(&fs::read_to_string(place("log").join(&host.name))?);
            let whole = workload.payload().is_none()
                || fs::read(host.file(PAYLOAD)).is_ok_and(|found| found == wanted);
            done.push(visits.sessions > 0 && whole);
            all.connections += visits.connections;
            all.sessions += visits.sessions;
        }
        Ok((done, all))
    }

    /// The first process of each host.
    pub(super) fn listeners(&self) -> Vec<u32> {
        let child = |host: &Host| {
            let pid = host.process.id();
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            children.split(' ').next()?.parse().ok()
        };
        self.hosts.iter().filter_map(child).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in self.hosts.iter_mut().map(|host| &mut host.process).chain(&mut self.delay) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(DIRECTORY);
    }
}

impl Host {
    /// Where this process finds one of the host's files.
    fn file(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.process.id()).into()
    }
}

/// How often somebody came, as sshd tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Visits {
    pub(super) connections: usize,
    pub(super) sessions: usize,
}

impl Visits {
    fn read(log: &str) -> Self {
        let count = |sign: &str| log.lines().filter(|line| line.starts_with(sign)).count();
        Self { connections: count("Accepted publickey for "), sessions: count("Starting session: ") }
    }
}

fn keygen(file: &Path) -> Result {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(file);
    if silently(&mut keygen) {
        Ok(())
    } else {
        Err(Failure::new("ssh-keygen makes no key: `cargo xtask setup`"))
    }
}

fn sshd_config(address: Ipv4Addr, key: &Path) -> String {
    format!(
        "ListenAddress {address}:{PORT}\nHostKey {}\nAuthorizedKeysFile {}\nPermitRootLogin prohibit-password\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPidFile none\nPrintMotd no\n\
         LogLevel VERBOSE\nSubsystem sftp internal-sftp\n",
        key.display(),
        place("authorized_keys").display(),
    )
}

/// What is the same for all hosts, for a client that reads ssh_config.
fn ssh_config(port: u16, known_hosts: &Path) -> String {
    format!(
        "Host *\n  User root\n  Port {port}\n  IdentityFile {}\n  IdentitiesOnly yes\n  UserKnownHostsFile {}\n  \
         GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  UpdateHostKeys no\n  BatchMode yes\n  \
         LogLevel ERROR\n",
        place("id").display(),
        known_hosts.display(),
    )
}

/// The key exchanges that tsunami prefers, of those that ssh has: every contender that goes by an ssh_config is given the
/// same.
fn preferred_kex() -> String {
    let known = Command::new("ssh").args(["-Q", "kex"]).output().map(|it| it.stdout).unwrap_or_default();
    let known = String::from_utf8_lossy(&known).into_owned();
    let wanted = ["mlkem768x25519-sha256", "curve25519-sha256"];
    let here: Vec<&str> = wanted.into_iter().filter(|kex| known.lines().any(|line| line == *kex)).collect();
    here.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_are_counted_by_what_sshd_says() {
        let log = "Server listening on 127.77.0.1 port 2222.\n\
                   Connection from 127.0.0.1 port 40000 on 127.77.0.1 port 2222 rdomain \"\"\n\
                   Accepted key ED25519 SHA256:abc found at /run/tsunami-bench/authorized_keys:1\n\
                   Postponed publickey for root from 127.0.0.1 port 40000 ssh2 [preauth]\n\
                   Accepted publickey for root from 127.0.0.1 port 40000 ssh2: ED25519 SHA256:abc\n\
                   User child is on pid 7\n\
                   Starting session: command for root from 127.0.0.1 port 40000 id 0\n\
                   Close session: user root from 127.0.0.1 port 40000 id 0\n\
                   Starting session: subsystem 'sftp' for root from 127.0.0.1 port 40000 id 1\n\
                   Failed publickey for root from 127.0.0.1 port 40001 ssh2: ED25519 SHA256:def\n";
        assert_eq!(Visits::read(log), Visits { connections: 1, sessions: 2 });
    }
}
