//! What EC2's errors mean: their class, and what the user can do about them.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use http_body_util::LengthLimitError;
use tsunami_core::{ProviderError, ProviderErrorKind};

use crate::codes::{self, Refusal, kind};
use crate::text::line;

/// An answer of AWS that is an error, or none at all.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation} in {region}: {code}: {message}")]
pub(crate) struct AwsError {
    pub(crate) kind: ProviderErrorKind,
    /// AWS's code, or a word of our own where nothing was answered.
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) operation: &'static str,
    pub(crate) region: String,
    /// Whether AWS answered at all: if not, the request may have taken effect.
    pub(crate) answered: bool,
    /// Whether it stands for one pool, inside an answer that succeeded.
    pub(crate) in_fleet: bool,
    /// The instance type that was asked for, where it is about one.
    pub(crate) instance: Option<String>,
}

/// The result of a call to AWS.
pub(crate) type Result<T, E = AwsError> = std::result::Result<T, E>;

impl AwsError {
    /// The class of what the SDK reports of an operation.
    pub(crate) fn new<E, R>(operation: &'static str, region: &str, error: &SdkError<E, R>) -> Self
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
        R: std::fmt::Debug + 'static,
    {
        let (code, message, answered) = match error {
            SdkError::ServiceError(_) => {
                let metadata = error.meta();
                let code = metadata.code().unwrap_or("UnknownError").to_owned();
                let mut message = metadata.message().unwrap_or("no message").trim_end().to_owned();
                if let Some(id) = metadata.extra("aws_request_id") {
                    message.push_str(&format!(" (request id {id})"));
                }
                (code, message, true)
            }
            _ if is_too_long(error) => (
                "AnswerTooLong".to_owned(),
                "what it answers is longer than any answer of use".to_owned(),
                false,
            ),
            SdkError::ConstructionFailure(_) => ("NotSent".to_owned(), root_cause(error), true),
            SdkError::TimeoutError(_) => ("NoAnswer".to_owned(), "no answer in time".to_owned(), false),
            SdkError::DispatchFailure(_) if is_about_credentials(error) => {
                let cause = root_cause(error);
                match unknown_way(&cause) {
                    Some(way) => ("UnknownSignIn".to_owned(), way, true),
                    None => ("NoCredentials".to_owned(), cause, true),
                }
            }
            _ => ("NoAnswer".to_owned(), root_cause(error), false),
        };
        let (code, message) = (line(&code), line(&message));
        Self { answered, ..Self::ours(kind(&code), &code, message, operation, region) }
    }

    /// An error that CreateFleet reports for one pool, inside an answer that succeeded.
    pub(crate) fn in_fleet(region: &str, code: &str, message: &str) -> Self {
        // What one pool can't do may be what the next one can.
        let elsewhere = code == "InvalidFleetConfiguration" && message.contains("not supported");
        let kind = if elsewhere { ProviderErrorKind::Capacity } else { kind(code) };
        Self { in_fleet: true, ..Self::ours(kind, &line(code), line(message), "CreateFleet", region) }
    }

    /// Whether AWS says that there is no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        self.code.contains("NotFound") || self.code == "InvalidPlacementGroup.Unknown"
    }

    /// Whether AWS does not know something that a launch has just made: it will in a moment.
    pub(crate) fn is_of_our_making(&self) -> bool {
        self.is_not_found()
            && ["InvalidGroup", "InvalidKeyPair", "InvalidLaunchTemplate", "InvalidPlacementGroup"]
                .iter()
                .any(|thing| self.code.starts_with(thing))
    }

    /// Whether it is the caller that AWS turns away, whatever is asked for.
    pub(crate) fn is_about_caller(&self) -> bool {
        let denied =
            matches!(self.code.as_str(), "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException");
        self.kind == ProviderErrorKind::Unauthorized && !denied
    }

    /// Whether it is EC2 that fails, having been reached: what it fails at is then one market, or one pool.
    pub(crate) fn is_inside_aws(&self) -> bool {
        self.kind == ProviderErrorKind::Unavailable
            && !matches!(self.code.as_str(), "NoAnswer" | "AnswerTooLong" | "NotSeenYet")
    }

    /// Whether what refuses one request for machines refuses every other one: the caller is turned away, may not
    /// ask at all or asks too often, or nobody is reached.
    pub(crate) fn stops_everything(&self) -> bool {
        self.kind == ProviderErrorKind::Unauthorized || self.kind.is_transient() && !self.is_inside_aws()
    }

