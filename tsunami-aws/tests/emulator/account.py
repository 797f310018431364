"""The emulated account: its settings, its regions, and moto, which keeps most of what is in them."""

import heapq
import io
import itertools
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
import traceback
from urllib.parse import urlencode

from catalog import IMAGES, Catalog
from protocol import ApiError, Reply

ACCOUNT = "123456789012"

DEFAULTS = {
    # Seconds from "running" to the public address.
    "address_delay": 0.0,
    "pending": 0.5, "shutting_down": 0.5, "invisible": 0.0, "invisible_to_changes": False,
    "terminated_visible": 60.0, "eni_detach": 0.3, "accept_block_duration": False, "machines": True,
    "default_vpc": {}, "default_subnets": True, "spot_prices": {}, "not_offered": {}, "quotas": {}, "clock_skew": 0.0,
    # Of ten: how likely three types or more are to be had as spot machines.
    "placement_score": 9,
    # For so many seconds before and after it was made a signature is believed; 0 is for ever, for tests that go to
    # another time. AWS has 300.
    "signature_window": 0.0,
    # The accounts of callers, by their access keys, where they are not in this one.
    "callers": {},
    # What machines do while they are young, in seconds: until sshd listens, until it knows the login key, and for how
    # long it shows the image's own host key first.
    "boot_delay": 0.0, "key_delay": 0.0, "other_host_key": 0.0,
    # What machines say in place of entering whoever logs in, as some images do that know another user.
    "login_words": "",
    # Why instances end while they are pending: a code of EC2's and its words.
    "start_error": [],
    # Instances that EC2 fails to end, and all that are named beside them, by a fault of its own.
    "unendable": [],
    # An endpoint that is not EC2: it knows no filters, and says of instances whatever is given here.
    "ignore_filters": False, "forged": {}, "forged_tags": {},
}


class Region:
    """One region: moto's backend, and what moto doesn't have."""

    def __init__(self, name, backend):
        self.name, self.backend = name, backend
        self.instances = {}
        self.spot_requests = {}
        self.placement_groups = {}
        self.fleets = {}
        self.tokens = {}
        self.reservations = {}

    def tags(self, resource):
        return dict(self.backend.tags.get(resource, {}))


