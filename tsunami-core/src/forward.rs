//! Ports of machines, on this computer.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::cluster::Host;
use crate::error::Error;
use crate::session::{ByteStream, SessionError, SessionErrorKind};

/// How many errors of connections wait for somebody who wants to know them. Further ones are forgotten.
const ERRORS: usize = 16;

/// How long nobody may be connected before the session is asked whether it still works. Whoever is connected notices by
/// themselves.
const IDLE: Duration = Duration::from_secs(10);

/// The name by which a machine reaches itself, whichever addresses that has there.
const ITSELF: &str = "localhost";

/// Not every machine's `localhost` has this address.
const ITSELF_V6: &str = "::1";

/// A port of a machine, on this computer: what connects to [`local_address`](Self::local_address) is connected to the
/// machine's port, over the machine's session.
///
/// Any user of this computer may connect to it. Nobody else can: it listens on 127.0.0.1.
///
/// # When it is dropped
///
/// It listens no longer, and its connections are closed. So it is when the machine is gone, or the run ends.
#[derive(Debug)]
pub struct Forward {
    local: SocketAddr,
    errors: Mutex<mpsc::Receiver<Error>>,
    serving: JoinHandle<()>,
}

impl Forward {
    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Waits for the next connection that could not be made, and says why: above all, that nothing listens on the
    /// machine's port. The last of these errors is why no more connections are taken. After that, `None`. May be dropped at
    /// any await.
    pub async fn failed(&self) -> Option<Error> {
        self.errors.lock().await.recv().await
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Host {
    /// Brings a port of the machine to a free port of this computer. Connections go to what listens on the machine itself
    /// (`localhost`, or `::1`), or on the address by which the machine reaches itself, at the time of each connection.
    ///
    /// Where the session is OpenSSH's, a connection ends as soon as the server has ended its half, as with `ssh -W`: what
    /// is sent to it after that is lost. Over the transport `in-process` it arrives.
    ///
    /// ```
    /// # use tsunami_core::{Error, Host};
    /// # async fn example(server: &Host) -> Result<(), Error> {
    /// let metrics = server.forward(9090).await?;
    /// println!("http://{}/metrics", metrics.local_address());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Session`] if no port can be had here, or if the session has no connections to ports.
    pub async fn forward(&self, port: u16) -> Result<Forward, Error> {
        self.forward_from(0, port).await
    }

    /// The same from a port of this computer's that is chosen; 0 is any that is free.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward) has them. A port that is taken here is one of the kind
    /// [`Local`](SessionErrorKind::Local).
    pub async fn forward_from(&self, local: u16, port: u16) -> Result<Forward, Error> {
        let action = format!("listening for port {port}");
        let listening = async {
            if !self.session().dials() {
                return Err(SessionError::new(
                    SessionErrorKind::Local,
                    "its session has no connections to ports",
                ));
            }
            let cannot = |error: io::Error| {
                let what = format!("this computer can't listen on 127.0.0.1:{local}");
                SessionError::new(SessionErrorKind::Local, what).source(error)
            };
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local)).await.map_err(cannot)?;
            let address = listener.local_addr().map_err(cannot)?;
            Ok((listener, address))
        };
        let (listener, local) = self.attempt(&action, listening).await?;
        let (sender, receiver) = mpsc::channel(ERRORS);
        let serving = tokio::spawn(serve(self.clone(), listener, port, sender));
        Ok(Forward { local, errors: Mutex::new(receiver), serving })
    }

    /// Connects to a port of the machine, as it would itself.
    async fn dial(&self, port: u16) -> Result<Box<dyn ByteStream>, Error> {
        let dialing = async {
            let mut refused = Vec::new();
            for host in self.own_names() {
                match self.session().dial(host, port).await {
                    Err(error) if error.kind == SessionErrorKind::Remote => {
                        // Where the machine allows none at all, it says the same of each.
                        if !refused.contains(&error.message) {
                            refused.push(error.message);
                        }
                    }
                    dialed => return dialed,
                }
            }
            Err(SessionError::new(SessionErrorKind::Remote, refused.join("; ")))
        };
        self.attempt(&action(port), dialing).await
    }

    /// What the machine calls itself. Where it has a loopback address of its own, others are at home at `localhost`, too.
    fn own_names(&self) -> Vec<&str> {
        let own = self.ip().ok();
        let is_loopback = |own: &str| own.parse().is_ok_and(|own: std::net::IpAddr| own.is_loopback());
        let mut names: Vec<_> = [ITSELF].into_iter().chain(own).collect();
        if own.is_some_and(is_loopback) {
            names.reverse();
        }
        names.push(ITSELF_V6);
        names
    }
}

fn action(port: u16) -> String {
    format!("connection to port {port}")
}

