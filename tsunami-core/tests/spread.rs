//! What many machines are given leaves this computer once, on the fake cloud and paused time.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tsunami_core::testing::{Call, FakeCloud, Fault, MachineFault};
use tsunami_core::{
    Cluster, Error, EventKind, Group, Host, MachineSpec, Plan, ProviderErrorKind, Recorder, RunStore, Tsunami,
};

const LARGE: usize = 5 << 20;

/// A fake cloud, an engine on it, and a file to upload.
struct World {
    cloud: FakeCloud,
    events: Arc<Recorder>,
    cancel: CancellationToken,
    directory: TempDir,
    file: PathBuf,
}

impl World {
    fn with(bytes: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("load");
        fs::write(&file, vec![b'x'; bytes]).unwrap();
        let (cloud, events, cancel) = (FakeCloud::new(1), Arc::default(), CancellationToken::new());
        Self { cloud, events, cancel, directory, file }
    }

    /// Uploads the file in the set-up of so many machines.
    fn plan(&self, machines: u32) -> Plan {
        let file = self.file.clone();
        let setup = move |host: Host| {
            let file = file.clone();
            async move { host.upload(file, "bin/load").await }
        };
        Plan::new("test").group(Group::new("node", MachineSpec::default()).count(machines).setup(setup))
    }

    /// Runs it, and looks whether all machines have the file and nothing else any more.
    async fn run(&self, plan: Plan) -> Result<(), Error> {
        let (cloud, length) = (self.cloud.clone(), fs::metadata(&self.file).unwrap().len());
        self.run_with(plan, move |cluster| async move {
            assert_eq!(cloud.kept(), []);
            for host in cluster.hosts() {
                assert_eq!(host.run("cat bin/load").await?.stdout().len() as u64, length);
            }
            Ok(())
        })
        .await
    }

    async fn run_with<T: Send + 'static, Fut: Future<Output = Result<T, Error>> + Send + 'static>(
        &self,
        plan: Plan,
        body: impl FnOnce(Cluster) -> Fut + Send + 'static,
    ) -> Result<T, Error> {
        let tsunami = Tsunami::new(Arc::new(self.cloud.clone()), Arc::new(self.cloud.clone()))
            .observer(self.events.clone())
            .state(RunStore::at(self.directory.path().join("runs")))
            .cancel_on(self.cancel.clone());
        let result = tsunami.run(plan, body).await;
        assert!(self.cloud.is_empty());
        result
    }

    fn calls(&self) -> (u32, u32) {
        (self.cloud.calls(Call::Upload), self.cloud.calls(Call::Take))
    }

    fn notes(&self) -> Vec<String> {
        let note = |kind: EventKind| match kind {
            EventKind::Note { text, .. } => Some(text),
            _ => None,
        };
        self.events.events().into_iter().filter_map(|event| note(event.kind)).collect()
    }

