//! Templates: text in which `{{ }}` stands for a fact about the machines of a run.
//!
//! What a template may know is a [`Scope`], built from the [`MachineContext`] of each machine. Whoever renders decides what the
//! facts are: placeholders when a file is checked, the real addresses when a run is under way.

mod language;

use std::cmp::Ordering;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::{fmt, io};

use crate::limits::TEMPLATE_OUTPUT_LIMIT;
use crate::trial::{MachineContext, Machines, ParameterValue, Parameters};
use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, Value};
use minijinja::{Error, ErrorKind};

use self::language::{ENGINE, FILTERS, TESTS, expressions, mistaken, refused};
use super::problem::{likely, suggest};
use crate::text::number;

/// What a machine knows of itself by a plain name, as `ip`.
const OWN: &[&str] = &["name", "group", "index", "ip", "public_ip", "private_ip"];

/// What every machine can be asked for, as `x.ip`.
const ATTRIBUTES: &[&str] = &["name", "group", "index", "ip", "host", "public_ip", "private_ip"];

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

/// So many expressions of a template that fails are looked at one by one.
const ONE_BY_ONE: usize = 20;

/// How to say that two braces are just two braces.
const LITERAL: &str = "to write a literal `{{`, write `{{ '{{' }}`";

/// Whether templates already give this name a meaning of their own.
pub(super) fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

/// Text with `{{ }}` in it, known to be well formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    source: String,
}

impl Template {
    /// Takes the text, if it is well formed.
    pub fn new(source: impl Into<String>) -> Result<Self, TemplateError> {
        let source = source.into();
        let expressions = expressions(&source);
        if let Some(error) = expressions.iter().find_map(|range| refused(&source, range.clone())) {
            return Err(error);
        }
        if let Some(error) = mistaken(&source, &expressions) {
            return Err(error);
        }
        match ENGINE.template_from_str(&source) {
            Ok(_) => Ok(Self { source }),
            Err(error) => Err(TemplateError::new(&error, &source, None)),
        }
    }

    /// The text as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text with every `{{ }}` replaced by what it stands for.
    pub fn render(&self, scope: &Scope) -> Result<String, TemplateError> {
        self.rendered(scope).map(|rendered| rendered.text)
    }

    fn rendered(&self, scope: &Scope) -> Result<Rendered, TemplateError> {
        let render = || {
            let template = ENGINE.template_from_str(&self.source)?;
            let mut output = Output::default();
            let context = Value::from_dyn_object(scope.0.clone());
            let work = template.render_captured_to(context, &mut output)?.state().fuel_levels();
            // The engine writes whole characters.
            let text = String::from_utf8(output.0).map_err(|error| invalid(error.to_string(), None))?;
            Ok(Rendered { text, work: work.map_or(0, |(work, _)| work) })
        };
        render().map_err(|error| TemplateError::new(&error, &self.source, Some(scope)))
    }

    /// Renders, and when that fails says so for each of the template's expressions, not only the first.
    pub(super) fn check(&self, scope: &Scope) -> Result<Rendered, Vec<TemplateError>> {
        self.rendered(scope).map_err(|first| {
            // What took too much as a whole would take it again in parts.
            if first.too_much {
                return vec![first];
            }
            let failing = |range: Range<usize>| {
                let mut error = Self::new(&self.source[range.clone()]).ok()?.render(scope).err()?;
                error.range = error.range.map(|within| range.start + within.start..range.start + within.end);
                Some(error)
            };
            let all: Vec<_> = self.expressions_from(first.range.as_ref()).filter_map(failing).collect();
            if all.is_empty() { vec![first] } else { all }
        })
    }

    /// How often it takes to render, at the most, to tell all that is wrong.
    pub(super) fn attempts(&self) -> usize {
        1 + self.expressions_from(None).count()
    }

    /// The expressions that begin with the one that a place is in, as many as may be looked at one by one.
    fn expressions_from(&self, place: Option<&Range<usize>>) -> impl Iterator<Item = Range<usize>> {
        let start = place.map_or(0, |place| place.start);
        expressions(&self.source).into_iter().filter(move |range| range.end > start).take(ONE_BY_ONE)
    }

