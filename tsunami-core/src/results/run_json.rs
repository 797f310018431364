//! `run.json`: what a run came to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::{Ending, ResultsError, ResultsFile, files};
use crate::{Event, Observer, Report};

/// The number of the form of `run.json`. The first form had none.
pub(super) const RUN_SCHEMA: u32 = 2;

/// Writes it once the run is over, and hears of nothing before.
#[derive(Debug)]
struct RunFile(PathBuf);

/// `run.json`.
#[derive(Serialize)]
struct RunJson<'a> {
    schema: u32,
    tsunami: &'static str,
    provider: &'a str,
    outcome: &'static str,
    exit_status: u8,
    controller: Controller,
    /// Those of `--set`.
    values: &'a [(String, String)],
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

pub(super) fn create(directory: &Path) -> Result<Arc<dyn ResultsFile>, ResultsError> {
    Ok(Arc::new(RunFile(directory.join("run.json"))))
}

impl Observer for RunFile {
    fn event(&self, _: &Event) {}
}

impl ResultsFile for RunFile {
    fn finish(&self, ending: &Ending<'_>) -> Result<(), ResultsError> {
        let Ending { experiment, outcome, report } = ending;
        let run = RunJson {
            schema: RUN_SCHEMA,
            tsunami: env!("CARGO_PKG_VERSION"),
            provider: &experiment.provider,
            outcome: outcome.words(),
            exit_status: outcome.exit_status(),
            controller: Controller::this(),
            values: &experiment.set,
            estimated_cost: report.estimated_cost(),
            report,
        };
        let text = serde_json::to_string_pretty(&run).map_err(io::Error::from);
        let written = text.and_then(|text| files::write(&self.0, text + "\n"));
        written.map_err(ResultsError::file("write", &self.0))
    }
}
