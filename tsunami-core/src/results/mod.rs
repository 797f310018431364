//! The directory that explains a run: what was asked for, what happened, what came of it.
//!
//! [`Results::create`] makes it and writes down what is known beforehand, its [observers](Results::observers) write
//! events and logs as they come, and [`Results::finish`] sums up. [`Secrets`] are taken out of what all of them write.

mod built;
mod cold_start;
mod files;
mod html;
mod index;
mod inputs;
mod json;
mod logs;
mod manifest;
mod markdown;
mod repeated;
mod results_csv;
mod results_json;
mod run_json;
mod runs;
mod secrets;
mod side_by_side;
mod writer;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinError;

use crate::experiment::Experiment;
use crate::trial::SweepPlan;
use crate::{Event, Observer, Origin, Outcome, Report, RunId, RunStore, private};

pub use built::{read_report, rebuild};
pub use cold_start::ColdStarts;
pub(crate) use inputs::{Given, INPUTS, take_kept};
pub use json::{Json, goes_on, json};
pub use logs::Logs;
pub use markdown::{markdown, summary};
pub(crate) use repeated::Repeated;
pub(crate) use secrets::Redacting;
pub use secrets::{Redacted, Secrets};
pub use side_by_side::SideBySide;

use runs::Beginning;
use writer::{Files, Writer};

/// The forms in which a run is written down. The error of the first that has one is told. The last one is made of what the
/// others have written.
const FORMATS: &[Create] = &[logs::create, json::create, run_json::create, built::create];

/// Begins one of them in a new results directory.
type Create = fn(&Path) -> Result<Arc<dyn ResultsFile>, ResultsError>;

/// One form in which a run is written down: it hears of the run as it goes on, and of its end.
///
/// [`Observer::event`] and [`Observer::output`] are called on the writer's own thread, one after the other, and may wait
/// for a disk: while they do, what comes next is queued, and once [`UNWRITTEN_LIMIT`](crate::limits::UNWRITTEN_LIMIT)
/// wait, so does whoever brings more. They wait for nothing that the run itself has to do first. What can't be written is
/// kept for `error`, and refuses later output in `check`.
trait ResultsFile: Observer {
    /// Says beforehand whether output of this origin can be written. It is called on the run's async threads, at every
    /// piece of output, and waits for nobody: neither for a disk, nor for a lock that somebody who writes may hold.
    fn check(&self, origin: &Origin<'_>) -> io::Result<()> {
        let _ = origin;
        Ok(())
    }

    /// Writes what can be said only now that the run is over, after its last event. May block, as its caller does.
    fn finish(&self, ending: &Ending<'_>) -> Result<(), ResultsError> {
        let _ = ending;
        Ok(())
    }

    /// Why it was not written to its end, if it wasn't. Called when nothing is being written.
    fn error(&self) -> Option<io::Error> {
        None
    }
}

/// What is known once a run is over.
struct Ending<'a> {
    experiment: &'a Experiment,
    outcome: Outcome,
    report: &'a Report,
}

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
    /// It is not what a run has left.
    #[error("{} is no results directory: it has no events.jsonl", .0.display())]
    NotResults(PathBuf),
    /// Another process writes to the directory.
    #[error("{} is in use: the run goes on", .0.display())]
    InUse(PathBuf),
    /// There is nothing of a sweep in the directory.
    #[error("{} has no trials to resume: none had begun", .0.display())]
    NotResumable(PathBuf),
    /// There are no such trials as are to be done.
    #[error("{0}")]
    NoSuchPart(String),
    /// Results are to go into those that are repeated.
    #[error("{} lies in the results that are repeated, which stay as they are: results go elsewhere", .0.display())]
    InRepeated(PathBuf),
    /// What is prepared on this computer did not come out as it did for the run that is repeated.
    #[error(
        "{what} is not as it was in the run that is repeated, although it is prepared, so that nothing done now would \
         be comparable: have `prepare` make the same, or {}",
        file.as_ref().map_or("start a new run".to_owned(), |file| format!("run {} as it is now", file.display()))
    )]
    PreparedOtherwise {
        /// Which file, or what of it.
        what: String,
        /// Where the experiment's own file was, if that is known.
        file: Option<PathBuf>,
    },
    /// What the trials of a run were made with is not as it was.
    #[error(
        "{what} is not as it was when the run began, so that nothing done now would be comparable: put it back, or {}",
        file.as_ref().map_or("start a new run".to_owned(), |file| format!("run {} as it is now", file.display()))
    )]
    Changed {
        /// Which file, or what of it.
        what: String,
        /// Where the experiment's own file was, if that is known.
        file: Option<PathBuf>,
    },
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

    /// What was writing the rest came to no end.
    pub(crate) fn unwritten(directory: &Path, error: JoinError) -> Self {
        Self::file("write to", directory)(error.into())
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
    writer: Arc<Writer>,
    /// Keeps others from resuming the run, until it is over.
    in_use: Mutex<Option<File>>,
    /// Of `latest` and `index.csv`, unless the directory is one that was asked for, or the run is resumed.
    beginning: Option<Arc<Beginning>>,
    /// Why `index.csv` does not say what the run came to, if so.
    unsettled: Mutex<Option<String>>,
}

