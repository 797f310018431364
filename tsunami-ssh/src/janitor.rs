//! What cleans up on this computer when the controller cannot: one small process a run.
//!
//! The janitor makes the directory of control sockets, says where it is, and reads from a pipe that only the
//! controller holds open. However the controller ends, kill -9 included, the pipe closes; then the janitor
//! removes the directory and kills its own process group, in which all ssh masters of the run live, and the groups
//! that are noted in the directory. Because
//! it makes the directory itself, there is never one that nobody will remove.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

/// Is given templates for `mktemp`, of which the first that can be made is the directory.
const SCRIPT: &str = include_str!("janitor.sh");

/// The name of an empty file in the directory, before the number of a process group that ends with the controller.
#[cfg(feature = "in-process")]
pub(crate) const GROUP: &str = "group-";

#[derive(Debug)]
pub(crate) struct Janitor {
    child: Child,
    directory: PathBuf,
}

impl Janitor {
    /// Starts a janitor with a private directory of a new name: `XXXXXX` at the end of a template is replaced. It is
    /// where sockets can be, or made by the last of the templates.
    pub(crate) fn start(templates: &[PathBuf]) -> io::Result<Self> {
        let janitor = Self::start_in(templates)?;
        let made_by = |template: &PathBuf| template.parent() == janitor.directory.parent();
        let others = templates.iter().position(made_by).map(|at| &templates[at + 1..]);
        match others.filter(|others| !others.is_empty()) {
            Some(others) if takes_sockets(&janitor.directory).is_err() => Self::start(others),
            _ => Ok(janitor),
        }
    }

    fn start_in(templates: &[PathBuf]) -> io::Result<Self> {
        let mut child = Self::spawn(templates)?;
        let pipes = (child.stdout.take(), child.stderr.take());
        let mut janitor = Self { child, directory: PathBuf::new() };
        if let (Some(mut stdout), Some(mut stderr)) = pipes {
            let (mut path, mut said) = (Vec::new(), String::new());
            stdout.read_to_end(&mut path)?;
            stderr.read_to_string(&mut said)?;
            if path.is_empty() {
                return Err(io::Error::other(said.trim().replace('\n', "; ")));
            }
            janitor.directory = OsString::from_vec(path).into();
        }
        Ok(janitor)
    }

    fn spawn(templates: &[PathBuf]) -> io::Result<Child> {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "tsunami-janitor"]).args(templates).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    }

    /// Where control sockets go.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The process group that ends with the controller.
    pub(crate) fn group(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

/// Whether a socket can be had in a directory as a master of ssh's makes it: under another name, and then linked. Over FUSE
/// nobody answers there.
fn takes_sockets(directory: &Path) -> io::Result<()> {
    let (made, linked) = (directory.join("made"), directory.join("linked"));
    let _listener = UnixListener::bind(&made)?;
    fs::hard_link(&made, &linked)?;
    UnixStream::connect(&linked)?;
    fs::remove_file(&made)?;
    fs::remove_file(&linked)
}

impl Drop for Janitor {
    fn drop(&mut self) {
        // In this order: should the process end in between, the janitor still does the rest.
        let _ = fs::remove_dir_all(&self.directory);
        if let Some(group) = Pid::from_raw(self.group()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
        // Whatever was put there meanwhile.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_that_vanishes_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let missing = home.path().join("missing/ctl-XXXXXX");
        let mut janitor = Janitor::start(&[missing, home.path().join("ctl-XXXXXX")]).unwrap();
        assert!(janitor.directory().starts_with(home.path()));
        fs::write(janitor.directory().join("0"), "").unwrap();
        let mut noted = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
        fs::write(janitor.directory().join(format!("group-{}", noted.id())), "").unwrap();
        // All that the janitor sees of it.
        drop(janitor.child.stdin.take());
        janitor.child.wait().unwrap();
        assert!(!noted.wait().unwrap().success());
        assert!(!janitor.directory().exists());
    }

    #[test]
    fn a_controller_that_vanishes_at_once_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let mut child = Janitor::spawn(&[home.path().join("ctl-XXXXXX")]).unwrap();
        drop((child.stdin.take(), child.stdout.take(), child.stderr.take()));
        child.wait().unwrap();
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn where_no_socket_can_be_the_next_directory_is_taken() {
        let home = tempfile::tempdir().unwrap();
        // No socket has so long a path.
        let long = home.path().join("long".repeat(30));
        fs::create_dir(&long).unwrap();
        let templates = [long.join("ctl-XXXXXX"), home.path().join("ctl-XXXXXX")];
        let janitor = Janitor::start(&templates).unwrap();
        assert_eq!(janitor.directory().parent(), Some(home.path()));
        assert_eq!(fs::read_dir(janitor.directory()).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&long).unwrap().count(), 0, "the first janitor has left nothing");
        let last = Janitor::start(&templates[..1]).unwrap();
        assert_eq!(last.directory().parent(), Some(&*long));
    }

    #[test]
    fn where_nothing_can_be_made_the_reason_is_told() {
        let home = tempfile::tempdir().unwrap();
        let error = Janitor::start(&[home.path().join("missing/ctl-XXXXXX")]).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
