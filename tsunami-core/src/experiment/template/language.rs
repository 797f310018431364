//! The language of templates: jinja's expressions, as far as what they take can be bounded.
//!
//! A file may come from a stranger. What an expression may do is therefore listed here and everything else refused,
//! and what it does is paid for in the engine's fuel.

use std::ops::Range;
use std::sync::LazyLock;

use crate::limits::{TEMPLATE_EXPRESSION_LIMIT, TEMPLATE_FUEL};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, StringInput, Value, ValueKind};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, escape_formatter, filters, tests,
};

use super::{GroupValue, LITERAL, MachineValue, TemplateError, invalid};

/// The filters that there are.
pub(super) const FILTERS: &[&str] = &[
    "q",
    "join",
    "map",
    "first",
    "last",
    "length",
    "count",
    "default",
    "d",
    "sort",
    "unique",
    "reverse",
    "list",
    "select",
    "reject",
    "selectattr",
    "rejectattr",
    "min",
    "max",
    "upper",
    "lower",
    "trim",
    "replace",
    "split",
    "string",
    "int",
    "float",
    "abs",
    "round",
];

/// The tests that there are.
pub(super) const TESTS: &[&str] = &[
    "defined",
    "undefined",
    "none",
    "boolean",
    "number",
    "integer",
    "float",
    "string",
    "odd",
    "even",
    "in",
    "eq",
    "equalto",
    "ne",
    "lt",
    "lessthan",
    "le",
    "gt",
    "greaterthan",
    "ge",
    "startingwith",
    "endingwith",
];

/// Filters that make a number, whatever they are given.
const NUMBERS: &[&str] = &["int", "float", "length", "count", "round", "abs"];

/// The words that begin a block of jinja's.
const STATEMENTS: &[&str] = &[
    "for",
    "endfor",
    "if",
    "elif",
    "else",
    "endif",
    "set",
    "endset",
    "with",
    "endwith",
    "filter",
    "endfilter",
    "macro",
    "endmacro",
    "call",
    "endcall",
    "do",
    "block",
    "endblock",
    "include",
    "import",
    "from",
    "extends",
    "raw",
    "endraw",
    "autoescape",
    "endautoescape",
];

pub(super) static ENGINE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut engine = Environment::empty();
    // Blocks and comments can't be turned off; delimiters with NUL, which no file may contain, are as good.
    let syntax = SyntaxConfig::builder()
        .block_delimiters("\0{%", "%}\0")
        .comment_delimiters("\0{#", "#}\0")
        .keep_trailing_newline(true)
        .build();
    engine.set_syntax(syntax.expect("the delimiters are constants and distinct"));
    engine.set_undefined_behavior(UndefinedBehavior::Strict);
    engine.set_auto_escape_callback(|_| AutoEscape::None);
    engine.set_debug(true); // without it errors don't know their place
    engine.set_fuel(Some(TEMPLATE_FUEL));
    engine.set_formatter(|out, state, value| {
        must_be_text(value)?;
        match boolean(value) {
            Some(word) => out.write_str(word).map_err(Error::from),
            None => escape_formatter(out, state, value),
        }
    });
    add_filters(&mut engine);
    add_tests(&mut engine);
    engine
});

fn add_filters(engine: &mut Environment<'_>) {
    engine.add_filter("q", quote);
    engine.add_filter("join", join);
    engine.add_filter("map", map);
    engine.add_filter("first", |state: &State<'_, '_>, value: &Value| {
        pay_for(state, value)?;
        filters::first(value)
    });
    engine.add_filter("last", |state: &State<'_, '_>, value: Value| {
        pay_for(state, &value)?;
        filters::last(value)
    });
    for name in ["length", "count"] {
        engine.add_filter(name, |state: &State<'_, '_>, value: &Value| {
            pay_for(state, value)?;
            filters::length(value)
        });
    }
    engine.add_filter("reverse", |state: &State<'_, '_>, value: &Value| {
        pay_for(state, value)?;
        filters::reverse(value)
    });
    for name in ["default", "d"] {
        engine.add_filter(name, filters::default);
    }
    engine.add_filter("sort", filters::sort);
    engine.add_filter("unique", filters::unique);
    engine.add_filter("list", filters::list);
    engine.add_filter("select", filters::select);
    engine.add_filter("reject", filters::reject);
    engine.add_filter("selectattr", filters::selectattr);
    engine.add_filter("rejectattr", filters::rejectattr);
    engine.add_filter("min", filters::min);
    engine.add_filter("max", filters::max);
    engine.add_filter("upper", filters::upper);
    engine.add_filter("lower", filters::lower);
    engine.add_filter("trim", filters::trim);
    engine.add_filter("replace", filters::replace);
    engine.add_filter("split", filters::split);
    engine.add_filter("string", filters::string);
    engine.add_filter("int", filters::int);
    engine.add_filter("float", filters::float);
    engine.add_filter("abs", filters::abs);
    engine.add_filter("round", filters::round);
}

