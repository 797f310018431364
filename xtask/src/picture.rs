//! The pictures of the README, made of a real run: what a terminal shows of it, and its report.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Failure, Result, given_tsunami, release_build, root, setup, succeeds};

/// The experiment, what of it is too long for a picture, and what stands there.
const EXPERIMENT: &str = "examples/experiments/compare";
const SHORTER: [(&str, &str); 3] = [
    ("clients = [1, 4, 16]", "clients = [4]"),
    ("repeat = 6", "repeat = 4"),
    ("\nslowest =", "\n# slowest ="),
];

/// What is run, as the picture says it.
const RUN: [&str; 2] = ["run", "compare.toml"];

/// How wide the terminal is, and how high: all that is told fits.
const COLUMNS: usize = 80;
const ROWS: usize = 200;

/// The size of a character, and what is around the text, in pixels.
const CHARACTER: (f64, f64) = (8.4, 18.0);
const MARGIN: f64 = 16.0;

/// The window in which the report is shown.
const WINDOW: &str = "--window-size=1200,1050";

/// More than this, each, is too much for a README.
const MOST_BYTES: u64 = 200_000;

/// Makes both pictures in a directory, by default `docs`.
pub(crate) fn picture(into: Option<&Path>) -> Result {
    setup::setup(true)?;
    let Some(tsunami) = given_tsunami().map_or_else(release_build, |given| Ok(Some(given)))? else {
        return Err(Failure::new("tsunami does not build"));
    };
    let into = std::path::absolute(into.map_or_else(|| root().join("docs"), PathBuf::from))?;
    let work = tempfile::tempdir()?;
    for name in ["load", "server"] {
        fs::copy(root().join(EXPERIMENT).join(name), work.path().join(name))?;
    }
    let experiment = fs::read_to_string(root().join(EXPERIMENT).join("experiment.toml"))?;
    let shorter = SHORTER.iter().fold(experiment, |text, (long, short)| text.replace(long, short));
    fs::write(work.path().join(RUN[1]), shorter)?;
    let shown = run(&tsunami, work.path())?;
    let mut screen = Screen::default();
    screen.show(&format!("\x1b[1m$ tsunami {}\x1b[0m\r\n", RUN.join(" ")));
    // Where it was made is nobody's business.
    let directory = fs::canonicalize(work.path())?;
    screen.show(&shown.replace(&*directory.to_string_lossy(), "."));
    fs::write(into.join("run.svg"), screen.svg())?;
    let runs = fs::read_dir(work.path().join("results/compare"))?.collect::<std::io::Result<Vec<_>>>()?;
    let pages = runs.iter().map(|run| run.path().join("report.html"));
    let page =
        pages.into_iter().find(|page| page.exists()).ok_or_else(|| Failure::new("the run has no report"))?;
    report(&page, &into.join("report.png"), work.path())?;
    for name in ["run.svg", "report.png"] {
        let size = fs::metadata(into.join(name))?.len();
        if size > MOST_BYTES {
            return Err(Failure::new(format!("{name} has {size} bytes, more than {MOST_BYTES}")));
        }
    }
    Ok(())
}

