//! `tsunami exec`: one command on many machines at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tsunami_core::results::json;
use tsunami_core::text::Lines;
use tsunami_core::{
    Command, Error as CoreError, Event, Exit, Host, Observer, Origin, Output, RunStore, Stream, gravest,
};

use super::{Context, Execute, Facts, Known, names};
use crate::backend;
use crate::error::{EXEC_FAILED, EXEC_LOST, Error, UNREAD};
use crate::signals;
use crate::terminal::{self, PassedOn, Style, complain, one_line, pass_on, say, waiting};

/// The number of the form of the JSON.
const SCHEMA: u32 = 1;

/// Run a command on many machines of a run at once
///
/// The machine's facts are in its environment (`$TSUNAMI_NAME`, `$TSUNAMI_IP`, `$TSUNAMI_<GROUP>_IPS`, …). Each line that comes
/// from several machines begins with the name of its own; a single machine's output is as it is. In the end those where it
/// failed are named. Where this ends before the command, the machine ends the command and all that descends from it; where the
/// network to it is cut, it may notice only at its deadline. The commands read nothing: their standard input is empty;
/// `tsunami ssh RUN MACHINE -- COMMAND` passes its own on. The status is the highest of the command's own; 128 and more for a
/// signal, 124 after `--timeout`, 125 for tsunami's own failure and after Ctrl-C, 255 for lost contact.
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
    /// End it where it takes longer, as `90s` or `5m`
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Print each machine's output in one piece when it has ended, in the order of the machines
    #[arg(long)]
    sorted: bool,
    /// Print a JSON object for each line of output and for each machine's end
    #[arg(long, conflicts_with = "sorted")]
    json: bool,
    /// The command: one word is a line for the shell, several are a program and its arguments
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  tsunami exec redis -- uptime                         # on all machines
  tsunami exec redis -g client -- 'echo $HOME | wc -c' # one word: a line for the shell
  tsunami exec redis -g client -m server-0 -- ls -l /tmp";

impl Execute for Exec {
    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let Self { run, groups, machines, timeout, sorted, json, command: words } = self;
        let state = RunStore::standard()?;
        let directory = state.find(&run).map_err(Error::Exec)?;
        let cancel = CancellationToken::new();
        let printing = Mutex::new(Printing::new(&[], json, context));
        let printer = Arc::new(Printer { printing, cancel: cancel.clone() });
        let engine = backend::engine(context.registry, &directory, &state).await?.cancel_on(cancel.clone());
        let engine = if sorted { engine } else { engine.observer(printer.clone()) };
        let going = Arc::new(Mutex::new(BTreeSet::new()));
        let (left, id) = (going.clone(), directory.id());
        let tell_left = move |machines: &str| {
            let ends =
                format!("ends once the connection does there, and by `tsunami down {id}` at the latest");
            say(&format!("the command may still be running on {machines}; it {ends}"));
        };
        let tell = tell_left.clone();
        let give_up = move || {
            let left = left.lock().unwrap_or_else(PoisonError::into_inner);
            named_places(left.iter()).iter().for_each(|machines| tell(machines));
            EXEC_FAILED
        };
        signals::watch(cancel, "stopping the command", say, Arc::new(give_up))?;
        let known = directory.machines().map_err(Error::Exec)?;
        Known(&known).check(&groups, &machines)?;
        let all = groups.is_empty() && machines.is_empty();
        let wanted = |machine: &tsunami_core::Machine| {
            all || groups.contains(&machine.group) || machines.contains(&machine.name())
        };
        let running = engine.attach(&directory, wanted).await.map_err(Error::Exec)?;
        let hosts: Vec<_> = running.cluster().hosts().iter().map(|host| host.stage("exec")).collect();
        let named: Vec<&str> = hosts.iter().map(Host::name).collect();
        *printer.lock() = Printing::new(&named, json, context);
        let mut ends = Ends { of: hosts.len(), ..Ends::default() };
        for machine in known.iter().filter(|machine| wanted(machine)) {
            if !hosts.iter().any(|host| host.name() == machine.name()) {
                let why = format!("{} ({}) is not running any more", machine.name(), machine.id);
                printer.lock().ended(&machine.name(), &End { error: Some(&why), ..End::new(EXEC_LOST) });
                complain(&why);
                ends.status = EXEC_LOST;
            }
        }
        going.lock().unwrap_or_else(PoisonError::into_inner).extend(hosts.iter().map(place));
        let (command, facts) = (command(words).ends_with_connection(), Facts::of(&known));
        let outputs = hosts.iter().map(|host| {
            // Whoever saves something from a machine that is taken back does so here.
            let command = host.command(command.clone()).despite_interruption();
            let command = timeout.into_iter().fold(command, tsunami_core::HostCommand::timeout);
            let facts = facts.of_machine(host.machine()).into_iter();
            facts.fold(command, |command, (name, value)| command.env(name, value)).output()
        });
        let mut outputs = outputs
            .zip(&hosts)
            .map(async |(output, host)| {
                let output = output.await;
                going.lock().unwrap_or_else(PoisonError::into_inner).remove(&place(host));
                (host, output)
            })
            .collect::<FuturesOrdered<_>>();
        while let Some((host, output)) = outputs.next().await {
            if let (true, Ok(output)) = (sorted, &output) {
                waiting(|| printer.print_all(host, output));
            }
            waiting(|| printer.finish(host.name(), &output));
            ends.add(host, output);
        }
        drop(outputs);
        let (unread, unwritten) = {
            let printing = printer.lock();
            (printing.unread, printing.unwritten)
        };
        let lost = named_places(&ends.lost);
        let status = match ends {
            _ if unread => UNREAD,
            ends if unwritten => ends.tell().max(EXEC_FAILED),
            ends => ends.tell(),
        };
        lost.iter().for_each(|machines| tell_left(machines));
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

fn place(host: &Host) -> (String, u32) {
    (host.group().to_owned(), host.index())
}

/// Machines by their groups and indices, if there are any.
fn named_places<'a>(places: impl IntoIterator<Item = &'a (String, u32)>) -> Option<String> {
    let names = names(places.into_iter().map(|(group, index)| (group.as_str(), *index)));
    (!names.is_empty()).then_some(names)
}

