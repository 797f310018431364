//! Answers of services, as far as they are taken in: an endpoint that says too much, or never ends, is turned away.

use aws_config::SdkConfig;
use aws_sdk_ec2::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_ec2::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_ec2::error::BoxError;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::timeout::TimeoutConfig;
use http_body_util::Limited;
use tsunami_core::ProviderErrorKind;

use crate::error::{AwsError, Result};
use crate::limits::{PAGES_LIMIT, SERVICE_ANSWER_LIMIT, SERVICE_ANSWER_TIMEOUT};

/// Ends answers that are longer than this, in bytes.
#[derive(Debug)]
pub(crate) struct LimitedAnswers(pub(crate) usize);

impl Default for LimitedAnswers {
    fn default() -> Self {
        Self(SERVICE_ANSWER_LIMIT)
    }
}

impl Intercept for LimitedAnswers {
    fn name(&self) -> &'static str {
        "LimitedAnswers"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response_mut();
        let body = std::mem::replace(response.body_mut(), SdkBody::taken());
        *response.body_mut() = SdkBody::from_body_1_x(Limited::new(body, self.0));
        Ok(())
    }
}

/// The configuration, with an end to every call where it has none.
pub(crate) fn with_timeouts(config: SdkConfig) -> SdkConfig {
    let ours = TimeoutConfig::builder().operation_attempt_timeout(SERVICE_ANSWER_TIMEOUT);
    let given = config.timeout_config().map(TimeoutConfig::to_builder).unwrap_or_default();
    config.to_builder().timeout_config(given.take_unset_from(ours).build()).build()
}

/// The pages of one listing, which end.
#[derive(Debug)]
pub(crate) struct Pages<'a> {
    operation: &'static str,
    region: &'a str,
    seen: usize,
    last: Option<String>,
}

impl<'a> Pages<'a> {
    pub(crate) fn of(operation: &'static str, region: &'a str) -> Self {
        Self { operation, region, seen: 0, last: None }
    }

    /// The token of the next page, if there is one.
    pub(crate) fn next(&mut self, token: Option<String>) -> Result<Option<String>> {
        let token = token.filter(|token| !token.is_empty());
        self.seen += 1;
        if token.is_some() && (self.seen >= PAGES_LIMIT || token == self.last) {
            let message = format!("a listing that does not end, after {} pages", self.seen);
            let kind = ProviderErrorKind::Other;
            return Err(AwsError::ours(kind, "EndlessListing", message, self.operation, self.region));
        }
        self.last.clone_from(&token);
        Ok(token)
    }
}

/// The most that one page of a listing holds.
pub(crate) const MAX_PAGE: i32 = 1000;

/// Collects the pages of a listing.
macro_rules! pages {
    ($region:expr, $operation:literal, $request:expr, $items:ident) => {{
        let (mut items, mut next) = (Vec::new(), None);
        let mut pages = crate::limited::Pages::of($operation, &$region.name);
        loop {
            let request = $request.set_next_token(next);
            let answer = $region.call($operation, || request.clone().send()).await?;
            next = pages.next(answer.next_token)?;
            items.extend(answer.$items.unwrap_or_default());
            if next.is_none() {
                break items;
            }
        }
    }};
}

pub(crate) use pages;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_ends() {
        let mut pages = Pages::of("DescribeInstances", "eu-west-1");
        assert_eq!(pages.next(Some("a".into())).unwrap(), Some("a".to_owned()));
        assert_eq!(pages.next(Some(String::new())).unwrap(), None);
        let mut pages = Pages::of("DescribeInstances", "eu-west-1");
        assert!(pages.next(Some("a".into())).is_ok() && pages.next(Some("a".into())).is_err());
        let mut pages = Pages::of("DescribeInstances", "eu-west-1");
        let ends = (0..).find(|page| pages.next(Some(page.to_string())).is_err());
        assert_eq!(ends, Some(PAGES_LIMIT - 1));
    }
}
