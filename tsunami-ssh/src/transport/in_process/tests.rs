//! Peers that do what no sshd does. What sshd does is in the suites.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::{Algorithm, PrivateKey};
use russh::server::{self, Auth, VerifiedPublicKey};
use russh::{ChannelId, ChannelOpenFailure, Limits};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use super::*;
use crate::config::{CommandLine, Setting, Word, destination};

/// What a peer does, and what it was seen to get.
#[derive(Debug, Default)]
struct Peer {
    channels: usize,
    users: Mutex<Vec<String>>,
    connections: AtomicUsize,
    received: AtomicUsize,
    sent: AtomicUsize,
    opened_here: AtomicUsize,
}

/// One connection to a peer.
struct Served {
    peer: Arc<Peer>,
    open: usize,
    /// What ends with its input.
    echoing: Vec<ChannelId>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.peer.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl server::Handler for Served {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, user: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        self.peer.users.lock().unwrap().push(user.to_owned());
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: russh::Channel<server::Msg>,
        reply: server::ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.open += 1;
        if self.open > self.peer.channels {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
        } else {
            reply.accept().await;
        }
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        line: &[u8],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        let (handle, peer) = (session.handle(), self.peer.clone());
        match line {
            b"refuse" => return session.channel_failure(id),
            b"leave" => return Err(russh::Error::Disconnect),
            _ => session.channel_success(id)?,
        }
        match line {
            // What it gets is handled below.
            b"echo" => self.echoing.push(id),
            b"take" => {}
            b"flood" => {
                tokio::spawn(async move {
                    while handle.data(id, vec![b'x'; 32 << 10]).await.is_ok() {
                        peer.sent.fetch_add(32 << 10, Ordering::Relaxed);
                    }
                });
            }
            b"intrude" => {
                tokio::spawn(async move {
                    let opened = handle.channel_open_forwarded_tcpip("localhost", 1, "localhost", 2).await;
                    peer.opened_here.fetch_add(usize::from(opened.is_ok()), Ordering::Relaxed);
                    let _ = handle.exit_status_request(id, 0).await;
                    let _ = handle.close(id).await;
                });
            }
            b"signal" => {
                tokio::spawn(async move {
                    let signal = russh::Sig::TERM;
                    let _ = handle.exit_signal_request(id, signal, false, String::new(), String::new()).await;
                    let _ = handle.close(id).await;
                });
            }
            _ => {
                tokio::spawn(async move {
                    let _ = handle.data(id, &b"said"[..]).await;
                    let _ = handle.extended_data(id, 1, &b"words"[..]).await;
                    let _ = handle.eof(id).await;
                    let _ = handle.exit_status_request(id, 3).await;
                    let _ = handle.close(id).await;
                });
            }
        }
        Ok(())
    }

    async fn data(
        &mut self,
        id: ChannelId,
        data: &[u8],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.peer.received.fetch_add(data.len(), Ordering::Relaxed);
        session.data(id, data.to_vec())
    }

    async fn channel_eof(
        &mut self,
        id: ChannelId,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        if self.echoing.contains(&id) {
            session.eof(id)?;
            session.exit_status_request(id, 0)?;
            session.close(id)?;
        }
        Ok(())
    }
}

/// A peer's address and key, and how to reach it.
struct Place {
    peer: Arc<Peer>,
    port: u16,
    key: PublicKey,
    identity: PathBuf,
    _directory: TempDir,
}

fn new_key() -> PrivateKey {
    PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap()
}

