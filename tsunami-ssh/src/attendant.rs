//! A `sh` on a machine that runs tsunami's own scripts, one after another, over one channel. Between them it waits, and is
//! what a command can be ended by at any time.
//!
//! Each script runs in a `sh` of its own, so nothing of it reaches the next one. Two marks, which nobody else knows, tell
//! its outputs from what comes before and after. Where something that a script has left may write on, the attendant
//! ends, and the outputs are read until nobody holds them.
//!
//! The watchdog's script is long, and wanted twice. So it is sent once, with the attendant's own, where the first script
//! wants it: the attendant hands it to each.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};

use tokio::io::AsyncReadExt;
use tokio::task::spawn_blocking;
use tsunami_core::limits::SCRIPT_OUTPUT_LIMIT;
use tsunami_core::{BoxError, SessionError, SessionErrorKind};

use crate::pool::{Shell, Slot};
use crate::shell;
use crate::transport::Output;
use crate::watchdog;

const SCRIPT: &str = concat!(include_str!("held.sh"), include_str!("attendant.sh"));

/// What a pipe holds, and so is written without a thread of its own: 64 KiB on Linux.
pub(crate) const PIPE_BYTES: usize = 60 << 10;

/// The longest line that is handed over in the environment: a kernel takes 128 KiB in one variable.
const VARIABLE_BYTES: usize = 64 << 10;

/// See the module. Dropping it closes its channel, which ends no script.
#[derive(Debug)]
pub(crate) struct Attendant {
    shell: Shell,
    /// Whether it has been told what to do.
    is_told: bool,
    /// Whether it has the watchdog's script.
    has_watchdog: bool,
}

/// The line of a script.
#[derive(Debug)]
pub(crate) struct Line {
    whole: Vec<u8>,
    /// The same for who has the watchdog's script, as `$2`, where that is an argument.
    short: Option<Vec<u8>>,
}

impl Line {
    /// The line that runs a script with arguments.
    pub(crate) fn new(script: &str, args: &[impl AsRef<str>]) -> Result<Self, SessionError> {
        let quoted = args.iter().map(|arg| shell::one_line(arg.as_ref().as_bytes()));
        let mut words = quoted.collect::<Result<Vec<_>, _>>()?;
        let whole = shell::script_line(script, &words)?;
        let Some(at) = args.iter().position(|arg| arg.as_ref() == watchdog::script()) else {
            return Ok(Self { whole, short: None });
        };
        words[at] = b"\"$2\"".to_vec();
        Ok(Self { whole, short: Some(shell::script_line(script, &words)?) })
    }
}

/// What became of a script.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It ended.
    Ended { succeeded: bool, stdout: Vec<u8>, stderr: Vec<u8> },
    /// Nobody saw how it ended, or whether, since the channel did. One that has not begun never will.
    Cut { has_begun: bool, stderr: Vec<u8>, slot: Slot },
}

impl Answer {
    pub(crate) fn has_begun(&self) -> bool {
        !matches!(self, Self::Cut { has_begun: false, .. })
    }
}

impl Attendant {
    /// Makes one of a `sh` that waits for its line. Nothing is sent yet.
    pub(crate) fn new(shell: Shell) -> Self {
        Self { shell, is_told: false, has_watchdog: false }
    }

    /// Its channel's place.
    pub(crate) fn slot(&self) -> &Slot {
        &self.shell.slot
    }

    /// Runs a script. Returns the attendant if it can run another. When this is dropped, the script goes on and the
    /// attendant does not.
    pub(crate) async fn run(mut self, line: &Line) -> Result<(Answer, Option<Self>), SessionError> {
        let mark = shell::mark(RandomState::new().hash_one(0));
        let lines = self.lines(line, &mark)?;
        self.has_watchdog |= !self.is_told && line.short.is_some();
        self.is_told = true;
        self.feed(lines).await;
        let channel = &mut self.shell.channel;
        let (out, err) = (&mut channel.stdout, &mut channel.stderr);
        let (out, err) = tokio::try_join!(hear(out, mark.as_bytes()), hear(err, mark.as_bytes()))?;
        let has_begun = out.has_begun || err.has_begun;
        let Some(End { succeeded, goes_on }) = out.end.or(err.end) else {
            return Ok((Answer::Cut { has_begun, stderr: err.bytes, slot: self.shell.slot }, None));
        };
        let goes_on = goes_on && out.end == err.end;
        Ok((Answer::Ended { succeeded, stdout: out.bytes, stderr: err.bytes }, goes_on.then_some(self)))
    }

