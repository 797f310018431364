//! What commands and templates may know of the machines of a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::Host;
use crate::limits::VARIABLE_LIMIT;
use crate::machine::{Addresses, Machine};

/// What is known about one machine of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MachineContext {
    /// Its name, as `client-0`.
    pub name: String,
    /// The group it belongs to.
    pub group: String,
    /// Its number within the group, from zero.
    pub index: u32,
    /// The address by which it reaches itself: the private one if it has any, else the public one.
    pub ip: Option<String>,
    /// The addresses by which others reach it.
    pub addresses: Addresses,
    /// The run it belongs to.
    pub run_id: String,
}

/// The machines of a run, by group. Cheap to clone, so that a scope can be made for each of a thousand.
#[derive(Debug, Clone)]
pub struct Machines {
    machines: Arc<[MachineContext]>,
    /// Where each group's machines are in `machines`.
    groups: Arc<BTreeMap<String, Vec<usize>>>,
}

impl Machines {
    /// All machines, in order.
    pub fn all(&self) -> &[MachineContext] {
        &self.machines
    }

    /// Where in [`all`](Self::all) the machines of a group are.
    pub fn group(&self, name: &str) -> Option<&[usize]> {
        self.groups.get(name).map(Vec::as_slice)
    }

    /// The names of the groups that have machines.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }
}

impl From<Vec<MachineContext>> for Machines {
    fn from(machines: Vec<MachineContext>) -> Self {
        let mut groups = BTreeMap::<_, Vec<_>>::new();
        for (at, machine) in machines.iter().enumerate() {
            groups.entry(machine.group.clone()).or_default().push(at);
        }
        Self { machines: machines.into(), groups: Arc::new(groups) }
    }
}

impl MachineContext {
    /// What a run knows of its machine.
    pub fn of(host: &Host) -> Self {
        Self::of_machine(host.machine())
    }

    /// What is recorded of a machine.
    pub fn of_machine(machine: &Machine) -> Self {
        Self {
            name: machine.name(),
            group: machine.group.clone(),
            index: machine.index,
            ip: machine.addresses.internal().map(str::to_owned),
            addresses: machine.addresses.clone(),
            run_id: machine.run.to_string(),
        }
    }

    /// The address by which `other` reaches this machine: private within a network, public across.
    pub fn address_from<'a>(&'a self, other: &Self) -> Option<&'a str> {
        if self.name == other.name {
            return self.ip.as_deref();
        }
        self.addresses.address_from(&other.addresses)
    }

    /// The same as environment variables of a command on this machine: in set-up without a trial, in a trial with its
    /// name.
    pub fn variables(&self, all: &Machines, trial: Option<&str>) -> Vec<(String, String)> {
        let own = [
            ("TSUNAMI_NAME", self.name.clone()),
            ("TSUNAMI_GROUP", self.group.clone()),
            ("TSUNAMI_INDEX", self.index.to_string()),
            ("TSUNAMI_RUN_ID", self.run_id.clone()),
            ("TSUNAMI_IP", self.ip.clone().unwrap_or_default()),
        ];
        let mut variables: Vec<_> = own.map(|(name, value)| (name.to_owned(), value)).into();
        if let Some(trial) = trial {
            variables.push(("TSUNAMI_TRIAL".to_owned(), trial.to_owned()));
            variables.extend(self.address_variables(all));
        }
        variables
    }

    /// The addresses by which this machine reaches all others, as a variable for each group.
    pub fn address_variables(&self, all: &Machines) -> Vec<(String, String)> {
        let variables = all.groups.iter().map(|(group, members)| {
            let ips = members.iter().filter_map(|&at| all.machines[at].address_from(self));
            (format!("TSUNAMI_{}_IPS", group.to_uppercase()), ips.collect::<Vec<_>>().join(" "))
        });
        // With one that is too long no command would start at all.
        variables.filter(|(_, ips)| ips.len() <= VARIABLE_LIMIT).collect()
    }
}
