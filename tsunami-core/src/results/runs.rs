//! What stands beside the results of an experiment's runs: `latest`, a link to the newest of them, and `index.csv`, which
//! says what each of them was given and came to.
//!
//! Both are for people. What can't be written is told, and left out: the results of each run are whole without it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::{ResultsFile, files, lock};
use crate::{Event, EventKind, Observer, Outcome};

const LATEST: &str = "latest";
const INDEX: &str = "index.csv";

/// The first columns of the index. A column for each value that any run was given comes behind them.
const COLUMNS: [&str; 3] = ["run", "began", "outcome"];

/// The most bytes of an index: it is held in memory, and written anew by each run. One that would be longer is neither read
/// nor written, so that nothing of it is lost.
const INDEX_LIMIT: u64 = 16 << 20;

/// How long another process may take to change the index.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// How often that is looked at.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Enters a run when its first machine is asked for, or its trials begin on those of another one: what was refused before is
/// nothing to lead to.
#[derive(Debug)]
pub(super) struct Beginning {
    results: PathBuf,
    values: Vec<(String, String)>,
    /// What [`enter`] could not, once it was tried.
    remarks: Mutex<Option<Vec<String>>>,
}

impl Beginning {
    pub(super) fn new(results: &Path, values: &[(String, String)]) -> Self {
        Self { results: results.to_owned(), values: values.to_owned(), remarks: Mutex::default() }
    }

    /// Whether it was entered.
    pub(super) fn has_begun(&self) -> bool {
        lock(&self.remarks).is_some()
    }

    /// Whether it was to be listed, and could not be.
    pub(super) fn is_unlisted(&self) -> bool {
        let index = shown(&self.results, INDEX);
        self.remarks().iter().any(|remark| remark.starts_with(&index))
    }

    pub(super) fn remarks(&self) -> Vec<String> {
        lock(&self.remarks).clone().unwrap_or_default()
    }
}

impl Observer for Beginning {
    fn event(&self, event: &Event) {
        if matches!(event.kind, EventKind::Launching { .. } | EventKind::SetStarted { .. }) {
            lock(&self.remarks).get_or_insert_with(|| enter(&self.results, &self.values));
        }
    }
}

impl ResultsFile for Beginning {}

/// Enters a run that begins, and has `latest` lead to it. Returns what it could not, and why, a line each.
fn enter(results: &Path, values: &[(String, String)]) -> Vec<String> {
    let Some((parent, run)) = &place(results) else { return Vec::new() };
    let pointed = point(parent, run);
    let pointed =
        pointed.map_err(|error| format!("{} does not lead to this run: {error}", shown(results, LATEST)));
    let began = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let entered = change(parent, |index| index.enter(run, &began, values));
    let entered =
        entered.map_err(|error| format!("{} does not list this run: {error}", shown(results, INDEX)));
    [pointed.err(), entered.err()].into_iter().flatten().collect()
}

/// Enters what a run came to, if it is listed. Returns why it could not, if so.
pub(super) fn settle(results: &Path, outcome: Outcome) -> Option<String> {
    let (parent, run) = &place(results)?;
    let path = parent.join(INDEX);
    let settled = match files::open(&path).and_then(Index::read) {
        Ok(index) if index.has(run) => change(parent, |index| index.settle(run, outcome.words())),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error),
        // What is no index of ours lists nobody.
        _ => return None,
    };
    let index = shown(results, INDEX);
    settled
        .err()
        .map(|error| format!("{index} does not say what this run came to ({}): {error}", outcome.words()))
}

/// What stands beside results, as they themselves are called.
fn shown(results: &Path, name: &str) -> String {
    results.with_file_name(name).display().to_string()
}

/// Where the index is, and what a run is called there, whatever link leads to its results.
fn place(results: &Path) -> Option<(PathBuf, String)> {
    let results = fs::canonicalize(results).ok()?;
    Some((results.parent()?.to_owned(), results.file_name()?.to_str()?.to_owned()))
}

/// Has the link lead to a run. What has its name and is no link is somebody's own.
fn point(parent: &Path, run: &str) -> io::Result<()> {
    let latest = parent.join(LATEST);
    if latest.symlink_metadata().is_ok_and(|known| !known.is_symlink()) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something else, which stays"));
    }
    // Renamed into its place, so that it always leads somewhere.
    let aside = parent.join(format!(".{LATEST}-{run}"));
    symlink(run, &aside)?;
    let pointed = fs::rename(&aside, &latest);
    if pointed.is_err() {
        let _ = fs::remove_file(&aside);
    }
    pointed
}

/// Changes the index, one process after another. A file of that name that is no index of ours stays as it is.
fn change(parent: &Path, change: impl FnOnce(&mut Index) -> bool) -> io::Result<()> {
    let _lock = lock_directory(parent)?;
    let path = parent.join(INDEX);
    if path.is_symlink() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a link"));
    }
    let mut index = match files::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Index::default(),
        file => Index::read(file?)?,
    };
    index.rows.retain(|row| parent.join(&row[0]).is_dir());
    match change(&mut index) {
        true => files::write(&path, index.text()?),
        false => Ok(()),
    }
}

