//! Experiment files run by a program, on the fake cloud and paused time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tsunami_core::experiment::{Experiment, ExperimentRun, Loader, RunOptions};
use tsunami_core::registry::{
    Backend, ConnectRequest, Form, GroupTable, Key, Machines, Registration, Registry, TableReader, Values,
};
use tsunami_core::testing::{Call, FakeCloud, MachineFault, Reply};
use tsunami_core::{
    Command, Connector, Download, Error, ErrorChain, EventKind, Exit, Machine, MachineSpec, Observer, Origin,
    Outcome, OutputSink, ProviderError, Recorder, RunId, RunRecord, RunStore, SequenceObserver, Session,
    SessionError, SessionErrorKind, Stream, Tsunami,
};

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

/// Whatever has been heard of it by then.
#[tokio::test(start_paused = true)]
async fn a_start_that_has_ended_when_the_steps_have_fails_the_trial() {
    for (exit, words) in [(0, "ended with status 0 before the trial did"), (3, "status 3")] {
        let (cloud, directory) = (FakeCloud::new(1), tempfile::tempdir().unwrap());
        cloud.on_command(move |_, command| match command.to_string().as_str() {
            "serve" => Some(Reply::status(exit).after(Duration::from_secs(10))),
            "load 7" => Some(Reply::stdout("").after(Duration::from_secs(10))),
            _ => None,
        });
        let text = "name = 'x'\n[group.a]\n[[step]]\non = 'a'\nstart = 'serve'\n[[step]]\non = 'a'\nrun = 'load {{ n }}'\n";
        let experiment = load(directory.path(), text).unwrap();
        let options = RunOptions::default().results(directory.path().join("results"));
        let error = experiment.run(&tsunami(&cloud, directory.path()), options).await.unwrap_err();
        let told = ErrorChain(&error).to_string();
        assert!(told.contains(words), "{told}");
        assert!(cloud.is_empty());
    }
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

const ROW: &str = r#"name = "row"
[group.node]
count = 2
[[step]]
name = "both"
on = "node"
run = "echo both"
[[step]]
name = "one"
on = "node-0"
run = "echo one {{ n }}"
timeout = "10s"
[[step]]
name = "two"
on = "node-0"
run = "sleep 3"
on_error = "continue"
[[step]]
name = "three"
on = ["node-0"]
run = "load"
collect = ["out.csv"]
[[step]]
name = "four"
on = "node-0"
run = "echo four"
[[step]]
name = "five"
on = "node-1"
run = "echo five"
"#;

/// Runs a file, and tells the story of its trial and what went over to its machines as a list. Without a result it was
/// given up after 40 minutes.
async fn story_so_far(
    cloud: &FakeCloud,
    text: &str,
) -> (Option<Result<(), Error>>, Vec<String>, Vec<Vec<String>>) {
    let directory = tempfile::tempdir().unwrap();
    let events = Arc::<Recorder>::default();
    let experiment = load(directory.path(), text).unwrap();
    let options = RunOptions::default().results(directory.path().join("results"));
    let options = options.observer(events.clone() as Arc<dyn Observer>);
    let tsunami = tsunami(cloud, directory.path());
    let ended = timeout(Duration::from_secs(2400), experiment.run(&tsunami, options)).await.ok();
    // What is given up is torn down in the background.
    sleep(Duration::from_secs(60)).await;
    assert!(cloud.is_empty());
    let told = |kind| match kind {
        EventKind::TrialFinished { ok, .. } => Some(format!("trial: {ok}")),
        EventKind::StepStarted { step, machines, .. } => Some(format!("{step} on {}", machines.join(" "))),
        EventKind::StepFinished { step, ok, took, .. } => Some(format!("{step}: {ok}, {} s", took.as_secs())),
        EventKind::CommandStarted { machine, stage, command, .. } => {
            Some(format!("{machine} {stage}: {command}"))
        }
        EventKind::CommandFinished { stage, exit, error, cancelled, .. } => {
            let end = exit.map(|exit| exit.to_string()).or(error).unwrap_or_default();
            Some(format!("{stage} ended: {end}{}", if cancelled { ", on purpose" } else { "" }))
        }
        EventKind::Collected { stage, files, .. } => Some(format!("{stage} collected: {files}")),
        _ => None,
    };
    let story = events.events().into_iter().filter_map(|event| told(event.kind)).collect();
    let lists = cloud.lists().into_iter().map(|(_, lines)| lines).collect();
    (ended.map(|ended| ended.map(drop)), story, lists)
}

async fn story(cloud: &FakeCloud, text: &str) -> (Result<(), Error>, Vec<String>, Vec<Vec<String>>) {
    let (ended, story, lists) = story_so_far(cloud, text).await;
    (ended.unwrap(), story, lists)
}

#[tokio::test(start_paused = true)]
async fn steps_of_one_machine_in_a_row_go_over_as_one_and_are_told_of_as_ever() {
    let cloud = cloud();
    let (ended, story, lists) = story(&cloud, ROW).await;
    ended.unwrap();
    assert_eq!(
        story,
        [
            "both on node-0 node-1",
            "node-0 both: echo both",
            "node-1 both: echo both",
            "both ended: status 0",
            "both ended: status 0",
            "both: true, 0 s",
            "one on node-0",
            "node-0 one: echo one 7",
            "one ended: status 0",
            "one: true, 0 s",
            "two on node-0",
            "node-0 two: sleep 3",
            "two ended: status 0",
            "two: true, 3 s",
            "three on node-0",
            "node-0 three: load",
            "three ended: status 0",
            "three collected: 1",
            "three: true, 0 s",
            "four on node-0",
            "node-0 four: echo four",
            "four ended: status 0",
            "four: true, 0 s",
            "five on node-1",
            "node-1 five: echo five",
            "five ended: status 0",
            "five: true, 0 s",
            "trial: true",
        ]
    );
    // What a step collects comes home before the next may write over it.
    assert_eq!(lists, [["echo one 7", "sleep 3", "load"]]);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_in_a_row_ends_it_or_lets_the_others_go_on() {
    let timed_out = "timed out after 10s";
    for (on_error, step, end, took, went_together) in [
        ("fail", "run = \"exit 3\"", "status 3", 0, "echo one 7; exit 3; load"),
        ("continue", "run = \"exit 3\"", "status 3", 0, "echo one 7; exit 3; load"),
        ("fail", "run = \"sleep 20\"\ntimeout = \"10s\"", timed_out, 10, "echo one 7; sleep 20; load"),
        // Its time-out lets the others go on, and must end none of them.
        ("continue", "run = \"sleep 20\"\ntimeout = \"10s\"", timed_out, 10, "echo one 7; sleep 20"),
    ] {
        let text = ROW.replace("on_error = \"continue\"", &format!("on_error = \"{on_error}\""));
        let (ended, story, lists) = story(&cloud(), &text.replace("run = \"sleep 3\"", step)).await;
        assert_eq!(lists.iter().map(|lines| lines.join("; ")).collect::<Vec<_>>(), [went_together]);
        let at = story.iter().position(|line| line == "two on node-0").unwrap();
        let told: Vec<_> = story[at + 2..].iter().map(String::as_str).collect();
        assert_eq!(told[..2], [format!("two ended: {end}"), format!("two: false, {took} s")]);
        if on_error == "fail" {
            assert_eq!(ended.unwrap_err().place(), Some(("node-0", "two")));
            assert_eq!(told[2..], ["trial: false"]);
        } else {
            ended.unwrap();
            let three =
                ["three on node-0", "node-0 three: load", "three ended: status 0", "three collected: 1"];
            assert_eq!(told[2..6], three);
            assert_eq!(told.last(), Some(&"trial: true"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_interruption_ends_a_row_where_it_is() {
    let cloud = cloud();
    cloud.machine_fault("node-1", MachineFault::Interrupted(Duration::from_secs(300)));
    let text = ROW.replace("sleep 3", "sleep 1000000");
    let (ended, story, lists) = story(&cloud, &text).await;
    let error = ended.unwrap_err();
    assert!(matches!(&error, Error::Interrupted { machine, .. } if machine == "node-1"), "{error:?}");
    let at = story.iter().position(|line| line == "two on node-0").unwrap();
    assert_eq!(
        story[at + 1..].iter().map(|line| line.split(", ").next().unwrap()).collect::<Vec<_>>(),
        ["node-0 two: sleep 1000000", "two ended: cancelled", "two: false", "trial: false"]
    );
    assert_eq!(lists.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_dropped_is_torn_down_and_told_no_end() {
    let (ended, story, lists) = story_so_far(&cloud(), &ROW.replace("sleep 3", "sleep 1000000")).await;
    assert!(ended.is_none());
    assert_eq!(story.last().map(String::as_str), Some("node-0 two: sleep 1000000"));
    assert_eq!(lists.len(), 1);
}

/// The fake cloud, whose word of a command's end comes once the next one has begun and is told to end.
#[derive(Debug)]
struct Late<T>(T);

#[async_trait]
impl Connector for Late<FakeCloud> {
    async fn prepare(&self, run: &RunId, directory: &Path) -> Result<String, SessionError> {
        self.0.prepare(run, directory).await
    }

    async fn connect(&self, machine: &Machine, deadline: Instant) -> Result<Box<dyn Session>, SessionError> {
        let session = self.0.connect(machine, deadline).await?;
        Ok(Box::new(Late(session)))
    }

    async fn finish(&self, run: &RunId) {
        self.0.finish(run).await;
    }
}

#[async_trait]
impl Session for Late<Box<dyn Session>> {
    async fn exec(
        &self,
        command: &Command,
        output: Arc<dyn OutputSink>,
        cancel: &CancellationToken,
    ) -> Result<Exit, SessionError> {
        self.0.exec(command, output, cancel).await
    }

    async fn exec_all(
        &self,
        _: &[Command],
        observer: Arc<dyn SequenceObserver>,
        cancel: &CancellationToken,
    ) -> Result<(), SessionError> {
        observer.begins(0);
        cancel.cancelled().await;
        observer.ended(0, Exit::Status(0));
        observer.begins(1);
        Err(SessionError::new(SessionErrorKind::Cancelled, "cancelled"))
    }

    async fn administer(&self, script: &str, args: &[String]) -> Result<String, SessionError> {
        self.0.administer(script, args).await
    }

    async fn upload(&self, from: &Path, to: &str) -> Result<(), SessionError> {
        self.0.upload(from, to).await
    }

    async fn download(&self, download: &Download) -> Result<Vec<usize>, SessionError> {
        self.0.download(download).await
    }

    async fn check(&self) -> Result<(), SessionError> {
        self.0.check().await
    }

    async fn close(&self) -> Result<(), SessionError> {
        self.0.close().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_out_that_ends_the_next_step_is_not_the_next_steps_to_forgive() {
    let (cloud, directory) = (cloud(), tempfile::tempdir().unwrap());
    let experiment = load(directory.path(), ROW).unwrap();
    let tsunami = Tsunami::new(Arc::new(cloud.clone()), Arc::new(Late(cloud.clone())))
        .state(RunStore::at(directory.path().join("runs")));
    let options = RunOptions::default().results(directory.path().join("results"));
    let error = experiment.run(&tsunami, options).await.unwrap_err();
    assert!(matches!(&error, Error::Timeout { stage, .. } if stage == "one"), "{error:?}");
    assert!(cloud.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_trial_costs_a_machine_few_conversations() {
    let cloud = cloud();
    cloud.on_command(|_, command| {
        let serves = command.to_string().starts_with("serve");
        let reply =
            if serves { Reply::stdout("").after(Duration::from_secs(1_000_000)) } else { Reply::status(0) };
        Some(reply.file("out.csv", "1").file("log", "2"))
    });
    let text = FILE.replace("{ log = \"listening\" }", "{ port = 80 }\ncollect = [\"log\"]")
        + "[[step]]\nname = \"again\"\non = \"client\"\nrun = \"load\"\ncollect = [\"log\"]\n";
    let (ended, ..) = story(&cloud, &text).await;
    ended.unwrap();
    // A machine says what it is and, before and after the trial, what it has done so far: this one doesn't answer.
    let is_look = |line: &str| line.starts_with("# Says what the ");
    let of = |machine: &str| {
        let all = cloud.commands().into_iter().filter(|(name, _)| name == machine).map(|(_, line)| line);
        let (looks, lines): (Vec<_>, Vec<_>) = all.partition(|line| is_look(line));
        assert_eq!(looks.len(), 2, "{looks:?}");
        let lines = lines.into_iter().map(|line| line.replace("sh -c eval \"$TSUNAMI_SCRIPT\" ", ""));
        lines.filter(|line| line != "trace").collect::<Vec<_>>()
    };
    let [cleans, checks, serves, sweeps] = &of("server-0")[1..] else { panic!("{:?}", of("server-0")) };
    assert_eq!((cleans.as_str(), sweeps.as_str()), ("clean 1  log", "sweep 1"));
    assert!(checks.starts_with("listening wait 0050 ") && serves.starts_with("serve "), "{checks} {serves}");
    for client in ["client-0", "client-1"] {
        let [cleans, loads, again, sweeps] = &of(client)[..] else { panic!("{:?}", of(client)) };
        assert_eq!((cleans.as_str(), sweeps.as_str()), ("clean 1  out.csv 1  log", "sweep 1"));
        assert!(loads.starts_with("load ") && again == "load", "{loads} {again}");
    }
    assert_eq!((cloud.calls(Call::Exec), cloud.calls(Call::Download)), (5 + 4 + 4 + 3 * 3, 1 + 2 + 2));
    // Where nothing is collected and nothing runs, a machine is not asked.
    let cloud = FakeCloud::new(1);
    let (ended, ..) =
        story(&cloud, "name = \"x\"\n[group.a]\n[group.b]\n[[step]]\non = \"a\"\nrun = \"{{ n }}\"\n").await;
    ended.unwrap();
    let asked = cloud.commands().into_iter().filter(|(_, line)| !is_look(line)).map(|(machine, _)| machine);
    assert_eq!(asked.collect::<Vec<_>>(), ["a-0", "a-0"]);
    // Where nothing is done, no machine is looked at.
    let cloud = FakeCloud::new(1);
    let (ended, ..) = story(&cloud, "name = \"x\"\n[group.a]\nsetup = \"{{ n }}\"\n").await;
    ended.unwrap();
    assert_eq!(cloud.commands(), [("a-0".to_owned(), "7".to_owned())]);
}

/// A cloud whose machines have a size, and that is connected to by that.
#[derive(Debug)]
struct BySize {
    cloud: FakeCloud,
    connections: AtomicU32,
}

const SIZE: &[Key] = &[Key::new("size", Form::Text, "how large its machines are")];

#[async_trait]
impl Registration for BySize {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn group_keys(&self) -> &'static [Key] {
        SIZE
    }

    fn reader(&self) -> Box<dyn TableReader> {
        Box::new(SizeReader)
    }

    fn connection(&self, request: &ConnectRequest<'_>) -> Option<String> {
        Some(format!(
            "{:?}",
            request.groups.iter().map(|group| group.spec.get::<String>()).collect::<Vec<_>>()
        ))
    }

    async fn connect(&self, _: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Backend::new(Arc::new(self.cloud.clone()), Arc::new(self.cloud.clone())))
    }

    async fn reconnect(&self, _: &RunRecord, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        self.connect(request).await
    }
}

struct SizeReader;

impl TableReader for SizeReader {
    fn group(&mut self, group: &GroupTable<'_>, values: &mut Values<'_, '_>) -> Option<Machines> {
        let size = group.table.get("size").and_then(|value| values.word(value))?;
        Some(Machines::of(MachineSpec::new(size)))
    }
}

#[tokio::test]
async fn sets_of_machines_that_are_asked_for_alike_are_connected_to_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("x.toml");
    let state = RunStore::at(directory.path().join("runs"));
    for (group, connections) in [("size = \"s\"\ncount = \"{{ n }}\"", 1), ("size = \"s{{ n }}\"", 16)] {
        let values: Vec<u32> = (1..=16).collect();
        let text = format!(
            "name = \"x\"\nprovider = \"fake\"\n[group.node]\n{group}\n[matrix]\nn = {values:?}\n\
             [[step]]\non = \"node\"\nrun = \"true\"\n"
        );
        std::fs::write(&file, text).unwrap();
        let by_size = Arc::new(BySize { cloud: FakeCloud::new(1), connections: AtomicU32::new(0) });
        let registry = Registry::new().with(by_size.clone());
        let experiment = Loader::new().registry(&registry).load(&file).unwrap();
        assert_eq!(experiment.set_count(), 16);
        let all = registry.connections(&state, false);
        for number in 1..=16 {
            all.of(&experiment.on_set(number)).await.unwrap();
        }
        assert_eq!(by_size.connections.load(Ordering::Relaxed), connections);
    }
}