fn add_tests(engine: &mut Environment<'_>) {
    engine.add_test("defined", tests::is_defined);
    engine.add_test("undefined", tests::is_undefined);
    engine.add_test("none", tests::is_none);
    engine.add_test("boolean", tests::is_boolean);
    engine.add_test("number", tests::is_number);
    engine.add_test("integer", tests::is_integer);
    engine.add_test("float", tests::is_float);
    engine.add_test("string", tests::is_string);
    engine.add_test("odd", tests::is_odd);
    engine.add_test("even", tests::is_even);
    engine.add_test("in", tests::is_in);
    for name in ["eq", "equalto"] {
        engine.add_test(name, tests::is_eq);
    }
    engine.add_test("ne", tests::is_ne);
    for name in ["lt", "lessthan"] {
        engine.add_test(name, tests::is_lt);
    }
    engine.add_test("le", tests::is_le);
    for name in ["gt", "greaterthan"] {
        engine.add_test(name, tests::is_gt);
    }
    engine.add_test("ge", tests::is_ge);
    engine.add_test("startingwith", tests::is_startingwith);
    engine.add_test("endingwith", tests::is_endingwith);
}

/// Pays for a look at every item, where the engine's own filter would not, and refuses what is undefined.
fn pay_for(state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    if value.is_undefined() {
        StringInput::new(state, value)?; // it knows how to name it
    }
    state.consume_fuel(value.len().unwrap_or(0) as u64)
}

/// Refuses what has no obvious spelling in a command: `{"ip": …}` in a shell is never what anybody meant.
fn must_be_text(value: &Value) -> Result<(), Error> {
    if let Some(machines) = value.downcast_object_ref::<GroupValue>() {
        return Err(machines.is_no_text());
    }
    if let Some(machine) = value.downcast_object_ref::<MachineValue>() {
        return Err(machine.is_no_text());
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            Err(invalid("a list is no text".to_owned(), "put it together with `| join(' ')`".to_owned()))
        }
        kind @ (ValueKind::Map | ValueKind::Plain | ValueKind::Bytes) => {
            Err(Error::new(ErrorKind::InvalidOperation, format!("a {kind} is no text")))
        }
        _ => Ok(()),
    }
}

/// True and false as the file spells them, and as shells have them. The engine would write `True`.
fn boolean(value: &Value) -> Option<&'static str> {
    (value.kind() == ValueKind::Bool).then(|| if value.is_true() { "true" } else { "false" })
}

