//! The durable record of runs: enough to tear a run down from another process, on another day.
//!
//! ```text
//! <root>/                     0700
//!   <run-id>/                 0700, owned by the run
//!     record.json             written and synced before the run's first request
//!     machines.json           what is known of its machines, once all are set up or some failed to be; where they are and
//!                             whether they run is a hint, never the truth
//!     unready.json            which of those are not set up, if any
//!     ending                  there once a teardown has begun, for whoever would launch more
//!     lock                    locked for as long as a controller lives
//!     machines.lock           locked for as long as another run does its trials on the machines
//!     …                       what the provider and the connector keep there
//! ```
//!
//! What another user may have written is named, and neither read nor touched: see [`private`].

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::event::NewerSchema;
use crate::machine::{Deadline, Machine, MachineId, RunId};
use crate::private;

/// The number of the form in which runs are recorded. The first had no number.
pub const RECORD_SCHEMA: u32 = 2;

/// Nobody takes this long to make or remove a record.
const HALF_MADE: Duration = Duration::from_secs(600);

/// Where runs are recorded. Its methods read small files, and so may wait for a disk.
///
/// ```no_run
/// # use tsunami_core::{Error, RunStore, Tsunami};
/// # async fn example(tsunami: &Tsunami) -> Result<(), Error> {
/// // What processes have left that were killed, of runs of this engine's provider:
/// for run in RunStore::standard()?.runs()? {
///     if run.is_abandoned() {
///         tsunami.down(&run).await?;
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunStore {
    root: PathBuf,
}

/// What is recorded of a run before its first request. The engine makes it; the tests of a
/// [`Registration`](crate::registry::Registration) may.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunRecord {
    /// The run.
    pub run: RunId,
    /// The experiment's name.
    pub experiment: String,
    /// The provider's name.
    pub provider: String,
    /// The provider's [settings](crate::Provider::settings).
    #[serde(default)]
    pub settings: serde_json::Value,
    /// When the run began.
    pub created: SystemTime,
    /// When its machines end themselves.
    pub deadline: Deadline,
    /// The groups, in order, and their sizes.
    pub groups: Vec<crate::event::GroupSize>,
    /// Where its results go, if anywhere.
    pub results: Option<PathBuf>,
    /// Whether the machines are meant to outlive the controller.
    pub kept: bool,
    /// The most that the machines may cost, in US dollars.
    #[serde(default)]
    pub budget: Option<f64>,
    /// The most that they can cost over their lifetime, in US dollars, if that is known.
    #[serde(default, rename = "most")]
    pub max_cost: Option<f64>,
}

impl RunRecord {
    /// The record of a run without groups, results or prices, as one that begins has it.
    pub fn new(
        run: RunId,
        experiment: impl Into<String>,
        provider: impl Into<String>,
        created: SystemTime,
        deadline: Deadline,
    ) -> Self {
        Self {
            run,
            experiment: experiment.into(),
            provider: provider.into(),
            settings: serde_json::Value::Null,
            created,
            deadline,
            groups: Vec::new(),
            results: None,
            kept: false,
            budget: None,
            max_cost: None,
        }
    }

    /// Sets the provider's settings, with which it is found again.
    pub fn settings(mut self, settings: serde_json::Value) -> Self {
        self.settings = settings;
        self
    }
}

/// A record as it is written.
#[derive(Serialize)]
struct Numbered<'a> {
    schema: u32,
    #[serde(flatten)]
    record: &'a RunRecord,
}

/// What tells the form of a record, whatever else it holds.
#[derive(Deserialize)]
struct Form {
    #[serde(default)]
    schema: u32,
}

impl RunStore {
    /// Keeps records in `root`, which is made when the first run is recorded.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The user's own place: `$XDG_STATE_HOME/tsunami/runs`, or `~/.local/state/tsunami/runs`, as the
    /// [XDG Base Directory Specification](https://specifications.freedesktop.org/basedir-spec/latest/) has it.
    ///
    /// # Errors
    ///
    /// [`Error::Record`] if neither variable is the whole path of a directory.
    pub fn standard() -> Result<Self, Error> {
        // Another one would be elsewhere for each working directory, and runs be forgotten.
        let absolute = |path: Option<PathBuf>| path.filter(|path| path.is_absolute());
        let state = absolute(std::env::var_os("XDG_STATE_HOME").map(PathBuf::from))
            .or_else(|| absolute(std::env::home_dir()).map(|home| home.join(".local/state")))
            .ok_or_else(|| {
                let none = "neither HOME nor XDG_STATE_HOME is the whole path of a directory";
                let none = io::Error::new(io::ErrorKind::NotFound, none);
                Error::Record { action: "find", path: PathBuf::new(), source: none }
            })?;
        Ok(Self::at(state.join("tsunami/runs")))
    }

