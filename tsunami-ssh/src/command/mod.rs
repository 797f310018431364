//! Commands on a machine: each under a supervisor that says how it ended, and each ended when nobody wants it any more.

mod conversation;
mod pump;
mod supervisor;

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, PipeWriter, Write};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::pipe::fcntl_setpipe_size;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tsunami_core::limits::SCRIPT_TIMEOUT;
use tsunami_core::{
    Command, Exit, Machine, OutputSink, SequenceObserver, SessionError, SessionErrorKind, Stdin,
};

use crate::attendant::{Answer, Attendant, Line, PIPE_BYTES};
use crate::files::{FurtherChannel, Moved, UploadArchive, pack_digested};
use crate::limits::BULK_BYTES;
use crate::pool::{ANSWER_TIMEOUT, Parked, Pool, Shell};
use conversation::Outputs;
use pump::{Ended, Pump};

/// How long ending a process group may take: five seconds of grace, three after the kill, and the way there.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// After a command has ended and all that it wrote is here, others may hold its outputs open. What comes within this
/// time is still read, and no more, however much flows.
const TRAILING_OUTPUT_TIMEOUT: Duration = Duration::from_millis(200);

/// The lines of the commands of one conversation: what a pipe holds beside the supervisor itself.
const HEADERS_BYTES: usize = 32 << 10;

/// Runs commands on one machine, each on a channel of the pool's.
#[derive(Debug)]
pub(crate) struct Commands {
    pool: Pool,
    machine: Machine,
    /// Whether the machine's login shell is known to start our `sh`.
    greeted: AtomicBool,
    /// What goes on on the machine, commands that are being ended included.
    tasks: TaskTracker,
    nonce: AtomicU32,
    /// What its transfers have moved.
    moved: Moved,
}

/// Somebody who takes a command's standard output from a pipe, and says when that is done.
#[derive(Debug)]
pub(crate) struct StdoutConsumer {
    pub(crate) pipe: PipeWriter,
    pub(crate) done: oneshot::Receiver<()>,
}

impl Commands {
    /// Commands on a machine whose login is known to run our `sh`, or not yet.
    pub(crate) fn new(pool: Pool, machine: &Machine, greeted: bool) -> Self {
        Self {
            pool,
            machine: machine.clone(),
            greeted: AtomicBool::new(greeted),
            tasks: TaskTracker::new(),
            nonce: AtomicU32::new(0),
            moved: Moved::default(),
        }
    }

