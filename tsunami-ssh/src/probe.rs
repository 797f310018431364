//! Whether sshd answers yet: one TCP connection and a few bytes, instead of an ssh process.

use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tsunami_core::Backoff;

/// What is said of another server.
pub(crate) const NOT_SSH: &str = "what answers does not speak SSH";

/// The pauses between two patient probes begin here, grow by half each time,
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// and do not grow beyond this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long one probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long after the beginning of one hasty probe the next begins, at the earliest: a machine that has just begun to
/// answer is noticed after half of that.
const HASTY_PAUSE: Duration = Duration::from_millis(200);

/// How long a hasty probe may take to be connected. An address that is silent is asked by the system itself after one
/// second and three, which is much too seldom.
const HASTY_CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// How long what accepts a hasty probe may take to say something: what never will keeps nobody from asking again.
const HASTY_BANNER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long there is haste. What has not booted by then does not do so at any moment.
const HASTE: Duration = Duration::from_secs(180);

/// Waits until something that speaks SSH answers at `host` and `port`. On time-out, returns what was seen last.
pub(crate) async fn until_answering(host: &str, port: u16, deadline: Instant) -> Result<(), String> {
    tokio::select! {
        answering = patiently(host, port, deadline) => answering,
        _ = until_it_begins(host, port) => Ok(()),
    }
}

/// Waits, and takes its time for each probe: a machine may be far away, or slow.
async fn patiently(host: &str, port: u16, deadline: Instant) -> Result<(), String> {
    let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE).factor(1.5);
    loop {
        let probe = async { banner(connect(host, port).await?).await };
        let seen = match timeout(PROBE_TIMEOUT.min(deadline - Instant::now()), probe).await {
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

/// Whether a connection is refused at once: the computer is there, and nothing listens.
pub(crate) async fn is_refused(host: &str, port: u16) -> bool {
    let connected = timeout(HASTY_BANNER_TIMEOUT, TcpStream::connect((host, port))).await;
    matches!(connected, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Waits until something that speaks SSH begins to answer, in haste, and returns when it was last seen not to. It waits
/// for ever where something answers from the beginning, or does not for long: that is for somebody with more patience.
pub(crate) async fn until_it_begins(host: &str, port: u16) -> Instant {
    hastily(|| async move {
        let stream = timeout(HASTY_CONNECT_TIMEOUT, connect(host, port)).await.ok()?.ok()?;
        timeout(HASTY_BANNER_TIMEOUT, banner(stream)).await.ok()?.ok()
    })
    .await
}

async fn hastily<F: Future<Output = Option<()>>>(mut probe: impl FnMut() -> F) -> Instant {
    let begun = Instant::now();
    // Whoever has connected by then needs nobody to tell.
    sleep(HASTY_PAUSE).await;
    let mut silent = None;
    while begun.elapsed() < HASTE {
        let next = Instant::now() + HASTY_PAUSE;
        match (probe().await, silent) {
            (Some(()), Some(silent)) => return silent,
            (Some(()), None) => break,
            (None, _) => silent = Some(Instant::now()),
        }
        sleep_until(next).await;
    }
    std::future::pending().await
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| error.to_string())
}

async fn banner(mut stream: TcpStream) -> Result<(), String> {
    let mut greeting = [0; 4];
    match stream.read_exact(&mut greeting).await {
        Ok(_) if &greeting == b"SSH-" => Ok(()),
        Ok(_) => Err(NOT_SSH.to_owned()),
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

    /// Whatever a port does before it answers, the next probe finds that it does, and nobody waits for one before.
    #[tokio::test]
    async fn what_a_port_did_to_one_probe_keeps_no_other_from_being_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serves = async {
            let mut held = Vec::new();
            for visit in 0.. {
                let mut stream = listener.accept().await.unwrap().0;
                match visit {
                    0 | 1 => stream.set_zero_linger().unwrap(),
                    2 => {}
                    3 => stream.write_all(b"SS").await.unwrap(),
                    4 => stream.write_all(b"HTTP/1.1 400 Bad Request\r\n").await.unwrap(),
                    5 => drop(listener.accept().await.unwrap()),
                    _ => stream.write_all(b"SSH-2.0-test\r\n").await.unwrap(),
                }
                if visit > 1 {
                    held.push(stream);
                }
            }
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        tokio::select! {
            answers = until_answering("127.0.0.1", port, deadline) => answers.unwrap(),
            () = serves => unreachable!(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_begins_to_answer_is_noticed_at_once_whatever_its_probes_take() {
        for takes in [Duration::ZERO, HASTY_CONNECT_TIMEOUT, HASTY_CONNECT_TIMEOUT + HASTY_BANNER_TIMEOUT] {
            for boots in (1..60).map(|nth| Duration::from_millis(nth * 733)) {
                let begun = Instant::now();
                let mut probes: u32 = 0;
                let silent = hastily(|| {
                    probes += 1;
                    async move {
                        if begun.elapsed() >= boots {
                            return Some(());
                        }
                        sleep(takes).await;
                        None
                    }
                })
                .await;
                assert!(silent < begun + boots + takes);
                let late = begun.elapsed() - boots;
                assert!(late <= HASTY_PAUSE.max(takes), "{late:?} after {boots:?}");
                assert!(HASTY_PAUSE * (probes - 1) <= begun.elapsed(), "{probes} probes in {boots:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_no_haste_with_what_answers_already_or_does_not_boot() {
        for answers in [Some(()), None] {
            let mut probes: u32 = 0;
            let hasty = hastily(|| {
                probes += 1;
                std::future::ready(answers)
            });
            timeout(HASTE * 10, hasty).await.unwrap_err();
            assert_eq!(probes > 1, answers.is_none());
            assert!(HASTY_PAUSE * probes <= HASTE);
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_named_in_time() {
        let begun = Instant::now();
        let seen = until_answering("127.0.0.1", 1, begun + Duration::from_millis(300)).await.unwrap_err();
        assert!(seen.contains("127.0.0.1 port 1") && seen.contains("refused"), "{seen}");
        assert!(begun.elapsed() < Duration::from_secs(3));
    }
}
