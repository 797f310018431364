//! One machine.

use std::ffi::OsString;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{HostCommand, Output};
use crate::error::{BoxError, Error};
use crate::event::Events;
use crate::machine::{Machine, MachineId};
use crate::session::{Command, Session, SessionError};
use crate::spread::Spreads;

/// One running machine. Cheap to clone.
///
/// What runs on it ends with the run, and so does what waits for it: with [`Error::Cancelled`], or with
/// [`Error::Interrupted`] or [`Error::Lost`] if it is the machine that ends. Dropping a `Host` ends nothing.
///
/// ```
/// # use tsunami_core::{Error, Host};
/// # async fn example(server: &Host, client: &Host) -> Result<(), Error> {
/// server.upload("bin/server", "bin/").await?;
/// let serving = server.program("bin/server").arg("--port").arg("7000").start();
/// let line = format!("curl -sf --retry 9 --retry-connrefused http://{}:7000/", client.ip_of(server)?);
/// println!("{} got {}", client.name(), client.run(line).await?.stdout());
/// serving.stop().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Host {
    pub(super) inner: Arc<HostInner>,
    pub(super) stage: Arc<str>,
}

pub(super) struct HostInner {
    name: String,
    pub(super) machine: Arc<Machine>,
    pub(super) session: Arc<dyn Session>,
    pub(super) events: Events,
    pub(super) spreads: Spreads,
    /// The run is ending.
    pub(super) cancel: CancellationToken,
    liveness: Mutex<Liveness>,
    /// Tells of a change of that.
    changed: Notify,
    /// What the kernel calls the computer's present life, once somebody has asked: machines that agree share a computer.
    boot: OnceLock<String>,
}

/// What is known of whether a machine stays. Whoever watches the machine tells it, and nobody else.
#[derive(Debug, Default)]
struct Liveness {
    /// Why its provider takes it back, or took it. Files can still be fetched from it, for as long as it is there.
    interrupted: Option<String>,
    /// It was seen on its way out: whether it is gone or was taken back will be known soon.
    is_out: bool,
    gone: bool,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("name", &self.inner.name)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

impl Host {
    /// A machine with a session to it.
    pub(crate) fn new(
        machine: Arc<Machine>,
        session: Arc<dyn Session>,
        events: Events,
        spreads: Spreads,
        cancel: CancellationToken,
    ) -> Self {
        let (liveness, changed, boot) = (Mutex::default(), Notify::new(), OnceLock::new());
        let name = machine.name();
        let inner = HostInner { name, machine, session, events, spreads, cancel, liveness, changed, boot };
        Self { inner: Arc::new(inner), stage: "run".into() }
    }

    /// Notes that its provider takes it back, or took it.
    pub(crate) fn set_interrupted(&self, reason: String) {
        self.liveness().interrupted = Some(reason);
        self.inner.changed.notify_waiters();
    }

    /// Notes that it was seen on its way out, before why is known.
    pub(crate) fn set_out(&self) {
        self.liveness().is_out = true;
    }

    /// Notes that it is gone.
    pub(crate) fn set_gone(&self) {
        self.liveness().gone = true;
        self.inner.changed.notify_waiters();
    }

    fn liveness(&self) -> MutexGuard<'_, Liveness> {
        self.inner.liveness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same machine in another stage. The stage names what is going on, in events, errors and logs:
    /// `setup` during set-up, `run` afterwards, unless this says otherwise.
    pub fn stage(&self, stage: &str) -> Self {
        Self { inner: self.inner.clone(), stage: stage.into() }
    }

    /// What is going on.
    pub(crate) fn stage_name(&self) -> &str {
        &self.stage
    }

    /// `<group>-<index>`.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The group's name.
    pub fn group(&self) -> &str {
        &self.inner.machine.group
    }

    /// The place in the group, from 0.
    pub fn index(&self) -> u32 {
        self.inner.machine.index
    }

    /// All that the provider said of the machine.
    pub fn machine(&self) -> &Machine {
        &self.inner.machine
    }

    /// The address by which the machine reaches itself: private if it has one.
    ///
    /// It is an error if the provider does not know it, as of a host that is reached by a name.
    pub fn ip(&self) -> Result<&str, Error> {
        self.inner.machine.addresses.internal().ok_or_else(|| self.error("its address is not known"))
    }

