//! What connects to machines and runs commands on them.

use std::any::Any;
use std::ffi::OsString;
use std::fmt::{self, Debug};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, duplex};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{BoxError, Remedy};
use crate::exclude::Exclude;
use crate::machine::{Login, Machine, RunId};

/// What makes [`Session`]s. One serves any number of runs at once.
#[cfg_attr(feature = "testing", mockall::automock)]
#[async_trait]
pub trait Connector: Debug + Send + Sync + 'static {
    /// Makes ready for a run, in the run's own private directory: above all a login key, whose public half it
    /// returns as OpenSSH writes it. Idempotent, so that a later process can take up a run. Is dropped at any await when
    /// the run is cancelled or, before a teardown, after half a minute; [`finish`](Self::finish) lets go of what it had
    /// begun.
    ///
    /// # Errors
    ///
    /// What this computer could not do. Nothing is launched then; a teardown goes on without it.
    async fn prepare(&self, run: &RunId, directory: &Path) -> Result<String, SessionError>;

    /// Connects to a machine of a prepared run, as soon as it answers and until `deadline`.
    ///
    /// The machine may still be booting: a closed port or a silent one is waited out. A host key that does not
    /// fit is not. May be dropped at any await; nothing stays behind.
    ///
    /// # Errors
    ///
    /// What was seen last, once `deadline` is over or waiting is of no use. The engine asks no second time.
    async fn connect(&self, machine: &Machine, deadline: Instant) -> Result<Box<dyn Session>, SessionError>;

    /// The name or address behind what a login calls a host, as an ssh_config may have it. It is what the login calls
    /// it, unless the connector knows better, and an error if it calls it nothing.
    async fn resolve(&self, login: &Login) -> Result<String, SessionError> {
        let none = || SessionError::new(SessionErrorKind::Local, "the login names no host");
        login.host.clone().ok_or_else(none)
    }

    /// Lets go of what [`prepare`](Self::prepare) and `connect` left in this process and on this computer,
    /// except for the files in the run's directory. Idempotent. Is dropped at any await when it takes longer than ten
    /// seconds, or half a minute where a run could not be prepared: what matters most comes first.
    async fn finish(&self, run: &RunId);
}

