//! One region's services, and the pace at which they are called.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use tokio::time::{Instant, sleep, sleep_until};
use tsunami_core::{Backoff, ProviderError, ProviderErrorKind};

use crate::clock::Clock;
use crate::error::{AwsError, Result};
use crate::limited::LimitedAnswers;

/// What was just made may be unknown to the next request for some seconds; so often that is waited for,
pub(crate) const VISIBILITY_ATTEMPTS: u32 = 10;

/// so long each time.
pub(crate) const VISIBILITY_PAUSE: Duration = Duration::from_secs(2);

/// How often a request is made before its failure is passed on.
const MAX_ATTEMPTS: u32 = 6;

/// How often a market is asked that fails inside EC2 before the next one is tried,
const MAX_MARKET_ATTEMPTS: u32 = 3;

/// and for how long.
const MARKET_TIMEOUT: Duration = Duration::from_secs(30);

/// The pauses before repetitions; chance makes each of them [shorter](spread).
const PAUSES: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(8));

/// The services of one region.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) name: String,
    pub(crate) ec2: Client,
    pub(crate) ssm: aws_sdk_ssm::Client,
    pub(crate) service_quotas: aws_sdk_servicequotas::Client,
    /// How far the service's clock is from ours.
    pub(crate) clock: Clock,
    /// The instances that EC2 has been told to end, and has not refused to.
    told: Mutex<BTreeSet<String>>,
    /// Whether it was said that listings show what was not asked for.
    strangers: Once,
    pace: Pace,
}

impl Region {
    pub(crate) fn new(config: &SdkConfig, name: &str, clock: Clock) -> Self {
        let config = config.to_builder().region(aws_config::Region::new(name.to_owned())).build();
        Self {
            name: name.to_owned(),
            ec2: {
                let config =
                    aws_sdk_ec2::config::Builder::from(&config).interceptor(LimitedAnswers::default());
                Client::from_conf(config.build())
            },
            ssm: {
                let config =
                    aws_sdk_ssm::config::Builder::from(&config).interceptor(LimitedAnswers::default());
                aws_sdk_ssm::Client::from_conf(config.build())
            },
            service_quotas: {
                let config = aws_sdk_servicequotas::config::Builder::from(&config)
                    .interceptor(LimitedAnswers::default());
                aws_sdk_servicequotas::Client::from_conf(config.build())
            },
            clock,
            told: Mutex::default(),
            strangers: Once::new(),
            pace: Pace::default(),
        }
    }

