//! The one door to the terminal.
//!
//! What is shown comes from everywhere: from machines, services, files and names that others chose. A terminal acts
//! on some of it, and a line that somebody else began may read like one of ours. Everything that this program says
//! is therefore a [`Message`], which takes text only after cleaning it, keeps it in the line it was meant for, and
//! adds colours itself. That nobody reads what is written is no reason to fail, nor to wait: an [`Outlet`] each writes
//! to standard output and standard error.

mod ascii;
mod outlet;
mod wrap;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use rustix::termios::tcgetwinsize;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::sleep;
use tracing_subscriber::fmt::MakeWriter;
use tsunami_core::Stream;
use tsunami_core::text::{sanitize, sanitize_bytes};
use unicode_width::UnicodeWidthChar;

use crate::error::Error;

use ascii::{Ascii, has_unicode};
pub(crate) use outlet::Outlet;
use outlet::PROGRESS_LIMIT;
#[cfg(test)]
pub(crate) use outlet::tests::Stopped;

/// How long the program waits at its end for a reader that stands still.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long what was said may take to appear before data that belongs below it.
const ORDER_TIMEOUT: Duration = Duration::from_millis(100);

static STDOUT: LazyLock<Arc<Outlet>> = LazyLock::new(|| outlet_of(io::stdout()));
static STDERR: LazyLock<Arc<Outlet>> = LazyLock::new(|| outlet_of(io::stderr()));

fn outlet_of(stream: impl IsTerminal + Write + Send + 'static) -> Arc<Outlet> {
    match stream.is_terminal() && !has_unicode(|name| std::env::var(name).ok()) {
        true => Outlet::new(Ascii(stream)),
        false => Outlet::new(stream),
    }
}

/// How far a line is set in that goes on with the text of the line before.
const CONTINUED: usize = 4;

/// How many bytes of lines that are passed on come out together.
const PASSED_ON: usize = 64 << 10;

/// Terminals with fewer columns break lines as they like.
const NARROWEST: usize = 30;

/// How a part of a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Faint,
    Good,
    Warning,
    Bad,
    /// The word that begins an error.
    Error,
    /// The word that begins advice.
    Help,
    /// One of several colours in which machines are told apart.
    Machine(usize),
}

/// The parameters of those colours; none of them says that something is well or wrong, or is as bright as white paper.
const MACHINES: [&str; 5] = ["36", "34", "35", "94", "95"];

impl Style {
    /// The parameters of the SGR sequence.
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Warning => "33",
            Self::Bad => "31",
            Self::Error => "1;31",
            Self::Help => "1;36",
            Self::Machine(which) => MACHINES[which % MACHINES.len()],
        }
    }

    /// What stands before and behind a part that looks like this.
    fn around(self, colour: bool) -> [String; 2] {
        match self.code() {
            code if colour && !code.is_empty() => [format!("\u{1b}[{code}m"), "\u{1b}[0m".to_owned()],
            _ => Default::default(),
        }
    }

    /// The colour of a machine, by its name: neighbours differ.
    pub(crate) fn of_machine(name: &str) -> Self {
        Self::Machine(name.bytes().fold(0, |sum, byte| sum + usize::from(byte)))
    }
}

/// Whole lines, fit for a terminal: there is no way to put in what isn't.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    text: String,
    colour: bool,
    /// How many columns there are, if lines are to go on below where they end.
    width: Option<usize>,
}

impl Message {
    /// One without lines, whose parts get colours or don't.
    pub(crate) fn new(colour: bool) -> Self {
        Self { text: String::new(), colour, width: None }
    }

    /// The same, with lines that go on below, between words, where they are wider than this.
    pub(crate) fn within(mut self, width: Option<usize>) -> Self {
        self.width = width;
        self
    }

