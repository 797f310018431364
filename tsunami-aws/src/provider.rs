//! The provider: one account, in as many regions as a run needs.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_ec2::types::{InstanceStateName, IpPermission, IpRange};
use aws_smithy_http_client::tls::TlsContext;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_types::service_config::ServiceConfigKey;
use futures_util::future::{join_all, try_join_all};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tsunami_core::limits::{ADMISSION_OUTPUT_LIMIT, ADMISSION_TIMEOUT};
use tsunami_core::{
    Command, Deadline, Exit, LaunchRequest, Leftover, Machine, MachineId, MachineSpec, Offer, OutputSink,
    Price, Provider, ProviderError, ProviderErrorKind, Quote, RunFilter, RunId, Session, Stream,
};

use crate::clock::{Clock, Hearing};
use crate::create::Pool;
use crate::error::{Answer, Failure};
use crate::ground::{Ground, invalid};
use crate::journal::Journal;
use crate::launch::{self, Launch, authorize};
use crate::limited::{LimitedAnswers, with_timeouts};
use crate::region::Region;
use crate::spec::Ec2Spec;
use crate::teardown::{self, Left, Stays};
use crate::user_data::{DEADLINE_DIGITS, UserData};
use crate::{address, inventory, quotas, tag, text, trust};

/// The service that tells a caller its address, unless [`Ec2Options::address_service`] names another.
pub const ADDRESS_SERVICE: &str = "https://checkip.amazonaws.com";

/// How long EC2's listings may lag behind.
/// <https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html>
const CONSISTENCY: Duration = Duration::from_secs(5);

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// How far a machine's own deadline may be from the one in its tags: they are told to the second, at once.
const TOLERANCE: Duration = Duration::from_secs(60);

/// How an account is found and used.
#[derive(Clone, Debug, Default)]
pub struct Ec2Options {
    /// A profile of the AWS configuration files; `None` leaves it to the environment.
    pub profile: Option<String>,
    /// The regions in which machines may be, the default one first. Empty is the configured one.
    pub regions: Vec<String>,
    /// The account that the credentials must be for, if that is known.
    pub account: Option<String>,
    /// The endpoint that must be in use, as [`Ec2Settings::endpoint`] has it, if that is known.
    pub endpoint: Option<String>,
    /// The service that tells this computer's address; `None` is [`ADDRESS_SERVICE`].
    pub address_service: Option<String>,
}

/// What must be known to find a run's machines again: the settings of an [`Ec2Provider`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ec2Settings {
    /// The account's number.
    pub account: String,
    /// The regions.
    pub regions: Vec<String>,
    /// The profile, if one was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// What answers for EC2: `aws`, or a digest of the URL that the environment or the profile names. Records of
    /// old have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

/// Launches machines on EC2.
///
/// Credentials are found as every AWS tool finds them: environment, profiles, SSO, roles; `AWS_ENDPOINT_URL` is
/// honoured. Everything is tagged from the request that creates it; requests are written down before they are
/// made, so that a lost answer is asked for again.
#[derive(Debug)]
pub struct Ec2Provider {
    pub(crate) owner: String,
    root: PathBuf,
    settings: Ec2Settings,
    regions: Vec<Region>,
    pricing: aws_sdk_pricing::Client,
    address_service: String,
    /// By which certificates that service is believed.
    trust: TlsContext,
    address: OnceCell<String>,
    grounds: tokio::sync::Mutex<HashMap<String, Arc<Ground>>>,
    journals: Mutex<HashMap<RunId, Arc<Journal>>>,
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    empty_pools: Mutex<EmptyPools>,
    specs: Mutex<HashMap<(RunId, String), Ec2Spec>>,
    /// What was let in where: a run's region, and an address.
    opened: tokio::sync::Mutex<HashSet<(RunId, String, String)>>,
}

/// Pools without capacity, by region and whether it was asked for as spot: since when, and for how many at the least.
type EmptyPools = HashMap<(String, bool, Pool), (Instant, u32)>;

