//! What is made from a run's report alone: at its end, and again whenever somebody asks.

use std::fs;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::{
    Ending, ResultsError, ResultsFile, files, html, is_results, manifest, results_csv, results_json, run_json,
};
use crate::{Analysis, Event, NewerSchema, Observer, Report, read_events};

/// What is made, in this order. The last one digests all others.
const BUILT: &[(&str, Build)] = &[
    ("results.json", results_json::build),
    ("results.csv", results_csv::build),
    (html::NAME, html::build),
    (manifest::NAME, manifest::build),
];

/// The numbers of the forms of what is written over, as this version knows them.
const FORMS: [(&str, u32); 3] = [
    ("results.json", results_json::RESULTS_SCHEMA),
    ("run.json", run_json::RUN_SCHEMA),
    (manifest::NAME, manifest::MANIFEST_SCHEMA),
];

/// Refuses results of which a later version has written a file: they stay as they are.
pub(super) fn check_forms(directory: &Path) -> Result<(), ResultsError> {
    #[derive(Deserialize)]
    struct Form {
        #[serde(default)]
        schema: u64,
    }
    for (name, known) in FORMS {
        let path = directory.join(name);
        // What is missing or damaged has no form, and is made anew.
        let Ok(file) = files::open(&path) else { continue };
        let Ok(Form { schema }) = serde_json::from_reader(BufReader::new(file)) else { continue };
        let checked = NewerSchema::check(u32::try_from(schema).unwrap_or(u32::MAX), known);
        checked.map_err(io::Error::other).map_err(ResultsError::file("write over", path))?;
    }
    Ok(())
}

/// Makes the content of one file.
type Build = fn(&Source<'_>) -> io::Result<String>;

/// What files are made from.
pub(super) struct Source<'a> {
    /// The results directory, with what was written before.
    pub(super) directory: &'a Path,
    pub(super) report: &'a Report,
    pub(super) analysis: &'a Analysis,
}

/// Makes all of them once the run is over.
#[derive(Debug)]
struct BuiltFiles(PathBuf);

pub(super) fn create(directory: &Path) -> Result<Arc<dyn ResultsFile>, ResultsError> {
    Ok(Arc::new(BuiltFiles(directory.to_owned())))
}

impl Observer for BuiltFiles {
    fn event(&self, _: &Event) {}
}

impl ResultsFile for BuiltFiles {
    fn finish(&self, ending: &Ending<'_>) -> Result<(), ResultsError> {
        build(&self.0, ending.report).map(drop)
    }
}

fn build(directory: &Path, report: &Report) -> Result<Vec<PathBuf>, ResultsError> {
    let analysis = &report.analysis();
    let source = Source { directory, report, analysis };
    let built = BUILT.iter().map(|(name, build)| {
        let path = directory.join(name);
        let written = build(&source).and_then(|content| files::write(&path, content));
        written.map_err(ResultsError::file("write", &path)).map(|()| path)
    });
    // One that can't be made keeps no other from being so.
    let built: Vec<_> = built.collect();
    built.into_iter().collect()
}

/// What the events of a run have lost, if it shows.
fn lost(directory: &Path, report: &Report) -> Option<String> {
    if report.run.is_none() && report.earlier_sets.is_empty() && report.trials.is_empty() {
        return Some("no run is in it: it is empty, or its beginning is lost".to_owned());
    }
    let results: serde_json::Value =
        serde_json::from_slice(&fs::read(directory.join("results.json")).ok()?).ok()?;
    let (has, had) = (report.trials.len(), results["trials"].as_array()?.len());
    (has < had).then(|| {
        format!("{has} trials are in it, and {had} in results.json: its end is lost. Remove results.json to go on without")
    })
}

/// What a results directory tells: its events, of this form or an earlier one, summed up. Blocks.
///
/// # Errors
///
/// What can't be read. Where a later version wrote it, the cause is a [`NewerSchema`](crate::NewerSchema).
pub fn read_report(directory: &Path) -> Result<Report, ResultsError> {
    if !is_results(directory)? {
        return Err(ResultsError::NotResults(directory.to_owned()));
    }
    let path = directory.join("events.jsonl");
    let events = files::open(&path).and_then(|file| read_events(BufReader::new(file)));
    let events = events.map_err(ResultsError::file("read", &path))?;
    Ok(events.iter().collect())
}

/// Makes `results.json`, `results.csv`, `report.html` and `manifest.json` in a results directory anew, from its events and
/// from what else is still there. Returns the report and where these files are. Blocks.
///
/// # Errors
///
/// What can't be read or written; all else is. With nothing written, that a later version wrote one of the files, that there
/// is no run in the events, or that they have fewer trials than `results.json`: then they have lost something that it still
/// has.
pub fn rebuild(directory: &Path) -> Result<(Report, Vec<PathBuf>), ResultsError> {
    let report = read_report(directory)?;
    check_forms(directory)?;
    if let Some(lost) = lost(directory, &report) {
        let events = directory.join("events.jsonl");
        return Err(ResultsError::file("make anything of", &events)(io::Error::other(lost)));
    }
    let built = build(directory, &report)?;
    Ok((report, built))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::little_run;

    #[test]
    fn what_a_later_version_wrote_is_named_and_stays() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path();
        let events: Vec<_> =
            little_run().iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect();
        fs::write(directory.join("events.jsonl"), events.concat()).unwrap();
        rebuild(directory).unwrap();
        for name in ["results.json", "run.json", "manifest.json"] {
            let (path, before) = (directory.join(name), fs::read(directory.join(name)));
            let later = "{\"trials\": 1, \"schema\": 99}";
            fs::write(&path, later).unwrap();
            let html = fs::read(directory.join(html::NAME)).unwrap();
            fs::write(directory.join(html::NAME), "before").unwrap();
            let error = rebuild(directory).unwrap_err();
            let ResultsError::File { path: told, source, .. } = &error else { panic!("{error}") };
            let newer = source.get_ref().and_then(|error| error.downcast_ref::<NewerSchema>()).unwrap();
            assert_eq!((told, newer.schema), (&path, 99));
            assert_eq!(fs::read_to_string(&path).unwrap(), later);
            assert_eq!(
                fs::read_to_string(directory.join(html::NAME)).unwrap(),
                "before",
                "all else stays, too"
            );
            fs::write(directory.join(html::NAME), html).unwrap();
            match before {
                Ok(before) => fs::write(&path, before).unwrap(),
                Err(_) => fs::remove_file(&path).unwrap(),
            }
        }
        fs::write(directory.join("run.json"), "damaged").unwrap();
        rebuild(directory).unwrap();
    }
}