impl Place {
    async fn with(peer: Peer, change: impl FnOnce(&mut server::Config)) -> Self {
        let key = new_key();
        let mut config =
            server::Config { keys: vec![key.clone()], nodelay: true, ..server::Config::default() };
        change(&mut config);
        let (config, peer) = (Arc::new(config), Arc::new(peer));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = peer.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::Relaxed);
                let served = Served { peer: serving.clone(), open: 0, echoing: Vec::new() };
                let config = config.clone();
                tokio::spawn(async move {
                    if let Ok(session) = server::run_stream(config, stream, served).await {
                        let _ = session.await;
                    }
                });
            }
        });
        Self::at(port, peer, key.public_key().clone())
    }

    fn at(port: u16, peer: Arc<Peer>, key: PublicKey) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let identity = directory.path().join("id");
        crate::keys::obtain(&identity, "test").unwrap();
        Self { peer, port, key, identity, _directory: directory }
    }

    async fn usual() -> Self {
        Self::with(Peer { channels: 100, ..Peer::default() }, |_| ()).await
    }

    fn settings(&self, more: &[Setting]) -> Vec<Setting> {
        let mut settings = more.to_vec();
        settings.extend(destination("127.0.0.1", self.port).unwrap());
        settings.push(Setting::new("HostKeyAlias", Word::ours("peer")));
        settings.push(Setting::new("User", Word::ours("secret-name")));
        settings.push(Setting::new("IdentityFile", Word::path("path", &self.identity).unwrap()));
        settings.push(Setting::new("IdentitiesOnly", Word::ours("yes")));
        settings.push(Setting::new("ConnectTimeout", Word::ours("2")));
        settings
    }

    fn known(&self) -> String {
        format!("peer {}\n", self.key.to_openssh().unwrap())
    }

    async fn connect_with(&self, known: &str, more: &[Setting]) -> Result<InProcessConnection, ConnectError> {
        let mut keys = KnownKeys::default();
        keys.add("peer", known);
        soon(connect(
            Target::of(&self.settings(more)).unwrap(),
            keys,
            None,
            CancellationToken::new(),
            Answered::default(),
        ))
        .await
    }

    async fn connected(&self) -> InProcessConnection {
        self.connect_with(&self.known(), &[]).await.unwrap_or_else(|error| panic!("{}", error.error))
    }

    async fn until_left(&self) {
        soon(async {
            while self.peer.connections.load(Ordering::Relaxed) > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("it takes too long")
}

fn nothing() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

async fn open(connection: &InProcessConnection, line: &str) -> Channel {
    soon(connection.open(line, nothing(), None)).await.unwrap()
}

async fn all(stream: &mut Option<super::super::Output>) -> String {
    let mut text = String::new();
    soon(stream.as_mut().unwrap().read_to_string(&mut text)).await.unwrap();
    text
}

/// A port where each connection is treated so.
async fn treated<F>(treat: impl Fn(TcpStream) -> F + Send + 'static) -> Place
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(treat(stream));
        }
    });
    Place::at(port, Arc::default(), new_key().public_key().clone())
}

#[tokio::test]
async fn what_does_not_speak_ssh_is_left_in_time() {
    let says = |words: &'static [u8], times: usize| {
        treated(move |mut stream| async move {
            for _ in 0..times {
                if stream.write_all(words).await.is_err() {
                    return;
                }
            }
            sleep(Duration::from_secs(60)).await;
        })
    };
    for (words, times) in [
        (&b"\x00\xff garbage \r\n"[..], 1),
        (b"SSH-2.0-half", 1),
        (b"Welcome\r\n", usize::MAX),
        (b"x", usize::MAX),
        (b"SSH-2.0-quiet\r\n", 1),
        (b"SSH-2.0-noisy\r\n\xff\xff\xff\xff\xff\xff\xff\xff", 1),
        (b"SSH-2.0-noisy\r\n\x00\x00\x00\x0c\x0a\x14\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", 1),
        (b"", 0),
    ] {
        let place = says(words, times).await;
        let error = place.connect_with("", &[]).await.expect_err("it is no SSH");
        assert_eq!(error.error.kind, SessionErrorKind::Connect, "{:?}", error.error);
    }
    let closing = treated(|stream| async move { drop(stream) }).await;
    let error = closing.connect_with("", &[]).await.unwrap_err();
    assert_eq!((error.error.kind, error.reason), (SessionErrorKind::Connect, Reason::Other));
}

#[tokio::test]
async fn a_key_exchange_that_cannot_be_agreed_on_is_no_matter_of_patience() {
    let place = Place::with(Peer::default(), |config| {
        config.preferred.kex = Cow::Borrowed(&[kex::DH_G1_SHA1]);
    })
    .await;
    let error = place.connect_with(&place.known(), &[]).await.unwrap_err().error;
    assert!(error.kind == SessionErrorKind::Local && error.message.contains("group1-sha1"), "{error:?}");
    assert!(error.help.unwrap().contains("OpenSSH"));
}