impl Ec2Provider {
    /// Finds the credentials and whose they are. What launches leave behind for other processes is kept in
    /// `<root>/<run-id>/aws`: with the root of tsunami's records that is the run's own private directory.
    pub async fn connect(root: impl Into<PathBuf>, options: Ec2Options) -> Result<Self, ProviderError> {
        let (config, trust) = load(&options).await?;
        Self::trusting(root, config, options, trust).await
    }

    /// [`connect`](Self::connect) with a configuration of the program's own. It should neither repeat requests
    /// nor give up on them soon: that is done here.
    pub async fn with_config(
        root: impl Into<PathBuf>,
        config: SdkConfig,
        options: Ec2Options,
    ) -> Result<Self, ProviderError> {
        Self::trusting(root, config, options, TlsContext::default()).await
    }

    async fn trusting(
        root: impl Into<PathBuf>,
        config: SdkConfig,
        options: Ec2Options,
        trust: TlsContext,
    ) -> Result<Self, ProviderError> {
        let config = with_timeouts(config);
        let endpoint = endpoint(&config);
        if let Some(expected) = options.endpoint.filter(|expected| *expected != endpoint) {
            return Err(another_endpoint(&expected));
        }
        let regions = match (options.regions.as_slice(), config.region()) {
            ([], Some(region)) => vec![region.to_string()],
            ([], None) => {
                let message = "no region is given or configured";
                return Err(ProviderError::new(ProviderErrorKind::InvalidSpec, "connect", message)
                    .help("set `region`, AWS_REGION, or `aws configure set region`"));
            }
            (given, _) => given.to_vec(),
        };
        let (account, owner, clock) = identity(&config, &regions[0]).await.map_err(|failure| {
            let profile = options.profile.as_ref().filter(|_| failure.code == "NoCredentials");
            let help = profile.map(|profile| {
                format!(
                    "see that the profile `{profile}` is there and complete: `aws configure list-profiles`"
                )
            });
            let error = ProviderError::from(failure);
            match help {
                Some(help) => error.help(help),
                None => error,
            }
        })?;
        if let Some(expected) = options.account.filter(|expected| *expected != account) {
            let message =
                format!("the credentials are for account {account}, and the run is in account {expected}");
            return Err(ProviderError::new(ProviderErrorKind::Unauthorized, "connect", message)
                .help("set AWS_PROFILE to a profile of that account"));
        }
        // The price list is kept in a few regions only, for all.
        let pricing = config.to_builder().region(aws_config::Region::new("us-east-1")).build();
        Ok(Self {
            owner,
            root: root.into(),
            regions: regions.iter().map(|name| Region::new(&config, name, clock)).collect(),
            settings: Ec2Settings { account, regions, profile: options.profile, endpoint: Some(endpoint) },
            pricing: {
                let config =
                    aws_sdk_pricing::config::Builder::from(&pricing).interceptor(LimitedAnswers::default());
                aws_sdk_pricing::Client::from_conf(config.build())
            },
            address_service: options.address_service.unwrap_or_else(|| ADDRESS_SERVICE.to_owned()),
            trust,
            address: OnceCell::new(),
            grounds: Default::default(),
            journals: Mutex::default(),
            turns: Mutex::default(),
            empty_pools: Mutex::default(),
            specs: Mutex::default(),
            opened: Default::default(),
        })
    }

    /// Everything that another process must know to find this provider's machines.
    pub fn settings(&self) -> &Ec2Settings {
        &self.settings
    }

    pub(crate) fn default_region(&self) -> &Region {
        &self.regions[0]
    }

    pub(crate) fn all_regions(&self) -> &[Region] {
        &self.regions
    }

