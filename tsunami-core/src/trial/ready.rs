//! How to tell that something started has come up.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::command::ended_early;
use super::{TrialHost, lock, own_script};
use crate::cluster::{Host, HostCommand, Output, OutputWatcher, Process};
use crate::error::Error;
use crate::session::{Command, Stdin, Stream};

/// How long something started may take to come up, unless [`Ready::within`] says otherwise.
pub const DEFAULT_READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Repeats a command line until it succeeds.
const UNTIL: &str = include_str!("until.sh");

/// Waits for a server; its beginning says how.
const LISTENING: &str = include_str!("listening.sh");

/// Asks a server over HTTP; its beginning says how.
const HTTP: &str = include_str!("http.sh");

/// What it says once a server may start.
const LOOKED: &str = "looked\n";

/// What errors call the commands that ask.
const CHECKING: &str = "the check whether it is ready";

/// A sign that something started has come up, and how long that may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    sign: Sign,
    timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Sign {
    Port(u16),
    Http { port: u16, path: String },
    Command(String),
    Log(String),
}

impl Ready {
    /// The process that was started, or one that descends from it, listens on this port where others can reach it: on all
    /// addresses or on one of the machine's, and not on `127.0.0.1` alone. Where nobody shows whose a listener is, as with
    /// another user's or with a server that has written over its environment, it is one that was not there before.
    pub fn port(port: u16) -> Self {
        Self::new(Sign::Port(port))
    }

    /// The process that was started, or one that descends from it, listens on this port, as [`port`](Self::port) tells it,
    /// and answers a request for this path over HTTP with a status of 2xx or 3xx. The machine asks, with `curl`, `bash`,
    /// `python3`, `perl` or `wget`, of which it needs one.
    pub fn http(port: u16, path: impl Into<String>) -> Self {
        Self::new(Sign::Http { port, path: path.into() })
    }

    /// This command line succeeds, in the directory and environment of what was started.
    pub fn command(line: impl Into<String>) -> Self {
        Self::new(Sign::Command(line.into()))
    }

    /// This text appears in what it prints, on either output.
    pub fn log(text: impl Into<String>) -> Self {
        Self::new(Sign::Log(text.into()))
    }

    fn new(sign: Sign) -> Self {
        Self { sign, timeout: DEFAULT_READY_TIMEOUT }
    }

    /// Sets how long it may take. Default: [`DEFAULT_READY_TIMEOUT`].
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Looks at how things are before the command starts, and lets its output be watched if need be.
    pub(super) async fn prepare(
        self,
        host: &TrialHost,
        mut command: HostCommand,
    ) -> Result<(HostCommand, Waiting), Error> {
        let (mut listener, mut log) = (None, None);
        match &self.sign {
            Sign::Port(port) | Sign::Http { port, .. } => {
                listener = Some(watch_for_listener(host, *port).await?)
            }
            Sign::Log(text) => {
                let (watcher, seen) = LogWatcher::new(text);
                (command, log) = (command.watched_by(watcher), Some(seen));
            }
            Sign::Command(_) => {}
        }
        let waiting = Waiting { ready: self, host: host.clone(), command: command.clone(), listener, log };
        Ok((command, waiting))
    }
}

/// Waits for the sign.
pub(super) struct Waiting {
    ready: Ready,
    host: TrialHost,
    command: HostCommand,
    /// What waits for a listener, and knows which there were before.
    listener: Option<Process>,
    log: Option<oneshot::Receiver<()>>,
}

