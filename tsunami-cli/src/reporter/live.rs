//! A run on a terminal: lines that change.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tsunami_core::text::{Lines, sanitize_bytes, shorten};
use tsunami_core::{Event, EventKind, MachineId, Observer, Origin, Stream};

use super::text::{Text, WIDEST, first_line, span};
use super::waits::BEFORE;
use super::{Reporter, Signs, Verbosity, lock};
use crate::terminal::{Message, Outlet, Style, one_line, stderr};

/// How often the lines are brought up to date.
const REFRESH: Duration = Duration::from_millis(100);
/// The most machines that are shown.
const SHOWN: usize = 30;
/// How often the terminal is drawn on at most, a second.
const FRAMES: u8 = 20;
/// The size of a terminal that doesn't tell.
const USUAL_SIZE: (u16, u16) = (24, 80);
/// How much of an experiment's name is shown, so that there is room for what goes on.
const NAME: usize = 20;
/// How much text may wait to be printed before it is, whatever the time.
const QUEUE: usize = 64 * 1024;

/// Shows one line a machine and one for the whole on standard error, and prints above them what
/// [`Plain`](super::Plain) would. For terminals only: elsewhere it shows nothing at all.
///
/// Events and output only change what is to be shown; a thread of its own draws it, ten times a second, and leaves it
/// to an [`Outlet`]. While that is behind, as when the terminal is stopped, nothing is drawn. Once it has finished,
/// nothing of the changing lines stays.
pub(crate) struct Live {
    shared: Arc<Shared>,
    ticker: Mutex<Option<JoinHandle<()>>>,
    /// The terminal's settings as they were.
    echo: Mutex<Option<Termios>>,
}

struct Shared {
    state: Mutex<State>,
    /// Told when `state.stopped` is set.
    stop: Condvar,
    /// Locked while drawing, and before `state`.
    bars: Mutex<Vec<(ProgressBar, String)>>,
    multi: MultiProgress,
    outlet: Arc<Outlet>,
    /// How many rows and columns the terminal has.
    size: fn() -> (u16, u16),
}

struct State {
    text: Text,
    verbosity: Verbosity,
    colour: bool,
    /// Lines to be printed above.
    queue: Message,
    stopped: bool,
    machines: Vec<Machine>,
    places: HashMap<String, usize>,
    experiment: String,
    /// What goes on, and since when.
    phase: (String, Instant),
    deadline: Option<Instant>,
}

struct Machine {
    name: String,
    /// The machine that has the name now.
    id: Option<MachineId>,
    state: &'static str,
    style: Style,
    /// Ready or failed: of interest only while it runs something.
    settled: bool,
    since: Instant,
    commands: Vec<Running>,
    lines: Lines,
    /// The last line of output that isn't blank, since the last command began.
    last: Vec<u8>,
}

struct Running {
    command_id: u64,
    stage: String,
    command: String,
    since: Instant,
}

impl Live {
    /// Begins to show lines, unless `verbosity` is quiet: then only failures are printed.
    pub(crate) fn new(colour: bool, verbosity: Verbosity) -> Self {
        let screen = Screen { outlet: stderr().clone(), frame: Mutex::default() };
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(screen), FRAMES);
        let live = Self::on(target, stderr().clone(), size, colour, verbosity);
        *lock(&live.echo) = hide_control_characters();
        live
    }

    /// Takes note of how steps are known to have come up.
    pub(super) fn knowing(self, signs: Signs) -> Self {
        lock(&self.shared.state).text.know(signs);
        self
    }

    fn on(
        target: ProgressDrawTarget,
        outlet: Arc<Outlet>,
        size: fn() -> (u16, u16),
        colour: bool,
        verbosity: Verbosity,
    ) -> Self {
        let state = State {
            text: Text::new(verbosity),
            verbosity,
            colour,
            queue: Message::new(colour).within(Some(size().1.into())),
            stopped: false,
            machines: Vec::new(),
            places: HashMap::new(),
            experiment: String::new(),
            phase: (String::new(), Instant::now()),
            deadline: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            stop: Condvar::new(),
            bars: Mutex::default(),
            multi: MultiProgress::with_draw_target(target),
            outlet,
            size,
        });
        let ticking = shared.clone();
        let ticker = thread::Builder::new().name("live".into()).spawn(move || ticking.tick()).ok();
        Self { shared, ticker: Mutex::new(ticker), echo: Mutex::default() }
    }
}

