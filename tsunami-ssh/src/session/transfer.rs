//! Files as tar streams: one command each way, whatever their number. The other side isn't trusted with names.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, EntryType, HeaderMode};
use tsunami_core::{SessionError, SessionErrorKind};

/// Run with the directory: unpacks into it what comes on standard input. `-o`: files belong to who unpacks.
pub(super) const UNPACK: &str = r#"mkdir -p -- "$1" && cd -- "$1" && exec tar -xpof -"#;

/// Run with patterns: says on standard error how many matches each has, and packs them to standard output.
/// With an empty IFS an unquoted expansion is matched against file names, and split or expanded no further.
///
/// GNU tar takes the names from a pipe, any number of them; others take them as arguments.
pub(super) const PACK: &str = r#"
IFS=
case $(tar --version 2>/dev/null) in
*GNU*)
    for pattern; do
        count=0
        for name in $pattern; do
            if [ -e "$name" ] || [ -L "$name" ]; then
                printf '%s\0' "$name"
                count=$((count + 1))
            fi
        done
        echo "matches: $count" >&2
    done | tar --null --verbatim-files-from -T - -cf -
    exit
    ;;
esac
i=$#
while [ $i -gt 0 ]; do
    pattern=$1 count=0
    shift
    for name in $pattern; do
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

/// Unpacks a tar stream from a machine below `into`. A name that would land elsewhere is an error: absolute,
/// climbing with `..`, or through a link that leads out.
pub(super) fn unpack(from: impl Read, into: &Path) -> io::Result<()> {
    fs::create_dir_all(into)?;
    let mut archive = Archive::new(from);
    archive.set_preserve_permissions(true);
    archive.set_mask(0o7000);
    let mut empty = true;
    for entry in archive.entries()? {
        let mut entry = entry?;
        empty = false;
        let name = entry.path()?.into_owned();
        let refused = |why: &str| io::Error::other(format!("refused `{}`: {why}", name.display()));
        if !stays_inside(&name, 0) {
            return Err(refused("the name leads out of the directory"));
        }
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Directory | EntryType::Continuous | EntryType::GNUSparse => {}
            EntryType::Link => {}
            EntryType::Symlink => {
                let target = entry.link_name()?.ok_or_else(|| refused("the link leads nowhere"))?;
                let depth = name.components().filter(|part| matches!(part, Component::Normal(_))).count();
                if !stays_inside(&target, depth.saturating_sub(1)) {
                    return Err(refused("the link leads out of the directory"));
                }
            }
            // Sockets, pipes and devices have no content to bring home.
            _ => continue,
        }
        // Checks once more against the links that are there by now.
        if !entry.unpack_in(into)? {
            return Err(refused("the name leads out of the directory"));
        }
    }
    if empty {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Whether a path, followed from `depth` directories below the root of the tree, never leaves the tree.
fn stays_inside(path: &Path, mut depth: usize) -> bool {
    for part in path.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::Header;

    fn archive(name: &str, kind: EntryType, link: &str) -> Vec<u8> {
        let mut header = Header::new_ustar();
        // `set_path` would refuse what a hostile machine sends.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(if kind == EntryType::Regular { 4 } else { 0 });
        header.set_cksum();
        let mut builder = Builder::new(Vec::new());
        builder.append(&header, if kind == EntryType::Regular { b"evil".as_slice() } else { b"" }).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let into = root.path().join("in");
        for (name, kind, link) in [
            ("/tmp/evil", EntryType::Regular, ""),
            ("../evil", EntryType::Regular, ""),
            ("a/../../evil", EntryType::Regular, ""),
            ("link", EntryType::Symlink, "/etc/passwd"),
            ("link", EntryType::Symlink, "../evil"),
            ("a/link", EntryType::Symlink, "../../evil"),
        ] {
            let error = unpack(archive(name, kind, link).as_slice(), &into).unwrap_err();
            assert!(error.to_string().contains("refused"), "{name} -> {link}: {error}");
            assert!(!root.path().join("evil").exists());
        }
    }

    #[test]
    fn writing_through_a_link_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let into = root.path().join("in");
        fs::create_dir_all(&into).unwrap();
        std::os::unix::fs::symlink(root.path(), into.join("out")).unwrap();
        assert!(unpack(archive("out/evil", EntryType::Regular, "").as_slice(), &into).is_err());
        assert!(!root.path().join("evil").exists());
    }

    #[test]
    fn a_stream_that_is_cut_short_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let whole = archive("file", EntryType::Regular, "");
        assert!(unpack(&whole[..514], &root.path().join("in")).is_err());
        assert!(unpack(&whole[..0], &root.path().join("in")).is_err());
    }

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
