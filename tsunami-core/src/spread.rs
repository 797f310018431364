//! What many machines of a run are given leaves this computer once for each of their networks. There it goes from machine
//! to machine: whoever has it gives it to two others at a time, so that the number of those who have it doubles and more.
//!
//! Nobody plans that. Each upload looks what there is: a machine that has the content and is free, another upload of it
//! that is on its way, or nothing, and then it sends the content itself. So a machine that comes late, fails or is lost
//! changes nothing for the others. Whatever fails between two machines ends with an upload from here.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};

use crate::ErrorChain;
use crate::cluster::Host;
use crate::event::{EventKind, Events, GroupSize};
use crate::exclude::Exclude;
use crate::session::{ContentOffer, Session, SessionError, SessionErrorKind, SharedContent};

/// What is smaller than this, in bytes, is there sooner than two machines have found each other.
const WORTHWHILE: u64 = 4 << 20;

/// The fewest machines of a run that are worth it. Two at a time are as good as one after the other.
const FEWEST_MACHINES: u32 = 3;

/// How many machines one gives its content to at the same time. One stream alone leaves a fast network idle.
const TAKERS: usize = 2;

/// How often a machine may try to have the content from others before it is sent to it from here.
const ATTEMPTS: usize = 2;

/// How many failures in a row make a source one that is not asked any more.
const SOURCE_FAILURES: u32 = 2;

/// How many failures in a row make machines of a network ones that can't reach each other: as long as none could, and
/// once some could.
const NETWORK_FAILURES: [u32; 2] = [2, 8];

/// How long a machine may take to begin to offer what it has.
const OFFER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long ending it may take on one machine.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the content may take from one machine to another, and how long those who wait for the first machine to have
/// it wait before one of them sends for it too: so long, and as long as it takes at this many bytes in a second.
const TAKE: (Duration, u64) = (Duration::from_secs(30), 1 << 20);
const PATIENCE: (Duration, u64) = (Duration::from_secs(60), 256 << 10);

fn time_for(size: u64, (least, bytes_a_second): (Duration, u64)) -> Duration {
    least + Duration::from_secs(size / bytes_a_second)
}

/// All that is spread among the machines of a run. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Spreads {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The machines that the run has.
    groups: Vec<GroupSize>,
    events: Events,
    runtime: tokio::runtime::Handle,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many wait for more machines, for which the contents are kept.
    held: usize,
    /// Of how many machines there is a session.
    connected: u32,
    contents: HashMap<Key, Arc<Content>>,
    /// By their names.
    networks: HashMap<String, Network>,
    named: u64,
    ending: Vec<JoinHandle<()>>,
}

/// What makes one upload the same as another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    network: String,
    from: PathBuf,
    /// A file's name on the machine; empty for a directory.
    name: String,
    exclude: Exclude,
    print: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Network {
    works: bool,
    failures: u32,
}

impl Network {
    fn is_given_up(self) -> bool {
        self.failures >= NETWORK_FAILURES[usize::from(self.works)]
    }
}

/// One content in one network.
#[derive(Debug)]
struct Content {
    shared: SharedContent,
    sources: Mutex<Sources>,
    /// Something is other than it was.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Sources {
    /// How many uploads want it, or are at it.
    members: usize,
    /// How many machines are about to have it.
    coming: usize,
    /// When it may be sent from here once more, though a machine is about to have it.
    next_sending: Option<Instant>,
    machines: Vec<Source>,
    next_number: u64,
    /// The machines that may keep something of it: each joins once.
    touched: Vec<Arc<dyn Session>>,
    /// The groups that they are of.
    groups: BTreeSet<String>,
}

/// A machine that has it.
#[derive(Debug)]
struct Source {
    number: u64,
    name: String,
    session: Arc<dyn Session>,
    offer: Offering,
    takers: usize,
    failures: u32,
}

#[derive(Clone, Debug)]
enum Offering {
    /// Nobody has asked.
    Kept,
    /// Somebody is at it.
    Begun,
    Open(ContentOffer),
}

