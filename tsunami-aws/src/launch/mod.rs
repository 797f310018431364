//! From a request to machines: what they stand on, then one market after the other.

mod access;
mod state;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_ec2::types::{Instance, InstanceStateName, IpPermission, UserIdGroupPair};
use tokio::time::sleep;
use tsunami_core::{LaunchRequest, MachineId, ProviderError, ProviderErrorKind, RunFilter};

use self::access::authorize;
pub(crate) use self::access::open_ports;
use self::state::Offering;
pub(crate) use self::state::{LaunchState, LockKey, Opening, Peer};
use crate::error::{AwsError, Result};
use crate::journal::{GroupRecord, Journal, journal_error};
use crate::model::{CreateKind, CreateRequest, Fleet, Pool, Purchase, Tags, Template, token};
use crate::region::{Region, VISIBILITY_ATTEMPTS, VISIBILITY_PAUSE};
use crate::requests::{CreateOutput, MakeError};
use crate::resolve::{NO_MARKET, Reserved, ResolvedSpec};
use crate::spec::{Ec2Spec, Market, Reach};
use crate::user_data::UserData;
use crate::{inventory, tag, text};

/// The longest that a spot block of the service's own lasted, in minutes; blocks were of whole hours.
const MAX_BLOCK_MINUTES: u64 = 360;

/// What fails inside EC2, by what it was asked for as.
type Failing = BTreeMap<Purchase, AwsError>;

/// The templates of a launch, by whether they are for spot, and by their reservation.
type Templates = BTreeMap<(bool, Option<String>), String>;

/// What is asked for together: some pools, or the one of a reservation.
struct Lot {
    pools: Vec<Pool>,
    reserved: Option<Reserved>,
}

/// The launch of one group.
pub(crate) struct Launch<'a> {
    pub(crate) state: &'a LaunchState,
    pub(crate) request: &'a LaunchRequest,
    pub(crate) spec: &'a Ec2Spec,
    pub(crate) region: &'a Region,
    pub(crate) resolved: Arc<ResolvedSpec>,
    /// What is reserved for it, or why that is not known.
    pub(crate) reserved: Result<Vec<Reserved>, ProviderError>,
    pub(crate) journal: Journal,
}

/// What a region has for a run before its first machine.
struct RunResources {
    security_group: String,
    key: String,
    placement_group: Option<String>,
}