    /// The names that the template wants to be told; none if it is plain text.
    pub(crate) fn names(&self) -> HashSet<String> {
        ENGINE.template_from_str(&self.source).map(|t| t.undeclared_variables(false)).unwrap_or_default()
    }

    /// The line in which a name stands first.
    pub(super) fn line_of(&self, name: &str) -> Option<usize> {
        let has_it = |range: &Range<usize>| {
            Self::new(&self.source[range.clone()]).is_ok_and(|part| part.names().contains(name))
        };
        let range = expressions(&self.source).into_iter().find(has_it)?;
        Some(1 + self.source[..range.start].matches('\n').count())
    }
}

/// What a template stands for, and what it took to find out.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) text: String,
    /// In the engine's own units, of which there are [`TEMPLATE_FUEL`](crate::limits::TEMPLATE_FUEL).
    pub(super) work: u64,
}

/// Takes no more than [`TEMPLATE_OUTPUT_LIMIT`].
#[derive(Default)]
struct Output(Vec<u8>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > TEMPLATE_OUTPUT_LIMIT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a template is not well formed, or can't be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", help.iter().map(|help| format!("; {help}")).collect::<String>())]
pub struct TemplateError {
    /// What is wrong.
    pub message: String,
    /// What to do about it, if that is known.
    pub help: Option<String>,
    /// The part of the template's text it is about (in bytes), if that is known.
    pub range: Option<Range<usize>>,
    /// Whether it was given up for what it would take.
    pub(super) too_much: bool,
}

impl TemplateError {
    fn new(error: &Error, source: &str, scope: Option<&Scope>) -> Self {
        let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
        let help = std::error::Error::source(error)
            .and_then(|source| source.downcast_ref())
            .map(|Help(h)| h.clone());
        let range = error.range().filter(|range| source.get(range.clone()).is_some());
        let this = Self { message: detail, help, range, too_much: false };
        match error.kind() {
            ErrorKind::SyntaxError => Self {
                message: format!("not a template: {}", this.message),
                help: Some(LITERAL.to_owned()),
                ..this
            },
            ErrorKind::UndefinedError => this.about_name(source, scope),
            ErrorKind::UnknownFilter => this.about_word("filter ", FILTERS),
            ErrorKind::UnknownTest => this.about_word("test ", TESTS),
            ErrorKind::UnknownFunction => {
                let help = "there are no functions here; a filter stands behind its value, as `ip | q`";
                Self { help: Some(help.to_owned()), ..this }
            }
            ErrorKind::OutOfFuel => Self {
                message: "this takes more work than a template may".to_owned(),
                help: Some("let a command on the machine do it".to_owned()),
                too_much: true,
                ..this
            },
            ErrorKind::WriteFailure => Self {
                message: format!("this becomes longer than {} KiB", TEMPLATE_OUTPUT_LIMIT >> 10),
                help: Some("bring long texts to the machine as files, with `upload`".to_owned()),
                too_much: true,
                ..this
            },
            _ => {
                match this.message.rsplit_once(" (`").and_then(|(_, end)| end.strip_suffix("` is undefined)"))
                {
                    Some(name) => Self { message: format!("`{name}` is undefined"), ..this.clone() }
                        .about_name(source, scope),
                    None => this,
                }
            }
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
        Self { message: self.message, help, range, too_much: false }
    }

    /// Knows which word was meant in "filter shout is unknown".
    fn about_word(self, kind: &str, known: &[&str]) -> Self {
        let word = self.message.strip_prefix(kind).and_then(|rest| rest.strip_suffix(" is unknown"));
        let Some(word) = word else { return self };
        let message = format!("the {kind}`{word}` is unknown");
        Self { help: suggest(word, known.iter().copied()), message, ..self }
    }
}

/// Where `word` stands in `text` as a word of its own.
fn find_word(text: &str, word: &str) -> Option<usize> {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    let whole = |at: &usize| {
        !text[..*at].ends_with(part_of_word) && !text[*at + word.len()..].starts_with(part_of_word)
    };
    text.match_indices(word).map(|(at, _)| at).find(whole)
}

/// What a template may know, on one machine at one time.
#[derive(Debug, Clone)]
pub struct Scope(Arc<Context>);

impl Scope {
    /// Before there are machines, only values are known.
    pub(super) fn plain(values: impl Into<Arc<Parameters>>) -> Self {
        Self::of(None, Where::File, values.into())
    }

    /// In set-up a machine knows itself, and values by their names; the others may not be there yet.
    pub fn setup(me: &MachineContext, values: impl Into<Arc<Parameters>>) -> Self {
        Self::of(Some(me), Where::Setup, values.into())
    }

    /// In what is done once for all trials it also knows every machine.
    pub fn run(me: &MachineContext, all: &Machines, values: impl Into<Arc<Parameters>>) -> Self {
        Self::of(Some(me), Where::Run(all.clone()), values.into())
    }

    /// In a step it also knows the trial.
    pub fn step(
        me: &MachineContext,
        all: &Machines,
        trial: &str,
        values: impl Into<Arc<Parameters>>,
    ) -> Self {
        Self::of(Some(me), Where::Trial(all.clone(), trial.to_owned()), values.into())
    }

    /// Adds the parameters of a trial.
    #[must_use]
    pub fn with(self, parameters: impl Into<Arc<Parameters>>) -> Self {
        let context = Arc::unwrap_or_clone(self.0);
        Self(Arc::new(Context { parameters: parameters.into(), ..context }))
    }

    fn of(me: Option<&MachineContext>, at: Where, values: Arc<Parameters>) -> Self {
        let me = me.map(|me| Arc::new(me.clone()));
        Self(Arc::new(Context { me, values, parameters: Arc::default(), at }))
    }
}

/// The names at the top of a template.
#[derive(Debug, Clone)]
struct Context {
    me: Option<Arc<MachineContext>>,
    values: Arc<Parameters>,
    parameters: Arc<Parameters>,
    at: Where,
}

/// Where a template stands.
#[derive(Debug, Clone)]
enum Where {
    /// In a key that is read before there are machines.
    File,
    /// In what prepares a machine.
    Setup,
    /// In what is done once for all trials.
    Run(Machines),
    /// In what is done in a trial.
    Trial(Machines, String),
}

impl Context {
    fn machines(&self) -> Option<&Machines> {
        match &self.at {
            Where::Run(machines) | Where::Trial(machines, _) => Some(machines),
            Where::File | Where::Setup => None,
        }
    }

    fn help_for(&self, name: &str) -> Option<String> {
        if self.me.is_some() && OWN.contains(&name) {
            // Known, but this machine has no such address. There is nothing to suggest.
            return None;
        }
        let values = self.values.keys().chain(self.parameters.keys()).map(String::as_str);
        let own = OWN.iter().copied().chain(["run_id"]).filter(|_| self.me.is_some());
        let own: Vec<_> = own.chain(values).collect();
        let groups = self.machines().into_iter().flat_map(Machines::groups);
        let only = match &self.at {
            Where::Trial(..) => return suggest(name, own.into_iter().chain(["trial"]).chain(groups)),
            Where::Run(_) => {
                let help = "what is done once for all trials knows no `trial`, and only parameters that machines depend on";
                return likely(name, own.into_iter().chain(groups)).or_else(|| Some(help.to_owned()));
            }
            Where::Setup => "set-up knows only what is the machine's own",
            Where::File if own.is_empty() => {
                "this knows only what `[matrix]` and `[vars]` have, which is nothing here"
            }
            Where::File => "this knows only parameters and values",
        };
        let known = if own.is_empty() { String::new() } else { format!(": {}", own.join(", ")) };
        likely(name, own).or_else(|| Some(format!("{only}{known}")))
    }
}

impl From<&ParameterValue> for Value {
    fn from(value: &ParameterValue) -> Self {
        match value {
            ParameterValue::Boolean(value) => Self::from(*value),
            ParameterValue::Integer(value) => Self::from(*value),
            ParameterValue::Float(value) => Self::from(*value),
            ParameterValue::Text(value) => Self::from(value),
        }
    }
}

impl Object for Context {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let name = key.as_str()?;
        let value = || self.parameters.get(name).or_else(|| self.values.get(name)).map(Value::from);
        let Some(me) = &self.me else { return value() };
        match (name, &self.at) {
            ("run_id", _) => return Some(Value::from(&me.run_id)),
            ("trial", Where::Trial(_, trial)) => return Some(Value::from(trial)),
            _ => {}
        }
        let own = if OWN.contains(&name) { attribute(me, me, name) } else { None };
        own.or_else(|| value().map(Some)).unwrap_or_else(|| {
            let machines = self.machines()?;
            machines.group(name)?;
            Some(Value::from_object(GroupValue {
                seen_by: me.clone(),
                machines: machines.clone(),
                group: name.to_owned(),
            }))
        })
    }
}

/// A fact about `other` as `me` sees it: `None` if there is no such fact, `Some(None)` if this machine lacks it.
fn attribute(me: &MachineContext, other: &MachineContext, name: &str) -> Option<Option<Value>> {
    Some(match name {
        "name" => Some(Value::from(&other.name)),
        "group" => Some(Value::from(&other.group)),
        "index" => Some(Value::from(other.index)),
        "ip" => other.address_from(me).map(Value::from),
        "host" => other.address_from(me).map(|address| Value::from(in_a_url(address))),
        "public_ip" => other.addresses.public.as_ref().map(Value::from),
        "private_ip" => other.addresses.private.as_ref().map(Value::from),
        _ => return None,
    })
}

/// An address as URLs have it: one of IPv6 in brackets.
fn in_a_url(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// A group: always a list, and if it has one machine also that machine.
#[derive(Debug)]
struct GroupValue {
    seen_by: Arc<MachineContext>,
    machines: Machines,
    group: String,
}

impl GroupValue {
    fn members(&self) -> &[usize] {
        self.machines.group(&self.group).unwrap_or_default()
    }

    fn machine(&self, at: usize) -> MachineValue {
        MachineValue { seen_by: self.seen_by.clone(), machines: self.machines.clone(), at }
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

impl Object for GroupValue {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.members().len())
    }

    // Compared one by one, all with all, machines would take longer than the engine counts.
    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<Ordering> {
        Some(self.group.cmp(&other.downcast_ref::<Self>()?.group))
    }

    // Nobody wants it as text, and spelled out for a thousand machines it would be long.
    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.group)
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
                        format!("`{}` has {}, counted from 0", self.group, number(members.len(), "machine")),
                    )
                    .into(),
                ),
            },
        }
    }
}

