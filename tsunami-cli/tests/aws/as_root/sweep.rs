//! Sweeps of trials on machines that are taken back, and on machines that differ.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tsunami_core::trial::VoidReason;
use tsunami_core::{Event, EventKind, Report, read_events};

use crate::cloud::Cloud;
use crate::world::{Ended, Going};

/// A sweep over two variants on one group, whose trials say by whom they were done.
fn experiment(cloud: &Cloud, aws: &str, trials: &str, run: &str) -> PathBuf {
    let text = format!(
        r#"
        name = "sweep"
        provider = "aws"
        lifetime = "2h"
        [aws]
        region = "eu-west-1"
        market = "spot-block"
        user = "root"
        {aws}
        [group.node]
        count = 4
        setup = "sleep 0.1"
        [matrix]
        variant = ["old", "new"]
        [trials]
        {trials}
        [compare]
        by = "variant"
        [[step]]
        name = "measure"
        on = "node"
        run = """
        echo $TSUNAMI_EMULATED > machine.txt
        {run}
        echo {{{{ variant }}}} value=$SRANDOM
        """
        collect = ["machine.txt"]
        [step.metrics]
        value = {{ regex = 'value=([0-9]+)', across = "sum" }}
        "#
    );
    cloud.world.write("experiment.toml", &text)
}

fn events(results: &Path) -> Vec<Event> {
    read_events(&*fs::read(results.join("events.jsonl")).unwrap()).unwrap()
}

/// What the trials that count have measured.
fn values(report: &Report) -> BTreeMap<String, Option<f64>> {
    let counted = report.trials.iter().filter(|trial| trial.voided.is_none());
    let value = |measured: &[tsunami_core::trial::Measured]| {
        measured.iter().find(|measured| measured.machine.is_none()).and_then(|measured| measured.value)
    };
    let mut values = BTreeMap::new();
    for trial in counted {
        let again = values.insert(trial.name.clone(), value(&trial.measured));
        assert!(again.is_none(), "{} counts twice", trial.name);
    }
    values
}

/// The machines by which an attempt was done, by what they themselves have said.
fn machines(results: &Path, attempt: &str) -> BTreeSet<String> {
    let home = results.join("trials").join(attempt).join("measure");
    let said =
        (0..4).filter_map(|index| fs::read_to_string(home.join(format!("node-{index}/machine.txt"))).ok());
    said.collect()
}

/// All trials count, and each round was done by the same four machines. Returns those of each round.
fn none_is_mixed(results: &Path, report: &Report) -> Vec<BTreeSet<String>> {
    let plan = report.sweep.as_ref().unwrap();
    let counted = values(report);
    assert!(plan.trials.iter().all(|trial| counted.contains_key(&trial.name)), "{counted:?}");
    let mut rounds = BTreeMap::<_, Vec<_>>::new();
    for trial in &plan.trials {
        rounds.entry(trial.round).or_default().push(machines(results, &trial.name));
    }
    let same = rounds.into_values().map(|mut all| {
        let first = all.remove(0);
        assert!(first.len() == 4 && all.iter().all(|other| *other == first), "{first:?}, {all:?}");
        first
    });
    same.collect()
}

/// The numbers that EC2 has given to the four machines, in the order of their names.
fn first_machines(going: &mut Going) -> Vec<String> {
    let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
    let machines = (0..4).map(|_| {
        let event = serde_json::from_str(&going.wait_for(&["\"event\":\"running\""])).unwrap();
        (text(&event, "machine"), text(&event, "id"))
    });
    machines.collect::<BTreeMap<_, _>>().into_values().collect()
}

fn begins(trial: &str) -> [String; 2] {
    ["\"event\":\"trial_started\"".to_owned(), format!("\"trial\":\"{trial}\"")]
}