#[tokio::test]
async fn a_peer_with_a_wrong_key_is_told_no_name() {
    let place = Place::usual().await;
    let other = format!("peer {}\n", new_key().public_key().to_openssh().unwrap());
    let revoked = format!("{}@revoked * {}\n", place.known(), place.key.to_openssh().unwrap());
    let error = place.connect_with(&other, &[]).await.unwrap_err();
    assert_eq!((error.error.kind, error.reason), (SessionErrorKind::HostKey, Reason::ChangedKey));
    let error = place.connect_with(&revoked, &[]).await.unwrap_err();
    assert_eq!((error.error.kind, error.reason), (SessionErrorKind::HostKey, Reason::RevokedKey));
    let error = place.connect_with("", &[]).await.unwrap_err();
    let fingerprint = place.key.fingerprint(Default::default()).to_string();
    let shown = ShownKey { fingerprint, line: place.known().trim().to_owned() };
    assert_eq!(
        (error.error.kind, error.reason),
        (SessionErrorKind::HostKey, Reason::UnknownKey(Some(shown)))
    );
    let error = place.connect_with(&format!("@cert-authority {}", place.known()), &[]).await.unwrap_err();
    assert!(matches!(error.reason, Reason::UnknownKey(Some(_))), "{error:?}");
    assert_eq!(*place.peer.users.lock().unwrap(), [""; 0]);
    place.until_left().await;
    drop(place.connected().await);
    assert_eq!(*place.peer.users.lock().unwrap(), ["secret-name"]);
}

#[tokio::test]
async fn a_host_may_be_vouched_for() {
    let authority = new_key();
    let sign = |config: &mut server::Config| {
        let key = config.keys[0].public_key().key_data().clone();
        let mut builder =
            Builder::new_with_random_nonce(&mut russh::keys::key::safe_rng(), key, 0, u64::MAX >> 1).unwrap();
        builder.cert_type(CertType::Host).unwrap().key_id("id").unwrap().valid_principal("peer").unwrap();
        config.certificates = vec![builder.sign(&authority).unwrap()];
    };
    let place = Place::with(Peer { channels: 1, ..Peer::default() }, sign).await;
    let text = authority.public_key().to_openssh().unwrap();
    let connection = place.connect_with(&format!("@cert-authority peer {text}\n"), &[]).await;
    let connection = connection.unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(all(&mut open(&connection, "say").await.stderr).await, "words");
    // Whose authority is another one shows its key, which may be known.
    let other = new_key().public_key().to_openssh().unwrap();
    place
        .connect_with(&format!("@cert-authority peer {other}\n{}", place.known()), &[])
        .await
        .map(drop)
        .unwrap();
    let error = place.connect_with(&format!("@cert-authority peer {other}\n"), &[]).await.unwrap_err();
    assert!(matches!(error.reason, Reason::UnknownKey(_)), "{error:?}");
}

#[tokio::test]
async fn outputs_and_the_end_come_apart_over_each_key_exchange() {
    let place = Place::usual().await;
    let curve = Setting::new("KexAlgorithms", Word::ours("curve25519-sha256"));
    // Both sides know the first, and want it most.
    for (settings, name) in [(&[][..], "mlkem768x25519-sha256"), (&[curve], "curve25519-sha256")] {
        let connection = place.connect_with(&place.known(), settings).await.unwrap();
        assert_eq!(taken(&connection.outcome).exchanges, [name]);
        let mut channel = open(&connection, "say").await;
        let said = (all(&mut channel.stdout).await, all(&mut channel.stderr).await);
        assert_eq!(said, ("said".to_owned(), "words".to_owned()));
        assert!(!soon(channel.end).await.unwrap());
    }
}

#[tokio::test]
async fn refusals_and_signals_are_told() {
    let place = Place::with(Peer { channels: 2, ..Peer::default() }, |_| ()).await;
    let connection = place.connected().await;
    let mut refused = open(&connection, "refuse").await;
    assert_eq!(all(&mut refused.stdout).await, "");
    assert!(!soon(refused.end).await.unwrap());
    assert!(!soon(open(&connection, "signal").await.end).await.unwrap());
    let error = soon(connection.open("say", nothing(), None)).await.unwrap_err();
    assert_eq!(error.kind, SessionErrorKind::Remote, "{error:?}");
    assert!(!connection.is_closed());
}

