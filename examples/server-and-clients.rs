//! One server and three clients on local machines, with typed results.
//!
//! ```text
//! cargo run --example server-and-clients
//! ```
#![expect(clippy::print_stdout, reason = "an example says what it does")]

use std::sync::Arc;

use tsunami_core::{Error, RunStore, Tsunami};
use tsunami_examples::{measure, plan};
use tsunami_ssh::{LocalProvider, SshConnector};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let provider = LocalProvider::new(RunStore::standard()?.root());
    let tsunami = Tsunami::new(Arc::new(provider), Arc::new(SshConnector::default()));
    let programs = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/demo");
    for measurement in tsunami.run(plan(programs, 3), measure).await? {
        println!("{}: {} requests a second", measurement.client, measurement.requests_per_second);
    }
    Ok(())
}
