//! `tsunami inventory`: a run's machines, for other tools.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use tsunami_core::results::json;
use tsunami_core::{Error as CoreError, Machine, RunId, RunStore};

use super::{Context, Execute};
use crate::error::Error;
use crate::terminal::print;

/// The number of the form of the JSON.
const SCHEMA: u32 = 1;

/// Hand a run's machines to other tools
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Inventory {
    /// A run id, a prefix of one, or an experiment's name
    run: String,
    /// In which form
    #[arg(long, value_enum, default_value_t = Format::SshConfig)]
    format: Format,
    /// The same as `--format json`
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  tsunami inventory redis >hosts && ssh -F hosts server-0
  tsunami inventory redis --format ansible >inventory && ansible -i inventory all -m ping
  tsunami inventory redis --format json";

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    /// For `ssh -F`, `scp -F` and `rsync -e 'ssh -F …'`; the machines have the run's names
    SshConfig,
    /// An inventory of Ansible's, with a group for each of the run's
    Ansible,
    /// One JSON object
    Json,
}

/// The run as `--format json` shows it.
#[derive(Serialize)]
struct Listing<'a> {
    schema: u32,
    run: RunId,
    /// What `ssh -F` reads.
    ssh_config: &'a Path,
    machines: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    name: String,
    group: &'a str,
    index: u32,
    id: &'a str,
    public_ip: Option<&'a str>,
    private_ip: Option<&'a str>,
}

impl Execute for Inventory {
    async fn execute(self, _: &Context<'_>) -> Result<u8, Error> {
        let directory = RunStore::standard()?.find(&self.run)?;
        let machines = directory.machines()?;
        let config = tsunami_ssh::run_config(directory.path()).map_err(CoreError::from)?;
        let text = match if self.json { Format::Json } else { self.format } {
            Format::SshConfig => {
                let read = tsunami_ssh::run_config_for_others(directory.path());
                read.map_err(|error| Error::file("read", &config)(error))?
            }
            Format::Ansible => ansible(&machines, &config)?,
            Format::Json => {
                let machines = machines.iter().map(Entry::of).collect();
                let listing = Listing { schema: SCHEMA, run: directory.id(), ssh_config: &config, machines };
                json(&listing).map_err(CoreError::from)? + "\n"
            }
        };
        print(&text)?;
        Ok(0)
    }
}

impl<'a> Entry<'a> {
    fn of(machine: &'a Machine) -> Self {
        Self {
            name: machine.name(),
            group: &machine.group,
            index: machine.index,
            id: machine.id.as_str(),
            public_ip: machine.addresses.public.as_deref(),
            private_ip: machine.addresses.private.as_deref(),
        }
    }
}

/// The lines of hosts are split as a shell splits words.
fn ansible(machines: &[Machine], config: &Path) -> Result<String, Error> {
    let quoted = |text: &str| {
        let quoted = shlex::try_quote(text).map(String::from);
        quoted.map_err(|error| Error::Core(CoreError::other(error)))
    };
    let path =
        config.to_str().ok_or_else(|| CoreError::other("the path of the run's ssh_config isn't UTF-8"));
    let arguments = quoted(&format!("-F {}", quoted(path.map_err(Error::Core)?)?))?;
    let mut text = String::new();
    let mut group = None;
    for machine in machines {
        if group.replace(&machine.group) != Some(&machine.group) {
            let _ = writeln!(text, "{}[{}]", if text.is_empty() { "" } else { "\n" }, machine.group);
        }
        let _ = writeln!(text, "{} ansible_ssh_common_args={arguments}", machine.name());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tsunami_core::{MachineId, MachineState};

    #[test]
    fn an_inventory_of_ansibles_has_the_groups_and_takes_any_path() {
        let run: RunId = "20231114-221320-abcd".parse().unwrap();
        let id = || MachineId::new("i-1");
        let machine =
            |group: &str, index| Machine::new(id(), run.clone(), group, index, MachineState::Running);
        let machines = [machine("server", 0), machine("client", 0), machine("client", 1)];
        let text = ansible(&machines, Path::new("/a b/it's/config")).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!([lines[0], lines[2], lines[3]], ["[server]", "", "[client]"]);
        let words = shlex::split(lines[5]).unwrap();
        assert_eq!(words[0], "client-1");
        let value = words[1].strip_prefix("ansible_ssh_common_args=").unwrap();
        assert_eq!(shlex::split(value).unwrap(), ["-F", "/a b/it's/config"]);
    }
}
