//! The provider over the wire, against the emulator. Every test ends with an empty account, by the emulator's
//! own word.

#[path = "../../../xtask/emulator/harness.rs"]
mod emulator;

mod conformance;
mod faults;
mod launches;
mod refusals;
mod scale;
mod world;
