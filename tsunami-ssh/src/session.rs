//! A session: commands and files on one machine.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tsunami_core::{
    Command, Download, Exit, Leftover, Machine, OutputSink, Session, SessionError, SessionErrorKind,
};

use crate::command::{Commands, Input};
use crate::connector::RunSsh;
use crate::files;
use crate::pool::Pool;
use crate::transport::Connection;
use crate::watchdog::{self, Arming};

/// A session over SSH.
#[derive(Debug)]
pub(crate) struct SshSession {
    ssh: Arc<RunSsh>,
    machine: Machine,
    commands: Arc<Commands>,
}

impl SshSession {
    pub(crate) fn new(ssh: Arc<RunSsh>, machine: &Machine, connection: Arc<dyn Connection>) -> Self {
        let pool = Pool::new(machine.name(), ssh.transport(machine), connection);
        Self { ssh, machine: machine.clone(), commands: Arc::new(Commands::new(pool, machine)) }
    }

    /// Whether anything was ever said to the machine: it is known to run our `sh`.
    pub(crate) fn has_shell(&self) -> bool {
        self.commands.has_shell()
    }

    /// Makes the run's directory on a machine that doesn't belong to the run, and starts the watchdog that ends
    /// the run's processes there at `until`. By the machine's own clocks: they need not agree with ours.
    pub(crate) async fn arm(
        &self,
        directory: &str,
        until: SystemTime,
        arming: Arming,
    ) -> Result<(), SessionError> {
        /// Gets the watchdog's script, the machine's name, and the watchdog's arguments, of which the third is the
        /// directory. The directory knows whose it is, since a host may have several names.
        const ARM: &str = r#"
            TSUNAMI_WATCHDOG=$1 machine=$2 mode=$3 run=$4 directory=$5 seconds=$6 how=$7
            export TSUNAMI_WATCHDOG
            umask 077
            mkdir -p -- "$directory" && cd -- "$directory" || {
                ls -ld -- "${directory%/*}" "$directory" >&2
                exit 1
            }
            (set -C && printf '%s\n' "$machine" >.tsunami-machine) 2>/dev/null
            read -r taken <.tsunami-machine || exit
            [ "$taken" = "$machine" ] || {
                echo "the host is $taken of this run already, and can't be two machines" >&2
                exit 1
            }
            set -- "$mode" "$run" "$PWD" "$seconds" "$how"
            setsid sh -c "$TSUNAMI_WATCHDOG" "tsunami-watchdog:$run:$PWD" "$@" </dev/null &"#;
        let machine = self.machine.name();
        let watch = watchdog::watch(&self.machine.run, directory, until, arming);
        let args: Vec<&str> =
            [watchdog::SCRIPT, &machine].into_iter().chain(watch.iter().map(String::as_str)).collect();
        // The watchdog holds the script's outputs until it watches.
        let said = self.commands.script(ARM, &args).await?;
        let group = watchdog::armed(&said).ok_or_else(|| {
            let message = format!("the watchdog of the run does not start: it said `{}`", said.trim());
            SessionError::new(SessionErrorKind::Remote, message)
        })?;
        if let Some(group) = group {
            self.commands.join(group);
        }
        Ok(())
    }

    /// Ends the run's processes on a machine that doesn't belong to the run, and removes its directory there.
    /// Returns what is left on the machine, which `place` names.
    pub(crate) async fn reap(&self, directory: &str, place: &str) -> Result<Vec<Leftover>, SessionError> {
        /// Gets the directory, the run and the watchdog's script.
        const REAP: &str = r#"
            directory=$1 run=$2 script=$3
            case $directory in /*) ;; *) directory=$PWD/$directory ;; esac
            set -- reap "$run" "$directory"
            cd /
            eval "$script""#;
        let run = self.machine.run.to_string();
        let said = self.commands.script(REAP, &[directory, &run, watchdog::SCRIPT]).await?;
        Ok(watchdog::leftovers(&said, place))
    }
}

#[async_trait]
impl Session for SshSession {
    async fn exec(
        &self,
        command: &Command,
        output: Arc<dyn OutputSink>,
        cancel: &CancellationToken,
    ) -> Result<Exit, SessionError> {
        self.commands.run(command, Input::Given(command.stdin.clone()), None, output, cancel).await
    }

    async fn upload(&self, from: &Path, to: &str) -> Result<(), SessionError> {
        files::upload(&self.commands, from, to).await
    }

    async fn download(&self, download: &Download) -> Result<Vec<usize>, SessionError> {
        files::download(&self.commands, download).await
    }

    async fn check(&self) -> Result<(), SessionError> {
        self.commands.pool().check().await
    }

    async fn close(&self) -> Result<(), SessionError> {
        self.commands.wait_idle().await;
        let connection = self.commands.pool().close().await;
        // A machine that existed before the run is visited once more.
        if let (Some(connection), Some(_)) = (connection, &self.machine.login.directory) {
            self.ssh.park(&self.machine.name(), connection);
        }
        Ok(())
    }
}
