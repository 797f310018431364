//! One machine's way: wait for its address, connect, have it checked, set it up. Nobody else's machine is waited for.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::monitor::REASON_TIMEOUT;
use super::provision::{Provisioner, TaskResult};
use super::run::Run;
use crate::ErrorChain;
use crate::cluster::Host;
use crate::error::Error;
use crate::event::EventKind;
use crate::machine::{Machine, MachineId, MachineState, machine_name};
use crate::plan::Group;
use crate::provider::{ProviderError, ProviderErrorKind};
use crate::session::{Session, SessionError, SessionErrorKind};

/// How long after a machine's time is over its connector may take to say so.
const CONNECT_GRACE: Duration = Duration::from_secs(10);

/// How much longer than that the provider may take to check it. Its own limits for one answer of a machine say better
/// what was missing, and end before this.
const VERIFY_GRACE: Duration = Duration::from_secs(90);

/// A machine that was launched and not seen yet.
#[derive(Clone)]
pub(super) struct PendingMachine {
    pub(super) id: MachineId,
    pub(super) group: usize,
    pub(super) index: u32,
    /// When there must be a session to it.
    pub(super) deadline: Instant,
}

impl Provisioner {
    /// Goes all the way with one machine.
    pub(super) async fn bring_machine_up(self, pending: PendingMachine) -> Result<TaskResult, Error> {
        let group = &self.plan.groups[pending.group];
        let name = machine_name(&group.name, pending.index);
        let mut stage = "launch";
        let result = async {
            let host = self.reach(&name, &group.name, &pending, &mut stage).await?;
            stage = "setup";
            self.set_up(group, &host.stage(stage)).await.map(|()| host)
        };
        match result.await {
            Ok(host) => {
                let id = Some(pending.id);
                self.run.events.emit(EventKind::Ready { machine: name, id });
                Ok(TaskResult::Up { group: pending.group, host })
            }
            Err(error) => {
                let said = ErrorChain(&error).to_string();
                let (id, stage) = (Some(pending.id.clone()), stage.to_owned());
                self.run.events.emit(EventKind::Failed { machine: name, id, stage, error: said });
                match error {
                    Error::Interrupted { .. } => {
                        let PendingMachine { id, group, index, .. } = pending;
                        Ok(TaskResult::Interrupted { group, index, id, error })
                    }
                    error => Err(error),
                }
            }
        }
    }

    /// Runs the group's set-up. Where it failed because the machine was taken back, that is the error.
    async fn set_up(&self, group: &Group, host: &Host) -> Result<(), Error> {
        let Some(setup) = &group.setup else { return Ok(()) };
        let Err(error) = setup(host.clone()).await else { return Ok(()) };
        if matches!(error, Error::Lost { .. }) {
            self.watch.look_now();
            let _ = Box::pin(timeout(REASON_TIMEOUT, host.interrupted())).await;
        }
        Err(host.interruption().unwrap_or(error))
    }

    /// Waits for a machine's address, connects to it, and has its provider check it.
    async fn reach(
        &self,
        name: &str,
        group: &str,
        pending: &PendingMachine,
        stage: &mut &'static str,
    ) -> Result<Host, Error> {
        let mut machine = self.running(name, pending).await?;
        // The launch's answer decides which machine is which, not the order of a listing.
        if (machine.group.as_str(), machine.index) != (group, pending.index) {
            let machine = Arc::make_mut(&mut machine);
            (machine.group, machine.index) = (group.to_owned(), pending.index);
        }
        self.run.events.emit(EventKind::Running {
            machine: name.to_owned(),
            id: machine.id.clone(),
            address: machine.addresses.external().or(machine.login.host.as_deref()).map(str::to_owned),
            description: machine.description.clone(),
            kind: machine.kind.clone(),
            price: machine.price,
        });
        *stage = "connect";
        // On the heap from now on: until they run, all machines of a run wait, and none needs room for what comes then.
        let connecting = self.run.connect_and_verify(machine, pending.deadline, self.plan.connect_timeout);
        let host = tokio::select! {
            biased;
            host = Box::pin(connecting) => host?,
            machine = self.watch.leaving(&pending.id) => {
                return Err(Box::pin(self.gone(name, stage, machine)).await);
            }
        };
        self.run.follow(&host, &self.watch);
        Ok(host)
    }

