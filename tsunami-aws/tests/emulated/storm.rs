//! Many runs in bad weather.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use serde_json::json;
use tsunami_core::{Error, ProviderError, ProviderErrorKind};

use crate::world::{World, plan, spec};

/// So many at a time.
const AT_ONCE: usize = 25;

#[tokio::test(flavor = "multi_thread")]
async fn most_runs_survive_a_storm_and_none_leaves_anything() {
    let runs: u64 = std::env::var("TSUNAMI_STORM_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(50);
    let world = World::new();
    for (kind, probability) in [("throttle", 0.3), ("drop_after", 0.1), ("unavailable", 0.05)] {
        world.emulator.fault(json!({"action": "*", "kind": kind, "probability": probability, "seed": runs}));
    }
    world.emulator.configure(json!({"invisible": 2.0}));
    let begun = Instant::now();
    let outcomes: Vec<Result<(), Error>> = stream::iter(0..runs)
        .map(|nth| {
            let world = &world;
            async move {
                // Each a program of its own, as far as EC2 can tell.
                let tsunami = world.tsunami(world.provider().await).seed(nth);
                let plan = plan(&[("server", 1, spec()), ("client", 3, spec())]);
                tsunami.run(plan.connect_timeout(Duration::from_secs(300)), async |_| Ok(())).await
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let failed: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    println!(
        "storm: {runs} runs, {} failed, {} calls, {} things left, in {:.0} s",
        failed.len(),
        world.emulator.calls().len(),
        world.emulator.remaining().len(),
        begun.elapsed().as_secs_f64()
    );
    for error in &failed {
        let sources: Vec<&ProviderError> = match error {
            Error::Launch { source, .. } => vec![source],
            Error::Quote { failures } => failures.iter().map(|failure| &failure.error).collect(),
            _ => panic!("no clear error: {error:?}"),
        };
        for source in sources {
            let transient =
                matches!(source.kind, ProviderErrorKind::Throttled | ProviderErrorKind::Unavailable);
            assert!(transient, "not the storm's fault: {source}");
        }
    }
    assert!(failed.len() as u64 * 20 <= runs, "{failed:?}");
    world.emulator.post("faults/clear", &json!({}));
    world.emulator.assert_empty();
}
