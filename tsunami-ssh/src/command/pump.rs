//! Moves a command's output, and ends the command when asked to.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::OptionFuture;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tsunami_core::{Exit, OutputSink, SequenceObserver, SessionError, SessionErrorKind, Stream};

use super::conversation::Outputs;
use super::supervisor::{Piece, Status, StatusDecoder};
use super::{Commands, Killed, TRAILING_OUTPUT_TIMEOUT, local};
use crate::pool::Slot;
use crate::shell::Preamble;
use crate::transport::Output;

/// How long the supervisor may take to say that it has begun.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How much is read at a time.
const CHUNK_BYTES: usize = 16 << 10;

/// Bytes of an output that are read although they have to wait for the other one. What that one is behind by lies in
/// sshd, which sends from both by turns and holds no more than a channel's window, 16 MiB at most; to leave any of this
/// unread would close the window to both.
const AHEAD_BYTES: usize = 32 << 20;

/// One output of a conversation.
struct Half {
    /// `None` at its end, and where somebody else takes it.
    from: Option<Output>,
    preamble: Preamble,
    statuses: StatusDecoder,
    /// What was read and not handed on: it waits for the other output to come as far.
    ahead: VecDeque<Piece>,
}

impl Half {
    fn new(from: Option<Output>, preamble: Preamble, mark: &str) -> Self {
        Self { from, preamble, statuses: StatusDecoder::new(mark), ahead: VecDeque::new() }
    }

    /// Whether more is read, though it waits for the other output.
    fn reads_ahead(&self) -> bool {
        let length = |piece: &Piece| if let Piece::Output(bytes) = piece { bytes.len() } else { 0 };
        self.ahead.iter().map(length).sum::<usize>() < AHEAD_BYTES
    }

    /// Takes what was read; nothing is the end.
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            self.from = None;
            let rest = std::mem::take(&mut self.statuses).rest();
            self.ahead.extend((!rest.is_empty()).then_some(Piece::Output(rest)));
            return Ok(());
        }
        self.ahead.extend(self.statuses.take(&self.preamble.take(bytes)?)?);
        Ok(())
    }
}

/// The outputs of a conversation on their way, and what was seen in them.
pub(super) struct Pump {
    commands: Arc<Commands>,
    slot: Slot,
    stdout: Half,
    stderr: Half,
    observer: Arc<dyn SequenceObserver>,
    /// The place of the present command among all that the observer follows.
    index: usize,
    /// How many commands of this conversation come after it.
    left: usize,
    output: Arc<dyn OutputSink>,
    /// Whether what comes is thrown away: the command is ended, and nobody takes it.
    discards: bool,
    /// Whether some was.
    has_discarded: bool,
    supervisor: Option<u32>,
    group: Option<u32>,
    exit: Option<Exit>,
    /// Whether the supervisor goes on to the next command.
    goes_on: bool,
    /// Whether all that the command itself wrote to standard output is here.
    over: bool,
    /// Whether the supervisor has said that it begins no other command.
    halted: bool,
    no_directory: Option<String>,
    sink_failed: Option<io::Error>,
    killed: Option<Killed>,
}

/// What a conversation came to.
pub(super) struct Ended {
    /// The place of the last command that ran.
    pub(super) index: usize,
    pub(super) exit: Exit,
}

impl Pump {
    /// A conversation of `count` commands, the first of which has the place `index` and writes to `output`.
    pub(super) fn new(
        commands: Arc<Commands>,
        slot: Slot,
        outputs: Outputs,
        mark: &str,
        observer: Arc<dyn SequenceObserver>,
        (index, count, output): (usize, usize, Arc<dyn OutputSink>),
    ) -> Self {
        Self {
            commands,
            slot,
            stdout: Half::new(outputs.stdout, outputs.out, mark),
            stderr: Half::new(outputs.stderr, outputs.err, mark),
            observer,
            index,
            left: count.saturating_sub(1),
            output,
            discards: false,
            has_discarded: false,
            supervisor: None,
            group: None,
            exit: None,
            goes_on: false,
            over: false,
            halted: false,
            no_directory: None,
            sink_failed: None,
            killed: None,
        }
    }

