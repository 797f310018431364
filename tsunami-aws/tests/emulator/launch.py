"""Launching: RunInstances and CreateFleet over one function, with capacity, prices and tokens."""

import base64
import binascii
import hashlib
import json
import uuid
from dataclasses import dataclass, field, replace

from account import ACCOUNT
from catalog import on_demand_price
from instances import BY_USER, Life, SpotRequest
from protocol import ApiError, success, tag_list, tags_for

_TAGGED = ("instance", "volume", "network-interface", "spot-instances-request")
_CHEAPEST = ("price-capacity-optimized", "lowest-price", "lowestPrice", "priceCapacityOptimized")


@dataclass
class Pool:
    """Where instances come from: one type in one zone, in one market."""

    kind: str
    zone: str
    market: str
    subnet: object
    spec: dict
    template: dict | None = None
    override: dict | None = None
    order: int = 0
    error: ApiError | None = None
    # The reservation that it is a part of, and the types of reservations that the request is for.
    reservation: object | None = None
    kinds: list = field(default_factory=list)


class Launcher:
    def __init__(self, account, instances, reservations):
        self.account, self.instances, self.catalog = account, instances, account.catalog
        self.reservations = reservations

    # Tokens.

    def once(self, call, effect):
        """Carries a call out, or gives the reply that its token had before."""
        token = call.params.get("ClientToken")
        if not token:
            return effect(call)
        if len(token) > 64 or not token.isascii():
            raise ApiError("InvalidParameterValue", f"Value ({token}) for parameter clientToken is invalid. "
                           "A token has at most 64 ASCII characters.")
        tokens = self.account.region(call.region).tokens
        asked = {key: value for key, value in call.form.items() if key not in ("ClientToken", "DryRun")}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()
        if (call.action, token) in tokens:
            before, reply, launched = tokens[call.action, token]
            if digest != before:
                raise ApiError("IdempotentParameterMismatch", "Arguments on this idempotent request are inconsistent "
                               "with arguments used in previous request(s).")
            if launched and all(one.state in ("shutting-down", "terminated") for one in launched):
                raise ApiError("IdempotentInstanceTerminated", f"The instances launched with the client token "
                               f"'{token}' are terminated.")
            return reply
        reply = effect(call)
        launched = []
        if isinstance(reply, dict):
            launched = reply.pop("launched", [])
            reply = success(call, reply)
        if reply.status == 200:
            tokens[call.action, token] = digest, reply, launched
        return reply

    # RunInstances.

    def run_instances(self, call):
        region, asked = self.account.region(call.region), dict(call.params)
        spec, template = asked, asked.pop("LaunchTemplate", None)
        if template:
            resolved = self._template(region, template)
            spec = _merged(resolved["data"], asked)
            template = {"LaunchTemplateId": resolved["id"], "Version": resolved["version"]}
        least, most = int(spec.get("MinCount", 0)), int(spec.get("MaxCount", 0))
        if not 1 <= least <= most:
            raise ApiError("InvalidParameterValue", f"Invalid value for min and max count: {least}, {most}")
        market = "spot" if spec.get("InstanceMarketOptions", {}).get("MarketType") == "spot" else "on-demand"
        if spec.get("InstanceMarketOptions", {}).get("SpotOptions") and market != "spot":
            raise ApiError("InvalidParameterCombination", "SpotOptions need the market type spot")
        _dry(call)
        pools = self._pools(region, spec, market, template)
        best, count, problem = None, 0, None
        for pool in pools:
            try:
                free = self._free(region, pool, most)
            except ApiError as error:
                problem = problem or error
                continue
            if free > count:
                best, count = pool, free
            if count == most:
                break
        if best is None or count < least:
            raise problem or self._exhausted(region, pools[0])
        launched = self._launch(region, best, count, token=spec.get("ClientToken"))
        return {
            "ReservationId": launched[0].reservation, "OwnerId": ACCOUNT, "Groups": [],
            "Instances": [self.instances.description(region, one) for one in launched], "launched": launched,
        }

    # CreateFleet.

    def create_fleet(self, call):
        region, params = self.account.region(call.region), call.params
        if params.get("Type", "maintain") != "instant":
            raise ApiError("UnsupportedOperation", "The emulator knows fleets of type instant only.")
        target = params.get("TargetCapacitySpecification", {})
        total = int(target.get("TotalTargetCapacity", 0))
        wanted = {"spot": int(target.get("SpotTargetCapacity", 0)),
                  "on-demand": int(target.get("OnDemandTargetCapacity", 0))}
        if total < 1 or sum(wanted.values()) > total:
            raise ApiError("InvalidParameterValue", "The total target capacity must be at least 1 and no less than "
                           "the spot and on-demand target capacities together.")
        default, reserved = target.get("DefaultTargetCapacityType", "on-demand"), params.get("ReservedCapacityOptions")
        if (default == "reserved-capacity") != bool(reserved) or (reserved and sum(wanted.values())):
            raise ApiError("InvalidParameterCombination", "ReservedCapacityOptions and the default target capacity type "
                           "reserved-capacity go together, and with no other target capacity.")
        if default not in ("spot", "on-demand", "reserved-capacity"):
            raise ApiError("UnsupportedOperation", f"The emulator knows no target capacity type {default}.")
        wanted[default] = wanted.get(default, 0) + total - sum(wanted.values())
        configs = []
        for config in params.get("LaunchTemplateConfigs", []):
            configs.append((self._template(region, config.get("LaunchTemplateSpecification", {})),
                            config.get("Overrides") or [{}]))
        if not configs:
            raise ApiError("MissingParameter", "The request must contain the parameter LaunchTemplateConfigs")
        options = {"spot": params.get("SpotOptions", {}), "on-demand": params.get("OnDemandOptions", {}),
                   "reserved-capacity": reserved or {}}
        for option in options.values():
            if option.get("MinTargetCapacity") and not (
                    option.get("SingleInstanceType") or option.get("SingleAvailabilityZone")):
                raise ApiError("InvalidParameterCombination", "MinTargetCapacity needs SingleInstanceType or "
                               "SingleAvailabilityZone.")
        _dry(call)
        fleet = f"fleet-{uuid.uuid4()}"
        launched, errors = [], []
        for market, count in wanted.items():
            if count:
                done, failed = self._fill(region, configs, market, count, options[market], params, fleet)
                launched, errors = launched + done, errors + failed
        region.fleets[fleet] = {"id": fleet, "state": "active", "total": total, 
                                "instances": [one for _, ones in launched for one in ones]}
        region.backend.create_tags([fleet], tags_for(params.get("TagSpecifications"), "fleet"))
        return {
            "FleetId": fleet,
            "Errors": [{"LaunchTemplateAndOverrides": _where(pool), "Lifecycle": _lifecycle(pool),
                        "ErrorCode": pool.error.code, "ErrorMessage": pool.error.message} for pool in errors],
            "Instances": [{"LaunchTemplateAndOverrides": _where(pool), "Lifecycle": _lifecycle(pool),
                           "InstanceIds": [one.id for one in ones], "InstanceType": pool.kind,
                           "AvailabilityZone": pool.zone, "SubnetId": pool.subnet.id} for pool, ones in launched],
        }

    def _fill(self, region, configs, market, count, options, params, fleet):
        """Launches a fleet's instances of one market: pools with their instances, and pools with their errors."""
        pools, failed, free = [], [], {}
        for template, overrides in configs:
            shown = {"LaunchTemplateId": template["id"], "Version": template["version"]}
            for override in overrides:
                spec = _overridden(template["data"], override, params.get("TagSpecifications"))
                try:
                    for pool in self._pools(region, spec, market, shown, override):
                        pool.order, pool.reservation = len(pools), self.reservations.of(region, spec)
                        pool.kinds = options.get("ReservationTypes", [])
                        pools.append(pool)
                except ApiError as error:
                    kind = override.get("InstanceType", spec.get("InstanceType", ""))
                    failed.append(Pool(kind, "", market, None, spec, shown, override, error=error))
        for pool in pools:
            try:
                free[id(pool)] = self._free(region, pool, count)
                if free[id(pool)] == 0:
                    raise self._exhausted(region, pool)
            except ApiError as error:
                free[id(pool)], pool.error = 0, error
        strategy = options.get("AllocationStrategy", "lowest-price")
        pools.sort(key=lambda pool: self._rank(region, pool, strategy))
        chosen = self._single(pools, options, count, free)
        taken = self._shares(chosen, count, free, strategy)
        if sum(taken.values()) < int(options.get("MinTargetCapacity", 0)):
            taken = {}
        launched = []
        for pool in chosen:
            if taken.get(id(pool)):
                try:
                    launched.append((pool, self._launch(region, pool, taken[id(pool)], fleet=fleet)))
                except ApiError as error:
                    pool.error = error
        if sum(len(ones) for _, ones in launched) < count:
            for pool in pools:
                pool.error = pool.error or self._short(region, pool, bool(launched))
            failed += pools
        return launched, _distinct(failed)

    def _short(self, region, pool, launched):
        """The error of a pool that has something, but not enough."""
        code = next((code for _, code in self._limits(region, pool) if code), None)
        return self._exhausted(region, pool, code or (None if launched else "UnfulfillableCapacity"))

    @staticmethod
    def _single(pools, options, count, free):
        """The pools that the fleet may use, when all instances must be alike."""
        kind, zone = options.get("SingleInstanceType"), options.get("SingleAvailabilityZone")
        if not (kind or zone):
            return pools
        groups = {}
        for pool in pools:
            groups.setdefault((pool.kind if kind else "", pool.zone if zone else ""), []).append(pool)
        room = {key: sum(free[id(pool)] for pool in group) for key, group in groups.items()}
        for key, group in groups.items():
            if room[key] >= count:
                return group
        return groups[max(room, key=room.get)] if groups else []

    @staticmethod
    def _shares(pools, count, free, strategy):
        taken = {id(pool): 0 for pool in pools}
        step = count if strategy in ("lowest-price", "lowestPrice", "prioritized") else 1
        while count:
            open_pools = [pool for pool in pools if taken[id(pool)] < free[id(pool)]]
            if not open_pools:
                break
            for pool in open_pools:
                share = min(step, count, free[id(pool)] - taken[id(pool)])
                taken[id(pool)] += share
                count -= share
        return taken

    def _rank(self, region, pool, strategy):
        if strategy in _CHEAPEST:
            if pool.market == "spot":
                price = self.catalog.spot_price(region.name, pool.zone, pool.kind)
            else:
                price = on_demand_price(region.name, pool.kind)
            return (price if price is not None else 1e9, pool.order)
        return (float(pool.override.get("Priority", 1e9)), pool.order)

    # Launch templates.

    def _template(self, region, named):
        backend = region.backend
        try:
            if named.get("LaunchTemplateId"):
                template = backend.launch_templates[named["LaunchTemplateId"]]
            else:
                template = backend.launch_templates[backend.launch_template_name_to_ids[named["LaunchTemplateName"]]]
        except KeyError:
            if named.get("LaunchTemplateId"):
                raise ApiError("InvalidLaunchTemplateId.NotFound", "The specified launch template, with template ID "
                               f"{named['LaunchTemplateId']}, does not exist.") from None
            raise ApiError("InvalidLaunchTemplateName.NotFoundException", "The specified launch template, with "
                           f"template name {named.get('LaunchTemplateName')}, does not exist.") from None
        version = str(named.get("Version", "$Default"))
        numbers = {"$Latest": len(template.versions), "$Default": template.default_version_number}
        number = numbers.get(version) or (int(version) if version.isdigit() else 0)
        if not 1 <= number <= len(template.versions):
            raise ApiError("InvalidLaunchTemplateId.VersionNotFound",
                           f"Could not find launch template version {version} of {template.id}.")
        return {"id": template.id, "version": str(number), "data": template.versions[number - 1].data}

    # Pools and what is in them.

    def _pools(self, region, spec, market, template=None, override=None):
        """All places for a launch, or the error that every one of them would give."""
        kind = spec.get("InstanceType", "m1.small")
        if kind not in self.catalog.types():
            raise ApiError("InvalidParameterValue", f"Invalid value '{kind}' for InstanceType.")
        backend, zone = region.backend, spec.get("Placement", {}).get("AvailabilityZone")
        nic = _nic(spec)
        wanted = nic.get("SubnetId") or spec.get("SubnetId")
        every = {subnet.id: subnet for subnets in backend.subnets.values() for subnet in subnets.values()}
        if zone and zone not in self.catalog.zones(region.name):
            raise ApiError("InvalidParameterValue", f"Invalid availability zone: [{zone}]")
        if wanted:
            if wanted not in every:
                raise ApiError("InvalidSubnetID.NotFound", f"The subnet ID '{wanted}' does not exist")
            if zone and every[wanted].availability_zone != zone:
                raise ApiError("InvalidParameterValue", f"The availability zone {zone} is not that of {wanted}.")
            subnets = [every[wanted]]
        else:
            if backend.get_default_vpc() is None:
                raise ApiError("VPCIdNotSpecified", "No default VPC for this user. GroupName is only supported for "
                               "EC2-Classic and default VPC.")
            subnets = [subnet for subnet in every.values() if subnet.default_for_az
                       and zone in (None, subnet.availability_zone)]
            subnets.sort(key=lambda subnet: subnet.availability_zone)
            if not subnets:
                raise ApiError("MissingInput", f"No default subnet for availability zone: '{zone}'.")
        offered = self.catalog.zones_of(region.name, kind)
        places = [subnet for subnet in subnets if subnet.availability_zone in offered]
        if not places:
            named = subnets[0].availability_zone
            text = (f"Your requested instance type ({kind}) is not supported in your requested Availability Zone "
                    f"({named}).")
            if offered:
                text += (" Please retry your request by not specifying an Availability Zone or choosing "
                         f"{', '.join(offered)}.")
            raise ApiError("Unsupported", text)
        self._check(region, spec, kind, places[0], market)
        return [Pool(kind, subnet.availability_zone, market, subnet, spec, template, override or {})
                for subnet in places]

    def _check(self, region, spec, kind, subnet, market):
        backend, image = region.backend, spec.get("ImageId")
        if not image:
            raise ApiError("MissingParameter", "The request must contain the parameter ImageId")
        if not image.startswith("ami-"):
            raise ApiError("InvalidAMIID.Malformed", f'Invalid id: "{image}" (expecting "ami-...")')
        if image not in backend.amis:
            raise ApiError("InvalidAMIID.NotFound", f"The image id '[{image}]' does not exist")
        ami, architectures = backend.amis[image], self.catalog.architecture(kind)
        if ami.architecture not in architectures:
            raise ApiError("InvalidParameterValue", f"The architecture '{','.join(architectures)}' of the specified "
                           f"instance type does not match the architecture '{ami.architecture}' of the specified AMI. "
                           "Specify an instance type and an AMI that have matching architectures, and try again. You "
                           "can use 'describe-instance-types' or 'describe-images' to discover the architecture of "
                           "the instance type or AMI.")
        key = spec.get("KeyName")
        if key and key not in backend.key_pairs:
            raise ApiError("InvalidKeyPair.NotFound", f"The key pair '{key}' does not exist")
        group = spec.get("Placement", {}).get("GroupName")
        if group:
            if group not in region.placement_groups:
                raise ApiError("InvalidPlacementGroup.Unknown", f"The Placement Group '{group}' is unknown.")
            strategy = region.placement_groups[group]["Strategy"]
            if strategy not in self.catalog.types()[kind].get("PlacementGroupInfo", {}).get(
                    "SupportedStrategies", ["cluster", "spread", "partition"]):
                raise ApiError("InvalidParameterCombination", f"{strategy.title()} placement groups are not supported "
                               f"by the '{kind}' instance type. Specify a supported instance type or change the "
                               "placement group strategy, and try again.")
        if subnet is not None and subnet.ipv6_native and _nic(spec).get("AssociatePublicIpAddress"):
            raise ApiError("InvalidParameterCombination", "A public IPv4 address can't be associated with an interface in "
                           "a subnet for IPv6 only")
        if spec.get("NetworkInterfaces") and (spec.get("SubnetId") or spec.get("SecurityGroupIds")):
            raise ApiError("InvalidParameterCombination", "Network interfaces and an instance-level subnet ID or "
                           "security groups may not be specified on the same request")
        self._groups(backend, spec, subnet)
        _user_data(spec)
        _mappings(spec, ami)
        options = spec.get("InstanceMarketOptions", {}).get("SpotOptions", {})
        if "BlockDurationMinutes" in options and not self.account.config["accept_block_duration"]:
            raise ApiError("UnsupportedOperation", "The parameter BlockDurationMinutes is not supported: Spot "
                           "Instances with a defined duration are no longer available.")

    @staticmethod
    def _groups(backend, spec, subnet):
        named = _nic(spec).get("Groups") or spec.get("SecurityGroupIds") or []
        found = []
        for identity in named:
            group = backend.get_security_group_from_id(identity)
            if group is None:
                raise ApiError("InvalidGroup.NotFound", f"The security group '{identity}' does not exist")
            found.append(group)
        for name in spec.get("SecurityGroups", []):
            group = backend.get_security_group_from_name(name, subnet.vpc_id)
            if group is None:
                raise ApiError("InvalidGroup.NotFound", f"The security group '{name}' does not exist in VPC "
                               f"'{subnet.vpc_id}'")
            found.append(group)
        for group in found:
            if group.vpc_id != subnet.vpc_id:
                raise ApiError("InvalidParameter", f"Security group {group.id} and subnet {subnet.id} belong to "
                               "different networks.")
        return found or [backend.get_default_security_group(subnet.vpc_id)]

    def _free(self, region, pool, wanted):
        """How many of the wanted instances a pool has room for."""
        if pool.market == "reserved-capacity":
            if pool.reservation is None:
                raise ApiError("InvalidParameterCombination", "The launch template names no capacity reservation.")
            return min(wanted, self.reservations.fits(pool.reservation, pool, pool.kinds))
        if pool.market == "spot":
            price = self.catalog.spot_price(region.name, pool.zone, pool.kind)
            options = pool.spec.get("InstanceMarketOptions", {}).get("SpotOptions", {})
            limit = pool.override.get("MaxPrice") or options.get("MaxPrice")
            if limit and price is not None and float(limit) < price:
                raise ApiError("SpotMaxPriceTooLow", f"Your Spot request price of {limit} is lower than the minimum "
                               f"required Spot request fulfillment price of {price}.")
        return min([wanted, *(room for room, _ in self._limits(region, pool))])

    def _limits(self, region, pool):
        for entry in self.account.capacity:
            def fits(name, value, entry=entry):
                return entry.get(name, "*") in ("*", value)

            if not (fits("region", region.name) and fits("zone", pool.zone) and fits("type", pool.kind)
                    and fits("market", pool.market)):
                continue
            used = sum(
                fits("region", place.name) and fits("zone", one.placement.zone) and fits("type", one.instance_type)
                and fits("market", "spot" if one.life.spot else "on-demand")
                and one.state not in ("terminated", "stopped")
                for place in self.account.regions.values() for one in place.instances.values())
            yield max(0, int(entry.get("free", 0)) - used), entry.get("code")

    def _exhausted(self, region, pool, code=None):
        """The error of a pool that has no more."""
        if pool.reservation:
            return self.reservations.exceeded(pool.reservation)
        limits = sorted(self._limits(region, pool), key=lambda limit: limit[0])
        code = code or (limits[0][1] if limits else None) or "InsufficientInstanceCapacity"
        elsewhere = [zone for zone in self.catalog.zones_of(region.name, pool.kind) if zone != pool.zone
                     and all(room for room, _ in self._limits(region, replace(pool, zone=zone)))]
        hint = (f" You can currently get {pool.kind} capacity by not specifying an Availability Zone in your request "
                f"or choosing {', '.join(elsewhere)}." if elsewhere else "")
        texts = {
            "InsufficientInstanceCapacity":
                f"We currently do not have sufficient {pool.kind} capacity in the Availability Zone you requested "
                f"({pool.zone}). Our system will be working on provisioning additional capacity.{hint}",
            "VcpuLimitExceeded": "You have requested more vCPU capacity than your current vCPU limit allows for the "
                                 "instance bucket that the specified instance type belongs to.",
            "MaxSpotInstanceCountExceeded": "Max spot instance count exceeded",
            "UnfulfillableCapacity": "Unable to fulfill capacity due to your request configuration. Please adjust "
                                     "your request and try again.",
        }
        return ApiError(code, texts.get(code, f"There is no room for {pool.kind} in {pool.zone}."))

    # The launch itself.

    def _launch(self, region, pool, count, fleet=None, token=None):
        from moto.core.types import Base64EncodedString
        backend, spec = region.backend, pool.spec
        nic, ami = _nic(spec), backend.amis[spec["ImageId"]]
        groups = self._groups(backend, spec, pool.subnet)
        tags = {kind: tags_for(spec.get("TagSpecifications"), kind) for kind in _TAGGED}
        if pool.template:
            tags["instance"] |= {"aws:ec2launchtemplate:id": pool.template["LaunchTemplateId"],
                                 "aws:ec2launchtemplate:version": pool.template["Version"]}
        if fleet:
            tags["instance"]["aws:ec2:fleet-id"] = fleet
        data = _user_data(spec)
        reservation = backend.run_instances(
            spec["ImageId"], count, Base64EncodedString(base64.b64encode(data).decode()) if data else None, [],
            instance_type=pool.kind, is_instance_type_default=False, region_name=region.name,
            subnet_id=pool.subnet.id, key_name=spec.get("KeyName"), security_group_ids=[group.id for group in groups],
            nics=[{"DeviceIndex": 0, "DeleteOnTermination": True, "AssociatePublicIpAddress": False,
                   "Description": nic.get("Description", "")}],
            tags={"instance": tags["instance"], "volume": tags["volume"]}, client_token=token,
            ebs_optimized=spec.get("EbsOptimized", False), metadata_options=spec.get("MetadataOptions", {}),
            disable_api_termination=spec.get("DisableApiTermination", False),
            instance_initiated_shutdown_behavior=spec.get("InstanceInitiatedShutdownBehavior", "stop"),
            monitoring_state="enabled" if spec.get("Monitoring", {}).get("Enabled") else "disabled",
            block_device_mappings=_mappings(spec, ami),
            instance_market_options="spot" if pool.market == "spot" else None,
        )
        public = nic.get("AssociatePublicIpAddress")
        public = pool.subnet.map_public_ip_on_launch in (True, "true") if public is None else public
        ipv6 = pool.subnet.ipv6_native
        for instance in reservation.instances:
            instance.reservation = reservation.id
            instance.life = Life(
                region.name, reservation=pool.reservation, fleet=fleet, token=token, user_data=data,
                public=public and not ipv6, ipv6=next(self.account.addresses.ipv6) if ipv6 else None, subnet=pool.subnet.id,
                network=pool.subnet.vpc_id, groups=[group.id for group in groups], profile=_profile(spec),
                placement_group=spec.get("Placement", {}).get("GroupName", ""))
            instance.placement.group_name = instance.life.placement_group
            backend.create_tags([instance.nics[0].id], tags["network-interface"])
            if pool.market == "spot":
                self._request_spot(region, instance, pool, tags["spot-instances-request"])
            self.instances.begin(instance)
        return reservation.instances

    def _request_spot(self, region, instance, pool, tags):
        options = pool.spec.get("InstanceMarketOptions", {}).get("SpotOptions", {})
        price = pool.override.get("MaxPrice") or options.get("MaxPrice") or on_demand_price(region.name, pool.kind)
        request = SpotRequest(
            instance, str(price or "0"), pool.zone, options.get("SpotInstanceType", "one-time"),
            options.get("BlockDurationMinutes"), options.get("InstanceInterruptionBehavior", "terminate"),
            options.get("ValidUntil"))
        instance.life.spot = region.spot_requests[request.id] = request
        region.backend.create_tags([request.id], tags)

    # Fleets afterwards.

    def describe_fleets(self, call):
        region = self.account.region(call.region)
        # Without their ids, instant fleets are not shown.
        fleets = [region.fleets[identity] for identity in call.params.get("FleetIds", []) if identity in region.fleets]
        return {"Fleets": [{"FleetId": fleet["id"], "FleetState": fleet["state"], "Type": "instant",
                            "Tags": tag_list(region.tags(fleet["id"])),
                            "TargetCapacitySpecification": {"TotalTargetCapacity": fleet["total"]}}
                           for fleet in fleets]}

    def delete_fleets(self, call):
        region, deleted, failed = self.account.region(call.region), [], []
        for identity in call.params.get("FleetIds", []):
            fleet = region.fleets.get(identity)
            if fleet is None:
                failed.append({"FleetId": identity, "Error": {
                    "Code": "fleetIdDoesNotExist", "Message": "The fleet does not exist."}})
                continue
            if not call.params.get("TerminateInstances"):
                failed.append({"FleetId": identity, "Error": {
                    "Code": "unexpectedError", "Message": "An instant fleet is deleted with its instances only."}})
                continue
            before, fleet["state"] = fleet["state"], "deleted_terminating"
            for one in fleet["instances"]:
                self.instances.terminate(one, BY_USER)
            deleted.append({"FleetId": identity, "CurrentFleetState": fleet["state"], "PreviousFleetState": before})
        return {"SuccessfulFleetDeletions": deleted, "UnsuccessfulFleetDeletions": failed}