impl Reporter for Live {
    /// Happens by itself when the run is over and on drop.
    fn finish(&self) {
        lock(&self.shared.state).stopped = true;
        self.shared.stop.notify_all();
        let ticker = lock(&self.ticker).take();
        // The thread clears the lines: indicatif doesn't draw on one that panics.
        if ticker.map(JoinHandle::join).is_none() {
            self.shared.draw();
        }
        if let Some(before) = lock(&self.echo).take() {
            let _ = tcsetattr(io::stderr(), OptionalActions::Now, &before);
        }
    }

    /// Prints a line above the changing ones, which stay.
    fn say(&self, line: &str) {
        lock(&self.shared.state).queue.entry(&[], line);
        self.shared.draw();
    }
}

/// Keeps the terminal from echoing `^C`, which would push the last line into one that nobody clears. Returns the
/// settings as they were.
fn hide_control_characters() -> Option<Termios> {
    let before = tcgetattr(io::stderr()).ok()?;
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHOCTL);
    tcsetattr(io::stderr(), OptionalActions::Now, &hidden).ok()?;
    Some(before)
}

impl Drop for Live {
    fn drop(&mut self) {
        self.finish();
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

impl Observer for Live {
    fn event(&self, event: &Event) {
        let stopped = {
            let mut state = lock(&self.shared.state);
            state.event(event, Instant::now());
            state.stopped
        };
        if matches!(event.kind, EventKind::RunFinished { .. }) {
            self.finish();
        } else if stopped {
            self.shared.draw();
        }
    }

    fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let full = {
            let mut state = lock(&self.shared.state);
            state.output(origin, stream, bytes);
            state.queue.as_str().len() > QUEUE
        };
        if full {
            self.shared.draw();
        }
        Ok(())
    }
}

impl Shared {
    fn tick(&self) {
        loop {
            let state = lock(&self.state);
            let waited = self.stop.wait_timeout_while(state, REFRESH, |state| !state.stopped);
            let stopped = waited.unwrap_or_else(PoisonError::into_inner).0.stopped;
            self.draw();
            if stopped {
                return;
            }
        }
    }

    /// Prints what waits to be printed and brings the lines below up to date. What can't be drawn isn't.
    fn draw(&self) {
        let mut bars = lock(&self.bars);
        let (queue, rows) = {
            let mut state = lock(&self.state);
            if self.outlet.is_behind() && !state.stopped {
                let lines = state.queue.take().as_str().lines().count();
                return self.outlet.leave_out(lines);
            }
            let (height, width) = (self.size)();
            let shown = usize::from(height).saturating_sub(4).clamp(1, SHOWN);
            let rows = if state.stopped { Vec::new() } else { state.rows(Instant::now(), shown) };
            let queue = state.queue.take();
            // What comes next may find the terminal wider, or narrower.
            state.queue = state.queue.take().within(Some(width.into()));
            (queue, rows)
        };
        if !queue.is_empty() {
            let _ = self.multi.println(queue.to_string());
        }
        let mut changed = false;
        while bars.len() > rows.len() {
            bars.pop().iter().for_each(|(bar, _)| self.multi.remove(bar));
            changed = true;
        }
        for (i, row) in rows.into_iter().enumerate() {
            if bars.len() == i {
                let bar = self.multi.add(ProgressBar::no_length());
                if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
                    bar.set_style(style);
                }
                bars.push((bar, String::new()));
            }
            if bars[i].1 != row {
                bars[i].0.set_message(row.clone());
                bars[i].1 = row;
                changed = true;
            }
        }
        match bars.last() {
            Some((bar, _)) if changed => bar.force_draw(),
            None if changed => drop(self.multi.clear()),
            _ => {}
        }
    }
}

