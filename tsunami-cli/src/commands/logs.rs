//! `tsunami logs`: what set-up and steps printed.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;
use tsunami_core::results::goes_on;
use tsunami_core::text::Lines;
use tsunami_core::{Error as CoreError, Event, EventKind, RunEntry, RunStore, Stream, read_events};

use super::{Context, Execute, names};
use crate::error::{Error, USAGE};
use crate::terminal::{PassedOn, Style, one_line, say};

/// How often the files are looked at while following.
const POLL: Duration = Duration::from_millis(200);

/// What the machine is called that a log is of which no machine has: this computer.
const HERE: &str = "here";

/// How much of a line is looked at at once.
const PIECE: u64 = 64 << 10;

/// How much of a run's events is read to find out whose machines it used.
const BEGINNING: u64 = 64 << 10;

/// Show what set-up and steps printed
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Logs {
    /// A run id, a prefix of one, an experiment's name, or a directory of results
    run: String,
    /// Only these machines and groups
    #[arg(value_name = "MACHINE|GROUP")]
    only: Vec<String>,
    /// Go on as long as the run does
    #[arg(short, long)]
    follow: bool,
}

const EXAMPLES: &str = "\
Examples:
  tsunami logs redis
  tsunami logs redis server-0 -f";

impl Execute for Logs {
    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let colour = context.colour_of_stdout;
        // Logs may be large, and whoever reads them slow.
        let shown = spawn_blocking(move || logs(&self, colour));
        shown.await.map_err(CoreError::other)?
    }
}

fn logs(Logs { run, only, follow }: &Logs, colour: bool) -> Result<u8, Error> {
    let state = RunStore::standard()?;
    let (recorded, directories) = find(&state, run)?;
    let is_going = || {
        let is_controlled = |run: &RunEntry| run.is_controlled().unwrap_or(false);
        *follow && (recorded.as_ref().is_some_and(is_controlled) || directories.iter().any(|it| goes_on(it)))
    };
    let mut shown = Shown::of(&directories, colour);
    let mut is_first = true;
    loop {
        // Asked before reading, so that what was written last is seen.
        let going = is_going();
        let is_idle = *follow && is_first && !going;
        for directory in &directories {
            shown.find(&directory.join("logs"), only).map_err(Error::file("read", directory))?;
        }
        let done = if std::mem::take(&mut is_first) { shown.so_far(going) } else { shown.more() };
        match done.and_then(|()| shown.out.flush()) {
            // Whoever read it has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(0),
            done => done.map_err(Error::file("show", "the logs"))?,
        }
        if is_idle {
            say("nothing is going on there that could be followed");
        }
        if !going {
            break;
        }
        thread::sleep(POLL);
    }
    let ended = shown.finish();
    if ended.as_ref().is_err_and(|error| error.kind() != ErrorKind::BrokenPipe) {
        ended.map_err(Error::file("write to", "standard output"))?;
    }
    if shown.logs.is_empty() && only.is_empty() {
        say("no logs");
        return Ok(USAGE);
    }
    let is_missing = |name: &&String| !shown.logs.iter().any(|log| log.is_of(name));
    let missing: Vec<&str> = only.iter().filter(is_missing).map(String::as_str).collect();
    if !missing.is_empty() {
        let known = shown.machines.iter().filter_map(|machine| {
            let (group, index) = machine.rsplit_once('-')?;
            Some((group, index.parse().ok()?))
        });
        say(&format!("no logs of {}; there are those of {}", missing.join(", "), names(known)));
        return Ok(USAGE);
    }
    Ok(0)
}

