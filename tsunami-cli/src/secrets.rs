//! Values that must not be shown: replaced in everything that is written or printed.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tsunami_core::{Event, EventKind, Observer, Origin, Stream};

use crate::experiment::{EnvValue, Experiment};

/// What stands in a secret's place.
const MASK: &[u8] = b"[secret]";

/// The secrets of an experiment: what its `from_env` variables held.
#[derive(Clone, Default)]
pub(crate) struct Secrets(Arc<[Vec<u8>]>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    pub(crate) fn of(experiment: &Experiment) -> Self {
        let groups = experiment.groups.iter().flat_map(|group| &group.env);
        let steps = experiment.steps.iter().flat_map(|step| &step.env);
        let mut secrets: Vec<Vec<u8>> = groups
            .chain(steps)
            .filter_map(|(_, value)| match value {
                EnvValue::FromEnv { value, .. } => Some(value.reveal().as_bytes().to_vec()),
                EnvValue::Text(_) => None,
            })
            .filter(|secret| !secret.is_empty())
            .collect();
        // A secret that contains another goes first.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self(secrets.into())
    }

    /// A text without the secrets.
    pub(crate) fn redact(&self, text: &str) -> String {
        let (redacted, rest) = self.split(text.as_bytes());
        String::from_utf8_lossy(&[redacted.as_slice(), rest].concat()).into_owned()
    }

    /// Redacts what people and machines wrote: the values of an event, not its kind.
    fn redact_texts(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.redact(text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.redact_texts(value)),
            Value::Object(fields) => {
                fields
                    .iter_mut()
                    .filter(|(name, _)| *name != "event")
                    .for_each(|(_, value)| self.redact_texts(value));
            }
            _ => {}
        }
    }

    /// What may be shown of some bytes, and the end of them that may be the beginning of a secret.
    fn split<'a>(&self, bytes: &'a [u8]) -> (Vec<u8>, &'a [u8]) {
        let mut shown = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        'next: while !rest.is_empty() {
            for secret in &*self.0 {
                if rest.starts_with(secret) {
                    shown.extend_from_slice(MASK);
                    rest = &rest[secret.len()..];
                    continue 'next;
                }
            }
            if self.0.iter().any(|secret| secret.starts_with(rest)) {
                break;
            }
            shown.push(rest[0]);
            rest = &rest[1..];
        }
        (shown, rest)
    }
}

/// Observers that see no secrets.
#[derive(Debug)]
pub(crate) struct Redacted {
    secrets: Secrets,
    observers: Vec<Arc<dyn Observer>>,
    /// Ends of output that may be beginnings of secrets.
    held: Mutex<HashMap<(String, String, Stream), Vec<u8>>>,
}

impl Redacted {
    pub(crate) fn new(secrets: Secrets, observers: Vec<Arc<dyn Observer>>) -> Self {
        Self { secrets, observers, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<(String, String, Stream), Vec<u8>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass_on(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.observers.iter().try_for_each(|observer| observer.output(origin, stream, bytes))
    }

    /// The event with its texts redacted; `None` if that makes no event any more, which nobody may see then.
    fn redacted(&self, event: &Event) -> Option<Event> {
        let mut value = serde_json::to_value(event).ok()?;
        self.secrets.redact_texts(&mut value);
        serde_json::from_value(value).ok()
    }
}

impl Observer for Redacted {
    fn event(&self, event: &Event) {
        if let EventKind::CommandFinished { machine, stage, .. } = &event.kind {
            let origin = Origin { machine, stage };
            for stream in [Stream::Stdout, Stream::Stderr] {
                // What never became a secret is output after all. The command is over: nobody takes an error.
                let rest = self.held().remove(&(machine.clone(), stage.clone(), stream)).unwrap_or_default();
                let _ = self.pass_on(&origin, stream, &rest);
            }
        }
        let redacted = if self.secrets.0.is_empty() { Some(event.clone()) } else { self.redacted(event) };
        for observer in &self.observers {
            redacted.iter().for_each(|event| observer.event(event));
        }
    }

    fn output(&self, origin: &Origin<'_>, stream: Stream, bytes: &[u8]) -> std::io::Result<()> {
        if self.secrets.0.is_empty() {
            return self.pass_on(origin, stream, bytes);
        }
        let key = (origin.machine.to_owned(), origin.stage.to_owned(), stream);
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

    fn secrets(values: &[&str]) -> Secrets {
        Secrets(values.iter().map(|value| value.as_bytes().to_vec()).collect())
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
        let text = b"token=hunter2; huntress hunter";
        for size in 1..text.len() {
            let seen = Arc::new(Seen::default());
            let redacted = Redacted::new(secrets(&["hunter2"]), vec![seen.clone()]);
            let origin = Origin { machine: "a", stage: "b" };
            for chunk in text.chunks(size) {
                redacted.output(&origin, Stream::Stdout, chunk).unwrap();
            }
            let (machine, stage, command) = ("a".into(), "b".into(), "echo \"hunter2\"".into());
            let kind =
                EventKind::CommandFinished { machine, stage, command, exit: None, error: None, seconds: 0.0 };
            redacted.event(&Event { at: 0.0, elapsed: 0.0, kind });
            assert_eq!(
                seen.0.lock().unwrap().as_slice(),
                b"token=[secret]; huntress hunter",
                "in pieces of {size}"
            );
            assert!(!format!("{:?}", seen.1.lock().unwrap()).contains("hunter2"));
        }
    }

    #[test]
    fn a_secret_that_looks_like_part_of_an_event_is_redacted_all_the_same() {
        let seen = Arc::new(Seen::default());
        let redacted = Redacted::new(secrets(&["machine", "17", "trial_started"]), vec![seen.clone()]);
        let kind = EventKind::TrialStarted { trial: "the machine 17".into() };
        redacted.event(&Event { at: 1717.0, elapsed: 17.0, kind });
        let seen = seen.1.lock().unwrap();
        assert_eq!(seen[0].kind, EventKind::TrialStarted { trial: "the [secret] [secret]".into() });
    }

    #[test]
    fn a_text_loses_its_secrets() {
        assert_eq!(secrets(&["abc", "ab"]).redact("xabcab a"), "x[secret][secret] a");
        assert_eq!(secrets(&[]).redact("abc"), "abc");
    }
}
