"""What the project's tests rest on in the emulator itself, and no account can be asked for: faults and settings."""

import json
import time
import unittest
import urllib.error
import urllib.request

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError

from contract import arrange, emulator

RUN = {"Key": "tsunami:run", "Value": "20260101-000000-aaaaaaaaaaaaa"}
TAGGED = [{"ResourceType": "instance", "Tags": [RUN]}]


def look(path):
    with urllib.request.urlopen(f"{emulator()}/_sim/{path}", timeout=30) as answer:
        return json.loads(answer.read())


class Emulated(unittest.TestCase):
    def setUp(self):
        arrange("reset", {})
        arrange("config", {"pending": 0.1, "shutting_down": 0.1, "eni_detach": 0.1})
        once = Config(retries={"mode": "standard", "total_max_attempts": 1})
        self.ec2 = boto3.client("ec2", config=once)
        self.image = boto3.client("ssm", config=once).get_parameter(
            Name="/aws/service/debian/release/12/latest/amd64")["Parameter"]["Value"]

    def launch(self, **more):
        asked = {"ImageId": self.image, "InstanceType": "t3.nano", "MinCount": 1, "MaxCount": 1,
                 "TagSpecifications": TAGGED, **more}
        return self.ec2.run_instances(**asked)["Instances"][0]["InstanceId"]

    def state(self, identity):
        return {one["id"]: one["state"] for one in look("instances")}[identity]

    def becomes(self, identity, state):
        until = time.monotonic() + 30
        while self.state(identity) != state:
            self.assertLess(time.monotonic(), until, f"{identity} is not {state}")
            time.sleep(0.02)

    def refused(self, code, request):
        with self.assertRaises(ClientError) as caught:
            request()
        self.assertEqual(caught.exception.response["Error"]["Code"], code)
        return caught.exception.response

    def test_what_carries_a_runs_tag_remains_until_it_is_gone_whatever_listings_show(self):
        arrange("config", {"invisible": 60})
        machine = self.launch()
        self.assertEqual(self.ec2.describe_instances()["Reservations"], [])
        self.assertEqual([one["id"] for one in look("remaining")["instances"]], [machine])
        self.ec2.terminate_instances(InstanceIds=[machine])
        self.becomes(machine, "terminated")
        self.assertEqual(look("remaining")["instances"], [])

    def test_an_answer_is_lost_before_or_after_its_effect(self):
        for kind, launched in (("drop_before", 0), ("drop_after", 1)):
            with self.subTest(kind):
                self.setUp()
                arrange("faults", [{"action": "RunInstances", "kind": kind}])
                with self.assertRaises(ConnectionClosedError):
                    self.launch()
                self.assertEqual(len(look("instances")), launched)
                entry = [entry for entry in look("log") if entry["action"] == "RunInstances"][-1]
                self.assertEqual((entry["fault"], entry["effect"]), (kind, bool(launched)))

    def test_a_fault_fires_for_the_call_that_is_meant(self):
        arrange("faults", [{"action": "DescribeRegions", "nth": 2, "kind": "throttle"}])
        self.ec2.describe_regions()
        answer = self.refused("RequestLimitExceeded", self.ec2.describe_regions)
        self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 503)
        self.ec2.describe_regions()
        arrange("faults/clear", {})
        arrange("faults", [{"action": "*", "kind": "error", "code": "InsufficientInstanceCapacity", "status": 500}])
        answer = self.refused("InsufficientInstanceCapacity", self.launch)
        self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 500)

    def test_capacity_is_that_of_a_pool_and_is_free_again_when_machines_are_gone(self):
        arrange("capacity", [{"type": "t3.nano", "free": 1}])
        machine = self.launch()
        self.refused("InsufficientInstanceCapacity", self.launch)
        self.launch(InstanceType="t3.micro")
        self.ec2.terminate_instances(InstanceIds=[machine])
        self.becomes(machine, "terminated")
        self.launch()

    def test_what_is_denied_has_no_effect_and_names_the_permission(self):
        arrange("permissions", {"deny": ["ec2:RunInstances"]})
        answer = self.refused("UnauthorizedOperation", self.launch)
        self.assertIn("not authorized to perform: ec2:RunInstances", answer["Error"]["Message"])
        self.assertEqual(look("instances"), [])

    def test_a_policy_allows_what_it_says_and_nothing_else(self):
        machine = self.launch()
        condition = {"Null": {"aws:ResourceTag/tsunami:run": "false"}}
        arrange("policy", {"Statement": [
            {"Effect": "Allow", "Action": ["ec2:DescribeRegions"], "Resource": "*"},
            {"Effect": "Allow", "Action": ["ec2:TerminateInstances"], "Resource": "*", "Condition": condition}]})
        self.ec2.describe_regions()
        self.refused("UnauthorizedOperation", self.launch)
        self.ec2.terminate_instances(InstanceIds=[machine])
        arrange("policy", {})
        stranger = self.launch(TagSpecifications=[])
        arrange("policy", {"Statement": [
            {"Effect": "Allow", "Action": ["ec2:TerminateInstances"], "Resource": "*", "Condition": condition}]})
        self.refused("UnauthorizedOperation", lambda: self.ec2.terminate_instances(InstanceIds=[stranger]))

    def test_an_interrupted_machine_is_marked_and_ends_by_itself(self):
        spot = {"InstanceMarketOptions": {"MarketType": "spot"}}
        machine = self.launch(**spot)
        self.becomes(machine, "running")
        arrange("interrupt", {"instance": machine, "notice": 0.3})
        requests = self.ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
        self.assertEqual([one["Status"]["Code"] for one in requests], ["marked-for-termination"])
        self.becomes(machine, "terminated")
        requests = self.ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
        self.assertEqual([(one["State"], one["Status"]["Code"]) for one in requests],
                         [("closed", "instance-terminated-no-capacity")])

    def test_its_clock_goes_as_it_is_told(self):
        def ahead():
            date = self.ec2.describe_regions()["ResponseMetadata"]["HTTPHeaders"]["date"]
            return time.mktime(time.strptime(date, "%a, %d %b %Y %H:%M:%S GMT")) - time.mktime(time.gmtime())

        self.assertLess(abs(ahead()), 5)
        arrange("config", {"clock_skew": 3600})
        self.assertLess(abs(ahead() - 3600), 5)

    def test_what_is_signed_at_another_time_is_not_believed(self):
        arrange("config", {"signature_window": 300, "clock_skew": 200})
        self.ec2.describe_regions()
        arrange("config", {"clock_skew": 3600})
        self.refused("SignatureDoesNotMatch", self.ec2.describe_regions)

    def test_what_it_does_not_know_is_an_error_and_never_silence(self):
        with self.assertRaises(urllib.error.HTTPError):
            arrange("config", {"no_such_setting": 1})
        with self.assertRaises(urllib.error.HTTPError):
            arrange("faults", [{"action": "*", "kind": "no_such_kind"}])
        self.refused("UnsupportedOperation", lambda: self.ec2.request_spot_instances(InstanceCount=1))
        self.refused("InvalidParameterValue",
                     lambda: self.ec2.describe_instances(Filters=[{"Name": "novel", "Values": ["x"]}]))


if __name__ == "__main__":
    unittest.main(verbosity=2)
