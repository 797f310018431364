//! What would keep a run from being made in an account, beyond what a quote refuses. Everything is asked, and nothing
//! is created.

mod permissions;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, SystemTime};

use aws_sdk_ec2::types::{IpPermission, Subnet};
use tsunami_core::experiment::Group;
use tsunami_core::registry::Finding;
use tsunami_core::{MachineSpec, ProviderError, ProviderErrorKind};

use crate::Ec2Provider;
use crate::discovery;
use crate::error::{AwsError, Result};
use crate::quota::Quota;
use crate::region::Region;
use crate::resolve::{self, ResolvedSpec};
use crate::spec::{Ec2Spec, Market};
use crate::text;

/// A score of at most this much, of ten, says that spot machines are hardly to be had.
const POOR_SCORE: i32 = 3;

/// For fewer types EC2 has no score that says anything.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/work-with-spot-placement-score.html>
const LEAST_SCORED_TYPES: usize = 3;

/// The port of SSH.
const SSH: i32 = 22;

/// An address of Amazon's, by which to see whether IPv6 leads anywhere. Nothing is sent there.
const SOMEWHERE_BY_IPV6: &str = "2600:1f00::1";

/// What there is to be known of the account, and of all groups.
pub(crate) async fn examine(provider: &Ec2Provider, groups: &[Group], through: Option<&str>) -> Vec<Finding> {
    let account = &provider.settings().account;
    let mut findings = vec![
        Finding::ok(
            "credentials",
            format!("of {} in account {account}", text::line(&provider.launches.owner)),
        ),
        clock(&provider.regions[0]),
    ];
    let mut regions: BTreeMap<&str, bool> = BTreeMap::new();
    for group in groups {
        let Some(region) = group.spec.get().and_then(|spec| provider.region(spec).ok()) else { continue };
        let is_usable = match regions.get(region.name.as_str()) {
            Some(known) => *known,
            None => {
                let finding = enabled(region).await;
                let is_usable = !finding.is_failed();
                regions.insert(&region.name, is_usable);
                findings.push(finding);
                is_usable
            }
        };
        if is_usable && let Some(examined) = ExaminedGroup::of(provider, region, group).await {
            findings.extend(examined.examine(through).await);
        }
    }
    findings
}

fn clock(region: &Region) -> Finding {
    match region.clock.note() {
        None => Finding::ok("clock of AWS", "it agrees with this computer's"),
        Some(note) => Finding::warning("clock of AWS", note).fix("sudo timedatectl set-ntp true"),
    }
}

/// Whether a region is there, and enabled for the account.
async fn enabled(region: &Region) -> Finding {
    let name = &region.name;
    let check = format!("region {name}");
    match discovery::enabled_regions(region).await {
        Ok(enabled) if enabled.contains(name) => Finding::ok(check, "it is enabled"),
        Ok(_) => Finding::failed(check, "it is not enabled for the account")
            .fix(format!("aws account enable-region --region-name {name}")),
        Err(failure) if is_denied(&failure) => not_permitted(check, &failure),
        Err(failure) => {
            Finding::failed(check, format!("it is not there, or not for this account: {failure}")).fix(
                "aws ec2 describe-regions --region us-east-1 --query 'Regions[].RegionName' --output text",
            )
        }
    }
}

/// Whether it is this one thing that the caller may not ask.
fn is_denied(failure: &AwsError) -> bool {
    failure.kind == ProviderErrorKind::Unauthorized && !failure.is_about_caller()
}

/// What the caller may not ask.
fn not_permitted(check: impl Into<String>, failure: &AwsError) -> Finding {
    let error = ProviderError::from(failure.clone());
    let finding = Finding::not_checked(check, format!("it may not be asked: {}", error.message));
    match error.help {
        Some(help) => finding.fix(help),
        None => finding,
    }
}

/// What could not be asked: for want of a permission, or as the answer was another.
fn unknown(check: impl Into<String>, failure: &AwsError) -> Finding {
    match is_denied(failure) {
        true => not_permitted(check, failure),
        false => Finding::not_checked(check, failure.to_string()),
    }
}

