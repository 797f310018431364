//! What a run waits for, in words.

use std::collections::HashMap;

use tsunami_core::experiment::{Action, Experiment, Ready, ReadyWhen};
use tsunami_core::text::{number, shorten};
use tsunami_core::{Event, EventKind};

use super::text::{first_line, in_rows};

/// How much of a command is shown.
const COMMAND: usize = 48;

/// How many machines, or rows of them, are named.
const NAMED: usize = 4;

/// What is waited for before a run tells anything.
pub(super) const BEFORE: &str = "for checks, prices and what the file prepares";

/// What a run waits for, by its events.
#[derive(Debug, Default)]
pub(super) struct Waits {
    machines: Vec<(String, Doing)>,
    places: HashMap<String, usize>,
    step: Option<Step>,
    launched: usize,
    phase: Phase,
    signs: Signs,
}

/// By what it is told that the steps of these names have come up: `until it listens on port 80`.
pub(crate) type Signs = HashMap<String, String>;

/// How the steps of an experiment that start something are known to have come up.
pub(crate) fn signs(experiment: &Experiment) -> Signs {
    let steps = experiment.steps.iter().chain(experiment.sets.iter().flat_map(|set| &set.steps));
    let sign = |step: &tsunami_core::experiment::Step| {
        let Action::Start { ready: Some(Ready { when, .. }), .. } = &step.action else { return None };
        let until = match when {
            ReadyWhen::Port(port) => format!("it listens on port {port}"),
            ReadyWhen::Http { port, path } => format!("it answers at port {port} for {}", path.source()),
            ReadyWhen::Command(command) => format!("`{}` succeeds", brief(command.source())),
            ReadyWhen::Log(text) => format!("it prints `{}`", brief(text.source())),
            _ => return None,
        };
        Some((step.name.clone(), format!("until {until}")))
    };
    steps.filter_map(sign).collect()
}

fn brief(text: &str) -> String {
    shorten(&first_line(text), COMMAND).into_owned()
}

/// A step that goes on.
#[derive(Debug, Default)]
struct Step {
    name: String,
    begun: bool,
    /// Where its commands run yet, by their ids.
    running: HashMap<u64, String>,
    /// Where they have ended, and nothing has come home.
    ended: Vec<String>,
}

/// How far all of it is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Before,
    Over,
    SettingUp,
    Trials,
    Ending,
}

/// What a machine does on its way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Doing {
    Launching,
    Starting,
    Connecting,
    Booting,
    SettingUp,
    Running(u64, String),
    Settled,
}

impl Waits {
    /// How many machines there were.
    pub(super) fn launched(&self) -> usize {
        self.launched
    }

    pub(super) fn event(&mut self, event: &Event) {
        match &event.kind {
            EventKind::RunStarted { groups, .. } => {
                let signs = std::mem::take(&mut self.signs);
                *self = Self { phase: Phase::SettingUp, signs, ..Self::default() };
                for group in groups {
                    for index in 0..group.count {
                        self.becomes(&format!("{}-{index}", group.name), Doing::Launching);
                    }
                }
            }
            EventKind::Launched { group, machines } => {
                self.launched += machines.len();
                let waits = |name: &str| name.rsplit_once('-').is_some_and(|(of, _)| of == group);
                for (name, doing) in &mut self.machines {
                    if *doing == Doing::Launching && waits(name) {
                        *doing = Doing::Starting;
                    }
                }
            }
            EventKind::Running { machine, .. } => self.becomes(machine, Doing::Connecting),
            EventKind::Connected { machine, .. } => self.becomes(machine, Doing::Booting),
            EventKind::Verified { machine, .. } => self.becomes(machine, Doing::SettingUp),
            EventKind::Ready { machine, .. }
            | EventKind::Failed { machine, .. }
            | EventKind::Interrupted { machine, .. } => self.becomes(machine, Doing::Settled),
            EventKind::CommandStarted { machine, command_id, command, stage, .. } => {
                if let Some(step) = self.step.as_mut().filter(|step| step.name == *stage) {
                    step.begun = true;
                    step.running.insert(*command_id, machine.clone());
                } else if self.doing(machine).is_some_and(|doing| *doing != Doing::Settled) {
                    self.becomes(machine, Doing::Running(*command_id, first_line(command)));
                }
            }
            EventKind::CommandFinished { machine, command_id, .. } => {
                if let Some(step) = &mut self.step {
                    step.ended.extend(step.running.remove(command_id));
                }
                if matches!(self.doing(machine), Some(Doing::Running(id, _)) if id == command_id) {
                    self.becomes(machine, Doing::SettingUp);
                }
            }
            EventKind::Collected { machine, stage, .. } => {
                if let Some(step) = self.step.as_mut().filter(|step| step.name == *stage) {
                    step.ended.retain(|ended| ended != machine);
                }
            }
            EventKind::TrialStarted { .. } => (self.phase, self.step) = (Phase::Trials, None),
            EventKind::StepStarted { step, .. } => {
                self.step = Some(Step { name: step.clone(), ..Step::default() });
            }
            EventKind::StepFinished { .. } => self.step = None,
            EventKind::TearingDown { .. } => self.phase = Phase::Ending,
            EventKind::TornDown { .. } | EventKind::Kept { .. } | EventKind::RunFinished { .. } => {
                self.phase = Phase::Over;
            }
            // Nobody waits for anything else than before.
            _ => {}
        }
    }

