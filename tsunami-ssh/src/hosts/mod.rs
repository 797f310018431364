//! Machines that exist already.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::net::lookup_host;
use tokio::time::Instant;
use tsunami_core::{
    Addresses, BoxError, Connector, LaunchRequest, Leftover, Login, Machine, MachineId, MachineSpec,
    MachineState, Price, Provider, ProviderError, ProviderErrorKind, Quote, RunEntry, RunFilter, RunId,
    RunStore, Session, SessionError, SessionErrorKind, private,
};

use crate::blocking::{Together, blocking};
use crate::config::Word;
use crate::config::is_user;
use crate::watchdog::{self, Arming};

/// Arms a host; its beginning says how.
const ARM: &str = include_str!("arm.sh");

/// Ends what the run has on a host; its beginning says how.
const REAP: &str = include_str!("reap.sh");

/// How long a host may take to answer when the run leaves it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);

/// Takes machines that exist already, in place of launching them.
///
/// ```no_run
/// use std::sync::Arc;
/// use tsunami_core::{Error, Group, MachineSpec, Plan, RunStore, Tsunami};
/// use tsunami_ssh::{HostsProvider, HostsSpec, SshConnector, SshOptions};
///
/// # async fn example() -> Result<(), Error> {
/// let ssh = Arc::new(SshConnector::new(SshOptions::default().jump("me@bastion.example")));
/// let provider = HostsProvider::new(RunStore::standard()?.root(), ssh.clone());
/// let hosts = ["admin@10.0.0.5", "admin@10.0.0.6"].map(|host| host.parse().map_err(Error::other));
/// let spec = HostsSpec::new(hosts.into_iter().collect::<Result<Vec<_>, _>>()?);
/// // One machine of the group for each host.
/// let plan = Plan::new("hello").group(Group::new("node", MachineSpec::new(spec)).count(2));
/// let uptime = async |cluster: tsunami_core::Cluster| cluster.hosts()[1].run("uptime").await;
/// println!("{}", Tsunami::new(Arc::new(provider), ssh).run(plan, uptime).await?.stdout());
/// # Ok(()) }
/// ```
///
/// Everything a run puts on such a machine lives in `~/.tsunami/<run-id>` and is removed at the end; the run's processes
/// are ended at teardown, and at the deadline by a watchdog of the machine's own. What commands changed elsewhere stays.
/// Host keys are checked against the user's known hosts.
///
/// Nothing runs on a host before its watchdog watches: the directory in which commands begin is there only then. A
/// watchdog that has gone since, because the host was started again, has a successor as soon as anybody connects to
/// the run. `launch` only writes down which hosts the run takes; those that nothing was put on are not visited again.
#[derive(Debug)]
pub struct HostsProvider {
    root: PathBuf,
    connector: Arc<dyn Connector>,
    /// Notes that are not written yet.
    untouched: Together<PathBuf>,
}

/// The hosts of a group: the [`MachineSpec`] of a [`HostsProvider`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostsSpec {
    /// One for each machine of the group.
    pub hosts: Vec<HostAddress>,
}

impl HostsSpec {
    /// Takes these hosts, one for each machine of the group.
    pub fn new(hosts: impl IntoIterator<Item = HostAddress>) -> Self {
        Self { hosts: hosts.into_iter().collect() }
    }
}

/// Where a host is: `[user@]host[:port]`, where the host is an address, a name, or a name in an ssh_config.
///
/// ```
/// use tsunami_ssh::HostAddress;
///
/// let host: HostAddress = "admin@10.0.0.5:2222".parse()?;
/// assert_eq!((host.user.as_deref(), host.host.as_str(), host.port), (Some("admin"), "10.0.0.5", Some(2222)));
/// assert!("-oProxyCommand=evil".parse::<HostAddress>().is_err());
/// # Ok::<(), tsunami_ssh::InvalidHost>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// The user to log in as, if it is given.
    pub user: Option<String>,
    /// The address or name.
    pub host: String,
    /// The port, if it is given.
    pub port: Option<u16>,
}

/// A text that names no host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidHost(String);

