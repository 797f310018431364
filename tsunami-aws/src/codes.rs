//! Every error code that a request of ours can meet: its class, what the user can do, and where that is from.

use tsunami_core::ProviderErrorKind::{self, *};
use tsunami_core::Remedy;

use crate::quota::Quota;

const EC2: &str = "https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html";
const FLEET: &str = "https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateFleet.html";
const COMMON: &str = "https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html";
const PARAMETERS: &str =
    "https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_GetParameter.html";
const QUOTAS: &str = "https://docs.aws.amazon.com/ec2/latest/instancetypes/ec2-instance-quotas.html";
const SPOT_QUOTAS: &str = "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/using-spot-limits.html";
const DENIALS: &str = "https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html";
/// A word of our own, where AWS said none.
const OURS: &str = "tsunami";

/// A refusal of AWS's, as far as advice depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal<'a> {
    pub(crate) code: &'a str,
    pub(crate) message: &'a str,
    pub(crate) operation: &'a str,
    pub(crate) region: &'a str,
    /// The instance type that was asked for, where it is about one.
    pub(crate) instance: Option<&'a str>,
    /// Whether it stands for one pool, inside an answer that succeeded.
    pub(crate) in_fleet: bool,
}

/// What stands in the table for one or more codes that mean the same.
struct Row {
    codes: &'static [&'static str],
    kind: ProviderErrorKind,
    advice: Advice,
    #[cfg_attr(not(test), expect(dead_code, reason = "it is for those who read the table"))]
    source: &'static str,
}

