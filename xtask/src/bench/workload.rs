//! What every host is set up with.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Where an upload goes on a host. Not every contender works in the home directory.
pub(super) const PAYLOAD: &str = "/root/payload";

/// What stands there from the beginning.
pub(super) const TOKEN: &str = "/root/token";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Workload {
    /// Connect, and run one command.
    #[value(name = "W1", alias = "w1")]
    Connect,
    /// Upload 256 KiB, run five commands that take 0.2 s each, and read something back.
    #[value(name = "W2", alias = "w2")]
    SetUp,
    /// Run twenty commands that take no time.
    #[value(name = "W3", alias = "w3")]
    Commands,
    /// Upload 8 MiB.
    #[value(name = "W4", alias = "w4")]
    Upload,
    /// Run one command where tsunami has machines up already, by `exec` and by `run --on`. Everybody else does W1.
    #[value(name = "attached")]
    Attached,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Run(&'static str),
    /// Run it, and show what it prints.
    Show(&'static str),
}

impl Workload {
    pub(super) fn name(self) -> &'static str {
        ["W1", "W2", "W3", "W4", "attached"][self as usize]
    }

    /// The size of the upload that begins it, in bytes.
    pub(super) fn payload(self) -> Option<usize> {
        match self {
            Self::SetUp => Some(256 << 10),
            Self::Upload => Some(8 << 20),
            Self::Connect | Self::Commands | Self::Attached => None,
        }
    }

    /// What it takes on a host if everything else takes no time.
    pub(super) fn critical_path(self) -> Duration {
        Duration::from_millis(if self == Self::SetUp { 1000 } else { 0 })
    }

    /// Whether what a host's [`TOKEN`] holds is shown.
    pub(super) fn shows(self) -> bool {
        self == Self::SetUp
    }

    fn steps(self) -> Vec<Step> {
        match self {
            Self::Connect | Self::Attached => vec![Step::Run("true")],
            Self::SetUp => {
                let mut steps = vec![Step::Run("sleep 0.2"); 5];
                steps.push(Step::Show("cat /root/token"));
                steps
            }
            Self::Commands => vec![Step::Run("true"); 20],
            Self::Upload => vec![Step::Run("test $(wc -c </root/payload) -eq 8388608")],
        }
    }

    fn commands(self) -> Vec<&'static str> {
        let command = |step| match step {
            Step::Run(command) | Step::Show(command) => command,
        };
        self.steps().into_iter().map(command).collect()
    }

    /// For the minimal programs and the scripts in `xtask/bench/peers`: a step a line, with tabs.
    pub(super) fn plan(self, payload: &Path) -> String {
        let upload = self.payload().map(|_| format!("upload\t{}\t{PAYLOAD}\n", payload.display()));
        let steps = self.steps().into_iter().map(|step| match step {
            Step::Run(command) => format!("run\t{command}\n"),
            Step::Show(command) => format!("show\t{command}\n"),
        });
        upload.into_iter().chain(steps).collect()
    }

    /// All of it as one script, which reads the upload.
    pub(super) fn script(self) -> String {
        let upload = self.payload().map(|_| format!("cat >{PAYLOAD}"));
        upload
            .into_iter()
            .chain(self.commands().into_iter().map(str::to_owned))
            .collect::<Vec<_>>()
            .join(" && ")
    }

    /// The same as the set-up of a group of `hosts`; what is done when they are up, as a step.
    pub(super) fn experiment(self, hosts: &[String], payload: &Path, ssh: &[(&str, &str)]) -> String {
        // JSON's texts and lists are TOML's, too.
        let text = |value: &str| json!(value).to_string();
        let ssh: String = ssh.iter().map(|(key, value)| format!("{key} = {}\n", text(value))).collect();
        let upload = match self.payload() {
            Some(_) => {
                format!("upload = [{{ from = {}, to = \"{PAYLOAD}\" }}]\n", text(&payload.to_string_lossy()))
            }
            None => String::new(),
        };
        let step = match self {
            Self::Attached => "\n[[step]]\non = \"h\"\nrun = \"true\"\n",
            _ => "",
        };
        format!(
            "name = \"bench\"\nprovider = \"hosts\"\n\n[ssh]\n{ssh}\n[group.h]\nhosts = {}\n{upload}setup = {}\n{step}",
            json!(hosts),
            json!(self.commands()),
        )
    }

    /// The same for Ansible. What JSON says, YAML does, too.
    pub(super) fn playbook(self, payload: &Path) -> String {
        let mut tasks: Vec<Value> = Vec::new();
        if self.payload().is_some() {
            tasks.push(json!({"copy": {"src": payload.to_string_lossy(), "dest": PAYLOAD}}));
        }
        for step in self.steps() {
            match step {
                // One that needs no shell gets none, as Ansible's own advice is.
                Step::Run(command) if !command.contains('$') => tasks.push(json!({"command": command})),
                Step::Run(command) => tasks.push(json!({"shell": command})),
                Step::Show(command) => {
                    tasks.push(json!({"command": command, "register": "shown"}));
                    tasks.push(json!({"debug": {"var": "shown.stdout"}}));
                }
            }
        }
        json!([{"hosts": "all", "gather_facts": false, "tasks": tasks}]).to_string()
    }
}
