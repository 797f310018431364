//! Templates: text in which `{{ }}` stands for a fact about the machines of a run.
//!
//! What a template may know is a [`Scope`], built from plain [`Facts`]. Whoever renders decides what the
//! facts are: placeholders when a file is checked, the real addresses when a run is under way.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, StringInput, Value, ValueKind};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, escape_formatter, filters,
};
use tsunami_core::Addresses;

use super::problem::{likely, suggest};

/// What every machine can be asked for, as `x.ip` of another or as `ip` of its own.
const ATTRIBUTES: &[&str] = &["name", "group", "index", "ip", "public_ip", "private_ip"];

/// Names that no group and no parameter can have: the facts themselves, and the words of the language.
const RESERVED: &[&str] = &[
    "name",
    "group",
    "index",
    "ip",
    "public_ip",
    "private_ip",
    "run_id",
    "trial",
    "all",
    "true",
    "false",
    "none",
    "and",
    "or",
    "not",
    "in",
    "is",
    "if",
    "else",
    "self",
    "loop",
];

/// How to say that two braces are just two braces.
const LITERAL: &str = "to write a literal `{{`, write `{{ '{{' }}`";

/// Whether templates already give this name a meaning of their own.
pub(super) fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

/// Text with `{{ }}` in it, known to be well formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    source: String,
}

impl Template {
    /// Takes the text, if it is well formed.
    pub(crate) fn new(source: impl Into<String>) -> Result<Self, TemplateError> {
        let source = source.into();
        match ENGINE.template_from_str(&source) {
            Ok(_) => Ok(Self { source }),
            Err(error) => Err(TemplateError::new(&error, &source, None)),
        }
    }

    /// The text as it was written.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The text with every `{{ }}` replaced by what it stands for.
    pub(crate) fn render(&self, scope: &Scope) -> Result<String, TemplateError> {
        ENGINE
            .template_from_str(&self.source)
            .and_then(|template| template.render(Value::from_dyn_object(scope.0.clone())))
            .map_err(|error| TemplateError::new(&error, &self.source, Some(scope)))
    }

    /// Renders, and when that fails says so for each of the template's expressions, not only the first.
    pub(super) fn check(&self, scope: &Scope) -> Result<String, Vec<TemplateError>> {
        self.render(scope).map_err(|first| {
            let failing = |range: Range<usize>| {
                let mut error = Self::new(&self.source[range.clone()]).ok()?.render(scope).err()?;
                error.range = error.range.map(|within| range.start + within.start..range.start + within.end);
                Some(error)
            };
            let all: Vec<_> = expressions(&self.source).into_iter().filter_map(failing).collect();
            if all.is_empty() { vec![first] } else { all }
        })
    }

    /// The names that the template wants to be told; none if it is plain text.
    pub(super) fn names(&self) -> HashSet<String> {
        ENGINE.template_from_str(&self.source).map(|t| t.undeclared_variables(false)).unwrap_or_default()
    }
}

/// Why a template is not well formed, or can't be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", help.iter().map(|help| format!("; {help}")).collect::<String>())]
pub(crate) struct TemplateError {
    /// What is wrong.
    pub(crate) message: String,
    /// What to do about it, if that is known.
    pub(crate) help: Option<String>,
    /// The part of the template's text it is about (in bytes), if that is known.
    pub(crate) range: Option<Range<usize>>,
}

impl TemplateError {
    fn new(error: &Error, source: &str, scope: Option<&Scope>) -> Self {
        let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
        let help = std::error::Error::source(error)
            .and_then(|source| source.downcast_ref())
            .map(|Help(h)| h.clone());
        let range = error.range().filter(|range| source.get(range.clone()).is_some());
        let this = Self { message: detail, help, range };
        match error.kind() {
            ErrorKind::SyntaxError => Self {
                message: format!("not a template: {}", this.message),
                help: Some(LITERAL.to_owned()),
                ..this
            },
            ErrorKind::UndefinedError => this.about_name(source, scope),
            _ => this,
        }
    }

    /// Makes the most of "`sever` is undefined": points at the word itself, and knows what was meant.
    fn about_name(self, source: &str, scope: Option<&Scope>) -> Self {
        let Some(name) = self.message.strip_prefix('`').and_then(|m| m.strip_suffix("` is undefined")) else {
            return self;
        };
        let range = self.range.as_ref().map(|range| match find_word(&source[range.clone()], name) {
            Some(at) => range.start + at..range.start + at + name.len(),
            None => range.clone(),
        });
        let help = self.help.or_else(|| scope.and_then(|scope| scope.0.help_for(name)));
        Self { message: self.message, help, range }
    }
}

