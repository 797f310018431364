//! What a machine has already of what goes to it, and what therefore isn't sent.
//!
//! The session notes where it has put files, by their size. That is a hint and no more: the machine itself reads a file
//! of that size and compares its digest before it keeps it, or puts a copy of it in another place. It is a copy and no
//! hard link, so that what later changes one place in place leaves the other alone; file systems that can share blocks
//! until then do so by themselves. Nothing is kept beside the files, so there is nothing to remove.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256};
use tokio::sync::oneshot;

use super::progress::{Counting, Progress};
use super::upload::{Named, mode, modified, open};
use crate::command::StdoutConsumer;
use crate::limits::PLACES_LIMIT;
use crate::shell::{AfterPreamble, one_line};

/// Bytes of a file from which it is asked for where the session has put one of its size already. To ask costs a round
/// trip, and the machine some 10 ms of processor time, as much as to take 2 MiB; through one channel's window 2 MiB are
/// what is sent in a round trip.
const WORTH_ASKING: u64 = 1 << 20;

/// Bytes from which a file is asked for although nothing is known: an image may have it, or a process before this one
/// may have sent it. To send so much takes eight times as long as to ask, at any latency, through one channel's window.
const ALWAYS_ASKED: u64 = 16 << 20;

/// Bytes from which nothing is asked: both sides would read for minutes.
const NEVER_ASKED: u64 = 64 << 30;

/// Places in which one content is looked for.
const PLACES_TRIED: usize = 3;

/// Digests that are remembered, of about 200 bytes each.
const DIGESTS_KEPT: usize = 4096;

/// How long a file must have been left alone for its digest to be remembered. File systems note times in steps of some
/// milliseconds, networks' may be behind: two changes within one step look like one.
const SETTLED: Duration = Duration::from_secs(2);

/// Where a session has put files on its machine, by their size.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<HashMap<u64, Vec<PathBuf>>>);

impl Places {
    /// Notes that a file of this size was put there.
    pub(super) fn note(&self, size: u64, place: PathBuf) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() >= PLACES_LIMIT && !noted.contains_key(&size) {
            // What is forgotten is sent again.
            noted.clear();
        }
        let places = noted.entry(size).or_default();
        places.retain(|there| *there != place);
        places.insert(0, place);
        places.truncate(PLACES_TRIED + 1);
    }

    /// Where else a file may be that goes to `place`; `None` if it is not worth asking.
    fn of(&self, size: u64, place: &Path) -> Option<Vec<PathBuf>> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let places = noted.get(&size).map(Vec::as_slice).unwrap_or_default();
        let is_likely = size >= ALWAYS_ASKED || !places.is_empty();
        let elsewhere =
            || places.iter().filter(|there| *there != place).take(PLACES_TRIED).cloned().collect();
        (is_likely && is_asked_for(size)).then(elsewhere)
    }
}

/// Whether a file may be asked for, by its size.
pub(super) fn is_asked_for(size: u64) -> bool {
    (WORTH_ASKING..NEVER_ASKED).contains(&size)
}

/// The files that a machine may have, by their names in the archive, and where else to look for them.
#[derive(Debug, Default)]
pub(super) struct Questions(Vec<(PathBuf, Vec<PathBuf>)>);

impl Questions {
    /// What to ask about files, by their names in an archive that is unpacked in `directory`, and their sizes.
    pub(super) fn about<'a>(
        files: impl Iterator<Item = (&'a PathBuf, u64)>,
        directory: &Path,
        places: &Places,
    ) -> Self {
        let asked = |(name, size): (&PathBuf, u64)| {
            places.of(size, &directory.join(name)).map(|elsewhere| (name.clone(), elsewhere))
        };
        Self(files.filter_map(asked).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes the questions, each a line of [`UNPACK`](super::upload::UNPACK)'s. Returns the names in them.
    pub(super) fn write(
        &self,
        from: impl Fn(&Path) -> Named,
        progress: &Progress,
        into: &mut impl Write,
    ) -> io::Result<Vec<&Path>> {
        let mut asked = Vec::new();
        for (name, elsewhere) in &self.0 {
            // What vanishes, or is written to, is not asked for.
            let Some((file, metadata)) = open(&from(name))? else { continue };
            let Some(digest) = digest(file, &metadata, progress)? else { continue };
            let (size, mode, modified) = (metadata.len(), mode(&metadata), modified(&metadata));
            write!(into, "h {digest} {size} {mode:o} {modified}")?;
            for path in [name].into_iter().chain(elsewhere) {
                into.write_all(b" ")?;
                into.write_all(&one_line(path.as_os_str().as_bytes()).map_err(io::Error::other)?)?;
            }
            into.write_all(b"\n")?;
            asked.push(name.as_path());
        }
        Ok(asked)
    }
}

/// Where answers come, each of them one byte.
#[derive(Debug)]
pub(super) struct Answers {
    from: AfterPreamble<Counting<PipeReader>>,
    /// Dropped when nobody reads answers any more.
    _done: oneshot::Sender<()>,
}

impl Answers {
    pub(super) fn new(progress: &Progress) -> io::Result<(Self, StdoutConsumer)> {
        let ((from, pipe), (finished, done)) = (io::pipe()?, oneshot::channel());
        let from = AfterPreamble::new(progress.counting(from));
        Ok((Self { from, _done: finished }, StdoutConsumer { pipe, done }))
    }

    /// Waits for the next one, and says whether it is yes.
    pub(super) fn next(&mut self) -> io::Result<bool> {
        let mut answer = [0];
        // Whoever should have answered has ended, and its status says why.
        self.from.read_exact(&mut answer).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(answer == *b"y")
    }
}

/// What changes when a file does.
type Identity = (u64, u64, u64, [i64; 4]);

fn identity(metadata: &Metadata) -> Identity {
    let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
    (metadata.dev(), metadata.ino(), metadata.len(), times)
}

/// The digests of files here. Many machines want the same file's, so whoever comes first reads it and the others wait.
static DIGESTS: LazyLock<Mutex<HashMap<Identity, KeptDigest>>> = LazyLock::new(Mutex::default);

/// Locked by who reads the file.
type KeptDigest = Arc<Mutex<Option<String>>>;

/// The digest of a file as `sha256sum` writes it; `None` if the file changes meanwhile.
pub(super) fn digest(file: File, metadata: &Metadata, progress: &Progress) -> io::Result<Option<String>> {
    let identity = identity(metadata);
    let changed = SystemTime::UNIX_EPOCH.checked_add(Duration::new(
        u64::try_from(metadata.ctime()).unwrap_or_default(),
        u32::try_from(metadata.ctime_nsec()).unwrap_or_default(),
    ));
    let is_settled = changed.and_then(|at| at.elapsed().ok()).is_some_and(|age| age >= SETTLED);
    if !is_settled {
        return read_digest(file, identity, progress);
    }
    let kept = {
        let mut kept = DIGESTS.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= DIGESTS_KEPT && !kept.contains_key(&identity) {
            kept.clear();
        }
        kept.entry(identity).or_default().clone()
    };
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.is_none() {
        *kept = read_digest(file, identity, progress)?;
    }
    Ok(kept.clone())
}

fn read_digest(mut file: File, before: Identity, progress: &Progress) -> io::Result<Option<String>> {
    let (mut context, mut buffer) = (Context::new(&SHA256), vec![0; 128 << 10]);
    let mut counted = progress.here().counting(&mut file);
    loop {
        match counted.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => context.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let is_same = identity(&file.metadata()?) == before;
    Ok(is_same.then(|| HEXLOWER.encode(context.finish().as_ref())))
}
