//! What a provider tells to be usable from an experiment file and from commands.
//!
//! A [`Registration`] has a provider's name, the keys of its table, what reads them into a [`MachineSpec`], and what
//! connects to it: for a file, for a recorded run, or for whatever is found by tag. A [`Registry`] is a list of them:
//! [`Loader::registry`](crate::experiment::Loader::registry) reads files by it, and a command line is made of one.
//!
//! ```
//! use std::sync::Arc;
//!
//! use async_trait::async_trait;
//! use tsunami_core::registry::{
//!     Backend, ConnectRequest, Form, GroupTable, Key, Machines, Registration, Registry, TableReader, Values,
//! };
//! use tsunami_core::testing::FakeCloud;
//! use tsunami_core::{MachineSpec, ProviderError, RunRecord};
//!
//! /// Registers a cloud whose machines have a size.
//! #[derive(Debug)]
//! struct Fake(FakeCloud);
//!
//! const KEYS: &[Key] = &[Key::new("size", Form::Text, "how large its machines are").default("\"small\"")];
//!
//! #[async_trait]
//! impl Registration for Fake {
//!     fn name(&self) -> &'static str {
//!         "fake"
//!     }
//!
//!     fn group_keys(&self) -> &'static [Key] {
//!         KEYS
//!     }
//!
//!     fn reader(&self) -> Box<dyn TableReader> {
//!         Box::new(Reader)
//!     }
//!
//!     async fn connect(&self, _: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
//!         Ok(Backend::new(Arc::new(self.0.clone()), Arc::new(self.0.clone())))
//!     }
//!
//!     async fn reconnect(&self, _: &RunRecord, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
//!         self.connect(request).await
//!     }
//! }
//!
//! struct Reader;
//!
//! impl TableReader for Reader {
//!     fn group(&mut self, group: &GroupTable<'_>, values: &mut Values<'_, '_>) -> Option<Machines> {
//!         let size = group.table.get("size").and_then(|value| values.word(value));
//!         Some(Machines::of(MachineSpec::new(size.unwrap_or_else(|| "small".to_owned()))))
//!     }
//! }
//!
//! let registry = Registry::default().with(Arc::new(Fake(FakeCloud::new(1))));
//! assert_eq!(registry.names().collect::<Vec<_>>(), ["local", "fake"]);
//! ```

mod finding;

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

pub use self::finding::{Finding, FindingResult};
use crate::experiment::keys::TOP_KEYS;
use crate::experiment::{Experiment, Group, OnInterruption};
use crate::machine::RunId;
use crate::names::is_table_name;
use crate::provider::{Leftover, MachineSpec, Provider, ProviderError, ProviderErrorKind};
use crate::record::{RunEntry, RunRecord, RunStore};
use crate::session::Connector;

pub use crate::experiment::keys::{Form, Key, words};
pub use crate::experiment::values::{Place, Table, Value, Values};
pub use crate::provider::{DiscoveredRun, Survey};