/// What the user can do.
#[derive(Clone, Copy)]
enum Advice {
    /// Nothing but to wait, or what the message says.
    Nothing,
    /// This, with `{region}` and `{operation}` filled in.
    Say(&'static str),
    /// The same, or to remove what is left of runs that are over.
    Remove(&'static str),
    /// More than one thing: the context tells which.
    Tell(fn(&Refusal<'_>) -> String),
}

use Advice::{Nothing, Remove, Say, Tell};

const fn row(
    kind: ProviderErrorKind,
    source: &'static str,
    advice: Advice,
    codes: &'static [&'static str],
) -> Row {
    Row { codes, kind, advice, source }
}

const MORE_ROOM: Advice = Say(
    "give more types in `instance`, leave `zone` out, add \"on-demand\" to `market`, or try another `region`",
);
const RENEW: Advice =
    Say("the credentials have expired: get new ones (`aws sso login`, or what you use), and see \
                           that this computer's clock is right");
const WHOSE: Advice =
    Say("AWS does not accept the credentials in {region}: `aws sts get-caller-identity --region \
                           {region}` shows whose they are");
const WAIT: Advice =
    Say("the account makes more calls in {region} than AWS answers: try again in some minutes");
const REMOVED: Advice = Say("something removed a part of the run while it was being launched");
const WHO_ANSWERS: Advice =
    Say("see what it is that answers for AWS in {region} (a proxy, AWS_ENDPOINT_URL)");

const TABLE: &[Row] = &[
    // EC2 answers the first of these with HTTP status 500, as if it were its own fault.
    row(Capacity, EC2, MORE_ROOM, &["InsufficientInstanceCapacity", "InsufficientHostCapacity"]),
    row(Capacity, EC2, MORE_ROOM, &["InsufficientReservedInstanceCapacity", "InsufficientCapacity"]),
    row(Capacity, FLEET, MORE_ROOM, &["UnfulfillableCapacity"]),
    row(
        Capacity,
        EC2,
        Say("give more of `reservation`, or add another `market` after \"reservation\""),
        &["ReservationCapacityExceeded"],
    ),
    row(
        InvalidSpec,
        EC2,
        Say("see that the `reservation` is there, in {region}, and shared with the account"),
        &["InvalidCapacityReservationId.NotFound", "InvalidCapacityReservationId.Malformed"],
    ),
    row(Capacity, EC2, MORE_ROOM, &["Unsupported"]),
    row(
        Capacity,
        EC2,
        Say("give another `subnet` or `zone`"),
        &["InsufficientFreeAddressesInSubnet", "InsufficientAddressCapacity"],
    ),
    row(
        Capacity,
        EC2,
        Say("raise `max_price` or leave it out: then the limit is the on-demand price"),
        &["SpotMaxPriceTooLow", "MaxPriceTooLow"],
    ),
    row(Quota, QUOTAS, Tell(processors), &["VcpuLimitExceeded", "InstanceLimitExceeded"]),
    row(Quota, SPOT_QUOTAS, Tell(spot_processors), &["MaxSpotInstanceCountExceeded"]),
    row(
        Quota,
        EC2,
        Say("the account has as many fleets in {region} as it may have: delete some that are not needed"),
        &["MaxFleetCountExceeded", "MaxSpotFleetRequestCountExceeded", "FleetLimitExceeded"],
    ),
    row(
        Quota,
        EC2,
        Say("the account's storage quota in {region} is used up: delete volumes, or ask for a higher one \
             (`aws service-quotas list-service-quotas --service-code ebs --region {region}`)"),
        &["VolumeLimitExceeded", "MaxIOPSLimitExceeded"],
    ),
    row(
        Quota,
        EC2,
        Say(
            "the account's quota \"VPC security groups per Region\" in {region} is used up: ask for more with `aws \
             service-quotas request-service-quota-increase --service-code vpc --quota-code L-E79EC296 --region \
             {region} --desired-value N`, or give a `security_group`",
        ),
        &["SecurityGroupLimitExceeded"],
    ),
    row(
        Quota,
        EC2,
        Say(
            "a security group takes no more rules: name fewer blocks in `ssh_from` or fewer `open_ports`, or give a \
             `security_group`",
        ),
        &["RulesPerSecurityGroupLimitExceeded", "SecurityGroupsPerInterfaceLimitExceeded"],
    ),
    row(
        Quota,
        EC2,
        Remove("the account has as many of them in {region} as it may have: remove some that are not needed"),
        &["ResourceCountLimitExceeded", "KeyPairLimitExceeded", "TagLimitExceeded"],
    ),
    // Without the role there is no spot, but there is on-demand.
    row(
        Quota,
        EC2,
        Say(
            "an account needs a role for spot, once: `aws iam create-service-linked-role --aws-service-name \
             spot.amazonaws.com`",
        ),
        &["AuthFailure.ServiceLinkedRoleCreationNotPermitted"],
    ),
    row(Throttled, EC2, WAIT, &["RequestLimitExceeded", "Throttling", "RequestThrottled", "SlowDown"]),
    row(
        Throttled,
        COMMON,
        WAIT,
        &[
            "ThrottlingException",
            "ThrottledException",
            "RequestThrottledException",
            "TooManyRequestsException",
            "EC2ThrottledException",
        ],
    ),
    row(
        Unauthorized,
        DENIALS,
        Tell(denied),
        &["UnauthorizedOperation", "AccessDenied", "AccessDeniedException"],
    ),
    row(Unauthorized, EC2, Tell(opt_in), &["OptInRequired", "SubscriptionRequiredException"]),
    row(
        Unauthorized,
        EC2,
        Say("AWS has to lift this from the account: see its mail, or https://support.console.aws.amazon.com"),
        &["PendingVerification", "Blocked"],
    ),
    row(Unauthorized, COMMON, RENEW, &["ExpiredToken", "ExpiredTokenException", "RequestExpired"]),
    row(Unauthorized, EC2, WHOSE, &["AuthFailure", "MissingAuthenticationToken"]),
    row(
        Unauthorized,
        COMMON,
        WHOSE,
        &[
            "InvalidClientTokenId",
            "UnrecognizedClientException",
            "SignatureDoesNotMatch",
            "IncompleteSignature",
            "InvalidSignatureException",
        ],
    ),
    row(
        Unauthorized,
        OURS,
        Say(
            "set AWS_PROFILE or `profile`, or sign in with `aws sso login`; what asks for a code (MFA) works \
             through `eval \"$(aws configure export-credentials --format env)\"`",
        ),
        &["NoCredentials"],
    ),
    row(
        Unauthorized,
        OURS,
        Say(
            "what AWS's command line knows works through `eval \"$(aws configure export-credentials --format env)\"`, with \
             `--profile` before `--format` for another profile than the current one, and `profile` left out here",
        ),
        &["UnknownSignIn"],
    ),
    row(
        Unauthorized,
        OURS,
        Say("set this computer's clock: `sudo timedatectl set-ntp true`"),
        &["ClockSkew"],
    ),
    row(
        Unavailable,
        EC2,
        Nothing,
        &["InternalError", "InternalFailure", "ServerInternal", "Unavailable", "ServiceUnavailable"],
    ),
    row(Unavailable, OURS, Nothing, &["UnknownError", "NotSeenYet"]),
    row(
        Unavailable,
        OURS,
        Say(
            "see that there is a region {region}, and that this computer reaches AWS in it (a proxy, AWS_ENDPOINT_URL)",
        ),
        &["NoAnswer"],
    ),
    row(Other, OURS, WHO_ANSWERS, &["AnswerTooLong", "EndlessListing"]),
    row(Other, OURS, Nothing, &["NotSent", "UnknownQuota"]),
    row(InvalidSpec, EC2, REMOVED, &["InvalidKeyPair.NotFound", "InvalidLaunchTemplateId.NotFound"]),
    row(InvalidSpec, EC2, REMOVED, &["InvalidLaunchTemplateName.NotFoundException"]),
    row(
        InvalidSpec,
        EC2,
        REMOVED,
        &["InvalidLaunchTemplateId.VersionNotFound", "InvalidPlacementGroup.Unknown"],
    ),
    row(
        InvalidSpec,
        EC2,
        Say(
            "see that the `security_group` is there, in {region}; where it was the run's own, something removed it",
        ),
        &["InvalidGroup.NotFound", "InvalidGroupId.Malformed"],
    ),
    row(
        InvalidSpec,
        EC2,
        Say("see that the image is there in {region}, and may be used by the account"),
        &["InvalidAMIID.NotFound", "InvalidAMIID.Malformed", "InvalidAMIID.Unavailable"],
    ),
    row(
        InvalidSpec,
        EC2,
        Say("see that the `subnet` is there, in {region}"),
        &["InvalidSubnetID.NotFound", "InvalidSubnetId.Malformed", "InvalidSubnet"],
    ),
    row(InvalidSpec, EC2, Say("see that the `zone` is one of {region}"), &["InvalidZone.NotFound"]),
    row(
        InvalidSpec,
        EC2,
        Say("give a `subnet`: there is no default network, or it has no subnet there"),
        &["VPCIdNotSpecified", "MissingInput", "DefaultVpcDoesNotExist"],
    ),
    row(
        InvalidSpec,
        EC2,
        Say("see `disk`: its size, `iops` and `throughput` have limits for each type"),
        &["InvalidBlockDeviceMapping", "InvalidVolume.ZoneMismatch"],
    ),
    row(
        InvalidSpec,
        EC2,
        Say(
            "see that the instance profile is there: `aws iam get-instance-profile --instance-profile-name NAME`",
        ),
        &["InvalidIamInstanceProfile", "InvalidIamInstanceProfileArn.Malformed"],
    ),
    row(InvalidSpec, EC2, Say("see `user_data`"), &["InvalidUserData.Malformed"]),
    row(
        InvalidSpec,
        EC2,
        Nothing,
        &["InvalidInstanceType", "InvalidParameter", "InvalidParameterCombination"],
    ),
    row(InvalidSpec, EC2, Nothing, &["InvalidParameterValue", "MissingParameter", "UnsupportedOperation"]),
    row(InvalidSpec, FLEET, Nothing, &["InvalidFleetConfiguration", "InvalidFleetConfig"]),
    row(InvalidSpec, EC2, Nothing, &["InvalidNextToken", "InvalidInstanceID.Malformed"]),
    // What teardown and repeated requests meet; each is dealt with where it can come.
    row(InvalidSpec, EC2, Nothing, &["InvalidInstanceID.NotFound", "InvalidSpotInstanceRequestID.NotFound"]),
    row(InvalidSpec, EC2, Nothing, &["InvalidVolume.NotFound", "InvalidGroup.InUse"]),
    row(InvalidSpec, EC2, Nothing, &["InvalidPlacementGroup.Duplicate", "InvalidPlacementGroup.InUse"]),
    row(InvalidSpec, EC2, Nothing, &["InvalidGroup.Duplicate", "InvalidKeyPair.Duplicate"]),
    row(InvalidSpec, EC2, Nothing, &["InvalidPermission.Duplicate"]),
    row(InvalidSpec, EC2, Nothing, &["InvalidLaunchTemplateName.AlreadyExistsException"]),
    row(Other, EC2, Nothing, &["DependencyViolation", "IncorrectInstanceState", "OperationNotPermitted"]),
    row(
        Other,
        EC2,
        Nothing,
        &["IdempotentParameterMismatch", "IdempotentInstanceTerminated", "DryRunOperation"],
    ),
    row(
        InvalidSpec,
        PARAMETERS,
        Say("see that the alias or path of the `image` is right"),
        &["ParameterNotFound"],
    ),
    row(Other, COMMON, Nothing, &["ValidationException", "ValidationError", "NoSuchResourceException"]),
];

/// The class of an error code.
pub(crate) fn kind(code: &str) -> ProviderErrorKind {
    match find(code) {
        Some(row) => row.kind,
        None if ["Invalid", "Missing", "Unsupported"].iter().any(|it| code.starts_with(it)) => InvalidSpec,
        None => Other,
    }
}

/// What the user can do.
pub(crate) fn help(refusal: &Refusal<'_>) -> Option<String> {
    match find(refusal.code)?.advice {
        Nothing => None,
        Say(text) | Remove(text) => {
            Some(text.replace("{region}", refusal.region).replace("{operation}", refusal.operation))
        }
        Tell(tell) => Some(tell(refusal)),
    }
}

/// What the user can do by the program at hand.
pub(crate) fn remedy(code: &str) -> Option<Remedy> {
    matches!(find(code)?.advice, Remove(_)).then_some(Remedy::RemoveOldRuns)
}

fn find(code: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.codes.contains(&code))
}

/// What a caller can do who may not.
fn denied(refusal: &Refusal<'_>) -> String {
    let message = refusal.message;
    let action = denied_action(message);
    let asked = if refusal.in_fleet { "RunInstances" } else { refusal.operation };
    let is = action.clone().unwrap_or_else(|| format!("ec2:{asked}"));
    if let Some((_, policy)) = message.split_once("explicit deny in ") {
        let policy = policy.trim_start_matches("an ").trim_start_matches("a ");
        let policy = policy.split([':', '(', '.', ',']).next().unwrap_or_default().trim();
        return format!(
            "{is} is denied explicitly, in the {policy}, which no policy of the caller's own can mend: ask those who \
             wrote it (a service or resource control policy is the organisation's)"
        );
    }
    if action.is_none() && message.contains("Encoded authorization failure message") {
        return format!(
            "the credentials lack the permission {is}, or a policy denies it explicitly: `aws sts \
             decode-authorization-message --query DecodedMessage --output text --encoded-message ...` tells which; \
             what an organisation denies no policy of the caller's own can mend"
        );
    }
    format!(
        "the credentials lack the permission {is}: the guide's page \"Amazon EC2\" (docs/guide/src/ec2.md) has a policy"
    )
}

/// The action that AWS says is not allowed.
fn denied_action(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("not authorized to perform: ")?;
    let action = rest.split_whitespace().next()?;
    action.contains(':').then(|| action.trim_end_matches(['.', ',']).to_owned())
}

/// A region has to be enabled before anything answers in it; what launches machines there can only lack the
/// subscription to their image.
fn opt_in(refusal: &Refusal<'_>) -> String {
    let region = refusal.region;
    if !matches!(refusal.operation, "CreateFleet" | "RunInstances") {
        return format!(
            "region {region} has to be enabled for the account first: `aws account enable-region --region-name {region}`"
        );
    }
    let mut words = refusal.message.split_whitespace();
    let link = words.find(|word| word.starts_with("https://aws.amazon.com/marketplace"));
    let link = link.map_or("https://aws.amazon.com/marketplace", |link| link.trim_end_matches(['.', ')']));
    format!("the image is sold on the AWS Marketplace, and the account has to subscribe to it first: {link}")
}

fn processors(refusal: &Refusal<'_>) -> String {
    quota(refusal, false)
}

fn spot_processors(refusal: &Refusal<'_>) -> String {
    quota(refusal, true)
}

/// The quota of virtual processors that a refusal is about, and how to have more of it.
fn quota(refusal: &Refusal<'_>, spot: bool) -> String {
    let quota = Quota::of(refusal.instance.unwrap_or_default(), spot);
    let region = refusal.region;
    format!("the account's quota \"{}\" in {region} is used up: {}", quota.name, quota.help(region))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn refusal<'a>(code: &'a str, message: &'a str) -> Refusal<'a> {
        let (operation, region) = ("CreateFleet", "eu-west-1");
        Refusal { code, message, operation, region, instance: None, in_fleet: true }
    }

    #[test]
    fn every_code_has_one_class_a_source_and_advice_that_is_whole() {
        let mut seen = BTreeSet::new();
        for row in TABLE {
            assert!(row.source == OURS || row.source.starts_with("https://docs.aws.amazon.com/"));
            for code in row.codes {
                assert!(seen.insert(*code), "{code} stands there twice");
                let help = help(&refusal(code, "…")).unwrap_or_default();
                assert!(!help.contains(['{', '}']) && !help.contains("  "), "{code}: {help}");
                // What somebody has to change is said.
                let mended = matches!(row.kind, Unauthorized | Quota | Capacity);
                assert!(!mended || !help.is_empty(), "{code} without advice");
                assert_eq!(kind(code), row.kind, "{code}");
                assert_eq!(row.kind.is_transient(), matches!(row.kind, Throttled | Unavailable), "{code}");
            }
        }
        assert!(seen.len() > 80, "{} codes", seen.len());
    }

    #[test]
    fn what_the_emulated_ec2_answers_is_in_the_table() {
        let emulator = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator");
        let mut found = 0;
        for file in std::fs::read_dir(emulator).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|extension| extension == "py") {
                let text = std::fs::read_to_string(&file).unwrap();
                for code in text.split("ApiError(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                    assert!(find(code).is_some(), "{code} of {} has no row", file.display());
                    found += 1;
                }
            }
        }
        assert!(found > 50, "{found}");
    }

