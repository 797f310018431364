//! The steps of an experiment, on machines that are up.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tsunami_core::{
    Cluster, Command, Download, Error, Event, EventKind, Host, HostCommand, Observer, Origin, Process, Stream,
};

use crate::compose::{facts, render, with_env};
use crate::error::{gravest, in_time};
use crate::experiment::{
    Action, Experiment, Fleet, OnError, Pattern, Ready, ReadyWhen, Scope, Step, variables,
};
use crate::results::Results;

/// Repeats a command line, `$1`, until it succeeds. It runs as every command line does.
const UNTIL: &str = r#"
if command -v bash >/dev/null 2>&1; then set -- bash -eo pipefail -c "$1"; else set -- sh -e -c "$1"; fi
until "$@"; do sleep 0.25; done"#;

/// Succeeds once something listens on port `$1` (in hexadecimal) of one of this machine's addresses. Reads the
/// kernel's table: a connection would disturb a server that takes only one. Addresses there are hexadecimal too,
/// and `$2` is the machine's own; all of 127.0.0.1 and the wildcards count as well.
const LISTENING: &str = r#"
while :; do
    while read -r _ local _ state _; do
        case $state:$local in
        "0A:$2:$1" | "0A:0100007F:$1" | "0A:00000000:$1" | 0A:????????????????????????????????:"$1") exit 0 ;;
        esac
    done <<EOF
$(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null)
EOF
    sleep 0.05
done"#;

/// Ends all processes of trial `$1`, by the mark in their environment: TERM, five seconds, KILL. Fails if some
/// are left.
const SWEEP: &str = r#"
trial=$1 tries=0
while :; do
    set -- $(grep -lzxF -- "TSUNAMI_RUN_ID=$TSUNAMI_RUN_ID" /proc/[0-9]*/environ 2>/dev/null)
    [ $# -eq 0 ] || set -- $(grep -lzxF -- "TSUNAMI_TRIAL=$trial" "$@" 2>/dev/null)
    pids=
    for file; do
        pid=${file#/proc/}
        pids="$pids ${pid%/environ}"
    done
    [ -n "$pids" ] || exit 0
    case $tries in
    0) kill -s TERM $pids ;;
    5?) kill -s KILL $pids ;;
    60) echo "still running:$pids" >&2; exit 1 ;;
    esac
    tries=$((tries + 1))
    sleep 0.1
done"#;

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
    /// Ends all that the steps have begun.
    over: CancellationToken,
}