#[tokio::test]
async fn a_connection_that_ends_amid_a_command_says_so() {
    let place = Place::usual().await;
    let connection = place.connected().await;
    let mut running = open(&connection, "take").await;
    let _leaving = connection.open("leave", nothing(), None).await;
    assert_eq!(all(&mut running.stdout).await, "");
    soon(running.end).await.expect_err("nobody knows how it ended");
    assert!(connection.is_closed());
    let error = connection.reason();
    assert_eq!(error.kind, SessionErrorKind::Lost);
    assert!(error.message.contains("connection is lost; the machine closed"), "{error}");
    let error = soon(connection.open("say", nothing(), None)).await.unwrap_err();
    assert_eq!(error.kind, SessionErrorKind::Lost);
}

#[tokio::test]
async fn a_connection_is_gone_once_nobody_holds_it_or_it_is_closed() {
    let place = Place::usual().await;
    let connection = place.connected().await;
    let flooding = open(&connection, "flood").await;
    drop(connection);
    place.until_left().await;
    soon(flooding.end).await.unwrap_err();
    let connection = place.connected().await;
    let mut taking = open(&connection, "take").await;
    connection.close();
    assert!(connection.is_closed());
    assert_eq!(all(&mut taking.stderr).await, "");
    place.until_left().await;
}