    pub(crate) fn region(&self, spec: &Ec2Spec) -> Result<&Region, ProviderError> {
        let Some(wanted) = &spec.region else { return Ok(&self.regions[0]) };
        self.regions.iter().find(|region| region.name == *wanted).ok_or_else(|| {
            let message = format!(
                "{wanted} is not among this provider's regions: {}",
                self.settings.regions.join(", ")
            );
            ProviderError::new(ProviderErrorKind::InvalidSpec, "region", message)
        })
    }

    pub(crate) fn journal(&self, run: &RunId) -> Arc<Journal> {
        let mut journals = self.journals.lock().unwrap_or_else(PoisonError::into_inner);
        journals.entry(run.clone()).or_insert_with(|| Arc::new(Journal::of(&self.root, run))).clone()
    }

    /// A lock by name, for what must not be done twice at the same time.
    pub(crate) fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default().clone()
    }

    pub(crate) fn empty_pools(&self) -> MutexGuard<'_, EmptyPools> {
        self.empty_pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address by which the world sees this computer, as a CIDR block.
    pub(crate) async fn own_address(&self) -> Result<String, ProviderError> {
        let discover = || async {
            address::discover(&trust::direct_client(self.trust.clone()), &self.address_service).await
        };
        self.address.get_or_try_init(discover).await.cloned()
    }

    /// Looks a spec up, once.
    async fn ground(&self, spec: &Ec2Spec) -> Result<Arc<Ground>, ProviderError> {
        let key = format!("{spec:?}");
        let turn = self.turn(&format!("ground {key}"));
        let _turn = turn.lock().await;
        if let Some(known) = self.grounds.lock().await.get(&key) {
            return Ok(known.clone());
        }
        let ground = Arc::new(Ground::of(spec, self.region(spec)?, &self.pricing).await?);
        self.grounds.lock().await.insert(key, ground.clone());
        Ok(ground)
    }

    /// What was let in where by this process.
    pub(crate) async fn opened(&self) -> tokio::sync::MutexGuard<'_, HashSet<(RunId, String, String)>> {
        self.opened.lock().await
    }

    fn spec_of(&self, machine: &Machine) -> Option<Ec2Spec> {
        let specs = self.specs.lock().unwrap_or_else(PoisonError::into_inner);
        specs.get(&(machine.run.clone(), machine.group.clone())).cloned()
    }

    /// Lets the run's machines in other regions reach the ports that are open to them, as far as their
    /// addresses are known. Within a region the machines' common group has opened everything.
    async fn open_ports(&self, run: &RunId) -> Result<(), ProviderError> {
        let specs: Vec<Ec2Spec> = {
            let specs = self.specs.lock().unwrap_or_else(PoisonError::into_inner);
            specs.iter().filter(|((of, _), _)| of == run).map(|(_, spec)| spec.clone()).collect()
        };
        if specs.iter().all(|spec| spec.open_ports.is_empty()) || self.regions.len() < 2 {
            return Ok(());
        }
        // One at a time: whoever comes second finds it done.
        let mut opened = self.opened.lock().await;
        let machines = self.list(&RunFilter::Run(run.clone())).await?;
        for region in &self.regions {
            let here = |spec: &&Ec2Spec| self.region(spec).is_ok_and(|of| of.name == region.name);
            let mut ports: Vec<u16> =
                specs.iter().filter(here).flat_map(|spec| spec.open_ports.clone()).collect();
            ports.sort_unstable();
            ports.dedup();
            let group = self.journal(run).security_group(&region.name).map_err(launch::journal_error)?;
            let (Some(group), false) = (group, ports.is_empty()) else { continue };
            let prefix = format!("{} ", region.name);
            let foreign = machines.iter().filter(|machine| {
                !machine.addresses.network.as_ref().is_some_and(|network| network.starts_with(&prefix))
            });
            let new: Vec<String> = foreign
                .filter_map(|machine| machine.addresses.public.clone())
                .filter(|address| !opened.contains(&(run.clone(), region.name.clone(), address.clone())))
                .collect();
            if new.is_empty() {
                continue;
            }
            let permissions = ports.iter().flat_map(|port| {
                let ranges: Vec<_> = new
                    .iter()
                    .map(|address| IpRange::builder().cidr_ip(format!("{address}/32")).build())
                    .collect();
                ["tcp", "udp"].map(|protocol| {
                    let permission = IpPermission::builder().ip_protocol(protocol);
                    let permission = permission.from_port((*port).into()).to_port((*port).into());
                    permission.set_ip_ranges(Some(ranges.clone())).build()
                })
            });
            authorize(region, &group, permissions.collect()).await?;
            opened.extend(new.into_iter().map(|address| (run.clone(), region.name.clone(), address)));
        }
        Ok(())
    }
}

