//! How an account is found, and what has to be known to find it again.

use serde::{Deserialize, Serialize};

/// The service that tells a caller its address, unless [`Ec2Options::address_service`] names another.
pub const ADDRESS_SERVICE: &str = "https://checkip.amazonaws.com";

/// How an account is found and used.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Ec2Options {
    /// A profile of the AWS configuration files; `None` leaves it to the environment.
    pub profile: Option<String>,
    /// The regions in which machines may be, the default one first. Empty is the configured one.
    pub regions: Vec<String>,
    /// The account that the credentials must be for, if that is known.
    pub account: Option<String>,
    /// The endpoint that must be in use, as [`Ec2Settings::endpoint`] has it, if that is known.
    pub endpoint: Option<String>,
    /// The service that tells this computer's address; `None` is [`ADDRESS_SERVICE`].
    pub address_service: Option<String>,
}

impl Ec2Options {
    /// Sets a profile of the AWS configuration files.
    pub fn profile(mut self, profile: impl Into<String>) -> Self {
        self.profile = Some(profile.into());
        self
    }

    /// Sets the regions in which machines may be, the default one first.
    pub fn regions(mut self, regions: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.regions = regions.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the account that the credentials must be for.
    pub fn account(mut self, account: impl Into<String>) -> Self {
        self.account = Some(account.into());
        self
    }

    /// Sets the endpoint that must be in use, as [`Ec2Settings::endpoint`] has it.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// Sets the service that tells this computer's address.
    pub fn address_service(mut self, address_service: impl Into<String>) -> Self {
        self.address_service = Some(address_service.into());
        self
    }
}

/// What must be known to find a run's machines again: the settings of an [`Ec2Provider`](crate::Ec2Provider).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ec2Settings {
    /// The account's number.
    pub account: String,
    /// The regions.
    pub regions: Vec<String>,
    /// The profile, if one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// What answers for EC2: `aws`, or a digest of the URL that the environment or the profile names. Records of
    /// old have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

impl Ec2Settings {
    /// The options with which the same account, and no other, is found again.
    pub fn options(&self) -> Ec2Options {
        Ec2Options {
            profile: self.profile.clone(),
            regions: self.regions.clone(),
            account: Some(self.account.clone()),
            endpoint: self.endpoint.clone(),
            address_service: None,
        }
    }
}
