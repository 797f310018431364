//! What a spec comes to in its region: the image, the pools that could serve it, and their prices.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::operation::describe_subnets::builders::DescribeSubnetsFluentBuilder;
use aws_sdk_ec2::types::{Filter, InstanceType, InstanceTypeInfo, LocationType, Tenancy};
use aws_sdk_pricing::types::{Filter as PriceFilter, FilterType};
use aws_smithy_types::DateTime;
use serde_json::Value;
use tsunami_core::{Price, ProviderError, ProviderErrorKind};

use crate::create::Pool;
use crate::error::{Answer, Failure};
use crate::inventory::pages;
use crate::region::{Region, Subnet};
use crate::spec::{Disk, Ec2Spec, Market};

/// What a public IPv4 address costs, in US dollars an hour, everywhere.
/// <https://aws.amazon.com/vpc/pricing/>
const ADDRESS: f64 = 0.005;

/// No region asks more for a GiB of gp2 or gp3 and month, in US dollars.
/// <https://aws.amazon.com/ebs/pricing/>
const DISK_BOUND: f64 = 0.20;
const HOURS_A_MONTH: f64 = 730.0;

/// The most that an hour of a virtual processor of a t machine costs beyond its credits, in US dollars.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/burstable-performance-instances-unlimited-mode.html>
const SURPLUS: f64 = 0.05;

/// A spec, looked up.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    pub(crate) image: Image,
    pub(crate) vpc: String,
    /// Whether machines get a public address.
    pub(crate) public: bool,
    /// Why what machines cost here is not known.
    pub(crate) unpriced: Option<String>,
    /// Every type in every zone that has it, the cheapest first.
    pub(crate) pools: Vec<Pool>,
    /// The virtual processors of each type.
    pub(crate) processors: BTreeMap<String, u32>,
    /// US dollars an hour, by type and zone.
    pub(crate) spot: BTreeMap<(String, String), f64>,
    /// US dollars an hour, by type.
    pub(crate) on_demand: BTreeMap<String, f64>,
    /// What a machine that may burst can cost beside that, in US dollars an hour, at full load.
    pub(crate) surplus: f64,
    pub(crate) notes: Vec<String>,
}

#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) root_device: String,
    pub(crate) gib: u32,
    /// The sizes of further volumes, in GiB.
    pub(crate) more_gib: u32,
    /// Why what it costs is not known: software that is paid for, or volumes of an uncommon type.
    pub(crate) unpriced: Option<String>,
    pub(crate) user: String,
}

impl Ground {
    /// Looks a spec up. Creates nothing.
    pub(crate) async fn of(
        spec: &Ec2Spec,
        region: &Region,
        pricing: &aws_sdk_pricing::Client,
    ) -> Result<Self, ProviderError> {
        let Types { architecture, surplus, processors } = types(spec, region).await?;
        let (image, subnets, offered, spot, on_demand) = tokio::try_join!(
            image(spec, region, &architecture),
            subnets(spec, region),
            offered(spec, region),
            spot_prices(spec, region),
            async { Ok(on_demand_prices(spec, region, pricing).await) },
        )?;
        let Network { vpc, subnets, public, unpriced } = subnets;
        let (on_demand, mut notes) = on_demand;
        if !public {
            notes.push(
                "machines get no public address in that subnet: this computer has to reach their private ones"
                    .to_owned(),
            );
        }
        if let Some(why) = &unpriced {
            notes.push(format!("what machines cost is not known here: {why}"));
        }
        let mut pools = Vec::new();
        for instance in &spec.instances {
            let zones = offered.get(instance);
            for (zone, subnet) in
                subnets.iter().filter(|(zone, _)| zones.is_some_and(|it| it.contains(*zone)))
            {
                let pool = Pool { instance: instance.clone(), zone: zone.clone(), subnet: subnet.clone() };
                pools.push(pool);
            }
        }
        if pools.is_empty() {
            return Err(not_offered(spec, region, &subnets, &offered));
        }
        let price = |pool: &Pool| {
            let key = (pool.instance.clone(), pool.zone.clone());
            let spot = spec.markets.first().is_some_and(|market| market.is_spot()).then(|| spot.get(&key));
            spot.unwrap_or_else(|| on_demand.get(&pool.instance)).copied().unwrap_or(f64::INFINITY)
        };
        pools.sort_by(|a, b| price(a).total_cmp(&price(b)));
        if let Some(why) = &image.unpriced {
            notes.push(format!("what image {} costs is not known here: {why}", image.id));
        }
        if let Some(disk) = &spec.disk {
            if disk.gib.is_some_and(|gib| gib < image.gib) {
                let message = format!(
                    "a disk of {} GiB is too small for {}, which has {} GiB",
                    disk.gib.unwrap_or_default(),
                    image.id,
                    image.gib
                );
                return Err(invalid(region, message));
            }
            if let Some(message) = disk.beyond_limits(disk.gib.unwrap_or(image.gib)) {
                return Err(invalid(region, message));
            }
            if !is_plain(disk) {
                notes.push(format!("what such a disk of type {} costs is not known here", disk.kind));
            }
        }
        Ok(Self { image, vpc, public, unpriced, pools, processors, spot, on_demand, surplus, notes })
    }

