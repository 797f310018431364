"""What tsunami takes for granted of EC2, asked of whatever answers: the emulator, or a real account.

Each test is one row of ASSUMPTIONS.md. `cargo xtask aws-contract` runs them against an account, which costs some cents,
and the project's tests against the emulator. All that they make carries a tag of this run's and is removed at the
end, also after a failure; what could not be removed is named. Everything is found as AWS's tools find it: credentials,
region, endpoint."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request
import uuid
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

RUN = f"contract-{uuid.uuid4().hex[:12]}"
TAG = {"Key": "tsunami:contract", "Value": RUN}
KINDS = ("instance", "volume", "network-interface")
# Small types of today's hypervisor and of the older one.
TYPE, OLDER_TYPE = "t3.nano", "t2.nano"
IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
# The public parameters behind the aliases of images.
PARAMETERS = [
    "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",
    "/aws/service/canonical/ubuntu/server/22.04/stable/current/arm64/hvm/ebs-gp2/ami-id",
    "/aws/service/debian/release/12/latest/amd64",
    "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-arm64",
]
# What machines of the images are taken to be, by their aliases: the parameter, who logs in, and what starts sshd.
IMAGES = {
    "ubuntu-24.04": (PARAMETERS[0], "ubuntu", "ssh.socket"),
    "ubuntu-22.04": ("/aws/service/canonical/ubuntu/server/22.04/stable/current/amd64/hvm/ebs-gp2/ami-id",
                     "ubuntu", "ssh.service"),
    "debian-12": (PARAMETERS[2], "admin", "ssh.service"),
    "debian-13": ("/aws/service/debian/release/13/latest/amd64", "admin", "ssh.service"),
    "al2023": (IMAGE, "ec2-user", "sshd.service"),
}
# How long a machine of such an image lives.
LIFE = 420
PATIENCE = 300


def tags(*kinds):
    return [{"ResourceType": kind, "Tags": [TAG]} for kind in kinds]


class Contract(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        session = boto3.Session()
        config = Config(retries={"mode": "adaptive", "max_attempts": 8})
        cls.client = staticmethod(lambda name, **more: session.client(name, config=config, **more))
        cls.ec2 = cls.client("ec2")
        cls.image = cls.client("ssm").get_parameter(Name=IMAGE)["Parameter"]["Value"]
        subnets = cls.ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"]
        cls.subnet = min(subnets, key=lambda subnet: subnet["AvailabilityZone"])
        # Shared by those tests that only look.
        cls.machines = cls.launch(2)
        cls.wait(cls.machines, "running")

    @classmethod
    def tearDownClass(cls):
        for failure in clear(cls.ec2):
            print(f"may remain: {failure}", file=sys.stderr)

    # What tests do.

    @classmethod
    def launch(cls, count, **more):
        asked = {"ImageId": cls.image, "InstanceType": TYPE, "SubnetId": cls.subnet["SubnetId"],
                 "InstanceInitiatedShutdownBehavior": "terminate", "MinCount": count, "MaxCount": count,
                 "TagSpecifications": tags(*KINDS), **more}
        return [one["InstanceId"] for one in cls.ec2.run_instances(**asked)["Instances"]]

    @classmethod
    def described(cls, ids):
        found = cls.ec2.describe_instances(InstanceIds=ids)["Reservations"]
        return [one for reservation in found for one in reservation["Instances"]]

    @classmethod
    def wait(cls, ids, state, patience=PATIENCE):
        until = time.monotonic() + patience
        while True:
            try:
                machines = cls.described(ids)
                if all(one["State"]["Name"] == state for one in machines):
                    return machines
            except ClientError as error:
                # Just made, and not shown yet.
                if error.response["Error"]["Code"] != "InvalidInstanceID.NotFound":
                    raise
            if time.monotonic() > until:
                raise AssertionError(f"not {state} after {patience} s: {ids}")
            time.sleep(0.1 if emulator() else 3)

    def refused(self, code, request, *words):
        """The error of a request that has to be refused in this way."""
        with self.assertRaises(ClientError) as caught:
            request()
        answer = caught.exception.response
        self.assertEqual(answer["Error"]["Code"], code, answer)
        for word in words:
            self.assertIn(word, answer["Error"]["Message"])
        return answer

    def template(self, **more):
        name = f"{RUN}-{uuid.uuid4().hex[:8]}"
        data = {"ImageId": self.image, "InstanceInitiatedShutdownBehavior": "terminate", "TagSpecifications":
                tags(*KINDS, *more.pop("kinds", ())), **more}
        self.ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data,
                                        TagSpecifications=tags("launch-template"))
        return name

    def fleet(self, template, pools, count=1, market="on-demand", alike=True, subnet=None, **more):
        subnet = subnet or self.subnet["SubnetId"]
        overrides = [{"InstanceType": kind, "SubnetId": subnet, "Priority": order}
                     for order, kind in enumerate(pools)]
        alike = {"SingleInstanceType": True, "SingleAvailabilityZone": True, "MinTargetCapacity": count} if alike else {}
        option = "SpotOptions" if market == "spot" else "OnDemandOptions"
        strategy = "price-capacity-optimized" if market == "spot" else "prioritized"
        return self.ec2.create_fleet(
            Type="instant", TagSpecifications=tags("fleet"),
            LaunchTemplateConfigs=[{"LaunchTemplateSpecification": {"LaunchTemplateName": template, "Version": "1"},
                                    "Overrides": overrides}],
            TargetCapacitySpecification={"TotalTargetCapacity": count, "DefaultTargetCapacityType": market},
            **{option: {"AllocationStrategy": strategy, **alike}}, **more)

    @staticmethod
    def ids(fleet):
        return [identity for one in fleet["Instances"] for identity in one["InstanceIds"]]

    # What is taken for granted.

    def test_a_token_is_one_launch_and_never_two(self):
        token = uuid.uuid4().hex
        first = self.launch(1, ClientToken=token)
        self.assertEqual(self.launch(1, ClientToken=token), first)
        self.refused("IdempotentParameterMismatch", lambda: self.launch(2, ClientToken=token))
        self.wait(first, "running")
        self.ec2.terminate_instances(InstanceIds=first)
        self.wait(first, "terminated")
        self.refused("IdempotentInstanceTerminated", lambda: self.launch(1, ClientToken=token))

    def test_the_token_of_a_fleet_is_one_launch_and_never_two(self):
        template, token = self.template(), uuid.uuid4().hex
        first = self.fleet(template, [TYPE], ClientToken=token)
        again = self.fleet(template, [TYPE], ClientToken=token)
        self.assertEqual(again["FleetId"], first["FleetId"])
        # With its machines, or with none of them; never with others.
        self.assertIn(self.ids(again), (self.ids(first), []))

    def test_all_that_a_launch_makes_is_tagged_by_the_request_itself(self):
        machine, = self.wait(self.ids(self.fleet(self.template(), [TYPE])), "running")
        made = [machine["InstanceId"], machine["NetworkInterfaces"][0]["NetworkInterfaceId"],
                machine["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]]
        found = self.ec2.describe_tags(Filters=[{"Name": f"tag:{TAG['Key']}", "Values": [RUN]}])["Tags"]
        self.assertLessEqual(set(made), {tag["ResourceId"] for tag in found})
        self.assertIn("aws:ec2:fleet-id", {tag["Key"] for tag in machine["Tags"]})

    def test_a_template_can_go_as_soon_as_its_machines_are_launched(self):
        template = self.template()
        ids = self.ids(self.fleet(template, [TYPE]))
        self.ec2.delete_launch_template(LaunchTemplateName=template)
        self.wait(ids, "running")

    def test_what_one_pool_refuses_is_told_inside_an_answer_that_succeeds(self):
        # The image is not for this one's processor.
        fleet = self.fleet(self.template(), ["t4g.nano", TYPE])
        self.assertEqual([one["InstanceType"] for one in fleet["Instances"]], [TYPE], fleet)
        self.assertEqual([one["LaunchTemplateAndOverrides"]["Overrides"]["InstanceType"] for one in fleet["Errors"]],
                         ["t4g.nano"], fleet)

    def test_a_fleet_of_alike_machines_is_whole_or_nothing(self):
        arrange("capacity", [{"type": TYPE, "free": 0}, {"type": "t3.micro", "free": 0}])
        if emulator():
            fleet = self.fleet(self.template(), [TYPE, "t3.micro"], count=2)
            self.assertEqual((self.ids(fleet), bool(fleet["Errors"])), ([], True))
        arrange("capacity", [])
        fleet = self.fleet(self.template(), [TYPE, "t3.micro"], count=2)
        self.assertEqual(len(self.ids(fleet)), 2)
        self.assertEqual(len({one["InstanceType"] for one in self.described(self.ids(fleet))}), 1)

    def test_an_instant_fleet_stays_active_until_it_is_deleted_with_its_machines(self):
        fleet = self.fleet(self.template(), [TYPE])
        shown = self.ec2.describe_fleets(FleetIds=[fleet["FleetId"]])["Fleets"]
        self.assertEqual([one["FleetState"] for one in shown], ["active"])
        every = self.ec2.describe_fleets()["Fleets"]
        self.assertNotIn(fleet["FleetId"], [one["FleetId"] for one in every], "instant fleets are shown by id only")
        done = self.ec2.delete_fleets(FleetIds=[fleet["FleetId"]], TerminateInstances=True)
        self.assertEqual([one["FleetId"] for one in done["SuccessfulFleetDeletions"]], [fleet["FleetId"]])
        self.wait(self.ids(fleet), "terminated")

    def test_a_spot_request_is_active_as_long_as_its_machine_and_then_closed(self):
        fleet = self.fleet(self.template(kinds=("spot-instances-request",)), [TYPE, "t3.micro"], market="spot")
        if not self.ids(fleet):
            self.skipTest(f"no spot capacity: {fleet['Errors']}")
        self.wait(self.ids(fleet), "running")
        mine = [{"Name": f"tag:{TAG['Key']}", "Values": [RUN]},
                {"Name": "instance-id", "Values": self.ids(fleet)}]

        def states():
            return [one["State"] for one in self.ec2.describe_spot_instance_requests(Filters=mine)["SpotInstanceRequests"]]

        self.assertEqual(states(), ["active"])
        self.ec2.terminate_instances(InstanceIds=self.ids(fleet))
        self.wait(self.ids(fleet), "terminated")
        until = time.monotonic() + PATIENCE
        while states() == ["active"] and time.monotonic() < until:
            time.sleep(1)
        self.assertEqual(states(), ["closed"])

    def test_one_machine_that_is_protected_keeps_those_beside_it_and_is_named(self):
        ids = self.launch(2)
        self.wait(ids, "running")
        self.ec2.modify_instance_attribute(InstanceId=ids[0], DisableApiTermination={"Value": True})
        self.refused("OperationNotPermitted", lambda: self.ec2.terminate_instances(InstanceIds=ids),
                     ids[0], "disableApiTermination")
        self.wait(ids, "running")
        self.ec2.terminate_instances(InstanceIds=ids[1:])
        self.ec2.modify_instance_attribute(InstanceId=ids[0], DisableApiTermination={"Value": False})
        self.ec2.terminate_instances(InstanceIds=ids)
        self.wait(ids, "terminated")

    def test_one_unknown_machine_fails_a_whole_request_and_is_named(self):
        unknown = "i-0123456789abcdef0"
        self.refused("InvalidInstanceID.NotFound",
                     lambda: self.ec2.terminate_instances(InstanceIds=[*self.machines, unknown]), unknown)
        self.wait(self.machines, "running")

    def test_a_type_of_the_older_hypervisor_refuses_to_skip_its_shutdown(self):
        old = self.launch(1, InstanceType=OLDER_TYPE)
        self.wait(old, "running")
        self.refused("UnsupportedOperation",
                     lambda: self.ec2.terminate_instances(InstanceIds=old, SkipOsShutdown=True))
        self.ec2.terminate_instances(InstanceIds=old)

    def test_a_machine_that_powers_itself_off_is_terminated_and_says_so(self):
        machine, = self.launch(1, UserData="#!/bin/sh\npoweroff\n")
        if emulator():
            self.wait([machine], "running")
            arrange("poweroff", {"instance": machine})
        ended, = self.wait([machine], "terminated")
        self.assertEqual(ended["StateReason"]["Code"], "Client.InstanceInitiatedShutdown")

    def test_what_has_ended_is_shown_for_a_while_with_its_reason(self):
        ids = self.launch(1)
        self.ec2.terminate_instances(InstanceIds=ids)
        ended, = self.wait(ids, "terminated")
        self.assertEqual(ended["StateReason"]["Code"], "Client.UserInitiatedShutdown")
        # To end it once more is no error.
        again = self.ec2.terminate_instances(InstanceIds=ids)["TerminatingInstances"]
        self.assertEqual(again[0]["CurrentState"]["Name"], "terminated")

    def test_a_security_group_in_use_is_not_deleted(self):
        group = self.ec2.create_security_group(GroupName=f"{RUN}-used", Description="tsunami's contract",
                                               VpcId=self.subnet["VpcId"], TagSpecifications=tags("security-group"))
        ids = self.launch(1, SecurityGroupIds=[group["GroupId"]])
        self.refused("DependencyViolation", lambda: self.ec2.delete_security_group(GroupId=group["GroupId"]))
        self.wait(ids, "running")
        self.ec2.terminate_instances(InstanceIds=ids)

    def test_a_name_that_is_taken_is_refused_by_name(self):
        group = {"GroupName": f"{RUN}-twice", "Description": "tsunami's contract", "VpcId": self.subnet["VpcId"],
                 "TagSpecifications": tags("security-group")}
        made = self.ec2.create_security_group(**group)["GroupId"]
        self.refused("InvalidGroup.Duplicate", lambda: self.ec2.create_security_group(**group))
        rule = [{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "203.0.113.7/32"}]}]
        self.ec2.authorize_security_group_ingress(GroupId=made, IpPermissions=rule)
        self.refused("InvalidPermission.Duplicate",
                     lambda: self.ec2.authorize_security_group_ingress(GroupId=made, IpPermissions=rule))
        cluster = {"GroupName": f"{RUN}-close", "Strategy": "cluster", "TagSpecifications": tags("placement-group")}
        self.ec2.create_placement_group(**cluster)
        self.refused("InvalidPlacementGroup.Duplicate", lambda: self.ec2.create_placement_group(**cluster))
        name = self.template()
        self.refused("InvalidLaunchTemplateName.AlreadyExistsException", lambda: self.ec2.create_launch_template(
            LaunchTemplateName=name, LaunchTemplateData={"ImageId": self.image}))

    def test_a_listing_by_tag_shows_what_has_the_tag_and_nothing_else(self):
        def listed(value):
            pages = self.ec2.get_paginator("describe_instances").paginate(
                Filters=[{"Name": f"tag:{TAG['Key']}", "Values": [value]}], PaginationConfig={"PageSize": 5})
            return {one["InstanceId"] for page in pages for reservation in page["Reservations"]
                    for one in reservation["Instances"]}

        self.assertLessEqual(set(self.machines), listed(RUN))
        self.assertEqual(listed("nobody's"), set())

    def test_a_machine_shows_its_processors_and_a_quota_its_value(self):
        options = self.described(self.machines[:1])[0]["CpuOptions"]
        self.assertEqual(options["CoreCount"] * options["ThreadsPerCore"], 2)
        quotas = self.client("service-quotas")
        for code in ("L-1216C47A", "L-34B43A08"):
            quota = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]
            self.assertIn("Standard (A, C, D, H, I, M, R, T, Z)", quota["QuotaName"])
            self.assertGreaterEqual(quota["Value"], 0)

    def test_an_interface_of_a_template_says_whether_machines_have_public_addresses(self):
        self.assertTrue(self.subnet["MapPublicIpOnLaunch"])
        for public in (False, True):
            interface = {"DeviceIndex": 0, "AssociatePublicIpAddress": public, "DeleteOnTermination": True}
            ids = self.ids(self.fleet(self.template(NetworkInterfaces=[interface]), [TYPE]))
            machine, = self.wait(ids, "running")
            self.assertEqual("PublicIpAddress" in machine, public, machine)
            self.assertEqual(machine["SubnetId"], self.subnet["SubnetId"])

    def test_a_machine_in_a_subnet_for_ipv6_only_has_one_such_address_and_no_other(self):
        network = self.ec2.create_vpc(CidrBlock="10.91.0.0/16", AmazonProvidedIpv6CidrBlock=True,
                                      TagSpecifications=tags("vpc"))["Vpc"]["VpcId"]

        def blocks():
            found, = self.ec2.describe_vpcs(VpcIds=[network])["Vpcs"]
            return [one["Ipv6CidrBlock"] for one in found["Ipv6CidrBlockAssociationSet"]
                    if one["Ipv6CidrBlockState"]["State"] == "associated"]

        until = time.monotonic() + PATIENCE
        while not blocks() and time.monotonic() < until:
            time.sleep(1)
        block = blocks()[0].partition("/")[0] + "/64"
        subnet = self.ec2.create_subnet(VpcId=network, Ipv6Native=True, Ipv6CidrBlock=block,
                                        AvailabilityZone=self.subnet["AvailabilityZone"],
                                        TagSpecifications=tags("subnet"))["Subnet"]
        shown, = self.ec2.describe_subnets(SubnetIds=[subnet["SubnetId"]])["Subnets"]
        self.assertTrue(shown["Ipv6Native"])
        template = self.template(MetadataOptions={"HttpTokens": "required", "HttpProtocolIpv6": "enabled"})
        machine, = self.wait(self.ids(self.fleet(template, [TYPE], subnet=subnet["SubnetId"])), "running")
        self.assertEqual([one["Ipv6Address"] for one in machine["NetworkInterfaces"][0]["Ipv6Addresses"]],
                         [machine["Ipv6Address"]])
        self.assertFalse({"PrivateIpAddress", "PublicIpAddress"} & set(machine), machine)
        self.assertEqual(machine["MetadataOptions"]["HttpProtocolIpv6"], "enabled")

    def test_the_main_table_of_the_default_network_leads_to_the_internet(self):
        network = self.subnet["VpcId"]
        tables = self.ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [network]}])["RouteTables"]
        main, = [one for one in tables if any(way["Main"] for way in one["Associations"])]
        self.assertTrue(any(route.get("GatewayId", "").startswith("igw-") for route in main["Routes"]), main)
        found, = self.ec2.describe_vpcs(VpcIds=[network])["Vpcs"]
        blocks = [one["CidrBlock"] for one in found["CidrBlockAssociationSet"]
                  if one["CidrBlockState"]["State"] == "associated"]
        self.assertIn(found["CidrBlock"], blocks)

    def test_a_dry_run_says_whether_it_would_be_allowed_and_makes_nothing(self):
        name = f"dry-{uuid.uuid4().hex}"
        template = {"LaunchTemplateSpecification": {"LaunchTemplateName": name, "Version": "1"}}
        self.refused("DryRunOperation", lambda: self.ec2.run_instances(
            DryRun=True, ImageId=self.image, InstanceType=TYPE, SubnetId=self.subnet["SubnetId"], MinCount=1, MaxCount=1,
            TagSpecifications=tags("instance", "volume")))
        self.refused("DryRunOperation", lambda: self.ec2.create_launch_template(
            DryRun=True, LaunchTemplateName=name, LaunchTemplateData={"ImageId": self.image},
            TagSpecifications=tags("launch-template")))
        self.refused("DryRunOperation", lambda: self.ec2.create_security_group(
            DryRun=True, GroupName=name, Description="dry", VpcId=self.subnet["VpcId"],
            TagSpecifications=tags("security-group")))
        # A fleet's template is looked for, whether or not its caller may launch.
        self.refused("InvalidLaunchTemplateName.NotFoundException", lambda: self.ec2.create_fleet(
            DryRun=True, Type="instant", LaunchTemplateConfigs=[template],
            TargetCapacitySpecification={"TotalTargetCapacity": 1}))
        templates = self.ec2.describe_launch_templates(Filters=[{"Name": "launch-template-name", "Values": [name]}])
        self.assertEqual(templates["LaunchTemplates"], [])

    def test_spot_machines_of_few_types_are_rated_low(self):
        def scores(kinds):
            found = self.ec2.get_spot_placement_scores(
                InstanceTypes=kinds, TargetCapacity=1, RegionNames=[self.ec2.meta.region_name])
            return [one["Score"] for one in found["SpotPlacementScores"]]

        many, few = scores(["m5.large", "m6i.large", "c5.large", "c6i.large"]), scores(["m5.large"])
        self.assertTrue(all(1 <= score <= 10 for score in many + few), (many, few))
        self.assertTrue(all(score <= 3 for score in few), few)

    def test_types_are_found_by_what_they_have(self):
        def found(size=1000, **more):
            wanted = {"VCpuCount": {"Min": 2, "Max": 4}, "MemoryMiB": {"Min": 8192, "Max": 16384},
                      "InstanceGenerations": ["current"], "BareMetal": "excluded", **more}
            pages = self.ec2.get_paginator("get_instance_types_from_instance_requirements").paginate(
                ArchitectureTypes=["arm64"], VirtualizationTypes=["hvm"], InstanceRequirements=wanted,
                PaginationConfig={"PageSize": size})
            return {one["InstanceType"] for page in pages for one in page["InstanceTypes"]}

        plain, bursting = found(), found(BurstablePerformance="included")
        self.assertEqual(found(size=5), plain)
        # What bursts is left out unless it is asked for, and what is excluded by a pattern is.
        self.assertEqual(({kind for kind in plain if kind.startswith("t")}, "t4g.large" in bursting), (set(), True))
        self.assertEqual(found(BurstablePerformance="included", ExcludedInstanceTypes=["t*", "m7g.*"]),
                         {kind for kind in plain if not kind.startswith("m7g.")})
        self.assertEqual(found(VCpuCount={"Min": 3, "Max": 3}), set())
        described = self.ec2.describe_instance_types(InstanceTypes=sorted(plain)[:100])["InstanceTypes"]
        for one in described:
            self.assertTrue(2 <= one["VCpuInfo"]["DefaultVCpus"] <= 4 and one["CurrentGeneration"], one)
            self.assertTrue(8192 <= one["MemoryInfo"]["SizeInMiB"] <= 16384, one)
            self.assertIn("arm64", one["ProcessorInfo"]["SupportedArchitectures"])

    def test_the_price_list_is_asked_by_the_number_of_processors(self):
        pricing = self.client("pricing", region_name="us-east-1")
        wanted = {"vcpu": "2", "regionCode": self.ec2.meta.region_name, "operatingSystem": "Linux",
                  "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used", "marketoption": "OnDemand",
                  "licenseModel": "No License required", "operation": "RunInstances"}
        filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
        pages = pricing.get_paginator("get_products").paginate(ServiceCode="AmazonEC2", Filters=filters,
                                                               FormatVersion="aws_v1")
        kinds = [json.loads(one)["product"]["attributes"]["instanceType"] for page in pages for one in page["PriceList"]]
        self.assertIn("m7g.large", kinds)
        self.assertEqual(len(set(kinds)), len(kinds))

    def test_a_fleet_goes_into_the_reservation_that_its_template_names_as_long_as_there_is_room(self):
        mine = [{"Name": f"tag:{TAG['Key']}", "Values": [RUN]}, {"Name": "state", "Values": ["active"]}]
        reserved = self.ec2.create_capacity_reservation(
            InstanceType=TYPE, InstancePlatform="Linux/UNIX", AvailabilityZone=self.subnet["AvailabilityZone"],
            InstanceCount=1, InstanceMatchCriteria="targeted",
            TagSpecifications=tags("capacity-reservation"))["CapacityReservation"]["CapacityReservationId"]

        def shown():
            pages = self.ec2.get_paginator("describe_capacity_reservations").paginate(Filters=mine)
            return [one for page in pages for one in page["CapacityReservations"]]

        def fleet():
            return self.ec2.create_fleet(
                Type="instant", TagSpecifications=tags("fleet"),
                LaunchTemplateConfigs=[{"LaunchTemplateSpecification": {"LaunchTemplateName": template, "Version": "1"},
                                        "Overrides": [{"InstanceType": TYPE, "SubnetId": self.subnet["SubnetId"]}]}],
                TargetCapacitySpecification={"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "reserved-capacity"},
                ReservedCapacityOptions={"ReservationTypes": ["on-demand-capacity-reservation"],
                                         "AllocationStrategy": "prioritized"})

        until = time.monotonic() + PATIENCE
        while not shown() and time.monotonic() < until:
            time.sleep(1)
        one, = shown()
        self.assertEqual((one["CapacityReservationId"], one["AvailableInstanceCount"], one["InstancePlatform"],
                          one["ReservationType"]), (reserved, 1, "Linux/UNIX", "default"))
        template = self.template(CapacityReservationSpecification={
            "CapacityReservationTarget": {"CapacityReservationId": reserved}})
        ids = self.ids(fleet())
        machine, = self.wait(ids, "running")
        self.assertEqual(machine["CapacityReservationId"], reserved)
        self.assertEqual(shown()[0]["AvailableInstanceCount"], 0)
        # Where there is no room for it, nothing else is launched in its place.
        full = fleet()
        self.assertEqual(self.ids(full), [])
        self.assertIn(full["Errors"][0]["ErrorCode"], ("ReservationCapacityExceeded", "InsufficientInstanceCapacity"))
        self.refused("InvalidCapacityReservationId.NotFound", lambda: self.ec2.describe_capacity_reservations(
            CapacityReservationIds=["cr-0123456789abcdef0"]))

    def test_the_images_of_the_aliases_are_there(self):
        ssm = self.client("ssm")
        for name in PARAMETERS:
            image = ssm.get_parameter(Name=name)["Parameter"]["Value"]
            found, = self.ec2.describe_images(ImageIds=[image])["Images"]
            self.assertEqual(found["Architecture"], "arm64" if "arm64" in name else "x86_64", name)

    def test_a_machine_of_each_image_is_armed_first_and_known_by_the_pinned_key_and_ends(self):
        ssm, (private, public) = self.client("ssm"), host_key()
        at = int(time.time()) + 3600
        told, machines = user_data(at, LIFE, private), {}
        for alias, (parameter, *_) in IMAGES.items():
            image = ssm.get_parameter(Name=parameter)["Parameter"]["Value"]
            machines[alias], = self.launch(1, ImageId=image, UserData=told)
        for alias, machine in machines.items():
            _, user, listener = IMAGES[alias]
            if emulator():
                self.wait([machine], "running")
                arrange("console", {"instance": machine, "text": answer(user, listener, f"armed {at} {LIFE}", public)})
            with self.subTest(alias):
                facts = self.facts(machine)
                print(f"{alias}: {facts}", file=sys.stderr)
                self.assertEqual((facts["user"], facts["listener"]), (user, listener))
                self.assertEqual((facts["deadline"], facts["key"]), (f"armed {at} {LIFE}", public))
                armed, listened = map(int, facts["began"].split())
                self.assertTrue(0 < armed < listened, facts)
                arrange("poweroff", {"instance": machine})
                ended, = self.wait([machine], "terminated", LIFE + PATIENCE)
                self.assertEqual(ended["StateReason"]["Code"], "Client.InstanceInitiatedShutdown")

    def facts(self, machine):
        """What `image.sh` said on a machine's console."""
        until = time.monotonic() + LIFE + PATIENCE
        while True:
            said = self.ec2.get_console_output(InstanceId=machine, Latest=True).get("Output", "")
            facts = dict(re.findall(r"tsunami-contract: (\w+) ?([^\r\n]*)", said))
            if "complete" in facts:
                return facts
            self.assertLess(time.monotonic(), until, f"{machine} has not said all: {said[-2000:]}")
            time.sleep(0.1 if emulator() else 10)

    def test_the_price_list_has_one_price_for_a_plain_machine(self):
        wanted = {"instanceType": TYPE, "regionCode": self.ec2.meta.region_name, "operatingSystem": "Linux",
                  "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used", "marketoption": "OnDemand",
                  "licenseModel": "No License required", "operation": "RunInstances"}
        filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
        found = self.client("pricing", region_name="us-east-1").get_products(
            ServiceCode="AmazonEC2", Filters=filters, FormatVersion="aws_v1")["PriceList"]
        if emulator() and not found:
            self.skipTest("the emulator sells no such machine")
        self.assertEqual(len(found), 1)
        terms = json.loads(found[0])["terms"]["OnDemand"].values()
        prices = [float(rate["pricePerUnit"]["USD"]) for term in terms for rate in term["priceDimensions"].values()]
        self.assertTrue(len(prices) == 1 and 0 < prices[0] < 0.1, prices)

    def test_every_answer_says_what_time_it_is(self):
        answer = self.ec2.describe_regions()["ResponseMetadata"]["HTTPHeaders"]
        self.assertRegex(answer["date"], r"^\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$")


