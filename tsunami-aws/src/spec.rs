//! What a group of machines on EC2 is asked to be.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What to launch: the [`MachineSpec`](tsunami_core::MachineSpec) of an [`Ec2Provider`](crate::Ec2Provider).
///
/// ```
/// use tsunami_aws::{Ec2Spec, Market};
/// use tsunami_core::MachineSpec;
///
/// let spec = Ec2Spec {
///     instances: vec!["c7g.large".into(), "c6g.large".into()],
///     markets: vec![Market::Spot, Market::OnDemand],
///     ..Ec2Spec::default()
/// };
/// assert_eq!(spec.image, "ubuntu-24.04");
/// let spec = MachineSpec::new(spec);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ec2Spec {
    /// The region; `None` is the provider's first one.
    pub region: Option<String>,
    /// The availability zone; `None` is any that has what is asked for.
    pub zone: Option<String>,
    /// Where to buy, in the order to try; at least one.
    pub markets: Vec<Market>,
    /// The most that an hour of a spot machine may cost, in US dollars; `None` is the on-demand price.
    pub max_price: Option<f64>,
    /// Instance types, any one of which will do; at least one, all of one architecture.
    pub instances: Vec<String>,
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
    /// A security group; `None` makes one for the run.
    pub security_group: Option<String>,
    /// Who may connect by SSH, as CIDR blocks; empty is this computer's address, as it is found out.
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
    /// Whether the price of one replacement a machine counts towards what the group may cost. Whether there are
    /// replacements is the [group's](tsunami_core::Group::replace_interrupted) affair.
    pub replace_interrupted: bool,
    /// Whether spot blocks are asked of the service (`BlockDurationMinutes`, for endpoints that still take it)
    /// rather than promised by tsunami.
    pub native_spot_block: bool,
}

impl Default for Ec2Spec {
    fn default() -> Self {
        Self {
            region: None,
            zone: None,
            markets: vec![Market::OnDemand],
            max_price: None,
            instances: Vec::new(),
            mixed: false,
            image: "ubuntu-24.04".to_owned(),
            user: None,
            disk: None,
            subnet: None,
            security_group: None,
            ssh_from: Vec::new(),
            open_ports: Vec::new(),
            placement_group: false,
            iam_profile: None,
            user_data: None,
            tags: Vec::new(),
            wait_for_cloud_init: true,
            replace_interrupted: false,
            native_spot_block: false,
        }
    }
}

/// Where machines are bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Market {
    /// At the full price, for as long as wanted.
    OnDemand,
    /// What nobody else pays the full price for; may be taken back at any time, with two minutes' notice.
    Spot,
    /// Spot with an end fixed at birth. AWS sold this as a product until December 2022; now it is a promise
    /// that tsunami keeps: one-time spot, the deadline armed in the first boot, interruptions noticed and told
    /// apart from failures, and replaced if the group says so.
    SpotBlock,
}

impl Market {
    /// Whether it is one of the spot kinds.
    pub(crate) fn is_spot(self) -> bool {
        self != Self::OnDemand
    }
}

impl fmt::Display for Market {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OnDemand => "on-demand",
            Self::Spot => "spot",
            Self::SpotBlock => "spot-block",
        })
    }
}

/// A text that names no market.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no market: use \"on-demand\", \"spot\" or \"spot-block\"")]
pub struct InvalidMarket(String);

impl FromStr for Market {
    type Err = InvalidMarket;

    fn from_str(text: &str) -> Result<Self, InvalidMarket> {
        match text {
            "on-demand" => Ok(Self::OnDemand),
            "spot" => Ok(Self::Spot),
            "spot-block" => Ok(Self::SpotBlock),
            _ => Err(InvalidMarket(text.to_owned())),
        }
    }
}

/// A root volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its size in GiB; `None` is the image's.
    pub gib: Option<u32>,
    /// Its type: `gp3`, `gp2`, `io2`, …
    pub kind: String,
}
