//! Lines that go on below, between words.

use std::iter;
use std::ops::Range;

use unicode_width::UnicodeWidthStr;

/// Where the lines of a text begin and end that is shown in so many columns, all but the first set in by `hang`, which is less. A word
/// stays whole, and so does what stands in backquotes where it fits into a line at all, and a command of our own to copy even
/// where it doesn't: what a terminal breaks by itself is copied without the break.
pub(super) fn wrap(text: &str, width: usize, hang: usize) -> Vec<Range<usize>> {
    let columns = |range: Range<usize>| text[range].width();
    let is_wide = text.len() > width && columns(0..text.len()) > width;
    let words = if is_wide { words(text, width - hang) } else { Vec::new() };
    let Some((first, rest)) = words.split_first() else { return iter::once(0..text.len()).collect() };
    let mut lines = Vec::new();
    let (mut line, mut room) = (0..first.end, width);
    for word in rest {
        // One that is too long for any line is broken by the terminal, wherever it begins.
        if columns(line.start..word.end) <= room || columns(word.clone()) > width - hang {
            line.end = word.end;
        } else {
            lines.push(line);
            (line, room) = (word.clone(), width - hang);
        }
    }
    // Blanks at the end are kept where there is room: they may be an empty cell.
    line.end = if columns(line.start..text.len()) <= room { text.len() } else { line.end };
    lines.push(line);
    lines
}

/// The words of a text, that in backquotes being one if it has at most so many columns, or is a command of our own.
fn words(text: &str, most: usize) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    let mut quoted_to = 0;
    let mut start = None;
    for (at, c) in text.char_indices() {
        if c == '`' && at >= quoted_to {
            let end = text[at + 1..].find('`').map(|end| at + 1 + end + 1);
            let is_ours = text[at + 1..].starts_with("tsunami ");
            quoted_to = end.filter(|end| is_ours || text[at..*end].width() <= most).unwrap_or(at + 1);
        }
        match start {
            Some(from) if c == ' ' && at >= quoted_to => {
                words.push(from..at);
                start = None;
            }
            None if c != ' ' => start = Some(at),
            _ => {}
        }
    }
    words.extend(start.map(|from| from..text.len()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_commands_stay_whole_where_they_can() {
        for (text, width, expected) in [
            ("  as it is", 10, &["  as it is"][..]),
            ("one two three four", 9, &["one two", "three", "four"]),
            ("run x; `a b c` removes it", 13, &["run x;", "`a b c`", "removes it"]),
            ("`a b c d e f g h`", 10, &["`a b c d e", "f g h`"]),
            ("then `tsunami down x y z` so", 12, &["then `tsunami down x y z`", "so"]),
            ("results: /a/path/that/is/long so", 12, &["results: /a/path/that/is/long", "so"]),
            ("é é é é é é é", 7, &["é é é é", "é é é"]),
            ("漢字 漢字 漢字", 9, &["漢字 漢字", "漢字"]),
            ("", 8, &[""]),
            ("        ", 4, &["        "]),
        ] {
            let lines: Vec<_> = wrap(text, width, 2).into_iter().map(|line| &text[line]).collect();
            assert_eq!(lines, expected, "{text}");
        }
    }
}
