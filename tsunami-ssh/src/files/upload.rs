//! What goes to a machine: the directories that a script there makes, then everything in them as a tar stream.
//!
//! A directory that is there already belongs to somebody, and no tar leaves its mode alone in all cases. So the
//! archive has no directories.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom, seek};
use tar::{Builder, EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};
use tsunami_core::{SessionError, SessionErrorKind};

use super::archive::Piece;
use super::progress::Progress;
use crate::shell::one_line;

/// Unpacks an archive; its beginning says how.
pub(super) const UNPACK: &str = include_str!("upload.sh");

/// Bytes in one line of directories, and a few more: it is far from what a shell takes, and a process makes them all.
const LINE_BYTES: usize = 16 << 10;

const BLOCK: u64 = 512;

/// Bytes that holes must spare before they are sent as such, which not every tar understands.
const HOLES_WORTH: u64 = 1 << 20;

/// Names of directories, and their modes.
type Directories = Vec<(PathBuf, u32)>;

/// What goes to a machine, and under which names.
#[derive(Debug)]
pub(crate) struct UploadArchive {
    from: PathBuf,
    /// The file's name there; `None` for a directory, whose contents are sent.
    name: Option<String>,
    /// The directory to unpack in.
    pub(super) directory: String,
    /// The mode of that directory, if it is new; empty for the usual one.
    pub(super) mode: String,
    /// Counts what is sent.
    pub(super) progress: Progress,
}

impl UploadArchive {
    /// Decides what `to` means, and that `from` can be read.
    pub(super) fn new(from: &Path, to: &str) -> Result<Self, SessionError> {
        let metadata = fs::metadata(from).map_err(|error| unreadable(from, error))?;
        if to.is_empty() {
            return Err(SessionError::new(SessionErrorKind::Local, "the destination is empty"));
        }
        let from = from.to_owned();
        if metadata.is_dir() {
            let mode = format!("{:o}", mode(&metadata) | 0o700);
            return Ok(Self { from, name: None, directory: dotted(to), mode, progress: Progress::default() });
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
        let (mode, progress) = (String::new(), Progress::default());
        Ok(Self { from, name: Some(name), directory: dotted(directory), mode, progress })
    }

    /// Writes the directories and the tar stream.
    pub(crate) fn pack(&self, into: impl Write) -> io::Result<()> {
        let mut into = self.progress.counting(into);
        let (entries, directories) = match &self.name {
            Some(name) => (vec![Path::new("./").join(name)], Vec::new()),
            None => entries(&self.from)?,
        };
        write_directories(&directories, &mut into)?;
        into.write_all(b"\n")?;
        let mut builder = Builder::new(into);
        for name in entries {
            // A single file is sent under the name that it gets there.
            let from = if self.name.is_some() { self.from.clone() } else { self.from.join(&name) };
            let appended = append(&mut builder, &from, &name, self.name.is_some());
            appended.map_err(|error| told(error, &from))?;
        }
        builder.into_inner()?.flush()
    }
}

/// The files and links below a directory, and the directories, each after the one that it is in.
///
/// What is neither, as a socket, means nothing on another machine and is left out.
fn entries(root: &Path) -> io::Result<(Vec<PathBuf>, Directories)> {
    let is_sent = |kind: FileType| kind.is_file() || kind.is_symlink();
    let (mut files, mut directories) = (Vec::new(), Vec::new());
    let mut stack = vec![PathBuf::from(".")];
    while let Some(directory) = stack.pop() {
        let from = root.join(&directory);
        let read = || fs::read_dir(&from)?.collect::<io::Result<Vec<_>>>();
        for entry in read().map_err(|error| told(error, &from))? {
            let name = directory.join(entry.file_name());
            // An entry that vanishes while the directory is read is left out.
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                let Ok(metadata) = entry.metadata() else { continue };
                directories.push((name.clone(), mode(&metadata)));
                stack.push(name);
            } else if is_sent(kind) {
                files.push(name);
            } else {
                tracing::debug!(path = %from.join(entry.file_name()).display(), "left out of an upload");
            }
        }
    }
    Ok((files, directories))
}

