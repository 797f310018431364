//! How `aws` is used from experiment files and commands.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tsunami_core::experiment::{Group, OnInterruption};
use tsunami_core::registry::{
    Backend, ConnectRequest, Finding, Form, GroupTable, Key, Machines, Place, Registration, Settings, Survey,
    SurveyQuery, Table, TableReader, Value, Values, words,
};
use tsunami_core::{
    CancellationToken, Leftover, MachineSpec, ProviderError, ProviderErrorKind, RunEntry, RunId, RunRecord,
};

use crate::limits::USER_DATA_FILE_LIMIT;
use crate::shape::{ARCHITECTURES, Amount, GENERATIONS, Shape, wrong_pattern};
use crate::spec::{DISK_TYPES, wrong_disk_type};
use crate::{
    Disk, Ec2Options, Ec2Provider, Ec2Settings, Ec2Spec, Market, Reach, Reservation, recorded_options,
};
use crate::{examination, tag};

/// A security group has so many rules at the most, unless the account's quota is another.
/// <https://docs.aws.amazon.com/vpc/latest/userguide/amazon-vpc-limits.html#vpc-limits-security-groups>
const MAX_RULES: usize = 60;

/// The variable that names another service than the usual one to tell this computer's address.
const ADDRESS_SERVICE_VARIABLE: &str = "TSUNAMI_ADDRESS_SERVICE";

/// How long a machine without a hypervisor may take from its launch to a session, unless the file says otherwise: it
/// goes through its firmware first, which takes minutes.
const METAL_CONNECT_TIMEOUT: Duration = Duration::from_secs(900);

/// The name that a group's user data has among the inputs of a run.
const USER_DATA: &str = "user-data";

const MARKET: Form = Form::Choice(&words(&Market::WORDS));

/// Whether a spot block is EC2's own.
const SPOT_BLOCKS: [(&str, bool); 2] = [("promise", false), ("native", true)];

/// The keys of `[aws]`, any of which a group may override.
const KEYS: &[Key] = &[
    Key::new("region", Form::Text, "the region").example("\"eu-west-1\"").default("the configured one"),
    Key::new("zone", Form::Text, "the availability zone")
        .example("\"eu-west-1a\"")
        .default("any that has what is asked for"),
    Key::new("market", Form::OneOrMore(&MARKET), "where to buy, in the order to try")
        .example("[\"spot\", \"on-demand\"]")
        .default("\"on-demand\""),
    Key::new("max_price", Form::Number, "the most that an hour of a spot machine may cost, in US dollars")
        .example("0.25")
        .default("the on-demand price"),
    Key::new(
        "instance",
        Form::Either(&[Form::OneOrMore(&Form::Text), Form::Table(SHAPE_KEYS)]),
        "instance types, any one of which will do, or what they have to have",
    )
    .example("[\"c7g.large\", \"c6g.large\"]"),
    Key::new("mixed", Form::Boolean, "whether the machines of a group may differ in type and zone")
        .example("true")
        .default("false"),
    Key::new(
        "image",
        Form::Text,
        "an alias such as `ubuntu-24.04`, an id `ami-…`, or the path of a public parameter, `ssm:/…`",
    )
    .example("\"ubuntu-24.04\"")
    .default("\"ubuntu-24.04\""),
    Key::new("user", Form::Text, "who to log in as")
        .example("\"admin\"")
        .default("the user that the image is known to have"),
    Key::new("disk", Form::Table(DISK_KEYS), "the root volume")
        .example("{ size = \"30GiB\" }")
        .default("the image's"),
    Key::new("subnet", Form::Text, "a subnet's id")
        .example("\"subnet-0123456789abcdef0\"")
        .default("the default one of the zone"),
    Key::new(
        "reach",
        Form::Choice(&words(&Reach::WORDS)),
        "whether machines have public addresses, or are reached by those of their network",
    )
    .example("\"private\"")
    .default("as the subnet has it"),
    Key::new("security_group", Form::Text, "a security group's id")
        .example("\"sg-0123456789abcdef0\"")
        .default("one made for the run"),
    Key::new("ssh_from", Form::OneOrMore(&Form::Text), "who may connect by SSH, as CIDR blocks")
        .example("\"203.0.113.0/24\"")
        .default("this computer's address; of machines without a public one, their network"),
    Key::new(
        "open_ports",
        Form::List(&Form::PORT),
        "ports that the run's machines in other regions may reach",
    )
    .example("[6379]"),
    Key::new("placement_group", Form::Boolean, "whether to keep the machines close together")
        .example("true")
        .default("false"),
    Key::new("iam_profile", Form::Text, "the name of an instance profile").example("\"reads-my-bucket\""),
    Key::new("user_data", Form::Path, "a file with user data beside tsunami's own")
        .example("\"user-data.sh\""),
    Key::new("tags", Form::Map(&Form::Text), "more tags").example("{ team = \"blue\" }"),
    Key::new("wait_for_cloud_init", Form::Boolean, "whether set-up waits for cloud-init")
        .example("false")
        .default("true"),
    Key::new(
        "on_interruption",
        Form::Choice(&words(&OnInterruption::WORDS)),
        "what happens when EC2 takes a machine back",
    )
    .example("\"replace\"")
    .default("\"fail\""),
    Key::new("spot_block", Form::Choice(&words(&SPOT_BLOCKS)), "who keeps the promise of a spot block")
        .example("\"native\"")
        .default("\"promise\""),
    Key::new(
        "reservation",
        Form::OneOrMore(&Form::Either(&[Form::Text, Form::Table(RESERVATION_KEYS)])),
        "reserved capacity for the market of that name, by its id `cr-…` or by a tag",
    )
    .example("[\"cr-0123456789abcdef0\", { tag = \"team=blue\" }]"),
    Key::new("profile", Form::Text, "the profile of the AWS configuration; the same for all groups")
        .example("\"research\""),
];

