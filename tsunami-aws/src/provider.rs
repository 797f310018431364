//! The provider: one account, in as many regions as a run needs.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_ec2::types::{InstanceStateName, Tag};
use aws_smithy_http_client::tls::TlsContext;
use futures_util::future::{join_all, try_join_all};
use tokio::time::Instant;
use tsunami_core::{
    Choice, Choices, LaunchRequest, Leftover, Machine, MachineId, MachineSpec, Offer, Price, Provider,
    ProviderError, ProviderErrorKind, Quote, RunFilter, RunId, Session, Survey,
};

use crate::address::OwnAddress;
use crate::connect;
use crate::discovery;
use crate::error::AwsError;
use crate::inventory::BlockEnd;
use crate::journal::{Journal, journal_error};
use crate::launch::{self, Launch, LaunchState, LockKey};
use crate::limited::{LimitedAnswers, with_timeouts};
use crate::model::{Pool, timestamp};
use crate::region::Region;
use crate::resolve::{self, Resolver};
use crate::settings::{ADDRESS_SERVICE, Ec2Options, Ec2Settings};
use crate::spec::{Ec2Spec, Market};
use crate::teardown::{self, Left, Stays};
use crate::{guest, inventory, tag};

/// How long EC2's listings may lag behind.
/// <https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html>
const LISTING_LAG: Duration = Duration::from_secs(5);

/// How long the ends of Capacity Blocks are gone by: a run's machines are extended together.
const BLOCKS_TTL: Duration = Duration::from_secs(30);

/// CreateTags takes so many resources at once.
const MAX_TAGGED_AT_ONCE: usize = 1000;

/// Launches machines on EC2.
///
/// Credentials are found as every AWS tool finds them: environment, profiles, SSO, roles; `AWS_ENDPOINT_URL` is
/// honoured. Everything is tagged from the request that creates it; requests are written down before they are
/// made, so that a lost answer is asked for again.
#[derive(Debug)]
pub struct Ec2Provider {
    root: PathBuf,
    settings: Ec2Settings,
    pub(crate) regions: Vec<Region>,
    pub(crate) resolver: Resolver,
    pub(crate) launches: LaunchState,
    journals: Mutex<HashMap<RunId, Journal>>,
    /// What was launched here, by run and group.
    specs: Mutex<HashMap<(RunId, String), Ec2Spec>>,
    /// The first end of a Capacity Block that a run's machines are in, and when it was looked up.
    blocks: tokio::sync::Mutex<HashMap<RunId, (Instant, Option<BlockEnd>)>>,
}

impl Ec2Provider {
    /// Finds the credentials and whose they are. What launches leave behind for other processes is kept in
    /// `<root>/<run-id>/aws`: with the root of tsunami's records that is the run's own private directory.
    pub async fn connect(root: impl Into<PathBuf>, options: Ec2Options) -> Result<Self, ProviderError> {
        let (config, trust) = connect::load(&options).await?;
        Self::trusting(root, config, options, trust).await
    }

