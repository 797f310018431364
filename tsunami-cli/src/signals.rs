//! Ctrl-C and its kin: the first ends the run in good order, the second gives the terminal back.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// Cancels `token` at the first SIGINT, SIGTERM or SIGHUP, saying so with `tell`. At the second, `give_up` says
/// what remains, and the process ends with the status it returns.
pub(crate) fn watch(
    token: CancellationToken,
    doing: &'static str,
    tell: impl Fn(&str) + Send + 'static,
    give_up: Arc<dyn Fn() -> u8 + Send + Sync>,
) -> Result<(), Error> {
    let listen =
        |kind| signal(kind).map_err(|error| Error::Usage(format!("cannot listen for signals: {error}")));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
                _ = hang_up.recv() => "SIGHUP",
            }
        };
        let name = next().await;
        token.cancel();
        tell(&format!("{name}: {doing}; once more to give up waiting"));
        next().await;
        std::process::exit(give_up().into());
    });
    Ok(())
}
