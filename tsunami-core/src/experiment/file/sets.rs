//! The sets of machines of a file: one for each combination of the parameters that its groups depend on.
//!
//! A group depends on a parameter where one of its keys, its set-up, its uploads or its environment has it, or its
//! provider's table. The file is read anew for each combination, with values in place of the templates of keys.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::uploads::TemplateFile;
use super::value::entries;
use super::{Problem, Reader, Registration, SetContents, Template, Value, names, template_problem};
use crate::experiment::template::Scope;
use crate::limits::{SET_LIMIT, SETS_SOURCE_LIMIT};
use crate::trial::{Parameter, Parameters};

/// A parameter that groups depend on, and one of those that do: the group's name, or the provider's table.
#[derive(Debug)]
pub(super) struct Dependency {
    pub(super) parameter: Parameter,
    pub(super) of: String,
    /// Where the parameter stands, if not in the experiment's file: `, in line 3 of …`.
    pub(super) place: String,
}

/// What the machines of a file depend on, and all names in the templates of keys. `files` are the
/// templates that are uploaded.
pub(super) fn dependencies(
    root: &DeTable<'_>,
    provider: Option<&Arc<dyn Registration>>,
    parameters: &[Parameter],
    files: &[TemplateFile],
) -> (HashSet<String>, Vec<Dependency>) {
    let mut used = HashSet::new();
    let mut by: Vec<(String, HashSet<String>, Option<&TemplateFile>)> = Vec::new();
    for (of, value) in keys(root, provider) {
        let names = names_in(value);
        used.extend(names.iter().cloned());
        by.push((of, names, None));
    }
    let groups = root.get("group").and_then(|value| value.get_ref().as_table());
    for (name, _, value) in groups.map(entries).unwrap_or_default() {
        for part in ["setup", "upload", "env"] {
            let mut found = Vec::new();
            if let Some(value) = value.get_ref().as_table().and_then(|table| table.get(part)) {
                strings(value, &mut found);
            }
            by.extend(found.into_iter().map(|value| (format!("the group `{name}`"), names_in(value), None)));
        }
    }
    by.extend(files.iter().map(|file| (file.of.clone(), file.template.names(), Some(file))));
    let depends = parameters.iter().filter_map(|parameter| {
        let (of, _, file) = by.iter().find(|(_, names, _)| names.contains(&parameter.name))?;
        let place = file.and_then(|file| {
            let line = file.template.line_of(&parameter.name)?;
            Some(format!(", in line {line} of `{}`", file.path.display()))
        });
        Some(Dependency { parameter: parameter.clone(), of: of.clone(), place: place.unwrap_or_default() })
    });
    (used, depends.collect())
}

/// The strings with templates in them behind the keys that say what machines are to be, and to what they belong.
fn keys<'t>(root: &'t DeTable<'t>, provider: Option<&Arc<dyn Registration>>) -> Vec<(String, &'t Value<'t>)> {
    let Some(provider) = provider else { return Vec::new() };
    let mut found = Vec::new();
    if let Some(table) = root.get(provider.name()).filter(|_| !provider.keys().is_empty()) {
        strings(table, &mut found);
    }
    let of = format!("`[{}]`", provider.name());
    let mut all: Vec<_> = found.into_iter().map(|value| (of.clone(), value)).collect();
    let own = || names(provider.keys()).chain(names(provider.group_keys())).chain(["count"]);
    let groups = root.get("group").and_then(|value| value.get_ref().as_table());
    for (name, _, value) in groups.map(entries).unwrap_or_default() {
        let mut found = Vec::new();
        for (key, _, value) in value.get_ref().as_table().map(entries).unwrap_or_default() {
            if own().any(|own| own == key) {
                strings(value, &mut found);
            }
        }
        all.extend(found.into_iter().map(|value| (format!("the group `{name}`"), value)));
    }
    all
}

/// All strings that may be templates. Paths on this computer and names of variables never are.
fn strings<'t>(value: &'t Value<'t>, found: &mut Vec<&'t Value<'t>>) {
    match value.get_ref() {
        DeValue::String(text) if text.contains("{{") => found.push(value),
        DeValue::Array(list) => list.iter().for_each(|value| strings(value, found)),
        DeValue::Table(table) => {
            let values = entries(table).into_iter();
            values
                .filter(|(key, ..)| !["script", "from", "from_env"].contains(key))
                .for_each(|(_, _, value)| strings(value, found));
        }
        _ => {}
    }
}

