//! `tsunami ls`: the runs that are known here.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use serde::Serialize;
use tsunami_core::registry::Registry;
use tsunami_core::results::json as to_json;
use tsunami_core::{Error as CoreError, MachineState, RunEntry, RunFilter, RunId, RunStore};

use super::run::hourly;
use super::{Context, Execute};
use crate::args::CloudArgs;
use crate::backend;
use crate::error::{Error, LAUNCH, REMAINS};
use crate::table::Table;
use crate::terminal::{one_line, print, say, saying, stdout_columns};

/// The number of the form of what `--json` shows; the guide (`json.md`) describes it.
const LS_SCHEMA: u32 = 1;

/// One run, as `--json` shows it. Times in seconds, prices in US dollars.
#[derive(Serialize)]
struct Row {
    schema: u32,
    run: RunId,
    experiment: String,
    provider: String,
    state: State,
    machines_running: usize,
    machines: u32,
    age: u64,
    left: u64,
    /// What an hour of the machines costs that are there; `None` if a price is not known.
    per_hour: Option<f64>,
    /// What they have cost since the run was recorded: an estimate. `None` also where none is there any more.
    cost: Option<f64>,
    /// The most that the run may cost in its whole life, as it looked when it was launched.
    most: Option<f64>,
}

/// List the runs that are known here
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Ls {
    /// One JSON object a run
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(crate) cloud: CloudArgs,
}

const EXAMPLES: &str = "\
Examples:
  tsunami ls
  tsunami ls --provider aws --region eu-west-1   # by tag, whoever launched them";

/// How it is with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "&'static str")]
enum State {
    Running,
    Kept,
    ControllerGone,
    /// It is there although its lifetime is over.
    Overdue,
    Gone,
}

impl State {
    fn of(is_controlled: bool, is_kept: bool, is_gone: bool, is_over: bool) -> Self {
        match (is_controlled, is_gone, is_over, is_kept) {
            (true, ..) => Self::Running,
            (_, true, ..) => Self::Gone,
            (_, _, true, _) => Self::Overdue,
            (.., true) => Self::Kept,
            _ => Self::ControllerGone,
        }
    }

    /// Why somebody has to remove it, if so.
    fn complaint(self) -> Option<&'static str> {
        match self {
            Self::ControllerGone => Some("its controller is gone"),
            Self::Overdue => Some("its lifetime is over, and something is still there"),
            Self::Running | Self::Kept | Self::Gone => None,
        }
    }
}

impl From<State> for &'static str {
    fn from(state: State) -> Self {
        match state {
            State::Running => "running",
            State::Kept => "kept",
            State::ControllerGone => "controller gone",
            State::Overdue => "overdue",
            State::Gone => "gone",
        }
    }
}

impl Execute for Ls {
    fn names_abandoned_runs(&self) -> bool {
        false
    }

    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let state = RunStore::standard()?;
        match self.cloud.is_asked() {
            true => by_tag(context.registry, self.json, &self.cloud, &state).await,
            false => recorded(context.registry, self.json, &state).await,
        }
    }
}

/// Lists the runs that are recorded here.
async fn recorded(registry: &Registry, json: bool, state: &RunStore) -> Result<u8, Error> {
    let (mut rows, mut status) = (Vec::new(), 0);
    let directories = state.runs()?;
    // A provider that doesn't answer keeps only its own runs waiting.
    let asking = join_all(directories.iter().map(|directory| row(registry, directory, state)));
    let asked = saying("waiting for providers to list the machines", asking).await;
    for (directory, row) in directories.iter().zip(asked) {
        match row {
            Ok(row) => rows.push(row),
            // One broken record must not hide the others.
            Err(error) => {
                let record = matches!(error, Error::Core(CoreError::Untrusted(_) | CoreError::Record { .. }));
                let unreadable = if record { ": unreadable" } else { "" };
                error.show_of(&format!("{}{unreadable}", directory.id()));
                status = REMAINS;
            }
        }
    }
    let mut text = String::new();
    if json {
        for row in &rows {
            let line = to_json(row).map_err(tsunami_core::Error::from)?;
            let _ = writeln!(text, "{line}");
        }
    } else if directories.is_empty() {
        say("no runs");
    } else if !rows.is_empty() {
        text = table(&rows).text(stdout_columns());
    }
    print(&text)?;
    for row in rows {
        if let Some(why) = row.state.complaint() {
            say(&format!("{}: {why}; `tsunami down {}` removes it", row.run, row.run));
        }
    }
    Ok(status)
}

