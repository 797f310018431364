"""What a policy of IAM allows, as far as tsunami's own makes use of that."""

from protocol import ApiError

# The parameters that name what a call changes, and which kind of resource that is.
_NAMED = {
    "TerminateInstances": ("InstanceIds", "instance"), "ModifyInstanceAttribute": ("InstanceId", "instance"),
    "DeleteVolume": ("VolumeId", "volume"), "CancelSpotInstanceRequests": ("SpotInstanceRequestIds", "spot"),
    "DeleteSecurityGroup": ("GroupId", "group"), "AuthorizeSecurityGroupIngress": ("GroupId", "group"),
    "DeleteKeyPair": ("KeyName", "key"), "DeletePlacementGroup": ("GroupName", "placement"),
    "DeleteLaunchTemplate": ("LaunchTemplateName", "template"), "CreateTags": ("Resources", "any"),
}


def authorize(policy, call, region):
    """Refuses a call that the policy does not allow on everything that it names."""
    action = f"{call.service}:{call.action}"
    if action == "sts:GetCallerIdentity":
        return
    context = {}
    if call.service == "ec2":
        context = {"ec2:Attribute": [key for key in ("DisableApiTermination",) if key in call.params],
                   "aws:TagKeys": [tag["Key"] for tag in call.params.get("Tags", [])]}
    for tags in _tags(call, region):
        _demand(policy, action, context | {f"aws:ResourceTag/{key}": [value] for key, value in tags.items()}, call)
    for made, keys in _tagged(call):
        _demand(policy, "ec2:CreateTags", {"ec2:CreateAction": [made], "aws:TagKeys": keys}, call)


def _tags(call, region):
    """The tags of each thing that a call names; what is not there has none to look at."""
    if call.service != "ec2" or call.action not in _NAMED:
        return [{}]
    parameter, kind = _NAMED[call.action]
    names = call.params.get(parameter, [])
    backend, found = region.backend, []
    for name in names if isinstance(names, list) else [names]:
        if kind == "key":
            name = backend.key_pairs[name].id if name in backend.key_pairs else None
        elif kind == "placement":
            name = region.placement_groups.get(name, {}).get("GroupId")
        elif kind == "template":
            name = backend.launch_template_name_to_ids.get(name)
        if name:
            found.append(region.tags(name))
    return found


def _tagged(call):
    """The requests that tag what a call creates, and the keys: EC2 asks for CreateTags once more for each."""
    if call.service != "ec2":
        return []
    keys = [tag["Key"] for one in call.params.get("TagSpecifications", []) for tag in one.get("Tags", [])]
    made = [(call.action, keys)] if keys else []
    # The template's own tags go on what the fleet launches.
    return made + ([("RunInstances", ["tsunami:run"])] if call.action == "CreateFleet" else [])


def _demand(policy, action, context, call):
    for statement in policy["Statement"]:
        if statement["Effect"] != "Allow" or statement["Resource"] != "*":
            raise ValueError("the emulator knows statements that allow something on everything")
        if action in statement["Action"] and _holds(statement.get("Condition", {}), context):
            return
    text = (f"User: arn:aws:iam::123456789012:user/tester is not authorized to perform: {action} on resource: "
            f"arn:aws:{call.service}:{call.region}:123456789012:* because no identity-based policy allows the {action} "
            "action")
    if call.service == "ec2":
        raise ApiError("UnauthorizedOperation", f"You are not authorized to perform this operation. {text}")
    raise ApiError(*(("AccessDeniedException", text) if call.is_json else ("AccessDenied", text)))


def _holds(conditions, context):
    for operator, keys in conditions.items():
        for key, wanted in keys.items():
            has, wanted = context.get(key, []), wanted if isinstance(wanted, list) else [wanted]
            if operator == "Null":
                holds = wanted == ["false" if has else "true"]
            elif operator == "StringEquals":
                holds = any(value in wanted for value in has)
            elif operator == "ForAllValues:StringEquals":
                holds = all(value in wanted for value in has)
            else:
                raise ValueError(f"the emulator knows no condition {operator}")
            if not holds:
                return False
    return True
