//! Events as lines of JSON.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::{ResultsError, ResultsFile, again, files, lock};
use crate::text::harmless;
use crate::{Event, EventsHeader, Observer};
use serde::Serialize;
use serde_json::ser::Formatter;

/// What the file of events is called.
pub(super) const EVENTS: &str = "events.jsonl";

/// A value as JSON in one line. JSON itself escapes some control characters; this escapes all that a terminal would
/// act on.
pub fn json(value: &impl Serialize) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Escaping))?;
    String::from_utf8(bytes).map_err(serde::ser::Error::custom)
}

/// The same for JSON that is made already, in any number of lines: what it escapes can only stand within strings.
pub(super) fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' => text.push(c),
            c if harmless(c) => text.push(c),
            c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| text.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    text
}

struct Escaping;

impl Formatter for Escaping {
    fn write_string_fragment<W: Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c| !harmless(c)) {
            writer.write_all(&rest.as_bytes()[..at])?;
            let mut chars = rest[at..].chars();
            for unit in chars.next().iter().flat_map(|c| c.encode_utf16(&mut [0; 2]).to_vec()) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Writes each event as one line of JSON, at once, after a first line that says the [form](EventsHeader) of the others.
/// After a first error nothing more is written, so that no line follows half of another.
pub struct Json(Mutex<State>);

struct State {
    writer: Box<dyn Write + Send>,
    has_header: bool,
    error: Option<io::Error>,
}

impl Json {
    /// Writes to `writer`.
    pub fn new(writer: Box<dyn Write + Send>) -> Self {
        Self::after(writer, false)
    }

    /// The same, where the first line may be there already.
    fn after(writer: Box<dyn Write + Send>, has_header: bool) -> Self {
        Self(Mutex::new(State { writer, has_header, error: None }))
    }

    /// The error that ended the writing, if one did.
    pub fn error(&self) -> Option<io::Error> {
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
        let State { writer, has_header, error } = &mut *lock(&self.0);
        if error.is_none() && !std::mem::replace(has_header, true) {
            *error = write(writer, &EventsHeader::default()).err();
        }
        if error.is_none() {
            *error = write(writer, event).err();
        }
    }
}

impl ResultsFile for Json {
    fn error(&self) -> Option<io::Error> {
        self.error()
    }
}

pub(super) fn create(directory: &Path) -> Result<Arc<dyn ResultsFile>, ResultsError> {
    let path = directory.join(EVENTS);
    let file = files::append(&path).map_err(ResultsError::file("write to", directory))?;
    let has_header = file.metadata().map_err(ResultsError::file("read", &path))?.len() > 0;
    Ok(Arc::new(Json::after(Box::new(file), has_header)))
}

/// Says to other processes that this one writes down the run, for as long as what is returned is kept. Not every file system
/// can tell them.
pub(super) fn lock_directory(directory: &Path) -> Result<File, ResultsError> {
    let path = directory.join(EVENTS);
    let file = files::append(&path).map_err(ResultsError::file("write to", &path))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(ResultsError::InUse(directory.to_owned())),
        _ => Ok(file),
    }
}

/// Whether a process writes down the run: then it goes on. Blocks no longer than it takes to ask.
pub fn goes_on(directory: &Path) -> bool {
    let events = files::open(&directory.join(EVENTS));
    events.is_ok_and(|events| matches!(events.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Reads the events of a run that is resumed. A last line that was cut is removed, so that the next begins a line.
pub(super) fn read(directory: &Path) -> Result<Vec<Event>, ResultsError> {
    let path = directory.join(EVENTS);
    let read = || {
        let bytes = fs::read(&path)?;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if end < bytes.len() {
            files::append(&path)?.set_len(end as u64)?;
        }
        crate::read_events(&bytes[..end])
    };
    read().map_err(ResultsError::file("read", &path))
}

fn write(writer: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = json(value)?;
    line.push('\n');
    writer.write_all(line.as_bytes())?;
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{Shared, little_run};

    #[test]
    fn lines_read_back_as_the_events_they_were() {
        let written = Shared::default();
        let json = Json::new(Box::new(written.clone()));
        little_run().iter().for_each(|event| json.event(event));
        let text = written.text();
        assert_eq!(crate::read_events(text.as_bytes()).unwrap(), little_run());
        assert_eq!(text.lines().next(), Some(r#"{"schema":2}"#));
        assert!(!text.contains('\u{1b}'), "JSON escapes control characters");
        assert!(json.error().is_none());
    }

    #[test]
    fn what_a_terminal_would_act_on_is_escaped_and_reads_back() {
        let text = "a\u{1b}]0;\u{7}\u{9b}2J\u{7f}\u{85}\u{202e}\u{200b}\u{2028}\u{feff}\u{e0041}\t\n\"\\é✓\u{10ffff}";
        let written = json(&serde_json::json!({ text: [text] })).unwrap();
        assert!(written.chars().all(|c| harmless(c) && c != '\t'), "{written}");
        assert!(
            written.contains("\\u009b2J\\u007f\\u0085\\u202e\\u200b\\u2028\\ufeff\\udb40\\udc41"),
            "{written}"
        );
        assert_eq!(serde_json::from_str::<serde_json::Value>(&written).unwrap()[text][0], text);
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
