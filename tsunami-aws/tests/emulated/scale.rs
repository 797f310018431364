//! A thousand machines, and what they cost in calls.

use std::time::{Duration, Instant};

use crate::world::{World, plan, spec};

/// Calls that only look.
fn is_poll(action: &str) -> bool {
    matches!(action, "DescribeInstances" | "DescribeSpotInstanceRequests")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_machines_take_as_many_calls_as_one() {
    let world = World::new();
    let groups = [
        ("server", 100, spec().instances(["c7g.xlarge"])),
        ("client", 400, spec()),
        ("worker", 500, spec().instances(["m7g.large", "m6g.large"])),
    ];
    let tsunami = world.tsunami(world.provider().await);
    let begun = Instant::now();
    let running = tsunami.up(plan(&groups).connect_timeout(Duration::from_secs(300))).await.unwrap();
    let up = begun.elapsed();
    assert_eq!(running.cluster().hosts().len(), 1000);
    let calls = world.emulator.calls();
    let to_ec2 = calls.iter().filter(|call| call.service == "ec2").count();
    let polls = calls.iter().filter(|call| is_poll(&call.action)).count();
    let launching = to_ec2 - polls;
    let begun = Instant::now();
    running.down().await.unwrap();
    let later = world.emulator.calls().into_iter().skip(calls.len()).filter(|call| call.service == "ec2");
    let (looking, ending): (Vec<_>, Vec<_>) = later.partition(|call| call.action.starts_with("Describe"));
    println!(
        "1,000 machines in 3 groups: {launching} EC2 calls and {polls} polls to launch, in {:.1} s; {} calls and {} \
         listings to tear down, in {:.1} s",
        up.as_secs_f64(),
        ending.len(),
        looking.len(),
        begun.elapsed().as_secs_f64()
    );
    assert!(launching <= 25, "{launching} calls");
    assert!(ending.len() <= 15, "{ending:?}");
    world.emulator.assert_empty();
}
