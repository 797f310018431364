//! What there is in a region, found by tag.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use aws_sdk_ec2::types::{
    Filter, Instance, InstanceLifecycleType, InstanceStateName, SpotInstanceState, Tag,
};
use tsunami_core::{Addresses, Login, Machine, MachineId, MachineState, Price, RunFilter, RunId};

use crate::error::Answer;
use crate::journal::{GroupNotes, Journal};
use crate::region::Region;
use crate::tag;

/// The most that one page holds.
const PAGE: i32 = 1000;

/// The filter for what belongs to one run, or to any.
pub(crate) fn tagged(filter: &RunFilter) -> Filter {
    match filter {
        RunFilter::Run(run) => {
            Filter::builder().name(format!("tag:{}", tag::RUN)).values(run.as_str()).build()
        }
        RunFilter::All => Filter::builder().name("tag-key").values(tag::RUN).build(),
    }
}

/// The value of a tag.
pub(crate) fn value<'a>(tags: &'a [Tag], key: &str) -> Option<&'a str> {
    tags.iter().find(|tag| tag.key() == Some(key)).and_then(|tag| tag.value())
}

/// Collects the pages of a listing.
macro_rules! pages {
    ($region:expr, $operation:literal, $request:expr, $items:ident) => {{
        let (mut items, mut next) = (Vec::new(), None);
        loop {
            let request = $request.set_next_token(next);
            let answer = $region.call($operation, || request.clone().send()).await?;
            next = answer.next_token.filter(|token| !token.is_empty());
            items.extend(answer.$items.unwrap_or_default());
            if next.is_none() {
                break items;
            }
        }
    }};
}

/// The instances of a run, or of any, terminated ones included for as long as EC2 shows them.
pub(crate) async fn instances(region: &Region, filter: &RunFilter) -> Answer<Vec<Instance>> {
    let request = region.ec2.describe_instances().filters(tagged(filter)).max_results(PAGE);
    let reservations = pages!(region, "DescribeInstances", request.clone(), reservations);
    Ok(reservations.into_iter().flat_map(|reservation| reservation.instances.unwrap_or_default()).collect())
}

/// What the service says of spot machines that it means to take back, or took, by instance.
async fn interruptions(region: &Region, filter: &RunFilter) -> Answer<HashMap<String, String>> {
    let request = region.ec2.describe_spot_instance_requests().filters(tagged(filter)).max_results(PAGE);
    let requests = pages!(region, "DescribeSpotInstanceRequests", request.clone(), spot_instance_requests);
    let interrupted = requests.into_iter().filter_map(|request| {
        let status = request.status?;
        let code = status.code.filter(|code| is_interruption(code))?;
        let message = status.message.unwrap_or_default();
        Some((request.instance_id?, format!("EC2 takes the spot machine back ({code}): {message}")))
    });
    Ok(interrupted.collect())
}

/// The statuses that mean that the service, and not the user, ends a machine.
///
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-request-status.html>
fn is_interruption(code: &str) -> bool {
    match code {
        "instance-terminated-by-user" | "instance-terminated-launch-group-constraint" => false,
        "marked-for-termination" | "marked-for-stop" => true,
        code => code.starts_with("instance-terminated-") || code.starts_with("instance-stopped-"),
    }
}