/// The run that is meant, if it is recorded, and where its results are; then those of runs that used its machines.
fn find(state: &RunStore, name: &str) -> Result<(Option<RunEntry>, Vec<PathBuf>), Error> {
    let named = Path::new(name);
    if named.join("events.jsonl").is_file() || named.join("logs").is_dir() {
        return Ok((None, vec![named.to_owned()]));
    }
    let recorded = state.find(name);
    let (entry, results) = match &recorded {
        Ok(entry) => (Some(entry.clone()), entry.record()?.results),
        // The record of a run that is over is gone, and runs on another one's machines have none; their results may be here.
        Err(CoreError::UnknownRun { .. }) => (None, find_results(Path::new("results"), name)),
        Err(_) => (None, None),
    };
    let Some(results) = results else {
        recorded?;
        return Err(Error::Usage(format!("run {name} has no results directory")));
    };
    let mut all = vec![results.clone()];
    let id = entry.as_ref().map(RunEntry::id).or_else(|| machines_of(&results)?.parse().ok());
    if let Some(id) = id.filter(|id| results.file_name() == Some(OsStr::new(id.as_str()))) {
        let beside = results.parent().and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
        let others = directories(&beside).into_iter().chain(directories(Path::new("results")));
        for other in others.filter(|other| machines_of(other).as_deref() == Some(id.as_str())) {
            let is_known = |known: &PathBuf| fs::canonicalize(known).ok() == fs::canonicalize(&other).ok();
            if !all.iter().any(is_known) {
                all.push(other);
            }
        }
    }
    Ok((entry, all))
}

/// The results of a run that is over, below this directory: by its id or the beginning of it, or the last of an experiment
/// that has logs, if any has.
fn find_results(results: &Path, name: &str) -> Option<PathBuf> {
    let all = directories(results);
    let called =
        |run: &&PathBuf| run.file_name().and_then(OsStr::to_str).is_some_and(|run| run.starts_with(name));
    let of = |run: &&PathBuf| run.parent().and_then(Path::file_name) == Some(OsStr::new(name));
    let fitting: Vec<&PathBuf> = all.iter().filter(called).filter(|_| !name.is_empty()).collect();
    match fitting[..] {
        [] => all.iter().filter(of).max_by_key(|run| (has_logs(run), run.file_name())).cloned(),
        [one] => Some(one.clone()),
        _ => None,
    }
}

/// Whether anything has been logged in results.
fn has_logs(results: &Path) -> bool {
    fs::read_dir(results.join("logs")).is_ok_and(|mut logs| logs.next().is_some())
}

/// The results directories of all experiments below one. Links to others count once.
fn directories(results: &Path) -> Vec<PathBuf> {
    let inside = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let runs = inside(results).flat_map(|experiment| inside(&experiment).collect::<Vec<_>>());
    let mut runs: Vec<PathBuf> = runs.filter(|run| !run.is_symlink() && run.is_dir()).collect();
    runs.sort();
    runs
}

/// The run whose machines the run with these results had.
fn machines_of(results: &Path) -> Option<String> {
    let file = File::open(results.join("events.jsonl")).ok()?;
    let events = read_events(BufReader::new(file.take(BEGINNING))).ok()?;
    events.into_iter().find_map(|event| match event.kind {
        EventKind::RunStarted { run, .. } => Some(run.to_string()),
        _ => None,
    })
}

/// What one machine printed in one stage.
struct Log {
    machine: String,
    stage: String,
    /// What its lines begin with beside the machine: the stage, and the trial that it is in, if there are many.
    label: String,
    /// Whether the last line showed the end of a command, or none was shown yet.
    has_ended: bool,
    path: PathBuf,
    /// How much of it has been shown.
    read: u64,
    lines: Lines,
}

impl Log {
    fn is_of(&self, name: &str) -> bool {
        self.machine == name || self.machine.rsplit_once('-').is_some_and(|(group, _)| group == name)
    }

    fn key(&self) -> Key {
        (self.path.clone(), self.machine.clone(), self.stage.clone())
    }
}

/// When a command began, how its log shows that, and whether it failed.
struct Begun {
    id: u64,
    at: SystemTime,
    line: String,
    failed: bool,
    /// In which of many trials.
    trial: Option<String>,
}

impl Begun {
    fn is_shown_by(&self, line: &[u8]) -> bool {
        line == self.line.as_bytes()
    }
}

/// A log by its path, its machine and its stage.
type Key = (PathBuf, String, String);

/// The commands whose beginning no log has shown yet, in their order, by the log that each is in.
type Commands = HashMap<Key, VecDeque<Begun>>;

/// A part of a log: what one command printed.
struct Part {
    log: usize,
    at: Option<SystemTime>,
    from: u64,
    to: u64,
    failed: bool,
    trial: Option<String>,
}

