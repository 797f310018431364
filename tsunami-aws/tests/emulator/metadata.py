"""The instance metadata service, as version 2 only. Every instance has a path of its own, where EC2 has one address."""

import json
import secrets
import time

PATH = "/_imds/"


class Metadata:
    def __init__(self, account, instances):
        self.account, self.instances = account, instances
        self.tokens = {}

    def answer(self, method, path, headers):
        """Status and text."""
        identity, _, path = path.removeprefix(PATH).partition("/latest/")
        with self.account.lock:
            instance = self.instances.find(identity)
            if instance is None or instance.state == "terminated":
                return 404, "no such instance"
            if path == "api/token":
                return self._token(identity, method, headers)
            owner, ends = self.tokens.get(headers.get("x-aws-ec2-metadata-token"), (None, 0))
            if owner != identity or time.monotonic() > ends:
                return 401, "Unauthorized"
            values = {"meta-data/instance-id": identity,
                      "meta-data/instance-life-cycle": "spot" if instance.life.spot else "on-demand"}
            if instance.life.notice:
                values["meta-data/spot/instance-action"] = json.dumps(instance.life.notice)
            if method != "GET" or path not in values:
                return 404, "Not Found"
            return 200, values[path]

    def _token(self, identity, method, headers):
        seconds = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if method != "PUT":
            return 405, "Method Not Allowed"
        if not seconds.isdigit() or not 1 <= int(seconds) <= 21600:
            return 400, "Bad Request"
        token = secrets.token_urlsafe(32)
        self.tokens[token] = identity, time.monotonic() + int(seconds)
        return 200, token