    #[test]
    fn what_is_new_is_taken_for_what_its_name_says() {
        assert_eq!((kind("InvalidNovelty"), kind("SomethingNew")), (InvalidSpec, Other));
    }

    #[test]
    fn a_missing_permission_is_named() {
        let message = "You are not authorized to perform this operation. User: arn:aws:iam::1:user/u is not \
                       authorized to perform: ec2:CreateTags on resource: arn:aws:ec2:x";
        assert!(help(&refusal("UnauthorizedOperation", message)).unwrap().contains("ec2:CreateTags:"));
    }

    #[test]
    fn an_explicit_deny_is_nothing_that_the_callers_policy_mends() {
        let user =
            "User: arn:aws:iam::1:user/u is not authorized to perform: ec2:RunInstances on resource: x";
        for (message, parts) in [
            (
                format!("{user} with an explicit deny in a service control policy: arn:aws:organizations::1:p"),
                &["ec2:RunInstances", "explicitly, in the service control policy,", "organisation"][..],
            ),
            (
                format!("{user} with an explicit deny in an identity-based policy"),
                &["explicitly, in the identity-based policy,"],
            ),
            (
                "You are not authorized to perform this operation. Encoded authorization failure message: AbC"
                    .to_owned(),
                &["ec2:RunInstances", "decode-authorization-message", "organisation"],
            ),
        ] {
            let help = help(&refusal("UnauthorizedOperation", &message)).unwrap();
            assert!(!help.contains("has a policy"), "{help}");
            for part in parts {
                assert!(help.contains(part), "no `{part}` in {help}");
            }
        }
    }

