//! Random inputs of whatever has been used against readers and terminals. tsunami-cli's tests take this file, too.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use tsunami_core::text::harmless;

/// How many cases are tried.
pub(crate) fn config() -> ProptestConfig {
    let cases = std::env::var("TSUNAMI_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: cases.unwrap_or(256), failure_persistence: None, ..ProptestConfig::default() }
}

/// Pieces of what has been used against terminals, and of what tsunami says itself.
#[rustfmt::skip]
pub(crate) const HOSTILE: &[&str] = &[
    "\u{1b}", "\u{1b}[", "\u{1b}]0;", "\u{1b}\\", "\u{7}", "\u{9b}", "\u{9d}", "\u{9c}", "\u{90}", "31",
    ";", "m", "2J", "\n", "\r", "\r\n", "\t", "\u{8}", "\0", "\u{7f}", "\u{85}", "\u{202e}", "\u{2066}",
    "\u{200b}", "\u{feff}", "\u{2028}", "\u{e0041}", "error: ", "  because: ", "help: ", " | ", "a", "é",
    "✓", "\u{10ffff}", "\"", "\\",
];

pub(crate) fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![3 => select(HOSTILE).prop_map(str::to_owned), 1 => any::<String>()];
    vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

pub(crate) fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece =
        prop_oneof![text().prop_map(String::into_bytes), vec(prop_oneof![0x80_u8..0xa0, any::<u8>()], 0..8)];
    vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

/// What is put in, where, and how much is taken out there.
pub(crate) type Change = (Index, Vec<u8>, usize);

pub(crate) fn changes(words: &'static [&'static str]) -> impl Strategy<Value = Vec<Change>> {
    let put = prop_oneof![
        select(words).prop_map(|word| word.as_bytes().to_vec()),
        text().prop_map(String::into_bytes),
        vec(any::<u8>(), 0..4)
    ];
    vec((any::<Index>(), put, 0..12_usize), 1..6)
}

pub(crate) fn changed(original: &str, changes: &[Change]) -> Vec<u8> {
    let mut bytes = original.as_bytes().to_vec();
    for (at, put, take) in changes {
        let at = at.index(bytes.len() + 1);
        let end = (at + take).min(bytes.len());
        bytes.splice(at..end, put.iter().copied());
    }
    bytes
}

pub(crate) fn assert_clean(text: &str) {
    let acting = text.chars().find(|&c| c != '\n' && !harmless(c));
    assert_eq!(acting, None, "{text:?}");
}