/// How a provider is used from files and commands.
#[async_trait]
pub trait Registration: Debug + Send + Sync + 'static {
    /// The name, as `provider = "…"` and records have it. It is no other key at the top of a file.
    fn name(&self) -> &'static str;

    /// Its keys in use, as they stand in a file, for the reference: a table, and groups. Without one the examples of the keys
    /// are shown.
    fn example(&self) -> Option<&'static str> {
        None
    }

    /// The keys that stand in the table of the provider's name, for all groups, or in a group, which then says
    /// otherwise. Without any there is no such table. What is [common](Common) to all providers may be among them.
    fn keys(&self) -> &'static [Key] {
        &[]
    }

    /// The keys that stand in a group only.
    fn group_keys(&self) -> &'static [Key] {
        &[]
    }

    /// Whether a group says by `count` how many machines it has, or the provider's own keys do.
    fn is_counted(&self) -> bool {
        true
    }

    /// Whether its machines are logged in to as a user whom a file may name, and whom the reader then takes from
    /// [`GroupTable::common`].
    fn has_users(&self) -> bool {
        false
    }

    /// What reads the keys of one file. By default, machines are of one kind, and a group has nothing but their count.
    fn reader(&self) -> Box<dyn TableReader> {
        Box::new(CountedReader)
    }

    /// What is wrong with the groups together, though each by itself is right.
    fn check(&self, groups: &[Group]) -> Vec<String> {
        let _ = groups;
        Vec::new()
    }

    /// What a connection to it depends on, in words: requests of which it is the same get one connection. Default: each
    /// request gets its own.
    fn connection(&self, request: &ConnectRequest<'_>) -> Option<String> {
        let _ = request;
        None
    }

    /// Connects to what an experiment asks for. May ask the provider who the user is, and creates nothing.
    async fn connect(&self, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError>;

    /// Connects to what a recorded run was made with.
    async fn reconnect(
        &self,
        record: &RunRecord,
        request: &ConnectRequest<'_>,
    ) -> Result<Backend, ProviderError>;

    /// The same for a run whose record can't be read, by what lies beside it.
    async fn reconnect_unrecorded(
        &self,
        directory: &RunEntry,
        request: &ConnectRequest<'_>,
    ) -> Result<Backend, ProviderError> {
        let _ = directory;
        self.connect(request).await
    }

    /// What a run is known to have created, where nobody can be asked about it.
    fn remembered(&self, root: &Path, run: &RunId, why: &str) -> Vec<Leftover> {
        let _ = (root, run, why);
        Vec::new()
    }

    /// Whether runs are found by tag, also those that are recorded nowhere: whether [`survey`](Self::survey) is
    /// of use.
    fn finds_by_tag(&self) -> bool {
        false
    }

    /// Looks for runs by tag.
    async fn survey(
        &self,
        query: &SurveyQuery,
        request: &ConnectRequest<'_>,
    ) -> Result<(Backend, Survey), ProviderError> {
        let _ = (query, request);
        let message = format!("the provider \"{}\" finds no runs by tag", self.name());
        Err(ProviderError::new(ProviderErrorKind::Unsupported, "survey", message))
    }

    /// What would keep runs from being made, or from going well: what `tsunami doctor` tells. Without
    /// [groups](ConnectRequest::groups) it is about this computer alone: nobody else is asked, and it takes a moment.
    /// With groups it is about all that they need beyond what [`connect`](Self::connect) and [`Provider::quote`] refuse,
    /// which is told as well. Nothing is created that costs anything or stays. It ends soon once `cancel` is cancelled. Default: nothing is
    /// known.
    async fn examine(&self, request: &ConnectRequest<'_>, cancel: &CancellationToken) -> Vec<Finding> {
        let _ = (request, cancel);
        Vec::new()
    }
}

/// Reads a provider's keys in one file. Whatever is wrong is noted with its place, and reading goes on.
pub trait TableReader {
    /// Reads the table for all groups. Called before the groups, if there is one.
    fn all(&mut self, table: Table<'_>, values: &mut Values<'_, '_>) {
        let _ = (table, values);
    }

    /// Reads one group. Called in the order of the file; `None` if its machines can't be told.
    fn group(&mut self, group: &GroupTable<'_>, values: &mut Values<'_, '_>) -> Option<Machines>;

    /// What [`Registration::connect`] is to know of the file, beside its groups.
    fn settings(&self) -> Settings {
        Settings::default()
    }
}

/// What belongs to the machines of every provider, by its key. It stands in a group, or for all of them in the
/// provider's own table, if it has the key, or at the top. A reader has no need to look at these keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Common {
    /// Who to log in as.
    pub user: Option<String>,
    /// What happens when a provider takes a machine back.
    pub on_interruption: Option<OnInterruption>,
}

/// A group, as far as its provider is to read it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupTable<'t> {
    /// Its name.
    pub name: &'t str,
    /// Where its name stands.
    pub place: Place,
    /// All that it holds.
    pub table: Table<'t>,
    /// What belongs to every provider, as the group says it, or else what is said for all groups.
    pub common: Common,
}

/// The machines of a group, as its provider understands them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Machines {
    /// What each of them is to be.
    pub spec: MachineSpec,
    /// How many there are, where that isn't [counted](Registration::is_counted).
    pub count: Option<NonZeroU32>,
    /// How long they may take from the launch to a session, unless the file says so.
    pub connect_timeout: Option<Duration>,
    /// Texts that are kept with the results, with the names that they have there.
    pub inputs: Vec<(String, String)>,
}

impl Common {
    /// What is said here, or else elsewhere.
    pub(crate) fn or(self, elsewhere: &Self) -> Self {
        Self {
            user: self.user.or_else(|| elsewhere.user.clone()),
            on_interruption: self.on_interruption.or(elsewhere.on_interruption),
        }
    }
}

impl Machines {
    /// Machines of which nothing else is to be said.
    pub fn of(spec: MachineSpec) -> Self {
        Self { spec, count: None, connect_timeout: None, inputs: Vec::new() }
    }

