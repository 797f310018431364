//! What is left of the account's quotas of virtual processors.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_ec2::types::{Filter, Instance, InstanceLifecycleType};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tsunami_core::{ProviderError, ProviderErrorKind};

use crate::error::{AwsError, Result};
use crate::limited::{MAX_PAGE, pages};
use crate::quota::Quota;
use crate::region::Region;
use crate::spec::{Ec2Spec, Market};
use crate::text;

/// How long what was looked up is gone by: groups are quoted together.
const QUOTAS_TTL: Duration = Duration::from_secs(15);

/// How long is waited for what is only good to know.
const QUOTAS_TIMEOUT: Duration = Duration::from_secs(15);

/// What a region's quotas are, and what is used of them, as last looked up.
#[derive(Debug, Default)]
pub(super) struct QuotaCache {
    limits: BTreeMap<&'static str, (Instant, u32)>,
    used: Option<(Instant, BTreeMap<Quota, u32>)>,
}

/// Whether quotas have room for so many machines of any one of the types, of which each takes so many virtual
/// processors. What is to be said where only some markets have, or it can't be found out; an error where none has.
pub(super) async fn check(
    spec: &Ec2Spec,
    region: &Region,
    cache: &Mutex<QuotaCache>,
    processors: &BTreeMap<String, u32>,
    count: u32,
) -> Result<Vec<String>, ProviderError> {
    let looked_up = timeout(QUOTAS_TIMEOUT, left(spec, region, cache, processors)).await;
    let left = match looked_up {
        Ok(Ok(left)) => left,
        Ok(Err(failure)) => return Ok(vec![unchecked(region, &failure.explained())]),
        Err(_) => {
            let limit = humantime::format_duration(QUOTAS_TIMEOUT);
            return Ok(vec![unchecked(region, &format!("no answer within {limit}"))]);
        }
    };
    let full = spec.markets.iter().filter_map(|market| {
        shortage(spec, *market, processors, &left, count).map(|(quota, why)| (*market, quota, why))
    });
    let full: Vec<(Market, Quota, String)> = full.collect();
    let told: Vec<String> = full.iter().map(|(market, _, why)| format!("{market}: {why}")).collect();
    match full.first() {
        Some((_, quota, _)) if full.len() == spec.markets.len() => {
            let message = format!("the account's quotas have no room for it: {}", told.join("; "));
            let error = ProviderError::new(ProviderErrorKind::Quota, region.name.clone(), message);
            Err(error.help(quota.help(&region.name)))
        }
        _ => Ok(told),
    }
}

fn unchecked(region: &Region, why: &str) -> String {
    format!("the account's quotas in {} are not checked: {why}", region.name)
}

/// Why a market has no room for a group, and the quota that keeps it.
fn shortage(
    spec: &Ec2Spec,
    market: Market,
    processors: &BTreeMap<String, u32>,
    left: &BTreeMap<Quota, u32>,
    count: u32,
) -> Option<(Quota, String)> {
    // What is reserved counts already.
    if market == Market::Reservation {
        return None;
    }
    // For how many machines each quota has room, with the type that makes the most of it.
    let mut rooms: BTreeMap<Quota, (u32, &str, u32)> = BTreeMap::new();
    for instance in &spec.instances {
        let quota = Quota::of(instance, market.is_spot());
        let (Some(left), Some(each)) = (left.get(&quota), processors.get(instance)) else { return None };
        let room = left / (*each).max(1);
        let best = rooms.entry(quota).or_insert((room, instance, *each));
        if room > best.0 {
            *best = (room, instance, *each);
        }
    }
    let room = match spec.mixed {
        true => rooms.values().fold(0, |all: u32, (room, ..)| all.saturating_add(*room)),
        false => rooms.values().map(|(room, ..)| *room).max()?,
    };
    if room >= count {
        return None;
    }
    let (quota, (_, instance, each)) = rooms.into_iter().max_by_key(|(_, (room, ..))| *room)?;
    let why = format!(
        "the quota \"{}\" has {} virtual processors left, and {count} of {instance} take {}",
        quota.name,
        left[&quota],
        u64::from(count) * u64::from(each)
    );
    Some((quota, why))
}