/// How a machine comes to the content.
enum Way {
    /// As if there were no others.
    Alone,
    /// From here, and then others have it from it.
    First(Coming),
    From(Taking),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spreads {
    /// For a run of these machines. Is called on its runtime.
    pub(crate) fn new(groups: Vec<GroupSize>, events: Events) -> Self {
        let runtime = tokio::runtime::Handle::current();
        Self { inner: Arc::new(Inner { groups, events, runtime, state: Mutex::default() }) }
    }

    /// There is a session to one more machine.
    pub(crate) fn connected(&self) {
        let mut state = lock(&self.inner.state);
        state.connected += 1;
        self.inner.end_unused(&mut state);
    }

    /// Brings a file or a directory to a machine as [`Session::upload`] does, perhaps from another machine. May be dropped
    /// at any await.
    pub(crate) async fn upload(
        &self,
        host: &Host,
        from: &Path,
        to: &str,
        exclude: &Exclude,
    ) -> Result<(), SessionError> {
        match self.join(host, from, to, exclude).await {
            Some(member) => member.upload(host, from, to).await,
            None => host.session().upload_without(from, to, exclude).await,
        }
    }

    /// Keeps the contents for machines that come later, until [`settle`](Self::settle) is called without what this returns.
    pub(crate) fn hold(&self) -> Held {
        lock(&self.inner.state).held += 1;
        Held(self.inner.clone())
    }

    /// Ends what nobody uses or holds any more, and waits for that.
    pub(crate) async fn settle(&self) {
        self.inner.end_unused(&mut lock(&self.inner.state));
        self.until_ended().await;
    }

    /// Ends all that is still kept, and waits for that.
    pub(crate) async fn end(&self) {
        {
            let mut state = lock(&self.inner.state);
            let all: Vec<Key> = state.contents.keys().cloned().collect();
            all.iter().for_each(|key| self.inner.end(&mut state, key));
        }
        self.until_ended().await;
    }

    async fn until_ended(&self) {
        let ending = std::mem::take(&mut lock(&self.inner.state).ending);
        join_all(ending).await;
    }

    /// Joins those who want the same content, if it is worth it and the machine can have it from others.
    async fn join(&self, host: &Host, from: &Path, to: &str, exclude: &Exclude) -> Option<Member> {
        // Only while machines come up there will be more than there are.
        let machines = {
            let state = lock(&self.inner.state);
            let planned = if state.held > 0 { self.inner.size_of(|_| true) } else { 0 };
            planned.max(state.connected)
        };
        if machines < FEWEST_MACHINES || !host.session().spreads() {
            return None;
        }
        let addresses = &host.machine().addresses;
        let network = addresses.network.clone().filter(|_| addresses.private.is_some())?;
        if lock(&self.inner.state).networks.get(&network).is_some_and(|network| network.is_given_up()) {
            return None;
        }
        // What is wrong with it is the upload's to say.
        let metadata = fs::metadata(from).ok()?;
        let (size, print) = if metadata.is_dir() {
            let (root, exclude) = (from.to_owned(), exclude.clone());
            spawn_blocking(move || measure(&root, &exclude)).await.ok()?.ok()?
        } else {
            let mut hasher = DefaultHasher::new();
            note(&metadata, &mut hasher);
            (size(&metadata), hasher.finish())
        };
        if size < WORTHWHILE {
            return None;
        }
        let (from, name, exclude) = (from.to_owned(), name_there(&metadata, from, to), exclude.clone());
        let key = Key { network, from, name, exclude: exclude.clone(), print };
        let mut state = lock(&self.inner.state);
        let State { contents, named, .. } = &mut *state;
        let content = contents.entry(key.clone()).or_insert_with(|| {
            *named += 1;
            let (sources, changed) = (Mutex::default(), Notify::new());
            let shared = SharedContent::new(named.to_string(), size).exclude(exclude);
            Arc::new(Content { shared, sources, changed })
        });
        let mut sources = lock(&content.sources);
        if sources.touched.iter().any(|known| Arc::ptr_eq(known, host.session())) {
            // It has it, or is about to. What it keeps is in use.
            return None;
        }
        sources.touched.push(host.session().clone());
        sources.groups.insert(host.group().to_owned());
        sources.members += 1;
        drop(sources);
        Some(Member { spreads: self.inner.clone(), content: content.clone(), key })
    }
}

impl Inner {
    /// How many machines these groups are to have.
    fn size_of(&self, wanted: impl Fn(&str) -> bool) -> u32 {
        self.groups.iter().filter(|group| wanted(&group.name)).map(|group| group.count).sum()
    }

    /// Ends what nobody uses, unless it is held for machines that may come to want it: until all of the run have begun, and
    /// all have it that are of the same groups as those who wanted it.
    fn end_unused(&self, state: &mut State) {
        let all_have_begun = state.connected >= self.size_of(|_| true);
        let is_over = |content: &Content| {
            let sources = lock(&content.sources);
            let expected = self.size_of(|group| sources.groups.contains(group));
            let have_all = sources.touched.len() >= expected as usize;
            sources.members == 0 && (state.held == 0 || (all_have_begun && have_all))
        };
        let over = state.contents.iter().filter(|(_, content)| is_over(content));
        let over: Vec<Key> = over.map(|(key, _)| key.clone()).collect();
        over.iter().for_each(|key| self.end(state, key));
    }