/// Lists machines as the engine knows them.
pub(crate) async fn machines(
    region: &Region,
    filter: &RunFilter,
    journal: impl Fn(&RunId) -> std::sync::Arc<Journal>,
) -> Answer<Vec<Machine>> {
    let mut instances = instances(region, filter).await?;
    let is_spot = |instance: &Instance| instance.instance_lifecycle == Some(InstanceLifecycleType::Spot);
    let interrupted =
        match instances.iter().any(|instance| is_spot(instance) && state(instance) != MachineState::Gone) {
            true => interruptions(region, filter).await?,
            false => HashMap::new(),
        };
    instances.sort_by(|a, b| (a.launch_time, &a.instance_id).cmp(&(b.launch_time, &b.instance_id)));
    let mut known: BTreeMap<(RunId, String), (GroupNotes, Option<String>, u32)> = BTreeMap::new();
    let mut machines = Vec::new();
    for instance in &instances {
        let tags = instance.tags();
        let run: Option<RunId> = value(tags, tag::RUN).and_then(|run| run.parse().ok());
        let (Some(run), Some(id)) = (run, instance.instance_id()) else { continue };
        let group = value(tags, tag::GROUP).unwrap_or_default().to_owned();
        let (notes, host_key, next) = known.entry((run.clone(), group.clone())).or_insert_with(|| {
            let journal = journal(&run);
            let notes = journal.group(&group).unwrap_or_default();
            let next = u32::try_from(notes.places.len()).unwrap_or_default();
            (notes, journal.public_host_key(), next)
        });
        let place = notes.places.iter().position(|place| place.as_deref() == Some(id));
        let index = place.and_then(|place| u32::try_from(place).ok()).unwrap_or_else(|| {
            *next += 1;
            *next - 1
        });
        let kind = instance.instance_type().map_or("", |kind| kind.as_str());
        let zone =
            instance.placement().and_then(|placement| placement.availability_zone()).unwrap_or_default();
        let market = if is_spot(instance) { "spot" } else { "on-demand" };
        let price = notes.prices.get(&GroupNotes::price_key(is_spot(instance), kind, zone));
        let reason = instance
            .state_reason()
            .filter(|reason| reason.code().is_some_and(|code| code.starts_with("Server.SpotInstance")));
        let reason = reason.map(|reason| {
            format!("EC2 took the spot machine back: {}", reason.message().unwrap_or_default())
        });
        machines.push(Machine {
            id: MachineId::new(id),
            run,
            group,
            index,
            state: state(instance),
            addresses: Addresses {
                public: instance.public_ip_address().map(str::to_owned),
                private: instance.private_ip_address().map(str::to_owned),
                network: instance.vpc_id().map(|vpc| format!("{} {vpc}", region.name)),
            },
            login: Login {
                user: value(tags, tag::USER).map(str::to_owned),
                host: None,
                port: None,
                host_key: host_key.clone(),
                directory: None,
            },
            expires: expires(tags),
            description: format!("{kind} in {zone}, {market}"),
            price: price.map_or(Price::Unknown, |dollars| Price::PerHour(*dollars)),
            ended: ended(instance),
            interrupted: interrupted.get(id).cloned().or(reason),
        });
    }
    Ok(machines)
}

/// Why an instance ended, where nobody asked for it.
fn ended(instance: &Instance) -> Option<String> {
    let reason = instance.state_reason().filter(|_| state(instance) == MachineState::Gone)?;
    let code = reason.code().filter(|code| *code != "Client.UserInitiatedShutdown")?;
    let hint = match code {
        "Client.InternalError" => {
            "; the usual cause is a KMS key of a volume or snapshot that may not be used"
        }
        "Client.VolumeLimitExceeded" => "; the account's quota of volumes in the region is used up",
        "Client.InstanceInitiatedShutdown" => {
            "; it powered itself off, as it does where its deadline can't be armed"
        }
        _ => "",
    };
    Some(format!("{code}: {}{hint}", reason.message().unwrap_or_default()))
}

/// When a thing of tsunami's expires, by its tag.
pub(crate) fn expires(tags: &[Tag]) -> Option<SystemTime> {
    value(tags, tag::EXPIRES).and_then(|time| humantime::parse_rfc3339(time).ok())
}

fn state(instance: &Instance) -> MachineState {
    match instance.state().and_then(|state| state.name()) {
        Some(InstanceStateName::Pending) => MachineState::Pending,
        // A public address comes a moment after the state, where one comes at all.
        Some(InstanceStateName::Running) => MachineState::Running,
        Some(InstanceStateName::Terminated) => MachineState::Gone,
        // A stopped machine still costs its disk.
        _ => MachineState::Stopping,
    }
}

/// Something that a run has, beside its instances.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Thing {
    KeyPair {
        name: String,
        id: String,
    },
    LaunchTemplate(String),
    SecurityGroup(String),
    PlacementGroup {
        name: String,
        id: String,
    },
    /// A root volume whose instance is gone, and its state.
    Volume(String, String),
    /// A spot request without an instance that is ended, and whether it can be cancelled.
    SpotRequest(String, bool),
}

