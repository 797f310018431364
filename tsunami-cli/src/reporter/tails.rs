//! The last lines that commands wrote, for whoever reads of a failure.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Mutex;

use tsunami_core::{Event, EventKind, Observer, Origin, Stream};

use super::lock;
use super::sanitize::{Lines, sanitize_bytes};

/// How many lines of each output are kept. Each has a [bound](super::sanitize::LINE_LIMIT) of its own.
const KEPT: usize = 10;

/// Keeps the last lines of both outputs, by machine and stage.
#[derive(Debug, Default)]
pub(crate) struct Tails(Mutex<HashMap<(String, String), Tail>>);

#[derive(Debug, Default)]
struct Tail {
    /// How many commands go on in the stage: a server, and what asks whether it is ready.
    running: usize,
    /// How many lines there were.
    count: u64,
    outputs: [Output; 2],
}

#[derive(Debug, Default)]
struct Output {
    begun: Lines,
    /// Which line it was, and the line.
    last: VecDeque<(u64, String)>,
}

impl Tails {
    /// The last lines of both outputs, in the order in which they came.
    pub(crate) fn of(&self, machine: &str, stage: &str) -> Vec<String> {
        let mut tails = lock(&self.0);
        let Some(tail) = tails.get_mut(&(machine.to_owned(), stage.to_owned())) else { return Vec::new() };
        tail.finish();
        let mut lines: Vec<_> = tail.outputs.iter().flat_map(|output| output.last.clone()).collect();
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }
}

impl Tail {
    fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let Output { begun, last } = &mut self.outputs[usize::from(stream == Stream::Stderr)];
        begun.push(bytes, |line| keep(last, &mut self.count, line));
    }

    /// Takes what has no end of line for a line.
    fn finish(&mut self) {
        for Output { begun, last } in &mut self.outputs {
            begun.finish(|line| keep(last, &mut self.count, line));
        }
    }
}

fn keep(last: &mut VecDeque<(u64, String)>, count: &mut u64, line: &[u8]) {
    last.drain(..(last.len() + 1).saturating_sub(KEPT));
    last.push_back((*count, sanitize_bytes(line)));
    *count += 1;
}

impl Observer for Tails {
    fn event(&self, event: &Event) {
        match &event.kind {
            EventKind::CommandStarted { machine, stage, .. } => {
                let mut tails = lock(&self.0);
                let tail = tails.entry((machine.clone(), stage.clone())).or_default();
                // What an earlier command of the stage wrote has nothing to do with this one.
                if tail.running == 0 {
                    *tail = Tail::default();
                }
                tail.running += 1;
            }
            EventKind::CommandFinished { machine, stage, .. } => {
                if let Some(tail) = lock(&self.0).get_mut(&(machine.clone(), stage.clone())) {
                    tail.finish();
                    tail.running = tail.running.saturating_sub(1);
                }
            }
            _ => {}
        }
    }

    fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut tails = lock(&self.0);
        tails.entry((origin.machine.to_owned(), origin.stage.to_owned())).or_default().push(stream, bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tsunami_core::Exit;

    use super::*;
    use crate::reporter::text::tests::{at, finished, started};

    #[test]
    fn both_outputs_of_the_last_command_are_kept_whichever_writes_more() {
        let tails = Tails::default();
        let origin = Origin { machine: "a", stage: "b" };
        let write = |stream, text: &str| tails.output(&origin, stream, text.as_bytes()).unwrap();
        tails.event(&at(0.0, started("a", "b", "one")));
        write(Stream::Stderr, "of another command\n");
        tails.event(&at(0.0, finished("a", "b", "one", Ok(Exit::Status(0)))));
        tails.event(&at(0.0, started("a", "b", "serve")));
        write(Stream::Stderr, "cannot bind\nsec");
        (0..1000).for_each(|i| write(Stream::Stdout, &format!("line {i}\n")));
        // Something that asks whether it is ready.
        tails.event(&at(0.0, started("a", "b", "ask")));
        write(Stream::Stderr, "ond");
        let expected: Vec<_> =
            ["cannot bind".to_owned()].into_iter().chain((990..1000).map(|i| format!("line {i}"))).collect();
        assert_eq!(tails.of("a", "b"), [expected, vec!["second".to_owned()]].concat());
        assert_eq!(tails.of("a", "c"), Vec::<String>::new());
    }
}