/// Where the template's expressions stand, braces included.
fn expressions(source: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut position = 0;
    while let Some(start) = source[position..].find("{{").map(|at| position + at) {
        let end = end_of_expression(source, start + 2);
        found.push(start..end);
        position = end;
    }
    found
}

/// The end of the expression whose inside begins at `start`: behind the first `}}` outside of quotes.
fn end_of_expression(source: &str, start: usize) -> usize {
    let mut quote = None;
    let mut escaped = false;
    let bytes = source.as_bytes();
    for (at, &byte) in bytes.iter().enumerate().skip(start) {
        match (quote, byte) {
            _ if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(open), _) if open == byte => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'}') if bytes.get(at + 1) == Some(&b'}') => return at + 2,
            _ => {}
        }
    }
    source.len()
}

/// Where `word` stands in `text` as a word of its own.
fn find_word(text: &str, word: &str) -> Option<usize> {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    let whole = |at: &usize| {
        !text[..*at].ends_with(part_of_word) && !text[*at + word.len()..].starts_with(part_of_word)
    };
    text.match_indices(word).map(|(at, _)| at).find(whole)
}

/// What is known about one machine of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Its name, as `client-0`.
    pub(crate) name: String,
    /// The group it belongs to.
    pub(crate) group: String,
    /// Its number within the group, from zero.
    pub(crate) index: u32,
    /// The address by which it reaches itself: the private one if it has any, else the public one.
    pub(crate) ip: String,
    /// The addresses by which others reach it.
    pub(crate) addresses: Addresses,
    /// The run it belongs to.
    pub(crate) run_id: String,
}

/// The machines of a run, by group. Cheap to clone, so that a scope can be made for each of a thousand.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    machines: Arc<[Facts]>,
    /// Where each group's machines are in `machines`.
    groups: Arc<BTreeMap<String, Vec<usize>>>,
}

impl Fleet {
    /// All machines, in order.
    pub(crate) fn machines(&self) -> &[Facts] {
        &self.machines
    }

    fn group(&self, name: &str) -> Option<&[usize]> {
        self.groups.get(name).map(Vec::as_slice)
    }
}

impl From<Vec<Facts>> for Fleet {
    fn from(machines: Vec<Facts>) -> Self {
        let mut groups = BTreeMap::<_, Vec<_>>::new();
        for (at, machine) in machines.iter().enumerate() {
            groups.entry(machine.group.clone()).or_default().push(at);
        }
        Self { machines: machines.into(), groups: Arc::new(groups) }
    }
}

/// The address by which `me` reaches `other`: private within a network, public across.
pub(crate) fn address_from<'a>(me: &Facts, other: &'a Facts) -> Option<&'a str> {
    if me.name == other.name {
        return Some(&other.ip);
    }
    other.addresses.seen_from(&me.addresses)
}

/// The facts as environment variables: in set-up without a trial, in steps with one.
pub(crate) fn variables(me: &Facts, all: &Fleet, trial: Option<&str>) -> Vec<(String, String)> {
    let own = [
        ("TSUNAMI_NAME", me.name.clone()),
        ("TSUNAMI_GROUP", me.group.clone()),
        ("TSUNAMI_INDEX", me.index.to_string()),
        ("TSUNAMI_RUN_ID", me.run_id.clone()),
        ("TSUNAMI_IP", me.ip.clone()),
    ];
    let mut variables: Vec<_> = own.map(|(name, value)| (name.to_owned(), value)).into();
    if let Some(trial) = trial {
        variables.push(("TSUNAMI_TRIAL".to_owned(), trial.to_owned()));
        for (group, members) in all.groups.iter() {
            let ips: Vec<_> = members.iter().filter_map(|&at| address_from(me, &all.machines[at])).collect();
            variables.push((format!("TSUNAMI_{}_IPS", group.to_uppercase()), ips.join(" ")));
        }
    }
    variables
}

/// What a template may know, on one machine at one time.
#[derive(Debug, Clone)]
pub(crate) struct Scope(Arc<Context>);

