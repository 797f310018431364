//! One watcher a run: it polls the state of all machines in one listing and tells every machine's task, and whoever
//! uses the machine later.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep_until, timeout};

use super::run::Run;
use crate::backoff::Backoff;
use crate::cluster::{Host, Liveness};
use crate::event::EventKind;
use crate::machine::{Machine, MachineId, MachineState};
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

/// What is known of a machine, and who wants to hear of it. One channel a machine wakes only that machine's task.
#[derive(Debug)]
struct Known {
    machine: watch::Sender<Option<Machine>>,
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

impl Default for Known {
    fn default() -> Self {
        Self { machine: watch::Sender::new(None), listed: None }
    }
}

impl Known {
    /// Notes what a listing shows. Nobody is woken by what was known before.
    fn show(&mut self, machine: Machine, at: Instant) {
        self.listed = Some(Listed { at, misses: 0 });
        self.machine.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&machine);
            *known = Some(machine);
            changed
        });
    }

    /// Notes that a listing that was begun at `begun` does not show it, or that it was too early to tell.
    fn miss(&mut self, begun: Instant, patience: Duration) {
        let is_gone = |listed: &mut Listed| listed.misses >= MISSES && begun - listed.at >= patience;
        if self.listed.take_if(is_gone).is_some() {
            self.machine.send_if_modified(|known| {
                known.as_mut().is_some_and(|machine| {
                    std::mem::replace(&mut machine.state, MachineState::Gone) != MachineState::Gone
                })
            });
        }
    }
}

/// Steers the watcher, and hears from it.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    /// By id, so that a listing wakes tasks in the same order every time.
    known: Arc<Mutex<BTreeMap<MachineId, Known>>>,
    calm: Arc<AtomicBool>,
    now: Arc<Notify>,
    /// Why the last listing was refused, if only a person can change that.
    refused: Arc<watch::Sender<Option<ProviderError>>>,
}

