//! When a run ends: somebody may move that while it goes on.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::error::Error;
use crate::event::Events;
use crate::machine::Deadline;
use crate::record::RunEntry;

/// How often the record is asked whether another process has moved the end.
const POLL_PAUSE: Duration = Duration::from_secs(60);

/// A run's end, as it was last recorded. Nothing else in this process remembers it.
#[derive(Debug)]
pub(crate) struct RunDeadline {
    directory: RunEntry,
    known: watch::Sender<Deadline>,
}

impl RunDeadline {
    pub(super) fn new(directory: RunEntry, recorded: Deadline) -> Self {
        Self { directory, known: watch::Sender::new(recorded) }
    }

    /// The end as it is recorded now. If the record can't be read, it is the end that was known last.
    pub(crate) fn read(&self) -> Deadline {
        if let Ok(record) = self.directory.record() {
            self.moved(record.deadline);
        }
        *self.known.borrow()
    }

    /// Says that the end is another one from now on.
    pub(super) fn moved(&self, deadline: Deadline) {
        self.known.send_if_modified(|known| std::mem::replace(known, deadline) != deadline);
    }

    /// Waits until the lifetime is over, also if somebody has moved its end, or moves it meanwhile.
    pub(super) async fn over(&self, events: &Events) -> Error {
        let mut known = self.known.subscribe();
        loop {
            let deadline = self.read();
            known.mark_unchanged();
            let left = deadline.at.duration_since(events.now()).unwrap_or_default();
            if left.is_zero() {
                return Error::LifetimeOver(deadline.lifetime);
            }
            tokio::select! {
                biased;
                // `self` keeps the sender alive.
                _ = known.changed() => {}
                () = sleep(left.min(POLL_PAUSE)) => {}
            }
        }
    }
}
