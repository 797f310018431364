//! The script that ends a run's processes where they are: at its deadline, or when asked to.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The script; its beginning says how to call it.
pub(crate) const SCRIPT: &str = include_str!("keeper.sh");

/// The content of the deadline file, given the machine's seconds since boot.
pub(crate) fn deadline(at: SystemTime, left: Duration, uptime: u64) -> String {
    let clock = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    format!("{clock} {}\n", uptime.saturating_add(left.as_secs()))
}

/// Reads the absolute end from a deadline file.
pub(crate) fn parse_deadline(text: &str) -> Option<SystemTime> {
    let seconds = text.split_whitespace().next()?.parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_read_as_it_was_written() {
        let at = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let text = deadline(at, Duration::from_secs(60), 5);
        assert_eq!(text, "1800000000 65\n");
        assert_eq!(parse_deadline(&text), Some(at));
    }
}
