//! What a group of machines on EC2 is asked to be.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::Purchase;
use crate::shape::Shape;

/// What to launch: the [`MachineSpec`](tsunami_core::MachineSpec) of an [`Ec2Provider`](crate::Ec2Provider).
///
/// ```
/// use tsunami_aws::{Ec2Spec, Market};
/// use tsunami_core::MachineSpec;
///
/// let spec = Ec2Spec::new(["c7g.large", "c6g.large"]).markets([Market::Spot, Market::OnDemand]);
/// assert_eq!(spec.image, "ubuntu-24.04");
/// let spec = MachineSpec::new(spec);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Ec2Spec {
    /// The region; `None` is the provider's first one.
    pub region: Option<String>,
    /// The availability zone; `None` is any that has what is asked for.
    pub zone: Option<String>,
    /// Where to buy, in the order to try; at least one.
    pub markets: Vec<Market>,
    /// The most that an hour of a spot machine may cost, in US dollars; `None` is the on-demand price.
    pub max_price: Option<f64>,
    /// Instance types, any one of which will do; at least one, all of one architecture. Empty leaves it to `shape`.
    pub instances: Vec<String>,
    /// What instance types have to have. Which ones that are is [chosen](tsunami_core::Provider::choose) once, before the
    /// launch: then `instances` names them.
    pub shape: Option<Shape>,
    /// Whether machines may differ in type and zone.
    pub mixed: bool,
    /// An alias (`ubuntu-24.04`, `debian-12`, `al2023`), an id (`ami-…`), or the path of a public parameter
    /// (`ssm:/aws/service/…`).
    pub image: String,
    /// The user to log in as; `None` is the one that the image is known to have.
    pub user: Option<String>,
    /// The root volume, where it is not to be as the image has it.
    pub disk: Option<Disk>,
    /// A subnet; `None` is the default one of the zone.
    pub subnet: Option<String>,
    /// Whether machines have public addresses; `None` is as their subnet has it.
    pub reach: Option<Reach>,
    /// A security group; `None` makes one for the run.
    pub security_group: Option<String>,
    /// Who may connect by SSH, as CIDR blocks. Empty is this computer's address, as it is found out; where machines have
    /// no public address, whoever is in their network.
    pub ssh_from: Vec<String>,
    /// Ports that the run's machines in other regions may reach, both by TCP and UDP.
    pub open_ports: Vec<u16>,
    /// Whether to keep the machines close together, in a cluster placement group of their own.
    pub placement_group: bool,
    /// The name of an instance profile.
    pub iam_profile: Option<String>,
    /// User data of the user's own, beside tsunami's: anything that cloud-init takes, as text.
    pub user_data: Option<String>,
    /// More tags.
    pub tags: Vec<(String, String)>,
    /// Whether set-up waits for cloud-init to finish.
    pub wait_for_cloud_init: bool,
    /// Whether spot blocks are asked of the service (`BlockDurationMinutes`, for endpoints that still take it)
    /// rather than promised by tsunami.
    pub native_spot_block: bool,
    /// The reservations of the market [`Reservation`](Market::Reservation), in the order to try.
    pub reservations: Vec<Reservation>,
}

impl Ec2Spec {
    /// Any one of these instance types, with all else as usual.
    pub fn new(instances: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::default().instances(instances)
    }

    /// Sets the region, one of those of the provider.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// Sets the availability zone.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets where to buy, in the order to try. Default: on demand.
    pub fn markets(mut self, markets: impl IntoIterator<Item = Market>) -> Self {
        self.markets = markets.into_iter().collect();
        self
    }

    /// Sets the most that an hour of a spot machine may cost, in US dollars.
    pub fn max_price(mut self, dollars: f64) -> Self {
        self.max_price = Some(dollars);
        self
    }

    /// Sets the instance types, any one of which will do.
    pub fn instances(mut self, instances: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.instances = instances.into_iter().map(Into::into).collect();
        self.shape = None;
        self
    }

    /// Sets what instance types have to have, in place of their names.
    pub fn shape(mut self, shape: Shape) -> Self {
        self.instances.clear();
        self.shape = Some(shape);
        self
    }

    /// Sets whether machines may differ in type and zone.
    pub fn mixed(mut self, mixed: bool) -> Self {
        self.mixed = mixed;
        self
    }

    /// Sets the image: an alias, an id, or a public parameter. Default: `ubuntu-24.04`.
    pub fn image(mut self, image: impl Into<String>) -> Self {
        self.image = image.into();
        self
    }

