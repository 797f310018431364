//! Machines on EC2.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use tsunami_aws::{
    Ec2Options, Ec2Provider, Ec2Settings, Ec2Spec, Survey, recorded_leftovers, recorded_options,
};
use tsunami_core::experiment::{Aws, Experiment, Market, OnInterruption, SpotBlock};
use tsunami_core::{Error as CoreError, Leftover, MachineSpec, RunDirectory, RunRecord, State, Tsunami};
use tsunami_ssh::{SshConnector, SshOptions};

use super::Backend;
use crate::args::CloudArgs;
use crate::error::Error;

/// A security group has so many rules at the most, unless the account's quota is another.
/// <https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html#vpc-limits-security-groups>
const MAX_RULES: usize = 60;

/// Names another service than the usual one to tell this computer's address.
const ADDRESS_SERVICE: &str = "TSUNAMI_ADDRESS_SERVICE";

/// What an experiment asks for.
pub(crate) async fn of(experiment: &Experiment, state: &State, ssh: SshOptions) -> Result<Backend, Error> {
    let groups = || experiment.groups.iter().filter_map(|group| group.aws.as_ref());
    let mut regions: Vec<String> = Vec::new();
    for region in groups().filter_map(|aws| aws.region.clone()) {
        if !regions.contains(&region) {
            regions.push(region);
        }
    }
    let profile = groups().find_map(|aws| aws.profile.clone());
    let options = Ec2Options { profile, regions, ..options() };
    // A group that names no region is in the configured one, which must then be the provider's first.
    let options = match groups().any(|aws| aws.region.is_none()) && !options.regions.is_empty() {
        true => {
            let configured = connect(state, Ec2Options { regions: Vec::new(), ..options.clone() }).await?;
            let mut regions = configured.settings().regions.clone();
            regions.extend(
                options
                    .regions
                    .iter()
                    .filter(|region| !configured.settings().regions.contains(region))
                    .cloned(),
            );
            Ec2Options { regions, ..options }
        }
        false => options,
    };
    backend(state, options, ssh).await
}

/// What a recorded run was made with.
pub(crate) async fn recorded(record: &RunRecord, state: &State) -> Result<Backend, Error> {
    let settings: Ec2Settings = serde_json::from_value(record.settings.clone()).map_err(CoreError::other)?;
    let options = Ec2Options { address_service: options().address_service, ..settings.options() };
    backend(state, options, SshOptions::default()).await
}

/// What a run was made with whose record can't be read: its journal tells the regions.
pub(crate) async fn unrecorded(directory: &RunDirectory, state: &State) -> Result<Tsunami, Error> {
    let recorded = recorded_options(state.root(), &directory.id());
    let recorded = recorded.map_err(Error::file("read", directory.path().join("aws")))?;
    let options = Ec2Options { address_service: options().address_service, ..recorded };
    let Backend { provider, connector } = backend(state, options, SshOptions::default()).await?;
    Ok(Tsunami::new(provider, connector).state(state.clone()))
}

/// What is to be said of a run whose account can't be asked: what is known of it may remain.
pub(crate) fn remains(directory: &RunDirectory, state: &State, error: Error) -> Error {
    let run = directory.id();
    let error = match error {
        Error::Provider(error) => CoreError::other(error),
        Error::Core(error @ CoreError::Other(_)) if directory.path().join("aws").exists() => error,
        other => return other,
    };
    let why = "nobody could be asked for it";
    let mut leftovers = recorded_leftovers(state.root(), &run, why);
    if leftovers.is_empty() {
        leftovers.push(Leftover { what: "anything the run created".to_owned(), why: why.to_owned() });
    }
    Error::Core(CoreError::Remains { run, leftovers, cause: Some(Box::new(error)) })
}

/// Looks for runs by tag, in the regions that are named; without any, in the configured one or in all that are
/// enabled.
pub(crate) async fn survey(state: &State, cloud: &CloudArgs, all: bool) -> Result<(Backend, Survey), Error> {
    let given = Ec2Options { profile: cloud.profile.clone(), regions: cloud.region.clone(), ..options() };
    let mut provider = connect(state, given.clone()).await?;
    if all && cloud.region.is_empty() {
        let regions = provider.enabled_regions().await.map_err(Error::Provider)?;
        provider = connect(state, Ec2Options { regions, ..given }).await?;
    }
    let survey = provider.survey().await;
    let connector = Arc::new(SshConnector::new(SshOptions::default()));
    Ok((Backend { provider: Arc::new(provider), connector }, survey))
}

