//! One channel: what it reads is sent, what it writes is handed on, and nothing is held without a bound.

use std::collections::VecDeque;
use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use rustix::fs::{FileType, fstat};
use rustix::io::ioctl_fionread;
use tokio::io::{AsyncReadExt, AsyncWrite, DuplexStream, duplex};
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::limits::BULK_BYTES;
use crate::transport::{Channel, Output};

/// How much is read of a file at a time.
const CHUNK_BYTES: usize = 32 << 10;

/// How much of an input may be on its way to a near machine. sshd holds what its command has not read yet, up to 2 MiB, in
/// one buffer, which it copies into fresh memory for each packet that comes: the more is there, the more a packet costs.
const AHEAD_BYTES: usize = 128 << 10;

/// How much more for each millisecond that the machine is away, so that distance alone leaves 100 MiB/s, and sshd's own
/// bound is reached at 20 ms.
const AHEAD_BYTES_PER_MS: usize = 100 << 10;

/// How long a machine may leave unsaid that it has taken some of it, before it is given as much as it takes. sshd says so
/// at once; others say so after half of what they take.
const TAKING_TIMEOUT: Duration = Duration::from_millis(500);

/// How much of an output waits for its reader. Beyond that the whole connection waits: russh opens a window again as
/// soon as it has received, so that this is what bounds memory.
const WAITING_BYTES: usize = 1 << 20;

/// How many messages wait at most, however small they are.
const WAITING_MESSAGES: usize = 1024;

/// How long the machine may take to close a channel that has come to its end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How much an output in memory takes before its reader reads.
const PIPE_BYTES: usize = 64 << 10;

/// How much of an output is thrown away when its reader is gone. Then the channel is closed, so that what writes there
/// ends.
const UNREAD_BYTES: usize = 1 << 20;

/// Makes a channel of an open one, on which nothing runs yet. `distance` is how long it takes to the machine and back.
pub(super) async fn run(
    channel: russh::Channel<Msg>,
    distance: Duration,
    line: &str,
    stdin: OwnedFd,
    stdout: Option<OwnedFd>,
    closed: CancellationToken,
) -> Result<Channel, russh::Error> {
    let input = Input::of(stdin)?;
    let (stdout_end, stdout) = match stdout {
        Some(stdout) => (None, Sink::of(stdout)?),
        None => {
            let (ours, theirs) = duplex(PIPE_BYTES);
            (Some(theirs), Sink::Memory(ours))
        }
    };
    let (stderr, stderr_end) = duplex(PIPE_BYTES);
    channel.exec(true, line).await?;
    let (read, write) = channel.split();
    let dropped = CancellationToken::new();
    let (told, told_end) = oneshot::channel();
    let (window, ahead) = Ahead::of(distance);
    let pump = Pump {
        outputs: [OutputQueue::new(stdout), OutputQueue::new(Sink::Memory(stderr))],
        told: Some(told),
        window,
        read,
        is_ending: false,
    };
    tokio::spawn(pump.run(write, (input, ahead), dropped.clone(), closed));
    let output = |stream: DuplexStream| -> Output { Box::new(stream) };
    let guard = dropped.drop_guard();
    let end = Box::pin(async move {
        // Dropping this closes the channel.
        let _guard = guard;
        told_end.await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    });
    Ok(Channel { stdout: stdout_end.map(output), stderr: Some(output(stderr_end)), end })
}

/// What a channel reads.
enum Input {
    Pipe(pipe::Receiver),
    File(tokio::fs::File),
}

impl Input {
    fn of(end: OwnedFd) -> io::Result<Self> {
        if is_pipe(&end)? {
            return pipe::Receiver::from_owned_fd(end).map(Self::Pipe);
        }
        Ok(Self::File(File::from(end).into()))
    }

    /// Sends all of it, and its end.
    async fn send(mut self, mut ahead: Ahead, to: &ChannelWriteHalf<Msg>) -> Result<(), russh::Error> {
        loop {
            let room = ahead.room().await;
            // An idle channel holds no buffer.
            let mut bytes = CHUNK_BYTES.min(room);
            if let Self::Pipe(pipe) = &self {
                pipe.readable().await?;
                let waiting = ioctl_fionread(pipe).map_err(io::Error::from)?;
                bytes = usize::try_from(waiting).unwrap_or(usize::MAX).clamp(1, BULK_BYTES.min(room));
            }
            let mut chunk = BytesMut::with_capacity(bytes);
            let count = match &mut self {
                Self::Pipe(pipe) => match pipe.try_read_buf(&mut chunk) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    count => count?,
                },
                Self::File(file) => file.read_buf(&mut chunk).await?,
            };
            if count == 0 {
                return to.eof().await;
            }
            ahead.sent(count);
            to.data_bytes(chunk.freeze()).await?;
        }
    }
}

