//! The last lines that commands wrote, for whoever reads of a failure.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Mutex;

use tsunami_core::text::{Lines, sanitize_bytes};
use tsunami_core::{Event, EventKind, Observer, Origin, Stream};

use super::lock;

/// How many lines of each output are told.
const LINES: usize = 10;

/// Bytes of each output that are kept. Lines are made of them only when somebody wants to read them: a flood must cost
/// little.
const BYTES: usize = 4096;

/// Keeps the end of both outputs, by machine and stage.
#[derive(Debug, Default)]
pub(crate) struct Tails(Mutex<HashMap<(String, String), Tail>>);

#[derive(Debug, Default)]
struct Tail {
    /// How many commands go on in the stage: a server, and what asks whether it is ready.
    running: usize,
    /// How many pieces there were.
    count: u64,
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
        let tails = lock(&self.0);
        tails.get(&(machine.to_owned(), stage.to_owned())).map(Tail::lines).unwrap_or_default()
    }
}

impl Tail {
    fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let Output { pieces, size, cut } = &mut self.outputs[usize::from(stream == Stream::Stderr)];
        let end = &bytes[bytes.len().saturating_sub(BYTES)..];
        *cut |= end.len() < bytes.len();
        *size += end.len();
        match pieces.back_mut() {
            // Nothing came in between.
            Some((last, piece)) if *last + 1 == self.count && piece.len() + end.len() <= BYTES => {
                piece.extend_from_slice(end);
            }
            _ => {
                pieces.push_back((self.count, end.to_vec()));
                self.count += 1;
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

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for output in &self.outputs {
            let (mut begun, mut own) = (Lines::default(), Vec::new());
            for (which, piece) in &output.pieces {
                begun.push(piece, |line| own.push((*which, sanitize_bytes(line))));
            }
            begun.finish(|line| own.push((self.count, sanitize_bytes(line))));
            // What is left of a line says less than none.
            let torn = usize::from(output.cut && own.len() > 1);
            lines.extend(own.drain(torn.max(own.len().saturating_sub(LINES))..));
        }
        lines.sort_by_key(|(which, _)| *which);
        lines.into_iter().map(|(_, line)| line).collect()
    }
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
        let origin = Origin::new("a", "b");
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
        (0..100).for_each(|_| write(Stream::Stdout, &"x".repeat(3000)));
        write(Stream::Stdout, "\nlast\n");
        assert_eq!(tails.of("a", "b"), ["cannot bind", "last", "second"]);
        let tails = lock(&tails.0);
        assert!(tails.values().flat_map(|tail| &tail.outputs).all(|output| output.size < 2 * BYTES));
    }
}
