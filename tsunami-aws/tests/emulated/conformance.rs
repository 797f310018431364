//! The promises of every provider.

use std::num::NonZeroU32;

use tsunami_aws::Ec2Provider;
use tsunami_core::testing::conformance::ProviderHarness;
use tsunami_core::{MachineSpec, Provider};

use crate::world::{World, spec};

struct Ec2 {
    world: World,
    provider: Ec2Provider,
}

impl Ec2 {
    async fn new() -> Self {
        let world = World::new();
        let provider = world.provider().await;
        Self { world, provider }
    }
}

impl ProviderHarness for Ec2 {
    fn provider(&self) -> &dyn Provider {
        &self.provider
    }

    fn spec(&self, _: NonZeroU32) -> MachineSpec {
        MachineSpec::new(spec())
    }

    // The emulator's machines have no timer.
    fn ends_machines(&self) -> bool {
        false
    }
}

impl Drop for Ec2 {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.world.emulator.assert_empty();
        }
    }
}

tsunami_core::provider_conformance!(#[tokio::test(flavor = "multi_thread")], Ec2::new());
