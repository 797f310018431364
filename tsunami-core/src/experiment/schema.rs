//! The JSON Schema and the reference of experiment files, from the same tables of keys that the reader goes by.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::Experiment;
use super::keys::{Form, GROUP_KEYS, Key, top_keys};
use crate::names::GROUP_NAME_PATTERN;
use crate::registry::Registry;

impl Experiment {
    /// The JSON Schema of experiment files whose machines come from these providers, for editors and other programs
    /// that complete and check them. What it accepts, [`load`](Self::load) may still refuse: whether files are there,
    /// what templates become, and which keys go together.
    pub fn schema(registry: &Registry) -> Value {
        let tops = top_keys(registry);
        let mut schema = table(
            tops.iter().map(|key| (key, false)).chain(own_tables(registry).iter().map(|key| (key, true))),
        );
        let own = group_keys(registry);
        let group = table(GROUP_KEYS.iter().map(|key| (key, false)).chain(own.iter().map(|key| (key, true))));
        let properties = &mut schema["properties"];
        for named in ["group", "vars", "matrix"] {
            properties[named]["propertyNames"] = json!({ "pattern": GROUP_NAME_PATTERN });
        }
        properties["group"]["minProperties"] = json!(1);
        properties["group"]["additionalProperties"] = group;
        properties["provider"]["enum"] = registry.names().collect();
        schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
        schema["title"] = json!("tsunami experiment");
        schema
    }

    /// The reference of experiment files whose machines come from these providers, as Markdown: a section for each table,
    /// with an anchor that is its path (`step-ready`), an example and its keys.
    pub fn reference(registry: &Registry) -> String {
        let mut text = String::from(INTRODUCTION);
        let top = top_keys(registry);
        let mut examples = EXAMPLES.to_vec();
        let maker = registry.connector_maker();
        examples.extend(maker.and_then(|maker| Some((maker.name(), maker.example()?))));
        let of_groups: Vec<_> =
            registry.providers().map(|provider| format!("group-{}", provider.name())).collect();
        for (provider, of_group) in registry.providers().zip(&of_groups) {
            let anchor = if provider.keys().is_empty() { of_group } else { provider.name() };
            examples.extend(provider.example().map(|example| (anchor, example)));
        }
        let mut section = |level, anchor: &str, title: &str, keys: &[Key]| {
            section(&mut text, level, (anchor, title), keys, &examples);
        };
        section(2, "top", "At the top", &top);
        for provider in registry.providers() {
            let name = provider.name();
            if !provider.keys().is_empty() {
                let title = format!("`[{name}]`, or in a group whose provider is \"{name}\"");
                section(2, name, &title, provider.keys());
            }
            if !provider.group_keys().is_empty() {
                let title = format!("In a group whose provider is \"{name}\"");
                section(2, &format!("group-{name}"), &title, provider.group_keys());
            }
        }
        text
    }
}

/// What the reference begins with.
const INTRODUCTION: &str = "# The experiment file\n\n\
An experiment file is TOML. Keys in **bold** must be given; a key that is not listed is an error, and whatever is wrong is \
said before anything is launched. `tsunami schema` prints the JSON Schema for editors.\n\n\
Durations are strings such as `\"90s\"`, `\"45m\"` and `\"1h30m\"`, sizes such as `\"30GiB\"`. Paths on this computer are relative \
to the file, and `~/` is your home. In a *template*, `{{ }}` stands for a fact: `{{ ip }}`, `{{ server.ip }}`, `{{ clients }}`; \
where a value stands in a provider's key or in `count`, a template with parameters may take its place.\n\n";

