//! Rendering every template before there is a machine, with addresses made up for the purpose.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::Addresses;
use crate::limits::{COMMAND_LIMIT, PROBLEM_LIMIT, SET_VALUE_LIMIT, TEMPLATE_FUEL, VARIABLE_LIMIT};
use crate::names;

use super::file::value::excerpt;
use super::file::{Contents, Named, SetContents, TemplateRole, TemplateSite, Used};
use super::problem::{NotedProblems, Problem, likely};
use super::template::{Rendered, Scope, is_reserved};
use super::{Group, machine_name};
use crate::trial::{MachineContext, Machines, Parameter, Parameters};

/// On so many machines a template is rendered in vain; what is wrong on others alone shows when that is mended.
const FAILED_MACHINES: usize = 3;

/// So many machines and combinations of values are tried one with another; where there are more, each by itself.
const RENDERINGS: usize = 10_000;

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
    render_all(source, contents, notes, &mut fuel);
    // A name that was meant where another one is undefined is not said to be unused, too.
    let is_meant = |name: &str| notes.suggest(name);
    let mut more = set_values(contents, used.as_ref(), called, set, is_meant);
    more.extend(
        used.iter()
            .flat_map(|used| unused(contents, used))
            .filter_map(|(name, problem)| (!is_meant(name)).then_some(problem)),
    );
    notes.extend(more);
}

/// Notes what is wrong with the templates of a file, as far as there is fuel to render them.
fn render_all(source: &str, contents: &Contents, notes: &mut NotedProblems, fuel: &mut u64) {
    // With a group or a name missing, or a size unknown, most of what would be found here is not the user's mistake.
    let sets = || contents.sets.iter().filter(|set| set.groups_are_whole && contents.names_are_whole);
    // Where a template was complained about, once is enough.
    let mut wrong = HashSet::new();
    for set in sets() {
        let checker = Checker::new(source, contents, set);
        for site in set.sites.iter().filter(|site| !checker.is_unread(site)) {
            if wrong.contains(&site.span.start) {
                continue;
            }
            let problems = checker.on_all_machines(site, fuel);
            if !problems.is_empty() {
                wrong.insert(site.span.start);
                notes.extend(problems);
            }
            if *fuel == 0 && notes.is_empty() {
                let message = "rendering all templates for all machines takes too much work, from here on";
                notes.note(Problem::at(site.span.clone(), message));
            }
            if *fuel == 0 || notes.is_full() {
                return;
            }
        }
    }
    for set in sets() {
        let checker = Checker::new(source, contents, set);
        for site in set.sites.iter().filter(|site| !checker.is_unread(site)) {
            if *fuel == 0 || notes.is_full() {
                return;
            }
            if !wrong.contains(&site.span.start) {
                let problems = checker.with_all_values(site, fuel);
                if !problems.is_empty() {
                    wrong.insert(site.span.start);
                    notes.extend(problems);
                }
            }
        }
    }
}

/// Renders the templates of one set of machines.
struct Checker<'a> {
    source: &'a str,
    contents: &'a Contents,
    /// The parameters that the machines depend on.
    set: &'a Parameters,
    machines: Machines,
    /// By their names.
    places: HashMap<String, usize>,
}

/// What was found wrong with one template, by its place in that.
#[derive(Default)]
struct Wrong {
    problems: BTreeMap<Option<usize>, Problem>,
    /// On how many machines it failed.
    failed: usize,
    /// Whether no more is to be found, or none that anybody wants to know.
    is_enough: bool,
}

impl<'a> Checker<'a> {
    fn new(source: &'a str, contents: &'a Contents, set: &'a SetContents) -> Self {
        let machines = Machines::from(placeholders(&set.machines.groups));
        let places =
            machines.all().iter().enumerate().map(|(at, machine)| (machine.name.clone(), at)).collect();
        Self { source, contents, set: &set.machines.parameters, machines, places }
    }

    /// Whether a template has a name whose value could not be read.
    fn is_unread(&self, site: &TemplateSite) -> bool {
        let unread = &self.contents.unread;
        !unread.is_empty() && site.template.names().iter().any(|name| unread.contains(name))
    }

