//! Connections to ports of a machine, over the control socket of a master.
//!
//! The `openssh` crate can have the master itself listen and connect, which tells nobody of a connection that was refused,
//! and what `ssh -W` asks for ends with the server's half. So the master is asked to hand on a channel's messages as they are
//! (`PROTOCOL.mux`, number 15: what `ssh -O proxy` asks for), and the channel is opened here, as RFC 4254 has it.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf, duplex,
    split,
};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

const HELLO: u32 = 1;
const VERSION: u32 = 4;
const PROXY: u32 = 0x1000_000f;
const PROXYING: u32 = 0x8000_000f;

/// A master's answer has a number, and perhaps a reason.
const ANSWER_BYTES: u32 = 64 << 10;

const OPEN: u8 = 90;
const OPENED: u8 = 91;
const REFUSED: u8 = 92;
const WINDOW: u8 = 93;
const DATA: u8 = 94;
const END: u8 = 96;
const CLOSE: u8 = 97;
const REQUEST: u8 = 98;
const FAILURE: u8 = 100;

/// How many bytes the machine may send before they are taken, as ssh itself has it.
const WINDOW_BYTES: u32 = 2 << 20;

/// The most in one message, each way, in bytes.
const DATA_BYTES: u32 = 32 << 10;

/// A message is little longer than its data.
const MESSAGE_BYTES: u32 = 64 << 10;

/// A connection to a port of the machine. Dropping it closes it, once what was written is on its way.
#[derive(Debug)]
pub(super) struct Dialed {
    stream: DuplexStream,
    _dropped: DropGuard,
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
    send(&mut control, &[&PROXY.to_be_bytes(), &[0; 4]]).await?;
    if answer(&mut control).await? != PROXYING {
        return Err(io::Error::other("the ssh master hands on no channels"));
    }
    let (mut from, to) = control.into_split();
    let to = To(Mutex::new(to));
    let text = |text: &str| -> io::Result<Vec<u8>> {
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        Ok([&length.to_be_bytes(), text.as_bytes()].concat())
    };
    let numbers = [0, WINDOW_BYTES, DATA_BYTES].map(u32::to_be_bytes).concat();
    let (port, origin) = (u32::from(port).to_be_bytes(), [text("127.0.0.1")?, vec![0; 4]].concat());
    let wanted = [text("direct-tcpip")?, numbers, text(host)?, port.to_vec(), origin].concat();
    to.send(OPEN, &wanted).await?;
    let (kind, body) = message(&mut from).await?;
    match kind {
        OPENED => {}
        REFUSED => return Ok(None),
        _ => return Err(odd()),
    }
    let (channel, window, most) = (number(&body, 4)?, number(&body, 8)?, number(&body, 12)?.min(DATA_BYTES));
    let (stream, theirs) = duplex(DATA_BYTES as usize);
    let dropped = CancellationToken::new();
    let guard = dropped.clone().drop_guard();
    let half = Half {
        to,
        channel,
        most,
        window: watch::Sender::new(window.into()),
        room: Semaphore::new(WINDOW_BYTES as usize),
    };
    tokio::spawn(half.carry(from, theirs, dropped));
    Ok(Some(Dialed { stream, _dropped: guard }))
}

/// This side's half of a channel.
struct Half {
    to: To,
    /// As the machine numbers it.
    channel: u32,
    /// The most that the machine takes in one message, in bytes.
    most: u32,
    /// How many bytes the machine takes.
    window: watch::Sender<u64>,
    /// How many it may send.
    room: Semaphore,
}

impl Half {
    /// Carries bytes both ways until both halves have ended, the machine closes the channel, or the master ends.
    async fn carry(self, from: OwnedReadHalf, stream: DuplexStream, dropped: CancellationToken) {
        let (user, to_user) = split(stream);
        let (arrived, arrivals) = mpsc::unbounded_channel();
        let closed = CancellationToken::new();
        let taking = async {
            let _ = self.take(from, arrived).await;
            closed.cancel();
        };
        let ending = async {
            let _ = tokio::join!(
                closed.run_until_cancelled(self.give(user)),
                dropped.run_until_cancelled(self.hand_over(arrivals, to_user)),
            );
            let _ = self.to.send(CLOSE, &self.channel.to_be_bytes()).await;
        };
        tokio::join!(taking, ending);
    }

