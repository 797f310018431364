//! The end of a run in one region: what is known is ended first, then what is found by tag, until nothing is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_sdk_ec2::types::{AttributeBooleanValue, InstanceStateName};
use tsunami_core::{Leftover, ProviderErrorKind, RunFilter, RunId};

use crate::error::{AwsError, Result};
use crate::inventory::{self, Resource, ResourceKind};
use crate::journal::{Entry, Journal, Outcome};
use crate::model::CreateKind;
use crate::region::Region;
use crate::requests::delete_fleets;
use crate::{tag, text};

/// TerminateInstances takes so many at once.
const MAX_TERMINATED_AT_ONCE: usize = 1000;

/// So many refusals in a row, that name no machine or deny each, speak for all that are left to ask for.
const MAX_REFUSALS_IN_A_ROW: u32 = 10;

/// For how long EC2 may deny knowing an instance that it has just made.
const VISIBILITY_TIMEOUT: Duration = Duration::from_secs(120);

/// A request that is older than this is not made again: whatever it created is in the listings.
const TOKEN_TTL: Duration = Duration::from_secs(900);

/// What a request made that failed inside EC2 is listed after so long. It is not made again: that fails, too, and might
/// only then have an effect.
const LATE_EFFECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Something that is still there.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) leftover: Leftover,
    pub(crate) stays: Stays,
}

/// For how long something is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stays {
    /// Until another attempt, or by itself no longer than that.
    ForNow,
    /// Until what uses it is gone.
    InUse,
    /// Until somebody changes what keeps it.
    UntilMended,
}

impl Left {
    fn new(what: String, why: impl Into<String>, stays: Stays) -> Self {
        Self { leftover: Leftover::new(what, why), stays }
    }

    fn failed(what: String, failure: &AwsError) -> Self {
        Self::new(what, failure.explained(), Stays::after(failure))
    }
}

impl Stays {
    /// EC2 calls much invalid that is only in use for a moment longer; a caller who may not, may not later either.
    fn after(failure: &AwsError) -> Self {
        match failure.kind {
            ProviderErrorKind::Unauthorized => Self::UntilMended,
            _ => Self::ForNow,
        }
    }
}

/// Ends all that a run has in a region, and says what is still there.
pub(crate) async fn terminate(region: &Region, run: &RunId, journal: &Journal) -> Vec<Left> {
    let mut machines = Machines::new(region);
    let (entries, _) = journal.legible().await;
    machines.remember(&of_region(entries, region));
    // Before anything is looked at, which may fail.
    machines.end_known().await;
    let mut left = settle(region, journal).await;
    let (entries, broken) = journal.legible().await;
    let entries = of_region(entries, region);
    if let Some(error) = broken {
        let what = format!("what only the run's journal knows of {}", region.name);
        left.push(Left::new(what, format!("the journal can't be read: {error}"), Stays::ForNow));
    }
    machines.remember(&entries);
    machines.end_known().await;
    let filter = RunFilter::Run(run.clone());
    if let Err(failure) = machines.end_listed(&filter).await {
        left.push(Left::failed(whatever_else(region), &failure));
    }
    let of_machines = machines.left();
    let in_use = !of_machines.is_empty();
    if !in_use && left.is_empty() {
        let fleets: Vec<String> = std::mem::take(&mut machines.fleets).into_iter().collect();
        delete_fleets(region, &fleets).await;
    }
    left.extend(of_machines);
    left.extend(remove_resources(region, &filter, &entries, in_use).await);
    if left.is_empty() {
        for (kind, found) in inventory::resources(region, &filter).await {
            match found {
                Ok(found) => left.extend(found.iter().map(|owned| {
                    Left::new(owned.resource.describe(&region.name), "still listed", Stays::ForNow)
                })),
                Err(failure) => left.extend(unseen(region, kind, &failure, &entries)),
            }
        }
    }
    // What is said of one kind may be said of them all.
    let mut said = BTreeSet::new();
    left.retain(|left| said.insert(left.leftover.what.clone()));
    left
}

