//! Requests for machines: fleets, and RunInstances where only that will do.

use aws_sdk_ec2::types::DefaultTargetCapacityType as Target;
use aws_sdk_ec2::types::{
    CapacityReservationTarget, FleetLaunchTemplateConfigRequest, FleetLaunchTemplateOverridesRequest,
    FleetLaunchTemplateSpecificationRequest, FleetOnDemandAllocationStrategy, FleetReservationType,
    FleetType, InstanceMarketOptionsRequest, InstanceType, LaunchTemplateAndOverridesResponse,
    LaunchTemplateBlockDeviceMappingRequest, LaunchTemplateCapacityReservationSpecificationRequest,
    LaunchTemplateEbsBlockDeviceRequest, LaunchTemplateHttpTokensState,
    LaunchTemplateIamInstanceProfileSpecificationRequest, LaunchTemplateInstanceMarketOptionsRequest,
    LaunchTemplateInstanceMetadataOptionsRequest, LaunchTemplateInstanceMetadataProtocolIpv6,
    LaunchTemplateInstanceNetworkInterfaceSpecificationRequest, LaunchTemplatePlacementRequest,
    LaunchTemplateSpecification, LaunchTemplateTagSpecificationRequest, MarketType, OnDemandOptionsRequest,
    RequestLaunchTemplateData, ReservedCapacityAllocationStrategy, ReservedCapacityOptionsRequest,
    ResourceType, ShutdownBehavior, SpotAllocationStrategy, SpotInstanceType, SpotMarketOptions,
    SpotOptionsRequest, TargetCapacitySpecificationRequest, VolumeType,
};
use aws_smithy_types::base64;

use super::output::CreateOutput;
use crate::error::{AwsError, Result};
use crate::model::{CreateRequest, Fleet, ReservedKind, Tags, Template};
use crate::region::Region;
use crate::tag;

impl CreateRequest {
    pub(super) async fn create_fleet(&self, region: &Region, fleet: &Fleet) -> Result<CreateOutput> {
        let overrides = (0..).zip(&fleet.pools).map(|(place, pool)| {
            let request = FleetLaunchTemplateOverridesRequest::builder();
            let request = request
                .instance_type(InstanceType::from(pool.instance.as_str()))
                .subnet_id(&pool.subnet)
                .set_max_price(fleet.max_price.clone().filter(|_| fleet.spot));
            request.priority(f64::from(place)).build()
        });
        let template = FleetLaunchTemplateSpecificationRequest::builder();
        let template = template.launch_template_name(&fleet.template).version("1").build();
        let config = FleetLaunchTemplateConfigRequest::builder()
            .launch_template_specification(template)
            .set_overrides(Some(overrides.collect()))
            .build();
        let count = i32::try_from(fleet.count).unwrap_or(i32::MAX);
        let target = match (fleet.reserved, fleet.spot) {
            (Some(_), _) => Target::ReservedCapacity,
            (None, true) => Target::Spot,
            (None, false) => Target::OnDemand,
        };
        let capacity = TargetCapacitySpecificationRequest::builder()
            .total_target_capacity(count)
            .default_target_capacity_type(target)
            .build();
        let request = region.ec2.create_fleet().r#type(FleetType::Instant).client_token(&fleet.token);
        let request = request.launch_template_configs(config).target_capacity_specification(capacity);
        let request = request.tag_specifications(tag::specification(&self.tags, ResourceType::Fleet));
        let request = match (fleet.reserved, fleet.spot) {
            // It launches as many as there is room for, and nothing in their place.
            (Some(kind), _) => request.reserved_capacity_options(
                ReservedCapacityOptionsRequest::builder()
                    .allocation_strategy(ReservedCapacityAllocationStrategy::Prioritized)
                    .reservation_types(match kind {
                        ReservedKind::OnDemand => FleetReservationType::OnDemandCapacityReservation,
                        ReservedKind::Block => FleetReservationType::CapacityBlock,
                        ReservedKind::Interruptible => FleetReservationType::InterruptibleCapacityReservation,
                    })
                    .build(),
            ),
            (None, true) => request.spot_options(
                SpotOptionsRequest::builder()
                    .allocation_strategy(SpotAllocationStrategy::PriceCapacityOptimized)
                    .single_instance_type(fleet.alike)
                    .single_availability_zone(fleet.alike)
                    .set_min_target_capacity(fleet.alike.then_some(count))
                    .build(),
            ),
            (None, false) => request.on_demand_options(
                OnDemandOptionsRequest::builder()
                    .allocation_strategy(FleetOnDemandAllocationStrategy::Prioritized)
                    .single_instance_type(fleet.alike)
                    .single_availability_zone(fleet.alike)
                    .set_min_target_capacity(fleet.alike.then_some(count))
                    .build(),
            ),
        };
        let answer = region.call_market("CreateFleet", || request.clone().send()).await?;
        let pool_of = |place: Option<&LaunchTemplateAndOverridesResponse>| {
            let place = place.and_then(|place| place.overrides())?;
            let (kind, subnet) = (place.instance_type()?.as_str(), place.subnet_id()?);
            fleet.pools.iter().find(|pool| pool.instance == kind && pool.subnet == subnet).cloned()
        };
        let instances = answer.instances().iter();
        let ids: Vec<String> = instances.flat_map(|instances| instances.instance_ids()).cloned().collect();
        let first = answer.instances().first();
        let ids = match (answer.fleet_id(), answer.errors()) {
            // A request that is made again may be answered with no more than the fleet.
            (Some(id), []) if answer.instances().is_empty() => self.instances_of(region, id).await?,
            _ => ids,
        };
        if let (Some(id), []) = (answer.fleet_id(), ids.as_slice()) {
            // It stays active for nothing.
            delete_fleets(region, &[id.to_owned()]).await;
        }
        let pool = first.and_then(|instances| pool_of(instances.launch_template_and_overrides()));
        let failures = answer.errors().iter().map(|error| {
            let pool = pool_of(error.launch_template_and_overrides());
            let at = pool.as_ref().map(|pool| format!(" ({pool})")).unwrap_or_default();
            let message = format!("{}{at}", error.error_message().unwrap_or("no message"));
            let code = error.error_code().unwrap_or("UnknownError");
            let instance = pool.as_ref().map(|pool| pool.instance.clone());
            (pool, AwsError { instance, ..AwsError::in_fleet(&self.region, code, &message) })
        });
        Ok(CreateOutput { ids, pool, failures: failures.collect() })
    }

