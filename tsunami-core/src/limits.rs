//! The bounds on what others may make tsunami hold, read or wait for.
//!
//! A machine, a service, an experiment file and a neighbour on the same computer are all free to send too much. Each
//! bound on that is a constant here, with its unit and the reason for its size, so that they can be read in one place.

/// The most that one template of an experiment file may take to render, in the template engine's fuel: roughly one
/// for each operation and each 64 bytes of text. The addresses of ten thousand machines, joined, take 50,000.
pub const TEMPLATE_FUEL: u64 = 250_000;

/// The most that checking all templates of a file for all machines may take, in the same fuel: a few seconds.
pub const TEMPLATES_FUEL: u64 = 500_000_000;

/// The longest text that a template may become, in bytes. Commands are far shorter; files are uploaded.
pub const TEMPLATE_OUTPUT_LIMIT: usize = 1 << 20;

/// The longest `{{ … }}` of a template, in bytes. The engine's stack grows with it.
pub const TEMPLATE_EXPRESSION_LIMIT: usize = 1 << 10;

/// How many problems of an experiment file are noted, with what may have been meant; the rest is only counted.
pub const PROBLEM_LIMIT: usize = 200;
