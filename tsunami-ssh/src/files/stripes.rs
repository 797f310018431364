//! Transfers over several channels at once.
//!
//! sshd takes 2 MiB on a channel before it has answered, however far away it is: at a sixth of a second there and back,
//! that is 12 MiB/s. So what is long goes to a far machine in blocks, by turns over the channel of the script that
//! unpacks and over further ones, as many as are free. Those end in named pipes, from which the script takes the blocks
//! in order; a line on its own channel says where the next one comes from. Nothing is written twice.
//!
//! A download comes likewise, where this side takes no more on a channel either. Nobody knows how long it will be, so
//! further channels are opened once something has come.
//!
//! SSH itself sees to it that what a channel brings is what was sent. Whether it has brought all of it, its status
//! says: a transfer is done when all that took part have succeeded.

use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tsunami_core::{Command, Exit, OutputSink, SessionError, SessionErrorKind, Stream};

use super::progress::{Counting, Progress};
use crate::command::{Commands, Input, StdoutConsumer};
use crate::shell::AfterPreamble;

/// What a further channel of an upload runs.
const SIDE: &str = include_str!("side.sh");

/// What a further channel of a download runs.
const BRING: &str = include_str!("bring.sh");

/// The bytes of an upload from which it goes over several channels: until they are open, a single one brings as much.
pub(super) const STRIPED_BYTES: u64 = 16 << 20;

/// The bytes of a download after which further channels are opened.
const DOWNLOADED_BYTES: usize = 4 << 20;

/// How far away a machine is then, there and back. Nearer ones take 100 MiB/s and more over a single channel.
pub(super) const FAR: Duration = Duration::from_millis(20);

/// Bytes of a block. For each the machine starts a process, and each upload holds one; a channel's window holds four.
const BLOCK_BYTES: usize = 512 << 10;

/// The numbers of the further channels, which are those of the script's descriptors: a shell has no more for sure.
const NUMBERS: std::ops::RangeInclusive<u8> = 3..=9;

/// The number of the signal that ends who writes for nobody.
const SIGPIPE: u8 = 13;

/// A further channel that is ready for blocks.
type Side = (u8, PipeWriter);

/// The packing end of an upload that may go over several channels.
#[derive(Debug)]
pub(super) struct Stripes {
    directory: String,
    begin: Arc<Notify>,
    sides: Mutex<Option<Receiver<Side>>>,
}

/// The sending end of it.
#[derive(Debug)]
pub(super) struct Sides {
    directory: String,
    begin: Arc<Notify>,
    ready: Sender<Side>,
}

/// Both ends of one upload.
pub(super) fn stripes() -> (Stripes, Sides) {
    let directory = unique_directory();
    let (begin, (ready, sides)) = (Arc::<Notify>::default(), channel());
    let stripes =
        Stripes { directory: directory.clone(), begin: begin.clone(), sides: Mutex::new(Some(sides)) };
    (stripes, Sides { directory, begin, ready })
}

const DIRECTORY_PREFIX: &str = ".tsunami-stripes-";

fn unique_directory() -> String {
    format!("{DIRECTORY_PREFIX}{:016x}", RandomState::new().hash_one(0))
}

/// Whether this is called like the directory of a transfer's named pipes, which is made where people's files may be.
pub(super) fn is_own_directory(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str);
    let digits = name.and_then(|name| name.strip_prefix(DIRECTORY_PREFIX));
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

impl Stripes {
    /// The directory of the named pipes, in the session's own.
    pub(super) fn directory(&self) -> &str {
        &self.directory
    }

    /// What a file is called until all of it is there.
    pub(super) fn part(&self) -> String {
        self.directory.replace("stripes", "part")
    }

    /// Has further channels opened for what is written now.
    pub(super) fn over<W: Write>(&self, main: W) -> io::Result<Striped<W>> {
        let sides = self.sides.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sides = sides.ok_or_else(|| io::Error::other("it was sent already"))?;
        self.begin.notify_one();
        Ok(Striped { main, block: Vec::with_capacity(BLOCK_BYTES), sides, open: Vec::new(), turn: 0 })
    }
}

/// Writes by turns to all channels that are ready.
#[derive(Debug)]
pub(super) struct Striped<W> {
    main: W,
    block: Vec<u8>,
    sides: Receiver<Side>,
    open: Vec<Side>,
    turn: usize,
}

