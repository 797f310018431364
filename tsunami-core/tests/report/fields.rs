//! The guide's page of fields, beside what is written.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// A kind of object: its fields, each with its type in words.
type Fields = BTreeMap<String, String>;

/// The page, and which of its fields were met.
pub(crate) struct Page {
    kinds: BTreeMap<String, Fields>,
    met: RefCell<BTreeSet<(String, String)>>,
}

impl Page {
    pub(crate) fn read(text: &str) -> Self {
        let mut kinds: BTreeMap<String, Fields> = BTreeMap::new();
        let mut inherited = Vec::new();
        let mut kind = String::new();
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix("## ").or_else(|| line.strip_prefix("### ")) {
                kind = heading.to_lowercase().replace(' ', "-").replace('.', "");
                continue;
            }
            let Some(row) = line.strip_prefix("| ").filter(|row| !row.starts_with("field ")) else {
                continue;
            };
            let cells: Vec<&str> = row.split(" | ").collect();
            let fields = kinds.entry(kind.clone()).or_default();
            match cells[0].split_once("](#") {
                Some((_, other)) => inherited.push((kind.clone(), other.trim_end_matches(')').to_owned())),
                None => fields.extend(
                    cells[0].split(", ").map(|name| (name.trim_matches('`').to_owned(), cells[1].to_owned())),
                ),
            }
        }
        for (kind, other) in inherited {
            let theirs = kinds[&other].clone();
            kinds.get_mut(&kind).unwrap().extend(theirs);
        }
        Self { kinds, met: RefCell::default() }
    }

    /// Adds what of an object is not as the page says.
    pub(crate) fn check(&self, kind: &str, at: &str, value: &Value, wrong: &mut BTreeSet<String>) {
        let Some(fields) = self.kinds.get(kind) else {
            wrong.insert(format!("the page has no {kind}"));
            return;
        };
        let Value::Object(object) = value else {
            wrong.insert(format!("{at}: {value} is no {kind}"));
            return;
        };
        for (name, value) in object {
            let at = format!("{at}.{name}");
            match fields.get(name) {
                None => drop(wrong.insert(format!("{at}: the page does not have it in {kind}"))),
                Some(form) => {
                    self.met.borrow_mut().insert((kind.to_owned(), name.clone()));
                    self.check_value(form.strip_prefix("optional ").unwrap_or(form), &at, value, wrong);
                }
            }
        }
        for (name, form) in fields {
            if !form.starts_with("optional ") && !object.contains_key(name) {
                wrong.insert(format!("{at}.{name}: it is missing and not optional"));
            }
        }
    }

    fn check_value(&self, form: &str, at: &str, value: &Value, wrong: &mut BTreeSet<String>) {
        let or_null = form.strip_prefix("null or ").or_else(|| form.strip_prefix("null, "));
        if let Some(form) = or_null {
            if !value.is_null() {
                self.check_value(form, at, value, wrong);
            }
            return;
        }
        if let Some(form) = form.strip_suffix(" by name") {
            let entries = value.as_object().into_iter().flatten();
            let form = form.strip_suffix(" list").map_or(form.to_owned(), |form| format!("list of {form}"));
            entries.for_each(|(name, value)| self.check_value(&form, &format!("{at}.{name}"), value, wrong));
            if !value.is_object() {
                wrong.insert(format!("{at}: {value} is no {form} by name"));
            }
            return;
        }
        if let Some(form) = form.strip_prefix("list of ") {
            let entries = value.as_array().into_iter().flatten();
            entries.for_each(|value| self.check_value(form, &format!("{at}[]"), value, wrong));
            if !value.is_array() {
                wrong.insert(format!("{at}: {value} is no list"));
            }
            return;
        }
        let one_of: Vec<&str> = form.split(", ").flat_map(|form| form.split(" or ")).collect();
        let fits = |form: &&str| match *form {
            "text" => value.is_string(),
            "boolean" => value.is_boolean(),
            "count" => value.is_u64(),
            "number" => value.is_number(),
            "seconds" => value.as_f64().is_some_and(|seconds| seconds >= 0.0),
            "value" => value.is_string() || value.is_number() || value.is_boolean(),
            "figures" => value.as_object().is_some_and(|figures| figures.values().all(Value::is_number)),
            "pair" => {
                value.as_array().is_some_and(|pair| pair.len() == 2 && pair.iter().all(Value::is_string))
            }
            form => value.as_str().is_some_and(|text| form == format!("`{text}`")),
        };
        let link = one_of.iter().find_map(|form| form.split_once("](#"));
        match link {
            Some((_, kind)) if value.is_object() => {
                self.check(kind.trim_end_matches(')'), at, value, wrong);
            }
            _ if one_of.iter().any(fits) => {}
            _ => drop(wrong.insert(format!("{at}: {value} is no {form}"))),
        }
    }

    /// Adds the fields of the page that nothing had.
    pub(crate) fn check_all_met(&self, wrong: &mut BTreeSet<String>) {
        let met = self.met.borrow();
        for (kind, fields) in &self.kinds {
            let unmet = fields.keys().filter(|name| !met.contains(&(kind.clone(), (*name).clone())));
            wrong.extend(unmet.map(|name| format!("nothing has {name} of {kind}")));
        }
    }
}
