//! Sweeps of trials on local machines.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::process::Signal;
use tsunami_core::Report;
use tsunami_core::experiment::Loader;
use tsunami_core::trial::VoidReason;

use crate::world::{Ended, Going, World, example};

const FILE: &str = r#"name = "x"
[group.node]
[matrix]
variant = ["old", "new"]
size = [1, 2]
[trials]
repeat = 2
[compare]
by = "variant"
[[step]]
name = "work"
on = "node"
run = "sleep 0.3; echo {{ variant }} {{ size }} > out; echo n={{ size }}"
collect = ["out"]
[step.metrics]
n = { regex = 'n=([0-9]+)' }
"#;

fn report(results: &Path) -> Report {
    tsunami_core::read_events(&*fs::read(results.join("events.jsonl")).unwrap()).unwrap().iter().collect()
}

/// What the trials that count are and have measured.
fn table(report: &Report) -> BTreeMap<String, (String, Option<f64>)> {
    let plan = report.sweep.as_ref().unwrap();
    let counted = report.trials.iter().filter(|trial| trial.voided.is_none());
    let mut table = BTreeMap::new();
    for trial in counted {
        let parameters = format!("{:?}", plan.trial(&trial.name).unwrap().parameters);
        let whole = trial.measured.iter().find(|measured| measured.machine.is_none());
        let row = (parameters, whole.and_then(|measured| measured.value));
        assert!(table.insert(trial.name.clone(), row).is_none(), "{} counts twice", trial.name);
    }
    table
}

#[test]
fn a_sweep_that_was_killed_is_resumed_and_ends_with_the_same_table() {
    let world = World::new();
    let mut run = world.start(&world.write("x.toml", FILE));
    run.wait_for(&["\"trial_finished\""]);
    run.wait_for(&["\"trial_finished\""]);
    run.wait_for(&["\"command_started\"", "\"work\""]);
    let early = world.tsunami(["report", "results/x/latest"]);
    early
        .assert_status(0)
        .assert_says(&["results/x/latest: the run goes on, so this is of what it has done by now"]);
    run.signal(Signal::KILL);
    assert_eq!(run.end().status, None);
    let results = world.results();
    let page = fs::read_to_string(results.join("report.html")).unwrap();
    assert!(page.contains("it went on when this was made") && !page.contains("its end was not recorded"));
    let (index, before) = (fs::read(results.join("trials/index.csv")).unwrap(), report(&results));
    let planned = before.sweep.clone().unwrap();
    // Whoever else uses this computer may disturb any trial, also thrice: then there is something left to resume.
    let mut resumed = world.tsunami(["run".as_ref(), "--resume".as_ref(), results.as_os_str()]);
    resumed.assert_says(&["abandoned"]);
    for _ in 0..20 {
        if resumed.status == Some(0) {
            break;
        }
        resumed.assert_status(1).assert_says(&["of 8 trials are done", "--resume"]);
        resumed = world.tsunami(["run".as_ref(), "--resume".as_ref(), results.as_os_str()]);
    }
    if resumed.status == Some(0) {
        let again = world.tsunami(["run", "--resume", "results/x/latest"]);
        let place = format!("results: {}\n", fs::canonicalize(&results).unwrap().display());
        again.assert_status(0).assert_says(&["nothing is left to do", &place]);
    }
    let after = report(&results);
    assert_eq!(after.sweep, Some(planned.clone()));
    assert_eq!(fs::read(results.join("trials/index.csv")).unwrap(), index);
    // It is the run that began, everywhere.
    let history = world.tsunami(["compare", "--csv", "results/x/latest", "results/x/latest"]);
    let began = humantime::format_rfc3339_seconds(before.started.unwrap());
    let row = format!("\n{began},{},results/x/latest,", before.run.as_ref().unwrap());
    assert!(history.assert_status(0).stdout.contains(&row), "{} has no {row}", history.stdout);
    let table = table(&after);
    for (name, (parameters, measured)) in &table {
        let trial = planned.trial(name).unwrap();
        assert_eq!(*parameters, format!("{:?}", trial.parameters));
        assert_eq!(measured.unwrap().to_string(), trial.parameters["size"].to_string());
        let home = fs::read_to_string(results.join(format!("trials/{name}/work/node-0/out"))).unwrap();
        assert_eq!(home, format!("{} {}\n", trial.parameters["variant"], trial.parameters["size"]));
    }
    let voided: Vec<_> = after.trials.iter().filter_map(|trial| trial.voided.as_ref()).collect();
    assert!(voided.iter().any(|voided| voided.reason == VoidReason::Cut), "{voided:?}");
    let is_disturbed = voided.iter().any(|voided| voided.reason == VoidReason::Disturbed);
    assert!(table.len() == 8 && resumed.status == Some(0) || is_disturbed, "{table:?}\n{}", resumed.stderr);
    world.assert_clean();
}