/// Writes lines for [`UNPACK`]. Those of one mode that follow each other share one.
fn write_directories(directories: &[(PathBuf, u32)], into: &mut impl Write) -> io::Result<()> {
    const OWNERS: u32 = 0o700;
    let quoted = |name: &Path| one_line(name.as_os_str().as_bytes()).map_err(io::Error::other);
    let mut line: (Vec<u8>, u32) = (Vec::new(), 0);
    for (name, mode) in directories {
        let open = mode & OWNERS == OWNERS;
        if !line.0.is_empty() && (!open || line.1 != *mode || line.0.len() > LINE_BYTES) {
            into.write_all(&line.0)?;
            into.write_all(b"\n")?;
            line.0.clear();
        }
        if !open {
            write!(into, "l {:o} {mode:o} ", mode | OWNERS)?;
            into.write_all(&quoted(name)?)?;
            into.write_all(b"\n")?;
            continue;
        }
        if line.0.is_empty() {
            line = (format!("d {mode:o}").into_bytes(), *mode);
        }
        line.0.push(b' ');
        line.0.extend(quoted(name)?);
    }
    if !line.0.is_empty() {
        into.write_all(&line.0)?;
        into.write_all(b"\n")?;
    }
    Ok(())
}

/// Adds a file or a link, unless it has vanished or become something else. Only the file that the user named may be
/// found through a link.
fn append(builder: &mut Builder<impl Write>, from: &Path, name: &Path, named: bool) -> io::Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound && !named;
    let metadata = match if named { fs::metadata(from) } else { fs::symlink_metadata(from) } {
        Err(error) if gone(&error) => return Ok(()),
        metadata => metadata?,
    };
    if metadata.is_symlink() {
        return match fs::read_link(from) {
            Err(error) if gone(&error) => Ok(()),
            target => builder.append_link(&mut header(&metadata, EntryType::Symlink), name, target?),
        };
    }
    // A pipe that has taken its place meanwhile is not waited for.
    let flags = if named { OFlags::NONBLOCK } else { OFlags::NONBLOCK | OFlags::NOFOLLOW };
    let mut options = OpenOptions::new();
    let file = match options.read(true).custom_flags(flags.bits().cast_signed()).open(from) {
        Err(error) if gone(&error) => return Ok(()),
        file => file?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(());
    }
    let size = metadata.len();
    let pieces = pieces(&file, &metadata).filter(|pieces| !is_whole(pieces, size));
    let Some(pieces) = pieces else {
        let mut header = header(&metadata, EntryType::Regular);
        header.set_size(size);
        return builder.append_data(
            &mut header,
            name,
            AsAnnounced::new(file, vec![Piece { offset: 0, length: size }]),
        );
    };
    let mut header = header(&metadata, EntryType::GNUSparse);
    header.set_size(pieces.iter().map(|piece| piece.length).sum());
    let more = describe(&mut header, &pieces, size)?;
    builder.append_data(&mut header, name, more.as_slice().chain(AsAnnounced::new(file, pieces)))
}

fn header(metadata: &Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode(metadata));
    // They are who unpacks.
    header.set_uid(0);
    header.set_gid(0);
    // No tar agrees with another about times before 1970.
    header.set_mtime(metadata.mtime().try_into().unwrap_or(0));
    header.set_size(0);
    header
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

/// The parts of a file that are no holes; `None` where that can't be told, or not in blocks of an archive.
fn pieces(file: &File, metadata: &Metadata) -> Option<Vec<Piece>> {
    let size = metadata.len();
    if metadata.blocks().saturating_mul(BLOCK).saturating_add(HOLES_WORTH) > size {
        return None;
    }
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let offset = match seek(file, SeekFrom::Data(at)) {
            Ok(offset) => offset.min(size),
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => return None,
        };
        let end = seek(file, SeekFrom::Hole(offset)).ok()?.min(size);
        if offset < at || (end <= offset && offset < size) {
            return None;
        }
        if end > offset {
            pieces.push(Piece { offset, length: end - offset });
        }
        at = end.max(offset);
    }
    // Tells where the file ends.
    if pieces.last().is_none_or(|last| last.offset + last.length < size) {
        pieces.push(Piece { offset: size, length: 0 });
    }
    // In the archive each but the last fills whole blocks.
    let mut stored = pieces.iter().rev().filter(|piece| piece.length > 0).skip(1);
    stored.all(|piece| piece.length.is_multiple_of(BLOCK)).then_some(pieces)
}

fn is_whole(pieces: &[Piece], size: u64) -> bool {
    matches!(pieces, [Piece { offset: 0, length }] if *length == size)
}

