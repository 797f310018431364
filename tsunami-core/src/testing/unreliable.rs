//! What is between a program and anything real: calls that take long, are too many, or fail.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::future::pending;
use std::num::NonZeroU32;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::fake::{Call, Fault};
use crate::{
    ByteStream, Choice, Choices, Command, Connector, ContentOffer, Download, Exclude, Exit, LaunchRequest,
    Leftover, Login, Machine, MachineId, MachineSpec, OutputSink, Provider, ProviderError, ProviderErrorKind,
    Quote, RunFilter, RunId, SequenceObserver, Session, SessionError, SharedContent,
};

/// Any provider, connector, or both, with trouble on the way there. Without any, it is like what it wraps.
///
/// Calls are told apart by their [kind](Call) and counted, those of all of a connector's sessions together. Which of them
/// fail, and how long they take, depends on the seed and on these numbers alone, so that it is the same every time. A
/// handle and its clones are the same wrapper. Calls that no [`Call`] names go through as they are.
///
/// ```
/// # use std::sync::Arc;
/// # use std::time::Duration;
/// # use tsunami_core::{Error, Group, MachineSpec, Plan, ProviderErrorKind, RunStore, Tsunami};
/// use tsunami_core::testing::{Call, FakeCloud, Fault, Unreliable};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Error> {
/// # let directory = tempfile::tempdir()?;
/// // The fake cloud is both, and so is what wraps it.
/// let cloud = Unreliable::new(Arc::new(FakeCloud::new(1)), 42);
/// cloud.latency(Duration::from_millis(50)..Duration::from_millis(300));
/// cloud.limit(Call::List, 0.5);
/// cloud.fault(Call::Launch, 1, Fault::Error(ProviderErrorKind::Throttled));
/// cloud.share(Call::Terminate, 0.3, Fault::LostReply(ProviderErrorKind::Unavailable));
///
/// let tsunami = Tsunami::new(Arc::new(cloud.clone()), Arc::new(cloud.clone()));
/// # let tsunami = tsunami.state(RunStore::at(directory.path()));
/// let plan = Plan::new("hello").group(Group::new("node", MachineSpec::default()).count(3));
/// tsunami.run(plan, |cluster| async move { cluster.hosts()[0].run("hostname").await }).await?;
/// assert_eq!(cloud.calls(Call::Launch), 2);
/// assert!(cloud.get_ref().is_empty());
/// # Ok(()) }
/// ```
pub struct Unreliable<T: ?Sized> {
    inner: Arc<T>,
    trouble: Trouble,
}

impl<T: ?Sized> Clone for Unreliable<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), trouble: self.trouble.clone() }
    }
}

impl<T: Debug + ?Sized> Debug for Unreliable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Unreliable").field(&&*self.inner).finish()
    }
}

impl<T: ?Sized> Unreliable<T> {
    /// Wraps it. The seed decides what chance decides.
    pub fn new(inner: Arc<T>, seed: u64) -> Self {
        let state = State { seed, ..State::default() };
        Self { inner, trouble: Trouble(Arc::new(Mutex::new(state))) }
    }

    /// What is wrapped.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    /// Makes every call take longer, by a time in this range.
    pub fn latency(&self, range: Range<Duration>) {
        self.trouble.lock().latency = range;
    }

    /// Lets so many calls of a kind through a second, and has the others wait for their turn.
    ///
    /// # Panics
    ///
    /// If that is not a positive number.
    pub fn limit(&self, call: Call, per_second: f64) {
        assert!(per_second > 0.0 && per_second.is_finite(), "{per_second} calls a second");
        let pause = Duration::from_secs_f64(per_second.recip());
        self.trouble.lock().limits.insert(call, Limit { pause, next: Instant::now() });
    }

    /// Makes the `nth` call of a kind (from 1) go wrong.
    ///
    /// # Panics
    ///
    /// If it has begun, or if there can be no such fault of it.
    pub fn fault(&self, call: Call, nth: u32, fault: Fault) {
        check(call, fault);
        let mut state = self.trouble.lock();
        let begun = state.calls.get(&call).copied().unwrap_or_default();
        if nth <= begun {
            drop(state);
            panic!("call {nth} of {call:?} has begun: there were {begun}");
        }
        state.faults.insert((call, nth), fault);
    }

    /// Makes this share of all calls of a kind go wrong, 0.0 to 1.0.
    ///
    /// # Panics
    ///
    /// If there can be no such fault of them.
    pub fn share(&self, call: Call, share: f64, fault: Fault) {
        check(call, fault);
        self.trouble.lock().shares.insert(call, (share, fault));
    }

    /// Has the `nth` call of a kind (from 1) wait for something before it goes through.
    pub fn wait_for(&self, call: Call, nth: u32, something: impl Future<Output = ()> + Send + 'static) {
        self.trouble.lock().waits.insert((call, nth), Box::pin(something));
    }

