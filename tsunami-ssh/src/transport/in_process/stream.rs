//! The bytes below a connection: TCP, or a command that the user named for it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, Join, ReadBuf, join};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::Answered;
use super::target::{Family, Target};
use crate::janitor::GROUP;
use crate::transport::openssh::master::CapturedOutput;

/// How much is read at a time, unless more is wanted. Each connection holds as much.
const READ_BYTES: usize = 4 << 10;

/// Connects to an address of the host, whichever answers first in their order.
pub(super) async fn tcp(target: &Target) -> io::Result<BufReader<TcpStream>> {
    let fits = |address: &SocketAddr| match (target.family, target.bind) {
        (Family::V4, _) | (_, Some(IpAddr::V4(_))) => address.is_ipv4(),
        (Family::V6, _) | (_, Some(IpAddr::V6(_))) => address.is_ipv6(),
        (Family::Any, None) => true,
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address of that kind");
    for address in lookup_host((target.host.as_str(), target.port)).await?.filter(fits) {
        let connected = async {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if let Some(bind) = target.bind {
                socket.bind((bind, 0).into())?;
            }
            let stream = socket.connect(address).await?;
            // A packet is a whole message, and somebody waits for it.
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        match connected.await {
            Ok(stream) => return Ok(BufReader::with_capacity(READ_BYTES, stream)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A command whose input and output lead to the host. All of its process group is gone once it is dropped, or once the
/// janitor knows that the controller is gone.
#[derive(Debug)]
pub(super) struct Proxy {
    io: Join<ChildStdout, ChildStdin>,
    child: Child,
    groups: Option<PathBuf>,
}

impl Proxy {
    /// Starts it as ssh would, but in a process group of its own, which it first notes in `groups`. Also returns what it
    /// says on standard error.
    pub(super) fn start(line: &str, groups: Option<PathBuf>) -> io::Result<(Self, CapturedOutput)> {
        let mut command = Command::new("/bin/sh");
        match &groups {
            Some(groups) => {
                let line = format!(": > \"$0/{GROUP}$$\" && exec {line}");
                command.arg("-c").arg(line).arg(groups);
            }
            None => {
                command.arg("-c").arg(format!("exec {line}"));
            }
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).process_group(0).spawn()?;
        let captured = CapturedOutput::default();
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        tokio::spawn(captured.clone().listen(stderr));
        Ok((Self { io: join(stdout, stdin), child, groups }, captured))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Nobody has waited for it yet, so the number is still its own.
        let Some(id) = self.child.id() else { return };
        if let Some(group) = id.try_into().ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        if let Some(groups) = &self.groups {
            let _ = std::fs::remove_file(groups.join(format!("{GROUP}{id}")));
        }
    }
}

/// What leads to a host.
#[derive(Debug)]
pub(super) enum Way {
    /// Many small packets come with one read.
    Tcp(BufReader<TcpStream>),
    Proxy(Box<Proxy>),
}

/// A way that ends for good when a token says so, whoever holds it; or when the other side takes nothing for too long.
#[derive(Debug)]
pub(super) struct Stream {
    way: Option<Way>,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
    patience: Duration,
    /// Runs while nothing can be written: the signs of life that a connection sends tell nothing then.
    stalled: Option<Pin<Box<Sleep>>>,
    answered: Answered,
}

impl Stream {
    pub(super) fn new(way: Way, end: CancellationToken, patience: Duration, answered: Answered) -> Self {
        Self { way: Some(way), end: Box::pin(end.cancelled_owned()), patience, stalled: None, answered }
    }

    fn way(&mut self, cx: &mut Context<'_>) -> io::Result<&mut Way> {
        if self.way.is_some() && self.end.as_mut().poll(cx).is_ready() {
            self.way = None;
        }
        self.way
            .as_mut()
            .ok_or_else(|| io::Error::new(io::ErrorKind::ConnectionAborted, "it was closed here"))
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        ready!(self.stalled.get_or_insert_with(|| Box::pin(sleep(patience))).as_mut().poll(cx));
        self.way = None;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the machine takes nothing any more")))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (stream, before) = (self.get_mut(), buf.filled().len());
        let read = match stream.way(cx)? {
            Way::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Way::Proxy(proxy) => Pin::new(&mut proxy.io).poll_read(cx, buf),
        };
        if buf.filled().len() > before {
            stream.answered.get_or_init(Instant::now);
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = self.get_mut();
        let written = match stream.way(cx)? {
            Way::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Way::Proxy(proxy) => Pin::new(&mut proxy.io).poll_write(cx, bytes),
        };
        stream.written(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        let flushed = match stream.way(cx)? {
            Way::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Way::Proxy(proxy) => Pin::new(&mut proxy.io).poll_flush(cx),
        };
        stream.written(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing more will be read either.
        self.get_mut().way = None;
        Poll::Ready(Ok(()))
    }
}
