//! The bounds on what others may make tsunami hold, read or wait for.
//!
//! A machine, a service, an experiment file and a neighbour on the same computer are all free to send too much. Each
//! bound on that is a constant, with its unit and the reason for its size, in the `limits` of the crate that keeps it.
//! How long the engine waits, and how often it asks, stands beside its use, and so does what a service itself allows.

use std::time::Duration;

/// How much of a command's standard output, and of its standard error, [`Output`](crate::Output) keeps, in bytes. Who
/// wants more reads the log, or has it as an observer: they get all of it.
pub const OUTPUT_LIMIT: usize = 8 << 20;

/// How much of a command's lines waits for who reads them, in bytes: as much as is kept of an output. Beyond it the
/// command waits.
pub const LINES_AHEAD_LIMIT: usize = 8 << 20;

/// The longest line that [`OutputLines`](crate::OutputLines) hands over in one piece, in bytes, more or less what came over
/// a connection at once. A machine that never ends a line is not held without bound.
pub const STREAMED_LINE_LIMIT: usize = 1 << 20;

/// The longest file that [`Host::read`](crate::Host::read) reads, in bytes: it is held in memory. What is longer is
/// downloaded.
pub const FILE_READ_LIMIT: usize = 256 << 20;

/// How much of the end of each output is kept for an error, in bytes: of it, ten lines are shown.
pub const OUTPUT_TAIL_LIMIT: usize = 4 << 10;

/// How much of a line [`Lines`](crate::text::Lines) keeps for display, in bytes. No terminal is that wide.
pub const LINE_LIMIT: usize = 4096;

/// The longest line that [`Lines::complete`](crate::text::Lines::complete) hands over in one piece, in bytes, more or
/// less a push.
pub const LINE_PIECE_LIMIT: usize = 64 << 10;

/// How much is shown of a message about what others wrote, or of a line that a command wrote, in characters: what can be
/// read.
pub const SHOWN_MESSAGE_LIMIT: usize = 500;

/// Bytes that a script of tsunami's own may answer on each of its outputs. The longest answer names what is left of
/// a run, a line each.
pub const SCRIPT_OUTPUT_LIMIT: usize = 256 << 10;

/// How long a script of tsunami's own may take. The longest ends processes, which takes eight seconds and its way.
pub const SCRIPT_TIMEOUT: Duration = Duration::from_secs(60);

/// Events and pieces of output that may wait to be written to a run's results, so that a slow disk holds up nobody at
/// first. A piece is what came over a connection at once: 16 KiB, or little more.
pub const UNWRITTEN_LIMIT: usize = 1024;

/// The longest that a machine may say it is, of one fact, in characters. The mitigations of a processor take a thousand.
pub const FACT_LIMIT: usize = 2000;

/// How many messages of a machine's kernel are kept of a trial, and how long each may be, in characters: enough to say
/// that there was trouble, and what to look for.
pub const KERNEL_MESSAGES_LIMIT: (usize, usize) = (10, 200);

/// Pieces of machines' traces that may wait to be written. More are dropped, since a slow disk should hold up nobody. A
/// machine sends one a second.
pub const UNWRITTEN_TRACES_LIMIT: usize = 1024;

/// The most that one file of a run's directory may hold, in bytes. The largest lists the run's machines, at
/// less than 1 KiB each: 16 MiB are enough for ten thousand.
pub const STATE_FILE_LIMIT: u64 = 16 << 20;

/// How much of a value that is refused is shown, in characters.
pub const SHOWN_VALUE_LIMIT: usize = 80;

/// The longest id of a machine, in bytes. EC2's have 19; a host's is how it is reached.
pub const MACHINE_ID_LIMIT: usize = 320;

/// The most that one template of an experiment file may take to render, in the template engine's fuel: roughly one
/// for each operation and each 64 bytes of text. The addresses of ten thousand machines, joined, take 50,000.
pub const TEMPLATE_FUEL: u64 = 150_000;

/// The most that checking all templates of a file for all machines may take, in the same fuel: ten seconds or so. A
/// short template takes fifty, so that a hundred fit for each of ten thousand machines.
pub const TEMPLATES_FUEL: u64 = 50_000_000;

/// The longest file that metrics are read from, in bytes: it is held in memory as long as that takes.
pub const METRIC_FILE_LIMIT: u64 = 64 << 20;

