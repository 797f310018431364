//! The channels to one machine, over one connection or several: what a command, a script or a check gets its channel
//! from. Nobody else opens any.
//!
//! sshd takes so many channels on a connection (`MaxSessions`), and says how many only by refusing one more. So the
//! pool counts those that are open, learns the number, opens further connections when all channels are taken, and has
//! the others wait. A command may begin only if it can be ended: the pool keeps a channel for that, on a connection of
//! its own where one takes a single channel. There an attendant waits, which runs scripts as well. Where the machine
//! gives a single channel in all, one command runs at a time, and what ends it begins with another connection in the
//! place of the command's.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::{Instant, sleep, timeout};
use tsunami_core::{ByteStream, SessionError, SessionErrorKind};

use crate::attendant::Attendant;
use crate::shell;
use crate::transport::{Channel, Connection, Transport};

/// Channels on one connection, as sshd allows by itself (`MaxSessions`). One that allows fewer says so only by refusing.
const CHANNELS: usize = 10;

/// Connections at a time to one machine; further channels wait.
const CONNECTIONS: usize = 8;

/// How long after a refusal a channel is asked for once more: sshd forgets one that has ended a little later.
const REFUSAL_PAUSE: Duration = Duration::from_millis(100);

/// How often a connection that nothing else uses may refuse a channel.
const REFUSALS: u32 = 20;

/// How long a connection that ought to work may take to answer.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The channels to one machine.
#[derive(Debug)]
pub(crate) struct Pool {
    /// What messages call the machine.
    machine: String,
    transport: Arc<dyn Transport>,
    links: Mutex<Vec<Arc<Link>>>,
    /// Tells of channels that are free again.
    freed: Arc<Notify>,
    /// Held by who opens a connection.
    growing: AsyncMutex<()>,
    /// What is kept for scripts, and for ending a command.
    attendant: AsyncMutex<Option<Attendant>>,
    /// Whether the machine gives a single channel in all.
    has_one_channel: AtomicBool,
    /// Whether another connection is about to take the place of the only one.
    starting_over: AtomicBool,
    /// How long it took to open a channel, in microseconds, at best.
    distance: AtomicU64,
}

/// A connection, and how many of its channels are taken.
#[derive(Debug)]
struct Link {
    connection: Arc<dyn Connection>,
    busy: AtomicUsize,
    /// What this sshd allows; learned when it refuses.
    limit: AtomicUsize,
}

impl Link {
    fn new(connection: Arc<dyn Connection>, limit: usize) -> Arc<Self> {
        Arc::new(Self { connection, busy: AtomicUsize::new(0), limit: AtomicUsize::new(limit) })
    }

    fn busy(&self) -> usize {
        self.busy.load(Ordering::Relaxed)
    }

    fn has_room(&self) -> bool {
        self.busy() < self.limit.load(Ordering::Relaxed) && !self.connection.is_closed()
    }
}

/// One of a link's channels, which counts as taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    link: Arc<Link>,
    freed: Arc<Notify>,
}

impl Slot {
    fn on(link: &Arc<Link>, freed: &Arc<Notify>) -> Self {
        link.busy.fetch_add(1, Ordering::Relaxed);
        Self { link: link.clone(), freed: freed.clone() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.link.busy.fetch_sub(1, Ordering::Relaxed);
        self.freed.notify_waiters();
    }
}

/// A channel to a `sh` that says so and then waits for its line. Dropping it closes the channel.
#[derive(Debug)]
pub(crate) struct Shell {
    /// What it reads.
    pub(crate) feed: PipeWriter,
    pub(crate) channel: Channel,
    pub(crate) slot: Slot,
}

/// What a pool leaves to the next one to the same machine. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Parked {
    link: Arc<Link>,
    freed: Arc<Notify>,
    attendant: Option<Attendant>,
}

impl Parked {
    /// Whether its connection has not ended.
    pub(crate) fn is_alive(&self) -> bool {
        !self.link.connection.is_closed()
    }
}

impl Pool {
    /// A pool that begins with one connection.
    pub(crate) fn new(machine: String, transport: Arc<dyn Transport>, first: Arc<dyn Connection>) -> Self {
        let link = Link::new(first, CHANNELS);
        Self::resume(machine, transport, Parked { link, freed: Arc::default(), attendant: None })
    }

