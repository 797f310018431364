"""An EC2 to test against: moto, made as strict, slow and forgetful as the real one, on this computer only.

It answers EC2, SSM, Pricing and STS at one address, starts an sshd for every instance whose user data asks for it,
and can be told under /_sim/ to fail in many ways."""

import argparse
import os
import signal
import socket
import sys
import threading
import time
import traceback
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import machines as machinery  # noqa: E402
import metadata  # noqa: E402
import policy  # noqa: E402
import tls  # noqa: E402

# moto would launch by these past all that is emulated here.
REFUSED = ("RequestSpotInstances", "RequestSpotFleet")


class Log:
    """Every call, in the order of arrival."""

    def __init__(self):
        self.lock, self.calls, self.count = threading.Lock(), [], 0

    def add(self, call):
        with self.lock:
            self.count += 1
            call.n = self.count
            params = call.flat_params
            entry = {"n": call.n, "at": time.time(), "service": call.service, "action": call.action,
                     "region": call.region, "status": None, "code": None, "effect": False,
                     "token": params.get("ClientToken"), "params": params}
            self.calls.append(entry)
            call.entry = entry
            return entry

    def entries(self):
        with self.lock:
            return [dict(entry) for entry in self.calls]

    def clear(self):
        with self.lock:
            self.calls, self.count = [], 0