/// How it ended on all machines.
#[derive(Debug, Default)]
struct Ends {
    /// On how many it ran.
    of: usize,
    status: u8,
    /// Where it did not succeed, by how it ended.
    failed: BTreeMap<(u8, String), Vec<(String, u32)>>,
    errors: Vec<CoreError>,
    /// Where it was ended because the user wanted that.
    interrupted: Vec<(String, u32)>,
    /// Where contact was lost before it ended.
    lost: Vec<(String, u32)>,
}

impl Ends {
    fn add(&mut self, host: &Host, output: Result<Output, CoreError>) {
        match output {
            Ok(output) => {
                self.status = self.status.max(output.exit.code());
                if !output.exit.success() {
                    let alike = self.failed.entry((output.exit.code(), output.exit.to_string()));
                    alike.or_default().push(place(host));
                }
            }
            Err(CoreError::Cancelled) => self.interrupted.push(place(host)),
            Err(error) => {
                self.lost.extend(matches!(error, CoreError::Lost { .. }).then(|| place(host)));
                self.errors.push(error);
            }
        }
    }

    /// Names those where it failed, and returns the exit status. Of a single machine the status says it all.
    fn tell(mut self) -> u8 {
        for error in &self.errors {
            self.status = self.status.max(Error::exec_status(error));
        }
        if let Some(error) = gravest(std::mem::take(&mut self.errors)) {
            Error::Exec(error).show();
        }
        if let Some(machines) = named_places(&self.interrupted) {
            self.status = self.status.max(EXEC_FAILED);
            say(&format!("interrupted; the command was ended on {machines}"));
        }
        let count: usize = self.failed.values().map(Vec::len).sum();
        if count > 0 && self.of > 1 {
            let mut message = terminal::message();
            let what = format!(": it failed on {count} of {} machines", self.of);
            message.line(&[(Style::Error, "error"), (Style::Plain, &what)]);
            for ((_, exit), machines) in &self.failed {
                let machines = named_places(machines).unwrap_or_default();
                message.line(&[
                    (Style::Plain, "  "),
                    (Style::Bad, exit),
                    (Style::Plain, ": "),
                    (Style::Plain, &machines),
                ]);
            }
            terminal::show(&message);
        }
        self.status
    }
}

/// Prints output as it comes; line by line with its machine's name, if there are several.
#[derive(Debug)]
struct Printer {
    printing: Mutex<Printing>,
    /// Ends the command when nobody reads what it prints any more.
    cancel: CancellationToken,
}

#[derive(Debug)]
struct Printing {
    /// What a line of each machine begins with; empty where there is only one machine.
    names: BTreeMap<String, (Style, String)>,
    json: bool,
    /// Where lines of several machines go: standard output and standard error.
    outs: [PassedOn; 2],
    /// Whether the reader of standard output has gone.
    unread: bool,
    /// Whether some of it could not be written after the command had ended, which nobody else tells of.
    unwritten: bool,
    /// By machine and whether they are standard error's.
    lines: BTreeMap<(String, bool), Lines>,
}

/// A line of output as JSON.
#[derive(Serialize)]
struct Line<'a> {
    schema: u32,
    machine: &'a str,
    stream: Stream,
    line: &'a str,
}

/// A machine's end as JSON.
#[derive(Default, Serialize)]
struct End<'a> {
    schema: u32,
    machine: &'a str,
    /// What it adds to the exit status of all.
    status: u8,
    /// How the command ended there, if it did.
    exit: Option<Exit>,
    /// Why it isn't known how it ended.
    error: Option<&'a str>,
}

impl End<'_> {
    fn new(status: u8) -> Self {
        Self { schema: SCHEMA, status, ..Self::default() }
    }
}

