//! The experiment file: what a user asks for, read, checked as a whole and ready to be carried out.
//!
//! Nothing is started here, and nothing is looked at but the file and the files it names. What
//! [`Experiment::load`] hands out is whole: names resolved, files present, templates rendered for every
//! machine with placeholder addresses. What it refuses, it refuses with all [`Problems`] at once.

mod check;
mod file;
mod problem;
mod script;
mod template;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs, io};

use crate::limits::{EXPERIMENT_FILE_LIMIT, TEMPLATES_FUEL};
use crate::machine::machine_name;

pub use self::problem::{Problem, Problems};
pub use self::script::{Interpreter, Unusable};
pub use self::template::{Facts, Fleet, Scope, Template, TemplateError, variables};

use self::file::Reader;

/// An experiment file, read and checked.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// What the experiment is called.
    pub name: String,
    /// Where its machines come from.
    pub provider: ProviderKind,
    /// When every machine ends, whatever happens.
    pub lifetime: Duration,
    /// The most that the machines may cost, in US dollars.
    pub budget: Option<f64>,
    /// How machines are connected to.
    pub ssh: Ssh,
    /// The groups of machines, in the order of the file; at least one.
    pub groups: Vec<Group>,
    /// What is done on them, in order.
    pub steps: Vec<Step>,
    /// The file's text as it was read.
    pub source: String,
    /// The values given with `--set`.
    pub set: Vec<(String, String)>,
}

/// Where machines come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProviderKind {
    /// This computer.
    #[default]
    Local,
    /// Computers that are already there.
    Hosts,
    /// Amazon EC2.
    Aws,
}

/// What a machine on EC2 is to be. What is `None` or empty is left to the provider.
#[derive(Debug, Clone, PartialEq)]
pub struct Aws {
    /// The region.
    pub region: Option<String>,
    /// The availability zone.
    pub zone: Option<String>,
    /// Where to buy, in order; at least one.
    pub market: Vec<Market>,
    /// The most that an hour of a spot machine may cost, in US dollars.
    pub max_price: Option<f64>,
    /// Types, any of which will do; at least one.
    pub instance: Vec<String>,
    /// Whether machines of a group may differ.
    pub mixed: bool,
    /// The image.
    pub image: Option<String>,
    /// Who to log in as.
    pub user: Option<String>,
    /// The root volume.
    pub disk: Option<Disk>,
    /// The subnet's id.
    pub subnet: Option<String>,
    /// The security group's id.
    pub security_group: Option<String>,
    /// Who may connect by SSH, as CIDR blocks.
    pub ssh_from: Vec<String>,
    /// Ports open to the run's machines in other regions.
    pub open_ports: Vec<u16>,
    /// Whether machines are kept close together.
    pub placement_group: bool,
    /// The name of an instance profile.
    pub iam_profile: Option<String>,
    /// The text of the user's own user data.
    pub user_data: Option<String>,
    /// More tags.
    pub tags: Vec<(String, String)>,
    /// Whether set-up waits for cloud-init.
    pub wait_for_cloud_init: bool,
    /// What happens when EC2 takes a machine back.
    pub on_interruption: OnInterruption,
    /// Who keeps the promise of a spot block.
    pub spot_block: SpotBlock,
    /// The profile of the AWS configuration; the same for all groups.
    pub profile: Option<String>,
}

impl Default for Aws {
    fn default() -> Self {
        Self {
            region: None,
            zone: None,
            market: vec![Market::OnDemand],
            max_price: None,
            instance: Vec::new(),
            mixed: false,
            image: None,
            user: None,
            disk: None,
            subnet: None,
            security_group: None,
            ssh_from: Vec::new(),
            open_ports: Vec::new(),
            placement_group: false,
            iam_profile: None,
            user_data: None,
            tags: Vec::new(),
            wait_for_cloud_init: true,
            on_interruption: OnInterruption::default(),
            spot_block: SpotBlock::default(),
            profile: None,
        }
    }
}

