//! Trials: what is measured once, on machines that are up, and everything that it began ended with it.
//!
//! [`Cluster::trial`] gives a closure a [`Trial`]. Its [hosts](TrialHost) run commands with the trial's
//! [environment](MachineContext::variables) and mark; [services](Service) go on in the background until the trial
//! ends, and are [ready](Ready) when they say so; [`Collect`] brings home what was measured, and nothing of an earlier
//! trial.
//!
//! ```
//! use tsunami_core::trial::Ready;
//! use tsunami_core::{Cluster, Command, Error};
//!
//! async fn measure(cluster: &Cluster) -> Result<String, Error> {
//!     cluster
//!         .trial("1", async |trial| {
//!             let server = trial.host("server-0")?.stage("serve");
//!             server.command(Command::shell("redis-server --port 6379")).start_until(Ready::port(6379)).await?;
//!             let client = trial.host("client-0")?.stage("load");
//!             let output = client.run(format!("redis-benchmark -h {} --csv", client.ip_of(&server)?)).await?;
//!             Ok(output.stdout().into_owned())
//!         })
//!         .await
//! }
//! ```
//!
//! [`Cluster::trials`] runs many of them: all combinations of some parameters, each so often, in an order that is fair to
//! all, as [`Trials`] says.
//!
//! # When the future is dropped
//!
//! What the trial began is ended in the background, as with every [`Process`](crate::Process); the end of the run waits
//! for it.

mod collect;
mod command;
mod context;
mod metrics;
#[cfg(feature = "experiment")]
mod reading;
mod ready;
#[cfg(feature = "experiment")]
mod row;
mod schedule;
mod sweep;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::ops::Deref;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Host, Hosts, Output};
use crate::compact_script;
use crate::error::{Error, ErrorChain, in_time};
use crate::event::UserEvent;
use crate::names;
use crate::outcome::gravest;
use crate::session::Command;
use crate::statistics::Direction;

pub use collect::{Collect, Uploaded};
pub use command::{InTrial, Service, TrialCommand};
pub use context::{MachineContext, Machines};
pub use metrics::{Across, Measured, Metric, MetricPlan, Reduce, Source};
#[cfg(feature = "experiment")]
pub(crate) use reading::{HdrStatistic, MachineText, regex};
pub use ready::{DEFAULT_READY_TIMEOUT, Ready};
#[cfg(feature = "experiment")]
pub(crate) use row::in_a_row;
pub use schedule::{
    Compare, OddMachines, Order, Parameter, ParameterValue, Parameters, PlannedTrial, SweepPlan, Trials,
    VoidReason,
};

#[cfg(feature = "experiment")]
pub(crate) use sweep::{Measure, Sweep, new_seed};

use collect::Kept;
use command::Background;
use sweep::Progress;

/// Ends what a trial has left.
const SWEEP: &str = concat!(include_str!("../processes.sh"), include_str!("sweep.sh"));

/// The variable that tells a stage's processes.
const STEP: &str = "TSUNAMI_STEP";

/// What errors call that command.
const SWEEPING: &str = "end what the trial had left";

/// One trial: a name, the machines it runs on, and all that it has begun. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Trial {
    inner: Arc<TrialInner>,
}

#[derive(Debug)]
struct TrialInner {
    name: String,
    /// What the parameters are.
    parameters: Parameters,
    cluster: Cluster,
    machines: Machines,
    /// The sweep that it is one of.
    sweep: Option<Progress>,
    /// Ends all that the trial has begun.
    over: CancellationToken,
    /// Whether a service that ends with status 0 before the trial does is an error.
    services_go_on: AtomicBool,
    /// What goes on until the trial ends, by the number of its [`Service`].
    services: Mutex<Vec<Option<Background>>>,
    /// The machines that commands were begun on.
    used: Mutex<BTreeSet<String>>,
    kept: Kept,
}

