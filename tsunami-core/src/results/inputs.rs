//! What a run was given: scripts and user data, the values that were set, and what was uploaded.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{ResultsError, files};
use crate::exclude::Exclude;
use crate::experiment::{EnvValue, Experiment, Group, Setup, Template, Upload};
use crate::text::number;
use crate::trial::Parameters;

/// What was uploaded, for those who want to repeat the run. Names are shown as far as they are text.
#[derive(Serialize, Deserialize)]
struct Digested {
    group: String,
    from: String,
    to: String,
    files: Vec<DigestedFile>,
}

#[derive(PartialEq, Serialize, Deserialize)]
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

/// Puts what a run has kept in the place of a group's scripts, as far as it is there.
pub(crate) fn take_kept(kept: &Path, group: &str, setup: &mut [Setup], inputs: &[(String, String)]) {
    let own = named(scripts(setup), inputs);
    let own: Vec<_> = own.into_iter().map(|(name, path)| (name, path.to_owned())).collect();
    for setup in setup {
        let Setup::Script(path) = setup else { continue };
        let name = own.iter().find(|(_, own)| own == path).map(|(name, _)| name);
        let copy = name.map(|name| kept.join(group).join(name));
        copy.filter(|copy| copy.is_file()).into_iter().for_each(|copy| *path = copy);
    }
}

/// What the file was given, beside what it names.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// The directory that its paths are relative to, unless an earlier version left it out.
    pub(crate) directory: Option<PathBuf>,
    /// Where the file itself was, unless an earlier version left it out.
    pub(crate) file: Option<PathBuf>,
    /// The values that were set.
    pub(crate) set: Vec<(String, String)>,
}

impl Given {
    /// Reads it from a run's results.
    pub(crate) fn read(results: &Path) -> io::Result<Self> {
        let inputs = results.join(INPUTS);
        if matches!(fs::metadata(&inputs), Err(error) if error.kind() == io::ErrorKind::NotFound) {
            return Err(io::Error::other("the run ended before it was written down, or inputs/ was removed"));
        }
        let source = Source::read(&inputs)?;
        let set: Option<BTreeMap<String, String>> = match fs::read(inputs.join(SET)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            bytes => serde_json::from_slice(&bytes?)?,
        };
        let (directory, file) = source.map(|source| (source.directory, source.file)).unzip();
        let (directory, file) = (directory.map(PathBuf::from), file.flatten().map(PathBuf::from));
        Ok(Self { directory, file, set: set.unwrap_or_default().into_iter().collect() })
    }
}

/// Where the file was, and digests of what is kept of it: a run that is resumed or repeated has to have the same. Earlier
/// versions left the rest out.
#[derive(Serialize, Deserialize)]
struct Source {
    directory: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    experiment_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    set_sha256: Option<String>,
    /// Scripts and user data, by `<group>/<name>`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    kept_sha256: BTreeMap<String, String>,
    /// What else groups are given, by `<what> of group <name>`: for each set of machines in which it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    given_sha256: Option<BTreeMap<String, BTreeSet<String>>>,
}

impl Source {
    fn of(experiment: &Experiment) -> Self {
        let set: BTreeMap<_, _> = experiment.set.iter().map(|(name, value)| (name, value)).collect();
        let set = set.into_iter().fold(Sha256::new(), |hasher, (name, value)| {
            hasher.chain_update(name).chain_update([0]).chain_update(value).chain_update([0])
        });
        Self {
            directory: experiment.directory.to_string_lossy().into_owned(),
            file: Some(experiment.file.to_string_lossy().into_owned()),
            experiment_sha256: Some(format!("{:x}", Sha256::digest(&experiment.source))),
            set_sha256: Some(format!("{:x}", set.finalize())),
            kept_sha256: BTreeMap::new(),
            given_sha256: Some(given(experiment)),
        }
    }

