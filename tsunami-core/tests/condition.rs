//! What machines are and do, asked of the fake cloud.

use std::sync::Arc;
use std::time::Duration;

use tsunami_core::condition::{Accounting, Facts, Traces, canary, fingerprint, odd};
use tsunami_core::testing::{Call, FakeCloud, Fault, Reply};
use tsunami_core::{Cluster, Error, Group, MachineSpec, Plan, ProviderErrorKind, RunStore, Tsunami};

/// Runs something on four machines of a group.
async fn on_machines<F, Fut, T>(cloud: &FakeCloud, body: F) -> Result<T, Error>
where
    F: FnOnce(Cluster) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, Error>> + Send + 'static,
    T: Send + 'static,
{
    let directory = tempfile::tempdir().unwrap();
    let tsunami = Tsunami::new(Arc::new(cloud.clone()), Arc::new(cloud.clone()));
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()).count(4));
    let done = tsunami.state(RunStore::at(directory.path())).run(plan, body).await;
    assert!(cloud.is_empty());
    done
}

#[tokio::test(start_paused = true)]
async fn an_odd_machine_is_named() {
    let cloud = FakeCloud::new(1);
    cloud.on_command(|machine, command| {
        let kernel = if machine == "node-2" { "6.2" } else { "6.1" };
        let asked = command.to_string().contains("cpu_model");
        asked.then(|| Reply::stdout(format!("kernel\t{kernel}\ncpus\t2\nrubbish")))
    });
    let found = on_machines(&cloud, |cluster| async move {
        let mut machines: Vec<(String, Facts)> = Vec::new();
        for host in cluster.hosts() {
            machines.push((host.name().to_owned(), fingerprint(host).await?));
        }
        let machines: Vec<_> = machines.iter().map(|(name, facts)| (name.as_str(), "node", facts)).collect();
        Ok(odd(&machines))
    });
    let named = ("node-2".to_owned(), vec!["kernel is 6.2, of the others 6.1".to_owned()]);
    assert_eq!(found.await.unwrap(), [named]);
}

#[tokio::test(start_paused = true)]
async fn machines_that_say_nothing_are_accounted_for_without_numbers() {
    let cloud = FakeCloud::new(2);
    let observed = cloud.clone();
    let accounts = on_machines(&cloud, |cluster| async move {
        observed.fault(Call::Exec, 1, Fault::Hang);
        observed.fault(Call::Exec, 2, Fault::Error(ProviderErrorKind::Other));
        let accounting = Accounting::begin(cluster.hosts()).await;
        assert_eq!(canary(&cluster.hosts()[0]).await?.len(), 0);
        Ok(accounting.end().await)
    });
    let accounts = accounts.await.unwrap();
    let names: Vec<&str> = accounts.iter().map(|account| account.machine.as_str()).collect();
    assert_eq!(names, ["node-0", "node-1", "node-2", "node-3"]);
    assert!(accounts.iter().all(|account| account.cpu.is_none() && account.disturbed.is_none()));
}

#[tokio::test(start_paused = true)]
async fn machines_that_share_a_computer_have_one_account() {
    let cloud = FakeCloud::new(3);
    cloud.on_command(|machine, command| {
        let boot = if machine == "node-3" { "b" } else { "a" };
        let asked = command.to_string().contains("boot_id");
        asked.then(|| Reply::stdout(format!("uptime {}\nboot {boot}\ncpu  1 2 3\n", machine.len())))
    });
    let log = cloud.clone();
    let (accounts, asked) = on_machines(&cloud, |cluster| async move {
        let mut accounts = Vec::new();
        for _ in 0..2 {
            let accounting = Accounting::begin(cluster.hosts()).await;
            accounts
                .push(accounting.end().await.into_iter().map(|account| account.machine).collect::<Vec<_>>());
        }
        Ok((accounts, log.commands().len()))
    })
    .await
    .unwrap();
    assert_eq!(accounts, [["node-0", "node-3"], ["node-0", "node-3"]]);
    assert_eq!(asked, 4 + 2 + 2 + 2, "once it is known, one is asked for all");
}

#[tokio::test(start_paused = true)]
async fn traces_end_with_the_run_or_before() {
    let cloud = FakeCloud::new(4);
    cloud.on_command(|_, command| {
        let line = |second: u32| format!("{second}.00 {second} 0 0 0 0 0 0\n");
        let said: String = (1..4).map(line).collect();
        let asked = command.to_string().ends_with("trace");
        asked.then(|| Reply::stdout(said).after(Duration::from_secs(1_000_000)))
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    on_machines(&cloud, |cluster| async move {
        let (stopped, dropped) = (path.join("stopped"), path.join("dropped"));
        let _goes_on = Traces::start(cluster.hosts(), dropped);
        let traces = Traces::start(cluster.hosts(), stopped);
        tokio::time::sleep(Duration::from_secs(5)).await;
        traces.stop().await
    })
    .await
    .unwrap();
    let text = std::fs::read_to_string(directory.path().join("stopped/node-3.csv")).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
}
