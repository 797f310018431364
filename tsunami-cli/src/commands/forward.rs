//! `tsunami forward`: ports of a machine, on this computer.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::select_all;
use tokio_util::sync::CancellationToken;
use tsunami_core::{Error as CoreError, Forward as Forwarded, RunStore, SessionErrorKind};

use super::{Context, Execute, Known};
use crate::backend;
use crate::error::{EXEC_FAILED, EXEC_LOST, Error};
use crate::signals;
use crate::terminal::{complain, print, say};

/// Bring ports of a machine to this computer, until Ctrl-C
///
/// Prints where each is, as `http://127.0.0.1:8080`, once it listens. Only this computer can connect.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Forward {
    /// A run id, a prefix of one, or an experiment's name
    run: String,
    /// The machine, or a group of one
    machine: String,
    /// A port there, which gets the same number here, or `HERE:THERE`; 0 here is any that is free
    #[arg(required = true, value_parser = ports)]
    ports: Vec<(u16, u16)>,
}

const EXAMPLES: &str = "\
Examples:
  tsunami forward redis server-0 6379
  tsunami forward redis server-0 8080:80 9090";

fn ports(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| text.parse().map_err(|_| format!("`{text}` is no port"));
    let (here, there) = match text.split_once(':') {
        Some((here, there)) => (port(here)?, port(there)?),
        None => (port(text)?, port(text)?),
    };
    if there == 0 { Err("no machine has a port 0".to_owned()) } else { Ok((here, there)) }
}

impl Execute for Forward {
    async fn execute(self, context: &Context<'_>) -> Result<u8, Error> {
        let state = RunStore::standard()?;
        let directory = state.find(&self.run).map_err(Error::Exec)?;
        let known = directory.machines().map_err(Error::Exec)?;
        let machine = Known(&known).one(Some(&self.machine))?.name();
        let cancel = CancellationToken::new();
        let engine = backend::engine(context.registry, &directory, &state).await?.cancel_on(cancel.clone());
        signals::watch(cancel.clone(), "closing the ports", say, Arc::new(|| EXEC_FAILED))?;
        let running = engine.attach(&directory, |other| other.name() == machine).await;
        let running = running.map_err(Error::Exec)?;
        let Some(host) = running.cluster().hosts().first().map(|host| host.stage("forward")) else {
            running.detach().await;
            complain(&format!("{machine} is not running any more"));
            return Ok(EXEC_LOST);
        };
        let mut forwards = Vec::new();
        for (here, there) in self.ports {
            let unheard = |error| Error::Exec(with_another_port(error, there));
            let forward = host.forward_from(here, there).await.map_err(unheard)?;
            print(&format!("http://{}", forward.local_address()))?;
            forwards.push(forward);
        }
        let ended = follow(&forwards, &cancel).await;
        drop(forwards);
        running.detach().await;
        ended
    }
}

/// Names what may be chosen where this computer can't listen on a port.
fn with_another_port(mut error: CoreError, there: u16) -> CoreError {
    if let CoreError::Session { source, .. } = &mut error
        && source.kind == SessionErrorKind::Local
        && source.source.is_some()
    {
        source.help.get_or_insert_with(|| format!("`0:{there}` takes any port here that is free"));
    }
    error
}

/// Tells of connections that could not be made, until there are no more.
async fn follow(forwards: &[Forwarded], cancel: &CancellationToken) -> Result<u8, Error> {
    let mut told = String::new();
    loop {
        let failed = select_all(forwards.iter().map(|forward| forward.failed().boxed()));
        let error = tokio::select! {
            // What failed before is told all the same.
            biased;
            (failed, ..) = failed => match failed {
                Some(CoreError::Cancelled) => return Ok(0),
                None => return Ok(EXEC_LOST),
                Some(error) => Error::Exec(error),
            },
            () = cancel.cancelled() => return Ok(0),
        };
        if error.status() == EXEC_LOST {
            return Err(error);
        }
        // Whoever is refused tries again.
        let text = tsunami_core::ErrorChain(&error).to_string();
        if text != told {
            error.show();
            told = text;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_number_or_two() {
        assert_eq!(ports("8080"), Ok((8080, 8080)));
        assert_eq!(ports("0:80"), Ok((0, 80)));
        for text in ["", ":", "80:", ":80", "0", "80:0", "70000", "a:b", "1:2:3", "-1"] {
            ports(text).unwrap_err();
        }
    }
}
