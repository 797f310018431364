//! The steps of an experiment file, as a trial.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::mem;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use rustix::fs::OFlags;
use tokio::task::spawn_blocking;

use super::plan::{environment, render, script_name};
use super::{Action, Experiment, OnError, Per, Ready, ReadyWhen, Scope, Setup, Step};
use crate::cluster::{Cluster, Output};
use crate::error::{Error, in_time};
use crate::event::UserEvent;
use crate::exclude::Exclude;
use crate::limits::{METRIC_FILE_LIMIT, OUTPUT_LIMIT};
use crate::outcome::gravest;
use crate::results::{Repeated, Results};
use crate::session::Command;
use crate::trial::{
    Collect, MachineContext, MachineText, Measure, Measured, Parameters, Ready as Sign, Trial, TrialCommand,
    TrialHost, Uploaded, in_a_row, lock,
};

/// What is done between trials is called so, in events and logs.
const RESET: &str = "reset";

/// The trials of an experiment file. What is collected goes into the results.
pub(super) struct FileTrials<'a> {
    pub(super) experiment: &'a Experiment,
    pub(super) results: &'a Results,
    /// The number of the set of machines that they are done on, as it was planned.
    pub(super) set: u32,
    /// The run that is repeated, if one is.
    pub(super) repeated: Option<&'a Repeated>,
}

impl FileTrials<'_> {
    fn steps(&self, trial: Trial, per: Per) -> Steps<'_> {
        // What is measured without the server that it is about is no measurement, however that ended.
        trial.services_go_on();
        let parameters = Arc::new(trial.parameters().clone());
        let (experiment, results, unread) = (self.experiment, self.results, Mutex::default());
        Steps { experiment, results, trial, per, parameters, unread }
    }
}

impl Measure for FileTrials<'_> {
    fn does_nothing(&self) -> bool {
        self.experiment.steps.is_empty()
    }

    fn prepares(&self) -> bool {
        self.experiment.steps.iter().any(|step| step.per == Per::Run)
    }

    async fn prepare(&self, trial: Trial) -> Result<(), Error> {
        self.steps(trial, Per::Run).all().await
    }

    fn looked_at(&self, cluster: &Cluster) {
        let Some((repeated, run)) = self.repeated.and_then(|repeated| Some((repeated, repeated.run()?)))
        else {
            return;
        };
        let report = self.results.report();
        let mut differences = repeated.differences(self.set, &report.machines);
        if let Some(told) = &report.repeats {
            differences.retain(|text| !told.differences.contains(text));
            if differences.is_empty() {
                return;
            }
        }
        cluster.emit(UserEvent::Repeats { run, differences });
    }

    async fn measure(&self, trial: Trial, is_first: bool) -> Result<(), Error> {
        let steps = self.steps(trial, Per::Trial);
        if !is_first {
            steps.reset().await?;
        }
        steps.clean().await?;
        steps.all().await
    }

    fn traces(&self) -> Option<PathBuf> {
        Some(self.results.traces())
    }

    fn set_aside(&self, trial: &str, attempt: &str) -> io::Result<()> {
        self.results.set_aside(trial, attempt)
    }
}

/// What machines printed that have succeeded, by their names: it is of worth although others fail.
type Printed = BTreeMap<String, Output>;

/// Everything that the steps of one trial need, or those that are done once for all trials.
struct Steps<'a> {
    experiment: &'a Experiment,
    results: &'a Results,
    trial: Trial,
    per: Per,
    parameters: Arc<Parameters>,
    /// Why metrics could not be read.
    unread: Mutex<Vec<Error>>,
}