    /// What an hour of a machine costs as it looks now, its disk and address included.
    pub(crate) fn price(&self, spec: &Ec2Spec, market: Market, pool: &Pool) -> Price {
        let machine = match market.is_spot() {
            true => self.spot.get(&(pool.instance.clone(), pool.zone.clone())),
            false => self.on_demand.get(&pool.instance),
        };
        match machine.zip(self.extras(spec)) {
            Some((machine, extras)) => Price::PerHour(machine + extras),
            None => Price::Unknown,
        }
    }

    /// The most that an hour of a machine can cost, whatever market and pool it comes from.
    pub(crate) fn most(&self, spec: &Ec2Spec) -> Price {
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
        let rounds = if spec.replace_interrupted { 2.0 } else { 1.0 };
        match machine.zip(self.extras(spec)) {
            Some((machine, extras)) => Price::PerHour((machine + self.surplus + extras) * rounds),
            None => Price::Unknown,
        }
    }

    /// The disk and the address.
    fn extras(&self, spec: &Ec2Spec) -> Option<f64> {
        let root = spec.disk.as_ref().and_then(|disk| disk.gib).unwrap_or(self.image.gib);
        let gib = root + self.image.more_gib;
        let known = spec.disk.as_ref().is_none_or(is_plain);
        (known && self.image.unpriced.is_none() && self.unpriced.is_none())
            .then(|| ADDRESS + f64::from(gib) * DISK_BOUND / HOURS_A_MONTH)
    }
}

fn is_general_purpose(kind: &str) -> bool {
    matches!(kind, "gp2" | "gp3")
}

/// Whether a disk costs what its size does.
fn is_plain(disk: &Disk) -> bool {
    let included =
        disk.iops.is_none_or(|iops| iops <= 3000) && disk.throughput.is_none_or(|rate| rate <= 125);
    is_general_purpose(&disk.kind) && included
}

/// What the types of a spec have in common, and what each has.
struct Types {
    /// As images name it.
    architecture: String,
    /// What bursting can cost.
    surplus: f64,
    processors: BTreeMap<String, u32>,
}

async fn types(spec: &Ec2Spec, region: &Region) -> Result<Types, ProviderError> {
    let types = spec.instances.iter().map(|name| InstanceType::from(name.as_str()));
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
        spec.instances.iter().filter(|name| !known.contains(name.as_str())).cloned().collect();
    if !unknown.is_empty() {
        return Err(invalid(region, format!("there is no instance type {}", unknown.join(", "))));
    }
    let mut architectures = by_architecture.into_iter();
    match (architectures.next(), architectures.next()) {
        (Some((architecture, _)), None) if architecture != "unknown" => {
            let processors = |info: &InstanceTypeInfo| {
                info.v_cpu_info()?.default_v_cpus().and_then(|count| u32::try_from(count).ok())
            };
            let all = answer.instance_types().iter();
            let bursts = all.clone().filter(|info| info.burstable_performance_supported() == Some(true));
            let surplus = f64::from(bursts.filter_map(processors).max().unwrap_or(0)) * SURPLUS;
            let each =
                all.filter_map(|info| Some((info.instance_type()?.as_str().to_owned(), processors(info)?)));
            Ok(Types { architecture, surplus, processors: each.collect() })
        }
        (Some((a, of_a)), Some((b, of_b))) => Err(invalid(
            region,
            format!(
                "one image can't serve both {} ({a}) and {} ({b}): machines of a group are of one architecture",
                of_a.join(", "),
                of_b.join(", ")
            ),
        )),
        _ => Err(invalid(region, "the instance types are neither x86_64 nor arm64".to_owned())),
    }
}

