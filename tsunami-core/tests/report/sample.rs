//! A sweep as its events tell it: two variants, three client counts, ten rounds, and everything that may go wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tsunami_core::condition::Account;
use tsunami_core::results::Json;
use tsunami_core::statistics::Direction;
use tsunami_core::trial::{Compare, Measured, MetricPlan, Parameter, PlannedTrial, SweepPlan, VoidReason};
use tsunami_core::{
    Event, EventKind, Exit, GroupSize, Leftover, MachineId, MachineKind, Observer, Price, RunId,
};

/// What a machine or a user may have written.
pub(crate) const HOSTILE: &str = "</title></text><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">\u{1b}[2J\u{202e}";

/// Events, each some time after the one before it.
pub(crate) struct Story {
    /// Days after the first.
    day: u32,
    /// What all values are multiplied with.
    level: f64,
    now: Duration,
    seed: u64,
    pub(crate) events: Vec<Event>,
}

impl Story {
    fn new(day: u32, level: f64) -> Self {
        Self { day, level, now: Duration::ZERO, seed: 42 + u64::from(day), events: Vec::new() }
    }

    fn add(&mut self, kind: EventKind) {
        let began =
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000 + 86_400 * u64::from(self.day));
        self.events.push(Event::new(began + self.now, self.now, kind));
    }

    fn wait(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    /// About normal, with a mean of 0 and a deviation of 1.
    fn noise(&mut self) -> f64 {
        let mut uniform = || {
            self.seed =
                self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from((self.seed >> 40) as u32) / f64::from(1_u32 << 24)
        };
        (0..12).map(|_| uniform()).sum::<f64>() - 6.0
    }

    /// Writes it into a results directory.
    pub(crate) fn write(&self, directory: &Path) {
        let file = fs::File::create(directory.join("events.jsonl")).unwrap();
        let json = Json::new(Box::new(file));
        self.events.iter().for_each(|event| json.event(event));
    }
}

pub(crate) fn run() -> RunId {
    "20260921-141320-abcd".parse().unwrap()
}

/// The plan of so many rounds of two variants for each number of clients.
pub(crate) fn plan(rounds: u32, clients: &[i64]) -> SweepPlan {
    let mut plan = SweepPlan::default();
    plan.seed = 7;
    plan.repeat = rounds;
    plan.parameters =
        vec![Parameter::new("clients", clients.to_vec()), Parameter::new("variant", ["old", "new"])];
    let mut compare = Compare::new("variant", "old");
    compare.fail_if = vec!["rps < 0.95".to_owned(), "p99 > 1.02".to_owned()];
    plan.compare = Some(compare);
    let metric = |name: &str, better, unit: &str| {
        let mut metric = MetricPlan::default();
        (metric.name, metric.step) = (name.to_owned(), "load".to_owned());
        (metric.better, metric.unit) = (Some(better), Some(unit.to_owned()));
        metric
    };
    plan.metrics = vec![metric("rps", Direction::Higher, "1/s"), metric("p99", Direction::Lower, "ms")];
    let mut number = 0;
    for round in 1..=rounds {
        for count in clients {
            let order = if round % 2 == 0 { ["old", "new"] } else { ["new", "old"] };
            for (place, variant) in (0..).zip(order) {
                number += 1;
                let mut trial = PlannedTrial::default();
                trial.name = number.to_string();
                (trial.set, trial.round, trial.place) = (1, round, place);
                trial.parameters.insert("clients".to_owned(), (*count).into());
                trial.parameters.insert("variant".to_owned(), variant.into());
                plan.trials.push(trial);
            }
        }
    }
    plan
}

/// A run of one server and so many clients.
pub(crate) fn sweep(plan: &SweepPlan, clients: u32, hostile: bool) -> Story {
    sweep_on(0, 1.0, plan, clients, hostile)
}

/// The same on another day, when all values were as many times higher.
pub(crate) fn sweep_on(day: u32, level: f64, plan: &SweepPlan, clients: u32, hostile: bool) -> Story {
    let mut story = Story::new(day, level);
    let groups = vec![GroupSize::new("server", 1), GroupSize::new("client", clients)];
    let deadline = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_003_600);
    let experiment = if hostile { HOSTILE } else { "redis-io-threads" };
    story.add(EventKind::RunStarted { run: run(), experiment: experiment.to_owned(), deadline, groups });
    story.add(EventKind::SweepPlanned { plan: plan.clone() });
    let names: Vec<String> = std::iter::once("server-0".to_owned())
        .chain((0..clients).map(|index| format!("client-{index}")))
        .collect();
    machines(&mut story, &names, hostile);
    story.add(EventKind::SetStarted { set: 1, run: run() });
    for (index, trial) in plan.trials.iter().enumerate() {
        let (client, server) = (names[1].clone(), names[0].clone());
        if index == 20 {
            // Its round is done again whole.
            attempt(&mut story, plan, trial, Some("1"), true, &client);
            let text = "client-0 was taken back".to_owned();
            let machines = vec![client.clone()];
            story.add(void(trial, VoidReason::Interrupted, text, machines));
        }
        let is_new = trial.parameters["variant"] == "new".into();
        let failed = is_new && [12, 33, 43, 50, 55].contains(&index);
        if failed {
            story.add(EventKind::CommandFinished {
                machine: server.clone(),
                id: None,
                stage: "serve".to_owned(),
                command_id: index as u64,
                command: if hostile { HOSTILE.to_owned() } else { "redis-server --io-threads 4".to_owned() },
                exit: Some(Exit::Signal(9)),
                error: None,
                cancelled: false,
                took: Duration::from_secs(3),
            });
        }
        attempt(&mut story, plan, trial, None, !failed, &client);
    }
    story.add(EventKind::SweepFinished {
        done: u32::try_from(plan.trials.len()).unwrap() - 1,
        of: u32::try_from(plan.trials.len()).unwrap(),
        why: Some("the lifetime has no room for another".to_owned()),
    });
    story.add(EventKind::TearingDown { reason: "the experiment is over".to_owned() });
    story.wait(9.0);
    let why = if hostile { HOSTILE } else { "it was not confirmed" };
    let leftovers = vec![Leftover::new("machine i-0c", why)];
    story.add(EventKind::TornDown {
        leftovers: if hostile { leftovers } else { Vec::new() },
        took: Duration::from_secs(9),
    });
    let error = if hostile { HOSTILE } else { "a step failed in some trials" };
    story.add(EventKind::RunFinished { ok: false, error: Some(error.to_owned()) });
    story
}

