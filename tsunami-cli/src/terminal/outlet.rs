//! A way out that nobody can block: a thread of its own writes, and whoever has something to say leaves it there.
//!
//! A pipe that nobody reads and a terminal that somebody has stopped take nothing for as long as that lasts. No run,
//! no teardown and no signal may wait for them.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that are written at once, after which somebody is known to read.
const PIECE: usize = 4096;

/// Bytes of what goes on that may wait for a reader, before more of it is left out.
pub(super) const PROGRESS_LIMIT: usize = 256 << 10;

/// Bytes of all display that may wait: errors and last words have room although progress has none.
const DISPLAY_LIMIT: usize = 1 << 20;

/// Bytes of a stream for programs that may wait: some ten thousand events.
const STREAM_LIMIT: usize = 8 << 20;

/// How long a reader that stands still is waited for once somebody is in a hurry.
const HASTE_TIMEOUT: Duration = Duration::from_secs(1);

/// A stream that a thread writes to.
pub(crate) struct Outlet {
    state: Mutex<State>,
    /// Told whenever the state changes.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// How much the thread is writing at the moment.
    taken: usize,
    /// How many pieces were written.
    pieces: u64,
    /// How many lines were left out since the last that wasn't.
    left_out: usize,
    hurried: bool,
    /// A stream has ended for want of room. What came before is written all the same.
    overflowed: bool,
    /// What ended the writing.
    error: Option<(ErrorKind, String)>,
}

impl Outlet {
    pub(crate) fn new(mut writer: impl Write + Send + 'static) -> Arc<Self> {
        let outlet = Arc::new(Self { state: Mutex::default(), changed: Condvar::new() });
        let mine = outlet.clone();
        let write = move || {
            while let Some(piece) = mine.next() {
                mine.wrote(writer.write_all(&piece).and_then(|()| writer.flush()));
            }
        };
        if let Err(error) = thread::Builder::new().name("outlet".to_owned()).spawn(write) {
            outlet.lock().error = Some((error.kind(), error.to_string()));
        }
        outlet
    }

    /// Leaves lines for people. Never waits: beyond `limit`, or where all display ends, they are left out, which is
    /// said before the next ones.
    pub(crate) fn show(&self, text: &str, limit: usize) {
        let state = &mut *self.lock();
        if state.behind() + text.len() > limit.min(DISPLAY_LIMIT) {
            state.left_out += text.lines().count();
            return;
        }
        state.say_what_was_left_out();
        state.push(text.as_bytes());
        self.changed.notify_all();
    }

    /// The same for errors and last words.
    pub(crate) fn show_all(&self, text: &str) {
        self.show(text, DISPLAY_LIMIT);
    }

    /// Leaves bytes for a program. Never waits: where there is no room for them the stream ends, so that nothing
    /// follows a gap.
    pub(crate) fn stream(&self, bytes: &[u8]) -> io::Result<()> {
        let state = &mut *self.lock();
        state.overflowed |= state.behind() + bytes.len() > STREAM_LIMIT;
        state.error()?;
        state.push(bytes);
        self.changed.notify_all();
        Ok(())
    }