/// `q`: one word for the shell, whatever is in it.
fn quote(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    must_be_text(value)?;
    if let Some(word) = boolean(value) {
        return Ok(word.to_owned());
    }
    let text = StringInput::new(state, value)?;
    let quoted = shlex::try_quote(text.as_str());
    quoted.map(String::from).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// `join`, of text only: jinja's own would spell out machines and skip over what is undefined.
fn join(
    state: &mut State<'_, '_>,
    value: &Value,
    joiner: Option<StringInput<'_>>,
    attribute: Option<&str>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    if attribute.is_none() && !kwargs.has("attribute") {
        for item in value.try_iter()?.checked() {
            let item = item?;
            state.consume_fuel(1)?;
            must_be_text(&item)?;
            StringInput::new(state, &item)?;
        }
    }
    filters::join(state, value, joiner, attribute, kwargs)
}

/// `map`, to an attribute or by a filter that takes nothing else: the engine's own also hands out defaults and
/// arguments, once for each item and for nothing.
fn map(
    state: &mut State<'_, '_>,
    value: &Value,
    filter: Option<&str>,
    kwargs: Kwargs,
) -> Result<Vec<Value>, Error> {
    let attribute = kwargs.get::<Option<&str>>("attribute")?;
    kwargs.assert_all_used()?;
    pay_for(state, value)?;
    let mut mapped = Vec::new();
    for item in value.try_iter()?.checked() {
        let item = item?;
        mapped.push(match (attribute, filter) {
            (Some(attribute), None) => item.get_attr(attribute)?,
            (None, Some(filter)) if FILTERS.contains(&filter) => {
                pay_for(state, &item)?;
                state.apply_filter(filter, &[item])?
            }
            (None, Some(filter)) => {
                return Err(Error::new(ErrorKind::UnknownFilter, format!("filter {filter} is unknown")));
            }
            _ => {
                let help = "write `map(attribute='ip')`, or `map('upper')`".to_owned();
                return Err(invalid("`map` takes an attribute or the name of a filter".to_owned(), help));
            }
        });
    }
    Ok(mapped)
}

/// Where the template's expressions stand, braces included.
pub(super) fn expressions(source: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut position = 0;
    while let Some(start) = source[position..].find("{{").map(|at| position + at) {
        let end = end_of_expression(source, start + 2);
        found.push(start..end);
        position = end;
    }
    found
}

/// The end of the expression whose inside begins at `start`: behind the first `}}` outside of quotes and brackets.
fn end_of_expression(source: &str, start: usize) -> usize {
    let (mut quote, mut escaped, mut open) = (None, false, 0);
    let bytes = source.as_bytes();
    for (at, &byte) in bytes.iter().enumerate().skip(start) {
        match (quote, byte) {
            _ if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(opened_by), _) if opened_by == byte => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'}') if open == 0 && bytes.get(at + 1) == Some(&b'}') => return at + 2,
            (None, b'(' | b'[' | b'{') => open += 1,
            (None, b')' | b']' | b'}') => open -= 1,
            _ => {}
        }
    }
    source.len()
}

/// So many digits fit a number of the engine's, whatever its sign: it reckons with such numbers unchecked.
const DIGITS: usize = 18;

/// The place of a number outside of quotes that the engine can't reckon with.
fn long_number(expression: &str) -> Option<usize> {
    let (mut quote, mut escaped, mut digits) = (None, false, 0);
    for (at, byte) in expression.bytes().enumerate() {
        match (quote, byte) {
            _ if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(opened_by), _) if opened_by == byte => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            _ => {}
        }
        match byte {
            b'0'..=b'9' if quote.is_none() => digits += 1,
            b'_' => {}
            _ => digits = 0,
        }
        if digits > DIGITS {
            return Some(at + 1 - digits);
        }
    }
    None
}

/// Why an expression is not even looked at: the engine would do so without a bound.
pub(super) fn refused(source: &str, range: Range<usize>) -> Option<TemplateError> {
    // The engine takes apart what is nested by calling itself, also along a chain of operators and filters.
    if range.len() > TEMPLATE_EXPRESSION_LIMIT {
        return Some(TemplateError {
            message: format!(
                "not a template: this expression is longer than {TEMPLATE_EXPRESSION_LIMIT} bytes"
            ),
            help: Some(LITERAL.to_owned()),
            range: Some(range.start..range.start + 2),
            too_much: true,
        });
    }
    if let Some(at) = long_number(&source[range.clone()]) {
        return Some(TemplateError {
            message: format!("not a template: no number has more than {DIGITS} digits"),
            help: None,
            range: Some(range.start + at..range.start + at + 1),
            too_much: false,
        });
    }
    let at = repetition(&source[range.clone()])?;
    Some(TemplateError {
        message: "not a template: `*` is for numbers".to_owned(),
        help: Some("write a number behind it, and before it a number, `index`, or `… | int`".to_owned()),
        range: Some(range.start + at..range.start + at + 1),
        too_much: true,
    })
}