#[test]
fn what_can_t_be_resumed_says_why() {
    let world = World::new();
    let file = world.write("x.toml", FILE);
    let file = file.to_str().unwrap();
    let says = &["no results directory: it has no events.jsonl"];
    for nothing in ["nowhere", file] {
        world
            .tsunami(["run", "--resume", nothing])
            .assert_status(2)
            .assert_says(&[nothing])
            .assert_says(says);
        world.tsunami(["report", nothing]).assert_status(2).assert_says(&[nothing]).assert_says(says);
    }
    world.tsunami(["run", "."]).assert_status(2).assert_says(says);
    world.write("events.jsonl", "");
    let left = world.tsunami(["run", "."]);
    left.assert_status(2).assert_says(&["can't be read: the run ended before it was written down"]);
    world
        .tsunami(["run", ".", "--set", "a=1"])
        .assert_status(2)
        .assert_says(&["with the values that its run had"]);
    let wrong = world.tsunami(["run", file, "--only", "size=3"]);
    wrong.assert_status(2).assert_says(&["parameter size is never 3"]);
    world.tsunami(["run", file, "--resume", "--set", "a=1"]).assert_status(2);
    world.assert_clean();
}

#[test]
fn a_run_is_repeated_by_the_directory_of_its_results() {
    let world = World::new();
    let text = "name = \"x\"\n[vars]\nn = 1\n[group.node]\nsetup = { script = \"set-up.sh\" }\n\
        upload = [{ from = \"tool\", to = \"tool\" }]\n[[step]]\nname = \"work\"\non = \"node\"\n\
        run = \"cat tool made; echo n={{ n }}\"\n[step.metrics]\nn = { regex = 'n=([0-9]+)' }\n";
    let file = world.write("x.toml", text);
    let script = world.write("set-up.sh", "#!/bin/sh\necho made > made\n");
    let tool = world.write("tool", "tool\n");
    world.tsunami(["run", "x.toml", "--set", "n=7"]).assert_status(0);
    let first = world.results();
    fs::remove_file(file).unwrap();
    fs::remove_file(script).unwrap();
    // What is relative is so to where the file was.
    let elsewhere = world.path("work").join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let again = |command: &str| {
        let mut again = world.command([command.as_ref(), first.as_os_str()]);
        Ended::from(again.current_dir(&elsewhere).output().unwrap())
    };
    again("plan").assert_status(0);
    let run = first.file_name().unwrap().to_str().unwrap();
    let repeated = again("run");
    repeated.assert_status(0).assert_says(&[&format!("run {run} is repeated"), "like those of run"]);
    let second = fs::canonicalize(elsewhere.join("results/x/latest")).unwrap();
    let (before, after) = (report(&first), report(&second));
    let repeats = after.repeats.as_ref().unwrap();
    assert_eq!((repeats.run.as_str(), &repeats.differences[..]), (run, &[][..]));
    assert_eq!((table(&after), before.repeats.clone()), (table(&before), None));
    assert_eq!(table(&after)["1"].1, Some(7.0));
    fs::write(tool, "another\n").unwrap();
    for command in ["plan", "run"] {
        again(command).assert_status(2).assert_says(&["tool is not as it was", "x.toml as it is now"]);
    }
    world.assert_clean();
}

/// The experiments that people are shown come to a conclusion, even on a computer that does other things too.
#[test]
fn the_example_of_a_server_says_which_variant_is_faster() {
    let world = World::new();
    let ended = world.tsunami(["run", example("compare/experiment.toml").to_str().unwrap()]);
    let table = &ended.assert_status(0).stderr;
    let results = world.results();
    assert_eq!(ended.stdout, format!("{}\n", results.display()));
    let analysis = report(&results).analysis();
    let rps = &analysis.metrics.iter().find(|metric| metric.metric.name == "rps").unwrap().combinations;
    assert_eq!(rps.len(), 3, "one, four and sixteen clients");
    for combination in rps {
        let new = combination.variants[1].compared.as_ref().unwrap();
        // How sure that is depends on what else the computer does.
        assert!(new.comparison.estimate > 2.0 && new.comparison.interval.high > 2.0, "{}", new.sentence);
        assert!(table.contains(&new.sentence), "{table}");
        assert_eq!(combination.variants[1].values.len(), 6);
    }
    for file in ["report.html", "results.json", "results.csv", "manifest.json", "traces/server-0.csv"] {
        assert!(results.join(file).exists(), "{file}");
    }
    world.assert_clean();
}

