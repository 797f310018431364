//! The experiment file: what a user asks for, read, checked as a whole and ready to be carried out.
//!
//! Reading starts nothing and looks at nothing but the file and the files it names. What [`Experiment::load`] hands
//! out is whole: names resolved, files present, templates rendered for every machine with placeholder addresses. What
//! it refuses, it refuses with all [`Problems`] at once. [`Experiment::run`] does what the command line does:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use tsunami_core::experiment::{Experiment, RunOptions};
//! # use tsunami_core::{Connector, Error, Provider, Tsunami};
//! # async fn example(provider: Arc<dyn Provider>, connector: Arc<dyn Connector>) -> Result<(), Error> {
//! let experiment = Experiment::load("redis.toml")?;
//! let report = experiment.run(&Tsunami::new(provider, connector), RunOptions::default()).await?;
//! println!("{} machines, {:?} dollars", report.machines.len(), report.estimated_cost());
//! # Ok(()) }
//! ```

mod check;
mod file;
mod hints;
pub(crate) mod keys;
mod notes;
mod plan;
mod prepare;
pub(crate) mod problem;
mod run;
mod schema;
mod script;
mod spent;
mod steps;
mod template;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod values;

use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, fs, io};

use crate::ErrorChain;
use crate::exclude::Exclude;
use crate::limits::{EXPERIMENT_FILE_LIMIT, TEMPLATES_FUEL};
use crate::machine::machine_name;
use crate::provider::MachineSpec;
use crate::registry::{Connection, Registry, Settings};
use crate::trial::{Metric, Parameters, Trials};
use toml::Spanned;
use toml::de::DeTable;

pub use self::problem::{Problem, Problems};
pub use self::run::{ExperimentRun, RunOptions};
pub use self::template::{Scope, Template, TemplateError};

use self::file::{Contents, Reader};

/// An experiment file, read and checked.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Experiment {
    /// What the experiment is called.
    pub name: String,
    /// The name of the provider that has its machines.
    pub provider: String,
    /// When every machine ends, whatever happens.
    pub lifetime: Duration,
    /// The most that the machines may cost, in US dollars.
    pub budget: Option<f64>,
    /// How machines are connected to.
    pub connection: Connection,
    /// The groups of machines, in the order of the file; at least one.
    pub groups: Vec<Group>,
    /// What is done on them, in order.
    pub steps: Vec<Step>,
    /// The file's text as it was read.
    pub source: String,
    /// The directory that paths in it are relative to.
    pub directory: PathBuf,
    /// Where the file is; where it was, if it is what a run has kept of it.
    pub(crate) file: PathBuf,
    /// What it was read from, as whoever reads it calls that.
    read_from: PathBuf,
    /// The values given beside the file.
    pub set: Vec<(String, String)>,
    /// What templates know by name in every trial: the file's values, or those given beside it, and the parameters that
    /// the machines depend on.
    pub values: Arc<Parameters>,
    /// What its provider has read for itself.
    pub settings: Settings,
    /// What is done on this computer, in the file's directory, before anything is launched.
    pub prepare: Vec<String>,
    /// Which trials there are.
    pub trials: Trials,
    /// What is done between trials.
    pub resets: Vec<Reset>,
    /// The sets of machines whose groups depend on parameters, the first of which `groups` and all that belongs to them
    /// are; empty if no group depends on any.
    pub sets: Arc<[MachineSet]>,
}

/// The machines of an experiment for some values of the parameters that they depend on.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MachineSet {
    /// Those parameters.
    pub parameters: Parameters,
    /// The groups.
    pub groups: Vec<Group>,
    /// What is done on them.
    pub steps: Vec<Step>,
    /// What is done on them between trials.
    pub resets: Vec<Reset>,
    /// What the provider has read for itself.
    pub settings: Settings,
}

/// What is done on some machines at once between trials.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reset {
    /// The names of the machines, in the order of the file; at least one.
    pub on: Vec<String>,
    /// The command.
    pub command: Template,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// How often a step is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Per {
    /// In each trial.
    #[default]
    Trial,
    /// Once on each set of machines, before its first trial. What it starts goes on until the last is over.
    Run,
}

/// What happens when a provider takes a machine back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnInterruption {
    /// The run fails.
    #[default]
    Fail,
    /// Another machine is set up in its place.
    Replace,
}

