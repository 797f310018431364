//! Where the layers meet: from an experiment file to a plan, a provider and a connector.

#[cfg(feature = "aws")]
pub(crate) mod aws;
#[cfg(not(feature = "aws"))]
#[path = "compose/no_aws.rs"]
pub(crate) mod aws;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tsunami_core::{
    Command, Connector, Error as CoreError, Group as CoreGroup, Host, HostCommand, MachineSpec, Plan,
    Provider, RunRecord, State,
};
use tsunami_ssh::{
    HostAddress, HostsProvider, HostsSpec, InvalidHost, LocalProvider, SshConnector, SshOptions,
};

use crate::error::Error;
use tsunami_core::experiment::{
    EnvValue, Experiment, Facts, Fleet, Group, Interpreter, OnInterruption, ProviderKind, Scope, Setup, Size,
    Ssh, Template, TemplateError, Transport, Unusable, variables,
};

/// A provider and a connector that fit each other.
pub(crate) struct Backend {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) connector: Arc<dyn Connector>,
}

impl Backend {
    /// What an experiment asks for.
    pub(crate) async fn of(
        experiment: &Experiment,
        accept_new_hosts: bool,
        state: &State,
    ) -> Result<Self, Error> {
        let options = ssh_options(&experiment.ssh, accept_new_hosts);
        match experiment.provider {
            ProviderKind::Local => Ok(Self::local(state, options)),
            ProviderKind::Hosts => Ok(Self::hosts(state, options)),
            ProviderKind::Aws => aws::of(experiment, state, options).await,
        }
    }

    /// What a recorded run was made with. Its options for SSH are remembered in its directory.
    pub(crate) async fn recorded(record: &RunRecord, state: &State) -> Result<Self, Error> {
        match record.provider.as_str() {
            "local" => Ok(Self::local(state, SshOptions::default())),
            "hosts" => Ok(Self::hosts(state, SshOptions::default())),
            "aws" => aws::recorded(record, state).await,
            other => Err(Error::Usage(format!("this tsunami knows no provider `{other}`"))),
        }
    }

    pub(crate) fn local(state: &State, options: SshOptions) -> Self {
        let provider = Arc::new(LocalProvider::new(state.root()));
        Self { provider, connector: Arc::new(SshConnector::new(options)) }
    }

    pub(crate) fn hosts(state: &State, options: SshOptions) -> Self {
        let connector = Arc::new(SshConnector::new(options));
        Self { provider: Arc::new(HostsProvider::new(state.root(), connector.clone())), connector }
    }
}

fn ssh_options(ssh: &Ssh, accept_new_hosts: bool) -> SshOptions {
    let Transport::Openssh = ssh.transport;
    let defaults = SshOptions::default();
    SshOptions {
        config: absolute(ssh.config.as_deref()),
        jump: ssh.jump.clone(),
        user: ssh.user.clone(),
        key: absolute(ssh.key.as_deref()),
        known_hosts: absolute(ssh.known_hosts.as_deref()),
        accept_new_hosts,
        keepalive: ssh.keepalive.unwrap_or(defaults.keepalive),
        kex: ssh.kex.clone(),
        ..defaults
    }
}

/// Paths are remembered with the run, for commands given elsewhere.
fn absolute(path: Option<&Path>) -> Option<PathBuf> {
    path.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}

/// How long a machine without a hypervisor may take from its launch to a session, unless the file says otherwise: it
/// goes through its firmware first, which takes minutes.
const METAL_CONNECT_TIMEOUT: Duration = Duration::from_secs(900);

/// The plan of an experiment: its groups, each set up as the file says.
pub(crate) fn plan(experiment: &Arc<Experiment>) -> Result<Plan, Error> {
    let mut plan = Plan::new(&experiment.name).lifetime(experiment.lifetime);
    plan.budget = experiment.budget;
    let instances =
        experiment.groups.iter().filter_map(|group| group.aws.as_ref()).flat_map(|aws| &aws.instance);
    let is_metal = instances.into_iter().any(|instance| instance.contains(".metal"));
    if let Some(timeout) = experiment.ssh.connect_timeout.or(is_metal.then_some(METAL_CONNECT_TIMEOUT)) {
        plan = plan.connect_timeout(timeout);
    }
    for (index, group) in experiment.groups.iter().enumerate() {
        let experiment = experiment.clone();
        let setup = move |host: Host| {
            let experiment = experiment.clone();
            async move { set_up(&host, &experiment.groups[index], &experiment.set).await }
        };
        let replace = group.aws.as_ref().is_some_and(|aws| aws.on_interruption == OnInterruption::Replace);
        let group = CoreGroup::new(&group.name, spec(group)?).count(group.size.count()).setup(setup);
        plan = plan.group(group.replace_interrupted(replace));
    }
    Ok(plan)
}

