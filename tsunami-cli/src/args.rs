//! The command line: what all commands take, and what several do.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum as _};
use tsunami_core::registry::Registry;

use crate::commands::Command;
use crate::reporter::{self, ColourChoice, Verbosity};
use crate::terminal;

/// Short experiments on short-lived machines: launch, set up, run, collect, tear down.
#[derive(Debug, Parser)]
#[command(name = "tsunami", version, bin_name = "tsunami", max_term_width = 100)]
#[command(after_long_help = ABOUT_ALL)]
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
        let words: Vec<OsString> = words.map(Into::into).collect();
        let matches = command.try_get_matches_from_mut(&words);
        let mut matches = matches.map_err(|error| corrected(error, &mut command, &words))?;
        Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
    }

    /// The command line of a program that knows these providers, with all that its help says.
    pub(crate) fn command_for(registry: &Registry) -> clap::Command {
        let found = registry.providers().filter(|provider| provider.finds_by_tag());
        let found: Vec<_> = found.map(|provider| provider.name()).collect();
        let help = format!("Look for runs by tag there: {}", found.join(", "));
        let command = Self::command().mut_subcommands(|command| {
            let more = command.get_after_long_help().map(|text| format!("{text}\n\n")).unwrap_or_default();
            let more = format!("{more}{}", statuses(&command));
            let command = command.after_long_help(more);
            match !found.is_empty() && command.get_arguments().any(|arg| arg.get_id() == "provider") {
                true => command.mut_arg("provider", |arg| arg.help(&help)),
                false => command,
            }
        });
        let listed = in_groups(&command);
        command.help_template(listed)
    }

    pub(crate) fn colour(&self) -> bool {
        self.colour_of(&std::io::stderr())
    }

    /// Whether what is written there has colours.
    pub(crate) fn colour_of(&self, stream: &impl IsTerminal) -> bool {
        colour_of(self.color, stream)
    }

    pub(crate) fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        }
    }
}

fn colour_of(choice: ColourChoice, stream: &impl IsTerminal) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    reporter::colour(choice, stream.is_terminal(), no_color || terminal::is_dumb())
}

/// The same where the words of the command line can't be read as a whole: help, and what is wrong with them.
pub(crate) fn colour_asked(words: impl Iterator<Item = OsString>, stream: &impl IsTerminal) -> bool {
    let words = words.map(|word| word.to_string_lossy().into_owned());
    // What comes then is somebody else's.
    let words: Vec<_> = words.take_while(|word| word != "--").collect();
    let beside = words.windows(2).filter(|pair| pair[0] == "--color").map(|pair| pair[1].as_str());
    let within = words.iter().filter_map(|word| word.strip_prefix("--color="));
    let choice = beside.chain(within).find_map(|when| ColourChoice::from_str(when, false).ok());
    colour_of(choice.unwrap_or_default(), stream)
}

/// The commands as people look for them: by what they are about to do.
const GROUPS: &[(&str, &[&str])] = &[
    ("Experiments", &["init", "doctor", "plan", "run", "up"]),
    ("Machines that are up", &["ls", "exec", "ssh", "cp", "forward", "logs", "inventory", "extend"]),
    ("The end of machines", &["down", "gc"]),
    ("Results", &["report", "compare"]),
    ("The program", &["schema", "completions", "man", "help"]),
];

/// The end of `tsunami --help`.
const ABOUT_ALL: &str = "\
`tsunami COMMAND --help` has examples of a command, and its exit statuses.

RUN is a run id, a prefix of one, or an experiment's name.

The first steps:
  tsunami init                      # writes experiment.toml, which says what it does
  tsunami plan experiment.toml      # what it would launch, and cost
  tsunami run experiment.toml";

/// What exit statuses say.
const STATUSES: [&str; 7] = [
    "it is done",
    "the experiment, or a command on a machine, failed",
    "the command line, the file or a local tool is at fault",
    "machines could not be had, or their provider could not be asked",
    "a machine was lost",
    "interrupted; nothing is left behind",
    "something may remain",
];

