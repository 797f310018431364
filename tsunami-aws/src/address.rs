//! The address by which the world sees this computer.

use std::net::IpAddr;

use aws_smithy_http_client::tls::TlsContext;
use aws_smithy_runtime::client::orchestrator::operation::Operation;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse, OrchestratorError};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::timeout::TimeoutConfig;
use tokio::sync::OnceCell;
use tsunami_core::{ErrorChain, ProviderError, ProviderErrorKind};

use crate::limited::LimitedAnswers;
use crate::limits::{ADDRESS_ANSWER_LIMIT, ADDRESS_ANSWER_TIMEOUT};
use crate::trust;

/// The address by which the world sees this computer, asked for once.
#[derive(Debug)]
pub(crate) struct OwnAddress {
    service: String,
    /// By which certificates the service is believed.
    trust: TlsContext,
    found: OnceCell<String>,
}

impl OwnAddress {
    pub(crate) fn told_by(service: String, trust: TlsContext) -> Self {
        Self { service, trust, found: OnceCell::new() }
    }

    /// The address, as a CIDR block.
    pub(crate) async fn get(&self) -> Result<String, ProviderError> {
        let discover = || async { discover(&trust::direct_client(self.trust.clone()), &self.service).await };
        self.found.get_or_try_init(discover).await.cloned()
    }
}

/// Asks a service that answers with the caller's address and nothing else. Returns it as a CIDR block.
async fn discover(client: &SharedHttpClient, service: &str) -> Result<String, ProviderError> {
    let unknown = |said: &str| {
        let message = format!(
            "this computer's address, from which SSH is to be let in, could not be found out: {said}"
        );
        ProviderError::new(ProviderErrorKind::InvalidSpec, service, message)
            .help("say who may connect: `ssh_from = \"203.0.113.7/32\"`")
    };
    let text = ask(client, service).await.map_err(|error| unknown(&error))?;
    let address = text.trim().parse::<IpAddr>();
    match address {
        Ok(IpAddr::V4(address)) => Ok(format!("{address}/32")),
        Ok(IpAddr::V6(address)) => Ok(format!("{address}/128")),
        Err(_) => Err(unknown(&format!("{service} answered with something else than an address"))),
    }
}

async fn ask(client: &SharedHttpClient, service: &str) -> Result<String, String> {
    let timeouts = TimeoutConfig::builder().operation_timeout(ADDRESS_ANSWER_TIMEOUT).build();
    let operation = Operation::builder()
        .service_name("address")
        .operation_name("Get")
        .http_client(client.clone())
        .endpoint_url(service)
        .no_auth()
        .no_retry()
        .interceptor(LimitedAnswers(ADDRESS_ANSWER_LIMIT))
        .timeout_config(timeouts)
        .serializer(|()| Ok(HttpRequest::new(SdkBody::empty())))
        .deserializer(|response: &HttpResponse| {
            let body = response.body().bytes().unwrap_or_default();
            match response.status().is_success() {
                true => Ok(String::from_utf8_lossy(body).into_owned()),
                false => Err(OrchestratorError::other(format!("status {}", response.status().as_u16()))),
            }
        })
        .build();
    operation.invoke(()).await.map_err(
        |error: aws_smithy_runtime_api::client::result::SdkError<std::convert::Infallible, _>| {
            ErrorChain(&error).to_string()
        },
    )
}