/// A connection to one machine, on which any number of commands may run at once.
///
/// A session goes on working however many commands it is given: what the other side cannot take at once waits. Commands
/// begin in its directory, and paths on the machine are relative to it: the login's home, or what
/// [`Login::directory`](crate::Login::directory) names below that.
///
/// `testing::conformance` (feature `testing`) has a test of each of these promises for a session of one's own.
#[cfg_attr(feature = "testing", mockall::automock)]
#[async_trait]
pub trait Session: Debug + Send + Sync + 'static {
    /// Runs a command to its end, handing its output to `output` as it arrives.
    ///
    /// A status other than 0 is not an error here. When `cancel` fires, the command and all of its process
    /// group get TERM, five seconds, then KILL, and the answer is [`SessionErrorKind::Cancelled`] once they are
    /// confirmed gone. One that had ended by itself by then may say how in place of that, which nobody can know but the
    /// machine: what goes by a command that should have gone on depends on it. Dropping the future does the same in the background; [`close`](Self::close) waits for it.
    ///
    /// # Errors
    ///
    /// By their [kind](SessionErrorKind): that the command was cancelled, that contact was lost, that the machine could
    /// not start it, or, as [`Local`](SessionErrorKind::Local), what `output` said when it took no more.
    async fn exec(
        &self,
        command: &Command,
        output: Arc<dyn OutputSink>,
        cancel: &CancellationToken,
    ) -> Result<Exit, SessionError>;

    /// Runs commands one after another, until all have succeeded or one has not: each as [`exec`](Self::exec) would, with
    /// its own environment and directory. Of one that is cancelled, dropped or fails, none of those after it begins, and
    /// the error is about the last one that `observer` was told of.
    ///
    /// As written here, it runs them through `exec`. A session over a network sends them at once, so that there is no
    /// round trip between them.
    async fn exec_all(
        &self,
        commands: &[Command],
        observer: Arc<dyn SequenceObserver>,
        cancel: &CancellationToken,
    ) -> Result<(), SessionError> {
        one_by_one(self, commands, &*observer, cancel).await
    }

    /// Runs a script that is about the machine and not about the experiment, with `sh`, and returns what it printed:
    /// this is how a provider arms, checks, extends and ends what it keeps on a machine.
    ///
    /// It begins in the login's home directory, whatever the session's own is, and has `args` as `$1`, `$2`, … It is
    /// not marked as the run's, and nobody ends it: neither with the run's other commands, nor when the future is
    /// dropped. So it should be short. What it prints is bounded by
    /// [`SCRIPT_OUTPUT_LIMIT`](crate::limits::SCRIPT_OUTPUT_LIMIT) on each of its outputs, its time by
    /// [`SCRIPT_TIMEOUT`](crate::limits::SCRIPT_TIMEOUT). Where it returns another status than 0, the error is of the
    /// kind [`Remote`](SessionErrorKind::Remote), with what it wrote to standard error.
    async fn administer(&self, script: &str, args: &[String]) -> Result<String, SessionError>;

    /// Copies a local file or directory to the machine, modes and links kept.
    ///
    /// A directory's contents arrive in the directory `to`, a file as the file `to`, or under its own name in
    /// `to` if that ends in `/`. Missing parents are made. Relative to the session's directory. A content that the machine
    /// has already, in that place or another, need not be sent again, but what arrives is as if it had been: nothing that
    /// is later done to one place shows in another.
    ///
    /// Is dropped at any await when the run is cancelled or the machine is gone. Nothing more is sent then, and what has
    /// arrived stays, perhaps a part of a file. Of one large file by itself nothing may stay.
    ///
    /// # Errors
    ///
    /// By their [kind](SessionErrorKind): what could not be read here, what the machine would not take, or that contact
    /// was lost. What has arrived stays.
    async fn upload(&self, from: &Path, to: &str) -> Result<(), SessionError>;

    /// Does what [`upload`](Self::upload) does with a directory, without what is left out.
    ///
    /// # Errors
    ///
    /// As `upload` has them; by default, that this session can't leave anything out.
    async fn upload_without(&self, from: &Path, to: &str, exclude: &Exclude) -> Result<(), SessionError> {
        if exclude.is_empty() {
            return self.upload(from, to).await;
        }
        let message = "this session can't leave anything out of an upload";
        Err(SessionError::new(SessionErrorKind::Local, message))
    }

    /// Whether machines can give each other what they were given: whether the session has [`upload_kept`](Self::upload_kept)
    /// and the three methods after it. Those who don't leave all of them as they are written here.
    fn spreads(&self) -> bool {
        false
    }

    /// Does what [`upload`](Self::upload) does, without what [`SharedContent::exclude`] leaves out, and has the machine keep what was sent as `content`, so that
    /// [`offer`](Self::offer) can give it to others. That it could not be kept is no error: then it can't be
    /// offered.
    ///
    /// Is dropped as an upload is. What is kept stays until [`withdraw`](Self::withdraw).
    async fn upload_kept(&self, from: &Path, to: &str, content: &SharedContent) -> Result<(), SessionError> {
        self.upload_without(from, to, &content.exclude).await
    }

    /// Gives what the machine keeps as `content` to those who have the offer, until [`withdraw`](Self::withdraw).
    ///
    /// May be dropped at any await; `withdraw` ends what was begun.
    ///
    /// # Errors
    ///
    /// Why the machine can't give it.
    async fn offer(&self, content: &SharedContent) -> Result<ContentOffer, SessionError> {
        let message = format!("{} can't be offered by this session", content.name);
        Err(SessionError::new(SessionErrorKind::Local, message))
    }

    /// Does what [`upload_kept`](Self::upload_kept) does, but the machine has the content from the one that offers it,
    /// whose connector is the same. Nothing arrives at `to` unless it is what was sent to the first of them, byte for byte.
    /// `from` is the same, and a file gets the same name.
    ///
    /// May be dropped at any await. What has arrived stays then, as with an upload.
    ///
    /// # Errors
    ///
    /// Why it could not be had. It can still be uploaded.
    async fn take(
        &self,
        offer: &ContentOffer,
        from: &Path,
        to: &str,
        content: &SharedContent,
    ) -> Result<(), SessionError> {
        let _ = (offer, from, to);
        let message = format!("{} can't be taken by this session", content.name);
        Err(SessionError::new(SessionErrorKind::Local, message))
    }

    /// Ends what goes on on the machine about `content`, whoever began it, and removes what it keeps of it. Idempotent. May
    /// be dropped at any await; what is left then ends with the run.
    ///
    /// # Errors
    ///
    /// That something is left, or that contact was lost.
    async fn withdraw(&self, content: &SharedContent) -> Result<(), SessionError> {
        let _ = content;
        Ok(())
    }

    /// Brings files home. Returns how many matches each pattern had, in order.
    ///
    /// The machine isn't trusted with names, links and modes. What nobody asked for, or would land or lead outside of
    /// `into`, or can't be had, is left out; the error that names it comes when all else is home.
    ///
    /// Is dropped at any await when the run is cancelled or the machine is gone. Nothing more is written soon after that,
    /// and what has come stays.
    ///
    /// # Errors
    ///
    /// By their [kind](SessionErrorKind): what was left out, what could not be written here, or that contact was lost.
    /// What has come stays.
    async fn download(&self, download: &Download) -> Result<Vec<usize>, SessionError>;

    /// How many bytes [`upload`](Self::upload) and [`download`](Self::download) have moved so far over this session, about;
    /// 0 where nobody counts them.
    fn moved(&self) -> u64 {
        0
    }

    /// Whether there can be connections to ports, as the machine itself would make them: whether the session has
    /// [`dial`](Self::dial). Those who don't leave both as they are written here.
    fn dials(&self) -> bool {
        false
    }

    /// Connects to a port as the machine would, which is what `host` is a name or an address for. Bytes go both ways until
    /// each side has ended its own, or the machine's has, where the session can't carry more; dropping the connection closes
    /// it.
    ///
    /// May be dropped at any await; nothing stays behind.
    ///
    /// # Errors
    ///
    /// Of the kind [`Remote`](SessionErrorKind::Remote) where the machine can't connect, above all since nothing listens
    /// there; of the kind [`Lost`](SessionErrorKind::Lost) where contact is lost.
    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, SessionError> {
        let message = format!("this session can't connect to {host} port {port}");
        Err(SessionError::new(SessionErrorKind::Local, message))
    }

    /// When the machine was first seen to answer while it was connected to, before anybody logged in; `None` where nobody
    /// looked.
    fn answered(&self) -> Option<Instant> {
        None
    }

    /// Asks whether the connection still works. May be dropped at any await.
    ///
    /// # Errors
    ///
    /// Of the kind [`Lost`](SessionErrorKind::Lost), if it doesn't.
    async fn check(&self) -> Result<(), SessionError>;

    /// Ends the connection, after what was dropped is confirmed gone. Idempotent. Is dropped at any await when that takes
    /// longer than ten seconds; the machine is about to end then, or stays with what runs on it.
    async fn close(&self) -> Result<(), SessionError>;
}

