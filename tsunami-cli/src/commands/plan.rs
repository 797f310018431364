//! `tsunami plan`: what a run would launch, checked as far as it can be without touching anything.

use std::fmt::Write as _;
use std::time::Duration;

use tsunami_core::experiment::{EnvValue, Experiment, Per, Step};
use tsunami_core::registry::Backend;
use tsunami_core::results::{RepeatedRun, Secrets, json as to_json, repeated};
use tsunami_core::statistics::Direction;
use tsunami_core::text::{number, quoted, span};
use tsunami_core::trial::{Compare, MetricPlan, Order, Parameters, PlannedTrial, SweepPlan, Trials};
use tsunami_core::{Error as CoreError, Plan as CorePlan, Price, Quote, RunStore, Tsunami};

use super::{Context, Execute, check_repeated, load, words_of_repeated};
use crate::args::FileArgs;
use crate::error::Error;
use crate::reporter::machines;
use crate::terminal::{one_line, print, print_words, say, saying};

/// How many machines of a step, or values of a parameter, are named: those in a row as one.
const NAMED: usize = 20;

/// How many sets of machines are shown.
const SETS: usize = 10;

/// How many trials are shown of the order in which they may be done.
const TRIALS: usize = 6;

/// The longest line, in characters, as far as its words allow.
const WIDTH: usize = 80;

/// How far a line is set in that goes on with the one before it.
const HANGING: &str = "      ";

/// Check a file and show what it would launch; touches nothing
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Plan {
    #[command(flatten)]
    file: FileArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  tsunami plan redis.toml
  tsunami plan redis.toml --set n=1000";

/// Some machines, and what their provider says of them.
struct Set {
    experiment: Experiment,
    plan: CorePlan,
    quotes: Vec<Quote>,
}

impl Execute for Plan {
    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let (experiment, is_repeated) = load(&self.file, context.registry)?;
        if is_repeated {
            check_repeated(&experiment, &self.file.file)?;
            let RepeatedRun { run, part, .. } = repeated(&self.file.file)?;
            if let Some(run) = run {
                say(&words_of_repeated(&run, &part));
            }
        }
        let state = RunStore::standard()?;
        let connections = context.registry.connections(&state, self.file.accept_new_hosts);
        let mut sets = Vec::new();
        for number in 1..=experiment.set_count() {
            let experiment = experiment.on_set(number);
            let plan = experiment.plan();
            let asking = async {
                let Backend { provider, connector, .. } =
                    connections.of(&experiment).await.map_err(Error::Provider)?;
                Ok::<_, Error>(Tsunami::new(provider, connector).quote(&plan).await?)
            };
            let what =
                format!("waiting for {} to say what there is, and at which price", experiment.provider);
            let quotes = saying(&what, asking).await?;
            sets.push(Set { experiment, plan, quotes });
        }
        if self.json {
            return print(&to_json(&json(&experiment, &sets)).map_err(CoreError::from)?).map(|()| 0);
        }
        let most = sets.iter().map(|set| set.experiment.machines().count()).max().unwrap_or_default();
        print_words(&text(&experiment, &sets, crate::too_few_open_files(most)))?;
        Ok(0)
    }
}

/// The number of the form of what `--json` prints; the guide (`json.md`) describes it.
const PLAN_SCHEMA: u32 = 1;

