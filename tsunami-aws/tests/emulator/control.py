"""The control path: tests say here what shall go wrong, and see what happened. Bodies are JSON.

GET /_sim/log, POST /_sim/log/clear    calls in the order of arrival; "effect" says whether one was carried out
GET, POST /_sim/config                 the settings of account.DEFAULTS, merged
GET, POST /_sim/faults, POST /_sim/faults/clear
                                       rules as faults.Rule takes them; the first that fires has its way
GET /_sim/held, POST /_sim/release     calls being held, by their number in the log; {"n": N} releases one only
GET, POST /_sim/capacity               [{"region", "zone", "type", "market": each "*" if absent, "free": N, "code"}]
POST /_sim/permissions                 {"deny": ["ec2:CreateFleet", "ssm:*", ...]}
POST /_sim/policy                      what the caller may do, as IAM takes it; {} lets them do everything
POST /_sim/interrupt                   {"instance", "notice": seconds, "outside"}: the service takes a spot instance
                                       back; without "outside", only the machine itself is told before
POST /_sim/reservation                 {"region", "type", "zone", "count", "kind", "id", "state", "platform", "ends": in so many
                                       seconds, "tags"}: reserves capacity
POST /_sim/reclaim                     {"region", "id", "notice": seconds}: the lender takes a reservation back
POST /_sim/spot_request                {"instance", "state", "code"}: what a spot request says of itself
POST /_sim/protect                     {"instance", "on": true if absent}: it may not be terminated
POST /_sim/poweroff                    {"instance"}: the machine switches itself off
POST /_sim/console                     {"instance", "text"}: what the machine has said on its console
GET /_sim/remaining[?run=ID]           all that has a run's tag and isn't gone
GET /_sim/fleets                       the states of all fleets, by id
GET /_sim/instances                    all instances, with what a test may ask of them
GET /_sim/ip                           the caller's address, as text
POST /_sim/reset                       an empty account with the default settings
"""

import json
import time
from urllib.parse import parse_qs

from instances import UNDER_WAY
from protocol import ApiError

RUN = "tsunami:run"


