//! The command line: what all commands take, and what several do.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser};
use tsunami_core::registry::Registry;

use crate::commands::Command;
use crate::reporter::{self, ColourChoice, Verbosity};

/// Short experiments on short-lived machines: launch, set up, run, collect, tear down.
#[derive(Debug, Parser)]
#[command(version, bin_name = "tsunami", max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t = ColourChoice::Auto, value_name = "WHEN")]
    color: ColourChoice,
    /// Say less: only what went wrong
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more: every command and what it prints
    #[arg(short, long, global = true)]
    verbose: bool,
}

impl Args {
    /// Reads the command line of a program that knows these providers.
    pub(crate) fn read(
        registry: &Registry,
        words: impl Iterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let mut command = Self::command_for(registry);
        let mut matches = command.try_get_matches_from_mut(words)?;
        Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
    }

    pub(crate) fn command_for(registry: &Registry) -> clap::Command {
        let found = registry.providers().filter(|provider| provider.finds_by_tag());
        let found: Vec<_> = found.map(|provider| provider.name()).collect();
        let help = format!("Look for runs by tag there: {}", found.join(", "));
        Self::command().mut_subcommands(|command| {
            match !found.is_empty() && command.get_arguments().any(|arg| arg.get_id() == "provider") {
                true => command.mut_arg("provider", |arg| arg.help(&help)),
                false => command,
            }
        })
    }

    pub(crate) fn colour(&self) -> bool {
        self.colour_of(&std::io::stderr())
    }

    /// Whether what is written there has colours.
    pub(crate) fn colour_of(&self, stream: &impl IsTerminal) -> bool {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        reporter::colour(self.color, stream.is_terminal(), no_color)
    }

    pub(crate) fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        }
    }
}

/// An experiment file and what is put into it.
#[derive(Debug, clap::Args)]
pub(crate) struct FileArgs {
    /// The experiment file, or a directory of results: what is there is repeated
    pub(crate) file: PathBuf,
    /// A value for the templates (may be repeated)
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    pub(crate) set: Vec<(String, String)>,
    /// Trust, for this run, hosts whose keys are not known
    #[arg(long)]
    pub(crate) accept_new_hosts: bool,
}

/// Where to look for runs by tag.
#[derive(Debug, clap::Args)]
pub(crate) struct CloudArgs {
    /// Look for runs by tag there
    #[arg(long, value_name = "PROVIDER")]
    pub(crate) provider: Option<String>,
    /// A region to look in (may be repeated) [default: for `gc` all that are enabled, else the configured one]
    #[arg(long, value_name = "REGION")]
    pub(crate) region: Vec<String>,
    /// A profile of the provider's own configuration
    #[arg(long, value_name = "PROFILE")]
    pub(crate) profile: Option<String>,
}

impl CloudArgs {
    /// Whether anything says where to look.
    pub(crate) fn is_asked(&self) -> bool {
        self.provider.is_some() || !self.region.is_empty() || self.profile.is_some()
    }
}

pub(crate) fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::tests::Finds;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command_for(&crate::registry()).debug_assert();
    }

    #[test]
    fn whoever_may_name_a_provider_is_told_which_find_runs_by_tag() {
        let finds = ["east", "west"].map(|name| Arc::new(Finds(name, true)));
        let registry = finds.into_iter().fold(Registry::new(), |registry, one| registry.with(one));
        let command = Args::command_for(&registry);
        let takes = |command: &&clap::Command| command.get_arguments().any(|arg| arg.get_id() == "provider");
        let told = command.get_subcommands().filter(takes).map(|command| {
            let mut arguments = command.get_arguments();
            let provider = arguments.find(|arg| arg.get_id() == "provider").unwrap();
            assert!(provider.get_help().unwrap().to_string().ends_with(": east, west"));
            command.get_name()
        });
        assert_eq!(told.collect::<Vec<_>>(), ["ls", "gc"]);
    }

    #[test]
    fn a_profile_alone_says_where_to_look() {
        for (words, asked) in
            [(&["ls"][..], false), (&["ls", "--profile", "x"], true), (&["ls", "--json"], false)]
        {
            let args = Args::parse_from([&["tsunami"], words].concat());
            assert!(matches!(args.command, Command::Ls(ls) if ls.cloud.is_asked() == asked));
        }
    }
}
