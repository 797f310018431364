//! `tsunami cp`: files to and from the machines of a run.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tsunami_core::gravest;
use tsunami_core::{Command, Download, Error as CoreError, Host, Machine, RunStore};

use super::{Context, Execute, Known};
use crate::backend;
use crate::error::{Error, INTERRUPTED, LOST};
use crate::reporter::{Verbosity, span};
use crate::signals;
use crate::terminal::{self, complain, say, saying, waiting};

/// How often the line that changes does so, and how seldom at least there is another one where none can.
const REDRAW: Duration = Duration::from_millis(200);
const SELDOM: Duration = Duration::from_secs(60);

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Local(PathBuf),
    /// A machine or group, and a path there.
    Remote(String, String),
}

impl End {
    /// What comes before a colon is a machine or group, unless a `/` comes first.
    fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some((place, path)) if !place.is_empty() && !place.contains('/') => {
                Self::Remote(place.to_owned(), path.to_owned())
            }
            _ => Self::Local(text.into()),
        }
    }
}

/// Copy files to or from machines of a run
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Cp {
    /// A run id, a prefix of one, or an experiment's name
    run: String,
    /// What to copy: local paths, or MACHINE:path, or GROUP:path
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<String>,
    /// Where to: MACHINE:path or GROUP:path, or a local path
    #[arg(value_name = "DST")]
    destination: String,
}

const EXAMPLES: &str = "\
Examples:
  tsunami cp redis load.sh client:bin/      # to each machine of a group
  tsunami cp redis server-0:redis.log .     # from one machine
  tsunami cp redis client:out.csv outputs   # from each, into outputs/client-0 and so on";

impl Execute for Cp {
    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let sources: Vec<_> = self.sources.iter().map(|text| End::parse(text)).collect();
        let destination = End::parse(&self.destination);
        let mut places: Vec<&str> = Vec::new();
        for source in &sources {
            match (source, &destination) {
                (End::Local(_), End::Remote(place, _)) | (End::Remote(place, _), End::Local(_)) => {
                    places.push(place)
                }
                (End::Local(path), End::Local(_)) => {
                    return Err(Error::Usage(format!(
                        "{} and the destination are both local: write MACHINE:path",
                        path.display()
                    )));
                }
                (End::Remote(..), End::Remote(..)) => {
                    return Err(Error::Usage(
                        "copy from machine to machine by way of a local file".to_owned(),
                    ));
                }
            }
        }
        for source in &sources {
            if let End::Local(path) = source
                && fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            {
                return Err(Error::Usage(format!("there is no {}", path.display())));
            }
        }
        let state = RunStore::standard()?;
        let directory = state.find(&self.run)?;
        let known = directory.machines()?;
        let is_at = |machine: &Machine, place: &str| machine.group == place || machine.name() == place;
        let is_known = |place: &str| known.iter().any(|machine| is_at(machine, place));
        if let Some(unknown) = places.iter().find(|place| !is_known(place)) {
            let has = Known(&known).in_words();
            return Err(Error::Usage(format!("the run has no machine or group `{unknown}`; it has {has}")));
        }
        let cancel = CancellationToken::new();
        let engine = backend::engine(context.registry, &directory, &state).await?.cancel_on(cancel.clone());
        signals::watch(cancel, "stopping", say, Arc::new(|| INTERRUPTED))?;
        let is_wanted = |machine: &Machine| places.iter().any(|place| is_at(machine, place));
        let attach = engine.attach(&directory, is_wanted);
        let running = saying(&format!("connecting to {}", places.join(", ")), attach).await?;
        let hosts: Vec<_> = running.cluster().hosts().iter().map(|host| host.stage("copy")).collect();
        let gone = |machine: &&Machine| hosts.iter().all(|host| host.name() != machine.name());
        let mut status = 0;
        for machine in known.iter().filter(|machine| is_wanted(machine)).filter(gone) {
            complain(&format!("{} ({}) is not running any more", machine.name(), machine.id));
            status = LOST;
        }
        // Those that run, and whether there were several.
        let at = |place: &str| -> (Vec<&Host>, bool) {
            let running = hosts.iter().filter(|host| is_at(host.machine(), place)).collect();
            (running, known.iter().filter(|machine| is_at(machine, place)).count() > 1)
        };
        let of = places.iter().map(|place| at(place).0.len()).sum();
        let transfer = Transfer::new(&hosts, matches!(destination, End::Remote(..)), of);
        let several = sources.len() > 1;
        let copies = sources.iter().map(|source| copy(source, &destination, &at, several, &transfer.done));
        let copied = transfer.tell(join_all(copies), context.verbosity).await;
        if let Some(error) = gravest(copied.into_iter().filter_map(Result::err).collect()) {
            let error = Error::Core(error);
            error.show();
            status = status.max(error.status());
        }
        running.detach().await;
        Ok(status)
    }
}

