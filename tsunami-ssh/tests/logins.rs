//! Logins that aren't a POSIX shell: whatever reads our words is known before it gets any.

mod common;
#[path = "common/sshd.rs"]
mod sshd;

use std::fs;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use common::{Machines, unique_run};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tsunami_core::{
    Command, Connector, Deadline, Download, Exit, LaunchRequest, Machine, MachineSpec, OutputSink, Provider,
    RunFilter, RunId, SequenceObserver, Session, SessionError, SessionErrorKind, Stdin, Stream,
};
use tsunami_ssh::{HostAddress, HostsProvider, HostsSpec, SshConnector, SshOptions, TransportKind};

over_each_transport!(
    a_csh_is_used_as_any_host,
    a_fish_is_used_as_any_host,
    a_dash_is_used_as_any_host,
    a_busybox_is_used_as_any_host,
    a_host_with_nothing_but_busybox_is_used_as_any_host,
    a_host_that_greets_is_used_as_any_host,
    a_login_that_runs_nothing_is_named_by_its_own_words,
    what_reads_standard_input_in_place_of_our_shell_is_given_nothing,
    a_host_that_never_stops_greeting_is_refused,
    a_host_that_floods_keeps_neither_a_connection_nor_a_teardown,
    commands_can_be_ended_where_a_connection_takes_one,
    a_command_can_be_ended_where_a_host_takes_a_single_channel_in_all,
    commands_can_be_ended_where_a_connection_takes_two,
    a_daemon_that_leaves_all_behind_ends_with_the_run,
    a_child_that_prints_for_ever_keeps_no_command,
    a_host_that_lets_in_and_then_says_nothing_is_given_up_in_time,
    nothing_runs_on_a_host_before_its_watchdog_watches,
    a_script_of_a_providers_is_none_of_the_runs_commands,
    a_host_that_has_lost_its_watchdog_gets_another_from_whoever_connects,
    a_host_under_two_names_is_one_machine_only,
    a_host_costs_a_run_two_sessions,
);

/// A host whose login is a script of the test's own, with what `ssh` asks for in `$SSH_ORIGINAL_COMMAND`, and a run
/// that takes it.
struct Taken {
    existing: Machines,
    provider: HostsProvider,
    connector: Arc<SshConnector>,
    run: RunId,
    root: tempfile::TempDir,
}

impl Taken {
    async fn with_login(transport: TransportKind, login: &str) -> Self {
        let existing = Machines::launch(1, transport).await;
        let machine = &existing.machines[0];
        let directory = existing.directory().join("local/node-0");
        let enter = fs::read_to_string(directory.join("enter")).unwrap();
        let home = enter.lines().take(4).collect::<Vec<_>>().join("\n");
        // A host of the user's, not of the other run's.
        fs::write(directory.join("enter"), format!("{home}\nunset TSUNAMI_RUN_ID\n{login}\n")).unwrap();
        let (address, port) = (machine.addresses.internal().unwrap(), machine.login.port.unwrap());
        let known_hosts = existing.root.path().join("known");
        let key = machine.login.host_key.as_deref().unwrap();
        fs::write(&known_hosts, format!("[{address}]:{port} {key}\n")).unwrap();
        let options = SshOptions::default().key(existing.directory().join("ssh/id_ed25519"));
        let connector = Arc::new(SshConnector::new(options.known_hosts(known_hosts).transport(transport)));
        let root = tempfile::tempdir().unwrap();
        let provider = HostsProvider::new(root.path(), connector.clone());
        let (run, lifetime) = (unique_run(), Duration::from_secs(300));
        let host =
            HostAddress { user: machine.login.user.clone(), host: address.to_owned(), port: Some(port) };
        let request = LaunchRequest::new(
            run.clone(),
            "node",
            NonZeroU32::MIN,
            MachineSpec::new(HostsSpec::new([host])),
            Deadline { at: SystemTime::now() + lifetime, lifetime },
        )
        .experiment("test")
        .authorized_key(connector.prepare(&run, &root.path().join(run.as_str())).await.unwrap());
        provider.launch(&request).await.unwrap();
        Self { existing, provider, connector, run, root }
    }

    fn home(&self) -> PathBuf {
        self.existing.directory().join("local/node-0/home")
    }

    async fn connect(&self) -> Result<Arc<dyn Session>, SessionError> {
        self.connect_within(Duration::from_secs(30)).await
    }