impl Waiting {
    /// Waits until a started command is ready, or ends instead.
    pub(super) async fn until_ready(self, line: &str, process: &mut Process) -> Result<(), Error> {
        let Self { ready: Ready { sign, timeout: limit }, host, command, mut listener, log } = self;
        // The server's URL, once it listens, and what its answers' statuses are.
        let (asked, statuses) = (OnceLock::new(), Arc::new(LastLine::default()));
        // What is asked again and again is no part of the story, nor of the server's own log.
        let is_ready = async {
            match &sign {
                Sign::Port(_) => match &mut listener {
                    Some(listener) => has_succeeded(&host, listener).await.map(drop),
                    None => Ok(()),
                },
                Sign::Http { port, path } => match &mut listener {
                    Some(listener) => {
                        let output = has_succeeded(&host, listener).await?;
                        let server = listening_at(&output.stdout());
                        let _ = asked.set(format!("http://{server}:{port}{path}"));
                        let script = own_script("http", HTTP).arg(server).arg(port.to_string()).arg(path);
                        let asking = host.host.command(script).called(CHECKING).unobserved();
                        asking.stdin(Stdin::Null).watched_by(statuses.clone()).run().await.map(drop)
                    }
                    None => Ok(()),
                },
                Sign::Command(line) => {
                    let until = command.alike(own_script("until", UNTIL).arg(line)).stdin(Stdin::Null);
                    until.called(CHECKING).unobserved().run().await.map(drop)
                }
                Sign::Log(_) => match log {
                    Some(seen) => seen.await.map_err(Error::other),
                    None => Ok(()),
                },
            }
        };
        tokio::select! {
            biased;
            is_ready = timeout(limit, is_ready) => match is_ready {
                Ok(is_ready) => is_ready,
                Err(_) => {
                    let within = humantime::format_duration(limit);
                    let missing = match (asked.get(), statuses.get()) {
                        (Some(url), None) => format!("{url} does not answer"),
                        (Some(url), Some(status)) => format!("{url} answers with status {status}"),
                        (None, _) => missing(&host, &sign).await,
                    };
                    Err(host.error(format!("`{line}` was not ready within {within}: {missing}")))
                }
            },
            ended = process.wait() => match ended? {
                output if output.exit.success() => Err(host.error(format!(
                    "`{line}` ended with status 0 before it was ready: a `start` stays in the foreground until the \
                     trial ends. Have it not put itself in the background (as `nginx -g 'daemon off;'` and \
                     `redis-server --daemonize no`), or make it a `run` if it is to end"
                ))),
                output => Err(ended_early(&host, line.to_owned(), &output)),
            },
        }
    }
}

/// What was waited for in vain.
async fn missing(host: &TrialHost, sign: &Sign) -> String {
    match sign {
        Sign::Port(port) | Sign::Http { port, .. } => match listeners(host, *port).await {
            Ok(places) if !places.is_empty() => listens_in_vain(*port, &places),
            _ => format!("nothing listens on port {port}"),
        },
        Sign::Command(line) => format!("`{line}` does not succeed"),
        Sign::Log(text) => format!("its output does not have `{text}`"),
    }
}

/// Why who listens there does not make a step ready, by [`listeners`].
fn listens_in_vain(port: u16, listeners: &BTreeSet<(IpAddr, Whose)>) -> String {
    let why = |whose| match whose {
        Whose::Steps => ", is this step's, but nobody else can reach it there: bind it to `{{ ip }}`",
        Whose::Unknown => {
            ", was not started by this step, or nobody else can reach it there: bind it to `{{ ip }}`"
        }
        Whose::Stranger => ", was not started by this step",
    };
    let told = listeners.iter().map(|(_, whose)| *whose).min().unwrap_or(Whose::Stranger);
    let places = listeners.iter().filter(|(_, whose)| *whose == told).map(|(place, _)| place.to_string());
    let places: BTreeSet<String> = places.collect();
    format!("what listens on port {port}, at {}{}", Vec::from_iter(places).join(" and "), why(told))
}

/// Has the machine wait for a listener of the host's stage, beside those that are there when this returns.
async fn watch_for_listener(host: &TrialHost, port: u16) -> Result<Process, Error> {
    let script = of_step(listening("wait", port), host);
    let (watcher, looked) = LogWatcher::new(LOOKED);
    let mut waiting = host.host.command(script).called(CHECKING).unobserved().watched_by(watcher).start();
    if looked.await.is_err() {
        // It has ended without a word, and tells why.
        has_succeeded(host, &mut waiting).await?;
    }
    Ok(waiting)
}

async fn has_succeeded(host: &Host, check: &mut Process) -> Result<Output, Error> {
    match check.wait().await? {
        output if output.exit.success() => Ok(output),
        output => Err(ended_early(host, CHECKING.to_owned(), &output)),
    }
}

/// Who has something that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    /// A process of the step.
    Steps,
    /// Nobody shows it.
    Unknown,
    /// Another process.
    Stranger,
}

