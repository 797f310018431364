//! Experiment files run by a program, on the fake cloud and paused time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tsunami_core::experiment::{Experiment, ExperimentRun, Loader, RunOptions};
use tsunami_core::testing::{FakeCloud, Reply};
use tsunami_core::{Error, Observer, Origin, Outcome, Recorder, RunStore, Stream, Tsunami};

const FILE: &str = r#"name = "x"
[group.server]
setup = "install"
[group.client]
count = 2
env = { TOKEN = { from_env = "TOKEN" } }
[[step]]
name = "serve"
on = "server"
start = "serve {{ ip }}"
ready = { log = "listening" }
[[step]]
name = "load"
on = "client"
run = "load {{ server.ip }} {{ n }}"
collect = ["out.csv"]
"#;

fn cloud() -> FakeCloud {
    let cloud = FakeCloud::new(1);
    cloud.on_command(|machine, command| match command.to_string() {
        line if line.starts_with("serve") => {
            Some(Reply::stdout("listening\n").after(Duration::from_secs(1_000_000)))
        }
        line if line.starts_with("load") => {
            Some(Reply::stdout("the s3cret-value is out\n").file("out.csv", format!("{machine} {line}")))
        }
        _ => None,
    });
    cloud
}

fn tsunami(cloud: &FakeCloud, directory: &Path) -> Tsunami {
    Tsunami::new(Arc::new(cloud.clone()), Arc::new(cloud.clone())).state(RunStore::at(directory.join("runs")))
}

fn load(directory: &Path, text: &str) -> Result<Experiment, Error> {
    let file = directory.join("x.toml");
    std::fs::write(&file, text)?;
    Ok(Loader::new().set("n", "7").lookup_env(&|_| Some("s3cret-value".into())).load(file)?)
}

fn run_json(results: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(results.join("run.json")).unwrap()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_program_runs_a_file_and_has_the_report_and_the_results() {
    let (cloud, directory) = (cloud(), tempfile::tempdir().unwrap());
    let (results, events): (PathBuf, Arc<Recorder>) = (directory.path().join("results"), Arc::default());
    let experiment = load(directory.path(), FILE).unwrap();
    let options = RunOptions::default().results(&results).observer(events.clone() as Arc<dyn Observer>);
    let report = experiment.run(&tsunami(&cloud, directory.path()), options).await.unwrap();
    assert!(cloud.is_empty());
    assert_eq!((report.ok, report.machines.len()), (Some(true), 3));
    assert!(report.commands.iter().any(|command| command.stage == "load"));
    let collected = std::fs::read_to_string(results.join("trials/1/load/client-1/out.csv")).unwrap();
    assert!(collected.starts_with("client-1 load ") && collected.ends_with(" 7"), "{collected}");
    let log = std::fs::read_to_string(results.join("logs/client-0/load.log")).unwrap();
    assert!(log.contains("the [secret] is out"), "{log}");
    assert!(!format!("{:?}", events.events()).contains("s3cret"));
    assert_eq!(
        (&run_json(&results)["outcome"], &run_json(&results)["exit_status"]),
        (&"success".into(), &0.into())
    );
}

#[tokio::test(start_paused = true)]
async fn a_failed_step_is_the_programs_error_and_is_written_down() {
    let (cloud, directory) = (cloud(), tempfile::tempdir().unwrap());
    let results = directory.path().join("results");
    let experiment = load(directory.path(), &FILE.replace("run = \"load", "run = \"exit 3; load")).unwrap();
    let options = RunOptions::default().results(&results);
    let error = experiment.run(&tsunami(&cloud, directory.path()), options).await.unwrap_err();
    assert_eq!(error.place().map(|(_, stage)| stage), Some("load"), "{error:?}");
    assert!(cloud.is_empty());
    assert_eq!(
        (&run_json(&results)["outcome"], &run_json(&results)["exit_status"]),
        (&"failed".into(), &1.into())
    );
}

#[tokio::test(start_paused = true)]
async fn a_file_with_mistakes_is_an_error_that_shows_them() {
    let directory = tempfile::tempdir().unwrap();
    let shown = format!("{:?}", load(directory.path(), "name = \"x\"\ngroop = 1\n").unwrap_err());
    assert!(shown.contains("unknown key `groop`") && shown.contains("did you mean `group`?"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn machines_that_keep_what_steps_will_collect_are_all_told() {
    let (cloud, directory) = (FakeCloud::new(1), tempfile::tempdir().unwrap());
    cloud.on_command(|machine, command| {
        // The second in order fails first.
        let after = Duration::from_secs(if machine == "client-0" { 9 } else { 1 });
        let is_clean = command.to_string().contains("\"$TSUNAMI_SCRIPT\" clean");
        is_clean.then(|| Reply::status(1).stderr("it is kept\n").after(after))
    });
    let experiment = load(directory.path(), FILE).unwrap();
    let options = RunOptions::default().results(directory.path().join("results"));
    let error = experiment.run(&tsunami(&cloud, directory.path()), options).await.unwrap_err();
    let Error::Several(failures) = error else { panic!("one was told: {error:?}") };
    let all = std::iter::once(&*failures.first).chain(&failures.others);
    let machines: Vec<_> = all.map(|error| error.place().map(|(machine, _)| machine)).collect();
    assert_eq!(machines, [Some("client-1"), Some("client-0")]);
}

#[tokio::test]
async fn whoever_waits_for_a_slow_disk_at_the_end_holds_up_no_other_task() {
    let (cloud, directory) = (FakeCloud::new(1), tempfile::tempdir().unwrap());
    let results = directory.path().join("results");
    let experiment =
        Arc::new(load(directory.path(), "name = \"x\"\n[group.node]\nsetup = \"{{ n }}\"\n").unwrap());
    let options = RunOptions::default().results(&results);
    let run = ExperimentRun::prepare(experiment, tsunami(&cloud, directory.path()), options).await.unwrap();
    // A disk that takes nothing until somebody else has had a turn.
    let log = run.results().logs().join("node-0/setup.log");
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&log).status().unwrap().success());
    let (turn, turns) = std::sync::mpsc::channel();
    let disk = std::thread::spawn(move || {
        let had_a_turn = turns.recv_timeout(Duration::from_secs(10)).is_ok();
        (had_a_turn, std::fs::File::open(log).unwrap())
    });
    for observer in run.results().observers() {
        observer.output(&Origin::new("node-0", "setup"), Stream::Stdout, b"x").unwrap();
    }
    let (unwritten, _) = tokio::join!(run.unwritten(), async { turn.send(()) });
    assert!(unwritten.is_none(), "{unwritten:?}");
    assert!(disk.join().unwrap().0);
    assert!(run.finish(Outcome::Success).await.is_ok() && results.join("run.json").exists());
}