def user_data(at, life, key):
    """tsunami's own user data, with what asks the image as the user's part."""
    home = Path(__file__).resolve().parent
    scripts = home.parent.parent / "src/user_data"
    hook = (scripts / "boothook.sh").read_text()
    for place, content in (("@TOOL@", (scripts / "deadline.sh").read_text().rstrip()), ("@AT@", str(at)),
                           ("@FOR@", str(life)), ("@HOST_KEY@", key.rstrip())):
        hook = hook.replace(place, content)
    return ("Content-Type: multipart/mixed; boundary=\"===tsunami===\"\nMIME-Version: 1.0\n\n"
            "--===tsunami===\nContent-Type: text/cloud-boothook; charset=\"utf-8\"\n"
            f"Content-Disposition: attachment; filename=\"tsunami-boothook.sh\"\n\n{hook}\n"
            "--===tsunami===\nContent-Type: text/plain; charset=\"utf-8\"\n"
            "Content-Disposition: attachment; filename=\"user-data\"\n\n"
            f"{(home / 'image.sh').read_text().rstrip()}\n--===tsunami===--\n")


def host_key():
    """A new host key: what machines get, and what they are known by."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", file], check=True)
        return file.read_text(), " ".join(file.with_suffix(".pub").read_text().split()[:2])


def answer(user, listener, deadline, key):
    """What a machine says whose image is as it is taken to be."""
    facts = {"user": user, "listener": listener, "deadline": deadline, "began": "2000000 3000000", "key": key,
             "version": "", "includes": "1", "selinux": "none", "complete": ""}
    return "".join(f"[    9.0] tsunami-contract: {name} {fact}\r\n" for name, fact in facts.items())


def emulator():
    """Whether it is the emulator that answers."""
    return os.environ.get("TSUNAMI_EMULATOR")


def arrange(path, given):
    """Has the emulator behave in a way that a real account can't be asked for."""
    if emulator():
        request = urllib.request.Request(f"{emulator()}/_sim/{path}", json.dumps(given).encode())
        urllib.request.urlopen(request, timeout=30).read()