/// A connection that carries bytes both ways.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

impl Debug for dyn ByteStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteStream").finish_non_exhaustive()
    }
}

/// What machines of a run give each other.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SharedContent {
    /// A short word, which names no other content of the run.
    pub name: String,
    /// Its bytes, more or less.
    pub size: u64,
    /// What of a directory is not in it.
    pub exclude: Exclude,
}

impl SharedContent {
    /// So many bytes under this name.
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self { name: name.into(), size, exclude: Exclude::default() }
    }

    /// Leaves something out.
    pub fn exclude(mut self, exclude: Exclude) -> Self {
        self.exclude = exclude;
        self
    }
}

/// What one machine offers to others. Only sessions of its connector know what is in it. Cheap to clone.
#[derive(Clone)]
pub struct ContentOffer(Arc<dyn Any + Send + Sync>);

impl ContentOffer {
    /// An offer with what [`Session::take`] needs to know.
    pub fn new(details: impl Any + Send + Sync) -> Self {
        Self(Arc::new(details))
    }

    /// What it was made with, if that was of this type.
    pub fn details<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

/// It may hold keys.
impl Debug for ContentOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContentOffer").finish_non_exhaustive()
    }
}

/// Runs commands one after another, each by itself.
pub(crate) async fn one_by_one(
    session: &(impl Session + ?Sized),
    commands: &[Command],
    observer: &dyn SequenceObserver,
    cancel: &CancellationToken,
) -> Result<(), SessionError> {
    for (index, command) in commands.iter().enumerate() {
        let output = observer.begins(index);
        let exit = session.exec(command, output, cancel).await?;
        observer.ended(index, exit);
        if !exit.success() {
            break;
        }
    }
    Ok(())
}

