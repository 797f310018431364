//! Files as tar streams: one command each way, whatever their number. The other side isn't trusted with names.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use tar::{Builder, HeaderMode};
use tsunami_core::limits::{ARCHIVE_LINKS_LIMIT, LEFT_OUT_SHOWN_LIMIT, PATH_BYTES_LIMIT};
use tsunami_core::{Exit, SessionError, SessionErrorKind};

use super::archive::{Archive, Entry, EntryKind, Piece};
use super::tree::{Leads, Name, Tree};

/// Run with the directory: unpacks into it what comes on standard input. `-o`: files belong to who unpacks.
pub(super) const UNPACK: &str = r#"mkdir -p -- "$1" && cd -- "$1" && exec tar -xpof -"#;

/// Run with patterns: says on standard error how many matches each has, and packs them to standard output.
/// With an empty IFS an unquoted expansion is matched against file names, and split or expanded no further.
///
/// GNU tar takes the names from a pipe, any number of them; others take them as arguments. Some shells let `.*` match
/// the directory itself and the one above.
pub(super) const PACK: &str = r#"
IFS=
case $(tar --version 2>/dev/null) in
*GNU*)
    for pattern; do
        count=0
        for name in $pattern; do
            case $name in "$pattern") ;; . | .. | */. | */..) continue ;; esac
            if [ -e "$name" ] || [ -L "$name" ]; then
                printf '%s\0' "$name"
                count=$((count + 1))
            fi
        done
        echo "matches: $count" >&2
    done | LC_ALL=C tar --sparse --null --verbatim-files-from -T - -cf -
    exit
    ;;
esac
i=$#
while [ $i -gt 0 ]; do
    pattern=$1 count=0
    shift
    for name in $pattern; do
        case $name in "$pattern") ;; . | .. | */. | */..) continue ;; esac
        if [ -e "$name" ] || [ -L "$name" ]; then
            set -- "$@" "$name"
            count=$((count + 1))
        fi
    done
    echo "matches: $count" >&2
    i=$((i - 1))