/// The names in a template. One that is not well formed is noted elsewhere.
fn names_in(value: &Value<'_>) -> HashSet<String> {
    let template = value.get_ref().as_str().and_then(|text| Template::new(text).ok());
    template.map(|template| template.names()).unwrap_or_default()
}

/// Every combination of the parameters, the last of them changing fastest.
fn combinations(depends: &[Dependency]) -> Vec<Parameters> {
    let mut all = vec![Parameters::new()];
    for Dependency { parameter, .. } in depends {
        let with = |known: &Parameters, value| {
            let mut known = known.clone();
            known.insert(parameter.name.clone(), value);
            known
        };
        all = all
            .iter()
            .flat_map(|known| parameter.values.iter().map(move |value| with(known, value.clone())))
            .collect();
    }
    all
}

impl Reader<'_> {
    /// The machines for each combination of the parameters that they depend on.
    pub(super) fn sets(
        &mut self,
        root: &DeTable<'_>,
        provider: Option<&Arc<dyn Registration>>,
        values: &Arc<Parameters>,
        depends: &[Dependency],
    ) -> Vec<SetContents> {
        let count =
            depends.iter().map(|depends| depends.parameter.values.len()).fold(1, usize::saturating_mul);
        // It is read for each of them.
        let is_too_long = count > 1 && count.saturating_mul(self.source.len()) > SETS_SOURCE_LIMIT;
        let mut combinations = match count {
            0..=SET_LIMIT if !is_too_long => combinations(depends),
            0..=SET_LIMIT => {
                let message = format!(
                    "there would be {count} sets of machines, and the file is too long to be read for each of them"
                );
                self.note(Problem::general(message));
                Vec::new()
            }
            _ => {
                let on: Vec<_> =
                    depends.iter().map(|depends| format!("`{}`", depends.parameter.name)).collect();
                let message = format!(
                    "machines depend on {}, so that there would be {count} sets of them: {SET_LIMIT} are the most",
                    on.join(", ")
                );
                self.note(Problem::general(message));
                Vec::new()
            }
        };
        if combinations.is_empty() {
            // Whatever else is wrong shows for one of them.
            let first = |depends: &Dependency| {
                Some((depends.parameter.name.clone(), depends.parameter.values.first()?.clone()))
            };
            combinations.push(depends.iter().filter_map(first).collect());
        }
        self.seen = (combinations.len() > 1).then(HashSet::new);
        let mut sets = Vec::new();
        for parameters in combinations {
            let values_of: Vec<_> =
                parameters.iter().map(|(name, value)| format!("{name} = {value}")).collect();
            self.again = (!sets.is_empty()).then(|| values_of.join(", "));
            let mut root = root.clone();
            self.render_keys(&mut root, provider, values, &parameters);
            sets.push(self.set(&root, provider, parameters));
            self.rendered.clear();
        }
        (self.seen, self.again) = (None, None);
        sets
    }

    /// Puts values in place of the templates of keys.
    fn render_keys(
        &mut self,
        root: &mut DeTable<'_>,
        provider: Option<&Arc<dyn Registration>>,
        values: &Arc<Parameters>,
        parameters: &Parameters,
    ) {
        // No key uses the others, but whoever writes a name wrong is told of them.
        let unused = self.parameters.iter().filter(|name| !self.unread.contains(*name));
        let mut known: Parameters = unused.map(|name| (name.clone(), "".into())).collect();
        known.extend(parameters.clone());
        let scope = Scope::plain(values.clone()).with(known);
        for (_, value) in keys(root, provider) {
            let Some(text) = value.get_ref().as_str() else { continue };
            let rendered = Template::new(text).and_then(|template| template.render(&scope));
            let rendered = match rendered {
                Ok(rendered) => Some(rendered),
                Err(error) => {
                    if self.names_are_whole {
                        self.note(template_problem(self.source, &value.span(), text, error));
                    }
                    self.templates_are_whole = false;
                    None
                }
            };
            self.rendered.insert(value.span().start, rendered);
        }
        root.iter_mut().for_each(|(_, value)| replace(value, &self.rendered));
    }
}

/// Puts texts in place of strings, by where those begin.
fn replace(value: &mut Value<'_>, texts: &HashMap<usize, Option<String>>) {
    let start = value.span().start;
    match value.get_mut() {
        DeValue::String(text) => {
            if let Some(Some(rendered)) = texts.get(&start) {
                *text = Cow::Owned(rendered.clone());
            }
        }
        DeValue::Array(list) => list.iter_mut().for_each(|value| replace(value, texts)),
        DeValue::Table(table) => table.iter_mut().for_each(|(_, value)| replace(value, texts)),
        _ => {}
    }
}