impl Printer {
    fn lock(&self) -> MutexGuard<'_, Printing> {
        self.printing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints what a command on a machine wrote, as much of it as was kept.
    fn print_all(&self, host: &Host, output: &Output) {
        for (stream, bytes) in [(Stream::Stdout, &output.stdout), (Stream::Stderr, &output.stderr)] {
            let printed = self.lock().print(host.name(), stream, bytes);
            // Nobody waits for an error of the command's any more: it has ended.
            let printed = self.unless_gone(stream, printed);
            self.lock().note(host.name(), printed);
        }
        if output.truncated {
            say(&format!("{} printed more than is kept; without `--sorted` it is all shown", host.name()));
        }
    }

    /// Prints what of a machine's output has no end, and how the command ended there.
    fn finish(&self, machine: &str, output: &Result<Output, CoreError>) {
        let printing = &mut *self.lock();
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(mut lines) = printing.lines.remove(&(machine.to_owned(), stream == Stream::Stderr)) {
                let mut printed = Ok(());
                lines.finish(|line| printed = printing.put(machine, stream, line));
                printing.note(machine, printed);
            }
        }
        let printed = printing.flush();
        printing.note(machine, printed);
        let error = output.as_ref().err().map(|error| tsunami_core::ErrorChain(error).to_string());
        let status = match output {
            Ok(output) => output.exit.code(),
            Err(error) => Error::exec_status(error),
        };
        let exit = output.as_ref().ok().map(|output| output.exit);
        printing.ended(machine, &End { exit, error: error.as_deref(), ..End::new(status) });
    }

    /// Ends the command where nobody reads what it prints any more, which is no failure.
    fn unless_gone(&self, stream: Stream, printed: io::Result<()>) -> io::Result<()> {
        match printed {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                if stream == Stream::Stdout {
                    self.lock().unread = true;
                    self.cancel.cancel();
                }
                Ok(())
            }
            printed => printed,
        }
    }
}

impl Observer for Printer {
    fn event(&self, _: &Event) {}

    fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        // Another machine's output may be what is waited for.
        waiting(|| {
            let printed = self.lock().print(origin.machine, stream, bytes);
            self.unless_gone(stream, printed)
        })
    }
}

impl Printing {
    fn new(machines: &[&str], json: bool, context: &Context<'_>) -> Self {
        let width = machines.iter().map(|name| name.len()).max().unwrap_or_default();
        let start = |name: &str| (Style::of_machine(name), format!("{:width$} | ", one_line(name)));
        let several = machines.iter().filter(|_| machines.len() > 1);
        let names = several.map(|name| ((*name).to_owned(), start(name))).collect();
        let outs = [(Stream::Stdout, context.colour_of_stdout), (Stream::Stderr, context.colour)];
        let outs = outs.map(|(stream, colour)| PassedOn::new(stream, colour));
        Self { names, json, outs, unread: false, unwritten: false, lines: BTreeMap::new() }
    }

    fn print(&mut self, machine: &str, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        if self.names.is_empty() && !self.json {
            return self.outs[usize::from(stream == Stream::Stderr)].piece(bytes);
        }
        let key = (machine.to_owned(), stream == Stream::Stderr);
        let mut lines = self.lines.remove(&key).unwrap_or_else(Lines::complete);
        let mut printed = Ok(());
        lines.push(bytes, |line| {
            if printed.is_ok() {
                printed = self.put(machine, stream, line);
            }
        });
        self.lines.insert(key, lines);
        printed.and_then(|()| self.flush())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.outs.iter_mut().try_for_each(PassedOn::flush)
    }

    /// Writes a line to the stream that it came from, once that is [flushed](Self::flush).
    fn put(&mut self, machine: &str, stream: Stream, line: &[u8]) -> io::Result<()> {
        if self.json {
            let line = &String::from_utf8_lossy(line);
            return self.put_json(&Line { schema: SCHEMA, machine, stream, line });
        }
        let (style, start) =
            self.names.get(machine).map_or((Style::Plain, ""), |(style, start)| (*style, start));
        self.outs[usize::from(stream == Stream::Stderr)].line((style, start), Style::Plain, line)
    }

    /// Writes down a machine's end, where somebody wants to read of it.
    fn ended(&mut self, machine: &str, end: &End<'_>) {
        if self.json {
            let printed = self.put_json(&End { machine, ..*end });
            self.note(machine, printed);
        }
    }

    /// Notes and tells, once, that something could not be written. That nobody reads it any more is no failure.
    fn note(&mut self, machine: &str, printed: io::Result<()>) {
        if let Err(error) = printed
            && error.kind() != io::ErrorKind::BrokenPipe
            && !std::mem::replace(&mut self.unwritten, true)
        {
            complain(&format!("cannot write what {machine} printed: {error}"));
        }
    }

    fn put_json(&self, value: &impl Serialize) -> io::Result<()> {
        pass_on(Stream::Stdout, (json(value)? + "\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_end_is_written_down_with_the_status_that_it_adds() {
        let end = End { machine: "a-0", exit: Some(Exit::Signal(9)), ..End::new(137) };
        assert_eq!(
            json(&end).unwrap(),
            r#"{"schema":1,"machine":"a-0","status":137,"exit":{"signal":9},"error":null}"#
        );
    }
}