    /// What it has to read for a script.
    fn lines(&self, line: &Line, mark: &str) -> Result<Vec<u8>, SessionError> {
        let (watchdog, line) = match &line.short {
            Some(short) if self.has_watchdog || !self.is_told => (watchdog::script(), short),
            _ => ("", &line.whole),
        };
        let is_handed_over = !self.is_told && line.len() <= VARIABLE_BYTES;
        let mut lines = Vec::new();
        if !self.is_told {
            let first = if is_handed_over { line.trim_ascii_end() } else { b"" };
            let words = [watchdog.as_bytes(), mark.as_bytes(), first].map(shell::one_line);
            let words = words.into_iter().collect::<Result<Vec<_>, _>>()?;
            lines = shell::long_line(&shell::script_line(SCRIPT, &words)?);
        }
        if !is_handed_over {
            lines.extend_from_slice(format!("{mark}\n{}\n", line.len()).as_bytes());
            lines.extend_from_slice(line);
        }
        Ok(lines)
    }

    /// That nobody reads it shows in the answer.
    async fn feed(&mut self, lines: Vec<u8>) {
        if lines.len() <= PIPE_BYTES {
            // All that came before has been read.
            let _ = self.shell.feed.write_all(&lines);
        } else if let Ok(mut feed) = self.shell.feed.try_clone() {
            let _ = spawn_blocking(move || feed.write_all(&lines)).await;
        }
    }
}

/// What was heard of a script on one output.
#[derive(Debug, Default)]
struct Heard {
    has_begun: bool,
    /// What it said.
    bytes: Vec<u8>,
    end: Option<End>,
    /// How many of the bytes hold no mark.
    searched: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    succeeded: bool,
    goes_on: bool,
}

/// Reads until a script has ended and nobody else writes there.
async fn hear(from: &mut Option<Output>, mark: &[u8]) -> Result<Heard, SessionError> {
    let mut heard = Heard::default();
    let mut chunk = [0; 4096];
    // What came before an error is all there is.
    while !heard.end.is_some_and(|end| end.goes_on)
        && let Some(from) = from.as_mut()
        && let Ok(count @ 1..) = from.read(&mut chunk).await
    {
        heard.take(&chunk[..count], mark).map_err(too_much)?;
    }
    Ok(heard)
}

impl Heard {
    fn take(&mut self, bytes: &[u8], mark: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        if !self.has_begun
            && let Some(at) = self.find(mark)
        {
            self.bytes.drain(..at + mark.len());
            (self.has_begun, self.searched) = (true, 0);
        }
        if self.has_begun
            && self.end.is_none()
            && let Some(at) = self.find(mark)
            && let note = &self.bytes[at + mark.len()..]
            && let Some(length) = note.iter().position(|&byte| byte == b'\n')
        {
            let words = note[..length].split(|&byte| byte == b' ').collect::<Vec<_>>();
            self.end = Some(End {
                succeeded: words.first() == Some(&b"0".as_slice()),
                goes_on: words.last() == Some(&b"next".as_slice()),
            });
            self.bytes.drain(at..=at + mark.len() + length);
        }
        let message = || io::Error::other(format!("more than {} KiB", SCRIPT_OUTPUT_LIMIT >> 10));
        if self.bytes.len() > SCRIPT_OUTPUT_LIMIT { Err(message()) } else { Ok(()) }
    }

    fn find(&mut self, mark: &[u8]) -> Option<usize> {
        let found = self.bytes[self.searched..].windows(mark.len()).position(|window| window == mark);
        let found = found.map(|at| self.searched + at);
        self.searched = found.unwrap_or(self.bytes.len().saturating_sub(mark.len() - 1).max(self.searched));
        found
    }
}

