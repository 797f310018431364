//! The values of a file, each checked for what it is meant to be.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use crate::limits::DURATION_LIMIT;
use crate::names::{EXPERIMENT_NAME, is_experiment_name, wrong_length};
use toml::de::{DeArray, DeInteger, DeTable, DeValue};

use super::super::hints::instead;
use super::super::keys::{COMPARE_KEYS, Key, TRIALS_KEYS, names};
use super::super::problem::likely;
use super::{
    Problem, Reader, Span, Template, TemplateRole, TemplateScope, TemplateSite, Value, suggest,
    template_problem,
};

impl Reader<'_> {
    pub(super) fn template(
        &mut self,
        value: &Value<'_>,
        role: TemplateRole,
        used: &TemplateScope,
    ) -> Option<Template> {
        let text = self.text(value)?;
        self.template_of(text, value.span(), role, used)
    }

    pub(super) fn template_of(
        &mut self,
        text: &str,
        span: Span,
        role: TemplateRole,
        used: &TemplateScope,
    ) -> Option<Template> {
        if role != TemplateRole::Value && text.trim().is_empty() {
            self.note(Problem::at(span, "this is empty"));
            return None;
        }
        match Template::new(text) {
            Ok(template) => {
                let TemplateScope { machines, used } = used.clone();
                self.placed.push(TemplateSite {
                    template: template.clone(),
                    span,
                    role,
                    file: None,
                    machines,
                    used,
                });
                Some(template)
            }
            Err(error) => {
                self.templates_are_whole = false;
                self.note(template_problem(self.source, &span, text, error));
                None
            }
        }
    }

    pub(in crate::experiment) fn name(&mut self, value: &Value<'_>) -> Option<String> {
        let name = self.text(value)?;
        if let Some(wrong) = wrong_length(name) {
            self.note(Problem::at(value.span(), wrong));
            return None;
        }
        if is_experiment_name(name) {
            return Some(name.to_owned());
        }
        let problem = Problem::at(value.span(), format!("`{name}` can't be a name"));
        self.note(problem.help(EXPERIMENT_NAME.to_owned()));
        None
    }

    /// Something that may become an argument of a program, where it must not be taken for an option.
    pub(in crate::experiment) fn host(&mut self, value: &Value<'_>) -> Option<String> {
        let text = self.text(value)?;
        let strange = |c: char| c.is_whitespace() || c.is_control();
        let wrong = if text.is_empty() {
            "this is empty"
        } else if text.contains(strange) {
            "this can't hold spaces or control characters"
        } else if text.split('@').any(|part| part.is_empty() || part.starts_with('-')) {
            "neither the user nor the host can be empty or begin with `-`"
        } else {
            return Some(text.to_owned());
        };
        self.note(Problem::at(value.span(), wrong));
        None
    }

    pub(in crate::experiment) fn duration(&mut self, value: &Value<'_>) -> Option<Duration> {
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(value, A_DURATION);
            return None;
        };
        let wrong = match humantime::parse_duration(text) {
            Ok(Duration::ZERO) => Problem::at(value.span(), "this can't be zero"),
            Ok(duration) if duration > DURATION_LIMIT => {
                Problem::at(value.span(), "this is longer than a year of 365 days")
            }
            Ok(duration) => return Some(duration),
            Err(error) => Problem::at(value.span(), format!("`{text}` is not a duration: {error}"))
                .help("write it as `90s`, `45m` or `1h30m`".to_owned()),
        };
        self.note(wrong);
        None
    }

    pub(in crate::experiment) fn boolean(&mut self, value: &Value<'_>) -> Option<bool> {
        match value.get_ref() {
            DeValue::Boolean(boolean) => Some(*boolean),
            DeValue::String(text) if self.is_rendered(value) && matches!(&**text, "true" | "false") => {
                Some(text == "true")
            }
            _ => {
                self.wrong_type(value, "true or false");
                None
            }
        }
    }

    /// An amount of US dollars.
    pub(in crate::experiment) fn dollars(&mut self, value: &Value<'_>) -> Option<f64> {
        let dollars = match value.get_ref() {
            DeValue::Float(float) => float.as_str().replace('_', "").parse::<f64>().ok(),
            DeValue::Integer(integer) => number(integer).map(f64::from),
            DeValue::String(text) if self.is_rendered(value) => text.parse::<f64>().ok(),
            _ => {
                self.wrong_type(value, "an amount of US dollars, such as 2.5");
                return None;
            }
        };
        let dollars = dollars.filter(|dollars| dollars.is_finite() && *dollars > 0.0);
        if dollars.is_none() {
            self.note(Problem::at(value.span(), "this is no amount of US dollars above zero"));
        }
        dollars
    }

    /// A file that is there.
    pub(in crate::experiment) fn file(&mut self, value: &Value<'_>) -> Option<PathBuf> {
        let (path, metadata) = self.existing(value)?;
        if metadata.is_file() {
            return Some(path);
        }
        self.note(Problem::at(value.span(), format!("`{}` is not a file", path.display())));
        None
    }

    /// A file or directory that is there.
    pub(in crate::experiment) fn existing(&mut self, value: &Value<'_>) -> Option<(PathBuf, fs::Metadata)> {
        let path = self.path(value)?;
        match fs::metadata(&path) {
            Ok(metadata) => Some((path, metadata)),
            Err(error) => {
                self.note(unreadable(value.span(), &path, &error));
                None
            }
        }
    }

    /// A file or directory that is there, or may be one day.
    pub(super) fn perhaps_existing(&mut self, value: &Value<'_>) -> Option<(PathBuf, Option<fs::Metadata>)> {
        let path = self.path(value)?;
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some((path, None)),
            _ => self.existing(value).map(|(path, metadata)| (path, Some(metadata))),
        }
    }

    pub(super) fn path(&mut self, value: &Value<'_>) -> Option<PathBuf> {
        let text = self.text(value)?;
        if text.is_empty() {
            self.note(Problem::at(value.span(), "this is empty"));
            return None;
        }
        Some(self.local(text))
    }

    /// A path on this computer.
    pub(super) fn local(&self, text: &str) -> PathBuf {
        let home = || (self.lookup_env)("HOME").map(PathBuf::from);
        match text.strip_prefix("~/").and_then(|rest| Some(home()?.join(rest))) {
            Some(path) => path,
            None => self.dir.join(text),
        }
    }

    /// A whole number, if it is one at all: `None` within if it is below zero or far too large.
    pub(in crate::experiment) fn whole_number(&self, value: &Value<'_>) -> Option<Option<u32>> {
        match value.get_ref() {
            DeValue::Integer(integer) => Some(number(integer)),
            DeValue::String(text) if self.is_rendered(value) => {
                text.trim().parse::<i64>().ok().map(|number| u32::try_from(number).ok())
            }
            _ => None,
        }
    }

    /// Whether this was a template, so that it has any type that it looks like.
    fn is_rendered(&self, value: &Value<'_>) -> bool {
        self.rendered.contains_key(&value.span().start)
    }

    pub(in crate::experiment) fn text<'t>(&mut self, value: &'t Value<'_>) -> Option<&'t str> {
        match value.get_ref() {
            DeValue::String(text) if text.contains('\0') => {
                self.note(Problem::at(
                    value.span(),
                    "this holds a NUL character, which no command can be given",
                ));
                None
            }
            DeValue::String(text) => Some(text),
            _ => {
                self.wrong_type(value, "a string");
                None
            }
        }
    }

    pub(in crate::experiment) fn table<'t>(&mut self, value: &'t Value<'t>) -> Option<&'t DeTable<'t>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong_type(value, "a table");
        }
        table
    }

    pub(in crate::experiment) fn list<'t>(&mut self, value: &'t Value<'t>) -> Option<&'t DeArray<'t>> {
        let list = value.get_ref().as_array();
        if list.is_none() {
            self.wrong_type(value, "a list");
        }
        list
    }

    /// The items of the list under a key, which may be absent.
    pub(in crate::experiment) fn list_of<T>(
        &mut self,
        table: &DeTable<'_>,
        key: &str,
        mut item: impl FnMut(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Vec<T> {
        let list = table.get(key).and_then(|value| self.list(value));
        list.into_iter().flat_map(|list| list.iter()).filter_map(|value| item(self, value)).collect()
    }

    /// One of a few words.
    pub(in crate::experiment) fn choice<T: Copy>(
        &mut self,
        value: &Value<'_>,
        key: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let text = self.text(value)?;
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*choice);
        }
        let help = suggest(text, choices.iter().map(|(word, _)| *word));
        self.note(Problem::at(value.span(), format!("`{key}` can't be \"{text}\"")).help(help));
        None
    }

    // Notes

    /// Notes a problem, unless the same was noted of other values of the parameters.
    pub(in crate::experiment) fn note(&mut self, mut problem: Problem) {
        match problem.start().and_then(|start| self.rendered.get(&start)) {
            // It was said what is wrong with it.
            Some(None) => return,
            Some(Some(text)) => problem = problem.adding(&format!(", once rendered: {:?}", excerpt(text))),
            None => {}
        }
        if let Some(seen) = &mut self.seen {
            if self.notes.is_full() || !seen.insert((problem.start(), problem.message().to_owned())) {
                return;
            }
            if let Some(values) = &self.again {
                problem = problem.adding(&format!(", where {values}"));
            }
        }
        self.notes.note(problem);
    }

    /// Notes every key but the known ones.
    pub(in crate::experiment) fn keys(&mut self, table: &DeTable<'_>, known: &[Key]) {
        self.named(table, names(known));
    }

    /// The same for keys of which only the names matter.
    pub(in crate::experiment) fn named<'k>(
        &mut self,
        table: &DeTable<'_>,
        known: impl Iterator<Item = &'k str> + Clone,
    ) {
        for (key, span, _) in entries(table) {
            if !known.clone().any(|known| known == key) {
                // It may hold one.
                self.templates_are_whole = false;
                let help = self.help_for_key(key, known.clone());
                self.note(Problem::at(span, format!("unknown key `{key}`")).help(help));
            }
        }
    }

    /// The help for a key that is none here, where these are known.
    pub(super) fn help_for_key<'k>(
        &self,
        key: &str,
        known: impl Iterator<Item = &'k str> + Clone,
    ) -> Option<String> {
        // The provider's own keys belong in its table, or in a group.
        let is_top = known.clone().any(|known| known == "group");
        let of_provider = || {
            let mut providers = self.registry.providers().filter(|_| is_top);
            providers.find_map(|provider| {
                let is_own = |keys| names(keys).any(|own| own == key);
                let name = provider.name();
                if is_own(provider.keys()) {
                    return Some(format!("it belongs in `[{name}]`, or in a group of that provider"));
                }
                let own = is_own(provider.group_keys());
                own.then(|| format!("it belongs in a group, `[group.NAME]`, with `provider = \"{name}\"`"))
            })
        };
        instead(key, known.clone())
            .or_else(of_provider)
            .or_else(|| likely(key, known.clone()))
            .or_else(|| home_of(key))
            .or_else(|| suggest(key, known))
    }

    /// The value of a key that must be there.
    pub(in crate::experiment) fn required<'t>(
        &mut self,
        table: &'t DeTable<'t>,
        key: &str,
        place: Span,
    ) -> Option<&'t Value<'t>> {
        let value = table.get(key);
        if value.is_none() {
            self.note(Problem::at(place, format!("`{key}` is missing here")));
        }
        value
    }

    /// Notes a key that, beside the others, must not be there.
    pub(in crate::experiment) fn refuse(
        &mut self,
        table: &DeTable<'_>,
        name: &str,
        message: &str,
        help: String,
    ) {
        if let Some((span, _)) = key(table, name) {
            self.note(Problem::at(span, message).help(help));
        }
    }

    pub(in crate::experiment) fn wrong_type(&mut self, value: &Value<'_>, expected: &str) {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        let plain = !matches!(value.get_ref(), DeValue::String(_) | DeValue::Array(_) | DeValue::Table(_));
        let raw = self.source.get(value.span()).unwrap_or_default();
        let is_number = matches!(value.get_ref(), DeValue::Integer(_) | DeValue::Float(_));
        let help = match value.get_ref() {
            _ if plain && expected == "a string" => Some(format!("write it as a string: \"{raw}\"")),
            _ if is_number && expected == A_DURATION => {
                Some(format!("write it with its unit: \"{raw}s\", or \"{raw}m\" for minutes"))
            }
            DeValue::String(text)
                if !expected.starts_with("a list")
                    && (text.parse::<f64>().is_ok() || text.parse::<bool>().is_ok()) =>
            {
                Some(format!("write it without quotes: {text}"))
            }
            DeValue::String(_) if expected == "true or false" => {
                Some("write `true` or `false`, without quotes".to_owned())
            }
            DeValue::String(_) if expected.starts_with("a list") => {
                Some(format!("write it in brackets: [{}]", excerpt(raw)))
            }
            _ => None,
        };
        self.note(Problem::at(value.span(), format!("expected {expected}, found {found}")).help(help));
    }
}

