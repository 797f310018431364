//! A session: commands and files on one machine.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tsunami_core::{
    ByteStream, Command, ContentOffer, Download, Exclude, Exit, Machine, OutputSink, SequenceObserver,
    Session, SessionError, SharedContent,
};

use crate::command::{Commands, Input};
use crate::connector::RunSsh;
use crate::files::{self, KeptContents, Places, Spread};
use crate::pool::{Parked, Pool};
use crate::transport::Connection;

/// A session over SSH.
#[derive(Debug)]
pub(crate) struct SshSession {
    ssh: Arc<RunSsh>,
    machine: Machine,
    commands: Arc<Commands>,
    places: Places,
    kept: KeptContents,
    answered: Option<Instant>,
}

impl SshSession {
    /// A session over a connection to a machine that was first seen to answer then.
    pub(crate) fn new(
        ssh: Arc<RunSsh>,
        machine: &Machine,
        connection: Arc<dyn Connection>,
        answered: Option<Instant>,
    ) -> Self {
        let pool = Pool::new(machine.name(), ssh.transport(machine), connection);
        Self { answered, ..Self::of(ssh, machine, Commands::new(pool, machine, false)) }
    }

    /// A session over what another one has left.
    pub(crate) fn resume(ssh: Arc<RunSsh>, machine: &Machine, parked: Parked) -> Self {
        let pool = Pool::resume(machine.name(), ssh.transport(machine), parked);
        Self::of(ssh, machine, Commands::new(pool, machine, true))
    }

    fn of(ssh: Arc<RunSsh>, machine: &Machine, commands: Commands) -> Self {
        Self {
            ssh,
            machine: machine.clone(),
            commands: Arc::new(commands),
            places: Places::default(),
            kept: KeptContents::default(),
            answered: None,
        }
    }

    fn spread<'a>(&'a self, content: &'a SharedContent) -> Spread<'a> {
        Spread { commands: &self.commands, machine: &self.machine, contents: &self.kept, content }
    }

    /// Makes sure that the machine runs commands at all.
    pub(crate) async fn meet(&self) -> Result<(), SessionError> {
        self.commands.meet().await
    }
}

#[async_trait]
impl Session for SshSession {
    async fn exec(
        &self,
        command: &Command,
        output: Arc<dyn OutputSink>,
        cancel: &CancellationToken,
    ) -> Result<Exit, SessionError> {
        self.commands.run(command, Input::Given(command.stdin.clone()), None, output, cancel).await
    }

    async fn exec_all(
        &self,
        commands: &[Command],
        observer: Arc<dyn SequenceObserver>,
        cancel: &CancellationToken,
    ) -> Result<(), SessionError> {
        self.commands.run_all(commands, observer, cancel).await
    }

    async fn administer(&self, script: &str, args: &[String]) -> Result<String, SessionError> {
        self.commands.administer(script, args).await
    }

    async fn upload(&self, from: &Path, to: &str) -> Result<(), SessionError> {
        self.upload_without(from, to, &Exclude::default()).await
    }

    async fn upload_without(&self, from: &Path, to: &str, exclude: &Exclude) -> Result<(), SessionError> {
        files::upload(&self.commands, &self.places, from, to, exclude).await
    }

    fn spreads(&self) -> bool {
        self.ssh.spreads(&self.machine)
    }

    async fn upload_kept(&self, from: &Path, to: &str, content: &SharedContent) -> Result<(), SessionError> {
        self.spread(content).upload(from, to).await
    }

    async fn offer(&self, content: &SharedContent) -> Result<ContentOffer, SessionError> {
        self.spread(content).offer().await
    }

    async fn take(
        &self,
        offer: &ContentOffer,
        from: &Path,
        to: &str,
        content: &SharedContent,
    ) -> Result<(), SessionError> {
        self.spread(content).take(offer, from, to).await
    }

    async fn withdraw(&self, content: &SharedContent) -> Result<(), SessionError> {
        self.spread(content).withdraw().await
    }

    async fn download(&self, download: &Download) -> Result<Vec<usize>, SessionError> {
        files::download(&self.commands, download).await
    }

    fn moved(&self) -> u64 {
        self.commands.moved().bytes()
    }

    fn dials(&self) -> bool {
        true
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, SessionError> {
        self.commands.pool().dial(host, port).await
    }

    fn answered(&self) -> Option<Instant> {
        self.answered
    }

    async fn check(&self) -> Result<(), SessionError> {
        self.commands.pool().check().await
    }

    async fn close(&self) -> Result<(), SessionError> {
        let parked = self.commands.close().await;
        // A machine that existed before the run is visited once more.
        if let (Some(parked), Some(_)) = (parked, &self.machine.login.directory) {
            self.ssh.park(&self.machine.name(), parked);
        }
        Ok(())
    }
}
