//! The command line.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tsunami_core::registry::Registry;

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

    fn command_for(registry: &Registry) -> clap::Command {
        let found = registry.providers().filter(|provider| provider.finds_by_tag());
        let found: Vec<_> = found.map(|provider| provider.name()).collect();
        let help = format!("Look for runs by tag there: {}", found.join(", "));
        let commands = if found.is_empty() { &[][..] } else { &["ls", "gc"] };
        commands.iter().fold(Self::command(), |command, name| {
            command.mut_subcommand(name, |command| command.mut_arg("provider", |arg| arg.help(&help)))
        })
    }

    pub(crate) fn colour(&self) -> bool {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        reporter::colour(self.color, std::io::stderr().is_terminal(), no_color)
    }

    pub(crate) fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run an experiment: launch, set up, run the steps, bring the results home, tear down
    Run(RunArgs),
    /// Check an experiment file and show what it would launch; touches nothing
    Plan(FileArgs),
    /// Launch and set up an experiment's machines, and leave them running
    Up(UpArgs),
    /// List the runs that are known here
    Ls {
        /// One JSON object a run
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        cloud: CloudArgs,
    },
    /// Run a command on many machines of a run at once
    Exec {
        /// A run id, a prefix of one, or an experiment's name
        run: String,
        /// Only on this group's machines (may be repeated)
        #[arg(short, long = "group")]
        group: Vec<String>,
        /// Only on this machine (may be repeated)
        #[arg(short, long = "machine")]
        machine: Vec<String>,
        /// The command: one word is a line for the shell, several are a program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Log in to a machine of a run
    Ssh {
        /// A run id, a prefix of one, or an experiment's name
        run: String,
        /// The machine; may be left out if there is only one
        machine: Option<String>,
        /// A command to run there in place of a shell
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Copy files to or from machines of a run
    Cp {
        /// A run id, a prefix of one, or an experiment's name
        run: String,
        /// What to copy, and last where to: local paths, or MACHINE:path, or GROUP:path
        #[arg(required = true, num_args = 2..)]
        paths: Vec<String>,
    },
    /// Show what set-up and steps printed
    Logs {
        /// A run id, a prefix of one, or an experiment's name
        run: String,
        /// Only this machine
        machine: Option<String>,
        /// Go on as long as the run does
        #[arg(short, long)]
        follow: bool,
    },
    /// Move the end of a run's machines, on the machines too
    Extend {
        /// A run id, a prefix of one, or an experiment's name
        run: String,
        /// How much longer than now planned, as `30m` or `1h30m`
        #[arg(value_parser = humantime::parse_duration)]
        duration: std::time::Duration,
    },
    /// Remove what tsunami left anywhere in an account, once its lifetime is over
    Gc {
        #[command(flatten)]
        cloud: CloudArgs,
        /// Also runs recorded here whose controller is dead and that were not kept
        #[arg(long)]
        mine: bool,
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        /// One JSON object a run
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of experiment files
    Schema {
        /// Print the reference of all keys in place of it, as Markdown
        #[arg(long)]
        reference: bool,
    },
    /// Tear runs down, also after a crash
    Down {
        /// Run ids, prefixes of them, or experiments' names
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        runs: Vec<String>,
        /// All runs that are known here
        #[arg(long)]
        all: bool,
    },
}

/// An experiment file and what is put into it.
#[derive(Debug, clap::Args)]
pub(crate) struct FileArgs {
    /// The experiment file
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

#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) file: FileArgs,
    /// Where logs go: a new or empty directory [default: results/NAME/RUN-ID]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// Print every event as a line of JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) up: UpArgs,
    /// Leave the machines up, until their lifetime is over
    #[arg(long)]
    pub(crate) keep: bool,
    /// Leave the machines up if the experiment fails
    #[arg(long, conflicts_with = "keep")]
    pub(crate) keep_on_failure: bool,
    /// Use the machines of a run that is up, without setting them up again
    #[arg(long, value_name = "RUN", conflicts_with_all = ["keep", "keep_on_failure"])]
    pub(crate) on: Option<String>,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command_for(&crate::registry()).debug_assert();
    }

    #[test]
    fn a_profile_alone_says_where_to_look() {
        for (words, asked) in
            [(&["ls"][..], false), (&["ls", "--profile", "x"], true), (&["ls", "--json"], false)]
        {
            let args = Args::parse_from([&["tsunami"], words].concat());
            assert!(matches!(args.command, Command::Ls { cloud, .. } if cloud.is_asked() == asked));
        }
    }
}