fn options() -> Ec2Options {
    Ec2Options { address_service: std::env::var(ADDRESS_SERVICE).ok(), ..Ec2Options::default() }
}

async fn backend(state: &State, options: Ec2Options, ssh: SshOptions) -> Result<Backend, Error> {
    let provider = connect(state, options).await?;
    Ok(Backend { provider: Arc::new(provider), connector: Arc::new(SshConnector::new(ssh)) })
}

async fn connect(state: &State, options: Ec2Options) -> Result<Ec2Provider, Error> {
    Ec2Provider::connect(state.root(), options).await.map_err(Error::Provider)
}

/// A group's machines in the provider's terms.
pub(crate) fn spec(aws: &Aws) -> MachineSpec {
    let defaults = Ec2Spec::default();
    MachineSpec::new(Ec2Spec {
        region: aws.region.clone(),
        zone: aws.zone.clone(),
        markets: aws
            .market
            .iter()
            .map(|market| match market {
                Market::OnDemand => tsunami_aws::Market::OnDemand,
                Market::Spot => tsunami_aws::Market::Spot,
                Market::SpotBlock => tsunami_aws::Market::SpotBlock,
            })
            .collect(),
        max_price: aws.max_price,
        instances: aws.instance.clone(),
        mixed: aws.mixed,
        image: aws.image.clone().unwrap_or(defaults.image),
        user: aws.user.clone(),
        disk: aws.disk.as_ref().map(|disk| tsunami_aws::Disk {
            gib: disk.gib.map(NonZeroU32::get),
            kind: disk.kind.clone(),
            iops: disk.iops,
            throughput: disk.throughput,
        }),
        subnet: aws.subnet.clone(),
        security_group: aws.security_group.clone(),
        ssh_from: aws.ssh_from.clone(),
        open_ports: aws.open_ports.clone(),
        placement_group: aws.placement_group,
        iam_profile: aws.iam_profile.clone(),
        user_data: aws.user_data.clone(),
        tags: aws.tags.clone(),
        wait_for_cloud_init: aws.wait_for_cloud_init,
        replace_interrupted: aws.on_interruption == OnInterruption::Replace,
        native_spot_block: aws.spot_block == SpotBlock::Native,
    })
}

/// Whether the groups of a region can share a security group, with room for the rules that let machines of
/// other regions in.
pub(crate) fn check_groups(experiment: &Experiment) -> Result<(), Error> {
    let groups =
        || experiment.groups.iter().filter_map(|group| Some((group.size.count(), group.aws.as_ref()?)));
    for (_, aws) in groups() {
        let same = |other: &&Aws| other.region == aws.region && other.security_group.is_none();
        let differs =
            |other: &Aws| other.ssh_from != aws.ssh_from || other.subnet.is_some() != aws.subnet.is_some();
        let others = groups().map(|(_, other)| other);
        if aws.security_group.is_none() && others.filter(same).any(differs) {
            return Err(Error::Usage(
                "the groups of a region share one security group, so they have the same `ssh_from`, and all or none of \
                 them a `subnet`, of one network; give one of them a `security_group` of its own"
                    .to_owned(),
            ));
        }
    }
    let mut regions: BTreeMap<Option<&String>, (usize, Vec<u16>, usize)> = BTreeMap::new();
    for (count, aws) in groups() {
        let (machines, ports, from) = regions.entry(aws.region.as_ref()).or_default();
        *machines += count as usize;
        ports.extend(&aws.open_ports);
        *from = (*from).max(aws.ssh_from.len().max(1));
    }
    let all: usize = regions.values().map(|(machines, ..)| machines).sum();
    for (region, (machines, ports, from)) in &mut regions {
        ports.sort_unstable();
        ports.dedup();
        // TCP and UDP for each port and machine elsewhere, SSH, and one for the group itself.
        let rules = 2 * ports.len() * (all - *machines) + *from + 1;
        if rules > MAX_RULES {
            let region = region.map_or("the configured region", String::as_str);
            return Err(Error::Usage(format!(
                "the security group in {region} would need {rules} rules and can have {MAX_RULES}: {} open ports for {} \
                 machines in other regions; declare fewer `open_ports`, or give a `security_group` of your own",
                ports.len(),
                all - *machines
            )));
        }
    }
    Ok(())
}
