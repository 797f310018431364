//! The book that is the guide, and the documentation of the crates.

use std::fs;
use std::process::Command;

use crate::{Failure, Result, cargo, root, say, succeeds};

/// What makes the book. Its lock file comes with it, so the version says all.
const MDBOOK: &str = "0.5.4";

/// Makes the pages that come from the program anew, then the book and the documentation of all crates.
pub(crate) fn docs(quick: bool) -> Result {
    // As the tests build it, so that nothing is compiled once more.
    let mut pages = cargo(["test", "--workspace", "--lib", "--", "pages_made_from_the_program"]);
    let mut done = succeeds(pages.env("TSUNAMI_UPDATE_DOCS", "1"))?;
    done &= book()?;
    if !quick {
        let mut crates = cargo(["doc", "--workspace", "--no-deps", "--all-features"]);
        done &= succeeds(crates.env("RUSTDOCFLAGS", "-D warnings"))?;
    }
    if !done {
        return Err(Failure::new("the documents could not be made: see above"));
    }
    eprintln!("xtask: the guide is in target/guide/index.html, the crates are in target/doc");
    Ok(())
}

/// Makes the book. mdBook goes on where a page includes what isn't there, so its complaints count.
pub(crate) fn book() -> Result<bool> {
    let home = root().join("target/mdbook");
    let mdbook = home.join("bin/mdbook");
    let installed = Command::new(&mdbook).arg("--version").output();
    let is_right = installed.is_ok_and(|it| String::from_utf8_lossy(&it.stdout).trim().ends_with(MDBOOK));
    if !is_right {
        let mut install = cargo(["install", "mdbook", "--locked", "--version", MDBOOK]);
        install.args(["--no-default-features", "--features", "search", "--root"]).arg(&home);
        if !succeeds(&mut install)? {
            return Ok(false);
        }
    }
    fs::create_dir_all(root().join("target/guide"))?;
    let mut build = Command::new(mdbook);
    build.current_dir(root()).args(["build", "docs/guide"]);
    say(&build);
    let built = build.output()?;
    let said = String::from_utf8_lossy(&built.stderr);
    eprint!("{said}");
    Ok(built.status.success() && !said.contains("ERROR") && !said.contains("WARN"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::Task;

    /// Every `cargo xtask …` in the documents, and in what CI runs, is one.
    #[test]
    fn tasks_in_documents_are_understood() {
        let mut texts = Vec::new();
        gather(Path::new(".."), &mut texts);
        let mut tasks = 0;
        for said in texts.iter().flat_map(|text| text.split("cargo xtask ").skip(1)) {
            let words = said.split(['`', '\n', '#']).next().unwrap_or_default();
            // What stands for a file or a number there.
            let words = words.replace("FILE", "x").replace("SECONDS", "1");
            let words: Vec<&str> = words.split_whitespace().collect();
            let is_prose =
                words.first().is_none_or(|word| !word.starts_with(|c: char| c.is_ascii_lowercase()));
            if is_prose {
                continue;
            }
            tasks += 1;
            if let Err(error) = Task::try_parse_from(["xtask"].iter().chain(&words)) {
                panic!("cargo xtask {}: {error}", words.join(" "));
            }
        }
        assert!(tasks > 5, "{tasks} tasks were found");
    }

    /// Reads documents and what CI runs: at the top, and all below some directories.
    fn gather(directory: &Path, texts: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let is_one =
                |endings: &[&str]| path.extension().is_some_and(|it| endings.iter().any(|end| it == *end));
            let is_wanted = [".ci", ".github", "docs"].iter().any(|name| path.ends_with(name));
            if path.is_dir() && (is_wanted || directory != Path::new("..")) {
                gather(&path, texts);
            } else if is_one(&["md", "yml"]) || path.ends_with(".ci/run") {
                texts.push(fs::read_to_string(&path).unwrap());
            }
        }
    }
}
