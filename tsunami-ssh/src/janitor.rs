//! What cleans up on this computer when the controller cannot: one small process a run.
//!
//! The janitor reads from a pipe that only the controller holds open. However the controller ends, kill -9
//! included, the pipe closes; then the janitor removes the directory of control sockets and kills its own
//! process group, in which all ssh masters of the run live.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

const SCRIPT: &str = r#"trap "" HUP INT TERM; read -r _; rm -rf -- "$1"; kill -KILL 0"#;

#[derive(Debug)]
pub(crate) struct Janitor {
    child: Child,
}

impl Janitor {
    /// Starts the janitor of a directory.
    pub(crate) fn start(directory: &Path) -> io::Result<Self> {
        let child = Command::new("sh")
            .args(["-c", SCRIPT, "tsunami-janitor"])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self { child })
    }

    /// The process group that ends with the controller.
    pub(crate) fn group(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        // Its directory is the owner's to remove; what is left of its group ends with it.
        if let Some(group) = Pid::from_raw(self.group()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
