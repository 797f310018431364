//! Runs that are found by tag alone: what `gc` goes by.

use std::collections::BTreeMap;
use std::time::SystemTime;

use aws_sdk_ec2::types::InstanceStateName;
use futures_util::future::join_all;
use tsunami_core::{DiscoveredRun, RunFilter, RunId, Survey};

use crate::clock::Hearing;
use crate::error::{AwsError, Result};
use crate::region::Region;
use crate::{inventory, text};

/// A run's things, and when the last of them expires.
type ByRun = BTreeMap<RunId, (Option<SystemTime>, Vec<String>)>;

/// The regions that are enabled for the account.
pub(crate) async fn enabled_regions(region: &Region) -> Result<Vec<String>> {
    let request = region.ec2.describe_regions();
    let answer = region.call("DescribeRegions", || request.clone().send()).await?;
    // They become parts of hosts' names.
    let names = answer.regions().iter().filter_map(|region| text::word(region.region_name()));
    Ok(names.filter(|name| !name.contains(['.', '_'])).collect())
}

/// Looks in regions for whatever carries a run's tag and an expiry, and is not gone. Changes nothing.
pub(crate) async fn survey(regions: &[Region]) -> Survey {
    let (mut by_run, mut survey) = (ByRun::new(), Survey::default());
    for seen in join_all(regions.iter().map(survey_region)).await {
        survey.now = survey.now.max(seen.now);
        survey.failures.extend(seen.failures);
        for (run, (expires, things)) in seen.by_run {
            let of_run = by_run.entry(run).or_default();
            of_run.0 = of_run.0.max(expires);
            of_run.1.extend(things);
        }
    }
    // What has no expiry was not made by a launch of tsunami's, whatever its tag says.
    let complete = by_run.into_iter().filter_map(|(run, (expires, things))| Some((run, expires?, things)));
    survey.runs = complete.map(|(run, expires, things)| DiscoveredRun::new(run, expires, things)).collect();
    survey
}

/// What is seen in one region. What can't be looked at hides nothing else.
#[derive(Default)]
struct RegionSurvey {
    now: Option<SystemTime>,
    by_run: ByRun,
    failures: Vec<String>,
}

impl RegionSurvey {
    fn add(&mut self, run: RunId, expires: Option<SystemTime>, what: String) {
        let of_run = self.by_run.entry(run).or_default();
        of_run.0 = of_run.0.max(expires);
        of_run.1.push(what);
    }

    fn failed(&mut self, region: &Region, what: &str, failure: &AwsError) {
        self.failures.push(format!("{}: {what}: {}", region.name, failure.explained()));
    }
}

async fn survey_region(region: &Region) -> RegionSurvey {
    let mut seen = RegionSurvey::default();
    match service_time(region).await {
        // Beside times of expiry, which are told by our clock.
        Ok(now) => seen.now = now.map(|now| region.clock.ours(now)),
        Err(failure) if failure.is_about_caller() || !failure.answered => {
            seen.failed(region, "everything", &failure);
            return seen;
        }
        Err(failure) => seen.failed(region, "the service's clock", &failure),
    }
    match inventory::instances(region, &RunFilter::All).await {
        Ok(instances) => {
            for instance in instances {
                let state = instance.state().and_then(|state| state.name()).cloned();
                let run = inventory::run_of(region, &RunFilter::All, instance.tags());
                if let (Some(run), false) = (run, state == Some(InstanceStateName::Terminated)) {
                    let id = text::word(instance.instance_id()).unwrap_or_default();
                    let state = state.as_ref().map_or("unknown", InstanceStateName::as_str);
                    let what = format!("machine {id} in {}: {state}", region.name);
                    seen.add(run, inventory::expires(region, instance.tags()), what);
                }
            }
        }
        Err(failure) => seen.failed(region, "machines", &failure),
    }
    for (kind, found) in inventory::resources(region, &RunFilter::All).await {
        match found {
            Ok(found) => {
                for owned in found {
                    let what = owned.resource.describe(&region.name);
                    seen.add(owned.run, owned.expires, what);
                }
            }
            Err(failure) => seen.failed(region, &format!("{}s", kind.name()), &failure),
        }
    }
    seen
}

/// The time by the service's clock, as an answer's header has it.
async fn service_time(region: &Region) -> Result<Option<SystemTime>> {
    let hearing = Hearing::default();
    let request = region.ec2.describe_regions();
    let ask = || request.clone().customize().interceptor(hearing.clone()).send();
    region.call("DescribeRegions", ask).await?;
    Ok(hearing.time())
}
