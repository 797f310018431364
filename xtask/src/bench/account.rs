//! What the processes of the contenders and of the hosts use. Control groups count it, of version 1 or 2, where they can
//! be made; otherwise what `/proc` says of processes must do.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::silently;

/// Joins control groups before it becomes something else.
const ENTER: &str = include_str!("enter.sh");

/// What stands in the environment of every contender, and of all that it starts: where the plan is.
pub(super) const MARK: &str = "BENCH";

/// How long what was killed may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// What is counted together.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    /// What the contender starts.
    Controller,
    /// sshd, and all that the hosts do.
    Hosts,
}

#[derive(Debug)]
pub(super) struct Account {
    groups: Option<Groups>,
    /// Where version 2 of control groups is mounted, and below it a group that this account has made: for the hosts to
    /// have groups of their own.
    unified: Option<(PathBuf, PathBuf)>,
    /// The value of [`MARK`].
    mark: &'static str,
}

/// Control groups that count.
#[derive(Debug)]
struct Groups {
    version: u8,
    directory: PathBuf,
}

impl Groups {
    fn of(&self, side: Side) -> PathBuf {
        self.directory.join(match side {
            Side::Controller => "controller",
            Side::Hosts => "hosts",
        })
    }
}

impl Account {
    pub(super) fn new(mark: &'static str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let version_1 = mount(&mounts, "cgroup", Some("cpuacct"));
        let version_2 = mount(&mounts, "cgroup2", None);
        let groups = [(1, version_1), (2, version_2.clone())].into_iter().find_map(|(version, mounted)| {
            let groups = Groups { version, directory: mounted?.join("tsunami-bench") };
            let sides = [groups.of(Side::Controller), groups.of(Side::Hosts)];
            sides.iter().all(|side| fs::create_dir_all(side).is_ok()).then_some(groups)
        });
        let unified = version_2.and_then(|mounted| {
            let hosts = mounted.join("tsunami-bench/hosts");
            fs::create_dir_all(&hosts).ok().map(|()| (mounted, hosts))
        });
        Self { groups, unified, mark }
    }

    /// How it counts.
    pub(super) fn means(&self) -> &'static str {
        match self.groups.as_ref().map(|groups| groups.version) {
            Some(1) => "control groups (version 1, cpuacct)",
            Some(_) => "control groups (version 2)",
            None => "/proc: without processes that a contender has detached and not waited for",
        }
    }

    /// Whether processes count that live, and that nobody has waited for.
    pub(super) fn counts_all(&self) -> bool {
        self.groups.is_some()
    }

    /// Where version 2 of control groups is mounted, if the hosts can have their own.
    pub(super) fn unified(&self) -> Option<&Path> {
        self.unified.as_ref().map(|(mounted, _)| mounted.as_path())
    }

    /// A shell that enters what counts, and then becomes the program that is its next argument.
    pub(super) fn enter(&self, side: Side, host: Option<&str>) -> io::Result<Command> {
        let mut shell = Command::new("sh");
        shell.args(["-c", ENTER, "enter"]);
        shell.args(self.groups.as_ref().filter(|it| it.version == 1 || host.is_none()).map(|it| it.of(side)));
        if let (Some(host), Some((_, hosts))) = (host, &self.unified) {
            let own = hosts.join(host);
            fs::create_dir_all(&own)?;
            shell.arg(own);
        }
        shell.arg("--");
        Ok(shell)
    }

    /// The processor time that a side has used so far. `listeners` are the processes that have started all others of the
    /// hosts, and have waited for them.
    pub(super) fn used(&self, side: Side, listeners: &[u32]) -> Duration {
        let Some(groups) = &self.groups else {
            return match side {
                Side::Controller => times("self").1,
                Side::Hosts => {
                    listeners.iter().map(|pid| times(&pid.to_string())).map(|it| it.0 + it.1).sum()
                }
            };
        };
        let read = |file| fs::read_to_string(groups.of(side).join(file)).unwrap_or_default();
        match groups.version {
            1 => Duration::from_nanos(read("cpuacct.usage").trim().parse().unwrap_or_default()),
            _ => Duration::from_micros(usage(&read("cpu.stat"))),
        }
    }

    /// The controller's processes that there are.
    pub(super) fn processes(&self) -> Vec<u32> {
        match &self.groups {
            Some(groups) => fs::read_to_string(groups.of(Side::Controller).join("cgroup.procs"))
                .unwrap_or_default()
                .lines()
                .filter_map(|pid| pid.parse().ok())
                .collect(),
            None => {
                let mark = format!("{MARK}={}", self.mark);
                // A master of ssh's writes its title over its environment, but stays where it is.
                let marked = |pid: &u32| {
                    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                    let works_in = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
                    works_in.starts_with(Path::new(self.mark).join("work"))
                        || environment.split(|byte| *byte == 0).any(|it| it == mark.as_bytes())
                };
                all_processes(Path::new("/proc")).into_iter().filter(marked).collect()
            }
        }
    }

    /// Ends what is left of a contender. How many processes that were.
    pub(super) fn kill(&self) -> usize {
        let left = self.processes();
        let begun = Instant::now();
        let mut living = left.clone();
        while !living.is_empty() && begun.elapsed() < KILL_TIMEOUT {
            let mut kill = Command::new("sh");
            kill.args(["-c", "kill -s KILL -- \"$@\"", "kill"]).args(living.iter().map(u32::to_string));
            silently(&mut kill);
            std::thread::sleep(Duration::from_millis(20));
            living = self.processes();
        }
        left.len()
    }

    /// The controller's memory now, in bytes: what several processes share is divided among them.
    pub(super) fn memory(&self) -> u64 {
        self.processes()
            .into_iter()
            .filter_map(|pid| {
                let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
                let shares = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
                shares.trim().trim_end_matches(" kB").parse::<u64>().ok()
            })
            .sum::<u64>()
            * 1024
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.kill();
        let unified = self.unified.as_ref().and_then(|(_, hosts)| hosts.parent());
        for directory in self.groups.iter().map(|it| it.directory.as_path()).chain(unified) {
            remove(directory);
        }
    }
}

