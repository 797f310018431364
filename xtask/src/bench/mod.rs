//! `cargo xtask bench`: what it takes to set machines up over SSH, for tsunami and for what people would use in its
//! place, side by side.

#![expect(clippy::print_stdout, reason = "tables go where they can be redirected")]

mod account;
mod contenders;
mod fleet;
mod idle;
mod table;
mod workload;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use account::{Account, Side, busy};
use contenders::{BUILT, Contender};
use fleet::{Fleet, place, token};
use table::{Row, Run, Table};
use workload::Workload;

use crate::{Failure, Result, cargo, is_root, succeeds};

/// How long a contender may take.
const RUN_TIMEOUT: Duration = Duration::from_secs(240);

/// Whoever takes longer is not asked again.
const SLOW: Duration = Duration::from_secs(60);

/// How long is waited for a calm computer before each run, and what counts as calm: processors that others use.
const CALM_TIMEOUT: Duration = Duration::from_secs(5);
const CALM: f64 = 0.1;

/// How often memory is looked at.
const SAMPLE_PAUSE: Duration = Duration::from_millis(50);

/// Measures what it takes to set machines up over SSH, for tsunami, two minimal programs and whatever peers are
/// installed: against sshd processes on this computer, which it starts. As root.
#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// What to set machines up with, or to do where they are up; several make several tables
    #[arg(short, long, value_enum, value_delimiter = ',', default_value = "W2")]
    workload: Vec<Workload>,
    /// How many machines; several numbers make several tables
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "32")]
    machines: Vec<usize>,
    /// How often each contender runs; they take turns, in alternating order
    #[arg(short, long, default_value_t = 3)]
    repetitions: usize,
    /// Milliseconds from this computer to the machines and back
    #[arg(long, value_name = "MS", default_value_t = 0)]
    rtt: u64,
    /// Only these; with a `-` before each, all but these [default: all that are installed]
    #[arg(short, long, value_delimiter = ',', allow_hyphen_values = true)]
    contenders: Vec<String>,
    /// The key exchanges to use, for tsunami and for all that go by an ssh_config [default: those that tsunami prefers]
    #[arg(long, value_name = "LIST")]
    kex: Option<String>,
    /// Run everybody once more, and look at the controller's memory
    #[arg(long)]
    memory: bool,
    /// Append all figures to a file, a line of JSON a contender and table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Install the peers that PyPI and crates.io have, below `target`, and measure nothing
    #[arg(long, exclusive = true)]
    install: bool,
    /// Measure what the engine costs by itself instead
    #[arg(long, exclusive = true)]
    engine: bool,
    /// Measure instead what machines that are up cost tsunami and themselves, for so many seconds in which nothing is
    /// done on them
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u64>,
}

pub(crate) fn bench(bench: &Bench) -> Result {
    if bench.install {
        return contenders::install();
    }
    if bench.engine {
        let measured = succeeds(&mut cargo(["bench", "--package", "tsunami-core", "--bench", "engine"]))?;
        return if measured { Ok(()) } else { Err(Failure::new("the engine was not measured: see above")) };
    }
    let mut chosen = bench.chosen()?;
    if bench.idle.is_some() {
        chosen.retain(|name| BUILT[..2].contains(name));
    }
    if !is_root() {
        let message = "this takes root: every machine has namespaces of its own".to_owned();
        return Err(Failure { message, status: 2 });
    }
    // Found out before anything is waited for.
    let mut json = match &bench.json {
        Some(file) => Some(File::options().create(true).append(true).open(file)?),
        None => None,
    };
    if bench.rtt > 0 || chosen.iter().any(|name| BUILT.contains(name)) {
        contenders::build()?;
    }
    println!("`{}`\n", command_line());
    let delay = contenders::delay();
    let most = bench.machines.iter().copied().max().unwrap_or_default();
    let fleet = Fleet::start(most, (bench.rtt > 0).then_some((delay.as_path(), bench.rtt)))?;
    if let Some(seconds) = bench.idle {
        let kex = bench.kex.as_deref();
        return idle::idle(&fleet, &bench.machines, &chosen, Duration::from_secs(seconds), kex);
    }
    for &machines in &bench.machines {
        for &workload in &bench.workload {
            let table = bench.table(&fleet, workload, machines, &chosen)?;
            println!("{}", table.markdown());
            if let Some(file) = &mut json {
                file.write_all(table.json().as_bytes())?;
            }
        }
    }
    Ok(())
}

