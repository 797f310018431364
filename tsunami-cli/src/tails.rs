//! The last lines that commands wrote, for whoever reads of a failure.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Mutex;

use tsunami_core::text::{Lines, sanitize_bytes};
use tsunami_core::{Error as CoreError, ErrorChain, Event, EventKind, Observer, Origin, Stream};

use crate::reporter::{Sweep, lock};

/// How many lines of each output are told.
const LINES: usize = 10;

/// Bytes of each output that are kept. Lines are made of them only when somebody wants to read them: a flood must cost
/// little.
const BYTES: usize = 4096;

/// A machine and a stage.
type Place = (String, String);

/// Keeps the end of both outputs of each command that goes on, and of the last that ended, by machine and stage. Of many
/// trials, the first one that failed is what is told of: what later ones write is no part of that.
#[derive(Debug, Default)]
pub(crate) struct Tails(Mutex<HashMap<Place, Stage>>, Mutex<Option<FailedTrial>>, Mutex<Sweep>);

/// A trial that failed, and the last lines as they were then.
#[derive(Debug)]
struct FailedTrial {
    trial: String,
    /// Which of many it was, in words.
    called: Option<String>,
    why: Option<String>,
    lines: HashMap<Place, Vec<String>>,
}

#[derive(Debug, Default)]
struct Stage {
    /// Those that go on (a server, and what asks whether it is ready), and those that ended since the last one began.
    commands: Vec<Tail>,
    /// How many pieces there were.
    count: u64,
}

#[derive(Debug)]
struct Tail {
    command_id: u64,
    goes_on: bool,
    outputs: [Output; 2],
}

#[derive(Debug, Default)]
struct Output {
    /// Which piece it was, and its bytes.
    pieces: VecDeque<(u64, Vec<u8>)>,
    size: usize,
    /// Whether there was more before.
    cut: bool,
}

impl Tails {
    /// The last lines of both outputs, in the order in which they came.
    pub(crate) fn of(&self, machine: &str, stage: &str) -> Vec<String> {
        let place = (machine.to_owned(), stage.to_owned());
        let then = lock(&self.1).as_ref().and_then(|failed| failed.lines.get(&place).cloned());
        then.or_else(|| lock(&self.0).get(&place).map(Stage::lines)).unwrap_or_default()
    }

    /// Which of many trials first failed, if this is why it did.
    pub(crate) fn trial_of(&self, error: &CoreError) -> Option<String> {
        let failed = lock(&self.1);
        let failed = failed.as_ref()?;
        let why = failed.why.as_ref()?;
        // The first of several trials' errors is that of the first, which may be one of several machines' itself.
        let mut errors = std::iter::successors(Some(error), |error| match error {
            CoreError::Several(failures) => Some(&*failures.first),
            _ => None,
        });
        errors.any(|error| ErrorChain(error).to_string() == *why).then(|| failed.called.clone()).flatten()
    }
}

impl Stage {
    fn push(&mut self, command_id: u64, stream: Stream, bytes: &[u8]) {
        let place = self.commands.iter().rposition(|tail| tail.command_id == command_id);
        let place = place.unwrap_or_else(|| {
            self.commands.push(Tail { command_id, goes_on: false, outputs: Default::default() });
            self.commands.len() - 1
        });
        self.commands[place].outputs[usize::from(stream == Stream::Stderr)].push(&mut self.count, bytes);
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for output in self.commands.iter().flat_map(|tail| &tail.outputs) {
            let (mut begun, mut own) = (Lines::default(), Vec::new());
            for (which, piece) in &output.pieces {
                begun.push(piece, |line| own.push((*which, sanitize_bytes(line))));
            }
            begun.finish(|line| own.push((self.count, sanitize_bytes(line))));
            // The first line has lost its beginning, and is left out.
            let torn = usize::from(output.cut && own.len() > 1);
            lines.extend(own.drain(torn.max(own.len().saturating_sub(LINES))..));
        }
        lines.sort_by_key(|(which, _)| *which);
        lines.into_iter().map(|(_, line)| line).collect()
    }
}

impl Output {
    fn push(&mut self, count: &mut u64, bytes: &[u8]) {
        let Self { pieces, size, cut } = self;
        let end = &bytes[bytes.len().saturating_sub(BYTES)..];
        *cut |= end.len() < bytes.len();
        *size += end.len();
        match pieces.back_mut() {
            // Nothing came in between.
            Some((last, piece)) if *last + 1 == *count && piece.len() + end.len() <= BYTES => {
                piece.extend_from_slice(end);
            }
            _ => {
                pieces.push_back((*count, end.to_vec()));
                *count += 1;
            }
        }
        while let Some((_, first)) = pieces.front()
            && *size - first.len() >= BYTES
        {
            *size -= first.len();
            *cut = true;
            pieces.pop_front();
        }
    }
}