    /// Has all machines forget a content.
    fn end(&self, state: &mut State, key: &Key) {
        let Some(content) = state.contents.remove(key) else { return };
        let touched = std::mem::take(&mut lock(&content.sources).touched);
        state.ending.retain(|ending| !ending.is_finished());
        state.ending.push(self.runtime.spawn(async move {
            let withdrawing = touched.into_iter().map(|session| {
                let content = content.clone();
                async move {
                    let withdrawn = timeout(WITHDRAW_TIMEOUT, session.withdraw(&content.shared)).await;
                    if !matches!(withdrawn, Ok(Ok(()))) {
                        tracing::debug!(?session, ?withdrawn, "what was spread may be left on a machine");
                    }
                }
            });
            join_all(withdrawing).await;
        }));
    }

    /// Notes whether one machine could have a content from another. Returns whether that ends all attempts there; `None`
    /// where they have ended.
    fn note(&self, network: &str, worked: bool) -> Option<bool> {
        let mut state = lock(&self.state);
        let known = state.networks.entry(network.to_owned()).or_default();
        let is_over = known.is_given_up();
        known.works |= worked;
        known.failures = if worked { 0 } else { known.failures + 1 };
        (!is_over).then(|| known.is_given_up())
    }
}

/// Contents are kept as long as there is one of these.
#[derive(Debug)]
pub(crate) struct Held(Arc<Inner>);

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.0.state).held -= 1;
    }
}

/// One upload of a content, until it is dropped.
struct Member {
    spreads: Arc<Inner>,
    content: Arc<Content>,
    key: Key,
}

impl Member {
    async fn upload(&self, host: &Host, from: &Path, to: &str) -> Result<(), SessionError> {
        let (session, shared) = (host.session(), &self.content.shared);
        let mut tried = Vec::new();
        loop {
            match self.way(&tried).await {
                Way::Alone => return session.upload_without(from, to, &shared.exclude).await,
                Way::First(coming) => {
                    session.upload_kept(from, to, shared).await?;
                    coming.arrived(host);
                    return Ok(());
                }
                Way::From(taking) => {
                    tried.push(taking.number);
                    let taken = self.take(host, &taking, from, to).await;
                    let noted = self.spreads.note(&self.key.network, taken.is_ok());
                    let Err(error) = taken else {
                        taking.source(|source| source.failures = 0);
                        taking.coming.arrived(host);
                        return Ok(());
                    };
                    taking.failed();
                    self.tell(host, &taking.name, &error, noted);
                    // What was given up may still be at the place where the next attempt is to arrive.
                    let ended = timeout(WITHDRAW_TIMEOUT, session.withdraw(shared)).await;
                    tracing::debug!(machine = host.name(), ?ended, "before the next attempt");
                }
            }
        }
    }

    /// Has the content from a source, which offers it first unless it does already.
    async fn take(&self, host: &Host, taking: &Taking, from: &Path, to: &str) -> Result<(), SessionError> {
        let shared = &self.content.shared;
        let late =
            |what: &str| SessionError::new(SessionErrorKind::Transfer, format!("{what} took too long"));
        let offer = match &taking.offer {
            Some(offer) => offer.clone(),
            None => {
                let offering = timeout(OFFER_TIMEOUT, taking.session.offer(shared)).await;
                let offer = offering.map_err(|_| late("the offer")).flatten()?;
                taking.opened(&offer);
                offer
            }
        };
        let limit = time_for(self.content.shared.size, TAKE);
        let taken = timeout(limit, host.session().take(&offer, from, to, shared)).await;
        taken.map_err(|_| late("the transfer")).flatten()
    }

