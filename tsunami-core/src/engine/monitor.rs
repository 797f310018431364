//! One watcher a run: it polls the state of all machines in one listing and tells every machine's task, and whoever
//! uses the machine later.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep_until, timeout};

use super::run::Run;
use crate::backoff::Backoff;
use crate::cluster::Host;
use crate::event::EventKind;
use crate::machine::{InvalidMachine, Machine, MachineId, MachineState};
use crate::provider::{ProviderError, ProviderErrorKind, RunFilter};

/// The pause between two listings while machines are awaited.
const POLL_PENDING: Duration = Duration::from_secs(1);

/// The pause between two listings once all are up.
const POLL_UP: Duration = Duration::from_secs(5);

/// The longest pause after listings that failed.
const POLL_FAILED: Duration = Duration::from_secs(15);

/// How long the reason of a machine's end may come after it: some listings later.
pub(super) const REASON_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a listing may take. A run must not be blind because one was never answered.
pub(super) const LIST_TIMEOUT: Duration = Duration::from_secs(60);

/// A machine that was seen counts as gone after this many listings without it, which were begun at least this many
/// times the provider's [consistency](crate::Provider::consistency) after the last one with it.
const MISSES: u32 = 3;

/// What is known of a machine, and who wants to hear of it: what is new wakes only that machine's task.
#[derive(Debug, Default)]
struct Known {
    machine: Option<Arc<Machine>>,
    changed: Arc<Notify>,
    /// `None` before the first listing with it, and once it counts as gone.
    listed: Option<Listed>,
}

/// When a machine was last seen.
#[derive(Debug)]
struct Listed {
    /// When the listing was begun that showed it.
    at: Instant,
    /// The listings since then.
    misses: u32,
}

impl Known {
    /// Notes what a listing shows, unless that can't be a machine. Nobody is woken by what was known before.
    fn show(&mut self, machine: Machine, at: Instant) -> Result<(), InvalidMachine> {
        if self.machine.as_deref() != Some(&machine) {
            machine.check()?;
            self.machine = Some(Arc::new(machine));
            self.changed.notify_waiters();
        }
        self.listed = Some(Listed { at, misses: 0 });
        Ok(())
    }

    /// Notes that a listing that was begun at `begun` does not show it, or that it was too early to tell.
    fn miss(&mut self, begun: Instant, patience: Duration) {
        let is_gone = |listed: &mut Listed| listed.misses >= MISSES && begun - listed.at >= patience;
        if self.listed.take_if(is_gone).is_some()
            && let Some(machine) = self.machine.as_mut().filter(|machine| machine.state != MachineState::Gone)
        {
            Arc::make_mut(machine).state = MachineState::Gone;
            self.changed.notify_waiters();
        }
    }
}

/// Steers the watcher, and hears from it.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// By id, so that a listing wakes tasks in the same order every time.
    known: Mutex<BTreeMap<MachineId, Known>>,
    calm: AtomicBool,
    now: Notify,
    /// Why the last listing was refused, if only a person can change that.
    refused: watch::Sender<Option<ProviderError>>,
}

impl Watch {
    /// Makes the watcher of a run and the handle to it.
    pub(super) fn new(run: Arc<Run>) -> (impl Future<Output = ()> + Send + 'static, Arc<Self>) {
        let watch = Arc::new(Self::default());
        (watch.clone().poll(run), watch)
    }

    /// Asks for a listing without delay: something has changed.
    pub(super) fn look_now(&self) {
        self.now.notify_one();
    }

    /// All machines are up: look less often.
    pub(super) fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    /// Machines are awaited again: look more often.
    pub(super) fn hurry(&self) {
        self.calm.store(false, Ordering::Relaxed);
        self.look_now();
    }

    /// Notes machines that were listed just now by somebody else: they are missed though no further listing shows them.
    pub(super) fn show(&self, machines: impl Iterator<Item = Machine>) {
        // They were looked at when they were connected to.
        drop(self.apply_listing(machines.collect(), Instant::now(), Duration::ZERO));
    }

