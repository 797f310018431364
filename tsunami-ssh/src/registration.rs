//! How `local` and `hosts` are used from experiment files and commands.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tsunami_core::experiment::{Ssh, Transport};
use tsunami_core::registry::{
    Backend, Common, ConnectRequest, Form, GroupTable, Key, Machines, MakeConnector, Registration, Registry,
    Table, TableReader, Value, Values,
};
use tsunami_core::{Connector, MachineSpec, ProviderError, RunRecord};

use crate::{HostAddress, HostsProvider, HostsSpec, LocalProvider, SshConnector, SshOptions};

/// The keys of a group of hosts.
const HOSTS_KEYS: &[Key] = &[Key::new(
    "hosts",
    Form::List(&Form::Text),
    "its machines, as `user@host:port` or by their names in an ssh_config",
)
.required()];

/// The providers of this crate, and connections over SSH for those that have none of their own.
///
/// ```
/// use tsunami_core::experiment::Loader;
///
/// # let directory = tempfile::tempdir()?;
/// # let file = directory.path().join("x.toml");
/// # std::fs::write(&file, "name = 'x'\nprovider = 'hosts'\n[group.a]\nhosts = ['10.0.0.5']\n")?;
/// let registry = tsunami_ssh::registry();
/// let experiment = Loader::new().registry(&registry).load(file)?;
/// assert_eq!(experiment.provider, "hosts");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn registry() -> Registry {
    Registry::new()
        .with(Arc::new(LocalRegistration))
        .with(Arc::new(HostsRegistration))
        .connector(Arc::new(OverSsh))
}

/// Connects over SSH.
#[derive(Debug)]
struct OverSsh;

impl MakeConnector for OverSsh {
    fn connector(&self, ssh: &Ssh, accept_new_hosts: bool) -> Arc<dyn Connector> {
        Arc::new(SshConnector::new(options(ssh, accept_new_hosts)))
    }
}

/// Registers [`LocalProvider`] as `local`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalRegistration;

#[async_trait]
impl Registration for LocalRegistration {
    fn name(&self) -> &'static str {
        "local"
    }

    fn has_users(&self) -> bool {
        false
    }

    async fn connect(&self, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        let provider = Arc::new(LocalProvider::new(request.state.root()));
        let connector = Arc::new(SshConnector::new(options(request.ssh, request.accept_new_hosts)));
        Ok(Backend::new(provider, connector))
    }

    async fn reconnect(&self, _: &RunRecord, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        self.connect(request).await
    }
}

/// Registers [`HostsProvider`] as `hosts`.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostsRegistration;

#[async_trait]
impl Registration for HostsRegistration {
    fn name(&self) -> &'static str {
        "hosts"
    }

    fn group_keys(&self) -> &'static [Key] {
        HOSTS_KEYS
    }

    fn is_counted(&self) -> bool {
        false
    }

    fn reader(&self) -> Box<dyn TableReader> {
        Box::new(HostsReader::default())
    }

    async fn connect(&self, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        let connector = Arc::new(SshConnector::new(options(request.ssh, request.accept_new_hosts)));
        let provider = Arc::new(HostsProvider::new(request.state.root(), connector.clone()));
        Ok(Backend::new(provider, connector))
    }

    async fn reconnect(&self, _: &RunRecord, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        self.connect(request).await
    }
}

#[derive(Default)]
struct HostsReader {
    /// Who to log in as where a host doesn't say it.
    user: Option<String>,
    /// The hosts of all groups so far.
    taken: HashSet<String>,
}

impl TableReader for HostsReader {
    fn all(&mut self, common: &Common, _: Option<Table<'_>>, _: &mut Values<'_, '_>) {
        self.user.clone_from(&common.user);
    }

    fn group(&mut self, group: &GroupTable<'_>, values: &mut Values<'_, '_>) -> Option<Machines> {
        let Some(value) = group.table.get("hosts") else {
            let help = "list them as `hosts = [\"user@10.0.0.5\"]`".to_owned();
            values.problem(&group.place, "this group has no `hosts`", Some(help));
            return None;
        };
        let list = values.list(value)?;
        if list.is_empty() {
            values.problem(&value.place(), "a group has at least one host", None);
            return None;
        }
        let user = group.common.user.as_ref().or(self.user.as_ref()).cloned();
        let read: Vec<_> =
            list.iter().filter_map(|value| self.host(*value, user.as_deref(), values)).collect();
        let count = u32::try_from(list.len()).ok().and_then(NonZeroU32::new);
        if read.len() < list.len() {
            return None;
        }
        let mut machines = Machines::of(MachineSpec::new(HostsSpec::new(read)));
        machines.count = count;
        Some(machines)
    }
}

