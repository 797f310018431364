//! Two people, one account: what is one's own is never touched by the other's controller.

use std::collections::BTreeSet;
use std::time::Duration;

use fastrand::Rng;
use futures_util::{StreamExt, stream};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tsunami_aws::Ec2Provider;
use tsunami_core::{MachineId, Provider, ProviderError, RunFilter, RunId};

use crate::world::{World, request, run_id, spec, terminate};

/// So many schedules at a time.
const AT_ONCE: usize = 20;

/// The access keys of the two.
const KEYS: [&str; 2] = ["ALICE", "BOB"];

/// One of the two, with state of their own.
struct User<'a> {
    world: &'a World,
    key: &'static str,
    state: TempDir,
    provider: Ec2Provider,
    random: Rng,
    /// The runs, with the machines that are known to live.
    runs: Vec<(RunId, Vec<MachineId>)>,
    next: u64,
}

/// What the two did.
#[derive(Default)]
struct Story {
    runs: Vec<(&'static str, RunId)>,
    launches: usize,
    crashes: usize,
}

impl User<'_> {
    async fn provider(&mut self) {
        self.provider = self.world.provider_of(self.key, self.state.path()).await;
    }

    /// Launches a run, or launches again what one lacks. The controller may crash over it.
    async fn launch(&mut self, story: &mut Story) {
        let again =
            (!self.runs.is_empty() && self.random.bool()).then(|| self.random.usize(..self.runs.len()));
        let at = again.unwrap_or_else(|| {
            let run = run_id(self.next);
            self.next += 1;
            story.runs.push((self.key, run.clone()));
            self.runs.push((run, Vec::new()));
            self.runs.len() - 1
        });
        let (run, known) = self.runs[at].clone();
        let count = if known.is_empty() { self.random.u32(1..=3) } else { known.len() as u32 };
        let mut wanted = request(&run, count, spec());
        if let Some(lost) = again.and_then(|_| known.first().cloned()) {
            wanted = wanted.replace([lost]);
        }
        let patience = match self.random.u8(..3) {
            0 => Duration::from_millis(self.random.u64(..1500)),
            _ => Duration::from_secs(300),
        };
        story.launches += 1;
        match timeout(patience, self.provider.launch(&wanted)).await {
            Ok(Ok(machines)) => self.runs[at].1 = machines,
            Ok(Err(error)) => assert!(passes(&error), "{error}"),
            Err(_) => {
                story.crashes += 1;
                self.runs[at].1.clear();
                self.provider().await;
                // With what was recorded it is not launched again with other words.
                self.down(at).await;
            }
        }
    }

    /// Ends a run of one's own.
    async fn down(&mut self, at: usize) {
        let (run, _) = self.runs.swap_remove(at);
        terminate(&self.provider, &run).await;
    }

    /// What was launched lives until it is ended by its own controller, whatever the other one does.
    fn all_live(&self) {
        let living = self.world.emulator.living();
        let living: BTreeSet<_> = living.iter().filter_map(|instance| instance["id"].as_str()).collect();
        for (run, machines) in &self.runs {
            let missing: Vec<_> = machines.iter().filter(|id| !living.contains(id.as_str())).collect();
            assert!(missing.is_empty(), "{run}: {missing:?} are gone");
        }
    }

    async fn live(mut self) -> Story {
        let mut story = Story::default();
        for _ in 0..self.random.u32(2..=4) {
            match self.random.u8(..6) {
                0 if !self.runs.is_empty() => {
                    let at = self.random.usize(..self.runs.len());
                    self.down(at).await;
                }
                // What `tsunami gc` removes, of anybody's: nothing has expired.
                1 => {
                    let survey = self.provider.survey().await;
                    let now = survey.now.expect("EC2 says what time it is");
                    assert!(survey.runs.iter().all(|run| run.expires > now));
                }
                2 => drop(self.provider.list(&RunFilter::All).await.expect("a listing of everybody's")),
                _ => self.launch(&mut story).await,
            }
            self.all_live();
            sleep(Duration::from_millis(self.random.u64(..200))).await;
        }
        while !self.runs.is_empty() {
            self.down(0).await;
        }
        story
    }
}

/// Whether bad weather is to blame.
fn passes(error: &ProviderError) -> bool {
    error.kind.is_transient()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_users_of_one_account_never_touch_what_is_the_others() {
    let schedules: u64 =
        std::env::var("TSUNAMI_TWO_USERS_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(20);
    let world = World::new();
    for (kind, probability) in [("throttle", 0.1), ("drop_after", 0.05)] {
        world
            .emulator
            .fault(json!({"action": "*", "kind": kind, "probability": probability, "seed": schedules}));
    }
    world.emulator.configure(json!({"invisible": 0.5}));
    let stories: Vec<Story> = stream::iter(0..schedules)
        .map(|schedule| {
            let world = &world;
            async move {
                let users = KEYS.into_iter().enumerate().map(async |(nth, key)| {
                    let state = tempfile::tempdir().unwrap();
                    let provider = world.provider_of(key, state.path()).await;
                    let number = schedule * 2 + nth as u64;
                    let random = Rng::with_seed(number);
                    let runs = Vec::new();
                    User { world, key, state, provider, random, runs, next: number * 10 }.live().await
                });
                futures_util::future::join_all(users).await
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .flatten()
        .collect();

    let (calls, mut changes) = (world.emulator.calls(), 0);
    let owned: Vec<_> = stories.iter().flat_map(|story| &story.runs).collect();
    for call in &calls {
        let of_another = owned.iter().find(|(owner, run)| {
            // Some things are named by the run, the others by ids whose tags the emulator knows.
            let named =
                |value: &serde_json::Value| value.as_str().is_some_and(|text| text.contains(run.as_str()));
            *owner != call.caller
                && (call.runs.iter().any(|it| it == run.as_str())
                    || !call.action.starts_with("Describe")
                        && call.params.as_object().is_some_and(|params| params.values().any(named)))
        });
        assert!(of_another.is_none(), "{} changes what is another's: {call:?}", call.caller);
        changes += usize::from(!call.runs.is_empty());
    }
    assert!(changes > 0, "nothing was changed at all");
    println!(
        "two users: {schedules} schedules, {} runs, {} launches, {} crashes, {changes} of {} calls name things of runs and \
         change them, 0 of another's, {} things left",
        owned.len(),
        stories.iter().map(|story| story.launches).sum::<usize>(),
        stories.iter().map(|story| story.crashes).sum::<usize>(),
        calls.len(),
        world.emulator.remaining().len(),
    );
    world.emulator.post("faults/clear", &json!({}));
    world.emulator.assert_empty();
}