def _dry(call):
    if call.params.get("DryRun"):
        raise ApiError("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")


def _nic(spec):
    """The primary network interface of a request."""
    nics = spec.get("NetworkInterfaces") or [{}]
    return next((nic for nic in nics if int(nic.get("DeviceIndex", 0)) == 0), nics[0])


def _merged(template, asked):
    """A launch template under the request that names it."""
    tags = [*template.get("TagSpecifications", []), *asked.get("TagSpecifications", [])]
    spec = {**template, **asked, "TagSpecifications": tags}
    for key in ("Placement", "MetadataOptions"):
        if key in template and key in asked:
            spec[key] = {**template[key], **asked[key]}
    return spec


def _overridden(template, override, tags):
    spec = dict(template)
    spec["TagSpecifications"] = [*template.get("TagSpecifications", []), *(tags or [])]
    for key in ("InstanceType", "ImageId"):
        if override.get(key):
            spec[key] = override[key]
    if override.get("AvailabilityZone"):
        spec["Placement"] = {**spec.get("Placement", {}), "AvailabilityZone": override["AvailabilityZone"]}
    if override.get("Placement"):
        spec["Placement"] = {**spec.get("Placement", {}), **override["Placement"]}
    if override.get("SubnetId"):
        if spec.get("NetworkInterfaces"):
            spec["NetworkInterfaces"] = [
                {**nic, "SubnetId": override["SubnetId"]} for nic in spec["NetworkInterfaces"]]
        else:
            spec["SubnetId"] = override["SubnetId"]
    return spec


