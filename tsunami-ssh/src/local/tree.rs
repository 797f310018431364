//! Directories and files of a machine, which are removed with it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub(super) fn private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes a directory, unless something is mounted in it.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let real = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        real => real?,
    };
    match mounted_in(&real, &fs::read("/proc/self/mountinfo")?) {
        Some(mount) => Err(io::Error::other(format!("unmount {} first", mount.display()))),
        None => fs::remove_dir_all(&real),
    }
}

/// The first mount in a directory, or at it, by what the kernel says of mounts.
fn mounted_in(directory: &Path, mounts: &[u8]) -> Option<PathBuf> {
    let points = mounts.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&b| b == b' ').nth(4));
    points.map(unescape).find(|point| point.starts_with(directory))
}

/// Reads a path in which spaces, line breaks and backslashes are written as `\040`.
fn unescape(text: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| first == b'\\').and_then(|code| str::from_utf8(code).ok());
        let byte = code.and_then(|code| u8::from_str_radix(code, 8).ok());
        path.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_in_a_directory_is_found_whatever_it_is_called() {
        let mounts = b"36 35 98:0 / / rw - ext4 /dev/sda rw\n\
                       37 36 98:0 /x /a\\040b\\134c\\0401/d rw,noatime master:1 - ext4 /dev/sda rw\n\
                       38 36 98:0 /x /ab/d rw - ext4 /dev/sda rw\n";
        let mounted = |directory: &str| mounted_in(Path::new(directory), mounts);
        assert_eq!(mounted("/a b\\c 1"), Some("/a b\\c 1/d".into()));
        assert_eq!(mounted("/ab/d"), Some("/ab/d".into()));
        assert_eq!(mounted("/a"), None);
    }
}