    /// Waits until there is a way. `tried` are the sources that the machine could not have it from.
    async fn way(&self, tried: &[u64]) -> Way {
        loop {
            // Before it looks, so that it misses nothing.
            let changed = self.content.changed.notified();
            let until = match self.decide(tried) {
                Ok(way) => return way,
                Err(until) => until,
            };
            tokio::select! {
                () = changed => {}
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
        }
    }

    /// Decides what to do, or until when to wait for a change.
    fn decide(&self, tried: &[u64]) -> Result<Way, Option<Instant>> {
        let network = lock(&self.spreads.state).networks.get(&self.key.network).copied().unwrap_or_default();
        if network.is_given_up() {
            return Ok(Way::Alone);
        }
        let mut sources = lock(&self.content.sources);
        let Sources { machines, coming, next_sending, .. } = &mut *sources;
        let untried = |source: &&mut Source| !tried.contains(&source.number);
        let has_source = tried.len() < ATTEMPTS && machines.iter_mut().any(|source| untried(&source));
        if has_source {
            let free =
                |source: &&mut Source| source.takers < TAKERS && !matches!(source.offer, Offering::Begun);
            let best = machines.iter_mut().filter(untried).filter(free).min_by_key(|source| source.takers);
            let Some(source) = best else { return Err(None) };
            source.takers += 1;
            *coming += 1;
            let offer = match &source.offer {
                Offering::Open(offer) => Some(offer.clone()),
                Offering::Kept | Offering::Begun => {
                    source.offer = Offering::Begun;
                    None
                }
            };
            return Ok(Way::From(Taking {
                number: source.number,
                name: source.name.clone(),
                session: source.session.clone(),
                offer,
                coming: Coming { content: self.content.clone() },
            }));
        }
        let now = Instant::now();
        if *coming > 0 && tried.is_empty() && next_sending.is_none_or(|at| now < at) {
            return Err(*next_sending);
        }
        *coming += 1;
        *next_sending = Some(now + time_for(self.content.shared.size, PATIENCE));
        Ok(Way::First(Coming { content: self.content.clone() }))
    }

    /// Says that it comes from here after all.
    fn tell(&self, host: &Host, source: &str, error: &SessionError, noted: Option<bool>) {
        let said = ErrorChain(error);
        tracing::debug!(machine = host.name(), source, error = %said, "not taken from another machine");
        let Some(is_last) = noted else { return };
        let then = if is_last { "; nor is anything else, on this network" } else { "" };
        let from = self.key.from.display();
        let text = format!("{} did not get {from} from {source}{then}: {said}", host.name());
        self.spreads.events.emit(EventKind::Note { group: host.group().to_owned(), text });
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = lock(&self.spreads.state);
        lock(&self.content.sources).members -= 1;
        self.spreads.end_unused(&mut state);
    }
}

/// A machine that is about to have a content, until this is dropped.
struct Coming {
    content: Arc<Content>,
}

impl Coming {
    /// It has it, and others can have it from it.
    fn arrived(&self, host: &Host) {
        let mut sources = lock(&self.content.sources);
        sources.next_number += 1;
        let number = sources.next_number;
        sources.machines.push(Source {
            number,
            name: host.name().to_owned(),
            session: host.session().clone(),
            offer: Offering::Kept,
            takers: 0,
            failures: 0,
        });
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        lock(&self.content.sources).coming -= 1;
        self.content.changed.notify_waiters();
    }
}

/// A place among those who take a content from a source, until this is dropped.
struct Taking {
    number: u64,
    name: String,
    session: Arc<dyn Session>,
    /// `None` where whoever has this is to ask for it.
    offer: Option<ContentOffer>,
    coming: Coming,
}

impl Taking {
    fn source(&self, change: impl FnOnce(&mut Source)) {
        let mut sources = lock(&self.coming.content.sources);
        sources.machines.iter_mut().find(|source| source.number == self.number).map(change);
    }

    fn opened(&self, offer: &ContentOffer) {
        self.source(|source| source.offer = Offering::Open(offer.clone()));
        self.coming.content.changed.notify_waiters();
    }

    fn failed(&self) {
        self.source(|source| source.failures += 1);
        let is_good =
            |source: &Source| source.failures < SOURCE_FAILURES && !matches!(source.offer, Offering::Begun);
        let is_other = |source: &Source| source.number != self.number;
        lock(&self.coming.content.sources).machines.retain(|source| is_other(source) || is_good(source));
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.source(|source| {
            source.takers -= 1;
            if matches!(source.offer, Offering::Begun) && self.offer.is_none() {
                source.offer = Offering::Kept;
            }
        });
    }
}

fn name_there(metadata: &Metadata, from: &Path, to: &str) -> String {
    match to.rsplit_once('/').map_or(to, |(_, name)| name) {
        _ if metadata.is_dir() => String::new(),
        "" => from.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        name => name.to_owned(),
    }
}

/// The size of all files in a directory but those that are left out, and what changes when one of them does.
fn measure(root: &Path, exclude: &Exclude) -> io::Result<(u64, u64)> {
    let (mut bytes, mut hasher) = (0, DefaultHasher::new());
    let mut stack = vec![root.to_owned()];
    while let Some(directory) = stack.pop() {
        note(&fs::symlink_metadata(&directory)?, &mut hasher);
        let mut names =
            fs::read_dir(&directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            let metadata = fs::symlink_metadata(&name)?;
            if exclude.matches(name.strip_prefix(root).unwrap_or(&name), metadata.is_dir()) {
                continue;
            }
            name.hash(&mut hasher);
            if metadata.is_dir() {
                stack.push(name);
            } else {
                note(&metadata, &mut hasher);
                bytes += size(&metadata);
            }
        }
    }
    Ok((bytes, hasher.finish()))
}

/// What a file takes on its way: holes take nothing.
fn size(metadata: &Metadata) -> u64 {
    if metadata.is_file() { metadata.len().min(metadata.blocks().saturating_mul(512)) } else { 0 }
}

/// No file changes without one of these.
fn note(metadata: &Metadata, hasher: &mut DefaultHasher) {
    let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
    (metadata.dev(), metadata.ino(), metadata.len(), metadata.mode(), times).hash(hasher);
}
