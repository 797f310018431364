//! What transfers send, and over how many channels.

mod common;
#[path = "common/sshd.rs"]
mod sshd;

use std::fs;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::Machines;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tsunami_core::{Command, Connector, Download, Session};
use tsunami_ssh::TransportKind;

over_each_transport!(
    what_is_there_is_not_sent_again,
    a_long_upload_to_a_far_machine_goes_over_many_channels,
    a_long_upload_needs_no_more_than_one_channel,
    a_long_upload_needs_no_more_than_two_channels,
    a_long_upload_that_is_dropped_leaves_nothing,
    a_long_download_comes_over_as_many_channels_as_help,
    a_long_download_needs_no_more_than_one_channel,
    a_long_download_that_is_dropped_leaves_nothing,
);

/// A way that one channel fills with 13 MiB/s.
const FAR: Duration = Duration::from_millis(75);

/// A machine behind a way that counts what is sent to it, and takes time.
struct Far {
    machines: Machines,
    session: Arc<dyn Session>,
    sent: Arc<AtomicU64>,
    here: TempDir,
}

impl Far {
    /// Reaches a machine that takes so many channels on a connection.
    async fn reach(transport: TransportKind, delay: Duration, channels: u32) -> Self {
        let machines = Machines::launch(1, transport).await;
        sshd::allow_sessions(&machines, channels).await;
        let mut machine = machines.machines[0].clone();
        let to = (machine.addresses.internal().unwrap().to_owned(), machine.login.port.unwrap());
        let sent = Arc::<AtomicU64>::default();
        machine.addresses.public = Some("127.0.0.1".to_owned());
        machine.login.port = Some(way(to, delay, sent.clone()).await);
        let connected = machines.connector.connect(&machine, Instant::now() + Duration::from_secs(60)).await;
        let session = connected.unwrap_or_else(|error| panic!("{error}")).into();
        Self { machines, session, sent, here: tempfile::tempdir().unwrap() }
    }

    /// Uploads some bytes, and returns how many were sent for that.
    async fn upload(&self, content: &[u8], to: &str) -> u64 {
        let (file, before) = (self.here.path().join("file"), self.sent.load(Ordering::Relaxed));
        fs::write(&file, content).unwrap();
        self.session.upload(&file, to).await.unwrap();
        assert!(fs::read(self.home().join(to)).unwrap() == content, "{to}");
        self.sent.load(Ordering::Relaxed) - before
    }

    fn home(&self) -> PathBuf {
        self.machines.directory().join("local/node-0/home")
    }

    /// How many further channels an upload has there.
    fn sides(&self) -> usize {
        let stripes = self.home().join(".tsunami-stripes");
        let is_one = |process: &fs::DirEntry| {
            let brings = fs::read_link(process.path().join("fd/3")).unwrap_or_default();
            let runs = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            runs == "cat\n" && brings.to_string_lossy().starts_with(&*stripes.to_string_lossy())
        };
        fs::read_dir("/proc").unwrap().flatten().filter(is_one).count()
    }

    /// Waits for something that uses several channels. Returns what came of it, and the further channels that were seen
    /// at a time.
    async fn watch<T>(&self, transfer: impl Future<Output = T>) -> (T, usize) {
        let (mut transfer, mut sides) = (pin!(transfer), 0);
        loop {
            tokio::select! {
                done = &mut transfer => return (done, sides),
                () = tokio::time::sleep(Duration::from_millis(50)) => sides = self.sides().max(sides),
            }
        }
    }

    /// Drops something once it uses several channels, and waits until nothing goes on.
    async fn drop_when_it_flows<T>(&self, transfer: impl Future<Output = T>) {
        let flows = async {
            while self.sides() < 2 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            _ = transfer => panic!("it is too fast"),
            () = flows => {}
        }
        self.session.close().await.unwrap();
        assert_eq!(self.sides(), 0);
    }