    /// Sets how many there are, where that isn't [counted](Registration::is_counted).
    pub fn count(mut self, count: NonZeroU32) -> Self {
        self.count = Some(count);
        self
    }

    /// Sets how long they may take from the launch to a session, unless the file says so.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// Adds a text that is kept with the results under this name.
    pub fn input(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.inputs.push((name.into(), text.into()));
        self
    }
}

/// What a provider has read for itself.
#[derive(Clone, Debug, Default)]
pub struct Settings(MachineSpec);

impl Settings {
    /// Wraps a provider's own type.
    pub fn new<T: Any + Debug + Send + Sync>(settings: T) -> Self {
        Self(MachineSpec::new(settings))
    }

    /// What was wrapped, if it is of the type `T`.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.get()
    }
}

/// What a provider is connected to for.
#[derive(Debug)]
#[non_exhaustive]
pub struct ConnectRequest<'a> {
    /// Where runs are recorded.
    pub state: &'a RunStore,
    /// How machines are connected to, as the registry's [connector](Registry::connector) has read it.
    pub connection: Settings,
    /// By what machines are reached that this computer need not reach by itself, in a few words.
    pub through: Option<&'a str>,
    /// Whether hosts whose keys are not known are trusted, for this run.
    pub trust_new_hosts: bool,
    /// The groups of the experiment; none without one.
    pub groups: &'a [Group],
    /// What the provider's [`TableReader`] has read for it.
    pub settings: Settings,
    registry: &'a Registry,
}

impl ConnectRequest<'_> {
    /// The connector that the registry has for providers without one of their own.
    pub fn connector(&self) -> Result<Arc<dyn Connector>, ProviderError> {
        let connect = self.registry.connector.as_ref().ok_or_else(|| {
            let message = "this program has no connector for its machines";
            ProviderError::new(ProviderErrorKind::Unsupported, "connector", message)
        })?;
        Ok(connect.connector(&self.connection, self.trust_new_hosts))
    }
}

/// Makes connectors for providers that have none of their own, as a table of the file says.
#[async_trait]
pub trait MakeConnector: Debug + Send + Sync + 'static {
    /// The table's name. It is no other key at the top of a file.
    fn name(&self) -> &'static str;

    /// Its keys in use, as they stand in a file, for the reference. Without one the examples of the keys
    /// are shown.
    fn example(&self) -> Option<&'static str> {
        None
    }

    /// The table's keys. Without any there is no such table.
    fn keys(&self) -> &'static [Key] {
        &[]
    }

    /// Reads the table. Whatever is wrong is noted with its place, and reading goes on.
    fn read(&self, table: Table<'_>, values: &mut Values<'_, '_>) -> Connection {
        let _ = (table, values);
        Connection::default()
    }

    /// A connector by what was read; without a table, the settings are empty.
    fn connector(&self, settings: &Settings, trust_new_hosts: bool) -> Arc<dyn Connector>;

    /// What would keep its connectors from connecting, as far as it is about this computer: nobody else is asked, and it
    /// takes a moment. `state` is where runs are recorded. Default: nothing is known.
    async fn examine(&self, settings: &Settings, state: &RunStore) -> Vec<Finding> {
        let _ = (settings, state);
        Vec::new()
    }
}

/// How the machines of a file are connected to.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Connection {
    /// What [`MakeConnector::connector`] is to know.
    pub settings: Settings,
    /// How long a machine may take from its launch to a session.
    pub connect_timeout: Option<Duration>,
    /// By what machines are reached that this computer need not reach by itself, in a few words.
    pub through: Option<String>,
}

/// A provider and a connector that fit each other.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Backend {
    /// What launches machines.
    pub provider: Arc<dyn Provider>,
    /// What connects to them.
    pub connector: Arc<dyn Connector>,
}

impl Backend {
    /// This provider, and what connects to its machines.
    pub fn new(provider: Arc<dyn Provider>, connector: Arc<dyn Connector>) -> Self {
        Self { provider, connector }
    }
}

/// Connects to what the sets of machines of one experiment ask for, once only for those whose
/// [connection](Registration::connection) is the same: what a provider has looked up for one of them it knows for all.
#[derive(Debug)]
pub struct Connections {
    registry: Registry,
    state: RunStore,
    trust_new_hosts: bool,
    known: tokio::sync::Mutex<HashMap<String, Backend>>,
}

