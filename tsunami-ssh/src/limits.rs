//! The bounds on what machines and ssh may make us hold, read or wait for, beside those of
//! [`tsunami_core::limits`]. Each has its unit and the reason for its size.

use std::time::Duration;

/// Bytes that a host may print before it runs our `sh`: what start-up files and banners say, and no more.
pub const LOGIN_NOISE_LIMIT: usize = 64 << 10;

/// Bytes of one note of the supervisor that every command runs under. The longest quotes the command.
pub const NOTE_LIMIT: usize = 256 << 10;

/// How long a transfer of files may stand still, on a connection that is alive, before it is given up. It is the longest
/// that one tar may take to find something to send, or to take something: it reads files full of holes to their end where
/// the file system does not tell where they are, at gigabytes in a few seconds.
pub const TRANSFER_STALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Sizes of files for which a session remembers where it has put them on its machine, with up to four paths each. With
/// one more all are forgotten.
pub const PLACES_LIMIT: usize = 4096;

/// The greatest number that Linux gives to a process, or to a group of processes.
pub const PROCESS_LIMIT: u32 = 1 << 22;

/// How much is shown of the name of a file that comes from a machine, in characters.
pub const SHOWN_NAME_LIMIT: usize = 120;

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

/// How many jump hosts may lie between this computer and a machine. ssh itself has no limit, and
/// configurations that name each other have no end.
pub const JUMPS_LIMIT: usize = 8;

/// How much of what ssh says on a connection is kept, in bytes, the last of it. A server's banner is a part
/// of that.
pub const SSH_STDERR_LIMIT: usize = 8 << 10;

/// How long a host that is not known may take to show its key, after it has been refused for that. The key is
/// for an error's help, which must not keep a run waiting.
pub const HOST_KEY_TIMEOUT: Duration = Duration::from_secs(10);

/// How much of the time in which there must be a connection to a host is left, at most a quarter, to find out whether
/// anybody answers there at all. It is for the error.
pub const LAST_LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes of an upload that are handed on at a time, and wait in a pipe.
pub(crate) const BULK_BYTES: usize = 128 << 10;

/// Bytes of the line that begins a person's terminal on a machine. Linux takes no argument of 128 KiB, and a login shell
/// gets the line as one.
pub(crate) const TERMINAL_LINE_BYTES: usize = 100 << 10;
