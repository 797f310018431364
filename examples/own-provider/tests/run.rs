//! The provider in use: from an experiment file, by a `tsunami` of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const TSUNAMI: &str = env!("CARGO_BIN_EXE_own-tsunami");

/// The program with all that it writes in a directory of the test's.
fn tsunami(directory: &Path) -> Command {
    let mut tsunami = Command::new(TSUNAMI);
    tsunami.current_dir(directory).env("XDG_STATE_HOME", directory).env_remove("XDG_RUNTIME_DIR");
    tsunami
}

/// The guards and the machines that live, by the directory that they have in their arguments.
fn alive(directory: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let arguments = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let arguments = arguments.map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "));
    let machines = directory.join("tsunami/runs").display().to_string();
    arguments.filter(|line| line.contains(&machines) && line.contains("/namespaces/")).collect()
}

#[test]
fn an_experiment_file_runs_on_machines_of_ones_own() {
    let directory = tempfile::tempdir().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiment.toml");
    let ended = tsunami(directory.path()).arg("run").arg(file).args(["-o", "results"]).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    for node in ["node-0", "node-1"] {
        let collected = directory.path().join("results/trials/1/look").join(node).join("processes.txt");
        let processes = fs::read_to_string(collected).unwrap();
        assert!(processes.lines().next().unwrap().trim_start().starts_with("1 "), "{processes}");
    }
    assert_eq!(alive(directory.path()), Vec::<String>::new());
}

#[test]
fn machines_end_at_their_deadline_though_the_program_was_killed() {
    let directory = tempfile::tempdir().unwrap();
    let text = "name = 'x'\nprovider = 'namespaces'\nlifetime = '20s'\n[group.n]\ncount = 2\n\
                [[step]]\non = 'n'\nrun = 'sleep 600'\n";
    fs::write(directory.path().join("x.toml"), text).unwrap();
    let mut tsunami = tsunami(directory.path());
    tsunami.args(["run", "x.toml"]).stdout(Stdio::null()).stderr(Stdio::null());
    let (begun, mut running) = (Instant::now(), tsunami.spawn().unwrap());
    let wait_until = |what: &str, done: &dyn Fn(&[String]) -> bool| {
        while !done(&alive(directory.path())) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {:?}", alive(directory.path()));
            sleep(Duration::from_millis(100));
        }
    };
    wait_until("the machines are there", &|alive| alive.len() >= 4);
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(!alive(directory.path()).is_empty(), "nobody told them to end");
    wait_until("the machines are gone", &<[String]>::is_empty);
    assert!(begun.elapsed() > Duration::from_secs(15), "they ended before their time");
}
