//! What launches and ends machines.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::{BoxError, Remedy};
use crate::machine::{Deadline, Machine, MachineId, RunId};
use crate::session::Session;

/// A source of machines: one account in one region, or whatever stands for that.
///
/// Everything it creates carries the run's id from the same request that creates it, so that
/// [`list`](Self::list) and [`terminate`](Self::terminate) need nothing but that id: not a remembered machine
/// id, not the process that launched it.
///
/// The engine never drops a call to `launch`, `extend` or `terminate` that it has begun; it does drop the others, when
/// the run is cancelled or an answer is overdue. Retries and timing are the engine's: an implementation makes its
/// requests and reports the [kind](ProviderErrorKind) of what went wrong.
///
/// A whole one is in tsunami's repository, `examples/own-provider`; `testing::conformance` (feature `testing`) has a test of
/// each of these promises.
#[cfg_attr(feature = "testing", mockall::automock)]
#[async_trait]
pub trait Provider: Debug + Send + Sync + 'static {
    /// The provider's name as it stands in a run's record: `local`.
    fn name(&self) -> String;

    /// What another process must know beside the name to build the provider again: account, regions. Stands
    /// in a run's record, so it holds no secrets.
    fn settings(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Chooses what `spec` leaves open, such as which of all kinds of machine will do; `None` where it leaves nothing open.
    /// Creates nothing. The engine asks before it quotes and launches, does both with the spec of the answer, and records
    /// what was chosen: `known` is all of that so far, also of an earlier process whose run goes on. What is in there is
    /// gone by, and nobody is asked again.
    async fn choose(&self, spec: &MachineSpec, known: &Choices) -> Result<Option<Choice>, ProviderError> {
        let _ = (spec, known);
        Ok(None)
    }

    /// Checks whether `count` machines of `spec` could be launched and what they cost. Creates nothing.
    async fn quote(&self, spec: &MachineSpec, count: NonZeroU32) -> Result<Quote, ProviderError>;

    /// Launches one group and returns the ids in the order of the machines' indices.
    ///
    /// Idempotent for a run and group: called again it returns the machines that it launched before, and
    /// launches those that are missing, or that [`LaunchRequest::replace`] names, in their places. On an error
    /// some machines may exist.
    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError>;

    /// Lists machines by tag, gone ones included for as long as the provider knows them.
    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError>;

    /// Checks what the provider promised of a new machine, above all its deadline, once there is a session to
    /// it and before its set-up begins; waits for what its first boot has yet to do. May be dropped at any
    /// await. A machine that is refused does not stay.
    async fn verify(&self, machine: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        let _ = (machine, session);
        Ok(())
    }

    /// Renews what the provider keeps on a machine that it has verified, above all its deadline, when another process
    /// connects to it. May be dropped at any await.
    async fn renew(&self, machine: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        let _ = (machine, session);
        Ok(())
    }

    /// Waits until the machine itself hears that it is going to be taken back, and says what it heard, for
    /// providers that tell a machine what may be missing from a listing, or come later there. Is dropped when
    /// the machine is gone or the run ends. The default hears nothing.
    async fn interruption_notice(&self, machine: &Machine, session: &Arc<dyn Session>) -> String {
        let _ = (machine, session);
        std::future::pending().await
    }

    /// Moves the end of a run's machines, wherever the provider itself keeps it: in tags, in files.
    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError>;

    /// Moves the end on one machine, where it keeps that itself. Comes before [`extend`](Self::extend).
    async fn extend_on(
        &self,
        machine: &Machine,
        session: &Arc<dyn Session>,
        until: SystemTime,
    ) -> Result<(), ProviderError> {
        let _ = (machine, session, until);
        Ok(())
    }

    /// Ends all that the run created and says what is still there. Idempotent; a run that is not known has
    /// nothing left. Returns when nothing remains, or when asking again later is the only way on. Where asking
    /// again can't help, it is an error whose kind [is final](ProviderErrorKind::is_final), with what
    /// [remains](ProviderError::remains). A call without answer for three minutes goes on, and another is made
    /// beside it.
    ///
    /// A launch may be under way, of this process's or of another's, or come after it. What that creates is ended by this
    /// call, or by one that comes once the launch has answered, for as long as [`list`](Self::list) has it: that nothing
    /// was left of a run is no answer to the next call.
    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError>;

    /// How long after a request its effect may be missing from a listing. Zero where listings are exact.
    fn consistency(&self) -> Duration {
        Duration::ZERO
    }
}

