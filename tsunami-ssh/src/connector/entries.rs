//! The files of a run's ssh_config, to which machines add their entries: whole, one writer at a time, and only when they
//! change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tsunami_core::{SessionError, private};

use super::{RunSsh, local};

/// An entry on its way into a file, where it takes the place of the one that begins with `key`.
#[derive(Debug)]
pub(super) struct Unwritten {
    pub(super) file: PathBuf,
    pub(super) key: String,
    pub(super) entry: String,
}

impl RunSsh {
    pub(super) fn put(&self, file: &Path, key: String, entry: String) {
        self.unwritten.put(Unwritten { file: file.to_owned(), key, entry });
    }

    /// Waits until what was put is in its files.
    pub(super) async fn written(&self) -> Result<(), SessionError> {
        let files = [self.files.known_hosts.clone(), self.files.hosts.clone()];
        let write = move |batch: &[Unwritten]| files.iter().try_for_each(|file| put_all(file, batch));
        self.unwritten
            .done(write)
            .await
            .map_err(|error| local(format!("cannot write beside {}", self.files.config.display()), error))
    }
}

/// Puts those entries that are for it into a file.
pub(super) fn put_all(file: &Path, entries: &[Unwritten]) -> io::Result<()> {
    let entries = entries.iter().filter(|it| it.file == file);
    replace(file, |present| entries.fold(present.to_owned(), |text, it| put(&text, &it.key, &it.entry)))
}

/// Puts an entry, whose further lines are indented, in place of the one that begins with `key`.
fn put(present: &str, key: &str, entry: &str) -> String {
    let (mut old, mut others) = (String::new(), String::new());
    let mut is_old = false;
    for line in present.split_inclusive('\n') {
        if !line.starts_with(' ') {
            is_old = line.starts_with(key);
        }
        if is_old { &mut old } else { &mut others }.push_str(line);
    }
    if old == entry { present.to_owned() } else { others + entry }
}

/// Replaces a file as a whole by what is made of it, so that an ssh that reads it meanwhile sees the one or
/// the other. What stays the same is not written.
pub(super) fn replace(path: &Path, change: impl FnOnce(&str) -> String) -> io::Result<()> {
    let _one_at_a_time = lock(path.parent().unwrap_or(Path::new(".")))?;
    let present = match private::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        present => Some(String::from_utf8_lossy(&present?).into_owned()),
    };
    let changed = change(present.as_deref().unwrap_or_default());
    if present.as_ref() == Some(&changed) { Ok(()) } else { private::write(path, changed.as_bytes()) }
}

/// Keeps others out who write in a directory, of this process and of others.
pub(super) fn lock(directory: &Path) -> io::Result<fs::File> {
    let directory = fs::File::open(directory)?;
    directory.lock()?;
    Ok(directory)
}
