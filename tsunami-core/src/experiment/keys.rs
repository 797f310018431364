//! The keys of an experiment file: each in one place, with what may stand behind it and what it means.

use super::{OnError, OnInterruption, Per};
use crate::limits::MACHINE_LIMIT;
use crate::registry::Registry;
use crate::statistics::Direction;
use crate::trial::{Across, OddMachines, Order, Reduce, Trials};

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
    /// A value that it may have, in the words of the file.
    pub example: Option<&'static str>,
}

impl Key {
    /// A key that may be left out.
    pub const fn new(name: &'static str, form: Form, doc: &'static str) -> Self {
        Self { name, form, doc, default: None, required: false, example: None }
    }

    /// Says what it is where it isn't given.
    pub const fn default(self, default: &'static str) -> Self {
        Self { default: Some(default), ..self }
    }

    /// Gives a value that it may have.
    pub const fn example(self, example: &'static str) -> Self {
        Self { example: Some(example), ..self }
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
    /// A string, a number, `true` or `false`.
    Scalar,
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
    Key::new("name", Form::Text, "what the experiment is called").example("\"redis\"").required(),
    Key::new("provider", Form::Text, "where its machines come from").example("\"aws\"").default("\"local\""),
    Key::new("lifetime", Form::Duration, "when every machine ends, whatever happens, from its launch")
        .example("\"45m\"")
        .default("\"1h\""),
    Key::new("budget", Form::Number, "the most that the machines may cost, in US dollars").example("5.0"),
    Key::new(
        "prepare",
        Form::OneOrMore(&Form::Text),
        "commands on this computer, in the file's directory, before anything is launched; never templates",
    )
    .example("[\"cargo build --release\"]"),
    Key::new("repeat", REPEAT, "the same as in `[trials]`").example("10").default("1"),
    Key::new("on_interruption", ON_INTERRUPTION, ON_INTERRUPTION_DOC)
        .example("\"replace\"")
        .default("\"fail\""),
    Key::new("user", Form::Text, "who to log in as, on all machines").example("\"ubuntu\""),
    Key::new("group", Form::Map(&Form::Table(GROUP_KEYS)), "the groups of machines, by their names")
        .required(),
    Key::new(
        "vars",
        Form::Map(&Form::Scalar),
        "values by their names, unless others are given beside the file",
    )
    .example("{ requests = 100000 }"),
    Key::new(
        "matrix",
        Form::Map(&Form::List(&Form::Scalar)),
        "parameters by their names: every combination of their values is a trial",
    )
    .example("{ clients = [1, 4, 16] }"),
    Key::new("trials", Form::Table(TRIALS_KEYS), "how often and in which order trials are done"),
    Key::new("compare", Form::Table(COMPARE_KEYS), "which trials are compared"),
    Key::new("step", Form::List(&Form::Table(STEP_KEYS)), "what is done on them, in order"),
    Key::new("reset", Form::List(&Form::Table(RESET_KEYS)), "what is done on them between trials, in order"),
];

/// The most trials, counted as far as a key can.
#[expect(clippy::cast_possible_truncation, reason = "it is far smaller")]
const TRIAL_LIMIT: u32 = Trials::LIMIT as u32;

/// How often something is done.
pub(super) const REPEAT: Form = Form::Integer(1, TRIAL_LIMIT);
/// The same, if at all.
pub(super) const WARMUP: Form = Form::Integer(0, TRIAL_LIMIT);

pub(super) const ORDERS: [(&str, Order); 2] = [("balanced", Order::Balanced), ("random", Order::Random)];
pub(super) const ODD: [(&str, OddMachines); 2] = [("warn", OddMachines::Warn), ("void", OddMachines::Void)];
pub(super) const PER: [(&str, Per); 2] = [("trial", Per::Trial), ("run", Per::Run)];
pub(super) const DIRECTIONS: [(&str, Direction); 2] =
    [("higher", Direction::Higher), ("lower", Direction::Lower)];
pub(super) const REDUCE: [(&str, Reduce); 6] = [
    ("mean", Reduce::Mean),
    ("median", Reduce::Median),
    ("sum", Reduce::Sum),
    ("min", Reduce::Min),
    ("max", Reduce::Max),
    ("last", Reduce::Last),
];
pub(super) const ACROSS: [(&str, Across); 6] = [
    ("sum", Across::Sum),
    ("mean", Across::Mean),
    ("median", Across::Median),
    ("max", Across::Max),
    ("min", Across::Min),
    ("merge", Across::Merge),
];

/// The keys of `[trials]`.
pub(super) const TRIALS_KEYS: &[Key] = &[
    Key::new("repeat", REPEAT, "how often each combination is a trial").example("10").default("1"),
    Key::new("order", Form::Choice(&words(&ORDERS)), "in which order trials are done")
        .example("\"random\"")
        .default("\"balanced\""),
    Key::new(
        "warmup",
        WARMUP,
        "how many trials of each combination come first on its machines, and don't count",
    )
    .example("1")
    .default("0"),
    Key::new("canary", Form::Boolean, "whether machines are measured by themselves")
        .example("true")
        .default("false"),
    Key::new("odd", Form::Choice(&words(&ODD)), "what happens with machines that differ from their group")
        .example("\"void\"")
        .default("\"warn\""),
];

/// The keys of `[compare]`.
pub(super) const COMPARE_KEYS: &[Key] = &[
    Key::new("by", Form::Text, "the parameter whose values are compared").example("\"variant\"").required(),
    Key::new("baseline", Form::Scalar, "the value that the others are compared with")
        .example("\"old\"")
        .default("the first"),
    Key::new("margin", Form::Text, "smaller differences than this don't matter")
        .example("\"5%\"")
        .default("\"3%\""),
    Key::new(
        "fail_if",
        Form::OneOrMore(&Form::Text),
        "a metric's ratios to the baseline with which the experiment fails, as `rps < 0.95`",
    )
    .example("[\"rps < 0.95\"]"),
];

/// The keys of a reset.
pub(super) const RESET_KEYS: &[Key] = &[
    Key::new("on", ON, ON_DOC).example("\"server\"").required(),
    Key::new("run", Form::Template, "a command").example("\"redis-cli -h {{ ip }} flushall\"").required(),
    Key::new("timeout", Form::Duration, "how long it may take").example("\"30s\""),
];

/// The keys of a metric.
pub(super) const METRIC_KEYS: &[Key] = &[
    Key::new("file", Form::Text, "the collected file that it is in")
        .example("\"out.csv\"")
        .default("the step's standard output"),
    Key::new("csv", Form::Text, "the column of CSV that has it").example("\"rps\""),
    Key::new(
        "json",
        Form::Text,
        "the JSON pointer that leads to it, as `/latency/p99`; of each line if there are several",
    )
    .example("\"/latency/p99\""),
    Key::new("regex", Form::Text, "the regular expression whose one group it is")
        .example("'p99=([0-9.]+) ?ms'"),
    Key::new(
        "hdr",
        Form::Text,
        "what of a HdrHistogram log it is: `p99`, `p99.9`, `max`, `min`, `mean` or `count`",
    )
    .example("\"p99\""),
    Key::new("where", Form::Map(&Form::Scalar), "what other columns or fields hold where it counts")
        .example("{ test = \"GET\" }"),
    Key::new("reduce", Form::Choice(&words(&REDUCE)), "how several values on a machine become one")
        .example("\"mean\""),
    Key::new("across", Form::Choice(&words(&ACROSS)), "how those of several machines become one")
        .example("\"sum\""),
    Key::new("better", Form::Choice(&words(&DIRECTIONS)), "which direction is better").example("\"higher\""),
    Key::new("unit", Form::Text, "its unit").example("\"1/s\""),
];

const ON_INTERRUPTION: Form = Form::Choice(&words(&OnInterruption::WORDS));
const ON_INTERRUPTION_DOC: &str = "what happens when the provider takes a machine back: the run fails, or another one is set up in its place";

/// The keys of a group, beside the provider's own.
pub(super) const GROUP_KEYS: &[Key] = &[
    Key::new("count", COUNT, "how many machines it has").example("3").default("1"),
    Key::new("setup", Form::Either(&[SETUP, Form::List(&SETUP)]), "what prepares each of them, in order")
        .example("[\"sudo apt-get update -q\", { script = \"setup.sh\" }]"),
    Key::new(
        "upload",
        Form::List(&Form::Table(UPLOAD_KEYS)),
        "what is brought to each of them before set-up: files, or the contents of directories",
    ),
    Key::new("env", ENV, "the environment of everything that runs on them")
        .example("{ RUST_LOG = \"info\", TOKEN = { from_env = \"TOKEN\" } }"),
    Key::new("on_interruption", ON_INTERRUPTION, ON_INTERRUPTION_DOC).example("\"replace\""),
    Key::new("user", Form::Text, "who to log in as").example("\"ubuntu\""),
];

const COUNT: Form = Form::Either(&[Form::Integer(1, MACHINE_LIMIT), Form::Template]);
const SETUP: Form = Form::Either(&[Form::Template, Form::Table(SCRIPT_KEYS)]);
const ENV: Form = Form::Map(&Form::Either(&[Form::Template, Form::Table(FROM_ENV_KEYS)]));

/// The keys of a script in `setup`.
pub(super) const SCRIPT_KEYS: &[Key] =
    &[Key::new("script", Form::Path, "a file to be run under its `#!` line; never a template")
        .example("\"setup.sh\"")
        .required()];

/// The keys of an upload.
pub(super) const UPLOAD_KEYS: &[Key] = &[
    Key::new("from", Form::Path, "the file or directory on this computer")
        .example("\"target/release/load\"")
        .required(),
    Key::new("to", Form::Template, "where it goes, relative to the machine's working directory")
        .example("\"bin/load\"")
        .required(),
    Key::new(
        "template",
        Form::Boolean,
        "whether `{{ }}` in the file stands for facts, as in set-up; not for directories",
    )
    .example("true")
    .default("false"),
    Key::new(
        "exclude",
        Form::OneOrMore(&Form::Text),
        "what of a directory stays here, as `.gitignore` has it, but without `!`: `target`, `*.o`, `/doc/*.html`",
    )
    .example("[\"target\", \"*.o\", \"/doc/*.html\"]"),
];

/// The keys of a variable that is taken from the environment.
pub(super) const FROM_ENV_KEYS: &[Key] =
    &[Key::new("from_env", Form::Text, "the variable of tsunami's own environment, whose value is secret")
        .example("\"TOKEN\"")
        .required()];

const ON: Form = Form::Either(&[Form::Text, Form::List(&Form::Text)]);
const ON_DOC: &str = "a group, a machine, a list of those, or \"all\"";

/// The keys of a step.
pub(super) const STEP_KEYS: &[Key] = &[
    Key::new("name", Form::Text, "its name").example("\"load\"").default("its number, from 1"),
    Key::new("on", ON, ON_DOC).example("[\"client\", \"server-0\"]").required(),
    Key::new("run", Form::Template, "a command to be run to its end")
        .example("\"bin/load {{ server.ip }} | tee out.csv\""),
    Key::new("start", Form::Template, "a command that goes on until the trial ends")
        .example("\"redis-server --bind {{ ip }}\""),
    Key::new("ready", Form::Table(READY_KEYS), "how to tell that what was started has come up")
        .example("{ port = 6379 }"),
    Key::new("timeout", Form::Duration, "how long `run` may take").example("\"5m\""),
    Key::new(
        "collect",
        Form::List(&Form::Template),
        "globs of what is brought home; one that ends in `?` may match nothing",
    )
    .example("[\"out.csv\", \"core.*?\"]"),
    Key::new("on_error", Form::Choice(&words(&OnError::WORDS)), "what happens when it fails")
        .example("\"continue\"")
        .default("\"fail\""),
    Key::new("env", ENV, "its environment, on top of the group's").example("{ RUST_LOG = \"info\" }"),
    Key::new("cwd", Form::Template, "the directory it is done in")
        .example("\"bin\"")
        .default("the machine's working directory"),
    Key::new(
        "per",
        Form::Choice(&words(&PER)),
        "how often it is done: in each trial, or once on its machines, before the first",
    )
    .example("\"run\"")
    .default("\"trial\""),
    Key::new(
        "metrics",
        Form::Map(&Form::Table(METRIC_KEYS)),
        "what is read of what it prints and collects, by its name",
    ),
];

/// The keys of `ready`, of which one beside `timeout` is given, and for `http` also `port`.
pub(super) const READY_KEYS: &[Key] = &[
    Key::new("port", Form::PORT, "what was started listens on this port").example("6379"),
    Key::new(
        "http",
        Form::Template,
        "and a request for this path on the `port` is answered with a status of 2xx or 3xx",
    )
    .example("\"/health\""),
    Key::new("command", Form::Template, "this command succeeds").example("\"redis-cli -h {{ ip }} ping\""),
    Key::new("log", Form::Template, "this text appears in what it prints").example("\"Ready to accept\""),
    Key::new("timeout", Form::Duration, "how long it may take").example("\"30s\"").default("\"60s\""),
];
