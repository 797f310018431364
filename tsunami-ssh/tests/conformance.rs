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
use tsunami_ssh::{
    HostAddress, HostsProvider, HostsSpec, LocalProvider, SshConnector, SshOptions, TransportKind,
};

#[derive(Debug)]
struct Local {
    provider: LocalProvider,
    connector: SshConnector,
    runs: Vec<RunId>,
    root: TempDir,
}

impl Local {
    fn new(transport: TransportKind) -> Self {
        let root = tempfile::tempdir().unwrap();
        let runs = (0..10).map(|_| unique_run()).collect();
        let connector = SshConnector::new(SshOptions::default().transport(transport));
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
    async fn new(transport: TransportKind) -> Self {
        let existing = Machines::launch(3, transport).await;
        let root = tempfile::tempdir().unwrap();
        let options = options(&existing).transport(transport);
        let connector = Arc::new(SshConnector::new(options));
        let runs = (0..10).map(|_| unique_run()).collect();
        let provider = HostsProvider::new(root.path(), connector.clone());
        Self { provider, connector, runs, existing, root }
    }
}

/// What a user needs to reach machines that exist: a key and the hosts' keys.
fn options(existing: &Machines) -> SshOptions {
    let lines = existing.machines.iter().map(|machine| {
        let (address, port) = (machine.addresses.internal().unwrap(), machine.login.port.unwrap());
        format!("[{address}]:{port} {}\n", machine.login.host_key.as_deref().unwrap())
    });
    let known_hosts = existing.root.path().join("known");
    fs::write(&known_hosts, lines.collect::<String>()).unwrap();
    SshOptions::default().key(existing.directory().join("ssh/id_ed25519")).known_hosts(known_hosts)
}

fn addresses(existing: &Machines) -> Vec<HostAddress> {
    let machines = existing.machines.iter();
    machines
        .map(|machine| HostAddress {
            user: machine.login.user.clone(),
            host: machine.addresses.internal().unwrap().to_owned(),
            port: machine.login.port,
        })
        .collect()
}

impl ProviderHarness for Hosts {
    fn provider(&self) -> &dyn Provider {
        &self.provider
    }

    fn spec(&self, _: NonZeroU32) -> MachineSpec {
        MachineSpec::new(HostsSpec::new(addresses(&self.existing)))
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

async fn connected(transport: TransportKind) -> Connected {
    let machines = Machines::launch(1, transport).await;
    Connected { session: connect(&machines, 0).await, _machines: machines }
}

async fn connect(machines: &Machines, index: usize) -> Box<dyn Session> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let session = machines.connector.connect(&machines.machines[index], deadline).await;
    session.unwrap_or_else(|error| panic!("{error}"))
}

/// All suites over one transport.
macro_rules! suites {
    ($name:ident, $transport:expr) => {
        mod $name {
            mod local_provider {
                use super::super::*;
                tsunami_core::provider_conformance!(#[tokio::test(flavor = "multi_thread")], async { Local::new($transport) });
            }

            mod hosts_provider {
                use super::super::*;
                tsunami_core::provider_conformance!(#[tokio::test(flavor = "multi_thread")], Hosts::new($transport));
            }

            mod session {
                use super::super::*;
                tsunami_core::session_conformance!(#[tokio::test(flavor = "multi_thread")], connected($transport));
            }

            mod shell {
                use super::super::*;
                tsunami_core::shell_conformance!(#[tokio::test(flavor = "multi_thread")], connected($transport));
            }
        }
    };
}

suites!(over_openssh, TransportKind::OpenSsh);
suites!(over_in_process, TransportKind::InProcess);

over_each_transport!(
    a_young_machine_with_another_host_key_is_asked_again,
    a_young_machine_that_refuses_the_login_is_asked_again,
    the_newest_machine_of_a_name_is_reached_while_the_old_one_lives,
);

/// A machine's address and port, where a connection is handed on to the first of `ways` for so many times, then to the
/// second.
async fn changing(ways: [(String, u16); 2], mut times: u32) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut here, _)) = listener.accept().await {
            let way = ways[usize::from(times == 0)].clone();
            times = times.saturating_sub(1);
            tokio::spawn(async move {
                let mut there = tokio::net::TcpStream::connect(way).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
            });
        }
    });
    port
}

/// A machine of the run's own may show its image's host key before the one that it was given.
async fn a_young_machine_with_another_host_key_is_asked_again(transport: TransportKind) {
    let machines = Machines::launch(2, transport).await;
    let [mut machine, other] = [0, 1].map(|place: usize| machines.machines[place].clone());
    assert_ne!(machine.login.host_key, other.login.host_key);
    let way = |machine: &tsunami_core::Machine| {
        (machine.addresses.internal().unwrap().to_owned(), machine.login.port.unwrap())
    };
    let port = changing([way(&other), way(&machine)], 4).await;
    machine.addresses.public = Some("127.0.0.1".to_owned());
    machine.login.port = Some(port);
    let within = |seconds| Instant::now() + Duration::from_secs(seconds);
    machines.connector.connect(&machine, within(30)).await.unwrap_or_else(|error| panic!("{error}"));
    // For good it is said in one line, and nobody has logged in.
    let port = changing([way(&other), way(&machine)], u32::MAX).await;
    machine.login.port = Some(port);
    let error = machines.connector.connect(&machine, within(3)).await.map(drop).unwrap_err();
    assert_eq!(error.kind, tsunami_core::SessionErrorKind::HostKey, "{error}");
    assert_eq!(error.message.lines().count(), 1, "{error}");
    let log = fs::read_to_string(machines.directory().join("local/node-1/sshd.log")).unwrap();
    assert!(!log.contains("Accepted"), "{log}");
}

/// The key that may log in comes to a machine of the run's own after its sshd, by as much as half a minute.
async fn a_young_machine_that_refuses_the_login_is_asked_again(transport: TransportKind) {
    let machines = Machines::launch(1, transport).await;
    let keys = machines.directory().join("local/node-0/authorized_keys");
    let later = keys.with_extension("later");
    fs::rename(&keys, &later).unwrap();
    let lets_in = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(18)).await;
        let now = Instant::now();
        fs::rename(&later, &keys).unwrap();
        now
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    let session = machines.connector.connect(&machines.machines[0], deadline).await;
    let session = session.unwrap_or_else(|error| panic!("{error}"));
    // To answer is one thing, to let in another.
    assert!(session.answered().unwrap() < lets_in.await.unwrap());
}

/// A machine that is taken back may live for as long as its replacement takes to come up.
async fn the_newest_machine_of_a_name_is_reached_while_the_old_one_lives(transport: TransportKind) {
    let mut machines = Machines::launch(2, transport).await;
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
