//! What keeps runs from being made over SSH: this computer's programs and places, and machines that are tried.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, stream};
use tokio::process::Command;
use tsunami_core::registry::{Backend, Finding};
use tsunami_core::{
    CancellationToken, Error, ErrorChain, Group, MachineSpec, Plan, ProviderError, Remedy, RunStore,
    SessionError, Tsunami,
};

use crate::config::SshOptions;
use crate::connector::{ask_defaults, odd_in_a_path, preferred_kex, socket_directories};
use crate::hosts::{HostAddress, HostsSpec};
use crate::local::system::{find_program, find_sshd, login_name};
use crate::transport::TransportKind;

/// How long a machine that is tried may live: should nobody be there to end the trial, it ends itself.
const TRIAL_LIFETIME: Duration = Duration::from_secs(120);

/// How long a machine that is there already may take to let in.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(15);

/// How many hosts are tried at a time.
const TRIED_AT_ONCE: usize = 16;

/// Less room than this, in KiB, is worth a word.
const LITTLE_ROOM_KIB: u64 = 1 << 20;

/// Clocks that differ by no more than this are taken for the same: an answer is on its way for a while.
const SAME_CLOCK: Duration = Duration::from_secs(5);

/// What the one machine of a trial is called.
const TRIED: &str = "tried-0";

/// As long as the id of any run.
const LONG_RUN_ID: &str = "20260101-000000-aaaaaaaaaaaaa";

/// Asks a machine for the room where its commands work, and for its clock.
const ASK: &str = "LC_ALL=C df -Pk . | tail -n 1; date +%s";

/// What there is of ssh here, and of places for its sockets.
pub(crate) async fn ssh(options: &SshOptions, state: &RunStore) -> Vec<Finding> {
    let mut findings = Vec::new();
    match options.transport {
        TransportKind::OpenSsh => findings.push(program().await),
        TransportKind::InProcess => findings.push(Finding::ok("ssh", "connections are made in this process")),
    }
    findings.push(sockets(&state.root().join(LONG_RUN_ID).join("ssh")));
    findings
}

async fn program() -> Finding {
    let output = match Command::new("ssh").arg("-V").output().await {
        Ok(output) => output,
        Err(error) => {
            return Finding::failed("ssh", format!("`ssh` can't be run: {error}"))
                .fix("sudo apt-get install openssh-client");
        }
    };
    let version = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if !version.starts_with("OpenSSH_") {
        let found = format!("`ssh -V` says `{}`, and tsunami is made for OpenSSH", version.escape_debug());
        return Finding::warning("ssh", found).fix("sudo apt-get install openssh-client");
    }
    let version = version.split(',').next().unwrap_or_default();
    match ask_defaults().await {
        Err(error) => {
            let finding = Finding::failed("ssh", format!("{version}: {}", ErrorChain(&error)));
            error.help.iter().fold(finding, |finding, help| finding.fix(help))
        }
        Ok(defaults) => {
            let kex = preferred_kex(&defaults);
            let kex = kex.as_deref().map(|kex| kex.split(',').next().unwrap_or(kex));
            Finding::ok(
                "ssh",
                format!("{version}; keys are exchanged by {}", kex.unwrap_or("its own default")),
            )
        }
    }
}

/// Whether control sockets have a place: a run's own directory, or another if its path is too long.
fn sockets(directory: &Path) -> Finding {
    let check = "control sockets";
    if let Some(odd) = odd_in_a_path(directory) {
        let found = format!(
            "ssh can't be given the path {}: it contains `{}`",
            directory.display(),
            odd.escape_debug()
        );
        return Finding::failed(check, found).fix("export XDG_STATE_HOME=$HOME/.state  # a plainer path");
    }
    match socket_directories(directory).first().and_then(|template| template.parent()) {
        None => Finding::failed(check, "no directory has a path that is short enough, and nobody else's")
            .fix("export XDG_RUNTIME_DIR=/run/user/$(id -u)  # or a TMPDIR with a short path"),
        Some(place) if place == directory => {
            Finding::ok(check, format!("in the run's own directory ({} bytes)", directory.as_os_str().len()))
        }
        Some(place) => Finding::ok(
            check,
            format!("in {}, as the path of the state directory is too long for them", place.display()),
        ),
    }
}

