//! What happened on the machines of a trial that the trial did not do.
//!
//! Each computer is looked at twice, by one short script: before the trial and at its end. All else is counting.
//!
//! # Whose processor time it was
//!
//! The kernel counts what all had. What the run's own had is counted in two ways, each of which misses something, so
//! that the larger counts:
//!
//! - By process: those with the run's mark in their environment, what descends from them, the sshds above them, and,
//!   where the program that does the run shows on the computer, that and what descends from it. The kernel adds the time of
//!   a process that has ended to its parent's, so nothing is missed but what was left to init and ended meanwhile. That
//!   may have been anybody's, and is held against nobody.
//! - By control group, where the run has one: nothing of its commands is missed, but what is not a command is.
//!
//! The rest, without the kernel's own threads, which work for whoever asks, is somebody else's. On a computer that others
//! use, `local` and `hosts`, it disturbs. A machine that belongs to the run is different: a database that init
//! started, or a container, works there for the experiment, and nobody can tell. There, only what every such system does
//! by itself disturbs, known by its name.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use tokio::time::timeout;

use super::{Account, TICKS};
use crate::cluster::Host;
use crate::error::in_time;
use crate::limits::KERNEL_MESSAGES_LIMIT;
use crate::text::{sanitize, shorten};

const SCRIPT: &str = include_str!("snapshot.sh");

/// What errors call that.
const ACTION: &str = "look at what the machine has done so far";

/// How long a machine may take to answer. A trial waits no longer for one that doesn't.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Processor time of others, as a part of the trial's time, that disturbs it: so much of one processor.
const OTHERS_LIMIT: f64 = 0.15;

/// The same where the kernel's own threads don't show, as in a container: they are among the others there.
const OTHERS_AND_KERNEL_LIMIT: f64 = 0.3;

/// Time that a hypervisor gives to others, as a part of what was wanted, that disturbs a trial.
const STEAL_LIMIT: f64 = 0.05;

/// What is no disturbance however short the trial, in seconds: the kernel counts in ticks.
const SLACK: f64 = 0.1;

/// What systems do by themselves, by the names of its processes, which have 15 characters at most.
const HOUSEKEEPING: &[&str] = &[
    "apt",
    "apt-check",
    "apt-get",
    "apt.systemd.dai",
    "dnf",
    "dnf-automatic",
    "dpkg",
    "fstrim",
    "fwupd",
    "logrotate",
    "mandb",
    "packagekitd",
    "snapd",
    "unattended-upgr",
    "updatedb",
    "updatedb.mlocat",
    "updatedb.plocat",
    "yum",
];

/// Looks at machines while a trial runs. It is passive: between its beginning and its end nothing runs anywhere.
///
/// A trial is [disturbed](Account::disturbed) where
///
/// - on a computer that others use, as this one or one of [`hosts`](crate::Login::directory), processes that are not the
///   run's had more than 0.15 of a processor on average and a tenth of a second in all (0.3 in a container, where the
///   kernel's own threads can't be told from them). What init or a container engine starts is not the run's there: servers
///   that are measured are started by the run's commands;
/// - on a machine that belongs to the run, what systems do by themselves had as much: updates, indexing, rotation of logs;
/// - a hypervisor gave more than 5 % of the processor time that was wanted to others, and a tenth of a second in all.
///
/// The rest of an account is told, and disturbs nothing: the run itself may have caused it.
///
/// ```
/// # use tsunami_core::condition::Accounting;
/// # use tsunami_core::{Cluster, Error, UserEvent};
/// # async fn example(cluster: &Cluster) -> Result<(), Error> {
/// let accounting = Accounting::begin(cluster.hosts()).await;
/// cluster.hosts()[0].run("./measure").await?;
/// for account in accounting.end().await {
///     if let Some(disturbed) = &account.disturbed {
///         println!("{}: {disturbed}", account.machine);
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "nothing is told before `end`"]
pub struct Accounting {
    computers: Vec<Computer>,
    controller: Option<Controller>,
}

/// A computer that one or several machines are on.
#[derive(Debug)]
struct Computer {
    hosts: Vec<Host>,
    before: Option<Snapshot>,
}

