//! What was uploaded to one machine goes to others from there, through an sshd and an ssh of theirs that know nothing
//! else: [`SCRIPT`] says how. All keys are made here for one offer, and none of the user's is on a machine.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey};
use tokio_util::sync::CancellationToken;
use tsunami_core::limits::{SCRIPT_OUTPUT_LIMIT, SHOWN_MESSAGE_LIMIT};
use tsunami_core::{
    Command, ContentOffer, Machine, OutputSink, PROCESSES_SCRIPT, SessionError, SessionErrorKind,
    SharedContent, Stdin, Stream, compact_script,
};

use super::progress::Progress;
use super::{UploadArchive, own_script, upload};
use crate::command::{Commands, Input};

/// What unpacks an upload.
static UNPACK: LazyLock<String> = LazyLock::new(|| compact_script(upload::UNPACK));

/// How machines give each other what was uploaded; its beginning says how.
const SCRIPT: &str = include_str!("spread.sh");

static WITHDRAW: LazyLock<String> =
    LazyLock::new(|| compact_script(&[PROCESSES_SCRIPT, include_str!("withdraw.sh")].concat()));

/// By this variable of their environment the processes of one content are known.
const MARK: &str = "TSUNAMI_SPREAD";

/// Where an sshd may listen: above what services have, below what Linux gives to clients.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// How many ports are tried. Hardly any is taken.
const PORTS_TRIED: u16 = 4;

/// What a machine keeps to give it to others.
#[derive(Debug)]
pub(crate) struct KeptContents {
    by_name: Mutex<HashMap<String, Kept>>,
    /// Another process may be at the same machine.
    nonce: u64,
}

impl Default for KeptContents {
    fn default() -> Self {
        Self { by_name: Mutex::default(), nonce: RandomState::new().hash_one(0) }
    }
}

#[derive(Clone, Debug)]
struct Kept {
    /// Of the stream, in hexadecimal digits.
    digest: String,
    /// Whether the machine has compared it.
    checked: bool,
}

/// What an offer holds.
struct Source {
    kept: Kept,
    address: String,
    port: u16,
    user: String,
    /// The public one, as OpenSSH writes it.
    host_key: String,
    /// The private one of who takes it.
    key: String,
}

/// One machine, and one content on it.
pub(crate) struct Spread<'a> {
    pub(crate) commands: &'a Arc<Commands>,
    pub(crate) machine: &'a Machine,
    pub(crate) contents: &'a KeptContents,
    pub(crate) content: &'a SharedContent,
}

