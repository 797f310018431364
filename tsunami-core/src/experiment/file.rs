//! From TOML to an experiment, noting everything that is wrong on the way.
//!
//! The tree is walked by hand: every value keeps its place in the file, and one mistake doesn't hide the
//! next. What can't be read is noted and left out, and the walk goes on; what was read counts only if
//! nothing was noted.

mod metrics;
mod sets;
mod trials;
mod uploads;
pub(super) mod value;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::{GROUP_LIMIT, MACHINE_LIMIT, STEP_LIMIT, STEP_MACHINES_LIMIT, VARIABLE_LIMIT};
use crate::names;
use crate::plan::DEFAULT_LIFETIME;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use self::value::{entries, key, unreadable};
use super::hints::instead;
use super::keys::{FROM_ENV_KEYS, GROUP_KEYS, PER, READY_KEYS, SCRIPT_KEYS, STEP_KEYS, names, top_keys};
use super::problem::{NotedProblems, Problem, suggest};
use super::script::{Interpreter, Unusable};
use super::template::{Template, TemplateError, is_reserved};
use super::values::{Place, Table, Values};
use super::{
    Action, EnvValue, Group, MachineSet, OnError, OnInterruption, Pattern, Per, Ready, ReadyWhen, Secret,
    Setup, Step, machine_name,
};
use crate::registry::{
    Common, Connection, GroupTable, Key, Machines, MakeConnector, Registration, Registry, TableReader,
};
use crate::results::take_kept;
use crate::trial::{DEFAULT_READY_TIMEOUT, Parameters, Trials};

/// The keys of [`Common`].
const COMMON_KEYS: [&str; 2] = ["user", "on_interruption"];

type Value<'t> = Spanned<DeValue<'t>>;
type Span = Range<usize>;

/// What a file holds, so far as it could be read.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) name: String,
    /// The provider's name.
    pub(super) provider: String,
    pub(super) lifetime: Duration,
    pub(super) budget: Option<f64>,
    pub(super) connection: Connection,
    pub(super) prepare: Vec<String>,
    pub(super) trials: Trials,
    /// What templates know by name in every trial.
    pub(super) values: Arc<Parameters>,
    /// The names of parameters and of values that the file gives, with their places.
    pub(super) named: Vec<(String, Span, Named)>,
    /// The names of those whose values could not be read.
    pub(super) unread: HashSet<String>,
    /// Whether all such names are known.
    pub(super) names_are_whole: bool,
    /// The names that keys use, where their templates are for no machine.
    pub(super) used: HashSet<String>,
    /// The machines, for each combination of the parameters that they depend on; at least one.
    pub(super) sets: Vec<SetContents>,
    /// Whether every template of the file is among the sets' sites.
    pub(super) templates_are_whole: bool,
}

/// What a name in a file stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    Parameter,
    Value,
}

/// A file's machines, for some values of the parameters that they depend on.
#[derive(Debug)]
pub(super) struct SetContents {
    pub(super) machines: MachineSet,
    /// Whether every group of the file is among them.
    pub(super) groups_are_whole: bool,
    pub(super) sites: Vec<TemplateSite>,
}

/// The provider of a file, and what reads its keys, if there is one.
type Reading<'a> = Option<(&'a Arc<dyn Registration>, &'a mut (dyn TableReader + 'static))>;

/// How a group's machines are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    /// By `count`.
    Yes,
    /// By the provider's own keys.
    No,
    /// Not so that it can be told.
    Wrong,
}

/// A template, and where in the file it stands.
#[derive(Debug)]
pub(super) struct TemplateSite {
    pub(super) template: Template,
    pub(super) span: Span,
    pub(super) role: TemplateRole,
    /// The file that it is, if it isn't part of the experiment file; that is named where it stands.
    pub(super) file: Option<Arc<Path>>,
    /// The machines it is rendered for.
    pub(super) machines: Rc<Vec<String>>,
    pub(super) used: Used,
}

impl TemplateSite {
    /// What is wrong with it, at its place.
    pub(super) fn problem(&self, source: &str, error: TemplateError) -> Problem {
        let text = self.template.source();
        match &self.file {
            Some(path) => file_problem(&self.span, path, text, error),
            None => template_problem(source, &self.span, text, error),
        }
    }
}

/// When a template is rendered, which decides what it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Used {
    Setup,
    /// Once for all trials.
    Run,
    Trial,
}

/// What a template's text is used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TemplateRole {
    /// Anything at all, even nothing.
    Value,
    Command,
    Path,
    Pattern,
    /// A file, which holds what it holds.
    File,
    /// The path of a URL, and its query.
    UrlPath,
}

/// Where a template is used.
#[derive(Debug, Clone)]
struct TemplateScope {
    machines: Rc<Vec<String>>,
    used: Used,
}

