//! The end of a run: nothing is left behind, or what may be left is named.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Tsunami;
use super::foreign::caught;
use super::run::{Run, ended, joined};
use crate::backoff::Backoff;
use crate::error::{Error, ErrorChain};
use crate::event::{EventKind, Events, cut};
use crate::machine::{MachineState, RunId};
use crate::provider::{Leftover, Provider, ProviderError, RunFilter};
use crate::record::RunEntry;

/// How long sessions may take to end, killed commands included, and the connector after them: five seconds of grace
/// and some more.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connector may take to make ready for a teardown, which goes on without it, or to let go of what it
/// could not prepare.
pub(super) const PREPARE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long requests that create something may go unanswered before the run says so.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the provider is asked again and again, counted from when creates have settled.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the provider may take for one answer before it is asked again: longer than a provider's own
/// attempts, of which some launch a thousand machines.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(180);

/// The first pause between two attempts; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Tsunami {
    /// Tears a recorded run down. Idempotent, and safe while another process does the same or still runs it. If
    /// the future is dropped, it goes on in the background; [`wait_idle`](Self::wait_idle) and
    /// [`shutdown`](Self::shutdown) wait for that.
    ///
    /// The token of [`cancel_on`](Self::cancel_on) does not stop it, but ends its patience: what cannot be
    /// removed by then is not tried again.
    ///
    /// # Errors
    ///
    /// [`Error::Remains`], and with nothing done what [a record](RunEntry::record) is refused for.
    pub async fn down(&self, directory: &RunEntry) -> Result<(), Error> {
        let record = directory.record()?;
        let mut run = self.open(&record, directory.clone(), None, CancellationToken::new(), String::new());
        run.stop_retrying = self.impatience();
        let run = Arc::new(run);
        let (connector, assured) = (self.connector.clone(), Assured::new(&run, "asked to"));
        let task = self.runs.tasks().spawn(async move {
            let _over = run.stop_retrying.clone().drop_guard();
            // Only launches need the key: a disk without room for it keeps nothing from being ended.
            let prepared = connector.prepare(&run.id, run.directory.path());
            let prepared = timeout(PREPARE_TIMEOUT, prepared).await;
            tracing::debug!(?prepared, "for a teardown");
            Ok(assured.finish().await)
        });
        ended(directory.id(), Ok(()), joined(task.await)?)
    }

    /// Tears down a run of which nothing is known but its id: what the provider finds by tag. For runs that were
    /// recorded elsewhere; see [`down`](Self::down) for those that are known here. If the future is dropped, what was asked for
    /// goes on, and nothing more is.
    ///
    /// # Errors
    ///
    /// [`Error::Remains`], also where the provider could not be asked.
    pub async fn terminate_by_id(&self, run: &RunId) -> Result<(), Error> {
        let started_at = self.started_at.unwrap_or_else(SystemTime::now);
        let events = Events::new(&self.observers, started_at, self.counts.clone().unwrap_or_default());
        let (provider, stop_retrying) = (&self.provider, self.impatience());
        let _over = stop_retrying.clone().drop_guard();
        let (events, stop_retrying) = (&events, &stop_retrying);
        let terminator = Terminator { provider, run, events, stop_retrying, launched: Vec::new() };
        let leftovers = terminator.until_gone().await;
        ended(run.clone(), Ok(()), leftovers)
    }
}

impl Run {
    /// Ends everything the run created and returns what may remain. Ignores the run's own cancellation; has
    /// its own deadlines. Forgets the run once it is clear. Whoever asks while it goes on, or later, hears the same.
    pub(super) async fn tear_down(self: &Arc<Self>, reason: &str) -> Vec<Leftover> {
        self.torn_down.get_or_init(|| self.tear_down_once(reason)).await.clone()
    }

