//! Key pairs: ed25519, made in this process, never leaving this computer.

use std::io;
use std::path::Path;

use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey};
use tsunami_core::private;

/// Makes a key pair, writes its private half to `path` (0600) and returns the public one as OpenSSH writes
/// it. A pair that is there already is used.
pub(crate) fn obtain(path: &Path, comment: &str) -> io::Result<String> {
    let public = |key: &PrivateKey| key.public_key().to_openssh().map_err(io::Error::other);
    match private::read(path) {
        Ok(bytes) => return public(&PrivateKey::from_openssh(bytes).map_err(io::Error::other)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(io::Error::other)?;
    key.set_comment(comment);
    let text = key.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
    private::write(path, text.as_bytes())?;
    public(&key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_private_and_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("id");
        let first = obtain(&path, "test").unwrap();
        assert!(first.starts_with("ssh-ed25519 ") && first.ends_with(" test"), "{first}");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(obtain(&path, "other").unwrap(), first);
    }
}
