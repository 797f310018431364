//! Files to and from a machine: each transfer is one tar stream through one command.

mod archive;
mod download;
mod present;
mod progress;
mod spread;
mod stripes;
mod tree;
mod unpack;
mod upload;

use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tsunami_core::limits::SCRIPT_OUTPUT_LIMIT;
use tsunami_core::{
    Command, Download, Exclude, OutputSink, SessionError, SessionErrorKind, Stdin, Stream, compact_script,
};

use crate::command::{Commands, Input, StdoutConsumer};
use crate::shell::AfterPreamble;
pub(crate) use present::Places;
pub(crate) use progress::Moved;
use progress::Progress;
pub(crate) use spread::{KeptContents, Spread, pack_digested};
use stripes::FAR;
pub(crate) use stripes::FurtherChannel;
pub(crate) use upload::UploadArchive;

/// Copies a file or a directory to the machine, without what is left out of it, and what `places` and the machine say is
/// there already.
pub(crate) async fn upload(
    commands: &Arc<Commands>,
    places: &Places,
    from: &Path,
    to: &str,
    exclude: &Exclude,
) -> Result<(), SessionError> {
    let mut archive = UploadArchive::listed(from, to, exclude).await?;
    archive.progress = Progress::of(commands.moved());
    let sides = archive.stripe(commands.pool().distance());
    let answers = archive.ask(places).map_err(|error| upload::unreadable(from, error))?;
    let put = archive.places();
    let (progress, cancel) = (archive.progress.clone(), CancellationToken::new());
    let unpack = own_script(upload::UNPACK, [&archive.directory, &archive.mode]);
    let said = Arc::new(CapturedOutput::default());
    let sending = commands.run(&unpack, Input::Archive(Box::new(archive)), answers, said.clone(), &cancel);
    let sending = async {
        match sides {
            Some(sides) => sides.beside(commands, sending, &cancel).await,
            None => sending.await,
        }
    };
    let exit = progress.watch(sending, &cancel, || commands.pool().check()).await?;
    if exit.success() {
        put.into_iter().for_each(|(size, place)| places.note(size, place));
        return Ok(());
    }
    let message = format!("unpacking ended with {exit}: {}", said.text().trim());
    Err(SessionError::new(SessionErrorKind::Transfer, message))
}

/// Brings home what patterns match, and says how many matches each has.
pub(crate) async fn download(
    commands: &Arc<Commands>,
    download: &Download,
) -> Result<Vec<usize>, SessionError> {
    let local = |message: &str, error| SessionError::new(SessionErrorKind::Local, message).source(error);
    let (from, pipe) = io::pipe().map_err(|error| local("no more pipes", error))?;
    let (progress, cancel) = (Progress::of(commands.moved()), CancellationToken::new());
    let from = AfterPreamble::new(progress.counting(from));
    let pool = commands.pool();
    let (from, bringers): (Box<dyn Read + Send>, _) = if pool.is_narrow() && pool.distance() >= FAR {
        let (joined, bringers) = stripes::joined(from, &progress);
        (Box::new(joined), Some(bringers))
    } else {
        (Box::new(from), None)
    };
    let directory = bringers.as_ref().map(|bringers| bringers.directory(commands.base()));
    let mut pack =
        own_script(download::PACK, [&directory.unwrap_or_default()].into_iter().chain(&download.patterns));
    pack.cwd.clone_from(&download.cwd);
    let (into, patterns) = (download.into.clone(), download.patterns.clone());
    let (finished, done) = oneshot::channel();
    let unpacking = spawn_blocking(move || {
        let unpacked = unpack::unpack(from, &into, &patterns, || finished.is_closed());
        let _ = finished.send(());
        unpacked
    });
    let (consumer, said) = (StdoutConsumer { pipe, done }, Arc::new(CapturedOutput::default()));
    let packing = commands.run(&pack, Input::Given(Stdin::Null), Some(consumer), said.clone(), &cancel);
    let packing = async {
        match bringers {
            Some(bringers) => bringers.beside(commands, packing, &cancel).await,
            None => packing.await,
        }
    };
    let packed = progress.watch(packing, &cancel, || commands.pool().check()).await;
    let unpacked = unpacking.await.map_err(|error| local("unpacking failed", io::Error::other(error)))?;
    download::outcome(packed, unpacked, download.patterns.len(), &said.text())
}

/// A command made of a script of tsunami's own.
fn own_script<'a>(script: &str, args: impl IntoIterator<Item = &'a String>) -> Command {
    let command = Command::program("sh").arg("-c").arg(compact_script(script)).arg("sh");
    args.into_iter().fold(command, |command, arg| command.arg(arg))
}

/// What a script of tsunami's own said on standard error, the first of it.
#[derive(Debug, Default)]
struct CapturedOutput(Mutex<Vec<u8>>);

impl CapturedOutput {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl OutputSink for CapturedOutput {
    fn write(&self, _: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = SCRIPT_OUTPUT_LIMIT.saturating_sub(said.len());
        said.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(())
    }
}
