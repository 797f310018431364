"""Instances and spot requests from their launch to their end, and the calls that show and change them."""

import base64
import math
import re
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone

from protocol import ApiError, matches, page, tag_list

STATES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}

# The families of the older hypervisor, which refuse options of TerminateInstances.
XEN = {"t1", "t2", "m1", "m2", "m3", "m4", "c1", "c3", "c4", "r3", "r4", "i2", "i3", "d2", "g3", "p2", "p3", "x1", "x1e"}

# The states of a spot request that is not over. "disabled" has an instance that was stopped.
UNDER_WAY = ("open", "active", "disabled")

BY_USER = ("Client.UserInitiatedShutdown", "User initiated shutdown")
FROM_INSIDE = ("Client.InstanceInitiatedShutdown", "Instance initiated shutdown")
BY_SPOT = ("Server.SpotInstanceTermination", "Spot instance termination")


@dataclass
class Life:
    """What moto doesn't know of an instance."""

    region: str
    spot: "SpotRequest | None" = None
    notice: dict | None = None
    reservation: object | None = None
    fleet: str | None = None
    token: str | None = None
    placement_group: str = ""
    profile: dict | None = None
    public: bool = False
    # The address of an instance that has no other.
    ipv6: str | None = None
    user_data: bytes = b""
    console: str = ""
    groups: list = field(default_factory=list)
    subnet: str = ""
    network: str = ""
    born: float = field(default_factory=time.monotonic)
    ended: float | None = None


@dataclass
class SpotRequest:
    instance: object
    price: str
    zone: str
    kind: str = "one-time"
    block_minutes: int | None = None
    behavior: str = "terminate"
    valid_until: datetime | None = None
    state: str = "active"
    code: str = "fulfilled"
    id: str = field(default_factory=lambda: "sir-" + uuid.uuid4().hex[:8])
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    updated: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def becomes(self, state, code):
        self.state, self.code, self.updated = state, code, datetime.now(timezone.utc)


