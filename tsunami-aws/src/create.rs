//! The requests that create something, as they are journaled and made.

use std::collections::BTreeMap;
use std::io;

use aws_sdk_ec2::types::DefaultTargetCapacityType as Target;
use aws_sdk_ec2::types::{
    FleetLaunchTemplateConfigRequest, FleetLaunchTemplateOverridesRequest,
    FleetLaunchTemplateSpecificationRequest, FleetOnDemandAllocationStrategy, FleetType,
    InstanceMarketOptionsRequest, InstanceType, LaunchTemplateAndOverridesResponse,
    LaunchTemplateBlockDeviceMappingRequest, LaunchTemplateEbsBlockDeviceRequest,
    LaunchTemplateHttpTokensState, LaunchTemplateIamInstanceProfileSpecificationRequest,
    LaunchTemplateInstanceMetadataOptionsRequest, LaunchTemplatePlacementRequest,
    LaunchTemplateSpecification, LaunchTemplateTagSpecificationRequest, MarketType, OnDemandOptionsRequest,
    PlacementStrategy, RequestLaunchTemplateData, ResourceType, ShutdownBehavior, SpotAllocationStrategy,
    SpotInstanceType, SpotMarketOptions, SpotOptionsRequest, Tag, TagSpecification,
    TargetCapacitySpecificationRequest, VolumeType,
};
use aws_smithy_types::{Blob, base64};
use serde::{Deserialize, Serialize};
use tsunami_core::ProviderErrorKind;

use crate::error::{Answer, Failure};
use crate::journal::{Entry, Journal, Outcome};
use crate::region::Region;
use crate::spec::Disk;
use crate::{inventory, tag};

/// The tags of a thing.
pub(crate) type Tags = BTreeMap<String, String>;

/// A request that creates something, whole: made twice, it is the same request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Create {
    pub(crate) region: String,
    /// Names the thing, derived from the run: twice the same name is twice the same thing.
    pub(crate) name: String,
    pub(crate) tags: Tags,
    pub(crate) what: What,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    SecurityGroup {
        vpc: String,
    },
    KeyPair {
        public_key: String,
    },
    PlacementGroup,
    LaunchTemplate(Box<Template>),
    Fleet(Fleet),
    /// Through RunInstances, which alone knows spot blocks.
    Instances(Fleet),
}

/// All that machines of a group have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Template {
    pub(crate) image: String,
    pub(crate) key: String,
    pub(crate) security_group: String,
    pub(crate) user_data: String,
    pub(crate) root_device: String,
    pub(crate) disk: Option<Disk>,
    pub(crate) iam_profile: Option<String>,
    pub(crate) placement_group: Option<String>,
    pub(crate) spot: bool,
}

/// Machines from a template.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Fleet {
    pub(crate) template: String,
    /// Where to look, the best first.
    pub(crate) pools: Vec<Pool>,
    pub(crate) count: u32,
    pub(crate) spot: bool,
    pub(crate) max_price: Option<String>,
    /// All machines in one pool, or none at all.
    pub(crate) alike: bool,
    /// The length of a spot block, in minutes.
    pub(crate) block: Option<i32>,
    pub(crate) token: String,
}

/// One instance type in one zone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Pool {
    pub(crate) instance: String,
    pub(crate) zone: String,
    pub(crate) subnet: String,
}

impl std::fmt::Display for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.instance, self.zone)
    }
}

/// What a request created.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) ids: Vec<String>,
    /// The pool of the first machine.
    pub(crate) pool: Option<Pool>,
    /// The pools that gave nothing, and why.
    pub(crate) failures: Vec<(Option<Pool>, Failure)>,
}

impl Made {
    fn one(id: impl Into<String>) -> Self {
        Self { ids: vec![id.into()], ..Self::default() }
    }
}

impl Create {
    /// The name of the request itself, also as a part of a file's name.
    pub(crate) fn name(&self) -> String {
        let kind = match self.what {
            What::SecurityGroup { .. } => "security-group",
            What::KeyPair { .. } => "key-pair",
            What::PlacementGroup => "placement-group",
            What::LaunchTemplate(_) => "launch-template",
            What::Fleet(_) | What::Instances(_) => "instances",
        };
        format!("{kind}-{}-{}", self.region, self.name)
    }

    /// Whether it creates machines.
    pub(crate) fn makes_instances(&self) -> bool {
        matches!(self.what, What::Fleet(_) | What::Instances(_))
    }

    /// Whether it asks for spot machines.
    pub(crate) fn is_spot(&self) -> bool {
        matches!(&self.what, What::Fleet(fleet) | What::Instances(fleet) if fleet.spot)
    }