fn command_line() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo xtask {}", arguments.join(" "))
}

impl Bench {
    /// The contenders to measure, in their order.
    fn chosen(&self) -> Result<Vec<&'static str>> {
        let all = contenders::all(0);
        let known = |name: &str| all.iter().any(|it| it.name == name);
        if let Some(unknown) = self.contenders.iter().find(|name| !known(name.trim_start_matches('-'))) {
            let names: Vec<&str> = all.iter().map(|contender| contender.name).collect();
            return Err(Failure::new(format!(
                "nobody is called `{unknown}`; there are {}",
                names.join(", ")
            )));
        }
        let only: Vec<&String> = self.contenders.iter().filter(|name| !name.starts_with('-')).collect();
        let wanted = |name: &str| {
            let left_out = self.contenders.iter().any(|it| it.strip_prefix('-') == Some(name));
            !left_out && (only.is_empty() || only.iter().any(|it| *it == name))
        };
        let present = |contender: &Contender| BUILT.contains(&contender.name) || contender.installed();
        let mut chosen = Vec::new();
        for contender in all.iter().filter(|contender| wanted(contender.name)) {
            match present(contender) {
                true => chosen.push(contender.name),
                false => eprintln!("xtask: going on without {}, which is not installed here", contender.name),
            }
        }
        Ok(chosen)
    }

    fn table(&self, fleet: &Fleet, workload: Workload, machines: usize, chosen: &[&str]) -> Result<Table> {
        fleet.describe(workload, machines, self.kex.as_deref())?;
        let mut contenders = contenders::all(machines);
        contenders.retain(|contender| chosen.contains(&contender.name));
        if workload == Workload::Attached {
            contenders = contenders.into_iter().flat_map(Contender::attached).collect();
        }
        let row = |contender: &Contender| Row { name: contender.name, runs: Vec::new(), memory: None };
        let mut rows: Vec<Row> = contenders.iter().map(row).collect();
        let site = Site { fleet, workload, machines };
        for repetition in 0..self.repetitions {
            let mut order: Vec<usize> = (0..contenders.len()).collect();
            if repetition % 2 == 1 {
                order.reverse();
            }
            for index in order {
                let runs = &mut rows[index].runs;
                let hopeless = |run: &Run| run.finished == 0 || run.wall > SLOW;
                if !runs.last().is_some_and(hopeless) {
                    runs.push(site.run(&contenders[index], false)?);
                }
            }
        }
        if self.memory {
            for (contender, row) in contenders.iter().zip(&mut rows) {
                if row.runs.last().is_some_and(|run| run.finished > 0) {
                    row.memory = site.run(contender, true)?.memory;
                }
            }
        }
        Ok(Table {
            workload: workload.name(),
            machines,
            round_trip: self.rtt,
            critical_path: workload.critical_path(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            means: fleet.account.means(),
            rows,
        })
    }
}

/// Where contenders run.
struct Site<'a> {
    fleet: &'a Fleet,
    workload: Workload,
    machines: usize,
}