/// Reads one file.
pub(super) struct Reader<'a> {
    registry: &'a Registry,
    source: &'a str,
    dir: &'a Path,
    lookup_env: &'a dyn Fn(&str) -> Option<OsString>,
    /// The values given beside the file, and what they are called.
    set: (&'a str, &'a [(String, String)]),
    /// Where an earlier run has kept the scripts, if it did.
    kept: Option<&'a Path>,
    notes: NotedProblems,
    placed: Vec<TemplateSite>,
    /// The groups met so far with their sizes, `None` where that couldn't be read.
    sizes: Vec<(String, Option<u32>)>,
    templates_are_whole: bool,
    /// Whether the provider is one that this program doesn't have, whose keys are not known.
    is_absent: bool,
    /// How many machines the steps met so far have, each counted in each of its steps.
    step_machines: usize,
    /// The place of each machine among all.
    places: HashMap<String, usize>,
    /// What belongs to the machines of all groups.
    common: Common,
    /// What the templates of keys became, by where they stand; `None` where that failed.
    rendered: HashMap<usize, Option<String>>,
    /// Where the machines are read again and again, what was noted of them, and where.
    seen: Option<HashSet<(Option<usize>, String)>>,
    /// For which values, if not for the first.
    again: Option<String>,
    /// Whether something is done on this computer before files are uploaded, which may make them.
    prepares: bool,
    /// The names of parameters.
    parameters: HashSet<String>,
    /// The names of parameters and values that could not be read.
    unread: HashSet<String>,
    /// The names of parameters that may have more values than are known.
    cut: HashSet<String>,
    /// Whether the tables of parameters and of values could be read.
    names_are_whole: bool,
    /// The names of metrics, with their steps.
    metrics: BTreeMap<String, String>,
    /// Whether these are all.
    metrics_are_whole: bool,
    /// The texts of templates that are files, or what is wrong with them.
    texts: HashMap<PathBuf, Result<Arc<str>, Problem>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        registry: &'a Registry,
        source: &'a str,
        dir: &'a Path,
        lookup_env: &'a dyn Fn(&str) -> Option<OsString>,
        set: (&'a str, &'a [(String, String)]),
    ) -> Self {
        Self {
            registry,
            source,
            dir,
            lookup_env,
            set,
            kept: None,
            notes: NotedProblems::default(),
            placed: vec![],
            sizes: vec![],
            templates_are_whole: true,
            is_absent: false,
            step_machines: 0,
            places: HashMap::new(),
            common: Common::default(),
            rendered: HashMap::new(),
            seen: None,
            again: None,
            prepares: false,
            parameters: HashSet::new(),
            unread: HashSet::new(),
            cut: HashSet::new(),
            names_are_whole: true,
            metrics: BTreeMap::new(),
            metrics_are_whole: true,
            texts: HashMap::new(),
        }
    }

    /// Takes scripts from where an earlier run has kept them, as far as they are there.
    pub(super) fn kept(self, kept: Option<&'a Path>) -> Self {
        Self { kept, ..self }
    }

    /// What was noted.
    pub(super) fn finish(self) -> NotedProblems {
        self.notes
    }

    /// Reads the file; `None` if it isn't TOML.
    pub(super) fn read(&mut self) -> Option<Contents> {
        let (root, mut errors) = DeTable::parse_recoverable(self.source);
        if !errors.is_empty() {
            // What could be recovered has holes, and complaining about those would help nobody.
            errors.sort_by_key(|error| error.span().map(|span| span.start));
            let problem = |error: &toml::de::Error| match error.span() {
                Some(span) => Problem::at(span, error.message()),
                None => Problem::general(error.message()),
            };
            // Within an array that never ends, the rest of the file is taken for its elements.
            let within = errors.iter().position(|error| error.message().contains(" array"));
            let end = errors.iter().rposition(|error| error.message().starts_with("unclosed array"));
            let (first, after) = match (within, end) {
                (Some(first), Some(end)) if first < end => (first, end + 1),
                _ => (errors.len(), errors.len()),
            };
            self.notes.extend(errors[..first].iter().map(problem));
            let help = "the array before this may lack its `]`".to_owned();
            self.notes
                .extend(errors[first..after].iter().take(1).map(|error| problem(error).help(help.clone())));
            self.notes.extend(errors[after..].iter().map(problem));
            return None;
        }
        let root = root.get_ref();
        let registry = self.registry;
        let tables: Vec<&str> =
            registry.providers().filter(|known| !known.keys().is_empty()).map(|known| known.name()).collect();
        let top_keys = top_keys(registry);
        let known = names(&top_keys).chain(tables.iter().copied());
        self.named(root, known.chain(registry.absent_names()));
        let name = self.experiment_name(root);
        let provider = self.provider(root.get("provider"));
        let lifetime =
            root.get("lifetime").and_then(|value| self.duration(value)).unwrap_or(DEFAULT_LIFETIME);
        let budget = root.get("budget").and_then(|value| self.dollars(value));
        let prepare = self.prepare(root);
        let (mut trials, mut named) = self.trials(root);
        self.parameters = named.iter().map(|(name, ..)| name.clone()).collect();
        let values = Arc::new(self.values(root, &mut named));
        for (name, span, _) in entries(root) {
            if provider.as_ref().is_some_and(|provider| provider.name() != name)
                && (tables.contains(&name) || registry.absent(name).is_some())
            {
                let help = format!("set `provider = \"{name}\"`");
                let message = format!("`[{name}]` is for the provider \"{name}\"");
                self.note(Problem::at(span, message).help(help));
            }
        }
        let connection =
            registry.connector_maker().and_then(|maker| self.connection(root, maker)).unwrap_or_default();
        let files = self.template_files(root);
        let (used, depends) = sets::dependencies(root, provider.as_ref(), &trials.parameters, &files);
        let sets = self.sets(root, provider.as_ref(), &values, &depends);
        trials.compare = self.compare(root, &trials.parameters, &depends);
        let first = sets.first().map(|set| set.machines.steps.as_slice()).unwrap_or_default();
        trials.metrics = first.iter().flat_map(metrics::plans).collect();
        Some(Contents {
            name: name.unwrap_or_default(),
            provider: provider.map(|provider| provider.name().to_owned()).unwrap_or_default(),
            lifetime,
            budget,
            connection,
            prepare,
            trials,
            values,
            named,
            unread: std::mem::take(&mut self.unread),
            names_are_whole: self.names_are_whole,
            used,
            sets,
            templates_are_whole: self.templates_are_whole,
        })
    }

    /// The machines for some values of the parameters that they depend on, of a file in which those stand in place of
    /// the templates of keys.
    fn set(
        &mut self,
        root: &DeTable<'_>,
        provider: Option<&Arc<dyn Registration>>,
        parameters: Parameters,
    ) -> SetContents {
        self.sizes.clear();
        self.metrics.clear();
        self.common = self.common(root, provider, &COMMON_KEYS);
        let mut reader = provider.map(|provider| provider.reader());
        let own = provider.filter(|provider| !provider.keys().is_empty());
        if let Some((provider, value)) = own.and_then(|own| Some((own, root.get(own.name())?)))
            && let Some(table) = self.table(value)
        {
            self.keys(table, provider.keys());
            let own: Vec<&str> = names(provider.keys()).filter(|key| COMMON_KEYS.contains(key)).collect();
            self.common = self.common(table, Some(provider), &own).or(&self.common);
            if let Some(reader) = &mut reader {
                reader.all(Table(table), &mut Values(self));
            }
        }
        let mut reading = provider.zip(reader.as_deref_mut());
        let groups = self.groups(root, &mut reading);
        self.places = self.all_machines().zip(0..).collect();
        let steps = self.steps(root);
        let resets = self.resets(root);
        let groups_are_whole =
            groups.len() == self.sizes.len() && self.sizes.iter().all(|(_, size)| size.is_some());
        if let Some(provider) = provider
            && self.notes.is_empty()
        {
            provider.check(&groups).into_iter().for_each(|wrong| self.note(Problem::general(wrong)));
        }
        let settings = reader.map(|reader| reader.settings()).unwrap_or_default();
        let machines = MachineSet { parameters, groups, steps, resets, settings };
        SetContents { machines, groups_are_whole, sites: std::mem::take(&mut self.placed) }
    }

    fn experiment_name(&mut self, root: &DeTable<'_>) -> Option<String> {
        let Some(value) = root.get("name") else {
            self.note(
                Problem::general("`name` is missing").help("begin the file with `name = \"...\"`".to_owned()),
            );
            return None;
        };
        self.name(value)
    }

    /// Who has the machines; the first of the registry if the file doesn't say.
    fn provider(&mut self, value: Option<&Value<'_>>) -> Option<Arc<dyn Registration>> {
        let registry = self.registry;
        let Some(value) = value else { return registry.providers().next().cloned() };
        let name = self.text(value)?;
        if let Some(provider) = registry.find(name) {
            return Some(provider.clone());
        }
        let absent = registry.absent(name);
        self.is_absent = absent.is_some();
        let problem = match absent {
            Some(why) => Problem::at(value.span(), why),
            None => Problem::at(value.span(), format!("`provider` can't be \"{name}\""))
                .help(suggest(name, registry.all_names())),
        };
        self.note(problem);
        None
    }

    /// What a table says of what belongs to the machines of every provider, in those of the keys that it may have.
    fn common(
        &mut self,
        table: &DeTable<'_>,
        provider: Option<&Arc<dyn Registration>>,
        keys: &[&str],
    ) -> Common {
        let [user, on_interruption] =
            COMMON_KEYS.map(|name| key(table, name).filter(|_| keys.contains(&name)));
        if let (Some((span, _)), Some(provider)) = (&user, provider)
            && !provider.has_users()
        {
            let message = format!("`user` is not for the provider \"{}\"", provider.name());
            let help = "its machines are used by whoever runs tsunami".to_owned();
            self.note(Problem::at(span.clone(), message).help(help));
        }
        let mut choice = |value| self.choice(value, "on_interruption", &OnInterruption::WORDS);
        let on_interruption = on_interruption.and_then(|(_, value)| choice(value));
        Common { user: user.and_then(|(_, value)| self.host(value)), on_interruption }
    }

    fn connection(&mut self, root: &DeTable<'_>, maker: &Arc<dyn MakeConnector>) -> Option<Connection> {
        let table = root.get(maker.name()).filter(|_| !maker.keys().is_empty())?;
        let table = self.table(table)?;
        self.keys(table, maker.keys());
        Some(maker.read(Table(table), &mut Values(self)))
    }

    // Groups

    fn groups(&mut self, root: &DeTable<'_>, reading: &mut Reading<'_>) -> Vec<Group> {
        let help = "begin one with `[group.server]`".to_owned();
        let Some(value) = root.get("group") else {
            self.note(Problem::general("there is no group of machines").help(help));
            return vec![];
        };
        let Some(table) = self.table(value) else { return vec![] };
        if table.is_empty() {
            self.note(Problem::at(value.span(), "there is no group of machines").help(help));
        }
        let entries = entries(table);
        if let Some((_, span, _)) = entries.get(GROUP_LIMIT) {
            let message = format!("an experiment has at most {GROUP_LIMIT} groups");
            self.note(Problem::at(span.clone(), message));
        }
        entries
            .into_iter()
            .take(GROUP_LIMIT)
            .filter_map(|(name, span, value)| self.group(name, span, value, reading))
            .collect()
    }

    fn group(
        &mut self,
        name: &str,
        span: Span,
        value: &Value<'_>,
        reading: &mut Reading<'_>,
    ) -> Option<Group> {
        if let Some(wrong) = names::wrong_length(name) {
            self.note(Problem::at(span.clone(), wrong));
        } else if !names::is_group_name(name) {
            let problem = Problem::at(span.clone(), format!("`{name}` can't name a group"));
            self.note(problem.help(names::GROUP_NAME.to_owned()));
        } else if is_reserved(name) {
            let message = format!("`{name}` can't name a group: it already has a meaning in templates");
            self.note(Problem::at(span.clone(), message));
        }
        // Even a group that can't be read is there to be named by a step.
        self.sizes.push((name.to_owned(), None));
        let table = self.table(value)?;
        let provider = reading.as_ref().map(|(provider, _)| *provider);
        let is_counted = self.group_keys(table, provider);
        let common = self.common(table, provider, &COMMON_KEYS).or(&self.common);
        let machines = match reading {
            Some((_, reader)) if is_counted != Counted::Wrong => {
                let group = GroupTable {
                    name,
                    place: Place(span.clone()),
                    table: Table(table),
                    common: common.clone(),
                };
                reader.group(&group, &mut Values(self))
            }
            _ => None,
        };
        let others: u32 = self.sizes.iter().filter_map(|(_, size)| *size).sum();
        let count = match is_counted {
            Counted::Yes => table.get("count").map_or(Some(NonZeroU32::MIN), |value| self.count(value)),
            Counted::No => machines.as_ref().and_then(|machines| machines.count),
            Counted::Wrong => None,
        };
        let count = count.filter(|count| {
            let fits = count.get() <= MACHINE_LIMIT - others;
            if !fits {
                let message = format!("an experiment has at most {MACHINE_LIMIT} machines");
                self.notes.note(Problem::at(span.clone(), message));
            }
            fits
        });
        let size = count.map(NonZeroU32::get);
        if let Some((_, known)) = self.sizes.last_mut() {
            *known = size;
        }
        let names = (0..size.unwrap_or(0)).map(|index| machine_name(name, index)).collect();
        let used = TemplateScope { machines: Rc::new(names), used: Used::Setup };
        let setup = table.get("setup").map(|value| self.setups(value, &used)).unwrap_or_default();
        let upload = self.list_of(table, "upload", |reader, value| reader.upload(value, &used));
        let env = self.env(table, &used);
        let Machines { spec, connect_timeout, inputs, .. } = machines?;
        let setup = self.with_kept(name, &span, setup, &inputs);
        let replace_interrupted = common.on_interruption == Some(OnInterruption::Replace);
        let (name, count) = (name.to_owned(), count?);
        Some(Group { name, count, setup, upload, env, spec, replace_interrupted, connect_timeout, inputs })
    }

    /// Notes the keys of a group that are nobody's, or another provider's, and tells how its machines are counted.
    fn group_keys(&mut self, table: &DeTable<'_>, provider: Option<&Arc<dyn Registration>>) -> Counted {
        let has = |provider: &Arc<dyn Registration>, key: &str| {
            names(provider.keys()).chain(names(provider.group_keys())).any(|own| own == key)
        };
        let mut counted = match provider {
            Some(provider) if provider.is_counted() => Counted::Yes,
            Some(_) => Counted::No,
            None => Counted::Wrong,
        };
        let registry = self.registry;
        for (key, span, _) in entries(table) {
            if key == "count" && counted == Counted::No {
                let (mut message, mut help) = ("`count` is not for this provider".to_owned(), None);
                if let Some(provider) = provider {
                    message = format!("`count` is not for the provider \"{}\"", provider.name());
                    help = provider
                        .group_keys()
                        .first()
                        .map(|own| format!("the group's `{}` are its machines", own.name));
                }
                self.note(Problem::at(span, message).help(help));
                counted = Counted::Wrong;
                continue;
            }
            if names(GROUP_KEYS).any(|own| own == key) || provider.is_some_and(|provider| has(provider, key))
            {
                continue;
            }
            match (provider, registry.providers().find(|other| has(other, key))) {
                (Some(_), Some(other)) => {
                    let mut help = format!("set `provider = \"{}\"`", other.name());
                    if !other.is_counted() {
                        help += ", or give a `count` of machines";
                        counted = Counted::Wrong;
                    }
                    let message = format!("`{key}` is for the provider \"{}\"", other.name());
                    self.note(Problem::at(span, message).help(help));
                }
                // With the right provider, these may be right.
                (None, Some(_)) => {}
                (None, None) if self.is_absent => {}
                _ => {
                    let own = provider
                        .iter()
                        .flat_map(|provider| names(provider.group_keys()).chain(names(provider.keys())));
                    let own: Vec<&str> = names(GROUP_KEYS).chain(own).collect();
                    // What people reach for may be another provider's.
                    let others = registry.providers().flat_map(|other| names(other.keys()));
                    let all: Vec<&str> = own.iter().copied().chain(others).collect();
                    let help = instead(key, all.iter().copied());
                    let help = help.or_else(|| self.help_for_key(key, own.iter().copied()));
                    self.templates_are_whole = false;
                    self.note(Problem::at(span, format!("unknown key `{key}`")).help(help));
                }
            }
        }
        counted
    }

    fn count(&mut self, value: &Value<'_>) -> Option<NonZeroU32> {
        let Some(number) = self.whole_number(value) else {
            self.wrong_type(value, "a number of machines");
            return None;
        };
        let count = number.filter(|count| *count <= MACHINE_LIMIT).and_then(NonZeroU32::new);
        if count.is_none() {
            self.note(Problem::at(value.span(), format!("a group has from 1 to {MACHINE_LIMIT} machines")));
        }
        count
    }

    fn setups(&mut self, value: &Value<'_>, used: &TemplateScope) -> Vec<Setup> {
        match value.get_ref() {
            DeValue::Array(list) => list.iter().filter_map(|value| self.setup(value, used)).collect(),
            _ => self.setup(value, used).into_iter().collect(),
        }
    }

    fn setup(&mut self, value: &Value<'_>, used: &TemplateScope) -> Option<Setup> {
        match value.get_ref() {
            DeValue::String(_) => self.template(value, TemplateRole::Command, used).map(Setup::Command),
            DeValue::Table(table) => {
                self.keys(table, SCRIPT_KEYS);
                let script = self.required(table, "script", value.span())?;
                self.script(script).map(Setup::Script)
            }
            _ => {
                self.wrong_type(value, "a command, `{ script = \"...\" }`, or a list of those");
                None
            }
        }
    }

    fn script(&mut self, value: &Value<'_>) -> Option<PathBuf> {
        let path = self.path(value)?;
        if self.kept.is_none() {
            self.check_script(&value.span(), &path);
        }
        Some(path)
    }

    /// Notes why a script can't be run, if so.
    fn check_script(&mut self, span: &Span, path: &Path) {
        // To read a pipe or a device might take forever.
        if path.exists() && !path.is_file() {
            self.note(Problem::at(span.clone(), format!("`{}` is not a file", path.display())));
            return;
        }
        let problem = match Interpreter::of(path) {
            Ok(_) => return,
            Err(Unusable::Wrong { message, help }) => {
                Problem::at(span.clone(), format!("`{}` {message}", path.display())).help(help.to_owned())
            }
            Err(Unusable::Unreadable(error)) => unreadable(span.clone(), path, &error),
        };
        self.note(problem);
    }

    /// A group's set-up with the scripts that an earlier run has kept.
    fn with_kept(
        &mut self,
        group: &str,
        span: &Span,
        mut setup: Vec<Setup>,
        inputs: &[(String, String)],
    ) -> Vec<Setup> {
        let Some(kept) = self.kept else { return setup };
        take_kept(kept, group, &mut setup, inputs);
        for setup in &setup {
            if let Setup::Script(script) = setup {
                self.check_script(span, script);
            }
        }
        setup
    }

    fn env(&mut self, table: &DeTable<'_>, used: &TemplateScope) -> Vec<(String, EnvValue)> {
        let Some(table) = table.get("env").and_then(|value| self.table(value)) else { return vec![] };
        let read = |(name, span, value): (&str, Span, &Value<'_>)| {
            if !names::is_variable_name(name) {
                let problem = Problem::at(span, format!("`{name}` can't name a variable"));
                self.note(problem.help(names::VARIABLE_NAME.to_owned()));
            } else if name.starts_with("TSUNAMI_") {
                let message = "variables that begin with `TSUNAMI_` are set by tsunami itself";
                self.note(Problem::at(span, message));
            }
            Some((name.to_owned(), self.env_value(value, used)?))
        };
        entries(table).into_iter().filter_map(read).collect()
    }

    fn env_value(&mut self, value: &Value<'_>, used: &TemplateScope) -> Option<EnvValue> {
        let DeValue::Table(table) = value.get_ref() else {
            return self.template(value, TemplateRole::Value, used).map(EnvValue::Text);
        };
        self.keys(table, FROM_ENV_KEYS);
        let value = self.required(table, "from_env", value.span())?;
        let variable = self.text(value)?.to_owned();
        match (self.lookup_env)(&variable) {
            Some(secret) if secret.len() > VARIABLE_LIMIT => {
                let message = format!(
                    "`{variable}` is longer than {VARIABLE_LIMIT} bytes, and no command can be given it"
                );
                self.note(Problem::at(value.span(), message));
                None
            }
            Some(secret) => Some(EnvValue::FromEnv { variable, value: Secret(secret) }),
            None => {
                let message = format!("`{variable}` is not set in the environment");
                self.note(Problem::at(value.span(), message));
                None
            }
        }
    }

    // Steps

    fn steps(&mut self, root: &DeTable<'_>) -> Vec<Step> {
        let mut names = HashMap::new();
        let mut number = 0;
        let mut before = None;
        self.list_of(root, "step", |reader, value| {
            number += 1;
            if number == STEP_LIMIT + 1 {
                let message = format!("an experiment has at most {STEP_LIMIT} steps");
                reader.note(Problem::at(value.span(), message));
            }
            if number > STEP_LIMIT {
                return None;
            }
            let step = reader.step(value, number, &mut names)?;
            match (&before, step.per) {
                (Some(name), Per::Run) => {
                    let message = format!(
                        "this step is done once for all trials, and step {name} before it in each of them"
                    );
                    let help = "put what is done once before all else, as it is done".to_owned();
                    reader.note(Problem::at(value.span(), message).help(help));
                }
                (None, Per::Trial) => before = Some(step.name.clone()),
                _ => {}
            }
            Some(step)
        })
    }

    fn step(&mut self, value: &Value<'_>, number: usize, names: &mut HashMap<String, usize>) -> Option<Step> {
        let table = self.table(value)?;
        self.keys(table, STEP_KEYS);
        let name = match table.get("name") {
            Some(value) => self.name(value),
            None => Some(number.to_string()),
        };
        if let Some(name) = &name
            && let Some(other) = names.insert(name.clone(), number)
        {
            let span = table.get("name").map_or(value.span(), Spanned::span);
            self.note(Problem::at(span, format!("step {number} has the name of step {other}, `{name}`")));
        }
        let per = table.get("per").and_then(|value| self.choice(value, "per", &PER)).unwrap_or_default();
        let on = self.required(table, "on", value.span()).map(|on| self.on(on));
        let machines = Rc::new(on.clone().unwrap_or_default());
        let used = TemplateScope { machines, used: if per == Per::Run { Used::Run } else { Used::Trial } };
        let action = self.action(table, value.span(), &used);
        let collect = self.list_of(table, "collect", |reader, value| reader.pattern(value, &used));
        let on_error =
            table.get("on_error").and_then(|value| self.choice(value, "on_error", &OnError::WORDS));
        let env = self.env(table, &used);
        let cwd = table.get("cwd").and_then(|value| self.template(value, TemplateRole::Path, &used));
        if per == Per::Run {
            for key in ["collect", "metrics"] {
                let message = format!("`{key}` is not for a step that is done once for all trials");
                self.refuse(table, key, &message, "do it in a step of each trial".to_owned());
            }
        }
        let machines = on.as_ref().map_or(0, Vec::len);
        let listed =
            table.get("collect").and_then(|value| value.get_ref().as_array()).map_or(0, |list| list.len());
        let collects = (collect.len() == listed).then_some(&*collect);
        let metrics = self.metrics(table, name.as_deref().unwrap_or_default(), machines, collects);
        Some(Step {
            name: name?,
            on: on?,
            action: action?,
            collect,
            on_error: on_error.unwrap_or_default(),
            env,
            cwd,
            per,
            metrics,
        })
    }

    /// The machines a step names, in the order of the file and each once.
    fn on(&mut self, value: &Value<'_>) -> Vec<String> {
        let targets = match value.get_ref() {
            DeValue::Array(list) => list.iter().collect(),
            _ => vec![value],
        };
        if targets.is_empty() {
            self.note(
                Problem::at(value.span(), "this names no machine").help("\"all\" is all of them".to_owned()),
            );
        }
        let mut seen = HashSet::new();
        let mut named = HashSet::new();
        for target in targets {
            if target.get_ref().as_str().is_none_or(|text| seen.insert(text)) {
                named.extend(self.target(target));
            }
        }
        self.step_machines += named.len();
        if self.step_machines > STEP_MACHINES_LIMIT {
            let message =
                format!("the steps up to here have more than {STEP_MACHINES_LIMIT} machines in all");
            self.note(Problem::at(value.span(), message));
            return vec![];
        }
        let mut named: Vec<_> = named.into_iter().collect();
        named.sort_by_key(|machine| self.places.get(machine));
        named
    }

    fn target(&mut self, value: &Value<'_>) -> Vec<String> {
        let DeValue::String(target) = value.get_ref() else {
            self.wrong_type(value, "a group, a machine, a list of them, or \"all\"");
            return vec![];
        };
        if target == "all" {
            return self.all_machines().collect();
        }
        if let Some((group, size)) = self.sizes.iter().find(|(group, _)| target == group) {
            return (0..size.unwrap_or(0)).map(|index| machine_name(group, index)).collect();
        }
        let group =
            target.rsplit_once('-').and_then(|(group, _)| self.sizes.iter().find(|(name, _)| name == group));
        match group {
            // The group's own problem comes first.
            Some((_, None)) => vec![],
            Some((group, Some(size)))
                if index_in(group, target)
                    .is_some_and(|index| index < *size && machine_name(group, index) == **target) =>
            {
                vec![target.to_string()]
            }
            Some((group, Some(size))) => {
                let help = match size {
                    1 => format!("`{group}` has one machine, {group}-0"),
                    _ => format!("`{group}` has the machines {group}-0 to {group}-{}", size - 1),
                };
                self.note(Problem::at(value.span(), format!("there is no machine `{target}`")).help(help));
                vec![]
            }
            None => {
                // To look for what was meant among many takes a while.
                let is_known = self.notes.is_full() || self.again.is_some();
                let likely = if is_known { None } else { self.likely_target(target) };
                let message = format!("there is no group or machine `{target}`");
                self.note(Problem::at(value.span(), message).help(likely));
                vec![]
            }
        }
    }

    fn likely_target(&self, target: &str) -> Option<String> {
        let groups = self.sizes.iter().map(|(group, _)| group.clone());
        let known: Vec<_> = groups.chain(["all".to_owned()]).chain(self.all_machines()).collect();
        suggest(target, known.iter().map(String::as_str))
    }

    fn all_machines(&self) -> impl Iterator<Item = String> {
        let sizes = self.sizes.iter();
        sizes.flat_map(|(group, size)| (0..size.unwrap_or(0)).map(move |index| machine_name(group, index)))
    }

    fn action(&mut self, table: &DeTable<'_>, step: Span, used: &TemplateScope) -> Option<Action> {
        let run = table.get("run").map(|value| self.template(value, TemplateRole::Command, used));
        let start = table.get("start").map(|value| self.template(value, TemplateRole::Command, used));
        let timeout = table.get("timeout").and_then(|value| self.duration(value));
        let ready = table.get("ready").and_then(|value| self.ready(value, used));
        match (run, start) {
            (Some(run), None) => {
                let help = "it tells when something begun with `start` has come up".to_owned();
                self.refuse(table, "ready", "`ready` is not for `run`", help);
                Some(Action::Run { command: run?, timeout })
            }
            (None, Some(start)) => {
                let help = "for the time it may take to come up, use `ready = { ..., timeout = \"...\" }`"
                    .to_owned();
                self.refuse(
                    table,
                    "timeout",
                    "`timeout` is not for `start`, which goes on until the trial ends",
                    help,
                );
                Some(Action::Start { command: start?, ready })
            }
            (Some(_), Some(_)) => {
                self.refuse(
                    table,
                    "start",
                    "a step has `run` or `start`, not both",
                    "make it two steps".to_owned(),
                );
                None
            }
            (None, None) if has_unknown(table, STEP_KEYS) => None,
            (None, None) => {
                let help = "give it a command to `run`, or to `start` in the background".to_owned();
                self.note(Problem::at(step, "this step does nothing").help(help));
                None
            }
        }
    }

    fn ready(&mut self, value: &Value<'_>, used: &TemplateScope) -> Option<Ready> {
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(value, "a table such as `{ port = 6379 }`");
            return None;
        };
        self.keys(table, READY_KEYS);
        let http = table.get("http").map(|value| (value, self.template(value, TemplateRole::UrlPath, used)));
        let port = table.get("port").map(|value| self.port(value));
        let listens = match (http, port) {
            (None, port) => port.map(|port| port.map(ReadyWhen::Port)),
            (Some((_, path)), Some(port)) => {
                Some(port.zip(path).map(|(port, path)| ReadyWhen::Http { port, path }))
            }
            (Some((value, _)), None) => {
                let help = "say where it is asked: `ready = { http = \"/\", port = 8080 }`".to_owned();
                self.note(
                    Problem::at(value.span(), "`http` needs the `port` that the server listens on")
                        .help(help),
                );
                Some(None)
            }
        };
        let command = table
            .get("command")
            .map(|value| self.template(value, TemplateRole::Command, used).map(ReadyWhen::Command));
        let log = table
            .get("log")
            .map(|value| self.template(value, TemplateRole::Command, used).map(ReadyWhen::Log));
        let timeout =
            table.get("timeout").and_then(|value| self.duration(value)).unwrap_or(DEFAULT_READY_TIMEOUT);
        let mut signs = [listens, command, log].into_iter().flatten();
        match (signs.next(), signs.next()) {
            (Some(when), None) => Some(Ready { when: when?, timeout }),
            // The one that is missing may be that which is written wrong.
            (None, _) if has_unknown(table, READY_KEYS) => None,
            _ => {
                self.note(Problem::at(
                    value.span(),
                    "`ready` has one of `port`, `http` with its `port`, `command` and `log`",
                ));
                None
            }
        }
    }

    pub(super) fn port(&mut self, value: &Value<'_>) -> Option<u16> {
        let Some(number) = self.whole_number(value) else {
            self.wrong_type(value, "a port number");
            return None;
        };
        let port = number.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
        if port.is_none() {
            self.note(Problem::at(value.span(), "a port is a number from 1 to 65535"));
        }
        port
    }

    fn pattern(&mut self, value: &Value<'_>, used: &TemplateScope) -> Option<Pattern> {
        let text = self.text(value)?;
        let (glob, optional) = match text.strip_suffix('?') {
            Some(glob) => (glob, true),
            None => (text, false),
        };
        let template = self.template_of(glob, value.span(), TemplateRole::Pattern, used)?;
        Some(Pattern { template, optional })
    }
}