impl OnInterruption {
    /// All that can happen, by the words of a file.
    pub const WORDS: [(&'static str, Self); 2] = [("fail", Self::Fail), ("replace", Self::Replace)];
}

/// Machines that are alike.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Group {
    /// Its name.
    pub name: String,
    /// How many machines it has.
    pub count: NonZeroU32,
    /// What prepares each of them, in order.
    pub setup: Vec<Setup>,
    /// What is brought to each of them, before set-up.
    pub upload: Vec<Upload>,
    /// The environment of everything that runs on them.
    pub env: Vec<(String, EnvValue)>,
    /// What they are to be, in their provider's terms.
    pub spec: MachineSpec,
    /// Whether another machine is set up in the place of one that its provider takes back.
    pub replace_interrupted: bool,
    /// How long they may take from the launch to a session, unless the file says so.
    pub connect_timeout: Option<Duration>,
    /// Texts of theirs that are kept with the results, with the names that they have there.
    pub inputs: Vec<(String, String)>,
}

/// One thing that prepares a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Setup {
    /// A shell command.
    Command(Template),
    /// A file on this computer to be run under its `#!` line; never a template.
    Script(PathBuf),
}

/// A file or directory brought to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Upload {
    /// Where it is on this computer.
    pub from: PathBuf,
    /// Where it goes, relative to the machine's working directory.
    pub to: Template,
    /// What is rendered for each machine in place of the file, which held it when the experiment was read.
    pub template: Option<Template>,
    /// What of a directory is left out.
    pub exclude: Exclude,
}

/// The value of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnvValue {
    /// Written in the file.
    Text(Template),
    /// Taken from the environment of this process, and not to be shown.
    FromEnv {
        /// The variable it was taken from, which may be shown.
        variable: String,
        /// What it held.
        value: Secret,
    },
}

/// Something that must not be shown. Its `Debug` doesn't.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(OsString);

impl Secret {
    /// The value itself, for the one place that needs it. It may be empty.
    pub fn reveal(&self) -> &OsStr {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Something done on some machines at once.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Step {
    /// Its name, by default its number from 1; unique.
    pub name: String,
    /// The names of the machines it is done on, in the order of the file; at least one.
    pub on: Vec<String>,
    /// What is done.
    pub action: Action,
    /// What is brought home afterwards.
    pub collect: Vec<Pattern>,
    /// What happens when it fails.
    pub on_error: OnError,
    /// Its environment, on top of the group's.
    pub env: Vec<(String, EnvValue)>,
    /// The directory it is done in, if not the machine's working directory.
    pub cwd: Option<Template>,
    /// How often it is done.
    pub per: Per,
    /// What is read of what it prints and collects.
    pub metrics: Vec<Metric>,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Runs a command to its end.
    Run {
        /// The command.
        command: Template,
        /// How long it may take.
        timeout: Option<Duration>,
    },
    /// Starts a command that goes on until the trial ends.
    Start {
        /// The command.
        command: Template,
        /// How to tell that it has come up; without it, starting it is enough.
        ready: Option<Ready>,
    },
}

/// How to tell that something started has come up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ready {
    /// The sign to look for.
    pub when: ReadyWhen,
    /// How long it may take.
    pub timeout: Duration,
}

/// A sign that something started has come up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadyWhen {
    /// Something listens on this port.
    Port(u16),
    /// Something listens on this port, and answers a request for this path over HTTP.
    Http {
        /// The port.
        port: u16,
        /// The path, and the query if there is one.
        path: Template,
    },
    /// This command succeeds.
    Command(Template),
    /// This text appears in what it prints.
    Log(Template),
}

/// Files to be brought home.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pattern {
    /// A glob, relative to the step's directory.
    pub template: Template,
    /// Whether it may match nothing.
    pub optional: bool,
}

/// What happens when a step fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnError {
    /// The trial fails.
    #[default]
    Fail,
    /// The next step is done all the same.
    Continue,
}