/// What has been shown.
struct Shown {
    stories: Vec<Story>,
    commands: Commands,
    /// Whether lines are new.
    follows: bool,
    out: PassedOn,
    /// In the order in which machines are listed.
    logs: Vec<Log>,
    /// How wide the names before lines are.
    width: usize,
    /// What failed, by machine.
    failed: BTreeMap<String, BTreeSet<String>>,
    /// The machines that have logs.
    machines: BTreeSet<String>,
}

impl Shown {
    fn of(directories: &[PathBuf], colour: bool) -> Self {
        Self {
            stories: directories.iter().map(|directory| Story::of(directory)).collect(),
            commands: Commands::new(),
            follows: false,
            out: PassedOn::new(Stream::Stdout, colour),
            logs: Vec::new(),
            width: 0,
            failed: BTreeMap::new(),
            machines: BTreeSet::new(),
        }
    }

    /// Finds logs that are new.
    fn find(&mut self, logs: &Path, only: &[String]) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(logs).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.file_type()?.is_dir() {
                true => {
                    for file in fs::read_dir(entry.path())? {
                        found.push((name.clone(), file?.path()));
                    }
                }
                false => found.push((HERE.to_owned(), entry.path())),
            }
        }
        // A pipe would wait for somebody, and a directory can't be read.
        found.retain(|(_, path)| path.is_file());
        found.retain(|(_, path)| self.logs.iter().all(|log| log.path != *path));
        // As machines are numbered, and not as digits are sorted.
        found.sort_by_cached_key(|(machine, path)| {
            let (group, index) = machine.rsplit_once('-').unwrap_or((machine, ""));
            (group.to_owned(), index.parse::<u64>().ok(), fs::metadata(path).and_then(|it| it.created()).ok())
        });
        for (machine, path) in found {
            let stage = path.file_stem().map(|stage| one_line(&stage.to_string_lossy())).unwrap_or_default();
            let machine = one_line(&machine);
            self.machines.insert(machine.clone());
            let label = stage.clone();
            let log = Log { machine, stage, label, has_ended: true, path, read: 0, lines: Lines::complete() };
            if only.is_empty() || only.iter().any(|name| log.is_of(name)) {
                self.logs.push(log);
                self.call(self.logs.len() - 1, None);
            }
        }
        Ok(())
    }

    /// Shows all that there is by now, command by command in the order in which they began, where that is known.
    fn so_far(&mut self, goes_on: bool) -> io::Result<()> {
        // A command's beginning stands in its log before the event that tells of it is written.
        let sizes = self.logs.iter().map(|log| Ok(fs::metadata(&log.path)?.len()));
        let sizes = sizes.collect::<io::Result<Vec<_>>>()?;
        self.hear();
        let mut parts = Vec::new();
        for (nth, (log, size)) in self.logs.iter().zip(sizes).enumerate() {
            parts.extend(split(nth, log, size, self.commands.entry(log.key()).or_default())?);
        }
        // Names before lines are as wide as each other.
        parts.iter().for_each(|part| self.call(part.log, part.trial.as_deref()));
        // What no event tells of is shown first: what was done on this computer, or by an earlier version.
        parts.sort_by_key(|part| part.at);
        for part in parts {
            self.call(part.log, part.trial.as_deref());
            self.logs[part.log].has_ended = part.at.is_none();
            self.show(part.log, part.from, Some(part.to), part.failed)?;
            // A line that has no end yet may go on.
            if !goes_on {
                self.finish_line(part.log, part.failed)?;
            }
        }
        Ok(())
    }

    /// Shows what the logs have now beyond what was shown.
    fn more(&mut self) -> io::Result<()> {
        self.follows = true;
        (0..self.logs.len()).try_for_each(|nth| self.show(nth, self.logs[nth].read, None, false))
    }

    /// Hears what the events tell by now.
    fn hear(&mut self) {
        self.stories.iter_mut().for_each(|story| story.go_on(&mut self.commands));
    }

    /// Has the lines of a log that come next begin with the trial that they are of.
    fn call(&mut self, nth: usize, trial: Option<&str>) {
        let Log { machine, stage, label, .. } = &mut self.logs[nth];
        *label = trial.map_or_else(|| stage.clone(), |trial| format!("trial {}: {stage}", one_line(trial)));
        self.width = self.width.max(machine.len() + 2 + label.len());
    }

    /// Finds out which trial a command is of that begins with a new line. What only looks like the beginning of one stays with
    /// the command that wrote it, unless that has ended: then its event isn't written yet, and no later one is either.
    fn begins(&mut self, nth: usize, line: &[u8]) {
        let key = self.logs[nth].key();
        let is_known = |commands: &Commands| {
            commands.get(&key).and_then(VecDeque::front).is_some_and(|begun| begun.is_shown_by(line))
        };
        if !is_known(&self.commands) {
            self.hear();
        }
        let known = is_known(&self.commands).then(|| self.commands.get_mut(&key)?.pop_front()).flatten();
        let trial = match known {
            Some(begun) => begun.trial,
            None if !self.logs[nth].has_ended => return,
            None => {
                self.stories.iter().find(|story| key.0.starts_with(&story.results)).and_then(Story::of_many)
            }
        };
        self.logs[nth].has_ended = false;
        self.call(nth, trial.as_deref());
    }

    /// Shows a log from an offset on.
    fn show(&mut self, nth: usize, from: u64, to: Option<u64>, failed: bool) -> io::Result<()> {
        let mut file = File::open(&self.logs[nth].path)?;
        file.seek(SeekFrom::Start(from))?;
        let mut file = file.take(to.map_or(u64::MAX, |to| to - from));
        let (mut at, mut buffer) = (from, vec![0; 64 << 10]);
        while let count @ 1.. = file.read(&mut buffer)? {
            let mut lines = std::mem::take(&mut self.logs[nth].lines);
            let mut shown = Ok(());
            lines.push(&buffer[..count], |line| {
                if shown.is_ok() {
                    shown = self.line(nth, line, failed);
                }
            });
            self.logs[nth].lines = lines;
            at += count as u64;
            self.logs[nth].read = self.logs[nth].read.max(at);
            shown?;
        }
        Ok(())
    }

    /// Shows a last line that has no end.
    fn finish_line(&mut self, nth: usize, failed: bool) -> io::Result<()> {
        let mut lines = std::mem::replace(&mut self.logs[nth].lines, Lines::complete());
        let mut shown = Ok(());
        lines.finish(|line| shown = self.line(nth, line, failed));
        shown
    }

    fn line(&mut self, nth: usize, line: &[u8], failed: bool) -> io::Result<()> {
        if self.follows && line.starts_with(b"$ ") {
            self.begins(nth, line);
        }
        // A command's own output may look like this, too: then it has another colour, and no more.
        let is_end = line.starts_with(b"# ") && line.ends_with(b" s");
        self.logs[nth].has_ended |= is_end;
        let Log { machine, stage, label, .. } = &self.logs[nth];
        let is_bad = is_end && !line.starts_with(b"# status 0 after") && !line.starts_with(b"# cancelled")
            || failed && is_end;
        if is_bad {
            let end = String::from_utf8_lossy(&line[2..]);
            let end = end.split(" after ").next().unwrap_or_default();
            self.failed.entry(machine.clone()).or_default().insert(format!("{stage}: {}", one_line(end)));
        }
        let style = match () {
            () if is_bad => Style::Bad,
            () if is_end || line.starts_with(b"$ ") => Style::Faint,
            () => Style::Plain,
        };
        let who = if failed || is_bad { Style::Bad } else { Style::of_machine(machine) };
        let pad = self.width.saturating_sub(machine.len() + 2 + label.len());
        let start = format!("{machine}  {label}{:pad$} | ", "");
        self.out.line((who, &start), style, line)
    }

    /// Shows what has no end of line, and then, where several machines were shown, which of them failed.
    fn finish(&mut self) -> io::Result<()> {
        (0..self.logs.len()).try_for_each(|nth| self.finish_line(nth, false))?;
        self.out.flush()?;
        let machines: BTreeSet<&String> = self.logs.iter().map(|log| &log.machine).collect();
        if machines.len() > 1 {
            for (machine, failures) in &self.failed {
                let failures: Vec<&str> = failures.iter().map(String::as_str).collect();
                say(&format!("failed on {machine}: {}", failures.join("; ")));
            }
        }
        Ok(())
    }
}