/// The configuration, and by which certificates AWS is believed.
async fn load(options: &Ec2Options) -> Result<(SdkConfig, TlsContext), ProviderError> {
    let config = load_with(options, None).await;
    match trust::named(&config).await? {
        None => Ok((config, TlsContext::default())),
        // Once more, since credentials may have to be asked for, too.
        Some(trust) => Ok((load_with(options, Some(trust::client(trust.clone()))).await, trust)),
    }
}

/// The configuration, as aws-config finds it. Repetitions and patience are ours.
async fn load_with(options: &Ec2Options, client: Option<SharedHttpClient>) -> SdkConfig {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts);
    if let Some(profile) = &options.profile {
        // Who names a profile means that one, whatever keys the environment holds.
        let mut credentials = ProfileFileCredentialsProvider::builder().profile_name(profile);
        if let Some(client) = &client {
            credentials = credentials.configure(&ProviderConfig::default().with_http_client(client.clone()));
        }
        loader = loader.profile_name(profile).credentials_provider(credentials.build());
    }
    if let Some(client) = client {
        loader = loader.http_client(client);
    }
    if let Some(region) = options.regions.first() {
        loader = loader.region(aws_config::Region::new(region.clone()));
    }
    loader.load().await
}

/// What answers for EC2 where the environment and the profile name nothing else.
const AWS: &str = "aws";

/// What answers for EC2, in a form that a record may hold: it names no place to send credentials to.
fn endpoint(config: &SdkConfig) -> String {
    let key = ServiceConfigKey::builder().service_id("EC2").env("AWS_ENDPOINT_URL").profile("endpoint_url");
    let own = key.build().ok().and_then(|key| config.service_config()?.load_config(key));
    let own = own.filter(|_| !config.get_origin("endpoint_url").is_client_config());
    match own.as_deref().or(config.endpoint_url()) {
        None => AWS.to_owned(),
        Some(url) => {
            let digest = format!("{:x}", Sha256::digest(url.trim_end_matches('/')));
            digest[..ENDPOINT_DIGEST].to_owned()
        }
    }
}

/// So many digits of a digest tell endpoints apart.
const ENDPOINT_DIGEST: usize = 16;

fn another_endpoint(expected: &str) -> ProviderError {
    let message = "the run is at another endpoint than the one that the environment or the profile names now";
    let help = match expected {
        AWS => {
            "it is at AWS itself: unset AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_EC2 (in a profile: `endpoint_url`)"
        }
        _ => "set AWS_ENDPOINT_URL to what it was when the run was launched",
    };
    ProviderError::new(ProviderErrorKind::Unauthorized, "connect", message).help(help)
}

/// The account, and who is asking.
async fn identity(config: &SdkConfig, region: &str) -> Answer<(String, String, Clock)> {
    let hearing = Hearing::default();
    let region = Region::new(config, region, Clock::default());
    let config = config.to_builder().region(aws_config::Region::new(region.name.clone())).build();
    let sts = aws_sdk_sts::config::Builder::from(&config).interceptor(LimitedAnswers::default());
    let sts = sts.interceptor(hearing.clone());
    let sts = aws_sdk_sts::Client::from_conf(sts.build());
    let caller = region.call("GetCallerIdentity", || sts.get_caller_identity().send()).await?;
    let account = caller.account().unwrap_or_default().to_owned();
    let arn = caller.arn().unwrap_or_default();
    let owner = arn.rsplit([':', '/']).next().unwrap_or_default().to_owned();
    Ok((account, owner, hearing.clock()))
}

