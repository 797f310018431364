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

/// The greatest number that Linux gives to a process, or to a group of processes.
pub const PROCESS_LIMIT: u32 = 1 << 22;
