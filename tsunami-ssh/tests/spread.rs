//! Machines that give each other what was uploaded to one of them: real ones, on loopback.

mod common;

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use common::Machines;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};
use tsunami_core::{
    ContentOffer, Error, EventKind, Group, Host, LaunchRequest, Leftover, Machine, MachineId, MachineSpec,
    Plan, Provider, ProviderError, Quote, Recorder, RunFilter, RunId, RunStore, Session, SharedContent,
    Tsunami,
};
use tsunami_ssh::{
    HostAddress, HostsProvider, HostsSpec, LocalProvider, SshConnector, SshOptions, TransportKind,
};

over_each_transport!(
    a_file_leaves_this_computer_once,
    where_no_sshd_can_listen_all_is_sent_from_here,
    what_is_not_what_was_sent_is_not_taken,
    nobody_else_gets_anything,
    nothing_is_left_of_what_was_dropped,
    hosts_hand_on_what_one_was_given,
);

/// Local machines whose controller reaches them through one narrow line, which counts.
#[derive(Debug)]
struct Uplink {
    machines: LocalProvider,
    line: Arc<Line>,
    /// By their machines.
    ports: Mutex<Vec<(MachineId, u16)>>,
    /// Where the machines think that they are; their own addresses, if this is none.
    private: Option<&'static str>,
}

#[derive(Debug, Default)]
struct Line {
    bytes: AtomicU64,
    /// How many fit in a second; all of them, if this is 0.
    rate: u64,
    free: Mutex<Option<Instant>>,
}

impl Line {
    async fn pass(&self, count: u64) {
        self.bytes.fetch_add(count, Ordering::Relaxed);
        if self.rate > 0 {
            let until = {
                let mut free = self.free.lock().unwrap();
                let from = free.unwrap_or_else(Instant::now).max(Instant::now());
                let until = from + Duration::from_secs_f64(count as f64 / self.rate as f64);
                *free = Some(until);
                until
            };
            sleep_until(until).await;
        }
    }

    async fn forward(self: Arc<Self>, from: TcpStream, to: SocketAddr) -> std::io::Result<()> {
        let (mut from, mut up) = from.into_split();
        let (mut down, mut to) = TcpStream::connect(to).await?.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut down, &mut up).await });
        let mut buffer = [0; 16 << 10];
        while let count @ 1.. = from.read(&mut buffer).await? {
            self.pass(count as u64).await;
            to.write_all(&buffer[..count]).await?;
        }
        Ok(())
    }
}

impl Uplink {
    fn port(&self, machine: &Machine) -> u16 {
        let mut ports = self.ports.lock().unwrap();
        if let Some((_, port)) = ports.iter().find(|(id, _)| *id == machine.id) {
            return *port;
        }
        let address = machine.addresses.external().unwrap();
        let to: SocketAddr = format!("{address}:{}", machine.login.port.unwrap()).parse().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (listener, line) = (TcpListener::from_std(listener).unwrap(), self.line.clone());
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                tokio::spawn(line.clone().forward(from, to));
            }
        });
        ports.push((machine.id.clone(), port));
        port
    }
}

#[async_trait]
impl Provider for Uplink {
    fn name(&self) -> String {
        self.machines.name()
    }

    async fn quote(&self, spec: &MachineSpec, count: NonZeroU32) -> Result<Quote, ProviderError> {
        self.machines.quote(spec, count).await
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        self.machines.launch(request).await
    }

    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        let mut machines = self.machines.list(filter).await?;
        for machine in &mut machines {
            let port = self.port(machine);
            machine.login = machine.login.clone().host("127.0.0.1").port(port);
            if let Some(private) = self.private {
                machine.addresses = machine.addresses.clone().private(private);
            }
        }
        Ok(machines)
    }

    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        self.machines.extend(run, until).await
    }

    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        self.machines.terminate(run).await
    }
}

/// What a run came to in whose set-up a file was uploaded to all machines.
struct Uploaded {
    bytes: u64,
    took: Duration,
    notes: Vec<String>,
}

