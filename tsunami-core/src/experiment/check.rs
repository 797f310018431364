//! Rendering every template before there is a machine, with addresses made up for the purpose.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;

use crate::Addresses;
use crate::limits::{COMMAND_LIMIT, PROBLEM_LIMIT, SET_VALUE_LIMIT, TEMPLATE_FUEL, VARIABLE_LIMIT};
use crate::names;

use super::file::{Contents, TemplateRole, TemplateSite, template_problem};
use super::problem::{NotedProblems, Problem};
use super::template::{Rendered, Scope, is_reserved};
use super::{Group, machine_name};
use crate::trial::{MachineContext, Machines};

/// On so many machines a template is rendered in vain; what is wrong on others alone shows when that is mended.
const FAILED_MACHINES: usize = 3;

/// What it takes to render next to nothing, in the template engine's fuel.
const RENDER_FUEL: u64 = 25;

/// How much of a text is shown, in characters.
const EXCERPT: usize = 200;

/// Notes what is wrong with the templates of a file, as far as there is fuel to render them, and with the values
/// that they are given, which are called so.
pub(super) fn templates(
    source: &str,
    contents: &Contents,
    templates: &[TemplateSite],
    (called, set): (&str, &[(String, String)]),
    notes: &mut NotedProblems,
    mut fuel: u64,
) {
    notes.extend(set_values(contents, templates, called, set));
    // With a group missing or its size unknown, most of what would be found here is not the user's mistake.
    if contents.groups_are_whole {
        let machines = Machines::from(placeholders(&contents.groups));
        for placed in templates {
            notes.extend(rendered(source, placed, &machines, set, &mut fuel));
            if fuel == 0 && notes.is_empty() {
                let message = "rendering all templates for all machines takes too much work, from here on";
                notes.note(Problem::at(placed.span.clone(), message));
            }
            if fuel == 0 || notes.is_full() {
                break;
            }
        }
    }
}

/// Renders one template for each machine it is for, as far as there is fuel. A place in it is complained about once.
fn rendered(
    source: &str,
    placed: &TemplateSite,
    machines: &Machines,
    set: &[(String, String)],
    fuel: &mut u64,
) -> Vec<Problem> {
    let text = placed.template.source();
    // Plain text comes out the same on every machine.
    let enough = if placed.template.names().is_empty() { 1 } else { usize::MAX };
    let wanted = machines.all().iter().filter(|machine| placed.machines.contains(&machine.name));
    let (mut problems, mut failed) = (BTreeMap::new(), 0);
    for machine in wanted.take(enough) {
        if *fuel == 0 || problems.len() > PROBLEM_LIMIT {
            break;
        }
        let scope = match placed.in_step {
            true => Scope::step(machine, machines, "1", set),
            false => Scope::setup(machine, set),
        };
        match placed.template.check(&scope) {
            Err(errors) => {
                // What failed doesn't tell what it took.
                *fuel = fuel.saturating_sub(TEMPLATE_FUEL * placed.template.attempts() as u64);
                failed += 1;
                let enough = failed == FAILED_MACHINES || errors.iter().any(|error| error.too_much);
                for error in errors {
                    let at = error.range.as_ref().map(|range| range.start);
                    problems.entry(at).or_insert_with(|| template_problem(source, &placed.span, text, error));
                }
                if enough {
                    break;
                }
            }
            Ok(Rendered { text: rendered, work }) => {
                // The engine doesn't count that it reads the text anew each time.
                *fuel = fuel.saturating_sub(work + text.len() as u64 / 8 + RENDER_FUEL);
                if let Some(mut wrong) = wrong_with(placed.role, &rendered) {
                    if rendered != text {
                        let start: String = rendered.chars().take(EXCERPT).collect();
                        wrong = format!("{wrong}, once rendered for `{}`: {start:?}", machine.name);
                    }
                    problems.entry(None).or_insert_with(|| Problem::at(placed.span.clone(), wrong));
                }
            }
        }
    }
    problems.into_values().collect()
}

/// What is wrong with a text, given what it is for.
fn wrong_with(role: TemplateRole, text: &str) -> Option<String> {
    let limit = if role == TemplateRole::Value { VARIABLE_LIMIT } else { COMMAND_LIMIT };
    let wrong = if text.contains('\0') {
        "this holds a NUL character, which no command can be given"
    } else if text.len() > limit {
        return Some(format!(
            "this has {} bytes, and Linux takes at most {limit} in one piece: upload a file or use a script",
            text.len()
        ));
    } else if role != TemplateRole::Value && text.trim().is_empty() {
        "this is empty"
    } else if role == TemplateRole::Path && text.starts_with('~') {
        "`~` stands for nothing here: this is relative to the machine's working directory, which is its home except \
         on `hosts`"
    } else if role == TemplateRole::Pattern && text.starts_with(['/', '~']) {
        // What is collected comes home under its own name, so it must be below the working directory.
        "this isn't relative to the working directory"
    } else if role == TemplateRole::Pattern && text.split('/').any(|part| part == "..") {
        "this leaves the working directory"
    } else {
        return None;
    };
    Some(wrong.to_owned())
}

/// Values nobody could ask for, or that nobody asks for.
fn set_values(
    contents: &Contents,
    templates: &[TemplateSite],
    called: &str,
    set: &[(String, String)],
) -> Vec<Problem> {
    let used: HashSet<String> = templates.iter().flat_map(|placed| placed.template.names()).collect();
    let mut seen = HashSet::new();
    let mut problems = Vec::new();
    for (name, value) in set {
        let wrong = if !names::is_group_name(name) {
            format!("`{name}` is no name: {}", names::GROUP_NAME)
        } else if is_reserved(name) {
            format!("`{name}` already has a meaning in templates")
        } else if contents.groups.iter().any(|group| group.name == *name) {
            format!("`{name}` is a group")
        } else if !seen.insert(name) {
            format!("`{name}` is given twice")
        } else if value.len() > SET_VALUE_LIMIT {
            format!("the value is longer than {} KiB", SET_VALUE_LIMIT >> 10)
        } else if value.contains(|c: char| c.is_control() && !matches!(c, '\t' | '\n')) {
            "the value holds control characters, as no text in the file can".to_owned()
        } else if contents.templates_are_whole && !used.contains(name) {
            format!("no template uses `{name}`")
        } else {
            continue;
        };
        problems.push(Problem::general(format!("{called} {name}: {wrong}")));
    }
    problems
}

/// Machines as they may turn out: all in one network, with an address in it and one in the world.
fn placeholders(groups: &[Group]) -> Vec<MachineContext> {
    let machines = groups.iter().flat_map(|group| (0..group.count.get()).map(move |index| (group, index)));
    let facts = |(number, (group, index)): (u32, (&Group, u32))| {
        let private =
            Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits().wrapping_add(number)).to_string();
        // 198.18.0.0/15 is set aside for tests and nobody's.
        let public =
            Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 1).to_bits().wrapping_add(number)).to_string();
        MachineContext {
            name: machine_name(&group.name, index),
            group: group.name.clone(),
            index,
            ip: Some(private.clone()),
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
