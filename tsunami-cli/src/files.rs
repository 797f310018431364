//! How the program makes what it writes into the results: nobody but the owner writes there, at any umask, and what
//! has the name of a file and is a link is not followed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// Makes a directory, and those above it that are missing.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// Opens a file that begins empty.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    open(OpenOptions::new().write(true).truncate(true), path)
}

/// Opens a file to write at its end.
pub(crate) fn append(path: &Path) -> io::Result<File> {
    open(OpenOptions::new().append(true), path)
}

/// Writes a whole file.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    create(path)?.write_all(content.as_ref())
}

fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.create(true).mode(0o644).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)
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
        assert!(create(&link).is_err() && append(&link).is_err());
        assert_eq!(fs::read_to_string(&outside).unwrap(), "kept");
    }
}
