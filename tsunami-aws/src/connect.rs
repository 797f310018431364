//! The way to an account: configuration, credentials, endpoint.

use std::time::Duration;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_smithy_http_client::tls::TlsContext;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_types::service_config::ServiceConfigKey;
use sha2::{Digest, Sha256};
use tsunami_core::{ProviderError, ProviderErrorKind};

use crate::clock::{Clock, Hearing};
use crate::error::{AwsError, Result};
use crate::limited::LimitedAnswers;
use crate::region::Region;
use crate::settings::Ec2Options;
use crate::trust;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The configuration, and by which certificates AWS is believed.
pub(crate) async fn load(options: &Ec2Options) -> Result<(SdkConfig, TlsContext), ProviderError> {
    let config = load_with(options, None).await;
    match trust::named(&config).await? {
        None => Ok((config, TlsContext::default())),
        // Once more, since credentials may have to be asked for, too.
        Some(trust) => Ok((load_with(options, Some(trust::client(trust.clone()))).await, trust)),
    }
}

/// The configuration, as aws-config finds it. Repetitions and patience are ours.
async fn load_with(options: &Ec2Options, client: Option<SharedHttpClient>) -> SdkConfig {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts);
    if let Some(profile) = &options.profile {
        // Who names a profile means that one, whatever keys the environment holds.
        let mut credentials = ProfileFileCredentialsProvider::builder().profile_name(profile);
        if let Some(client) = &client {
            credentials = credentials.configure(&ProviderConfig::default().with_http_client(client.clone()));
        }
        loader = loader.profile_name(profile).credentials_provider(credentials.build());
    }
    if let Some(client) = client {
        loader = loader.http_client(client);
    }
    if let Some(region) = options.regions.first() {
        loader = loader.region(aws_config::Region::new(region.clone()));
    }
    loader.load().await
}

/// What answers for EC2 where the environment and the profile name nothing else.
const AWS: &str = "aws";

/// What answers for EC2, in a form that a record may hold: it names no place to send credentials to.
pub(crate) fn endpoint(config: &SdkConfig) -> String {
    let key = ServiceConfigKey::builder().service_id("EC2").env("AWS_ENDPOINT_URL").profile("endpoint_url");
    let own = key.build().ok().and_then(|key| config.service_config()?.load_config(key));
    let own = own.filter(|_| !config.get_origin("endpoint_url").is_client_config());
    match own.as_deref().or(config.endpoint_url()) {
        None => AWS.to_owned(),
        Some(url) => {
            let digest = format!("{:x}", Sha256::digest(url.trim_end_matches('/')));
            digest[..ENDPOINT_DIGEST].to_owned()
        }
    }
}

/// So many digits of a digest tell endpoints apart.
const ENDPOINT_DIGEST: usize = 16;

/// What is to be said where another endpoint is in use than the run is at.
pub(crate) fn another_endpoint(expected: &str) -> ProviderError {
    let message = "the run is at another endpoint than the one that the environment or the profile names now";
    let help = match expected {
        AWS => {
            "it is at AWS itself: unset AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_EC2 (in a profile: `endpoint_url`)"
        }
        _ => "set AWS_ENDPOINT_URL to what it was when the run was launched",
    };
    ProviderError::new(ProviderErrorKind::Unauthorized, "connect", message).help(help)
}

/// Whom AWS takes the caller for.
pub(crate) struct Identity {
    pub(crate) account: String,
    /// The last part of the caller's name.
    pub(crate) owner: String,
    /// How far AWS's clock is from ours.
    pub(crate) clock: Clock,
}

/// Asks AWS whom it takes the caller for.
pub(crate) async fn identity(config: &SdkConfig, region: &str) -> Result<Identity> {
    let hearing = Hearing::default();
    let region = Region::new(config, region, Clock::default());
    let config = config.to_builder().region(aws_config::Region::new(region.name.clone())).build();
    let sts = aws_sdk_sts::config::Builder::from(&config).interceptor(LimitedAnswers::default());
    let sts = sts.interceptor(hearing.clone());
    let sts = aws_sdk_sts::Client::from_conf(sts.build());
    let caller = region.call("GetCallerIdentity", || sts.get_caller_identity().send()).await;
    let clock = hearing.clock();
    let caller = caller.map_err(|failure| match clock.difference() {
        Some(difference) if clock.is_beyond_signatures() && failure.is_about_caller() => {
            let message = format!("{difference}; AWS says {}: {}", failure.code, failure.message);
            AwsError { code: "ClockSkew".to_owned(), message, ..failure }
        }
        _ => failure,
    })?;
    let account = caller.account().unwrap_or_default().to_owned();
    let arn = caller.arn().unwrap_or_default();
    let owner = arn.rsplit([':', '/']).next().unwrap_or_default().to_owned();
    Ok(Identity { account, owner, clock })
}
