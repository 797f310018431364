//! What machines do, once a second.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use tokio::task::spawn_blocking;

use super::TICKS;
use crate::cluster::{Host, OutputWatcher, Process};
use crate::error::{Error, in_time};
use crate::limits::UNWRITTEN_TRACES_LIMIT;
use crate::outcome::gravest;
use crate::session::Stream;
use crate::text::Lines;
use crate::trial::own_script;

const SCRIPT: &str = include_str!("trace.sh");

/// What errors call that.
const TRACING: &str = "the trace of what the machine does";

/// The columns of a trace, as its first line has them. A line is about the time since the one before it.
///
/// | column | is |
/// |---|---|
/// | `time` | its end: seconds since 1970, by the clock of the computer that does the run |
/// | `cpu` | processors that were busy, from 0 to as many as there are |
/// | `steal` | processors that a hypervisor gave to others |
/// | `memory` | bytes in use at its end, without what could be had back at once |
/// | `received`, `sent` | bytes a second, over all interfaces but the loopback |
/// | `read`, `written` | bytes a second, from and to the disks |
pub const TRACE_COLUMNS: [&str; 8] =
    ["time", "cpu", "steal", "memory", "received", "sent", "read", "written"];

/// How many lines a trace has a second each, how many more of two seconds each, of four, and so on: a day takes 1 MB.
const LINES_OF_A_KIND: u64 = 3600;

/// Notes what machines do, once a second, in a file for each: `<machine>.csv`, with [`TRACE_COLUMNS`]. A long trace gets
/// coarser towards its end, so that a day takes a megabyte.
///
/// On each machine one small process does it, which takes about two thousandths of a processor; where several are known to
/// share a computer, which is what this is about, the first of them does it for all. It is one of the run's,
/// and ends with it if nobody ends it before; dropping this begins to end all of them and returns at once. The trace of a
/// machine that is lost or taken back ends there. One that goes on under the same name, by other traces that are started,
/// goes on in the same file.
#[derive(Debug)]
#[must_use = "dropping it ends the traces"]
pub struct Traces {
    processes: Vec<(Host, Process)>,
    pieces: SyncSender<Option<Piece>>,
    writer: io::Result<JoinHandle<io::Result<()>>>,
}

impl Traces {
    /// Begins, on all of these machines at once. The directory is made if need be. Which machines share a computer is known
    /// once [`fingerprint`](super::fingerprint) or an [`Accounting`](super::Accounting) has looked at them.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(hosts: &[Host], directory: impl Into<PathBuf>) -> Self {
        let (pieces, receiver) = sync_channel(UNWRITTEN_TRACES_LIMIT);
        let mut computers: Vec<(&Host, Vec<String>)> = Vec::new();
        for host in hosts {
            let boot = host.boot().get();
            match computers.iter_mut().find(|(first, _)| boot.is_some() && first.boot().get() == boot) {
                Some((_, names)) => names.push(host.name().to_owned()),
                None => computers.push((host, vec![host.name().to_owned()])),
            }
        }
        let (hosts, names): (Vec<_>, Vec<_>) = computers.into_iter().unzip();
        let directory = directory.into();
        let writer =
            Builder::new().name("traces".to_owned()).spawn(move || write(&directory, names, &receiver));
        let start = |(place, host): (usize, &Host)| {
            let to = Arc::new(Forwarder { place, host: host.clone(), pieces: pieces.clone() });
            let command = host.stage("trace").command(own_script("trace", SCRIPT));
            (host.clone(), command.called(TRACING).unobserved().watched_by(to).start())
        };
        Self { processes: hosts.into_iter().enumerate().map(start).collect(), pieces, writer }
    }

    /// Ends all of them. They are confirmed gone, and what they said is written, once this returns.
    ///
    /// # Errors
    ///
    /// The gravest of what went wrong: a trace that could not be begun, or did not end, or could not be written. That a
    /// machine was lost or taken back is none.
    pub async fn stop(self) -> Result<(), Error> {
        let Self { processes, pieces, writer } = self;
        let stops = processes.into_iter().map(async |(host, process)| match process.stop().await {
            Ok(Some(output)) if !output.exit.success() => {
                Err(host.stage("trace").error(format!("{TRACING} ended with {}", output.exit)))
            }
            Ok(_) | Err(Error::Lost { .. } | Error::Interrupted { .. }) => Ok(()),
            Err(error) => Err(error),
        });
        let mut errors: Vec<Error> = in_time(stops).await.into_iter().filter_map(Result::err).collect();
        let written = spawn_blocking(move || {
            // If nobody takes it, the writer has failed, and says why.
            let _ = pieces.send(None);
            writer?.join().unwrap_or_else(|_| Err(io::Error::other("what writes the traces panicked")))
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => errors.push(Error::other(error)),
            Err(error) => errors.push(Error::other(error)),
        }
        gravest(errors).map_or(Ok(()), Err)
    }
}