    /// What is waited for, and whether a line has said so when it began.
    pub(super) fn words(&self) -> Option<(bool, String)> {
        match self.phase {
            Phase::Before => Some((false, BEFORE.to_owned())),
            Phase::Over => None,
            Phase::Ending => Some((false, format!("until {} gone", are(self.launched)))),
            Phase::Trials => {
                let Some(step @ Step { name, running, ended, begun }) = &self.step else {
                    return Some((false, "for what goes before and after a trial's steps".to_owned()));
                };
                let on = self.names(|name, _| running.values().any(|it| it == name));
                Some(match (running.is_empty(), ended.is_empty(), self.sign(step)) {
                    (false, _, Some(sign)) => (false, format!("for step {name} on {on}: {sign}")),
                    (false, _, None) => (true, format!("for step {name} on {on}")),
                    (true, false, _) => {
                        (false, format!("for downloads of step {name} from {}", self.named(ended)))
                    }
                    (true, true, _) => {
                        (false, format!("for step {name} to {}", if *begun { "end" } else { "begin" }))
                    }
                })
            }
            Phase::SettingUp => {
                let mut doings: Vec<&Doing> = self.machines.iter().map(|(_, doing)| doing).collect();
                doings.sort_by_key(|doing| kind(doing));
                doings.dedup_by_key(|doing| kind(doing));
                let told = doings.iter().all(|doing| matches!(doing, Doing::Launching | Doing::Settled));
                let parts: Vec<String> = doings.into_iter().filter_map(|doing| self.part(doing)).collect();
                (!parts.is_empty()).then(|| (told, parts.join("; ")))
            }
        }
    }

    /// What the step that goes on is waited for, where its name and its machines' commands don't say it.
    pub(super) fn step(&self) -> Option<String> {
        let step = self.step.as_ref()?;
        match (step.running.is_empty(), step.ended.is_empty()) {
            (false, _) => self.sign(step).cloned(),
            (true, false) => Some(format!("downloads from {}", self.named(&step.ended))),
            (true, true) => None,
        }
    }

    fn sign(&self, step: &Step) -> Option<&String> {
        self.signs.get(&step.name)
    }

    /// Takes note of how steps are known to have come up.
    pub(super) fn know(&mut self, signs: Signs) {
        self.signs = signs;
    }

    /// What the machines are waited for that do this or the like.
    fn part(&self, doing: &Doing) -> Option<String> {
        let on = self.names(|_, other| kind(other) == kind(doing));
        Some(match doing {
            Doing::Launching => format!("for the provider to launch {on}"),
            Doing::Starting => format!("for an address of {on}"),
            Doing::Connecting => format!("for SSH on {on}"),
            Doing::Booting => format!("until {on} has booted and is checked"),
            Doing::SettingUp => format!("for uploads and set-up on {on}"),
            Doing::Running(_, command) => {
                format!("for set-up on {on}: `{}`", shorten(command, COMMAND))
            }
            Doing::Settled => return None,
        })
    }

    fn named(&self, machines: &[String]) -> String {
        self.names(|name, _| machines.iter().any(|it| it == name))
    }

    fn names(&self, which: impl Fn(&str, &Doing) -> bool) -> String {
        let chosen = self.machines.iter().filter(|(name, doing)| which(name, doing));
        in_rows(&chosen.map(|(name, _)| name.clone()).collect::<Vec<_>>(), NAMED)
    }

