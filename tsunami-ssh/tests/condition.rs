//! What machines are and do, asked of real ones.

use std::fs;
use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tsunami_core::condition::{Account, Accounting, TRACE_COLUMNS, Traces, canary, fingerprint};
use tsunami_core::{Cluster, Error, Group, MachineSpec, Plan, RunStore, Tsunami};
use tsunami_ssh::{LocalProvider, SshConnector, SshOptions};

/// Runs something on so many local machines.
async fn on_machines<F, Fut, T>(count: u32, body: F) -> T
where
    F: FnOnce(Cluster) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, Error>> + Send + 'static,
    T: Send + 'static,
{
    let root = tempfile::tempdir().unwrap();
    let runs = root.path().join("runs");
    let connector = Arc::new(SshConnector::new(SshOptions::default()));
    let tsunami = Tsunami::new(Arc::new(LocalProvider::new(&runs)), connector).state(RunStore::at(&runs));
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()).count(count));
    tsunami.run(plan.lifetime(Duration::from_secs(3600)), body).await.unwrap()
}

/// Keeps a processor busy for so long, as a line of shell.
fn busy(seconds: f64) -> String {
    format!("timeout {seconds} sh -c 'while :; do :; done' || :")
}

#[tokio::test(flavor = "multi_thread")]
async fn all_machines_of_a_computer_are_accounted_for_at_once_and_what_they_do_is_their_own() {
    let accounts = on_machines(2, |cluster| async move {
        // So much work, however long it takes.
        let work = "awk 'BEGIN { for (i = 0; i < 5000000; i++) sum += i }'";
        let (mut all, lines) =
            (Vec::new(), [work.to_owned(), format!("(setsid {work} &) >/dev/null; sleep 0.3")]);
        for _ in 0..2 {
            let accounting = Accounting::begin(cluster.hosts()).await;
            for (host, line) in cluster.hosts().iter().zip(&lines) {
                host.run(line).await?;
            }
            all.push(accounting.end().await);
        }
        Ok(all)
    });
    for accounts in accounts.await {
        let [account] = &accounts[..] else { panic!("{accounts:?}") };
        assert_eq!(account.machine, "node-0");
        let (own, cpu) = (account.own_cpu.unwrap(), account.cpu.unwrap());
        // The computer may be busy with other tests; the run's own part of it is theirs nevertheless.
        assert!(own > 0.05 && own <= cpu && cpu <= 1000.0 * account.seconds, "{account:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_says_what_it_is_and_can_do_and_its_trace_ends_with_it() {
    let traces = tempfile::tempdir().unwrap();
    let file = traces.path().join("deep/node-0.csv");
    let (directory, written) = (traces.path().join("deep"), file.clone());
    let (facts, results) = on_machines(1, move |cluster| async move {
        let host = &cluster.hosts()[0];
        let traces = Traces::start(cluster.hosts(), directory);
        let facts = fingerprint(host).await?;
        let results = canary(host).await?;
        let lines = || fs::read_to_string(&written).unwrap_or_default().lines().count();
        let deadline = Instant::now() + Duration::from_secs(60);
        while lines() < 3 && Instant::now() < deadline {
            sleep(Duration::from_millis(100)).await;
        }
        traces.stop().await?;
        Ok((facts, results))
    })
    .await;
    assert_eq!(facts["kernel"], fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim());
    assert_eq!(facts["offered_as"], "sshd on this computer's loopback");
    assert!(results.values().all(|rate| *rate > 0.0) && !results.is_empty(), "{results:?}");
    check_trace(&file);
}

fn check_trace(file: &Path) {
    let text = fs::read_to_string(file).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(TRACE_COLUMNS.join(",").as_str()));
    let rows: Vec<Vec<f64>> =
        lines.map(|line| line.split(',').map(|word| word.parse().unwrap()).collect()).collect();
    assert!(rows.len() >= 2 && rows.iter().all(|row| row.len() == TRACE_COLUMNS.len()), "{text}");
    assert!(rows.is_sorted_by(|a, b| a[0] < b[0]), "{text}");
}

/// Starts something that keeps a processor busy, as a stranger: no child of this program.
fn stranger(begins: f64, lasts: f64) {
    // Its own parent waits for it.
    let line = format!("(sleep {begins}; {}; sleep 3) </dev/null >/dev/null 2>&1 &", busy(lasts));
    let started = Process::new("setsid").args(["sh", "-c", &line]).stdin(Stdio::null()).status().unwrap();
    assert!(started.success());
}

/// Waits until the computer has had little to do for a moment, a minute at most.
async fn calm() {
    let busy = || {
        let stat = fs::read_to_string("/proc/stat").unwrap();
        let ticks = stat.split_ascii_whitespace().skip(1).take(3).map(|ticks| ticks.parse::<u64>().unwrap());
        ticks.sum::<u64>()
    };
    for _ in 0..300 {
        let before = busy();
        sleep(Duration::from_millis(200)).await;
        if busy() - before <= 2 {
            return;
        }
    }
}

/// How often others are noticed, and how often without any: `TSUNAMI_ACCOUNTING_TRIALS` says how many quiet trials there
/// are, and half as many have somebody else keep a processor busy for half of their time. It is a measurement, on a
/// computer that does nothing else.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "it is a measurement")]
async fn others_are_noticed_and_nobody_else_is() {
    let Some(quiet) = std::env::var("TSUNAMI_ACCOUNTING_TRIALS").ok().and_then(|count| count.parse().ok())
    else {
        return;
    };
    let load = |loaded: bool| {
        let load = if loaded { busy(0.3) } else { "sleep 0.3".to_owned() };
        let daemon = if loaded { format!("(setsid sh -c \"{}\" &)", busy(0.2)) } else { ":".to_owned() };
        format!("sleep 0.1; {daemon}; {load}; dd if=/dev/zero of=f bs=1M count=20 2>/dev/null; sleep 0.1")
    };
    let trials = move |count: u32, disturb: bool| async move {
        on_machines(2, move |cluster| async move {
            let mut accounts = Vec::new();
            for trial in 0..count {
                calm().await;
                let accounting = Accounting::begin(cluster.hosts()).await;
                if disturb {
                    stranger(f64::from(trial % 3) / 10.0, 0.35);
                }
                let line = load(trial % 2 == 0);
                let [client, server] = &cluster.hosts()[..] else { panic!("two machines") };
                tokio::try_join!(client.run(&line), server.run("sleep 0.3"))?;
                accounts.extend(accounting.end().await);
                if disturb {
                    sleep(Duration::from_millis(300)).await;
                }
            }
            Ok(accounts)
        })
        .await
    };
    let flagged =
        |accounts: &[Account]| accounts.iter().filter(|account| account.disturbed.is_some()).count();
    let others = |accounts: &[Account]| {
        let share = |account: &Account| Some((account.cpu? - account.own_cpu?) / account.seconds);
        let mut shares: Vec<f64> = accounts.iter().filter_map(share).collect();
        shares.sort_by(f64::total_cmp);
        [0, shares.len() / 2, shares.len() * 95 / 100, shares.len() - 1]
            .map(|place| (shares[place] * 100.0).round())
    };
    let (quiet, disturbed) = (trials(quiet, false).await, trials(quiet / 2, true).await);
    eprintln!(
        "flagged: {} of {} quiet trials, {} of {} with a stranger on one processor for half of the time; others had, in \
         percent of a processor (least, median, 95 of 100, most): quiet {:?}, disturbed {:?}",
        flagged(&quiet),
        quiet.len(),
        flagged(&disturbed),
        disturbed.len(),
        others(&quiet),
        others(&disturbed)
    );
    for disturbed in quiet.iter().filter_map(|account| account.disturbed.as_ref()) {
        eprintln!("quiet: {disturbed}");
    }
    assert!(flagged(&quiet) * 200 <= 8 * quiet.len() && flagged(&disturbed) * 100 >= 90 * disturbed.len());
}