class Instances:
    def __init__(self, account, machines):
        self.account, self.machines = account, machines

    # What happens to an instance.

    def begin(self, instance):
        self._state(instance, "pending")
        self.account.region(instance.life.region).instances[instance.id] = instance
        self.account.timer.after(self.account.config["pending"], self._run, instance)

    def _run(self, instance):
        if instance.state != "pending":
            return
        if error := self.account.config["start_error"]:
            self.terminate(instance, error)
            return
        self._state(instance, "running")
        delay = float(self.account.config["address_delay"])
        if delay:
            self.account.timer.after(delay, self._address, instance)
        else:
            self._address(instance)

    def _address(self, instance):
        if instance.state != "running":
            return
        nic = instance.nics[0]
        if instance.life.public:
            nic.public_ip_auto_assign = True
            nic.start()
        if self.account.config["machines"]:
            key = self.account.region(instance.life.region).backend.key_pairs.get(instance.key_name)
            self.machines.boot(instance.id, instance.life.user_data, key.public_key if key else "",
                               [instance.life.ipv6] if instance.life.ipv6 else
                               [address for address in (nic.public_ip, nic.private_ip_address) if address],
                               math.prod(self.account.catalog.processors(instance.instance_type).values()),
                               self.account.config)

    def terminate(self, instance, reason, code="instance-terminated-by-user"):
        """The beginning of the end; the rest follows by itself. Gives the state that was."""
        before = instance.state
        if before in ("shutting-down", "terminated"):
            return before
        self._state(instance, "shutting-down")
        self._because(instance, reason)
        self.machines.end(instance.id)
        spot = instance.life.spot
        if spot and spot.state in ("active", "open"):
            spot.becomes("closed", code)
        elif spot:
            spot.becomes(spot.state, code)
        self.account.timer.after(self.account.config["shutting_down"], self._finish, instance, reason)
        return before

    def _finish(self, instance, reason):
        backend = self.account.region(instance.life.region).backend
        ends = [block.volume_id for _, block in instance.get_block_device_mapping if block.delete_on_termination]
        instance.terminate()
        # moto keeps tags of what is gone, and would list them.
        for identity in [*ends, *(nic.id for nic in instance.nics.values())]:
            backend.tags.pop(identity, None)
        self._because(instance, reason)
        instance.life.ended = time.monotonic()
        stays = max(self.account.config["terminated_visible"], self.account.config["eni_detach"])
        self.account.timer.after(stays, self._vanish, instance)

    def _vanish(self, instance):
        region = self.account.region(instance.life.region)
        region.instances.pop(instance.id, None)
        region.backend.tags.pop(instance.id, None)
        for reservation in list(region.backend.reservations.values()):
            if instance in reservation.instances:
                reservation.instances.remove(instance)
                if not reservation.instances:
                    del region.backend.reservations[reservation.id]

    def stop(self, instance, reason):
        before = instance.state
        if before in ("pending", "running"):
            self._state(instance, "stopping")
            self._because(instance, reason)
            self.machines.end(instance.id)
            self.account.timer.after(self.account.config["shutting_down"], self._stopped, instance, reason)
        return before

    def _stopped(self, instance, reason):
        if instance.state == "stopping":
            instance.stop()
            instance.nics[0].public_ip = None
            self._because(instance, reason)

    def power_off(self, identity):
        """The machine switched itself off."""
        with self.account.lock:
            instance = self.find(identity)
            if instance and instance.state in ("pending", "running"):
                ends = instance.instance_initiated_shutdown_behavior == "terminate"
                (self.terminate if ends else self.stop)(instance, FROM_INSIDE)

    def interrupt(self, identity, notice, outside=True):
        """The service takes a spot instance back, after a warning, which the machine hears, and others if they may."""
        with self.account.lock:
            instance = self.find(identity)
            if instance is None or instance.life.spot is None:
                raise ApiError("InvalidInstanceID.NotFound", f"{identity} is no spot instance")
            if outside:
                instance.life.spot.becomes("active", "marked-for-termination")
            at = datetime.fromtimestamp(time.time() + notice, timezone.utc)
            instance.life.notice = {"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
            self.account.timer.after(
                notice, self.terminate, instance, BY_SPOT, "instance-terminated-no-capacity")

    def find(self, identity):
        for region in self.account.regions.values():
            if identity in region.instances:
                return region.instances[identity]
        return None

    @staticmethod
    def _state(instance, name):
        instance._state.name, instance._state.code = name, STATES[name]

    @staticmethod
    def _because(instance, reason):
        code, words = reason
        instance.state_reason.code, instance.state_reason.message = code, f"{code}: {words}"
        if code == BY_USER[0]:
            instance._reason = f"User initiated ({datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} GMT)"
        else:
            instance._reason = f"{code}: {words}"

    # What can be seen.

    def visible(self, region, instance):
        config, life, now = self.account.config, instance.life, time.monotonic()
        shown = life.ended is None or now < life.ended + config["terminated_visible"]
        return shown and now >= life.born + config["invisible"]

    def named(self, region, ids, anyway=False):
        """Instances by their ids: one that isn't there spoils the whole call."""
        for identity in ids:
            if not re.fullmatch(r"i-[0-9a-f]{8,17}", identity):
                raise ApiError("InvalidInstanceID.Malformed", f'Invalid id: "{identity}"')
        there = region.instances
        missing = [identity for identity in ids if identity not in there
                   or not (anyway or self.visible(region, there[identity]))]
        if len(missing) == 1:
            raise ApiError("InvalidInstanceID.NotFound", f"The instance ID '{missing[0]}' does not exist")
        if missing:
            raise ApiError("InvalidInstanceID.NotFound", f"The instance IDs '{', '.join(missing)}' do not exist")
        return [there[identity] for identity in dict.fromkeys(ids)]

    def to_change(self, call):
        ids = call.params.get("InstanceIds", [])
        if not ids:
            raise ApiError("MissingParameter", "The request must contain the parameter InstanceId")
        anyway = not self.account.config["invisible_to_changes"]
        return self.named(self.account.region(call.region), ids, anyway)

    def get_console_output(self, call):
        one, = self.named(self.account.region(call.region), [call.params["InstanceId"]])
        said = base64.b64encode(one.life.console.encode()).decode()
        return {"InstanceId": one.id, "Timestamp": datetime.now(timezone.utc), "Output": said}

    def describe_instances(self, call):
        params, region = call.params, self.account.region(call.region)
        ids = params.get("InstanceIds", [])
        if ids and "MaxResults" in params:
            raise ApiError("InvalidParameterCombination", "The parameter instancesSet cannot be used with the "
                           "parameter maxResults")
        if not 5 <= int(params.get("MaxResults", 1000)) <= 1000:
            raise ApiError("InvalidParameterValue", f"Value ( {params['MaxResults']} ) for parameter maxResults is "
                           "invalid. Expecting a value between 5 and 1000.")
        passes = matches(params.get("Filters", []), self._facts(region), "DescribeInstances")
        seen = [one for one in region.instances.values() if self.visible(region, one)]
        seen = self.named(region, ids) if ids else seen
        instances, token = page([one for one in seen if passes(one)], params, len(ids) or 1000)
        reservations = {}
        for one in instances:
            reservation = reservations.setdefault(one.reservation, {
                "ReservationId": one.reservation, "OwnerId": one.owner_id, "Groups": [], "Instances": []})
            reservation["Instances"].append(self.description(region, one))
        return {"Reservations": list(reservations.values()), "NextToken": token}

    def _facts(self, region):
        def spot(get):
            return lambda one: get(one.life.spot) if one.life.spot else None

        def there(get):
            return lambda one: get(one) if one.state != "terminated" else None

        return {
            "tags": lambda one: region.backend.tags.get(one.id, {}),
            "instance-id": lambda one: one.id,
            "instance-state-name": lambda one: one.state,
            "instance-state-code": lambda one: one.state_code,
            "client-token": lambda one: one.life.token,
            "instance-lifecycle": lambda one: "spot" if one.life.spot else None,
            "spot-instance-request-id": spot(lambda request: request.id),
            "instance-type": lambda one: one.instance_type,
            "image-id": lambda one: one.image_id,
            "key-name": lambda one: one.key_name,
            "architecture": lambda one: one.architecture,
            "availability-zone": lambda one: one.placement.zone,
            "placement-group-name": lambda one: one.life.placement_group,
            "reservation-id": lambda one: one.reservation,
            "owner-id": lambda one: one.owner_id,
            "state-reason-code": lambda one: one.state_reason.code,
            "subnet-id": there(lambda one: one.life.subnet),
            "vpc-id": there(lambda one: one.life.network),
            "instance.group-id": there(lambda one: one.life.groups),
            "network-interface.group-id": there(lambda one: one.life.groups),
            "ip-address": there(lambda one: one.public_ip),
            "private-ip-address": there(lambda one: one.private_ip),
        }

    def description(self, region, one):
        life, state = one.life, one.state
        result = {
            "InstanceId": one.id, "ImageId": one.image_id, "InstanceType": one.instance_type,
            "State": {"Code": one.state_code, "Name": state}, "AmiLaunchIndex": one.ami_launch_index,
            "KeyName": one.key_name, "LaunchTime": one.launch_time, "Architecture": one.architecture,
            "Placement": {"AvailabilityZone": one.placement.zone, "GroupName": life.placement_group,
                          "Tenancy": "default"},
            "Monitoring": {"State": one.monitoring_state}, "ProductCodes": [], "ClientToken": life.token or "",
            "StateTransitionReason": one.state_transition_reason or "", "Hypervisor": "xen", "EnaSupport": True,
            "EbsOptimized": bool(one.ebs_optimized), "RootDeviceName": one.root_device_name,
            "RootDeviceType": "ebs", "VirtualizationType": "hvm", "PlatformDetails": "Linux/UNIX",
            "Tags": tag_list(region.backend.tags.get(one.id, {})), "PublicDnsName": "", "PrivateDnsName": "",
            "BlockDeviceMappings": [], "NetworkInterfaces": [], "SecurityGroups": [],
            "CpuOptions": self.account.catalog.processors(one.instance_type),
            "MetadataOptions": _metadata(one.metadata_options), "SourceDestCheck": True,
        }
        if one.state_reason.code:
            result["StateReason"] = {"Code": one.state_reason.code, "Message": one.state_reason.message}
        if life.spot:
            result |= {"InstanceLifecycle": "spot", "SpotInstanceRequestId": life.spot.id}
        if life.reservation:
            result["CapacityReservationId"] = life.reservation.id
            if life.reservation.kind != "on-demand-capacity-reservation":
                result["InstanceLifecycle"] = life.reservation.kind
        if life.profile:
            result["IamInstanceProfile"] = life.profile
        if state == "terminated":
            return result
        result["Tags"] = tag_list({**region.backend.tags.get(one.id, {}), **self.account.config["forged_tags"]})
        nic, names = one.nics[0], {group.id: group.name for group in one.security_groups}
        groups = [{"GroupId": group, "GroupName": names.get(group, "")} for group in life.groups]
        public = nic.public_ip if state in ("running", "shutting-down") else None
        own = {"PrivateIpAddress": nic.private_ip_address, "PrivateDnsName": one.private_dns_name}
        if public:
            own["Association"] = {"IpOwnerId": "amazon", "PublicDnsName": "", "PublicIp": public}
            result["PublicIpAddress"] = public
        result |= {
            "PrivateIpAddress": nic.private_ip_address, "PrivateDnsName": one.private_dns_name,
            "SubnetId": life.subnet, "VpcId": life.network, "SecurityGroups": groups,
            "NetworkInterfaces": [{
                **own, "NetworkInterfaceId": nic.id, "SubnetId": life.subnet, "VpcId": life.network,
                "OwnerId": one.owner_id, "Status": "in-use", "Groups": groups, "MacAddress": nic.mac_address,
                "Description": nic.description, "SourceDestCheck": True, "InterfaceType": "interface",
                "PrivateIpAddresses": [{**own, "Primary": True}],
                "Attachment": {"AttachmentId": nic.attachment_id, "DeviceIndex": 0, "Status": "attached",
                               "DeleteOnTermination": True, "AttachTime": one.launch_time, "NetworkCardIndex": 0},
            }],
            "BlockDeviceMappings": [] if state == "pending" else [
                {"DeviceName": device, "Ebs": {"VolumeId": block.volume_id, "Status": "attached",
                                               "AttachTime": one.launch_time,
                                               "DeleteOnTermination": bool(block.delete_on_termination)}}
                for device, block in one.get_block_device_mapping],
        }
        if life.ipv6:
            interface, address = result["NetworkInterfaces"][0], {"Ipv6Address": life.ipv6, "IsPrimaryIpv6": False}
            for one in (result, interface):
                one.pop("PrivateIpAddress")
            result["Ipv6Address"] = life.ipv6
            interface |= {"PrivateIpAddresses": [], "Ipv6Addresses": [address]}
        return result | self.account.config["forged"]

    def describe_instance_status(self, call):
        params, region = call.params, self.account.region(call.region)
        ids, everything = params.get("InstanceIds", []), params.get("IncludeAllInstances", False)
        facts = self._facts(region)
        passes = matches(params.get("Filters", []), facts, "DescribeInstanceStatus")
        seen = self.named(region, ids) if ids else [
            one for one in region.instances.values() if self.visible(region, one)]
        seen = [one for one in seen if passes(one) and (everything or one.state == "running")]
        seen, token = page(seen, params, len(ids) or 1000)

        def status(one):
            return {"Status": "ok" if one.state == "running" else "not-applicable"}

        return {"NextToken": token, "InstanceStatuses": [
            {"InstanceId": one.id, "AvailabilityZone": one.placement.zone, "Events": [],
             "InstanceState": {"Code": one.state_code, "Name": one.state},
             "InstanceStatus": status(one), "SystemStatus": status(one)} for one in seen]}

    # What can be asked for.

    def terminate_instances(self, call):
        instances = self.to_change(call)
        options = [name for name in ("SkipOsShutdown", "Force") if call.form.get(name) == "true"]
        for one in instances:
            if options and one.instance_type.partition(".")[0] in XEN:
                raise ApiError("UnsupportedOperation", f"The parameter {options[0]} is not supported for the instance "
                               f"type {one.instance_type} of the instance '{one.id}'.")
        if any(one.id in self.account.config["unendable"] for one in instances):
            raise ApiError("InternalError", "An internal error has occurred")
        protected = [one for one in instances if one.disable_api_termination]
        if protected:
            # Those in zones without a protected one are ended all the same.
            zones = {one.placement.zone for one in protected}
            for one in instances:
                if one.placement.zone not in zones:
                    self.terminate(one, BY_USER)
            raise ApiError("OperationNotPermitted", f"The instance '{protected[0].id}' may not be terminated. Modify "
                           "its 'disableApiTermination' instance attribute and try again.")
        return {"TerminatingInstances": _changes(instances, lambda one: self.terminate(one, BY_USER))}

    def modify_instance_attribute(self, call):
        change = call.params.get("DisableApiTermination", {})
        if "Value" not in change or len(call.params) != 2:
            raise ApiError("UnsupportedOperation", "The emulator changes DisableApiTermination only.")
        one, = self.named(self.account.region(call.region), [call.params["InstanceId"]])
        one.disable_api_termination = change["Value"]
        return {}

    def stop_instances(self, call):
        instances = self.to_change(call)
        for one in instances:
            if one.life.spot:
                raise ApiError("UnsupportedOperation", f"You can't stop the Spot Instance '{one.id}' because it is "
                               "associated with a one-time Spot Instance request. You can only stop Spot Instances "
                               "associated with persistent Spot Instance requests.")
            self._must_be(one, "running", "stopping", "stopped")
        return {"StoppingInstances": _changes(instances, lambda one: self.stop(one, BY_USER))}

    def start_instances(self, call):
        def start(one):
            before = one.state
            if before == "stopped":
                one.state_reason.code = one._reason = ""
                self.begin(one)
            return before

        instances = self.to_change(call)
        for one in instances:
            self._must_be(one, "stopped", "running", "pending")
        return {"StartingInstances": _changes(instances, start)}

    def reboot_instances(self, call):
        for one in self.to_change(call):
            self._must_be(one, "running")
            self.machines.reboot(one.id)
        return {}

    @staticmethod
    def _must_be(one, *states):
        if one.state not in states:
            raise ApiError("IncorrectInstanceState", f"The instance '{one.id}' is not in a state from which it can "
                           f"be changed so: {one.state}")

    # Spot requests.

    def describe_spot_instance_requests(self, call):
        params, region = call.params, self.account.region(call.region)
        requests = region.spot_requests
        facts = {
            "tags": lambda one: region.backend.tags.get(one.id, {}),
            "state": lambda one: one.state, "status-code": lambda one: one.code,
            "instance-id": lambda one: one.instance.id, "spot-instance-request-id": lambda one: one.id,
            "type": lambda one: one.kind, "launched-availability-zone": lambda one: one.zone,
            "launch.instance-type": lambda one: one.instance.instance_type,
        }
        passes = matches(params.get("Filters", []), facts, "DescribeSpotInstanceRequests")
        hidden = self.account.config["invisible"]
        shown = {key: one for key, one in requests.items() if time.monotonic() >= one.instance.life.born + hidden}
        ids = params.get("SpotInstanceRequestIds", [])
        seen = [self._spot_request(shown, identity) for identity in ids] if ids else list(shown.values())
        seen, token = page([one for one in seen if passes(one)], params)
        return {"SpotInstanceRequests": [self._spot_description(region, one) for one in seen], "NextToken": token}

    @staticmethod
    def _spot_request(requests, identity):
        if identity not in requests:
            raise ApiError("InvalidSpotInstanceRequestID.NotFound",
                           f"The spot instance request ID '{identity}' does not exist")
        return requests[identity]

    def _spot_description(self, region, one):
        instance = one.instance
        return {
            "SpotInstanceRequestId": one.id, "InstanceId": instance.id, "State": one.state, "Type": one.kind,
            "Status": {"Code": one.code, "Message": f"Your Spot request: {one.code}.", "UpdateTime": one.updated},
            "SpotPrice": one.price, "CreateTime": one.created, "ProductDescription": "Linux/UNIX",
            "LaunchedAvailabilityZone": one.zone, "InstanceInterruptionBehavior": one.behavior,
            "BlockDurationMinutes": one.block_minutes, "ValidUntil": one.valid_until,
            "Tags": tag_list(region.backend.tags.get(one.id, {})),
            "LaunchSpecification": {
                "ImageId": instance.image_id, "InstanceType": instance.instance_type, "KeyName": instance.key_name,
                "SubnetId": instance.life.subnet, "Placement": {"AvailabilityZone": one.zone},
                "SecurityGroups": [{"GroupId": group} for group in instance.life.groups],
            },
        }

    def cancel_spot_instance_requests(self, call):
        region = self.account.region(call.region)
        requests = [self._spot_request(region.spot_requests, identity)
                    for identity in call.params.get("SpotInstanceRequestIds", [])]
        for one in requests:
            if one.state in UNDER_WAY:
                one.becomes("cancelled", "request-canceled-and-instance-running")
        return {"CancelledSpotInstanceRequests": [
            {"SpotInstanceRequestId": one.id, "State": one.state} for one in requests]}


def _changes(instances, change):
    result = []
    for one in instances:
        before = change(one)
        result.append({"InstanceId": one.id, "CurrentState": {"Code": one.state_code, "Name": one.state},
                       "PreviousState": {"Code": STATES[before], "Name": before}})
    return result


def _metadata(options):
    return {"State": options.state, "HttpTokens": options.http_tokens, "HttpEndpoint": options.http_endpoint,
            "HttpPutResponseHopLimit": options.http_put_response_hop_limit,
            "HttpProtocolIpv6": options.http_protocol_ipv6, "InstanceMetadataTags": options.instance_metadata_tags}
