//! What goes to a machine: the directories that a script there makes, then everything in them as a tar stream.
//!
//! A directory that is there already belongs to somebody, and no tar leaves its mode alone in all cases. So the
//! archive has no directories.

use std::collections::HashSet;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{OFlags, SeekFrom, seek};
use tar::{Builder, EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};
use tsunami_core::{Exclude, SessionError, SessionErrorKind};

use super::archive::Piece;
use super::present::{Answers, Places, Questions, is_asked_for};
use super::progress::Progress;
use super::stripes::{self, FAR, STRIPED_BYTES, Sides, Stripes};
use crate::blocking::blocking;
use crate::command::StdoutConsumer;
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

/// Names of files and links in an archive, with the size of those files whose content may be asked for, else 0.
type Files = Vec<(PathBuf, u64)>;

/// A file or a link here, and whether it is the one that the user named: only that may be found through a link.
pub(super) type Named = (PathBuf, bool);

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
    files: Files,
    directories: Directories,
    /// The bytes in the files.
    bytes: u64,
    questions: Questions,
    answers: Option<Answers>,
    stripes: Option<Stripes>,
}

impl UploadArchive {
    /// Decides what `to` means, and that `from` can be read. What is below it is read by [`list`](Self::list).
    pub(super) fn new(from: &Path, to: &str) -> Result<Self, SessionError> {
        let metadata = fs::metadata(from).map_err(|error| unreadable(from, error))?;
        if to.is_empty() {
            return Err(SessionError::new(SessionErrorKind::Local, "the destination is empty"));
        }
        let from = from.to_owned();
        if metadata.is_dir() {
            let mode = format!("{:o}", mode(&metadata) | 0o700);
            return Ok(Self::of(from, None, dotted(to), mode));
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
        Ok(Self::of(from, Some(name), dotted(directory), String::new()))
    }

    /// One that knows what there is to send.
    pub(super) async fn listed(from: &Path, to: &str, exclude: &Exclude) -> Result<Self, SessionError> {
        let (mut archive, exclude) = (Self::new(from, to)?, exclude.clone());
        let archive = blocking(move || archive.list(&exclude).map(|()| archive)).await;
        archive.map_err(|error| unreadable(from, error))
    }

    fn of(from: PathBuf, name: Option<String>, directory: String, mode: String) -> Self {
        Self {
            from,
            name,
            directory,
            mode,
            progress: Progress::default(),
            files: Vec::new(),
            directories: Vec::new(),
            bytes: 0,
            questions: Questions::default(),
            answers: None,
            stripes: None,
        }
    }

    /// Finds out what there is to send. It may wait for a disk.
    pub(super) fn list(&mut self, exclude: &Exclude) -> io::Result<()> {
        if let Some(name) = &self.name {
            let metadata = fs::metadata(&self.from)?;
            self.files = vec![(Path::new("./").join(name), size_to_ask_for(&metadata))];
            self.bytes = sent_bytes(&metadata);
            return Ok(());
        }
        (self.files, self.directories, self.bytes) = entries(&self.from, exclude)?;
        Ok(())
    }

    /// Has a long one sent over several channels, if the machine is as far away as this. Returns what opens them.
    pub(super) fn stripe(&mut self, distance: Duration) -> Option<Sides> {
        let (stripes, sides) = (self.bytes >= STRIPED_BYTES && distance >= FAR).then(stripes::stripes)?;
        self.stripes = Some(stripes);
        Some(sides)
    }

    /// Has the machine asked for what it may have already, before anything is sent. Returns where the answers go, if
    /// there is anything to ask.
    pub(super) fn ask(&mut self, places: &Places) -> io::Result<Option<StdoutConsumer>> {
        let files = self.files.iter().map(|(name, size)| (name, *size));
        self.questions = Questions::about(files, Path::new(&self.directory), places);
        if self.questions.is_empty() && self.stripes.is_none() {
            return Ok(None);
        }
        let (answers, consumer) = Answers::new(&self.progress)?;
        self.answers = Some(answers);
        Ok(Some(consumer))
    }

    /// Where files are, once all is there, that it may be worth to look for later.
    pub(super) fn places(&self) -> Vec<(u64, PathBuf)> {
        let asked_for = self.files.iter().filter(|(_, size)| *size > 0);
        asked_for.map(|(name, size)| (*size, Path::new(&self.directory).join(name))).collect()
    }

    /// Writes the directories, the questions and, once those are answered, the tar stream.
    pub(crate) fn pack(mut self, into: impl Write) -> io::Result<()> {
        let mut into = self.progress.clone().counting(into);
        write_directories(&self.directories, &mut into)?;
        self.leave_out_what_is_there(&mut into)?;
        let stripes = self.agree_on_stripes(&mut into)?;
        into.write_all(b"\n")?;
        match stripes {
            Some(stripes) => self.write_archive(stripes.over(into)?)?.finish(),
            None => self.write_archive(into)?.flush(),
        }
    }

    fn leave_out_what_is_there(&mut self, into: &mut impl Write) -> io::Result<()> {
        let Some(answers) = &mut self.answers else { return Ok(()) };
        let from = |name: &Path| named(&self.from, self.name.is_some(), name);
        let asked = self.questions.write(from, &self.progress, into)?;
        into.flush()?;
        let mut present = HashSet::new();
        for name in asked {
            if answers.next()? {
                present.insert(name);
            }
        }
        self.files.retain(|(name, size)| {
            let is_sent = !present.contains(name.as_path());
            self.bytes -= if is_sent { 0 } else { *size };
            is_sent
        });
        Ok(())
    }

    /// What is still long enough to go over several channels does so, if the machine can take it like that.
    fn agree_on_stripes(&mut self, into: &mut impl Write) -> io::Result<Option<Stripes>> {
        let stripes = self.stripes.take().filter(|_| self.bytes >= STRIPED_BYTES);
        let (Some(stripes), Some(answers)) = (stripes, &mut self.answers) else { return Ok(None) };
        let quoted = |name: &str| one_line(name.as_bytes()).map_err(io::Error::other);
        write!(into, "s {}", stripes.directory())?;
        // A file takes its name when all of it is there.
        let part = self.name.as_ref().map(|_| stripes.part());
        for name in part.iter().chain(&self.name) {
            into.write_all(b" ./")?;
            into.write_all(&quoted(name)?)?;
        }
        into.write_all(b"\n")?;
        into.flush()?;
        if !answers.next()? {
            return Ok(None);
        }
        if let (Some(part), [(name, _)]) = (part, &mut self.files[..]) {
            *name = Path::new("./").join(part);
        }
        Ok(Some(stripes))
    }

    fn write_archive<W: Write>(&self, into: W) -> io::Result<W> {
        let mut builder = Builder::new(into);
        for (name, _) in &self.files {
            let from = named(&self.from, self.name.is_some(), name);
            append(&mut builder, &from, name).map_err(|error| told(error, &from.0))?;
        }
        builder.into_inner()
    }
}

/// What has this name in an archive of `from`: a single file is sent under the name that it gets there.
fn named(from: &Path, is_single: bool, name: &Path) -> Named {
    if is_single { (from.to_owned(), true) } else { (from.join(name), false) }
}

/// The size of a file whose content may be asked for, else 0. One with holes is sent without them.
fn size_to_ask_for(metadata: &Metadata) -> u64 {
    let size = metadata.len();
    if metadata.is_file() && is_asked_for(size) && !has_holes(metadata) { size } else { 0 }
}

/// The bytes of a file that is sent without its holes.
fn sent_bytes(metadata: &Metadata) -> u64 {
    metadata.len().min(metadata.blocks().saturating_mul(BLOCK))
}

fn has_holes(metadata: &Metadata) -> bool {
    metadata.blocks().saturating_mul(BLOCK).saturating_add(HOLES_WORTH) <= metadata.len()
}

/// The files and links below a directory but those that are left out, and the directories, each after the one that it is in.
///
/// What is neither, as a socket, means nothing on another machine and is left out.
fn entries(root: &Path, exclude: &Exclude) -> io::Result<(Files, Directories, u64)> {
    let is_sent = |kind: FileType| kind.is_file() || kind.is_symlink();
    let (mut files, mut directories, mut bytes) = (Vec::new(), Vec::new(), 0_u64);
    let mut stack = vec![PathBuf::from(".")];
    while let Some(directory) = stack.pop() {
        let from = root.join(&directory);
        let read = || fs::read_dir(&from)?.collect::<io::Result<Vec<_>>>();
        for entry in read().map_err(|error| told(error, &from))? {
            let name = directory.join(entry.file_name());
            // An entry that vanishes while the directory is read is left out.
            let Ok(kind) = entry.file_type() else { continue };
            if exclude.matches(&name, kind.is_dir()) {
                continue;
            }
            if kind.is_dir() {
                let Ok(metadata) = entry.metadata() else { continue };
                directories.push((name.clone(), mode(&metadata)));
                stack.push(name);
            } else if is_sent(kind) {
                let metadata = entry.metadata().ok();
                bytes = bytes.saturating_add(metadata.as_ref().map(sent_bytes).unwrap_or_default());
                files.push((name, metadata.as_ref().map(size_to_ask_for).unwrap_or_default()));
            } else {
                tracing::debug!(path = %from.join(entry.file_name()).display(), "left out of an upload");
            }
        }
    }
    Ok((files, directories, bytes))
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

/// Adds a file or a link, unless it has vanished or become something else.
fn append(builder: &mut Builder<impl Write>, from: &Named, name: &Path) -> io::Result<()> {
    let (path, named) = from;
    if !named
        && let Ok(metadata) = fs::symlink_metadata(path)
        && metadata.is_symlink()
    {
        return match fs::read_link(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            target => builder.append_link(&mut header(&metadata, EntryType::Symlink), name, target?),
        };
    }
    let Some((file, metadata)) = open(from)? else { return Ok(()) };
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

/// Opens a file, unless it has vanished or become something else.
pub(super) fn open((path, named): &Named) -> io::Result<Option<(File, Metadata)>> {
    // A pipe that has taken its place meanwhile is not waited for.
    let flags = if *named { OFlags::NONBLOCK } else { OFlags::NONBLOCK | OFlags::NOFOLLOW };
    let mut options = OpenOptions::new();
    let file = match options.read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !named => return Ok(None),
        file => file?,
    };
    let metadata = file.metadata()?;
    Ok(metadata.is_file().then_some((file, metadata)))
}

fn header(metadata: &Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode(metadata));
    // They are who unpacks.
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(modified(metadata));
    header.set_size(0);
    header
}

pub(super) fn mode(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

/// In seconds since 1970; no tar agrees with another about times before.
pub(super) fn modified(metadata: &Metadata) -> u64 {
    metadata.mtime().try_into().unwrap_or(0)
}

/// The parts of a file that are no holes; `None` where that can't be told, or not in blocks of an archive.
fn pieces(file: &File, metadata: &Metadata) -> Option<Vec<Piece>> {
    let size = metadata.len();
    if !has_holes(metadata) {
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

pub(super) fn unreadable(path: &Path, error: io::Error) -> SessionError {
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
pub(super) mod tests {
    use std::ffi::OsStr;
    use std::fs::Permissions;
    use std::io::Seek;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::process::{Command as Process, Stdio};
    use std::time::{Duration, SystemTime};

    use super::*;

    /// Shells and tars that a machine may have: programs with their first arguments, and a `PATH`.
    pub(in super::super) fn machines(tools: &Path) -> Vec<(Vec<&'static str>, String)> {
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

    fn archive(from: &Path, to: &str) -> UploadArchive {
        let mut archive = UploadArchive::new(from, to).unwrap();
        archive.list(&Exclude::default()).unwrap();
        archive
    }

    /// Unpacks a archive as a machine does whose working directory is `place`. Returns how many bytes were sent.
    fn unpack((shell, path): &(Vec<&'static str>, String), place: &Path, archive: UploadArchive) -> u64 {
        unpack_answering((shell, path), place, archive, Stdio::null())
    }

    fn unpack_answering(
        (shell, path): (&[&str], &str),
        place: &Path,
        archive: UploadArchive,
        answers: impl Into<Stdio>,
    ) -> u64 {
        let mut command = Process::new(shell[0]);
        command.args(&shell[1..]).args(["-c", UNPACK, "sh", &archive.directory, &archive.mode]);
        command.current_dir(place).env("PATH", path).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.stdout(answers).spawn().unwrap();
        drop(command);
        let sent = Progress::default();
        archive.pack(sent.counting(child.stdin.take().unwrap())).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{shell:?} {path}: {} {said}", output.status);
        sent.moved()
    }

    /// Sends to such a machine as a session does that has put files in these places.
    fn send(machine: (&[&str], &str), place: &Path, places: &Places, from: &Path, to: &str) -> u64 {
        let mut archive = archive(from, to);
        let answers = archive.ask(places).unwrap().map(|mut answers| {
            answers.pipe.write_all(b"\x1etsunami\n").unwrap();
            answers.pipe
        });
        let put = archive.places();
        let sent = unpack_answering(machine, place, archive, answers.map_or_else(Stdio::null, Stdio::from));
        put.into_iter().for_each(|(size, place)| places.note(size, place));
        sent
    }

    #[test]
    fn what_is_there_is_not_sent_and_what_has_changed_is() {
        const LITTLE: u64 = 20 << 10;
        let root = tempfile::tempdir().unwrap();
        let here = root.path().join("here");
        let write = |path: &Path, first: u8| {
            let content: Vec<u8> = (0..1_100_000_u32).map(|at| first ^ at.to_le_bytes()[1]).collect();
            fs::write(path, &content).unwrap();
            content
        };
        let all = machines(&root.path().join("tools"));
        for (shell, path) in &all {
            let (machine, place, places) =
                ((&shell[..], &path[..]), tempfile::tempdir().unwrap(), Places::default());
            let at = |name: &str| place.path().join(name);
            let send = |to: &str| send(machine, place.path(), &places, &here, to);
            let content = write(&here, 1);
            set_mode(&here, 0o751);
            assert!(send("a") > 1_100_000);
            set_mode(&at("a"), 0o600);
            assert!(send("a") < LITTLE, "{machine:?}");
            assert!(send("b/c") < LITTLE && send("it's/") < LITTLE);
            for name in ["a", "b/c", "it's/here"] {
                assert!(fs::read(at(name)).unwrap() == content && mode_of(&at(name)) == 0o751);
                let time = |path: &Path| fs::metadata(path).unwrap().mtime();
                assert_eq!((time(&at(name)), fs::metadata(at(name)).unwrap().nlink()), (time(&here), 1));
            }
            // What a command changes in one place shows in no other, and is not taken for what was sent.
            write(&at("a"), 2);
            assert!(fs::read(at("b/c")).unwrap() == content);
            assert!(send("a") < LITTLE && fs::read(at("a")).unwrap() == content);
            for name in ["a", "b/c", "it's/here"] {
                write(&at(name), 2);
            }
            assert!(send("a") > 1_100_000 && fs::read(at("a")).unwrap() == content);
            fs::remove_file(at("a")).unwrap();
            assert!(send("a") > 1_100_000 && fs::read(at("a")).unwrap() == content);
            // Nor is what has another name by which it may change, or stands for another file.
            fs::rename(at("a"), at("b/a")).unwrap();
            fs::hard_link(at("b/a"), at("a")).unwrap();
            send("a");
            assert_eq!(fs::metadata(at("a")).unwrap().nlink(), 1);
            fs::remove_file(at("a")).unwrap();
            symlink("b/a", at("a")).unwrap();
            send("a");
            assert!(fs::symlink_metadata(at("a")).unwrap().is_file());
            // Another content of the same size, from here.
            let content = write(&here, 3);
            assert!(send("a") > 1_100_000 && fs::read(at("a")).unwrap() == content);
            let names: Vec<_> =
                fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names.len(), 3, "{names:?}");
        }
        // A machine that can't compare.
        let few = root.path().join("few");
        fs::create_dir(&few).unwrap();
        for name in ["tar", "mkdir", "find", "id", "cp", "mv", "rm", "touch", "chmod"] {
            symlink("/bin/busybox", few.join(name)).unwrap();
        }
        let (machine, place, places) =
            ((&["/bin/sh"][..], few.to_str().unwrap()), tempfile::tempdir().unwrap(), Places::default());
        for _ in 0..2 {
            assert!(send(machine, place.path(), &places, &here, "a") > 1_100_000);
            assert!(fs::read(place.path().join("a")).unwrap() == fs::read(&here).unwrap());
        }
    }

    #[test]
    fn a_file_is_read_once_for_many_machines_and_again_when_it_has_changed() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().join("here");
        let long_ago = SystemTime::now() - Duration::from_secs(100);
        let digest_of = |content: &[u8]| {
            fs::write(&here, content).unwrap();
            File::open(&here).unwrap().set_modified(long_ago).unwrap();
            let read = Progress::default();
            let (file, metadata) = open(&(here.clone(), true)).unwrap().unwrap();
            let digest = super::super::present::digest(file, &metadata, &read).unwrap().unwrap();
            (digest, read.moved())
        };
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_of(b"abc"), (abc.to_owned(), 3));
        assert_ne!(digest_of(b"abd").0, abc);
        // Left alone for long enough.
        std::thread::sleep(Duration::from_millis(2100));
        let (file, metadata) = open(&(here.clone(), true)).unwrap().unwrap();
        drop(file);
        let read = Progress::default();
        for _ in 0..3 {
            super::super::present::digest(File::open(&here).unwrap(), &metadata, &read).unwrap().unwrap();
        }
        assert_eq!(read.moved(), 3);
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
        let archive = |to: &str| archive(&tree, to);
        for machine in machines(&root.path().join("tools")) {
            let place = tempfile::tempdir().unwrap();
            let at = |name: &str| place.path().join(name);
            fs::create_dir_all(at("shared")).unwrap();
            set_mode(place.path(), 0o755);
            set_mode(&at("shared"), 0o1777);
            for to in [".", "fresh"] {
                unpack(&machine, place.path(), archive(to));
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
                unpack(&machine, place.path(), archive(&tree, "to"));
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
        let mut packed = Vec::new();
        archive(&tree, "to").pack(&mut packed).unwrap();
        assert!(packed.len() < 1 << 20, "{}", packed.len());
        let place = tempfile::tempdir().unwrap();
        unpack(&(vec!["sh"], std::env::var("PATH").unwrap()), place.path(), archive(&tree, "to"));
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