    /// The instances of a fleet.
    async fn instances_of(&self, region: &Region, fleet: &str) -> Result<Vec<String>> {
        let request = region.ec2.describe_fleets().fleet_ids(fleet);
        let answer = region.call("DescribeFleets", || request.clone().send()).await?;
        let ours = answer.fleets().iter().filter(|found| found.fleet_id() == Some(fleet));
        let instances = ours.flat_map(|fleet| fleet.instances());
        Ok(instances.flat_map(|instances| instances.instance_ids()).cloned().collect())
    }

    pub(super) async fn run_instances(&self, region: &Region, fleet: &Fleet) -> Result<CreateOutput> {
        let pool = &fleet.pools[0];
        let count = i32::try_from(fleet.count).unwrap_or(i32::MAX);
        let template = LaunchTemplateSpecification::builder();
        let template = template.launch_template_name(&fleet.template).version("1").build();
        let spot = SpotMarketOptions::builder()
            .spot_instance_type(SpotInstanceType::OneTime)
            .set_block_duration_minutes(fleet.block)
            .set_max_price(fleet.max_price.clone())
            .build();
        let market = InstanceMarketOptionsRequest::builder();
        let market = market.market_type(MarketType::Spot).spot_options(spot).build();
        let request = region.ec2.run_instances().client_token(&fleet.token);
        let request = request.launch_template(template).min_count(count).max_count(count);
        let request = request.instance_type(InstanceType::from(pool.instance.as_str()));
        let request = request.subnet_id(&pool.subnet).instance_market_options(market);
        let answer = region.call_market("RunInstances", || request.clone().send()).await?;
        let ids = answer.instances().iter().filter_map(|instance| instance.instance_id().map(str::to_owned));
        Ok(CreateOutput { ids: ids.collect(), pool: Some(pool.clone()), failures: Vec::new() })
    }
}

impl Fleet {
    pub(super) fn about(&self, failure: AwsError) -> AwsError {
        AwsError { instance: self.pools.first().map(|pool| pool.instance.clone()), ..failure }
    }
}