    /// A pool that begins with what another one has left.
    pub(crate) fn resume(machine: String, transport: Arc<dyn Transport>, parked: Parked) -> Self {
        Self {
            machine,
            transport,
            links: Mutex::new(vec![parked.link]),
            freed: parked.freed,
            growing: AsyncMutex::default(),
            attendant: AsyncMutex::new(parked.attendant),
            has_one_channel: AtomicBool::new(false),
            starting_over: AtomicBool::new(false),
            distance: AtomicU64::new(u64::MAX),
        }
    }

    /// Opens a channel to a `sh` that waits for its line, as soon as there is one. It writes to `stdout` if that is
    /// given. May be dropped at any await.
    pub(crate) async fn shell(&self, stdout: Option<&PipeWriter>) -> Result<Shell, SessionError> {
        let slot = self.slot().await?;
        self.shell_in(slot, stdout).await
    }

    /// As [`shell`](Self::shell), but only if a connection that there is takes one more channel at once.
    pub(crate) async fn shell_now(&self, stdout: Option<&PipeWriter>) -> Result<Shell, SessionError> {
        let slot =
            self.free()?.ok_or_else(|| SessionError::new(SessionErrorKind::Remote, "no channel is free"))?;
        let (stdin, feed) = io::pipe().map_err(no_pipe)?;
        let opened = self.open(&slot.link, &stdin, stdout).await;
        let opened = opened.inspect_err(|error| {
            let busy = slot.link.busy();
            if error.kind == SessionErrorKind::Remote && busy > 1 {
                slot.link.limit.store(busy - 1, Ordering::Relaxed);
            }
        });
        Ok(Shell { feed, channel: opened?, slot })
    }

    /// Whether what comes from the machine is slow on one channel, however fast the network.
    pub(crate) fn is_narrow(&self) -> bool {
        self.transport.is_narrow()
    }

    /// How long it takes to open a channel, at best: once to the machine and back.
    pub(crate) fn distance(&self) -> Duration {
        Duration::from_micros(self.distance.load(Ordering::Relaxed))
    }

    async fn shell_in(&self, mut slot: Slot, stdout: Option<&PipeWriter>) -> Result<Shell, SessionError> {
        let (stdin, feed) = io::pipe().map_err(no_pipe)?;
        let mut refusals = 0;
        loop {
            let link = slot.link.clone();
            let error = match self.open(&link, &stdin, stdout).await {
                Ok(channel) => return Ok(Shell { feed, channel, slot }),
                Err(error) => error,
            };
            let busy = link.busy();
            let patience = if busy > 1 { 1 } else { REFUSALS };
            if error.kind == SessionErrorKind::Remote && refusals < patience {
                refusals += 1;
                sleep(REFUSAL_PAUSE).await;
                continue;
            }
            if error.kind != SessionErrorKind::Remote || busy <= 1 {
                return Err(error);
            }
            tracing::debug!(machine = self.machine, busy, %error, "sshd takes fewer channels");
            link.limit.store(busy - 1, Ordering::Relaxed);
            drop(slot);
            slot = self.slot().await?;
            refusals = 0;
        }
    }

    async fn open(
        &self,
        link: &Link,
        stdin: &PipeReader,
        stdout: Option<&PipeWriter>,
    ) -> Result<Channel, SessionError> {
        let stdin = stdin.try_clone().map_err(no_pipe)?;
        let stdout = stdout.map(PipeWriter::try_clone).transpose().map_err(no_pipe)?;
        let opening = link.connection.open(shell::LINE, stdin.into(), stdout.map(OwnedFd::from));
        let begun = Instant::now();
        let opened = timeout(ANSWER_TIMEOUT, opening).await.unwrap_or_else(|_| Err(silent()))?;
        let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.distance.fetch_min(took, Ordering::Relaxed);
        Ok(opened)
    }