/// How many rows and columns the terminal has.
fn size() -> (u16, u16) {
    let size = tcgetwinsize(io::stderr()).map(|size| (size.ws_row, size.ws_col));
    size.ok().filter(|&(rows, columns)| rows > 0 && columns > 0).unwrap_or(USUAL_SIZE)
}

/// The terminal as something to draw on: what is drawn at once is left to the outlet as a whole.
#[derive(Debug)]
struct Screen {
    outlet: Arc<Outlet>,
    frame: Mutex<String>,
}

impl Screen {
    fn push(&self, parts: &[&str]) -> io::Result<()> {
        lock(&self.frame).extend(parts.iter().copied());
        Ok(())
    }

    fn move_cursor(&self, n: usize, direction: &str) -> io::Result<()> {
        if n == 0 { Ok(()) } else { self.push(&["\x1b[", &n.to_string(), direction]) }
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        size().1
    }

    fn height(&self) -> u16 {
        size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, "A")
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, "B")
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, "C")
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, "D")
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.push(&[line, "\n"])
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.push(&[text])
    }

    fn clear_line(&self) -> io::Result<()> {
        self.push(&["\r\x1b[2K"])
    }

    fn flush(&self) -> io::Result<()> {
        self.outlet.show_all(&std::mem::take(&mut *lock(&self.frame)));
        Ok(())
    }
}

impl State {
    fn event(&mut self, event: &Event, now: Instant) {
        // What the changing lines show need not be said above them.
        let shown = matches!(
            event.kind,
            EventKind::Launching { .. }
                | EventKind::Launched { .. }
                | EventKind::Running { .. }
                | EventKind::Connected { .. }
                | EventKind::Verified { .. }
                | EventKind::Ready { .. }
        );
        if !shown || self.verbosity == Verbosity::Verbose {
            self.text.event(event, &mut self.queue);
            if let Some(phase) = self.text.phase(event) {
                self.phase = (phase, now);
            }
        } else {
            self.text.note(event);
        }
        match &event.kind {
            EventKind::RunStarted { experiment, deadline, groups, .. } => {
                self.experiment = one_line(experiment);
                self.begins("launching", now);
                let left = deadline.duration_since(event.at).unwrap_or_default();
                self.deadline = now.checked_add(left);
                for group in groups {
                    for index in 0..group.count {
                        self.machine(&format!("{}-{index}", group.name), now);
                    }
                }
            }
            EventKind::Launched { group, .. } => {
                let launched =
                    |machine: &&mut Machine| machine.state == "launching" && machine.group() == group;
                self.machines.iter_mut().filter(launched).for_each(|machine| {
                    machine.becomes("starting", Style::Plain, false, now);
                });
            }
            EventKind::Running { machine, id, .. } => {
                self.begins("setting up", now);
                let machine = self.machine(machine, now);
                machine.id = Some(id.clone());
                machine.becomes("connecting", Style::Plain, false, now);
            }
            EventKind::Connected { machine, .. } => {
                self.machine(machine, now).becomes("booting", Style::Plain, false, now);
            }
            EventKind::Verified { machine, .. } => {
                self.machine(machine, now).becomes("setting up", Style::Plain, false, now);
            }
            EventKind::Ready { machine, .. } => {
                self.machine(machine, now).becomes("ready", Style::Good, true, now);
                if self.count("ready") == self.machines.len() {
                    self.begins("ready", now);
                }
            }
            EventKind::Failed { machine, .. } => {
                self.machine(machine, now).becomes("failed", Style::Bad, true, now);
            }
            EventKind::Interrupted { machine, .. } => {
                self.machine(machine, now).becomes("interrupted", Style::Bad, true, now);
            }
            EventKind::MachineGone { machine, id } => {
                let machine = self.machine(machine, now);
                // One that was replaced may go long after.
                if machine.id.as_ref() == Some(id) {
                    machine.becomes("gone", Style::Bad, true, now);
                }
            }
            EventKind::CommandStarted { machine, stage, command_id, command, .. } => {
                let machine = self.machine(machine, now);
                machine.lines = Lines::default();
                machine.last.clear();
                let (stage, command) = (stage.clone(), format!("$ {}", first_line(command)));
                machine.commands.push(Running { command_id: *command_id, stage, command, since: now });
            }
            EventKind::CommandFinished { machine, command_id, .. } => {
                let machine = self.machine(machine, now);
                machine.commands.retain(|running| running.command_id != *command_id);
                machine.last.clear();
            }
            EventKind::TearingDown { .. } => self.begins("tearing down", now),
            EventKind::Kept { .. } => self.begins("kept", now),
            // They change no line; what there is to say of them is said above.
            _ => {}
        }
    }

