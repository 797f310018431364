//! Files to a machine, and back.

use std::path::Path;

use tokio::time::Instant;

use super::Host;
use crate::error::Error;
use crate::event::{EventKind, cut};
use crate::session::Download;

impl Host {
    /// Copies a local file or directory to the machine; see [`Session::upload`](crate::Session::upload) for where it arrives. May be dropped at
    /// any await; what has arrived stays.
    ///
    /// What three or more machines of a run may want, and is larger than 4 MiB, leaves this computer once for each of their
    /// [networks](crate::Addresses::network), where the session can do that: others who want the same wait
    /// for it, and have it from those who have it. A file must get the same name on them.
    ///
    /// # Errors
    ///
    /// [`Error::Session`] if it can't be read here or written there, [`Error::Lost`] or [`Error::Interrupted`] if the
    /// machine ends meanwhile, [`Error::Cancelled`] if the run does.
    pub async fn upload(&self, from: impl AsRef<Path>, to: &str) -> Result<(), Error> {
        let from = from.as_ref();
        let begun = Instant::now();
        let action = format!("upload of {} to {to}", from.display());
        self.attempt(&action, self.inner.spreads.upload(self, from, to)).await?;
        self.inner.events.emit(EventKind::Uploaded {
            machine: self.name().to_owned(),
            id: self.id(),
            stage: self.stage.to_string(),
            from: from.display().to_string(),
            to: to.to_owned(),
            took: cut(begun.elapsed()),
        });
        Ok(())
    }

    /// Brings files home and says how many matches each pattern had, in order. May be dropped at any await; what has
    /// come stays.
    ///
    /// # Errors
    ///
    /// As [`upload`](Self::upload) has them. One that names what was left out comes when all else is home.
    pub async fn download(&self, download: &Download) -> Result<Vec<usize>, Error> {
        let action = format!("download of {}", download.patterns.join(" "));
        let matches = self.attempt(&action, self.inner.session.download(download)).await?;
        self.inner.events.emit(EventKind::Collected {
            machine: self.name().to_owned(),
            id: self.id(),
            stage: self.stage.to_string(),
            into: download.into.display().to_string(),
            files: matches.iter().sum(),
        });
        Ok(matches)
    }
}
