//! What launches of one process know of each other.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tsunami_core::{ProviderError, RunId};

use crate::address::OwnAddress;
use crate::model::Pool;
use crate::region::Region;
use crate::resolve::ResolvedSpec;
use crate::spec::Ec2Spec;

/// For how long an offering without capacity is not asked for again.
const UNAVAILABLE_TTL: Duration = Duration::from_secs(180);

/// What launches share.
#[derive(Debug)]
pub(crate) struct LaunchState {
    /// Who launches, for a tag.
    pub(crate) owner: String,
    pub(crate) address: OwnAddress,
    pub(crate) locks: NamedLocks<LockKey>,
    pub(crate) unavailable_offerings: UnavailableOfferings,
    /// What was let in by this process.
    pub(crate) opened: tokio::sync::Mutex<HashSet<Opening>>,
}

impl LaunchState {
    pub(crate) fn new(owner: String, address: OwnAddress) -> Self {
        Self {
            owner,
            address,
            locks: NamedLocks::default(),
            unavailable_offerings: UnavailableOfferings::default(),
            opened: Default::default(),
        }
    }

    /// Who may connect by SSH to machines of a spec, as CIDR blocks, unless they have a security group of the user's. By
    /// which way this computer comes to private addresses nobody can tell: it is let in from their network.
    pub(crate) async fn ssh_from(
        &self,
        spec: &Ec2Spec,
        region: &Region,
        resolved: &ResolvedSpec,
    ) -> Result<Vec<String>, ProviderError> {
        let (from, whose) = match spec.ssh_from.as_slice() {
            [] if resolved.public => (vec![self.address.get().await?], "this computer's address"),
            [] => (resolved.blocks.clone(), "their network"),
            given => (given.to_vec(), "`ssh_from`"),
        };
        let family = if resolved.ipv6 { "IPv6" } else { "IPv4" };
        if from.iter().any(|block| block.contains(':') == resolved.ipv6) {
            return Ok(from);
        }
        let from = if from.is_empty() { "nothing".to_owned() } else { from.join(", ") };
        let message = format!(
            "machines have {family} addresses there, and {whose}, from which SSH is let in, is {from}"
        );
        let help = format!("say by which blocks of {family} to connect: `ssh_from`");
        Err(region.invalid(message).key("ssh_from").help(help))
    }
}

/// What must not be done twice at the same time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LockKey {
    /// The launch of a group of a run.
    Group { run: RunId, group: String },
    /// Making what a run has in a region before its first machine.
    RunResources { run: RunId, region: String },
}

/// What a run's security group in a region lets in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Opening {
    pub(crate) run: RunId,
    pub(crate) region: String,
    pub(crate) to: Peer,
}

/// Who is let in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    /// Whoever may connect by SSH, and the run's machines of the same region.
    Usual,
    /// A machine of the run's in another region, by its address.
    Machine(String),
}

/// A lock for each key.
#[derive(Debug)]
pub(crate) struct NamedLocks<K>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>);

impl<K> Default for NamedLocks<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> NamedLocks<K> {
    /// The lock of this key.
    pub(crate) fn named_lock(&self, key: K) -> Arc<tokio::sync::Mutex<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }
}

/// A pool of a region, as spot or on-demand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Offering {
    pub(crate) region: String,
    pub(crate) spot: bool,
    pub(crate) pool: Pool,
}

/// Offerings that had no capacity, since when, and for how many at the least.
#[derive(Debug, Default)]
pub(crate) struct UnavailableOfferings(Mutex<HashMap<Offering, (Instant, u32)>>);

impl UnavailableOfferings {
    /// How long ago so many were refused there, or fewer, if that may still be so.
    pub(crate) fn since(&self, offering: &Offering, wanted: u32) -> Option<Duration> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, least) = known.get(offering)?;
        Some(since.elapsed()).filter(|ago| *ago < UNAVAILABLE_TTL && wanted >= *least)
    }

    /// Remembers that so many were refused there.
    pub(crate) fn add(&self, offering: Offering, refused: u32) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let earlier = known.get(&offering).filter(|(since, _)| since.elapsed() < UNAVAILABLE_TTL);
        let least = earlier.map_or(refused, |(_, least)| refused.min(*least));
        known.insert(offering, (Instant::now(), least));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_had_no_room_for_some_is_remembered_for_a_while_and_only_for_as_many() {
        let pool = Pool { instance: "c7g.large".into(), zone: "a".into(), subnet: "s".into() };
        let spot = Offering { region: "eu-west-1".into(), spot: true, pool };
        let on_demand = Offering { spot: false, ..spot.clone() };
        let unavailable = UnavailableOfferings::default();
        unavailable.add(spot.clone(), 3);
        let has = |offering: &Offering, wanted| unavailable.since(offering, wanted).is_some();
        assert!(has(&spot, 3) && has(&spot, 4));
        assert!(!has(&spot, 2) && !has(&on_demand, 3));
        // More that are refused tell nothing of fewer.
        unavailable.add(spot.clone(), 5);
        assert!(has(&spot, 3));
        tokio::time::advance(UNAVAILABLE_TTL).await;
        assert!(!has(&spot, 3));
        unavailable.add(spot.clone(), 5);
        assert!(!has(&spot, 4) && has(&spot, 5));
    }
}
