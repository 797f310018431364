//! Machines: how they are named, where they are, and what is known of them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::limits::{MACHINE_ID_LIMIT, SHOWN_VALUE_LIMIT};
use crate::names::is_group_name;
use crate::provider::Price;
use crate::text::shorten;

/// The identity of a run, carried as a tag by everything the run creates.
///
/// It begins with the time of its creation (UTC), so that listings sort by age, and ends with 13 characters
/// that hold 64 random bits: in an account that many share, no two runs get the same. It consists of ASCII
/// letters, digits and `-` only: safe in a path, a tag and a host name. Cheap to clone.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tsunami_core::RunId;
///
/// let id = RunId::generate(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000), 7);
/// assert!(id.as_str().starts_with("20231114-221320-"));
/// assert_eq!(id.as_str().parse::<RunId>(), Ok(id));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(Arc<str>);

/// A text that cannot be the id of a run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a run id: up to 64 ASCII letters, digits and `-`, not beginning with `-`")]
pub struct InvalidRunId(String);

impl RunId {
    /// Makes the id of a run created at `now`; `seed` is the random part, all of it.
    pub fn generate(now: SystemTime, seed: u64) -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz023456789";
        let mut id: String = humantime::format_rfc3339_seconds(now)
            .to_string()
            .chars()
            .filter_map(|c| match c {
                'T' => Some('-'),
                c => c.is_ascii_digit().then_some(c),
            })
            .collect();
        id.push('-');
        for i in 0..13 {
            id.push(char::from(ALPHABET[(seed >> (i * 5)) as usize % ALPHABET.len()]));
        }
        Self(id.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has the form of what [`generate`](Self::generate) makes. Any short word may be an id.
    #[cfg(feature = "experiment")]
    pub(crate) fn is_of_a_moment(&self) -> bool {
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        match self.0.split('-').collect::<Vec<_>>()[..] {
            [day, time, rest] => {
                (day.len(), time.len(), rest.len()) == (8, 6, 13) && is_number(day) && is_number(time)
            }
            _ => false,
        }
    }
}

impl std::str::FromStr for RunId {
    type Err = InvalidRunId;

    fn from_str(text: &str) -> Result<Self, InvalidRunId> {
        let usable = text.len() <= 64
            && !text.starts_with('-')
            && !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if usable { Ok(Self(text.into())) } else { Err(InvalidRunId(text.to_owned())) }
    }
}

impl TryFrom<String> for RunId {
    type Error = InvalidRunId;