impl fmt::Display for InvalidHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` names no host: write it as [user@]host[:port]", self.0.escape_debug())
    }
}

impl std::error::Error for InvalidHost {}

impl FromStr for HostAddress {
    type Err = InvalidHost;

    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let invalid = || InvalidHost(text.to_owned());
        // A user of a directory service has an `@` of their own.
        let (user, rest) = text.rsplit_once('@').map_or((None, text), |(user, rest)| (Some(user), rest));
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(invalid)?)),
            None if rest.matches(':').count() > 1 => (rest, None),
            None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
        };
        // A name in an ssh_config may be almost anything; what a shell or ssh would read otherwise is no
        // name.
        let plain = |c: char| c.is_ascii_graphic() && !"'`\"$\\;&<>|(){}[]*?!#,@".contains(c);
        let usable = !host.is_empty() && !host.starts_with('-') && host.chars().all(plain);
        if !usable || !user.is_none_or(is_user) {
            return Err(invalid());
        }
        let port = port.map(|port| port.parse().map_err(|_| invalid())).transpose()?;
        Ok(Self { user: user.map(str::to_owned), host: host.to_owned(), port })
    }
}

impl HostAddress {
    /// How somebody logs in there.
    fn login(&self) -> Login {
        let mut login = Login::default().host(&self.host);
        login.user.clone_from(&self.user);
        login.port = self.port;
        login
    }

