//! `tsunami man`: the manual, as `man` reads it.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap_mangen::Man as Page;

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
            fs::write(&path, page).map_err(Error::file("write", &path))?;
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
        page.render(&mut text)?;
        Ok((page.get_filename(), text))
    };
    all.map(page).collect()
}
