//! The smallest program: three machines, one command.
//!
//! ```text
//! cargo run --example smallest
//! ```
#![expect(clippy::print_stdout, reason = "an example says what it does")]

use std::sync::Arc;

use tsunami_core::{Error, Group, MachineSpec, Plan, RunStore, Tsunami};
use tsunami_ssh::{LocalProvider, SshConnector};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let provider = LocalProvider::new(RunStore::standard()?.root());
    let tsunami = Tsunami::new(Arc::new(provider), Arc::new(SshConnector::default()));
    let plan = Plan::new("smallest").group(Group::new("node", MachineSpec::default()).count(3));
    tsunami
        .run(plan, |cluster| async move {
            for host in cluster.hosts() {
                let output = host.run("echo hello from $PWD").await?;
                print!("{}: {}", host.name(), output.stdout());
            }
            Ok(())
        })
        .await
}