    /// The parameters that a template has and the machines don't depend on.
    fn free(&self, site: &TemplateSite) -> Vec<&'a Parameter> {
        let names = site.template.names();
        let parameters = self.contents.trials.parameters.iter();
        let is_free = |parameter: &&Parameter| {
            site.used == Used::Trial
                && !self.set.contains_key(&parameter.name)
                && names.contains(&parameter.name)
        };
        parameters.filter(is_free).collect()
    }

    /// The machines of a template, as many as make a difference.
    fn machines_of(&self, site: &TemplateSite) -> impl Iterator<Item = &MachineContext> {
        // Plain text comes out the same on every machine.
        let enough = if site.template.names().is_empty() { 1 } else { usize::MAX };
        let machines =
            site.machines.iter().filter_map(|name| self.machines.all().get(*self.places.get(name)?));
        // Where it can't be told which machines are meant, what it names may still be wrong.
        let any = self.machines.all().first().filter(|_| site.machines.is_empty());
        machines.chain(any).take(enough)
    }

    /// Renders a template for each machine, with the first values of all parameters, as far as there is fuel.
    fn on_all_machines(&self, site: &TemplateSite, fuel: &mut u64) -> Vec<Problem> {
        let first = self.free(site).into_iter();
        let first = first.filter_map(|free| Some((free.name.clone(), free.values.first()?.clone())));
        let parameters = Arc::new(first.chain(self.set.clone()).collect());
        let mut wrong = Wrong::default();
        for machine in self.machines_of(site) {
            self.render(site, machine, &parameters, &mut wrong, fuel);
            if wrong.is_enough {
                break;
            }
        }
        wrong.problems.into_values().collect()
    }

    /// Renders a template for all values of its parameters but the first, as far as there is fuel: for each machine, or
    /// where those would be too many, for one.
    fn with_all_values(&self, site: &TemplateSite, fuel: &mut u64) -> Vec<Problem> {
        let free = self.free(site);
        let combinations = free.iter().map(|free| free.values.len()).fold(1, usize::saturating_mul);
        let machines = match combinations.saturating_mul(site.machines.len()) {
            0..=RENDERINGS => usize::MAX,
            _ => 1,
        };
        let mut wrong = Wrong::default();
        let mut choice = next(vec![0; free.len()], &free);
        while let Some(chosen) = choice {
            let values = free.iter().zip(&chosen);
            let values =
                values.filter_map(|(free, at)| Some((free.name.clone(), free.values.get(*at)?.clone())));
            let values: Parameters = values.collect();
            let words =
                values.iter().map(|(name, value)| format!("{name} = {value}")).collect::<Vec<_>>().join(", ");
            let parameters = Arc::new(values.into_iter().chain(self.set.clone()).collect());
            let mut of_these = Wrong::default();
            for machine in self.machines_of(site).take(machines) {
                self.render(site, machine, &parameters, &mut of_these, fuel);
                if of_these.is_enough || of_these.failed > 0 {
                    break;
                }
            }
            for (at, problem) in of_these.problems {
                wrong.problems.entry(at).or_insert_with(|| problem.adding(&format!(", where {words}")));
            }
            wrong.failed += of_these.failed;
            if *fuel == 0 || wrong.failed >= FAILED_MACHINES {
                break;
            }
            choice = next(chosen, &free);
        }
        wrong.problems.into_values().collect()
    }

    fn render(
        &self,
        site: &TemplateSite,
        machine: &MachineContext,
        parameters: &Arc<Parameters>,
        wrong: &mut Wrong,
        fuel: &mut u64,
    ) {
        if *fuel == 0 || wrong.problems.len() > PROBLEM_LIMIT {
            wrong.is_enough = true;
            return;
        }
        let text = site.template.source();
        let values = self.contents.values.clone();
        let scope = match site.used {
            Used::Trial => Scope::step(machine, &self.machines, "1", values),
            Used::Run => Scope::run(machine, &self.machines, values),
            Used::Setup => Scope::setup(machine, values),
        };
        match site.template.check(&scope.with(parameters.clone())) {
            Err(errors) => {
                // What failed doesn't tell what it took.
                *fuel = fuel.saturating_sub(TEMPLATE_FUEL * site.template.attempts() as u64);
                wrong.failed += 1;
                wrong.is_enough =
                    wrong.failed == FAILED_MACHINES || errors.iter().any(|error| error.too_much);
                for error in errors {
                    let at = error.range.as_ref().map(|range| range.start);
                    let problem = || site.problem(self.source, error);
                    wrong.problems.entry(at).or_insert_with(problem);
                }
            }
            Ok(Rendered { text: rendered, work }) => {
                // The engine doesn't count that it reads the text anew each time.
                *fuel = fuel.saturating_sub(work + text.len() as u64 / 8 + RENDER_FUEL);
                if let Some(mut message) = wrong_with(site.role, &rendered) {
                    if rendered != text {
                        let start = excerpt(&rendered);
                        message = format!("{message}, once rendered for `{}`: {start:?}", machine.name);
                    }
                    wrong.problems.entry(None).or_insert_with(|| Problem::at(site.span.clone(), message));
                }
            }
        }
    }
}

