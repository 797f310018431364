//! Connections to ports of a machine, over the control socket of a master: what `ssh -W` asks it for.
//!
//! The `openssh` crate can have the master itself listen and connect, which tells nobody of a connection that was refused.
//! So the request is made here (`PROTOCOL.mux`, number 8): the master is handed two pipes, and answers once the
//! machine has. The master then ends both halves of a connection when the server has ended its own (`force_drain` in
//! OpenSSH's channels.c), whichever descriptors it was handed.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use sendfd::SendWithFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::Semaphore;

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

/// How many may wait at once until a master takes them. It listens for 64, and to others connecting fails at once; the
/// channels of commands need some of these places, too.
pub(super) const WAITING: usize = 32;

/// Connects to a port of the machine. `None` says that the machine would not. `places` are the master's
/// [`WAITING`].
pub(super) async fn dial(
    socket: &Path,
    places: &Semaphore,
    host: &str,
    port: u16,
) -> io::Result<Option<Dialed>> {
    let place = places.acquire().await.map_err(io::Error::other)?;
    let mut control = UnixStream::connect(socket).await?;
    send(&mut control, &[&HELLO.to_be_bytes(), &VERSION.to_be_bytes()]).await?;
    if answer(&mut control).await? != HELLO {
        return Err(io::Error::other("the ssh master speaks another protocol"));
    }
    drop(place);
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

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::net::UnixSocket;

    use super::*;

    #[tokio::test]
    async fn many_connections_at_once_wait_until_the_master_takes_them() {
        const FAILURE: u32 = 0x8000_0003;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listening = UnixSocket::new_stream().unwrap();
        listening.bind(&path).unwrap();
        // As many as ssh has.
        let listener = listening.listen(64).unwrap();
        let places = Semaphore::new(WAITING);
        let dialing = join_all((0..200).map(|_| dial(&path, &places, "localhost", 80)));
        // All have begun before the first is taken.
        let master = async {
            let mut taken = Vec::new();
            while taken.len() < 200 {
                let (mut control, _) = listener.accept().await.unwrap();
                send(&mut control, &[&HELLO.to_be_bytes(), &VERSION.to_be_bytes()]).await.unwrap();
                send(&mut control, &[&FAILURE.to_be_bytes()]).await.unwrap();
                taken.push(control);
            }
            // Whoever is answered still reads.
            std::future::pending::<()>().await;
        };
        let dialed = tokio::select! {
            biased;
            dialed = dialing => dialed,
            () = master => unreachable!(),
        };
        for dialed in dialed {
            assert!(dialed.unwrap().is_none());
        }
    }
}
