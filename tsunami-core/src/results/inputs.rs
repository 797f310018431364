//! What a run was given: scripts and user data, the values that were set, and what was uploaded.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{ResultsError, files};
use crate::experiment::{Experiment, Setup};

/// What was uploaded, for those who want to repeat the run. Names are shown as far as they are text.
#[derive(Serialize)]
struct Digested {
    group: String,
    from: String,
    to: String,
    files: Vec<DigestedFile>,
}

#[derive(Serialize)]
pub(super) struct DigestedFile {
    pub(super) path: String,
    size: u64,
    sha256: String,
}

/// The scripts of a group, each once, and names for them in one directory: their own, with a number before it where
/// that is taken.
fn named<'a>(
    scripts: impl Iterator<Item = &'a Path>,
    taken: &[(String, String)],
) -> BTreeMap<OsString, &'a Path> {
    let mut names = BTreeMap::new();
    for script in scripts {
        let own = script.file_name().unwrap_or(script.as_os_str());
        let numbered = (2..).map(|number: usize| {
            let mut name = OsString::from(format!("{number}-"));
            name.push(own);
            name
        });
        let free = |name: &OsString| {
            names.get(name).is_none_or(|same| *same == script)
                && taken.iter().all(|(taken, _)| name != taken.as_str())
        };
        if let Some(name) = std::iter::once(own.to_owned()).chain(numbered).find(free) {
            names.insert(name, script);
        }
    }
    names
}

/// Scripts and user data as they are, the values that were set, and the digests of uploads.
pub(super) fn write(experiment: &Experiment, directory: &Path) -> Result<(), ResultsError> {
    files::make_directory(directory).map_err(ResultsError::file("make", directory))?;
    let mut uploads = Vec::new();
    for group in &experiment.groups {
        let into = directory.join(&group.name);
        for (name, text) in &group.inputs {
            files::make_directory(&into).map_err(ResultsError::file("make", &into))?;
            let to = into.join(name);
            files::write(&to, text).map_err(ResultsError::file("write", &to))?;
        }
        let scripts = group.setup.iter().filter_map(|setup| match setup {
            Setup::Script(script) => Some(script.as_path()),
            Setup::Command(_) => None,
        });
        for (name, script) in named(scripts, &group.inputs) {
            files::make_directory(&into).map_err(ResultsError::file("make", &into))?;
            let copy = |copy: &mut File| io::copy(&mut File::open(script)?, copy).map(drop);
            files::whole(&into.join(name), copy).map_err(ResultsError::file("copy", script))?;
        }
        for upload in &group.upload {
            let mut files = Vec::new();
            digest(&upload.from, Path::new(""), &mut files)
                .map_err(ResultsError::file("read", &upload.from))?;
            let to = upload.to.source().to_owned();
            uploads.push(Digested {
                group: group.name.clone(),
                from: upload.from.to_string_lossy().into_owned(),
                to,
                files,
            });
        }
    }
    let write_json = |name: &str, value: serde_json::Result<String>| {
        let path = directory.join(name);
        files::write(
            &path,
            value.map_err(io::Error::from).map_err(ResultsError::file("write", &path))? + "\n",
        )
        .map_err(ResultsError::file("write", &path))
    };
    if !uploads.is_empty() {
        write_json("uploads.json", serde_json::to_string_pretty(&uploads))?;
    }
    if !experiment.set.is_empty() {
        let set: BTreeMap<_, _> = experiment.set.iter().cloned().collect();
        write_json("set.json", serde_json::to_string_pretty(&set))?;
    }
    Ok(())
}

/// The digests of a file, or of all files in a directory. Links are not followed, as in the upload itself.
pub(super) fn digest(root: &Path, relative: &Path, files: &mut Vec<DigestedFile>) -> io::Result<()> {
    let path = if relative == Path::new("") { root.to_owned() } else { root.join(relative) };
    let metadata =
        if relative == Path::new("") { fs::metadata(&path)? } else { fs::symlink_metadata(&path)? };
    if metadata.is_dir() {
        let mut entries = fs::read_dir(&path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        return entries.iter().try_for_each(|entry| digest(root, &relative.join(entry.file_name()), files));
    }
    if metadata.is_file() {
        // It may grow for ever.
        let mut file = File::open(&path)?.take(metadata.len());
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
        while let count @ 1.. = file.read(&mut buffer)? {
            hasher.update(&buffer[..count]);
        }
        let sha256 = format!("{:x}", hasher.finalize());
        files.push(DigestedFile {
            path: relative.to_string_lossy().into_owned(),
            size: metadata.len(),
            sha256,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn scripts_of_the_same_name_and_user_data_are_all_kept() {
        let scripts = ["a/setup.sh", "b/setup.sh", "a/setup.sh", "2-setup.sh", "user-data"].map(Path::new);
        let names = |taken: &[(String, String)]| -> Vec<_> {
            let named = named(scripts.into_iter(), taken);
            named.into_iter().map(|(name, path)| (name.into_string().unwrap(), path.to_owned())).collect()
        };
        let mut expected = [
            ("2-2-setup.sh", "2-setup.sh"),
            ("2-setup.sh", "b/setup.sh"),
            ("setup.sh", "a/setup.sh"),
            ("user-data", "user-data"),
        ]
        .map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
        assert_eq!(names(&[]), expected);
        expected[3].0 = "2-user-data".to_owned();
        expected.sort();
        assert_eq!(names(&[("user-data".to_owned(), String::new())]), expected);
    }

    #[test]
    fn inputs_hold_what_the_provider_keeps_of_each_group() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.toml");
        fs::write(&file, "name = 'x'\n[group.a]\n").unwrap();
        let mut experiment = Experiment::load(&file).unwrap();
        experiment.groups[0].inputs.push(("user-data".to_owned(), "#!/bin/sh\n".to_owned()));
        write(&experiment, &directory.path().join("inputs")).unwrap();
        let kept = fs::read_to_string(directory.path().join("inputs/a/user-data")).unwrap();
        assert_eq!(kept, "#!/bin/sh\n");
    }
}