/// What the exit statuses of a command say, for its help.
fn statuses(command: &clap::Command) -> String {
    let mut text = "Exit status:".to_owned();
    let possible: &[usize] = match command.get_name() {
        name @ ("exec" | "ssh" | "forward") => {
            text.push_str(match name {
                "forward" => "\n  0    after Ctrl-C",
                _ => "\n  the highest of the machines', 128+N for signal N,",
            });
            text.push_str("\n  2    if the command line was at fault");
            text.push_str(if name == "exec" { "\n  124  after --timeout" } else { "" });
            let own = if name == "exec" { ", or was interrupted" } else { "" };
            let _ = write!(text, "\n  125  if tsunami itself failed{own}\n  255  if contact was lost");
            return text;
        }
        "run" | "up" => &[0, 1, 2, 3, 4, 5, 6],
        "cp" => &[0, 1, 2, 4, 5],
        "plan" => &[0, 2, 3],
        "extend" => &[0, 1, 2, 3, 4],
        "doctor" => &[0, 2, 3, 5],
        "ls" | "gc" => &[0, 2, 3, 6],
        "down" => &[0, 2, 6],
        "compare" => &[0, 1, 2],
        _ => &[0, 2],
    };
    for status in possible {
        let _ = write!(text, "\n  {status}  {}", STATUSES[*status]);
    }
    text
}

/// How `tsunami --help` is laid out, with all commands in their groups.
fn in_groups(command: &clap::Command) -> String {
    let header = *command.get_styles().get_header();
    let literal = *command.get_styles().get_literal();
    let mut text = "{about-with-newline}\n{usage-heading} {usage}\n".to_owned();
    let about = |name: &str| match command.find_subcommand(name) {
        Some(command) => command.get_about().map(ToString::to_string),
        None => (name == "help").then(|| "Print help: of a command, if one is named".to_owned()),
    };
    for (title, names) in GROUPS {
        let _ = write!(text, "\n{header}{title}:{header:#}");
        for (name, about) in names.iter().filter_map(|name| Some((name, about(name)?))) {
            let _ = write!(text, "\n  {literal}{name:<11}{literal:#} {about}");
        }
        text.push('\n');
    }
    let _ = write!(text, "\n{header}Options:{header:#}\n{{options}}{{after-help}}");
    text
}

/// What commands are called elsewhere.
const ELSEWHERE: &[(&str, &str)] = &[
    ("apply", "run"),
    ("check", "plan"),
    ("copy", "cp"),
    ("delete", "down"),
    ("destroy", "down"),
    ("kill", "down"),
    ("launch", "up"),
    ("list", "ls"),
    ("new", "init"),
    ("ps", "ls"),
    ("remove", "down"),
    ("rm", "down"),
    ("scp", "cp"),
    ("shell", "ssh"),
    ("start", "up"),
    ("status", "ls"),
    ("stop", "down"),
    ("terminate", "down"),
    ("validate", "plan"),
];

/// Says what somebody most likely meant, where clap's own measure of likeness knows nothing.
fn corrected(mut error: clap::Error, command: &mut clap::Command, words: &[OsString]) -> clap::Error {
    match (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
        (ErrorKind::InvalidSubcommand, Some(ContextValue::String(word))) => {
            let elsewhere = ELSEWHERE.iter().find(|(name, _)| name == word).map(|(_, own)| *own);
            let known = command.get_subcommands().map(clap::Command::get_name);
            if let Some(meant) = elsewhere.or_else(|| nearest(word, known)) {
                let meant = ContextValue::Strings(vec![meant.to_owned()]);
                error.insert(ContextKind::SuggestedSubcommand, meant);
            }
            error
        }
        (ErrorKind::UnknownArgument, _) if is_of(words, "ssh") => {
            let word = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
            if !word.starts_with('-') {
                let hint = format!("a command comes after `--`: `tsunami ssh RUN MACHINE -- {word}`").into();
                error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint]));
            }
            error
        }
        (ErrorKind::UnknownArgument, _) if is_shortened(words) => {
            let why = "the end of machines can only be put off: `tsunami down RUN` ends them now";
            let extend = command.find_subcommand_mut("extend");
            extend.map_or(error, |extend| extend.error(ErrorKind::InvalidValue, why))
        }
        _ => error,
    }
}