class Account:
    """Everything there is. Whoever changes or reads it holds the lock: moto is not made for threads."""

    def __init__(self, machines=True):
        self.lock = threading.RLock()
        self.defaults = {**DEFAULTS, "machines": machines}
        self.addresses = Addresses()
        _start_moto(self.addresses)
        from moto.ec2.models import ec2_backends
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        self._backends = ec2_backends
        self.application = DomainDispatcherApplication(create_backend_app)
        self.catalog = Catalog(self)
        self.timer = Timer(self.lock)
        self._empty()

    def runs_of(self, call):
        """The runs whose things a call names that changes something."""
        if call.service != "ec2" or call.action.startswith(("Describe", "Get")):
            return []
        with self.lock:
            tags = self.regions[call.region].backend.tags if call.region in self.regions else {}
            runs = {tags[value].get("tsunami:run") for value in call.flat_params.values() if value in tags}
        return sorted(runs - {None})

    def _empty(self):
        self.regions = {}
        self.config = json.loads(json.dumps(self.defaults))
        self.capacity = []
        self.denied = []
        self.policy = None

    def reset(self):
        from moto.moto_api._internal.models import moto_api_backend
        with self.lock:
            self.timer.clear()
            moto_api_backend.reset()
            self._empty()

    @property
    def backends(self):
        # A reset replaces what is behind the account.
        return self._backends[ACCOUNT]

    def region(self, name):
        if name not in self.regions:
            if name not in self.backends.regions:
                raise ApiError("AuthFailure", f"AWS was not able to validate the provided access credentials: {name}")
            self.regions[name] = Region(name, self.backends[name])
            self._settle_vpc(self.regions[name])
        return self.regions[name]

    def caller(self, call):
        """Who asks, in which account."""
        account = self.config["callers"].get(call.access_key)
        if account is None:
            return self.moto(call)
        arn = f"arn:aws:iam::{account}:user/elsewhere"
        text = (f'<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
                f"<Arn>{arn}</Arn><UserId>AIDA</UserId><Account>{account}</Account></GetCallerIdentityResult>"
                "</GetCallerIdentityResponse>")
        return Reply(200, {"Content-Type": "text/xml"}, text.encode())

    def configure(self, changes):
        with self.lock:
            unknown = set(changes) - set(DEFAULTS)
            if unknown:
                raise ValueError(f"no such setting: {', '.join(sorted(unknown))}")
            for key, value in changes.items():
                if isinstance(value, dict) and isinstance(self.config[key], dict):
                    self.config[key].update(value)
                else:
                    self.config[key] = value
            for region in self.regions.values():
                self._settle_vpc(region)

    def _settle_vpc(self, region):
        """Gives a region its default VPC or takes it away."""
        backend, setting = region.backend, self.config["default_vpc"]
        wanted = setting.get(region.name, True) if isinstance(setting, dict) else setting
        vpc = backend.get_default_vpc()
        if not self.config["default_subnets"]:
            for subnets in backend.subnets.values():
                for subnet in [subnet for subnet in subnets.values() if subnet.default_for_az]:
                    del subnets[subnet.id]
        if wanted and vpc is None:
            backend.create_default_vpc()
            vpc = backend.get_default_vpc()
        elif not wanted and vpc is not None:
            del backend.vpcs[vpc.id]
            backend.groups.pop(vpc.id, None)
            for subnets in backend.subnets.values():
                for subnet in [subnet for subnet in subnets.values() if subnet.vpc_id == vpc.id]:
                    del subnets[subnet.id]

        if wanted:
            self._lead_out(backend, vpc)

    @staticmethod
    def _lead_out(backend, vpc):
        """Gives a network the way to the internet that moto's default one hasn't."""
        table = next(one for one in backend.describe_route_tables() if one.vpc_id == vpc.id)
        if not any(route.gateway for route in table.routes):
            gateway = backend.create_internet_gateway()
            backend.attach_internet_gateway(gateway.id, vpc.id)
            backend.create_route(table.id, "0.0.0.0/0", gateway_id=gateway.id)

    def moto(self, call, form=None):
        """Lets moto answer. What it cannot answer becomes an error of the service's, not a page of HTML."""
        body = urlencode(form).encode() if form else call.body
        environ = {
            "REQUEST_METHOD": call.method, "PATH_INFO": call.path, "QUERY_STRING": call.query, "SCRIPT_NAME": "",
            "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_LENGTH": str(len(body)), "CONTENT_TYPE": call.headers.get("content-type", ""),
            "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr, "wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.run_once": False,
        }
        for name, value in call.headers.items():
            if name not in ("content-type", "content-length"):
                environ["HTTP_" + name.upper().replace("-", "_")] = value
        started = []

        def start_response(status, headers, error=None):
            started[:] = [int(status.split()[0]), headers]

        try:
            chunks = self.application(environ, start_response)
            answer = b"".join(chunks)
        except NotImplementedError as problem:
            if found := re.match(r"The filter '[^']*'", str(problem)):
                raise ApiError("InvalidParameterValue", f"{found.group()} is invalid") from problem
            raise ApiError("UnsupportedOperation", f"moto has no {call.action}: {problem}") from problem
        except Exception as problem:
            traceback.print_exc()
            raise ApiError("UnsupportedOperation", f"moto cannot do {call.action}: {problem}") from problem
        status, headers = started
        kept = {name: value for name, value in headers if name.lower() in ("content-type", "x-amzn-requestid")}
        if status >= 500 and b"<!doctype html>" in answer[:200].lower():
            raise ApiError("UnsupportedOperation", f"moto cannot do {call.action}")
        return Reply(status, kept, answer, _code(answer) if status >= 400 else None)


def _code(body):
    found = re.search(rb"<Code>([^<]+)</Code>", body) or re.search(rb'"__type": ?"(?:[^"#]*#)?([^"]+)"', body)
    return found.group(1).decode() if found else None


