//! The steps of an experiment, on machines that are up.

mod clean;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tsunami_core::{
    Cluster, Command, Download, Error, Event, EventKind, Host, HostCommand, Observer, Origin, Process, Stream,
};

use crate::compose::{facts, render, with_env};
use clean::Kept;
use tsunami_core::experiment::{
    Action, Experiment, Fleet, OnError, Pattern, Ready, ReadyWhen, Scope, Step, variables,
};
use tsunami_core::results::Results;
use tsunami_core::{gravest, in_time};

/// Repeats a command line until it succeeds.
const UNTIL: &str = include_str!("steps/until.sh");

/// Waits for a server; its beginning says how.
const LISTENING: &str = include_str!("steps/listening.sh");

/// Ends what a trial has left.
const SWEEP: &str = include_str!("steps/sweep.sh");

/// The variable that tells a step's processes.
const STEP: &str = "TSUNAMI_STEP";

/// What errors call the program's own commands.
const CLEANING: &str = "removal of what an earlier trial collected";
const CHECKING: &str = "the check whether it is ready";
const SWEEPING: &str = "end of what the trial's commands left running";

/// The name of the only trial.
pub(crate) const FIRST_TRIAL: &str = "1";

/// Everything a trial needs.
#[derive(Debug)]
pub(crate) struct Trial<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) experiment: &'a Experiment,
    pub(crate) results: &'a Results,
    pub(crate) signs: &'a Signs,
    pub(crate) name: String,
    pub(crate) fleet: Fleet,
    /// What earlier trials have left where nothing is removed.
    kept: Kept,
    /// Ends all that the steps have begun.
    over: CancellationToken,
}

/// A command that goes on until the trial ends.
struct Background<'a> {
    step: &'a Step,
    host: Host,
    process: Process,
}

/// What tells that something started has come up.
struct Signals {
    /// The sockets that listened before.
    before: String,
    log: Option<oneshot::Receiver<()>>,
}

/// How a machine's part of a step ended: with a process that goes on, perhaps.
type Part<'a> = Result<Option<Background<'a>>, Error>;

impl<'a> Trial<'a> {
    pub(crate) fn new(
        cluster: &'a Cluster,
        experiment: &'a Experiment,
        results: &'a Results,
        signs: &'a Signs,
    ) -> Self {
        let fleet = Fleet::from(cluster.hosts().iter().map(facts).collect::<Vec<_>>());
        let (name, over) = (FIRST_TRIAL.to_owned(), CancellationToken::new());
        Self { cluster, experiment, results, signs, name, fleet, kept: Kept::default(), over }
    }

    /// Does all steps in order, then ends what was started. Ends early when a machine is interrupted: what the
    /// others measure from then on is worth nothing, and they may wait for it in vain.
    pub(crate) async fn run(&self) -> Result<(), Error> {
        let begun = Instant::now();
        self.cluster.emit(EventKind::TrialStarted { trial: self.name.clone() });
        let mut background = Vec::new();
        let mut result = self.clean().await;
        if result.is_ok() {
            let mut steps = Box::pin(self.steps(&mut background));
            result = tokio::select! {
                biased;
                result = &mut steps => result,
                _ = self.cluster.interrupted() => {
                    self.over.cancel();
                    steps.await
                }
            };
        }
        // Whatever else failed, it is this that decides, and it is said with the step where that is known.
        let interrupted = self.cluster.hosts().iter().find_map(Host::interruption);
        let (stopped, swept) = (self.stop(background).await, self.sweep().await);
        let errors = [result, stopped, swept].into_iter().filter_map(Result::err).chain(interrupted);
        let result = gravest(errors.collect()).map_or(Ok(()), Err);
        let (ok, seconds) = (result.is_ok(), begun.elapsed().as_secs_f64());
        self.cluster.emit(EventKind::TrialFinished { trial: self.name.clone(), ok, seconds: round(seconds) });
        result
    }