/// Through many keys.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_transfer_outlives_its_keys() {
    for limits in [Limits::default(), Limits::new(200 << 10, 200 << 10, Duration::from_secs(3600))] {
        let place =
            Place::with(Peer { channels: 1, ..Peer::default() }, |config| config.limits = limits).await;
        let rekey = Setting::new("RekeyLimit", Word::ours("256K"));
        let connection = place.connect_with(&place.known(), &[rekey]).await.unwrap();
        let (stdin, mut feed) = std::io::pipe().unwrap();
        let mut channel = soon(connection.open("echo", stdin.into(), None)).await.unwrap();
        let sent: Vec<u8> =
            (0..4_000_000_u32).map(|number| number.to_le_bytes()[number as usize % 3]).collect();
        let feeding = {
            let sent = sent.clone();
            tokio::task::spawn_blocking(move || feed.write_all(&sent))
        };
        let mut came = Vec::new();
        soon(channel.stdout.as_mut().unwrap().read_to_end(&mut came)).await.unwrap();
        assert!(came == sent, "{} of {} came back", came.len(), sent.len());
        soon(feeding).await.unwrap().unwrap();
        assert!(soon(channel.end).await.unwrap());
        assert!(taken(&connection.outcome).exchanges.len() > 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_not_read_for() {
    let place = Place::usual().await;
    let connection = place.connected().await;
    let mut flooding = open(&connection, "flood").await;
    // It stops, though nobody reads.
    let sent = || place.peer.sent.load(Ordering::Relaxed);
    let mut before = usize::MAX;
    soon(async {
        while before != sent() {
            before = sent();
            sleep(Duration::from_millis(500)).await;
        }
    })
    .await;
    assert!(before < 64 << 20, "{before} were sent to nobody");
    // It goes on once somebody does.
    let mut much = vec![0; 32 << 20];
    soon(flooding.stdout.as_mut().unwrap().read_exact(&mut much)).await.unwrap();
    assert!(much.iter().all(|byte| *byte == b'x'));
    // And others are heard once nobody wants it.
    drop(flooding);
    let mut channel = open(&connection, "say").await;
    assert_eq!(all(&mut channel.stderr).await, "words");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_without_a_reader_closes_its_channel() {
    let place = Place::usual().await;
    let connection = place.connected().await;
    let (mut reader, stdout) = std::io::pipe().unwrap();
    let mut flooding = soon(connection.open("flood", nothing(), Some(stdout.into()))).await.unwrap();
    assert!(flooding.stdout.is_none());
    let mut some = [0; 100_000];
    tokio::task::block_in_place(|| reader.read_exact(&mut some)).unwrap();
    drop(reader);
    assert_eq!(all(&mut flooding.stderr).await, "");
    soon(flooding.end).await.unwrap_err();
    assert_eq!(all(&mut open(&connection, "say").await.stderr).await, "words");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_of_nothing_keeps_the_input_here() {
    let place = Place::with(Peer { channels: 9, ..Peer::default() }, |config| config.window_size = 0).await;
    let connection = place.connected().await;
    let (stdin, mut feed) = std::io::pipe().unwrap();
    let channel = soon(connection.open("take", stdin.into(), None)).await.unwrap();
    let feeding = tokio::task::spawn_blocking(move || feed.write_all(&[0; 1 << 20]));
    sleep(Duration::from_millis(500)).await;
    assert!(!feeding.is_finished(), "nobody took it");
    assert_eq!(place.peer.received.load(Ordering::Relaxed), 0);
    // Others go on meanwhile.
    assert_eq!(all(&mut open(&connection, "say").await.stderr).await, "words");
    drop(channel);
    let fed = soon(feeding).await.unwrap().unwrap_err();
    assert_eq!(fed.kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_machine_opens_nothing_here() {
    let place = Place::usual().await;
    let connection = place.connected().await;
    assert!(soon(open(&connection, "intrude").await.end).await.unwrap());
    assert_eq!(place.peer.opened_here.load(Ordering::Relaxed), 0);
}

/// A way to a peer that can be made to swallow what goes there, or to hand on nothing at all.
async fn way_to(port: u16, stuck: CancellationToken) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let way = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut here, _)) = listener.accept().await {
            let mut there = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let stuck = stuck.clone();
            tokio::spawn(async move {
                let copied = tokio::io::copy_bidirectional(&mut here, &mut there);
                if stuck.run_until_cancelled(copied).await.is_none() {
                    sleep(Duration::from_secs(60)).await;
                }
            });
        }
    });
    way
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_silent_or_takes_nothing_is_lost_in_time() {
    for is_fed in [false, true] {
        let mut place = Place::usual().await;
        let stuck = CancellationToken::new();
        place.port = way_to(place.port, stuck.clone()).await;
        let alive = [("ServerAliveInterval", "1"), ("ServerAliveCountMax", "1")];
        let alive = alive.map(|(keyword, value)| Setting::new(keyword, Word::ours(value)));
        let connection = place.connect_with(&place.known(), &alive).await.unwrap();
        let (stdin, mut feed) = std::io::pipe().unwrap();
        let channel = soon(connection.open("take", stdin.into(), None)).await.unwrap();
        let begun = Instant::now();
        stuck.cancel();
        // More than all buffers on the way hold.
        let feeding = tokio::task::spawn_blocking(move || {
            if is_fed { feed.write_all(&vec![0; 64 << 20]) } else { feed.flush() }
        });
        soon(channel.end).await.unwrap_err();
        assert!(connection.is_closed());
        let error = connection.reason();
        assert!(error.kind == SessionErrorKind::Lost && error.message.contains("the machine"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        let _ = soon(feeding).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_dropped_leaves_nothing() {
    let place = Place::usual().await;
    let known = {
        let mut keys = KnownKeys::default();
        keys.add("peer", &place.known());
        keys
    };
    for micros in (0..40).map(|step| step * 700) {
        let target = Target::of(&place.settings(&[])).unwrap();
        let _ = timeout(
            Duration::from_micros(micros),
            connect(target, known.clone(), None, CancellationToken::new(), Answered::default()),
        )
        .await
        .map(drop);
    }
    place.until_left().await;
    let connection = place.connected().await;
    for micros in (0..40).map(|step| step * 50) {
        let _ =
            timeout(Duration::from_micros(micros), connection.open("flood", nothing(), None)).await.map(drop);
    }
    assert_eq!(all(&mut open(&connection, "say").await.stderr).await, "words");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_a_way_that_goes_with_its_connection() {
    let place = Place::usual().await;
    let marker = place.identity.with_file_name("marker");
    // In a shell, with children, and deaf to whoever asks it to go.
    let line = format!(
        "bash -c 'trap \"\" TERM HUP PIPE; exec 3<>/dev/tcp/%h/%p; cat <&3 & cat >&3; sleep 1000' {}",
        marker.display()
    );
    let proxy = Setting::proxy(CommandLine::of_user("ProxyCommand", &line).unwrap());
    let connection = place.connect_with(&place.known(), &[proxy]).await.unwrap();
    assert_eq!(all(&mut open(&connection, "say").await.stderr).await, "words");
    drop(connection);
    place.until_left().await;
    let left = || std::process::Command::new("pgrep").arg("-f").arg(&marker).output().unwrap().stdout;
    soon(async {
        while !left().is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let failing =
        Setting::proxy(CommandLine::of_user("ProxyCommand", "sh -c 'echo no way there >&2'").unwrap());
    let error = place.connect_with(&place.known(), &[failing]).await.unwrap_err().error;
    assert!(error.kind == SessionErrorKind::Connect && error.message.contains("no way there"), "{error:?}");
}
