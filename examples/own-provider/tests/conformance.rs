//! The provider keeps every promise that tsunami builds on.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::SystemTime;

use own_provider::Namespaces;
use tempfile::TempDir;
use tsunami_core::testing::conformance::ProviderHarness;
use tsunami_core::{Connector, MachineSpec, Provider, RunId};
use tsunami_ssh::{SshConnector, SshOptions};

#[derive(Debug)]
struct Harness {
    provider: Namespaces,
    connector: SshConnector,
    root: TempDir,
}

impl Harness {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let connector = SshConnector::new(SshOptions::default());
        Self { provider: Namespaces::new(root.path()), connector, root }
    }
}

impl ProviderHarness for Harness {
    fn provider(&self) -> &dyn Provider {
        &self.provider
    }

    fn spec(&self, _: NonZeroU32) -> MachineSpec {
        MachineSpec::default()
    }

    fn run_id(&self, nth: u32) -> RunId {
        let run =
            RunId::generate(SystemTime::UNIX_EPOCH, u64::from(std::process::id()) << 8 | u64::from(nth));
        std::fs::create_dir_all(self.root.path().join(run.as_str())).unwrap();
        run
    }

    fn connector(&self, run: &RunId) -> Option<(&dyn Connector, PathBuf)> {
        Some((&self.connector, self.root.path().join(run.as_str())))
    }
}

mod keeps {
    use super::*;
    tsunami_core::provider_conformance!(#[tokio::test(flavor = "multi_thread")], async { Harness::new() });
}

mod is_used_from_files {
    use std::sync::Arc;

    use own_provider::NamespacesRegistration;

    tsunami_core::registration_conformance!(
        tsunami_ssh::registry().with(Arc::new(NamespacesRegistration)),
        "namespaces",
        "count = 2"
    );
}