    /// Waits until a machine runs and has an address.
    async fn running(&self, name: &str, pending: &PendingMachine) -> Result<Arc<Machine>, Error> {
        let running = timeout_at(pending.deadline, self.watch.running(&pending.id)).await;
        let not_seen = "it was not seen running with an address";
        let machine = running.map_err(|_| Error::Connect {
            machine: name.to_owned(),
            id: pending.id.clone(),
            after: self.plan.connect_timeout,
            source: SessionError::new(SessionErrorKind::Connect, not_seen),
        })?;
        if machine.state != MachineState::Running || machine.interrupted.is_some() {
            return Err(Box::pin(self.gone(name, "launch", machine)).await);
        }
        Ok(machine)
    }

    /// The error of a machine that leaves before there is a host to tell.
    async fn gone(&self, name: &str, stage: &str, machine: Arc<Machine>) -> Error {
        let interrupted = timeout(REASON_TIMEOUT, self.watch.interrupted(&machine.id)).await;
        let Some(reason) = interrupted.ok().and_then(|machine| machine.interrupted.clone()) else {
            let why = machine.ended.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            return Error::Lost {
                machine: name.to_owned(),
                stage: stage.to_owned(),
                command: None,
                source: format!("{} ended before it could be reached{why}", machine.id).into(),
            };
        };
        self.run.events.emit(EventKind::Interrupted {
            machine: name.to_owned(),
            id: machine.id.clone(),
            reason: reason.clone(),
        });
        Error::Interrupted {
            machine: name.to_owned(),
            id: machine.id.clone(),
            stage: stage.to_owned(),
            reason,
        }
    }
}

impl Run {
    /// Connects to a new machine and has its provider check it.
    async fn connect_and_verify(
        &self,
        machine: Arc<Machine>,
        deadline: Instant,
        within: Duration,
    ) -> Result<Host, Error> {
        let host = self.connect(machine, deadline, within).await?;
        let verifying = self.provider.verify(host.machine(), host.session());
        let unanswered = |_| {
            let after = humantime::format_duration(within + VERIFY_GRACE);
            let message = format!("the check of the new machine had no end {after} after its launch");
            let longer = "where its first boot takes longer, give it more time: `connect_timeout`";
            Err(ProviderError::new(ProviderErrorKind::Unavailable, "verify", message).help(longer))
        };
        let verified = timeout_at(deadline + VERIFY_GRACE, verifying).await.unwrap_or_else(unanswered);
        verified.map_err(unfit(&host))?;
        let (machine, id) = (host.name().to_owned(), Some(host.machine().id.clone()));
        self.events.emit(EventKind::Verified { machine, id });
        Ok(host)
    }

    /// Connects to a machine that an earlier process left up, and has its provider see to it.
    pub(super) async fn connect_and_renew(
        &self,
        machine: Arc<Machine>,
        within: Duration,
    ) -> Result<Host, Error> {
        let deadline = Instant::now() + within;
        let host = self.connect(machine, deadline, within).await?;
        let renewing = self.provider.renew(host.machine(), host.session());
        let unanswered = |_| {
            let message = "what its provider keeps on the machine could not be renewed in time";
            Err(ProviderError::new(ProviderErrorKind::Unavailable, "verify", message))
        };
        let renewed = timeout_at(deadline + VERIFY_GRACE, renewing).await.unwrap_or_else(unanswered);
        renewed.map_err(unfit(&host))?;
        Ok(host)
    }

    /// Connects to a machine, until the deadline.
    async fn connect(
        &self,
        machine: Arc<Machine>,
        deadline: Instant,
        within: Duration,
    ) -> Result<Host, Error> {
        let launched = deadline - within;
        let connecting = self.connector.connect(&machine, deadline);
        // The connector says best what it saw last, and gets the time for that.
        let connected = timeout_at(deadline + CONNECT_GRACE, connecting).await;
        let unanswered =
            |_| Err(SessionError::new(SessionErrorKind::Connect, "the connector gave no answer"));
        let session = connected.unwrap_or_else(unanswered).map_err(|source| Error::Connect {
            machine: machine.name(),
            id: machine.id.clone(),
            after: Duration::from_secs(launched.elapsed().as_secs_f64().round() as u64),
            source,
        })?;
        let session: Arc<dyn Session> = session.into();
        self.sessions().push(session.clone());
        self.spreads.connected();
        let id = Some(machine.id.clone());
        let answered = session.answered().map(|at| self.events.elapsed_at(at));
        self.events.emit(EventKind::Connected { machine: machine.name(), id, answered });
        Ok(Host::new(machine, session, self.events.clone(), self.spreads.clone(), self.cancel.clone()))
    }
}

/// The error of a machine that is not as its provider promised.
fn unfit(host: &Host) -> impl FnOnce(ProviderError) -> Error {
    let (machine, id) = (host.name().to_owned(), host.machine().id.clone());
    move |source| Error::Unfit { machine, id, source }
}
