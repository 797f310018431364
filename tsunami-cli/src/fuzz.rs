//! What others write, at random: nothing of it makes the program panic, and nothing that a terminal acts on comes out.
//!
//! A few hundred cases each; `TSUNAMI_FUZZ_CASES` asks for another number.

#[path = "../../tsunami-core/src/fuzz/hostile.rs"]
mod hostile;

use std::fs;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use proptest::sample::Index;
use tsunami_core::results::json;
use tsunami_core::text::mark;
use tsunami_core::{Deadline, Event, Observer as _, Origin, Report, RunRecord, RunStore, Stream};

use crate::reporter::{Plain, Shared, Verbosity, little_run};
use crate::terminal::{Message, Style, clean_lines, one_line};
use hostile::{HOSTILE, assert_clean, bytes, changed, changes, config, text};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_that_a_terminal_acts_on_passes_the_door(text in text(), bytes in bytes(), colour: bool) {
        let line = one_line(&text);
        assert_clean(&line);
        assert!(!line.contains('\n'), "{line:?}");
        assert_clean(&clean_lines(&bytes));

        let mut message = Message::new(colour);
        message.line(&[(Style::Error, &text), (Style::Plain, &text)]);
        assert_eq!(message.as_str().matches('\n').count(), 1);
        message.entry(&[(Style::Plain, "error: ")], &text);
        let ours = message.as_str().lines().skip(1).filter(|line| !line.starts_with("    ")).count();
        assert_eq!(ours, 1, "{message}");
        message.drawing(&mark(&text));
        let without_colours = message.as_str().replace("\u{1b}[1;31m", "").replace("\u{1b}[0m", "");
        assert_clean(&without_colours);
    }

    #[test]
    fn any_event_is_told_cleanly(which in any::<Index>(), changes in changes(HOSTILE)) {
        let events = little_run();
        let line = json(which.get(&events)).unwrap();
        let Ok(event) = serde_json::from_slice::<Event>(&changed(&line, &changes)) else { return Ok(()) };
        let written = Shared::default();
        let plain = Plain::new(Box::new(written.clone()), Verbosity::Verbose, false);
        let mut report = Report::default();
        for event in [&events[0], &event] {
            plain.event(event);
            report.add(event);
        }
        assert_clean(&written.text());
        assert_eq!(serde_json::from_str::<Event>(&json(&event).unwrap()).unwrap(), event);
    }

    #[test]
    fn any_output_stays_in_lines_of_its_own(bytes in bytes(), cut in any::<Index>()) {
        let written = Shared::default();
        let plain = Plain::new(Box::new(written.clone()), Verbosity::Verbose, false);
        let origin = Origin::new("client-0", "setup");
        let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
        for bytes in [first, second, b"\n"] {
            plain.output(&origin, Stream::Stdout, bytes).unwrap();
        }
        let text = written.text();
        assert_clean(&text);
        assert!(text.lines().all(|line| line.starts_with("         client-0  setup | ")), "{text}");
    }

    #[test]
    fn any_record_is_read_or_refused(record in changes(HOSTILE), machines in bytes()) {
        let root = tempfile::tempdir().unwrap();
        let run = "20231114-221320-abcd";
        let began = SystemTime::UNIX_EPOCH;
        let deadline = Deadline { at: began, lifetime: Duration::from_secs(60) };
        let valid = RunRecord::new(run.parse().unwrap(), "x", "local", began, deadline);
        let directory = root.path().join(run);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("record.json"), changed(&json(&valid).unwrap(), &record)).unwrap();
        fs::write(directory.join("machines.json"), machines).unwrap();
        let state = RunStore::at(root.path());
        for found in state.runs().unwrap() {
            for error in [found.record().err(), found.machines().err()].into_iter().flatten() {
                assert_clean(&crate::error::Error::Core(error).text(&crate::error::Removal::Down));
            }
        }
        let _ = state.find("x");
    }
}
