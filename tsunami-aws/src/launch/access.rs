//! Who may reach a run's machines: the rules of its security groups.

use std::collections::HashSet;

use aws_sdk_ec2::types::{IpPermission, IpRange, Ipv6Range};
use tokio::time::sleep;
use tsunami_core::{Machine, ProviderError, RunId};

use super::state::{Opening, Peer};
use crate::error::Result;
use crate::journal::{Journal, journal_error};
use crate::region::{Region, VISIBILITY_ATTEMPTS, VISIBILITY_PAUSE};

/// Lets the run's machines of other regions reach ports in this one, as far as their addresses are known.
pub(crate) async fn open_ports(
    region: &Region,
    run: &RunId,
    mut ports: Vec<u16>,
    machines: &[Machine],
    journal: &Journal,
    opened: &mut HashSet<Opening>,
) -> Result<(), ProviderError> {
    ports.sort_unstable();
    ports.dedup();
    let group = journal.security_group(&region.name).await.map_err(journal_error)?;
    let (Some(group), false) = (group, ports.is_empty()) else { return Ok(()) };
    let here = format!("{} ", region.name);
    let is_here = |machine: &&Machine| {
        machine.addresses.network.as_ref().is_some_and(|network| network.starts_with(&here))
    };
    let foreign = machines.iter().filter(|machine| !is_here(machine));
    let opening = |address: &String| Opening {
        run: run.clone(),
        region: region.name.clone(),
        to: Peer::Machine(address.clone()),
    };
    let addresses = foreign.filter_map(|machine| machine.addresses.public.clone());
    let new: Vec<String> = addresses.filter(|address| !opened.contains(&opening(address))).collect();
    if new.is_empty() {
        return Ok(());
    }
    let alone = |address: &String| format!("{address}/{}", if address.contains(':') { 128 } else { 32 });
    let blocks: Vec<String> = new.iter().map(alone).collect();
    let permissions = ports
        .iter()
        .flat_map(|port| ["tcp", "udp"].map(|protocol| permission(protocol, *port, &blocks, None)));
    authorize(region, &group, permissions.collect()).await?;
    opened.extend(new.iter().map(opening));
    Ok(())
}

/// Opens a port to blocks of addresses, of either family.
pub(super) fn permission(
    protocol: &str,
    port: u16,
    blocks: &[String],
    description: Option<&str>,
) -> IpPermission {
    let permission =
        IpPermission::builder().ip_protocol(protocol).from_port(port.into()).to_port(port.into());
    blocks
        .iter()
        .fold(permission, |permission, block| match block.contains(':') {
            true => permission.ipv6_ranges(
                Ipv6Range::builder().cidr_ipv6(block).set_description(description.map(str::to_owned)).build(),
            ),
            false => permission.ip_ranges(
                IpRange::builder().cidr_ip(block).set_description(description.map(str::to_owned)).build(),
            ),
        })
        .build()
}

/// Opens a security group. What is open already stays open.
pub(super) async fn authorize(region: &Region, group: &str, permissions: Vec<IpPermission>) -> Result<()> {
    authorize_within(region, group, permissions, VISIBILITY_ATTEMPTS).await
}

async fn authorize_within(
    region: &Region,
    group: &str,
    permissions: Vec<IpPermission>,
    patience: u32,
) -> Result<()> {
    let request = region.ec2.authorize_security_group_ingress().group_id(group);
    let request = request.set_ip_permissions(Some(permissions.clone()));
    match region.call("AuthorizeSecurityGroupIngress", || request.clone().send()).await {
        Ok(_) => Ok(()),
        Err(failure) if failure.is_duplicate() && permissions.len() > 1 => {
            // One that is there already keeps all from being added.
            for permission in permissions {
                Box::pin(authorize_within(region, group, vec![permission], patience)).await?;
            }
            Ok(())
        }
        Err(failure) if failure.is_duplicate() => Ok(()),
        Err(failure) if failure.is_not_found() && patience > 0 => {
            sleep(VISIBILITY_PAUSE).await;
            Box::pin(authorize_within(region, group, permissions, patience - 1)).await
        }
        Err(failure) => Err(failure),
    }
}
