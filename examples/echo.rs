//! An experiment as a library function: one server, several clients, typed results.
//!
//! It knows neither a cloud nor SSH, so the same function runs on local machines (`server-and-clients.rs`), on
//! a fake cloud in a unit test (`unit-test.rs`), or on any other provider.

use std::time::Duration;

use tsunami_core::trial::{Ready, TrialHost};
use tsunami_core::{Cluster, Command, Error, Group, MachineSpec, Plan};

/// The port that the server listens on.
const PORT: u16 = 7000;

/// The guide's programs, which compile as documentation of this crate: docs/guide/src/library.md.
#[cfg(doctest)]
#[doc = include_str!("../docs/guide/src/library.md")]
pub struct Library;

/// What one client measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The client's name.
    pub client: String,
    /// How many requests a second were answered.
    pub requests_per_second: f64,
}

/// One server and `clients` clients; `programs` is the directory of the programs that they run.
pub fn plan(programs: &str, clients: u32) -> Plan {
    let (server, load) = (format!("{programs}/echo-server"), format!("{programs}/load"));
    Plan::new("echo")
        .group(Group::new("server", MachineSpec::default()).setup(move |host| {
            let server = server.clone();
            async move { host.upload(server, "bin/echo-server").await }
        }))
        .group(Group::new("client", MachineSpec::default()).count(clients).setup(move |host| {
            let load = load.clone();
            async move {
                host.upload(load, "bin/load").await?;
                host.run("perl -c bin/load").await
            }
        }))
        .lifetime(Duration::from_secs(600))
}

/// Starts the server, runs all clients at once, and returns what they measured.
pub async fn measure(cluster: Cluster) -> Result<Vec<Measurement>, Error> {
    cluster
        .trial("1", async |trial| {
            let server = trial.host("server-0")?.stage("serve");
            let listen = format!("bin/echo-server {} {PORT}", server.ip()?);
            server.command(Command::shell(listen)).start_until(Ready::port(PORT)).await?;
            trial.step("load", trial.group("client"), |client| load(client, server.clone())).await
        })
        .await
}

/// One client's part.
async fn load(client: TrialHost, server: TrialHost) -> Result<Measurement, Error> {
    let line = format!("bin/load {} {PORT} --requests 5000", client.ip_of(&server)?);
    let output = client.command(Command::shell(line)).timeout(Duration::from_secs(60)).run().await?;
    let text = output.stdout();
    let last = text.lines().last().and_then(|line| line.rsplit(',').next());
    let requests_per_second = last.ok_or("the client printed nothing")?.parse()?;
    Ok(Measurement { client: client.name().to_owned(), requests_per_second })
}
