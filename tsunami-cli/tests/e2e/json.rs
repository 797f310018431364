//! What `--json` says, beside what the guide says of it.

use std::collections::BTreeSet;

use rustix::process::Signal;
use serde_json::Value;

use crate::world::{Ended, World};

const DOCUMENTED: &str = include_str!("../../../docs/guide/src/json.md");

/// The lines of JSON below a command's heading.
fn documented(command: &str) -> Vec<Value> {
    let heading = format!("## `{command}`\n");
    let (_, rest) = DOCUMENTED.split_once(&heading).unwrap_or_else(|| panic!("no {heading}"));
    let (_, rest) = rest.split_once("```json\n").unwrap();
    let (lines, _) = rest.split_once("```").unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// An object has the fields that the table below a command's heading has, and `schema`.
#[track_caller]
pub(crate) fn assert_fields(command: &str, said: &Value) {
    let (_, rest) = DOCUMENTED.split_once(&format!("## `{command}`\n")).unwrap();
    let (section, _) = rest.split_once("\n## ").unwrap_or((rest, ""));
    let heads = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let known: BTreeSet<&str> =
        heads.flat_map(|head| head.split(", ")).map(|name| name.trim_matches('`')).collect();
    let said: BTreeSet<&str> = said.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(said, known.into_iter().chain(["schema"]).collect());
}

/// Both have the same keys, at every depth; lists and tables of machines count by their first element.
#[track_caller]
fn assert_alike(said: &Value, documented: &Value) {
    match (said, documented) {
        (Value::Object(said), Value::Object(known)) => {
            let keys = |object: &serde_json::Map<String, Value>| object.keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(said), keys(known), "{said:?}");
            known.iter().for_each(|(key, value)| assert_alike(&said[key], value));
        }
        (Value::Array(said), Value::Array(known)) => {
            said.first().zip(known.first()).into_iter().for_each(|(said, known)| assert_alike(said, known));
        }
        _ => {}
    }
}

#[track_caller]
fn check(command: &str, ended: &Ended) -> Vec<Value> {
    let said: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let known = documented(command);
    assert!(!said.is_empty() && !known.is_empty());
    for line in &said {
        assert!(line["schema"].is_u64() || line["event"].is_string(), "{line}");
        assert_alike(line, &known[0]);
    }
    said
}

#[test]
fn what_programs_are_told_is_documented() {
    let world = World::new();
    let file = world.write("x.toml", "name = 'x'\n[group.a]\n");
    let up = world.tsunami([&"up".into(), &"--json".into(), &file]);
    let events: Vec<Value> =
        up.assert_status(0).stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for known in documented("tsunami run --json`, `tsunami up --json") {
        let said = events.iter().find(|event| event["event"] == known["event"]);
        assert_alike(said.unwrap_or_else(|| panic!("nothing is said like {known}")), &known);
    }
    let run = events[1]["run"].as_str().unwrap();

    let plan = world.tsunami([&"plan".into(), &file, &"--json".into()]);
    assert_fields("tsunami plan FILE --json", &serde_json::from_str(&plan.assert_status(0).stdout).unwrap());
    let listed = world.tsunami(["ls", "--json"]);
    assert_fields("tsunami ls --json", &serde_json::from_str(&listed.assert_status(0).stdout).unwrap());

    let other = world.write("y.toml", "name = 'y'\n[group.a]\ncount = 2\n[group.b]\n");
    let refused = world.tsunami([&"run".into(), &other, &"--on".into(), &"x".into()]);
    refused.assert_status(2).assert_says(&["y needs 2 × a", "has 1 × a"]);
    assert!(!world.path("work/results/y").exists(), "nothing was begun");
    let extended = world.tsunami(["extend", run, "5m", "--json"]);
    check("tsunami extend --json", extended.assert_status(0));
    let inventory = world.tsunami(["inventory", run, "--json"]);
    check("tsunami inventory --json", inventory.assert_status(0));

    let slow = world.write("z.toml", "name = 'z'\n[group.a]\n[[step]]\non = 'a'\nrun = 'sleep 1000'\n");
    let mut going = world.start(&slow);
    going.wait_for(&["command_started", "sleep 1000"]);
    going.signal(Signal::KILL);
    going.end();
    let removed = world.tsunami(["gc", "--mine", "--json"]);
    let rows = check("tsunami gc --json", removed.assert_status(0));
    assert_eq!(rows[0]["outcome"], "removed");

    let down = world.tsunami(["down", "nobody", run, "x", "--json"]);
    let rows = check("tsunami down --json", down.assert_status(2));
    down.assert_says(&["no run `nobody`", "everything is gone"]);
    let outcomes: Vec<_> = rows.iter().map(|row| row["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["unknown", "gone"]);
    world.assert_clean();
}