    pub(crate) fn moved(&self) -> &Moved {
        &self.moved
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Makes sure that the machine's login runs our `sh`. Until it is known to, the machine is not given a word.
    pub(crate) async fn meet(&self) -> Result<(), SessionError> {
        if !self.greeted.load(Ordering::Relaxed) {
            let attendant = self.attendant().await?;
            self.pool.give_back(attendant);
        }
        Ok(())
    }

    /// Gives up all channels. Returns a connection for who comes next to the machine, unless somebody still uses it.
    pub(crate) async fn close(&self) -> Option<Parked> {
        self.tasks.close();
        self.tasks.wait().await;
        self.pool.close().await.filter(|_| self.greeted.load(Ordering::Relaxed))
    }

    /// Runs a command.
    pub(crate) async fn run(
        self: &Arc<Self>,
        command: &Command,
        input: Input,
        stdout: Option<StdoutConsumer>,
        output: Arc<dyn OutputSink>,
        cancel: &CancellationToken,
    ) -> Result<Exit, SessionError> {
        let headers = vec![supervisor::header(command, self.base())?];
        let alone = Arc::new(Alone(output));
        let tied = command.ends_with_connection && matches!(input, Input::Given(Stdin::Null));
        self.converse(headers, (input, tied), stdout, (alone, 0), cancel).await.map(|ended| ended.exit)
    }

    /// Runs commands one after another until one does not succeed, as many as possible in one conversation.
    pub(crate) async fn run_all(
        self: &Arc<Self>,
        commands: &[Command],
        observer: Arc<dyn SequenceObserver>,
        cancel: &CancellationToken,
    ) -> Result<(), SessionError> {
        let mut index = 0;
        while index < commands.len() {
            let together = self.together(&commands[index..]);
            let (headers, input) = together.inspect_err(|_| drop(observer.begins(index)))?;
            let ended =
                self.converse(headers, (input, false), None, (observer.clone(), index), cancel).await?;
            observer.ended(ended.index, ended.exit);
            if !ended.exit.success() {
                break;
            }
            index = ended.index + 1;
        }
        Ok(())
    }

    /// The first of these commands, and those after it that may go in the same conversation: that read nothing, and
    /// whose lines a pipe holds.
    fn together(&self, commands: &[Command]) -> Result<(Vec<Vec<u8>>, Input), SessionError> {
        let (mut headers, mut bytes) = (Vec::new(), 0);
        for command in commands {
            let reads = !matches!(command.stdin, Stdin::Null);
            if reads && !headers.is_empty() {
                break;
            }
            let header = match supervisor::header(command, self.base()) {
                Ok(header) => header,
                // Its turn comes, and then it fails.
                Err(_) if !headers.is_empty() => break,
                Err(error) => return Err(error),
            };
            bytes += header.len();
            if reads {
                return Ok((vec![header], Input::Given(command.stdin.clone())));
            }
            if !headers.is_empty() && bytes > HEADERS_BYTES {
                break;
            }
            headers.push(header);
        }
        Ok((headers, Input::Given(Stdin::Null)))
    }

    /// The session's directory, relative to the login's own if it is not absolute; `None` is that.
    pub(crate) fn base(&self) -> Option<&str> {
        self.machine.login.directory.as_deref()
    }

    /// Runs commands in a task of its own, which nobody drops, so that they are ended in good order when the caller goes
    /// away; a single one that is tied also ends where its connection does. The observer's first has the place `index`.
    /// Returns which was the last that ran; those before it succeeded.
    async fn converse(
        self: &Arc<Self>,
        headers: Vec<Vec<u8>>,
        (input, tied): (Input, bool),
        stdout: Option<StdoutConsumer>,
        (observer, index): (Arc<dyn SequenceObserver>, usize),
        cancel: &CancellationToken,
    ) -> Result<Ended, SessionError> {
        let stop = cancel.child_token();
        let _when_dropped = stop.clone().drop_guard();
        let nonce = RandomState::new().hash_one(self.nonce.fetch_add(1, Ordering::Relaxed));
        let mark = supervisor::mark(nonce);
        let commands = self.clone();
        let task = Supervised { commands, mark, headers, input, tied, stdout, observer, index, stop };
        match self.tasks.spawn(task.run()).await.map_err(JoinError::try_into_panic) {
            Ok(result) => result,
            Err(Ok(panic)) => resume_unwind(panic),
            Err(Err(_)) => {
                Err(SessionError::new(SessionErrorKind::CancelledUnconfirmed, "the program is ending"))
            }
        }
    }

    /// Runs a script that is about the machine, outside of the run's directory and unmarked as the run's. Returns what
    /// it printed.
    pub(crate) async fn administer(&self, script: &str, args: &[String]) -> Result<String, SessionError> {
        let answered = timeout(SCRIPT_TIMEOUT, self.answer_to(Line::new(script, args)?));
        let seconds = SCRIPT_TIMEOUT.as_secs();
        let silent = |_| SessionError::new(SessionErrorKind::Remote, format!("no answer within {seconds} s"));
        answered.await.map_err(silent)?
    }

    async fn answer_to(&self, line: Line) -> Result<String, SessionError> {
        let kept = match self.pool.take_attendant() {
            Some(kept) => Some(self.asked(kept, &line).await?),
            None => None,
        };
        let answer = match kept {
            Some(answer) if answer.has_begun() => answer,
            // It is busy, or the machine has lost it.
            _ => self.asked(self.attendant().await?, &line).await?,
        };
        match answer {
            Answer::Ended { succeeded: true, stdout, .. } => {
                Ok(String::from_utf8_lossy(&stdout).into_owned())
            }
            Answer::Ended { stderr, .. } => Err(failed(&stderr)),
            Answer::Cut { stderr, slot, .. } => {
                self.pool.check_connection(&slot).await?;
                Err(failed(&stderr))
            }
        }
    }

    /// An attendant to a login that is known to run our `sh`.
    async fn attendant(&self) -> Result<Attendant, SessionError> {
        let mut shell = self.pool.shell(None).await?;
        let mut outputs = Outputs::of(&mut shell.channel);
        self.greet(&mut outputs).await?;
        outputs.leave_to(&mut shell.channel);
        Ok(Attendant::new(shell))
    }

    /// Has an attendant run a script, and keeps it for the next one if it can run another.
    async fn asked(&self, attendant: Attendant, line: &Line) -> Result<Answer, SessionError> {
        let (answer, attendant) = attendant.run(line).await?;
        if let Some(attendant) = attendant {
            self.pool.give_back(attendant);
        }
        Ok(answer)
    }

    /// Makes sure, once, that what reads a channel's standard input is our `sh`.
    async fn greet(&self, outputs: &mut Outputs) -> Result<(), SessionError> {
        if self.greeted.load(Ordering::Relaxed) {
            return Ok(());
        }
        if outputs.greeted(ANSWER_TIMEOUT).await? {
            self.greeted.store(true, Ordering::Relaxed);
            return Ok(());
        }
        self.pool.check().await?;
        Err(no_shell(&self.machine, outputs.words().trim()))
    }

    /// Ends a process group that a command of the run has made. The supervisor of a list begins no other command then.
    async fn end(&self, group: u32, supervisor: Option<u32>) -> Killed {
        let ending = async {
            let line = supervisor::kill_line(self.machine.run.as_str(), group, supervisor).ok()?;
            if let Some(kept) = self.pool.take_attendant()
                && let Some(killed) = self.told_to_end(kept, &line).await
            {
                return Some(killed);
            }
            // Another command is being ended by it, it runs a script, or the machine has lost it.
            self.told_to_end(Attendant::new(self.pool.shell_to_end().await.ok()?), &line).await
        };
        let connecting = if self.pool.has_one_channel() { ANSWER_TIMEOUT } else { Duration::ZERO };
        timeout(END_TIMEOUT + connecting, ending).await.ok().flatten().unwrap_or(Killed::Left)
    }

    /// Has an attendant end a process group; `None` if it says nothing of it.
    async fn told_to_end(&self, by: Attendant, line: &Line) -> Option<Killed> {
        match self.asked(by, line).await {
            Ok(Answer::Ended { stdout, .. }) => match stdout.trim_ascii() {
                b"over" => Some(Killed::Over),
                b"gone" => Some(Killed::Gone),
                b"left" => Some(Killed::Left),
                _ => None,
            },
            _ => None,
        }
    }
}

/// What became of a process group that was to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Killed {
    /// Its command had ended by itself. Nothing of it runs.
    Over,
    /// Nothing of it runs any more.
    Gone,
    /// Some of it may still run.
    Left,
}

