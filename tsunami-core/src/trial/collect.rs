//! What is brought home from a machine, what is removed for that beforehand, and what of that can't be.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::slice;
use std::sync::{Arc, Mutex};

use super::{TrialHost, lock, own_script};
use crate::cluster::HostCommand;
use crate::error::Error;
use crate::exclude::Exclude;
use crate::session::{Command, Download, Stdin};

/// Removes what an earlier trial left.
const CLEAN: &str = include_str!("clean.sh");

/// Tells what is new from what was kept.
const FRESH: &str = include_str!("fresh.sh");

/// What errors call these commands.
const CLEANING: &str = "removal of what an earlier trial collected";

/// Files that come home from a machine.
///
/// [`TrialHost::clean`] removes what matches before the trial makes it anew, [`TrialHost::collect`] brings it home;
/// [`TrialCommand::collect`](super::TrialCommand::collect) does that when a command has ended.
///
/// ```
/// use tsunami_core::Error;
/// use tsunami_core::trial::{Collect, Trial};
///
/// # async fn example(trial: &Trial) -> Result<(), Error> {
/// let client = trial.host("client-0")?.stage("load");
/// let measured = Collect::into("results/1").pattern("out.csv").optional("core.*");
/// client.clean(&measured).await?;
/// client.run("./load > out.csv").await?;
/// client.collect(&measured).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Collect {
    patterns: Vec<Pattern>,
    cwd: Option<String>,
    into: PathBuf,
    uploaded: Uploaded,
}

#[derive(Clone, Debug)]
struct Pattern {
    glob: String,
    optional: bool,
}

impl Collect {
    /// Nothing yet, to arrive below this local directory.
    pub fn into(directory: impl Into<PathBuf>) -> Self {
        Self { patterns: Vec::new(), cwd: None, into: directory.into(), uploaded: Uploaded::default() }
    }

    /// Adds what a shell glob matches, relative to the machine's working directory. It must match something.
    pub fn pattern(self, glob: impl Into<String>) -> Self {
        self.add(glob.into(), false)
    }

    /// Adds what a shell glob matches, if it matches something.
    pub fn optional(self, glob: impl Into<String>) -> Self {
        self.add(glob.into(), true)
    }

    fn add(mut self, glob: String, optional: bool) -> Self {
        self.patterns.push(Pattern { glob, optional });
        self
    }

    /// Sets the directory on the machine that globs are relative to.
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.cwd = Some(directory.into());
        self
    }

    /// Sets what was uploaded to the machine, which [`TrialHost::clean`] doesn't remove.
    pub fn sparing(mut self, uploaded: &Uploaded) -> Self {
        self.uploaded = uploaded.clone();
        self
    }

    fn globs(&self) -> impl Iterator<Item = &String> {
        self.patterns.iter().map(|pattern| &pattern.glob)
    }
}

/// The names that uploaded files have on a machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Uploaded(Arc<[u8]>);

impl Default for Uploaded {
    fn default() -> Self {
        Self::of(&[])
    }
}

impl Uploaded {
    /// These, absolute or relative to the machine's working directory.
    pub fn of(names: &[PathBuf]) -> Self {
        Self(listed(names).into())
    }

    /// The names that an [upload](crate::Host::upload) has on a machine. What can't be read now was uploaded by another
    /// run, or not at all.
    pub fn names(from: &Path, to: &str) -> Vec<PathBuf> {
        Self::names_without(from, to, &Exclude::default())
    }

    /// The same of an [upload](crate::Host::upload_without) that leaves something out.
    pub fn names_without(from: &Path, to: &str, exclude: &Exclude) -> Vec<PathBuf> {
        let mut names = Vec::new();
        let _ = names_of(from, to, exclude, &mut names);
        names
    }
}

/// Where something that is collected was there before the trial and stays: by stage and machine, the file that is older
/// than whatever this trial makes.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<HashMap<(String, String), String>>);

impl Kept {
    fn note(&self, host: &TrialHost, began: &str) {
        lock(&self.0).insert(key(host), began.to_owned());
    }

    fn of(&self, host: &TrialHost) -> Option<String> {
        lock(&self.0).get(&key(host)).cloned()
    }
}

fn key(host: &TrialHost) -> (String, String) {
    (host.stage_name().to_owned(), host.name().to_owned())
}

