//! The service over HTTP, on a cloud that isn't there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use tsunami_core::testing::{FakeCloud, Reply};

use super::*;

async fn ask(service: std::net::SocketAddr, method: &str, path: &str) -> io::Result<(String, String)> {
    let mut stream = TcpStream::connect(service).await?;
    stream.write_all(format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head");
    Ok((head.lines().next().unwrap_or_default().to_owned(), text.to_owned()))
}

#[tokio::test]
async fn runs_are_started_listed_cancelled_and_torn_down() -> Result<(), Error> {
    let (cloud, records) = (Arc::new(FakeCloud::new(1)), tempfile::tempdir()?);
    cloud.latency(Duration::from_millis(1)..Duration::from_millis(3));
    cloud.machine_fault("node-0", tsunami_core::testing::MachineFault::SlowBoot(Duration::from_millis(5)));
    // The first one measures, the others never come to an end.
    let is_first = AtomicBool::new(true);
    cloud.on_command(move |_, _| match is_first.swap(false, Ordering::Relaxed) {
        true => Some(Reply::stdout("42\n")),
        false => Some(Reply::status(0).after(Duration::from_secs(100_000))),
    });
    let service =
        Service::new(Tsunami::new(cloud.clone(), cloud.clone()).state(RunStore::at(records.path())));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let at = listener.local_addr()?;
    let serving = tokio::spawn({
        let service = service.clone();
        async move { service.serve(listener).await }
    });
    let start = async || -> Result<String, Error> {
        let (status, id) = ask(at, "POST", "/").await?;
        assert_eq!(status, "HTTP/1.0 201 Created");
        Ok(id.trim().to_owned())
    };
    let stands = async |id: &str, state: &str| -> Result<(), Error> {
        let line = format!("{id} {state}");
        while !ask(at, "GET", "/").await?.1.lines().any(|listed| listed == line) {
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };

    let first = start().await?;
    stands(&first, "measured 42").await?;
    let (second, third) = (start().await?, start().await?);
    stands(&second, "runs").await?;
    assert_eq!(ask(at, "DELETE", &format!("/{second}")).await?.0, "HTTP/1.0 202 Accepted");
    assert_eq!(ask(at, "DELETE", "/nobody").await?.0, "HTTP/1.0 404 Not Found");
    stands(&second, "Cancelled: cancelled").await?;
    stands(&third, "runs").await?;

    service.tsunami.shutdown().await?;
    stands(&third, "Cancelled: cancelled").await?;
    assert!(cloud.is_empty(), "left: {cloud:?}");
    serving.abort();
    Ok(())
}
