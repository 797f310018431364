//! Results and reports that are made from a run's directory.

mod browser;
mod fields;
mod sample;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tsunami_core::experiment::Experiment;
use tsunami_core::results::{ColdStarts, Results, SideBySide, markdown, read_report, rebuild, summary};
use tsunami_core::statistics::{Threshold, Warning};
use tsunami_core::{Event, EventKind, MachineId, Outcome, Price, Report, read_events};

use browser::Browser;

/// A results directory with what is made of a run.
fn built(story: &sample::Story) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    story.write(directory.path());
    let logs = directory.path().join("logs/server-0");
    fs::create_dir_all(&logs).unwrap();
    fs::write(logs.join("serve.log"), format!("$ redis-server\n{}\nOut of memory\n", sample::HOSTILE))
        .unwrap();
    traced(directory.path(), "server-0");
    rebuild(directory.path()).unwrap();
    directory
}

/// Writes what a machine was busy with while the story goes on.
fn traced(directory: &Path, machine: &str) {
    let traces = directory.join("traces");
    fs::create_dir_all(&traces).unwrap();
    let rows = (0..1200)
        .map(|second| format!("{},{:.1}\n", 1_790_000_000 + second, 4.0 + f64::from(second % 90) / 30.0));
    fs::write(traces.join(format!("{machine}.csv")), format!("time,cpu\n{}", rows.collect::<String>()))
        .unwrap();
}

fn read(directory: &Path, name: &str) -> String {
    fs::read_to_string(directory.join(name)).unwrap()
}

fn analysed(story: &sample::Story) -> (Report, String) {
    let report: Report = story.events.iter().collect();
    let told = markdown(&report.analysis());
    (report, told)
}

#[test]
fn a_sweep_is_told_in_rows_in_values_and_in_words() {
    let plan = sample::plan(10, &[1, 4, 16]);
    let story = sample::sweep(&plan, 4, false);
    let directory = built(&story);
    let results: Value = serde_json::from_str(&read(directory.path(), "results.json")).unwrap();
    assert_eq!((&results["schema"], &results["plan"]["seed"]), (&json!(1), &json!(7)));
    let trials = results["trials"].as_array().unwrap();
    let outcomes = |name: &str| trials.iter().filter(|trial| trial["outcome"] == name).count();
    assert_eq!(["ok", "failed", "void"].map(outcomes), [55, 5, 1]);
    let void = trials.iter().find(|trial| trial["outcome"] == "void").unwrap();
    assert_eq!(
        (&void["name"], &void["trial"], &void["void"]["reason"]),
        (&json!("21.1"), &json!("21"), &json!("interrupted"))
    );

    let page = read(directory.path(), "report.html");
    assert!(
        page.contains("signal 9 (SIGKILL), 5 times") && !page.contains("vmstat"),
        "what was ended on purpose is none"
    );

    let csv = read(directory.path(), "results.csv");
    let mut lines = csv.lines();
    let heads: Vec<&str> = lines.next().unwrap().split(',').collect();
    // Two metrics, for the machine and for the trial.
    assert_eq!(lines.clone().count(), 61 * 4);
    let column = |line: &str, name: &str| {
        line.split(',').nth(heads.iter().position(|head| *head == name).unwrap()).unwrap().to_owned()
    };
    let sum: f64 = lines
        .filter(|line| column(line, "metric") == "rps" && column(line, "machine").is_empty())
        .filter(|line| column(line, "outcome") == "ok" && column(line, "variant") == "new")
        .map(|line| column(line, "value").parse::<f64>().unwrap())
        .sum();
    let (report, told) = analysed(&story);
    let compared = report.compare("variant", "rps").unwrap();
    let values = compared.combinations.iter().flat_map(|combination| &combination.variants[1].values);
    let same: f64 = values.map(|value| value.value).sum();
    assert!((sum - same).abs() < 1e-6 * sum, "{sum} {same}");

    assert!(told.starts_with("| metric | clients | variant | trials |"), "{told}");
    assert!(told.contains("rps of new is") && told.contains("new: 5 of 30 trials failed"), "{told}");
    let rps = compared.to_string();
    assert!(rps.contains("clients=16: rps of new is") && rps.contains("(better)"), "{rps}");
    let failure = report.analysis().failure().unwrap();
    assert!(failure.contains("`p99 > 1.02` holds for new where clients=16"), "{failure}");
    assert!(failure.contains("59 of 60 trials: the lifetime"), "{failure}");
}

