//! The end of a run in one region: by remembered ids and by tag, until neither shows anything.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use aws_sdk_ec2::types::{InstanceStateChange, InstanceStateName};
use tsunami_core::{Leftover, ProviderError, RunFilter, RunId};

use crate::error::Answer;
use crate::inventory::{self, Thing};
use crate::journal::{Entry, Journal, Outcome};
use crate::region::Region;
use crate::tag;

/// TerminateInstances takes so many at once.
const BATCH: usize = 1000;

/// For how long EC2 may deny knowing an instance that it has just made.
const INVISIBLE: Duration = Duration::from_secs(120);

/// A request that is older than this is not made again: whatever it created is in the listings.
const FORGOTTEN: Duration = Duration::from_secs(900);

/// Ends all that a run has in a region, and says what is still there.
pub(crate) async fn terminate(
    region: &Region,
    run: &RunId,
    journal: &Journal,
) -> Result<Vec<Leftover>, ProviderError> {
    // First what may yet come: then nothing comes behind the back of what follows.
    let mut left = settle(region, journal).await;
    let filter = RunFilter::Run(run.clone());
    // A journal that can't be read keeps nobody from ending what the tags show.
    let remembered = remembered(region, journal).unwrap_or_else(|error| {
        left.push(troubled(region, &error));
        Vec::new()
    });
    left.extend(end_instances(region, &filter, &remembered).await?);
    if !left.is_empty() {
        // The rest is in use by what is still there; keys and templates are not.
        return Ok(left);
    }
    for owned in inventory::things(region, &filter).await? {
        if let Some(why) = remove(region, &owned.thing).await {
            left.push(Leftover { what: describe(&owned.thing, region), why });
        }
    }
    if left.is_empty() {
        for owned in inventory::things(region, &filter).await? {
            left.push(Leftover { what: describe(&owned.thing, region), why: "still listed".to_owned() });
        }
    }
    Ok(left)
}

/// Makes requests whose answer was never seen once more, as they were: the answer tells what they created.
async fn settle(region: &Region, journal: &Journal) -> Vec<Leftover> {
    let mut left = Vec::new();
    let entries = match journal.entries() {
        Ok(entries) => entries,
        Err(error) => return vec![troubled(region, &error)],
    };
    for Entry { create, asked, .. } in of_region(entries, region).filter(|entry| entry.outcome.is_none()) {
        if create.makes_instances() && asked.elapsed().is_ok_and(|age| age > FORGOTTEN) {
            // EC2 may no longer know the token, and would launch the machines anew. By now the tags tell all.
            continue;
        }
        let answer = create.ask(region).await;
        if let Err(error) = create.settle(journal, &answer) {
            tracing::debug!(%error, "the outcome is not written down, and will be asked for again");
        }
        if let Err(failure) = answer
            && !failure.answered
        {
            let what = format!("what the request {} may have created in {}", create.name(), region.name);
            left.push(Leftover { what, why: failure.to_string() });
        }
    }
    left
}

fn troubled(region: &Region, error: &std::io::Error) -> Leftover {
    let what = format!("what only the run's journal knows of {}", region.name);
    Leftover { what, why: format!("the journal can't be read: {error}") }
}

/// The instances that are known to have been made, and when.
fn remembered(region: &Region, journal: &Journal) -> std::io::Result<Vec<(String, SystemTime)>> {
    let entries = journal.entries()?;
    let made = of_region(entries, region).filter(|entry| entry.create.makes_instances());
    let ids = made.flat_map(|entry| match entry.outcome {
        Some(Outcome::Created(ids)) => ids.into_iter().map(|id| (id, entry.asked)).collect(),
        _ => Vec::new(),
    });
    Ok(ids.collect())
}

fn of_region(entries: Vec<Entry>, region: &Region) -> impl Iterator<Item = Entry> {
    let name = region.name.clone();
    entries.into_iter().filter(move |entry| entry.create.region == name)
}