    /// Makes the request, having written it down. What it is known to have created is not asked for again.
    pub(crate) async fn make(&self, region: &Region, journal: &Journal) -> Result<Made, MakeError> {
        let earlier = journal.entry(self)?;
        let again = earlier.as_ref().is_some_and(Entry::is_open);
        match earlier.and_then(|entry| entry.outcome) {
            Some(Outcome::Created(ids)) => return Ok(Made { ids, ..Made::default() }),
            _ => journal.begin(self)?,
        }
        let answer = self.ask(region).await;
        match &answer {
            Err(failure) if failure.is_inside_aws() && self.makes_instances() => {
                journal.end(self, Outcome::Failed(failure.code.clone()))?;
            }
            answer if self.settles(answer, again) => self.settle(journal, answer)?,
            _ => {}
        }
        Ok(answer?)
    }

    /// Whether an answer tells what the request created, also where it is made again as its first answer was lost.
    pub(crate) fn settles(&self, answer: &Answer<Made>, again: bool) -> bool {
        match answer {
            Ok(_) => true,
            Err(failure) => failure.answered && !(again && failure.is_beside_the_point()),
        }
    }

    /// Writes down what came of the request.
    pub(crate) fn settle(&self, journal: &Journal, answer: &Answer<Made>) -> io::Result<()> {
        match answer {
            Ok(made) => journal.end(self, Outcome::Created(made.ids.clone())),
            Err(failure) => journal.end(self, Outcome::Refused(failure.code.clone())),
        }
    }

    /// Makes the request, without writing it down.
    pub(crate) async fn ask(&self, region: &Region) -> Answer<Made> {
        let made = match &self.what {
            What::SecurityGroup { vpc } => self.security_group(region, vpc).await,
            What::KeyPair { public_key } => self.key_pair(region, public_key).await,
            What::PlacementGroup => self.placement_group(region).await,
            What::LaunchTemplate(template) => self.launch_template(region, template).await,
            // Where a request for several types is refused as a whole, the first stands for them all.
            What::Fleet(fleet) => {
                return self.fleet(region, fleet).await.map_err(|failure| fleet.about(failure));
            }
            What::Instances(fleet) => {
                return self.instances(region, fleet).await.map_err(|failure| fleet.about(failure));
            }
        };
        match made {
            // What has our name is ours, made by a request whose answer was lost.
            Err(failure) if failure.is_duplicate() => self.existing(region).await,
            made => made.map(Made::one),
        }
    }

    async fn security_group(&self, region: &Region, vpc: &str) -> Answer<String> {
        let request = region.ec2.create_security_group().group_name(&self.name).vpc_id(vpc);
        let request = request
            .description("The machines of one run of tsunami")
            .tag_specifications(self.tagged(ResourceType::SecurityGroup));
        let made = region.call("CreateSecurityGroup", || request.clone().send()).await?;
        Ok(made.group_id.unwrap_or_default())
    }

    async fn key_pair(&self, region: &Region, public_key: &str) -> Answer<String> {
        let request = region.ec2.import_key_pair().key_name(&self.name);
        let request = request
            .public_key_material(Blob::new(public_key))
            .tag_specifications(self.tagged(ResourceType::KeyPair));
        region.call("ImportKeyPair", || request.clone().send()).await?;
        Ok(self.name.clone())
    }

    async fn placement_group(&self, region: &Region) -> Answer<String> {
        let request = region.ec2.create_placement_group().group_name(&self.name);
        let request = request
            .strategy(PlacementStrategy::Cluster)
            .tag_specifications(self.tagged(ResourceType::PlacementGroup));
        region.call("CreatePlacementGroup", || request.clone().send()).await?;
        Ok(self.name.clone())
    }

    async fn launch_template(&self, region: &Region, template: &Template) -> Answer<String> {
        let request = region.ec2.create_launch_template().launch_template_name(&self.name);
        let request = request
            .client_token(token(&[&self.region, &self.name]))
            .launch_template_data(template.data(&self.tags))
            .tag_specifications(self.tagged(ResourceType::LaunchTemplate));
        region.call("CreateLaunchTemplate", || request.clone().send()).await?;
        Ok(self.name.clone())
    }

    /// What is there under the request's name.
    async fn existing(&self, region: &Region) -> Answer<Made> {
        let What::SecurityGroup { vpc } = &self.what else { return Ok(Made::one(&self.name)) };
        let filter =
            |name: &str, value: &str| aws_sdk_ec2::types::Filter::builder().name(name).values(value).build();
        let request = region.ec2.describe_security_groups();
        let request = request.filters(filter("group-name", &self.name)).filters(filter("vpc-id", vpc));
        let found = region.call("DescribeSecurityGroups", || request.clone().send()).await?;
        // Looked at here too: an endpoint may know no filters.
        let ours = |group: &&aws_sdk_ec2::types::SecurityGroup| {
            let run = inventory::value(group.tags(), tag::RUN);
            group.group_name() == Some(&self.name) && run == self.tags.get(tag::RUN).map(String::as_str)
        };
        let id = found.security_groups().iter().find(ours).and_then(|group| group.group_id());
        id.map(Made::one).ok_or_else(|| Failure {
            kind: ProviderErrorKind::Unavailable,
            code: "NotSeenYet".to_owned(),
            message: format!("the security group {} is there, but can't be seen yet", self.name),
            operation: "DescribeSecurityGroups",
            region: self.region.clone(),
            answered: false,
            in_fleet: false,
            instance: None,
        })
    }

