//! The machines of a recorded run: which of them somebody means, and what commands on them may know.

use tsunami_core::trial::{MachineContext, Machines};
use tsunami_core::{Error as CoreError, Machine};

use crate::error::Error;

/// All machines of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a>(pub(crate) &'a [Machine]);

impl<'a> Known<'a> {
    /// The machine of this name, or of the group of this name if that has one. Without a name, the only one there is.
    pub(crate) fn one(self, name: Option<&str>) -> Result<&'a Machine, Error> {
        let named = self.0.iter().find(|machine| name.is_some_and(|name| machine.name() == name));
        if let Some(machine) = named {
            return Ok(machine);
        }
        let members: Vec<_> =
            self.0.iter().filter(|machine| name.is_none_or(|name| machine.group == name)).collect();
        match (members.as_slice(), name) {
            ([only], _) => Ok(only),
            (_, None) => Err(self.refused("say which machine")),
            ([], Some(name)) => Err(self.refused(&format!("there is no machine {name}"))),
            (_, Some(name)) => Err(self.refused(&format!("say which machine of group {name}"))),
        }
    }

    /// Fails if a group or a machine is not there.
    pub(crate) fn check(self, groups: &[String], machines: &[String]) -> Result<(), Error> {
        let group = groups.iter().find(|name| self.0.iter().all(|machine| machine.group != **name));
        let machine = machines.iter().find(|name| self.0.iter().all(|machine| machine.name() != **name));
        match group.or(machine) {
            Some(unknown) => Err(self.refused(&format!("the run has no such machine or group: {unknown}"))),
            None => Ok(()),
        }
    }

    fn refused(self, why: &str) -> Error {
        Error::Exec(CoreError::other(format!("{why}; the run has {}", self.in_words())))
    }

    /// Their names.
    pub(crate) fn in_words(self) -> String {
        match self.0 {
            [] => "no machines".to_owned(),
            machines => names(machines.iter().map(|machine| (machine.group.as_str(), machine.index))),
        }
    }
}

/// Names of machines, by group and index: `a-0, b-0, b-1, b-4 to b-9`.
pub(crate) fn names<'a>(machines: impl IntoIterator<Item = (&'a str, u32)>) -> String {
    let mut machines: Vec<_> = machines.into_iter().collect();
    machines.sort_unstable();
    let follows = |a: &(&str, u32), b: &(&str, u32)| a.0 == b.0 && a.1.checked_add(1) == Some(b.1);
    let ranges = machines.chunk_by(follows).flat_map(|range| match range {
        [(group, first), _, .., (_, last)] => vec![format!("{group}-{first} to {group}-{last}")],
        few => few.iter().map(|(group, index)| format!("{group}-{index}")).collect(),
    });
    ranges.collect::<Vec<_>>().join(", ")
}

/// What commands on each of some machines find in their environment.
#[derive(Debug)]
pub(crate) struct Facts(Machines);

impl Facts {
    pub(crate) fn of(machines: &[Machine]) -> Self {
        Self(machines.iter().map(MachineContext::of_machine).collect::<Vec<_>>().into())
    }

    pub(crate) fn of_machine(&self, machine: &Machine) -> Vec<(String, String)> {
        let machine = MachineContext::of_machine(machine);
        let mut facts = machine.variables(&self.0, None);
        facts.extend(machine.address_variables(&self.0));
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tsunami_core::{MachineId, MachineState};

    #[test]
    fn many_machines_are_named_in_a_line() {
        let all = [("b", 10), ("a", 0), ("b", 1), ("b", 0), ("b", 2), ("c", 3), ("c", 4), ("b", u32::MAX)];
        let named = "a-0, b-0 to b-2, b-10, b-4294967295, c-3, c-4";
        assert_eq!(names(all), named);
        let run: tsunami_core::RunId = "20231114-221320-abcd".parse().unwrap();
        let machine = |(group, index): (&str, u32)| {
            Machine::new(MachineId::new("i-1"), run.clone(), group, index, MachineState::Running)
        };
        let machines = all.map(machine);
        let known = Known(&machines);
        assert_eq!(known.one(Some("a")).unwrap().name(), "a-0");
        assert_eq!(known.one(Some("b-2")).unwrap().name(), "b-2");
        for (name, why) in [
            (None, "say which machine"),
            (Some("b"), "say which machine of group b"),
            (Some("d"), "there is no machine d"),
        ] {
            assert_eq!(known.one(name).unwrap_err().to_string(), format!("{why}; the run has {named}"));
        }
        known.check(&["a".to_owned()], &["c-4".to_owned()]).unwrap();
        known.check(&[], &["a".to_owned()]).unwrap_err();
    }
}
