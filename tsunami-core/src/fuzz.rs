//! What others write, at random: nothing of it makes the reader or an observer panic, and nothing that a terminal acts
//! on comes out.
//!
//! A few hundred cases each; `TSUNAMI_FUZZ_CASES` asks for another number.

mod hostile;

use std::fs;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::Addresses;
use crate::experiment::tests::registry;
use crate::experiment::{Loader, Scope, Template};
use crate::limits::TEMPLATE_OUTPUT_LIMIT;
use crate::results::json;
use crate::text::{mark, sanitize, sanitize_bytes};
use crate::trial::{MachineContext, Machines};
use hostile::{assert_clean, bytes, changed, changes, config, text};

const EXPERIMENT: &str = r#"name = "x"
lifetime = "45m"
budget = 5.0
prepare = ["true"]
[vars]
v = 1
[matrix]
c = [1, 3]
k = ["a", true, 0.5]
[trials]
repeat = 4
warmup = 1
order = "random"
[compare]
by = "k"
margin = "3%"
fail_if = ["rps < 0.95"]
[wire]
connect_timeout = "2m"
[group.server]
setup = ["sudo true", "echo {{ name }}"]
[group.client]
count = "{{ c }}"
env = { A = "{{ ip | q }}", TOKEN = { from_env = "TOKEN" } }
[[step]]
on = "server"
start = "serve {{ ip }}"
ready = { port = 6379, timeout = "30s" }
[[step]]
name = "load"
on = ["client-0", "client"]
run = """
load {{ server.ip }} {{ client | map(attribute='ip') | join(',') }} {{ n }} {{ k }} {{ v + c }}
"""
timeout = "5m"
collect = ["out.csv", "core.*?"]
[step.metrics]
rps = { file = "out.csv", csv = "rps", where = { a = 1 }, across = "sum", better = "higher", unit = "1/s" }
p99 = { regex = 'p99=([0-9.]+)', reduce = "max", across = "max" }
tail = { hdr = "p99.9", across = "merge" }
deep = { json = "/a/0", across = "min" }
[[reset]]
on = "server"
run = "flush {{ k }}"
timeout = "5s"
"#;

#[rustfmt::skip]
const TOML: &[&str] = &[
    "\n", "=", "[", "]", "[[", "]]", "{", "}", "\"", "'", "\"\"\"", "'''", "\\u", "\\", "#", ".", ",",
    "count = 99999", "[matrix]\n", "[vars]\n", "x = [1, 2]\n", "{{ c }}", "(", ")", "%", "<", "9223372036854775807", "[group.a]\n", "[[step]]\n", "on = 'all'\n", "-1", "1e999", "0x", "nan", "1979-05-27",
    "{{", "}}", "name", "é",
];

#[rustfmt::skip]
const EXPRESSION: &[&str] = &[
    "{{", "}}", "{{ ", " }}", "'", "\"", "(", ")", "[", "]", "{", "}", " ", "|", ",", ":", "=", ".", "\\",
    "q", "join", "map", "(attribute='ip')", "default", "replace('', 'ab')", "int", "length", "sort",
    "client", "server", ".ip", "[0]", "[1:]", "index", "name", "nope", "*", "**", "+", "~", "-", "/", "//",
    "%", "<", "==", " in ", " is ", " not ", " and ", " if ", " else ", "defined", "none", "1",
    "99999999999999999999", "0.5", "1e308", "é", "\n", "\u{9b}", "{%", "{#",
];

fn facts(group: &str, index: u32) -> MachineContext {
    let ip = format!("10.0.0.{index}");
    let addresses = Addresses { public: None, private: Some(ip.clone()), network: Some("n".to_owned()) };
    let (name, run_id) = (format!("{group}-{index}"), "r".to_owned());
    MachineContext { name, group: group.to_owned(), index, ip: Some(ip), addresses, run_id }
}

#[test]
fn what_is_changed_is_right_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.toml");
    fs::write(&path, EXPERIMENT).unwrap();
    let loader = Loader::new().registry(&registry()).set("n", "1").lookup_env(&|_| Some("s3cret".into()));
    assert_eq!(loader.load(&path).unwrap().set_count(), 2);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_that_a_terminal_acts_on_is_left(text in text(), bytes in bytes()) {
        for clean in [sanitize(&text).into_owned(), sanitize_bytes(&bytes), mark(&text)] {
            assert_clean(&clean);
            assert!(!clean.contains('\n'), "{clean:?}");
            assert_eq!(sanitize(&clean), clean, "what is clean stays as it is");
        }
        assert_eq!(mark(&text).chars().count(), text.chars().count());
    }

    #[test]
    fn json_is_clean_and_reads_back(text in text(), other in any::<String>()) {
        let value = serde_json::json!([text, { other: null }]);
        let written = json(&value).unwrap();
        assert_clean(&written);
        assert!(!written.contains(['\n', '\t']));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&written).unwrap(), value);
    }

    #[test]
    fn any_experiment_file_is_read_or_refused(changes in changes(TOML), value in text()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        fs::write(&path, changed(EXPERIMENT, &changes)).unwrap();
        let loader = Loader::new().registry(&registry()).set("n", value).lookup_env(&|_| Some("s3cret".into()));
        if let Err(problems) = loader.load(&path) {
            let shown = problems.render(false);
            assert_clean(&shown);
            assert!(!shown.is_empty() && shown.len() < 64 << 10, "{} bytes", shown.len());
            assert!(problems.render(true).lines().count() >= shown.lines().count());
        }
    }

    #[test]
    fn any_text_is_a_template_or_refused(pieces in vec(prop_oneof![9 => select(EXPRESSION).prop_map(str::to_owned), 1 => any::<String>()], 0..30)) {
        let machines = Machines::from(vec![facts("server", 0), facts("client", 0), facts("client", 1)]);
        let scope = Scope::step(&machines.all()[1], &machines, "1", crate::trial::Parameters::new());
        for source in [pieces.concat(), format!("{{{{ {} }}}}", pieces.concat())] {
            match Template::new(source.as_str()).and_then(|template| template.render(&scope)) {
                Ok(text) => assert!(text.len() <= TEMPLATE_OUTPUT_LIMIT),
                Err(error) => assert!(error.range.is_none_or(|range| source.get(range).is_some())),
            }
        }
    }
}