/// How far an input may be ahead of what the machine has taken of it.
struct Ahead {
    /// How much the machine would take, as it last said, less what was sent by then.
    window: watch::Receiver<u32>,
    /// The most that it would take, as far as is known: then nothing was on its way.
    largest: u32,
    most: usize,
    room: usize,
}

impl Ahead {
    /// Also returns where to put what the machine says.
    fn of(distance: Duration) -> (watch::Sender<u32>, Self) {
        let away = usize::try_from(distance.as_micros()).unwrap_or(usize::MAX);
        let most = AHEAD_BYTES.saturating_add(away.saturating_mul(AHEAD_BYTES_PER_MS) / 1000);
        let (said, window) = watch::channel(0);
        (said, Self { window, largest: 0, most, room: most })
    }

    /// How much may be sent now. Waits until that is anything.
    async fn room(&mut self) -> usize {
        while self.room == 0 || self.window.has_changed().unwrap_or(false) {
            if !matches!(timeout(TAKING_TIMEOUT, self.window.changed()).await, Ok(Ok(()))) {
                (self.most, self.room) = (usize::MAX, usize::MAX);
                break;
            }
            let window = *self.window.borrow_and_update();
            self.largest = self.largest.max(window);
            let on_its_way = usize::try_from(self.largest - window).unwrap_or(usize::MAX);
            self.room = self.most.saturating_sub(on_its_way);
        }
        self.room
    }

    fn sent(&mut self, bytes: usize) {
        self.room = self.room.saturating_sub(bytes);
    }
}

fn is_pipe(end: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(end)?.st_mode) == FileType::Fifo)
}

/// Where an output goes.
enum Sink {
    Pipe(pipe::Sender),
    File(tokio::fs::File),
    Memory(DuplexStream),
}

impl Sink {
    fn of(end: OwnedFd) -> io::Result<Self> {
        if is_pipe(&end)? {
            return pipe::Sender::from_owned_fd(end).map(Self::Pipe);
        }
        Ok(Self::File(File::from(end).into()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Pipe(pipe) => Pin::new(pipe).poll_write(cx, bytes),
            Self::File(file) => Pin::new(file).poll_write(cx, bytes),
            Self::Memory(memory) => Pin::new(memory).poll_write(cx, bytes),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Pipe(pipe) => Pin::new(pipe).poll_flush(cx),
            Self::File(file) => Pin::new(file).poll_flush(cx),
            Self::Memory(memory) => Pin::new(memory).poll_flush(cx),
        }
    }
}

/// An output on its way.
struct OutputQueue {
    /// `None` once the reader is gone, or has all.
    sink: Option<Sink>,
    waiting: VecDeque<Bytes>,
    bytes: usize,
    /// What has come for a reader that is gone.
    unread: usize,
    /// Whether nothing more will come.
    is_whole: bool,
}

impl OutputQueue {
    fn new(sink: Sink) -> Self {
        Self { sink: Some(sink), waiting: VecDeque::new(), bytes: 0, unread: 0, is_whole: false }
    }

    fn push(&mut self, bytes: Bytes) {
        if self.sink.is_none() {
            self.unread += bytes.len();
        } else if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.waiting.push_back(bytes);
        }
    }

    fn is_full(&self) -> bool {
        self.bytes >= WAITING_BYTES || self.waiting.len() >= WAITING_MESSAGES
    }

    /// Writes what waits, and closes the output once it is whole.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let (Some(sink), Some(first)) = (&mut self.sink, self.waiting.front_mut()) {
            match ready!(sink.poll_write(cx, first)) {
                Ok(count @ 1..) => {
                    self.bytes -= count;
                    let _ = first.split_to(count);
                    if first.is_empty() {
                        self.waiting.pop_front();
                    }
                }
                Ok(_) | Err(_) => self.give_up(),
            }
        }
        if let Some(sink) = &mut self.sink
            && ready!(sink.poll_flush(cx)).is_err()
        {
            self.give_up();
        }
        if self.is_whole {
            self.sink = None;
        }
        Poll::Ready(())
    }

    /// The reader is gone.
    fn give_up(&mut self) {
        self.sink = None;
        self.unread += std::mem::take(&mut self.bytes);
        self.waiting = VecDeque::new();
    }
}

/// Why a channel is not read any further.
enum Over {
    /// The machine has closed it, or the connection is gone.
    Closed,
    /// Nobody wants it any more.
    Unwanted,
}

struct Pump {
    outputs: [OutputQueue; 2],
    told: Option<oneshot::Sender<bool>>,
    /// Where it goes how much the machine would take.
    window: watch::Sender<u32>,
    read: ChannelReadHalf,
    /// Whether the machine will close it by itself.
    is_ending: bool,
}