/// A template's error, at its place in the file.
pub(super) fn template_problem(source: &str, span: &Span, text: &str, error: TemplateError) -> Problem {
    Problem::at(locate(source, span, text, error.range), error.message).help(error.help)
}

/// The error of a template that is a file, at its place in that.
fn file_problem(span: &Span, path: &Arc<Path>, text: &str, error: TemplateError) -> Problem {
    // A long text is one already, and no command.
    let help = error.help.filter(|_| !error.too_much);
    Problem::at(span.clone(), error.message).help(help).within(path, text, error.range)
}

/// Where part of a string (or all of it) stands in the file. A string with escapes in it is spelled otherwise
/// in the file; then the whole of it must do.
pub(super) fn locate(source: &str, span: &Span, text: &str, part: Option<Span>) -> Span {
    match (source.get(span.clone()).and_then(|raw| raw.find(text)), part) {
        (Some(at), Some(part)) => span.start + at + part.start..span.start + at + part.end,
        _ => span.clone(),
    }
}

/// Whether a table has keys beside those that are known.
fn has_unknown(table: &DeTable<'_>, known: &[Key]) -> bool {
    entries(table).iter().any(|(key, ..)| !names(known).any(|known| known == *key))
}

/// The number that a machine of the group would have by this name.
fn index_in(group: &str, machine: &str) -> Option<u32> {
    machine.strip_prefix(group)?.strip_prefix('-')?.parse().ok()
}