    /// Writes bytes and waits until that is done, as anybody waits for a pager, unless somebody is in a hurry.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<()> {
        {
            let state = &mut *self.lock();
            state.error()?;
            state.push(bytes);
            self.changed.notify_all();
        }
        self.settle(Duration::MAX)
    }

    /// Waits until all is written, for as long as somebody goes on reading: `patience` passes from each piece to the
    /// next.
    pub(crate) fn settle(&self, patience: Duration) -> io::Result<()> {
        let mut state = self.lock();
        state.say_what_was_left_out();
        self.changed.notify_all();
        let (mut seen, mut since) = (state.pieces, Instant::now());
        while state.behind() > 0 && state.error.is_none() {
            if seen != state.pieces {
                (seen, since) = (state.pieces, Instant::now());
            }
            let patience = if state.hurried { patience.min(HASTE_TIMEOUT) } else { patience };
            let Some(left) = patience.checked_sub(since.elapsed()) else {
                return Err(unread());
            };
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.error()
    }

    /// From now on nobody is waited for longer than a moment.
    pub(crate) fn hurry(&self) {
        self.lock().hurried = true;
        self.changed.notify_all();
    }

    /// Whether so much waits that nothing should be added that can do without.
    pub(crate) fn is_behind(&self) -> bool {
        self.lock().behind() > PROGRESS_LIMIT
    }

    /// Counts lines as left out.
    pub(crate) fn leave_out(&self, lines: usize) {
        self.lock().left_out += lines;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next piece for the thread; `None` after an error, which ends it.
    fn next(&self) -> Option<Vec<u8>> {
        let waiting = |state: &mut State| state.waiting.is_empty() && state.error.is_none();
        let state = self.changed.wait_while(self.lock(), waiting);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        // No character is torn.
        let is_within = |at: usize| state.waiting.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
        let size = state.waiting.len().min(PIECE);
        let size = (size.saturating_sub(3)..=size).rev().find(|at| !is_within(*at)).unwrap_or(size);
        state.taken = size;
        let piece = state.waiting.drain(..size).collect();
        (state.error.is_none()).then_some(piece)
    }

    fn wrote(&self, result: io::Result<()>) {
        let state = &mut *self.lock();
        state.taken = 0;
        state.pieces += 1;
        if let Err(error) = result {
            state.waiting.clear();
            state.error = Some((error.kind(), error.to_string()));
        }
        self.changed.notify_all();
    }
}

impl State {
    /// Bytes that are not written yet.
    fn behind(&self) -> usize {
        self.waiting.len() + self.taken
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.error.is_none() {
            self.waiting.extend_from_slice(bytes);
        }
    }

    fn say_what_was_left_out(&mut self) {
        let count = std::mem::take(&mut self.left_out);
        if count > 0 {
            let what = if count == 1 { "1 line is".to_owned() } else { format!("{count} lines are") };
            self.push(format!("{what} not shown: nobody read them in time\n").as_bytes());
        }
    }

    fn error(&self) -> io::Result<()> {
        match &self.error {
            Some((kind, error)) => Err(io::Error::new(*kind, error.clone())),
            None if self.overflowed => Err(unread()),
            None => Ok(()),
        }
    }
}

fn unread() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "nobody reads it")
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("behind", &self.lock().behind()).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A reader that reads when it is told to.
    pub(crate) struct Stopped(Receiver<()>, Sender<Vec<u8>>);

    impl Stopped {
        /// The writer's end, what lets it go on when it is dropped, and what was written.
        pub(crate) fn new() -> (Self, Sender<()>, Receiver<Vec<u8>>) {
            let ((go, stopped), (written, read)) = (channel(), channel());
            (Self(stopped, written), go, read)
        }
    }

    impl Write for Stopped {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn text(read: &Receiver<Vec<u8>>) -> String {
        String::from_utf8(read.try_iter().collect::<Vec<_>>().concat()).unwrap()
    }

    #[test]
    fn what_nobody_reads_is_left_out_and_counted_and_last_words_have_room() {
        let (writer, go, read) = Stopped::new();
        let outlet = Outlet::new(writer);
        let line = "x".repeat(1023) + "\n";
        for _ in 0..1000 {
            outlet.show(&line, PROGRESS_LIMIT);
        }
        assert!(outlet.is_behind() || outlet.lock().behind() == PROGRESS_LIMIT);
        outlet.show_all("error: last words\n");
        assert_eq!(outlet.settle(Duration::ZERO).unwrap_err().kind(), ErrorKind::TimedOut);
        drop(go);
        outlet.settle(Duration::MAX).unwrap();
        let text = text(&read);
        assert_eq!(text.lines().filter(|line| line.starts_with('x')).count(), 256);
        assert!(
            text.ends_with("x\n744 lines are not shown: nobody read them in time\nerror: last words\n"),
            "{}",
            &text[text.len() - 100..]
        );
    }

    #[test]
    fn a_stream_ends_where_it_has_no_room() {
        let (writer, go, read) = Stopped::new();
        let outlet = Outlet::new(writer);
        let event = [b'x'; 1 << 20];
        let taken = (0..100).filter(|_| outlet.stream(&event).is_ok()).count();
        assert_eq!(taken, STREAM_LIMIT >> 20);
        drop(go);
        let error = outlet.settle(Duration::MAX).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::TimedOut, "nobody reads it"));
        assert!(outlet.stream(b"x").is_err());
        assert_eq!(text(&read).len(), STREAM_LIMIT);
    }

    #[test]
    fn haste_ends_the_wait_for_a_reader() {
        let (writer, _go, _read) = Stopped::new();
        let outlet = Outlet::new(writer);
        let other = outlet.clone();
        let waiting = thread::spawn(move || other.write(b"data"));
        outlet.hurry();
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn an_error_ends_it_and_is_told_to_whoever_writes() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let outlet = Outlet::new(Full);
        assert_eq!(outlet.write(b"x").unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(outlet.stream(b"x").unwrap_err().kind(), ErrorKind::StorageFull);
        outlet.show_all("nobody hears it\n");
        assert!(outlet.settle(Duration::ZERO).is_err());
    }
}