impl Template {
    pub(super) fn data(&self, own: &Tags) -> RequestLaunchTemplateData {
        let metadata = LaunchTemplateInstanceMetadataOptionsRequest::builder()
            .http_tokens(LaunchTemplateHttpTokensState::Required)
            .http_put_response_hop_limit(1)
            // Where there is no IPv4, cloud-init and what waits for notices find it by IPv6 only.
            .set_http_protocol_ipv6(self.ipv6.then_some(LaunchTemplateInstanceMetadataProtocolIpv6::Enabled))
            .build();
        let mut data = RequestLaunchTemplateData::builder()
            .image_id(&self.image)
            .key_name(&self.key)
            .user_data(base64::encode(&self.user_data))
            // What powers itself off is gone, not stopped.
            .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
            .metadata_options(metadata);
        data = match self.public {
            None => data.security_group_ids(&self.security_group),
            // Only an interface can say so, and then has the group. Its subnet comes with the fleet's request.
            Some(public) => data.network_interfaces(
                LaunchTemplateInstanceNetworkInterfaceSpecificationRequest::builder()
                    .device_index(0)
                    .associate_public_ip_address(public)
                    .delete_on_termination(true)
                    .groups(&self.security_group)
                    .build(),
            ),
        };
        let mut volume = LaunchTemplateEbsBlockDeviceRequest::builder().delete_on_termination(true);
        if let Some(disk) = &self.disk {
            volume = volume.volume_type(VolumeType::from(disk.kind.as_str()));
            let number = |number: Option<u32>| number.and_then(|number| i32::try_from(number).ok());
            volume = volume.set_volume_size(number(disk.gib)).set_iops(number(disk.iops));
            volume = volume.set_throughput(number(disk.throughput));
        }
        let root = LaunchTemplateBlockDeviceMappingRequest::builder();
        data = data.block_device_mappings(root.device_name(&self.root_device).ebs(volume.build()).build());
        if let Some(profile) = &self.iam_profile {
            let request = LaunchTemplateIamInstanceProfileSpecificationRequest::builder();
            let request =
                if profile.starts_with("arn:") { request.arn(profile) } else { request.name(profile) };
            data = data.iam_instance_profile(request.build());
        }
        if let Some(group) = &self.placement_group {
            data = data.placement(LaunchTemplatePlacementRequest::builder().group_name(group).build());
        }
        if let Some((id, kind)) = &self.reservation {
            let target = CapacityReservationTarget::builder().capacity_reservation_id(id).build();
            let request = LaunchTemplateCapacityReservationSpecificationRequest::builder();
            data =
                data.capacity_reservation_specification(request.capacity_reservation_target(target).build());
            let market = match kind {
                ReservedKind::OnDemand => None,
                ReservedKind::Block => Some(MarketType::CapacityBlock),
                ReservedKind::Interruptible => Some(MarketType::InterruptibleCapacityReservation),
            };
            data = data.set_instance_market_options(market.map(|market| {
                LaunchTemplateInstanceMarketOptionsRequest::builder().market_type(market).build()
            }));
        }
        let mut tagged = vec![ResourceType::Instance, ResourceType::Volume, ResourceType::NetworkInterface];
        if self.spot {
            tagged.push(ResourceType::SpotInstancesRequest);
        }
        for kind in tagged {
            let tagged = LaunchTemplateTagSpecificationRequest::builder().resource_type(kind);
            data = data.tag_specifications(tagged.set_tags(Some(tag::to_api(own))).build());
        }
        data.build()
    }
}

/// DeleteFleets takes so many instant fleets at once.
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteFleets.html>
const MAX_DELETED_FLEETS: usize = 25;

/// Deletes fleets, and with them what is left of their machines. One that stays costs nothing.
pub(crate) async fn delete_fleets(region: &Region, ids: &[String]) {
    for ids in ids.chunks(MAX_DELETED_FLEETS) {
        let request = region.ec2.delete_fleets().set_fleet_ids(Some(ids.to_vec())).terminate_instances(true);
        let deleted = region.once("DeleteFleets", || request.clone().send()).await;
        tracing::debug!(?deleted, "fleets no longer needed");
    }
}
