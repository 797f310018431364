//! Connections to ports of a machine, over the control socket of a master: what `ssh -W` asks it for.
//!
//! The `openssh` crate can have the master itself listen and connect, which tells nobody of a connection that was refused.
//! So the request is made here (`PROTOCOL.mux`, number 8): the master is handed two pipes, and answers once the
//! machine has.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use sendfd::SendWithFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

const HELLO: u32 = 1;
const VERSION: u32 = 4;
const NEW_STDIO_FORWARD: u32 = 0x1000_0008;
const SESSION_OPENED: u32 = 0x8000_0006;

/// A master's answer has a number, and perhaps a reason.
const ANSWER_BYTES: u32 = 64 << 10;

/// A connection to a port of the machine. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Dialed {
    from: pipe::Receiver,
    /// Until its end was sent.
    to: Option<pipe::Sender>,
    /// The master ends the connection with this.
    _control: UnixStream,
}

/// Connects to a port of the machine. `None` says that the machine would not.
pub(super) async fn dial(socket: &Path, host: &str, port: u16) -> io::Result<Option<Dialed>> {
    let mut control = UnixStream::connect(socket).await?;
    send(&mut control, &[&HELLO.to_be_bytes(), &VERSION.to_be_bytes()]).await?;
    if answer(&mut control).await? != HELLO {
        return Err(io::Error::other("the ssh master speaks another protocol"));
    }
    let length = u32::try_from(host.len()).map_err(io::Error::other)?;
    let (number, nothing, port) = (0_u32, 0_u32, u32::from(port));
    let [kind, number, nothing, length, port] =
        [NEW_STDIO_FORWARD, number, nothing, length, port].map(u32::to_be_bytes);
    send(&mut control, &[&kind, &number, &nothing, &length, host.as_bytes(), &port]).await?;
    let (stdin, to) = io::pipe()?;
    let (from, stdout) = io::pipe()?;
    for end in [OwnedFd::from(stdin), OwnedFd::from(stdout)] {
        while let Err(error) = control.send_with_fd(&[0], &[end.as_raw_fd()]) {
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error);
            }
            control.writable().await?;
        }
    }
    if answer(&mut control).await? != SESSION_OPENED {
        return Ok(None);
    }
    let from = pipe::Receiver::from_owned_fd(from.into())?;
    let to = pipe::Sender::from_owned_fd(to.into())?;
    Ok(Some(Dialed { from, to: Some(to), _control: control }))
}

async fn send(control: &mut UnixStream, parts: &[&[u8]]) -> io::Result<()> {
    let body = parts.concat();
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    control.write_all(&[&length.to_be_bytes(), body.as_slice()].concat()).await
}

/// The kind of the master's next answer.
async fn answer(control: &mut UnixStream) -> io::Result<u32> {
    let length = control.read_u32().await?;
    if !(4..=ANSWER_BYTES).contains(&length) {
        return Err(io::Error::other("the ssh master says something odd"));
    }
    let kind = control.read_u32().await?;
    let rest = &mut control.take(u64::from(length) - 4);
    tokio::io::copy(rest, &mut tokio::io::sink()).await?;
    Ok(kind)
}

impl AsyncRead for Dialed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().from).poll_read(cx, buf)
    }
}

impl AsyncWrite for Dialed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().to {
            Some(to) => Pin::new(to).poll_write(cx, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().to = None;
        Poll::Ready(Ok(()))
    }
}
