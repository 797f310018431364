//! The certificates by which whoever answers for AWS is believed, where a file of them is named.
//!
//! The SDK knows neither the variable nor the setting that AWS's other tools know, and panics at a file that it can't
//! use.

use std::fmt::Write as _;
use std::path::Path;

use aws_config::SdkConfig;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{self, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, ConnectorBuilder};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::base64;
use aws_types::service_config::ServiceConfigKey;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tsunami_core::{ProviderError, ProviderErrorKind};

/// Names the file of certificates. <https://docs.aws.amazon.com/sdkref/latest/guide/feature-gen-config.html>
const VARIABLE: &str = "AWS_CA_BUNDLE";

/// Names it in a profile.
const SETTING: &str = "ca_bundle";

/// What the file that the environment or the profile names says is to be trusted, and nothing else; `None` where none
/// is named.
pub(crate) async fn named(config: &SdkConfig) -> Result<Option<TlsContext>, ProviderError> {
    let key = ServiceConfigKey::builder().service_id("EC2").env(VARIABLE).profile(SETTING).build();
    let path = key.ok().and_then(|key| config.service_config()?.load_config(key));
    let Some(path) = path.filter(|path| !path.is_empty()) else { return Ok(None) };
    let by = match std::env::var_os(VARIABLE) {
        Some(_) => VARIABLE.to_owned(),
        None => format!("`{SETTING}` of the profile"),
    };
    let wrong = |why: String| {
        ProviderError::new(ProviderErrorKind::InvalidSpec, "connect", format!("{by} names {path}, {why}"))
            .help("have it name a file of certificates (PEM), or unset it")
    };
    let bytes = tokio::fs::read(Path::new(&path)).await;
    let bytes = bytes.map_err(|error| wrong(format!("which can't be read: {error}")))?;
    let pem = usable(&bytes).map_err(wrong)?;
    let trusted = TlsContext::builder().with_trust_store(TrustStore::empty().with_pem_certificate(pem));
    trusted.build().map(Some).map_err(|error| wrong(format!("which can't be used: {error}")))
}

/// The certificates of a file that the SDK takes, as such a file.
fn usable(pem: &[u8]) -> Result<String, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| format!("which is no file of certificates (PEM): {error}"))?;
    let mut usable = String::new();
    let mut first_wrong = None;
    for certificate in &found {
        match RootCertStore::empty().add(certificate.clone()) {
            Ok(()) => {
                let text = base64::encode(certificate);
                let _ = writeln!(usable, "-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----");
            }
            Err(error) => first_wrong = first_wrong.or(Some(error)),
        }
    }
    match (usable.is_empty(), first_wrong) {
        (false, wrong) => {
            tracing::debug!(?wrong, certificates = found.len(), "a file of certificates");
            Ok(usable)
        }
        (true, Some(error)) => Err(format!("whose certificates can't be used: {error}")),
        (true, None) => Err("which has no certificate (PEM) in it".to_owned()),
    }
}

/// A client as the SDK's own, that goes by these certificates.
pub(crate) fn client(trust: TlsContext) -> SharedHttpClient {
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = ConnectorBuilder::default()
            .tls_provider(tls::Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(trust.clone());
        connector.set_connector_settings(settings.cloned());
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        connector.set_proxy_config(Some(ProxyConfig::from_env()));
        connector.build()
    })
}

/// A client that goes by these certificates and past every proxy, for what is to see this computer's own address.
pub(crate) fn direct_client(trust: TlsContext) -> SharedHttpClient {
    Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::AwsLc)).tls_context(trust).build_https()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_would_make_the_sdk_panic_is_told_for_what_it_is() {
        let certificate =
            |inside: &str| format!("-----BEGIN CERTIFICATE-----\n{inside}\n-----END CERTIFICATE-----\n");
        for (pem, why) in [
            (String::new(), "has no certificate"),
            ("hello\n".to_owned(), "has no certificate"),
            (
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_owned(),
                "has no certificate",
            ),
            (certificate("*"), "is no file of certificates"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n".to_owned(), "is no file of certificates"),
            (certificate("AAAA"), "can't be used"),
        ] {
            let wrong = usable(pem.as_bytes()).unwrap_err();
            assert!(wrong.contains(why), "{pem}: {wrong}");
        }
    }
}
