//! What commands write.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use super::Host;
use crate::event::Origin;
use crate::limits::{OUTPUT_LIMIT, OUTPUT_TAIL_LIMIT};
use crate::session::{Exit, OutputSink, Stream};

/// What a command wrote, and how it ended.
///
/// Both outputs are as the command wrote them, byte for byte, a final line break included.
///
/// ```
/// # use tsunami_core::{Error, Host};
/// # async fn example(host: &Host) -> Result<(), Error> {
/// let found = host.shell("grep -c error server.log").output().await?;
/// match found.exit.code() {
///     0 | 1 => println!("{} errors", found.stdout().trim()),
///     _ => println!("it ended with {}: {}", found.exit, found.stderr()),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// The first [`OUTPUT_LIMIT`] bytes of its standard output.
    pub stdout: Vec<u8>,
    /// The first [`OUTPUT_LIMIT`] bytes of its standard error.
    pub stderr: Vec<u8>,
    /// Whether there was more than that of either.
    pub truncated: bool,
    /// Of standard output, and of standard error.
    pub(super) tails: [Tail; 2],
}

impl Output {
    /// Standard output as text; what isn't UTF-8 is replaced.
    pub fn stdout(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// Standard error as text; what isn't UTF-8 is replaced.
    pub fn stderr(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }

    /// The last lines of a stream, however much came before them: ten at most, of its last 4 KiB, joined by `\n` with none
    /// after the last; what isn't UTF-8 is replaced.
    pub fn last_lines(&self, stream: Stream) -> String {
        self.tails[usize::from(stream == Stream::Stderr)].text()
    }
}

/// Hands output on to the observers and keeps as much of it as [`Output`] promises.
pub(super) struct Capture {
    host: Host,
    /// `None` where nobody is told of the command.
    pub(super) command_id: Option<u64>,
    watcher: Option<Arc<dyn OutputWatcher>>,
    kept: Mutex<Kept>,
}

/// Looks at a command's output as it passes, and must not block.
pub(crate) trait OutputWatcher: Send + Sync + fmt::Debug {
    fn look(&self, stream: Stream, bytes: &[u8]);

    /// Whether nobody else wants the output, so that none of it is kept.
    fn takes_all(&self) -> bool {
        false
    }

    /// As [`OutputSink::poll_ready`].
    fn poll_ready(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

#[derive(Default)]
pub(super) struct Kept {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) truncated: bool,
    pub(super) tails: [Tail; 2],
    /// What an observer said that took no more.
    pub(super) refused: Option<OutputRefused>,
}

impl Capture {
    pub(super) fn new(host: Host, command_id: Option<u64>, watcher: Option<Arc<dyn OutputWatcher>>) -> Self {
        Self { host, command_id, watcher, kept: Mutex::default() }
    }

    /// What was kept. From now on it keeps anew.
    pub(super) fn take(&self) -> Kept {
        std::mem::take(&mut *self.kept())
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OutputSink for Capture {
    fn write(&self, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        let mut kept = self.kept();
        kept.tails[usize::from(stream == Stream::Stderr)].push(bytes);
        let all = match stream {
            Stream::Stdout => &mut kept.stdout,
            Stream::Stderr => &mut kept.stderr,
        };
        let limit =
            if self.watcher.as_ref().is_some_and(|watcher| watcher.takes_all()) { 0 } else { OUTPUT_LIMIT };
        let room = bytes.len().min(limit - all.len());
        all.extend_from_slice(&bytes[..room]);
        kept.truncated |= room < bytes.len();
        drop(kept);
        if let Some(watcher) = &self.watcher {
            watcher.look(stream, bytes);
        }
        let Some(command_id) = self.command_id else { return Ok(()) };
        let id = Some(&self.host.inner.machine.id);
        let origin = Origin::new(self.host.name(), &self.host.stage).command(id, command_id);
        let taken = self.host.inner.events.output(&origin, stream, bytes);
        if let Err(error) = &taken {
            self.kept().refused = Some(OutputRefused(std::io::Error::new(error.kind(), error.to_string())));
        }
        taken
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.watcher.as_ref().map_or(Poll::Ready(()), |watcher| watcher.poll_ready(cx))
    }
}

/// What an observer said that could not take a command's output, as where the disk under a log is full. It ended the
/// command, and is among the sources of the command's error.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct OutputRefused(std::io::Error);

impl OutputRefused {
    /// Whether it is what an error stems from.
    pub fn is_source_of(error: &(dyn std::error::Error + 'static)) -> bool {
        std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<Self>())
    }
}

/// The last few kilobytes of a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&bytes[bytes.len().saturating_sub(OUTPUT_TAIL_LIMIT)..]);
        self.0.drain(..self.0.len().saturating_sub(OUTPUT_TAIL_LIMIT));
    }

    /// The last ten lines.
    pub(crate) fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_the_last_lines_whatever_the_cuts() {
        let mut tail = Tail::default();
        for i in 0..10_000 {
            tail.push(format!("line {i}\n").as_bytes());
        }
        tail.push(&[b'x'; 10]);
        let text = tail.text();
        assert_eq!(text.lines().count(), 10);
        assert!(text.ends_with("line 9999\nxxxxxxxxxx"));
        assert!(tail.0.len() <= OUTPUT_TAIL_LIMIT);
        tail.push(&vec![b'y'; 3 * OUTPUT_TAIL_LIMIT]);
        assert_eq!(tail.text().len(), OUTPUT_TAIL_LIMIT);
    }
}