def _user_data(spec):
    encoded = spec.get("UserData")
    if not encoded:
        return b""
    try:
        data = base64.b64decode(str(encoded), validate=True)
    except (ValueError, binascii.Error):
        raise ApiError("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data") from None
    if len(data) > 16384:
        raise ApiError("InvalidParameterValue", "User data is limited to 16384 bytes")
    return data


def _mappings(spec, ami):
    """The image's disk with what the request changes of it. A device of another name is another disk."""
    disks = {one["DeviceName"]: dict(one["Ebs"]) for one in ami.block_device_mappings}
    for mapping in spec.get("BlockDeviceMappings") or []:
        name, disk = mapping.get("DeviceName"), mapping.get("Ebs", {})
        if "NoDevice" in mapping:
            disks.pop(name, None)
            continue
        if name in disks and int(disk.get("VolumeSize", 8)) < disks[name]["VolumeSize"]:
            raise ApiError("InvalidBlockDeviceMapping", f"Volume of size {disk['VolumeSize']}GB is smaller than "
                           f"snapshot '{disks[name]['SnapshotId']}', expect size >= {disks[name]['VolumeSize']}GB")
        if name not in disks and not (disk.get("VolumeSize") or disk.get("SnapshotId")):
            raise ApiError("MissingParameter", "The request must contain the parameter size or snapshotId")
        disks[name] = {**disks.get(name, {"DeleteOnTermination": True, "VolumeType": "gp2"}), **disk}
    return [{"DeviceName": name, "Ebs": disk} for name, disk in disks.items()]


def _profile(spec):
    asked = spec.get("IamInstanceProfile")
    if not asked:
        return None
    arn = asked.get("Arn") or f"arn:aws:iam::{ACCOUNT}:instance-profile/{asked.get('Name')}"
    return {"Arn": arn, "Id": "AIPA" + hashlib.sha256(arn.encode()).hexdigest()[:17].upper()}


def _lifecycle(pool):
    """How a fleet's answer calls what a pool gives."""
    if pool.market != "reserved-capacity":
        return pool.market
    kind = pool.reservation.kind if pool.reservation else "on-demand-capacity-reservation"
    return "on-demand" if kind == "on-demand-capacity-reservation" else kind


def _where(pool):
    return {"LaunchTemplateSpecification": pool.template or {}, "Overrides": pool.override or {}}


def _distinct(pools):
    """One error for each override, though it may stand for several zones."""
    seen = {}
    for pool in pools:
        seen.setdefault((json.dumps(pool.override, sort_keys=True, default=str), pool.error.code), pool)
    return list(seen.values())
