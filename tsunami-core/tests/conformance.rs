//! The fake cloud keeps the promises that it stands in for, and what may bring trouble keeps them while it brings none.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tsunami_core::testing::conformance::ProviderHarness;
use tsunami_core::testing::{FakeCloud, MachineFault, Unreliable};
use tsunami_core::{
    Connector, Deadline, LaunchRequest, Machine, MachineSpec, Provider, RunFilter, RunId, Session,
};

/// The cloud, and what stands before it.
#[derive(Debug)]
struct Fake<T>(FakeCloud, T);

impl Fake<FakeCloud> {
    fn new() -> Self {
        let cloud = FakeCloud::new(1);
        cloud.latency(Duration::from_millis(1)..Duration::from_millis(5));
        Self(cloud.clone(), cloud)
    }

    fn wrapped(self) -> Fake<Unreliable<FakeCloud>> {
        Fake(self.0, Unreliable::new(Arc::new(self.1), 1))
    }
}

impl<T: Provider + Connector> ProviderHarness for Fake<T> {
    fn provider(&self) -> &dyn Provider {
        &self.1
    }

    fn spec(&self, _: NonZeroU32) -> MachineSpec {
        MachineSpec::default()
    }

    fn connector(&self, _: &RunId) -> Option<(&dyn Connector, PathBuf)> {
        Some((&self.1, PathBuf::new()))
    }

    fn checks_deadlines(&self) -> bool {
        true
    }

    fn take_back(&self, machine: &Machine) -> bool {
        self.0.machine_fault(machine.name(), MachineFault::Notified(Duration::ZERO));
        true
    }

    fn short_lifetime(&self) -> Duration {
        // A fake machine takes up to twenty seconds to boot.
        Duration::from_secs(40)
    }
}

mod provider {
    use super::*;
    tsunami_core::provider_conformance!(
        #[tokio::test(start_paused = true)],
        async { Fake::new() }
    );
}

mod session {
    use super::*;
    tsunami_core::session_conformance!(
        #[tokio::test(start_paused = true)],
        connected(FakeCloud::new(1))
    );
}

mod unreliable {
    use super::*;

    mod provider {
        use super::*;
        tsunami_core::provider_conformance!(
            #[tokio::test(start_paused = true)],
            async { Fake::new().wrapped() }
        );
    }

    mod session {
        use super::*;
        tsunami_core::session_conformance!(
            #[tokio::test(start_paused = true)],
            connected(Unreliable::new(Arc::new(FakeCloud::new(1)), 1))
        );
    }
}

async fn connected(cloud: impl Provider + Connector) -> Box<dyn Session> {
    let run = RunId::generate(std::time::UNIX_EPOCH, 1);
    let lifetime = Duration::from_secs(3600);
    let authorized_key = cloud.prepare(&run, std::path::Path::new("unused")).await.unwrap();
    let request = LaunchRequest::new(
        run.clone(),
        "node",
        NonZeroU32::MIN,
        MachineSpec::default(),
        Deadline { at: std::time::UNIX_EPOCH + lifetime, lifetime },
    )
    .experiment("test")
    .authorized_key(authorized_key);
    cloud.launch(&request).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let machine = cloud.list(&RunFilter::Run(run)).await.unwrap().remove(0);
    cloud.connect(&machine, Instant::now() + Duration::from_secs(10)).await.unwrap()
}
