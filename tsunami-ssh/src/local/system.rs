//! What this computer must have: programs, and a user who may log in.

use std::path::PathBuf;

use tokio::process::Command;
use tsunami_core::{ProviderError, ProviderErrorKind};

/// Where Debian, Fedora and others keep programs that are not for everybody's `PATH`.
const SYSTEM_PATHS: [&str; 3] = ["/usr/sbin", "/usr/local/sbin", "/sbin"];

pub(crate) fn find_sshd() -> Result<PathBuf, ProviderError> {
    find_program("sshd", "openssh-server")
}

pub(crate) fn find_program(name: &str, package: &str) -> Result<PathBuf, ProviderError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories = std::env::split_paths(&path).chain(SYSTEM_PATHS.map(PathBuf::from));
    directories.find_map(|directory| Some(directory.join(name)).filter(|path| path.is_file())).ok_or_else(
        || {
            let message = format!("`{name}` is not installed");
            ProviderError::new(ProviderErrorKind::Unsupported, "look for local tools", message)
                .help(format!("install it: `apt-get install {package}`"))
        },
    )
}

/// The user that sshd lets in, which is whoever runs it. sshd goes by the system's list of users, and by the shell
/// that stands there.
pub(crate) async fn login_name() -> Result<String, ProviderError> {
    let uid = rustix::process::geteuid();
    let refused = |message: String| {
        ProviderError::new(ProviderErrorKind::Unsupported, "look for the user", message)
            .help("run tsunami as a user that can log in")
    };
    let uid = uid.as_raw().to_string();
    let output = Command::new("getent").args(["passwd", &uid]).output().await;
    let entry = output.map_err(|error| refused(format!("cannot run `getent`: {error}")))?.stdout;
    let entry = String::from_utf8_lossy(&entry).trim().to_owned();
    let (name, shell) =
        entry.split_once(':').zip(entry.rsplit_once(':')).map_or(("", ""), |(a, b)| (a.0, b.1));
    if name.is_empty() {
        return Err(refused(format!(
            "sshd lets nobody in whom the system does not know: user {uid} has no name"
        )));
    }
    if shell.ends_with("/nologin") || shell.ends_with("/false") {
        return Err(refused(format!("{name} cannot log in: the login shell is {shell}")));
    }
    Ok(name.to_owned())
}