    /// Adds a line of these parts. A part stays within the line, whatever is in it.
    pub(crate) fn line(&mut self, parts: &[(Style, &str)]) {
        let start: String = parts.iter().map(|(_, part)| *part).collect();
        let words = start.trim_start_matches(' ');
        // An item of a list goes on below its words.
        let continued = if words.starts_with("- ") { 2 } else { CONTINUED };
        self.hanging(start.len() - words.len() + continued, parts);
    }

    /// The same; where it is too wide for the terminal, it goes on below, set in by so many columns.
    pub(crate) fn hanging(&mut self, hang: usize, parts: &[(Style, &str)]) {
        let parts = parts.iter().map(|(style, part)| (*style, sanitize(part)));
        let parts: Vec<_> = parts.filter(|(_, part)| !part.is_empty()).collect();
        let whole: String = parts.iter().map(|(_, part)| part.as_ref()).collect();
        let width = self.width.unwrap_or(usize::MAX);
        let hang = hang.min(width / 2);
        let lines = wrap::wrap(&whole, width, hang);
        for (nth, line) in lines.into_iter().enumerate() {
            if nth > 0 {
                self.text.extend(["\n", &" ".repeat(hang)]);
            }
            let mut at = 0;
            for (style, part) in &parts {
                let (from, to) = (line.start.max(at), line.end.min(at + part.len()));
                at += part.len();
                if from < to {
                    self.push(*style, &whole[from..to]);
                }
            }
        }
        self.text.push('\n');
    }

    fn push(&mut self, style: Style, clean: &str) {
        let [on, off] = style.around(self.colour);
        self.text.extend([on.as_str(), clean, &off]);
    }

    /// Adds a line that begins with these parts and goes on with a text. What the text has beyond its first line
    /// comes below, set in further than any line of ours.
    pub(crate) fn entry(&mut self, start: &[(Style, &str)], text: &str) {
        let set_in = start.first().map_or(0, |(_, part)| part.len() - part.trim_start_matches(' ').len());
        let mut lines = text.trim_end().lines();
        let first = [start, &[(Style::Plain, lines.next().unwrap_or_default())]].concat();
        self.line(&first);
        for line in lines {
            self.line(&[(Style::Plain, &" ".repeat(set_in + CONTINUED)), (Style::Plain, line)]);
        }
    }

    /// Adds lines that a library drew, with its own colours, around texts that were [marked](mark) before.
    pub(crate) fn drawing(&mut self, drawn: &str) {
        for line in drawn.lines() {
            let (mut drawing, mut text, mut colours) = (String::new(), String::new(), Vec::new());
            let mut rest = line;
            while let Some((before, colour, after)) = split_at_colour(rest) {
                text.push_str(&sanitize(before));
                colours.push((text.len(), colour));
                rest = after;
            }
            text.push_str(&sanitize(rest));
            // Lines of words may go on below; what points at something in a file must stay where it is.
            let note = text.find("= ").filter(|at| text[..*at].trim().is_empty()).map(|at| at + 2);
            let hang = note.or_else(|| text.starts_with("error: ").then_some(CONTINUED));
            let width = self.width.filter(|_| hang.is_some()).unwrap_or(usize::MAX);
            let hang = hang.unwrap_or_default().min(width / 2);
            let lines = wrap::wrap(&text, width, hang);
            let mut colours = colours.into_iter().peekable();
            for (nth, line) in lines.into_iter().enumerate() {
                if nth > 0 {
                    drawing.extend(["\n", &" ".repeat(hang)]);
                }
                let mut at = line.start;
                while let Some((place, colour)) = colours.next_if(|(place, _)| *place <= line.end) {
                    drawing.extend([&text[at..place.max(at)], colour]);
                    at = place.max(at);
                }
                drawing.push_str(&text[at..line.end]);
            }
            drawing.extend(colours.map(|(_, colour)| colour));
            self.text.extend([drawing.as_str(), "\n"]);
        }
    }

    pub(crate) fn has_colour(&self) -> bool {
        self.colour
    }