    /// From now on nothing goes wrong any more, except for calls that have begun.
    pub fn calm(&self) {
        let mut state = self.trouble.lock();
        *state = State { seed: state.seed, calls: std::mem::take(&mut state.calls), ..State::default() };
    }

    /// How many calls of that kind have begun.
    pub fn calls(&self, call: Call) -> u32 {
        self.trouble.lock().calls.get(&call).copied().unwrap_or_default()
    }
}

fn check(call: Call, fault: Fault) {
    assert!(!matches!(fault, Fault::Partial(_)) || call == Call::Launch, "no {call:?} is ever partial");
}

#[derive(Clone)]
struct Trouble(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    seed: u64,
    latency: Range<Duration>,
    limits: BTreeMap<Call, Limit>,
    faults: BTreeMap<(Call, u32), Fault>,
    shares: BTreeMap<Call, (f64, Fault)>,
    waits: BTreeMap<(Call, u32), Wait>,
    calls: BTreeMap<Call, u32>,
}

type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Limit {
    pause: Duration,
    /// When the next call may go.
    next: Instant,
}

impl Trouble {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets pass whatever comes before a call, and says what is to go wrong with it.
    async fn before(&self, call: Call) -> Option<Fault> {
        let (wait, turn, latency, fault) = {
            let mut state = self.lock();
            let nth = state.calls.entry(call).or_default();
            *nth += 1;
            let nth = *nth;
            // Not by the order in which calls of several kinds come.
            let mut chance = fastrand::Rng::with_seed(state.seed ^ ((call as u64) << 32) ^ u64::from(nth));
            let Range { start, end } = state.latency;
            let latency = start + end.saturating_sub(start).mul_f64(chance.f64());
            let hit = chance.f64();
            let share = state.shares.get(&call).filter(|(share, _)| hit < *share).map(|(_, fault)| *fault);
            let fault = state.faults.remove(&(call, nth)).or(share);
            let turn = state.limits.get_mut(&call).map(|limit| {
                let turn = limit.next.max(Instant::now());
                limit.next = turn + limit.pause;
                turn
            });
            (state.waits.remove(&(call, nth)), turn, latency, fault)
        };
        if let Some(wait) = wait {
            wait.await;
        }
        if let Some(turn) = turn {
            sleep_until(turn).await;
        }
        // Not even a moment, where nothing is asked for.
        if !latency.is_zero() {
            sleep(latency).await;
        }
        match fault {
            Some(Fault::Slow(time)) => {
                sleep(time).await;
                None
            }
            fault => fault,
        }
    }

    /// Makes a call that goes wrong like this.
    async fn make<A, E>(
        fault: Option<Fault>,
        error: impl FnOnce(ProviderErrorKind) -> E,
        making: impl Future<Output = Result<A, E>>,
    ) -> Result<A, E> {
        match fault {
            Some(Fault::Error(kind)) => Err(error(kind)),
            Some(Fault::LostReply(kind)) => making.await.and_then(|_| Err(error(kind))),
            Some(Fault::Hang) => {
                drop(making.await);
                pending().await
            }
            _ => making.await,
        }
    }

    async fn provider<A>(
        &self,
        call: Call,
        making: impl Future<Output = Result<A, ProviderError>>,
    ) -> Result<A, ProviderError> {
        let error = |kind| ProviderError::new(kind, format!("{call:?}"), "injected fault");
        Self::make(self.before(call).await, error, making).await
    }

    async fn session<A>(
        &self,
        call: Call,
        making: impl Future<Output = Result<A, SessionError>>,
    ) -> Result<A, SessionError> {
        let error = |_| SessionError::new(call.session_error(), "injected fault");
        Self::make(self.before(call).await, error, making).await
    }
}

#[deny(clippy::missing_trait_methods, reason = "a method that is left out never reaches the provider")]
#[async_trait]
impl<T: Provider + ?Sized> Provider for Unreliable<T> {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn settings(&self) -> serde_json::Value {
        self.inner.settings()
    }

    async fn choose(&self, spec: &MachineSpec, known: &Choices) -> Result<Option<Choice>, ProviderError> {
        self.inner.choose(spec, known).await
    }

    async fn quote(&self, spec: &MachineSpec, count: NonZeroU32) -> Result<Quote, ProviderError> {
        self.trouble.provider(Call::Quote, self.inner.quote(spec, count)).await
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        let partial = async |at_most: u32| {
            if let Some(count) = NonZeroU32::new(at_most.min(request.count.get())) {
                self.inner.launch(&LaunchRequest { count, ..request.clone() }).await?;
            }
            let message = format!("got {at_most} of {}", request.count);
            Err(ProviderError::new(ProviderErrorKind::Capacity, "Launch", message))
        };
        let error = |kind| ProviderError::new(kind, "Launch", "injected fault");
        match self.trouble.before(Call::Launch).await {
            Some(Fault::Partial(at_most)) if at_most < request.count.get() => partial(at_most).await,
            fault => Trouble::make(fault, error, self.inner.launch(request)).await,
        }
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        self.trouble.provider(Call::List, self.inner.list(filter)).await
    }