/// What is expected where a time is.
const A_DURATION: &str = "a duration such as \"90s\"";

/// The help for a key of a sweep's that stands in another table.
fn home_of(key: &str) -> Option<String> {
    let homes = [("[compare]", COMPARE_KEYS), ("[trials]", TRIALS_KEYS)];
    let (home, _) = homes.into_iter().find(|(_, keys)| names(keys).any(|known| known == key))?;
    Some(format!("it belongs in `{home}`"))
}

pub(in crate::experiment) fn unreadable(place: Span, path: &Path, error: &io::Error) -> Problem {
    Problem::at(place, format!("`{}` can't be read: {error}", path.display()))
}

/// A table's entries in the order of the file; the table itself is sorted by key.
pub(in crate::experiment) fn entries<'t>(table: &'t DeTable<'t>) -> Vec<(&'t str, Span, &'t Value<'t>)> {
    let mut entries: Vec<_> =
        table.iter().map(|(key, value)| (key.get_ref().as_ref(), key.span(), value)).collect();
    entries.sort_by_key(|(_, span, _)| span.start);
    entries
}

/// A key's place and value.
pub(in crate::experiment) fn key<'t>(table: &'t DeTable<'t>, name: &str) -> Option<(Span, &'t Value<'t>)> {
    table.get_key_value(name).map(|(key, value)| (key.span(), value))
}

pub(in crate::experiment) fn number(integer: &DeInteger<'_>) -> Option<u32> {
    u32::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// So much of a text as is shown.
pub(in crate::experiment) fn excerpt(text: &str) -> String {
    const EXCERPT: usize = 200;
    text.chars().take(EXCERPT).collect()
}
