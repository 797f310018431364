//! A directory for what a machine sends. Below it no link is followed, whoever made it, and nothing is written into
//! a file that is there already: everything is made beside its place, complete, and then put there by its name.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, fstatvfs, linkat, mkdirat};
use rustix::fs::{openat, openat2, renameat, statat, symlinkat, unlinkat};
use rustix::io::Errno;

use crate::limits::{PATH_BYTES_LIMIT, PATH_DEPTH_LIMIT};

/// Modes from a machine: nobody but the owner writes to what it sent, and nothing runs as its owner. The process's
/// umask takes away more.
const MODES: u32 = 0o755;

/// How often a link is followed anew, because of what others did meanwhile.
const RESOLVE_TRIES: usize = 1000;

/// A name that stays below the directory it is relative to, if no link is followed; empty for the directory itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name(PathBuf);

impl Name {
    /// Checks a name from a machine.
    pub(super) fn new(text: &[u8]) -> Result<Self, String> {
        if text.len() > PATH_BYTES_LIMIT {
            return Err(format!("its name is longer than {PATH_BYTES_LIMIT} bytes"));
        }
        let mut name = PathBuf::new();
        for part in Path::new(OsStr::from_bytes(text)).components() {
            match part {
                Component::Normal(part) => name.push(part),
                Component::CurDir => {}
                _ => return Err("its name leads out of the directory".to_owned()),
            }
        }
        if name.components().count() > PATH_DEPTH_LIMIT {
            return Err(format!("it is more than {PATH_DEPTH_LIMIT} directories deep"));
        }
        Ok(Self(name))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The directory that it is in, and its name there.
    fn split(&self) -> io::Result<(&Path, &OsStr)> {
        self.0.parent().zip(self.0.file_name()).ok_or_else(|| io::Error::other("it has no name"))
    }
}

/// Where the entries of one archive go.
#[derive(Debug)]
pub(super) struct Tree {
    root: Rc<OwnedFd>,
    /// The directory of the last entry, since most entries have neighbours.
    here: (PathBuf, Rc<OwnedFd>),
    /// The files that were made, by device and number.
    made: HashSet<(u64, u64)>,
}

/// Where a link leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leads {
    Inside,
    /// Inside, but there is nothing.
    Nowhere,
    /// Outside, in a circle, or where it can't be seen.
    Outside,
}

