//! What ran where, for how much, and what it was.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{DataTable, SINGLE_MACHINES, TABLE_ROWS};
use crate::results::side_by_side::{by_number, group_of};
use crate::statistics::significant;
use crate::text::shorten;
use crate::{MachineReport, Price, SetReport};

/// What ran where, and for how much: a row for each group of each set.
pub(super) fn places(sets: &[&SetReport]) -> DataTable {
    let mut rows = Vec::new();
    let several = sets.len() > 1;
    for set in sets {
        let end = set.finished.or(set.teardown);
        for group in &set.groups {
            let machines: Vec<&MachineReport> = set
                .machines
                .iter()
                .filter(|(name, _)| group_of(name) == group.name)
                .map(|(_, machine)| machine)
                .collect();
            let mut what: Vec<&str> = machines.iter().map(|machine| machine.description.as_str()).collect();
            what.sort_unstable();
            what.dedup();
            let shown = what.iter().take(3).copied().collect::<Vec<_>>().join("; ");
            let what = if what.len() > 3 { format!("{shown}; and {} more", what.len() - 3) } else { shown };
            let hourly: Option<f64> = machines.iter().map(|machine| hourly(machine.price)).sum();
            let cost = machines.iter().map(|machine| {
                let time = end?.saturating_sub(machine.running.unwrap_or_default());
                machine.price.dollars(1, time)
            });
            let cost: Option<f64> = cost.sum();
            let dollars = |sum: Option<f64>, digits: usize| match sum {
                Some(0.0) => "nothing".to_owned(),
                Some(sum) => format!("${sum:.digits$}"),
                None => "not known".to_owned(),
            };
            let mut cells = vec![group.name.clone(), group.count.to_string(), what];
            cells.extend([dollars(hourly, 4), dollars(cost, 2)]);
            if several {
                cells.insert(0, set.set.to_string());
            }
            rows.push(cells);
        }
    }
    let mut heads = ["group", "machines", "what and where", "an hour", "cost"].map(str::to_owned).to_vec();
    if several {
        heads.insert(0, "set".to_owned());
    }
    let more = rows.len().saturating_sub(TABLE_ROWS);
    rows.truncate(TABLE_ROWS);
    DataTable { caption: "Groups of machines".to_owned(), heads, rows, more }
}

fn hourly(price: Price) -> Option<f64> {
    price.dollars(1, Duration::from_secs(3600))
}

/// The machines of a set, as people count them.
pub(super) fn numbered(set: &SetReport) -> Vec<(&String, &MachineReport)> {
    let mut machines: Vec<_> = set.machines.iter().collect();
    machines.sort_by(|a, b| by_number(a.0).cmp(&by_number(b.0)));
    machines
}

/// The machines that are to be named: all, or if they are many those of which there is something to say.
pub(super) fn machines(sets: &[&SetReport], limit: usize) -> Option<DataTable> {
    let total: usize = sets.iter().map(|set| set.machines.len()).sum();
    let mut rows = Vec::new();
    for set in sets {
        for (name, machine) in numbered(set) {
            let said = remarks(machine);
            if total > SINGLE_MACHINES && said.is_empty() {
                continue;
            }
            let canary = canaries(machine);
            let id = machine.id.as_ref().map(ToString::to_string).unwrap_or_default();
            rows.push(vec![
                name.clone(),
                if set.set == 0 { String::new() } else { set.set.to_string() },
                id,
                machine.address.clone().unwrap_or_default(),
                machine.description.clone(),
                machine.kind.image.clone().unwrap_or_default(),
                canary,
                said,
            ]);
        }
    }
    let more = rows.len().saturating_sub(limit);
    rows.truncate(limit);
    let caption = match total > SINGLE_MACHINES {
        true => format!("Machines with something to say, of {total}"),
        false => "Machines".to_owned(),
    };
    let heads =
        ["machine", "set", "id", "address", "what", "image", "canary", "remarks"].map(str::to_owned).to_vec();
    let mut table = DataTable { caption, heads, rows, more };
    table.drop_empty_columns();
    (!table.rows.is_empty()).then_some(table)
}

/// What there is to say of a machine.
pub(super) fn remarks(machine: &MachineReport) -> String {
    let mut said = machine.differences.clone();
    said.extend(machine.interrupted.iter().map(|why| format!("interrupted: {why}")));
    let replaced = machine.replaced.iter().filter_map(|replaced| replaced.id.as_ref());
    said.extend(replaced.map(|id| format!("took the place of {id}")));
    said.extend(machine.gone.map(|_| "gone before the teardown".to_owned()));
    said.join("; ")
}

/// What a machine's canaries did, the first and the last time.
fn canaries(machine: &MachineReport) -> String {
    let Some((first, last)) = machine.canaries.first().zip(machine.canaries.last()) else {
        return String::new();
    };
    let each = first.iter().take(8).map(|(name, value)| match last.get(name) {
        Some(last) if machine.canaries.len() > 1 => {
            format!("{name} {} → {}", significant(*value), significant(*last))
        }
        _ => format!("{name} {}", significant(*value)),
    });
    each.collect::<Vec<_>>().join(", ")
}

/// What is known of the machines of each group: what they have in common, and what not.
pub(super) fn hardware(sets: &[&SetReport]) -> Vec<DataTable> {
    let mut groups: BTreeMap<&str, BTreeMap<&str, BTreeMap<&str, usize>>> = BTreeMap::new();
    for (name, machine) in sets.iter().flat_map(|set| &set.machines) {
        for (fact, value) in &machine.facts {
            let values = groups.entry(group_of(name)).or_default().entry(fact).or_default();
            *values.entry(value).or_default() += 1;
        }
    }
    let tables = groups.into_iter().take(20).map(|(group, facts)| {
        let rows = facts.into_iter().take(60).map(|(fact, values)| {
            let alone = values.len() == 1;
            let mut values: Vec<_> = values.into_iter().collect();
            values.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let shown = values.iter().take(4).map(|(value, count)| match alone {
                true => shorten(value, 200).into_owned(),
                false => format!("{} ({count})", shorten(value, 80)),
            });
            let mut shown = shown.collect::<Vec<_>>().join("; ");
            if values.len() > 4 {
                shown.push_str(&format!("; and {} more", values.len() - 4));
            }
            vec![fact.to_owned(), shown]
        });
        DataTable {
            caption: format!("Machines of {group}"),
            heads: ["fact", "value (how many machines, where they differ)"].map(str::to_owned).into(),
            rows: rows.collect(),
            more: 0,
        }
    });
    tables.collect()
}