impl TrialHost {
    /// Removes what would be collected in this stage, so that no trial brings home another's files: in the machine's
    /// own working directory, through no link and from no mount, and nothing that was uploaded. What stays must be newer
    /// than this to be collected.
    pub async fn clean(&self, collect: &Collect) -> Result<(), Error> {
        self.clean_all(&collect.uploaded, slice::from_ref(&(self.clone(), collect.clone()))).await
    }

    /// Removes what would be collected in several stages of this machine, all of which spare the same.
    pub(crate) async fn clean_all(
        &self,
        uploaded: &Uploaded,
        parts: &[(TrialHost, Collect)],
    ) -> Result<(), Error> {
        let script = parts.iter().fold(own_script("clean", CLEAN), |script, (_, collect)| {
            let cwd = collect.cwd.as_deref().unwrap_or_default();
            let script = script.arg(collect.patterns.len().to_string()).arg(cwd);
            collect.globs().fold(script, Command::arg)
        });
        let output = self.cleaning(script).stdin(Stdin::Bytes(uploaded.0.clone())).run().await?;
        let said = output.stdout();
        let lines: Vec<&str> = said.splitn(parts.len() + 1, '\n').collect();
        // A session of a test's may say nothing at all.
        if let (kept, [began]) = lines.split_at(parts.len().min(lines.len())) {
            let kept = parts.iter().zip(kept).filter(|(_, said)| **said == "kept");
            kept.for_each(|((host, _), _)| self.trial.inner.kept.note(host, began));
        }
        Ok(())
    }

    /// A command about what is collected, and no part of the story.
    fn cleaning(&self, script: Command) -> HostCommand {
        self.host.stage("clean").command(script).called(CLEANING).unobserved()
    }

    /// Brings files home and says how many. A pattern that must match something and doesn't is an error, once the others
    /// are home.
    pub async fn collect(&self, collect: &Collect) -> Result<usize, Error> {
        if collect.patterns.is_empty() {
            return Ok(0);
        }
        let wanted = self.of_this_trial(collect).await?;
        let (cwd, into) = (collect.cwd.clone(), collect.into.clone());
        let matches = self.host.download(&Download { patterns: wanted.concat(), cwd, into }).await?;
        let mut each = matches.iter();
        for (Pattern { glob, optional }, wanted) in collect.patterns.iter().zip(&wanted) {
            let count: usize = each.by_ref().take(wanted.len()).sum();
            if count == 0 && !optional {
                return Err(self.error(match wanted[..] {
                    [] => format!("all that matches `{glob}` in `collect` is older than the trial"),
                    _ => format!("nothing matches `{glob}` in `collect`"),
                }));
            }
        }
        Ok(matches.iter().sum())
    }

    /// What is to be brought home for each of the patterns: the pattern itself, unless it matches something that is
    /// older than the trial.
    async fn of_this_trial(&self, collect: &Collect) -> Result<Vec<Vec<String>>, Error> {
        let Some(began) = self.trial.inner.kept.of(self) else {
            return Ok(collect.globs().map(|glob| vec![glob.clone()]).collect());
        };
        let mut command =
            self.cleaning(collect.globs().fold(own_script("fresh", FRESH).arg(began), Command::arg));
        if let Some(cwd) = &collect.cwd {
            command = command.cwd(cwd);
        }
        let said = command.run().await?.stdout;
        let globs: Vec<String> = collect.globs().cloned().collect();
        new_matches(&globs, &said)
            .ok_or_else(|| self.error("the machine doesn't tell what is newer than the trial"))
    }
}

/// Reads what the script says: for each pattern what is to be brought home.
fn new_matches(patterns: &[String], said: &[u8]) -> Option<Vec<Vec<String>>> {
    let mut pieces = said.split(|byte| *byte == 0);
    let of_one = |pattern: &String| {
        let (mut names, mut old) = (Vec::new(), false);
        loop {
            match pieces.next()? {
                b"." => break,
                b"!" => old = true,
                piece => names.push(only(piece.strip_prefix(b"=")?)),
            }
        }
        Some(if old { names } else { vec![pattern.clone()] })
    };
    patterns.iter().map(of_one).collect()
}

