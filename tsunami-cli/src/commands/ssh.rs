//! `tsunami ssh`: a shell on a machine, through the run's own keys.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;

use tsunami_core::{Error as CoreError, RunStore};

use super::{Context, Execute};
use crate::error::Error;
use crate::terminal;

/// Log in to a machine of a run
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Ssh {
    /// A run id, a prefix of one, or an experiment's name
    run: String,
    /// The machine; may be left out if there is only one
    machine: Option<String>,
    /// A command to run there in place of a shell
    #[arg(last = true)]
    command: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  tsunami ssh redis server-0
  tsunami ssh redis server-0 -- tail -n 3 /var/log/syslog";

impl Execute for Ssh {
    async fn execute(self, _: &Context<'_>) -> Result<u8, Error> {
        ssh(&self.run, self.machine.as_deref(), &self.command)
    }
}

/// Becomes `ssh`. Returns only if that can't be done.
fn ssh(name: &str, machine: Option<&str>, words: &[OsString]) -> Result<u8, Error> {
    let directory = RunStore::standard()?.find(name).map_err(Error::Exec)?;
    let machines: Vec<String> =
        directory.machines().map_err(Error::Exec)?.iter().map(tsunami_core::Machine::name).collect();
    let machine = match (machine, machines.as_slice()) {
        (Some(machine), machines) if machines.iter().any(|known| known == machine) => machine,
        (None, [only]) => only,
        (Some(other), _) => return Err(unknown(format!("there is no machine {other}"), &machines)),
        (None, _) => return Err(unknown("say which machine".to_owned(), &machines)),
    };
    let mut ssh = std::process::Command::new("ssh");
    let config = tsunami_ssh::run_config(directory.path()).map_err(|error| Error::Exec(error.into()))?;
    // What a connection goes through is written for this shell, whatever the user's own is.
    ssh.env("SHELL", "/bin/sh").arg("-F").arg(config).arg(machine);
    if !words.is_empty() {
        // As with `exec`, one word is a line for the shell. A shell stays in between: ssh itself would say 255
        // for a signal.
        let script = match words.len() {
            1 => "bash -eo pipefail -c \"$1\"; exit $?",
            _ => "\"$@\"; exit $?",
        };
        let wrapped = ["sh", "-c", script, "sh"].map(OsString::from);
        let quoted = wrapped.iter().chain(words).map(|word| shlex::bytes::try_quote(word.as_bytes()));
        let quoted: Vec<_> =
            quoted.collect::<Result<_, _>>().map_err(|error| Error::Exec(CoreError::other(error)))?;
        ssh.arg("--").arg(OsString::from_vec(quoted.join(b" ".as_slice())));
    }
    terminal::finish();
    Err(Error::Exec(CoreError::other(format!("cannot run `ssh`: {}", ssh.exec()))))
}

fn unknown(message: String, machines: &[String]) -> Error {
    Error::Exec(CoreError::other(format!("{message}; the run has {}", machines.join(", "))))
}
