//! What a machine is told before it first boots, in a Debian that boots: `cargo xtask guest` makes that.
//!
//! QEMU emulates it in software, so that a boot takes a minute. Nothing in it reaches further than loopback.

#![expect(clippy::print_stderr, reason = "what the machine said is shown when a test fails")]

mod booted;