    /// Sets the user to log in as.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Sets the root volume.
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disk = Some(disk);
        self
    }

    /// Sets a subnet.
    pub fn subnet(mut self, subnet: impl Into<String>) -> Self {
        self.subnet = Some(subnet.into());
        self
    }

    /// Sets whether machines have public addresses.
    pub fn reach(mut self, reach: Reach) -> Self {
        self.reach = Some(reach);
        self
    }

    /// Sets a security group.
    pub fn security_group(mut self, security_group: impl Into<String>) -> Self {
        self.security_group = Some(security_group.into());
        self
    }

    /// Sets who may connect by SSH, as CIDR blocks.
    pub fn ssh_from(mut self, ssh_from: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.ssh_from = ssh_from.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the ports that the run's machines in other regions may reach.
    pub fn open_ports(mut self, open_ports: impl IntoIterator<Item = u16>) -> Self {
        self.open_ports = open_ports.into_iter().collect();
        self
    }

    /// Sets whether to keep the machines close together.
    pub fn placement_group(mut self, placement_group: bool) -> Self {
        self.placement_group = placement_group;
        self
    }

    /// Sets the name of an instance profile.
    pub fn iam_profile(mut self, iam_profile: impl Into<String>) -> Self {
        self.iam_profile = Some(iam_profile.into());
        self
    }

    /// Sets user data of the user's own.
    pub fn user_data(mut self, user_data: impl Into<String>) -> Self {
        self.user_data = Some(user_data.into());
        self
    }

    /// Adds a tag.
    pub fn tag(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.push((name.into(), value.into()));
        self
    }

    /// Sets whether set-up waits for cloud-init to finish. Default: it does.
    pub fn wait_for_cloud_init(mut self, wait_for_cloud_init: bool) -> Self {
        self.wait_for_cloud_init = wait_for_cloud_init;
        self
    }

    /// Sets whether spot blocks are asked of the service.
    pub fn native_spot_block(mut self, native_spot_block: bool) -> Self {
        self.native_spot_block = native_spot_block;
        self
    }

    /// Sets the reservations of the market of that name, in the order to try.
    pub fn reservations(mut self, reservations: impl IntoIterator<Item = Reservation>) -> Self {
        self.reservations = reservations.into_iter().collect();
        self
    }
}

impl Default for Ec2Spec {
    fn default() -> Self {
        Self {
            region: None,
            zone: None,
            markets: vec![Market::OnDemand],
            max_price: None,
            instances: Vec::new(),
            shape: None,
            mixed: false,
            image: "ubuntu-24.04".to_owned(),
            user: None,
            disk: None,
            subnet: None,
            reach: None,
            security_group: None,
            ssh_from: Vec::new(),
            open_ports: Vec::new(),
            placement_group: false,
            iam_profile: None,
            user_data: None,
            tags: Vec::new(),
            wait_for_cloud_init: true,
            native_spot_block: false,
            reservations: Vec::new(),
        }
    }
}

/// Where machines are bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Market {
    /// At the full price, for as long as wanted.
    OnDemand,
    /// What nobody else pays the full price for; may be taken back at any time, with two minutes' notice.
    Spot,
    /// Spot with an end fixed at birth. AWS sold this as a product until December 2022; now it is a promise
    /// that tsunami keeps: one-time spot, the deadline armed in the first boot, interruptions noticed and told
    /// apart from failures, and replaced if the group says so.
    SpotBlock,
    /// What the account has reserved: on-demand reservations, Capacity Blocks and interruptible reservations, as
    /// [`Ec2Spec::reservations`] names them. Nothing else is launched where they have no room.
    Reservation,
}

/// Capacity that is reserved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reservation {
    /// By its id, `cr-…`.
    Id(String),
    /// All that have this tag.
    Tag {
        /// The tag's name.
        key: String,
        /// Its value.
        value: String,
    },
}

impl Reservation {
    /// The reservation with this id.
    pub fn id(id: impl Into<String>) -> Self {
        Self::Id(id.into())
    }

    /// All reservations with this tag.
    pub fn tag(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self::Tag { key: key.into(), value: value.into() }
    }
}

impl fmt::Display for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "reservation {id}"),
            Self::Tag { key, value } => write!(f, "reservation with the tag {key}={value}"),
        }
    }
}

impl Market {
    /// All of them by their words, as files have them.
    pub(crate) const WORDS: [(&'static str, Self); 4] = [
        (Self::OnDemand.word(), Self::OnDemand),
        (Self::Spot.word(), Self::Spot),
        (Self::SpotBlock.word(), Self::SpotBlock),
        (Self::Reservation.word(), Self::Reservation),
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::OnDemand => "on-demand",
            Self::Spot => "spot",
            Self::SpotBlock => "spot-block",
            Self::Reservation => "reservation",
        }
    }