    /// The address by which this machine reaches `other`: private within a network, public across.
    ///
    /// It is an error, of the other one, if the provider does not know it.
    pub fn ip_of<'a>(&self, other: &'a Host) -> Result<&'a str, Error> {
        let address = other.inner.machine.addresses.address_from(&self.inner.machine.addresses);
        address.ok_or_else(|| other.error("its address is not known"))
    }

    /// Runs a shell line, which must succeed, and returns what it wrote. If the future is dropped, the command is ended
    /// in the background.
    ///
    /// ```
    /// # use tsunami_core::{Error, Host};
    /// # async fn example(host: &Host) -> Result<(), Error> {
    /// let kernel = host.run("uname -r").await?;
    /// println!("{} runs Linux {}", host.name(), kernel.stdout().trim());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`HostCommand::run`] has them.
    pub async fn run(&self, line: impl Into<String>) -> Result<Output, Error> {
        self.shell(line).run().await
    }

    /// Prepares a line for the machine's shell to run: [`Command::shell`].
    pub fn shell(&self, line: impl Into<String>) -> HostCommand {
        self.command(Command::shell(line))
    }

    /// Prepares a program to run on the machine, with arguments that no shell reads: [`Command::program`].
    pub fn program(&self, name: impl Into<OsString>) -> HostCommand {
        self.command(Command::program(name))
    }

    /// Prepares a command to run on the machine.
    pub fn command(&self, command: Command) -> HostCommand {
        HostCommand::new(self.clone(), command)
    }

    /// What the kernel calls the present life of the computer that the machine is, or is on; see `condition`.
    pub(crate) fn boot(&self) -> &OnceLock<String> {
        &self.inner.boot
    }

    /// The time it is, by the clock that events have.
    pub(crate) fn now(&self) -> SystemTime {
        self.inner.events.now()
    }

    /// The machine's id, as events have it.
    pub(super) fn id(&self) -> Option<MachineId> {
        Some(self.inner.machine.id.clone())
    }

    /// An error of the program's own, about this machine in its present stage.
    pub fn error(&self, error: impl Into<BoxError>) -> Error {
        Error::At { machine: self.name().to_owned(), stage: self.stage.to_string(), source: error.into() }
    }

    /// Runs a script that is about the machine and not about the experiment, as [`Session::administer`] does. No event
    /// tells of it; errors call it `action`. May be dropped at any await; the script goes on then.
    pub(crate) async fn administer(
        &self,
        action: &str,
        script: &str,
        args: &[String],
    ) -> Result<String, Error> {
        self.attempt(action, self.inner.session.administer(script, args)).await
    }

    /// Waits for something that the session does, unless the run is cancelled first.
    pub(crate) async fn attempt<T>(
        &self,
        action: &str,
        doing: impl Future<Output = Result<T, SessionError>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = self.inner.cancel.cancelled() => Err(Error::Cancelled),
            () = self.leaving(true) => Err(self.lost(Some(action))),
            done = doing => done.map_err(|error| Error::session(self.name(), &self.stage, action, error)),
        }
    }

    /// Waits until the machine's provider says that it takes it back.
    pub(crate) async fn interrupted(&self) {
        self.until(|liveness| liveness.interrupted.is_some()).await;
    }

    /// Waits until the machine's provider says that it is gone, or that it takes it back, unless that is no matter.
    pub(super) async fn leaving(&self, despite_interruption: bool) {
        let is_over =
            |liveness: &Liveness| liveness.gone || (liveness.interrupted.is_some() && !despite_interruption);
        self.until(is_over).await;
    }

    async fn until(&self, reached: impl Fn(&Liveness) -> bool) {
        loop {
            // It hears of whatever comes after the look.
            let changed = self.inner.changed.notified();
            if reached(&self.liveness()) {
                return;
            }
            changed.await;
        }
    }

    /// The error of a machine that its provider takes back, or took, before its time.
    pub fn interruption(&self) -> Option<Error> {
        let reason = self.liveness().interrupted.clone()?;
        let (machine, stage) = (self.name().to_owned(), self.stage.to_string());
        Some(Error::Interrupted { machine, id: self.inner.machine.id.clone(), stage, reason })
    }

    /// The error of a machine that is gone, or that its provider takes back, though nothing may run there that would tell.
    /// Of one that was seen on its way out, it waits until it is known which, unless the run ends.
    pub(crate) async fn departure(&self) -> Option<Error> {
        let is_known =
            |liveness: &Liveness| !liveness.is_out || liveness.gone || liveness.interrupted.is_some();
        tokio::select! {
            biased;
            () = self.until(is_known) => {}
            () = self.inner.cancel.cancelled() => {}
        }
        let is_gone = self.liveness().gone;
        if is_gone { Some(self.lost(None)) } else { self.interruption() }
    }

    /// Whether the run is.
    pub(super) fn is_ending(&self) -> bool {
        self.inner.cancel.is_cancelled()
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.liveness().interrupted.is_some()
    }

    pub(crate) fn session(&self) -> &Arc<dyn Session> {
        &self.inner.session
    }

    pub(super) fn lost(&self, action: Option<&str>) -> Error {
        if let Some(interrupted) = self.interruption() {
            return interrupted;
        }
        Error::Lost {
            machine: self.name().to_owned(),
            stage: self.stage.to_string(),
            command: action.map(str::to_owned),
            source: format!("machine {} is gone", self.inner.machine.id).into(),
        }
    }
}