impl Cluster {
    /// Runs a trial. Its name is in the environment of its commands and tells their processes, so that it is used
    /// once in a run, at least at one time.
    ///
    /// When `body` has ended, so has all that it began: services get TERM, five seconds, then KILL, and so does
    /// whatever else the trial's commands have left running. A service that failed before its time fails the trial.
    ///
    /// When a machine is interrupted or gone, the trial's commands end, and the trial fails with that once `body` has
    /// returned: what the others measure from then on is worth nothing, and they may wait for it in vain. What `body` awaits
    /// beside commands can be raced with [`Trial::ended`].
    ///
    /// If the future is dropped, the trial's commands and services are ended in the background, and what they have left
    /// running is not looked for.
    ///
    /// # Errors
    ///
    /// The first in time, with the others after it, of: what `body` returns, a service that failed, what could not be
    /// ended, and a machine that was interrupted or is gone.
    pub async fn trial<T, F, Fut>(&self, name: impl Into<String>, body: F) -> Result<T, Error>
    where
        F: FnOnce(Trial) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        self.attempt(Trial::new(self, name.into(), Parameters::new(), None)?, true, body).await
    }

    /// Ends what the trials of a process that was killed have left on the machines: a new server would find its port taken,
    /// and what is left there would pass for it. Nobody else's trials may be under way there.
    #[cfg(feature = "experiment")]
    pub(crate) async fn end_earlier_trials(&self) -> Result<(), Error> {
        end_left(self.hosts().iter(), "").await
    }

    /// Runs a trial, of which events tell if it is `told`.
    async fn attempt<T, F, Fut>(&self, trial: Trial, told: bool, body: F) -> Result<T, Error>
    where
        F: FnOnce(Trial) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        // What the trial has begun knows the trial, so that nothing but this ends it if the future is dropped.
        let unless_ended = trial.inner.over.clone().drop_guard();
        let begun = Instant::now();
        if told {
            self.emit(UserEvent::TrialStarted { trial: trial.name().to_owned() });
        }
        let mut doing = Box::pin(body(trial.clone()));
        let done = tokio::select! {
            biased;
            done = &mut doing => done,
            () = self.leaving() => {
                trial.inner.over.cancel();
                doing.await
            }
        };
        // Whatever else failed, it is this that decides, and it is said with the stage where that is known.
        let departed = self.departure().await;
        let (stopped, swept) = (trial.stop_services().await, trial.sweep().await);
        unless_ended.disarm();
        let (value, failed) = match done {
            Ok(value) => (Some(value), None),
            Err(error) => (None, Some(error)),
        };
        let errors = [failed, stopped.err(), swept.err(), departed].into_iter().flatten();
        let result = gravest(errors.collect()).map_or(Ok(value), Err);
        let (ok, took) = (result.is_ok(), begun.elapsed());
        let error = result.as_ref().err().map(|error| ErrorChain(error).to_string());
        if told {
            self.emit(UserEvent::TrialFinished { trial: trial.name().to_owned(), ok, error, took });
        }
        result?.ok_or(Error::Cancelled)
    }
}

impl Trial {
    fn new(
        cluster: &Cluster,
        name: String,
        parameters: Parameters,
        sweep: Option<Progress>,
    ) -> Result<Self, Error> {
        if !names::is_experiment_name(&name) {
            let message = format!("`{name}` can't name a trial: {}", names::EXPERIMENT_NAME);
            return Err(Error::other(message));
        }
        Ok(Self {
            inner: Arc::new(TrialInner {
                name,
                parameters,
                sweep,
                cluster: cluster.clone(),
                machines: cluster.hosts().iter().map(MachineContext::of).collect::<Vec<_>>().into(),
                over: CancellationToken::new(),
                services_go_on: AtomicBool::new(false),
                services: Mutex::default(),
                used: Mutex::default(),
                kept: Kept::default(),
            }),
        })
    }

