//! How `local` and `hosts` are used from experiment files and commands.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tsunami_core::registry::{
    Backend, ConnectRequest, Connection, Finding, Form, GroupTable, Key, Machines, MakeConnector,
    Registration, Registry, Settings, Table, TableReader, Value, Values, words,
};
use tsunami_core::{CancellationToken, Connector, MachineSpec, ProviderError, RunRecord, RunStore};

use crate::{HostAddress, HostsProvider, HostsSpec, LocalProvider, SshConnector, SshOptions, TransportKind};
use crate::{examination, proxy};

/// The keys of `[ssh]`.
const SSH_KEYS: &[Key] = &[
    Key::new("config", Form::Path, "an extra ssh_config").example("\"ssh_config\""),
    Key::new("jump", Form::Text, "a host to jump through, as `user@bastion`")
        .example("\"me@bastion.example\""),
    Key::new(
        "proxy",
        Form::List(&Form::Text),
        "a command that leads to machines, as a list of words without a shell, with `{host}`, `{port}` and `{id}`",
    )
    .example("[\"connect\", \"{host}\", \"{port}\"]"),
    Key::new("user", Form::Text, "who to log in as").example("\"me\""),
    Key::new("key", Form::Path, "the private key to log in with").example("\"~/.ssh/id_ed25519\""),
    Key::new("known_hosts", Form::Path, "where host keys are looked up").example("\"known_hosts\""),
    Key::new("connect_timeout", Form::Duration, "how long a machine may take from its launch to a session")
        .example("\"5m\"")
        .default("\"2m\""),
    Key::new("keepalive", Form::Duration, "how often a quiet connection is checked").example("\"10s\""),
    Key::new("kex", Form::Text, "the key exchange algorithms, as in `KexAlgorithms`")
        .example("\"mlkem768x25519-sha256,curve25519-sha256\""),
    Key::new("transport", Form::Choice(&words(&TransportKind::WORDS)), "what carries the sessions")
        .example("\"in-process\"")
        .default("\"openssh\""),
    Key::new(
        "spread",
        Form::Boolean,
        "whether machines hand on large uploads among each other; by default where their addresses aren't loopback",
    )
    .example("false"),
];

/// The keys of a group of hosts.
const HOSTS_KEYS: &[Key] = &[Key::new(
    "hosts",
    Form::List(&Form::Text),
    "its machines, as `user@host:port` or by their names in an ssh_config",
)
.example("[\"me@10.0.0.5:22\", \"box\"]")
.required()];

/// The providers of this crate, and connections over SSH for those that have none of their own.
///
/// ```
/// use tsunami_core::experiment::Loader;
///
/// # let directory = tempfile::tempdir()?;
/// # let file = directory.path().join("x.toml");
/// # std::fs::write(&file, "name = 'x'\nprovider = 'hosts'\n[group.a]\nhosts = ['10.0.0.5']\n")?;
/// let registry = tsunami_ssh::registry();
/// let experiment = Loader::new().registry(&registry).load(file)?;
/// assert_eq!(experiment.provider, "hosts");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn registry() -> Registry {
    Registry::new()
        .with(Arc::new(LocalRegistration))
        .with(Arc::new(HostsRegistration))
        .connector(Arc::new(OverSsh))
}

/// Connects over SSH, as `[ssh]` says.
#[derive(Debug)]
struct OverSsh;