/// All of it; on a terminal as much as there is room for.
fn table(rows: &[Row]) -> Table {
    let heads = ["RUN", "EXPERIMENT", "PROVIDER", "UP", "STATE", "AGE", "LEFT"];
    // Where nothing costs anything, nothing is said of it.
    let has_price = rows.iter().any(|row| row.per_hour != Some(0.0));
    let prices = ["$/HOUR", "COST $"].into_iter().filter(|_| has_price);
    let mut table = Table::new(heads.into_iter().chain(prices)).dispensable(&[2, 5, 7]);
    for row in rows {
        let prices = [row.per_hour, row.cost].map(dollars).into_iter().filter(|_| has_price);
        let cells = [
            row.run.to_string(),
            one_line(&row.experiment),
            one_line(&row.provider),
            format!("{}/{}", row.machines_running, row.machines),
            <&str>::from(row.state).to_owned(),
            short(row.age),
            if row.left == 0 { "over".to_owned() } else { short(row.left) },
        ];
        table.row(cells.into_iter().chain(prices).collect());
    }
    table
}

/// An amount in a column of them; nothing where it isn't known.
fn dollars(amount: Option<f64>) -> String {
    match amount {
        Some(amount) if amount > 0.0 && amount < 0.1 => format!("{amount:.3}"),
        Some(amount) => format!("{amount:.2}"),
        None => String::new(),
    }
}

/// Lists the runs that are found by tag, whoever launched them.
async fn by_tag(registry: &Registry, json: bool, cloud: &CloudArgs, state: &RunStore) -> Result<u8, Error> {
    let survey = backend::survey(registry, state, cloud, false);
    let surveys = saying("waiting for providers to list what they have by tag", survey).await?;
    let (mut text, mut status) = (String::new(), 0);
    let mut is_empty = true;
    for surveyed in &surveys {
        status = status.max(surveyed.tell());
        let Ok((_, survey)) = &surveyed.found else { continue };
        is_empty &= survey.runs.is_empty();
        for failure in &survey.failures {
            say(&format!("could not look in {failure}"));
            status = status.max(LAUNCH);
        }
        let now = survey.now.unwrap_or_else(SystemTime::now);
        for found in &survey.runs {
            let left = found.expires.duration_since(now).unwrap_or_default().as_secs();
            if json {
                let row = serde_json::json!({"schema": LS_SCHEMA, "run": found.run, "left": left, "things": found.things});
                let _ = writeln!(text, "{}", to_json(&row).map_err(tsunami_core::Error::from)?);
                continue;
            }
            let left = if left == 0 { "over".to_owned() } else { format!("{} left", short(left)) };
            let _ = writeln!(text, "{}, {left}", found.run);
            for thing in &found.things {
                let _ = writeln!(text, "  {}", one_line(thing));
            }
        }
    }
    if status == 0 && is_empty {
        say("no runs");
    }
    print(&text)?;
    Ok(status)
}

