//! What is wrong with an experiment file, and how it is shown.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::limits::{PROBLEM_LIMIT, SHOWN_MESSAGE_LIMIT, SUGGESTION_CANDIDATES_LIMIT, SUGGESTION_WORD_LIMIT};
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use unicode_width::UnicodeWidthChar;

use crate::text::{mark, number, shorten};

/// A longer list of known words than this is no help.
const MOST_LISTED: usize = 40;
/// So many problems are shown; the rest often goes away with them.
const SHOWN: usize = 20;
/// How many columns there are where nobody says it.
const COLUMNS: usize = 140;
/// How many columns of a line are always shown, however narrow a terminal is.
const LEAST_COLUMNS: usize = 20;
/// What draws the lines would cut them, too, and point elsewhere then.
const UNCUT: usize = 1 << 20;

/// One thing that is wrong, where it stands, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    message: String,
    help: Option<String>,
    span: Option<Range<usize>>,
    within: Option<Within>,
}

/// A part of a file that the experiment file names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Within {
    path: Arc<Path>,
    text: Arc<str>,
    span: Range<usize>,
}

impl Problem {
    /// A problem with this part of the file (in bytes).
    pub(super) fn at(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, span: Some(span), within: None }
    }

    /// A problem with no place in the file: the file itself, or something given beside it.
    pub(super) fn general(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, span: None, within: None }
    }

    /// Says that it is with this part of another file, whose text this is: its beginning unless known.
    pub(super) fn within(mut self, path: &Arc<Path>, text: &str, span: Option<Range<usize>>) -> Self {
        self.within = Some(Within { path: path.clone(), text: text.into(), span: span.unwrap_or_default() });
        self
    }

    /// The same, of another part of the file.
    pub(super) fn moved(self, span: Range<usize>) -> Self {
        Self { span: Some(span), ..self }
    }

    /// Adds to what is wrong.
    pub(super) fn adding(mut self, more: &str) -> Self {
        self.message += more;
        self
    }

    /// Where it begins in the file, in bytes.
    pub(super) fn start(&self) -> Option<usize> {
        self.span.as_ref().map(|span| span.start)
    }

    /// Adds what to do about it.
    pub(super) fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = help.into();
        self
    }

    /// What is wrong, in one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The file that it is in, if that is one which the experiment file names.
    pub fn file(&self) -> Option<&Path> {
        self.within.as_ref().map(|within| &*within.path)
    }

    /// What to do about it, if that is known.
    pub fn advice(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

/// Notes what is wrong, and from the [`PROBLEM_LIMIT`] on only how much.
#[derive(Debug, Default)]
pub(super) struct NotedProblems {
    problems: Vec<Problem>,
    dropped: usize,
}

impl NotedProblems {
    pub(super) fn note(&mut self, problem: Problem) {
        if self.is_full() {
            self.dropped += 1;
        } else {
            self.problems.push(problem);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whether one of them asks whether this word was meant.
    pub(super) fn suggest(&self, word: &str) -> bool {
        let suggestion = suggestion(word);
        self.problems.iter().any(|problem| problem.help.as_ref() == Some(&suggestion))
    }

    /// Whether nobody will see what is noted from now on.
    pub(super) fn is_full(&self) -> bool {
        self.problems.len() >= PROBLEM_LIMIT
    }
}

impl Extend<Problem> for NotedProblems {
    fn extend<T: IntoIterator<Item = Problem>>(&mut self, problems: T) {
        problems.into_iter().for_each(|problem| self.note(problem));
    }
}

/// Everything that is wrong with an experiment file, in the order of the file.
///
/// [`Display`](fmt::Display) shows it without colours; see [`render`](Self::render).
#[derive(Debug, Clone)]
pub struct Problems {
    path: PathBuf,
    source: String,
    problems: Vec<Problem>,
    /// How many were not noted.
    dropped: usize,
}

impl Problems {
    pub(super) fn new(path: &Path, source: &str, notes: NotedProblems) -> Self {
        let NotedProblems { mut problems, dropped } = notes;
        // What has no place goes last: it is most often about what is given beside the file, which the file reads better on its own.
        let start = |span: Option<&Range<usize>>| span.map_or(usize::MAX, |span| span.start);
        problems.sort_by_key(|problem| {
            (start(problem.span.as_ref()), start(problem.within.as_ref().map(|within| &within.span)))
        });
        problems.dedup();
        Self { path: path.to_owned(), source: source.to_owned(), problems, dropped }
    }

    /// The one thing that is wrong.
    pub(super) fn one(path: &Path, source: &str, problem: Problem) -> Self {
        Self::new(path, source, NotedProblems { problems: vec![problem], dropped: 0 })
    }

    /// How many problems there are; never zero.
    pub fn count(&self) -> usize {
        self.problems.len()
    }

    /// The problems, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    /// The line and column at which a problem begins in [its file](Problem::file), both counted from one, the column in
    /// characters.
    pub fn place(&self, problem: &Problem) -> Option<(usize, usize)> {
        let (source, span) = self.part(problem)?;
        place_of(source, span.start)
    }

    /// The text of a problem's file, and the part of it that the problem is about.
    fn part<'a>(&'a self, problem: &'a Problem) -> Option<(&'a str, &'a Range<usize>)> {
        match &problem.within {
            Some(Within { text, span, .. }) => Some((text, span)),
            None => Some((&self.source, problem.span.as_ref()?)),
        }
    }

    /// The problems, each with its place and the line of the file it is about, in colour if asked. What a terminal
    /// would act on is marked in them.
    pub fn render(&self, colour: bool) -> String {
        self.render_within(colour, COLUMNS)
    }

    /// The same, with lines of the file in so many columns: of those that are longer, what is around the problem. The messages are
    /// lines of any length.
    pub fn render_within(&self, colour: bool, columns: usize) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() }.term_width(UNCUT);
        let path = mark(&self.path.to_string_lossy());
        let shown = self.problems.iter().take(SHOWN);
        let mut shown: Vec<_> = shown.map(|problem| self.show(problem, &path, &renderer, columns)).collect();
        let more = self.problems.len().saturating_sub(SHOWN) + self.dropped;
        if more > 0 {
            shown.push(format!("… and {}", number(more, "more problem")));
        }
        shown.join("\n\n")
    }

    fn show(&self, problem: &Problem, path: &str, renderer: &Renderer, columns: usize) -> String {
        let (message, help) = (shown(&problem.message), problem.help.as_deref().map(shown));
        let group = Group::with_title(Level::ERROR.primary_title(&message));
        let part = self.part(problem);
        let place = part.and_then(|(source, span)| Some((source, span, place_of(source, span.start)?)));
        let other = problem.file().map(|file| mark(&file.to_string_lossy()));
        // Where the experiment file names the other one.
        let named = problem.span.as_ref().filter(|_| other.is_some());
        let named = named.and_then(|span| place_of(&self.source, span.start));
        let named = named.map(|(line, column)| format!("it is uploaded as {path}:{line}:{column} says"));
        let path = other.as_deref().unwrap_or(path);
        let (mut counted, mut meant) = (String::new(), String::new());
        let group = match place {
            Some((source, span, (line, column))) => {
                // The number of the line stands before it, and what points at its end behind.
                let columns = columns.saturating_sub(line.to_string().len() + " | ".len() + 1);
                let (text, span) = excerpt(source, span, columns.max(LEAST_COLUMNS));
                // What draws it counts from where the excerpt begins.
                let of_excerpt = text[..span.start].chars().count() + 1;
                (counted, meant) = (format!("{path}:{line}:{of_excerpt}"), format!("{path}:{line}:{column}"));
                let snippet = Snippet::source(text).line_start(line).path(path);
                group.element(snippet.annotation(AnnotationKind::Primary.span(span)))
            }
            None => group.element(Origin::path(path)),
        };
        let help = help.as_deref().map(|help| Level::HELP.message(help));
        let named = named.as_deref().map(|named| Level::NOTE.message(named));
        renderer.render(&[group.elements(help).elements(named)]).replacen(&counted, &meant, 1)
    }
}