/// Writes the map of a file's pieces: the first ones into the header, the others into blocks that follow it.
fn describe(header: &mut Header, pieces: &[Piece], size: u64) -> io::Result<Vec<u8>> {
    let gnu = header.as_gnu_mut().ok_or_else(|| io::Error::other("no header of GNU tar's"))?;
    gnu.set_real_size(size);
    let fill = |places: &mut [GnuSparseHeader], pieces: &[Piece]| {
        for (place, piece) in places.iter_mut().zip(pieces) {
            place.set_offset(piece.offset);
            place.set_length(piece.length);
        }
    };
    fill(&mut gnu.sparse, pieces);
    let mut rest = pieces.get(gnu.sparse.len()..).unwrap_or_default();
    gnu.set_is_extended(!rest.is_empty());
    let mut more = Vec::new();
    while !rest.is_empty() {
        let mut block = GnuExtSparseHeader::new();
        fill(&mut block.sparse, rest);
        rest = rest.get(block.sparse.len()..).unwrap_or_default();
        block.set_is_extended(!rest.is_empty());
        more.extend_from_slice(block.as_bytes());
    }
    Ok(more)
}

/// Reads as much of a file as the archive has announced, though others write to it: what it has grown by stays here,
/// and zeros take the place of what it has lost.
#[derive(Debug)]
struct AsAnnounced {
    file: File,
    pieces: std::vec::IntoIter<Piece>,
    present: Piece,
}

impl AsAnnounced {
    fn new(file: File, pieces: Vec<Piece>) -> Self {
        Self { file, pieces: pieces.into_iter(), present: Piece { offset: 0, length: 0 } }
    }
}

impl Read for AsAnnounced {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.present.length == 0 {
            let Some(next) = self.pieces.next() else { return Ok(0) };
            self.present = next;
        }
        let most = buffer.len().min(usize::try_from(self.present.length).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..most];
        let mut count = self.file.read_at(buffer, self.present.offset)?;
        if count == 0 {
            buffer.fill(0);
            count = most;
        }
        self.present.offset += count as u64;
        self.present.length -= count as u64;
        Ok(count)
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

/// The machine's end of the pipe is known by its kind.
fn told(error: io::Error, path: &Path) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => error,
        kind => io::Error::new(kind, format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::Permissions;
    use std::io::Seek;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::process::{Command as Process, Stdio};
    use std::time::{Duration, SystemTime};

    use super::*;

    /// Shells and tars that a machine may have: programs with their first arguments, and a `PATH`.
    fn machines(tools: &Path) -> Vec<(Vec<&'static str>, String)> {
        fs::create_dir_all(tools).unwrap();
        symlink("/bin/busybox", tools.join("tar")).unwrap();
        let runs = |program: &str| Process::new(program).arg("--help").output().is_ok();
        let path = std::env::var("PATH").unwrap();
        let paths = [path.clone(), format!("{}:{path}", tools.display())];
        let shells = [vec!["sh"], vec!["bash", "--posix"], vec!["busybox", "sh"]];
        let shells = shells.into_iter().filter(|shell| runs(shell[0]));
        let has_tar = |index: usize| index == 0 || runs("busybox");
        shells
            .flat_map(|shell| paths.iter().enumerate().map(move |(index, path)| (index, shell.clone(), path)))
            .filter(|(index, ..)| has_tar(*index))
            .map(|(_, shell, path)| (shell, path.clone()))
            .collect()
    }

    /// Unpacks a archive as a machine does whose working directory is `place`.
    fn unpack((shell, path): &(Vec<&'static str>, String), place: &Path, archive: &UploadArchive) {
        let mut child = Process::new(shell[0])
            .args(&shell[1..])
            .args(["-c", UNPACK, "sh", &archive.directory, &archive.mode])
            .current_dir(place)
            .env("PATH", path)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        archive.pack(child.stdin.take().unwrap()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{shell:?} {path}: {} {said}", output.status);
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn mode_of(path: &Path) -> u32 {
        mode(&fs::symlink_metadata(path).unwrap())
    }

    #[test]
    fn a_directory_that_exists_keeps_its_mode() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        for (name, mode) in
            [("shared", 0o700), ("shared/new", 0o750), ("shared/new/full", 0o500), ("", 0o777)]
        {
            fs::create_dir_all(tree.join(name)).unwrap();
            fs::write(tree.join(name).join("file"), name).unwrap();
            set_mode(&tree.join(name), mode);
        }
        let archive = |to: &str| UploadArchive::new(&tree, to).unwrap();
        for machine in machines(&root.path().join("tools")) {
            let place = tempfile::tempdir().unwrap();
            let at = |name: &str| place.path().join(name);
            fs::create_dir_all(at("shared")).unwrap();
            set_mode(place.path(), 0o755);
            set_mode(&at("shared"), 0o1777);
            for to in [".", "fresh"] {
                unpack(&machine, place.path(), &archive(to));
            }
            assert_eq!((mode_of(place.path()), mode_of(&at("shared"))), (0o755, 0o1777), "{machine:?}");
            for (name, mode) in
                [("", 0o777), ("shared/", 0o700), ("shared/new/", 0o750), ("shared/new/full/", 0o500)]
            {
                let fresh = at("fresh").join(name);
                assert_eq!(
                    (mode_of(&fresh), fs::read_to_string(fresh.join("file")).unwrap()),
                    (mode, name.trim_end_matches('/').to_owned())
                );
            }
            assert_eq!(mode_of(&at("shared/new")), 0o750);
            // So that it can be removed.
            [at("fresh/shared/new/full"), at("shared/new/full")]
                .iter()
                .for_each(|path| set_mode(path, 0o700));
        }
        set_mode(&tree.join("shared/new/full"), 0o700);
    }

    #[test]
    fn odd_files_arrive_or_stay_behind_without_harm() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        let odd = |text: &[u8]| PathBuf::from(OsStr::from_bytes(text));
        let names =
            [odd(b"M\xfcller"), odd(b"it's\n$HOME `x`"), odd(b"-rf"), odd(&[b'n'; 200]), odd(b".hidden")];
        for name in &names {
            fs::create_dir_all(tree.join(name)).unwrap();
            fs::write(tree.join(name).join(name), "x").unwrap();
        }
        fs::create_dir(tree.join("empty")).unwrap();
        symlink("../nowhere", tree.join("link")).unwrap();
        let _socket = UnixListener::bind(tree.join("socket")).unwrap();
        let old = File::create(tree.join("old")).unwrap();
        old.set_modified(SystemTime::UNIX_EPOCH - Duration::from_secs(100_000_000)).unwrap();
        for machine in machines(&root.path().join("tools")) {
            let place = tempfile::tempdir().unwrap();
            // Twice: what is there is replaced.
            for _ in 0..2 {
                unpack(&machine, place.path(), &UploadArchive::new(&tree, "to").unwrap());
            }
            let to = place.path().join("to");
            for name in &names {
                assert_eq!(fs::read(to.join(name).join(name)).unwrap(), b"x", "{machine:?} {name:?}");
            }
            assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("../nowhere"));
            assert_eq!(fs::read_dir(&to).unwrap().count(), names.len() + 3);
            assert_eq!(fs::metadata(to.join("old")).unwrap().modified().unwrap(), SystemTime::UNIX_EPOCH);
        }
    }

    #[test]
    fn a_file_is_sent_as_long_as_it_was_announced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log");
        for (before, after, read) in [("abc", "abcdef", "abc"), ("abcdef", "ab", "ab\0\0\0\0")] {
            fs::write(&path, before).unwrap();
            let length = before.len() as u64;
            let mut sent = AsAnnounced::new(File::open(&path).unwrap(), vec![Piece { offset: 0, length }]);
            fs::write(&path, after).unwrap();
            let mut text = String::new();
            sent.read_to_string(&mut text).unwrap();
            assert_eq!(text, read);
        }
    }

