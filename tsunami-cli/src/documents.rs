//! The documents are true: what they have readers type is understood, their experiments are valid, their links lead
//! somewhere, and the pages that are made from the program are up to date. `tests/e2e/documents.rs` runs what they show.

#[path = "../tests/e2e/markdown.rs"]
mod markdown;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use tsunami_core::experiment::{Experiment, Loader};
use tsunami_core::registry::Registry;

use crate::args::Args;
use markdown::{Block, Page, pages};

/// Where the repository is on the web, and so in pages that are read there.
const REPOSITORY: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/");

/// Says all that is wrong at once.
#[track_caller]
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The command lines of `tsunami` in a line for the shell, wherever a command may begin in it.
fn command_lines(line: &str) -> impl Iterator<Item = Vec<String>> {
    let begins = Regex::new(r"(?:^|[(|;&]) *tsunami ").unwrap();
    let line = line.split(" # ").next().unwrap_or_default();
    let rests: Vec<&str> = begins.find_iter(line).map(|found| &line[found.end()..]).collect();
    let ends = |word: &String| ["|", "||", "&&", ">", "<", "&"].contains(&word.as_str());
    rests.into_iter().map(move |rest| {
        // Where it is within `$(…)`, it ends there.
        let rest = rest.split(')').next().unwrap_or_default();
        let rest = rest.split(';').next().unwrap_or_default();
        // A shell would make several words of a pattern.
        let words = shlex::split(&rest.replace("/*", "/a */b").replace('*', "")).unwrap_or_default();
        std::iter::once("tsunami".to_owned())
            .chain(words.into_iter().take_while(|word| !ends(word)))
            .collect()
    })
}

#[test]
fn what_documents_have_readers_type_is_understood() {
    let (registry, mut wrong, mut count) = (crate::registry(), Vec::new(), 0);
    for page in pages() {
        for block in page.blocks() {
            let lines: Vec<String> = match block.kind.as_str() {
                "sh" => block.text.replace("\\\n", " ").lines().map(str::to_owned).collect(),
                "console" => block.commands().into_iter().map(|(command, _)| command).collect(),
                _ => continue,
            };
            for (line, words) in lines.iter().flat_map(|line| command_lines(line).map(move |it| (line, it))) {
                count += 1;
                if let Err(error) = Args::read(&registry, words.into_iter().map(OsString::from)) {
                    wrong.push(format!("{}, line {}: {line}\n{error}", page.name(), block.line));
                }
            }
        }
    }
    assert!(count > 30, "{count} command lines were found");
    // What is only mentioned is a command, too.
    let mentioned = Regex::new(r"`tsunami ([a-z]+)[ `]").unwrap();
    let program = Args::command_for(&registry);
    for page in pages() {
        let prose = prose(&page);
        let names = mentioned.captures_iter(&prose).map(|found| found.get(1).unwrap().as_str());
        let unknown = names.filter(|name| program.find_subcommand(name).is_none());
        wrong.extend(unknown.map(|name| format!("{}: there is no `tsunami {name}`", page.name())));
    }
    assert_none(&wrong);
}

#[test]
fn experiments_in_documents_are_valid() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    let beside = Regex::new(r#"(?:from|script|user_data|config|key|known_hosts) = "([^"]+)""#).unwrap();
    for page in pages() {
        let blocks = page.blocks();
        // Those that have a file's name are run, some of them to see what is wrong.
        let runs = blocks.iter().any(|block| block.kind == "console");
        let checked = |block: &&Block| block.kind == "toml" && !(runs && block.file().is_some());
        for block in blocks.iter().filter(checked) {
            let place = format!("{}, line {}", page.name(), block.line);
            let table: toml::Table = match block.text.parse() {
                Ok(table) => table,
                Err(error) => {
                    wrong.push(format!("{place}: {error}"));
                    continue;
                }
            };
            // A part of a file is shown what a whole one has, and answers for its keys alone.
            let whole = table.contains_key("name") && table.contains_key("group");
            let mut text = String::new();
            if !table.contains_key("name") {
                text += "name = \"x\"\n";
            }
            let aws = table.contains_key("aws") || block.text.contains("instance = ");
            let provider =
                if aws { Some("aws") } else { block.text.contains("hosts = [").then_some("hosts") };
            if let Some(provider) = provider.filter(|_| !table.contains_key("provider")) {
                text += &format!("provider = \"{provider}\"\n");
            }
            if aws && cfg!(not(feature = "aws")) {
                continue;
            }
            text += &block.text;
            let directory = tempfile::tempdir().unwrap();
            for named in beside.captures_iter(&block.text) {
                let path = directory.path().join(&named[1]);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "#!/bin/sh\n").unwrap();
            }
            let file = directory.path().join("experiment.toml");
            fs::write(&file, text).unwrap();
            let lookup = |name: &str| Some(if name == "HOME" { "/home/you" } else { "12345678" }.into());
            count += 1;
            if let Err(problems) = Loader::new().registry(&crate::registry()).lookup_env(&lookup).load(&file)
            {
                let counts = |message: &str| whole || message.starts_with("unknown key");
                if problems.iter().any(|problem| counts(problem.message())) {
                    wrong.push(format!("{place}: {problems}"));
                }
            }
        }
    }
    assert!(count > 10, "{count} experiments were found");
    assert_none(&wrong);
}

