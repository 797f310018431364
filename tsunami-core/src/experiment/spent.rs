//! What a run that is resumed has cost so far.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use crate::event::{Event, EventKind};
use crate::machine::{MachineId, RunId};
use crate::provider::Price;

/// A machine that ran.
struct Ran {
    run: RunId,
    price: Price,
    from: SystemTime,
    until: Option<SystemTime>,
}

/// What the machines of each run have cost until `now`, in US dollars, by what was told of them; `None` where a price is
/// not known. One of which no end was told counts until now, or until its lifetime was over.
pub(super) fn spent(events: &[Event], now: SystemTime) -> BTreeMap<RunId, Option<f64>> {
    // A clock may have been set back.
    let now = events.iter().map(|event| event.at).fold(now, SystemTime::max);
    let (mut current, mut deadlines) = (None, HashMap::new());
    let mut machines: HashMap<&MachineId, Ran> = HashMap::new();
    for Event { at, kind, .. } in events {
        match kind {
            // Once more where machines that were kept are used again, with the end that they have by then.
            EventKind::RunStarted { run, deadline, .. } => {
                deadlines.insert(run, *deadline);
                current = Some(run);
            }
            EventKind::Running { id, price, .. } => {
                let ran = current.map(|run| Ran { run: run.clone(), price: *price, from: *at, until: None });
                if let (None, Some(ran)) = (machines.get(id), ran) {
                    machines.insert(id, ran);
                }
            }
            EventKind::MachineGone { id, .. } => {
                machines.get_mut(id).into_iter().for_each(|ran| ran.until = Some(*at));
            }
            EventKind::TornDown { leftovers, .. } if leftovers.is_empty() => {
                let own = machines.values_mut().filter(|ran| Some(&ran.run) == current);
                own.for_each(|ran| ran.until = ran.until.or(Some(*at)));
            }
            _ => {}
        }
    }
    let mut spent = BTreeMap::new();
    for Ran { run, price, from, until } in machines.into_values() {
        let end = deadlines.get(&run).map_or(now, |deadline| now.min(*deadline));
        let cost = price.dollars(1, until.unwrap_or(end).duration_since(from).unwrap_or_default());
        let sum = spent.entry(run).or_insert(Some(0.0));
        *sum = sum.zip(cost).map(|(sum, cost)| sum + cost);
    }
    spent
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Leftover;

    #[test]
    fn a_machine_costs_until_it_is_gone_or_its_lifetime_is_over() {
        let start = SystemTime::UNIX_EPOCH;
        let hours = |hours: u64| Duration::from_secs(3600 * hours);
        let run = |nth: u32| format!("20231114-22132{nth}-abcd").parse::<RunId>().unwrap();
        let started = |nth: u32, deadline: u64| EventKind::RunStarted {
            run: run(nth),
            experiment: "x".to_owned(),
            deadline: start + hours(deadline),
            groups: Vec::new(),
        };
        let running = |id: &str, price: Price| EventKind::Running {
            machine: "node-0".to_owned(),
            id: MachineId::new(id),
            address: None,
            description: String::new(),
            kind: crate::MachineKind::default(),
            price,
        };
        let gone = |id: &str| EventKind::MachineGone { machine: "node-0".to_owned(), id: MachineId::new(id) };
        let torn_down = |leftovers: Vec<Leftover>| EventKind::TornDown { leftovers, took: Duration::ZERO };
        let dollar = Price::PerHour(1.0);
        let story = [
            (0, started(0, 10)),
            (0, running("a", dollar)),
            (0, running("b", dollar)),
            (1, gone("a")),
            (2, torn_down(Vec::new())),
            // Killed, and longer ago than its lifetime.
            (3, started(1, 5)),
            (3, running("c", dollar)),
            // Kept, and used again.
            (6, started(2, 20)),
            (6, running("d", dollar)),
            (7, started(2, 20)),
            (7, running("d", dollar)),
            (7, started(3, 20)),
            (7, running("e", Price::Unknown)),
            (8, started(4, 20)),
            (8, running("f", dollar)),
            (9, torn_down(vec![Leftover::new("f", "it stays")])),
        ];
        let events = story.map(|(at, kind)| Event::new(start + hours(at), hours(at), kind));
        let costs: Vec<_> = spent(&events, start + hours(10)).into_values().collect();
        assert_eq!(costs, [Some(3.0), Some(2.0), Some(4.0), None, Some(2.0)]);
    }
}