impl Launch<'_> {
    /// Returns the group's machines by their slots, launching those that are missing.
    pub(crate) async fn run(self) -> Result<Vec<MachineId>, ProviderError> {
        let mut group = self.journal.group(&self.request.group).await.map_err(journal_error)?;
        group.slots.resize(self.request.count.get() as usize, None);
        for slot in &mut group.slots {
            slot.take_if(|id| self.request.replace.iter().any(|replaced| replaced.as_str() == id));
        }
        let earlier = self.settle_earlier(&mut group).await?;
        if missing(&group) > 0 {
            self.remember_prices(&mut group);
            group.public = self.resolved.public;
            let resources = self.run_resources().await?;
            let mut templates = BTreeMap::new();
            let launched = self.markets(&mut group, &resources, &mut templates, earlier).await;
            // Whoever in the account may read templates could read the user data.
            for name in templates.values() {
                let request = self.region.ec2.delete_launch_template().launch_template_name(name);
                let deleted = self.region.once("DeleteLaunchTemplate", || request.clone().send()).await;
                tracing::debug!(?deleted, "template no longer needed");
            }
            launched?;
        }
        Ok(group.slots.into_iter().flatten().map(MachineId::new).collect())
    }

    /// Learns what became of requests whose answer was lost. Returns the number of the next one, and the markets that
    /// are failing inside EC2 just now.
    async fn settle_earlier(&self, group: &mut GroupRecord) -> Result<(u32, Failing), ProviderError> {
        let ours = |request: &CreateRequest| {
            request.makes_instances() && request.tags.get(tag::GROUP) == Some(&self.request.group)
        };
        let entries = self.journal.entries().await.map_err(journal_error)?;
        let entries: Vec<_> = entries.into_iter().filter(|entry| ours(&entry.request)).collect();
        let mut failing = Failing::new();
        for entry in entries.iter().filter(|entry| entry.is_open()) {
            match entry.request.make(self.region, &self.journal).await {
                Ok(made) => self.assign_slots(group, &made).await?,
                Err(MakeError::Refused(failure)) if failure.is_inside_aws() => {
                    failing.extend(entry.request.purchase().map(|purchase| (purchase, failure)));
                }
                Err(MakeError::Refused(failure)) if failure.answered => {}
                Err(error) => return Err(provider_error(error)),
            }
        }
        Ok((u32::try_from(entries.len()).unwrap_or(u32::MAX), failing))
    }

    /// Tries the markets in the order of the spec, until all machines are there. What one pool or one market refuses
    /// is no reason against the others.
    async fn markets(
        &self,
        group: &mut GroupRecord,
        resources: &RunResources,
        templates: &mut Templates,
        (mut attempt, failing): (u32, Failing),
    ) -> Result<(), ProviderError> {
        // A program may launch what it has asked no quote for.
        let Some(last) = self.spec.markets.last() else {
            return Err(self.region.invalid(NO_MARKET.to_owned()));
        };
        let mut tried: Vec<String> = Vec::new();
        let (mut failures, mut patience) = (Vec::new(), VISIBILITY_ATTEMPTS);
        for (place, market) in self.spec.markets.iter().enumerate() {
            let next = self.spec.markets.get(place + 1);
            let mut choices = self.lots(group, *market, &mut tried);
            if let Some(failure) = failing.get(&market.purchase()) {
                tried.push(format!("{market}: {}: {}", failure.code, failure.message));
                failures.push(failure.clone());
                choices.clear();
            }
            // What this market has refused here for good, and where EC2 has sent us already.
            let (mut out, mut sent) = (BTreeSet::new(), BTreeSet::new());
            while let Some(Lot { pools, reserved }) = choices.pop_front() {
                let wanted = missing(group);
                if wanted == 0 {
                    return Ok(());
                }
                let mut pools = pools;
                let mut latest = None;
                pools.retain(|pool| {
                    let refused = self.refused_since(*market, pool, wanted);
                    let refused = refused.filter(|_| !sent.contains(pool) && reserved.is_none());
                    latest = latest.into_iter().chain(refused).min();
                    !out.contains(pool) && refused.is_none()
                });
                if pools.is_empty() {
                    tried.extend(latest.map(|ago: Duration| {
                        format!("{market}: no capacity {} s ago, and not asked again so soon", ago.as_secs())
                    }));
                    continue;
                }
                let lot = Lot { pools: pools.clone(), reserved: reserved.clone() };
                let made = self.buy(group, resources, templates, *market, lot, &mut attempt).await;
                let of_pools = match made {
                    Ok(made) => {
                        self.assign_slots(group, &made).await?;
                        made.failures
                    }
                    Err(MakeError::Refused(failure)) => {
                        if failure.is_of_our_making() && patience > 0 {
                            patience -= 1;
                            sleep(VISIBILITY_PAUSE).await;
                            choices.push_front(Lot { pools, reserved });
                            continue;
                        }
                        if failure.stops_everything() {
                            return Err(failure.into());
                        }
                        vec![(None, failure)]
                    }
                    Err(error) => return Err(provider_error(error)),
                };
                let is_done = missing(group) == 0;
                if !is_done && of_pools.iter().any(|(_, failure)| failure.is_of_our_making()) && patience > 0
                {
                    patience -= 1;
                    sleep(VISIBILITY_PAUSE).await;
                    choices.push_front(Lot { pools, reserved });
                    continue;
                }
                for (pool, failure) in of_pools.iter().filter(|_| reserved.is_none()) {
                    self.remember_unavailable(*market, pool.as_ref(), failure, wanted);
                    out.extend(pool.clone().filter(|_| failure.is_of_the_pool()));
                }
                if is_done {
                    return Ok(());
                }
                // Where EC2 says that there is capacity, it is asked next.
                let named = self.named(group, *market, &of_pools, &out);
                let named: Vec<Pool> = named.into_iter().filter(|pool| sent.insert(pool.clone())).collect();
                if !named.is_empty() {
                    choices.push_front(Lot { pools: named, reserved: None });
                }
                let failure = gravest(of_pools).unwrap_or_else(|| self.short_of(*market));
                let said = format!("{market}: {}: {}", failure.code, failure.message);
                if !tried.contains(&said) {
                    tried.push(said);
                }
                if failure.is_inside_aws() {
                    self.adopt(group).await?;
                }
                failures.push(failure);
            }
            if let (Some(next), true) = (next, missing(group) > 0) {
                let why = tried.last().map(String::as_str).unwrap_or_default();
                self.request.notes.say(&format!("{} missing; trying {next} next ({why})", missing(group)));
            }
        }
        if missing(group) == 0 {
            return Ok(());
        }
        let failures = failures.into_iter().map(|failure| (None, failure)).collect();
        let mut error = ProviderError::from(gravest(failures).unwrap_or_else(|| self.short_of(*last)));
        let (missing, count) = (missing(group), self.request.count);
        error.message = format!("{missing} of {count} machines could not be had: {}", tried.join("; "));
        Err(error)
    }

    /// Gives slots to what a request made all the same that failed inside EC2.
    async fn adopt(&self, group: &mut GroupRecord) -> Result<(), ProviderError> {
        let instances = inventory::instances(self.region, &RunFilter::Run(self.request.run.clone())).await?;
        let ours = |instance: &&Instance| {
            let state = instance.state().and_then(|state| state.name());
            tag::value(instance.tags(), tag::GROUP) == Some(&self.request.group)
                && matches!(state, Some(InstanceStateName::Pending | InstanceStateName::Running))
        };
        let ids = instances.iter().filter(ours).filter_map(|instance| text::word(instance.instance_id()));
        let replaced = |id: &String| self.request.replace.iter().any(|replaced| replaced.as_str() == id);
        let ids = ids.filter(|id| !replaced(id)).collect();
        self.assign_slots(group, &CreateOutput { ids, ..CreateOutput::default() }).await
    }

    /// The pools that EC2 names as having capacity, of those that may serve.
    fn named(
        &self,
        group: &GroupRecord,
        market: Market,
        failures: &[(Option<Pool>, AwsError)],
        out: &BTreeSet<Pool>,
    ) -> Vec<Pool> {
        let named = |pool: &Pool| {
            failures.iter().any(|(of, failure)| {
                let same = of.as_ref().is_none_or(|of| of.instance == pool.instance);
                same && failure.zones_with_capacity().any(|zone| zone == pool.zone)
            })
        };
        if market == Market::Reservation {
            return Vec::new();
        }
        let mut pools: Vec<Pool> = self.choices(group, market).into_iter().flatten().collect();
        pools.retain(|pool| named(pool) && !out.contains(pool));
        pools
    }

    /// What to ask for in a market, one lot after the other. What can't be asked for is added to `tried`.
    fn lots(&self, group: &GroupRecord, market: Market, tried: &mut Vec<String>) -> VecDeque<Lot> {
        if market != Market::Reservation {
            let lots = self.choices(group, market).into_iter();
            return lots.map(|pools| Lot { pools, reserved: None }).collect();
        }
        let alike =
            group.pool.as_ref().filter(|_| !self.spec.mixed && group.slots.iter().any(Option::is_some));
        // It would launch as many as it has room for, and those that come later would be others.
        let least = if self.spec.mixed || alike.is_some() { 1 } else { missing(group) };
        let until = self.region.clock.ours(self.request.deadline.at);
        let mut lots = VecDeque::new();
        if let Err(error) = &self.reserved {
            tried.push(format!("{market}: {error}"));
        }
        for reserved in self.reserved.iter().flatten() {
            let is_like = alike.is_none_or(|first| first.instance == reserved.pool.instance);
            if !is_like || reserved.free < least || !reserved.lasts(until) {
                let count = missing(group);
                tried.push(format!(
                    "{market}: {} has no place for {count} until their end: {reserved}",
                    reserved.pool
                ));
                continue;
            }
            let lot = Lot { pools: vec![reserved.pool.clone()], reserved: Some(reserved.clone()) };
            match alike == Some(&reserved.pool) {
                true => lots.push_front(lot),
                false => lots.push_back(lot),
            }
        }
        lots
    }

    /// The pools to ask together, one lot after the other. Machines of a group are alike: those that come later
    /// are like the first.
    fn choices(&self, group: &GroupRecord, market: Market) -> Vec<Vec<Pool>> {
        let all = &self.resolved.pools;
        let native = market == Market::SpotBlock && self.spec.native_spot_block;
        match &group.pool {
            Some(first) if !self.spec.mixed && group.slots.iter().any(Option::is_some) => {
                let elsewhere = all.iter().filter(|pool| pool.instance == first.instance && *pool != first);
                let elsewhere: Vec<_> = elsewhere.cloned().collect();
                match native {
                    true => std::iter::once(first.clone()).chain(elsewhere).map(|pool| vec![pool]).collect(),
                    false => vec![vec![first.clone()], elsewhere],
                }
            }
            // RunInstances takes one pool at a time.
            _ if native => all.iter().map(|pool| vec![pool.clone()]).collect(),
            _ => vec![all.clone()],
        }
    }

    /// Asks for all missing machines in one request.
    async fn buy(
        &self,
        group: &GroupRecord,
        resources: &RunResources,
        templates: &mut Templates,
        market: Market,
        Lot { pools, reserved }: Lot,
        attempt: &mut u32,
    ) -> Result<CreateOutput, MakeError> {
        let spot = market.is_spot();
        let template = match templates.entry((spot, reserved.as_ref().map(|reserved| reserved.id.clone()))) {
            Entry::Occupied(made) => made.get().clone(),
            Entry::Vacant(free) => {
                free.insert(self.template(resources, spot, reserved.as_ref(), *attempt).await?).clone()
            }
        };
        let name = format!("{}-{}-{:04}", self.request.run, self.request.group, *attempt);
        *attempt += 1;
        let native = market == Market::SpotBlock && self.spec.native_spot_block;
        let fleet = Fleet {
            template,
            pools,
            count: missing(group),
            spot,
            max_price: self.spec.max_price.filter(|_| spot).map(|price| price.to_string()),
            alike: !self.spec.mixed,
            block: native.then(|| block_minutes(self.request.deadline.lifetime)),
            reserved: reserved.map(|reserved| reserved.kind),
            token: token(&[&self.region.name, &name]),
        };
        let kind = if native { CreateKind::Instances(fleet) } else { CreateKind::Fleet(fleet) };
        self.create(name, self.group_tags(), kind).make(self.region, &self.journal).await
    }

    async fn template(
        &self,
        resources: &RunResources,
        spot: bool,
        reserved: Option<&Reserved>,
        attempt: u32,
    ) -> Result<String, MakeError> {
        let (host_key, _) = self.journal.host_key().await?;
        let deadline = self.request.deadline;
        let own = self.spec.user_data.as_deref();
        let user_data = UserData { at: deadline.at, lifetime: deadline.lifetime, host_key: &host_key, own };
        let user_data = user_data.compose().map_err(|error| {
            let (kind, operation) = (ProviderErrorKind::InvalidSpec, "CreateLaunchTemplate");
            AwsError::ours(kind, "UserData", error.to_string(), operation, &self.region.name)
        })?;
        let template = Template {
            image: self.resolved.image.id.clone(),
            key: resources.key.clone(),
            security_group: resources.security_group.clone(),
            // Of an address of IPv6 nothing has to be said.
            public: self.spec.reach.filter(|_| !self.resolved.ipv6).map(|reach| reach == Reach::Public),
            ipv6: self.resolved.ipv6,
            user_data,
            root_device: self.resolved.image.root_device.clone(),
            disk: self.spec.disk.clone(),
            iam_profile: self.spec.iam_profile.clone(),
            placement_group: resources.placement_group.clone(),
            spot,
            reservation: reserved.map(|reserved| (reserved.id.clone(), reserved.kind)),
        };
        let name = tag::template_name(&self.request.run, &self.request.group, attempt);
        let request =
            self.create(name.clone(), self.group_tags(), CreateKind::LaunchTemplate(Box::new(template)));
        request.make(self.region, &self.journal).await.map(|_| name)
    }

    /// The run's security group, key pair and, if asked for, the group's placement group.
    async fn run_resources(&self) -> Result<RunResources, ProviderError> {
        let name = tag::name(&self.request.run);
        // Groups that are launched at the same time share it.
        let (run, region) = (self.request.run.clone(), self.region.name.clone());
        let lock = self.state.locks.named_lock(LockKey::RunResources { run, region });
        let _lock = lock.lock().await;
        let key = CreateKind::KeyPair { public_key: self.request.authorized_key.clone() };
        let key = self.create(name.clone(), self.run_tags(), key);
        let placement = self.spec.placement_group.then(|| {
            let name = format!("{name}-{}", self.request.group);
            self.create(name, self.group_tags(), CreateKind::PlacementGroup)
        });
        let make = async |request: CreateRequest| {
            let made = request.make(self.region, &self.journal).await.map_err(provider_error)?;
            Ok::<_, ProviderError>(made.ids.into_iter().next().unwrap_or_default())
        };
        let placed = async {
            match placement {
                Some(request) => make(request).await.map(Some),
                None => Ok(None),
            }
        };
        let (security_group, key, placement_group) =
            tokio::try_join!(self.security_group(name), make(key), placed)?;
        Ok(RunResources { security_group, key, placement_group })
    }

    async fn security_group(&self, name: String) -> Result<String, ProviderError> {
        if let Some(given) = &self.spec.security_group {
            return Ok(given.clone());
        }
        let from = self.state.ssh_from(self.spec, self.region, &self.resolved).await?;
        let request =
            self.create(name, self.run_tags(), CreateKind::SecurityGroup { vpc: self.resolved.vpc.clone() });
        let made = request.make(self.region, &self.journal).await.map_err(provider_error)?;
        let id = made.ids.into_iter().next().unwrap_or_default();
        let (run, region) = (self.request.run.clone(), self.region.name.clone());
        let opening = Opening { run, region, to: Peer::Usual };
        if self.state.opened.lock().await.contains(&opening) {
            return Ok(id);
        }
        let ssh = access::permission("tcp", 22, &from, Some("ssh_from"));
        // The machines among themselves, by their group: everything.
        let own = UserIdGroupPair::builder().group_id(&id).build();
        let own = IpPermission::builder().ip_protocol("-1").user_id_group_pairs(own).build();
        authorize(self.region, &id, vec![ssh, own]).await?;
        self.state.opened.lock().await.insert(opening);
        Ok(id)
    }

    fn create(&self, name: String, tags: Tags, kind: CreateKind) -> CreateRequest {
        CreateRequest { region: self.region.name.clone(), name, tags, kind }
    }

    fn run_tags(&self) -> Tags {
        let mut tags = tag::of_run(self.request, &self.state.owner);
        // Also a name of the user's own; what makes them the run's is nobody else's to set.
        tags.extend(self.spec.tags.iter().cloned());
        tags
    }

    fn group_tags(&self) -> Tags {
        let mut tags = self.run_tags();
        tags.insert(tag::GROUP.to_owned(), self.request.group.clone());
        tags.insert(tag::USER.to_owned(), self.resolved.image.user.clone());
        if !self.spec.tags.iter().any(|(key, _)| key == "Name") {
            tags.insert("Name".to_owned(), format!("{} {}", self.request.experiment, self.request.group));
        }
        tags
    }

    /// Gives new machines the slots that are free.
    async fn assign_slots(&self, group: &mut GroupRecord, made: &CreateOutput) -> Result<(), ProviderError> {
        for id in &made.ids {
            if group.slots.iter().flatten().any(|assigned| assigned == id) {
                continue;
            }
            match group.slots.iter_mut().find(|slot| slot.is_none()) {
                Some(slot) => *slot = Some(id.clone()),
                // A request that failed inside EC2 may have made it late; teardown finds it by its tag.
                None => tracing::warn!(id, "one machine too many"),
            }
        }
        if group.pool.is_none() || !self.request.replace.is_empty() {
            group.pool = made.pool.clone().or(group.pool.take());
        }
        self.journal.write_group(&self.request.group, group).await.map_err(journal_error)
    }

    fn remember_prices(&self, group: &mut GroupRecord) {
        for pool in &self.resolved.pools {
            for market in &self.spec.markets {
                if let tsunami_core::Price::PerHour(dollars) = self.resolved.price(self.spec, *market, pool) {
                    let key = GroupRecord::price_key(market.is_spot(), &pool.instance, &pool.zone);
                    group.prices.insert(key, dollars);
                }
            }
        }
    }

    fn offering(&self, market: Market, pool: &Pool) -> Offering {
        Offering { region: self.region.name.clone(), spot: market.is_spot(), pool: pool.clone() }
    }

    /// What has no room for three may have room for one, unless it would have given what it has.
    fn at_least(&self, wanted: u32) -> u32 {
        if self.spec.mixed { 1 } else { wanted }
    }

    /// How long ago a pool had no room, for this launch or another one of this provider's.
    fn refused_since(&self, market: Market, pool: &Pool, wanted: u32) -> Option<Duration> {
        self.state.unavailable_offerings.since(&self.offering(market, pool), self.at_least(wanted))
    }

    fn remember_unavailable(&self, market: Market, pool: Option<&Pool>, error: &AwsError, wanted: u32) {
        if let (Some(pool), ProviderErrorKind::Capacity) = (pool, error.kind) {
            self.state.unavailable_offerings.add(self.offering(market, pool), self.at_least(wanted));
        }
    }

    fn short_of(&self, market: Market) -> AwsError {
        let message = format!("fewer {market} machines than asked for, and no reason given");
        AwsError::in_fleet(&self.region.name, "InsufficientCapacity", &message)
    }
}