    /// The machines that commands were begun on.
    fn used(&self) -> BTreeSet<String> {
        lock(&self.inner.used).clone()
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// What all parameters are in this trial; none outside of a [sweep](Cluster::trials).
    pub fn parameters(&self) -> &Parameters {
        &self.inner.parameters
    }

    /// What a parameter is in this trial.
    ///
    /// # Errors
    ///
    /// There is no such parameter.
    pub fn parameter(&self, name: &str) -> Result<&ParameterValue, Error> {
        let value = self.inner.parameters.get(name);
        value.ok_or_else(|| Error::other(format!("trial {} has no parameter {name}", self.name())))
    }

    /// Notes what was measured, in whatever unit, and which direction is better. Of several of a trial and metric, the
    /// last counts. What is not a finite number is told, and counts as missing in comparisons.
    pub fn metric(&self, name: &str, better: Direction, value: f64) {
        if let Some(sweep) = &self.inner.sweep {
            sweep.add_metric(&self.inner.cluster, name, better);
        }
        let measured = Measured { metric: name.to_owned(), value: Some(value), ..Measured::default() };
        self.tell_measured(measured);
    }

    /// Tells a number that was read, or why it could not be.
    pub(crate) fn tell_measured(&self, measured: Measured) {
        let trial = self.name().to_owned();
        self.inner.cluster.emit(UserEvent::Measured { trial, measured });
    }

    /// What is known of all machines of the run.
    pub fn machines(&self) -> &Machines {
        &self.inner.machines
    }

    /// A machine by its name, such as `client-0`.
    ///
    /// # Errors
    ///
    /// There is no such machine.
    pub fn host(&self, name: &str) -> Result<TrialHost, Error> {
        match self.inner.cluster.host(name) {
            Some(host) => Ok(self.take(host)),
            None => Err(Error::other(format!("there is no machine {name} in this run"))),
        }
    }

    /// All machines, by group in the plan's order, then by index.
    pub fn hosts(&self) -> Hosts<TrialHost> {
        self.inner.cluster.hosts().iter().map(|host| self.take(host)).collect()
    }

    /// The machines of a group, by index; none if there is no such group.
    pub fn group(&self, name: &str) -> Hosts<TrialHost> {
        self.inner.cluster.group(name).iter().map(|host| self.take(host)).collect()
    }

    fn take(&self, host: &Host) -> TrialHost {
        TrialHost { host: host.clone(), trial: self.clone() }
    }

    /// Does `part` on all these machines at once, as a step that events tell of, and whose name is the machines' stage.
    /// What the parts return is in the order of the machines. If some fail, all are awaited, and the error is the
    /// first in time with the others after it. If the future is dropped, the parts' commands are ended in the background, and
    /// no event tells the end of the step.
    ///
    /// What may be done on a few machines at a time only is no step but [`Hosts::for_each`].
    ///
    /// # Errors
    ///
    /// What the parts return.
    pub async fn step<T, F, Fut>(
        &self,
        name: &str,
        hosts: impl IntoIterator<Item = TrialHost>,
        part: F,
    ) -> Result<Vec<T>, Error>
    where
        F: Fn(TrialHost) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let (begun, hosts) = (Instant::now(), hosts.into_iter().collect::<Hosts<_>>());
        self.tell_step(name, hosts.iter().map(|host| host.name().to_owned()).collect());
        let done = hosts.for_each(None, |host| part(host.stage(name))).await;
        self.tell_end_of_step(name, begun, done.is_ok());
        done
    }

    fn tell_step(&self, step: &str, machines: Vec<String>) {
        let (trial, step) = (self.name().to_owned(), step.to_owned());
        self.inner.cluster.emit(UserEvent::StepStarted { trial, step, machines });
    }

    fn tell_end_of_step(&self, step: &str, begun: Instant, ok: bool) {
        let (trial, step, took) = (self.name().to_owned(), step.to_owned(), begun.elapsed());
        self.inner.cluster.emit(UserEvent::StepFinished { trial, step, ok, took });
    }

    /// Waits until the trial is over before its time, because a machine was interrupted or is gone.
    pub async fn ended(&self) {
        self.inner.over.cancelled().await;
    }

    /// Whether it is.
    pub fn has_ended(&self) -> bool {
        self.inner.over.is_cancelled()
    }