/// The anchors of a page: of its headings, as GitHub and mdBook make them, and those that it has itself.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let headings = text.lines().filter(|line| {
        fenced ^= line.starts_with("```");
        !fenced && line.starts_with('#')
    });
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    let given = Regex::new(r#"<a id="([^"]+)""#).unwrap();
    let given = given.captures_iter(text).map(|found| found[1].to_owned());
    headings.map(anchor).chain(given).collect()
}

/// A page without its code.
fn prose(page: &Page) -> String {
    let mut fenced = false;
    let lines = page.text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn links_lead_to_pages_and_headings() {
    let link = Regex::new(r#"\]\(([^)\s]+)\)|(?:src|href|srcset)="([^"]+)""#).unwrap();
    let pages = pages();
    let texts: BTreeMap<PathBuf, &str> =
        pages.iter().map(|page| (fs::canonicalize(&page.path).unwrap(), page.text.as_str())).collect();
    let root = fs::canonicalize("..").unwrap();
    let mut wrong = Vec::new();
    for page in &pages {
        for found in link.captures_iter(&prose(page)) {
            let target = found.get(1).or(found.get(2)).unwrap().as_str();
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match file.strip_prefix(REPOSITORY) {
                Some(path) => root.join(path),
                None if file.contains("://") || file.starts_with("mailto:") => continue,
                None if file.is_empty() => page.path.clone(),
                None => page.path.parent().unwrap().join(file),
            };
            // A copy of the documents, for tests that another user runs, has not all that they lead to.
            let Ok(path) = fs::canonicalize(&path) else {
                if fs::exists("../.git").unwrap() {
                    wrong.push(format!("{}: nothing is at {target}", page.name()));
                }
                continue;
            };
            let known = texts.get(&path).map(|text| anchors(text));
            if !anchor.is_empty() && known.is_some_and(|known| !known.contains(anchor)) {
                wrong.push(format!("{}: no heading is at {target}", page.name()));
            }
            // What a book is made of can't lead out of it, except to the web.
            let inside = |path: &Path| path.starts_with(root.join("docs/guide"));
            if inside(&fs::canonicalize(&page.path).unwrap()) && !inside(&path) && !file.contains("://") {
                wrong.push(format!("{}: {target} is not in the book: lead to {REPOSITORY}", page.name()));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn every_page_of_the_guide_is_in_its_summary() {
    let source = Path::new("../docs/guide/src");
    let summary = fs::read_to_string(source.join("SUMMARY.md")).unwrap();
    let listed = |page: &Page| {
        let name = page.path.strip_prefix(source).ok()?.to_str()?;
        (name != "SUMMARY.md" && !summary.contains(&format!("({name})"))).then(|| page.name())
    };
    assert_none(&pages().iter().filter_map(listed).collect::<Vec<_>>());
}

#[test]
fn programs_in_documents_are_compiled() {
    // As documentation of the examples' crates.
    let examples = ["../examples/echo.rs", "../examples/own-provider/src/lib.rs"];
    let compiled = examples.map(|file| fs::read_to_string(file).unwrap()).concat();
    let rust =
        |page: &Page| page.blocks().iter().any(|block| ["rust", "rust,no_run"].contains(&&*block.kind));
    let is_not = |page: &Page| (rust(page) && !compiled.contains(&page.name())).then(|| page.name());
    assert_none(&pages().iter().filter_map(is_not).collect::<Vec<_>>());
}

/// What messages in the list of questions quote stands in the sources; `…` is for what differs.
#[test]
fn messages_that_documents_quote_are_said() {
    let mut sources = String::new();
    for package in ["tsunami-core", "tsunami-ssh", "tsunami-aws", "tsunami-cli"] {
        read_sources(&Path::new("..").join(package).join("src"), &mut sources);
    }
    let broken = Regex::new(r"\\\n\s*").unwrap();
    let sources = broken.replace_all(&sources, "").replace("\\\"", "\"");
    let (mut wrong, mut count) = (Vec::new(), 0);
    for page in pages().iter().filter(|page| page.path.ends_with("faq.md")) {
        for block in page.blocks().iter().filter(|block| block.kind == "text") {
            for part in block.text.split(['…', '\n']).map(str::trim).filter(|part| part.len() > 7) {
                let part = part.trim_start_matches("error: ").trim_start_matches("help: ");
                let part = part.trim_start_matches("because: ").trim();
                count += 1;
                if !sources.contains(part) {
                    wrong.push(format!("{}, line {}: nobody says `{part}`", page.name(), block.line));
                }
            }
        }
    }
    assert!(count > 10, "{count} parts of messages were found");
    assert_none(&wrong);
}

fn read_sources(directory: &Path, sources: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "sh") {
            *sources += &fs::read_to_string(&path).unwrap();
        }
    }
}

/// The pages that are made from the program: all keys, and all commands. With `TSUNAMI_UPDATE_DOCS` set they are written
/// (`cargo xtask docs` does that).
#[test]
fn pages_made_from_the_program_are_up_to_date() {
    let registry = crate::registry();
    let mut wrong = Vec::new();
    let made = [
        ("../docs/guide/src/keys.md", keys(&registry)),
        ("../docs/guide/src/commands.md", commands(&registry)),
        // Examples name it, and `cargo xtask test` has Taplo check them by it.
        ("../examples/experiment.schema.json", schema(&registry)),
    ];
    for (path, made) in made {
        let path = Path::new(path);
        // Without EC2 the program says less.
        if cfg!(not(feature = "aws")) || fs::read_to_string(path).unwrap_or_default() == made {
            continue;
        }
        if std::env::var_os("TSUNAMI_UPDATE_DOCS").is_some() {
            fs::write(path, made).unwrap();
        } else {
            wrong.push(format!("{} is out of date: `cargo xtask docs` makes it anew", path.display()));
        }
    }
    assert_none(&wrong);
}

const MADE: &str = "This page is made from the program (`cargo xtask docs`).";

/// The reference of the experiment file.
fn keys(registry: &Registry) -> String {
    let reference = Experiment::reference(registry);
    let tables = reference.split_once('\n').map_or("", |(_, rest)| rest).trim_end();
    let prints = "`tsunami schema --reference` prints the same. A file must have the keys in bold.";
    format!("# All keys of the file\n\n{MADE} {prints}\n{tables}\n")
}

/// What `tsunami schema` prints.
fn schema(registry: &Registry) -> String {
    serde_json::to_string_pretty(&Experiment::schema(registry)).unwrap() + "\n"
}

/// What the program says of itself and of each command.
fn commands(registry: &Registry) -> String {
    let mut program = Args::command_for(registry).term_width(88).disable_help_subcommand(true);
    let all = "Every command takes the options of `tsunami` itself, too.";
    let mut text = format!("# All commands\n\n{MADE} {all}\n\n```text\n{}```\n", shown(&mut program));
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        let is_global = |arg: &&clap::Arg| arg.is_global_set();
        let globals: Vec<_> =
            command.get_arguments().filter(is_global).map(|arg| arg.get_id().clone()).collect();
        let own = command.clone().term_width(88).disable_help_flag(true);
        let own = globals.into_iter().fold(own, |own, id| own.mut_arg(id, |arg| arg.hide(true)));
        let name = format!("tsunami {}", own.get_name());
        let mut command = own.bin_name(&name);
        let _ = write!(text, "\n## {name}\n\n```text\n{}```\n", shown(&mut command));
    }
    text
}

/// The long help, without spaces at the ends of lines.
fn shown(command: &mut clap::Command) -> String {
    let help = command.render_long_help().to_string();
    help.trim_end().lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}
