//! A place for one test: its own state, results and temporary files, and eyes for what is left behind.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) struct World {
    root: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let root = tempfile::Builder::new().prefix("e2e-").tempdir().unwrap();
        for name in ["state", "tmp", "work"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        Self { root }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Writes a file into the working directory.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path("work").join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// A command line of the binary, in the working directory.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.program(&binary());
        command.args(args);
        command
    }

    /// A script for the shell, in which `"$@"` is the binary with these arguments.
    pub(crate) fn shell<S: AsRef<OsStr>>(&self, script: &str, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.program(OsStr::new("bash"));
        command.args(["-c", script, "bash"]).arg(binary()).args(args);
        command
    }

    /// A program in the working directory, with the state and the temporary files of this place.
    pub(crate) fn program(&self, program: &OsStr) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.path("work")).stdin(Stdio::null());
        command.env("XDG_STATE_HOME", self.path("state")).env("TMPDIR", self.path("tmp"));
        command.env_remove("XDG_RUNTIME_DIR").env_remove("TSUNAMI_RUN_ID").env_remove("NO_COLOR");
        command
    }

    pub(crate) fn tsunami<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ended {
        Ended::from(self.command(args).output().unwrap())
    }

    /// Whether the binary has EC2. The tests themselves may be built otherwise than the binary that they are given.
    pub(crate) fn has_ec2(&self) -> bool {
        let file = self.write("ec2.toml", "name = 'x'\nprovider = 'aws'\n[group.a]\n");
        let refused = self.tsunami([OsStr::new("plan"), file.as_os_str()]);
        fs::remove_file(&file).unwrap();
        !refused.assert_status(2).stderr.contains("built without the provider \"aws\"")
    }

    /// Starts `run --json FILE` and reads its events as they come.
    pub(crate) fn start(&self, file: &Path) -> Going {
        Going::of(self.command([OsStr::new("run"), OsStr::new("--json"), file.as_os_str()]))
    }

    /// The only results directory there is.
    pub(crate) fn results(&self) -> PathBuf {
        let mut path = self.path("work/results");
        for _ in 0..2 {
            let entries = fs::read_dir(&path).unwrap().map(Result::unwrap);
            let directories = entries.filter(|entry| entry.file_type().unwrap().is_dir());
            let entries: Vec<_> = directories.map(|entry| entry.path()).collect();
            assert_eq!(entries.len(), 1, "{entries:?}");
            path = entries[0].clone();
        }
        path
    }

    /// The runs that are recorded. A name that begins with a dot is a record that was never finished.
    pub(crate) fn runs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("state/tsunami/runs")).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with('.')).collect()
    }

    /// Every process on this system that has to do with this test: its command line or its environment names
    /// the test's directory.
    pub(crate) fn processes(&self) -> Vec<String> {
        let name = self.root.path().as_os_str().as_encoded_bytes();
        let mentions = |bytes: &[u8]| bytes.windows(name.len()).any(|window| window == name);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let file = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
            let (command, environment) = (file("cmdline"), file("environ"));
            if mentions(&command) || mentions(&environment) {
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                found.push(format!("{} {command}", entry.file_name().to_string_lossy()));
            }
        }
        found
    }

    /// Nothing is left: no process, no record, no temporary file, no machine's home.
    pub(crate) fn assert_clean(&self) {
        self.assert_no_processes();
        assert_eq!(self.runs(), Vec::<String>::new());
        let left: Vec<_> = fs::read_dir(self.path("tmp")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    pub(crate) fn assert_no_processes(&self) {
        eventually("no process is left", || {
            let left = self.processes();
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
        });
    }
}

pub(crate) fn binary() -> OsString {
    std::env::var_os("TSUNAMI_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_tsunami").into())
}

impl Drop for World {
    /// A test that failed must not leave machines to the others.
    fn drop(&mut self) {
        if !self.runs().is_empty() {
            self.tsunami(["down", "--all"]);
        }
    }
}

/// Waits for something that takes a moment.
pub(crate) fn eventually(what: &str, mut check: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while let Err(seen) = check() {
        assert!(Instant::now() < deadline, "not so: {what}\n{seen}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A run that is going on.
pub(crate) struct Going {
    child: Child,
    events: BufReader<ChildStdout>,
    stderr: ChildStderr,
}

impl Going {
    /// Starts a command that prints events.
    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (events, stderr) = (BufReader::new(child.stdout.take().unwrap()), child.stderr.take().unwrap());
        Self { child, events, stderr }
    }

    /// Waits for an event whose JSON has all of these parts.
    pub(crate) fn wait_for(&mut self, parts: &[&str]) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            if self.events.read_line(&mut line).unwrap() == 0 {
                let mut stderr = String::new();
                self.stderr.read_to_string(&mut stderr).unwrap();
                panic!("the run ended before {parts:?}:\n{stderr}");
            }
            if parts.iter().all(|part| line.contains(part)) {
                return line;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The rest of it.
    pub(crate) fn end(mut self) -> Ended {
        let events = std::thread::spawn(move || {
            let mut rest = String::new();
            self.events.read_to_string(&mut rest).map(|_| rest)
        });
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr).unwrap();
        let status = self.child.wait().unwrap();
        let stdout = events.join().unwrap().unwrap();
        Ended { status: status.code(), stdout, stderr }
    }
}

/// How the binary ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None` after a signal.
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ended {
    #[track_caller]
    pub(crate) fn assert_status(&self, status: i32) -> &Self {
        assert_eq!(self.status, Some(status), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard error has all of these parts.
    #[track_caller]
    pub(crate) fn assert_says(&self, parts: &[&str]) -> &Self {
        for part in parts {
            assert!(self.stderr.contains(part), "no `{part}` in:\n{}", self.stderr);
        }
        self
    }

    /// Looks at standard output, whose lines may break between any two words: where, depends on how long paths are.
    #[track_caller]
    pub(crate) fn assert_shows(&self, parts: &[&str]) -> &Self {
        let words = self.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(words.contains(part), "no `{part}` in:\n{}", self.stdout);
        }
        self
    }
}

/// The checks of an answer of `doctor`'s in JSON, which is all that standard output holds, by their names.
#[track_caller]
pub(crate) fn checks(ended: &Ended) -> Vec<Value> {
    let answer: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    assert_eq!((&answer["schema"], &answer["status"]), (&1.into(), &ended.status.into()), "{answer}");
    answer["checks"].as_array().unwrap().clone()
}

/// What was found out about one thing: the result, the words, and the fix.
#[track_caller]
pub(crate) fn of<'a>(checks: &'a [Value], name: &str) -> [&'a str; 3] {
    let check = checks.iter().find(|check| check["check"] == name);
    let check = check.unwrap_or_else(|| panic!("nothing of {name} in {checks:#?}"));
    ["result", "found", "fix"].map(|key| check[key].as_str().unwrap_or_default())
}

/// A file of the experiments that people are shown.
pub(crate) fn example(name: &str) -> PathBuf {
    let examples = std::env::var_os("TSUNAMI_EXAMPLES").map(PathBuf::from);
    let examples =
        examples.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")));
    examples.join("experiments").join(name)
}
