//! The bounds on what others may make tsunami hold, read or wait for.
//!
//! A machine, a service, an experiment file and a neighbour on the same computer are all free to send too much. Each
//! bound on that is a constant here, with its unit and the reason for its size, so that they can be read in one place.

use std::time::Duration;

/// Bytes that a host may print before it runs our `sh`: what start-up files and banners say, and no more.
pub const LOGIN_NOISE_LIMIT: usize = 64 << 10;

/// Bytes of one note of the supervisor that every command runs under. The longest quotes the command.
pub const NOTE_LIMIT: usize = 256 << 10;

/// Bytes that a script of tsunami's own may answer on each of its outputs. The longest answer names what is left of
/// a run, a line each.
pub const SCRIPT_OUTPUT_LIMIT: usize = 256 << 10;

/// How long a script of tsunami's own may take. The longest ends processes, which takes eight seconds and its way.
pub const SCRIPT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a transfer of files may stand still, on a connection that is alive, before it is given up. It is the longest
/// that one tar may take to find something to send, or to take something: it reads files full of holes to their end where
/// the file system does not tell where they are, at gigabytes in a few seconds.
pub const TRANSFER_STALL_TIMEOUT: Duration = Duration::from_secs(600);

/// The greatest number that Linux gives to a process, or to a group of processes.
pub const PROCESS_LIMIT: u32 = 1 << 22;

/// Bytes in the name of a file that comes from a machine, or in what a link there leads to. Linux itself takes no
/// longer path.
pub const PATH_BYTES_LIMIT: usize = 4096;

/// Directories above a file that comes from a machine. Trees that people make are ten or twenty deep; tools that
/// later walk or remove the results may recurse.
pub const PATH_DEPTH_LIMIT: usize = 128;

/// Bytes in one extension header of an archive: a long name, or attributes. They are held in memory.
pub const ARCHIVE_EXTENSION_LIMIT: u64 = 1 << 20;

/// Bytes after the end mark of an archive. tar fills its last record with zeros, usually up to 10 KiB.
pub const ARCHIVE_TAIL_LIMIT: u64 = 1 << 20;

/// Entries of one archive from a machine. Empty ones cost it nothing, and each may take an inode here and its number
/// in memory.
pub const ARCHIVE_ENTRIES_LIMIT: usize = 1_000_000;

/// Pieces between the holes of one sparse file, of 16 bytes each in memory.
pub const SPARSE_PIECES_LIMIT: usize = 1 << 20;

/// Bytes of memory for all links in one archive, a hundred and more for each. They are held until the archive has
/// ended, and then followed one by one.
pub const ARCHIVE_LINKS_LIMIT: usize = 16 << 20;

/// Files that an error names as left out, after which they are only counted.
pub const LEFT_OUT_SHOWN_LIMIT: usize = 20;

/// Events and pieces of output that may wait to be written to a run's results, so that a slow disk holds up nobody at
/// first. A piece is what came over a connection at once: 16 KiB, or little more.
pub const UNWRITTEN_LIMIT: usize = 1024;

/// The most that one file of a run's directory may hold, in bytes. The largest lists the run's machines, at
/// less than 1 KiB each: 16 MiB are enough for ten thousand.
pub const STATE_FILE_LIMIT: u64 = 16 << 20;

/// How many jump hosts may lie between this computer and a machine. ssh itself has no limit, and
/// configurations that name each other have no end.
pub const JUMPS_LIMIT: usize = 8;

/// How much of a value that is refused is shown, in characters.
pub const SHOWN_VALUE_LIMIT: usize = 80;

/// The longest id of a machine, in bytes. EC2's have 19; a host's is how it is reached.
pub const MACHINE_ID_LIMIT: usize = 320;

/// How much of what ssh says on a connection is kept, in bytes, the last of it. A server's banner is a part
/// of that.
pub const SSH_STDERR_LIMIT: usize = 8 << 10;

/// How long a host that is not known may take to show its key, after it has been refused for that. The key is
/// for an error's help, which must not keep a run waiting.
pub const HOST_KEY_TIMEOUT: Duration = Duration::from_secs(10);

/// The most that one template of an experiment file may take to render, in the template engine's fuel: roughly one
/// for each operation and each 64 bytes of text. The addresses of ten thousand machines, joined, take 50,000.
pub const TEMPLATE_FUEL: u64 = 150_000;

/// The most that checking all templates of a file for all machines may take, in the same fuel: ten seconds or so. A
/// short template takes fifty, so that a hundred fit for each of ten thousand machines.
pub const TEMPLATES_FUEL: u64 = 50_000_000;

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

/// The largest file of user data that is read, in bytes. EC2 takes a quarter of it.
pub const USER_DATA_FILE_LIMIT: u64 = 64 << 10;

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

/// The longest value of `--set`, in bytes.
pub const SET_VALUE_LIMIT: usize = 64 << 10;

/// The longest name of an experiment, a group or a step, in bytes. Names become those of files, at most 255 bytes long.
pub const NAME_LIMIT: usize = 100;

/// The longest name of a user that a cloud's tag may give, in bytes: as useradd has it.
pub const USER_NAME_LIMIT: usize = 32;

/// The longest id or name that a cloud may give to a thing, in bytes: EC2 gives key pairs up to 255.
pub const SERVICE_WORD_LIMIT: usize = 255;

/// The most that is kept of a reason in a service's or a machine's words, in characters. The longest that is of
/// use, a denial that has to be decoded, has some two thousand.
pub const REASON_LIMIT: usize = 4 << 10;

/// The largest answer of a cloud's service that is taken in, in bytes. The largest of use is a page of a thousand
/// instances, of some 3 MiB.
pub const SERVICE_ANSWER_LIMIT: usize = 16 << 20;

/// How long a cloud's service may take for one answer, from the request to its last byte. Launching a thousand machines
/// takes EC2 a while.
pub const SERVICE_ANSWER_TIMEOUT: Duration = Duration::from_secs(90);

/// The most pages of one listing, each of up to a thousand things: more than one account runs of short experiments.
pub const PAGES_LIMIT: usize = 64;

/// The most that a service may say that is asked for this computer's address, in bytes.
pub const ADDRESS_ANSWER_LIMIT: usize = 64;

/// How long it may take for that.
pub const ADDRESS_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The most that is kept of what a new machine says when it is looked at for the first time, in bytes for each of
/// standard output and error: its deadline in three words, or why cloud-init failed.
pub const ADMISSION_OUTPUT_LIMIT: usize = 8 << 10;

/// How long a new machine may take for one word about itself, once there is a session to it.
pub const ADMISSION_TIMEOUT: Duration = Duration::from_secs(60);

/// How far a service's clock may move the deadlines of machines from where this computer's has them. EC2 takes no
/// requests from a clock that is further off than a quarter of an hour, unless somebody corrects it.
pub const CLOCK_SKEW_LIMIT: Duration = Duration::from_secs(3600);
