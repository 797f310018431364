//! Rendering every template before there is a machine, with addresses made up for the purpose.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::Addresses;
use crate::limits::{COMMAND_LIMIT, PROBLEM_LIMIT, SET_VALUE_LIMIT, TEMPLATE_FUEL, VARIABLE_LIMIT};
use crate::names;

use super::file::value::excerpt;
use super::file::{Contents, Named, TemplateRole, TemplateSite, Used, template_problem};
use super::problem::{NotedProblems, Problem};
use super::template::{Rendered, Scope, is_reserved};
use super::{Group, machine_name};
use crate::trial::{MachineContext, Machines, Parameter, Parameters};

/// On so many machines a template is rendered in vain; what is wrong on others alone shows when that is mended.
const FAILED_MACHINES: usize = 3;

/// What it takes to render next to nothing, in the template engine's fuel.
const RENDER_FUEL: u64 = 25;

/// Notes what is wrong with the templates of a file, as far as there is fuel to render them, and with the values that
/// are given beside it.
pub(super) fn templates(
    source: &str,
    contents: &Contents,
    (called, set): (&str, &[(String, String)]),
    notes: &mut NotedProblems,
    mut fuel: u64,
) {
    let used = contents.templates_are_whole.then(|| used(contents));
    notes.extend(set_values(contents, used.as_ref(), called, set));
    notes.extend(used.iter().flat_map(|used| unused(contents, used)));
    let mut seen = Vec::new();
    // With a group missing or its size unknown, most of what would be found here is not the user's mistake.
    for set in contents.sets.iter().filter(|set| set.groups_are_whole) {
        let machines = Machines::from(placeholders(&set.machines.groups));
        for placed in &set.sites {
            for problem in rendered(source, placed, &machines, contents, &set.machines.parameters, &mut fuel)
            {
                if !notes.is_full() && !seen.contains(&problem) {
                    seen.push(problem.clone());
                    notes.note(problem);
                }
            }
            if fuel == 0 && notes.is_empty() {
                let message =
                    "rendering all templates for all machines and trials takes too much work, from here on";
                notes.note(Problem::at(placed.span.clone(), message));
            }
            if fuel == 0 || notes.is_full() {
                return;
            }
        }
    }
}

/// Renders one template for each machine it is for, and for all values of the parameters that it has, as far as there is
/// fuel. A place in it is complained about once.
fn rendered(
    source: &str,
    placed: &TemplateSite,
    machines: &Machines,
    contents: &Contents,
    set: &Parameters,
    fuel: &mut u64,
) -> Vec<Problem> {
    let text = placed.template.source();
    let names = placed.template.names();
    if names.iter().any(|name| contents.unread.contains(name)) {
        return Vec::new();
    }
    // Plain text comes out the same on every machine.
    let enough = if names.is_empty() { 1 } else { usize::MAX };
    let wanted =
        || machines.all().iter().filter(|machine| placed.machines.contains(&machine.name)).take(enough);
    let parameters = contents.trials.parameters.iter();
    let free: Vec<_> = parameters
        .filter(|parameter| placed.used == Used::Trial && !set.contains_key(&parameter.name))
        .collect();
    let (mut problems, mut failed) = (BTreeMap::new(), 0);
    let mut choice = Some(vec![0; free.len()]);
    while let Some(chosen) = choice {
        let pairs = free
            .iter()
            .zip(&chosen)
            .filter_map(|(parameter, at)| Some((parameter.name.clone(), parameter.values.get(*at)?.clone())));
        let mut parameters = set.clone();
        parameters.extend(pairs);
        let parameters = Arc::new(parameters);
        for machine in wanted() {
            if *fuel == 0 || problems.len() > PROBLEM_LIMIT {
                return problems.into_values().collect();
            }
            let values = contents.values.clone();
            let scope = match placed.used {
                Used::Trial => Scope::step(machine, machines, "1", values),
                Used::Run => Scope::run(machine, machines, values),
                Used::Setup => Scope::setup(machine, values),
            };
            match placed.template.check(&scope.with(parameters.clone())) {
                Err(errors) => {
                    // What failed doesn't tell what it took.
                    *fuel = fuel.saturating_sub(TEMPLATE_FUEL * placed.template.attempts() as u64);
                    failed += 1;
                    let enough = failed == FAILED_MACHINES || errors.iter().any(|error| error.too_much);
                    for error in errors {
                        let at = error.range.as_ref().map(|range| range.start);
                        problems
                            .entry(at)
                            .or_insert_with(|| template_problem(source, &placed.span, text, error));
                    }
                    if enough {
                        return problems.into_values().collect();
                    }
                }
                Ok(Rendered { text: rendered, work }) => {
                    // The engine doesn't count that it reads the text anew each time.
                    *fuel = fuel.saturating_sub(work + text.len() as u64 / 8 + RENDER_FUEL);
                    if let Some(mut wrong) = wrong_with(placed.role, &rendered) {
                        if rendered != text {
                            let start = excerpt(&rendered);
                            wrong = format!("{wrong}, once rendered for `{}`: {start:?}", machine.name);
                        }
                        problems.entry(None).or_insert_with(|| Problem::at(placed.span.clone(), wrong));
                    }
                }
            }
        }
        choice = next(chosen, &free, &names);
    }
    problems.into_values().collect()
}

