//! Whether a transfer goes on.
//!
//! A transfer may be slow, and nobody knows how large it is, so it has no time-out. But one whose machine has stopped
//! sending or taking, on a connection that is alive, would go on for ever. So it is looked at from time to time: if no
//! byte has moved meanwhile, the connection is checked, and if none has moved for [`TRANSFER_STALL_TIMEOUT`], the
//! transfer is given up.

use std::io::{self, Read, Write};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tsunami_core::{SessionError, SessionErrorKind};

use crate::limits::TRANSFER_STALL_TIMEOUT;

/// How long nothing may move before the connection is checked, each time.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// How many bytes all transfers of a session have moved.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moved(Arc<AtomicU64>);

impl Moved {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts the bytes of one transfer.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    moved: Arc<AtomicU64>,
    /// Where they are counted with those of the session's other transfers.
    all: Option<Moved>,
}

impl Progress {
    /// One whose bytes are counted there, too.
    pub(super) fn of(all: &Moved) -> Self {
        Self { all: Some(all.clone()), ..Self::default() }
    }

    /// The same for what is read here only: the transfer goes on, and nothing moves.
    pub(super) fn here(&self) -> Self {
        Self { all: None, ..self.clone() }
    }

    /// Counts what is read from, or written to, a stream.
    pub(super) fn counting<S>(&self, stream: S) -> Counting<S> {
        Counting { stream, progress: self.clone() }
    }

    /// How many bytes were read and written so far.
    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    fn add(&self, count: usize) {
        self.moved.fetch_add(count as u64, Ordering::Relaxed);
        if let Some(Moved(all)) = &self.all {
            all.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    /// Resolves when the transfer should be given up, with the reason.
    async fn stalled<F: Future<Output = Result<(), SessionError>>>(
        &self,
        check: impl Fn() -> F,
    ) -> SessionError {
        let (mut moved, mut since) = (self.moved(), Instant::now());
        loop {
            sleep(CHECK_INTERVAL).await;
            if self.moved() != moved {
                (moved, since) = (self.moved(), Instant::now());
            } else if let Err(lost) = check().await {
                return lost;
            } else if since.elapsed() >= TRANSFER_STALL_TIMEOUT && self.moved() == moved {
                let minutes = TRANSFER_STALL_TIMEOUT.as_secs() / 60;
                let message = format!("the machine is there, but no byte has moved for {minutes} minutes");
                return SessionError::new(SessionErrorKind::Transfer, message);
            }
        }
    }

    /// Waits for a transfer that `cancel` ends, and ends it if it stalls.
    pub(super) async fn watch<T, F: Future<Output = Result<(), SessionError>>>(
        &self,
        transfer: impl Future<Output = Result<T, SessionError>>,
        cancel: &CancellationToken,
        check: impl Fn() -> F,
    ) -> Result<T, SessionError> {
        let mut transfer = pin!(transfer);
        let reason = tokio::select! {
            biased;
            done = &mut transfer => return done,
            reason = self.stalled(check) => reason,
        };
        cancel.cancel();
        match transfer.await {
            Err(error) if error.kind == SessionErrorKind::CancelledUnconfirmed => Err(reason.source(error)),
            Err(_) => Err(reason),
            // It has just come to its end.
            done => done,
        }
    }
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub(super) struct Counting<S> {
    stream: S,
    progress: Progress,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.progress.add(count);
        Ok(count)
    }
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(buffer)?;
        self.progress.add(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A transfer that ends when it is cancelled.
    async fn until(cancel: &CancellationToken, kind: SessionErrorKind) -> Result<(), SessionError> {
        cancel.cancelled().await;
        Err(SessionError::new(kind, "cancelled"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_that_stands_still_on_a_living_connection_is_given_up() {
        for kind in [SessionErrorKind::Cancelled, SessionErrorKind::CancelledUnconfirmed] {
            let (progress, cancel, begun) = (Progress::default(), CancellationToken::new(), Instant::now());
            let error = progress.watch(until(&cancel, kind), &cancel, || async { Ok(()) }).await.unwrap_err();
            assert_eq!(error.kind, SessionErrorKind::Transfer);
            assert!(error.message.contains("no byte has moved for 10 minutes"), "{error}");
            assert_eq!(error.source.is_some(), kind == SessionErrorKind::CancelledUnconfirmed);
            assert!(begun.elapsed() < TRANSFER_STALL_TIMEOUT + 2 * CHECK_INTERVAL);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_may_be_as_slow_as_it_likes() {
        let (progress, cancel) = (Progress::default(), CancellationToken::new());
        let slow = async {
            for _ in 0..100 {
                sleep(TRANSFER_STALL_TIMEOUT - CHECK_INTERVAL).await;
                progress.counting(io::sink()).write_all(b"x").unwrap();
            }
            io::copy(&mut progress.counting(b"y".as_slice()), &mut io::sink()).unwrap();
            Ok(progress.moved())
        };
        assert_eq!(progress.watch(slow, &cancel, || async { Ok(()) }).await.unwrap(), 101);
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_whose_connection_is_lost_ends_soon() {
        let (progress, cancel, begun) = (Progress::default(), CancellationToken::new(), Instant::now());
        let lost = || async { Err(SessionError::new(SessionErrorKind::Lost, "lost")) };
        let transfer = until(&cancel, SessionErrorKind::Cancelled);
        let error = progress.watch(transfer, &cancel, lost).await.unwrap_err();
        assert_eq!(error.kind, SessionErrorKind::Lost);
        assert!(begun.elapsed() <= 2 * CHECK_INTERVAL);
    }
}