    /// Waits until a machine runs and has an address, or is on its way out, or soon will be.
    pub(super) async fn running(&self, id: &MachineId) -> Arc<Machine> {
        let is_decided = |machine: &Machine| match machine.state {
            _ if machine.interrupted.is_some() => true,
            MachineState::Pending => false,
            MachineState::Running => machine.addresses.internal().is_some() || machine.login.host.is_some(),
            MachineState::Stopping | MachineState::Gone => true,
        };
        self.until(id, is_decided).await
    }

    /// Waits until a machine is on its way out, or its provider says that it will be.
    pub(super) async fn leaving(&self, id: &MachineId) -> Arc<Machine> {
        self.until(id, is_leaving).await
    }

    /// Whether a machine is on its way out, and its provider has not said that it takes it back.
    pub(super) fn is_unexplained(&self, id: &MachineId) -> bool {
        self.machine(id).is_some_and(|machine| is_out(&machine) && !is_interrupted(&machine))
    }

    /// Waits until a machine's provider says that it takes the machine back, or why it took it: the reason may show
    /// later than the state.
    pub(super) async fn interrupted(&self, id: &MachineId) -> Arc<Machine> {
        self.until(id, is_interrupted).await
    }

    /// Waits until a listing is refused for good, without which nothing more is seen of any machine.
    pub(super) async fn refused(&self) -> ProviderError {
        let mut refused = self.refused.subscribe();
        loop {
            // `self` keeps the sender alive.
            let _ = refused.wait_for(Option::is_some).await;
            if let Some(error) = self.refused.send_replace(None) {
                return error;
            }
        }
    }

    /// Waits until what is known of a machine is so.
    async fn until(&self, id: &MachineId, is_so: impl Fn(&Machine) -> bool) -> Arc<Machine> {
        let changed = self.known().entry(id.clone()).or_default().changed.clone();
        loop {
            // It hears of whatever comes after the look.
            let next = changed.notified();
            if let Some(machine) = self.machine(id).filter(|machine| is_so(machine)) {
                return machine;
            }
            next.await;
        }
    }

    /// What is known of a machine.
    pub(super) fn machine(&self, id: &MachineId) -> Option<Arc<Machine>> {
        self.known().get(id)?.machine.clone()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<MachineId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn poll(self: Arc<Self>, run: Arc<Run>) {
        let mut after_failure = Backoff::new(POLL_PENDING * 2, POLL_FAILED);
        let patience = run.provider.consistency() * MISSES;
        match self.calm.load(Ordering::Relaxed) {
            // They were listed just now.
            true => drop(timeout(POLL_UP, self.now.notified()).await),
            // None is launched yet.
            false => self.now.notified().await,
        }
        loop {
            let begun = Instant::now();
            let filter = RunFilter::Run(run.id.clone());
            let listed = timeout(LIST_TIMEOUT, run.provider.list(&filter)).await;
            let pause = match listed.unwrap_or_else(not_listed) {
                Ok(machines) => {
                    self.refused.send_replace(None);
                    for odd in self.apply_listing(machines, begun, patience) {
                        run.events.emit(EventKind::ListingFailed { error: odd.to_string() });
                    }
                    let pause = if self.calm.load(Ordering::Relaxed) { POLL_UP } else { POLL_PENDING };
                    after_failure = Backoff::new(pause * 2, POLL_FAILED);
                    pause
                }
                Err(error) => {
                    run.events.emit(EventKind::ListingFailed { error: error.to_string() });
                    self.refused.send_replace(error.kind.is_final().then_some(error));
                    after_failure.wait()
                }
            };
            tokio::select! {
                biased;
                () = self.now.notified() => {}
                () = sleep_until(begun + pause) => {}
            }
        }
    }

    /// Tells the machines' tasks what a listing says that was begun at `begun`. Where listings are eventually
    /// consistent, some that lack a machine prove little, however many come in a moment. Returns what is wrong with
    /// those that can't be machines.
    fn apply_listing(
        &self,
        machines: Vec<Machine>,
        begun: Instant,
        patience: Duration,
    ) -> Vec<InvalidMachine> {
        let mut known = self.known();
        for listed in known.values_mut().filter_map(|known| known.listed.as_mut()) {
            listed.misses += 1;
        }
        let mut show = |machine: Machine| match known.get_mut(&machine.id) {
            Some(known) => known.show(machine, begun),
            None => known.entry(machine.id.clone()).or_default().show(machine, begun),
        };
        let odd = machines.into_iter().filter_map(|machine| show(machine).err()).collect();
        known.values_mut().for_each(|known| known.miss(begun, patience));
        odd
    }
}

impl Run {
    /// Tells a host's commands from now on when the provider, or the machine itself, says that the machine is going, or
    /// gone: the connection may take long to notice.
    pub(super) fn follow(self: &Arc<Self>, host: &Host, watch: &Arc<Watch>) {
        let (run, host, watch) = (self.clone(), host.clone(), watch.clone());
        // It is there for as long as the machine: what is rare is on the heap.
        self.spawn_until_cancelled(async move {
            let id = &host.machine().id;
            tokio::select! {
                biased;
                machine = watch.leaving(id) => run.interrupted(&host, machine.interrupted.clone()),
                reason = run.provider.interruption_notice(host.machine(), host.session()) => {
                    run.interrupted(&host, Some(reason));
                }
            }
            watch.until(id, is_out).await;
            host.set_out();
            run.events.emit(EventKind::MachineGone { machine: host.name().to_owned(), id: id.clone() });
            if !host.is_interrupted()
                && let Ok(machine) = Box::pin(timeout(REASON_TIMEOUT, watch.interrupted(id))).await
            {
                run.interrupted(&host, machine.interrupted.clone());
            }
            host.set_gone();
            if !host.is_interrupted() {
                // Too late for what ran there, and not for a replacement.
                run.interrupted(&host, watch.interrupted(id).await.interrupted.clone());
            }
        });
    }

