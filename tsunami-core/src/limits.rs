//! The bounds on what others may make tsunami hold, read or wait for.
//!
//! A machine, a service, an experiment file and a neighbour on the same computer are all free to send too
//! much. Each bound on that is a constant here, with its unit and the reason for its size, so that they can
//! be read in one place.

use std::time::Duration;

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
