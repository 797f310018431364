//! `tsunami doctor`: what would keep runs from being made, or from going well, and what mends it.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tsunami_core::experiment::Experiment;
use tsunami_core::registry::{Backend, Connections, Finding, FindingResult, Registry};
use tsunami_core::results::json as to_json;
use tsunami_core::text::number;
use tsunami_core::{Error as CoreError, ErrorChain, QuoteFailure, RunStore, Tsunami, private};

use super::plan::{line_over, price};
use super::{Context, Execute, check_repeated, load};
use crate::args::{FileArgs, assignment};
use crate::error::{Error, INTERRUPTED, LAUNCH, REMAINS, Removal, USAGE};
use crate::reporter::Verbosity;
use crate::signals;
use crate::terminal::{clean_lines, is_interactive, one_line, print, say, saying};

/// The number of the form of the JSON.
const SCHEMA: u32 = 1;

/// Less room than this is worth a word: logs and results take it.
const LITTLE_ROOM_GIB: u64 = 1;

/// For how many machines files should be there to be opened.
const MACHINES: u64 = 60;

/// How far what goes on below is set in: as far as the results leave it.
const HANGING: &str = "              ";

/// No clock is right that is before this: the beginning of 2026, in seconds.
const PAST: Duration = Duration::from_secs(1_767_225_600);

/// Say what would fail, here or in an experiment, and how to mend it
///
/// Without FILE, it looks at this computer alone, and asks nobody. With FILE, it checks the experiment as `plan` does,
/// and tries what that can't: it logs in to hosts, arms their deadlines and leaves them as they were; it starts a local
/// machine and ends it; it asks EC2 whether what a run does would be allowed. Nothing is created that costs anything or
/// stays.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Doctor {
    /// The experiment file, or a directory of results
    file: Option<PathBuf>,
    /// A value for the templates (may be repeated)
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment, requires = "file")]
    set: Vec<(String, String)>,
    /// Trust, for this once, hosts whose keys are not known
    #[arg(long, requires = "file")]
    accept_new_hosts: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  tsunami doctor            # this computer alone
  tsunami doctor redis.toml # all that a run of the file would meet";

/// All that was found, as `--json` shows it.
#[derive(Serialize)]
struct Answer<'a> {
    schema: u32,
    file: Option<&'a Path>,
    status: u8,
    checks: Vec<&'a Finding>,
}

/// What was found out about one thing after another, and the exit status for that.
#[derive(Default)]
struct Found {
    parts: Vec<(String, Vec<Finding>)>,
    status: u8,
}

impl Execute for Doctor {
    /// They are among what is found.
    fn names_abandoned_runs(&self) -> bool {
        false
    }

    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let Self { file, set, accept_new_hosts, json } = self;
        let args = file.clone().map(|file| FileArgs { file, set, accept_new_hosts });
        let mut found = Found::default();
        let read = args.as_ref().map(|args| load(args, context.registry));
        let (experiment, misread) = match read.transpose() {
            Ok(read) => (read, None),
            Err(error) => (None, Some(error)),
        };
        let state = RunStore::standard();
        let mut here = this_computer(state.as_ref());
        if let Ok(state) = &state {
            here.extend(context.registry.examine_here(experiment.as_ref().map(|(it, _)| &**it), state).await);
        }
        found.add("this computer", here, USAGE);
        let cancel = CancellationToken::new();
        if let (Some(args), Ok(state)) = (&args, &state) {
            let title = args.file.display().to_string();
            match (&experiment, misread) {
                (Some((experiment, is_repeated)), _) => {
                    if let Some(error) =
                        is_repeated.then(|| check_repeated(experiment, &args.file).err()).flatten()
                    {
                        found.add(&title, vec![Finding::failed("inputs", words(&error))], USAGE);
                    }
                    let give_up = || {
                        say(
                            "what was tried on machines ends by itself within two minutes; `tsunami ls` names it",
                        );
                        REMAINS
                    };
                    signals::watch(cancel.clone(), "stopping", say, Arc::new(give_up))?;
                    let examination =
                        Examination { registry: context.registry, state, args, cancel: &cancel };
                    let quiet = context.verbosity == Verbosity::Quiet;
                    examination.of(experiment, &mut found, &title, quiet).await;
                }
                (None, misread) => {
                    let text = misread.as_ref().map(words).unwrap_or_default();
                    found.add(&title, vec![Finding::failed("file", text)], USAGE);
                }
            }
        }
        if cancel.is_cancelled() {
            found.status = INTERRUPTED;
        }
        match json {
            true => {
                let checks = found.parts.iter().flat_map(|(_, findings)| findings).collect();
                let answer = Answer { schema: SCHEMA, file: file.as_deref(), status: found.status, checks };
                print(&(to_json(&answer).map_err(CoreError::from)? + "\n"))?;
            }
            false => print(&found.text())?,
        }
        Ok(found.status)
    }
}

