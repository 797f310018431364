//! A provider of one's own. Each machine is an sshd on a loopback address and in a PID namespace, so that all of its
//! processes end together.
//!
//! What makes this a provider, and not just a way to start things: whatever it makes is found by its run's id, namely in
//! the run's directory; a guard beside each machine ends it at its deadline, whatever becomes of the program; and a
//! machine is gone when its guard is, not when nothing is known of it.
//! `src/main.rs` is a `tsunami` that knows this provider, too.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep};
use tsunami_core::registry::{Backend, ConnectRequest, Registration};
use tsunami_core::{
    Addresses, LaunchRequest, Leftover, Login, Machine, MachineId, MachineSpec, MachineState, Price,
    Provider, ProviderError, ProviderErrorKind, Quote, RunEntry, RunFilter, RunId, RunRecord, RunStore,
    private,
};

/// Runs a machine until its deadline.
const GUARD: &str = include_str!("guard.sh");

/// How long an sshd may take to listen, and a guard to end a machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// What every login goes through, in a home of the machine's own.
const ENTER: &str = r#"cd "$HOME" && exec "$SHELL" ${SSH_ORIGINAL_COMMAND:+-c "$SSH_ORIGINAL_COMMAND"}"#;

/// The guide's programs, which compile as documentation of this crate: docs/guide/src/provider.md.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guide/src/provider.md")]
pub struct Guide;

/// Launches machines in PID namespaces of this computer.
#[derive(Debug)]
pub struct Namespaces {
    root: PathBuf,
}

impl Namespaces {
    /// Keeps machines in `<root>/<run-id>/namespaces`; `root` is where tsunami records its runs.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn home(&self, run: &RunId) -> PathBuf {
        self.root.join(run.as_str()).join("namespaces")
    }

    /// Starts one machine and waits until it can be connected to.
    async fn start(&self, request: &LaunchRequest, index: u32) -> io::Result<Machine> {
        // A replacement lives beside what it replaces.
        let name = format!("{}-{index}.{}", request.group, nanoseconds());
        let directory = self.home(&request.run).join(&name);
        let (key, until, of) = (request.authorized_key.clone(), request.deadline.at, directory.clone());
        let made = blocking(move || {
            private::make_directory(&of.join("home"))?;
            private::write(&of.join("authorized_keys"), key.as_bytes())?;
            write_deadline(&of, until)
        });
        made.await?;
        let file = |name: &str| directory.join(name).display().to_string();
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", &name, "-f", &file("host_key")]);
        if !keygen.stdin(Stdio::null()).status().await?.success() {
            return Err(io::Error::other("ssh-keygen makes no host key"));
        }
        let address = free_address()?;
        let mut guard = Command::new("setsid");
        guard.args(["sh", "-c", GUARD, "guard"]).arg(&directory);
        guard.args(["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null"]);
        for option in [
            format!("ListenAddress={address}:{PORT}"),
            format!("HostKey=\"{}\"", file("host_key")),
            format!("AuthorizedKeysFile=\"{}\"", file("authorized_keys")),
            format!("ForceCommand=HOME='{}'; export HOME; {ENTER}", file("home")),
        ] {
            guard.args(["-o", &option]);
        }
        guard.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let late = Instant::now() + PATIENCE;
        while TcpStream::connect((address, PORT)).await.is_err() {
            if Instant::now() > late {
                let said = fs::read_to_string(directory.join("sshd.log")).unwrap_or_default();
                return Err(io::Error::other(format!("{name} does not listen: {}", said.trim())));
            }
            sleep(Duration::from_millis(20)).await;
        }
        let (id, run) = (MachineId::new(format!("{}/{name}", request.run)), request.run.clone());
        let (host_key, address) = (fs::read_to_string(file("host_key.pub"))?, address.to_string());
        let machine = Machine::new(id, run, &request.group, index, MachineState::Running)
            .addresses(Addresses::default().public(&address).private(address).network("loopback"))
            .login(Login::default().port(PORT).host_key(host_key.trim()))
            .expires(request.deadline.at)
            .description("sshd in a PID namespace")
            .price(Price::Free);
        // From now on it is in listings.
        blocking(move || write_machine(&directory, &machine).map(|()| machine)).await
    }
}

#[async_trait]
impl Provider for Namespaces {
    fn name(&self) -> String {
        "namespaces".to_owned()
    }