    async fn steps(&self, background: &mut Vec<Background<'a>>) -> Result<(), Error> {
        for step in &self.experiment.steps {
            let begun = Instant::now();
            let (trial, name) = (self.name.clone(), step.name.clone());
            self.cluster.emit(EventKind::StepStarted { trial, step: name, machines: step.on.clone() });
            let parts = in_time(self.hosts(step)?.into_iter().map(|host| self.part(step, host))).await;
            let mut errors = Vec::new();
            for part in parts {
                match part {
                    Ok(process) => background.extend(process),
                    Err(error) => errors.push(error),
                }
            }
            let (trial, name) = (self.name.clone(), step.name.clone());
            let seconds = round(begun.elapsed().as_secs_f64());
            self.cluster.emit(EventKind::StepFinished { trial, step: name, ok: errors.is_empty(), seconds });
            if self.over.is_cancelled() {
                return gravest(errors).map_or(Ok(()), Err);
            }
            if let Some(error) = gravest(errors)
                && step.on_error == OnError::Fail
            {
                return Err(error);
            }
        }
        Ok(())
    }

    fn hosts(&self, step: &Step) -> Result<Vec<Host>, Error> {
        let host = |name: &String| {
            let missing =
                || Error::other(format!("step {}: there is no machine {name} in this run", step.name));
            self.cluster.host(name).map(|host| host.stage(&step.name)).ok_or_else(missing)
        };
        step.on.iter().map(host).collect()
    }

    fn scope(&self, host: &Host) -> Scope {
        Scope::step(&facts(host), &self.fleet, &self.name, &self.experiment.set)
    }

