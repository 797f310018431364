//! `cargo xtask aws-contract`, which asks nobody who was not named, and for nothing before somebody agreed.

use std::process::{Command, Output, Stdio};

use serde_json::json;

#[expect(dead_code, reason = "shared with the tests of the provider, which use more of it")]
#[path = "../../tsunami-aws/tests/emulator/harness.rs"]
mod emulator;

use emulator::Emulator;

/// The task, with nothing of AWS's in its environment but what the emulator needs.
fn aws_contract(emulator: &Emulator, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("aws-contract").args(arguments).stdin(Stdio::null());
    for name in ["AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"] {
        command.env_remove(name);
    }
    command.envs(emulator.environment()).env("TSUNAMI_EMULATOR", emulator.endpoint());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn it_says_what_it_costs_and_asks_before_it_asks_for_anything() {
    let emulator = Emulator::without_machines();
    let unnamed = aws_contract(&emulator, &["--yes", "--region", "eu-west-1"])
        .env_remove("AWS_ACCESS_KEY_ID")
        .output()
        .unwrap();
    assert!(!unnamed.status.success() && said(&unnamed).contains("AWS_PROFILE"), "{}", said(&unnamed));
    let nowhere = aws_contract(&emulator, &["--yes"]).output().unwrap();
    assert!(!nowhere.status.success() && said(&nowhere).contains("--region"), "{}", said(&nowhere));
    let unasked = aws_contract(&emulator, &["--region", "eu-west-1"]).output().unwrap();
    assert!(!unasked.status.success(), "{}", said(&unasked));
    for part in ["in eu-west-1", "a few cents", "`tsunami:contract`", "--yes"] {
        assert!(said(&unasked).contains(part), "no `{part}` in: {}", said(&unasked));
    }
    assert_eq!(emulator.calls().len(), 0);
}

#[test]
fn it_runs_the_tests_that_the_emulator_passes_and_leaves_nothing() {
    let emulator = Emulator::without_machines();
    emulator.configure(json!({"pending": 0.2, "shutting_down": 0.2, "eni_detach": 0.1}));
    let done = aws_contract(&emulator, &["--yes", "--region", "eu-west-1"]).output().unwrap();
    assert!(done.status.success(), "{}", said(&done));
    assert!(said(&done).contains("EC2 is what the tests take it to be"), "{}", said(&done));
    assert!(emulator.calls().len() > 50);
    let shuts_down = |instance: &serde_json::Value| instance["state"] == "shutting-down";
    assert!(emulator.living().iter().all(shuts_down), "{:?}", emulator.living());
}
