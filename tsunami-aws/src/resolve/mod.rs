//! What a spec comes to in its region: the image, the pools that could serve it, and their prices.

mod check;
mod images;
mod network;
mod offerings;
mod prices;
mod quotas;
mod reservations;
mod shapes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;
use tsunami_core::{Price, ProviderError};

pub(crate) use self::check::{NO_MARKET, check};
use self::images::Image;
#[cfg(feature = "experiment")]
pub(crate) use self::network::without_way;
use self::network::{Network, Subnet};
use self::offerings::Types;
use self::prices::SpotPrice;
use self::quotas::QuotaCache;
pub(crate) use self::reservations::{Reserved, block_end};
use crate::model::Pool;
use crate::region::Region;
use crate::shape::Shape;
use crate::spec::{Disk, Ec2Spec, Market, Reach, Reservation};

/// What a public IPv4 address costs, in US dollars an hour, everywhere.
/// <https://aws.amazon.com/vpc/pricing/>
const ADDRESS_DOLLARS_PER_HOUR: f64 = 0.005;

/// No region asks more for a GiB of gp2 or gp3 and month, in US dollars.
/// <https://aws.amazon.com/ebs/pricing/>
const DISK_DOLLARS_PER_GIB_MONTH: f64 = 0.20;
const HOURS_PER_MONTH: f64 = 730.0;

/// Of so many pools the range of the spot price is told.
const RANGES: usize = 6;

/// Looks specs up, each once.
#[derive(Debug)]
pub(crate) struct Resolver {
    pricing: aws_sdk_pricing::Client,
    /// By region.
    lookups: HashMap<String, RegionLookups>,
    resolved: Mutex<HashMap<ResolveKey, Arc<OnceCell<Arc<ResolvedSpec>>>>>,
    /// Which types have what was asked for, by that.
    chosen: Mutex<HashMap<String, Arc<OnceCell<Vec<String>>>>>,
}

/// What was looked up of a region, for all groups in it.
#[derive(Debug, Default)]
struct RegionLookups {
    default_subnets: OnceCell<Vec<Subnet>>,
    quotas: tokio::sync::Mutex<QuotaCache>,
}

/// What of a spec is looked up. Nothing else of it takes part, so that specs with one key have one answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ResolveKey {
    region: String,
    zone: Option<String>,
    subnet: Option<String>,
    reach: Option<Reach>,
    instances: Vec<String>,
    image: String,
    user: Option<String>,
    disk: Option<Disk>,
    /// Their order decides which pool comes first.
    markets: Vec<Market>,
    reservations: Vec<Reservation>,
}

impl ResolveKey {
    fn of(spec: &Ec2Spec, region: &Region) -> Self {
        Self {
            region: region.name.clone(),
            zone: spec.zone.clone(),
            subnet: spec.subnet.clone(),
            reach: spec.reach,
            instances: spec.instances.clone(),
            image: spec.image.clone(),
            user: spec.user.clone(),
            disk: spec.disk.clone(),
            markets: spec.markets.clone(),
            reservations: spec.reservations.clone(),
        }
    }
}

impl Resolver {
    pub(crate) fn new(pricing: aws_sdk_pricing::Client, regions: &[Region]) -> Self {
        let lookups = regions.iter().map(|region| (region.name.clone(), RegionLookups::default()));
        Self { pricing, lookups: lookups.collect(), resolved: Mutex::default(), chosen: Mutex::default() }
    }

