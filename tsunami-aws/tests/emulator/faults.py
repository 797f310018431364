"""Faults on demand: errors, delays, lost connections and held calls, chosen by action and count."""

import random
import select
import socket
import threading

from protocol import ApiError

KINDS = {"error", "throttle", "unavailable", "slow", "drop_before", "drop_after", "hold_before", "hold_after",
         "delay_effect", "fails_after"}


class Rule:
    """{"action": name, list or "*", "service": "ec2" if absent, "nth": first call that it fires for, "times": how often
    (once with nth, else always), "probability", "seed", "where": parameters that the call has, "kind"}, and for the kinds

    error, fails_after
                   "code", "message", "status"; the latter in place of an answer to a call that was carried out
    slow           "seconds" before the effect
    delay_effect   "seconds" until the effect; the connection is closed at once, or held with "hold": true
    drop_before, drop_after, hold_before, hold_after, throttle, unavailable"""

    def __init__(self, given):
        if given.get("kind") not in KINDS:
            raise ValueError(f"no such kind of fault: {given.get('kind')}")
        self.given, self.kind = given, given["kind"]
        actions = given.get("action", "*")
        self.actions = [actions] if isinstance(actions, str) else actions
        self.service = given.get("service", "ec2")
        self.nth = given.get("nth")
        self.left = given.get("times", 1 if self.nth else float("inf"))
        self.probability = given.get("probability", 1)
        self.random = random.Random(given.get("seed", 0))
        self.seen = 0

    def fires(self, call):
        """Whether it is this call's turn. Counts the call, so it must be asked of every one."""
        if self.service not in ("*", call.service) or not ("*" in self.actions or call.action in self.actions):
            return False
        params = call.flat_params
        if any(params.get(name) != value for name, value in self.given.get("where", {}).items()):
            return False
        self.seen += 1
        chance = self.random.random()
        if self.left <= 0 or (self.nth and self.seen < self.nth) or chance >= self.probability:
            return False
        self.left -= 1
        return True

    def error(self, call):
        if self.kind == "throttle" and call.is_json:
            return ApiError("ThrottlingException", "Rate exceeded")
        if self.kind == "throttle":
            return ApiError("RequestLimitExceeded", "Request limit exceeded.")
        if self.kind == "unavailable":
            return ApiError("Unavailable", "The service is unavailable. Please try again shortly.")
        code = self.given.get("code", "InternalError")
        return ApiError(code, self.given.get("message", f"Injected: {code}"), self.given.get("status"))


class Faults:
    def __init__(self):
        self.lock = threading.Lock()
        self.rules = []
        self.held = {}

    def add(self, rules):
        rules = [Rule(rule) for rule in (rules if isinstance(rules, list) else [rules])]
        with self.lock:
            self.rules += rules

    def clear(self):
        with self.lock:
            self.rules = []

    def choose(self, call):
        """The fault for a call, if one is due."""
        with self.lock:
            fired = [rule for rule in self.rules if rule.fires(call)]
        return fired[0] if fired else None

    def hold(self, call, connection):
        """Waits until the call is released. False if the client went away before."""
        released = threading.Event()
        with self.lock:
            self.held[call.n] = released
        try:
            while not released.wait(0.02):
                if gone(connection):
                    return False
            return True
        finally:
            with self.lock:
                self.held.pop(call.n, None)

    def release(self, n=None):
        with self.lock:
            for number, released in self.held.items():
                if n in (None, number):
                    released.set()


def gone(connection):
    """Whether the client has closed its end."""
    try:
        readable, _, _ = select.select([connection], [], [], 0)
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
    except (OSError, ValueError):
        return True
