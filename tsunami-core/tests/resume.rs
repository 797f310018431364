//! Sweeps from experiment files on the fake cloud and paused time: several sets of machines, what is left of a run that was
//! ended before its time, and runs that are repeated.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tsunami_core::experiment::{Loader, RunOptions};
use tsunami_core::testing::{Call, FakeCloud, MachineFault, Reply};
use tsunami_core::trial::VoidReason;
use tsunami_core::{
    Choice, Choices, Error, Event, EventKind, Keep, LaunchRequest, Leftover, Machine, MachineId, MachineSpec,
    Observer, Outcome, Price, Provider, ProviderError, Quote, Remedy, Report, RunFilter, RunId, RunStore,
    Tsunami, read_events,
};

const FILE: &str = r#"name = "x"
lifetime = "3h"
on_interruption = "replace"
[group.node]
count = 2
[matrix]
variant = ["old", "new"]
size = [1, 2]
[trials]
repeat = 2
[compare]
by = "variant"
[[step]]
name = "prepare"
per = "run"
on = "node-0"
start = "serve"
[[step]]
name = "load"
on = "node"
run = "measure {{ variant }} {{ size }} {{ trial }}"
collect = ["out.csv"]
[step.metrics]
rps = { regex = 'rps=([0-9.]+)', across = "sum" }
rows = { file = "out.csv", csv = "rows", across = "max" }
[[reset]]
on = "node-1"
run = "flush {{ size }}"
"#;

struct World {
    cloud: FakeCloud,
    /// Whether its machines cost something.
    is_priced: bool,
    cancel: CancellationToken,
    home: TempDir,
}

impl World {
    fn new(text: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("x.toml"), text).unwrap();
        let cloud = FakeCloud::new(1);
        cloud.on_command(|machine, command| {
            let line = command.to_string();
            if line == "serve" {
                return Some(Reply::status(0).after(Duration::from_secs(1_000_000)));
            }
            let variant = line.strip_prefix("measure ")?;
            let rps = if variant.starts_with("slow") { 7 } else { 10 };
            let reply = Reply::stdout(format!("rps={rps}\n"))
                .file("out.csv", format!("rows,on\n3,{machine} {line}\n"));
            Some(reply.after(Duration::from_secs(60)))
        });
        Self { cloud, is_priced: false, cancel: CancellationToken::new(), home }
    }

    fn results(&self) -> PathBuf {
        self.home.path().join("results")
    }

    fn tsunami(&self, controller: FakeCloud) -> Tsunami {
        let provider: Arc<dyn Provider> = match self.is_priced {
            true => Arc::new(Priced(controller.clone(), None)),
            false => Arc::new(controller.clone()),
        };
        let tsunami = Tsunami::new(provider, Arc::new(controller));
        tsunami.state(RunStore::at(self.home.path().join("runs"))).cancel_on(self.cancel.clone())
    }

    async fn run(&self) -> Result<Report, Error> {
        let experiment = Loader::new().load(self.home.path().join("x.toml"))?;
        let options = RunOptions::default().results(self.results());
        experiment.run(&self.tsunami(self.cloud.clone()), options).await
    }

    async fn resume(&self, options: RunOptions) -> Result<Report, Error> {
        let experiment = Loader::new().load_again(self.results())?;
        experiment.resume(&self.tsunami(self.cloud.controller()), options, self.results()).await
    }

    fn again(&self) -> PathBuf {
        self.home.path().join("again")
    }

    async fn repeat(&self) -> Result<Report, Error> {
        let experiment = Loader::new().load_again(self.results())?;
        let options = RunOptions::default().results(self.again());
        experiment.repeat(&self.tsunami(self.cloud.controller()), options, self.results()).await
    }

    /// Machines say that their kernel is this one.
    fn kernel(&self, kernel: &'static str) {
        self.cloud.on_command(move |_, command| match command.to_string() {
            line if line.contains("cpu_model") => Some(Reply::stdout(format!("kernel\t{kernel}\n"))),
            line if line.starts_with("measure ") => {
                Some(Reply::stdout("rps=1\n").file("out.csv", "rows\n1\n").after(Duration::from_secs(60)))
            }
            line if line == "serve" => Some(Reply::status(0).after(Duration::from_secs(1_000_000))),
            _ => None,
        });
    }

    fn events(&self) -> Vec<Event> {
        read_events(&*std::fs::read(self.results().join("events.jsonl")).unwrap()).unwrap()
    }
}