    /// Looks a spec up, unless that was done before. Creates nothing.
    pub(crate) async fn resolve(
        &self,
        spec: &Ec2Spec,
        region: &Region,
    ) -> Result<Arc<ResolvedSpec>, ProviderError> {
        let key = ResolveKey::of(spec, region);
        let cell = {
            let mut resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner);
            resolved.entry(key.clone()).or_default().clone()
        };
        // Who comes second waits for the first, and tries it if that one fails.
        let resolve = async || {
            let lookups = self.lookups(region)?;
            ResolvedSpec::of(&key, region, lookups, &self.pricing).await.map(Arc::new)
        };
        cell.get_or_try_init(resolve).await.cloned()
    }

    /// Which instance types have what a spec asks for, as was found out before, if it was. Creates nothing.
    pub(crate) async fn choose(
        &self,
        spec: &Ec2Spec,
        shape: &Shape,
        region: &Region,
    ) -> Result<Vec<String>, ProviderError> {
        let cell = {
            let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
            chosen.entry(asked(spec, shape, region)).or_default().clone()
        };
        let choose = async || {
            let lookups = self.lookups(region)?;
            shapes::choose(ResolveKey::of(spec, region), shape, region, lookups, &self.pricing).await
        };
        cell.get_or_try_init(choose).await.cloned()
    }

    /// The reservations that a spec asks for, as they are now.
    pub(crate) async fn reserved(
        &self,
        spec: &Ec2Spec,
        region: &Region,
        resolved: &ResolvedSpec,
    ) -> Result<Vec<Reserved>, ProviderError> {
        let subnets = resolved.pools.iter().map(|pool| (pool.zone.clone(), pool.subnet.clone())).collect();
        reservations::reservations(&ResolveKey::of(spec, region), region, &subnets).await
    }

    /// Whether the account's quotas have room for so many machines: what is to be said where only some markets have,
    /// or it can't be found out; an error where none has.
    pub(crate) async fn check_quotas(
        &self,
        spec: &Ec2Spec,
        region: &Region,
        resolved: &ResolvedSpec,
        count: u32,
    ) -> Result<Vec<String>, ProviderError> {
        quotas::check(spec, region, &self.lookups(region)?.quotas, &resolved.processors, count).await
    }

    fn lookups(&self, region: &Region) -> Result<&RegionLookups, ProviderError> {
        self.lookups
            .get(&region.name)
            .ok_or_else(|| region.invalid("it is not among this provider's regions".to_owned()))
    }
}

/// What a spec asks for that names no types: all on which it depends which ones they are.
pub(crate) fn asked(spec: &Ec2Spec, shape: &Shape, region: &Region) -> String {
    let place = spec.subnet.as_ref().or(spec.zone.as_ref()).unwrap_or(&region.name);
    let cheap = spec.markets.first().map_or("on-demand", |market| market.pricing());
    format!("{shape}, in {place}, the cheapest {cheap}")
}

/// A spec, looked up.
#[derive(Clone, Debug)]
pub(crate) struct ResolvedSpec {
    pub(crate) image: Image,
    pub(crate) vpc: String,
    /// Whether machines get a public address.
    pub(crate) public: bool,
    /// Whether they have addresses of IPv6 and no others.
    pub(crate) ipv6: bool,
    /// The blocks of addresses of their network, where they get none.
    pub(crate) blocks: Vec<String>,
    /// Why what machines cost here is not known.
    pub(crate) unpriced: Option<String>,
    /// Every type in every zone that has it, the cheapest first.
    pub(crate) pools: Vec<Pool>,
    /// The virtual processors of each type.
    pub(crate) processors: BTreeMap<String, u32>,
    /// By type and zone.
    pub(crate) spot: BTreeMap<(String, String), SpotPrice>,
    /// US dollars an hour, by type.
    pub(crate) on_demand: BTreeMap<String, f64>,
    /// What a machine that may burst can cost beside that, in US dollars an hour, at full load.
    pub(crate) surplus: f64,
    pub(crate) notes: Vec<String>,
}

