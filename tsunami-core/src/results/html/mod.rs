//! `report.html`: what a run came to, for people, in one file that needs nothing else.
//!
//! The page is made of values that hold text alone ([`view`]), through a template that escapes all of it; plots are drawn
//! here. There is no script in it, and its policy allows none.

mod plots;
mod view;

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, HtmlEscape};
use serde_json::Value;

use super::built::Source;
use crate::limits::REPORT_LIMIT;
use crate::text::{sanitize, shorten};

/// What the file is called.
pub(super) const NAME: &str = "report.html";

/// By the end of its name, the template's engine escapes what is text for it.
const TEMPLATE_NAME: &str = "report.html.j2";
const TEMPLATE: &str = include_str!("report.html.j2");

pub(super) fn build(source: &Source<'_>) -> io::Result<String> {
    // Where there is too much to show, less detail is shown, and the page says so.
    let mut room = REPORT_LIMIT;
    for _ in 0..4 {
        let page = page(source, room)?;
        if page.len() <= REPORT_LIMIT {
            return Ok(page);
        }
        room /= 4;
    }
    Err(io::Error::other("there is too much to show"))
}

fn page(source: &Source<'_>, room: usize) -> io::Result<String> {
    let mut view = serde_json::to_value(view::View::new(source, room))?;
    clean(&mut view);
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(io::Error::other)?);
    environment.add_filter("words", words);
    environment.add_template(TEMPLATE_NAME, TEMPLATE).map_err(io::Error::other)?;
    let template = environment.get_template(TEMPLATE_NAME).map_err(io::Error::other)?;
    Ok(template.render(Serde(view)).map_err(io::Error::other)? + "\n")
}

/// A sentence as HTML: what it has in backticks is code there.
fn words(text: &str) -> minijinja::Value {
    let mut html = String::new();
    let mut rest = text;
    while let Some((before, (code, after))) =
        rest.split_once('`').and_then(|(before, rest)| Some((before, rest.split_once('`')?)))
    {
        html += &format!("{}<code>{}</code>", HtmlEscape(before), HtmlEscape(code));
        rest = after;
    }
    minijinja::Value::from_safe_string(html + &HtmlEscape(rest).to_string())
}

/// The most characters of one text: of others, so much can be read.
const TEXT: usize = 600;

/// Takes out of all texts what would act on a terminal, or isn't seen, and the ends of what nobody would read; lines stay
/// lines. A plot is no text, and made of clean ones.
fn clean(value: &mut Value) {
    match value {
        Value::String(text) => {
            let lines: Vec<_> = text.trim_end().lines().map(sanitize).collect();
            *text = shorten(&lines.join("\n"), TEXT).into_owned();
        }
        Value::Array(values) => values.iter_mut().for_each(clean),
        Value::Object(fields) => {
            fields.iter_mut().filter(|(name, _)| *name != "svg").for_each(|(_, value)| clean(value));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn code_is_code_and_all_else_is_text() {
        let told = ["`p99 > 1.02` holds for `<b>`", "one ` <b>", "none"].map(|text| words(text).to_string());
        assert_eq!(
            told,
            ["<code>p99 &gt; 1.02</code> holds for <code>&lt;b&gt;</code>", "one ` &lt;b&gt;", "none"]
        );
    }
}
