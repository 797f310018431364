//! Capacity that the account has reserved, as far as a spec asks for it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use aws_sdk_ec2::types::{
    CapacityReservation, CapacityReservationInstancePlatform, CapacityReservationState,
    CapacityReservationTenancy, CapacityReservationType, Filter,
};
use tsunami_core::ProviderError;

use super::ResolveKey;
use crate::error::Result;
use crate::limited::pages;
use crate::model::{Pool, ReservedKind};
use crate::region::Region;
use crate::spec::{Market, Reservation};
use crate::text;

/// So long before a Capacity Block is over, EC2 begins to end what is in it.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-capacity-blocks.html>
const BLOCK_CLEARANCE: Duration = Duration::from_secs(30 * 60);

/// A reservation that machines may be put into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub(crate) id: String,
    pub(crate) kind: ReservedKind,
    pub(crate) pool: Pool,
    /// For how many machines it had room when it was looked at.
    pub(crate) free: u32,
    /// When EC2 ends what is in it, by our clock.
    pub(crate) ends: Option<SystemTime>,
}

impl Reserved {
    /// Whether machines may live there until then.
    pub(crate) fn lasts(&self, until: SystemTime) -> bool {
        self.ends.is_none_or(|ends| ends >= until)
    }
}

impl fmt::Display for Reserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ReservedKind::OnDemand => "reservation",
            ReservedKind::Block => "Capacity Block",
            ReservedKind::Interruptible => "interruptible reservation",
        };
        write!(f, "{kind} {}, with room for {}", self.id, self.free)?;
        match self.ends {
            None => Ok(()),
            Some(ends) => {
                write!(f, ", whose machines are ended at {}", humantime::format_rfc3339_seconds(ends))
            }
        }
    }
}

/// The reservations of a spec, in its order: those that are named have to fit it, of those that a tag finds some have to.
/// `subnets` are those that may be used, by their zones.
pub(super) async fn reservations(
    key: &ResolveKey,
    region: &Region,
    subnets: &BTreeMap<String, String>,
) -> Result<Vec<Reserved>, ProviderError> {
    let mut usable: Vec<Reserved> = Vec::new();
    if !key.markets.contains(&Market::Reservation) {
        return Ok(usable);
    }
    for wanted in &key.reservations {
        let found = find(wanted, region).await?;
        let (mut fit, mut others) = (Vec::new(), Vec::new());
        for reservation in &found {
            match fitting(reservation, key, region, subnets) {
                Ok(reserved) => fit.push(reserved),
                Err(why) => others.push(why),
            }
        }
        let is_wrong = match wanted {
            Reservation::Id(_) => !others.is_empty() || fit.is_empty(),
            Reservation::Tag { .. } => fit.is_empty(),
        };
        if is_wrong {
            let why = if others.is_empty() { "there is none".to_owned() } else { others.join("; ") };
            let message = format!("{wanted} can't be used: {why}");
            return Err(region.invalid(message).key("reservation").help(format!(
                "`aws ec2 describe-capacity-reservations --region {}` shows the reservations",
                region.name
            )));
        }
        for reserved in fit {
            if usable.iter().all(|known| known.id != reserved.id) {
                usable.push(reserved);
            }
        }
    }
    Ok(usable)
}

/// Looks at them as they are now. What a tag finds is there to be used.
async fn find(wanted: &Reservation, region: &Region) -> Result<Vec<CapacityReservation>> {
    let request = region.ec2.describe_capacity_reservations();
    let request = match wanted {
        Reservation::Id(id) => request.capacity_reservation_ids(id),
        Reservation::Tag { key, value } => {
            let filter = |name: &str, value: &str| Filter::builder().name(name).values(value).build();
            request.filters(filter(&format!("tag:{key}"), value)).filters(filter("state", "active"))
        }
    };
    Ok(pages!(region, "DescribeCapacityReservations", request.clone(), capacity_reservations))
}

/// What of a reservation matters, or why it can't be used.
fn fitting(
    reservation: &CapacityReservation,
    key: &ResolveKey,
    region: &Region,
    subnets: &BTreeMap<String, String>,
) -> Result<Reserved, String> {
    let id = text::word(reservation.capacity_reservation_id()).ok_or("one has no id")?;
    let instance = text::word(reservation.instance_type()).unwrap_or_default();
    let zone = text::word(reservation.availability_zone()).unwrap_or_default();
    let state = reservation.state().map_or("unknown", CapacityReservationState::as_str);
    if state != CapacityReservationState::Active.as_str() {
        return Err(format!("{id} is {}", text::line(state)));
    }
    let platform = reservation.instance_platform();
    if let Some(other) = platform.filter(|it| **it != CapacityReservationInstancePlatform::LinuxUnix) {
        return Err(format!("{id} is for {}, and machines run Linux/UNIX", text::line(other.as_str())));
    }
    if reservation.tenancy() == Some(&CapacityReservationTenancy::Dedicated) {
        return Err(format!("{id} is of dedicated tenancy"));
    }
    if !key.instances.contains(&instance) {
        return Err(format!("{id} is of {instance}, and `instance` is {}", key.instances.join(", ")));
    }
    let Some(subnet) = subnets.get(&zone) else {
        let zones: Vec<&str> = subnets.keys().map(String::as_str).collect();
        return Err(format!("{id} is in {zone}, and machines may be in {}", zones.join(", ")));
    };
    let kind = match (reservation.reservation_type(), reservation.interruptible()) {
        (Some(CapacityReservationType::CapacityBlock), _) => ReservedKind::Block,
        (_, Some(true)) => ReservedKind::Interruptible,
        _ => ReservedKind::OnDemand,
    };
    Ok(Reserved {
        id,
        kind,
        pool: Pool { instance, zone, subnet: subnet.clone() },
        free: reservation.available_instance_count().and_then(|free| u32::try_from(free).ok()).unwrap_or(0),
        ends: block_end(reservation, region),
    })
}

/// When EC2 ends what is in a reservation, by our clock. What is in an on-demand one goes on when that ends.
pub(crate) fn block_end(reservation: &CapacityReservation, region: &Region) -> Option<SystemTime> {
    let is_block = reservation.reservation_type() == Some(&CapacityReservationType::CapacityBlock);
    let ends = reservation.end_date().filter(|_| is_block)?;
    region.clock.ours(SystemTime::try_from(*ends).ok()?).checked_sub(BLOCK_CLEARANCE)
}