/// Whether the words, of which the program's name is the first, are for this command.
fn is_of(words: &[OsString], command: &str) -> bool {
    let mut words = words.iter().skip(1);
    words.find(|word| !word.as_encoded_bytes().starts_with(b"-")).is_some_and(|word| word == command)
}

/// Whether somebody wants an end to come earlier: `extend RUN -5m`.
fn is_shortened(words: &[OsString]) -> bool {
    let negative = |word: &OsString| {
        let mut bytes = word.as_encoded_bytes().iter();
        bytes.next() == Some(&b'-') && bytes.next().is_some_and(u8::is_ascii_digit)
    };
    words.iter().any(|word| word == "extend") && words.iter().any(negative)
}

/// The name that a word with a slip stands for. To swap two letters is one slip.
fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distances = names.map(|name| (strsim::osa_distance(word, name), name));
    let near = distances.filter(|(distance, name)| *distance <= (name.len() / 3).max(1));
    near.min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
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
    fn each_command_is_in_one_group_fits_its_line_and_has_an_example() {
        let mut command = Args::command_for(&crate::registry());
        command.build();
        let text = command.render_help().to_string();
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let name = sub.get_name();
            let groups = GROUPS.iter().filter(|(_, names)| names.contains(&name)).count();
            assert_eq!(groups, 1, "{name} is in {groups} groups of the help");
            let lines: Vec<_> = text.lines().filter(|line| line.starts_with(&format!("  {name} "))).collect();
            assert!(matches!(lines[..], [line] if line.len() <= 80), "{lines:?}");
            let more = sub.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            let example = more.contains(&format!("\n  tsunami {name}")) && more.starts_with("Example");
            assert!(example && more.contains("Exit status:"), "{name}: {more}");
            let (short, long) = (sub.clone().render_help().to_string(), sub.clone().render_long_help());
            assert!(!short.contains("Exit status") && long.to_string().contains("Exit status"), "{short}");
        }
        assert_eq!(command.render_version(), format!("tsunami {}\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn a_word_that_is_no_command_is_taken_for_the_one_that_was_meant() {
        let registry = crate::registry();
        let refused = |words: &str| {
            let error = Args::read(&registry, words.split(' ')).unwrap_err();
            error.to_string()
        };
        for (words, says) in [
            ("tsunami rnu x.toml", "'run'"),
            ("tsunami dwon x", "'down'"),
            ("tsunami invetory x", "'inventory'"),
            ("tsunami stop x", "'down'"),
            ("tsunami list", "'ls'"),
            ("tsunami extend x -5m", "can only be put off: `tsunami down RUN`"),
            ("tsunami run x.toml --kep", "'--keep'"),
            ("tsunami exec x --tiemout 3s -- ls", "unexpected argument '--tiemout'"),
            ("tsunami exec x --tiemout 3s -- ls", "'--timeout'"),
            ("tsunami ssh x n-0 ls -l", "a command comes after `--`: `tsunami ssh RUN MACHINE -- ls`"),
        ] {
            assert!(refused(words).contains(says), "{}", refused(words));
        }
        assert!(!refused("tsunami xyzzy").contains("similar"));
        assert!(Args::read(&registry, "tsunami extend -q x 5m".split(' ')).is_ok());
        let exec = Args::read(&registry, "tsunami exec n8 -g a uptime -p -v".split(' ')).unwrap();
        assert_eq!(exec.verbosity(), Verbosity::Normal, "what follows the command is its own");
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