/// What the events of a run tell, as far as they are written. What can't be read is not known.
struct Story {
    results: PathBuf,
    /// How much of it was heard.
    heard: u64,
    has_many: bool,
    /// The trial that goes on.
    trial: Option<String>,
}

impl Story {
    fn of(results: &Path) -> Self {
        Self { results: results.to_owned(), heard: 0, has_many: false, trial: None }
    }

    /// The trial that goes on, if it is one of many.
    fn of_many(&self) -> Option<String> {
        self.trial.clone().filter(|_| self.has_many)
    }

    /// Hears what is new, and adds the commands that have begun.
    fn go_on(&mut self, commands: &mut Commands) {
        let mut new = Vec::new();
        let read = File::open(self.results.join("events.jsonl")).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.heard))?;
            file.read_to_end(&mut new)
        });
        let whole = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if read.is_err() || whole == 0 {
            return;
        }
        self.heard += whole as u64;
        for event in read_events(&new[..whole]).unwrap_or_default() {
            self.hear(event, commands);
        }
    }

    fn hear(&mut self, event: Event, commands: &mut Commands) {
        let key = |machine: String, stage: String| {
            let path = self.results.join("logs").join(&machine).join(format!("{stage}.log"));
            (path, machine, stage)
        };
        match event.kind {
            EventKind::CommandStarted { machine, stage, command_id, command, .. } => {
                let first = command.trim_end().lines().next().unwrap_or_default();
                let (line, trial) = (format!("$ {first}"), self.of_many());
                let begun = Begun { id: command_id, at: event.at, line, failed: false, trial };
                commands.entry(key(machine, stage)).or_default().push_back(begun);
            }
            EventKind::CommandFinished { machine, stage, command_id, exit, cancelled, .. } => {
                let begun = commands.get_mut(&key(machine, stage));
                let begun = begun.and_then(|all| all.iter_mut().rev().find(|begun| begun.id == command_id));
                if let Some(begun) = begun {
                    begun.failed = !cancelled && !exit.is_some_and(|exit| exit.success());
                }
            }
            EventKind::SweepPlanned { plan } => self.has_many = plan.trials.len() > 1,
            EventKind::TrialStarted { trial } => self.trial = Some(trial),
            // A run that was killed in a trial goes on with another set of machines.
            EventKind::TrialFinished { .. }
            | EventKind::RunStarted { .. }
            | EventKind::TearingDown { .. } => {
                self.trial = None;
            }
            EventKind::TrialVoided { trial, attempt, .. } => {
                self.trial.take_if(|ours| *ours == trial);
                let ours = commands.iter_mut().filter(|((path, ..), _)| path.starts_with(&self.results));
                let its =
                    ours.flat_map(|(_, begun)| begun).filter(|begun| begun.trial.as_ref() == Some(&trial));
                its.for_each(|begun| begun.trial = Some(attempt.clone()));
            }
            _ => {}
        }
    }
}