/// What counts: each trial with its parameters and what was measured.
fn table(report: &Report) -> BTreeMap<String, String> {
    let plan = report.sweep.as_ref().unwrap();
    let counted = report.trials.iter().filter(|trial| trial.voided.is_none() && trial.ok == Some(true));
    let mut table = BTreeMap::new();
    for trial in counted {
        let all = trial.measured.iter().filter(|measured| measured.machine.is_none());
        let all: Vec<_> = all.map(|measured| (&measured.metric, measured.value)).collect();
        let row = format!("{:?} {all:?}", plan.trial(&trial.name).unwrap().parameters);
        assert!(table.insert(trial.name.clone(), row).is_none(), "{} counts twice", trial.name);
    }
    table
}

#[tokio::test(start_paused = true)]
async fn a_file_with_a_matrix_is_swept_and_its_results_are_whole() {
    let world = World::new(FILE);
    let report = world.run().await.unwrap();
    assert!(world.cloud.is_empty());
    let table = table(&report);
    assert_eq!(table.len(), 8);
    assert!(
        table.values().all(|row| row.contains("(\"rps\", Some(20.0)), (\"rows\", Some(3.0))")),
        "{table:?}"
    );
    let plan = report.sweep.as_ref().unwrap();
    let lines = |starts: &str| {
        let commands = world.cloud.commands();
        commands.into_iter().filter(|(_, line)| line.starts_with(starts)).collect::<Vec<_>>()
    };
    assert_eq!(lines("serve").len(), 1, "that is done once");
    assert_eq!(lines("flush").len(), 7, "not before the first");
    assert!(lines("flush").iter().all(|(machine, _)| machine == "node-1"));
    let measured = lines("measure ");
    for trial in &plan.trials {
        let line =
            format!("measure {} {} {}", trial.parameters["variant"], trial.parameters["size"], trial.name);
        assert_eq!(measured.iter().filter(|(_, measured)| *measured == line).count(), 2, "{line}");
        let collected = world.results().join(format!("trials/{}/load/node-1/out.csv", trial.name));
        assert!(std::fs::read_to_string(collected).unwrap().contains(&line));
    }
    let index = std::fs::read_to_string(world.results().join("trials/index.csv")).unwrap();
    assert_eq!(
        (index.lines().count(), index.lines().next()),
        (9, Some("number,set,round,place,variant,size"))
    );
    assert!(world.results().join("traces").exists());
    assert_eq!(report.machines.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_metric_that_can_t_be_read_fails_its_trial_and_a_failed_sweep_its_run() {
    let world = World::new(&FILE.replace("rps=(", "qps=("));
    let error = world.run().await.unwrap_err();
    assert_eq!(Outcome::of(&error), Outcome::Failed);
    let Error::Several(failures) = &error else { panic!("{error:?}") };
    assert_eq!(failures.others.len(), 7);
    let report: Report = world.events().iter().collect();
    assert!(report.trials.iter().all(|trial| trial.ok == Some(false) && trial.voided.is_none()));
    let missing = report.trials[0].measured.iter().filter(|measured| measured.missing.is_some());
    assert_eq!(missing.count(), 3, "of each machine, and of the trial");
    assert_eq!(report.trials.len(), 8, "none is done again");
    assert_eq!(report.swept.unwrap().done, 8);
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_machine_voids_its_round_and_keeps_its_files_apart() {
    let world = World::new(FILE);
    world.cloud.machine_fault("node-1", MachineFault::Interrupted(Duration::from_secs(400)));
    let report = world.run().await.unwrap();
    assert!(world.cloud.is_empty());
    assert_eq!(table(&report).len(), 8);
    let voided: Vec<_> = report.trials.iter().filter(|trial| trial.voided.is_some()).collect();
    assert!(!voided.is_empty() && voided.len() <= 2, "{voided:?}");
    for trial in voided.iter().filter(|trial| trial.voided.as_ref().unwrap().reason == VoidReason::Round) {
        assert!(world.results().join("trials").join(&trial.name).exists());
    }
    // What is done once is done again where a machine is another.
    let serves = world.cloud.commands().into_iter().filter(|(_, line)| line == "serve");
    assert_eq!(serves.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_comparison_that_may_not_be_fails_the_run() {
    for (variant, holds) in [("slow", true), ("new", false)] {
        let text = FILE.replace("\"new\"", &format!("\"{variant}\"")).replace("repeat = 2", "repeat = 4");
        let world = World::new(&text.replace("by = ", "fail_if = [\"rps < 0.95\"]\nby = "));
        match world.run().await {
            Ok(_) => assert!(!holds),
            Err(error) => {
                assert_eq!(Outcome::of(&error), Outcome::Failed);
                assert!(holds && error.to_string().contains("`rps < 0.95` holds for slow"), "{error}");
                // It is so once more where nothing is left to do.
                let again = world.resume(RunOptions::default()).await.unwrap_err();
                assert_eq!(again.to_string(), error.to_string());
            }
        }
        assert!(world.cloud.is_empty());
    }
}

/// A file whose machines depend on a parameter.
fn two_sets() -> String {
    FILE.replace("count = 2", "count = \"{{ size + 1 }}\"").replace("on = \"node-1\"", "on = \"node-0\"")
}

#[tokio::test(start_paused = true)]
async fn sets_of_machines_come_one_after_another_each_torn_down_before_the_next() {
    let world = World::new(&two_sets());
    let report = world.run().await.unwrap();
    assert!(world.cloud.is_empty());
    assert_eq!((table(&report).len(), report.set, report.earlier_sets.len()), (8, 2, 1));
    assert_eq!((report.earlier_sets[0].machines.len(), report.machines.len()), (2, 3));
    assert_ne!(report.run, report.earlier_sets[0].run);
    let (mut up, mut seen) = (false, Vec::new());
    let events = world.events();
    for event in &events {
        match &event.kind {
            EventKind::RunStarted { .. } => assert!(!std::mem::replace(&mut up, true)),
            EventKind::TornDown { leftovers, .. } => up = !leftovers.is_empty(),
            EventKind::SetStarted { set, .. } => seen.push(*set),
            EventKind::CommandStarted { .. } => assert!(up),
            _ => {}
        }
    }
    assert_eq!(seen, [1, 2]);
    let mut numbers: Vec<u64> = events.iter().map(|event| event.seq).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), events.len(), "they are of one story");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_each_set_tells_what_happened_on_it() {
    for (failing, ends) in [("1", [Some("4 of 4 trials failed"), Some("")]), ("2", [None, Some("")])] {
        let world = World::new(&two_sets());
        world.cloud.on_command(move |_, command| {
            let line = command.to_string();
            if line == "serve" {
                return Some(Reply::status(0).after(Duration::from_secs(1_000_000)));
            }
            let size = line.strip_prefix("measure ")?.split(' ').nth(1)?;
            let reply = if size == failing { Reply::status(3) } else { Reply::stdout("rps=1\n") };
            Some(reply.file("out.csv", "rows\n1\n").after(Duration::from_secs(60)))
        });
        world.run().await.unwrap_err();
        let end = |event: &Event| match &event.kind {
            EventKind::RunFinished { ok, error } => Some((*ok, error.clone())),
            _ => None,
        };
        let told: Vec<_> = world.events().iter().filter_map(end).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        for ((ok, error), expected) in told.iter().zip(ends) {
            assert_eq!((*ok, error.is_some()), (expected.is_none(), expected.is_some()), "{told:?}");
            assert!(error.as_deref().unwrap_or_default().contains(expected.unwrap_or_default()), "{told:?}");
        }
        let report: Report = world.events().iter().collect();
        assert_eq!((report.earlier_sets[0].ok, report.ok), (Some(ends[0].is_none()), Some(false)));
        assert!(world.cloud.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn the_lifetime_of_one_set_ends_no_other() {
    // No time for the second round of a set, and none for the first trial of one.
    for (lifetime, done) in [("5m", 4), ("50s", 0)] {
        let world = World::new(&two_sets().replace("3h", lifetime));
        let error = world.run().await.unwrap_err();
        let report: Report = world.events().iter().collect();
        assert_eq!((table(&report).len(), report.set, report.earlier_sets.len()), (done, 2, 1), "{error:?}");
        assert!(world.cloud.is_empty());
        if done > 0 {
            assert!(matches!(error, Error::Incomplete { done: 4, of: 8, .. }), "{error:?}");
            assert_eq!(Outcome::of(&error), Outcome::Failed);
            assert!(error.to_string().contains("lifetime"), "{error}");
            assert_eq!((report.swept.unwrap().done, error.remedy()), (4, Some(Remedy::Resume)));
        }
    }
    // No time for a second round on new machines either.
    let world = World::new(&two_sets().replace("3h", "3m"));
    for error in [world.run().await.unwrap_err(), world.resume(RunOptions::default()).await.unwrap_err()] {
        assert!(error.to_string().ends_with("begin anew with a longer `lifetime`"), "{error}");
        assert_eq!(error.remedy(), None);
    }
    assert!(world.cloud.is_empty());
}

/// The fake cloud, for a dollar a machine and hour. It may have one kind of machine to choose for each group.
#[derive(Debug)]
struct Priced(FakeCloud, Option<&'static str>);

#[async_trait]
impl Provider for Priced {
    fn name(&self) -> String {
        self.0.name()
    }
    async fn choose(&self, spec: &MachineSpec, known: &Choices) -> Result<Option<Choice>, ProviderError> {
        let Some(kinds) = &self.1 else { return Ok(None) };
        assert!(spec.is_default(), "what was chosen is chosen again: {spec:?}");
        let chosen = known.get("any").cloned().unwrap_or_else(|| vec![(*kinds).to_owned()]);
        Ok(Some(Choice::new("any", chosen.clone(), MachineSpec::new(chosen))))
    }
    async fn quote(&self, spec: &MachineSpec, _: NonZeroU32) -> Result<Quote, ProviderError> {
        assert_eq!(spec.is_default(), self.1.is_none());
        Ok(Quote::new(Vec::new(), Price::PerHour(1.0)))
    }
    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<MachineId>, ProviderError> {
        assert_eq!(request.spec.is_default(), self.1.is_none());
        self.0.launch(request).await
    }
    async fn list(&self, filter: &RunFilter) -> Result<Vec<Machine>, ProviderError> {
        let machines = self.0.list(filter).await?.into_iter();
        Ok(machines.map(|machine| machine.price(Price::PerHour(1.0))).collect())
    }
    async fn extend(&self, run: &RunId, until: SystemTime) -> Result<(), ProviderError> {
        self.0.extend(run, until).await
    }
    async fn terminate(&self, run: &RunId) -> Result<Vec<Leftover>, ProviderError> {
        self.0.terminate(run).await
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_chosen_is_gone_by_in_every_set_and_when_the_run_goes_on() {
    let world = World::new(&two_sets());
    let tsunami = |kind| {
        let provider = Arc::new(Priced(world.cloud.clone(), Some(kind)));
        let tsunami = Tsunami::new(provider, Arc::new(world.cloud.clone()));
        tsunami.state(RunStore::at(world.home.path().join("runs")))
    };
    let part = Loader::new().load(world.home.path().join("x.toml")).unwrap();
    let options = RunOptions::default().results(world.results()).only("size", "1");
    let report = part.run(&tsunami("first"), options).await.unwrap();
    let choices = Choices::from([("any".to_owned(), vec!["first".to_owned()])]);
    assert_eq!(report.choices, choices);
    let rest = Loader::new().load_again(world.results()).unwrap();
    let again = rest.resume(&tsunami("second"), RunOptions::default(), world.results()).await.unwrap();
    assert_eq!((table(&again).len(), again.choices), (8, choices));
    let chosen = world.events().into_iter().filter_map(|event| match event.kind {
        EventKind::Chosen { chosen, .. } => Some(chosen),
        _ => None,
    });
    assert_eq!(chosen.collect::<Vec<_>>(), [["first"], ["first"]]);
}

#[tokio::test(start_paused = true)]
async fn a_budget_bounds_all_sets_together() {
    // Two machines, then three, for three hours, each of which may be replaced once: 12 and 18 dollars.
    for (budget, fits) in [("20.0", false), ("30.1", true)] {
        let text = two_sets().replace("lifetime", &format!("budget = {budget}\nlifetime"));
        let world = World { is_priced: true, ..World::new(&text) };
        match world.run().await {
            Ok(_) => assert!(fits),
            Err(Error::Budget { max_cost, .. }) => {
                assert!(!fits && world.cloud.calls(Call::Launch) == 0);
                assert!(max_cost.is_some_and(|cost| (cost - 30.0).abs() < 0.01), "{max_cost:?}");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_spent_before_a_run_is_resumed_counts_against_its_budget() {
    // Two machines for three hours, each of which may be replaced once: 12 dollars.
    for (budget, fits) in [("12.1", false), ("13.0", true)] {
        let text = FILE.replace("lifetime", &format!("budget = {budget}\nlifetime"));
        let world = World { is_priced: true, ..World::new(&text) };
        killed(&world, 300).await;
        // The process would have let go of it.
        sleep(Duration::from_secs(600)).await;
        let launches = world.cloud.calls(Call::Launch);
        match world.resume(RunOptions::default()).await {
            Ok(report) => assert!(fits && table(&report).len() == 8),
            Err(error @ Error::Budget { spent, .. }) => {
                assert!(!fits && (0.1..0.9).contains(&spent), "{error}");
                let expected = format!("up to $12.00 beside the ${spent:.2}");
                assert!(error.to_string().contains(&expected), "{error}");
                assert_eq!(world.cloud.calls(Call::Launch), launches);
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Ends a run's controller after so long, as `kill -9` does, and forgets all that it holds.
async fn killed(world: &World, after: u64) {
    let controller = world.cloud.controller();
    let experiment = Loader::new().load(world.home.path().join("x.toml")).unwrap();
    let tsunami = world.tsunami(controller.clone());
    let options = RunOptions::default().results(world.results());
    let run = tokio::spawn(async move { experiment.run(&tsunami, options).await.map(drop) });
    sleep(Duration::from_secs(after)).await;
    controller.crash();
    run.abort();
    let _ = run.await;
    // What was on its way to the files gets there, whatever the clock here says.
    let length = || std::fs::metadata(world.results().join("events.jsonl")).map_or(0, |events| events.len());
    let mut before = None;
    while before != Some(length()) {
        before = Some(length());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_killed_anywhere_ends_with_the_same_table_once_it_is_resumed() {
    let expected = {
        let world = World::new(FILE);
        // The order is drawn anew each time, so that only what a trial is is compared.
        let mut rows: Vec<_> = table(&world.run().await.unwrap()).into_values().collect();
        rows.sort();
        rows
    };
    for after in [70, 130, 200, 290, 420, 500] {
        let world = World::new(FILE);
        killed(&world, after).await;
        // The process would have let go of it.
        sleep(Duration::from_secs(600)).await;
        let before = std::fs::read_to_string(world.results().join("trials/index.csv")).unwrap();
        let report = match world.resume(RunOptions::default()).await {
            Ok(report) => report,
            Err(error) if error.to_string().contains("none had begun") => continue,
            Err(error) => panic!("after {after} s: {error:?}"),
        };
        // This process still holds the lock of what it killed, so that it passes for a run that goes on.
        let tsunami = world.tsunami(world.cloud.controller());
        for run in RunStore::at(world.home.path().join("runs")).runs().unwrap() {
            assert!(Some(run.id()) != report.run, "it is torn down");
            tsunami.down(&run).await.unwrap();
        }
        assert!(world.cloud.machines().is_empty(), "after {after} s: {:?}", world.cloud);
        let mut rows: Vec<_> = table(&report).into_values().collect();
        rows.sort();
        assert_eq!(rows, expected, "after {after} s");
        assert_eq!(std::fs::read_to_string(world.results().join("trials/index.csv")).unwrap(), before);
        let told: Report = world.events().iter().collect();
        assert_eq!((table(&told), told.swept), (table(&report), report.swept.clone()));
        whole_rounds(&report);
        // Once more, there is nothing to do.
        let launches = world.cloud.calls(Call::Launch);
        world.resume(RunOptions::default()).await.unwrap();
        assert_eq!(world.cloud.calls(Call::Launch), launches);
    }
}

/// The trials of a round that count are of one set.
fn whole_rounds(report: &Report) {
    let plan = report.sweep.as_ref().unwrap();
    let mut sets = BTreeMap::new();
    for trial in report.trials.iter().filter(|trial| trial.voided.is_none()) {
        let set = sets.entry(plan.trial(&trial.name).unwrap().round).or_insert(trial.set);
        assert_eq!(*set, trial.set, "{} is on another set than its round", trial.name);
    }
}

/// What each plan that is told says.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<Report>>);

impl Observer for Told {
    fn event(&self, event: &Event) {
        if matches!(event.kind, EventKind::SweepPlanned { .. }) {
            self.0.lock().unwrap().push([event].into_iter().collect());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_is_done_alone_and_then_the_rest() {
    let world = World::new(FILE);
    let experiment = Loader::new().load(world.home.path().join("x.toml")).unwrap();
    let options = RunOptions::default().results(world.results()).only("size", "2");
    let report = experiment.run(&world.tsunami(world.cloud.clone()), options).await.unwrap();
    assert_eq!(table(&report).len(), 4);
    assert!(report.swept.unwrap().why.unwrap().contains("size=2"));
    let told = Arc::new(Told::default());
    let whole = world.resume(RunOptions::default().observer(told.clone())).await.unwrap();
    assert_eq!(table(&whole).len(), 8);
    let plans: Vec<_> = told.0.lock().unwrap().iter().map(|report| report.sweep.clone()).collect();
    assert_eq!(plans, [report.sweep], "whoever sees the rest alone is told the plan, once");
    assert!(whole.trials.iter().all(|trial| trial.voided.is_none()));
    for (name, value) in [("variant", "old"), ("size", "3"), ("other", "1")] {
        let error = world.resume(RunOptions::default().only(name, value)).await.unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_machines_are_warmed_up_again_which_is_no_round() {
    let world = World::new(&FILE.replace("repeat = 2", "repeat = 2\nwarmup = 1"));
    let experiment = Loader::new().load(world.home.path().join("x.toml")).unwrap();
    let options = RunOptions::default().results(world.results()).only("size", "2");
    experiment.run(&world.tsunami(world.cloud.clone()), options).await.unwrap();
    let report = world.resume(RunOptions::default()).await.unwrap();
    let again: Vec<_> = report.trials.iter().filter_map(|trial| trial.voided.as_ref()).collect();
    assert!(!again.is_empty());
    for voided in again {
        let told = (&voided.trial[..1], voided.text.as_str());
        assert_eq!(told, ("w", "the machines are warmed up again"));
    }
}

#[tokio::test(start_paused = true)]
async fn of_several_sets_of_machines_only_the_last_is_kept() {
    let world = World::new(&two_sets());
    let experiment = Loader::new().load(world.home.path().join("x.toml")).unwrap();
    let kept = world.tsunami(world.cloud.clone()).keep(Keep::Always);
    let report = experiment.run(&kept, RunOptions::default().results(world.results())).await.unwrap();
    let last = report.machines.values().filter_map(|machine| machine.id.clone()).collect::<Vec<_>>();
    assert_eq!((last.len(), world.cloud.ids()), (3, last));
}

#[tokio::test(start_paused = true)]
async fn machines_that_were_kept_are_used_again_and_stay() {
    let world = World::new(FILE);
    let experiment = Loader::new().load(world.home.path().join("x.toml")).unwrap();
    let options = RunOptions::default().results(world.results()).only("size", "1");
    let kept = world.tsunami(world.cloud.clone()).keep(Keep::Always);
    experiment.run(&kept, options).await.unwrap();
    let (ids, launches) = (world.cloud.ids(), world.cloud.calls(Call::Launch));
    assert_eq!(ids.len(), 2);
    let report = world.resume(RunOptions::default()).await.unwrap();
    assert_eq!((world.cloud.ids(), world.cloud.calls(Call::Launch)), (ids, launches));
    assert_eq!(table(&report).len(), 8);
    assert!(report.trials.iter().all(|trial| trial.set == 1));
}

#[tokio::test(start_paused = true)]
async fn what_was_cancelled_is_resumed_too_and_changed_inputs_are_refused() {
    let upload = "upload = [{ from = \"tool\", to = \"tool\" }]\ncount = 2";
    let world = World::new(&FILE.replace("count = 2", upload));
    std::fs::write(world.home.path().join("tool"), "1").unwrap();
    let cancel = world.cancel.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(250)).await;
        cancel.cancel();
    });
    assert!(matches!(world.run().await, Err(Error::Cancelled)));
    let world = World { cancel: CancellationToken::new(), ..world };
    std::fs::write(world.home.path().join("tool"), "2").unwrap();
    let error = world.resume(RunOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("tool is not as it was"), "{error}");
    std::fs::write(world.home.path().join("tool"), "1").unwrap();
    let file = world.results().join("experiment.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("repeat = 2", "repeat = 3")).unwrap();
    let error = world.resume(RunOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("experiment.toml is not as it was"), "{error}");
    std::fs::write(&file, text).unwrap();
    let report = world.resume(RunOptions::default()).await.unwrap();
    assert_eq!(table(&report).len(), 8);
    assert!(no_other(&world.results()));
}

/// Each directory of a trial is of one that counts, or is named as an attempt that doesn't.
fn no_other(results: &Path) -> bool {
    let names = std::fs::read_dir(results.join("trials")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let numbers: Vec<String> =
        names.filter(|name| name != "index.csv" && !name.starts_with("set-")).collect();
    numbers.iter().filter(|name| !name.contains('.')).count() == 8
}

#[tokio::test(start_paused = true)]
async fn a_service_of_all_trials_that_ends_before_them_fails_its_trial_and_ends_the_sweep() {
    // A trial takes 60 seconds. Status 0 is as wrong: it was to go on.
    for status in [0, 3] {
        let world = World::new(FILE);
        world.cloud.on_command(move |_, command| {
            let seconds = match command.to_string() {
                line if line == "serve" => 90,
                line if line.starts_with("measure ") => 60,
                _ => return None,
            };
            let reply = if seconds == 90 { Reply::status(status) } else { Reply::stdout("rps=1\n") };
            Some(reply.file("out.csv", "rows\n1\n").after(Duration::from_secs(seconds)))
        });
        let error = world.run().await.unwrap_err();
        assert_eq!(Outcome::of(&error), Outcome::Failed, "{error:?}");
        assert!(world.cloud.is_empty());
        let report: Report = world.events().iter().collect();
        let trials: Vec<_> = report.trials.iter().map(|trial| (trial.name.as_str(), trial.ok)).collect();
        assert_eq!(trials, [("1", Some(true)), ("2", Some(false))]);
        let how = format!("`serve` ended with status {status}");
        let tells = |why: Option<&String>| {
            why.is_some_and(|why| why.contains("node-0: stage prepare") && why.contains(&how))
        };
        assert!(tells(report.trials[1].error.as_ref()), "{:?}", report.trials[1].error);
        let swept = report.swept.unwrap();
        assert!(swept.done == 2 && tells(swept.why.as_ref()), "{swept:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_machines_measured_is_kept_although_another_failed() {
    let world = World::new(
        "name = \"x\"\n[group.node]\ncount = 3\n[[step]]\nname = \"load\"\non = \"node\"\nrun = \"load\"\n\
         [step.metrics]\nrps = { regex = 'rps=([0-9.]+)', across = \"sum\" }\n",
    );
    world.cloud.on_command(|machine, command| match machine {
        _ if command.to_string() != "load" => None,
        "node-1" => Some(Reply::status(3)),
        _ => Some(Reply::stdout("rps=5\n")),
    });
    let error = world.run().await.unwrap_err();
    assert_eq!(error.place().map(|(machine, _)| machine), Some("node-1"), "{error:?}");
    let report: Report = world.events().iter().collect();
    let measured = report.trials[0].measured.iter();
    let measured: Vec<_> = measured.map(|one| (one.machine.as_deref(), one.value)).collect();
    let expected =
        [(Some("node-0"), Some(5.0)), (Some("node-1"), None), (Some("node-2"), Some(5.0)), (None, None)];
    assert_eq!(measured, expected);
    let missing = report.trials[0].measured[3].missing.as_deref();
    assert_eq!(missing, Some("node-1: the step did not succeed"));
}

/// A file whose machines are given a tool, a script and a value.
fn given() -> String {
    let upload =
        "upload = [{ from = \"tool\", to = \"tool\" }]\nsetup = { script = \"set-up.sh\" }\ncount = 2";
    let text = FILE.replace("count = 2", upload).replace("[matrix]", "[vars]\nn = 1\n[matrix]");
    text.replace("run = \"measure", "env = { N = \"{{ n }}\" }\nrun = \"measure")
}

fn write(world: &World, name: &str, text: &str) {
    std::fs::write(world.home.path().join(name), text).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_run_is_repeated_from_its_results_and_says_how_its_machines_differ() {
    let world = World::new(&given());
    write(&world, "tool", "1");
    write(&world, "set-up.sh", "#!/bin/sh\n");
    world.kernel("6.1");
    let experiment = Loader::new().set("n", "7").load(world.home.path().join("x.toml")).unwrap();
    let options = RunOptions::default().results(world.results());
    let first = experiment.run(&world.tsunami(world.cloud.clone()), options).await.unwrap();
    // Neither the file nor the script has to be there still.
    std::fs::remove_file(world.home.path().join("x.toml")).unwrap();
    std::fs::remove_file(world.home.path().join("set-up.sh")).unwrap();
    for (kernel, differences) in [("6.1", &[][..]), ("6.2", &["node: kernel is 6.2, before 6.1"])] {
        world.kernel(kernel);
        let report = world.repeat().await.unwrap();
        assert!(world.cloud.is_empty());
        assert_eq!(table(&report).len(), 8);
        let repeats = report.repeats.as_ref().unwrap();
        assert_eq!(Some(&repeats.run), first.run.as_ref());
        assert_eq!(repeats.differences, differences);
        assert_ne!(report.run, first.run);
        let events = read_events(&*std::fs::read(world.again().join("events.jsonl")).unwrap()).unwrap();
        let at = |kind: fn(&EventKind) -> bool| events.iter().position(|event| kind(&event.kind)).unwrap();
        let told = at(|kind| matches!(kind, EventKind::Repeats { .. }));
        assert!(told < at(|kind| matches!(kind, EventKind::TrialStarted { .. })));
        for kept in ["experiment.toml", "inputs/set.json", "inputs/uploads.json", "inputs/node/set-up.sh"] {
            let [before, now] =
                [world.results(), world.again()].map(|results| std::fs::read(results.join(kept)));
            assert_eq!(now.unwrap(), before.unwrap(), "{kept}");
        }
        let run = std::fs::read_to_string(world.again().join("run.json")).unwrap();
        assert!(run.contains("\"repeats\""), "{run}");
        std::fs::remove_dir_all(world.again()).unwrap();
    }
    let launches = world.cloud.calls(Call::Launch);
    write(&world, "tool", "2");
    let error = world.repeat().await.unwrap_err().to_string();
    let own = world.home.path().join("x.toml").display().to_string();
    assert!(error.contains("tool is not as it was") && error.contains(&own), "{error}");
    write(&world, "tool", "1");
    let kept = world.results().join("inputs/node/set-up.sh");
    std::fs::write(&kept, "#!/bin/bash\n").unwrap();
    let error = world.repeat().await.unwrap_err().to_string();
    assert!(error.contains("inputs/node/set-up.sh is not as it was"), "{error}");
    assert_eq!(world.cloud.calls(Call::Launch), launches);
    assert!(!world.again().exists());
}

#[tokio::test(start_paused = true)]
async fn what_is_repeated_is_prepared_only_where_something_is_not_as_it_was() {
    let prepared = "prepare = [\"cp source tool; echo x >> prepared\"]\n[group.node]";
    let world = World::new(&given().replace("[group.node]", prepared));
    let times = || std::fs::read_to_string(world.home.path().join("prepared")).unwrap().len() / 2;
    write(&world, "source", "1");
    write(&world, "set-up.sh", "#!/bin/sh\n");
    world.run().await.unwrap();
    write(&world, "source", "2");
    world.repeat().await.unwrap();
    assert_eq!(times(), 1);
    std::fs::remove_dir_all(world.again()).unwrap();
    let launches = world.cloud.calls(Call::Launch);
    std::fs::remove_file(world.home.path().join("tool")).unwrap();
    let error = world.repeat().await.unwrap_err().to_string();
    assert!(error.contains("tool is not as it was"), "{error}");
    assert_eq!((times(), world.cloud.calls(Call::Launch)), (2, launches));
    std::fs::remove_dir_all(world.again()).unwrap();
    write(&world, "source", "1");
    world.repeat().await.unwrap();
    assert_eq!(times(), 3);
}