impl Watch {
    /// Makes the watcher of a run and the handle to it.
    pub(super) fn new(run: Arc<Run>) -> (impl Future<Output = ()> + Send + 'static, Self) {
        let watch = Self::default();
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

    /// Waits until a machine runs and has an address, or is on its way out, or soon will be.
    pub(super) async fn running(&self, id: &MachineId) -> Machine {
        let is_decided = |machine: &Machine| match machine.state {
            _ if machine.interrupted.is_some() => true,
            MachineState::Pending => false,
            MachineState::Running => machine.addresses.internal().is_some() || machine.login.host.is_some(),
            MachineState::Stopping | MachineState::Gone => true,
        };
        self.until(id, |machine| is_decided(machine).then(|| machine.clone())).await
    }

    /// Waits until a machine is on its way out, or its provider says that it will be.
    pub(super) async fn leaving(&self, id: &MachineId) -> Machine {
        let is_leaving = |machine: &Machine| is_out(machine) || machine.interrupted.is_some();
        self.until(id, |machine| is_leaving(machine).then(|| machine.clone())).await
    }

    /// Waits until a machine is on its way out.
    pub(super) async fn gone(&self, id: &MachineId) {
        self.until(id, |machine| is_out(machine).then_some(())).await;
    }

    /// Whether a machine is on its way out, and its provider has not said that it takes it back.
    pub(super) fn is_unexplained(&self, id: &MachineId) -> bool {
        let unexplained = |machine: &Machine| is_out(machine) && machine.interrupted.is_none();
        self.sender(id, |sender| sender.borrow().as_ref().is_some_and(unexplained))
    }

    /// Waits until a machine's provider says that it takes the machine back, or why it took it.
    pub(super) async fn interrupted(&self, id: &MachineId) -> String {
        self.until(id, |machine| machine.interrupted.clone()).await
    }

    /// Adds the reason to a machine that is leaving, where there is one: it may show later than the state.
    pub(super) async fn explained(&self, machine: Machine) -> Machine {
        if machine.interrupted.is_some() {
            return machine;
        }
        let reason = timeout(REASON_TIMEOUT, self.interrupted(&machine.id)).await;
        Machine { interrupted: reason.ok(), ..machine }
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

    /// Waits until what is known of a machine comes to something, and returns that alone: each machine waits here for as
    /// long as it lives, and a whole one takes memory.
    async fn until<T>(&self, id: &MachineId, reached: impl Fn(&Machine) -> Option<T>) -> T {
        let mut known = self.sender(id, watch::Sender::subscribe);
        loop {
            if let Some(reached) = known.borrow_and_update().as_ref().and_then(&reached) {
                return reached;
            }
            // `self` keeps the sender alive.
            let _ = known.changed().await;
        }
    }

    fn sender<T>(&self, id: &MachineId, with: impl FnOnce(&watch::Sender<Option<Machine>>) -> T) -> T {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        with(&known.entry(id.clone()).or_default().machine)
    }

    async fn poll(self, run: Arc<Run>) {
        let mut after_failure = Backoff::new(POLL_PENDING * 2, POLL_FAILED);
        let patience = run.provider.consistency() * MISSES;
        self.now.notified().await;
        loop {
            let begun = Instant::now();
            let filter = RunFilter::Run(run.id.clone());
            let listed = timeout(LIST_TIMEOUT, run.provider.list(&filter)).await;
            let pause = match listed.unwrap_or_else(not_listed) {
                Ok(machines) => {
                    self.refused.send_replace(None);
                    let (machines, odd): (Vec<_>, Vec<_>) =
                        machines.into_iter().partition(|machine| machine.check().is_ok());
                    for error in odd.iter().filter_map(|machine| machine.check().err()) {
                        run.events.emit(EventKind::ListingFailed { error: error.to_string() });
                    }
                    self.apply_listing(machines, begun, patience);
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
    /// consistent, some that lack a machine prove little, however many come in a moment.
    fn apply_listing(&self, machines: Vec<Machine>, begun: Instant, patience: Duration) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for listed in known.values_mut().filter_map(|known| known.listed.as_mut()) {
            listed.misses += 1;
        }
        for machine in machines {
            known.entry(machine.id.clone()).or_default().show(machine, begun);
        }
        known.values_mut().for_each(|known| known.miss(begun, patience));
    }
}

impl Run {
    /// Tells a host's commands from now on what is known of its machine.
    pub(super) fn follow(self: &Arc<Self>, host: &Host, liveness: watch::Sender<Liveness>, watch: &Watch) {
        let following = follow(self.clone(), host.clone(), liveness, watch.clone());
        self.spawn_until_cancelled(following);
    }
}

/// Tells a host's commands when the provider, or the machine itself, says that the machine is going, or gone: the
/// connection may take long to notice.
async fn follow(run: Arc<Run>, host: Host, liveness: watch::Sender<Liveness>, watch: Watch) {
    let (machine, id) = (host.name(), &host.machine().id);
    let interrupted = |reason: String| {
        let (machine, id) = (machine.to_owned(), id.clone());
        run.events.emit(EventKind::Interrupted { machine, id, reason: reason.clone() });
        liveness.send_modify(|liveness| liveness.interrupted = Some(reason));
    };
    tokio::select! {
        biased;
        reason = watch.interrupted(id) => interrupted(reason),
        reason = run.provider.interruption_notice(host.machine(), host.session()) => interrupted(reason),
        () = watch.gone(id) => {}
    }
    watch.gone(id).await;
    run.events.emit(EventKind::MachineGone { machine: machine.to_owned(), id: id.clone() });
    if host.interruption().is_none()
        && let Ok(reason) = timeout(REASON_TIMEOUT, watch.interrupted(id)).await
    {
        interrupted(reason);
    }
    liveness.send_modify(|liveness| liveness.gone = true);
    if host.interruption().is_none() {
        // Too late for what ran there, and not for a replacement.
        interrupted(watch.interrupted(id).await);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn listings_that_come_in_a_moment_prove_nothing() {
        let watch = Watch::default();
        let machine = Machine {
            id: MachineId::new("i-1"),
            run: "20260101-000000-aaaa".parse().unwrap(),
            group: "node".to_owned(),
            index: 0,
            state: MachineState::Running,
            addresses: crate::Addresses::default(),
            login: crate::Login { user: None, host: None, port: None, host_key: None, directory: None },
            expires: None,
            description: String::new(),
            price: crate::Price::Free,
            ended: None,
            interrupted: None,
        };
        let state = || watch.sender(&machine.id, |sender| sender.borrow().as_ref().map(|known| known.state));
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
}