    pub(crate) fn told(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says once that a listing shows what it was not asked for.
    pub(crate) fn shows_strangers(&self) {
        self.strangers.call_once(|| {
            tracing::warn!(
                region = self.name,
                "listings show what belongs to no run that was asked for; it is let be"
            );
        });
    }

    /// What is asked for can't be had in this region, whatever else is tried.
    pub(crate) fn invalid(&self, message: impl Into<String>) -> ProviderError {
        ProviderError::new(ProviderErrorKind::InvalidSpec, self.name.clone(), message)
    }

    /// Makes a request, and repeats it while that may help. What it creates must be the same every time.
    pub(crate) async fn call<T, E, R, F>(
        &self,
        operation: &'static str,
        request: impl Fn() -> F + Send,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, SdkError<E, R>>> + Send,
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
        R: Debug + Send + 'static,
    {
        self.repeated(operation, request, |_, _| false).await
    }

    /// Makes a request for machines of one market, and repeats it for a while: another market may have what this one
    /// fails to give.
    pub(crate) async fn call_market<T, E, R, F>(
        &self,
        operation: &'static str,
        request: impl Fn() -> F + Send,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, SdkError<E, R>>> + Send,
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
        R: Debug + Send + 'static,
    {
        let begun = Instant::now();
        let failed = AtomicU32::new(0);
        let is_over = |failure: &AwsError, _| {
            failure.is_inside_aws() && {
                let times = failed.fetch_add(1, Ordering::Relaxed) + 1;
                times >= MAX_MARKET_ATTEMPTS || begun.elapsed() >= MARKET_TIMEOUT
            }
        };
        self.repeated(operation, request, is_over).await
    }

    /// Makes a request, and repeats it while that may help, unless `is_over` says that it was tried enough.
    async fn repeated<T, E, R, F>(
        &self,
        operation: &'static str,
        request: impl Fn() -> F + Send,
        is_over: impl Fn(&AwsError, u32) -> bool + Send,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, SdkError<E, R>>> + Send,
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
        R: Debug + Send + 'static,
    {
        let (mut unanswered, mut lost) = (false, false);
        let mut pauses = PAUSES;
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.once(operation, &request).await {
                Err(mut failure) => {
                    // An answer now says nothing about a request that was not answered before: unless it says
                    // that what is asked for is wrong, that one may have taken effect.
                    unanswered |= !failure.answered || failure.kind == ProviderErrorKind::Unavailable;
                    failure.answered &= !unanswered;
                    lost |= !failure.is_inside_aws() && failure.kind == ProviderErrorKind::Unavailable;
                    if lost && failure.is_inside_aws() {
                        // The one before may have taken effect: that comes first.
                        failure.code = "NoAnswer".to_owned();
                    }
                    if !failure.kind.is_transient() || attempt >= MAX_ATTEMPTS || is_over(&failure, attempt) {
                        return Err(failure);
                    }
                    tracing::debug!(%failure, attempt, "again");
                    let pause = spread(pauses.wait());
                    if failure.kind == ProviderErrorKind::Unavailable {
                        sleep(pause).await;
                    }
                }
                answer => return answer,
            }
        }
    }

    /// Makes a request once, at the region's pace.
    pub(crate) async fn once<T, E, R, F>(&self, operation: &'static str, request: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T, SdkError<E, R>>>,
        E: std::error::Error + ProvideErrorMetadata + 'static,
        R: Debug + 'static,
    {
        self.pace.wait(operation).await;
        let answer = request().await.map_err(|error| AwsError::new(operation, &self.name, &error));
        match &answer {
            Err(failure) if failure.kind == ProviderErrorKind::Throttled => self.pace.throttled(operation),
            _ => self.pace.fine(operation),
        }
        answer
    }
}

/// Between half of a pause and all of it, so that what failed together does not come again together.
fn spread(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Backs off from an action that a region throttles: all that ask for it wait together, in place of each for itself.
/// EC2 counts each action by itself, so no listing keeps anything from being ended.
#[derive(Debug, Default)]
struct Pace(Mutex<HashMap<&'static str, Held>>);

/// For how long an action is left alone when it is throttled once more in a row, and until when it is.
type Held = (Backoff, Option<Instant>);

impl Pace {
    async fn wait(&self, action: &'static str) {
        loop {
            match self.with(action, |held| held.1) {
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => return,
            }
        }
    }

    fn throttled(&self, action: &'static str) {
        self.with(action, |(pauses, until)| {
            let now = Instant::now();
            // Requests that were under way together are throttled together, which counts once.
            if until.is_none_or(|until| until <= now) {
                *until = Some(now + spread(pauses.wait()));
            }
        });
    }

    fn fine(&self, action: &'static str) {
        self.with(action, |held| held.0 = PAUSES);
    }

    fn with<T>(&self, action: &'static str, change: impl FnOnce(&mut Held) -> T) -> T {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(action).or_insert((PAUSES, None)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_action_that_is_throttled_is_left_alone_by_all_together_and_no_other_is() {
        let pace = Pace::default();
        let first_pause = Duration::from_millis(250);
        let begun = Instant::now();
        for _ in 0..10 {
            pace.throttled("a");
        }
        pace.wait("another").await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        pace.wait("a").await;
        let first = begun.elapsed();
        assert!(first > Duration::from_millis(100) && first <= first_pause, "{first:?}");
        pace.throttled("a");
        let again = Instant::now();
        pace.wait("a").await;
        assert!(again.elapsed() > first_pause - Duration::from_millis(1), "{:?}", again.elapsed());
        pace.fine("a");
        pace.throttled("a");
        let again = Instant::now();
        pace.wait("a").await;
        assert!(again.elapsed() <= first_pause);
    }
}
