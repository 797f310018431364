//! The real binary on the emulator: real requests to EC2's API, real sshd machines, strict host keys.

#![expect(clippy::print_stdout, reason = "figures, for whoever wants to see them")]

#[expect(dead_code, reason = "shared with the tests of the provider, which use more of it")]
#[path = "../../../tsunami-aws/tests/emulator/harness.rs"]
mod emulator;
#[expect(dead_code, reason = "shared with the tests on local machines, which use more of it")]
#[path = "../e2e/world.rs"]
mod world;

mod as_root;
mod cloud;
mod doctor;