/// What a computer wrote, and when it came.
type Piece = (usize, SystemTime, Vec<u8>);

/// Hands on what one computer writes.
#[derive(Debug)]
struct Forwarder {
    place: usize,
    host: Host,
    pieces: SyncSender<Option<Piece>>,
}

impl OutputWatcher for Forwarder {
    fn look(&self, stream: Stream, bytes: &[u8]) {
        if stream == Stream::Stdout {
            let _ = self.pieces.try_send(Some((self.place, self.host.now(), bytes.to_vec())));
        }
    }

    fn takes_all(&self) -> bool {
        true
    }
}

/// Writes what comes of computers with these machines, until the end is sent or nobody sends any more. What can't be written
/// of one machine keeps no other from it.
fn write(directory: &Path, names: Vec<Vec<String>>, pieces: &Receiver<Option<Piece>>) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let file_of = |name: &String| (directory.join(format!("{name}.csv")), None);
    let trace = |names: &Vec<String>| {
        let files: Vec<(PathBuf, Option<File>)> = names.iter().map(file_of).collect();
        (Lines::default(), Trace::default(), files)
    };
    let mut traces: Vec<_> = names.iter().map(trace).collect();
    let mut error = None;
    for (place, at, bytes) in pieces.iter().map_while(|piece| piece) {
        let (lines, trace, files) = &mut traces[place];
        let mut text = String::new();
        lines.push(&bytes, |line| text.extend(trace.line(at, &String::from_utf8_lossy(line))));
        if text.is_empty() {
            continue;
        }
        for (path, file) in files {
            let written = match file {
                Some(file) => file.write_all(text.as_bytes()),
                None => open(path).and_then(|mut opened| {
                    opened.write_all(text.as_bytes())?;
                    *file = Some(opened);
                    Ok(())
                }),
            };
            error = error.or(written.err());
        }
    }
    error.map_or(Ok(()), Err)
}

/// Opens a trace to write at its end. A new one has its first line.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let mut file = OpenOptions::new().append(true).create(true).mode(0o644).custom_flags(flags).open(path)?;
    if file.metadata()?.len() == 0 {
        writeln!(file, "{}", TRACE_COLUMNS.join(","))?;
    }
    Ok(file)
}

/// Makes lines of a trace of what the machine says.
#[derive(Debug, Default)]
struct Trace {
    /// When what moment of the machine's was.
    origin: Option<(SystemTime, f64)>,
    last: Option<[f64; 8]>,
    /// How often it has said something.
    samples: u64,
    lines: u64,
}

impl Trace {
    /// The line that this makes, if any: what is said first only begins it, and later on not all makes one.
    fn line(&mut self, at: SystemTime, said: &str) -> Option<String> {
        let sample = numbers(said)?;
        let [uptime, busy, steal, memory, rates @ ..] = sample;
        let (began, beginning) = *self.origin.get_or_insert((at, uptime));
        let Some(last) = self.last else {
            self.last = Some(sample);
            return None;
        };
        let seconds = uptime - last[0];
        if seconds <= 0.0 {
            return None;
        }
        self.samples += 1;
        if !self.samples.is_multiple_of(1 << (self.lines / LINES_OF_A_KIND).min(32)) {
            return None;
        }
        self.last = Some(sample);
        self.lines += 1;
        let rate = |now: f64, before: f64, unit: f64| ((now - before) * unit / seconds).max(0.0);
        let time = began.checked_add(Duration::try_from_secs_f64(uptime - beginning).ok()?)?;
        let time = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let (cpu, steal) = (rate(busy, last[1], 1.0 / TICKS), rate(steal, last[2], 1.0 / TICKS));
        let mut line = format!("{time:.3},{cpu:.2},{steal:.2},{:.0}", memory * 1024.0);
        for (place, now) in rates.into_iter().enumerate() {
            let unit = if place < 2 { 1.0 } else { 512.0 };
            line.push_str(&format!(",{:.0}", rate(now, last[place + 4], unit)));
        }
        line.push('\n');
        Some(line)
    }
}