/// A machine, as another sees it.
#[derive(Debug)]
struct MachineValue {
    seen_by: Arc<MachineContext>,
    machines: Machines,
    at: usize,
}

impl MachineValue {
    fn is_no_text(&self) -> Error {
        let name = &self.machines.all()[self.at].name;
        invalid(
            format!("`{name}` is a machine, not text"),
            "write its `.ip`, or another of its facts".to_owned(),
        )
    }
}

impl Object for MachineValue {
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(ATTRIBUTES)
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<Ordering> {
        Some(self.at.cmp(&other.downcast_ref::<Self>()?.at))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.machines.all()[self.at].name)
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let name = key.as_str()?;
        let known = attribute(&self.seen_by, &self.machines.all()[self.at], name);
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

#[cfg(test)]
mod tests {
    use crate::limits::TEMPLATE_EXPRESSION_LIMIT;

    use super::*;
    use crate::Addresses;

    fn machine(group: &str, index: u32, network: &str, public: Option<&str>) -> MachineContext {
        let private = format!("10.0.{network}.{index}");
        MachineContext {
            name: format!("{group}-{index}"),
            group: group.to_owned(),
            index,
            ip: Some(private.clone()),
            addresses: Addresses {
                public: public.map(str::to_owned),
                private: Some(private),
                network: Some(network.to_owned()),
            },
            run_id: "r1".to_owned(),
        }
    }