    /// [`connect`](Self::connect) with a configuration of the program's own. It should neither repeat requests
    /// nor give up on them soon: that is done here. [`SdkConfig`] is that of `aws-config` 1.
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
        let endpoint = connect::endpoint(&config);
        if let Some(expected) = options.endpoint.filter(|expected| *expected != endpoint) {
            return Err(connect::another_endpoint(&expected));
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
        let identity = connect::identity(&config, &regions[0]).await.map_err(|failure| {
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
        let connect::Identity { account, owner, clock } = identity;
        if let Some(expected) = options.account.filter(|expected| *expected != account) {
            let message =
                format!("the credentials are for account {account}, and the run is in account {expected}");
            return Err(ProviderError::new(ProviderErrorKind::Unauthorized, "connect", message)
                .help("set AWS_PROFILE to a profile of that account"));
        }
        // The price list is kept in a few regions only, for all.
        let pricing = config.to_builder().region(aws_config::Region::new("us-east-1")).build();
        let pricing = aws_sdk_pricing::config::Builder::from(&pricing).interceptor(LimitedAnswers::default());
        let pricing = aws_sdk_pricing::Client::from_conf(pricing.build());
        let service = options.address_service.unwrap_or_else(|| ADDRESS_SERVICE.to_owned());
        let names = regions.clone();
        let regions: Vec<Region> = names.iter().map(|name| Region::new(&config, name, clock)).collect();
        Ok(Self {
            root: root.into(),
            settings: Ec2Settings {
                account,
                regions: names,
                profile: options.profile,
                endpoint: Some(endpoint),
            },
            resolver: Resolver::new(pricing, &regions),
            launches: LaunchState::new(owner, OwnAddress::told_by(service, trust)),
            regions,
            journals: Mutex::default(),
            specs: Mutex::default(),
            blocks: Default::default(),
        })
    }

    /// Everything that another process must know to find this provider's machines.
    pub fn settings(&self) -> &Ec2Settings {
        &self.settings
    }

    /// The regions that are enabled for the account.
    pub async fn enabled_regions(&self) -> Result<Vec<String>, ProviderError> {
        Ok(discovery::enabled_regions(&self.regions[0]).await?)
    }

    /// Looks in all of this provider's regions for whatever carries a run's tag and an expiry, and is not gone.
    /// Changes nothing.
    pub async fn survey(&self) -> Survey {
        discovery::survey(&self.regions).await
    }

    pub(crate) fn region(&self, spec: &Ec2Spec) -> Result<&Region, ProviderError> {
        let Some(wanted) = &spec.region else { return Ok(&self.regions[0]) };
        self.regions.iter().find(|region| region.name == *wanted).ok_or_else(|| {
            let message = format!(
                "{wanted} is not among this provider's regions: {}",
                self.settings.regions.join(", ")
            );
            ProviderError::new(ProviderErrorKind::InvalidSpec, "region", message).key("region")
        })
    }

    fn journal(&self, run: &RunId) -> Journal {
        let mut journals = self.journals.lock().unwrap_or_else(PoisonError::into_inner);
        journals.entry(run.clone()).or_insert_with(|| Journal::of(&self.root, run)).clone()
    }

    /// The spec, with the types chosen where it names none and its program asked for no choice.
    pub(crate) async fn chosen(&self, wanted: &MachineSpec) -> Result<MachineSpec, ProviderError> {
        let choice = self.choose(wanted, &Choices::new()).await?;
        Ok(choice.map_or_else(|| wanted.clone(), |choice| choice.spec))
    }

    /// Fails if EC2 ends machines of a run before that, with the Capacity Block that they are in. Asked once for all
    /// machines of a run.
    async fn within_blocks(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        let mut known = self.blocks.lock().await;
        let first = match known.get(run).filter(|(at, _)| at.elapsed() < BLOCKS_TTL) {
            Some((_, first)) => first.clone(),
            None => {
                let ends = self.regions.iter().map(|region| inventory::first_block_end(region, run));
                let ends = try_join_all(ends).await?.into_iter().flatten();
                let first = ends.min_by_key(|end| end.at);
                known.insert(run.clone(), (Instant::now(), first.clone()));
                first
            }
        };
        match first.filter(|end| end.at < until) {
            None => Ok(()),
            Some(BlockEnd { instance, block, at }) => {
                let at = humantime::format_rfc3339_seconds(at);
                let message = format!(
                    "{instance} is in the Capacity Block {block}, whose machines EC2 ends at {at}: no end can be moved \
                     beyond that"
                );
                Err(ProviderError::new(ProviderErrorKind::InvalidSpec, "extend", message)
                    .help(format!("extend it to less than {at}")))
            }
        }
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
        let mut opened = self.launches.opened.lock().await;
        let machines = self.list(&RunFilter::Run(run.clone())).await?;
        for region in &self.regions {
            let here = |spec: &&Ec2Spec| self.region(spec).is_ok_and(|of| of.name == region.name);
            let ports = specs.iter().filter(here).flat_map(|spec| spec.open_ports.clone()).collect();
            launch::open_ports(region, run, ports, &machines, &self.journal(run), &mut opened).await?;
        }
        Ok(())
    }
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

    /// Which instance types have what a spec asks for that names none.
    async fn choose(&self, wanted: &MachineSpec, known: &Choices) -> Result<Option<Choice>, ProviderError> {
        let spec = spec(wanted)?;
        let Some(shape) = spec.shape.as_ref().filter(|_| spec.instances.is_empty()) else { return Ok(None) };
        let region = self.region(spec)?;
        resolve::check(spec, region)?;
        let asked = resolve::asked(spec, shape, region);
        let chosen = match known.get(&asked).filter(|known| !known.is_empty()) {
            Some(known) => known.clone(),
            None => self.resolver.choose(spec, shape, region).await?,
        };
        let spec = Ec2Spec { instances: chosen.clone(), ..spec.clone() };
        Ok(Some(Choice::new(asked, chosen, MachineSpec::new(spec))))
    }

    async fn quote(&self, wanted: &MachineSpec, count: NonZeroU32) -> Result<Quote, ProviderError> {
        let wanted = self.chosen(wanted).await?;
        let spec = spec(&wanted)?;
        let region = self.region(spec)?;
        resolve::check(spec, region)?;
        let resolved = self.resolver.resolve(spec, region).await?;
        let mut offers = Vec::new();
        let reserved = self.resolver.reserved(spec, region, &resolved).await?;
        for market in &spec.markets {
            if *market == Market::Reservation {
                offers.extend(reserved.iter().map(|reserved| {
                    let price = resolved.price(spec, *market, &reserved.pool);
                    Offer::new(format!("{}, {reserved}", reserved.pool), price)
                }));
                continue;
            }
            let cheapest = |pool: &&Pool| match resolved.price(spec, *market, pool) {
                Price::PerHour(dollars) => dollars,
                _ => f64::INFINITY,
            };
            let pool = resolved.pools.iter().min_by(|a, b| cheapest(a).total_cmp(&cheapest(b)));
            offers.extend(
                pool.map(|pool| Offer::new(format!("{pool}, {market}"), resolved.price(spec, *market, pool))),
            );
        }
        let image = &resolved.image;
        let chosen = spec.shape.as_ref().zip(spec.markets.first());
        let chosen = chosen.map(|(shape, market)| {
            let prices = resolved.prices(spec, *market).into_iter().map(|(instance, price)| match price {
                Price::PerHour(dollars) => format!("{instance} (${dollars:.4}/h)"),
                _ => instance.to_owned(),
            });
            format!("{shape}: any of {}", prices.collect::<Vec<_>>().join(", "))
        });
        let mut notes = vec![format!("image {} ({}), entered as {}", image.name, image.id, image.user)];
        notes.extend(chosen);
        notes.extend(region.clock.note());
        notes.extend(resolved.notes.iter().cloned());
        notes.extend(resolved.spot_notes(spec));
        notes.extend(self.resolver.check_quotas(spec, region, &resolved, count.get()).await?);
        if spec.security_group.is_none() {
            let from = self.launches.ssh_from(spec, region, &resolved).await?;
            if spec.ssh_from.is_empty() {
                notes.push(format!("SSH is open to {}", from.join(", ")));
            }
        }
        if !reserved.is_empty() {
            let room = reserved.iter().map(|reserved| reserved.free);
            let room = if spec.mixed { room.sum() } else { room.max().unwrap_or_default() };
            if room < count.get() {
                notes.push(format!("what is reserved has room for {room} of the {count} machines just now"));
            }
            notes.push(
                "what is reserved is paid for in any case: its price here is the on-demand price, as a bound"
                    .to_owned(),
            );
        }
        if spec.placement_group && count.get() > 1 && spec.mixed {
            notes.push("a placement group keeps all machines in one zone, mixed or not".to_owned());
        }
        let quote = notes.into_iter().fold(Quote::new(offers, resolved.max_price(spec)), Quote::note);
        // Another market has what lives longer than all that is reserved.
        let elsewhere = spec.markets.iter().any(|market| *market != Market::Reservation);
        let longest = reserved.iter().map(|reserved| reserved.ends.ok_or(())).collect::<Result<Vec<_>, ()>>();
        match longest.ok().and_then(|all| all.into_iter().max()).filter(|_| !elsewhere) {
            Some(ends) => Ok(quote.ends(ends)),
            None => Ok(quote),
        }
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        let wanted = self.chosen(&request.spec).await?;
        let spec = spec(&wanted)?;
        let region = self.region(spec)?;
        let (run, group) = (request.run.clone(), request.group.clone());
        let lock = self.launches.locks.named_lock(LockKey::Group { run: run.clone(), group: group.clone() });
        let _lock = lock.lock().await;
        let resolved = self.resolver.resolve(spec, region).await?;
        self.specs.lock().unwrap_or_else(PoisonError::into_inner).insert((run, group), spec.clone());
        let reserved = self.resolver.reserved(spec, region, &resolved).await;
        let journal = self.journal(&request.run);
        journal.write_settings(&self.settings).await.map_err(journal_error)?;
        // The machines live by EC2's clock.
        let mut request = request.clone();
        request.deadline.at = region.clock.theirs(request.deadline.at);
        let state = &self.launches;
        Launch { state, request: &request, spec, region, resolved, reserved, journal }.run().await
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        let listings =
            self.regions.iter().map(|region| inventory::machines(region, filter, |run| self.journal(run)));
        let mut machines: Vec<Machine> = try_join_all(listings).await?.into_iter().flatten().collect();
        machines.sort_by(|a, b| (&a.run, &a.group, a.index).cmp(&(&b.run, &b.group, b.index)));
        Ok(machines)
    }

    async fn verify(&self, machine: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        guest::verify_deadline(machine, session, self.regions[0].clock).await?;
        self.open_ports(&machine.run).await?;
        if self.spec_of(machine).is_some_and(|spec| spec.wait_for_cloud_init) {
            guest::wait_for_cloud_init(machine, session).await?;
        }
        Ok(())
    }

    async fn interruption_notice(&self, machine: &Machine, session: &Arc<dyn Session>) -> String {
        let spec = self.spec_of(machine);
        if !spec.is_some_and(|spec| spec.markets.iter().any(|market| market.is_spot())) {
            return std::future::pending().await;
        }
        match guest::interruption_notice(machine, session).await {
            Ok(notice) => notice,
            // Listings go on telling.
            Err(error) => {
                tracing::debug!(machine = machine.name(), %error, "the machine does not listen for a notice");
                std::future::pending().await
            }
        }
    }

    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        self.within_blocks(run, until).await?;
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
            for ids in ids.chunks(MAX_TAGGED_AT_ONCE) {
                let tag = Tag::builder();
                let tag = tag.key(tag::EXPIRES).value(timestamp(region.clock.theirs(until))).build();
                let request = region.ec2.create_tags().set_resources(Some(ids.to_vec())).tags(tag);
                region.call("CreateTags", || request.clone().send()).await?;
            }
            Ok::<_, AwsError>(())
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
        // Before any machine has been moved.
        self.within_blocks(&machine.run, until).await?;
        guest::move_deadline(machine, session, self.regions[0].clock, until).await
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
        LISTING_LAG
    }
}
