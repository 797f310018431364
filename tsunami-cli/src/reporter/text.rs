//! The words for what happens, the same in plain lines and above the live ones.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use tsunami_core::text::{Lines, number, sanitize_bytes};
use tsunami_core::trial::PlannedTrial;
use tsunami_core::{Event, EventKind, Origin, Stream};

use super::Verbosity;
use crate::terminal::{Message, Style, one_line};

/// Makes lines of events and output.
#[derive(Debug)]
pub(super) struct Text {
    verbosity: Verbosity,
    run: String,
    /// How wide names are.
    width: usize,
    /// What has no end of line yet, by command and stream.
    partial: HashMap<u64, [Lines; 2]>,
    /// How many trials there are to be, and what each is about.
    trials: (usize, HashMap<String, String>),
}

/// Where a line begins, when there is no time to show.
const NO_TIME: &str = "         ";
/// Names wider than this don't set in what stands beside them any further.
pub(super) const WIDEST: usize = 128;
/// How many machines of a step are named.
const NAMED: usize = 6;

impl Text {
    pub(super) fn new(verbosity: Verbosity) -> Self {
        Self { verbosity, run: String::new(), width: 0, partial: HashMap::new(), trials: Default::default() }
    }

    /// Appends what there is to say of an event, as whole lines.
    pub(super) fn event(&mut self, event: &Event, out: &mut Message) {
        use Verbosity::{Normal, Quiet, Verbose};
        match &event.kind {
            EventKind::RunStarted { run, groups, .. } => {
                self.run = run.to_string();
                let names = groups.iter().map(|group| {
                    group.name.len()
                        + 1
                        + group.count.saturating_sub(1).checked_ilog10().unwrap_or(0) as usize
                        + 1
                });
                self.width = names.max().unwrap_or(0).min(WIDEST);
            }
            EventKind::CommandFinished { machine, stage, command_id, .. } => {
                self.finish(*command_id, machine, stage, out)
            }
            EventKind::SweepPlanned { plan } => {
                let about = |trial: &PlannedTrial| {
                    let value = |(name, value): (&String, &_)| format!("{name}={value}");
                    (trial.name.clone(), trial.parameters.iter().map(value).collect::<Vec<_>>().join(" "))
                };
                self.trials = (plan.counted(), plan.trials.iter().map(about).collect());
            }
            _ => {}
        }
        let (level, style, who, what) = match &event.kind {
            EventKind::RunStarted { run, experiment, deadline, groups } => {
                let groups: Vec<_> = groups.iter().map(|g| format!("{} × {}", g.count, g.name)).collect();
                let left = rest(*deadline, event.at);
                let what = format!("run {run} of {experiment}: {}; ends within {left}", groups.join(", "));
                (Normal, Style::Plain, "", what)
            }
            EventKind::Launching { group, count } => (
                Normal,
                Style::Plain,
                group.as_str(),
                format!("launching {}", number(*count as usize, "machine")),
            ),
            EventKind::Retrying { group, error, delay } => {
                (Normal, Style::Warning, group.as_str(), format!("trying again in {}: {error}", span(*delay)))
            }
            EventKind::Launched { group, machines } => {
                let mut what = format!("launched {}", number(machines.len(), "machine"));
                if self.verbosity >= Verbose {
                    machines.iter().for_each(|id| what.extend([" ", id.as_str()]));
                }
                (Normal, Style::Plain, group.as_str(), what)
            }
            EventKind::Note { group, text } => (Normal, Style::Warning, group.as_str(), text.clone()),
            EventKind::Running { machine, id, address, description, .. } => {
                let at = address.as_ref().map(|address| format!(" at {address}")).unwrap_or_default();
                let what = format!("running{at} ({id}, {description})");
                (Normal, Style::Plain, machine.as_str(), what)
            }
            EventKind::Interrupted { machine, id, reason } => {
                (Quiet, Style::Bad, machine.as_str(), format!("interrupted: {id}: {reason}"))
            }
            EventKind::Connected { machine, .. } => {
                (Normal, Style::Plain, machine.as_str(), "connected".to_owned())
            }
            EventKind::Ready { machine, .. } => (Normal, Style::Good, machine.as_str(), "ready".to_owned()),
            EventKind::Failed { machine, stage, error, .. } => {
                (Quiet, Style::Bad, machine.as_str(), format!("{stage} failed: {error}"))
            }
            EventKind::Uploaded { machine, stage, from, to, took, .. } => {
                let what = format!("{stage}: uploaded {from} to {to} after {}", span(*took));
                (Verbose, Style::Faint, machine.as_str(), what)
            }
            EventKind::CommandStarted { machine, stage, command, .. } => {
                (Verbose, Style::Plain, machine.as_str(), format!("{stage}: $ {command}"))
            }
            EventKind::CommandFinished { machine, stage, command, exit, error, cancelled, took, .. } => {
                let after = span(*took);
                let (level, style, how) = match (exit, error.as_deref()) {
                    (Some(exit), None) if exit.success() => {
                        (Verbose, Style::Faint, format!("done after {after}"))
                    }
                    (Some(exit), None) => (Quiet, Style::Bad, format!("ended with {exit} after {after}")),
                    (None, Some(_)) if *cancelled => {
                        (Verbose, Style::Faint, format!("cancelled after {after}"))
                    }
                    (_, error) => {
                        let error = error.unwrap_or("no reason is known");
                        (Quiet, Style::Bad, format!("failed after {after}: {error}"))
                    }
                };
                (level, style, machine.as_str(), format!("{stage}: `{}` {how}", first_line(command)))
            }
            EventKind::Collected { machine, stage, into, files, .. } => {
                let what = format!("{stage}: {} brought to {into}", number(*files, "file"));
                (Verbose, Style::Faint, machine.as_str(), what)
            }
            EventKind::MachineGone { machine, id } => {
                (Quiet, Style::Bad, machine.as_str(), format!("gone: {id} ended before it should"))
            }
            EventKind::ListingFailed { error } => {
                (Normal, Style::Warning, "", format!("could not list the machines, trying again: {error}"))
            }
            EventKind::Custom { name, data } => (Verbose, Style::Plain, "", format!("{name}: {data}")),
            EventKind::TrialInterrupted { trial, machines } => {
                let machines = machines.join(", ");
                let what = format!(
                    "trial {trial} was interrupted; it is done again with a replacement for {machines}"
                );
                (Quiet, Style::Warning, "", what)
            }
            EventKind::SweepPlanned { plan } => {
                let trials = number(plan.counted(), "trial");
                (Normal, Style::Plain, "", format!("{trials}, in an order of seed {}", plan.seed))
            }
            EventKind::SetStarted { set, .. } => {
                (Verbose, Style::Plain, "", format!("trials on set {set} of machines"))
            }
            EventKind::Fingerprint { machine, facts, .. } => {
                let facts = facts.iter().map(|(name, fact)| format!("{name} {fact}"));
                (Verbose, Style::Faint, machine.as_str(), facts.collect::<Vec<_>>().join(", "))
            }
            EventKind::OddMachine { machine, differences } => {
                let what = format!("differs from its group: {}", differences.join("; "));
                (Quiet, Style::Warning, machine.as_str(), what)
            }
            EventKind::Canary { machine, results } => {
                let results = results.iter().map(|(name, result)| format!("{name} {result:.4e}"));
                let what = format!("by itself: {}", results.collect::<Vec<_>>().join(", "));
                (Verbose, Style::Faint, machine.as_str(), what)
            }
            EventKind::TrialStarted { trial } => {
                let (count, about) = &self.trials;
                let what = match about.get(trial) {
                    Some(about) => format!("trial {trial} of {count}: {about}"),
                    None => format!("trial {trial}"),
                };
                (Normal, Style::Plain, "", what)
            }
            EventKind::Measured { trial, measured } => {
                let of = measured.machine.iter().map(|machine| format!(" of {machine}")).collect::<String>();
                let what = match (&measured.value, &measured.missing) {
                    (Some(value), _) => format!("trial {trial}: {}{of} is {value}", measured.metric),
                    (None, missing) => {
                        let missing = missing.as_deref().unwrap_or_default();
                        format!("trial {trial}: {}{of} can't be read: {missing}", measured.metric)
                    }
                };
                (Verbose, Style::Plain, "", what)
            }
            EventKind::Accounted { trial, account } => {
                let by = account.disturbed.iter().map(|by| format!(", disturbed: {by}")).collect::<String>();
                let what = format!("watched for {:.1} s in trial {trial}{by}", account.seconds);
                (Verbose, Style::Faint, account.machine.as_str(), what)
            }
            EventKind::TrialVoided { trial, attempt, text, machines, .. } => {
                let on =
                    if machines.is_empty() { String::new() } else { format!(" ({})", machines.join(", ")) };
                let what = format!("trial {trial} doesn't count, and is {attempt} from here on: {text}{on}");
                (Quiet, Style::Warning, "", what)
            }
            EventKind::SweepFinished { done, of, why } => {
                let why = why.iter().map(|why| format!(": {why}")).collect::<String>();
                let style = if done < of { Style::Warning } else { Style::Good };
                (Normal, style, "", format!("{done} of {of} trials are done{why}"))
            }
            EventKind::TrialFinished { trial, ok, took, .. } => ended(format!("trial {trial}"), *ok, *took),
            EventKind::StepStarted { trial, step, machines } => {
                let mut on = machines.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
                if machines.len() > NAMED {
                    let _ = write!(on, " and {} more", machines.len() - NAMED);
                }
                (Normal, Style::Plain, "", format!("trial {trial}: step {step} on {on}"))
            }
            EventKind::StepFinished { trial, step, ok, took } => {
                ended(format!("trial {trial}: step {step}"), *ok, *took)
            }
            EventKind::TearingDown { reason } => {
                (Normal, Style::Plain, "", format!("tearing down: {reason}"))
            }
            EventKind::StillThere { leftovers } => {
                let count = number(leftovers.len(), "thing");
                (Normal, Style::Warning, "", format!("{count} still there, asked to end once more"))
            }
            EventKind::TornDown { leftovers, took } if leftovers.is_empty() => {
                (Normal, Style::Good, "", format!("torn down after {}: everything is gone", span(*took)))
            }
            EventKind::TornDown { leftovers, took } => {
                let count = number(leftovers.len(), "thing");
                let mut what = format!("torn down after {}, but {count} may remain:", span(*took));
                leftovers.iter().for_each(|leftover| what.extend(["\n", &one_line(&leftover.to_string())]));
                (Quiet, Style::Bad, "", what)
            }
            EventKind::Kept { until } => {
                let (left, run) = (rest(*until, event.at), &self.run);
                let what =
                    format!("the machines are kept, for {left} at most; `tsunami down {run}` ends them");
                (Quiet, Style::Warning, "", what)
            }
            EventKind::RunFinished { ok: true, .. } => (Normal, Style::Good, "", "finished".to_owned()),
            // Whoever ran it says why.
            EventKind::RunFinished { ok: false, .. } => (Normal, Style::Bad, "", "failed".to_owned()),
            // A kind that is newer than this program; a test sees to it that there is none.
            _ => return,
        };
        if level <= self.verbosity {
            self.lines(event.elapsed, who, style, &what, out);
        }
    }

