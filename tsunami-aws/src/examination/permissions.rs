//! Whether a run's requests would be allowed: made as dry runs, which EC2 answers without doing them.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use aws_sdk_ec2::types::{
    FleetLaunchTemplateConfigRequest, FleetLaunchTemplateSpecificationRequest, FleetType,
    IamInstanceProfileSpecification, InstanceMarketOptionsRequest, InstanceType, MarketType,
    PlacementStrategy, RequestLaunchTemplateData, ResourceType, TargetCapacitySpecificationRequest,
};
use aws_smithy_types::Blob;
use tsunami_core::registry::Finding;
use tsunami_core::{Deadline, LaunchRequest, MachineSpec, RunFilter, RunId};

use super::{ExaminedGroup, is_denied, listed};
use crate::error::{AwsError, Result};
use crate::region::Region;
use crate::{inventory, tag};

/// A key that nobody has, for a request that is not carried out.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJhQ1mY0rN3Lk4T7m8O1x9vHb2cQnT6yZr0eWfXkUd5g";

/// What only things that are there tell.
const UNTOLD: &str = "whether what a run has made may be changed and removed shows only at what is there";

/// Asks for all that a launch of a group would ask for, and has none of it done.
pub(super) async fn examine(group: &ExaminedGroup<'_>) -> Vec<Finding> {
    let check = format!("permissions in {}", group.region.name);
    let (mut allowed, mut findings) = (BTreeSet::new(), Vec::new());
    let mut untold = Vec::new();
    for (action, answer) in ask(group).await {
        match answer {
            Ok(()) => {
                allowed.insert(action);
            }
            Err(failure) if failure.code == "DryRunOperation" => {
                allowed.insert(action);
            }
            Err(failure) if is_denied(&failure) => {
                findings.push(Finding::refused(format!("permission for {action}"), &failure.into()));
            }
            // EC2 may look for what a request names before it looks at who asks.
            Err(failure) if failure.is_of_our_making() || failure.kind.is_transient() => untold.push(action),
            Err(failure) => findings.push(Finding::refused(group.called("launch"), &failure.into())),
        }
    }
    if !allowed.is_empty() {
        findings.push(Finding::ok(check.clone(), format!("{} would be allowed", listed(&allowed))));
    }
    findings.extend(unlisted(group.region).await);
    let untold =
        if untold.is_empty() { String::new() } else { format!("{} can't be tried; ", untold.join(", ")) };
    findings.push(Finding::not_checked(check, format!("{untold}{UNTOLD}")));
    findings
}

/// What the caller may not list: nobody would know whether it is gone when a run ends, and that of machines ends the run as
/// soon as it has some.
async fn unlisted(region: &Region) -> Vec<Finding> {
    let nobodys = RunFilter::Run(RunId::generate(SystemTime::now(), fastrand::u64(..)));
    let (machines, others) =
        tokio::join!(inventory::instances(region, &nobodys), inventory::resources(region, &nobodys));
    let failures = machines.err().into_iter().chain(others.into_iter().filter_map(|(_, found)| found.err()));
    let refused = failures.filter(is_denied);
    refused.map(|it| Finding::refused(format!("permission for {}", it.operation), &it.into())).collect()
}

/// The requests of a launch, tagged as those are, for permissions may depend on tags.
async fn ask(group: &ExaminedGroup<'_>) -> Vec<(&'static str, Result<(), AwsError>)> {
    let ExaminedGroup { region, spec, resolved, .. } = group;
    let (ec2, now) = (&region.ec2, SystemTime::now());
    let lifetime = Duration::from_secs(3600);
    let run = RunId::generate(now, fastrand::u64(..));
    let request = LaunchRequest::new(
        run.clone(),
        group.name,
        NonZeroU32::MIN,
        MachineSpec::default(),
        Deadline { at: now + lifetime, lifetime },
    )
    .experiment("doctor");
    let mut tags = tag::of_run(&request, &group.provider.launches.owner);
    tags.extend(spec.tags.iter().cloned());
    let tagged = |kind: ResourceType| tag::specification(&tags, kind);
    let name = tag::name(&run);
    let mut asked = Vec::new();

    let request = ec2.import_key_pair().dry_run(true).key_name(&name).public_key_material(Blob::new(KEY));
    let request = request.tag_specifications(tagged(ResourceType::KeyPair));
    let answer = region.call("ImportKeyPair", || request.clone().send()).await;
    asked.push(("ImportKeyPair", answer.map(drop)));

    if spec.security_group.is_none() {
        let request = ec2.create_security_group().dry_run(true).group_name(&name).vpc_id(&resolved.vpc);
        let request = request.description("The machines of one run of tsunami");
        let request = request.tag_specifications(tagged(ResourceType::SecurityGroup));
        let answer = region.call("CreateSecurityGroup", || request.clone().send()).await;
        asked.push(("CreateSecurityGroup", answer.map(drop)));
    }
    if spec.placement_group {
        let request = ec2.create_placement_group().dry_run(true).group_name(&name);
        let request = request.strategy(PlacementStrategy::Cluster);
        let request = request.tag_specifications(tagged(ResourceType::PlacementGroup));
        let answer = region.call("CreatePlacementGroup", || request.clone().send()).await;
        asked.push(("CreatePlacementGroup", answer.map(drop)));
    }

    let data = RequestLaunchTemplateData::builder().image_id(&resolved.image.id).build();
    let request =
        ec2.create_launch_template().dry_run(true).launch_template_name(&name).launch_template_data(data);
    let request = request.tag_specifications(tagged(ResourceType::LaunchTemplate));
    let answer = region.call("CreateLaunchTemplate", || request.clone().send()).await;
    asked.push(("CreateLaunchTemplate", answer.map(drop)));

    let template =
        FleetLaunchTemplateSpecificationRequest::builder().launch_template_name(&name).version("1");
    let config = FleetLaunchTemplateConfigRequest::builder().launch_template_specification(template.build());
    let capacity = TargetCapacitySpecificationRequest::builder().total_target_capacity(1).build();
    let request = ec2.create_fleet().dry_run(true).r#type(FleetType::Instant);
    let request = request.launch_template_configs(config.build()).target_capacity_specification(capacity);
    let request = request.tag_specifications(tagged(ResourceType::Fleet));
    let answer = region.call("CreateFleet", || request.clone().send()).await;
    asked.push(("CreateFleet", answer.map(drop)));

    // All of the pools are alike to who asks, so that the first stands for them.
    let (Some(pool), Some(market)) = (resolved.pools.first(), group.market()) else { return asked };
    let request = ec2.run_instances().dry_run(true).min_count(1).max_count(1);
    let request = request.image_id(&resolved.image.id).subnet_id(&pool.subnet);
    let request = request.instance_type(InstanceType::from(pool.instance.as_str()));
    let request = request.tag_specifications(tagged(ResourceType::Instance));
    let request = request.tag_specifications(tagged(ResourceType::Volume));
    let spot = || InstanceMarketOptionsRequest::builder().market_type(MarketType::Spot).build();
    let request = request.set_instance_market_options(market.is_spot().then(spot));
    let profile = spec.iam_profile.as_ref().map(|profile| {
        let request = IamInstanceProfileSpecification::builder();
        if profile.starts_with("arn:") { request.arn(profile).build() } else { request.name(profile).build() }
    });
    let request = request.set_iam_instance_profile(profile);
    let answer = region.call("RunInstances", || request.clone().send()).await;
    asked.push(("RunInstances", answer.map(drop)));
    asked
}
