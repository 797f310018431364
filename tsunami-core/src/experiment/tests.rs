//! Whole files, as a user would write them and get them wrong.

use crate::limits::{COMMAND_LIMIT, GROUP_LIMIT, NAME_LIMIT, PROBLEM_LIMIT, STEP_LIMIT, VARIABLE_LIMIT};

use async_trait::async_trait;
use std::sync::Arc;

use super::problem::NotedProblems;
use super::*;
use crate::registry::{
    Backend, ConnectRequest, Form, GroupTable, Key, Machines, MakeConnector, Registration, Table,
    TableReader, Values,
};
use crate::statistics::Direction;
use crate::testing::{Call, FakeCloud, Fault};
use crate::trial::{Across, Compare, OddMachines, Order, Parameter, Reduce, Source};
use crate::{
    Connector, Error, MockConnector, MockProvider, ProviderError, ProviderErrorKind, RunRecord, RunStore,
    Tsunami,
};

const CLOUD_KEYS: &[Key] = &[
    Key::new("size", Form::Text, "how large its machines are"),
    Key::new("user", Form::Text, "who to log in as"),
];
const POOL_KEYS: &[Key] = &[Key::new("members", MEMBERS, "how many there are")];
const MEMBERS: Form = Form::Integer(1, 9);

/// A provider of machines that have a size, and one of machines that are already there.
#[derive(Debug, Clone, Copy)]
enum Fake {
    Cloud,
    Pool,
}

#[async_trait]
impl Registration for Fake {
    fn name(&self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Pool => "pool",
        }
    }

    fn keys(&self) -> &'static [Key] {
        match self {
            Self::Cloud => CLOUD_KEYS,
            Self::Pool => &[],
        }
    }

    fn group_keys(&self) -> &'static [Key] {
        match self {
            Self::Cloud => &[],
            Self::Pool => POOL_KEYS,
        }
    }

    fn is_counted(&self) -> bool {
        matches!(self, Self::Cloud)
    }

    fn has_users(&self) -> bool {
        true
    }

    fn reader(&self) -> Box<dyn TableReader> {
        Box::new(FakeReader { provider: *self, size: None })
    }

    fn check(&self, groups: &[Group]) -> Vec<String> {
        let small = groups.iter().filter(|group| group.spec.get() == Some(&"small".to_owned())).count();
        (small > 1).then(|| "only one group can be small".to_owned()).into_iter().collect()
    }

    async fn connect(&self, _: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        unreachable!("nothing is launched")
    }

    async fn reconnect(&self, _: &RunRecord, _: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        unreachable!("nothing is launched")
    }
}

struct FakeReader {
    provider: Fake,
    size: Option<String>,
}

impl TableReader for FakeReader {
    fn all(&mut self, table: Table<'_>, values: &mut Values<'_, '_>) {
        self.size = table.get("size").and_then(|value| values.word(value));
    }

    fn group(&mut self, group: &GroupTable<'_>, values: &mut Values<'_, '_>) -> Option<Machines> {
        let size = group.table.get("size").and_then(|value| values.word(value));
        let size = size.or_else(|| self.size.clone()).unwrap_or_default();
        let mut machines = Machines::of(MachineSpec::new(size));
        if let Some(user) = &group.common.user {
            machines = machines.input("user", user);
        }
        if let Fake::Pool = self.provider {
            let members = group.table.get("members").and_then(|value| values.integer(value, &MEMBERS));
            machines.count = Some(members.and_then(NonZeroU32::new)?);
        }
        Some(machines)
    }
}

pub(super) const WIRE_KEYS: &[Key] = &[
    Key::new("key", Form::Path, "what opens them"),
    Key::new("connect_timeout", Form::Duration, "how long it may take"),
];

/// A way to machines, which has a key of its own.
#[derive(Debug)]
struct Wire;

impl MakeConnector for Wire {
    fn name(&self) -> &'static str {
        "wire"
    }

    fn keys(&self) -> &'static [Key] {
        WIRE_KEYS
    }

    fn read(&self, table: Table<'_>, values: &mut Values<'_, '_>) -> Connection {
        let mut connection = Connection::default();
        let key = table.get("key").and_then(|value| values.file(value));
        connection.settings = Settings::new(key);
        connection.connect_timeout = table.get("connect_timeout").and_then(|value| values.duration(value));
        connection
    }

    fn connector(&self, _: &Settings, _: bool) -> Arc<dyn Connector> {
        unreachable!("nothing is launched")
    }
}

pub(crate) fn registry() -> Registry {
    let registry = Registry::default().with(Arc::new(Fake::Cloud)).with(Arc::new(Fake::Pool));
    let registry = registry.connector(Arc::new(Wire));
    registry.without("moon", "this program was built without the provider \"moon\"")
}

/// The directory of an experiment file, with a few files that it may name.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("plain.sh"), "echo\n").unwrap();
        fs::write(dir.path().join("ok.sh"), "#!/bin/sh\necho\n").unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        Self(dir)
    }

    fn load(&self, text: impl AsRef<[u8]>, set: &[(&str, &str)]) -> Result<Experiment, Problems> {
        let path = self.0.path().join("x.toml");
        fs::write(&path, text).unwrap();
        let home = self.0.path().join("sub");
        let lookup_env = |name: &str| match name {
            "TOKEN" => Some("s3cret".into()),
            "HOME" => Some(home.clone().into()),
            _ => None,
        };
        let loader = Loader::new().registry(&registry()).values_called("--set").lookup_env(&lookup_env);
        set.iter().fold(loader, |loader, (name, value)| loader.set(*name, *value)).load(&path)
    }

    /// The problems as `line:column message (help)`, without the name of the directory.
    fn problems(&self, text: impl AsRef<[u8]>, set: &[(&str, &str)]) -> Vec<String> {
        let problems = self.load(text, set).expect_err("this should be refused");
        let line = |problem: &Problem| {
            let place =
                problems.place(problem).map(|(line, column)| format!("{line}:{column} ")).unwrap_or_default();
            let help = problem.advice().map(|help| format!(" ({help})")).unwrap_or_default();
            let file = problem.file().map(|file| format!("{}:", file.display())).unwrap_or_default();
            format!("{file}{place}{}{help}", problem.message())
                .replace(&format!("{}/", self.0.path().display()), "")
        };
        problems.iter().map(line).collect()
    }
}

#[track_caller]
fn refuses(text: &str, expected: &[&str]) {
    assert_eq!(Dir::new().problems(text, &[]), expected, "of\n{text}");
}

fn group(keys: &str) -> String {
    format!("name = \"x\"\n[group.server]\n{keys}")
}

fn step(keys: &str) -> String {
    format!("name = \"x\"\n[group.server]\n[group.client]\ncount = 3\n[[step]]\non = \"client\"\n{keys}")
}

const REDIS: &str = r#"
name = "redis"
provider = "local"
lifetime = "45m"

[group.server]
setup = ["sudo apt-get update -q", "sudo apt-get install -yq redis-server", "sudo systemctl stop redis-server"]

[group.client]
count = 3
upload = [{ from = "ok.sh", to = "bin/load" }]
setup = { script = "ok.sh" }
env = { RUST_LOG = "info", TOKEN = { from_env = "TOKEN" } }

[[step]]
on = "server"
start = "redis-server --bind {{ ip }} --protected-mode no"
ready = { port = 6379, timeout = "30s" }

[[step]]
name = "load"
on = "client"
run = "redis-benchmark -h {{ server.ip }} -n {{ n }} --csv | tee out.csv"
timeout = "5m"
collect = ["out.csv", "core.*?"]
"#;

#[test]
fn the_example_of_the_manual_loads() {
    let dir = Dir::new();
    let experiment = dir.load(REDIS, &[("n", "10000")]).unwrap();
    assert_eq!(experiment.name, "redis");
    assert_eq!(experiment.lifetime, Duration::from_secs(45 * 60));
    let machines: Vec<_> = experiment.machines().map(|(name, _, _)| name).collect();
    assert_eq!(machines, ["server-0", "client-0", "client-1", "client-2"]);
    assert_eq!(experiment.group("server").unwrap().setup.len(), 3);

    let client = experiment.group("client").unwrap();
    let script = dir.0.path().join("ok.sh");
    assert_eq!(client.setup, [Setup::Script(script.clone())]);
    assert_eq!(
        client.upload,
        [Upload {
            from: script,
            to: Template::new("bin/load").unwrap(),
            template: None,
            exclude: Exclude::default()
        }]
    );
    let names: Vec<_> = client.env.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["RUST_LOG", "TOKEN"]);

    let [start, load] = &experiment.steps[..] else { panic!("{:?}", experiment.steps) };
    assert_eq!((start.name.as_str(), &start.on[..]), ("1", &["server-0".to_owned()][..]));
    let ready = Ready { when: ReadyWhen::Port(6379), timeout: Duration::from_secs(30) };
    assert!(matches!(&start.action, Action::Start { ready: Some(r), .. } if *r == ready), "{start:?}");
    assert_eq!((load.name.as_str(), load.on.len(), load.on_error), ("load", 3, OnError::Fail));
    assert!(matches!(&load.action, Action::Run { timeout: Some(t), .. } if t.as_secs() == 300), "{load:?}");
    let patterns: Vec<_> = load.collect.iter().map(|p| (p.template.source(), p.optional)).collect();
    assert_eq!(patterns, [("out.csv", false), ("core.*", true)]);
}