/// How far all copies are, for whoever waits for them.
struct Transfer<'a> {
    hosts: &'a [Host],
    is_upload: bool,
    /// Of how many there are, one for each machine and source, so many have ended.
    done: AtomicUsize,
    of: usize,
    began: Instant,
}

impl<'a> Transfer<'a> {
    fn new(hosts: &'a [Host], is_upload: bool, of: usize) -> Self {
        Self { hosts, is_upload, done: AtomicUsize::new(0), of, began: Instant::now() }
    }

    /// Waits for the copies. What takes longer shows its bytes and rate: on a terminal in a line that changes, elsewhere in
    /// a line now and then.
    async fn tell<T>(&self, copies: impl Future<Output = T>, verbosity: Verbosity) -> T {
        let mut copies = pin!(copies);
        if verbosity == Verbosity::Quiet {
            return copies.await;
        }
        let draws = terminal::is_interactive();
        let (mut pause, mut is_shown) = (terminal::SILENCE, false);
        let copied = loop {
            tokio::select! {
                biased;
                copied = &mut copies => break copied,
                () = sleep(pause) => {}
            }
            is_shown = true;
            let words = self.words();
            if draws {
                terminal::redraw(&words);
                pause = REDRAW;
            } else {
                say(&words);
                pause = (pause * 3).min(SELDOM);
            }
        };
        if is_shown {
            if draws {
                terminal::redraw("");
            }
            say(&self.words());
        }
        copied
    }

    fn words(&self) -> String {
        let moved = self.hosts.iter().map(Host::moved).sum();
        let (took, done) = (self.began.elapsed(), self.done.load(Ordering::Relaxed));
        words(self.is_upload, moved, took, (done, self.of))
    }
}

fn words(is_upload: bool, moved: u64, took: Duration, (done, of): (usize, usize)) -> String {
    let what = if is_upload { "sent" } else { "fetched" };
    let rate = moved as f64 / took.as_secs_f64().max(1e-3);
    let copies = if of > 1 { format!(", {done} of {of} copies done") } else { String::new() };
    format!("{what} {} in {}, {}/s{copies}", bytes(moved as f64), span(took), bytes(rate))
}

/// So many bytes, in the largest unit that leaves something before the point.
fn bytes(count: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = count;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        (size, unit) = (size / 1024.0, unit + 1);
    }
    let digits = usize::from(unit > 0 && size < 100.0);
    format!("{size:.digits$} {}", units[unit])
}

async fn copy<'a>(
    source: &End,
    destination: &End,
    at: &impl Fn(&str) -> (Vec<&'a Host>, bool),
    several: bool,
    done: &AtomicUsize,
) -> Result<(), CoreError> {
    let count = |copied: Result<(), CoreError>| {
        done.fetch_add(1, Ordering::Relaxed);
        copied
    };
    let results = match (source, destination) {
        (End::Local(from), End::Remote(place, to)) => {
            // As `cp` does: into a directory if the destination is one, or if several go there.
            let uploads = at(place).0.into_iter().map(async |host| {
                let to = destination_on(host, to, from, several).await?;
                count(host.upload(from, &to).await)
            });
            join_all(uploads).await
        }
        (End::Remote(place, path), End::Local(to)) => {
            let (hosts, apart) = at(place);
            let downloads = hosts.into_iter().map(async |host| {
                let to = if apart { to.join(host.name()) } else { to.clone() };
                count(fetch(host, path, &to, several || apart).await)
            });
            join_all(downloads).await
        }
        _ => return Err(CoreError::other("one end must be a machine's, the other local")),
    };
    gravest(results.into_iter().filter_map(Result::err).collect()).map_or(Ok(()), Err)
}

async fn destination_on(host: &Host, to: &str, from: &Path, several: bool) -> Result<String, CoreError> {
    let to = if to.is_empty() { "." } else { to };
    let is_directory = Command::program("test").arg("-d").arg(to);
    if !several && !to.ends_with('/') && !host.command(is_directory).output().await?.exit.success() {
        return Ok(to.to_owned());
    }
    let name = from.file_name().and_then(|name| name.to_str()).ok_or("the source has no usable name")?;
    Ok(format!("{}/{name}", to.trim_end_matches('/')))
}

/// Brings one file or directory home: as `to`, or into it if that is a directory or `into` says so.
async fn fetch(host: &Host, path: &str, to: &Path, into: bool) -> Result<(), CoreError> {
    let (directory, name) = ends(path);
    let ends_as_directory = to.as_os_str().as_encoded_bytes().ends_with(b"/");
    let download = async |into: &Path| {
        let mut download = Download::new([name], into);
        download.cwd = directory.map(str::to_owned);
        let matches = host.download(&download).await?;
        if matches.iter().sum::<usize>() == 0 {
            return Err(host.error(format!("there is no {path}")));
        }
        Ok(())
    };
    if into || name == "." || ends_as_directory || to.is_dir() || name.contains(['*', '?', '[']) {
        return download(to).await;
    }
    let destination = to.to_owned();
    let staging = blocking(move || Staging::beside(&destination)).await;
    let staging = staging.map_err(|error| cannot_write(to, error))?;
    let downloaded = download(&staging.0).await;
    // What has come home is kept even if something is missing from it, and the rest, perhaps a large tree, removed.
    let (came, destination) = (staging.0.join(name), to.to_owned());
    let renamed = blocking(move || {
        let _staging = staging;
        rename(&came, &destination)
    });
    match renamed.await {
        Err(error) if downloaded.is_ok() => Err(cannot_write(to, error)),
        _ => downloaded,
    }
}

