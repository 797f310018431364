//! An upload over several channels at once.
//!
//! sshd takes 2 MiB on a channel before it has answered, however far away it is: at a sixth of a second there and back,
//! that is 12 MiB/s. So what is long goes to a far machine in blocks, by turns over the channel of the script that
//! unpacks and over further ones, as many as are free. Those end in named pipes, from which the script takes the blocks
//! in order; a line on its own channel says where the next one comes from. Nothing is written twice.
//!
//! SSH itself sees to it that what a channel brings is what was sent. Whether it has brought all of it, its status
//! says: an upload is done when all that took part have succeeded.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, PipeWriter, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tsunami_core::{Command, Exit, OutputSink, SessionError, SessionErrorKind, Stream};

use crate::command::{Commands, Input};

/// What a further channel runs.
const SIDE: &str = include_str!("side.sh");

/// The bytes of an upload from which it goes over several channels: until they are open, a single one brings as much.
pub(super) const STRIPED_BYTES: u64 = 16 << 20;

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
    let directory = format!(".tsunami-stripes-{:016x}", RandomState::new().hash_one(0));
    let (begin, (ready, sides)) = (Arc::<Notify>::default(), channel());
    let stripes =
        Stripes { directory: directory.clone(), begin: begin.clone(), sides: Mutex::new(Some(sides)) };
    (stripes, Sides { directory, begin, ready })
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
        let sending = async {
            if over.run_until_cancelled(self.begin.notified()).await.is_some() {
                try_join_all(NUMBERS.map(|number| self.side(commands, number, cancel, &over))).await?;
            }
            over.cancelled().await;
            Ok(())
        };
        tokio::pin!(main, sending);
        tokio::select! {
            exit = &mut main => {
                over.cancel();
                // Where one of them has failed, that is why.
                let exit = exit?;
                sending.await.map(|()| exit)
            }
            Err(error) = &mut sending => {
                cancel.cancel();
                let _ = main.await;
                Err(error)
            }
        }
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
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
