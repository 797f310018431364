//! Trials on the fake cloud and paused time. Every test ends with an empty cloud.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tsunami_core::testing::{FakeCloud, MachineFault, Reply};
use tsunami_core::trial::{Collect, Ready, Trial, TrialHost};
use tsunami_core::{
    CancellationToken, Command, Error, EventKind, Exit, Group, MachineSpec, Observer, Plan, Recorder,
    RunStore, Tsunami,
};

const FOREVER: Duration = Duration::from_secs(1_000_000);

/// A fake cloud, and what was heard of a run on it.
struct World {
    cloud: FakeCloud,
    events: Arc<Recorder>,
    directory: TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { cloud: FakeCloud::new(1), events: Arc::default(), directory }
    }

    /// Runs a trial on a server and two clients.
    async fn trial<T, F, Fut>(&self, body: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(Trial) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let tsunami = Tsunami::new(Arc::new(self.cloud.clone()), Arc::new(self.cloud.clone()))
            .state(RunStore::at(self.directory.path().join("runs")))
            .observer(self.events.clone() as Arc<dyn Observer>);
        let plan = Plan::new("trial")
            .group(Group::new("server", MachineSpec::default()))
            .group(Group::new("client", MachineSpec::default()).count(2));
        let ended = tsunami.run(plan, |cluster| async move { cluster.trial("1", body).await }).await;
        assert!(self.cloud.is_empty(), "left: {:?}", self.cloud);
        ended
    }

    /// How commands ended whose line begins so.
    fn ends_of(&self, start: &str) -> Vec<Result<Exit, String>> {
        let ended = |kind| match kind {
            EventKind::CommandFinished { command, exit, error, .. } if command.starts_with(start) => {
                Some(exit.ok_or(error.unwrap_or_default()))
            }
            _ => None,
        };
        self.events.events().into_iter().filter_map(|event| ended(event.kind)).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_trial_ends_what_it_has_started_and_tells_its_story() {
    let world = World::new();
    world.cloud.on_command(|_, command| {
        command.to_string().starts_with("serve").then(|| Reply::status(0).after(FOREVER))
    });
    let served = world.trial(async |trial: Trial| {
        let server = trial.host("server-0")?.stage("serve");
        server.command(Command::shell("serve")).start_until(Ready::port(6379)).await?;
        trial.step("load", trial.group("client"), async |client| client.run("echo done").await).await
    });
    assert_eq!(served.await.unwrap().len(), 2);
    assert_eq!(world.ends_of("serve"), [Err("cancelled".to_owned())]);
    let told = |kind| match kind {
        EventKind::TrialStarted { trial } => Some(format!("trial {trial}")),
        EventKind::StepStarted { step, machines, .. } => {
            Some(format!("step {step} on {}", machines.join(" ")))
        }
        EventKind::StepFinished { step, ok, .. } => Some(format!("step {step}: {ok}")),
        EventKind::TrialFinished { trial, ok, .. } => Some(format!("trial {trial}: {ok}")),
        _ => None,
    };
    let told: Vec<_> = world.events.events().into_iter().filter_map(|event| told(event.kind)).collect();
    assert_eq!(told, ["trial 1", "step load on client-0 client-1", "step load: true", "trial 1: true"]);
}

#[tokio::test(start_paused = true)]
async fn commands_know_their_trial_and_all_machines() {
    let world = World::new();
    world.cloud.on_command(|_, command| {
        let known = command.env.iter().filter(|(name, _)| name.starts_with("TSUNAMI_"));
        let mut names: Vec<_> = known.map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        (command.to_string() == "env").then(|| Reply::stdout(names.join(" ")))
    });
    let names = world.trial(async |trial: Trial| {
        let output = trial.host("client-1")?.run("env").await?;
        Ok(output.stdout().into_owned())
    });
    let expected = "TSUNAMI_CLIENT_IPS TSUNAMI_GROUP TSUNAMI_INDEX TSUNAMI_IP TSUNAMI_NAME TSUNAMI_RUN_ID \
                    TSUNAMI_SERVER_IPS TSUNAMI_STEP TSUNAMI_TRIAL";
    assert_eq!(names.await.unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_before_its_time_fails_the_trial() {
    let world = World::new();
    world.cloud.on_command(|_, command| {
        let crash = Reply::status(3).stderr("cannot bind\n").after(Duration::from_secs(5));
        (command.to_string() == "serve").then_some(crash)
    });
    let error = world.trial(async |trial: Trial| {
        trial.host("server-0")?.stage("serve").command(Command::shell("serve")).start();
        sleep(Duration::from_secs(10)).await;
        Ok(())
    });
    match error.await.unwrap_err() {
        Error::Command { stage, exit, stderr, .. } => {
            assert_eq!((stage.as_str(), exit, stderr.as_str()), ("serve", Exit::Status(3), "cannot bind"));
        }
        error => panic!("{error:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ready_in_time_says_what_was_waited_for_and_is_stopped() {
    for (ready, missing) in [
        (Ready::port(80), "nothing listens on port 80"),
        (Ready::command("ping"), "`ping` does not succeed"),
        (Ready::log("Ready"), "its output does not have `Ready`"),
    ] {
        let world = World::new();
        world.cloud.on_command(|_, command| match command.to_string() {
            line if line.starts_with("serve") => Some(Reply::stdout("ready?").after(FOREVER)),
            // Nothing listens, and whoever waits, waits.
            line if line.contains("$TSUNAMI_SCRIPT") && !line.contains("sweep") => {
                let asks = matches!(&command.program, tsunami_core::Program::Args(args) if args[4] == "list");
                Some(if asks { Reply::status(0) } else { Reply::stdout("looked\n").after(FOREVER) })
            }
            _ => None,
        });
        let error = world.trial(async move |trial: Trial| {
            let server = trial.host("server-0")?.stage("serve");
            let begun = Instant::now();
            let ready = ready.within(Duration::from_secs(30));
            let error = server.command(Command::shell("serve 80")).start_until(ready).await.unwrap_err();
            assert_eq!(begun.elapsed().as_secs(), 30);
            Err::<(), _>(error)
        });
        let shown = format!("{:?}", error.await.unwrap_err());
        assert!(shown.contains(&format!("`serve 80` was not ready within 30s: {missing}")), "{shown}");
        assert_eq!(world.ends_of("serve"), [Err("cancelled".to_owned())]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_text_in_its_output_tells_that_a_service_is_ready() {
    let world = World::new();
    world.cloud.on_command(|_, command| {
        let up = Reply::stdout("loading\nReady to acc").stderr("ept").after(FOREVER);
        (command.to_string() == "serve").then_some(up)
    });
    let stopped = world.trial(async |trial: Trial| {
        let server = trial.host("server-0")?;
        let ready = Ready::log("Ready to");
        let service = server.command(Command::shell("serve")).start_until(ready).await?;
        service.stop().await
    });
    stopped.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_machine_ends_the_trial_and_is_its_error() {
    let early = Duration::from_secs(300);
    for fault in [MachineFault::Interrupted(early), MachineFault::Dies(early)] {
        let world = World::new();
        world.cloud.machine_fault("client-0", fault);
        let error = world.trial(async |trial: Trial| {
            // The other machine waits for it in vain.
            trial.step("load", trial.group("client"), async |client| client.run("sleep 1000000").await).await
        });
        let error = error.await.unwrap_err();
        let machine = match &error {
            Error::Interrupted { machine, .. } | Error::Lost { machine, .. } => machine,
            _ => panic!("{error:?}"),
        };
        assert_eq!(machine, "client-0", "{error:?}");
        let ends = world.ends_of("sleep");
        assert!(ends.contains(&Err("cancelled".to_owned())), "{ends:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn files_come_home_when_their_command_has_ended_however_it_ends() {
    let world = World::new();
    world.cloud.on_command(|_, command| {
        (command.to_string() == "measure").then(|| Reply::status(1).file("out.csv", "1,2"))
    });
    let home = world.directory.path().join("home");
    let into = home.clone();
    let error = world.trial(async move |trial: Trial| {
        let client = trial.host("client-0")?.stage("load");
        let measured = Collect::into(&into).pattern("out.csv").optional("core.*");
        client.clean(&measured).await?;
        let failed = client.command(Command::shell("measure")).collect(measured).run().await.unwrap_err();
        assert!(matches!(failed, Error::Command { .. }), "{failed:?}");
        client.collect(&Collect::into(&into).pattern("missing")).await.map(drop)
    });
    let shown = format!("{:?}", error.await.unwrap_err());
    assert!(shown.contains("nothing matches `missing` in `collect`"), "{shown}");
    assert_eq!(std::fs::read_to_string(home.join("out.csv")).unwrap(), "1,2");
}

#[tokio::test(start_paused = true)]
async fn a_command_in_a_trial_takes_all_that_others_take() {
    let world = World::new();
    world.cloud.on_command(|_, command| match command.to_string().as_str() {
        "serve" => Some(Reply::status(0).after(FOREVER)),
        "measure 3 4" => {
            assert!(command.env.iter().any(|(name, value)| name == "SEED" && value == "7"));
            assert!(command.env.iter().any(|(name, _)| name == "TSUNAMI_TRIAL"));
            Some(Reply::stdout("{\"rps\": 5}").file("out.csv", "5"))
        }
        _ => None,
    });
    let home = world.directory.path().join("home");
    let into = home.clone();
    let ended = world.trial(async move |trial: Trial| {
        let clients = trial.group("client");
        let stop = CancellationToken::new();
        let stopped = clients[0].shell("serve").cancel_on(stop.clone()).output();
        let (stopped, ()) = tokio::join!(stopped, async { stop.cancel() });
        assert!(matches!(stopped, Err(Error::Cancelled)), "{stopped:?}");
        // The token is one more: the end of the trial still ends this.
        clients[0].shell("serve").cancel_on(CancellationToken::new()).start();

        let measure = |client: TrialHost| client.program("measure").args(["3", "4"]).envs([("SEED", "7")]);
        let read =
            clients.for_each(1, async |client| measure(client).json::<serde_json::Value>().await).await?;
        assert_eq!(read, vec![serde_json::json!({ "rps": 5 }); 2]);

        let collected = measure(clients[1].clone()).collect(Collect::into(&into).pattern("out.csv"));
        let list = [clients[1].shell("echo first"), collected, clients[1].shell("echo last")];
        let outputs = clients[1].run_all(list).await?;
        assert_eq!(outputs.len(), 3);
        let missing = clients[1].shell("true").collect(Collect::into(&into).pattern("missing"));
        let failed = clients[1].run_all([missing, clients[1].shell("echo never")]).await.unwrap_err();
        assert!(matches!(failed, Error::At { .. }), "{failed:?}");
        Ok(())
    });
    ended.await.unwrap();
    assert_eq!(std::fs::read_to_string(home.join("out.csv")).unwrap(), "5");
    assert_eq!(world.ends_of("serve"), [Err("cancelled".to_owned()), Err("cancelled".to_owned())]);
    assert!(world.ends_of("echo never").is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_several_parts_that_fail_the_first_in_time_is_told_first() {
    let world = World::new();
    let error = world.trial(async |trial: Trial| {
        let part = async |client: TrialHost| {
            client.run(format!("sleep {}", 10 - client.index())).await?;
            client.run("false").await
        };
        trial.step("load", trial.group("client"), part).await
    });
    match error.await.unwrap_err() {
        Error::Several(failures) => {
            assert_eq!(failures.first.place(), Some(("client-1", "load")));
            assert_eq!(failures.others.len(), 1);
        }
        error => panic!("{error:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_could_become_something_else_names_no_trial() {
    let world = World::new();
    let refused = world.trial(async |trial: Trial| {
        assert!(trial.host("client-7").is_err() && trial.group("nobody").is_empty());
        Ok(())
    });
    refused.await.unwrap();
    let world = World::new();
    let plan = Plan::new("x").group(Group::new("a", MachineSpec::default()));
    let tsunami = Tsunami::new(Arc::new(world.cloud.clone()), Arc::new(world.cloud.clone()))
        .state(RunStore::at(world.directory.path().join("runs")));
    let refused =
        tsunami.run(plan, |cluster| async move { cluster.trial("../1", async |_| Ok(())).await }).await;
    assert!(refused.unwrap_err().to_string().contains("can't name a trial"));
}

#[tokio::test(start_paused = true)]
async fn machines_on_which_something_may_run_on_are_all_told() {
    let world = World::new();
    world.cloud.on_command(|machine, command| {
        // The second in order fails first.
        let after = Duration::from_secs(if machine == "client-0" { 9 } else { 1 });
        let is_sweep = command.to_string().contains("sweep");
        is_sweep.then(|| Reply::status(1).stderr("it runs on\n").after(after))
    });
    let error = world.trial(async |trial: Trial| {
        for client in trial.group("client") {
            client.run("true").await?;
        }
        Ok(())
    });
    let Error::Several(failures) = error.await.unwrap_err() else { panic!("one was told") };
    let all = std::iter::once(&*failures.first).chain(&failures.others);
    let machines: Vec<_> = all.map(|error| error.place().map(|(machine, _)| machine)).collect();
    assert_eq!(machines, [Some("client-1"), Some("client-0")]);
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_is_dropped_ends_what_it_has_started() {
    let world = World::new();
    world.cloud.on_command(|_, command| {
        (command.to_string() == "serve").then(|| Reply::stdout("listening\n").after(FOREVER))
    });
    let tsunami = Tsunami::new(Arc::new(world.cloud.clone()), Arc::new(world.cloud.clone()))
        .state(RunStore::at(world.directory.path().join("runs")))
        .observer(world.events.clone() as Arc<dyn Observer>);
    let plan = Plan::new("trial").group(Group::new("server", MachineSpec::default()));
    let run = tsunami.run(plan, |cluster| async move {
        let trial = cluster.trial("1", async |trial: Trial| {
            let server = trial.host("server-0")?;
            server.command(Command::shell("serve")).start_until(Ready::log("listening")).await?;
            sleep(FOREVER).await;
            Ok(())
        });
        assert!(tokio::time::timeout(Duration::from_secs(60), trial).await.is_err());
        sleep(Duration::from_secs(60)).await;
        cluster.hosts()[0].run("echo later").await.map(drop)
    });
    run.await.unwrap();
    assert!(world.cloud.is_empty());
    let finished = |kind| match kind {
        EventKind::CommandFinished { command, cancelled, .. } => Some((command, cancelled)),
        _ => None,
    };
    let ended: Vec<_> = world.events.events().into_iter().filter_map(|event| finished(event.kind)).collect();
    assert_eq!(ended, [("serve".to_owned(), true), ("echo later".to_owned(), false)]);
}

#[tokio::test(start_paused = true)]
async fn a_server_starts_once_it_is_known_who_listened_before() {
    for (looks, starts) in [
        (Reply::stdout("looked\n").after(Duration::from_secs(9)), true),
        (Reply::status(1).stderr("no tables\n").after(Duration::from_secs(1)), false),
    ] {
        let world = World::new();
        world.cloud.on_command(move |_, command| match command.to_string() {
            line if line.starts_with("serve") => Some(Reply::status(0).after(FOREVER)),
            line if line.contains("listening") => Some(looks.clone()),
            _ => None,
        });
        let started = world.trial(async |trial: Trial| {
            let server = trial.host("server-0")?;
            server.command(Command::shell("serve")).start_until(Ready::port(80)).await.map(drop)
        });
        let started = started.await;
        assert_eq!(started.is_ok(), starts, "{started:?}");
        let lines: Vec<_> = world.cloud.commands().into_iter().map(|(_, line)| line).collect();
        let [check, .., sweep] = &lines[..] else { panic!("{lines:?}") };
        assert!(check.contains("listening") && sweep.contains("sweep"), "{lines:?}");
        // One command looks before, and waits then.
        assert_eq!(&lines[1..lines.len() - 1], if starts { &["serve"][..] } else { &[] });
    }
}