impl Found {
    /// Adds what was found out in one place, each thing once. What failed there ends the command with `status`.
    fn add(&mut self, title: &str, findings: Vec<Finding>, status: u8) {
        if findings.iter().any(Finding::is_failed) {
            self.status = self.status.max(status);
        }
        let place = match self.parts.iter().position(|(known, _)| known == title) {
            Some(place) => place,
            None => {
                self.parts.push((title.to_owned(), Vec::new()));
                self.parts.len() - 1
            }
        };
        let known = &mut self.parts[place].1;
        for finding in findings {
            if !known.contains(&finding) {
                known.push(finding);
            }
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (title, findings) in &self.parts {
            let _ = writeln!(text, "{}", one_line(title));
            for Finding { check, result, found, fix, .. } in findings {
                let found = clean_lines(found.as_bytes());
                let mut lines = found.lines();
                let first = lines.next().unwrap_or_default();
                let first = format!("  {:<11} {}: {first}", result.as_str(), one_line(check));
                line_over(&mut text, &first, HANGING);
                lines.for_each(|more| text.extend([HANGING, more, "\n"]));
                // It stays as it is, to be pasted.
                let fix = fix.iter().map(|fix| clean_lines(fix.as_bytes())).collect::<String>();
                for (nth, more) in fix.lines().enumerate() {
                    text.extend([HANGING, if nth == 0 { "fix: " } else { "     " }, more, "\n"]);
                }
            }
        }
        let all = || self.parts.iter().flat_map(|(_, findings)| findings);
        let count = |result| all().filter(|finding| finding.result == result).count();
        let (failed, warnings) = (count(FindingResult::Failed), count(FindingResult::Warning));
        let failed = if failed == 0 { "nothing failed".to_owned() } else { format!("{failed} failed") };
        let warnings =
            if warnings == 0 { String::new() } else { format!(", {}", number(warnings, "warning")) };
        let _ = writeln!(text, "{}: {failed}{warnings}", number(all().count(), "check"));
        text
    }
}

/// What can be seen of this computer without any program.
fn this_computer(state: Result<&RunStore, &CoreError>) -> Vec<Finding> {
    let mut findings = Vec::new();
    match state {
        Err(error) => findings.push(
            Finding::failed("state directory", ErrorChain(error).to_string())
                .fix("export HOME=…  # or XDG_STATE_HOME"),
        ),
        Ok(state) => {
            findings.push(directory(
                "state directory",
                state.root(),
                "export XDG_STATE_HOME=$HOME/.local/state",
            ));
            findings.extend(runs(state));
        }
    }
    findings.push(results(Path::new("results")));
    findings.push(open_files(getrlimit(Resource::Nofile).current));
    findings.push(clock(SystemTime::now()));
    findings.push(match is_interactive() {
        true => Finding::ok("terminal", "a live line a machine"),
        false => {
            Finding::ok("terminal", "none on standard error, or one that can't be drawn on: plain lines")
        }
    });
    findings
}

/// A directory that is there or would be made, to keep something private in.
fn directory(check: &str, path: &Path, elsewhere: &str) -> Finding {
    let shown = path.display();
    let quoted = shell_word(path);
    let there = nearest(path);
    if let Err(error) = try_to_make(there) {
        let here = shell_word(there);
        return unwritable(check, there, &error).fix(match error.kind() {
            io::ErrorKind::PermissionDenied => format!("chmod u+rwx {here}  # or: {elsewhere}"),
            io::ErrorKind::NotADirectory => format!("mv {here} {here}.old  # or: {elsewhere}"),
            _ => elsewhere.to_owned(),
        });
    }
    if let Err(error) = private::check_directory(path)
        && path.exists()
    {
        let untrusted = private::Untrusted::of(&error).map(|it| it.path.clone());
        let place = untrusted.as_deref().unwrap_or(path);
        let found = ErrorChain(&error).to_string();
        return Finding::failed(check, found)
            .fix(format!("chmod go-w {}  # or: {elsewhere}", shell_word(place)));
    }
    if is_noexec(there) {
        let found = format!(
            "{shown} is mounted noexec: local machines, which are kept there, run nothing that is uploaded"
        );
        return Finding::warning(check, found).fix(elsewhere);
    }
    match free_gib(there) {
        Some(free) if free < LITTLE_ROOM_GIB => {
            Finding::warning(check, format!("{shown} has less than {LITTLE_ROOM_GIB} GiB of room"))
                .fix(format!("df -h {quoted}"))
        }
        Some(free) => Finding::ok(check, format!("{shown}, for you alone; {free} GiB are free")),
        None => Finding::ok(check, format!("{shown}, for you alone")),
    }
}

/// Where results go unless somebody says otherwise.
fn results(path: &Path) -> Finding {
    let (check, place) = ("results", std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    let (there, shown) = (nearest(&place), place.display());
    match (try_to_make(there), free_gib(there)) {
        (Err(error), _) if error.kind() == io::ErrorKind::NotADirectory => {
            let here = shell_word(there);
            unwritable(check, there, &error).fix(format!("mv {here} {here}.old  # or give `-o DIR`"))
        }
        (Err(error), _) => {
            unwritable(check, there, &error).fix("cd  # to where you may write; or give `-o DIR`")
        }
        (Ok(()), Some(free)) if free < LITTLE_ROOM_GIB => {
            Finding::warning(check, format!("{shown} has less than {LITTLE_ROOM_GIB} GiB of room"))
                .fix(format!("df -h {}", shell_word(there)))
        }
        (Ok(()), _) => Finding::ok(check, format!("go to {shown}")),
    }
}

/// What there is of a path: what isn't is made in it.
fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok()).unwrap_or(path)
}