done
[ $# -eq 0 ] || exec tar -cf - -- "$@"
"#;

/// What goes to a machine, and under which names.
#[derive(Debug)]
pub(super) struct Parcel {
    from: PathBuf,
    /// The file's name there; `None` for a directory, whose contents are sent.
    name: Option<String>,
    /// The directory to unpack in.
    pub(super) directory: String,
}

impl Parcel {
    /// Decides what `to` means, and that `from` can be read.
    pub(super) fn new(from: &Path, to: &str) -> Result<Self, SessionError> {
        let metadata = fs::metadata(from).map_err(|error| unreadable(from, error))?;
        if to.is_empty() {
            return Err(SessionError::new(SessionErrorKind::Local, "the destination is empty"));
        }
        let from = from.to_owned();
        if metadata.is_dir() {
            return Ok(Self { from, name: None, directory: dotted(to) });
        }
        if !metadata.is_file() {
            // To read a pipe or a device might take forever.
            let message = format!("{} is neither a file nor a directory", from.display());
            return Err(SessionError::new(SessionErrorKind::Local, message));
        }
        File::open(&from).map_err(|error| unreadable(&from, error))?;
        let (directory, name) = match to.rsplit_once('/') {
            Some((directory, "")) => (if directory.is_empty() { "/" } else { directory }, file_name(&from)?),
            Some(("", name)) => ("/", name.to_owned()),
            Some((directory, name)) => (directory, name.to_owned()),
            None => (".", to.to_owned()),
        };
        Ok(Self { from, name: Some(name), directory: dotted(directory) })
    }

    /// Writes the tar stream.
    pub(super) fn pack(&self, into: impl Write) -> io::Result<()> {
        let mut builder = Builder::new(into);
        builder.mode(HeaderMode::Complete);
        match &self.name {
            Some(name) => builder.append_path_with_name(&self.from, Path::new("./").join(name))?,
            None => {
                builder.follow_symlinks(false);
                builder.append_dir_all(".", &self.from)?;
            }
        }
        builder.into_inner()?.flush()
    }
}

fn file_name(path: &Path) -> Result<String, SessionError> {
    let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    name.ok_or_else(|| {
        SessionError::new(SessionErrorKind::Local, format!("{} has no usable name", path.display()))
    })
}

/// A relative directory that begins with `-` is no option, and `~` no home.
fn dotted(directory: &str) -> String {
    if directory.starts_with('/') { directory.to_owned() } else { format!("./{directory}") }
}

fn unreadable(path: &Path, error: io::Error) -> SessionError {
    SessionError::new(SessionErrorKind::Local, format!("cannot read {}", path.display())).source(error)
}

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
    fn add(&mut self, name: &[u8], why: impl fmt::Display) {
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
    const LONGEST: usize = 120;
    let text = String::from_utf8_lossy(&name[..name.len().min(4 * LONGEST)]);
    let short: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() { short + "…" } else { short }
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
/// left out, and the rest comes all the same.
pub(super) fn unpack(from: impl Read, into: &Path, patterns: &[String]) -> Unpacked {
    let mut unpacked = Unpacked::default();
    let tree = Tree::open(into).map_err(|error| BrokenOff::here("cannot write to", into, error));
    let result = tree.and_then(|tree| {
        let asked = Asked::new(patterns);
        let mut unpacking = Unpacking { tree, asked, links: Links::default(), left_out: LeftOut::default() };
        let result = unpacking.entries(&mut Archive::new(BufReader::with_capacity(BUFFER, from)));
        unpacking.make_links();
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
    fn here(action: &str, path: &Path, error: io::Error) -> Self {
        Self::Here(format!("{action} {}", shown(path.as_os_str().as_bytes())), error)
    }
}

impl Unpacking {
    fn entries<R: Read>(&mut self, archive: &mut Archive<R>) -> Result<(), BrokenOff> {
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
                EntryKind::Directory => self.tree.directory(&name, entry.mode),
                EntryKind::HardLink(target) => self.hard_link(&name, target),
                EntryKind::Symlink(target) => self.link(&name, Path::new(OsStr::from_bytes(target))),
                EntryKind::Other => continue,
                EntryKind::Unreadable(why) => Err(io::Error::other(*why)),
            };
            match made {
                Err(error) if is_lasting(&error) => {
                    return Err(BrokenOff::here("cannot write", name.path(), error));
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
        let bytes = name.path().as_os_str().len() + target.as_os_str().len();
        if leaves || !self.asked.covers(&to) || target.as_os_str().len() > PATH_BYTES_LIMIT {
            return Err(leads_out(target));
        }
        self.links.bytes += bytes;
        if self.links.bytes > ARCHIVE_LINKS_LIMIT {
            return Err(io::Error::other("the archive has too many links"));
        }
        self.links.targets.insert(name.clone(), target.to_owned());
        Ok(())
    }

    fn make_links(&mut self) {
        let mut made = Vec::new();
        for (name, target) in std::mem::take(&mut self.links.targets) {
            match self.tree.symlink(&name, &target) {
                Ok(()) => made.push((name, target)),
                Err(error) => self.left_out.add(name.path().as_os_str().as_bytes(), error),
            }
        }
        // One link may lead through another, and through one that the directory had before.
        for (name, target) in made {
            if self.tree.leads(&name) == Leads::Outside {
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

/// How many matches each pattern had, or why not everything came home. `said` is what [`PACK`] said on standard error.
pub(super) fn outcome(
    packed: Result<Exit, SessionError>,
    unpacked: Unpacked,
    patterns: usize,
    said: &str,
) -> Result<Vec<usize>, SessionError> {
    let broken = |error| {
        let message = "the machine's archive can't be read";
        SessionError::new(SessionErrorKind::Transfer, message).source(error)
    };
    let cut_short = match unpacked.broken_off {
        // Whatever else went wrong only follows from that.
        Some(BrokenOff::Here(message, error)) => {
            return Err(SessionError::new(SessionErrorKind::Local, message).source(error));
        }
        Some(BrokenOff::There(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
            return Err(broken(error));
        }
        Some(BrokenOff::There(error)) => Some(error),
        None => None,
    };
    let exit = packed?;
    let (mut matches, mut rest) = (Vec::new(), Vec::new());
    for line in said.lines() {
        match line.strip_prefix("matches: ").and_then(|count| count.parse().ok()) {
            Some(count) => matches.push(count),
            None => rest.push(line),
        }
    }
    let complete = match exit {
        // A file changed while it was read, which a server's log may do.
        Exit::Status(0 | 1) => true,
        Exit::Status(2) => !rest.is_empty() && rest.iter().all(|line| is_passing(line)),
        _ => false,
    };
    let mut missing = Vec::new();
    if !unpacked.left_out.is_empty() {
        missing.push(format!("not everything came home: {}", unpacked.left_out));
    }
    if !complete || matches.len() != patterns {
        missing.push(format!("packing ended with {exit}: {}", rest.join("; ")));
    }
    if !missing.is_empty() {
        return Err(SessionError::new(SessionErrorKind::Transfer, missing.join("; ")));
    }
    match cut_short {
        // No match, no archive.
        Some(error) if matches.iter().any(|count| *count > 0) => Err(broken(error)),
        _ => Ok(matches),
    }
}

/// Whether GNU tar says of a file only that it is gone or no file: what comes and goes while a server runs.
fn is_passing(line: &str) -> bool {
    const PASSING: [&str; 5] = [
        ": Cannot stat: No such file or directory",
        ": Cannot open: No such file or directory",
        ": File removed before we read it",
        ": file changed as we read it",
        ": socket ignored",
    ];
    line.starts_with("tar: Exiting with failure status")
        || line.starts_with("tar: Removing leading")
        || PASSING.iter().any(|passing| line.ends_with(passing))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_means_what_it_says() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("prog");
        fs::write(&file, "x").unwrap();
        let place = |to: &str| {
            let parcel = Parcel::new(&file, to).unwrap();
            (parcel.directory, parcel.name.unwrap())
        };
        assert_eq!(place("bin/tool"), ("./bin".into(), "tool".into()));
        assert_eq!(place("bin/"), ("./bin".into(), "prog".into()));
        assert_eq!(place("tool"), ("./.".into(), "tool".into()));
        assert_eq!(place("/etc/tool"), ("/etc".into(), "tool".into()));
        assert_eq!(place("/tool"), ("/".into(), "tool".into()));
        assert_eq!(place("-x/tool"), ("./-x".into(), "tool".into()));
        assert_eq!(Parcel::new(root.path(), "data").unwrap().directory, "./data");
        assert!(Parcel::new(&file, "").is_err());
    }
}
