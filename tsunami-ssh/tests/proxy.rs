//! Machines that only a command of the user's leads to.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::{Machines, unique_run};
use tokio::time::Instant;
use tsunami_core::{Connector, Machine, Session, SessionError, SessionErrorKind};
use tsunami_ssh::{SshConnector, SshOptions, TransportKind};

over_each_transport!(
    a_machine_is_reached_by_a_command_and_only_by_that,
    a_proxy_that_fails_is_told_of_in_its_own_words,
    a_proxy_that_brings_no_answer_is_given_up_in_time,
    another_machine_at_the_end_of_a_proxy_is_not_logged_in_to,
    proxies_end_with_their_run_however_deaf_they_are,
);

/// Leads to its first two arguments, and leaves all of them in a file.
const WAY: &str = "printf '%s ' \"$@\" >> \"$0\"; exec 3<>/dev/tcp/$1/$2; cat <&3 & exec cat >&3";

async fn connect(
    machine: &Machine,
    options: SshOptions,
    root: &Path,
    within: Duration,
) -> (SshConnector, Machine, Result<Box<dyn Session>, SessionError>) {
    let connector = SshConnector::new(options);
    let mut machine = machine.clone();
    machine.run = unique_run();
    // The run's key lets in, where it is the same.
    let directory = root.join(machine.run.as_str());
    fs::create_dir(&directory).unwrap();
    connector.prepare(&machine.run, &directory).await.unwrap();
    let session = connector.connect(&machine, Instant::now() + within).await;
    (connector, machine, session)
}

fn by(transport: TransportKind, script: &str, file: &Path) -> SshOptions {
    let words = ["bash", "-c", script, file.to_str().unwrap(), "{host}", "{port}", "{id}"];
    SshOptions::default().transport(transport).proxy(words)
}

fn running(file: &Path) -> String {
    let found = std::process::Command::new("pgrep").arg("-fa").arg(file).output().unwrap();
    String::from_utf8(found.stdout).unwrap()
}

async fn soon_gone(file: &Path) {
    let gone = async {
        while !running(file).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), gone).await.is_ok(), "{}", running(file));
}

async fn a_machine_is_reached_by_a_command_and_only_by_that(transport: TransportKind) {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("said");
    let machines = Machines::launch_with(1, by(transport, WAY, &file)).await;
    let mut machine = machines.machines[0].clone();
    // Nothing is at the address itself: the way there says which one it is.
    let session = machines.connector.connect(&machine, Instant::now() + Duration::from_secs(20)).await;
    let session = session.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(session.administer("echo hello", &[]).await.unwrap(), "hello\n");
    let (host, port) = (machine.addresses.external().unwrap(), machine.login.port.unwrap());
    let said = fs::read_to_string(&file).unwrap();
    assert_eq!(said, format!("{host} {port} {} ", machine.id));
    drop(session);
    // `ssh -F` goes the same way.
    let config = tsunami_ssh::run_config(&machines.directory()).unwrap();
    let mut ssh = std::process::Command::new("ssh");
    let there = ssh.arg("-F").arg(config).args([&machine.name(), "echo there"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&there.stdout), "there\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), said.repeat(2));
    // An id that could be read by a shell leads nowhere.
    machine.id = tsunami_core::MachineId::new("i-0'abc");
    let refused = machines.connector.connect(&machine, Instant::now() + Duration::from_secs(5)).await;
    assert_eq!(refused.map(drop).unwrap_err().kind, SessionErrorKind::Local);
    machines.connector.finish(&machines.run).await;
    soon_gone(&file).await;
}

async fn a_proxy_that_fails_is_told_of_in_its_own_words(transport: TransportKind) {
    let (root, machines) = (tempfile::tempdir().unwrap(), Machines::launch(1, transport).await);
    let file = root.path().join("proxy");
    for (script, told) in [("echo no way there >&2; exit 3", Some("no way there")), ("exit 3", None)] {
        let options = by(transport, script, &file);
        let (connector, machine, session) =
            connect(&machines.machines[0], options, root.path(), Duration::from_secs(2)).await;
        let error = session.map(drop).unwrap_err();
        assert_eq!(error.kind, SessionErrorKind::Connect, "{error:?}");
        assert!(error.message.starts_with("by way of the proxy `bash -c "), "{error}");
        // Without words of its own, whatever the connection died of is told.
        let causes = told.map_or(vec!["closed", "reset", "ended", "Broken pipe"], |told| vec![told]);
        assert!(causes.iter().any(|cause| error.message.contains(cause)), "{error}");
        assert!(error.help.is_some_and(|help| help.starts_with("see what the proxy says by itself")));
        connector.finish(&machine.run).await;
    }
    // What would be hopeless if ssh said it is nothing of the kind.
    let once = format!(
        "[ -e \"$0\" ] || {{ : > \"$0\"; echo 'Unsupported. Permission denied' >&2; exit 1; }}; {WAY}"
    );
    let machines = Machines::launch_with(1, by(transport, &once, &file)).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    let session = machines.connector.connect(&machines.machines[0], deadline).await;
    session.unwrap_or_else(|error| panic!("{error}"));
    let options = SshOptions::default().transport(transport).proxy(["./no/such", "{host}"]);
    let (connector, machine, session) =
        connect(&machines.machines[0], options, root.path(), Duration::from_secs(60)).await;
    let error = session.map(drop).unwrap_err();
    assert!(error.kind == SessionErrorKind::Local && error.message.contains("./no/such"), "{error:?}");
    connector.finish(&machine.run).await;
}

async fn a_proxy_that_brings_no_answer_is_given_up_in_time(transport: TransportKind) {
    let (root, machines) = (tempfile::tempdir().unwrap(), Machines::launch(1, transport).await);
    let file = root.path().join("proxy");
    let options = by(transport, "echo waiting for a way >&2; exec sleep 1000", &file);
    let (connector, machine, session) =
        connect(&machines.machines[0], options, root.path(), Duration::from_secs(2)).await;
    let error = session.map(drop).unwrap_err();
    assert_eq!(error.kind, SessionErrorKind::Connect, "{error:?}");
    assert!(error.message.contains("waiting for a way"), "{error}");
    connector.finish(&machine.run).await;
    soon_gone(&file).await;
}

async fn another_machine_at_the_end_of_a_proxy_is_not_logged_in_to(transport: TransportKind) {
    let (root, machines) = (tempfile::tempdir().unwrap(), Machines::launch(2, transport).await);
    let file = root.path().join("said");
    let other = machines.machines[1].addresses.external().unwrap();
    let (_, port) = (other, machines.machines[1].login.port.unwrap());
    let script = format!("exec 3<>/dev/tcp/{other}/{port}; cat <&3 & exec cat >&3");
    let (connector, machine, session) =
        connect(&machines.machines[0], by(transport, &script, &file), root.path(), Duration::from_secs(3))
            .await;
    let error = session.map(drop).unwrap_err();
    assert_eq!(error.kind, SessionErrorKind::HostKey, "{error:?}");
    connector.finish(&machine.run).await;
    soon_gone(&file).await;
}

async fn proxies_end_with_their_run_however_deaf_they_are(transport: TransportKind) {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("said");
    let deaf =
        "trap '' TERM HUP PIPE INT; exec 3<>/dev/tcp/$1/$2; cat <&3 & cat >&3; while :; do sleep 1; done";
    let machines = Machines::launch_with(1, by(transport, deaf, &file)).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    let session = machines.connector.connect(&machines.machines[0], deadline).await.unwrap();
    assert!(!running(&file).is_empty());
    machines.connector.finish(&machines.run).await;
    soon_gone(&file).await;
    drop(session);
}
