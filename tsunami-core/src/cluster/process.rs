//! Commands in the background.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use tokio::io::{AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Host, Output};
use crate::error::Error;

/// A command that runs in the background.
///
/// Dropping it begins to stop the command and returns at once; [`stop`](Self::stop) waits until it is gone.
///
/// ```
/// # use std::time::Duration;
/// # use tsunami_core::{Error, Host};
/// # async fn example(host: &Host) -> Result<(), Error> {
/// let mut capture = host.shell("tcpdump -w trace.pcap").start();
/// tokio::time::sleep(Duration::from_secs(10)).await;
/// match capture.try_wait()? {
///     Some(early) => println!("it ended by itself, with {}", early.exit),
///     None => drop(capture.stop().await?),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Process {
    stop: CancellationToken,
    stdin: ProcessStdin,
    state: ProcessState,
}

#[derive(Debug)]
enum ProcessState {
    Running(JoinHandle<Result<Output, Error>>),
    Ended(Output),
    /// Its error has been handed out.
    Failed,
}

impl Process {
    pub(super) fn new(
        stop: CancellationToken,
        stdin: ProcessStdin,
        task: JoinHandle<Result<Output, Error>>,
    ) -> Self {
        Self { stop, stdin, state: ProcessState::Running(task) }
    }

    /// What it reads, if that is [`Stdin::piped`](crate::Stdin::piped).
    ///
    /// ```
    /// # use tsunami_core::{Error, Host, Stdin};
    /// # async fn example(host: &Host) -> Result<(), Error> {
    /// let mut sort = host.program("sort").arg("-n").stdin(Stdin::piped()).start();
    /// for number in [3, 1, 2] {
    ///     sort.stdin().write_all(format!("{number}\n")).await?;
    /// }
    /// assert_eq!(sort.wait().await?.stdout(), "1\n2\n3\n");
    /// # Ok(()) }
    /// ```
    pub fn stdin(&mut self) -> &mut ProcessStdin {
        &mut self.stdin
    }

    /// The same, for somebody else to write to and to close. Nothing can be written to what is left here.
    pub fn take_stdin(&mut self) -> ProcessStdin {
        let ProcessStdin { host, command, is_piped, .. } = &self.stdin;
        let closed =
            ProcessStdin { host: host.clone(), command: command.clone(), is_piped: *is_piped, pipe: None };
        std::mem::replace(&mut self.stdin, closed)
    }

    /// Closes its standard input, unless somebody [took](Self::take_stdin) it, and waits until the command ends by itself.
    /// May be dropped and called again, also when it has ended; an error is told once.
    ///
    /// # Errors
    ///
    /// As [`HostCommand::output`](super::HostCommand::output) has them.
    pub async fn wait(&mut self) -> Result<Output, Error> {
        self.stdin.close();
        poll_fn(|cx| self.poll_ended(cx)).await
    }

    /// What it wrote, and how it ended, if it has ended; `None` while it runs. An error is told once.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait) has them.
    pub fn try_wait(&mut self) -> Result<Option<Output>, Error> {
        poll_fn(|cx| self.poll_ended(cx)).now_or_never().transpose()
    }

    /// Waits for the end, and leaves standard input alone.
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Result<Output, Error>> {
        let ended = match &mut self.state {
            ProcessState::Running(task) => ready!(task.poll_unpin(cx)).map_err(Error::other).flatten(),
            ProcessState::Ended(output) => return Poll::Ready(Ok(output.clone())),
            ProcessState::Failed => {
                return Poll::Ready(Err(Error::other("the process failed, as was told before")));
            }
        };
        self.state = match &ended {
            Ok(output) => ProcessState::Ended(output.clone()),
            Err(_) => ProcessState::Failed,
        };
        Poll::Ready(ended)
    }

    /// Whether the command has ended, so that nothing is left to wait for.
    pub(crate) fn has_ended(&self) -> bool {
        !matches!(&self.state, ProcessState::Running(task) if !task.is_finished())
    }

    /// Ends the command: TERM, five seconds, then KILL. Returns once it is confirmed gone, with how it ended if
    /// that happened before, and without an error that [`wait`](Self::wait) has told already. If the future is dropped, the
    /// command is ended in the background.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait) has them, and [`Error::Session`] if it can't be confirmed gone.
    pub async fn stop(mut self) -> Result<Option<Output>, Error> {
        self.stop.cancel();
        if matches!(self.state, ProcessState::Failed) {
            return Ok(None);
        }
        match self.wait().await {
            Ok(output) => Ok(Some(output)),
            Err(Error::Cancelled) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What a running command reads. Dropping or [closing](Self::close) it is the end of it.
///
/// What the command hasn't read yet is held on the way, then writing waits: 64 KiB here, and beyond that what the session
/// takes, which over SSH is some 2 MiB.
#[derive(Debug)]
pub struct ProcessStdin {
    host: Host,
    command: String,
    is_piped: bool,
    /// `None` once it is closed.
    pipe: Option<DuplexStream>,
}

impl ProcessStdin {
    /// What a command reads, which nobody can write to without a pipe.
    pub(super) fn new(host: Host, command: String, pipe: Option<DuplexStream>) -> Self {
        Self { host, command, is_piped: pipe.is_some(), pipe }
    }

    /// Writes all of it, and waits where the command is slow to read. When this is dropped, a part may have been written.
    ///
    /// # Errors
    ///
    /// That the command reads no more, as when it has ended: waiting for that tells why. Or that nobody may write:
    /// it was closed, or isn't [piped](crate::Stdin::piped).
    pub async fn write_all(&mut self, bytes: impl AsRef<[u8]> + Send) -> Result<(), Error> {
        let written = match &mut self.pipe {
            Some(pipe) => pipe.write_all(bytes.as_ref()).await,
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        written.map_err(|error| {
            let why = match error.kind() {
                io::ErrorKind::NotConnected if self.is_piped => "its standard input is closed",
                io::ErrorKind::NotConnected => {
                    "its standard input is not piped: `stdin(Stdin::piped())` makes it so"
                }
                _ => "it reads no more",
            };
            self.host.error(format!("nothing can be written to `{}`: {why}", self.command))
        })
    }

    /// Lets the command read the end, after all that was written.
    pub fn close(&mut self) {
        self.pipe = None;
    }

    fn open(&mut self) -> io::Result<Pin<&mut DuplexStream>> {
        self.pipe.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsyncWrite for ProcessStdin {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.open()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}
