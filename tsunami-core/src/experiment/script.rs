//! What a script says of itself in its first line.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes of a first line, after which Linux cuts it.
const FIRST_LINE_LIMIT: u64 = 255;

/// What runs a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interpreter {
    /// The program's absolute path.
    pub(super) program: String,
    /// Its first argument, if any: the rest of the line, spaces included.
    pub(super) argument: Option<String>,
}

/// Why a script can't be run, and what to do about it.
#[derive(Debug)]
pub(super) enum Unusable {
    /// It can't be read.
    Unreadable(io::Error),
    /// Its first line says nothing that can be run.
    Wrong {
        /// What is wrong with the line, as the rest of a sentence about the script.
        message: &'static str,
        /// What to do about it.
        help: &'static str,
    },
}

impl Interpreter {
    /// Reads a script's first line, as Linux does.
    pub(super) fn of(script: &Path) -> Result<Self, Unusable> {
        let mut start = Vec::new();
        let read = File::open(script).and_then(|file| file.take(FIRST_LINE_LIMIT).read_to_end(&mut start));
        read.map_err(Unusable::Unreadable)?;
        let wrong = |message, help| Unusable::Wrong { message, help };
        const HELP: &str = "say what runs it in its first line, as `#!/bin/bash`";
        let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let Some(line) = line.strip_prefix(b"#!") else { return Err(wrong("doesn't begin with `#!`", HELP)) };
        let line = String::from_utf8_lossy(line);
        if line.ends_with('\r') {
            let help = "save it with the line endings of Unix (LF, not CRLF), as `dos2unix` does";
            return Err(wrong(
                "has the line endings of Windows (CRLF), which no interpreter's name has",
                help,
            ));
        }
        let line = line.trim_matches([' ', '\t']);
        let (program, argument) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        if !program.starts_with('/') {
            return Err(wrong("names no program by its absolute path after `#!`", HELP));
        }
        let argument = Some(argument.trim_matches([' ', '\t']).to_owned()).filter(|text| !text.is_empty());
        Ok(Self { program: program.to_owned(), argument })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            Interpreter::of(file.path())
        };
        for (text, program, argument) in [
            ("#!/bin/sh\necho\r\n", "/bin/sh", None),
            ("#! /usr/bin/env  -S python3 -u \n", "/usr/bin/env", Some("-S python3 -u")),
            ("#!/bin/true", "/bin/true", None),
        ] {
            let argument = argument.map(str::to_owned);
            assert_eq!(of(text).unwrap(), Interpreter { program: program.to_owned(), argument });
        }
        for (text, part) in [
            ("echo\n", "begin with `#!`"),
            ("", "begin with `#!`"),
            ("#!\n", "absolute path"),
            ("#!python3\n", "absolute path"),
            ("#!/bin/sh\r\necho\r\n", "CRLF"),
        ] {
            assert!(
                matches!(of(text), Err(Unusable::Wrong { message, .. }) if message.contains(part)),
                "{text:?}"
            );
        }
    }
}