fn spec(spec: &MachineSpec) -> Result<&Ec2Spec, ProviderError> {
    spec.get().ok_or_else(|| {
        let message = format!("a machine on EC2 is described by an `Ec2Spec`, not by {spec:?}");
        ProviderError::new(ProviderErrorKind::InvalidSpec, "spec", message)
    })
}

#[async_trait]
impl Provider for Ec2Provider {
    fn name(&self) -> String {
        "aws".to_owned()
    }

    fn settings(&self) -> serde_json::Value {
        serde_json::to_value(&self.settings).unwrap_or_default()
    }

    async fn quote(&self, wanted: &MachineSpec, count: NonZeroU32) -> Result<Quote, ProviderError> {
        let spec = spec(wanted)?;
        let region = self.region(spec)?;
        check(spec, region)?;
        let ground = self.ground(spec).await?;
        let mut offers = Vec::new();
        for market in &spec.markets {
            let cheapest = |pool: &&Pool| match ground.price(spec, *market, pool) {
                Price::PerHour(dollars) => dollars,
                _ => f64::INFINITY,
            };
            let pool = ground.pools.iter().min_by(|a, b| cheapest(a).total_cmp(&cheapest(b)));
            offers.extend(pool.map(|pool| Offer {
                description: format!("{pool}, {market}"),
                price: ground.price(spec, *market, pool),
            }));
        }
        let image = &ground.image;
        let mut notes = vec![format!("image {} ({}), entered as {}", image.name, image.id, image.user)];
        notes.extend(region.clock.note());
        notes.extend(ground.notes.iter().cloned());
        notes.extend(quotas::check(spec, region, &ground.processors, count.get()).await?);
        if spec.security_group.is_none() && spec.ssh_from.is_empty() {
            notes.push(format!("SSH is open to {}", self.own_address().await?));
        }
        if spec.placement_group && count.get() > 1 && spec.mixed {
            notes.push("a placement group keeps all machines in one zone, mixed or not".to_owned());
        }
        Ok(Quote { offers, most: ground.most(spec), notes })
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        let spec = spec(&request.spec)?;
        let region = self.region(spec)?;
        let turn = self.turn(&format!("launch {} {}", request.run, request.group));
        let _turn = turn.lock().await;
        let ground = self.ground(spec).await?;
        let key = (request.run.clone(), request.group.clone());
        self.specs.lock().unwrap_or_else(PoisonError::into_inner).insert(key, spec.clone());
        let journal = self.journal(&request.run);
        journal.write_settings(&self.settings).map_err(launch::journal_error)?;
        // The machines live by EC2's clock.
        let deadline = Deadline { at: region.clock.theirs(request.deadline.at), ..request.deadline };
        let request = &LaunchRequest { deadline, ..request.clone() };
        Launch { provider: self, request, spec, region, ground, journal }.run().await
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        let listings =
            self.regions.iter().map(|region| inventory::machines(region, filter, |run| self.journal(run)));
        let mut machines: Vec<Machine> = try_join_all(listings).await?.into_iter().flatten().collect();
        machines.sort_by(|a, b| (&a.run, &a.group, a.index).cmp(&(&b.run, &b.group, b.index)));
        Ok(machines)
    }

    async fn admit(&self, machine: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        let status = Command::shell("tsunami-deadline status");
        let armed = within(ADMISSION_TIMEOUT, remote(machine, session, status)).await?;
        let clock = self.default_region().clock;
        let at = armed_at(&armed).map(|at| clock.ours(at));
        let fits = at.zip(machine.expires).is_some_and(|(at, expires)| at <= expires + TOLERANCE);
        if !fits {
            let expires = machine.expires.map(launch::timestamp).unwrap_or_default();
            let message =
                format!("its deadline is not the promised one, {expires}: it says `{}`", text::line(&armed));
            return Err(ProviderError::new(ProviderErrorKind::Other, "deadline", message));
        }
        self.open_ports(&machine.run).await?;
        if self.spec_of(machine).is_some_and(|spec| spec.wait_for_cloud_init) {
            remote(machine, session, Command::shell(WAIT_FOR_CLOUD_INIT)).await?;
        }
        Ok(())
    }

