//! What failed, with the ends of its logs.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Serialize;

use super::{Link, link, span};
use crate::analysis::label;
use crate::error::shown;
use crate::limits::{REPORT_LOG_LIMIT, REPORT_TAIL_LIMIT};
use crate::names::is_experiment_name;
use crate::results::built::Source;
use crate::results::results_json::planned;
use crate::results::side_by_side::by_number;
use crate::results::{files, logs};
use crate::text::{sanitize_bytes, shorten};
use crate::{CommandReport, MachineReport, Report, SetReport, TrialOutcome};

/// How many failures are shown, each with the end of its log.
const FAILURES: usize = 20;

/// How many lines of the end of a log are shown, each so many characters long.
const TAIL_LINES: usize = 20;
const TAIL_LINE: usize = 300;

/// How many of them are shown without being asked for.
const OPEN_TAILS: usize = 2;

/// How many machines and trials are named where something failed.
const NAMED: usize = 10;

#[derive(Serialize)]
pub(super) struct Failure {
    what: String,
    /// In as many lines as it was told in.
    why: String,
    /// How often and where, if there is more to say than that it happened.
    place: String,
    tail: Vec<String>,
    /// Whether its end is shown at once.
    open: bool,
    link: Option<Link>,
    /// Whose part of the log is shown.
    #[serde(skip)]
    command: Option<CommandReport>,
}

/// What failed, the whole before its parts, and how many more there are. What fails is told by the machine, the trial and
/// the run: it is shown once.
pub(super) fn failures(source: &Source<'_>, sets: &[&SetReport]) -> (Vec<Failure>, usize) {
    let Source { directory, report, analysis } = source;
    let mut commands = Commands::new(report, sets);
    let trials = failed_trials(report, &mut commands);
    let machines = failed_machines(sets, &commands);
    let mut failures = Vec::new();
    for set in sets {
        failures.extend(
            set.leftovers.iter().map(|leftover| plain("May remain".to_owned(), &leftover.to_string())),
        );
    }
    let is_a_part = |error: &str| {
        let first = first_of(error);
        commands.of(error).is_some()
            || machines.iter().chain(&trials).any(|known| first_of(&known.why) == first)
    };
    let held = analysis.held();
    for set in sets {
        let what = if sets.len() > 1 { format!("The run of set {}", set.set) } else { "The run".to_owned() };
        let error = set.error.as_deref().filter(|error| !is_a_part(error) && held.as_deref() != Some(*error));
        failures.extend(error.map(|error| plain(what, error)));
    }
    failures.extend(held.map(|held| plain("fail_if".to_owned(), &held)));
    // The run mostly says so itself.
    let why = report.swept.as_ref().and_then(|swept| swept.why.as_deref());
    let is_told = sets
        .iter()
        .filter_map(|set| set.error.as_deref())
        .any(|error| why.is_some_and(|why| error.contains(why)));
    let incomplete = analysis.incomplete.iter().filter(|_| !is_told);
    failures.extend(incomplete.map(|why| plain("Incomplete".to_owned(), why)));
    failures.extend(machines);
    failures.extend(trials);
    failures.extend(commands.causes.into_iter().map(Cause::told));
    // Only what is shown is read.
    let mut tails = 0;
    for failure in failures.iter_mut().take(FAILURES) {
        let Some((command, log)) = failure.command.as_ref().zip(failure.link.as_ref()) else { continue };
        match tail(&directory.join(&log.text), command) {
            Ok(tail) => {
                failure.open = !tail.is_empty() && tails < OPEN_TAILS;
                tails += usize::from(!tail.is_empty());
                failure.tail = tail;
            }
            Err(_) => failure.link = None,
        }
    }
    let more = failures.len().saturating_sub(FAILURES);
    failures.truncate(FAILURES);
    (failures, more)
}

/// What failed without a log of its own.
fn plain(what: String, why: &str) -> Failure {
    let (why, place, tail) = (why.to_owned(), String::new(), Vec::new());
    Failure { what, why, place, tail, open: false, link: None, command: None }
}

/// An error without how many others followed.
fn first_of(error: &str) -> String {
    let (mut first, rest) = error.split_once('\n').unwrap_or((error, ""));
    while let Some((before, last)) = first.rsplit_once("; ")
        && last.starts_with(|c: char| c.is_ascii_digit())
        && last.ends_with(" followed")
    {
        first = before;
    }
    format!("{first}\n{rest}")
}

/// Some names, and how many more there are.
fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names[..names.len().min(NAMED)].join(", "))
}