    /// Returns whether the commands were asked to end.
    pub(super) async fn run(&mut self, stop: &CancellationToken) -> bool {
        let mut buffers = vec![0; 2 * CHUNK_BYTES];
        let (out, err) = buffers.split_at_mut(CHUNK_BYTES);
        let mut stopping = false;
        let mut killing = None;
        // The group that was told to end.
        let mut told = None;
        let mut alarm: Option<Instant> = None;
        while self.stdout.from.is_some() || self.stderr.from.is_some() {
            let output = self.output.clone();
            let ready = || poll_fn(|cx| output.poll_ready(cx));
            let is_full = ready().now_or_never().is_none();
            // To end it, what waits must flow: the connection may wait with it.
            self.discards = is_full && stopping;
            let reads = !is_full || stopping;
            let reads_stdout = reads && (!self.stdout_waits() || self.stdout.reads_ahead());
            let reads_stderr = reads && (!self.stderr_waits() || self.stderr.reads_ahead());
            tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => stopping = true,
                Some(killed) = OptionFuture::from(killing.as_mut()), if killing.is_some() => {
                    killing = None;
                    self.killed = self.killed.filter(|before| *before == Killed::Left).or(Some(killed));
                }
                // Before the reads, which may always be ready.
                () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => break,
                () = ready(), if !reads => {}
                count = read_some(&mut self.stderr.from, err), if reads_stderr => {
                    let taken = self.stderr.take(&err[..count]);
                    self.advance(taken);
                }
                count = read_some(&mut self.stdout.from, out), if reads_stdout => {
                    let taken = self.stdout.take(&out[..count]);
                    self.advance(taken);
                }
            }
            stopping |= self.sink_failed.is_some();
            if killing.is_some() {
                continue;
            }
            let mut within = |limit| {
                let by = Instant::now() + limit;
                alarm = Some(alarm.map_or(by, |alarm| alarm.min(by)));
            };
            // What a command that has ended left behind is ended as well.
            if stopping {
                match self.group {
                    Some(group) if told != Some(group) => {
                        let (commands, supervisor) = (self.commands.clone(), self.supervisor);
                        (told, alarm) = (Some(group), None);
                        killing = Some(Box::pin(async move { commands.end(group, supervisor).await }));
                    }
                    // How it had ended is on its way.
                    _ if self.was_over() && !(self.exit.is_some() && self.stdout_is_over()) => {
                        within(BEGIN_TIMEOUT);
                    }
                    _ if self.killed.is_some() && self.is_halted() => within(TRAILING_OUTPUT_TIMEOUT),
                    // The next command may have begun before the supervisor was told.
                    _ => within(BEGIN_TIMEOUT),
                }
            } else if self.exit.is_some() && (self.over || self.stdout.from.is_none()) {
                within(TRAILING_OUTPUT_TIMEOUT);
            }
        }
        if let Some(killing) = killing {
            self.killed = Some(killing.await);
        }
        if !self.is_halted() {
            self.killed = self.killed.map(|_| Killed::Left);
        }
        stopping
    }

    /// Whether the only command had ended by itself before it was ended. Of a list, the next one may have begun.
    fn was_over(&self) -> bool {
        self.killed == Some(Killed::Over) && self.supervisor.is_none()
    }

    /// Whether no other command begins in this conversation.
    fn is_halted(&self) -> bool {
        self.halted || self.supervisor.is_none()
    }

    /// Whether what comes now on standard output is not the present command's, or may not be.
    fn stdout_waits(&self) -> bool {
        let told = self.stderr.from.is_none() && self.stderr.ahead.is_empty();
        self.over && (self.goes_on || (self.exit.is_none() && !told))
    }

    /// Whether what comes now on standard error is the next command's.
    fn stderr_waits(&self) -> bool {
        self.goes_on && !self.stdout_is_over()
    }

    fn stdout_is_over(&self) -> bool {
        self.over || (self.stdout.from.is_none() && self.stdout.ahead.is_empty())
    }

    /// Hands on what was read, as far as both outputs have come.
    fn advance(&mut self, taken: io::Result<()>) {
        if let Err(error) = taken {
            // What the machine says is not read any further.
            self.sink_failed.get_or_insert(error);
        }
        loop {
            if let (Some(exit), true, true) = (self.exit, self.goes_on, self.stdout_is_over()) {
                self.begin_next(exit);
            } else if !self.stdout_waits()
                && let Some(piece) = self.stdout.ahead.pop_front()
            {
                match piece {
                    Piece::Output(bytes) => self.hand_on(Stream::Stdout, &bytes),
                    Piece::Status(Status::Over) => self.over = true,
                    Piece::Status(_) => {}
                }
            } else if !self.stderr_waits()
                && let Some(piece) = self.stderr.ahead.pop_front()
            {
                match piece {
                    Piece::Output(bytes) => self.hand_on(Stream::Stderr, &bytes),
                    Piece::Status(status) => self.note(status),
                }
            } else {
                return;
            }
        }
    }

    /// The first note of a kind is the supervisor's.
    fn note(&mut self, status: Status) {
        match status {
            Status::Supervisor(process) => drop(self.supervisor.get_or_insert(process)),
            Status::Started(group) => drop(self.group.get_or_insert(group)),
            Status::NoDirectory(directory) => drop(self.no_directory.get_or_insert(directory)),
            Status::Ended(exit, goes_on) if self.exit.is_none() => {
                self.exit = Some(exit);
                self.goes_on = goes_on && exit.success() && self.left > 0;
                self.halted |= !self.goes_on;
            }
            Status::Stopped => self.halted = true,
            Status::Ended(..) | Status::Over => {}
        }
    }

    fn begin_next(&mut self, exit: Exit) {
        self.observer.ended(self.index, exit);
        self.index += 1;
        self.left -= 1;
        self.output = self.observer.begins(self.index);
        (self.group, self.exit, self.no_directory) = (None, None, None);
        (self.goes_on, self.over) = (false, false);
    }

    fn hand_on(&mut self, stream: Stream, bytes: &[u8]) {
        self.has_discarded |= self.discards;
        if self.sink_failed.is_none() && !self.discards {
            self.sink_failed = self.output.write(stream, bytes).err();
        }
    }

    /// What all that was seen comes to. A command that was told to end when it had ended by itself counts as ended, if
    /// whoever takes its output has all of it.
    pub(super) async fn outcome(self, stopped: bool, is_consumed: bool) -> Result<Ended, SessionError> {
        if let Some(error) = self.sink_failed {
            return Err(local("this computer could not take the command's output", error));
        }
        let is_whole = is_consumed && !self.has_discarded && self.exit.is_some() && self.stdout_is_over();
        match self.killed {
            Some(Killed::Over) if is_whole && self.was_over() => {}
            Some(Killed::Over | Killed::Gone) => {
                return Err(SessionError::new(SessionErrorKind::Cancelled, "cancelled"));
            }
            Some(Killed::Left) => {
                self.commands.pool.check_connection(&self.slot).await?;
                let message = "cancelled, and the command may still be running";
                return Err(SessionError::new(SessionErrorKind::CancelledUnconfirmed, message));
            }
            None => {}
        }
        if let Some(directory) = self.no_directory {
            return Err(SessionError::new(
                SessionErrorKind::Remote,
                format!("cannot enter the directory {directory}"),
            ));
        }
        if let Some(exit) = self.exit {
            return Ok(Ended { index: self.index, exit });
        }
        self.commands.pool.check_connection(&self.slot).await?;
        let Some(group) = self.group else {
            let kind =
                if stopped { SessionErrorKind::CancelledUnconfirmed } else { SessionErrorKind::Remote };
            return Err(SessionError::new(
                kind,
                "the machine did not start the command: has it `sh` and `setsid`?",
            ));
        };
        // Somebody ended the supervisor, so nobody saw how the command ended, or whether.
        let left = match self.commands.end(group, None).await {
            Killed::Left => "may still be running",
            Killed::Over | Killed::Gone => "is gone",
        };
        let message = format!("the command's supervisor was ended from outside; the command {left}");
        Err(SessionError::new(SessionErrorKind::Remote, message))
    }
}

async fn read_some(stream: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    match stream {
        // An error is the end as well: why it came is asked afterwards.
        Some(stream) => stream.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}