impl Pump {
    async fn run(
        mut self,
        write: ChannelWriteHalf<Msg>,
        (input, ahead): (Input, Ahead),
        dropped: CancellationToken,
        closed: CancellationToken,
    ) {
        let over = {
            let mut sending = pin!(input.send(ahead, &write));
            let mut is_sent = false;
            let mut receiving = pin!(self.receive(&closed));
            loop {
                tokio::select! {
                    over = &mut receiving => break over,
                    sent = &mut sending, if !is_sent => {
                        is_sent = true;
                        // What can't be read here ends there as well.
                        if sent.is_err() {
                            let _ = closed.run_until_cancelled(write.eof()).await;
                        }
                    }
                    () = dropped.cancelled() => break Over::Unwanted,
                }
            }
        };
        // By now the input is dropped, and whoever feeds it finds out.
        match over {
            Over::Closed => {
                let drained = poll_fn(|cx| {
                    self.outputs.iter_mut().fold(Poll::Ready(()), |all, output| {
                        if output.poll_drain(cx).is_pending() { Poll::Pending } else { all }
                    })
                });
                let _ = dropped.run_until_cancelled(drained).await;
            }
            Over::Unwanted => {
                let Self { outputs, mut read, is_ending, .. } = self;
                drop(outputs);
                let mut is_over = false;
                if is_ending {
                    // russh keeps something of a channel that is closed from here first.
                    let last =
                        async { while !matches!(read.wait().await, Some(ChannelMsg::Close) | None) {} };
                    is_over = timeout(CLOSE_TIMEOUT, last).await.is_ok();
                }
                // The connection's task may be handing on to it, and must not wait.
                drop(read);
                if !is_over {
                    let _ = closed.run_until_cancelled(write.close()).await;
                }
            }
        }
    }

    /// Takes what comes until the channel is closed.
    async fn receive(&mut self, closed: &CancellationToken) -> Over {
        loop {
            match self.next(closed).await {
                Some(ChannelMsg::Data { data }) => self.outputs[0].push(data),
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => self.outputs[1].push(data),
                Some(ChannelMsg::Eof) => {
                    self.is_ending = true;
                    self.outputs.iter_mut().for_each(|output| output.is_whole = true);
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => self.tell(exit_status == 0),
                Some(ChannelMsg::ExitSignal { .. }) => self.tell(false),
                // It runs nothing, and some leave the channel open.
                Some(ChannelMsg::Failure) => {
                    self.tell(false);
                    self.is_ending = false;
                    return Over::Unwanted;
                }
                Some(ChannelMsg::WindowAdjusted { new_size }) => drop(self.window.send_replace(new_size)),
                Some(ChannelMsg::Close) | None => return Over::Closed,
                Some(_) => {}
            }
            if self.outputs.iter().any(|output| output.unread > UNREAD_BYTES) {
                return Over::Unwanted;
            }
        }
    }

    /// The next message, taken once there is room for it. All that is still to be had of a connection that has ended
    /// has room.
    async fn next(&mut self, closed: &CancellationToken) -> Option<ChannelMsg> {
        let Self { outputs, read, .. } = self;
        let (mut message, mut closing) = (pin!(read.wait()), pin!(closed.cancelled()));
        poll_fn(move |cx| {
            let mut is_full = false;
            for output in outputs.iter_mut() {
                let _ = output.poll_drain(cx);
                is_full |= output.is_full();
            }
            if is_full && !closed.is_cancelled() {
                ready!(closing.as_mut().poll(cx));
            }
            message.as_mut().poll(cx)
        })
        .await
    }

    fn tell(&mut self, succeeded: bool) {
        self.is_ending = true;
        if let Some(told) = self.told.take() {
            let _ = told.send(succeeded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_input_is_so_far_ahead_of_the_machine_and_no_further_unless_that_says_nothing() {
        const WINDOW: u32 = 2 << 20;
        let (said, mut ahead) = Ahead::of(Duration::ZERO);
        assert_eq!(ahead.room().await, AHEAD_BYTES);
        ahead.sent(AHEAD_BYTES);
        assert!(timeout(TAKING_TIMEOUT / 2, ahead.room()).await.is_err());
        said.send_replace(WINDOW);
        assert_eq!(ahead.room().await, AHEAD_BYTES);
        // What comes late tells the same.
        said.send_replace(WINDOW - 1000);
        said.send_replace(WINDOW - 3000);
        assert_eq!(ahead.room().await, AHEAD_BYTES - 3000);
        ahead.sent(AHEAD_BYTES - 3000);
        assert!(ahead.room().await > usize::MAX / 2);
        let (_said, mut far) = Ahead::of(Duration::from_millis(20));
        assert!(far.room().await >= WINDOW as usize);
    }
}
