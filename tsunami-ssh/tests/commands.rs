//! Commands and files as a program uses them, on real machines.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tsunami_core::{Cluster, Error, Exit, Group, Host, MachineSpec, Plan, RunStore, Stdin, Stream, Tsunami};
use tsunami_ssh::{LocalProvider, SshConnector, SshOptions, TransportKind};

#[tokio::test(flavor = "multi_thread")]
async fn programs_use_commands_and_files_over_openssh() {
    programs_use_commands_and_files(TransportKind::OpenSsh).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_use_commands_and_files_in_process() {
    programs_use_commands_and_files(TransportKind::InProcess).await;
}

async fn programs_use_commands_and_files(transport: TransportKind) {
    let root = tempfile::tempdir().unwrap();
    let state = RunStore::at(root.path());
    let connector = SshConnector::new(SshOptions::default().transport(transport));
    let tsunami = Tsunami::new(Arc::new(LocalProvider::new(state.root())), Arc::new(connector)).state(state);
    let plan = Plan::new("commands").group(Group::new("node", MachineSpec::default()).count(2));
    tsunami
        .run(plan, |cluster| async move {
            let host = &cluster.hosts()[0];
            files(host).await?;
            programs(host).await?;
            unread_lines(host).await?;
            machines(&cluster).await
        })
        .await
        .unwrap();
}

async fn files(host: &Host) -> Result<(), Error> {
    let content: Vec<u8> = (0..=255).cycle().take(3 << 20).collect();
    host.write("a dir/it's.bin", content.clone()).timeout(Duration::from_secs(60)).await?;
    assert_eq!(host.read("a dir/it's.bin").await?, content);
    host.run("chmod 640 'a dir/'*").await?;
    host.write("a dir/it's.bin", "short").await?;
    assert_eq!(host.read_to_string("a dir/it's.bin").await?, "short");
    let listed = host.run("ls -l 'a dir'").await?;
    assert!(
        listed.stdout().contains("-rw-r-----") && listed.stdout().lines().count() == 2,
        "{}",
        listed.stdout()
    );
    let error = host.write("a dir", "x").await.unwrap_err();
    assert!(error.output().ok_or("no output")?.stderr.contains("a dir is a directory"), "{error:?}");
    let error = host.read("nothing").await.unwrap_err();
    assert!(error.output().ok_or("no output")?.stderr.contains("No such file"), "{error:?}");
    Ok(())
}

async fn programs(host: &Host) -> Result<(), Error> {
    let words = ["it's", "$HOME", "a\nb", ""];
    let print = host.program("printf").arg("<%s>").args(words).envs([("A", "1"), ("B", "2")]);
    assert_eq!(print.run().await?.stdout(), "<it's><$HOME><a\nb><>");
    let facts: BTreeMap<String, u32> = host.shell(r#"echo "{\"a\": $A}""#).env("A", "7").json().await?;
    assert_eq!(facts["a"], 7);

    // It is talked with: each answer comes before the next question.
    let line = r#"while read -r word; do echo "got $word"; done; echo over >&2; exit 3"#;
    let mut talk = host.shell(line).stdin(Stdin::piped()).lines();
    for word in ["one", "two"] {
        talk.stdin().write_all(format!("{word}\n")).await?;
        let answer = timeout(Duration::from_secs(60), talk.next_line()).await.map_err(Error::other)??;
        assert_eq!(answer.ok_or("no answer")?.text(), format!("got {word}"));
    }
    talk.stdin().close();
    let last = talk.next_line().await?.ok_or("no last line")?;
    assert_eq!((last.stream, last.text().as_ref()), (Stream::Stderr, "over"));
    let error = talk.next_line().await.unwrap_err();
    assert_eq!(error.output().and_then(|output| output.exit), Some(Exit::Status(3)));
    assert_eq!(talk.exit(), Some(Exit::Status(3)));

    // More than is held on the way arrives whole.
    let mut count = host.program("wc").arg("-c").stdin(Stdin::piped()).start();
    count.stdin().write_all(vec![b'x'; 5 << 20]).await?;
    assert!(count.try_wait()?.is_none());
    assert_eq!(count.wait().await?.stdout().trim(), (5 << 20).to_string());
    // Whoever writes hears of the end.
    let mut ended = host.shell("exec <&-; sleep 0.1").stdin(Stdin::piped()).start();
    let flood = async {
        loop {
            if let Err(error) = ended.stdin().write_all(vec![b'x'; 1 << 20]).await {
                return error;
            }
        }
    };
    let error = timeout(Duration::from_secs(60), flood).await.map_err(Error::other)?;
    assert!(format!("{error:?}").contains("it reads no more"), "{error:?}");
    assert_eq!(ended.wait().await?.exit, Exit::Status(0));
    Ok(())
}

/// Nobody reads what a command floods. It waits, and can be ended, and the machine serves others afterwards.
async fn unread_lines(host: &Host) -> Result<(), Error> {
    let line = "echo $$ >flood.pid; while :; do echo \"$LINE\"; done";
    let flood = || host.shell(line).env("LINE", "x".repeat(1000));
    let mut lines = flood().timeout(Duration::from_secs(5)).lines();
    assert_eq!(lines.next_line().await?.ok_or("no line")?.bytes.len(), 1000);
    sleep(Duration::from_secs(7)).await;
    let mut read = 0;
    let error = loop {
        match lines.next_line().await {
            Ok(line) => read += line.ok_or("it has ended by itself")?.bytes.len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Timeout { gone: true, .. }), "{error:?}");
    assert!(read < 64 << 20, "{read} bytes were held");
    let mut dropped = flood().lines();
    dropped.next_line().await?;
    sleep(Duration::from_secs(1)).await;
    drop(dropped);
    let is_gone = "while kill -0 \"$(cat flood.pid)\"; do sleep 0.1; done 2>&-";
    host.shell(is_gone).timeout(Duration::from_secs(60)).run().await?;
    Ok(())
}

async fn machines(cluster: &Cluster) -> Result<(), Error> {
    let names = cluster.hosts().for_each(1, async |host| {
        let output = host.run("echo \"$HOME\"").await?;
        Ok(output.stdout().trim().ends_with(&format!("{}/home", host.name())))
    });
    assert_eq!(names.await?, [true, true]);
    Ok(())
}