const RESERVATION_KEYS: &[Key] =
    &[Key::new("tag", Form::Text, "all reservations with this tag, as `\"team=blue\"`")
        .example("\"team=blue\"")
        .required()];

const SHAPE_KEYS: &[Key] = &[
    Key::new(
        "vcpus",
        Form::Either(&[Form::Text, Form::Integer(1, u32::MAX)]),
        "virtual processors, as `\"2..4\"`, `\"4..\"` or `4`; both ends count",
    )
    .example("\"2..4\""),
    Key::new("memory", Form::Text, "memory, as `\"8GiB..\"` or `\"8GiB..16GiB\"`").example("\"8GiB..\""),
    Key::new("arch", Form::Choice(&ARCHITECTURES), "the architecture")
        .example("\"arm64\"")
        .default("\"x86_64\""),
    Key::new("generation", Form::Choice(&words(&GENERATIONS)), "of which age").default("\"current\""),
    Key::new(
        "exclude",
        Form::OneOrMore(&Form::Text),
        "types that won't do; `*` stands for anything, as in `\"t*\"`",
    )
    .example("[\"t*\"]"),
];

const DISK_KEYS: &[Key] = &[
    Key::new("size", Form::Size, "its size, as `30GiB`").example("\"30GiB\"").default("the image's"),
    Key::new("type", Form::Choice(DISK_TYPES), "its type").example("\"gp3\"").default("\"gp3\""),
    Key::new("iops", RATE, "its operations a second").example("4000"),
    Key::new("throughput", RATE, "its throughput, in MiB a second").example("250"),
];
const RATE: Form = Form::Integer(1, u32::MAX);

/// Registers [`Ec2Provider`] as `aws`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ec2Registration;

/// The profile that a file names.
#[derive(Debug)]
struct Profile(Option<String>);

#[async_trait]
impl Registration for Ec2Registration {
    fn name(&self) -> &'static str {
        "aws"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn example(&self) -> Option<&'static str> {
        Some(
            "[aws]\nregion = \"eu-west-1\"\nmarket = [\"spot\", \"on-demand\"]\ninstance = [\"c7g.large\", \"c6g.large\"]\n\
             image = \"ubuntu-24.04\"\n\n[group.server]\ninstance = \"c7g.2xlarge\"\n",
        )
    }

    fn has_users(&self) -> bool {
        true
    }

    fn reader(&self) -> Box<dyn TableReader> {
        Box::new(Reader::default())
    }

    /// Whether the groups of a region can share a security group, with room for the rules that let machines of other
    /// regions in.
    fn check(&self, groups: &[Group]) -> Vec<String> {
        let groups: Vec<_> = groups
            .iter()
            .filter_map(|group| Some((group.count.get(), group.spec.get::<Ec2Spec>()?)))
            .collect();
        shared_groups(&groups).into_iter().chain(rules(&groups)).collect()
    }

    /// The profile and the regions: whatever else groups are to be, what was looked up for some is known for the others.
    fn connection(&self, request: &ConnectRequest<'_>) -> Option<String> {
        let (Ec2Options { profile, regions, .. }, is_configured) = asked(request);
        Some(format!("{profile:?} {regions:?} {is_configured}"))
    }

    async fn connect(&self, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        Ok(Backend::new(Arc::new(provider(request).await?), request.connector()?))
    }

    async fn examine(&self, request: &ConnectRequest<'_>, cancel: &CancellationToken) -> Vec<Finding> {
        if request.groups.is_empty() {
            return Vec::new();
        }
        let examined = async {
            match provider(request).await {
                Ok(provider) => examination::examine(&provider, request.groups, request.through).await,
                // Whoever connects hears it.
                Err(_) => Vec::new(),
            }
        };
        cancel.run_until_cancelled(examined).await.unwrap_or_default()
    }

    async fn reconnect(
        &self,
        record: &RunRecord,
        request: &ConnectRequest<'_>,
    ) -> Result<Backend, ProviderError> {
        let settings: Ec2Settings = serde_json::from_value(record.settings.clone())
            .map_err(|error| unreadable("the record of the run", error))?;
        let options = Ec2Options { address_service: options().address_service, ..settings.options() };
        backend(request, options).await
    }

    async fn reconnect_unrecorded(
        &self,
        directory: &RunEntry,
        request: &ConnectRequest<'_>,
    ) -> Result<Backend, ProviderError> {
        let recorded = recorded_options(request.state.root(), &directory.id())
            .map_err(|error| unreadable(&directory.path().join("aws").display().to_string(), error))?;
        let options = Ec2Options { address_service: options().address_service, ..recorded };
        backend(request, options).await
    }

    fn remembered(&self, root: &Path, run: &RunId, why: &str) -> Vec<Leftover> {
        crate::recorded_leftovers(root, run, why)
    }

    fn finds_by_tag(&self) -> bool {
        true
    }

    /// Looks in the regions that are named; without any, in the configured one or in all that are enabled.
    async fn survey(
        &self,
        query: &SurveyQuery,
        request: &ConnectRequest<'_>,
    ) -> Result<(Backend, Survey), ProviderError> {
        let SurveyQuery { regions, profile, everywhere, .. } = query.clone();
        let all = everywhere && regions.is_empty();
        let given = Ec2Options { profile, regions, ..options() };
        let mut provider = Ec2Provider::connect(request.state.root(), given.clone()).await?;
        if all {
            let regions = provider.enabled_regions().await?;
            provider = Ec2Provider::connect(request.state.root(), Ec2Options { regions, ..given }).await?;
        }
        let survey = provider.survey().await;
        Ok((Backend::new(Arc::new(provider), request.connector()?), survey))
    }
}

