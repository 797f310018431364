//! The shared suites on real machines.

mod common;

use std::fs;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{Machines, unique_run};
use tempfile::TempDir;
use tokio::time::Instant;
use tsunami_core::testing::conformance::ProviderHarness;
use tsunami_core::{Command, Connector, MachineSpec, Provider, RunId, Session};
use tsunami_ssh::{HostAddress, HostsProvider, HostsSpec, LocalProvider, SshConnector, SshOptions};

#[derive(Debug)]
struct Local {
    provider: LocalProvider,
    connector: SshConnector,
    runs: Vec<RunId>,
    root: TempDir,
}

impl Local {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let runs = (0..10).map(|_| unique_run()).collect();
        let connector = SshConnector::new(SshOptions::default());
        Self { provider: LocalProvider::new(root.path()), connector, runs, root }
    }
}

impl ProviderHarness for Local {
    fn provider(&self) -> &dyn Provider {
        &self.provider
    }

    fn spec(&self, _: NonZeroU32) -> MachineSpec {
        MachineSpec::default()
    }

    fn run_id(&self, nth: u32) -> RunId {
        self.runs[nth as usize].clone()
    }

    fn connector(&self, run: &RunId) -> Option<(&dyn Connector, PathBuf)> {
        Some((&self.connector, self.root.path().join(run.as_str())))
    }

    // Nobody takes them back.
    fn replaces_machines(&self) -> bool {
        false
    }
}

mod local_provider {
    use super::*;
    tsunami_core::provider_conformance!(#[tokio::test(flavor = "multi_thread")], async { Local::new() });
}

/// Hosts that exist already: they are another run's local machines, so that there is something to reach.
#[derive(Debug)]
struct Hosts {
    provider: HostsProvider,
    connector: Arc<SshConnector>,
    runs: Vec<RunId>,
    existing: Machines,
    root: TempDir,
}

impl Hosts {
    async fn new() -> Self {
        let existing = Machines::launch(3).await;
        let root = tempfile::tempdir().unwrap();
        let connector = Arc::new(SshConnector::new(options(&existing)));
        let runs = (0..10).map(|_| unique_run()).collect();
        let provider = HostsProvider::new(root.path(), connector.clone());
        Self { provider, connector, runs, existing, root }
    }
}

/// What a user needs to reach machines that exist: a key and the hosts' keys.
fn options(existing: &Machines) -> SshOptions {
    let lines = existing.machines.iter().map(|machine| {
        let (address, port) = (machine.addresses.own().unwrap(), machine.login.port.unwrap());
        format!("[{address}]:{port} {}\n", machine.login.host_key.as_deref().unwrap())
    });
    let known_hosts = existing.root.path().join("known");
    fs::write(&known_hosts, lines.collect::<String>()).unwrap();
    SshOptions {
        key: Some(existing.directory().join("ssh/id_ed25519")),
        known_hosts: Some(known_hosts),
        ..SshOptions::default()
    }
}

fn addresses(existing: &Machines) -> Vec<HostAddress> {
    let machines = existing.machines.iter();
    machines
        .map(|machine| HostAddress {
            user: machine.login.user.clone(),
            host: machine.addresses.own().unwrap().to_owned(),
            port: machine.login.port,
        })
        .collect()
}

impl ProviderHarness for Hosts {
    fn provider(&self) -> &dyn Provider {
        &self.provider
    }

    fn spec(&self, _: NonZeroU32) -> MachineSpec {
        MachineSpec::new(HostsSpec { hosts: addresses(&self.existing) })
    }

    fn run_id(&self, nth: u32) -> RunId {
        self.runs[nth as usize].clone()
    }

    fn connector(&self, run: &RunId) -> Option<(&dyn Connector, PathBuf)> {
        Some((&*self.connector, self.root.path().join(run.as_str())))
    }

    // Hosts outlive their run: only what it left there ends.
    fn ends_machines(&self) -> bool {
        false
    }

    fn replaces_machines(&self) -> bool {
        false
    }

    fn makes_host_keys(&self) -> bool {
        false
    }
}

mod hosts_provider {
    use super::*;
    tsunami_core::provider_conformance!(#[tokio::test(flavor = "multi_thread")], Hosts::new());
}

/// A session to a machine that lives as long.
struct Connected {
    session: Box<dyn Session>,
    _machines: Machines,
}

impl AsRef<dyn Session> for Connected {
    fn as_ref(&self) -> &dyn Session {
        &*self.session
    }
}

async fn connected() -> Connected {
    let machines = Machines::launch(1).await;
    Connected { session: connect(&machines, 0).await, _machines: machines }
}

async fn connect(machines: &Machines, index: usize) -> Box<dyn Session> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let session = machines.connector.connect(&machines.machines[index], deadline).await;
    session.unwrap_or_else(|error| panic!("{error}"))
}

mod session {
    use super::*;
    tsunami_core::session_conformance!(#[tokio::test(flavor = "multi_thread")], connected());
}

mod shell {
    use super::*;
    tsunami_core::shell_conformance!(#[tokio::test(flavor = "multi_thread")], connected());
}

/// A machine that is taken back may live for as long as its replacement takes to come up.
#[tokio::test]
async fn the_newest_machine_of_a_name_is_reached_while_the_old_one_lives() {
    let mut machines = Machines::launch(2).await;
    let old = connect(&machines, 0).await;
    machines.machines[1].index = 0;
    let new = connect(&machines, 1).await;
    for (session, directory) in [(old, "node-0"), (new, "node-1")] {
        let there =
            Command::shell(format!("case $HOME in */{directory}/home) ;; *) echo \"$HOME\"; exit 1 ;; esac"));
        let exit = session.exec(&there, Arc::new(()), &Default::default()).await.unwrap();
        assert!(exit.success(), "{directory} was not reached");
    }
    let pins = fs::read_to_string(machines.directory().join("ssh/known_hosts")).unwrap();
    assert_eq!(pins.lines().count(), 1, "{pins}");
}