/// What is told of a machine, without what is that machine's own: others may say the same.
fn without_own(text: &str, name: &str, machine: Option<&MachineReport>) -> String {
    let id = machine.and_then(|machine| machine.id.as_ref()).map(ToString::to_string);
    let address = machine.and_then(|machine| machine.address.clone());
    let own = [id, address].into_iter().flatten().chain([name.to_owned()]).filter(|own| !own.is_empty());
    own.fold(text.to_owned(), |text, own| text.replace(&own, "\0"))
}

/// The machines that failed otherwise than by a command, together those of which the same is told.
fn failed_machines(sets: &[&SetReport], commands: &Commands<'_>) -> Vec<Failure> {
    let mut causes: Vec<(String, &str, Vec<String>)> = Vec::new();
    for (name, machine) in sets.iter().flat_map(|set| &set.machines) {
        let Some(error) = machine.error.as_deref().filter(|error| commands.of(error).is_none()) else {
            continue;
        };
        let alike = without_own(error, name, Some(machine));
        match causes.iter_mut().find(|(known, ..)| *known == alike) {
            Some((.., names)) => names.push(name.clone()),
            None => causes.push((alike, error, vec![name.clone()])),
        }
    }
    causes.into_iter().map(|(_, error, names)| plain(listed(&names), error)).collect()
}

/// The trials that failed otherwise than by a command, together those that failed in the same words. The others are
/// noted with their commands.
fn failed_trials(report: &Report, commands: &mut Commands<'_>) -> Vec<Failure> {
    let planned = planned(report.sweep.as_ref());
    let mut causes: Vec<(&str, Vec<String>)> = Vec::new();
    for trial in report.trials.iter().filter(|trial| trial.outcome() == TrialOutcome::Failed) {
        let why = trial.error.as_deref().unwrap_or("a step failed");
        let parameters = planned.get(trial.planned_name()).map(|plan| label(&plan.parameters));
        let name = match parameters.filter(|parameters| !parameters.is_empty()) {
            Some(parameters) => format!("{} ({parameters})", trial.name),
            None => trial.name.clone(),
        };
        if let Some(cause) = commands.of(why) {
            commands.causes[cause].trials.push(name);
            continue;
        }
        match causes.iter_mut().find(|(known, _)| *known == why) {
            Some((_, names)) => names.push(name),
            None => causes.push((why, vec![name])),
        }
    }
    let what = |names: &[String]| if names.len() == 1 { "Trial" } else { "Trials" };
    causes
        .into_iter()
        .map(|(why, names)| plain(format!("{} {}", what(&names), listed(&names)), why))
        .collect()
}

/// The commands that failed, by their causes.
struct Commands<'r> {
    causes: Vec<Cause<'r>>,
    /// Which of them an error tells that begins with these words.
    told: HashMap<String, usize>,
}

/// Commands that failed alike: those of a step, whatever its parameters were, or else the same command.
struct Cause<'r> {
    /// The log of this one is shown.
    last: &'r CommandReport,
    why: String,
    count: usize,
    /// By their groups and numbers.
    machines: BTreeSet<(&'r str, Option<u32>, &'r str)>,
    /// Without what is a machine's own.
    commands: HashSet<String>,
    trials: Vec<String>,
}