    async fn connect_within(&self, within: Duration) -> Result<Arc<dyn Session>, SessionError> {
        self.connect_to(&self.machine().await, within).await
    }

    async fn machine(&self) -> Machine {
        self.provider.list(&RunFilter::Run(self.run.clone())).await.unwrap().remove(0)
    }

    /// As the engine does: connects, and has the provider admit the machine.
    async fn connect_to(
        &self,
        machine: &Machine,
        within: Duration,
    ) -> Result<Arc<dyn Session>, SessionError> {
        let session = self.connector.connect(machine, Instant::now() + within).await?;
        let session: Arc<dyn Session> = session.into();
        let admitted = self.provider.verify(machine, &session).await;
        admitted.map_err(|error| *error.source.unwrap().downcast::<SessionError>().unwrap())?;
        Ok(session)
    }

    /// Leaves the host, which must be as it was found. It ends with what is returned.
    async fn leave(self) -> Machines {
        assert_eq!(self.provider.terminate(&self.run).await.unwrap(), []);
        self.connector.finish(&self.run).await;
        // fish makes its own.
        let own = |path: &PathBuf| {
            [".tsunami", ".config", ".local", ".cache"].iter().any(|own| path.ends_with(own))
        };
        let entries = fs::read_dir(self.home()).unwrap().map(|entry| entry.unwrap().path());
        assert_eq!(entries.filter(|path| !own(path)).collect::<Vec<_>>(), Vec::<PathBuf>::new());
        assert_eq!(fs::read_dir(self.home().join(".tsunami")).into_iter().flatten().count(), 0);
        self.existing
    }
}

#[derive(Debug, Default)]
struct Heard(Mutex<(Vec<u8>, Vec<u8>)>);

impl OutputSink for Heard {
    fn write(&self, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        let mut heard = self.0.lock().unwrap();
        let kept = if stream == Stream::Stdout { &mut heard.0 } else { &mut heard.1 };
        kept.extend_from_slice(bytes);
        Ok(())
    }
}

async fn exec(session: &dyn Session, command: Command) -> (Exit, String, String) {
    let heard = Arc::new(Heard::default());
    let exit = session.exec(&command, heard.clone(), &CancellationToken::new()).await.unwrap();
    let (stdout, stderr) = &*heard.0.lock().unwrap();
    (exit, String::from_utf8_lossy(stdout).into_owned(), String::from_utf8_lossy(stderr).into_owned())
}

/// What a run does with a host, through whatever its login is.
async fn is_used_as_any_host(taken: Taken) {
    let session = taken.connect().await.unwrap_or_else(|error| panic!("{error}"));
    let odd = "it's\n\"odd\" $HOME !! `x` \\";
    let print = Command::program("printf").arg("%s|%s").arg(odd).arg("");
    assert_eq!(exec(&*session, print).await, (Exit::Status(0), format!("{odd}|"), String::new()));
    let all =
        Command::shell("cat; printf '|%s|%s' \"$ODD\" \"${PWD##*/}\"; echo said >&2; exit 3").env("ODD", odd);
    let all = all.stdin(Stdin::Bytes(b"in\nput".as_slice().into()));
    let said = format!("in\nput|{odd}|{}", taken.run);
    assert_eq!(exec(&*session, all).await, (Exit::Status(3), said, "said\n".to_owned()));
    let (exit, ..) = exec(&*session, Command::shell("kill -9 $$")).await;
    assert_eq!(exit, Exit::Signal(9));
    let file = taken.root.path().join("file");
    fs::write(&file, odd).unwrap();
    session.upload(&file, "d/copy").await.unwrap();
    let into = taken.root.path().join("into");
    let download = Download::new(["d/*"], into.clone());
    assert_eq!(session.download(&download).await.unwrap(), [1]);
    assert_eq!(fs::read_to_string(into.join("d/copy")).unwrap(), odd);
    let cancel = CancellationToken::new();
    let stubborn = Command::shell("trap '' TERM; echo up; sleep 1000 & wait");
    let running = session.exec(&stubborn, Arc::new(()), &cancel);
    let (ended, ()) = tokio::join!(running, async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cancel.cancel();
    });
    assert_eq!(ended.unwrap_err().kind, SessionErrorKind::Cancelled);
    session.close().await.unwrap();
    taken.leave().await;
}

fn is_here(program: &str) -> bool {
    std::process::Command::new(program).arg("--version").stdin(Stdio::null()).output().is_ok()
}

