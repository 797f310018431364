//! What a machine is told before it first boots, in Debians that boot: `cargo xtask guest` makes them.
//!
//! QEMU emulates them in software, so that a boot takes a minute. Nothing in them reaches further than loopback.

#![expect(clippy::print_stderr, reason = "what the machine said is shown when a test fails")]

mod booted;