impl ResolvedSpec {
    async fn of(
        key: &ResolveKey,
        region: &Region,
        lookups: &RegionLookups,
        pricing: &aws_sdk_pricing::Client,
    ) -> Result<Self, ProviderError> {
        let Types { architecture, surplus, processors } = offerings::types(key, region).await?;
        let (image, network, offered, spot, on_demand) = tokio::try_join!(
            images::image(key, region, &architecture),
            network::network(key, region, &lookups.default_subnets),
            offerings::offered(key, region),
            prices::spot_prices(key, region),
            async { Ok(prices::on_demand_prices(key, region, pricing).await) },
        )?;
        let Network { vpc, subnets, public, ipv6, blocks, unpriced, notes: of_network } = network;
        let (on_demand, mut notes) = on_demand;
        notes.extend(of_network);
        if let Some(why) = &unpriced {
            notes.push(format!("what machines cost is not known here: {why}"));
        }
        let mut pools = Vec::new();
        for instance in &key.instances {
            let zones = offered.get(instance);
            for (zone, subnet) in
                subnets.iter().filter(|(zone, _)| zones.is_some_and(|it| it.contains(*zone)))
            {
                let pool = Pool { instance: instance.clone(), zone: zone.clone(), subnet: subnet.clone() };
                pools.push(pool);
            }
        }
        if pools.is_empty() {
            return Err(offerings::not_offered(key, region, &subnets, &offered));
        }
        let price = |pool: &Pool| {
            let of_pool = (pool.instance.clone(), pool.zone.clone());
            let price = match key.markets.first().is_some_and(|market| market.is_spot()) {
                true => spot.get(&of_pool).map(|price| price.now),
                false => on_demand.get(&pool.instance).copied(),
            };
            price.unwrap_or(f64::INFINITY)
        };
        pools.sort_by(|a, b| price(a).total_cmp(&price(b)));
        if let Some(why) = &image.unpriced {
            notes.push(format!("what image {} costs is not known here: {why}", image.id));
        }
        if let Some(disk) = &key.disk {
            if disk.gib.is_some_and(|gib| gib < image.gib) {
                let message = format!(
                    "a disk of {} GiB is too small for {}, which has {} GiB",
                    disk.gib.unwrap_or_default(),
                    image.id,
                    image.gib
                );
                return Err(region.invalid(message).key("disk"));
            }
            if let Some(message) = disk.beyond_limits(disk.gib.unwrap_or(image.gib)) {
                return Err(region.invalid(message).key("disk"));
            }
            if !disk.is_plain() {
                notes.push(format!("what such a disk of type {} costs is not known here", disk.kind));
            }
        }
        Ok(Self {
            image,
            vpc,
            public,
            ipv6,
            blocks,
            unpriced,
            pools,
            processors,
            spot,
            on_demand,
            surplus,
            notes,
        })
    }

    /// What an hour of a machine costs as it looks now, its disk and address included.
    pub(crate) fn price(&self, spec: &Ec2Spec, market: Market, pool: &Pool) -> Price {
        let machine = match market.is_spot() {
            true => self.spot_price(pool).map(|price| price.now),
            false => self.on_demand.get(&pool.instance).copied(),
        };
        match machine.zip(self.extras(spec)) {
            Some((machine, extras)) => Price::PerHour(machine + extras),
            None => Price::Unknown,
        }
    }

    fn spot_price(&self, pool: &Pool) -> Option<SpotPrice> {
        self.spot.get(&(pool.instance.clone(), pool.zone.clone())).copied()
    }

    /// What there is to know of spot prices: the range of each pool over the last day, and what a limit means for it.
    pub(crate) fn spot_notes(&self, spec: &Ec2Spec) -> Vec<String> {
        if !spec.markets.iter().any(|market| market.is_spot()) {
            return Vec::new();
        }
        let priced = self.pools.iter().filter_map(|pool| Some((pool, self.spot_price(pool)?)));
        let mut notes: Vec<String> = priced
            .clone()
            .take(RANGES)
            .map(|(pool, price)| {
                let range = match price.least < price.most {
                    true => format!("from ${:.4} to ${:.4}", price.least, price.most),
                    false => format!("${:.4} all day", price.most),
                };
                format!("spot in the last day: {pool}: {range} an hour")
            })
            .collect();
        if let more @ 1.. = priced.clone().count().saturating_sub(RANGES) {
            notes.push(format!("spot in the last day: {more} more pools"));
        }
        if let Some(limit) = spec.max_price {
            notes.push(format!(
                "max_price = {limit} makes interruptions likelier, and saves nothing while prices are below it: EC2 takes a \
                 machine back when its price exceeds that; without it the limit is the on-demand price"
            ));
            let (above, all) =
                (priced.clone().filter(|(_, price)| price.most > limit).count(), priced.count());
            if above > 0 {
                notes
                    .push(format!("in the last day the price was above max_price in {above} of {all} pools"));
            }
        }
        notes
    }

    /// What an hour of each type costs as it looks now in a market, the types as the pools have them.
    pub(crate) fn prices(&self, spec: &Ec2Spec, market: Market) -> Vec<(&str, Price)> {
        let mut prices: Vec<(&str, Price)> = Vec::new();
        for pool in &self.pools {
            let price = self.price(spec, market, pool);
            match prices.iter_mut().find(|(instance, _)| *instance == pool.instance) {
                Some((_, Price::PerHour(least))) => {
                    if let Price::PerHour(price) = price {
                        *least = least.min(price);
                    }
                }
                Some((_, known)) => *known = price,
                None => prices.push((&pool.instance, price)),
            }
        }
        prices
    }

