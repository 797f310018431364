//! An emulator, a provider that talks to it, and an engine on top.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::config::{Credentials, SharedCredentialsProvider};
use serde_json::json;
use tempfile::TempDir;
use tsunami_aws::{Ec2Options, Ec2Provider, Ec2Spec, Market};
use tsunami_core::testing::{FakeCloud, Reply};
use tsunami_core::{
    Deadline, LaunchRequest, Leftover, Machine, MachineSpec, MachineState, Plan, Provider, ProviderError,
    Recorder, RunFilter, RunId, RunStore, Tsunami,
};

use crate::emulator::Emulator;

pub(crate) const REGION: &str = "eu-west-1";

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJhQ1mY0rN3Lk4T7m8O1x9vHb2cQnT6yZr0eWfXkUd5g";

pub(crate) struct World {
    pub(crate) emulator: Emulator,
    pub(crate) root: TempDir,
    pub(crate) events: Arc<Recorder>,
}

impl World {
    /// Instances are entries in a list, and quick to come and go.
    pub(crate) fn new() -> Self {
        let emulator = Emulator::without_machines();
        emulator.configure(json!({"pending": 0.2, "shutting_down": 0.2, "eni_detach": 0.1}));
        Self { emulator, root: tempfile::tempdir().unwrap(), events: Arc::default() }
    }

    pub(crate) async fn provider(&self) -> Ec2Provider {
        self.provider_in(&[REGION]).await
    }

    pub(crate) async fn provider_in(&self, regions: &[&str]) -> Ec2Provider {
        self.try_provider(regions).await.unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) async fn try_provider(&self, regions: &[&str]) -> Result<Ec2Provider, ProviderError> {
        let options = Ec2Options::default().regions(regions.iter().copied());
        self.provider_with(options).await
    }

    pub(crate) async fn provider_with(&self, options: Ec2Options) -> Result<Ec2Provider, ProviderError> {
        self.provider_at(self.root.path(), "test", options).await
    }

    /// A provider of another computer's, where nothing is recorded.
    pub(crate) async fn elsewhere(&self, root: &Path) -> Ec2Provider {
        self.provider_of("test", root).await
    }

    /// A provider that signs with an access key of somebody's, of the same account.
    pub(crate) async fn provider_of(&self, key: &str, root: &Path) -> Ec2Provider {
        let options = Ec2Options::default().regions([REGION]);
        self.provider_at(root, key, options).await.unwrap_or_else(|error| panic!("{error}"))
    }

    async fn provider_at(
        &self,
        root: &Path,
        key: &str,
        mut options: Ec2Options,
    ) -> Result<Ec2Provider, ProviderError> {
        let service = options.address_service.take();
        let service = service.unwrap_or_else(|| format!("{}/_sim/ip", self.emulator.endpoint()));
        options.address_service = Some(service);
        Ec2Provider::with_config(root, self.config(key), options).await
    }

    fn config(&self, key: &str) -> SdkConfig {
        let credentials = Credentials::new(key, "test", None, None, "test");
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(self.emulator.endpoint())
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .region(Region::new(REGION))
            .retry_config(aws_config::retry::RetryConfig::disabled())
            .sleep_impl(aws_sdk_ec2::config::SharedAsyncSleep::new(
                aws_smithy_async::rt::sleep::TokioSleep::new(),
            ))
            .build()
    }

    /// An engine on the emulated cloud; sessions are the fake's.
    pub(crate) fn tsunami(&self, provider: Ec2Provider) -> Tsunami {
        let sessions = FakeCloud::new(1);
        sessions.on_command(|_, command| {
            let far = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() - 60;
            command
                .to_string()
                .starts_with("tsunami-deadline status")
                .then(|| Reply::stdout(format!("armed {far} 60")))
        });
        Tsunami::new(Arc::new(provider), Arc::new(sessions))
            .observer(self.events.clone())
            .state(RunStore::at(self.root.path()))
    }

    /// The notes that providers took.
    pub(crate) fn notes(&self) -> Vec<String> {
        let events = self.events.events().into_iter();
        events
            .filter_map(|event| match event.kind {
                tsunami_core::EventKind::Note { text, .. } => Some(text),
                _ => None,
            })
            .collect()
    }
}

pub(crate) fn spec() -> Ec2Spec {
    Ec2Spec::new(["c7g.large", "c6g.large"])
        .markets([Market::Spot, Market::OnDemand])
        .ssh_from(["127.0.0.1/32"])
}

pub(crate) fn run_id(nth: u64) -> RunId {
    RunId::generate(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000), nth)
}

pub(crate) fn request(run: &RunId, count: u32, spec: Ec2Spec) -> LaunchRequest {
    let lifetime = Duration::from_secs(3600);
    LaunchRequest::new(
        run.clone(),
        "node",
        NonZeroU32::new(count).unwrap(),
        MachineSpec::new(spec),
        Deadline { at: SystemTime::now() + lifetime, lifetime },
    )
    .experiment("test")
    .authorized_key(KEY)
}

pub(crate) fn plan(groups: &[(&str, u32, Ec2Spec)]) -> Plan {
    let groups = groups.iter().map(|(name, count, spec)| {
        tsunami_core::Group::new(*name, MachineSpec::new(spec.clone())).count(*count)
    });
    groups.fold(Plan::new("test"), Plan::group)
}

/// The run's machines that are not gone.
pub(crate) async fn listed(provider: &dyn Provider, run: &RunId) -> Vec<Machine> {
    let mut machines = provider.list(&RunFilter::Run(run.clone())).await.unwrap();
    machines.retain(|machine| machine.state != MachineState::Gone);
    machines
}

/// Terminates until nothing is left, as the engine does.
pub(crate) async fn terminate(provider: &dyn Provider, run: &RunId) {
    let left = terminate_within(provider, run, Duration::from_secs(60)).await;
    assert_eq!(left, [], "still there");
}

pub(crate) async fn terminate_within(
    provider: &dyn Provider,
    run: &RunId,
    patience: Duration,
) -> Vec<Leftover> {
    let begun = std::time::Instant::now();
    loop {
        let left = provider.terminate(run).await.unwrap();
        if left.is_empty() || begun.elapsed() > patience {
            return left;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