    #[test]
    fn opting_in_is_to_an_image_or_to_a_region() {
        let message = "In order to use this AWS Marketplace product you need to accept terms and subscribe. To do \
                       so please visit https://aws.amazon.com/marketplace/pp?sku=abc.";
        let of_image = help(&refusal("OptInRequired", message)).unwrap();
        assert!(of_image.ends_with("https://aws.amazon.com/marketplace/pp?sku=abc"), "{of_image}");
        let of_region =
            Refusal { operation: "DescribeSubnets", ..refusal("OptInRequired", "not subscribed") };
        assert!(help(&of_region).unwrap().contains("enable-region --region-name eu-west-1"));
    }

    #[test]
    fn a_quota_that_is_used_up_is_that_of_the_family_and_the_market() {
        for (code, instance, name, quota) in [
            ("VcpuLimitExceeded", "g5.xlarge", "On-Demand G and VT", "L-DB2E81BA"),
            ("MaxSpotInstanceCountExceeded", "p4d.24xlarge", "All P Spot", "L-7212CCBC"),
        ] {
            let refusal = Refusal { instance: Some(instance), ..refusal(code, "…") };
            let help = help(&refusal).unwrap();
            assert!(help.contains(name) && help.contains(quota), "{code} {instance}: {help}");
        }
    }
}
