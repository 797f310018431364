//! What is asked of EC2, as data: the requests that create something, whole, so that one made twice is the same.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::spec::Disk;

/// The tags of a resource.
pub(crate) type Tags = BTreeMap<String, String>;

/// A request that creates something, whole: made twice, it is the same request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CreateRequest {
    pub(crate) region: String,
    /// Names what it creates, derived from the run: twice the same name is twice the same resource.
    pub(crate) name: String,
    pub(crate) tags: Tags,
    #[serde(rename = "what")]
    pub(crate) kind: CreateKind,
}

/// What a request creates.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CreateKind {
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
    /// Whether machines get a public address, where that is not left to their subnet.
    #[serde(default)]
    pub(crate) public: Option<bool>,
    /// Whether machines have addresses of IPv6 and no others.
    #[serde(default)]
    pub(crate) ipv6: bool,
    pub(crate) user_data: String,
    pub(crate) root_device: String,
    pub(crate) disk: Option<Disk>,
    pub(crate) iam_profile: Option<String>,
    pub(crate) placement_group: Option<String>,
    pub(crate) spot: bool,
    #[serde(default)]
    pub(crate) reservation: Option<(String, ReservedKind)>,
}

/// What machines are asked for as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purchase {
    OnDemand,
    Spot,
    Reserved,
}

/// What kind a reservation is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReservedKind {
    OnDemand,
    /// A Capacity Block, which has an end.
    Block,
    /// Lent by somebody who may take it back.
    Interruptible,
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
    /// The kind of the reservation that the template names.
    #[serde(default)]
    pub(crate) reserved: Option<ReservedKind>,
    pub(crate) token: String,
}

/// One instance type in one zone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Pool {
    pub(crate) instance: String,
    pub(crate) zone: String,
    pub(crate) subnet: String,
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.instance, self.zone)
    }
}

impl CreateRequest {
    /// The name of the request itself, also as a part of a file's name.
    pub(crate) fn name(&self) -> String {
        let kind = match self.kind {
            CreateKind::SecurityGroup { .. } => "security-group",
            CreateKind::KeyPair { .. } => "key-pair",
            CreateKind::PlacementGroup => "placement-group",
            CreateKind::LaunchTemplate(_) => "launch-template",
            CreateKind::Fleet(_) | CreateKind::Instances(_) => "instances",
        };
        format!("{kind}-{}-{}", self.region, self.name)
    }

    /// The machines that it asks for, if it does.
    pub(crate) fn fleet(&self) -> Option<&Fleet> {
        match &self.kind {
            CreateKind::Fleet(fleet) | CreateKind::Instances(fleet) => Some(fleet),
            _ => None,
        }
    }

    /// Whether it creates machines.
    pub(crate) fn makes_instances(&self) -> bool {
        self.fleet().is_some()
    }

    /// What machines are asked for as, if they are.
    pub(crate) fn purchase(&self) -> Option<Purchase> {
        self.fleet().map(|fleet| match (fleet.reserved, fleet.spot) {
            (Some(_), _) => Purchase::Reserved,
            (None, true) => Purchase::Spot,
            (None, false) => Purchase::OnDemand,
        })
    }
}

/// An idempotency token: what is made of the same parts is the same request.
pub(crate) fn token(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.len().to_le_bytes());
        hasher.update(part);
    }
    // EC2 takes up to 64 ASCII characters.
    format!("{:x}", hasher.finalize())
}

/// A time to the second, as tags have it.
pub(crate) fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