    async fn tear_down_once(self: &Arc<Self>, reason: &str) -> Vec<Leftover> {
        let begun = Instant::now();
        self.events.emit(EventKind::TearingDown { reason: reason.to_owned() });
        // Ends the watcher, and commands that user code has left running in tasks of its own.
        self.cancel.cancel();
        // Ends the launches of another process whose run this is. Without it they are only more to remove.
        if let Err(error) = self.directory.mark_ending() {
            tracing::debug!(%error, "the teardown is not marked");
        }
        self.close_sessions().await;
        self.creates.close();
        // Those of a runtime that ended are never answered.
        let runtime_ended = self.runtime_ended.load(Ordering::Relaxed);
        let settling = if runtime_ended { Duration::ZERO } else { SETTLE_TIMEOUT };
        let answered = timeout(settling, self.creates.wait()).await.is_ok();
        let settled = self.undecided.load(Ordering::Relaxed) == 0;
        let mut leftovers = self.terminate().await;
        if !settled {
            // The request may still create something after the listing was empty.
            let why = match answered || runtime_ended {
                true => "it was broken off".to_owned(),
                false => format!("unanswered after {}", humantime::format_duration(SETTLE_TIMEOUT)),
            };
            leftovers.push(Leftover { what: "what a launch request may yet create".to_owned(), why });
        }
        self.finish().await;
        if leftovers.is_empty()
            && let Err(error) = self.directory.remove(self.unlocked())
        {
            let what = format!("the record at {}", self.directory.path().display());
            leftovers.push(Leftover { what, why: ErrorChain(&error).to_string() });
        }
        self.note_remains(&leftovers);
        let took = cut(begun.elapsed());
        self.events.emit(EventKind::TornDown { leftovers: leftovers.clone(), took });
        leftovers
    }

    /// Closes all sessions at once, which waits for commands that were being killed.
    pub(super) async fn close_sessions(&self) {
        let sessions = std::mem::take(&mut *self.sessions());
        let closing = sessions.iter().map(|session| caught(timeout(CLOSE_TIMEOUT, session.close())));
        for closed in join_all(closing).await {
            // The machine is about to end, and what it ran with it: this decides nothing.
            tracing::debug!(?closed, "session closed");
        }
    }

    /// Lets go of the connections.
    pub(super) async fn finish(&self) {
        let finished = timeout(CLOSE_TIMEOUT, self.connector.finish(&self.id)).await;
        tracing::debug!(?finished, "connector finished");
    }

    /// Asks the provider to end everything, until nothing is left or its time is up.
    async fn terminate(&self) -> Vec<Leftover> {
        let (provider, stop_retrying, launched) = (&self.provider, &self.stop_retrying, self.launched());
        Terminator { provider, run: &self.id, events: &self.events, stop_retrying, launched }
            .until_gone()
            .await
    }
}

/// A teardown that happens, also where the runtime that it is on ends first: that end then waits until the teardown
/// has been finished on another one.
pub(super) struct Assured {
    run: Arc<Run>,
    reason: String,
    over: bool,
}

impl Assured {
    pub(super) fn new(run: &Arc<Run>, reason: &str) -> Self {
        Self { run: run.clone(), reason: reason.to_owned(), over: false }
    }

    pub(super) async fn finish(mut self) -> Vec<Leftover> {
        let ended = AssertUnwindSafe(self.run.tear_down(&self.reason)).catch_unwind().await;
        self.over = true;
        ended.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Assured {
    fn drop(&mut self) {
        if self.over || !self.run.outlive_runtime {
            return;
        }
        self.run.runtime_ended.store(true, Ordering::Relaxed);
        let (run, reason) = (self.run.clone(), std::mem::take(&mut self.reason));
        // On a thread of its own, since this one may be in a runtime yet, which can't be blocked on another.
        let finish = move || -> std::io::Result<Vec<Leftover>> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(run.tear_down(&reason)))
        };
        let named = thread::Builder::new().name("tsunami-teardown".to_owned());
        match named.spawn(finish).map(thread::JoinHandle::join) {
            Ok(Ok(Ok(leftovers))) if leftovers.is_empty() => {}
            ended => {
                tracing::error!(run = %self.run.id, ?ended, "the runtime ended before the run was torn down")
            }
        }
    }
}

/// The end of a run, for which its id is enough.
struct Terminator<'a> {
    pub(super) provider: &'a Arc<dyn Provider>,
    pub(super) run: &'a RunId,
    pub(super) events: &'a Events,
    /// Nobody wants to wait for another attempt.
    pub(super) stop_retrying: &'a CancellationToken,
    /// The machines that are known to have been launched: their names, where the provider gives none.
    pub(super) launched: Vec<String>,
}

