//! The directory that explains a run: what was asked for, what happened, what came of it.
//!
//! [`Results::create`] makes it and writes down what is known beforehand, its [observers](Results::observers) write
//! events and logs as they come, and [`Results::finish`] sums up. [`Secrets`] are taken out of what all of them write.

mod files;
mod json;
mod logs;
mod secrets;
mod writer;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::experiment::{Experiment, Setup};
use crate::{Event, Observer, Outcome, Report, RunId, RunStore, private};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::task::JoinError;

pub use json::{Json, json};
pub use logs::Logs;
pub use secrets::{Redacted, Secrets};

use writer::Writer;

/// The number of the form of `run.json`. The first form had none.
const RUN_SCHEMA: u32 = 2;

/// Why results could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultsError {
    /// The directory is where runs are recorded.
    #[error("{} is where runs are recorded: results go elsewhere", .0.display())]
    Record(PathBuf),
    /// There is something in the directory.
    #[error("{} isn't empty: results go to a new directory", .0.display())]
    NotEmpty(PathBuf),
    /// Something could not be done with a file or directory.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done: `read`, `write`.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl From<ResultsError> for crate::Error {
    fn from(error: ResultsError) -> Self {
        Self::other(error)
    }
}

impl ResultsError {
    /// What was making the directory came to no end.
    pub(crate) fn unmade(error: JoinError) -> Self {
        Self::File { action: "make the directory of", path: "results".into(), source: error.into() }
    }

    fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

/// A run's results directory.
#[derive(Debug)]
pub struct Results {
    directory: PathBuf,
    report: Arc<Summary>,
    events: Arc<Json>,
    logs: Arc<Logs>,
    writer: Arc<Writer>,
}

/// What was uploaded, for those who want to repeat the run. Names are shown as far as they are text.
#[derive(Serialize)]
struct Digested {
    group: String,
    from: String,
    to: String,
    files: Vec<DigestedFile>,
}

#[derive(Serialize)]
struct DigestedFile {
    path: String,
    size: u64,
    sha256: String,
}

/// `run.json`.
#[derive(Serialize)]
struct RunJson<'a> {
    schema: u32,
    tsunami: &'static str,
    provider: &'a str,
    outcome: &'static str,
    exit_status: u8,
    controller: Controller,
    set: &'a [(String, String)],
    /// In US dollars; `None` if a price is not known.
    estimated_cost: Option<f64>,
    #[serde(flatten)]
    report: &'a Report,
}

/// The computer that tsunami ran on; with provider `local`, the machines' hardware too.
#[derive(Serialize)]
struct Controller {
    os: &'static str,
    arch: &'static str,
    kernel: String,
    processors: usize,
}

