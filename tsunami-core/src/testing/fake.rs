//! The fake cloud.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug};
use std::future::poll_fn;
use std::num::NonZeroU32;
use std::path::{Component, Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::cluster::WRITE_NAME;
use crate::machine::machine_name;
use crate::session::one_by_one;
use crate::{
    Addresses, ByteStream, Command, Connector, ContentOffer, Deadline, Download, Exclude, Exit,
    LaunchRequest, Leftover, Login, Machine, MachineId, MachineKind, MachineSpec, MachineState, OutputSink,
    Price, Program, Provider, ProviderError, ProviderErrorKind, Quote, RunFilter, RunId, SequenceObserver,
    Session, SessionError, SessionErrorKind, SharedContent, Stdin, Stream,
};

/// A cloud in memory: deterministic, on virtual time, with faults at will.
///
/// Machines boot after some seconds and end at their deadline. Commands are answered by
/// [`on_command`](Self::on_command); those it leaves alone by a very small shell of the fake's own, which knows
/// `echo`, `cat`, `pwd`, `sleep`, `exit`, `true`, `false` and `kill -N $$` and takes anything else for a success.
/// Its machines have files, and no modes, links or empty directories.
/// What is written to a command while it runs ([`Stdin::piped`]), it reads to the end before it writes anything; only `cat`
/// writes it as it comes.
///
/// ```
/// # use std::sync::Arc;
/// # use tsunami_core::{Command, Error, Group, MachineSpec, Plan, RunStore, Tsunami};
/// use tsunami_core::testing::{FakeCloud, Reply};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Error> {
/// let cloud = FakeCloud::new(42);
/// cloud.on_command(|machine, command| {
///     (command.to_string() == "nproc").then(|| Reply::stdout(if machine == "server-0" { "8\n" } else { "2\n" }))
/// });
/// # let directory = tempfile::tempdir()?;
/// let tsunami = Tsunami::new(Arc::new(cloud.clone()), Arc::new(cloud.clone()))
///     .state(RunStore::at(directory.path()));
/// let plan = Plan::new("cores").group(Group::new("server", MachineSpec::default()));
/// let cores = tsunami
///     .run(plan, |cluster| async move { Ok(cluster.hosts()[0].run("nproc").await?.stdout().trim().to_owned()) })
///     .await?;
/// assert_eq!(cores, "8");
/// assert!(cloud.is_empty());
/// # Ok(()) }
/// ```
///
/// # Controllers that crash
///
/// A handle and its clones stand for one controller: a process that uses the cloud. [`controller`](Self::controller)
/// makes a handle for another one, [`crash`](Self::crash) ends one like `kill -9`. What it had asked for by then
/// may still happen, minutes later. As the EC2 provider writes every request that creates something into a journal
/// before it makes it, with a token that makes repeating it harmless, so does the fake: its `terminate` repeats
/// those of other controllers that nobody saw answered, and ends what they give, whereupon the first copy, should
/// it arrive after all, creates nothing. Those of the same controller it leaves alone: awaiting them is the
/// engine's part. A launch whose future is dropped still happens.
#[derive(Clone)]
pub struct FakeCloud {
    inner: Arc<Mutex<Inner>>,
    /// Tells the machines that something may have befallen one of them.
    befallen: Arc<watch::Sender<()>>,
    controller: u32,
}

/// How long before its end a machine that is taken back, or whoever lists it, is told.
const NOTICE: Duration = Duration::from_secs(120);

/// Where commands run and files arrive on a fake machine.
const HOME: &str = "/home/fake";

/// The longest that a request of a crashed controller takes to arrive.
const STRAGGLING: Duration = Duration::from_secs(120);

/// A call that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is named after the method of Provider, Connector or Session")]
#[non_exhaustive]
pub enum Call {
    Quote,
    Launch,
    List,
    Verify,
    Extend,
    Terminate,
    Prepare,
    Connect,
    Exec,
    Dial,
    Upload,
    Offer,
    Take,
    Withdraw,
    Download,
    Close,
}

impl Call {
    /// What kind of error a session or a connector makes of a fault, since it knows none of a provider's.
    pub(super) fn session_error(self) -> SessionErrorKind {
        match self {
            Self::Connect => SessionErrorKind::Connect,
            Self::Exec | Self::Dial => SessionErrorKind::Remote,
            Self::Upload | Self::Offer | Self::Take | Self::Withdraw | Self::Download => {
                SessionErrorKind::Transfer
            }
            Self::Close => SessionErrorKind::Lost,
            _ => SessionErrorKind::Local,
        }
    }
}

/// What goes wrong with a call.
///
/// A connector or a session knows no [`ProviderErrorKind`], and fails with one of its own kinds: `Connect` for a
/// connect, `Remote` for a command, `Transfer` for files, `Lost` for a close, `Local` for preparations.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// It is refused, and has no effect.
    Error(ProviderErrorKind),
    /// It takes effect, and its answer is lost.
    LostReply(ProviderErrorKind),
    /// A launch, and nothing else, makes only so many machines, then there is no capacity.
    Partial(u32),
    /// It takes this much longer.
    Slow(Duration),
    /// It takes effect, and is never answered.
    Hang,
}

/// What goes wrong with a machine.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum MachineFault {
    /// It boots only after this long.
    SlowBoot(Duration),
    /// It stays pending.
    NeverBoots,
    /// It runs, and nobody can connect.
    RefusesSsh,
    /// A session breaks this long after it was made.
    DropsSession(Duration),
    /// It ends by itself this long after its launch.
    Dies(Duration),
    /// The cloud takes it back this long after its launch, having said so two minutes before. Its replacement
    /// stays.
    Interrupted(Duration),
    /// The same, but only the machine itself is told before.
    Notified(Duration),
    /// It takes this long to end.
    SlowTerminate(Duration),
}