/// The line and column of a place in a text, both counted from one, the column in characters.
pub(super) fn place_of(source: &str, start: usize) -> Option<(usize, usize)> {
    let before = source.get(..start)?;
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Some((before.matches('\n').count() + 1, before[line_start..].chars().count() + 1))
}

/// The line that a problem begins in, or as much of it as there are columns for, and where in that the problem stands.
///
/// A string over many lines is pointed at by its first: drawing a frame around all of it hides the rest.
fn excerpt(source: &str, span: &Range<usize>, room: usize) -> (String, Range<usize>) {
    let (before, rest) = source.split_at(span.start);
    let before = &before[before.rfind('\n').map_or(0, |newline| newline + 1)..];
    let rest = &rest[..rest.find(['\r', '\n']).unwrap_or(rest.len())];
    let (part, after) = rest.split_at(rest.floor_char_boundary(span.len()));
    let [before, part, after] = [before, part, after].map(mark);
    let [left, middle, right] = [&before, &part, &after].map(|text| columns(text));
    if left + middle + right <= room {
        let span = before.len()..before.len() + part.len();
        return (before + &part + &after, span);
    }
    // Each end that is cut is marked. What is before shows what the problem is in, and the problem's beginning what it is.
    let room = room - 2;
    let middle = middle.min(room - left.min(room / 4));
    let left = left.min((room - middle) / 2).max(left.min((room - middle).saturating_sub(right)));
    let (start, shown) = (end(&before, left), beginning(&part, middle));
    let next = if shown.len() < part.len() { "" } else { beginning(&after, room - left - middle) };
    let ellipsis = |is_cut: bool| if is_cut { "…" } else { "" };
    let (is_cut, goes_on) = (start.len() < before.len(), shown.len() + next.len() < part.len() + after.len());
    let text = [ellipsis(is_cut), start, shown, next, ellipsis(goes_on)].concat();
    let at = ellipsis(is_cut).len() + start.len();
    (text, at..at + shown.len())
}

