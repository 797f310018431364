//! Files that nobody but their user can have written, and how they are written.
//!
//! What lies in a run's directory decides what is connected to and what is removed, so it is believed only if
//! no other user could have put it there. The rules are those of ssh for its own files:
//!
//! - what tsunami keeps is owned by the user or by root, is no link, and may be written by nobody else;
//! - what the user chose (where runs are kept, an ssh_config) may be a link, and may be written by its
//!   owner's private group too: the group of the same number, to which a umask of 002 lets everything open;
//! - so may the directories above, and all may write to a sticky one (`/tmp`): nobody can replace another's
//!   there.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::limits::STATE_FILE_LIMIT;

const STICKY: u32 = 0o1000;
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;

/// A file or directory that another user may have written. It is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {} (owner {owner}, mode {mode:04o}); `ls -ld {}` shows it", path.display(), fault.text(), path.display())]
#[non_exhaustive]
pub struct Untrusted {
    /// Where it is.
    pub path: PathBuf,
    /// Whose it is.
    pub owner: u32,
    /// Its permissions.
    pub mode: u32,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Owner,
    Writable,
    Kind,
}

impl Fault {
    fn text(self) -> &'static str {
        match self {
            Self::Owner => "is another user's",
            Self::Writable => "may be written by others",
            Self::Kind => "is a link or a special file",
        }
    }
}

impl Untrusted {
    /// What made an error of this module, if it is distrust.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<Untrusted> for io::Error {
    fn from(untrusted: Untrusted) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, untrusted)
    }
}

/// Who may write besides the user and root.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    Nobody,
    /// The owner's private group.
    PrivateGroup,
    /// That, and whoever can't replace what isn't theirs.
    Sticky,
}

/// Reads a file that tsunami keeps, of at most [`STATE_FILE_LIMIT`].
///
/// The directory it lies in must have been [checked](check_directory), with those above it.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(STATE_FILE_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > STATE_FILE_LIMIT {
        let message = format!("{} has more than {STATE_FILE_LIMIT} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

/// Checks a file that tsunami keeps, for programs that read it by its name.
pub fn check(path: &Path) -> io::Result<()> {
    open(path).map(drop)
}

/// Replaces a file as a whole, as [`write_whole`] does. Readable by its owner only, whatever the umask.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(path, 0o600, |file| file.write_all(bytes))
}

/// Replaces a file by one that `fill` writes: its name means the old bytes or all of the new ones, whatever happens,
/// and the new ones durably once this has returned. A link of that name is replaced, not followed. The permissions are
/// `mode`, less what the umask takes.
pub fn write_whole(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let (Some(directory), Some(_)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file has a name in a directory"));
    };
    let (aside, mut file) = create_aside(directory, mode)?;
    // Some file systems tell only when they sync that there is no room.
    let written = fill(&mut file).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written.and_then(|()| sync(directory))
}