    /// Whether one pool refuses it for good, and not for want of room.
    pub(crate) fn is_of_the_pool(&self) -> bool {
        !self.kind.is_transient()
            && !matches!(self.kind, ProviderErrorKind::Capacity | ProviderErrorKind::Quota)
    }

    /// The zones that EC2 names as having capacity, where it lacks some in the one that was asked.
    pub(crate) fn zones_with_capacity(&self) -> impl Iterator<Item = &str> {
        let rest = self.message.split_once(" or choosing ").map_or("", |(_, rest)| rest);
        let end = rest.find(['.', '(']).unwrap_or(rest.len());
        rest[..end].split([',', ' ']).filter(|zone| zone.contains('-'))
    }

    /// Whether an instance may not be ended before its protection is lifted.
    pub(crate) fn is_protection(&self) -> bool {
        self.code == "OperationNotPermitted" && self.message.contains("disableApiTermination")
    }

    /// Whether a refusal of a request that is made again tells nothing of the one before it.
    pub(crate) fn is_beside_the_point(&self) -> bool {
        self.kind.is_transient() || self.kind == ProviderErrorKind::Unauthorized
    }

    /// An error that is found on this side.
    pub(crate) fn ours(
        kind: ProviderErrorKind,
        code: &str,
        message: impl Into<String>,
        operation: &'static str,
        region: &str,
    ) -> Self {
        Self {
            kind,
            code: code.to_owned(),
            message: message.into(),
            operation,
            region: region.to_owned(),
            answered: true,
            in_fleet: false,
            instance: None,
        }
    }

    /// What the user can do.
    fn help(&self) -> Option<String> {
        codes::help(&Refusal {
            code: &self.code,
            message: &self.message,
            operation: self.operation,
            region: &self.region,
            instance: self.instance.as_deref(),
            in_fleet: self.in_fleet,
        })
    }

    /// What AWS said, and what the user can do.
    pub(crate) fn explained(&self) -> String {
        match self.help() {
            Some(help) => format!("{self} ({help})"),
            None => self.to_string(),
        }
    }

    /// Whether AWS says that the thing is there already.
    pub(crate) fn is_duplicate(&self) -> bool {
        self.code.ends_with(".Duplicate") || self.code == "InvalidLaunchTemplateName.AlreadyExistsException"
    }
}

impl From<AwsError> for ProviderError {
    fn from(failure: AwsError) -> Self {
        let (help, remedy) = (failure.help(), codes::remedy(&failure.code));
        let operation = format!("{} in {}", failure.operation, failure.region);
        let mut error = Self::new(failure.kind, operation, format!("{}: {}", failure.code, failure.message));
        (error.help, error.remedy) = (help, remedy);
        error
    }
}

/// Whether the request was never sent, for want of credentials.
fn is_about_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| error.downcast_ref::<CredentialsError>().is_some())
}

/// Whether an answer was ended, being longer than any of use.
fn is_too_long(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<LengthLimitError>())
}

/// The way to sign in that the SDK was built without, as the user would say it.
fn unknown_way(cause: &str) -> Option<String> {
    let (_, rest) = cause.split_once("requires following cargo feature(s) enabled: ")?;
    let way = match rest.split(['.', ',', ' ']).next().unwrap_or_default() {
        "credentials-login" => "`aws login`",
        "credentials-process" => "`credential_process`",
        other => other,
    };
    Some(format!("the profile signs in by {way}, which tsunami does not know"))
}

/// What went wrong on the way, in one line. That it was on the way is said already.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    let telling = causes.filter(|cause| !matches!(cause.as_str(), "dispatch failure" | "other"));
    telling.collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: &str, message: &str) -> AwsError {
        AwsError::in_fleet("eu-west-1", code, message)
    }

    #[test]
    fn a_way_to_sign_in_that_is_not_known_is_named_as_users_know_it() {
        let sdk =
            "failed to load: This behavior requires following cargo feature(s) enabled: credentials-login. x";
        let said = unknown_way(sdk).unwrap();
        assert!(said.contains("`aws login`") && !said.contains("cargo"), "{said}");
        assert_eq!(unknown_way("a plain cause"), None);
    }

    #[test]
    fn what_one_zone_cannot_do_another_may() {
        let message =
            "Your requested instance type (c7g.large) is not supported in your requested Availability Zone";
        assert_eq!(failure("InvalidFleetConfiguration", message).kind, ProviderErrorKind::Capacity);
        assert_eq!(
            failure("InvalidFleetConfiguration", "The fleet is odd").kind,
            ProviderErrorKind::InvalidSpec
        );
    }
}