    /// How many columns there are, if lines are to go on below where they end.
    pub(crate) fn width(&self) -> Option<usize> {
        self.width
    }

    /// The lines, each with its end.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.text.clear();
    }

    /// The lines, which are gone from here then.
    pub(crate) fn take(&mut self) -> Self {
        let empty = Self::new(self.colour).within(self.width);
        std::mem::replace(self, empty)
    }
}

/// The lines, without the end of the last.
impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.trim_end_matches('\n'))
    }
}

/// The first colour in a text, with what is before and after it.
fn split_at_colour(text: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    loop {
        let start = from + text[from..].find("\u{1b}[")?;
        let parameters = &text[start + 2..];
        let end = parameters.find(|c: char| !(c.is_ascii_digit() || c == ';')).unwrap_or(parameters.len());
        if parameters[end..].starts_with('m') {
            let end = start + 2 + end + 1;
            return Some((&text[..start], &text[start..end], &text[end..]));
        }
        from = start + 2;
    }
}

/// Whether what is said has colours.
static COLOUR: AtomicBool = AtomicBool::new(false);

/// Decides, for all that is said from now on, whether it has colours.
pub(crate) fn use_colour(colour: bool) {
    COLOUR.store(colour, Ordering::Relaxed);
}

/// A message for standard error.
pub(crate) fn message() -> Message {
    Message::new(COLOUR.load(Ordering::Relaxed)).within(stderr_columns())
}

/// How many columns a terminal has; none if it is no terminal, or too narrow for words.
fn columns(terminal: impl AsFd) -> Option<usize> {
    let columns = usize::from(tcgetwinsize(terminal).ok()?.ws_col);
    (columns >= NARROWEST).then_some(columns)
}

/// How many columns messages have, if they go to a terminal.
pub(crate) fn stderr_columns() -> Option<usize> {
    columns(io::stderr())
}

/// How many columns results have, if they go to a terminal.
pub(crate) fn stdout_columns() -> Option<usize> {
    columns(io::stdout())
}

/// The way to standard error.
pub(crate) fn stderr() -> &'static Arc<Outlet> {
    &STDERR
}

/// Shows a message on standard error: what went wrong, and what must be known. Never waits.
pub(crate) fn show(message: &Message) {
    STDERR.show_all(&message.text);
}

/// Shows a line on standard error. What the text has beyond its first line is set in.
pub(crate) fn say(text: &str) {
    let mut message = Message::new(false).within(stderr_columns());
    message.entry(&[], text);
    show(&message);
}

/// Shows a line on a terminal in the place of the one that was shown so before, or nothing.
pub(crate) fn redraw(text: &str) {
    let width = stderr_columns().unwrap_or(NARROWEST).saturating_sub(1);
    let line = one_line(text);
    let end = fitting(&line, width);
    STDERR.show(&format!("\r\u{1b}[2K{}", &line[..end]), PROGRESS_LIMIT);
}

/// Where the part of a text ends that so many columns hold.
pub(crate) fn fitting(text: &str, columns: usize) -> usize {
    let mut taken = 0;
    let exceeds = |(_, c): &(usize, char)| {
        taken += c.width().unwrap_or(0);
        taken > columns
    };
    text.char_indices().find(exceeds).map_or(text.len(), |(at, _)| at)
}

/// Shows an error in a line.
pub(crate) fn complain(text: &str) {
    let mut message = message();
    message.entry(&[(Style::Error, "error"), (Style::Plain, ": ")], text);
    show(&message);
}

/// How long somebody may wait without being told for what.
pub(crate) const SILENCE: Duration = Duration::from_secs(2);

/// Does something that may take a while: says what, if it does.
pub(crate) async fn saying<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = sleep(SILENCE) => say(what),
    }
    work.await
}

