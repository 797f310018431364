//! The bounds on what others may make tsunami hold, read or wait for.
//!
//! A machine, a service, an experiment file and a neighbour on the same computer are all free to send too much. Each
//! bound on that is a constant here, with its unit and the reason for its size, so that they can be read in one place.