/// Which types a shape stands for is chosen once: whoever resumes goes by what was chosen.
#[test]
fn a_sweep_on_a_choice_by_shape_is_resumed_on_what_was_chosen() {
    let cloud = Cloud::new();
    let shape = "instance = { vcpus = 2, memory = \"4GiB\", arch = \"arm64\" }";
    let go = cloud.world.path("go");
    let run = format!("[ $TSUNAMI_TRIAL = 1 ] || [ -e {} ] || sleep 1012", go.display());
    let file = experiment(&cloud, shape, "repeat = 1", &run);
    let mut going = cloud.start(&file);
    let second = begins("2");
    going.wait_for(&second.each_ref().map(String::as_str));
    going.signal(rustix::process::Signal::KILL);
    going.end();
    let results = cloud.world.results();
    let choices = |results: &Path| -> Value {
        let run: Value = serde_json::from_slice(&fs::read(results.join("run.json")).unwrap()).unwrap();
        run["choices"].clone()
    };
    let asked = cloud.emulator.count("GetInstanceTypesFromInstanceRequirements");
    assert_eq!(asked, 1);
    fs::write(&go, "").unwrap();
    // What was dear is cheap now.
    cloud.emulator.configure(json!({"spot_prices": {"m7g.large": {"*": 0.0001}}}));
    let resumed = cloud.tsunami([OsStr::new("run"), OsStr::new("--resume"), results.as_os_str()]);
    resumed.assert_status(0).assert_says(&["abandoned"]);
    assert_eq!(cloud.emulator.count("GetInstanceTypesFromInstanceRequirements"), asked, "it was chosen anew");
    let choices = choices(&results);
    let types: BTreeSet<String> = choices
        .as_object()
        .unwrap()
        .values()
        .flat_map(|it| it.as_array().unwrap())
        .map(|it| it.as_str().unwrap().to_owned())
        .collect();
    let launched = cloud.emulator.instances();
    assert!(
        launched.len() >= 8 && launched.iter().all(|it| types.contains(it["type"].as_str().unwrap())),
        "{types:?}"
    );
    cloud.assert_clean();
}