impl HostsReader {
    fn host(
        &mut self,
        value: Value<'_>,
        user: Option<&str>,
        values: &mut Values<'_, '_>,
    ) -> Option<HostAddress> {
        let host = values.host(value)?;
        if !self.taken.insert(host.clone()) {
            // Both would work, and clean up, in the same directory.
            let message = format!("`{host}` is listed twice; a host is one machine");
            values.problem(&value.place(), message, None);
            return None;
        }
        match host.parse::<HostAddress>() {
            Ok(address) => {
                let user = address.user.or(user.map(str::to_owned));
                Some(HostAddress { user, ..address })
            }
            Err(error) => {
                values.problem(&value.place(), error.to_string(), None);
                None
            }
        }
    }
}

fn options(ssh: &Ssh, accept_new_hosts: bool) -> SshOptions {
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
        transport: match ssh.transport {
            Transport::Openssh => crate::Transport::OpenSsh,
        },
    }
}

/// Paths are remembered with the run, for commands given elsewhere.
fn absolute(path: Option<&Path>) -> Option<PathBuf> {
    path.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tsunami_core::experiment::{Experiment, Loader, Problems};

    use super::*;

    fn load(text: &str) -> Result<Experiment, Problems> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.toml");
        fs::write(&file, text).unwrap();
        Loader::new().registry(&registry()).load(file)
    }

    fn refuses(text: &str, expected: &[&str]) {
        let problems = load(text).expect_err("this should be refused");
        let line = |problem| {
            let (line, column) = problems.place(problem).unwrap();
            let help = problem.advice().map(|help| format!(" ({help})")).unwrap_or_default();
            format!("{line}:{column} {}{help}", problem.message())
        };
        assert_eq!(problems.iter().map(line).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn hosts_are_machines() {
        let text = "name = 'x'\nprovider = 'hosts'\nuser = 'admin'\n[group.a]\nhosts = ['u@[::1]:22', 'box']\n\
                    [group.b]\nuser = 'root'\nhosts = ['10.0.0.5']\n";
        let experiment = load(text).unwrap();
        let hosts = |at: usize| -> Vec<String> {
            let spec = experiment.groups[at].spec.get::<HostsSpec>().unwrap();
            spec.hosts.iter().map(HostAddress::to_string).collect()
        };
        assert_eq!(
            (hosts(0), hosts(1)),
            (vec!["u@[::1]:22".into(), "admin@box".into()], vec!["root@10.0.0.5".into()])
        );
        assert_eq!(experiment.machines().count(), 3);
    }

    #[test]
    fn hosts_that_cannot_be() {
        refuses(
            r#"name = "x"
provider = "hosts"
[group.a]
[group.b]
count = 2
[group.c]
hosts = []
[group.d]
hosts = ["a", "b", "a", "-x", "u@-x", "a b", ""]
[group.e]
hosts = ["b", 3]"#,
            &[
                r#"3:8 this group has no `hosts` (list them as `hosts = ["user@10.0.0.5"]`)"#,
                r#"5:1 `count` is not for the provider "hosts" (the group's `hosts` are its machines)"#,
                "7:9 a group has at least one host",
                "9:20 `a` is listed twice; a host is one machine",
                "9:25 neither the user nor the host can be empty or begin with `-`",
                "9:31 neither the user nor the host can be empty or begin with `-`",
                "9:39 this can't hold spaces or control characters",
                "9:46 this is empty",
                "11:10 `b` is listed twice; a host is one machine",
                r#"11:15 expected a string, found an integer (write it as a string: "3")"#,
            ],
        );
    }

    #[test]
    fn keys_of_one_provider_are_not_for_the_other() {
        refuses(
            "name = 'x'\nuser = 'admin'\n[group.a]\nhosts = ['a']\n[group.b]\nuser = 'me'\n",
            &[
                r#"2:1 `user` is not for the provider "local" (its machines are used by whoever runs tsunami)"#,
                r#"4:1 `hosts` is for the provider "hosts" (set `provider = "hosts"`, or give a `count` of machines)"#,
                r#"6:1 `user` is not for the provider "local" (its machines are used by whoever runs tsunami)"#,
            ],
        );
        refuses(
            "name = 'x'\nprovider = 'host'\n[group.a]\n",
            &["2:12 `provider` can't be \"host\" (did you mean `hosts`?)"],
        );
    }
}
