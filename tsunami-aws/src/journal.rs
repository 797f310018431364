//! What a run asked EC2 to create, written down and synced before it was asked.
//!
//! A request whose answer was never seen is made again as it was, byte for byte and with the same token: then
//! its answer tells what it created. Whatever else is kept here is a hint; the tags are the truth.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey};
use tokio::task::spawn_blocking;
use tsunami_core::{ProviderError, ProviderErrorKind, RunId, private};

use crate::model::{CreateKind, CreateRequest, Pool};
use crate::settings::{Ec2Options, Ec2Settings};

/// The journal of one run, in a private directory. Cheap to clone.
///
/// Reading and writing take as long as the disk does: both are done on a thread that may wait, and have begun when the
/// future is first polled.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    directory: Arc<Path>,
    writing: Arc<Mutex<()>>,
    /// The public half of the host key, once it is known. It never changes.
    public_host_key: Arc<OnceLock<String>>,
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
pub(crate) struct GroupRecord {
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

impl GroupRecord {
    /// What prices are noted under.
    pub(crate) fn price_key(spot: bool, instance: &str, zone: &str) -> String {
        let market = if spot { "spot" } else { "on-demand" };
        format!("{market} {instance} {zone}")
    }
}

impl Journal {
    /// The journal of a run in `root`. Nothing is made until something is written.
    pub(crate) fn of(root: &Path, run: &RunId) -> Self {
        let directory = root.join(run.as_str()).join("aws").into();
        Self { directory, writing: Arc::default(), public_host_key: Arc::default() }
    }

    /// The run's private host key, made when it is first asked for, and its public half.
    pub(crate) async fn host_key(&self) -> io::Result<(String, String)> {
        self.writing(|journal| {
            let key = match journal.known_host_key()? {
                Some(key) => key,
                None => {
                    let mut key =
                        PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(io::Error::other)?;
                    key.set_comment("tsunami");
                    let text = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
                    journal.write("host_key", text.as_bytes())?;
                    key
                }
            };
            let private = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
            Ok((private.to_string(), key.public_key().to_openssh().map_err(io::Error::other)?))
        })
        .await
    }

    /// The public half of the run's host key, if there is one. Every listing asks for it.
    pub(crate) async fn public_host_key(&self) -> Option<String> {
        if let Some(known) = self.public_host_key.get() {
            return Some(known.clone());
        }
        let key = self.reading(Self::known_host_key).await.ok()??;
        let public = key.public_key().to_openssh().ok()?;
        Some(self.public_host_key.get_or_init(|| public).clone())
    }

