//! What tells people and files of a run: observers of the one stream of events.

mod live;
mod plain;
mod text;
mod waits;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tsunami_core::Observer;

use crate::terminal;

use live::Live;
pub(crate) use plain::Plain;
#[cfg(test)]
pub(crate) use text::tests::{Shared, at, finished, little_run, numbered, started};
pub(crate) use text::{Sweep, in_rows as machines, span};
pub(crate) use waits::{Signs, signs};

/// Shows people a run while it goes on.
pub(crate) trait Reporter: Observer {
    /// Shows a line that no event tells.
    fn say(&self, line: &str) {
        terminal::say(line);
    }

    /// Shows all that is still to be shown; what happens later is shown at once. Needed before the process exits.
    /// Idempotent.
    fn finish(&self) {}
}

/// The reporter for this terminal, which knows how steps come up.
pub(crate) fn choose(verbosity: Verbosity, colour: bool, signs: Signs) -> Arc<dyn Reporter> {
    if terminal::is_interactive() && verbosity != Verbosity::Quiet {
        return Arc::new(Live::new(colour, verbosity).knowing(signs));
    }
    let width = terminal::stderr_columns();
    let plain = Plain::new(Box::new(terminal::Progress), verbosity, colour).within(width);
    Arc::new(plain.knowing(signs).telling_of_waits())
}

/// How much is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// Failures, and what may remain.
    Quiet,
    /// What happens to machines, steps and trials, too.
    #[default]
    Normal,
    /// Every command and every line of output, too.
    Verbose,
}

/// When colours are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ColourChoice {
    /// On a terminal, unless `NO_COLOR` is set
    #[default]
    Auto,
    /// Everywhere
    Always,
    /// Nowhere
    Never,
}

/// Whether to use colours, given where the text goes and whether `NO_COLOR` is set to something.
pub(crate) fn colour(choice: ColourChoice, is_terminal: bool, no_color: bool) -> bool {
    match choice {
        ColourChoice::Auto => is_terminal && !no_color,
        ColourChoice::Always => true,
        ColourChoice::Never => false,
    }
}

/// Locks; a panic elsewhere is no reason to stop telling.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_color_is_honoured_unless_colours_are_asked_for() {
        assert!(colour(ColourChoice::Auto, true, false));
        assert!(!colour(ColourChoice::Auto, true, true));
        assert!(!colour(ColourChoice::Auto, false, false));
        assert!(colour(ColourChoice::Always, false, true));
        assert!(!colour(ColourChoice::Never, true, false));
    }
}
