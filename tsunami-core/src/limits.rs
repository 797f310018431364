//! The bounds on what others may make tsunami hold, read or wait for.
//!
//! A machine, a service, an experiment file and a neighbour on the same computer are all free to send too much. Each
//! bound on that is a constant here, with its unit and the reason for its size, so that they can be read in one place.

/// The most that one file of a run's directory may hold, in bytes. The largest lists the run's machines, at less
/// than 1 KiB each: 16 MiB are enough for ten thousand.
pub const STATE_FILE_LIMIT: u64 = 16 << 20;

/// How many jump hosts may lie between this computer and a machine. ssh itself has no limit, and configurations
/// that name each other have no end.
pub const JUMPS_LIMIT: usize = 8;

/// How much of a value that is refused is shown, in characters.
pub const SHOWN_VALUE_LIMIT: usize = 80;
