//! The small script that every command runs under, and what it says.
//!
//! The multiplexing protocol can't tell a killed command, `exit 255` and a lost connection apart, and closing
//! a channel doesn't end what it started. So a script on the machine puts the command into a process group of
//! its own, says which, and says in the end how it ended.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io;
use std::sync::LazyLock;

use tsunami_core::{
    Command, Exit, PROCESSES_SCRIPT, Program, SessionError, SessionErrorKind, compact_script, names,
};

use crate::attendant::Line;
use crate::limits::{NOTE_LIMIT, PROCESS_LIMIT};
pub(super) use crate::shell::mark;
use crate::shell::{self, one_line};

const SUPERVISOR: &str = include_str!("supervisor.sh");

/// The same, and what says whether the next command of a list may begin.
const SUPERVISOR_OF_SEVERAL: &str = concat!(include_str!("../held.sh"), include_str!("supervisor.sh"));

/// The script that ends a process group; the beginning of its second part says which it does not.
static KILL: LazyLock<String> = LazyLock::new(|| [PROCESSES_SCRIPT, include_str!("kill.sh")].concat());

/// What every mark begins with, so that it is found fast: a byte that texts don't have.
const SEPARATOR: u8 = 0x1e;

/// What our `sh` reads before the lines of the commands: the line that starts the supervisor, and the one that tells it
/// how many they are. Standard output is marked as well, where a command's own ends, if `marks` says so. A single command
/// that is `tied` ends where standard input does.
pub(super) fn opening(
    run: &str,
    mark: &str,
    base: Option<&str>,
    count: usize,
    marks: bool,
    tied: bool,
) -> Result<Vec<u8>, SessionError> {
    let script = shell::supervisor_line(run, base, script_for(count))?;
    Ok([script, conversation(mark, count, marks, tied)?].concat())
}

fn script_for(count: usize) -> &'static str {
    if count > 1 { SUPERVISOR_OF_SEVERAL } else { SUPERVISOR }
}

/// The supervisor's first line. What it reads further is a single command's input; several have none, nor has one whose end
/// that is.
fn conversation(mark: &str, count: usize, marks: bool, tied: bool) -> Result<Vec<u8>, SessionError> {
    let mut line = [b"_mark=".as_slice(), &one_line(mark.as_bytes())?].concat();
    let (input, ending) = match (count, tied) {
        (1, false) => ("<&0", None),
        (1, true) => ("</dev/null 7<&0", Some(one_line(compact_script(&KILL).as_bytes())?)),
        _ => ("</dev/null", None),
    };
    let marks = if marks { "1" } else { "" };
    let all = format!(" _left={count} _marks={marks} _stopped=; exec 4{input}\n");
    push(&mut line, &[b" _tied=", &ending.unwrap_or_default(), all.as_bytes()]);
    Ok(line)
}

/// The line that ends a process group of the run's, and says whether it is gone. Where a supervisor has more commands to
/// begin, it is told first to begin none.
pub(super) fn kill_line(run: &str, group: u32, supervisor: Option<u32>) -> Result<Line, SessionError> {
    let supervisor = supervisor.map(|process| process.to_string()).unwrap_or_default();
    Line::new(&KILL, &[run, &group.to_string(), &supervisor])
}

/// The line that tells the supervisor what to run.
pub(super) fn header(command: &Command, base: Option<&str>) -> Result<Vec<u8>, SessionError> {
    let mut line = Vec::new();
    let directory = match (base, command.cwd.as_deref()) {
        (Some(base), Some(cwd)) if !cwd.starts_with('/') => Cow::Owned(format!("{base}/{cwd}")),
        (base, cwd) => Cow::Borrowed(cwd.or(base).unwrap_or_default()),
    };
    push(&mut line, &[b"_directory=", &one_line(directory.as_bytes())?]);
    push(&mut line, &[b"; export TSUNAMI_RUN_ID"]);
    for (name, value) in &command.env {
        if !names::is_variable_name(name) {
            return Err(SessionError::new(
                SessionErrorKind::Local,
                format!("`{name}` can't name a variable: {}", names::VARIABLE_NAME),
            ));
        }
        push(&mut line, &[b" ", name.as_bytes(), b"=", &shell::word(value)?]);
    }
    let shell = |line: &mut Vec<u8>, script: &str, args: &[std::ffi::OsString]| {
        let script = one_line(script.as_bytes())?;
        line.extend_from_slice(b"; if [ -n \"$BASH_VERSION\" ]; then set -- bash --norc -eo pipefail -c ");
        push(line, &[&script, b" bash; else set -- sh -e -c ", &script, b" sh; fi; set -- \"$@\""]);
        arguments(line, args.iter().map(|arg| arg.as_os_str()))
    };
    match &command.program {
        Program::Shell(script) => shell(&mut line, script, &[])?,
        Program::ShellArgs(script, args) => shell(&mut line, script, args)?,
        Program::Args(args) => {
            line.extend_from_slice(b"; set --");
            arguments(&mut line, args.iter().map(|arg| arg.as_os_str()))?;
        }
        other => {
            let message = format!("this version runs nothing of the kind {other:?}");
            return Err(SessionError::new(SessionErrorKind::Local, message));
        }
    }
    line.push(b'\n');
    Ok(line)
}