/// What a command reads.
#[derive(Debug)]
pub(crate) enum Input {
    Given(Stdin),
    Archive(Box<UploadArchive>),
    /// What comes once the command is ready for it. It runs only if a channel is free.
    Later(Arc<FurtherChannel>),
    /// Sets the digest of all that it sends.
    Kept(Box<UploadArchive>, Arc<OnceLock<String>>),
    /// Nothing. It runs only if a channel is free.
    NothingIfFree,
}

impl Input {
    /// Feeds the header and the input into a pipe; in a thread of its own if the pipe may not hold it all, and in a task
    /// where somebody writes it by and by.
    fn feed(
        self,
        header: Vec<u8>,
        mut pipe: PipeWriter,
    ) -> Result<Option<JoinHandle<io::Result<()>>>, SessionError> {
        if let Self::Given(Stdin::Piped(piped)) = &self {
            let mut from = piped.reader()?;
            return Ok(Some(tokio::spawn(async move {
                let mut pipe = pipe::Sender::from_owned_fd(pipe.into())?;
                pipe.write_all(&header).await?;
                tokio::io::copy(&mut from, &mut pipe).await.map(drop)
            })));
        }
        let small = match &self {
            Self::Given(Stdin::Null) | Self::Later(_) | Self::NothingIfFree => header.len(),
            Self::Given(Stdin::Bytes(bytes)) => header.len() + bytes.len(),
            Self::Given(_) | Self::Archive(_) | Self::Kept(..) => usize::MAX,
        };
        let write = move || {
            if let Self::Later(channel) = &self {
                return channel.begin(&header, pipe);
            }
            pipe.write_all(&header)?;
            match self {
                Self::Given(Stdin::Null) | Self::Later(_) | Self::NothingIfFree => Ok(()),
                Self::Given(Stdin::Bytes(bytes)) => pipe.write_all(&bytes),
                Self::Given(Stdin::File(path)) => io::copy(&mut File::open(path)?, &mut pipe).map(drop),
                Self::Given(_) => Err(io::ErrorKind::Unsupported.into()),
                Self::Archive(archive) => archive.pack(in_bulk(pipe)),
                Self::Kept(archive, digest) => pack_digested(*archive, in_bulk(pipe), &digest),
            }
        };
        if small > PIPE_BYTES {
            return Ok(Some(spawn_blocking(write)));
        }
        // Nothing has been read yet, and it fits.
        let _ = write();
        Ok(None)
    }
}

