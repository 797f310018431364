//! A machine in each of several regions, and how long a connection takes from each to each.
//!
//! A region is what its group's spec says. With EC2, one provider has all of them
//! (`Ec2Options::default().regions(["eu-west-1", "us-east-1"])`), and `spec` is
//!
//! ```text
//! |region| MachineSpec::new(Ec2Spec::new(["c7g.large"]).region(region).open_ports([PORT]))
//! ```
//!
//! ```text
//! cargo run --example several-regions
//! ```
#![expect(clippy::print_stdout, reason = "an example says what it does")]

use std::sync::Arc;

use tsunami_core::trial::{Ready, Trial};
use tsunami_core::{Cluster, Command, Error, Group, MachineSpec, Plan, RunStore, Tsunami};
use tsunami_ssh::{LocalProvider, SshConnector};

/// The regions, by the names of their groups.
const REGIONS: [(&str, &str); 2] = [("europe", "eu-west-1"), ("america", "us-east-1")];

/// What all machines listen on. A provider has to let other regions in there.
const PORT: u16 = 7000;

fn plan(spec: impl Fn(&str) -> MachineSpec) -> Plan {
    let group = |(name, region): &(&str, &str)| Group::new(*name, spec(region));
    REGIONS.iter().map(group).fold(Plan::new("regions"), Plan::group)
}

/// From where to where, and the seconds that it took.
type Connection = (String, String, f64);

async fn connect_times(cluster: Cluster) -> Result<Vec<Connection>, Error> {
    cluster.trial("1", async |trial| measure(&trial).await).await
}

async fn measure(trial: &Trial) -> Result<Vec<Connection>, Error> {
    for host in trial.hosts() {
        let serve = format!("python3 -m http.server {PORT} --bind {}", host.ip()?);
        host.stage("serve").command(Command::shell(serve)).start_until(Ready::port(PORT)).await?;
    }
    let mut connections = Vec::new();
    for from in trial.hosts() {
        for to in trial.hosts().into_iter().filter(|to| to.name() != from.name()) {
            // The address by which this one reaches that one: a private one only within a network.
            let to_ip = from.ip_of(&to)?;
            let output = from.run(format!("TIMEFORMAT=%R; time (: < /dev/tcp/{to_ip}/{PORT})")).await?;
            let seconds = output.stderr().trim().parse()?;
            connections.push((from.group().to_owned(), to.group().to_owned(), seconds));
        }
    }
    Ok(connections)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let provider = LocalProvider::new(RunStore::standard()?.root());
    let tsunami = Tsunami::new(Arc::new(provider), Arc::new(SshConnector::default()));
    for (from, to, seconds) in tsunami.run(plan(|_| MachineSpec::default()), connect_times).await? {
        println!("{from} to {to}: {:.1} ms", seconds * 1e3);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tsunami_core::testing::{FakeCloud, Reply};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn every_region_connects_to_every_other() -> Result<(), Error> {
        let (cloud, records) = (Arc::new(FakeCloud::new(1)), tempfile::tempdir()?);
        cloud.on_command(|_, command| match command.to_string().split(' ').next() {
            Some("python3") => Some(Reply::status(0).after(Duration::from_secs(1_000_000))),
            Some("TIMEFORMAT=%R;") => Some(Reply::status(0).stderr("0.080\n")),
            _ => None,
        });
        let tsunami = Tsunami::new(cloud.clone(), cloud.clone()).state(RunStore::at(records.path()));
        let plan = plan(|region| MachineSpec::new(region.to_owned()));
        assert_eq!(plan.groups[1].spec.get::<String>().map(String::as_str), Some("us-east-1"));
        let times = tsunami.run(plan, connect_times).await?;
        let connection = |from: &str, to: &str| (from.to_owned(), to.to_owned(), 0.08);
        assert_eq!(times, [connection("europe", "america"), connection("america", "europe")]);
        assert!(cloud.is_empty());
        Ok(())
    }
}