/// A group whose quote is refused for nothing that it asks for.
struct ExaminedGroup<'a> {
    provider: &'a Ec2Provider,
    region: &'a Region,
    name: &'a str,
    count: u32,
    spec: Ec2Spec,
    resolved: std::sync::Arc<ResolvedSpec>,
}

impl<'a> ExaminedGroup<'a> {
    /// Looks a group up. Where that is refused, whoever quotes it hears why.
    async fn of(provider: &'a Ec2Provider, region: &'a Region, group: &'a Group) -> Option<Self> {
        let chosen: MachineSpec = provider.chosen(&group.spec).await.ok()?;
        let spec = chosen.get::<Ec2Spec>()?.clone();
        resolve::check(&spec, region).ok()?;
        let resolved = provider.resolver.resolve(&spec, region).await.ok()?;
        Some(Self { provider, region, name: &group.name, count: group.count.get(), spec, resolved })
    }

    fn called(&self, check: &str) -> String {
        format!("{check} of {}", self.name)
    }

    async fn examine(&self, through: Option<&str>) -> Vec<Finding> {
        let mut findings = vec![self.image(), self.network().await, self.path(through)];
        findings.extend(self.security_group().await);
        findings.extend(self.quotas().await);
        findings.extend(self.reservations().await);
        if self.spec.markets.iter().any(|market| market.is_spot()) {
            findings.push(self.score().await);
            findings.push(self.spot_role().await);
        }
        findings.extend(permissions::examine(self).await);
        findings
    }

    fn image(&self) -> Finding {
        let image = &self.resolved.image;
        let (check, now) = (self.called("image"), SystemTime::now());
        let age = image.created.and_then(|created| now.duration_since(created).ok()).map(days);
        let age = age.map(|age| format!(", {age} old")).unwrap_or_default();
        let alias = if self.spec.image == image.id { "" } else { &self.spec.image };
        let alias = if alias.is_empty() { String::new() } else { format!("{alias} is ") };
        let found = format!("{alias}{} ({}){age}, entered as {}", image.id, image.name, image.user);
        match image.deprecated.filter(|at| *at < now) {
            None => Finding::ok(check, found),
            Some(_) => Finding::warning(check, format!("{found}; its maker no longer cares for it"))
                .fix("image = \"ubuntu-24.04\"  # or another alias, which is the newest of its release"),
        }
    }

    /// The subnets: how many addresses are free, and whether they lead to the world where they should.
    async fn network(&self) -> Finding {
        let (check, resolved) = (self.called("network"), &*self.resolved);
        let subnets: BTreeMap<String, String> =
            resolved.pools.iter().map(|pool| (pool.zone.clone(), pool.subnet.clone())).collect();
        let found = match self.describe(subnets.values()).await {
            Ok(found) => found,
            Err(failure) => return unknown(check, &failure),
        };
        let free = |subnet: &Subnet| {
            subnet.available_ip_address_count().and_then(|free| u32::try_from(free).ok()).unwrap_or_default()
        };
        let shown = found.iter().map(|subnet| {
            let (id, zone) = (subnet.subnet_id(), subnet.availability_zone());
            let free = if resolved.ipv6 { String::new() } else { format!(", {} free", free(subnet)) };
            format!("{} ({}{free})", text::line(id.unwrap_or_default()), text::line(zone.unwrap_or_default()))
        });
        let shown = shown.collect::<Vec<_>>().join(", ");
        let room = found.iter().map(free);
        let room = if self.spec.mixed { room.fold(0, u32::saturating_add) } else { room.max().unwrap_or(0) };
        if !resolved.ipv6 && room < self.count {
            let found = format!("no subnet has addresses for all {} machines: {shown}", self.count);
            return Finding::failed(check, found).fix("mixed = true  # or another `subnet` or `zone`");
        }
        if resolved.public {
            match resolve::without_way(self.region, &resolved.vpc, &subnets, resolved.ipv6).await {
                Ok(None) => {}
                Ok(Some(why)) => return Finding::not_checked(check, why),
                Err(error) => return Finding::refused(check, &error),
            }
        }
        let way = match (resolved.public, resolved.ipv6) {
            (true, true) => "addresses of IPv6 alone, with a way to the internet",
            (true, false) => "public addresses, with a way to the internet",
            (false, _) => "private addresses alone",
        };
        let has_ipv6 = |subnet: &Subnet| !subnet.ipv6_cidr_block_association_set().is_empty();
        let families = match resolved.ipv6 || found.iter().all(has_ipv6) {
            true => "",
            false => "; not all of them have IPv6",
        };
        Finding::ok(check, format!("{}: {shown}; {way}{families}", resolved.vpc))
    }

