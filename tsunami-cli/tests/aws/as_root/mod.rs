//! Tests that take root: their machines listen on port 22.

mod leftovers;
mod policy;
mod run;
