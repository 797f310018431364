//! Two variants compared, in balanced order, by a program.
//!
//! ```text
//! cargo run --example sweep
//! ```
#![expect(clippy::print_stdout, reason = "an example says what it does")]

use std::sync::Arc;
use std::time::Instant;

use tsunami_core::statistics::Direction;
use tsunami_core::trial::{Trial, Trials};
use tsunami_core::{Error, Group, MachineSpec, Plan, RunStore, Tsunami};
use tsunami_ssh::{LocalProvider, SshConnector};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let provider = LocalProvider::new(RunStore::standard()?.root());
    let tsunami = Tsunami::new(Arc::new(provider), Arc::new(SshConnector::default()));
    let plan = Plan::new("sweep").group(Group::new("node", MachineSpec::default()));
    let trials = Trials::matrix([("tool", ["sha256sum", "md5sum"])]).compare("tool").repeat(4).warmup(1);
    let sweep = tsunami.run(plan, |cluster| async move {
        cluster
            .trials(trials, async |trial: Trial| {
                let line =
                    format!("for i in $(seq 20); do {} $(command -v sh); done", trial.parameter("tool")?);
                let begun = Instant::now();
                trial.host("node-0")?.run(line).await?;
                trial.metric("seconds", Direction::Lower, begun.elapsed().as_secs_f64());
                Ok(())
            })
            .await
    });
    let report = sweep.await?;
    println!("{}", report.compare("tool", "seconds").map_err(Error::other)?);
    Ok(())
}