impl Scope {
    /// In set-up a machine knows itself; the others may not be there yet.
    pub(crate) fn setup(me: &Facts, set: &[(String, String)]) -> Self {
        Self(Arc::new(Context { me: Arc::new(me.clone()), set: set.to_vec(), step: None }))
    }

    /// In a step it also knows the trial and every machine.
    pub(crate) fn step(me: &Facts, all: &Fleet, trial: &str, set: &[(String, String)]) -> Self {
        let step = Some((all.clone(), trial.to_owned()));
        Self(Arc::new(Context { me: Arc::new(me.clone()), set: set.to_vec(), step }))
    }
}

/// The names at the top of a template.
#[derive(Debug)]
struct Context {
    me: Arc<Facts>,
    set: Vec<(String, String)>,
    step: Option<(Fleet, String)>,
}

impl Context {
    fn help_for(&self, name: &str) -> Option<String> {
        if ATTRIBUTES.contains(&name) {
            // Known, but this machine has no such address. There is nothing to suggest.
            return None;
        }
        let set = self.set.iter().map(|(name, _)| name.as_str());
        let own: Vec<_> = ATTRIBUTES.iter().copied().chain(["run_id"]).chain(set).collect();
        match &self.step {
            Some((fleet, _)) => {
                let groups = fleet.groups.keys().map(String::as_str);
                suggest(name, own.into_iter().chain(["trial"]).chain(groups))
            }
            None => likely(name, own.iter().copied())
                .or_else(|| Some(format!("set-up knows only what is the machine's own: {}", own.join(", ")))),
        }
    }
}

impl Object for Context {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let name = key.as_str()?;
        let me = &self.me;
        match name {
            "run_id" => return Some(Value::from(&me.run_id)),
            "trial" => return self.step.as_ref().map(|(_, trial)| Value::from(trial)),
            _ => {}
        }
        attribute(me, me, name).unwrap_or_else(|| {
            if let Some((_, value)) = self.set.iter().find(|(set, _)| set == name) {
                return Some(Value::from(value));
            }
            let (fleet, _) = self.step.as_ref()?;
            fleet.group(name)?;
            Some(Value::from_object(Machines {
                seen_by: me.clone(),
                fleet: fleet.clone(),
                group: name.to_owned(),
            }))
        })
    }
}

/// A fact about `other` as `me` sees it: `None` if there is no such fact, `Some(None)` if this machine lacks it.
fn attribute(me: &Facts, other: &Facts, name: &str) -> Option<Option<Value>> {
    Some(match name {
        "name" => Some(Value::from(&other.name)),
        "group" => Some(Value::from(&other.group)),
        "index" => Some(Value::from(other.index)),
        "ip" => address_from(me, other).map(Value::from),
        "public_ip" => other.addresses.public.as_ref().map(Value::from),
        "private_ip" => other.addresses.private.as_ref().map(Value::from),
        _ => return None,
    })
}

/// A group: always a list, and if it has one machine also that machine.
#[derive(Debug)]
struct Machines {
    seen_by: Arc<Facts>,
    fleet: Fleet,
    group: String,
}

impl Machines {
    fn members(&self) -> &[usize] {
        self.fleet.group(&self.group).unwrap_or_default()
    }

    fn machine(&self, at: usize) -> Machine {
        Machine { seen_by: self.seen_by.clone(), fleet: self.fleet.clone(), at }
    }

    fn is_no_text(&self) -> Error {
        let Self { group, .. } = self;
        match self.members() {
            [_] => invalid(
                format!("`{group}` is a machine, not text"),
                format!("write `{group}.ip`, or another of its facts"),
            ),
            _ => self.is_a_list("ip"),
        }
    }

    fn is_a_list(&self, attribute: &str) -> Error {
        let Self { group, .. } = self;
        invalid(
            format!("`{group}` is {} machines", self.members().len()),
            format!(
                "write `{group}[0].{attribute}` for one, `{group} | map(attribute='{attribute}') | join(',')` for all"
            ),
        )
    }
}

impl Object for Machines {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.members().len())
    }

    // What doesn't exist is an error at once rather than undefined: filters such as `map` and `join` would
    // make an empty word of something undefined.
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let members = self.members();
        match (key.as_str(), members) {
            (Some(attribute), [only]) => Arc::new(self.machine(*only)).get_value(&Value::from(attribute)),
            (Some(attribute), _) => Some(self.is_a_list(attribute).into()),
            (None, _) => match key.as_usize().and_then(|index| members.get(index)) {
                Some(at) => Some(Value::from_object(self.machine(*at))),
                None => Some(
                    invalid(
                        format!("`{}[{key}]` doesn't exist", self.group),
                        format!("`{}` has {} machines, counted from 0", self.group, members.len()),
                    )
                    .into(),
                ),
            },
        }
    }
}