    fn interrupted(&self, host: &Host, reason: Option<String>) {
        let Some(reason) = reason else { return };
        let (machine, id) = (host.name().to_owned(), host.machine().id.clone());
        self.events.emit(EventKind::Interrupted { machine, id, reason: reason.clone() });
        host.set_interrupted(reason);
    }
}

/// What a listing comes to that had no answer in its time.
pub(super) fn not_listed<T>(_: Elapsed) -> Result<T, ProviderError> {
    let after = format!("no answer after {}", humantime::format_duration(LIST_TIMEOUT));
    Err(ProviderError::new(ProviderErrorKind::Unavailable, "list", after))
}

fn is_out(machine: &Machine) -> bool {
    matches!(machine.state, MachineState::Stopping | MachineState::Gone)
}

fn is_interrupted(machine: &Machine) -> bool {
    machine.interrupted.is_some()
}

fn is_leaving(machine: &Machine) -> bool {
    is_out(machine) || is_interrupted(machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            id: MachineId::new("i-1"),
            run: "20260101-000000-aaaa".parse().unwrap(),
            group: "node".to_owned(),
            index: 0,
            state: MachineState::Running,
            addresses: crate::Addresses::default(),
            login: crate::Login { user: None, host: None, port: None, host_key: None, directory: None },
            expires: None,
            description: String::new(),
            kind: crate::MachineKind::default(),
            price: crate::Price::Free,
            ended: None,
            interrupted: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn listings_that_come_in_a_moment_prove_nothing() {
        let watch = Watch::default();
        let machine = machine();
        let state = || watch.machine(&machine.id).map(|known| known.state);
        let patience = Duration::from_secs(15);
        watch.apply_listing(vec![machine.clone()], Instant::now(), patience);
        for _ in 0..10 {
            watch.apply_listing(Vec::new(), Instant::now(), patience);
            assert_eq!(state(), Some(MachineState::Running));
        }
        tokio::time::advance(patience).await;
        watch.apply_listing(vec![machine.clone()], Instant::now(), patience);
        tokio::time::advance(patience).await;
        for nth in 1..=MISSES {
            watch.apply_listing(Vec::new(), Instant::now(), patience);
            let expected = if nth < MISSES { MachineState::Running } else { MachineState::Gone };
            assert_eq!(state(), Some(expected), "listing {nth}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_was_up_is_gone_although_no_listing_of_the_watchers_own_shows_it() {
        let (watch, machine) = (Watch::default(), machine());
        watch.show([machine.clone()].into_iter());
        for _ in 0..=MISSES {
            watch.apply_listing(Vec::new(), Instant::now(), Duration::ZERO);
        }
        assert_eq!(watch.leaving(&machine.id).await.state, MachineState::Gone);
    }
}
