//! Tables, as wide as the terminal is.

use tsunami_core::text::sanitize;
use unicode_width::UnicodeWidthStr;

use crate::error::Error;
use crate::terminal::{fitting, print, print_words, say_words, stderr_columns, stdout_columns};

/// What stands between two columns.
const GAP: usize = 2;

/// The narrowest a column of words becomes.
const NARROWEST: usize = 8;

/// Rows below heads.
pub(crate) struct Table {
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Which columns are left out where there is no room for all, the first of these first.
    dispensable: Vec<usize>,
}

impl Table {
    pub(crate) fn new<S: Into<String>>(heads: impl IntoIterator<Item = S>) -> Self {
        let heads = heads.into_iter().map(Into::into).collect();
        Self { heads, rows: Vec::new(), dispensable: Vec::new() }
    }

    /// Columns that may be missing, the least important first.
    pub(crate) fn dispensable(mut self, columns: &[usize]) -> Self {
        self.dispensable = columns.to_vec();
        self
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The lines of it. With a width, columns are left out, and then cells go on below, where it is too narrow.
    pub(crate) fn text(&self, width: Option<usize>) -> String {
        let mut columns: Vec<usize> = (0..self.heads.len()).collect();
        let natural = |column: usize| self.cells(column).map(|cell| cell.width()).max().unwrap_or(0);
        let mut widths: Vec<usize> = columns.iter().map(|column| natural(*column)).collect();
        if let Some(width) = width {
            let whole = |columns: &[usize], widths: &[usize]| {
                columns.iter().map(|column| widths[*column] + GAP).sum::<usize>().saturating_sub(GAP)
            };
            let mut dispensable = self.dispensable.iter();
            while whole(&columns, &widths) > width
                && let Some(least) = dispensable.next()
            {
                columns.retain(|column| column != least);
            }
            // The widest gives way, as far as its words allow, and then further, but for what is copied.
            let word = |column: usize| {
                let words = self.cells(column).flat_map(|cell| cell.split(' '));
                words.map(|word| word.width()).max().unwrap_or(0).max(NARROWEST)
            };
            let least = |column: usize| if column == 0 { word(column) } else { NARROWEST };
            for least in [&word as &dyn Fn(usize) -> usize, &least] {
                while whole(&columns, &widths) > width
                    && let Some(widest) = columns
                        .iter()
                        .copied()
                        .filter(|column| widths[*column] > least(*column))
                        .max_by_key(|column| widths[*column])
                {
                    widths[widest] -= 1;
                }
            }
        }
        let mut text = String::new();
        // A head of several lines begins where its column does.
        for (nth, row) in std::iter::once(&self.heads).chain(&self.rows).enumerate() {
            let cells = columns.iter().map(|column| {
                let cell = row.get(*column).map(String::as_str).unwrap_or_default();
                (*column, fold(&sanitize(cell), widths[*column]))
            });
            let cells: Vec<(usize, Vec<String>)> = cells.collect();
            let height = cells.iter().map(|(_, lines)| lines.len()).max().unwrap_or(0);
            for line in 0..height {
                let mut whole = String::new();
                for (column, lines) in &cells {
                    let part = lines.get(line).map(String::as_str).unwrap_or_default();
                    let blank = " ".repeat(widths[*column].saturating_sub(part.width()));
                    match self.is_numeric(*column) && (nth > 0 || lines.len() == 1) {
                        true => whole.extend([&blank, part]),
                        false => whole.extend([part, &blank]),
                    }
                    whole.push_str(&" ".repeat(GAP));
                }
                text.extend([whole.trim_end(), "\n"]);
            }
        }
        text
    }

    fn cells(&self, column: usize) -> impl Iterator<Item = &str> {
        let rows = std::iter::once(&self.heads).chain(&self.rows);
        rows.filter_map(move |row| row.get(column).map(String::as_str))
    }

    /// Whether a column is set flush right: all that is in it begins as a number does.
    fn is_numeric(&self, column: usize) -> bool {
        let begins =
            |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '−' | '-'));
        let mut cells = self.cells(column).skip(1).filter(|cell| !cell.is_empty()).peekable();
        cells.peek().is_some() && cells.all(|cell| begins(cell) && cell.len() < 16)
    }
}

