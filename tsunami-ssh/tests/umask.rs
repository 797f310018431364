//! What a run keeps is for its user alone, whatever the umask.

use std::fs;
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tsunami_core::{Deadline, Group, LaunchRequest, MachineSpec, Plan, Provider, RunId, RunStore, Tsunami};
use tsunami_ssh::{HostsProvider, HostsSpec, LocalProvider, SshConnector, SshOptions};

/// Says to this program that it is the child, and where to keep its run.
const PLACE: &str = "TSUNAMI_TEST_UMASK_PLACE";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_keeps_is_private_at_any_umask() {
    let Some(root) = std::env::var_os(PLACE).map(PathBuf::from) else {
        let place = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh");
        child.args(["-c", "umask 000; exec \"$@\"", "sh"]).arg(std::env::current_exe().unwrap());
        child
            .args(["--exact", "what_a_run_keeps_is_private_at_any_umask"])
            .env(PLACE, place.path().join("state/runs"));
        let output = child.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    };
    let provider = LocalProvider::new(&root);
    let connector = Arc::new(SshConnector::new(SshOptions::default()));
    let tsunami = Tsunami::new(Arc::new(provider), connector.clone()).state(RunStore::at(&root));
    let group = Group::new("node", MachineSpec::default());
    let running = tsunami.up(Plan::new("umask").group(group)).await.unwrap();
    // Hosts are taken without being connected to.
    let hosts = HostsProvider::new(&root, connector);
    let taken = running.cluster().hosts()[0].machine().run.clone();
    hosts.launch(&request(&taken)).await.unwrap();
    let kept = root.parent().unwrap();
    let found = open_to_others(kept);
    let sure = fs::read_dir(&root).unwrap().count();
    running.down().await.unwrap();
    assert_eq!((found, sure), (Vec::new(), 1));
}

fn request(run: &RunId) -> LaunchRequest {
    let lifetime = Duration::from_secs(60);
    LaunchRequest::new(
        run.clone(),
        "taken",
        NonZeroU32::MIN,
        MachineSpec::new(HostsSpec::new(["127.0.0.1".parse().unwrap()])),
        Deadline { at: SystemTime::now() + lifetime, lifetime },
    )
    .experiment("umask")
}

/// Files and directories that another user could read, if they could reach them, or write.
fn open_to_others(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let entries: Result<Vec<_>, _> = fs::read_dir(directory).unwrap().collect();
    let paths = entries.unwrap().into_iter().map(|entry| entry.path());
    for path in paths.chain([directory.to_owned()]) {
        // What is made and removed meanwhile is nobody's any more.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.mode() & 0o077 != 0 && !metadata.is_symlink() {
            found.push(format!("{:o} {}", metadata.mode(), path.display()));
        }
        if metadata.is_dir() && path != directory {
            found.extend(open_to_others(&path));
        }
    }
    found
}