/// A distribution's images, by the name that people know them by.
struct Alias {
    parameter: String,
    user: &'static str,
}

/// Where an alias stands among the public parameters of SSM, for an architecture.
///
/// <https://documentation.ubuntu.com/aws/aws-how-to/instances/find-ubuntu-images/>,
/// <https://wiki.debian.org/Cloud/AmazonEC2Image>,
/// <https://docs.aws.amazon.com/linux/al2023/ug/ec2.html>
fn alias(image: &str, architecture: &str) -> Option<Alias> {
    let short = if architecture == "x86_64" { "amd64" } else { architecture };
    if let Some(version) = image.strip_prefix("ubuntu-") {
        // Noble was the first to have its images on gp3.
        let disk = if version < "23.10" { "ebs-gp2" } else { "ebs-gp3" };
        let parameter = format!(
            "/aws/service/canonical/ubuntu/server/{version}/stable/current/{short}/hvm/{disk}/ami-id"
        );
        return Some(Alias { parameter, user: "ubuntu" });
    }
    if let Some(version) = image.strip_prefix("debian-") {
        let parameter = format!("/aws/service/debian/release/{version}/latest/{short}");
        return Some(Alias { parameter, user: "admin" });
    }
    if matches!(image, "al2023" | "amazon-linux-2023") {
        let parameter =
            format!("/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{architecture}");
        return Some(Alias { parameter, user: "ec2-user" });
    }
    None
}

async fn image(spec: &Ec2Spec, region: &Region, architecture: &str) -> Result<Image, ProviderError> {
    let alias = alias(&spec.image, architecture);
    let parameter = alias.as_ref().map(|alias| alias.parameter.as_str()).or(spec.image.strip_prefix("ssm:"));
    let id = match parameter {
        Some(parameter) => parameter_value(region, parameter, &spec.image).await?,
        None if spec.image.starts_with("ami-") => spec.image.clone(),
        None => {
            let message = format!("`{}` names no image", spec.image);
            return Err(invalid(region, message)
                .help("use an alias such as \"ubuntu-24.04\", \"debian-12\" or \"al2023\", an \"ami-…\", or \"ssm:/path\""));
        }
    };
    let request = region.ec2.describe_images().image_ids(&id);
    let answer = region.call("DescribeImages", || request.clone().send()).await?;
    let Some(image) = answer.images().first() else {
        return Err(invalid(region, format!("there is no image {id} in {}", region.name)));
    };
    let name = image.name().unwrap_or_default().to_owned();
    let of_image = image.architecture().map_or("", |architecture| architecture.as_str());
    if of_image != architecture {
        let message = format!(
            "image {id} ({name}) is for {of_image}, and {} for {architecture}",
            spec.instances.join(", ")
        );
        return Err(invalid(region, message).help("choose an image of the same architecture, or an alias"));
    }
    // The API says "windows", whatever its model has.
    let platform = image.platform().map_or("", |platform| platform.as_str());
    if platform.eq_ignore_ascii_case("windows") {
        let message =
            format!("image {id} ({name}) is of Windows: nothing in it would end the machine in time");
        return Err(invalid(region, message).help("choose an image of Linux with cloud-init"));
    }
    let root_device = image.root_device_name().unwrap_or("/dev/xvda").to_owned();
    let root = image.block_device_mappings().iter().find(|device| device.device_name() == Some(&root_device));
    let gib = root.and_then(|device| device.ebs()).and_then(|ebs| ebs.volume_size()).unwrap_or(8);
    let known = || {
        let name = name.to_lowercase();
        let users =
            [("ubuntu", "ubuntu"), ("debian", "admin"), ("al2023", "ec2-user"), ("amzn2", "ec2-user")];
        users.into_iter().find(|(part, _)| name.contains(part)).map(|(_, user)| user)
    };
    let volumes = image
        .block_device_mappings()
        .iter()
        .filter_map(|device| Some((device.device_name()?, device.ebs()?)));
    let further = || volumes.clone().filter(|(name, _)| *name != root_device);
    let more_gib = further().map(|(_, ebs)| ebs.volume_size().unwrap_or(8)).sum::<i32>();
    let kept = volumes.clone().filter(|(name, _)| *name != root_device || spec.disk.is_none());
    let odd = kept.filter_map(|(_, ebs)| ebs.volume_type()).find(|kind| !is_general_purpose(kind.as_str()));
    // Plain Linux is billed under this very name.
    // <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/billing-info-fields.html>
    let billed = image.usage_operation().filter(|operation| *operation != "RunInstances");
    let unpriced = match (billed, image.product_codes(), odd) {
        (Some(operation), ..) => Some(format!("its software is billed as {operation}")),
        (None, [code, ..], _) => Some(format!(
            "its software has a price of its own ({})",
            code.product_code_id().unwrap_or_default()
        )),
        (None, [], Some(kind)) => Some(format!("it has a volume of type {kind}")),
        (None, [], None) => None,
    };
    let user = spec.user.as_deref().or(alias.map(|alias| alias.user)).or_else(known);
    let Some(user) = user else {
        return Err(invalid(region, format!("who logs in to image {id} ({name}) is not known"))
            .help("say so with `user = \"...\"`"));
    };
    let user = user.to_owned();
    let gib = u32::try_from(gib).unwrap_or_default();
    let more_gib = u32::try_from(more_gib).unwrap_or_default();
    Ok(Image { id, name, root_device, gib, more_gib, unpriced, user })
}

