//! From a request to machines: what they stand on, then one market after the other.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_ec2::types::{Instance, InstanceStateName, IpPermission, IpRange, UserIdGroupPair};
use tokio::time::{Instant, sleep};
use tsunami_core::{LaunchRequest, MachineId, ProviderError, ProviderErrorKind, RunFilter};

use crate::create::{Create, Fleet, Made, MakeError, Pool, Tags, Template, What, token};
use crate::error::{Answer, Failure};
use crate::ground::Ground;
use crate::journal::{GroupNotes, Journal};
use crate::provider::Ec2Provider;
use crate::region::Region;
use crate::spec::{Ec2Spec, Market};
use crate::user_data::UserData;
use crate::{inventory, tag, text};

/// For how long a pool without capacity is not asked again.
const MEMORY: Duration = Duration::from_secs(180);

/// The longest that a spot block of the service's own lasted, in minutes; blocks were of whole hours.
const LONGEST_BLOCK: u64 = 360;

/// What was just made may be unknown to the next request for some seconds; so often that is waited for,
const PATIENCE: u32 = 10;
/// so long each time.
const VISIBLE: Duration = Duration::from_secs(2);

/// What fails inside EC2, by whether it was asked for as spot.
type Failing = BTreeMap<bool, Failure>;

/// The launch of one group.
pub(crate) struct Launch<'a> {
    pub(crate) provider: &'a Ec2Provider,
    pub(crate) request: &'a LaunchRequest,
    pub(crate) spec: &'a Ec2Spec,
    pub(crate) region: &'a Region,
    pub(crate) ground: Arc<Ground>,
    pub(crate) journal: Arc<Journal>,
}

/// What a region has for a run before its first machine.
struct Foundation {
    security_group: String,
    key: String,
    placement_group: Option<String>,
}