fn push(line: &mut Vec<u8>, parts: &[&[u8]]) {
    line.extend(parts.iter().flat_map(|part| part.iter()));
}

fn arguments<'a>(line: &mut Vec<u8>, args: impl Iterator<Item = &'a OsStr>) -> Result<(), SessionError> {
    for arg in args {
        push(line, &[b" ", &shell::word(arg)?]);
    }
    Ok(())
}

/// What the supervisor says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// This process is the supervisor of several commands.
    Supervisor(u32),
    /// The command runs in this process group.
    Started(u32),
    /// The command's directory can't be entered.
    NoDirectory(String),
    /// The command ended; and whether the next one begins here.
    Ended(Exit, bool),
    /// As it was told, the supervisor begins no other.
    Stopped,
    /// What comes now on standard output is not the command's own.
    Over,
}

/// A piece of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// What a command itself wrote.
    Output(Vec<u8>),
    /// What the supervisor says.
    Status(Status),
}

/// Takes the supervisor's notes out of a command's output.
#[derive(Debug, Default)]
pub(super) struct StatusDecoder {
    mark: Vec<u8>,
    /// What may be the beginning of a mark, or a note that isn't complete.
    held: Vec<u8>,
    jobs: String,
}

impl StatusDecoder {
    pub(super) fn new(mark: &str) -> Self {
        Self { mark: mark.as_bytes().to_vec(), held: Vec::new(), jobs: String::new() }
    }

    /// Takes some bytes, and returns the pieces that are complete, in order.
    ///
    /// A note that does not end is an error.
    pub(super) fn take(&mut self, bytes: &[u8]) -> io::Result<Vec<Piece>> {
        let mut data = std::mem::take(&mut self.held);
        data.extend_from_slice(bytes);
        let mut pieces = Vec::new();
        // Where the output begins that is not among the pieces, and where to look on for a mark.
        let (mut output, mut at) = (0, 0);
        while let Some(found) = data[at..].iter().position(|&byte| byte == SEPARATOR) {
            let from = &data[at + found..];
            let end = at + found;
            if from.len() < self.mark.len() && self.mark.starts_with(from) {
                self.held = from.to_vec();
                data.truncate(end);
                break;
            }
            let Some(note) = from.strip_prefix(self.mark.as_slice()) else {
                // Some other use of the byte.
                at = end + 1;
                continue;
            };
            push_output(&mut pieces, &data[output..end]);
            output = end;
            if self.jobs.len() > NOTE_LIMIT {
                return Err(endless_note());
            }
            let Some((status, after)) = self.parse(note) else {
                if from.len() > NOTE_LIMIT {
                    return Err(endless_note());
                }
                self.held = from.to_vec();
                data.truncate(end);
                break;
            };
            at = data.len() - after.len();
            output = at;
            pieces.extend(status.map(Piece::Status));
        }
        if output == 0 && !data.is_empty() {
            pieces.push(Piece::Output(data));
        } else {
            push_output(&mut pieces, &data[output..]);
        }
        Ok(pieces)
    }

    /// What is left when the stream ends: a note cut short is no output either.
    pub(super) fn rest(self) -> Vec<u8> {
        if self.held.starts_with(&self.mark) { Vec::new() } else { self.held }
    }

    /// Parses what follows a mark; `None` if it isn't complete.
    fn parse<'a>(&mut self, note: &'a [u8]) -> Option<(Option<Status>, &'a [u8])> {
        if let Some(jobs) = note.strip_prefix(b"jobs ") {
            let said = [self.mark.as_slice(), b"said\n"].concat();
            let at = jobs.windows(said.len()).position(|window| window == said)?;
            self.jobs.push_str(&String::from_utf8_lossy(&jobs[..at]));
            return Some((None, &jobs[at + said.len()..]));
        }
        let (text, after) = line(note)?;
        match text.as_str() {
            "over" => return Some((Some(Status::Over), after)),
            "stopped" => return Some((Some(Status::Stopped), after)),
            _ => {}
        }
        let parsed = match text.split_once(' ') {
            Some(("self", pid)) => pid.parse().ok().filter(|pid| is_group(*pid)).map(Status::Supervisor),
            Some(("pid", pid)) => pid.parse().ok().filter(|pid| is_group(*pid)).map(Status::Started),
            Some(("end", said)) => {
                let jobs = std::mem::take(&mut self.jobs);
                let parts = said.rsplit_once(' ');
                parts
                    .and_then(|(statuses, then)| Some(Status::Ended(ended(&jobs, statuses)?, then == "next")))
            }
            Some(("no", directory)) => Some(Status::NoDirectory(directory.to_owned())),
            _ => None,
        };
        Some((parsed, after))
    }
}