async fn parameter_value(region: &Region, name: &str, image: &str) -> Result<String, ProviderError> {
    let request = region.ssm.get_parameter().name(name);
    match region.call("GetParameter", || request.clone().send()).await {
        Ok(answer) => {
            let value =
                answer.parameter().and_then(|parameter| parameter.value()).unwrap_or_default().to_owned();
            match value.starts_with("ami-") {
                true => Ok(value),
                false => Err(invalid(
                    region,
                    format!("the parameter {name} holds `{value}`, not the id of an image"),
                )),
            }
        }
        Err(failure) if failure.code == "ParameterNotFound" => {
            let message =
                format!("there is no image `{image}` in {}: no public parameter {name}", region.name);
            Err(invalid(region, message).help("see that the alias or path is right, or give an \"ami-…\""))
        }
        Err(failure) => Err(failure.into()),
    }
}

/// The network, and a subnet of it in each zone that may be used.
async fn subnets(spec: &Ec2Spec, region: &Region) -> Result<Network, ProviderError> {
    let request = region.ec2.describe_subnets();
    let found = match &spec.subnet {
        Some(subnet) => find_subnets(region, request.subnet_ids(subnet)).await?,
        None => {
            let filter = Filter::builder().name("default-for-az").values("true").build();
            let find = || find_subnets(region, request.filters(filter));
            region.default_subnets.get_or_try_init(find).await?.clone()
        }
    };
    let Some(first) = found.first() else { return Err(without_default(region).await?) };
    if let Some(subnet) = found.iter().find(|subnet| subnet.without_ipv4) {
        let message =
            format!("the subnet {} is for IPv6 only: its machines have no address of IPv4", subnet.id);
        return Err(invalid(region, message).help("give another `subnet`"));
    }
    let vpc = first.vpc.clone();
    let public = found.iter().all(|subnet| subnet.public);
    let all: Vec<String> = found.iter().map(|subnet| subnet.zone.clone()).collect();
    let wanted = |subnet: &Subnet| spec.zone.as_ref().is_none_or(|wanted| *wanted == subnet.zone);
    let found = found.into_iter().filter(wanted);
    let subnets: BTreeMap<_, _> = found.map(|subnet| (subnet.zone, subnet.id)).collect();
    if subnets.is_empty() {
        let zone = spec.zone.as_deref().unwrap_or_default();
        let message = format!("zone {zone} is not among those that can be used: {}", all.join(", "));
        return Err(invalid(region, message));
    }
    // The default network is never a dedicated one.
    let unpriced = if spec.subnet.is_some() { dedicated(region, &vpc).await? } else { None };
    Ok(Network { vpc, subnets, public, unpriced })
}