    fn known_host_key(&self) -> io::Result<Option<PrivateKey>> {
        match private::read(&self.directory.join("host_key")) {
            Ok(bytes) => PrivateKey::from_openssh(bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes down that something is about to be asked for.
    pub(crate) async fn begin(&self, request: &CreateRequest) -> io::Result<()> {
        let entry = Entry { request: request.clone(), asked: SystemTime::now(), outcome: None };
        self.writing(move |journal| journal.note(&entry)).await
    }

    /// Writes down what came of it.
    pub(crate) async fn end(&self, request: &CreateRequest, outcome: Outcome) -> io::Result<()> {
        let request = request.clone();
        let note = move |journal: &Self| {
            let known: Option<Entry> = journal.read(&entry_file(&request))?;
            let asked = known.map_or_else(SystemTime::now, |entry| entry.asked);
            journal.note(&Entry { request, asked, outcome: Some(outcome) })
        };
        self.writing(note).await
    }

    /// What is known of a request that was made before.
    pub(crate) async fn entry(&self, request: &CreateRequest) -> io::Result<Option<Entry>> {
        let file = entry_file(request);
        self.reading(move |journal| journal.read(&file)).await
    }

    /// All requests of the run, in the order of their names.
    pub(crate) async fn entries(&self) -> io::Result<Vec<Entry>> {
        match self.legible().await {
            (_, Some(error)) => Err(error),
            (entries, None) => Ok(entries),
        }
    }

    /// The requests that can be read, and what is wrong with the first that can't.
    pub(crate) async fn legible(&self) -> (Vec<Entry>, Option<io::Error>) {
        let read = self.reading(|journal| Ok(journal.read_legible())).await;
        read.unwrap_or_else(|error| (Vec::new(), Some(error)))
    }

    /// The same for those who are on a thread that may wait.
    pub(crate) fn read_legible(&self) -> (Vec<Entry>, Option<io::Error>) {
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
    pub(crate) async fn security_group(&self, region: &str) -> io::Result<Option<String>> {
        let made =
            self.entries().await?.into_iter().find_map(|entry| match (&entry.request.kind, entry.outcome) {
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
    pub(crate) async fn group(&self, group: &str) -> io::Result<GroupRecord> {
        let file = group_file(group);
        self.reading(move |journal| Ok(journal.read(&file)?.unwrap_or_default())).await
    }

    /// Keeps beside the requests whose they are, in case the run's record is lost.
    pub(crate) async fn write_settings(&self, settings: &Ec2Settings) -> io::Result<()> {
        let settings = serde_json::to_vec_pretty(settings)?;
        self.writing(move |journal| journal.write("settings.json", &settings)).await
    }

    /// Whose the requests are, if that was kept.
    fn settings(&self) -> io::Result<Option<Ec2Settings>> {
        self.read("settings.json")
    }

    pub(crate) async fn write_group(&self, group: &str, notes: &GroupRecord) -> io::Result<()> {
        let (file, notes) = (group_file(group), serde_json::to_vec_pretty(notes)?);
        self.writing(move |journal| journal.write(&file, &notes)).await
    }

    /// Reads on a thread that may wait for the disk.
    async fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let journal = self.clone();
        spawn_blocking(move || read(&journal)).await.map_err(io::Error::other).flatten()
    }

    /// Lets one at a time write, on a thread that may wait for the disk.
    async fn writing<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let journal = self.clone();
        let write = move || {
            let _one_at_a_time = journal.writing.lock().unwrap_or_else(PoisonError::into_inner);
            write(&journal)
        };
        spawn_blocking(write).await.map_err(io::Error::other).flatten()
    }

    fn note(&self, entry: &Entry) -> io::Result<()> {
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
/// `root`: the same account, and every region where something may be. Reads a few small files.
pub fn recorded_options(root: &Path, run: &RunId) -> io::Result<Ec2Options> {
    let journal = Journal::of(root, run);
    // Another account's listings would be empty, and prove nothing.
    let settings = journal.settings()?.ok_or(io::ErrorKind::NotFound)?;
    let mut options = settings.options();
    for entry in journal.read_legible().0 {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::{join_all, try_join_all};
    use tokio::time::timeout;

    use super::*;
    use crate::model::Tags;

    fn journal(root: &tempfile::TempDir) -> Journal {
        Journal::of(root.path(), &"20260101-000000-aaaa".parse().unwrap())
    }

    fn request(name: &str) -> CreateRequest {
        let (region, name) = ("us-east-1".to_owned(), name.to_owned());
        CreateRequest { region, name, tags: Tags::new(), kind: CreateKind::PlacementGroup }
    }

    #[tokio::test]
    async fn a_request_is_written_down_before_it_is_made_and_its_outcome_after_it() {
        let root = tempfile::tempdir().unwrap();
        let (written, read) = (journal(&root), journal(&root));
        let made = (0..20).map(async |number| {
            let request = request(&format!("group-{number}"));
            written.begin(&request).await.unwrap();
            assert!(read.entry(&request).await.unwrap().unwrap().is_open());
            let outcome = Outcome::Created(vec![format!("pg-{number}")]);
            written.end(&request, outcome.clone()).await.unwrap();
            assert_eq!(read.entry(&request).await.unwrap().unwrap().outcome, Some(outcome));
        });
        join_all(made).await;
        assert_eq!(read.entries().await.unwrap().len(), 20);
    }

    #[tokio::test]
    async fn an_answer_that_came_is_written_down_whoever_stops_waiting_for_that() {
        let root = tempfile::tempdir().unwrap();
        let (written, request) = (journal(&root), request("group"));
        written.begin(&request).await.unwrap();
        let _ = timeout(Duration::ZERO, written.end(&request, Outcome::Refused("No".to_owned()))).await;
        while written.entry(&request).await.unwrap().unwrap().is_open() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn the_host_key_is_made_once_and_listings_know_its_public_half() {
        let root = tempfile::tempdir().unwrap();
        let (first, second) = (journal(&root), journal(&root));
        assert_eq!(first.public_host_key().await, None);
        let keys = try_join_all((0..8).map(|_| first.host_key())).await.unwrap();
        assert!(keys.iter().all(|key| *key == keys[0]));
        assert_eq!(second.host_key().await.unwrap(), keys[0]);
        assert_eq!(first.public_host_key().await.as_ref(), Some(&keys[0].1));
        // It is not read again.
        fs::remove_file(root.path().join("20260101-000000-aaaa/aws/host_key")).unwrap();
        assert_eq!(first.public_host_key().await.as_ref(), Some(&keys[0].1));
    }
}