    async fn notice(&self, machine: &Machine, session: &Arc<dyn Session>) -> String {
        let spec = self.spec_of(machine);
        if !spec.is_some_and(|spec| spec.markets.iter().any(|market| market.is_spot())) {
            return std::future::pending().await;
        }
        // Isolated, so that no module in the home directory passes for one of Python's own.
        let listen = Command::program("python3").arg("-I").arg("-c").arg(NOTICE);
        match remote(machine, session, listen).await {
            Ok(said) if is_notice(&said) => {
                format!("EC2 takes the spot machine back, as the machine was told: {}", text::line(&said))
            }
            // Listings go on telling.
            other => {
                tracing::debug!(machine = machine.name(), ?other, "the machine does not listen for a notice");
                std::future::pending().await
            }
        }
    }

    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        let filter = RunFilter::Run(run.clone());
        let extended = self.regions.iter().map(async |region| {
            let instances = inventory::instances(region, &filter).await?;
            let living = instances.iter().filter(|instance| {
                let state = instance.state().and_then(|state| state.name());
                !matches!(state, Some(InstanceStateName::Terminated | InstanceStateName::ShuttingDown))
            });
            let ids = living.filter_map(|instance| instance.instance_id().map(str::to_owned));
            let mut ids: Vec<String> = ids.collect();
            ids.extend(teardown::taggable(region, run, &self.journal(run)).await?);
            // CreateTags takes a thousand things at once.
            for ids in ids.chunks(1000) {
                let tag = aws_sdk_ec2::types::Tag::builder();
                let tag = tag.key(tag::EXPIRES).value(launch::timestamp(region.clock.theirs(until))).build();
                let request = region.ec2.create_tags().set_resources(Some(ids.to_vec())).tags(tag);
                region.call("CreateTags", || request.clone().send()).await?;
            }
            Ok::<_, Failure>(())
        });
        try_join_all(extended).await?;
        Ok(())
    }

    async fn extend_on(
        &self,
        machine: &Machine,
        session: &Arc<dyn Session>,
        until: SystemTime,
    ) -> Result<(), ProviderError> {
        let at = self
            .default_region()
            .clock
            .theirs(until)
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let before = machine.expires.unwrap_or(until);
        let (longer, shorter) = match until.duration_since(before) {
            Ok(longer) => (longer.as_secs(), 0),
            Err(error) => (0, error.duration().as_secs()),
        };
        // What is promised in seconds of life moves by as much as the hour does.
        let line = format!(
            "set -- $(tsunami-deadline status) && [ $# = 3 ] && tool=$(command -v tsunami-deadline) && \
             if [ \"$(id -u)\" = 0 ]; then sudo=; else sudo='sudo -n'; fi && \
             $sudo \"$tool\" extend {at} $(($3 + {longer} - {shorter}))"
        );
        within(ADMISSION_TIMEOUT, remote(machine, session, Command::shell(line))).await.map(drop)
    }

    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        let journal = self.journal(run);
        let ended = self.regions.iter().map(|region| teardown::terminate(region, run, &journal));
        let left: Vec<Left> = join_all(ended).await.into_iter().flatten().collect();
        let is = |stays: Stays| left.iter().any(|left| left.stays == stays);
        let mended = is(Stays::UntilMended) && !is(Stays::ForNow);
        let left = left.into_iter().map(|left| left.leftover).collect();
        if !mended {
            return Ok(left);
        }
        let message = "what is left stays until somebody changes what keeps it";
        Err(ProviderError::new(ProviderErrorKind::Unauthorized, "terminate", message).remains(left))
    }

    fn consistency(&self) -> Duration {
        CONSISTENCY
    }
}