/// Whether a number may be that of a command's process group. Zero is everybody's own, and one the system's.
fn is_group(number: u32) -> bool {
    (2..=PROCESS_LIMIT).contains(&number)
}

fn endless_note() -> io::Error {
    io::Error::other(format!("a note of the command's supervisor is longer than {} KiB", NOTE_LIMIT >> 10))
}

fn push_output(pieces: &mut Vec<Piece>, bytes: &[u8]) {
    if !bytes.is_empty() {
        pieces.push(Piece::Output(bytes.to_vec()));
    }
}

fn line(bytes: &[u8]) -> Option<(String, &[u8])> {
    let at = bytes.iter().position(|&byte| byte == b'\n')?;
    Some((String::from_utf8_lossy(&bytes[..at]).into_owned(), &bytes[at + 1..]))
}

/// How a command ended, given what `jobs` said (`Done`, `Done(3)`; for a signal its name, or nothing) and what
/// two calls of `wait` returned. The first call is right unless it was interrupted, which only bash does; then
/// the second is right. Where the second knows nothing, it says 127.
fn ended(jobs: &str, statuses: &str) -> Option<Exit> {
    let (first, second) = statuses.split_once(' ')?;
    let (first, second): (u8, u8) = (first.parse().ok()?, second.trim().parse().ok()?);
    if let Some((_, status)) = jobs.split_once("Done(") {
        return status.split_once(')')?.0.parse().ok().map(Exit::Status);
    }
    if jobs.contains("Done") {
        return Some(Exit::Status(0));
    }
    let status = if second == 127 { first } else { second };
    Some(if status > 128 { Exit::Signal(status - 128) } else { Exit::Status(status) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    use std::process::Stdio;
    use std::slice;

    fn take_all(chunks: &[&[u8]]) -> (Vec<Status>, Vec<u8>) {
        let mut notes = StatusDecoder::new(&mark(7));
        let (mut found, mut output) = (Vec::new(), Vec::new());
        for piece in chunks.iter().flat_map(|chunk| notes.take(chunk).unwrap()) {
            match piece {
                Piece::Output(bytes) => output.extend(bytes),
                Piece::Status(status) => found.push(status),
            }
        }
        output.extend(notes.rest());
        (found, output)
    }

    /// What was written on a stream before each of the notes of this kind.
    fn between(stream: &[u8], is_end: impl Fn(&Status) -> bool) -> Vec<String> {
        let mut parts = vec![Vec::new()];
        for piece in StatusDecoder::new(&mark(7)).take(stream).unwrap() {
            match piece {
                Piece::Output(bytes) => parts.last_mut().unwrap().extend(bytes),
                Piece::Status(status) if is_end(&status) => parts.push(Vec::new()),
                Piece::Status(_) => {}
            }
        }
        parts.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect()
    }

    #[test]
    fn notes_are_found_however_the_stream_is_cut() {
        let mark = mark(7);
        let stream = format!(
            "{mark}pid 12\nwarning \x1e: no newline{mark}jobs [1]+  Done(137)  x\n{mark}said\n{mark}end 145 137 last\n"
        );
        let expected = (
            vec![Status::Started(12), Status::Ended(Exit::Status(137), false)],
            b"warning \x1e: no newline".to_vec(),
        );
        for size in 1..stream.len() {
            let chunks: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
            assert_eq!(take_all(&chunks), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn only_what_may_be_a_commands_group_is_one() {
        for (number, is_one) in
            [("0", false), ("1", false), ("-1", false), ("2", true), ("4194304", true), ("4194305", false)]
        {
            let note = format!("{}pid {number}\n", mark(7));
            assert_eq!(!take_all(&[note.as_bytes()]).0.is_empty(), is_one, "{number}");
        }
    }

    #[test]
    fn a_note_without_an_end_is_an_error() {
        for kind in ["pid ", "jobs ", "no "] {
            let mut notes = StatusDecoder::new(&mark(7));
            notes.take(format!("{}{kind}", mark(7)).as_bytes()).unwrap();
            let flood = (0..=NOTE_LIMIT / 4096).any(|_| notes.take(&[b'1'; 4096]).is_err());
            assert!(flood, "{kind}");
        }
        // Nor do many.
        let mut notes = StatusDecoder::new(&mark(7));
        let jobs = format!("{0}jobs {1}{0}said\n", mark(7), "x".repeat(4096));
        assert!((0..=NOTE_LIMIT / 4096 + 1).any(|_| notes.take(jobs.as_bytes()).is_err()));
    }

    /// Runs the script that ends a group, and returns what it says.
    fn kill(shell: &[&str], run: &str, group: u32, supervisor: &str) -> String {
        let mut kill = std::process::Command::new(shell[0]);
        kill.args(&shell[1..]).args(["-c", &KILL, "sh", run, &group.to_string(), supervisor]);
        String::from_utf8(kill.output().unwrap().stdout).unwrap().trim().to_owned()
    }

    /// What a machine that lies is made of.
    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let words = [
            &mark(7),
            &mark(8),
            "pid ",
            "jobs ",
            "said\n",
            "end ",
            "self ",
            "stopped\n",
            " next\n",
            "no ",
            "Done(",
            ")",
            "\n",
            " ",
            "12",
            "1",
        ];
        let word = proptest::sample::select(words.map(|word| word.as_bytes().to_vec()).to_vec());
        let piece = prop_oneof![4 => word, 1 => proptest::collection::vec(any::<u8>(), 0..20)];
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(crate::fuzz::cases(256))]

        #[test]
        fn whatever_a_machine_says_is_read_the_same_however_it_is_cut(said in pieces(), size in 1_usize..64) {
            let whole = take_all(&[&said]);
            prop_assert_eq!(&take_all(&said.chunks(size).collect::<Vec<_>>()), &whole);
            let groups = whole.0.iter().filter_map(|note| match note {
                Status::Started(group) => Some(*group),
                _ => None,
            });
            prop_assert!(groups.into_iter().all(is_group));
            prop_assert!(!String::from_utf8_lossy(&whole.1).contains(&mark(7)), "a note is no output");
        }
    }

    #[test]
    fn only_a_group_of_the_runs_own_is_ended() {
        use std::os::unix::process::CommandExt;
        for shell in shells() {
            let sleep = |mark: Option<&str>| {
                let mut sleep = std::process::Command::new("sleep");
                sleep.arg("1000").process_group(0).env_remove("TSUNAMI_RUN_ID");
                sleep.envs(mark.map(|run| ("TSUNAMI_RUN_ID", run))).spawn().unwrap()
            };
            for (mark, said) in [(None, "left"), (Some("another"), "left"), (Some("mine"), "gone")] {
                let mut sleep = sleep(mark);
                assert_eq!(kill(&shell, "mine", sleep.id(), ""), said, "{shell:?}, marked {mark:?}");
                assert_eq!(sleep.try_wait().unwrap().is_some(), said == "gone", "{shell:?}, marked {mark:?}");
                sleep.kill().unwrap();
                sleep.wait().unwrap();
            }
        }
    }

    /// Kills all that is in a command's group, which may have ended itself.
    fn end_group(command: &std::process::Child) {
        let group = rustix::process::Pid::from_child(command);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    }

    #[test]
    fn what_descends_from_a_group_ends_with_it_and_nothing_above() {
        use std::os::unix::process::CommandExt;
        for shell in shells() {
            let start = |script: &str, run: &str| {
                let mut command = std::process::Command::new("sh");
                command.args(["-c", script]).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
                command.env("TSUNAMI_RUN_ID", run).spawn().unwrap()
            };
            let script =
                "env -u TSUNAMI_RUN_ID setsid sh -c 'trap \"\" TERM; echo; sleep 1000 & wait' & wait";
            let mut command = start(script, "mine");
            let mut stdout = command.stdout.take().unwrap();
            io::Read::read_exact(&mut stdout, &mut [0]).unwrap();
            assert_eq!(kill(&shell, "mine", command.id(), ""), "gone", "{shell:?}");
            // All that held it have ended.
            assert_eq!(io::Read::read(&mut stdout, &mut [0]).unwrap(), 0, "{shell:?}");
            command.wait().unwrap();
            // One that has ended by itself is told of, whatever it has left.
            let mut command = start("sleep 1000 & echo", "mine");
            io::Read::read_exact(&mut command.stdout.take().unwrap(), &mut [0]).unwrap();
            command.wait().unwrap();
            assert_eq!(kill(&shell, "mine", command.id(), ""), "over", "{shell:?}");
            end_group(&command);
            // Nobody has ended what a look at all processes did not find.
            let mut command = start("echo; sleep 1000", "mine");
            io::Read::read_exact(&mut command.stdout.take().unwrap(), &mut [0]).unwrap();
            let blind = format!("cat() {{ :; }}\n{}", *KILL);
            let mut ending = std::process::Command::new(shell[0]);
            ending.args(&shell[1..]).args(["-c", &blind, "sh", "mine", &command.id().to_string()]);
            assert_eq!(ending.output().unwrap().stdout, b"left\n", "{shell:?}");
            end_group(&command);
            command.wait().unwrap();
            // A group of somebody else's, with a process of the run's below.
            let mut theirs =
                start("TSUNAMI_RUN_ID=mine setsid sh -c 'echo; exec sleep 1000' & wait", "theirs");
            let mut stdout = theirs.stdout.take().unwrap();
            io::Read::read_exact(&mut stdout, &mut [0]).unwrap();
            assert_eq!(kill(&shell, "mine", theirs.id(), ""), "left", "{shell:?}");
            assert!(theirs.try_wait().unwrap().is_none(), "{shell:?}");
            assert_eq!(kill(&shell, "theirs", theirs.id(), ""), "gone", "{shell:?}");
            theirs.wait().unwrap();
        }
    }

    #[test]
    fn somebody_elses_mark_is_output() {
        let other = format!("{}pid 1\n", mark(8));
        assert_eq!(take_all(&[other.as_bytes()]), (vec![], other.clone().into_bytes()));
    }

    /// Every shell that may be `sh` somewhere, on this computer.
    fn shells() -> Vec<Vec<&'static str>> {
        let known = [vec!["bash", "--posix"], vec!["dash"], vec!["busybox", "sh"]];
        let runs = |shell: &Vec<&str>| std::process::Command::new(shell[0]).arg("--help").output().is_ok();
        known.into_iter().filter(runs).collect()
    }

    /// Has a supervisor in this shell run commands; returns what it and they wrote.
    ///
    /// A list goes no further in doubt, as where an ordinary user can't look into what somebody else has started on this
    /// computer meanwhile and left to process 1, or what descends from this process: then it is tried again.
    fn supervise_all(shell: &[&str], commands: &[Command]) -> (Vec<u8>, Vec<u8>) {
        let (mut stdout, mut stderr) = supervise_once(shell, commands);
        for _ in 0..50 {
            let exits = exits(&stderr);
            if exits.last() != Some(&(Exit::Status(0), false)) || exits.len() >= commands.len() {
                break;
            }
            (stdout, stderr) = supervise_once(shell, commands);
        }
        (stdout, stderr)
    }

    fn supervise_once(shell: &[&str], commands: &[Command]) -> (Vec<u8>, Vec<u8>) {
        let headers = commands.iter().flat_map(|command| header(command, None).unwrap());
        let lines: Vec<u8> =
            conversation(&mark(7), commands.len(), true, false).unwrap().into_iter().chain(headers).collect();
        let mut child = supervisor(shell, commands.len()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&lines).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.stdout, output.stderr)
    }

    fn supervisor(shell: &[&str], count: usize) -> std::process::Command {
        let mut child = std::process::Command::new(shell[0]);
        child.args(&shell[1..]).args(["-c", script_for(count)]).env("TSUNAMI_RUN_ID", "mine");
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        child
    }

    #[test]
    fn a_tied_command_ends_as_any_other_and_where_its_input_does_with_all_that_descends_from_it() {
        let deaf = "trap '' TERM; echo up; sleep 30; echo outlived";
        let away = format!("setsid env -u TSUNAMI_RUN_ID sh -c \"{deaf}\" & wait");
        let ends_well = |shell: &[&str]| {
            for (line, is_cut, exit) in [
                ("echo up; sleep 0.1; exit 3", false, Exit::Status(3)),
                ("echo up; kill -9 $$", false, Exit::Signal(9)),
                ("echo up; read -r line || sleep 1000 & wait", true, Exit::Signal(15)),
                (&away, true, Exit::Signal(15)),
            ] {
                let mut child = supervisor(shell, 1).spawn().unwrap();
                let mut input = child.stdin.take();
                let header = header(&Command::shell(line), None).unwrap();
                let lines = [conversation(&mark(7), 1, true, true).unwrap(), header].concat();
                input.as_mut().unwrap().write_all(&lines).unwrap();
                io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
                input = input.filter(|_| !is_cut);
                let said = child.wait_with_output().unwrap();
                assert_eq!(exits(&said.stderr), [(exit, false)], "{shell:?}: {line}");
                assert_eq!(between(&said.stdout, is_over), ["", ""], "{shell:?}: {line}");
                drop(input);
            }
        };
        std::thread::scope(|scope| {
            for shell in shells() {
                scope.spawn(move || ends_well(&shell));
            }
        });
    }

    fn runs(process: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// How many of a process's children run.
    fn children(parent: u32) -> usize {
        let all = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
        all.split_whitespace().filter(|child| runs(child)).count()
    }

    #[test]
    fn a_guard_ends_nothing_once_the_command_has_ended_though_nobody_reads_that() {
        for shell in shells() {
            let place = tempfile::tempdir().unwrap();
            let mut child = supervisor(&shell, 1).current_dir(place.path()).spawn().unwrap();
            let leave = "sleep 1000 >/dev/null 2>&1 & echo $! >left";
            let line = format!("until [ -e go ]; do sleep 0.01; done; {leave}; exit 3");
            let header = header(&Command::shell(&line), None).unwrap();
            let lines = [conversation(&mark(7), 1, true, true).unwrap(), header].concat();
            let mut input = child.stdin.take().unwrap();
            input.write_all(&lines).unwrap();
            let wait_for = |count| {
                let is_so = |_: &u32| {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    children(child.id()) == count
                };
                (0..3000).find(is_so).unwrap_or_else(|| panic!("{shell:?}: never {count} children"));
            };
            wait_for(2);
            let stderr = format!("/proc/self/fd/{}", child.stderr.as_ref().unwrap().as_raw_fd());
            let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
            let mut pipe = std::fs::OpenOptions::new().write(true).custom_flags(flags).open(stderr).unwrap();
            while pipe.write(&[b'x'; 4096]).is_ok() {}
            drop(pipe);
            std::fs::write(place.path().join("go"), "").unwrap();
            wait_for(1);
            drop(input);
            wait_for(0);
            let left = std::fs::read_to_string(place.path().join("left")).unwrap();
            assert!(runs(left.trim()), "{shell:?}: the guard has ended what the command left");
            std::process::Command::new("kill").arg(left.trim()).status().unwrap();
            let said = child.wait_with_output().unwrap();
            assert_eq!(exits(&said.stderr), [(Exit::Status(3), false)], "{shell:?}");
        }
    }

    fn supervise(shell: &[&str], command: &Command) -> (Vec<Status>, Vec<u8>) {
        let (stdout, stderr) = supervise_all(shell, slice::from_ref(command));
        (take_all(&[&stderr]).0, take_all(&[&stdout]).1)
    }

    fn is_over(status: &Status) -> bool {
        *status == Status::Over
    }

    fn exits(stderr: &[u8]) -> Vec<(Exit, bool)> {
        let exits = take_all(&[stderr]).0.into_iter().filter_map(|status| match status {
            Status::Ended(exit, goes_on) => Some((exit, goes_on)),
            _ => None,
        });
        exits.collect()
    }

    #[test]
    fn every_shell_runs_a_list_until_one_fails() {
        for shell in shells() {
            for (line, exit) in [
                ("exit 3", Exit::Status(3)),
                ("exit 255", Exit::Status(255)),
                ("exit 137", Exit::Status(137)),
                ("sleep 0.1; kill -9 $$", Exit::Signal(9)),
                ("printf last; exec sh -c 'exit 200'", Exit::Status(200)),
            ] {
                let commands =
                    ["echo one; echo uno >&2", "printf two; sleep 0.1; exit", line, "touch /unreached"]
                        .map(Command::shell);
                let (stdout, stderr) = supervise_all(&shell, &commands);
                let last = if line.contains("printf") { "last" } else { "" };
                assert_eq!(between(&stdout, is_over), ["one\n", "two", last, ""], "{shell:?}: {line}");
                let errors = between(&stderr, |status| matches!(status, Status::Ended(..)));
                assert_eq!(errors[..2], ["uno\n", ""], "{shell:?}: {line}");
                let expected = [(Exit::Status(0), true), (Exit::Status(0), true), (exit, false)];
                assert_eq!(exits(&stderr), expected, "{shell:?}: {line}");
            }
            let (stdout, stderr) = supervise_all(&shell, &["", "", ""].map(Command::shell));
            assert_eq!(between(&stdout, is_over).len(), 4, "{shell:?}");
            assert_eq!(exits(&stderr), [true, true, false].map(|goes_on| (Exit::Status(0), goes_on)));
        }
    }

    #[test]
    fn nothing_of_one_command_reaches_the_next() {
        let show = "printf '%s|' \"$ODD\" \"$LC_ALL\" \"$(umask)\" \"$PWD\" \"$#\"; cat; trap";
        for shell in shells() {
            let plain = Command::shell(show);
            let changed = plain.clone().env("ODD", "it's\n").env("LC_ALL", "C.UTF-8").cwd("/usr").arg("a");
            let changing =
                Command::shell("umask 0; cd /; exec >&-; trap '' TERM HUP; kill -CHLD $PPID; sleep 0.1");
            let commands = [plain.clone(), changed.clone(), changing, plain, changed];
            let (stdout, stderr) = supervise_all(&shell, &commands);
            let said = between(&stdout, is_over);
            assert_eq!((&said[0], &said[1]), (&said[3], &said[4]), "{shell:?}");
            assert!(said[1].starts_with("it's\n|C.UTF-8|") && said[1].contains("|/usr|1|"), "{said:?}");
            assert!(said[0].starts_with("||") && said[0].contains("|0|"), "{shell:?}: {said:?}");
            assert_eq!(exits(&stderr).len(), 5, "{shell:?}: {}", String::from_utf8_lossy(&stderr));
        }
    }

    #[test]
    fn a_list_goes_no_further_where_something_may_still_speak() {
        for shell in shells() {
            for left in [
                "sleep 0.5 &",
                "sleep 0.5 >/dev/null 2>&1 &",
                "setsid sleep 0.5 & sleep 0.1",
                "setsid sh -c 'sleep 0.5; exit' >/dev/null 5>&2 2>&1 & sleep 0.1",
            ] {
                let commands = [left, "echo unreached"].map(Command::shell);
                let (_, stderr) = supervise_once(&shell, &commands);
                assert_eq!(exits(&stderr), [(Exit::Status(0), false)], "{shell:?}: {left}");
            }
            let quiet = "setsid sleep 0.5 </dev/null >/dev/null 2>&1 & sleep 0.1";
            let (stdout, _) = supervise_all(&shell, &[quiet, "echo reached"].map(Command::shell));
            assert_eq!(between(&stdout, is_over), ["", "reached\n", ""], "{shell:?}");
        }
    }

    /// Whether an ordinary user can look into it or not.
    #[test]
    fn a_list_goes_on_beside_what_strangers_start_and_not_beside_what_a_command_has_hidden() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let sleep = directory.path().join("sleep");
        std::fs::copy("/bin/sleep", &sleep).unwrap();
        // Nobody can look into a process of a program that they can't read.
        for (path, mode) in [(sleep.as_path(), 0o111), (directory.path(), 0o755)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        // They end by themselves where the test fails.
        let mut starts = std::process::Command::new("sh");
        starts.args(["-c", "while kill -0 $PPID; do sleep 0.02; done"]);
        let mut starts = starts.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let is_root = rustix::process::geteuid().is_root();
        let user: &[_] = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        for shell in shells() {
            // What the other tests start descends from this process, which must not be above the supervisor.
            let shell = [&["setsid", "--fork"][..], if is_root { user } else { &[] }, &shell].concat();
            let commands = ["sleep 0.1"; 4].map(Command::shell);
            let (_, stderr) = supervise_all(&shell, &commands);
            assert_eq!(exits(&stderr).len(), 4, "{shell:?}");
            let hides = Command::shell("setsid \"$SLEEP\" 0.5 </dev/null >/dev/null 2>&1 & sleep 0.1");
            let commands = [hides.env("SLEEP", &sleep), Command::shell("echo unreached")];
            let (_, stderr) = supervise_once(&shell, &commands);
            assert_eq!(exits(&stderr), [(Exit::Status(0), false)], "{shell:?}");
        }
        starts.kill().unwrap();
        starts.wait().unwrap();
    }

    #[test]
    fn a_supervisor_that_is_told_to_begins_no_other_command() {
        for shell in shells() {
            let deaf = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done";
            let mut child = supervisor(&shell, 2).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(&conversation(&mark(7), 2, true, false).unwrap()).unwrap();
            for line in [deaf, "echo unreached"] {
                stdin.write_all(&header(&Command::shell(line), None).unwrap()).unwrap();
            }
            let (mut stderr, mut notes) = (child.stderr.take().unwrap(), StatusDecoder::new(&mark(7)));
            let (mut found, mut chunk) = (Vec::new(), [0; 4096]);
            while !found.iter().any(|piece| matches!(piece, Piece::Status(Status::Started(_)))) {
                let count = io::Read::read(&mut stderr, &mut chunk).unwrap();
                found.extend(notes.take(&chunk[..count]).unwrap());
            }
            io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
            let [Piece::Status(Status::Supervisor(supervisor)), Piece::Status(Status::Started(group))] =
                found[..]
            else {
                panic!("{shell:?}: {found:?}")
            };
            assert_eq!(supervisor, child.id());
            let supervisor = supervisor.to_string();
            assert_eq!(kill(&shell, "mine", group, &supervisor), "gone", "{shell:?}");
            let mut rest = Vec::new();
            io::Read::read_to_end(&mut stderr, &mut rest).unwrap();
            let mut said = notes.take(&rest).unwrap();
            // What the command's own shell says of its child is output.
            said.retain(|piece| matches!(piece, Piece::Status(_)));
            let expected = [Status::Ended(Exit::Status(0), false), Status::Stopped].map(Piece::Status);
            assert_eq!(said, expected, "{shell:?}");
            child.wait().unwrap();
        }
    }

    #[test]
    fn every_shell_tells_a_status_from_a_signal() {
        for shell in shells() {
            let cases = [
                ("exit 0", Exit::Status(0)),
                ("exit 3", Exit::Status(3)),
                ("exit 127", Exit::Status(127)),
                ("exit 137", Exit::Status(137)),
                ("exit 145", Exit::Status(145)),
                ("", Exit::Status(0)),
                ("sleep 0.1; exit 255", Exit::Status(255)),
                ("kill -9 $$", Exit::Signal(9)),
                ("sleep 0.1; kill -TERM $$", Exit::Signal(15)),
                ("kill -CHLD $PPID; sleep 0.3; exit 200", Exit::Status(200)),
                ("kill -CHLD $PPID; sleep 0.3; kill -9 $$", Exit::Signal(9)),
            ];
            // Several times: how fast the command ends beside the supervisor makes a difference.
            for (line, exit) in cases.into_iter().cycle().take(4 * cases.len()) {
                let (notes, _) = supervise(&shell, &Command::shell(line));
                assert!(matches!(notes[0], Status::Started(_)), "{shell:?}: {line}: {notes:?}");
                assert_eq!(notes[1], Status::Ended(exit, false), "{shell:?}: {line}");
            }
        }
    }

    #[test]
    fn a_status_is_read_whatever_language_the_shell_speaks_and_the_command_keeps_its_own() {
        for shell in shells() {
            let command = Command::shell("printf %s \"$LC_ALL$LANGUAGE\"; sleep 0.1; exit 200");
            // One of these is there, on a computer that has any.
            for locale in ["de_DE.UTF-8", "fr_FR.UTF-8", "es_ES.UTF-8", "ja_JP.UTF-8"] {
                let command = command.clone().env("LC_ALL", locale).env("LANGUAGE", "xx");
                let (notes, stdout) = supervise(&shell, &command);
                assert_eq!(
                    notes.last(),
                    Some(&Status::Ended(Exit::Status(200), false)),
                    "{shell:?} {locale}"
                );
                assert_eq!(String::from_utf8_lossy(&stdout), format!("{locale}xx"), "{shell:?}");
            }
        }
    }

    #[test]
    fn what_is_left_in_the_background_may_write_on_when_nobody_reads() {
        use std::os::unix::process::CommandExt;
        for shell in shells() {
            let file = tempfile::NamedTempFile::new().unwrap();
            let beat =
                "nohup sh -c 'while echo beat && echo beat >&2; do echo >>\"$FILE\"; sleep 0.1; done' &";
            let command = Command::shell(beat).env("FILE", file.path());
            let lines =
                [conversation(&mark(7), 1, true, false).unwrap(), header(&command, None).unwrap()].concat();
            let mut child = supervisor(&shell, 1).process_group(0).spawn().unwrap();
            child.stdin.take().unwrap().write_all(&lines).unwrap();
            let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
            let (mut notes, mut found, mut chunk) = (StatusDecoder::new(&mark(7)), Vec::new(), [0; 4096]);
            while !found.iter().any(|piece| matches!(piece, Piece::Status(Status::Ended(..)))) {
                let count = io::Read::read(&mut stderr, &mut chunk).unwrap();
                let pieces = notes.take(&chunk[..count]).unwrap();
                found.extend(pieces.into_iter().filter(|piece| matches!(piece, Piece::Status(_))));
            }
            let mut outputs = StatusDecoder::new(&mark(7));
            let mut over = Vec::new();
            while over.is_empty() {
                let count = io::Read::read(&mut stdout, &mut chunk).unwrap();
                let pieces = outputs.take(&chunk[..count]).unwrap();
                over.extend(pieces.into_iter().filter(|piece| matches!(piece, Piece::Status(_))));
            }
            assert_eq!(over, [Piece::Status(Status::Over)], "{shell:?}");
            drop((stdout, stderr));
            let length = || file.as_file().metadata().unwrap().len();
            // What was still on its way when nobody read any more is one turn at most.
            let enough = length() + 3;
            let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while length() < enough {
                assert!(std::time::Instant::now() < until, "{shell:?}: it has ended");
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            let Piece::Status(Status::Started(group)) = found[0] else { panic!("{found:?}") };
            let group = rustix::process::Pid::from_raw(group.cast_signed()).unwrap();
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn every_shell_passes_arguments_and_variables_unharmed() {
        let odd = "it's\n\"odd\" $HOME \\n `x` \\";
        for shell in shells() {
            let command =
                Command::program("sh").arg("-c").arg("printf '%s|%s' \"$1\" \"$ODD\"").arg("sh").arg(odd);
            let (_, stdout) = supervise(&shell, &command.env("ODD", odd));
            assert_eq!(String::from_utf8_lossy(&stdout), format!("{odd}|{odd}"), "{shell:?}");
        }
    }

    #[test]
    fn what_no_shell_can_take_is_refused() {
        assert!(header(&Command::program("a\0b"), None).is_err());
        assert!(header(&Command::program("a").env("A B", "x"), None).is_err());
        assert!(header(&Command::program("a").env("", "x"), None).is_err());
    }
}