impl Accounting {
    /// Looks at these machines, all at once: one script on each, or one for all of those that are known to share a
    /// computer. A machine that doesn't answer within ten seconds is accounted for without numbers. May be dropped at any
    /// await.
    pub async fn begin(hosts: &[Host]) -> Self {
        let mut computers: Vec<Vec<Host>> = Vec::new();
        for host in hosts {
            let boot = host.boot().get();
            match computers.iter_mut().find(|hosts| boot.is_some() && hosts[0].boot().get() == boot) {
                Some(hosts) => hosts.push(host.clone()),
                None => computers.push(vec![host.clone()]),
            }
        }
        let looks = computers.into_iter().enumerate().map(async |(place, hosts)| {
            let before = look(&hosts, None).await;
            (place, Computer { hosts, before })
        });
        let mut looked = in_time(looks).await;
        looked.sort_by_key(|(place, _)| *place);
        let mut computers: Vec<Computer> = Vec::new();
        for (_, computer) in looked {
            let boot = computer.hosts[0].boot().get();
            match computers.iter_mut().find(|other| boot.is_some() && other.hosts[0].boot().get() == boot) {
                Some(same) => same.hosts.extend(computer.hosts),
                None => computers.push(computer),
            }
        }
        Self { computers, controller: Controller::find() }
    }

    /// Looks at them again, and says what happened: an account for each computer, by the name of the first of its
    /// machines. Call it while what the trial began still runs, that is before the trial ends: what was left to init and
    /// has ended since is not counted as the run's, unless the run has a control group. May be dropped at any await.
    pub async fn end(self) -> Vec<Account> {
        let Self { computers, controller } = self;
        let accounts = computers.into_iter().enumerate().map(|(place, Computer { hosts, before })| {
            let controller = controller.as_ref();
            async move {
                let machine = hosts[0].name().to_owned();
                let account = match before {
                    Some(before) => {
                        let after = look(&hosts, Some(before.uptime)).await;
                        after.map(|after| account(&before, &after, is_shared(&hosts, controller), controller))
                    }
                    None => None,
                };
                (place, Account { machine, ..account.unwrap_or_default() })
            }
        });
        let mut accounts = in_time(accounts).await;
        accounts.sort_by_key(|(place, _)| *place);
        accounts.into_iter().map(|(_, account)| account).collect()
    }
}

/// Looks at the computer of these machines by the first that answers, or the second: more would take too long.
async fn look(hosts: &[Host], since: Option<f64>) -> Option<Snapshot> {
    for host in hosts.iter().take(2) {
        let run = host.machine().run.as_str();
        let args = [run.to_owned(), since.map(|since| format!("{since:.2}")).unwrap_or_default()];
        let said = timeout(TIMEOUT, host.stage("account").administer(ACTION, SCRIPT, &args)).await;
        if let Ok(Ok(said)) = said
            && let Some(snapshot) = Snapshot::read(&said, run)
        {
            // It stays what it was at first, also where the machine has been started anew: no other has it.
            host.boot().get_or_init(|| snapshot.boot.clone());
            return Some(snapshot);
        }
    }
    None
}

/// Whether others use the computer.
fn is_shared(hosts: &[Host], controller: Option<&Controller>) -> bool {
    let is_ours = |host: &Host| {
        let boot = host.boot().get();
        host.machine().login.directory.is_none() && controller.is_none_or(|own| Some(&own.boot) != boot)
    };
    hosts.len() > 1 || !hosts.iter().all(is_ours)
}

/// The program that does the run.
#[derive(Debug)]
struct Controller {
    boot: String,
    process: Identity,
}

impl Controller {
    /// This program, where the system tells.
    fn find() -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let pid = stat.split(' ').next()?.parse().ok()?;
        let start = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
        Some(Self { boot, process: Identity { pid, start } })
    }
}

/// A process: no other has its number and its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity {
    pid: u32,
    /// In ticks since boot.
    start: u64,
}

#[derive(Debug)]
struct Process {
    id: Identity,
    parent: u32,
    group: u32,
    session: u32,
    /// Ticks that it has had.
    own: u64,
    /// Ticks that those had which it has waited for.
    reaped: u64,
    marked: bool,
    /// It has ended, and nobody has waited for it yet.
    ended: bool,
    name: String,
}

/// What a computer, its pressure counters, its control groups and its processes have had so far, in seconds.
#[derive(Debug, Default)]
struct Snapshot {
    uptime: f64,
    boot: String,
    busy: f64,
    steal: f64,
    cpu_pressure: Option<f64>,
    memory_pressure: Option<f64>,
    io_pressure: Option<f64>,
    throttled: Option<f64>,
    oom_kills: Option<u64>,
    /// Of the control group that commands run in, where the kernel doesn't count for the computer.
    group_oom_kills: Option<u64>,
    /// Of the run's own control group.
    group_cpu: Option<f64>,
    /// Of the kernel's own threads.
    kernel: Option<f64>,
    /// `None` where not all are known.
    processes: Option<Vec<Process>>,
    messages: Vec<String>,
}