/// A command for a machine.
///
/// ```
/// use tsunami_core::Command;
///
/// let count = Command::shell("wc -l < \"$INPUT\"").env("INPUT", "data with spaces.txt").cwd("work");
/// let literal = Command::program("printf").arg("%s\n").arg("$HOME is not expanded");
/// assert_eq!(count.to_string(), "wc -l < \"$INPUT\"");
/// assert_eq!(literal.to_string(), "printf %s\n $HOME is not expanded");
/// ```
#[derive(Clone)]
#[must_use = "a command does nothing until a session runs it"]
#[non_exhaustive]
pub struct Command {
    /// What runs.
    pub program: Program,
    /// The directory it runs in, relative to the session's own; `None` is that one.
    pub cwd: Option<String>,
    /// Variables added to its environment.
    pub env: Vec<(String, OsString)>,
    /// What it reads.
    pub stdin: Stdin,
    /// Whether it is [ended with its connection](Self::ends_with_connection).
    pub ends_with_connection: bool,
}

impl Command {
    /// A command line for the machine's shell: `bash -eo pipefail -c`, or `sh -e -c` where there is no bash.
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new(Program::Shell(line.into()))
    }

    /// A program, found through `PATH`, whose arguments reach it byte for byte.
    pub fn program(name: impl Into<OsString>) -> Self {
        Self::new(Program::Args(vec![name.into()]))
    }

    fn new(program: Program) -> Self {
        Self { program, cwd: None, env: Vec::new(), stdin: Stdin::Null, ends_with_connection: false }
    }

    /// Adds an argument. To a shell line it is a positional parameter: `$1`, `$2`, …
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        match &mut self.program {
            Program::Args(args) => args.push(arg.into()),
            Program::Shell(line) => {
                let line = std::mem::take(line);
                self.program = Program::ShellArgs(line, vec![arg.into()]);
            }
            Program::ShellArgs(_, args) => args.push(arg.into()),
        }
        self
    }

    /// Adds arguments, as [`arg`](Self::arg) does each.
    pub fn args(self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets the directory it runs in, relative to the session's own. It must be there.
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.cwd = Some(directory.into());
        self
    }

    /// Adds variables to the environment.
    pub fn envs(self, variables: impl IntoIterator<Item = (impl Into<String>, impl Into<OsString>)>) -> Self {
        variables.into_iter().fold(self, |command, (name, value)| command.env(name, value))
    }

    /// Adds a variable to the environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets what it reads.
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    /// Has the machine end the command where its connection ends before it, however this program ended: TERM, five seconds,
    /// KILL for its process group and what descends from it, as where it is cancelled. A process that has left group and
    /// session, and whose parent has ended (`(setsid … &)`), ends with the run. A machine may not notice for long that the
    /// network to it was cut. A session that can't see to that, and one that runs it in a list or gives it something to
    /// read, leaves it to the machine's deadline as any other.
    pub fn ends_with_connection(mut self) -> Self {
        self.ends_with_connection = true;
        self
    }
}

/// The values of variables may be secret, and are left out.
impl Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("Command")
            .field("program", &self.program)
            .field("cwd", &self.cwd)
            .field("env", &names)
            .field("stdin", &self.stdin)
            .finish()
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.program {
            Program::Shell(line) | Program::ShellArgs(line, _) => f.write_str(line),
            Program::Args(args) => {
                for (i, arg) in args.iter().enumerate() {
                    let space = if i == 0 { "" } else { " " };
                    write!(f, "{space}{}", arg.to_string_lossy())?;
                }
                Ok(())
            }
        }
    }
}

/// What a command runs. A session answers a kind that it doesn't know with an error of the kind
/// [`Local`](SessionErrorKind::Local).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Program {
    /// A line for the shell.
    Shell(String),
    /// A line for the shell, and its positional parameters.
    ShellArgs(String, Vec<OsString>),
    /// A program and its arguments.
    Args(Vec<OsString>),
}