/// Uploads so many bytes to so many machines, and looks whether they are there, and nothing else.
async fn upload(
    (count, length): (u32, usize),
    transport: TransportKind,
    rate: u64,
    private: Option<&'static str>,
) -> Uploaded {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("load");
    fs::write(&file, noise(length)).unwrap();
    let line = Arc::new(Line { rate, ..Line::default() });
    let machines = LocalProvider::new(root.path().join("runs"));
    let uplink = Uplink { machines, line: line.clone(), ports: Mutex::default(), private };
    let connector = SshConnector::new(SshOptions::default().transport(transport).spread(true));
    let events = Arc::new(Recorder::default());
    let tsunami = Tsunami::new(Arc::new(uplink), Arc::new(connector))
        .observer(events.clone())
        .state(RunStore::at(root.path().join("runs")));
    let (from, place) = (file.clone(), root.path().to_owned());
    let took = Arc::new(Mutex::new(Vec::new()));
    let times = took.clone();
    let setup = move |host: Host| {
        let (from, times) = (from.clone(), times.clone());
        async move {
            let begun = Instant::now();
            host.upload(&from, "bin/load").await?;
            times.lock().unwrap().push((begun, Instant::now()));
            Ok(())
        }
    };
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()).count(count).setup(setup));
    let plan = plan.lifetime(Duration::from_secs(900));
    let run = tsunami.run(plan, move |cluster| async move {
        assert_eq!(left_in(&place), Vec::<String>::new());
        let expected = cluster.hosts()[0].run("sha256sum <bin/load").await?.stdout().into_owned();
        for host in cluster.hosts() {
            assert_eq!(host.run("sha256sum <bin/load").await?.stdout(), expected);
            assert_eq!(host.run("wc -c <bin/load").await?.stdout().trim(), length.to_string());
        }
        Ok::<_, Error>(())
    });
    run.await.unwrap();
    let note = |kind: EventKind| match kind {
        EventKind::Note { text, .. } => Some(text),
        _ => None,
    };
    let notes = events.events().into_iter().filter_map(|event| note(event.kind)).collect();
    let times = took.lock().unwrap();
    let begun = times.iter().map(|(begun, _)| *begun).min().unwrap();
    let ended = times.iter().map(|(_, ended)| *ended).max().unwrap();
    Uploaded { bytes: line.bytes.load(Ordering::Relaxed), took: ended - begun, notes }
}

/// What nobody can pack any smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// The directories and processes that are there for something that machines below a directory give each other.
fn left_in(place: &Path) -> Vec<String> {
    let find = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let mut left = find("find", &[place.to_str().unwrap(), "-name", ".tsunami-spread*"]);
    left.extend(find("pgrep", &["-fa", &format!("{}.*tsunami-spread", place.display())]));
    left
}

async fn a_file_leaves_this_computer_once(transport: TransportKind) {
    const LENGTH: usize = 6 << 20;
    let uploaded = upload((6, LENGTH), transport, 0, None).await;
    assert_eq!(uploaded.notes, Vec::<String>::new());
    let (bytes, length) = (uploaded.bytes, LENGTH as u64);
    assert!((length..length * 3 / 2).contains(&bytes), "{bytes} bytes have left");
}

async fn where_no_sshd_can_listen_all_is_sent_from_here(transport: TransportKind) {
    const LENGTH: usize = 5 << 20;
    // It is nobody's.
    let uploaded = upload((4, LENGTH), transport, 0, Some("192.0.2.1")).await;
    let notes = uploaded.notes.join("\n");
    assert!(uploaded.notes.len() == 2 && notes.contains("Cannot bind"), "{notes}");
    assert!(uploaded.bytes > 4 * LENGTH as u64, "{} bytes have left", uploaded.bytes);
}

/// Two machines, the first of which offers a file.
struct Pair {
    machines: Machines,
    sessions: Vec<Box<dyn Session>>,
    content: SharedContent,
    file: PathBuf,
    offer: ContentOffer,
}