impl Spread<'_> {
    /// Uploads it, and has it kept.
    pub(crate) async fn upload(&self, from: &Path, to: &str) -> Result<(), SessionError> {
        let mut archive = UploadArchive::listed(from, to, &self.content.exclude).await?;
        archive.progress = Progress::of(self.commands.moved());
        let (progress, cancel) = (archive.progress.clone(), CancellationToken::new());
        let script = self.script("keep", &[&self.room(), &UNPACK, &archive.directory, &archive.mode]);
        let (said, digest) = (Arc::new(Said::default()), Arc::new(OnceLock::new()));
        let input = Input::Kept(Box::new(archive), digest.clone());
        let sending = self.commands.run(&script, input, None, said.clone(), &cancel);
        let exit = progress.watch(sending, &cancel, || self.commands.pool().check()).await?;
        if !exit.success() {
            return Err(said.error(&format!("unpacking ended with {exit}")));
        }
        if let Some(digest) = digest.get() {
            self.note(Kept { digest: digest.clone(), checked: false });
        }
        Ok(())
    }

    /// Begins to give it to others.
    pub(crate) async fn offer(&self) -> Result<ContentOffer, SessionError> {
        let kept = self.contents.lock().get(&self.content.name).cloned();
        let kept = kept.ok_or_else(|| failed("it is not known there"))?;
        let address = self.machine.addresses.private.clone();
        let address = address.ok_or_else(|| failed("the machine has no private address"))?;
        let (host_key, key) = (KeyPair::new()?, KeyPair::new()?);
        let digest = if kept.checked { "" } else { &kept.digest };
        let random = RandomState::new();
        let port = |n: u16| PORTS.start + (random.hash_one(n) % u64::from(PORTS.end - PORTS.start)) as u16;
        let ports: Vec<String> = (0..PORTS_TRIED).map(|n| port(n).to_string()).collect();
        let mut args = vec![digest, &address, &key.public];
        args.extend(ports.iter().map(String::as_str));
        let said = self.run(&self.script("offer", &args), &host_key.private).await?;
        let (port, user) = said.trim().split_once(' ').ok_or_else(|| failed("it does not say where"))?;
        let port = port.parse().map_err(|_| failed("it does not say where"))?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-@\\".contains(c);
        if user.starts_with('-') || !user.chars().all(is_plain) {
            return Err(failed("it does not say as whom"));
        }
        let (user, host_key, key) = (user.to_owned(), host_key.public, key.private);
        Ok(ContentOffer::new(Source { kept, address, port, user, host_key, key }))
    }

    /// Has the machine take it from another one, and keep it.
    pub(crate) async fn take(&self, offer: &ContentOffer, from: &Path, to: &str) -> Result<(), SessionError> {
        let source: &Source =
            offer.details().ok_or_else(|| failed("the offer is not from a session like this"))?;
        let archive = UploadArchive::new(from, to)?;
        let (room, port) = (self.room(), source.port.to_string());
        let Source { kept, address, user, host_key, key, .. } = source;
        let args: [&str; 9] =
            [&room, &kept.digest, address, &port, user, host_key, &UNPACK, &archive.directory, &archive.mode];
        self.run(&self.script("take", &args), key).await?;
        self.note(Kept { checked: true, ..kept.clone() });
        Ok(())
    }

    /// Ends and removes all of it on the machine.
    pub(crate) async fn withdraw(&self) -> Result<(), SessionError> {
        self.contents.lock().remove(&self.content.name);
        let command =
            Command::program("sh").arg("-c").arg(&*WITHDRAW).arg("sh").arg(self.directory()).arg(self.mark());
        self.run(&command, "").await.map(drop)
    }

    fn note(&self, kept: Kept) {
        self.contents.lock().insert(self.content.name.clone(), kept);
    }

    /// In KiB: it takes its place twice, and something should be left.
    fn room(&self) -> String {
        (2 * (self.content.size >> 10) + (64 << 10)).to_string()
    }

    fn directory(&self) -> String {
        format!("./.tsunami-spread.{:x}.{}", self.contents.nonce, self.content.name)
    }

    fn mark(&self) -> String {
        format!("{}/{:x}/{}", self.machine.run, self.contents.nonce, self.content.name)
    }

    fn script(&self, mode: &str, args: &[&str]) -> Command {
        let given = [mode.to_owned(), self.directory()];
        let script = own_script(SCRIPT, given.iter()).env(MARK, self.mark());
        args.iter().fold(script, |script, arg| script.arg(arg))
    }

    /// Runs a script that reads this, and returns what it says.
    async fn run(&self, script: &Command, input: &str) -> Result<String, SessionError> {
        let said = Arc::new(Said::default());
        let input = Input::Given(Stdin::Bytes(input.as_bytes().into()));
        let exit = self.commands.run(script, input, None, said.clone(), &CancellationToken::new()).await?;
        if exit.success() { Ok(said.text(Stream::Stdout)) } else { Err(said.error(&exit.to_string())) }
    }
}

impl KeptContents {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Kept>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(message: &str) -> SessionError {
    SessionError::new(SessionErrorKind::Transfer, message)
}

struct KeyPair {
    private: String,
    public: String,
}

impl KeyPair {
    fn new() -> Result<Self, SessionError> {
        let unmade = |error| SessionError::new(SessionErrorKind::Local, "cannot make a key").source(error);
        let key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(unmade)?;
        let public = key.public_key().to_openssh().map_err(unmade)?;
        Ok(Self { private: key.to_openssh(LineEnding::LF).map_err(unmade)?.to_string(), public })
    }
}

/// What a script said, the first of it.
#[derive(Debug, Default)]
struct Said(Mutex<[Vec<u8>; 2]>);

impl Said {
    fn text(&self, stream: Stream) -> String {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&said[usize::from(stream == Stream::Stderr)]).into_owned()
    }

    fn error(&self, what: &str) -> SessionError {
        let said = self.text(Stream::Stderr);
        failed(&format!("{what}: {}", said.trim().chars().take(SHOWN_MESSAGE_LIMIT).collect::<String>()))
    }
}

impl OutputSink for Said {
    fn write(&self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let said =
            &mut self.0.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(stream == Stream::Stderr)];
        let room = SCRIPT_OUTPUT_LIMIT.saturating_sub(said.len());
        said.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(())
    }
}

/// Writes an archive, and sets the digest of all that was written.
pub(crate) fn pack_digested(
    archive: UploadArchive,
    into: impl Write,
    digest: &OnceLock<String>,
) -> io::Result<()> {
    let mut into = Digesting { into, context: Context::new(&SHA256) };
    archive.pack(&mut into)?;
    let _ = digest.set(HEXLOWER.encode(into.context.finish().as_ref()));
    Ok(())
}