/// What `local` needs on this computer. Nobody else needs it, so that what is missing is no failure by itself.
pub(crate) async fn local_tools() -> Vec<Finding> {
    let for_local = |error: ProviderError| {
        let found = format!("{}, which the provider \"local\" needs", ErrorChain(&error));
        let finding = Finding::warning("sshd", found);
        match error.help.as_deref().map(command_in) {
            Some(command) if command.starts_with("apt-get ") => finding.fix(format!("sudo {command}")),
            Some(advice) => finding.fix(advice),
            None => finding,
        }
    };
    let sshd = match (find_sshd(), find_program("setsid", "util-linux"), login_name().await) {
        (Ok(sshd), Ok(_), Ok(user)) => {
            Finding::ok("sshd", format!("{}; local machines let in {user}", sshd.display()))
        }
        (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => for_local(error),
    };
    let is_root = rustix::process::geteuid().is_root();
    let separation = is_root.then(|| privilege_separation(Path::new("/run/sshd")));
    std::iter::once(sshd).chain(separation).collect()
}

/// The directory that a root's sshd insists on, and that `local` makes where it is missing.
fn privilege_separation(path: &Path) -> Finding {
    let check = "/run/sshd";
    let shown = path.display();
    match fs::metadata(path) {
        Err(_) => Finding::ok(check, "not there, and made with the first local machine"),
        Ok(found) if found.is_dir() && found.uid() == 0 && found.permissions().mode() & 0o022 == 0 => {
            Finding::ok(check, "root's, and nobody else may write there")
        }
        Ok(_) => Finding::warning(
            check,
            "sshd refuses to start as root: others than root may write to the directory",
        )
        .fix(format!("sudo chown root:root {shown} && sudo chmod 755 {shown}")),
    }
}

/// The command of an advice, if it has one.
fn command_in(advice: &str) -> &str {
    advice.split('`').nth(1).unwrap_or(advice)
}

/// Starts a local machine, looks at it, and ends it.
pub(crate) async fn try_local(
    backend: Result<Backend, ProviderError>,
    state: &RunStore,
    cancel: &CancellationToken,
) -> Vec<Finding> {
    let check = "local machine";
    // Whoever plans hears it.
    if find_sshd().is_err() {
        return Vec::new();
    }
    let tsunami = match backend {
        Ok(backend) => engine(backend, state, cancel),
        Err(error) => return vec![Finding::refused(check, &error)],
    };
    let tried = tsunami.run(trial(MachineSpec::default()), look).await;
    vec![match tried {
        Ok(seen) => {
            Finding::ok(check, format!("an sshd started, let in, and was ended; {}", room(seen.free)))
        }
        Err(error) => told(check, &error),
    }]
}

/// Logs in to hosts, arms their deadlines, looks at them, and leaves them as they were.
pub(crate) async fn try_hosts(
    backend: Backend,
    hosts: Vec<HostAddress>,
    state: &RunStore,
    cancel: &CancellationToken,
) -> Vec<Finding> {
    let tsunami = engine(backend, state, cancel);
    let tried = stream::iter(hosts).map(async |host| {
        let seen = tsunami.run(trial(MachineSpec::new(HostsSpec::new([host.clone()]))), look).await;
        of_host(&host, &seen)
    });
    // A run of its own for each, so that one that can't be reached hides nothing of the others.
    tried.buffered(TRIED_AT_ONCE).collect::<Vec<_>>().await.concat()
}

fn engine(backend: Backend, state: &RunStore, cancel: &CancellationToken) -> Tsunami {
    let Backend { provider, connector, .. } = backend;
    Tsunami::new(provider, connector).state(state.clone()).cancel_on(cancel.clone())
}

fn trial(spec: MachineSpec) -> Plan {
    Plan::new("doctor")
        .group(Group::new("tried", spec))
        .lifetime(TRIAL_LIFETIME)
        .connect_timeout(TRIAL_TIMEOUT)
}

/// What a machine says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    /// The room where its commands work, in KiB.
    free: Option<u64>,
    /// How far its clock is ahead of ours, in seconds.
    ahead: Option<i64>,
}