    /// Two clients beside each other, and a server elsewhere.
    fn machines() -> Machines {
        Machines::from(vec![
            machine("server", 0, "1", Some("198.18.0.1")),
            machine("client", 0, "2", Some("198.18.0.2")),
            machine("client", 1, "2", None),
        ])
    }

    /// Renders a step's template on `client-0`.
    fn on_client(template: &str) -> Result<String, TemplateError> {
        let machines = machines();
        let values = Parameters::from([("n".to_owned(), "a b".into())]);
        let parameters =
            Parameters::from([("clients".to_owned(), 4.into()), ("fast".to_owned(), true.into())]);
        let scope = Scope::step(&machines.all()[1], &machines, "7", values).with(parameters);
        Template::new(template)?.render(&scope)
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
    fn an_address_that_is_not_known_is_no_empty_text() {
        let unknown =
            MachineContext { ip: None, addresses: Addresses::default(), ..machine("x", 0, "1", None) };
        let machines = Machines::from(vec![unknown.clone(), machine("y", 0, "2", None)]);
        let scope = Scope::step(&unknown, &machines, "7", Parameters::new());
        for template in ["{{ ip }}", "{{ x.ip }}", "{{ x.host }}", "{{ public_ip }}"] {
            let error = Template::new(template).unwrap().render(&scope).unwrap_err();
            assert!(error.to_string().contains("undefined"), "{template}: {error}");
        }
        let variables = unknown.variables(&machines, Some("7"));
        let of = |wanted| variables.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let (own, ours, others) = (of("TSUNAMI_IP"), of("TSUNAMI_X_IPS"), of("TSUNAMI_Y_IPS"));
        assert_eq!((own, ours, others), (Some(""), Some(""), Some("10.0.2.0")));
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
        let machines = machines();
        let [server, _, hidden] = machines.all() else { panic!() };
        assert_eq!(server.address_from(server), Some("10.0.1.0"), "itself");
        assert_eq!(hidden.address_from(server), Some("10.0.2.1"), "better than nothing");
        let addresses = Addresses { network: None, ..server.addresses.clone() };
        let nowhere = MachineContext { addresses, ..server.clone() };
        let elsewhere =
            MachineContext { name: "x-0".to_owned(), addresses: Addresses::default(), ..server.clone() };
        assert_eq!(
            nowhere.address_from(&elsewhere),
            Some("198.18.0.1"),
            "two unknown networks are not the same"
        );
        assert_eq!(elsewhere.address_from(server), None);
    }

    #[test]
    fn an_address_in_a_url_has_brackets_if_it_needs_them() {
        renders("{{ server.host }} {{ client[1].host }}", "198.18.0.1 10.0.2.1");
        let addresses = Addresses::default().private("fd00::1").network("1");
        let machine =
            MachineContext { addresses, ip: Some("fd00::1".to_owned()), ..machine("host", 0, "1", None) };
        let machines = Machines::from(vec![machine.clone()]);
        let scope = Scope::step(&machine, &machines, "7", Parameters::new());
        // A group may have that name: by itself it means nothing else.
        let template = Template::new("{{ ip }} {{ host.ip }} http://{{ host.host }}:80/").unwrap();
        assert_eq!(template.render(&scope).unwrap(), "fd00::1 fd00::1 http://[fd00::1]:80/");
    }

    #[test]
    fn only_two_braces_are_special() {
        let text = "a='${#x[@]}' {%s} {%d if %} {#x#} {# ${x%%} { } %} }}\n\n";
        renders(text, text);
        renders("{{ '{% if x %}{# y #}' }} {{ '{%' }} if x %}", "{% if x %}{# y #} {% if x %}");
        renders("{{ '{{' }}.Names}}", "{{.Names}}");
        renders("<{{ '<&>' }}>", "<<&>>");
    }

    #[test]
    fn what_looks_like_a_block_or_a_comment_is_not_passed_to_the_shell() {
        for (template, literal) in [
            ("a {% for m in client %}{{ m.ip }}{% endfor %}", "{%"),
            ("a {%- set x = 1 -%}", "{%"),
            ("a {% if x\n%} b", "{%"),
            ("a {# a comment #} b", "{#"),
            ("a {#- a comment\n over lines -#} b", "{#"),
        ] {
            let error = Template::new(template).unwrap_err();
            let help = format!("to write a literal `{literal}`, write `{{{{ '{literal}' }}}}`");
            assert!(error.help.as_ref().unwrap().ends_with(&help), "{error}");
            assert_eq!(error.message, format!("`{literal}` is nothing special here: only `{{{{ }}}}` is"));
            assert_eq!(error.range, Some(2..4), "{template}");
        }
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
        let machines = machines();
        let all = Template::new("{{ '}}' ~ x }} {{ ip }} {{ {'a': {'b': y}}.a.b }}").unwrap();
        let errors =
            all.check(&Scope::step(&machines.all()[0], &machines, "1", Parameters::new())).unwrap_err();
        let ranges: Vec<_> = errors.into_iter().map(|error| error.range).collect();
        assert_eq!(ranges, [Some(10..11), Some(39..40)]);
    }

    #[test]
    fn what_users_of_addresses_need_is_there() {
        renders(
            "{{ client | rejectattr('name', 'eq', name) | map(attribute='ip') | join(',') }}",
            "10.0.2.1",
        );
        renders("{{ client | map(attribute='name') | map('upper') | join(' ') }}", "CLIENT-0 CLIENT-1");
        renders(
            "{{ ip | replace('.', '-') }} {{ ip.split('.')[0] if false else (ip | split('.') | first) }}",
            "10-0-2-0 10",
        );
        renders("{{ client | map(attribute='index') | max }} {{ client | last | string }}", "1 client-1");
        renders(
            "{{ 6000 + index * 10 }} {{ '7' | int * 2 }} {{ 2 ** 3 * 4 }} {{ client[1].index * 3 }}",
            "6000 14 32 3",
        );
        renders("{{ m | default('5') }} {{ '**' }}", "5 **");
        renders(
            "{{ client[0] == client[0] }} {{ client[0] in client }} {{ server[0] in client }}",
            "true true false",
        );
    }

    #[test]
    fn parameters_keep_their_types() {
        renders("{{ clients + 1 }} {{ clients }} {{ clients | int * 2 }} {{ n }}", "5 4 8 a b");
        renders("{{ fast }} {{ fast | q }} {{ '--fast' if fast else '' }}", "true true --fast");
    }

    #[test]
    fn the_filters_and_tests_that_are_named_are_there_and_no_others() {
        let is_unknown = |template: String| {
            on_client(&template).is_err_and(|error| error.message.ends_with(" is unknown"))
        };
        assert!(FILTERS.iter().all(|filter| !is_unknown(format!("{{{{ ip | {filter} }}}}"))));
        assert!(TESTS.iter().all(|test| !is_unknown(format!("{{{{ ip is {test} }}}}"))));
        for other in [
            "indent", "format", "batch", "slice", "pprint", "tojson", "safe", "zip", "chain", "groupby",
            "sum",
        ] {
            assert!(is_unknown(format!("{{{{ ip | {other} }}}}")), "{other}");
        }
        for other in
            ["range(3)", "dict()", "namespace()", "debug()", "ip is sameas(ip)", "[ip] | map('indent')"]
        {
            assert!(is_unknown(format!("{{{{ {other} }}}}")), "{other}");
        }
    }

    #[test]
    fn only_numbers_are_multiplied() {
        for template in [
            "{{ 'x' * 3 }}",
            "{{ 3 * 'x' }}",
            "{{ [1] * 3 }}",
            "{{ (1, 2) * 3 }}",
            "{{ client * 3 }}",
            "{{ 3 * client }}",
            "{{ n * 3 }}",
            "{{ ('x' ~ n | int) * 3 }}",
            "{{ {'index': [1]}.index * 3 }}",
            "{{ x.1 * 3 }}",
            "{{ 3 * index.x }}",
            "{{ 'it\\'s' * 3 }}",
            "{{ 2 * 3 * n }}",
            "{{ '}}' * 3 }}",
        ] {
            let error = Template::new(template).unwrap_err();
            assert_eq!(error.message, "not a template: `*` is for numbers", "{template}");
            assert_eq!(&template[error.range.unwrap()], "*");
        }
    }

    #[test]
    fn the_longest_expressions_do_not_exhaust_the_stack() {
        let long = |start: &str, part: &str, end: &str| {
            let count = (TEMPLATE_EXPRESSION_LIMIT - 6 - start.len()) / (part.len() + end.len());
            let template = format!("{{{{ {start}{}{} }}}}", part.repeat(count), end.repeat(count));
            assert!(template.len() > TEMPLATE_EXPRESSION_LIMIT - 60, "{}", template.len());
            let error = on_client(&template).err();
            assert!(error.is_none_or(|error| !error.message.contains("longer")), "{template}");
        };
        for (start, part, end) in [
            ("1", "+1", ""),
            ("ip", "~ip", ""),
            ("ip", "|q", ""),
            ("ip", ".a", ""),
            ("ip", "[0:]", ""),
            ("1", " if 1 else 1", ""),
            ("1", "<1", ""),
            ("1", " is odd", ""),
            ("q", "()", ""),
            ("", "not ", ""),
            ("", "-", ""),
            ("", "(", ")"),
            ("", "[", "]"),
            ("", "{1:", "}"),
            ("ip", "|default(ip", ")"),
        ] {
            long(start, part, end);
        }
        let error = Template::new(format!("a {{{{ 1{} }}}}", "+1".repeat(600))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "not a template: this expression is longer than 1024 bytes; to write a literal `{{`, write `{{ '{{' }}`"
        );
        assert_eq!(error.range, Some(2..4));
    }

    #[test]
    fn what_takes_too_much_is_given_up() {
        let deep = format!("{{{{ ip{} }}}}", " | replace('', '0123456789')".repeat(30));
        let error = on_client(&deep).unwrap_err();
        assert_eq!(error.message, "this takes more work than a template may");
        assert!(error.range.is_some() && error.too_much);
        let long = format!("{}{{{{ ip }}}}", "x".repeat(TEMPLATE_OUTPUT_LIMIT));
        assert_eq!(on_client(&long).unwrap_err().message, "this becomes longer than 1024 KiB");
    }

    #[test]
    fn what_is_undefined_is_named_whatever_is_done_with_it() {
        for filter in ["q", "length", "first", "last", "reverse", "map('upper')", "join", "upper"] {
            let error = on_client(&format!("{{{{ nope | {filter} }}}}")).unwrap_err();
            assert_eq!(error.message, "`nope` is undefined", "{filter}");
        }
    }

    #[test]
    fn setup_knows_only_itself() {
        let machines = machines();
        let scope = Scope::setup(&machines.all()[0], Parameters::new());
        assert_eq!(Template::new("{{ name }}").unwrap().render(&scope).as_deref(), Ok("server-0"));
        for template in ["{{ trial }}", "{{ client[0].ip }}", "{{ server.ip }}"] {
            assert!(Template::new(template).unwrap().render(&scope).is_err(), "{template}");
        }
    }

    #[test]
    fn the_same_facts_are_in_the_environment() {
        let machines = machines();
        let text = |trial| {
            let variables = machines.all()[1].variables(&machines, trial);
            variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        let setup = text(None);
        let own = ["NAME=client-0", "GROUP=client", "INDEX=0", "RUN_ID=r1", "IP=10.0.2.0"];
        assert_eq!(setup, own.map(|fact| format!("TSUNAMI_{fact}")));
        let step = ["TRIAL=7", "CLIENT_IPS=10.0.2.0 10.0.2.1", "SERVER_IPS=198.18.0.1"];
        assert_eq!(text(Some("7"))[setup.len()..], step.map(|fact| format!("TSUNAMI_{fact}")));
    }
}
