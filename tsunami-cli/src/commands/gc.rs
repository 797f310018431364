//! `tsunami gc`: remove what was left anywhere, once its lifetime is over.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use tsunami_core::registry::{Backend, Registry};
use tsunami_core::results::json as to_json;
use tsunami_core::{Error as CoreError, ErrorChain, RunEntry, RunId, RunStore, Tsunami};

use super::{Context, Execute};
use crate::args::CloudArgs;
use crate::backend;
use crate::error::{Error, REMAINS, Removal};
use crate::terminal::{one_line, print, say, saying};

/// So long after its expiry a run may still be tearing itself down.
const GRACE: Duration = Duration::from_secs(600);

/// The number of the form of the JSON.
const SCHEMA: u32 = 1;

/// One run, as `--json` shows it.
#[derive(Serialize)]
struct Row {
    schema: u32,
    run: RunId,
    outcome: Outcome,
    things: Vec<String>,
    error: Option<String>,
    #[serde(skip)]
    told: Option<Error>,
    #[serde(skip)]
    removal: Removal,
}

/// Remove what was left in an account, once its lifetime is over
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Gc {
    #[command(flatten)]
    cloud: CloudArgs,
    /// Also runs recorded here whose controller is dead and that were not kept
    #[arg(long)]
    mine: bool,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a run
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  tsunami gc --mine --dry-run                     # of this computer's own runs
  tsunami gc --dry-run                            # in the account, on EC2
  tsunami gc --provider aws --region eu-west-1";

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "&'static str")]
enum Outcome {
    Removed,
    WouldBeRemoved,
    Remains,
}

impl From<Outcome> for &'static str {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Removed => "removed",
            Outcome::WouldBeRemoved => "would be removed",
            Outcome::Remains => "remains",
        }
    }
}

impl Execute for Gc {
    fn names_abandoned_runs(&self) -> bool {
        false
    }

    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let Self { cloud, mine, dry_run, json } = &self;
        let (registry, mine, dry_run, json) = (context.registry, *mine, *dry_run, *json);
        let state = RunStore::standard()?;
        let mut rows = Vec::new();
        let mut status = 0;
        if mine {
            for directory in &state.runs()? {
                if let Err(error) = directory.check() {
                    say(&format!("{} is left alone: {error}", directory.id()));
                    status = REMAINS;
                } else if directory.is_abandoned() {
                    rows.push(own(registry, directory, &state, dry_run).await);
                } else if let Some(error) = directory.damage() {
                    let id = directory.id();
                    say(&format!(
                        "{id} may have been kept: {}; `tsunami down {id}` ends it",
                        ErrorChain(&error)
                    ));
                    status = REMAINS;
                }
            }
        }
        // Whoever asks for their own only has perhaps no account at all.
        if !mine || cloud.is_asked() {
            let survey = backend::survey(registry, &state, cloud, true);
            let surveyed = saying("looking for runs by tag", survey).await.map_err(|error| match error {
                // Nobody asked for what this program lacks.
                Error::Usage(why) if !cloud.is_asked() => Error::Usage(format!(
                    "{why}; `tsunami gc --mine` removes what runs of this computer alone have left"
                )),
                error => error,
            });
            for surveyed in surveyed? {
                status = status.max(surveyed.tell());
                let Ok((Backend { provider, connector, .. }, survey)) = surveyed.found else { continue };
                for failure in &survey.failures {
                    // What could not be looked at may hold anything.
                    say(&format!("could not look in {failure}"));
                    status = REMAINS;
                }
                let now = survey.now.unwrap_or_else(SystemTime::now);
                let tsunami = Tsunami::new(provider, connector).state(state.clone());
                for found in survey.runs.into_iter().filter(|found| found.expires + GRACE < now) {
                    let ended = if dry_run { None } else { Some(tsunami.terminate_by_id(&found.run).await) };
                    // It need not be recorded here.
                    rows.push(Row::new(found.run, found.things, ended, Removal::Again(again(cloud))));
                }
            }
        }
        if rows.iter().any(|row| row.outcome == Outcome::Remains) {
            status = REMAINS;
        }
        if rows.is_empty() && status == 0 {
            say("nothing to remove");
        }
        show(&rows, json)?;
        Ok(status)
    }
}

impl Row {
    fn new(run: RunId, things: Vec<String>, ended: Option<Result<(), CoreError>>, removal: Removal) -> Self {
        let (outcome, told) = match ended {
            None => (Outcome::WouldBeRemoved, None),
            Some(Ok(())) => (Outcome::Removed, None),
            Some(Err(error)) => (Outcome::Remains, Some(Error::Core(error))),
        };
        let error = told.as_ref().map(|error: &Error| error.text(&removal));
        Self { schema: SCHEMA, run, outcome, things, error, told, removal }
    }
}

async fn own(registry: &Registry, directory: &RunEntry, state: &RunStore, dry_run: bool) -> Row {
    let things = vec![format!("the run recorded in {}", directory.path().display())];
    if dry_run {
        return Row::new(directory.id(), things, None, Removal::DownAgain);
    }
    let ended = match backend::engine_or_remains(registry, directory, state).await {
        Ok(tsunami) => saying(&format!("{}: being torn down", directory.id()), tsunami.down(directory)).await,
        Err(Error::Core(error)) => Err(error),
        Err(error) => Err(CoreError::other(error)),
    };
    Row::new(directory.id(), things, Some(ended), Removal::DownAgain)
}

/// The command that looks there again.
fn again(cloud: &CloudArgs) -> String {
    let regions = cloud.region.iter().map(|region| ["--region", region.as_str()]);
    let profile = cloud.profile.iter().map(|profile| ["--profile", profile.as_str()]);
    let provider = cloud.provider.iter().map(|provider| ["--provider", provider.as_str()]);
    let words = ["tsunami", "gc"].into_iter().chain(provider.chain(regions).chain(profile).flatten());
    shlex::try_join(words).unwrap_or_else(|_| "tsunami gc".to_owned())
}

fn show(rows: &[Row], json: bool) -> Result<(), Error> {
    let mut text = String::new();
    for row in rows {
        if json {
            text.push_str(&to_json(row).map_err(CoreError::from)?);
            text.push('\n');
            continue;
        }
        text.push_str(&format!("{}: {}\n", row.run, <&str>::from(row.outcome)));
        for thing in &row.things {
            text.push_str(&format!("  {}\n", one_line(thing)));
        }
        row.told.iter().for_each(|error| error.show_with("", &row.removal));
    }
    print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_looks_again_looks_in_the_same_place() {
        let cloud = CloudArgs {
            provider: Some("aws".to_owned()),
            region: vec!["eu-west-1".to_owned(), "x y".to_owned()],
            profile: Some("me".to_owned()),
        };
        let expected = "tsunami gc --provider aws --region eu-west-1 --region 'x y' --profile me";
        assert_eq!(again(&cloud), expected);
    }
}