/// How a fake command ends.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What it writes.
    pub output: Vec<(Stream, Vec<u8>)>,
    /// How long it takes.
    pub after: Duration,
    /// How it ends.
    pub exit: Exit,
    /// Files that it leaves behind, for a later download.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Reply {
    /// Ends at once with this status.
    pub fn status(status: u8) -> Self {
        Self { output: Vec::new(), after: Duration::ZERO, exit: Exit::Status(status), files: Vec::new() }
    }

    /// Writes `text` to standard output and succeeds.
    pub fn stdout(text: impl Into<String>) -> Self {
        Self { output: vec![(Stream::Stdout, text.into().into_bytes())], ..Self::status(0) }
    }

    /// Writes `text` to standard error as well.
    pub fn stderr(mut self, text: impl Into<String>) -> Self {
        self.output.push((Stream::Stderr, text.into().into_bytes()));
        self
    }

    /// Takes this long.
    pub fn after(mut self, time: Duration) -> Self {
        self.after = time;
        self
    }

    /// Leaves a file behind.
    pub fn file(mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.into(), content.into()));
        self
    }
}

type CommandHandler = Arc<dyn Fn(&str, &Command) -> Option<Reply> + Send + Sync>;
type DialHandler = Arc<dyn Fn(&str, &str, u16) -> Option<DuplexStream> + Send + Sync>;
type Hook = Box<dyn FnOnce() + Send>;

struct Inner {
    rng: fastrand::Rng,
    latency: std::ops::Range<Duration>,
    machines: BTreeMap<MachineId, FakeMachine>,
    next: u32,
    calls: BTreeMap<Call, u32>,
    total: u32,
    faults: BTreeMap<(Call, u32), Fault>,
    /// The calls that have begun and have no answer yet.
    under_way: BTreeSet<(Call, u32)>,
    machine_faults: Vec<(String, MachineFault)>,
    hooks: BTreeMap<u32, Hook>,
    call_hooks: BTreeMap<(Call, u32), Hook>,
    /// The last one is asked first.
    on_command: Vec<CommandHandler>,
    on_dial: Option<DialHandler>,
    /// By their machines and their absolute paths.
    files: BTreeMap<(MachineId, PathBuf), Vec<u8>>,
    /// The contents that machines keep for others, and whether they offer them.
    kept: BTreeMap<(MachineId, String), bool>,
    log: Vec<(String, String)>,
    lists: Vec<(String, Vec<String>)>,
    /// What each controller has prepared and not finished.
    prepared: BTreeSet<(u32, RunId)>,
    lag: Duration,
    clock: Option<(Instant, SystemTime)>,
    controllers: u32,
    crashed: BTreeSet<u32>,
    /// The journal: launches that were asked for and not decided, by the controller that asked.
    undecided: Vec<(u32, LaunchRequest)>,
}

/// What the machines of a launch have in common.
struct Batch {
    run: RunId,
    group: String,
    authorized_key: String,
    is_replacement: bool,
}

struct FakeMachine {
    batch: Arc<Batch>,
    index: u32,
    number: u32,
    launched_at: Instant,
    runs_at: Option<Instant>,
    ends_at: Instant,
    expires: SystemTime,
    /// When listings begin to have it.
    listed_at: Instant,
    /// When it will be known that the cloud takes it back.
    notice_at: Option<Instant>,
    /// Whether listings tell that notice.
    notice_listed: bool,
}

impl FakeMachine {
    fn name(&self) -> String {
        machine_name(&self.batch.group, self.index)
    }

    fn is_listed(&self) -> bool {
        Instant::now() >= self.listed_at
    }

    fn host_key(&self) -> String {
        // All but the number is how every such key begins.
        format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{:A>43}", self.number)
    }

    /// Whatever is wrong with it from its launch on. Of the faults, only these show in the machine itself.
    fn suffer(&mut self, fault: MachineFault) {
        let end = |after: Duration| (self.launched_at + after).max(Instant::now());
        match fault {
            MachineFault::Interrupted(after) | MachineFault::Notified(after)
                if !self.batch.is_replacement =>
            {
                self.ends_at = self.ends_at.min(end(after));
                self.notice_at = Some(self.launched_at + after.saturating_sub(NOTICE));
                self.notice_listed = matches!(fault, MachineFault::Interrupted(_));
            }
            // What has no life ahead of it at its launch has not booted either.
            MachineFault::SlowBoot(_) | MachineFault::NeverBoots
                if self.launched_at < Instant::now() && self.state() != MachineState::Pending =>
            {
                panic!("{} has booted already", self.name());
            }
            MachineFault::SlowBoot(after) => self.runs_at = Some(self.launched_at + after),
            MachineFault::NeverBoots => self.runs_at = None,
            MachineFault::Dies(after) => self.ends_at = self.ends_at.min(end(after)),
            _ => {}
        }
    }

    fn interrupted(&self) -> Option<String> {
        let noticed = self.notice_listed && self.notice_at.is_some_and(|at| Instant::now() >= at);
        noticed.then(|| "the fake cloud takes it back".to_owned())
    }

    fn state(&self) -> MachineState {
        let now = Instant::now();
        if now >= self.ends_at {
            MachineState::Gone
        } else if self.runs_at.is_some_and(|at| now >= at) {
            MachineState::Running
        } else {
            MachineState::Pending
        }
    }
}

impl Debug for FakeCloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeCloud").field("machines", &self.machines()).finish_non_exhaustive()
    }
}