impl Tree {
    /// Opens the directory, which is made if need be. Only the way to it, which the user named, may have links.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(MODES).create(path)?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = Rc::new(rustix::fs::open(path, flags, Mode::empty())?);
        Ok(Self { here: (PathBuf::new(), root.clone()), root, made: HashSet::new() })
    }

    /// The size of the filesystem, if it is known.
    pub(super) fn capacity(&self) -> Option<u64> {
        let all = fstatvfs(&self.root).ok()?;
        all.f_blocks.checked_mul(all.f_frsize).filter(|bytes| *bytes > 0)
    }

    /// Makes a directory, unless it is there: then its mode stays as it is.
    pub(super) fn directory(&mut self, name: &Name, mode: u32) -> io::Result<()> {
        self.enter(name.path(), mode).map(drop)
    }

    /// Begins a file, which takes its name with [`finish`](Self::finish).
    pub(super) fn file(&mut self, name: &Name, mode: u32) -> io::Result<Part> {
        let (parent, name) = name.split()?;
        let directory = self.enter(parent, MODES)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode((mode & MODES) | 0o400);
        let (temporary, file) = beside(|temporary| openat(&directory, temporary, flags, mode))?;
        let name = name.to_owned();
        Ok(Part { file: file.into(), put: Put { directory, temporary: Some(temporary), name } })
    }

    /// Puts a file in its place.
    pub(super) fn finish(&mut self, part: Part, size: u64, modified: u64) -> io::Result<()> {
        let Part { file, put } = part;
        file.set_len(size)?;
        if let Some(time) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(modified)) {
            // A time that the filesystem can't hold is no reason to lose the file.
            let _ = file.set_modified(time);
        }
        let made = identity(&fstat(&file)?);
        put.put()?;
        self.made.insert(made);
        Ok(())
    }

    /// Gives a file that was made in this tree a further name.
    pub(super) fn hard_link(&mut self, name: &Name, target: &Name) -> io::Result<()> {
        let missing = || io::Error::other("it is a hard link to a file that did not come along");
        let (parent, file) = target.split()?;
        let from = self.walk(parent, None).map_err(|_| missing())?;
        let stat = statat(&from, file, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| missing())?;
        if !self.made.contains(&identity(&stat)) {
            return Err(missing());
        }
        let (parent, name) = name.split()?;
        let to = self.enter(parent, MODES)?;
        let there = statat(&to, name, AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok_and(|there| identity(&there) == identity(&stat)) {
            return Ok(());
        }
        let (temporary, ()) = beside(|temporary| linkat(&from, file, &to, temporary, AtFlags::empty()))?;
        Put { directory: to, temporary: Some(temporary), name: name.to_owned() }.put()
    }

    /// Makes a link. Until it is known [where it leads](Self::leads), nobody should follow it.
    pub(super) fn symlink(&mut self, name: &Name, target: &Path) -> io::Result<()> {
        let (parent, name) = name.split()?;
        let directory = self.enter(parent, MODES)?;
        let (temporary, ()) = beside(|temporary| symlinkat(target, &directory, temporary))?;
        Put { directory, temporary: Some(temporary), name: name.to_owned() }.put()
    }

    /// Follows a link, as far as it stays inside.
    pub(super) fn leads(&self, name: &Name) -> Leads {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        // The kernel asks to try again if anything was renamed anywhere while it climbed.
        for _ in 0..RESOLVE_TRIES {
            return match openat2(&self.root, name.path(), flags, Mode::empty(), resolve) {
                Ok(_) => Leads::Inside,
                Err(Errno::NOENT) => Leads::Nowhere,
                Err(Errno::AGAIN) => continue,
                Err(_) => Leads::Outside,
            };
        }
        Leads::Outside
    }

    /// Removes a link again.
    pub(super) fn remove_link(&mut self, name: &Name) -> io::Result<()> {
        let (parent, name) = name.split()?;
        let directory = self.walk(parent, None)?;
        let stat = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            unlinkat(&directory, name, AtFlags::empty())?;
        }
        Ok(())
    }

    /// Opens a directory of the tree, which is made if need be, and stays there.
    fn enter(&mut self, path: &Path, mode: u32) -> io::Result<Rc<OwnedFd>> {
        let directory = self.walk(path, Some(mode))?;
        self.here = (path.to_owned(), directory.clone());
        Ok(directory)
    }

    /// Goes down to a directory, which with a mode is made if need be.
    fn walk(&self, path: &Path, make: Option<u32>) -> io::Result<Rc<OwnedFd>> {
        let (mut at, rest) = match path.strip_prefix(&self.here.0) {
            Ok(rest) => (self.here.1.clone(), rest),
            Err(_) => (self.root.clone(), path),
        };
        let mut rest = rest.iter().peekable();
        while let Some(name) = rest.next() {
            let open = || {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(&at, name, flags, Mode::empty())
            };
            let opened = match (open(), make) {
                (Err(Errno::NOENT), Some(mode)) => {
                    // Its owner goes in and out, or what comes after it could not be written, nor all of it removed.
                    let mode = if rest.peek().is_none() { (mode & MODES) | 0o700 } else { MODES };
                    match mkdirat(&at, name, Mode::from_raw_mode(mode)) {
                        Ok(()) | Err(Errno::EXIST) => open(),
                        Err(error) => Err(error),
                    }
                }
                (opened, _) => opened,
            };
            at = Rc::new(opened.map_err(|error| match error {
                Errno::LOOP | Errno::NOTDIR => {
                    let name = name.to_string_lossy();
                    io::Error::other(format!("`{}` is there, and no directory", name.escape_debug()))
                }
                error => error.into(),
            })?);
        }
        Ok(at)
    }
}

/// A file that is being written.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) file: File,
    put: Put,
}

/// Something that has a temporary name until it is put in its place. Removed if it never is.
#[derive(Debug)]
struct Put {
    directory: Rc<OwnedFd>,
    temporary: Option<String>,
    name: OsString,
}

impl Put {
    /// Replaces what has the name, if anything has: a file or a link, but never a directory.
    fn put(mut self) -> io::Result<()> {
        if let Some(temporary) = &self.temporary {
            renameat(&self.directory, temporary, &self.directory, &self.name)?;
        }
        self.temporary = None;
        Ok(())
    }
}

impl Drop for Put {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The error that led here is the one to tell.
            let _ = unlinkat(&self.directory, temporary, AtFlags::empty());
        }
    }
}

/// Makes something under a name that nothing has.
fn beside<T>(mut make: impl FnMut(&str) -> rustix::io::Result<T>) -> io::Result<(String, T)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".tsunami-part-{}-{next}", std::process::id());
        match make(&name) {
            Ok(made) => return Ok((name, made)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}