/// Where somebody listens on the port, and who.
async fn listeners(host: &TrialHost, port: u16) -> Result<BTreeSet<(IpAddr, Whose)>, Error> {
    let script = of_step(listening("list", port), host);
    let output = host.host.command(script).called(CHECKING).unobserved().run().await?;
    Ok(listeners_of(&output.stdout()))
}

fn listeners_of(said: &str) -> BTreeSet<(IpAddr, Whose)> {
    let listener = |line: &str| {
        let (address, whose) = line.split_once(' ')?;
        let whose = match whose {
            "step" => Whose::Steps,
            "stranger" => Whose::Stranger,
            _ => Whose::Unknown,
        };
        Some((address_of(address)?.to_canonical(), whose))
    };
    said.lines().filter_map(listener).collect()
}

/// The script with what tells it the host's step.
fn of_step(script: Command, host: &TrialHost) -> Command {
    let script = script.arg(own_addresses(host));
    script.arg(host.name()).arg(host.trial.name()).arg(host.stage_name())
}

/// The script that looks for listeners, with its first two arguments.
fn listening(mode: &str, port: u16) -> Command {
    own_script("listening", LISTENING).arg(mode).arg(format!("{port:04X}"))
}

/// Where what listens can be asked, as URLs have it, by the last line that the script says. What listens everywhere can be
/// asked at the loopback.
fn listening_at(said: &str) -> String {
    let loopback = |address: IpAddr| match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    match said.lines().last().and_then(address_of).map(|address| loopback(address.to_canonical())) {
        Some(IpAddr::V6(address)) => format!("[{address}]"),
        Some(IpAddr::V4(address)) => address.to_string(),
        None => Ipv4Addr::LOCALHOST.to_string(),
    }
}

/// An address that is written as [`hexadecimal`] writes it.
fn address_of(kernels: &str) -> Option<IpAddr> {
    let words =
        kernels.as_bytes().chunks(8).map(|word| u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok());
    let octets: Vec<u8> =
        words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_le_bytes).collect();
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
    }
}

/// The addresses by which a machine is known, as the kernel's tables have them.
fn own_addresses(host: &Host) -> String {
    let addresses = &host.machine().addresses;
    let known = [host.ip().ok(), addresses.public.as_deref(), addresses.private.as_deref()];
    let known: BTreeSet<String> = known.into_iter().flatten().filter_map(hexadecimal).collect();
    known.into_iter().collect::<Vec<_>>().join(" ")
}

