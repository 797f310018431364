//! Runs that are found by tag alone: what `gc` goes by.

use std::collections::BTreeMap;
use std::time::SystemTime;

use aws_sdk_ec2::types::InstanceStateName;
use futures_util::future::join_all;
use serde::Serialize;
use tsunami_core::{ProviderError, RunFilter, RunId};

use crate::clock::Hearing;
use crate::error::{Answer, Failure};
use crate::provider::Ec2Provider;
use crate::region::Region;
use crate::teardown::describe;
use crate::{inventory, text};

/// What one run has, in all the regions that were looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The run.
    pub run: RunId,
    /// The last moment at which anything of it expires.
    pub expires: SystemTime,
    /// What there is of it, for people: `machine i-0abc… in eu-west-1: running`.
    pub things: Vec<String>,
}

/// What was found by tag.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The runs, by their ids.
    pub runs: Vec<Found>,
    /// What could not be looked at, in which region, and why. What is there is not known.
    pub failures: Vec<String>,
    /// The time as the service has it, told by our clock like the times of expiry; `None` if no region answered.
    pub now: Option<SystemTime>,
}

/// A run's things, and when the last of them expires.
type ByRun = BTreeMap<RunId, (Option<SystemTime>, Vec<String>)>;

impl Ec2Provider {
    /// The regions that are enabled for the account.
    pub async fn enabled_regions(&self) -> Result<Vec<String>, ProviderError> {
        let region = self.default_region();
        let request = region.ec2.describe_regions();
        let answer = region.call("DescribeRegions", || request.clone().send()).await?;
        // They become parts of hosts' names.
        let names = answer.regions().iter().filter_map(|region| text::word(region.region_name()));
        Ok(names.filter(|name| !name.contains(['.', '_'])).collect())
    }

    /// Looks in all of this provider's regions for whatever carries a run's tag and an expiry, and is not gone.
    /// Changes nothing.
    pub async fn survey(&self) -> Survey {
        let (mut by_run, mut survey) = (ByRun::new(), Survey::default());
        for look in join_all(self.all_regions().iter().map(look)).await {
            survey.now = survey.now.max(look.now);
            survey.failures.extend(look.failures);
            for (run, (expires, things)) in look.by_run {
                let of_run = by_run.entry(run).or_default();
                of_run.0 = of_run.0.max(expires);
                of_run.1.extend(things);
            }
        }
        // What has no expiry was not made by a launch of tsunami's, whatever its tag says.
        let complete =
            by_run.into_iter().filter_map(|(run, (expires, things))| Some((run, expires?, things)));
        survey.runs = complete.map(|(run, expires, things)| Found { run, expires, things }).collect();
        survey
    }
}

/// What is seen in one region. What can't be looked at hides nothing else.
#[derive(Default)]
struct Look {
    now: Option<SystemTime>,
    by_run: ByRun,
    failures: Vec<String>,
}

impl Look {
    fn add(&mut self, run: RunId, expires: Option<SystemTime>, what: String) {
        let of_run = self.by_run.entry(run).or_default();
        of_run.0 = of_run.0.max(expires);
        of_run.1.push(what);
    }

    fn failed(&mut self, region: &Region, what: &str, failure: &Failure) {
        self.failures.push(format!("{}: {what}: {}", region.name, failure.explained()));
    }
}

async fn look(region: &Region) -> Look {
    let mut look = Look::default();
    match service_time(region).await {
        // Beside times of expiry, which are told by our clock.
        Ok(now) => look.now = now.map(|now| region.clock.ours(now)),
        Err(failure) if failure.is_about_caller() || !failure.answered => {
            look.failed(region, "everything", &failure);
            return look;
        }
        Err(failure) => look.failed(region, "the service's clock", &failure),
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
                    look.add(run, inventory::expires(region, instance.tags()), what);
                }
            }
        }
        Err(failure) => look.failed(region, "machines", &failure),
    }
    for (kind, found) in inventory::things(region, &RunFilter::All).await {
        match found {
            Ok(found) => {
                for owned in found {
                    let what = describe(&owned.thing, region);
                    look.add(owned.run, owned.expires, what);
                }
            }
            Err(failure) => look.failed(region, &format!("{}s", kind.name()), &failure),
        }
    }
    look
}

/// The time by the service's clock, as an answer's header has it.
async fn service_time(region: &Region) -> Answer<Option<SystemTime>> {
    let hearing = Hearing::default();
    let request = region.ec2.describe_regions();
    let ask = || request.clone().customize().interceptor(hearing.clone()).send();
    region.call("DescribeRegions", ask).await?;
    Ok(hearing.time())
}
