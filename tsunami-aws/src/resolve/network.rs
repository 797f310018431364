//! Where machines are to be: the network, and its subnets.

use std::collections::BTreeMap;

use aws_sdk_ec2::operation::describe_subnets::builders::DescribeSubnetsFluentBuilder;
use aws_sdk_ec2::types::{Filter, Tenancy};
use tokio::sync::OnceCell;
use tsunami_core::{ProviderError, ProviderErrorKind};

use super::ResolveKey;
use crate::error::Result;
use crate::region::Region;

/// A subnet, as far as it matters to machines.
#[derive(Clone, Debug)]
pub(crate) struct Subnet {
    pub(crate) id: String,
    pub(crate) vpc: String,
    pub(crate) zone: String,
    /// Whether machines in it get a public address.
    pub(crate) public: bool,
    /// Whether machines in it have no address of IPv4.
    pub(crate) without_ipv4: bool,
}

/// The network, and a subnet of it in each zone that may be used.
pub(super) async fn network(
    key: &ResolveKey,
    region: &Region,
    default_subnets: &OnceCell<Vec<Subnet>>,
) -> Result<Network, ProviderError> {
    let request = region.ec2.describe_subnets();
    let found = match &key.subnet {
        Some(subnet) => find_subnets(region, request.subnet_ids(subnet)).await?,
        None => {
            let filter = Filter::builder().name("default-for-az").values("true").build();
            let find = || find_subnets(region, request.filters(filter));
            default_subnets.get_or_try_init(find).await?.clone()
        }
    };
    let Some(first) = found.first() else { return Err(without_default(region).await?) };
    if let Some(subnet) = found.iter().find(|subnet| subnet.without_ipv4) {
        let message =
            format!("the subnet {} is for IPv6 only: its machines have no address of IPv4", subnet.id);
        return Err(region.invalid(message).help("give another `subnet`"));
    }
    let vpc = first.vpc.clone();
    let public = found.iter().all(|subnet| subnet.public);
    let all: Vec<String> = found.iter().map(|subnet| subnet.zone.clone()).collect();
    let wanted = |subnet: &Subnet| key.zone.as_ref().is_none_or(|wanted| *wanted == subnet.zone);
    let found = found.into_iter().filter(wanted);
    let subnets: BTreeMap<_, _> = found.map(|subnet| (subnet.zone, subnet.id)).collect();
    if subnets.is_empty() {
        let zone = key.zone.as_deref().unwrap_or_default();
        let message = format!("zone {zone} is not among those that can be used: {}", all.join(", "));
        return Err(region.invalid(message));
    }
    // The default network is never a dedicated one.
    let unpriced = if key.subnet.is_some() { dedicated(region, &vpc).await? } else { None };
    Ok(Network { vpc, subnets, public, unpriced })
}

/// Where machines are to be.
pub(super) struct Network {
    pub(super) vpc: String,
    /// By their zones.
    pub(super) subnets: BTreeMap<String, String>,
    /// Whether machines get a public address.
    pub(super) public: bool,
    /// Why machines there don't cost what the price list says.
    pub(super) unpriced: Option<String>,
}

/// Why machines in a network don't cost what the price list says.
async fn dedicated(region: &Region, vpc: &str) -> Result<Option<String>> {
    let request = region.ec2.describe_vpcs().vpc_ids(vpc);
    let answer = match region.call("DescribeVpcs", || request.clone().send()).await {
        Ok(answer) => answer,
        Err(failure) if failure.kind == ProviderErrorKind::Unauthorized && !failure.is_about_caller() => {
            return Ok(Some(format!(
                "the tenancy of the network {vpc} can't be looked at: {}",
                failure.explained()
            )));
        }
        Err(failure) => return Err(failure),
    };
    let tenancy = answer.vpcs().first().and_then(|vpc| vpc.instance_tenancy());
    let dearer = tenancy.filter(|tenancy| **tenancy != Tenancy::Default);
    Ok(dearer.map(|tenancy| {
        format!(
            "the network {vpc} is of {tenancy} tenancy, which costs more for each machine, and by the hour and region"
        )
    }))
}

/// What is to be said where there is no default subnet: there may be no default network, or one without subnets.
async fn without_default(region: &Region) -> Result<ProviderError> {
    let name = &region.name;
    let default = Filter::builder().name("is-default").values("true").build();
    let request = region.ec2.describe_vpcs().filters(default);
    let answer = region.call("DescribeVpcs", || request.clone().send()).await;
    let is_there = answer.as_ref().is_ok_and(|answer| !answer.vpcs().is_empty());
    let make_network = format!("make a default network: `aws ec2 create-default-vpc --region {name}`");
    let make_subnet = format!(
        "make a default subnet: `aws ec2 create-default-subnet --region {name} --availability-zone {name}a`"
    );
    Ok(match (is_there, answer) {
        (true, _) => region
            .invalid(format!("the default network of {name} has no subnets"))
            .help(format!("give a `subnet`, or {make_subnet}")),
        (false, Ok(_)) => region
            .invalid(format!("{name} has no default network"))
            .help(format!("give a `subnet`, or {make_network}")),
        (false, Err(_)) => region.invalid(format!("{name} has no default subnets")).help(format!(
            "give a `subnet`, or {make_network}; where there is such a network, {make_subnet}"
        )),
    })
}

async fn find_subnets(region: &Region, request: DescribeSubnetsFluentBuilder) -> Result<Vec<Subnet>> {
    let answer = region.call("DescribeSubnets", || request.clone().send()).await?;
    let found = answer.subnets().iter().filter_map(|subnet| {
        Some(Subnet {
            id: subnet.subnet_id()?.to_owned(),
            vpc: subnet.vpc_id()?.to_owned(),
            zone: subnet.availability_zone()?.to_owned(),
            public: subnet.map_public_ip_on_launch() == Some(true),
            without_ipv4: subnet.ipv6_native() == Some(true),
        })
    });
    Ok(found.collect())
}
