//! Tests that take root: their machines listen on port 22.

mod account;
mod leftovers;
mod policy;
mod run;
mod sweep;