/// What a command reads. A session answers a kind that it doesn't know with an error of the kind
/// [`Local`](SessionErrorKind::Local).
///
/// ```
/// use tsunami_core::{Command, Stdin};
///
/// let load = Command::shell("psql -q bench").stdin(Stdin::File("rows.sql".into()));
/// let count = Command::program("wc").arg("-l").stdin(Stdin::Bytes(b"one\ntwo\n".as_slice().into()));
/// # let _ = (load, count);
/// ```
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Stdin {
    /// Nothing.
    #[default]
    Null,
    /// These bytes.
    Bytes(Arc<[u8]>),
    /// A file of this computer's, read as it is needed; relative to this process's working directory.
    File(PathBuf),
    /// What is written while the command runs: [`Stdin::piped`].
    Piped(PipedStdin),
}

impl Stdin {
    /// A pipe, into which is written while the command runs: by [`Process::stdin`](crate::Process::stdin) and
    /// [`OutputLines::stdin`](crate::OutputLines::stdin). A command that is run in any other way reads nothing of it. It is
    /// for one command, once.
    pub fn piped() -> Self {
        Self::Piped(PipedStdin::new())
    }
}

/// How much of what is written to a command waits for the session to send it, in bytes.
const PIPE_BYTES: usize = 64 << 10;

/// The two ends of what a command reads while it runs. Clones have the same two.
#[derive(Clone)]
pub struct PipedStdin(Arc<Ends>);

struct Ends {
    writer: Mutex<Option<DuplexStream>>,
    reader: Mutex<Option<DuplexStream>>,
}

impl PipedStdin {
    fn new() -> Self {
        let (writer, reader) = duplex(PIPE_BYTES);
        Self(Arc::new(Ends { writer: Mutex::new(Some(writer)), reader: Mutex::new(Some(reader)) }))
    }

    /// The end to write to, for the first who asks. Its drop is the end of what the command reads; writing to it fails once
    /// the other end was dropped.
    pub fn writer(&self) -> Option<impl AsyncWrite + Debug + Send + Unpin + use<>> {
        self.take_writer()
    }

    pub(crate) fn take_writer(&self) -> Option<DuplexStream> {
        self.0.writer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The end to read from, for the first who asks: a session. It drops it when the command has ended or reads no more.
    ///
    /// # Errors
    ///
    /// Of the kind [`Local`](SessionErrorKind::Local), if a command has it already.
    pub fn reader(&self) -> Result<impl AsyncRead + Debug + Send + Unpin + use<>, SessionError> {
        let reader = self.0.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
        let taken =
            || SessionError::new(SessionErrorKind::Local, "another command has what this one was to read");
        reader.ok_or_else(taken)
    }
}

impl Debug for PipedStdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipedStdin").finish_non_exhaustive()
    }
}

impl Debug for Stdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::File(path) => write!(f, "File({path:?})"),
            Self::Piped(_) => f.write_str("Piped"),
        }
    }
}

/// Which files to bring home, and where to.
///
/// ```
/// # use tsunami_core::{Download, Error, Host};
/// # async fn example(host: &Host) -> Result<(), Error> {
/// let logs = Download::new(["*.log", "profile"], "results/server").cwd("run");
/// let matches = host.download(&logs).await?;
/// println!("{} logs, {} profiles", matches[0], matches[1]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Download {
    /// Shell globs (`*`, `?`, `[…]`), relative to `cwd`. A directory comes whole.
    pub patterns: Vec<String>,
    /// The directory on the machine; `None` is the session's own.
    pub cwd: Option<String>,
    /// The local directory below which they arrive, under their names relative to `cwd`; an absolute name
    /// loses its leading `/`.
    pub into: PathBuf,
}

impl Download {
    /// What these patterns match in the session's own directory, into a local one.
    pub fn new<P: Into<String>>(patterns: impl IntoIterator<Item = P>, into: impl Into<PathBuf>) -> Self {
        Self { patterns: patterns.into_iter().map(Into::into).collect(), cwd: None, into: into.into() }
    }

    /// Sets the directory on the machine.
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.cwd = Some(directory.into());
        self
    }
}

