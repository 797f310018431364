//! Events as lines of JSON.

use std::fmt;
use std::io::{self, Write};
use std::sync::Mutex;

use tsunami_core::{Event, Observer};

use super::{again, lock};

/// Writes each event as one line of JSON, at once. After a first error nothing more is written, so that no line
/// follows half of another.
pub(crate) struct Json(Mutex<State>);

struct State {
    writer: Box<dyn Write + Send>,
    error: Option<io::Error>,
}

impl Json {
    /// Writes to `writer`.
    pub(crate) fn new(writer: Box<dyn Write + Send>) -> Self {
        Self(Mutex::new(State { writer, error: None }))
    }

    /// The error that ended the writing, if one did.
    pub(crate) fn error(&self) -> Option<io::Error> {
        lock(&self.0).error.as_ref().map(again)
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Json").field(&self.error()).finish()
    }
}

impl Observer for Json {
    fn event(&self, event: &Event) {
        let State { writer, error } = &mut *lock(&self.0);
        if error.is_none() {
            *error = write(writer, event).err();
        }
    }
}

fn write(writer: &mut dyn Write, event: &Event) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    writer.write_all(&line)?;
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reporter::text::tests::{Shared, little_run};

    #[test]
    fn lines_read_back_as_the_events_they_were() {
        let written = Shared::default();
        let json = Json::new(Box::new(written.clone()));
        little_run().iter().for_each(|event| json.event(event));
        let text = written.text();
        let read: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, little_run());
        assert!(!text.contains('\u{1b}'), "JSON escapes control characters");
        assert!(json.error().is_none());
    }

    #[test]
    fn the_first_error_is_kept_and_ends_the_writing() {
        let file = Box::new(io::Cursor::new([0_u8; 8]));
        // A writer that is full after a few bytes.
        struct Full(Box<io::Cursor<[u8; 8]>>);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                match self.0.write(bytes)? {
                    0 => Err(io::ErrorKind::StorageFull.into()),
                    n => Ok(n),
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let json = Json::new(Box::new(Full(file)));
        little_run().iter().for_each(|event| json.event(event));
        assert_eq!(json.error().unwrap().kind(), io::ErrorKind::StorageFull);
    }
}