/// Makes requests whose answer was never seen once more, as they were: the answer tells what they created.
async fn settle(region: &Region, journal: &Journal) -> Vec<Left> {
    let mut left = Vec::new();
    let entries = of_region(journal.legible().await.0, region);
    for Entry { request, asked, outcome } in entries.iter().filter(|entry| entry.is_open()) {
        if let Some(Outcome::Failed(code)) = outcome {
            if age(*asked) < LATE_EFFECT_TIMEOUT {
                let what = format!("what the request {} may have created in {}", request.name(), region.name);
                left.push(Left::new(what, format!("EC2 failed at it itself ({code})"), Stays::ForNow));
            }
            continue;
        }
        if request.makes_instances() && age(*asked) > TOKEN_TTL {
            // EC2 may no longer know the token, and would launch the machines anew. By now the tags tell all.
            continue;
        }
        let answer = request.ask(region).await;
        if request.settles(&answer, true) {
            if let Err(error) = request.settle(journal, &answer).await {
                tracing::debug!(%error, "the outcome is not written down, and will be asked for again");
            }
        } else if let Err(failure) = answer {
            let what = format!("what the request {} may have created in {}", request.name(), region.name);
            left.push(Left::failed(what, &failure));
        }
    }
    left
}

/// How far from now something was made. By a clock that was set back a little since, that is soon: no reason to take it
/// for old. By one that was far ahead it is long from now, and must not seem young until then.
fn age(made: SystemTime) -> Duration {
    made.elapsed().unwrap_or_else(|ahead| ahead.duration())
}

fn of_region(entries: Vec<Entry>, region: &Region) -> Vec<Entry> {
    entries.into_iter().filter(|entry| entry.request.region == region.name).collect()
}

/// A run's machines in a region, and how far their end has come.
struct Machines<'a> {
    region: &'a Region,
    known: BTreeMap<String, Known>,
    /// What came of asking for their end, in this attempt.
    fates: BTreeMap<String, Fate>,
    /// The fleets that they came in, which stay active by themselves.
    fleets: BTreeSet<String>,
}

/// What is known of a machine beside its fate.
#[derive(Clone, Default)]
struct Known {
    group: String,
    /// When it was asked for, where this run did.
    made: Option<SystemTime>,
    /// The state that a listing shows, unless it is over.
    listed: Option<InstanceStateName>,
}

/// What came of ending a machine.
#[derive(Clone, Debug)]
enum Fate {
    Ending,
    /// It had ended before. It may have lost its tags already.
    Over,
    /// EC2 does not know it.
    Unknown,
    Refused(String, Stays),
}

impl<'a> Machines<'a> {
    fn new(region: &'a Region) -> Self {
        Self { region, known: BTreeMap::new(), fates: BTreeMap::new(), fleets: BTreeSet::new() }
    }

    /// Takes in what requests are known to have created.
    fn remember(&mut self, entries: &[Entry]) {
        for entry in entries.iter().filter(|entry| entry.request.makes_instances()) {
            let Some(Outcome::Created(ids)) = &entry.outcome else { continue };
            for id in ids {
                let group = entry.request.tags.get(tag::GROUP).cloned().unwrap_or_default();
                self.known.insert(id.clone(), Known { group, made: Some(entry.asked), listed: None });
            }
        }
    }

    /// Ends those that are known and have not been told to end.
    async fn end_known(&mut self) {
        let new: Vec<String> = {
            let told = self.region.told();
            self.known
                .keys()
                .filter(|id| !told.contains(*id) && !self.fates.contains_key(*id))
                .cloned()
                .collect()
        };
        self.end(new).await;
    }