/// A machine, as another sees it.
#[derive(Debug)]
struct Machine {
    seen_by: Arc<Facts>,
    fleet: Fleet,
    at: usize,
}

impl Machine {
    fn is_no_text(&self) -> Error {
        let name = &self.fleet.machines[self.at].name;
        invalid(
            format!("`{name}` is a machine, not text"),
            "write its `.ip`, or another of its facts".to_owned(),
        )
    }
}

impl Object for Machine {
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(ATTRIBUTES)
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let name = key.as_str()?;
        let known = attribute(&self.seen_by, &self.fleet.machines[self.at], name);
        known.unwrap_or_else(|| {
            Some(
                invalid(format!("a machine has no `{name}`"), suggest(name, ATTRIBUTES.iter().copied()))
                    .into(),
            )
        })
    }
}

/// Advice that travels with an error through the template engine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Help(String);

fn invalid(message: String, help: impl Into<Option<String>>) -> Error {
    let error = Error::new(ErrorKind::InvalidOperation, message);
    match help.into() {
        Some(help) => error.with_source(Help(help)),
        None => error,
    }
}

/// The language: jinja's expressions, nothing else of it.
static ENGINE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut engine = Environment::new();
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
    engine.set_formatter(|out, state, value| {
        must_be_text(value)?;
        escape_formatter(out, state, value)
    });
    engine.add_filter("q", quote);
    engine.add_filter("join", join);
    engine
});

