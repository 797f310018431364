//! What both minimal programs are told: which hosts there are, and what each is set up with. In the directory that
//! `$BENCH` names; `xtask/src/bench/fleet.rs` writes it.

use std::path::PathBuf;
use std::{env, fs, io};

/// One thing to do on a host, after the one before.
#[derive(Debug)]
pub(crate) enum Step {
    /// Bytes, which stay as long as the program, and where they go.
    Upload(&'static [u8], String),
    Run(String),
    /// Run it, and print what it prints.
    Show(String),
}

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) directory: PathBuf,
    /// Each a name, an address and a port.
    pub(crate) hosts: Vec<[String; 3]>,
    pub(crate) steps: Vec<Step>,
}

impl Plan {
    pub(crate) fn read() -> io::Result<Self> {
        let directory = PathBuf::from(env::var_os("BENCH").unwrap_or_default());
        let unreadable = |line: &str| io::Error::other(format!("not understood: {line}"));
        let host = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            words.try_into().map_err(|_| unreadable(line))
        };
        let step = |line: &str| {
            Ok(match line.split('\t').collect::<Vec<_>>()[..] {
                ["upload", from, to] => Step::Upload(fs::read(from)?.leak(), to.to_owned()),
                ["run", command] => Step::Run(command.to_owned()),
                ["show", command] => Step::Show(command.to_owned()),
                _ => return Err(unreadable(line)),
            })
        };
        let read = |name| fs::read_to_string(directory.join(name));
        let hosts = read("hosts")?.lines().map(host).collect::<io::Result<_>>()?;
        let steps = read("plan")?.lines().map(step).collect::<io::Result<_>>()?;
        Ok(Self { directory, hosts, steps })
    }
}
