"""What AWS offers: images, instance types, prices."""

import hashlib
import json
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase

from protocol import ApiError, matches, page

_UBUNTU = {
    "20.04": ("focal", "hvm-ssd", "20250603"), "22.04": ("jammy", "hvm-ssd", "20250610"),
    "24.04": ("noble", "hvm-ssd-gp3", "20250610"), "26.04": ("resolute", "hvm-ssd-gp3", "20260423"),
}
_DEBIAN = {"11": "20250530-2127", "12": "20250530-2127", "13": "20250814-2204"}
_GIB = 8


def _images():
    """moto's description of each image, and the SSM parameters that name it."""
    def image(name, owner, arch, root, description, date, **more):
        name_hash = hashlib.sha256(name.encode()).hexdigest()[:17]
        return {
            "ami_id": f"ami-{name_hash}", "name": name, "description": description, "owner_id": owner,
            "public": True, "virtualization_type": "hvm", "hypervisor": "xen", "state": "available",
            "image_type": "machine", "image_location": f"amazon/{name}", "root_device_type": "ebs", "sriov": "simple",
            "architecture": arch, "root_device_name": root, "creation_date": f"{date}T04:11:12.000Z", **more,
        }

    architectures = {"amd64": "x86_64", "arm64": "arm64"}
    images, parameters = [], {}
    for short, arch in architectures.items():
        for version, (code, storage, day) in _UBUNTU.items():
            name = f"ubuntu/images/{storage}/ubuntu-{code}-{version}-{short}-server-{day}"
            text = f"Canonical, Ubuntu, {version}, {short} {code} image"
            images.append(image(name, "099720109477", arch, "/dev/sda1", text, f"{day[:4]}-{day[4:6]}-{day[6:]}"))
            for volume in ("ebs-gp2", "ebs-gp3"):
                path = f"/aws/service/canonical/ubuntu/server/{version}/stable/current/{short}/hvm/{volume}/ami-id"
                parameters[path] = images[-1]["ami_id"]
        for version, day in _DEBIAN.items():
            name, date = f"debian-{version}-{short}-{day}", f"{day[:4]}-{day[4:6]}-{day[6:8]}"
            text = f"Debian {version} ({day})"
            images.append(image(name, "136693071363", arch, "/dev/xvda", text, date))
            parameters[f"/aws/service/debian/release/{version}/latest/{short}"] = images[-1]["ami_id"]
        name = f"al2023-ami-2023.7.20250609.0-kernel-6.1-{arch}"
        text = f"Amazon Linux 2023 AMI 2023.7.20250609.0 {arch} HVM kernel-6.1"
        images.append(image(name, "137112412989", arch, "/dev/xvda", text, "2025-06-06"))
        path = f"/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{arch}"
        parameters[path] = images[-1]["ami_id"]
    images.append(image("Windows_Server-2025-English-Full-Base-2025.06.11", "801119661308", "x86_64", "/dev/sda1",
                        "Microsoft Windows Server 2025", "2025-06-11", platform="windows"))
    return images, parameters


IMAGES, PARAMETERS = _images()

# US dollars an hour for Linux in us-east-1: the size "large" of a family, whose other sizes follow by doubling.
_LARGE = {
    "t3": 0.0832, "t4g": 0.0672, "c5": 0.085, "c6i": 0.085, "c6g": 0.068, "c7g": 0.0725, "c7i": 0.08925,
    "m5": 0.096, "m6i": 0.096, "m6g": 0.077, "m7g": 0.0816, "m7i": 0.1008, "r6i": 0.126,
}
_SIZES = {"nano": 1 / 16, "micro": 1 / 8, "small": 1 / 4, "medium": 1 / 2, "large": 1, "xlarge": 2, "2xlarge": 4,
          "4xlarge": 8}
_OTHERS = {
    "g4dn.xlarge": 0.526, "g4dn.2xlarge": 0.752, "g5.xlarge": 1.006, "g5.2xlarge": 1.212, "p4d.24xlarge": 21.9576,
}
_PRICES = {f"{family}.{size}": round(price * share, 5) for family, price in _LARGE.items()
           for size, share in _SIZES.items()} | _OTHERS
_REGION_FACTORS = {"us": 1.0, "eu": 1.1, "ca": 1.1, "ap": 1.2, "sa": 1.5}
_LOCATIONS = {
    "us-east-1": "US East (N. Virginia)", "us-east-2": "US East (Ohio)", "us-west-2": "US West (Oregon)",
    "eu-west-1": "EU (Ireland)", "eu-central-1": "EU (Frankfurt)", "eu-north-1": "EU (Stockholm)",
    "ap-northeast-1": "Asia Pacific (Tokyo)", "ap-southeast-2": "Asia Pacific (Sydney)",
}