/// Hands on much at a time, since each piece costs every process on its way a system call or two.
fn in_bulk(pipe: PipeWriter) -> io::BufWriter<PipeWriter> {
    // A user may have only so much in pipes; then it stays as it is.
    let _ = fcntl_setpipe_size(&pipe, BULK_BYTES);
    io::BufWriter::with_capacity(BULK_BYTES, pipe)
}

/// Follows a single command.
struct Alone(Arc<dyn OutputSink>);

impl SequenceObserver for Alone {
    fn begins(&self, _: usize) -> Arc<dyn OutputSink> {
        self.0.clone()
    }

    fn ended(&self, _: usize, _: Exit) {}
}

/// One conversation: a supervised command, or several.
struct Supervised {
    commands: Arc<Commands>,
    mark: String,
    headers: Vec<Vec<u8>>,
    input: Input,
    tied: bool,
    stdout: Option<StdoutConsumer>,
    observer: Arc<dyn SequenceObserver>,
    index: usize,
    stop: CancellationToken,
}

impl Supervised {
    async fn run(self) -> Result<Ended, SessionError> {
        let Self { commands, mark, mut headers, input, tied, stdout, observer, index, stop } = self;
        let output = observer.begins(index);
        let (stdout, consumed) = stdout.map(|stdout| (stdout.pipe, stdout.done)).unzip();
        let cancelled = || SessionError::new(SessionErrorKind::Cancelled, "cancelled");
        let opening = async {
            match &input {
                Input::Later(_) | Input::NothingIfFree => commands.pool.shell_now(stdout.as_ref()).await,
                _ => commands.pool.shell(stdout.as_ref()).await,
            }
        };
        let Shell { feed, mut channel, slot } =
            stop.run_until_cancelled(opening).await.ok_or_else(cancelled)??;
        drop(stdout);
        let mut outputs = Outputs::of(&mut channel);
        // Until the greeting is over nothing has begun.
        stop.run_until_cancelled(commands.greet(&mut outputs)).await.ok_or_else(cancelled)??;
        stop.run_until_cancelled(commands.pool.keep_attendant()).await.ok_or_else(cancelled)??;
        if commands.pool.has_one_channel() {
            // What ends a command ends the conversation as well, and no supervisor could say that it begins no other.
            headers.truncate(1);
        }
        let (run, base) = (commands.machine.run.as_str(), commands.base());
        let opening = supervisor::opening(run, &mark, base, headers.len(), consumed.is_none(), tied)?;
        // While this is open, so is what the machine waits for the end of.
        let _tie =
            tied.then(|| feed.try_clone()).transpose().map_err(|error| local("cannot keep a pipe", error))?;
        let feeding = input.feed([opening, headers.concat()].concat(), feed)?;
        let first = (index, headers.len(), output);
        let mut pump = Pump::new(commands, slot, outputs, &mark, observer, first);
        let stopped = pump.run(&stop).await;
        let is_consumed = match consumed {
            // Closing the channel would cut off what is still on its way.
            Some(consumed) if !stopped => stop.run_until_cancelled(consumed).await.is_some(),
            consumed => consumed.is_none(),
        };
        // With the channel closed, whoever still feeds it finds out.
        drop(channel);
        let fed = match feeding {
            Some(feeding) => {
                // Who writes by and by may never write again. A thread that has begun isn't stopped by this.
                feeding.abort();
                feeding.await.unwrap_or(Ok(()))
            }
            None => Ok(()),
        };
        match fed {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(local("cannot read what to send", error))
            }
            _ => pump.outcome(stopped, is_consumed).await,
        }
    }
}