    fn begins(&mut self, phase: &str, now: Instant) {
        if self.phase.0 != phase {
            self.phase = (phase.to_owned(), now);
        }
    }

    fn output(&mut self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) {
        self.text.output(origin, stream, bytes, &mut self.queue);
        if let Some(&place) = self.places.get(origin.machine) {
            let Machine { lines, last, .. } = &mut self.machines[place];
            lines.push(bytes, |line| {
                if !line.trim_ascii().is_empty() {
                    last.clear();
                    last.extend_from_slice(line);
                }
            });
        }
    }

    fn machine(&mut self, name: &str, now: Instant) -> &mut Machine {
        let place = match self.places.get(name) {
            Some(&place) => place,
            None => {
                self.places.insert(name.to_owned(), self.machines.len());
                self.machines.push(Machine::new(name, now));
                self.machines.len() - 1
            }
        };
        &mut self.machines[place]
    }

    fn count(&self, state: &str) -> usize {
        self.machines.iter().filter(|machine| machine.state == state).count()
    }

    /// The lines to be shown, with at most `shown` machines.
    fn rows(&self, now: Instant, shown: usize) -> Vec<String> {
        if self.verbosity == Verbosity::Quiet {
            return Vec::new();
        }
        if self.experiment.is_empty() && self.machines.is_empty() {
            // What is checked, asked for and prepared before is over at once, or shows that it isn't.
            let took = now.saturating_duration_since(self.phase.1).as_secs();
            let is_slow = took >= 2;
            return is_slow
                .then(|| format!("waiting {BEFORE}  {}", span(Duration::from_secs(took))))
                .into_iter()
                .collect();
        }
        // Where there is no room for all, those that do the same are shown as one.
        let alike = self.alike(self.machines.len() > shown);
        let names: Vec<String> = alike.iter().map(|machines| called(machines)).collect();
        let width = names.iter().take(shown).map(|name| name.chars().count()).max().unwrap_or(0).min(WIDEST);
        let chosen = alike.iter().zip(&names).take(shown);
        let mut rows: Vec<String> =
            chosen.map(|(machines, name)| machines[0].row(name, width, now, self.colour)).collect();
        let more: usize = alike.iter().skip(shown).map(Vec::len).sum();
        if more > 0 {
            rows.push(format!("… and {more} more"));
        }
        let (phase, since) = &self.phase;
        let took = now.saturating_duration_since(*since).as_secs();
        let waits = self.text.step_waits().map(|what| format!("  {}", one_line(&what))).unwrap_or_default();
        let took =
            if took > 1 { format!("  {}{waits}", span(Duration::from_secs(took))) } else { String::new() };
        let whole = format!("{}  {phase}{took}", shorten(&self.experiment, NAME));
        // That all are is of no interest any more once something is done with them.
        let (ready, all) = (self.count("ready"), self.machines.len());
        let ready =
            if ready < all || phase == "ready" { format!("  {ready}/{all} ready") } else { String::new() };
        let lost = match self.count("failed") + self.count("gone") {
            0 => String::new(),
            lost => format!("{lost} failed"),
        };
        let left = self.deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(now).as_secs();
            format!("  lifetime ends in {}", span(Duration::from_secs(left)))
        });
        rows.push(row(
            self.colour,
            &[
                (Style::Plain, &whole),
                (Style::Plain, &ready),
                (Style::Plain, if lost.is_empty() { "" } else { "  " }),
                (Style::Bad, &lost),
                (Style::Plain, left.as_deref().unwrap_or_default()),
            ],
        ));
        rows
    }

    /// The machines in the order of their first, each by itself or together with those of its group that do the same.
    /// What failed comes first, then what is being done, then what is idle.
    fn alike(&self, together: bool) -> Vec<Vec<&Machine>> {
        if !together {
            return self.machines.iter().map(|machine| vec![machine]).collect();
        }
        let mut alike: Vec<Vec<&Machine>> = Vec::new();
        let mut places = HashMap::new();
        for machine in &self.machines {
            let place = *places.entry(machine.kind()).or_insert(alike.len());
            match alike.get_mut(place) {
                Some(machines) => machines.push(machine),
                None => alike.push(vec![machine]),
            }
        }
        alike.sort_by_key(|machines| {
            let first = machines[0];
            (first.style != Style::Bad, first.settled && first.commands.is_empty())
        });
        alike
    }
}

