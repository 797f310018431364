//! The values of a file for those who read a part of it: providers.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::file::{Reader, value};
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

    /// Something that may become an argument of ssh, where it must not be taken for anything else.
    pub fn host(&mut self, value: Value<'_>) -> Option<String> {
        self.0.host(value.0)
    }

    /// True or false.
    pub fn boolean(&mut self, value: Value<'_>) -> Option<bool> {
        self.0.boolean(value.0)
    }

    /// A whole number above zero: of operations, or of MiB, a second.
    pub fn rate(&mut self, value: Value<'_>) -> Option<u32> {
        let DeValue::Integer(integer) = value.0.get_ref() else {
            self.0.wrong_type(value.0, "a whole number");
            return None;
        };
        let rate = value::number(integer).filter(|rate| *rate > 0);
        if rate.is_none() {
            let message = "this is no whole number above zero, or far too large";
            self.problem(&value.place(), message, None);
        }
        rate
    }

    /// A port's number.
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
        self.0.note(value::unreadable(value.0, path, error));
    }

    /// A table.
    pub fn table<'t>(&mut self, value: Value<'t>) -> Option<Table<'t>> {
        self.0.table(value.0).map(Table)
    }

    /// Notes every key of a table but these.
    pub fn keys(&mut self, table: Table<'_>, known: &[super::keys::Key]) {
        self.0.keys(table.0, known, &[]);
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
