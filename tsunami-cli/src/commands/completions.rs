//! `tsunami completions`: what a shell needs to complete the command line.

use std::collections::BTreeMap;

use clap::{Arg, ValueEnum};
use tsunami_core::names::is_experiment_name;
use tsunami_core::{Machine, RunStore};

use super::{Context, Execute};
use crate::args::Args;
use crate::error::Error;
use crate::terminal::print_as_is;

/// Print what a shell needs to complete the command line
///
/// Runs, their machines and their groups are among it: the shell asks `tsunami` for those that are known on this computer.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Completions {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
    /// A line that is being written, up to the word that is to be completed: its words after `tsunami`
    #[arg(last = true, hide = true)]
    words: Vec<String>,
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

/// What clap's script for bash begins with, whose own function goes by another name then. Names that end in a colon are
/// `cp`'s, which takes files, too. Clap offers options where files may come: without a dash they are left out, so that bash
/// offers files. Shells do not resolve the `~` of a program's path.
const BASH: &str = r#"_tsunami() {
    COMPREPLY=($("${COMP_WORDS[0]/#\~\//$HOME/}" completions bash -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    if [[ ${COMPREPLY[0]-} == *: ]]; then
        local IFS=$'\n'
        COMPREPLY+=($(compgen -f -- "$2"))
        compopt -o nospace
    fi
    [[ ${#COMPREPLY[@]} -gt 0 ]] && return 0
    _tsunami_of_clap "$@"
    [[ $2 == -* ]] && return 0
    local word words=("${COMPREPLY[@]}")
    COMPREPLY=()
    for word in "${words[@]}"; do
        [[ $word == -* ]] || COMPREPLY+=("$word")
    done
    # A directory gets its slash.
    [[ $COMP_CWORD -gt 1 ]] && compopt -o filenames 2>/dev/null
    return 0
}

_tsunami_of_clap() {
"#;

/// What clap's function for zsh begins its work with.
const ZSH: &str = r#"_tsunami() {
    local -a names
    names=(${(f)"$(${~words[1]} completions zsh -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if [[ $names[1] == *: ]]; then
        compadd -S '' -a names
        _files
        return 0
    elif (( $#names )); then
        _describe -t names name names
        return 0
    fi
"#;

/// What follows clap's script for fish, which asks only an option's own completions for its value.
const FISH: &str = r#"
function __fish_tsunami_names
    set -l words (commandline -opc)
    set words[1] (string replace -r '^~/' "$HOME/" -- $words[1])
    command -q $words[1]; or return
    command $words[1] completions fish -- $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c tsunami -n '__fish_tsunami_names | string match -qv "*:"' -f
complete -c tsunami -a '(__fish_tsunami_names)'
complete -c tsunami -n '__fish_seen_subcommand_from exec' -s g -l group -rf -a '(__fish_tsunami_names)'
complete -c tsunami -n '__fish_seen_subcommand_from exec' -s m -l machine -rf -a '(__fish_tsunami_names)'
complete -c tsunami -n '__fish_seen_subcommand_from run' -l on -rf -a '(__fish_tsunami_names)'
"#;

impl Execute for Completions {
    fn names_abandoned_runs(&self) -> bool {
        false
    }

    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let mut command = Args::command_for(context.registry);
        if let Some((current, before)) = self.words.split_last() {
            print_as_is(names(&mut command, before, current, self.shell).as_bytes())?;
            return Ok(0);
        }
        let (shell, begins, ours) = match self.shell {
            Shell::Bash => (clap_complete::Shell::Bash, "_tsunami() {\n", BASH),
            Shell::Zsh => (clap_complete::Shell::Zsh, "_tsunami() {\n", ZSH),
            Shell::Fish => (clap_complete::Shell::Fish, "", ""),
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "tsunami", &mut script);
        let mut script = String::from_utf8_lossy(&script).replacen(begins, ours, 1);
        if let Shell::Fish = self.shell {
            script += FISH;
        }
        print_as_is(script.as_bytes())?;
        Ok(0)
    }
}

/// The names of runs, machines or groups that a word may become, a line each; none where it means something else. What is
/// recorded of a run may be damaged, or somebody else's: that is passed over.
fn names(command: &mut clap::Command, before: &[String], current: &str, shell: Shell) -> String {
    let Some((expected, run)) = expected(command, before) else { return String::new() };
    let Ok(state) = RunStore::standard() else { return String::new() };
    let machines = || run.and_then(|run| state.find(run).ok()?.machines().ok()).unwrap_or_default();
    // By name, and what is said of it.
    let names: BTreeMap<String, String> = match expected {
        "RUN" | "RUNS" => names_of_runs(&state),
        "MACHINE" => machines().iter().map(|machine| (machine.name(), String::new())).collect(),
        "GROUP" => machines().into_iter().map(|machine| (machine.group, String::new())).collect(),
        "MACHINE|GROUP" => places(&machines(), ""),
        "SRC" | "DST" => places(&machines(), ":"),
        _ => return String::new(),
    };
    let names = names.into_iter().filter(|(name, _)| name.starts_with(current));
    let line = |(name, about): (String, String)| match shell {
        _ if about.is_empty() => format!("{name}\n"),
        Shell::Bash => format!("{name}\n"),
        Shell::Zsh => format!("{name}:{about}\n"),
        Shell::Fish => format!("{name}\t{about}\n"),
    };
    names.map(line).collect()
}

/// Ids of runs with the names of their experiments, and those names, unless they mean several runs.
fn names_of_runs(state: &RunStore) -> BTreeMap<String, String> {
    let (mut names, mut experiments) = (BTreeMap::new(), BTreeMap::<_, Vec<String>>::new());
    for run in state.runs().unwrap_or_default() {
        let experiment = run.record().map(|record| record.experiment).unwrap_or_default();
        if is_experiment_name(&experiment) {
            experiments.entry(experiment.clone()).or_default().push(run.id().to_string());
            names.insert(run.id().to_string(), experiment);
        } else {
            names.insert(run.id().to_string(), String::new());
        }
    }
    names.extend(experiments.into_iter().filter_map(|(experiment, mut runs)| {
        let run = runs.pop().filter(|_| runs.is_empty())?;
        Some((experiment, run))
    }));
    names
}

fn places(machines: &[Machine], end: &str) -> BTreeMap<String, String> {
    let names = machines.iter().flat_map(|machine| [machine.name(), machine.group.clone()]);
    names.map(|name| (name + end, String::new())).collect()
}

/// What comes after these words, as help calls it, and the run that they name.
fn expected<'a>(command: &'a mut clap::Command, words: &'a [String]) -> Option<(&'a str, Option<&'a str>)> {
    command.build();
    let mut command = &*command;
    let (mut option, mut run, mut place) = (None, None, 0);
    // bash parts `--on=x` and `a:b`.
    for word in words.iter().filter(|word| *word != "=") {
        let is_called = |arg: &&Arg| {
            let [long, short] = [arg.get_long().map(str::to_owned), arg.get_short().map(String::from)];
            word.strip_prefix("--")
                .or(word.strip_prefix('-'))
                .is_some_and(|name| long.as_deref() == Some(name) || short.as_deref() == Some(name))
        };
        if option.take().is_some() {
        } else if word == "--" || word == ":" {
            return None;
        } else if word.starts_with('-') {
            option = command.get_arguments().filter(|arg| arg.get_action().takes_values()).find(is_called);
        } else if let Some(subcommand) = command.find_subcommand(word) {
            command = subcommand;
        } else {
            let is_run = command.get_positionals().nth(place).and_then(called_in_help) == Some("RUN");
            run = is_run.then_some(word.as_str()).or(run);
            place += 1;
        }
    }
    let mut positionals = command.get_positionals();
    let expected = option.or_else(|| positionals.nth(place)).or(command.get_positionals().last())?;
    Some((called_in_help(expected)?, run))
}

fn called_in_help(arg: &Arg) -> Option<&str> {
    Some(arg.get_value_names()?.first()?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_word_stands_for_is_known_by_those_before_it() {
        let mut command = Args::command_for(&crate::registry());
        for (line, is) in [
            ("exec", Some(("RUN", None))),
            ("-q --color always exec -g b", Some(("RUN", None))),
            ("exec x --timeout = 5s -m", Some(("MACHINE", Some("x")))),
            ("exec x --group", Some(("GROUP", Some("x")))),
            ("exec x -- -m", None),
            ("ssh x", Some(("MACHINE", Some("x")))),
            ("down x y", Some(("RUNS", None))),
            ("run --on", Some(("RUN", None))),
            ("cp x a b", Some(("DST", Some("x")))),
            ("cp x a-0 :", None),
            ("logs x a-0 b", Some(("MACHINE|GROUP", Some("x")))),
        ] {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(expected(&mut command, &words), is, "{line}");
        }
        assert_eq!(expected(&mut command, &[]), None);
    }
}