struct Digesting<W> {
    into: W,
    context: Context,
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.into.write(buffer)?;
        self.context.update(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}

/// The key is no one's to see.
impl Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("address", &self.address)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::{Command as Process, Output, Stdio};

    use tsunami_core::Exclude;

    use super::*;

    /// One machine with a shell and tools of its kind: those of this computer, or busybox's.
    struct Place<'a> {
        shell: &'a [&'a str],
        path: &'a str,
        directory: &'a Path,
        mark: String,
    }

    impl Place<'_> {
        fn run(&self, script: &str, args: &[&str], input: &[u8]) -> Output {
            let mut child = Process::new(self.shell[0])
                .args(&self.shell[1..])
                .args(["-c", script, "sh"])
                .args(args)
                .current_dir(self.directory)
                .env("PATH", self.path)
                .env(MARK, if script == SCRIPT { &self.mark } else { "" })
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // What refuses may end before it has read.
            if let Err(error) = child.stdin.take().unwrap().write_all(input) {
                assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            }
            child.wait_with_output().unwrap()
        }

        fn say(&self, script: &str, args: &[&str], input: &[u8]) -> String {
            let output = self.run(script, args, input);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{:?} {}: {} {said}", self.shell, self.path, output.status);
            String::from_utf8(output.stdout).unwrap()
        }
    }

    #[test]
    fn a_content_goes_from_one_to_another_in_every_shell() {
        let root = tempfile::tempdir().unwrap();
        let (tools, file) = (root.path().join("tools"), root.path().join("it's"));
        fs::create_dir(&tools).unwrap();
        for tool in ["tee", "tar", "df", "id", "grep", "sha256sum", "setsid", "tail", "sleep", "cut"] {
            symlink("/bin/busybox", tools.join(tool)).unwrap();
        }
        fs::write(&file, vec![b'x'; 100_000]).unwrap();
        let path = std::env::var("PATH").unwrap();
        let busybox = format!("{}:{path}", tools.display());
        let mut archive = UploadArchive::new(&file, "to/load").unwrap();
        archive.list(&Exclude::default()).unwrap();
        let (directory, mode) = (archive.directory.clone(), archive.mode.clone());
        let (mut sent, digest) = (Vec::new(), OnceLock::new());
        pack_digested(archive, &mut sent, &digest).unwrap();
        let digest = digest.get().unwrap();
        let shells: [&[&str]; 3] = [&["dash"], &["bash", "--posix"], &["busybox", "sh"]];
        let runs = |shell: &&&[&str]| Process::new(shell[0]).arg("--help").output().is_ok();
        for (number, (shell, path)) in
            shells.iter().filter(runs).flat_map(|shell| [(shell, &path), (shell, &busybox)]).enumerate()
        {
            let place = |name: &str| root.path().join(format!("{name}-{number}"));
            let directories = [place("one"), place("two")];
            let [one, two] = directories.each_ref().map(|directory| {
                fs::create_dir(directory).unwrap();
                Place { shell, path, directory, mark: format!("test/{}", directory.display()) }
            });
            let unpack = [UNPACK.as_str(), &directory, &mode];
            one.say(SCRIPT, &[&["keep", "./kept", "1"], unpack.as_slice()].concat(), &sent);
            assert_eq!(fs::read(directories[0].join("kept/content")).unwrap(), sent);
            let (host, key) = (KeyPair::new().unwrap(), KeyPair::new().unwrap());
            let address = format!("127.77.{}.{}", std::process::id() % 250, number + 1);
            let offer = ["offer", "./kept", digest, &address, &key.public, "21177", "21178"];
            let said = one.say(SCRIPT, &offer, host.private.as_bytes());
            let (port, user) = said.trim().split_once(' ').unwrap();
            let take = ["take", "./kept", "1", digest, &address, port, user, &host.public];
            let take = [take.as_slice(), &unpack].concat();
            two.say(SCRIPT, &take, key.private.as_bytes());
            for directory in &directories {
                assert_eq!(fs::read(directory.join("to/load")).unwrap(), fs::read(&file).unwrap());
            }
            // What there is no room for is not kept, and not taken.
            let no_room = "1000000000000";
            let keep = [&["keep", "./none", no_room], unpack.as_slice()].concat();
            one.say(SCRIPT, &keep, &sent);
            assert!(!directories[0].join("none").exists());
            let mut roomless = take.clone();
            roomless[2] = no_room;
            assert!(!two.run(SCRIPT, &roomless, key.private.as_bytes()).status.success());
            for place in [&one, &two] {
                place.say(&WITHDRAW, &["./kept", &place.mark], b"");
                assert!(!place.directory.join("kept").exists());
            }
            assert!(!two.run(SCRIPT, &take, key.private.as_bytes()).status.success(), "it was withdrawn");
        }
    }
}
