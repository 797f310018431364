//! What is worth a look in an experiment, though nothing is wrong with it.

use std::collections::HashSet;
use std::path::Path;
use std::{fs, io};

use super::Experiment;
use crate::exclude::Exclude;

impl Experiment {
    /// What is worth a look though nothing is wrong: what `exclude` names and isn't there, and that it leaves
    /// nothing. It reads the directories that are
    /// uploaded, and may wait for a disk.
    pub fn notes(&self) -> Vec<String> {
        let groups = self.groups.iter().chain(self.sets.iter().flat_map(|set| &set.groups));
        let mut seen = HashSet::new();
        let uploads = groups.flat_map(|group| &group.upload).filter(|upload| !upload.exclude.is_empty());
        let mut notes = Vec::new();
        for upload in uploads.filter(|upload| seen.insert((&upload.from, upload.exclude.patterns()))) {
            let mut left: HashSet<usize> = (0..upload.exclude.patterns().len()).collect();
            // What can't be read is said by whoever uploads it.
            let _ = look(&upload.from, &upload.from, &upload.exclude, &mut left);
            if leaves_nothing(&upload.from, &upload.exclude).unwrap_or_default() {
                notes.push(format!("`exclude` of {}: nothing is left to upload", upload.from.display()));
            }
            let patterns = upload.exclude.patterns().iter().enumerate();
            let idle = patterns.filter(|(place, _)| left.contains(place)).map(|(_, pattern)| pattern);
            notes.extend(idle.map(|pattern| {
                format!("`exclude` of {}: nothing there is `{pattern}`", upload.from.display())
            }));
        }
        notes
    }
}

/// Whether all that is in a directory is left out, and there is something.
fn leaves_nothing(directory: &Path, exclude: &Exclude) -> io::Result<bool> {
    let mut is_empty = true;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !exclude.matches(Path::new(&entry.file_name()), entry.file_type()?.is_dir()) {
            return Ok(false);
        }
        is_empty = false;
    }
    Ok(!is_empty)
}

/// Lets go of the patterns that match something, until there are none left.
fn look(root: &Path, directory: &Path, exclude: &Exclude, left: &mut HashSet<usize>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, is_directory) = (entry.path(), entry.file_type()?.is_dir());
        let relative = path.strip_prefix(root).unwrap_or(&path);
        let matching: Vec<usize> = exclude.matching(relative, is_directory).collect();
        left.retain(|place| !matching.contains(place));
        if left.is_empty() {
            break;
        }
        if is_directory && matching.is_empty() {
            look(root, &path, exclude, left)?;
        }
    }
    Ok(())
}
