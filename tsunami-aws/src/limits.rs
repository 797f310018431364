//! The bounds on what answers for AWS may make us hold, read or wait for, beside those of [`tsunami_core::limits`]. Each
//! has its unit and the reason for its size.

use std::time::Duration;

/// The largest file of user data that is read, in bytes. EC2 takes a quarter of it.
pub const USER_DATA_FILE_LIMIT: u64 = 64 << 10;

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
pub const VERIFY_OUTPUT_LIMIT: usize = 8 << 10;

/// How long a new machine may take for one word about itself, once there is a session to it.
pub const VERIFY_TIMEOUT: Duration = Duration::from_secs(60);

/// How far a service's clock may move the deadlines of machines from where this computer's has them. EC2 takes no
/// requests from a clock that is further off than a quarter of an hour, unless somebody corrects it.
pub const CLOCK_SKEW_LIMIT: Duration = Duration::from_secs(3600);
