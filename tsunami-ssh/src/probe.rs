//! Whether sshd answers yet: one TCP connection and a few bytes, instead of an ssh process.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tsunami_core::Backoff;

/// The pauses between two probes begin here, grow by half each time,
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// and do not grow beyond this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long one probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until something that speaks SSH answers at `host` and `port`. On time-out, returns what was seen last.
pub(crate) async fn until_answering(host: &str, port: u16, deadline: Instant) -> Result<(), String> {
    let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE).factor(1.5);
    loop {
        let seen = match timeout(PROBE_TIMEOUT.min(deadline - Instant::now()), banner(host, port)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(seen)) => seen,
            Err(_) => "no answer".to_owned(),
        };
        let pause = pauses.wait();
        if Instant::now() + pause >= deadline {
            return Err(format!("{host} port {port}: {seen}"));
        }
        tracing::trace!(host, port, seen, "probed");
        sleep(pause).await;
    }
}

async fn banner(host: &str, port: u16) -> Result<(), String> {
    let mut stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
    let mut greeting = [0; 4];
    match stream.read_exact(&mut greeting).await {
        Ok(_) if &greeting == b"SSH-" => Ok(()),
        Ok(_) => Err("what answers does not speak SSH".to_owned()),
        Err(error) => Err(format!("connected, then: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_port_that_opens_late_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let opens = async {
            sleep(Duration::from_millis(200)).await;
            let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
            listener.accept().await.unwrap().0.write_all(b"SSH-2.0-test\r\n").await.unwrap();
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        let (answers, ()) = tokio::join!(until_answering("127.0.0.1", port, deadline), opens);
        answers.unwrap();
    }

    #[tokio::test]
    async fn a_closed_port_is_named_in_time() {
        let begun = Instant::now();
        let seen = until_answering("127.0.0.1", 1, begun + Duration::from_millis(300)).await.unwrap_err();
        assert!(seen.contains("127.0.0.1 port 1") && seen.contains("refused"), "{seen}");
        assert!(begun.elapsed() < Duration::from_secs(3));
    }
}