impl Snapshot {
    /// Reads what the script says. Whatever a machine says besides is passed over.
    fn read(said: &str, run: &str) -> Option<Self> {
        let mut snapshot = Self::default();
        let (mut processes, mut all) = (Vec::new(), true);
        let group = format!("/tsunami-{run}/cpu.stat");
        for line in said.lines() {
            let (key, rest) = line.split_once(' ').unwrap_or((line, ""));
            let mut words = rest.split_ascii_whitespace();
            match key {
                "uptime" => snapshot.uptime = rest.parse().ok().filter(|uptime: &f64| uptime.is_finite())?,
                "boot" => snapshot.boot = shorten(&sanitize(rest), 64).into_owned(),
                "cpu" => {
                    let ticks: Vec<f64> =
                        words.map_while(|word| word.parse::<u64>().ok()).map(seconds).collect();
                    snapshot.busy = ticks.iter().take(3).sum();
                    snapshot.steal = ticks.get(7).copied().unwrap_or_default();
                }
                "pressure" => {
                    let of = match words.next() {
                        Some("cpu") => &mut snapshot.cpu_pressure,
                        Some("memory") => &mut snapshot.memory_pressure,
                        Some("io") => &mut snapshot.io_pressure,
                        _ => continue,
                    };
                    *of = words.next().and_then(|total| scaled(total, 1e6));
                }
                "oom_kill" => snapshot.oom_kills = rest.trim().parse().ok(),
                "cgroup" => match (words.next(), words.next(), words.next()) {
                    (Some("usage_usec"), Some(usage), Some(file)) if file.ends_with(&group) => {
                        snapshot.group_cpu = scaled(usage, 1e6);
                    }
                    // The nearest counts what is below it, too.
                    (Some("oom_kill"), Some(count), _) if snapshot.group_oom_kills.is_none() => {
                        snapshot.group_oom_kills = count.parse().ok();
                    }
                    // Each counts for itself, and the tightest may be any.
                    (Some("throttled_usec"), Some(time), _) => {
                        add(&mut snapshot.throttled, scaled(time, 1e6))
                    }
                    (Some("throttled_time"), Some(time), _) => {
                        add(&mut snapshot.throttled, scaled(time, 1e9))
                    }
                    _ => {}
                },
                "kernel" => snapshot.kernel = scaled(rest, TICKS),
                "process" => processes.extend(Process::read(rest)),
                "more" => all = false,
                "message" if snapshot.messages.len() < KERNEL_MESSAGES_LIMIT.0 => {
                    snapshot.messages.push(shorten(&sanitize(rest), KERNEL_MESSAGES_LIMIT.1).into_owned());
                }
                _ => {}
            }
        }
        snapshot.processes = Some(processes).filter(|processes| all && !processes.is_empty());
        (snapshot.uptime > 0.0).then_some(snapshot)
    }
}

impl Process {
    fn read(text: &str) -> Option<Self> {
        let mut words = text.splitn(11, ' ');
        let mut number = || words.next()?.parse::<u64>().ok();
        let mut numbers = [0; 10];
        for place in &mut numbers {
            *place = number()?;
        }
        let [pid, parent, group, session, user, system, reaped_user, reaped_system, start, kind] = numbers;
        let narrow = |number| u32::try_from(number).ok();
        Some(Self {
            id: Identity { pid: narrow(pid)?, start },
            parent: narrow(parent)?,
            group: narrow(group)?,
            session: narrow(session)?,
            own: user.saturating_add(system),
            reaped: reaped_user.saturating_add(reaped_system),
            marked: kind == 1,
            ended: kind == 2,
            name: shorten(&sanitize(words.next().unwrap_or_default()), 15).into_owned(),
        })
    }

    fn own(&self) -> i128 {
        i128::from(self.own)
    }

    /// Ticks that it has had, and those that it waited for.
    fn with_reaped(&self) -> i128 {
        i128::from(self.own) + i128::from(self.reaped)
    }

    /// Whether orphans become its own, as those of init, or of a user's systemd.
    fn adopts(&self) -> bool {
        self.id.pid == 1 || self.name == "systemd"
    }

    /// Whether it is one of those through which commands come.
    fn is_login(&self) -> bool {
        self.name.starts_with("sshd") || self.name == "dropbear"
    }
}

#[expect(clippy::cast_precision_loss, reason = "no computer counts that far")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / TICKS
}

/// A count of so many to the second.
#[expect(clippy::cast_precision_loss, reason = "no computer counts that far")]
fn scaled(count: &str, a_second: f64) -> Option<f64> {
    Some(count.trim().parse::<u64>().ok()? as f64 / a_second)
}

fn add(sum: &mut Option<f64>, more: Option<f64>) {
    *sum = more.map_or(*sum, |more| Some(sum.unwrap_or_default() + more));
}