    fn try_from(text: String) -> Result<Self, InvalidRunId> {
        text.parse()
    }
}

impl From<RunId> for String {
    fn from(id: RunId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A machine's id in its provider's own words (`i-0abc…` on EC2). Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct MachineId(Arc<str>);

impl MachineId {
    /// Wraps a provider's id.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into().into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for MachineId {
    fn from(id: String) -> Self {
        Self(id.into())
    }
}

impl From<MachineId> for String {
    fn from(id: MachineId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a machine was made from, in its provider's words. Those that have it in common take about as long to come up.
///
/// ```
/// use tsunami_core::MachineKind;
///
/// let kind = MachineKind::default().machine_type("c7g.large").image("ami-0abc").region("eu-west-1");
/// assert!(!kind.is_unknown() && MachineKind::default().is_unknown());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MachineKind {
    /// Its type, or size.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub machine_type: Option<String>,
    /// The image that it booted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The region that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

impl MachineKind {
    /// Whether nothing of it is known.
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }

    /// Sets its type.
    pub fn machine_type(mut self, machine_type: impl Into<String>) -> Self {
        self.machine_type = Some(machine_type.into());
        self
    }

    /// Sets its image.
    pub fn image(mut self, image: impl Into<String>) -> Self {
        self.image = Some(image.into());
        self
    }

    /// Sets its region.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }
}

/// What a provider says of one machine.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tsunami_core::{Addresses, Login, Machine, MachineId, MachineState, Price, RunId};
///
/// let run = RunId::generate(SystemTime::now(), 7);
/// let machine = Machine::new(MachineId::new("vm-17"), run, "client", 0, MachineState::Running)
///     .addresses(Addresses::default().public("198.51.100.7").private("10.0.0.7").network("rack-3"))
///     .login(Login::default().user("admin").port(2222))
///     .expires(SystemTime::now() + Duration::from_secs(3600))
///     .description("a small machine in rack 3")
///     .price(Price::PerHour(0.02));
/// assert_eq!(machine.name(), "client-0");
/// assert!(machine.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Machine {
    /// The provider's id.
    pub id: MachineId,
    /// The run it belongs to.
    pub run: RunId,
    /// The group it belongs to.
    pub group: String,
    /// Its place in the group, from 0. The engine sets it from the order of [`Provider::launch`]'s answer;
    /// what a listing says is used only where that answer was lost.
    ///
    /// [`Provider::launch`]: crate::Provider::launch
    pub index: u32,
    /// Where it is in its life.
    pub state: MachineState,
    /// Where it can be reached.
    pub addresses: Addresses,
    /// How to log in.
    pub login: Login,
    /// When it ends itself, if it has a deadline of its own.
    pub expires: Option<SystemTime>,
    /// What it is, for people: `c7g.large in eu-west-1b, spot`.
    #[serde(default)]
    pub description: String,
    /// What it was made from, where its provider tells.
    #[serde(default, skip_serializing_if = "MachineKind::is_unknown")]
    pub kind: MachineKind,
    /// What it costs, as far as its provider can tell from its own records.
    #[serde(default)]
    pub price: Price,
    /// Why it ended, where its provider says so and nobody asked for it.
    #[serde(default)]
    pub ended: Option<String>,
    /// Why the provider takes it back, or took it, before its time.
    #[serde(default)]
    pub interrupted: Option<String>,
}

impl Machine {
    /// A machine of which nothing but its place is known.
    pub fn new(id: MachineId, run: RunId, group: impl Into<String>, index: u32, state: MachineState) -> Self {
        Self {
            id,
            run,
            group: group.into(),
            index,
            state,
            addresses: Addresses::default(),
            login: Login::default(),
            expires: None,
            description: String::new(),
            kind: MachineKind::default(),
            price: Price::Unknown,
            ended: None,
            interrupted: None,
        }
    }

    /// Sets where it can be reached.
    pub fn addresses(mut self, addresses: Addresses) -> Self {
        self.addresses = addresses;
        self
    }

    /// Sets how to log in.
    pub fn login(mut self, login: Login) -> Self {
        self.login = login;
        self
    }

    /// Sets when it ends itself.
    pub fn expires(mut self, at: SystemTime) -> Self {
        self.expires = Some(at);
        self
    }

    /// Sets what it is, for people.
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// Sets what it was made from.
    pub fn kind(mut self, kind: MachineKind) -> Self {
        self.kind = kind;
        self
    }

    /// Sets what it costs.
    pub fn price(mut self, price: Price) -> Self {
        self.price = price;
        self
    }

    /// Sets why it ended.
    pub fn ended(mut self, why: impl Into<String>) -> Self {
        self.ended = Some(why.into());
        self
    }

    /// Sets why the provider takes it back, or took it.
    pub fn interrupted(mut self, why: impl Into<String>) -> Self {
        self.interrupted = Some(why.into());
        self
    }

    /// The name users know it by: `<group>-<index>`.
    pub fn name(&self) -> String {
        machine_name(&self.group, self.index)
    }

    /// Fails if a name, an address or a login is none. Providers hand on what services say; who uses a
    /// machine's fields in a path, a line or a configuration may rely on their form only after this.
    pub fn check(&self) -> Result<(), InvalidMachine> {
        let Self { id, group, addresses, login, .. } = self;
        let field = |field, value: &str| InvalidMachine { field, value: shown(value) };
        if id.0.is_empty() || id.0.len() > MACHINE_ID_LIMIT || id.0.chars().any(char::is_control) {
            return Err(field("id", &id.0));
        }
        if !is_group_name(group) {
            return Err(field("group", group));
        }
        let hosts = [
            ("public address", &addresses.public),
            ("private address", &addresses.private),
            ("host", &login.host),
        ];
        for (name, host) in hosts {
            if let Some(host) = host.as_deref().filter(|host| !is_host(host)) {
                return Err(field(name, host));
            }
        }
        let texts = [("user", &login.user), ("host key", &login.host_key), ("directory", &login.directory)];
        for (name, text) in texts {
            let odd = |text: &&str| text.starts_with('-') || text.chars().any(char::is_control);
            if let Some(text) = text.as_deref().filter(odd) {
                return Err(field(name, text));
            }
        }
        Ok(())
    }
}

/// A field of a [`Machine`] that cannot be what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` cannot be a machine's {field}")]
#[non_exhaustive]
pub struct InvalidMachine {
    /// Which field.
    pub field: &'static str,
    /// What it holds, escaped and cut for people.
    pub value: String,
}

/// Whether a text can be an address or the name of a host, or says that there is none: printable ASCII that
/// means nothing to a shell.
fn is_host(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !"'`\"$\\;&<>|(){}*?!#,".contains(c);
    text.len() <= 255 && !text.starts_with('-') && text.chars().all(plain)
}

/// A value that was refused, fit to be shown: escaped, and not all of it if it is long.
pub fn shown(value: &str) -> String {
    shorten(value, SHOWN_VALUE_LIMIT).chars().flat_map(char::escape_debug).collect()
}

/// The name of the machine at place `index` of `group`: `client-0`.
pub(crate) fn machine_name(group: &str, index: u32) -> String {
    format!("{group}-{index}")
}

/// Where a machine is in its life.
///
/// It stays as it is: who doesn't know a state can't tell whether a machine of it still costs anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    /// Asked for, not running yet.
    Pending,
    /// Running; its addresses are known. Whether it answers is another question.
    Running,
    /// On its way out.
    Stopping,
    /// Gone for good. Providers may go on listing such machines for a while.
    Gone,
}

/// Where a machine can be reached. Nothing is known by default.
///
/// ```
/// # use tsunami_core::Addresses;
/// let addresses = Addresses::default().private("10.0.0.7").network("vpc-1").public("198.51.100.7");
/// assert_eq!((addresses.internal(), addresses.external()), (Some("10.0.0.7"), Some("198.51.100.7")));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Addresses {
    /// The address seen from anywhere.
    pub public: Option<String>,
    /// The address seen from machines of the same [`network`](Self::network).
    pub private: Option<String>,
    /// Names the private network; two machines reach each other's private address if they agree on it.
    pub network: Option<String>,
}

impl Addresses {
    /// Sets the address seen from anywhere.
    pub fn public(mut self, address: impl Into<String>) -> Self {
        self.public = Some(address.into());
        self
    }

