//! What a machine sends: one tar stream, whatever the number of files.

use std::io;

use tsunami_core::{Exit, SessionError, SessionErrorKind};

use super::unpack::{BrokenOff, Unpacked};
use crate::limits::ARCHIVE_ENTRIES_LIMIT;

/// Packs what patterns match; its beginning says how.
pub(super) const PACK: &str = include_str!("download.sh");

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
        match line.strip_prefix("matches: ").and_then(|count| count.parse::<usize>().ok()) {
            // No more than can have come, whatever a machine says: they are added up later.
            Some(count) => matches.push(count.min(ARCHIVE_ENTRIES_LIMIT)),
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::Command as Process;

    use super::super::progress::Progress;
    use super::super::stripes::joined;
    use super::super::unpack::unpack;
    use super::*;

    fn unpacked(broken_off: Option<BrokenOff>, left_out: &[&str]) -> Unpacked {
        let mut unpacked = Unpacked { broken_off, ..Unpacked::default() };
        left_out.iter().for_each(|name| unpacked.left_out.add(name.as_bytes(), "why"));
        unpacked
    }

    fn lost() -> Result<Exit, SessionError> {
        Err(SessionError::new(SessionErrorKind::Lost, "contact was lost"))
    }

    #[test]
    fn the_cause_comes_first() {
        let full = || BrokenOff::Here("cannot write x".to_owned(), io::ErrorKind::StorageFull.into());
        let cut = || BrokenOff::There(io::ErrorKind::UnexpectedEof.into());
        let none = || BrokenOff::There(io::ErrorKind::InvalidData.into());
        let said = "matches: 1";
        for (packed, broken_off, kind, message) in [
            // Whoever sends to a full disk is ended by that.
            (lost(), Some(full()), SessionErrorKind::Local, "cannot write x"),
            (Ok(Exit::Signal(13)), Some(full()), SessionErrorKind::Local, "cannot write x"),
            (lost(), Some(none()), SessionErrorKind::Transfer, "can't be read"),
            // Whoever is lost ends the archive too early.
            (lost(), Some(cut()), SessionErrorKind::Lost, "contact was lost"),
            (Ok(Exit::Signal(9)), Some(cut()), SessionErrorKind::Transfer, "signal 9"),
            (Ok(Exit::Status(0)), Some(cut()), SessionErrorKind::Transfer, "can't be read"),
            (Ok(Exit::Status(2)), None, SessionErrorKind::Transfer, "status 2"),
        ] {
            let error = outcome(packed, unpacked(broken_off, &[]), 1, said).unwrap_err();
            assert_eq!((error.kind, error.message.contains(message)), (kind, true), "{message}: {error}");
        }
    }

    #[test]
    fn what_is_missing_is_an_error_and_what_came_and_went_is_none() {
        let come = |exit, patterns, said: &str| outcome(Ok(exit), unpacked(None, &[]), patterns, said);
        assert_eq!(come(Exit::Status(0), 2, "matches: 3\nmatches: 0\n").unwrap(), [3, 0]);
        let said = "matches: 2\ntar: a: Cannot stat: No such file or directory\n\
                    tar: Exiting with failure status due to previous errors\n";
        assert_eq!(come(Exit::Status(2), 1, said).unwrap(), [2]);
        let unreadable = format!("{said}tar: b: Cannot open: Permission denied\n");
        assert!(come(Exit::Status(2), 1, &unreadable).unwrap_err().message.contains("Permission denied"));
        assert!(come(Exit::Status(0), 2, "matches: 1\n").is_err());
        let boasting = format!("matches: {0}\nmatches: {0}\n", usize::MAX);
        let total: usize = come(Exit::Status(0), 2, &boasting).unwrap().into_iter().sum();
        assert_eq!(total, 2 * ARCHIVE_ENTRIES_LIMIT);

        let nothing = unpacked(Some(BrokenOff::There(io::ErrorKind::UnexpectedEof.into())), &[]);
        assert_eq!(outcome(Ok(Exit::Status(0)), nothing, 1, "matches: 0\n").unwrap(), [0]);
        let left_out = unpacked(None, &["it's\n", "b"]);
        let error = outcome(Ok(Exit::Status(0)), left_out, 1, "matches: 2\n").unwrap_err();
        assert_eq!(error.message, r"not everything came home: `it's\n`: why; `b`: why");
        assert_eq!(error.kind, SessionErrorKind::Transfer);
    }

    /// Overlapping patterns, hidden files and links, whatever shell and tar a machine has.
    #[test]
    fn what_is_packed_comes_home() {
        let place = tempfile::tempdir().unwrap();
        let (there, tools) = (place.path().join("there"), place.path().join("tools"));
        fs::create_dir_all(there.join("d")).unwrap();
        fs::create_dir_all(there.join(".config")).unwrap();
        fs::create_dir(&tools).unwrap();
        for name in ["d/a", ".config/x", ".profile", "other"] {
            fs::write(there.join(name), name).unwrap();
        }
        symlink("a", there.join("d/l")).unwrap();
        symlink("/bin/busybox", tools.join("tar")).unwrap();
        let runs = |program: &str| Process::new(program).arg("--help").output().is_ok();
        let shells = [&["sh"][..], &["bash", "--posix"], &["busybox", "sh"]];
        let patterns = ["d", ".*", "d/a", "d/*", "none"].map(str::to_owned);
        let path = std::env::var("PATH").unwrap();
        for path in [path.clone(), format!("{}:{path}", tools.display())] {
            for shell in shells.iter().filter(|shell| runs(shell[0])) {
                for stripes in ["", ".tsunami-stripes-0123456789abcdef"] {
                    let mut command = Process::new(shell[0]);
                    command.args(&shell[1..]).args(["-c", PACK, "sh", stripes]).args(&patterns);
                    command.current_dir(&there).env("PATH", &path).env("HOME", &there);
                    let output = command.output().unwrap();
                    assert!(stripes.is_empty() || !there.join(stripes).exists());
                    let home = tempfile::tempdir().unwrap();
                    let unpacked = match stripes {
                        "" => unpack(output.stdout.as_slice(), home.path(), &patterns, || false),
                        _ => unpack(
                            joined(output.stdout.as_slice(), &Progress::default()).0,
                            home.path(),
                            &patterns,
                            || false,
                        ),
                    };
                    let exit = Exit::Status(output.status.code().unwrap().try_into().unwrap());
                    let said = String::from_utf8_lossy(&output.stderr);
                    let matches = outcome(Ok(exit), unpacked, patterns.len(), &said);
                    assert_eq!(matches.unwrap(), [1, 2, 1, 2, 0], "{shell:?} {path}");
                    let read = |name: &str| fs::read_to_string(home.path().join(name)).unwrap();
                    assert_eq!((read("d/a"), read("d/l")), ("d/a".to_owned(), "d/a".to_owned()));
                    assert_eq!(
                        (read(".config/x"), read(".profile")),
                        (".config/x".into(), ".profile".into())
                    );
                    assert!(!home.path().join("other").exists());
                    // What the transfer itself made, where `.*` finds it, stays there.
                    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 3, "{shell:?} {path}");
                }
            }
        }
    }
}