impl Launch<'_> {
    /// Returns the group's machines by their places, launching those that are missing.
    pub(crate) async fn run(self) -> Result<Vec<MachineId>, ProviderError> {
        let mut group = self.journal.group(&self.request.group).map_err(journal_error)?;
        group.places.resize(self.request.count.get() as usize, None);
        for place in &mut group.places {
            place.take_if(|id| self.request.replace.iter().any(|replaced| replaced.as_str() == id));
        }
        let earlier = self.settle_earlier(&mut group).await?;
        if missing(&group) > 0 {
            self.remember_prices(&mut group);
            group.public = self.ground.public;
            let foundation = self.foundation().await?;
            let mut templates = BTreeMap::new();
            let launched = self.markets(&mut group, &foundation, &mut templates, earlier).await;
            // Whoever in the account may read templates could read the user data.
            for name in templates.values() {
                let request = self.region.ec2.delete_launch_template().launch_template_name(name);
                let deleted = self.region.once("DeleteLaunchTemplate", || request.clone().send()).await;
                tracing::debug!(?deleted, "template no longer needed");
            }
            launched?;
        }
        Ok(group.places.into_iter().flatten().map(MachineId::new).collect())
    }

    /// Learns what became of requests whose answer was lost. Returns the number of the next one, and the markets that
    /// are failing inside EC2 just now.
    async fn settle_earlier(&self, group: &mut GroupNotes) -> Result<(u32, Failing), ProviderError> {
        let ours = |create: &Create| {
            create.makes_instances() && create.tags.get(tag::GROUP) == Some(&self.request.group)
        };
        let entries = self.journal.entries().map_err(journal_error)?;
        let entries: Vec<_> = entries.into_iter().filter(|entry| ours(&entry.create)).collect();
        let mut failing = Failing::new();
        for entry in entries.iter().filter(|entry| entry.is_open()) {
            match entry.create.make(self.region, &self.journal).await {
                Ok(made) => self.seat(group, &made)?,
                Err(MakeError::Refused(failure)) if failure.is_inside_aws() => {
                    failing.insert(entry.create.is_spot(), failure);
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
        group: &mut GroupNotes,
        foundation: &Foundation,
        templates: &mut BTreeMap<bool, String>,
        (mut attempt, failing): (u32, Failing),
    ) -> Result<(), ProviderError> {
        let mut tried: Vec<String> = Vec::new();
        let (mut failures, mut patience) = (Vec::new(), PATIENCE);
        for (place, market) in self.spec.markets.iter().enumerate() {
            let next = self.spec.markets.get(place + 1);
            let mut choices: VecDeque<Vec<Pool>> = self.choices(group, *market).into();
            if let Some(failure) = failing.get(&market.is_spot()) {
                tried.push(format!("{market}: {}: {}", failure.code, failure.message));
                failures.push(failure.clone());
                choices.clear();
            }
            // What this market has refused here for good, and where EC2 has sent us already.
            let (mut out, mut sent) = (BTreeSet::new(), BTreeSet::new());
            while let Some(pools) = choices.pop_front() {
                let wanted = missing(group);
                if wanted == 0 {
                    return Ok(());
                }
                let mut pools = pools;
                pools.retain(|pool| {
                    !out.contains(pool)
                        && (sent.contains(pool) || !self.is_known_empty(*market, pool, wanted))
                });
                if pools.is_empty() {
                    tried.push(format!("{market}: no capacity a moment ago"));
                    continue;
                }
                let made = self.buy(group, foundation, templates, *market, pools.clone(), &mut attempt).await;
                let of_pools = match made {
                    Ok(made) => {
                        self.seat(group, &made)?;
                        made.failures
                    }
                    Err(MakeError::Refused(failure)) => {
                        if failure.is_of_our_making() && patience > 0 {
                            patience -= 1;
                            sleep(VISIBLE).await;
                            choices.push_front(pools);
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
                    sleep(VISIBLE).await;
                    choices.push_front(pools);
                    continue;
                }
                for (pool, failure) in &of_pools {
                    self.remember_empty(*market, pool.as_ref(), failure, wanted);
                    out.extend(pool.clone().filter(|_| failure.is_of_the_pool()));
                }
                if is_done {
                    return Ok(());
                }
                // Where EC2 says that there is capacity, it is asked next.
                let named = self.named(group, *market, &of_pools, &out);
                let named: Vec<Pool> = named.into_iter().filter(|pool| sent.insert(pool.clone())).collect();
                if !named.is_empty() {
                    choices.push_front(named);
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
        let market = self.spec.markets[self.spec.markets.len() - 1];
        let mut error = ProviderError::from(gravest(failures).unwrap_or_else(|| self.short_of(market)));
        let (missing, count) = (missing(group), self.request.count);
        error.message = format!("{missing} of {count} machines could not be had: {}", tried.join("; "));
        Err(error)
    }

    /// Seats what a request made all the same that failed inside EC2.
    async fn adopt(&self, group: &mut GroupNotes) -> Result<(), ProviderError> {
        let instances = inventory::instances(self.region, &RunFilter::Run(self.request.run.clone())).await?;
        let ours = |instance: &&Instance| {
            let state = instance.state().and_then(|state| state.name());
            inventory::value(instance.tags(), tag::GROUP) == Some(&self.request.group)
                && matches!(state, Some(InstanceStateName::Pending | InstanceStateName::Running))
        };
        let ids = instances.iter().filter(ours).filter_map(|instance| text::word(instance.instance_id()));
        let replaced = |id: &String| self.request.replace.iter().any(|replaced| replaced.as_str() == id);
        let ids = ids.filter(|id| !replaced(id)).collect();
        self.seat(group, &Made { ids, ..Made::default() })
    }

    /// The pools that EC2 names as having capacity, of those that may serve.
    fn named(
        &self,
        group: &GroupNotes,
        market: Market,
        failures: &[(Option<Pool>, Failure)],
        out: &BTreeSet<Pool>,
    ) -> Vec<Pool> {
        let named = |pool: &Pool| {
            failures.iter().any(|(of, failure)| {
                let same = of.as_ref().is_none_or(|of| of.instance == pool.instance);
                same && failure.zones_with_capacity().any(|zone| zone == pool.zone)
            })
        };
        let mut pools: Vec<Pool> = self.choices(group, market).into_iter().flatten().collect();
        pools.retain(|pool| named(pool) && !out.contains(pool));
        pools
    }

    /// The pools to ask together, one lot after the other. Machines of a group are alike: those that come later
    /// are like the first.
    fn choices(&self, group: &GroupNotes, market: Market) -> Vec<Vec<Pool>> {
        let all = &self.ground.pools;
        let native = market == Market::SpotBlock && self.spec.native_spot_block;
        match &group.pool {
            Some(first) if !self.spec.mixed && group.places.iter().any(Option::is_some) => {
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
        group: &GroupNotes,
        foundation: &Foundation,
        templates: &mut BTreeMap<bool, String>,
        market: Market,
        pools: Vec<Pool>,
        attempt: &mut u32,
    ) -> Result<Made, MakeError> {
        let spot = market.is_spot();
        let template = match templates.entry(spot) {
            Entry::Occupied(made) => made.get().clone(),
            Entry::Vacant(free) => free.insert(self.template(foundation, spot, *attempt).await?).clone(),
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
            token: token(&[&self.region.name, &name]),
        };
        let what = if native { What::Instances(fleet) } else { What::Fleet(fleet) };
        self.create(name, self.group_tags(), what).make(self.region, &self.journal).await
    }

    async fn template(&self, foundation: &Foundation, spot: bool, attempt: u32) -> Result<String, MakeError> {
        let (host_key, _) = self.journal.host_key()?;
        let deadline = self.request.deadline;
        let own = self.spec.user_data.as_deref();
        let user_data = UserData { at: deadline.at, lifetime: deadline.lifetime, host_key: &host_key, own };
        let user_data = user_data.compose().map_err(|error| Failure {
            kind: ProviderErrorKind::InvalidSpec,
            code: "UserData".to_owned(),
            message: error.to_string(),
            operation: "CreateLaunchTemplate",
            region: self.region.name.clone(),
            answered: true,
            in_fleet: false,
            instance: None,
        })?;
        let template = Template {
            image: self.ground.image.id.clone(),
            key: foundation.key.clone(),
            security_group: foundation.security_group.clone(),
            user_data,
            root_device: self.ground.image.root_device.clone(),
            disk: self.spec.disk.clone(),
            iam_profile: self.spec.iam_profile.clone(),
            placement_group: foundation.placement_group.clone(),
            spot,
        };
        let name = tag::template_name(&self.request.run, &self.request.group, attempt);
        let create = self.create(name.clone(), self.group_tags(), What::LaunchTemplate(Box::new(template)));
        create.make(self.region, &self.journal).await.map(|_| name)
    }

    /// The run's security group, key pair and, if asked for, the group's placement group.
    async fn foundation(&self) -> Result<Foundation, ProviderError> {
        let name = tag::name(&self.request.run);
        // Groups that are launched at the same time share it.
        let turn = self.provider.turn(&format!("{} {}", self.request.run, self.region.name));
        let _turn = turn.lock().await;
        let key = What::KeyPair { public_key: self.request.authorized_key.clone() };
        let key = self.create(name.clone(), self.run_tags(), key);
        let placement = self.spec.placement_group.then(|| {
            let name = format!("{name}-{}", self.request.group);
            self.create(name, self.group_tags(), What::PlacementGroup)
        });
        let make = async |create: Create| {
            let made = create.make(self.region, &self.journal).await.map_err(provider_error)?;
            Ok::<_, ProviderError>(made.ids.into_iter().next().unwrap_or_default())
        };
        let placed = async {
            match placement {
                Some(create) => make(create).await.map(Some),
                None => Ok(None),
            }
        };
        let (security_group, key, placement_group) =
            tokio::try_join!(self.security_group(name), make(key), placed)?;
        Ok(Foundation { security_group, key, placement_group })
    }

    async fn security_group(&self, name: String) -> Result<String, ProviderError> {
        if let Some(given) = &self.spec.security_group {
            return Ok(given.clone());
        }
        let from = match self.spec.ssh_from.as_slice() {
            [] => vec![self.provider.own_address().await?],
            given => given.to_vec(),
        };
        let create = self.create(name, self.run_tags(), What::SecurityGroup { vpc: self.ground.vpc.clone() });
        let made = create.make(self.region, &self.journal).await.map_err(provider_error)?;
        let id = made.ids.into_iter().next().unwrap_or_default();
        let opened = (self.request.run.clone(), self.region.name.clone(), "ssh".to_owned());
        if self.provider.opened().await.contains(&opened) {
            return Ok(id);
        }
        let ranges = from.iter().map(|cidr| IpRange::builder().cidr_ip(cidr).description("ssh_from").build());
        let ssh = IpPermission::builder().ip_protocol("tcp").from_port(22).to_port(22);
        let ssh = ssh.set_ip_ranges(Some(ranges.collect())).build();
        // The machines among themselves, by their group: everything.
        let own = UserIdGroupPair::builder().group_id(&id).build();
        let own = IpPermission::builder().ip_protocol("-1").user_id_group_pairs(own).build();
        authorize(self.region, &id, vec![ssh, own]).await?;
        self.provider.opened().await.insert(opened);
        Ok(id)
    }

    fn create(&self, name: String, tags: Tags, what: What) -> Create {
        Create { region: self.region.name.clone(), name, tags, what }
    }

    fn run_tags(&self) -> Tags {
        let mut tags = tag::of_run(self.request, &self.provider.owner);
        // Also a name of the user's own; what makes them the run's is nobody else's to set.
        tags.extend(self.spec.tags.iter().cloned());
        tags
    }

    fn group_tags(&self) -> Tags {
        let mut tags = self.run_tags();
        tags.insert(tag::GROUP.to_owned(), self.request.group.clone());
        tags.insert(tag::USER.to_owned(), self.ground.image.user.clone());
        if !self.spec.tags.iter().any(|(key, _)| key == "Name") {
            tags.insert("Name".to_owned(), format!("{} {}", self.request.experiment, self.request.group));
        }
        tags
    }

    /// Gives new machines the places that are free.
    fn seat(&self, group: &mut GroupNotes, made: &Made) -> Result<(), ProviderError> {
        for id in &made.ids {
            if group.places.iter().flatten().any(|seated| seated == id) {
                continue;
            }
            match group.places.iter_mut().find(|place| place.is_none()) {
                Some(place) => *place = Some(id.clone()),
                // A request that failed inside EC2 may have made it late; teardown finds it by its tag.
                None => tracing::warn!(id, "one machine too many"),
            }
        }
        if group.pool.is_none() || !self.request.replace.is_empty() {
            group.pool = made.pool.clone().or(group.pool.take());
        }
        self.journal.write_group(&self.request.group, group).map_err(journal_error)
    }

    fn remember_prices(&self, group: &mut GroupNotes) {
        for pool in &self.ground.pools {
            for market in &self.spec.markets {
                if let tsunami_core::Price::PerHour(dollars) = self.ground.price(self.spec, *market, pool) {
                    let key = GroupNotes::price_key(market.is_spot(), &pool.instance, &pool.zone);
                    group.prices.insert(key, dollars);
                }
            }
        }
    }

    /// Whether so many were refused there a moment ago, or fewer.
    fn is_known_empty(&self, market: Market, pool: &Pool, wanted: u32) -> bool {
        let key = (self.region.name.clone(), market.is_spot(), pool.clone());
        let wanted = if self.spec.mixed { 1 } else { wanted };
        let is_recent = |(since, least): &(Instant, u32)| since.elapsed() < MEMORY && wanted >= *least;
        self.provider.empty_pools().get(&key).is_some_and(is_recent)
    }

    fn remember_empty(&self, market: Market, pool: Option<&Pool>, failure: &Failure, wanted: u32) {
        if let (Some(pool), ProviderErrorKind::Capacity) = (pool, failure.kind) {
            let key = (self.region.name.clone(), market.is_spot(), pool.clone());
            // What has no room for three may have room for one, unless it would have given what it has.
            let refused = if self.spec.mixed { 1 } else { wanted };
            let mut pools = self.provider.empty_pools();
            let known = pools.get(&key).filter(|(since, _)| since.elapsed() < MEMORY);
            let least = known.map_or(refused, |(_, least)| refused.min(*least));
            pools.insert(key, (Instant::now(), least));
        }
    }

    fn short_of(&self, market: Market) -> Failure {
        let message = format!("fewer {market} machines than asked for, and no reason given");
        Failure::in_fleet(&self.region.name, "InsufficientCapacity", &message)
    }
}

/// Opens a security group. What is open already stays open.
pub(crate) async fn authorize(region: &Region, group: &str, permissions: Vec<IpPermission>) -> Answer<()> {
    authorize_within(region, group, permissions, PATIENCE).await
}

async fn authorize_within(
    region: &Region,
    group: &str,
    permissions: Vec<IpPermission>,
    patience: u32,
) -> Answer<()> {
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
            sleep(VISIBLE).await;
            Box::pin(authorize_within(region, group, permissions, patience - 1)).await
        }
        Err(failure) => Err(failure),
    }
}

fn missing(group: &GroupNotes) -> u32 {
    u32::try_from(group.places.iter().filter(|place| place.is_none()).count()).unwrap_or(u32::MAX)
}

/// Of several failures, the one that says most of what is to be done: what a person has to mend comes first, what
/// passes by itself last.
fn gravest(failures: Vec<(Option<Pool>, Failure)>) -> Option<Failure> {
    let rank = |failure: &Failure| match failure.kind {
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
    i32::try_from((hours * 60).min(LONGEST_BLOCK)).unwrap_or(60)
}

pub(crate) fn provider_error(error: MakeError) -> ProviderError {
    match error {
        MakeError::Refused(failure) => failure.into(),
        MakeError::Journal(error) => journal_error(error),
    }
}

pub(crate) fn journal_error(error: std::io::Error) -> ProviderError {
    let message = "cannot write down what is about to be asked for, so it is not asked for";
    ProviderError::new(ProviderErrorKind::Other, "journal", message).source(error)
}

/// When a thing of a run was made, to the second.
pub(crate) fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
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
