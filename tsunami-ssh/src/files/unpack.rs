//! Unpacks what a machine sends: only what it was asked for, below one directory, and all of it that can be had.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use tsunami_core::text::shorten;

use super::archive::{Archive, Entry, EntryKind, Piece};
use super::stripes::is_own_directory;
use super::tree::{Leads, Name, Tree};
use crate::limits::{ARCHIVE_LINKS_LIMIT, LEFT_OUT_SHOWN_LIMIT, PATH_BYTES_LIMIT, SHOWN_NAME_LIMIT};

/// What became of an archive, besides the files that came home.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    pub(super) left_out: LeftOut,
    /// Why the archive was not read to its end.
    pub(super) broken_off: Option<BrokenOff>,
}

/// Why an archive was not read to its end.
#[derive(Debug)]
pub(super) enum BrokenOff {
    /// It ended too early, or is none.
    There(io::Error),
    /// This computer takes no more.
    Here(String, io::Error),
}

/// The files that could not be brought home. A few are named, the others counted.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    reasons: Vec<String>,
    count: usize,
}

impl LeftOut {
    pub(super) fn add(&mut self, name: &[u8], why: impl fmt::Display) {
        self.count += 1;
        if self.reasons.len() < LEFT_OUT_SHOWN_LIMIT {
            self.reasons.push(format!("`{}`: {why}", shown(name)));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reasons.join("; "))?;
        match self.count - self.reasons.len() {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// A name from a machine, for a message: on one line, and not too long for it.
fn shown(name: &[u8]) -> String {
    // A character is four bytes at most.
    let text = String::from_utf8_lossy(&name[..name.len().min(4 * SHOWN_NAME_LIMIT + 4)]);
    let mut short = String::new();
    for c in shorten(&text, SHOWN_NAME_LIMIT).chars() {
        match c {
            '\'' | '"' => short.push(c),
            // Control characters, and what turns the direction of writing.
            c => short.extend(c.escape_debug()),
        }
    }
    short
}

/// What was asked for. A machine may send these files and no others: the directory where they arrive may be anything,
/// also somebody's home.
#[derive(Debug)]
struct Asked(Vec<Vec<Vec<u8>>>);

impl Asked {
    fn new(patterns: &[String]) -> Self {
        let parts = |pattern: &String| {
            let mut parts: Vec<Vec<u8>> = Vec::new();
            for part in pattern.split('/').filter(|part| !matches!(*part, "" | ".")) {
                // As tar does with the names that it packs.
                if part == ".." { parts.clear() } else { parts.push(part.into()) }
            }
            parts
        };
        Self(patterns.iter().map(parts).collect())
    }

    /// Whether this is a match of a pattern, or below one.
    fn covers(&self, name: &Path) -> bool {
        self.0.iter().any(|pattern| {
            let mut name = name.iter();
            pattern.iter().all(|part| name.next().is_some_and(|name| may_match(part, name.as_bytes())))
        })
    }
}

/// Whether a shell could match a name. Which characters a wildcard stands for is left to the machine's own, except
/// that none stands for a dot at the beginning.
fn may_match(pattern: &[u8], name: &[u8]) -> bool {
    let is_special = |byte: &u8| b"*?[]\\".contains(byte);
    let Some(first) = pattern.iter().position(is_special) else { return pattern == name };
    let after = pattern.iter().rposition(is_special).map_or(first, |last| last + 1);
    let (begin, end) = (&pattern[..first], &pattern[after..]);
    let hidden = name.starts_with(b".") && !pattern.starts_with(b".") && !pattern.starts_with(b"\\.");
    !hidden && name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end)
}

/// Unpacks a tar stream from a machine below `into`: what `patterns` asked for, and only there. What can't be had is
/// left out, and the rest comes all the same. Once it is `given_up`, what is done after the end of the stream ends.
pub(super) fn unpack(
    from: impl Read,
    into: &Path,
    patterns: &[String],
    given_up: impl Fn() -> bool,
) -> Unpacked {
    let mut unpacked = Unpacked::default();
    let tree = Tree::open(into).map_err(|error| BrokenOff::here("cannot write to", into, "", error));
    let result = tree.and_then(|tree| {
        let asked = Asked::new(patterns);
        let mut unpacking = Unpacking { tree, asked, links: Links::default(), left_out: LeftOut::default() };
        let result = unpacking.entries(&mut Archive::new(BufReader::with_capacity(BUFFER, from)), into);
        unpacking.make_links(given_up);
        unpacked.left_out = unpacking.left_out;
        result
    });
    unpacked.broken_off = result.err();
    unpacked
}

/// How much is read from a machine at a time: what a pipe holds.
const BUFFER: usize = 64 << 10;

struct Unpacking {
    tree: Tree,
    asked: Asked,
    links: Links,
    left_out: LeftOut,
}

/// Links are made when everything else is there, so that none stands in the way of what comes after it.
#[derive(Default)]
struct Links {
    targets: BTreeMap<Name, PathBuf>,
    bytes: usize,
}

impl BrokenOff {
    /// Of a name in a directory here, or of the directory itself.
    fn here(action: &str, into: &Path, name: &str, error: io::Error) -> Self {
        let path = if name.is_empty() { into.to_owned() } else { into.join(name) };
        Self::Here(format!("{action} {}", path.display()), error)
    }
}

impl Unpacking {
    fn entries<R: Read>(&mut self, archive: &mut Archive<R>, into: &Path) -> Result<(), BrokenOff> {
        while let Some(entry) = archive.next().map_err(BrokenOff::There)? {
            let name = match Name::new(&entry.name) {
                Ok(name) if self.asked.covers(name.path()) => name,
                Ok(_) => {
                    self.left_out.add(&entry.name, "nobody asked for it");
                    continue;
                }
                Err(why) => {
                    self.left_out.add(&entry.name, why);
                    continue;
                }
            };
            let made = match &entry.kind {
                EntryKind::File { size, pieces } => self.file(archive, &name, &entry, *size, pieces)?,
                EntryKind::Directory if is_own_directory(name.path()) => continue,
                EntryKind::Directory => self.tree.directory(&name, entry.mode),
                EntryKind::HardLink(target) => self.hard_link(&name, target),
                EntryKind::Symlink(target) => self.link(&name, Path::new(OsStr::from_bytes(target))),
                EntryKind::Other => continue,
                EntryKind::Unreadable(why) => Err(io::Error::other(*why)),
            };
            match made {
                Err(error) if is_lasting(&error) => {
                    return Err(BrokenOff::here(
                        "cannot write",
                        into,
                        &shown(name.path().as_os_str().as_bytes()),
                        error,
                    ));
                }
                Err(error) => self.left_out.add(&entry.name, error),
                // The last one of several with the same name counts, as when tar unpacks.
                Ok(()) if !matches!(entry.kind, EntryKind::Symlink(_) | EntryKind::HardLink(_)) => {
                    self.links.targets.remove(&name);
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Writes a file. The outer error is that of the archive.
    fn file<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        name: &Name,
        entry: &Entry,
        size: u64,
        pieces: &[Piece],
    ) -> Result<io::Result<()>, BrokenOff> {
        // Holes cost the machine nothing, and would cost whoever reads them.
        let holes = pieces.iter().map(|piece| piece.length).sum::<u64>() < size;
        if holes && self.tree.capacity().is_some_and(|capacity| size > capacity) {
            return Ok(Err(io::Error::other(format!("its {size} bytes are more than the disk here has"))));
        }
        let mut part = match self.tree.file(name, entry.mode) {
            Ok(part) => part,
            Err(error) => return Ok(Err(error)),
        };
        for piece in pieces {
            if let Err(error) = part.file.seek(SeekFrom::Start(piece.offset)) {
                return Ok(Err(error));
            }
            match archive.copy(piece.length, &mut part.file) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Ok(Err(error)),
                Err(error) => return Err(BrokenOff::There(error)),
            }
        }
        Ok(self.tree.finish(part, size, entry.modified))
    }

    fn hard_link(&mut self, name: &Name, target: &[u8]) -> io::Result<()> {
        let target = Name::new(target).map_err(io::Error::other)?;
        match self.links.targets.get(&target).cloned() {
            // A further name of a link is a link like it.
            Some(path) => self.link(name, &path),
            None => {
                self.tree.hard_link(name, &target)?;
                self.links.targets.remove(name);
                Ok(())
            }
        }
    }

    /// Keeps a link for later, if its path leads to something that was asked for.
    ///
    /// Such a path first climbs, by directories that can't turn into links, and then only goes down. So it also leads
    /// there tomorrow, when another archive may have put other links into its way.
    fn link(&mut self, name: &Name, target: &Path) -> io::Result<()> {
        let mut to = name.path().parent().map(Path::to_owned).unwrap_or_default();
        let mut down = false;
        let leaves = target.as_os_str().is_empty()
            || target.components().any(|part| match part {
                Component::Normal(part) => {
                    to.push(part);
                    down = true;
                    false
                }
                Component::CurDir => false,
                Component::ParentDir => down || !to.pop(),
                _ => true,
            });
        if leaves || !self.asked.covers(&to) || target.as_os_str().len() > PATH_BYTES_LIMIT {
            return Err(leads_out(target));
        }
        self.links.bytes +=
            name.path().as_os_str().len() + target.as_os_str().len() + size_of::<[PathBuf; 4]>();
        if self.links.bytes > ARCHIVE_LINKS_LIMIT {
            return Err(io::Error::other("the archive has too many links"));
        }
        self.links.targets.insert(name.clone(), target.to_owned());
        Ok(())
    }

    fn make_links(&mut self, given_up: impl Fn() -> bool) {
        let mut made = Vec::new();
        for (name, target) in std::mem::take(&mut self.links.targets) {
            if given_up() {
                break;
            }
            match self.tree.symlink(&name, &target) {
                Ok(()) => made.push((name, target)),
                Err(error) => self.left_out.add(name.path().as_os_str().as_bytes(), error),
            }
        }
        // One link may lead through another, and through one that the directory had before.
        for (name, target) in made {
            if given_up() || self.tree.leads(&name) == Leads::Outside {
                let removed = self.tree.remove_link(&name);
                let why = removed.err().unwrap_or_else(|| leads_out(&target));
                self.left_out.add(name.path().as_os_str().as_bytes(), why);
            }
        }
    }
}

fn leads_out(target: &Path) -> io::Error {
    let target = shown(target.as_os_str().as_bytes());
    io::Error::other(format!("a link to `{target}`, outside of what was asked for"))
}

/// Whether no other file can be written either.
fn is_lasting(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::ReadOnlyFilesystem
    )
}

#[cfg(test)]
mod hostile;
