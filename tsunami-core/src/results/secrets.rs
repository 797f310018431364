//! Values that must not be shown: replaced in every text that is written or printed. Names, ids and states are no
//! texts: whoever reads a record must find in it what it is about.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::experiment::{EnvValue, Experiment};
use crate::{Event, EventKind, Observer, Origin, Stream};

/// What stands in a secret's place.
const MASK: &[u8] = b"[secret]";

/// The least bytes of a secret, or of a line of one, that is looked for: whatever is shorter is found in texts that
/// have nothing to do with it, and they would say nothing any more.
const LEAST: usize = 8;

/// The secrets of an experiment: what its `from_env` variables held.
#[derive(Clone, Default)]
pub struct Secrets {
    /// Values, and lines of them; what contains another goes first.
    values: Arc<[Vec<u8>]>,
    /// The variables whose values are too short to be looked for.
    unprotected: Arc<[String]>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", self.values.len())
    }
}

impl Secrets {
    /// All that an experiment has.
    pub fn of(experiment: &Experiment) -> Self {
        let groups = experiment.groups.iter().flat_map(|group| &group.env);
        let steps = experiment.steps.iter().flat_map(|step| &step.env);
        Self::new(groups.chain(steps).filter_map(|(_, value)| match value {
            EnvValue::FromEnv { variable, value } => Some((variable.as_str(), value.reveal().as_bytes())),
            EnvValue::Text(_) => None,
        }))
    }

    fn new<'a>(secrets: impl Iterator<Item = (&'a str, &'a [u8])>) -> Self {
        let (mut values, mut unprotected) = (BTreeSet::new(), BTreeSet::new());
        for (variable, secret) in secrets.filter(|(_, secret)| !secret.is_empty()) {
            if secret.len() < LEAST {
                unprotected.insert(variable.to_owned());
                continue;
            }
            // Whatever sets its lines in, or reads them one by one, shows them one by one.
            let lines = secret.split(|byte| matches!(byte, b'\n' | b'\r')).map(<[u8]>::trim_ascii);
            values.extend(lines.chain([secret]).filter(|line| line.len() >= LEAST).map(<[u8]>::to_vec));
        }
        let mut values = Vec::from_iter(values);
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Self { values: values.into(), unprotected: unprotected.into_iter().collect() }
    }

    /// What is to be known before somebody relies on it.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        self.unprotected.iter().map(|variable| {
            format!("{variable} has fewer than {LEAST} bytes: it is not taken out of logs and messages")
        })
    }

    /// A text without the secrets.
    pub fn redact(&self, text: &str) -> String {
        let (redacted, rest) = self.split(text.as_bytes());
        String::from_utf8_lossy(&[redacted.as_slice(), rest].concat()).into_owned()
    }

    /// What may be shown of some bytes, and the end of them that may be the beginning of a secret.
    fn split<'a>(&self, bytes: &'a [u8]) -> (Vec<u8>, &'a [u8]) {
        let mut shown = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        'next: while !rest.is_empty() {
            for secret in &*self.values {
                if rest.starts_with(secret) {
                    shown.extend_from_slice(MASK);
                    rest = &rest[secret.len()..];
                    continue 'next;
                }
            }
            if self.values.iter().any(|secret| secret.starts_with(rest)) {
                break;
            }
            shown.push(rest[0]);
            rest = &rest[1..];
        }
        (shown, rest)
    }
}

/// Takes secrets out of one text that comes in pieces.
#[derive(Debug)]
pub(crate) struct Redacting {
    secrets: Secrets,
    /// The end of what came, which may be the beginning of a secret.
    held: Vec<u8>,
}

impl Redacting {
    pub(crate) fn new(secrets: Secrets) -> Self {
        Self { secrets, held: Vec::new() }
    }

    /// What may be shown by now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        let (shown, rest) = self.secrets.split(&self.held);
        self.held = rest.to_vec();
        shown
    }

    /// What never became a secret.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}

/// What output comes from: a machine, a stage, a command, and which of its outputs.
type Source = (String, String, u64, Stream);

/// Observers that see no secrets.
#[derive(Debug)]
pub struct Redacted {
    secrets: Secrets,
    observers: Vec<Arc<dyn Observer>>,
    /// Ends of output that may be beginnings of secrets.
    held: Mutex<HashMap<Source, Vec<u8>>>,
}