    /// Takes what comes from the machine until it closes the channel. Whoever reads slowly does not hold up the rest.
    async fn take(&self, mut from: OwnedReadHalf, arrived: mpsc::UnboundedSender<Vec<u8>>) -> io::Result<()> {
        let mut arrived = Some(arrived);
        loop {
            let (kind, body) = message(&mut from).await?;
            match kind {
                DATA => {
                    let data = body.get(8..).filter(|data| !data.is_empty()).ok_or_else(odd)?.to_vec();
                    let size = u32::try_from(data.len()).map_err(io::Error::other)?;
                    self.room.try_acquire_many(size).map_err(|_| odd())?.forget();
                    // Nobody may want it any more.
                    let _ = arrived.as_ref().ok_or_else(odd)?.send(data);
                }
                END => drop(arrived.take()),
                WINDOW => {
                    let more = u64::from(number(&body, 4)?);
                    self.window.send_modify(|window| *window = window.saturating_add(more));
                }
                REQUEST => {
                    // By this sshd asks for a sign of life.
                    let name = number(&body, 4)? as usize;
                    if body.get(8 + name).is_some_and(|wants_reply| *wants_reply != 0) {
                        self.to.send(FAILURE, &self.channel.to_be_bytes()).await?;
                    }
                }
                CLOSE => return Ok(()),
                _ => {}
            }
        }
    }

    /// Gives the user what has come, then its end. The machine may send as much again.
    async fn hand_over(
        &self,
        mut arrivals: mpsc::UnboundedReceiver<Vec<u8>>,
        mut to_user: WriteHalf<DuplexStream>,
    ) -> io::Result<()> {
        while let Some(data) = arrivals.recv().await {
            to_user.write_all(&data).await?;
            self.room.add_permits(data.len());
            let size = u32::try_from(data.len()).map_err(io::Error::other)?;
            self.to.send(WINDOW, &[self.channel, size].map(u32::to_be_bytes).concat()).await?;
        }
        to_user.shutdown().await
    }

    /// Sends what the user writes, then its end.
    async fn give(&self, mut user: ReadHalf<DuplexStream>) -> io::Result<()> {
        let mut buffer = vec![0; self.most as usize];
        let mut window = self.window.subscribe();
        loop {
            let room = *window.wait_for(|window| *window > 0).await.map_err(io::Error::other)?;
            let most = usize::try_from(room).unwrap_or(usize::MAX).min(buffer.len());
            let count = user.read(&mut buffer[..most]).await?;
            let size = u32::try_from(count).map_err(io::Error::other)?;
            if count == 0 {
                return self.to.send(END, &self.channel.to_be_bytes()).await;
            }
            self.window.send_modify(|window| *window -= u64::from(size));
            let head = [self.channel, size].map(u32::to_be_bytes).concat();
            self.to.send(DATA, &[&head, &buffer[..count]].concat()).await?;
        }
    }
}

/// Where messages go, one after another.
struct To(Mutex<OwnedWriteHalf>);

impl To {
    /// Sends a message, as the master wants it: with its length and no padding.
    async fn send(&self, kind: u8, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len() + 2).map_err(io::Error::other)?;
        self.0.lock().await.write_all(&[&length.to_be_bytes(), [0, kind].as_slice(), body].concat()).await
    }
}

/// The next message, and its kind.
async fn message(from: &mut OwnedReadHalf) -> io::Result<(u8, Vec<u8>)> {
    let length = from.read_u32().await?;
    if !(2..=MESSAGE_BYTES).contains(&length) {
        return Err(odd());
    }
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body).await?;
    // Padding has no use here.
    Ok((body[1], body.split_off(2)))
}

fn number(body: &[u8], at: usize) -> io::Result<u32> {
    let bytes = body.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_be_bytes).ok_or_else(odd)
}

fn odd() -> io::Error {
    io::Error::other("the ssh master says something odd")
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
        return Err(odd());
    }
    let kind = control.read_u32().await?;
    let rest = &mut control.take(u64::from(length) - 4);
    tokio::io::copy(rest, &mut tokio::io::sink()).await?;
    Ok(kind)
}

impl AsyncRead for Dialed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Dialed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::net::UnixSocket;

    use super::*;

    #[tokio::test]
    async fn many_connections_at_once_wait_until_the_master_takes_them() {
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
                send(&mut control, &[&PROXYING.to_be_bytes(), &[0; 4]]).await.unwrap();
                send(&mut control, &[&[0, REFUSED]]).await.unwrap();
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