#[test]
fn few_trials_have_no_interval_and_are_told_why() {
    for (rounds, is_told) in [(4, true), (5, false)] {
        let story = sample::sweep(&sample::plan(rounds, &[1]), 2, false);
        let (_, told) = analysed(&story);
        let why = "a median of fewer than 5 trials has no interval: ";
        assert_eq!(told.contains(&format!("\n- {why}`repeat`")), is_told, "{told}");
        let page = read(built(&story).path(), "report.html");
        assert_eq!(page.contains(&format!("<li>{why}<code>repeat</code>")), is_told);
    }
}

/// Finishes a run that such events tell of, and checks each file that it leaves.
fn check_fields(page: &fields::Page, events: &[Event], wrong: &mut BTreeSet<String>) {
    let home = tempfile::tempdir().unwrap();
    let (file, directory) = (home.path().join("x.toml"), home.path().join("results"));
    fs::write(&file, "name = 'x'\n[group.a]\n").unwrap();
    let mut experiment = Experiment::load(&file).unwrap();
    experiment.set.push(("n".to_owned(), "2".to_owned()));
    let results = Results::create(&experiment, &sample::run(), Some(&directory)).unwrap();
    let observers = results.observers();
    events.iter().for_each(|event| observers.iter().for_each(|observer| observer.event(event)));
    results.finish(&experiment, Outcome::Failed).unwrap();
    for name in ["results.json", "run.json", "manifest.json"] {
        let written: Value = serde_json::from_str(&read(&directory, name)).unwrap();
        page.check(&name.replace('.', ""), name, &written, wrong);
    }
}

#[test]
fn every_field_of_the_results_is_in_the_guide_and_nothing_else() {
    let page = fields::Page::read(include_str!("../../../docs/guide/src/fields.md"));
    let mut wrong = BTreeSet::new();
    // Comparisons that tell and that don't, hostile leftovers, and several sets of machines.
    for (rounds, hostile) in [(2, true), (10, false)] {
        let mut plan = sample::plan(rounds, &[1, 4, 16]);
        plan.only = vec![("clients".to_owned(), "1".to_owned())];
        let events = sample::sweep(&plan, 2, hostile).events;
        check_fields(&page, &[&*events, &*events].concat(), &mut wrong);
    }
    // Every kind of event, and a machine that took another one's place.
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/events-2.jsonl");
    let mut events = read_events(&fs::read(fixture).unwrap()[..]).unwrap();
    let is_running = |event: &&Event| matches!(event.kind, EventKind::Running { .. });
    let mut another = events.iter().find(is_running).unwrap().clone();
    if let EventKind::Running { id, price, .. } = &mut another.kind {
        (*id, *price) = (MachineId::new("fake-2"), Price::Free);
    }
    events.push(another);
    check_fields(&page, &events, &mut wrong);
    check_fields(&page, &[], &mut wrong);
    let warnings = [
        Warning::FewRounds { rounds: 2 },
        Warning::PlaceMatters { change: 0.1, adjusted: true },
        Warning::Outliers { rounds: 1 },
        Warning::Drift { change: 0.1 },
        Warning::Correlated { correlation: 0.5 },
        Warning::LeftOut { rounds: 1 },
    ];
    for warning in warnings {
        page.check("warning", "warnings[]", &serde_json::to_value(warning).unwrap(), &mut wrong);
    }
    page.check_all_met(&mut wrong);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn events_that_have_lost_something_overwrite_nothing() {
    let directory = built(&sample::sweep(&sample::plan(2, &[1]), 2, false));
    let (events, results) = (read(directory.path(), "events.jsonl"), read(directory.path(), "results.json"));
    let first: String = events.lines().take(3).map(|line| format!("{line}\n")).collect();
    let half: String =
        events.lines().take(events.lines().count() / 2).map(|line| format!("{line}\n")).collect();
    for (left, said) in [("", "no run is in it"), (&*first, "its end is lost"), (&half, "its end is lost")] {
        fs::write(directory.path().join("events.jsonl"), left).unwrap();
        let error = rebuild(directory.path()).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(said), "{error}: {source}");
        assert_eq!(read(directory.path(), "results.json"), results);
    }
    // Whoever wants what is left all the same says so.
    fs::remove_file(directory.path().join("results.json")).unwrap();
    rebuild(directory.path()).unwrap();
}

