//! Rendering every template before there is a machine, with addresses made up for the purpose.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;

use tsunami_core::Addresses;

use super::file::{Contents, Kind, Placed, WORD, is_word, template_problem};
use super::problem::Problem;
use super::template::{Facts, Fleet, Scope, is_reserved};
use super::{Group, machine_name};

/// What is wrong with the templates of a file, and with the `--set` values they are given.
pub(super) fn templates(
    source: &str,
    contents: &Contents,
    templates: &[Placed],
    set: &[(String, String)],
) -> Vec<Problem> {
    let mut problems = set_values(contents, templates, set);
    // With a group missing or its size unknown, most of what would be found here is not the user's mistake.
    if contents.groups_are_whole {
        let fleet = Fleet::from(placeholders(&contents.groups));
        for placed in templates {
            problems.extend(rendered(source, placed, &fleet, set));
        }
    }
    problems
}

/// Renders one template for each machine it is for. A place in it is complained about once.
fn rendered(source: &str, placed: &Placed, fleet: &Fleet, set: &[(String, String)]) -> Vec<Problem> {
    let text = placed.template.source();
    // Plain text comes out the same on every machine.
    let enough = if placed.template.names().is_empty() { 1 } else { usize::MAX };
    let machines = fleet.machines().iter().filter(|machine| placed.machines.contains(&machine.name));
    let mut problems = BTreeMap::new();
    for machine in machines.take(enough) {
        let scope = match placed.in_step {
            true => Scope::step(machine, fleet, "1", set),
            false => Scope::setup(machine, set),
        };
        match placed.template.check(&scope) {
            Err(errors) => {
                for error in errors {
                    let at = error.range.as_ref().map(|range| range.start);
                    problems.entry(at).or_insert_with(|| template_problem(source, &placed.span, text, error));
                }
            }
            Ok(rendered) => {
                if let Some(mut wrong) = wrong_with(placed.kind, &rendered) {
                    if rendered != text {
                        wrong = format!("{wrong}, once rendered for `{}`: {rendered:?}", machine.name);
                    }
                    problems.entry(None).or_insert_with(|| Problem::at(placed.span.clone(), wrong));
                }
            }
        }
    }
    problems.into_values().collect()
}

/// What is wrong with a text, given what it is for.
fn wrong_with(kind: Kind, text: &str) -> Option<String> {
    let wrong = if text.contains('\0') {
        "this holds a NUL character, which no command can be given"
    } else if kind != Kind::Value && text.trim().is_empty() {
        "this is empty"
    } else if kind == Kind::Pattern && text.starts_with(['/', '~']) {
        // What is collected comes home under its own name, so it must be below the working directory.
        "this isn't relative to the working directory"
    } else if kind == Kind::Pattern && text.split('/').any(|part| part == "..") {
        "this leaves the working directory"
    } else {
        return None;
    };
    Some(wrong.to_owned())
}

/// Values nobody could ask for, or that nobody asks for.
fn set_values(contents: &Contents, templates: &[Placed], set: &[(String, String)]) -> Vec<Problem> {
    let used: HashSet<String> = templates.iter().flat_map(|placed| placed.template.names()).collect();
    let mut seen = HashSet::new();
    let mut problems = Vec::new();
    for (name, _) in set {
        let wrong = if !is_word(name) {
            format!("`{name}` is no name: {}", WORD)
        } else if is_reserved(name) {
            format!("`{name}` already has a meaning in templates")
        } else if contents.groups.iter().any(|group| group.name == *name) {
            format!("`{name}` is a group")
        } else if !seen.insert(name) {
            format!("`{name}` is given twice")
        } else if contents.templates_are_whole && !used.contains(name) {
            format!("no template uses `{name}`")
        } else {
            continue;
        };
        problems.push(Problem::general(format!("--set {name}: {wrong}")));
    }
    problems
}

/// Machines as they may turn out: all in one network, with an address in it and one in the world.
fn placeholders(groups: &[Group]) -> Vec<Facts> {
    let machines = groups.iter().flat_map(|group| (0..group.size.count()).map(move |index| (group, index)));
    let facts = |(number, (group, index)): (u32, (&Group, u32))| {
        let private =
            Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits().wrapping_add(number)).to_string();
        // 198.18.0.0/15 is set aside for tests and nobody's.
        let public =
            Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 1).to_bits().wrapping_add(number)).to_string();
        Facts {
            name: machine_name(&group.name, index),
            group: group.name.clone(),
            index,
            ip: private.clone(),
            addresses: Addresses {
                public: Some(public),
                private: Some(private),
                network: Some("placeholder".to_owned()),
            },
            run_id: "placeholder".to_owned(),
        }
    };
    (0..).zip(machines).map(facts).collect()
}
