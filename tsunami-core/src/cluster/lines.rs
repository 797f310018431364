//! What a command writes, line by line, while it runs.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use super::output::OutputWatcher;
use super::{Output, Process, ProcessStdin};
use crate::error::Error;
use crate::limits::{LINES_AHEAD_LIMIT, STREAMED_LINE_LIMIT};
use crate::session::{Exit, Stream};

/// A line that a command wrote.
///
/// It shows as its text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Line {
    /// Which of its outputs it wrote it to.
    pub stream: Stream,
    /// The line, without the newline or the carriage return and newline at its end. One that is longer than
    /// [`STREAMED_LINE_LIMIT`] comes in pieces, each as a line.
    pub bytes: Vec<u8>,
}

impl Line {
    /// The line as text; what isn't UTF-8 is replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }

    /// What it takes to hold it, in bytes, more or less.
    fn weight(&self) -> usize {
        self.bytes.len() + size_of::<Self>()
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// The lines of a command that runs, as [`HostCommand::lines`](super::HostCommand::lines) starts it. It is a
/// [`Stream`](futures_util::Stream) of them, too.
///
/// Dropping it begins to end the command and returns at once; [`stop`](Self::stop) waits until it is gone.
#[derive(Debug)]
#[must_use = "dropping it ends the command"]
pub struct OutputLines {
    process: Process,
    queue: Reader,
    end: End,
    exit: Option<Exit>,
}

#[derive(Debug)]
enum End {
    Ahead,
    /// It is told once all lines are.
    Reached(Result<(), Error>),
    Told,
}

impl OutputLines {
    pub(super) fn new(process: Process, queue: Arc<LineQueue>) -> Self {
        Self { process, queue: Reader(queue), end: End::Ahead, exit: None }
    }

    /// The next line of either output, as it comes; `None` after the last one of a command that has succeeded. The lines
    /// of one output are in their order; between the two, order is as the machine sent them. May be dropped and called
    /// again: no line is lost.
    ///
    /// # Errors
    ///
    /// As [`HostCommand::run`](super::HostCommand::run) has them, after the last line, and once.
    pub async fn next_line(&mut self) -> Result<Option<Line>, Error> {
        poll_fn(|cx| self.poll_next_line(cx)).await
    }

    fn poll_next_line(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Line>, Error>> {
        loop {
            if let Some(line) = self.queue.0.pop(cx.waker()) {
                return Poll::Ready(Ok(Some(line)));
            }
            match std::mem::replace(&mut self.end, End::Told) {
                End::Ahead => {
                    self.end = End::Ahead;
                    let ended = ready!(self.process.poll_ended(cx));
                    self.exit = match &ended {
                        Ok(output) => Some(output.exit),
                        Err(error) => error.output().and_then(|output| output.exit),
                    };
                    self.queue.0.finish();
                    self.end = End::Reached(ended.map(drop));
                }
                End::Reached(ended) => return Poll::Ready(ended.map(|()| None)),
                End::Told => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// How it ended, once [`next_line`](Self::next_line) has come to the end; `None` before that, and where the command was
    /// ended before its own end.
    pub fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// What it reads, if that is [`Stdin::piped`](crate::Stdin::piped): so a program can be talked with, line by line.
    pub fn stdin(&mut self) -> &mut ProcessStdin {
        self.process.stdin()
    }

    /// Closes its standard input and waits until it ends by itself, with no regard to the lines that are left. The answer
    /// has only their last ones: [`Output::last_lines`].
    ///
    /// # Errors
    ///
    /// As [`next_line`](Self::next_line) has them.
    pub async fn wait(self) -> Result<Output, Error> {
        let Self { mut process, queue, end, .. } = self;
        drop(queue);
        if let End::Reached(Err(error)) = end {
            return Err(error);
        }
        process.wait().await
    }

    /// Ends the command: TERM, five seconds, then KILL. Returns once it is confirmed gone.
    ///
    /// # Errors
    ///
    /// As [`Process::stop`] has them.
    pub async fn stop(self) -> Result<Option<Output>, Error> {
        let Self { process, queue, .. } = self;
        drop(queue);
        process.stop().await
    }
}

impl futures_util::Stream for OutputLines {
    type Item = Result<Line, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_next_line(cx).map(Result::transpose)
    }
}

/// Who reads the lines. Once it is dropped, nobody does, and the command need not wait.
#[derive(Debug)]
struct Reader(Arc<LineQueue>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// Lines on their way to their reader.
#[derive(Debug, Default)]
pub(super) struct LineQueue(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Line>,
    weight: usize,
    /// The beginnings of lines, of standard output and of standard error.
    torn: [Vec<u8>; 2],
    /// Who waits for a line.
    reader: Option<Waker>,
    /// Who waits for room.
    writer: Option<Waker>,
    is_abandoned: bool,
}

impl LineQueue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next line. Where there is none, the waker hears of the next one.
    fn pop(&self, waker: &Waker) -> Option<Line> {
        let mut waiting = self.waiting();
        let Some(line) = waiting.lines.pop_front() else {
            waiting.reader = Some(waker.clone());
            return None;
        };
        waiting.weight -= line.weight();
        let has_room = waiting.weight < LINES_AHEAD_LIMIT;
        let writer = waiting.writer.take_if(|_| has_room);
        drop(waiting);
        writer.inspect(Waker::wake_by_ref);
        Some(line)
    }

    /// Nothing more comes: what has no end by now is a line.
    fn finish(&self) {
        let mut waiting = self.waiting();
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !waiting.torn[place(stream)].is_empty() {
                waiting.end_line(stream);
            }
        }
    }

    fn abandon(&self) {
        let mut waiting = self.waiting();
        let writer = waiting.writer.take();
        *waiting = Waiting { is_abandoned: true, ..Waiting::default() };
        drop(waiting);
        writer.inspect(Waker::wake_by_ref);
    }
}

impl Waiting {
    fn end_line(&mut self, stream: Stream) {
        let line = Line { stream, bytes: std::mem::take(&mut self.torn[place(stream)]) };
        self.weight += line.weight();
        self.lines.push_back(line);
    }
}

fn place(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

impl OutputWatcher for LineQueue {
    fn look(&self, stream: Stream, bytes: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.is_abandoned {
            return;
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let torn = &mut waiting.torn[place(stream)];
            torn.extend_from_slice(piece);
            let is_whole = torn.pop_if(|byte| *byte == b'\n').is_some();
            if is_whole {
                torn.pop_if(|byte| *byte == b'\r');
            }
            if is_whole || torn.len() >= STREAMED_LINE_LIMIT {
                waiting.end_line(stream);
            }
        }
        let has_line = !waiting.lines.is_empty();
        let reader = waiting.reader.take_if(|_| has_line);
        drop(waiting);
        reader.inspect(Waker::wake_by_ref);
    }

    fn takes_all(&self) -> bool {
        true
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiting = self.waiting();
        if waiting.is_abandoned || waiting.weight < LINES_AHEAD_LIMIT {
            return Poll::Ready(());
        }
        waiting.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(queue: &LineQueue) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(Waker::noop())).map(|line| line.to_string()).collect()
    }

    #[test]
    fn lines_are_whole_however_they_are_cut_and_no_more_are_wanted_than_are_read() {
        let queue = LineQueue::default();
        for byte in b"one\r\n\ntw" {
            queue.look(Stream::Stdout, &[*byte]);
        }
        queue.look(Stream::Stderr, b"else\n");
        queue.look(Stream::Stdout, b"o\nno end");
        assert_eq!(lines(&queue), ["one", "", "else", "two"]);
        queue.finish();
        assert_eq!(lines(&queue), ["no end"]);
        assert_eq!(queue.waiting().weight, 0);

        let mut context = Context::from_waker(Waker::noop());
        assert!(queue.poll_ready(&mut context).is_ready());
        queue.look(Stream::Stdout, &vec![b'x'; LINES_AHEAD_LIMIT]);
        assert!(queue.poll_ready(&mut context).is_pending());
        assert_eq!(lines(&queue).iter().map(String::len).sum::<usize>(), LINES_AHEAD_LIMIT);
        assert!(queue.poll_ready(&mut context).is_ready());
        queue.look(Stream::Stdout, &vec![b'\n'; LINES_AHEAD_LIMIT]);
        assert!(queue.poll_ready(&mut context).is_pending());
        queue.abandon();
        assert!(queue.poll_ready(&mut context).is_ready());
        queue.look(Stream::Stdout, b"nobody reads this\n");
        assert_eq!(queue.waiting().weight, 0);
    }
}