/// Ends instances and says which have not ended yet.
async fn end_instances(
    region: &Region,
    filter: &RunFilter,
    remembered: &[(String, SystemTime)],
) -> Result<Vec<Leftover>, ProviderError> {
    let listed = inventory::instances(region, filter).await?;
    let mut left = Vec::new();
    let mut ending = Vec::new();
    for instance in &listed {
        let id = instance.instance_id().unwrap_or_default().to_owned();
        let state = instance.state().and_then(|state| state.name()).cloned();
        if state == Some(InstanceStateName::Terminated) {
            continue;
        }
        let group = inventory::value(instance.tags(), tag::GROUP).unwrap_or_default();
        let why = state.as_ref().map_or("in no known state", InstanceStateName::as_str);
        left.push(Leftover {
            what: format!("machine {id} ({group}) in {}", region.name),
            why: why.to_owned(),
        });
        if state != Some(InstanceStateName::ShuttingDown) {
            ending.push(id);
        }
    }
    for batch in ending.chunks(BATCH) {
        end(region, batch).await?;
    }
    // Those that are remembered and don't show: just made, or long gone.
    let shown: BTreeSet<&str> = listed.iter().filter_map(|instance| instance.instance_id()).collect();
    let hidden: Vec<_> = remembered.iter().filter(|(id, _)| !shown.contains(id.as_str())).collect();
    if !hidden.is_empty() {
        let ids: Vec<String> = hidden.iter().map(|(id, _)| id.clone()).collect();
        let (mut unknown, mut over) = (BTreeSet::new(), BTreeSet::new());
        for batch in ids.chunks(BATCH) {
            let ended = end(region, batch).await?;
            unknown.extend(ended.unknown);
            over.extend(ended.over);
        }
        for (id, made) in hidden {
            if over.contains(id) {
                continue;
            }
            let young = made.elapsed().is_ok_and(|age| age < INVISIBLE);
            match unknown.contains(id) {
                true if !young => {}
                known => left.push(Leftover {
                    what: format!("machine {id} in {}", region.name),
                    why: if known { "just made, and not shown yet" } else { "just told to end" }.to_owned(),
                }),
            }
        }
    }
    Ok(left)
}

/// What came of ending instances.
#[derive(Default)]
struct Ended {
    /// Those that EC2 does not know.
    unknown: Vec<String>,
    /// Those that had ended before. They may have lost their tags already.
    over: Vec<String>,
}

/// Terminates instances.
async fn end(region: &Region, ids: &[String]) -> Answer<Ended> {
    let mut unknown: Vec<String> = Vec::new();
    loop {
        let known: Vec<String> = ids.iter().filter(|id| !unknown.contains(id)).cloned().collect();
        if known.is_empty() {
            return Ok(Ended { unknown, over: Vec::new() });
        }
        let request = region.ec2.terminate_instances().set_instance_ids(Some(known.clone()));
        // Nobody waits for the guest: its disks go with it.
        let request = request.skip_os_shutdown(true);
        match region.call("TerminateInstances", || request.clone().send()).await {
            Ok(answer) => {
                let terminated = |change: &&InstanceStateChange| {
                    let state = change.current_state().and_then(|state| state.name());
                    state == Some(&InstanceStateName::Terminated)
                };
                let over = answer.terminating_instances().iter().filter(terminated);
                let over = over.filter_map(|change| change.instance_id().map(str::to_owned)).collect();
                return Ok(Ended { unknown, over });
            }
            // One id that is not known keeps all others from being ended.
            Err(failure) if failure.is_not_found() => {
                let named = known.into_iter().filter(|id| failure.message.contains(id.as_str()));
                let before = unknown.len();
                unknown.extend(named);
                if unknown.len() == before {
                    return Err(failure);
                }
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Removes one thing. Returns why it is still there.
pub(crate) async fn remove(region: &Region, thing: &Thing) -> Option<String> {
    let ec2 = &region.ec2;
    let removed: Answer<()> = match thing {
        Thing::KeyPair { name, .. } => {
            let request = ec2.delete_key_pair().key_name(name);
            region.call("DeleteKeyPair", || request.clone().send()).await.map(drop)
        }
        Thing::LaunchTemplate(id) => {
            let request = ec2.delete_launch_template().launch_template_id(id);
            region.call("DeleteLaunchTemplate", || request.clone().send()).await.map(drop)
        }
        Thing::SecurityGroup(id) => {
            let request = ec2.delete_security_group().group_id(id);
            region.call("DeleteSecurityGroup", || request.clone().send()).await.map(drop)
        }
        Thing::PlacementGroup { name, .. } => {
            let request = ec2.delete_placement_group().group_name(name);
            region.call("DeletePlacementGroup", || request.clone().send()).await.map(drop)
        }
        Thing::Volume(id, state) if state == "available" => {
            let request = ec2.delete_volume().volume_id(id);
            region.call("DeleteVolume", || request.clone().send()).await.map(drop)
        }
        Thing::SpotRequest(id, true) => {
            let request = ec2.cancel_spot_instance_requests().spot_instance_request_ids(id);
            region.call("CancelSpotInstanceRequests", || request.clone().send()).await.map(drop)
        }
        Thing::Volume(_, state) => return Some(state.clone()),
        Thing::SpotRequest(_, false) => return Some("its instance has just ended".to_owned()),
    };
    match removed {
        Ok(()) => None,
        Err(failure) if failure.is_not_found() => None,
        Err(failure) => Some(failure.to_string()),
    }
}

pub(crate) fn describe(thing: &Thing, region: &Region) -> String {
    let (kind, id) = match thing {
        Thing::KeyPair { name, .. } => ("key pair", name),
        Thing::LaunchTemplate(id) => ("launch template", id),
        Thing::SecurityGroup(id) => ("security group", id),
        Thing::PlacementGroup { name, .. } => ("placement group", name),
        Thing::Volume(id, _) => ("volume", id),
        Thing::SpotRequest(id, _) => ("spot request", id),
    };
    format!("{kind} {id} in {}", region.name)
}