/// Makes a directory in another and removes it: permissions don't tell whether that can be done. Root may write
/// everywhere, but nobody makes anything in `/proc`, or where a file system is mounted read-only.
fn try_to_make(directory: &Path) -> io::Result<()> {
    let tried = directory.join(format!(".tsunami-doctor-{}", std::process::id()));
    match fs::create_dir(&tried) {
        // One that was killed has left it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    fs::remove_dir(&tried)
}

fn unwritable(check: &str, place: &Path, error: &io::Error) -> Finding {
    Finding::failed(check, format!("{} can't be written to: {error}", place.display()))
}

fn free_gib(path: &Path) -> Option<u64> {
    let room = statvfs(path).ok()?;
    Some(room.f_bavail.saturating_mul(room.f_frsize) >> 30)
}

fn is_noexec(path: &Path) -> bool {
    statvfs(path).is_ok_and(|mounted| mounted.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    shlex::try_quote(&text).map(String::from).unwrap_or_else(|_| text.into_owned())
}

/// How many machines the files suffice for that may be open at a time.
fn open_files(allowed: Option<u64>) -> Finding {
    let check = "open files";
    let Some(allowed) = allowed else { return Finding::ok(check, "as many as are needed") };
    let machines = allowed.saturating_sub(crate::FILES_BESIDE) / crate::FILES_PER_MACHINE;
    let found = format!("{allowed} may be open, which is enough for {machines} machines");
    match machines < MACHINES {
        true => Finding::warning(check, found)
            .fix("ulimit -Hn 65536  # as root, or `nofile` in /etc/security/limits.conf"),
        false => Finding::ok(check, found),
    }
}

fn clock(now: SystemTime) -> Finding {
    let (check, said) = ("clock", humantime::format_rfc3339_seconds(now));
    match now < SystemTime::UNIX_EPOCH + PAST {
        true => Finding::failed(check, format!("it is at {said}, which is long over"))
            .fix("sudo timedatectl set-ntp true"),
        false => Finding::ok(check, format!("it says {said}")),
    }
}

/// The runs that are recorded here: what nobody looks after any more is worth a word.
fn runs(state: &RunStore) -> Vec<Finding> {
    let runs = match state.runs() {
        Ok(runs) => runs,
        Err(error) => return vec![Finding::failed("runs", ErrorChain(&error).to_string()).fix("tsunami ls")],
    };
    let mut findings = Vec::new();
    for run in &runs {
        let (check, id) = (format!("run {}", run.id()), run.id());
        if let Err(error) = run.check() {
            findings.push(Finding::warning(check, format!("it is left alone: {}", ErrorChain(&error))));
        } else if run.is_abandoned() {
            let found = "it was abandoned by its controller, and something may be left of it";
            findings.push(Finding::warning(check, found).fix(format!("tsunami down {id}")));
        } else if let Some(error) = run.damage() {
            let found = ErrorChain(&error).to_string();
            findings.push(Finding::warning(check, found).fix(format!("tsunami down {id}")));
        }
    }
    if findings.is_empty() {
        let found = match runs.len() {
            0 => "none is recorded here".to_owned(),
            up => format!("{} recorded here, and none was abandoned", number(up, "run")),
        };
        findings.push(Finding::ok("runs", found));
    }
    findings
}

/// How an experiment is looked at.
struct Examination<'a> {
    registry: &'a Registry,
    state: &'a RunStore,
    args: &'a FileArgs,
    cancel: &'a CancellationToken,
}

impl Examination<'_> {
    async fn of(&self, experiment: &Experiment, found: &mut Found, title: &str, quiet: bool) {
        let machines = experiment.machines().count();
        let about =
            format!("{}: {}, on {}", experiment.name, number(machines, "machine"), experiment.provider);
        let mut file = vec![Finding::ok("file", about)];
        let mut sets: Vec<_> = (1..=experiment.set_count()).map(|set| experiment.on_set(set)).collect();
        // What will do for the largest will do for those like it.
        sets.sort_by_key(|set| std::cmp::Reverse(set.machines().count()));
        let crowded = sets.first().and_then(|largest| crate::too_few_open_files(largest.machines().count()));
        file.extend(
            crowded.map(|crowded| Finding::warning("open files", crowded).fix("ulimit -Hn 65536  # as root")),
        );
        found.add(title, file, USAGE);
        let connections = self.registry.connections(self.state, self.args.accept_new_hosts);
        let (mut most, mut tried) = (Some(0.0), Vec::new());
        for set in &sets {
            let specs = format!("{:?}", set.groups.iter().map(|group| &group.spec).collect::<Vec<_>>());
            let is_new = !tried.contains(&specs);
            tried.push(specs);
            let looked = async {
                let planned = planned(set, &connections).await;
                // Who can't be asked at all has been told of.
                let asks = is_new && !matches!(planned, Err(Error::Provider(_)));
                let examined = match asks {
                    true => {
                        self.registry.examine(set, self.state, self.args.accept_new_hosts, self.cancel).await
                    }
                    false => Vec::new(),
                };
                (planned, examined)
            };
            // What was tried on machines is ended before anything else: a cancelled examination ends by itself.
            let waiting = format!("asking {} about {}", set.provider, number(set.groups.len(), "group"));
            let (planned, examined) = match quiet {
                true => looked.await,
                false => saying(&waiting, looked).await,
            };
            found.add(title, examined, LAUNCH);
            match planned {
                Ok((findings, cost)) => {
                    found.add(title, findings, 0);
                    most = most.zip(cost).map(|(all, one)| all + one);
                }
                Err(error) => {
                    most = None;
                    let status = if error.status() == USAGE { USAGE } else { LAUNCH };
                    found.add(title, refused(&set.provider, &error), status);
                }
            }
            if self.cancel.is_cancelled() {
                found.add(title, vec![Finding::not_checked("the rest", "interrupted")], 0);
                return;
            }
        }
        if let Some(budget) = experiment.budget.filter(|_| found.status == 0 || most.is_some()) {
            found.add(title, vec![within(budget, most)], LAUNCH);
        }
    }
}