impl Results {
    /// Makes the directory, new or empty, and writes what is known beforehand. Unless `output` says where it is, it is
    /// `results/<experiment>/<run>` in the working directory, `latest` beside it leads to it, and `index.csv` lists it, from
    /// when the first machine is asked for. It reads all that is uploaded, however long that takes: on a thread that may
    /// block.
    ///
    /// # Errors
    ///
    /// Why the directory can't be used: above all, that there is something in it, or that it can't be written to.
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
        // What is prepared may yet change them.
        if experiment.prepare.is_empty() {
            inputs::write(experiment, &directory.join(INPUTS))?;
        }
        let in_use = json::lock_directory(&directory)?;
        let beginning = output.is_none().then(|| Arc::new(Beginning::new(&directory, &experiment.set)));
        Self::write_on(directory, Report::default(), in_use, beginning)
    }

    /// Takes up the directory of a run that is resumed. Returns what was told of it so far, too. It reads all that is
    /// uploaded, as [`create`](Self::create) does.
    ///
    /// # Errors
    ///
    /// What can't be read or written, or a later version wrote, an input that has changed, or another process that writes
    /// there.
    pub(crate) fn resume(
        experiment: &Experiment,
        directory: &Path,
    ) -> Result<(Self, Vec<Event>), ResultsError> {
        let directory = std::path::absolute(directory).map_err(ResultsError::file("use", directory))?;
        let checked = std::env::current_dir().and_then(|base| private::check_output(&directory, &base));
        checked.map_err(ResultsError::file("write results to", &directory))?;
        if !is_results(&directory)? {
            return Err(ResultsError::NotResults(directory));
        }
        // `latest` may lead elsewhere soon.
        let directory = fs::canonicalize(&directory).map_err(ResultsError::file("use", &directory))?;
        built::check_forms(&directory)?;
        check_inputs(experiment, &directory)?;
        let in_use = json::lock_directory(&directory)?;
        let events = json::read(&directory)?;
        let report = events.iter().collect();
        Ok((Self::write_on(directory, report, in_use, None)?, events))
    }

    fn write_on(
        directory: PathBuf,
        report: Report,
        in_use: File,
        beginning: Option<Arc<Beginning>>,
    ) -> Result<Self, ResultsError> {
        let mut files: Files = FORMATS.iter().map(|create| create(&directory)).collect::<Result<_, _>>()?;
        files.extend(beginning.clone().map(|beginning| beginning as Arc<dyn ResultsFile>));
        let writer = Writer::start(files).map_err(ResultsError::file("write to", &directory))?;
        let report = Arc::new(Summary(Mutex::new(report)));
        let (writer, in_use) = (Arc::new(writer), Mutex::new(Some(in_use)));
        Ok(Self { directory, report, writer, in_use, beginning, unsettled: Mutex::default() })
    }

    /// What is known of the run by now.
    pub(crate) fn report(&self) -> Report {
        lock(&self.report.0).clone()
    }

    /// Whether a trial has left anything here.
    pub(crate) fn has_trial(&self, trial: &str) -> bool {
        self.directory.join("trials").join(trial).symlink_metadata().is_ok()
    }

    /// Where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the logs of commands are: `<machine>/<stage>.log`.
    pub fn logs(&self) -> PathBuf {
        self.directory.join(logs::DIRECTORY)
    }

    /// Where traces of what machines do are: `<machine>.csv`.
    pub fn traces(&self) -> PathBuf {
        self.directory.join("traces")
    }

    /// Writes down what machines will be given, once it has been prepared. It reads all that is uploaded.
    pub(crate) fn write_inputs(&self, experiment: &Experiment) -> Result<(), ResultsError> {
        inputs::write(experiment, &self.directory.join(INPUTS))
    }

    /// What of that is not what machines have whose run's results are in a directory, if that is known and anything is.
    pub(crate) fn given_otherwise(&self, machines: &Path) -> Result<Option<String>, ResultsError> {
        let theirs = machines.join(INPUTS);
        inputs::otherwise(&self.directory.join(INPUTS), &theirs).map_err(ResultsError::file("read", theirs))
    }

    /// Whether that is written down.
    pub(crate) fn has_inputs(&self) -> bool {
        self.directory.join(INPUTS).exists()
    }

    /// The log of what is done on this computer, and where it is.
    pub(crate) fn local_log(&self, stage: &str) -> Result<(PathBuf, fs::File), ResultsError> {
        let path = self.logs().join(format!("{stage}.log"));
        let opened = files::make_directory(&self.logs()).and_then(|()| files::append(&path));
        Ok((path.clone(), opened.map_err(ResultsError::file("write", path))?))
    }

    /// Where a step's files from a machine go.
    pub fn collected(&self, trial: &str, step: &str, machine: &str) -> PathBuf {
        self.directory.join("trials").join(trial).join(step).join(machine)
    }

    /// Keeps what a trial that doesn't count brought home from mixing with what the next attempt does.
    pub fn set_aside(&self, trial: &str, attempt: &str) -> io::Result<()> {
        let trials = self.directory.join("trials");
        // An attempt of that name may be there that a process was killed over before it could tell.
        let names = (1..).map(|nth| if nth == 1 { attempt.to_owned() } else { format!("{attempt}-{nth}") });
        let mut free = names.map(|name| trials.join(name)).filter(|path| path.symlink_metadata().is_err());
        match free.next().map(|free| fs::rename(trials.join(trial), free)) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes down what the numbers of trials mean, as `trials/index.csv`.
    pub fn write_index(&self, plan: &SweepPlan) -> Result<(), ResultsError> {
        let (trials, path) = (self.directory.join("trials"), self.directory.join("trials/index.csv"));
        files::make_directory(&trials).map_err(ResultsError::file("make", &trials))?;
        let index = index::of(plan).map_err(io::Error::from);
        index.and_then(|index| files::write(&path, index)).map_err(ResultsError::file("write", &path))
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

    /// Writes what can be said only now that the run is over, as `run.json`, and returns what of it comes from the
    /// events. Of a run that was refused before a machine was asked for, or used, and before anything was prepared for it,
    /// there is nothing to write down: the directory is removed, unless it was asked for. It blocks until what was observed is written, however slow the disk is: on a thread that may, as
    /// [`ExperimentRun::finish`](crate::experiment::ExperimentRun::finish) has it.
    ///
    /// # Errors
    ///
    /// What could not be written. All else is.
    pub fn finish(&self, experiment: &Experiment, outcome: Outcome) -> Result<Report, ResultsError> {
        self.writer.settle(None);
        let report = lock(&self.report.0).clone();
        let is_refused = matches!(outcome, Outcome::Misused | Outcome::NotLaunched | Outcome::Interrupted)
            && self.beginning.as_ref().is_some_and(|beginning| !beginning.has_begun());
        if is_refused && !self.logs().exists() {
            drop(lock(&self.in_use).take());
            let removed = fs::remove_dir_all(&self.directory);
            return removed.map(|()| report).map_err(ResultsError::file("remove", &self.directory));
        }
        let ending = Ending { experiment, outcome, report: &report };
        // One that can't be written keeps no other from being so.
        let finished: Vec<_> = self.writer.files().iter().map(|file| file.finish(&ending)).collect();
        // Whoever could not be listed was told so.
        let is_unlisted = self.beginning.as_ref().is_some_and(|beginning| beginning.is_unlisted());
        *lock(&self.unsettled) = if is_unlisted { None } else { runs::settle(&self.directory, outcome) };
        drop(lock(&self.in_use).take());
        finished.into_iter().collect::<Result<(), _>>()?;
        Ok(report)
    }

    /// What of `latest` and `index.csv` beside the directory could not be written by now, and why, in words. The results are
    /// whole without them.
    pub fn remarks(&self) -> Vec<String> {
        let beginning = self.beginning.iter().flat_map(|beginning| beginning.remarks());
        beginning.chain(lock(&self.unsettled).clone()).collect()
    }

    /// Why events or logs were not written to their end, if they weren't. It blocks as [`finish`](Self::finish) does;
    /// [`ExperimentRun::unwritten`](crate::experiment::ExperimentRun::unwritten) is the same for tasks.
    pub fn error(&self) -> Option<io::Error> {
        self.writer.settle(None);
        self.writer.files().iter().find_map(|file| file.error()).or_else(|| self.writer.error())
    }
}

/// Whether a place is a directory, or will be below it once it is made.
pub(crate) fn lies_in(place: &Path, directory: &Path) -> bool {
    let Ok(directory) = fs::canonicalize(directory) else { return false };
    let place = std::path::absolute(place).unwrap_or_else(|_| place.to_owned());
    let made = place.ancestors().find_map(|above| fs::canonicalize(above).ok());
    made.is_some_and(|made| made.starts_with(directory))
}

/// What is done again where a run is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepeatedRun {
    /// The run, if that is known.
    pub run: Option<RunId>,
    /// What parameters are in the part of its trials that it did; none if it was to do all of them.
    pub part: Vec<(String, String)>,
}

