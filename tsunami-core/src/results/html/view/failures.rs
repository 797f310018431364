//! What failed, with the ends of its logs.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Serialize;

use super::{Link, link, span};
use crate::analysis::label;
use crate::limits::{REPORT_LOG_LIMIT, REPORT_TAIL_LIMIT};
use crate::names::is_experiment_name;
use crate::results::built::Source;
use crate::results::results_json::planned;
use crate::results::{files, logs};
use crate::text::{sanitize_bytes, shorten};
use crate::{CommandReport, Report, SetReport, TrialOutcome};

/// How many failures are shown, each with the end of its log.
const FAILURES: usize = 20;

/// How many lines of the end of a log are shown, each so many characters long.
const TAIL_LINES: usize = 20;
const TAIL_LINE: usize = 300;

/// How many of them are shown without being asked for.
const OPEN_TAILS: usize = 2;

#[derive(Serialize)]
pub(super) struct Failure {
    what: String,
    why: String,
    tail: Vec<String>,
    /// Whether its end is shown at once.
    open: bool,
    link: Option<Link>,
    /// Whose part of the log is shown.
    #[serde(skip)]
    command: Option<CommandReport>,
}

/// What failed, the whole before its parts, and how many more there are.
pub(super) fn failures(source: &Source<'_>, sets: &[&SetReport]) -> (Vec<Failure>, usize) {
    let Source { directory, report, analysis } = source;
    let mut failures = Vec::new();
    for set in sets {
        failures.extend(
            set.leftovers.iter().map(|leftover| plain("May remain".to_owned(), &leftover.to_string())),
        );
    }
    for set in sets {
        let what = if sets.len() > 1 { format!("The run of set {}", set.set) } else { "The run".to_owned() };
        failures.extend(set.error.as_deref().map(|error| plain(what, error)));
    }
    for check in analysis.checks.iter().filter(|check| check.holds == Some(true)) {
        failures.push(plain("fail_if".to_owned(), &check.to_string()));
    }
    // The run mostly says so itself.
    let why = report.swept.as_ref().and_then(|swept| swept.why.as_deref());
    let is_told = sets
        .iter()
        .filter_map(|set| set.error.as_deref())
        .any(|error| why.is_some_and(|why| error.contains(why)));
    let incomplete = analysis.incomplete.iter().filter(|_| !is_told);
    failures.extend(incomplete.map(|why| plain("Incomplete".to_owned(), why)));
    for set in sets {
        for (name, machine) in &set.machines {
            failures.extend(machine.error.iter().map(|error| plain(name.clone(), error)));
        }
    }
    failures.extend(failed_trials(report));
    failures.extend(failed_commands(report));
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
    Failure { what, why: why.to_owned(), tail: Vec::new(), open: false, link: None, command: None }
}

/// The trials that failed, together those that failed in the same words.
fn failed_trials(report: &Report) -> Vec<Failure> {
    let planned = planned(report.sweep.as_ref());
    let mut causes: Vec<(&str, Vec<String>)> = Vec::new();
    for trial in report.trials.iter().filter(|trial| trial.outcome() == TrialOutcome::Failed) {
        let why = trial.error.as_deref().unwrap_or("a step failed");
        let parameters = planned.get(trial.planned_name()).map(|plan| label(&plan.parameters));
        let name = match parameters.filter(|parameters| !parameters.is_empty()) {
            Some(parameters) => format!("{} ({parameters})", trial.name),
            None => trial.name.clone(),
        };
        match causes.iter_mut().find(|(known, _)| *known == why) {
            Some((_, names)) => names.push(name),
            None => causes.push((why, vec![name])),
        }
    }
    let failures = causes.into_iter().map(|(why, names)| {
        let what = if names.len() == 1 { "Trial" } else { "Trials" };
        let shown = names.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
        let more = names.len().saturating_sub(10);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let what = format!("{what} {shown}{more}");
        plain(what, why)
    });
    failures.collect()
}

/// The commands that failed, together those that are the same and failed alike, with the log of the last of them.
fn failed_commands(report: &Report) -> Vec<Failure> {
    let mut causes: Vec<(&CommandReport, String, usize)> = Vec::new();
    for command in report.commands.iter().filter(|command| !command.cancelled) {
        let why = match (&command.exit, &command.error) {
            (_, Some(error)) => error.clone(),
            (Some(exit), None) if !exit.success() => exit.to_string(),
            _ => continue,
        };
        let same = |known: &CommandReport| {
            (&known.machine, &known.stage, &known.command)
                == (&command.machine, &command.stage, &command.command)
        };
        match causes.iter_mut().find(|(known, of, _)| same(known) && *of == why) {
            Some((last, _, count)) => (*last, *count) = (command, *count + 1),
            None => causes.push((command, why, 1)),
        }
    }
    let failures = causes.into_iter().map(|(command, why, count)| {
        let CommandReport { machine, stage, .. } = command;
        let log = format!("logs/{machine}/{stage}.log");
        let has_log = is_experiment_name(machine) && is_experiment_name(stage);
        let what = format!("{stage} on {machine}: {}", shorten(&command.command, 120));
        let why = if count > 1 {
            format!("{why}, {count} times")
        } else {
            format!("{why} after {}", span(command.took))
        };
        Failure { link: has_log.then(|| link(&log)), command: Some(command.clone()), ..plain(what, &why) }
    });
    failures.collect()
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
    let Some(at) = last_lines(&bytes, end.as_bytes()) else { return Ok(Vec::new()) };
    let start = last_lines(&bytes[..at], logs::beginning(&command.command).as_bytes()).unwrap_or_default();
    let own = &bytes[start..at + end.len()];
    let own = &own[own.len().saturating_sub(REPORT_TAIL_LIMIT)..];
    let lines: Vec<&[u8]> = own.trim_ascii_end().split(|byte| *byte == b'\n').collect();
    let shown = lines.iter().skip(lines.len().saturating_sub(TAIL_LINES));
    Ok(shown.map(|line| shorten(&sanitize_bytes(line), TAIL_LINE).into_owned()).collect())
}

/// Where whole lines stand for the last time.
fn last_lines(bytes: &[u8], lines: &[u8]) -> Option<usize> {
    let is_start = |at: &usize| *at == 0 || bytes[at - 1] == b'\n';
    (0..(bytes.len() + 1).saturating_sub(lines.len()))
        .rev()
        .filter(is_start)
        .find(|at| bytes[*at..].starts_with(lines))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::Exit;

    #[test]
    fn a_failed_command_shows_its_own_part_of_the_log() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("load.log");
        let log = "$ load 1\nfine\n# status 0 after 1.0 s\n$ load 1\nno $ load 1\n# status 2 after 1.5 s\n\
                   $ load 1\nfine again\n# status 0 after 1.5 s\n";
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