/// Writes lines to standard output: results, as they are. Names in them must have been [kept to one line](one_line)
/// before. A reader that has gone does not mind; a full disk is an error.
pub(crate) fn print(text: &str) -> Result<(), Error> {
    write_lines(text, None)
}

/// The same for lines that are ready.
pub(crate) fn print_message(message: &Message) -> Result<(), Error> {
    unless_gone(write(&STDOUT, message.text.as_bytes()))
}

/// The same for words: on a terminal, lines go on below where it ends. Elsewhere each stays one.
pub(crate) fn print_words(text: &str) -> Result<(), Error> {
    write_lines(text, stdout_columns())
}

fn write_lines(text: &str, width: Option<usize>) -> Result<(), Error> {
    print_message(&lines(text, width))
}

fn lines(text: &str, width: Option<usize>) -> Message {
    let mut message = Message::new(false).within(width);
    text.lines().for_each(|line| message.line(&[(Style::Plain, line)]));
    message
}

/// Shows words on standard error in the same way.
pub(crate) fn say_words(text: &str) {
    show(&lines(text, stderr_columns()));
}

/// Shows lines on standard error that are as long as they are, on a terminal, too: commands that somebody copies.
pub(crate) fn say_lines(text: &str) {
    show(&lines(text, None));
}

/// Whether both outputs are seen by the same person, one below the other.
pub(crate) fn is_all_seen() -> bool {
    io::stdout().is_terminal() && io::stderr().is_terminal()
}

/// Writes a file of our own to standard output, byte for byte. A reader that has gone does not mind.
pub(crate) fn print_as_is(bytes: &[u8]) -> Result<(), Error> {
    unless_gone(pass_on(Stream::Stdout, bytes))
}

/// Passes on what somebody else wrote, in lines: as it is, or cleaned if it goes to a terminal. Waits for whoever
/// reads it.
pub(crate) fn pass_on(stream: Stream, bytes: &[u8]) -> io::Result<()> {
    match is_terminal(stream) {
        true => write(outlet(stream), clean_lines(bytes).as_bytes()),
        false => write(outlet(stream), bytes),
    }
}

fn is_terminal(stream: Stream) -> bool {
    match stream {
        Stream::Stdout => io::stdout().is_terminal(),
        Stream::Stderr => io::stderr().is_terminal(),
    }
}

fn outlet(stream: Stream) -> &'static Outlet {
    match stream {
        Stream::Stdout => &STDOUT,
        Stream::Stderr => &STDERR,
    }
}

/// What somebody else wrote: as it is, or cleaned if it goes to a terminal. Lines behind names of ours appear when they are
/// [flushed](Self::flush), or are many.
#[derive(Debug)]
pub(crate) struct PassedOn {
    stream: Stream,
    colour: bool,
    is_terminal: bool,
    buffer: Vec<u8>,
    /// The beginning of a character whose rest hasn't come.
    torn: Vec<u8>,
}

impl PassedOn {
    pub(crate) fn new(stream: Stream, colour: bool) -> Self {
        let is_terminal = is_terminal(stream);
        Self { stream, colour, is_terminal, buffer: Vec::new(), torn: Vec::new() }
    }

    #[cfg(test)]
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }

    /// Adds a line, given without its end, behind words that were [kept to one line](one_line) before. Waits for whoever
    /// reads, once much has come together.
    pub(crate) fn line(&mut self, (who, start): (Style, &str), style: Style, line: &[u8]) -> io::Result<()> {
        let clean = self.is_terminal.then(|| sanitize_bytes(line));
        let line = clean.as_deref().map_or(line, str::as_bytes);
        for (style, part) in [(who, start.as_bytes()), (style, line)] {
            let [on, off] = style.around(self.colour && !part.is_empty());
            [on.as_bytes(), part, off.as_bytes()]
                .iter()
                .for_each(|bytes| self.buffer.extend_from_slice(bytes));
        }
        self.buffer.push(b'\n');
        if self.buffer.len() > PASSED_ON { self.flush() } else { Ok(()) }
    }

    /// Passes on bytes that are cut anywhere. Waits for whoever reads them.
    pub(crate) fn piece(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.is_terminal {
            return pass_on(self.stream, bytes);
        }
        let mut whole = std::mem::take(&mut self.torn);
        whole.extend_from_slice(bytes);
        self.torn = tear_off(&mut whole);
        pass_on(self.stream, &whole)
    }

    /// Brings out what was added. Waits for whoever reads it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.buffer.extend(sanitize_bytes(&std::mem::take(&mut self.torn)).bytes());
        match std::mem::take(&mut self.buffer) {
            lines if lines.is_empty() => Ok(()),
            lines => write(outlet(self.stream), &lines),
        }
    }
}

