//! What is done on this computer before anything is launched.

use std::io::{self, PipeWriter};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::{Experiment, Upload};
use crate::cluster::Tail;
use crate::error::Error;
use crate::results::{Redacting, Results, Secrets};
use crate::session::Exit;

/// How long a command that is asked to end may take, as on machines.
const GRACE: Duration = Duration::from_secs(5);

/// How much of what a command wrote may not be read yet when it has ended, in bytes: what a pipe of Linux's holds.
const PIPE: usize = 64 << 10;

/// Tells the guard, at standard input, which process this is, and becomes the first shell that is there.
const BEGIN: &str = "echo $$ >&0; exec </dev/null; ! command -v bash >/dev/null 2>&1 || exec bash -eo pipefail -c \"$1\"; \
                     exec sh -e -c \"$1\"";

/// Kills the process group that it is told, once whoever started it is gone: killed with signal 9, or with its session.
const GUARD: &str = "trap '' HUP INT TERM; read -r group && { read -r _ || kill -KILL \"-$group\"; }";

/// Does what the file says is to be done on this computer, in order, and then writes down what is uploaded. It returns at
/// once where nothing is to be done. If the future is dropped, the command that runs is killed.
///
/// # Errors
///
/// The command that failed; [`Error::Cancelled`]; and a file that is to be uploaded and still isn't there.
pub(super) async fn prepare(
    experiment: &Experiment,
    results: &Results,
    secrets: &Secrets,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    if experiment.prepare.is_empty() {
        return Ok(());
    }
    let (path, file) = results.local_log("prepare")?;
    let mut log = Log { file: File::from_std(file), path, secrets, tail: Tail::default() };
    for command in &experiment.prepare {
        log.tail = Tail::default();
        run(command, &experiment.directory, &mut log, cancel).await?;
    }
    // To read a pipe or a device might take forever.
    let is_fit = |path: &Path| std::fs::metadata(path).is_ok_and(|found| found.is_file() || found.is_dir());
    let missing = |upload: &&Upload| !is_fit(&upload.from);
    let sets = experiment.sets.iter().flat_map(|set| &set.groups);
    let mut uploads = experiment.groups.iter().chain(sets).flat_map(|group| &group.upload);
    if let Some(upload) = uploads.find(missing) {
        let from = upload.from.display();
        return Err(Error::other(format!("{from} is to be uploaded, and what was prepared did not make it")));
    }
    Ok(())
}

/// Runs a command to its end.
async fn run(
    command: &str,
    directory: &Path,
    log: &mut Log<'_>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    log.line(&format!("$ {}", command.trim_end())).await?;
    let begun = Instant::now();
    let (mut child, mut group, output) = start(command, directory)
        .map_err(|error| Error::other(format!("`{command}` can't be started on this computer: {error}")))?;
    let ended = tokio::select! {
        status = log.follow(&mut child, output) => Some(status?),
        () = cancel.cancelled() => None,
    };
    let Some(status) = ended else {
        group.end(&mut child).await;
        log.line("# cancelled").await?;
        return Err(Error::Cancelled);
    };
    group.leader = None;
    let exit = exit_of(status);
    log.line(&format!("# {exit} after {:.1} s", begun.elapsed().as_secs_f64())).await?;
    if exit.success() {
        return Ok(());
    }
    let command = log.secrets.redact(command);
    Err(Error::Local { command, exit, output: log.tail.text(), log: log.path.clone() })
}

/// Starts a command in a process group of its own, and hands out what it writes.
fn start(command: &str, directory: &Path) -> io::Result<(Child, Group, Receiver)> {
    // The directory is looked at first: that it is missing would look like a missing shell.
    std::fs::metadata(directory)?;
    let guard = Guard::start()?;
    let (reader, writer) = io::pipe()?;
    let mut process = Command::new("sh");
    // It tells the guard itself: this process may be gone by then.
    process.args(["-c", BEGIN, "sh", command]).current_dir(directory).stdin(guard.input.try_clone()?);
    process.stdout(writer.try_clone()?).stderr(writer).process_group(0).kill_on_drop(true);
    let child = process.spawn()?;
    let leader = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    Ok((child, Group { leader, _guard: guard }, Receiver::from_owned_fd(reader.into())?))
}

