//! An observer of one's own: it hears all that happens in a run, as it happens, and remembers each machine's slowest
//! command. With that it could as well draw, send or store what it hears.
//!
//! ```text
//! cargo run --example own-observer
//! ```
#![expect(clippy::print_stdout, reason = "an example says what it does")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tsunami_core::{Cluster, Error, Event, EventKind, Group, MachineSpec, Observer, Plan, RunStore, Tsunami};
use tsunami_ssh::{LocalProvider, SshConnector};

/// Each machine's slowest command, and how long that took.
#[derive(Debug, Default)]
struct Slowest(Mutex<BTreeMap<String, (String, Duration)>>);

impl Observer for Slowest {
    /// Is called where things happen, so it must not block.
    fn event(&self, event: &Event) {
        // More fields and more kinds may come.
        let EventKind::CommandFinished { machine, command, took, .. } = &event.kind else { return };
        let mut slowest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = slowest.entry(machine.clone()).or_default();
        if *took > known.1 {
            *known = (command.clone(), *took);
        }
    }
}

fn plan() -> Plan {
    Plan::new("own-observer").group(
        Group::new("node", MachineSpec::default())
            .count(2)
            .setup(|host| async move { host.run("true").await }),
    )
}

async fn experiment(cluster: Cluster) -> Result<(), Error> {
    for host in cluster.hosts() {
        host.run("sleep 0.2").await?;
        host.run("echo done").await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let provider = LocalProvider::new(RunStore::standard()?.root());
    let tsunami = Tsunami::new(Arc::new(provider), Arc::new(SshConnector::default()));
    let slowest = Arc::new(Slowest::default());
    tsunami.observer(slowest.clone()).run(plan(), experiment).await?;
    for (machine, (command, took)) in &*slowest.0.lock().unwrap_or_else(PoisonError::into_inner) {
        println!("{machine}: {command} ({} ms)", took.as_millis());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tsunami_core::testing::FakeCloud;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_remembers_what_took_longest_on_each_machine() -> Result<(), Error> {
        let (cloud, records) = (Arc::new(FakeCloud::new(1)), tempfile::tempdir()?);
        cloud.latency(Duration::ZERO..Duration::ZERO);
        let tsunami = Tsunami::new(cloud.clone(), cloud.clone()).state(RunStore::at(records.path()));
        let slowest = Arc::new(Slowest::default());
        tsunami.observer(slowest.clone()).run(plan(), experiment).await?;
        let slowest = slowest.0.lock().unwrap();
        let expected = ("sleep 0.2".to_owned(), Duration::from_millis(200));
        assert_eq!(
            slowest.clone(),
            ["node-0", "node-1"].map(|name| (name.to_owned(), expected.clone())).into()
        );
        assert!(cloud.is_empty());
        Ok(())
    }
}