class Timer:
    """Runs what is due later, in one thread and under the account's lock."""

    def __init__(self, lock):
        self.lock, self.due, self.order = lock, [], itertools.count()
        self.changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def after(self, seconds, action, *args):
        with self.changed:
            heapq.heappush(self.due, (time.monotonic() + seconds, next(self.order), action, args))
            self.changed.notify()

    def clear(self):
        with self.changed:
            self.due.clear()

    def _run(self):
        while True:
            with self.changed:
                while not self.due or self.due[0][0] > time.monotonic():
                    self.changed.wait(self.due[0][0] - time.monotonic() if self.due else None)
            with self.lock:
                # Looked at again: a reset may have come between.
                with self.changed:
                    if not self.due or self.due[0][0] > time.monotonic():
                        continue
                    _, _, action, args = heapq.heappop(self.due)
                try:
                    action(*args)
                except Exception:
                    traceback.print_exc()


class Addresses:
    """Addresses on loopback, never the same twice: public ones in 127.1.0.0/16, private ones in the next. Further
    emulators beside this one take the networks after these."""

    def __init__(self):
        # The name of an abstract socket is taken for as long as the process lives, and for its network only.
        self.claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        for block in range(1, 63, 2):
            try:
                self.claim.bind(f"\0tsunami-emulator-{block}")
                break
            except OSError:
                continue
        else:
            raise SystemExit("too many emulators run already")
        self.public, self.private = self._count(block), self._count(block + 1)
        # For networks of tests' own only: loopback has one address of IPv6.
        self.ipv6 = (f"fd00::{block:x}:{n:x}" for n in itertools.cycle(range(1, 1 << 16)))

    @staticmethod
    def _count(network):
        numbers = (n for n in itertools.cycle(range(1, 1 << 16)) if n % 256 not in (0, 255))
        return (f"127.{network}.{n >> 8}.{n & 255}" for n in numbers)


def _start_moto(addresses):
    """Loads moto with our own images, and puts right what is slow or points outside."""
    os.environ.update(AWS_EC2_METADATA_DISABLED="true", MOTO_ALLOW_NONEXISTENT_REGION="false")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as images:
        json.dump(IMAGES, images)
        images.flush()
        os.environ["MOTO_AMIS_PATH"] = images.name
        import moto.ec2.models  # noqa: F401
    from moto.core.utils import get_service_model
    from moto.ec2 import utils
    from moto.ec2.models import amis, core, elastic_network_interfaces, instances, subnets

    # Looking through all tags of a region for those of one resource makes every listing quadratic.
    def get_tags(resource):
        kind = utils.EC2_PREFIX_TO_RESOURCE.get(utils.get_prefix(resource.id), "") if resource.id else ""
        tags = resource.ec2_backend.tags.get(resource.id, {})
        return [{"resource_id": resource.id, "key": key, "value": value, "resource_type": kind}
                for key, value in tags.items()]

    core.TaggedEC2Resource.get_tags = get_tags
    utils.EC2_RESOURCE_TO_PREFIX["placement-group"] = "pg"
    utils.EC2_PREFIX_TO_RESOURCE["pg"] = "placement-group"

    def next_public(*_args, **_kwargs):
        return next(addresses.public)

    def next_private(*_args, **_kwargs):
        return next(addresses.private)

    for module in (utils, elastic_network_interfaces):
        module.random_public_ip = next_public
    for module in (utils, elastic_network_interfaces, instances):
        module.random_private_ip = next_private
    subnets.Subnet.get_available_subnet_ip = next_private
    # EC2 counts addresses of IPv4; clients take no such number as there are of the others.
    counted = subnets.Subnet.available_ip_address_count.fget
    subnets.Subnet.available_ip_address_count = property(lambda subnet: 0 if subnet.ipv6_native else counted(subnet))
    subnets.Subnet.request_ip = lambda subnet, address, instance: None

    def root_only(image):
        return [{"DeviceName": image.root_device_name, "Ebs": {
            "SnapshotId": image.ebs_snapshot.id, "VolumeSize": 8, "DeleteOnTermination": True, "VolumeType": "gp3",
            "Encrypted": False,
        }}]

    amis.Ami.block_device_mappings = property(root_only)
    get_service_model("ec2")
