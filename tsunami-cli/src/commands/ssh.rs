//! `tsunami ssh`: a shell on a machine, through the run's own keys.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::CommandExt;

use tsunami_core::{Error as CoreError, RunStore};

use super::{Context, Execute, Facts, Known};
use crate::error::Error;
use crate::terminal;

/// Log in to a machine of a run
///
/// The machine's working directory and its facts (`$TSUNAMI_NAME`, `$TSUNAMI_IP`, `$TSUNAMI_<GROUP>_IPS`, …) are there.
/// bash and sh also say in their prompt which machine it is. The status is the command's; 128 and more for a signal, 125
/// for tsunami's own failure, 255 for lost contact.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Ssh {
    /// A run id, a prefix of one, or an experiment's name
    run: String,
    /// The machine, or a group of one; may be left out if there is only one
    machine: Option<String>,
    /// A command to run there in place of a shell: one word is a line for the shell, several are a program and its
    /// arguments
    #[arg(last = true)]
    command: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  tsunami ssh redis server-0
  tsunami ssh redis server-0 -- tail -n 3 /var/log/syslog";

/// What is to be known by somebody at a terminal who gets none there.
const NO_TERMINAL: &str =
    "this computer's sshd gives an ordinary user no terminal (/dev/pts is mounted without `gid=5`): ";

impl Execute for Ssh {
    /// Becomes `ssh`. Returns only if that can't be done.
    async fn execute(self, _: &Context<'_>) -> Result<u8, Error> {
        let directory = RunStore::standard()?.find(&self.run).map_err(Error::Exec)?;
        let machines = directory.machines().map_err(Error::Exec)?;
        let machine = Known(&machines).one(self.machine.as_deref())?;
        let facts = Facts::of(&machines).of_machine(machine);
        let ssh = tsunami_ssh::terminal(directory.path(), machine, &facts, &self.command);
        let mut ssh = ssh.map_err(|error| Error::Exec(error.into()))?;
        if std::io::stdin().is_terminal() && tsunami_ssh::lacks_terminals(directory.path()) {
            let instead = match self.command.is_empty() {
                true => "lines are read as those of a script, without a prompt",
                false => "the command runs without one, and Ctrl-C ends the connection, not the command",
            };
            terminal::say(&format!("{NO_TERMINAL}{instead}"));
        }
        terminal::finish();
        Err(Error::Exec(CoreError::other(format!("cannot run `ssh`: {}", ssh.exec()))))
    }
}
