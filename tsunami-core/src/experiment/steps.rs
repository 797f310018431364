//! The steps of an experiment file, as a trial.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use tokio::task::spawn_blocking;

use super::plan::{environment, render, script_name};
use super::{Action, Experiment, OnError, Ready, ReadyWhen, Scope, Setup, Step};
use crate::cluster::Cluster;
use crate::error::{Error, in_time};
use crate::outcome::gravest;
use crate::results::Results;
use crate::session::Command;
use crate::trial::{
    Collect, MachineContext, Ready as Sign, Trial, TrialCommand, TrialHost, Uploaded, in_a_row,
};

/// Does all steps in order, on machines that are up. What is collected goes into the results.
pub(super) async fn trial(
    experiment: &Experiment,
    cluster: &Cluster,
    results: &Results,
    name: &str,
) -> Result<(), Error> {
    let body = |trial| async move {
        let steps = Steps { experiment, results, trial };
        steps.clean().await?;
        steps.all().await
    };
    cluster.trial(name, body).await
}

/// Everything that the steps of one trial need.
struct Steps<'a> {
    experiment: &'a Experiment,
    results: &'a Results,
    trial: Trial,
}

impl Steps<'_> {
    /// Removes what the steps will collect, so that no trial brings home another's files.
    async fn clean(&self) -> Result<(), Error> {
        let (mut parts, mut uploads) = (BTreeMap::<_, Vec<_>>::new(), HashMap::<_, Uploaded>::new());
        for step in self.experiment.steps.iter().filter(|step| !step.collect.is_empty()) {
            for host in self.hosts(step)? {
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
        let mut left = &self.experiment.steps[..];
        while let [first, ..] = left {
            let row = self.row(left);
            let (last, done) = if row.len() > 1 {
                in_a_row(row).await
            } else {
                let hosts = self.hosts(first)?;
                (0, self.trial.step(&first.name, hosts, |host| self.part(first, host)).await.map(drop))
            };
            let step = &left[last];
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
        Ok(())
    }

    /// The commands of the first of these steps that may go over together. None if the first goes by itself.
    fn row(&self, steps: &[Step]) -> Vec<TrialCommand> {
        let together =
            1 + steps.windows(2).take_while(|pair| is_followed_at_once(&pair[0], &pair[1])).count();
        let command = |step: &Step| self.command(step, self.hosts(step).ok()?.pop()?).ok();
        // One that can't be made fails when its turn has come.
        if together > 1 { steps[..together].iter().map_while(command).collect() } else { Vec::new() }
    }

    fn hosts(&self, step: &Step) -> Result<Vec<TrialHost>, Error> {
        let named = |error: Error| Error::other(format!("step {}: {error}", step.name));
        let host = |name: &String| Ok(self.trial.host(name).map_err(named)?.stage(&step.name));
        step.on.iter().map(host).collect()
    }

    fn scope(&self, me: &MachineContext) -> Scope {
        Scope::step(me, self.trial.machines(), self.trial.name(), self.experiment.values.clone())
    }

    /// One machine's part of a step.
    async fn part(&self, step: &Step, host: TrialHost) -> Result<(), Error> {
        let me = host.context();
        let command = self.command(step, host)?;
        match &step.action {
            Action::Run { .. } => command.run().await.map(drop),
            Action::Start { ready: Some(ready), .. } => {
                command.start_until(sign(ready, &self.scope(&me))?).await.map(drop)
            }
            Action::Start { ready: None, .. } => {
                command.start();
                Ok(())
            }
        }
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
        if let Some(group) = self.experiment.group(host.group()) {
            for (name, value) in environment(&group.env, &Scope::setup(&me, self.experiment.values.clone()))?
            {
                command = command.env(name, value);
            }
        }
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
        let files = group.upload.iter().map(|upload| Ok((upload.from.clone(), render(&upload.to, &scope)?)));
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
    files: Vec<(PathBuf, String)>,
    scripts: Vec<PathBuf>,
}

impl Uploads {
    /// The names on the machine.
    async fn names(self) -> Result<Uploaded, Error> {
        // A tree may be large.
        let walk = move || {
            let files = self.files.iter().flat_map(|(from, to)| Uploaded::names(from, to));
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
        && (timeout.is_none() || step.on_error == OnError::Fail)
}

/// How to tell that a command of a step has come up.
fn sign(ready: &Ready, scope: &Scope) -> Result<Sign, Error> {
    let sign = match &ready.when {
        ReadyWhen::Port(port) => Sign::port(*port),
        ReadyWhen::Command(line) => Sign::command(render(line, scope)?),
        ReadyWhen::Log(text) => Sign::log(render(text, scope)?),
    };
    Ok(sign.within(ready.timeout))
}