    /// Ends those that a listing shows, and asks after those that it doesn't.
    async fn end_listed(&mut self, filter: &RunFilter) -> Result<()> {
        let listed = inventory::instances(self.region, filter).await;
        let mut ending = Vec::new();
        for instance in listed.iter().flatten() {
            let state = instance.state().and_then(|state| state.name());
            let Some(id) = text::word(instance.instance_id()) else { continue };
            self.fleets.extend(text::word(tag::value(instance.tags(), tag::FLEET)));
            if state == Some(&InstanceStateName::Terminated) {
                self.fates.insert(id, Fate::Over);
                continue;
            }
            let known = self.known.entry(id.clone()).or_default();
            known.listed =
                Some(state.cloned().unwrap_or_else(|| InstanceStateName::from("in no known state")));
            if let Some(group) = text::group(tag::value(instance.tags(), tag::GROUP)) {
                known.group = group;
            }
            if state == Some(&InstanceStateName::ShuttingDown) {
                self.fates.insert(id, Fate::Ending);
            } else if matches!(self.fates.get(&id), None | Some(Fate::Unknown)) {
                ending.push(id);
            }
        }
        // Just made, long gone, or the listing failed: EC2's answer tells.
        let hidden = self.known.keys().filter(|id| !self.fates.contains_key(*id) && !ending.contains(id));
        ending.extend(hidden.cloned().collect::<Vec<_>>());
        self.end(ending).await;
        listed.map(drop)
    }

    /// Ends machines: all at once, or where EC2 refuses that, every one that it does not refuse.
    ///
    /// The guest's own shutdown is not skipped: some types refuse that option, and all that are named beside them.
    async fn end(&mut self, ids: Vec<String>) {
        let mut batches: Vec<Vec<String>> =
            ids.chunks(MAX_TERMINATED_AT_ONCE).rev().map(<[String]>::to_vec).collect();
        let mut refusals = 0;
        while let Some(batch) = batches.pop() {
            let failure = match self.ask_to_end(&batch).await {
                Ok(()) => {
                    refusals = 0;
                    continue;
                }
                Err(failure) => failure,
            };
            // One that can't be ended keeps all that are named beside it from it. EC2 names it, as a rule.
            let (named, others): (Vec<_>, Vec<_>) =
                batch.iter().cloned().partition(|id| failure.message.contains(id.as_str()));
            if failure.is_not_found() && (!named.is_empty() || batch.len() == 1) {
                let unknown = if named.is_empty() { batch } else { named };
                self.fates.extend(unknown.into_iter().map(|id| (id, Fate::Unknown)));
                batches.extend((!others.is_empty()).then_some(others));
                continue;
            }
            if batch.len() == 1 {
                self.refused(&batch[0], failure).await;
                continue;
            }
            let denied = failure.kind == ProviderErrorKind::Unauthorized;
            refusals = if named.is_empty() || denied { refusals + 1 } else { 0 };
            let of_all = failure.is_about_caller() || failure.kind == ProviderErrorKind::Throttled;
            if of_all || refusals > MAX_REFUSALS_IN_A_ROW {
                let fate = Fate::Refused(failure.explained(), Stays::after(&failure));
                self.fates.extend(batch.into_iter().map(|id| (id, fate.clone())));
            } else if named.is_empty() || others.is_empty() {
                let (first, second) = batch.split_at(batch.len() / 2);
                batches.extend([second.to_vec(), first.to_vec()]);
            } else {
                batches.extend(named.into_iter().map(|id| vec![id]));
                batches.push(others);
            }
        }
    }

    async fn ask_to_end(&mut self, ids: &[String]) -> Result<()> {
        let region = self.region;
        let request = region.ec2.terminate_instances().set_instance_ids(Some(ids.to_vec()));
        let answer = region.call("TerminateInstances", || request.clone().send()).await?;
        region.told().extend(ids.iter().cloned());
        self.fates.extend(ids.iter().map(|id| (id.clone(), Fate::Ending)));
        for change in answer.terminating_instances() {
            let state = change.current_state().and_then(|state| state.name());
            if let (Some(id), Some(InstanceStateName::Terminated)) = (change.instance_id(), state) {
                self.fates.insert(id.to_owned(), Fate::Over);
            }
        }
        Ok(())
    }

    /// One machine was refused by itself. Its protection is lifted: it is the run's.
    async fn refused(&mut self, id: &str, failure: AwsError) {
        let (mut failure, mut lifted) = (failure, None);
        if failure.is_protection() {
            let request = self.region.ec2.modify_instance_attribute().instance_id(id);
            let request =
                request.disable_api_termination(AttributeBooleanValue::builder().value(false).build());
            let answer = self.region.call("ModifyInstanceAttribute", || request.clone().send()).await;
            lifted = Some(answer.map(drop));
            if let Some(Ok(())) = lifted {
                match self.ask_to_end(std::slice::from_ref(&id.to_owned())).await {
                    Ok(()) => return,
                    Err(again) => failure = again,
                }
            }
        }
        let mut why = failure.explained();
        if let Some(Err(not_lifted)) = lifted {
            let region = &self.region.name;
            why = format!(
                "it is protected, which `aws ec2 modify-instance-attribute --no-disable-api-termination --instance-id \
                 {id} --region {region}` ends: {why}; {}",
                not_lifted.explained()
            );
            failure = not_lifted;
        }
        self.fates.insert(id.to_owned(), Fate::Refused(why, Stays::after(&failure)));
    }