/// Takes connections for as long as the machine is there.
async fn serve(host: Host, listener: TcpListener, port: u16, errors: mpsc::Sender<Error>) {
    let mut connections = JoinSet::new();
    let taking = async {
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (local, _) = accepted.map_err(|error| {
                        SessionError::new(SessionErrorKind::Local, "this computer takes no more connections").source(error)
                    })?;
                    connections.spawn(connect(host.clone(), local, port, errors.clone()));
                }
                Some(_) = connections.join_next() => {}
                () = sleep(IDLE), if connections.is_empty() => {
                    if let Err(error) = host.session().check().await && error.kind == SessionErrorKind::Lost {
                        return Err(error);
                    }
                }
            }
        }
    };
    let ended: Result<(), Error> = host.attempt(&action(port), taking).await;
    if let Err(error) = ended {
        let _ = errors.send(error).await;
    }
}

/// One connection, until both sides have ended it.
async fn connect(host: Host, mut local: TcpStream, port: u16, errors: mpsc::Sender<Error>) {
    match host.dial(port).await {
        Ok(mut remote) => {
            // That one side breaks off is between the two.
            let _ = copy_bidirectional(&mut local, &mut remote).await;
        }
        Err(error) => drop(errors.try_send(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::event::{EventCounts, Events};
    use crate::machine::{Addresses, Machine, MachineId, MachineState, RunId};
    use crate::session::MockSession;
    use crate::spread::Spreads;

    fn host(ip: &str, session: MockSession, cancel: CancellationToken) -> Host {
        let run = RunId::generate(SystemTime::UNIX_EPOCH, 1);
        let machine = Machine::new(MachineId::new("m-1"), run, "node", 0, MachineState::Running)
            .addresses(Addresses::default().private(ip));
        let events = Events::new(&[], SystemTime::UNIX_EPOCH, EventCounts::default());
        let spreads = Spreads::new(Vec::new(), events.clone());
        Host::new(machine.into(), Arc::new(session), events, spreads, cancel)
    }

    /// A session to a machine where this listens.
    fn listening(on: &'static str) -> MockSession {
        let mut session = MockSession::new();
        session.expect_dials().return_const(true);
        session.expect_dial().returning(move |host, port| match (host == on, port) {
            (true, 80) => {
                let (here, mut there) = duplex(64);
                tokio::spawn(async move {
                    let mut said = String::new();
                    there.read_to_string(&mut said).await.unwrap();
                    there.write_all(format!("{host} heard {said}", host = on).as_bytes()).await.unwrap();
                });
                Ok(Box::new(here))
            }
            _ => Err(SessionError::new(SessionErrorKind::Remote, format!("nothing listens on {host}"))),
        });
        session
    }

    async fn ask(forward: &Forward) -> String {
        let mut stream = TcpStream::connect(forward.local_address()).await.unwrap();
        stream.write_all(b"it").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        // Where nothing listens, it may be reset.
        drop(stream.read_to_string(&mut answer).await);
        answer
    }

    #[tokio::test]
    async fn connections_reach_what_listens_on_the_machine_until_it_is_dropped_or_the_run_ends() {
        let cancel = CancellationToken::new();
        for (own, on) in [
            ("10.0.0.1", "localhost"),
            ("10.0.0.1", "10.0.0.1"),
            ("127.64.0.1", "127.64.0.1"),
            ("127.64.0.1", "localhost"),
            ("127.64.0.1", "::1"),
        ] {
            let host = host(own, listening(on), cancel.clone());
            let forward = host.forward(80).await.unwrap();
            assert!(forward.local_address().ip().is_loopback());
            for _ in 0..2 {
                assert_eq!(ask(&forward).await, format!("{on} heard it"));
            }
            // Somebody's port stays somebody's.
            let taken = host.forward_from(forward.local_address().port(), 80).await.unwrap_err();
            assert!(crate::ErrorChain(&taken).to_string().contains("can't listen on 127.0.0.1:"), "{taken}");
            let address = forward.local_address();
            drop(forward);
            while TcpStream::connect(address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        }
        let forward = host("127.64.0.1", listening("nowhere"), cancel.clone()).forward(81).await.unwrap();
        assert_eq!(ask(&forward).await, "");
        let error = crate::ErrorChain(&forward.failed().await.unwrap()).to_string();
        let tried = ["port 81", "listens on 127.64.0.1", "listens on localhost", "listens on ::1"];
        assert!(tried.iter().all(|tried| error.contains(tried)), "{error}");
        cancel.cancel();
        assert!(matches!(forward.failed().await, Some(Error::Cancelled)));
        assert!(forward.failed().await.is_none());
        let mut session = MockSession::new();
        session.expect_dials().return_const(false);
        host("10.0.0.1", session, CancellationToken::new()).forward(80).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_machine_is_noticed_though_nobody_connects() {
        let mut session = listening("localhost");
        session.expect_check().times(1).returning(|| Ok(()));
        session
            .expect_check()
            .times(1)
            .returning(|| Err(SessionError::new(SessionErrorKind::Lost, "silence")));
        let forward = host("10.0.0.1", session, CancellationToken::new()).forward(80).await.unwrap();
        let error = forward.failed().await.unwrap();
        assert!(matches!(error, Error::Lost { .. }), "{error:?}");
        assert!(forward.failed().await.is_none());
        TcpStream::connect(forward.local_address()).await.unwrap_err();
    }
}