/// The next choice of values, of those parameters that a template has; the others stay as they are.
fn next(mut chosen: Vec<usize>, free: &[&Parameter], names: &HashSet<String>) -> Option<Vec<usize>> {
    for (at, parameter) in chosen.iter_mut().zip(free).rev() {
        if names.contains(&parameter.name) {
            *at += 1;
            if *at < parameter.values.len() {
                return Some(chosen);
            }
            *at = 0;
        }
    }
    None
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

/// The names in all templates.
fn used(contents: &Contents) -> HashSet<String> {
    // They are the same for all machines.
    let sites = contents.sets.first().map(|first| &*first.sites).unwrap_or_default();
    let names = sites.iter().flat_map(|placed| placed.template.names());
    names.chain(contents.used.iter().cloned()).collect()
}

/// Values given beside the file nobody could ask for, or that nobody asks for.
fn set_values(
    contents: &Contents,
    used: Option<&HashSet<String>>,
    called: &str,
    set: &[(String, String)],
) -> Vec<Problem> {
    let groups = contents.sets.first().map(|first| &*first.machines.groups).unwrap_or_default();
    let mut seen = HashSet::new();
    let mut problems = Vec::new();
    for (name, value) in set {
        let wrong = if !names::is_group_name(name) {
            format!("`{name}` is no name: {}", names::GROUP_NAME)
        } else if is_reserved(name) {
            format!("`{name}` already has a meaning in templates")
        } else if groups.iter().any(|group| group.name == *name) {
            format!("`{name}` is a group")
        } else if contents.trials.parameters.iter().any(|parameter| parameter.name == *name) {
            format!("`{name}` is a parameter")
        } else if !seen.insert(name) {
            format!("`{name}` is given twice")
        } else if value.len() > SET_VALUE_LIMIT {
            format!("the value is longer than {} KiB", SET_VALUE_LIMIT >> 10)
        } else if value.contains(|c: char| c.is_control() && !matches!(c, '\t' | '\n')) {
            "the value holds control characters, as no text in the file can".to_owned()
        } else if used.is_some_and(|used| {
            !used.contains(name) && !contents.named.iter().any(|(known, ..)| known == name)
        }) {
            format!("no template uses `{name}`")
        } else {
            continue;
        };
        problems.push(Problem::general(format!("{called} {name}: {wrong}")));
    }
    problems
}

/// The file's parameters and values that nobody asks for.
fn unused<'c>(contents: &'c Contents, used: &'c HashSet<String>) -> impl Iterator<Item = Problem> + 'c {
    let unused =
        contents.named.iter().filter(|(name, ..)| !used.contains(name) && names::is_group_name(name));
    unused.map(|(name, span, named)| {
        let help = "so all of its trials are the same; if they are to be, name it in a command's comment";
        let help = (*named == Named::Parameter).then(|| help.to_owned());
        Problem::at(span.clone(), format!("no template uses `{name}`")).help(help)
    })
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
