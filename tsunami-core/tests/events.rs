//! What the events of a run tell, and that saved ones are read.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use tsunami_core::testing::{Call, FakeCloud, MachineFault};
use tsunami_core::{
    Command, EVENTS_SCHEMA, Error, Event, EventKind, EventsHeader, Group, MachineId, MachineSpec,
    NewerSchema, Observer, Origin, OutputRefused, Plan, Recorder, Report, RunStore, Stream, Tsunami,
    UserEvent, read_events,
};

/// Notes which command wrote what on which machine.
#[derive(Debug, Default)]
struct Written(Mutex<BTreeMap<(MachineId, u64), String>>);

impl Observer for Written {
    fn event(&self, _: &Event) {}

    fn output(&self, origin: &Origin<'_>, _: Stream, bytes: &[u8]) -> io::Result<()> {
        let of = (origin.id.unwrap().clone(), origin.command_id);
        self.0.lock().unwrap().entry(of).or_default().push_str(&String::from_utf8_lossy(bytes));
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn events_alone_tell_machines_of_one_name_and_equal_commands_apart() {
    let directory = tempfile::tempdir().unwrap();
    let (cloud, events, written) = (FakeCloud::new(1), Arc::<Recorder>::default(), Arc::<Written>::default());
    cloud.machine_fault("node-0", MachineFault::Interrupted(Duration::from_secs(300)));
    let tsunami = Tsunami::new(Arc::new(cloud.clone()), Arc::new(cloud.clone()))
        .observer(events.clone())
        .observer(written.clone())
        .state(RunStore::at(directory.path()));
    let group = Group::new("node", MachineSpec::default()).replace_interrupted(true);
    let plan = Plan::new("test").group(group.setup(|host| async move { host.run("echo set-up").await }));
    let run = tsunami.run(plan, |cluster| async move {
        let host = cluster.hosts()[0].clone();
        let twice = || host.command(Command::shell("echo same")).run();
        tokio::try_join!(twice(), twice())?;
        host.command(Command::shell("echo unseen")).unobserved().run().await?;
        cluster.interrupted().await;
        let repaired = cluster.repair().await?;
        repaired.hosts()[0].run("echo same").await.map(drop)
    });
    run.await.unwrap();
    assert!(cloud.is_empty() && cloud.calls(Call::Launch) == 2);

    let events = events.events();
    let numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
    let (mut ways, mut commands) = (BTreeMap::<_, Vec<&str>>::new(), BTreeMap::new());
    for event in &events {
        let (id, what) = match &event.kind {
            EventKind::Running { id, .. } => (id, "running"),
            EventKind::Connected { id: Some(id), .. } => (id, "connected"),
            EventKind::Ready { id: Some(id), .. } => (id, "ready"),
            EventKind::Interrupted { id, .. } => (id, "interrupted"),
            EventKind::CommandStarted { id: Some(id), command_id, command, .. } => {
                assert!(commands.insert(*command_id, (id.clone(), command.clone(), false)).is_none());
                continue;
            }
            EventKind::CommandFinished { id, command_id, command, .. } => {
                let (of, line, is_over) = commands.get_mut(command_id).unwrap();
                assert_eq!((id.as_ref(), command, *is_over), (Some(&*of), &*line, false));
                *is_over = true;
                continue;
            }
            EventKind::Failed { .. } | EventKind::Uploaded { .. } => panic!("{event:?}"),
            _ => continue,
        };
        ways.entry(id.clone()).or_default().push(what);
    }
    let ways: Vec<_> = ways.into_values().collect();
    let up = ["running", "connected", "ready"];
    assert_eq!(ways, [[&up[..], &["interrupted"]].concat(), up.to_vec()]);
    assert_eq!(commands.len(), 5);
    assert!(commands.values().all(|(_, _, is_over)| *is_over));
    let written = written.0.lock().unwrap();
    let expected = |(number, (id, command, _)): (&u64, &(MachineId, String, bool))| {
        ((id.clone(), *number), format!("{}\n", command.trim_start_matches("echo ")))
    };
    assert_eq!(*written, commands.iter().map(expected).collect());
}

#[tokio::test(start_paused = true)]
async fn a_program_tells_of_its_trials_and_of_what_only_it_knows() {
    let directory = tempfile::tempdir().unwrap();
    let (cloud, events) = (FakeCloud::new(1), Arc::<Recorder>::default());
    let tsunami = Tsunami::new(Arc::new(cloud.clone()), Arc::new(cloud.clone()))
        .observer(events.clone())
        .state(RunStore::at(directory.path()));
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()));
    let run = tsunami.run(plan, |cluster| async move {
        let (trial, step) = ("1".to_owned(), "load".to_owned());
        let machines = vec!["node-0".to_owned()];
        for fails in [true, false] {
            let (trial, step, machines) = (trial.clone(), step.clone(), machines.clone());
            cluster.emit(UserEvent::TrialStarted { trial: trial.clone() });
            for (step, ok) in [("warm-up".to_owned(), true), (step, !fails)] {
                let (trial, machines) = (trial.clone(), machines.clone());
                cluster.emit(UserEvent::StepStarted { trial: trial.clone(), step: step.clone(), machines });
                cluster.emit(UserEvent::StepFinished { trial, step, ok, took: Duration::from_secs(2) });
            }
            cluster.emit(UserEvent::TrialFinished {
                error: None,
                trial: trial.clone(),
                ok: !fails,
                took: Duration::from_millis(4500),
            });
            if fails {
                cluster.emit(UserEvent::TrialInterrupted { trial, machines });
            }
        }
        let data = serde_json::json!({ "rows": [1, 2] });
        cluster.emit(UserEvent::Custom { name: "loaded".to_owned(), data });
        Ok::<_, Error>(())
    });
    run.await.unwrap();
    let lines: Vec<String> =
        events.events().iter().map(|event| serde_json::to_string(event).unwrap()).collect();
    let custom = lines.iter().find(|line| line.contains("custom")).unwrap();
    assert!(custom.ends_with(r#""event":"custom","name":"loaded","data":{"rows":[1,2]}}"#), "{custom}");
    let report: Report = events.events().iter().collect();
    let trials: Vec<_> =
        report.trials.iter().map(|trial| (trial.ok, trial.took, trial.interrupted)).collect();
    let took = Some(Duration::from_millis(4500));
    assert_eq!(trials, [(Some(false), took, true), (Some(true), took, false)]);
    let steps: Vec<_> =
        report.trials[0].steps.iter().map(|step| (&*step.name, step.ok, step.interrupted)).collect();
    assert_eq!(steps, [("warm-up", Some(true), false), ("load", Some(false), true)]);
}

fn line(value: &impl serde::Serialize) -> String {
    format!("{}\n", serde_json::to_string(value).unwrap())
}

/// A stream as the first version saved it.
const FIRST_FORM: &str = include_str!("fixtures/events-1.jsonl");

#[test]
fn a_stream_of_the_first_form_is_read() {
    let events = read_events(FIRST_FORM.as_bytes()).unwrap();
    let kinds: HashSet<_> = events.iter().map(|event| std::mem::discriminant(&event.kind)).collect();
    assert_eq!(events.len(), FIRST_FORM.lines().count());
    assert!(kinds.len() > 15, "{} kinds", kinds.len());
    assert!(events.iter().all(|event| event.seq == 0));
    let report: Report = events.iter().collect();
    assert_eq!((report.ok, report.machines.len(), report.commands.len()), (Some(true), 2, 4));
    assert_eq!(report.commands[0].id, None);
    for (saved, event) in FIRST_FORM.lines().zip(&events) {
        let told = serde_json::to_string(event).unwrap();
        // What that form lacked is 0.
        assert_eq!(told.replace("\"seq\":0,", "").replace("\"command_id\":0,", ""), saved);
    }
}

#[test]
fn what_is_a_time_or_nothing_here_is_a_number_or_an_empty_text_in_a_stream() {
    let events = read_events(FIRST_FORM.as_bytes()).unwrap();
    let report: Report = events.iter().collect();
    let began = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    assert_eq!((report.started, report.finished), (Some(began), Some(Duration::from_millis(397_360))));
    assert_eq!(report.commands[0].took, Duration::from_millis(173));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["started"], serde_json::json!(1_800_000_000.0));
    assert_eq!((&json["finished"], &json["commands"][0]["seconds"]), (&397.36.into(), &0.173.into()));
    assert_eq!(serde_json::from_value::<Report>(json.clone()).unwrap(), report);
    assert_eq!(serde_json::to_value(Report::default()).unwrap()["started"], serde_json::json!(0.0));
    for bad in ["-1.0", "1e300", "-1e300", "1e19"] {
        for time in ["\"at\":1800000000.0", "\"elapsed\":0.0", "\"deadline\":1800003600.0"] {
            let name = time.split_once(':').unwrap().0;
            let spoiled = FIRST_FORM.replacen(time, &format!("{name}:{bad}"), 1);
            assert!(read_events(spoiled.as_bytes()).is_err(), "{name}: {bad}");
        }
        let mut spoiled = json.clone();
        spoiled["machines"]["client-0"]["running"] = serde_json::from_str(bad).unwrap();
        assert!(serde_json::from_value::<Report>(spoiled).is_err(), "{bad}");
    }
    let unknown = FIRST_FORM.replace("\"address\":\"192.0.0.2\"", "\"address\":\"\"");
    let report: Report = read_events(unknown.as_bytes()).unwrap().iter().collect();
    assert_eq!(report.machines["server-0"].address, None);
    assert_eq!(serde_json::to_value(&report).unwrap()["machines"]["server-0"]["address"], "");
    assert_eq!(serde_json::to_value(Report::default()).unwrap()["experiment"], "");
    // A stream may tell of an end before the beginning, and of what is as far away as a time can be.
    let spoiled = FIRST_FORM.replace("\"elapsed\":397.36", "\"elapsed\":0.0");
    let spoiled = spoiled.replace("\"elapsed\":196.38", "\"elapsed\":1e16");
    let report: Report = read_events(spoiled.as_bytes()).unwrap().iter().collect();
    assert_eq!(report.estimated_cost(), Some(0.0));
}

#[test]
fn a_stream_says_its_form_and_one_of_a_later_form_is_named() {
    let events = read_events(FIRST_FORM.as_bytes()).unwrap();
    let mut saved = line(&EventsHeader::default());
    saved.extend(events.iter().map(line));
    assert_eq!(read_events(saved.as_bytes()).unwrap(), events);
    // Whoever wrote it was killed in the middle of a line.
    assert_eq!(read_events(&saved.as_bytes()[..saved.len() - 5]).unwrap(), events[..events.len() - 1]);
    let later = format!("{{\"schema\":{}}}\n{{\"event\":\"unheard of\"}}\n", EVENTS_SCHEMA + 1);
    let error = read_events(later.as_bytes()).unwrap_err();
    let newer = error.get_ref().and_then(|error| error.downcast_ref::<NewerSchema>()).unwrap();
    assert_eq!((newer.schema, newer.known), (EVENTS_SCHEMA + 1, EVENTS_SCHEMA));
    let error = read_events("{}\n".as_bytes()).unwrap_err();
    assert!(error.to_string().starts_with("line 1: "), "{error}");
}

#[test]
fn events_of_a_kind_that_is_not_known_are_left_out_and_those_that_are_wrong_are_not() {
    let known = r#"{"at":1.0,"elapsed":0.0,"event":"trial_started","trial":"1"}"#;
    let unknown = r#"{"seq":2,"at":1.0,"elapsed":0.0,"event":"machine_warm","machine":"a-0"}"#;
    let events = read_events(format!("{known}\n{unknown}\n").as_bytes()).unwrap();
    assert_eq!(events.len(), 1);
    for wrong in [r#"{"at":1.0,"elapsed":0.0,"event":"trial_started"}"#, r#"{"event":1}"#, "no"] {
        assert!(read_events(format!("{known}\n{wrong}\n").as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn the_saved_events_of_this_form_are_one_of_each_kind_and_are_written_as_they_were() {
    let saved = include_str!("fixtures/events-2.jsonl");
    let events = read_events(saved.as_bytes()).unwrap();
    let mut kinds = BTreeSet::new();
    for (line, event) in saved.lines().skip(1).zip(&events) {
        let value = serde_json::to_value(event).unwrap();
        assert_eq!(value, serde_json::from_str::<serde_json::Value>(line).unwrap());
        assert!(kinds.insert(value["event"].as_str().unwrap().to_owned()), "twice: {line}");
    }
    // What can't be read is told with all that can.
    let unknown = serde_json::from_value::<EventKind>(serde_json::json!({ "event": "?" })).unwrap_err();
    let unknown = unknown.to_string();
    let known: BTreeSet<_> = unknown.split('`').skip(1).step_by(2).filter(|name| *name != "?").collect();
    assert_eq!(
        kinds.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        known,
        "a new kind has no line there"
    );
}

/// Takes no output, as a log on a full disk.
#[derive(Debug)]
struct Full;

impl Observer for Full {
    fn event(&self, _: &Event) {}

    fn output(&self, _: &Origin<'_>, _: Stream, _: &[u8]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::StorageFull, "the disk is full"))
    }
}

#[tokio::test(start_paused = true)]
async fn what_ended_a_command_is_told_without_words() {
    let directory = tempfile::tempdir().unwrap();
    let (cloud, events) = (FakeCloud::new(1), Arc::<Recorder>::default());
    let tsunami = Tsunami::new(Arc::new(cloud.clone()), Arc::new(cloud.clone()))
        .observer(events.clone())
        .observer(Arc::new(Full))
        .state(RunStore::at(directory.path()));
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()));
    let run = tsunami.run(plan, |cluster| async move {
        let host = &cluster.hosts()[0];
        let refused = host.run("echo lost").await.unwrap_err();
        assert!(OutputRefused::is_source_of(&refused));
        assert!(format!("{refused:?}").ends_with("because: the disk is full"), "{refused:?}");
        let failed = host.run("false").await.unwrap_err();
        assert!(!OutputRefused::is_source_of(&failed), "{failed:?}");
        let background = host.command(Command::shell("sleep 1000")).start();
        tokio::time::sleep(Duration::from_secs(1)).await;
        background.stop().await.map(drop)
    });
    run.await.unwrap();
    assert!(cloud.is_empty());
    let cancelled = |kind| match kind {
        EventKind::CommandFinished { command, cancelled, .. } => Some((command, cancelled)),
        _ => None,
    };
    let told: Vec<_> = events.events().into_iter().filter_map(|event| cancelled(event.kind)).collect();
    let expected = [("echo lost", false), ("false", false), ("sleep 1000", true)];
    assert_eq!(told, expected.map(|(command, cancelled)| (command.to_owned(), cancelled)));
    let lines: Vec<_> = events.events().iter().map(|event| serde_json::to_string(event).unwrap()).collect();
    let line = |command: &str| lines.iter().rfind(|line| line.contains(command)).unwrap();
    assert!(line("sleep 1000").contains("\"cancelled\":true") && !line("echo lost").contains("cancelled"));
}