/// How many columns a line takes as it is drawn, with tabs of four.
fn columns(text: &str) -> usize {
    text.chars().map(width).sum()
}

fn width(c: char) -> usize {
    if c == '\t' { 4 } else { c.width().unwrap_or(0) }
}

/// As much of the beginning of a text as so many columns hold.
fn beginning(text: &str, columns: usize) -> &str {
    &text[..text.len() - beyond(text.chars(), columns)]
}

/// As much of its end.
fn end(text: &str, columns: usize) -> &str {
    &text[beyond(text.chars().rev(), columns)..]
}

/// How many bytes the characters have that follow those which so many columns hold.
fn beyond(text: impl Iterator<Item = char>, columns: usize) -> usize {
    let mut taken = 0;
    let fits = |c: &char| {
        taken += width(*c);
        taken <= columns
    };
    text.skip_while(fits).map(char::len_utf8).sum()
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Problems {}

impl From<Problems> for crate::Error {
    fn from(problems: Problems) -> Self {
        Self::other(problems)
    }
}

/// A message without what a terminal would act on, and not longer than can be read.
fn shown(text: &str) -> String {
    mark(&shorten(text, SHOWN_MESSAGE_LIMIT))
}

/// The help for a word that is not among those known: the nearest of them, or else all.
pub(crate) fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let known: Vec<&str> = known.into_iter().collect();
    let all =
        || (1..=MOST_LISTED).contains(&known.len()).then(|| format!("known here: {}", known.join(", ")));
    likely(word, known.iter().copied()).or_else(all)
}

/// The help for a word that is very like one of those known, or means the same.
pub(super) fn likely<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let known: Vec<&str> = known.into_iter().collect();
    let is_same = |known: &&str| SAME.iter().any(|(meant, words)| meant == known && words.contains(&word));
    let same = known.iter().copied().find(is_same);
    let near = same.or_else(|| nearest(word, known.iter().copied()));
    near.map(suggestion)
}

fn suggestion(near: &str) -> String {
    format!("did you mean `{near}`?")
}

/// What others call the words of ours that stand for a way to reckon, to judge or to order.
const SAME: &[(&str, &[&str])] = &[
    ("mean", &["avg", "average", "arithmetic"]),
    ("median", &["med", "mid", "p50", "middle"]),
    ("sum", &["add", "plus", "total"]),
    ("min", &["least", "lowest", "minimum", "smallest"]),
    ("max", &["greatest", "highest", "largest", "maximum"]),
    ("merge", &["combine", "histogram", "union"]),
    ("higher", &["bigger", "greater", "high", "larger", "max", "maximize", "more", "up"]),
    ("lower", &["down", "fewer", "less", "low", "min", "minimize", "smaller"]),
    ("balanced", &["latin", "round-robin", "square", "williams"]),
    ("random", &["rand", "shuffle", "shuffled"]),
];