    async fn describe(&self, subnets: impl Iterator<Item = &String>) -> Result<Vec<Subnet>> {
        let request = self.region.ec2.describe_subnets();
        let request = request.set_subnet_ids(Some(subnets.cloned().collect()));
        let answer = self.region.call("DescribeSubnets", || request.clone().send()).await?;
        Ok(answer.subnets.unwrap_or_default())
    }

    /// Whether this computer reaches machines, as far as that can be known without one.
    fn path(&self, through: Option<&str>) -> Finding {
        let (check, resolved) = (self.called("path"), &*self.resolved);
        if let Some(through) = through {
            return Finding::ok(check, format!("machines are reached by {through}"));
        }
        if !resolved.public {
            let blocks = resolved.blocks.join(", ");
            return match resolved.blocks.iter().find(|block| is_inside(block)) {
                Some(block) => Finding::ok(check, format!("this computer has an address in {block} itself")),
                None => Finding::warning(
                    check,
                    format!("machines have addresses in {blocks} alone, where this computer has none: it needs a VPN, a \
                             jump host or a proxy"),
                )
                .fix("reach = \"public\"  # or, in [ssh]: jump = \"user@bastion\""),
            };
        }
        if resolved.ipv6 && own_address(SOMEWHERE_BY_IPV6).is_none() {
            let found = "machines have addresses of IPv6 alone, and this computer has no way to those";
            return Finding::failed(check, found)
                .fix("jump = \"user@bastion\"  # in [ssh]; or another `subnet`");
        }
        let proxy = ["HTTPS_PROXY", "https_proxy"].into_iter().find(|name| std::env::var_os(name).is_some());
        if let Some(name) = proxy {
            let found =
                format!("{name} is set, and SSH does not go that way: port 22 has to be let out by itself");
            return Finding::warning(check, found).fix("nc -zvw5 github.com 22");
        }
        Finding::not_checked(check, "whether port 22 is let out of this network shows at a machine only")
            .fix("nc -zvw5 github.com 22")
    }

    async fn security_group(&self) -> Vec<Finding> {
        let check = self.called("security group");
        let Some(id) = &self.spec.security_group else {
            // Where it can't be told, whoever quotes hears why.
            let from = self.provider.launches.ssh_from(&self.spec, self.region, &self.resolved).await;
            let made = |from: Vec<String>| {
                format!("one is made for the run; SSH is let in from {}", from.join(", "))
            };
            return from.ok().map(|from| Finding::ok(check, made(from))).into_iter().collect();
        };
        let request = self.region.ec2.describe_security_groups().group_ids(id);
        let answer = match self.region.call("DescribeSecurityGroups", || request.clone().send()).await {
            Ok(answer) => answer,
            Err(failure) if failure.is_not_found() => return vec![Finding::refused(check, &failure.into())],
            Err(failure) => return vec![unknown(check, &failure)],
        };
        let Some(group) = answer.security_groups().first() else {
            return vec![Finding::failed(check, format!("there is no {id} in {}", self.region.name))];
        };
        if group.vpc_id() != Some(&self.resolved.vpc) {
            let vpc = text::line(group.vpc_id().unwrap_or_default());
            let found = format!("{id} is of the network {vpc}, and machines are in {}", self.resolved.vpc);
            return vec![Finding::failed(check, found).fix("subnet = \"subnet-…\"  # one of that network")];
        }
        if !group.ip_permissions().iter().any(lets_ssh_in) {
            let address = self.provider.launches.address.get().await;
            let address = address.unwrap_or_else(|_| "203.0.113.7/32".to_owned());
            return vec![Finding::failed(check, format!("{id} lets no SSH in")).fix(format!(
                "aws ec2 authorize-security-group-ingress --region {} --group-id {id} --protocol tcp --port 22 --cidr \
                 {address}",
                self.region.name
            ))];
        }
        vec![Finding::ok(check, format!("{id} is there, and lets SSH in from somewhere"))]
    }