/// What came of one attempt at ending a run.
struct Attempt {
    left: Vec<Leftover>,
    /// Nothing but a person can bring the next one further.
    last: bool,
}

impl Terminator<'_> {
    /// Asks the provider to end everything until it says, and two listings show, that nothing is left.
    pub(super) async fn until_gone(&self) -> Vec<Leftover> {
        let deadline = Instant::now() + TERMINATE_TIMEOUT;
        let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        // What an attempt without an answer may have left: what the one before it did.
        let mut names = self.launched.clone();
        loop {
            let Attempt { left, last } = self.terminate_once(&names).await;
            let pause = pauses.wait();
            if left.is_empty() || last || Instant::now() + pause > deadline {
                return left;
            }
            self.events.emit(EventKind::StillThere { leftovers: left.clone() });
            if self.stop_retrying.run_until_cancelled(sleep(pause)).await.is_none() {
                return left;
            }
            names = left.into_iter().map(|leftover| leftover.what).collect();
        }
    }

    /// Asks twice, some time apart, where one answer may be behind the times.
    async fn terminate_once(&self, names: &[String]) -> Attempt {
        let first = self.terminate_and_list(names).await;
        let consistency = self.provider.consistency();
        if !first.left.is_empty() || consistency.is_zero() {
            return first;
        }
        sleep(consistency).await;
        self.terminate_and_list(names).await
    }

    async fn terminate_and_list(&self, names: &[String]) -> Attempt {
        // In a task of its own, as it is never dropped: one without answer may go on beside the next.
        let (provider, run) = (self.provider.clone(), self.run.clone());
        let terminating = tokio::spawn(async move { provider.terminate(&run).await });
        match timeout(ANSWER_TIMEOUT, terminating).await {
            Ok(Ok(Ok(left))) if left.is_empty() => self.still_listed(names).await,
            Ok(Ok(Ok(left))) => Attempt { left, last: false },
            Ok(Ok(Err(error))) => failed(error, names),
            Ok(Err(error)) => Attempt { left: unknown(&error, names), last: false },
            Err(_) => Attempt { left: unknown(&Unanswered, names), last: false },
        }
    }

    /// The run's machines that a listing shows and that are not gone.
    async fn still_listed(&self, names: &[String]) -> Attempt {
        let filter = RunFilter::Run(self.run.clone());
        match timeout(ANSWER_TIMEOUT, self.provider.list(&filter)).await {
            Ok(Ok(machines)) => {
                let there = machines.iter().filter(|machine| machine.state != MachineState::Gone);
                let left = there.map(|machine| Leftover {
                    what: format!("machine {} ({})", machine.id, machine.name()),
                    why: "still listed".to_owned(),
                });
                Attempt { left: left.collect(), last: false }
            }
            Ok(Err(error)) => failed(error, names),
            Err(_) => Attempt { left: unknown(&Unanswered, names), last: false },
        }
    }
}

fn failed(error: ProviderError, names: &[String]) -> Attempt {
    let last = error.kind.is_final();
    let left = if error.remains.is_empty() { unknown(&error, names) } else { error.remains };
    Attempt { left, last }
}

#[derive(Debug, thiserror::Error)]
#[error("no answer after {}", humantime::format_duration(ANSWER_TIMEOUT))]
struct Unanswered;

/// Where nothing is known by its name.
const ANYTHING: &str = "anything the run created";

/// What a request may have created whose answer was lost.
const ANYTHING_ELSE: &str = "anything else the run created";

/// What is left is not known, since the provider did not say: as far as anything is known to have been there.
pub(super) fn unknown(error: &(dyn std::error::Error + 'static), names: &[String]) -> Vec<Leftover> {
    let why = ErrorChain(error).to_string();
    let names = names.iter().map(String::as_str).filter(|name| ![ANYTHING, ANYTHING_ELSE].contains(name));
    let names: Vec<_> = names.collect();
    let anything = if names.is_empty() { ANYTHING } else { ANYTHING_ELSE };
    names
        .into_iter()
        .chain([anything])
        .map(|what| Leftover { what: what.to_owned(), why: why.clone() })
        .collect()
}
