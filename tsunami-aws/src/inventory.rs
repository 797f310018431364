//! What there is in a region, found by tag.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use aws_sdk_ec2::types::{Instance, InstanceLifecycleType, InstanceStateName, SpotInstanceState, Tag};
use futures_util::future::join_all;
use tsunami_core::{
    Addresses, Login, Machine, MachineId, MachineKind, MachineState, Price, RunFilter, RunId,
};

use crate::error::Result;
use crate::journal::{GroupRecord, Journal};
use crate::limited::{MAX_PAGE, pages};
use crate::region::Region;
use crate::resolve::block_end;
use crate::{interruption, tag, text};

/// The instances of a run, or of any, terminated ones included for as long as EC2 shows them.
pub(crate) async fn instances(region: &Region, filter: &RunFilter) -> Result<Vec<Instance>> {
    let request = region.ec2.describe_instances().filters(tag::filter(filter)).max_results(MAX_PAGE);
    let reservations = pages!(region, "DescribeInstances", request.clone(), reservations);
    let instances =
        reservations.into_iter().flat_map(|reservation| reservation.instances.unwrap_or_default());
    Ok(instances.filter(|instance| run_of(region, filter, instance.tags()).is_some()).collect())
}

/// When EC2 ends a machine with the Capacity Block that it is in, by our clock.
#[derive(Clone, Debug)]
pub(crate) struct BlockEnd {
    pub(crate) instance: String,
    pub(crate) block: String,
    pub(crate) at: SystemTime,
}

/// The first end of a Capacity Block that machines of a run are in.
pub(crate) async fn first_block_end(region: &Region, run: &RunId) -> Result<Option<BlockEnd>> {
    let within = |instance: &Instance| {
        let is_block = instance.instance_lifecycle() == Some(&InstanceLifecycleType::CapacityBlock);
        let is_up = is_block && state(instance) != MachineState::Gone;
        let block = text::word(instance.capacity_reservation_id()).filter(|_| is_up)?;
        Some((block, text::word(instance.instance_id())?))
    };
    let living = instances(region, &RunFilter::Run(run.clone())).await?;
    let blocks: BTreeMap<String, String> = living.iter().filter_map(within).collect();
    if blocks.is_empty() {
        return Ok(None);
    }
    let request = region.ec2.describe_capacity_reservations();
    let request = request.set_capacity_reservation_ids(Some(blocks.keys().cloned().collect()));
    let found = pages!(region, "DescribeCapacityReservations", request.clone(), capacity_reservations);
    let ends = found.iter().filter_map(|reservation| {
        let (block, instance) = blocks.get_key_value(reservation.capacity_reservation_id()?)?;
        let at = block_end(reservation, region)?;
        Some(BlockEnd { instance: instance.clone(), block: block.clone(), at })
    });
    Ok(ends.min_by_key(|end| end.at))
}

/// The run that a resource belongs to by its tag, if it is one that was asked for. An endpoint may know no filters,
/// and what it shows beside that is nobody's here: it is never touched.
pub(crate) fn run_of(region: &Region, filter: &RunFilter, tags: &[Tag]) -> Option<RunId> {
    let run: Option<RunId> = tag::value(tags, tag::RUN).and_then(|run| run.parse().ok());
    let asked_for = match filter {
        RunFilter::Run(wanted) => run.as_ref() == Some(wanted),
        RunFilter::All => run.is_some(),
    };
    if !asked_for {
        region.shows_strangers();
    }
    run.filter(|_| asked_for)
}

/// What is known here of a group of a run.
struct Known {
    notes: GroupRecord,
    host_key: Option<String>,
    /// The index of the next machine that has no slot.
    next: u32,
}

impl Known {
    async fn of(journal: &Journal, group: &str) -> Self {
        let notes = journal.group(group).await.unwrap_or_else(|error| {
            tracing::warn!(%error, group, "what is noted of a group can't be read: its machines are numbered anew");
            GroupRecord::default()
        });
        let next = u32::try_from(notes.slots.len()).unwrap_or_default();
        Self { notes, host_key: journal.public_host_key().await, next }
    }
}

