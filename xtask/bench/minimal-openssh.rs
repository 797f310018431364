//! Sets up all hosts at once through the crate `openssh`: an ssh master a host, spoken to through its socket. What
//! somebody would write who needs nothing else: no logs, no supervision, nothing ended when the program is.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it tells which hosts are done")]

mod plan;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use openssh::{KnownHosts, Session, SessionBuilder, Stdio};
use plan::{Plan, Step};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let plan = Arc::new(Plan::read()?);
    let mut hosts = JoinSet::new();
    for index in 0..plan.hosts.len() {
        hosts.spawn(set_up(plan.clone(), index));
    }
    let mut code = ExitCode::SUCCESS;
    while let Some(done) = hosts.join_next().await {
        match done? {
            Ok(name) => println!("done {name}"),
            Err(error) => {
                eprintln!("{error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

async fn set_up(plan: Arc<Plan>, index: usize) -> Result<String> {
    let [name, ..] = &plan.hosts[index];
    let mut builder = SessionBuilder::default();
    builder.config_file(plan.directory.join("ssh_config")).control_directory(&plan.directory);
    let session = builder.known_hosts_check(KnownHosts::Strict).connect_mux(name).await?;
    for step in &plan.steps {
        match step {
            Step::Upload(bytes, to) => drop(run(&session, &format!("cat >{to}"), bytes).await?),
            Step::Run(command) => drop(run(&session, command, &[]).await?),
            Step::Show(command) => print!("{}", run(&session, command, &[]).await?),
        }
    }
    session.close().await?;
    Ok(name.clone())
}

/// Runs a command, which reads `input`; what it prints.
async fn run(session: &Session, command: &str, input: &[u8]) -> Result<String> {
    let mut remote = session.raw_command(command);
    remote.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    let mut child = remote.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().await?;
    if let Some(mut stdin) = child.stdin().take() {
        stdin.write_all(input).await?;
        stdin.shutdown().await?;
    }
    let ended = child.wait_with_output().await?;
    if !ended.status.success() {
        return Err(format!("{command}: {}", ended.status).into());
    }
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}