impl Results {
    /// Makes the directory, new or empty, and writes what is known beforehand. It reads all that is uploaded, however
    /// long that takes: on a thread that may block.
    pub fn create(experiment: &Experiment, run: &RunId, output: Option<&Path>) -> Result<Self, ResultsError> {
        let default = || Path::new("results").join(&experiment.name).join(run.as_str());
        let directory = output.map_or_else(default, Path::to_owned);
        let directory = std::path::absolute(&directory).map_err(ResultsError::file("use", &directory))?;
        if RunStore::standard().is_ok_and(|state| directory.starts_with(state.root())) {
            return Err(ResultsError::Record(directory));
        }
        files::make_directory(&directory)
            .map_err(ResultsError::file("make the results directory", &directory))?;
        let checked = std::env::current_dir().and_then(|base| private::check_output(&directory, &base));
        checked.map_err(ResultsError::file("write results to", &directory))?;
        let mut entries = fs::read_dir(&directory).map_err(ResultsError::file("read", &directory))?;
        if entries.next().is_some() {
            return Err(ResultsError::NotEmpty(directory));
        }
        let failed = |source| ResultsError::File { action: "write to", path: directory.clone(), source };
        files::write(&directory.join("experiment.toml"), &experiment.source).map_err(failed)?;
        write_inputs(experiment, &directory.join("inputs"))?;
        let events = files::append(&directory.join("events.jsonl")).map_err(failed)?;
        let events = Arc::new(Json::new(Box::new(events)));
        let logs = Arc::new(Logs::new(directory.join("logs")));
        let writer = Writer::start(events.clone(), logs.clone()).map_err(failed)?;
        Ok(Self { directory, report: Arc::default(), events, logs, writer: Arc::new(writer) })
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the logs of commands are: `<machine>/<stage>.log`.
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// Where a step's files from a machine go.
    pub fn collected(&self, trial: &str, step: &str, machine: &str) -> PathBuf {
        self.directory.join("trials").join(trial).join(step).join(machine)
    }

    /// Keeps what an interrupted trial brought home from mixing with what the next attempt does.
    pub fn set_aside(&self, trial: &str) -> io::Result<()> {
        let trials = self.directory.join("trials");
        let aside = (1..).map(|nth| match nth {
            1 => trials.join(format!("{trial}-interrupted")),
            _ => trials.join(format!("{trial}-interrupted-{nth}")),
        });
        let free = aside.into_iter().find(|path| path.symlink_metadata().is_err());
        match free.map(|free| fs::rename(trials.join(trial), free)) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// What writes to the directory as the run goes on. Events and output are written by a thread of their own, and in
    /// their files when [`settle`](Self::settle), [`error`](Self::error) or [`finish`](Self::finish) returns, or all of
    /// this is dropped.
    pub fn observers(&self) -> Vec<Arc<dyn Observer>> {
        vec![self.report.clone(), self.writer.clone()]
    }

    /// Waits until what was observed is written, and at most so long: for those who are about to end the process.
    /// Returns whether it is.
    pub fn settle(&self, timeout: Duration) -> bool {
        self.writer.settle(Some(timeout))
    }

    /// Writes `run.json`, once the run is over, and returns what of it comes from the events.
    pub fn finish(&self, experiment: &Experiment, outcome: Outcome) -> Result<Report, ResultsError> {
        self.writer.settle(None);
        let provider = experiment.provider.as_str();
        let report = lock(&self.report.0);
        let tsunami = env!("CARGO_PKG_VERSION");
        let controller = Controller::this();
        let set = &experiment.set;
        let estimated_cost = report.estimated_cost();
        let run = RunJson {
            schema: RUN_SCHEMA,
            tsunami,
            provider,
            outcome: outcome.words(),
            exit_status: outcome.exit_status(),
            controller,
            set,
            estimated_cost,
            report: &report,
        };
        let path = self.directory.join("run.json");
        let write = || files::write(&path, serde_json::to_string_pretty(&run)? + "\n");
        write().map_err(ResultsError::file("write", &path))?;
        Ok(report.clone())
    }

    /// Why events or logs were not written to their end, if they weren't.
    pub fn error(&self) -> Option<io::Error> {
        self.writer.settle(None);
        self.logs.error().or_else(|| self.events.error()).or_else(|| self.writer.error())
    }
}

/// Locks; a panic elsewhere is no reason to stop writing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same error once more, as far as that goes.
fn again(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// Sums up the events as they come.
#[derive(Debug, Default)]
struct Summary(Mutex<Report>);

impl Observer for Summary {
    fn event(&self, event: &Event) {
        lock(&self.0).add(event);
    }
}

impl Controller {
    fn this() -> Self {
        let name = rustix::system::uname();
        Self {
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            kernel: name.release().to_string_lossy().into_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// The scripts of a group, each once, and names for them in one directory: their own, with a number before it where
/// that is taken.
fn named<'a>(
    scripts: impl Iterator<Item = &'a Path>,
    taken: &[(String, String)],
) -> BTreeMap<OsString, &'a Path> {
    let mut names = BTreeMap::new();
    for script in scripts {
        let own = script.file_name().unwrap_or(script.as_os_str());
        let numbered = (2..).map(|number: usize| {
            let mut name = OsString::from(format!("{number}-"));
            name.push(own);
            name
        });
        let free = |name: &OsString| {
            names.get(name).is_none_or(|same| *same == script)
                && taken.iter().all(|(taken, _)| name != taken.as_str())
        };
        if let Some(name) = std::iter::once(own.to_owned()).chain(numbered).find(free) {
            names.insert(name, script);
        }
    }
    names
}

/// Scripts and user data as they are, `--set` values, and the digests of uploads.
fn write_inputs(experiment: &Experiment, directory: &Path) -> Result<(), ResultsError> {
    files::make_directory(directory).map_err(ResultsError::file("make", directory))?;
    let mut uploads = Vec::new();
    for group in &experiment.groups {
        let into = directory.join(&group.name);
        for (name, text) in &group.inputs {
            files::make_directory(&into).map_err(ResultsError::file("make", &into))?;
            let to = into.join(name);
            files::write(&to, text).map_err(ResultsError::file("write", &to))?;
        }
        let scripts = group.setup.iter().filter_map(|setup| match setup {
            Setup::Script(script) => Some(script.as_path()),
            Setup::Command(_) => None,
        });
        for (name, script) in named(scripts, &group.inputs) {
            files::make_directory(&into).map_err(ResultsError::file("make", &into))?;
            let copy = |copy: &mut File| io::copy(&mut File::open(script)?, copy).map(drop);
            files::whole(&into.join(name), copy).map_err(ResultsError::file("copy", script))?;
        }
        for upload in &group.upload {
            let mut files = Vec::new();
            digest(&upload.from, Path::new(""), &mut files)
                .map_err(ResultsError::file("read", &upload.from))?;
            let to = upload.to.source().to_owned();
            uploads.push(Digested {
                group: group.name.clone(),
                from: upload.from.to_string_lossy().into_owned(),
                to,
                files,
            });
        }
    }
    let write = |name: &str, value: serde_json::Result<String>| {
        let path = directory.join(name);
        files::write(
            &path,
            value.map_err(io::Error::from).map_err(ResultsError::file("write", &path))? + "\n",
        )
        .map_err(ResultsError::file("write", &path))
    };
    if !uploads.is_empty() {
        write("uploads.json", serde_json::to_string_pretty(&uploads))?;
    }
    if !experiment.set.is_empty() {
        let set: std::collections::BTreeMap<_, _> = experiment.set.iter().cloned().collect();
        write("set.json", serde_json::to_string_pretty(&set))?;
    }
    Ok(())
}

/// The digests of a file, or of all files in a directory. Links are not followed, as in the upload itself.
fn digest(root: &Path, relative: &Path, files: &mut Vec<DigestedFile>) -> io::Result<()> {
    let path = if relative == Path::new("") { root.to_owned() } else { root.join(relative) };
    let metadata =
        if relative == Path::new("") { fs::metadata(&path)? } else { fs::symlink_metadata(&path)? };
    if metadata.is_dir() {
        let mut entries = fs::read_dir(&path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        return entries.iter().try_for_each(|entry| digest(root, &relative.join(entry.file_name()), files));
    }
    if metadata.is_file() {
        // It may grow for ever.
        let mut file = File::open(&path)?.take(metadata.len());
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
        while let count @ 1.. = file.read(&mut buffer)? {
            hasher.update(&buffer[..count]);
        }
        let sha256 = format!("{:x}", hasher.finalize());
        files.push(DigestedFile {
            path: relative.to_string_lossy().into_owned(),
            size: metadata.len(),
            sha256,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{EventKind, Exit, GroupSize, Leftover, MachineId, Price};

    /// A writer whose text can be read.
    #[derive(Clone, Default)]
    pub(super) struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        pub(super) fn text(&self) -> String {
            String::from_utf8(lock(&self.0).clone()).unwrap()
        }
    }

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub(super) fn at(elapsed: f64, kind: EventKind) -> Event {
        Event::new(1_700_000_000.0 + elapsed, elapsed, kind)
    }

    pub(super) fn started(machine: &str, stage: &str, command: &str) -> EventKind {
        EventKind::CommandStarted {
            machine: machine.into(),
            id: None,
            stage: stage.into(),
            command_id: 1,
            command: command.into(),
        }
    }

    pub(super) fn finished(machine: &str, stage: &str, command: &str, exit: Result<Exit, &str>) -> EventKind {
        EventKind::CommandFinished {
            machine: machine.into(),
            id: None,
            stage: stage.into(),
            command_id: 1,
            command: command.into(),
            exit: exit.ok(),
            error: exit.err().map(Into::into),
            seconds: 1.25,
        }
    }

    /// A machine that fails, with something hostile to say.
    pub(super) fn little_run() -> Vec<Event> {
        let machine = || "client-0".to_owned();
        let (id, run) = (MachineId::new("i-0c"), "20231114-221320-abcd".parse().unwrap());
        let groups = vec![GroupSize { name: "client".into(), count: 1 }];
        let leftovers = vec![Leftover { what: "machine i-0c".into(), why: "timed \u{1b}[31mout".into() }];
        let (address, description) = ("192.0.2.7".into(), "c7g.large".into());
        let price = Price::PerHour(0.25);
        let trial = || "1".to_owned();
        let kinds = [
            EventKind::RunStarted { run, experiment: "redis".into(), deadline: 1_700_002_700.0, groups },
            EventKind::Launched { group: "client".into(), machines: vec![id.clone()] },
            EventKind::Running { machine: machine(), id, address, description, price },
            started("client-0", "setup", "apt-get update\n\u{1b}[2J"),
            finished("client-0", "setup", "apt-get update", Ok(Exit::Status(100))),
            EventKind::TrialStarted { trial: trial() },
            EventKind::StepStarted { trial: trial(), step: "load".into(), machines: vec![machine()] },
            EventKind::Failed {
                machine: machine(),
                id: None,
                stage: "load".into(),
                error: "no\nroom".into(),
            },
            EventKind::TornDown { leftovers, seconds: 2.0 },
            EventKind::RunFinished { ok: false, error: Some("it\u{9b}failed".into()) },
        ];
        (0..).zip(kinds).map(|(second, kind)| at(f64::from(second), kind)).collect()
    }

    #[test]
    fn scripts_of_the_same_name_and_user_data_are_all_kept() {
        let scripts = ["a/setup.sh", "b/setup.sh", "a/setup.sh", "2-setup.sh", "user-data"].map(Path::new);
        let names = |taken: &[(String, String)]| -> Vec<_> {
            let named = named(scripts.into_iter(), taken);
            named.into_iter().map(|(name, path)| (name.into_string().unwrap(), path.to_owned())).collect()
        };
        let mut expected = [
            ("2-2-setup.sh", "2-setup.sh"),
            ("2-setup.sh", "b/setup.sh"),
            ("setup.sh", "a/setup.sh"),
            ("user-data", "user-data"),
        ]
        .map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
        assert_eq!(names(&[]), expected);
        expected[3].0 = "2-user-data".to_owned();
        expected.sort();
        assert_eq!(names(&[("user-data".to_owned(), String::new())]), expected);
    }

    #[test]
    fn inputs_hold_what_the_provider_keeps_of_each_group() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.toml");
        fs::write(&file, "name = 'x'\n[group.a]\n").unwrap();
        let mut experiment = Experiment::load(&file).unwrap();
        experiment.groups[0].inputs.push(("user-data".to_owned(), "#!/bin/sh\n".to_owned()));
        write_inputs(&experiment, &directory.path().join("inputs")).unwrap();
        let kept = fs::read_to_string(directory.path().join("inputs/a/user-data")).unwrap();
        assert_eq!(kept, "#!/bin/sh\n");
    }
}