/// Where machines are bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Market {
    /// For the full price.
    OnDemand,
    /// What is left over.
    Spot,
    /// Spot, with tsunami's promises.
    SpotBlock,
}

/// A root volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its size in GiB, if not the image's.
    pub gib: Option<NonZeroU32>,
    /// Its type.
    pub kind: String,
    /// Its operations a second.
    pub iops: Option<u32>,
    /// Its throughput, in MiB a second.
    pub throughput: Option<u32>,
}

/// What happens when EC2 takes a machine back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnInterruption {
    /// The run fails.
    #[default]
    Fail,
    /// Another machine is set up in its place.
    Replace,
}

/// Who keeps the promise of a spot block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpotBlock {
    /// tsunami.
    #[default]
    Promise,
    /// An endpoint that still has them.
    Native,
}

/// How machines are connected to, where that differs from what is usual. Paths are ready to be opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ssh {
    /// An extra `ssh_config`.
    pub config: Option<PathBuf>,
    /// A host to jump through, as `user@bastion`.
    pub jump: Option<String>,
    /// Who to log in as.
    pub user: Option<String>,
    /// The private key to log in with.
    pub key: Option<PathBuf>,
    /// Where host keys are looked up.
    pub known_hosts: Option<PathBuf>,
    /// How long a machine may take from its launch to a session.
    pub connect_timeout: Option<Duration>,
    /// How often a quiet connection is checked.
    pub keepalive: Option<Duration>,
    /// The key exchange algorithms, as in `KexAlgorithms`.
    pub kex: Option<String>,
    /// What carries the sessions.
    pub transport: Transport,
}

/// What carries the sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// The `ssh` program.
    #[default]
    Openssh,
}

/// Machines that are alike.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its machines.
    pub size: Size,
    /// What prepares each of them, in order.
    pub setup: Vec<Setup>,
    /// What is brought to each of them, before set-up.
    pub upload: Vec<Upload>,
    /// The environment of everything that runs on them.
    pub env: Vec<(String, EnvValue)>,
    /// What they are to be, on EC2.
    pub aws: Option<Aws>,
}

/// How many machines, or which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Size {
    /// So many new ones.
    Count(NonZeroU32),
    /// These, as `user@host:port` or by their names in an `ssh_config`; at least one, no two the same.
    Hosts(Vec<String>),
}

/// One thing that prepares a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setup {
    /// A shell command.
    Command(Template),
    /// A file on this computer to be run under its `#!` line; never a template.
    Script(PathBuf),
}

/// A file or directory brought to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Where it is on this computer.
    pub from: PathBuf,
    /// Where it goes, relative to the machine's working directory.
    pub to: Template,
}

/// The value of an environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// Written in the file.
    Text(Template),
    /// Taken from the environment of this process, and not to be shown.
    FromEnv {
        /// The variable it was taken from, which may be shown.
        variable: String,
        /// What it held.
        value: Secret,
    },
}

/// Something that must not be shown. Its `Debug` doesn't.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(OsString);

impl Secret {
    /// The value itself, for the one place that needs it. It may be empty.
    pub fn reveal(&self) -> &OsStr {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Something done on some machines at once.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its name, by default its number from 1; unique.
    pub name: String,
    /// The names of the machines it is done on, in the order of the file; at least one.
    pub on: Vec<String>,
    /// What is done.
    pub action: Action,
    /// What is brought home afterwards.
    pub collect: Vec<Pattern>,
    /// What happens when it fails.
    pub on_error: OnError,
    /// Its environment, on top of the group's.
    pub env: Vec<(String, EnvValue)>,
    /// The directory it is done in, if not the machine's working directory.
    pub cwd: Option<Template>,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Runs a command to its end.
    Run {
        /// The command.
        command: Template,
        /// How long it may take.
        timeout: Option<Duration>,
    },
    /// Starts a command that goes on until the trial ends.
    Start {
        /// The command.
        command: Template,
        /// How to tell that it has come up; without it, starting it is enough.
        ready: Option<Ready>,
    },
}

/// How to tell that something started has come up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The sign to look for.
    pub when: ReadyWhen,
    /// How long it may take.
    pub timeout: Duration,
}