/// The known word that somebody who wrote `word` most likely meant.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters wrong is a slip; more is another word.
    let slip = (word.chars().count() / 3).max(1);
    let letters = word.chars().count();
    if letters > SUGGESTION_WORD_LIMIT {
        return None;
    }
    known
        .take(SUGGESTION_CANDIDATES_LIMIT)
        .filter(|candidate| candidate.chars().count().abs_diff(letters) <= slip)
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
        let ways = ["mean", "median", "max", "higher"];
        assert_eq!(
            ["avg", "p50", "maximum", "up"].map(|word| likely(word, ways)),
            ways.map(|way| Some(format!("did you mean `{way}`?")))
        );
        let long = "b".repeat(SUGGESTION_WORD_LIMIT + 1);
        assert_eq!(likely(&long, [format!("{long}b").as_str()]), None, "that would take long, many times");
    }

    #[test]
    fn places_are_counted_in_characters_from_one() {
        let source = "a = 1\nkäse = 2\n";
        let two = source.find('2').unwrap();
        let problems = Problems::one(Path::new("x.toml"), source, Problem::at(two..two + 1, "bad"));
        assert_eq!(problems.place(&problems.problems[0]), Some((2, 8)));
        assert!(problems.to_string().contains("x.toml:2:8"), "{problems}");
    }

    #[test]
    fn a_long_line_is_shown_around_the_problem_and_the_problem_is_pointed_at() {
        // Letters, tabs, wide ones, an accent of its own, and what can't be shown.
        let pieces = ["plain, ", "\ttab", "漢字ｗ", "e\u{301}é ", "\u{9b}\u{200b}x", "🌊 "];
        for (columns, before, after) in
            [(80, 0, 0), (80, 30, 0), (80, 0, 30), (40, 30, 30), (140, 90, 90), (10, 9, 9)]
        {
            for (nth, part) in pieces.iter().enumerate() {
                let bad = format!("BAD{part}BAD");
                let around = |count: usize| -> String { (0..count).map(|i| pieces[(i + nth) % 6]).collect() };
                let source = format!("x = 1\n{}{bad}{}\n", around(before), around(after));
                let start = source.find("BAD").unwrap();
                let problem = Problem::at(start..start + bad.len(), "bad");
                let shown =
                    Problems::one(Path::new("x.toml"), &source, problem).render_within(false, columns);
                let line =
                    |start: &str| shown.lines().find_map(|line| line.strip_prefix(start)).unwrap().to_owned();
                let (text, carets) = (line("2 | "), line("  | "));
                let carets = carets.trim_end();
                assert!(super::columns(&text) + 4 <= columns.max(LEAST_COLUMNS + 5), "{shown}");
                let place = |what: &str| super::columns(&text[..text.find(what).unwrap()]);
                let pointed = super::columns(&carets[..carets.find('^').unwrap()])..super::columns(carets);
                assert_eq!(pointed.start, place("BAD"), "{shown}");
                let end = text.rfind("BAD").map(|at| super::columns(&text[..at + 3])).unwrap();
                assert_eq!(pointed.end, end, "{shown}");
            }
        }
        // What is far from the margin.
        let far = format!("{}\tBAD = 1", " ".repeat(60));
        let problem = Problem::at(far.len() - 7..far.len() - 4, "bad");
        let shown = Problems::one(Path::new("x"), &far, problem).render_within(false, 80);
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[3].find("BAD"), lines[4].find("^^^"), "{shown}");
        let long = format!("a = {}", "b".repeat(500));
        let shown =
            Problems::one(Path::new("x"), &long, Problem::at(4..long.len(), "bad")).render_within(false, 60);
        assert!(shown.contains(" x:1:5\n  |\n1 | a = bbb") && shown.contains("bbb…\n  |     ^^^"), "{shown}");
    }

    #[test]
    fn colours_only_when_asked() {
        let problems = Problems::one(Path::new("x.toml"), "a = 1\n", Problem::at(0..1, "bad"));
        assert!(!problems.render(false).contains('\u{1b}'));
        assert!(problems.render(true).contains('\u{1b}'));
        let hostile = Problems::one(Path::new("x"), "", Problem::general("\u{1b}]0;x\u{7}"));
        assert!(!hostile.render(false).contains(['\u{1b}', '\u{7}']), "{hostile}");
    }
}
