//! What is wrong with an experiment file, and how it is shown.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

/// A longer list of known words than this is no help.
const MOST_LISTED: usize = 40;

/// One thing that is wrong, where it stands, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    message: String,
    help: Option<String>,
    span: Option<Range<usize>>,
}

impl Problem {
    /// A problem with this part of the file (in bytes).
    pub(super) fn at(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, span: Some(span) }
    }

    /// A problem with no place in the file: the file itself, or something given beside it.
    pub(super) fn general(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, span: None }
    }

    /// Adds what to do about it.
    pub(super) fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = help.into();
        self
    }

    /// What is wrong, in one line.
    #[cfg(test)]
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it, if that is known.
    #[cfg(test)]
    pub(crate) fn advice(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

/// Everything that is wrong with an experiment file, in the order of the file.
///
/// [`Display`](fmt::Display) shows all of it without colours; see [`render`](Self::render).
#[derive(Debug, Clone)]
pub(crate) struct Problems {
    path: PathBuf,
    source: String,
    problems: Vec<Problem>,
}

impl Problems {
    pub(super) fn new(path: &Path, source: &str, mut problems: Vec<Problem>) -> Self {
        // What has no place goes last: it is most often about `--set`, and the file reads better on its own.
        problems.sort_by_key(|problem| problem.span.as_ref().map_or(usize::MAX, |span| span.start));
        problems.dedup();
        Self { path: path.to_owned(), source: source.to_owned(), problems }
    }

    /// How many problems there are; never zero.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.problems.len()
    }

    /// The problems, in the order of the file.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    /// The line and column at which a problem begins, both counted from one, the column in characters.
    #[cfg(test)]
    pub(crate) fn place(&self, problem: &Problem) -> Option<(usize, usize)> {
        let before = self.source.get(..problem.span.as_ref()?.start)?;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Some((before.matches('\n').count() + 1, before[line_start..].chars().count() + 1))
    }

    /// All problems, each with its place and the line of the file it is about, in colour if asked.
    pub(crate) fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let path = self.path.to_string_lossy();
        let shown: Vec<_> =
            self.problems.iter().map(|problem| self.show(problem, &path, &renderer)).collect();
        shown.join("\n\n")
    }

    fn show(&self, problem: &Problem, path: &str, renderer: &Renderer) -> String {
        let group = Group::with_title(Level::ERROR.primary_title(&problem.message));
        let group = match &problem.span {
            Some(span) => group.element(
                Snippet::source(&self.source)
                    .path(path)
                    .annotation(AnnotationKind::Primary.span(self.first_line(span))),
            ),
            None => group.element(Origin::path(path)),
        };
        let help = problem.help.as_deref().map(|help| Level::HELP.message(help));
        renderer.render(&[group.elements(help)])
    }

    /// A string over many lines is pointed at by its first: drawing a frame around all of it hides the rest.
    fn first_line(&self, span: &Range<usize>) -> Range<usize> {
        let text = self.source.get(span.clone()).unwrap_or_default();
        span.start..span.start + text.find(['\r', '\n']).unwrap_or(text.len())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Problems {}

/// The help for a word that is not among those known: the nearest of them, or else all.
pub(super) fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let known: Vec<&str> = known.into_iter().collect();
    let all =
        || (1..=MOST_LISTED).contains(&known.len()).then(|| format!("known here: {}", known.join(", ")));
    likely(word, known.iter().copied()).or_else(all)
}

/// The help for a word that is very like one of those known.
pub(super) fn likely<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, known.into_iter()).map(|near| format!("did you mean `{near}`?"))
}

/// The known word that somebody who wrote `word` most likely meant.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters wrong is a slip; more is another word.
    let slip = (word.chars().count() / 3).max(1);
    known
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= slip && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_suggested() {
        let known = ["run", "start", "ready", "timeout"];
        assert_eq!(suggest("timout", known), Some("did you mean `timeout`?".into()));
        assert_eq!(suggest("strat", known), Some("did you mean `start`?".into()));
        assert_eq!(suggest("colour", known), Some("known here: run, start, ready, timeout".into()));
        assert_eq!(suggest("x", ["n"]), Some("known here: n".into()), "one letter is no likeness");
        assert_eq!(suggest("x", []), None);
    }

    #[test]
    fn places_are_counted_in_characters_from_one() {
        let source = "a = 1\nkäse = 2\n";
        let two = source.find('2').unwrap();
        let problems = Problems::new(Path::new("x.toml"), source, vec![Problem::at(two..two + 1, "bad")]);
        assert_eq!(problems.place(&problems.problems[0]), Some((2, 8)));
        assert!(problems.to_string().contains("x.toml:2:8"), "{problems}");
    }

    #[test]
    fn colours_only_when_asked() {
        let problems = Problems::new(Path::new("x.toml"), "a = 1\n", vec![Problem::at(0..1, "bad")]);
        assert!(!problems.render(false).contains('\u{1b}'));
        assert!(problems.render(true).contains('\u{1b}'));
        let hostile = Problems::new(Path::new("x"), "", vec![Problem::general("\u{1b}]0;x\u{7}")]);
        assert!(!hostile.render(false).contains(['\u{1b}', '\u{7}']), "{hostile}");
    }
}