/// Where machines are to be.
struct Network {
    vpc: String,
    subnets: BTreeMap<String, String>,
    public: bool,
    unpriced: Option<String>,
}

/// Why machines in a network don't cost what the price list says.
async fn dedicated(region: &Region, vpc: &str) -> Answer<Option<String>> {
    let request = region.ec2.describe_vpcs().vpc_ids(vpc);
    let answer = match region.call("DescribeVpcs", || request.clone().send()).await {
        Ok(answer) => answer,
        Err(failure) if failure.kind == ProviderErrorKind::Unauthorized && !failure.is_about_caller() => {
            return Ok(Some(format!(
                "the tenancy of the network {vpc} can't be looked at: {}",
                failure.explained()
            )));
        }
        Err(failure) => return Err(failure),
    };
    let tenancy = answer.vpcs().first().and_then(|vpc| vpc.instance_tenancy());
    let dearer = tenancy.filter(|tenancy| **tenancy != Tenancy::Default);
    Ok(dearer.map(|tenancy| {
        format!(
            "the network {vpc} is of {tenancy} tenancy, which costs more for each machine, and by the hour and region"
        )
    }))
}

/// What is to be said where there is no default subnet: there may be no default network, or one without subnets.
async fn without_default(region: &Region) -> Answer<ProviderError> {
    let name = &region.name;
    let default = Filter::builder().name("is-default").values("true").build();
    let request = region.ec2.describe_vpcs().filters(default);
    let answer = region.call("DescribeVpcs", || request.clone().send()).await;
    let is_there = answer.as_ref().is_ok_and(|answer| !answer.vpcs().is_empty());
    let make_network = format!("make a default network: `aws ec2 create-default-vpc --region {name}`");
    let make_subnet = format!(
        "make a default subnet: `aws ec2 create-default-subnet --region {name} --availability-zone {name}a`"
    );
    Ok(match (is_there, answer) {
        (true, _) => invalid(region, format!("the default network of {name} has no subnets"))
            .help(format!("give a `subnet`, or {make_subnet}")),
        (false, Ok(_)) => invalid(region, format!("{name} has no default network"))
            .help(format!("give a `subnet`, or {make_network}")),
        (false, Err(_)) => invalid(region, format!("{name} has no default subnets")).help(format!(
            "give a `subnet`, or {make_network}; where there is such a network, {make_subnet}"
        )),
    })
}

async fn find_subnets(region: &Region, request: DescribeSubnetsFluentBuilder) -> Answer<Vec<Subnet>> {
    let answer = region.call("DescribeSubnets", || request.clone().send()).await?;
    let found = answer.subnets().iter().filter_map(|subnet| {
        Some(Subnet {
            id: subnet.subnet_id()?.to_owned(),
            vpc: subnet.vpc_id()?.to_owned(),
            zone: subnet.availability_zone()?.to_owned(),
            public: subnet.map_public_ip_on_launch() == Some(true),
            without_ipv4: subnet.ipv6_native() == Some(true),
        })
    });
    Ok(found.collect())
}

/// The zones that have each type.
async fn offered(
    spec: &Ec2Spec,
    region: &Region,
) -> Result<BTreeMap<String, BTreeSet<String>>, ProviderError> {
    let types = Filter::builder().name("instance-type").set_values(Some(spec.instances.clone())).build();
    let mut offered: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let request = region.ec2.describe_instance_type_offerings();
    let request = request.location_type(LocationType::AvailabilityZone).filters(types);
    for offering in pages!(region, "DescribeInstanceTypeOfferings", request.clone(), instance_type_offerings)
    {
        if let (Some(kind), Some(zone)) = (offering.instance_type(), offering.location()) {
            offered.entry(kind.as_str().to_owned()).or_default().insert(zone.to_owned());
        }
    }
    Ok(offered)
}

