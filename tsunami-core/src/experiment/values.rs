//! The values of a file for those who read a part of it: providers.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::file::{Reader, value};
use super::keys::{Form, Key};
use super::problem::{Problem, suggest};

/// Where something stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place(pub(super) Range<usize>);

/// A value at its place. It says nothing of itself before it is read by one of the methods of [`Values`].
#[derive(Clone, Copy)]
pub struct Value<'t>(pub(super) &'t Spanned<DeValue<'t>>);

impl Value<'_> {
    /// Where it stands.
    pub fn place(self) -> Place {
        Place(self.0.span())
    }

    /// Whether it is a string, for those who take that or something else.
    pub fn is_text(self) -> bool {
        self.0.get_ref().is_str()
    }

    /// Whether it is a table.
    pub fn is_table(self) -> bool {
        self.0.get_ref().is_table()
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value")
    }
}

/// A table.
#[derive(Clone, Copy)]
pub struct Table<'t>(pub(super) &'t DeTable<'t>);

impl fmt::Debug for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Table")
    }
}

impl<'t> Table<'t> {
    /// The value of a key, if it is there.
    pub fn get(self, key: &str) -> Option<Value<'t>> {
        self.0.get(key).map(Value)
    }

    /// All keys with their places and values, in the order of the file.
    pub fn entries(self) -> impl Iterator<Item = (&'t str, Place, Value<'t>)> {
        value::entries(self.0).into_iter().map(|(key, span, value)| (key, Place(span), Value(value)))
    }
}

/// Reads values, and notes what is wrong with them. What can't be read is `None`, and noted already.
pub struct Values<'r, 'a>(pub(super) &'r mut Reader<'a>);

impl fmt::Debug for Values<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Values")
    }
}

impl Values<'_, '_> {
    /// Notes a problem, and what to do about it, if that is known.
    pub fn problem(&mut self, place: &Place, message: impl Into<String>, help: Option<String>) {
        self.0.note(Problem::at(place.0.clone(), message).help(help));
    }

    /// The help for a word that is not among those known: the nearest of them, or else all.
    pub fn suggest<'k>(&self, word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
        suggest(word, known)
    }

    /// A string.
    pub fn text<'t>(&mut self, value: Value<'t>) -> Option<&'t str> {
        self.0.text(value.0)
    }

    /// A name or id: no spaces, nothing that could be taken for something else.
    pub fn word(&mut self, value: Value<'_>) -> Option<String> {
        let text = self.text(value)?;
        if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()) {
            return Some(text.to_owned());
        }
        self.problem(&value.place(), "this can't be empty or hold spaces", None);
        None
    }

    /// A host, or a user and a host as `user@host`, or a user: something that may become an argument of a program, where
    /// it must not be taken for an option.
    pub fn host(&mut self, value: Value<'_>) -> Option<String> {
        self.0.host(value.0)
    }

    /// True or false.
    pub fn boolean(&mut self, value: Value<'_>) -> Option<bool> {
        self.0.boolean(value.0)
    }

    /// A whole number within the bounds of its key's [`Form::Integer`].
    pub fn integer(&mut self, value: Value<'_>, form: &Form) -> Option<u32> {
        let (least, most) = match form {
            Form::Integer(least, most) => (*least, *most),
            _ => (0, u32::MAX),
        };
        let Some(integer) = self.0.whole_number(value.0) else {
            self.0.wrong_type(value.0, "a whole number");
            return None;
        };
        let integer = integer.filter(|integer| (least..=most).contains(integer));
        if integer.is_none() {
            let message = match (least, most) {
                (1, u32::MAX) => "this is no whole number above zero, or far too large".to_owned(),
                _ => format!("this is no whole number from {least} to {most}"),
            };
            self.problem(&value.place(), message, None);
        }
        integer
    }

    /// The size of a disk, such as `30GiB`, in GiB.
    pub fn size(&mut self, value: Value<'_>) -> Option<u32> {
        let text = self.text(value)?;
        let number = |number: &str| number.trim().parse::<u32>().ok();
        let gib = match text.strip_suffix("TiB") {
            Some(tib) => number(tib).and_then(|tib| tib.checked_mul(1024)),
            None => text.strip_suffix("GiB").and_then(number),
        };
        let gib = gib.filter(|gib| *gib > 0);
        if gib.is_none() {
            let help = "write it as `30GiB`, or `2TiB`".to_owned();
            self.problem(&value.place(), format!("`{text}` is no size of a disk"), Some(help));
        }
        gib
    }

    /// A port's number: [`Form::PORT`].
    pub fn port(&mut self, value: Value<'_>) -> Option<u16> {
        self.0.port(value.0)
    }

    /// An amount of US dollars.
    pub fn dollars(&mut self, value: Value<'_>) -> Option<f64> {
        self.0.dollars(value.0)
    }

    /// A duration.
    pub fn duration(&mut self, value: Value<'_>) -> Option<Duration> {
        self.0.duration(value.0)
    }

    /// A file that is there.
    pub fn file(&mut self, value: Value<'_>) -> Option<PathBuf> {
        self.0.file(value.0)
    }

    /// What a file holds, if that isn't more than `limit` bytes. Says itself what can't be read; `Some(None)` is a
    /// file that is larger.
    pub fn contents(&mut self, value: Value<'_>, path: &Path, limit: u64) -> Option<Option<Vec<u8>>> {
        match super::read_at_most(path, limit) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.unreadable(value, path, &error);
                None
            }
        }
    }

    /// Notes that a file can't be read.
    fn unreadable(&mut self, value: Value<'_>, path: &Path, error: &io::Error) {
        self.0.note(value::unreadable(value.0.span(), path, error));
    }

    /// A table.
    pub fn table<'t>(&mut self, value: Value<'t>) -> Option<Table<'t>> {
        self.0.table(value.0).map(Table)
    }

    /// Notes every key of a table but these.
    pub fn keys(&mut self, table: Table<'_>, known: &[Key]) {
        self.0.keys(table.0, known);
    }

    /// A list.
    pub fn list<'t>(&mut self, value: Value<'t>) -> Option<Vec<Value<'t>>> {
        self.0.list(value.0).map(|list| list.iter().map(Value).collect())
    }

    /// One thing, or a list of at least one.
    pub fn one_or_more<T>(
        &mut self,
        value: Value<'_>,
        mut item: impl FnMut(&mut Self, Value<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let DeValue::Array(list) = value.0.get_ref() else { return item(self, value).map(|item| vec![item]) };
        if list.is_empty() {
            self.problem(&value.place(), "this list is empty", None);
            return None;
        }
        Some(list.iter().filter_map(|value| item(self, Value(value))).collect())
    }

    /// One of a few words, by which the value of `key` is known.
    pub fn choice<T: Copy>(&mut self, value: Value<'_>, key: &str, choices: &[(&str, T)]) -> Option<T> {
        self.0.choice(value.0, key, choices)
    }
}