/// A sign that something started has come up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadyWhen {
    /// Something listens on this port.
    Port(u16),
    /// This command succeeds.
    Command(Template),
    /// This text appears in what it prints.
    Log(Template),
}

/// Files to be brought home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// A glob, relative to the step's directory.
    pub template: Template,
    /// Whether it may match nothing.
    pub optional: bool,
}

/// What happens when a step fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// The trial fails.
    #[default]
    Fail,
    /// The next step is done all the same.
    Continue,
}

impl Experiment {
    /// Reads and checks the file at `path`, with the values given with `--set`.
    ///
    /// `lookup_env` is asked for the variables that `from_env` names, and for `HOME` where a path begins
    /// with `~/`.
    pub fn load(
        path: &Path,
        set: &[(String, String)],
        lookup_env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Problems> {
        let source = read(path)?;
        let dir = match path.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        };
        // A line's ending is nothing that a command should see.
        let text = source.replace("\r\n", "\n");
        let mut reader = Reader::new(&text, dir, lookup_env);
        let contents = reader.read();
        let (mut notes, templates) = reader.finish();
        if let Some(contents) = &contents {
            check::templates(&text, contents, &templates, set, &mut notes, TEMPLATES_FUEL);
        }
        match contents {
            Some(contents) if notes.is_empty() => Ok(Self {
                name: contents.name,
                provider: contents.provider,
                lifetime: contents.lifetime,
                budget: contents.budget,
                ssh: contents.ssh,
                groups: contents.groups,
                steps: contents.steps,
                set: set.to_vec(),
                source,
            }),
            _ => Err(Problems::new(path, &text, notes)),
        }
    }

    /// All machines, in the order of the file: each one's name, group, and number within the group.
    pub fn machines(&self) -> impl Iterator<Item = (String, &Group, u32)> {
        self.groups.iter().flat_map(|group| {
            (0..group.size.count()).map(move |index| (machine_name(&group.name, index), group, index))
        })
    }

    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }
}

impl Size {
    /// How many machines that is.
    pub fn count(&self) -> u32 {
        match self {
            Self::Count(count) => count.get(),
            Self::Hosts(hosts) => u32::try_from(hosts.len()).unwrap_or(u32::MAX),
        }
    }
}

/// The file's text; anything but readable UTF-8 of a sensible length is a problem of its own.
fn read(path: &Path) -> Result<String, Problems> {
    let refused = |problem| Problems::one(path, "", problem);
    let bytes = match read_at_most(path, EXPERIMENT_FILE_LIMIT) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => {
            let limit = EXPERIMENT_FILE_LIMIT >> 10;
            let help = "what machines need can be a file that is uploaded".to_owned();
            return Err(refused(
                Problem::general(format!("the experiment file is larger than {limit} KiB")).help(help),
            ));
        }
        Err(error) => {
            return Err(refused(Problem::general(format!("the experiment file can't be read: {error}"))));
        }
    };
    String::from_utf8(bytes).map_err(|error| {
        let start = error.utf8_error().valid_up_to();
        let problem = Problem::at(
            start..start + char::REPLACEMENT_CHARACTER.len_utf8(),
            "the experiment file isn't UTF-8 from here on",
        );
        Problems::one(path, &String::from_utf8_lossy(error.as_bytes()), problem)
    })
}

/// What a file holds; `None` if that is more than `limit` bytes. A pipe or a device, which may never end or never
/// begin, isn't read at all.
fn read_at_most(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let kind = fs::metadata(path)?.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a link to one"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}
