//! Instance types: what they are, and which zones have them.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{Filter, InstanceType, InstanceTypeInfo, LocationType};
use tsunami_core::ProviderError;

use super::ResolveKey;
use crate::error::Result;
use crate::limited::pages;
use crate::region::Region;

/// The most that an hour of a virtual processor of a t machine costs beyond its credits, in US dollars.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/burstable-performance-instances-unlimited-mode.html>
const SURPLUS_DOLLARS_PER_VCPU_HOUR: f64 = 0.05;

/// What the types of a spec have in common, and what each has.
pub(super) struct Types {
    /// As images name it.
    pub(super) architecture: String,
    /// What bursting can cost, in US dollars an hour.
    pub(super) surplus: f64,
    /// The virtual processors of each.
    pub(super) processors: BTreeMap<String, u32>,
}

/// Looks the types of a spec up, which must be there and of one architecture.
pub(super) async fn types(key: &ResolveKey, region: &Region) -> Result<Types, ProviderError> {
    let types = key.instances.iter().map(|name| InstanceType::from(name.as_str()));
    let request = region.ec2.describe_instance_types().set_instance_types(Some(types.collect()));
    let answer = region.call("DescribeInstanceTypes", || request.clone().send()).await.map_err(|failure| {
        let unknown = failure.code == "InvalidInstanceType";
        let error = ProviderError::from(failure);
        let help = format!(
            "`aws ec2 describe-instance-types --region {} --query 'InstanceTypes[].InstanceType'` lists the types \
             of the region",
            region.name
        );
        if unknown { error.help(help) } else { error }
    })?;
    let mut by_architecture: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for info in answer.instance_types() {
        let supported = info.processor_info().map(|processor| processor.supported_architectures());
        let supported = supported.unwrap_or_default().iter().map(|architecture| architecture.as_str());
        let architecture =
            supported.into_iter().find(|architecture| matches!(*architecture, "arm64" | "x86_64"));
        let name = info.instance_type().map_or("", InstanceType::as_str);
        by_architecture.entry(architecture.unwrap_or("unknown").to_owned()).or_default().push(name);
    }
    let known: BTreeSet<&str> = by_architecture.values().flatten().copied().collect();
    let unknown: Vec<_> =
        key.instances.iter().filter(|name| !known.contains(name.as_str())).cloned().collect();
    if !unknown.is_empty() {
        return Err(region
            .invalid(format!("there is no instance type {}", unknown.join(", ")))
            .key("instance"));
    }
    let mut architectures = by_architecture.into_iter();
    match (architectures.next(), architectures.next()) {
        (Some((architecture, _)), None) if architecture != "unknown" => {
            let all = answer.instance_types().iter();
            let bursts = all.clone().filter(|info| info.burstable_performance_supported() == Some(true));
            let surplus =
                f64::from(bursts.filter_map(processors).max().unwrap_or(0)) * SURPLUS_DOLLARS_PER_VCPU_HOUR;
            let each =
                all.filter_map(|info| Some((info.instance_type()?.as_str().to_owned(), processors(info)?)));
            Ok(Types { architecture, surplus, processors: each.collect() })
        }
        (Some((a, of_a)), Some((b, of_b))) => {
            let message = format!(
                "one image can't serve both {} ({a}) and {} ({b}): machines of a group are of one architecture",
                of_a.join(", "),
                of_b.join(", ")
            );
            Err(region.invalid(message).key("instance"))
        }
        _ => Err(region.invalid("the instance types are neither x86_64 nor arm64").key("instance")),
    }
}

/// The virtual processors of a type.
pub(super) fn processors(info: &InstanceTypeInfo) -> Option<u32> {
    info.v_cpu_info()?.default_v_cpus().and_then(|count| u32::try_from(count).ok())
}

/// A filter takes so many values.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html>
const MAX_FILTER_VALUES: usize = 200;

/// The zones that have each type.
pub(super) async fn offered(
    key: &ResolveKey,
    region: &Region,
) -> Result<BTreeMap<String, BTreeSet<String>>, ProviderError> {
    let mut offered: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for some in key.instances.chunks(MAX_FILTER_VALUES) {
        let types = Filter::builder().name("instance-type").set_values(Some(some.to_vec())).build();
        let request = region.ec2.describe_instance_type_offerings();
        let request = request.location_type(LocationType::AvailabilityZone).filters(types);
        let found = pages!(region, "DescribeInstanceTypeOfferings", request.clone(), instance_type_offerings);
        for offering in found {
            if let (Some(kind), Some(zone)) = (offering.instance_type(), offering.location()) {
                offered.entry(kind.as_str().to_owned()).or_default().insert(zone.to_owned());
            }
        }
    }
    Ok(offered)
}

/// What is to be said where no zone that may be used has any of the types.
pub(super) fn not_offered(
    key: &ResolveKey,
    region: &Region,
    subnets: &BTreeMap<String, String>,
    offered: &BTreeMap<String, BTreeSet<String>>,
) -> ProviderError {
    let zones: Vec<&str> = subnets.keys().map(String::as_str).collect();
    let has = key.instances.iter().map(|instance| match offered.get(instance) {
        Some(zones) => {
            let zones: Vec<&str> = zones.iter().map(String::as_str).collect();
            format!("{instance} is in {}", zones.join(", "))
        }
        None => format!("{instance} is nowhere in {}", region.name),
    });
    let has: Vec<_> = has.collect();
    region
        .invalid(format!(
            "none of {} has {}: {}",
            zones.join(", "),
            key.instances.join(" or "),
            has.join("; ")
        ))
        .key("instance")
        .help("choose another `zone` (or none), `subnet`, `instance` or `region`")
}
