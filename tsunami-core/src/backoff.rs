//! How long to wait before something is tried again.

use std::time::Duration;

/// The waits between attempts: a first one, each further one longer by the same factor, up to a longest. It never ends.
///
/// It is a plain value: who waits chooses the clock, counts the attempts, and adds or takes what chance is to change.
/// (The crates for this sleep and retry themselves, end after some attempts, and spread the waits in a way of their
/// own.)
///
/// ```
/// # use std::time::Duration;
/// # use tsunami_core::Backoff;
/// let mut waits = Backoff::new(Duration::from_millis(100), Duration::from_millis(250));
/// assert_eq!([waits.wait(), waits.wait(), waits.wait()].map(|wait| wait.as_millis()), [100, 200, 250]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Backoff {
    next: Duration,
    longest: Duration,
    factor: f64,
}

impl Backoff {
    /// Waits that begin with `first` and double until they are `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest, factor: 2.0 }
    }

    /// Makes each wait so many times as long as the one before it.
    pub const fn factor(self, factor: f64) -> Self {
        Self { factor, ..self }
    }

    /// How long to wait now.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next.min(self.longest);
        let longer = Duration::try_from_secs_f64(wait.as_secs_f64() * self.factor);
        self.next = longer.unwrap_or(self.longest);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(mut waits: Backoff, count: usize) -> Vec<u128> {
        (0..count).map(|_| waits.wait().as_millis()).collect()
    }

    #[test]
    fn waits_grow_by_their_factor_up_to_the_longest_and_never_end() {
        let of = |first, longest| Backoff::new(Duration::from_millis(first), Duration::from_millis(longest));
        assert_eq!(millis(of(250, 1500), 5), [250, 500, 1000, 1500, 1500]);
        assert_eq!(millis(of(20, 60).factor(1.5), 5), [20, 30, 45, 60, 60]);
        assert_eq!(millis(of(500, 100), 2), [100, 100]);
        assert_eq!(
            millis(Backoff::new(Duration::from_secs(1), Duration::MAX), 200).last(),
            Some(&Duration::MAX.as_millis())
        );
    }
}
