//! The documents as tests read them: pages, their blocks of code, and what these tell readers to type.

use std::fs;
use std::path::{Path, PathBuf};

/// A file of the documents.
pub(crate) struct Page {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A block of code between fences.
pub(crate) struct Block {
    /// What stands behind the fence: the language.
    pub(crate) kind: String,
    /// The line of its first line of code, from one.
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// All pages at the top of the repository and below `docs`. Tests run in the directory of their package, or in that of its
/// copy, so the repository is the one above.
pub(crate) fn pages() -> Vec<Page> {
    let mut pages = Vec::new();
    gather(Path::new(".."), false, &mut pages);
    gather(Path::new("../docs"), true, &mut pages);
    assert!(pages.iter().any(|page| page.path.ends_with("README.md")), "there is no README above");
    pages.sort_by(|a, b| a.path.cmp(&b.path));
    pages
}

fn gather(directory: &Path, below: bool, pages: &mut Vec<Page>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && below {
            gather(&path, below, pages);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(Page { text: fs::read_to_string(&path).unwrap(), path });
        }
    }
}

impl Page {
    pub(crate) fn name(&self) -> String {
        self.path.strip_prefix("..").unwrap_or(&self.path).display().to_string()
    }

    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut inside = false;
        for (number, line) in self.text.lines().enumerate() {
            match (inside, line.strip_prefix("```"), blocks.last_mut()) {
                (true, Some(_), _) => inside = false,
                (true, None, Some(block)) => block.text += &format!("{line}\n"),
                (_, Some(kind), _) => {
                    inside = true;
                    blocks.push(Block { kind: kind.to_owned(), line: number + 2, text: String::new() });
                }
                _ => {}
            }
        }
        assert!(!inside, "{}: a block has no end", self.name());
        blocks
    }
}

impl Block {
    /// The name of the file that it is to be, which it begins with.
    pub(crate) fn file(&self) -> Option<&str> {
        let file = self.text.lines().next()?.strip_prefix("# ")?;
        (self.kind == "toml" && file.ends_with(".toml") && !file.contains(['/', ' '])).then_some(file)
    }

    /// Each command that a `console` block shows behind `$ `, with the output that it shows below.
    pub(crate) fn commands(&self) -> Vec<(String, String)> {
        let mut commands: Vec<(String, String)> = Vec::new();
        for line in self.text.lines() {
            match (line.strip_prefix("$ "), commands.last_mut()) {
                (Some(command), _) => commands.push((command.to_owned(), String::new())),
                (None, Some((_, output))) => *output += &format!("{line}\n"),
                (None, None) => panic!("a console block begins with output: {line}"),
            }
        }
        commands
    }
}