impl OnError {
    const WORDS: [(&'static str, Self); 2] = [("fail", Self::Fail), ("continue", Self::Continue)];
}

impl Experiment {
    /// Reads and checks the file at `path`. [`Loader`] can be told more. It blocks, as [`Loader::load`] says.
    ///
    /// # Errors
    ///
    /// All that is wrong with the file, each with its place.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Problems> {
        Loader::new().load(path)
    }

    /// All machines, in the order of the file: each one's name, group, and number within the group.
    pub fn machines(&self) -> impl Iterator<Item = (String, &Group, u32)> {
        self.groups.iter().flat_map(|group| {
            (0..group.count.get()).map(move |index| (machine_name(&group.name, index), group, index))
        })
    }

    /// On how many sets of machines it is done: one after another, where they depend on parameters.
    pub fn set_count(&self) -> u32 {
        u32::try_from(self.sets.len().max(1)).unwrap_or(u32::MAX)
    }

    /// The number of the set of machines, from 1, on which trials with these parameters are done.
    pub fn set_of(&self, parameters: &Parameters) -> u32 {
        let fits =
            |set: &MachineSet| set.parameters.iter().all(|(name, value)| parameters.get(name) == Some(value));
        let at = self.sets.iter().position(fits).unwrap_or_default();
        u32::try_from(at + 1).unwrap_or(u32::MAX)
    }

    /// The same experiment on the set of machines of this number, from 1: its groups, steps, resets, settings and values
    /// are that set's. It is the experiment itself where there is no such set.
    #[must_use]
    pub fn on_set(&self, number: u32) -> Self {
        let mut experiment = self.clone();
        if let Some(set) = number.checked_sub(1).and_then(|at| self.sets.get(at as usize)) {
            experiment.take(set.clone());
        }
        experiment
    }

    fn take(&mut self, set: MachineSet) {
        let MachineSet { parameters, groups, steps, resets, settings } = set;
        (self.groups, self.steps, self.resets, self.settings) = (groups, steps, resets, settings);
        Arc::make_mut(&mut self.values).extend(parameters);
    }

    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// Where the file says something of a group, by its key: in the group, or for all of them. Else where the group begins.
    fn place_of(&self, group: &str, key: Option<&str>) -> Option<Box<str>> {
        let root = DeTable::parse(&self.source).ok()?;
        let root = root.get_ref();
        let (begins, own) = file::value::key(root.get("group")?.get_ref().as_table()?, group)?;
        let of_all = root.get(self.provider.as_str()).and_then(|value| value.get_ref().as_table());
        let mut tables = own.get_ref().as_table().into_iter().chain(of_all).chain([root]);
        let said = key.and_then(|key| tables.find_map(|table| table.get(key)));
        let start = said.map_or(begins, Spanned::span).start;
        let (line, column) = problem::place_of(&self.source, start)?;
        Some(format!("{}:{line}:{column}", self.read_from.display()).into())
    }
}

/// Loads experiment files.
///
/// ```no_run
/// # use tsunami_core::experiment::{Loader, Problems};
/// let experiment = Loader::new().set("clients", "16").load("redis.toml")?;
/// println!("{} machines", experiment.machines().count());
/// # Ok::<(), Problems>(())
/// ```
pub struct Loader<'a> {
    registry: Registry,
    set: Vec<(String, String)>,
    values_called: &'a str,
    directory: Option<PathBuf>,
    /// The file, and the inputs, of which a run has kept what is read.
    kept: Option<(Option<PathBuf>, PathBuf)>,
    lookup_env: &'a dyn Fn(&str) -> Option<OsString>,
}

impl fmt::Debug for Loader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("set", &self.set).finish_non_exhaustive()
    }
}

impl Default for Loader<'_> {
    fn default() -> Self {
        Self {
            registry: Registry::default(),
            set: Vec::new(),
            values_called: "value",
            directory: None,
            kept: None,
            lookup_env: &|name| std::env::var_os(name),
        }
    }
}

