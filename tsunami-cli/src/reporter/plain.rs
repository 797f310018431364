//! A run as plain lines.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tsunami_core::{Event, Observer, Origin, Stream};

use super::text::Text;
use super::{Reporter, Signs, Verbosity, lock};
use crate::terminal::Message;

/// How often is looked whether there is something to be said of a wait.
const TICK: Duration = Duration::from_millis(500);

/// How long nothing is said before what is waited for is; where a line said so already, and at most.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const TOLD_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Writes a line for each thing worth telling. The only control characters are colours, if they are wanted.
///
/// Errors of the writer are ignored: a run goes on when nobody listens.
pub(crate) struct Plain(Arc<Mutex<State>>);

struct State {
    writer: Box<dyn Write + Send>,
    text: Text,
    buffer: Message,
    /// How long the run went on when its last event was heard, and when that was.
    heard: Option<(Duration, Instant)>,
    /// When the last line was written.
    said: Instant,
    /// What is waited for, and how long nothing must have been said before it is told.
    waiting: (String, Duration),
}

impl Plain {
    /// Writes to `writer`.
    pub(crate) fn new(writer: Box<dyn Write + Send>, verbosity: Verbosity, colour: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            writer,
            text: Text::new(verbosity),
            buffer: Message::new(colour),
            heard: None,
            said: Instant::now(),
            waiting: (String::new(), FIRST_WAIT),
        })))
    }

    /// Has lines go on below where the terminal ends.
    pub(crate) fn within(self, width: Option<usize>) -> Self {
        let mut state = lock(&self.0);
        state.buffer = state.buffer.take().within(width);
        drop(state);
        self
    }

    /// Takes note of how steps are known to have come up.
    pub(super) fn knowing(self, signs: Signs) -> Self {
        lock(&self.0).text.know(signs);
        self
    }

    /// Says what is waited for, when nothing else was said for a while.
    pub(crate) fn telling_of_waits(self) -> Self {
        let state: Weak<Mutex<State>> = Arc::downgrade(&self.0);
        let telling = thread::Builder::new().name("waits".into()).spawn(move || {
            while let Some(state) = state.upgrade() {
                lock(&state).tick(Instant::now());
                drop(state);
                thread::sleep(TICK);
            }
        });
        // Without the thread, all else is said.
        drop(telling);
        self
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plain").finish_non_exhaustive()
    }
}

impl State {
    fn write(&mut self, make: impl FnOnce(&mut Text, &mut Message)) {
        self.buffer.clear();
        make(&mut self.text, &mut self.buffer);
        if !self.buffer.is_empty() {
            self.said = Instant::now();
            let written =
                self.writer.write_all(self.buffer.as_str().as_bytes()).and_then(|()| self.writer.flush());
            // Nowhere to say so.
            drop(written);
        }
    }

    fn tick(&mut self, now: Instant) {
        let Some((is_told, words)) = self.text.waits() else { return };
        if words != self.waiting.0 {
            self.waiting = (words, if is_told { TOLD_WAIT } else { FIRST_WAIT });
        }
        if now.saturating_duration_since(self.said) < self.waiting.1 {
            return;
        }
        let words = self.waiting.0.clone();
        let elapsed = self.heard.map(|(elapsed, heard)| elapsed + now.saturating_duration_since(heard));
        self.write(|text, out| text.wait(elapsed, &words, out));
        self.said = now;
        self.waiting.1 = (self.waiting.1 * 3).min(LONGEST_WAIT);
    }
}

impl Reporter for Plain {}

impl Observer for Plain {
    fn event(&self, event: &Event) {
        let mut state = lock(&self.0);
        state.heard = Some((event.elapsed, Instant::now()));
        state.write(|text, out| text.event(event, out));
    }

    fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        lock(&self.0).write(|text, out| text.output(origin, stream, bytes, out));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reporter::{Shared, little_run};

    #[test]
    fn a_wait_is_told_after_a_while_and_then_ever_more_seldom() {
        let written = Shared::default();
        let plain = Plain::new(Box::new(written.clone()), Verbosity::Normal, false);
        let events = little_run();
        let start = Instant::now();
        lock(&plain.0).tick(start + Duration::from_secs(1));
        assert_eq!(written.text(), "");
        lock(&plain.0).tick(start + Duration::from_secs(2));
        assert_eq!(written.text(), "waiting for checks, prices and what the file prepares\n");
        events[..6].iter().for_each(|event| plain.event(event));
        let before = written.text().lines().count();
        let start = Instant::now();
        (1..40).for_each(|second| lock(&plain.0).tick(start + Duration::from_secs(second)));
        let text = written.text();
        let waits: Vec<_> = text.lines().skip(before).map(|line| &line[9..]).collect();
        let expected = "waiting for the provider to launch server-0; for an address of client-1; until client-0 has booted \
                        and is checked";
        assert_eq!(waits, [expected; 3], "after 2, 6 and 18 seconds more");
        plain.event(&events[events.len() - 1]);
        let over = written.text();
        lock(&plain.0).tick(start + Duration::from_secs(3600));
        assert_eq!(written.text(), over);
    }
}