/// The plan for programs: machines, trials, and what it may cost. Times in seconds, prices in US dollars.
fn json(experiment: &Experiment, sets: &[Set]) -> serde_json::Value {
    let dollars = |price: Price| match price {
        Price::Free => Some(0.0),
        Price::PerHour(dollars) => Some(dollars),
        _ => None,
    };
    let of_set = |(nth, set): (usize, &Set)| {
        let groups = set.experiment.groups.iter().zip(&set.quotes).map(|(group, quote)| {
            let offers = quote.offers.iter().map(
                |offer| serde_json::json!({ "description": offer.description, "per_hour": dollars(offer.price) }),
            );
            serde_json::json!({
                "name": group.name, "count": group.count, "offers": offers.collect::<Vec<_>>(), "notes": quote.notes,
            })
        });
        serde_json::json!({
            "parameters": experiment.sets.get(nth).map(|set| &set.parameters),
            "groups": groups.collect::<Vec<_>>(),
        })
    };
    let steps = experiment.steps.iter().enumerate().map(|(at, step)| {
        let on = sets.iter().filter_map(|set| Some(&set.experiment.steps.get(at)?.on));
        serde_json::json!({ "name": step.name, "on": on.max_by_key(|on| on.len()), "once": step.per == Per::Run })
    });
    let trials = &experiment.trials;
    let plan = trials.plan(trials.seed.unwrap_or_default(), |parameters| experiment.set_of(parameters));
    let count = |warmup: bool| plan.trials.iter().filter(|trial| trial.warmup == warmup).count();
    let parameters = trials.parameters.iter();
    let metrics = trials.metrics.iter();
    let (hourly, most) = dollars_of(sets);
    serde_json::json!({
        "schema": PLAN_SCHEMA,
        "experiment": experiment.name,
        "provider": experiment.provider,
        "lifetime": experiment.lifetime.as_secs(),
        "sets": sets.iter().enumerate().map(of_set).collect::<Vec<_>>(),
        "steps": steps.collect::<Vec<_>>(),
        "parameters": parameters
            .map(|parameter| serde_json::json!({ "name": parameter.name, "values": parameter.values }))
            .collect::<Vec<_>>(),
        "trials": count(false),
        "warmups": count(true),
        "rounds": plan.trials.iter().map(|trial| trial.round).max(),
        "metrics": metrics
            .map(|metric| serde_json::json!({ "name": metric.name, "step": metric.step, "unit": metric.unit }))
            .collect::<Vec<_>>(),
        "per_hour": hourly,
        "most": most,
        "budget": experiment.budget,
    })
}

/// What an hour of the dearest set costs as it looks now, and all of them in their whole lives, where that is known.
fn dollars_of(sets: &[Set]) -> (Option<f64>, Option<f64>) {
    let dearest = sets.iter().map(|set| hourly(&set.plan, &set.quotes)).collect::<Option<Vec<_>>>();
    let dearest = dearest.map(|all| all.into_iter().fold(0.0, f64::max));
    (dearest, sets.iter().map(|set| set.plan.max_cost(&set.quotes)).sum())
}

/// All that there is to say of a plan.
fn text(experiment: &Experiment, sets: &[Set], crowded: Option<String>) -> String {
    let lifetime = span(experiment.lifetime);
    let mut text = match sets {
        [only] => {
            let machines = only.experiment.machines().count();
            format!("{}: {}, for at most {lifetime}\n", experiment.name, number(machines, "machine"))
        }
        sets => {
            let count = sets.len();
            format!(
                "{}: {count} sets of machines, one after another, each for at most {lifetime}\n",
                experiment.name
            )
        }
    };
    for (nth, set) in (1..).zip(sets.iter().take(SETS)) {
        if let Some(known) = experiment.sets.get(nth - 1) {
            let machines = set.experiment.machines().count();
            let title = format!("set {nth}: {}, {}", number(machines, "machine"), pairs(&known.parameters));
            line(&mut text, &title);
        }
        offers(&mut text, set);
    }
    if let more @ 1.. = sets.len().saturating_sub(SETS) {
        let _ = writeln!(text, "  and {more} more sets");
    }
    // Groups have much in common, and so have sets.
    let mut noted = Vec::new();
    for note in sets.iter().flat_map(|set| &set.quotes).flat_map(|quote| &quote.notes) {
        if !noted.contains(&note) {
            let _ = writeln!(text, "  {}", one_line(note));
            noted.push(note);
        }
    }
    for warning in Secrets::of(experiment).warnings().chain(experiment.notes()).chain(crowded) {
        let _ = writeln!(text, "  {}", one_line(&warning));
    }
    for command in &experiment.prepare {
        line(&mut text, &format!("  first, on this computer: {}", one_line(command)));
    }
    for (at, step) in experiment.steps.iter().enumerate() {
        let when = if step.per == Per::Run { ", once for all trials" } else { "" };
        let on = most(sets.iter().filter_map(|set| Some(&set.experiment.steps.get(at)?.on)));
        line(&mut text, &format!("  step {:<11} on {on}{when}", step.name));
    }
    for at in 0..experiment.resets.len() {
        let on = most(sets.iter().filter_map(|set| Some(&set.experiment.resets.get(at)?.on)));
        line(&mut text, &format!("  between trials   on {on}"));
    }
    for step in experiment.steps.iter().filter(|step| shows_secrets(experiment, step)) {
        let what = match (step.collect.is_empty(), step.metrics.is_empty()) {
            (false, _) => "collects files: collected files are not redacted",
            _ => "has metrics: what can't be read of them is quoted",
        };
        line(&mut text, &format!("  step {} knows a secret and {what}", step.name));
    }
    sweep(&mut text, experiment);
    costs(&mut text, experiment, sets);
    text
}