fn machines(story: &mut Story, names: &[String], hostile: bool) {
    let id = |index: usize| MachineId::new(format!("i-{index:03}"));
    let groups = [("server", 0..1), ("client", 1..names.len())];
    for (group, of) in &groups {
        let count = u32::try_from(of.len()).unwrap();
        story.add(EventKind::Launching { group: (*group).to_owned(), count });
    }
    story.wait(1.8);
    for (group, of) in groups {
        let machines = of.map(id).collect();
        story.add(EventKind::Launched { group: group.to_owned(), machines });
    }
    for (index, name) in names.iter().enumerate() {
        story.wait(if index == 0 { 8.0 } else { 0.4 });
        let what = if name.starts_with("server") { "c7g.2xlarge" } else { "c7g.large" };
        let description = format!(
            "{what} spot in eu-west-1a, ami-0abc ({})",
            if hostile { HOSTILE } else { "Ubuntu 24.04" }
        );
        let kind = if hostile {
            MachineKind::default().machine_type(HOSTILE).image(HOSTILE).region(HOSTILE)
        } else {
            MachineKind::default().machine_type(what).image("ami-0abc").region("eu-west-1")
        };
        let (id, price) = (id(index), Price::PerHour(if index == 0 { 0.1364 } else { 0.0412 }));
        let address = Some(format!("192.0.2.{}", index % 250 + 1));
        story.add(EventKind::Running { machine: name.clone(), id, address, description, kind, price });
    }
    for (index, name) in names.iter().enumerate() {
        story.wait(if index == 0 { 14.0 } else { 0.3 });
        let answered = Some(story.now.saturating_sub(Duration::from_millis(250)));
        story.add(EventKind::Connected { machine: name.clone(), id: None, answered });
    }
    for name in names {
        story.wait(0.05);
        story.add(EventKind::Verified { machine: name.clone(), id: None });
    }
    for (index, name) in names.iter().enumerate() {
        story.wait(if index == 2 { 19.0 } else { 0.6 });
        story.add(EventKind::Ready { machine: name.clone(), id: None });
        let model = if index == 2 { "Intel Xeon Platinum 8259CL" } else { "Neoverse-V1" };
        let mut facts: BTreeMap<String, String> = [
            ("cpu_model", model),
            ("kernel", "6.8.0-1021-aws"),
            ("governor", "performance"),
            ("memory", "4 GiB"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        if hostile {
            facts.insert(HOSTILE.to_owned(), HOSTILE.to_owned());
        }
        story.add(EventKind::Fingerprint { machine: name.clone(), id: None, facts });
        if index == 2 {
            let differences = vec!["cpu_model is Intel Xeon Platinum 8259CL, not Neoverse-V1".to_owned()];
            story.add(EventKind::OddMachine { machine: name.clone(), differences });
        }
        let results = [("integer".to_owned(), 412.0 + index as f64), ("memory".to_owned(), 18.2)].into();
        story.add(EventKind::Canary { machine: name.clone(), results });
    }
}

fn void(trial: &PlannedTrial, reason: VoidReason, text: String, machines: Vec<String>) -> EventKind {
    EventKind::TrialVoided {
        trial: trial.name.clone(),
        attempt: format!("{}.1", trial.name),
        reason,
        text,
        machines,
    }
}

fn attempt(
    story: &mut Story,
    plan: &SweepPlan,
    trial: &PlannedTrial,
    voided: Option<&str>,
    ok: bool,
    client: &str,
) {
    let name = || trial.name.clone();
    story.add(EventKind::TrialStarted { trial: name() });
    story.wait(0.3);
    let machines = vec![client.to_owned()];
    story.add(EventKind::StepStarted { trial: name(), step: "load".to_owned(), machines });
    story.wait(if voided.is_some() { 2.0 } else { 5.0 });
    story.add(EventKind::StepFinished {
        trial: name(),
        step: "load".to_owned(),
        ok,
        took: Duration::from_secs(5),
    });
    // What goes on in the background is ended on purpose.
    story.add(EventKind::CommandFinished {
        machine: "server-0".to_owned(),
        id: None,
        stage: "watch".to_owned(),
        command_id: 1000,
        command: "vmstat 1".to_owned(),
        exit: None,
        error: Some("cancelled".to_owned()),
        cancelled: true,
        took: Duration::from_secs(5),
    });
    let is_new = trial.parameters["variant"] == "new".into();
    let clients: f64 = trial.parameters["clients"].to_string().parse().unwrap();
    let drift = 1.0 + 0.0015 * f64::from(trial.round);
    for metric in &plan.metrics {
        let effect = match (metric.name.as_str(), is_new) {
            ("rps", true) => 1.0 + 0.02 * clients.log2(),
            ("p99", true) => 1.0 + 0.025 * (clients.log2() - 1.0),
            _ => 1.0,
        };
        let level = if metric.name == "rps" { 21_000.0 * clients.sqrt() } else { 1.7 * clients.sqrt() };
        let value = story.level * level * drift * effect * (1.0 + 0.012 * story.noise());
        let mut measured = Measured::default();
        (measured.step, measured.metric) = (metric.step.clone(), metric.name.clone());
        let mut of_machine = measured.clone();
        (of_machine.machine, of_machine.value) = (Some(client.to_owned()), Some(value));
        story.add(EventKind::Measured { trial: name(), measured: of_machine });
        measured.value = ok.then_some(value);
        measured.missing = (!ok).then(|| "client-0 has no out.csv".to_owned());
        story.add(EventKind::Measured { trial: name(), measured });
    }
    let mut account = Account::default();
    account.machine = client.to_owned();
    (account.seconds, account.cpu, account.own_cpu) = (5.3, Some(4.1), Some(3.9));
    (account.steal, account.cpu_pressure) = (Some(0.02), Some(0.4));
    if trial.name == "30" {
        account.disturbed = Some("others used 1.2 s of its processors".to_owned());
    }
    story.add(EventKind::Accounted { trial: name(), account });
    story.add(EventKind::TrialFinished {
        trial: name(),
        ok,
        error: (!ok).then(|| {
            "server-0: stage serve: `redis-server --io-threads 4` ended with signal 9 (SIGKILL)".to_owned()
        }),
        took: Duration::from_millis(5400),
    });
}