impl FakeCloud {
    /// An empty cloud. The seed decides about all latencies.
    pub fn new(seed: u64) -> Self {
        let inner = Inner {
            rng: fastrand::Rng::with_seed(seed),
            latency: Duration::from_millis(10)..Duration::from_millis(200),
            machines: BTreeMap::new(),
            next: 0,
            calls: BTreeMap::new(),
            total: 0,
            faults: BTreeMap::new(),
            under_way: BTreeSet::new(),
            machine_faults: Vec::new(),
            hooks: BTreeMap::new(),
            call_hooks: BTreeMap::new(),
            on_command: Vec::new(),
            on_dial: None,
            files: BTreeMap::new(),
            kept: BTreeMap::new(),
            log: Vec::new(),
            lists: Vec::new(),
            prepared: BTreeSet::new(),
            lag: Duration::ZERO,
            clock: None,
            controllers: 0,
            crashed: BTreeSet::new(),
            undecided: Vec::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), befallen: Arc::default(), controller: 0 }
    }

    /// A handle on the same cloud for another controller.
    pub fn controller(&self) -> Self {
        let mut inner = self.lock();
        inner.controllers += 1;
        Self { inner: self.inner.clone(), befallen: self.befallen.clone(), controller: inner.controllers }
    }

    /// Ends this controller like `kill -9`: none of its calls is ever answered, and nothing that it asks for from
    /// now on happens. What it has asked for happens at its time, up to two minutes later, or never, as the seed
    /// decides.
    pub fn crash(&self) {
        let mut inner = self.lock();
        inner.crashed.insert(self.controller);
        // That ends with its process.
        inner.prepared.retain(|(controller, _)| *controller != self.controller);
    }

    /// Makes listings miss machines for up to this long after their launch, each as long as the seed decides.
    /// `terminate` goes by the same listings.
    pub fn lag(&self, longest: Duration) {
        self.lock().lag = longest;
    }

    /// Says what time it is, so that machines also end when the clock passes their deadline, and not only when
    /// their lifetime has passed since their birth.
    pub fn clock(&self, now: SystemTime) {
        self.lock().clock = Some((Instant::now(), now));
    }

    /// From now on nothing goes wrong any more, except for calls that are under way.
    pub fn calm(&self) {
        let mut inner = self.lock();
        inner.faults.clear();
        inner.machine_faults.clear();
    }

    /// Sets the range of every call's latency.
    pub fn latency(&self, range: std::ops::Range<Duration>) {
        self.lock().latency = range;
    }

    /// Makes the `nth` call of that kind (from 1) go wrong. One that is under way goes wrong where it stands.
    ///
    /// # Panics
    ///
    /// If that call is over, or if there can be no such fault of it.
    pub fn fault(&self, call: Call, nth: u32, fault: Fault) {
        assert!(!matches!(fault, Fault::Partial(_)) || call == Call::Launch, "no {call:?} is ever partial");
        let mut inner = self.lock();
        let begun = inner.calls.get(&call).copied().unwrap_or_default();
        let is_over = nth <= begun && !inner.under_way.contains(&(call, nth));
        if is_over {
            drop(inner);
            panic!("call {nth} of {call:?} is over: there were {begun}");
        }
        inner.faults.insert((call, nth), fault);
    }

    /// Makes something be wrong with the machines of that name, those that are there and those that will be.
    ///
    /// # Panics
    ///
    /// If it is about a boot that is over.
    pub fn machine_fault(&self, machine: impl Into<String>, fault: MachineFault) {
        let (name, mut inner) = (machine.into(), self.lock());
        let alive =
            |machine: &&mut FakeMachine| machine.name() == name && machine.state() != MachineState::Gone;
        inner.machines.values_mut().filter(alive).for_each(|machine| machine.suffer(fault));
        inner.machine_faults.push((name, fault));
        self.befallen.send_replace(());
    }

    /// Decides how commands end, given the machine's name. `None` leaves it to what was given here before, and in the end to
    /// the fake's own shell: so a test adds what is its own to a cloud that several tests have in common.
    ///
    /// A command as text is what errors call it: a shell line without its arguments, a program with its own, unquoted. What
    /// the engine and [`Host::write`](crate::Host::write) run for themselves comes here, too.
    pub fn on_command(&self, handler: impl Fn(&str, &Command) -> Option<Reply> + Send + Sync + 'static) {
        self.lock().on_command.push(Arc::new(handler));
    }

    /// Decides what listens on ports, given the name of the machine that connects, the host and the port: the other end of
    /// a connection. `None` says that nothing does, as it is without this.
    pub fn on_dial(&self, handler: impl Fn(&str, &str, u16) -> Option<DuplexStream> + Send + Sync + 'static) {
        self.lock().on_dial = Some(Arc::new(handler));
    }

    /// Does something when the `nth` call of any kind (from 1) begins.
    pub fn at_call(&self, nth: u32, hook: impl FnOnce() + Send + 'static) {
        self.lock().hooks.insert(nth, Box::new(hook));
    }

    /// Does something when the `nth` call of that kind (from 1) begins.
    pub fn at(&self, call: Call, nth: u32, hook: impl FnOnce() + Send + 'static) {
        self.lock().call_hooks.insert((call, nth), Box::new(hook));
    }

    /// How many calls of that kind there were.
    pub fn calls(&self, call: Call) -> u32 {
        self.lock().calls.get(&call).copied().unwrap_or_default()
    }

    /// How many calls there were in all.
    pub fn total_calls(&self) -> u32 {
        self.lock().total
    }

    /// The machines that are not gone.
    pub fn machines(&self) -> Vec<String> {
        let inner = self.lock();
        let alive = inner.machines.values().filter(|machine| machine.state() != MachineState::Gone);
        alive.map(FakeMachine::name).collect()
    }

    /// The ids of the machines that are not gone.
    pub fn ids(&self) -> Vec<MachineId> {
        let inner = self.lock();
        let alive = inner.machines.iter().filter(|(_, machine)| machine.state() != MachineState::Gone);
        alive.map(|(id, _)| id.clone()).collect()
    }

    /// Whether no machine is left, and no run is connected to.
    pub fn is_empty(&self) -> bool {
        self.machines().is_empty() && self.lock().prepared.is_empty()
    }

    /// The lists of commands that went over at once, each with its machine's name.
    pub fn lists(&self) -> Vec<(String, Vec<String>)> {
        self.lock().lists.clone()
    }

    /// The commands that were run, each with its machine's name.
    pub fn commands(&self) -> Vec<(String, String)> {
        self.lock().log.clone()
    }

    /// The machines that keep something for others, each with the name of the content.
    pub fn kept(&self) -> Vec<(String, String)> {
        let inner = self.lock();
        let on =
            |id: &MachineId| inner.machines.get(id).filter(|machine| machine.state() != MachineState::Gone);
        let kept = inner.kept.keys().filter_map(|(id, content)| Some((on(id)?.name(), content.clone())));
        kept.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_crashed(&self) -> bool {
        self.lock().crashed.contains(&self.controller)
    }

    /// Goes on only while the controller lives.
    async fn alive(&self) {
        if self.has_crashed() {
            std::future::pending().await
        }
    }

    /// Counts a call, runs its hooks, and says how long it takes and what is to go wrong with it. Of a crashed
    /// controller there are no calls.
    async fn begin(&self, call: Call) -> Begun {
        self.alive().await;
        let (begun, hooks) = {
            let mut inner = self.lock();
            inner.total += 1;
            let total = inner.total;
            let count = inner.calls.entry(call).or_default();
            *count += 1;
            let nth = *count;
            inner.under_way.insert((call, nth));
            let range = inner.latency.start.as_millis() as u64..=inner.latency.end.as_millis() as u64;
            let delay = Duration::from_millis(inner.rng.u64(range));
            let hooks = [inner.hooks.remove(&total), inner.call_hooks.remove(&(call, nth))];
            (Begun { cloud: self.clone(), call, nth, delay }, hooks)
        };
        for hook in hooks.into_iter().flatten() {
            hook();
        }
        self.alive().await;
        begun
    }

    /// Makes one call to a connector or a session: what takes time, and what comes of it.
    async fn session_call<T>(
        &self,
        call: Call,
        doing: impl Future<Output = Result<(), SessionError>>,
        effect: impl FnOnce() -> Result<T, SessionError>,
    ) -> Result<T, SessionError> {
        let begun = self.begin(call).await;
        sleep(begun.delay).await;
        let mut fault = begun.fault().await;
        self.alive().await;
        let error = || Err(SessionError::new(call.session_error(), "injected fault"));
        if let Some(Fault::Error(_)) = fault {
            return error();
        }
        doing.await?;
        fault = begun.fault().await.or(fault);
        self.alive().await;
        match fault {
            Some(Fault::Error(_)) => error(),
            Some(Fault::LostReply(_)) => effect().and_then(|_| error()),
            Some(Fault::Hang) => {
                effect()?;
                std::future::pending().await
            }
            _ => effect(),
        }
    }

    /// Makes one call to the provider.
    async fn call<T>(&self, call: Call, effect: impl FnOnce() -> T) -> Result<T, ProviderError> {
        let begun = self.begin(call).await;
        self.answer(call, &begun, |_| effect()).await
    }

    /// Lets a call's time pass and whatever goes wrong with it happen.
    async fn answer<T>(
        &self,
        call: Call,
        begun: &Begun,
        effect: impl FnOnce(Option<Fault>) -> T,
    ) -> Result<T, ProviderError> {
        sleep(begun.delay).await;
        let fault = begun.fault().await;
        if self.has_crashed() {
            // It was under way when its controller crashed.
            let late = {
                let rng = &mut self.lock().rng;
                let late = Duration::from_millis(rng.u64(0..STRAGGLING.as_millis() as u64));
                [None, Some(Duration::ZERO), Some(late), Some(late)][rng.usize(0..4)]
            };
            match late {
                Some(late) => sleep(late).await,
                None => std::future::pending().await,
            }
        }
        let error = |kind| ProviderError::new(kind, format!("{call:?}"), "injected fault");
        let answer = match fault {
            Some(Fault::Error(kind)) => Err(error(kind)),
            Some(Fault::LostReply(kind)) => {
                effect(fault);
                Err(error(kind))
            }
            Some(Fault::Hang) => {
                effect(fault);
                std::future::pending().await
            }
            _ => Ok(effect(fault)),
        };
        self.alive().await;
        answer
    }

    /// Forgets a request that has been decided, if it is still in the journal.
    fn decided(&self, request: &LaunchRequest) {
        let controller = self.controller;
        self.lock().undecided.retain(|(by, other)| {
            (*by, &other.run, &other.group, &other.replace)
                != (controller, &request.run, &request.group, &request.replace)
        });
    }
}

