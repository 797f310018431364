//! What the engine costs by itself: machines of the fake cloud on paused time, through launch, set-up, a step and
//! teardown, with an observer that keeps nothing; and what ten minutes cost in which all machines are up and nothing runs.
//! Each size has a process of its own, so that its memory is its own.
//!
//! `cargo bench -p tsunami-core --bench engine [-- MACHINES…]`

#![expect(clippy::print_stdout, reason = "it tells figures")]

use std::env;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tsunami_core::testing::{Call, FakeCloud};
use tsunami_core::{Error, Event, Group, MachineSpec, Observer, Plan, RunStore, Tsunami};

const SIZES: [u32; 3] = [1000, 3000, 10_000];

/// How long all machines are up and nothing runs on them.
const IDLE: Duration = Duration::from_secs(600);

/// Names the size to a process of its own.
const SIZE: &str = "TSUNAMI_BENCH_MACHINES";

/// Sees every event, and keeps none.
#[derive(Debug)]
struct Blind;

impl Observer for Blind {
    fn event(&self, event: &Event) {
        std::hint::black_box(event);
    }
}

fn main() {
    if let Some(size) = env::var(SIZE).ok().and_then(|size| size.parse().ok()) {
        return measure(size);
    }
    let chosen: Vec<u32> = env::args().filter_map(|argument| argument.parse().ok()).collect();
    println!("machines     wall s      cpu s    cpu us/machine    peak MB    idle cpu s    listings");
    for size in if chosen.is_empty() { SIZES.to_vec() } else { chosen } {
        let program = env::current_exe().expect("this program has a path");
        let status = Command::new(program).env(SIZE, size.to_string()).status().expect("it runs again");
        assert!(status.success(), "{size} machines: {status}");
    }
}

fn measure(size: u32) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let (begun, before) = (Instant::now(), cpu());
    let idle = runtime.block_on(experiment(size)).expect("the run succeeds");
    let (wall, cpu) = (begun.elapsed() - idle.wall, cpu() - before - idle.cpu);
    println!(
        "{size:8} {:10.2} {:10.2} {:17.0} {:10.0} {:13.2} {:11}",
        wall.as_secs_f64(),
        cpu.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / f64::from(size),
        peak_memory() / 1e6,
        idle.cpu.as_secs_f64(),
        idle.listings,
    );
}

/// What it costs that nothing happens.
struct Idle {
    wall: Duration,
    cpu: Duration,
    listings: u32,
}

async fn experiment(size: u32) -> Result<Idle, Error> {
    let directory = tempfile::tempdir()?;
    let cloud = FakeCloud::new(1);
    let tsunami = Tsunami::new(Arc::new(cloud.clone()), Arc::new(cloud.clone()))
        .observer(Arc::new(Blind))
        .state(RunStore::at(directory.path().join("runs")))
        .seed(1);
    let group = Group::new("node", MachineSpec::default())
        .count(size)
        .setup(|host| async move { host.run("install").await });
    let plan = Plan::new("bench").group(group);
    let watched = cloud.clone();
    let idle = tsunami
        .run(plan, |cluster| async move {
            let step = cluster.hosts().iter().map(|host| host.run("measure"));
            join_all(step).await.into_iter().try_for_each(|measured| measured.map(drop))?;
            let (begun, before, listings) = (Instant::now(), cpu(), watched.calls(Call::List));
            tokio::time::sleep(IDLE).await;
            let listings = watched.calls(Call::List) - listings;
            Ok(Idle { wall: begun.elapsed(), cpu: cpu() - before, listings })
        })
        .await?;
    assert!(cloud.is_empty());
    Ok(idle)
}

/// The processor time that this process has used.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/schedstat").expect("Linux says it");
    // One thread runs all of it, the blocking ones aside.
    Duration::from_nanos(stat.split(' ').next().and_then(|time| time.parse().ok()).expect("a number"))
}

/// The most memory that this process has held, in bytes.
fn peak_memory() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux says it");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is there");
    peak.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0
}
