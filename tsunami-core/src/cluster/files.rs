//! Files to a machine, and back.

use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Host;
use super::output::OutputWatcher;
use crate::error::Error;
use crate::event::{EventKind, cut};
use crate::exclude::Exclude;
use crate::limits::FILE_READ_LIMIT;
use crate::session::{Download, SessionError, Stdin, Stream};
use crate::trial::own_script;

/// What [`Host::write`] runs.
const WRITE: &str = include_str!("write.sh");

/// The name of that script, by which the fake cloud knows it.
pub(crate) const WRITE_NAME: &str = "write";

/// Files on their way, once it is awaited.
#[must_use = "nothing is transferred before it is awaited"]
pub struct Transfer<T> {
    host: Host,
    action: String,
    doing: BoxFuture<'static, Result<T, Error>>,
}

impl<T: Send + 'static> Transfer<T> {
    fn new(
        host: &Host,
        action: String,
        doing: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Self {
        Self { host: host.clone(), action, doing: doing.boxed() }
    }

    /// Sets how long it may take, from when it is first awaited. What then isn't done is given up as if this were dropped,
    /// and the error is [`Error::Timeout`].
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tsunami_core::{Error, Host};
    /// # async fn example(host: &Host) -> Result<(), Error> {
    /// host.upload("data.bin", "data/").timeout(Duration::from_secs(60)).await?;
    /// # Ok(()) }
    /// ```
    pub fn timeout(self, after: Duration) -> Self {
        let Self { host, action, doing } = self;
        let timed_out = Error::Timeout {
            machine: host.name().to_owned(),
            stage: host.stage_name().to_owned(),
            command: action.clone(),
            after,
            gone: true,
            stdout: String::new(),
            stderr: String::new(),
        };
        let doing = async move { timeout(after, doing).await.unwrap_or(Err(timed_out)) };
        Self { host, action, doing: doing.boxed() }
    }
}

impl<T> Future for Transfer<T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.doing.poll_unpin(cx)
    }
}

impl<T> fmt::Debug for Transfer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer")
            .field("host", &self.host)
            .field("action", &self.action)
            .finish_non_exhaustive()
    }
}

/// An upload, as errors name it.
fn upload_of(from: &Path, to: &str) -> String {
    format!("upload of {} to {to}", from.display())
}

impl Host {
    /// Copies a local file or directory to the machine; see [`Session::upload`](crate::Session::upload) for where it
    /// arrives. May be dropped at any await; what has arrived stays.
    ///
    /// What three or more machines of a run may want, and is larger than 4 MiB, leaves this computer once for each of their
    /// [networks](crate::Addresses::network), where the session can do that: others who want the same wait
    /// for it, and have it from those who have it. A file must get the same name on them.
    ///
    /// # Errors
    ///
    /// [`Error::Session`] if it can't be read here or written there, [`Error::Lost`] or [`Error::Interrupted`] if the
    /// machine ends meanwhile, [`Error::Cancelled`] if the run does, and [`Error::Timeout`] once its
    /// [time](Transfer::timeout) is over.
    pub fn upload(&self, from: impl AsRef<Path>, to: &str) -> Transfer<()> {
        self.upload_without(from, to, &Exclude::default())
    }

    /// Does what [`upload`](Self::upload) does with a directory, without what is left out.
    ///
    /// # Errors
    ///
    /// As `upload` has them.
    pub fn upload_without(&self, from: impl AsRef<Path>, to: &str, exclude: &Exclude) -> Transfer<()> {
        let (host, from, to) = (self.clone(), from.as_ref().to_owned(), to.to_owned());
        let (action, exclude) = (upload_of(&from, &to), exclude.clone());
        Transfer::new(self, action, async move {
            host.uploaded(&from, &to, host.inner.spreads.upload(&host, &from, &to, &exclude)).await
        })
    }