impl<W: Write> Striped<W> {
    fn send(&mut self) -> io::Result<()> {
        self.open.extend(self.sides.try_iter());
        let turn = self.turn % (self.open.len() + 1);
        self.turn = turn + 1;
        // What is said of a block must be there before anybody waits for the block to be taken.
        if let Some((number, side)) = turn.checked_sub(1).and_then(|index| self.open.get_mut(index)) {
            writeln!(self.main, "{number}")?;
            self.main.flush()?;
            side.write_all(&self.block)?;
        } else {
            self.main.write_all(b"0\n")?;
            self.main.write_all(&self.block)?;
            self.main.flush()?;
        }
        self.block.clear();
        Ok(())
    }

    /// Sends the rest.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.open.clear();
        self.main.write_all(b"-\n")?;
        self.main.write_all(&self.block)?;
        self.main.flush()
    }
}

impl<W: Write> Write for Striped<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..count]);
        if self.block.len() == BLOCK_BYTES {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sides {
    /// Sends over further channels, once that is asked for, as long as `main` does its part. What `cancel` ends is all
    /// of it.
    pub(super) async fn beside(
        self,
        commands: &Arc<Commands>,
        main: impl Future<Output = Result<Exit, SessionError>>,
        cancel: &CancellationToken,
    ) -> Result<Exit, SessionError> {
        let over = CancellationToken::new();
        let sides = async {
            if over.run_until_cancelled(self.begin.notified()).await.is_none() {
                return Ok(());
            }
            try_join_all(NUMBERS.map(|number| self.side(commands, number, cancel, &over))).await.map(drop)
        };
        beside(main, sides, &over, cancel).await
    }

    /// One channel, if there is one. It goes when the upload is over and has not used it.
    async fn side(
        &self,
        commands: &Arc<Commands>,
        number: u8,
        cancel: &CancellationToken,
        over: &CancellationToken,
    ) -> Result<(), SessionError> {
        let side = Command::program("sh").arg("-c").arg(SIDE).arg("sh");
        let side = side.arg(format!("{}/{number}", self.directory));
        let ready = Arc::new(FurtherChannel {
            number,
            ready: self.ready.clone(),
            feed: Mutex::default(),
            is_ready: Notify::new(),
        });
        let running = commands.run(&side, Input::Later(ready.clone()), None, ready.clone(), cancel);
        tokio::pin!(running);
        let ended = tokio::select! {
            biased;
            ended = &mut running => {
                if ready.is_in_use() { ended } else {
                    tracing::debug!(number, ?ended, "no further channel for an upload");
                    return Ok(());
                }
            }
            () = ready.is_ready.notified() => running.await,
            () = over.cancelled() => return Ok(()),
        };
        match ended? {
            // If nobody takes what it brings, that is what the script that unpacks has to say.
            exit if exit.success() || exit == Exit::Signal(SIGPIPE) => Ok(()),
            exit => {
                let message = format!("one of the upload's channels ended with {exit}");
                Err(SessionError::new(SessionErrorKind::Transfer, message))
            }
        }
    }
}

/// Waits for what goes over several channels; `over` tells the further ones that the first has ended.
async fn beside(
    main: impl Future<Output = Result<Exit, SessionError>>,
    sides: impl Future<Output = Result<(), SessionError>>,
    over: &CancellationToken,
    cancel: &CancellationToken,
) -> Result<Exit, SessionError> {
    let sides = async {
        sides.await?;
        over.cancelled().await;
        Ok(())
    };
    tokio::pin!(main, sides);
    tokio::select! {
        exit = &mut main => {
            over.cancel();
            // Where one of them has failed, that is why.
            let exit = exit?;
            sides.await.map(|()| exit)
        }
        Err(error) = &mut sides => {
            cancel.cancel();
            let _ = main.await;
            Err(error)
        }
    }
}

/// A further channel on its way to be ready.
#[derive(Debug)]
pub(crate) struct FurtherChannel {
    number: u8,
    ready: Sender<Side>,
    feed: Mutex<Feed>,
    is_ready: Notify,
}

/// What a further channel reads.
#[derive(Debug, Default)]
enum Feed {
    #[default]
    Closed,
    Open(PipeWriter),
    InUse,
}

impl FurtherChannel {
    /// Sends the command, and keeps the way to what it reads.
    pub(crate) fn begin(&self, command: &[u8], mut pipe: PipeWriter) -> io::Result<()> {
        let mut feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        pipe.write_all(command)?;
        *feed = Feed::Open(pipe);
        Ok(())
    }

    fn is_in_use(&self) -> bool {
        matches!(*self.feed.lock().unwrap_or_else(PoisonError::into_inner), Feed::InUse)
    }
}

impl OutputSink for FurtherChannel {
    /// A sign that its command waits for blocks.
    fn write(&self, stream: Stream, _: &[u8]) -> io::Result<()> {
        let mut feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        if stream == Stream::Stdout {
            if let Feed::Open(pipe) = std::mem::replace(&mut *feed, Feed::InUse) {
                // Who packs may be done, and then this one is, too.
                let _ = self.ready.send((self.number, pipe));
            }
            self.is_ready.notify_one();
        }
        Ok(())
    }
}

/// Where a further channel of a download brings something.
type Brings = (u8, AfterPreamble<Counting<PipeReader>>, oneshot::Sender<()>);

/// Reads a download that comes over several channels, or may.
#[derive(Debug)]
pub(super) struct Joined<R> {
    main: R,
    sides: Receiver<Brings>,
    open: Vec<Brings>,
    from: Source,
    /// What is still to come of the present block.
    left: usize,
    received: usize,
    begin: Arc<Notify>,
    /// Numbers of channels that have brought something, as bits.
    used: Arc<AtomicU16>,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Main,
    Side(u8),
    /// The first one brings all the rest.
    Rest,
}

/// The other end of it.
#[derive(Debug)]
pub(super) struct Bringers {
    directory: String,
    begin: Arc<Notify>,
    sides: Sender<Brings>,
    used: Arc<AtomicU16>,
    progress: Progress,
}

/// Both ends of a download whose first channel is `main`.
pub(super) fn joined<R: Read>(main: R, progress: &Progress) -> (Joined<R>, Bringers) {
    let (begin, used, (sides, ready)) = (Arc::<Notify>::default(), Arc::<AtomicU16>::default(), channel());
    let bringers = Bringers {
        directory: unique_directory(),
        begin: begin.clone(),
        sides,
        used: used.clone(),
        progress: progress.clone(),
    };
    let (from, open) = (Source::Main, Vec::new());
    (Joined { main, sides: ready, open, from, left: 0, received: 0, begin, used }, bringers)
}

impl<R: Read> Joined<R> {
    /// Reads where the next block comes from. Returns whether there is one.
    fn next(&mut self) -> io::Result<bool> {
        let mut line = [0; 2];
        match self.main.read_exact(&mut line) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            read => read?,
        }
        self.left = BLOCK_BYTES;
        self.from = match line {
            [b'-', b'\n'] => Source::Rest,
            [b'9', b'\n'] => Source::Main,
            [digit @ b'3'..=b'8', b'\n'] => Source::Side(digit - b'0'),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not in blocks")),
        };
        Ok(true)
    }
}