/// What the machines of a set may be.
fn offers(text: &mut String, Set { experiment, quotes, .. }: &Set) {
    let width = experiment.groups.iter().map(|group| group.name.len()).max().unwrap_or_default();
    for (group, quote) in experiment.groups.iter().zip(quotes) {
        let mut title = group.name.as_str();
        for offer in &quote.offers {
            let count = if title.is_empty() { "or".to_owned() } else { group.count.to_string() };
            let (what, price) = (one_line(&offer.description), price(offer.price));
            let _ = writeln!(text, "  {title:<width$} {count:>5} × {what}, {price}");
            title = "";
        }
    }
}

/// Which trials there are, in which order, and what is made of them.
fn sweep(text: &mut String, experiment: &Experiment) {
    let trials = &experiment.trials;
    let plan = trials.plan(trials.seed.unwrap_or_default(), |parameters| experiment.set_of(parameters));
    for parameter in &trials.parameters {
        let values: Vec<_> =
            parameter.values.iter().map(|value| quoted(&value.to_string()).into_owned()).collect();
        line(text, &format!("  parameter {} = {}", parameter.name, some(&values)));
    }
    if plan.trials.len() > 1 {
        order(text, trials, &plan);
        let on_a_set = |set: u32| plan.trials.iter().filter(|trial| trial.set == set).count();
        let most = (1..=experiment.set_count()).map(on_a_set).max().unwrap_or(1);
        let average = experiment.lifetime / u32::try_from(most).unwrap_or(u32::MAX).max(1);
        line(
            text,
            &format!(
                "  a trial may take {} on average within the lifetime, set-up included",
                span(rounded(average))
            ),
        );
    }
    for MetricPlan { name, step, better, unit, .. } in &trials.metrics {
        let better = match better {
            Some(Direction::Higher) => ", more is better",
            Some(Direction::Lower) => ", less is better",
            _ => "",
        };
        let unit = unit.as_ref().map(|unit| format!(", in {unit}")).unwrap_or_default();
        line(text, &format!("  metric {name} of step {step}{better}{unit}"));
    }
    if let Some(Compare { by, baseline, margin, fail_if, .. }) = &trials.compare {
        // A margin has few digits in the file, and more than it was written with would be noise.
        let margin = (margin * 100.0 * 1e6).round() / 1e6;
        line(
            text,
            &format!(
                "  compared by {by}, with {}; differences below {margin} % don't matter",
                quoted(&baseline.to_string())
            ),
        );
        if trials.repeat == 1 {
            line(text, "  with one repeat there is one round of each: too few to compare");
        }
        for threshold in fail_if {
            line(text, &format!("  fails if {}", one_line(threshold)));
        }
    }
}