    fn doing(&self, machine: &str) -> Option<&Doing> {
        self.places.get(machine).map(|place| &self.machines[*place].1)
    }

    fn becomes(&mut self, machine: &str, doing: Doing) {
        match self.places.get(machine) {
            Some(place) => self.machines[*place].1 = doing,
            None => {
                self.places.insert(machine.to_owned(), self.machines.len());
                self.machines.push((machine.to_owned(), doing));
            }
        }
    }
}

/// What is the same of machines that are told together.
fn kind(doing: &Doing) -> (u8, &str) {
    match doing {
        Doing::Launching => (0, ""),
        Doing::Starting => (1, ""),
        Doing::Connecting => (2, ""),
        Doing::Booting => (3, ""),
        Doing::SettingUp => (4, ""),
        Doing::Running(_, command) => (5, command),
        Doing::Settled => (6, ""),
    }
}

/// So many machines, and what they are.
pub(super) fn are(machines: usize) -> String {
    format!("{} {}", number(machines, "machine"), if machines == 1 { "is" } else { "are" })
}

#[cfg(test)]
mod tests {
    use tsunami_core::Exit;
    use tsunami_core::experiment::Loader;

    use super::*;
    use crate::reporter::text::tests::{at, finished, little_run, numbered, started};

    #[test]
    fn what_is_waited_for_is_told_of_machines_that_are_alike_together() {
        use EventKind::*;
        let events = little_run();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.toml");
        let text = "name = 'x'\nprovider = 'local'\n[group.a]\n[[step]]\nname = 'server'\non = 'a'\nstart = 'x'\nready = { port = 80 }\n";
        std::fs::write(&file, text).unwrap();
        let experiment = Loader::new().registry(&crate::registry()).load(&file).unwrap();
        let mut waits = Waits::default();
        waits.know(signs(&experiment));
        let mut after = |event: &Event| {
            waits.event(event);
            waits.words().map(|(_, words)| words).unwrap_or_default()
        };
        assert_eq!(after(&events[0]), "for the provider to launch server-0, client-0, client-1");
        let launched = "for the provider to launch server-0; for an address of client-0, client-1";
        assert_eq!(after(&events[3]), launched);
        let running = "for the provider to launch server-0; for an address of client-1; for SSH on client-0";
        assert_eq!(after(&events[4]), running);
        assert!(after(&events[5]).ends_with("until client-0 has booted and is checked"));
        let command = numbered(started("client-0", "setup", "apt-get update\nmore"), 4);
        assert!(after(&at(1.0, command)).ends_with("; for set-up on client-0: `apt-get update …`"));
        after(&at(2.0, Ready { machine: "server-0".into(), id: None }));
        after(&at(2.0, Ready { machine: "client-0".into(), id: None }));
        let ready = after(&at(2.0, Ready { machine: "client-1".into(), id: None }));
        assert_eq!(ready, "");
        after(&at(3.0, TrialStarted { trial: "1".into() }));
        let machines = vec!["client-0".to_owned(), "client-1".to_owned()];
        after(&at(3.0, StepStarted { trial: "1".into(), step: "load".into(), machines }));
        assert_eq!(
            after(&at(3.0, numbered(started("client-1", "load", "x"), 7))),
            "for step load on client-1"
        );
        let ended = numbered(finished("client-1", "load", "x", Ok(Exit::Status(0))), 7);
        assert_eq!(after(&at(4.0, ended)), "for downloads of step load from client-1");
        let home = |machine: &str| Collected {
            machine: machine.into(),
            id: None,
            stage: "load".into(),
            into: "results".into(),
            files: 1,
        };
        assert_eq!(after(&at(4.0, home("client-1"))), "for step load to end");
        let machines = vec!["server-0".to_owned()];
        assert_eq!(
            after(&at(4.0, StepStarted { trial: "1".into(), step: "server".into(), machines })),
            "for step server to begin"
        );
        assert_eq!(
            after(&at(4.0, numbered(started("server-0", "server", "x"), 8))),
            "for step server on server-0: until it listens on port 80"
        );
        assert_eq!(after(&at(5.0, TearingDown { reason: "done".into() })), "until 2 machines are gone");
        assert_eq!(after(&events[events.len() - 1]), "");
    }
}