async fn a_login_shell_is_used_as_any_host(transport: TransportKind, login: &str) {
    let program = login.split(' ').nth(1).unwrap();
    assert!(is_here(program), "`{program}` is not installed: run `cargo xtask setup --tests`");
    is_used_as_any_host(Taken::with_login(transport, login).await).await;
}

async fn a_csh_is_used_as_any_host(transport: TransportKind) {
    a_login_shell_is_used_as_any_host(transport, r#"exec tcsh -c "$SSH_ORIGINAL_COMMAND""#).await;
}

async fn a_fish_is_used_as_any_host(transport: TransportKind) {
    a_login_shell_is_used_as_any_host(transport, r#"exec fish -c "$SSH_ORIGINAL_COMMAND""#).await;
}

async fn a_dash_is_used_as_any_host(transport: TransportKind) {
    a_login_shell_is_used_as_any_host(transport, r#"exec dash -c "$SSH_ORIGINAL_COMMAND""#).await;
}

async fn a_busybox_is_used_as_any_host(transport: TransportKind) {
    a_login_shell_is_used_as_any_host(transport, r#"exec busybox sh -c "$SSH_ORIGINAL_COMMAND""#).await;
}

async fn a_host_with_nothing_but_busybox_is_used_as_any_host(transport: TransportKind) {
    let alone = "mkdir -p ../../../../bin && cd ../../../../bin && busybox --install -s . && PATH=$PWD && cd && \
                 exec sh -c \"$SSH_ORIGINAL_COMMAND\"";
    is_used_as_any_host(Taken::with_login(transport, alone).await).await;
}

async fn a_host_that_greets_is_used_as_any_host(transport: TransportKind) {
    // As an rc file may, it also sets what the command sets, and goes elsewhere.
    let noisy = "echo Welcome to a host that greets; echo 'cannot change locale' >&2\n\
                 export ODD=greeting; mkdir -p ../../../../else; cd ../../../../else\n\
                 exec bash -c \"$SSH_ORIGINAL_COMMAND\"";
    is_used_as_any_host(Taken::with_login(transport, noisy).await).await;
}

/// What comes of connecting to a host that gives no shell: the error. The host has heard nothing.
async fn refused(transport: TransportKind, login: &str) -> SessionError {
    let taken = Taken::with_login(transport, login).await;
    let error = taken.connect().await.expect_err("it runs no commands");
    let heard = fs::read(taken.existing.root.path().join("heard")).unwrap_or_default();
    assert_eq!(String::from_utf8_lossy(&heard), "", "{login}");
    taken.leave().await;
    error
}

async fn a_login_that_runs_nothing_is_named_by_its_own_words(transport: TransportKind) {
    let error = refused(transport, "echo This account is currently not available.; exit 1").await;
    assert!(error.message.contains("This account is currently not available."), "{}", error.message);
    let error = refused(transport, "exec false").await;
    assert!(error.message.contains("it said nothing"), "{}", error.message);
    let error = refused(transport, "exec bash --restricted -c \"$SSH_ORIGINAL_COMMAND\"").await;
    assert!(error.message.contains("restricted"), "{}", error.message);
}

/// As an rc file with `exec fish` does: something else reads what is meant for `sh`.
async fn what_reads_standard_input_in_place_of_our_shell_is_given_nothing(transport: TransportKind) {
    let error = refused(transport, "exec cat >../../../../heard").await;
    assert!(error.message.contains("exec sh") && error.help.is_some(), "{error:?}");
}

async fn a_host_that_never_stops_greeting_is_refused(transport: TransportKind) {
    let error = refused(transport, "exec yes Welcome").await;
    let told = tsunami_core::ErrorChain(&error).to_string();
    assert!(told.contains("KiB"), "{told}");
}

/// Says that `sh` is there, and then whatever comes to its mind, for as long as there is a file `flood`.
const FLOODING: &str = r#"
if [ -e ../../../../flood ]; then
    printf '\036tsunami\n'
    printf '\036tsunami\n' >&2
    exec yes
fi
exec sh -c "$SSH_ORIGINAL_COMMAND""#;

async fn a_host_that_floods_keeps_neither_a_connection_nor_a_teardown(transport: TransportKind) {
    let taken = Taken::with_login(transport, FLOODING).await;
    let flood = taken.existing.root.path().join("flood");
    fs::write(&flood, "").unwrap();
    let error = taken.connect().await.expect_err("it says too much");
    assert!(tsunami_core::ErrorChain(&error).to_string().contains("more than 256 KiB"), "{error:?}");
    fs::remove_file(&flood).unwrap();
    taken.connect().await.unwrap().close().await.unwrap();
    // What leaves it comes anew.
    taken.connector.finish(&taken.run).await;
    fs::write(&flood, "").unwrap();
    let left = taken.provider.terminate(&taken.run).await.unwrap();
    assert!(left.len() == 1 && left[0].why.contains("more than 256 KiB"), "{left:?}");
    fs::remove_file(&flood).unwrap();
    taken.leave().await;
}

/// However few channels a host's sshd takes on a connection, what was started there can be ended.
async fn all_commands_can_be_ended_with(transport: TransportKind, sessions: u32) {
    let taken = Taken::with_login(transport, "exec bash -c \"$SSH_ORIGINAL_COMMAND\"").await;
    sshd::allow_sessions(&taken.existing, sessions).await;
    let session = taken.connect().await.unwrap();
    let cancel = CancellationToken::new();
    let stubborn = |name: &str| Command::shell(format!("trap '' TERM; touch {name}; sleep 1000 & wait"));
    let (first, second) = (stubborn("first"), stubborn("second"));
    let up = |name: &str| taken.home().join(format!(".tsunami/{}/{name}", taken.run)).exists();
    let (a, b, ()) = tokio::join!(
        session.exec(&first, Arc::new(()), &cancel),
        session.exec(&second, Arc::new(()), &cancel),
        async {
            while !(up("first") && up("second")) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let (exit, stdout, _) = exec(&*session, Command::shell("echo beside")).await;
            assert_eq!((exit, stdout.as_str()), (Exit::Status(0), "beside\n"));
            cancel.cancel();
        },
    );
    assert_eq!([a, b].map(|ended| ended.unwrap_err().kind), [SessionErrorKind::Cancelled; 2]);
    // And again: what ended them is there again.
    let cancel = CancellationToken::new();
    let again = stubborn("again");
    let (ended, ()) = tokio::join!(session.exec(&again, Arc::new(()), &cancel), async {
        while !up("again") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        cancel.cancel();
    });
    assert_eq!(ended.unwrap_err().kind, SessionErrorKind::Cancelled);
    session.close().await.unwrap();
    taken.leave().await;
}

async fn commands_can_be_ended_where_a_connection_takes_one(transport: TransportKind) {
    all_commands_can_be_ended_with(transport, 1).await;
}

/// A way to an address that is taken by one connection at a time: the next one waits.
async fn narrow_way(to: (String, u16)) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut here, _)) = listener.accept().await {
            let mut there = tokio::net::TcpStream::connect(to.clone()).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
        }
    });
    port
}

