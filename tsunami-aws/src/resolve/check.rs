//! What is wrong with a spec by itself, whatever EC2 has.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use tsunami_core::ProviderError;

use crate::region::Region;
use crate::spec::{Ec2Spec, Market};
use crate::user_data::UserData;
use crate::{tag, text};

/// So many tags of a user's: EC2 takes fifty, and eight are tsunami's own.
const MAX_TAGS: usize = 42;

/// How long the private keys are that launches make, as OpenSSH writes them.
const HOST_KEY_LENGTH: usize = 411;

/// What is wrong with a spec that has none.
pub(crate) const NO_MARKET: &str = "no market is given";

/// What is wrong with a spec by itself.
pub(crate) fn check(spec: &Ec2Spec, region: &Region) -> Result<(), ProviderError> {
    let wrong = |message: &str| Err(region.invalid(message.to_owned()));
    match &spec.shape {
        Some(shape) => {
            if let Some(message) = shape.wrong() {
                return Err(region.invalid(message).key("instance"));
            }
        }
        None if spec.instances.is_empty() => return wrong("no instance type is given"),
        None => {}
    }
    if spec.markets.is_empty() {
        return wrong(NO_MARKET);
    }
    if spec.markets.contains(&Market::Reservation) && spec.reservations.is_empty() {
        return wrong("the market \"reservation\" is given, and no reservation");
    }
    if spec.max_price.is_some_and(|price| !price.is_finite() || price <= 0.0) {
        return wrong("max_price is not an amount of money");
    }
    for (key, value) in &spec.tags {
        let (longest_key, longest) = (tag::MAX_KEY_LENGTH, tag::MAX_VALUE_LENGTH);
        if key.is_empty() || key.chars().count() > longest_key || value.chars().count() > longest {
            let message = format!(
                "the tag `{}` is too long: a key has 1 to {longest_key} characters, a value up to {longest}",
                text::line(key)
            );
            return Err(region.invalid(message).key("tags"));
        }
        if let Some(wrong) = tag::wrong_key(key) {
            return Err(region.invalid(wrong).key("tags"));
        }
    }
    if spec.tags.len() > MAX_TAGS {
        let message = format!("a machine can have at most {MAX_TAGS} tags beside those that tsunami sets");
        return Err(region.invalid(message).key("tags"));
    }
    if let Some(profile) = &spec.iam_profile
        && !is_instance_profile(profile)
    {
        let message = format!("iam_profile `{profile}` is no instance profile");
        return Err(region.invalid(message).key("iam_profile").help(
            "give its name, or its ARN (`arn:aws:iam::ACCOUNT:instance-profile/NAME`); a role is not one, but \
             mostly has one of its own name",
        ));
    }
    for cidr in &spec.ssh_from {
        if !is_cidr(cidr) {
            let message = format!("ssh_from `{cidr}` is no block of addresses");
            return Err(region
                .invalid(message)
                .key("ssh_from")
                .help("write it as 203.0.113.7/32 or 2001:db8::/56, or 0.0.0.0/0 for the whole world"));
        }
    }
    if spec.reach.is_some() && spec.native_spot_block {
        return wrong(
            "native spot blocks take their subnet's setting of public addresses: no `reach` can be given",
        );
    }
    let lifetime = Duration::from_secs(1);
    let own = spec.user_data.as_deref();
    let host_key = "x".repeat(HOST_KEY_LENGTH);
    UserData { at: SystemTime::now(), lifetime, host_key: &host_key, own }
        .compose()
        .map_err(|error| region.invalid(error.to_string()))?;
    Ok(())
}

/// <https://docs.aws.amazon.com/IAM/latest/APIReference/API_InstanceProfile.html>
fn is_instance_profile(text: &str) -> bool {
    let name = match text.strip_prefix("arn:") {
        Some(arn) => arn.split_once(":instance-profile/").and_then(|(_, path)| path.rsplit('/').next()),
        None => Some(text),
    };
    let is_usual = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
    name.is_some_and(|name| (1..=128).contains(&name.len()) && name.chars().all(is_usual))
}

/// Whether a text is a block of addresses, of either family.
pub(super) fn is_cidr(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, length)| {
        let longest = address.parse::<IpAddr>().map(|address| if address.is_ipv4() { 32 } else { 128 });
        longest.is_ok_and(|longest| length.parse::<u8>().is_ok_and(|length| length <= longest))
    })
}