/// Lists machines as the engine knows them.
pub(crate) async fn machines(
    region: &Region,
    filter: &RunFilter,
    journal: impl Fn(&RunId) -> Journal,
) -> Result<Vec<Machine>> {
    let mut instances = instances(region, filter).await?;
    let is_spot = |instance: &Instance| instance.instance_lifecycle == Some(InstanceLifecycleType::Spot);
    let interrupted =
        match instances.iter().any(|instance| is_spot(instance) && state(instance) != MachineState::Gone) {
            true => interruption::interruptions(region, filter).await?,
            false => HashMap::new(),
        };
    instances.sort_by(|a, b| (a.launch_time, &a.instance_id).cmp(&(b.launch_time, &b.instance_id)));
    let mut known: BTreeMap<(RunId, String), Known> = BTreeMap::new();
    let mut machines = Vec::new();
    for instance in &instances {
        let tags = instance.tags();
        let run: Option<RunId> = tag::value(tags, tag::RUN).and_then(|run| run.parse().ok());
        let (Some(run), Some(id)) = (run, text::word(instance.instance_id())) else { continue };
        let group = text::group(tag::value(tags, tag::GROUP)).unwrap_or_default();
        let Known { notes, host_key, next } = match known.entry((run.clone(), group.clone())) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(Known::of(&journal(&run), &group).await),
        };
        let slot = notes.slots.iter().position(|slot| slot.as_ref() == Some(&id));
        let index = slot.and_then(|slot| u32::try_from(slot).ok()).unwrap_or_else(|| {
            *next += 1;
            *next - 1
        });
        let kind = text::word(instance.instance_type().map(|kind| kind.as_str())).unwrap_or_default();
        let zone = instance.placement().and_then(|placement| placement.availability_zone());
        let zone = text::word(zone).unwrap_or_default();
        let market = match instance.capacity_reservation_id() {
            _ if is_spot(instance) => "spot",
            Some(_) => "reservation",
            None => "on-demand",
        };
        let price = notes.prices.get(&GroupRecord::price_key(is_spot(instance), &kind, &zone));
        let reason = instance
            .state_reason()
            .filter(|reason| reason.code().is_some_and(|code| code.starts_with("Server.SpotInstance")));
        let reason = reason.map(|reason| {
            format!("EC2 took the spot machine back: {}", text::line(reason.message().unwrap_or_default()))
        });
        let private = text::address(instance.private_ip_address());
        // An address of IPv6 counts where it is the only one, for the network and, if there is a way, for the world.
        let alone = text::address(instance.ipv6_address()).filter(|_| private.is_none());
        let public = text::address(instance.public_ip_address());
        let public = public.or_else(|| alone.clone().filter(|_| notes.public));
        let state = match state(instance) {
            // The private address comes first, and can't be reached where a public one is to come.
            MachineState::Running if notes.public && public.is_none() => MachineState::Pending,
            state => state,
        };
        let mut addresses = Addresses::default();
        addresses.public = public;
        addresses.private = private.or(alone);
        addresses.network = text::word(instance.vpc_id()).map(|vpc| format!("{} {vpc}", region.name));
        let mut login = Login::default();
        login.user = text::user(tag::value(tags, tag::USER));
        login.host_key.clone_from(host_key);
        let interrupted = interrupted.get(&id).cloned().or(reason).or_else(|| taken_back(instance));
        let mut made_from = MachineKind::default().region(&region.name);
        made_from.machine_type = Some(kind.clone()).filter(|kind| !kind.is_empty());
        made_from.image = text::word(instance.image_id());
        let mut machine = Machine::new(MachineId::new(id), run, group, index, state)
            .addresses(addresses)
            .login(login)
            .description(format!("{kind} in {zone}, {market}"))
            .kind(made_from)
            .price(price.map_or(Price::Unknown, |dollars| Price::PerHour(*dollars)));
        machine.expires = expires(region, tags);
        machine.ended = ended(instance);
        machine.interrupted = interrupted;
        machines.push(machine);
    }
    Ok(machines)
}

