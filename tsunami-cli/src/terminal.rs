//! The two streams that the user sees. That nobody reads them is no reason to fail.

use std::io::{ErrorKind, IsTerminal, Write};

use crate::error::Error;

/// Writes a line to standard error: progress and messages.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Writes text to standard output: results. A reader that has gone does not mind; a full disk is an error.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::file("write to", "standard output")(error))
        }
        _ => Ok(()),
    }
}

/// Whether standard error is a screen that can be drawn on.
pub(crate) fn is_interactive() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Marks what a terminal would act on: each such character becomes one U+FFFD, so that columns stay where they are.
pub(crate) fn mark(text: &str) -> String {
    text.replace(|c| !crate::reporter::harmless(c), "\u{fffd}")
}
