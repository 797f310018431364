//! What pages show in `console` blocks is what their commands print.
//!
//! A block of TOML whose first line is a comment with a file's name is written to that file. A page is one session, in a
//! directory of its own. Where a page shows a line `…`, more may be printed than it shows. With `TSUNAMI_UPDATE_DOCS` set,
//! pages that differ are written anew.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use regex::Regex;

use crate::markdown::{self, Page};
use crate::world::{World, binary};

#[test]
fn pages_show_what_their_commands_print() {
    let pages = markdown::pages();
    let run: Vec<&Page> =
        pages.iter().filter(|page| page.blocks().iter().any(|block| block.kind == "console")).collect();
    assert!(run.iter().any(|page| page.path.ends_with("README.md")));
    assert!(run.iter().any(|page| page.path.ends_with("getting-started.md")));
    std::thread::scope(|scope| {
        for page in run {
            scope.spawn(|| follow(page));
        }
    });
}

/// Does what a page says, as its reader would.
fn follow(page: &Page) {
    let world = World::new();
    let programs = world.path("bin");
    fs::create_dir(&programs).unwrap();
    symlink(binary(), programs.join("tsunami")).unwrap();
    let work = fs::canonicalize(world.path("work")).unwrap();
    let (mut status, mut anew) = (0, Vec::new());
    for block in page.blocks() {
        if let Some(file) = block.file() {
            world.write(file, &block.text);
        }
        if block.kind != "console" {
            continue;
        }
        let mut text = String::new();
        for (command, shown) in block.commands() {
            let mut bash = world.program("bash".as_ref());
            bash.env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()));
            // The commands of a page are one session, whose next one may ask for the status of the last.
            let script = format!("exec 2>&1; (exit {status}); {command}");
            let output = bash.args(["-c", &script]).output().unwrap();
            status = output.status.code().unwrap();
            let printed = String::from_utf8(output.stdout).unwrap();
            let printed = printed.replace(work.to_str().unwrap(), "/home/you/first");
            let (mut expected, found) = (alike(&shown), alike(&printed));
            let is_a_part = expected.remove("…");
            text += &format!("$ {command}\n");
            if expected == found || is_a_part && expected.is_subset(&found) {
                text += &shown;
                continue;
            }
            assert!(
                std::env::var_os("TSUNAMI_UPDATE_DOCS").is_some(),
                "{}, line {}: `{command}` prints something else than is shown; run the test with \
                 TSUNAMI_UPDATE_DOCS=1 to show what it prints\nshown: {:#?}\nprinted: {:#?}\n{printed}",
                page.name(),
                block.line,
                expected.difference(&found).collect::<Vec<_>>(),
                found.difference(&expected).collect::<Vec<_>>()
            );
            let remains = |line: &&str| *line == "…" || alike(line).is_subset(&found);
            // Where a trial was done again, its steps are told once.
            let mut told = BTreeSet::new();
            let is_new = |line: &String| !line.starts_with('[') || told.insert(timeless(line));
            match is_a_part {
                true => text.extend(shown.lines().filter(remains).map(|line| format!("{line}\n"))),
                false => text.extend(printed.lines().filter_map(calm).filter(is_new).map(|line| line + "\n")),
            }
        }
        anew.push((block.line - 1..block.line - 1 + block.text.lines().count(), text));
    }
    if std::env::var_os("TSUNAMI_UPDATE_DOCS").is_some() {
        let mut lines: Vec<&str> = page.text.lines().collect();
        for (range, text) in anew.iter().rev() {
            lines.splice(range.clone(), text.lines());
        }
        fs::write(&page.path, lines.join("\n") + "\n").unwrap();
    }
    world.assert_clean();
}

/// A line of output without what other things on this computer have to do with; `None` if it is about nothing else.
fn calm(line: &str) -> Option<String> {
    let line = line.split("; disturbed: ").next().unwrap_or_default();
    (!["disturbed", "doesn't count", "waiting for", "waiting until"].iter().any(|word| line.contains(word)))
        .then(|| line.to_owned())
}

/// The lines of an output in no order, without what differs from run to run: ids, times, addresses and figures.
fn alike(output: &str) -> BTreeSet<String> {
    let id = Regex::new(r"\b\d{8}-\d{6}-[a-z0-9]+\b").unwrap();
    let number = Regex::new(r"\d+([.,]\d+)*").unwrap();
    let space = Regex::new(r" {2,}").unwrap();
    let lines = output.lines().filter_map(calm).map(|line| {
        let line = timeless(&id.replace_all(&line, "RUN"));
        let line = number.replace_all(&line, "N");
        space.replace_all(&line, " ").trim().to_owned()
    });
    lines.filter(|line| !line.is_empty()).collect()
}

/// A line without its times.
fn timeless(line: &str) -> String {
    let duration = Regex::new(r"\b(\d+(\.\d+)?(ms|s|m|h)\b ?)+").unwrap();
    duration.replace_all(line, "TIME ").into_owned()
}