/// The provider for all regions that a file asks for.
async fn provider(request: &ConnectRequest<'_>) -> Result<Ec2Provider, ProviderError> {
    let (mut options, is_configured) = asked(request);
    // A group that names no region is in the configured one, which must then be the provider's first.
    if is_configured && !options.regions.is_empty() {
        let configured = Ec2Options { regions: Vec::new(), ..options.clone() };
        let configured = Ec2Provider::connect(request.state.root(), configured).await?;
        let mut regions = configured.settings().regions.clone();
        let others = options.regions.iter().filter(|region| !regions.contains(region));
        let others: Vec<String> = others.cloned().collect();
        regions.extend(others);
        options.regions = regions;
    }
    Ec2Provider::connect(request.state.root(), options).await
}

/// What a file asks for: its profile and the regions that groups name, and whether there is a group that names none.
fn asked(request: &ConnectRequest<'_>) -> (Ec2Options, bool) {
    let specs = || request.groups.iter().filter_map(|group| group.spec.get::<Ec2Spec>());
    let mut regions: Vec<String> = Vec::new();
    for region in specs().filter_map(|spec| spec.region.clone()) {
        if !regions.contains(&region) {
            regions.push(region);
        }
    }
    let profile = request.settings.get().and_then(|Profile(profile)| profile.clone());
    (Ec2Options { profile, regions, ..options() }, specs().any(|spec| spec.region.is_none()))
}

fn options() -> Ec2Options {
    Ec2Options { address_service: std::env::var(ADDRESS_SERVICE_VARIABLE).ok(), ..Ec2Options::default() }
}

async fn backend(request: &ConnectRequest<'_>, options: Ec2Options) -> Result<Backend, ProviderError> {
    let provider = Ec2Provider::connect(request.state.root(), options).await?;
    Ok(Backend::new(Arc::new(provider), request.connector()?))
}

