//! EC2's clock, by which machines live and tags are read, beside this computer's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_sdk_ec2::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_ec2::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_ec2::error::BoxError;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use crate::limits::CLOCK_SKEW_LIMIT;

/// Clocks that differ by less are taken for the same: an answer is on its way for a while, and tells whole seconds.
const SAME_CLOCK_SECONDS: i64 = 10;

/// What was signed this long ago is not believed any more, nor what is signed so far ahead.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-troubleshooting.html>
const SIGNATURE_SECONDS: u64 = 5 * 60;

/// How far EC2's clock is ahead of this computer's, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock {
    ahead: i64,
}

impl Clock {
    /// By what EC2 said the time was, at some time of ours. Rounded, so that whoever asks again finds the same.
    fn compared(theirs: i64, ours: SystemTime) -> Self {
        let ours = DateTime::from(ours).secs();
        let limit = CLOCK_SKEW_LIMIT.as_secs().cast_signed();
        let ahead = theirs.saturating_sub(ours).clamp(-limit, limit);
        let rounded = ahead.saturating_add(ahead.signum() * SAME_CLOCK_SECONDS / 2) / SAME_CLOCK_SECONDS
            * SAME_CLOCK_SECONDS;
        Self { ahead: if ahead.abs() < SAME_CLOCK_SECONDS { 0 } else { rounded } }
    }

    /// A time of ours on EC2's clock.
    pub(crate) fn theirs(self, ours: SystemTime) -> SystemTime {
        self.moved(ours, self.ahead >= 0)
    }

    /// A time of EC2's on our clock.
    pub(crate) fn ours(self, theirs: SystemTime) -> SystemTime {
        self.moved(theirs, self.ahead < 0)
    }

    fn moved(self, time: SystemTime, forward: bool) -> SystemTime {
        let by = Duration::from_secs(self.ahead.unsigned_abs());
        let moved = if forward { time.checked_add(by) } else { time.checked_sub(by) };
        moved.unwrap_or(time)
    }

    /// What is to be said of the difference.
    pub(crate) fn note(self) -> Option<String> {
        self.difference().map(|difference| format!("{difference}: the machines' deadlines go by EC2's"))
    }

    /// How far apart the clocks are, in words, where they are not the same.
    pub(crate) fn difference(self) -> Option<String> {
        let by = humantime::format_duration(Duration::from_secs(self.ahead.unsigned_abs()));
        let way = if self.ahead > 0 { "behind" } else { "ahead of" };
        (self.ahead != 0).then(|| format!("this computer's clock is {by} {way} EC2's"))
    }

    /// Whether the clocks are so far apart that AWS believes no signature of ours.
    pub(crate) fn is_beyond_signatures(self) -> bool {
        self.ahead.unsigned_abs() >= SIGNATURE_SECONDS
    }
}

/// Hears what time it is from the answers of a service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hearing(Arc<Mutex<Option<(DateTime, SystemTime)>>>);

impl Hearing {
    /// How far the service's clock is from ours.
    pub(crate) fn clock(&self) -> Clock {
        self.heard().map(|(theirs, ours)| Clock::compared(theirs.secs(), ours)).unwrap_or_default()
    }

    /// The time by the service's clock, as its last answer has it.
    pub(crate) fn time(&self) -> Option<SystemTime> {
        self.heard().and_then(|(theirs, _)| theirs.try_into().ok())
    }

    fn heard(&self) -> Option<(DateTime, SystemTime)> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for Hearing {
    fn name(&self) -> &'static str {
        "Hearing"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        if let Some(date) = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok()) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((date, SystemTime::now()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_are_apart_are_told_and_reckoned_with() {
        let ours = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let clock = |ahead: i64| Clock::compared(1_800_000_000 + ahead, ours);
        for (ahead, expected) in [(0, 0), (9, 0), (-9, 0), (198, 200), (203, 200), (-3600, -3600)] {
            assert_eq!(clock(ahead).ahead, expected, "{ahead}");
            let (theirs, back) = (clock(ahead).theirs(ours), clock(ahead).ours(clock(ahead).theirs(ours)));
            assert_eq!(back, ours);
            let moved = DateTime::from(theirs).secs() - 1_800_000_000;
            assert_eq!(moved, expected);
        }
        assert_eq!(clock(3).note(), None);
        assert!(clock(200).note().unwrap().contains("3m 20s behind EC2's"));
        assert!(clock(-200).note().unwrap().contains("3m 20s ahead of EC2's"));
        // Whoever answers for EC2 moves no deadline by more than the limit.
        for said in [i64::MAX, 1_900_000_000] {
            assert_eq!(Clock::compared(said, ours).theirs(ours), ours + CLOCK_SKEW_LIMIT);
        }
    }
}
