//! The real binary, real sshd, real signals. Every test ends with a look at the whole system: no process, socket
//! or directory of the run may be left.

#![expect(clippy::print_stdout, reason = "figures, for whoever wants to see them")]

mod commands;
mod doctor;
mod documents;
mod engines;
mod hosts;
mod input;
mod interrupt;
mod json;
mod markdown;
mod repeat;
mod run;
mod sweep;
mod world;