/// Waits on a machine for the notice of its interruption.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html>
const NOTICE: &str = include_str!("notice.py");

/// Waits for cloud-init. A status of 2 means that it ended with warnings, since its version 23.4.
const WAIT_FOR_CLOUD_INIT: &str = "command -v cloud-init >/dev/null || exit 0\n\
     cloud-init status --wait >/dev/null && exit 0\n\
     [ $? != 2 ] || exit 0\n\
     cloud-init status --long >&2\n\
     exit 1";

/// What is wrong with a spec by itself.
fn check(spec: &Ec2Spec, region: &Region) -> Result<(), ProviderError> {
    let wrong = |message: &str| Err(invalid(region, message.to_owned()));
    if spec.instances.is_empty() {
        return wrong("no instance type is given");
    }
    if spec.markets.is_empty() {
        return wrong("no market is given");
    }
    if spec.max_price.is_some_and(|price| !price.is_finite() || price <= 0.0) {
        return wrong("max_price is not an amount of money");
    }
    for (key, value) in &spec.tags {
        let (longest_key, longest) = (tag::LONGEST_KEY, tag::LONGEST);
        if key.is_empty() || key.chars().count() > longest_key || value.chars().count() > longest {
            let message = format!(
                "the tag `{}` is too long: a key has 1 to {longest_key} characters, a value up to {longest}",
                text::line(key)
            );
            return Err(invalid(region, message));
        }
        if key.starts_with("tsunami:") || key.to_lowercase().starts_with("aws:") {
            return Err(invalid(region, format!("the tag `{key}` is not for users to set")));
        }
    }
    // Eight are tsunami's own, and EC2 takes fifty.
    if spec.tags.len() > 42 {
        return wrong("a machine can have at most 42 tags beside those that tsunami sets");
    }
    if let Some(profile) = &spec.iam_profile
        && !is_instance_profile(profile)
    {
        let message = format!("iam_profile `{profile}` is no instance profile");
        return Err(invalid(region, message).help(
            "give its name, or its ARN (`arn:aws:iam::ACCOUNT:instance-profile/NAME`); a role is not one, but \
             mostly has one of its own name",
        ));
    }
    for cidr in &spec.ssh_from {
        if !is_cidr(cidr) {
            let message = format!("ssh_from `{cidr}` is no block of IPv4 addresses");
            return Err(
                invalid(region, message).help("write it as 203.0.113.7/32, or 0.0.0.0/0 for the whole world")
            );
        }
    }
    // Keys are as long as those that launches make.
    let lifetime = Duration::from_secs(1);
    let own = spec.user_data.as_deref();
    let host_key = "x".repeat(411);
    UserData { at: SystemTime::now(), lifetime, host_key: &host_key, own }
        .compose()
        .map_err(|error| invalid(region, error.to_string()))?;
    Ok(())
}

/// <https://docs.aws.amazon.com/IAM/latest/APIReference/API_InstanceProfile.html>
fn is_instance_profile(text: &str) -> bool {
    let name = match text.strip_prefix("arn:") {
        Some(arn) => arn.split_once(":instance-profile/").and_then(|(_, path)| path.rsplit('/').next()),
        None => Some(text),
    };
    let is_usual = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-".contains(c);
    name.is_some_and(|name| (1..=128).contains(&name.len()) && name.chars().all(is_usual))
}

fn is_cidr(text: &str) -> bool {
    text.split_once('/').is_some_and(|(address, length)| {
        address.parse::<std::net::Ipv4Addr>().is_ok() && length.parse::<u8>().is_ok_and(|length| length <= 32)
    })
}