    /// Appends the lines of output that these bytes complete, if output is shown at all.
    pub(super) fn output(&mut self, origin: &Origin<'_>, stream: Stream, bytes: &[u8], out: &mut Message) {
        if self.verbosity < Verbosity::Verbose {
            return;
        }
        let [stdout, stderr] = self.partial.entry(origin.command_id).or_default();
        let lines = if stream == Stream::Stdout { stdout } else { stderr };
        lines.push(bytes, |line| output_line(self.width, origin.machine, origin.stage, line, out));
    }

    /// Appends what a command wrote without an end of line.
    fn finish(&mut self, command_id: u64, machine: &str, stage: &str, out: &mut Message) {
        for mut lines in self.partial.remove(&command_id).into_iter().flatten() {
            lines.finish(|line| output_line(self.width, machine, stage, line, out));
        }
    }

    /// Appends a line; what `what` has beyond its first line comes below, indented so that it can't be taken for
    /// a line of ours.
    fn lines(&self, elapsed: Duration, who: &str, style: Style, what: &str, out: &mut Message) {
        let time = format!("[{:5.1}s]", elapsed.as_secs_f64());
        let who = one_line(who);
        let indent = if who.is_empty() { 0 } else { self.width.max(who.len()).min(WIDEST) + 2 };
        for (i, line) in what.trim_end().split('\n').enumerate() {
            match i {
                0 => out.line(&[
                    (Style::Faint, &time),
                    (Style::Plain, " "),
                    (Style::Plain, &format!("{who:indent$}")),
                    (style, line),
                ]),
                _ => out.line(&[(Style::Plain, &format!("{NO_TIME} {:indent$}", "")), (style, line)]),
            }
        }
    }
}