impl Connections {
    /// Connects for a set: for the experiment as [`Experiment::on_set`] has it. May be dropped at any await.
    pub async fn of(&self, set: &Experiment) -> Result<Backend, ProviderError> {
        let Self { registry, state, trust_new_hosts, known } = self;
        let provider = registry.find(&set.provider);
        let key = provider.and_then(|it| it.connection(&registry.request_of(set, state, *trust_new_hosts)));
        let Some(key) = key else { return registry.connect(set, state, *trust_new_hosts).await };
        let mut known = known.lock().await;
        if let Some(backend) = known.get(&key) {
            return Ok(backend.clone());
        }
        let backend = registry.connect(set, state, *trust_new_hosts).await?;
        known.insert(key, backend.clone());
        Ok(backend)
    }
}

/// Where to look for runs by tag.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SurveyQuery {
    /// The regions; none are all, or the one that is usual.
    pub regions: Vec<String>,
    /// A profile of the provider's own configuration.
    pub profile: Option<String>,
    /// Whether to look in all regions where none is named.
    pub everywhere: bool,
}

impl SurveyQuery {
    /// Adds a region.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.regions.push(region.into());
        self
    }

    /// Sets a profile of the provider's own configuration.
    pub fn profile(mut self, profile: impl Into<String>) -> Self {
        self.profile = Some(profile.into());
        self
    }

    /// Sets whether to look in all regions where none is named.
    pub fn everywhere(mut self, everywhere: bool) -> Self {
        self.everywhere = everywhere;
        self
    }
}

/// The providers that a program knows, the default one first.
#[derive(Clone, Debug)]
pub struct Registry {
    providers: Vec<Arc<dyn Registration>>,
    absent: Vec<(&'static str, &'static str)>,
    connector: Option<Arc<dyn MakeConnector>>,
}

/// Knows the provider "local" by its name only: files can be read whose groups have nothing but a count, for a
/// [`Tsunami`](crate::Tsunami) of the program's own.
impl Default for Registry {
    fn default() -> Self {
        Self::new().with(Arc::new(Counted))
    }
}

impl Registry {
    /// Knows nobody.
    pub fn new() -> Self {
        Self { providers: Vec::new(), absent: Vec::new(), connector: None }
    }

    /// Adds a provider, in place of one of the same name.
    ///
    /// # Panics
    ///
    /// If its name can't be one: it is a lower-case letter, then those, digits, `_` and `-`, and it is no
    /// other key at the top of a file. Files and records have it, and so does the provider's directory in a run's.
    pub fn with(mut self, registration: Arc<dyn Registration>) -> Self {
        let name = registration.name();
        let is_taken = self.connector.as_ref().is_some_and(|connector| connector.name() == name);
        assert!(can_be_at_the_top(name) && !is_taken, "no provider can be called {name:?}");
        self.absent.retain(|(name, _)| *name != registration.name());
        match self.providers.iter_mut().find(|known| known.name() == registration.name()) {
            Some(known) => *known = registration,
            None => self.providers.push(registration),
        }
        self
    }

    /// Knows that there is a provider of this name elsewhere, and why it isn't here.
    pub fn without(mut self, name: &'static str, why: &'static str) -> Self {
        if self.find(name).is_none() {
            self.absent.push((name, why));
        }
        self
    }

    /// Sets what makes connectors for providers that have none of their own.
    ///
    /// # Panics
    ///
    /// If its name can't be one, by the rules for [providers](Self::with), or is a provider's.
    pub fn connector(mut self, connector: Arc<dyn MakeConnector>) -> Self {
        let name = connector.name();
        assert!(can_be_at_the_top(name) && self.find(name).is_none(), "no connector can be called {name:?}");
        self.connector = Some(connector);
        self
    }

    /// What makes connectors for those that have none of their own.
    pub fn connector_maker(&self) -> Option<&Arc<dyn MakeConnector>> {
        self.connector.as_ref()
    }

    /// The provider of this name.
    pub fn find(&self, name: &str) -> Option<&Arc<dyn Registration>> {
        self.providers.iter().find(|registration| registration.name() == name)
    }