impl Redacted {
    /// Passes on to the observers what has no secrets any more.
    pub fn new(secrets: Secrets, observers: Vec<Arc<dyn Observer>>) -> Self {
        Self { secrets, observers, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Source, Vec<u8>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass_on(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.observers.iter().try_for_each(|observer| observer.output(origin, stream, bytes))
    }
}

impl Observer for Redacted {
    fn event(&self, event: &Event) {
        if let EventKind::CommandFinished { machine, id, stage, command_id, .. } = &event.kind {
            let origin = Origin::new(machine, stage).command(id.as_ref(), *command_id);
            for stream in [Stream::Stdout, Stream::Stderr] {
                // What never became a secret is output after all. The command is over: nobody takes an error.
                let rest = self
                    .held()
                    .remove(&(machine.clone(), stage.clone(), *command_id, stream))
                    .unwrap_or_default();
                let _ = self.pass_on(&origin, stream, &rest);
            }
        }
        let mut event = event.clone();
        if !self.secrets.values.is_empty() {
            event.kind.for_each_text(|text| *text = self.secrets.redact(text));
        }
        self.observers.iter().for_each(|observer| observer.event(&event));
    }

    fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        if self.secrets.values.is_empty() {
            return self.pass_on(origin, stream, bytes);
        }
        let key = (origin.machine.to_owned(), origin.stage.to_owned(), origin.command_id, stream);
        let mut data = self.held().remove(&key).unwrap_or_default();
        data.extend_from_slice(bytes);
        let (shown, rest) = self.secrets.split(&data);
        if !rest.is_empty() {
            self.held().insert(key, rest.to_vec());
        }
        self.pass_on(origin, stream, &shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{at, little_run};

    fn secrets(values: &[&str]) -> Secrets {
        Secrets::new(values.iter().map(|value| ("TOKEN", value.as_bytes())))
    }

    #[derive(Debug, Default)]
    struct Seen(Mutex<Vec<u8>>, Mutex<Vec<Event>>);

    impl Observer for Seen {
        fn event(&self, event: &Event) {
            self.1.lock().unwrap().push(event.clone());
        }

        fn output(&self, _: &Origin<'_>, _: Stream, bytes: &[u8]) -> std::io::Result<()> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(())
        }
    }

    #[test]
    fn a_secret_is_found_however_the_output_is_cut() {
        let text = b"token=hunter2-hunter2; huntress hunter2-hunter";
        for size in 1..text.len() {
            let seen = Arc::new(Seen::default());
            let redacted = Redacted::new(secrets(&["hunter2-hunter2"]), vec![seen.clone()]);
            let origin = Origin::new("a", "b");
            for chunk in text.chunks(size) {
                redacted.output(&origin, Stream::Stdout, chunk).unwrap();
            }
            let (machine, stage, command) = ("a".into(), "b".into(), "echo \"hunter2-hunter2\"".into());
            let kind = EventKind::CommandFinished {
                machine,
                id: None,
                stage,
                command_id: 0,
                command,
                exit: None,
                error: None,
                cancelled: false,
                took: Default::default(),
            };
            redacted.event(&at(0.0, kind));
            assert_eq!(
                seen.0.lock().unwrap().as_slice(),
                b"token=[secret]; huntress hunter2-hunter",
                "in pieces of {size}"
            );
            assert!(!format!("{:?}", seen.1.lock().unwrap()).contains("hunter2"));
        }
    }

    #[test]
    fn events_keep_their_form_and_their_names_whatever_a_secret_is() {
        let words =
            ["machines", "client-0", "20231114-221320-abcd", "trial_started", "per_hour", "192.0.2.7"];
        let seen = Arc::new(Seen::default());
        let redacted = Redacted::new(secrets(&words), vec![seen.clone()]);
        let events = little_run();
        events.iter().for_each(|event| redacted.event(event));
        let seen = seen.1.lock().unwrap();
        assert_eq!(seen.len(), events.len());
        for (seen, event) in seen.iter().zip(&events) {
            assert_eq!(seen, event, "no text of the little run has one of these words");
        }
        let mut kind = EventKind::Note { group: "client-0".into(), text: "all machines, client-0".into() };
        let expected = EventKind::Note { group: "client-0".into(), text: "all [secret], [secret]".into() };
        kind.for_each_text(|text| *text = redacted.secrets.redact(text));
        assert_eq!(kind, expected);
    }

    #[test]
    fn what_a_program_adds_is_redacted_whatever_its_fields_are_called() {
        let data = |secret: &str| {
            let all = serde_json::json!({ "id": secret, "what": [{ "machine": secret }], "n": 1 });
            EventKind::Custom { name: "hunter2-hunter2".into(), data: all }
        };
        let mut kind = data("my hunter2-hunter2");
        kind.for_each_text(|text| *text = secrets(&["hunter2-hunter2"]).redact(text));
        assert_eq!(kind, data("my [secret]"));
    }

    #[test]
    fn no_secret_is_put_together_of_what_two_commands_wrote() {
        let seen = Arc::new(Seen::default());
        let redacted = Redacted::new(secrets(&["hunter2-hunter2"]), vec![seen.clone()]);
        let write = |command: u64, bytes: &[u8]| {
            let origin = Origin::new("a", "b").command(None, command);
            redacted.output(&origin, Stream::Stdout, bytes).unwrap();
        };
        let end = |command: u64| {
            let kind = EventKind::CommandFinished {
                machine: "a".into(),
                id: None,
                stage: "b".into(),
                command_id: command,
                command: String::new(),
                exit: None,
                error: None,
                cancelled: false,
                took: std::time::Duration::ZERO,
            };
            redacted.event(&at(0.0, kind));
        };
        write(1, b"hunter2-");
        write(2, b"hunter2\n");
        write(1, b"hunter2\n");
        end(1);
        end(2);
        // One after the other, neither are they.
        write(3, b"hunter2-");
        end(3);
        write(4, b"hunter2\n");
        end(4);
        assert_eq!(seen.0.lock().unwrap().as_slice(), b"hunter2\n[secret]\nhunter2-hunter2\n");
    }

    #[test]
    fn a_text_loses_its_secrets_and_each_of_their_lines() {
        let two = secrets(&["abcdefghijk", "abcdefgh"]);
        assert_eq!(two.redact("xabcdefghijkabcdefgh a"), "x[secret][secret] a");
        let key = secrets(&["first-half\r\n  second-half\nend"]);
        assert_eq!(key.redact("> first-half\n> second-half\n> end"), "> [secret]\n> [secret]\n> end");
        assert_eq!(secrets(&[]).redact("abc"), "abc");
    }

    #[test]
    fn what_is_too_short_is_left_alone_and_named_once() {
        let secrets = secrets(&["0", "hunter2", "", "long enough"]);
        assert_eq!(secrets.redact("0 hunter2 long enough"), "0 hunter2 [secret]");
        assert_eq!(secrets.warnings().count(), 1);
        assert!(secrets.warnings().next().unwrap().contains("TOKEN"));
    }
}
