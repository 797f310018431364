//! The emulator of EC2: a wrapper around moto, in a Python environment of its own.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::setup::{python_environment, setup};
use crate::{Failure, Result, is_root, root, say};

pub(crate) fn home() -> PathBuf {
    root().join("target/emulator")
}

/// Installs what the emulator needs, unless it is there.
pub(crate) fn install() -> Result {
    python_environment(&home(), &root().join("tsunami-aws/tests/emulator/requirements.txt"))
}

/// Runs it in this process's place.
pub(crate) fn run(port: u16) -> Result {
    setup(true)?;
    let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
    eprintln!(
        "xtask: in another terminal:\n\
         \n  export AWS_ENDPOINT_URL=http://127.0.0.1:{port} AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test\
         \n  export AWS_REGION=eu-west-1 AWS_EC2_METADATA_DISABLED=true\
         \n  export TSUNAMI_ADDRESS_SERVICE=http://127.0.0.1:{port}/_sim/ip\n\
         \nxtask: its machines are sshd processes, entered as whom the emulator runs as: `user = \"{user}\"`"
    );
    let directory = std::env::temp_dir().join(format!("tsunami-emulator-{port}"));
    let mut emulator = Command::new(home().join("bin/python"));
    emulator.arg(root().join("tsunami-aws/tests/emulator/emulator.py")).args([
        "--port",
        &port.to_string(),
        "--directory",
    ]);
    emulator.arg(directory).args(if is_root() { &[][..] } else { &["--ssh-port", "2222"] });
    say(&emulator);
    Err(Failure::new(format!("cannot run the emulator: {}", emulator.exec())))
}
