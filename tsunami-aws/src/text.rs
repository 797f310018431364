//! Texts of the service, as far as they may pass on: to configuration files, paths, and lines on a terminal.
//!
//! What carries a run's tag may have been tagged by anybody in the account, and an endpoint may say anything.

use std::net::IpAddr;

use tsunami_core::text::shorten;

use crate::limits::{REASON_LIMIT, SERVICE_WORD_LIMIT, USER_NAME_LIMIT};

/// An address, written as addresses are.
pub(crate) fn address(text: Option<&str>) -> Option<String> {
    let address = text?.parse::<IpAddr>().ok().map(|address| address.to_string());
    dropped(address, text, "address")
}

/// The name of a user to log in as.
pub(crate) fn user(text: Option<&str>) -> Option<String> {
    let user = text.filter(|text| is_word(text, USER_NAME_LIMIT)).map(str::to_owned);
    dropped(user, text, "user")
}

/// A group's name.
pub(crate) fn group(text: Option<&str>) -> Option<String> {
    let is_group = |text: &&str| text.len() <= SERVICE_WORD_LIMIT && tsunami_core::is_group_name(text);
    dropped(text.filter(is_group).map(str::to_owned), text, "group")
}

/// An id or a name as EC2 gives them, or tsunami to what it makes.
pub(crate) fn word(text: Option<&str>) -> Option<String> {
    let word = text.filter(|text| is_word(text, SERVICE_WORD_LIMIT)).map(str::to_owned);
    dropped(word, text, "word")
}

/// Words for people: on one line, and not too many.
pub(crate) fn line(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c == '\u{2028}' || c == '\u{2029}');
    let line = words.map(str::trim).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    shorten(&line, REASON_LIMIT).into_owned()
}

fn is_word(text: &str, limit: usize) -> bool {
    let usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !text.is_empty() && text.len() <= limit && !text.starts_with('-') && text.bytes().all(usual)
}

fn dropped(kept: Option<String>, text: Option<&str>, kind: &str) -> Option<String> {
    if let (None, Some(text)) = (&kept, text) {
        tracing::warn!(text = line(text), "no {kind}, so it is passed over");
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: [&str; 12] = [
        "",
        "-oProxyCommand=id",
        "10.0.0.1\nProxyCommand id",
        "root\n  ProxyCommand id",
        "$(id)",
        "`id`",
        "a b",
        "../../etc/passwd",
        "a\"b",
        "a;b",
        "root\u{9b}31m",
        "\u{202e}toor",
    ];

    #[test]
    fn what_could_become_more_than_a_value_passes_nowhere() {
        for text in HOSTILE {
            let text = Some(text);
            assert_eq!([address(text), user(text), group(text), word(text)], [const { None }; 4], "{text:?}");
        }
        assert_eq!(user(Some(&"x".repeat(USER_NAME_LIMIT + 1))), None);
    }

    #[test]
    fn what_ec2_says_every_day_passes() {
        assert_eq!(address(Some("203.0.113.7")).as_deref(), Some("203.0.113.7"));
        assert_eq!(address(Some("2001:DB8::1")).as_deref(), Some("2001:db8::1"));
        assert_eq!(user(Some("ec2-user")).as_deref(), Some("ec2-user"));
        assert_eq!(group(Some("client_2")).as_deref(), Some("client_2"));
        for usual in ["i-0123456789abcdef0", "vpc-1", "tsunami-20260101-120000-abcd-node-0000", "sir-1"] {
            assert_eq!(word(Some(usual)).as_deref(), Some(usual));
        }
    }

    #[test]
    fn words_for_people_are_one_line_of_bounded_length() {
        assert_eq!(line("a\r\nerror: b\u{9b}c\u{2028}d"), "a error: b c d");
        assert_eq!(line(&"ä".repeat(1 << 20)).chars().count(), REASON_LIMIT + 1);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            failure_persistence: None,
            ..proptest::prelude::ProptestConfig::with_cases(tsunami_core::testing::fuzz_cases(256))
        })]

        #[test]
        fn whatever_a_service_says_is_one_plain_value_or_none(
            plain in "[a-z0-9.:-]{0,12}", odd in proptest::prelude::any::<String>(), after in "[a-z0-9.:-]{0,12}",
        ) {
            let text = format!("{plain}{odd}{after}");
            let said = Some(text.as_str());
            for value in [address(said), user(said), group(said), word(said)].into_iter().flatten() {
                let usual = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
                proptest::prop_assert!(value.chars().all(usual) && !value.starts_with('-'), "{value:?}");
            }
            let line = line(&text);
            let odd = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
            proptest::prop_assert!(!line.contains(odd) && line.chars().count() <= REASON_LIMIT + 1);
        }
    }
}