    /// By which price list it is paid.
    pub(crate) fn pricing(self) -> &'static str {
        if self.is_spot() { Self::Spot.word() } else { Self::OnDemand.word() }
    }

    /// Whether it is one of the spot kinds.
    pub(crate) fn is_spot(self) -> bool {
        matches!(self, Self::Spot | Self::SpotBlock)
    }

    /// What EC2 is asked for.
    pub(crate) fn purchase(self) -> Purchase {
        match self {
            Self::OnDemand => Purchase::OnDemand,
            Self::Spot | Self::SpotBlock => Purchase::Spot,
            Self::Reservation => Purchase::Reserved,
        }
    }
}

impl fmt::Display for Market {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// By which addresses machines are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reach {
    /// By public ones, whatever their subnet is set to.
    Public,
    /// By those of their network, from within it or through something that leads there: they have no others.
    Private,
}

impl Reach {
    /// All of them by their words, as files have them.
    #[cfg(feature = "experiment")]
    pub(crate) const WORDS: [(&'static str, Self); 2] =
        [("public", Self::Public), ("private", Self::Private)];
}

/// A text that names no market.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no market: use \"on-demand\", \"spot\", \"spot-block\" or \"reservation\"")]
pub struct InvalidMarket(String);

impl FromStr for Market {
    type Err = InvalidMarket;

    fn from_str(text: &str) -> Result<Self, InvalidMarket> {
        let market = Self::WORDS.iter().find(|(word, _)| *word == text).map(|(_, market)| *market);
        market.ok_or_else(|| InvalidMarket(text.to_owned()))
    }
}

/// A root volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Disk {
    /// Its size in GiB; `None` is the image's.
    pub gib: Option<u32>,
    /// Its type: `gp3`, `gp2`, `io2`, …
    pub kind: String,
    /// Its operations a second; `io1` and `io2` need them said.
    #[serde(default)]
    pub iops: Option<u32>,
    /// Its throughput in MiB a second; `gp3` alone takes it.
    #[serde(default)]
    pub throughput: Option<u32>,
}

/// What EC2 takes for a type of volume.
struct VolumeLimits {
    gib: (u32, u32),
    /// The least and the most, and the most for each GiB.
    iops: Option<(u32, u32, u32)>,
    throughput: Option<(u32, u32)>,
}

/// <https://docs.aws.amazon.com/ebs/latest/userguide/ebs-volume-types.html>
fn volume_limits(kind: &str) -> Option<VolumeLimits> {
    let (gib, iops, throughput) = match kind {
        "gp3" => ((1, 64 << 10), Some((3000, 80_000, 500)), Some((125, 2000))),
        "gp2" => ((1, 16 << 10), None, None),
        "io1" => ((4, 16 << 10), Some((100, 64_000, 50)), None),
        "io2" => ((4, 64 << 10), Some((100, 256_000, 1000)), None),
        "standard" => ((1, 1 << 10), None, None),
        _ => return None,
    };
    Some(VolumeLimits { gib, iops, throughput })
}

/// The types of disk that a machine can boot from.
pub(crate) const DISK_TYPES: &[&str] = &["gp3", "gp2", "io2", "io1", "standard"];

/// What is wrong with a type of disk that is none of [`DISK_TYPES`].
pub(crate) fn wrong_disk_type(kind: &str) -> Option<String> {
    match kind {
        "st1" | "sc1" => Some(format!("a machine can't boot from a disk of type `{kind}`: use `gp3`")),
        _ => (!DISK_TYPES.contains(&kind)).then(|| format!("`{kind}` is no type of disk")),
    }
}

/// Whether a type of volume costs what its size does, unless more is asked for.
pub(crate) fn is_general_purpose(kind: &str) -> bool {
    matches!(kind, "gp2" | "gp3")
}

impl Disk {
    /// A volume of this type, of the image's size, with what the type gives by itself.
    ///
    /// ```
    /// use tsunami_aws::Disk;
    ///
    /// let disk = Disk::new("gp3").gib(100).iops(6000).throughput(500);
    /// assert_eq!((disk.gib, disk.iops), (Some(100), Some(6000)));
    /// ```
    pub fn new(kind: impl Into<String>) -> Self {
        Self { gib: None, kind: kind.into(), iops: None, throughput: None }
    }

    /// Sets its size in GiB.
    pub fn gib(mut self, gib: u32) -> Self {
        self.gib = Some(gib);
        self
    }