/// What kind of machine a group wants, in its provider's own terms.
///
/// The engine only hands it on: each provider has a type of its own and finds it again with
/// [`get`](Self::get). The default asks for nothing in particular.
///
/// ```
/// use tsunami_core::MachineSpec;
///
/// #[derive(Debug)]
/// struct Size(u32);
///
/// let spec = MachineSpec::new(Size(3));
/// assert_eq!(spec.get::<Size>().map(|size| size.0), Some(3));
/// assert!(MachineSpec::default().get::<Size>().is_none());
/// ```
#[derive(Clone, Default)]
pub struct MachineSpec(Option<Arc<dyn Spec>>);

trait Spec: Any + Debug + Send + Sync {}
impl<T: Any + Debug + Send + Sync> Spec for T {}

impl MachineSpec {
    /// Wraps a provider's own description of a machine.
    pub fn new<T: Any + Debug + Send + Sync>(spec: T) -> Self {
        Self(Some(Arc::new(spec)))
    }

    /// The description, if it is of the type `T`.
    pub fn get<T: Any>(&self) -> Option<&T> {
        let spec: &dyn Any = self.0.as_deref()?;
        spec.downcast_ref()
    }

    /// Whether nothing in particular is asked for.
    pub fn is_default(&self) -> bool {
        self.0.is_none()
    }
}

impl Debug for MachineSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(spec) => spec.fmt(f),
            None => f.write_str("MachineSpec"),
        }
    }
}

/// What providers chose where specs left it open, by what was asked for.
pub type Choices = BTreeMap<String, Vec<String>>;

/// What a provider chose where a spec left it open.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Choice {
    /// What was asked for, in one line. Specs that leave the same open ask for the same.
    pub asked: String,
    /// What will do, in the provider's own words, the best first.
    pub chosen: Vec<String>,
    /// The spec that leaves nothing open.
    pub spec: MachineSpec,
}

impl Choice {
    /// A choice of any one of `chosen`, which `spec` says.
    pub fn new(asked: impl Into<String>, chosen: Vec<String>, spec: MachineSpec) -> Self {
        Self { asked: asked.into(), chosen, spec }
    }
}

/// The answer to "could I have these, and for how much?".
///
/// ```
/// use tsunami_core::{Offer, Price, Quote};
///
/// let small = Offer::new("a small machine in rack 3", Price::PerHour(0.02));
/// let quote = Quote::new(vec![small], Price::PerHour(0.02)).note("rack 4 is being repaired");
/// assert_eq!(quote.notes, ["rack 4 is being repaired"]);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Quote {
    /// What could be had, the most likely first.
    pub offers: Vec<Offer>,
    /// The most that one machine of the group can cost, whatever is chosen, and all that comes with it.
    pub max_price: Price,
    /// When the provider ends the machines, whatever their lifetime is, if it does.
    pub ends: Option<SystemTime>,
    /// What the user should know beside that.
    pub notes: Vec<String>,
}

impl Quote {
    /// The quote of what could be had, the most likely first, where one machine costs `max_price` at the most.
    pub fn new(offers: Vec<Offer>, max_price: Price) -> Self {
        Self { offers, max_price, ends: None, notes: Vec::new() }
    }

    /// The quote of a provider that has one kind of machine, which costs nothing.
    pub fn free(description: impl Into<String>) -> Self {
        Self::new(vec![Offer::new(description, Price::Free)], Price::Free)
    }

    /// Sets when the provider ends the machines, whatever their lifetime is.
    pub fn ends(mut self, ends: SystemTime) -> Self {
        self.ends = Some(ends);
        self
    }

    /// Adds something that the user should know.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

/// One way to have a group's machines.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Offer {
    /// What one machine is, for people: `sshd on loopback`, `spot c7g.large in eu-west-1b`.
    pub description: String,
    /// What one machine costs.
    pub price: Price,
}

impl Offer {
    /// An offer of this for that.
    pub fn new(description: impl Into<String>, price: Price) -> Self {
        Self { description: description.into(), price }
    }
}

/// What a machine costs. A kind of price that a program doesn't know is to it [`Unknown`](Self::Unknown).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Price {
    /// Nothing.
    Free,
    /// US dollars an hour.
    PerHour(f64),
    /// It could not be found out. Providers do not estimate it.
    #[default]
    Unknown,
}