/// A command that goes on until the trial ends.
struct Background<'a> {
    step: &'a Step,
    host: Host,
    process: Process,
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
        Self { cluster, experiment, results, signs, name, fleet, over }
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
                let mut process = self.command(step, &host, Command::shell(&line))?.start();
                let up = match ready {
                    Some(ready) => self.ready(step, &host, ready, log, &line, &mut process).await,
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
        let mut command = host.command(command).cancel_on(self.over.clone());
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
        log: Option<oneshot::Receiver<()>>,
        line: &str,
        process: &mut Process,
    ) -> Result<(), Error> {
        let is_ready = async {
            match &ready.when {
                ReadyWhen::Port(port) => {
                    let command = Command::program("sh").arg("-c").arg(LISTENING).arg("sh");
                    let command = command.arg(format!("{port:04X}")).arg(hexadecimal(host.ip()));
                    host.command(command).called(CHECKING).unobserved().run().await.map(drop)
                }
                ReadyWhen::Command(template) => {
                    let line = render(template, &self.scope(host))?;
                    let until = Command::program("sh").arg("-c").arg(UNTIL).arg("sh").arg(line);
                    let command = self.command(step, host, until)?.called(CHECKING);
                    command.unobserved().run().await.map(drop)
                }
                ReadyWhen::Log(_) => match log {
                    Some(seen) => seen.await.map_err(Error::other),
                    None => Ok(()),
                },
            }
        };
        tokio::select! {
            biased;
            is_ready = timeout(ready.timeout, is_ready) => is_ready.unwrap_or_else(|_| {
                let within = humantime::format_duration(ready.timeout);
                Err(host.error(format!("`{line}` was not ready within {within}: {}", describe(&ready.when))))
            }),
            ended = process.wait() => Err(ended_early(host, step, line, ended?)),
        }
    }

    /// Brings home what the step's patterns match. One that must match and doesn't is an error.
    async fn collect(&self, step: &Step, host: &Host) -> Result<(), Error> {
        if step.collect.is_empty() {
            return Ok(());
        }
        let into = self.results.collected(&self.name, &step.name, host.name());
        let (patterns, cwd) = self.patterns(step, host)?;
        let matches = host.download(&Download { patterns: patterns.clone(), cwd, into }).await?;
        for ((pattern, text), count) in step.collect.iter().zip(&patterns).zip(matches) {
            if count == 0 && !pattern.optional {
                return Err(host.error(format!("nothing matches `{text}` in `collect`")));
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

    /// Removes what the steps will collect, so that no trial brings home another's files.
    async fn clean(&self) -> Result<(), Error> {
        const REMOVE: &str =
            r#"IFS=; for pattern; do for name in $pattern; do rm -rf -- "$name"; done; done"#;
        let mut removals = Vec::new();
        for step in self.experiment.steps.iter().filter(|step| !step.collect.is_empty()) {
            for host in self.hosts(step)? {
                let (patterns, cwd) = self.patterns(step, &host)?;
                let command = Command::program("sh").arg("-c").arg(REMOVE).arg("sh");
                let mut command = patterns.iter().fold(command, |command, pattern| command.arg(pattern));
                if let Some(cwd) = cwd {
                    // A directory that the trial is yet to make has nothing to remove.
                    let enter = r#"cd -- "$1" 2>/dev/null || exit 0; shift; "#;
                    command =
                        Command::program("sh").arg("-c").arg(format!("{enter}{REMOVE}")).arg("sh").arg(cwd);
                    command = patterns.iter().fold(command, |command, pattern| command.arg(pattern));
                }
                let command = host.stage("clean").command(command).called(CLEANING).unobserved();
                removals.push(command.run());
            }
        }
        join_all(removals).await.into_iter().try_for_each(|removed| removed.map(drop))
    }

    /// Ends what the trial's commands have left in the background.
    async fn sweep(&self) -> Result<(), Error> {
        let used: BTreeSet<&String> = self.experiment.steps.iter().flat_map(|step| &step.on).collect();
        let hosts = used.into_iter().filter_map(|name| self.cluster.host(name));
        let sweeps = hosts.map(|host| {
            let command = Command::program("sh").arg("-c").arg(SWEEP).arg("sh").arg(&self.name);
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

/// What was waited for in vain.
fn describe(when: &ReadyWhen) -> String {
    match when {
        ReadyWhen::Port(port) => format!("nothing listens on port {port}"),
        ReadyWhen::Command(command) => format!("`{}` does not succeed", command.source()),
        ReadyWhen::Log(text) => format!("its output does not have `{}`", text.source()),
    }
}

fn started(step: &Step) -> String {
    match &step.action {
        Action::Start { command, .. } | Action::Run { command, .. } => command.source().to_owned(),
    }
}

/// The error of a background command that ended by itself while it was needed.
fn ended_early(host: &Host, step: &Step, line: &str, output: tsunami_core::Output) -> Error {
    let stderr = output.stderr();
    let lines: Vec<&str> = stderr.lines().collect();
    Error::Command {
        machine: host.name().to_owned(),
        stage: step.name.clone(),
        command: line.to_owned(),
        exit: output.exit,
        stderr: lines[lines.len().saturating_sub(10)..].join("\n"),
    }
}

/// An IPv4 address as /proc/net/tcp writes it; anything else matches no line.
fn hexadecimal(address: &str) -> String {
    let octets = address.parse::<std::net::Ipv4Addr>().map(|address| address.octets());
    octets.map_or_else(|_| "-".to_owned(), |[a, b, c, d]| format!("{d:02X}{c:02X}{b:02X}{a:02X}"))
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
        assert_eq!(hexadecimal("127.0.0.1"), "0100007F");
        assert_eq!(hexadecimal("fe80::1"), "-");
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
}