impl Pair {
    async fn with(length: usize, transport: TransportKind) -> Self {
        let machines = Machines::launch(2, transport).await;
        let mut sessions = Vec::new();
        for machine in &machines.machines {
            let deadline = Instant::now() + Duration::from_secs(60);
            sessions.push(
                tsunami_core::Connector::connect(&*machines.connector, machine, deadline).await.unwrap(),
            );
        }
        let file = machines.root.path().join("load");
        fs::write(&file, noise(length)).unwrap();
        let content = SharedContent::new("1", length as u64);
        sessions[0].upload_kept(&file, "load", &content).await.unwrap();
        let offer = sessions[0].offer(&content).await.unwrap();
        Self { machines, sessions, content, file, offer }
    }

    fn home(&self, index: u32) -> PathBuf {
        self.machines.directory().join(format!("local/node-{index}/home"))
    }

    /// The directory of a machine for what it keeps.
    fn kept(&self, index: u32) -> PathBuf {
        let entries = fs::read_dir(self.home(index)).unwrap().map(|entry| entry.unwrap().path());
        let is_one =
            |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(".tsunami-spread");
        entries.into_iter().find(is_one).unwrap()
    }

    async fn take(&self) -> Result<(), tsunami_core::SessionError> {
        self.sessions[1].take(&self.offer, &self.file, "load", &self.content).await
    }

    async fn end(self) {
        for session in &self.sessions {
            session.withdraw(&self.content).await.unwrap();
        }
        assert_eq!(left_in(self.machines.root.path()), Vec::<String>::new());
    }
}

async fn what_is_not_what_was_sent_is_not_taken(transport: TransportKind) {
    let pair = Pair::with(1 << 20, transport).await;
    let kept = pair.kept(0).join("content");
    let content = fs::read(&kept).unwrap();
    let mut other = content.clone();
    other[(1 << 20) - 1] ^= 1;
    fs::write(&kept, other).unwrap();
    let error = pair.take().await.unwrap_err();
    assert!(error.message.contains("is not what was sent"), "{error}");
    assert!(!pair.home(1).join("load").exists());
    fs::write(&kept, content).unwrap();
    pair.take().await.unwrap();
    assert_eq!(fs::read(pair.home(1).join("load")).unwrap(), fs::read(&pair.file).unwrap());
    assert!(!pair.kept(1).join("key").exists(), "a key is left on the machine");
    // What it offers is looked at before.
    pair.sessions[0].withdraw(&pair.content).await.unwrap();
    pair.sessions[0].upload_kept(&pair.file, "load", &pair.content).await.unwrap();
    fs::write(pair.kept(0).join("content"), "x").unwrap();
    assert!(pair.sessions[0].offer(&pair.content).await.is_err());
    pair.end().await;
}

/// With the key of another offer, or of the run, or once it is withdrawn.
async fn nobody_else_gets_anything(transport: TransportKind) {
    let pair = Pair::with(1 << 20, transport).await;
    let config = fs::read_to_string(pair.kept(0).join("sshd_config")).unwrap();
    let value = |key: &str| {
        let line = config.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.unwrap_or_default().to_owned()
    };
    let key = pair.machines.directory().join("ssh/id_ed25519");
    assert!(key.exists());
    let mut ssh = std::process::Command::new("ssh");
    ssh.args([
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "IdentityAgent=none",
    ]);
    ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-i"]).arg(key).args(["-p", &value("Port")]);
    let output = ssh.args([&value("ListenAddress"), "id"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout), (Some(255), vec![]));
    pair.sessions[0].withdraw(&pair.content).await.unwrap();
    let begun = Instant::now();
    let error = pair.take().await.unwrap_err();
    assert!(error.message.contains("refused"), "{error} after {:?}", begun.elapsed());
    pair.end().await;
}

async fn nothing_is_left_of_what_was_dropped(transport: TransportKind) {
    let pair = Pair::with(48 << 20, transport).await;
    let taken = timeout(Duration::from_millis(150), pair.take()).await;
    assert!(taken.is_err(), "it was faster than that");
    pair.end().await;
    // What nobody withdraws ends with the run, of which nothing may be left.
    drop(Pair::with(1 << 20, transport).await);
}