/// An address as /proc/net/tcp or tcp6 writes it: words of four bytes, the last byte first.
fn hexadecimal(address: &str) -> Option<String> {
    let octets = match address.parse().ok()? {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let word = |word: &[u8]| word.iter().rev().map(|byte| format!("{byte:02X}")).collect::<String>();
    Some(octets.chunks(4).map(word).collect())
}

/// Looks for a text in the output of a command as it passes.
#[derive(Debug)]
pub(super) struct LogWatcher {
    text: Vec<u8>,
    state: Mutex<LogState>,
}

#[derive(Debug)]
struct LogState {
    /// The end of what passed, in which the text may begin; of each stream.
    ends: [Vec<u8>; 2],
    /// Whom to tell; nobody any more once the text was seen.
    seen: Option<oneshot::Sender<()>>,
}

impl LogWatcher {
    fn new(text: &str) -> (Arc<Self>, oneshot::Receiver<()>) {
        let (seen, seeing) = oneshot::channel();
        let state = LogState { ends: Default::default(), seen: Some(seen) };
        (Arc::new(Self { text: text.as_bytes().to_vec(), state: Mutex::new(state) }), seeing)
    }
}

impl OutputWatcher for LogWatcher {
    fn look(&self, stream: Stream, bytes: &[u8]) {
        let LogState { ends, seen } = &mut *lock(&self.state);
        if seen.is_none() {
            return;
        }
        let end = &mut ends[usize::from(stream == Stream::Stderr)];
        end.extend_from_slice(bytes);
        if end.windows(self.text.len().max(1)).any(|window| window == self.text) {
            let _ = seen.take().map(|seen| seen.send(()));
            *ends = Default::default();
        } else {
            let excess = end.len().saturating_sub(self.text.len().saturating_sub(1));
            end.drain(..excess);
        }
    }
}

/// The statuses that a check prints, one a line.
#[derive(Debug, Default)]
struct LastLine(Mutex<String>);

impl LastLine {
    /// The last one that was printed whole.
    fn get(&self) -> Option<String> {
        let said = lock(&self.0);
        let (lines, _) = said.rsplit_once('\n')?;
        lines.lines().last().map(str::to_owned)
    }
}

impl OutputWatcher for LastLine {
    fn look(&self, stream: Stream, bytes: &[u8]) {
        let mut said = lock(&self.0);
        // Each is short; a server whose status changes without end is not kept whole.
        if stream == Stream::Stdout {
            said.push_str(&String::from_utf8_lossy(bytes));
            let excess = said.rfind('\n').and_then(|end| said[..end].rfind('\n')).map_or(0, |end| end + 1);
            said.drain(..excess);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Stdio;

    use super::super::STEP;
    use super::*;

    #[test]
    fn who_listens_in_vain_is_a_stranger_or_hidden() {
        let told = |said: &str| listens_in_vain(80, &listeners_of(said));
        let [loopback, other] = ["127.0.0.1", "127.0.0.2"].map(|address| hexadecimal(address).unwrap());
        let stranger = "what listens on port 80, at 127.0.0.1 and 127.0.0.2, was not started by this step";
        assert_eq!(told(&format!("{loopback} stranger\n{other} stranger\n")), stranger);
        let hidden = told(&format!("{loopback} step\n{other} stranger\n"));
        assert!(hidden.contains("at 127.0.0.1, is this step's, but nobody else"), "{hidden}");
        assert!(told(&format!("{loopback} unknown\n")).contains("by this step, or nobody else"));
    }

    #[test]
    fn addresses_are_written_as_the_kernel_does() {
        assert_eq!(hexadecimal("127.0.0.1").unwrap(), "0100007F");
        assert_eq!(hexadecimal("::1").unwrap(), "00000000000000000000000001000000");
        assert_eq!(hexadecimal("db.example"), None);
        for address in ["127.0.0.1", "::1", "fd00::12:3"].map(|address| address.parse::<IpAddr>().unwrap()) {
            assert_eq!(address_of(&hexadecimal(&address.to_string()).unwrap()), Some(address));
        }
        for (said, server) in [
            ("looked\n0200007F\n", "127.0.0.2"),
            ("looked\n00000000\n", "127.0.0.1"),
            ("looked\n00000000000000000000000000000000\n", "[::1]"),
            ("looked\n0000000000000000FFFF00000200007F\n", "127.0.0.2"),
            ("looked\n", "127.0.0.1"),
        ] {
            assert_eq!(listening_at(said), server);
        }
    }

    /// Answers requests, one after another, with these statuses, and says what was asked for.
    fn serve(address: &str, statuses: &'static [u16]) -> (u16, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = std::thread::spawn(move || {
            let answer = |status: &u16| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.push(byte[0]);
                }
                // Not every server gives a reason.
                let reason = if *status == 204 { "" } else { " Word" };
                let answer = format!(
                    "HTTP/1.1 {status}{reason}\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                stream.write_all(answer.as_bytes()).unwrap();
                let request = String::from_utf8(request).unwrap();
                request.split(' ').nth(1).unwrap().to_owned()
            };
            statuses.iter().map(answer).collect()
        });
        (port, serving)
    }

    #[test]
    fn a_server_is_asked_over_http_with_whatever_there_is() {
        let root = tempfile::tempdir().unwrap();
        let shells: [&[&str]; 3] = [&["dash"], &["bash", "--posix"], &["busybox", "sh"]];
        // Not what stands before them in somebody's own path.
        let absolute = |program: &str| {
            let found = std::process::Command::new("/bin/sh")
                .args(["-c", "command -v \"$0\"", program])
                .env("PATH", "/usr/bin:/bin")
                .output()
                .unwrap();
            String::from_utf8(found.stdout).unwrap().trim().to_owned()
        };
        let tools = ["curl", "bash", "python3", "perl", "wget"].map(|tool| (tool, absolute(tool)));
        for (tool, program) in tools.iter().filter(|(_, program)| !program.is_empty()) {
            let path = root.path().join(tool);
            std::fs::create_dir(&path).unwrap();
            let link =
                |program: &str, name: &str| std::os::unix::fs::symlink(program, path.join(name)).unwrap();
            link(program, tool);
            ["sleep", "sed", "sh"].iter().for_each(|needed| link(&absolute(needed), needed));
            // Busybox's shell takes its own, which crashes as Debian builds it.
            for shell in shells.into_iter().filter(|shell| *tool != "wget" || shell[0] != "busybox") {
                let ask = |host: &str, port: u16| {
                    let mut command = std::process::Command::new(absolute(shell[0]));
                    command.args(&shell[1..]).args(["-c", &crate::compact_script(HTTP), "http", host]);
                    // It is asked directly, and by no home's settings.
                    command.env("http_proxy", "http://127.0.0.1:9").env("PATH", &path);
                    let said = command.args([&*port.to_string(), "/up?a='b'"]).output().unwrap();
                    assert!(said.status.success(), "{tool} {shell:?} {said:?}");
                    String::from_utf8(said.stdout).unwrap()
                };
                let (port, serving) = serve("127.0.0.2", &[503, 503, 404, 204]);
                assert_eq!(ask("127.0.0.2", port), "503\n404\n", "{tool} {shell:?}");
                assert_eq!(serving.join().unwrap(), ["/up?a='b'"; 4], "{tool}");
                // A redirection is an answer, and not followed.
                let (port, serving) = serve("::1", &[302]);
                assert_eq!(ask("[::1]", port), "", "{tool} {shell:?}");
                serving.join().unwrap();
            }
        }
        // A tool need not come to an end, and one that dies says nothing of the server.
        let fake = root.path().join("fake");
        std::fs::create_dir(&fake).unwrap();
        let with = |curl: &str| {
            std::fs::write(fake.join("curl"), format!("#!/bin/sh\n{curl}\n")).unwrap();
            std::fs::set_permissions(fake.join("curl"), PermissionsExt::from_mode(0o755)).unwrap();
            let mut command = std::process::Command::new("/bin/sh");
            command.args(["-c", HTTP, "http", "127.0.0.2", "80", "/"]);
            command.env("PATH", format!("{}:/usr/bin:/bin", fake.display())).output().unwrap()
        };
        let endless = with("printf 'HTTP/1.1 103 Hints\\r\\n\\r\\nHTTP/1.1 200 OK\\r\\n'; exec sleep 1000");
        assert!(endless.status.success(), "{endless:?}");
        let dead = with("kill -SEGV $$");
        let said = String::from_utf8_lossy(&dead.stderr);
        assert!(dead.status.code() == Some(1) && said.contains("`curl` of this machine"), "{dead:?}");
        assert!(said.contains("signal 11"), "{said}");
        let mut none = std::process::Command::new("/bin/sh");
        none.args(["-c", HTTP, "http", "127.0.0.2", "80", "/"]);
        let none = none.env("PATH", root.path()).output().unwrap();
        assert!(
            String::from_utf8_lossy(&none.stderr).contains("install curl") && none.status.code() == Some(127)
        );
    }

    #[test]
    fn a_sign_is_seen_across_cuts() {
        let (watcher, mut seeing) = LogWatcher::new("ready");
        for piece in [b"not rea".as_slice(), b"dx", b"rea", b"dy"] {
            assert!(seeing.try_recv().is_err());
            watcher.look(Stream::Stdout, piece);
        }
        watcher.look(Stream::Stderr, b"ready");
        assert!(seeing.try_recv().is_ok());
    }

    /// Whether the script that waits for a listener is done soon, when one comes at this address after it has looked. It
    /// can see whose a socket is, or, as somebody else, it can't.
    fn is_ready(port: u16, comes: Option<&str>, own: &str, hidden: bool) -> bool {
        is_ready_with(port, || comes.map(|address| TcpListener::bind((address, port)).unwrap()), own, hidden)
    }

    fn is_ready_with<T>(port: u16, comes: impl FnOnce() -> T, own: &str, hidden: bool) -> bool {
        let mut command = std::process::Command::new("timeout");
        command.args(["3", "setpriv"]);
        if hidden {
            command.args(["--reuid=65534", "--clear-groups"]);
        }
        command.args(["sh", "-c", LISTENING, "sh", "wait", &format!("{port:04X}"), own, "a-0", "1", "serve"]);
        let mut waiting = command.env("TSUNAMI_RUN_ID", "x").stdout(Stdio::piped()).spawn().unwrap();
        let mut looked = [0; LOOKED.len()];
        waiting.stdout.as_mut().unwrap().read_exact(&mut looked).unwrap();
        assert_eq!(looked, LOOKED.as_bytes());
        let _listener = comes();
        waiting.wait().unwrap().success()
    }

    /// A port at which nobody listens.
    fn free_port(address: &str) -> u16 {
        TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn a_stranger_makes_nobody_ready() {
        let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = stranger.local_addr().unwrap().port();
        let own = hexadecimal("127.0.0.1").unwrap();
        assert!(!is_ready(port, None, &own, false), "this process is no step's");
        let mut server = std::process::Command::new("perl");
        let listen = "IO::Socket::INET->new(LocalAddr => '127.0.0.2', LocalPort => shift, Listen => 1) or die; sleep 100";
        // Its environment is its parent's business.
        let line = r#"env -i "$0" -MIO::Socket::INET -e "my \$s = $1" "$2"; true"#;
        let server =
            server.args(["-e", "exec @ARGV", "sh", "-c", line, "/usr/bin/perl", listen, &port.to_string()]);
        let marks =
            [("TSUNAMI_RUN_ID", "x"), ("TSUNAMI_NAME", "a-0"), ("TSUNAMI_TRIAL", "1"), (STEP, "serve")];
        let mut server =
            std::os::unix::process::CommandExt::process_group(server.envs(marks), 0).spawn().unwrap();
        let hidden = is_ready(port, None, "", false);
        let ready = is_ready(port, None, &hexadecimal("127.0.0.2").unwrap(), false);
        let group = rustix::process::Pid::from_child(&server);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        server.wait().unwrap();
        assert!(!hidden, "it is the server that listens, but where nobody else can reach it");
        assert!(ready, "it is the server that listens, though beside a stranger");
    }

    /// As redis, nginx and PostgreSQL do it, which show what they do in place of their arguments.
    #[test]
    fn a_server_that_has_written_over_its_environment_will_do_at_an_own_address() {
        let listens = |port: u16, environment: &[(&str, &str)]| {
            let mut server = std::process::Command::new("/usr/bin/perl");
            let listen = "IO::Socket::INET->new(LocalAddr => '127.0.0.2', LocalPort => shift, Listen => 1) or die; sleep 9";
            server.args(["-MIO::Socket::INET", "-e", &format!("my $s = {listen}"), &port.to_string()]);
            server.env_clear().envs(environment.iter().copied()).spawn().unwrap()
        };
        let ready = |environment: &[(&str, &str)], own: &str| {
            let port = free_port("127.0.0.2");
            let mut server = None;
            let own = hexadecimal(own).unwrap();
            let ready = is_ready_with(port, || server = Some(listens(port, environment)), &own, false);
            let mut server = server.unwrap();
            server.kill().unwrap();
            server.wait().unwrap();
            ready
        };
        assert!(ready(&[], "127.0.0.2"));
        assert!(!ready(&[], "127.0.0.9"), "the address is another machine's");
        assert!(!ready(&[("PATH", "/usr/bin")], "127.0.0.2"), "it shows that it is somebody else's");
    }

    #[test]
    fn where_nobody_shows_it_a_new_listener_on_an_own_address_will_do() {
        if !rustix::process::geteuid().is_root() {
            // Whose processes could not be seen?
            return a_stranger_makes_nobody_ready();
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (own, other) = (hexadecimal("127.0.0.1").unwrap(), hexadecimal("127.0.0.9").unwrap());
        assert!(!is_ready(port, None, &own, true), "it was there before");
        assert!(is_ready(
            port,
            Some("127.0.0.2"),
            &format!("{own} {}", hexadecimal("127.0.0.2").unwrap()),
            true
        ));
        drop(listener);
        let comes = |own: &str| is_ready(free_port("127.0.0.1"), Some("127.0.0.1"), own, true);
        assert!(comes(&own));
        assert!(!comes(&other), "the address is another machine's");
        assert!(!comes(""), "nobody else can reach it");
        assert!(is_ready(free_port("::"), Some("::"), &own, true));
    }
}