    fn fail(&self, call: Call, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            self.cloud.fault(call, number, Fault::Error(ProviderErrorKind::Other));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_many_machines_are_given_leaves_this_computer_once() {
    let world = World::with(LARGE);
    world.run(world.plan(32)).await.unwrap();
    assert_eq!((world.calls(), world.notes()), ((1, 31), vec![]));
    // Half of them or so are nobody's source.
    assert!((2..32).contains(&world.cloud.calls(Call::Offer)), "{}", world.cloud.calls(Call::Offer));
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_as_good_as_a_file_wherever_it_arrives() {
    let world = World::with(LARGE);
    let from = world.directory.path().join("tree");
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::copy(&world.file, from.join("sub/load")).unwrap();
    let setup = move |host: Host| {
        let from = from.clone();
        async move { host.upload(from, &format!("tree-{}", host.index())).await }
    };
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()).count(4).setup(setup));
    world.run_with(plan, async |_| Ok(())).await.unwrap();
    assert_eq!(world.calls(), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn what_is_small_or_for_few_is_sent_to_each() {
    for (bytes, machines) in [(LARGE, 2), (1000, 8)] {
        let world = World::with(bytes);
        world.run(world.plan(machines)).await.unwrap();
        assert_eq!(world.calls(), (machines, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn who_cannot_take_it_is_sent_it_and_the_others_go_on() {
    let world = World::with(LARGE);
    // A machine tries another source first, if there is one.
    world.fail(Call::Take, [3, 7, 11]);
    world.run(world.plan(32)).await.unwrap();
    let (uploads, takes) = world.calls();
    assert!((1..=4).contains(&uploads) && uploads + takes == 32 + 3, "{uploads} {takes}");
    let notes = world.notes();
    assert!(notes.len() == 3 && notes.iter().all(|note| note.contains("did not get")), "{notes:?}");
}

#[tokio::test(start_paused = true)]
async fn where_machines_cannot_reach_each_other_that_is_soon_known() {
    for call in [Call::Take, Call::Offer] {
        let world = World::with(LARGE);
        world.fail(call, 1..=40);
        world.run(world.plan(32)).await.unwrap();
        let notes = world.notes();
        assert_eq!(world.calls().0, 32);
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert_eq!(notes.iter().filter(|note| note.contains("nor is anything else")).count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_or_a_taker_that_hangs_holds_up_nobody_for_long() {
    for call in [Call::Take, Call::Offer] {
        let world = World::with(LARGE);
        world.cloud.fault(call, 2, Fault::Hang);
        world.run(world.plan(16)).await.unwrap();
        assert_eq!(world.notes().len(), 1, "{:?}", world.notes());
        assert!(world.calls().0 <= 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_upload_that_fails_or_is_dropped_gives_way_to_the_next() {
    for fault in [Fault::Error(ProviderErrorKind::Other), Fault::Hang] {
        let world = World::with(LARGE);
        world.cloud.fault(Call::Upload, 1, fault);
        let file = world.file.clone();
        let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()).count(8));
        let cloud = world.cloud.clone();
        let arrived = world.run_with(plan, move |cluster| async move {
            let uploads = cluster.hosts().iter().map(async |host| {
                let uploaded = timeout(Duration::from_secs(30), host.upload(&file, "load")).await;
                uploaded.is_ok_and(|uploaded| uploaded.is_ok())
            });
            // The first one's, which hangs, is dropped when the time is over; the others' then, too.
            let first = join_all(uploads).await.into_iter().filter(|arrived| *arrived).count();
            let uploads = cluster.hosts().iter().map(|host| host.upload(&file, "load"));
            try_join_all(uploads).await?;
            let _ = tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(cloud.kept(), []);
            Ok(first)
        });
        assert_eq!(arrived.await.unwrap(), if matches!(fault, Fault::Hang) { 0 } else { 7 });
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_first_upload_without_an_end_send_it_themselves() {
    let world = World::with(LARGE);
    world.cloud.fault(Call::Upload, 1, Fault::Hang);
    let file = world.file.clone();
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()).count(8));
    let arrived = world.run_with(plan, move |cluster| async move {
        let uploads = cluster.hosts().iter().map(async |host| {
            timeout(Duration::from_secs(200), host.upload(&file, "load")).await.is_ok_and(|done| done.is_ok())
        });
        Ok(join_all(uploads).await.into_iter().filter(|arrived| *arrived).count())
    });
    assert_eq!(arrived.await.unwrap(), 7);
    assert_eq!(world.calls(), (2, 6));
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_comes_late_has_it_from_the_others() {
    let world = World::with(LARGE);
    world.cloud.machine_fault("node-5", MachineFault::SlowBoot(Duration::from_secs(100)));
    world.run(world.plan(6)).await.unwrap();
    assert_eq!(world.calls(), (1, 5));
}

/// It is kept no longer than it is needed, however long the set-up takes.
#[tokio::test(start_paused = true)]
async fn once_all_have_it_nothing_is_kept() {
    let world = World::with(LARGE);
    let (file, cloud) = (world.file.clone(), world.cloud.clone());
    let setup = move |host: Host| {
        let (file, cloud) = (file.clone(), cloud.clone());
        async move {
            host.upload(file, "bin/load").await?;
            host.run("sleep 300").await?;
            assert_eq!(cloud.kept(), []);
            Ok(())
        }
    };
    let machines = |name: &str| Group::new(name, MachineSpec::default()).count(4);
    let plan = Plan::new("test").group(machines("with").setup(setup)).group(machines("without"));
    world.run_with(plan, async |_| Ok(())).await.unwrap();
    assert_eq!(world.calls(), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_lost_is_not_asked_for_ever() {
    let world = World::with(LARGE);
    let file = world.file.clone();
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()).count(8));
    // The second take finds that the first machine is gone.
    let cloud = world.cloud.clone();
    world.cloud.at(Call::Take, 1, move || {
        for machine in cloud.kept().into_iter().map(|(machine, _)| machine) {
            cloud.machine_fault(machine, MachineFault::Dies(Duration::ZERO));
        }
    });
    let arrived = world.run_with(plan, move |cluster| async move {
        let uploads = cluster.hosts().iter().map(|host| host.upload(&file, "load"));
        Ok(join_all(uploads).await.into_iter().filter(Result::is_ok).count())
    });
    assert!(arrived.await.unwrap() >= 7);
}

#[tokio::test(start_paused = true)]
async fn what_has_changed_meanwhile_is_sent_anew() {
    let world = World::with(LARGE);
    let (file, cloud) = (world.file.clone(), world.cloud.clone());
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()).count(4));
    let changed = world.run_with(plan, move |cluster| async move {
        for content in [b'y', b'z'] {
            fs::write(&file, vec![content; LARGE]).unwrap();
            try_join_all(cluster.hosts().iter().map(|host| host.upload(&file, "load"))).await?;
            for host in cluster.hosts() {
                assert!(host.run("cat load").await?.stdout().bytes().all(|byte| byte == content));
            }
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(cloud.kept(), []);
        Ok(())
    });
    changed.await.unwrap();
    assert_eq!(world.calls(), (2, 6));
}

#[tokio::test(start_paused = true)]
async fn whatever_goes_wrong_who_is_told_that_it_is_there_has_it() {
    for seed in 0..30 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let world = World::with(LARGE);
        let (mut failing, mut hanging) = (0, 0);
        for _ in 0..rng.u32(1..6) {
            let call = [Call::Upload, Call::Offer, Call::Take][rng.usize(..3)];
            let fault = match rng.u32(..4) {
                0 => Fault::Error(ProviderErrorKind::Other),
                1 => Fault::LostReply(ProviderErrorKind::Other),
                2 => Fault::Slow(Duration::from_secs(rng.u64(1..100))),
                _ => Fault::Hang,
            };
            failing += usize::from(call == Call::Upload);
            hanging += u32::from(matches!(fault, Fault::Hang));
            world.cloud.fault(call, rng.u32(1..10), fault);
        }
        let (file, cloud) = (world.file.clone(), world.cloud.clone());
        let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()).count(8));
        let lost = world.run_with(plan, move |cluster| async move {
            let uploads = cluster.hosts().iter().map(async |host| {
                // Longer than all patience.
                let limit = Duration::from_secs(100 * u64::from(2 + hanging));
                let uploaded = timeout(limit, host.upload(&file, "load")).await;
                if !uploaded.is_ok_and(|uploaded| uploaded.is_ok()) {
                    return Ok(1);
                }
                let there = host.run("cat load").await?.stdout().len();
                assert_eq!(there, LARGE, "seed {seed}: {}", host.name());
                Ok::<_, Error>(0)
            });
            let lost: usize = try_join_all(uploads).await?.into_iter().sum();
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(cloud.kept(), [], "seed {seed}");
            Ok(lost)
        });
        assert!(lost.await.unwrap() <= failing, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_cancelled_in_the_middle_of_it_ends() {
    for call in [Call::Upload, Call::Offer, Call::Take, Call::Withdraw] {
        let world = World::with(LARGE);
        let cancel = world.cancel.clone();
        world.cloud.at(call, 1, move || cancel.cancel());
        let ended = world.run(world.plan(8)).await;
        assert!(matches!(ended, Err(Error::Cancelled)), "{call:?}: {ended:?}");
    }
}