    /// The machines that are not known to be gone.
    fn left(&self) -> Vec<Left> {
        let left = self.known.iter().filter_map(|(id, known)| {
            let (why, stays) = match (self.fates.get(id), &known.listed) {
                (Some(Fate::Over), _) => return None,
                (Some(Fate::Refused(why, stays)), _) => (why.clone(), *stays),
                (_, Some(state)) => (text::line(state.as_str()), Stays::ForNow),
                (Some(Fate::Unknown), None) if !known.is_young() => return None,
                (Some(Fate::Unknown), None) => ("just made, and not shown yet".to_owned(), Stays::ForNow),
                (Some(Fate::Ending) | None, None) => ("just told to end".to_owned(), Stays::ForNow),
            };
            Some(Left::new(machine(id, &known.group, &self.region.name), why, stays))
        });
        left.collect()
    }
}

impl Known {
    fn is_young(&self) -> bool {
        self.made.is_some_and(|made| age(made) < VISIBILITY_TIMEOUT)
    }
}

/// Removes what the run has beside its machines, kind by kind. What those use that are still there has to wait.
async fn remove_resources(region: &Region, filter: &RunFilter, entries: &[Entry], in_use: bool) -> Vec<Left> {
    let mut left = Vec::new();
    for (kind, found) in inventory::resources(region, filter).await {
        let resources = match found {
            Ok(found) => found.into_iter().map(|owned| owned.resource).collect(),
            Err(failure) => {
                left.extend(unseen(region, kind, &failure, entries));
                made(entries, kind)
            }
        };
        for resource in resources {
            let what = resource.describe(&region.name);
            if resource.odd {
                let why = "neither EC2 nor tsunami gives such names, so it is for you to remove";
                left.push(Left::new(what, why, Stays::UntilMended));
            } else if let Some(busy) = &resource.busy {
                left.push(Left::new(what, busy, Stays::InUse));
            } else if in_use && kind.is_used_by_machines() {
                left.push(Left::new(what, "the machines have to go first", Stays::InUse));
            } else if let Some(failure) = remove(region, &resource).await {
                left.push(Left::failed(what, &failure));
            }
        }
    }
    left
}

/// What is to be said of a kind of resources that could not be looked at, unless the run has made none.
fn unseen(region: &Region, kind: ResourceKind, failure: &AwsError, entries: &[Entry]) -> Option<Left> {
    if failure.is_about_caller() {
        return Some(Left::failed(whatever_else(region), failure));
    }
    let what = format!("{}s of the run in {}", kind.name(), region.name);
    may_have(entries, kind).then(|| Left::failed(what, failure))
}

fn may_have(entries: &[Entry], kind: ResourceKind) -> bool {
    entries.is_empty() || entries.iter().any(|entry| may_make(entry, kind))
}

/// The ids of everything that a run has in a region beside its machines, for tags.
pub(crate) async fn taggable(region: &Region, run: &RunId, journal: &Journal) -> Result<Vec<String>> {
    let entries = of_region(journal.legible().await.0, region);
    let mut ids = Vec::new();
    for (kind, found) in inventory::resources(region, &RunFilter::Run(run.clone())).await {
        match found {
            Ok(found) => {
                ids.extend(found.into_iter().map(|owned| owned.resource.id).filter(|id| !id.is_empty()))
            }
            Err(failure) if may_have(&entries, kind) => return Err(failure),
            Err(_) => {}
        }
    }
    Ok(ids)
}

fn whatever_else(region: &Region) -> String {
    format!("whatever else carries the run's tag in {}", region.name)
}

