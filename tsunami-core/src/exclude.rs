//! What is left out of a directory that is uploaded.

use std::hash::{Hash, Hasher};
use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// What is left out of a directory that is uploaded, in the words of a `.gitignore`: `target` and `*.o` wherever they are,
/// `/target` and `doc/*.html` from the directory on, `build/` only where that is a directory, `**` for any directories. Nothing
/// is let in again by `!`. Nothing by default. Cheap to clone.
///
/// ```
/// # use tsunami_core::Exclude;
/// let exclude = Exclude::new(["/target", "*.o", "build/"])?;
/// assert!(exclude.matches("src/main.o", false) && exclude.matches("a/build", true));
/// assert!(!exclude.matches("src/target", true));
/// # Ok::<(), tsunami_core::InvalidExclude>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Exclude {
    patterns: Vec<String>,
    globs: GlobSet,
}

impl Exclude {
    /// What these patterns match.
    ///
    /// # Errors
    ///
    /// The first pattern that is none.
    pub fn new(patterns: impl IntoIterator<Item = impl Into<String>>) -> Result<Self, InvalidExclude> {
        let patterns: Vec<String> = patterns.into_iter().map(Into::into).collect();
        let mut globs = GlobSetBuilder::new();
        for pattern in &patterns {
            let invalid = |why: String| InvalidExclude { pattern: pattern.clone(), why };
            let plain = pattern.strip_suffix('/').unwrap_or(pattern);
            if plain.trim_matches('/').trim().is_empty() {
                return Err(invalid("it would leave out everything, or nothing".to_owned()));
            }
            if pattern.starts_with('!') {
                return Err(invalid("nothing is let in again by `!`".to_owned()));
            }
            if plain.split('/').any(|part| matches!(part, "." | "..")) {
                return Err(invalid("it begins in the directory itself, without `.` or `..`".to_owned()));
            }
            // One without a slash in it may stand in any directory.
            let whole = match plain.strip_prefix('/') {
                Some(below) => below.to_owned(),
                None if plain.contains('/') => plain.to_owned(),
                None => format!("**/{plain}"),
            };
            let glob = GlobBuilder::new(&plain_braces(&whole))
                .literal_separator(true)
                .backslash_escape(true)
                .build();
            globs.add(glob.map_err(|error| invalid(error.kind().to_string()))?);
        }
        match globs.build() {
            Ok(globs) => Ok(Self { patterns, globs }),
            Err(error) => {
                let pattern = error.glob().unwrap_or_default().to_owned();
                Err(InvalidExclude { pattern, why: error.kind().to_string() })
            }
        }
    }

    /// The patterns.
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether something of this path, relative to the directory, is left out. What is in a directory that is left out isn't
    /// asked for: nobody looks into that.
    pub fn matches(&self, path: impl AsRef<Path>, is_directory: bool) -> bool {
        self.matching(path.as_ref(), is_directory).next().is_some()
    }

    /// The patterns, by their places, that match.
    pub(crate) fn matching(&self, path: &Path, is_directory: bool) -> impl Iterator<Item = usize> {
        let path = path.strip_prefix(".").unwrap_or(path);
        let places = if self.is_empty() { Vec::new() } else { self.globs.matches(path) };
        places.into_iter().filter(move |place| is_directory || !self.patterns[*place].ends_with('/'))
    }
}

/// The pattern with braces as they are, which else would choose. What stands between `[` and `]` is as it is.
fn plain_braces(pattern: &str) -> String {
    let (mut plain, mut rest) = (String::new(), pattern.chars());
    while let Some(letter) = rest.next() {
        if matches!(letter, '{' | '}') {
            plain.push('\\');
        }
        plain.push(letter);
        if letter == '\\' {
            plain.extend(rest.next());
        } else if letter == '[' {
            let class = rest.as_str();
            let first = class.strip_prefix(['!', '^']).unwrap_or(class);
            // It doesn't end with its first.
            let end = first.char_indices().skip(1).find(|(_, letter)| *letter == ']').map(|(at, _)| at);
            let (class, after) = class.split_at(end.map_or(0, |end| class.len() - first.len() + end));
            plain.push_str(class);
            rest = after.chars();
        }
    }
    plain
}

impl PartialEq for Exclude {
    fn eq(&self, other: &Self) -> bool {
        self.patterns == other.patterns
    }
}

impl Eq for Exclude {}

impl Hash for Exclude {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.patterns.hash(state);
    }
}

/// A pattern that leaves out nothing that could be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is no pattern of files: {why}")]
#[non_exhaustive]
pub struct InvalidExclude {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_those_of_git_do() {
        for (pattern, matching, others) in [
            ("target", &["target", "a/target", "a/b/target"][..], &["targets", "target.toml"][..]),
            ("*.o", &["x.o", "a/x.o", ".o"], &["x.oo", "o"]),
            ("/target", &["target"], &["a/target"]),
            ("a/*.html", &["a/x.html"], &["x.html", "b/a/x.html", "a/b/x.html"]),
            ("a/**/x", &["a/x", "a/b/x", "a/b/c/x"], &["x", "b/a/x"]),
            ("**/x/y", &["x/y", "a/x/y"], &["x"]),
            ("[ab]?", &["a1", "c/b2"], &["c1", "a"]),
            ("{a,b}", &["{a,b}", "x/{a,b}"], &["a", "b"]),
            (r"\{a}[{}]}", &["{a}{}", "{a}}}"], &["a", "{a}\\}"]),
            ("[]{]{", &["]{", "{{"], &["a{"]),
            ("[!{]}", &["a}"], &["{}"]),
            ("[!!]{", &["a{"], &["!{"]),
            (r"\*", &["*"], &["a"]),
            ("it's a name", &["x/it's a name"], &[]),
        ] {
            let exclude = Exclude::new([pattern]).unwrap();
            assert!(matching.iter().all(|path| exclude.matches(path, false)), "{pattern}");
            assert!(!others.iter().any(|path| exclude.matches(path, false)), "{pattern}");
        }
        let build = Exclude::new(["build/", "x"]).unwrap();
        assert!(
            build.matches("a/build", true) && !build.matches("build", false) && build.matches("./x", false)
        );
        assert!(!Exclude::default().matches("x", false));
    }

    #[test]
    fn what_is_no_pattern_is_named() {
        for (pattern, why) in [
            ("", "everything"),
            ("/", "everything"),
            ("!keep", "let in again"),
            ("../x", "`..`"),
            ("./x", "`.`"),
            ("[a", "unclosed character class"),
        ] {
            let error = Exclude::new(["x", pattern]).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("`{pattern}` is no pattern")) && error.contains(why),
                "{error}"
            );
        }
    }
}
