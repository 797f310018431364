//! What ssh would do to reach a host that existed before the run: what `ssh -G` says, asked as seldom as can be.
//!
//! ssh takes milliseconds to say it, and the hosts of a fleet often differ in their names and addresses only. So ssh is
//! asked with `-v` about the first, and tells which files it has read. Where these have nothing but what is understood
//! here, they show of which other hosts it would say the same, but for their names. About all others it is asked.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;
use tsunami_core::{SessionError, SessionErrorKind, private};

use crate::config::{Resolved, SshOptions, fits};
use crate::hosts::HostAddress;
use crate::transport::openssh::master::cannot_run_ssh;

/// How long an answer holds. The connections of a fleet begin within this time; a user who changes their ssh_config is
/// heard after it.
const ANSWER_HOLDS: Duration = Duration::from_secs(30);

/// Asks ssh, and remembers for a while what it said.
#[derive(Debug)]
pub(crate) struct Resolver {
    answers: Mutex<HashMap<Question, Vec<Answer>>>,
    /// How many processes of ssh may be asked at a time: they have nothing to wait for but a processor.
    asking: Semaphore,
}

/// What ssh is asked, beside the host's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    config: Option<PathBuf>,
    user: Option<String>,
    port: Option<u16>,
    key: Option<PathBuf>,
}

/// What ssh said of a host.
#[derive(Clone, Debug)]
struct Answer {
    at: Instant,
    host: String,
    resolved: Arc<Resolved>,
    /// What it read, if that is understood.
    read: Option<Arc<Blocks>>,
}

impl Default for Resolver {
    fn default() -> Self {
        let processors = available_parallelism().map_or(4, Into::into);
        Self { answers: Mutex::default(), asking: Semaphore::new(2 * processors) }
    }
}

impl Resolver {
    /// What ssh would do to reach a host, as `user` if nobody else is named for it, and with the options' key if that is
    /// meant for it.
    pub(crate) async fn resolve(
        &self,
        options: &SshOptions,
        host: &HostAddress,
        user: Option<&str>,
        with_key: bool,
    ) -> Result<Arc<Resolved>, SessionError> {
        // What comes from a run's directory has not been read as an address yet.
        let odd = |_| {
            SessionError::new(
                SessionErrorKind::Local,
                format!("`{}` names no host", host.host.escape_debug()),
            )
        };
        host.to_string().parse::<HostAddress>().map_err(odd)?;
        if let Some(config) = &options.config {
            // It may name programs.
            private::check_chosen(config).map_err(|error| {
                let message = format!("ssh_config {} is refused", config.display());
                SessionError::new(SessionErrorKind::Local, message).source(error)
            })?;
        }
        let question = Question {
            config: options.config.clone(),
            user: host.user.as_deref().or(user).map(str::to_owned),
            port: host.port,
            key: options.key.clone().filter(|_| with_key),
        };
        let mut answers = self.answers.lock().await;
        let known = answers.entry(question.clone()).or_default();
        known.retain(|answer| answer.at.elapsed() < ANSWER_HOLDS);
        if let Some(resolved) = known.iter().find_map(|answer| answer.about(&host.host)) {
            return Ok(resolved);
        }
        if known.is_empty() {
            // The others wait: it may be the answer for all of them.
            let answer = question.ask(&host.host).await?;
            known.push(answer.clone());
            return Ok(answer.resolved);
        }
        drop(answers);
        let _permit = self.asking.acquire().await;
        let answer = question.ask(&host.host).await?;
        self.answers.lock().await.entry(question).or_default().push(answer.clone());
        Ok(answer.resolved)
    }
}

impl Question {
    async fn ask(&self, host: &str) -> Result<Answer, SessionError> {
        let at = Instant::now();
        let mut ssh = Command::new("ssh");
        ssh.arg("-vG");
        if let Some(config) = &self.config {
            ssh.arg("-F").arg(config);
        }
        if let Some(user) = &self.user {
            ssh.args(["-l", user]);
        }
        if let Some(port) = self.port {
            ssh.args(["-p", &port.to_string()]);
        }
        if let Some(key) = &self.key {
            ssh.arg("-i").arg(key);
        }
        let (resolved, said) = ask(ssh.arg("--").arg(host)).await?;
        let read = tokio::task::spawn_blocking(move || Blocks::read(&said)).await.ok().flatten();
        let host_name = resolved.get("hostname");
        let read = read.filter(|read| !resolved.is_proxied() && read.host_name(host).as_deref() == host_name);
        Ok(Answer { at, host: host.to_owned(), resolved: Arc::new(resolved), read: read.map(Arc::new) })
    }
}