    /// The directory of all records.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Records a run, durably, and takes its lock.
    pub(crate) fn create(&self, record: &RunRecord) -> Result<(RunEntry, RunLock), Error> {
        let directory = RunEntry { path: self.root.join(record.run.as_str()) };
        let failed = |source| Error::record("write", &directory.path, source);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.root).map_err(failed)?;
        private::check_directory(&self.root).map_err(failed)?;
        self.sweep();
        // Made under another name, so that no run is ever seen without its record and its lock.
        let new = RunEntry { path: self.root.join(format!(".new-{}", record.run)) };
        DirBuilder::new().mode(0o700).create(&new.path).map_err(failed)?;
        let fill = || {
            let lock = new.lock()?.ok_or_else(|| failed(io::ErrorKind::ResourceBusy.into()))?;
            new.write_record(record)?;
            fs::rename(&new.path, &directory.path).map_err(failed)?;
            Ok(lock)
        };
        // What is left of a run that is never begun, as where the disk is full, is nobody's.
        let lock = fill().inspect_err(|_: &Error| drop(fs::remove_dir_all(&new.path)))?;
        private::sync(&self.root).map_err(failed)?;
        Ok((directory, lock))
    }

    /// Removes what processes left half made or half removed that were killed at it. Nothing depends on it.
    fn sweep(&self) {
        let half = |name: &str| name.starts_with(".new-") || name.starts_with(".old-");
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
            let old = age.is_ok_and(|age| age.is_ok_and(|age| age > HALF_MADE));
            if old && entry.file_name().to_str().is_some_and(half) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// All runs known here, oldest first. They are known by name only: whether one can be believed, and is not of a
    /// later version's making, shows when it is [checked](RunEntry::check) or read.
    ///
    /// # Errors
    ///
    /// [`Error::Record`] if the directory is there and can't be read.
    pub fn runs(&self) -> Result<Vec<RunEntry>, Error> {
        let failed = |source| Error::record("read", &self.root, source);
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut runs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_str().is_some_and(|name| name.parse::<RunId>().is_ok()) {
                runs.push(RunEntry { path: entry.path() });
            }
        }
        runs.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(runs)
    }

    /// The run that `name` means: a run id, a prefix that fits one run only, or the name of an experiment
    /// with one recorded run.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownRun`], [`Error::AmbiguousRun`], and those of [`runs`](Self::runs).
    pub fn find(&self, name: &str) -> Result<RunEntry, Error> {
        let runs = self.runs()?;
        if name.is_empty() {
            // A script's unset variable means no run, least of all the only one.
            return Err(Error::UnknownRun { name: String::new() });
        }
        if let Some(exact) = runs.iter().find(|run| run.id().as_str() == name) {
            return Ok(exact.clone());
        }
        let experiment = |run: &RunEntry| run.record().is_ok_and(|record| record.experiment == name);
        let mut fitting: Vec<_> = runs.iter().filter(|run| run.id().as_str().starts_with(name)).collect();
        if fitting.is_empty() {
            fitting = runs.iter().filter(|run| experiment(run)).collect();
        }
        match fitting[..] {
            [] => Err(Error::UnknownRun { name: name.to_owned() }),
            [run] => Ok(run.clone()),
            _ => {
                let runs = fitting.into_iter().map(RunEntry::id).collect();
                Err(Error::AmbiguousRun { name: name.to_owned(), runs })
            }
        }
    }
}

/// What the set-up of a machine came to that is not set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SetUp {
    Failed,
    /// Something else ended it, or nobody was left to see its end.
    #[serde(other)]
    Unended,
}

/// The directory in which a run keeps its record and its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunEntry {
    path: PathBuf,
}

/// Held by the process that controls a run, for as long as it lives.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

impl RunEntry {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run's id, which is the directory's name.
    pub fn id(&self) -> RunId {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.parse().expect("directories are listed only when their name is a run id")
    }

