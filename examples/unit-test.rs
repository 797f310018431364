//! Unit tests of one's own experiment, on a cloud that isn't there: no machine, no network, no waiting.

use std::sync::Arc;
use std::time::Duration;

use tsunami_core::testing::{FakeCloud, MachineFault, Reply};
use tsunami_core::{Error, ErrorClass, Exit, RunStore, Tsunami};
use tsunami_examples::{Measurement, measure, plan};

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/demo");

/// A fake cloud on which the server serves forever and every client prints a result.
fn cloud() -> FakeCloud {
    let cloud = FakeCloud::new(1);
    cloud.on_command(|machine, command| match command.to_string().as_str() {
        line if line.starts_with("bin/echo-server") => {
            Some(Reply::status(0).after(Duration::from_secs(1_000_000)))
        }
        line if line.starts_with("bin/load") => {
            Some(Reply::stdout(format!("header\n{machine},64,5000,0.5,10000\n")))
        }
        _ => None,
    });
    cloud
}

async fn run(cloud: &FakeCloud) -> Result<Vec<Measurement>, Error> {
    let records = tempfile::tempdir()?;
    let tsunami =
        Tsunami::new(Arc::new(cloud.clone()), Arc::new(cloud.clone())).state(RunStore::at(records.path()));
    tsunami.run(plan(PROGRAMS, 3), measure).await
}

#[tokio::test(start_paused = true)]
async fn every_client_measures() {
    let cloud = cloud();
    let measurements = run(&cloud).await.unwrap();
    assert_eq!(measurements.len(), 3);
    assert_eq!(measurements[2], Measurement { client: "client-2".into(), requests_per_second: 10000.0 });
    assert!(cloud.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_dies_fails_the_experiment_and_nothing_is_left() {
    let cloud = cloud();
    cloud.machine_fault("client-1", MachineFault::Dies(Duration::from_secs(10)));
    let error = run(&cloud).await.unwrap_err();
    assert!(matches!(error, Error::Lost { machine, .. } if machine == "client-1"));
    assert!(cloud.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_fails_says_how_and_what_it_wrote() {
    let cloud = cloud();
    // Asked before what all tests have in common.
    cloud.on_command(|machine, command| {
        let fails = machine == "client-2" && command.to_string().starts_with("bin/load");
        fails.then(|| Reply::status(3).stderr("connecting\nno route to host\n"))
    });
    let error = run(&cloud).await.unwrap_err();
    let output = error.output().unwrap();
    assert_eq!((output.exit, output.stderr), (Some(Exit::Status(3)), "connecting\nno route to host"));
    assert_eq!((error.place(), error.class()), (Some(("client-2", "load")), ErrorClass::Experiment));
    assert!(cloud.is_empty());
}