/// Of an experiment that people are shown, the same trials are done in the same order, whatever ends the program meanwhile.
#[test]
fn the_example_of_a_server_that_is_killed_and_resumed_ends_with_the_table_of_an_undisturbed_run() {
    let world = World::new();
    for name in ["server", "load"] {
        fs::copy(example("compare").join(name), world.path("work").join(name)).unwrap();
    }
    let text = fs::read_to_string(example("compare/experiment.toml")).unwrap();
    let shorter = text.replace("repeat = 6", "repeat = 2").replace("--seconds 0.5", "--seconds 0.2");
    let file = world.write("experiment.toml", &shorter);
    let mut run = world.start(&file);
    // In a round; in the long form also in warm-ups, and once more in what is left.
    let long = std::env::var_os("TSUNAMI_CHAOS").is_some();
    let moments: &[u32] = if long { &[2, 9, 9] } else { &[9] };
    for trials in moments {
        for _ in 0..*trials {
            run.wait_for(&["\"trial_finished\""]);
        }
        run.wait_for(&["\"command_started\"", "bin/load"]);
        run.signal(Signal::KILL);
        assert_eq!(run.end().status, None);
        world.tsunami(["down", "--all"]).assert_status(0);
        world.assert_clean();
        let mut resume = world.command(["run", "--json", "--resume"]);
        resume.arg(world.results());
        run = Going::of(resume);
    }
    run.end().assert_status(0);

    let results = world.results();
    let after = report(&results);
    let planned = after.sweep.as_ref().unwrap();
    let experiment = Loader::new().load(&file).unwrap();
    let undisturbed = experiment.trials.plan(planned.seed, |parameters| experiment.set_of(parameters));
    assert_eq!(*planned, undisturbed);
    let table = table(&after);
    let wanted =
        undisturbed.trials.iter().map(|trial| (trial.name.clone(), format!("{:?}", trial.parameters)));
    assert_eq!(
        table
            .iter()
            .map(|(name, (parameters, _))| (name.clone(), parameters.clone()))
            .collect::<BTreeMap<_, _>>(),
        wanted.collect()
    );
    assert!(table.values().all(|(_, measured)| measured.is_some()), "{table:?}");
    let counted = after.trials.iter().filter(|trial| trial.voided.is_none() && !trial.name.starts_with('w'));
    let planned = undisturbed.trials.iter().filter(|trial| !trial.warmup);
    assert!(counted.map(|trial| &trial.name).eq(planned.map(|trial| &trial.name)), "{:?}", after.trials);
    let index = fs::read_to_string(results.join("trials/index.csv")).unwrap();
    assert_eq!(index.lines().count(), 1 + undisturbed.trials.len());
    world.assert_clean();
}

#[test]
fn the_example_of_redis_says_what_its_file_costs() {
    let world = World::new();
    let file = example("redis/append-only.toml");
    world.tsunami(["run", "--set", "requests=2000", file.to_str().unwrap()]).assert_status(0);
    let analysis = report(&world.results()).analysis();
    assert_eq!(analysis.metrics.len(), 3);
    for metric in &analysis.metrics {
        let compared: Vec<_> = metric.combinations[0].variants.iter().map(|one| &one.compared).collect();
        assert_eq!(compared.iter().filter(|compared| compared.is_some()).count(), 2, "{metric}");
    }
    world.assert_clean();
}

#[test]
fn a_single_trial_is_a_sweep_of_one_that_nobody_does_twice() {
    let world = World::new();
    let file = "name = \"x\"\n[group.node]\ncount = 2\n[[step]]\non = \"all\"\nrun = \"sleep 3\"\n";
    // Others may disturb it, here above all: what ran to its end is not run again.
    let ended = world.tsunami(["run".as_ref(), world.write("x.toml", file).as_os_str()]);
    ended.assert_status(0);
    assert!(!ended.stderr.contains("seed") && !ended.stderr.contains("1 of 1"), "{}", ended.stderr);
    let (results, report) = (world.results(), report(&world.results()));
    assert_eq!(report.trials.len(), 1);
    let trial = &report.trials[0];
    assert_eq!((trial.name.as_str(), trial.ok, trial.voided.as_ref()), ("1", Some(true), None));
    assert!(trial.accounts.iter().any(|account| account.seconds >= 3.0), "{trial:?}");
    for machine in ["node-0", "node-1"] {
        assert!(report.machines[machine].facts.contains_key("kernel"));
        assert!(results.join(format!("traces/{machine}.csv")).exists());
    }
    world.assert_clean();
}
