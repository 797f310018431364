//! `tsunami completions`: what a shell needs to complete the command line.

use clap::ValueEnum;

use super::{Context, Execute};
use crate::args::Args;
use crate::error::Error;
use crate::terminal::print_as_is;

/// Print what a shell needs to complete the command line
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Completions {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

const EXAMPLES: &str = "\
Examples:
  tsunami completions bash >~/.local/share/bash-completion/completions/tsunami
  tsunami completions zsh >~/.zfunc/_tsunami     # with `fpath+=~/.zfunc` before compinit
  tsunami completions fish >~/.config/fish/completions/tsunami.fish";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Execute for Completions {
    fn names_abandoned_runs(&self) -> bool {
        false
    }

    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Args::command_for(context.registry), "tsunami", &mut script);
        print_as_is(&script)?;
        Ok(0)
    }
}
