//! Machines whose sshd is not as it comes.

use std::fs;
use std::time::Duration;

use super::common::Machines;

/// Has the first machine's sshd take so many channels on a connection.
pub(crate) async fn allow_sessions(of: &Machines, count: u32) {
    configure(of, &format!("MaxSessions {count}")).await;
}

/// Adds a line to the configuration of the first machine's sshd.
pub(crate) async fn configure(of: &Machines, line: &str) {
    let machine = of.directory().join("local/node-0");
    let config = machine.join("sshd_config");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}{line}\n")).unwrap();
    let known: serde_json::Value =
        serde_json::from_slice(&fs::read(machine.join("machine.json")).unwrap()).unwrap();
    let sshd = i32::try_from(known["sshd"]["pid"].as_i64().unwrap()).unwrap();
    let sshd = rustix::process::Pid::from_raw(sshd).unwrap();
    rustix::process::kill_process(sshd, rustix::process::Signal::HUP).unwrap();
    let listening = || fs::read_to_string(machine.join("sshd.log")).unwrap();
    while listening().matches("Server listening on").count() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