    /// Fails with [`Error::Untrusted`] if another user may have written what the run's directory holds, and with
    /// [`Error::NewerRecord`] if a later version has. Neither is read, changed or removed.
    pub fn check(&self) -> Result<(), Error> {
        private::check_run(&self.path).map_err(|source| Error::record("read", &self.path, source))?;
        // One that can't be read is of no form, and told when it is needed.
        let form = private::read(&self.path.join("record.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or(Form { schema: 0 });
        NewerSchema::check(form.schema, RECORD_SCHEMA)
            .map_err(|source| Error::NewerRecord { run: self.id(), source })
    }

    /// What was recorded.
    ///
    /// # Errors
    ///
    /// [`Error::Record`] if it can't be read, or is another run's, and those of [`check`](Self::check).
    pub fn record(&self) -> Result<RunRecord, Error> {
        let record: RunRecord = self.read("record.json")?;
        if record.run != self.id() {
            let other = io::Error::other(format!("it is about another run, {}", record.run));
            return Err(Error::record("read", &self.path.join("record.json"), other));
        }
        Ok(record)
    }

    /// The run's machines as last seen; empty before the first was launched.
    pub fn machines(&self) -> Result<Vec<Machine>, Error> {
        let machines: Vec<Machine> = match self.read("machines.json") {
            Err(Error::Record { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        let checked = machines.iter().try_for_each(Machine::check).map_err(io::Error::other);
        checked.map_err(|source| Error::record("read", &self.path.join("machines.json"), source))?;
        Ok(machines)
    }

    /// Whether a process that controls the run is alive.
    pub fn is_controlled(&self) -> Result<bool, Error> {
        Ok(self.lock()?.is_none())
    }

    /// Whether the process that controlled the run has ended, and the run was not to be kept. If either can't be found
    /// out, the run does not count as abandoned.
    pub fn is_abandoned(&self) -> bool {
        self.is_controlled().is_ok_and(|controlled| !controlled)
            && self.record().is_ok_and(|record| !record.kept)
    }

    /// Why the record can't be read of a run that no process controls, so that nobody knows whether it was to be kept; `None`
    /// if it can be, or the run is gone by now.
    pub fn damage(&self) -> Option<Error> {
        let error = self.record().err()?;
        (self.is_controlled().is_ok_and(|controlled| !controlled) && self.path.exists()).then_some(error)
    }

    /// Replaces the record.
    pub(crate) fn write_record(&self, record: &RunRecord) -> Result<(), Error> {
        self.write("record.json", &Numbered { schema: RECORD_SCHEMA, record })
    }

    pub(crate) fn write_machines(&self, machines: &[&Machine]) -> Result<(), Error> {
        self.write("machines.json", machines)
    }

    /// Notes which machines are not set up, before they are written down beside those that are.
    pub(crate) fn write_unready(&self, unready: &BTreeMap<MachineId, SetUp>) -> Result<(), Error> {
        self.write("unready.json", unready)
    }

    /// All machines that are written down are set up.
    pub(crate) fn clear_unready(&self) {
        // Where it stays, machines count as less than they are.
        let _ = fs::remove_file(self.path.join("unready.json"));
    }

    /// Which of these machines are not set up, and what their set-up came to. One that is not written down was on its way
    /// when the process ended that had launched it.
    #[cfg(feature = "experiment")]
    pub(crate) fn unready<'a>(
        &self,
        machines: impl IntoIterator<Item = &'a Machine>,
    ) -> Result<Vec<(&'a Machine, SetUp)>, Error> {
        let unready: BTreeMap<MachineId, SetUp> = match self.read("unready.json") {
            Err(Error::Record { source, .. }) if source.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            other => other?,
        };
        let known: std::collections::BTreeSet<MachineId> =
            self.machines()?.into_iter().map(|machine| machine.id).collect();
        let of = |machine: &Machine| match unready.get(&machine.id) {
            Some(came_to) => Some(*came_to),
            None => (!known.contains(&machine.id)).then_some(SetUp::Unended),
        };
        Ok(machines.into_iter().filter_map(|machine| of(machine).map(|came_to| (machine, came_to))).collect())
    }

    /// Says to all processes that the run is being torn down.
    pub(crate) fn mark_ending(&self) -> io::Result<()> {
        private::write(&self.path.join("ending"), b"")
    }

    /// Whether somebody tears the run down, or has done so.
    pub fn is_ending(&self) -> bool {
        !self.may_create()
    }

    /// Whether the run may still create something: it is recorded, and nobody tears it down.
    pub(crate) fn may_create(&self) -> bool {
        self.path.join("record.json").exists() && !self.path.join("ending").exists()
    }

    /// Takes the lock, or `None` if another process has it.
    pub(crate) fn lock(&self) -> Result<Option<RunLock>, Error> {
        self.lock_file("lock")
    }

    /// Takes the run's machines for trials, which would end each other's commands and bring home each other's files:
    /// `None` if the run goes on yet, or another one's trials are done there.
    #[cfg(feature = "experiment")]
    pub(crate) fn lock_machines(&self) -> Result<Option<RunLock>, Error> {
        if self.is_controlled()? {
            return Ok(None);
        }
        self.lock_file("machines.lock")
    }

    fn lock_file(&self, name: &str) -> Result<Option<RunLock>, Error> {
        self.check()?;
        let path = self.path.join(name);
        let failed = |source| Error::record("lock", &path, source);
        let file = private::open_appending(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(RunLock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Forgets the run, and lets go of its lock, if this process has that. Only for when everything it created is
    /// confirmed gone.
    pub(crate) fn remove(&self, lock: Option<RunLock>) -> Result<(), Error> {
        match self.check() {
            Err(Error::Record { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            checked => checked?,
        }
        // Moved away first, so that no run is ever seen without its record.
        let old = self.path.with_file_name(format!(".old-{}", self.id()));
        let failed = |path: &Path, source| Error::record("remove", path, source);
        match fs::rename(&self.path, &old) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            moved => moved.map_err(|error| failed(&self.path, error))?,
        }
        // Over NFS and FUSE, what is open stays in its directory by another name, and keeps that.
        drop(lock);
        match fs::remove_dir_all(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&old, error)),
            _ => Ok(()),
        }
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        self.check()?;
        let path = self.path.join(name);
        let value = private::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        value.map_err(|source| Error::record("read", &path, source))
    }

    fn write<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<(), Error> {
        let path = self.path.join(name);
        // Never whole in memory: machines are many.
        let written = private::write_whole(&path, 0o600, |file| {
            let mut file = BufWriter::new(file);
            serde_json::to_writer_pretty(&mut file, value)?;
            file.flush()
        });
        written.map_err(|source| Error::record("write", &path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, experiment: &str) -> RunRecord {
        let deadline = Deadline { at: SystemTime::UNIX_EPOCH, lifetime: Duration::from_secs(60) };
        RunRecord::new(id.parse().unwrap(), experiment, "fake", SystemTime::UNIX_EPOCH, deadline)
    }

    #[test]
    fn runs_are_found_by_id_by_prefix_and_by_experiment() {
        let root = tempfile::tempdir().unwrap();
        let state = RunStore::at(root.path().join("runs"));
        for (id, experiment) in
            [("20260101-aaaa", "redis"), ("20260102-bbbb", "kafka"), ("20260102-cccc", "kafka")]
        {
            state.create(&record(id, experiment)).unwrap();
        }
        let find = |name: &str| state.find(name).map(|run| run.id().to_string());
        assert_eq!(find("20260102-bbbb").unwrap(), "20260102-bbbb");
        assert_eq!(find("20260101").unwrap(), "20260101-aaaa");
        assert_eq!(find("redis").unwrap(), "20260101-aaaa");
        assert!(matches!(find("20260102"), Err(Error::AmbiguousRun { runs, .. }) if runs.len() == 2));
        assert!(matches!(find("kafka"), Err(Error::AmbiguousRun { .. })));
        assert!(matches!(find("nats"), Err(Error::UnknownRun { .. })));
        assert!(matches!(find(""), Err(Error::UnknownRun { .. })));
    }

    #[test]
    fn what_a_killed_process_left_half_made_is_no_run_and_is_removed_in_time() {
        let root = tempfile::tempdir().unwrap();
        let state = RunStore::at(root.path());
        for (name, age) in
            [(".new-20260101-aaaa", 3600), (".old-20260101-bbbb", 3600), (".new-20260101-cccc", 1)]
        {
            fs::create_dir(root.path().join(name)).unwrap();
            let then = SystemTime::now() - Duration::from_secs(age);
            File::open(root.path().join(name)).unwrap().set_modified(then).unwrap();
        }
        assert_eq!(state.runs().unwrap(), []);
        state.create(&record("20260102-dddd", "redis")).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".new-20260101-cccc", "20260102-dddd"]);
        // What can't be made is removed at once.
        state.create(&record("20260102-dddd", "redis")).unwrap_err();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
        assert!(state.find("20260102-dddd").unwrap().record().is_ok(), "the other one stays");
    }

    /// A run as the first version recorded it.
    const FIRST_FORM: [(&str, &str); 2] = [
        ("record.json", include_str!("../tests/fixtures/run-1/record.json")),
        ("machines.json", include_str!("../tests/fixtures/run-1/machines.json")),
    ];

    fn first_form(state: &RunStore) -> RunEntry {
        let directory = RunEntry { path: state.root().join("20260101-080000-haaaaaaaaaaaa") };
        DirBuilder::new().recursive(true).mode(0o700).create(&directory.path).unwrap();
        for (name, content) in FIRST_FORM {
            private::write(&directory.path.join(name), content.as_bytes()).unwrap();
        }
        directory
    }

    #[test]
    fn a_record_of_the_first_form_is_read_and_kept_up() {
        let root = tempfile::tempdir().unwrap();
        let state = RunStore::at(root.path());
        let directory = first_form(&state);
        assert_eq!(state.find("redis").unwrap(), directory);
        let record = directory.record().unwrap();
        assert_eq!((record.provider.as_str(), record.groups.len(), record.max_cost), ("aws", 2, Some(1.25)));
        let machines = directory.machines().unwrap();
        assert_eq!(machines.iter().map(Machine::name).collect::<Vec<_>>(), ["server-0", "client-0"]);
        #[cfg(feature = "experiment")]
        assert_eq!(directory.unready(&machines).unwrap(), [], "all were set up that it wrote down");
        directory.write_record(&RunRecord { kept: true, ..record.clone() }).unwrap();
        assert_eq!(directory.record().unwrap(), RunRecord { kept: true, ..record });
        let written = fs::read_to_string(directory.path.join("record.json")).unwrap();
        assert!(written.starts_with(&format!("{{\n  \"schema\": {RECORD_SCHEMA},\n")), "{written}");
        drop(directory.lock().unwrap().unwrap());
        directory.remove(None).unwrap();
        assert_eq!(state.runs().unwrap(), []);
    }

    #[cfg(feature = "experiment")]
    #[test]
    fn only_machines_that_are_written_down_and_not_as_unready_are_set_up() {
        let root = tempfile::tempdir().unwrap();
        let state = RunStore::at(root.path());
        let (directory, _lock) = state.create(&record("20260101-aaaa", "redis")).unwrap();
        let machine = |index: u32| {
            let id = MachineId::new(format!("i-{index}"));
            Machine::new(id, directory.id(), "node", index, crate::MachineState::Running)
        };
        let machines = [machine(0), machine(1), machine(2)];
        let unready = || -> Vec<_> {
            let unready = directory.unready(&machines).unwrap();
            unready.into_iter().map(|(machine, came_to)| (machine.index, came_to)).collect()
        };
        use SetUp::{Failed, Unended};
        assert_eq!(unready(), [(0, Unended), (1, Unended), (2, Unended)]);
        directory.write_unready(&[(machines[1].id.clone(), Failed)].into()).unwrap();
        directory.write_machines(&[&machines[0], &machines[1]]).unwrap();
        assert_eq!(unready(), [(1, Failed), (2, Unended)]);
        directory.write_machines(&[&machines[0], &machines[1], &machines[2]]).unwrap();
        directory.clear_unready();
        assert_eq!(unready(), []);
    }

    #[test]
    fn a_record_of_a_later_form_is_named_and_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let state = RunStore::at(root.path());
        let newer = first_form(&state);
        // Nothing else of it need be what this version knows.
        let later = format!("{{\"schema\": {}, \"run\": [1, 2]}}", RECORD_SCHEMA + 1);
        fs::write(newer.path.join("record.json"), &later).unwrap();
        let (other, _lock) = state.create(&record("20260102-aaaa", "redis")).unwrap();
        assert_eq!(state.runs().unwrap(), [newer.clone(), other.clone()]);
        assert_eq!(state.find("redis").unwrap(), other, "the others are found");
        let refused = |what: &str, result: Result<(), Error>| match result {
            Err(Error::NewerRecord { run, source }) => {
                assert_eq!((run, source.schema), (newer.id(), RECORD_SCHEMA + 1), "{what}");
            }
            other => panic!("{what}: {other:?}"),
        };
        refused("check", newer.check());
        refused("record", newer.record().map(drop));
        refused("machines", newer.machines().map(drop));
        refused("lock", newer.is_controlled().map(drop));
        refused("removal", newer.remove(None));
        assert_eq!(fs::read_to_string(newer.path.join("record.json")).unwrap(), later);
        assert!(!newer.path.join("lock").exists());
    }

    #[test]
    fn a_record_of_another_run_is_none() {
        let root = tempfile::tempdir().unwrap();
        let state = RunStore::at(root.path());
        let (directory, _lock) = state.create(&record("20260101-aaaa", "redis")).unwrap();
        directory.write_record(&record("20260102-bbbb", "redis")).unwrap();
        let error = crate::ErrorChain(&directory.record().unwrap_err()).to_string();
        assert!(error.contains("another run, 20260102-bbbb"), "{error}");
    }

    #[test]
    fn a_record_is_private_and_locked_while_its_controller_lives() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let state = RunStore::at(root.path().join("runs"));
        let (directory, lock) = state.create(&record("20260101-aaaa", "redis")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(directory.path()), 0o700);
        assert_eq!(mode(&directory.path().join("record.json")), 0o600);
        assert!(directory.is_controlled().unwrap());
        drop(lock);
        assert!(!directory.is_controlled().unwrap());
    }

    #[test]
    fn a_run_that_another_user_may_have_written_is_named_and_not_read() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let root = tempfile::tempdir().unwrap();
        let state = RunStore::at(root.path().join("runs"));
        let (directory, lock) = state.create(&record("20260101-aaaa", "redis")).unwrap();
        drop(lock);
        directory.write_machines(&[]).unwrap();
        let (runs, run) = (state.root().to_owned(), directory.path().to_owned());
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let named = |path: &Path| {
            let runs = state.runs().unwrap();
            assert_eq!(runs.iter().map(RunEntry::id).collect::<Vec<_>>(), [directory.id()]);
            let refused = |what: &str, result: Result<(), Error>| match result {
                Err(Error::Untrusted(untrusted)) => assert_eq!(untrusted.path, path, "{what}"),
                other => panic!("{what} of {}: {other:?}", path.display()),
            };
            refused("record", directory.record().map(drop));
            if path.extension().is_none() {
                refused("machines", directory.machines().map(drop));
                refused("lock", directory.is_controlled().map(drop));
                refused("removal", directory.remove(None));
            }
        };
        for (path, before) in
            [(root.path(), 0o700), (&runs, 0o700), (&run, 0o700), (&run.join("record.json"), 0o600)]
        {
            set(path, before | 0o022);
            named(path);
            set(path, before);
        }
        // What a provider keeps there, too.
        fs::create_dir(run.join("aws")).unwrap();
        set(&run.join("aws"), 0o777);
        named(&run.join("aws"));
        fs::remove_dir(run.join("aws")).unwrap();
        directory.record().unwrap();
        fs::rename(&run, root.path().join("elsewhere")).unwrap();
        symlink(root.path().join("elsewhere"), &run).unwrap();
        named(&run);
        // Where all runs are kept may be a link: that is the user's choice.
        let by_link = RunStore::at(root.path().join("link"));
        fs::remove_file(&run).unwrap();
        fs::rename(root.path().join("elsewhere"), &run).unwrap();
        symlink(&runs, by_link.root()).unwrap();
        by_link.runs().unwrap()[0].record().unwrap();
        set(&runs, 0o777);
        assert!(matches!(by_link.runs().unwrap()[0].record(), Err(Error::Untrusted(_))));
        assert!(matches!(by_link.create(&record("20260101-bbbb", "redis")), Err(Error::Untrusted(_))));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            failure_persistence: None,
            ..proptest::prelude::ProptestConfig::with_cases(tsunami_core::testing::fuzz_cases(32))
        })]

        #[test]
        fn a_record_of_any_bytes_is_read_or_is_an_error(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64),
            cut in 0..400_usize, byte in proptest::prelude::any::<u8>(),
        ) {
            let root = tempfile::tempdir().unwrap();
            let (directory, _lock) = RunStore::at(root.path()).create(&record("20260101-aaaa", "redis")).unwrap();
            let mut spoiled = fs::read(directory.path().join("record.json")).unwrap();
            directory.write_machines(&[]).unwrap();
            let cut = cut % spoiled.len();
            spoiled[cut] = byte;
            for bytes in [bytes, spoiled.clone(), spoiled[..cut].to_vec()] {
                for file in ["record.json", "machines.json"] {
                    fs::write(directory.path().join(file), &bytes).unwrap();
                }
                let _ = (directory.record(), directory.machines(), directory.is_controlled());
            }
        }
    }

    #[test]
    fn a_run_that_cannot_be_recorded_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let state = RunStore::at(root.path().join("file/runs"));
        assert!(matches!(state.create(&record("x", "y")), Err(Error::Record { action: "write", .. })));
    }
}