impl Price {
    /// What so many machines cost over a time, in US dollars, if that is known.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tsunami_core::Price;
    /// assert_eq!(Price::PerHour(0.5).dollars(4, Duration::from_secs(1800)), Some(1.0));
    /// assert_eq!(Price::Unknown.dollars(4, Duration::from_secs(1800)), None);
    /// ```
    pub fn dollars(self, machines: u32, time: Duration) -> Option<f64> {
        match self {
            Self::Free => Some(0.0),
            Self::PerHour(dollars) => Some(dollars * f64::from(machines) * time.as_secs_f64() / 3600.0),
            Self::Unknown => None,
        }
    }
}

/// A request for one group of machines. The engine makes them; a provider's tests may.
///
/// ```
/// use std::num::NonZeroU32;
/// use std::time::{Duration, SystemTime};
/// use tsunami_core::{Deadline, LaunchRequest, MachineSpec, RunId};
///
/// let (now, lifetime) = (SystemTime::now(), Duration::from_secs(600));
/// let (run, deadline) = (RunId::generate(now, 7), Deadline { at: now + lifetime, lifetime });
/// let three = NonZeroU32::new(3).expect("three is not zero");
/// let request = LaunchRequest::new(run, "client", three, MachineSpec::default(), deadline)
///     .experiment("redis")
///     .authorized_key("ssh-ed25519 AAAA…");
/// assert!(request.replace.is_empty());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LaunchRequest {
    /// The run they belong to.
    pub run: RunId,
    /// The experiment's name, for tags.
    pub experiment: String,
    /// The group's name.
    pub group: String,
    /// How many machines.
    pub count: NonZeroU32,
    /// What kind of machine.
    pub spec: MachineSpec,
    /// When they must end themselves. Armed before anyone can log in; on a machine that was there before, before
    /// anything of the run's is.
    pub deadline: Deadline,
    /// The public key that may log in, as OpenSSH writes it.
    pub authorized_key: String,
    /// Machines of an earlier launch that no longer count: each gets a replacement in its place.
    pub replace: Vec<MachineId>,
    /// Where to say what happens on the way.
    pub notes: ProgressSink,
}

impl LaunchRequest {
    /// A request for machines that no key logs in to, and that replace none.
    pub fn new(
        run: RunId,
        group: impl Into<String>,
        count: NonZeroU32,
        spec: MachineSpec,
        deadline: Deadline,
    ) -> Self {
        Self {
            run,
            experiment: String::new(),
            group: group.into(),
            count,
            spec,
            deadline,
            authorized_key: String::new(),
            replace: Vec::new(),
            notes: ProgressSink::default(),
        }
    }

    /// Sets the experiment's name.
    pub fn experiment(mut self, name: impl Into<String>) -> Self {
        self.experiment = name.into();
        self
    }

    /// Sets the public key that may log in, as OpenSSH writes it.
    pub fn authorized_key(mut self, key: impl Into<String>) -> Self {
        self.authorized_key = key.into();
        self
    }

    /// Sets the machines of an earlier launch that get a replacement.
    pub fn replace(mut self, machines: impl IntoIterator<Item = MachineId>) -> Self {
        self.replace = machines.into_iter().collect();
        self
    }

    /// Sets where to say what happens on the way.
    pub fn notes(mut self, sink: ProgressSink) -> Self {
        self.notes = sink;
        self
    }
}

/// Takes what a provider says on the way: that a market had no capacity, and which is next.
#[derive(Clone, Default)]
pub struct ProgressSink(Option<TakeNote>);

type TakeNote = Arc<dyn Fn(&str) + Send + Sync>;

impl ProgressSink {
    /// Hands every note to `take`. The default hands them to nobody.
    pub fn new(take: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(take)))
    }

    /// Says something.
    pub fn say(&self, note: &str) {
        if let Some(take) = &self.0 {
            take(note);
        }
    }
}

impl Debug for ProgressSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProgressSink")
    }
}

/// Which machines to list.
///
/// It stays as it is: to a filter that it doesn't know, a provider could only answer with too many machines or too few.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunFilter {
    /// Those of one run.
    Run(RunId),
    /// Those of every run of tsunami.
    All,
}

/// What was found by tag, whoever made it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Survey {
    /// The runs, by their ids.
    pub runs: Vec<DiscoveredRun>,
    /// What could not be looked at, and why. What is there is not known.
    pub failures: Vec<String>,
    /// The time as the provider has it, told by this computer's clock like the times of expiry; `None` if it did not
    /// tell.
    pub now: Option<SystemTime>,
}