    /// Sets the address seen from machines of the same network.
    pub fn private(mut self, address: impl Into<String>) -> Self {
        self.private = Some(address.into());
        self
    }

    /// Names the private network.
    pub fn network(mut self, name: impl Into<String>) -> Self {
        self.network = Some(name.into());
        self
    }

    /// The address by which a machine reaches itself: private if there is one.
    pub fn internal(&self) -> Option<&str> {
        self.private.as_deref().or(self.public.as_deref())
    }

    /// The address by which the controller reaches the machine: public if there is one.
    pub fn external(&self) -> Option<&str> {
        self.public.as_deref().or(self.private.as_deref())
    }

    /// The address by which a machine at `viewer` reaches this one: private within a network, public across.
    ///
    /// ```
    /// use tsunami_core::Addresses;
    ///
    /// let at = |public, private, network| Addresses::default().public(public).private(private).network(network);
    /// let (a, b, c) = (at("1.0.0.1", "10.0.0.1", "eu"), at("1.0.0.2", "10.0.0.2", "eu"), at("1.0.0.3", "10.0.0.1", "us"));
    /// assert_eq!(b.address_from(&a), Some("10.0.0.2"));
    /// assert_eq!(c.address_from(&a), Some("1.0.0.3"));
    /// ```
    pub fn address_from(&self, viewer: &Addresses) -> Option<&str> {
        let together = self.network.is_some() && self.network == viewer.network;
        if together { self.internal() } else { self.external() }
    }
}

/// How to log in to a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Login {
    /// The user to log in as; `None` leaves it to the connector's configuration.
    pub user: Option<String>,
    /// The name or address to connect to, where that is not [`Addresses::external`].
    pub host: Option<String>,
    /// The port to connect to; `None` leaves it to the connector's configuration.
    pub port: Option<u16>,
    /// The machine's public host key as OpenSSH writes it (`ssh-ed25519 AAAA…`), if the provider put it
    /// there; `None` where the connector must know it from elsewhere.
    pub host_key: Option<String>,
    /// The directory, relative to the user's home, that belongs to the run on a machine that doesn't:
    /// commands run there, and the connector makes it, with a watchdog that ends the run's processes at the
    /// deadline. `None` where the whole machine belongs to the run.
    pub directory: Option<String>,
}