impl Thing {
    /// Its id, as CreateTags takes it.
    pub(crate) fn id(&self) -> Option<String> {
        let (Self::KeyPair { id, .. }
        | Self::PlacementGroup { id, .. }
        | Self::LaunchTemplate(id)
        | Self::SecurityGroup(id)
        | Self::Volume(id, _)
        | Self::SpotRequest(id, _)) = self;
        (!id.is_empty()).then(|| id.clone())
    }
}

/// One thing, the run it belongs to, and when it expires.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub(crate) thing: Thing,
    pub(crate) run: RunId,
    pub(crate) expires: Option<SystemTime>,
}

/// All that there is beside instances.
pub(crate) async fn things(region: &Region, filter: &RunFilter) -> Answer<Vec<Owned>> {
    let mut owned = Vec::new();
    let mut add = |tags: Option<&Vec<Tag>>, thing: Option<Thing>| {
        let tags = tags.map_or(&[][..], |tags| tags.as_slice());
        let run = value(tags, tag::RUN).and_then(|run| run.parse().ok());
        if let (Some(run), Some(thing)) = (run, thing) {
            owned.push(Owned { thing, run, expires: expires(tags) });
        }
    };
    let ec2 = &region.ec2;
    let (key_pairs, placement_groups, templates, groups, volumes, requests) = tokio::try_join!(
        async {
            let request = ec2.describe_key_pairs().filters(tagged(filter));
            region.call("DescribeKeyPairs", || request.clone().send()).await
        },
        async {
            let request = ec2.describe_placement_groups().filters(tagged(filter));
            region.call("DescribePlacementGroups", || request.clone().send()).await
        },
        async {
            let request = ec2.describe_launch_templates().filters(tagged(filter));
            Ok(pages!(region, "DescribeLaunchTemplates", request.clone(), launch_templates))
        },
        async {
            let request = ec2.describe_security_groups().filters(tagged(filter)).max_results(PAGE);
            Ok(pages!(region, "DescribeSecurityGroups", request.clone(), security_groups))
        },
        async {
            let request = ec2.describe_volumes().filters(tagged(filter)).max_results(500);
            Ok(pages!(region, "DescribeVolumes", request.clone(), volumes))
        },
        async {
            let request = ec2.describe_spot_instance_requests().filters(tagged(filter)).max_results(PAGE);
            Ok(pages!(region, "DescribeSpotInstanceRequests", request.clone(), spot_instance_requests))
        },
    )?;
    for pair in key_pairs.key_pairs() {
        let id = pair.key_pair_id.clone().unwrap_or_default();
        add(pair.tags.as_ref(), pair.key_name.clone().map(|name| Thing::KeyPair { name, id }));
    }
    for group in placement_groups.placement_groups() {
        let id = group.group_id.clone().unwrap_or_default();
        add(group.tags.as_ref(), group.group_name.clone().map(|name| Thing::PlacementGroup { name, id }));
    }
    for template in &templates {
        add(template.tags.as_ref(), template.launch_template_id.clone().map(Thing::LaunchTemplate));
    }
    for group in &groups {
        add(group.tags.as_ref(), group.group_id.clone().map(Thing::SecurityGroup));
    }
    for volume in &volumes {
        let state = volume.state().map_or("", |state| state.as_str()).to_owned();
        if state != "deleted" {
            add(volume.tags.as_ref(), volume.volume_id.clone().map(|id| Thing::Volume(id, state)));
        }
    }
    for request in &requests {
        let state = request.state().cloned().unwrap_or(SpotInstanceState::Open);
        if matches!(state, SpotInstanceState::Open | SpotInstanceState::Active) {
            let id = request.spot_instance_request_id.clone();
            add(request.tags.as_ref(), id.map(|id| Thing::SpotRequest(id, state == SpotInstanceState::Open)));
        }
    }
    Ok(owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_service_does_by_itself_is_an_interruption() {
        for code in [
            "marked-for-termination",
            "instance-terminated-by-price",
            "instance-terminated-no-capacity",
            "instance-terminated-by-service",
            "instance-stopped-no-capacity",
        ] {
            assert!(is_interruption(code), "{code}");
        }
        for code in [
            "fulfilled",
            "instance-terminated-by-user",
            "pending-fulfillment",
            "request-canceled-and-instance-running",
        ] {
            assert!(!is_interruption(code), "{code}");
        }
    }
}
