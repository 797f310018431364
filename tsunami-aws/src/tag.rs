//! The tags by which what belongs to tsunami is known.

use std::time::SystemTime;

use aws_sdk_ec2::types::{Filter, ResourceType, Tag, TagSpecification};
use tsunami_core::{LaunchRequest, RunFilter, RunId};

use crate::model::{Tags, timestamp, token};

pub(crate) const RUN: &str = "tsunami:run";
pub(crate) const GROUP: &str = "tsunami:group";
pub(crate) const EXPERIMENT: &str = "tsunami:experiment";
pub(crate) const OWNER: &str = "tsunami:owner";
pub(crate) const CREATED: &str = "tsunami:created";
pub(crate) const EXPIRES: &str = "tsunami:expires";
pub(crate) const USER: &str = "tsunami:user";

/// EC2's own, on the machines of a fleet.
pub(crate) const FLEET: &str = "aws:ec2:fleet-id";

/// The filter for what belongs to one run, or to any.
pub(crate) fn filter(filter: &RunFilter) -> Filter {
    match filter {
        RunFilter::Run(run) => Filter::builder().name(format!("tag:{RUN}")).values(run.as_str()).build(),
        RunFilter::All => Filter::builder().name("tag-key").values(RUN).build(),
    }
}

/// The value of a tag.
pub(crate) fn value<'a>(tags: &'a [Tag], key: &str) -> Option<&'a str> {
    tags.iter().find(|tag| tag.key() == Some(key)).and_then(|tag| tag.value())
}

/// Tags as the API takes them.
pub(crate) fn to_api(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

/// The tags of what a request creates, as a part of it.
pub(crate) fn specification(tags: &Tags, kind: ResourceType) -> TagSpecification {
    TagSpecification::builder().resource_type(kind).set_tags(Some(to_api(tags))).build()
}

/// What is wrong with the key of a tag that a user sets, if it is one that tsunami or AWS sets.
pub(crate) fn wrong_key(key: &str) -> Option<String> {
    let is_reserved = key.starts_with("tsunami:") || key.to_lowercase().starts_with("aws:");
    is_reserved.then(|| format!("the tag `{key}` is not for users to set"))
}

/// The longest key of a tag, in characters.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions>
pub(crate) const MAX_KEY_LENGTH: usize = 128;

/// The longest value of a tag.
pub(crate) const MAX_VALUE_LENGTH: usize = 256;

/// The longest name of a launch template.
/// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateLaunchTemplate.html>
const MAX_TEMPLATE_NAME_LENGTH: usize = 128;

/// The name of a launch template of a group. A long one ends in a digest of what it has no room for.
pub(crate) fn template_name(run: &RunId, group: &str, attempt: u32) -> String {
    let name = format!("{}-{group}-{attempt:04}", name(run));
    if name.len() <= MAX_TEMPLATE_NAME_LENGTH {
        return name;
    }
    let digest = token(&[&name]);
    let (digest, mut room) = (&digest[..16], MAX_TEMPLATE_NAME_LENGTH - 17);
    while !name.is_char_boundary(room) {
        room -= 1;
    }
    format!("{}-{digest}", &name[..room])
}

/// The name of what a run has one of in a region.
pub(crate) fn name(run: &RunId) -> String {
    format!("tsunami-{run}")
}

/// The tags of everything that a run creates. The same every time, for requests that are made again.
pub(crate) fn of_run(request: &LaunchRequest, owner: &str) -> Tags {
    let created =
        request.deadline.at.checked_sub(request.deadline.lifetime).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut tags = Tags::new();
    let mut add =
        |key: &str, value: &str| tags.insert(key.to_owned(), value.chars().take(MAX_VALUE_LENGTH).collect());
    add("Name", &request.experiment);
    add(RUN, request.run.as_str());
    add(EXPERIMENT, &request.experiment);
    add(OWNER, owner);
    add(CREATED, &timestamp(created));
    add(EXPIRES, &timestamp(request.deadline.at));
    tags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_set_no_tag_of_tsunamis_or_of_awss() {
        for (key, is_wrong) in
            [("tsunami:run", true), ("AWS:x", true), ("aws:x", true), ("team", false), ("awsome", false)]
        {
            assert_eq!(wrong_key(key).is_some(), is_wrong, "{key}");
        }
    }

    #[test]
    fn a_launch_template_has_a_name_that_ec2_takes() {
        let run: RunId = "20260101-000000-aaaa".parse().unwrap();
        assert_eq!(template_name(&run, "node", 3), format!("tsunami-{run}-node-0003"));
        let long = "g".repeat(tsunami_core::limits::NAME_LIMIT);
        let names = [template_name(&run, &long, 0), template_name(&run, &long, 1)];
        assert!(names.iter().all(|name| name.len() == MAX_TEMPLATE_NAME_LENGTH), "{names:?}");
        assert_ne!(names[0], names[1]);
    }
}