async fn look(cluster: tsunami_core::Cluster) -> Result<Seen, Error> {
    let begun = SystemTime::now();
    let said = cluster.hosts()[0].run(ASK).await?;
    let middle = begun + begun.elapsed().unwrap_or_default() / 2;
    Ok(Seen::of(&said.stdout(), middle))
}

impl Seen {
    fn of(said: &str, now: SystemTime) -> Self {
        let (disk, clock) = said.trim().rsplit_once('\n').unwrap_or_default();
        let words: Vec<&str> = disk.split_whitespace().collect();
        // The name of a file system may have spaces, and so may the place where it is; the share that is used has a sign.
        let share = words.iter().rposition(|word| word.ends_with('%')).filter(|at| *at > 0);
        let free = share.and_then(|at| words[at - 1].parse().ok());
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let clock = clock.trim().parse::<i64>().ok();
        Self { free, ahead: clock.map(|clock| clock.saturating_sub(now.cast_signed())) }
    }
}

fn of_host(host: &HostAddress, tried: &Result<Seen, Error>) -> Vec<Finding> {
    let check = format!("host {host}");
    let seen = match tried {
        Ok(seen) => seen,
        Err(Error::Connect { source, .. }) => return vec![unreached(check, host, source)],
        Err(error) => return vec![told(check, error)],
    };
    let all = "answers with a known key, lets in, has a shell, and its deadline could be armed";
    let mut findings = vec![Finding::ok(check, format!("{all}; {}", room(seen.free)))];
    if seen.free.is_some_and(|free| free < LITTLE_ROOM_KIB) {
        let found = format!("{} where runs work, in its home", room(seen.free));
        findings.push(
            Finding::warning(format!("disk of {host}"), found)
                .fix(format!("ssh {} df -h .", words_for_ssh(host))),
        );
    }
    if let Some(ahead) = seen.ahead.filter(|ahead| ahead.unsigned_abs() > SAME_CLOCK.as_secs()) {
        let by = Duration::from_secs(ahead.unsigned_abs());
        let way = if ahead > 0 { "ahead of" } else { "behind" };
        let found = format!("{by:?} {way} this computer's: times of the two in logs can't be compared");
        findings.push(
            Finding::warning(format!("clock of {host}"), found)
                .fix(format!("ssh {} sudo timedatectl set-ntp true", words_for_ssh(host))),
        );
    }
    findings
}

/// What is free, for people.
fn room(kib: Option<u64>) -> String {
    match kib {
        None => "what room it has is not known".to_owned(),
        Some(kib) if kib >= LITTLE_ROOM_KIB => format!("{} GiB are free", kib >> 20),
        Some(kib) => format!("{} MiB are free", kib >> 10),
    }
}

/// A host as ssh's command line takes it.
fn words_for_ssh(HostAddress { user, host, port }: &HostAddress) -> String {
    let port = port.map(|port| format!("-p {port} ")).unwrap_or_default();
    let user = user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
    let words = format!("{user}{host}");
    format!("{port}{}", shlex::try_quote(&words).unwrap_or_default())
}

/// Why nobody could log in to a host: it is called as the user calls it.
fn unreached(check: String, host: &HostAddress, error: &SessionError) -> Finding {
    let finding = Finding::failed(check, ErrorChain(error).to_string());
    let trust = (error.remedy == Some(Remedy::TrustNewHosts)).then_some("\nor pass --accept-new-hosts");
    match &error.help {
        Some(help) => finding.fix(help.replace(TRIED, &host.to_string()) + trust.unwrap_or_default()),
        None => finding.fix(format!("ssh -v {}", words_for_ssh(host))),
    }
}

