//! What programs do with machines: arguments, files, lines as they come, a conversation, typed answers, all machines.
//!
//! ```text
//! cargo run --example commands
//! ```
#![expect(clippy::print_stdout, reason = "an example says what it does")]

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tsunami_core::{Cluster, Error, Exit, Group, Host, MachineSpec, Plan, RunStore, Stdin, Tsunami};
use tsunami_ssh::{LocalProvider, SshConnector};

/// What each machine says of itself.
#[derive(Debug, Deserialize)]
struct Facts {
    name: String,
    processors: u32,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let provider = LocalProvider::new(RunStore::standard()?.root());
    let tsunami = Tsunami::new(Arc::new(provider), Arc::new(SshConnector::default()));
    let plan = Plan::new("commands").group(Group::new("node", MachineSpec::default()).count(3));
    tsunami.run(plan, experiment).await
}

async fn experiment(cluster: Cluster) -> Result<(), Error> {
    // On two machines at a time; the answers are in the order of the machines.
    let all = cluster.hosts().for_each(2, facts).await?;
    let processors: u32 = all.iter().map(|facts| facts.processors).sum();
    println!("{} and {} others have {processors} processors", all[0].name, all.len() - 1);

    let host = &cluster.hosts()[0];
    // No shell reads a program's arguments.
    let literal = host.program("printf").args(["%s\n", "$HOME is not expanded"]).run().await?;
    print!("{}", literal.stdout());

    // A file arrives whole, or not at all.
    host.write("conf/greeting", "hello\n").timeout(Duration::from_secs(10)).await?;
    print!("{}", host.read_to_string("conf/greeting").await?);

    follow(host).await?;
    talk(host).await?;

    // What failed says how, and what it had written.
    if let Err(error) = host.run("ls conf/nothing").await
        && let Some(output) = error.output()
    {
        println!("ls: {}: {}", output.exit.as_ref().map(Exit::to_string).unwrap_or_default(), output.stderr);
    }
    Ok(())
}

/// A typed answer.
async fn facts(host: Host) -> Result<Facts, Error> {
    let line = r#"printf '{"name": "%s", "processors": %s}' "$1" "$(nproc)""#;
    host.shell(line).arg(host.name()).json().await
}

/// Lines as they come. Dropping them would end the command.
async fn follow(host: &Host) -> Result<(), Error> {
    let mut lines = host.shell("for i in 1 2 3; do echo \"step $i\"; sleep 0.1; done").lines();
    while let Some(line) = lines.next_line().await? {
        println!("{}: {line}", host.name());
    }
    Ok(())
}

/// What is written to a process, it reads; the end of it is told by `wait`.
async fn talk(host: &Host) -> Result<(), Error> {
    let mut sort = host.program("sort").arg("-n").stdin(Stdin::piped()).start();
    for number in [30, 4, 100] {
        sort.stdin().write_all(format!("{number}\n")).await?;
    }
    println!("sorted: {}", sort.wait().await?.stdout().trim().replace('\n', " "));
    Ok(())
}