/// What the groups of a set are offered as, and the most that they can cost.
async fn planned(set: &Experiment, connections: &Connections) -> Result<(Vec<Finding>, Option<f64>), Error> {
    let Backend { provider, connector, .. } = connections.of(set).await.map_err(Error::Provider)?;
    let plan = set.plan();
    let quotes = Tsunami::new(provider, connector).quote(&plan).await?;
    let offered = set.groups.iter().zip(&quotes).map(|(group, quote)| {
        let offer = quote.offers.first().map(|offer| {
            format!("{} × {}, {}", group.count, one_line(&offer.description), price(offer.price))
        });
        Finding::ok(format!("group {}", group.name), offer.unwrap_or_else(|| "offered".to_owned()))
    });
    Ok((offered.collect(), plan.max_cost(&quotes)))
}

/// Why a set can't be launched: a finding for each group, where it is about groups.
fn refused(provider: &str, error: &Error) -> Vec<Finding> {
    match error {
        Error::Provider(error) => vec![Finding::refused(provider, error)],
        Error::Core(CoreError::Quote { failures }) => {
            let of = |QuoteFailure { group, error, .. }: &QuoteFailure| {
                Finding::refused(format!("group {group}"), error)
            };
            failures.iter().map(of).collect()
        }
        other => vec![Finding::failed("plan", words(other))],
    }
}