#[test]
fn a_manifest_has_the_digest_of_every_other_file() {
    let directory = built(&sample::sweep(&sample::plan(2, &[1]), 2, false));
    let manifest: Value = serde_json::from_str(&read(directory.path(), "manifest.json")).unwrap();
    let files = manifest["files"].as_array().unwrap();
    let names: Vec<&str> = files.iter().map(|file| file["path"].as_str().unwrap()).collect();
    let expected = [
        "events.jsonl",
        "logs/server-0/serve.log",
        "report.html",
        "results.csv",
        "results.json",
        "traces/server-0.csv",
    ];
    assert_eq!(names, expected);
    let lines = files
        .iter()
        .map(|file| format!("{}  {}\n", file["sha256"].as_str().unwrap(), file["path"].as_str().unwrap()));
    let mut check = Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet"])
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(lines.collect::<String>().as_bytes()).unwrap();
    assert!(check.wait().unwrap().success());
}

#[test]
fn what_earlier_versions_saved_is_reported() {
    for form in ["events-1.jsonl", "events-2.jsonl"] {
        let directory = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(form);
        fs::copy(fixture, directory.path().join("events.jsonl")).unwrap();
        let (report, built) = rebuild(directory.path()).unwrap();
        assert_eq!(built.len(), 4);
        // The first form knew of no sweeps; the other tells of one that measured nothing.
        let (table, failure) = (markdown(&report.analysis()), report.analysis().failure());
        assert_eq!(
            (table.is_empty(), failure.is_none()),
            (form == "events-1.jsonl", form == "events-1.jsonl")
        );
        let told = summary(&report);
        let row = "| trial | outcome | seconds |\n| --- | --- | --- |\n| 1 | void (interrupted) | 150 |";
        let measures = "- nothing was measured: the key `metrics` of a step says what is\n";
        assert_eq!(told.starts_with(row) && told.contains(measures), table.is_empty(), "{told}");
        let page = read(directory.path(), "report.html");
        assert!(page.contains("What ran where") && page.ends_with("</html>\n"), "{form}");
    }
}

#[test]
fn a_report_is_small_however_large_the_run() {
    let plan = sample::plan(3, &Vec::from_iter(1..=300));
    let directory = built(&sample::sweep(&plan, 1000, false));
    let page = read(directory.path(), "report.html");
    assert!(page.len() <= 1_000_000, "{}", page.len());
    assert!(page.contains("client × 1000") && page.contains("Critical path"), "groups are shown");
    // As many machines as are shown one by one, each with what it was busy with.
    let directory = built(&sample::sweep(&sample::plan(3, &[1, 4]), 99, false));
    (0..99).for_each(|client| traced(directory.path(), &format!("client-{client}")));
    rebuild(directory.path()).unwrap();
    let page = read(directory.path(), "report.html");
    assert!(page.len() <= 1_000_000, "{}", page.len());
    assert_eq!((page.matches("<polygon").count() / 100, page.contains("left out")), (1, false));
}