impl Survey {
    /// Adds a run.
    pub fn run(mut self, run: DiscoveredRun) -> Self {
        self.runs.push(run);
        self
    }

    /// Adds what could not be looked at, and why.
    pub fn failure(mut self, failure: impl Into<String>) -> Self {
        self.failures.push(failure.into());
        self
    }

    /// Sets the time as the provider has it.
    pub fn now(mut self, now: SystemTime) -> Self {
        self.now = Some(now);
        self
    }
}

/// What one run has, wherever that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DiscoveredRun {
    /// The run.
    pub run: RunId,
    /// The last moment at which anything of it expires.
    pub expires: SystemTime,
    /// What there is of it, for people: `machine i-0abc… in eu-west-1: running`.
    pub things: Vec<String>,
}

impl DiscoveredRun {
    /// A run, when the last of it expires, and what there is of it, for people.
    pub fn new(run: RunId, expires: SystemTime, things: Vec<String>) -> Self {
        Self { run, expires, things }
    }
}

/// Something that a run created and that may still exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Leftover {
    /// What it is, with its id: `machine i-0abc (client-0)`.
    pub what: String,
    /// Why it is still there, or why that is not known.
    pub why: String,
}

impl Leftover {
    /// A thing, and why it is still there.
    pub fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into() }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// What a provider could not do.
///
/// ```
/// use tsunami_core::{ProviderError, ProviderErrorKind};
///
/// let error = ProviderError::new(ProviderErrorKind::Capacity, "launch", "rack 3 is full").help("take another rack");
/// assert_eq!(error.to_string(), "launch: rack 3 is full");
/// assert!(!error.kind.is_transient() && !error.kind.is_final());
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {message}")]
#[non_exhaustive]
pub struct ProviderError {
    /// What the engine's policy goes by.
    pub kind: ProviderErrorKind,
    /// What was being asked for.
    pub operation: String,
    /// What the other side said.
    pub message: String,
    /// What the user can do about it.
    pub help: Option<String>,
    /// What they can do about it by the program at hand.
    pub remedy: Option<Remedy>,
    /// The error underneath.
    #[source]
    pub source: Option<BoxError>,
    /// What may still exist, where a call to [`terminate`](Provider::terminate) is what failed.
    pub remains: Vec<Leftover>,
    /// The key by which a file says what is refused, of a group or of all: `instance`.
    pub key: Option<&'static str>,
    /// Where it stands, as `redis.toml:7:12`. The engine adds that to what is refused of a plan that was made from a file.
    pub place: Option<Box<str>>,
}

impl ProviderError {
    /// An error of `kind` in `operation`.
    pub fn new(kind: ProviderErrorKind, operation: impl Into<String>, message: impl Into<String>) -> Self {
        let (operation, message) = (operation.into(), message.into());
        let (help, remedy, source, remains) = (None, None, None, Vec::new());
        Self { kind, operation, message, help, remedy, source, remains, key: None, place: None }
    }

    /// Adds what the user can do about it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds what they can do about it by the program at hand.
    pub fn remedy(mut self, remedy: Remedy) -> Self {
        self.remedy = Some(remedy);
        self
    }

    /// Adds the error underneath. It is not repeated in the message.
    pub fn source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds the key by which a file says what is refused: whoever wrote the file is shown where it stands.
    pub fn key(mut self, key: &'static str) -> Self {
        self.key = Some(key);
        self
    }

    /// Adds what may still exist.
    pub fn remains(mut self, remains: Vec<Leftover>) -> Self {
        self.remains = remains;
        self
    }
}

/// The classes of provider errors that call for different answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProviderErrorKind {
    /// The request can never succeed as it stands: give up and tell the user.
    InvalidSpec,
    /// The provider has no such thing: give up.
    Unsupported,
    /// Nothing of that kind is free there now: try another pool.
    Capacity,
    /// The account may not have that many: another market may help, a retry does not.
    Quota,
    /// The credentials do not allow it: give up and name the permission.
    Unauthorized,
    /// Too many requests: back off and retry.
    Throttled,
    /// The service did not answer properly: retry.
    Unavailable,
    /// Anything else: give up.
    Other,
}

impl ProviderErrorKind {
    /// Whether the same request may succeed a little later.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Throttled | Self::Unavailable)
    }

    /// Whether only a person can change the answer, so that a teardown need not wait for another one.
    pub fn is_final(self) -> bool {
        matches!(self, Self::InvalidSpec | Self::Unsupported | Self::Unauthorized)
    }
}
