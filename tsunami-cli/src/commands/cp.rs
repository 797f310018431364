//! `tsunami cp`: files to and from the machines of a run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;
use tsunami_core::{Command, Download, Error as CoreError, Host, Machine, State};

use super::recorded;
use crate::error::{Error, INTERRUPTED, gravest};
use crate::signals;
use crate::terminal::say;

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Local(PathBuf),
    /// A machine or group, and a path there.
    Remote(String, String),
}

impl End {
    /// What comes before a colon is a machine or group, unless a `/` comes first.
    fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some((place, path)) if !place.is_empty() && !place.contains('/') => {
                Self::Remote(place.to_owned(), path.to_owned())
            }
            _ => Self::Local(text.into()),
        }
    }
}

pub(crate) async fn cp(name: &str, paths: &[String]) -> Result<u8, Error> {
    let (sources, destination) = match paths.split_last() {
        Some((last, sources)) => {
            (sources.iter().map(|text| End::parse(text)).collect::<Vec<_>>(), End::parse(last))
        }
        None => return Err(Error::Usage("nothing to copy".to_owned())),
    };
    let mut places: Vec<&str> = Vec::new();
    for source in &sources {
        match (source, &destination) {
            (End::Local(_), End::Remote(place, _)) | (End::Remote(place, _), End::Local(_)) => {
                places.push(place)
            }
            (End::Local(path), End::Local(_)) => {
                return Err(Error::Usage(format!(
                    "{} and the destination are both local: write MACHINE:path",
                    path.display()
                )));
            }
            (End::Remote(..), End::Remote(..)) => {
                return Err(Error::Usage("copy from machine to machine by way of a local file".to_owned()));
            }
        }
    }
    let state = State::standard()?;
    let directory = state.find(name)?;
    let cancel = CancellationToken::new();
    let engine = recorded(&directory, &state).await?.cancel_on(cancel.clone());
    signals::watch(cancel, "stopping", say, Arc::new(|| INTERRUPTED))?;
    let is_at = |machine: &Machine, place: &str| machine.group == place || machine.name() == place;
    let running =
        engine.attach(&directory, |machine| places.iter().any(|place| is_at(machine, place))).await?;
    let hosts = running.cluster().hosts();
    let at =
        |place: &str| -> Vec<&Host> { hosts.iter().filter(|host| is_at(host.machine(), place)).collect() };
    let missing = places.iter().find(|place| at(place).is_empty()).map(|place| (*place).to_owned());
    let result = match missing {
        Some(place) => {
            Err(CoreError::other(format!("the run has no machine or group `{place}` that is running")))
        }
        None => {
            let copies = sources.iter().map(|source| copy(source, &destination, &at, sources.len() > 1));
            gravest(join_all(copies).await.into_iter().filter_map(Result::err).collect()).map_or(Ok(()), Err)
        }
    };
    running.detach().await;
    result?;
    Ok(0)
}

async fn copy<'a>(
    source: &End,
    destination: &End,
    at: &impl Fn(&str) -> Vec<&'a Host>,
    several: bool,
) -> Result<(), CoreError> {
    let results = match (source, destination) {
        (End::Local(from), End::Remote(place, to)) => {
            // As `cp` does: into a directory if the destination is one, or if several go there.
            let uploads = at(place).into_iter().map(async |host| {
                let to = destination_on(host, to, from, several).await?;
                host.upload(from, &to).await
            });
            join_all(uploads).await
        }
        (End::Remote(place, path), End::Local(to)) => {
            let hosts = at(place);
            let apart = hosts.len() > 1;
            let downloads = hosts.into_iter().map(async |host| {
                let to = if apart { to.join(host.name()) } else { to.clone() };
                fetch(host, path, &to, several || apart).await
            });
            join_all(downloads).await
        }
        _ => return Err(CoreError::other("one end must be a machine's, the other local")),
    };
    gravest(results.into_iter().filter_map(Result::err).collect()).map_or(Ok(()), Err)
}

async fn destination_on(host: &Host, to: &str, from: &Path, several: bool) -> Result<String, CoreError> {
    let to = if to.is_empty() { "." } else { to };
    let is_directory = Command::program("test").arg("-d").arg(to);
    if !several && !to.ends_with('/') && !host.command(is_directory).output().await?.exit.success() {
        return Ok(to.to_owned());
    }
    let name = from.file_name().and_then(|name| name.to_str()).ok_or("the source has no usable name")?;
    Ok(format!("{}/{name}", to.trim_end_matches('/')))
}

/// Brings one file or directory home: as `to`, or into it if that is a directory or `into` says so.
async fn fetch(host: &Host, path: &str, to: &Path, into: bool) -> Result<(), CoreError> {
    let (directory, name) = match path.trim_end_matches('/').rsplit_once('/') {
        Some((directory, name)) => (Some(if directory.is_empty() { "/" } else { directory }), name),
        None => (None, path.trim_end_matches('/')),
    };
    let whole = matches!(name, "" | "." | "..");
    let ends_as_directory = to.as_os_str().as_encoded_bytes().ends_with(b"/");
    let into = into || whole || ends_as_directory || to.is_dir() || name.contains(['*', '?', '[']);
    // Beside its destination, so that it can be moved there.
    let parent = if into {
        to
    } else {
        to.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
    };
    std::fs::create_dir_all(parent)?;
    let staging = parent.join(format!(".tsunami-cp-{}-{}", std::process::id(), host.name()));
    let download = Download {
        patterns: vec![name.to_owned()],
        cwd: directory.map(str::to_owned),
        into: staging.clone(),
    };
    let moved = async {
        if host.download(&download).await?.iter().sum::<usize>() == 0 {
            return Err(host.error(format!("there is no {path}")));
        }
        for entry in std::fs::read_dir(&staging)? {
            let entry = entry?;
            let to = if into { to.join(entry.file_name()) } else { to.to_owned() };
            merge(&entry.path(), &to).map_err(|error| format!("cannot write {}: {error}", to.display()))?;
        }
        Ok(())
    }
    .await;
    let _ = std::fs::remove_dir_all(&staging);
    moved
}

/// Moves a file, or a directory's entries into the directory that is there already.
fn merge(from: &Path, to: &Path) -> std::io::Result<()> {
    if !(from.is_dir() && to.is_dir()) {
        return std::fs::rename(from, to);
    }
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        merge(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_makes_a_machine_unless_a_slash_comes_first() {
        assert_eq!(End::parse("client-0:out/a:b"), End::Remote("client-0".into(), "out/a:b".into()));
        assert_eq!(End::parse("client:"), End::Remote("client".into(), String::new()));
        assert_eq!(End::parse("./a:b"), End::Local("./a:b".into()));
        assert_eq!(End::parse("plain"), End::Local("plain".into()));
    }
}