/// A call that is under way.
struct Begun {
    cloud: FakeCloud,
    call: Call,
    nth: u32,
    delay: Duration,
}

impl Begun {
    /// What is to go wrong with it by now. Slowness has gone by.
    async fn fault(&self) -> Option<Fault> {
        loop {
            let fault = self.cloud.lock().faults.remove(&(self.call, self.nth));
            match fault {
                Some(Fault::Slow(time)) => Box::pin(sleep(time)).await,
                fault => return fault,
            }
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.cloud.lock().under_way.remove(&(self.call, self.nth));
    }
}

impl Inner {
    fn launch(&mut self, request: &LaunchRequest, at_most: u32) -> Vec<MachineId> {
        let of_request = |(id, machine): &(&MachineId, &FakeMachine)| {
            let Batch { run, group, .. } = &*machine.batch;
            *run == request.run && *group == request.group && !request.replace.contains(id)
        };
        // Of several in one place, the first.
        let existing = self.machines.iter().filter(of_request).rev();
        let mut existing: BTreeMap<u32, MachineId> =
            existing.map(|(id, machine)| (machine.index, id.clone())).collect();
        let batch = Arc::new(Batch {
            run: request.run.clone(),
            group: request.group.clone(),
            authorized_key: request.authorized_key.clone(),
            is_replacement: !request.replace.is_empty(),
        });
        let mut ids = Vec::new();
        for index in 0..request.count.get() {
            if let Some(id) = existing.remove(&index) {
                ids.push(id);
            } else if ids.len() < at_most as usize {
                ids.push(self.boot(&batch, request.deadline, index));
            }
        }
        ids
    }

    fn boot(&mut self, batch: &Arc<Batch>, deadline: Deadline, index: u32) -> MachineId {
        self.next += 1;
        let id = MachineId::new(format!("fake-{:04}", self.next));
        let now = Instant::now();
        let mut machine = FakeMachine {
            batch: batch.clone(),
            index,
            number: self.next,
            launched_at: now,
            runs_at: Some(now + Duration::from_millis(self.rng.u64(5_000..20_000))),
            ends_at: now + deadline.lifetime,
            expires: deadline.at,
            listed_at: now + Duration::from_millis(self.rng.u64(0..=self.lag.as_millis() as u64)),
            notice_at: None,
            notice_listed: true,
        };
        if let Some((then, time)) = self.clock {
            let left = deadline.at.duration_since(time).unwrap_or_default();
            machine.ends_at = machine.ends_at.min(then + left);
        }
        let name = machine.name();
        for (_, fault) in self.machine_faults.iter().filter(|(of, _)| *of == name) {
            machine.suffer(*fault);
        }
        self.machines.insert(id.clone(), machine);
        id
    }

    /// Repeats what other controllers have asked for and nobody saw answered. What that gives is known by its id,
    /// whatever listings say.
    fn settle(&mut self, run: &RunId, asking: u32) {
        let (settled, others) = std::mem::take(&mut self.undecided)
            .into_iter()
            .partition(|(controller, request)| *controller != asking && request.run == *run);
        self.undecided = others;
        let settled: Vec<(u32, LaunchRequest)> = settled;
        for (_, request) in settled {
            for id in self.launch(&request, u32::MAX) {
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.listed_at = Instant::now();
                }
            }
        }
    }