/// A process that kills a group when this process is gone, and does nothing when this is dropped.
struct Guard {
    // In this order: it is dead before its input ends.
    _child: Child,
    input: PipeWriter,
}

impl Guard {
    fn start() -> io::Result<Self> {
        let (reader, input) = io::pipe()?;
        let mut guard = Command::new("sh");
        // A group of its own keeps the terminal's signals away from it.
        guard.args(["-c", GUARD, "tsunami-guard"]).stdin(reader).process_group(0).kill_on_drop(true);
        guard.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { _child: guard.spawn()?, input })
    }
}

/// The process group of a command that runs, which is killed when this is dropped, or when this process is.
struct Group {
    /// `None` once it has ended.
    leader: Option<Pid>,
    _guard: Guard,
}

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.leader {
            // It may be gone.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Asks it to end, and kills what is left of it.
    async fn end(&mut self, child: &mut Child) {
        self.signal(Signal::TERM);
        let _ = timeout(GRACE, child.wait()).await;
        self.signal(Signal::KILL);
        let _ = child.wait().await;
        self.leader = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// The log of what is done on this computer, in which no secret stands.
struct Log<'a> {
    file: File,
    path: PathBuf,
    secrets: &'a Secrets,
    tail: Tail,
}

impl Log<'_> {
    /// A line of ours.
    async fn line(&mut self, text: &str) -> Result<(), Error> {
        let text = self.secrets.redact(text) + "\n";
        self.write(text.as_bytes()).await.map_err(Error::other)
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = async {
            self.file.write_all(bytes).await?;
            self.file.flush().await
        };
        let path = self.path.display();
        written.await.map_err(|error| io::Error::new(error.kind(), format!("cannot write {path}: {error}")))
    }

    /// Writes down what a command writes, until it has ended. What it left in the background may write on, to nobody.
    async fn follow(&mut self, child: &mut Child, output: Receiver) -> Result<ExitStatus, Error> {
        let mut redacting = Redacting::new(self.secrets.clone());
        let mut buffer = vec![0; 16 << 10];
        let (mut ended, mut unread) = (None, PIPE);
        let status = loop {
            if ended.is_none() {
                tokio::select! {
                    status = child.wait() => ended = Some(status.map_err(Error::other)?),
                    ready = output.readable() => ready.map_err(Error::other)?,
                }
            }
            match (output.try_read(&mut buffer), ended) {
                (Ok(count @ 1..), _) if unread > 0 => {
                    if ended.is_some() {
                        unread = unread.saturating_sub(count);
                    }
                    let shown = redacting.push(&buffer[..count]);
                    self.tail.push(&shown);
                    self.write(&shown).await.map_err(Error::other)?;
                }
                // Nobody has the pipe any more, or what the command wrote is read.
                (_, Some(status)) => break status,
                (Err(error), None) if error.kind() == io::ErrorKind::WouldBlock => {}
                (_, None) => break child.wait().await.map_err(Error::other)?,
            }
        };
        let rest = redacting.rest();
        self.tail.push(&rest);
        self.write(&rest).await.map_err(Error::other)?;
        Ok(status)
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    let byte = |number: Option<i32>| number.and_then(|number| u8::try_from(number).ok());
    match byte(status.code()) {
        Some(code) => Exit::Status(code),
        None => Exit::Signal(byte(status.signal()).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::experiment::Loader;
    use crate::{Outcome, RunId};

    struct World(tempfile::TempDir);

    impl World {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn load(&self, prepare: &str, more: &str) -> (Experiment, Results, Secrets) {
            let file = self.0.path().join("x.toml");
            let group = "env = { TOKEN = { from_env = 'TOKEN' } }";
            fs::write(&file, format!("name = 'x'\nprepare = {prepare}\n[group.a]\n{group}\n{more}")).unwrap();
            let loader = Loader::new().lookup_env(&|_| Some("hunter2-hunter2".into()));
            let experiment = loader.load(&file).unwrap();
            let run: RunId = "20231114-221320-abcd".parse().unwrap();
            let results = Results::create(&experiment, &run, Some(&self.0.path().join("out"))).unwrap();
            let secrets = Secrets::of(&experiment);
            (experiment, results, secrets)
        }

        async fn prepare(&self, prepare: &str, more: &str) -> Result<(), Error> {
            let (experiment, results, secrets) = self.load(prepare, more);
            super::prepare(&experiment, &results, &secrets, &CancellationToken::new()).await
        }

        fn log(&self) -> String {
            fs::read_to_string(self.0.path().join("out/logs/prepare.log")).unwrap()
        }
    }

    #[tokio::test]
    async fn commands_run_in_the_files_directory_one_after_another() {
        let world = World::new();
        let commands = "['echo made > made; echo {{ no }} >&2', 'cat made; echo hunter2-hunt; printf hunter2-; echo hunter2']";
        world.prepare(commands, "upload = [{ from = 'made', to = 'x' }]\n").await.unwrap();
        let log = world.log();
        let lines: Vec<_> = log.lines().filter(|line| !line.starts_with("# status 0 after")).collect();
        let shown = "$ cat made; echo hunter2-hunt; printf hunter2-; echo hunter2";
        let first = "$ echo made > made; echo {{ no }} >&2";
        assert_eq!(lines, [first, "{{ no }}", shown, "made", "hunter2-hunt", "[secret]"], "{log}");
    }

    #[tokio::test]
    async fn what_fails_is_named_with_its_last_words_and_nothing_comes_after_it() {
        let world = World::new();
        let failed =
            world.prepare("['true | false | cat; echo no', 'echo on; exit 3', 'touch late']", "").await;
        let error = failed.unwrap_err();
        // Without bash there is no `pipefail`.
        match &error {
            Error::Local { command, exit: Exit::Status(1), .. } if command.starts_with("true") => {}
            Error::Local { command, exit: Exit::Status(3), output, .. } => {
                assert_eq!((&**command, &**output), ("echo on; exit 3", "on"));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(Outcome::of(&error), Outcome::Failed);
        assert!(error.to_string().contains("out/logs/prepare.log"), "{error}");
        assert!(!world.0.path().join("late").exists());
    }

    #[tokio::test]
    async fn what_was_not_made_is_missed() {
        let world = World::new();
        let missed = world.prepare("'true'", "upload = [{ from = 'made', to = 'x' }]\n").await.unwrap_err();
        assert!(missed.to_string().contains("made is to be uploaded"), "{missed}");
    }

    #[tokio::test]
    async fn what_stays_in_the_background_is_not_waited_for() {
        let world = World::new();
        world.prepare("'echo $$ > group; yes & sleep 1000 & echo done'", "").await.unwrap();
        let group: i32 = fs::read_to_string(world.0.path().join("group")).unwrap().trim().parse().unwrap();
        kill_process_group(Pid::from_raw(group).unwrap(), Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn cancelling_ends_all_of_a_command() {
        for ending in ["", "trap '' TERM; "] {
            let world = World::new();
            let pipe = world.0.path().join("alive");
            rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
            let command = format!("\"{ending}exec 3>alive; sleep 1000 & sleep 1000; :\"");
            let (experiment, results, secrets) = world.load(&command, "");
            let cancel = CancellationToken::new();
            let running = tokio::spawn({
                let cancel = cancel.clone();
                async move { super::prepare(&experiment, &results, &secrets, &cancel).await }
            });
            // It ends when nobody has the pipe open any more, and opens when somebody has.
            let reader = tokio::task::spawn_blocking(move || fs::File::open(pipe).map(|file| (file, cancel)));
            let (mut alive, cancel) = reader.await.unwrap().unwrap();
            cancel.cancel();
            assert!(matches!(running.await.unwrap(), Err(Error::Cancelled)), "{ending}");
            let ended = tokio::task::spawn_blocking(move || io::Read::read(&mut alive, &mut [0]));
            assert_eq!(ended.await.unwrap().unwrap(), 0);
            assert!(world.log().ends_with("# cancelled\n"), "{}", world.log());
        }
    }
}
