//! `delay MICROSECONDS LISTEN TARGET ADDRESS…`: takes connections at a port of every address, and passes each on to
//! another port there, so much later in each direction. A connection itself takes a round trip, as TCP's handshake would. (The kernel's
//! own means, netem, isn't everywhere.)

#![expect(clippy::print_stdout, reason = "whoever starts it waits for a word")]

use std::env;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

/// How much one read takes at most, in bytes, and how many such pieces a connection has under way in a direction: 16 MiB
/// in all, which is more than one SSH channel uses.
const PIECE: usize = 64 << 10;
const PIECES: usize = 256;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [delay, listen, target, addresses @ ..] = arguments.as_slice() else {
        return Err(io::Error::other("usage: delay MICROSECONDS LISTEN TARGET ADDRESS..."));
    };
    let port = |text: &String| text.parse::<u16>().map_err(io::Error::other);
    let (target, delay) = (port(target)?, delay.parse().map_err(io::Error::other)?);
    let delay = Duration::from_micros(delay);
    for address in addresses {
        let listener = TcpListener::bind((address.as_str(), port(listen)?)).await?;
        tokio::spawn(accept(listener, (address.clone(), target), delay));
    }
    println!("ready");
    std::future::pending().await
}

async fn accept(listener: TcpListener, target: (String, u16), delay: Duration) {
    while let Ok((client, _)) = listener.accept().await {
        let target = target.clone();
        tokio::spawn(async move {
            sleep(2 * delay).await;
            let server = TcpStream::connect(target).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(pass(from_client, to_server, delay));
            tokio::spawn(pass(from_server, to_client, delay));
            io::Result::Ok(())
        });
    }
}

/// Passes on what comes, and then that nothing more does, each after the delay.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) -> io::Result<()> {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    tokio::spawn(async move {
        while let Some((due, piece)) = under_way.recv().await {
            sleep_until(due).await;
            if piece.is_empty() {
                break;
            }
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    });
    let mut piece = vec![0; PIECE];
    loop {
        // A connection that breaks ends as one that is closed.
        let length = from.read(&mut piece).await.unwrap_or_default();
        if sender.send((Instant::now() + delay, piece[..length].to_vec())).await.is_err() || length == 0 {
            return Ok(());
        }
    }
}