/// What would be done again, by the directory of a run's results. Blocks.
///
/// # Errors
///
/// As [`read_report`] has them.
pub fn repeated(directory: &Path) -> Result<RepeatedRun, ResultsError> {
    let repeated = Repeated::read(directory)?;
    Ok(RepeatedRun { run: repeated.run(), part: repeated.part() })
}

/// Whether a run has left its events in a directory.
///
/// # Errors
///
/// Nobody can tell, as where the directory may not be looked into.
pub fn is_results(directory: &Path) -> Result<bool, ResultsError> {
    let events = directory.join(json::EVENTS);
    match fs::metadata(&events) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        found => found.map(|_| true).map_err(ResultsError::file("look at", events)),
    }
}

/// Compares what an experiment would be given now with what the run of a results directory was given. It reads all that is
/// uploaded.
///
/// # Errors
///
/// [`Changed`](ResultsError::Changed), and what can't be read.
pub fn check_inputs(experiment: &Experiment, directory: &Path) -> Result<(), ResultsError> {
    inputs::check(experiment, &directory.join(INPUTS))
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::{EventKind, Exit, GroupSize, Leftover, MachineId, MachineKind, Price};

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

    fn began() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    /// An event so many seconds after the run began.
    pub(super) fn at(elapsed: f64, kind: EventKind) -> Event {
        let elapsed = Duration::from_secs_f64(elapsed);
        Event::new(began() + elapsed, elapsed, kind)
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
            cancelled: false,
            took: Duration::from_millis(1250),
        }
    }

    /// A machine that fails, with something hostile to say.
    pub(super) fn little_run() -> Vec<Event> {
        let machine = || "client-0".to_owned();
        let (id, run) = (MachineId::new("i-0c"), "20231114-221320-abcd".parse().unwrap());
        let groups = vec![GroupSize { name: "client".into(), count: 1 }];
        let leftovers = vec![Leftover { what: "machine i-0c".into(), why: "timed \u{1b}[31mout".into() }];
        let (address, description) = (Some("192.0.2.7".into()), "c7g.large".into());
        let price = Price::PerHour(0.25);
        let trial = || "1".to_owned();
        let kinds = [
            EventKind::RunStarted {
                run,
                experiment: "redis".into(),
                deadline: began() + Duration::from_secs(2700),
                groups,
            },
            EventKind::Launched { group: "client".into(), machines: vec![id.clone()] },
            EventKind::Running {
                machine: machine(),
                id,
                address,
                description,
                kind: MachineKind::default().machine_type("c7g.large").region("eu-west-1"),
                price,
            },
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
            EventKind::TornDown { leftovers, took: Duration::from_secs(2) },
            EventKind::RunFinished { ok: false, error: Some("it\u{9b}failed".into()) },
        ];
        (0..).zip(kinds).map(|(second, kind)| at(f64::from(second), kind)).collect()
    }

    #[test]
    fn what_may_not_be_looked_at_is_not_taken_for_something_else() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_results(directory.path()).unwrap());
        let events = directory.path().join(json::EVENTS);
        // Root may look everywhere; but nobody follows a link to itself.
        std::os::unix::fs::symlink(&events, &events).unwrap();
        let error = is_results(directory.path()).unwrap_err();
        assert!(error.to_string().starts_with("cannot look at"), "{error}");
        let refused = read_report(directory.path()).unwrap_err();
        assert!(matches!(refused, ResultsError::File { .. }), "{refused}");
        let problems = crate::experiment::Loader::new().load_again(directory.path()).unwrap_err();
        assert!(problems.to_string().contains("can't be told whether"), "{problems}");
        fs::remove_file(&events).unwrap();
        fs::write(&events, "").unwrap();
        assert!(is_results(directory.path()).unwrap() && !is_results(&events).unwrap());
    }
}