/// What is left of all quotas that a group may count against.
async fn left(
    spec: &Ec2Spec,
    region: &Region,
    cache: &Mutex<QuotaCache>,
    processors: &BTreeMap<String, u32>,
) -> Result<BTreeMap<Quota, u32>> {
    let mut known = cache.lock().await;
    let wanted = spec.markets.iter().flat_map(|market| {
        spec.instances
            .iter()
            .filter(|instance| processors.contains_key(*instance))
            .map(|instance| Quota::of(instance, market.is_spot()))
    });
    let wanted: Vec<Quota> = wanted.collect();
    for quota in &wanted {
        if known.limits.get(quota.code).is_none_or(|(at, _)| at.elapsed() >= QUOTAS_TTL) {
            let limit = limit(region, quota).await?;
            known.limits.insert(quota.code, (Instant::now(), limit));
        }
    }
    if known.used.as_ref().is_none_or(|(at, _)| at.elapsed() >= QUOTAS_TTL) {
        known.used = Some((Instant::now(), used(region).await?));
    }
    let used = |quota: &Quota| {
        known.used.as_ref().and_then(|(_, used)| used.get(quota)).copied().unwrap_or_default()
    };
    let left = wanted.into_iter().map(|quota| {
        let limit = known.limits.get(quota.code).map_or(0, |(_, limit)| *limit);
        let left = limit.saturating_sub(used(&quota));
        (quota, left)
    });
    Ok(left.collect())
}

/// The quota itself.
async fn limit(region: &Region, quota: &Quota) -> Result<u32> {
    let request = region.service_quotas.get_service_quota().service_code("ec2").quota_code(quota.code);
    let answer = region.call("GetServiceQuota", || request.clone().send()).await?;
    match answer.quota().and_then(|quota| quota.value()) {
        Some(limit) if limit >= 0.0 => Ok(limit as u32),
        _ => {
            let message = format!("the answer has no value for {}", quota.code);
            let kind = ProviderErrorKind::Other;
            Err(AwsError::ours(kind, "UnknownQuota", message, "GetServiceQuota", &region.name))
        }
    }
}

/// The virtual processors of all machines in the region, whosever they are, by the quotas that they count against.
async fn used(region: &Region) -> Result<BTreeMap<Quota, u32>> {
    let states = Filter::builder().name("instance-state-name").values("pending").values("running").build();
    let request = region.ec2.describe_instances().filters(states).max_results(MAX_PAGE);
    let mut used: BTreeMap<Quota, u32> = BTreeMap::new();
    for reservation in pages!(region, "DescribeInstances", request.clone(), reservations) {
        for instance in reservation.instances() {
            let Some(kind) = text::word(instance.instance_type().map(|kind| kind.as_str())) else { continue };
            let spot = instance.instance_lifecycle() == Some(&InstanceLifecycleType::Spot);
            let all = used.entry(Quota::of(&kind, spot)).or_default();
            *all = all.saturating_add(processors(instance));
        }
    }
    Ok(used)
}

fn processors(instance: &Instance) -> u32 {
    let options = instance.cpu_options();
    let cores = options.and_then(|options| options.core_count()).unwrap_or_default();
    let threads = options.and_then(|options| options.threads_per_core()).unwrap_or(1);
    u32::try_from(cores.saturating_mul(threads)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_market_has_room_if_one_type_has_or_all_together_where_they_may_be_mixed() {
        let processors = BTreeMap::from([("c7g.large".to_owned(), 2), ("g5g.xlarge".to_owned(), 4)]);
        let quota = |instance| Quota::of(instance, false);
        let left = BTreeMap::from([(quota("c7g.large"), 5), (quota("g5g.xlarge"), 7)]);
        let spec = |instances: &[&str], mixed| Ec2Spec {
            instances: instances.iter().map(|name| (*name).to_owned()).collect(),
            mixed,
            ..Ec2Spec::default()
        };
        let short = |spec: Ec2Spec, count| shortage(&spec, Market::OnDemand, &processors, &left, count);
        assert_eq!(short(spec(&["c7g.large"], false), 2), None);
        let (of, why) = short(spec(&["c7g.large"], false), 3).unwrap();
        assert_eq!(of, quota("c7g.large"));
        assert!(why.contains("has 5 virtual processors left, and 3 of c7g.large take 6"), "{why}");
        let both = &["c7g.large", "g5g.xlarge"];
        assert!(short(spec(both, false), 3).is_some());
        assert_eq!(short(spec(both, true), 3), None);
        assert!(short(spec(both, true), 4).is_some());
        // What a type takes is not known.
        assert_eq!(short(spec(&["c7g.large", "m9.novel"], false), 100), None);
    }
}