/// Nothing was put on the machine: it has not been given a word.
fn no_shell(machine: &Machine, said: &str) -> SessionError {
    let user = machine.login.user.as_deref().map(|user| format!(" of {user}")).unwrap_or_default();
    let said = match said {
        "" => "it said nothing".to_owned(),
        said => format!("it said `{}`", said.chars().take(600).collect::<String>()),
    };
    let message = format!("the login shell{user} does not run `exec sh`; {said}");
    SessionError::new(SessionErrorKind::Remote, message).help(
        "log in as a user who may run commands (`user`): not through nologin, a restricted shell, sftp only, or \
         a start-up file that puts another program in the shell's place",
    )
}

/// The error of a script that says why it failed.
fn failed(stderr: &[u8]) -> SessionError {
    SessionError::new(SessionErrorKind::Remote, String::from_utf8_lossy(stderr).trim())
}

fn local(message: &str, error: io::Error) -> SessionError {
    SessionError::new(SessionErrorKind::Local, message).source(error)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::task::{Context, Poll};
    use std::time::SystemTime;

    use tokio::time::sleep;
    use tsunami_core::{MachineId, MachineState, RunId, Stream};

    use super::*;
    use crate::transport::fake::Fake;

    fn machine() -> Machine {
        let run = RunId::generate(SystemTime::now(), std::process::id().into());
        Machine::new(MachineId::new("m"), run, "m", 0, MachineState::Running)
    }

    async fn commands_on(fake: Fake) -> Arc<Commands> {
        let fake = Arc::new(fake);
        let pool = Pool::new("m-0".to_owned(), fake.clone(), fake.connected().await);
        Arc::new(Commands::new(pool, &machine(), false))
    }

    /// Cancels a command once it has said something.
    #[derive(Debug)]
    struct CancelAtFirstWord(CancellationToken);

    impl OutputSink for CancelAtFirstWord {
        fn write(&self, _: Stream, _: &[u8]) -> io::Result<()> {
            self.0.cancel();
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_script_says_what_it_printed_or_why_it_failed() {
        let commands = commands_on(Fake::with(1, 1)).await;
        assert_eq!(
            commands.administer("echo \"$1|$TSUNAMI_RUN_ID\"", &["it's".to_owned()]).await.unwrap(),
            "it's|\n"
        );
        let error = commands.administer("echo why >&2; exit 3", &[]).await.unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (SessionErrorKind::Remote, "why"));
    }

    #[tokio::test]
    async fn a_script_waits_for_no_other_and_an_attendant_that_was_ended_is_replaced() {
        let commands = commands_on(Fake::with(10, 1)).await;
        let directory = tempfile::tempdir().unwrap();
        let file = [directory.path().join("made").to_str().unwrap().to_owned()];
        // It waits for what the second makes.
        let first = "until [ -e \"$1\" ]; do sleep 0.05; done; echo first";
        let (first, second) = tokio::join!(
            commands.administer(first, &file),
            commands.administer("echo second; >\"$1\"", &file)
        );
        assert_eq!((first.unwrap().as_str(), second.unwrap().as_str()), ("first\n", "second\n"));
        commands.administer("kill -9 $PPID", &[]).await.unwrap_err();
        assert_eq!(commands.administer("echo third", &[]).await.unwrap(), "third\n");
    }

    #[tokio::test]
    async fn a_command_that_has_the_only_channel_can_be_ended() {
        let commands = commands_on(Fake::with(1, 1)).await;
        for _ in 0..2 {
            let cancel = CancellationToken::new();
            let stubborn = Command::shell("trap '' TERM; echo up; sleep 1000 & wait");
            let sink = Arc::new(CancelAtFirstWord(cancel.clone()));
            let ended = commands.run(&stubborn, Input::Given(Stdin::Null), None, sink, &cancel).await;
            assert_eq!(ended.unwrap_err().kind, SessionErrorKind::Cancelled);
            assert!(commands.pool.has_one_channel());
        }
        let (command, cancel) = (Command::shell("exit 3"), CancellationToken::new());
        let exit = commands.run(&command, Input::Given(Stdin::Null), None, Arc::new(()), &cancel).await;
        assert_eq!(exit.unwrap(), Exit::Status(3));
    }

    /// Takes nothing yet, so that nothing is known here of how the command does.
    struct Full;

    impl OutputSink for Full {
        fn write(&self, _: Stream, _: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn poll_ready(&self, _: &mut Context<'_>) -> Poll<()> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn one_that_had_ended_by_itself_says_how_when_it_is_cancelled() {
        let commands = commands_on(Fake::with(10, 1)).await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("process");
        for (rest, expected) in
            [("exit 3", Some(Exit::Status(3))), ("exit 0", Some(Exit::Status(0))), ("echo lost", None)]
        {
            let command = Command::shell(format!("echo $$ >\"$1\"; {rest}")).arg(&file);
            let cancel = CancellationToken::new();
            let cancelling = async {
                let process = loop {
                    match std::fs::read_to_string(&file) {
                        Ok(process) if process.ends_with('\n') => break process,
                        _ => sleep(Duration::from_millis(10)).await,
                    }
                };
                while Path::new("/proc").join(process.trim()).exists() {
                    sleep(Duration::from_millis(10)).await;
                }
                std::fs::remove_file(&file).unwrap();
                cancel.cancel();
            };
            let input = Input::Given(Stdin::Null);
            let (ended, ()) =
                tokio::join!(commands.run(&command, input, None, Arc::new(Full), &cancel), cancelling);
            // What nobody has seen all of was cut off.
            let expected = expected.ok_or(SessionErrorKind::Cancelled);
            assert_eq!(ended.map_err(|error| error.kind), expected, "{rest}");
        }
    }

    /// Counts the commands that had a turn.
    #[derive(Default)]
    struct Turns(AtomicU32);

    impl SequenceObserver for Turns {
        fn begins(&self, _: usize) -> Arc<dyn OutputSink> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Arc::new(())
        }

        fn ended(&self, _: usize, _: Exit) {}
    }

    #[tokio::test]
    async fn a_list_is_as_few_conversations_as_its_commands_allow() {
        let list = |lines: &[&str]| lines.iter().map(|line| Command::shell(*line)).collect::<Vec<_>>();
        let reads = Command::shell("cat").stdin(Stdin::Bytes(b"x".as_slice().into()));
        let large = Command::shell("true").env("LARGE", "x".repeat(HEADERS_BYTES));
        for (commands, conversations) in [
            (list(&["true", "echo", "exit 0", "true"]), 1),
            (list(&["true", "sleep 1 >/dev/null 2>&1 &", "true"]), 2),
            ([list(&["true", "true"]), vec![reads], list(&["true"])].concat(), 3),
            (vec![large.clone(), large, Command::shell("true")], 3),
            (list(&["true", "exit 3", "true"]), 1),
        ] {
            let commands_on_it = commands_on(Fake::with(10, 1)).await;
            let turns = Arc::new(Turns::default());
            commands_on_it.run_all(&commands, turns.clone(), &CancellationToken::new()).await.unwrap();
            assert_eq!(commands_on_it.nonce.load(Ordering::Relaxed), conversations, "{commands:?}");
            let failing = commands.iter().position(|command| command.to_string() == "exit 3");
            let expected = failing.map_or(commands.len(), |at| at + 1);
            assert_eq!(turns.0.load(Ordering::Relaxed) as usize, expected);
        }
        // Where there is one channel, what ends a command takes its place.
        let commands = commands_on(Fake::with(1, 1)).await;
        let turns = Arc::new(Turns::default());
        commands.run_all(&list(&["true", "true"]), turns, &CancellationToken::new()).await.unwrap();
        assert_eq!(commands.nonce.load(Ordering::Relaxed), 2);
    }
}
