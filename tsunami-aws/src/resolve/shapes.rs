//! Which instance types have what a spec asks for.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{
    ArchitectureType, BareMetal, BurstablePerformance, InstanceGeneration, InstanceRequirementsRequest,
    InstanceType, MemoryMiBRequest, VCpuCountRangeRequest, VirtualizationType,
};
use tsunami_core::ProviderError;

use super::{RegionLookups, ResolveKey, network, offerings, prices};
use crate::error::Result;
use crate::limited::{MAX_PAGE, pages};
use crate::region::Region;
use crate::shape::{Amount, Generation, Shape};
use crate::text;

/// So many types are taken at the most, the cheapest: a request for machines names each of them in each zone, and the
/// price of each is looked up.
const MAX_TYPES: usize = 20;

/// So many types are described at once.
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstanceTypes.html>
const MAX_DESCRIBED: usize = 100;

/// The cheapest instance types of a shape that the zones of a spec have, by the price of its first market.
pub(super) async fn choose(
    key: ResolveKey,
    shape: &Shape,
    region: &Region,
    lookups: &RegionLookups,
    pricing: &aws_sdk_pricing::Client,
) -> Result<Vec<String>, ProviderError> {
    let mut key = ResolveKey { instances: matching(shape, region).await?, ..key };
    if key.instances.is_empty() {
        return Err(nothing_matches(shape, region).await?);
    }
    let (network, offered, sizes) = tokio::try_join!(
        network::network(&key, region, &lookups.default_subnets),
        offerings::offered(&key, region),
        async { Ok(sizes(&key.instances, region).await?) },
    )?;
    let usable = |zone: &String| network.subnets.contains_key(zone);
    let count = key.instances.len();
    key.instances.retain(|instance| offered.get(instance).is_some_and(|zones| zones.iter().any(usable)));
    if key.instances.is_empty() {
        let zones: Vec<&str> = network.subnets.keys().map(String::as_str).collect();
        let message = format!("{} has none of the {count} instance types with {shape}", zones.join(", "));
        let help = "choose another `zone` (or none), `subnet` or `region`";
        return Err(region.invalid(message).key("instance").help(help));
    }
    let mut priced: BTreeMap<String, f64> = BTreeMap::new();
    if key.markets.first().is_some_and(|market| market.is_spot()) {
        for ((instance, zone), price) in prices::spot_prices(&key, region).await? {
            if usable(&zone) {
                priced.entry(instance).and_modify(|least| *least = least.min(price.now)).or_insert(price.now);
            }
        }
    } else {
        let processors = key.instances.iter().filter_map(|instance| sizes.get(instance));
        let processors: BTreeSet<u32> = processors.map(|(processors, _)| *processors).collect();
        priced = prices::on_demand_by_processors(&processors, region, pricing).await;
    }
    // What has no price fits no budget. Where no price is known, the smallest come first.
    if key.instances.iter().any(|instance| priced.contains_key(instance)) {
        key.instances.retain(|instance| priced.contains_key(instance));
    }
    let price = |instance: &String| priced.get(instance).copied().unwrap_or(f64::INFINITY);
    key.instances.sort_by(|a, b| {
        let by_price = price(a).total_cmp(&price(b));
        by_price.then_with(|| sizes.get(a).cmp(&sizes.get(b))).then_with(|| a.cmp(b))
    });
    key.instances.truncate(MAX_TYPES);
    Ok(key.instances)
}

/// The instance types of a shape, in the order of their names. By itself EC2 leaves out bare metal, and what bursts.
async fn matching(shape: &Shape, region: &Region) -> Result<Vec<String>> {
    let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let Amount { least, most } = shape.vcpus;
    let vcpus = VCpuCountRangeRequest::builder().min(number(least)).set_max(most.map(number)).build();
    let mib = |gib: u32| number(gib.saturating_mul(1024));
    let Amount { least, most } = shape.memory_gib;
    let memory = MemoryMiBRequest::builder().min(mib(least)).set_max(most.map(mib)).build();
    let generations = match shape.generation {
        Generation::Current => vec![InstanceGeneration::Current],
        Generation::Previous => vec![InstanceGeneration::Previous],
        Generation::Any => vec![InstanceGeneration::Current, InstanceGeneration::Previous],
    };
    let requirements = InstanceRequirementsRequest::builder()
        .v_cpu_count(vcpus)
        .memory_mib(memory)
        .set_instance_generations(Some(generations))
        .bare_metal(BareMetal::Excluded)
        .burstable_performance(BurstablePerformance::Included)
        .set_excluded_instance_types((!shape.exclude.is_empty()).then(|| shape.exclude.clone()))
        .build();
    let request = region.ec2.get_instance_types_from_instance_requirements();
    let request = request
        .architecture_types(ArchitectureType::from(shape.arch.as_str()))
        .virtualization_types(VirtualizationType::Hvm)
        .instance_requirements(requirements)
        .max_results(MAX_PAGE);
    let found = pages!(region, "GetInstanceTypesFromInstanceRequirements", request.clone(), instance_types);
    let mut names: Vec<String> = found.iter().filter_map(|found| text::word(found.instance_type())).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// What is to be said where no instance type is of a shape: what of it leaves none.
async fn nothing_matches(shape: &Shape, region: &Region) -> Result<ProviderError> {
    let looser = [
        ("`vcpus`", Shape { vcpus: Amount::default(), ..shape.clone() }),
        ("`memory`", Shape { memory_gib: Amount::default(), ..shape.clone() }),
        ("a limit to the generation", Shape { generation: Generation::Any, ..shape.clone() }),
        ("`exclude`", Shape { exclude: Vec::new(), ..shape.clone() }),
    ];
    let mut without = Vec::new();
    for (what, looser) in looser.into_iter().filter(|(_, looser)| looser != shape) {
        let count = matching(&looser, region).await?.len();
        if count > 0 {
            without.push(format!("{count} without {what}"));
        }
    }
    let help = match without.as_slice() {
        [] => "no single part of it leaves out all others: loosen more than one".to_owned(),
        without => format!("there would be {}", without.join(", ")),
    };
    Ok(region.invalid(format!("no instance type there has {shape}")).key("instance").help(help))
}

/// The virtual processors of each type, and its memory in MiB.
async fn sizes(instances: &[String], region: &Region) -> Result<BTreeMap<String, (u32, i64)>> {
    let mut sizes = BTreeMap::new();
    for some in instances.chunks(MAX_DESCRIBED) {
        let types = some.iter().map(|name| InstanceType::from(name.as_str())).collect();
        let request = region.ec2.describe_instance_types().set_instance_types(Some(types));
        let answer = region.call("DescribeInstanceTypes", || request.clone().send()).await?;
        for info in answer.instance_types() {
            let memory = info.memory_info().and_then(|memory| memory.size_in_mib()).unwrap_or_default();
            if let (Some(name), Some(processors)) = (info.instance_type(), offerings::processors(info)) {
                sizes.insert(name.as_str().to_owned(), (processors, memory));
            }
        }
    }
    Ok(sizes)
}