fn unreadable(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> ProviderError {
    let message = format!("{what} doesn't tell the account and the regions of the run");
    ProviderError::new(ProviderErrorKind::Other, "settings", message).source(error)
}

/// Why the groups of a region can't share a security group.
fn shared_groups(groups: &[(u32, &Ec2Spec)]) -> Option<String> {
    let fits = |spec: &Ec2Spec| {
        let same = |other: &&Ec2Spec| other.region == spec.region && other.security_group.is_none();
        let differs = |other: &Ec2Spec| {
            other.ssh_from != spec.ssh_from
                || other.subnet.is_some() != spec.subnet.is_some()
                || (spec.ssh_from.is_empty() && other.reach != spec.reach)
        };
        spec.security_group.is_some() || !groups.iter().map(|(_, other)| *other).filter(same).any(differs)
    };
    if groups.iter().all(|(_, spec)| fits(spec)) {
        return None;
    }
    let message = "the groups of a region share one security group, so they have the same `ssh_from`, the same `reach` \
                   where that is not given, and all or none of them a `subnet`, of one network; give one of them a `security_group` of its own";
    Some(message.to_owned())
}

/// Why a region's security group would have too many rules.
fn rules(groups: &[(u32, &Ec2Spec)]) -> Option<String> {
    let mut regions: BTreeMap<Option<&String>, (usize, Vec<u16>, usize)> = BTreeMap::new();
    for (count, spec) in groups {
        let (machines, ports, from) = regions.entry(spec.region.as_ref()).or_default();
        *machines += *count as usize;
        ports.extend(&spec.open_ports);
        *from = (*from).max(spec.ssh_from.len().max(1));
    }
    let all: usize = regions.values().map(|(machines, ..)| machines).sum();
    for (region, (machines, ports, from)) in &mut regions {
        ports.sort_unstable();
        ports.dedup();
        // TCP and UDP for each port and machine elsewhere, SSH, and one for the group itself.
        let rules = 2 * ports.len() * (all - *machines) + *from + 1;
        if rules > MAX_RULES {
            let region = region.map_or("the configured region", String::as_str);
            return Some(format!(
                "the security group in {region} would need {rules} rules and can have {MAX_RULES}: {} open ports for {} \
                 machines in other regions; declare fewer `open_ports`, or give a `security_group` of your own",
                ports.len(),
                all - *machines
            ));
        }
    }
    None
}

/// Reads `[aws]`, and what a group says instead.
#[derive(Default)]
struct Reader {
    base: Ec2Spec,
    profile: Option<String>,
}

impl TableReader for Reader {
    fn all(&mut self, table: Table<'_>, values: &mut Values<'_, '_>) {
        for (key, _, value) in table.entries() {
            match key {
                "profile" => self.profile = values.word(value),
                _ => read(&mut self.base, key, value, values),
            }
        }
    }

    fn group(&mut self, group: &GroupTable<'_>, values: &mut Values<'_, '_>) -> Option<Machines> {
        let mut spec = self.base.clone();
        for (key, place, value) in group.table.entries() {
            match key {
                "profile" => self.profile_of_a_group(&place, value, values),
                _ => read(&mut spec, key, value, values),
            }
        }
        spec.user.clone_from(&group.common.user);
        let is_told = group.table.get("instance").is_some() || spec.shape.is_some();
        if spec.instances.is_empty() && !is_told {
            let help = "set `instance = \"c7g.large\"` there, or in `[aws]` for all groups".to_owned();
            values.problem(&group.place, "this group has no `instance`", Some(help));
        }
        let is_reserved = spec.markets.contains(&Market::Reservation);
        let own = group.table.get("reservation");
        if is_reserved && spec.reservations.is_empty() && own.is_none() {
            let help = "set `reservation = \"cr-…\"`, or `{ tag = \"team=blue\" }`".to_owned();
            values.problem(&group.place, "the market \"reservation\" needs a `reservation`", Some(help));
        } else if let Some(value) = own.filter(|_| !is_reserved && !spec.reservations.is_empty()) {
            let help = "add \"reservation\" to `market`".to_owned();
            values.problem(&value.place(), "nothing is taken from a reservation here", Some(help));
        }
        let is_metal = spec.instances.iter().any(|instance| instance.contains(".metal"));
        let inputs = spec.user_data.iter().map(|text| (USER_DATA.to_owned(), text.clone())).collect();
        let mut machines = Machines::of(MachineSpec::new(spec));
        machines.connect_timeout = is_metal.then_some(METAL_CONNECT_TIMEOUT);
        machines.inputs = inputs;
        Some(machines)
    }

    fn settings(&self) -> Settings {
        Settings::new(Profile(self.profile.clone()))
    }
}

impl Reader {
    fn profile_of_a_group(&mut self, place: &Place, value: Value<'_>, values: &mut Values<'_, '_>) {
        let profile = values.word(value);
        if profile.is_some() && profile != self.profile {
            let help = "say it once, in `[aws]`".to_owned();
            let message = "the machines of a run are in one account: a group can't have a profile of its own";
            values.problem(place, message, Some(help));
        }
    }
}

/// Takes one key into a spec. What can't be read is noted, and leaves the spec as it is.
fn read(spec: &mut Ec2Spec, key: &str, value: Value<'_>, values: &mut Values<'_, '_>) {
    match key {
        "region" => spec.region = values.word(value).or(spec.region.take()),
        "zone" => spec.zone = values.word(value).or(spec.zone.take()),
        "market" => set(&mut spec.markets, values.one_or_more(value, market)),
        "max_price" => spec.max_price = values.dollars(value).or(spec.max_price),
        "instance" if value.is_table() => {
            if let Some(shape) = shape(value, values) {
                (spec.instances, spec.shape) = (Vec::new(), Some(shape));
            }
        }
        "instance" => {
            if let Some(instances) = values.one_or_more(value, |values, value| values.word(value)) {
                (spec.instances, spec.shape) = (instances, None);
            }
        }
        "mixed" => set(&mut spec.mixed, values.boolean(value)),
        "image" => set(&mut spec.image, values.word(value)),
        "disk" => spec.disk = disk(value, values).or(spec.disk.take()),
        "subnet" => spec.subnet = id(value, "subnet-", values).or(spec.subnet.take()),
        "reach" => spec.reach = values.choice(value, key, &Reach::WORDS).or(spec.reach),
        "security_group" => spec.security_group = id(value, "sg-", values).or(spec.security_group.take()),
        "ssh_from" => set(&mut spec.ssh_from, values.one_or_more(value, |values, value| values.word(value))),
        "open_ports" => {
            let ports = values.list(value);
            let ports = ports.map(|list| list.into_iter().filter_map(|value| values.port(value)).collect());
            set(&mut spec.open_ports, ports);
        }
        "placement_group" => set(&mut spec.placement_group, values.boolean(value)),
        "iam_profile" => spec.iam_profile = values.word(value).or(spec.iam_profile.take()),
        "user_data" => spec.user_data = user_data(value, values).or(spec.user_data.take()),
        "tags" => tags(&mut spec.tags, value, values),
        "wait_for_cloud_init" => set(&mut spec.wait_for_cloud_init, values.boolean(value)),
        "reservation" => set(&mut spec.reservations, values.one_or_more(value, reservation)),
        "spot_block" => {
            set(&mut spec.native_spot_block, values.choice(value, key, &SPOT_BLOCKS));
        }
        // The others are those of every provider, which the core reads.
        _ => {}
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn market(values: &mut Values<'_, '_>, value: Value<'_>) -> Option<Market> {
    values.choice(value, "market", &Market::WORDS)
}

fn tags(tags: &mut Vec<(String, String)>, value: Value<'_>, values: &mut Values<'_, '_>) {
    let Some(table) = values.table(value) else { return };
    for (key, place, value) in table.entries() {
        if let Some(wrong) = tag::wrong_key(key) {
            values.problem(&place, wrong, None);
        } else if let Some(text) = values.text(value) {
            tags.retain(|(known, _)| known != key);
            tags.push((key.to_owned(), text.to_owned()));
        }
    }
}

fn id(value: Value<'_>, prefix: &str, values: &mut Values<'_, '_>) -> Option<String> {
    let word = values.word(value)?;
    if !word.starts_with(prefix) {
        let message = format!("`{word}` is no id: it begins with `{prefix}`");
        values.problem(&value.place(), message, None);
        return None;
    }
    Some(word)
}

fn reservation(values: &mut Values<'_, '_>, value: Value<'_>) -> Option<Reservation> {
    if !value.is_table() {
        return id(value, "cr-", values).map(Reservation::Id);
    }
    let table = values.table(value)?;
    values.keys(table, RESERVATION_KEYS);
    let Some(tag) = table.get("tag") else {
        values.problem(&value.place(), "this says no `tag`", Some("as `{ tag = \"team=blue\" }`".to_owned()));
        return None;
    };
    let text = values.text(tag)?;
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Some(Reservation::tag(key, value)),
        _ => {
            values.problem(
                &tag.place(),
                format!("`{text}` is no tag"),
                Some("write it as `team=blue`".to_owned()),
            );
            None
        }
    }
}

fn shape(value: Value<'_>, values: &mut Values<'_, '_>) -> Option<Shape> {
    let table = values.table(value)?;
    values.keys(table, SHAPE_KEYS);
    let usual = Shape::default();
    let is_open = table.get("vcpus").is_none() && table.get("memory").is_none();
    if is_open {
        let help = "as `{ vcpus = \"2..4\", memory = \"8GiB..\" }`".to_owned();
        values.problem(&value.place(), "this says neither `vcpus` nor `memory`", Some(help));
    }
    // All of it is read before any of it is missed, so that all that is wrong is noted.
    let vcpus = given(table, "vcpus", usual.vcpus, |value| match value.is_text() {
        true => amount(value, values, "`2..4`, `2..` or `4`", |text| text.parse().ok()),
        false => values.integer(value, &Form::Integer(1, u32::MAX)).map(|count| Amount::of(count..=count)),
    });
    let memory_gib = given(table, "memory", usual.memory_gib, |value| {
        amount(value, values, "`8GiB..16GiB`, `8GiB..` or `8GiB`", gib)
    });
    let arch = given(table, "arch", usual.arch, |value| {
        let choices = ARCHITECTURES.map(|arch| (arch, arch));
        values.choice(value, "arch", &choices).map(str::to_owned)
    });
    let generation = given(table, "generation", usual.generation, |value| {
        values.choice(value, "generation", &GENERATIONS)
    });
    let exclude = given(table, "exclude", usual.exclude, |value| {
        values.one_or_more(value, |values, value| pattern(value, values))
    });
    let shape = Shape {
        vcpus: vcpus?,
        memory_gib: memory_gib?,
        arch: arch?,
        generation: generation?,
        exclude: exclude?,
    };
    if let Some(wrong) = shape.wrong() {
        values.problem(&value.place(), wrong, None);
    }
    (!is_open).then_some(shape)
}

/// What a key of a table is read as, if it is there.
fn given<'t, T>(
    table: Table<'t>,
    key: &str,
    usual: T,
    read: impl FnOnce(Value<'t>) -> Option<T>,
) -> Option<T> {
    table.get(key).map_or(Some(usual), read)
}

fn amount(
    value: Value<'_>,
    values: &mut Values<'_, '_>,
    example: &str,
    number: impl Fn(&str) -> Option<u32>,
) -> Option<Amount> {
    let text = values.text(value)?;
    let (wrong, help) = match Amount::read(text, number) {
        Some(amount) if !amount.is_empty() => return Some(amount),
        Some(_) => (format!("nothing is within `{text}`"), None),
        None => (format!("`{text}` is no such amount"), Some(format!("write it as {example}"))),
    };
    values.problem(&value.place(), wrong, help);
    None
}

/// A size in GiB.
fn gib(text: &str) -> Option<u32> {
    let number = |text: &str| text.trim().parse::<u32>().ok();
    match text.strip_suffix("TiB") {
        Some(tib) => number(tib)?.checked_mul(1024),
        None => number(text.strip_suffix("GiB")?),
    }
}

fn pattern(value: Value<'_>, values: &mut Values<'_, '_>) -> Option<String> {
    let text = values.text(value)?;
    if let Some(wrong) = wrong_pattern(text) {
        values.problem(&value.place(), wrong, Some("as `t*` or `m5a.*`".to_owned()));
        return None;
    }
    Some(text.to_owned())
}

fn disk(value: Value<'_>, values: &mut Values<'_, '_>) -> Option<Disk> {
    let table = values.table(value)?;
    values.keys(table, DISK_KEYS);
    let gib = table.get("size").and_then(|value| values.size(value));
    let kind = match table.get("type") {
        Some(value) => disk_type(value, values),
        None => Some("gp3".to_owned()),
    };
    let iops = table.get("iops").and_then(|value| values.integer(value, &RATE));
    let throughput = table.get("throughput").and_then(|value| values.integer(value, &RATE));
    Some(Disk { gib, kind: kind?, iops, throughput })
}

fn disk_type(value: Value<'_>, values: &mut Values<'_, '_>) -> Option<String> {
    let kind = values.text(value)?;
    if let Some(wrong) = wrong_disk_type(kind) {
        let help = values.suggest(kind, DISK_TYPES.iter().copied());
        values.problem(&value.place(), wrong, help);
        return None;
    }
    Some(kind.to_owned())
}

fn user_data(value: Value<'_>, values: &mut Values<'_, '_>) -> Option<String> {
    let path = values.file(value)?;
    let wrong = match values.contents(value, &path, USER_DATA_FILE_LIMIT)?.map(String::from_utf8) {
        Some(Ok(text)) => return Some(text),
        Some(Err(_)) => "is not UTF-8 text; compressed user data isn't supported".to_owned(),
        None => format!("is larger than {} KiB; EC2 takes less", USER_DATA_FILE_LIMIT >> 10),
    };
    values.problem(&value.place(), format!("`{}` {wrong}", path.display()), None);
    None
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tsunami_core::Connector;
    use tsunami_core::Plan;
    use tsunami_core::experiment::{Experiment, Loader, Problems};
    use tsunami_core::registry::{Connection, MakeConnector, Registry};

    use super::*;

    fn load(text: &str) -> Result<Experiment, Problems> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.toml");
        fs::write(&file, text).unwrap();
        fs::write(directory.path().join("boot.sh"), "#!/bin/sh\n").unwrap();
        fs::write(directory.path().join("long"), vec![b'x'; USER_DATA_FILE_LIMIT as usize + 1]).unwrap();
        Loader::new().registry(&registry()).load(file)
    }

    fn registry() -> Registry {
        Registry::default().with(Arc::new(Ec2Registration)).connector(Arc::new(Way))
    }

    /// A way to machines of which a file says how long it may take.
    #[derive(Debug)]
    struct Way;

    impl MakeConnector for Way {
        fn name(&self) -> &'static str {
            "way"
        }

        fn keys(&self) -> &'static [Key] {
            const { &[Key::new("connect_timeout", Form::Duration, "how long it may take")] }
        }

        fn read(&self, table: Table<'_>, values: &mut Values<'_, '_>) -> Connection {
            let mut connection = Connection::default();
            connection.connect_timeout =
                table.get("connect_timeout").and_then(|value| values.duration(value));
            connection
        }

        fn connector(&self, _: &Settings, _: bool) -> Arc<dyn Connector> {
            unreachable!("nothing is launched")
        }
    }

    fn refuses(text: &str, expected: &[&str]) {
        let problems = load(text).expect_err("this should be refused");
        let line = |problem| {
            let place = problems.place(problem).map(|(line, column)| format!("{line}:{column} "));
            let help = problem.advice().map(|help| format!(" ({help})")).unwrap_or_default();
            format!("{}{}{help}", place.unwrap_or_default(), problem.message())
        };
        assert_eq!(problems.iter().map(line).collect::<Vec<_>>(), expected);
    }

    fn specs(experiment: &Experiment) -> Vec<&Ec2Spec> {
        experiment.groups.iter().map(|group| group.spec.get().unwrap()).collect()
    }

    #[test]
    fn a_group_says_otherwise_or_more() {
        let experiment = load(
            r#"name = "x"
provider = "aws"
budget = 5
[aws]
region = "eu-west-1"
market = ["spot", "on-demand"]
instance = ["c7g.large", "c6g.large"]
tags = { team = "blue" }
[group.server]
instance = "c7g.2xlarge"
disk = { size = "30GiB" }
market = "spot-block"
on_interruption = "replace"
tags = { role = "server" }
user_data = "boot.sh"
[group.client]
count = 3"#,
        )
        .unwrap();
        let [server, client] = specs(&experiment)[..] else { panic!("{experiment:?}") };
        assert_eq!(experiment.budget, Some(5.0));
        assert_eq!(
            (&server.instances, &server.markets),
            (&vec!["c7g.2xlarge".into()], &vec![Market::SpotBlock])
        );
        let disk = Disk { gib: Some(30), kind: "gp3".into(), iops: None, throughput: None };
        assert_eq!((&server.disk, server.tags.len()), (&Some(disk), 2));
        assert!(experiment.groups[0].replace_interrupted);
        assert_eq!(experiment.groups[0].inputs, [(USER_DATA.to_owned(), "#!/bin/sh\n".to_owned())]);
        assert_eq!(
            (client.instances.len(), client.markets.len(), client.region.as_deref(), client.image.as_str()),
            (2, 2, Some("eu-west-1"), "ubuntu-24.04")
        );
        assert!(!experiment.groups[1].replace_interrupted);
    }

    #[test]
    fn what_belongs_to_every_provider_stands_in_a_group_in_the_table_or_at_the_top() {
        let experiment = load(
            r#"name = "x"
provider = "aws"
user = "top"
on_interruption = "replace"
[aws]
instance = "m"
user = "table"
[group.a]
[group.b]
user = "group"
on_interruption = "fail""#,
        )
        .unwrap();
        let users: Vec<_> = specs(&experiment).iter().map(|spec| spec.user.as_deref()).collect();
        assert_eq!(users, [Some("table"), Some("group")]);
        let replace: Vec<_> = experiment.groups.iter().map(|group| group.replace_interrupted).collect();
        assert_eq!(replace, [true, false]);
    }

    #[test]
    fn what_machines_on_ec2_cannot_be() {
        refuses(
            r#"name = "x"
provider = "aws"
budget = 0
[aws]
market = ["spot", "sopt"]
max_price = "cheap"
mixed = "yes"
disk = { size = "30", type = "gp9", iops = "many", throughput = 0 }
subnet = "eu-west-1a"
open_ports = [0]
tags = { "tsunami:run" = "mine" }
spot_block = "never"
instence = "c7g.large"
[group.a]
profile = "other"
"#,
            &[
                "3:10 this is no amount of US dollars above zero",
                r#"5:19 `market` can't be "sopt" (did you mean `spot`?)"#,
                "6:13 expected an amount of US dollars, such as 2.5, found a string",
                "7:9 expected true or false, found a string (write `true` or `false`, without quotes)",
                "8:17 `30` is no size of a disk (write it as `30GiB`, or `2TiB`)",
                "8:30 `gp9` is no type of disk (did you mean `gp3`?)",
                "8:44 expected a whole number, found a string",
                "8:65 this is no whole number above zero, or far too large",
                "9:10 `eu-west-1a` is no id: it begins with `subnet-`",
                "10:15 a port is a number from 1 to 65535",
                "11:10 the tag `tsunami:run` is not for users to set",
                r#"12:14 `spot_block` can't be "never" (known here: promise, native)"#,
                "13:1 unknown key `instence` (did you mean `instance`?)",
                "14:8 this group has no `instance` (set `instance = \"c7g.large\"` there, or in `[aws]` for all groups)",
                "15:1 the machines of a run are in one account: a group can't have a profile of its own (say it once, in `[aws]`)",
            ],
        );
        refuses(
            "name = \"x\"\n[aws]\n[group.a]\ninstance = \"c7g.large\"",
            &[
                r#"2:2 `[aws]` is for the provider "aws" (set `provider = "aws"`)"#,
                r#"4:1 `instance` is for the provider "aws" (set `provider = "aws"`)"#,
            ],
        );
        let text = "name = 'x'\nprovider = 'aws'\n[group.a]\ninstance = 'm'\nuser_data = 'long'";
        let problems = load(text).unwrap_err().to_string();
        assert!(problems.contains("long` is larger than 64 KiB; EC2 takes less"), "{problems}");
    }

    #[test]
    fn an_instance_may_be_told_by_what_it_has_to_have() {
        let experiment = load(
            r#"name = "x"
provider = "aws"
[aws]
instance = { vcpus = "2..4", memory = "8GiB..", arch = "arm64", generation = "any", exclude = "t*" }
[vars]
least = 4
[group.a]
[group.b]
instance = "c7g.large"
[group.c]
instance = { vcpus = 4 }
[group.d]
instance = { vcpus = "{{ least }}..", memory = "..1TiB" }"#,
        )
        .unwrap_or_else(|problems| panic!("{problems}"));
        let [a, b, c, d] = specs(&experiment)[..] else { panic!("{experiment:?}") };
        let shape = |spec: &Ec2Spec| spec.shape.as_ref().map(ToString::to_string);
        assert_eq!(shape(a).unwrap(), "2 to 4 vCPUs, at least 8 GiB, arm64, any generation, none of t*");
        assert_eq!((shape(b), b.instances.len(), a.instances.len()), (None, 1, 0));
        assert_eq!(shape(c).unwrap(), "4 vCPUs, any number of GiB, x86_64, current generation");
        assert_eq!(shape(d).unwrap(), "at least 4 vCPUs, at most 1024 GiB, x86_64, current generation");
        refuses(
            r#"name = "x"
provider = "aws"
[group.a]
instance = { vcpus = "4..2", memory = "8", arch = "sparc", generation = "old", exclude = ["t *"], vcpu = 2 }
[group.b]
instance = { arch = "arm64" }
[group.c]
instance = { vcpus = 0 }
"#,
            &[
                "4:22 nothing is within `4..2`",
                "4:39 `8` is no such amount (write it as `8GiB..16GiB`, `8GiB..` or `8GiB`)",
                r#"4:51 `arch` can't be "sparc" (known here: x86_64, arm64)"#,
                r#"4:73 `generation` can't be "old" (known here: current, previous, any)"#,
                "4:91 `t *` is no instance type, nor a pattern of some (as `t*` or `m5a.*`)",
                "4:99 unknown key `vcpu` (did you mean `vcpus`?)",
                "6:12 this says neither `vcpus` nor `memory` (as `{ vcpus = \"2..4\", memory = \"8GiB..\" }`)",
                "8:22 this is no whole number above zero, or far too large",
            ],
        );
    }

    #[test]
    fn reserved_capacity_is_named_by_its_id_or_by_a_tag() {
        let experiment = load(
            r#"name = "x"
provider = "aws"
[aws]
instance = "m"
market = ["reservation", "on-demand"]
reservation = ["cr-1", { tag = "team=blue=1" }]
[group.a]
[group.b]
market = "spot"
[group.c]
reservation = { tag = "k=" }"#,
        )
        .unwrap_or_else(|problems| panic!("{problems}"));
        let [a, b, c] = specs(&experiment)[..] else { panic!("{experiment:?}") };
        assert_eq!(a.markets, [Market::Reservation, Market::OnDemand]);
        assert_eq!(a.reservations, [Reservation::id("cr-1"), Reservation::tag("team", "blue=1")]);
        assert_eq!((b.markets.len(), &c.reservations[..]), (1, &[Reservation::tag("k", "")][..]));
        refuses(
            r#"name = "x"
provider = "aws"
[aws]
instance = "m"
[group.a]
market = "reservation"
[group.b]
reservation = "cr-1"
[group.c]
market = "reservation"
reservation = ["sr-1", { tag = "blue" }, { tags = "a=b" }, {}]
"#,
            &[
                "5:8 the market \"reservation\" needs a `reservation` (set `reservation = \"cr-…\"`, or `{ tag = \"team=blue\" }`)",
                "8:15 nothing is taken from a reservation here (add \"reservation\" to `market`)",
                "11:16 `sr-1` is no id: it begins with `cr-`",
                "11:32 `blue` is no tag (write it as `team=blue`)",
                "11:42 this says no `tag` (as `{ tag = \"team=blue\" }`)",
                "11:44 unknown key `tags` (did you mean `tag`?)",
                "11:60 this says no `tag` (as `{ tag = \"team=blue\" }`)",
            ],
        );
    }

    #[test]
    fn groups_that_cannot_be_in_one_region_together() {
        let groups = "[group.a]\nssh_from = '10.0.0.0/8'\n[group.b]\n";
        let text = format!("name = 'x'\nprovider = 'aws'\n[aws]\ninstance = 'm'\n{groups}");
        let problems = load(&text).unwrap_err().to_string();
        assert!(
            problems.contains("error: the groups of a region share one security group, so"),
            "{problems}"
        );
        let groups = "[group.a]\nregion = 'a'\nopen_ports = [1, 2, 3]\n[group.b]\nregion = 'b'\ncount = 10\n";
        let text = format!("name = 'x'\nprovider = 'aws'\n[aws]\ninstance = 'm'\n{groups}");
        let problems = load(&text).unwrap_err().to_string();
        assert!(
            problems.contains("in a would need 62 rules and can have 60: 3 open ports for 10"),
            "{problems}"
        );
    }

    mod keeps {
        tsunami_core::registration_conformance!(super::registry(), "aws", "instance = 'm'");
    }

    #[test]
    fn bare_metal_is_waited_for_unless_the_file_says_for_how_long() {
        let waits = |instance: &str, more: &str| {
            let text = format!(
                "name = \"x\"\nprovider = \"aws\"\n[aws]\ninstance = \"{instance}\"\n[group.a]\n[[step]]\n\
                 on = \"a\"\nrun = \"true\"\n{more}"
            );
            load(&text).unwrap_or_else(|problems| panic!("{problems:?}")).plan().connect_timeout
        };
        assert_eq!(waits("c7g.metal", ""), METAL_CONNECT_TIMEOUT);
        assert_eq!(waits("c7i.metal-24xl", ""), METAL_CONNECT_TIMEOUT);
        assert_eq!(waits("c7g.large", ""), Plan::new("x").connect_timeout);
        let said = waits("c7g.metal", "[way]\nconnect_timeout = \"3m\"\n");
        assert_eq!(said, Duration::from_secs(180));
    }
}
