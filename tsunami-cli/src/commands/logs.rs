//! `tsunami logs`: what set-up and steps printed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tsunami_core::{Error as CoreError, RunStore, Stream};

use super::{Context, Execute};
use crate::error::{Error, USAGE};
use crate::terminal::{one_line, pass_on, say};

/// How often the files are looked at while following.
const POLL: Duration = Duration::from_millis(200);

/// Show what set-up and steps printed
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Logs {
    /// A run id, a prefix of one, or an experiment's name
    run: String,
    /// Only this machine
    machine: Option<String>,
    /// Go on as long as the run does
    #[arg(short, long)]
    follow: bool,
}

const EXAMPLES: &str = "\
Examples:
  tsunami logs redis
  tsunami logs redis server-0 -f";

impl Execute for Logs {
    async fn execute(self, _: &Context<'_>) -> Result<u8, Error> {
        // Logs may be large, and whoever reads them slow.
        let shown = spawn_blocking(move || logs(&self.run, self.machine.as_deref(), self.follow));
        shown.await.map_err(CoreError::other)?
    }
}

fn logs(name: &str, machine: Option<&str>, follow: bool) -> Result<u8, Error> {
    let state = RunStore::standard()?;
    let recorded = state.find(name);
    let results = match &recorded {
        Ok(directory) => directory.record()?.results,
        // The record of a run that is over is gone; its results may be here.
        Err(CoreError::UnknownRun { .. }) => find_results(name),
        Err(_) => None,
    };
    let Some(results) = results else {
        recorded?;
        return Err(Error::Usage(format!("run {name} has no results directory")));
    };
    let logs = results.join("logs");
    let mut shown: BTreeMap<PathBuf, u64> = BTreeMap::new();
    let mut last = None;
    loop {
        // Asked before reading, so that what was written last is seen.
        let going =
            follow && recorded.as_ref().is_ok_and(|directory| directory.is_controlled().unwrap_or(false));
        for file in files(&logs, machine).map_err(Error::file("read", &logs))? {
            let from = shown.entry(file.clone()).or_default();
            let heading = (last.as_ref() != Some(&file)).then(|| file.strip_prefix(&logs).unwrap_or(&file));
            let read = match show(&file, *from, heading) {
                // Whoever read it has seen enough.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(0),
                read => read.map_err(Error::file("read", &file))?,
            };
            if read > 0 {
                *from += read;
                last = Some(file);
            }
        }
        if !going {
            break;
        }
        thread::sleep(POLL);
    }
    if shown.is_empty() {
        say(&machine.map_or_else(|| "no logs".to_owned(), |machine| format!("no logs of {machine}")));
        return Ok(USAGE);
    }
    Ok(0)
}

/// The results of a run that is over, below this directory.
fn find_results(name: &str) -> Option<PathBuf> {
    let runs =
        fs::read_dir("results").ok()?.flatten().flat_map(|experiment| fs::read_dir(experiment.path()).ok());
    let mut fitting =
        runs.flatten().flatten().map(|run| run.path()).filter(|run| {
            run.file_name().and_then(|run| run.to_str()).is_some_and(|run| run.starts_with(name))
        });
    let first = fitting.next().filter(|_| !name.is_empty())?;
    fitting.next().is_none().then_some(first)
}

/// The logs there are, by machine, oldest first.
fn files(logs: &Path, machine: Option<&str>) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(logs).into_iter().flatten().flatten() {
        if machine.is_none_or(|machine| entry.file_name() == machine) {
            for file in fs::read_dir(entry.path())?.flatten() {
                let created = file.metadata().and_then(|metadata| metadata.created());
                files.push((entry.file_name(), created.ok(), file.path()));
            }
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(.., path)| path).collect())
}

/// Prints what a file has from an offset on. Returns how much that was.
fn show(path: &Path, from: u64, heading: Option<&Path>) -> std::io::Result<u64> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let (mut buffer, mut total) = (vec![0; 64 << 10], 0);
    while let count @ 1.. = file.read(&mut buffer)? {
        if let Some(heading) = heading.filter(|_| total == 0) {
            let heading = format!("==> {} <==\n", one_line(&heading.to_string_lossy()));
            pass_on(Stream::Stdout, heading.as_bytes())?;
        }
        total += count as u64;
        pass_on(Stream::Stdout, &buffer[..count])?;
    }
    Ok(total)
}
