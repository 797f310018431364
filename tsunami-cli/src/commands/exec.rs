//! `tsunami exec`: one command on many machines at once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tsunami_core::text::Lines;
use tsunami_core::{Command, Error as CoreError, Event, Machine, Observer, Origin, RunStore, Stream};

use super::{Context, Execute};
use crate::backend;
use crate::error::{EXEC_FAILED, EXEC_LOST, Error, UNREAD};
use crate::signals;
use crate::terminal::{complain, one_line, pass_on, say, waiting};

/// Run a command on many machines of a run at once
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Exec {
    /// A run id, a prefix of one, or an experiment's name
    run: String,
    /// Only on this group's machines (may be repeated)
    #[arg(short, long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// Only on this machine (may be repeated)
    #[arg(short, long = "machine", value_name = "MACHINE")]
    machines: Vec<String>,
    /// The command: one word is a line for the shell, several are a program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  tsunami exec redis -- uptime                         # on all machines
  tsunami exec redis -g client -- 'echo $HOME | wc -c' # one word: a line for the shell
  tsunami exec redis -g client -m server-0 -- ls -l /tmp";

impl Execute for Exec {
    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let Self { run, groups, machines, command: words } = self;
        let state = RunStore::standard()?;
        let directory = state.find(&run).map_err(Error::Exec)?;
        let cancel = CancellationToken::new();
        let printer = Arc::new(Printer { cancel: cancel.clone(), ..Printer::default() });
        let engine = backend::engine(context.registry, &directory, &state)
            .await?
            .observer(printer.clone())
            .cancel_on(cancel.clone());
        signals::watch(cancel, "stopping the command", say, Arc::new(|| EXEC_FAILED))?;
        let known = directory.machines().map_err(Error::Exec)?;
        let names =
            |name: &String, of: fn(&Machine) -> String| known.iter().any(|machine| of(machine) == *name);
        let group = groups.iter().find(|name| !names(name, |machine| machine.group.clone()));
        if let Some(unknown) = group.or(machines.iter().find(|name| !names(name, Machine::name))) {
            return Err(Error::Exec(CoreError::other(format!(
                "the run has no such machine or group: {unknown}"
            ))));
        }
        let all = groups.is_empty() && machines.is_empty();
        let wanted =
            |machine: &Machine| all || groups.contains(&machine.group) || machines.contains(&machine.name());
        let running = engine.attach(&directory, wanted).await.map_err(Error::Exec)?;
        let hosts = running.cluster().hosts();
        let mut status = 0;
        for machine in known.iter().filter(|machine| wanted(machine)) {
            if !hosts.iter().any(|host| host.name() == machine.name()) {
                complain(&format!("{} ({}) is not running any more", machine.name(), machine.id));
                status = EXEC_LOST;
            }
        }
        printer.lock().prefix = hosts.len() > 1;
        let command = command(words);
        // Whoever saves something from a machine that is taken back does so here.
        let run = hosts.iter().map(|host| host.command(command.clone()).despite_interruption().output());
        let outputs = join_all(run).await;
        printer.flush();
        if printer.lock().unread {
            running.detach().await;
            return Ok(UNREAD);
        }
        for output in outputs {
            match output {
                Ok(output) => status = status.max(output.exit.code()),
                Err(error) => {
                    let error = Error::Exec(error);
                    error.show();
                    status = status.max(error.status());
                }
            }
        }
        running.detach().await;
        Ok(status)
    }
}

/// One word is a line for the shell; several are a program and its arguments, byte for byte.
fn command(words: Vec<OsString>) -> Command {
    let mut words = words.into_iter();
    let first = words.next().unwrap_or_default();
    match (words.len(), first.to_str()) {
        (0, Some(line)) => Command::shell(line),
        _ => words.fold(Command::program(first), Command::arg),
    }
}

/// Prints output as it comes; line by line with its machine's name, if there are several.
#[derive(Debug, Default)]
struct Printer {
    printing: Mutex<Printing>,
    /// Ends the command when nobody reads what it prints any more.
    cancel: CancellationToken,
}

#[derive(Debug, Default)]
struct Printing {
    prefix: bool,
    /// Whether the reader of standard output has gone.
    unread: bool,
    /// By machine and whether they are standard error's.
    lines: BTreeMap<(String, bool), Lines>,
}

impl Printer {
    fn lock(&self) -> MutexGuard<'_, Printing> {
        self.printing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints the lines that have no end.
    fn flush(&self) {
        for ((machine, stderr), mut lines) in std::mem::take(&mut self.lock().lines) {
            let stream = if stderr { Stream::Stderr } else { Stream::Stdout };
            // Nobody reads it any more: that is no failure of the command.
            lines.finish(|line| drop(put(&machine, stream, line)));
        }
    }
}

impl Observer for Printer {
    fn event(&self, _: &Event) {}

    fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        // Another machine's output may be what is waited for.
        waiting(|| {
            let mut printing = self.lock();
            match printing.print(origin.machine, stream, bytes) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    if stream == Stream::Stdout {
                        printing.unread = true;
                        self.cancel.cancel();
                    }
                    Ok(())
                }
                printed => printed,
            }
        })
    }
}

impl Printing {
    fn print(&mut self, machine: &str, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        if !self.prefix {
            return pass_on(stream, bytes);
        }
        let key = (machine.to_owned(), stream == Stream::Stderr);
        let lines = self.lines.entry(key).or_insert_with(Lines::complete);
        let mut printed = Ok(());
        lines.push(bytes, |line| {
            if printed.is_ok() {
                printed = put(machine, stream, line);
            }
        });
        printed
    }
}

/// Writes a line to the stream that it came from.
fn put(machine: &str, stream: Stream, line: &[u8]) -> io::Result<()> {
    let mut text = format!("{} | ", one_line(machine)).into_bytes();
    text.extend_from_slice(line);
    text.push(b'\n');
    pass_on(stream, &text)
}