impl Steps<'_> {
    /// The steps that are done now, in order.
    fn own(&self) -> impl Iterator<Item = &Step> {
        self.experiment.steps.iter().filter(|step| step.per == self.per)
    }

    /// Does what is done between trials.
    async fn reset(&self) -> Result<(), Error> {
        for reset in &self.experiment.resets {
            let hosts = self.hosts(RESET, &reset.on)?;
            let part = async |host: TrialHost| {
                let (me, line) = (host.context(), render(&reset.command, &self.scope(&host.context()))?);
                let mut command = self.in_group_env(host.command(Command::shell(line)), host.group(), &me)?;
                if let Some(timeout) = reset.timeout {
                    command = command.timeout(timeout);
                }
                command.run().await
            };
            self.trial.step(RESET, hosts, part).await?;
        }
        Ok(())
    }

    /// Removes what the steps will collect, so that no trial brings home another's files.
    async fn clean(&self) -> Result<(), Error> {
        let (mut parts, mut uploads) = (BTreeMap::<_, Vec<_>>::new(), HashMap::<_, Uploaded>::new());
        for step in self.own().filter(|step| !step.collect.is_empty()) {
            for host in self.hosts_of(step)? {
                let collect = self.collect(step, &host)?;
                parts.entry(host.name().to_owned()).or_default().push((host, collect));
            }
        }
        let mut removals = Vec::new();
        for parts in parts.into_values() {
            let (host, _) = &parts[0];
            // The machines of a group are alike, more likely than not.
            let uploaded = match uploads.entry(self.uploads(host)?) {
                Entry::Occupied(known) => known.get().clone(),
                Entry::Vacant(new) => {
                    let names = new.key().clone().names().await?;
                    new.insert(names).clone()
                }
            };
            removals.push(async move { parts[0].0.clean_all(&uploaded, &parts).await });
        }
        let failed = in_time(removals).await.into_iter().filter_map(Result::err);
        gravest(failed.collect()).map_or(Ok(()), Err)
    }

    async fn all(&self) -> Result<(), Error> {
        let all: Vec<&Step> = self.own().collect();
        let mut left = &all[..];
        while let [first, ..] = left {
            let row = self.row(left);
            let (last, done) = if row.len() > 1 {
                in_a_row(row).await
            } else {
                let hosts = self.hosts_of(first)?;
                let printed = Mutex::default();
                let done = self.trial.step(&first.name, hosts, |host| self.part(first, host, &printed)).await;
                let printed = mem::take(&mut *lock(&printed));
                self.read_metrics(first, &printed).await;
                (0, done.map(drop))
            };
            let step = left[last];
            left = &left[last + 1..];
            // Where a step's time was over as its command ended, it may be the next one's command that was ended.
            let is_anothers = |error: &Error| error.place().is_some_and(|(_, stage)| stage != step.name);
            match done {
                Err(error)
                    if self.trial.has_ended() || step.on_error == OnError::Fail || is_anothers(&error) =>
                {
                    return Err(error);
                }
                _ if self.trial.has_ended() => return Ok(()),
                _ => {}
            }
        }
        gravest(mem::take(&mut *lock(&self.unread))).map_or(Ok(()), Err)
    }

    /// Reads a step's metrics from what its machines printed, in their order, and brought home. One that can't be read fails
    /// the trial once the other steps are done.
    async fn read_metrics(&self, step: &Step, printed: &Printed) {
        for metric in &step.metrics {
            let texts = step.on.iter().map(async |machine| {
                let text = match &metric.file {
                    Some(file) => {
                        let path = self.results.collected(self.trial.name(), &step.name, machine).join(file);
                        let read = spawn_blocking(move || collected(&path)).await;
                        read.unwrap_or_else(|error| Err(error.to_string()))
                    }
                    None => printed_text(printed.get(machine)),
                };
                MachineText { machine: machine.clone(), text }
            });
            let texts = join_all(texts).await;
            // There may be much of it.
            let (read, name) = (metric.clone(), step.name.clone());
            let measured = spawn_blocking(move || read.read(&name, &texts)).await.unwrap_or_default();
            let of_machine = |measured: &&Measured| measured.missing.is_some() && measured.machine.is_some();
            let is_told = measured.iter().any(|measured| of_machine(&measured));
            for measured in measured {
                let host = measured.machine.as_deref().and_then(|machine| self.trial.host(machine).ok());
                if let Some(missing) = measured.missing.as_ref().filter(|_| host.is_some() || !is_told) {
                    let error = format!("metric {} can't be read: {missing}", metric.name);
                    lock(&self.unread).push(match host {
                        Some(host) => host.stage(&step.name).error(error),
                        None => Error::other(format!("step {}: {error}", step.name)),
                    });
                }
                self.trial.tell_measured(measured);
            }
        }
    }

    /// The commands of the first of these steps that may go over together. None if the first goes by itself.
    fn row(&self, steps: &[&Step]) -> Vec<TrialCommand> {
        let together = 1 + steps.windows(2).take_while(|pair| is_followed_at_once(pair[0], pair[1])).count();
        let command = |step: &&Step| self.command(step, self.hosts_of(step).ok()?.pop()?).ok();
        // One that can't be made fails when its turn has come.
        if together > 1 { steps[..together].iter().map_while(command).collect() } else { Vec::new() }
    }

    fn hosts_of(&self, step: &Step) -> Result<Vec<TrialHost>, Error> {
        self.hosts(&step.name, &step.on)
    }

    fn hosts(&self, step: &str, on: &[String]) -> Result<Vec<TrialHost>, Error> {
        let named = |error: Error| Error::other(format!("step {step}: {error}"));
        let host = |name: &String| Ok(self.trial.host(name).map_err(named)?.stage(step));
        on.iter().map(host).collect()
    }

    fn scope(&self, me: &MachineContext) -> Scope {
        let (machines, values) = (self.trial.machines(), self.experiment.values.clone());
        match self.per {
            Per::Run => Scope::run(me, machines, values),
            Per::Trial => Scope::step(me, machines, self.trial.name(), values).with(self.parameters.clone()),
        }
    }

    /// One machine's part of a step. Keeps what it `printed` if metrics are read from that.
    async fn part(&self, step: &Step, host: TrialHost, printed: &Mutex<Printed>) -> Result<(), Error> {
        let (me, machine) = (host.context(), host.name().to_owned());
        let command = self.command(step, host)?;
        match &step.action {
            Action::Run { .. } => {
                let output = command.run().await?;
                if step.metrics.iter().any(|metric| metric.file.is_none()) {
                    lock(printed).insert(machine, output);
                }
            }
            Action::Start { ready: Some(ready), .. } => {
                command.start_until(sign(ready, &self.scope(&me))?).await?;
            }
            Action::Start { ready: None, .. } => drop(command.start()),
        }
        Ok(())
    }

    /// What a step runs on a machine.
    fn command(&self, step: &Step, host: TrialHost) -> Result<TrialCommand, Error> {
        let me = host.context();
        let scope = self.scope(&me);
        let line = match &step.action {
            Action::Run { command, .. } | Action::Start { command, .. } => render(command, &scope)?,
        };
        let mut command = host.command(Command::shell(line));
        if !step.collect.is_empty() {
            command = command.collect(self.collect(step, &host)?);
        }
        command = self.in_group_env(command, host.group(), &me)?;
        for (name, value) in environment(&step.env, &scope)? {
            command = command.env(name, value);
        }
        if let Some(cwd) = &step.cwd {
            command = command.cwd(render(cwd, &scope)?);
        }
        if let Action::Run { timeout: Some(timeout), .. } = &step.action {
            command = command.timeout(*timeout);
        }
        Ok(command)
    }

    fn in_group_env(
        &self,
        mut command: TrialCommand,
        group: &str,
        me: &MachineContext,
    ) -> Result<TrialCommand, Error> {
        if let Some(group) = self.experiment.group(group) {
            for (name, value) in environment(&group.env, &Scope::setup(me, self.experiment.values.clone()))? {
                command = command.env(name, value);
            }
        }
        Ok(command)
    }

    /// What a step brings home from a machine.
    fn collect(&self, step: &Step, host: &TrialHost) -> Result<Collect, Error> {
        let scope = self.scope(&host.context());
        let into = self.results.collected(self.trial.name(), &step.name, host.name());
        let mut collect = Collect::into(into);
        for pattern in &step.collect {
            let glob = render(&pattern.template, &scope)?;
            collect = if pattern.optional { collect.optional(glob) } else { collect.pattern(glob) };
        }
        match &step.cwd {
            Some(cwd) => Ok(collect.cwd(render(cwd, &scope)?)),
            None => Ok(collect),
        }
    }

    /// What was uploaded to a machine.
    fn uploads(&self, host: &TrialHost) -> Result<Uploads, Error> {
        let Some(group) = self.experiment.group(host.group()) else { return Ok(Uploads::default()) };
        let scope = Scope::setup(&host.context(), self.experiment.values.clone());
        let files = group
            .upload
            .iter()
            .map(|upload| Ok((upload.from.clone(), render(&upload.to, &scope)?, upload.exclude.clone())));
        let scripts = group.setup.iter().enumerate().filter(|(_, setup)| matches!(setup, Setup::Script(_)));
        Ok(Uploads {
            files: files.collect::<Result<_, Error>>()?,
            scripts: scripts.map(|(number, _)| PathBuf::from(script_name(number))).collect(),
        })
    }
}