/// A cell in lines of so many columns. A word that is too long is broken, after a hyphen if it has one there.
fn fold(cell: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in cell.split(' ').flat_map(|word| broken(word, width)) {
        let line = lines.last_mut().map(|line| (line.is_empty(), line.width()));
        match (line, lines.last_mut()) {
            (Some((false, used)), Some(line)) if used + 1 + word.width() <= width => {
                line.extend([" ", word]);
            }
            (Some((true, _)), Some(line)) => line.push_str(word),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The pieces of a word that may stand in a line each.
fn broken(word: &str, width: usize) -> Vec<&str> {
    let (mut pieces, mut rest) = (Vec::new(), word);
    // No character takes more than two.
    while rest.width() > width.max(2) {
        let end = fitting(rest, width.max(2));
        let cut = rest[..end].rfind(['-', '_', '/', ',']).map_or(end, |at| at + 1);
        pieces.push(&rest[..cut]);
        rest = &rest[cut..];
    }
    pieces.push(rest);
    pieces
}

/// Prints Markdown: as it is, or set for the terminal that it goes to.
pub(crate) fn print_markdown(markdown: &str) -> Result<(), Error> {
    match stdout_columns() {
        Some(width) => print_words(&typeset(markdown, width)),
        None => print(markdown),
    }
}

/// The same on standard error.
pub(crate) fn say_markdown(markdown: &str) {
    match stderr_columns() {
        Some(width) => say_words(&typeset(markdown, width)),
        None => say_words(markdown),
    }
}

/// Markdown as a terminal of this width shows it best: tables are set, and what has no value in any row is left out of
/// them. It takes what [`markdown`](tsunami_core::results::markdown) and its like make, no more.
fn typeset(markdown: &str, width: usize) -> String {
    let mut text = String::new();
    let mut table: Option<Table> = None;
    for line in markdown.lines() {
        let Some(row) = line.strip_prefix("| ").and_then(|row| row.strip_suffix(" |")) else {
            text.extend(table.take().map(|table| table.without_empty().text(Some(width))));
            text.extend([unescape(line).as_str(), "\n"]);
            continue;
        };
        let cells: Vec<String> = row.split(" | ").map(|cell| unescape(cell.trim())).collect();
        match &mut table {
            None => table = Some(Table::new(cells)),
            Some(_) if cells.iter().all(|cell| cell == "---") => {}
            Some(table) => table.row(cells),
        }
    }
    text.extend(table.map(|table| table.without_empty().text(Some(width))));
    text
}

impl Table {
    fn without_empty(self) -> Self {
        let has = |column: &usize| self.cells(*column).skip(1).any(|cell| !cell.is_empty());
        let kept: Vec<usize> = (0..self.heads.len()).filter(has).collect();
        let of = |row: &Vec<String>| kept.iter().filter_map(|column| row.get(*column).cloned()).collect();
        Self { heads: of(&self.heads), rows: self.rows.iter().map(of).collect(), dispensable: Vec::new() }
    }
}

fn unescape(cell: &str) -> String {
    let mut text = String::with_capacity(cell.len());
    let mut chars = cell.chars();
    while let Some(c) = chars.next() {
        text.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_left_out_and_then_goes_on_below() {
        let mut table = Table::new(["RUN", "EXPERIMENT", "AGE"]).dispensable(&[2]);
        table.row(
            ["20261128-082330-x3pph4b3rq9vs", "a name of several words", "1m 5s"].map(str::to_owned).into(),
        );
        table.row(["x", "漢字", "2s"].map(str::to_owned).into());
        insta::assert_snapshot!(table.text(None), @"
        RUN                            EXPERIMENT                 AGE
        20261128-082330-x3pph4b3rq9vs  a name of several words  1m 5s
        x                              漢字                        2s
        ");
        insta::assert_snapshot!(table.text(Some(60)), @"
        RUN                            EXPERIMENT
        20261128-082330-x3pph4b3rq9vs  a name of several words
        x                              漢字
        ");
        insta::assert_snapshot!(table.text(Some(42)), @"
        RUN                            EXPERIMENT
        20261128-082330-x3pph4b3rq9vs  a name of
                                       several
                                       words
        x                              漢字
        ");
    }

    #[test]
    fn markdown_is_set_as_a_table_without_its_marks() {
        let markdown = "| metric | v | trials | own | against a\\|b |\n| --- | --- | --- | --- | --- |\n\
                        | rps | a\\|b | 2 |  |  |\n| rps | new | 10 (1 failed) |  | −1.89 % |\n\n- \\<b> can't be told\n";
        insta::assert_snapshot!(typeset(markdown, 80), @"
        metric  v           trials  against a|b
        rps     a|b              2
        rps     new  10 (1 failed)      −1.89 %

        - <b> can't be told
        ");
    }
}
