//! What commands write, in files.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::{ResultsError, ResultsFile, again, files, lock};
use crate::names::is_experiment_name;
use crate::{Event, EventKind, Exit, Observer, Origin, Stream};

/// What the directory of the logs is called.
pub(super) const DIRECTORY: &str = "logs";

/// How many files are open at once, so that a thousand machines don't use up the descriptors.
const OPEN: usize = 200;

/// Appends what commands write, byte for byte and as it arrives, to `<directory>/<machine>/<stage>.log`, and a line
/// for the beginning and the end of each command.
pub struct Logs {
    directory: PathBuf,
    open: usize,
    state: Mutex<State>,
    /// What nothing more is written after.
    error: OnceLock<io::Error>,
}

#[derive(Default)]
struct State {
    /// By machine and stage.
    logs: HashMap<String, HashMap<String, Log>>,
    open: usize,
    /// Counts uses.
    clock: u64,
}

#[derive(Default)]
struct Log {
    file: Option<File>,
    used: u64,
    /// Whether the last line has no end.
    unfinished: bool,
}

impl Logs {
    /// Writes below `directory`, which is created when there is something to write.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, open: OPEN, state: Mutex::default(), error: OnceLock::new() }
    }

    /// The error after which nothing more is written, if there was one.
    pub fn error(&self) -> Option<io::Error> {
        self.error.get().map(again)
    }

    /// Whether anything of a machine's stage may be written. Waits for nobody who writes.
    fn may_write(&self, machine: &str, stage: &str) -> io::Result<()> {
        if let Some(error) = self.error() {
            return Err(error);
        }
        if is_experiment_name(machine) && is_experiment_name(stage) {
            return Ok(());
        }
        // A matter of its own log only.
        let wrong = io::Error::new(io::ErrorKind::InvalidInput, "not a name that may become a file's");
        Err(self.told(machine, stage, &wrong))
    }

    fn told(&self, machine: &str, stage: &str, error: &io::Error) -> io::Error {
        let path = self.directory.join(machine).join(stage);
        io::Error::new(error.kind(), format!("cannot write {}.log: {error}", path.display()))
    }

    /// Appends; on a line of its own, if it is a line of ours.
    fn append(&self, machine: &str, stage: &str, ours: bool, bytes: &[u8]) -> io::Result<()> {
        let state = &mut *lock(&self.state);
        self.may_write(machine, stage)?;
        let result = state.append(&self.directory, self.open, machine, stage, ours, bytes);
        result.map_err(|error| {
            let error = self.told(machine, stage, &error);
            again(self.error.get_or_init(|| error))
        })
    }
}

impl State {
    fn append(
        &mut self,
        directory: &Path,
        limit: usize,
        machine: &str,
        stage: &str,
        ours: bool,
        bytes: &[u8],
    ) -> io::Result<()> {
        self.clock += 1;
        if !self.logs.get(machine).is_some_and(|stages| stages.contains_key(stage)) {
            self.logs.entry(machine.to_owned()).or_default().insert(stage.to_owned(), Log::default());
        }
        let closed = self.logs[machine][stage].file.is_none();
        if closed && self.open >= limit {
            let open = self.logs.values_mut().flat_map(HashMap::values_mut).filter(|log| log.file.is_some());
            if let Some(oldest) = open.min_by_key(|log| log.used) {
                oldest.file = None;
                self.open -= 1;
            }
        }
        let Some(log) = self.logs.get_mut(machine).and_then(|stages| stages.get_mut(stage)) else {
            return Ok(());
        };
        let file = match &mut log.file {
            Some(file) => file,
            closed => {
                let directory = directory.join(machine);
                files::make_directory(&directory)?;
                let file = files::append(&directory.join(format!("{stage}.log")))?;
                self.open += 1;
                closed.insert(file)
            }
        };
        log.used = self.clock;
        if ours && log.unfinished {
            file.write_all(b"\n")?;
        }
        log.unfinished = bytes.last().map_or(log.unfinished, |last| *last != b'\n');
        file.write_all(bytes)
    }
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logs").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Observer for Logs {
    fn event(&self, event: &Event) {
        let result = match &event.kind {
            EventKind::CommandStarted { machine, stage, command, .. } => {
                self.append(machine, stage, true, beginning(command).as_bytes())
            }
            EventKind::CommandFinished { machine, stage, exit, error, took, .. } => {
                let end = ending(exit.as_ref(), error.as_deref(), *took);
                self.append(machine, stage, true, end.as_bytes())
            }
            _ => return,
        };
        // Kept: the next output is refused with it.
        drop(result);
    }

