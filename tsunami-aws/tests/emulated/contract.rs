//! The emulator is what the other tests take EC2 to be, by the tests that a real account can be asked as well.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use tsunami_aws::UserData;

use crate::emulator::Emulator;

fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator")
}

/// Has Python's tests of a file ask a new emulator.
fn passes(file: &str) {
    let emulator = Emulator::without_machines();
    emulator.configure(serde_json::json!({"pending": 0.2, "shutting_down": 0.2, "eni_detach": 0.1}));
    let mut tests = Command::new(Emulator::python());
    tests.arg("-B").arg(home().join(file)).envs(emulator.environment());
    tests.env("TSUNAMI_EMULATOR", emulator.endpoint()).env("AWS_DEFAULT_REGION", "eu-west-1");
    tests.env_remove("AWS_PROFILE").env_remove("AWS_SESSION_TOKEN");
    let tested = tests.output().unwrap();
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stderr));
}

#[test]
fn the_emulator_is_what_the_other_tests_take_ec2_to_be() {
    passes("contract.py");
}

#[test]
fn images_are_asked_with_the_user_data_of_a_run() {
    let own = std::fs::read_to_string(home().join("image.sh")).unwrap();
    let life = Duration::from_secs(420);
    let ours = UserData::new(UNIX_EPOCH + Duration::from_secs(1_800_000_000), life, "KEY\n").own(&own);
    let mut python = Command::new(Emulator::python());
    python.args([
        "-B",
        "-c",
        "import contract; print(contract.user_data(1800000000, 420, 'KEY\\n'), end='')",
    ]);
    let theirs = python.current_dir(home()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&theirs.stdout), ours.compose().unwrap(), "{theirs:?}");
}

#[test]
fn the_emulator_fails_as_it_is_told() {
    passes("test_emulator.py");
}

#[test]
fn every_assumption_is_asked_for_and_something_rests_on_it() {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let table = read(&home().join("ASSUMPTIONS.md"));
    let contract = read(&home().join("contract.py"));
    let tests = |directory: &str| std::fs::read_dir(home().with_file_name(directory)).unwrap();
    let of_the_program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tsunami-cli/tests/aws");
    let files = tests("emulated").chain(tests("boot")).chain(std::fs::read_dir(of_the_program).unwrap());
    let files = files.map(|file| file.unwrap().path()).filter(|file| file.is_file());
    let ours: String = files.map(|file| read(&file)).collect();
    let conformance =
        read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tsunami-core/src/testing/conformance.rs"));
    let mut asked = Vec::new();
    let (rows, images) = table.split_once("## Images").unwrap();
    for row in rows.lines().filter(|line| line.starts_with("| ") && line.contains("https://")) {
        let names: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        let [question, rests] = names[..] else { panic!("not two tests: {row}") };
        assert!(contract.contains(&format!("def {question}(")), "{question} is not in contract.py");
        let test = format!("fn {rests}(");
        assert!(ours.contains(&test) || conformance.contains(rests), "{rests} is no test");
        asked.push(question);
    }
    // Each alias whose machines are asked is among the images.
    let listed = contract.split_once("IMAGES = {").unwrap().1.split_once("\n}").unwrap().0;
    let asked_of = |line: &str| line.strip_prefix("    \"")?.split('"').next().map(str::to_owned);
    let aliases: Vec<String> = listed.lines().filter_map(asked_of).collect();
    assert!(aliases.len() > 3, "{aliases:?}");
    for alias in aliases {
        assert!(images.contains(&format!("\n| `{alias}` | ")), "{alias} is in no row");
    }
    for question in contract.split("    def ").skip(1).filter_map(|rest| rest.split('(').next()) {
        assert!(!question.starts_with("test_") || asked.contains(&question), "{question} is in no row");
    }
}