/// A pattern that matches this name, and hardly any other.
fn only(name: &[u8]) -> String {
    let special = |c| matches!(c, '*' | '?' | '[' | '\\' | char::REPLACEMENT_CHARACTER);
    String::from_utf8_lossy(name).replace(special, "?")
}

/// The names that an upload has on a machine.
fn names_of(root_here: &Path, to: &str, exclude: &Exclude, names: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut root = PathBuf::from(to);
    if !fs::metadata(root_here)?.is_dir() {
        if to.ends_with('/') {
            root.push(root_here.file_name().unwrap_or_default());
        }
        names.push(root);
        return Ok(());
    }
    let mut stack = vec![(root_here.to_owned(), root)];
    while let Some((from, to)) = stack.pop() {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (name, is_directory) = (to.join(entry.file_name()), entry.file_type()?.is_dir());
            let path = entry.path();
            if exclude.matches(path.strip_prefix(root_here).unwrap_or(&path), is_directory) {
                continue;
            }
            if is_directory {
                stack.push((entry.path(), name));
            } else {
                names.push(name);
            }
        }
    }
    Ok(())
}

/// Names in the form that no name has: each ends with two slashes, and one that is not absolute begins with `//./`.
fn listed(names: &[PathBuf]) -> Vec<u8> {
    let mut list = b"//".to_vec();
    for name in names {
        list.extend_from_slice(plain(name).as_os_str().as_encoded_bytes());
        list.extend_from_slice(b"//");
    }
    list
}