    /// Uploads a text in the place of the file that it was made from, whose name and mode it has. No other machine has it
    /// from this one.
    #[cfg(feature = "experiment")]
    pub(crate) async fn upload_text(&self, from: &Path, to: &str, text: String) -> Result<(), Error> {
        let source = from.to_owned();
        // The directory goes once the file is there, and is nobody else's.
        let written = tokio::task::spawn_blocking(move || {
            let directory = tempfile::Builder::new().prefix("tsunami-").tempdir()?;
            let file = directory.path().join(source.file_name().unwrap_or("text".as_ref()));
            std::fs::write(&file, text)?;
            std::fs::set_permissions(&file, std::fs::metadata(&source)?.permissions())?;
            Ok::<_, std::io::Error>((directory, file))
        });
        let (directory, file) = written.await.map_err(Error::other)?.map_err(|error| self.error(error))?;
        self.uploaded(from, to, self.inner.session.upload(&file, to)).await?;
        drop(directory);
        Ok(())
    }

    async fn uploaded(
        &self,
        from: &Path,
        to: &str,
        upload: impl Future<Output = Result<(), SessionError>>,
    ) -> Result<(), Error> {
        let begun = Instant::now();
        self.attempt(&upload_of(from, to), upload).await?;
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
    pub fn download(&self, download: &Download) -> Transfer<Vec<usize>> {
        let (host, download) = (self.clone(), download.clone());
        let action = format!("download of {}", download.patterns.join(" "));
        Transfer::new(self, action.clone(), async move {
            let matches = host.attempt(&action, host.inner.session.download(&download)).await?;
            host.inner.events.emit(EventKind::Collected {
                machine: host.name().to_owned(),
                id: host.id(),
                stage: host.stage.to_string(),
                into: download.into.display().to_string(),
                files: matches.iter().sum(),
            });
            Ok(matches)
        })
    }

    /// How many bytes this process has sent and fetched so far with [`upload`](Self::upload) and
    /// [`download`](Self::download), about: for showing that a transfer goes on. What another machine of the run gave to
    /// this one isn't counted.
    pub fn moved(&self) -> u64 {
        self.inner.session.moved()
    }

    /// What a file on the machine holds, up to [`FILE_READ_LIMIT`]; relative to the session's directory, as uploads are. May
    /// be dropped at any await. No event tells of it.
    ///
    /// ```
    /// # use tsunami_core::{Error, Host};
    /// # async fn example(host: &Host) -> Result<(), Error> {
    /// let profile = host.read("profile.bin").await?;
    /// std::fs::write("profile.bin", profile)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Command`] if it can't be read there, with what `cat` says of it as [output](Error::output); [`Error::At`] if
    /// it is larger; and for the rest as [`HostCommand::output`](super::HostCommand::output) has them.
    pub fn read(&self, path: &str) -> Transfer<Vec<u8>> {
        let (host, path, action) = (self.clone(), path.to_owned(), format!("read of {path}"));
        Transfer::new(self, action.clone(), async move {
            let reading = Arc::new(Reading::default());
            let cat = host.program("cat").arg("--").arg(path).called(action.as_str()).unobserved();
            let read = cat.watched_by(reading.clone()).cancel_on(reading.too_large.clone()).run().await;
            if reading.too_large.is_cancelled() {
                let more = FILE_READ_LIMIT >> 20;
                return Err(host.error(format!("{action}: it has more than {more} MiB; download it")));
            }
            read.map(|_| std::mem::take(&mut *reading.content()))
        })
    }

    /// The text that a file on the machine holds; as [`read`](Self::read) has it.
    ///
    /// # Errors
    ///
    /// Also if it isn't UTF-8.
    pub fn read_to_string(&self, path: &str) -> Transfer<String> {
        let (host, reading) = (self.clone(), self.read(path));
        Transfer::new(self, reading.action.clone(), async move {
            let action = reading.action.clone();
            let text = String::from_utf8(reading.await?);
            text.map_err(|error| host.error(format!("{action}: {}", error.utf8_error())))
        })
    }

    /// Writes a file on the machine: whole, or not at all, so that nobody finds a part of it. Relative to the session's
    /// directory; missing parents are made. May be dropped at any await: the file is the old one then, or the new one.
    ///
    /// As with [`std::fs::write`], a file that is there keeps its mode, and a new one has what the login's umask leaves of
    /// `0666`. A link is replaced by the file. Events tell of it as of a command, without the content.
    ///
    /// ```
    /// # use tsunami_core::{Error, Host};
    /// # async fn example(server: &Host) -> Result<(), Error> {
    /// server.write("conf/server.conf", format!("listen {}:7000\n", server.ip()?)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Command`] if it can't be written there, with why as its [output](Error::output), and for the rest as
    /// [`HostCommand::output`](super::HostCommand::output) has them.
    pub fn write(&self, path: &str, content: impl Into<Vec<u8>>) -> Transfer<()> {
        let (host, content) = (self.clone(), content.into());
        let action = format!("write of {path}");
        let write = own_script(WRITE_NAME, WRITE).arg(path).arg(content.len().to_string());
        let write = write.stdin(Stdin::Bytes(content.into()));
        Transfer::new(self, action.clone(), async move {
            host.command(write).called(action).run().await.map(drop)
        })
    }
}

/// Keeps what a file holds.
#[derive(Default)]
struct Reading {
    content: Mutex<Vec<u8>>,
    too_large: CancellationToken,
}

impl Reading {
    fn content(&self) -> MutexGuard<'_, Vec<u8>> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").finish_non_exhaustive()
    }
}

