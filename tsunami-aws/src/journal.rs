//! What a run asked EC2 to create, written down and synced before it was asked.
//!
//! A request whose answer was never seen is made again as it was, byte for byte and with the same token: then
//! its answer tells what it created. Whatever else is kept here is a hint; the tags are the truth.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey};
use tsunami_core::{ProviderError, ProviderErrorKind, RunId, private};

use crate::model::{CreateKind, CreateRequest, Pool};
use crate::settings::{Ec2Options, Ec2Settings};

/// The journal of one run, in a private directory.
#[derive(Debug)]
pub(crate) struct Journal {
    directory: PathBuf,
    writing: Mutex<()>,
}

/// A request, and what came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    #[serde(rename = "create")]
    pub(crate) request: CreateRequest,
    pub(crate) asked: SystemTime,
    /// `None` while the answer is not known.
    pub(crate) outcome: Option<Outcome>,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It created these.
    Created(Vec<String>),
    /// It created nothing, since it was refused.
    Refused(String),
    /// It failed inside EC2, which tells nothing of what it created.
    Failed(String),
}

impl Entry {
    /// Whether it is not known what the request created.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.outcome, None | Some(Outcome::Failed(_)))
    }
}

/// A group's machines by their slots, and what a machine of each kind costs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct GroupNotes {
    #[serde(rename = "places")]
    pub(crate) slots: Vec<Option<String>>,
    /// Where the first machine came from.
    pub(crate) pool: Option<Pool>,
    /// US dollars an hour, where that is known.
    pub(crate) prices: BTreeMap<String, f64>,
    /// Whether machines get a public address, if only after a while.
    #[serde(default)]
    pub(crate) public: bool,
}

impl GroupNotes {
    /// What prices are noted under.
    pub(crate) fn price_key(spot: bool, instance: &str, zone: &str) -> String {
        let market = if spot { "spot" } else { "on-demand" };
        format!("{market} {instance} {zone}")
    }
}

impl Journal {
    /// The journal of a run in `root`. Nothing is made until something is written.
    pub(crate) fn of(root: &Path, run: &RunId) -> Self {
        Self { directory: root.join(run.as_str()).join("aws"), writing: Mutex::default() }
    }

    /// The run's private host key, made when it is first asked for, and its public half.
    pub(crate) fn host_key(&self) -> io::Result<(String, String)> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.directory.join("host_key");
        let key = match private::read(&path) {
            Ok(bytes) => PrivateKey::from_openssh(bytes).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(io::Error::other)?;
                key.set_comment("tsunami");
                let text = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
                self.write("host_key", text.as_bytes())?;
                key
            }
            Err(error) => return Err(error),
        };
        let private = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
        Ok((private.to_string(), key.public_key().to_openssh().map_err(io::Error::other)?))
    }

    /// The public half of the run's host key, if there is one.
    pub(crate) fn public_host_key(&self) -> Option<String> {
        self.directory
            .join("host_key")
            .exists()
            .then(|| self.host_key().ok())
            .flatten()
            .map(|(_, public)| public)
    }

    /// Writes down that something is about to be asked for.
    pub(crate) fn begin(&self, request: &CreateRequest) -> io::Result<()> {
        self.note(&Entry { request: request.clone(), asked: SystemTime::now(), outcome: None })
    }

    /// Writes down what came of it.
    pub(crate) fn end(&self, request: &CreateRequest, outcome: Outcome) -> io::Result<()> {
        let asked = self.entry(request)?.map_or_else(SystemTime::now, |entry| entry.asked);
        self.note(&Entry { request: request.clone(), asked, outcome: Some(outcome) })
    }

    /// What is known of a request that was made before.
    pub(crate) fn entry(&self, request: &CreateRequest) -> io::Result<Option<Entry>> {
        self.read(&entry_file(request))
    }

    /// All requests of the run, in the order of their names.
    pub(crate) fn entries(&self) -> io::Result<Vec<Entry>> {
        match self.legible() {
            (_, Some(error)) => Err(error),
            (entries, None) => Ok(entries),
        }
    }

    /// The requests that can be read, and what is wrong with the first that can't.
    pub(crate) fn legible(&self) -> (Vec<Entry>, Option<io::Error>) {
        let files = match fs::read_dir(&self.directory) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return (Vec::new(), None),
            Err(error) => return (Vec::new(), Some(error)),
        };
        let (mut names, mut wrong) = (Vec::new(), None);
        for file in files {
            match file.map(|file| file.file_name().to_string_lossy().into_owned()) {
                Ok(name) if name.starts_with("create-") && name.ends_with(".json") => names.push(name),
                Ok(_) => {}
                Err(error) => wrong = Some(error),
            }
        }
        names.sort();
        let mut entries = Vec::new();
        for name in names {
            match self.read(&name) {
                Ok(entry) => entries.extend(entry),
                Err(error) => {
                    wrong = wrong.or(Some(io::Error::new(error.kind(), format!("{name}: {error}"))))
                }
            }
        }
        (entries, wrong)
    }

    /// The security group that the run made for itself in a region.
    pub(crate) fn security_group(&self, region: &str) -> io::Result<Option<String>> {
        let made = self.entries()?.into_iter().find_map(|entry| match (&entry.request.kind, entry.outcome) {
            (CreateKind::SecurityGroup { .. }, Some(Outcome::Created(ids)))
                if entry.request.region == region =>
            {
                ids.into_iter().next()
            }
            _ => None,
        });
        Ok(made)
    }

    /// What is noted of a group.
    pub(crate) fn group(&self, group: &str) -> io::Result<GroupNotes> {
        Ok(self.read(&group_file(group))?.unwrap_or_default())
    }

    /// Keeps beside the requests whose they are, in case the run's record is lost.
    pub(crate) fn write_settings(&self, settings: &Ec2Settings) -> io::Result<()> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write("settings.json", &serde_json::to_vec_pretty(settings)?)
    }

    /// Whose the requests are, if that was kept.
    pub(crate) fn settings(&self) -> io::Result<Option<Ec2Settings>> {
        self.read("settings.json")
    }

    pub(crate) fn write_group(&self, group: &str, notes: &GroupNotes) -> io::Result<()> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(&group_file(group), &serde_json::to_vec_pretty(notes)?)
    }

    fn note(&self, entry: &Entry) -> io::Result<()> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(&entry_file(&entry.request), &serde_json::to_vec_pretty(entry)?)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match private::read(&self.directory.join(name)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces a file as a whole, durably.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        private::make_directory(&self.directory)?;
        private::write(&self.directory.join(name), bytes)
    }
}

fn entry_file(request: &CreateRequest) -> String {
    format!("create-{}.json", request.name())
}

fn group_file(group: &str) -> String {
    format!("group-{group}.json")
}

/// The options with which the provider of a run is found again whose record can't be read, by the run's journal in
/// `root`: the same account, and every region where something may be.
pub fn recorded_options(root: &Path, run: &RunId) -> io::Result<Ec2Options> {
    let journal = Journal::of(root, run);
    // Another account's listings would be empty, and prove nothing.
    let settings = journal.settings()?.ok_or(io::ErrorKind::NotFound)?;
    let mut options = settings.options();
    for entry in journal.legible().0 {
        if !options.regions.contains(&entry.request.region) {
            options.regions.push(entry.request.region);
        }
    }
    Ok(options)
}

/// What is to be said where the journal can't be read or written.
pub(crate) fn journal_error(error: io::Error) -> ProviderError {
    let message = "cannot write down what is about to be asked for, so it is not asked for";
    ProviderError::new(ProviderErrorKind::Other, "journal", message).source(error)
}
