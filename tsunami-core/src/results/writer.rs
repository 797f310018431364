//! Writing on a thread of its own: a disk or a network that is slow holds up no task of the run.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::ResultsFile;
use crate::limits::UNWRITTEN_LIMIT;
use crate::{Event, MachineId, Observer, Origin, Stream};

/// What is written to.
pub(super) type Files = Vec<Arc<dyn ResultsFile>>;

/// Has events and output written in the order in which they come. Where too much waits to be written, whoever brings
/// more waits too.
///
/// What can't be written refuses the output that comes after it. Dropping this waits until all is written.
pub(super) struct Writer {
    files: Files,
    /// `None` only while this is dropped.
    queue: Option<SyncSender<Item>>,
    thread: Option<JoinHandle<()>>,
}

enum Item {
    Event(Event),
    Output {
        machine: String,
        id: Option<MachineId>,
        stage: String,
        command_id: u64,
        stream: Stream,
        bytes: Vec<u8>,
    },
    /// Is dropped once all that came before it is written.
    Settled(#[expect(dead_code, reason = "only its end is of use")] SyncSender<()>),
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(files: Files) -> io::Result<Self> {
        let (queue, items) = sync_channel(UNWRITTEN_LIMIT);
        let written = files.clone();
        let thread = thread::Builder::new().name("results".to_owned());
        let thread = thread.spawn(move || write(&items, &written))?;
        Ok(Self { files, queue: Some(queue), thread: Some(thread) })
    }

    /// What is written to. All that was observed is in them once it is [settled](Self::settle).
    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    /// Waits until all that came before is written, for this long if it is said. Returns whether it is.
    pub(super) fn settle(&self, timeout: Option<Duration>) -> bool {
        let (settled, written) = sync_channel::<()>(0);
        match timeout {
            None => {
                // Nothing ever comes; it is over when the other end is dropped.
                self.send(Item::Settled(settled)).is_ok() && written.recv().is_err()
            }
            Some(timeout) => {
                // Whoever is in a hurry does not wait for room either.
                let queue = self.queue.as_ref();
                let is_queued = queue.is_some_and(|queue| queue.try_send(Item::Settled(settled)).is_ok());
                is_queued && written.recv_timeout(timeout) == Err(RecvTimeoutError::Disconnected)
            }
        }
    }

    /// Why nothing more is written, if the thread has ended: a panic there must not pass for silence.
    pub(super) fn error(&self) -> Option<io::Error> {
        self.send(Item::Settled(sync_channel(0).0)).err()
    }

    fn send(&self, item: Item) -> io::Result<()> {
        let sent = self.queue.as_ref().is_some_and(|queue| queue.send(item).is_ok());
        if sent { Ok(()) } else { Err(io::Error::other("what writes the results has panicked")) }
    }
}

fn write(items: &Receiver<Item>, files: &Files) {
    for item in items {
        match item {
            Item::Event(event) => files.iter().for_each(|file| file.event(&event)),
            Item::Output { machine, id, stage, command_id, stream, bytes } => {
                let origin = Origin::new(&machine, &stage).command(id.as_ref(), command_id);
                for file in files {
                    // The file keeps it, and refuses with it what comes next.
                    let _ = file.output(&origin, stream, &bytes);
                }
            }
            Item::Settled(_) => {}
        }
    }
}

impl Observer for Writer {
    fn event(&self, event: &Event) {
        // Told with the next output, and at the end.
        let _ = self.send(Item::Event(event.clone()));
    }

    fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        self.files.iter().try_for_each(|file| file.check(origin))?;
        self.send(Item::Output {
            machine: origin.machine.to_owned(),
            id: origin.id.cloned(),
            stage: origin.stage.to_owned(),
            command_id: origin.command_id,
            stream,
            bytes: bytes.to_owned(),
        })
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::Path;
    use std::sync::mpsc::Sender;

