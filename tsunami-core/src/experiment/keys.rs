//! The keys of an experiment file: each in one place, with what may stand behind it and what it means.

use super::{OnError, OnInterruption};
use crate::limits::MACHINE_LIMIT;
use crate::registry::Registry;

/// A key of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Key {
    /// The key itself.
    pub name: &'static str,
    /// What may stand behind it.
    pub form: Form,
    /// What it means, in a sentence without its end.
    pub doc: &'static str,
    /// What it is where it isn't given, in the words of the file.
    pub default: Option<&'static str>,
    /// Whether it must be given.
    pub required: bool,
}

impl Key {
    /// A key that may be left out.
    pub const fn new(name: &'static str, form: Form, doc: &'static str) -> Self {
        Self { name, form, doc, default: None, required: false }
    }

    /// Says what it is where it isn't given.
    pub const fn default(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    /// Says that it must be given.
    pub const fn required(self) -> Self {
        Self { required: true, ..self }
    }
}

/// What may stand behind a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// A string.
    Text,
    /// A string in which `{{ }}` stands for facts.
    Template,
    /// The path of a file or directory on this computer, relative to the experiment file.
    Path,
    /// `true` or `false`.
    Boolean,
    /// A whole number, from the first to the second.
    Integer(u32, u32),
    /// A number above zero.
    Number,
    /// A string such as `"1h30m"`.
    Duration,
    /// A string such as `"30GiB"`.
    Size,
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// A list.
    List(&'static Form),
    /// One, or a list of at least one.
    OneOrMore(&'static Form),
    /// A table with these keys.
    Table(&'static [Key]),
    /// A table whose keys are the user's own.
    Map(&'static Form),
    /// One of several forms.
    Either(&'static [Form]),
}

impl Form {
    /// The number of a port.
    pub const PORT: Self = Self::Integer(1, u16::MAX as u32);
}

/// The words of a choice, whose reader goes by them with what they mean: see
/// [`Values::choice`](super::values::Values::choice).
///
/// ```
/// use tsunami_core::registry::{Form, words};
///
/// const SIZES: [(&str, u32); 2] = [("small", 1), ("large", 8)];
/// const FORM: Form = Form::Choice(&words(&SIZES));
/// assert_eq!(FORM, Form::Choice(&["small", "large"]));
/// ```
pub const fn words<T, const N: usize>(choices: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut words = [""; N];
    let mut at = 0;
    while at < N {
        words[at] = choices[at].0;
        at += 1;
    }
    words
}

/// The names of some keys.
pub(crate) fn names(keys: &[Key]) -> impl Iterator<Item = &'static str> + Clone {
    keys.iter().map(|key| key.name)
}

/// The keys at the top of files whose machines come from these providers, beside the providers' own tables.
pub(super) fn top_keys(registry: &Registry) -> Vec<Key> {
    let mut keys = TOP_KEYS.to_vec();
    if let Some(maker) = registry.connector_maker().filter(|maker| !maker.keys().is_empty()) {
        let place = keys.iter().position(|key| key.name == "group").unwrap_or(keys.len());
        keys.insert(
            place,
            Key::new(maker.name(), Form::Table(maker.keys()), "how machines are connected to"),
        );
    }
    keys
}

/// The keys at the top of every file.
pub(crate) const TOP_KEYS: &[Key] = &[
    Key::new("name", Form::Text, "what the experiment is called").required(),
    Key::new("provider", Form::Text, "where its machines come from").default("\"local\""),
    Key::new("lifetime", Form::Duration, "when every machine ends, whatever happens").default("\"1h\""),
    Key::new("budget", Form::Number, "the most that the machines may cost, in US dollars"),
    Key::new("on_interruption", ON_INTERRUPTION, ON_INTERRUPTION_DOC).default("\"fail\""),
    Key::new("user", Form::Text, "who to log in as, on all machines"),
    Key::new("group", Form::Map(&Form::Table(GROUP_KEYS)), "the groups of machines, by their names")
        .required(),
    Key::new("step", Form::List(&Form::Table(STEP_KEYS)), "what is done on them, in order"),
];

const ON_INTERRUPTION: Form = Form::Choice(&words(&OnInterruption::WORDS));
const ON_INTERRUPTION_DOC: &str = "what happens when the provider takes a machine back: the run fails, or another one is set up in its place";

/// The keys of a group, beside the provider's own.
pub(super) const GROUP_KEYS: &[Key] = &[
    Key::new("count", Form::Integer(1, MACHINE_LIMIT), "how many machines it has").default("1"),
    Key::new("setup", Form::Either(&[SETUP, Form::List(&SETUP)]), "what prepares each of them, in order"),
    Key::new(
        "upload",
        Form::List(&Form::Table(UPLOAD_KEYS)),
        "what is brought to each of them, before set-up",
    ),
    Key::new("env", ENV, "the environment of everything that runs on them"),
    Key::new("on_interruption", ON_INTERRUPTION, ON_INTERRUPTION_DOC),
    Key::new("user", Form::Text, "who to log in as"),
];

const SETUP: Form = Form::Either(&[Form::Template, Form::Table(SCRIPT_KEYS)]);
const ENV: Form = Form::Map(&Form::Either(&[Form::Template, Form::Table(FROM_ENV_KEYS)]));

/// The keys of a script in `setup`.
pub(super) const SCRIPT_KEYS: &[Key] =
    &[Key::new("script", Form::Path, "a file to be run under its `#!` line; never a template").required()];

/// The keys of an upload.
pub(super) const UPLOAD_KEYS: &[Key] = &[
    Key::new("from", Form::Path, "the file or directory on this computer").required(),
    Key::new("to", Form::Template, "where it goes, relative to the machine's working directory").required(),
];

/// The keys of a variable that is taken from the environment.
pub(super) const FROM_ENV_KEYS: &[Key] =
    &[Key::new("from_env", Form::Text, "the variable of tsunami's own environment, whose value is secret")
        .required()];

/// The keys of a step.
pub(super) const STEP_KEYS: &[Key] = &[
    Key::new("name", Form::Text, "its name").default("its number, from 1"),
    Key::new(
        "on",
        Form::Either(&[Form::Text, Form::List(&Form::Text)]),
        "a group, a machine, a list of those, or \"all\"",
    )
    .required(),
    Key::new("run", Form::Template, "a command to be run to its end"),
    Key::new("start", Form::Template, "a command that goes on until the trial ends"),
    Key::new("ready", Form::Table(READY_KEYS), "how to tell that what was started has come up"),
    Key::new("timeout", Form::Duration, "how long `run` may take"),
    Key::new(
        "collect",
        Form::List(&Form::Template),
        "globs of what is brought home; one that ends in `?` may match nothing",
    ),
    Key::new("on_error", Form::Choice(&words(&OnError::WORDS)), "what happens when it fails")
        .default("\"fail\""),
    Key::new("env", ENV, "its environment, on top of the group's"),
    Key::new("cwd", Form::Template, "the directory it is done in").default("the machine's working directory"),
];

/// The keys of `ready`, of which one beside `timeout` is given.
pub(super) const READY_KEYS: &[Key] = &[
    Key::new("port", Form::PORT, "what was started listens on this port"),
    Key::new("command", Form::Template, "this command succeeds"),
    Key::new("log", Form::Template, "this text appears in what it prints"),
    Key::new("timeout", Form::Duration, "how long it may take").default("\"60s\""),
];