    /// Where a login leads. What it calls its host has not been read as an address yet.
    pub(crate) fn of(login: &Login) -> Self {
        Self { user: login.user.clone(), host: login.host.clone().unwrap_or_default(), port: login.port }
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

impl HostsProvider {
    /// Keeps track of runs in `<root>/<run-id>/hosts`, and reaches hosts through `connector`, which should be
    /// the engine's own.
    pub fn new(root: impl Into<PathBuf>, connector: Arc<dyn Connector>) -> Self {
        Self { root: root.into(), connector, untouched: Together::default() }
    }

    fn directory(&self, run: &RunId) -> PathBuf {
        self.root.join(run.as_str()).join("hosts")
    }

    /// See [`taken`].
    async fn taken(&self, run: &RunId) -> io::Result<Vec<Machine>> {
        let (directory, run) = (self.directory(run), run.clone());
        blocking(move || taken(&directory, &run)).await
    }

    /// Keeps that the run took these, of one group.
    async fn write(&self, run: &RunId, group: &str, machines: &[Machine]) -> io::Result<()> {
        let (directory, file) = (self.directory(run), self.directory(run).join(group));
        let machines = serde_json::to_vec_pretty(machines)?;
        let write = move || {
            let above = directory.parent().unwrap_or(&directory);
            DirBuilder::new().recursive(true).mode(0o700).create(above)?;
            private::check_run(above)?;
            private::make_directory(&directory)?;
            private::write(&file, &machines)
        };
        blocking(write).await
    }

    /// Notes that something is about to be put on a host: from now on, teardown visits it.
    async fn note_touched(&self, machine: &Machine) -> Result<(), ProviderError> {
        let path = self.touched(machine);
        self.untouched.put(path.clone());
        let noted = async {
            self.untouched.done(make_all).await?;
            match path.exists() {
                true => Ok(()),
                // What kept it from being made is its own fault, or its run's.
                false => {
                    blocking({
                        let path = path.clone();
                        move || private::write(&path, b"")
                    })
                    .await
                }
            }
        };
        noted.await.map_err(|error| {
            let message = format!("cannot write {}", path.display());
            ProviderError::new(ProviderErrorKind::Other, "verify", message).source(error)
        })
    }

    /// Exists once something may have been put on a host.
    fn touched(&self, machine: &Machine) -> PathBuf {
        self.directory(&machine.run).join(format!(".touched.{}", machine.name()))
    }

    fn was_touched(&self, machine: &Machine) -> bool {
        // The second is where earlier versions noted it.
        let earlier = self.root.join(machine.run.as_str()).join("ssh");
        self.touched(machine).exists() || earlier.join(format!("connected.{}", machine.name())).exists()
    }

    /// Makes the run's directory on a host, and starts the watchdog that ends the run's processes there at `until`. By
    /// the host's own clocks: they need not agree with ours.
    async fn arm(
        &self,
        machine: &Machine,
        session: &dyn Session,
        until: SystemTime,
        arming: Arming,
    ) -> Result<(), ProviderError> {
        self.note_touched(machine).await?;
        let directory = machine.login.directory.as_deref().unwrap_or_default();
        let args = [watchdog::script().to_owned(), machine.name()];
        let args: Vec<String> =
            args.into_iter().chain(watchdog::watch(&machine.run, directory, until, arming)).collect();
        let failed = |error: SessionError| {
            let is_passing = matches!(error.kind, SessionErrorKind::Lost | SessionErrorKind::Connect);
            let kind = if is_passing { ProviderErrorKind::Unavailable } else { ProviderErrorKind::Other };
            let message = format!("no watchdog could be started on {}", machine.id);
            ProviderError::new(kind, "deadline", message).source(error)
        };
        let said = session.administer(ARM, &args).await.map_err(failed)?;
        watchdog::armed(&said).map(drop).ok_or_else(|| {
            let message = format!("the watchdog does not watch: it said `{}`", said.trim());
            failed(SessionError::new(SessionErrorKind::Remote, message))
        })
    }

    /// Ends what the run left on one host.
    async fn leave(&self, machine: &Machine) -> Left {
        let host = machine.login.host.as_deref().unwrap_or_default();
        let directory = machine.login.directory.as_deref().unwrap_or_default();
        let all =
            |why: &str| vec![Leftover::new(format!("processes of the run and ~/{directory} on {host}"), why)];
        match self.reap(machine, directory).await {
            Ok(said) => Left {
                what: unreaped(&said, host).unwrap_or_else(|| all("it did not say why")),
                is_final: false,
            },
            Err(error) => {
                let why = tsunami_core::ErrorChain(&error).to_string();
                Left { what: all(&why), is_final: error.kind.is_final() }
            }
        }
    }

    /// Ends the run's processes on a host and removes its directory there. Returns what the host says of the rest.
    async fn reap(&self, machine: &Machine, directory: &str) -> Result<String, ProviderError> {
        let unreached =
            |error| ProviderError::new(ProviderErrorKind::Unavailable, "connect", "no session").source(error);
        let state = self.root.join(machine.run.as_str());
        self.connector.prepare(&machine.run, &state).await.map_err(unreached)?;
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        let session = self.connector.connect(machine, deadline).await.map_err(|error| {
            // What may pass is waited out: whoever is turned away long before that would be again.
            let is_refused = matches!(error.kind, SessionErrorKind::Connect | SessionErrorKind::HostKey)
                && deadline - Instant::now() > LEAVE_TIMEOUT / 2;
            match is_refused {
                true => {
                    ProviderError::new(ProviderErrorKind::Unauthorized, "connect", "no session").source(error)
                }
                false => unreached(error),
            }
        })?;
        let args = [directory.to_owned(), machine.run.to_string(), watchdog::script().to_owned()];
        let said = session.administer(REAP, &args).await;
        let _ = session.close().await;
        said.map_err(|error| {
            let message = "the run's processes can't be ended";
            ProviderError::new(ProviderErrorKind::Other, "terminate", message).source(error)
        })
    }
}

#[async_trait]
impl Provider for HostsProvider {
    fn name(&self) -> String {
        "hosts".to_owned()
    }

    async fn quote(&self, spec: &MachineSpec, count: NonZeroU32) -> Result<Quote, ProviderError> {
        let hosts = hosts(spec)?;
        let invalid = |message| ProviderError::new(ProviderErrorKind::InvalidSpec, "quote", message);
        if hosts.len() != count.get() as usize {
            return Err(invalid(format!("{} hosts are given for {count} machines", hosts.len())));
        }
        let distinct: BTreeSet<_> = hosts.iter().collect();
        if distinct.len() < hosts.len() {
            return Err(invalid("a host is given twice".to_owned()));
        }
        let names: Vec<_> = hosts.iter().map(HostAddress::to_string).collect();
        Ok(Quote::free(names.join(", ")))
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        let hosts = hosts(&request.spec)?;
        let mut machines = Vec::new();
        for (index, host) in (0..).zip(hosts) {
            let address = self.resolve(host).await?;
            let (id, run) = (MachineId::new(host.to_string()), request.run.clone());
            let machine = Machine::new(id, run, &request.group, index, MachineState::Running)
                .addresses(Addresses::default().public(&address).private(address).network("hosts"))
                .login(host.login().directory(home_directory(&request.run)))
                .expires(request.deadline.at)
                .description(host.to_string())
                .price(Price::Free);
            machines.push(machine);
        }
        // Written before anybody connects: from now on, teardown knows where to look.
        self.write(&request.run, &request.group, &machines).await.map_err(|error| {
            ProviderError::new(ProviderErrorKind::Other, "launch", "cannot write the run's hosts")
                .source(error)
        })?;
        Ok(machines.into_iter().map(|machine| machine.id).collect())
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        let runs = match filter {
            RunFilter::Run(run) => vec![run.clone()],
            RunFilter::All => {
                let runs = RunStore::at(&self.root).runs().map_err(|error| unreadable("list", error))?;
                runs.iter().map(RunEntry::id).collect()
            }
        };
        let mut machines = Vec::new();
        for run in &runs {
            match self.taken(run).await {
                Ok(taken) => machines.extend(taken),
                // Another run's fault is for whoever asks about that run.
                Err(error) if *filter == RunFilter::All => tracing::warn!(%run, %error, "hosts not listed"),
                Err(error) => return Err(unreadable("list", error)),
            }
        }
        Ok(machines)
    }

    /// Nothing runs on a host before its watchdog watches.
    async fn verify(&self, machine: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        let until = machine.expires.unwrap_or_else(SystemTime::now);
        self.arm(machine, &**session, until, Arming::Ensure).await
    }

    /// A host may have lost its watchdog: it has been started again, or somebody has ended what they did not know.
    async fn renew(&self, machine: &Machine, session: &Arc<dyn Session>) -> Result<(), ProviderError> {
        self.verify(machine, session).await
    }

    async fn extend_on(
        &self,
        machine: &Machine,
        session: &Arc<dyn Session>,
        until: SystemTime,
    ) -> Result<(), ProviderError> {
        self.arm(machine, &**session, until, Arming::Replace).await
    }

    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        let mut machines = self.taken(run).await.map_err(|error| unreadable("extend", error))?;
        for machine in &mut machines {
            machine.expires = Some(until);
        }
        let groups: BTreeSet<_> = machines.iter().map(|machine| machine.group.clone()).collect();
        for group in groups {
            let of_group: Vec<_> =
                machines.iter().filter(|machine| machine.group == group).cloned().collect();
            self.write(run, &group, &of_group).await.map_err(|error| {
                ProviderError::new(ProviderErrorKind::Other, "extend", "cannot write the run's hosts")
                    .source(error)
            })?;
        }
        Ok(())
    }

    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        let machines = self.taken(run).await.map_err(|error| unreadable("terminate", error))?;
        let touched = machines.iter().filter(|machine| self.was_touched(machine));
        let left = join_all(touched.map(|machine| self.leave(machine))).await;
        let of_some = left.iter().filter(|left| !left.what.is_empty());
        let is_final = of_some.clone().all(|left| left.is_final);
        let left: Vec<_> = of_some.flat_map(|left| left.what.clone()).collect();
        if left.is_empty() {
            let directory = self.directory(run);
            blocking(move || remove(&directory)).await.map_err(|error| {
                ProviderError::new(ProviderErrorKind::Other, "terminate", "cannot forget the run's hosts")
                    .source(error)
            })?;
        } else if is_final {
            let message = "the hosts that are left let nobody in who shows what the run has";
            let kind = ProviderErrorKind::Unauthorized;
            return Err(ProviderError::new(kind, "terminate", message).remains(left));
        }
        Ok(left)
    }
}