    /// What is in the home directory.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.home()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// The port of a way to a machine on which everything takes `delay`.
async fn way(to: (String, u16), delay: Duration, sent: Arc<AtomicU64>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((here, _)) = listener.accept().await {
            let (to, sent) = (to.clone(), sent.clone());
            tokio::spawn(async move {
                let there = TcpStream::connect(to).await.unwrap();
                let ((from_here, to_here), (from_there, to_there)) = (here.into_split(), there.into_split());
                tokio::join!(
                    carry(from_here, to_there, delay, sent),
                    carry(from_there, to_here, delay, Arc::default())
                );
            });
        }
    });
    port
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin + Send + 'static,
    delay: Duration,
    count: Arc<AtomicU64>,
) {
    let (send, mut take) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let taking = tokio::spawn(async move {
        while let Some((at, bytes)) = take.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        count.fetch_add(length as u64, Ordering::Relaxed);
        if send.send((Instant::now() + delay, buffer[..length].to_vec())).await.is_err() {
            break;
        }
    }
    drop(send);
    let _ = taking.await;
}

/// Bytes that nothing makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..length).map(next).collect()
}

async fn what_is_there_is_not_sent_again(transport: TransportKind) {
    let far = Far::reach(transport, Duration::ZERO, 10).await;
    let content = noise(1 << 20);
    let whole = content.len() as u64;
    assert!(far.upload(&content, "trial-1/data").await > whole);
    for to in ["trial-1/data", "trial-2/data", "trial-3/data"] {
        assert!(far.upload(&content, to).await < whole / 8, "{to}");
    }
    // Whatever commands make of it.
    let change = "for file in trial-*/data; do printf x | dd of=$file conv=notrunc; done";
    let cancel = Default::default();
    far.session.exec(&Command::shell(change), Arc::new(()), &cancel).await.unwrap();
    assert!(far.upload(&content, "trial-1/data").await > whole);
}

/// Uploads for seconds. Returns the further channels that were seen at a time.
async fn uploads_what_is_long(transport: TransportKind, channels: u32) -> usize {
    let far = Far::reach(transport, FAR, channels).await;
    let (before, mut content) = (far.names().len(), noise(40 << 20));
    // Not in whole blocks.
    content.truncate((40 << 20) - 12_345);
    let (_, sides) = far.watch(far.upload(&content, "data")).await;
    assert_eq!(far.names().len(), before + 1, "{:?}", far.names());
    sides
}

async fn a_long_upload_to_a_far_machine_goes_over_many_channels(transport: TransportKind) {
    let sides = uploads_what_is_long(transport, 10).await;
    assert!((3..=7).contains(&sides), "{sides}");
}

async fn a_long_upload_needs_no_more_than_one_channel(transport: TransportKind) {
    uploads_what_is_long(transport, 1).await;
}

async fn a_long_upload_needs_no_more_than_two_channels(transport: TransportKind) {
    uploads_what_is_long(transport, 2).await;
}

async fn a_long_upload_that_is_dropped_leaves_nothing(transport: TransportKind) {
    let far = Far::reach(transport, FAR, 10).await;
    let before = far.names();
    let content = noise(64 << 20);
    far.drop_when_it_flows(far.upload(&content, "data")).await;
    assert_eq!(far.names(), before);
}

/// Downloads for seconds. Returns the further channels that were seen at a time.
async fn downloads_what_is_long(transport: TransportKind, channels: u32) -> usize {
    let far = Far::reach(transport, FAR, channels).await;
    let (content, home) = (noise(40 << 20), far.here.path().join("home"));
    fs::write(far.home().join("data"), &content).unwrap();
    let before = far.names();
    let (matches, sides) = far.watch(far.session.download(&Download::new(["data", "none"], &home))).await;
    assert_eq!(matches.unwrap(), [1, 0]);
    assert!(fs::read(home.join("data")).unwrap() == content);
    assert_eq!(far.names(), before);
    sides
}

async fn a_long_download_comes_over_as_many_channels_as_help(transport: TransportKind) {
    let sides = downloads_what_is_long(transport, 10).await;
    let expected = if transport == TransportKind::OpenSsh { 2..=6 } else { 0..=0 };
    assert!(expected.contains(&sides), "{sides}");
}

async fn a_long_download_needs_no_more_than_one_channel(transport: TransportKind) {
    downloads_what_is_long(transport, 1).await;
}

async fn a_long_download_that_is_dropped_leaves_nothing(transport: TransportKind) {
    if transport == TransportKind::OpenSsh {
        let far = Far::reach(transport, FAR, 10).await;
        fs::write(far.home().join("data"), noise(64 << 20)).unwrap();
        let (before, home) = (far.names(), far.here.path().join("home"));
        far.drop_when_it_flows(far.session.download(&Download::new(["data"], &home))).await;
        assert_eq!(far.names(), before);
    }
}
