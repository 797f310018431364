//! Real machines for tests: sshd on loopback.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tsunami_core::{Connector, Deadline, LaunchRequest, Machine, MachineSpec, Provider, RunFilter, RunId};
use tsunami_ssh::{LocalProvider, SshConnector, SshOptions, TransportKind};

/// Makes of each function a test for each transport.
#[macro_export]
macro_rules! over_each_transport {
    ($($test:ident),* $(,)?) => {
        mod openssh {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(tsunami_ssh::TransportKind::OpenSsh).await;
            })*
        }

        mod in_process {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(tsunami_ssh::TransportKind::InProcess).await;
            })*
        }
    };
}

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A run id that no other test uses.
pub(crate) fn unique_run() -> RunId {
    let seed = NEXT.fetch_add(1, Ordering::Relaxed) + (u64::from(std::process::id()) << 8);
    RunId::generate(SystemTime::now(), seed)
}

/// Some machines of one run, ended when dropped.
#[derive(Debug)]
pub(crate) struct Machines {
    pub(crate) root: TempDir,
    pub(crate) run: RunId,
    pub(crate) connector: Arc<SshConnector>,
    pub(crate) machines: Vec<Machine>,
}

impl Machines {
    pub(crate) async fn launch(count: u32, transport: TransportKind) -> Self {
        Self::launch_with(count, SshOptions::default().transport(transport).spread(true)).await
    }

    pub(crate) async fn launch_with(count: u32, options: SshOptions) -> Self {
        let root = tempfile::tempdir().unwrap();
        let provider = LocalProvider::new(root.path());
        let connector = Arc::new(SshConnector::new(options));
        let run = unique_run();
        let authorized_key = connector.prepare(&run, &root.path().join(run.as_str())).await.unwrap();
        let lifetime = Duration::from_secs(300);
        let request = LaunchRequest::new(
            run.clone(),
            "node",
            NonZeroU32::new(count).unwrap(),
            MachineSpec::default(),
            Deadline { at: SystemTime::now() + lifetime, lifetime },
        )
        .experiment("test")
        .authorized_key(authorized_key);
        provider.launch(&request).await.unwrap();
        let machines = provider.list(&RunFilter::Run(run.clone())).await.unwrap();
        Self { root, run, connector, machines }
    }

    /// The run's own directory.
    pub(crate) fn directory(&self) -> PathBuf {
        self.root.path().join(self.run.as_str())
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        // As the engine does, but a drop can't wait: the watchdog's script is the same.
        let (root, run, connector) = (self.root.path().to_owned(), self.run.clone(), self.connector.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let left = runtime.block_on(LocalProvider::new(&root).terminate(&run)).unwrap();
            assert_eq!(left, []);
            runtime.block_on(connector.finish(&run));
            let still = std::process::Command::new("pgrep").arg("-fa").arg(&root).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&still.stdout), "");
        })
        .join()
        .unwrap();
    }
}
