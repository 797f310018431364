//! What others say, made fit for a terminal: machines, providers, experiment files.

use std::borrow::Cow;
use std::time::Duration;

use crate::limits::{LINE_LIMIT, LINE_PIECE_LIMIT};

/// Takes out of a line what a terminal would act on: escape sequences with what they hold, all control characters
/// but the tab (newlines, too), and what isn't [harmless].
///
/// A string sequence that never ends would hide the rest of the line; only its introducer is taken out.
pub fn sanitize(text: &str) -> Cow<'_, str> {
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '\u{1b}' => after_escape(after),
            '\u{9b}' => after_csi(after),
            '\u{90}' | '\u{98}' | '\u{9d}' | '\u{9e}' | '\u{9f}' => after_string(after),
            c => {
                clean.extend(harmless(c).then_some(c));
                after
            }
        };
    }
    Cow::Owned(clean)
}

/// [`sanitize`] for a text of several lines, which become one with a space between any two.
#[cfg(feature = "experiment")]
pub(crate) fn sanitize_lines(text: &str) -> String {
    text.trim_end_matches(['\r', '\n']).lines().map(sanitize).collect::<Vec<_>>().join(" ")
}

/// [`sanitize`] for bytes. Those that aren't UTF-8 become U+FFFD, unless they are 8-bit control characters.
pub fn sanitize_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        match chunk.invalid() {
            [] => {}
            [byte @ 0x80..=0x9f] => text.push(char::from(*byte)),
            _ => text.push(char::REPLACEMENT_CHARACTER),
        }
    }
    match sanitize(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(clean) => clean,
    }
}

/// Whether a terminal, or whoever reads it, takes a character for nothing but itself: no control character but the
/// tab, nothing that turns the direction of text around or ends a line, and nothing that can't be seen.
pub fn harmless(c: char) -> bool {
    let invisible = matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'
            | '\u{1160}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    );
    c == '\t' || !(c.is_control() || invisible)
}

/// Marks what a terminal would act on: each such character becomes one U+FFFD, so that columns stay where they are.
pub fn mark(text: &str) -> String {
    text.replace(|c| !harmless(c), "\u{fffd}")
}

/// The beginning of a text, so many characters of it; where there are more, `…` says so.
///
/// ```
/// assert_eq!(tsunami_core::text::shorten("a long story", 6), "a long…");
/// ```
pub fn shorten(text: &str, characters: usize) -> Cow<'_, str> {
    match text.char_indices().nth(characters) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// So many of something: `1 machine`, `2 machines`.