/// To the millisecond, which is more than the kernel tells.
fn cut(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// What happened between two looks at a computer.
fn account(before: &Snapshot, after: &Snapshot, shared: bool, controller: Option<&Controller>) -> Account {
    let between = after.uptime - before.uptime;
    if between <= 0.0 || before.boot != after.boot {
        // It was started anew, and has forgotten all.
        return Account::default();
    }
    let killed = |before: Option<u64>, after: Option<u64>| Some(after?.saturating_sub(before?));
    let more = |before: Option<f64>, after: Option<f64>| Some(cut((after? - before?).max(0.0)));
    let controller = controller.filter(|own| own.boot == after.boot).map(|own| own.process);
    let division = match (&before.processes, &after.processes) {
        (Some(before), Some(after)) => Some(Division::between(before, after, controller)),
        _ => None,
    };
    let busy = cut((after.busy - before.busy).max(0.0));
    let kernel = more(before.kernel, after.kernel);
    let group = more(before.group_cpu, after.group_cpu);
    // One is counted exactly and the other by samples, so that it may seem to be more than all.
    let own = division.as_ref().map(|division| cut(division.own.max(group.unwrap_or_default()).min(busy)));
    let mut account = Account {
        seconds: cut(between),
        cpu: Some(busy),
        own_cpu: own,
        steal: more(Some(before.steal), Some(after.steal)),
        cpu_pressure: more(before.cpu_pressure, after.cpu_pressure),
        memory_pressure: more(before.memory_pressure, after.memory_pressure),
        io_pressure: more(before.io_pressure, after.io_pressure),
        throttled: more(before.throttled, after.throttled),
        oom_kills: killed(before.oom_kills, after.oom_kills)
            .or_else(|| killed(before.group_oom_kills, after.group_oom_kills)),
        kernel_messages: after.messages.clone(),
        ..Account::default()
    };
    let others = own.zip(division).map(|(own, Division { adopted, mut others, .. })| {
        let rest = (busy - kernel.unwrap_or_default() - own).max(0.0);
        if shared {
            // A control group knows what of it was the run's.
            return ((rest - if group.is_some() { 0.0 } else { adopted }).max(0.0), others);
        }
        others.retain(|(name, _)| HOUSEKEEPING.contains(&name.as_str()));
        (others.iter().map(|(_, seconds)| seconds).sum::<f64>().min(rest), others)
    });
    account.disturbed = disturbed(&account, others, kernel.is_some());
    account
}

/// What disturbed a trial, by what happened on a computer, and by what others had there: all, and each by its name.
fn disturbed(
    account: &Account,
    others: Option<(f64, Vec<(String, f64)>)>,
    kernel_shows: bool,
) -> Option<String> {
    let mut said = Vec::new();
    if let Some((others, names)) = others {
        let limit = if kernel_shows { OTHERS_LIMIT } else { OTHERS_AND_KERNEL_LIMIT };
        if others > limit * account.seconds + SLACK {
            let share = |seconds: f64| seconds.min(others) / account.seconds;
            let most = names.into_iter().filter(|(_, seconds)| *seconds > others / 10.0).take(3);
            let most: Vec<String> =
                most.map(|(name, seconds)| format!("{name} {:.2}", share(seconds))).collect();
            let most = if most.is_empty() { String::new() } else { format!(": {}", most.join(", ")) };
            said.push(format!(
                "processes that are not the run's used {:.2} of a processor{most}",
                share(others)
            ));
        }
    }
    let (busy, steal) = (account.cpu.unwrap_or_default(), account.steal.unwrap_or_default());
    if steal > STEAL_LIMIT * (busy + steal) + SLACK {
        said.push(format!(
            "the hypervisor gave {steal:.1} of {:.1} processor seconds to others",
            busy + steal
        ));
    }
    (!said.is_empty()).then(|| said.join("; "))
}

/// What processes had between two looks, in seconds.
#[derive(Debug)]
struct Division {
    /// The run's own.
    own: f64,
    /// Those that began and ended in between as init's, as far as it can be told: anybody may have left them.
    adopted: f64,
    /// The others, with what they have waited for, by the names of those that are left; the greatest first.
    others: Vec<(String, f64)>,
}

impl Division {
    /// Of a process that is told twice, the last counts.
    fn between(before: &[Process], after: &[Process], controller: Option<Identity>) -> Self {
        let mut members_of_run = members(before, controller, &HashMap::new());
        members_of_run.extend(members(after, controller, &members_of_run));
        let by_pid: HashMap<u32, &Process> = after.iter().map(|process| (process.id.pid, process)).collect();
        let earlier: HashMap<Identity, &Process> =
            before.iter().map(|process| (process.id, process)).collect();
        let later: HashMap<Identity, &Process> = after.iter().map(|process| (process.id, process)).collect();
        let gained = |process: &Process, ticks: fn(&Process) -> i128| {
            ticks(process) - earlier.get(&process.id).map_or(0, |earlier| ticks(earlier))
        };
        let (mut own, mut adopted, mut others) = (0, 0, HashMap::<&str, i128>::new());
        for process in later.values() {
            match members_of_run.get(&process.id) {
                Some(true) => own += gained(process, Process::with_reaped),
                Some(false) => own += gained(process, Process::own),
                // Init may take its time.
                None if process.ended
                    && by_pid.get(&process.parent).is_some_and(|parent| parent.adopts()) =>
                {
                    adopted += gained(process, Process::with_reaped);
                }
                None if process.adopts() => {
                    adopted += gained(process, |process| i128::from(process.reaped));
                    *others.entry(&process.name).or_default() += gained(process, Process::own);
                }
                None => *others.entry(&process.name).or_default() += gained(process, Process::with_reaped),
            }
        }
        // What has ended is in the account of whoever is left above it, with what it had had before.
        let by_pid: HashMap<u32, &Process> = before.iter().map(|process| (process.id.pid, process)).collect();
        for process in before.iter().filter(|process| !later.contains_key(&process.id)) {
            let above = std::iter::successors(by_pid.get(&process.parent), |above| by_pid.get(&above.parent));
            let Some(heir) = above.take(before.len()).find_map(|above| later.get(&above.id)) else {
                continue;
            };
            let with_reaped = members_of_run.get(&process.id) != Some(&false);
            let ticks = if with_reaped { process.with_reaped() } else { process.own() };
            match members_of_run.get(&heir.id) {
                Some(true) if members_of_run.contains_key(&process.id) => own -= ticks,
                None if heir.adopts() => adopted -= ticks,
                None => *others.entry(&heir.name).or_default() -= ticks,
                Some(_) => {}
            }
        }
        let in_seconds = |ticks: i128| seconds(u64::try_from(ticks.max(0)).unwrap_or(u64::MAX));
        let others = others.into_iter().map(|(name, ticks)| (name.to_owned(), in_seconds(ticks)));
        let mut others: Vec<(String, f64)> = others.filter(|(_, seconds)| *seconds > 0.0).collect();
        others
            .sort_by(|(name, seconds), (other, more)| more.total_cmp(seconds).then_with(|| name.cmp(other)));
        Self { own: in_seconds(own), adopted: in_seconds(adopted), others }
    }
}

/// The run's own processes, and of each whether what it has waited for is the run's too. `known` are those of an earlier
/// look.
fn members(
    processes: &[Process],
    controller: Option<Identity>,
    known: &HashMap<Identity, bool>,
) -> HashMap<Identity, bool> {
    let by_pid: HashMap<u32, &Process> = processes.iter().map(|process| (process.id.pid, process)).collect();
    let by = |key: fn(&Process) -> u32| {
        let mut by = HashMap::<u32, Vec<&Process>>::new();
        processes.iter().for_each(|process| by.entry(key(process)).or_default().push(process));
        by
    };
    let children = by(|process| process.parent);
    let companions = [by(|process| process.group), by(|process| process.session)];
    let is_seed = |process: &&Process| {
        process.marked || Some(process.id) == controller || known.get(&process.id) == Some(&true)
    };
    let mut members: HashMap<Identity, bool> = HashMap::new();
    let mut stack: Vec<&Process> = processes.iter().filter(is_seed).collect();
    while let Some(process) = stack.pop() {
        if members.insert(process.id, true).is_some() {
            continue;
        }
        stack.extend(children.get(&process.id.pid).into_iter().flatten());
        // Whoever started the program may have started others in its group.
        if Some(process.id) != controller {
            stack.extend(companions.iter().filter_map(|by| by.get(&process.id.pid)).flatten());
        }
    }
    // The uppermost sshd may be everybody's, and what it has waited for too.
    let logins: Vec<&Process> =
        processes.iter().filter(|process| members.contains_key(&process.id)).collect();
    for process in logins {
        let mut above = by_pid.get(&process.parent).filter(|above| above.is_login());
        while let Some(login) = above {
            above = by_pid.get(&login.parent).filter(|above| above.is_login());
            if members.contains_key(&login.id) {
                break;
            }
            members.insert(login.id, above.is_some());
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::tests::{SHELLS, says};
    use super::*;

    const RUN: &str = "20260101-000000-aaaa";
    const INIT: &str = "1 0 1 1 20 20 500 500 2 0 systemd";
    const CONTROLLER: Identity = Identity { pid: 50, start: 500 };

    /// What a quiet computer of two processors says after so many seconds, in which somebody had so many ticks, with
    /// these processes beside init and the kernel.
    fn snapshot(uptime: f64, busy: u64, processes: &[&str]) -> Snapshot {
        let init = if processes.iter().any(|process| process.starts_with("1 ")) { "" } else { INIT };
        let processes = std::iter::once(&init).chain(processes).map(|process| format!("process {process}\n"));
        let processes: String = processes.collect();
        let said = format!(
            "uptime {uptime}\nboot 9c3e208c\ncpus 2\ncpu  {busy} 0 0 5000 7 0 30 40 0 0\noom_kill 3\n\
             pressure cpu 1000000\npressure io 5\nkernel 100\n\
             {processes}"
        );
        Snapshot::read(&said, RUN).unwrap()
    }

    fn between(before: &Snapshot, after: &Snapshot, shared: bool) -> Account {
        let controller = Controller { boot: "9c3e208c".to_owned(), process: CONTROLLER };
        account(before, after, shared, Some(&controller))
    }

    #[track_caller]
    fn is_about(number: Option<f64>, expected: f64) {
        assert!(
            number.is_some_and(|number| (number - expected).abs() < 1e-6),
            "{number:?} is not {expected}"
        );
    }

    /// The program that does the run with an ssh of its own, everybody's sshd with a session of the run's and another's,
    /// and in the first a command that has a child.
    const PROCESSES: [&str; 9] = [
        "50 40 40 40 100 0 0 0 500 0 tsunami",
        "51 50 51 51 10 0 0 0 510 0 ssh",
        "60 1 60 60 5 0 7000 0 10 0 sshd",
        "61 60 61 61 5 0 0 0 520 0 sshd",
        "62 61 62 62 0 0 0 0 530 1 sh",
        "63 62 62 62 300 0 0 0 540 0 load",
        "70 60 70 70 5 0 0 0 20 0 sshd",
        "71 70 70 70 5 0 0 0 21 0 vim",
        "80 1 80 80 1000 0 0 0 30 0 hog",
    ];

    #[test]
    fn what_the_runs_processes_did_is_its_own_however_they_ended() {
        let before = snapshot(10.0, 0, &PROCESSES);
        // The load has ended, and its parent knows; it left something, which is init's by now, and something unmarked that
        // has a session of its own. Two of the run's commands began since, one through a new session. Everybody's sshd has
        // waited for the session of somebody else.
        let after = snapshot(
            20.0,
            2000,
            &[
                "50 40 40 40 150 0 0 0 500 0 tsunami",
                "51 50 51 51 20 0 0 0 510 0 ssh",
                "52 50 52 52 3 0 0 0 900 0 sh",
                "60 1 60 60 6 0 9000 0 10 0 sshd",
                "61 60 61 61 7 0 0 0 520 0 sshd",
                "62 61 62 62 0 0 400 0 530 1 sh",
                "64 1 62 62 20 0 0 0 600 0 left",
                "65 1 65 65 30 0 0 0 601 1 daemon",
                "66 60 66 66 2 0 0 0 610 0 sshd",
                "67 66 67 67 40 0 0 0 611 1 sh",
                "80 1 80 80 1900 0 0 0 30 0 hog",
            ],
        );
        let account = between(&before, &after, true);
        let expected = 50 + 10 + 3 + 1 + 2 + (400 - 300) + 20 + 30 + 2 + 40;
        is_about(account.own_cpu, f64::from(expected) / 100.0);
        is_about(account.cpu, 20.0);
        is_about(Some(account.seconds), 10.0);
        assert_eq!((account.oom_kills, account.memory_pressure), (Some(0), None));
        let disturbed = account.disturbed.unwrap();
        assert_eq!(disturbed, "processes that are not the run's used 1.74 of a processor: hog 0.90");
    }

    #[test]
    fn a_control_group_knows_what_init_has_waited_for() {
        let said = |usage: u64| {
            format!(
                "uptime {0}\nboot b\ncpu  {1} 0 0 0\nkernel 0\nprocess 1 0 1 1 0 0 0 0 2 0 init\n\
                 cgroup usage_usec {1}0000 /sys/fs/cgroup/a/tsunami-{RUN}/cpu.stat\n\
                 cgroup usage_usec 77777777 /sys/fs/cgroup/a/cpu.stat\n\
                 cgroup throttled_usec {1} /sys/fs/cgroup/a/cpu.stat\n\
                 cgroup throttled_usec {1} /sys/fs/cgroup/cpu.stat\n",
                usage + 1,
                usage
            )
        };
        let of = |usage| Snapshot::read(&said(usage), RUN).unwrap();
        let account = account(&of(0), &of(500), true, None);
        is_about(account.own_cpu, 5.0);
        is_about(account.throttled, 0.001);
        assert_eq!(account.disturbed, None);
    }

    #[test]
    fn what_was_left_to_init_and_has_ended_is_held_against_nobody() {
        let init = |reaped: u64| format!("1 0 1 1 0 0 {reaped} 0 2 0 init");
        // A stranger's process with a child of its own, which had run for long, ends as well.
        let (old, child) = ("90 1 90 90 300 0 0 0 40 0 old", "91 90 90 90 100 0 0 0 41 0 child");
        let before = snapshot(10.0, 0, &[&init(1000), old, child]);
        let reaped = 1000 + 400 + 250;
        let after = snapshot(20.0, 300, &[&init(reaped)]);
        let account = between(&before, &after, true);
        assert_eq!((account.own_cpu, account.disturbed), (Some(0.0), None));
        let zombie = "93 1 93 93 250 0 0 0 60 2 sh";
        let account = between(&before, &snapshot(20.0, 300, &[&init(reaped - 250), zombie]), true);
        assert_eq!((account.own_cpu, account.disturbed), (Some(0.0), None));
        let stayed = snapshot(20.0, 800, &[&init(reaped), "92 1 92 92 500 0 0 0 50 0 hog"]);
        let said = "processes that are not the run's used 0.55 of a processor: hog 0.50";
        assert_eq!(between(&before, &stayed, true).disturbed.as_deref(), Some(said));
    }

    #[test]
    fn what_init_waits_for_while_it_is_looked_is_known_and_others_answer_for_their_children() {
        let init = |reaped: u64| format!("1 0 1 1 0 0 {reaped} 0 2 0 init");
        let (make, old) = ("80 1 80 80 5 0 7000 0 30 0 make", "81 80 80 80 300 0 0 0 900 0 cc");
        let before = snapshot(10.0, 0, &[&init(1000), make, old]);
        // Somebody's compiler that had had 3 seconds had 1 more, and another one 2. What init has waited for last was no
        // process any more when it was its turn to be told of.
        let make = "80 1 80 80 6 0 7600 0 30 0 make";
        let after = snapshot(20.0, 701, &[&init(1000), make, &init(1400)]);
        let account = between(&before, &after, true);
        let said = "processes that are not the run's used 0.30 of a processor: make 0.30";
        assert_eq!(account.disturbed.as_deref(), Some(said));
    }

    #[test]
    fn others_disturb_a_shared_computer_and_housekeeping_and_a_hypervisor_any() {
        let disturbed = |name: &str, ticks: u64, shared: bool| {
            let process = |ticks| format!("80 1 80 80 {ticks} 0 0 0 30 0 {name}");
            let before = snapshot(100.0, 0, &[&process(0)]);
            between(&before, &snapshot(110.0, ticks, &[&process(ticks)]), shared).disturbed
        };
        assert_eq!(disturbed("cron", 100, true), None, "that little is everywhere");
        let said = "processes that are not the run's used 0.50 of a processor: hog 0.50";
        assert_eq!(disturbed("hog", 500, true).as_deref(), Some(said));
        assert_eq!(disturbed("postgres", 500, false), None, "it may well be what is measured");
        assert!(disturbed("unattended-upgr", 500, false).is_some());
        let (before, mut after) = (snapshot(1.0, 0, &[]), snapshot(11.0, 100, &[]));
        after.steal += 0.1;
        assert_eq!(between(&before, &after, false).disturbed, None);
        after.steal += 0.9;
        let said = "the hypervisor gave 1.0 of 2.0 processor seconds to others";
        assert_eq!(between(&before, &after, false).disturbed.as_deref(), Some(said));
    }

    #[test]
    fn what_does_not_show_is_not_known_and_what_is_hostile_is_passed_over() {
        for said in ["", "uptime x", "uptime NaN", "uptime -1", "boot a\ncpu 1 2 3"] {
            assert!(Snapshot::read(said, RUN).is_none(), "{said}");
        }
        let most = u64::MAX;
        let hostile = format!(
            "uptime 5\ncpu  {most} {most} x\noom_kill -3\npressure cpu 1e9\npressure\ncgroup usage_usec\nkernel 1 2\n\
             process 1 2 3\nprocess 5 4294967296 0 0 0 0 0 0 0 0 x\n\
             process 6 6 6 6 {most} {most} {most} {most} {most} 1 \u{1b}[31mred\nprocess 6 6 6 6 0 0 0 0 0 1 twice\n{}",
            "message \u{9b}2J\u{202e}x\n".repeat(1000)
        );
        let snapshot = Snapshot::read(&hostile, RUN).unwrap();
        assert_eq!(snapshot.messages, vec!["x"; KERNEL_MESSAGES_LIMIT.0]);
        let processes = snapshot.processes.as_ref().unwrap();
        assert_eq!((processes.len(), processes[0].name.as_str()), (2, "red"));
        let later = Snapshot { uptime: 6.0, ..Snapshot::read(&hostile, RUN).unwrap() };
        let account = account(&snapshot, &later, true, None);
        assert_eq!((account.cpu_pressure, account.oom_kills, account.throttled), (None, None, None));
        assert_eq!((account.cpu, account.disturbed), (Some(0.0), None));
        // It was started anew.
        assert_eq!(between(&later, &snapshot, true), Account::default());
        // There are more processes than were told of.
        let more = |uptime| {
            Snapshot::read(&format!("uptime {uptime}\ncpu  1 1 1\nprocess 1 0 1 1 0 0 0 0 2 0 a\nmore"), RUN)
        };
        let account = between(&more(1).unwrap(), &more(2).unwrap(), true);
        assert_eq!((account.cpu, account.own_cpu, account.disturbed), (Some(0.0), None, None));
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_machine_says_is_no_reason_to_panic(
            numbers in proptest::collection::vec((0usize..12, proptest::prelude::any::<u64>(), 0u64..9), 0..60)
        ) {
            let said = |skip: usize| {
                let lines = numbers.iter().skip(skip).map(|(kind, large, small)| match kind {
                    0 => format!("cpu  {large} {small} {large} 0 0 0 0 {small}\n"),
                    1 => format!("oom_kill {large}\nkernel {small}\n"),
                    2 => format!("pressure io {large}\n"),
                    3 => format!("cgroup throttled_time {large} /\ncgroup oom_kill {small} /\n"),
                    kind => format!(
                        "process {small} {} {} {small} {large} {large} {large} {small} {small} {} sshd\n",
                        large.wrapping_add(*small) % 9,
                        large % 9,
                        kind % 2
                    ),
                });
                format!("uptime {}\nboot a\n{}", skip + 1, lines.collect::<String>())
            };
            let [before, after] = [0, 1].map(|skip| Snapshot::read(&said(skip), RUN).unwrap());
            let controller = Controller { boot: "a".to_owned(), process: Identity { pid: 3, start: 3 } };
            for shared in [false, true] {
                let account = account(&before, &after, shared, Some(&controller));
                let numbers = [account.cpu, account.own_cpu, account.steal, account.throttled];
                assert!(numbers.into_iter().flatten().all(|number| number >= 0.0), "{account:?}");
            }
        }
    }

    #[test]
    fn every_shell_sees_the_same_computer() {
        for shell in SHELLS {
            let mut child = Command::new("sleep").arg("100").env("TSUNAMI_RUN_ID", RUN).spawn().unwrap();
            let said = says(shell, SCRIPT, &[RUN, "0"], &[("LC_ALL", "de_DE.UTF-8")]);
            child.kill().unwrap();
            child.wait().unwrap();
            let snapshot = Snapshot::read(&said, RUN).unwrap();
            let own = Controller::find().unwrap();
            assert_eq!(snapshot.boot, own.boot, "{shell:?}");
            assert!(snapshot.busy > 0.0 && said.len() < 250_000, "{shell:?}: {said}");
            let processes = snapshot.processes.unwrap();
            let seen = |pid: u32| processes.iter().find(|process| process.id.pid == pid);
            assert!(
                seen(child.id()).is_some_and(|child| child.marked && child.name == "sleep"),
                "{shell:?}: {said}"
            );
            assert_eq!(
                processes.iter().filter(|process| process.id.pid == 1).count(),
                2,
                "{shell:?}: {said}"
            );
            let this = seen(std::process::id()).unwrap();
            assert_eq!((this.id, this.marked), (own.process, false), "{shell:?}");
        }
    }

    #[test]
    fn where_the_kernel_shows_little_the_rest_is_told() {
        if !rustix::process::geteuid().is_root() {
            // An ordinary user mounts nothing; these tests run as root too.
            return;
        }
        let hidden = "mount -t proc -o hidepid=2 proc /proc && mount -t tmpfs none /proc/pressure && \
                      exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
        for shell in SHELLS {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", hidden, "sh"]).args(shell);
            command.args(["-c", &crate::compact_script(SCRIPT), "sh", RUN, "0"]).env("TSUNAMI_RUN_ID", RUN);
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && output.stderr.is_empty(), "{shell:?}: {output:?}");
            let snapshot = Snapshot::read(&said, RUN).unwrap();
            assert!(snapshot.busy > 0.0, "{shell:?}: {said}");
            assert_eq!((snapshot.cpu_pressure, snapshot.kernel), (None, None), "{shell:?}");
            let processes = snapshot.processes.unwrap();
            assert!(processes.iter().any(|process| process.marked), "{shell:?}: {said}");
            assert!(processes.iter().all(|process| process.id.pid > 1), "{shell:?}: {said}");
        }
    }
}
