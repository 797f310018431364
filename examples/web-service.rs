//! Runs that a web service starts, lists and cancels: `POST /`, `GET /`, `DELETE /RUN`. Ctrl-C tears everything down.
//!
//! ```text
//! cargo run --example web-service
//! ```
#![expect(clippy::print_stdout, reason = "an example says what it does")]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tsunami_core::{CancellationToken, Error, Group, MachineSpec, Plan, RunStore, Tsunami};
use tsunami_ssh::{LocalProvider, SshConnector};

/// The service. Its clones share the engine, and what it knows of the runs: how to cancel each, and how it stands.
#[derive(Clone)]
struct Service {
    tsunami: Tsunami,
    runs: Arc<Mutex<BTreeMap<String, (CancellationToken, String)>>>,
}

impl Service {
    fn new(tsunami: Tsunami) -> Self {
        Self { tsunami, runs: Arc::default() }
    }

    fn runs(&self) -> MutexGuard<'_, BTreeMap<String, (CancellationToken, String)>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self) -> String {
        let (id, stop) = (self.tsunami.next_run_id(), CancellationToken::new());
        let run = self.tsunami.one_run().id(id.clone()).cancel_on(stop.clone());
        self.runs().insert(id.to_string(), (stop.clone(), "runs".to_owned()));
        let (service, name) = (self.clone(), id.to_string());
        tokio::spawn(async move {
            let plan = Plan::new("web").group(Group::new("node", MachineSpec::default()));
            let ended =
                run.run(plan, async |cluster| cluster.hosts()[0].run("./measure || nproc").await).await;
            let state = match ended {
                Ok(output) => format!("measured {}", output.stdout().trim()),
                Err(error) => format!("{:?}: {error}", error.class()),
            };
            service.runs().insert(name, (stop, state));
        });
        format!("{id}\n")
    }

    fn answer(&self, method: &str, path: &str) -> (&'static str, String) {
        match (method, self.runs().get(path.trim_start_matches('/'))) {
            ("DELETE", Some((stop, _))) => {
                stop.cancel();
                return ("202 Accepted", String::new());
            }
            ("POST" | "GET", None) if path == "/" => {}
            _ => return ("404 Not Found", String::new()),
        }
        if method == "POST" {
            return ("201 Created", self.start());
        }
        ("200 OK", self.runs().iter().map(|(id, (_, state))| format!("{id} {state}\n")).collect())
    }

    async fn speak(self, mut stream: TcpStream) -> io::Result<()> {
        let mut lines = BufReader::new((&mut stream).take(1 << 14)).lines();
        let request = lines.next_line().await?.unwrap_or_default();
        while lines.next_line().await?.is_some_and(|header| !header.is_empty()) {}
        let mut words = request.split(' ');
        let (status, text) = self.answer(words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let head = format!("HTTP/1.0 {status}\r\ncontent-length: {}\r\n\r\n", text.len());
        stream.write_all((head + &text).as_bytes()).await
    }

    async fn serve(&self, listener: TcpListener) -> io::Result<()> {
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(self.clone().speak(stream));
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let provider = LocalProvider::new(RunStore::standard()?.root());
    let service = Service::new(Tsunami::new(Arc::new(provider), Arc::new(SshConnector::default())));
    let listener = TcpListener::bind("127.0.0.1:8080").await?;
    println!("http://{}", listener.local_addr()?);
    tokio::select! {
        served = service.serve(listener) => served?,
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    // Every run that goes on is cancelled and torn down before the runtime ends.
    service.tsunami.shutdown().await
}

#[cfg(test)]
#[path = "web-service/tests.rs"]
mod tests;