    use super::*;
    use crate::results::tests::{Shared, at, finished, started};
    use crate::results::{Json, Logs};
    use crate::{EventKind, Exit};

    /// A disk that writes when it is told to.
    struct Slow(Receiver<()>, Shared);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow(logs: &Path) -> (Writer, Sender<()>, Shared) {
        let (go_on, told) = std::sync::mpsc::channel();
        let written = Shared::default();
        let events = Json::new(Box::new(Slow(told, written.clone())));
        let files: Files = vec![Arc::new(events), Arc::new(Logs::new(logs.into()))];
        (Writer::start(files).unwrap(), go_on, written)
    }

    fn torn_down() -> EventKind {
        EventKind::TornDown { leftovers: Vec::new(), took: Duration::from_secs(1) }
    }

    #[test]
    fn a_disk_that_is_slow_holds_up_nobody_and_nothing_is_lost() {
        let home = tempfile::tempdir().unwrap();
        let (writer, go_on, written) = slow(home.path());
        let origin = Origin::new("client-0", "setup");
        writer.event(&at(0.0, started("client-0", "setup", "make")));
        for line in 0..100 {
            writer.output(&origin, Stream::Stdout, format!("{line}\n").as_bytes()).unwrap();
        }
        writer.event(&at(1.0, finished("client-0", "setup", "make", Ok(Exit::Status(0)))));
        writer.event(&at(2.0, torn_down()));
        assert!(!writer.settle(Some(Duration::from_millis(50))), "nothing is written yet");
        assert_eq!(written.text(), "");
        drop(go_on);
        drop(writer);
        assert_eq!(crate::read_events(written.text().as_bytes()).unwrap().len(), 3);
        let lines: String = (0..100).map(|line| format!("{line}\n")).collect();
        let log = fs::read_to_string(home.path().join("client-0/setup.log")).unwrap();
        assert_eq!(log, format!("$ make\n{lines}# status 0 after 1.2 s\n"));
    }

    #[test]
    fn more_waits_where_too_much_is_unwritten_already() {
        let home = tempfile::tempdir().unwrap();
        let (writer, go_on, _) = slow(home.path());
        let sent = std::sync::atomic::AtomicUsize::new(0);
        let count = || sent.load(std::sync::atomic::Ordering::Relaxed);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..2 * UNWRITTEN_LIMIT {
                    writer.event(&at(0.0, torn_down()));
                    sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
            while count() < UNWRITTEN_LIMIT {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(50));
            assert!(count() <= UNWRITTEN_LIMIT + 1, "{} are held", count());
            drop(go_on);
        });
        assert!(writer.settle(None));
        assert_eq!(count(), 2 * UNWRITTEN_LIMIT);
    }

    #[test]
    fn a_panic_of_what_writes_is_told() {
        struct Panics;
        impl Write for Panics {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                panic!("as a test")
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let home = tempfile::tempdir().unwrap();
        let logs = Arc::new(Logs::new(home.path().into()));
        let writer = Writer::start(vec![Arc::new(Json::new(Box::new(Panics))), logs]).unwrap();
        assert!(writer.settle(None) && writer.error().is_none());
        writer.event(&at(0.0, torn_down()));
        writer.settle(None);
        assert!(writer.error().is_some());
        writer.output(&Origin::new("client-0", "setup"), Stream::Stdout, b"x").unwrap_err();
    }

    #[test]
    fn what_was_not_written_refuses_the_next_output_and_a_bad_name_only_its_own() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("client-0"), "in the way").unwrap();
        let (writer, go_on, _) = slow(home.path());
        drop(go_on);
        let put = |machine, stage| writer.output(&Origin::new(machine, stage), Stream::Stdout, b"x");
        assert_eq!(put("client-1", "a/b").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        put("client-1", "setup").unwrap();
        put("client-0", "setup").unwrap();
        assert!(writer.settle(None));
        assert!(put("client-1", "setup").unwrap_err().to_string().contains("client-0/setup.log"));
    }
}
