//! `tsunami man`: the manual, as `man` reads it.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap_mangen::Man as Page;
use tsunami_core::private::write_whole;

use super::{Context, Execute};
use crate::args::Args;
use crate::error::Error;
use crate::terminal::{one_line, print_as_is, say};

/// Print the manual, as `man` reads it
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Man {
    /// Write a page for each command into this directory
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  tsunami man | man -l -                   # all pages, one after another
  tsunami man -o ~/.local/share/man/man1   # then `man tsunami-run`";

impl Execute for Man {
    fn names_abandoned_runs(&self) -> bool {
        false
    }

    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let pages = pages(Args::command_for(context.registry)).map_err(Error::file("make", "the manual"))?;
        let Some(directory) = self.output else {
            pages.iter().try_for_each(|(_, page)| print_as_is(page))?;
            return Ok(0);
        };
        fs::create_dir_all(&directory).map_err(Error::file("make", &directory))?;
        for (name, page) in &pages {
            let path = directory.join(name);
            // A link that is there is replaced, and what it leads to stays.
            write_whole(&path, 0o644, |file| file.write_all(page)).map_err(Error::file("write", &path))?;
        }
        say(&format!("{} pages are in {}", pages.len(), one_line(&directory.to_string_lossy())));
        Ok(0)
    }
}

/// The page of the program, and one for each command, with the names of their files.
fn pages(mut command: clap::Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    command.build();
    let commands = command.get_subcommands().filter(|command| command.get_name() != "help");
    let all = std::iter::once(&command).chain(commands);
    let page = |command: &clap::Command| {
        let page = Page::new(command.clone());
        let mut text = Vec::new();
        page.render_title(&mut text)?;
        page.render_name_section(&mut text)?;
        page.render_synopsis_section(&mut text)?;
        page.render_description_section(&mut text)?;
        page.render_options_section(&mut text)?;
        if command.has_subcommands() {
            page.render_subcommands_section(&mut text)?;
        }
        text.extend(sections(&command.get_after_long_help().map(ToString::to_string).unwrap_or_default()));
        Ok((page.get_filename(), text))
    };
    all.map(page).collect()
}

/// What stands below the options in a command's help: its paragraphs as sections, whose lines stay as they are.
fn sections(help: &str) -> Vec<u8> {
    let mut text = String::new();
    for paragraph in help.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
        let (title, lines) = match paragraph.trim().split_once(":\n") {
            Some((title, lines)) => (title.to_uppercase(), lines),
            None => ("NOTES".to_owned(), paragraph),
        };
        text.push_str(&format!(".SH {title}\n.nf\n"));
        for line in lines.lines() {
            // A line that begins with a dot or an apostrophe would be a request.
            text.push_str(&format!("\\&{}\n", line.replace('\\', "\\e").replace('-', "\\-")));
        }
        text.push_str(".fi\n");
    }
    text.into_bytes()
}