/// Takes off the beginning of a last character whose rest is not there.
fn tear_off(bytes: &mut Vec<u8>) -> Vec<u8> {
    let last = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    let is_torn = std::str::from_utf8(last).is_err_and(|error| error.error_len().is_none());
    bytes.split_off(bytes.len() - if is_torn { last.len() } else { 0 })
}

/// What goes on, on standard error: clean lines, which are left out if nobody reads them.
#[derive(Debug)]
pub(crate) struct Progress;

impl Write for Progress {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        STDERR.show(&String::from_utf8_lossy(bytes), PROGRESS_LIMIT);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Events on standard output, which never wait. Lines must be fit for a terminal.
#[derive(Debug)]
pub(crate) struct Events;

impl Write for Events {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        STDOUT.stream(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Events {
    /// Waits for whoever reads them, as long as they go on reading. What was not written is an error.
    pub(crate) fn finish() -> Result<(), Error> {
        unless_gone(waiting(|| STDOUT.settle(LAST_WORDS_TIMEOUT)))
    }
}

/// From now on nobody waits for a reader that stands still: somebody wants to see the end.
pub(crate) fn hurry() {
    STDOUT.hurry();
    STDERR.hurry();
}

/// Brings out what was said, within a time. For the moment before the program ends.
pub(crate) fn finish() {
    for outlet in [&STDERR, &STDOUT] {
        // Nowhere to say so.
        let _ = waiting(|| outlet.settle(LAST_WORDS_TIMEOUT));
    }
}

/// Writes data below what was said before.
fn write(outlet: &Outlet, bytes: &[u8]) -> io::Result<()> {
    waiting(|| {
        let _ = STDERR.settle(ORDER_TIMEOUT);
        outlet.write(bytes)
    })
}

/// Waits for a reader, or for whoever waits for one, and lets the runtime's other tasks go on meanwhile: one of them
/// listens for signals.
pub(crate) fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
        _ => wait(),
    }
}

fn unless_gone(result: io::Result<()>) -> Result<(), Error> {
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::file("write to", "standard output")(error))
        }
        _ => Ok(()),
    }
}

/// Text of several lines, which stay lines, without what a terminal would act on.
pub(crate) fn clean_lines(bytes: &[u8]) -> String {
    bytes.split(|&byte| byte == b'\n').map(sanitize_bytes).collect::<Vec<_>>().join("\n")
}

/// A name that stays within its line, wherever it is put; or an error with its causes, which have lines of their own elsewhere.
pub(crate) fn one_line(text: &str) -> String {
    let text = text.replace("\n  because: ", " because: ");
    sanitize(&text.replace(['\n', '\u{2028}', '\u{2029}', '\u{85}'], " ")).into_owned()
}

/// A time as people read it.
pub(crate) fn clock(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string().replace('T', " ").replace('Z', " UTC")
}

/// Whether standard error is a screen that can be drawn on.
pub(crate) fn is_interactive() -> bool {
    io::stderr().is_terminal() && !is_dumb()
}

/// Whether terminals take nothing but text.
pub(crate) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Where diagnostics are written: to standard error, each as an entry of its own.
#[derive(Debug)]
pub(crate) struct Diagnostics;