    fn output(&self, origin: &Origin<'_>, _: Stream, bytes: &[u8]) -> io::Result<()> {
        self.append(origin.machine, origin.stage, false, bytes)
    }
}

impl ResultsFile for Logs {
    fn check(&self, origin: &Origin<'_>) -> io::Result<()> {
        self.may_write(origin.machine, origin.stage)
    }

    fn error(&self) -> Option<io::Error> {
        self.error()
    }
}

/// The lines that a command begins with.
pub(super) fn beginning(command: &str) -> String {
    format!("$ {}\n", command.trim_end())
}

/// The lines that a command ends with.
pub(super) fn ending(exit: Option<&Exit>, error: Option<&str>, took: Duration) -> String {
    let how = match (exit, error) {
        (Some(exit), None) => exit.to_string(),
        (_, error) => error.unwrap_or("no status").replace('\n', "\n# "),
    };
    format!("# {how} after {:.1} s\n", took.as_secs_f64())
}

pub(super) fn create(directory: &Path) -> Result<Arc<dyn ResultsFile>, ResultsError> {
    Ok(Arc::new(Logs::new(directory.join(DIRECTORY))))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::results::tests::{at, finished, started};

    fn read(directory: &Path, log: &str) -> Vec<u8> {
        fs::read(directory.join(log)).unwrap()
    }

    #[test]
    fn output_is_kept_raw_between_the_lines_of_its_commands() {
        let home = tempfile::tempdir().unwrap();
        let logs = Logs::new(home.path().join("logs"));
        let origin = Origin::new("client-0", "setup");
        logs.event(&at(0.0, started("client-0", "setup", "make")));
        logs.output(&origin, Stream::Stdout, b"\x1b[32mok\xff").unwrap();
        logs.output(&origin, Stream::Stderr, b"err").unwrap();
        logs.event(&at(1.0, finished("client-0", "setup", "make", Ok(Exit::Status(2)))));
        logs.event(&at(1.0, started("client-0", "setup", "sleep 1")));
        logs.event(&at(2.0, finished("client-0", "setup", "sleep 1", Err("cancelled"))));
        let expected =
            b"$ make\n\x1b[32mok\xfferr\n# status 2 after 1.2 s\n$ sleep 1\n# cancelled after 1.2 s\n";
        assert_eq!(read(home.path(), "logs/client-0/setup.log"), expected);
        assert!(logs.error().is_none());
    }

    #[test]
    fn files_that_were_closed_are_continued() {
        let home = tempfile::tempdir().unwrap();
        let logs = Logs { open: 3, ..Logs::new(home.path().into()) };
        for round in 0..3 {
            for machine in 0..10 {
                let machine = format!("m-{machine}");
                let line = format!("{round}\n");
                logs.output(&Origin::new(&machine, "s"), Stream::Stdout, line.as_bytes()).unwrap();
                let state = lock(&logs.state);
                let open =
                    state.logs.values().flat_map(HashMap::values).filter(|log| log.file.is_some()).count();
                assert!(open <= 3 && open == state.open, "{open} open");
            }
        }
        for machine in 0..10 {
            assert_eq!(read(home.path(), &format!("m-{machine}/s.log")), b"0\n1\n2\n");
        }
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for bad in ["..", ".hidden", "a/b", "", "-x", "a\0", "ü"] {
            for (machine, stage) in [(bad, "setup"), ("client-0", bad)] {
                let home = tempfile::tempdir().unwrap();
                let logs = Logs::new(home.path().join("logs"));
                assert!(logs.output(&Origin::new(machine, stage), Stream::Stdout, b"x").is_err(), "{bad:?}");
                assert!(!home.path().join("logs").exists());
                logs.output(&Origin::new("client-0", "setup"), Stream::Stdout, b"x").unwrap();
            }
        }
    }

    #[test]
    fn an_error_at_a_commands_beginning_refuses_its_output() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("logs"), "in the way").unwrap();
        let logs = Logs::new(home.path().join("logs"));
        logs.event(&at(0.0, started("client-0", "setup", "make")));
        assert!(logs.error().unwrap().to_string().contains("client-0/setup.log"));
        let origin = Origin::new("client-0", "setup");
        assert!(logs.output(&origin, Stream::Stdout, b"x").is_err());
    }
}