fn output_line(width: usize, machine: &str, stage: &str, line: &[u8], out: &mut Message) {
    let (machine, stage) = (one_line(machine), one_line(stage));
    let start = format!("{NO_TIME}{machine:width$}  {stage} | ");
    out.line(&[(Style::Plain, &start), (Style::Plain, &sanitize_bytes(line))]);
}

fn ended(what: String, ok: bool, took: Duration) -> (Verbosity, Style, &'static str, String) {
    let (level, style, how) =
        if ok { (Verbosity::Normal, Style::Good, "done") } else { (Verbosity::Quiet, Style::Bad, "failed") };
    (level, style, "", format!("{what} {how} after {}", span(took)))
}

/// The first line of a command that isn't empty, marked if there is more.
pub(super) fn first_line(command: &str) -> String {
    let mut lines = command.lines().map(str::trim_end).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    if lines.next().is_some() { format!("{first} …") } else { first.to_owned() }
}

/// A time as people say it: `1.2s`, `2m 5s`.
pub(super) fn span(time: Duration) -> String {
    if time < Duration::from_secs(60) && time.subsec_nanos() != 0 {
        return format!("{:.1}s", time.as_secs_f64());
    }
    humantime::format_duration(whole_seconds(time)).to_string()
}

/// The time that is left until `end`, in whole seconds as people say it.
fn rest(end: SystemTime, now: SystemTime) -> String {
    span(whole_seconds(end.duration_since(now).unwrap_or_default()))
}

fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs() + u64::from(time.subsec_millis() >= 500))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tsunami_core::{Exit, GroupSize, Leftover, MachineId, Observer as _};

    use super::*;
    use tsunami_core::text::sanitize;

    use crate::reporter::{Plain, lock};

    /// A writer whose text can be read.
    #[derive(Clone, Default)]
    pub(crate) struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(lock(&self.0).clone()).unwrap()
        }
    }

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn began() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    pub(crate) fn at(elapsed: f64, kind: EventKind) -> Event {
        let elapsed = Duration::from_secs_f64(elapsed);
        Event::new(began() + elapsed, elapsed, kind)
    }

    pub(crate) fn started(machine: &str, stage: &str, command: &str) -> EventKind {
        EventKind::CommandStarted {
            machine: machine.into(),
            id: None,
            command_id: 0,
            stage: stage.into(),
            command: command.into(),
        }
    }

    pub(crate) fn finished(machine: &str, stage: &str, command: &str, exit: Result<Exit, &str>) -> EventKind {
        EventKind::CommandFinished {
            machine: machine.into(),
            id: None,
            command_id: 0,
            stage: stage.into(),
            command: command.into(),
            exit: exit.ok(),
            error: exit.err().map(Into::into),
            cancelled: false,
            took: Duration::from_millis(1250),
        }
    }

    /// The same event of a command that was ended on purpose.
    fn on_purpose(mut kind: EventKind) -> EventKind {
        if let EventKind::CommandFinished { cancelled, .. } = &mut kind {
            *cancelled = true;
        }
        kind
    }

    /// The same event of the command of this number.
    pub(crate) fn numbered(mut kind: EventKind, number: u64) -> EventKind {
        if let EventKind::CommandStarted { command_id, .. } | EventKind::CommandFinished { command_id, .. } =
            &mut kind
        {
            *command_id = number;
        }
        kind
    }

    /// One server and two clients, of which one fails.
    pub(crate) fn little_run() -> Vec<Event> {
        use EventKind::*;
        let groups = [("server", 1), ("client", 2)].map(|(name, count)| GroupSize::new(name, count));
        let run = "20231114-221320-abcd".parse().unwrap();
        let machine = || "client-0".to_owned();
        let (trial, step) = (|| "1".to_owned(), || "load".to_owned());
        let id = || MachineId::new("i-0c");
        vec![
            at(
                0.0,
                RunStarted {
                    run,
                    experiment: "redis".into(),
                    deadline: began() + Duration::from_secs(2700),
                    groups: groups.into(),
                },
            ),
            at(0.0, Launching { group: "client".into(), count: 2 }),
            at(
                0.1,
                Retrying {
                    group: "server".into(),
                    error: "no capacity".into(),
                    delay: Duration::from_secs(2),
                },
            ),
            at(0.9, Launched { group: "client".into(), machines: vec![id(), MachineId::new("i-1c")] }),
            at(
                1.0,
                Running {
                    machine: machine(),
                    id: id(),
                    address: Some("192.0.2.7".into()),
                    description: "a fake machine".into(),
                    price: tsunami_core::Price::Free,
                },
            ),
            at(1.3, Connected { machine: machine(), id: None }),
            at(1.4, started("client-0", "setup", "apt-get update\napt-get install \x1b]0;x\x07redis")),
            at(
                2.7,
                finished("client-0", "setup", "apt-get update\napt-get install redis", Ok(Exit::Status(0))),
            ),
            at(2.8, Ready { machine: machine(), id: None }),
            at(3.0, started("client-1", "setup", "false")),
            at(3.0, finished("client-1", "setup", "false", Ok(Exit::Status(1)))),
            at(
                3.1,
                Failed {
                    machine: "client-1".into(),
                    id: None,
                    stage: "setup".into(),
                    error: "bad\n[  9.9s] \x1b[2Jforged".into(),
                },
            ),
            at(3.5, TrialStarted { trial: trial() }),
            at(3.5, StepStarted { trial: trial(), step: step(), machines: vec![machine()] }),
            at(3.6, started("client-0", "load", "load")),
            at(9.0, finished("client-0", "load", "load", Ok(Exit::Signal(9)))),
            at(9.0, on_purpose(finished("server-0", "server", "redis-server", Err("cancelled")))),
            at(9.0, finished("server-0", "server", "redis-server", Err("the connection is gone"))),
            at(
                9.1,
                StepFinished { trial: trial(), step: step(), ok: false, took: Duration::from_millis(5600) },
            ),
            at(
                9.2,
                TrialFinished { trial: trial(), ok: true, error: None, took: Duration::from_millis(5700) },
            ),
            at(9.3, TearingDown { reason: "a step failed".into() }),
            at(
                75.0,
                TornDown {
                    leftovers: vec![Leftover::new("machine i-0c (client-0)", "timed out")],
                    took: Duration::from_millis(65_700),
                },
            ),
            at(75.0, RunFinished { ok: false, error: Some("…".into()) }),
        ]
    }

    fn told(verbosity: Verbosity, colour: bool) -> String {
        let written = Shared::default();
        let plain = Plain::new(Box::new(written.clone()), verbosity, colour);
        for event in little_run() {
            plain.event(&event);
            if let EventKind::CommandStarted { machine, stage, .. } = &event.kind {
                let origin = Origin::new(machine, stage);
                plain.output(&origin, Stream::Stdout, b"Hit:1 \x1b[32mhttp").unwrap();
                plain.output(&origin, Stream::Stderr, b"warning\r\n").unwrap();
                plain.output(&origin, Stream::Stdout, b"://x\x1b[0m\nno end").unwrap();
            }
        }
        written.text()
    }

    #[test]
    fn a_run_in_plain_lines() {
        insta::assert_snapshot!(told(Verbosity::Normal, false), @"
        [  0.0s] run 20231114-221320-abcd of redis: 1 × server, 2 × client; ends within 45m
        [  0.0s] client    launching 2 machines
        [  0.1s] server    trying again in 2s: no capacity
        [  0.9s] client    launched 2 machines
        [  1.0s] client-0  running at 192.0.2.7 (i-0c, a fake machine)
        [  1.3s] client-0  connected
        [  2.8s] client-0  ready
        [  3.0s] client-1  setup: `false` ended with status 1 after 1.2s
        [  3.1s] client-1  setup failed: bad
                            [  9.9s] forged
        [  3.5s] trial 1
        [  3.5s] trial 1: step load on client-0
        [  9.0s] client-0  load: `load` ended with signal 9 (SIGKILL) after 1.2s
        [  9.0s] server-0  server: `redis-server` failed after 1.2s: the connection is gone
        [  9.1s] trial 1: step load failed after 5.6s
        [  9.2s] trial 1 done after 5.7s
        [  9.3s] tearing down: a step failed
        [ 75.0s] torn down after 1m 6s, but 1 thing may remain:
                  machine i-0c (client-0): timed out
        [ 75.0s] failed
        ");
    }

    #[test]
    fn every_kind_of_event_is_told() {
        let events = include_str!("../../../tsunami-core/tests/fixtures/events-2.jsonl");
        let mut text = Text::new(Verbosity::Verbose);
        for event in tsunami_core::read_events(events.as_bytes()).unwrap() {
            let mut out = Message::new(false);
            text.event(&event, &mut out);
            assert!(!out.is_empty(), "nothing is told of {event:?}");
        }
    }

    #[test]
    fn lines_of_two_commands_of_one_stage_are_not_put_together() {
        let (mut text, mut out) = (Text::new(Verbosity::Verbose), Message::new(false));
        let origin = |command| Origin::new("a", "s").command(None, command);
        text.output(&origin(1), Stream::Stdout, b"one ", &mut out);
        text.output(&origin(2), Stream::Stdout, b"two\n", &mut out);
        text.output(&origin(1), Stream::Stdout, b"goes on\n", &mut out);
        assert_eq!(out.as_str(), "         a  s | two\n         a  s | one goes on\n");
    }

    #[test]
    fn quiet_tells_failures_and_what_may_remain() {
        let (quiet, normal) = (told(Verbosity::Quiet, false), told(Verbosity::Normal, false));
        assert!(quiet.lines().all(|line| normal.contains(line)));
        assert!(
            quiet.contains("SIGKILL") && quiet.ends_with("machine i-0c (client-0): timed out\n"),
            "{quiet}"
        );
        assert_eq!(quiet.lines().count(), 8, "{quiet}");
    }

    #[test]
    fn verbose_tells_commands_and_output() {
        let told = told(Verbosity::Verbose, false);
        let setup: Vec<_> = told.lines().skip(6).take(6).collect();
        insta::assert_snapshot!(setup.join("\n"), @"
        [  1.4s] client-0  setup: $ apt-get update
                            apt-get install redis
                 client-0  setup | warning
                 client-0  setup | Hit:1 http://x
                 client-0  setup | no end
        [  2.7s] client-0  setup: `apt-get update …` done after 1.2s
        ");
        assert!(told.contains("server: `redis-server` cancelled after 1.2s"), "{told}");
    }

    #[test]
    fn colours_are_the_only_control_characters_and_add_nothing_else() {
        let coloured = told(Verbosity::Verbose, true);
        assert!(coloured.contains("\x1b[31m"));
        assert!(!coloured.contains("\x1b[2J"));
        let lines: Vec<_> = coloured.lines().map(|line| sanitize(line)).collect();
        assert_eq!(lines.join("\n"), told(Verbosity::Verbose, false).trim_end());
    }
}