/// Nothing can end a command that has the only channel, but its connection can give way to another one.
async fn a_command_can_be_ended_where_a_host_takes_a_single_channel_in_all(transport: TransportKind) {
    let taken = Taken::with_login(transport, "exec bash -c \"$SSH_ORIGINAL_COMMAND\"").await;
    sshd::allow_sessions(&taken.existing, 1).await;
    let existing = &taken.existing.machines[0];
    let (address, port) = (existing.addresses.internal().unwrap(), existing.login.port.unwrap());
    let way = narrow_way((address.to_owned(), port)).await;
    let mut machine = taken.machine().await;
    let known = taken.existing.root.path().join("known");
    let key = existing.login.host_key.as_deref().unwrap();
    fs::write(&known, format!("[127.0.0.1]:{way} {key}\n[{address}]:{port} {key}\n")).unwrap();
    (machine.login.host, machine.login.port) = (Some("127.0.0.1".to_owned()), Some(way));
    let session = taken.connect_to(&machine, Duration::from_secs(30)).await.unwrap();
    let up = taken.home().join(format!(".tsunami/{}/up", taken.run));
    let cancel = CancellationToken::new();
    let stubborn = Command::shell("trap '' TERM; touch up; sleep 1000 & wait");
    let (ended, ()) = tokio::join!(session.exec(&stubborn, Arc::new(()), &cancel), async {
        while !up.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        session.check().await.unwrap();
        cancel.cancel();
    });
    assert_eq!(ended.unwrap_err().kind, SessionErrorKind::Cancelled);
    let (exit, stdout, _) = exec(&*session, Command::shell("echo after")).await;
    assert_eq!((exit, stdout.as_str()), (Exit::Status(0), "after\n"));
    session.close().await.unwrap();
    // What leaves it goes the straight way.
    taken.connector.finish(&taken.run).await;
    taken.leave().await;
}