/// The next choice of values, after which the last of them have come.
fn next(mut chosen: Vec<usize>, free: &[&Parameter]) -> Option<Vec<usize>> {
    for (at, parameter) in chosen.iter_mut().zip(free).rev() {
        *at += 1;
        if *at < parameter.values.len() {
            return Some(chosen);
        }
        *at = 0;
    }
    None
}

/// What is wrong with a text, given what it is for.
fn wrong_with(role: TemplateRole, text: &str) -> Option<String> {
    if role == TemplateRole::File {
        return None;
    }
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
    } else if role == TemplateRole::UrlPath && !text.starts_with('/') {
        "the path of a URL begins with `/`"
    } else if role == TemplateRole::UrlPath && !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        "the path of a URL has no spaces, and of letters only those of ASCII: others are written as `%20`"
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
    is_meant: impl Fn(&str) -> bool,
) -> Vec<Problem> {
    let groups = contents.sets.first().map(|first| &*first.machines.groups).unwrap_or_default();
    let mut seen = HashSet::new();
    let mut problems = Vec::new();
    for (name, value) in set {
        let mut help = None;
        let wrong = if !names::is_group_name(name) {
            format!("`{name}` is no name: {}", names::GROUP_NAME)
        } else if is_reserved(name) {
            format!("`{name}` already has a meaning in templates")
        } else if groups.iter().any(|group| group.name == *name) {
            format!("`{name}` is a group")
        } else if contents.trials.parameters.iter().any(|parameter| parameter.name == *name) {
            help = Some(format!(
                "`--only {name}=VALUE` does the trials with one of its values; the file's `[matrix]` lists them"
            ));
            format!("`{name}` is a parameter")
        } else if !seen.insert(name) {
            format!("`{name}` is given twice")
        } else if value.len() > SET_VALUE_LIMIT {
            format!("the value is longer than {} KiB", SET_VALUE_LIMIT >> 10)
        } else if value.contains(|c: char| c.is_control() && !matches!(c, '\t' | '\n')) {
            "the value holds control characters, as no text in the file can".to_owned()
        } else if used.is_some_and(|used| {
            !used.contains(name) && !contents.named.iter().any(|(known, ..)| known == name) && !is_meant(name)
        }) {
            let known = contents.named.iter().filter(|(_, _, named)| *named == Named::Value);
            let known = known.map(|(known, ..)| known).chain(used.into_iter().flatten());
            let known =
                known.filter(|known| !is_reserved(known) && groups.iter().all(|group| group.name != **known));
            help = likely(name, known.map(|known| &**known));
            format!("no template uses `{name}`")
        } else {
            continue;
        };
        problems.push(Problem::general(format!("{called} {name}: {wrong}")).help(help));
    }
    problems
}

/// The file's parameters and values that nobody asks for.
fn unused<'c>(contents: &'c Contents, used: &'c HashSet<String>) -> impl Iterator<Item = (&'c str, Problem)> {
    let unused =
        contents.named.iter().filter(|(name, ..)| !used.contains(name) && names::is_group_name(name));
    // What it is worth is another matter, once it has a value.
    let unused = unused.filter(|(name, ..)| !contents.unread.contains(name));
    unused.map(|(name, span, named)| {
        let help = "so all of its trials are the same; if they are to be, name it in a command's comment";
        let help = (*named == Named::Parameter).then(|| help.to_owned());
        (&**name, Problem::at(span.clone(), format!("no template uses `{name}`")).help(help))
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