#[test]
fn the_least_there_can_be() {
    let experiment = Dir::new().load("name = \"x\"\n[group.a]\n", &[]).unwrap();
    assert_eq!(experiment.provider, "local");
    assert_eq!(experiment.lifetime, Duration::from_secs(3600));
    assert_eq!(experiment.connection.connect_timeout, None);
    assert_eq!(experiment.groups[0].count, NonZeroU32::MIN);
    assert!(experiment.steps.is_empty());
}

#[test]
fn groups_and_variables_keep_the_order_of_the_file() {
    let text = "name = \"x\"\n[group.z]\nenv = { C = \"\", A = \"\", B = \"\" }\n[group.a]\n[group.m]\n";
    let experiment = Dir::new().load(text, &[]).unwrap();
    let groups: Vec<_> = experiment.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(groups, ["z", "a", "m"]);
    let variables: Vec<_> = experiment.groups[0].env.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(variables, ["C", "A", "B"]);
}

#[test]
fn machines_are_what_their_provider_reads() {
    let text = "name = 'x'\nprovider = 'cloud'\n[cloud]\nsize = 'large'\n[group.a]\ncount = 2\n[group.b]\nsize = 'small'\n\
                on_interruption = 'replace'\n";
    let experiment = Dir::new().load(text, &[]).unwrap();
    let sizes = experiment
        .groups
        .iter()
        .map(|group| (group.spec.get::<String>().unwrap().as_str(), group.count.get()));
    assert_eq!(sizes.collect::<Vec<_>>(), [("large", 2), ("small", 1)]);
    assert_eq!(
        experiment.groups.iter().map(|group| group.replace_interrupted).collect::<Vec<_>>(),
        [false, true]
    );
    let text = "name = 'x'\nprovider = 'pool'\non_interruption = 'replace'\n[group.a]\nmembers = 2\n";
    let experiment = Dir::new().load(text, &[]).unwrap();
    assert_eq!(experiment.machines().map(|(name, _, _)| name).collect::<Vec<_>>(), ["a-0", "a-1"]);
    assert!(experiment.groups[0].replace_interrupted);
}

#[test]
fn what_machines_of_a_provider_cannot_be() {
    refuses(
        "name = 'x'\nprovider = 'cloud'\n[cloud]\nsice = 'large'\nsize = 1\n[group.a]\nmembers = 1\n[group.b]\nsize = 'a b'\n",
        &[
            "4:1 unknown key `sice` (did you mean `size`?)",
            "5:8 expected a string, found an integer (write it as a string: \"1\")",
            "7:1 `members` is for the provider \"pool\" (set `provider = \"pool\"`, or give a `count` of machines)",
            "9:8 this can't be empty or hold spaces",
        ],
    );
    refuses(
        "name = 'x'\nprovider = 'pool'\n[cloud]\n[group.a]\ncount = 1\n[group.b]\nsize = 'a'\nmembers = 0\n",
        &[
            "3:2 `[cloud]` is for the provider \"cloud\" (set `provider = \"cloud\"`)",
            "5:1 `count` is not for the provider \"pool\" (the group's `members` are its machines)",
            "7:1 `size` is for the provider \"cloud\" (set `provider = \"cloud\"`)",
            "8:11 this is no whole number from 1 to 9",
        ],
    );
    refuses(
        "name = 'x'\nprovider = 'cloud'\n[cloud]\nsize = 'small'\n[group.a]\n[group.b]\n",
        &["only one group can be small"],
    );
    refuses(
        "name = 'x'\nuser = 'me'\n[group.a]\non_interruption = 'weep'\n",
        &[
            "2:1 `user` is not for the provider \"local\" (its machines are used by whoever runs tsunami)",
            "4:19 `on_interruption` can't be \"weep\" (known here: fail, replace)",
        ],
    );
}

#[test]
fn of_a_provider_that_is_not_here_only_that_is_said() {
    let why = "2:12 this program was built without the provider \"moon\"";
    refuses("name = 'x'\nprovider = 'moon'\n[moon]\ncrater = 1\n[group.a]\ndust = 'fine'\n", &[why]);
}

#[test]
fn a_step_names_machines_in_many_ways() {
    let on = |on: &str| {
        let text =
            format!("name = \"x\"\n[group.b]\n[group.a]\ncount = 2\n[[step]]\non = {on}\nrun = \"x\"\n");
        Dir::new().load(text, &[]).unwrap().steps[0].on.join(" ")
    };
    assert_eq!(on("\"a\""), "a-0 a-1");
    assert_eq!(on("\"a-1\""), "a-1");
    assert_eq!(on("\"all\""), "b-0 a-0 a-1");
    assert_eq!(
        on("[\"a-1\", \"a\", \"b-0\", \"a-1\"]"),
        "b-0 a-0 a-1",
        "in the order of the file, each once"
    );
}

#[test]
fn secrets_are_never_shown() {
    let experiment = Dir::new().load(REDIS, &[("n", "1")]).unwrap();
    assert!(!format!("{experiment:?}").contains("s3cret"));
    let EnvValue::FromEnv { variable, value } = &experiment.groups[1].env[1].1 else { panic!() };
    assert_eq!((variable.as_str(), value.reveal()), ("TOKEN", OsStr::new("s3cret")));
}

#[test]
fn set_values_must_be_of_use() {
    let set = [("n", "1"), ("n", "2"), ("m", "1"), ("ip", "2"), ("client", "3"), ("9x", "")];
    assert_eq!(
        Dir::new().problems(REDIS, &set),
        [
            "--set n: `n` is given twice",
            "--set m: no template uses `m`",
            "--set ip: `ip` already has a meaning in templates",
            "--set client: `client` is a group",
            "--set 9x: `9x` is no name: use a lower-case letter, then lower-case letters, digits and `_`",
        ]
    );
    let slip = step("run = \"{{ number }}\"");
    assert!(
        Dir::new().problems(&slip, &[("nmuber", "1"), ("number", "1")])[0]
            .ends_with("(did you mean `number`?)")
    );
    let long = "x".repeat(65 << 10);
    assert_eq!(
        Dir::new().problems(REDIS, &[("n", "a\u{1b}b"), ("o", &long)]),
        [
            "--set n: the value holds control characters, as no text in the file can",
            "--set o: the value is longer than 64 KiB",
        ]
    );
    let text = step("run = \"{{ n | default('5') }}\"");
    assert!(Dir::new().load(text, &[]).is_ok(), "a value may have a default");
}

#[test]
fn files_that_cannot_be_read() {
    let text = "name = \"x\"\n[wire]\nkey = \"~/\"\n[group.a]\n";
    assert_eq!(Dir::new().problems(text, &[]), ["3:7 `sub/` is not a file"], "~ is the home directory");
    let dir = Dir::new();
    assert_eq!(dir.problems(b"name = \"\xff\"", &[]), ["1:9 the experiment file isn't UTF-8 from here on"]);
    for (path, reason) in [("none.toml", "No such file or directory"), ("sub", "Is a directory")] {
        let problems = Experiment::load(dir.0.path().join(path)).unwrap_err();
        assert!(problems.to_string().contains(reason), "{problems}");
        assert!(problems.to_string().contains(path), "{problems}");
    }
}

#[test]
fn what_may_never_end_is_not_read() {
    let problems = Experiment::load("/dev/null").unwrap_err();
    assert!(problems.to_string().contains("it is neither a file nor a link to one"), "{problems}");
    let large = "#".repeat(EXPERIMENT_FILE_LIMIT as usize + 1);
    assert_eq!(
        Dir::new().problems(large, &[]),
        ["the experiment file is larger than 1024 KiB (what machines need can be a file that is uploaded)"]
    );
}

#[test]
fn more_than_anybody_needs_is_refused() {
    let groups: String = (0..=GROUP_LIMIT).map(|i| format!("[group.g{i}]\n")).collect();
    refuses(&format!("name = \"x\"\n{groups}"), &["1002:8 an experiment has at most 1000 groups"]);
    refuses(
        "name = \"x\"\n[group.a]\ncount = 10000\n[group.b]\n",
        &["4:8 an experiment has at most 10000 machines"],
    );
    refuses(
        &step(&format!("run = \"x\"\n{}", "[[step]]\non = \"all\"\nrun = \"x\"\n".repeat(STEP_LIMIT))),
        &["3005:1 an experiment has at most 1000 steps"],
    );
    let steps = "[[step]]\non = \"all\"\nrun = \"x\"\n".repeat(21);
    refuses(
        &format!("name = \"x\"\n[group.a]\ncount = 10000\n{steps}"),
        &["65:6 the steps up to here have more than 200000 machines in all"],
    );
    let name = "x".repeat(NAME_LIMIT + 1);
    refuses(
        &format!("name = \"{name}\"\n[group.{name}]"),
        &["1:8 this name is longer than 100 bytes", "2:8 this name is longer than 100 bytes"],
    );
}

#[test]
fn line_endings_are_those_of_unix() {
    let dir = Dir::new();
    let text = group("setup = \"\"\"\nif true; then\n  echo \\r\\n\nfi\n\"\"\"").replace('\n', "\r\n");
    let experiment = dir.load(&text, &[]).unwrap();
    let Setup::Command(command) = &experiment.groups[0].setup[0] else { panic!("{experiment:?}") };
    assert_eq!((command.source(), experiment.source), ("if true; then\n  echo \r\n\nfi\n", text.clone()));
    fs::write(dir.0.path().join("windows.sh"), "#!/bin/sh\r\necho\r\n").unwrap();
    let problems = dir.problems(text + "\r\n[group.b]\r\nsetup = { script = \"windows.sh\" }\r\n", &[]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].starts_with("9:20 `windows.sh` has the line endings of Windows (CRLF)"),
        "{problems:?}"
    );
}