    fn fault_of<T>(&self, machine: &str, wanted: impl Fn(&MachineFault) -> Option<T>) -> Option<T> {
        self.machine_faults.iter().filter(|(name, _)| name == machine).find_map(|(_, fault)| wanted(fault))
    }
}

#[async_trait]
impl Provider for FakeCloud {
    fn name(&self) -> String {
        "fake".to_owned()
    }

    async fn quote(&self, _: &MachineSpec, _: NonZeroU32) -> Result<Quote, ProviderError> {
        self.call(Call::Quote, || Quote::free("a fake machine")).await
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        let begun = self.begin(Call::Launch).await;
        self.lock().undecided.push((self.controller, request.clone()));
        let (cloud, request) = (self.clone(), request.clone());
        // In a task of its own: dropping a request does not undo it.
        let launching = tokio::spawn(async move {
            let effect = |fault| {
                let at_most = match fault {
                    Some(Fault::Partial(count)) => count,
                    _ => u32::MAX,
                };
                cloud.decided(&request);
                cloud.lock().launch(&request, at_most)
            };
            let answer = cloud.answer(Call::Launch, &begun, effect).await;
            cloud.decided(&request);
            let ids = answer?;
            if ids.len() < request.count.get() as usize {
                let message = format!("got {} of {}", ids.len(), request.count);
                return Err(ProviderError::new(ProviderErrorKind::Capacity, "Launch", message));
            }
            Ok(ids)
        });
        let aborted = |error| ProviderError::new(ProviderErrorKind::Other, "Launch", "aborted").source(error);
        launching.await.map_err(aborted)?
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        let listing = || {
            let inner = self.lock();
            let wanted = |machine: &FakeMachine| match filter {
                RunFilter::Run(run) => machine.batch.run == *run,
                RunFilter::All => true,
            };
            let wanted = |machine: &FakeMachine| wanted(machine) && machine.is_listed();
            let machines = inner.machines.iter().filter(|(_, machine)| wanted(machine));
            let mut listed = Vec::with_capacity(inner.machines.len());
            listed.extend(machines.map(|(id, machine)| describe(id, machine)));
            listed
        };
        self.call(Call::List, listing).await
    }

    async fn verify(&self, machine: &Machine, _: &Arc<dyn Session>) -> Result<(), ProviderError> {
        let lives_longer = || {
            let inner = self.lock();
            let known = inner.machines.get(&machine.id);
            known.is_some_and(|known| machine.expires.is_some_and(|expires| known.expires > expires))
        };
        if self.call(Call::Verify, lives_longer).await? {
            let message = "its deadline is not the promised one";
            return Err(ProviderError::new(ProviderErrorKind::Other, "verify", message));
        }
        Ok(())
    }

    async fn interruption_notice(&self, machine: &Machine, _: &Arc<dyn Session>) -> String {
        // It may come to be taken back at any time.
        let mut befallen = self.befallen.subscribe();
        loop {
            let at = self.lock().machines.get(&machine.id).and_then(|machine| machine.notice_at);
            // `self` keeps the sender alive.
            match at {
                Some(at) if Box::pin(timeout_at(at, befallen.changed())).await.is_err() => break,
                Some(_) => {}
                None => drop(befallen.changed().await),
            }
        }
        "the fake cloud told the machine that it takes it back".to_owned()
    }

    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        let extend = || {
            for machine in self.lock().machines.values_mut().filter(|machine| machine.batch.run == *run) {
                match until.duration_since(machine.expires) {
                    Ok(longer) => machine.ends_at += longer,
                    Err(shorter) => machine.ends_at -= shorter.duration(),
                }
                machine.expires = until;
            }
        };
        self.call(Call::Extend, extend).await
    }

    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        let terminate = || {
            let mut inner = self.lock();
            let now = Instant::now();
            inner.settle(run, self.controller);
            let slow: BTreeMap<String, Duration> = inner
                .machine_faults
                .iter()
                .filter_map(|(name, fault)| match fault {
                    MachineFault::SlowTerminate(time) => Some((name.clone(), *time)),
                    _ => None,
                })
                .collect();
            let of_run = |machine: &FakeMachine| machine.batch.run == *run && machine.is_listed();
            for machine in inner.machines.values_mut().filter(|machine| of_run(machine)) {
                let ends_at = now + slow.get(&machine.name()).copied().unwrap_or_default();
                machine.ends_at = machine.ends_at.min(ends_at);
            }
            let left = inner.machines.iter().filter(|(_, m)| of_run(m) && m.state() != MachineState::Gone);
            left.map(|(id, machine)| Leftover {
                what: format!("machine {id} ({})", machine.name()),
                why: "still ending".to_owned(),
            })
            .collect()
        };
        self.call(Call::Terminate, terminate).await
    }

    fn consistency(&self) -> Duration {
        self.lock().lag
    }
}

fn describe(id: &MachineId, machine: &FakeMachine) -> Machine {
    let state = machine.state();
    let address = |net: u8| format!("{net}.0.{}.{}", machine.number / 256, machine.number % 256);
    let running = state == MachineState::Running;
    Machine {
        id: id.clone(),
        run: machine.batch.run.clone(),
        group: machine.batch.group.clone(),
        index: machine.index,
        state,
        addresses: Addresses {
            public: running.then(|| address(192)),
            private: running.then(|| address(10)),
            network: Some("fake".to_owned()),
        },
        login: Login {
            user: Some("fake".to_owned()),
            host: None,
            port: None,
            host_key: running.then(|| machine.host_key()),
            directory: None,
        },
        expires: Some(machine.expires),
        description: "a fake machine".to_owned(),
        kind: MachineKind::default(),
        price: Price::Free,
        ended: None,
        interrupted: machine.interrupted(),
    }
}

/// The login key that the fake makes for a run, whichever controller asks.
fn login_key(run: &RunId) -> String {
    // As far as `IA`, it is how such a key may begin: services that are given it look.
    format!("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA{:A<42.42} fake", run.as_str().replace('-', ""))
}

