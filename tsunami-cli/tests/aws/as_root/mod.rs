//! Tests that take root: their machines listen on port 22.

mod account;
mod ipv6;
mod leftovers;
mod policy;
mod run;
mod sweep;