/// Does what may wait for a disk, on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other).flatten()
}

/// The directory on the machine, and what to ask for in it.
fn ends(path: &str) -> (Option<&str>, &str) {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit_once('/') {
        _ if matches!(trimmed, "" | "." | "..") || trimmed.ends_with("/.") || trimmed.ends_with("/..") => {
            let whole = if trimmed.is_empty() && !path.is_empty() { "/" } else { trimmed };
            ((!whole.is_empty()).then_some(whole), ".")
        }
        Some(("", name)) => (Some("/"), name),
        Some((directory, name)) => (Some(directory), name),
        None => (None, trimmed),
    }
}

/// A directory of this copy's own beside its destination, to rename from. Removed with what is left in it.
struct Staging(PathBuf);

impl Staging {
    fn beside(to: &Path) -> io::Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let parent = to.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!(".tsunami-cp-{}-{next}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // After Ctrl-C it may be dropped where other tasks run.
        waiting(|| drop(fs::remove_dir_all(&self.0)));
    }
}

/// Puts a file or directory in a place that nothing has, or a file has. A link in that place is replaced, and one
/// that comes from a machine is never put there: it would lead elsewhere than where it was checked.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let replaced = to.symlink_metadata().map(|metadata| metadata.file_type());
    if from.symlink_metadata()?.is_symlink() {
        return Err(io::Error::other("a link came in its place"));
    }
    if replaced.is_ok_and(|kind| !kind.is_file() && !kind.is_symlink()) {
        return Err(io::Error::other("there is something in its place"));
    }
    fs::rename(from, to)
}

fn cannot_write(to: &Path, error: io::Error) -> CoreError {
    CoreError::other(format!("cannot write {}: {error}", to.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_colon_makes_a_machine_unless_a_slash_comes_first() {
        assert_eq!(End::parse("client-0:out/a:b"), End::Remote("client-0".into(), "out/a:b".into()));
        assert_eq!(End::parse("client:"), End::Remote("client".into(), String::new()));
        assert_eq!(End::parse("./a:b"), End::Local("./a:b".into()));
        assert_eq!(End::parse("plain"), End::Local("plain".into()));
    }

    #[test]
    fn a_copy_tells_its_bytes_and_rate() {
        let took = Duration::from_secs(12);
        assert_eq!(
            words(true, 31_457_280, took, (2, 40)),
            "sent 30.0 MiB in 12s, 2.5 MiB/s, 2 of 40 copies done"
        );
        assert_eq!(words(false, 500, Duration::from_millis(2500), (0, 1)), "fetched 500 B in 2.5s, 200 B/s");
    }

    #[test]
    fn a_path_is_a_directory_and_a_name_in_it() {
        for (path, expected) in [
            ("out.csv", (None, "out.csv")),
            ("out/", (None, "out")),
            ("a/b/*.csv", (Some("a/b"), "*.csv")),
            ("/etc/hosts", (Some("/etc"), "hosts")),
            ("/etc", (Some("/"), "etc")),
            ("", (None, ".")),
            (".", (Some("."), ".")),
            ("a/..", (Some("a/.."), ".")),
            ("/", (Some("/"), ".")),
        ] {
            assert_eq!(ends(path), expected, "{path}");
        }
    }

    #[test]
    fn what_came_takes_the_place_of_a_file_or_a_link_and_is_no_link() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["new", "mine"] {
            fs::write(path(name), name).unwrap();
        }
        symlink("mine", path("link")).unwrap();
        assert!(rename(&path("link"), &path("to")).is_err());
        rename(&path("new"), &path("link")).unwrap();
        assert_eq!(fs::read_to_string(path("link")).unwrap(), "new");
        assert_eq!(fs::read_to_string(path("mine")).unwrap(), "mine");
        fs::create_dir(path("directory")).unwrap();
        assert!(rename(&path("mine"), &path("directory")).is_err());
        assert!(rename(&path("mine"), Path::new("/dev/null")).is_err());
    }

    #[test]
    fn no_two_copies_share_a_staging_directory() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("deep/to");
        let (one, other) = (Staging::beside(&to).unwrap(), Staging::beside(&to).unwrap());
        assert_ne!(one.0, other.0);
        fs::write(one.0.join("file"), "x").unwrap();
        drop((one, other));
        assert_eq!(fs::read_dir(directory.path().join("deep")).unwrap().count(), 0);
    }
}