# vCPUs that may run at once, by the codes of Service Quotas: on-demand and spot, standard and graphics families.
_QUOTAS = {
    "L-1216C47A": ("Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", 1920),
    "L-34B43A08": ("All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests", 1920),
    "L-DB2E81BA": ("Running On-Demand G and VT instances", 64),
    "L-3819A6DF": ("All G and VT Spot Instance Requests", 64),
}


def on_demand_price(region, kind):
    """Dollars an hour, or None for a type that has no known price."""
    if kind not in _PRICES:
        return None
    return round(_PRICES[kind] * _REGION_FACTORS.get(region[:2], 1.15), 5)


class Catalog:
    """What is on offer, as the account's settings have changed it."""

    def __init__(self, account):
        self.account = account
        self.offered = {}

    def types(self):
        from moto.ec2.models.instance_types import INSTANCE_TYPES
        return INSTANCE_TYPES

    def processors(self, kind):
        """A type's processors, as instances show them."""
        facts = self.types()[kind]["VCpuInfo"]
        threads = facts.get("DefaultThreadsPerCore") or 1
        return {"CoreCount": facts["DefaultVCpus"] // threads, "ThreadsPerCore": threads}

    def architecture(self, kind):
        return self.types()[kind]["ProcessorInfo"]["SupportedArchitectures"]

    def zones(self, region):
        return [zone.name for zone in self.account.region(region).backend.describe_availability_zones()]

    def zones_of(self, region, kind):
        """The zones that have an instance type."""
        if region not in self.offered:
            self.offered[region] = self._offerings(region)
        hidden = self.account.config["not_offered"].get(kind, [])
        zones = self.offered[region].get(kind, [])
        return [zone for zone in zones if zone not in hidden and "*" not in hidden]

    def _offerings(self, region):
        from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS
        known = INSTANCE_TYPE_OFFERINGS["availability-zone"].get(region)
        if known is None:
            # moto has no data for the newest regions.
            return {kind: self.zones(region) for kind in _PRICES if kind in self.types()}
        offered = {}
        for row in known:
            offered.setdefault(row["InstanceType"], []).append(row["Location"])
        return {kind: sorted(zones) for kind, zones in offered.items()}

    def spot_price(self, region, zone, kind):
        given = self.account.config["spot_prices"].get(kind, {})
        if zone in given or "*" in given:
            return float(given.get(zone, given.get("*")))
        price = on_demand_price(region, kind)
        if price is None:
            return None
        spread = hashlib.sha256(f"{zone} {kind}".encode()).digest()[0] / 255 * 0.1 - 0.05
        return round(price * 0.35 * (1 + spread), 6)

    # Calls.

    def describe_instance_types(self, call):
        """Refuses what EC2 would; the rest is moto's."""
        kinds = call.params.get("InstanceTypes", [])
        missing = [kind for kind in kinds if kind not in self.types() or not self.zones_of(call.region, kind)]
        if missing:
            text = f"The following supplied instance types do not exist: [{', '.join(missing)}]"
            raise ApiError("InvalidInstanceType", text)
        return self.account.moto(call)

    def get_instance_types_from_instance_requirements(self, call):
        params = call.params
        wanted = params.get("InstanceRequirements", {})
        for name, given in (("ArchitectureTypes", params), ("VirtualizationTypes", params), ("VCpuCount", wanted),
                            ("MemoryMiB", wanted)):
            if not given.get(name):
                raise ApiError("MissingParameter", f"The request must contain the parameter {name}")
        if unknown := set(wanted) - {"VCpuCount", "MemoryMiB", "ExcludedInstanceTypes", "InstanceGenerations",
                                     "BareMetal", "BurstablePerformance"}:
            raise ApiError("UnsupportedOperation", f"The emulator knows no {', '.join(sorted(unknown))} of instances.")

        def within(amount, limits):
            return int(limits["Min"]) <= amount <= int(limits.get("Max", amount))

        def fits(name, default, has):
            return wanted.get(name, default) == "included" or has == (wanted.get(name, default) == "required")

        def matches_all(kind, facts):
            return (set(params["ArchitectureTypes"]) & set(facts["ProcessorInfo"]["SupportedArchitectures"])
                    and set(params["VirtualizationTypes"]) & set(facts["SupportedVirtualizationTypes"])
                    and within(facts["VCpuInfo"]["DefaultVCpus"], wanted["VCpuCount"])
                    and within(facts["MemoryInfo"]["SizeInMiB"], wanted["MemoryMiB"])
                    and fits("BareMetal", "excluded", facts["BareMetal"])
                    and fits("BurstablePerformance", "excluded", facts["BurstablePerformanceSupported"])
                    and ("current" if facts["CurrentGeneration"] else "previous")
                    in wanted.get("InstanceGenerations", ["current", "previous"])
                    and not any(fnmatchcase(kind, pattern) for pattern in wanted.get("ExcludedInstanceTypes", [])))

        kinds = [kind for kind, facts in self.types().items()
                 if matches_all(kind, facts) and self.zones_of(call.region, kind)]
        kinds, token = page(sorted(kinds), params)
        return {"InstanceTypes": [{"InstanceType": kind} for kind in kinds], "NextToken": token}

    def describe_instance_type_offerings(self, call):
        by = call.params.get("LocationType", "region")
        self.zones_of(call.region, "")
        rows = []
        for kind in self.offered[call.region]:
            zones = self.zones_of(call.region, kind)
            if by == "availability-zone":
                places = zones
            elif by == "availability-zone-id":
                known = self.account.region(call.region).backend.describe_availability_zones()
                ids = {zone.name: zone.zone_id for zone in known}
                places = [ids[zone] for zone in zones]
            else:
                places = [call.region] if zones else []
            rows += [{"InstanceType": kind, "LocationType": by, "Location": place} for place in places]
        facts = {"instance-type": lambda row: row["InstanceType"], "location": lambda row: row["Location"]}
        passes = matches(call.params.get("Filters", []), facts, "DescribeInstanceTypeOfferings")
        rows, token = page([row for row in rows if passes(row)], call.params)
        return {"InstanceTypeOfferings": rows, "NextToken": token}

    def describe_spot_price_history(self, call):
        params, region = call.params, call.region
        start, end = params.get("StartTime"), params.get("EndTime")
        now = datetime.now(timezone.utc).replace(microsecond=0)
        wanted = params.get("InstanceTypes") or list(dict.fromkeys([*_PRICES, *self.account.config["spot_prices"]]))
        unknown = [kind for kind in wanted if kind not in self.types()]
        if params.get("InstanceTypes") and unknown:
            raise ApiError("InvalidParameterValue", f"Invalid value '{unknown[0]}' for InstanceType.")
        rows = []
        for kind in wanted:
            for zone in self.zones_of(region, kind) if kind in self.types() else []:
                price = self.spot_price(region, zone, kind)
                if price is not None:
                    for product, factor in (("Linux/UNIX", 1), ("Windows", 1.9)):
                        # A price holds until the next entry, so that the newest before the start counts, too.
                        for age, drift in ((timedelta(hours=1), 1), (timedelta(hours=30), 1.08)):
                            at = now - age
                            if end is not None and at > _aware(end):
                                continue
                            rows.append({
                                "InstanceType": kind, "AvailabilityZone": zone, "ProductDescription": product,
                                "SpotPrice": f"{price * factor * drift:.6f}", "Timestamp": at,
                            })
                            if start is not None and at < _aware(start):
                                break
        if products := params.get("ProductDescriptions"):
            products = [product.removesuffix(" (Amazon VPC)") for product in products]
            rows = [row for row in rows if row["ProductDescription"] in products]
        if zone := params.get("AvailabilityZone"):
            rows = [row for row in rows if row["AvailabilityZone"] == zone]
        facts = {
            "availability-zone": lambda row: row["AvailabilityZone"], "instance-type": lambda row: row["InstanceType"],
            "product-description": lambda row: [row["ProductDescription"], row["ProductDescription"] + " (Amazon VPC)"],
            "spot-price": lambda row: row["SpotPrice"],
        }
        passes = matches(params.get("Filters", []), facts, "DescribeSpotPriceHistory")
        rows, token = page([row for row in rows if passes(row)], params)
        # The last page of this listing ends with an empty token rather than none, in EC2 as well.
        return {"SpotPriceHistory": rows, "NextToken": token or ""}

    def get_spot_placement_scores(self, call):
        """Of fewer than three types EC2 always says that they are hardly to be had."""
        params, region = call.params, self.account.region(call.region)
        kinds, wanted = params.get("InstanceTypes", []), params.get("RegionNames") or [call.region]
        if int(params.get("TargetCapacity", 0)) < 1 or not (kinds or params.get("InstanceRequirementsWithMetadata")):
            raise ApiError("MissingParameter", "The request must contain the target capacity and the instance types")
        unknown = [kind for kind in kinds if kind not in self.types()]
        if unknown:
            raise ApiError("InvalidParameterValue", f"Invalid instance type: {unknown[0]}")
        score = self.account.config["placement_score"] if len(kinds) >= 3 else 1
        scores = [{"Region": name, "Score": score} for name in wanted]
        if params.get("SingleAvailabilityZone"):
            zones = region.backend.describe_availability_zones()
            scores = [{"Region": call.region, "AvailabilityZoneId": zone.zone_id, "Score": max(1, score - nth)}
                      for nth, zone in enumerate(zones)]
        scores, token = page(scores, params)
        return {"SpotPlacementScores": scores, "NextToken": token}

    def get_parameter(self, call):
        name = call.params.get("Name", "")
        if not name.startswith(("/aws/service/canonical/", "/aws/service/debian/", "/aws/service/ami-amazon-linux")):
            return self.account.moto(call)
        if name not in PARAMETERS:
            raise ApiError("ParameterNotFound", "")
        return {"Parameter": _parameter(call.region, name)}

    def get_parameters(self, call):
        names = call.params.get("Names", [])
        known = [name for name in names if name in PARAMETERS]
        if len(names) > 10:
            raise ApiError("ValidationException", "1 validation error detected: at most 10 names")
        if names and not known:
            return self.account.moto(call)
        return {"Parameters": [_parameter(call.region, name) for name in known],
                "InvalidParameters": [name for name in names if name not in PARAMETERS]}

    def get_service_quota(self, call):
        code = call.params.get("QuotaCode")
        if call.params.get("ServiceCode") != "ec2" or code not in _QUOTAS:
            raise ApiError("NoSuchResourceException", "The request failed because the specified quota does not exist.")
        name, value = _QUOTAS[code]
        return {"Quota": {"ServiceCode": "ec2", "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
                          "QuotaCode": code, "QuotaName": name, "Unit": "None", "Adjustable": True,
                          "Value": float(self.account.config["quotas"].get(code, value))}}

    def get_products(self, call):
        params = call.params
        if params.get("ServiceCode") != "AmazonEC2":
            return {"FormatVersion": "aws_v1", "PriceList": []}
        filters = {one["Field"]: one["Value"] for one in params.get("Filters", []) if one["Type"] == "TERM_MATCH"}
        kinds = [kind for kind in _PRICES if filters.get("instanceType", kind) == kind and kind in self.types()]
        regions = [filters["regionCode"]] if "regionCode" in filters else list(_LOCATIONS)
        products = [product for kind in kinds for region in regions for product in self._products(region, kind)
                    if all(product["product"]["attributes"].get(key) == value for key, value in filters.items())]
        products, token = page(products, params, 100)
        reply = {"FormatVersion": "aws_v1", "PriceList": [json.dumps(product) for product in products]}
        return reply | ({"NextToken": token} if token else {})

    def _products(self, region, kind):
        """A type is sold in many ways, of which only the first is what a plain launch costs."""
        price = on_demand_price(region, kind)
        ways = [
            ("Linux", "Shared", "Used", price), ("Windows", "Shared", "Used", price * 1.9),
            ("Linux", "Dedicated", "Used", price * 1.07), ("Linux", "Shared", "AllocatedCapacityReservation", 0),
            ("Linux", "Shared", "UnusedCapacityReservation", price),
        ]
        facts = self.types()[kind]
        for system, tenancy, status, dollars in ways:
            words = f"{region} {kind} {system} {tenancy} {status}"
            sku = hashlib.sha256(words.encode()).hexdigest()[:16].upper()
            term, rate = f"{sku}.JRTCKXETXF", f"{sku}.JRTCKXETXF.6YS6EN2CT7"
            yield {
                "product": {"productFamily": "Compute Instance", "sku": sku, "attributes": {
                    "servicecode": "AmazonEC2", "servicename": "Amazon Elastic Compute Cloud",
                    "instanceType": kind, "regionCode": region, "location": _LOCATIONS.get(region, region),
                    "locationType": "AWS Region", "operatingSystem": system, "tenancy": tenancy,
                    "preInstalledSw": "NA", "capacitystatus": status, "currentGeneration": "Yes",
                    "licenseModel": "No License required", "operation": "RunInstances", "marketoption": "OnDemand",
                    "vcpu": str(facts["VCpuInfo"]["DefaultVCpus"]),
                    "memory": f"{facts['MemoryInfo']['SizeInMiB'] / 1024:g} GiB",
                }},
                "serviceCode": "AmazonEC2", "version": "20250601000000", "publicationDate": "2025-06-01T00:00:00Z",
                "terms": {"OnDemand": {term: {
                    "sku": sku, "offerTermCode": "JRTCKXETXF", "effectiveDate": "2025-06-01T00:00:00Z",
                    "termAttributes": {}, "priceDimensions": {rate: {
                        "rateCode": rate, "unit": "Hrs", "beginRange": "0", "endRange": "Inf", "appliesTo": [],
                        "description": f"${dollars:.4f} per On Demand {system} {kind} Instance Hour",
                        "pricePerUnit": {"USD": f"{dollars:.10f}"},
                    }},
                }}},
            }


def _parameter(region, name):
    return {"Name": name, "Type": "String", "Value": PARAMETERS[name], "Version": 7, "DataType": "aws:ec2:image",
            "LastModifiedDate": 1749600000.0, "ARN": f"arn:aws:ssm:{region}::parameter{name}"}


def _aware(moment):
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