    async fn fleet(&self, region: &Region, fleet: &Fleet) -> Answer<Made> {
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
        let target = if fleet.spot { Target::Spot } else { Target::OnDemand };
        let capacity = TargetCapacitySpecificationRequest::builder()
            .total_target_capacity(count)
            .default_target_capacity_type(target)
            .build();
        let request = region.ec2.create_fleet().r#type(FleetType::Instant).client_token(&fleet.token);
        let request = request.launch_template_configs(config).target_capacity_specification(capacity);
        let request = request.tag_specifications(self.tagged(ResourceType::Fleet));
        let request = match fleet.spot {
            true => request.spot_options(
                SpotOptionsRequest::builder()
                    .allocation_strategy(SpotAllocationStrategy::PriceCapacityOptimized)
                    .single_instance_type(fleet.alike)
                    .single_availability_zone(fleet.alike)
                    .set_min_target_capacity(fleet.alike.then_some(count))
                    .build(),
            ),
            false => request.on_demand_options(
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
            (pool, Failure { instance, ..Failure::in_fleet(&self.region, code, &message) })
        });
        Ok(Made { ids, pool, failures: failures.collect() })
    }

    /// The instances of a fleet.
    async fn instances_of(&self, region: &Region, fleet: &str) -> Answer<Vec<String>> {
        let request = region.ec2.describe_fleets().fleet_ids(fleet);
        let answer = region.call("DescribeFleets", || request.clone().send()).await?;
        let ours = answer.fleets().iter().filter(|found| found.fleet_id() == Some(fleet));
        let instances = ours.flat_map(|fleet| fleet.instances());
        Ok(instances.flat_map(|instances| instances.instance_ids()).cloned().collect())
    }

    async fn instances(&self, region: &Region, fleet: &Fleet) -> Answer<Made> {
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
        Ok(Made { ids: ids.collect(), pool: Some(pool.clone()), failures: Vec::new() })
    }

    fn tagged(&self, kind: ResourceType) -> TagSpecification {
        TagSpecification::builder().resource_type(kind).set_tags(Some(tags(&self.tags))).build()
    }
}

impl Fleet {
    fn about(&self, failure: Failure) -> Failure {
        Failure { instance: self.pools.first().map(|pool| pool.instance.clone()), ..failure }
    }
}

impl Template {
    fn data(&self, own: &Tags) -> RequestLaunchTemplateData {
        let metadata = LaunchTemplateInstanceMetadataOptionsRequest::builder()
            .http_tokens(LaunchTemplateHttpTokensState::Required)
            .http_put_response_hop_limit(1)
            .build();
        let mut data = RequestLaunchTemplateData::builder()
            .image_id(&self.image)
            .key_name(&self.key)
            .security_group_ids(&self.security_group)
            .user_data(base64::encode(&self.user_data))
            // What powers itself off is gone, not stopped.
            .instance_initiated_shutdown_behavior(ShutdownBehavior::Terminate)
            .metadata_options(metadata);
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
        let mut tagged = vec![ResourceType::Instance, ResourceType::Volume, ResourceType::NetworkInterface];
        if self.spot {
            tagged.push(ResourceType::SpotInstancesRequest);
        }
        for kind in tagged {
            let tagged = LaunchTemplateTagSpecificationRequest::builder().resource_type(kind);
            data = data.tag_specifications(tagged.set_tags(Some(tags(own))).build());
        }
        data.build()
    }
}

/// Why a request was not made, or not answered well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeError {
    #[error(transparent)]
    Refused(#[from] Failure),
    /// What can't be written down is not asked for.
    #[error("the run's journal")]
    Journal(#[from] io::Error),
}

/// DeleteFleets takes so many instant fleets at once.
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteFleets.html>
const FLEETS: usize = 25;

/// Deletes fleets, and with them what is left of their machines. One that stays costs nothing.
pub(crate) async fn delete_fleets(region: &Region, ids: &[String]) {
    for ids in ids.chunks(FLEETS) {
        let request = region.ec2.delete_fleets().set_fleet_ids(Some(ids.to_vec())).terminate_instances(true);
        let deleted = region.once("DeleteFleets", || request.clone().send()).await;
        tracing::debug!(?deleted, "fleets no longer needed");
    }
}

/// Tags as the API takes them.
pub(crate) fn tags(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

/// An idempotency token: what is made of the same parts is the same request.
pub(crate) fn token(parts: &[&str]) -> String {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.len().to_le_bytes());
        hasher.update(part);
    }
    // EC2 takes up to 64 ASCII characters.
    format!("{:x}", hasher.finalize())
}