    /// One machine's part of a step.
    async fn part(&self, step: &'a Step, host: Host) -> Part<'a> {
        match &step.action {
            Action::Run { command, timeout } => {
                let mut command =
                    self.command(step, &host, Command::shell(render(command, &self.scope(&host))?))?;
                if let Some(timeout) = timeout {
                    command = command.timeout(*timeout);
                }
                let ran = command.run().await.map(drop);
                // Brought home whether or not the command succeeded.
                let collected = self.collect(step, &host).await;
                ran.and(collected).map(|()| None)
            }
            Action::Start { command, ready } => {
                let scope = self.scope(&host);
                let line = render(command, &scope)?;
                let log = match ready.as_ref().map(|ready| &ready.when) {
                    Some(ReadyWhen::Log(text)) => {
                        Some(self.signs.wait_for(&host, &step.name, render(text, &scope)?))
                    }
                    _ => None,
                };
                let before = match ready.as_ref().map(|ready| &ready.when) {
                    Some(ReadyWhen::Port(port)) => self.listeners(&host, *port).await?,
                    _ => String::new(),
                };
                let mut process = self.command(step, &host, Command::shell(&line))?.start();
                let up = match ready {
                    Some(ready) => {
                        self.ready(step, &host, ready, Signals { before, log }, &line, &mut process).await
                    }
                    None => Ok(()),
                };
                if let Err(error) = up {
                    // Its files tell why, more likely than not. What else goes wrong now only follows from that.
                    let _ = process.stop().await;
                    let _ = self.collect(step, &host).await;
                    return Err(error);
                }
                Ok(Some(Background { step, host, process }))
            }
        }
    }

    /// A command with the step's directory and environment.
    fn command(&self, step: &Step, host: &Host, command: Command) -> Result<HostCommand, Error> {
        let me = facts(host);
        let scope = self.scope(host);
        let group = self.experiment.group(host.group());
        let mut command = host.command(command).cancel_on(self.over.clone()).env(STEP, &step.name);
        command = with_env(command, &variables(&me, &self.fleet, Some(&self.name)), &[], &scope)?;
        if let Some(group) = group {
            command = with_env(command, &[], &group.env, &Scope::setup(&me, &self.experiment.set))?;
        }
        command = with_env(command, &[], &step.env, &scope)?;
        match &step.cwd {
            Some(cwd) => Ok(command.cwd(render(cwd, &scope)?)),
            None => Ok(command),
        }
    }

    /// Waits until a started command is ready, or ends instead.
    async fn ready(
        &self,
        step: &Step,
        host: &Host,
        ready: &Ready,
        signals: Signals,
        line: &str,
        process: &mut Process,
    ) -> Result<(), Error> {
        // What is asked again and again is no part of the story, nor of the server's own log.
        let is_ready = async {
            match &ready.when {
                ReadyWhen::Port(port) => {
                    let command = listening("wait", *port).arg(&signals.before).arg(own_addresses(host));
                    let command = command.arg(host.name()).arg(&self.name).arg(&step.name);
                    host.command(command).called(CHECKING).unobserved().run().await.map(drop)
                }
                ReadyWhen::Command(template) => {
                    let line = render(template, &self.scope(host))?;
                    let until = own_script("until", UNTIL).arg(line);
                    let command = self.command(step, host, until)?.called(CHECKING);
                    command.unobserved().run().await.map(drop)
                }
                ReadyWhen::Log(_) => match signals.log {
                    Some(seen) => seen.await.map_err(Error::other),
                    None => Ok(()),
                },
            }
        };
        tokio::select! {
            biased;
            is_ready = timeout(ready.timeout, is_ready) => match is_ready {
                Ok(is_ready) => is_ready,
                Err(_) => {
                    let within = humantime::format_duration(ready.timeout);
                    let missing = self.missing(host, &ready.when).await;
                    Err(host.error(format!("`{line}` was not ready within {within}: {missing}")))
                }
            },
            ended = process.wait() => match ended? {
                output if output.exit.success() => Err(host.error(format!(
                    "`{line}` ended with status 0 before it was ready: a `start` stays in the foreground until the \
                     trial ends. Have it not put itself in the background (as `nginx -g 'daemon off;'` and \
                     `redis-server --daemonize no`), or make it a `run` if it is to end"
                ))),
                output => Err(ended_early(host, step, line, output)),
            },
        }
    }

    /// The sockets that listen on a port, as the script has them.
    async fn listeners(&self, host: &Host, port: u16) -> Result<String, Error> {
        let command = host.command(listening("before", port)).called(CHECKING).unobserved();
        let output = command.run().await?;
        Ok(output.stdout().split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// What was waited for in vain.
    async fn missing(&self, host: &Host, when: &ReadyWhen) -> String {
        match when {
            ReadyWhen::Port(port) => match self.listeners(host, *port).await {
                Ok(sockets) if !sockets.is_empty() => {
                    format!(
                        "what listens on port {port} was not started by this step, or nobody else can reach it"
                    )
                }
                _ => format!("nothing listens on port {port}"),
            },
            ReadyWhen::Command(command) => format!("`{}` does not succeed", command.source()),
            ReadyWhen::Log(text) => format!("its output does not have `{}`", text.source()),
        }
    }

    /// Brings home what the step's patterns match. One that must match and doesn't is an error.
    async fn collect(&self, step: &Step, host: &Host) -> Result<(), Error> {
        if step.collect.is_empty() {
            return Ok(());
        }
        let into = self.results.collected(&self.name, &step.name, host.name());
        let (patterns, cwd) = self.patterns(step, host)?;
        let wanted = self.kept.of_this_trial(step, host, &patterns, cwd.as_ref()).await?;
        let download = Download { patterns: wanted.concat(), cwd, into };
        let mut matches = host.download(&download).await?.into_iter();
        for ((pattern, text), wanted) in step.collect.iter().zip(&patterns).zip(&wanted) {
            let count: usize = matches.by_ref().take(wanted.len()).sum();
            if count == 0 && !pattern.optional {
                return Err(host.error(match wanted[..] {
                    [] => format!("all that matches `{text}` in `collect` is older than the trial"),
                    _ => format!("nothing matches `{text}` in `collect`"),
                }));
            }
        }
        Ok(())
    }

    fn patterns(&self, step: &Step, host: &Host) -> Result<(Vec<String>, Option<String>), Error> {
        let scope = self.scope(host);
        let pattern = |pattern: &Pattern| render(&pattern.template, &scope);
        let patterns = step.collect.iter().map(pattern).collect::<Result<_, _>>()?;
        Ok((patterns, step.cwd.as_ref().map(|cwd| render(cwd, &scope)).transpose()?))
    }

    /// Ends what the trial's commands have left in the background.
    async fn sweep(&self) -> Result<(), Error> {
        let used: BTreeSet<&String> = self.experiment.steps.iter().flat_map(|step| &step.on).collect();
        let hosts = used.into_iter().filter_map(|name| self.cluster.host(name));
        let sweeps = hosts.map(|host| {
            let command = own_script("sweep", SWEEP).arg(&self.name);
            // What goes on running there may disturb the next attempt.
            let command = host.stage("sweep").command(command).called(SWEEPING).unobserved();
            command.despite_interruption().run()
        });
        join_all(sweeps).await.into_iter().try_for_each(|swept| swept.map(drop))
    }

    /// Ends what was started, all at once, and brings its files home. A command that failed before its time
    /// fails the trial.
    async fn stop(&self, background: Vec<Background<'a>>) -> Result<(), Error> {
        let ends = background.into_iter().map(async |Background { step, host, process }| {
            let ended = process.stop().await;
            let collected = self.collect(step, &host).await;
            match ended? {
                Some(output) if !output.exit.success() => {
                    Err(ended_early(&host, step, &started(step), output))
                }
                _ => collected,
            }
        });
        gravest(in_time(ends).await.into_iter().filter_map(Result::err).collect()).map_or(Ok(()), Err)
    }
}

fn started(step: &Step) -> String {
    match &step.action {
        Action::Start { command, .. } | Action::Run { command, .. } => command.source().to_owned(),
    }
}

/// The error of a background command that ended by itself while it was needed.
fn ended_early(host: &Host, step: &Step, line: &str, output: tsunami_core::Output) -> Error {
    Error::Command {
        machine: host.name().to_owned(),
        stage: step.name.clone(),
        command: line.to_owned(),
        exit: output.exit,
        stdout: output.last_lines(Stream::Stdout),
        stderr: output.last_lines(Stream::Stderr),
    }
}

/// A command made of a script of tsunami's own, of which logs and events show the name.
fn own_script(name: &str, script: &str) -> Command {
    Command::shell(format!(r#"exec sh -c "$TSUNAMI_SCRIPT" {name} "$@""#)).env("TSUNAMI_SCRIPT", script)
}

/// The script that looks for listeners, with its first two arguments.
fn listening(mode: &str, port: u16) -> Command {
    own_script("listening", LISTENING).arg(mode).arg(format!("{port:04X}"))
}

/// The addresses by which a machine is known, as the kernel's tables have them.
fn own_addresses(host: &Host) -> String {
    let addresses = &host.machine().addresses;
    let known = [Some(host.ip()), addresses.public.as_deref(), addresses.private.as_deref()];
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

fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// Looks for texts in the output of commands as it passes: `ready = { log = "…" }`.
#[derive(Debug, Default)]
pub(crate) struct Signs {
    waiting: Mutex<HashMap<(String, String), Sign>>,
}

#[derive(Debug)]
struct Sign {
    text: Vec<u8>,
    /// The end of what passed, in which the text may begin; of each stream.
    ends: [Vec<u8>; 2],
    seen: Option<oneshot::Sender<()>>,
}

impl Signs {
    fn wait_for(&self, host: &Host, stage: &str, text: String) -> oneshot::Receiver<()> {
        let (seen, seeing) = oneshot::channel();
        let sign = Sign { text: text.into_bytes(), ends: Default::default(), seen: Some(seen) };
        let key = (host.name().to_owned(), stage.to_owned());
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(key, sign);
        seeing
    }
}

impl Observer for Signs {
    fn event(&self, _: &Event) {}

    fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.is_empty() {
            return Ok(());
        }
        let key = (origin.machine.to_owned(), origin.stage.to_owned());
        let Some(sign) = waiting.get_mut(&key) else { return Ok(()) };
        let end = &mut sign.ends[usize::from(stream == Stream::Stderr)];
        end.extend_from_slice(bytes);
        if end.windows(sign.text.len().max(1)).any(|window| window == sign.text) {
            if let Some(seen) = sign.seen.take() {
                let _ = seen.send(());
            }
            waiting.remove(&key);
        } else {
            let excess = end.len().saturating_sub(sign.text.len().saturating_sub(1));
            end.drain(..excess);
        }
        Ok(())
    }
}

/// Checks that a run has all machines of an experiment.
pub(crate) fn check_machines(experiment: &Experiment, hosts: &[Host]) -> Result<(), String> {
    let has = |name: &String| hosts.iter().any(|host| host.name() == name);
    let missing: Vec<String> =
        experiment.machines().map(|(name, ..)| name).filter(|name| !has(name)).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("the run has no machine {}", missing.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_the_kernel_does() {
        assert_eq!(hexadecimal("127.0.0.1").unwrap(), "0100007F");
        assert_eq!(hexadecimal("::1").unwrap(), "00000000000000000000000001000000");
        assert_eq!(hexadecimal("db.example"), None);
    }

    #[test]
    fn a_sign_is_seen_across_cuts() {
        let signs = Signs::default();
        let (seen, mut seeing) = oneshot::channel();
        let sign = Sign { text: b"ready".to_vec(), ends: Default::default(), seen: Some(seen) };
        signs.waiting.lock().unwrap().insert(("a".into(), "b".into()), sign);
        let origin = Origin { machine: "a", stage: "b" };
        for piece in [b"not rea".as_slice(), b"dx", b"rea", b"dy"] {
            assert!(seeing.try_recv().is_err());
            signs.output(&origin, Stream::Stdout, piece).unwrap();
        }
        signs.output(&origin, Stream::Stderr, b"ready").unwrap();
        assert!(seeing.try_recv().is_ok() && signs.waiting.lock().unwrap().is_empty());
    }

    /// Whether the script that waits for a listener is done soon. It can see whose a socket is, or, as somebody else,
    /// it can't.
    fn is_ready(port: u16, before: &str, own: &str, hidden: bool) -> bool {
        let mut command = std::process::Command::new("timeout");
        command.args(["3", "setpriv"]);
        if hidden {
            command.args(["--reuid=65534", "--clear-groups"]);
        }
        command.args([
            "sh",
            "-c",
            LISTENING,
            "sh",
            "wait",
            &format!("{port:04X}"),
            before,
            own,
            "a-0",
            "1",
            "serve",
        ]);
        command.env("TSUNAMI_RUN_ID", "x").status().unwrap().success()
    }

    #[test]
    fn a_stranger_makes_nobody_ready() {
        let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = stranger.local_addr().unwrap().port();
        let own = hexadecimal("127.0.0.1").unwrap();
        assert!(!is_ready(port, "", &own, false), "this process is no step's");
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
        let ready = is_ready(port, "", "", false);
        let group = rustix::process::Pid::from_child(&server);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        server.wait().unwrap();
        assert!(ready, "it is the server that listens, though beside a stranger");
    }

    #[test]
    fn where_nobody_shows_it_a_new_listener_on_an_own_address_will_do() {
        if !rustix::process::geteuid().is_root() {
            // Whose processes could not be seen?
            return a_stranger_makes_nobody_ready();
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let own = hexadecimal("127.0.0.1").unwrap();
        let before = std::process::Command::new("sh")
            .args(["-c", LISTENING, "sh", "before", &format!("{port:04X}")])
            .output();
        let before = String::from_utf8(before.unwrap().stdout).unwrap();
        assert!(is_ready(port, "", &own, true));
        assert!(!is_ready(port, before.trim(), &own, true), "it was there before");
        assert!(
            !is_ready(port, "", &hexadecimal("127.0.0.9").unwrap(), true),
            "the address is another machine's"
        );
        assert!(!is_ready(port, "", "", true), "nobody else can reach it");
        let wildcard = std::net::TcpListener::bind("[::]:0").unwrap();
        assert!(is_ready(wildcard.local_addr().unwrap().port(), "", &own, true));
    }
}