/// Examples of tables, by their anchors, as they stand in a file. Those of other tables are made of their keys'.
const EXAMPLES: &[(&str, &str)] = &[
    (
        "top",
        "name = \"redis\"\nlifetime = \"45m\"\n\n[group.server]\nsetup = \"sudo apt-get install -yq redis-server\"\n\n\
         [[step]]\non = \"server\"\nrun = \"redis-benchmark -q\"\n",
    ),
    (
        "group",
        "[group.client]\ncount = 3\nsetup = [\"sudo apt-get update -q\", { script = \"setup.sh\" }]\n\
         upload = [{ from = \"load\", to = \"bin/load\" }]\nenv = { RUST_LOG = \"info\", TOKEN = { from_env = \"TOKEN\" } }\n",
    ),
    ("group-setup", "[group.client]\nsetup = { script = \"setup.sh\" }\n"),
    (
        "group-upload",
        "[group.client]\nupload = [\n  { from = \"load\", to = \"bin/load\" },\n  \
         { from = \"server.conf\", to = \"etc/\", template = true },\n  \
         { from = \"src\", to = \"src\", exclude = [\"target\", \"*.o\"] },\n]\n",
    ),
    ("group-env", "[group.client]\nenv = { TOKEN = { from_env = \"TOKEN\" } }\n"),
    ("trials", "[trials]\nrepeat = 10\norder = \"random\"\nwarmup = 1\ncanary = true\nodd = \"void\"\n"),
    (
        "compare",
        "[matrix]\nvariant = [\"old\", \"new\"]\n\n[compare]\nby = \"variant\"\nbaseline = \"old\"\nmargin = \"5%\"\n\
         fail_if = [\"rps < 0.95\"]\n\n[[step]]\non = \"server\"\nrun = \"bin/load --{{ variant }}\"\n\
         metrics = { rps = { regex = \"rps=([0-9.]+)\", better = \"higher\" } }\n",
    ),
    (
        "step",
        "[[step]]\nname = \"load\"\non = \"client\"\nrun = \"bin/load {{ server.ip }} | tee out.csv\"\ntimeout = \"5m\"\n\
         collect = [\"out.csv\", \"core.*?\"]\n",
    ),
    (
        "step-ready",
        "[[step]]\non = \"server\"\nstart = \"bin/serve --bind {{ ip }}:8080\"\n\
         ready = { http = \"/health\", port = 8080, timeout = \"30s\" }\n",
    ),
    (
        "step-env",
        "[[step]]\non = \"client\"\nrun = \"bin/load\"\nenv = { TOKEN = { from_env = \"TOKEN\" } }\n",
    ),
    (
        "step-metrics",
        "[[step]]\non = \"client\"\nrun = \"bin/load | tee out.csv\"\ncollect = [\"out.csv\"]\n\n[step.metrics]\n\
         rps = { file = \"out.csv\", csv = \"rps\", where = { test = \"GET\" }, across = \"sum\", better = \"higher\", unit = \"1/s\" }\n\
         p99 = { regex = 'p99=([0-9.]+) ?ms', across = \"max\", better = \"lower\", unit = \"ms\" }\n",
    ),
    ("reset", "[[reset]]\non = \"server\"\nrun = \"redis-cli -h {{ ip }} flushall\"\ntimeout = \"30s\"\n"),
];

/// The tables that the providers have of their own.
fn own_tables(registry: &Registry) -> Vec<Key> {
    let with_keys = registry.providers().filter(|provider| !provider.keys().is_empty());
    with_keys
        .map(|provider| {
            Key::new(provider.name(), Form::Table(provider.keys()), "its machines, for all groups")
        })
        .collect()
}

/// What providers read in a group; which of it one needs depends on the provider.
fn group_keys(registry: &Registry) -> Vec<Key> {
    let keys = registry.providers().flat_map(|provider| provider.keys().iter().chain(provider.group_keys()));
    keys.map(|key| Key { required: false, ..*key }).collect()
}