/// Refuses what has no obvious spelling in a command: `{"ip": …}` in a shell is never what anybody meant.
fn must_be_text(value: &Value) -> Result<(), Error> {
    if let Some(machines) = value.downcast_object_ref::<Machines>() {
        return Err(machines.is_no_text());
    }
    if let Some(machine) = value.downcast_object_ref::<Machine>() {
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

/// `q`: one word for the shell, whatever is in it.
fn quote(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    must_be_text(value)?;
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
            must_be_text(&item)?;
            StringInput::new(state, &item)?;
        }
    }
    filters::join(state, value, joiner, attribute, kwargs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(group: &str, index: u32, network: &str, public: Option<&str>) -> Facts {
        let private = format!("10.0.{network}.{index}");
        Facts {
            name: format!("{group}-{index}"),
            group: group.to_owned(),
            index,
            ip: private.clone(),
            addresses: Addresses {
                public: public.map(str::to_owned),
                private: Some(private),
                network: Some(network.to_owned()),
            },
            run_id: "r1".to_owned(),
        }
    }

    /// Two clients beside each other, and a server elsewhere.
    fn fleet() -> Fleet {
        Fleet::from(vec![
            machine("server", 0, "1", Some("198.18.0.1")),
            machine("client", 0, "2", Some("198.18.0.2")),
            machine("client", 1, "2", None),
        ])
    }

    /// Renders a step's template on `client-0`.
    fn on_client(template: &str) -> Result<String, TemplateError> {
        let fleet = fleet();
        let set = [("n".to_owned(), "a b".to_owned())];
        Template::new(template)?.render(&Scope::step(&fleet.machines()[1], &fleet, "7", &set))
    }

    #[track_caller]
    fn renders(template: &str, expected: &str) {
        assert_eq!(on_client(template).as_deref(), Ok(expected), "of {template}");
    }

    #[test]
    fn a_machine_knows_itself() {
        renders("{{ name }} {{ group }} {{ index }} {{ run_id }} {{ trial }}", "client-0 client 0 r1 7");
        renders("{{ ip }} {{ public_ip }} {{ private_ip }}", "10.0.2.0 198.18.0.2 10.0.2.0");
    }

    #[test]
    fn a_group_of_one_is_a_machine_and_any_group_is_a_list() {
        renders("{{ server.name }} {{ server[0].name }} {{ server | length }}", "server-0 server-0 1");
        renders("{{ server | map(attribute='name') | join }}", "server-0");
        renders("{{ client[0].name }} {{ client[-1].name }} {{ client | length }}", "client-0 client-1 2");
        renders("{{ client | map(attribute='ip') | join(',') }}", "10.0.2.0,10.0.2.1");
        renders("{{ client[1:] | join(' ', attribute='name') }} {{ (client | last).index }}", "client-1 1");
    }

    #[test]
    fn addresses_are_private_within_a_network_and_public_across() {
        renders("{{ server.ip }} {{ client[1].ip }}", "198.18.0.1 10.0.2.1");
        let fleet = fleet();
        let [server, _, hidden] = fleet.machines() else { panic!() };
        assert_eq!(address_from(server, server), Some("10.0.1.0"), "itself");
        assert_eq!(address_from(server, hidden), Some("10.0.2.1"), "better than nothing");
        let addresses = Addresses { network: None, ..server.addresses.clone() };
        let nowhere = Facts { addresses, ..server.clone() };
        let elsewhere = Facts { name: "x-0".to_owned(), addresses: Addresses::default(), ..server.clone() };
        assert_eq!(
            address_from(&elsewhere, &nowhere),
            Some("198.18.0.1"),
            "two unknown networks are not the same"
        );
        assert_eq!(address_from(server, &elsewhere), None);
    }

    #[test]
    fn only_two_braces_are_special() {
        let text = "a='${#x[@]}' {% if %} {# no comment #} ${x%%} { } }}\n\n";
        renders(text, text);
        renders("{{ '{{' }}.Names}}", "{{.Names}}");
        renders("<{{ '<&>' }}>", "<<&>>");
    }

    #[test]
    fn q_quotes_for_the_shell() {
        renders("{{ n | q }} {{ ip | q }} {{ index | q }} {{ '' | q }}", "'a b' 10.0.2.0 0 ''");
        renders(r#"{{ "it's" | q }}"#, r#""it's""#);
    }

    #[test]
    fn an_address_that_is_not_there_is_an_error_wherever_it_is_used() {
        for template in [
            "{{ client[1].public_ip }}",
            "{{ client[1].public_ip | q }}",
            "{{ client | map(attribute='public_ip') | join(' ') }}",
        ] {
            assert!(on_client(template).is_err(), "{template}");
        }
        renders("{{ client[1].public_ip if client[1].public_ip is defined else 'none' }}", "none");
    }

    #[test]
    fn errors_know_their_place_and_what_was_meant() {
        let template = "echo {{ n }} {{ upper(sever.ip) if trail else 1 }}";
        let error = on_client(template).unwrap_err();
        assert_eq!(error.range.as_ref().map(|range| &template[range.clone()]), Some("trail"));
        assert_eq!(error.to_string(), "`trail` is undefined; did you mean `trial`?");
        let fleet = fleet();
        let all = Template::new("{{ '}}' ~ x }} {{ ip }} {{ {'a': {'b': y}}.a.b }}").unwrap();
        let errors = all.check(&Scope::step(&fleet.machines()[0], &fleet, "1", &[])).unwrap_err();
        let ranges: Vec<_> = errors.into_iter().map(|error| error.range).collect();
        assert_eq!(ranges, [Some(10..11)], "the other comes when this is mended");
    }

    #[test]
    fn setup_knows_only_itself() {
        let fleet = fleet();
        let scope = Scope::setup(&fleet.machines()[0], &[]);
        assert_eq!(Template::new("{{ name }}").unwrap().render(&scope).as_deref(), Ok("server-0"));
        for template in ["{{ trial }}", "{{ client[0].ip }}", "{{ server.ip }}"] {
            assert!(Template::new(template).unwrap().render(&scope).is_err(), "{template}");
        }
    }

    #[test]
    fn the_same_facts_are_in_the_environment() {
        let fleet = fleet();
        let text = |trial| {
            let variables = variables(&fleet.machines()[1], &fleet, trial);
            variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let setup = text(None);
        let own = ["NAME=client-0", "GROUP=client", "INDEX=0", "RUN_ID=r1", "IP=10.0.2.0"];
        assert_eq!(setup, own.map(|fact| format!("TSUNAMI_{fact}")));
        let step = ["TRIAL=7", "CLIENT_IPS=10.0.2.0 10.0.2.1", "SERVER_IPS=198.18.0.1"];
        assert_eq!(text(Some("7"))[setup.len()..], step.map(|fact| format!("TSUNAMI_{fact}")));
    }
}
