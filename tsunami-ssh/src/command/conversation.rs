//! What comes back on a channel before, or in place of, a command's own output.

use std::borrow::Cow;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use tsunami_core::limits::SCRIPT_OUTPUT_LIMIT;
use tsunami_core::{BoxError, SessionError, SessionErrorKind};

use super::TRAILING_OUTPUT_TIMEOUT;
use crate::shell::Preamble;
use crate::transport::{Channel, Output};

/// What a script of tsunami's own says on one of its outputs.
#[derive(Debug, Default)]
pub(super) struct FramedOutput {
    pub(super) preamble: Preamble,
    bytes: Vec<u8>,
}

/// What comes from a channel, and what has been read of it.
pub(super) struct Outputs {
    /// `None` where somebody else takes it.
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
    pub(super) out: FramedOutput,
    pub(super) err: FramedOutput,
}

impl Outputs {
    pub(super) fn of(channel: &mut Channel) -> Self {
        let (stdout, stderr) = (channel.stdout.take(), channel.stderr.take());
        Self { stdout, stderr, out: FramedOutput::default(), err: FramedOutput::default() }
    }

    /// Waits for the sign of our `sh`, and says whether it has come.
    pub(super) async fn greeted(&mut self, limit: Duration) -> Result<bool, SessionError> {
        let is_over = |answer: &FramedOutput| answer.preamble.is_over();
        let Self { stdout, stderr, out, err } = self;
        let greeting = async {
            tokio::select! {
                heard = err.read_on(stderr, is_over) => heard?,
                // It may be silent, or the whole greeting.
                Err(error) = out.read_on(stdout, is_over), if stdout.is_some() => return Err(error),
            }
            if !err.preamble.is_over() {
                // What it has printed says more than any guess of ours.
                let _ = timeout(TRAILING_OUTPUT_TIMEOUT, out.read_on(stdout, is_over)).await;
            }
            Ok(())
        };
        timeout(limit, greeting).await.unwrap_or(Ok(()))?;
        Ok(self.err.preamble.is_over())
    }

    /// All that was said, noise included.
    pub(super) fn words(&self) -> String {
        [self.out.words(), self.err.words()].concat()
    }
}

impl FramedOutput {
    /// Reads until the end, or until it is enough.
    pub(super) async fn read_on(
        &mut self,
        stream: &mut Option<impl AsyncRead + Unpin>,
        enough: impl Fn(&Self) -> bool,
    ) -> Result<(), SessionError> {
        let mut chunk = [0; 4096];
        // What came before an error is all there is.
        while !enough(self)
            && let Some(stream) = stream.as_mut()
            && let Ok(count @ 1..) = stream.read(&mut chunk).await
        {
            let more = self.preamble.take(&chunk[..count]).map_err(too_much)?;
            self.bytes.extend_from_slice(&more);
            if self.bytes.len() > SCRIPT_OUTPUT_LIMIT {
                return Err(too_much(format!("more than {} KiB", SCRIPT_OUTPUT_LIMIT >> 10)));
            }
        }
        Ok(())
    }

    pub(super) fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }

    /// All that was said, noise included.
    fn words(&self) -> String {
        [self.preamble.noise(), &self.bytes].map(String::from_utf8_lossy).concat()
    }
}

fn too_much(error: impl Into<BoxError>) -> SessionError {
    SessionError::new(SessionErrorKind::Remote, "the machine says more than is read").source(error)
}