    async fn quote(&self, spec: &MachineSpec, _count: NonZeroU32) -> Result<Quote, ProviderError> {
        let odd = "there is nothing to choose about these machines";
        match spec.is_default() {
            true => Ok(Quote::free("sshd in a PID namespace")),
            false => Err(ProviderError::new(ProviderErrorKind::InvalidSpec, "quote", odd)),
        }
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        let known = known(&self.home(&request.run)).map_err(failed("launch"))?;
        let mut ids = Vec::new();
        for index in 0..request.count.get() {
            let wanted = (&request.group, index, MachineState::Running);
            let counts = |machine: &&Machine| {
                (&machine.group, machine.index, machine.state) == wanted
                    && !request.replace.contains(&machine.id)
            };
            ids.push(match known.iter().filter_map(|(_, machine)| machine.as_ref()).find(counts) {
                Some(machine) => machine.id.clone(),
                None => self.start(request, index).await.map_err(failed("launch"))?.id,
            });
        }
        Ok(ids)
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        let runs = match filter {
            RunFilter::Run(run) => vec![run.clone()],
            RunFilter::All => {
                let recorded = RunStore::at(&self.root).runs().map_err(io::Error::other);
                recorded.map_err(failed("list"))?.iter().map(RunEntry::id).collect()
            }
        };
        let known: io::Result<Vec<_>> = runs.iter().map(|run| known(&self.home(run))).collect();
        Ok(known.map_err(failed("list"))?.into_iter().flatten().filter_map(|(_, machine)| machine).collect())
    }

    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        let home = self.home(run);
        let extend = move || {
            for (directory, machine) in known(&home)? {
                write_deadline(&directory, until)?;
                machine.map_or(Ok(()), |machine| write_machine(&directory, &machine.expires(until)))?;
            }
            Ok(())
        };
        blocking(extend).await.map_err(failed("extend"))
    }

    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        let known = known(&self.home(run)).map_err(failed("terminate"))?;
        // A guard without a deadline ends its machine.
        for (directory, _) in &known {
            let _ = tokio::fs::remove_file(directory.join("deadline")).await;
        }
        let (mut left, late) = (Vec::new(), Instant::now() + PATIENCE);
        for (directory, _) in known {
            while is_alive(&directory).map_err(failed("terminate"))? && Instant::now() < late {
                sleep(Duration::from_millis(20)).await;
            }
            let removed = match is_alive(&directory).map_err(failed("terminate"))? {
                true => Err("its guard still runs".to_owned()),
                false => tokio::fs::remove_dir_all(&directory).await.map_err(|error| error.to_string()),
            };
            let what = format!("machine in {}", directory.display());
            left.extend(removed.err().map(|why| Leftover::new(what, why)));
        }
        Ok(left)
    }
}

/// Registers [`Namespaces`] as `namespaces`, for experiment files and commands.
#[derive(Debug)]
pub struct NamespacesRegistration;

#[async_trait]
impl Registration for NamespacesRegistration {
    fn name(&self) -> &'static str {
        "namespaces"
    }

    async fn connect(&self, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        let provider = Arc::new(Namespaces::new(request.state.root()));
        Ok(Backend::new(provider, request.connector()?))
    }

    async fn reconnect(&self, _: &RunRecord, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        self.connect(request).await
    }
}

/// The port of every machine, each of which has an address of its own.
const PORT: u16 = 2288;

/// The directories of a run's machines, each with its machine once that was launched.
fn known(home: &Path) -> io::Result<Vec<(PathBuf, Option<Machine>)>> {
    let mut known = Vec::new();
    let entries = match fs::read_dir(home) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(known),
        entries => entries?,
    };
    for entry in entries {
        let directory = entry?.path();
        let mut machine = match private::read(&directory.join("machine.json")) {
            // It is being launched, or being removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            json => Some(serde_json::from_slice::<Machine>(&json?)?),
        };
        let state = if is_alive(&directory)? { MachineState::Running } else { MachineState::Gone };
        machine.iter_mut().for_each(|machine| machine.state = state);
        known.push((directory, machine));
    }
    Ok(known)
}

/// Whether a guard holds the lock of its machine's directory. What can't be told may live.
fn is_alive(directory: &Path) -> io::Result<bool> {
    match File::open(directory.join("alive")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        file => Ok(file?.try_lock_shared().is_err()),
    }
}

/// Does what may wait for a disk where that holds up no other task. A look at a small file takes no time.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other).flatten()
}

fn write_machine(directory: &Path, machine: &Machine) -> io::Result<()> {
    private::write(&directory.join("machine.json"), &serde_json::to_vec(machine)?)
}

fn write_deadline(directory: &Path, at: SystemTime) -> io::Result<()> {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    private::write(&directory.join("deadline"), format!("{seconds}\n").as_bytes())
}

/// A loopback address on which nobody has the port.
fn free_address() -> io::Result<Ipv4Addr> {
    let start = nanoseconds() as u32;
    let address = |step| Ipv4Addr::from_bits(0x7f80_0000 | (start.wrapping_add(step) & 0x3f_ffff));
    let free = (0..1000).map(address).find(|address| TcpListener::bind((*address, PORT)).is_ok());
    free.ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

fn nanoseconds() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()
}

fn failed(operation: &'static str) -> impl Fn(io::Error) -> ProviderError {
    move |error| {
        ProviderError::new(ProviderErrorKind::Other, operation, "this computer refuses").source(error)
    }
}