/// That EC2 takes an instance back whose reservation ends, or whose lender wants the capacity. Only EventBridge tells it
/// before, two minutes ahead.
fn taken_back(instance: &Instance) -> Option<String> {
    let what = match instance.instance_lifecycle()? {
        InstanceLifecycleType::CapacityBlock => "its Capacity Block ends",
        InstanceLifecycleType::InterruptibleCapacityReservation => "the lender takes its capacity back",
        _ => return None,
    };
    let is_over = matches!(state(instance), MachineState::Gone | MachineState::Stopping);
    let reason = instance.state_reason().filter(|_| is_over)?;
    // What the user or the machine does is told so.
    let code = reason.code().filter(|code| !code.starts_with("Client."))?;
    let words = text::line(reason.message().unwrap_or(code));
    Some(format!("EC2 took the machine back, as {what}: {words}"))
}

/// Why an instance ended, or is ending, where nobody asked for it.
fn ended(instance: &Instance) -> Option<String> {
    let is_over = matches!(state(instance), MachineState::Gone | MachineState::Stopping);
    let reason = instance.state_reason().filter(|_| is_over)?;
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
    Some(text::line(&format!("{code}: {}{hint}", reason.message().unwrap_or_default())))
}

/// When a resource of tsunami's expires by our clock, as its tag has it by EC2's.
pub(crate) fn expires(region: &Region, tags: &[Tag]) -> Option<SystemTime> {
    let theirs = tag::value(tags, tag::EXPIRES).and_then(|time| humantime::parse_rfc3339(time).ok());
    theirs.map(|time| region.clock.ours(time))
}

fn state(instance: &Instance) -> MachineState {
    match instance.state().and_then(|state| state.name()) {
        Some(InstanceStateName::Pending) => MachineState::Pending,
        Some(InstanceStateName::Running) => MachineState::Running,
        Some(InstanceStateName::Terminated) => MachineState::Gone,
        // A stopped machine still costs its disk.
        _ => MachineState::Stopping,
    }
}

/// The kinds of resources that a run has beside its instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ResourceKind {
    KeyPair,
    LaunchTemplate,
    PlacementGroup,
    SecurityGroup,
    SpotRequest,
    Volume,
}

impl ResourceKind {
    pub(crate) const ALL: [Self; 6] = [
        Self::KeyPair,
        Self::LaunchTemplate,
        Self::PlacementGroup,
        Self::SecurityGroup,
        Self::SpotRequest,
        Self::Volume,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KeyPair => "key pair",
            Self::LaunchTemplate => "launch template",
            Self::PlacementGroup => "placement group",
            Self::SecurityGroup => "security group",
            Self::SpotRequest => "spot request",
            Self::Volume => "volume",
        }
    }

    /// Whether it can't go while machines are there.
    pub(crate) fn is_used_by_machines(self) -> bool {
        matches!(self, Self::PlacementGroup | Self::SecurityGroup)
    }
}

/// Something that a run has, beside its instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub(crate) kind: ResourceKind,
    /// By which it is removed.
    pub(crate) name: String,
    /// By which it is tagged; empty where that is not known.
    pub(crate) id: String,
    /// Why it can't be removed as yet: the state of a volume, an instance of a spot request.
    pub(crate) busy: Option<String>,
    /// Whether it is of nobody's making that is known here, whatever its tag says. Its name is for people only.
    pub(crate) odd: bool,
}

impl Resource {
    pub(crate) fn new(kind: ResourceKind, name: impl Into<String>, id: impl Into<String>) -> Self {
        Self { kind, name: name.into(), id: id.into(), busy: None, odd: false }
    }

    /// What it is, for people.
    pub(crate) fn describe(&self, region: &str) -> String {
        format!("{} {} in {region}", self.kind.name(), self.name)
    }
}

