//! A session: one machine, one or more masters, any number of supervised commands.

mod archive;
mod parcel;
mod shell;
mod supervisor;
mod transfer;
mod tree;
mod unpack;

use std::borrow::Cow;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use openssh::{Child, ChildStderr, ChildStdout, Stdio};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tsunami_core::limits::{SCRIPT_OUTPUT_LIMIT, SCRIPT_TIMEOUT};
use tsunami_core::{
    BoxError, Command, Download, Exit, Leftover, Machine, OutputSink, Session, SessionError,
    SessionErrorKind, Stdin, Stream,
};

use crate::connector::RunSsh;
use crate::master::Master;
use crate::watchdog::{self, Arming, ControlGroup};
use parcel::Parcel;
use shell::{AfterPreamble, Preamble};
use supervisor::{Note, Notes};

/// Channels on one connection, as sshd allows by itself (`MaxSessions`). One that allows fewer says so only by refusing.
const CHANNELS: usize = 10;

/// How long after a refusal a channel is asked for once more: sshd forgets one that has ended a little later.
const REFUSED: Duration = Duration::from_millis(100);

/// How often a connection that nothing else uses may refuse a channel.
const REFUSALS: u32 = 20;

/// Connections at a time to one machine; further commands wait.
const CONNECTIONS: usize = 8;

/// How long a connection that ought to work may take to answer.
const ANSWER: Duration = Duration::from_secs(15);

/// How long the supervisor may take to say that it has begun.
const BEGINNING: Duration = Duration::from_secs(5);

/// How long ending a process group may take: five seconds of grace, three after the kill, and the way there.
const KILLING: Duration = Duration::from_secs(20);

/// After a command has ended and all that it wrote is here, others may hold its outputs open. What comes within this
/// time is still read, and no more, however much flows.
const STRAGGLERS: Duration = Duration::from_millis(200);

/// The input that is written without a task of its own, since a pipe holds it: 64 KiB on Linux.
const FITS_A_PIPE: usize = 60 << 10;

/// How much is read at a time.
const CHUNK: usize = 16 << 10;

/// A session over OpenSSH.
#[derive(Debug)]
pub(crate) struct SshSession {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ssh: Arc<RunSsh>,
    machine: Machine,
    /// Where commands run, on a machine that doesn't belong to the run.
    base: Option<String>,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// Tells of channels that are free again.
    freed: Arc<Notify>,
    growing: AsyncMutex<()>,
    /// What is kept for ending a command. A command begins only when it is there.
    spare: AsyncMutex<Option<Spare>>,
    /// Whether the machine gives a single channel in all: then commands run one at a time, without a spare.
    alone: AtomicBool,
    /// The control group that the run's commands join, on a machine that doesn't belong to the run.
    control_group: OnceLock<ControlGroup>,
    /// Whether the machine's login shell is known to start our `sh`.
    greeted: AtomicBool,
    /// What goes on on the machine, commands that are being ended included.
    tasks: TaskTracker,
    nonce: AtomicU32,
}

#[derive(Debug)]
struct Connection {
    master: Master,
    session: Arc<openssh::Session>,
    busy: AtomicUsize,
    /// What this sshd allows; learned when it refuses.
    limit: AtomicUsize,
}

/// A place for one command. Given back on drop.
#[derive(Debug)]
struct Channel {
    connection: Arc<Connection>,
    freed: Arc<Notify>,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.connection.busy.fetch_sub(1, Ordering::Relaxed);
        self.freed.notify_waiters();
    }
}

/// A `sh` that waits for its line.
#[derive(Debug)]
struct Spare {
    child: RemoteChild,
    feed: PipeWriter,
    _channel: Channel,
}

impl Connection {
    fn new(master: Master) -> Arc<Self> {
        let session = openssh::Session::resume_mux(master.socket().into(), None);
        Arc::new(Self {
            master,
            session: Arc::new(session),
            busy: AtomicUsize::new(0),
            limit: AtomicUsize::new(CHANNELS),
        })
    }