    /// Sees to it that a command can be ended: at last, by keeping a channel for that.
    pub(crate) async fn keep_attendant(&self) -> Result<(), SessionError> {
        let mut attendant = self.attendant.lock().await;
        while attendant.is_none() && !self.has_one_channel() {
            match timeout(ANSWER_TIMEOUT, self.shell(None)).await {
                Ok(shell) => *attendant = Some(Attendant::new(shell?)),
                Err(_) if self.busy() <= 1 => self.note_one_channel(),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// What is kept for scripts and for ending a command, unless it is at one of these.
    pub(crate) fn take_attendant(&self) -> Option<Attendant> {
        // Whoever holds it for long is making one, and may wait for what is to be ended.
        self.attendant.try_lock().ok().and_then(|mut attendant| attendant.take())
    }

    /// Keeps an attendant that waits again, or another one in its place, unless there is one.
    pub(crate) fn give_back(&self, attendant: Attendant) {
        let is_closed = self.lock().is_empty();
        if !is_closed
            && !self.has_one_channel()
            && let Ok(mut kept) = self.attendant.try_lock()
        {
            kept.get_or_insert(attendant);
        }
    }

    /// Where a machine gives a single channel in all, whoever waits for one is given the attendant's. It gives one if no
    /// other was to be had since then.
    fn give_up_attendant(&self, since: Instant) -> bool {
        if since.elapsed() < ANSWER_TIMEOUT || self.busy() > 1 || self.has_one_channel() {
            return false;
        }
        let attendant = self.take_attendant();
        if attendant.is_some() {
            self.note_one_channel();
        }
        attendant.is_some()
    }

    fn note_one_channel(&self) {
        tracing::warn!(machine = self.machine, "it gives one channel in all");
        self.has_one_channel.store(true, Ordering::Relaxed);
    }

    /// Whether the machine gives a single channel in all, as far as is known.
    pub(crate) fn has_one_channel(&self) -> bool {
        self.has_one_channel.load(Ordering::Relaxed)
    }

    /// Opens a channel to a `sh` that ends a command, when there is no attendant for it. Where the command has the only
    /// channel, its connection is given up for another.
    pub(crate) async fn shell_to_end(&self) -> Result<Shell, SessionError> {
        let slot = if self.has_one_channel() { self.start_over().await? } else { self.slot().await? };
        self.shell_in(slot, None).await
    }

    /// Puts another connection in the place of all, and takes its channel before those who wait for one.
    async fn start_over(&self) -> Result<Slot, SessionError> {
        let _one_at_a_time = self.growing.lock().await;
        tracing::debug!(machine = self.machine, "another connection takes the only one's place");
        self.starting_over.store(true, Ordering::Relaxed);
        self.lock().iter().for_each(|link| link.connection.close());
        let slot = self.connect_again().await.map(|connection| {
            let link = Link::new(connection, 1);
            let slot = Slot::on(&link, &self.freed);
            *self.lock() = vec![link];
            slot
        });
        self.starting_over.store(false, Ordering::Relaxed);
        self.freed.notify_waiters();
        slot
    }

    /// Connects to a machine that may need a moment to forget the connection before.
    async fn connect_again(&self) -> Result<Arc<dyn Connection>, SessionError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            match self.transport.connect(deadline).await {
                Err(error) if error.error.kind == SessionErrorKind::Connect && Instant::now() < deadline => {
                    sleep(REFUSAL_PAUSE).await;
                }
                connected => return connected.map_err(SessionError::from),
            }
        }
    }

    /// Connects to a port as the machine would. It takes no channel from anybody: sshd counts sessions.
    pub(crate) async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, SessionError> {
        let link = {
            let links = self.lock();
            let alive = links.iter().find(|link| !link.connection.is_closed());
            alive.or(links.first()).cloned().ok_or_else(closed)?
        };
        let late = |_| {
            let message = format!("{host} port {port} does not answer within {} s", ANSWER_TIMEOUT.as_secs());
            Err(SessionError::new(SessionErrorKind::Remote, message))
        };
        timeout(ANSWER_TIMEOUT, link.connection.dial(host, port)).await.unwrap_or_else(late)
    }

    /// Asks the machine for a sign of life.
    pub(crate) async fn check(&self) -> Result<(), SessionError> {
        let free = self.free()?.map(|slot| slot.link.clone());
        let link = free.or_else(|| self.lock().first().cloned()).ok_or_else(closed)?;
        self.check_link(&link).await
    }

    /// Asks for a sign of life on the connection of a channel.
    pub(crate) async fn check_connection(&self, of: &Slot) -> Result<(), SessionError> {
        self.check_link(&of.link).await
    }

    async fn check_link(&self, link: &Arc<Link>) -> Result<(), SessionError> {
        // It counts like any other, although nobody waits for it: being refused is a sign of life.
        let _slot = Slot::on(link, &self.freed);
        let null = || std::fs::File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let (stdin, stdout) = (null().map_err(no_pipe)?, null().map_err(no_pipe)?);
        let answer = async {
            let channel = link.connection.open("exec true", stdin, Some(stdout)).await?;
            channel.end.await.map_err(|_| link.connection.reason())
        };
        match timeout(ANSWER_TIMEOUT, answer).await {
            // The channel's end says nothing if the connection broke.
            Ok(Ok(_)) if !link.connection.is_closed() => Ok(()),
            Ok(Err(error)) if error.kind == SessionErrorKind::Remote => Ok(()),
            Ok(_) => Err(link.connection.reason()),
            Err(_) => Err(silent()),
        }
    }

    /// Gives up all channels. Returns a connection that nobody else uses any more, with the attendant if there is one.
    pub(crate) async fn close(&self) -> Option<Parked> {
        let attendant = self.attendant.lock().await.take();
        let links = std::mem::take(&mut *self.lock());
        self.freed.notify_waiters();
        let link = match &attendant {
            Some(attendant) => attendant.slot().link.clone(),
            None => links.into_iter().next()?,
        };
        let own = usize::from(attendant.is_some());
        (link.busy() == own).then(|| Parked { link, freed: self.freed.clone(), attendant })
    }

    /// Waits for a channel to be free: on a connection that has room, or else on a new connection.
    async fn slot(&self) -> Result<Slot, SessionError> {
        let since = Instant::now();
        loop {
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(slot) = self.free()? {
                return Ok(slot);
            }
            tokio::select! {
                () = &mut freed => {}
                grown = self.grow() => if !grown && !self.give_up_attendant(since) {
                    // The others still work: wait for them.
                    let _ = timeout(ANSWER_TIMEOUT, freed).await;
                },
            }
        }
    }

    /// Opens a further connection, if there may be one.
    async fn grow(&self) -> bool {
        let _one_at_a_time = self.growing.lock().await;
        // Whether there is room by now, or nothing to wait for.
        if !matches!(self.free(), Ok(None)) {
            return true;
        }
        if self.has_one_channel() || self.lock().len() >= CONNECTIONS {
            return false;
        }
        match self.transport.connect(Instant::now() + ANSWER_TIMEOUT).await {
            Ok(connection) => {
                let mut links = self.lock();
                // What one was refused, others are.
                let limits = links.iter().map(|link| link.limit.load(Ordering::Relaxed));
                let limit = limits.min().unwrap_or(CHANNELS);
                links.push(Link::new(connection, limit));
                self.freed.notify_waiters();
                true
            }
            Err(error) => {
                tracing::debug!(machine = self.machine, error = %error.error, "no further connection");
                false
            }
        }
    }

    /// Takes a channel of the least busy connection that has room.
    fn free(&self) -> Result<Option<Slot>, SessionError> {
        let links = self.lock();
        let first = links.first().ok_or_else(closed)?;
        let free = links.iter().filter(|link| link.has_room()).min_by_key(|link| link.busy());
        // Where none lives, opening a channel tells why.
        let is_lost = || {
            !self.starting_over.load(Ordering::Relaxed)
                && links.iter().all(|link| link.connection.is_closed())
        };
        let link = free.or_else(|| is_lost().then_some(first));
        Ok(link.map(|link| Slot::on(link, &self.freed)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many channels are taken.
    fn busy(&self) -> usize {
        self.lock().iter().map(|link| link.busy()).sum()
    }
}

fn no_pipe(error: io::Error) -> SessionError {
    SessionError::new(SessionErrorKind::Local, "no more pipes").source(error)
}

fn closed() -> SessionError {
    SessionError::new(SessionErrorKind::Lost, "the session is closed")
}

fn silent() -> SessionError {
    let message = format!("the machine did not answer within {} s", ANSWER_TIMEOUT.as_secs());
    SessionError::new(SessionErrorKind::Lost, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::fake::Fake;

    async fn pool_of(fake: Fake) -> (Arc<Pool>, Arc<Fake>) {
        let fake = Arc::new(fake);
        (Arc::new(Pool::new("m-0".to_owned(), fake.clone(), fake.connected().await)), fake)
    }

    async fn shells(pool: &Pool, count: usize) -> Vec<Shell> {
        let mut shells = Vec::new();
        for _ in 0..count {
            shells.push(pool.shell(None).await.unwrap());
        }
        shells
    }

    async fn soon<T>(future: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(8), future).await.expect("it takes too long")
    }

    /// Somebody who waits for a shell, and has begun to.
    async fn waiting(pool: &Arc<Pool>) -> tokio::task::JoinHandle<Result<Shell, SessionError>> {
        let pool = pool.clone();
        let waiting = tokio::spawn(async move { pool.shell(None).await });
        sleep(Duration::from_millis(500)).await;
        assert!(!waiting.is_finished());
        waiting
    }

    #[tokio::test]
    async fn connections_are_opened_as_channels_are_needed_and_no_more() {
        let (pool, fake) = pool_of(Fake::with(2, 100)).await;
        let shells = soon(shells(&pool, 5)).await;
        assert_eq!((fake.asked.load(Ordering::Relaxed), pool.busy()), (3, 5));
        drop(shells);
        assert_eq!(pool.busy(), 0);
        soon(pool.shell(None)).await.unwrap();
        assert_eq!(fake.asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_channel_that_is_freed_is_taken_while_another_connection_is_being_opened() {
        let (pool, _) = pool_of(Fake::with(2, 100)).await;
        let slow = Fake { delay: Duration::from_secs(3600), ..Fake::with(2, 100) };
        let pool = Arc::new(Pool { transport: Arc::new(slow), ..Arc::into_inner(pool).unwrap() });
        let taken = shells(&pool, 2).await;
        let (third, fourth) = (waiting(&pool).await, waiting(&pool).await);
        drop(taken);
        soon(third).await.unwrap().unwrap();
        soon(fourth).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_check_takes_no_channel_from_anybody_and_a_refusal_is_a_sign_of_life() {
        let (pool, fake) = pool_of(Fake::with(1, 1)).await;
        soon(pool.check()).await.unwrap();
        assert_eq!(pool.busy(), 0);
        let shell = soon(pool.shell(None)).await.unwrap();
        soon(pool.check()).await.unwrap();
        soon(pool.check_connection(&shell.slot)).await.unwrap();
        assert_eq!((pool.busy(), fake.asked.load(Ordering::Relaxed)), (1, 1));
        pool.lock()[0].connection.close();
        assert_eq!(soon(pool.check()).await.unwrap_err().kind, SessionErrorKind::Lost);
        assert_eq!(soon(pool.shell(None)).await.unwrap_err().kind, SessionErrorKind::Lost);
    }

    #[tokio::test]
    async fn what_ends_a_command_is_there_before_it_begins_on_a_connection_of_its_own_if_need_be() {
        let (pool, fake) = pool_of(Fake::with(1, 2)).await;
        let command = soon(pool.shell(None)).await.unwrap();
        soon(pool.keep_attendant()).await.unwrap();
        assert!(!pool.has_one_channel() && fake.asked.load(Ordering::Relaxed) == 2);
        let attendant = pool.take_attendant().unwrap();
        assert!(!Arc::ptr_eq(&attendant.slot().link, &command.slot.link));
    }

    #[tokio::test]
    async fn where_a_machine_gives_one_channel_the_next_connection_is_for_what_ends_the_command() {
        let (pool, fake) = pool_of(Fake::with(1, 1)).await;
        let command = soon(pool.shell(None)).await.unwrap();
        pool.has_one_channel.store(true, Ordering::Relaxed);
        let next = waiting(&pool).await;
        let ending = soon(pool.shell_to_end()).await.unwrap();
        assert_eq!(fake.asked.load(Ordering::Relaxed), 2);
        drop(command);
        sleep(Duration::from_millis(300)).await;
        assert!(!next.is_finished(), "it has taken the channel");
        drop(ending);
        soon(next).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_closed_pool_opens_nothing() {
        let (pool, fake) = pool_of(Fake::with(1, 2)).await;
        let shell = soon(pool.shell(None)).await.unwrap();
        let next = {
            let pool = pool.clone();
            tokio::spawn(async move { pool.shell(None).await })
        };
        assert!(soon(pool.close()).await.is_none(), "its connection is in use");
        drop((shell, soon(next).await));
        let asked = fake.asked.load(Ordering::Relaxed);
        assert_eq!(soon(pool.shell(None)).await.unwrap_err().kind, SessionErrorKind::Lost);
        assert_eq!(fake.asked.load(Ordering::Relaxed), asked);
    }
}