/// What a page says of itself to those who don't see it, and whether it does what it must not.
#[test]
fn a_browser_shows_all_of_it_and_nothing_hostile_happens() {
    let mut browser = Browser::start().expect("chromium is installed: `cargo xtask setup --tests`");
    let plan = sample::plan(10, &[1, 4, 16]);
    let plain = built(&sample::sweep(&plan, 4, false));
    let hostile = built(&sample::sweep(&plan, 4, true));
    let many = built(&sample::sweep(&sample::plan(3, &[1, 4]), 150, false));
    for (name, directory, figures) in [("many", &many, 10), ("plain", &plain, 12), ("hostile", &hostile, 12)]
    {
        for (width, scheme) in [(400, "light"), (400, "dark"), (1400, "light"), (1400, "dark")] {
            browser.emulate(width, scheme);
            let page = directory.path().join("report.html");
            browser.open(&page);
            let wide = browser.value("document.documentElement.scrollWidth");
            assert!(wide.as_u64().unwrap() <= u64::from(width), "{name} is {wide} wide on {width}");
            keep(&mut browser, &page, &format!("{name}-{width}-{scheme}"));
            let told: Vec<&Value> = browser
                .events
                .iter()
                .filter(|event| {
                    let method = event["method"].as_str().unwrap_or_default();
                    let asked = event["params"]["request"]["url"].as_str().unwrap_or("file:");
                    method == "Log.entryAdded"
                        || method.starts_with("Runtime.consoleAPI")
                        || method == "Runtime.exceptionThrown"
                        || (method == "Network.requestWillBeSent" && !asked.starts_with("file:"))
                })
                .collect();
            assert!(told.is_empty(), "{name}: {told:?}");
        }
        let count = |browser: &mut Browser, selector: &str| {
            browser.value(&format!("document.querySelectorAll({selector:?}).length")).as_u64().unwrap()
        };
        // Two metrics with a forest, medians and each combination; a timeline; a trace.
        assert_eq!(count(&mut browser, "figure > svg.plot, figure .scroll > svg.plot"), figures, "{name}");
        assert!(count(&mut browser, "figure svg circle") > 10, "{name}");
        // The machine that others waited for, and below the row of one what it was busy with.
        let path = browser.value("document.querySelector('#timeline ~ p:has(strong)').textContent");
        let path = path.as_str().unwrap();
        assert!(
            path.starts_with("Critical path: client-") && path.contains("(request 1.8 s, start "),
            "{path}"
        );
        assert!(
            path.contains(", boot ") && path.contains(") → trials ") && path.contains(" → teardown "),
            "{path}"
        );
        if name != "many" {
            assert_eq!(count(&mut browser, ".wide svg polygon"), 1, "{name}");
            // Trials that are no values differ from those that are by their shapes, and the legend has these.
            let marks = "[...document.querySelectorAll('[aria-label=Marks] li')].map(one => one.textContent.trim()).join()";
            assert_eq!(browser.value(marks), "old,new,failed,void", "{name}");
            let diamonds = "[...document.querySelectorAll('.figures polyline[fill=none]')]\
                            .filter(one => one.points.numberOfItems == 5).length";
            // Of each metric five, and one ring.
            assert_eq!(browser.value(diamonds), 10, "{name}");
            assert_eq!(count(&mut browser, ".figures circle[fill=none]"), 2, "{name}");
        }
        assert_eq!(count(&mut browser, "script, img, iframe, link, object, [onerror], [src]"), 0, "{name}");
        assert_eq!(count(&mut browser, "main, header, nav, footer, h1"), 5, "{name}");
        assert_eq!(
            count(
                &mut browser,
                "table:not(:has(caption)), svg[role=img]:not(:has(title)), details:not(:has(summary))"
            ),
            0
        );
        // Every level of headings has the one above it.
        let levels = browser.value("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])");
        let levels: Vec<i64> = serde_json::from_value(levels).unwrap();
        assert!(levels[0] == 1 && levels.windows(2).all(|two| two[1] <= two[0] + 1), "{levels:?}");
        let dark = browser.value("getComputedStyle(document.querySelector('.plot text')).fill");
        assert_eq!(dark, "rgb(228, 232, 236)", "the letters of plots are light in the dark");
        let title = browser.value("document.title");
        assert!(!title.as_str().unwrap().starts_with("taken"), "{title}");
    }
    let text = browser.value("document.body.textContent");
    let text = text.as_str().unwrap();
    assert!(text.contains("<script>document.title='taken'</script>"), "it is shown as the text that it is");
    assert!(text.chars().all(|c| c == '\n' || tsunami_core::text::harmless(c)));

    // What a screen reader is told.
    browser.open(&plain.path().join("report.html"));
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().unwrap();
    let named = |role: &str| -> Vec<&str> {
        let of_role = nodes.iter().filter(|node| node["role"]["value"] == role && node["ignored"] != true);
        of_role.map(|node| node["name"]["value"].as_str().unwrap_or_default()).collect()
    };
    let images = named("image");
    assert!(images.contains(&"rps against old") && images.iter().all(|name| !name.is_empty()), "{images:?}");
    for role in ["banner", "navigation", "main", "contentinfo"] {
        assert_eq!(named(role).len(), 1, "{role}");
    }
    assert!(named("table").iter().all(|name| !name.is_empty()));
    // The first key leads past the navigation; a further one opens what is closed.
    browser.press("Tab", 9);
    assert_eq!(browser.value("document.activeElement.textContent"), "To the content");
    browser.press("Enter", 13);
    assert_eq!(browser.value("location.hash"), "#content");
    browser.value("document.querySelector('figure summary').focus()");
    browser.press("Enter", 13);
    assert_eq!(browser.value("document.querySelector('figure details').open"), true);
}