    /// Opens a channel for a line that the login shell reads.
    async fn open(
        &self,
        line: &str,
        stdin: Stdio,
        stdout: Stdio,
    ) -> Result<Child<Arc<openssh::Session>>, SessionError> {
        let mut command = self.session.clone().arc_raw_command(line);
        command.stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        tokio::select! {
            biased;
            () = self.master.died() => Err(self.master.lost()),
            child = command.spawn() => match child {
                Ok(child) => Ok(child),
                // A master that is ending refuses before it is gone.
                Err(_) if timeout(Duration::from_millis(100), self.master.died()).await.is_ok() => {
                    Err(self.master.lost())
                }
                Err(error) => {
                    Err(SessionError::new(SessionErrorKind::Remote, "the machine opened no channel").source(error))
                }
            },
        }
    }

    /// Asks the machine for a sign of life.
    async fn check(&self) -> Result<(), SessionError> {
        let echo = async {
            let child = self.open("exec true", Stdio::null(), Stdio::null()).await?;
            child.wait().await.map_err(|_| self.master.lost())
        };
        match timeout(ANSWER, echo).await {
            // The channel's end says nothing if the connection broke.
            Ok(Ok(_)) if !self.master.is_dead() => Ok(()),
            Ok(Err(error)) if error.kind == SessionErrorKind::Remote => Ok(()),
            Ok(_) => Err(self.master.lost()),
            Err(_) => Err(silent()),
        }
    }
}

/// What a script of tsunami's own says on one of its outputs.
#[derive(Debug, Default)]
struct Answer {
    preamble: Preamble,
    bytes: Vec<u8>,
}

/// What comes from a channel, and what has been read of it.
struct Outputs {
    /// `None` where somebody else takes it.
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    out: Answer,
    err: Answer,
}

impl Outputs {
    fn of(child: &mut RemoteChild) -> Self {
        let (stdout, stderr) = (child.stdout().take(), child.stderr().take());
        Self { stdout, stderr, out: Answer::default(), err: Answer::default() }
    }
}

impl Answer {
    /// Reads until the end, or until it is enough.
    async fn read_on(
        &mut self,
        stream: &mut Option<impl AsyncRead + Unpin>,
        enough: impl Fn(&Self) -> bool,
    ) -> Result<(), SessionError> {
        let mut chunk = [0; 4096];
        // What came before an error is all there is.
        while !enough(self)
            && let Some(stream) = stream.as_mut()
            && let Ok(count @ 1..) = stream.read(&mut chunk).await
        {
            let more = self.preamble.take(&chunk[..count]).map_err(too_much)?;
            self.bytes.extend_from_slice(&more);
            if self.bytes.len() > SCRIPT_OUTPUT_LIMIT {
                return Err(too_much(format!("more than {} KiB", SCRIPT_OUTPUT_LIMIT >> 10)));
            }
        }
        Ok(())
    }

    fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }

    /// All that was said, noise included.
    fn words(&self) -> String {
        [self.preamble.noise(), &self.bytes].map(String::from_utf8_lossy).concat()
    }
}