/// All that there is to say of an error, without the word that it is one.
fn words(error: &Error) -> String {
    let text = error.text(&Removal::Down);
    let text = text.trim();
    text.strip_prefix("error: ").unwrap_or(text).to_owned()
}

fn within(budget: f64, most: Option<f64>) -> Finding {
    match most {
        None => Finding::failed("budget", "what it may cost is not known, and never fits"),
        Some(most) if most <= budget => Finding::ok("budget", format!("${most:.2} at most, of ${budget:.2}")),
        Some(most) => {
            // A cent more than what was rounded.
            let enough = (most * 100.0).ceil() / 100.0;
            Finding::failed("budget", format!("it may cost ${most:.2}, and the budget is ${budget:.2}"))
                .fix(format!("budget = {enough:.2}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_fails_says_what_mends_it() {
        let root = tempfile::tempdir().unwrap();
        let made = root.path().join("state/tsunami/runs");
        assert_eq!(directory("state", &made, "x").result, FindingResult::Ok);
        fs::create_dir_all(&made).unwrap();
        fs::set_permissions(&made, fs::Permissions::from_mode(0o777)).unwrap();
        let open = directory("state", &made, "export XDG_STATE_HOME=x");
        let expected = format!("chmod go-w {}  # or: export XDG_STATE_HOME=x", made.display());
        assert_eq!((open.result, open.fix), (FindingResult::Failed, Some(expected)));
        assert!(!is_noexec(Path::new("/bin/sh")));
        assert_eq!(results(root.path()).result, FindingResult::Ok);
        let file = root.path().join("results");
        fs::write(&file, "").unwrap();
        let taken = format!("mv {0} {0}.old  # or", file.display());
        for found in [results(&file), results(&file.join("x")), directory("state", &file.join("x/y"), "x")] {
            assert!(found.is_failed() && found.fix.clone().unwrap().starts_with(&taken), "{found:?}");
        }
        // Permissions let root write here.
        let nowhere = directory("state", Path::new("/proc/nope/runs"), "export XDG_STATE_HOME=x");
        assert!(nowhere.is_failed() && nowhere.fix.unwrap().ends_with("export XDG_STATE_HOME=x"));

        assert_eq!(open_files(Some(65_536)).result, FindingResult::Ok);
        let few = open_files(Some(256));
        assert!(few.found.contains("for 24 machines") && few.fix.unwrap().starts_with("ulimit -Hn 65536"));

        assert_eq!(clock(SystemTime::now()).result, FindingResult::Ok);
        let past = clock(SystemTime::UNIX_EPOCH);
        assert_eq!((past.is_failed(), past.fix.as_deref()), (true, Some("sudo timedatectl set-ntp true")));

        assert_eq!(within(2.0, Some(2.0)).result, FindingResult::Ok);
        assert_eq!(within(2.0, Some(2.001)).fix.as_deref(), Some("budget = 2.01"));
        assert!(within(2.0, None).is_failed());
        assert_eq!(runs(&RunStore::at(root.path().join("none"))).len(), 1);
    }

    #[test]
    fn each_thing_is_told_once_with_its_fix_whole_below_it() {
        let mut found = Found::default();
        let long = format!("add this line:\n  box ssh-ed25519 {}", "A".repeat(100));
        let host = Finding::failed("host box", "nobody\x1b[2J knows it\nat all").fix(long.clone());
        found.add("x.toml", vec![host.clone(), Finding::ok("ssh", "OpenSSH")], LAUNCH);
        found.add("x.toml", vec![host, Finding::not_checked("path", "it can't be known")], USAGE);
        let text = found.text();
        assert_eq!(text.matches("host box").count(), 1, "{text}");
        assert!(text.contains("\n  failed      host box: nobody") && !text.contains('\x1b'), "{text}");
        assert!(
            text.contains(&format!(
                "\n              fix: add this line:\n                     box ssh-ed25519 {}\n",
                "A".repeat(100)
            )),
            "{text}"
        );
        assert!(text.contains("\n  not checked path: it can't be known\n"), "{text}");
        assert!(text.ends_with("3 checks: 1 failed\n"), "{text}");
        assert_eq!(found.status, LAUNCH);
    }
}