#[async_trait]
impl MakeConnector for OverSsh {
    fn name(&self) -> &'static str {
        "ssh"
    }

    fn keys(&self) -> &'static [Key] {
        SSH_KEYS
    }

    fn example(&self) -> Option<&'static str> {
        Some("[ssh]\njump = \"me@bastion.example\"\nconnect_timeout = \"5m\"\n")
    }

    fn read(&self, table: Table<'_>, values: &mut Values<'_, '_>) -> Connection {
        let mut connection = Connection::default();
        let mut options = SshOptions::default();
        for (key, _, value) in table.entries() {
            match key {
                "config" => options.config = file(value, values),
                "jump" => options.jump = values.host(value),
                "proxy" => options.proxy = words_of_proxy(value, values),
                "user" => options.user = values.host(value),
                "key" => options.key = file(value, values),
                "known_hosts" => options.known_hosts = file(value, values),
                "connect_timeout" => connection.connect_timeout = values.duration(value),
                "keepalive" => options.keepalive = values.duration(value).unwrap_or(options.keepalive),
                "kex" => options.kex = kex(value, values),
                "transport" => {
                    let chosen = values.choice(value, key, &TransportKind::WORDS);
                    options.transport = chosen.unwrap_or(options.transport);
                }
                "spread" => options.spread = values.boolean(value),
                _ => {}
            }
        }
        if let (Some(_), Some(_), Some(value)) = (&options.proxy, &options.jump, table.get("proxy")) {
            let message = "a proxy beside a jump host: machines are reached by one of them";
            values.problem(&value.place(), message, None);
        }
        connection.through = match (&options.proxy, &options.jump) {
            (Some(words), _) => words.first().map(|program| format!("the proxy `{program}`")),
            (None, jump) => jump.as_ref().map(|jump| format!("the jump host {jump}")),
        };
        connection.settings = Settings::new(options);
        connection
    }

    fn connector(&self, settings: &Settings, trust_new_hosts: bool) -> Arc<dyn Connector> {
        Arc::new(SshConnector::new(options(settings, trust_new_hosts)))
    }

    async fn examine(&self, settings: &Settings, state: &RunStore) -> Vec<Finding> {
        examination::ssh(&options(settings, false), state).await
    }
}

/// A file that is there. Its path is remembered with the run, for commands given elsewhere.
fn file(value: Value<'_>, values: &mut Values<'_, '_>) -> Option<PathBuf> {
    let path = values.file(value)?;
    Some(std::path::absolute(&path).unwrap_or(path))
}

/// A command that is here, as a list of words.
fn words_of_proxy(value: Value<'_>, values: &mut Values<'_, '_>) -> Option<Vec<String>> {
    let list = values.list(value)?;
    let words: Vec<_> = list.iter().map(|word| Some(values.text(*word)?.to_owned())).collect();
    let mut words: Vec<String> = words.into_iter().collect::<Option<_>>()?;
    for (word, value) in words.iter().zip(&list) {
        if let Some(unknown) = proxy::unknown_place(word) {
            let help = "a machine's are `{host}`, `{port}` and `{id}`".to_owned();
            values.problem(&value.place(), format!("`{unknown}` stands for nothing"), Some(help));
            return None;
        }
    }
    if let Some(fault) = proxy::fault(&words) {
        let help = "list its words, as `[\"nc\", \"{host}\", \"{port}\"]`".to_owned();
        values.problem(&value.place(), format!("this is a {}", fault.trim_end_matches(':')), Some(help));
        return None;
    }
    let program = *list.first()?;
    if words[0].contains('/') {
        let path = file(program, values)?;
        let Some(path) = path.to_str() else {
            values.problem(&program.place(), "its whole path isn't UTF-8", None);
            return None;
        };
        words[0] = path.to_owned();
    }
    if let Err(missing) = proxy::find(&words[0]) {
        values.problem(&program.place(), missing, None);
        return None;
    }
    Some(words)
}

/// Names of key exchange algorithms, as ssh_config has them.
fn kex(value: Value<'_>, values: &mut Values<'_, '_>) -> Option<String> {
    let text = values.text(value)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.@,+^*".contains(c);
    if !text.is_empty() && text.chars().all(allowed) {
        return Some(text.to_owned());
    }
    let help = "list them with commas, as `curve25519-sha256,sntrup761x25519-sha512`".to_owned();
    values.problem(&value.place(), "these aren't names of key exchange algorithms", Some(help));
    None
}

fn options(settings: &Settings, trust_new_hosts: bool) -> SshOptions {
    let options = settings.get::<SshOptions>().cloned().unwrap_or_default();
    SshOptions { accept_new_hosts: trust_new_hosts, ..options }
}

/// Registers [`LocalProvider`] as `local`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalRegistration;

#[async_trait]
impl Registration for LocalRegistration {
    fn name(&self) -> &'static str {
        "local"
    }

    async fn examine(&self, request: &ConnectRequest<'_>, cancel: &CancellationToken) -> Vec<Finding> {
        match request.groups {
            [] => examination::local_tools().await,
            _ => examination::try_local(self.connect(request).await, request.state, cancel).await,
        }
    }

    async fn connect(&self, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        let provider = Arc::new(LocalProvider::new(request.state.root()));
        let connector = Arc::new(connector(request));
        Ok(Backend::new(provider, connector))
    }

    async fn reconnect(&self, _: &RunRecord, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        self.connect(request).await
    }
}