/// What was uploaded to a machine: from where, and to where. The scripts have their own names.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Uploads {
    files: Vec<(PathBuf, String, Exclude)>,
    scripts: Vec<PathBuf>,
}

impl Uploads {
    /// The names on the machine.
    async fn names(self) -> Result<Uploaded, Error> {
        // A tree may be large.
        let walk = move || {
            let files =
                self.files.iter().flat_map(|(from, to, exclude)| Uploaded::names_without(from, to, exclude));
            Uploaded::of(&files.chain(self.scripts).collect::<Vec<_>>())
        };
        spawn_blocking(walk).await.map_err(Error::other)
    }
}

/// Whether nothing is waited for between two steps but the end of a command on the machine of both. What the first collects
/// comes home before the second may write over it. And where the time-out of the first lets the others go on, it must
/// not end the second in its place.
fn is_followed_at_once(step: &Step, next: &Step) -> bool {
    let Action::Run { timeout, .. } = &step.action else { return false };
    let is_one_machines = step.on.len() == 1 && step.on == next.on;
    is_one_machines
        && matches!(next.action, Action::Run { .. })
        && step.collect.is_empty()
        && step.metrics.is_empty()
        && next.metrics.is_empty()
        && (timeout.is_none() || step.on_error == OnError::Fail)
}