impl<'a> Loader<'a> {
    /// Without values to set, with this process's environment and the [default](Registry::default) registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the providers whose machines a file may have.
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.registry = registry.clone();
        self
    }

    /// Adds a value that templates know by this name.
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.set.push((name.into(), value.into()));
        self
    }

    /// Sets what problems call a value that is [set](Self::set), as a command line has it: `--set`. It is `value` else.
    pub fn values_called(self, values_called: &'a str) -> Self {
        Self { values_called, ..self }
    }

    /// Sets the directory that paths in the file are relative to. Default: the file's own.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Reads and checks what a run was made from, by the directory of its results: the file as it was, with the values
    /// that were set, the scripts that are kept there, and paths relative to where the file was. It blocks as
    /// [`load`](Self::load) does.
    ///
    /// # Errors
    ///
    /// All that is wrong, such as a file that is gone by now.
    pub fn load_again(mut self, results: impl AsRef<Path>) -> Result<Experiment, Problems> {
        let (results, file) = (results.as_ref(), results.as_ref().join("experiment.toml"));
        let refused = |problem: String| Problems::one(results, "", Problem::general(problem));
        match crate::results::is_results(results) {
            Ok(true) => {}
            Ok(false) => {
                return Err(refused("this is no results directory: it has no events.jsonl".to_owned()));
            }
            Err(error) => {
                let error = ErrorChain(&error);
                return Err(refused(format!(
                    "it can't be told whether this is a results directory: {error}"
                )));
            }
        }
        let given = crate::results::Given::read(results)
            .map_err(|error| refused(format!("what the run was given can't be read: {error}")))?;
        if !file.exists() {
            let lost = "these results have lost their experiment.toml: without it, nothing can be done again";
            return Err(refused(lost.to_owned()));
        }
        self.set.extend(given.set);
        self.directory = self.directory.or(given.directory);
        self.kept = Some((given.file, results.join(crate::results::INPUTS)));
        self.load(file)
    }

    /// Sets who is asked for the variables that `from_env` names, and for `HOME` where a path begins with `~/`.
    pub fn lookup_env(self, lookup_env: &'a dyn Fn(&str) -> Option<OsString>) -> Self {
        Self { lookup_env, ..self }
    }

    /// Reads and checks the file at `path`.
    ///
    /// It blocks: it reads the file and looks for all that is uploaded, and it renders all templates for all machines,
    /// which takes milliseconds for what people write and ten seconds at most ([`TEMPLATES_FUEL`]). A program that serves
    /// others does it on a thread that may wait.
    ///
    /// # Errors
    ///
    /// All that is wrong with the file, each with its place.
    pub fn load(self, path: impl AsRef<Path>) -> Result<Experiment, Problems> {
        let path = path.as_ref();
        let source = read(path)?;
        if source.trim_start().starts_with('{') {
            let problem =
                Problem::general("this is no experiment file: those are TOML, and this looks like JSON");
            let own = path.parent().filter(|own| crate::results::is_results(own).is_ok_and(|is| is));
            let help = own.map(|own| format!("to repeat a run, name its directory: {}", own.display()));
            return Err(Problems::one(path, "", problem.help(help)));
        }
        let own = path.parent().filter(|own| *own != Path::new("")).unwrap_or(Path::new("."));
        let dir = &self.directory.clone().unwrap_or_else(|| own.to_owned());
        // A line's ending is nothing that a command should see.
        let text = source.replace("\r\n", "\n");
        let set = (self.values_called, &*self.set);
        let kept = self.kept.as_ref().map(|(_, inputs)| &**inputs);
        let mut reader = Reader::new(&self.registry, &text, dir, self.lookup_env, set).kept(kept);
        let contents = reader.read();
        let mut notes = reader.finish();
        if let Some(contents) = &contents {
            check::templates(&text, contents, set, &mut notes, TEMPLATES_FUEL);
        }
        match contents {
            Some(contents) if notes.is_empty() => {
                let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
                let file = self.kept.and_then(|(file, _)| file).unwrap_or_else(|| absolute(path));
                Ok(Self::experiment(contents, self.set, source, absolute(dir), (file, path.to_owned())))
            }
            _ => Err(Problems::new(path, &text, notes)),
        }
    }

    fn experiment(
        contents: Contents,
        set: Vec<(String, String)>,
        source: String,
        directory: PathBuf,
        (file, read_from): (PathBuf, PathBuf),
    ) -> Experiment {
        let mut sets: Vec<_> = contents.sets.into_iter().map(|set| set.machines).collect();
        let mut experiment = Experiment {
            name: contents.name,
            provider: contents.provider,
            settings: Settings::default(),
            lifetime: contents.lifetime,
            budget: contents.budget,
            connection: contents.connection,
            groups: Vec::new(),
            steps: Vec::new(),
            set,
            values: contents.values,
            source,
            directory,
            file,
            read_from,
            prepare: contents.prepare,
            trials: contents.trials,
            resets: Vec::new(),
            sets: Arc::default(),
        };
        match &sets[..] {
            [only] if only.parameters.is_empty() => sets.drain(..).for_each(|only| experiment.take(only)),
            [first, ..] => {
                experiment.take(first.clone());
                experiment.sets = sets.into();
            }
            [] => {}
        }
        experiment
    }
}

/// The file's text; anything but readable UTF-8 of a sensible length is a problem of its own.
fn read(path: &Path) -> Result<String, Problems> {
    let refused = |problem| Problems::one(path, "", problem);
    let bytes = match read_at_most(path, EXPERIMENT_FILE_LIMIT) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => {
            let limit = EXPERIMENT_FILE_LIMIT >> 10;
            let help = "what machines need can be a file that is uploaded".to_owned();
            return Err(refused(
                Problem::general(format!("the experiment file is larger than {limit} KiB")).help(help),
            ));
        }
        Err(error) => {
            return Err(refused(Problem::general(format!("the experiment file can't be read: {error}"))));
        }
    };
    String::from_utf8(bytes).map_err(|error| {
        let start = error.utf8_error().valid_up_to();
        let problem = Problem::at(
            start..start + char::REPLACEMENT_CHARACTER.len_utf8(),
            "the experiment file isn't UTF-8 from here on",
        );
        Problems::one(path, &String::from_utf8_lossy(error.as_bytes()), problem)
    })
}

/// What a file holds; `None` if that is more than `limit` bytes. A pipe or a device, which may never end or never
/// begin, isn't read at all.
fn read_at_most(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let kind = fs::metadata(path)?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a link to one"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}