    /// Sets its operations a second.
    pub fn iops(mut self, iops: u32) -> Self {
        self.iops = Some(iops);
        self
    }

    /// Sets its throughput in MiB a second.
    pub fn throughput(mut self, throughput: u32) -> Self {
        self.throughput = Some(throughput);
        self
    }

    /// Whether it costs what its size does.
    pub(crate) fn is_plain(&self) -> bool {
        let included =
            self.iops.is_none_or(|iops| iops <= 3000) && self.throughput.is_none_or(|rate| rate <= 125);
        is_general_purpose(&self.kind) && included
    }

    /// What EC2 would refuse of a root volume of this size, in GiB.
    pub(crate) fn beyond_limits(&self, gib: u32) -> Option<String> {
        let kind = &self.kind;
        let Some(limits) = volume_limits(kind) else { return wrong_disk_type(kind) };
        let (least, most) = limits.gib;
        if !(least..=most).contains(&gib) {
            return Some(format!("a disk of type {kind} has {least} to {most} GiB, not {gib}"));
        }
        match (self.iops, limits.iops) {
            (None, Some(_)) if kind != "gp3" => {
                return Some(format!("a disk of type {kind} needs `iops`, its operations a second"));
            }
            (Some(_), None) => return Some(format!("a disk of type {kind} takes no `iops`")),
            (Some(iops), Some((least, most, each))) => {
                let most = most.min(gib.saturating_mul(each).max(least));
                if !(least..=most).contains(&iops) {
                    return Some(format!(
                        "a disk of type {kind} with {gib} GiB takes `iops` from {least} to {most}, not {iops}"
                    ));
                }
            }
            (None, _) => {}
        }
        match (self.throughput, limits.throughput) {
            (Some(_), None) => Some(format!("a disk of type {kind} takes no `throughput`")),
            (Some(rate), Some((least, most))) => {
                // A quarter of a MiB for each operation.
                let most = most.min(self.iops.unwrap_or(3000) / 4);
                (!(least..=most).contains(&rate)).then(|| {
                    format!("a disk of type {kind} with these `iops` takes a `throughput` from {least} to {most} MiB \
                             a second, not {rate}")
                })
            }
            (None, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_market_is_read_by_the_word_that_it_shows() {
        let wrong = "sopt".parse::<Market>().unwrap_err().to_string();
        for (word, market) in Market::WORDS {
            assert_eq!((word.parse(), market.to_string().as_str()), (Ok(market), word));
            assert!(wrong.contains(&format!("\"{word}\"")), "{wrong}");
        }
    }

    #[test]
    fn a_disk_is_within_the_limits_of_its_type() {
        let disk = |kind: &str, iops, throughput| Disk { gib: None, kind: kind.to_owned(), iops, throughput };
        for (kind, gib, iops, throughput) in [
            ("gp3", 8, None, None),
            ("gp3", 8, Some(4000), Some(1000)),
            ("gp3", 160, Some(80_000), Some(2000)),
            ("gp2", 8, None, None),
            ("io1", 100, Some(5000), None),
            ("io2", 8, Some(8000), None),
            ("standard", 8, None, None),
        ] {
            let wrong = disk(kind, iops, throughput).beyond_limits(gib);
            assert_eq!(wrong, None, "{kind} {gib} {iops:?} {throughput:?}");
        }
        for kind in DISK_TYPES {
            assert!(volume_limits(kind).is_some() && wrong_disk_type(kind).is_none(), "{kind}");
        }
        for (kind, gib, iops, throughput, why) in [
            ("gp3", 8, Some(4001), None, "from 3000 to 4000"),
            ("gp3", 8, Some(2999), None, "from 3000"),
            ("gp3", 8, None, Some(751), "from 125 to 750"),
            ("gp2", 8, Some(3000), None, "takes no `iops`"),
            ("gp2", 20_000, None, None, "1 to 16384 GiB"),
            ("io1", 8, None, None, "needs `iops`"),
            ("io1", 8, Some(401), None, "from 100 to 400"),
            ("io2", 8, Some(8000), Some(125), "takes no `throughput`"),
            ("st1", 500, None, None, "can't boot"),
            ("sc1", 500, None, None, "can't boot"),
            ("standard", 2000, None, None, "1 to 1024 GiB"),
            ("gp9", 8, None, None, "no type"),
        ] {
            let wrong = disk(kind, iops, throughput).beyond_limits(gib).unwrap_or_default();
            assert!(wrong.contains(why), "{kind} {gib} {iops:?} {throughput:?}: {wrong}");
        }
    }
}