fn not_offered(
    spec: &Ec2Spec,
    region: &Region,
    subnets: &BTreeMap<String, String>,
    offered: &BTreeMap<String, BTreeSet<String>>,
) -> ProviderError {
    let zones: Vec<&str> = subnets.keys().map(String::as_str).collect();
    let has = spec.instances.iter().map(|instance| match offered.get(instance) {
        Some(zones) => {
            let zones: Vec<&str> = zones.iter().map(String::as_str).collect();
            format!("{instance} is in {}", zones.join(", "))
        }
        None => format!("{instance} is nowhere in {}", region.name),
    });
    let has: Vec<_> = has.collect();
    invalid(
        region,
        format!("none of {} has {}: {}", zones.join(", "), spec.instances.join(" or "), has.join("; ")),
    )
    .help("choose another `zone` (or none), `subnet`, `instance` or `region`")
}

/// What spot machines cost now.
async fn spot_prices(
    spec: &Ec2Spec,
    region: &Region,
) -> Result<BTreeMap<(String, String), f64>, ProviderError> {
    let mut prices = BTreeMap::new();
    if !spec.markets.iter().any(|market| market.is_spot()) {
        return Ok(prices);
    }
    let types: Vec<_> = spec.instances.iter().map(|name| InstanceType::from(name.as_str())).collect();
    let now = DateTime::from(std::time::SystemTime::now());
    let request = region.ec2.describe_spot_price_history().set_instance_types(Some(types));
    let request = request.product_descriptions("Linux/UNIX").start_time(now);
    for price in pages!(region, "DescribeSpotPriceHistory", request.clone(), spot_price_history) {
        let dollars = price.spot_price().and_then(|price| price.parse().ok());
        let dollars = dollars.filter(|dollars: &f64| dollars.is_finite() && *dollars > 0.0);
        if let (Some(kind), Some(zone), Some(dollars)) =
            (price.instance_type(), price.availability_zone(), dollars)
        {
            // The latest comes first.
            prices.entry((kind.as_str().to_owned(), zone.to_owned())).or_insert(dollars);
        }
    }
    Ok(prices)
}

/// What the types cost on demand, where that can be found out, and what to say where it can't.
async fn on_demand_prices(
    spec: &Ec2Spec,
    region: &Region,
    pricing: &aws_sdk_pricing::Client,
) -> (BTreeMap<String, f64>, Vec<String>) {
    let asked =
        spec.instances.iter().map(async |instance| (instance, on_demand(instance, region, pricing).await));
    let (mut prices, mut notes) = (BTreeMap::new(), Vec::new());
    for (instance, price) in futures_util::future::join_all(asked).await {
        match price {
            Ok(Some(price)) => drop(prices.insert(instance.clone(), price)),
            Ok(None) => notes.push(format!("AWS lists no on-demand price for {instance} in {}", region.name)),
            Err(failure) => notes.push(format!("the on-demand price of {instance} is not known: {failure}")),
        }
    }
    (prices, notes)
}

async fn on_demand(
    instance: &str,
    region: &Region,
    pricing: &aws_sdk_pricing::Client,
) -> Answer<Option<f64>> {
    let filters = [
        ("instanceType", instance),
        ("regionCode", region.name.as_str()),
        ("operatingSystem", "Linux"),
        ("tenancy", "Shared"),
        ("preInstalledSw", "NA"),
        ("capacitystatus", "Used"),
        ("marketoption", "OnDemand"),
        ("licenseModel", "No License required"),
        ("operation", "RunInstances"),
    ];
    let mut request = pricing.get_products().service_code("AmazonEC2").format_version("aws_v1");
    for (field, value) in filters {
        let filter = PriceFilter::builder().r#type(FilterType::TermMatch).field(field).value(value).build();
        request = request.filters(filter.map_err(|error| Failure {
            kind: ProviderErrorKind::Other,
            code: "NotSent".to_owned(),
            message: error.to_string(),
            operation: "GetProducts",
            region: region.name.clone(),
            answered: true,
            in_fleet: false,
            instance: None,
        })?);
    }
    let products = pages!(region, "GetProducts", request.clone(), price_list);
    // Which of several it is that a launch is billed as is not told: a bound takes the most.
    Ok(products.iter().filter_map(|product| hourly(product)).reduce(f64::max))
}