#[test]
fn an_interrupted_machine_voids_its_round_alone_and_its_replacement_is_looked_at() {
    let cloud = Cloud::new();
    // The second trial of the third round goes on until its machine is taken back.
    let run =
        "if [ {{ trial }} = 6 ] && [ {{ index }} = 0 ] && ! [ -e again ]; then touch again; sleep 600; fi";
    let aws = "instance = \"c7g.large\"\non_interruption = \"replace\"";
    let mut going = cloud.start(&experiment(&cloud, aws, "repeat = 4\ncanary = true", run));
    let victim = first_machines(&mut going).swap_remove(2);
    going.wait_for(&begins("6").each_ref().map(String::as_str));
    let (results, index) = (cloud.world.results(), "trials/index.csv");
    let before = (events(&results).iter().collect::<Report>(), fs::read(results.join(index)).unwrap());
    cloud.emulator.post("interrupt", &json!({"instance": victim, "notice": 20}));
    going.end().assert_status(0);

    let heard = events(&results);
    let report: Report = heard.iter().collect();
    assert_eq!(fs::read(results.join(index)).unwrap(), before.1);
    let rounds = none_is_mixed(&results, &report);
    assert_eq!((&rounds[0], &rounds[2]), (&rounds[1], &rounds[3]));
    assert_eq!(rounds[0].difference(&rounds[2]).map(|id| id.trim()).collect::<Vec<_>>(), [&victim]);

    // What other processes of this computer disturb is done again, too.
    let voided: Vec<_> =
        report.trials.iter().filter_map(|trial| Some((trial, trial.voided.as_ref()?))).collect();
    let because = |reason| voided.iter().filter(move |(_, voided)| voided.reason == reason);
    let [cut] = because(VoidReason::Interrupted).collect::<Vec<_>>()[..] else { panic!("{voided:?}") };
    assert_eq!((&*cut.1.trial, &cut.1.machines), ("6", &vec!["node-2".to_owned()]));
    assert!(cut.0.name.starts_with("6."), "{}", cut.0.name);
    let [with_it] = because(VoidReason::Round).collect::<Vec<_>>()[..] else { panic!("{voided:?}") };
    assert_eq!(with_it.1.trial, "5");
    assert_eq!(machines(&results, &with_it.0.name), rounds[0]);
    let both = because(VoidReason::Interrupted).chain(because(VoidReason::Round)).count();
    assert_eq!(both + because(VoidReason::Disturbed).count(), voided.len());
    let (earlier, now) = (values(&before.0), values(&report));
    assert!(["1", "2", "3", "4"].iter().all(|trial| earlier[*trial] == now[*trial]), "{earlier:?}, {now:?}");
    assert_ne!(earlier["5"], now["5"]);

    // What is made of it tells it, too.
    let tells: Value = serde_json::from_slice(&fs::read(results.join("results.json")).unwrap()).unwrap();
    let attempt = |name: &str| tells["trials"].as_array().unwrap().iter().find(|trial| trial["name"] == name);
    assert_eq!(attempt(&cut.0.name).unwrap()["void"]["reason"], "interrupted");
    assert_eq!(attempt(&with_it.0.name).unwrap()["void"]["reason"], "round");
    let counts = tells["analysis"]["counts"].as_array().unwrap();
    let sum = |key: &str| counts.iter().map(|counts| counts[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("planned"), sum("ok"), sum("lost"), sum("voided_with_round")), (8, 8, 0, 1));
    assert_eq!(usize::try_from(sum("voided")).unwrap() + 1, voided.len());

    // Each machine was measured by itself, before its first trial and after the last one of all.
    let measured = |name: &str| &report.machines[name].canaries;
    assert!((0..4).all(|index| measured(&format!("node-{index}")).len() == 2), "{:?}", report.machines);
    assert_eq!(report.machines["node-2"].replaced[0].canaries.len(), 1);
    let canaries = heard.iter().filter_map(|event| match &event.kind {
        EventKind::Canary { results, .. } => Some((event.seq, results)),
        _ => None,
    });
    let canaries: Vec<_> = canaries.collect();
    assert!(canaries.iter().all(|(_, results)| results.contains_key("cpu")), "{canaries:?}");
    let began = |wanted: &str| {
        let mut all = heard
            .iter()
            .filter(|event| matches!(&event.kind, EventKind::TrialStarted { trial } if trial == wanted));
        all.next_back().unwrap().seq
    };
    let at: Vec<_> = canaries.iter().map(|(at, _)| *at).collect();
    assert_eq!(at.len(), 9);
    assert!(at[3] < began("1") && began("4") < at[4] && at[4] < began("5") && began("8") < at[5]);
    cloud.assert_clean();
}

#[test]
fn thirteen_in_a_hundred_trials_are_interrupted_and_all_rounds_complete_whole() {
    // A new machine is ready after about a second and a half.
    let long = std::env::var_os("TSUNAMI_CHAOS").is_some();
    let (trials, seconds): (u32, f64) = if long { (30, 15.0) } else { (16, 1.0) };
    // Each trial that is hit, when in it, and by the loss of which machine.
    let sweep = |interrupted: &[(u32, f64, usize)]| {
        let cloud = Cloud::new();
        let aws = "instance = \"c7g.large\"\non_interruption = \"replace\"";
        let repeat = format!("repeat = {}", trials / 2);
        let mut going = cloud.start(&experiment(&cloud, aws, &repeat, &format!("sleep {seconds}")));
        let machines = first_machines(&mut going);
        for (trial, after, machine) in interrupted {
            going.wait_for(&begins(&trial.to_string()).each_ref().map(String::as_str));
            std::thread::sleep(Duration::from_secs_f64(after * seconds));
            let interrupted = json!({"instance": machines[*machine], "notice": 20});
            cloud.emulator.post("interrupt", &interrupted);
        }
        going.end().assert_status(0);
        let results = cloud.world.results();
        let report: Report = events(&results).iter().collect();
        none_is_mixed(&results, &report);
        let voided = report.trials.iter().filter_map(|trial| Some(trial.voided.as_ref()?.reason));
        let voided: Vec<_> = voided.collect();
        let ended = report.teardown.unwrap();
        cloud.assert_clean();
        (report.ready.unwrap(), ended - report.trials[0].started, voided)
    };
    let mut lots = fastrand::Rng::with_seed(3);
    let mut chosen = lots.choose_multiple(1..=trials, (trials as usize * 13 + 50) / 100);
    chosen.sort_unstable();
    // In each place there is one replacement at most.
    let mut machines: Vec<_> = (0..4).collect();
    lots.shuffle(&mut machines);
    let interrupted = chosen.into_iter().zip(machines).map(|(trial, machine)| (trial, lots.f64(), machine));
    let interrupted: Vec<_> = interrupted.collect();
    let ((ready, undisturbed, _), (_, took, voided)) = std::thread::scope(|scope| {
        let undisturbed = scope.spawn(|| sweep(&[]));
        let disturbed = sweep(&interrupted);
        (undisturbed.join().unwrap(), disturbed)
    });
    let times = took.as_secs_f64() / undisturbed.as_secs_f64();
    println!(
        "interrupted trials: {} of {trials}, each of {seconds} s, with machines that are ready after {:.1} s: {} attempts \
         void, all rounds complete and whole, in {times:.2} times the undisturbed time of {:.0} s",
        interrupted.len(),
        ready.as_secs_f64(),
        voided.len(),
        undisturbed.as_secs_f64()
    );
    assert!(!long || times <= 1.4, "{times}: {voided:?}");
}