/// When a machine says that it ends itself: `armed AT FOR`, both in seconds, and nothing beside that.
fn armed_at(status: &str) -> Option<SystemTime> {
    let number = |word: &str| {
        let digits = word.len() <= DEADLINE_DIGITS && word.bytes().all(|byte| byte.is_ascii_digit());
        word.parse().ok().filter(|_| digits)
    };
    let line = status.strip_suffix('\n').unwrap_or(status);
    let [at, lifetime] = line.strip_prefix("armed ")?.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let _: u64 = number(lifetime)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(number(at)?))
}

/// Whether a machine says what EC2 says there: what happens to it, and when.
fn is_notice(said: &str) -> bool {
    let words: Vec<&str> = said.trim_end().split(' ').collect();
    matches!(words[..], ["terminate" | "stop" | "hibernate", "at", time] if humantime::parse_rfc3339(time).is_ok())
}

/// Gives a machine a while to say something.
async fn within<T>(
    limit: Duration,
    said: impl Future<Output = Result<T, ProviderError>>,
) -> Result<T, ProviderError> {
    let limit_over = |_| {
        let message = format!("no answer within {}", humantime::format_duration(limit));
        Err(ProviderError::new(ProviderErrorKind::Other, "first connection", message))
    };
    tokio::time::timeout(limit, said).await.unwrap_or_else(limit_over)
}

/// Runs a command on a machine, which must succeed, and returns what it wrote.
async fn remote(
    machine: &Machine,
    session: &Arc<dyn Session>,
    command: Command,
) -> Result<String, ProviderError> {
    let failed = |message: String| ProviderError::new(ProviderErrorKind::Other, "first connection", message);
    let output = Arc::new(Said::default());
    let exit = session.exec(&command, output.clone(), &Default::default()).await;
    let exit = exit.map_err(|error| {
        let user = machine.login.user.as_deref().unwrap_or("whoever logs in");
        let help = format!("if the image takes no commands from {user}, name its own user: `user`");
        failed("a command could not be run".to_owned()).source(error).help(help)
    })?;
    let (stdout, stderr) = output.text();
    match exit {
        Exit::Status(0) => Ok(stdout),
        exit => Err(failed(format!(
            "`{}` ended with {exit}: {}",
            command.to_string().lines().next().unwrap_or_default(),
            text::line(&stderr)
        ))),
    }
}

/// Keeps the beginning of what a command says.
#[derive(Debug, Default)]
struct Said(Mutex<(Vec<u8>, Vec<u8>)>);

impl Said {
    fn text(&self) -> (String, String) {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (String::from_utf8_lossy(&said.0).into_owned(), String::from_utf8_lossy(&said.1).into_owned())
    }
}

impl OutputSink for Said {
    fn write(&self, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = if stream == Stream::Stdout { &mut said.0 } else { &mut said.1 };
        kept.extend_from_slice(&bytes[..bytes.len().min(ADMISSION_OUTPUT_LIMIT.saturating_sub(kept.len()))]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_believed_its_deadline_only_in_the_words_that_were_agreed_on() {
        let at = |seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(armed_at("armed 1800000000 2700\n"), at(1_800_000_000));
        for lie in [
            "",
            "armed",
            "armed 1800000000",
            "armed +1800000000 2700",
            "armed -1 2700",
            "disarmed 1800000000 2700",
            "armed 1800000000 2700 3",
            "armed 1800000000 2700\n\n",
            "armed 1800000000\n2700",
            "armed 18446744073709551615 2700",
            "armed 1800000000 99999999999999999999",
        ] {
            assert_eq!(armed_at(lie), None, "{lie:?}");
        }
    }

    #[test]
    fn a_machine_is_believed_its_end_only_in_the_words_of_ec2() {
        assert!(is_notice("terminate at 2026-11-27T06:00:00Z\n"));
        for lie in [
            "",
            "terminate",
            "terminate at noon",
            "dance at 2026-11-27T06:00:00Z",
            "x\nterminate at 2026-11-27T06:00:00Z",
        ] {
            assert!(!is_notice(lie), "{lie:?}");
        }
    }
}
