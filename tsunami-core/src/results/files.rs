//! How the program makes what it writes into the results: nobody but the owner writes there, at any umask, and what
//! has the name of a file and is a link is not followed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::private;

/// All may read results, as far as the umask lets them.
const MODE: u32 = 0o644;

/// Makes a directory, and those above it that are missing.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// Opens a file to write at its end.
pub(super) fn append(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().append(true).create(true).mode(MODE).custom_flags(flags).open(path)
}

/// Opens a file to read it.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")),
    }
}

/// Writes a whole file, or none.
pub(super) fn write(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    whole(path, |file| file.write_all(content.as_ref()))
}

/// The same for content that `fill` writes.
pub(super) fn whole(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    private::write_whole(path, MODE, fill)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (link, outside) = (directory.path().join("log"), directory.path().join("outside"));
        fs::write(&outside, "kept").unwrap();
        symlink(&outside, &link).unwrap();
        assert!(append(&link).is_err());
        write(&link, "new").unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "kept");
        assert!(link.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.json");
        let full = |file: &mut File| {
            file.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        };
        assert_eq!(whole(&path, full).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        write(&path, "all").unwrap();
        assert!(whole(&path, full).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "all");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
