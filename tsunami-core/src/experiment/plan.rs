//! From an experiment to a plan: its groups, each set up as the file says.

use std::ffi::OsString;
use std::mem;
use std::path::Path;
use std::sync::Arc;

use super::script::{Interpreter, Unusable};
use super::{EnvValue, Experiment, Group, Scope, Setup, Template};
use crate::cluster::Host;
use crate::error::Error;
use crate::plan::{Group as PlanGroup, Plan};
use crate::session::Command;
use crate::trial::{MachineContext, Machines, Parameters};

impl Experiment {
    /// The plan of the experiment.
    pub fn plan(&self) -> Plan {
        let experiment = Arc::new(self.clone());
        let mut plan = Plan::new(&self.name).lifetime(self.lifetime);
        plan.budget = self.budget;
        let longest = self.groups.iter().filter_map(|group| group.connect_timeout).max();
        if let Some(timeout) = self.connection.connect_timeout.or(longest) {
            plan = plan.connect_timeout(timeout);
        }
        for (index, group) in self.groups.iter().enumerate() {
            let of = experiment.clone();
            let setup = move |host: Host| {
                let experiment = of.clone();
                async move { set_up(&host, &experiment.groups[index], &experiment.values).await }
            };
            let mut planned =
                PlanGroup::new(&group.name, group.spec.clone()).count(group.count.get()).setup(setup);
            let (of, name) = (experiment.clone(), group.name.clone());
            planned.place = Some(Arc::new(move |key| of.place_of(&name, key)));
            plan = plan.group(planned.replace_interrupted(group.replace_interrupted));
        }
        plan
    }
}

/// Brings a machine's files and runs its set-up, in the file's order.
async fn set_up(host: &Host, group: &Group, values: &Arc<Parameters>) -> Result<(), Error> {
    let me = MachineContext::of(host);
    let scope = Scope::setup(&me, values.clone());
    for upload in &group.upload {
        let to = render(&upload.to, &scope)?;
        match &upload.template {
            Some(template) => {
                let wrong = |error| host.error(format!("{}: {error}", upload.from.display()));
                host.upload_text(&upload.from, &to, template.render(&scope).map_err(wrong)?).await?;
            }
            None => host.upload_without(&upload.from, &to, &upload.exclude).await?,
        }
    }
    let facts = me.variables(&Machines::from(vec![me.clone()]), None);
    let mut commands = Vec::new();
    for (number, setup) in group.setup.iter().enumerate() {
        let command = match setup {
            Setup::Command(line) => render(line, &scope).map(|line| host.command(Command::shell(line))),
            Setup::Script(path) => {
                host.run_list(mem::take(&mut commands), false).await?;
                let remote = script_name(number);
                host.upload(path, &remote).await?;
                let line = script_line(path, &remote).map_err(|error| host.error(error));
                line.map(|line| host.command(Command::shell(line)).called(path.to_string_lossy()))
            }
        };
        let prepared = command.and_then(|mut command| {
            let facts = facts.iter().map(|(name, value)| (name.clone(), value.into()));
            for (name, value) in facts.chain(environment(&group.env, &scope)?) {
                command = command.env(name, value);
            }
            Ok(command)
        });
        match prepared {
            Ok(command) => commands.push(command),
            // It fails when its turn has come.
            Err(error) => return host.run_list(commands, false).await.and(Err(error)),
        }
    }
    host.run_list(commands, false).await.map(drop)
}

/// The line that runs a set-up script: by its interpreter, since it may lie where nothing may be executed.
fn script_line(script: &Path, remote: &str) -> Result<String, String> {
    let Interpreter { program, argument } = Interpreter::of(script).map_err(|error| match error {
        Unusable::Unreadable(error) => format!("{} can't be read: {error}", script.display()),
        Unusable::Wrong { message, .. } => format!("{} {message}", script.display()),
    })?;
    let quoted = |text: &str| shlex::try_quote(text).map(String::from).map_err(|error| error.to_string());
    let argument = argument.map(|text| quoted(&text)).transpose()?.map(|text| text + " ").unwrap_or_default();
    let missing = quoted(&format!("the script's interpreter {program} is not on this machine"))?;
    let program = quoted(&program)?;
    Ok(format!(
        "chmod u+x {remote}; [ -x {program} ] || {{ echo {missing} >&2; exit 127; }}; exec {program} {argument}./{remote}"
    ))
}

/// The name that a set-up script has on a machine.
pub(super) fn script_name(number: usize) -> String {
    format!(".tsunami-setup-{number}")
}

/// The variables that the file gives to a command.
pub(super) fn environment(
    env: &[(String, EnvValue)],
    scope: &Scope,
) -> Result<Vec<(String, OsString)>, Error> {
    let value = |value: &EnvValue| match value {
        EnvValue::Text(text) => render(text, scope).map(OsString::from),
        EnvValue::FromEnv { value, .. } => Ok(value.reveal().to_owned()),
    };
    env.iter().map(|(name, text)| Ok((name.clone(), value(text)?))).collect()
}

/// Renders a template, which was checked before the launch; what is left to fail is an address it can't have.
pub(super) fn render(template: &Template, scope: &Scope) -> Result<String, Error> {
    template.render(scope).map_err(Error::other)
}