/// Where in a log each of the commands begins that are known to be in it.
fn split(nth: usize, log: &Log, size: u64, known: &mut VecDeque<Begun>) -> io::Result<Vec<Part>> {
    let mut file = BufReader::new(File::open(&log.path)?.take(size));
    let (mut at, mut line, mut is_start) = (0, Vec::new(), true);
    let mut parts = vec![Part { log: nth, at: None, from: 0, to: 0, failed: false, trial: None }];
    loop {
        line.clear();
        // A line without an end is read in pieces.
        let read = (&mut file).take(PIECE).read_until(b'\n', &mut line)? as u64;
        if read == 0 {
            break;
        }
        let begins = |begun: &mut Begun| {
            is_start && line.strip_suffix(b"\n").is_some_and(|line| begun.is_shown_by(line))
        };
        if let Some(Begun { at: began, failed, trial, .. }) = known.pop_front_if(begins) {
            parts.push(Part { log: nth, at: Some(began), from: at, to: at, failed, trial });
        }
        is_start = line.ends_with(b"\n");
        at += read;
        if let Some(part) = parts.last_mut() {
            part.to = at;
        }
    }
    parts.retain(|part| part.from < part.to);
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn results(of: &Path, id: &str, events: &[&str]) -> PathBuf {
        let directory = of.join("x").join(id);
        fs::create_dir_all(directory.join("logs")).unwrap();
        let lines: String = events.iter().map(|line| format!("{line}\n")).collect();
        fs::write(directory.join("events.jsonl"), format!("{{\"schema\":2}}\n{lines}")).unwrap();
        directory
    }

    fn log(results: &Path, machine: &str, stage: &str, text: &str) {
        fs::create_dir_all(results.join("logs").join(machine)).unwrap();
        fs::write(results.join("logs").join(machine).join(format!("{stage}.log")), text).unwrap();
    }

    fn told(directories: &[PathBuf], only: &[&str]) -> (String, BTreeMap<String, BTreeSet<String>>) {
        let only: Vec<String> = only.iter().map(|&name| name.to_owned()).collect();
        let mut shown = Shown::of(directories, false);
        directories.iter().for_each(|it| shown.find(&it.join("logs"), &only).unwrap());
        shown.so_far(false).unwrap();
        (shown.out.text(), shown.failed)
    }

    #[test]
    fn commands_are_shown_in_the_order_in_which_they_began_and_who_failed_is_told() {
        let all = tempfile::tempdir().unwrap();
        let id = "20261128-082330-x3pph4b3rq9vs";
        let begun = |at: u32, machine: &str, stage: &str, number: u32, command: &str| {
            format!(
                r#"{{"seq":{at},"at":{at}.0,"elapsed":{at}.0,"event":"command_started","machine":"{machine}","stage":"{stage}","command_id":{number},"command":"{command}"}}"#
            )
        };
        let ended = r#"{"seq":9,"at":9.0,"elapsed":9.0,"event":"command_finished","machine":"b-10","stage":"load","command_id":3,"command":"go","exit":{"status":3},"error":null,"seconds":1.0}"#;
        let lines = [
            begun(1, "b-2", "setup", 1, "first"),
            begun(2, "b-10", "setup", 2, "second\\nmore"),
            begun(3, "b-10", "load", 3, "go"),
            begun(4, "b-2", "load", 4, "go"),
        ];
        let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        lines.push(ended);
        let directory = results(all.path(), id, &lines);
        log(&directory, "b-2", "setup", "$ first\none\n# status 0 after 1.0 s\n");
        log(&directory, "b-10", "setup", "$ second\nmore\ntwo");
        log(&directory, "b-10", "load", "$ go\nno\n# status 3 after 1.0 s\n");
        log(&directory, "b-2", "load", "$ go\n# status 0 after 1.0 s\n");
        log(&directory, "a-0", "setup", "not me\n");
        fs::create_dir(directory.join("logs/b-2/x.log")).unwrap();
        fs::write(directory.join("logs/prepare.log"), "built\n").unwrap();
        let (text, failed) = told(std::slice::from_ref(&directory), &["b", "here"]);
        insta::assert_snapshot!(text, @"
        here  prepare | built
        b-2  setup    | $ first
        b-2  setup    | one
        b-2  setup    | # status 0 after 1.0 s
        b-10  setup   | $ second
        b-10  setup   | more
        b-10  setup   | two
        b-10  load    | $ go
        b-10  load    | no
        b-10  load    | # status 3 after 1.0 s
        b-2  load     | $ go
        b-2  load     | # status 0 after 1.0 s
        ");
        assert_eq!(failed["b-10"].iter().collect::<Vec<_>>(), ["load: status 3"]);
        assert!(told(&[directory], &["a-0"]).0.starts_with("a-0  setup | not me"));
    }

    #[test]
    fn lines_of_many_trials_say_of_which_they_are_also_where_they_are_followed() {
        let all = tempfile::tempdir().unwrap();
        let trial = |name: &str| {
            format!(r#"{{"name":"{name}","set":1,"round":1,"place":0,"parameters":{{"n":"{name}"}}}}"#)
        };
        let plan = format!(
            r#"{{"seed":1,"order":"balanced","repeat":1,"parameters":[],"metrics":[],"trials":[{},{}]}}"#,
            trial("1"),
            trial("2")
        );
        let event = |kind: &str, rest: &str| format!(r#"{{"elapsed":1.0,"event":"{kind}",{rest}}}"#);
        let begun = |stage: &str, number: u32| {
            let rest = format!(
                r#""at":{number}.0,"machine":"b-0","stage":"{stage}","command_id":{number},"command":"go""#
            );
            event("command_started", &rest)
        };
        let started = |trial: u32| event("trial_started", &format!(r#""at":1.0,"trial":"{trial}""#));
        let finished = |trial: u32| {
            event(
                "trial_finished",
                &format!(r#""at":1.0,"trial":"{trial}","ok":true,"error":null,"seconds":1.0"#),
            )
        };
        let voided = event(
            "trial_voided",
            r#""at":1.0,"trial":"1","attempt":"1.1","reason":"disturbed","text":"others","machines":[]"#,
        );
        let (plan, setup) =
            (event("sweep_planned", &format!(r#""at":1.0,"plan":{plan}"#)), begun("setup", 1));
        let first =
            [plan, setup, started(1), begun("load", 2), finished(1), voided, started(1), begun("load", 3)];
        let lines: Vec<&str> = first.iter().map(String::as_str).collect();
        let directory = results(all.path(), "20261128-082330-x3pph4b3rq9vs", &lines);
        log(&directory, "b-0", "setup", "$ go\n");
        let load = "$ go\nvoid\n# status 0 after 1.0 s\n$ go\none\n";
        log(&directory, "b-0", "load", load);
        let mut shown = Shown::of(std::slice::from_ref(&directory), false);
        shown.find(&directory.join("logs"), &[]).unwrap();
        shown.so_far(true).unwrap();
        let again = event(
            "run_started",
            r#""at":1.0,"run":"20261128-082330-x3pph4b3rq9vs","experiment":"x","deadline":9.0,"groups":[]"#,
        );
        let later = [started(1), again, begun("setup", 4), started(2)].map(|line| line + "\n").concat();
        let mut events = File::options().append(true).open(directory.join("events.jsonl")).unwrap();
        events.write_all(later.as_bytes()).unwrap();
        let mut load = File::options().append(true).open(directory.join("logs/b-0/load.log")).unwrap();
        load.write_all(b"more\n$ own\n# status 0 after 1.0 s\n$ go\ntwo\n").unwrap();
        let mut setup = File::options().append(true).open(directory.join("logs/b-0/setup.log")).unwrap();
        setup.write_all(b"# status 0 after 1.0 s\n$ go\n").unwrap();
        shown.more().unwrap();
        insta::assert_snapshot!(shown.out.text(), @"
        b-0  setup           | $ go
        b-0  trial 1.1: load | $ go
        b-0  trial 1.1: load | void
        b-0  trial 1.1: load | # status 0 after 1.0 s
        b-0  trial 1: load   | $ go
        b-0  trial 1: load   | one
        b-0  trial 1: load   | more
        b-0  trial 1: load   | $ own
        b-0  trial 1: load   | # status 0 after 1.0 s
        b-0  trial 2: load   | $ go
        b-0  trial 2: load   | two
        b-0  setup           | # status 0 after 1.0 s
        b-0  setup           | $ go
        ");
    }

    #[test]
    fn a_run_on_the_machines_of_another_is_shown_with_it() {
        let all = tempfile::tempdir().unwrap();
        let ids = ["20261128-082330-x3pph4b3rq9vs", "20261128-082430-x3pph4b3rq9vs"];
        let started = format!(
            r#"{{"seq":1,"at":1.0,"elapsed":1.0,"event":"run_started","run":"{}","experiment":"x","deadline":9.0,"groups":[]}}"#,
            ids[0]
        );
        let both = ids.map(|id| results(all.path(), id, &[&started]));
        let state = RunStore::at(all.path().join("state"));
        for (name, expected) in [(&both[0], &both[..1]), (&both[1], &both[1..])] {
            assert_eq!(find(&state, name.to_str().unwrap()).unwrap().1, expected);
        }
        assert_eq!(directories(all.path()), both);
        // The last one of an experiment that has logs, or the last.
        assert_eq!(find_results(all.path(), "x").as_ref(), Some(&both[1]));
        log(&both[0], "b-0", "setup", "one\n");
        assert_eq!(find_results(all.path(), "x").as_ref(), Some(&both[0]));
        log(&both[1], "b-0", "setup", "two\n");
        assert_eq!(find_results(all.path(), "x").as_ref(), Some(&both[1]));
        assert_eq!(machines_of(&both[1]).as_deref(), Some(ids[0]));
        assert!(!goes_on(&both[0]));
        let lock = File::open(both[0].join("events.jsonl")).unwrap();
        lock.lock().unwrap();
        assert!(goes_on(&both[0]));
    }
}
