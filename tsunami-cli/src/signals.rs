//! Ctrl-C and its kin: the first ends the run in good order, the second gives the terminal back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::terminal;

/// Signals this soon after the first are taken for the same one.
const DEBOUNCE: Duration = Duration::from_secs(1);

/// A file that may grow no further is an error to whoever writes it, and no reason to end without a teardown.
pub(crate) fn outlive_full_files() {
    // Once it is listened for, it does nothing.
    let _ = signal(SignalKind::from_raw(Signal::XFSZ.as_raw()));
}

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
        terminal::hurry();
        // Before what is cancelled may end the process.
        tell(&format!("{name}: {doing}; once more to give up waiting"));
        token.cancel();
        // A shell, a terminal or `timeout` may send the same signal twice, or to the whole group: that is nobody
        // who has lost patience. A closed terminal never is.
        let patience = Instant::now() + DEBOUNCE;
        let mut is_told = false;
        loop {
            let name = next().await;
            if name != "SIGHUP" && Instant::now() >= patience {
                break;
            }
            if name != "SIGHUP" && !std::mem::replace(&mut is_told, true) {
                tell(&format!(
                    "{name}: within a second of the first it counts as the same; once more to give up waiting"
                ));
            }
        }
        let status = give_up();
        terminal::finish();
        std::process::exit(status.into());
    });
    Ok(())
}
