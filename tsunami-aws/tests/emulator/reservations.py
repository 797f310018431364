"""Capacity that is reserved: for whom it has room, and its end."""

import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from account import ACCOUNT
from protocol import ApiError, matches, page, tag_list, tags_for

# So long before a Capacity Block is over, what is in it is ended.
CLEARANCE = 30 * 60

# The kinds of reservations as fleets call them, and the market type that their instances need.
KINDS = {"on-demand-capacity-reservation": None, "capacity-block": "capacity-block",
         "interruptible-capacity-reservation": "interruptible-capacity-reservation"}

# EC2 documents no code for these ends: it is taken to say that the service, and not the user, ended the instance.
TAKEN_BACK = ("Server.CapacityReservationInterruption", "The capacity was taken back")


@dataclass
class Reservation:
    region: str
    type: str
    zone: str
    count: int
    kind: str = "on-demand-capacity-reservation"
    platform: str = "Linux/UNIX"
    tenancy: str = "default"
    state: str = "active"
    match: str = "targeted"
    ends: float | None = None
    id: str = field(default_factory=lambda: "cr-" + uuid.uuid4().hex[:17])
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))


class Reservations:
    def __init__(self, account, instances):
        self.account, self.instances = account, instances

    def add(self, given):
        """Reserves, as the control path says it: "ends" is in so many seconds, "tags" are a table."""
        tags = given.pop("tags", {})
        one = Reservation(**given)
        if one.kind not in KINDS or one.type not in self.account.catalog.types():
            raise ValueError(f"no such reservation: {given}")
        region = self.account.region(one.region)
        region.reservations[one.id] = one
        region.backend.tags[one.id] = dict(tags)
        if one.ends is not None:
            self.account.timer.after(max(0, one.ends - CLEARANCE), self._end_instances, one)
            self.account.timer.after(one.ends, self._expire, one)
        return one

    def reclaim(self, given):
        """The lender takes capacity back, after a warning that only EventBridge tells."""
        one = self._named(self.account.region(given["region"]), given["id"])
        self.account.timer.after(float(given.get("notice", 120)), self._reclaimed, one)

    def _reclaimed(self, one):
        one.count = 0
        self._end_instances(one)

    def _expire(self, one):
        one.state = "expired"

    def _end_instances(self, one):
        for instance in self._within(one):
            self.instances.terminate(instance, TAKEN_BACK)

    def _within(self, one):
        living = self.account.region(one.region).instances.values()
        return [instance for instance in living
                if instance.life.reservation is one and instance.state != "terminated"]

    def _free(self, one):
        return max(0, one.count - len(self._within(one)))

    @staticmethod
    def _named(region, identity):
        if identity not in region.reservations:
            raise ApiError("InvalidCapacityReservationId.NotFound",
                           f"The capacity reservation ID '{identity}' does not exist")
        return region.reservations[identity]

    # Launches.

    def of(self, region, spec):
        """The reservation that a launch is aimed at, if it is."""
        target = spec.get("CapacityReservationSpecification", {}).get("CapacityReservationTarget", {})
        identity = target.get("CapacityReservationId")
        return self._named(region, identity) if identity else None

    def fits(self, one, pool, kinds):
        """Refuses what can't go into a reservation; gives for how many there is room."""
        if pool.kind != one.type or pool.zone != one.zone:
            raise ApiError("InvalidParameterCombination", f"The capacity reservation {one.id} is for {one.type} in "
                           f"{one.zone}, and not for {pool.kind} in {pool.zone}.")
        market = pool.spec.get("InstanceMarketOptions", {}).get("MarketType")
        if one.kind not in kinds or market != KINDS[one.kind]:
            raise ApiError("InvalidParameterCombination", f"The capacity reservation {one.id} is of the type {one.kind} "
                           f"and can't be used with the market type {market} and the reservation types {kinds}.")
        free = self._free(one) if one.state == "active" else 0
        if not free:
            raise self.exceeded(one)
        return free

    @staticmethod
    def exceeded(one):
        if one.kind == "capacity-block":
            return ApiError("InsufficientInstanceCapacity", f"The Capacity Block {one.id} has no more capacity.")
        return ApiError("ReservationCapacityExceeded", "The requested reservation does not have sufficient compatible and "
                        f"available capacity for this request: {one.id}")

    # Calls.

    def create_capacity_reservation(self, call):
        params = call.params
        one = self.add({"region": call.region, "type": params["InstanceType"], "zone": params["AvailabilityZone"],
                        "count": int(params["InstanceCount"]), "platform": params["InstancePlatform"],
                        "match": params.get("InstanceMatchCriteria", "open"),
                        "tags": tags_for(params.get("TagSpecifications"), "capacity-reservation")})
        return {"CapacityReservation": self._description(self.account.region(call.region), one)}

    def cancel_capacity_reservation(self, call):
        one = self._named(self.account.region(call.region), call.params["CapacityReservationId"])
        one.state = "cancelled"
        return {"Return": True}

    def describe_capacity_reservations(self, call):
        params, region = call.params, self.account.region(call.region)
        ids = params.get("CapacityReservationIds", [])
        seen = [self._named(region, identity) for identity in ids] if ids else list(region.reservations.values())
        facts = {
            "tags": lambda one: region.tags(one.id), "state": lambda one: one.state,
            "instance-type": lambda one: one.type, "availability-zone": lambda one: one.zone,
        }
        passes = matches(params.get("Filters", []), facts, "DescribeCapacityReservations")
        seen, token = page([one for one in seen if passes(one)], params)
        return {"CapacityReservations": [self._description(region, one) for one in seen], "NextToken": token}

    def _description(self, region, one):
        end = one.created + timedelta(seconds=one.ends) if one.ends is not None else None
        return {
            "CapacityReservationId": one.id, "OwnerId": ACCOUNT, "InstanceType": one.type,
            "InstancePlatform": one.platform, "AvailabilityZone": one.zone, "Tenancy": one.tenancy,
            "TotalInstanceCount": one.count, "AvailableInstanceCount": self._free(one), "State": one.state,
            "EndDate": end, "EndDateType": "unlimited" if end is None else "limited",
            "InstanceMatchCriteria": one.match, "CreateDate": one.created, "StartDate": one.created,
            "Tags": tag_list(region.tags(one.id)), "Interruptible": one.kind.startswith("interruptible"),
            "ReservationType": "capacity-block" if one.kind == "capacity-block" else "default",
        }