/// How many trials there are, and an order in which they may be done.
fn order(text: &mut String, trials: &Trials, plan: &SweepPlan) {
    let count = |warmup: bool| plan.trials.iter().filter(|trial| trial.warmup == warmup).count();
    let (counted, warmups) = (count(false), count(true));
    let rounds = plan.trials.iter().map(|trial| trial.round).max().unwrap_or_default();
    let order = match trials.order {
        Order::Balanced => "in a balanced order",
        _ => "in a random order",
    };
    let warmups = if warmups > 0 { format!(", and {}", number(warmups, "warm-up")) } else { String::new() };
    line(
        text,
        &format!(
            "  {} in {}{warmups}, {order} such as",
            number(counted, "trial"),
            number(rounds as usize, "round")
        ),
    );
    let width = plan.trials.last().map_or(1, |trial| trial.name.len());
    for PlannedTrial { name, parameters, .. } in plan.trials.iter().filter(|trial| !trial.warmup).take(TRIALS)
    {
        line(text, &format!("    {name:>width$}  {}", pairs(parameters)));
    }
    if counted > TRIALS {
        let _ = writeln!(text, "    {:>width$}", "…");
    }
    let needed = trials.rows_needed();
    // Where nothing is compared, there are no variants.
    if trials.compare.is_some() && !trials.repeat.is_multiple_of(needed) {
        let text_of = format!(
            "  take a multiple of {needed} repeats, so that each variant is equally often in each place; these are {}",
            trials.repeat
        );
        line(text, &text_of);
    }
}

fn costs(text: &mut String, experiment: &Experiment, sets: &[Set]) {
    let (dearest, most) = dollars_of(sets);
    let whole = if sets.len() > 1 { "for all sets together" } else { "in its whole life" };
    let _ = match most.map(|most| (most, dearest)) {
        Some((0.0, _)) => writeln!(text, "costs nothing"),
        Some((most, Some(hourly))) => {
            writeln!(text, "${hourly:.4} an hour as it looks now, ${most:.2} at most {whole}")
        }
        Some((most, None)) => writeln!(text, "${most:.2} at most {whole}"),
        None => writeln!(text, "what it may cost is not known"),
    };
    if let Some(budget) = experiment.budget {
        let _ = match most.is_some_and(|most| most <= budget) {
            true => writeln!(text, "that is within the budget of ${budget:.2}"),
            false => writeln!(text, "that is not within the budget of ${budget:.2}: it would not be run"),
        };
    }
}

/// Whether files or metrics of a step come from commands that know a secret.
fn shows_secrets(experiment: &Experiment, step: &Step) -> bool {
    let is_secret = |(_, value): &(String, EnvValue)| matches!(value, EnvValue::FromEnv { .. });
    let of_groups = || {
        let machines = experiment.machines().filter(|(name, ..)| step.on.contains(name));
        machines.into_iter().any(|(_, group, _)| group.env.iter().any(is_secret))
    };
    !(step.collect.is_empty() && step.metrics.is_empty()) && (step.env.iter().any(is_secret) || of_groups())
}

/// The names of the machines that something is done on, on each set: those of the set that has the most of them.
fn most<'s>(sets: impl Iterator<Item = &'s Vec<String>> + Clone) -> String {
    let Some(most) = sets.clone().max_by_key(|on| on.len()) else { return String::new() };
    let at_most = if sets.into_iter().any(|on| on.len() < most.len()) { " at most" } else { "" };
    format!("{}{at_most}", machines(most, NAMED))
}

/// Values, as far as anybody wants to read them.
fn some(all: &[String]) -> String {
    let mut names = all.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if all.len() > NAMED {
        let _ = write!(names, " and {} more", all.len() - NAMED);
    }
    names
}

pub(super) fn pairs(parameters: &Parameters) -> String {
    parameters
        .iter()
        .map(|(name, value)| format!("{name} = {}", quoted(&value.to_string())))
        .collect::<Vec<_>>()
        .join(", ")
}