/// What ssh says of a name, and what it says about that.
pub(crate) async fn ask(ssh: &mut Command) -> Result<(Resolved, String), SessionError> {
    let output = ssh.stdin(Stdio::null()).output().await.map_err(|error| cannot_run_ssh(&error))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok((Resolved::parse(&String::from_utf8_lossy(&output.stdout)), said));
    }
    let is_told = |line: &&str| !line.starts_with("debug") && !line.starts_with("OpenSSH_");
    let said = said.lines().filter(is_told).collect::<Vec<_>>().join("\n");
    Err(SessionError::new(SessionErrorKind::Local, said.trim()))
}

impl Answer {
    /// What ssh would say of a host, if this tells.
    fn about(&self, host: &str) -> Option<Arc<Resolved>> {
        if self.host == host {
            return Some(self.resolved.clone());
        }
        let read = self.read.as_ref().filter(|read| read.say_the_same(&self.host, host))?;
        Some(Arc::new(self.resolved.renamed(host, &read.host_name(host)?)))
    }
}

/// The parts of the files that ssh has read: what stands below a line with `Host`, or above the first.
#[derive(Debug, Default)]
struct Blocks(Vec<Block>);

#[derive(Debug, Default)]
struct Block {
    /// Whether each is one that fits nobody.
    patterns: Vec<(bool, String)>,
    host_name: Option<String>,
    /// Whether it says anything beside that.
    says_more: bool,
}

impl Blocks {
    /// Reads what ssh, asked with `-v`, says that it has read. `None` where that has what isn't understood.
    fn read(said: &str) -> Option<Self> {
        let mut blocks = Self::default();
        // Some other ssh may not say what it reads.
        let mut is_openssh = false;
        for line in said.lines() {
            is_openssh |= line.starts_with("OpenSSH_");
            // A path that is cut, since it is long, can't be read.
            if let Some((_, path)) = line.split_once("debug1: Reading configuration data ") {
                blocks.add(&fs::read_to_string(Path::new(path.trim_end())).ok()?)?;
            }
        }
        is_openssh.then_some(blocks)
    }

    fn add(&mut self, text: &str) -> Option<()> {
        let everybody = || vec![(false, "*".to_owned())];
        let mut block = Block { patterns: everybody(), ..Block::default() };
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let end = line.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(line.len());
            let (keyword, value) = (line[..end].to_ascii_lowercase(), line[end..].trim_start());
            match keyword.as_str() {
                // What depends on more than the name, or asks others.
                "" | "match" | "canonicalizehostname" => return None,
                "host" => {
                    let patterns = value.split_whitespace().map(pattern).collect::<Option<_>>()?;
                    self.0.push(std::mem::replace(&mut block, Block { patterns, ..Block::default() }));
                }
                "hostname" => {
                    if block.host_name.is_none() {
                        block.host_name = Some(plain(value)?.to_owned());
                    }
                }
                // What it names was read as what it stands in.
                "include" if block.patterns != everybody() => return None,
                // Not asked for here.
                "controlpath" | "localcommand" | "remotecommand" => {}
                _ if value.contains('%') => return None,
                _ => block.says_more = true,
            }
        }
        self.0.push(block);
        Some(())
    }

    /// Whether ssh, asked about two hosts, would say the same but for their names.
    fn say_the_same(&self, one: &str, other: &str) -> bool {
        self.0
            .iter()
            .filter(|block| block.says_more)
            .all(|block| block.is_about(one) == block.is_about(other))
    }

    /// Where a name leads, if that is beyond doubt.
    fn host_name(&self, host: &str) -> Option<String> {
        let host = plain(host)?;
        let mut names =
            self.0.iter().filter(|block| block.is_about(host)).filter_map(|block| block.host_name.as_ref());
        let name = names.next();
        // Which of several comes first depends on where files are included.
        names.all(|other| Some(other) == name).then(|| name.map_or(host, String::as_str).to_owned())
    }
}

impl Block {
    fn is_about(&self, host: &str) -> bool {
        let is_among = |negated| self.patterns.iter().any(|(not, it)| *not == negated && fits(it, host));
        is_among(false) && !is_among(true)
    }
}

/// A pattern of a `Host` line, of what means the same to everybody.
fn pattern(text: &str) -> Option<(bool, String)> {
    let (not, name) = text.strip_prefix('!').map_or((false, text), |name| (true, name));
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "*?.:_-".contains(c);
    (!name.is_empty() && name.chars().all(is_plain)).then(|| (not, name.to_owned()))
}