impl Observer for Tails {
    fn event(&self, event: &Event) {
        match &event.kind {
            EventKind::CommandStarted { machine, stage, command_id, .. } => {
                let mut tails = lock(&self.0);
                let stage = tails.entry((machine.clone(), stage.clone())).or_default();
                // What an earlier command of the stage wrote has nothing to do with this one.
                stage.commands.retain(|tail| tail.goes_on);
                stage.commands.push(Tail {
                    command_id: *command_id,
                    goes_on: true,
                    outputs: Default::default(),
                });
            }
            EventKind::CommandFinished { machine, stage, command_id, .. } => {
                let mut tails = lock(&self.0);
                let stage = tails.get_mut(&(machine.clone(), stage.clone()));
                let commands = stage.into_iter().flat_map(|stage| &mut stage.commands);
                commands.filter(|tail| tail.command_id == *command_id).for_each(|tail| tail.goes_on = false);
            }
            EventKind::SweepPlanned { plan } => *lock(&self.2) = Sweep::of(plan),
            // That a warm-up failed is told by nobody either.
            EventKind::TrialFinished { trial, ok: false, error, .. } if trial.parse::<u32>().is_ok() => {
                let tails = lock(&self.0);
                let lines = || tails.iter().map(|(place, stage)| (place.clone(), stage.lines())).collect();
                let sweep = lock(&self.2);
                lock(&self.1).get_or_insert_with(|| FailedTrial {
                    trial: trial.clone(),
                    called: sweep.has_many().then(|| sweep.called(trial)),
                    why: error.clone(),
                    lines: lines(),
                });
            }
            // It is done again, and its failure told by nobody.
            EventKind::TrialVoided { trial, .. } => {
                lock(&self.1).take_if(|failed| failed.trial == *trial);
            }
            // Only commands write.
            _ => {}
        }
    }

    fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut tails = lock(&self.0);
        let stage = tails.entry((origin.machine.to_owned(), origin.stage.to_owned())).or_default();
        stage.push(origin.command_id, stream, bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tsunami_core::Exit;

    use super::*;
    use crate::reporter::{at, finished, numbered, started};

    #[test]
    fn what_the_first_trial_that_failed_and_counts_wrote_is_kept() {
        let tails = Tails::default();
        let trial = |name: &str, ok: bool| {
            let number = name.len() as u64;
            tails.event(&at(0.0, numbered(started("a", "b", "x"), number)));
            let origin = Origin::new("a", "b").command(None, number);
            tails.output(&origin, Stream::Stdout, name.as_bytes()).unwrap();
            tails.event(&at(0.5, numbered(finished("a", "b", "x", Ok(Exit::Status(1))), number)));
            let took = std::time::Duration::ZERO;
            tails.event(&at(1.0, EventKind::TrialFinished { trial: name.into(), ok, error: None, took }));
        };
        trial("1", false);
        let (reason, machines) = (tsunami_core::trial::VoidReason::Disturbed, Vec::new());
        let (trial_of, attempt, text) = ("1".to_owned(), "1.1".to_owned(), String::new());
        tails.event(&at(1.0, EventKind::TrialVoided { trial: trial_of, attempt, reason, text, machines }));
        trial("22", true);
        trial("333", false);
        trial("4444", false);
        trial("55555", true);
        assert_eq!(tails.of("a", "b"), ["333"]);
    }

    #[test]
    fn both_outputs_of_the_last_command_are_kept_whichever_writes_more() {
        let tails = Tails::default();
        let write = |command, stream, text: &str| {
            tails.output(&Origin::new("a", "b").command(None, command), stream, text.as_bytes()).unwrap();
        };
        let begin = |command| tails.event(&at(0.0, numbered(started("a", "b", "x"), command)));
        let end = |command| {
            tails.event(&at(0.0, numbered(finished("a", "b", "x", Ok(Exit::Status(0))), command)));
        };
        begin(1);
        write(1, Stream::Stderr, "of another command\n");
        end(1);
        begin(2);
        write(2, Stream::Stderr, "cannot bind\nsec");
        (0..1000).for_each(|i| write(2, Stream::Stdout, &format!("line {i}\n")));
        // Something that asks whether it is ready, and again.
        for command in [3, 4] {
            begin(command);
            write(command, Stream::Stderr, &format!("no answer to {command}\n"));
            write(2, Stream::Stderr, if command == 3 { "on" } else { "d" });
            end(command);
        }
        let expected: Vec<_> =
            ["cannot bind".to_owned()].into_iter().chain((990..1000).map(|i| format!("line {i}"))).collect();
        let last = ["no answer to 4", "second"].map(str::to_owned).to_vec();
        assert_eq!(tails.of("a", "b"), [expected, last].concat());
        assert_eq!(tails.of("a", "c"), Vec::<String>::new());
        (0..100).for_each(|_| write(2, Stream::Stdout, &"x".repeat(3000)));
        write(2, Stream::Stdout, "\nlast\n");
        assert_eq!(tails.of("a", "b"), ["cannot bind", "no answer to 4", "last", "second"]);
        let tails = lock(&tails.0);
        let all = tails.values().flat_map(|stage| &stage.commands);
        assert!(all.clone().flat_map(|tail| &tail.outputs).all(|output| output.size < 2 * BYTES));
        assert_eq!(all.count(), 2);
    }
}