    fn services(&self) -> MutexGuard<'_, Vec<Option<Background>>> {
        lock(&self.inner.services)
    }

    /// Has services go on until the trial ends: one that ends before is an error, however it did.
    #[cfg(feature = "experiment")]
    pub(crate) fn services_go_on(&self) {
        self.inner.services_go_on.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Lets go of the services that have ended by themselves, and returns how they did, as one error.
    async fn ended_services(&self) -> Option<Error> {
        let ended: Vec<Background> = {
            let mut services = self.services();
            services.iter_mut().filter_map(|service| service.take_if(|service| service.has_ended())).collect()
        };
        let errors = in_time(ended.into_iter().map(Background::ended)).await;
        gravest(errors.into_iter().flatten().collect())
    }

    /// Ends what was started, all at once, and brings its files home. The machine of each says whether it still ran: what
    /// has been heard of it depends on how long that was under way.
    async fn stop_services(&self) -> Result<(), Error> {
        let services: Vec<Background> = std::mem::take(&mut *self.services()).into_iter().flatten().collect();
        let stopped = in_time(services.into_iter().map(Background::stop)).await;
        gravest(stopped.into_iter().filter_map(Result::err).collect()).map_or(Ok(()), Err)
    }

    /// Ends what the trial's commands have left in the background.
    async fn sweep(&self) -> Result<(), Error> {
        let used = self.used();
        end_left(used.iter().filter_map(|name| self.inner.cluster.host(name)), self.name()).await
    }
}

/// Ends what a trial's commands have left on machines; those of all trials if it has no name.
async fn end_left(hosts: impl Iterator<Item = &Host>, trial: &str) -> Result<(), Error> {
    let sweeps = hosts.map(|host| {
        let command = own_script("sweep", SWEEP).arg(trial);
        // What goes on running there may disturb the next attempt.
        let command = host.stage("end of trial").command(command).called(SWEEPING).unobserved();
        command.despite_interruption().run()
    });
    let failed = in_time(sweeps).await.into_iter().filter_map(Result::err);
    gravest(failed.collect()).map_or(Ok(()), Err)
}

/// A machine in a trial. What it runs has the trial's environment and mark, and ends with the trial. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TrialHost {
    host: Host,
    trial: Trial,
}

impl Deref for TrialHost {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl TrialHost {
    /// The same machine in another [stage](Host::stage).
    pub fn stage(&self, stage: &str) -> Self {
        Self { host: self.host.stage(stage), trial: self.trial.clone() }
    }

    /// The trial.
    pub fn trial(&self) -> &Trial {
        &self.trial
    }

    /// What is known of the machine.
    pub fn context(&self) -> MachineContext {
        MachineContext::of(&self.host)
    }

    /// Prepares a line for the machine's shell to run: [`Command::shell`].
    pub fn shell(&self, line: impl Into<String>) -> TrialCommand {
        self.command(Command::shell(line))
    }

    /// Prepares a program to run on the machine, with arguments that no shell reads: [`Command::program`].
    pub fn program(&self, name: impl Into<OsString>) -> TrialCommand {
        self.command(Command::program(name))
    }

    /// Prepares a command to run on the machine.
    pub fn command(&self, command: Command) -> TrialCommand {
        lock(&self.trial.inner.used).insert(self.name().to_owned());
        let (trial, stage) = (&self.trial, self.host.stage_name());
        let mut own = self.host.command(command).cancel_on(trial.inner.over.clone()).env(STEP, stage);
        for (name, value) in self.context().variables(trial.machines(), Some(trial.name())) {
            own = own.env(name, value);
        }
        own.within(InTrial { host: self.clone(), collect: None })
    }

    /// Runs a shell line, which must succeed, and returns what it wrote. If the future is dropped, the command is ended in
    /// the background.
    ///
    /// # Errors
    ///
    /// As [`TrialCommand::run`](crate::HostCommand::run) has them.
    pub async fn run(&self, line: impl Into<String>) -> Result<Output, Error> {
        self.command(Command::shell(line)).run().await
    }
}

/// A command made of a script of tsunami's own, of which whoever shows it shows the name and the arguments.
pub(crate) fn own_script(name: &str, script: &str) -> Command {
    let run = Command::program("sh").arg("-c").arg(r#"eval "$TSUNAMI_SCRIPT""#).arg(name);
    run.env("TSUNAMI_SCRIPT", compact_script(script))
}

/// Locks; a panic elsewhere is no reason to leave anything running.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
