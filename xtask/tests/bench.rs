//! `cargo xtask bench`, on two hosts and without anything that is built for it.

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("bench").args(arguments).output().unwrap()
}

mod as_root {
    use super::*;

    #[test]
    fn hosts_are_started_set_up_looked_at_and_gone() {
        let directory = tempfile::tempdir().unwrap();
        let json = directory.path().join("runs.jsonl");
        let chosen =
            ["--workload", "W1", "--machines", "2", "--repetitions", "1", "--contenders", "one-script"];
        let done = bench(&[&chosen[..], &["--memory", "--json", json.to_str().unwrap()]].concat());
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}");
        let table = String::from_utf8(done.stdout).unwrap();
        assert!(
            table.lines().any(|line| line.starts_with("| one-script |") && line.ends_with("| 2/2 |")),
            "{table}"
        );
        let line: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
        let run = &line["runs"][0];
        assert_eq!(
            (&run["connections"], &run["sessions"], &run["finished"]),
            (&2.into(), &2.into(), &2.into())
        );
        for counted in [&run["controller_cpu"], &run["server_cpu"], &line["peak_memory"]] {
            assert!(counted.as_f64().is_some_and(|it| it > 0.0), "{line}");
        }
        assert!(!std::path::Path::new("/run/tsunami-bench").exists());
    }
}

#[test]
fn a_contender_that_nobody_knows_is_named() {
    let refused = bench(&["--contenders", "rsh"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("`rsh`"), "{said}");
}