fn lock_directory(parent: &Path) -> io::Result<File> {
    let (directory, begun) = (File::open(parent)?, Instant::now());
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(directory),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_TIMEOUT => thread::sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => return Err(io::Error::other("another process is changing it")),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// A line a run, in the order in which they began.
#[derive(Default)]
struct Index {
    /// The names of the values.
    names: Vec<String>,
    /// The first columns, and a value for each of the first names.
    rows: Vec<Vec<String>>,
}

impl Index {
    fn read(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        check_length(length)?;
        // As a full disk or an editor may leave it.
        if length == 0 {
            return Ok(Self::default());
        }
        let mut text = Vec::new();
        file.take(length).read_to_end(&mut text)?;
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_slice());
        let header = reader.headers().map_err(io::Error::from)?.clone();
        if !header.iter().take(COLUMNS.len()).eq(COLUMNS) {
            return Err(io::Error::other("it is no index of runs, and stays"));
        }
        // The reader takes a quote without its other one as the beginning of a value that holds all lines behind it.
        if text.iter().filter(|byte| **byte == b'"').count() % 2 == 1 {
            return Err(damaged("a quote has no other one"));
        }
        let names = header.iter().skip(COLUMNS.len()).map(str::to_owned).collect();
        let mut rows = Vec::new();
        for row in reader.records() {
            let row = row.map_err(damaged)?;
            if row.len() != header.len() || humantime::parse_rfc3339(&row[1]).is_err() {
                let line = row.position().map_or(0, csv::Position::line);
                return Err(damaged(format!("line {line} is of no run")));
            }
            rows.push(row.iter().map(str::to_owned).collect());
        }
        Ok(Self { names, rows })
    }

    fn has(&self, run: &str) -> bool {
        self.rows.iter().any(|row| row[0] == run)
    }

    fn enter(&mut self, run: &str, began: &str, values: &[(String, String)]) -> bool {
        for (name, _) in values {
            if !self.names.contains(name) {
                self.names.push(name.clone());
            }
        }
        // The last one counts, as it does in templates.
        let value = |name: &String| values.iter().rev().find(|(known, _)| known == name);
        let values = self.names.iter().map(|name| value(name).map(|(_, value)| value.clone()));
        let row = [run, began, ""].map(str::to_owned).into_iter();
        self.rows.push(row.chain(values.map(Option::unwrap_or_default)).collect());
        true
    }

    fn settle(&mut self, run: &str, outcome: &str) -> bool {
        let row = self.rows.iter_mut().find(|row| row[0] == run);
        row.map(|row| outcome.clone_into(&mut row[2])).is_some()
    }

    fn text(&self) -> io::Result<Vec<u8>> {
        let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
        writer.write_record(COLUMNS.into_iter().chain(self.names.iter().map(String::as_str)))?;
        for row in &self.rows {
            let missing = (COLUMNS.len() + self.names.len()).saturating_sub(row.len());
            writer.write_record(row.iter().map(String::as_str).chain(std::iter::repeat_n("", missing)))?;
        }
        let text = writer.into_inner().map_err(csv::IntoInnerError::into_error)?;
        check_length(text.len() as u64)?;
        Ok(text)
    }
}

fn damaged(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it is damaged, and stays: {why}"))
}

