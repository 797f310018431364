//! Runs that are done again, whole or in part, and what is said of those that can't be.

use std::fs;

use crate::world::{World, checks, of};

const SWEEP: &str = "\
name = 'x'
prepare = ['cp made-of made']
[matrix]
n = [1, 2]
[group.a]
upload = [{ from = 'made', to = 'in' }]
[[step]]
on = 'a'
run = 'cat in; echo is {{ n }}'
";

#[test]
fn a_part_is_repeated_as_a_part_and_damaged_results_are_named_for_what_they_lack() {
    let world = World::new();
    let file = world.write("x.toml", SWEEP);
    world.write("made-of", "one\n");
    world.write("made", "");
    world.tsunami([&"run".into(), &file, &"--only".into(), &"n=2".into()]).assert_status(0);
    let first = world.results();
    let name = first.to_str().unwrap();
    let part = "is repeated: only trials with n = 2, as it did";
    world.tsunami(["plan", name]).assert_status(0).assert_says(&[part]);
    let inside = format!("{name}/again");
    world.tsunami(["run", name, "-o", &inside]).assert_status(2).assert_says(&["in the results that are"]);
    world.tsunami(["run", name, "-o", "second"]).assert_status(0).assert_says(&[part]);
    let results = fs::read_to_string(world.path("work/second/results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    assert_eq!(results["swept"]["done"], 1, "{results}");
    world.write("made-of", "two\n");
    world.write("made", "something else\n");
    let changed = world.tsunami(["run", name, "-o", "third"]);
    changed.assert_status(1).assert_says(&[
        "made is not as it was",
        "have `prepare` make the same",
        "x.toml as it is now",
    ]);

    world.tsunami(["run", &format!("{name}/run.json")]).assert_status(2).assert_says(&[
        "this is no experiment file",
        "looks like JSON",
        &format!("name its directory: {name}"),
    ]);
    let events = fs::read_to_string(first.join("events.jsonl")).unwrap();
    let newer = events.replacen("{\"schema\":2}", "{\"schema\":99}", 1);
    fs::write(first.join("events.jsonl"), newer).unwrap();
    for command in ["plan", "run", "up", "report"] {
        world.tsunami([command, name]).assert_status(2).assert_says(&["later version", "99"]);
    }
    fs::write(first.join("events.jsonl"), events).unwrap();
    for form in ["results.json", "run.json"] {
        let before = fs::read(first.join(form)).unwrap();
        fs::write(first.join(form), "{\"schema\": 99}").unwrap();
        world.tsunami(["report", name]).assert_status(2).assert_says(&["later version", form]);
        world.tsunami(["run", "--resume", name]).assert_status(2).assert_says(&["later version", form]);
        assert_eq!(fs::read_to_string(first.join(form)).unwrap(), "{\"schema\": 99}");
        fs::write(first.join(form), before).unwrap();
    }
    let source = fs::read(first.join("inputs/source.json")).unwrap();
    fs::write(first.join("inputs/source.json"), "{\"dir").unwrap();
    world.tsunami(["plan", name]).assert_status(2).assert_says(&["inputs/source.json is damaged"]);
    fs::write(first.join("inputs/source.json"), source).unwrap();
    fs::remove_file(first.join("experiment.toml")).unwrap();
    world.tsunami(["plan", name]).assert_status(2).assert_says(&["have lost their experiment.toml"]);

    // What can't be repeated is told by whoever is asked beforehand.
    let sent = world.write("sent", "one\n");
    let plain =
        "name = 'y'\n[group.a]\nupload = [{ from = 'sent', to = 'in' }]\n[[step]]\non = 'a'\nrun = 'true'\n";
    let plain = world.write("y.toml", plain);
    world.tsunami([&"run".into(), &plain, &"-o".into(), &"y".into()]).assert_status(0);
    fs::write(sent, "two\n").unwrap();
    world.tsunami(["plan", "y"]).assert_status(2).assert_says(&["sent is not as it was"]);
    let doctor = || checks(&world.tsunami(["doctor", "y", "--json"]));
    assert!(of(&doctor(), "inputs")[1].contains("sent is not as it was"));
    fs::write(world.path("work/y/inputs/uploads.json"), "[").unwrap();
    world.tsunami(["plan", "y"]).assert_status(2).assert_says(&["uploads.json"]);
    assert!(of(&doctor(), "inputs")[1].contains("uploads.json"));

    // The good ones of several are done all the same.
    let second = world.path("work/second");
    let several = ["report", "nowhere", second.to_str().unwrap(), "x.toml"];
    let report = world.tsunami(several);
    report.assert_status(2).assert_says(&["nowhere is no results", "x.toml is no results", "results.csv"]);
    let starts = world.tsunami(["report", "--cold-start", "--csv", "second", "second/../second"]);
    let once = |line: &str| line.contains(",boot,1,");
    assert!(starts.assert_status(0).stdout.lines().any(once), "{}", starts.stdout);
    world.assert_clean();
}