impl<'r> Commands<'r> {
    fn new(report: &'r Report, sets: &[&SetReport]) -> Self {
        let steps: HashSet<&str> =
            report.trials.iter().flat_map(|trial| &trial.steps).map(|step| step.name.as_str()).collect();
        let (mut causes, mut told) = (Vec::<Cause<'r>>::new(), HashMap::new());
        let mut known = HashMap::new();
        for command in report.commands.iter().filter(|command| !command.cancelled) {
            let why = match (&command.exit, &command.error) {
                (_, Some(error)) => error.clone(),
                (Some(exit), None) if !exit.success() => exit.to_string(),
                _ => continue,
            };
            let (name, stage) = (command.machine.as_str(), command.stage.as_str());
            let machine = sets.iter().find_map(|set| set.machines.get(name));
            let [alike, text] = [&why, &command.command].map(|text| without_own(text, name, machine));
            let of = if steps.contains(stage) { String::new() } else { text.clone() };
            let index = *known.entry((stage, alike, of)).or_insert_with(|| {
                let (machines, commands) = (BTreeSet::new(), HashSet::new());
                causes.push(Cause { last: command, why, count: 0, machines, commands, trials: Vec::new() });
                causes.len() - 1
            });
            let cause = &mut causes[index];
            (cause.last, cause.count) = (command, cause.count + 1);
            cause.machines.insert(by_number(name));
            cause.commands.insert(text);
            told.insert(format!("{name}: stage {stage}: `{}`", shown(&command.command)), index);
        }
        Self { causes, told }
    }

    /// Which of them an error tells.
    fn of(&self, error: &str) -> Option<usize> {
        let end = ["` ended with ", "` timed out after "].iter().find_map(|end| error.rfind(end))?;
        self.told.get(&error[..=end]).copied()
    }
}

impl Cause<'_> {
    fn told(self) -> Failure {
        let Self { last, mut why, count, machines, commands, trials } = self;
        let CommandReport { machine, stage, command, .. } = last;
        let has_log = is_experiment_name(machine) && is_experiment_name(stage);
        let first = command.trim().lines().next().unwrap_or_default();
        let more = if first.len() < command.trim().len() { " …" } else { "" };
        let like = match commands.len() {
            0 | 1 => String::new(),
            all => format!(", one of {all} commands"),
        };
        let what = format!("{stage}: {}{more}{like}", shorten(first, 120));
        why.push_str(&match count {
            // It says after which time already.
            1 if why.contains(" timed out after ") => String::new(),
            1 => format!(" after {}", span(last.took)),
            count => format!(", {count} times"),
        });
        let machines = Vec::from_iter(machines);
        let ranges = machines
            .chunk_by(|a, b| a.0 == b.0 && a.1.map(|number| number.wrapping_add(1)) == b.1 && b.1.is_some());
        let names = ranges.flat_map(|range| match range {
            [(.., first), _, .., (.., last)] => vec![format!("{first} to {last}")],
            few => few.iter().map(|(.., name)| (*name).to_owned()).collect(),
        });
        let names: Vec<String> = names.collect();
        let mut place = format!("on {}", listed(&names));
        if !trials.is_empty() {
            let what = if trials.len() == 1 { "trial" } else { "trials" };
            place.push_str(&format!(", in {what} {}", listed(&trials)));
        }
        let link = has_log.then(|| link(&format!("logs/{machine}/{stage}.log")));
        Failure { place, link, command: Some(last.clone()), ..plain(what, &why) }
    }
}

/// The last lines of what a command wrote to its stage's log, which other commands write to before and after it; none
/// where its end isn't found in what is read of the log.
fn tail(path: &Path, command: &CommandReport) -> io::Result<Vec<String>> {
    let mut file = files::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(REPORT_LOG_LIMIT)))?;
    let mut bytes = Vec::new();
    file.take(REPORT_LOG_LIMIT).read_to_end(&mut bytes)?;
    let end = logs::ending(command.exit.as_ref(), command.error.as_deref(), command.took);
    let beginning = logs::beginning(&command.command);
    let Some(own) = own_part(&bytes, beginning.as_bytes(), end.as_bytes()) else { return Ok(Vec::new()) };
    let own = &own[own.len().saturating_sub(REPORT_TAIL_LIMIT)..];
    let lines: Vec<&[u8]> = own.trim_ascii_end().split(|byte| *byte == b'\n').collect();
    let shown = lines.iter().skip(lines.len().saturating_sub(TAIL_LINES));
    Ok(shown.map(|line| shorten(&sanitize_bytes(line), TAIL_LINE).into_owned()).collect())
}