/// Whether a request may make resources of a kind. Every request of a run is in its journal.
fn may_make(Entry { request, .. }: &Entry, kind: ResourceKind) -> bool {
    match (&request.kind, kind) {
        (CreateKind::KeyPair { .. }, ResourceKind::KeyPair)
        | (CreateKind::LaunchTemplate(_), ResourceKind::LaunchTemplate)
        | (CreateKind::PlacementGroup, ResourceKind::PlacementGroup)
        | (CreateKind::SecurityGroup { .. }, ResourceKind::SecurityGroup)
        | (CreateKind::Fleet(_) | CreateKind::Instances(_), ResourceKind::Volume) => true,
        (CreateKind::Fleet(fleet) | CreateKind::Instances(fleet), ResourceKind::SpotRequest) => fleet.spot,
        _ => false,
    }
}

/// What the run is known to have made of a kind.
fn made(entries: &[Entry], kind: ResourceKind) -> Vec<Resource> {
    let made = entries.iter().filter(|entry| !entry.request.makes_instances() && may_make(entry, kind));
    let names = made.filter_map(|entry| match &entry.outcome {
        Some(Outcome::Created(names)) => names.first(),
        _ => None,
    });
    names.map(|name| Resource::new(kind, name, "")).collect()
}

/// Removes one resource. Returns why it is still there.
async fn remove(region: &Region, resource: &Resource) -> Option<AwsError> {
    let (ec2, name) = (&region.ec2, &resource.name);
    let removed: Result<()> = match resource.kind {
        ResourceKind::KeyPair => {
            let request = ec2.delete_key_pair().key_name(name);
            region.call("DeleteKeyPair", || request.clone().send()).await.map(drop)
        }
        ResourceKind::LaunchTemplate => {
            let request = ec2.delete_launch_template().launch_template_name(name);
            region.call("DeleteLaunchTemplate", || request.clone().send()).await.map(drop)
        }
        ResourceKind::SecurityGroup => {
            let request = ec2.delete_security_group().group_id(name);
            region.call("DeleteSecurityGroup", || request.clone().send()).await.map(drop)
        }
        ResourceKind::PlacementGroup => {
            let request = ec2.delete_placement_group().group_name(name);
            region.call("DeletePlacementGroup", || request.clone().send()).await.map(drop)
        }
        ResourceKind::Volume => {
            let request = ec2.delete_volume().volume_id(name);
            region.call("DeleteVolume", || request.clone().send()).await.map(drop)
        }
        ResourceKind::SpotRequest => {
            let request = ec2.cancel_spot_instance_requests().spot_instance_request_ids(name);
            region.call("CancelSpotInstanceRequests", || request.clone().send()).await.map(drop)
        }
    };
    removed.err().filter(|failure| !failure.is_not_found())
}

fn machine(id: &str, group: &str, region: &str) -> String {
    match group {
        "" => format!("machine {id} in {region}"),
        group => format!("machine {id} ({group}) in {region}"),
    }
}

/// What a run is known to have created, by its journal in `root` alone: what may remain where nobody can be asked.
/// Reads a few small files.
pub fn recorded_leftovers(root: &Path, run: &RunId, why: &str) -> Vec<Leftover> {
    let (entries, _) = Journal::of(root, run).read_legible();
    let mut names = BTreeSet::new();
    for entry in &entries {
        let region = &entry.request.region;
        let group = entry.request.tags.get(tag::GROUP).map(String::as_str).unwrap_or_default();
        match &entry.outcome {
            Some(Outcome::Created(ids)) if entry.request.makes_instances() => {
                names.extend(ids.iter().map(|id| machine(id, group, region)));
            }
            Some(Outcome::Created(_)) => {
                let kinds =
                    ResourceKind::ALL.into_iter().flat_map(|kind| made(std::slice::from_ref(entry), kind));
                names.extend(kinds.map(|resource| resource.describe(region)));
            }
            Some(Outcome::Refused(_)) => {}
            Some(Outcome::Failed(_)) | None => {
                names.insert(format!(
                    "what the request {} may have created in {region}",
                    entry.request.name()
                ));
            }
        }
    }
    names.into_iter().map(|what| Leftover::new(what, why)).collect()
}
