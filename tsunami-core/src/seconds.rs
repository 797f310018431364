//! Times as saved streams and reports have them: numbers of seconds, to the millisecond.
//!
//! A field is written and read in this way `#[serde(with = "seconds")]`, one that may be missing
//! `#[serde(default, with = "seconds::optional")]`. A number that can't be a time, such as a negative one, is an error.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{Deserialize, Deserializer, Error, Unexpected};
use serde::ser::{Serialize, Serializer};

/// What can be told by a number of milliseconds.
pub(crate) trait Milliseconds: Sized {
    fn number(&self) -> u128;

    fn from_number(milliseconds: u64) -> Option<Self>;

    /// Itself as it is read back: whoever watches a run, and whoever reads of it later, get the same.
    fn cut(&self) -> Option<Self> {
        u64::try_from(self.number()).ok().and_then(Self::from_number)
    }
}

impl Milliseconds for Duration {
    fn number(&self) -> u128 {
        self.as_millis()
    }

    fn from_number(milliseconds: u64) -> Option<Self> {
        Some(Self::from_millis(milliseconds))
    }
}

/// Since 1970. Before that is 1970.
impl Milliseconds for SystemTime {
    fn number(&self) -> u128 {
        self.duration_since(UNIX_EPOCH).unwrap_or_default().number()
    }

    fn from_number(milliseconds: u64) -> Option<Self> {
        UNIX_EPOCH.checked_add(Duration::from_millis(milliseconds))
    }
}

/// 0 is none.
impl Milliseconds for Option<SystemTime> {
    fn number(&self) -> u128 {
        self.as_ref().map_or(0, Milliseconds::number)
    }

    fn from_number(milliseconds: u64) -> Option<Self> {
        match milliseconds {
            0 => Some(None),
            _ => SystemTime::from_number(milliseconds).map(Some),
        }
    }
}

pub(crate) fn serialize<T: Milliseconds, S: Serializer>(time: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(seconds(time))
}

pub(crate) fn deserialize<'de, T: Milliseconds, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    time(f64::deserialize(deserializer)?)
}

/// The same where there may be none.
pub(crate) mod optional {
    use super::*;

    pub(crate) fn serialize<T: Milliseconds, S: Serializer>(
        time: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.as_ref().map(seconds).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: Milliseconds, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        Option::<f64>::deserialize(deserializer)?.map(time).transpose()
    }
}

fn seconds(time: &impl Milliseconds) -> f64 {
    time.number() as f64 / 1000.0
}

fn time<T: Milliseconds, E: Error>(seconds: f64) -> Result<T, E> {
    // Rounded, since a number of seconds since 1970 is not exact to the millisecond.
    let milliseconds = (seconds * 1000.0).round();
    let is_one = (0.0..u64::MAX as f64).contains(&milliseconds);
    let time = is_one.then_some(milliseconds as u64).and_then(T::from_number);
    time.ok_or_else(|| E::invalid_value(Unexpected::Float(seconds), &"a time in seconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Times {
        #[serde(with = "super")]
        at: SystemTime,
        #[serde(with = "super")]
        took: Duration,
        #[serde(default, with = "super::optional")]
        ready: Option<Duration>,
        #[serde(default, with = "super")]
        started: Option<SystemTime>,
    }

    #[test]
    fn times_are_written_in_seconds_to_the_millisecond_and_read_back_as_the_same() {
        let text = r#"{"at":1800000017.282,"took":0.109,"ready":null,"started":0.0}"#;
        let times: Times = serde_json::from_str(text).unwrap();
        assert_eq!(times.at, UNIX_EPOCH + Duration::from_millis(1_800_000_017_282));
        assert_eq!((times.took, times.ready, times.started), (Duration::from_millis(109), None, None));
        assert_eq!(serde_json::to_string(&times).unwrap(), text);
        for number in (0..10_000).map(|step| 1_800_000_000_000 + 7 * step) {
            let (at, ready) =
                (SystemTime::from_number(number).unwrap(), Duration::from_number(number / 1000));
            let exact = Times { at, took: Duration::from_millis(number % 9973), ready, started: Some(at) };
            let json = serde_json::to_string(&exact).unwrap();
            assert_eq!(serde_json::from_str::<Times>(&json).unwrap(), exact, "{json}");
        }
        let finer = Duration::from_micros(1_999_999);
        assert_eq!((seconds(&finer), finer.cut()), (1.999, Some(Duration::from_millis(1999))));
    }

    #[test]
    fn what_can_be_no_time_is_an_error() {
        for bad in ["-0.001", "-1", "-1e300", "1e300", "1.9e16", "1e400", "\"1\"", "null"] {
            for text in [
                format!(r#"{{"at":{bad},"took":0}}"#),
                format!(r#"{{"at":0,"took":{bad}}}"#),
                format!(r#"{{"at":0,"took":0,"started":{bad}}}"#),
                format!(r#"{{"at":0,"took":0,"ready":{bad}}}"#),
            ] {
                let is_none = bad == "null" && text.contains("ready");
                assert_eq!(serde_json::from_str::<Times>(&text).is_ok(), is_none, "{text}");
            }
        }
        assert_eq!(serde_json::from_str::<Times>(r#"{"at":1,"took":0}"#).unwrap().ready, None);
    }
}