class Emulator:
    """Takes calls in, lets the faults have their way, and gives the calls to whoever answers them."""

    def __init__(self, machines, with_machines):
        from account import Account
        from control import Control
        from faults import Faults
        from instances import Instances
        from launch import Launcher
        from reservations import Reservations
        from resources import Resources
        self.account = Account(with_machines)
        self.machines, self.faults, self.log = machines, Faults(), Log()
        instances = Instances(self.account, machines)
        machines.power_off = instances.power_off
        reservations = Reservations(self.account, instances)
        launcher, resources = Launcher(self.account, instances, reservations), Resources(self.account, instances)
        catalog = self.account.catalog
        self.control = Control(self.account, instances, reservations, machines, self.faults, self.log)
        self.metadata = metadata.Metadata(self.account, instances)

        def once(effect):
            return lambda call: launcher.once(call, effect)

        self.handlers = {
            ("ec2", "RunInstances"): once(launcher.run_instances),
            ("ec2", "CreateFleet"): once(launcher.create_fleet),
            ("ec2", "CreateLaunchTemplate"): once(self.account.moto),
            ("ec2", "CreateTags"): resources.change_tags,
            ("ec2", "DeleteTags"): resources.change_tags,
            ("sts", "GetCallerIdentity"): self.account.caller,
            ("ssm", "GetParameter"): catalog.get_parameter,
            ("ssm", "GetParameters"): catalog.get_parameters,
            ("pricing", "GetProducts"): catalog.get_products,
            ("servicequotas", "GetServiceQuota"): catalog.get_service_quota,
        }
        for owner, actions in (
            (instances, ("DescribeInstances", "DescribeInstanceStatus", "TerminateInstances", "StopInstances",
                         "StartInstances", "RebootInstances", "GetConsoleOutput", "ModifyInstanceAttribute", "DescribeSpotInstanceRequests",
                         "CancelSpotInstanceRequests")),
            (launcher, ("DescribeFleets", "DeleteFleets")),
            (reservations, ("CreateCapacityReservation", "CancelCapacityReservation", "DescribeCapacityReservations")),
            (resources, ("CreatePlacementGroup", "DescribePlacementGroups", "DeletePlacementGroup",
                         "DeleteSecurityGroup", "AuthorizeSecurityGroupIngress", "DeleteKeyPair", "DescribeKeyPairs",
                         "DescribeLaunchTemplates", "DeleteLaunchTemplate")),
            (catalog, ("DescribeInstanceTypes", "DescribeInstanceTypeOfferings", "DescribeSpotPriceHistory",
                       "GetInstanceTypesFromInstanceRequirements", "GetSpotPlacementScores")),
        ):
            for action in actions:
                self.handlers["ec2", action] = getattr(owner, _snake(action))

    def answer(self, call, connection):
        """The reply to a call, or None to close the connection without one."""
        from protocol import failure
        entry = self.log.add(call)
        entry["caller"], entry["runs"] = call.access_key, self.account.runs_of(call)
        rule = self.faults.choose(call)
        kind = rule and rule.kind
        if rule:
            entry["fault"] = kind
        if kind == "drop_before":
            return None
        if kind in ("error", "throttle", "unavailable"):
            return self._note(entry, failure(call, rule.error(call)))
        if kind == "slow":
            time.sleep(float(rule.given.get("seconds", 1)))
        if kind == "delay_effect":
            timer = threading.Timer(float(rule.given.get("seconds", 1)), lambda: self._note(entry, self.perform(call)))
            timer.daemon = True
            timer.start()
            if rule.given.get("hold"):
                self.faults.hold(call, connection)
            return None
        if kind == "hold_before" and not self.faults.hold(call, connection):
            return None
        reply = self._note(entry, self.perform(call))
        if kind == "fails_after":
            return failure(call, rule.error(call))
        if kind == "drop_after" or (kind == "hold_after" and not self.faults.hold(call, connection)):
            return None
        return reply

    @staticmethod
    def _note(entry, reply):
        entry["status"], entry["code"] = reply.status, reply.code
        return reply

    def perform(self, call):
        """The effect of a call, and its reply."""
        from protocol import ApiError, Reply, failure, success
        call.entry["effect"] = True
        try:
            with self.account.lock:
                self._believe(call)
                self._permit(call)
                if call.service == "ec2":
                    # Every region has to be as configured before moto sees it.
                    self.account.region(call.region)
                if self.account.policy:
                    region = self.account.region(call.region) if call.service == "ec2" else None
                    policy.authorize(self.account.policy, call, region)
                if self.account.config["ignore_filters"]:
                    call.forget("Filter.")
                handler = self.handlers.get((call.service, call.action), self.account.moto)
                # Launches are looked at first, so that a dry run finds what is wrong with them.
                if call.form.get("DryRun") == "true" and call.action not in ("RunInstances", "CreateFleet"):
                    raise ApiError("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
                if call.action in REFUSED:
                    raise ApiError("UnsupportedOperation", f"The emulator has no {call.action}.")
                result = handler(call)
            return result if isinstance(result, Reply) else success(call, result)
        except ApiError as error:
            return failure(call, error)
        except Exception as problem:
            # moto's errors carry their code; anything else is a gap of the emulator's.
            code = getattr(problem, "code", None)
            if isinstance(code, str):
                return failure(call, ApiError(code, str(getattr(problem, "message", problem))))
            traceback.print_exc()
            return failure(call, ApiError("UnsupportedOperation", f"The emulator cannot do {call.action}: {problem!r}"))

    def _believe(self, call):
        """Refuses what was signed at another time than it is here."""
        from protocol import ApiError
        config, signed = self.account.config, call.headers.get("x-amz-date")
        if not config["signature_window"] or not signed:
            return
        signed = datetime.strptime(signed, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        now = datetime.now(timezone.utc) + timedelta(seconds=float(config["clock_skew"]))
        if abs((now - signed).total_seconds()) > config["signature_window"]:
            text = f"Signature expired: {signed:%Y%m%dT%H%M%SZ} is now earlier or later than {now:%Y%m%dT%H%M%SZ}"
            raise ApiError("SignatureDoesNotMatch", text, 403)

    def _permit(self, call):
        from protocol import ApiError
        name = f"{call.service}:{call.action}"
        if name in self.account.denied or f"{call.service}:*" in self.account.denied:
            user = "arn:aws:iam::123456789012:user/tester"
            text = (f"User: {user} is not authorized to perform: {name} on resource: "
                    f"arn:aws:{call.service}:{call.region}:123456789012:* because no identity-based policy allows the "
                    f"{name} action")
            if call.service == "ec2":
                raise ApiError("UnauthorizedOperation", f"You are not authorized to perform this operation. {text}")
            raise ApiError(*(("AccessDeniedException", text) if call.is_json else ("AccessDenied", text)))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    emulator = None

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def _answer(self):
        from protocol import Call
        body = self._body()
        path, _, query = self.path.partition("?")
        if path.startswith("/_sim/"):
            status, kind, text = self.emulator.control.answer(
                self.command, path, query, body, self.client_address[0])
            return self._send(status, {"Content-Type": kind}, text)
        headers = {name.lower(): value for name, value in self.headers.items()}
        if path.startswith(metadata.PATH):
            status, text = self.emulator.metadata.answer(self.command, path, headers)
            return self._send(status, {"Content-Type": "text/plain"}, text.encode())
        reply = self.emulator.answer(Call.read(self.command, path, query, headers, body), self.connection)
        if reply is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._send(reply.status, reply.headers, reply.body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _answer

    def _body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    def _send(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        # In one piece, so that no part waits for the other's acknowledgement.
        self._headers_buffer.append(b"\r\n" + (b"" if self.command == "HEAD" else body))
        self.flush_headers()

    def date_time_string(self, timestamp=None):
        skew = float(self.emulator.account.config["clock_skew"])
        return super().date_time_string((timestamp or time.time()) + skew)

    def version_string(self):
        return "AmazonEC2"

    def log_message(self, *_args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


def _snake(name):
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--directory", type=Path, required=True, help="where machines live")
    parser.add_argument("--ssh-port", type=int, default=22, help="of the machines")
    parser.add_argument("--no-machines", action="store_true", help="instances are records only")
    parser.add_argument("--tls", action="store_true", help="listen with TLS too; DIRECTORY.pem has the certificate")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    options = parser.parse_args()

    directory = options.directory.resolve()
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    guard = machinery.guard(directory, made)
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    if options.until_eof:
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), ending.set()), daemon=True).start()

    machines = machinery.Machines(directory, options.ssh_port, made)
    Handler.emulator = Emulator(machines, not options.no_machines)
    server = Server(("127.0.0.1", options.port), Handler)
    machines.metadata = f"http://127.0.0.1:{server.server_port}{metadata.PATH.rstrip('/')}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    if options.tls:
        secure = Server(("127.0.0.1", 0), Handler)
        secure.socket = tls.listening(secure.socket, directory.with_suffix(".pem"))
        threading.Thread(target=secure.serve_forever, daemon=True).start()
        print(f"listening on https://127.0.0.1:{secure.server_port}", flush=True)
    # A wait without end would not be interrupted by signals everywhere.
    while not ending.wait(3600):
        pass
    machines.close(guard)
    sys.stdout.flush()
    # Threads may be in the middle of answering; nobody waits for their answers any more.
    os._exit(0)


if __name__ == "__main__":
    main()