/// A name or an address that ssh takes as it is: nothing in capitals, and no number in another form.
fn plain(name: &str) -> Option<&str> {
    let is_address = name.parse().is_ok_and(|it: Ipv4Addr| it.to_string() == name)
        || name.parse().is_ok_and(|it: Ipv6Addr| it.to_string() == name);
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let is_name = name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(is_plain);
    (is_address || is_name).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What ssh says of hosts by a configuration, each asked about, and what one resolver says.
    async fn answers(config: &Path, hosts: &[&str]) -> (Vec<Arc<Resolved>>, usize) {
        let (options, resolver) = (SshOptions::default().config(config), Resolver::default());
        let mut answers = Vec::new();
        for host in hosts {
            let host = host.parse().unwrap();
            let asked = Resolver::default().resolve(&options, &host, None, false).await.unwrap();
            let told = resolver.resolve(&options, &host, None, false).await.unwrap();
            assert_eq!(told, asked, "{host} by {}", fs::read_to_string(config).unwrap());
            answers.push(told);
        }
        let asked = resolver.answers.lock().await.values().map(Vec::len).sum();
        (answers, asked)
    }

    #[tokio::test]
    async fn ssh_is_asked_once_for_hosts_that_differ_in_their_names_only() {
        let directory = tempfile::tempdir().unwrap();
        let (config, more) = (directory.path().join("config"), directory.path().join("more"));
        let common = "Host *\n User me\n ControlPath ~/%C\n";
        fs::write(&more, "Port 7\nHost c\n Compression yes\n").unwrap();
        for (text, expected) in [
            (String::new(), 1),
            (
                format!(
                    "Host a\n HostName 127.0.0.1\nHost b\n  HostName=x\nHost c\n HostName 127.0.0.3\n{common}"
                ),
                3,
            ),
            (format!("Host a\n HostName 127.0.0.1\nHost b c\n HostName 127.0.0.3\n{common}"), 1),
            (format!("Host a\n Port 1\nHost b !a\n HostName 127.0.0.3\n{common}"), 2),
            (format!("Host a c\n Port 1\nHost b !a\n HostName 127.0.0.3\n{common}"), 2),
            (format!("Host ?\n Port 1\n HostName 127.0.0.3\nHost b\n HostName 127.0.0.4\n{common}"), 2),
            (format!("Include {}\n{common}", more.display()), 2),
            (format!("Host a\nInclude {}\n{common}", more.display()), 3),
            ("Match host a\n Port 3\n".to_owned(), 3),
            ("IdentityFile ~/.ssh/%h\n".to_owned(), 3),
            ("HostName %h.example\n".to_owned(), 3),
            ("ProxyJump j\n".to_owned(), 3),
        ] {
            fs::write(&config, &text).unwrap();
            let (answers, asked) = answers(&config, &["a", "b", "c"]).await;
            assert_eq!((answers.len(), asked), (3, expected), "{text}");
        }
        fs::write(&config, common).unwrap();
        let (_, asked) = answers(&config, &["10.0.0.1", "10.0.0.2", "::1", "BOX", "10.1", "0x7f.1"]).await;
        assert_eq!(asked, 4);
    }

    #[tokio::test]
    async fn hosts_that_are_asked_about_at_once_wait_for_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config");
        fs::write(&config, "Port 7\n").unwrap();
        let (options, resolver) = (SshOptions::default().config(config), Resolver::default());
        let hosts: Vec<HostAddress> = (0..100).map(|number| format!("h{number}").parse().unwrap()).collect();
        let asked = hosts.iter().map(|host| resolver.resolve(&options, host, None, false));
        let answers = futures_util::future::try_join_all(asked).await.unwrap();
        assert!(answers.iter().zip(&hosts).all(|(it, host)| it.get("hostname") == Some(&host.host)));
        assert_eq!(resolver.answers.lock().await.values().map(Vec::len).sum::<usize>(), 1);
    }

    proptest! {
        #![proptest_config(crate::fuzz::cases(32))]

        #[test]
        fn what_is_told_of_a_host_is_what_ssh_says(
            lines in prop::collection::vec(
                prop_oneof![
                    "(Host|host) [ab*?!.]{1,3}( [ab*?!]{1,2})?",
                    "  (HostName|hostname)[ =](a|b|10\\.0\\.0\\.[12]|\"c\"|%h\\.x)",
                    "  (Port 2[0-9]|User [a-c]|Compression yes|IdentityFile ~/(k|%h))",
                ],
                0..8,
            ),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let config = directory.path().join("config");
            fs::write(&config, lines.join("\n")).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (options, resolver) = (SshOptions::default().config(&config), Resolver::default());
                for host in ["a", "b", "aa", "ab.b", "10.0.0.1"] {
                    let host = host.parse().unwrap();
                    let asked = Resolver::default().resolve(&options, &host, None, false).await;
                    let told = resolver.resolve(&options, &host, None, false).await;
                    // A configuration that ssh refuses may be refused for one host only.
                    if let Ok(asked) = asked {
                        assert_eq!(told.unwrap(), asked, "{host} by {lines:?}");
                    }
                }
            });
        }
    }
}
