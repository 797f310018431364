//! The transport over OpenSSH: one `ssh` master process a connection, whose channels are opened over its control
//! socket with the native multiplexing protocol.

mod dial;
pub(crate) mod master;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use openssh::Stdio;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tsunami_core::{ByteStream, Machine, SessionError, SessionErrorKind};

use super::{Channel, ConnectError, Connection, Output, Transport, not_dialed};
use crate::connector::RunSsh;
use master::Master;

/// How long a master that refuses a channel may take to be gone, if it is ending.
const ENDING_TIMEOUT: Duration = Duration::from_millis(100);

/// Connects to a machine by masters that the run's ssh_config tells the way.
#[derive(Debug)]
pub(crate) struct OpensshTransport {
    ssh: Arc<RunSsh>,
    machine: Machine,
}

impl OpensshTransport {
    pub(crate) fn new(ssh: Arc<RunSsh>, machine: Machine) -> Self {
        Self { ssh, machine }
    }
}

#[async_trait]
impl Transport for OpensshTransport {
    async fn connect(&self, deadline: Instant) -> Result<Arc<dyn Connection>, ConnectError> {
        let master = self.ssh.master(&self.machine, deadline).await?;
        let session = Arc::new(openssh::Session::resume_mux(master.socket().into(), None));
        let places = Semaphore::new(dial::WAITING);
        Ok(Arc::new(OpensshConnection { master, session, places }))
    }
}

#[derive(Debug)]
struct OpensshConnection {
    master: Master,
    session: Arc<openssh::Session>,
    /// Of those who wait for the master, to connect to a port.
    places: Semaphore,
}

#[async_trait]
impl Connection for OpensshConnection {
    async fn open(
        &self,
        line: &str,
        stdin: OwnedFd,
        stdout: Option<OwnedFd>,
    ) -> Result<Channel, SessionError> {
        let stdio = |end: OwnedFd| Stdio::from(File::from(end));
        let mut command = self.session.clone().arc_raw_command(line);
        command.stdin(stdio(stdin)).stdout(stdout.map_or_else(Stdio::piped, stdio)).stderr(Stdio::piped());
        let spawned = tokio::select! {
            biased;
            () = self.master.ended() => return Err(self.reason()),
            spawned = command.spawn() => spawned,
        };
        let mut child = match spawned {
            Ok(child) => child,
            // A master that is ending refuses before it is gone.
            Err(_) if timeout(ENDING_TIMEOUT, self.master.ended()).await.is_ok() => {
                return Err(self.reason());
            }
            Err(error) => {
                let refused = SessionError::new(SessionErrorKind::Remote, "the machine opened no channel");
                return Err(refused.source(error));
            }
        };
        let stdout = child.stdout().take().map(|stdout| -> Output { Box::new(stdout) });
        let stderr = child.stderr().take().map(|stderr| -> Output { Box::new(stderr) });
        let end = Box::pin(async move {
            child.wait().await.map(|status| status.success()).map_err(std::io::Error::other)
        });
        Ok(Channel { stdout, stderr, end })
    }

    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, SessionError> {
        let dialed = tokio::select! {
            biased;
            () = self.master.ended() => return Err(self.reason()),
            dialed = dial::dial(self.master.socket(), &self.places, host, port) => dialed,
        };
        match dialed {
            Ok(Some(stream)) => Ok(Box::new(stream)),
            Ok(None) => Err(not_dialed(host, port)),
            // As with a channel.
            Err(_) if timeout(ENDING_TIMEOUT, self.master.ended()).await.is_ok() => Err(self.reason()),
            Err(error) => {
                Err(SessionError::new(SessionErrorKind::Local, "the ssh master does not do it").source(error))
            }
        }
    }

    fn is_closed(&self) -> bool {
        self.master.has_ended()
    }

    fn reason(&self) -> SessionError {
        self.master.reason()
    }

    fn close(&self) {
        self.master.end();
    }
}
