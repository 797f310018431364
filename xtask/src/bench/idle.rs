//! What machines cost that are up, while nothing is done on them.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::account::Side;
use super::contenders::{self, Contender};
use super::fleet::{Fleet, place};
use super::last_lines;
use super::workload::Workload;
use crate::{Failure, Result, silently};

/// How long all machines together may take to be ready, and to be gone.
const START_TIMEOUT: Duration = Duration::from_secs(300);
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// How long what setting up has left to do is waited for: until threads that wait for work have given up, too.
const REST: Duration = Duration::from_secs(15);

/// Has tsunami set hosts up, by each of the chosen transports, and counts for so long.
pub(super) fn idle(
    fleet: &Fleet,
    machines: &[usize],
    chosen: &[&str],
    long: Duration,
    kex: Option<&str>,
) -> Result {
    if !fleet.account.counts_all() {
        return Err(Failure::new("this takes control groups, and none that count can be made here"));
    }
    println!("Processor time by {}, in {} s.\n", fleet.account.means(), long.as_secs());
    println!(
        "| contender | machines | controller % of a core | % of a core a machine | controller PSS MiB |\n|---|---|---|---|---|"
    );
    for &count in machines {
        fleet.describe(Workload::Connect, count, kex)?;
        for file in ["openssh.toml", "in-process.toml"].map(place) {
            fs::write(&file, endless(&fs::read_to_string(&file)?))?;
        }
        for contender in contenders::all(count).iter().filter(|it| chosen.contains(&it.name)) {
            let cost = measure(fleet, contender, count, long)?;
            let share = |time: Duration| 100.0 * time.as_secs_f64() / long.as_secs_f64();
            println!(
                "| {} | {count} | {:.3} | {:.4} | {:.0} |",
                contender.name,
                share(cost.controller),
                share(cost.machines) / count as f64,
                cost.memory as f64 / f64::from(1 << 20)
            );
        }
    }
    Ok(())
}

/// An experiment that goes on: one command on one of its machines is what keeps the run from being over.
fn endless(experiment: &str) -> String {
    format!("lifetime = \"24h\"\n{experiment}\n[[step]]\non = \"h-0\"\nrun = \"sleep 86400\"\n")
}

struct Cost {
    controller: Duration,
    machines: Duration,
    /// The controller's, in bytes.
    memory: u64,
}

fn measure(fleet: &Fleet, contender: &Contender, count: usize, long: Duration) -> Result<Cost> {
    let account = &fleet.account;
    let (work, output) = (fleet.workplace()?, place("output"));
    fleet.settle(false);
    fleet.clean()?;
    let mut command = contender.command(account.enter(Side::Controller, None)?);
    command.current_dir(&work).stdin(Stdio::null()).stdout(File::create(&output)?);
    let mut tsunami = command.stderr(File::create(place("errors"))?).spawn()?;
    let cost = ready(&mut tsunami, contender, &output, count).and_then(|()| {
        std::thread::sleep(REST);
        let used = || [Side::Controller, Side::Hosts].map(|side| account.used(side, &[]));
        let before = used();
        std::thread::sleep(long);
        let after = used();
        if tsunami.try_wait()?.is_some() {
            return Err(Failure::new("it has ended by itself"));
        }
        let [controller, machines] = [0, 1].map(|side| after[side] - before[side]);
        Ok(Cost { controller, machines, memory: account.memory() })
    });
    end(fleet, &mut tsunami)?;
    if cost.is_err() {
        last_lines(&fs::read_to_string(place("errors"))?);
    }
    cost
}

/// Waits until all machines are set up.
fn ready(tsunami: &mut Child, contender: &Contender, output: &Path, count: usize) -> Result {
    let begun = Instant::now();
    while contender.done(&fs::read_to_string(output)?, false, count).len() < count {
        if tsunami.try_wait()?.is_some() || begun.elapsed() > START_TIMEOUT {
            return Err(Failure::new(format!("{count} machines are not ready")));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// Has it tear down.
fn end(fleet: &Fleet, tsunami: &mut Child) -> Result {
    let begun = Instant::now();
    silently(Command::new("sh").args(["-c", "kill -s TERM \"$1\"", "end", &tsunami.id().to_string()]));
    while tsunami.try_wait()?.is_none() && begun.elapsed() < END_TIMEOUT {
        std::thread::sleep(Duration::from_millis(200));
    }
    fleet.account.kill();
    tsunami.wait()?;
    Ok(())
}