#[test]
fn a_machine_that_differs_is_named_before_the_first_trial_and_its_trials_count() {
    let (ended, report, larger) = with_a_larger_machine("warn");
    ended.assert_status(0);
    assert_eq!(values(&report).len(), 2);
    let mut voided = report.trials.iter().filter_map(|trial| trial.voided.as_ref());
    assert!(voided.all(|voided| voided.reason == VoidReason::Disturbed), "{larger}: {:?}", report.trials);
}

#[test]
fn a_machine_that_differs_voids_its_trials_if_asked_to() {
    let (ended, report, larger) = with_a_larger_machine("void");
    ended.assert_status(1);
    ended.assert_says(&[&format!("{larger} differs from its group"), "0 of 2 trials are done"]);
    let voided = report.trials.iter().filter_map(|trial| trial.voided.as_ref());
    let odd: Vec<_> = voided.filter(|voided| voided.reason == VoidReason::Odd).collect();
    assert_eq!(odd.len(), 1, "no more is done in vain: {:?}", report.trials);
    assert_eq!(odd[0].machines, [larger]);
    assert!(values(&report).is_empty());
}

/// A sweep on machines of which one is of a larger type, which is named before anything is done; and which that is.
fn with_a_larger_machine(odd: &str) -> (Ended, Report, String) {
    let cloud = Cloud::new();
    let capacity = json!([{"type": "c7g.large", "free": 3}, {"type": "c7g.xlarge", "free": 1}]);
    cloud.emulator.post("capacity", &capacity);
    let aws = "instance = [\"c7g.large\", \"c7g.xlarge\"]\nmixed = true";
    let ended = cloud.run(&experiment(&cloud, aws, &format!("odd = \"{odd}\""), ""));
    let heard = events(&cloud.world.results());
    let report: Report = heard.iter().collect();
    let mut machines = report.machines.iter();
    let larger = machines.find(|(_, machine)| machine.description.starts_with("c7g.xlarge")).unwrap().0;
    let differing = report.machines.iter().filter(|(_, machine)| !machine.differences.is_empty());
    let differing: Vec<_> = differing.map(|(name, machine)| (name, &*machine.differences)).collect();
    assert_eq!(differing, [(larger, &["cpus is 4, of the others 2".to_owned()][..])]);
    let at = |kind: fn(&EventKind) -> bool| heard.iter().position(|event| kind(&event.kind)).unwrap();
    let named = at(|kind| matches!(kind, EventKind::OddMachine { .. }));
    assert!(named < at(|kind| matches!(kind, EventKind::TrialStarted { .. })));
    ended.assert_says(&[larger, "cpus is 4, of the others 2"]);
    cloud.assert_clean();
    (ended, report.clone(), larger.clone())
}