#[async_trait]
impl Connector for FakeCloud {
    async fn prepare(&self, run: &RunId, _: &Path) -> Result<String, SessionError> {
        let prepare = || {
            self.lock().prepared.insert((self.controller, run.clone()));
            Ok(login_key(run))
        };
        self.session_call(Call::Prepare, async { Ok(()) }, prepare).await
    }

    async fn connect(&self, machine: &Machine, deadline: Instant) -> Result<Box<dyn Session>, SessionError> {
        let name = machine.name();
        let refuses = |fault: &MachineFault| matches!(fault, MachineFault::RefusesSsh).then_some(());
        let answers = async {
            if self.lock().fault_of(&name, refuses).is_some() {
                sleep_until(deadline).await;
                return Err(SessionError::new(SessionErrorKind::Connect, "connection refused"));
            }
            Ok(())
        };
        let connect = || {
            if let Some(known) = self.lock().machines.get(&machine.id) {
                if machine.login.host_key != Some(known.host_key()) {
                    let message = "the machine showed another host key";
                    return Err(SessionError::new(SessionErrorKind::HostKey, message));
                }
                if known.batch.authorized_key != login_key(&machine.run) {
                    let message = "permission denied (publickey)";
                    return Err(SessionError::new(SessionErrorKind::Connect, message));
                }
            }
            let session = FakeSession {
                cloud: self.clone(),
                id: machine.id.clone(),
                name: name.clone(),
                connected_at: Instant::now(),
                closed: CancellationToken::new(),
            };
            Ok(Box::new(session) as Box<dyn Session>)
        };
        self.session_call(Call::Connect, answers, connect).await
    }

    async fn finish(&self, run: &RunId) {
        self.alive().await;
        self.lock().prepared.remove(&(self.controller, run.clone()));
    }
}

#[derive(Debug)]
struct FakeSession {
    cloud: FakeCloud,
    id: MachineId,
    name: String,
    connected_at: Instant,
    closed: CancellationToken,
}

impl FakeSession {
    /// Resolves when the connection breaks: it drops, is closed, or its machine ends. Each may come to be known at
    /// any time, so it looks every second.
    async fn broken(&self) -> SessionError {
        let lost = |message| SessionError::new(SessionErrorKind::Lost, message);
        loop {
            let at = {
                let inner = self.cloud.lock();
                let drops = inner.fault_of(&self.name, |fault| match fault {
                    MachineFault::DropsSession(after) => Some(self.connected_at + *after),
                    _ => None,
                });
                // A machine of another provider ends when the fake can't know.
                [inner.machines.get(&self.id).map(|machine| machine.ends_at), drops]
                    .into_iter()
                    .flatten()
                    .min()
            };
            let look = Instant::now() + Duration::from_secs(1);
            match at {
                Some(at) if at <= Instant::now() => return lost("the connection broke"),
                at => {
                    let next = at.map_or(look, |at| at.min(look));
                    if timeout_at(next, self.closed.cancelled()).await.is_ok() {
                        return lost("the session is closed");
                    }
                }
            }
        }
    }

    /// Does something that a broken connection interrupts.
    async fn unless_broken<T>(
        &self,
        doing: impl Future<Output = Result<T, SessionError>>,
    ) -> Result<T, SessionError> {
        tokio::select! {
            biased;
            error = self.broken() => {
                self.cloud.alive().await;
                Err(error)
            }
            done = doing => {
                self.cloud.alive().await;
                done
            }
        }
    }

    /// Puts a local file or directory on the machine.
    fn arrive(&self, from: &Path, to: &str, exclude: &Exclude) -> Result<(), SessionError> {
        let mut to_path = resolve(Path::new(HOME), to);
        if to.ends_with('/') && !from.is_dir() {
            to_path.extend(from.file_name());
        }
        let mut files = Vec::new();
        local_files(from, Path::new(""), to_path, exclude, &mut files)?;
        let mut inner = self.cloud.lock();
        for (path, content) in files {
            inner.files.insert((self.id.clone(), path), content);
        }
        Ok(())
    }

    fn keep(&self, content: &SharedContent, offered: bool) {
        self.cloud.lock().kept.insert((self.id.clone(), content.name.clone()), offered);
    }

    fn file(&self, path: PathBuf) -> Option<Vec<u8>> {
        self.cloud.lock().files.get(&(self.id.clone(), path)).cloned()
    }

    /// What the fake's own shell makes of a command.
    fn shell(&self, command: &Command) -> Result<Reply, SessionError> {
        if command.env.iter().any(|(name, _)| name == "TSUNAMI_SCRIPT")
            && let Program::Args(args) = &command.program
            && let [.., name, path, _] = args.as_slice()
            && name == WRITE_NAME
            && let (Some(path), Stdin::Bytes(content)) = (path.to_str(), &command.stdin)
        {
            return Ok(Reply::status(0).file(path, &**content));
        }
        let line = match &command.program {
            Program::Shell(line) | Program::ShellArgs(line, _) => line.clone(),
            Program::Args(_) => command.to_string(),
        };
        let directory = resolve(Path::new(HOME), command.cwd.as_deref().unwrap_or_default());
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        Ok(match word {
            "echo" => Reply::stdout(format!("{rest}\n")),
            "pwd" => Reply::stdout(format!("{}\n", directory.display())),
            "cat" if rest.is_empty() => match &command.stdin {
                Stdin::Null => Reply::status(0),
                Stdin::Bytes(bytes) => Reply::stdout(String::from_utf8_lossy(bytes)),
                Stdin::File(path) => Reply::stdout(String::from_utf8_lossy(&read(path)?)),
                // It writes what it reads as that comes.
                Stdin::Piped(_) => Reply::status(0),
            },
            "cat" => match self.file(resolve(&directory, rest.trim_start_matches("-- "))) {
                Some(bytes) => Reply { output: vec![(Stream::Stdout, bytes)], ..Reply::status(0) },
                None => Reply::status(1).stderr(format!("cat: {rest}: No such file or directory\n")),
            },
            "sleep" => Reply::status(0).after(Duration::from_secs_f64(rest.parse().unwrap_or(0.0))),
            "exit" => Reply::status(rest.parse().unwrap_or(0)),
            "false" => Reply::status(1),
            "kill" => {
                let signal = rest.trim_start_matches('-').split(' ').next().and_then(|n| n.parse().ok());
                Reply { exit: Exit::Signal(signal.unwrap_or(15)), ..Reply::status(0) }
            }
            _ => Reply::status(0),
        })
    }