/// What machines that are shown as one are called.
fn called(machines: &[&Machine]) -> String {
    match machines {
        [one] => one.name.clone(),
        all => format!("{} ×{}", all[0].group(), all.len()),
    }
}

impl Machine {
    fn new(name: &str, now: Instant) -> Self {
        Self {
            name: one_line(name),
            id: None,
            state: "launching",
            style: Style::Plain,
            settled: false,
            since: now,
            commands: Vec::new(),
            lines: Lines::default(),
            last: Vec::new(),
        }
    }

    fn becomes(&mut self, state: &'static str, style: Style, settled: bool, now: Instant) {
        (self.state, self.style, self.settled, self.since) = (state, style, settled, now);
    }

    fn group(&self) -> &str {
        self.name.rsplit_once('-').map_or(&self.name, |(group, _)| group)
    }

    /// What is the same of machines that are shown as one. One that failed is shown by itself.
    fn kind(&self) -> (&str, &str, &str) {
        let own = if self.style == Style::Bad { self.name.as_str() } else { "" };
        (self.group(), self.commands.last().map_or(self.state, |running| running.stage.as_str()), own)
    }

    /// Its line, under a name that may be that of several.
    fn row(&self, name: &str, width: usize, now: Instant, colour: bool) -> String {
        let running = self.commands.last();
        let state = running.map_or(self.state.into(), |running| one_line(&running.stage));
        let style = if running.is_some() { Style::Plain } else { self.style };
        let since = running.map_or(self.since, |running| running.since);
        let idle = running.is_none() && self.settled;
        let time =
            if idle { String::new() } else { span(Duration::from_secs(now.duration_since(since).as_secs())) };
        let what = match running {
            Some(running) if self.last.is_empty() => one_line(&running.command),
            Some(_) => sanitize_bytes(&self.last),
            None => String::new(),
        };
        row(
            colour,
            &[
                (Style::Plain, &format!("{name:width$}  ")),
                (style, &format!("{state:10}")),
                (Style::Plain, &format!("  {time:>7}  ")),
                (Style::Faint, &what.replace('\t', " ")),
            ],
        )
    }
}