impl Login {
    /// Sets the user to log in as.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Sets the name or address to connect to.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Sets the port to connect to.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Sets the machine's public host key, as OpenSSH writes it.
    pub fn host_key(mut self, key: impl Into<String>) -> Self {
        self.host_key = Some(key.into());
        self
    }

    /// Sets the directory, relative to the user's home, that belongs to the run.
    pub fn directory(mut self, directory: impl Into<String>) -> Self {
        self.directory = Some(directory.into());
        self
    }
}

/// When the machines of a run end, whatever happens.
///
/// Both readings are armed on the machine and the earlier one fires: the relative one holds when a clock is
/// wrong, the absolute one when a machine was suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// The absolute end.
    pub at: SystemTime,
    /// The longest a machine may live, counted from its own birth.
    pub lifetime: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_that_could_harm_a_path_or_a_command_are_refused() {
        for bad in ["", "-rf", "a/b", "..", "a b", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<RunId>().is_err(), "{bad:?} was accepted");
        }
        assert!(serde_json::from_str::<RunId>("\"../x\"").is_err());
    }

    #[test]
    fn every_bit_of_the_seed_is_in_a_run_id() {
        let ids: std::collections::BTreeSet<_> =
            (0..64).map(|bit| RunId::generate(SystemTime::UNIX_EPOCH, 1 << bit)).collect();
        assert_eq!(ids.len(), 64);
        assert!(ids.iter().all(|id| id.as_str().len() == "19700101-000000-".len() + 13));
        assert!("20260101-000000-aaaa".parse::<RunId>().is_ok(), "ids of older versions stay valid");
    }

    #[test]
    fn machines_whose_fields_are_none_are_refused_by_name() {
        let machine = || Machine {
            id: MachineId::new("i-0abc"),
            run: "20260101-aaaa".parse().unwrap(),
            group: "node".to_owned(),
            index: 0,
            state: MachineState::Running,
            addresses: Addresses { public: Some("fe80::1%eth0".to_owned()), ..Addresses::default() },
            login: Login {
                user: Some("ubuntu".to_owned()),
                host: Some("box.example".to_owned()),
                port: None,
                host_key: None,
                directory: None,
            },
            expires: None,
            description: String::new(),
            kind: MachineKind::default(),
            price: Price::Free,
            ended: None,
            interrupted: None,
        };
        assert_eq!(machine().check(), Ok(()));
        type Spoil = fn(&mut Machine, String);
        let fields: [(&str, Spoil); 6] = [
            ("id", |machine, text| machine.id = MachineId::new(text)),
            ("group", |machine, text| machine.group = text),
            ("public address", |machine, text| machine.addresses.public = Some(text)),
            ("private address", |machine, text| machine.addresses.private = Some(text)),
            ("host", |machine, text| machine.login.host = Some(text)),
            ("user", |machine, text| machine.login.user = Some(text)),
        ];
        for (field, spoil) in fields {
            let mut spoiled = machine();
            spoil(&mut spoiled, format!("a\n  ProxyCommand evil {}", "x".repeat(300)));
            let error = spoiled.check().unwrap_err();
            assert_eq!(error.field, field);
            assert!(!error.to_string().contains('\n') && error.to_string().len() < 200, "{error}");
        }
        for bad in ["$(id)", "a b", "-oProxyCommand=x", "`id`", "a\u{85}b"] {
            let mut spoiled = machine();
            spoiled.addresses.public = Some(bad.to_owned());
            assert!(spoiled.check().is_err(), "{bad:?} was accepted");
        }
    }
}
