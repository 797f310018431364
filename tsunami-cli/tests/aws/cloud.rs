//! A test's own emulator, and the binary pointed at it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::emulator::Emulator;
use crate::world::{Ended, Going, World};

pub(crate) struct Cloud {
    pub(crate) world: World,
    pub(crate) emulator: Emulator,
}

impl Cloud {
    pub(crate) fn new() -> Self {
        Self::with(Emulator::start())
    }

    pub(crate) fn with(emulator: Emulator) -> Self {
        emulator.configure(json!({"pending": 0.3, "shutting_down": 0.3, "eni_detach": 0.1}));
        Self { world: World::new(), emulator }
    }

    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.world.command(args);
        command.envs(self.emulator.environment());
        for name in ["AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"]
        {
            command.env_remove(name);
        }
        command
    }

    pub(crate) fn tsunami<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ended {
        Ended::from(self.command(args).output().unwrap())
    }

    pub(crate) fn run(&self, file: &Path) -> Ended {
        self.tsunami([OsStr::new("run"), file.as_os_str()])
    }

    pub(crate) fn start(&self, file: &Path) -> Going {
        Going::of(self.command([OsStr::new("run"), OsStr::new("--json"), file.as_os_str()]))
    }

    /// An experiment of one server and three clients, with these lines about machines.
    pub(crate) fn server_and_clients(&self, aws: &str, server: &str, client: &str) -> std::path::PathBuf {
        // Clients in another network reach the server by its public address.
        let listens_on = if client.contains("region") { "public_ip" } else { "ip" };
        let text = format!(
            r#"
            name = "redis"
            provider = "aws"
            lifetime = "45m"
            budget = 2.0

            [aws]
            image = "ubuntu-24.04"
            user = "root"
            {aws}

            [group.server]
            setup = ["tsunami-deadline status", "echo set up > done"]
            {server}

            [group.client]
            count = 3
            setup = "test -n \"$TSUNAMI_IP\""
            {client}

            [[step]]
            on = "server"
            start = "exec busybox httpd -f -p {{{{ {listens_on} }}}}:7777"
            ready = {{ command = "busybox wget -q -O- http://{{{{ {listens_on} }}}}:7777/done" }}

            [[step]]
            name = "load"
            on = "client"
            run = "busybox wget -q -O- http://{{{{ server.ip }}}}:7777/done | tee out.csv"
            timeout = "1m"
            collect = ["out.csv"]
            "#
        );
        self.world.write("experiment.toml", &text)
    }

    /// Nothing is left: no process and no record here, and nothing in the account, by the emulator's own word.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        self.emulator.assert_empty();
        self.world.assert_clean();
    }
}
