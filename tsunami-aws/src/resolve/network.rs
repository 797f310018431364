//! Where machines are to be: the network, and its subnets.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::operation::describe_subnets::builders::DescribeSubnetsFluentBuilder;
use aws_sdk_ec2::types::{Filter, Route, RouteTable, Tenancy, Vpc, VpcCidrBlockState, VpcCidrBlockStateCode};
use tokio::sync::OnceCell;
use tsunami_core::{ProviderError, ProviderErrorKind};

use super::ResolveKey;
use super::check::is_cidr;
use crate::error::Result;
use crate::region::Region;
use crate::spec::Reach;

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
    // There is no such subnet but one that somebody has named.
    let ipv6 = found.iter().any(|subnet| subnet.without_ipv4);
    let vpc = first.vpc.clone();
    let public = match key.reach {
        Some(reach) => reach == Reach::Public,
        // Any address of IPv6 is one for the whole world, where there is a way.
        None => ipv6 || found.iter().all(|subnet| subnet.public),
    };
    let all: Vec<String> = found.iter().map(|subnet| subnet.zone.clone()).collect();
    let wanted = |subnet: &Subnet| key.zone.as_ref().is_none_or(|wanted| *wanted == subnet.zone);
    let found = found.into_iter().filter(wanted);
    let subnets: BTreeMap<_, _> = found.map(|subnet| (subnet.zone, subnet.id)).collect();
    if subnets.is_empty() {
        let zone = key.zone.as_deref().unwrap_or_default();
        let message = format!("zone {zone} is not among those that can be used: {}", all.join(", "));
        return Err(region.invalid(message).key("zone"));
    }
    let (mut unpriced, mut blocks, mut notes) = (None, Vec::new(), Vec::new());
    // The default network is never a dedicated one.
    if key.subnet.is_some() || !public {
        let seen = look_at(region, &vpc).await?;
        unpriced = seen.as_ref().map_or_else(|why| Some(why.clone()), |seen| dedicated(seen, &vpc));
        blocks = seen.as_ref().map(|seen| blocks_of(seen, ipv6)).unwrap_or_default();
    }
    if !public {
        let at = if blocks.is_empty() { String::new() } else { format!(" ({})", blocks.join(", ")) };
        notes.push(format!(
            "machines get no public address: this computer has to reach their private ones{at}, by itself, by `[ssh] \
             jump` or by `[ssh] proxy`"
        ));
    } else if key.reach.is_some() || ipv6 {
        notes.extend(without_way(region, &vpc, &subnets, ipv6).await?);
    }
    Ok(Network { vpc, subnets, public, ipv6, blocks, unpriced, notes })
}

/// What is to be said of subnets of which public addresses are asked for: an error where one has no way to the internet.
pub(crate) async fn without_way(
    region: &Region,
    vpc: &str,
    subnets: &BTreeMap<String, String>,
    ipv6: bool,
) -> Result<Option<String>, ProviderError> {
    let filter = Filter::builder().name("vpc-id").values(vpc).build();
    let request = region.ec2.describe_route_tables().filters(filter);
    let answer = match region.call("DescribeRouteTables", || request.clone().send()).await {
        Ok(answer) => answer,
        Err(failure) if failure.kind == ProviderErrorKind::Unauthorized && !failure.is_about_caller() => {
            return Ok(Some(format!(
                "whether public addresses can be reached in {vpc} can't be looked at: {}",
                failure.explained()
            )));
        }
        Err(failure) => return Err(failure.into()),
    };
    let tables = answer.route_tables();
    let of_subnet = |subnet: &str| {
        let own = |table: &&RouteTable| table.associations().iter().any(|it| it.subnet_id() == Some(subnet));
        let main = |table: &&RouteTable| table.associations().iter().any(|it| it.main() == Some(true));
        tables.iter().find(own).or_else(|| tables.iter().find(main))
    };
    let leads_out = |subnet: &&String| {
        let gateway = |route: &Route| {
            let family =
                if ipv6 { route.destination_ipv6_cidr_block() } else { route.destination_cidr_block() };
            family.is_some() && route.gateway_id().is_some_and(|gateway| gateway.starts_with("igw-"))
        };
        of_subnet(subnet).is_none_or(|table| table.routes().iter().any(gateway))
    };
    match subnets.values().find(|subnet| !leads_out(subnet)) {
        None => Ok(None),
        Some(subnet) => {
            let message = format!(
                "the subnet {subnet} has no route to an internet gateway: public addresses there can't be reached"
            );
            let help = "give another `subnet`, or `reach = \"private\"`";
            Err(region.invalid(message).key("subnet").help(help))
        }
    }
}

/// Where machines are to be.
pub(super) struct Network {
    pub(super) vpc: String,
    /// By their zones.
    pub(super) subnets: BTreeMap<String, String>,
    /// Whether machines get a public address.
    pub(super) public: bool,
    /// Whether they have addresses of IPv6 and no others.
    pub(super) ipv6: bool,
    /// The network's blocks of addresses, where machines get none.
    pub(super) blocks: Vec<String>,
    pub(super) notes: Vec<String>,
    /// Why machines there don't cost what the price list says.
    pub(super) unpriced: Option<String>,
}

/// A network as EC2 shows it, or why this caller can't look at it.
async fn look_at(region: &Region, vpc: &str) -> Result<Result<Vpc, String>> {
    let request = region.ec2.describe_vpcs().vpc_ids(vpc);
    match region.call("DescribeVpcs", || request.clone().send()).await {
        Ok(answer) => {
            let found = answer.vpcs().iter().find(|found| found.vpc_id() == Some(vpc)).cloned();
            Ok(found.ok_or_else(|| format!("EC2 does not show the network {vpc}")))
        }
        Err(failure) if failure.kind == ProviderErrorKind::Unauthorized && !failure.is_about_caller() => {
            Ok(Err(format!("the tenancy of the network {vpc} can't be looked at: {}", failure.explained())))
        }
        Err(failure) => Err(failure),
    }
}

/// Why machines in a network don't cost what the price list says.
fn dedicated(network: &Vpc, vpc: &str) -> Option<String> {
    let dearer = network.instance_tenancy().filter(|tenancy| **tenancy != Tenancy::Default);
    dearer.map(|tenancy| {
        format!(
            "the network {vpc} is of {tenancy} tenancy, which costs more for each machine, and by the hour and region"
        )
    })
}

/// The blocks of addresses of a family that a network has.
fn blocks_of(network: &Vpc, ipv6: bool) -> Vec<String> {
    let is_there = |state: Option<&VpcCidrBlockState>| {
        let state = state.and_then(|state| state.state());
        state.is_none_or(|state| *state == VpcCidrBlockStateCode::Associated)
    };
    let blocks: BTreeSet<&str> = match ipv6 {
        true => {
            let all = network.ipv6_cidr_block_association_set().iter();
            let all = all.filter(|it| is_there(it.ipv6_cidr_block_state()));
            all.filter_map(|it| it.ipv6_cidr_block()).collect()
        }
        false => {
            let all = network.cidr_block_association_set().iter();
            let all = all.filter(|it| is_there(it.cidr_block_state())).filter_map(|it| it.cidr_block());
            all.chain(network.cidr_block()).collect()
        }
    };
    blocks.into_iter().filter(|block| is_cidr(block)).map(str::to_owned).collect()
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