#[test]
fn what_no_program_can_be_given_is_refused() {
    let long = |length| "x".repeat(length);
    for (limit, keys) in [
        (COMMAND_LIMIT, &(|text: &str| format!("setup = \"{text}\"")) as &dyn Fn(&str) -> String),
        (VARIABLE_LIMIT, &|text| format!("env = {{ A = \"{text}\" }}")),
    ] {
        let dir = Dir::new();
        assert!(dir.load(group(&keys(&long(limit))), &[]).is_ok());
        let problems = dir.problems(group(&keys(&long(limit + 1))), &[]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains(&format!("this has {} bytes", limit + 1)), "{problems:?}");
    }
}

#[test]
fn a_tilde_is_no_home() {
    let message = "`~` stands for nothing here: this is relative to the machine's working directory, which is its \
                   home except on `hosts`";
    refuses(&group("upload = [{ from = \"ok.sh\", to = \"~/bin/tool\" }]"), &[&format!("3:34 {message}")]);
    refuses(&step("run = \"x\"\ncwd = \"~\""), &[&format!("8:7 {message}")]);
}

#[test]
fn rendering_all_templates_has_an_end() {
    let source = group("count = 100\nsetup = [\"{{ ip }}\", \"{{ ip | q }}\"]");
    let registry = registry();
    let contents = Reader::new(&registry, &source, Path::new("."), &|_| None, ("--set", &[])).read().unwrap();
    for (fuel, message) in [
        (10_000, None),
        (5000, Some("rendering all templates for all machines takes too much work, from here on")),
    ] {
        let mut notes = NotedProblems::default();
        check::templates(&source, &contents, ("--set", &[]), &mut notes, fuel);
        let problems = Problems::new(Path::new("x.toml"), &source, notes);
        assert_eq!(problems.iter().next().map(Problem::message), message);
    }
}

#[test]
fn of_many_problems_the_first_are_shown_and_the_rest_is_counted() {
    let keys: String = (0..5000).map(|i| format!("key{i} = 1\n")).collect();
    let problems = Dir::new().load(format!("{keys}name = \"x\"\n[group.a]\n"), &[]).unwrap_err();
    assert_eq!(problems.count(), PROBLEM_LIMIT);
    let shown = problems.to_string();
    assert_eq!(shown.matches("error: ").count(), 20, "{shown}");
    assert!(shown.ends_with("\n\n… and 4980 more problems"), "{shown}");
}

#[test]
fn a_long_line_is_cut_around_the_problem() {
    let text =
        format!("# {}\nname = \"{}x\" # {}\n[group.a]\n", "é".repeat(9), " ".repeat(5000), "é".repeat(5000));
    let dir = Dir::new();
    let shown = dir.load(text, &[]).unwrap_err().to_string();
    assert!(shown.len() < 4000 && shown.contains("x.toml:2:8"), "{shown}");
    let setup = format!("setup = [{} \"{{{{ nope }}}}\"]", "\"true\",".repeat(1000));
    let shown = dir.load(group(&setup), &[]).unwrap_err().to_string();
    assert!(shown.len() < 2000 && shown.contains("x.toml:3:7015"), "{shown}");
}