pub fn number(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A duration as files have it, in days at most: `90d`, `1h 30m`, `250ms`. What is below a millisecond is left out.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let parts = [
        (seconds / 86400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (u64::from(duration.subsec_millis()), "ms"),
    ];
    let parts = parts.into_iter().filter(|(count, _)| *count > 0);
    let text = parts.map(|(count, unit)| format!("{count}{unit}")).collect::<Vec<_>>().join(" ");
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// A value as it is told apart beside others: in quotes where it is empty or has blanks, commas, quotes or `=`.
pub fn quoted(value: &str) -> Cow<'_, str> {
    match value.is_empty() || value.contains([' ', ',', '\'', '=']) {
        true => Cow::Owned(format!("'{}'", value.replace('\'', "''"))),
        false => Cow::Borrowed(value),
    }
}

/// What follows an escape sequence whose ESC is gone.
fn after_escape(text: &str) -> &str {
    match text.as_bytes().first() {
        Some(b'[') => return after_csi(&text[1..]),
        Some(b'P' | b'X' | b']' | b'^' | b'_') => return after_string(&text[1..]),
        _ => {}
    }
    let text = text.trim_start_matches(|c| matches!(c, ' '..='/'));
    text.strip_prefix(|c| matches!(c, '0'..='~')).unwrap_or(text)
}

/// What follows a CSI sequence whose introducer is gone.
fn after_csi(text: &str) -> &str {
    let text = text.trim_start_matches(|c| matches!(c, ' '..='?'));
    text.strip_prefix(|c| matches!(c, '@'..='~')).unwrap_or(text)
}

/// What follows an OSC, DCS, SOS, PM or APC sequence whose introducer is gone.
fn after_string(text: &str) -> &str {
    let ends = |c| matches!(c, '\u{7}' | '\u{18}' | '\u{1a}' | '\u{1b}' | '\u{80}'..='\u{9f}');
    let Some(end) = text.find(ends) else { return text };
    let rest = &text[end..];
    rest.strip_prefix("\u{1b}\\")
        .or_else(|| rest.strip_prefix(['\u{7}', '\u{18}', '\u{1a}', '\u{9c}']))
        .unwrap_or(rest)
}

/// Makes lines of bytes that are cut anywhere.
///
/// By default they are for display only: of a line longer than [`LINE_LIMIT`] the rest is dropped and marked with `…`,
/// and a carriage return ends a line as well, so that progress bars can be followed.
#[derive(Debug, Default)]
pub struct Lines {
    pending: Vec<u8>,
    cut: bool,
    returned: bool,
    complete: bool,
}

impl Lines {
    /// Lines that lose nothing but their newlines, which alone end one. A long line is handed over in pieces.
    pub fn complete() -> Self {
        Self { complete: true, ..Self::default() }
    }

    /// Takes more bytes and hands each line that they complete to `line`, still to be [sanitized](sanitize_bytes).
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        let complete = self.complete;
        let is_end = |b: &u8| *b == b'\n' || *b == b'\r' && !complete;
        for piece in bytes.split_inclusive(is_end) {
            let (text, end) = match piece {
                [text @ .., end] if is_end(end) => (text, Some(*end)),
                text => (text, None),
            };
            let second_half = self.returned && text.is_empty() && end == Some(b'\n');
            self.returned = end == Some(b'\r');
            if second_half {
                continue;
            }
            if end.is_some() && self.pending.is_empty() && (complete || text.len() <= LINE_LIMIT) {
                line(text);
                continue;
            }
            self.append(text);
            if end.is_some() || complete && self.pending.len() > LINE_PIECE_LIMIT {
                line(&self.pending);
                self.pending.clear();
                self.cut = false;
            }
        }
    }

    /// Hands over a last line that has no end.
    pub fn finish(&mut self, line: impl FnOnce(&[u8])) {
        if !self.pending.is_empty() {
            line(&self.pending);
        }
        *self = Self { complete: self.complete, ..Self::default() };
    }

    fn append(&mut self, text: &[u8]) {
        if self.complete {
            return self.pending.extend_from_slice(text);
        }
        if self.cut {
            return;
        }
        let room = LINE_LIMIT - self.pending.len();
        self.pending.extend_from_slice(&text[..text.len().min(room)]);
        if text.len() > room {
            let torn = self.pending.utf8_chunks().last().map_or(0, |chunk| chunk.invalid().len());
            self.pending.truncate(LINE_LIMIT - torn);
            self.pending.extend_from_slice("…".as_bytes());
            self.cut = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_reads_as_it_would_be_written_in_a_file() {
        for (seconds, text) in [(0.0, "0s"), (0.25, "250ms"), (5400.0, "1h 30m"), (365.0 * 86400.0, "365d")] {
            let duration = Duration::from_secs_f64(seconds);
            assert_eq!(span(duration), text);
            assert_eq!(humantime::parse_duration(text), Ok(duration));
        }
    }

    #[test]
    fn nothing_that_a_terminal_acts_on_passes() {
        for (hostile, clean) in [
            ("plain ünïcödé\t✓", "plain ünïcödé\t✓"),
            ("a\x1b]0;title\x07b", "ab"),
            ("a\x1b]52;c;aGk=\x1b\\b", "ab"),
            ("a\u{9d}0;title\u{9c}b", "ab"),
            ("a\x1b]0;never ended", "a0;never ended"),
            ("a\x1b]0;x\x1b[31mb", "ab"),
            ("\x1b[1;31mred\x1b[0m", "red"),
            ("\x1b[?1049h\x1b[>4;2m\x1b[2 qx", "x"),
            ("a\u{9b}2Jb", "ab"),
            ("a\x1b[3", "a"),
            ("a\x1b[1;é", "aé"),
            ("a\x1bPq#0;2\x1b\\b\x1b_apc\x1b\\c\x1b^pm\x1b\\d\x1bXsos\x1b\\e", "abcde"),
            ("a\u{90}dcs\u{9c}b\u{9f}apc\u{9c}c\u{9e}pm\u{9c}d\u{98}sos\u{9c}e", "abcde"),
            ("a\x1bcb\x1b(0c\x1b(\u{5b}d\x1b7e", "abcde"),
            ("a\x1b\x1b[Ab\x1b", "ab"),
            ("secret\x08\x08\x08fake", "secretfake"),
            ("rm -rf /\recho ok\r\n", "rm -rf /echo ok"),
            ("a\0b\x07c\x0bd\x0ce\x0ef\x7fg\u{85}h", "abcdefgh"),
            ("a\u{202e}txt.exe\u{202c}\u{2066}b\u{2069}\u{202a}", "atxt.exeb"),
            ("a\u{200e}b\u{200f}c\u{61c}d\u{200b}\u{200c}\u{200d}e\u{feff}f\u{2028}g\u{2029}h", "abcdefgh"),
            ("a\u{e0001}\u{e0041}\u{e007f}b\u{ad}c\u{2060}d\u{fffd}", "abcd\u{fffd}"),
        ] {
            assert_eq!(sanitize(hostile), clean, "{hostile:?}");
            assert_eq!(sanitize_bytes(hostile.as_bytes()), clean, "{hostile:?}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_do_no_harm() {
        assert_eq!(sanitize_bytes(b"a\x9b31mb\x9d0;t\x9cc"), "abc");
        assert_eq!(sanitize_bytes(b"\xff\xfe \xe2\x82 \xc3"), "\u{fffd}\u{fffd} \u{fffd} \u{fffd}");
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                let clean = sanitize_bytes(&[b'x', 0x1b, first, second, first, b'y']);
                assert!(clean.chars().all(harmless), "{first:#x} {second:#x} gave {clean:?}");
            }
        }
    }

    #[test]
    fn lines_are_the_same_however_they_are_cut() {
        let text = "one\r\ntwo\n\n50%\r100%\nünd\r\r\nrest".as_bytes();
        let expected = ["one", "two", "", "50%", "100%", "ünd", "", "rest"];
        for size in 1..=text.len() {
            let (mut lines, mut got) = (Lines::default(), Vec::new());
            for chunk in text.chunks(size) {
                lines.push(chunk, |line| got.push(sanitize_bytes(line)));
            }
            lines.finish(|line| got.push(sanitize_bytes(line)));
            assert_eq!(got, expected, "cut every {size} bytes");
        }
    }

    #[test]
    fn long_lines_are_bounded_and_marked() {
        for size in [1, 7, LINE_LIMIT, 100_000] {
            let mut text = "€".repeat(5000).into_bytes();
            text.extend_from_slice(b"\nnext\n");
            let (mut lines, mut got) = (Lines::default(), Vec::new());
            for chunk in text.chunks(size) {
                lines.push(chunk, |line| got.push(sanitize_bytes(line)));
                assert!(lines.pending.len() <= LINE_LIMIT + 3);
            }
            assert_eq!(
                got,
                [format!("{}…", "€".repeat(LINE_LIMIT / 3)), "next".to_owned()],
                "cut every {size}"
            );
        }
    }

    #[test]
    fn complete_lines_lose_nothing() {
        let long = "x".repeat(2 * LINE_PIECE_LIMIT + 7);
        let text = format!("50%\r100%\r\n\n\u{fc}nd\n{long}\nrest");
        for size in [1, 2, 1000, LINE_PIECE_LIMIT, text.len()] {
            let (mut lines, mut got) = (Lines::complete(), Vec::new());
            for chunk in text.as_bytes().chunks(size) {
                lines.push(chunk, |line| got.push(line.to_vec()));
                assert!(lines.pending.len() <= LINE_PIECE_LIMIT, "cut every {size} bytes");
            }
            lines.finish(|line| got.push(line.to_vec()));
            let pieces = got.len() - 5;
            let middle = got.drain(3..3 + pieces + 1).collect::<Vec<_>>().concat();
            got.insert(3, middle);
            let expected =
                ["50%\r100%\r", "", "\u{fc}nd", &long, "rest"].map(|line| line.as_bytes().to_vec());
            assert!(got == expected, "cut every {size} bytes");
        }
    }

    #[test]
    fn a_text_is_shortened_between_characters_and_says_so() {
        for (text, short) in [("", ""), ("äöü", "äöü"), ("äöü€", "äöü…")] {
            assert_eq!(shorten(text, 3), short);
        }
        assert_eq!([0, 1, 2].map(|count| number(count, "thing")), ["0 things", "1 thing", "2 things"]);
    }

    #[test]
    fn a_mark_takes_the_place_of_what_it_marks() {
        assert_eq!(
            mark("a\u{1b}[1m\u{9b}\u{202e}\u{feff}\u{e0041}\nb\tc"),
            "a\u{fffd}[1m\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}b\tc"
        );
    }
}