/// A name without detours.
fn plain(name: &Path) -> PathBuf {
    let mut plain = if name.is_absolute() { PathBuf::new() } else { PathBuf::from(".") };
    for part in name.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::process::{Command as Process, Stdio};
    use std::time::{Duration, SystemTime};

    use super::*;

    const SHELLS: [&[&str]; 3] = [&["sh"], &["bash", "--posix"], &["busybox", "sh"]];

    /// Runs a script in a directory, and returns what it says.
    fn says(shell: &[&str], script: &str, place: &Path, args: &[&str], input: &[u8]) -> String {
        let mut command = Process::new(shell[0]);
        command.args(&shell[1..]).args(["-c", script, "sh"]).args(args).current_dir(place);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{shell:?} {args:?}: {} {said}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// All files and links below a directory.
    fn files(root: &Path) -> Vec<String> {
        let mut names = Vec::new();
        names_of(root, "", &Exclude::default(), &mut names).unwrap();
        let mut names: Vec<_> = names.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn place(names: &[&str]) -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        for name in names {
            let path = place.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        place
    }

    #[test]
    fn only_what_is_the_machines_own_is_removed() {
        let odd = "it's [odd]\n*.csv";
        for shell in SHELLS {
            let root = place(&["out/a", "other/a.csv"]);
            let own =
                place(&["a.csv", "b.csv", "keep", "d/a.csv", "d/b.csv", "d/x/y", "given/a.csv", odd, ".h"]);
            let outside = root.path().join("out");
            symlink(&outside, own.path().join("way")).unwrap();
            symlink("d", own.path().join("near")).unwrap();
            symlink(outside.join("a"), own.path().join("link.csv")).unwrap();
            let uploaded = listed(&["b.csv", "./given//a.csv", "d/../d/x/y"].map(PathBuf::from));
            let began = own.path().canonicalize().unwrap().join(".tsunami-trial");
            let clean = |cwd: &str, patterns: &[&str]| {
                let count = patterns.len().to_string();
                let args = [&[&count, cwd], patterns].concat();
                let said = says(shell, CLEAN, own.path(), &args, &uploaded);
                said.strip_suffix(began.to_str().unwrap()).unwrap().to_owned()
            };
            let kept = "kept\n";
            // A link is removed, what it leads to is not.
            assert_eq!(clean("", &["*.csv", "none"]), kept, "an uploaded file stays");
            let left = [
                ".h",
                ".tsunami-trial",
                "b.csv",
                "d/a.csv",
                "d/b.csv",
                "d/x/y",
                "given/a.csv",
                "keep",
                "near",
                "way",
            ];
            assert_eq!(files(own.path()), left, "{shell:?}");
            assert_eq!(clean("", &["way/*", "near/*"]), kept, "a link leads there");
            assert_eq!(clean(outside.to_str().unwrap(), &["*"]), kept, "the file names another directory");
            assert_eq!(clean("way", &["a"]), kept, "the directory is elsewhere");
            assert_eq!(clean("missing", &["*"]), "\n");
            assert_eq!((files(own.path()).len(), files(root.path()).len()), (left.len(), 2), "{shell:?}");
            // All of a directory but what was uploaded; and what begins where the step's directory is.
            assert_eq!(clean("", &["d/"]), kept);
            assert_eq!(clean(own.path().join("given").to_str().unwrap(), &["../keep", ".*", "*"]), kept);
            assert_eq!(clean("given/..", &[".h", "keep"]), "\n");
            assert_eq!(
                files(own.path()),
                [".tsunami-trial", "b.csv", "d/x/y", "given/a.csv", "near", "way"],
                "{shell:?}"
            );
            // Nothing of another trial, nothing kept.
            assert_eq!(clean("", &["keep", "near"]), "\n");
            assert_eq!(files(root.path()), ["other/a.csv", "out/a"], "{shell:?}");
        }
    }

    #[test]
    fn several_parts_are_told_apart() {
        for shell in SHELLS {
            let own = place(&["a.csv", "d/a.csv", "d/b.csv", "given", "other"]);
            let parts =
                ["1", "d", "*", "2", "", "*.csv", "given", "1", "missing", "*", "0", "d", "1", "d", ".."];
            let began = own.path().canonicalize().unwrap().join(".tsunami-trial");
            let said = says(shell, CLEAN, own.path(), &parts, &listed(&["given".into()]));
            assert_eq!(said, format!("\nkept\n\n\n\n{}", began.display()), "{shell:?}");
            assert_eq!(files(own.path()), [".tsunami-trial", "given", "other"], "{shell:?}");
        }
    }

    #[test]
    fn what_is_mounted_is_not_emptied() {
        if !rustix::process::geteuid().is_root() {
            // An ordinary user mounts nothing; these tests run as root too.
            return;
        }
        for shell in SHELLS {
            let (own, other) = (place(&["d/x", "d/m nt/y"]), place(&["precious"]));
            let (from, to) = (other.path().display(), own.path().join("d/m nt"));
            let script = format!("mount --bind '{from}' '{}' && exec \"$@\"", to.display());
            let program =
                [&["--mount", "sh", "-c", &script, "sh"], shell, &["-c", CLEAN, "clean", "1", "", "d"]]
                    .concat();
            let cleaned =
                Process::new("unshare").args(program).current_dir(own.path()).stdin(Stdio::null()).status();
            assert!(cleaned.unwrap().success());
            assert_eq!(
                (files(own.path()), files(other.path())),
                (vec![".tsunami-trial".to_owned(), "d/m nt/y".to_owned()], vec!["precious".to_owned()]),
                "{shell:?}"
            );
        }
    }

    #[test]
    fn an_absolute_upload_stays_too() {
        for shell in SHELLS {
            let own = place(&["a", "b"]);
            let base = own.path().canonicalize().unwrap();
            says(shell, CLEAN, &base, &["1", "", "*"], &listed(&[base.join("a")]));
            assert_eq!(files(&base), [".tsunami-trial", "a"], "{shell:?}");
        }
    }

    #[test]
    fn what_is_kept_counts_once_it_is_new() {
        for shell in SHELLS {
            let own = place(&["began", "old", "n[w", "d/old", "e/old", "e/new"]);
            for (name, ago) in [
                ("began", 100),
                ("old", 200),
                ("n[w", 0),
                ("d/old", 200),
                ("e/old", 200),
                ("d", 200),
                ("e", 200),
            ] {
                let time = SystemTime::now() - Duration::from_secs(ago);
                File::open(own.path().join(name)).unwrap().set_modified(time).unwrap();
            }
            let args = ["began", "old", "n*", "d", "e", "*", "none"];
            let patterns = args[1..].iter().map(|pattern| pattern.to_string()).collect::<Vec<_>>();
            let new = new_matches(&patterns, says(shell, FRESH, own.path(), &args, b"").as_bytes()).unwrap();
            let expected: [&[&str]; 6] = [&[], &["n*"], &[], &["e"], &["e", "n?w"], &["none"]];
            assert_eq!(new, expected, "{shell:?}");
        }
    }
}