/// The price of a product of the price list, in US dollars an hour.
fn hourly(product: &str) -> Option<f64> {
    let product: Value = serde_json::from_str(product).ok()?;
    let terms = product.pointer("/terms/OnDemand")?.as_object()?;
    let dimensions = terms.values().filter_map(|term| term.get("priceDimensions")?.as_object());
    let dimensions = dimensions.flat_map(|dimensions| dimensions.values());
    let dollars = dimensions.filter_map(|it| it.pointer("/pricePerUnit/USD")?.as_str()?.parse::<f64>().ok());
    dollars.filter(|dollars| *dollars > 0.0).reduce(f64::max)
}

pub(crate) fn invalid(region: &Region, message: String) -> ProviderError {
    ProviderError::new(ProviderErrorKind::InvalidSpec, region.name.clone(), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_stand_where_the_distributions_put_them() {
        let at = |image, architecture| alias(image, architecture).map(|alias| (alias.parameter, alias.user));
        let ubuntu = "/aws/service/canonical/ubuntu/server/24.04/stable/current/arm64/hvm/ebs-gp3/ami-id";
        assert_eq!(at("ubuntu-24.04", "arm64"), Some((ubuntu.to_owned(), "ubuntu")));
        let jammy = "/aws/service/canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id";
        assert_eq!(at("ubuntu-22.04", "x86_64"), Some((jammy.to_owned(), "ubuntu")));
        assert_eq!(at("debian-12", "x86_64").unwrap().0, "/aws/service/debian/release/12/latest/amd64");
        let amazon = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64";
        assert_eq!(at("al2023", "x86_64"), Some((amazon.to_owned(), "ec2-user")));
        assert_eq!(at("windows", "x86_64"), None);
    }

    #[test]
    fn a_price_is_found_in_the_price_list() {
        let product = r#"{"terms":{"OnDemand":{"A":{"priceDimensions":{
            "A.0":{"unit":"Hrs","pricePerUnit":{"USD":"0.0728000000"}}}}}}}"#;
        assert_eq!(hourly(product), Some(0.0728));
        assert_eq!(hourly(r#"{"terms":{}}"#), None);
        let several = product.replace("\"A.0\"", "\"A.1\":{\"pricePerUnit\":{\"USD\":\"0.1\"}},\"A.0\"");
        assert_eq!(hourly(&several), Some(0.1));
    }

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
        };
        let pool = Pool { instance: "t4g.small".into(), zone: "a".into(), subnet: "s".into() };
        let ground = Ground {
            image,
            vpc: "vpc-1".into(),
            public: true,
            unpriced: None,
            pools: vec![pool],
            processors: BTreeMap::new(),
            spot: BTreeMap::new(),
            on_demand: BTreeMap::from([("t4g.small".to_owned(), 0.02)]),
            surplus: 0.0,
            notes: Vec::new(),
        };
        let most = |ground: &Ground| match ground.most(&Ec2Spec::default()) {
            Price::PerHour(dollars) => Some(dollars),
            _ => None,
        };
        let plain = most(&ground).unwrap();
        assert!(plain > 0.02 + ADDRESS, "{plain}");
        // What bursts can cost more; a further volume does.
        assert!(most(&Ground { surplus: 0.1, ..ground.clone() }).unwrap() > plain + 0.099);
        let more = Image { more_gib: 100, ..ground.image.clone() };
        assert!(most(&Ground { image: more, ..ground.clone() }).unwrap() > plain + 0.02);
        let paid = Image { unpriced: Some("RHEL".into()), ..ground.image.clone() };
        assert_eq!(most(&Ground { image: paid, ..ground.clone() }), None);
        let dedicated = Some("of dedicated tenancy".to_owned());
        assert_eq!(most(&Ground { unpriced: dedicated, ..ground.clone() }), None);
        assert_eq!(most(&Ground { on_demand: BTreeMap::new(), ..ground }), None);
    }
}
