//! The bounds on what others may make tsunami hold, read or wait for.
//!
//! A machine, a service, an experiment file and a neighbour on the same computer are all free to send too much. Each
//! bound on that is a constant here, with its unit and the reason for its size, so that they can be read in one place.

use std::time::Duration;

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
