//! The bounds on what others may make tsunami hold, read or wait for.
//!
//! A machine, a service, an experiment file and a neighbour on the same computer are all free to send too much. Each
//! bound on that is a constant here, with its unit and the reason for its size, so that they can be read in one place.

/// The most that one template of an experiment file may take to render, in the template engine's fuel: roughly one
/// for each operation and each 64 bytes of text. The addresses of ten thousand machines, joined, take 50,000.
pub const TEMPLATE_FUEL: u64 = 150_000;

/// The most that checking all templates of a file for all machines may take, in the same fuel: ten seconds or so. A
/// short template takes fifty, so that a hundred fit for each of ten thousand machines.
pub const TEMPLATES_FUEL: u64 = 50_000_000;

/// The longest text that a template may become, in bytes. Commands are far shorter; files are uploaded.
pub const TEMPLATE_OUTPUT_LIMIT: usize = 1 << 20;

/// The longest `{{ … }}` of a template, in bytes. The engine's stack grows with it.
pub const TEMPLATE_EXPRESSION_LIMIT: usize = 1 << 10;

/// How many problems of an experiment file are noted, with what may have been meant; the rest is only counted.
pub const PROBLEM_LIMIT: usize = 200;

/// The largest experiment file that is read, in bytes. What people write by hand is a hundredth of it.
pub const EXPERIMENT_FILE_LIMIT: u64 = 1 << 20;

/// The largest file of user data that is read, in bytes. EC2 takes a quarter of it.
pub const USER_DATA_FILE_LIMIT: u64 = 64 << 10;

/// The most groups of an experiment.
pub const GROUP_LIMIT: usize = 1000;

/// The most machines of an experiment. More is a slip of the finger.
pub const MACHINE_LIMIT: u32 = 10_000;

/// The most steps of an experiment.
pub const STEP_LIMIT: usize = 1000;

/// The most machines of all steps together, each counted in each of its steps: a thousand machines in two hundred.
pub const STEP_MACHINES_LIMIT: usize = 200_000;

/// The longest value of `--set`, in bytes.
pub const SET_VALUE_LIMIT: usize = 64 << 10;

/// The longest name of an experiment, a group or a step, in bytes. Names become those of files, at most 255 bytes long.
pub const NAME_LIMIT: usize = 100;