impl SshSession {
    pub(crate) fn new(ssh: Arc<RunSsh>, machine: &Machine, master: Master) -> Self {
        let shared = Shared {
            ssh,
            machine: machine.clone(),
            base: machine.login.directory.clone(),
            connections: Mutex::new(vec![Connection::new(master)]),
            freed: Arc::default(),
            growing: AsyncMutex::default(),
            spare: AsyncMutex::default(),
            alone: AtomicBool::new(false),
            control_group: OnceLock::new(),
            greeted: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            nonce: AtomicU32::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Whether anything was ever said to the machine: it is known to run our `sh`.
    pub(crate) fn has_shell(&self) -> bool {
        self.shared.greeted.load(Ordering::Relaxed)
    }

    /// Runs a script of tsunami's own, outside of the run's directory and unmarked as the run's. Returns what
    /// it printed.
    async fn script(&self, script: &str, args: &[&str]) -> Result<String, SessionError> {
        let answered = timeout(SCRIPT_TIMEOUT, self.shared.script(shell::script_line(script, args)?));
        let seconds = SCRIPT_TIMEOUT.as_secs();
        let silent = |_| SessionError::new(SessionErrorKind::Remote, format!("no answer within {seconds} s"));
        answered.await.map_err(silent)?
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
        let machine = self.shared.machine.name();
        let watch = watchdog::watch(self.shared.ssh.run(), directory, until, arming);
        let args: Vec<&str> =
            [watchdog::SCRIPT, &machine].into_iter().chain(watch.iter().map(String::as_str)).collect();
        // The watchdog holds the script's outputs until it watches.
        let said = self.script(ARM, &args).await?;
        let group = watchdog::armed(&said).ok_or_else(|| {
            let message = format!("the watchdog of the run does not start: it said `{}`", said.trim());
            SessionError::new(SessionErrorKind::Remote, message)
        })?;
        if let Some(group) = group {
            // The first stays.
            let _ = self.shared.control_group.set(group);
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
        let run = self.shared.ssh.run().to_string();
        let said = self.script(REAP, &[directory, &run, watchdog::SCRIPT]).await?;
        Ok(watchdog::leftovers(&said, place))
    }
}

impl Shared {
    /// Waits for a place to run a command: on a connection that has one, or else on a new connection.
    async fn channel(&self) -> Result<Channel, SessionError> {
        loop {
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(channel) = self.free_channel()? {
                return Ok(channel);
            }
            tokio::select! {
                () = &mut freed => {}
                grown = self.grow() => if !grown {
                    // The others still work: wait for them.
                    let _ = timeout(ANSWER, freed).await;
                },
            }
        }
    }

    /// Opens a further connection, if there may be one.
    async fn grow(&self) -> bool {
        let _one_at_a_time = self.growing.lock().await;
        if matches!(self.free_channel(), Ok(Some(_))) {
            return true;
        }
        let limits = || self.lock().iter().map(|one| one.limit.load(Ordering::Relaxed)).min();
        if self.alone.load(Ordering::Relaxed) || self.lock().len() >= CONNECTIONS {
            return false;
        }
        match self.ssh.master(&self.machine, Instant::now() + ANSWER).await {
            Ok(master) => {
                let connection = Connection::new(master);
                // What one was refused, others are.
                connection.limit.store(limits().unwrap_or(CHANNELS), Ordering::Relaxed);
                self.lock().push(connection);
                self.freed.notify_waiters();
                true
            }
            Err(error) => {
                tracing::debug!(machine = self.machine.name(), %error, "no further connection");
                false
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many channels are in use.
    fn busy(&self) -> usize {
        self.lock().iter().map(|connection| connection.busy.load(Ordering::Relaxed)).sum()
    }

    /// Picks the least busy connection that has room.
    fn free_channel(&self) -> Result<Option<Channel>, SessionError> {
        let connections = self.lock();
        let first = connections.first().ok_or_else(closed)?;
        let room = |connection: &&Arc<Connection>| {
            connection.busy.load(Ordering::Relaxed) < connection.limit.load(Ordering::Relaxed)
                && !connection.master.is_dead()
        };
        let connection = connections.iter().filter(room).min_by_key(|c| c.busy.load(Ordering::Relaxed));
        // Where none lives, opening a channel tells why.
        let connection =
            connection.or(Some(first).filter(|_| connections.iter().all(|c| c.master.is_dead())));
        Ok(connection.map(|connection| {
            connection.busy.fetch_add(1, Ordering::Relaxed);
            Channel { connection: connection.clone(), freed: self.freed.clone() }
        }))
    }

    /// Opens a channel to a `sh` that reads its line. If sshd takes fewer than we thought, waits for another to
    /// end.
    async fn open(
        &self,
        mut channel: Channel,
        stdin: &PipeReader,
        stdout: Option<&PipeWriter>,
    ) -> Result<(Channel, RemoteChild), SessionError> {
        let mut refusals = 0;
        loop {
            let connection = channel.connection.clone();
            let ends = || {
                let stdin = stdin.try_clone().map(|pipe| stdio(pipe.into()))?;
                let stdout =
                    stdout.map(|pipe| pipe.try_clone().map(|pipe| stdio(pipe.into()))).transpose()?;
                io::Result::Ok((stdin, stdout.unwrap_or_else(Stdio::piped)))
            };
            let (stdin, stdout) = ends().map_err(|error| local("no more pipes", error))?;
            let opening = timeout(ANSWER, connection.open(shell::LINE, stdin, stdout));
            let error = match opening.await {
                Ok(Ok(child)) => return Ok((channel, child)),
                Ok(Err(error)) => error,
                Err(_) => return Err(silent()),
            };
            let busy = connection.busy.load(Ordering::Relaxed);
            let patience = if busy > 1 { 1 } else { REFUSALS };
            if error.kind == SessionErrorKind::Remote && refusals < patience {
                refusals += 1;
                sleep(REFUSED).await;
                continue;
            }
            if error.kind != SessionErrorKind::Remote || busy <= 1 {
                return Err(error);
            }
            tracing::debug!(machine = self.machine.name(), busy, %error, "sshd takes fewer channels");
            connection.limit.store(busy - 1, Ordering::Relaxed);
            drop(channel);
            channel = self.channel().await?;
            refusals = 0;
        }
    }

    /// Sees to it that a command can be ended: at last, by keeping a channel for that.
    async fn keep_spare(&self) -> Result<(), SessionError> {
        let mut spare = self.spare.lock().await;
        while spare.is_none() && !self.alone.load(Ordering::Relaxed) {
            let (stdin, feed) = io::pipe().map_err(|error| local("no more pipes", error))?;
            let opening = async { self.open(self.channel().await?, &stdin, None).await };
            match timeout(ANSWER, opening).await {
                Ok(opened) => {
                    *spare = opened.map(|(channel, child)| Some(Spare { child, feed, _channel: channel }))?
                }
                Err(_) if self.busy() <= 1 => {
                    tracing::warn!(machine = self.machine.name(), "it gives one channel in all");
                    self.alone.store(true, Ordering::Relaxed);
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Ends a process group that a command of the run has made, and says whether it is gone.
    async fn end(&self, group: u32) -> bool {
        let kill = async {
            let line = supervisor::kill_line(self.ssh.run().as_str(), group).ok()?;
            // Whoever holds it for long is making one, and may wait for what is ended here.
            let spare = self.spare.try_lock().ok().and_then(|mut spare| spare.take());
            if let Some(spare) = spare
                && let Some(gone) = told_to_end(spare, &line).await
            {
                return Some(gone);
            }
            // Another command is being ended by it, or the machine has lost it.
            let (stdin, feed) = io::pipe().ok()?;
            let (channel, child) = self.open(self.channel().await.ok()?, &stdin, None).await.ok()?;
            drop(stdin);
            told_to_end(Spare { child, feed, _channel: channel }, &line).await
        };
        timeout(KILLING, kill).await.ok().flatten().unwrap_or(false)
    }

    /// Makes sure, once, that what reads a channel's standard input is our `sh`.
    async fn greet(&self, outputs: &mut Outputs) -> Result<(), SessionError> {
        if self.greeted.load(Ordering::Relaxed) {
            return Ok(());
        }
        let is_over = |answer: &Answer| answer.preamble.is_over();
        let Outputs { stdout, stderr, out, err } = outputs;
        let greeting = async {
            tokio::select! {
                heard = err.read_on(stderr, is_over) => heard?,
                // It may be silent, or the whole greeting.
                Err(error) = out.read_on(stdout, is_over), if stdout.is_some() => return Err(error),
            }
            if !err.preamble.is_over() {
                // What it has printed says more than any guess of ours.
                let _ = timeout(STRAGGLERS, out.read_on(stdout, is_over)).await;
            }
            Ok(())
        };
        timeout(ANSWER, greeting).await.unwrap_or(Ok(()))?;
        if err.preamble.is_over() {
            self.greeted.store(true, Ordering::Relaxed);
            return Ok(());
        }
        let connection = self.lock().first().cloned();
        if let Some(connection) = connection {
            connection.check().await?;
        }
        let words = [out.words(), err.words()].concat();
        Err(no_shell(&self.machine, words.trim()))
    }

    /// Runs a line of script, and returns what it printed.
    async fn script(&self, line: Vec<u8>) -> Result<String, SessionError> {
        let (stdin, mut feed) = io::pipe().map_err(|error| local("no more pipes", error))?;
        let (channel, mut child) = self.open(self.channel().await?, &stdin, None).await?;
        drop(stdin);
        let mut outputs = Outputs::of(&mut child);
        self.greet(&mut outputs).await?;
        // It fits into the pipe, or is read as it is written. That nobody reads it shows in the status.
        let _ = spawn_blocking(move || feed.write_all(&line)).await;
        let Outputs { mut stdout, mut stderr, mut out, mut err } = outputs;
        tokio::try_join!(out.read_on(&mut stdout, |_| false), err.read_on(&mut stderr, |_| false))?;
        let status = child.wait().await.map_err(|_| channel.connection.master.lost())?;
        if status.success() {
            return Ok(out.text().into_owned());
        }
        channel.connection.check().await?;
        Err(SessionError::new(SessionErrorKind::Remote, err.text().trim().to_owned()))
    }

    /// Runs a command in a task of its own, which nobody drops, so that the command is ended in good order when
    /// the caller goes away.
    async fn run(
        self: &Arc<Self>,
        command: &Command,
        input: Input,
        stdout: Option<Taken>,
        output: Arc<dyn OutputSink>,
        cancel: &CancellationToken,
    ) -> Result<Exit, SessionError> {
        let stop = cancel.child_token();
        let _when_dropped = stop.clone().drop_guard();
        let nonce = RandomState::new().hash_one(self.nonce.fetch_add(1, Ordering::Relaxed));
        let mark = supervisor::mark(nonce);
        let run = self.ssh.run().as_str();
        let (group, base) = (self.control_group.get(), self.base.as_deref());
        let header = supervisor::lines(run, group, command, &mark, base, stdout.is_none())?;
        let task = Supervised { shared: self.clone(), mark, header, input, stdout, output, stop };
        match self.tasks.spawn(task.run()).await.map_err(JoinError::try_into_panic) {
            Ok(result) => result,
            Err(Ok(panic)) => resume_unwind(panic),
            Err(Err(_)) => {
                Err(SessionError::new(SessionErrorKind::CancelledUnconfirmed, "the program is ending"))
            }
        }
    }
}

type RemoteChild = Child<Arc<openssh::Session>>;

/// Has a `sh` end a process group, and says whether that is gone; `None` if it says nothing of it.
async fn told_to_end(mut by: Spare, line: &[u8]) -> Option<bool> {
    by.feed.write_all(line).ok()?;
    drop(by.feed);
    let mut said = Answer::default();
    said.read_on(by.child.stdout(), |_| false).await.ok()?;
    match said.text().trim() {
        "gone" => Some(true),
        "left" => Some(false),
        _ => None,
    }
}

/// What a command reads.
#[derive(Debug)]
enum Input {
    Given(Stdin),
    Parcel(Parcel),
}

impl Input {
    /// Feeds the header and the input into a pipe; in a thread of its own if the pipe may not hold it all.
    fn feed(self, header: Vec<u8>, mut pipe: PipeWriter) -> Option<tokio::task::JoinHandle<io::Result<()>>> {
        let small = match &self {
            Self::Given(Stdin::Null) => header.len(),
            Self::Given(Stdin::Bytes(bytes)) => header.len() + bytes.len(),
            Self::Given(Stdin::File(_)) | Self::Parcel(_) => usize::MAX,
        };
        let write = move || {
            pipe.write_all(&header)?;
            match self {
                Self::Given(Stdin::Null) => Ok(()),
                Self::Given(Stdin::Bytes(bytes)) => pipe.write_all(&bytes),
                Self::Given(Stdin::File(path)) => io::copy(&mut File::open(path)?, &mut pipe).map(drop),
                Self::Parcel(parcel) => parcel.pack(io::BufWriter::with_capacity(FITS_A_PIPE, pipe)),
            }
        };
        if small > FITS_A_PIPE {
            return Some(spawn_blocking(write));
        }
        // Nothing has been read yet, and it fits.
        let _ = write();
        None
    }
}

/// One supervised command.
struct Supervised {
    shared: Arc<Shared>,
    mark: String,
    header: Vec<u8>,
    input: Input,
    stdout: Option<Taken>,
    output: Arc<dyn OutputSink>,
    stop: CancellationToken,
}

/// Somebody who takes a command's standard output from a pipe, and says when that is done.
#[derive(Debug)]
struct Taken {
    pipe: PipeWriter,
    taken: oneshot::Receiver<()>,
}

impl Supervised {
    async fn run(self) -> Result<Exit, SessionError> {
        let Self { shared, mark, header, input, stdout, output, stop } = self;
        let (stdout, taken) = stdout.map(|stdout| (stdout.pipe, stdout.taken)).unzip();
        let cancelled = || SessionError::new(SessionErrorKind::Cancelled, "cancelled");
        let channel = stop.run_until_cancelled(shared.channel()).await.ok_or_else(cancelled)??;
        let (stdin, feed) = io::pipe().map_err(|error| local("no more pipes", error))?;
        let (channel, mut child) = shared.open(channel, &stdin, stdout.as_ref()).await?;
        drop((stdin, stdout));
        let mut outputs = Outputs::of(&mut child);
        // Until the greeting is over nothing has begun.
        stop.run_until_cancelled(shared.greet(&mut outputs)).await.ok_or_else(cancelled)??;
        stop.run_until_cancelled(shared.keep_spare()).await.ok_or_else(cancelled)??;
        let feeding = input.feed(header, feed);
        let mut pump = Pump {
            connection: channel.connection.clone(),
            shared: shared.clone(),
            stdout: outputs.stdout,
            stderr: outputs.stderr,
            stdout_preamble: outputs.out.preamble,
            stderr_preamble: outputs.err.preamble,
            stdout_notes: Notes::new(&mark),
            stderr_notes: Notes::new(&mark),
            output,
            group: None,
            exit: None,
            over: false,
            no_directory: None,
            sink_failed: None,
            killed: None,
        };
        let stopped = pump.run(&stop).await;
        if let (Some(taken), false) = (taken, stopped) {
            // Closing the channel would cut off what is still on its way.
            let _ = stop.run_until_cancelled(taken).await;
        }
        // With the channel closed, whoever still feeds it finds out.
        drop(child);
        let fed = match feeding {
            Some(feeding) => feeding.await.unwrap_or(Ok(())),
            None => Ok(()),
        };
        match fed {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(local("cannot read what to send", error))
            }
            _ => pump.outcome(stopped).await,
        }
    }
}

/// Moves a command's output, and ends the command when asked to.
struct Pump {
    connection: Arc<Connection>,
    shared: Arc<Shared>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    stdout_preamble: Preamble,
    stderr_preamble: Preamble,
    stdout_notes: Notes,
    stderr_notes: Notes,
    output: Arc<dyn OutputSink>,
    group: Option<u32>,
    exit: Option<Exit>,
    /// Whether all that the command itself wrote to standard output is here.
    over: bool,
    no_directory: Option<String>,
    sink_failed: Option<io::Error>,
    killed: Option<bool>,
}

impl Pump {
    /// Returns whether the command was asked to end.
    async fn run(&mut self, stop: &CancellationToken) -> bool {
        let mut buffers = vec![0; 2 * CHUNK];
        let (out, err) = buffers.split_at_mut(CHUNK);
        let mut stopping = false;
        let mut killing = None;
        let mut alarm: Option<Instant> = None;
        while self.stdout.is_some() || self.stderr.is_some() {
            tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => stopping = true,
                gone = async { killing.as_mut().expect("checked").await }, if killing.is_some() => {
                    killing = None;
                    self.killed = Some(gone);
                    alarm = Some(Instant::now() + STRAGGLERS);
                }
                // Before the reads, which may always be ready.
                () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => break,
                count = read_some(&mut self.stderr, err) => self.take_stderr(&err[..count]),
                count = read_some(&mut self.stdout, out) => self.take_stdout(&out[..count]),
            }
            stopping |= self.sink_failed.is_some();
            if killing.is_some() || self.killed.is_some() {
                continue;
            }
            // What a command that has ended left behind is ended as well.
            if stopping {
                match self.group {
                    Some(group) => {
                        let shared = self.shared.clone();
                        alarm = None;
                        killing = Some(Box::pin(async move { shared.end(group).await }));
                    }
                    None => alarm = alarm.or_else(|| Some(Instant::now() + BEGINNING)),
                }
            } else if self.exit.is_some() && (self.over || self.stdout.is_none()) {
                alarm = alarm.or_else(|| Some(Instant::now() + STRAGGLERS));
            }
        }
        if let Some(killing) = killing {
            self.killed = Some(killing.await);
        }
        stopping
    }

    fn take_stdout(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.stdout = None;
            let rest = std::mem::take(&mut self.stdout_notes).rest();
            if !rest.is_empty() {
                self.hand_on(Stream::Stdout, &rest);
            }
            return;
        }
        let mut preamble = std::mem::take(&mut self.stdout_preamble);
        match preamble.take(bytes) {
            Ok(said) => {
                let mut notes = std::mem::take(&mut self.stdout_notes);
                match notes.take(&said, |bytes| self.hand_on(Stream::Stdout, bytes)) {
                    Ok(found) => self.over |= found.contains(&Note::Over),
                    Err(error) => self.refuse(error),
                }
                self.stdout_notes = notes;
            }
            Err(error) => self.refuse(error),
        }
        self.stdout_preamble = preamble;
    }

    fn take_stderr(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.stderr = None;
        }
        let mut preamble = std::mem::take(&mut self.stderr_preamble);
        let said = preamble.take(bytes).unwrap_or_else(|error| {
            self.refuse(error);
            Cow::Borrowed(&[])
        });
        self.stderr_preamble = preamble;
        let mut notes = std::mem::take(&mut self.stderr_notes);
        let found = notes.take(&said, |bytes| self.hand_on(Stream::Stderr, bytes));
        if self.stderr.is_none() {
            let rest = notes.rest();
            if !rest.is_empty() {
                self.hand_on(Stream::Stderr, &rest);
            }
        } else {
            self.stderr_notes = notes;
        }
        let found = found.unwrap_or_else(|error| {
            self.refuse(error);
            Vec::new()
        });
        for note in found {
            match note {
                // The first of a kind is the supervisor's.
                Note::Started(group) => drop(self.group.get_or_insert(group)),
                Note::NoDirectory(directory) => drop(self.no_directory.get_or_insert(directory)),
                Note::Ended(exit) => drop(self.exit.get_or_insert(exit)),
                Note::Over => {}
            }
        }
    }

    fn hand_on(&mut self, stream: Stream, bytes: &[u8]) {
        if self.sink_failed.is_none() {
            self.sink_failed = self.output.write(stream, bytes).err();
        }
    }

    /// What the machine says is not read any further.
    fn refuse(&mut self, error: impl Into<BoxError>) {
        self.sink_failed.get_or_insert_with(|| io::Error::other(error));
    }

    /// What all that was seen comes to.
    async fn outcome(self, stopped: bool) -> Result<Exit, SessionError> {
        if let Some(error) = self.sink_failed {
            return Err(local("the command's output could not be taken", error));
        }
        match (self.exit, self.killed) {
            (_, Some(true)) => return Err(SessionError::new(SessionErrorKind::Cancelled, "cancelled")),
            (_, Some(false)) => {
                self.connection.check().await?;
                let message = "cancelled, and the command may still be running";
                return Err(SessionError::new(SessionErrorKind::CancelledUnconfirmed, message));
            }
            (Some(exit), None) => return Ok(exit),
            (None, None) => {}
        }
        if let Some(directory) = self.no_directory {
            return Err(SessionError::new(
                SessionErrorKind::Remote,
                format!("cannot enter the directory {directory}"),
            ));
        }
        self.connection.check().await?;
        let Some(group) = self.group else {
            let kind =
                if stopped { SessionErrorKind::CancelledUnconfirmed } else { SessionErrorKind::Remote };
            return Err(SessionError::new(
                kind,
                "the machine did not start the command: has it `sh` and `setsid`?",
            ));
        };
        // Somebody ended the supervisor, so nobody saw how the command ended, or whether.
        let gone = self.shared.end(group).await;
        let left = if gone { "is gone" } else { "may still be running" };
        let message = format!("the command's supervisor was ended from outside; the command {left}");
        Err(SessionError::new(SessionErrorKind::Remote, message))
    }
}

async fn read_some(stream: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    match stream {
        // An error is the end as well: why it came is asked afterwards.
        Some(stream) => stream.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
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
        self.shared.run(command, Input::Given(command.stdin.clone()), None, output, cancel).await
    }

    async fn upload(&self, from: &Path, to: &str) -> Result<(), SessionError> {
        let parcel = Parcel::new(from, to)?;
        let unpack = own_script(parcel::UNPACK, [&parcel.directory, &parcel.mode]);
        let said = Arc::new(Said::default());
        let never = CancellationToken::new();
        let exit = self.shared.run(&unpack, Input::Parcel(parcel), None, said.clone(), &never).await?;
        if exit.success() {
            return Ok(());
        }
        let message = format!("unpacking ended with {exit}: {}", said.text().trim());
        Err(SessionError::new(SessionErrorKind::Transfer, message))
    }

    async fn download(&self, download: &Download) -> Result<Vec<usize>, SessionError> {
        let mut pack = own_script(transfer::PACK, &download.patterns);
        pack.cwd.clone_from(&download.cwd);
        let (from, pipe) = io::pipe().map_err(|error| local("no more pipes", error))?;
        let (into, patterns) = (download.into.clone(), download.patterns.clone());
        let (done, taken) = oneshot::channel();
        let unpacking = spawn_blocking(move || {
            let unpacked = unpack::unpack(AfterPreamble::new(from), &into, &patterns, || done.is_closed());
            let _ = done.send(());
            unpacked
        });
        let to = Taken { pipe, taken };
        let said = Arc::new(Said::default());
        let never = CancellationToken::new();
        let packed = self.shared.run(&pack, Input::Given(Stdin::Null), Some(to), said.clone(), &never).await;
        let unpacked = unpacking.await.map_err(|error| local("unpacking failed", io::Error::other(error)))?;
        transfer::outcome(packed, unpacked, download.patterns.len(), &said.text())
    }

    async fn check(&self) -> Result<(), SessionError> {
        let first = self.shared.lock().first().cloned();
        match first {
            Some(connection) => connection.check().await,
            None => Err(closed()),
        }
    }

    async fn close(&self) -> Result<(), SessionError> {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        drop(self.shared.spare.lock().await.take());
        let connections = std::mem::take(&mut *self.shared.lock());
        self.shared.freed.notify_waiters();
        if self.shared.base.is_some()
            && let Some(connection) = connections.into_iter().next().and_then(Arc::into_inner)
        {
            self.shared.ssh.park(&self.shared.machine.name(), connection.master);
        }
        Ok(())
    }
}

/// A command made of a script of tsunami's own.
fn own_script<'a>(script: &str, args: impl IntoIterator<Item = &'a String>) -> Command {
    let command = Command::program("sh").arg("-c").arg(script).arg("sh");
    args.into_iter().fold(command, |command, arg| command.arg(arg))
}

/// What a script of tsunami's own said on standard error, a few kilobytes of it.
#[derive(Debug, Default)]
struct Said(Mutex<Vec<u8>>);

impl Said {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl OutputSink for Said {
    fn write(&self, _: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = (64usize << 10).saturating_sub(said.len());
        said.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(())
    }
}

/// A pipe's end, for a channel.
fn stdio(pipe: OwnedFd) -> Stdio {
    Stdio::from(File::from(pipe))
}

fn local(message: impl Into<String>, error: io::Error) -> SessionError {
    SessionError::new(SessionErrorKind::Local, message).source(error)
}

fn too_much(error: impl Into<BoxError>) -> SessionError {
    SessionError::new(SessionErrorKind::Remote, "the machine says more than is read").source(error)
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

fn closed() -> SessionError {
    SessionError::new(SessionErrorKind::Lost, "the session is closed")
}

fn silent() -> SessionError {
    let message = format!("the machine did not answer within {} s", ANSWER.as_secs());
    SessionError::new(SessionErrorKind::Lost, message)
}