/// Reads what a host says of what is left there; `None` if something is, and it doesn't say what.
fn unreaped(said: &str, host: &str) -> Option<Vec<Leftover>> {
    let all = said.strip_suffix("reaped\n");
    let left = watchdog::leftovers(all.unwrap_or(said), host);
    (all.is_some() || !left.is_empty()).then_some(left)
}

/// What is still on a host.
struct Left {
    what: Vec<Leftover>,
    /// Whether only a person can change that.
    is_final: bool,
}

impl HostsProvider {
    /// The address that other machines reach a host by.
    async fn resolve(&self, host: &HostAddress) -> Result<String, ProviderError> {
        let refused = |message, error: BoxError| {
            ProviderError::new(ProviderErrorKind::InvalidSpec, "launch", message).key("hosts").source(error)
        };
        let resolved = self.connector.resolve(&host.login()).await;
        let name = resolved.map_err(|error| refused(format!("cannot resolve {host}"), error.into()))?;
        // Whatever an ssh_config makes of it.
        let word = Word::host(&name);
        word.map_err(|error| refused(format!("{host} leads to no address or name"), error.into()))?;
        // A name that only a jump host knows stays a name.
        let address = lookup_host((name.as_str(), 22)).await.into_iter().flatten().next();
        Ok(address.map_or(name, |address| address.ip().to_string()))
    }
}