/// What is written like a block or a comment of jinja's, and would go to the shell as it is: `{% for …`, `{# … #}`.
/// What a shell's own text has of it, as `${#x}` or `{%s}`, looks otherwise.
pub(super) fn mistaken(source: &str, expressions: &[Range<usize>]) -> Option<TemplateError> {
    let begins = |at: usize, start: &str| {
        let inside = source[at + start.len()..].trim_start_matches(['-', '+']);
        let word = inside.trim_start();
        let word = &word[..word.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(word.len())];
        match start {
            "{%" => STATEMENTS.contains(&word),
            _ => inside.starts_with(char::is_whitespace) && !source[..at].ends_with('$'),
        }
    };
    let is_inside = |at: usize| {
        let next = expressions.partition_point(|range| range.end <= at);
        expressions.get(next).is_some_and(|range| range.start <= at)
    };
    let (at, literal) = [("{%", "%}"), ("{#", " #}"), ("{#", "-#}")]
        .into_iter()
        .filter_map(|(start, end)| {
            let last = source.rfind(end)?;
            let mut found = source[..last].match_indices(start).map(|(at, _)| at);
            found.find(|at| !is_inside(*at) && begins(*at, start)).map(|at| (at, start))
        })
        .min()?;
    Some(TemplateError {
        message: format!("`{literal}` is nothing special here: only `{{{{ }}}}` is"),
        help: Some(match literal {
            "{%" => "a choice is `{{ 'a' if x else 'b' }}`, and a list `{{ x | join(' ') }}`; to write a literal `{%`, write \
                     `{{ '{%' }}`"
                .to_owned(),
            _ => format!("to write a literal `{literal}`, write `{{{{ '{literal}' }}}}`"),
        }),
        range: Some(at..at + literal.len()),
        too_much: false,
    })
}

/// A word, number, string or other character of an expression.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Token<'t> {
    Word(&'t str),
    Number,
    Text,
    Other(u8),
}

/// Where an expression multiplies what may be something else than a number, which would repeat it.
fn repetition(expression: &str) -> Option<usize> {
    if !expression.contains('*') {
        return None;
    }
    let inside = expression.strip_prefix("{{").unwrap_or(expression);
    let start = expression.len() - inside.len();
    let tokens = tokens(inside);
    // What a dictionary calls its `index` may be anything.
    let dictionary = inside.strip_suffix("}}").unwrap_or(inside).contains('{');
    let token = |at: Option<usize>| at.and_then(|at| tokens.get(at)).map(|(_, token)| *token);
    let is_star = |at: usize| token(Some(at)) == Some(Token::Other(b'*'));
    let wrong = |at: usize| {
        let power = is_star(at + 1);
        let left = match token(at.checked_sub(1)) {
            Some(Token::Number) => token(at.checked_sub(2)) != Some(Token::Other(b'.')),
            Some(Token::Word("index")) => !dictionary,
            Some(Token::Word(word)) => {
                NUMBERS.contains(&word) && token(at.checked_sub(2)) == Some(Token::Other(b'|'))
            }
            _ => false,
        };
        let next = at + 1 + usize::from(power);
        let right = match token(Some(next)) {
            Some(Token::Number) => true,
            Some(Token::Word("index")) => {
                !matches!(token(Some(next + 1)), Some(Token::Other(b'.' | b'[' | b'(')))
            }
            _ => false,
        };
        !(left && right)
    };
    let stars = (0..tokens.len()).filter(|&at| is_star(at) && !(at > 0 && is_star(at - 1)));
    stars.into_iter().find(|&at| wrong(at)).map(|at| start + tokens[at].0)
}

/// The tokens of an expression and where they stand. An approximation that only has to be right about what
/// surrounds a `*`.
fn tokens(text: &str) -> Vec<(usize, Token<'_>)> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        let part_of_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let (length, token) = match byte {
            b'"' | b'\'' => (string_length(rest), Token::Text),
            b'0'..=b'9' => {
                let length = rest.iter().take_while(|byte| part_of_word(byte) || **byte == b'.').count();
                (length, Token::Number)
            }
            byte if part_of_word(&byte) => {
                let length = rest.iter().take_while(|byte| part_of_word(byte)).count();
                (length, Token::Word(text.get(at..at + length).unwrap_or_default()))
            }
            byte => (1, Token::Other(byte)),
        };
        if !byte.is_ascii_whitespace() {
            tokens.push((at, token));
        }
        at += length;
    }
    tokens
}

/// The length of the string at the beginning of some bytes, quotes included.
fn string_length(bytes: &[u8]) -> usize {
    let mut escaped = false;
    for (at, &byte) in bytes.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            byte if byte == bytes[0] => return at + 1,
            _ => {}
        }
    }
    bytes.len()
}