/// The longest text that a template may become, in bytes. Commands are far shorter; files are uploaded.
pub const TEMPLATE_OUTPUT_LIMIT: usize = 1 << 20;

/// The longest `{{ … }}` of a template, in bytes. The engine's stack grows with it.
pub const TEMPLATE_EXPRESSION_LIMIT: usize = 1 << 10;

/// How many problems of an experiment file are noted, with what may have been meant; the rest is only counted.
pub const PROBLEM_LIMIT: usize = 200;

/// The longest word for which a likely one is looked for, in characters: the work grows with its square.
pub const SUGGESTION_WORD_LIMIT: usize = 32;

/// How many words are compared with one that is not known.
pub const SUGGESTION_CANDIDATES_LIMIT: usize = 1000;

/// The largest experiment file that is read, in bytes. What people write by hand is a hundredth of it.
pub const EXPERIMENT_FILE_LIMIT: u64 = 1 << 20;

/// The longest command line, in bytes. Linux takes 128 KiB for one argument of a program, with the zero at its end.
pub const COMMAND_LIMIT: usize = (128 << 10) - 1;

/// The longest value of a variable, in bytes. The same holds for it, together with its name.
pub const VARIABLE_LIMIT: usize = (128 << 10) - 1024;

/// How much of a command an error shows, in lines and in characters. All of it is in the log and the events.
pub const SHOWN_COMMAND_LIMIT: (usize, usize) = (10, 1000);

/// The longest that a machine may live, and that anything in an experiment may take: a year. Longer ones are slips of
/// the finger, and overflow what counts time.
pub const DURATION_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The most groups of an experiment.
pub const GROUP_LIMIT: usize = 1000;

/// The most machines of an experiment. More is a slip of the finger.
pub const MACHINE_LIMIT: u32 = 10_000;

/// The most steps of an experiment.
pub const STEP_LIMIT: usize = 1000;

/// The most machines of all steps together, each counted in each of its steps: a thousand machines in two hundred.
pub const STEP_MACHINES_LIMIT: usize = 200_000;

/// The longest value that is given beside an experiment file, in bytes.
pub const SET_VALUE_LIMIT: usize = 64 << 10;

/// The most parameters of an experiment. Each of them multiplies its trials.
pub const PARAMETER_LIMIT: usize = 10;

/// The longest value of a parameter, in bytes. Every trial and every line of results has it; what is longer is a file's
/// name rather than the file.
pub const PARAMETER_VALUE_LIMIT: usize = 256;

/// The most sets of machines of an experiment, and so the most combinations of the parameters that machines depend on.
/// They are launched one after another, and each lives for minutes.
pub const SET_LIMIT: usize = 100;

/// The most that is read of an experiment file for all sets of machines together, in bytes: it is read for each. A file of
/// 40 KiB may have a hundred sets.
pub const SETS_SOURCE_LIMIT: usize = 4 << 20;

/// The most metrics of an experiment. Each is compared with each other variant.
pub const METRIC_LIMIT: usize = 200;

/// The most memory that a regular expression may take, in bytes, which bounds how long it takes to compile, too. One for a
/// line of text takes a tenth.
pub const REGEX_LIMIT: usize = 1 << 20;

/// The longest unit of a metric, in bytes. It stands behind every number.
pub const UNIT_LIMIT: usize = 32;

/// The longest name of an experiment, a group or a step, in bytes. Names become those of files, at most 255 bytes long.
pub const NAME_LIMIT: usize = 100;

/// How many values one machine's text may have for one metric.
pub const METRIC_VALUES_LIMIT: usize = 1_000_000;

/// How long one histogram of a log may be once it is unpacked, in bytes.
pub const HISTOGRAM_LIMIT: u64 = 64 << 20;

/// The most bytes of a `report.html`: mail and phones take it. Where there is more to show, less of it is.
pub const REPORT_LIMIT: usize = 1_000_000;

/// How much of what a command wrote is looked at for a report, in bytes: of its end, twenty lines are shown.
pub const REPORT_TAIL_LIMIT: usize = 8 << 10;

/// How much of the end of a log is searched for the command that failed, in bytes.
pub const REPORT_LOG_LIMIT: u64 = 4 << 20;

/// How much of a machine's trace is read for a report, in bytes. A day of it has 1 MB.
pub const REPORT_TRACE_LIMIT: u64 = 16 << 20;