/// The error of a machine that floods.
pub(crate) fn too_much(error: impl Into<BoxError>) -> SessionError {
    SessionError::new(SessionErrorKind::Remote, "the machine says more than is read").source(error)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::pool::Pool;
    use crate::transport::fake::Fake;

    async fn attendant() -> Attendant {
        let fake = Arc::new(Fake::with(10, 1));
        let pool = Pool::new("m-0".to_owned(), fake.clone(), fake.connected().await);
        Attendant::new(pool.shell(None).await.unwrap())
    }

    async fn run(attendant: Attendant, script: &str) -> (Answer, Option<Attendant>) {
        attendant.run(&Line::new(script, &["it's"]).unwrap()).await.unwrap()
    }

    /// Says all that a script can change for itself.
    const STATE: &str = "echo \"$1|$LEFT|$PWD|$(umask)|$-|$(set | grep -c _then)\"; trap; cat";

    /// Scripts: whether one succeeds, what it says, and why it fails.
    const SCRIPTS: [(&str, bool, &str, &str); 10] = [
        ("export LEFT=1; cd /; umask 077; set -u; trap 'echo trapped' EXIT", true, "trapped\n", ""),
        ("printf unended; printf why >&2; exit 3", false, "unended", "why"),
        ("echo said; exec >&- 2>&-", true, "said\n", ""),
        ("printf said; kill -9 $$", false, "said", ""),
        ("printf said; kill -9 $$ 2>/dev/null; echo more", false, "said", ""),
        ("printf '\\036tsunami-0 0 next\\n'", true, "\u{1e}tsunami-0 0 next\n", ""),
        ("if then", false, "", "*"),
        ("exec sleep 0", true, "", ""),
        ("setsid sleep 1000 >/dev/null 2>&1 & kill $!", true, "", ""),
        ("head -c 200000 /dev/zero | tr '\\0' x | wc -c", true, "200000\n", ""),
    ];

    /// Has one attendant run all scripts; `None` where it was in doubt and has ended.
    async fn run_all() -> Option<()> {
        let (Answer::Ended { stdout: before, .. }, mut kept) = run(attendant().await, STATE).await else {
            panic!("it says nothing")
        };
        for (script, succeeds, said, why) in SCRIPTS {
            let (Answer::Ended { succeeded, stdout, stderr }, next) = run(kept?, script).await else {
                panic!("{script}")
            };
            let stdout = String::from_utf8_lossy(&stdout);
            assert_eq!((succeeded, stdout.trim_start()), (succeeds, said), "{script}");
            assert!(why == "*" || String::from_utf8_lossy(&stderr) == why, "{script}");
            kept = next;
        }
        let (Answer::Ended { stdout: after, .. }, _) = run(kept?, STATE).await else { panic!("nor now") };
        assert_eq!(String::from_utf8_lossy(&after), String::from_utf8_lossy(&before));
        Some(())
    }

    /// An ordinary user can't look into what somebody else starts on this computer meanwhile: then it is tried again.
    #[tokio::test]
    async fn nothing_of_a_script_reaches_the_next() {
        for _ in 0..50 {
            if run_all().await.is_some() {
                return;
            }
        }
        panic!("no attendant runs them all");
    }

    #[test]
    fn a_long_script_is_read_with_and_without_a_dd_that_reads_all_of_it() {
        let tools = tempfile::tempdir().unwrap();
        let dd = tools.path().join("dd");
        fs::write(&dd, "#!/bin/sh\nexit 1\n").unwrap();
        fs::set_permissions(&dd, fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::var("PATH").unwrap();
        let without = format!("{}:{path}", tools.path().display());
        let line = format!(": {}; echo \"said ${{#2}}\"", "x".repeat(20_000));
        let told = |first: &str| {
            let words = ["y".repeat(10_000), "mark".to_owned(), format!("'{first}'")];
            shell::long_line(&shell::script_line(SCRIPT, &words).unwrap())
        };
        let read = [&*told(""), format!("mark\n{}\n{line}\n", line.len() + 1).as_bytes()].concat();
        let ways = [(&path, told(&line)), (&path, read.clone()), (&without, told(&line)), (&without, read)];
        for shell in [["dash", "-c"].as_slice(), &["bash", "--posix", "-c"], &["busybox", "sh", "-c"]] {
            for (path, lines) in &ways {
                let mut attendant = Command::new(shell[0]);
                attendant.args(&shell[1..]).arg("IFS= read -r _line && eval \"$_line\"").env("PATH", path);
                let piped =
                    attendant.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
                let Ok(mut attendant) = piped else { continue };
                // It comes in pieces, as it does over a network.
                let mut stdin = attendant.stdin.take().unwrap();
                for piece in lines.chunks(9000) {
                    stdin.write_all(piece).unwrap();
                    std::thread::sleep(Duration::from_millis(20));
                }
                drop(stdin);
                let said = String::from_utf8(attendant.wait_with_output().unwrap().stdout).unwrap();
                assert!(said.starts_with("marksaid 10000\nmark0 "), "{shell:?} {path}: {said}");
            }
        }
    }

    /// Has one attendant run scripts that want the watchdog's; `None` where it was in doubt and has ended.
    async fn hand_on(is_told_before: bool) -> Option<()> {
        let line = Line::new("printf %s \"$2\"", &["it's", watchdog::script()]).unwrap();
        let mut attendant = attendant().await;
        if is_told_before {
            attendant = run(attendant, "").await.1?;
        }
        for nth in 0..2 {
            let sent = attendant.lines(&line, "").unwrap().len();
            assert_eq!(sent < 1000, nth > 0 && !is_told_before, "{sent}");
            let (Answer::Ended { stdout, .. }, next) = attendant.run(&line).await.unwrap() else {
                panic!("{nth}")
            };
            assert_eq!(String::from_utf8_lossy(&stdout), watchdog::script());
            attendant = next?;
        }
        Some(())
    }

    #[tokio::test]
    async fn the_watchdogs_script_is_sent_once_and_reaches_every_script_that_wants_it() {
        for is_told_before in [false, true] {
            let mut tries = 0..50;
            while hand_on(is_told_before).await.is_none() {
                tries.next().expect("an attendant that runs them all");
            }
        }
    }

    #[tokio::test]
    async fn the_first_script_may_be_longer_than_a_variable() {
        let script = format!("printf %s '{}' | wc -c", "x".repeat(200_000));
        let (Answer::Ended { stdout, .. }, _) = run(attendant().await, &script).await else {
            panic!("it says nothing")
        };
        assert_eq!(String::from_utf8_lossy(&stdout).trim(), "200000");
    }

    #[tokio::test]
    async fn what_holds_a_scripts_outputs_is_waited_for_and_nothing_else_runs_there() {
        for script in ["echo 1; (sleep 0.5; echo 2) &", "echo 1 >&2; (sleep 0.5; echo 2 >&2) >/dev/null &"] {
            let (Answer::Ended { succeeded: true, stdout, stderr }, None) =
                run(attendant().await, script).await
            else {
                panic!("{script}")
            };
            assert_eq!([stdout, stderr].concat(), b"1\n2\n", "{script}");
        }
    }

    #[tokio::test]
    async fn a_script_that_has_not_begun_is_told_from_one_whose_end_nobody_saw() {
        for (script, begins) in [("kill -9 $PPID", true), ("", false)] {
            let mut attendant = attendant().await;
            if !begins {
                let _ = attendant.shell.feed.write_all(b"exit\n");
                attendant.is_told = true;
            }
            let (Answer::Cut { has_begun, .. }, None) = run(attendant, script).await else {
                panic!("{script}")
            };
            assert_eq!(has_begun, begins);
        }
    }

    #[tokio::test]
    async fn what_floods_is_an_error() {
        let line = Line::new("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxx; done", &[""; 0]).unwrap();
        assert!(attendant().await.run(&line).await.is_err());
    }

    #[test]
    fn an_answer_is_read_however_it_is_cut() {
        let (mark, stream) = (b"\x1em ", b"noise\x1e\x1em out\x1ex\n\x1em 0 next\n".as_slice());
        for size in 1..=stream.len() {
            let mut heard = Heard::default();
            stream.chunks(size).for_each(|chunk| heard.take(chunk, mark).unwrap());
            let end = Some(End { succeeded: true, goes_on: true });
            assert_eq!((heard.bytes.as_slice(), heard.end), (b"out\x1ex\n".as_slice(), end), "{size}");
        }
    }
}