    /// The files that a pattern matches, with their names at home, and how many matches there are. A directory is
    /// one, and comes whole.
    fn matching(&self, directory: &Path, pattern: &str) -> (usize, Vec<(PathBuf, Vec<u8>)>) {
        let wanted = resolve(directory, pattern);
        let wanted: Vec<&str> = wanted.iter().filter_map(|part| part.to_str()).collect();
        // Not resolved: a name at home is as it was asked for.
        let climbs = Path::new(pattern).components().any(|part| part == Component::ParentDir);
        let (mut matches, mut files) = (BTreeSet::new(), Vec::new());
        for ((id, path), content) in &self.cloud.lock().files {
            let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
            let fits = parts.len() >= wanted.len()
                && wanted.iter().zip(&parts).all(|(pattern, name)| fits(pattern.as_bytes(), name.as_bytes()));
            if *id != self.id || !fits {
                continue;
            }
            matches.insert(parts[..wanted.len()].join("/"));
            let below = match pattern.starts_with('/') {
                true => path.strip_prefix("/").ok(),
                false => path.strip_prefix(directory).ok(),
            };
            let name = match below {
                Some(below) if !climbs => below.to_owned(),
                _ => Path::new("..").join(path.strip_prefix("/").unwrap_or(path)),
            };
            files.push((name, content.clone()));
        }
        (matches.len(), files)
    }
}

/// Where a name leads, seen from a directory.
fn resolve(directory: &Path, name: &str) -> PathBuf {
    let mut path = directory.to_owned();
    for part in Path::new(name).components() {
        match part {
            Component::RootDir | Component::Prefix(_) => path = PathBuf::from("/"),
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            Component::Normal(part) => path.push(part),
        }
    }
    path
}

/// Whether a name fits a shell's glob.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    fn rest(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            ([b'*', pattern @ ..], _) => (0..=name.len()).any(|taken| rest(pattern, &name[taken..])),
            ([b'?', pattern @ ..], [_, name @ ..]) => rest(pattern, name),
            ([b'[', set @ ..], [first, name @ ..]) if set.contains(&b']') => {
                let end = set.iter().skip(1).position(|&byte| byte == b']').map_or(0, |end| end + 1);
                let (set, pattern) = (&set[..end], &set[end + 1..]);
                let (set, negated) = match set {
                    [b'!' | b'^', set @ ..] => (set, true),
                    set => (set, false),
                };
                is_in(set, *first) != negated && rest(pattern, name)
            }
            ([wanted, pattern @ ..], [first, name @ ..]) => wanted == first && rest(pattern, name),
            _ => false,
        }
    }
    // No wildcard stands for the first dot of a hidden file.
    (name.first() != Some(&b'.') || pattern.first() == Some(&b'.')) && rest(pattern, name)
}