#[test]
fn what_a_terminal_would_act_on_is_marked_where_it_stands() {
    let text = "name = \"x\"\n[group.a] # \u{9b}2J\u{202e}\nsetup = '\u{9d}0;\u{200b}\u{2028}\u{e0041}' # é\nco\u{feff} = 1\n\"a\\nerror: b\" = 1\n";
    let dir = Dir::new();
    let shown = dir.load(text.replace("'\u{9d}", "'{{ a\u{9d}"), &[]).unwrap_err().to_string();
    assert!(shown.chars().all(|c| c == '\n' || crate::text::harmless(c)), "{shown:?}");
    let shown = dir
        .load("name = \"x\"\n[group.a]\n\"a\\nerror: \u{9b}b\u{202e}\" = 1 # \u{9b}\u{feff}é\n", &[])
        .unwrap_err()
        .to_string();
    insta::assert_snapshot!(shown.replace(&format!("{}/", dir.0.path().display()), ""), @r#"
    error: unknown key `a�error: �b�`
     --> x.toml:3:1
      |
    3 | "a\nerror: �b�" = 1 # ��é
      | ^^^^^^^^^^^^^^^
      |
      = help: known here: count, setup, upload, env, on_interruption, user
    "#);
}

#[test]
fn nothing_a_file_may_hold_makes_it_panic() {
    let dir = Dir::new();
    let text = REDIS.replace("info", "ïnfo\\u00ef{{ nämé }}").replace("\"bin/load\"", "'''\n{{ ñ }}\n'''");
    for (at, _) in text.char_indices() {
        for broken in
            [text[..at].to_owned(), text[at..].to_owned(), format!("{}\"{}", &text[..at], &text[at..])]
        {
            if let Err(problems) = dir.load(broken, &[("n", "1")]) {
                assert!(problems.count() > 0);
                problems.render(true);
            }
        }
    }
}

#[test]
fn a_group_that_cannot_be_read_is_not_blamed_on_its_steps() {
    refuses(
        "name = \"x\"\n[group.a]\ncount = 0\n[[step]]\non = [\"a\", \"a-5\"]\nrun = \"{{ a.ip }} {{ nope }}\"\n",
        &["3:9 a group has from 1 to 10000 machines"],
    );
}

#[test]
fn everything_at_once_and_in_its_place() {
    let dir = Dir::new();
    let text = r#"name = "x"
lifetme = "1h"
[group.server]
count = 0

[[step]]
on = "sever"
run = '''
echo first
docker ps {{.Names}}
'''
"#;
    let shown = dir.load(text, &[]).unwrap_err().to_string();
    insta::assert_snapshot!(shown.replace(&format!("{}/", dir.0.path().display()), ""), @r#"
    error: unknown key `lifetme`
     --> x.toml:2:1
      |
    2 | lifetme = "1h"
      | ^^^^^^^
      |
      = help: did you mean `lifetime`?

    error: a group has from 1 to 10000 machines
     --> x.toml:4:9
      |
    4 | count = 0
      |         ^

    error: there is no group or machine `sever`
     --> x.toml:7:6
      |
    7 | on = "sever"
      |      ^^^^^^^
      |
      = help: did you mean `server`?

    error: not a template: unexpected `.`
      --> x.toml:10:13
       |
    10 | docker ps {{.Names}}
       |             ^
       |
       = help: to write a literal `{{`, write `{{ '{{' }}`
    "#);
}

#[tokio::test(start_paused = true)]
async fn what_a_provider_refuses_has_a_place() {
    let text = "name = \"x\"\nprovider = \"cloud\"\nlifetime = \"2h\"\n[cloud]\nsize = \"large\"\n[group.a]\n\
                [group.b]\nsize = \"huge\"\n";
    let directory = Dir::new();
    let plan = directory.load(text, &[]).unwrap().plan();
    let file = format!("{}:", directory.0.path().join("x.toml").display());
    let place = |error: &Error| error.place_in_file().map(|place| place.replace(&file, ""));
    for (key, expected) in [("size", ["5:8", "8:8"]), ("lifetime", ["3:12"; 2]), ("zone", ["6:8", "7:8"])] {
        let mut provider = MockProvider::new();
        provider.expect_choose().returning(|_, _| Ok(None));
        provider.expect_quote().returning(move |_, _| {
            Err(ProviderError::new(ProviderErrorKind::Unsupported, "quote", "there is none").key(key))
        });
        let tsunami = Tsunami::new(Arc::new(provider), Arc::new(MockConnector::new()));
        let Err(Error::Quote { mut failures }) = tsunami.quote(&plan).await else { panic!("it is refused") };
        for expected in expected {
            let error = Error::Quote { failures: vec![failures.remove(0)] };
            assert_eq!(place(&error).as_deref(), Some(expected), "{key}");
            assert!(format!("{error:?}").ends_with(&format!("\n  --> {file}{expected}")), "{error:?}");
        }
    }
    // What is no fault of the file's has none.
    for (kind, expected) in
        [(ProviderErrorKind::InvalidSpec, Some("6:8")), (ProviderErrorKind::Capacity, None)]
    {
        let cloud = Arc::new(FakeCloud::new(1));
        cloud.fault(Call::Launch, 1, Fault::Error(kind));
        let tsunami = Tsunami::new(cloud.clone(), cloud).state(RunStore::at(directory.0.path().join("runs")));
        let mut plan = plan.clone();
        plan.groups.truncate(1);
        let error = tsunami.run(plan, async |_| Ok(())).await.unwrap_err();
        assert!(matches!(error, Error::Launch { .. }), "{error:?}");
        assert_eq!(place(&error).as_deref(), expected);
    }
}

#[test]
fn syntax_errors_have_a_place() {
    refuses(
        r#"name = "x
provider = 
[group.a]"#,
        &[
            r#"1:10 invalid basic string, expected `"`"#,
            "2:12 string values must be quoted, expected literal string",
        ],
    );
    // What follows from it is not told.
    refuses(
        "name = \"x\"\n[group.a]\nsetup = [\"true\"\n[[step]]\non = \"a\"\nrun = \"true\"\n",
        &["4:1 missing comma between array elements, expected `,` (the array before this may lack its `]`)"],
    );
    refuses(
        r#"name = "x"
[group.a]
[group.a]
count = 1
count = 2"#,
        &["3:8 duplicate key", "5:1 duplicate key"],
    );
}

#[test]
fn what_must_be_there() {
    refuses(
        "",
        &[
            r#"`name` is missing (begin the file with `name = "..."`)"#,
            "there is no group of machines (begin one with `[group.server]`)",
        ],
    );
    refuses(
        r#"nmae = "x"
[group.a]"#,
        &[
            "1:1 unknown key `nmae` (did you mean `name`?)",
            r#"`name` is missing (begin the file with `name = "..."`)"#,
        ],
    );
    refuses(
        r#"name = "x"
[group]"#,
        &["2:1 there is no group of machines (begin one with `[group.server]`)"],
    );
}

#[test]
fn names() {
    refuses(
        r#"name = "-x"
[group.a]"#,
        &["1:8 `-x` can't be a name (use a letter or digit, then letters, digits, `.`, `_` and `-`)"],
    );
    refuses(
        "name = 5
[group.a]",
        &[r#"1:8 expected a string, found an integer (write it as a string: "5")"#],
    );
    refuses(
        r#"name = "x"
[group.Client]
[group.ip]
[group.a-b]"#,
        &[
            "2:8 `Client` can't name a group (use a lower-case letter, then lower-case letters, digits and `_`)",
            "3:8 `ip` can't name a group: it already has a meaning in templates",
            "4:8 `a-b` can't name a group (use a lower-case letter, then lower-case letters, digits and `_`)",
        ],
    );
}

const SWEEP: &str = r#"
name = "sweep"
prepare = ["make"]
[vars]
requests = 100000
[matrix]
variant = ["old", "new"]
clients = [1, 4, 16]
[trials]
repeat = 10
warmup = 1
canary = true
odd = "void"
[compare]
by = "variant"
baseline = "new"
margin = "2.5 %"
fail_if = ["rps < 0.95", "p99>1.1"]
[group.server]
[group.client]
count = 2
[[step]]
on = "server"
start = "serve"
per = "run"
[[step]]
name = "load"
on = "client"
run = "load {{ server.ip }} {{ variant }} {{ clients + 1 }} -n {{ requests }} {{ trial }}"
collect = ["out.csv"]
[step.metrics]
rps = { file = "out.csv", csv = "rps", where = { test = "GET", size = 8 }, across = "sum", better = "higher", unit = "1/s" }
p99 = { regex = 'p99=([0-9.]+) ?ms', reduce = "last", across = "max", better = "lower" }
tail = { hdr = "p99.9", across = "merge" }
[[reset]]
on = "server"
run = "flush {{ ip }} {{ clients }}"
timeout = "5s"
"#;

#[test]
fn a_sweep_is_read() {
    let experiment = Dir::new().load(SWEEP, &[("requests", "7")]).unwrap();
    let Trials { parameters, repeat, warmup, order, canary, odd, compare, metrics, .. } = &experiment.trials;
    assert_eq!(
        parameters[..],
        [Parameter::new("variant", ["old", "new"]), Parameter::new("clients", [1, 4, 16])]
    );
    let wanted = (10, 1, Order::Balanced, true, OddMachines::Void);
    assert_eq!((*repeat, *warmup, *order, *canary, *odd), wanted);
    let mut wanted = Compare::new("variant", "new");
    (wanted.margin, wanted.fail_if) = (0.025, vec!["rps < 0.95".to_owned(), "p99>1.1".to_owned()]);
    assert_eq!(compare.as_ref(), Some(&wanted));
    let named: Vec<_> = metrics.iter().map(|metric| (&*metric.name, &*metric.step)).collect();
    assert_eq!(named, [("rps", "load"), ("p99", "load"), ("tail", "load")]);
    assert_eq!((&experiment.prepare[..], experiment.sets.len()), (&["make".to_owned()][..], 0));
    assert_eq!(*experiment.values, Parameters::from([("requests".to_owned(), 7.into())]), "of the same type");

    let [start, load] = &experiment.steps[..] else { panic!() };
    assert_eq!((start.per, load.per), (Per::Run, Per::Trial));
    let [rps, p99, tail] = &load.metrics[..] else { panic!() };
    assert_eq!((rps.file.as_deref(), &rps.source), (Some("out.csv"), &Source::Csv("rps".to_owned())));
    let select: Vec<_> = rps.select.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(select, [("size", "8"), ("test", "GET")]);
    let (across, better, unit) = (Some(Across::Sum), Some(Direction::Higher), Some("1/s"));
    assert_eq!((rps.across, rps.better, rps.unit.as_deref()), (across, better, unit));
    assert_eq!((&p99.file, p99.reduce, p99.across), (&None, Some(Reduce::Last), Some(Across::Max)));
    assert_eq!((&tail.source, tail.across), (&Source::Hdr("p99.9".to_owned()), Some(Across::Merge)));
    let [reset] = &experiment.resets[..] else { panic!() };
    assert_eq!((&*reset.on, reset.timeout), (&["server-0".to_owned()][..], Some(Duration::from_secs(5))));
}

#[test]
fn without_a_matrix_there_is_one_trial() {
    let experiment = Dir::new().load(group("count = 2"), &[]).unwrap();
    assert_eq!(experiment.trials, Trials::default());
    assert_eq!(experiment.trials.combinations().len(), 1);
    let experiment = Dir::new().load(format!("repeat = 3\n{}", group("")), &[]).unwrap();
    assert_eq!(experiment.trials.repeat, 3);
}

#[test]
fn what_follows_from_another_problem_is_not_told() {
    let file = |before: &str, metrics: &str| {
        format!(
            "name = \"x\"\n{before}\n[group.a]\ncount = 2\n[[step]]\non = \"a\"\nrun = \"echo {{{{ v }}}}\"\n{metrics}\n"
        )
    };
    let compare = "[compare]\nby = \"v\"\nbaseline = \"old\"\nfail_if = [\"n < 0.9\"]";
    let good = "metrics = { n = { regex = \"(x)\", across = \"sum\" } }";
    refuses(&file(&format!("matrix = 1\n{compare}"), good), &["2:10 expected a table, found an integer"]);
    refuses(
        &file(&format!("[matrix]\nv = 3\n{compare}"), good),
        &["3:5 expected a list of values, found an integer"],
    );
    refuses(&file(&format!("[matrix]\nv = []\n{compare}"), good), &["3:5 this list is empty"]);
    refuses(
        &file(&format!("[matrix]\nv = [\"new\", [1]]\n{compare}"), good),
        &["3:13 expected a string, a number, true or false, found a list"],
    );
    refuses(&file("vars = 1", good), &["2:8 expected a table, found an integer"]);
    let matrix = format!("[matrix]\nv = [\"old\", \"new\"]\n{compare}");
    let metrics = |text: &str| file(&matrix, &format!("metrics = {text}"));
    refuses(&metrics("1"), &["13:11 expected a table, found an integer"]);
    refuses(
        &metrics("{ \"e-f\" = { regex = \"(x)\", across = \"sum\" } }"),
        &["13:13 `e-f` can't name a metric (use letters, digits and `_`, not beginning with a digit)"],
    );
    refuses(
        &metrics("{ n = { regx = \"(x)\", across = \"sum\" } }"),
        &["13:19 unknown key `regx` (did you mean `regex`?)"],
    );
    refuses(
        &metrics("{ n = { regex = \"(x)\", across = \"avg\" } }"),
        &["13:43 `across` can't be \"avg\" (did you mean `mean`?)"],
    );
    refuses(
        &metrics("{ n = { csv = \"x\", across = \"sum\", file = \"out\" } }\ncollect = [1]"),
        &["14:12 expected a string, found an integer (write it as a string: \"1\")"],
    );
    refuses(
        &file("[matrix]\nv = [1, 2]\n[trials]\nbaseline = 1\n[compare]\nfail_if = \"n < 1\"", good),
        &["5:1 unknown key `baseline` (it belongs in `[compare]`)", "6:2 `by` is missing here"],
    );
}

#[test]
fn parameters_and_values() {
    refuses(
        r#"name = "x"
[vars]
a = 1
b = [1]
ip = 1
server = 1
"9" = 1
used = 1
c = 12345678901234567890
[matrix]
a = [1, "1", true, 1.5, inf, "x\u0007", 1979-05-27, { from_env = "TOKEN" }]
d = []
e = 5
f = [1]
g = ["1", "2"]
[group.server]
[[step]]
on = "all"
run = "{{ a }} {{ used }} {{ f }} {{ g + 1 }}"
[[step]]
on = "all"
run = "{{ d }} {{ e }} {{ c }}"
"#,
        &[
            "3:1 `a` is a parameter",
            "4:5 expected a string, a number, true or false, found a list",
            "5:1 `ip` can't name a value: it already has a meaning in templates",
            "6:1 `server` can't name a value: it is a group",
            "7:1 `9` can't name a value (use a lower-case letter, then lower-case letters, digits and `_`)",
            "9:5 no number has more than 18 digits",
            "11:9 `1` is there twice",
            "11:25 this is no finite number",
            "11:30 a parameter's value can't hold control characters",
            "11:41 expected a string, a number, true or false, found a date or time",
            "11:53 a secret can't be a parameter, which results show (a step's or a group's `env` has secrets)",
            "12:5 this list is empty",
            "13:5 expected a list of values, found an integer",
            "19:38 tried to use + operator on unsupported types string and number",
        ],
    );
    let text = "name = 'x'\n[vars]\nn = 1\nf = 1.5\nb = true\n[group.a]\nsetup = '{{ n }} {{ f }} {{ b }}'\n";
    assert_eq!(
        Dir::new().problems(text, &[("n", "1.5"), ("f", "x"), ("b", "yes")]),
        [
            "--set n: `1.5` is not a whole number, as the file has it",
            "--set f: `x` is not a number, as the file has it",
            "--set b: `yes` is not true or false, as the file has it",
        ]
    );
    let text =
        "name = 'x'\n[matrix]\nn = [1, 2]\nm = ['a']\n[group.a]\n[[step]]\non = 'a'\nrun = '{{ n }}'\n";
    assert_eq!(
        Dir::new().problems(text, &[("n", "1")]),
        [
            "4:1 no template uses `m` (so all of its trials are the same; if they are to be, name it in a command's comment)",
            "--set n: `n` is a parameter (`--only n=VALUE` does the trials with one of its values; the file's `[matrix]` lists them)",
        ]
    );
}

#[test]
fn how_many_trials() {
    refuses(
        "name = 'x'\nrepeat = 0\n[trials]\nrepeat = 2\norder = 'sorted'\nwarmup = -1\nseed = 1\n[group.a]\n",
        &[
            "2:10 this is no whole number from 1 to 100000",
            "2:10 `repeat` is said twice: at the top, and in `[trials]` (say it once)",
            "5:9 `order` can't be \"sorted\" (known here: balanced, random)",
            "6:10 this is no whole number from 0 to 100000",
            "7:1 unknown key `seed` (known here: repeat, order, warmup, canary, odd)",
        ],
    );
    let step = "[group.g]\n[[step]]\non = 'g'\nrun = '{{ a }}'\n";
    let text = format!("name = 'x'\nrepeat = 50001\n[matrix]\na = [1, 2]\n{step}");
    refuses(&text, &["3:2 these are 100002 trials: 100000 are the most"]);
    let many: String = (0..11).map(|number| format!("p{number} = [1]\n")).collect();
    let uses: String = (0..10).map(|number| format!("{{{{ p{number} }}}}")).collect();
    refuses(
        &format!("name = 'x'\n[matrix]\n{many}{}", step.replace("{{ a }}", &uses)),
        &["13:1 an experiment has at most 10 parameters"],
    );
}

#[test]
fn what_is_compared() {
    let text = |compare: &str| {
        SWEEP.replace("[compare]\nby = \"variant\"\nbaseline = \"new\"\nmargin = \"2.5 %\"\nfail_if = [\"rps < 0.95\", \"p99>1.1\"]", compare)
    };
    refuses(
        &text("[compare]\nby = 'varient'\nmargin = '3'\nfail_if = ['rps', 'rpm < 1', 'rps <= 1', 'p99 > 0']"),
        &[
            "15:6 there is no parameter `varient` (did you mean `variant`?)",
            "16:10 `3` is no margin (write it as `3%`, from 0 to 100 %)",
            "17:12 `rps` has neither `<` nor `>`; write it as `rps < 0.95`",
            "17:19 there is no metric `rpm` (did you mean `rps`?)",
            "17:30 `rps <= 1` has more than one sign; write it as `rps < 0.95`",
            "17:42 `0` is no ratio to the baseline; write a number above 0, such as 0.95",
        ],
    );
    refuses(
        &text("[compare]\nby = 'clients'\nbaseline = '5'\nmargin = '101%'"),
        &[
            "16:12 `5` is no value of `clients` (known here: 1, 4, 16)",
            "17:10 `101%` is no margin (write it as `3%`, from 0 to 100 %)",
        ],
    );
    refuses(&text("[compare]\nmargin = '1%'"), &["14:2 `by` is missing here"]);
    let start = SWEEP.find("[step.metrics]").unwrap();
    let end = SWEEP.find("[[reset]]").unwrap();
    let nothing = SWEEP.replace(&SWEEP[start..end], "").replace("fail_if", "# ");
    refuses(&nothing, &["14:2 there is no metric to compare (a step's `metrics` say what is compared)"]);
    let one = text("[compare]\nby = 'variant'").replace("[\"old\", \"new\"]", "[\"old\"]");
    refuses(&one, &["15:6 `variant` has but one value, and nothing to compare it with"]);
}

#[test]
fn metrics() {
    refuses(
        &step(
            r#"run = "a {{ n }}"
collect = ["*.csv", "d"]
[step.metrics]
a = { csv = "x", json = "/x" }
b = { file = "out.txt", json = "x" }
c = { file = "out.csv", regex = "(" }
d = { file = "d/x", regex = "a", across = "merge" }
"e-f" = { csv = "x" }
f = { hdr = "p101", across = "sum", better = "more" }
g = { hdr = "p50", across = "merge", where = { a = 1 }, reduce = "max" }
h = { csv = "x", across = "max", where = { a = 0.5, b = true }, file = "../x" }
n = { csv = "x" }
o = { csv = "x", unit = "a\nb" }
[[step]]
on = "client-0"
start = "x"
[step.metrics]
g = { csv = "x" }
i = { csv = "x", file = "x.csv" }
j = { csv = "x" }
[matrix]
n = [1, 2]
"#,
        ),
        &[
            "10:5 a metric has one of `csv`, `json`, `regex` and `hdr`",
            "11:32 `x` is no JSON pointer (write it as `/latency/p99`; `~0` stands for `~`, `~1` for `/`)",
            "12:33 this is no regular expression: unclosed group",
            "13:29 this has no group, and needs one (the number stands in a group `(…)`; others are written `(?:…)`)",
            "14:1 `e-f` can't name a metric (use letters, digits and `_`, not beginning with a digit)",
            "15:13 `p101` is nothing that a histogram tells (write `p99`, `p99.9`, `max`, `min`, `mean` or `count`)",
            "15:46 `better` can't be \"more\" (did you mean `higher`?)",
            "16:38 `where` is for `csv` and `json` (a regular expression or a histogram has no rows)",
            "16:57 `reduce` is for `csv`, `json` and `regex` (a histogram's intervals are merged before anything is told of \
             them)",
            "17:72 this leaves the step's directory",
            "18:1 `n` can't name a metric: it is a parameter",
            "19:1 `across` is missing here: the step runs on 3 machines (say how their values become one: `across = \"sum\"`)",
            "19:25 a unit is a short word",
            "24:1 step 1 has a metric `g` already",
            "25:25 the step doesn't `collect` a file `x.csv` (name it there: `collect = [\"x.csv\"]`)",
            "26:1 what is started prints until the trial ends: a number of it is read from a file (let it write one, and \
             name that in `collect` and in `file`)",
        ],
    );
}

#[test]
fn what_is_done_once_for_all_trials() {
    let text = |steps: &str| {
        format!(
            "name = 'x'\n[matrix]\nn = [1, 2]\n[group.a]\n[[step]]\non = 'a'\nrun = '{{{{ n }}}}'\n{steps}"
        )
    };
    refuses(
        &text(
            "[[step]]\non = 'a'\nrun = 'x {{ n }} {{ trial }} {{ a.ip }}'\nper = 'run'\ncollect = ['x']\n[step.metrics]\n",
        ),
        &[
            "8:1 this step is done once for all trials, and step 1 before it in each of them (put what is done once before all else, as it is done)",
            "10:13 `n` is undefined (what is done once for all trials knows no `trial`, and only parameters that machines depend on)",
            "10:21 `trial` is undefined (what is done once for all trials knows no `trial`, and only parameters that machines depend on)",
            "12:1 `collect` is not for a step that is done once for all trials (do it in a step of each trial)",
            "13:7 `metrics` is not for a step that is done once for all trials (do it in a step of each trial)",
        ],
    );
    refuses(
        &text("[[reset]]\non = 'b'\nrun = ''\ntimeout = '0s'\nwhen = 1\n[[reset]]\n"),
        &[
            "9:6 there is no group or machine `b` (known here: a, all, a-0)",
            "10:7 this is empty",
            "11:11 this can't be zero",
            "12:1 unknown key `when` (a command decides for itself: `if …; then …; fi`; where it is done is `on`)",
            "13:1 `on` is missing here",
            "13:1 `run` is missing here",
        ],
    );
}

#[test]
fn machines_may_depend_on_parameters() {
    let text = "name = 'x'\nprovider = 'cloud'\n[cloud]\nsize = '{{ size }}'\n[matrix]\nn = [1, 3]\nm = [5, 6]\n\
                size = ['small', 'large']\n[group.a]\ncount = '{{ n }}'\nsetup = 'x {{ n + 1 }} {{ size }}'\n[group.b]\n\
                size = 'medium'\n[[step]]\non = 'a'\nrun = '{{ m }} {{ n }} {{ a | length }}'\n";
    let experiment = Dir::new().load(text, &[]).unwrap();
    let of = |set: &MachineSet| {
        let sizes: Vec<_> = set
            .groups
            .iter()
            .map(|group| (group.spec.get::<String>().unwrap().clone(), group.count.get()))
            .collect();
        (set.parameters["n"].to_string(), set.parameters["size"].to_string(), sizes, set.steps[0].on.len())
    };
    let seen: Vec<_> = experiment.sets.iter().map(of).collect();
    let set = |n: u32, size: &str| {
        (n.to_string(), size.to_owned(), vec![(size.to_owned(), n), ("medium".to_owned(), 1)], n as usize)
    };
    assert_eq!(seen, [set(1, "small"), set(1, "large"), set(3, "small"), set(3, "large")]);
    assert_eq!((experiment.set_count(), experiment.groups[0].count.get()), (4, 1), "the first is its own");
    let combinations = experiment.trials.combinations();
    let sets: Vec<_> = combinations.iter().map(|parameters| experiment.set_of(parameters)).collect();
    assert_eq!(sets, [1, 2, 1, 2, 3, 4, 3, 4]);
    let third = experiment.on_set(3);
    assert_eq!((third.machines().count(), third.values["n"].clone()), (4, 3.into()));
}

#[test]
fn a_providers_own_keys_may_be_templates_of_any_type() {
    let text = "name = 'x'\nprovider = 'pool'\n[vars]\nmore = 1\n[group.a]\nmembers = '{{ more + 1 }}'\n";
    let count = |set: &[(&str, &str)]| Dir::new().load(text, set).unwrap().groups[0].count.get();
    assert_eq!((count(&[]), count(&[("more", "3")])), (2, 4));
    assert_eq!(
        Dir::new().problems(text, &[("more", "9")]),
        ["6:11 this is no whole number from 1 to 9, once rendered: \"10\""]
    );
}

#[test]
fn what_machines_cannot_depend_on() {
    let text = |n: &str| {
        format!(
            "name = 'x'\nprovider = 'cloud'\n[matrix]\nn = {n}\n[group.a]\ncount = '{{{{ n }}}}'\nsize = '{{{{ m }}}}'\n\
             [[step]]\non = 'a-1'\nrun = 'x'\n[compare]\nby = 'n'\n"
        )
    };
    let nothing = "11:2 there is no metric to compare (a step's `metrics` say what is compared)";
    let undefined = "7:12 `m` is undefined (this knows only parameters and values: n)";
    let compared = "12:6 what is compared runs on the same machines, and the group `a` depends on `n` (use it in steps only, or \
                    compare by another parameter)";
    refuses(
        &text("[2, 1, 0, 'x']"),
        &[
            "6:9 a group has from 1 to 10000 machines, once rendered: \"0\", where n = 0",
            "6:9 expected a number of machines, found a string, once rendered: \"x\", where n = x",
            undefined,
            "9:6 there is no machine `a-1`, where n = 1 (`a` has one machine, a-0)",
            nothing,
            compared,
        ],
    );
    let unused = "name = 'x'\nprovider = 'cloud'\n[matrix]\nnumber = [1, 2]\n[group.a]\ncount = '{{ m }}'\n";
    refuses(unused, &["6:13 `m` is undefined (this knows only parameters and values: number)"]);
    let many: Vec<_> = (2..103).collect();
    refuses(
        &text(&format!("{many:?}")),
        &[
            undefined,
            nothing,
            compared,
            "machines depend on `n`, so that there would be 101 sets of them: 100 are the most",
        ],
    );
}

#[test]
fn templates_are_rendered_with_all_values_that_they_may_have() {
    refuses(
        "name = 'x'\n[matrix]\nn = [1, 'a', 2, 'b']\nm = [1, 0]\n[group.a]\ncount = 3\n[[step]]\non = 'a'\n\
         run = 'x {{ n + 1 }} {{ 1 / m }}'\n",
        &[
            "9:13 tried to use + operator on unsupported types string and number, where m = 1, n = a",
            "9:25 unable to calculate 1 / 0, where m = 0, n = 1",
        ],
    );
    let values: Vec<_> = (1..10_000).collect();
    let steps = "[[step]]\non = 'a'\nrun = '{{ n }} {{ ip }}'\n".repeat(100);
    let text = format!("name = 'x'\n[matrix]\nn = {values:?}\n[group.a]\ncount = 100\n{steps}");
    assert_eq!(Dir::new().load(text, &[]).unwrap().trials.parameters.len(), 1, "as far as there is fuel");
}

#[test]
fn what_is_prepared() {
    refuses(
        "name = 'x'\nprepare = ['', 5]\n[group.a]\nupload = [{ from = 'none', to = 'x' }]\n",
        &["2:12 this is empty", "2:16 expected a string, found an integer (write it as a string: \"5\")"],
    );
    let text = "name = 'x'\nprepare = 'make {{ no }}'\n[group.a]\nupload = [{ from = 'none', to = 'x' }]\n";
    assert_eq!(
        Dir::new().load(text, &[]).unwrap().prepare,
        ["make {{ no }}"],
        "it may make the file, and is no template"
    );
}

#[test]
fn unknown_keys_and_words() {
    refuses(
        r#"name = "x"
livetime = "1h"
provider = "pol"
[group.a]
colour = 1
[[step]]
on = "a"
run = "true"
timout = "5s"
on_error = "ignore""#,
        &[
            "2:1 unknown key `livetime` (did you mean `lifetime`?)",
            r#"3:12 `provider` can't be "pol" (did you mean `pool`?)"#,
            "5:1 unknown key `colour` (known here: count, setup, upload, env, on_interruption, user)",
            "9:1 unknown key `timout` (did you mean `timeout`?)",
            r#"10:12 `on_error` can't be "ignore" (known here: fail, continue)"#,
        ],
    );
}

#[test]
fn what_people_reach_for_is_answered_where_it_stands() {
    refuses(
        "name = 'x'\nttl = '1h'\nsize = 'l'\nmembers = 3\nmachines = 2\n[matrix]\nn = [1]\ninclude = [{ n = 2 }]\n[group.a]\n\
         install = 'x'\nneeds = 'b'\n[[step]]\non = 'a'\ncmd = 'x {{ n }}'\nwait = 5\n[[step]]\non = 'a'\nstart = 'y'\n\
         ready = { url = '/' }\n",
        &[
            "2:1 unknown key `ttl` (`lifetime = \"1h\"` ends every machine)",
            "3:1 unknown key `size` (it belongs in `[cloud]`, or in a group of that provider)",
            "4:1 unknown key `members` (it belongs in a group, `[group.NAME]`, with `provider = \"pool\"`)",
            "5:1 unknown key `machines` (machines are in groups: `[group.server]`, with `count = 3` for more than one)",
            "8:1 every combination is a trial: `include` can't choose among them (to choose them, let one parameter have \
             those: `pair = [\"1 old\", \"4 new\"]`; `--only` does a part of them)",
            "10:1 unknown key `install` (`setup = [\"sudo apt-get install -yq redis-server\"]` prepares each machine; a \
             script is `{ script = \"setup.sh\" }`)",
            "11:1 unknown key `needs` (all machines are set up at once, each by itself; what needs others is done in a step)",
            "14:1 unknown key `cmd` (the command is `run`, or `start` if it goes on in the background; a script is \
             uploaded, and run by its name)",
            "15:1 unknown key `wait` (`ready = { port = 6379 }` waits until what `start` began has come up)",
            "19:11 unknown key `url` (`{ http = \"/health\", port = 8080 }` asks over HTTP)",
        ],
    );
    let meant = |text: &str| Dir::new().problems(text, &[]);
    let near = "name = 'x'\n[vars]\nnn = 5\n[group.a]\n[[step]]\non = 'a'\nrun = 'x {{ n }}'\n";
    assert_eq!(
        meant(near),
        ["7:13 `n` is undefined (did you mean `nn`?)"],
        "and `nn` is not said to be unused"
    );
    let hidden = "name = 'x'\n[group.a]\n[[reset]]\non = 'b'\nrun = 'x {{ nmae }}'\n";
    let both = [
        "4:6 there is no group or machine `b` (known here: a, all, a-0)",
        "5:13 `nmae` is undefined (did you mean `name`?)",
    ];
    assert_eq!(meant(hidden), both);
}

#[test]
fn what_belongs_to_every_provider_is_taken_from_the_nearest_table() {
    let experiment = |top: &str, own: &str, group: &str| {
        let text = format!("name = 'x'\nprovider = 'cloud'\n{top}[cloud]\n{own}[group.a]\n{group}");
        let experiment = Dir::new().load(&text, &[]).unwrap();
        let group = &experiment.groups[0];
        (group.inputs.first().map(|(_, user)| user.clone()), group.replace_interrupted)
    };
    let (top, own) = ("user = 'top'\non_interruption = 'replace'\n", "user = 'own'\n");
    assert_eq!(experiment("", "", ""), (None, false));
    assert_eq!(experiment(top, "", ""), (Some("top".into()), true));
    assert_eq!(experiment(top, own, ""), (Some("own".into()), true));
    let group = "user = 'group'\non_interruption = 'fail'\n";
    assert_eq!(experiment(top, own, group), (Some("group".into()), false));
}

#[test]
fn defaults_are_said_as_they_are() {
    let said = |keys: &[Key], name: &str| {
        let key = keys.iter().find(|key| key.name == name).unwrap();
        humantime::parse_duration(key.default.unwrap().trim_matches('"')).unwrap()
    };
    assert_eq!(said(keys::TOP_KEYS, "lifetime"), crate::DEFAULT_LIFETIME);
    assert_eq!(said(keys::READY_KEYS, "timeout"), crate::trial::DEFAULT_READY_TIMEOUT);
}

mod cloud {
    crate::registration_conformance!(super::registry(), "cloud", "");
}

mod pool {
    crate::registration_conformance!(super::registry(), "pool", "members = 2");
}

#[test]
fn durations() {
    refuses(
        r#"name = "x"
lifetime = "0s"
[group.a]"#,
        &["2:12 this can't be zero"],
    );
    refuses(
        r#"name = "x"
lifetime = "45"
[group.a]"#,
        &[
            "2:12 `45` is not a duration: time unit needed, for example 45sec or 45ms (write it as `90s`, `45m` or `1h30m`)",
        ],
    );
    refuses(
        r#"name = "x"
lifetime = "2years"
[group.a]"#,
        &["2:12 this is longer than a year of 365 days"],
    );
    // A year of humantime's has a quarter of a day more than a plan may have.
    refuses(
        r#"name = "x"
lifetime = "1y"
[group.a]"#,
        &["2:12 this is longer than a year of 365 days"],
    );
    refuses(
        r#"name = "x"
lifetime = 45
[group.a]"#,
        &[
            r#"2:12 expected a duration such as "90s", found an integer (write it with its unit: "45s", or "45m" for minutes)"#,
        ],
    );
}

#[test]
fn wrong_types() {
    refuses(
        r#"name = "x"
group = 5"#,
        &["2:9 expected a table, found an integer"],
    );
    refuses(
        r#"name = "x"
wire = []
[group]
server = 3
[step]
on = "a""#,
        &[
            "2:8 expected a table, found a list",
            "4:10 expected a table, found an integer",
            "5:1 expected a list, found a table",
        ],
    );
}

#[test]
fn counts() {
    refuses(&group("count = 0"), &["3:9 a group has from 1 to 10000 machines"]);
    refuses(&group("count = -1"), &["3:9 a group has from 1 to 10000 machines"]);
    refuses(
        &group(r#"count = "3""#),
        &["3:9 expected a number of machines, found a string (write it without quotes: 3)"],
    );
    refuses(&group("count = 99999"), &["3:9 a group has from 1 to 10000 machines"]);
    refuses(
        &group("members = 3"),
        &[
            r#"3:1 `members` is for the provider "pool" (set `provider = "pool"`, or give a `count` of machines)"#,
        ],
    );
}

#[test]
fn setup() {
    refuses(
        &group("setup = 5"),
        &[r#"3:9 expected a command, `{ script = "..." }`, or a list of those, found an integer"#],
    );
    refuses(
        &group(
            r#"setup = [
  "true", 5, "",
  { script = "none.sh" },
  { script = "plain.sh" },
  { script = "sub" },
  { script = "ok.sh" },
  { skript = "ok.sh" },
]"#,
        ),
        &[
            r#"4:11 expected a command, `{ script = "..." }`, or a list of those, found an integer"#,
            "4:14 this is empty",
            "5:14 `none.sh` can't be read: No such file or directory (os error 2)",
            "6:14 `plain.sh` doesn't begin with `#!` (say what runs it in its first line, as `#!/bin/bash`)",
            "7:14 `sub` is not a file",
            "9:3 `script` is missing here",
            "9:5 unknown key `skript` (did you mean `script`?)",
        ],
    );
}

#[test]
fn uploads() {
    refuses(
        &group(
            r#"upload = [
  { from = "none", to = "x" },
  { from = "sub", to = " " },
  { from = "ok.sh" },
  { from = "", to = "{{ nam }}" },
]"#,
        ),
        &[
            "4:12 `none` can't be read: No such file or directory (os error 2)",
            "5:24 this is empty",
            "6:3 `to` is missing here",
            "7:12 this is empty",
            "7:25 `nam` is undefined (did you mean `name`?)",
        ],
    );
    refuses(&group(r#"upload = { from = "ok.sh", to = "x" }"#), &["3:10 expected a list, found a table"]);
    refuses(
        &group(
            r#"upload = [
  { from = "sub", to = "x", template = true },
  { from = "ok.sh", to = "x", exclude = "*.o" },
  { from = "sub", to = "x", exclude = [] },
  { from = "sub", to = "x", exclude = ["!keep", "a[", "../x"] },
  { from = "ok.sh", to = "x", template = "true" },
]"#,
        ),
        &[
            "4:12 `sub` is a directory, and a template is a file (upload the files in it that are templates one by one)",
            "5:41 `exclude` is for directories, and `ok.sh` is a file",
            "7:40 `!keep` is no pattern of files: nothing is let in again by `!`",
            "7:49 `a[` is no pattern of files: unclosed character class; missing ']'",
            "7:55 `../x` is no pattern of files: it begins in the directory itself, without `.` or `..`",
            "8:42 expected true or false, found a string (write it without quotes: true)",
        ],
    );
}

#[test]
fn files_that_are_templates() {
    let dir = Dir::new();
    let path = dir.0.path().join("conf");
    let text = group("upload = [{ from = 'conf', to = 'etc/', template = true }]\nenv = { A = '{{ nam }}' }");
    let problems = |content: &[u8]| {
        fs::write(&path, content).unwrap();
        dir.problems(&text, &[])
    };
    let of_env = "4:17 `nam` is undefined (did you mean `name`?)";
    for (content, expected) in [
        (
            &b"bind {{ ip }}\nport {{ prot }} {{ index + x }}\r\n"[..],
            &[
                "conf:2:9 `prot` is undefined (set-up knows only what is the machine's own: name, group, index, ip, \
                 public_ip, private_ip, run_id)",
                "conf:2:28 `x` is undefined (set-up knows only what is the machine's own: name, group, index, ip, \
                 public_ip, private_ip, run_id)",
                of_env,
            ][..],
        ),
        (
            b"a\n{{ ip",
            &[
                "conf:2:4 not a template: unexpected end of input, expected end of variable block (to write a literal \
                 `{{`, write `{{ '{{' }}`)",
                of_env,
            ],
        ),
        (
            b"a\n\xe4\xff {{ ip }}\n",
            &[
                "conf:2:1 this file isn't UTF-8 from here on (a template is a text; without `template`, any file is \
                 uploaded as it is)",
                of_env,
            ],
        ),
        (
            b"ab\0",
            &[
                "conf:1:3 this file holds a NUL character, which no text does (a template is a text; without `template`, \
                 any file is uploaded as it is)",
                of_env,
            ],
        ),
        (
            &vec![b'x'; (1 << 20) + 1],
            &[
                "3:20 `conf` is larger than 1024 KiB, which is too much for a template (without `template`, a file of \
                 any size is uploaded as it is)",
                of_env,
            ],
        ),
    ] {
        assert_eq!(problems(content), expected);
    }
    fs::write(&path, "port {{ prot }}").unwrap();
    let shown = dir.load(text.replace("nam }", "name }"), &[]).unwrap_err().to_string();
    for part in ["/conf:1:9\n", "1 | port {{ prot }}\n", "it is uploaded as ", "/x.toml:3:20 says"] {
        assert!(shown.contains(part), "no {part} in\n{shown}");
    }
    fs::remove_file(&path).unwrap();
    let prepared = text.replace("[group", "prepare = 'make'\n[group");
    assert_eq!(
        dir.problems(prepared.replace("nam }", "name }"), &[]),
        [
            "4:20 `conf` can't be read: No such file or directory (os error 2) (a template is there before `prepare` \
             runs, so that it can be checked)"
        ]
    );
}

#[test]
fn a_file_that_is_a_template_makes_its_group_depend_on_parameters() {
    let dir = Dir::new();
    fs::write(dir.0.path().join("conf"), "threads {{ threads }}\nname {{ name }} {{ seed }}\n").unwrap();
    let text = "name = 'x'\n[vars]\nseed = 7\n[matrix]\nthreads = [1, 2]\n[group.a]\nupload = [{ from = 'conf', to = 'c', \
                template = true }]\n";
    let experiment = dir.load(text, &[]).unwrap();
    assert_eq!((experiment.set_count(), experiment.notes()), (2, Vec::new()));
    let upload = &experiment.on_set(2).groups[0].upload[0];
    assert_eq!(
        upload.template.as_ref().unwrap().source(),
        "threads {{ threads }}\nname {{ name }} {{ seed }}\n"
    );
    fs::write(dir.0.path().join("conf"), "{{ ip }}\n\n{{ name }} {{ threads + 1 }}\n").unwrap();
    let problems = dir.problems(format!("{text}[compare]\nby = 'threads'\n"), &[]).join("\n");
    assert!(problems.contains("depends on `threads`, in line 3 of `conf`"), "{problems}");
}

#[test]
fn what_is_left_out_and_is_not_there_is_noted() {
    let dir = Dir::new();
    fs::create_dir_all(dir.0.path().join("sub/a/target")).unwrap();
    fs::write(dir.0.path().join("sub/a/target/x.o"), "").unwrap();
    let text = group("upload = [{ from = 'sub', to = 'x', exclude = ['target/', '*.o', '.git'] }]");
    let notes = |text: &str| dir.load(text, &[]).unwrap().notes().join("\n");
    let nothing = notes(&group("upload = [{ from = 'sub', to = 'x', exclude = '*' }]"));
    assert!(nothing.ends_with("sub: nothing is left to upload"), "{nothing}");
    assert_eq!(notes(&group("upload = [{ from = 'sub', to = 'x', exclude = [] }]")), "");
    let notes = notes(&text);
    let of = format!("`exclude` of {}: nothing there is", dir.0.path().join("sub").display());
    assert_eq!(notes, format!("{of} `*.o`\n{of} `.git`"), "what is left out isn't looked into");
}

#[test]
fn environments() {
    refuses(
        &group(
            r#"[group.server.env]
A = 5
B = true
"D-E" = "x"
TSUNAMI_IP = ""
F = { from_env = "NONE" }
G = { form_env = "TOKEN" }
H = ["x"]"#,
        ),
        &[
            r#"4:5 expected a string, found an integer (write it as a string: "5")"#,
            r#"5:5 expected a string, found a boolean (write it as a string: "true")"#,
            "6:1 `D-E` can't name a variable (use letters, digits and `_`, not beginning with a digit)",
            "7:1 variables that begin with `TSUNAMI_` are set by tsunami itself",
            "8:18 `NONE` is not set in the environment",
            "9:5 `from_env` is missing here",
            "9:7 unknown key `form_env` (did you mean `from_env`?)",
            "10:5 expected a string, found a list",
        ],
    );
}

#[test]
fn what_a_step_does() {
    refuses(
        &step(""),
        &["5:1 this step does nothing (give it a command to `run`, or to `start` in the background)"],
    );
    refuses(
        &step(
            r#"run = "a"
start = "b""#,
        ),
        &["8:1 a step has `run` or `start`, not both (make it two steps)"],
    );
    refuses(&step(r#"run = " ""#), &["7:7 this is empty"]);
    refuses(&step("run = 5"), &[r#"7:7 expected a string, found an integer (write it as a string: "5")"#]);
    refuses(
        &step(
            r#"run = "a"
ready = { port = 1 }"#,
        ),
        &["8:1 `ready` is not for `run` (it tells when something begun with `start` has come up)"],
    );
    refuses(
        &step(
            r#"start = "a"
timeout = "5s""#,
        ),
        &[
            r#"8:1 `timeout` is not for `start`, which goes on until the trial ends (for the time it may take to come up, use `ready = { ..., timeout = "..." }`)"#,
        ],
    );
}

#[test]
fn readiness() {
    refuses(
        &step(
            r#"start = "a"
ready = { }"#,
        ),
        &["8:9 `ready` has one of `port`, `http` with its `port`, `command` and `log`"],
    );
    refuses(
        &step(
            r#"start = "a"
ready = { port = 1, log = "x" }"#,
        ),
        &["8:9 `ready` has one of `port`, `http` with its `port`, `command` and `log`"],
    );
    refuses(
        &step(
            r#"start = "a"
ready = { port = 70000 }"#,
        ),
        &["8:18 a port is a number from 1 to 65535"],
    );
    refuses(
        &step(
            r#"start = "a"
ready = { port = "1", timeout = "x" }"#,
        ),
        &[
            "8:18 expected a port number, found a string (write it without quotes: 1)",
            "8:33 `x` is not a duration: expected number at 0 (write it as `90s`, `45m` or `1h30m`)",
        ],
    );
    refuses(
        &step(
            r#"start = "a"
ready = 6379"#,
        ),
        &["8:9 expected a table such as `{ port = 6379 }`, found an integer"],
    );
    refuses(
        &step(
            r#"start = "a"
ready = { command = "", prot = 1 }"#,
        ),
        &["8:21 this is empty", "8:25 unknown key `prot` (did you mean `port`?)"],
    );
}

#[test]
fn where_a_step_runs() {
    refuses(
        r#"name = "x"
[group.server]
[group.client]
count = 3
[[step]]
run = "x"
[[step]]
on = "clent"
run = "x"
[[step]]
on = ["client-3", "server-1", "nobody-at-all", 4, "client-00"]
run = "x"
[[step]]
on = []
run = "x""#,
        &[
            "5:1 `on` is missing here",
            "8:6 there is no group or machine `clent` (did you mean `client`?)",
            "11:7 there is no machine `client-3` (`client` has the machines client-0 to client-2)",
            "11:19 there is no machine `server-1` (`server` has one machine, server-0)",
            "11:31 there is no group or machine `nobody-at-all` (known here: server, client, all, server-0, client-0, client-1, client-2)",
            r#"11:48 expected a group, a machine, a list of them, or "all", found an integer"#,
            "11:51 there is no machine `client-00` (`client` has the machines client-0 to client-2)",
            r#"14:6 this names no machine ("all" is all of them)"#,
        ],
    );
}

#[test]
fn step_names() {
    refuses(
        r#"name = "x"
[group.server]
[group.client]
count = 3
[[step]]
on = "all"
run = "x"
[[step]]
name = "1"
on = "all"
run = "x"
[[step]]
name = "a b"
on = "all"
run = "x""#,
        &[
            "9:8 step 2 has the name of step 1, `1`",
            "13:8 `a b` can't be a name (use a letter or digit, then letters, digits, `.`, `_` and `-`)",
        ],
    );
}

#[test]
fn collected_patterns() {
    refuses(
        &step(
            r#"run = "a"
collect = [
  "", "?", "/etc/x", "../x", "a/../x?", "{{ trail }}", 3, "{{ '/' }}x",
]"#,
        ),
        &[
            "9:3 this is empty",
            "9:7 this is empty",
            "9:12 this isn't relative to the working directory",
            "9:22 this leaves the working directory",
            "9:30 this leaves the working directory",
            "9:45 `trail` is undefined (did you mean `trial`?)",
            r#"9:56 expected a string, found an integer (write it as a string: "3")"#,
            r#"9:59 this isn't relative to the working directory, once rendered for `client-0`: "/x""#,
        ],
    );
    refuses(
        &step(
            r#"run = "a"
collect = "x"
cwd = """#,
        ),
        &["8:11 expected a list, found a string (write it in brackets: [\"x\"])", "9:7 this is empty"],
    );
}

#[test]
fn undefined_names() {
    refuses(
        &step(
            r#"run = "{{ sever.ip }} {{ client[7].ip }} {{ client[index + 1].ip }} {{ ip }} {{ nope | q }}""#,
        ),
        &[
            "7:11 `sever` is undefined (did you mean `server`?)",
            "7:26 `client[7]` doesn't exist (`client` has 3 machines, counted from 0)",
            "7:45 `client[3]` doesn't exist (`client` has 3 machines, counted from 0)",
            "7:88 `nope` is undefined (known here: name, group, index, ip, public_ip, private_ip, run_id, trial, client, server)",
        ],
    );
    refuses(
        &step(
            "run = '''
first
  second {{ server.ipp }}'''",
        ),
        &["9:13 a machine has no `ipp` (did you mean `ip`?)"],
    );
    refuses(&step(r#"run = "a\tb {{ nam }}""#), &["7:7 `nam` is undefined (did you mean `name`?)"]);
    refuses(
        &step(r#"run = "ünïcödé {{ sever.ip }}""#),
        &["7:19 `sever` is undefined (did you mean `server`?)"],
    );
}

#[test]
fn setup_knows_less_than_steps() {
    refuses(
        &group(r#"setup = "{{ server.ip }} {{ trial }} {{ indx }} {{ run_id }}""#),
        &[
            "3:13 `server` is undefined (set-up knows only what is the machine's own: name, group, index, ip, public_ip, private_ip, run_id)",
            "3:29 `trial` is undefined (set-up knows only what is the machine's own: name, group, index, ip, public_ip, private_ip, run_id)",
            "3:41 `indx` is undefined (did you mean `index`?)",
        ],
    );
}

#[test]
fn what_is_no_template() {
    refuses(
        &step(r#"run = "docker ps --format {{.Names}}""#),
        &["7:29 not a template: unexpected `.` (to write a literal `{{`, write `{{ '{{' }}`)"],
    );
    refuses(
        &step(r#"run = "docker ps --format {{ Names }}""#),
        &[
            "7:30 `Names` is undefined (known here: name, group, index, ip, public_ip, private_ip, run_id, trial, client, server)",
        ],
    );
    refuses(
        &step(r#"run = "{{ ip""#),
        &[
            "7:11 not a template: unexpected end of input, expected end of variable block (to write a literal `{{`, write `{{ '{{' }}`)",
        ],
    );
    refuses(
        &step(r#"run = "{{ }}""#),
        &[
            "7:11 not a template: unexpected end of variable block (to write a literal `{{`, write `{{ '{{' }}`)",
        ],
    );
}

#[test]
fn what_is_no_text() {
    refuses(
        &step(
            "run = '''
{{ client.ip }}
{{ client }}
{{ server }}
{{ client[0] | q }}
{{ client | join(' ') }}
{{ client | map(attribute='ipp') | join(',') }}
{{ client | map(attribute='ip') }}
{{ ip | shout }}
{{ shout(ip) }}
{{ 1 / 0 }}
'''",
        ),
        &[
            "8:4 `client` is 3 machines (write `client[0].ip` for one, `client | map(attribute='ip') | join(',')` for all)",
            "9:4 `client` is 3 machines (write `client[0].ip` for one, `client | map(attribute='ip') | join(',')` for all)",
            "10:4 `server` is a machine, not text (write `server.ip`, or another of its facts)",
            "11:16 `client-0` is a machine, not text (write its `.ip`, or another of its facts)",
            "12:13 `client-0` is a machine, not text (write its `.ip`, or another of its facts)",
            "13:36 a machine has no `ipp` (did you mean `ip`?)",
            "14:4 a list is no text (put it together with `| join(' ')`)",
            "15:9 the filter `shout` is unknown (known here: q, join, map, first, last, length, count, default, d, sort, unique, \
             reverse, list, select, reject, selectattr, rejectattr, min, max, upper, lower, trim, replace, split, \
             string, int, float, abs, round)",
            "16:4 shout is unknown (there are no functions here; a filter stands behind its value, as `ip | q`)",
            "17:4 unable to calculate 1 / 0",
        ],
    );
}

#[test]
fn what_renders_to_nothing() {
    refuses(&step(r#"run = "{{ '' }}""#), &[r#"7:7 this is empty, once rendered for `client-0`: """#]);
    refuses(&step(r#"run = "a\u0000b""#), &["7:7 this holds a NUL character, which no command can be given"]);
    refuses(
        &step(r#"run = "{{ '\\x00' }}""#),
        &[
            r#"7:7 this holds a NUL character, which no command can be given, once rendered for `client-0`: "\0""#,
        ],
    );
}
