//! What comes back on a channel before, or in place of, a command's own output.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use tsunami_core::SessionError;

use super::TRAILING_OUTPUT_TIMEOUT;
use crate::attendant::too_much;
use crate::shell::Preamble;
use crate::transport::{Channel, Output};

/// What comes from a channel, and what was read of it until the sign of our `sh`.
pub(super) struct Outputs {
    /// `None` where somebody else takes it.
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
    pub(super) out: Preamble,
    pub(super) err: Preamble,
}

impl Outputs {
    pub(super) fn of(channel: &mut Channel) -> Self {
        let (stdout, stderr) = (channel.stdout.take(), channel.stderr.take());
        Self { stdout, stderr, out: Preamble::default(), err: Preamble::default() }
    }

    /// Gives them back to their channel.
    pub(super) fn leave_to(self, channel: &mut Channel) {
        (channel.stdout, channel.stderr) = (self.stdout, self.stderr);
    }

    /// Waits for the sign of our `sh`, which says nothing more by itself, and says whether it has come.
    pub(super) async fn greeted(&mut self, limit: Duration) -> Result<bool, SessionError> {
        let Self { stdout, stderr, out, err } = self;
        let greeting = async {
            tokio::select! {
                heard = read_preamble(stderr, err) => heard?,
                // It may be silent, or the whole greeting.
                Err(error) = read_preamble(stdout, out), if stdout.is_some() => return Err(error),
            }
            if !err.is_over() {
                // What it has printed says more than any guess of ours.
                let _ = timeout(TRAILING_OUTPUT_TIMEOUT, read_preamble(stdout, out)).await;
            }
            Ok(())
        };
        timeout(limit, greeting).await.unwrap_or(Ok(()))?;
        Ok(self.err.is_over())
    }

    /// All that was said before the sign.
    pub(super) fn words(&self) -> String {
        [&self.out, &self.err].map(|said| String::from_utf8_lossy(said.noise()).into_owned()).concat()
    }
}

/// Reads until the sign, or the end.
async fn read_preamble(
    stream: &mut Option<impl AsyncRead + Unpin>,
    preamble: &mut Preamble,
) -> Result<(), SessionError> {
    let mut chunk = [0; 4096];
    // What came before an error is all there is.
    while !preamble.is_over()
        && let Some(stream) = stream.as_mut()
        && let Ok(count @ 1..) = stream.read(&mut chunk).await
    {
        preamble.take(&chunk[..count]).map_err(too_much)?;
    }
    Ok(())
}