/// What stands from a command's beginning to its end, for the last time; its beginning may lie before what was read. What
/// another command's end is in is not its own.
fn own_part<'l>(log: &'l [u8], beginning: &[u8], end: &[u8]) -> Option<&'l [u8]> {
    let find = |lines: &[u8], from: usize| {
        let is_start = |at: &usize| *at == 0 || log[at - 1] == b'\n';
        let mut places = (from..(log.len() + 1).saturating_sub(lines.len())).filter(is_start);
        places.find(|at| log[*at..].starts_with(lines))
    };
    let mut starts = vec![(0, 0)];
    while let Some(start) = find(beginning, starts[starts.len() - 1].1) {
        starts.push((start, start + beginning.len()));
    }
    let is_end = |line: &[u8]| line.starts_with(b"# ") && line.ends_with(b" s");
    let mut parts = starts.into_iter().rev().filter_map(|(start, from)| {
        let at = find(end, from)?;
        let lines: Vec<&[u8]> = log[from..at].split(|byte| *byte == b'\n').collect();
        let is_own = !lines.windows(2).any(|two| is_end(two[0]) && two[1].starts_with(b"$ "));
        is_own.then(|| &log[start..at + end.len()])
    });
    parts.next()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::results::tests::{at, finished};
    use crate::{EventKind, Exit, MachineId, MachineKind, Price};

    /// A set-up and a step that failed on every machine, in each trial, with what all that tells of it says.
    #[test]
    fn what_failed_is_told_once_with_how_often_and_where() {
        let mut events = vec![at(0.0, EventKind::TrialStarted { trial: "1".to_owned() })];
        let told = |machine: &str, stage: &str, command: &str| {
            format!("{machine}: stage {stage}: `{command}` ended with status 100")
        };
        for index in 0..12 {
            let machine = format!("client-{index}");
            let command = format!("join 127.0.0.{index} {machine}\nexit 100");
            let address = Some(format!("127.0.0.{index}"));
            let (id, price) = (MachineId::new(format!("i-{index}")), Price::Unknown);
            let (description, kind) = (String::new(), MachineKind::default());
            events.push(at(
                1.0,
                EventKind::Running { machine: machine.clone(), id, address, description, kind, price },
            ));
            events.push(at(2.0, finished(&machine, "setup", &command, Ok(Exit::Status(100)))));
            let (stage, error) = ("setup".to_owned(), told(&machine, "setup", &command));
            events.push(at(2.0, EventKind::Failed { machine, id: None, stage, error }));
        }
        for index in 12..15 {
            let (machine, id) = (format!("client-{index}"), None);
            let (stage, error) =
                ("connect".to_owned(), format!("{machine}: no session\n  because: no route"));
            events.push(at(2.0, EventKind::Failed { machine, id, stage, error }));
        }
        for trial in ["1", "2"] {
            let name = || trial.to_owned();
            events.push(at(3.0, EventKind::TrialStarted { trial: name() }));
            let (step, machines) = ("load".to_owned(), Vec::new());
            events.push(at(3.0, EventKind::StepStarted { trial: name(), step, machines }));
            for machine in ["client-0", "client-1"] {
                let command = format!("load --n {trial}");
                events.push(at(4.0, finished(machine, "load", &command, Ok(Exit::Status(100)))));
            }
            let error = Some(told("client-1", "load", &format!("load --n {trial}")) + "; 1 failure followed");
            let took = Duration::from_secs(1);
            events.push(at(5.0, EventKind::TrialFinished { trial: name(), ok: false, error, took }));
        }
        let error = told("client-1", "load", "load --n 1") + "; 1 failure followed; 1 failure followed";
        events.push(at(9.0, EventKind::RunFinished { ok: false, error: Some(error) }));
        let report: Report = events.iter().collect();
        let (directory, analysis) = (Path::new("/nowhere"), &report.analysis());
        let sets: Vec<_> = report.sets().collect();
        let (failures, more) = failures(&Source { directory, report: &report, analysis }, &sets);
        let told: Vec<_> = failures.iter().map(|one| [&*one.what, &*one.why, &*one.place]).collect();
        let expected = [
            ["client-12, client-13, client-14", "client-12: no session\n  because: no route", ""],
            ["setup: join 127.0.0.11 client-11 …", "status 100, 12 times", "on client-0 to client-11"],
            [
                "load: load --n 2, one of 2 commands",
                "status 100, 4 times",
                "on client-0, client-1, in trials 1, 2",
            ],
        ];
        assert_eq!((&told[..], more), (&expected[..], 0));
    }

    #[test]
    fn a_failed_command_shows_its_own_part_of_the_log() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("load.log");
        let log = "$ load 1\nfine\n# status 0 after 1.0 s\n$ load 1\nno $ load 1\n# status 2 after 1.5 s\n\
                   $ load 1\nfine again\n# status 0 after 1.5 s\n$ load 2\nno 2\n# status 2 after 1.5 s\n";
        fs::write(&path, log).unwrap();
        let mut command = CommandReport {
            machine: "client-0".to_owned(),
            id: None,
            stage: "load".to_owned(),
            command_id: 0,
            command: "load 1".to_owned(),
            exit: Some(Exit::Status(2)),
            error: None,
            cancelled: false,
            finished: Duration::ZERO,
            took: Duration::from_millis(1_500),
        };
        assert_eq!(tail(&path, &command).unwrap(), ["$ load 1", "no $ load 1", "# status 2 after 1.5 s"]);
        command.exit = Some(Exit::Status(3));
        assert!(tail(&path, &command).unwrap().is_empty(), "no later success is shown for it");
    }
}