impl Site<'_> {
    /// Runs a contender once.
    fn run(&self, contender: &Contender, memory: bool) -> Result<Run> {
        let Self { fleet, workload, machines } = *self;
        let account = &fleet.account;
        let (output, errors) = (place("output"), place("errors"));
        let work = fleet.workplace()?;
        let around = contender.around();
        fleet.settle(false);
        fleet.clean()?;
        if let Some([up, _]) = &around {
            aside(account, contender, up)?;
            fleet.settle(true);
        }
        fleet.forget_visits()?;
        if !memory {
            calm();
        }

        let listeners = fleet.listeners();
        let used = |side| account.used(side, &listeners);
        let mut command = contender.command(account.enter(Side::Controller, None)?);
        command.current_dir(&work).stdin(Stdio::null());
        command.stdout(File::create(&output)?).stderr(File::create(&errors)?);
        let before = (used(Side::Controller), used(Side::Hosts), busy());
        let (wall, succeeded, peak) = watched(account, &mut command, memory)?;
        let (controller, server) = (used(Side::Controller) - before.0, used(Side::Hosts) - before.1);
        let others = (busy() - before.2).saturating_sub(controller + server);
        account.kill();
        // What a contender leaves its hosts to do is theirs, too.
        let unsettled = fleet.settle(around.is_some());
        let server = used(Side::Hosts) - before.1;

        let said = fs::read(&output)?.into_iter().chain(fs::read(&errors)?).collect::<Vec<u8>>();
        let said = String::from_utf8_lossy(&said);
        let told = contender.done(&said, succeeded, machines);
        let (found, visits) = fleet.seen(workload, machines)?;
        let shown = |host: usize| !workload.shows() || said.contains(&token(&format!("h{host}")));
        let finished =
            found.iter().enumerate().filter(|(host, found)| **found && told.contains(host) && shown(*host));
        let finished = finished.count();
        if let Some([_, down]) = &around {
            aside(account, contender, down)?;
        }
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let run = Run {
            wall,
            controller,
            server,
            others: others.as_secs_f64() / wall.as_secs_f64() / processors,
            connections: visits.connections,
            sessions: visits.sessions,
            finished,
            memory: peak,
        };
        eprintln!(
            "xtask: {} on {machines}, {}: {:.2} s, controller {:.2} s, server {:.2} s, {} of {machines} finished",
            workload.name(),
            contender.name,
            wall.as_secs_f64(),
            controller.as_secs_f64(),
            server.as_secs_f64(),
            run.finished
        );
        if run.finished < machines {
            last_lines(&said);
        }
        if unsettled > 0 {
            eprintln!("xtask:   {} left something running on {unsettled} machines", contender.name);
        }
        Ok(run)
    }
}

/// Shows how what somebody said ended.
fn last_lines(said: &str) {
    let last: Vec<&str> = said.lines().rev().take(5).collect();
    for line in last.iter().rev() {
        eprintln!("xtask:   {}", line.chars().take(300).collect::<String>());
    }
}

/// Waits until the computer has little else to do, or until it has waited long enough.
fn calm() {
    let begun = Instant::now();
    while begun.elapsed() < CALM_TIMEOUT {
        let (before, since) = (busy(), Instant::now());
        std::thread::sleep(Duration::from_millis(300));
        if (busy() - before).as_secs_f64() / since.elapsed().as_secs_f64() < CALM {
            return;
        }
    }
}

/// Has a contender do what is not measured.
fn aside(account: &Account, contender: &Contender, arguments: &[&str]) -> Result {
    let errors = place("errors");
    let mut command = contender.program(account.enter(Side::Controller, None)?);
    command.args(arguments).current_dir(place("work")).stdin(Stdio::null()).stdout(Stdio::null());
    if command.stderr(File::create(&errors)?).status()?.success() {
        return Ok(());
    }
    last_lines(&fs::read_to_string(errors)?);
    Err(Failure::new(format!("{} does not get {} done: see above", contender.name, arguments[0])))
}

/// Runs a command to its end, or until it has taken too long: how long it took, whether it succeeded, and how much memory
/// it held.
fn watched(account: &Account, command: &mut Command, memory: bool) -> Result<(Duration, bool, Option<u64>)> {
    let (ended, end) = mpsc::channel::<()>();
    let begun = Instant::now();
    let mut child = command.spawn()?;
    std::thread::scope(|scope| {
        let watcher = scope.spawn(move || {
            let mut peak = 0;
            let pause = if memory { SAMPLE_PAUSE } else { RUN_TIMEOUT };
            while matches!(end.recv_timeout(pause), Err(RecvTimeoutError::Timeout)) {
                if begun.elapsed() > RUN_TIMEOUT {
                    account.kill();
                } else if memory {
                    peak = account.memory().max(peak);
                }
            }
            memory.then_some(peak)
        });
        let waited = child.wait();
        let wall = begun.elapsed();
        drop(ended);
        let peak = watcher.join().unwrap_or_default();
        Ok((wall, waited?.success(), peak))
    })
}