/// Removes a control group with those below it, unless processes are in it.
fn remove(directory: &Path) {
    for below in fs::read_dir(directory).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&below.path());
        }
    }
    let _ = fs::remove_dir(directory);
}

/// Where a filesystem of this type is mounted with this option.
fn mount(mounts: &str, kind: &str, option: Option<&str>) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (place, found, options) = (words.next()?, words.next()?, words.next()?);
        let has = option.is_none_or(|option| options.split(',').any(|it| it == option));
        (found == kind && has).then(|| place.into())
    })
}

/// What `cpu.stat` says that a group has used, in microseconds.
fn usage(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
    line.and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// The processor time of a process, and of its children that it has waited for.
fn times(pid: &str) -> (Duration, Duration) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything, and is in parentheses.
    let fields: Vec<u64> = stat
        .rsplit_once(") ")
        .map_or("", |(_, rest)| rest)
        .split(' ')
        .map(|field| field.parse().unwrap_or_default())
        .collect();
    let ticks = |first: usize| fields.get(first..first + 2).map_or(0, |both| both.iter().sum());
    // Linux counts in hundredths of a second here, whatever its own clock does.
    let time = |first| Duration::from_millis(10 * ticks(first));
    (time(11), time(13))
}

/// The numbers of all processes that a `/proc` shows.
pub(super) fn all_processes(proc: &Path) -> Vec<u32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The processor time that all of this computer has used so far.
pub(super) fn busy() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = all.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, then idle and waiting for disks, then interrupts of two kinds, and what other guests took.
    let used = ticks.iter().enumerate().take(8).filter(|(index, _)| !matches!(index, 3 | 4));
    Duration::from_millis(10 * used.map(|(_, ticks)| ticks).sum::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_are_found_where_they_count() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = |kind, option| mount(mounts, kind, option);
        assert_eq!(found("cgroup", Some("cpuacct")), Some("/sys/fs/cgroup/cpu,cpuacct".into()));
        assert_eq!(found("cgroup2", None), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(found("cgroup", Some("memory")), None);
        assert_eq!(usage("usage_usec 1234\nuser_usec 1000\n"), 1234);
    }
}