/// Runs the experiment on a pseudo-terminal, and returns what is written to it.
fn run(tsunami: &Path, work: &Path) -> Result<String> {
    let script = format!(r#"stty cols {COLUMNS} rows {ROWS}; "$TSUNAMI" {}"#, RUN.join(" "));
    let typescript = work.join("typescript");
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--flush", "--command", &script, "/dev/null"]).current_dir(work);
    command.stdin(Stdio::null()).stdout(fs::File::create(&typescript)?);
    command.env("TSUNAMI", tsunami).env("XDG_STATE_HOME", work.join("state")).env("SHELL", "/bin/sh");
    command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
    let is_done = succeeds(&mut command)?;
    let shown = String::from_utf8_lossy(&fs::read(&typescript)?).into_owned();
    if is_done { Ok(shown) } else { Err(Failure::new(format!("the run failed:\n{shown}"))) }
}

/// Has Chromium show the report.
fn report(page: &Path, picture: &Path, work: &Path) -> Result {
    let mut command = Command::new("chromium");
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", WINDOW]);
    command.arg(format!("--user-data-dir={}", work.join("profile").display())).env("HOME", work);
    command.arg(format!("--screenshot={}", picture.display())).arg(format!("file://{}", page.display()));
    command.stderr(Stdio::null()).stdout(Stdio::null());
    match succeeds(&mut command)? && picture.exists() {
        true => Ok(()),
        false => Err(Failure::new("chromium made no picture of the report")),
    }
}

/// A character, and how it looks: the classes of the picture.
type Cell = (char, &'static str);

/// A terminal, as far as tsunami makes use of one.
#[derive(Default)]
struct Screen {
    rows: Vec<Vec<Cell>>,
    row: usize,
    column: usize,
    style: &'static str,
}

impl Screen {
    fn show(&mut self, text: &str) {
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\r' => self.column = 0,
                '\n' => (self.row, self.column) = (self.row + 1, 0),
                '\u{1b}' if chars.next_if_eq(&'[').is_some() => {
                    let mut parameters = String::new();
                    while let Some(c) = chars.next_if(|c| c.is_ascii_digit() || matches!(c, ';' | '?')) {
                        parameters.push(c);
                    }
                    self.control(&parameters, chars.next().unwrap_or_default());
                }
                c if c.is_control() => {}
                c => self.put(c),
            }
        }
    }

    fn put(&mut self, c: char) {
        if self.column == COLUMNS {
            (self.row, self.column) = (self.row + 1, 0);
        }
        if self.rows.len() <= self.row {
            self.rows.resize_with(self.row + 1, Vec::new);
        }
        let row = &mut self.rows[self.row];
        if row.len() <= self.column {
            row.resize(self.column + 1, (' ', ""));
        }
        row[self.column] = (c, self.style);
        self.column += 1;
    }

    fn control(&mut self, parameters: &str, what: char) {
        let count = parameters.parse().unwrap_or(1);
        match what {
            'A' => self.row = self.row.saturating_sub(count),
            'B' => self.row += count,
            'C' => self.column += count,
            'D' => self.column = self.column.saturating_sub(count),
            'K' => {
                let from = if parameters == "2" { 0 } else { self.column };
                if let Some(row) = self.rows.get_mut(self.row) {
                    row.truncate(from);
                }
            }
            'm' => {
                self.style = match parameters {
                    "1" => "b",
                    "2" => "f",
                    "31" | "1;31" => "r",
                    "32" => "g",
                    "33" => "y",
                    "1;36" => "c",
                    _ => "",
                }
            }
            _ => {}
        }
    }

    /// The text as a picture. Readers choose light or dark.
    fn svg(&self) -> String {
        let rows: Vec<&[Cell]> = self.rows.iter().map(|row| trimmed(row)).collect();
        let last = rows.iter().rposition(|row| !row.is_empty()).map_or(0, |last| last + 1);
        let (width, height) =
            (COLUMNS as f64 * CHARACTER.0 + 2.0 * MARGIN, last as f64 * CHARACTER.1 + 2.0 * MARGIN);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" role=\"img\" aria-label=\"A terminal that shows a run of tsunami\">\n<style>\n{STYLE}\
             </style>\n<rect class=\"paper\" width=\"100%\" height=\"100%\" rx=\"8\"/>\n"
        );
        for (nth, row) in rows[..last].iter().enumerate() {
            if row.is_empty() {
                continue;
            }
            let y = MARGIN + (nth as f64 + 0.75) * CHARACTER.1;
            let _ = write!(svg, "<text x=\"{MARGIN}\" y=\"{y:.1}\">");
            for run in row.chunk_by(|(_, one), (_, other)| one == other) {
                let text: String = run.iter().map(|(c, _)| escaped(*c)).collect();
                match run[0].1 {
                    "" => svg.push_str(&text),
                    style => svg.extend(["<tspan class=\"", style, "\">", &text, "</tspan>"]),
                }
            }
            svg.push_str("</text>\n");
        }
        svg.push_str("</svg>\n");
        svg
    }
}

const STYLE: &str = "\
.paper { fill: #ffffff; stroke: #d0d7de }
text { font: 14px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #1f2328; white-space: pre }
.b { font-weight: bold } .f { fill: #6e7781 } .r { fill: #cf222e } .g { fill: #1a7f37 } .y { fill: #9a6700 } .c { fill: #0969da }
@media (prefers-color-scheme: dark) {
.paper { fill: #0d1117; stroke: #30363d } text { fill: #e6edf3 }
.f { fill: #8b949e } .r { fill: #ff7b72 } .g { fill: #3fb950 } .y { fill: #d29922 } .c { fill: #58a6ff }
}
";

fn trimmed(row: &[Cell]) -> &[Cell] {
    let end = row.iter().rposition(|(c, _)| *c != ' ').map_or(0, |last| last + 1);
    &row[..end]
}

/// A character in XML. A blank is one that stays where others are.
fn escaped(c: char) -> String {
    match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        ' ' => "\u{a0}".to_owned(),
        c => c.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_drawn_over_is_gone_and_colours_stay() {
        let mut screen = Screen::default();
        screen.show("one\r\n\x1b[31mbad\x1b[0m <live>\r\n\x1b[1A\r\x1b[2Kdone\r\nlast\r\x1b[2K");
        let text = |row: &Vec<Cell>| row.iter().map(|(c, _)| c).collect::<String>();
        assert_eq!(screen.rows.iter().map(text).collect::<Vec<_>>(), ["one", "done", ""]);
        screen.show("\x1b[32mgood\x1b[0m & <x>");
        let svg = screen.svg();
        assert!(svg.contains("<tspan class=\"g\">good</tspan>\u{a0}&amp;\u{a0}&lt;x&gt;</text>"), "{svg}");
        assert!(svg.matches("<text").count() == 3, "{svg}");
    }
}