/// The schema of a table, of keys with whether a template may stand behind each. Where several keys have one name, any of
/// them will do.
fn table<'k>(keys: impl Iterator<Item = (&'k Key, bool)>) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (key, templated) in keys {
        let mut schema = of(&key.form, templated);
        schema["description"] = json!(described(key));
        let example =
            key.example.and_then(|example| toml::from_str::<Value>(&format!("example = {example}")).ok());
        if let Some(example) = example {
            schema["examples"] = json!([example["example"]]);
        }
        match properties.get_mut(key.name) {
            Some(known) if *known != schema => *known = json!({ "anyOf": [known.clone(), schema] }),
            _ => drop(properties.insert(key.name.to_owned(), schema)),
        }
        required.extend(key.required.then_some(key.name));
    }
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn of(form: &Form, templated: bool) -> Value {
    let within = |form| of(form, templated);
    let schema = match form {
        Form::Text | Form::Template | Form::Path => return json!({ "type": "string" }),
        Form::Scalar => json!({ "type": ["string", "number", "boolean"] }),
        Form::Boolean => json!({ "type": "boolean" }),
        Form::Integer(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Form::Number => json!({ "type": "number", "exclusiveMinimum": 0 }),
        Form::Duration => return json!({ "type": "string", "examples": ["90s", "45m", "1h30m"] }),
        Form::Size => return json!({ "type": "string", "examples": ["30GiB"] }),
        Form::Choice(words) => json!({ "type": "string", "enum": words }),
        Form::List(form) => return json!({ "type": "array", "items": within(form) }),
        Form::OneOrMore(form) => {
            return json!({ "anyOf": [within(form), { "type": "array", "items": within(form) }] });
        }
        Form::Table(keys) => return table(keys.iter().map(|key| (key, templated))),
        Form::Map(form) => return json!({ "type": "object", "additionalProperties": within(form) }),
        Form::Either(forms) => return json!({ "anyOf": forms.iter().map(within).collect::<Vec<_>>() }),
    };
    match templated {
        true => json!({ "anyOf": [schema, { "type": "string", "pattern": r"\{\{" }] }),
        false => schema,
    }
}

/// A key's meaning as a sentence, with its default.
fn described(key: &Key) -> String {
    let default = key.default.map(|default| format!(" (default: {default})")).unwrap_or_default();
    sentence(&format!("{}{default}", key.doc))
}

/// A table of keys with an example, and after it those of the tables that stand behind them. The anchor is its path.
fn section(
    text: &mut String,
    level: usize,
    (anchor, title): (&str, &str),
    keys: &[Key],
    examples: &[(&str, &str)],
) {
    let _ = write!(text, "<a id=\"{anchor}\"></a>\n\n{} {title}\n\n", "#".repeat(level));
    let _ = write!(text, "```toml\n{}```\n\n", example_of(anchor, keys, examples));
    text.push_str("| key | value | default | meaning |\n|---|---|---|---|\n");
    for key in keys {
        let name = if key.required { format!("**`{}`**", key.name) } else { format!("`{}`", key.name) };
        let (value, default) = (value_of(key, anchor), key.default.map(code).unwrap_or_default());
        let cells = [name, value, default, sentence(key.doc)].map(|cell| cell.replace('|', "\\|"));
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text.push('\n');
    for key in keys {
        let Some((below, kind)) = inner(&key.form) else { continue };
        let title = match (anchor, kind) {
            ("top", Inner::Table) => format!("`[{}]`", key.name),
            ("top", Inner::Map) => format!("`[{}.NAME]`", key.name),
            ("top", Inner::List) => format!("`[[{}]]`", key.name),
            (_, Inner::Map) => format!("Each of `{}` in {}", key.name, whole(anchor)),
            _ => format!("`{}` in {}", key.name, whole(anchor)),
        };
        let level = if anchor == "top" { 2 } else { 3 };
        section(text, level, (&anchor_below(anchor, key.name), &title), below, examples);
    }
}

/// A table in words, by its anchor.
fn whole(anchor: &str) -> String {
    let (first, rest) = anchor.split_once('-').unwrap_or((anchor, ""));
    let first = match first {
        "group" => "a group".to_owned(),
        "step" | "reset" => format!("a {first}"),
        table => format!("`[{table}]`"),
    };
    if rest.is_empty() { first } else { format!("`{rest}` of {first}") }
}

fn anchor_below(anchor: &str, key: &str) -> String {
    if anchor == "top" { key.to_owned() } else { format!("{anchor}-{key}") }
}

/// A table as it may stand in a file.
fn example_of(anchor: &str, keys: &[Key], examples: &[(&str, &str)]) -> String {
    if let Some((_, example)) = examples.iter().find(|(of, _)| *of == anchor) {
        return (*example).to_owned();
    }
    let given = keys.iter().filter_map(|key| Some((key.name, key.example?)));
    match anchor.split_once('-') {
        // In one line, as a value of its key.
        Some((table, key)) if table != "group" => {
            let given: Vec<_> = given.map(|(name, value)| format!("{name} = {value}")).collect();
            format!("[{table}]\n{key} = {{ {} }}\n", given.join(", "))
        }
        of => {
            let table = if of.is_some() { "group.NAME" } else { anchor };
            given.fold(format!("[{table}]\n"), |text, (name, value)| format!("{text}{name} = {value}\n"))
        }
    }
}

/// What may stand behind a key: its example, or where its own keys are told.
fn value_of(key: &Key, anchor: &str) -> String {
    let text = words(&key.form);
    match (inner(&key.form), key.example) {
        (Some(_), _) => format!("[{text}](#{})", anchor_below(anchor, key.name)),
        // The words are the values themselves.
        (_, Some(_)) if matches!(key.form, Form::Choice(_) | Form::Boolean) => text,
        (_, Some(example)) => format!("{text}, as `{example}`"),
        (_, None) => text,
    }
}

/// A default as code, unless it is said in words.
fn code(default: &str) -> String {
    let is_value =
        default.starts_with('"') || default.parse::<f64>().is_ok() || default.parse::<bool>().is_ok();
    if is_value { format!("`{default}`") } else { default.to_owned() }
}

fn sentence(text: &str) -> String {
    let mut text = text.to_owned();
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text + "."
}

/// How a table stands behind a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inner {
    Table,
    /// By names of the user's own.
    Map,
    List,
}

/// The keys of the table that stands behind a key, alone or among other things.
fn inner(form: &Form) -> Option<(&'static [Key], Inner)> {
    match form {
        Form::Table(keys) => Some((keys, Inner::Table)),
        Form::Map(form) => inner(form).map(|(keys, _)| (keys, Inner::Map)),
        Form::List(form) | Form::OneOrMore(form) => inner(form).map(|(keys, _)| (keys, Inner::List)),
        Form::Either(forms) => forms.iter().find_map(inner),
        _ => None,
    }
}

/// What stands behind a key, in words.
fn words(form: &Form) -> String {
    match form {
        Form::Text => "a string".to_owned(),
        Form::Scalar => "a string, a number, `true` or `false`".to_owned(),
        Form::Template => "a template".to_owned(),
        Form::Path => "a path on this computer".to_owned(),
        Form::Boolean => "`true` or `false`".to_owned(),
        Form::Integer(_, u32::MAX) => "a whole number".to_owned(),
        Form::Integer(least, most) => format!("a whole number from {least} to {most}"),
        Form::Number => "a number above zero".to_owned(),
        Form::Duration => "a duration".to_owned(),
        Form::Size => "a size".to_owned(),
        Form::Choice(choices) => {
            choices.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ")
        }
        Form::List(Form::Table(_)) => "a list of tables".to_owned(),
        Form::List(form) => format!("a list: {}", words(form)),
        Form::OneOrMore(form) => format!("{}, or a list of those", words(form)),
        Form::Table(_) => "a table".to_owned(),
        Form::Map(Form::Table(_)) => "a table for each name".to_owned(),
        Form::Map(form) => format!("a table by name: {}", words(form)),
        Form::Either(forms) => forms.iter().map(words).collect::<Vec<_>>().join(", or "),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::keys::{
        COMPARE_KEYS, FROM_ENV_KEYS, METRIC_KEYS, READY_KEYS, RESET_KEYS, SCRIPT_KEYS, STEP_KEYS, TOP_KEYS,
        TRIALS_KEYS, UPLOAD_KEYS,
    };
    use super::super::tests::{WIRE_KEYS, registry};
    use super::*;

    /// Whether a value fits a schema, as far as our schemas go; else where it does not.
    fn fits(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let is = match schema["type"].as_str() {
            Some("string") => value.is_string(),
            Some("boolean") => value.is_boolean(),
            Some("integer") => value.is_i64(),
            Some("number") => value.is_number(),
            Some("array") => value.is_array(),
            Some("object") => value.is_object(),
            // The types of a scalar.
            _ if schema["type"].is_array() => value.is_string() || value.is_number() || value.is_boolean(),
            _ => true,
        };
        let is_template =
            schema["pattern"].is_null() || !value.is_string() || value.to_string().contains("{{");
        let listed = schema["enum"].as_array().is_none_or(|words| words.contains(value));
        let least = schema["minimum"].as_i64().is_none_or(|least| value.as_i64() >= Some(least));
        if !is || !listed || !least || !is_template {
            return Err(format!("{at}: {value} is not {schema}"));
        }
        if let Some(any) = schema["anyOf"].as_array()
            && !any.iter().any(|schema| fits(schema, value, at).is_ok())
        {
            return Err(format!("{at}: {value} is none of {any:?}"));
        }
        for item in value.as_array().into_iter().flatten() {
            fits(&schema["items"], item, at)?;
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            value.get(name.as_str().unwrap()).ok_or(format!("{at}: {name} is missing"))?;
        }
        for (name, value) in value.as_object().into_iter().flatten() {
            let at = format!("{at}.{name}");
            match (schema["properties"].get(name), &schema["additionalProperties"]) {
                (Some(schema), _) => fits(schema, value, &at)?,
                (None, Value::Bool(false)) => return Err(format!("{at} is not known")),
                (None, schema) => fits(schema, value, &at)?,
            }
        }
        Ok(())
    }

    fn check(text: &str) -> Result<(), String> {
        fits(&Experiment::schema(&registry()), &toml::from_str(text).unwrap(), "")
    }

    #[test]
    fn the_schema_takes_the_examples_and_refuses_what_is_wrong() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/experiments");
        let mut count = 0;
        for example in fs::read_dir(examples).unwrap() {
            let text = fs::read_to_string(example.unwrap().path().join("experiment.toml")).unwrap();
            // Providers of other crates add keys of their own; these are the reader's.
            if !text.contains("provider = \"aws\"") {
                check(&text).unwrap();
                count += 1;
            }
        }
        assert!(count > 0);
        let right = "name = 'x'\nprovider = 'cloud'\n[cloud]\nsize = 'l'\n[group.a]\nsize = 's'\ncount = 2\nsetup = 'x'\n\
                     env = { A = 'b', C = { from_env = 'C' } }\n[matrix]\nn = [1, 'a', 0.5, true]\n[[step]]\non = ['a']\nstart = 'y'\nready = { port = 80 }\n";
        check(right).unwrap();
        let of_pool =
            |members: &str| format!("name = 'x'\nprovider = 'pool'\n[group.a]\nmembers = {members}\n");
        check(&of_pool("'{{ n }}'")).unwrap();
        assert!(check(&of_pool("'n'")).is_err(), "no template");
        for (from, to, wrong) in [
            ("'cloud'", "'clowd'", ".provider"),
            ("size = 's'", "sice = 's'", ".group.a.sice is not known"),
            ("count = 2", "count = 0", ".group.a.count"),
            ("0.5, true", "[]", ".matrix.n"),
            ("on = ['a']", "cwd = 'a'", "\"on\" is missing"),
            ("port = 80", "port = 'http'", ".step.ready.port"),
        ] {
            let error = check(&right.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
    }

    /// That each key of a table is read: a date, which no key takes, is noted where it stands; and that no other key is
    /// known there. The keys that are known are those of the table by construction.
    #[test]
    fn every_key_of_the_tables_is_read() {
        let group = "name = 'x'\n[group.a]\n";
        let step = format!("{group}[[step]]\non = 'a'\nrun = 'x'\n");
        /// A file with a date behind a key.
        type Place<'a> = &'a dyn Fn(&str) -> String;
        let places: [(&[Key], Place<'_>); 11] = [
            (TOP_KEYS, &|key| match key {
                "name" => "name = 1979-05-27\n[group.a]\n".to_owned(),
                "group" => "name = 'x'\ngroup = 1979-05-27\n".to_owned(),
                key => format!("name = 'x'\n{key} = 1979-05-27\n[group.a]\n"),
            }),
            (GROUP_KEYS, &|key| format!("{group}{key} = 1979-05-27\n")),
            (STEP_KEYS, &|key| match key {
                "on" | "run" => step.replace(&format!("{key} = '"), &format!("{key} = 1979-05-27 #")),
                key => format!("{step}{key} = 1979-05-27\n"),
            }),
            (READY_KEYS, &|key| {
                format!("{group}[[step]]\non = 'a'\nstart = 'x'\nready = {{ {key} = 1979-05-27 }}\n")
            }),
            (TRIALS_KEYS, &|key| format!("{group}[trials]\n{key} = 1979-05-27\n")),
            (COMPARE_KEYS, &|key| {
                format!(
                    "{group}[matrix]\nn = [1, 2]\n[compare]\n{}{key} = 1979-05-27\n",
                    if key == "by" { "" } else { "by = 'n'\n" }
                )
            }),
            (RESET_KEYS, &|key| format!("{group}[[reset]]\n{key} = 1979-05-27\n")),
            (METRIC_KEYS, &|key| format!("{step}[step.metrics]\nm = {{ {key} = 1979-05-27 }}\n")),
            (UPLOAD_KEYS, &|key| format!("{group}upload = [{{ {key} = 1979-05-27 }}]\n")),
            (SCRIPT_KEYS, &|key| format!("{group}setup = {{ {key} = 1979-05-27 }}\n")),
            (FROM_ENV_KEYS, &|key| format!("{group}env = {{ A = {{ {key} = 1979-05-27 }} }}\n")),
        ];
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.toml");
        for (keys, text) in places {
            for key in keys {
                let text = text(key.name);
                fs::write(&file, &text).unwrap();
                let problems = Experiment::load(&file).unwrap_err();
                let date = text.lines().position(|line| line.contains("1979")).unwrap() + 1;
                let noted = problems.iter().any(|problem| {
                    problems.place(problem).is_some_and(|(line, _)| line == date)
                        && problem.message().contains("found a date or time")
                });
                assert!(noted, "{}: {problems}", key.name);
            }
        }
    }

    #[test]
    fn the_reference_has_every_key_and_its_default() {
        let reference = Experiment::reference(&registry());
        for key in
            [&*top_keys(&registry()), WIRE_KEYS, GROUP_KEYS, STEP_KEYS, READY_KEYS, UPLOAD_KEYS, METRIC_KEYS]
                .concat()
        {
            assert!(reference.contains(&format!("`{}`", key.name)), "{}", key.name);
        }
        for part in [
            "<a id=\"step-ready\"></a>\n\n### `ready` in a step\n",
            "| `lifetime` | a duration, as `\"45m\"` | `\"1h\"` | When every machine ends",
            "| **`on`** | ",
            "## In a group whose provider is \"pool\"",
            "[a table](#step-ready)",
        ] {
            assert!(reference.contains(part), "no {part} in\n{reference}");
        }
        let anchors: Vec<_> =
            reference.split("(#").skip(1).filter_map(|rest| rest.split(')').next()).collect();
        assert!(
            anchors.iter().all(|anchor| reference.contains(&format!("<a id=\"{anchor}\">"))),
            "{anchors:?}"
        );
    }

    /// Every key says a value that its form takes.
    fn has_examples(keys: &[Key], at: &str) {
        for key in keys {
            let at = format!("{at}.{}", key.name);
            match (key.example, inner(&key.form)) {
                (Some(example), _) => {
                    let text = format!("example = {example}");
                    let value: Value = toml::from_str(&text).unwrap_or_else(|error| panic!("{at}: {error}"));
                    fits(&of(&key.form, false), &value["example"], &at).unwrap();
                }
                (None, inner) => has_examples(inner.unwrap_or_else(|| panic!("{at} has no example")).0, &at),
            }
        }
    }

    #[test]
    fn the_examples_of_the_reference_are_read() {
        has_examples(&top_keys(&Registry::default()), "");
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.toml");
        fs::write(directory.path().join("setup.sh"), "#!/bin/sh\n").unwrap();
        fs::write(directory.path().join("load"), "").unwrap();
        fs::write(directory.path().join("server.conf"), "{{ ip }}").unwrap();
        fs::create_dir(directory.path().join("src")).unwrap();
        let reference = Experiment::reference(&registry());
        for (anchor, example) in EXAMPLES {
            assert!(reference.contains(&format!("```toml\n{example}```")), "{anchor}");
            let mut text = (*example).to_owned();
            // What else a file needs.
            if !text.starts_with("name") {
                text = format!("name = 'x'\n{text}");
                ["server", "client"]
                    .iter()
                    .filter(|group| !example.contains(&format!("[group.{group}]")))
                    .for_each(|group| text += &format!("[group.{group}]\n"));
            }
            fs::write(&file, &text).unwrap();
            let loader = crate::experiment::Loader::new().lookup_env(&|_| Some("a secret".into()));
            loader.load(&file).unwrap_or_else(|problems| panic!("{problems}"));
        }
    }
}