/// One resource, the run it belongs to, and when it expires.
#[derive(Clone, Debug)]
pub(crate) struct TaggedResource {
    pub(crate) resource: Resource,
    pub(crate) run: RunId,
    pub(crate) expires: Option<SystemTime>,
}

/// All that there is beside instances, kind by kind: what can't be seen of one hides none of the others.
pub(crate) async fn resources(
    region: &Region,
    filter: &RunFilter,
) -> Vec<(ResourceKind, Result<Vec<TaggedResource>>)> {
    join_all(ResourceKind::ALL.map(async |kind| (kind, of_kind(region, filter, kind).await))).await
}

/// All that there is of one kind.
async fn of_kind(region: &Region, filter: &RunFilter, kind: ResourceKind) -> Result<Vec<TaggedResource>> {
    let mut owned = Vec::new();
    let mut add = |tags: &[Tag], mut resource: Resource| {
        let Some(run) = run_of(region, filter, tags) else { return };
        if text::word(Some(&resource.name)).is_none() {
            // It is named as far as that can be done, and let be.
            resource.name = format!("{:?}", text::line(&resource.name));
            resource.odd = true;
        }
        owned.push(TaggedResource { resource, run, expires: expires(region, tags) });
    };
    let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
    let ec2 = &region.ec2;
    match kind {
        ResourceKind::KeyPair => {
            let request = ec2.describe_key_pairs().filters(tag::filter(filter));
            let answer = region.call("DescribeKeyPairs", || request.clone().send()).await?;
            for pair in answer.key_pairs() {
                add(pair.tags(), Resource::new(kind, text(pair.key_name()), text(pair.key_pair_id())));
            }
        }
        ResourceKind::LaunchTemplate => {
            let request = ec2.describe_launch_templates().filters(tag::filter(filter));
            for template in pages!(region, "DescribeLaunchTemplates", request.clone(), launch_templates) {
                let (name, id) = (template.launch_template_name(), template.launch_template_id());
                add(template.tags(), Resource::new(kind, text(name), text(id)));
            }
        }
        ResourceKind::PlacementGroup => {
            let request = ec2.describe_placement_groups().filters(tag::filter(filter));
            let answer = region.call("DescribePlacementGroups", || request.clone().send()).await?;
            for group in answer.placement_groups() {
                add(group.tags(), Resource::new(kind, text(group.group_name()), text(group.group_id())));
            }
        }
        ResourceKind::SecurityGroup => {
            let request = ec2.describe_security_groups().filters(tag::filter(filter)).max_results(MAX_PAGE);
            for group in pages!(region, "DescribeSecurityGroups", request.clone(), security_groups) {
                add(group.tags(), Resource::new(kind, text(group.group_id()), text(group.group_id())));
            }
        }
        ResourceKind::SpotRequest => {
            let request =
                ec2.describe_spot_instance_requests().filters(tag::filter(filter)).max_results(MAX_PAGE);
            let found =
                pages!(region, "DescribeSpotInstanceRequests", request.clone(), spot_instance_requests);
            for request in found {
                let busy = match request.state() {
                    Some(SpotInstanceState::Active) => Some("its instance has not ended yet".to_owned()),
                    Some(
                        SpotInstanceState::Cancelled | SpotInstanceState::Closed | SpotInstanceState::Failed,
                    ) => continue,
                    // Also one that is disabled, whose instance was stopped: it may launch another.
                    _ => None,
                };
                let id = text(request.spot_instance_request_id());
                add(request.tags(), Resource { busy, ..Resource::new(kind, id.clone(), id) });
            }
        }
        ResourceKind::Volume => {
            let request = ec2.describe_volumes().filters(tag::filter(filter)).max_results(500);
            for volume in pages!(region, "DescribeVolumes", request.clone(), volumes) {
                let state = volume.state().map_or("", |state| state.as_str());
                if state != "deleted" {
                    let busy = (state != "available").then(|| state.to_owned());
                    let id = text(volume.volume_id());
                    add(volume.tags(), Resource { busy, ..Resource::new(kind, id.clone(), id) });
                }
            }
        }
    }
    Ok(owned)
}
