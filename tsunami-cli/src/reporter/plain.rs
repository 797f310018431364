//! A run as plain lines.

use std::fmt;
use std::io::{self, Write};
use std::sync::Mutex;

use tsunami_core::{Event, Observer, Origin, Stream};

use super::text::Text;
use super::{Reporter, Verbosity, lock};
use crate::terminal::Message;

/// Writes a line for each thing worth telling. The only control characters are colours, if they are wanted.
///
/// Errors of the writer are ignored: a run goes on when nobody listens.
pub(crate) struct Plain(Mutex<State>);

struct State {
    writer: Box<dyn Write + Send>,
    text: Text,
    buffer: Message,
}

impl Plain {
    /// Writes to `writer`.
    pub(crate) fn new(writer: Box<dyn Write + Send>, verbosity: Verbosity, colour: bool) -> Self {
        Self(Mutex::new(State { writer, text: Text::new(verbosity), buffer: Message::new(colour) }))
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
            let written =
                self.writer.write_all(self.buffer.as_str().as_bytes()).and_then(|()| self.writer.flush());
            // Nowhere to say so.
            drop(written);
        }
    }
}

impl Reporter for Plain {}

impl Observer for Plain {
    fn event(&self, event: &Event) {
        lock(&self.0).write(|text, out| text.event(event, out));
    }

    fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        lock(&self.0).write(|text, out| text.output(origin, stream, bytes, out));
        Ok(())
    }
}