/// Makes those of these empty files that can be made, so that they stay. They are in few directories.
fn make_all(files: &[PathBuf]) -> io::Result<()> {
    let made = files.iter().filter(|file| private::open_appending(file).is_ok());
    let directories: BTreeSet<_> = made.filter_map(|file| file.parent()).collect();
    directories.into_iter().try_for_each(private::sync)
}

/// The machines that the run took, whose directory for them this is. What can't be read, or could be another user's, is an error: hosts
/// that are not known can't be left.
fn taken(directory: &Path, run: &RunId) -> io::Result<Vec<Machine>> {
    let files = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        files => files?,
    };
    private::check_run(directory.parent().unwrap_or(directory))?;
    let mut taken = Vec::new();
    for file in files {
        let path = file?.path();
        // One that was being written when its process ended was never valid.
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        let machines: Vec<Machine> = serde_json::from_slice(&private::read(&path)?)?;
        machines.iter().try_for_each(Machine::check).map_err(io::Error::other)?;
        // What is removed is the run's own, whatever is written there.
        let own = Some(home_directory(run));
        if machines.iter().any(|machine| machine.run != *run || machine.login.directory != own) {
            let message = format!("{} is not about {run}", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        taken.extend(machines);
    }
    Ok(taken)
}

fn hosts(spec: &MachineSpec) -> Result<&[HostAddress], ProviderError> {
    spec.get::<HostsSpec>().map(|spec| spec.hosts.as_slice()).ok_or_else(|| {
        let message = format!("it needs hosts, but was given {spec:?}");
        ProviderError::new(ProviderErrorKind::InvalidSpec, "quote", message)
    })
}

/// The run's directory on a host, below the home.
fn home_directory(run: &RunId) -> String {
    format!(".tsunami/{run}")
}

fn unreadable(operation: &'static str, error: impl Into<BoxError>) -> ProviderError {
    // A file that is damaged stays so: a teardown need not try again.
    let kind = match operation {
        "terminate" => ProviderErrorKind::InvalidSpec,
        _ => ProviderErrorKind::Other,
    };
    ProviderError::new(kind, operation, "cannot read which hosts the run took").source(error)
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use tokio::time::sleep_until;
    use tsunami_core::Deadline;

    fn request(run: &RunId, hosts: &[&str]) -> LaunchRequest {
        let lifetime = Duration::from_secs(60);
        LaunchRequest::new(
            run.clone(),
            "node",
            NonZeroU32::new(u32::try_from(hosts.len()).unwrap()).unwrap(),
            MachineSpec::new(HostsSpec::new(hosts.iter().map(|host| host.parse().unwrap()))),
            Deadline { at: SystemTime::now() + lifetime, lifetime },
        )
        .experiment("test")
    }

    /// Nobody gets in anywhere: one host says so at once, the others are waited for.
    #[derive(Debug)]
    struct TurnsAway(SessionErrorKind);

    #[async_trait]
    impl Connector for TurnsAway {
        async fn prepare(&self, _: &RunId, _: &Path) -> Result<String, SessionError> {
            Ok(String::new())
        }

        async fn connect(
            &self,
            machine: &Machine,
            deadline: Instant,
        ) -> Result<Box<dyn Session>, SessionError> {
            if machine.login.host.as_deref() != Some("10.0.0.1") {
                sleep_until(deadline - Duration::from_millis(500)).await;
            }
            Err(SessionError::new(self.0, "nobody gets in"))
        }

        async fn finish(&self, _: &RunId) {}
    }

    #[tokio::test(start_paused = true)]
    async fn what_turns_everybody_away_is_named_at_once_and_what_may_come_back_is_asked_again() {
        let run: RunId = "20260101-000000-aaaa".parse().unwrap();
        for (kind, hosts, is_final) in [
            (SessionErrorKind::HostKey, &["10.0.0.1"][..], true),
            (SessionErrorKind::Connect, &["10.0.0.1"], true),
            (SessionErrorKind::Local, &["10.0.0.1"], false),
            (SessionErrorKind::Connect, &["10.0.0.2"], false),
            (SessionErrorKind::Connect, &["10.0.0.1", "10.0.0.2"], false),
        ] {
            let root = tempfile::tempdir().unwrap();
            let provider = HostsProvider::new(root.path(), Arc::new(TurnsAway(kind)));
            provider.launch(&request(&run, hosts)).await.unwrap();
            for machine in provider.list(&RunFilter::Run(run.clone())).await.unwrap() {
                provider.note_touched(&machine).await.unwrap();
            }
            let left = match provider.terminate(&run).await {
                Ok(left) => (left, false),
                Err(error) => (error.remains.clone(), error.kind.is_final()),
            };
            assert_eq!((left.0.len(), left.1), (hosts.len(), is_final), "{kind:?} {hosts:?}: {left:?}");
            assert!(left.0[0].why.contains("nobody gets in"), "{left:?}");
        }
    }

    #[test]
    fn what_a_host_leaves_is_told_in_its_words_and_silence_is_no_success() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().to_str().unwrap();
        for (home, script, left) in [
            (home, "true", Some(vec![])),
            (home, "printf 'directory d\\twho may: sudo\\n'; false", Some(vec!["directory d on host"])),
            (home, "false", None),
            ("/nonexistent", "true", Some(vec!["directory ~/d on host"])),
        ] {
            let mut reap = std::process::Command::new("sh");
            let said = reap.args(["-c", REAP, "sh", "d", "run", script]).env("HOME", home).output().unwrap();
            assert!(said.status.success(), "{said:?}");
            let said = String::from_utf8(said.stdout).unwrap();
            let told = unreaped(&said, "host");
            let told =
                told.as_ref().map(|left| left.iter().map(|left| left.what.as_str()).collect::<Vec<_>>());
            assert_eq!(told, left, "{said}");
        }
    }

    #[tokio::test]
    async fn hosts_that_cannot_be_read_or_are_another_runs_are_not_taken_for_none() {
        let root = tempfile::tempdir().unwrap();
        let provider = HostsProvider::new(root.path(), Arc::new(crate::SshConnector::default()));
        let run: RunId = "20260101-000000-aaaa".parse().unwrap();
        provider.launch(&request(&run, &["127.0.0.1"])).await.unwrap();
        let (directory, file) = (provider.directory(&run), provider.directory(&run).join("node"));
        let text = fs::read_to_string(&file).unwrap();
        for spoiled in [
            "[{".to_owned(),
            text.replace(".tsunami/20260101-000000-aaaa", "Documents"),
            text.replace("\"run\": \"20260101-000000-aaaa\"", "\"run\": \"20260101-000000-bbbb\""),
            text.replace("\"node\"", "\"../node\""),
        ] {
            assert_ne!(spoiled, text);
            fs::write(&file, spoiled).unwrap();
            let error = provider.terminate(&run).await.unwrap_err();
            assert!(error.kind.is_final(), "to ask again would change nothing");
            provider.list(&RunFilter::Run(run.clone())).await.unwrap_err();
            assert_eq!(provider.list(&RunFilter::All).await.unwrap(), []);
            assert!(file.exists(), "what it says may still be needed");
        }
        fs::write(&file, text).unwrap();
        for path in [&directory, &file] {
            let mode = fs::metadata(path).unwrap().permissions();
            fs::set_permissions(path, fs::Permissions::from_mode(0o722)).unwrap();
            provider.terminate(&run).await.unwrap_err();
            fs::set_permissions(path, mode).unwrap();
        }
        assert_eq!(provider.terminate(&run).await.unwrap(), []);
        assert!(!directory.exists());
    }

    #[test]
    fn hosts_are_read_in_every_form() {
        for (text, user, host, port) in [
            ("10.0.0.5", None, "10.0.0.5", None),
            ("u@box", Some("u"), "box", None),
            ("u@10.0.0.5:22", Some("u"), "10.0.0.5", Some(22)),
            ("[fe80::1]:2222", None, "fe80::1", Some(2222)),
            ("fe80::1", None, "fe80::1", None),
            ("u@corp.example@box:22", Some("u@corp.example"), "box", Some(22)),
            ("CORP\\u@box", Some("CORP\\u"), "box", None),
        ] {
            let read: HostAddress = text.parse().unwrap();
            assert_eq!((read.user.as_deref(), read.host.as_str(), read.port), (user, host, port), "{text}");
        }
        for bad in [
            "", "-x", "u@-x", "a b", "a\nb", "-u@h", "h:0x", "h:99999", "@h", "h\"x", "$(id)", "u;x@h",
            "a,b", "h`id`",
        ] {
            assert!(bad.parse::<HostAddress>().is_err(), "{bad:?} was accepted");
        }
    }
}