/// What kept a machine from being used, and what mends it.
fn told(check: impl Into<String>, error: &Error) -> Finding {
    if matches!(error, Error::Cancelled) {
        return Finding::not_checked(check, "interrupted");
    }
    let finding = Finding::failed(check, ErrorChain(error).to_string());
    if let Error::Remains { run, .. } = error {
        return finding.fix(format!("tsunami down {run}"));
    }
    match error.help() {
        Some(help) => finding.fix(help),
        None => finding,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tsunami_core::SessionErrorKind;
    use tsunami_core::registry::FindingResult;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_a_machine_says_of_itself_is_read_whatever_its_disks_are_called() {
        let plain = "/dev/vda1 20000000 15000000 4000000 79% /\n1000\n";
        assert_eq!(Seen::of(plain, at(1000)), Seen { free: Some(4_000_000), ahead: Some(0) });
        let odd = "//server/a share 20 15 5 75% /mnt/a place\n  990\n";
        assert_eq!(Seen::of(odd, at(1000)), Seen { free: Some(5), ahead: Some(-10) });
        for nothing in ["", "x", "% %\nx\n"] {
            assert_eq!(Seen::of(nothing, at(1000)), Seen { free: None, ahead: None }, "{nothing}");
        }
    }

    #[test]
    fn a_host_that_will_do_has_one_line_and_what_is_to_be_known_has_one_each_with_its_fix() {
        let host: HostAddress = "me@[::1]:2222".parse().unwrap();
        let of = |free, ahead| of_host(&host, &Ok(Seen { free: Some(free), ahead: Some(ahead) }));
        let good = of(LITTLE_ROOM_KIB * 12, -3);
        assert_eq!((good.len(), good[0].result), (1, FindingResult::Ok));
        assert!(good[0].found.ends_with("12 GiB are free"), "{good:?}");
        let bad = of(2048, 3600);
        let fixes: Vec<_> = bad.iter().map(|it| (it.result, it.fix.as_deref())).collect();
        assert_eq!(
            fixes,
            [
                (FindingResult::Ok, None),
                (FindingResult::Warning, Some("ssh -p 2222 me@::1 df -h .")),
                (FindingResult::Warning, Some("ssh -p 2222 me@::1 sudo timedatectl set-ntp true")),
            ]
        );
        assert!(bad[1].found.starts_with("2 MiB") && bad[2].found.starts_with("3600s ahead of"), "{bad:?}");
    }

    #[test]
    fn a_host_that_lets_nobody_in_is_called_as_the_user_calls_it() {
        let host: HostAddress = "me@box".parse().unwrap();
        let error = |message: &str| SessionError::new(SessionErrorKind::Connect, message);
        let refused = unreached("host".to_owned(), &host, &error("box port 22: Connection refused"));
        assert_eq!(refused.fix.as_deref(), Some("ssh -v me@box"));
        let unknown =
            error("not known").remedy(Remedy::TrustNewHosts).help("tried-0 showed the key X. Add:\n  X");
        let fix = unreached("host".to_owned(), &host, &unknown).fix.unwrap();
        assert_eq!(fix, "me@box showed the key X. Add:\n  X\nor pass --accept-new-hosts");
    }

    #[test]
    fn places_that_will_not_do_say_what_does() {
        assert_eq!(sockets(Path::new("/home/me/ssh")).result, FindingResult::Ok);
        let long = sockets(&Path::new("/home").join("x".repeat(100)));
        assert!(long.found.contains("too long") || long.fix.is_some(), "{long:?}");
        let odd = sockets(Path::new("/home/a*b"));
        assert!(odd.is_failed() && odd.fix.unwrap().starts_with("export XDG_STATE_HOME="));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sshd");
        assert_eq!(privilege_separation(&path).result, FindingResult::Ok);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let open = privilege_separation(&path);
        assert_eq!(open.result, FindingResult::Warning);
        let expected = format!("sudo chown root:root {0} && sudo chmod 755 {0}", path.display());
        assert_eq!(open.fix, Some(expected));
        assert_eq!(command_in("install it: `apt-get install x`"), "apt-get install x");
    }
}
