//! Machines at addresses of IPv6.

mod common;
#[expect(dead_code, reason = "shared with tests that use more of it")]
#[path = "common/sshd.rs"]
mod sshd;

use std::net::TcpListener;
use std::time::Duration;

use common::Machines;
use tokio::time::Instant;
use tsunami_core::Connector;
use tsunami_ssh::TransportKind;

over_each_transport!(a_machine_at_an_address_of_ipv6_is_reached_and_known);

async fn a_machine_at_an_address_of_ipv6_is_reached_and_known(transport: TransportKind) {
    let Ok(free) = TcpListener::bind("[::1]:0") else {
        // This computer has no such address. In a network of their own, the tests of EC2 have some.
        return;
    };
    let port = free.local_addr().unwrap().port();
    drop(free);
    let machines = Machines::launch(1, transport).await;
    let mut machine = machines.machines[0].clone();
    machine.login.port = Some(port);
    sshd::configure(&machines, &format!("ListenAddress [::1]:{port}")).await;
    machine.addresses = tsunami_core::Addresses::default().private("::1");
    machine.login.host = None;
    let deadline = Instant::now() + Duration::from_secs(20);
    let session =
        machines.connector.connect(&machine, deadline).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(session.administer("echo $SSH_CONNECTION", &[]).await.unwrap().split(' ').nth(2), Some("::1"));
    session.close().await.unwrap();
    // `ssh -F` goes there too.
    let config = tsunami_ssh::run_config(&machines.directory()).unwrap();
    let mut ssh = std::process::Command::new("ssh");
    let there = ssh.arg("-F").arg(config).args([&machine.name(), "echo there"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&there.stdout), "there\n");
}
