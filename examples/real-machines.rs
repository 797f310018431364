//! The examples on real local machines; and what a panic in a program's own code leaves behind: nothing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tsunami_core::{RunStore, Tsunami};
use tsunami_examples::{measure, plan};
use tsunami_ssh::{LocalProvider, SshConnector};

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/experiments/demo");

fn tsunami(root: &Path) -> Tsunami {
    let state = RunStore::at(root.join("runs"));
    let provider = LocalProvider::new(state.root());
    Tsunami::new(Arc::new(provider), Arc::new(SshConnector::default())).state(state)
}

/// No process has to do with the directory any more, and no run is recorded in it.
fn assert_clean(root: &Path) {
    assert_eq!(RunStore::at(root.join("runs")).runs().unwrap(), []);
    let name = root.as_os_str().as_encoded_bytes();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            let content = std::fs::read(process.path().join(file)).unwrap_or_default();
            assert!(!content.windows(name.len()).any(|window| window == name), "{:?}", process.path());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_experiment_runs_on_local_machines() {
    let root = tempfile::tempdir().unwrap();
    let measurements = tsunami(root.path()).run(plan(PROGRAMS, 3), measure).await.unwrap();
    assert_eq!(measurements.len(), 3);
    assert!(measurements.iter().all(|measurement| measurement.requests_per_second > 0.0));
    assert_clean(root.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_leaves_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let tsunami = tsunami(root.path());
    let run = tokio::spawn(async move {
        tsunami
            .run(plan(PROGRAMS, 1), |cluster| async move {
                let _background =
                    cluster.hosts()[0].command(tsunami_core::Command::shell("sleep 1000")).start();
                cluster.hosts()[1].run("true").await?;
                if true {
                    panic!("a bug in the experiment");
                }
                Ok(())
            })
            .await
    });
    let panic = run.await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"a bug in the experiment"));
    assert_clean(root.path());
}

/// An example, which cargo has built beside this test.
fn example(name: &str, root: &Path) -> Command {
    let test = std::env::current_exe().unwrap();
    let mut program = Command::new(test.ancestors().nth(2).unwrap().join("examples").join(name));
    program.current_dir(root).env("XDG_STATE_HOME", root).stdout(Stdio::piped()).stderr(Stdio::piped());
    program
}

#[test]
fn the_programs_run_as_they_stand() {
    let root = tempfile::tempdir().unwrap();
    let programs =
        [("smallest", "node-2: hello from"), ("server-and-clients", "client-2: "), ("sweep", "md5sum")];
    let programs = programs.map(|(name, says)| (says, example(name, root.path()).spawn().unwrap()));
    for (says, program) in programs {
        let ran = program.wait_with_output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success() && stdout.contains(says), "{stdout}{stderr}");
    }
    assert_clean(root.path());
}

#[test]
fn a_program_uses_commands_and_files() {
    let root = tempfile::tempdir().unwrap();
    let ran = example("commands", root.path()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(lines[0].starts_with("node-0 and 2 others have "), "{stdout}");
    let expected = ["$HOME is not expanded", "hello", "node-0: step 1", "node-0: step 2", "node-0: step 3"];
    assert_eq!((&lines[1..6], lines[6]), (&expected[..], "sorted: 4 30 100"), "{stdout}");
    assert!(lines[7].starts_with("ls: status 2: ") && lines[7].contains("conf/nothing"), "{stdout}");
    assert_clean(root.path());
}

#[test]
fn a_program_runs_a_file_and_gets_the_report() {
    let root = tempfile::tempdir().unwrap();
    let ran = example("run-a-file", root.path()).arg(format!("{PROGRAMS}/experiment.toml")).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{stderr}");
    assert_eq!(stdout.lines().filter(|line| line.contains("large: ")).count(), 3, "{stdout}");
    assert!(root.path().join("results/demo/latest/run.json").exists());
    assert_clean(root.path());
}