/// What a command printed, if all of that was kept.
fn printed_text(printed: Option<&Output>) -> Result<Vec<u8>, String> {
    match printed {
        None => Err("the step did not succeed".to_owned()),
        Some(output) if output.truncated && output.stdout.len() >= OUTPUT_LIMIT => {
            let limit = OUTPUT_LIMIT >> 20;
            Err(format!("the step printed more than {limit} MiB; a file that is collected may be larger"))
        }
        Some(output) => Ok(output.stdout.clone()),
    }
}

/// What a file holds that was brought home. What it is called and is was up to a machine.
fn collected(path: &Path) -> Result<Vec<u8>, String> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let read = || {
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let mut bytes = Vec::new();
        let is_file = file.metadata()?.is_file();
        file.take(METRIC_FILE_LIMIT + 1).read_to_end(&mut bytes)?;
        Ok((is_file, bytes))
    };
    match read() {
        Ok((true, bytes)) if bytes.len() as u64 > METRIC_FILE_LIMIT => {
            Err(format!("the file is larger than {} MiB", METRIC_FILE_LIMIT >> 20))
        }
        Ok((true, bytes)) => Ok(bytes),
        Ok((false, _)) => Err("it is no file".to_owned()),
        Err(error) if io::Error::kind(&error) == io::ErrorKind::NotFound => {
            Err("no such file was collected".to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// How to tell that a command of a step has come up.
fn sign(ready: &Ready, scope: &Scope) -> Result<Sign, Error> {
    let sign = match &ready.when {
        ReadyWhen::Port(port) => Sign::port(*port),
        ReadyWhen::Http { port, path } => Sign::http(*port, render(path, scope)?),
        ReadyWhen::Command(line) => Sign::command(render(line, scope)?),
        ReadyWhen::Log(text) => Sign::log(render(text, scope)?),
    };
    Ok(sign.within(ready.timeout))
}