impl<R: Read> Read for Joined<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Source::Rest = self.from {
            return self.main.read(buffer);
        }
        if self.left == 0 && !self.next()? {
            return Ok(0);
        }
        let most = buffer.len().min(self.left);
        let buffer = &mut buffer[..most];
        let count = match self.from {
            Source::Rest => return self.main.read(buffer),
            Source::Main => self.main.read(buffer)?,
            Source::Side(number) => {
                self.open.extend(self.sides.try_iter());
                self.used.fetch_or(1 << number, Ordering::Relaxed);
                let side = self.open.iter_mut().find(|side| side.0 == number);
                let none = || io::Error::new(io::ErrorKind::InvalidData, "it comes over no channel");
                side.ok_or_else(none)?.1.read(buffer)?
            }
        };
        self.left -= count;
        self.received = self.received.saturating_add(count);
        if self.received >= DOWNLOADED_BYTES {
            self.begin.notify_one();
        }
        Ok(count)
    }
}

impl Bringers {
    /// The directory of the named pipes, for the script that packs.
    pub(super) fn directory(&self, base: Option<&str>) -> String {
        base.map_or_else(|| self.directory.clone(), |base| format!("{base}/{}", self.directory))
    }

    /// Brings over further channels, once enough has come, as long as `main` does its part.
    pub(super) async fn beside(
        self,
        commands: &Arc<Commands>,
        main: impl Future<Output = Result<Exit, SessionError>>,
        cancel: &CancellationToken,
    ) -> Result<Exit, SessionError> {
        let over = CancellationToken::new();
        let sides = async {
            if over.run_until_cancelled(self.begin.notified()).await.is_none() {
                return Ok(());
            }
            try_join_all((3..=8).map(|number| self.side(commands, number, cancel, &over))).await.map(drop)
        };
        beside(main, sides, &over, cancel).await
    }