/// On machines that aren't the run's, also where the run fails before anything is withdrawn.
async fn hosts_hand_on_what_one_was_given(transport: TransportKind) {
    let existing = Machines::launch(3, transport).await;
    let (mut hosts, mut known) = (Vec::new(), String::new());
    for machine in &existing.machines {
        let (host, port) = (machine.addresses.internal().unwrap().to_owned(), machine.login.port);
        known += &format!("[{host}]:{} {}\n", port.unwrap(), machine.login.host_key.as_deref().unwrap());
        hosts.push(HostAddress { user: machine.login.user.clone(), host, port });
    }
    let root = tempfile::tempdir().unwrap();
    let (file, known_hosts) = (root.path().join("load"), root.path().join("known"));
    fs::write(&known_hosts, known).unwrap();
    fs::write(&file, noise(5 << 20)).unwrap();
    let options = SshOptions::default().spread(true).key(existing.directory().join("ssh/id_ed25519"));
    let options = options.known_hosts(known_hosts).transport(transport);
    for fails in [false, true] {
        let connector = Arc::new(SshConnector::new(options.clone()));
        let provider = Arc::new(HostsProvider::new(root.path().join("runs"), connector.clone()));
        let tsunami = Tsunami::new(provider, connector).state(RunStore::at(root.path().join("runs")));
        let (from, place) = (file.clone(), existing.root.path().to_owned());
        let (sources, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let there = (sources.clone(), seen.clone());
        let setup = move |host: Host| {
            let (from, place, (sources, seen)) = (from.clone(), place.clone(), there.clone());
            async move {
                host.upload(&from, "bin/load").await?;
                // The last one sees all.
                let listening = left_in(&place).iter().filter(|line| line.contains("[listener]")).count();
                sources.fetch_max(listening as u64, Ordering::Relaxed);
                let is_last = seen.fetch_add(1, Ordering::Relaxed) == 2;
                if fails && is_last { Err(host.error("it fails")) } else { Ok(()) }
            }
        };
        let group = Group::new("node", MachineSpec::new(HostsSpec::new(hosts.clone()))).count(3);
        let (place, length) = (existing.root.path().to_owned(), 5 << 20);
        let run = tsunami.run(Plan::new("test").group(group.setup(setup)), move |cluster| async move {
            assert_eq!(left_in(&place), Vec::<String>::new());
            for host in cluster.hosts() {
                assert_eq!(host.run("wc -c <bin/load").await?.stdout().trim(), length.to_string());
            }
            Ok::<_, Error>(())
        });
        assert_eq!(run.await.is_err(), fails);
        assert!(sources.load(Ordering::Relaxed) > 0);
        assert_eq!(left_in(existing.root.path()), Vec::<String>::new());
    }
}

/// It leaves once over a narrow line too. `TSUNAMI_SPREAD=32,64` has 32 machines and 64 MiB over 20 Mbit/s, and
/// `--nocapture` shows how long that takes beside one machine.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stdout, reason = "the long form measures")]
async fn a_file_leaves_this_computer_once_over_a_narrow_line() {
    let long = std::env::var("TSUNAMI_SPREAD").ok();
    let long = long.map(|text| {
        let (count, mebibytes) = text.split_once(',').unwrap();
        (count.parse().unwrap(), mebibytes.parse().unwrap(), 2_500_000)
    });
    let (count, mebibytes, rate): (u32, usize, u64) = long.unwrap_or((4, 5, 10_000_000));
    let length = mebibytes << 20;
    for count in [1, count] {
        let Uploaded { bytes, took, notes } =
            upload((count, length), TransportKind::OpenSsh, rate, None).await;
        println!("{count} machines: {took:?}, {bytes} bytes have left");
        assert_eq!(notes, Vec::<String>::new());
        assert!(bytes < length as u64 * 3 / 2, "{bytes} bytes have left for {count} machines");
    }
}