/// As exact as anybody can plan.
fn rounded(average: Duration) -> Duration {
    match average {
        long if long >= Duration::from_secs(10) => Duration::from_secs(long.as_secs()),
        short => Duration::from_millis(u64::try_from(short.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// Adds a line, which goes on below where it is too long. How far it is set in stays as it is.
fn line(text: &mut String, whole: &str) {
    line_over(text, whole, HANGING);
}

/// The same, where what goes on below begins with `hanging`.
pub(super) fn line_over(text: &mut String, whole: &str, hanging: &str) {
    let start = whole.len() - whole.trim_start().len();
    let mut rest = whole[start..].trim_end();
    let mut before = whole[..start].to_owned();
    loop {
        let room = WIDTH.saturating_sub(before.chars().count());
        let end = rest.char_indices().nth(room).map(|(at, _)| at);
        let cut = end.and_then(|end| match rest[end..].starts_with(' ') {
            true => Some(end),
            false => rest[..end].rfind(' '),
        });
        let Some(cut) = cut else {
            let _ = writeln!(text, "{before}{rest}");
            return;
        };
        let _ = writeln!(text, "{before}{}", rest[..cut].trim_end());
        rest = rest[cut..].trim_start();
        before = hanging.to_owned();
    }
}

pub(super) fn price(price: Price) -> String {
    match price {
        Price::Free => "free".to_owned(),
        Price::PerHour(dollars) => format!("${dollars:.4}/h each"),
        _ => "price unknown".to_owned(),
    }
}

/// What an hour of all machines costs if each group gets what is offered first.
fn hourly(plan: &CorePlan, quotes: &[Quote]) -> Option<f64> {
    let hour = Duration::from_secs(3600);
    let first = |quote: &Quote| quote.offers.first().map_or(Price::Unknown, |offer| offer.price);
    plan.groups.iter().zip(quotes).map(|(group, quote)| first(quote).dollars(group.count, hour)).sum()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tsunami_core::Offer;
    use tsunami_core::experiment::Loader;

    use super::*;

    fn plan_of(source: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.toml");
        fs::write(&file, source).unwrap();
        let experiment = Loader::new().lookup_env(&|_| Some("a long secret".into())).load(&file).unwrap();
        let set = |number| {
            let experiment = experiment.on_set(number);
            let plan = experiment.plan();
            let offers = || vec![Offer::new("a machine", Price::PerHour(0.5))];
            let quotes = plan.groups.iter().map(|_| Quote::new(offers(), Price::PerHour(1.0))).collect();
            Set { experiment, plan, quotes }
        };
        let sets: Vec<_> = (1..=experiment.set_count()).map(set).collect();
        let text = text(&experiment, &sets, None);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        text
    }

    const SWEEP: &str = r#"
name = "sweep"
lifetime = "1h"
budget = 9
prepare = ["cargo build --release"]
[matrix]
variant = ["old", "new", "newest"]
clients = [1, 4]
[trials]
repeat = 10
warmup = 1
[compare]
by = "variant"
margin = "0.1%"
fail_if = ["rps < 0.95"]
[group.server]
on_interruption = "replace"
[group.client]
count = 30
env = { TOKEN = { from_env = "TOKEN" } }
[[step]]
on = "server"
start = "serve"
per = "run"
[[step]]
name = "load"
on = "client"
run = "load {{ variant }} {{ clients }}"
collect = ["out.csv"]
[step.metrics]
rps = { file = "out.csv", csv = "rps", across = "sum", better = "higher", unit = "1/s" }
[[reset]]
on = "server"
run = "flush"
"#;

    #[test]
    fn only_what_is_compared_is_to_be_balanced() {
        let compared = "\n[compare]\nby = \"variant\"\nmargin = \"0.1%\"\nfail_if = [\"rps < 0.95\"]\n";
        assert!(SWEEP.contains(compared) && plan_of(SWEEP).contains("take a multiple of 6"));
        assert!(!plan_of(&SWEEP.replace(compared, "\n")).contains("multiple"));
    }

    #[test]
    fn a_sweep_says_what_it_does_and_costs() {
        insta::assert_snapshot!(plan_of(SWEEP), @r"
        sweep: 31 machines, for at most 1h
          server     1 × a machine, $0.5000/h each
          client    30 × a machine, $0.5000/h each
          first, on this computer: cargo build --release
          step 1           on server-0, once for all trials
          step load        on client-0 to client-29
          between trials   on server-0
          step load knows a secret and collects files: collected files are not redacted
          parameter variant = old, new, newest
          parameter clients = 1, 4
          60 trials in 20 rounds, and 6 warm-ups, in a balanced order such as
             1  clients = 4, variant = newest
             2  clients = 4, variant = new
             3  clients = 4, variant = old
             4  clients = 1, variant = old
             5  clients = 1, variant = newest
             6  clients = 1, variant = new
             …
          take a multiple of 6 repeats, so that each variant is equally often in each
              place; these are 10
          a trial may take 54s on average within the lifetime, set-up included
          metric rps of step load, more is better, in 1/s
          compared by variant, with old; differences below 0.1 % don't matter
          fails if rps < 0.95
        $15.5000 an hour as it looks now, $32.00 at most in its whole life
        that is not within the budget of $9.00: it would not be run
        ");
    }

    #[test]
    fn machines_that_depend_on_parameters_are_shown_set_by_set() {
        let source = SWEEP.replace("count = 30", "count = '{{ clients }}'");
        let text = plan_of(&source);
        let sets: Vec<_> = text.lines().take(7).collect();
        insta::assert_snapshot!(sets.join("\n"), @r"
        sweep: 2 sets of machines, one after another, each for at most 1h
        set 1: 2 machines, clients = 1
          server     1 × a machine, $0.5000/h each
          client     1 × a machine, $0.5000/h each
        set 2: 5 machines, clients = 4
          server     1 × a machine, $0.5000/h each
          client     4 × a machine, $0.5000/h each
        ");
        for part in [
            "  step load        on client-0 to client-3 at most\n",
            "$2.5000 an hour as it looks now, $9.00 at most for all sets together\n",
            "  a trial may take 1m 49s on average",
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        let many: Vec<_> = (1..13).collect();
        let text = plan_of(&source.replace("[1, 4]", &format!("{many:?}")));
        assert!(text.contains("\nset 10: 11 machines, clients = 10\n"), "{text}");
        assert!(text.contains("\n  and 2 more sets\n"), "{text}");
    }

    #[test]
    fn without_parameters_nothing_is_said_of_trials() {
        let text = plan_of("name = 'x'\n[group.a]\n[[step]]\non = 'a'\nrun = 'x'\n");
        assert!(!text.contains("trial"), "{text}");
    }

    #[test]
    fn one_is_one_and_values_are_told_apart() {
        let text = plan_of(
            "name = 'x'\n[matrix]\nv = ['', 'a, b', 'c']\n[compare]\nby = 'v'\n[group.a]\n[[step]]\nname = 'load'\n\
             on = 'a'\nrun = 'x {{ v }}'\n[step.metrics]\nm = { regex = '(1)' }\n",
        );
        for part in [
            "x: 1 machine, for at most",
            "  parameter v = '', 'a, b', c\n",
            "  3 trials in 1 round, in a balanced order",
            "compared by v, with ''; differences",
            "  with one repeat there is one round of each: too few to compare\n",
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
    }

    #[test]
    fn long_lines_go_on_below() {
        let mut text = String::new();
        line(&mut text, &format!("  {}", "machine-1, ".repeat(18)));
        assert!(text.lines().count() == 3 && text.lines().all(|line| line.len() <= WIDTH), "{text}");
        let mut text = String::new();
        line(&mut text, &"é".repeat(200));
        assert_eq!(text.lines().count(), 1, "what is one word stays one");
    }
}