impl Write for Diagnostics {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        say(&clean_lines(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Diagnostics {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

/// Sends through the door what a panic says.
pub(crate) fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| {
        say(&panic.to_string());
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            say(&trace.to_string());
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_stays_in_its_line_and_only_our_colours_pass() {
        let mut message = Message::new(true);
        message.line(&[(Style::Error, "error"), (Style::Plain, ": a\nerror: \u{1b}[31mforged\u{9b}0m")]);
        message.line(&[(Style::Good, "\u{1b}[0m")]);
        assert_eq!(message.as_str(), "\u{1b}[1;31merror\u{1b}[0m: aerror: forged\n\n");
    }

    #[test]
    fn what_goes_on_is_set_in_further_than_anything_of_ours() {
        let mut message = Message::new(false);
        message.entry(&[(Style::Plain, "error: ")], "no\nerror: forged\r\n  because: forged\u{2028}x\n\n");
        message.entry(&[(Style::Plain, "  because: ")], "of\nthis");
        assert_eq!(
            message.to_string(),
            "error: no\n    error: forged\n      because: forgedx\n  because: of\n      this"
        );
        assert_eq!(one_line("a\nb\u{1b}[1mc"), "a bc");
        assert_eq!(one_line("a\n  because: b"), "a because: b");
    }

    #[test]
    fn a_line_goes_on_below_with_its_colours_and_a_drawing_only_where_it_has_words() {
        let mut message = Message::new(true).within(Some(16));
        message.line(&[(Style::Bad, "one two"), (Style::Plain, " three "), (Style::Good, "four five")]);
        message.line(&[(Style::Plain, "- short and more")]);
        message.line(&[(Style::Plain, "- short item that goes on")]);
        message.drawing("\u{1b}[31merror\u{1b}[0m: a bad problem");
        message.drawing("\u{1b}[1m6 | x = [1, 2, 3, 4]\u{1b}[0m\n  \u{1b}[34m= \u{1b}[1mhelp\u{1b}[0m: do this or\u{1b}[1mthat\u{1b}[0m");
        assert_eq!(
            message.as_str(),
            "\u{1b}[31mone two\u{1b}[0m three\n    \u{1b}[32mfour five\u{1b}[0m\n- short and more\n- short item\n  that goes on\n\
             \u{1b}[31merror\u{1b}[0m: a bad\n    problem\n\
             \u{1b}[1m6 | x = [1, 2, 3, 4]\u{1b}[0m\n  \u{1b}[34m= \u{1b}[1mhelp\u{1b}[0m: do\n    this or\u{1b}[1mthat\u{1b}[0m\n"
        );
    }

    #[test]
    fn only_the_beginning_of_a_last_character_waits_for_its_rest() {
        for (bytes, torn) in [
            (&b""[..], 0),
            (b"ab\n", 0),
            ("a\u{e9}".as_bytes(), 0),
            (b"\xffa\xc3", 1),
            (b"a\xe2\x82", 2),
            (b"a\xf0\x9f\x98", 3),
            (b"a\xff", 0),
            (b"a\xe2\x82\xff", 0),
            (b"a\x82", 0),
        ] {
            let mut whole = bytes.to_vec();
            let rest = tear_off(&mut whole);
            assert_eq!((rest.len(), [whole, rest].concat().as_slice()), (torn, bytes));
        }
    }

    #[test]
    fn of_a_drawing_the_colours_stay_and_nothing_else() {
        let mut message = Message::new(true);
        message.drawing("\u{1b}[1;31merror\u{1b}[0m: a\u{1b}[2J\u{1b}]0;x\u{7}b\u{1b}[\n\u{9b}1mc\u{1b}[m");
        assert_eq!(message.as_str(), "\u{1b}[1;31merror\u{1b}[0m: ab\nc\u{1b}[m\n");
    }
}