/// Keeps the page and a picture of it in the directory `TSUNAMI_SCREENSHOTS`, for people to look at.
fn keep(browser: &mut Browser, page: &Path, name: &str) {
    let Some(directory) = std::env::var_os("TSUNAMI_SCREENSHOTS") else { return };
    let page = fs::read(page).unwrap();
    fs::write(Path::new(&directory).join(format!("{name}.html")), page).unwrap();
    let file = fs::File::create(Path::new(&directory).join(format!("{name}.png"))).unwrap();
    let mut decode =
        Command::new("base64").arg("--decode").stdin(Stdio::piped()).stdout(file).spawn().unwrap();
    decode.stdin.take().unwrap().write_all(browser.screenshot().as_bytes()).unwrap();
    assert!(decode.wait().unwrap().success());
}

/// Of older runs, or without what a connector tells, phases are known together.
#[test]
fn how_machines_came_up_is_summed_up_over_runs_by_what_they_are() {
    let plan = sample::plan(2, &[1]);
    let runs: Vec<_> = (0..2).map(|day| built(&sample::sweep_on(day, 1.0, &plan, 2, false))).collect();
    let old = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/events-1.jsonl");
    fs::copy(fixture, old.path().join("events.jsonl")).unwrap();
    let directories: Vec<&Path> = runs.iter().map(tempfile::TempDir::path).chain([old.path()]).collect();
    let starts = ColdStarts::read(&directories).unwrap();
    let csv = starts.csv();
    let of = |kind: &str| -> Vec<&str> {
        csv.lines().filter_map(|line| line.strip_prefix(kind)?.strip_prefix(',')).collect()
    };
    let phases = |rows: &[&str]| -> Vec<String> {
        rows.iter().map(|row| row.split(',').nth(2).unwrap().to_owned()).collect()
    };
    // Three machines each time: of the server, and of two clients.
    let server = of("c7g.2xlarge");
    assert_eq!(
        phases(&server),
        ["request", "start", "boot", "login", "verify", "request to verified", "set-up"]
    );
    assert_eq!(server[0], "ami-0abc,eu-west-1,request,2,1.8,1.8,1.8");
    assert!(of("c7g.large").contains(&"ami-0abc,eu-west-1,login,4,0.25,0.25,0.25"), "{csv}");
    let earlier = phases(&of("a fake machine"));
    assert_eq!(earlier, ["request", "start", "boot and login", "verify and set-up"], "{csv}");
    let table = starts.markdown();
    assert!(
        table.contains("| c7g.2xlarge | ami-0abc | eu-west-1 | request | 2 | 1.80 | 1.80 | 1.80 |"),
        "{table}"
    );
    // Whatever a provider says, it is a text.
    let hostile = built(&sample::sweep(&plan, 1, true));
    let mut starts = ColdStarts::default();
    starts.add(&read_report(hostile.path()).unwrap());
    for told in [starts.csv(), starts.markdown()] {
        assert!(told.chars().all(|c| c == '\n' || tsunami_core::text::harmless(c)), "{told:?}");
    }
}

