//! Where the layers meet: from an experiment file to a plan, a provider and a connector.

#[cfg(feature = "aws")]
pub(crate) mod aws;
#[cfg(not(feature = "aws"))]
#[path = "compose/no_aws.rs"]
pub(crate) mod aws;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tsunami_core::experiment::{Experiment, Group, ProviderKind, Size, Ssh, Transport};
use tsunami_core::{Connector, MachineSpec, Provider, RunRecord, State};
use tsunami_ssh::{
    HostAddress, HostsProvider, HostsSpec, InvalidHost, LocalProvider, SshConnector, SshOptions,
};

use crate::error::Error;

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

/// Fills in what the groups are to be in their provider's terms.
pub(crate) fn specify(experiment: &mut Experiment) -> Result<(), Error> {
    for group in &mut experiment.groups {
        group.spec = spec(group)?;
    }
    Ok(())
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