fn spec(group: &Group) -> Result<MachineSpec, Error> {
    match &group.size {
        #[cfg(feature = "aws")]
        Size::Count(_) if group.aws.is_some() => Ok(group.aws.as_ref().map(aws::spec).unwrap_or_default()),
        Size::Count(_) => Ok(MachineSpec::default()),
        Size::Hosts(hosts) => {
            let hosts: Result<Vec<HostAddress>, InvalidHost> =
                hosts.iter().map(|host| host.parse()).collect();
            let hosts = hosts.map_err(|error| Error::Usage(format!("group {}: {error}", group.name)))?;
            Ok(MachineSpec::new(HostsSpec { hosts }))
        }
    }
}

/// Brings a machine's files and runs its set-up, in the file's order.
async fn set_up(host: &Host, group: &Group, set: &[(String, String)]) -> Result<(), CoreError> {
    let me = facts(host);
    let scope = Scope::setup(&me, set);
    for upload in &group.upload {
        host.upload(&upload.from, &render(&upload.to, &scope)?).await?;
    }
    let env = variables(&me, &Fleet::from(vec![me.clone()]), None);
    for (number, setup) in group.setup.iter().enumerate() {
        let command = match setup {
            Setup::Command(line) => host.command(Command::shell(render(line, &scope)?)),
            Setup::Script(path) => {
                let remote = script_name(number);
                host.upload(path, &remote).await?;
                let line = script_line(path, &remote).map_err(|error| host.error(error))?;
                host.command(Command::shell(line)).called(path.to_string_lossy())
            }
        };
        let command = with_env(command, &env, &group.env, &scope)?;
        command.run().await?;
    }
    Ok(())
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
pub(crate) fn script_name(number: usize) -> String {
    format!(".tsunami-setup-{number}")
}

/// Adds to a command's environment the facts and what the file says.
pub(crate) fn with_env(
    mut command: HostCommand,
    facts: &[(String, String)],
    env: &[(String, EnvValue)],
    scope: &Scope,
) -> Result<HostCommand, CoreError> {
    for (name, value) in facts {
        command = command.env(name, value);
    }
    for (name, value) in env {
        command = match value {
            EnvValue::Text(text) => command.env(name, render(text, scope)?),
            EnvValue::FromEnv { value, .. } => command.env(name, value.reveal()),
        };
    }
    Ok(command)
}

/// Renders a template, which was checked before the launch; what is left to fail is an address it can't have.
pub(crate) fn render(template: &Template, scope: &Scope) -> Result<String, CoreError> {
    template.render(scope).map_err(|error: TemplateError| CoreError::Other(error.into()))
}

/// What templates know of a machine.
pub(crate) fn facts(host: &Host) -> Facts {
    let machine = host.machine();
    Facts {
        name: host.name().to_owned(),
        group: host.group().to_owned(),
        index: host.index(),
        ip: host.ip().to_owned(),
        addresses: machine.addresses.clone(),
        run_id: machine.run.to_string(),
    }
}

#[cfg(all(test, feature = "aws"))]
mod tests {
    use super::*;

    #[test]
    fn bare_metal_is_waited_for_unless_the_file_says_for_how_long() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.toml");
        let waits = |instance: &str, more: &str| {
            let text = format!(
                "name = \"x\"\nprovider = \"aws\"\n[aws]\ninstance = \"{instance}\"\n[group.a]\n[[step]]\n\
                 on = \"a\"\nrun = \"true\"\n{more}"
            );
            std::fs::write(&path, text).unwrap();
            let experiment = Experiment::load(&path, &[], &|_| None);
            let experiment = experiment.unwrap_or_else(|problems| panic!("{problems:?}"));
            plan(&Arc::new(experiment)).unwrap().connect_timeout
        };
        assert_eq!(waits("c7g.metal", ""), METAL_CONNECT_TIMEOUT);
        assert_eq!(waits("c7i.metal-24xl", ""), METAL_CONNECT_TIMEOUT);
        assert_eq!(waits("c7g.large", ""), tsunami_core::Plan::new("x").connect_timeout);
        let said = waits("c7g.metal", "[ssh]\nconnect_timeout = \"3m\"\n");
        assert_eq!(said, Duration::from_secs(180));
    }
}