def clear(ec2):
    """Removes all that this run has made. Gives what could not be."""
    mine = [{"Name": f"tag:{TAG['Key']}", "Values": [RUN]}]
    failures = []

    def remove(what, request):
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return request()
            except ClientError as error:
                used = error.response["Error"]["Code"] in ("DependencyViolation", "InvalidPlacementGroup.InUse")
                if not used or time.monotonic() > until:
                    return failures.append(f"{what}: {error}")
                time.sleep(0.2 if emulator() else 5)

    found = ec2.describe_instances(Filters=mine)["Reservations"]
    for one in [one for reservation in found for one in reservation["Instances"]]:
        if one["State"]["Name"] != "terminated":
            identity = one["InstanceId"]
            remove(identity, lambda identity=identity: ec2.modify_instance_attribute(
                InstanceId=identity, DisableApiTermination={"Value": False}))
            remove(identity, lambda identity=identity: ec2.terminate_instances(InstanceIds=[identity]))
    for template in ec2.describe_launch_templates(Filters=mine)["LaunchTemplates"]:
        name = template["LaunchTemplateName"]
        remove(name, lambda name=name: ec2.delete_launch_template(LaunchTemplateName=name))
    for reserved in ec2.describe_capacity_reservations(Filters=mine)["CapacityReservations"]:
        if reserved["State"] == "active":
            identity = reserved["CapacityReservationId"]
            remove(identity, lambda identity=identity: ec2.cancel_capacity_reservation(CapacityReservationId=identity))
    for group in ec2.describe_security_groups(Filters=mine)["SecurityGroups"]:
        group = group["GroupId"]
        remove(group, lambda group=group: ec2.delete_security_group(GroupId=group))
    for group in ec2.describe_placement_groups(Filters=mine)["PlacementGroups"]:
        group = group["GroupName"]
        remove(group, lambda group=group: ec2.delete_placement_group(GroupName=group))
    for subnet in ec2.describe_subnets(Filters=mine)["Subnets"]:
        subnet = subnet["SubnetId"]
        remove(subnet, lambda subnet=subnet: ec2.delete_subnet(SubnetId=subnet))
    for network in ec2.describe_vpcs(Filters=mine)["Vpcs"]:
        network = network["VpcId"]
        remove(network, lambda network=network: ec2.delete_vpc(VpcId=network))
    return failures


if __name__ == "__main__":
    unittest.main(verbosity=2)