class Control:
    def __init__(self, account, instances, reservations, machines, faults, log):
        self.account, self.instances, self.machines = account, instances, machines
        self.reservations = reservations
        self.faults, self.log = faults, log

    def answer(self, method, path, query, body, caller):
        """Status, content type and body."""
        name = path.removeprefix("/_sim/").rstrip("/").replace("/", "_")
        handler = getattr(self, f"{method.lower()}_{name}", None)
        if handler is None:
            return 404, "text/plain", f"no such control: {method} {path}\n".encode()
        try:
            if name == "ip":
                return 200, "text/plain", f"{caller}\n".encode()
            given = json.loads(body) if body.strip() else {key: value[0] for key, value in parse_qs(query).items()}
            result = handler(given)
        except ApiError as error:
            return 400, "application/json", json.dumps({"error": str(error)}).encode()
        except (KeyError, TypeError, ValueError) as error:
            return 400, "application/json", json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
        return 200, "application/json", json.dumps({"ok": True} if result is None else result, default=str).encode()

    def get_ip(self, _given):
        pass

    def get_log(self, _given):
        return self.log.entries()

    def post_log_clear(self, _given):
        self.log.clear()

    def get_config(self, _given):
        return self.account.config

    def post_config(self, given):
        self.account.configure(given)
        return self.account.config

    def post_faults(self, given):
        self.faults.add(given)

    def post_faults_clear(self, _given):
        self.faults.clear()

    def get_faults(self, _given):
        return [{**rule.given, "seen": rule.seen} for rule in self.faults.rules]

    def get_held(self, _given):
        return sorted(self.faults.held)

    def post_release(self, given):
        self.faults.release(given.get("n") if isinstance(given, dict) else None)

    def post_interrupt(self, given):
        self.instances.interrupt(given["instance"], float(given.get("notice", 120)), given.get("outside", True))

    def post_reservation(self, given):
        with self.account.lock:
            return {"id": self.reservations.add(given).id}

    def post_reclaim(self, given):
        with self.account.lock:
            self.reservations.reclaim(given)

    def post_spot_request(self, given):
        with self.account.lock:
            self.instances.find(given["instance"]).life.spot.becomes(given["state"], given["code"])

    def post_protect(self, given):
        with self.account.lock:
            self.instances.find(given["instance"]).disable_api_termination = given.get("on", True)

    def post_poweroff(self, given):
        self.instances.power_off(given["instance"])

    def post_console(self, given):
        with self.account.lock:
            self.instances.find(given["instance"]).life.console = given["text"]

    def post_capacity(self, given):
        with self.account.lock:
            self.account.capacity = given if isinstance(given, list) else [given]

    def get_capacity(self, _given):
        return self.account.capacity

    def post_permissions(self, given):
        self.account.denied = list(given.get("deny", []))

    def post_policy(self, given):
        self.account.policy = given or None

    def post_reset(self, _given):
        self.faults.clear()
        self.faults.release()
        self.account.reset()
        self.machines.end_all()
        self.log.clear()

    def get_remaining(self, given):
        """All that has a run's tag and isn't gone, whatever listings show of it."""
        run = given.get("run")
        found = {key: [] for key in ("instances", "volumes", "security_groups", "key_pairs", "placement_groups",
                                     "launch_templates", "spot_requests")}
        with self.account.lock:
            for region in self.account.regions.values():
                backend = region.backend

                def add(kind, identity, region=region, **more):
                    tags = region.tags(identity)
                    if RUN in tags and run in (None, tags[RUN]):
                        found[kind].append({"id": identity, "region": region.name, **more, "tags": tags})

                for reservation in backend.reservations.values():
                    for one in reservation.instances:
                        if one.state != "terminated":
                            add("instances", one.id, state=one.state)
                for volume in backend.volumes.values():
                    add("volumes", volume.id, state=volume.status)
                for groups in backend.groups.values():
                    for group in groups.values():
                        add("security_groups", group.id, name=group.name)
                for pair in backend.key_pairs.values():
                    add("key_pairs", pair.id, name=pair.key_name)
                for group in region.placement_groups.values():
                    add("placement_groups", group["GroupId"], name=group["GroupName"])
                for template in backend.launch_templates.values():
                    add("launch_templates", template.id, name=template.name)
                for request in region.spot_requests.values():
                    if request.state in UNDER_WAY:
                        add("spot_requests", request.id, state=request.state)
        return found

    def get_fleets(self, _given):
        with self.account.lock:
            return {fleet["id"]: fleet["state"] for region in self.account.regions.values()
                    for fleet in region.fleets.values()}

    def get_instances(self, _given):
        with self.account.lock:
            return [self._facts(region, one) for region in self.account.regions.values()
                    for one in region.instances.values()]

    def _facts(self, region, one):
        life, options = one.life, one.metadata_options
        volumes = [region.backend.volumes.get(block.volume_id) for _, block in one.get_block_device_mapping]
        gone = one.state == "terminated"
        return {
            "id": one.id, "region": region.name, "zone": one.placement.zone, "state": one.state,
            "type": one.instance_type, "image": one.image_id, "market": "spot" if life.spot else "on-demand",
            "public": None if gone else one.public_ip, "private": None if gone else one.private_ip,
            "ipv6": life.ipv6,
            "tags": region.tags(one.id), "key": one.key_name, "user_data": life.user_data.decode(errors="replace"),
            "shutdown_behavior": one.instance_initiated_shutdown_behavior,
            "metadata": {"http_tokens": options.http_tokens, "hop_limit": options.http_put_response_hop_limit,
                         "http_endpoint": options.http_endpoint, "tags": options.instance_metadata_tags},
            "disks": [{"id": volume.id, "size": volume.size, "type": volume.volume_type,
                       "tags": region.tags(volume.id)} for volume in volumes if volume],
            "groups": life.groups, "subnet": life.subnet, "placement_group": life.placement_group,
            "reservation": life.reservation and life.reservation.id, "profile": life.profile, "token": life.token, "fleet": life.fleet,
            "reason": one.state_reason.code or None, "age": round(time.monotonic() - life.born, 3),
            "spot": life.spot and {"id": life.spot.id, "state": life.spot.state, "status": life.spot.code,
                                   "price": life.spot.price, "block_minutes": life.spot.block_minutes,
                                   "tags": region.tags(life.spot.id)},
            **self.machines.facts(one.id),
        }