impl OutputWatcher for Reading {
    fn look(&self, stream: Stream, bytes: &[u8]) {
        if stream == Stream::Stderr || self.too_large.is_cancelled() {
            return;
        }
        let mut content = self.content();
        if content.len() + bytes.len() > FILE_READ_LIMIT {
            *content = Vec::new();
            self.too_large.cancel();
        } else {
            content.extend_from_slice(bytes);
        }
    }

    fn takes_all(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::compact_script;

    /// Has a shell write `content` to `path`, of which it is told that it has so many bytes, and returns whether it has.
    fn writes(shell: &[&str], path: &Path, content: &[u8], bytes: usize) -> bool {
        let mut sh = Command::new(shell[0]);
        sh.args(&shell[1..])
            .arg("-c")
            .arg(compact_script(WRITE))
            .arg(WRITE_NAME)
            .arg(path)
            .arg(bytes.to_string());
        let mut sh = sh.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // It may have refused before it read anything.
        let _ = sh.stdin.take().unwrap().write_all(content);
        sh.wait().unwrap().success()
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let shells = [&["sh"][..], &["bash", "--posix"], &["dash"], &["busybox", "sh"]];
        let is_here = |shell: &&&[&str]| Command::new(shell[0]).arg("true").output().is_ok();
        for shell in shells.iter().filter(is_here) {
            let directory = tempfile::tempdir().unwrap();
            let (path, link) = (directory.path().join("a b/-c"), directory.path().join("a b/link"));
            let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
            assert!(writes(shell, &path, b"first", 5), "{shell:?}");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o751)).unwrap();
            assert!(!writes(shell, &path, b"a part", 60), "{shell:?}");
            assert_eq!(
                (fs::read(&path).unwrap().as_slice(), mode(&path)),
                (&b"first"[..], 0o751),
                "{shell:?}"
            );
            assert!(writes(shell, &path, b"2", 1), "{shell:?}");
            assert_eq!((fs::read(&path).unwrap().as_slice(), mode(&path)), (&b"2"[..], 0o751), "{shell:?}");
            symlink(&path, &link).unwrap();
            assert!(writes(shell, &link, b"", 0), "{shell:?}");
            assert_eq!((fs::read(&path).unwrap().len(), fs::read(&link).unwrap().len()), (1, 0), "{shell:?}");
            for not_a_file in
                [directory.path().join("a b"), directory.path().join("new/"), path.join("below")]
            {
                assert!(!writes(shell, &not_a_file, b"x", 1), "{shell:?}: {not_a_file:?}");
            }
            let mut left: Vec<_> = fs::read_dir(directory.path().join("a b"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            left.sort();
            assert_eq!(left, ["-c", "link"], "{shell:?}");
            assert!(!directory.path().join("new").exists(), "{shell:?}");
        }
    }
}