fn connector(request: &ConnectRequest<'_>) -> SshConnector {
    SshConnector::new(options(&request.connection, request.trust_new_hosts))
}

fn hosts_by(request: &ConnectRequest<'_>, connector: SshConnector) -> Backend {
    let connector = Arc::new(connector);
    Backend::new(Arc::new(HostsProvider::new(request.state.root(), connector.clone())), connector)
}

/// Registers [`HostsProvider`] as `hosts`.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostsRegistration;

#[async_trait]
impl Registration for HostsRegistration {
    fn name(&self) -> &'static str {
        "hosts"
    }

    fn group_keys(&self) -> &'static [Key] {
        HOSTS_KEYS
    }

    fn example(&self) -> Option<&'static str> {
        Some("[group.server]\nhosts = [\"me@10.0.0.5:22\", \"box\"]\n")
    }

    fn is_counted(&self) -> bool {
        false
    }

    fn has_users(&self) -> bool {
        true
    }

    fn reader(&self) -> Box<dyn TableReader> {
        Box::new(HostsReader::default())
    }

    async fn examine(&self, request: &ConnectRequest<'_>, cancel: &CancellationToken) -> Vec<Finding> {
        let hosts = request.groups.iter().filter_map(|group| group.spec.get::<HostsSpec>());
        let hosts: Vec<_> = hosts.flat_map(|spec| spec.hosts.clone()).collect();
        match hosts.is_empty() {
            true => Vec::new(),
            false => {
                let backend = hosts_by(request, connector(request).believing_refusals());
                examination::try_hosts(backend, hosts, request.state, cancel).await
            }
        }
    }

    async fn connect(&self, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        Ok(hosts_by(request, connector(request)))
    }

    async fn reconnect(&self, _: &RunRecord, request: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
        self.connect(request).await
    }
}

#[derive(Default)]
struct HostsReader {
    /// The hosts of all groups so far.
    taken: HashSet<String>,
}

impl TableReader for HostsReader {
    fn group(&mut self, group: &GroupTable<'_>, values: &mut Values<'_, '_>) -> Option<Machines> {
        let Some(value) = group.table.get("hosts") else {
            let help = "list them as `hosts = [\"user@10.0.0.5\"]`".to_owned();
            values.problem(&group.place, "this group has no `hosts`", Some(help));
            return None;
        };
        let list = values.list(value)?;
        if list.is_empty() {
            values.problem(&value.place(), "a group has at least one host", None);
            return None;
        }
        let user = group.common.user.as_deref();
        let read: Vec<_> = list.iter().filter_map(|value| self.host(*value, user, values)).collect();
        let count = u32::try_from(list.len()).ok().and_then(NonZeroU32::new);
        if read.len() < list.len() {
            return None;
        }
        let mut machines = Machines::of(MachineSpec::new(HostsSpec::new(read)));
        machines.count = count;
        Some(machines)
    }
}

