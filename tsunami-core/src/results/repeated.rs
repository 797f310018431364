//! A run that another one repeats, as far as its results tell.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::ResultsError;
use super::built::read_report;
use super::side_by_side::{group_of, kinds};
use crate::condition::unlike;
use crate::limits::FACT_LIMIT;
use crate::text::shorten;
use crate::{MachineReport, Report, RunId};

/// What is called so that was there before.
const BEFORE: &str = "before";

/// What a run was that another one repeats.
#[derive(Debug)]
pub(crate) struct Repeated {
    directory: PathBuf,
    report: Report,
}

impl Repeated {
    /// Reads the results of a run.
    pub(crate) fn read(directory: &Path) -> Result<Self, ResultsError> {
        Ok(Self { directory: directory.to_owned(), report: read_report(directory)? })
    }

    /// What its directory is called, which people know, if that is an id: a run on another one's machines (`--on`) has
    /// theirs in its events. Or else the id of its first set of machines.
    pub(crate) fn run(&self) -> Option<RunId> {
        let first = self.report.earlier_sets.first().map_or(&self.report.run, |set| &set.run);
        let directory = self.directory.canonicalize().unwrap_or_else(|_| self.directory.clone());
        let name = directory.file_name().and_then(|name| name.to_str()?.parse::<RunId>().ok());
        name.filter(RunId::is_of_a_moment).or_else(|| first.clone())
    }

    /// The part of its trials that it did, if it was to do only that.
    pub(crate) fn part(&self) -> Vec<(String, String)> {
        let Some(plan) = &self.report.sweep else { return Vec::new() };
        // Resumed, it may have done more than it was to do at last.
        let mut done = self.report.trials.iter().filter_map(|trial| plan.trial(trial.planned_name()));
        if done.all(|trial| trial.is_of(&plan.only)) { plan.only.clone() } else { Vec::new() }
    }

    /// Where they are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// In what these machines differ from those that did the trials of a set, or that this isn't known, a line each.
    pub(crate) fn differences(&self, set: u32, now: &BTreeMap<String, MachineReport>) -> Vec<String> {
        let before: Vec<_> = self.machines_of(set).collect();
        let (was, is) = (kinds(before.iter().copied()), kinds(now.iter()));
        let (was_offered, is_offered) = (offered(before.iter().copied()), offered(now.iter()));
        let mut told = Vec::new();
        for group in is.keys() {
            let mut tell = |text: &str| told.push(format!("{group}: {text}"));
            match (was.get(group).filter(|known| !known.is_empty()), &is[group][..]) {
                (None, _) => tell("what its machines were is not known"),
                (_, []) => tell("what its machines are is not known"),
                (Some(was), is) => unlike(is, was, BEFORE).iter().for_each(|text| tell(text)),
            }
            let offers = was_offered.get(&**group).zip(is_offered.get(&**group));
            if let Some((was, is)) = offers.filter(|(was, is)| was != is) {
                let all = |offers: &BTreeSet<&str>| {
                    shorten(&offers.iter().copied().collect::<Vec<_>>().join(" or "), FACT_LIMIT).into_owned()
                };
                tell(&format!("offered as {}, {BEFORE} {}", all(is), all(was)));
            }
        }
        told
    }

    /// The machines on which trials of a planned set were done.
    fn machines_of(&self, set: u32) -> impl Iterator<Item = (&String, &MachineReport)> {
        let report = &self.report;
        let is_of_set = move |number: u32| {
            let Some(plan) = &report.sweep else { return true };
            let mut trials = report.trials.iter().filter(|trial| trial.set == number);
            trials.any(|trial| plan.trial(trial.planned_name()).is_some_and(|planned| planned.set == set))
        };
        let sets = report.earlier_sets.iter().map(|set| (set.set, &set.machines));
        let sets = sets.chain([(report.set, &report.machines)]);
        sets.filter(move |(number, _)| is_of_set(*number)).flat_map(|(_, machines)| machines)
    }
}

/// What the machines of each group were offered as.
fn offered<'m>(
    machines: impl Iterator<Item = (&'m String, &'m MachineReport)>,
) -> BTreeMap<&'m str, BTreeSet<&'m str>> {
    let mut groups: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, machine) in machines {
        // Machines of another run's are used as they are.
        if !machine.description.is_empty() {
            groups.entry(group_of(name)).or_default().insert(&machine.description);
        }
    }
    groups
}
