"""What surrounds instances: groups, keys, templates, tags. Mostly moto's, where it is too kind ours."""

import time
import uuid

from account import ACCOUNT
from protocol import ApiError, matches, tag_list, tags_for


class Resources:
    def __init__(self, account, instances):
        self.account, self.instances = account, instances

    # Placement groups.

    def create_placement_group(self, call):
        region, params = self.account.region(call.region), call.params
        name = params.get("GroupName", "")
        if not name:
            raise ApiError("MissingParameter", "The request must contain the parameter GroupName")
        if name in region.placement_groups:
            raise ApiError("InvalidPlacementGroup.Duplicate", f"The Placement Group '{name}' already exists.")
        group = {
            "GroupName": name, "GroupId": "pg-" + uuid.uuid4().hex[:17], "State": "available",
            "Strategy": params.get("Strategy", "cluster"),
            "GroupArn": f"arn:aws:ec2:{region.name}:{ACCOUNT}:placement-group/{name}",
        }
        region.placement_groups[name] = group
        region.backend.create_tags([group["GroupId"]], tags_for(params.get("TagSpecifications"), "placement-group"))
        return {"PlacementGroup": self._placement_group(region, group)}

    @staticmethod
    def _placement_group(region, group):
        return {**group, "Tags": tag_list(region.tags(group["GroupId"]))}

    def describe_placement_groups(self, call):
        region, params = self.account.region(call.region), call.params
        groups = region.placement_groups
        for name in params.get("GroupNames", []):
            if name not in groups:
                raise ApiError("InvalidPlacementGroup.Unknown", f"The Placement Group '{name}' is unknown.")
        facts = {
            "tags": lambda one: region.tags(one["GroupId"]), "group-name": lambda one: one["GroupName"],
            "state": lambda one: one["State"], "strategy": lambda one: one["Strategy"],
        }
        passes = matches(params.get("Filters", []), facts, "DescribePlacementGroups")
        names, ids = params.get("GroupNames") or list(groups), params.get("GroupIds")
        seen = [groups[name] for name in names if not ids or groups[name]["GroupId"] in ids]
        return {"PlacementGroups": [self._placement_group(region, one) for one in seen if passes(one)]}

    def delete_placement_group(self, call):
        region, name = self.account.region(call.region), call.params.get("GroupName", "")
        if name not in region.placement_groups:
            raise ApiError("InvalidPlacementGroup.Unknown", f"The Placement Group '{name}' is unknown.")
        if any(one.life.placement_group == name and one.state != "terminated" for one in region.instances.values()):
            raise ApiError("InvalidPlacementGroup.InUse", f"The placement group '{name}' is in use and may not be "
                           "deleted.")
        region.backend.tags.pop(region.placement_groups.pop(name)["GroupId"], None)
        return {}

    # Security groups.

    def delete_security_group(self, call):
        region, params = self.account.region(call.region), call.params
        every = [group for groups in region.backend.groups.values() for group in groups.values()]
        ours = [group for group in every
                if group.id == params.get("GroupId") or group.name == params.get("GroupName")]
        detach = self.account.config["eni_detach"]
        for group in ours:
            used = any(
                group.id in one.life.groups and (one.life.ended is None or time.monotonic() < one.life.ended + detach)
                for one in region.instances.values())
            named = any(rule.source_group.get("GroupId") == group.id
                        for other in every if other.id != group.id for rule in other.ingress_rules)
            if used or named:
                raise ApiError("DependencyViolation", f"resource {group.id} has a dependent object")
        reply = self.account.moto(call)
        for group in ours if reply.status == 200 else []:
            for gone in (group, *group.ingress_rules, *group.egress_rules):
                region.backend.tags.pop(gone.id, None)
        return reply

    def authorize_security_group_ingress(self, call):
        """All rules of a call or none. moto stops at the first that it has, and shows those of the last part only."""
        region, params = self.account.region(call.region), call.params
        name = params.get("GroupId") or params.get("GroupName", "")
        group = region.backend.get_security_group_by_name_or_id(name)
        if group is None:
            raise ApiError("InvalidGroup.NotFound", f"The security group '{name}' does not exist")
        before, added = list(group.ingress_rules), []
        tags = tags_for(params.get("TagSpecifications"), "security-group-rule")
        try:
            for one in params.get("IpPermissions") or [self._single_permission(params)]:
                rules, _ = region.backend.authorize_security_group_ingress(
                    group.id, one.get("IpProtocol"), one.get("FromPort"), one.get("ToPort"),
                    [*one.get("IpRanges", []), *one.get("Ipv6Ranges", [])], tags,
                    one.get("UserIdGroupPairs", []), one.get("PrefixListIds", []))
                added += rules
        except Exception:
            group.ingress_rules[:] = before
            raise
        return {"Return": True, "SecurityGroupRules": [
            {"SecurityGroupRuleId": rule.id, "GroupId": group.id, "GroupOwnerId": ACCOUNT, "IsEgress": False,
             "IpProtocol": rule.ip_protocol, "FromPort": _port(rule.from_port), "ToPort": _port(rule.to_port),
             "CidrIpv4": rule.cidr_ipv4, "CidrIpv6": rule.cidr_ipv6, "ReferencedGroupInfo": rule.source_group or None,
             "Description": rule.description, "Tags": tag_list(region.tags(rule.id))} for rule in added]}

    @staticmethod
    def _single_permission(params):
        ranges = [{"CidrIp": params["CidrIp"]}] if "CidrIp" in params else []
        return {**{key: params.get(key) for key in ("IpProtocol", "FromPort", "ToPort")}, "IpRanges": ranges}

    # Key pairs.

    def delete_key_pair(self, call):
        """moto goes by the name only."""
        region, identity = self.account.region(call.region), call.params.get("KeyPairId")
        named = [name for name, pair in region.backend.key_pairs.items() if pair.id == identity]
        if identity and not call.params.get("KeyName"):
            if not named:
                raise ApiError("InvalidKeyPair.NotFound", f"The key pair ID '{identity}' does not exist")
            call.form["KeyName"] = named[0]
        pair = region.backend.key_pairs.get(call.form.get("KeyName"))
        reply = self.account.moto(call, call.form)
        if pair:
            region.backend.tags.pop(pair.id, None)
        return reply

    def describe_key_pairs(self, call):
        region, params = self.account.region(call.region), call.params
        pairs = list(region.backend.key_pairs.values())
        for field, attribute in (("KeyNames", "key_name"), ("KeyPairIds", "id")):
            for wanted in params.get(field, []):
                if all(getattr(pair, attribute) != wanted for pair in pairs):
                    raise ApiError("InvalidKeyPair.NotFound", f"The key pair '{wanted}' does not exist")
            if params.get(field):
                pairs = [pair for pair in pairs if getattr(pair, attribute) in params[field]]
        facts = {
            "tags": lambda pair: region.tags(pair.id), "key-name": lambda pair: pair.key_name,
            "key-pair-id": lambda pair: pair.id, "fingerprint": lambda pair: pair.key_fingerprint,
        }
        passes = matches(params.get("Filters", []), facts, "DescribeKeyPairs")
        return {"KeyPairs": [
            {"KeyPairId": pair.id, "KeyName": pair.key_name, "KeyType": pair.key_type,
             "KeyFingerprint": pair.key_fingerprint, "CreateTime": pair.create_time,
             "PublicKey": pair.public_key if params.get("IncludePublicKey") else None,
             "Tags": tag_list(region.tags(pair.id))} for pair in pairs if passes(pair)]}

    # Launch templates.

    def describe_launch_templates(self, call):
        """moto shows fifteen at most and keeps silent on ids that it doesn't know."""
        region, params = self.account.region(call.region), call.params
        for identity in params.get("LaunchTemplateIds", []):
            if identity not in region.backend.launch_templates:
                raise ApiError("InvalidLaunchTemplateId.NotFound", "The specified launch template, with template ID "
                               f"{identity}, does not exist.")
        return self.account.moto(call, {**call.form, "MaxResults": "1000"})

    def delete_launch_template(self, call):
        region, params = self.account.region(call.region), call.params
        identity, name = params.get("LaunchTemplateId"), params.get("LaunchTemplateName")
        if identity and identity not in region.backend.launch_templates:
            raise ApiError("InvalidLaunchTemplateId.NotFound", "The specified launch template, with template ID "
                           f"{identity}, does not exist.")
        if name and name not in region.backend.launch_template_name_to_ids:
            raise ApiError("InvalidLaunchTemplateName.NotFoundException", "The specified launch template, with "
                           f"template name {name}, does not exist.")
        identity = identity or region.backend.launch_template_name_to_ids.get(name)
        reply = self.account.moto(call)
        region.backend.tags.pop(identity, None)
        return reply

    # Tags.

    def change_tags(self, call):
        """Tags can be put only on what is there."""
        region = self.account.region(call.region)
        for identity in call.params.get("Resources", []):
            if identity.startswith("i-"):
                self.instances.named(region, [identity], anyway=not self.account.config["invisible_to_changes"])
            elif identity.startswith("sir-"):
                self.instances._spot_request(region.spot_requests, identity)
            elif identity.startswith("pg-"):
                if all(group["GroupId"] != identity for group in region.placement_groups.values()):
                    raise ApiError("InvalidPlacementGroup.Unknown", f"The Placement Group '{identity}' is unknown.")
        ours = [one for one in call.params.get("Resources", []) if one.startswith(("pg-", "sir-"))]
        if not ours:
            return self.account.moto(call)
        for identity in call.params["Resources"]:
            tags = {tag["Key"]: tag.get("Value") for tag in call.params.get("Tags", [])}
            if call.action == "CreateTags":
                region.backend.create_tags([identity], {key: value or "" for key, value in tags.items()})
            else:
                region.backend.delete_tags([identity], tags)
        return {}


def _port(number):
    return -1 if number is None else number
