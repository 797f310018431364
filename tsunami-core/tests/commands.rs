//! Commands and files as a program uses them, on the fake cloud and paused time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio::time::{Instant, sleep, timeout};
use tsunami_core::limits::LINES_AHEAD_LIMIT;
use tsunami_core::testing::{Call, FakeCloud, Fault, Reply};
use tsunami_core::{
    Cluster, Download, Error, ErrorChain, EventKind, Exit, Group, MachineSpec, Plan, Recorder, RunStore,
    Stdin, Stream, Tsunami,
};

/// Runs something on machines of a fake cloud, all of which are gone in the end. Returns what events told.
async fn on<F, Fut>(cloud: &FakeCloud, machines: u32, body: F) -> Vec<EventKind>
where
    F: FnOnce(Cluster) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), Error>> + Send + 'static,
{
    let (directory, events) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let tsunami = Tsunami::new(Arc::new(cloud.clone()), Arc::new(cloud.clone()))
        .state(RunStore::at(directory.path()))
        .observer(events.clone());
    let plan = Plan::new("test").group(Group::new("node", MachineSpec::default()).count(machines));
    tsunami.run(plan, body).await.unwrap();
    assert!(cloud.is_empty());
    events.events().into_iter().map(|event| event.kind).collect()
}

/// A cloud whose machines know some programs.
fn cloud() -> FakeCloud {
    let cloud = FakeCloud::new(1);
    cloud.on_command(|_, command| {
        let both = |text: &str| Reply::stdout(text).stderr("warning\n");
        match command.to_string().as_str() {
            "talk" => Some(both("one\r\n\ntw").after(Duration::from_secs(60))),
            "fail" => Some(Reply { exit: Exit::Status(3), ..both("bad") }),
            "hang" => Some(both("begun").after(Duration::from_secs(1_000_000))),
            "facts" => Some(Reply::stdout(r#"{"cores": 8, "memory": 64}"#)),
            "sort" => Some(Reply::stdout("1\n2\n")),
            _ => None,
        }
    });
    cloud
}

#[tokio::test(start_paused = true)]
async fn lines_come_as_they_are_written_with_how_it_ended() {
    let events = on(&cloud(), 1, |cluster| async move {
        let host = &cluster.hosts()[0];
        let mut lines = host.shell("talk").lines();
        let begun = Instant::now();
        for (stream, text) in [(Stream::Stdout, "one"), (Stream::Stdout, ""), (Stream::Stderr, "warning")] {
            let line = lines.next_line().await?.ok_or("a line is missing")?;
            assert_eq!((line.stream, line.text().as_ref()), (stream, text));
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "they came late");
        assert_eq!(lines.exit(), None);
        assert_eq!(lines.next_line().await?.map(|line| line.to_string()).as_deref(), Some("tw"));
        assert!(begun.elapsed() > Duration::from_secs(50), "it had not ended");
        assert_eq!((lines.next_line().await?, lines.exit()), (None, Some(Exit::Status(0))));
        assert_eq!(lines.next_line().await?, None);

        // A failure comes after all lines, and once.
        let mut lines = host.shell("fail").lines();
        assert_eq!(lines.try_next().await?.ok_or("none")?.to_string(), "warning");
        assert_eq!(lines.try_next().await?.ok_or("none")?.to_string(), "bad");
        let error = lines.try_next().await.unwrap_err();
        assert!(matches!(error, Error::Command { exit: Exit::Status(3), .. }), "{error}");
        assert_eq!((lines.exit(), lines.try_next().await?), (Some(Exit::Status(3)), None));

        // Nobody need read them.
        let output = host.shell("talk").lines().wait().await?;
        assert_eq!((output.exit, output.last_lines(Stream::Stdout).as_str()), (Exit::Status(0), "one\n\ntw"));
        assert!(host.shell("hang").lines().stop().await?.is_none());
        let mut lines = host.shell("hang").lines();
        lines.next_line().await?;
        drop(lines);
        sleep(Duration::from_secs(1)).await;
        Ok(())
    })
    .await;
    let ended = |cancelled_ones: bool| {
        let ended = events.iter().filter(
            |event| matches!(event, EventKind::CommandFinished { cancelled, .. } if *cancelled == cancelled_ones),
        );
        ended.count()
    };
    assert_eq!((ended(false), ended(true)), (3, 2), "what is stopped or dropped ends");
}

#[tokio::test(start_paused = true)]
async fn a_command_waits_for_who_reads_its_lines() {
    on(&cloud(), 1, |cluster| async move {
        let mut lines = cluster.hosts()[0].shell("cat").stdin(Stdin::piped()).lines();
        let text = [vec![b'x'; 1023], vec![b'\n']].concat().repeat(LINES_AHEAD_LIMIT / 512);
        let written = timeout(Duration::from_secs(60), lines.stdin().write_all(&text)).await;
        assert!(written.is_err(), "nothing holds so much");
        lines.stdin().close();
        let mut bytes = 0;
        while let Some(line) = lines.next_line().await? {
            bytes += line.bytes.len() + 1;
        }
        assert!((LINES_AHEAD_LIMIT / 2..text.len()).contains(&bytes), "{bytes}");
        Ok(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn programs_are_talked_with() {
    on(&cloud(), 1, |cluster| async move {
        let host = &cluster.hosts()[0];
        let mut echo = host.program("cat").stdin(Stdin::piped()).lines();
        for question in ["one", "two"] {
            echo.stdin().write_all(format!("{question}\n")).await?;
            assert_eq!(echo.next_line().await?.ok_or("no answer")?.text(), question);
        }
        echo.stdin().close();
        assert_eq!(echo.next_line().await?, None);

        let mut sort = host.program("sort").stdin(Stdin::piped()).start();
        assert!(sort.try_wait()?.is_none());
        let mut input = sort.take_stdin();
        tokio::spawn(async move {
            tokio::io::copy(&mut &b"2\n1\n"[..], &mut input).await.unwrap();
        });
        assert!(sort.stdin().write_all("x").await.is_err(), "somebody else has it");
        // It is not closed here.
        assert_eq!(sort.wait().await?.stdout(), "1\n2\n");
        assert_eq!(sort.try_wait()?.ok_or("it has ended")?.exit, Exit::Status(0));

        let mut alone = host.shell("cat").start();
        let error = alone.stdin().write_all("x").await.unwrap_err();
        assert!(ErrorChain(&error).to_string().contains("Stdin::piped()"), "{error:?}");
        // Without anybody who writes it is at its end at once, in a list as well.
        let reads = || host.shell("cat").stdin(Stdin::piped());
        assert_eq!(reads().run().await?.stdout(), "");
        assert_eq!(host.run_all([reads(), reads()]).await?.len(), 2);
        Ok(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_error_has_what_the_command_wrote() {
    on(&cloud(), 1, |cluster| async move {
        let host = &cluster.hosts()[0];
        let error = host.run("fail").await.unwrap_err();
        let output = error.output().ok_or("no output")?;
        assert_eq!((output.exit, output.timed_out), (Some(Exit::Status(3)), None));
        assert_eq!((output.stdout, output.stderr), ("bad", "warning"));
        let after = Duration::from_secs(5);
        let error = host.shell("hang").timeout(after).run().await.unwrap_err();
        let output = error.output().ok_or("no output")?;
        assert_eq!((output.exit, output.timed_out), (None, Some(after)));
        assert_eq!((output.stdout, output.stderr), ("begun", "warning"));
        assert!(Error::Cancelled.output().is_none());
        Ok(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn files_and_json_are_read_and_written() {
    let cloud = cloud();
    cloud.fault(Call::Upload, 1, Fault::Hang);
    cloud.fault(Call::Download, 1, Fault::Slow(Duration::from_secs(100)));
    let events = on(&cloud, 1, |cluster| async move {
        let host = &cluster.hosts()[0];
        host.write("conf/a b.conf", "listen 7000\n").await?;
        assert_eq!(host.read_to_string("conf/a b.conf").await?, "listen 7000\n");
        host.write("conf/a b.conf", [0xff, 0]).await?;
        assert_eq!(host.read("conf/a b.conf").await?, [0xff, 0]);
        let error = host.read_to_string("conf/a b.conf").await.unwrap_err();
        assert!(ErrorChain(&error).to_string().contains("read of conf/a b.conf: invalid utf-8"), "{error:?}");
        let error = host.read("nothing").await.unwrap_err();
        assert!(error.to_string().contains("`read of nothing` ended with status 1"), "{error}");
        assert!(error.output().ok_or("no output")?.stderr.contains("No such file"));

        let facts: BTreeMap<String, u32> = host.shell("facts").json().await?;
        assert_eq!(facts["cores"], 8);
        let error = host.shell("echo 8 cores").json::<u32>().await.unwrap_err();
        let text = ErrorChain(&error).to_string();
        assert!(text.contains("`echo 8 cores` has not printed the JSON that was expected"), "{text}");
        assert!(text.contains("it begins with `8 cores`") && text.contains("line 1"), "{text}");

        let after = Duration::from_secs(30);
        let error = host
            .upload(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "x")
            .timeout(after)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("Cargo.toml to x` timed out after 30s"), "{error}");
        let home = tempfile::tempdir()?;
        let download = Download::new(["conf/*"], home.path());
        assert!(matches!(host.download(&download).timeout(after).await, Err(Error::Timeout { .. })));
        assert_eq!(host.download(&download).timeout(after).await?, [1]);
        Ok(())
    })
    .await;
    let told = events.iter().filter_map(|event| match event {
        EventKind::CommandStarted { command, .. } => Some(command.as_str()),
        _ => None,
    });
    let told: Vec<&str> = told.collect();
    assert_eq!(
        told,
        ["write of conf/a b.conf"; 2].iter().chain(&["facts", "echo 8 cores"]).copied().collect::<Vec<_>>()
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_done_on_each_machine_is_so_many_at_a_time_and_ends_with_the_first_failure() {
    on(&cloud(), 5, |cluster| async move {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let names = cluster.hosts().for_each(2, |host| {
            let (now, most) = (now.clone(), most.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                // The first takes longest.
                host.run(format!("sleep {}", 10 - host.index())).await?;
                now.fetch_sub(1, Ordering::Relaxed);
                Ok(host.name().to_owned())
            }
        });
        assert_eq!(names.await?, ["node-0", "node-1", "node-2", "node-3", "node-4"]);
        assert_eq!(most.load(Ordering::Relaxed), 2);
        let begun = Instant::now();
        cluster.group("node").for_each(None, async |host| host.run("sleep 10").await).await?;
        assert!(begun.elapsed() < Duration::from_secs(20), "not all at once");

        let begun = Mutex::new(Vec::new());
        let failed = cluster.group("node").for_each(2, async |host| {
            begun.lock().unwrap().push(host.index());
            host.run(if host.index() == 1 { "false" } else { "sleep 10" }).await
        });
        let error = failed.await.unwrap_err();
        assert_eq!(error.place(), Some(("node-1", "run")));
        // The first, which had begun, was awaited.
        assert_eq!(*begun.lock().unwrap(), [0, 1]);
        Ok(())
    })
    .await;
}