/// One of the changing lines.
fn row(colour: bool, parts: &[(Style, &str)]) -> String {
    let mut row = Message::new(colour);
    row.line(parts);
    row.as_str().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use indicatif::InMemoryTerm;
    use tsunami_core::{Exit, GroupSize};

    use super::*;
    use crate::reporter::text::tests::{at, finished, little_run, started};
    use crate::terminal::Stopped;

    fn on_terminal(verbosity: Verbosity) -> (InMemoryTerm, Live) {
        let term = InMemoryTerm::new(24, 80);
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(term.clone()), 20);
        (term, Live::on(target, Outlet::new(io::sink()), || (24, 80), false, verbosity))
    }

    /// What the terminal shows, without what depends on how fast the test runs.
    fn shown(term: &InMemoryTerm) -> String {
        let contents = term.contents().replace(" 1s", " 0s");
        contents
            .lines()
            .map(|line| line.split("  lifetime ends in 44m ").next().unwrap_or_default())
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn launched(count: u32) -> Event {
        let mut begin = little_run().remove(0);
        if let EventKind::RunStarted { groups, .. } = &mut begin.kind {
            *groups = vec![GroupSize::new("client", count)];
        }
        begin
    }

    #[test]
    fn machines_and_the_whole_have_a_line_each_and_nothing_stays() {
        let (term, live) = on_terminal(Verbosity::Normal);
        let events = little_run();
        events[..12].iter().for_each(|event| live.event(event));
        live.event(&at(3.2, started("client-0", "load", "load\nmore")));
        live.shared.draw();
        insta::assert_snapshot!(shown(&term), @"
        [  0.0s] run 20231114-221320-abcd of redis: 1 × server, 2 × client; ends within
                    45m
        [  0.1s] server    trying again in 2s: no capacity
        [  3.0s] client-1  setup: `false` ended with status 1 after 1.2s
        [  3.1s] client-1  setup failed: bad
                            [  9.9s] forged
        server-0  launching        0s
        client-0  load             0s  $ load …
        client-1  failed
        redis  setting up  1/3 ready  1 failed
        ");
        let origin = Origin::new("client-0", "load");
        live.output(
            &origin,
            Stream::Stdout,
            "50%\r\x1b[2J99 % of a line that is much wider than the terminal\n\n".as_bytes(),
        )
        .unwrap();
        live.output(&origin, Stream::Stdout, b"not yet").unwrap();
        live.shared.draw();
        insta::assert_snapshot!(shown(&term).lines().nth(7).unwrap(), @"client-0  load             0s  99 % of a line that is much wider than the termin");
        events[18..].iter().for_each(|event| live.event(event));
        assert!(term.contents().ends_with("timed out\n[ 75.0s] failed"), "{}", term.contents());
        live.event(&at(76.0, EventKind::TornDown { leftovers: Vec::new(), took: Duration::ZERO }));
        assert!(term.contents().ends_with("torn down: 2 machines are gone, after 0s"), "{}", term.contents());
        live.event(&events[2]);
        live.finish();
        assert!(term.contents().ends_with("no capacity"), "{}", term.contents());
    }

    #[test]
    fn every_kind_of_event_changes_a_line_or_is_told_above_them() {
        let events = include_str!("../../../tsunami-core/tests/fixtures/events-2.jsonl");
        // Of machines whose lines say so already, and of what is told of each command, or of a single trial.
        let silent = ["launching", "uploaded", "collected", "custom"];
        let detail = [
            "chosen",
            "sweep_planned",
            "set_started",
            "fingerprint",
            "canary",
            "measured",
            "accounted",
            "sweep_finished",
        ];
        let (_term, live) = on_terminal(Verbosity::Normal);
        let (mut state, now) = (lock(&live.shared.state), Instant::now());
        for event in tsunami_core::read_events(events.as_bytes()).unwrap() {
            let before = state.rows(now, 3);
            drop(state.queue.take());
            state.event(&event, now);
            let is_shown = !state.queue.is_empty() || state.rows(now, 3) != before;
            let kind = serde_json::to_value(&event).unwrap()["event"].clone();
            let kind = kind.as_str().unwrap();
            assert_eq!(is_shown, !silent.contains(&kind) && !detail.contains(&kind), "{event:?}");
        }
    }

    #[test]
    fn of_many_machines_those_that_do_the_same_are_one_and_the_busy_come_first() {
        let (_term, live) = on_terminal(Verbosity::Normal);
        let rows = || lock(&live.shared.state).rows(Instant::now(), 3);
        live.event(&launched(100));
        for i in 0..98 {
            live.event(&at(1.0, EventKind::Ready { machine: format!("client-{i}"), id: None }));
        }
        live.event(&at(1.0, started("client-7", "load", "load")));
        let names: Vec<_> =
            rows().iter().map(|row| row.split("  ").next().unwrap_or_default().to_owned()).collect();
        assert_eq!(names, ["client-7 ", "client ×2", "client ×97", "redis"].map(str::trim_end));
        live.event(&at(1.0, finished("client-7", "load", "load", Ok(Exit::Status(0)))));
        assert_eq!(rows().len(), 3);
        assert!(rows()[2].starts_with("redis  launching  98/100 ready  lifetime ends in 4"), "{}", rows()[2]);
        for i in 90..95 {
            let failed = EventKind::Failed {
                machine: format!("client-{i}"),
                id: None,
                stage: "setup".into(),
                error: "no".into(),
            };
            live.event(&at(1.0, failed));
        }
        let rows = rows();
        assert!(rows[0].starts_with("client-90") && rows[2].starts_with("client-92"), "{rows:?}");
        assert_eq!(rows[3], "… and 97 more");
    }

    #[test]
    fn a_replacement_is_not_gone_when_its_predecessor_is() {
        let (_term, live) = on_terminal(Verbosity::Normal);
        live.event(&launched(1));
        let [old, new] = ["i-old", "i-new"].map(MachineId::new);
        let machine = || "client-0".to_owned();
        for id in [&old, &new] {
            live.event(&at(
                1.0,
                EventKind::Running {
                    machine: machine(),
                    id: id.clone(),
                    address: None,
                    description: String::new(),
                    kind: tsunami_core::MachineKind::default(),
                    price: tsunami_core::Price::Free,
                },
            ));
        }
        live.event(&at(2.0, EventKind::Ready { machine: machine(), id: None }));
        let row = || lock(&live.shared.state).rows(Instant::now(), 3)[0].trim_end().to_owned();
        live.event(&at(3.0, EventKind::MachineGone { machine: machine(), id: old }));
        assert_eq!(row(), "client-0  ready");
        live.event(&at(4.0, EventKind::MachineGone { machine: machine(), id: new }));
        assert_eq!(row(), "client-0  gone");
    }

    #[test]
    fn a_flood_of_output_is_printed_in_order_when_it_is_asked_for() {
        let (term, live) = on_terminal(Verbosity::Verbose);
        live.event(&launched(2));
        for i in 0..5000 {
            let line = format!("line {i}\n");
            live.output(&Origin::new("client-1", "s"), Stream::Stdout, line.as_bytes()).unwrap();
        }
        live.finish();
        let contents = term.contents();
        let last: Vec<_> = contents.lines().rev().take(3).collect();
        assert_eq!(last, [4999, 4998, 4997].map(|i| format!("         client-1  s | line {i}")));
    }

    #[test]
    fn a_terminal_that_is_stopped_stops_nothing_and_its_queue_stays_small() {
        let (writer, go, read) = Stopped::new();
        let outlet = Outlet::new(writer);
        let screen = Screen { outlet: outlet.clone(), frame: Mutex::default() };
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(screen), FRAMES);
        let live = Live::on(target, outlet.clone(), || (24, 80), false, Verbosity::Verbose);
        live.event(&launched(2));
        let lines = "x\n".repeat(1000);
        for _ in 0..1000 {
            live.output(&Origin::new("client-1", "s"), Stream::Stdout, lines.as_bytes()).unwrap();
            assert!(lock(&live.shared.state).queue.as_str().len() <= 2 * QUEUE);
        }
        live.say("SIGINT");
        live.finish();
        outlet.show_all("error: last words\n");
        drop(go);
        outlet.settle(Duration::MAX).unwrap();
        let shown = String::from_utf8(read.try_iter().collect::<Vec<_>>().concat()).unwrap();
        assert!(shown.len() < 1 << 20, "{}", shown.len());
        assert!(shown.contains("not shown: nobody read them") && shown.ends_with("last words\n"));
    }

    #[test]
    fn quiet_shows_failures_only_and_a_dropped_one_leaves_nothing() {
        let (term, live) = on_terminal(Verbosity::Quiet);
        live.event(&launched(2));
        live.shared.draw();
        assert_eq!(term.contents(), "");
        drop(live);
        let (term, live) = on_terminal(Verbosity::Normal);
        live.event(&launched(2));
        live.shared.draw();
        assert!(term.contents().contains("client-1  launching"));
        drop(live);
        assert_eq!(term.contents().lines().count(), 1, "{}", term.contents());
    }
}