async fn commands_can_be_ended_where_a_connection_takes_two(transport: TransportKind) {
    all_commands_can_be_ended_with(transport, 2).await;
}

/// Whether what runs here may make a control group below its own, as root may where there is cgroup v2.
fn may_make_control_groups() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    mounts.lines().filter(|line| line.contains(" - cgroup2 ")).any(|line| {
        let mounted = line.split(' ').nth(4).unwrap();
        let group = format!("{mounted}{own}/try-{}", std::process::id());
        fs::create_dir(&group).is_ok() && fs::remove_dir(&group).is_ok()
    })
}

/// A daemon that shows nothing of the run.
async fn a_daemon_that_leaves_all_behind_ends_with_the_run(transport: TransportKind) {
    let taken = Taken::with_login(transport, "exec bash -c \"$SSH_ORIGINAL_COMMAND\"").await;
    let file = taken.root.path().join("number");
    let daemon = Command::shell(
        "env -i setsid sh -c 'cd /; echo $$ >\"$1\"; exec sleep 1000 <&- >&- 2>&-' sh \"$1\" &",
    );
    let session = taken.connect().await.unwrap();
    let (exit, ..) = exec(&*session, daemon.arg(&file)).await;
    assert!(exit.success());
    let number = loop {
        match fs::read_to_string(&file).unwrap_or_default().trim().parse::<i32>() {
            Ok(number) => break rustix::process::Pid::from_raw(number).unwrap(),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    session.close().await.unwrap();
    taken.leave().await;
    let stat = fs::read_to_string(format!("/proc/{}/stat", number.as_raw_nonzero())).unwrap_or_default();
    let runs = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']));
    assert_eq!(runs, !may_make_control_groups());
    if runs {
        rustix::process::kill_process(number, rustix::process::Signal::KILL).unwrap();
    }
}

async fn a_child_that_prints_for_ever_keeps_no_command(transport: TransportKind) {
    let taken = Taken::with_login(transport, "exec bash -c \"$SSH_ORIGINAL_COMMAND\"").await;
    let session = taken.connect().await.unwrap();
    let child = Command::shell("(while echo tick; do sleep 0.05; done) & head -c 3000000 /dev/zero; exit 3");
    let ended = tokio::time::timeout(Duration::from_secs(60), exec(&*session, child)).await;
    let (exit, stdout, _) = ended.expect("it ends");
    assert_eq!(exit, Exit::Status(3));
    assert_eq!(stdout.bytes().filter(|&byte| byte == 0).count(), 3_000_000, "its own output is whole");
    session.close().await.unwrap();
    taken.leave().await;
}

async fn a_host_that_lets_in_and_then_says_nothing_is_given_up_in_time(transport: TransportKind) {
    let taken = Taken::with_login(transport, "sleep 8; exec sh -c \"$SSH_ORIGINAL_COMMAND\"").await;
    let begun = Instant::now();
    let error = taken.connect_within(Duration::from_secs(4)).await.expect_err("it takes longer");
    assert_eq!(error.kind, SessionErrorKind::Connect, "{error:?}");
    // Before the host would have answered.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    taken.leave().await;
}

async fn nothing_runs_on_a_host_before_its_watchdog_watches(transport: TransportKind) {
    let taken = Taken::with_login(
        transport,
        "[ -e ../../../../armed ] || { mkdir -p ../../../../bin && ln -sf /bin/false ../../../../bin/setsid && \
         PATH=$(cd ../../../../bin && pwd):$PATH; }\nexec bash -c \"$SSH_ORIGINAL_COMMAND\"",
    )
    .await;
    let (machine, deadline) = (taken.machine().await, Instant::now() + Duration::from_secs(30));
    let session = taken.connector.connect(&machine, deadline).await.unwrap();
    let run =
        async || session.exec(&Command::shell("echo ran"), Arc::new(()), &CancellationToken::new()).await;
    let error = run().await.expect_err("it is not admitted");
    assert!(error.message.contains(".tsunami"), "{error:?}");
    let error = taken.connect().await.expect_err("no watchdog can be started");
    assert!(error.message.contains("watchdog of the run does not start"), "{error:?}");
    run().await.expect_err("it is not admitted");
    fs::write(taken.existing.root.path().join("armed"), "").unwrap();
    taken.connect().await.unwrap().close().await.unwrap();
    assert_eq!(run().await.unwrap(), Exit::Status(0));
    session.close().await.unwrap();
    taken.leave().await;
}

/// What is about a host and not about the run: not in the run's directory, and not ended with the run.
async fn a_script_of_a_providers_is_none_of_the_runs_commands(transport: TransportKind) {
    let taken = Taken::with_login(transport, "exec bash -c \"$SSH_ORIGINAL_COMMAND\"").await;
    let session = taken.connect().await.unwrap();
    let said = session.administer("echo \"${PWD##*/}|$TSUNAMI_RUN_ID|$1\"", &["it's".to_owned()]).await;
    assert_eq!(said.unwrap(), "home||it's\n");
    let script = "sleep 1000 >/dev/null 2>&1 & echo $!";
    let number: i32 = session.administer(script, &[]).await.unwrap().trim().parse().unwrap();
    let number = rustix::process::Pid::from_raw(number).unwrap();
    session.close().await.unwrap();
    let _existing = taken.leave().await;
    rustix::process::kill_process(number, rustix::process::Signal::KILL).expect("it goes on");
}

async fn a_host_that_has_lost_its_watchdog_gets_another_from_whoever_connects(transport: TransportKind) {
    let taken = Taken::with_login(transport, "exec bash -c \"$SSH_ORIGINAL_COMMAND\"").await;
    let session = taken.connect().await.unwrap();
    let watchdogs = "pgrep -f \"^sh.*tsunami-watchdog:$1:\" || true";
    let run = [taken.run.to_string()];
    let before = session.administer(watchdogs, &run).await.unwrap();
    assert!(!before.is_empty());
    session.administer("pkill -KILL -f \"^sh.*tsunami-watchdog:$1:\"", &run).await.unwrap();
    let machine = taken.machine().await;
    taken.provider.renew(&machine, &session).await.unwrap();
    let after = session.administer(watchdogs, &run).await.unwrap();
    assert!(!after.is_empty() && after != before, "{before} {after}");
    // The one that watches is enough.
    taken.provider.renew(&machine, &session).await.unwrap();
    assert_eq!(session.administer(watchdogs, &run).await.unwrap(), after);
    session.close().await.unwrap();
    taken.leave().await;
}

async fn a_host_under_two_names_is_one_machine_only(transport: TransportKind) {
    let taken = Taken::with_login(transport, "exec sh -c \"$SSH_ORIGINAL_COMMAND\"").await;
    taken.connect().await.unwrap().close().await.unwrap();
    let mut other = taken.machine().await;
    other.index = 1;
    let error = taken.connect_to(&other, Duration::from_secs(30)).await.expect_err("it is node-0");
    assert!(error.message.contains("node-0 of this run already"), "{error:?}");
    taken.connect().await.unwrap().close().await.unwrap();
    taken.leave().await;
}

/// Counts the commands of a list that have succeeded.
#[derive(Debug, Default)]
struct Succeeded(AtomicUsize);

impl SequenceObserver for Succeeded {
    fn begins(&self, _: usize) -> Arc<dyn OutputSink> {
        Arc::new(())
    }

    fn ended(&self, _: usize, exit: Exit) {
        self.0.fetch_add(usize::from(exit.success()), Ordering::Relaxed);
    }
}

/// One for the attendant, by which the host is met, armed and reaped, and one for the list of set-up commands.
async fn a_host_costs_a_run_two_sessions(transport: TransportKind) {
    let taken = Taken::with_login(transport, "exec sh -c \"$SSH_ORIGINAL_COMMAND\"").await;
    sshd::configure(&taken.existing, "LogLevel VERBOSE").await;
    let session = taken.connect().await.unwrap();
    let (commands, succeeded) = (["true", "true"].map(Command::shell), Arc::new(Succeeded::default()));
    session.exec_all(&commands, succeeded.clone(), &CancellationToken::new()).await.unwrap();
    assert_eq!(succeeded.0.load(Ordering::Relaxed), 2);
    session.close().await.unwrap();
    let log = taken.existing.directory().join("local/node-0/sshd.log");
    let _existing = taken.leave().await;
    let log = fs::read_to_string(log).unwrap();
    let count = |words: &str| log.lines().filter(|line| line.contains(words)).count();
    assert_eq!((count("Accepted publickey"), count("Starting session")), (1, 2), "{log}");
}