fn is_in(set: &[u8], byte: u8) -> bool {
    match set {
        [from, b'-', to, set @ ..] => (*from..=*to).contains(&byte) || is_in(set, byte),
        [one, set @ ..] => *one == byte || is_in(set, byte),
        [] => false,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SessionError> {
    std::fs::read(path).map_err(|error| unreadable(path, error))
}

fn unreadable(path: &Path, error: std::io::Error) -> SessionError {
    let message = format!("cannot read {}", path.display());
    SessionError::new(SessionErrorKind::Local, message).source(error)
}

/// The files below a local path, or the file that it is, with where each arrives.
/// Finds the files below a directory, or the one file, with the names that they get; `relative` is where in all of it this is.
fn local_files(
    from: &Path,
    relative: &Path,
    to: PathBuf,
    exclude: &Exclude,
    files: &mut Vec<(PathBuf, Vec<u8>)>,
) -> Result<(), SessionError> {
    if !std::fs::metadata(from).map_err(|error| unreadable(from, error))?.is_dir() {
        files.push((to, read(from)?));
        return Ok(());
    }
    for entry in std::fs::read_dir(from).map_err(|error| unreadable(from, error))? {
        let entry = entry.map_err(|error| unreadable(from, error))?;
        let relative = relative.join(entry.file_name());
        if !exclude.matches(&relative, entry.path().is_dir()) {
            local_files(&entry.path(), &relative, to.join(entry.file_name()), exclude, files)?;
        }
    }
    Ok(())
}

#[async_trait]
impl Session for FakeSession {
    async fn exec(
        &self,
        command: &Command,
        output: Arc<dyn OutputSink>,
        cancel: &CancellationToken,
    ) -> Result<Exit, SessionError> {
        self.cloud.lock().log.push((self.name.clone(), command.to_string()));
        let handlers = self.cloud.lock().on_command.clone();
        let reply = match handlers.iter().rev().find_map(|handler| handler(&self.name, command)) {
            Some(reply) => reply,
            None => self.shell(command)?,
        };
        let input = match &command.stdin {
            Stdin::Piped(piped) => Some(Box::new(piped.reader()?)),
            _ => None,
        };
        let write = async |stream, bytes: &[u8]| {
            poll_fn(|cx| output.poll_ready(cx)).await;
            let refused = |error| SessionError::new(SessionErrorKind::Local, "output").source(error);
            output.write(stream, bytes).map_err(refused)
        };
        // Pinned here, once: whoever is handed a future by value may hold it twice.
        let running = pin!(async {
            if let Some(mut input) = input {
                let (echoes, mut bytes) = (command.to_string() == "cat", Vec::with_capacity(1024));
                while input.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
                    if echoes {
                        write(Stream::Stdout, &bytes).await?;
                    }
                    bytes.clear();
                }
            }
            for (stream, bytes) in &reply.output {
                write(*stream, bytes).await?;
            }
            Box::pin(sleep(reply.after)).await;
            Ok(())
        });
        let ended = || {
            let directory = resolve(Path::new(HOME), command.cwd.as_deref().unwrap_or_default());
            let mut inner = self.cloud.lock();
            for (name, content) in &reply.files {
                inner.files.insert((self.id.clone(), resolve(&directory, name)), content.clone());
            }
            Ok(reply.exit)
        };
        let mut done = pin!(self.cloud.session_call(Call::Exec, running, ended));
        let done = tokio::select! {
            biased;
            // One that has ended by itself says how.
            () = cancel.cancelled() => done.as_mut().now_or_never().unwrap_or_else(|| {
                Err(SessionError::new(SessionErrorKind::Cancelled, "cancelled"))
            }),
            error = self.broken() => Err(error),
            done = &mut done => done,
        };
        self.cloud.alive().await;
        done
    }

    async fn exec_all(
        &self,
        commands: &[Command],
        observer: Arc<dyn SequenceObserver>,
        cancel: &CancellationToken,
    ) -> Result<(), SessionError> {
        let lines = commands.iter().map(Command::to_string).collect();
        self.cloud.lock().lists.push((self.name.clone(), lines));
        one_by_one(self, commands, &*observer, cancel).await
    }

    async fn administer(&self, script: &str, args: &[String]) -> Result<String, SessionError> {
        #[derive(Debug, Default)]
        struct Captured(Mutex<[Vec<u8>; 2]>);
        impl OutputSink for Captured {
            fn write(&self, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
                let mut captured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                captured[usize::from(stream == Stream::Stderr)].extend_from_slice(bytes);
                Ok(())
            }
        }
        let command = args.iter().fold(Command::shell(script), |command, arg| command.arg(arg));
        let captured = Arc::new(Captured::default());
        let exit = self.exec(&command, captured.clone(), &CancellationToken::new()).await?;
        let captured = captured.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [stdout, stderr] = captured.each_ref().map(|said| String::from_utf8_lossy(said).into_owned());
        if exit.success() { Ok(stdout) } else { Err(SessionError::new(SessionErrorKind::Remote, stderr)) }
    }

    async fn upload(&self, from: &Path, to: &str) -> Result<(), SessionError> {
        self.upload_without(from, to, &Exclude::default()).await
    }

    async fn upload_without(&self, from: &Path, to: &str, exclude: &Exclude) -> Result<(), SessionError> {
        let arrive = || self.arrive(from, to, exclude);
        self.unless_broken(self.cloud.session_call(Call::Upload, async { Ok(()) }, arrive)).await
    }

    fn dials(&self) -> bool {
        true
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, SessionError> {
        let dial = || {
            let handler = self.cloud.lock().on_dial.clone();
            let answer = handler.and_then(|handler| handler(&self.name, host, port));
            let refused = || {
                let message = format!("nothing listens on {host} port {port}");
                SessionError::new(SessionErrorKind::Remote, message)
            };
            answer.map(|stream| Box::new(stream) as Box<dyn ByteStream>).ok_or_else(refused)
        };
        self.unless_broken(self.cloud.session_call(Call::Dial, async { Ok(()) }, dial)).await
    }

    fn spreads(&self) -> bool {
        true
    }

    async fn upload_kept(&self, from: &Path, to: &str, content: &SharedContent) -> Result<(), SessionError> {
        let arrive = || self.arrive(from, to, &content.exclude).map(|()| self.keep(content, false));
        self.unless_broken(self.cloud.session_call(Call::Upload, async { Ok(()) }, arrive)).await
    }

    async fn offer(&self, content: &SharedContent) -> Result<ContentOffer, SessionError> {
        let offer = || {
            if !self.cloud.lock().kept.contains_key(&(self.id.clone(), content.name.clone())) {
                return Err(SessionError::new(SessionErrorKind::Transfer, "it keeps no such thing"));
            }
            self.keep(content, true);
            Ok(ContentOffer::new((self.id.clone(), content.name.clone())))
        };
        self.unless_broken(self.cloud.session_call(Call::Offer, async { Ok(()) }, offer)).await
    }

    async fn take(
        &self,
        offer: &ContentOffer,
        from: &Path,
        to: &str,
        content: &SharedContent,
    ) -> Result<(), SessionError> {
        let take = || {
            let is_offered = offer.details().is_some_and(|source: &(MachineId, String)| {
                let inner = self.cloud.lock();
                // A machine of another provider ends when the fake can't know.
                let machine = inner.machines.get(&source.0);
                let runs = machine.is_none_or(|machine| machine.state() == MachineState::Running);
                runs && inner.kept.get(source) == Some(&true)
            });
            if !is_offered {
                return Err(SessionError::new(SessionErrorKind::Transfer, "nobody offers it any more"));
            }
            self.arrive(from, to, &content.exclude).map(|()| self.keep(content, false))
        };
        self.unless_broken(self.cloud.session_call(Call::Take, async { Ok(()) }, take)).await
    }

    async fn withdraw(&self, content: &SharedContent) -> Result<(), SessionError> {
        let withdraw = || {
            self.cloud.lock().kept.remove(&(self.id.clone(), content.name.clone()));
            Ok(())
        };
        self.unless_broken(self.cloud.session_call(Call::Withdraw, async { Ok(()) }, withdraw)).await
    }

    async fn download(&self, download: &Download) -> Result<Vec<usize>, SessionError> {
        let failed = |error| SessionError::new(SessionErrorKind::Local, "cannot write").source(error);
        let bring = || {
            let directory = resolve(Path::new(HOME), download.cwd.as_deref().unwrap_or_default());
            std::fs::create_dir_all(&download.into).map_err(failed)?;
            let (mut counts, mut left_out) = (Vec::new(), Vec::new());
            for pattern in &download.patterns {
                let (count, files) = self.matching(&directory, pattern);
                counts.push(count);
                for (name, content) in files {
                    if name.starts_with("..") {
                        left_out.push(name.display().to_string());
                        continue;
                    }
                    let path = download.into.join(name);
                    path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(failed)?;
                    std::fs::write(path, content).map_err(failed)?;
                }
            }
            if left_out.is_empty() {
                return Ok(counts);
            }
            let message = format!("left out, outside of where files arrive: {}", left_out.join(", "));
            Err(SessionError::new(SessionErrorKind::Transfer, message))
        };
        self.unless_broken(self.cloud.session_call(Call::Download, async { Ok(()) }, bring)).await
    }

    fn answered(&self) -> Option<Instant> {
        Some(self.connected_at)
    }

    async fn check(&self) -> Result<(), SessionError> {
        let answers = async {
            sleep(Duration::from_millis(1)).await;
            Ok(())
        };
        self.unless_broken(answers).await
    }

    async fn close(&self) -> Result<(), SessionError> {
        let close = || {
            self.closed.cancel();
            Ok(())
        };
        self.cloud.session_call(Call::Close, async { Ok(()) }, close).await
    }
}
