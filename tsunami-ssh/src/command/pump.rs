//! Moves a command's output, and ends the command when asked to.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::OptionFuture;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tsunami_core::{BoxError, Exit, OutputSink, SessionError, SessionErrorKind, Stream};

use super::conversation::Outputs;
use super::supervisor::{Status, StatusDecoder};
use super::{Commands, TRAILING_OUTPUT_TIMEOUT, local};
use crate::pool::Slot;
use crate::shell::Preamble;
use crate::transport::Output;

/// How long the supervisor may take to say that it has begun.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How much is read at a time.
const CHUNK_BYTES: usize = 16 << 10;

/// A command's outputs on their way, and what was seen in them.
pub(super) struct Pump {
    commands: Arc<Commands>,
    slot: Slot,
    stdout: Option<Output>,
    stderr: Option<Output>,
    stdout_preamble: Preamble,
    stderr_preamble: Preamble,
    stdout_statuses: StatusDecoder,
    stderr_statuses: StatusDecoder,
    output: Arc<dyn OutputSink>,
    group: Option<u32>,
    exit: Option<Exit>,
    /// Whether all that the command itself wrote to standard output is here.
    over: bool,
    no_directory: Option<String>,
    sink_failed: Option<io::Error>,
    killed: Option<bool>,
}

impl Pump {
    pub(super) fn new(
        commands: Arc<Commands>,
        slot: Slot,
        outputs: Outputs,
        mark: &str,
        output: Arc<dyn OutputSink>,
    ) -> Self {
        Self {
            commands,
            slot,
            stdout: outputs.stdout,
            stderr: outputs.stderr,
            stdout_preamble: outputs.out.preamble,
            stderr_preamble: outputs.err.preamble,
            stdout_statuses: StatusDecoder::new(mark),
            stderr_statuses: StatusDecoder::new(mark),
            output,
            group: None,
            exit: None,
            over: false,
            no_directory: None,
            sink_failed: None,
            killed: None,
        }
    }

    /// Returns whether the command was asked to end.
    pub(super) async fn run(&mut self, stop: &CancellationToken) -> bool {
        let mut buffers = vec![0; 2 * CHUNK_BYTES];
        let (out, err) = buffers.split_at_mut(CHUNK_BYTES);
        let mut stopping = false;
        let mut killing = None;
        let mut alarm: Option<Instant> = None;
        while self.stdout.is_some() || self.stderr.is_some() {
            tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => stopping = true,
                Some(gone) = OptionFuture::from(killing.as_mut()), if killing.is_some() => {
                    killing = None;
                    self.killed = Some(gone);
                    alarm = Some(Instant::now() + TRAILING_OUTPUT_TIMEOUT);
                }
                // Before the reads, which may always be ready.
                () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => break,
                count = read_some(&mut self.stderr, err) => self.take_stderr(&err[..count]),
                count = read_some(&mut self.stdout, out) => self.take_stdout(&out[..count]),
            }
            stopping |= self.sink_failed.is_some();
            if killing.is_some() || self.killed.is_some() {
                continue;
            }
            // What a command that has ended left behind is ended as well.
            if stopping {
                match self.group {
                    Some(group) => {
                        let commands = self.commands.clone();
                        alarm = None;
                        killing = Some(Box::pin(async move { commands.end(group).await }));
                    }
                    None => alarm = alarm.or_else(|| Some(Instant::now() + BEGIN_TIMEOUT)),
                }
            } else if self.exit.is_some() && (self.over || self.stdout.is_none()) {
                alarm = alarm.or_else(|| Some(Instant::now() + TRAILING_OUTPUT_TIMEOUT));
            }
        }
        if let Some(killing) = killing {
            self.killed = Some(killing.await);
        }
        stopping
    }

    fn take_stdout(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.stdout = None;
            let rest = std::mem::take(&mut self.stdout_statuses).rest();
            if !rest.is_empty() {
                self.hand_on(Stream::Stdout, &rest);
            }
            return;
        }
        let mut preamble = std::mem::take(&mut self.stdout_preamble);
        match preamble.take(bytes) {
            Ok(said) => {
                let mut statuses = std::mem::take(&mut self.stdout_statuses);
                match statuses.take(&said, |bytes| self.hand_on(Stream::Stdout, bytes)) {
                    Ok(found) => self.over |= found.contains(&Status::Over),
                    Err(error) => self.refuse(error),
                }
                self.stdout_statuses = statuses;
            }
            Err(error) => self.refuse(error),
        }
        self.stdout_preamble = preamble;
    }

    fn take_stderr(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.stderr = None;
        }
        let mut preamble = std::mem::take(&mut self.stderr_preamble);
        let said = preamble.take(bytes).unwrap_or_else(|error| {
            self.refuse(error);
            Cow::Borrowed(&[])
        });
        self.stderr_preamble = preamble;
        let mut statuses = std::mem::take(&mut self.stderr_statuses);
        let found = statuses.take(&said, |bytes| self.hand_on(Stream::Stderr, bytes));
        if self.stderr.is_none() {
            let rest = statuses.rest();
            if !rest.is_empty() {
                self.hand_on(Stream::Stderr, &rest);
            }
        } else {
            self.stderr_statuses = statuses;
        }
        let found = found.unwrap_or_else(|error| {
            self.refuse(error);
            Vec::new()
        });
        for status in found {
            match status {
                // The first of a kind is the supervisor's.
                Status::Started(group) => drop(self.group.get_or_insert(group)),
                Status::NoDirectory(directory) => drop(self.no_directory.get_or_insert(directory)),
                Status::Ended(exit) => drop(self.exit.get_or_insert(exit)),
                Status::Over => {}
            }
        }
    }

    fn hand_on(&mut self, stream: Stream, bytes: &[u8]) {
        if self.sink_failed.is_none() {
            self.sink_failed = self.output.write(stream, bytes).err();
        }
    }

    /// What the machine says is not read any further.
    fn refuse(&mut self, error: impl Into<BoxError>) {
        self.sink_failed.get_or_insert_with(|| io::Error::other(error));
    }

    /// What all that was seen comes to.
    pub(super) async fn outcome(self, stopped: bool) -> Result<Exit, SessionError> {
        if let Some(error) = self.sink_failed {
            return Err(local("the command's output could not be taken", error));
        }
        match (self.exit, self.killed) {
            (_, Some(true)) => return Err(SessionError::new(SessionErrorKind::Cancelled, "cancelled")),
            (_, Some(false)) => {
                self.commands.pool.check_connection(&self.slot).await?;
                let message = "cancelled, and the command may still be running";
                return Err(SessionError::new(SessionErrorKind::CancelledUnconfirmed, message));
            }
            (Some(exit), None) => return Ok(exit),
            (None, None) => {}
        }
        if let Some(directory) = self.no_directory {
            return Err(SessionError::new(
                SessionErrorKind::Remote,
                format!("cannot enter the directory {directory}"),
            ));
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
        let gone = self.commands.end(group).await;
        let left = if gone { "is gone" } else { "may still be running" };
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