    fn read(inputs: &Path) -> io::Result<Option<Self>> {
        match fs::read(inputs.join(SOURCE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            bytes => {
                let damaged = |error| io::Error::other(format!("inputs/{SOURCE} is damaged: {error}"));
                Ok(serde_json::from_slice(&bytes?).map_err(damaged)?)
            }
        }
    }
}

/// What the directory of all of this is called among the results.
pub(crate) const INPUTS: &str = "inputs";
const SOURCE: &str = "source.json";
const SET: &str = "set.json";
const UPLOADS: &str = "uploads.json";

/// Digests of uploads as they are named, of set-up and of environments, with the values that they use.
fn given(experiment: &Experiment) -> BTreeMap<String, BTreeSet<String>> {
    let mut given: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for set in (1..=experiment.set_count()).map(|set| experiment.on_set(set)) {
        let values = &*set.values;
        for group in &set.groups {
            let uploads = group.upload.iter().flat_map(|upload| {
                let template = upload.template.as_ref().map(|template| templated(template, values));
                [Some(templated(&upload.to, values)), template].into_iter().flatten()
            });
            let setup = group.setup.iter().map(|setup| match setup {
                Setup::Command(command) => templated(command, values),
                // Its content is kept.
                Setup::Script(script) => {
                    script.file_name().unwrap_or_default().to_string_lossy().into_owned()
                }
            });
            let env = group.env.iter().map(|(name, value)| match value {
                EnvValue::Text(text) => format!("{name}={}", templated(text, values)),
                // A digest would give a short secret away.
                EnvValue::FromEnv { variable, .. } => format!("{name} from {variable}"),
            });
            let all: [(&str, Vec<String>); 3] =
                [("uploads", uploads.collect()), ("setup", setup.collect()), ("env", env.collect())];
            for (what, parts) in all.into_iter().filter(|(_, parts)| !parts.is_empty()) {
                let digest = parts
                    .iter()
                    .fold(Sha256::new(), |hasher, part| hasher.chain_update(part).chain_update([0]));
                let digests = given.entry(format!("{what} of group {}", group.name)).or_default();
                digests.insert(format!("{:x}", digest.finalize()));
            }
        }
    }
    given
}

/// A template and the values that it uses.
fn templated(template: &Template, values: &Parameters) -> String {
    let names: BTreeSet<String> = template.names().into_iter().collect();
    let used = names.iter().filter_map(|name| Some(format!("\0{name}={}", values.get(name)?)));
    template.source().to_owned() + &used.collect::<String>()
}

/// What of the inputs of a run differs from those of the run that has set its machines up: the first of it. A group that is
/// given nothing may be any. What an earlier version didn't write down isn't known.
pub(super) fn otherwise(ours: &Path, theirs: &Path) -> io::Result<Option<String>> {
    let (Some(now), Some(then)) = (Source::read(ours)?, Source::read(theirs)?) else { return Ok(None) };
    if let Some(first) = other_contents(ours, theirs)?.into_iter().next() {
        return Ok(Some(first));
    }
    let (Some(now), Some(then)) = (now.given_sha256, then.given_sha256) else { return Ok(None) };
    let mut given = now.into_iter();
    let other = given.find(|(what, digests)| !then.get(what).is_some_and(|then| then.is_superset(digests)));
    Ok(other.map(|(what, _)| what))
}

/// The files among the inputs of a run that those of another have not, or not with this content: uploads, scripts and user data.
/// None where an earlier version didn't write them down.
pub(super) fn other_contents(ours: &Path, theirs: &Path) -> io::Result<Vec<String>> {
    let (Some(now), Some(then)) = (Source::read(ours)?, Source::read(theirs)?) else { return Ok(Vec::new()) };
    let uploads = |inputs: &Path| -> io::Result<Vec<Digested>> {
        match fs::read(inputs.join(UPLOADS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            bytes => Ok(serde_json::from_slice(&bytes?)?),
        }
    };
    let (uploaded, before) = (uploads(ours)?, uploads(theirs)?);
    let is_known = |upload: &Digested| {
        let Digested { group, to, files, .. } = upload;
        before.iter().any(|before| (&before.group, &before.to, &before.files) == (group, to, files))
    };
    let uploaded = uploaded.iter().filter(|upload| !is_known(upload));
    let uploaded =
        uploaded.map(|Digested { group, from, .. }| format!("{from}, an upload of group {group},"));
    let is_other = |(name, sha256): &(&String, &String)| then.kept_sha256.get(*name) != Some(*sha256);
    let kept = now.kept_sha256.iter().filter(is_other).map(|(name, _)| format!("inputs/{name}"));
    Ok(uploaded.chain(kept).collect())
}

/// Compares what an experiment would be given now with what its run was given.
pub(super) fn check(experiment: &Experiment, directory: &Path) -> Result<(), ResultsError> {
    let path = directory.join(SOURCE);
    let before = Source::read(directory).map_err(ResultsError::file("read", &path))?;
    let file = before.as_ref().and_then(|before| before.file.as_ref()).map(PathBuf::from);
    let differs = |what: String| ResultsError::Changed { what, file: file.clone() };
    let changed = |path: &Path| differs(path.display().to_string());
    if let Some(before) = &before {
        let now = Source::of(experiment);
        let is_other = |before: &Option<String>, now| before.is_some() && *before != now;
        if is_other(&before.experiment_sha256, now.experiment_sha256) {
            return Err(changed(&directory.with_file_name("experiment.toml")));
        }
        if is_other(&before.set_sha256, now.set_sha256) {
            return Err(changed(&directory.join(SET)));
        }
        for (name, sha256) in &before.kept_sha256 {
            let kept = directory.join(name);
            if sha256_of(&kept)? != *sha256 {
                return Err(changed(&kept));
            }
        }
    }
    let path = directory.join(UPLOADS);
    let before: Vec<Digested> = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        bytes => {
            let read = bytes.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
            read.map_err(ResultsError::file("read", &path))?
        }
    };
    for (group, upload) in uploads(experiment) {
        let now = digested(group, upload)?;
        // Where it is on this computer may be said otherwise than before: relative to another directory.
        let is_same = |before: &Digested| {
            (&before.group, &before.to, &before.files) == (&now.group, &now.to, &now.files)
        };
        if !before.iter().any(is_same) {
            let mut there =
                before.iter().filter(|before| (&before.group, &before.to) == (&now.group, &now.to));
            let others =
                there.next().map(|before| other_files(&before.files, &now.files)).unwrap_or_default();
            // Of a file that is uploaded by itself, or a directory that was uploaded nowhere, its own name says it.
            return Err(match others.split_first() {
                Some((first, [])) if !first.is_empty() => changed(&upload.from.join(first)),
                Some((first, more)) if !first.is_empty() => {
                    let more = number(more.len(), "other file");
                    differs(format!("{} (and {more} there)", upload.from.join(first).display()))
                }
                _ => changed(&upload.from),
            });
        }
    }
    for group in groups(experiment) {
        let kept = directory.join(&group.name);
        for (name, script) in named(scripts(&group.setup), &group.inputs) {
            if digest_of(script)? != digest_of(&kept.join(name))? {
                return Err(changed(script));
            }
        }
        for (name, _) in &group.inputs {
            let path = kept.join(name);
            let text = fs::read(&path).map_err(ResultsError::file("read", &path))?;
            // Groups of one name share a place for it, though a parameter may make theirs differ.
            let mut alike = groups(experiment).filter(|other| other.name == group.name);
            let has_it =
                |other: &Group| other.inputs.iter().any(|(own, now)| own == name && now.as_bytes() == text);
            if !alike.any(has_it) {
                return Err(differs(format!("what {} was made from", path.display())));
            }
        }
    }
    Ok(())
}

/// The paths of files of which one side has no such file, or one with another content.
fn other_files<'f>(before: &'f [DigestedFile], now: &'f [DigestedFile]) -> Vec<&'f str> {
    let [then, now] = [before, now].map(|files| {
        let each = files.iter().map(|file| (file.path.as_str(), file.sha256.as_str()));
        each.collect::<BTreeSet<_>>()
    });
    let others: BTreeSet<_> = then.symmetric_difference(&now).map(|(path, _)| *path).collect();
    others.into_iter().collect()
}

fn digest_of(file: &Path) -> Result<Vec<DigestedFile>, ResultsError> {
    digest_without(file, &Exclude::default())
}

fn digest_without(file: &Path, exclude: &Exclude) -> Result<Vec<DigestedFile>, ResultsError> {
    let mut files = Vec::new();
    digest(file, Path::new(""), exclude, &mut files).map_err(ResultsError::file("read", file))?;
    Ok(files)
}

/// The groups of all sets of machines, those of one name being alike in what they are given.
fn groups(experiment: &Experiment) -> impl Iterator<Item = &Group> {
    let all = experiment.groups.iter().chain(experiment.sets.iter().flat_map(|set| &set.groups));
    let mut seen = Vec::new();
    all.filter(move |group| {
        let given = (&group.name, &group.upload, &group.setup, &group.inputs);
        let is_new = !seen.contains(&given);
        seen.push(given);
        is_new
    })
}

fn sha256_of(file: &Path) -> Result<String, ResultsError> {
    let files = digest_of(file)?;
    Ok(files.into_iter().next().map(|file| file.sha256).unwrap_or_default())
}

fn scripts(setup: &[Setup]) -> impl Iterator<Item = &Path> {
    setup.iter().filter_map(|setup| match setup {
        Setup::Script(script) => Some(script.as_path()),
        Setup::Command(_) => None,
    })
}

fn uploads(experiment: &Experiment) -> impl Iterator<Item = (&Group, &Upload)> {
    groups(experiment).flat_map(|group| group.upload.iter().map(move |upload| (group, upload)))
}

fn digested(group: &Group, upload: &Upload) -> Result<Digested, ResultsError> {
    let files = match &upload.template {
        // What it is rendered from, whatever the file has become.
        Some(template) => {
            let (text, path) = (template.source(), String::new());
            vec![DigestedFile {
                path,
                size: text.len() as u64,
                sha256: format!("{:x}", Sha256::digest(text)),
            }]
        }
        None => digest_without(&upload.from, &upload.exclude)?,
    };
    Ok(Digested {
        group: group.name.clone(),
        from: upload.from.to_string_lossy().into_owned(),
        to: upload.to.source().to_owned(),
        files,
    })
}

/// Scripts and user data as they are, the values that were set, where the file was, and the digests of uploads.
pub(super) fn write(experiment: &Experiment, directory: &Path) -> Result<(), ResultsError> {
    files::make_directory(directory).map_err(ResultsError::file("make", directory))?;
    let mut source = Source::of(experiment);
    for group in groups(experiment) {
        let into = directory.join(&group.name);
        // One whose name is no text is compared with the script itself alone.
        let mut keep = |name: &OsStr| {
            let sha256 = sha256_of(&into.join(name))?;
            let name = name.to_str().map(|name| format!("{}/{name}", group.name));
            source.kept_sha256.extend(name.map(|name| (name, sha256)));
            Ok(())
        };
        for (name, text) in &group.inputs {
            files::make_directory(&into).map_err(ResultsError::file("make", &into))?;
            let to = into.join(name);
            files::write(&to, text).map_err(ResultsError::file("write", &to))?;
            keep(name.as_ref())?;
        }
        for (name, script) in named(scripts(&group.setup), &group.inputs) {
            files::make_directory(&into).map_err(ResultsError::file("make", &into))?;
            let copy = |copy: &mut File| io::copy(&mut File::open(script)?, copy).map(drop);
            files::whole(&into.join(&name), copy).map_err(ResultsError::file("copy", script))?;
            keep(&name)?;
        }
    }
    let uploads = uploads(experiment).map(|(group, upload)| digested(group, upload));
    let uploads = uploads.collect::<Result<Vec<_>, _>>()?;
    let write_json = |name: &str, value: serde_json::Result<String>| {
        let path = directory.join(name);
        files::write(
            &path,
            value.map_err(io::Error::from).map_err(ResultsError::file("write", &path))? + "\n",
        )
        .map_err(ResultsError::file("write", &path))
    };
    write_json(SOURCE, serde_json::to_string_pretty(&source))?;
    if !uploads.is_empty() {
        write_json(UPLOADS, serde_json::to_string_pretty(&uploads))?;
    }
    if !experiment.set.is_empty() {
        let set: BTreeMap<_, _> = experiment.set.iter().cloned().collect();
        write_json(SET, serde_json::to_string_pretty(&set))?;
    }
    Ok(())
}

/// The digests of a file, or of all files in a directory but those that are left out. Links are not followed, as in the upload itself.
pub(super) fn digest(
    root: &Path,
    relative: &Path,
    exclude: &Exclude,
    files: &mut Vec<DigestedFile>,
) -> io::Result<()> {
    let path = if relative == Path::new("") { root.to_owned() } else { root.join(relative) };
    let metadata =
        if relative == Path::new("") { fs::metadata(&path)? } else { fs::symlink_metadata(&path)? };
    if relative != Path::new("") && exclude.matches(relative, metadata.is_dir()) {
        return Ok(());
    }
    if metadata.is_dir() {
        let mut entries = fs::read_dir(&path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        let mut below = entries.iter().map(|entry| relative.join(entry.file_name()));
        return below.try_for_each(|below| digest(root, &below, exclude, files));
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
    fn an_upload_is_the_same_wherever_its_path_begins() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.toml");
        let text = "name = 'x'\n[group.a]\nupload = [{ from = 'x.toml', to = 'in' }]\n";
        fs::write(&file, text).unwrap();
        let mut experiment = Experiment::load(&file).unwrap();
        let inputs = directory.path().join("inputs");
        write(&experiment, &inputs).unwrap();
        experiment.groups[0].upload[0].from = directory.path().join(".").join("x.toml");
        check(&experiment, &inputs).unwrap();
        fs::write(&file, format!("{text}# more")).unwrap();
        assert!(matches!(check(&experiment, &inputs), Err(ResultsError::Changed { .. })));
    }

    #[test]
    fn what_is_left_out_may_change_and_a_template_is_digested_as_it_was_read() {
        let directory = tempfile::tempdir().unwrap();
        let (file, tree) = (directory.path().join("x.toml"), directory.path().join("tree"));
        fs::create_dir_all(tree.join("target")).unwrap();
        fs::write(tree.join("target/x"), "1").unwrap();
        fs::write(tree.join("kept"), "1").unwrap();
        fs::write(directory.path().join("conf"), "{{ ip }}").unwrap();
        let uploads = "[{ from = 'tree', to = 'in', exclude = 'target' }, { from = 'conf', to = 'c', template = true }]";
        fs::write(&file, format!("name = 'x'\n[group.a]\nupload = {uploads}\n")).unwrap();
        let experiment = Experiment::load(&file).unwrap();
        let inputs = directory.path().join("inputs");
        write(&experiment, &inputs).unwrap();
        let uploads = fs::read_to_string(inputs.join(UPLOADS)).unwrap();
        let digest = format!("{:x}", Sha256::digest("{{ ip }}"));
        assert!(
            uploads.contains("kept") && uploads.contains(&digest) && !uploads.contains("target"),
            "{uploads}"
        );
        fs::write(tree.join("target/x"), "2").unwrap();
        check(&Experiment::load(&file).unwrap(), &inputs).unwrap();
        let told = || check(&Experiment::load(&file).unwrap(), &inputs).unwrap_err().to_string();
        for changed in ["tree/kept", "conf"] {
            let before = fs::read(directory.path().join(changed)).unwrap();
            fs::write(directory.path().join(changed), "2").unwrap();
            assert!(told().contains(&format!("/{changed} is not as it was")), "{}", told());
            fs::write(directory.path().join(changed), before).unwrap();
        }
        fs::rename(tree.join("kept"), tree.join("new")).unwrap();
        assert!(told().contains("/tree/kept (and 1 other file there) is not as it was"), "{}", told());
    }

    #[test]
    fn a_file_or_value_that_has_changed_is_named_unless_an_earlier_version_began_the_run() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.toml");
        fs::write(&file, "name = 'x'\n[group.a]\n").unwrap();
        let mut experiment = Experiment::load(&file).unwrap();
        let inputs = directory.path().join("inputs");
        write(&experiment, &inputs).unwrap();
        check(&experiment, &inputs).unwrap();
        let changed = |experiment: &Experiment| check(experiment, &inputs).unwrap_err().to_string();
        experiment.set.push(("a".to_owned(), "1".to_owned()));
        assert!(changed(&experiment).contains("inputs/set.json is not as it was"));
        experiment.source.push('#');
        let error = changed(&experiment);
        assert!(
            error.contains("/experiment.toml is not as it was") && error.contains("put it back"),
            "{error}"
        );
        fs::write(inputs.join(SOURCE), r#"{"directory": "/x"}"#).unwrap();
        check(&experiment, &inputs).unwrap();
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

    #[test]
    fn what_machines_were_given_otherwise_is_named_and_steps_may_differ() {
        let home = tempfile::tempdir().unwrap();
        let (file, data) = (home.path().join("x.toml"), home.path().join("data"));
        let (theirs, ours) = (home.path().join("theirs"), home.path().join("ours"));
        fs::write(&data, "1").unwrap();
        let text = "name = 'x'\n[vars]\na = '1'\nb = '1'\n[group.g]\nupload = [{ from = 'data', to = 'in' }]\n\
                    setup = 'echo {{ a }}'\nenv = { E = 'x' }\n[[step]]\non = 'g'\nrun = 'echo {{ b }}'\n";
        fs::write(&file, text).unwrap();
        write(&Experiment::load(&file).unwrap(), &theirs).unwrap();
        let differs = |text: &str| {
            fs::write(&file, text).unwrap();
            let _ = fs::remove_dir_all(&ours);
            write(&Experiment::load(&file).unwrap(), &ours).unwrap();
            otherwise(&ours, &theirs).unwrap()
        };
        let bare = "name = 'y'\n[group.g]\n[[step]]\non = 'g'\nrun = 'true'\n";
        for same in
            [text, &text.replace("b = '1'", "b = '2'"), &text.replace("echo {{ b }}", "true {{ b }}"), bare]
        {
            assert_eq!(differs(same), None, "{same}");
        }
        for (was, is, what) in [
            ("a = '1'", "a = '2'", "setup of group g"),
            ("echo {{ a }}", "true {{ a }}", "setup of group g"),
            ("'x' }", "'y' }", "env of group g"),
            ("'in' }", "'in' }, { from = 'data', to = 'more' }", "data, an upload of group g,"),
        ] {
            let told = differs(&text.replace(was, is)).unwrap();
            assert!(told.ends_with(what), "{told}");
        }
        let more = text.replace("'in' }", "'in' }, { from = 'data', to = 'more' }");
        fs::write(&file, &more).unwrap();
        fs::remove_dir_all(&theirs).unwrap();
        write(&Experiment::load(&file).unwrap(), &theirs).unwrap();
        assert_eq!(differs(text).unwrap(), "uploads of group g");
        assert_eq!(differs(&more), None);
        fs::write(&data, "2").unwrap();
        assert!(differs(&more).unwrap().ends_with("/data, an upload of group g,"));
    }
}