    async fn verify(&self, machine: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        self.trouble.provider(Call::Verify, self.inner.verify(machine, session)).await
    }

    async fn renew(&self, machine: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        self.inner.renew(machine, session).await
    }

    async fn interruption_notice(&self, machine: &Machine, session: &Arc<dyn Session>) -> String {
        self.inner.interruption_notice(machine, session).await
    }

    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        self.trouble.provider(Call::Extend, self.inner.extend(run, until)).await
    }

    async fn extend_on(
        &self,
        machine: &Machine,
        session: &Arc<dyn Session>,
        until: SystemTime,
    ) -> Result<(), ProviderError> {
        self.inner.extend_on(machine, session, until).await
    }

    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        self.trouble.provider(Call::Terminate, self.inner.terminate(run)).await
    }

    fn consistency(&self) -> Duration {
        self.inner.consistency()
    }
}

#[deny(clippy::missing_trait_methods, reason = "a method that is left out never reaches the connector")]
#[async_trait]
impl<T: Connector + ?Sized> Connector for Unreliable<T> {
    async fn prepare(&self, run: &RunId, directory: &Path) -> Result<String, SessionError> {
        self.trouble.session(Call::Prepare, self.inner.prepare(run, directory)).await
    }

    async fn connect(&self, machine: &Machine, deadline: Instant) -> Result<Box<dyn Session>, SessionError> {
        let session = self.trouble.session(Call::Connect, self.inner.connect(machine, deadline)).await?;
        Ok(Box::new(UnreliableSession { inner: session, trouble: self.trouble.clone() }))
    }

    async fn resolve(&self, login: &Login) -> Result<String, SessionError> {
        self.inner.resolve(login).await
    }

    async fn finish(&self, run: &RunId) {
        self.inner.finish(run).await;
    }
}

/// A session of an unreliable connector.
struct UnreliableSession {
    inner: Box<dyn Session>,
    trouble: Trouble,
}

impl Debug for UnreliableSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Unreliable").field(&self.inner).finish()
    }
}

#[deny(clippy::missing_trait_methods, reason = "a method that is left out never reaches the session")]
#[async_trait]
impl Session for UnreliableSession {
    async fn exec(
        &self,
        command: &Command,
        output: Arc<dyn OutputSink>,
        cancel: &CancellationToken,
    ) -> Result<Exit, SessionError> {
        self.trouble.session(Call::Exec, self.inner.exec(command, output, cancel)).await
    }

    async fn exec_all(
        &self,
        commands: &[Command],
        observer: Arc<dyn SequenceObserver>,
        cancel: &CancellationToken,
    ) -> Result<(), SessionError> {
        self.trouble.session(Call::Exec, self.inner.exec_all(commands, observer, cancel)).await
    }

    async fn administer(&self, script: &str, args: &[String]) -> Result<String, SessionError> {
        self.trouble.session(Call::Exec, self.inner.administer(script, args)).await
    }

    async fn upload(&self, from: &Path, to: &str) -> Result<(), SessionError> {
        self.trouble.session(Call::Upload, self.inner.upload(from, to)).await
    }

    async fn upload_without(&self, from: &Path, to: &str, exclude: &Exclude) -> Result<(), SessionError> {
        self.trouble.session(Call::Upload, self.inner.upload_without(from, to, exclude)).await
    }

    fn spreads(&self) -> bool {
        self.inner.spreads()
    }

    async fn upload_kept(&self, from: &Path, to: &str, content: &SharedContent) -> Result<(), SessionError> {
        self.trouble.session(Call::Upload, self.inner.upload_kept(from, to, content)).await
    }

    async fn offer(&self, content: &SharedContent) -> Result<ContentOffer, SessionError> {
        self.trouble.session(Call::Offer, self.inner.offer(content)).await
    }

    async fn take(
        &self,
        offer: &ContentOffer,
        from: &Path,
        to: &str,
        content: &SharedContent,
    ) -> Result<(), SessionError> {
        self.trouble.session(Call::Take, self.inner.take(offer, from, to, content)).await
    }

    async fn withdraw(&self, content: &SharedContent) -> Result<(), SessionError> {
        self.trouble.session(Call::Withdraw, self.inner.withdraw(content)).await
    }

    async fn download(&self, download: &Download) -> Result<Vec<usize>, SessionError> {
        self.trouble.session(Call::Download, self.inner.download(download)).await
    }

    fn moved(&self) -> u64 {
        self.inner.moved()
    }

    fn dials(&self) -> bool {
        self.inner.dials()
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, SessionError> {
        self.trouble.session(Call::Dial, self.inner.dial(host, port)).await
    }

    fn answered(&self) -> Option<Instant> {
        self.inner.answered()
    }

    async fn check(&self) -> Result<(), SessionError> {
        self.inner.check().await
    }

    async fn close(&self) -> Result<(), SessionError> {
        self.trouble.session(Call::Close, self.inner.close()).await
    }
}
