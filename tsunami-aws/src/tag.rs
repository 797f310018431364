//! The tags by which what belongs to tsunami is known.

use std::time::SystemTime;

use tsunami_core::{LaunchRequest, RunId};

use crate::create::Tags;
use crate::launch::timestamp;

pub(crate) const RUN: &str = "tsunami:run";
pub(crate) const GROUP: &str = "tsunami:group";
pub(crate) const EXPERIMENT: &str = "tsunami:experiment";
pub(crate) const OWNER: &str = "tsunami:owner";
pub(crate) const CREATED: &str = "tsunami:created";
pub(crate) const EXPIRES: &str = "tsunami:expires";
pub(crate) const USER: &str = "tsunami:user";

/// The longest value of a tag.
const LONGEST: usize = 256;

/// The name of what a run has one of in a region.
pub(crate) fn name(run: &RunId) -> String {
    format!("tsunami-{run}")
}

/// The tags of everything that a run creates. The same every time, for requests that are made again.
pub(crate) fn of_run(request: &LaunchRequest, owner: &str) -> Tags {
    let created =
        request.deadline.at.checked_sub(request.deadline.lifetime).unwrap_or(SystemTime::UNIX_EPOCH);
    let mut tags = Tags::new();
    let mut add = |key: &str, value: &str| tags.insert(key.to_owned(), value.chars().take(LONGEST).collect());
    add("Name", &request.experiment);
    add(RUN, request.run.as_str());
    add(EXPERIMENT, &request.experiment);
    add(OWNER, owner);
    add(CREATED, &timestamp(created));
    add(EXPIRES, &timestamp(request.deadline.at));
    tags
}