    async fn quotas(&self) -> Vec<Finding> {
        let (check, region) = (self.called("quota"), self.region);
        let checked =
            self.provider.resolver.check_quotas(&self.spec, region, &self.resolved, self.count).await;
        let finding = |note: &String| {
            let is_spot = note.starts_with("spot");
            match note.contains(" are not checked: ") {
                true => Finding::not_checked(&check, note),
                false => {
                    let first = self.spec.instances.first().map_or("", String::as_str);
                    Finding::warning(&check, note).fix(Quota::of(first, is_spot).help(&region.name))
                }
            }
        };
        match checked {
            Ok(notes) if notes.is_empty() => {
                vec![Finding::ok(check.clone(), format!("has room for {} more of them", self.count))]
            }
            Ok(notes) => notes.iter().map(finding).collect(),
            // Whoever quotes hears it.
            Err(_) => Vec::new(),
        }
    }

    async fn reservations(&self) -> Option<Finding> {
        let reserved = self.provider.resolver.reserved(&self.spec, self.region, &self.resolved).await.ok()?;
        let shown: Vec<_> = reserved.iter().map(ToString::to_string).collect();
        let room = reserved.iter().map(|one| one.free);
        let room = if self.spec.mixed { room.fold(0, u32::saturating_add) } else { room.max()? };
        let (check, shown) = (self.called("reservation"), shown.join("; "));
        match (shown.is_empty(), room < self.count) {
            (true, _) => None,
            (_, true) => Some(
                Finding::warning(
                    check,
                    format!("room for {room} of {} machines just now: {shown}", self.count),
                )
                .fix("market = [\"reservation\", \"on-demand\"]"),
            ),
            (_, false) => Some(Finding::ok(check, shown)),
        }
    }

    /// How likely spot machines are to be had.
    async fn score(&self) -> Finding {
        let (check, types) = (self.called("spot capacity"), &self.spec.instances);
        let mend = "market = [\"spot\", \"on-demand\"]  # and more types in `instance`";
        if types.len() < LEAST_SCORED_TYPES {
            let few = format!("EC2 rates {LEAST_SCORED_TYPES} types or more, and these are {}", types.len());
            return Finding::not_checked(check, few);
        }
        let request = self.region.ec2.get_spot_placement_scores().region_names(&self.region.name);
        let request = request.set_instance_types(Some(types.clone()));
        let request = request.target_capacity(i32::try_from(self.count).unwrap_or(i32::MAX));
        let request = request.single_availability_zone(!self.spec.mixed);
        let answer = match self.region.call("GetSpotPlacementScores", || request.clone().send()).await {
            Ok(answer) => answer,
            Err(failure) if is_denied(&failure) => {
                let why = "ec2:GetSpotPlacementScores is not permitted, which no run needs";
                return Finding::not_checked(check, why);
            }
            Err(failure) => return unknown(check, &failure),
        };
        match answer.spot_placement_scores().iter().filter_map(|one| one.score()).max() {
            None => Finding::not_checked(check, "EC2 has no score for them"),
            Some(score) if score <= POOR_SCORE => {
                Finding::warning(check, format!("EC2 rates it {score} of 10 just now")).fix(mend)
            }
            Some(score) => Finding::ok(check, format!("EC2 rates it {score} of 10 just now")),
        }
    }