/// Makes a file that nobody knows yet. Other processes may do the same in the same directory, and one that was killed
/// may have left its own.
fn create_aside(directory: &Path, mode: u32) -> io::Result<(PathBuf, File)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let aside = directory.join(format!(".tsunami-{}-{number}.new", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside) {
            Ok(file) => return Ok((aside, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes a directory for the user alone, and what is missing above it, or checks the one that is there; those above it
/// are not checked.
pub fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    judge(path, &fs::symlink_metadata(path)?, Metadata::is_dir, Others::Nobody)
}

/// Checks a directory that was chosen to keep something in, and all above it. Links that lead there are
/// followed.
pub fn check_directory(path: &Path) -> io::Result<()> {
    check_real(path, Metadata::is_dir, Others::PrivateGroup)
}

/// Checks a run's directory, what lies in it, the directory of all runs, and all above that.
pub fn check_run(path: &Path) -> io::Result<()> {
    check_directory(path.parent().unwrap_or(path))?;
    check_subdirectory(path)?;
    check_entries(path)
}

/// Checks a directory that tsunami keeps in one that was [checked](check_directory). It may not be a link.
pub fn check_subdirectory(path: &Path) -> io::Result<()> {
    judge(path, &fs::symlink_metadata(path)?, Metadata::is_dir, Others::Nobody)
}

/// Checks all that lies in a directory that tsunami keeps, without going deeper.
fn check_entries(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let kept = |found: &Metadata| found.is_dir() || found.is_file();
        match fs::symlink_metadata(&path) {
            // Replaced or removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => judge(&path, &found?, kept, Others::Nobody)?,
        }
    }
    Ok(())
}

/// Checks a file that the user chose, and the directories above it. Links that lead there are followed.
pub fn check_chosen(path: &Path) -> io::Result<()> {
    check_real(path, Metadata::is_file, Others::PrivateGroup)
}

/// Opens a file of a checked directory to append to it or to lock it, and makes it if it isn't there.
pub fn open_appending(path: &Path) -> io::Result<File> {
    // A pipe in its place must not make anybody wait.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)
}

/// Makes renames and new names in a directory durable.
pub fn sync(directory: &Path) -> io::Result<()> {
    // A plain name's directory is the one that it is used in.
    let directory = if directory == Path::new("") { Path::new(".") } else { directory };
    match File::open(directory)?.sync_all() {
        // A file system that has nothing to sync of a directory says this.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// Checks a directory to be one where the user can make something that others can't replace: `/tmp`, for one.
pub fn check_place(path: &Path) -> io::Result<()> {
    check_real(path, Metadata::is_dir, Others::Sticky)
}

/// Checks a directory that results are written into, by their names: nobody else may put a link into the way. The
/// directories below `base`, where the user chose to work, must be the user's or root's; those above it are as the user
/// found them, if not everybody may write there. Groups are the user's own choice.
pub fn check_output(directory: &Path, base: &Path) -> io::Result<()> {
    let distrust = |path: &Path, found: &Metadata, fault| -> io::Result<()> {
        let (owner, mode) = (found.uid(), found.mode() & 0o7777);
        Err(Untrusted { path: path.to_owned(), owner, mode, fault }.into())
    };
    let is_ours = |found: &Metadata| [0, rustix::process::geteuid().as_raw()].contains(&found.uid());
    for path in directory.ancestors() {
        let found = fs::symlink_metadata(path)?;
        let below = path == directory || path.starts_with(base) && path != base;
        if !is_ours(&found) && (below || found.is_symlink()) {
            return distrust(path, &found, Fault::Owner);
        }
    }
    let real = fs::canonicalize(directory)?;
    for path in real.ancestors() {
        let found = fs::symlink_metadata(path)?;
        if found.mode() & OTHERS_WRITE != 0 && (found.mode() & STICKY == 0 || path == real) {
            return distrust(path, &found, Fault::Writable);
        }
    }
    Ok(())
}

fn check_real(path: &Path, kind: fn(&Metadata) -> bool, others: Others) -> io::Result<()> {
    let real = fs::canonicalize(path)?;
    for above in real.ancestors().skip(1) {
        judge(above, &fs::symlink_metadata(above)?, Metadata::is_dir, Others::Sticky)?;
    }
    judge(&real, &fs::symlink_metadata(&real)?, kind, others)
}

/// Opens a file that tsunami keeps, and checks what was opened.
fn open(path: &Path) -> io::Result<File> {
    // A pipe in its place must not make anybody wait.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            judge(path, &fs::symlink_metadata(path)?, Metadata::is_file, Others::Nobody)?;
            return Err(error);
        }
        opened => opened?,
    };
    judge(path, &file.metadata()?, Metadata::is_file, Others::Nobody)?;
    Ok(file)
}

fn judge(path: &Path, found: &Metadata, kind: fn(&Metadata) -> bool, others: Others) -> io::Result<()> {
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    let harmless = match others {
        Others::Sticky if mode & STICKY != 0 => GROUP_WRITES | OTHERS_WRITE,
        Others::PrivateGroup | Others::Sticky if found.gid() == owner => GROUP_WRITES,
        _ => 0,
    };
    let fault = if !kind(found) {
        Fault::Kind
    } else if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        Fault::Owner
    } else if mode & (GROUP_WRITES | OTHERS_WRITE) & !harmless != 0 {
        Fault::Writable
    } else {
        return Ok(());
    };
    Err(Untrusted { path: path.to_owned(), owner, mode, fault }.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn fault(result: io::Result<impl std::fmt::Debug>) -> Option<Fault> {
        Untrusted::of(&result.unwrap_err()).map(|untrusted| untrusted.fault)
    }

    #[test]
    fn a_file_that_others_may_write_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write(&path, b"mine").unwrap();
        assert_eq!(read(&path).unwrap(), b"mine");
        for mode in [0o620, 0o602, 0o666] {
            set_mode(&path, mode);
            let error = read(&path).unwrap_err();
            let told = Untrusted::of(&error).unwrap();
            assert_eq!((told.fault, told.mode, &told.path), (Fault::Writable, mode, &path));
            assert!(error.to_string().contains(&format!("{mode:04o}")), "{error}");
        }
        set_mode(&path, 0o644);
        assert_eq!(read(&path).unwrap(), b"mine");
    }

    #[test]
    fn links_pipes_and_directories_are_not_read_in_a_files_place() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        write(&at("file"), b"").unwrap();
        symlink(at("file"), at("link")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap();
        assert!(made.success());
        for name in ["link", "pipe"] {
            assert_eq!(fault(read(&at(name))), Some(Fault::Kind), "{name}");
        }
        assert_eq!(fault(read(directory.path())), Some(Fault::Kind));
        symlink(directory.path(), at("directory")).unwrap();
        assert_eq!(fault(make_directory(&at("directory"))), Some(Fault::Kind));
        assert_eq!(fault(check_subdirectory(&at("directory"))), Some(Fault::Kind));
        check_directory(&at("directory")).unwrap();
    }

    #[test]
    fn what_another_user_owns_is_believed_only_if_that_is_root() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write(&path, b"").unwrap();
        // Root's own is everybody's to believe; only root can give something away.
        check_chosen(Path::new("/etc/passwd")).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            assert_eq!(fault(read(&path)), Some(Fault::Owner));
            std::os::unix::fs::chown(directory.path(), Some(12345), None).unwrap();
            assert_eq!(fault(check_directory(directory.path())), Some(Fault::Owner));
        }
    }

    #[test]
    fn a_file_holds_the_old_bytes_or_the_new_ones_and_nothing_stays_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let half = |file: &mut File| {
            file.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        };
        assert_eq!(write_whole(&path, 0o600, half).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        write(&path, b"old").unwrap();
        write_whole(&path, 0o600, half).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        write_whole(&path, 0o755, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        // Whatever the umask takes, the owner keeps.
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o700, 0o700);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn processes_that_write_the_same_file_at_once_leave_the_whole_of_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::thread::scope(|scope| {
            for byte in b'a'..b'i' {
                let path = &path;
                scope.spawn(move || write(path, &[byte; 10_000]).unwrap());
            }
        });
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() == 10_000 && bytes.iter().all(|byte| *byte == bytes[0]));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_makes_nobody_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(read(&path).is_err() && check(&path).is_err() && open_appending(&path).is_err());
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write(&path, b"").unwrap();
        File::options().write(true).open(&path).unwrap().set_len(3 << 30).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn whoever_may_replace_a_directory_above_decides_what_is_below() {
        let top = tempfile::tempdir().unwrap();
        let above = top.path().join("above");
        let directory = above.join("directory");
        fs::create_dir_all(&directory).unwrap();
        set_mode(&directory, 0o700);
        write(&directory.join("config"), b"").unwrap();
        let owner = fs::metadata(&above).unwrap();
        let group_is_private = owner.uid() == owner.gid();
        for (mode, fine) in
            [(0o755, true), (0o1777, true), (0o777, false), (0o757, false), (0o775, group_is_private)]
        {
            set_mode(&above, mode);
            for checked in [check_directory(&directory), check_chosen(&directory.join("config"))] {
                assert_eq!(checked.is_ok(), fine, "{mode:o}: {checked:?}");
            }
        }
        set_mode(&above, 0o755);
        // What tsunami keeps is for the user alone, sticky or not.
        for mode in [0o777, 0o1777, 0o770] {
            set_mode(&directory, mode);
            let chosen = check_directory(&directory);
            assert_eq!(chosen.is_ok(), mode == 0o770 && group_is_private, "{mode:o}: {chosen:?}");
            assert_eq!(fault(make_directory(&directory)), Some(Fault::Writable), "{mode:o}");
            assert_eq!(fault(check_subdirectory(&directory)), Some(Fault::Writable), "{mode:o}");
        }
    }

    #[test]
    fn nobody_else_may_put_anything_into_the_way_of_results() {
        let top = tempfile::tempdir().unwrap();
        let base = top.path().join("work");
        let results = base.join("results/x/run");
        fs::create_dir_all(&results).unwrap();
        for directory in [&base, &base.join("results"), &base.join("results/x"), &results] {
            // A group is the user's own choice.
            set_mode(directory, 0o775);
            check_output(&results, &base).unwrap();
            set_mode(directory, 0o777);
            assert_eq!(
                fault(check_output(&results, &base)),
                Some(Fault::Writable),
                "{}",
                directory.display()
            );
            set_mode(directory, 0o1777);
            assert_eq!(
                check_output(&results, &base).is_ok(),
                *directory != results,
                "{}",
                directory.display()
            );
            set_mode(directory, 0o755);
        }
        let linked = base.join("linked");
        symlink(base.join("results"), &linked).unwrap();
        check_output(&linked.join("x/run"), &base).unwrap();
        if rustix::process::geteuid().is_root() {
            use std::os::unix::fs::{chown, lchown};
            lchown(&linked, Some(12345), None).unwrap();
            assert_eq!(fault(check_output(&linked.join("x/run"), &base)), Some(Fault::Owner));
            chown(base.join("results/x"), Some(12345), None).unwrap();
            assert_eq!(fault(check_output(&results, &base)), Some(Fault::Owner));
            chown(base.join("results/x"), Some(0), None).unwrap();
            // Where the user works may be somebody's whose place it is.
            chown(&base, Some(12345), None).unwrap();
            check_output(&results, &base).unwrap();
        }
    }

    #[test]
    fn what_is_written_replaces_the_old_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "old").unwrap();
        set_mode(&path, 0o644);
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        fs::create_dir(directory.path().join("taken")).unwrap();
        fs::write(directory.path().join("taken/x"), "").unwrap();
        assert!(write(&directory.path().join("taken"), b"new").is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
