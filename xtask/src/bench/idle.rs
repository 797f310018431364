//! What machines cost while nothing is done on them.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::account::{Account, Side};
use super::contenders::{self, BUILT, Contender};
use super::fleet::{Fleet, place};
use super::{command_line, last_lines};
use crate::{Failure, Result, silently};

/// How long all machines together may take to be ready, and to be gone.
const START_TIMEOUT: Duration = Duration::from_secs(300);
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// How long what setting up has left to do is waited for: until threads that wait for work have given up, too.
const REST: Duration = Duration::from_secs(15);

/// Sets up local machines, by each transport, and counts for so long. One command runs on one of them, which is what keeps
/// the run from being over.
pub(super) fn idle(machines: &[usize], long: Duration, kex: Option<&str>) -> Result {
    println!("`{}`\n", command_line());
    let fleet = Fleet::start(0, None)?;
    println!("Processor time by {}, in {} s.\n", fleet.account.means(), long.as_secs());
    println!(
        "| contender | machines | controller % of a core | machines % of a core | PSS MiB of both |\n|---|---|---|---|---|"
    );
    for &count in machines {
        fs::write(place("openssh.toml"), experiment(count, kex, "openssh"))?;
        fs::write(place("in-process.toml"), experiment(count, kex, "in-process"))?;
        let ours =
            contenders::all(count).into_iter().filter(|contender| BUILT[..2].contains(&contender.name));
        for contender in ours {
            let cost = measure(&fleet.account, &contender, count, long)?;
            let share = |time: Duration| 100.0 * time.as_secs_f64() / long.as_secs_f64();
            println!(
                "| {} | {count} | {:.2} | {:.2} | {:.0} |",
                contender.name,
                share(cost.controller),
                share(cost.machines),
                cost.memory as f64 / f64::from(1 << 20)
            );
        }
    }
    Ok(())
}

fn experiment(count: usize, kex: Option<&str>, transport: &str) -> String {
    let kex = kex.map(|kex| format!("kex = \"{kex}\"\n")).unwrap_or_default();
    format!(
        "name = \"idle\"\n\n[ssh]\ntransport = \"{transport}\"\n{kex}\n[group.h]\ncount = {count}\n\n\
         [[step]]\non = \"h-0\"\nrun = \"sleep 3600\"\n"
    )
}

struct Cost {
    controller: Duration,
    machines: Duration,
    memory: u64,
}

fn measure(account: &Account, contender: &Contender, count: usize, long: Duration) -> Result<Cost> {
    let (work, output) = (place("work"), place("output"));
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(work.join("home"))?;
    let mut command = contender.command(account.enter(Side::Controller, None)?);
    command.current_dir(&work).stdin(Stdio::null()).stdout(File::create(&output)?);
    let mut tsunami = command.stderr(File::create(place("errors"))?).spawn()?;
    let cost = ready(&mut tsunami, contender, &output, count).map(|()| {
        std::thread::sleep(REST);
        let pid = tsunami.id();
        let before = (used_by_controller(account, pid), account.used(Side::Controller, &[]));
        std::thread::sleep(long);
        let controller = used_by_controller(account, pid).saturating_sub(before.0);
        let all = account.used(Side::Controller, &[]) - before.1;
        Cost { controller, machines: all.saturating_sub(controller), memory: account.memory() }
    });
    end(account, &mut tsunami)?;
    if cost.is_err() {
        last_lines(&fs::read_to_string(place("errors"))?);
    }
    cost
}

/// Waits until all machines are set up.
fn ready(tsunami: &mut Child, contender: &Contender, output: &Path, count: usize) -> Result {
    let begun = Instant::now();
    while contender.done(&fs::read_to_string(output)?).len() < count {
        if tsunami.try_wait()?.is_some() || begun.elapsed() > START_TIMEOUT {
            return Err(Failure::new(format!("{count} machines are not ready")));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Has it tear down.
fn end(account: &Account, tsunami: &mut Child) -> Result {
    let begun = Instant::now();
    silently(Command::new("sh").args(["-c", "kill -s TERM \"$1\"", "end", &tsunami.id().to_string()]));
    while tsunami.try_wait()?.is_none() && begun.elapsed() < END_TIMEOUT {
        std::thread::sleep(Duration::from_millis(200));
    }
    account.kill();
    tsunami.wait()?;
    Ok(())
}

/// What tsunami and its ssh masters have used so far; the rest of what it has started are the machines.
fn used_by_controller(account: &Account, tsunami: u32) -> Duration {
    let is_ssh = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "ssh\n");
    let ours = account.processes().into_iter().filter(|&pid| pid == tsunami || is_ssh(pid));
    ours.map(finely).sum()
}

/// The processor time of a process's threads, in the kernel's finest measure.
fn finely(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let used = threads.filter_map(|thread| {
        let used = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        used.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    });
    used.sum()
}
