//! The provider over the wire, against the emulator. Every test ends with an empty account, by the emulator's
//! own word.

#![expect(clippy::print_stdout, reason = "figures, for whoever wants to see them")]

#[expect(dead_code, reason = "shared with the tests of the program, which use more of it")]
#[path = "../emulator/harness.rs"]
mod emulator;

mod conformance;
mod contract;
mod faults;
mod hostile;
mod launches;
mod refusals;
mod reservations;
mod scale;
mod storm;
mod teardown;
mod two_users;
mod world;