    /// Whether the account has the role without which there is no spot. Only who had spot machines is known to.
    async fn spot_role(&self) -> Finding {
        let (check, region) = (format!("role for spot in {}", self.region.name), self.region);
        let request = region.ec2.describe_spot_instance_requests().max_results(5);
        match region.call("DescribeSpotInstanceRequests", || request.clone().send()).await {
            Err(failure) => unknown(check, &failure),
            Ok(answer) if !answer.spot_instance_requests().is_empty() => {
                Finding::ok(check, "the account has spot requests, and so it has the role")
            }
            Ok(_) => Finding::not_checked(
                check,
                "no spot request shows that the account has the role that it needs once for spot",
            )
            .fix("aws iam create-service-linked-role --aws-service-name spot.amazonaws.com  # if it has never had any"),
        }
    }

    /// The market that is tried first among those that are bought.
    fn market(&self) -> Option<&Market> {
        self.spec.markets.iter().find(|market| **market != Market::Reservation)
    }
}

/// Whether a rule lets anybody in on the port of SSH.
fn lets_ssh_in(rule: &IpPermission) -> bool {
    let all = rule.ip_protocol() == Some("-1");
    let ports = rule.from_port().unwrap_or(0)..=rule.to_port().unwrap_or(i32::from(u16::MAX));
    all || rule.ip_protocol() == Some("tcp") && ports.contains(&SSH)
}

/// How old something is, as people count that.
fn days(age: Duration) -> String {
    let days = age.as_secs() / (24 * 3600);
    match days {
        1 => "1 day".to_owned(),
        0..60 => format!("{days} days"),
        _ => format!("{} months", days / 30),
    }
}

/// Whether this computer has an address in a block, by which it would go there.
fn is_inside(block: &str) -> bool {
    let there = block.split_once('/').map_or(block, |(address, _)| address);
    own_address(there).is_some_and(|own| contains(block, own))
}

/// The address by which this computer would go somewhere. It sends nothing.
fn own_address(there: &str) -> Option<IpAddr> {
    let there: IpAddr = there.parse().ok()?;
    let any = if there.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((there, 22)).ok()?;
    socket.local_addr().ok().map(|own| own.ip())
}

/// Whether an address is of a block.
fn contains(block: &str, address: IpAddr) -> bool {
    let Some((base, length)) = block.split_once('/') else { return false };
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let (Ok(base), Ok(length)) = (base.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    let ((base, longest), (address, other)) = (bits(base), bits(address));
    longest == other && length <= longest && (length == 0 || (base ^ address) >> (128 - length) == 0)
}

/// The names of what would be allowed, in a sentence.
fn listed(names: &BTreeSet<&'static str>) -> String {
    names.iter().copied().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_inside_of_its_block_and_of_no_other() {
        for (block, address, expected) in [
            ("10.0.0.0/16", "10.0.255.1", true),
            ("10.0.0.0/16", "10.1.0.1", false),
            ("0.0.0.0/0", "203.0.113.7", true),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "fe80::1", false),
            ("10.0.0.0/16", "::a00:1", false),
            ("10.0.0.0/40", "10.0.0.1", false),
            ("nonsense", "10.0.0.1", false),
        ] {
            assert_eq!(contains(block, address.parse().unwrap()), expected, "{block} {address}");
        }
        assert!(is_inside("127.0.0.0/8"));
    }

    #[test]
    fn a_rule_lets_ssh_in_by_its_port_or_by_all() {
        let rule = |protocol: &str, from, to| {
            IpPermission::builder().ip_protocol(protocol).set_from_port(from).set_to_port(to).build()
        };
        for (rule, expected) in [
            (rule("tcp", Some(22), Some(22)), true),
            (rule("tcp", Some(0), Some(65535)), true),
            (rule("tcp", Some(80), Some(443)), false),
            (rule("udp", Some(22), Some(22)), false),
            (rule("-1", None, None), true),
        ] {
            assert_eq!(lets_ssh_in(&rule), expected, "{rule:?}");
        }
    }

    #[test]
    fn ages_are_told_as_people_count_them() {
        let day = Duration::from_secs(24 * 3600);
        assert_eq!([days(day), days(day * 59), days(day * 400)], ["1 day", "59 days", "13 months"]);
    }
}