    /// Why the provider of this name isn't here, if there is one.
    pub fn absent(&self, name: &str) -> Option<&'static str> {
        self.absent.iter().find(|(absent, _)| *absent == name).map(|(_, why)| *why)
    }

    /// All providers, in their order.
    pub fn providers(&self) -> impl Iterator<Item = &Arc<dyn Registration>> {
        self.providers.iter()
    }

    /// The names of all providers, in their order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.providers.iter().map(|registration| registration.name())
    }

    /// The names of the providers that aren't here.
    pub fn absent_names(&self) -> impl Iterator<Item = &'static str> + Clone {
        self.absent.iter().map(|(name, _)| *name)
    }

    /// The names that `provider` may have in a file, and those that it could have elsewhere.
    pub(crate) fn all_names(&self) -> impl Iterator<Item = &'static str> {
        self.names().chain(self.absent_names())
    }

    /// Connects to what an experiment asks for.
    pub async fn connect(
        &self,
        experiment: &Experiment,
        state: &RunStore,
        trust_new_hosts: bool,
    ) -> Result<Backend, ProviderError> {
        let request = self.request_of(experiment, state, trust_new_hosts);
        let provider = self.find(&experiment.provider).ok_or_else(|| unknown(&experiment.provider))?;
        of_that_name(provider.name(), provider.connect(&request).await?)
    }

    /// What connects to what the sets of machines of an experiment ask for, one after another.
    pub fn connections(&self, state: &RunStore, trust_new_hosts: bool) -> Connections {
        let (registry, state) = (self.clone(), state.clone());
        Connections { registry, state, trust_new_hosts, known: tokio::sync::Mutex::default() }
    }

    /// What is known of this computer alone that may keep runs from being made: by the connector, as an experiment sets
    /// it if there is one, and by all providers. Nobody else is asked.
    pub async fn examine_here(&self, experiment: Option<&Experiment>, state: &RunStore) -> Vec<Finding> {
        let (request, cancel) = (self.request(state), CancellationToken::new());
        let settings = experiment.map_or(&request.connection, |experiment| &experiment.connection.settings);
        let mut findings = match &self.connector {
            Some(connector) => connector.examine(settings, state).await,
            None => Vec::new(),
        };
        for provider in &self.providers {
            findings.extend(provider.examine(&request, &cancel).await);
        }
        findings
    }

    /// What may keep an experiment from being run, beyond what a quote says: see [`Registration::examine`].
    pub async fn examine(
        &self,
        experiment: &Experiment,
        state: &RunStore,
        trust_new_hosts: bool,
        cancel: &CancellationToken,
    ) -> Vec<Finding> {
        let request = self.request_of(experiment, state, trust_new_hosts);
        match self.find(&experiment.provider) {
            Some(provider) => provider.examine(&request, cancel).await,
            None => vec![Finding::refused("provider", &unknown(&experiment.provider))],
        }
    }

    fn request_of<'a>(
        &'a self,
        experiment: &'a Experiment,
        state: &'a RunStore,
        trust_new_hosts: bool,
    ) -> ConnectRequest<'a> {
        let (groups, settings) = (experiment.groups.as_slice(), experiment.settings.clone());
        let connection = experiment.connection.settings.clone();
        let through = experiment.connection.through.as_deref();
        ConnectRequest { state, connection, through, trust_new_hosts, groups, settings, registry: self }
    }

    /// Connects to what a recorded run was made with. How its machines are connected to is remembered in its directory.
    pub async fn reconnect(&self, record: &RunRecord, state: &RunStore) -> Result<Backend, ProviderError> {
        let provider = self.find(&record.provider).ok_or_else(|| unknown(&record.provider))?;
        let reconnected = provider.reconnect(record, &self.request(state)).await?;
        of_that_name(provider.name(), reconnected)
    }

    /// Connects to what a provider has of a run whose record can't be read, by what lies beside it.
    pub async fn reconnect_unrecorded(
        &self,
        provider: &str,
        directory: &RunEntry,
        state: &RunStore,
    ) -> Result<Backend, ProviderError> {
        let provider = self.find(provider).ok_or_else(|| unknown(provider))?;
        let reconnected = provider.reconnect_unrecorded(directory, &self.request(state)).await?;
        of_that_name(provider.name(), reconnected)
    }

    /// Looks for runs of a provider by tag.
    pub async fn survey(
        &self,
        provider: &str,
        query: &SurveyQuery,
        state: &RunStore,
    ) -> Result<(Backend, Survey), ProviderError> {
        let provider = self.find(provider).ok_or_else(|| unknown(provider))?;
        let (backend, found) = provider.survey(query, &self.request(state)).await?;
        Ok((of_that_name(provider.name(), backend)?, found))
    }

    /// A request for a run of which nothing but its record is known.
    pub fn request<'a>(&'a self, state: &'a RunStore) -> ConnectRequest<'a> {
        let (connection, settings) = (Settings::default(), Settings::default());
        let (through, groups) = (None, [].as_slice());
        ConnectRequest {
            state,
            connection,
            through,
            trust_new_hosts: false,
            groups,
            settings,
            registry: self,
        }
    }
}