    #[test]
    fn holes_are_not_sent() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut file = File::create(tree.join("disk")).unwrap();
        // More pieces than one header describes, and a hole at the end.
        for index in 0..60 {
            file.seek(io::SeekFrom::Start(index << 20)).unwrap();
            file.write_all(format!("piece {index}").as_bytes()).unwrap();
        }
        file.set_len((60 << 20) + 7).unwrap();
        let archive = UploadArchive::new(&tree, "to").unwrap();
        let mut packed = Vec::new();
        archive.pack(&mut packed).unwrap();
        assert!(packed.len() < 1 << 20, "{}", packed.len());
        let place = tempfile::tempdir().unwrap();
        unpack(&(vec!["sh"], std::env::var("PATH").unwrap()), place.path(), &archive);
        let (here, there) =
            (fs::read(tree.join("disk")).unwrap(), fs::read(place.path().join("to/disk")).unwrap());
        assert!(here == there, "{} {}", here.len(), there.len());
    }

    #[test]
    fn a_destination_means_what_it_says() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("prog");
        fs::write(&file, "x").unwrap();
        let place = |to: &str| {
            let archive = UploadArchive::new(&file, to).unwrap();
            (archive.directory, archive.name.unwrap())
        };
        assert_eq!(place("bin/tool"), ("./bin".into(), "tool".into()));
        assert_eq!(place("bin/"), ("./bin".into(), "prog".into()));
        assert_eq!(place("tool"), ("./.".into(), "tool".into()));
        assert_eq!(place("/etc/tool"), ("/etc".into(), "tool".into()));
        assert_eq!(place("/tool"), ("/".into(), "tool".into()));
        assert_eq!(place("-x/tool"), ("./-x".into(), "tool".into()));
        assert_eq!(UploadArchive::new(root.path(), "data").unwrap().directory, "./data");
        assert!(UploadArchive::new(&file, "").is_err());
    }
}