    async fn side(
        &self,
        commands: &Arc<Commands>,
        number: u8,
        cancel: &CancellationToken,
        over: &CancellationToken,
    ) -> Result<(), SessionError> {
        let bring = Command::program("sh").arg("-c").arg(BRING).arg("sh");
        let bring = bring.arg(format!("{}/{number}", self.directory));
        let no_pipe = |error| SessionError::new(SessionErrorKind::Local, "no more pipes").source(error);
        let (from, pipe) = io::pipe().map_err(no_pipe)?;
        let (finished, done) = oneshot::channel();
        let from = AfterPreamble::new(self.progress.counting(from));
        if self.sides.send((number, from, finished)).is_err() {
            return Ok(());
        }
        let consumer = Some(StdoutConsumer { pipe, done });
        let is_used = || self.used.load(Ordering::Relaxed) & (1 << number) != 0;
        let running = commands.run(&bring, Input::NothingIfFree, consumer, Arc::new(()), cancel);
        tokio::pin!(running);
        let ended = tokio::select! {
            biased;
            ended = &mut running => ended,
            () = over.cancelled() => if is_used() { running.await } else { return Ok(()) },
        };
        match ended {
            Ok(exit) if exit.success() => Ok(()),
            ended if !is_used() => {
                tracing::debug!(number, ?ended, "no further channel for a download");
                Ok(())
            }
            Ok(exit) => {
                let message = format!("one of the download's channels ended with {exit}");
                Err(SessionError::new(SessionErrorKind::Transfer, message))
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::OwnedFd;
    use std::process::{Child, Command as Process, Stdio};

    use super::super::upload::UNPACK;
    use super::super::upload::tests::machines;
    use super::*;

    /// A script's process, which has said yes.
    fn ready(process: &mut Process, first: &[u8]) -> (Child, PipeWriter) {
        let mut child = process.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut pipe = PipeWriter::from(OwnedFd::from(child.stdin.take().unwrap()));
        pipe.write_all(first).unwrap();
        let mut answer = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
        assert_eq!(answer, *b"y");
        (child, pipe)
    }

    #[test]
    fn blocks_come_together_in_order_whatever_shell_and_dd_a_machine_has() {
        let root = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
        fs::write(root.path().join("file"), &content).unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_file("part", &mut File::open(root.path().join("file")).unwrap()).unwrap();
        let archive = archive.into_inner().unwrap();
        let all = machines(&root.path().join("tools"));
        std::os::unix::fs::symlink("/bin/busybox", root.path().join("tools/dd")).unwrap();
        for (shell, path) in all {
            for numbers in [&[][..], &[3], &[4, 9, 5]] {
                let place = tempfile::tempdir().unwrap();
                let script = |script: &str| {
                    let mut process = Process::new(shell[0]);
                    process.args(&shell[1..]).args(["-c", script, "sh"]);
                    process.current_dir(place.path()).env("PATH", &path);
                    process
                };
                let (stripes, sides) = stripes();
                let directory = stripes.directory().to_owned();
                let first = format!("s {directory} ./part \"./it's\"\n\n");
                let (mut main, pipe) = ready(script(UNPACK).args(["to", ""]), first.as_bytes());
                let mut children = Vec::new();
                for number in numbers {
                    let (side, pipe) = ready(script(SIDE).arg(format!("{directory}/{number}")), b"");
                    sides.ready.send((*number, pipe)).unwrap();
                    children.push(side);
                }
                let mut striped = stripes.over(pipe).unwrap();
                striped.write_all(&archive).unwrap();
                assert_eq!(striped.open.len(), numbers.len());
                striped.finish().unwrap();
                assert!(main.wait().unwrap().success(), "{shell:?} {path} {numbers:?}");
                children.iter_mut().for_each(|side| assert!(side.wait().unwrap().success()));
                assert!(fs::read(place.path().join("to/it's")).unwrap() == content, "{shell:?} {numbers:?}");
                assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
                assert_eq!(fs::read_dir(place.path().join("to")).unwrap().count(), 1);
            }
        }
    }
}
