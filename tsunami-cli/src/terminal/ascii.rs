//! Terminals that show nothing but ASCII.

use std::io::{self, Write};

/// What this program writes beyond ASCII, and what is as wide and stands for it.
const SIGNS: [(&str, u8); 3] = [("×", b'x'), ("−", b'-'), ("…", b'+')];

/// Whether terminals show all of Unicode, by the locale that these variables tell, as other programs take it.
pub(super) fn has_unicode(variable: impl Fn(&str) -> Option<String>) -> bool {
    let locale =
        ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(variable).find(|value| !value.is_empty());
    let locale = locale.unwrap_or_default().to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// A terminal where these signs are written so. What else is beyond ASCII is somebody else's, and stays.
pub(super) struct Ascii<W>(pub(super) W);

impl<W: Write> Write for Ascii<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (mut plain, mut rest) = (Vec::with_capacity(bytes.len()), bytes);
        while let Some(first) = rest.first() {
            let sign = SIGNS.iter().find(|(sign, _)| rest.starts_with(sign.as_bytes()));
            let (byte, length) = sign.map_or((*first, 1), |(sign, ascii)| (*ascii, sign.len()));
            plain.push(byte);
            rest = &rest[length..];
        }
        self.0.write_all(&plain).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_locale_has_no_unicode_our_signs_are_ascii() {
        let mut terminal = Ascii(Vec::new());
        terminal.write_all("2 × a, −1 %, über\u{1b}[2m$ x …\n".as_bytes()).unwrap();
        assert_eq!(String::from_utf8(terminal.0).unwrap(), "2 x a, -1 %, über\u{1b}[2m$ x +\n");
        for (set, expected) in [
            (&[][..], false),
            (&[("LANG", "en_US.UTF-8")], true),
            (&[("LANG", "en_US.UTF-8"), ("LC_ALL", "C")], false),
            (&[("LANG", "C"), ("LC_CTYPE", "C.utf8"), ("LC_ALL", "")], true),
        ] {
            let variable = |name: &str| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            };
            assert_eq!(has_unicode(variable), expected, "{set:?}");
        }
    }
}