async fn row(registry: &Registry, directory: &RunEntry, state: &RunStore) -> Result<Row, Error> {
    let record = directory.record()?;
    let engine = backend::engine_or_remains(registry, directory, state).await?;
    let listed = engine.list(&RunFilter::Run(record.run.clone())).await;
    let listed = listed.map_err(|error| backend::remains(registry, directory, state, error.into()))?;
    let machines_running = listed.iter().filter(|machine| machine.state == MachineState::Running).count();
    let deadline = listed.iter().filter_map(|machine| machine.expires).max().unwrap_or(record.deadline.at);
    let now = SystemTime::now();
    let is_gone = listed.iter().all(|machine| machine.state == MachineState::Gone);
    let state = State::of(directory.is_controlled()?, record.kept, is_gone, deadline <= now);
    let age = now.duration_since(record.created).unwrap_or_default();
    let there = listed.iter().filter(|machine| machine.state != MachineState::Gone);
    let per_hour = hourly(there.map(|machine| machine.price));
    // One that was replaced counts as if it were there.
    let all = hourly(listed.iter().map(|machine| machine.price)).filter(|_| !is_gone);
    Ok(Row {
        schema: LS_SCHEMA,
        run: record.run,
        experiment: record.experiment,
        provider: record.provider,
        state,
        machines_running,
        machines: record.groups.iter().fold(0, |all, group| all.saturating_add(group.count)),
        age: age.as_secs(),
        left: deadline.duration_since(now).unwrap_or_default().as_secs(),
        per_hour,
        cost: all.map(|all| all * age.as_secs_f64() / 3600.0),
        most: record.max_cost,
    })
}

/// A duration to two units: `1h 5m`.
fn short(seconds: u64) -> String {
    let text = tsunami_core::text::span(Duration::from_secs(seconds));
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_fit_into_eighty_columns_and_are_told_whole_elsewhere() {
        let row = |experiment: &str, state, machines, left, per_hour: Option<f64>| Row {
            schema: LS_SCHEMA,
            run: "20261128-082330-x3pph4b3rq9vs".parse().unwrap(),
            experiment: experiment.to_owned(),
            provider: "local".to_owned(),
            state,
            machines_running: 1,
            machines,
            age: 75,
            left,
            per_hour,
            cost: per_hour.map(|hour| hour / 48.0),
            most: None,
        };
        let mut rows = vec![
            row("x", State::Running, 1, 3500, Some(0.0)),
            row("redis-throughput-against-memory", State::ControllerGone, 1000, 0, Some(0.0)),
        ];
        insta::assert_snapshot!(table(&rows).text(None), @"
        RUN                            EXPERIMENT                       PROVIDER      UP  STATE               AGE  LEFT
        20261128-082330-x3pph4b3rq9vs  x                                local        1/1  running          1m 15s  58m 20s
        20261128-082330-x3pph4b3rq9vs  redis-throughput-against-memory  local     1/1000  controller gone  1m 15s  over
        ");
        insta::assert_snapshot!(table(&rows).text(Some(80)), @"
        RUN                            EXPERIMENT                UP  STATE       LEFT
        20261128-082330-x3pph4b3rq9vs  x                        1/1  running     58m 20s
        20261128-082330-x3pph4b3rq9vs  redis-throughput-     1/1000  controller  over
                                       against-memory                gone
        ");
        rows.push(row("spot", State::Kept, 8, 600, Some(2.176)));
        rows.push(row("unknown", State::Gone, 8, 600, None));
        insta::assert_snapshot!(table(&rows).text(Some(80)), @"
        RUN                            EXPERIMENT        UP  STATE       LEFT     COST $
        20261128-082330-x3pph4b3rq9vs  x                1/1  running     58m 20s    0.00
        20261128-082330-x3pph4b3rq9vs  redis-        1/1000  controller  over       0.00
                                       throughput-           gone
                                       against-
                                       memory
        20261128-082330-x3pph4b3rq9vs  spot             1/8  kept        10m       0.045
        20261128-082330-x3pph4b3rq9vs  unknown          1/8  gone        10m
        ");
    }

    #[test]
    fn a_run_is_complained_of_while_something_is_there_that_nobody_will_end() {
        for ((is_controlled, is_kept, is_gone, is_over), word, complains) in [
            ((true, false, false, true), "running", false),
            ((false, true, true, true), "gone", false),
            ((false, true, false, true), "overdue", true),
            ((false, true, false, false), "kept", false),
            ((false, false, false, false), "controller gone", true),
        ] {
            let state = State::of(is_controlled, is_kept, is_gone, is_over);
            assert_eq!(to_json(&state).unwrap(), format!("\"{word}\""));
            assert_eq!(state.complaint().is_some(), complains, "{word}");
        }
    }
}