fn check_length(length: u64) -> io::Result<()> {
    match length {
        ..=INDEX_LIMIT => Ok(()),
        _ => Err(io::Error::other(format!(
            "it may have {} MiB at most; a new one begins once it is moved away",
            INDEX_LIMIT >> 20
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::at;

    #[test]
    fn the_index_says_what_runs_were_given_and_came_to_and_latest_leads_to_the_newest() {
        let home = tempfile::tempdir().unwrap();
        let run = |name: &str| {
            let run = home.path().join(name);
            fs::create_dir(&run).unwrap();
            run
        };
        let value = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let index = || {
            let text = fs::read_to_string(home.path().join(INDEX)).unwrap();
            let without_time = |line: &str| {
                let mut parts: Vec<_> = line.split(',').collect();
                parts.remove(1);
                parts.join(",")
            };
            text.lines().map(without_time).collect::<Vec<_>>()
        };
        let (a, b) = (run("a"), run("b"));
        let beginning = Beginning::new(&b, &[value("word", "x y")]);
        let event = |kind| beginning.event(&at(0.0, kind));
        event(EventKind::Chosen { group: "n".into(), asked: "any".into(), chosen: Vec::new() });
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2, "nothing is asked for yet");
        enter(&a, &[value("n", "1"), value("n", "2")]);
        for group in ["n", "m"] {
            event(EventKind::Launching { group: group.into(), count: 1 });
        }
        settle(&a, Outcome::Failed);
        assert_eq!(index(), ["run,outcome,n,word", "a,failed,2,", "b,,,x y"]);
        assert_eq!(fs::read_link(home.path().join(LATEST)).unwrap(), Path::new("b"));
        // Resumed by the link.
        settle(&home.path().join(LATEST), Outcome::Interrupted);
        assert_eq!(index()[2], "b,interrupted,,x y");
        fs::remove_dir(&a).unwrap();
        settle(&b, Outcome::Success);
        assert_eq!(index(), ["run,outcome,n,word", "b,success,,x y"], "what is gone is not listed");

        let runs: Vec<_> = (0..8).map(|n| run(&format!("at-once-{n}"))).collect();
        thread::scope(|scope| {
            for run in &runs {
                scope.spawn(|| {
                    enter(run, &[]);
                    settle(run, Outcome::Interrupted);
                });
            }
        });
        assert_eq!(index().iter().filter(|line| line.contains(",interrupted,")).count(), 8);
        let names = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.filter(|name| name.as_encoded_bytes()[0] == b'.').count(), 0);

        // What somebody else has put there stays.
        fs::remove_file(home.path().join(LATEST)).unwrap();
        fs::create_dir(home.path().join(LATEST)).unwrap();
        fs::write(home.path().join(INDEX), "mine\n").unwrap();
        let begun = Beginning::new(&b, &[]);
        begun.event(&at(0.0, EventKind::Launching { group: "n".into(), count: 1 }));
        assert!(begun.is_unlisted() && !beginning.is_unlisted());
        let c = run("c");
        let [latest, index] = &enter(&c, &[])[..] else { panic!("both are told") };
        assert!(
            latest.ends_with("/latest does not lead to this run: there is something else, which stays"),
            "{latest}"
        );
        assert!(
            index.ends_with("/index.csv does not list this run: it is no index of runs, and stays"),
            "{index}"
        );
        assert_eq!(settle(&c, Outcome::Success), None, "it was told at the beginning");
        assert!(home.path().join(LATEST).symlink_metadata().unwrap().is_dir());
        assert_eq!(fs::read_to_string(home.path().join(INDEX)).unwrap(), "mine\n");
        // Of a damaged one nothing goes, although what is gone is not listed.
        let head = "run,began,outcome,n\n";
        let row = "gone,2026-01-01T00:00:00Z,success,1\n";
        let stray = format!("{head}\"{row}{row}");
        let last = format!("{head}{row}gone,2026-01-01T00:00:00Z,success,\"1\n{row}");
        let noted = format!("{head}{row}my own note\n");
        for (text, why) in [
            (stray, "a quote has no other one"),
            (last, "a quote has no other one"),
            (format!("{head}gone,2026-01\n{row}"), "line 2 is of no run"),
            (format!("{head}{row}gone,2026-01-01T00:00:00Z,succ"), "line 3 is of no run"),
            (noted, "line 3 is of no run"),
        ] {
            fs::write(home.path().join(INDEX), &text).unwrap();
            let told = enter(&c, &[]);
            let expected = format!("/index.csv does not list this run: it is damaged, and stays: {why}");
            assert!(told[1].ends_with(&expected), "{told:?}");
            let told = settle(&c, Outcome::Success).unwrap();
            assert!(told.ends_with(&format!("(success): it is damaged, and stays: {why}")), "{told}");
            assert_eq!(fs::read_to_string(home.path().join(INDEX)).unwrap(), text);
        }
        // Nothing is cut off an index that is too long, or would be.
        for length in [16 << 20, (16 << 20) - 50] {
            let long = format!("{head}b,2026-01-01T00:00:00Z,,{}\n", "x".repeat(length));
            fs::write(home.path().join(INDEX), &long).unwrap();
            let told = enter(&c, &[]);
            assert!(told[1].contains("it may have 16 MiB at most; a new one begins once"), "{told:?}");
            assert_eq!(settle(&c, Outcome::Success), None);
            assert!(fs::read_to_string(home.path().join(INDEX)).unwrap() == long, "it stays");
        }
        fs::write(home.path().join(INDEX), "").unwrap();
        enter(&c, &[]);
        settle(&c, Outcome::Success);
        let begun = fs::read_to_string(home.path().join(INDEX)).unwrap();
        assert!(begun.starts_with("run,began,outcome\nc,") && begun.ends_with(",success\n"), "{begun}");
        let odd: [fn(&Path); 2] =
            [|path| fs::create_dir(path).unwrap(), |path| symlink("mine", path).unwrap()];
        for make in odd {
            let _ = fs::remove_file(home.path().join(INDEX));
            let _ = fs::remove_dir(home.path().join(INDEX));
            make(&home.path().join(INDEX));
            let told = enter(&c, &[]);
            assert!(told[1].ends_with(": it is no file") || told[1].ends_with(": it is a link"), "{told:?}");
        }
        let elsewhere = tempfile::tempdir().unwrap();
        settle(&elsewhere.path().join("out"), Outcome::Success);
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }
}