fn missing(group: &GroupRecord) -> u32 {
    u32::try_from(group.slots.iter().filter(|slot| slot.is_none()).count()).unwrap_or(u32::MAX)
}

/// Of several failures, the one that says most of what is to be done: what a person has to mend comes first, what
/// passes by itself last.
fn gravest(failures: Vec<(Option<Pool>, AwsError)>) -> Option<AwsError> {
    let rank = |failure: &AwsError| match failure.kind {
        ProviderErrorKind::Unauthorized => 0,
        ProviderErrorKind::InvalidSpec | ProviderErrorKind::Unsupported | ProviderErrorKind::Other => 1,
        ProviderErrorKind::Quota => 2,
        ProviderErrorKind::Capacity => 3,
        ProviderErrorKind::Throttled | ProviderErrorKind::Unavailable => 4,
        _ => 1,
    };
    failures.into_iter().map(|(_, failure)| failure).min_by_key(rank)
}

/// Whole hours, at least as long as the machines may live.
fn block_minutes(lifetime: Duration) -> i32 {
    let hours = lifetime.as_secs().div_ceil(3600).max(1);
    i32::try_from((hours * 60).min(MAX_BLOCK_MINUTES)).unwrap_or(60)
}

pub(crate) fn provider_error(error: MakeError) -> ProviderError {
    match error {
        MakeError::Refused(failure) => failure.into(),
        MakeError::Journal(error) => journal_error(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spot_block_is_of_whole_hours() {
        let minutes = |minutes: u64| block_minutes(Duration::from_secs(minutes * 60));
        assert_eq!([minutes(1), minutes(60), minutes(61), minutes(1000)], [60, 60, 120, 360]);
    }
}