impl HostsReader {
    fn host(
        &mut self,
        value: Value<'_>,
        user: Option<&str>,
        values: &mut Values<'_, '_>,
    ) -> Option<HostAddress> {
        let host = values.host(value)?;
        if !self.taken.insert(host.clone()) {
            // Both would work, and clean up, in the same directory.
            let message = format!("`{host}` is listed twice; a host is one machine");
            values.problem(&value.place(), message, None);
            return None;
        }
        match host.parse::<HostAddress>() {
            Ok(address) => {
                let user = address.user.or(user.map(str::to_owned));
                Some(HostAddress { user, ..address })
            }
            Err(error) => {
                values.problem(&value.place(), error.to_string(), None);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tsunami_core::experiment::{Experiment, Loader, Problem, Problems};

    use super::*;

    fn load(text: &str) -> Result<Experiment, Problems> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.toml");
        fs::write(&file, text).unwrap();
        Loader::new().registry(&registry()).load(file)
    }

    #[test]
    fn the_reference_shows_examples_that_are_read() {
        let registry = registry();
        let reference = Experiment::reference(&registry);
        let examples = registry.providers().filter_map(|provider| provider.example());
        let examples: Vec<_> =
            examples.chain(registry.connector_maker().and_then(|maker| maker.example())).collect();
        assert_eq!(examples.len(), 2);
        for example in examples {
            assert!(reference.contains(&format!("```toml\n{example}```")), "{reference}");
            let group = if example.contains("[group.") { "" } else { "[group.a]\nhosts = ['box']\n" };
            load(&format!("name = 'x'\nprovider = 'hosts'\n{example}{group}")).unwrap();
        }
        assert!(SSH_KEYS.iter().chain(HOSTS_KEYS).all(|key| key.example.is_some()));
    }

    fn refuses(text: &str, expected: &[&str]) {
        assert_eq!(lines(&load(text).expect_err("this should be refused")), expected);
    }

    fn lines(problems: &Problems) -> Vec<String> {
        let line = |problem: &Problem| {
            let (line, column) = problems.place(problem).unwrap();
            let help = problem.advice().map(|help| format!(" ({help})")).unwrap_or_default();
            format!("{line}:{column} {}{help}", problem.message())
        };
        problems.iter().map(line).collect()
    }

    #[test]
    fn hosts_are_machines() {
        let text = "name = 'x'\nprovider = 'hosts'\nuser = 'admin'\n[group.a]\nhosts = ['u@[::1]:22', 'box']\n\
                    [group.b]\nuser = 'root'\nhosts = ['10.0.0.5']\n";
        let experiment = load(text).unwrap();
        let hosts = |at: usize| -> Vec<String> {
            let spec = experiment.groups[at].spec.get::<HostsSpec>().unwrap();
            spec.hosts.iter().map(HostAddress::to_string).collect()
        };
        assert_eq!(
            (hosts(0), hosts(1)),
            (vec!["u@[::1]:22".into(), "admin@box".into()], vec!["root@10.0.0.5".into()])
        );
        assert_eq!(experiment.machines().count(), 3);
    }

    #[test]
    fn hosts_that_cannot_be() {
        refuses(
            r#"name = "x"
provider = "hosts"
[group.a]
[group.b]
count = 2
[group.c]
hosts = []
[group.d]
hosts = ["a", "b", "a", "-x", "u@-x", "a b", ""]
[group.e]
hosts = ["b", 3]"#,
            &[
                r#"3:8 this group has no `hosts` (list them as `hosts = ["user@10.0.0.5"]`)"#,
                r#"5:1 `count` is not for the provider "hosts" (the group's `hosts` are its machines)"#,
                "7:9 a group has at least one host",
                "9:20 `a` is listed twice; a host is one machine",
                "9:25 neither the user nor the host can be empty or begin with `-`",
                "9:31 neither the user nor the host can be empty or begin with `-`",
                "9:39 this can't hold spaces or control characters",
                "9:46 this is empty",
                "11:10 `b` is listed twice; a host is one machine",
                r#"11:15 expected a string, found an integer (write it as a string: "3")"#,
            ],
        );
    }

    #[test]
    fn keys_of_one_provider_are_not_for_the_other() {
        refuses(
            "name = 'x'\nuser = 'admin'\n[group.a]\nhosts = ['a']\n[group.b]\nuser = 'me'\n",
            &[
                r#"2:1 `user` is not for the provider "local" (its machines are used by whoever runs tsunami)"#,
                r#"4:1 `hosts` is for the provider "hosts" (set `provider = "hosts"`, or give a `count` of machines)"#,
                r#"6:1 `user` is not for the provider "local" (its machines are used by whoever runs tsunami)"#,
            ],
        );
        refuses(
            "name = 'x'\nprovider = 'host'\n[group.a]\n",
            &["2:12 `provider` can't be \"host\" (did you mean `hosts`?)"],
        );
    }

    mod local_keeps {
        tsunami_core::registration_conformance!(super::registry(), "local", "count = 2");
    }

    mod hosts_keeps {
        tsunami_core::registration_conformance!(super::registry(), "hosts", "hosts = ['a']");
    }

    #[test]
    fn the_default_time_to_connect_is_said_as_it_is() {
        let key = SSH_KEYS.iter().find(|key| key.name == "connect_timeout").unwrap();
        let minutes = tsunami_core::DEFAULT_CONNECT_TIMEOUT.as_secs() / 60;
        assert_eq!(key.default, Some(&*format!("\"{minutes}m\"")));
    }

    #[test]
    fn what_ssh_says_reaches_the_connector() {
        let text = "name = 'x'\n[ssh]\njump = 'me@bastion'\nkeepalive = '9s'\nconnect_timeout = '3m'\nkex = 'a,b'\n\
                    transport = 'openssh'\nspread = false\n[group.a]\n";
        let experiment = load(text).unwrap();
        assert_eq!(experiment.plan().connect_timeout, Duration::from_secs(180));
        let options = options(&experiment.connection.settings, true);
        assert_eq!((options.jump.as_deref(), options.kex.as_deref()), (Some("me@bastion"), Some("a,b")));
        assert!(options.keepalive == Duration::from_secs(9) && options.accept_new_hosts);
        assert_eq!(options.spread, Some(false));
    }

    #[test]
    fn a_proxy_is_a_program_that_is_here_and_leads_to_each_machine() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("way");
        fs::copy("/bin/sh", &program).unwrap();
        fs::copy("/bin/sh", directory.path().join("script")).unwrap();
        fs::write(directory.path().join("script"), "#!/no/such\n").unwrap();
        let read = |words: &str| {
            let file = directory.path().join("x.toml");
            fs::write(&file, format!("name = 'x'\n[ssh]\nproxy = {words}\n[group.a]\n")).unwrap();
            Loader::new().registry(&registry()).load(file)
        };
        let experiment = read("['./way', '--to', '{host}', '${other}']").unwrap();
        let words = options(&experiment.connection.settings, false).proxy.unwrap();
        assert_eq!(words[1..], ["--to", "{host}", "${other}"]);
        assert!(words[0].starts_with('/') && fs::metadata(&words[0]).unwrap().is_file(), "{words:?}");
        for (words, place, told) in [
            ("'nc {host}'", "3:9", "expected a list"),
            ("['sh', 22, '{host}']", "3:16", "expected a string"),
            ("[]", "3:9", "without a program"),
            ("['sh', '{port}']", "3:9", "names neither {host} nor {id}"),
            ("['sh', '--at', '{hostname}']", "3:24", "`{hostname}` stands for nothing"),
            ("['./script', '{host}']", "3:10", "names `/no/such`"),
            ("['no-such-program', '{host}']", "3:10", "in no directory of PATH"),
            ("['./none', '{host}']", "3:10", "can't be read"),
            ("['./x.toml', '{host}']", "3:10", "is not a program"),
            ("['sh', '{host}']\njump = 'me@bastion'", "3:9", "beside a jump host"),
        ] {
            let problems = lines(&read(words).unwrap_err());
            assert!(problems.len() == 1, "{words}: {problems:?}");
            let (at, problem) = problems[0].split_once(' ').unwrap();
            assert!(at == place && problem.contains(told), "{words}: {problems:?}");
        }
    }

    #[test]
    fn ssh_that_cannot_be() {
        let directory = tempfile::tempdir().unwrap();
        let sub = directory.path().join("sub");
        fs::create_dir(&sub).unwrap();
        let file = directory.path().join("x.toml");
        let text = r#"name = "x"
[ssh]
config = "none"
jump = "-oProxyCommand=x"
user = "a b"
key = "~/none"
known_hosts = "sub"
kex = "a b"
connect_timeout = "0s"
keepalive = 5
transport = "russh"
usr = 1
[group.a]"#;
        fs::write(&file, text).unwrap();
        let home = |name: &str| (name == "HOME").then(|| sub.clone().into_os_string());
        let problems = Loader::new().registry(&registry()).lookup_env(&home).load(file).unwrap_err();
        let within = format!("{}/", directory.path().display());
        let told: Vec<_> = lines(&problems).iter().map(|line| line.replace(&within, "")).collect();
        assert_eq!(
            told,
            [
                "3:10 `none` can't be read: No such file or directory (os error 2)",
                "4:8 neither the user nor the host can be empty or begin with `-`",
                "5:8 this can't hold spaces or control characters",
                "6:7 `sub/none` can't be read: No such file or directory (os error 2)",
                "7:15 `sub` is not a file",
                "8:7 these aren't names of key exchange algorithms (list them with commas, as `curve25519-sha256,sntrup761x25519-sha512`)",
                "9:19 this can't be zero",
                r#"10:13 expected a duration such as "90s", found an integer (write it with its unit: "5s", or "5m" for minutes)"#,
                r#"11:13 `transport` can't be "russh" (known here: openssh, in-process)"#,
                "12:1 unknown key `usr` (did you mean `user`?)",
            ]
        );
    }
}