/// How a command ended. There is no third way.
///
/// ```
/// # use tsunami_core::Exit;
/// assert!(Exit::Status(0).success());
/// assert_eq!((Exit::Signal(9).code(), Exit::Signal(9).to_string()), (137, "signal 9 (SIGKILL)".to_owned()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It returned this status.
    Status(u8),
    /// This signal killed it.
    Signal(u8),
}

impl Exit {
    /// Whether it returned status 0.
    pub fn success(self) -> bool {
        self == Self::Status(0)
    }

    /// The status a shell would show: 128+n for signal n.
    pub fn code(self) -> u8 {
        match self {
            Self::Status(status) => status,
            Self::Signal(signal) => signal.saturating_add(128),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Signal(signal) => match signal_name(*signal) {
                Some(name) => write!(f, "signal {signal} ({name})"),
                None => write!(f, "signal {signal}"),
            },
        }
    }
}

/// The names that x86 and Arm Linux give to the signals that commonly end a process.
fn signal_name(signal: u8) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

/// One of a command's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Takes a command's output as it arrives.
pub trait OutputSink: Send + Sync {
    /// Takes some bytes, cut anywhere. While it runs, no more is read: it should be quick, and it may slow the
    /// command down. An error ends the command as a cancellation would.
    fn write(&self, stream: Stream, bytes: &[u8]) -> io::Result<()>;

    /// Whether it takes more; where it doesn't, the waker is told once it does. As long as it doesn't, a session reads no
    /// more of the command's output, so that the command waits; what it has read by then it may still hand over. Of a
    /// command that is being ended it may read on, and throw away what nobody takes.
    ///
    /// As written here, it always does.
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = cx;
        Poll::Ready(())
    }
}

/// Follows the commands of a list, by their places in it. Told as it happens, and of no command before its turn.
pub trait SequenceObserver: Send + Sync {
    /// It is a command's turn. Its output goes to the sink that this returns.
    fn begins(&self, index: usize) -> Arc<dyn OutputSink>;

    /// A command has ended, and all of its output was handed on. After any status but 0 there is no other's turn.
    fn ended(&self, index: usize, exit: Exit);
}

/// Forgets all output.
impl OutputSink for () {
    fn write(&self, _: Stream, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// What a connector or session could not do.
///
/// ```
/// use tsunami_core::{SessionError, SessionErrorKind};
///
/// let error = SessionError::new(SessionErrorKind::Connect, "10.0.0.7 answers nobody on port 22")
///     .help("let this computer in");
/// assert_eq!(error.help.as_deref(), Some("let this computer in"));
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct SessionError {
    /// What the engine goes by.
    pub kind: SessionErrorKind,
    /// What happened, and what the other side said.
    pub message: String,
    /// What the user can do about it.
    pub help: Option<String>,
    /// What they can do about it by the program at hand.
    pub remedy: Option<Remedy>,
    /// The error underneath.
    #[source]
    pub source: Option<BoxError>,
}

impl SessionError {
    /// An error of `kind`.
    pub fn new(kind: SessionErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), help: None, remedy: None, source: None }
    }

    /// Adds what the user can do about it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds what they can do about it by the program at hand.
    pub fn remedy(mut self, remedy: Remedy) -> Self {
        self.remedy = Some(remedy);
        self
    }

    /// Adds the error underneath. It is not repeated in the message.
    pub fn source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// The classes of session errors that call for different answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionErrorKind {
    /// No session could be had: closed port, silence, refused login.
    Connect,
    /// The machine showed another host key than it should.
    HostKey,
    /// The connection failed a check: the machine, or the way to it, is gone.
    Lost,
    /// The command was cancelled and is gone.
    Cancelled,
    /// The command was cancelled, and some of it may still be running.
    CancelledUnconfirmed,
    /// The machine could not start the command, or lost track of it: no such directory, no shell, no memory.
    Remote,
    /// A file could not be sent or fetched.
    Transfer,
    /// This computer failed: a full disk, a missing program.
    Local,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_read_as_people_say_them() {
        assert_eq!(Exit::Status(3).to_string(), "status 3");
        assert_eq!(Exit::Signal(9).to_string(), "signal 9 (SIGKILL)");
        assert_eq!(Exit::Signal(9).code(), 137);
        assert!(!Exit::Signal(0).success());
    }
}