/// The eight numbers of a line, if it is one.
fn numbers(said: &str) -> Option<[f64; 8]> {
    let words: Vec<f64> = said
        .split(' ')
        .take(9)
        .map_while(|word| word.parse().ok().filter(|number: &f64| (0.0..1e18).contains(number)))
        .collect();
    words.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::super::tests::SHELLS;
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn every_shell_tells_numbers_in_any_language_until_it_is_ended() {
        for shell in SHELLS {
            let mut command = Command::new(shell[0]);
            command
                .args(&shell[1..])
                .args(["-c", &crate::compact_script(SCRIPT)])
                .env("LC_ALL", "de_DE.UTF-8");
            let mut child = command.stdout(Stdio::piped()).process_group(0).spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let said: Vec<String> = lines.take(2).collect::<Result<_, _>>().unwrap();
            let group = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process_group(group, rustix::process::Signal::TERM).unwrap();
            child.wait().unwrap();
            let [first, second] = [0, 1].map(|place| numbers(&said[place]).unwrap());
            assert!(second[0] > first[0] && second[1] > first[1] && second[3] > 0.0, "{shell:?}: {said:?}");
        }
    }

    #[test]
    fn lines_are_rates_by_the_clock_of_the_run() {
        let mut trace = Trace::default();
        assert_eq!(trace.line(at(1000), "50.00 100 5 4 1000 2000 10 20"), None);
        // It came late.
        let line = trace.line(at(1009), "52.00 300 7 8 3000 2000 12 28").unwrap();
        assert_eq!(line, "1002.000,1.00,0.01,8192,1000,0,512,2048\n");
        assert_eq!(line.split(',').count(), TRACE_COLUMNS.len());
    }

    #[test]
    fn what_a_machine_says_is_numbers_or_nothing_and_no_more_than_a_long_trace_holds() {
        let mut trace = Trace::default();
        for hostile in
            ["", "1 2 3", "1 2 3 4 5 6 7 8 9", "1 2 3 4 5 6 7 nan", "1 2 3 4 5 6 7 1e300", "-1 2 3 4 5 6 7 8"]
        {
            assert_eq!(trace.line(at(0), hostile), None, "{hostile}");
        }
        let mut count = 0;
        for second in 0..200_000 {
            count += u32::from(trace.line(at(0), &format!("{second} 0 0 0 0 0 0 0")).is_some());
            assert_eq!(trace.line(at(0), "0 9 9 9 9 9 9 9"), None, "time goes one way");
        }
        // The first hour in seconds, the next two in twos, the next four in fours, and so on.
        assert!((18_000..22_000).contains(&count), "{count} lines");
    }

    #[test]
    fn a_trace_goes_on_in_its_file_and_through_no_link() {
        let directory = tempfile::tempdir().unwrap();
        let trace = |name: &str| {
            let (sender, receiver) = sync_channel(10);
            let said = ["1 0 0 0 0 0 0 0\n2 0 0 ", "0 0 0 0 0\n3 100 0 0 0 0 0 0\n"];
            for piece in said {
                sender.send(Some((0, at(10), piece.as_bytes().to_vec()))).unwrap();
            }
            drop(sender);
            write(directory.path(), vec![vec![name.to_owned(), "c-0".to_owned()]], &receiver)
        };
        trace("a-0").unwrap();
        trace("a-0").unwrap();
        let text = std::fs::read_to_string(directory.path().join("a-0.csv")).unwrap();
        let rows = "11.000,0.00,0.00,0,0,0,0,0\n12.000,1.00,0.00,0,0,0,0,0\n";
        assert_eq!(text, format!("{}\n{rows}{rows}", TRACE_COLUMNS.join(",")));
        // A machine that shares the computer has the same.
        assert_eq!(std::fs::read_to_string(directory.path().join("c-0.csv")).unwrap(), text);
        std::os::unix::fs::symlink("outside", directory.path().join("b-0.csv")).unwrap();
        trace("b-0").unwrap_err();
        assert!(!directory.path().join("outside").exists());
    }
}
