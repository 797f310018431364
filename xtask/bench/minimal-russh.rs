//! Sets up all hosts at once through the crate `russh`: a connection of this process's own to each. What somebody would
//! write who needs nothing else: no logs, no supervision, nothing ended when the program is.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it tells which hosts are done")]

mod plan;

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::process::ExitCode;
use std::sync::Arc;

use plan::{Plan, Step};
use russh::client::{self, Handle};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate, load_secret_key};
use russh::{ChannelMsg, Disconnect};
use tokio::task::JoinSet;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What all connections have in common.
struct Common {
    plan: Plan,
    config: Arc<client::Config>,
    key: Arc<PrivateKey>,
    /// By what known_hosts calls a host.
    known: HashMap<String, PublicKey>,
}

/// Accepts the one key that is known of a host.
struct Pinned(PublicKey);

impl client::Handler for Pinned {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> std::result::Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        Ok(key.key_data() == self.0.key_data())
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let plan = Plan::read()?;
    let mut known = HashMap::new();
    for line in fs::read_to_string(plan.directory.join("known_hosts"))?.lines() {
        let (host, key) = line.split_once(' ').ok_or("a line of known_hosts is no such line")?;
        known.insert(host.to_owned(), PublicKey::from_openssh(key)?);
    }
    let config = client::Config { nodelay: true, ..Default::default() };
    let key = load_secret_key(plan.directory.join("id"), None)?;
    let common = Arc::new(Common { plan, config: Arc::new(config), key: Arc::new(key), known });
    let mut hosts = JoinSet::new();
    for index in 0..common.plan.hosts.len() {
        hosts.spawn(set_up(common.clone(), index));
    }
    let mut code = ExitCode::SUCCESS;
    while let Some(done) = hosts.join_next().await {
        match done? {
            Ok(name) => println!("done {name}"),
            Err(error) => {
                eprintln!("{error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

async fn set_up(common: Arc<Common>, index: usize) -> Result<String> {
    let [name, address, port] = &common.plan.hosts[index];
    let known = common.known.get(&format!("[{address}]:{port}")).ok_or("no key of this host is known")?;
    let to = format!("{address}:{port}");
    let mut connection = client::connect(common.config.clone(), to, Pinned(known.clone())).await?;
    let key = PrivateKeyWithHashAlg::new(common.key.clone(), None);
    if !connection.authenticate_publickey("root", key).await?.success() {
        return Err(format!("{name} does not let us in").into());
    }
    for step in &common.plan.steps {
        match step {
            Step::Upload(bytes, to) => drop(run(&connection, &format!("cat >{to}"), bytes).await?),
            Step::Run(command) => drop(run(&connection, command, &[]).await?),
            Step::Show(command) => print!("{}", run(&connection, command, &[]).await?),
        }
    }
    connection.disconnect(Disconnect::ByApplication, "", "").await?;
    Ok(name.clone())
}

/// Runs a command, which reads `input`; what it prints.
async fn run(connection: &Handle<Pinned>, command: &str, input: &'static [u8]) -> Result<String> {
    let mut channel = connection.channel_open_session().await?;
    channel.exec(true, command).await?;
    if !input.is_empty() {
        // In packets as large as the other side takes; what reads and writes would send 8 KiB at a time.
        channel.data_bytes(input).await?;
    }
    channel.eof().await?;
    let (mut output, mut status) = (Vec::new(), None);
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } => output.extend_from_slice(&data),
            ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
            _ => {}
        }
    }
    if status != Some(0) {
        return Err(format!("{command}: {status:?}").into());
    }
    Ok(String::from_utf8_lossy(&output).into_owned())
}