#[test]
fn runs_stand_side_by_side_if_their_machines_are_alike() {
    let plan = sample::plan(6, &[1]);
    let directories =
        [sample::sweep(&plan, 2, false), sample::sweep(&plan, 2, false)].map(|story| built(&story));
    let paths: Vec<&Path> = directories.iter().map(tempfile::TempDir::path).collect();
    let runs = SideBySide::read(&paths).unwrap();
    assert!(runs.is_comparable() && runs.unlike().is_empty(), "{:?}", runs.unlike());
    let table = runs.markdown();
    assert!(
        table.contains("| rps (1/s) | clients=1, variant=new |") && table.contains("| 0.00 % |"),
        "{table}"
    );
    let csv = runs.csv();
    let heads = "time,run,directory,rps[clients=1 variant=old],rps[clients=1 variant=new],\
                 p99[clients=1 variant=old],p99[clients=1 variant=new]\n2026-09-21T14:13:20Z,20260921-141320-abcd,";
    assert!(csv.starts_with(heads) && csv.lines().count() == 3, "{csv}");

    // A ratio is judged by all that both intervals allow, and not without them.
    let faster = built(&sample::sweep_on(1, 1.2, &plan, 2, false));
    let few = built(&sample::sweep(&sample::plan(4, &[1]), 2, false));
    let [fails, passes, within] =
        ["rps > 1.05", "rps < 0.95", "rps > 1.2"].map(|line| line.parse::<Threshold>().unwrap());
    let judged = |other: &tempfile::TempDir, line: &Threshold| {
        let runs = SideBySide::read(&[paths[0], other.path()]).unwrap();
        let checks = runs.checks(std::slice::from_ref(line));
        assert_eq!(checks.len(), 2, "of old and new");
        (checks[1].holds, checks[1].to_string())
    };
    let name = faster.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(
        judged(&faster, &fails),
        (Some(true), format!("`rps > 1.05` holds for {name} where clients=1, variant=new"))
    );
    assert_eq!((judged(&faster, &passes).0, judged(&faster, &within).0), (Some(false), None));
    let (holds, told) = judged(&few, &fails);
    assert!(holds.is_none() && told.ends_with(" has fewer than 5 trials"), "{told}");

    // What the one was given by `--set` is what the other has in its file.
    for (path, text, set) in [(paths[0], "n = '100'\n", "{}"), (paths[1], "n = '1'\n", r#"{"n": "100"}"#)] {
        fs::create_dir(path.join("inputs")).unwrap();
        fs::write(path.join("inputs/set.json"), set).unwrap();
        fs::write(path.join("experiment.toml"), format!("name = 'x'\n[vars]\n{text}")).unwrap();
    }
    let changed = SideBySide::read(&paths).unwrap().changed();
    assert!(changed.len() == 1 && changed[0].contains("its experiment file differs"), "{changed:?}");
    assert!(changed[0].ends_with(", first in line 3: `n = '1'` and not `n = '100'`"), "{changed:?}");
    for (path, sha256) in [(paths[0], "aa"), (paths[1], "bb")] {
        let source =
            format!(r#"{{"directory": "/x", "kept_sha256": {{"a/it.sh": "{sha256}", "a/b": "0"}}}}"#);
        fs::write(path.join("inputs/source.json"), source).unwrap();
        let files = format!(r#"[{{"path": "", "size": 1, "sha256": "{sha256}"}}]"#);
        let upload = format!(r#"[{{"group": "a", "from": "/x/app", "to": "app", "files": {files}}}]"#);
        fs::write(path.join("inputs/uploads.json"), upload).unwrap();
    }
    let changed = SideBySide::read(&paths).unwrap().changed();
    assert_eq!(changed.len(), 3, "{changed:?}");
    for what in ["/x/app, an upload of group a, is not as in ", "inputs/a/it.sh is not as in "] {
        assert!(changed.iter().any(|line| line.contains(what)), "{changed:?}");
    }
    let empty = tempfile::tempdir().unwrap();
    fs::write(empty.path().join("events.jsonl"), "").unwrap();
    let runs = SideBySide::read(&[paths[0], empty.path()]).unwrap();
    assert_eq!(
        (runs.is_comparable(), runs.without_values()),
        (false, vec![empty.path().file_name().unwrap().to_str().unwrap()])
    );

    let other = built(&sample::sweep(&sample::plan(2, &[3]), 1, false));
    let runs = SideBySide::read(&[directories[0].path(), other.path()]).unwrap();
    let unlike = runs.unlike().join("\n");
    assert!(!runs.is_comparable() && unlike.contains("client: cpu_model is "), "{unlike}");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/events-1.jsonl");
    fs::copy(fixture, other.path().join("events.jsonl")).unwrap();
    let runs = SideBySide::read(&[directories[0].path(), other.path()]).unwrap();
    assert!(runs.unlike()[0].contains("doesn't say what its machines were"), "{:?}", runs.unlike());
}

/// Apache Otava, unchanged, finds where twenty runs became faster.
#[test]
fn a_tool_for_history_reads_what_is_compared() {
    let otava = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/otava/bin/otava");
    assert!(otava.exists(), "otava is installed: `cargo xtask setup --tests`");
    let home = tempfile::tempdir().unwrap();
    let plan = sample::plan(2, &[1]);
    let directories: Vec<_> = (0..20).map(|day| home.path().join(format!("a, {day}"))).collect();
    for (day, directory) in (0..).zip(&directories) {
        fs::create_dir(directory).unwrap();
        sample::sweep_on(day, if day < 10 { 1.0 } else { 1.2 }, &plan, 1, false).write(directory);
    }
    fs::write(home.path().join("history.csv"), SideBySide::read(&directories).unwrap().csv()).unwrap();
    let config = "tests:\n  redis:\n    type: csv\n    file: history.csv\n    time_column: time\n    \
                  attributes: [run, directory]\n    metrics:\n      rps:\n        \
                  column: 'rps[clients=1 variant=new]'\n        direction: 1\n";
    fs::write(home.path().join("otava.yaml"), config).unwrap();
    let found = Command::new(otava)
        .args(["analyze", "redis"])
        .env("OTAVA_CONFIG", "otava.yaml")
        .current_dir(home.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&found.stdout);
    assert!(found.status.success(), "{told}{}", String::from_utf8_lossy(&found.stderr));
    let change = told.split_whitespace().find_map(|word| word.strip_prefix('+')?.strip_suffix('%'));
    let change: f64 = change.expect(&told).parse().unwrap();
    assert!((18.0..22.0).contains(&change), "{told}");
}