    /// The most that an hour of a machine can cost, whatever market and pool it comes from.
    pub(crate) fn max_price(&self, spec: &Ec2Spec) -> Price {
        let types: BTreeSet<&String> = self.pools.iter().map(|pool| &pool.instance).collect();
        // Spot never costs more than on-demand, unless somebody says so.
        let full = |instance: &String| self.on_demand.get(instance).copied();
        let of_market = |market: &Market| match (market.is_spot(), spec.max_price) {
            (true, Some(price)) => Some(price),
            _ => types
                .iter()
                .map(|instance| full(instance))
                .try_fold(0.0, |most: f64, price| Some(most.max(price?))),
        };
        let machine =
            spec.markets.iter().map(of_market).try_fold(0.0, |most: f64, price| Some(most.max(price?)));
        match machine.zip(self.extras(spec)) {
            Some((machine, extras)) => Price::PerHour(machine + self.surplus + extras),
            None => Price::Unknown,
        }
    }

    /// The disk and the address.
    fn extras(&self, spec: &Ec2Spec) -> Option<f64> {
        let root = spec.disk.as_ref().and_then(|disk| disk.gib).unwrap_or(self.image.gib);
        let gib = root + self.image.more_gib;
        let known = spec.disk.as_ref().is_none_or(Disk::is_plain);
        let address = if self.public && !self.ipv6 { ADDRESS_DOLLARS_PER_HOUR } else { 0.0 };
        (known && self.image.unpriced.is_none() && self.unpriced.is_none())
            .then(|| address + f64::from(gib) * DISK_DOLLARS_PER_GIB_MONTH / HOURS_PER_MONTH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_that_it_can_cost_leaves_nothing_out_that_is_not_known() {
        let image = Image {
            id: "ami-1".into(),
            name: "linux".into(),
            root_device: "/dev/xvda".into(),
            gib: 8,
            more_gib: 0,
            unpriced: None,
            user: "admin".into(),
            created: None,
            deprecated: None,
        };
        let pool = Pool { instance: "t4g.small".into(), zone: "a".into(), subnet: "s".into() };
        let resolved = ResolvedSpec {
            image,
            vpc: "vpc-1".into(),
            public: true,
            ipv6: false,
            blocks: Vec::new(),
            unpriced: None,
            pools: vec![pool],
            processors: BTreeMap::new(),
            spot: BTreeMap::new(),
            on_demand: BTreeMap::from([("t4g.small".to_owned(), 0.02)]),
            surplus: 0.0,
            notes: Vec::new(),
        };
        let most = |resolved: &ResolvedSpec| match resolved.max_price(&Ec2Spec::default()) {
            Price::PerHour(dollars) => Some(dollars),
            _ => None,
        };
        let plain = most(&resolved).unwrap();
        assert!(plain > 0.02 + ADDRESS_DOLLARS_PER_HOUR, "{plain}");
        // What there is only of IPv4.
        for free in [
            ResolvedSpec { public: false, ..resolved.clone() },
            ResolvedSpec { ipv6: true, ..resolved.clone() },
        ] {
            assert!((plain - most(&free).unwrap() - ADDRESS_DOLLARS_PER_HOUR).abs() < 1e-9);
        }
        // What bursts can cost more; a further volume does.
        assert!(most(&ResolvedSpec { surplus: 0.1, ..resolved.clone() }).unwrap() > plain + 0.099);
        let more = Image { more_gib: 100, ..resolved.image.clone() };
        assert!(most(&ResolvedSpec { image: more, ..resolved.clone() }).unwrap() > plain + 0.02);
        let paid = Image { unpriced: Some("RHEL".into()), ..resolved.image.clone() };
        assert_eq!(most(&ResolvedSpec { image: paid, ..resolved.clone() }), None);
        let dedicated = Some("of dedicated tenancy".to_owned());
        assert_eq!(most(&ResolvedSpec { unpriced: dedicated, ..resolved.clone() }), None);
        assert_eq!(most(&ResolvedSpec { on_demand: BTreeMap::new(), ..resolved }), None);
    }
}