/// Whether a table at the top of a file can have this name.
fn can_be_at_the_top(name: &str) -> bool {
    is_table_name(name) && TOP_KEYS.iter().all(|key| key.name != name)
}

/// A run is recorded under the name that its provider says, and looked for under the one that is registered.
fn of_that_name(name: &str, backend: Backend) -> Result<Backend, ProviderError> {
    let says = backend.provider.name();
    if says == name {
        return Ok(backend);
    }
    let message =
        format!("the provider that is registered as `{name}` calls itself `{says}`: its runs would be lost");
    Err(ProviderError::new(ProviderErrorKind::Unsupported, "provider", message))
}

fn unknown(name: &str) -> ProviderError {
    let message = format!("this tsunami knows no provider `{name}`");
    ProviderError::new(ProviderErrorKind::Unsupported, "provider", message)
}

/// A provider of which nothing is known but its name: its groups have a count.
#[derive(Debug)]
struct Counted;

#[async_trait]
impl Registration for Counted {
    fn name(&self) -> &'static str {
        "local"
    }

    async fn connect(&self, _: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        let message = "this program brings its own provider";
        Err(ProviderError::new(ProviderErrorKind::Unsupported, "connect", message))
    }

    async fn reconnect(&self, _: &RunRecord, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        self.connect(request).await
    }
}

struct CountedReader;

impl TableReader for CountedReader {
    fn group(&mut self, _: &GroupTable<'_>, _: &mut Values<'_, '_>) -> Option<Machines> {
        Some(Machines::of(MachineSpec::default()))
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// Has this name.
    #[derive(Debug)]
    struct Named(&'static str);

    #[async_trait]
    impl Registration for Named {
        fn name(&self) -> &'static str {
            self.0
        }

        async fn examine(&self, request: &ConnectRequest<'_>, _: &CancellationToken) -> Vec<Finding> {
            vec![Finding::ok(self.0, format!("{} groups", request.groups.len()))]
        }

        async fn connect(&self, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
            Counted.connect(request).await
        }

        async fn reconnect(
            &self,
            _: &RunRecord,
            request: &ConnectRequest<'_>,
        ) -> Result<Backend, ProviderError> {
            self.connect(request).await
        }
    }

    #[async_trait]
    impl MakeConnector for Named {
        fn name(&self) -> &'static str {
            self.0
        }

        fn connector(&self, _: &Settings, _: bool) -> Arc<dyn Connector> {
            unreachable!("nothing is connected to")
        }

        async fn examine(&self, _: &Settings, _: &RunStore) -> Vec<Finding> {
            vec![Finding::ok(self.0, "connects")]
        }
    }

    #[tokio::test]
    async fn whoever_is_registered_says_what_may_keep_runs_from_being_made() {
        let registry = Registry::default().with(Arc::new(Named("cloud"))).connector(Arc::new(Named("wire")));
        let found = registry.examine_here(None, &RunStore::at("/nonexistent")).await;
        let found: Vec<_> = found.iter().map(|finding| (&*finding.check, &*finding.found)).collect();
        // What a provider knows nothing of is no finding.
        assert_eq!(found, [("wire", "connects"), ("cloud", "0 groups")]);
    }

    #[test]
    fn what_is_registered_has_a_name_of_its_own() {
        let registry = Registry::new().with(Arc::new(Named("cloud"))).connector(Arc::new(Named("wire")));
        let refuses = |add: &dyn Fn(Registry) -> Registry| {
            let registry = registry.clone();
            catch_unwind(AssertUnwindSafe(|| add(registry))).is_err()
        };
        for name in ["", "Cloud", "a/b", "..", "-a", "group", "lifetime"] {
            assert!(refuses(&|registry| registry.with(Arc::new(Named(name)))), "{name}");
            assert!(refuses(&|registry| registry.connector(Arc::new(Named(name)))), "{name}");
        }
        assert!(refuses(&|registry| registry.with(Arc::new(Named("wire")))));
        assert!(refuses(&|registry| registry.connector(Arc::new(Named("cloud")))));
        let same = registry.with(Arc::new(Named("cloud")));
        assert_eq!(same.names().collect::<Vec<_>>(), ["cloud"]);
    }
}
