//! What can be set about SSH, and the ssh_config of a run.
//!
//! ssh_config is a language in which a line can name a program, and part of what stands in ours comes from
//! providers, options and other configurations. So nothing is written into it as text: a [`Setting`] has a
//! keyword of ours and [`Word`]s, and a word exists only if it can be nothing else than one value.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ssh_key::PublicKey;
use tsunami_core::{Machine, SessionError, SessionErrorKind, shown};

use crate::hosts::HostAddress;
use crate::proxy;
use crate::transport::TransportKind;

/// What can be set about SSH. The default needs nothing.
///
/// A run remembers the options it began with: whoever takes it up later uses those, not its own.
///
/// ```
/// use tsunami_ssh::SshOptions;
///
/// let options = SshOptions::default().jump("me@bastion.example").user("ubuntu");
/// assert!(!options.accept_new_hosts);
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SshOptions {
    /// An ssh_config to take in place of the user's own. Like that, it is read for jump hosts and for
    /// machines that existed before the run, and must not be writable by others. Machines of the run are not
    /// reached by it.
    pub config: Option<PathBuf>,
    /// A jump host for all machines, or several in their order: `user@bastion`, `first,second:2222`. One
    /// connection to it serves all.
    pub jump: Option<String>,
    /// A command whose standard input and output lead to a machine, as a program and its arguments: no shell reads
    /// them. `{host}`, `{port}` and `{id}` stand for the machine's address, port and provider's id. Not beside a jump
    /// host. A connection has a process of it, which ends with the connection or, at the latest, with the run.
    pub proxy: Option<Vec<String>>,
    /// The user to log in as, where the provider does not say.
    pub user: Option<String>,
    /// The private key for machines that existed before the run. Machines of the run get a key of the run.
    pub key: Option<PathBuf>,
    /// Where the host keys of machines that existed before the run are known from, in place of the user's own
    /// `known_hosts`. Read, never written.
    pub known_hosts: Option<PathBuf>,
    /// Accept, for this run, the keys of hosts that are not known at all.
    pub accept_new_hosts: bool,
    /// The pause between two signs of life on an idle connection, in whole seconds, as ssh counts it
    /// (`ServerAliveInterval` of ssh_config(5)): the rest is dropped, and less than one is one. After three without an answer
    /// it counts as lost.
    pub keepalive: Duration,
    /// The key exchanges to use, as ssh_config's `KexAlgorithms` takes them. By default mlkem768x25519 stands
    /// first where ssh has it (since OpenSSH 9.9), then curve25519: the default of older OpenSSH,
    /// sntrup761x25519, costs the client some 90 ms of CPU a connection, six times what curve25519 does.
    pub kex: Option<String>,
    /// How sessions are made.
    pub transport: TransportKind,
    /// Whether what many machines are given goes from machine to machine, at their private addresses. By default it
    /// does, unless those are loopback addresses: there a machine reaches only itself, or nothing leaves this computer
    /// anyway.
    pub spread: Option<bool>,
}

impl Default for SshOptions {
    fn default() -> Self {
        Self {
            config: None,
            jump: None,
            proxy: None,
            user: None,
            key: None,
            known_hosts: None,
            accept_new_hosts: false,
            keepalive: Duration::from_secs(5),
            kex: None,
            transport: TransportKind::default(),
            spread: None,
        }
    }
}

impl SshOptions {
    /// Sets an ssh_config to take in place of the user's own.
    pub fn config(mut self, config: impl Into<PathBuf>) -> Self {
        self.config = Some(config.into());
        self
    }

    /// Sets a jump host for all machines, or several in their order.
    pub fn jump(mut self, jump: impl Into<String>) -> Self {
        self.jump = Some(jump.into());
        self
    }

    /// Sets a command that leads to all machines: a program and its arguments.
    pub fn proxy(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.proxy = Some(words.into_iter().map(Into::into).collect());
        self
    }

    /// Sets the user to log in as, where the provider does not say.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Sets the private key for machines that existed before the run.
    pub fn key(mut self, key: impl Into<PathBuf>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets where the host keys of machines that existed before the run are known from.
    pub fn known_hosts(mut self, known_hosts: impl Into<PathBuf>) -> Self {
        self.known_hosts = Some(known_hosts.into());
        self
    }

    /// Sets whether the keys of hosts that are not known at all are accepted, for this run.
    pub fn accept_new_hosts(mut self, accept: bool) -> Self {
        self.accept_new_hosts = accept;
        self
    }

    /// Sets the pause between two signs of life on an idle connection. Default: five seconds.
    pub fn keepalive(mut self, pause: Duration) -> Self {
        self.keepalive = pause;
        self
    }

    /// Sets the key exchanges to use, as ssh_config's `KexAlgorithms` takes them.
    pub fn kex(mut self, kex: impl Into<String>) -> Self {
        self.kex = Some(kex.into());
        self
    }

    /// Sets how sessions are made.
    pub fn transport(mut self, transport: TransportKind) -> Self {
        self.transport = transport;
        self
    }

    /// Sets whether what many machines are given goes from machine to machine.
    pub fn spread(mut self, spread: bool) -> Self {
        self.spread = Some(spread);
        self
    }
}

/// The alias of the jump host in a run's ssh_config.
pub(crate) const JUMP: &str = "tsunami-jump";

/// The files of a run's SSH, in one private directory.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) config: PathBuf,
    pub(crate) hosts: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) known_hosts: PathBuf,
    pub(crate) options: PathBuf,
    pub(crate) proxy: PathBuf,
}

impl Files {
    pub(crate) fn in_directory(directory: &Path) -> Self {
        Self {
            config: directory.join("config"),
            hosts: directory.join("hosts"),
            key: directory.join("id_ed25519"),
            known_hosts: directory.join("known_hosts"),
            options: directory.join("options.json"),
            proxy: directory.join("proxy"),
        }
    }
}

/// A value that ssh_config cannot be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ssh cannot be given the {what} `{value}`")]
pub(crate) struct Unfit {
    what: &'static str,
    value: String,
}

impl Unfit {
    pub(crate) fn new(what: &'static str, value: &str) -> Self {
        Self { what, value: shown(value) }
    }

    /// As the error of a machine.
    pub(crate) fn of(self, machine: &str) -> SessionError {
        SessionError::new(SessionErrorKind::Local, format!("{}: {self}", shown(machine)))
    }
}

/// One value in ssh_config: one word to its reader, whatever it holds, and no option to a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word(String);

impl Word {
    /// A value without a form of its own. `what` names it in errors.
    pub(crate) fn new(what: &'static str, text: &str) -> Result<Self, Unfit> {
        let odd = |c: char| c.is_control() || "\"\\".contains(c);
        match text.is_empty() || text.starts_with('-') || text.contains(odd) {
            true => Err(Unfit::new(what, text)),
            false => Ok(Self(text.to_owned())),
        }
    }

    /// A value of ours.
    pub(crate) fn ours(text: &'static str) -> Self {
        Self(text.to_owned())
    }

    pub(crate) fn number(number: u64) -> Self {
        Self(number.to_string())
    }

    /// A path that stands for itself: without what ssh would expand.
    pub(crate) fn path(what: &'static str, path: &Path) -> Result<Self, Unfit> {
        let unfit = || Unfit::new(what, &path.to_string_lossy());
        let text = path.to_str().filter(|text| !text.contains("${")).ok_or_else(unfit)?;
        Self::new(what, &text.replace('%', "%%"))
    }

    /// An address, or the name of a host.
    pub(crate) fn host(text: &str) -> Result<Self, Unfit> {
        let unfit = || Unfit::new("host", text);
        let (name, zone) = text.split_once('%').map_or((text, None), |(name, zone)| (name, Some(zone)));
        let plain = |word: &str, more: &str| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        };
        let is_name = zone.is_none() && plain(name, "._-") && !name.starts_with('-') && name.len() <= 253;
        let is_address = name.parse::<IpAddr>().is_ok_and(|address| zone.is_none() || address.is_ipv6());
        match (is_name || is_address) && zone.is_none_or(|zone| plain(zone, "._-")) {
            // ssh expands it.
            true => Ok(Self(text.replace('%', "%%"))),
            false => Err(unfit()),
        }
    }

    /// Somebody to log in as: also `user@domain` and `DOMAIN\user`, as directory services have them.
    pub(crate) fn user(text: &str) -> Result<Self, Unfit> {
        match is_user(text) {
            true => Ok(Self(text.to_owned())),
            false => Err(Unfit::new("user", text)),
        }
    }

    /// A list of algorithms, with what may stand before it.
    pub(crate) fn algorithms(text: &str) -> Result<Self, Unfit> {
        let list = text.strip_prefix(['+', '^', '-']).unwrap_or(text);
        let plain = |c: char| c.is_ascii_alphanumeric() || "@.,_*?!-".contains(c);
        match !list.is_empty() && !list.starts_with(['-', ',']) && list.chars().all(plain) {
            true => Ok(Self(text.to_owned())),
            false => Err(Unfit::new("algorithms", text)),
        }
    }

    /// A name of ours for a machine or a jump host.
    pub(crate) fn alias(text: &str) -> Result<Self, Unfit> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        match text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(plain) {
            true => Ok(Self(text.to_owned())),
            false => Err(Unfit::new("name", text)),
        }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A backslash has a meaning within quotes, and stands only in words that need none.
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/~:@%+,^\\*?!$".contains(c);
        match self.0.chars().all(plain) {
            true => f.write_str(&self.0),
            false => write!(f, "\"{}\"", self.0),
        }
    }
}

/// Whether somebody can be called that: `name`, `name$`, `name@domain` or `DOMAIN\name`.
pub(crate) fn is_user(text: &str) -> bool {
    let name = text.strip_suffix('$').unwrap_or(text);
    let parts: Vec<_> = name.split(['@', '\\']).collect();
    let is_part = |part: &&str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c))
    };
    parts.len() <= 2 && parts.iter().all(is_part)
}

/// A whole line that another program reads, as the user wrote it for ssh: a `ProxyCommand`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandLine(String);

impl CommandLine {
    /// What the user's own configuration says. Never what a provider or a machine does.
    pub(crate) fn of_user(what: &'static str, text: &str) -> Result<Self, Unfit> {
        match text.is_empty() || text.starts_with('=') || text.chars().any(char::is_control) {
            true => Err(Unfit::new(what, text)),
            false => Ok(Self(text.to_owned())),
        }
    }

    /// `ssh` to a jump host of the run's own configuration, to be connected through: over the master at
    /// `socket` if there is one. It goes through a shell, but all that isn't fixed is quoted; and ssh puts
    /// nothing in place of `%h` and `%p` but what stands in that configuration, where both are [`Word`]s.
    pub(crate) fn through(jump: &str, config: &Path, socket: Option<&Path>) -> Result<Self, Unfit> {
        // ssh itself writes `exec` before it.
        let mut line = format!("ssh -F {}", quoted_path(config)?);
        if let Some(socket) = socket {
            let _ = write!(line, " -S {}", quoted_path(socket)?);
        }
        let _ = write!(line, " -W '[%h]:%p' {}", quoted_word("name", &Word::alias(jump)?.0)?);
        Ok(Self(line))
    }

    /// The script by which a command of the user's leads to a machine: see [`proxy`]. The user's shell may be the one that
    /// reads this (`tsunami ssh`), so nothing stands in it that shells read in several ways.
    fn by_proxy(words: &[String], script: &Path, id: &str) -> Result<Self, Unfit> {
        let mut line = format!("/bin/sh {} '%h' %p", quoted_path(script)?);
        if proxy::names_id(words) {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@+=,[]".contains(c);
            if id.is_empty() || !id.chars().all(plain) {
                return Err(Unfit::new("id", id));
            }
            let _ = write!(line, " '{id}'");
        }
        Ok(Self(line))
    }
}

/// A text as one word of a shell's, in a line in which ssh puts things in place of its tokens.
fn quoted_word(what: &'static str, text: &str) -> Result<String, Unfit> {
    match shlex::try_quote(text) {
        Ok(quoted) if !text.chars().any(char::is_control) => Ok(quoted.replace('%', "%%")),
        _ => Err(Unfit::new(what, text)),
    }
}

fn quoted_path(path: &Path) -> Result<String, Unfit> {
    quoted_word("path", path.to_str().ok_or_else(|| Unfit::new("path", &path.to_string_lossy()))?)
}

/// One option, as a line of ssh_config and as an argument of `-o`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    keyword: &'static str,
    value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Words(Vec<Word>),
    Line(CommandLine),
}

impl Setting {
    pub(crate) fn new(keyword: &'static str, word: Word) -> Self {
        Self { keyword, value: Value::Words(vec![word]) }
    }

    pub(crate) fn list(keyword: &'static str, words: Vec<Word>) -> Self {
        Self { keyword, value: Value::Words(words) }
    }

    pub(crate) fn proxy(line: CommandLine) -> Self {
        Self { keyword: "ProxyCommand", value: Value::Line(line) }
    }
}

#[cfg(feature = "in-process")]
impl Setting {
    pub(crate) fn keyword(&self) -> &'static str {
        self.keyword
    }

    /// Its values, as ssh reads them: a `%` may begin a token.
    pub(crate) fn values(&self) -> Vec<&str> {
        match &self.value {
            Value::Words(words) => words.iter().map(|word| word.0.as_str()).collect(),
            Value::Line(line) => vec![&line.0],
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.keyword)?;
        match &self.value {
            Value::Words(words) => words.iter().try_for_each(|word| write!(f, " {word}")),
            Value::Line(line) => write!(f, " {}", line.0),
        }
    }
}

/// What ssh_config says about one alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    alias: Word,
    settings: Vec<Setting>,
}

impl Entry {
    pub(crate) fn new(alias: &str) -> Result<Self, Unfit> {
        Ok(Self { alias: Word::alias(alias)?, settings: Vec::new() })
    }

    fn set(&mut self, keyword: &'static str, word: Word) {
        self.settings.push(Setting::new(keyword, word));
    }

    #[cfg(feature = "in-process")]
    pub(crate) fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// The line by which the entry is found.
    pub(crate) fn head(&self) -> String {
        format!("Host {}\n", self.alias)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.head())?;
        self.settings.iter().try_for_each(|setting| writeln!(f, "  {setting}"))
    }
}

/// What holds for whatever is connected to.
pub(crate) fn always(options: &SshOptions) -> Vec<Setting> {
    let ours = |keyword, value| Setting::new(keyword, Word::ours(value));
    vec![
        ours("BatchMode", "yes"),
        ours("GlobalKnownHostsFile", "/dev/null"),
        ours("UpdateHostKeys", "no"),
        ours("VerifyHostKeyDNS", "no"),
        ours("HashKnownHosts", "no"),
        ours("CanonicalizeHostname", "no"),
        ours("ConnectTimeout", "15"),
        Setting::new("ServerAliveInterval", Word::number(options.keepalive.as_secs().max(1))),
        ours("ServerAliveCountMax", "3"),
        ours("AddKeysToAgent", "no"),
        ours("ForwardAgent", "no"),
        ours("ForwardX11", "no"),
        ours("ClearAllForwardings", "yes"),
        ours("Tunnel", "no"),
        ours("PermitLocalCommand", "no"),
        ours("ControlPersist", "no"),
        ours("LogLevel", "INFO"),
    ]
}

/// What holds where an entry says nothing.
pub(crate) fn otherwise(files: &Files, kex: Option<&str>) -> Result<Vec<Setting>, Unfit> {
    let ours = |keyword, value| Setting::new(keyword, Word::ours(value));
    let mut settings = vec![
        ours("StrictHostKeyChecking", "yes"),
        Setting::new("UserKnownHostsFile", Word::path("path", &files.known_hosts)?),
        ours("IdentitiesOnly", "yes"),
        ours("IdentityAgent", "none"),
        ours("PasswordAuthentication", "no"),
        ours("KbdInteractiveAuthentication", "no"),
    ];
    if let Some(kex) = kex {
        settings.push(Setting::new("KexAlgorithms", Word::algorithms(kex)?));
    }
    Ok(settings)
}

/// The run's ssh_config: what holds for whatever is connected to, then the entries, then what holds where
/// they say nothing. ssh takes the first value that it finds, and reads no other configuration beside it: of
/// the user's, only what [`Entry::of_host`] takes over about a host can be reached.
pub(crate) fn main_config(options: &SshOptions, files: &Files, kex: Option<&str>) -> Result<String, Unfit> {
    let mut text =
        "# Made by tsunami for one run. `ssh -F <this file> <machine>` works for as long as the run \
                    does.\n\
                    Host *\n"
            .to_owned();
    let mut add = |setting: &Setting| {
        let _ = writeln!(text, "  {setting}");
    };
    always(options).iter().for_each(&mut add);
    add(&Setting::new("Include", Word::path("path", &files.hosts)?));
    add(&Setting::new("Host", Word::ours("*")));
    otherwise(files, kex)?.iter().for_each(&mut add);
    Ok(text)
}

/// Where a machine that the run made is reached.
pub(crate) fn endpoint(machine: &Machine) -> Option<(String, u16)> {
    let login = machine.login.host_key.as_ref().map(|_| &machine.login)?;
    let host = login.host.as_deref().or(machine.addresses.external())?;
    Some((host.to_owned(), login.port.unwrap_or(22)))
}

/// The way that the user gave for all machines, to the one with this id.
pub(crate) fn by_proxy(options: &SshOptions, files: &Files, id: &str) -> Result<Option<Setting>, Unfit> {
    let line = options.proxy.as_deref().map(|words| CommandLine::by_proxy(words, &files.proxy, id));
    line.transpose().map(|line| line.map(Setting::proxy))
}

/// The settings that say where a connection goes.
pub(crate) fn destination(host: &str, port: u16) -> Result<[Setting; 2], Unfit> {
    Ok([Setting::new("HostName", Word::host(host)?), Setting::new("Port", Word::number(port.into()))])
}

/// The line of known_hosts about a machine that the run made.
pub(crate) fn known_host(machine: &Machine, key: &str) -> Result<String, Unfit> {
    let key = PublicKey::from_openssh(key).map_err(|_| Unfit::new("host key", key))?;
    let key = PublicKey::new(key.key_data().clone(), "").to_openssh();
    let key = key.map_err(|error| Unfit::new("host key", &error.to_string()))?;
    Ok(format!("{} {}\n", Word::alias(&machine.name())?, key.trim()))
}

impl Entry {
    /// A machine that the run made: its key is pinned, and only the run's identity is shown to it.
    pub(crate) fn of_machine(machine: &Machine, options: &SshOptions, files: &Files) -> Result<Self, Unfit> {
        let mut entry = Self::new(&machine.name())?;
        let (host, port) = endpoint(machine).unwrap_or_default();
        entry.settings.extend(destination(&host, port)?);
        entry.set("HostKeyAlias", Word::alias(&machine.name())?);
        if let Some(user) = machine.login.user.as_deref().or(options.user.as_deref()) {
            entry.set("User", Word::user(user)?);
        }
        entry.set("IdentityFile", Word::path("path", &files.key)?);
        if options.jump.is_some() {
            entry.settings.push(Setting::proxy(CommandLine::through(JUMP, &files.config, None)?));
        }
        entry.settings.extend(by_proxy(options, files, machine.id.as_str())?);
        Ok(entry)
    }

    /// A host that existed before the run, or a jump host: reached as the user reaches it, but `through` what leads to a
    /// machine of the run's, if anything does.
    pub(crate) fn of_host(
        alias: &str,
        host: &HostAddress,
        resolved: &Resolved,
        defaults: &Resolved,
        through: Option<Setting>,
        options: &SshOptions,
        files: &Files,
    ) -> Result<Self, Unfit> {
        let mut entry = Self::new(alias)?;
        if let Some(way) = through {
            entry.settings.push(way);
            entry.set("ProxyUseFdpass", Word::ours("no"));
        }
        // In the run's own configuration the host goes by another name.
        let key_name = resolved.get("hostkeyalias").is_none().then_some(&host.host);
        let named = |value: &str| put_names(value, &host.host, key_name.map(String::as_str));
        let checking = if options.accept_new_hosts { "accept-new" } else { "yes" };
        entry.set("StrictHostKeyChecking", Word::ours(checking));
        let mut known = vec![Word::path("path", &files.known_hosts)?];
        match &options.known_hosts {
            Some(path) => known.push(Word::path("known_hosts", path)?),
            None => {
                let files = resolved.known_hosts().into_iter().map(|path| named(&path));
                known.extend(
                    files.map(|path| Word::new("known_hosts", &path)).collect::<Result<Vec<_>, _>>()?,
                );
            }
        }
        entry.settings.push(Setting::list("UserKnownHostsFile", known));
        for (key, value) in &resolved.options {
            let Some((keyword, form, told)) = COPIED.iter().find(|copied| copied.0.eq_ignore_ascii_case(key))
            else {
                continue;
            };
            if *told == Told::WhereOdd && defaults.all(key) == resolved.all(key) {
                continue;
            }
            entry.settings.push(match form {
                Form::Host => Setting::new(keyword, Word::host(value)?),
                Form::User => Setting::new(keyword, Word::user(value)?),
                Form::Algorithms => Setting::new(keyword, Word::algorithms(value)?),
                Form::Word => Setting::new(keyword, Word::new(keyword, value)?),
                Form::Named => Setting::new(keyword, Word::new(keyword, &named(value))?),
                Form::Words => {
                    let words = value.split(' ').map(|word| Word::new(keyword, word));
                    Setting::list(keyword, words.collect::<Result<_, _>>()?)
                }
                Form::Line => {
                    let line = CommandLine::of_user(keyword, &named(value))?;
                    Setting { keyword, value: Value::Line(line) }
                }
            });
        }
        if resolved.get("identityagent").is_none() {
            entry.set("IdentityAgent", Word::ours("SSH_AUTH_SOCK"));
        }
        // ssh takes the first one.
        if let Some(command) = resolved.get("proxycommand").filter(|command| *command != "none") {
            entry.settings.push(Setting::proxy(CommandLine::of_user("ProxyCommand", &named(command))?));
        }
        Ok(entry)
    }
}

/// Puts the name that the user has for a host in place of ssh's tokens for it, and for its key if that goes
/// by it too.
fn put_names(value: &str, host: &str, key: Option<&str>) -> String {
    let mut put = String::new();
    let mut rest = value.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            put.push(c);
            continue;
        }
        match (rest.next(), key) {
            (Some('n'), _) => put.push_str(&host.replace('%', "%%")),
            (Some('k'), Some(key)) => put.push_str(&key.replace('%', "%%")),
            (token, _) => put.extend(std::iter::once('%').chain(token)),
        }
    }
    put
}

/// How `ssh -G` shows a value.
#[derive(Clone, Copy, Debug)]
enum Form {
    Host,
    User,
    Algorithms,
    /// The rest of the line.
    Word,
    /// A word in which ssh puts names in place of tokens.
    Named,
    Words,
    Line,
}

/// When something is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Always,
    /// Where ssh without any configuration would do otherwise.
    WhereOdd,
}

/// What is taken over from the user's configuration about a host: all that decides about reaching it and
/// being let in. Not what acts on this computer (`LocalCommand`, control sockets), opens it to the other side
/// (forwards of any kind, tunnels), or runs something else there than what was asked for (`RemoteCommand`).
const COPIED: [(&str, Form, Told); 36] = [
    ("HostName", Form::Host, Told::Always),
    ("Port", Form::Word, Told::Always),
    ("User", Form::User, Told::Always),
    ("HostKeyAlias", Form::Word, Told::Always),
    ("IdentityFile", Form::Named, Told::WhereOdd),
    ("CertificateFile", Form::Named, Told::WhereOdd),
    ("IdentitiesOnly", Form::Word, Told::Always),
    ("IdentityAgent", Form::Named, Told::Always),
    ("PKCS11Provider", Form::Word, Told::WhereOdd),
    ("SecurityKeyProvider", Form::Word, Told::WhereOdd),
    ("PubkeyAuthentication", Form::Word, Told::WhereOdd),
    ("PasswordAuthentication", Form::Word, Told::Always),
    ("KbdInteractiveAuthentication", Form::Word, Told::Always),
    ("GSSAPIAuthentication", Form::Word, Told::WhereOdd),
    ("HostbasedAuthentication", Form::Word, Told::WhereOdd),
    ("EnableSSHKeysign", Form::Word, Told::WhereOdd),
    ("PreferredAuthentications", Form::Word, Told::WhereOdd),
    ("KnownHostsCommand", Form::Line, Told::WhereOdd),
    ("RevokedHostKeys", Form::Named, Told::WhereOdd),
    ("AddressFamily", Form::Word, Told::WhereOdd),
    ("BindAddress", Form::Word, Told::WhereOdd),
    ("BindInterface", Form::Word, Told::WhereOdd),
    ("ProxyUseFdpass", Form::Word, Told::WhereOdd),
    ("Ciphers", Form::Algorithms, Told::WhereOdd),
    ("MACs", Form::Algorithms, Told::WhereOdd),
    ("KexAlgorithms", Form::Algorithms, Told::WhereOdd),
    ("HostKeyAlgorithms", Form::Algorithms, Told::WhereOdd),
    ("CASignatureAlgorithms", Form::Algorithms, Told::WhereOdd),
    ("PubkeyAcceptedAlgorithms", Form::Algorithms, Told::WhereOdd),
    // Its name before OpenSSH 8.5.
    ("PubkeyAcceptedKeyTypes", Form::Algorithms, Told::WhereOdd),
    ("HostbasedAcceptedAlgorithms", Form::Algorithms, Told::WhereOdd),
    ("RequiredRSASize", Form::Word, Told::WhereOdd),
    ("RekeyLimit", Form::Words, Told::WhereOdd),
    ("Compression", Form::Word, Told::WhereOdd),
    ("IPQoS", Form::Words, Told::WhereOdd),
    ("TCPKeepAlive", Form::Word, Told::WhereOdd),
];

impl SshOptions {
    /// Refuses what no option can be. Options may come from a run's directory, or from a program.
    pub(crate) fn check(&self) -> Result<(), Unfit> {
        if let Some(user) = &self.user {
            Word::user(user)?;
        }
        if let Some(kex) = &self.kex {
            Word::algorithms(kex)?;
        }
        if let Some(words) = &self.proxy {
            let unfit = |what| Unfit::new(what, &words.join(" "));
            proxy::fault(words).map_or(Ok(()), |fault| Err(unfit(fault)))?;
            self.jump.as_ref().map_or(Ok(()), |_| Err(unfit("proxy beside a jump host:")))?;
        }
        for (what, path) in [("config", &self.config), ("key", &self.key), ("known_hosts", &self.known_hosts)]
        {
            if let Some(path) = path {
                Word::path(what, path)?;
            }
        }
        self.jump.as_deref().map_or(Ok(()), |jump| jump_hosts(jump).map(drop))
    }
}

/// The jump hosts of a list, in the order in which they are passed.
pub(crate) fn jump_hosts(list: &str) -> Result<Vec<HostAddress>, Unfit> {
    list.split(',').map(|host| host.parse().map_err(|_| Unfit::new("jump host", host))).collect()
}

/// What `ssh -G` says about a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    options: Vec<(String, String)>,
}

impl Resolved {
    pub(crate) fn parse(output: &str) -> Self {
        // Where the user's own ssh would have its socket is never taken over, and is another place for each host.
        let options =
            output.lines().filter_map(|line| line.split_once(' ')).filter(|it| it.0 != "controlpath");
        Self { options: options.map(|(key, value)| (key.to_owned(), value.to_owned())).collect() }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.options.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The same of another host.
    pub(crate) fn renamed(&self, host: &str, host_name: &str) -> Self {
        let renamed = |(key, value): &(String, String)| {
            let value = match key.as_str() {
                "host" => host,
                "hostname" => host_name,
                _ => value,
            };
            (key.clone(), value.to_owned())
        };
        Self { options: self.options.iter().map(renamed).collect() }
    }

    fn all(&self, key: &str) -> Vec<&str> {
        self.options.iter().filter(|(name, _)| name == key).map(|(_, value)| value.as_str()).collect()
    }

    /// The jump hosts on the way, as ssh shows them.
    pub(crate) fn jumps(&self) -> Option<&str> {
        self.get("proxyjump").filter(|jumps| *jumps != "none")
    }

    /// Whether the connection goes through something else than TCP to the host itself.
    pub(crate) fn is_proxied(&self) -> bool {
        self.jumps().is_some() || self.get("proxycommand").is_some_and(|command| command != "none")
    }

    /// The files of known host keys. ssh shows them unquoted, so that only the files themselves tell which
    /// spaces are a part of a name.
    fn known_hosts(&self) -> Vec<String> {
        let home = std::env::home_dir().unwrap_or_default();
        let exists = |name: &str| match name.strip_prefix("~/") {
            Some(rest) => home.join(rest).exists(),
            None => Path::new(name).exists(),
        };
        let shown = self.get("userknownhostsfile").unwrap_or("~/.ssh/known_hosts");
        let parts: Vec<&str> = shown.split(' ').collect();
        let (mut names, mut begin) = (Vec::new(), 0);
        while begin < parts.len() {
            let longer = (begin + 1..=parts.len()).rev().find(|end| exists(&parts[begin..*end].join(" ")));
            let end = longer.unwrap_or(begin + 1);
            names.push(parts[begin..end].join(" "));
            begin = end;
        }
        names
    }
}

/// Whether a pattern with `*` and `?` fits a name, whatever their case.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut from) = (0, 0);
    // The last `*`, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(&c) if c == b'?' || c.eq_ignore_ascii_case(&name[from]) => {
                at += 1;
                from += 1;
            }
            _ => match &mut star {
                Some((star, taken)) => {
                    *taken += 1;
                    (at, from) = (*star + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == b'*')
}

/// A path as sshd_config takes it.
pub(crate) fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::process::Command;
    use tempfile::TempDir;
    use tsunami_core::{Addresses, Login, MachineId, MachineState};

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJhQ1mY0rN3Lk4T7m8O1x9vHb2cQnT6yZr0eWfXkUd5g";

    /// Texts of all kinds: any characters, those of lines and shells above all, and lines that would be
    /// options.
    pub(crate) fn hostile() -> impl Strategy<Value = String> {
        let any_text =
            prop::collection::vec(any::<char>(), 0..16).prop_map(|text| text.into_iter().collect());
        let lines = "[a-z0-9 .:%@\\\\\"'`$#=\n\r\t\x00-]{0,24}";
        let options = "[a-z0-9 ]{0,4}(\n|\r|\r\n)[ \t]*(ProxyCommand|Match exec|Include)[ =][a-z]{1,4}";
        prop_oneof![any_text, lines, options]
    }

    fn machine(address: &str, user: Option<&str>) -> Machine {
        let (id, run) = (MachineId::new("i-0abc"), "20260101-000000-aaaa".parse().unwrap());
        let mut login = Login::default().port(2222).host_key(KEY);
        login.user = user.map(str::to_owned);
        Machine::new(id, run, "node", 0, MachineState::Running)
            .addresses(Addresses::default().public(address))
            .login(login)
    }

    /// A run's configuration, and what `ssh -G` makes of it.
    struct Written {
        files: Files,
        _directory: TempDir,
    }

    impl Written {
        fn new(options: &SshOptions, entries: &[Entry], files: Files, directory: TempDir) -> Self {
            let main = main_config(options, &files, Some("^curve25519-sha256")).unwrap();
            fs::write(&files.config, main).unwrap();
            fs::write(&files.hosts, entries.iter().map(Entry::to_string).collect::<String>()).unwrap();
            Self { files, _directory: directory }
        }

        fn ask(&self, alias: &str) -> Resolved {
            let mut ssh = Command::new("ssh");
            ask(ssh.arg("-F").arg(&self.files.config).args(["-G", alias]))
        }
    }

    fn ask(ssh: &mut Command) -> Resolved {
        let output = ssh.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stderr).replace(NO_TERMINAL, ""), "");
        Resolved::parse(&String::from_utf8_lossy(&output.stdout))
    }

    const NO_TERMINAL: &str = "Pseudo-terminal will not be allocated because stdin is not a terminal.\r\n";

    fn place() -> (Files, TempDir) {
        let directory = tempfile::tempdir().unwrap();
        (Files::in_directory(directory.path()), directory)
    }

    /// What a user may have configured, and nobody but their own hosts should get.
    const EVERYTHING: &str = "Host *\n  IdentityFile ~/.ssh/mine\n  CertificateFile ~/.ssh/mine-cert.pub\n  \
         IdentityAgent /run/agent\n  PKCS11Provider /lib/token.so\n  KnownHostsCommand /bin/keys %H\n  \
         SendEnv SECRET*\n  SetEnv TOKEN=1\n  ForwardAgent yes\n  ForwardX11 yes\n  ForwardX11Trusted yes\n  \
         LocalForward 1 localhost:1\n  RemoteForward 2 localhost:2\n  DynamicForward 3\n  Tunnel yes\n  \
         RemoteCommand evil\n  PermitLocalCommand yes\n  LocalCommand evil\n  ControlMaster auto\n  \
         ControlPath ~/.ssh/ctl\n  ProxyCommand evil\n  HostName elsewhere\n  User somebody\n  \
         PasswordAuthentication yes\n  AddKeysToAgent yes\n  CanonicalizeHostname always\n  \
         GlobalKnownHostsFile /etc/keys\n  StrictHostKeyChecking no\n  HostKeyAlgorithms +ssh-rsa\n";

    #[test]
    fn a_machine_of_the_run_gets_nothing_from_the_users_configuration() {
        let (files, directory) = place();
        let theirs = directory.path().join("theirs");
        fs::write(&theirs, EVERYTHING).unwrap();
        let options = SshOptions { config: Some(theirs), ..SshOptions::default() };
        let entry = Entry::of_machine(&machine("127.0.0.1", Some("me")), &options, &files).unwrap();
        let written = Written::new(&options, &[entry], files, directory);
        let config = written.ask("node-0");
        let key = written.files.key.to_str().unwrap();
        assert_eq!(config.all("identityfile"), [key]);
        let known = written.files.known_hosts.to_str().unwrap();
        for (keyword, value) in [
            ("hostname", "127.0.0.1"),
            ("port", "2222"),
            ("user", "me"),
            ("hostkeyalias", "node-0"),
            ("identitiesonly", "yes"),
            ("identityagent", "none"),
            ("forwardagent", "no"),
            ("forwardx11", "no"),
            ("clearallforwardings", "yes"),
            ("tunnel", "false"),
            ("permitlocalcommand", "no"),
            ("controlmaster", "false"),
            ("passwordauthentication", "no"),
            ("kbdinteractiveauthentication", "no"),
            ("gssapiauthentication", "no"),
            ("hostbasedauthentication", "no"),
            ("addkeystoagent", "false"),
            ("canonicalizehostname", "false"),
            ("stricthostkeychecking", "true"),
            ("globalknownhostsfile", "/dev/null"),
            ("userknownhostsfile", known),
        ] {
            assert_eq!(config.get(keyword), Some(value), "{keyword}");
        }
        for keyword in [
            "certificatefile",
            "pkcs11provider",
            "knownhostscommand",
            "sendenv",
            "setenv",
            "localforward",
            "remoteforward",
            "dynamicforward",
            "remotecommand",
            "localcommand",
            "controlpath",
            "proxycommand",
            "proxyjump",
        ] {
            assert_eq!(config.all(keyword), Vec::<&str>::new(), "{keyword}");
        }
        let hostkeys = config.get("hostkeyalgorithms").unwrap();
        assert!(!hostkeys.split(',').any(|algorithm| algorithm == "ssh-rsa"), "{hostkeys}");
    }

    #[test]
    fn a_host_is_reached_as_the_user_reaches_it_and_no_more() {
        let (files, directory) = place();
        let at = |name: &str| directory.path().join(name);
        for name in ["known hosts", "more"] {
            fs::write(at(name), "").unwrap();
        }
        let [spaced, more] = ["known hosts", "more"].map(|name| at(name).display().to_string());
        let own = format!(
            "Host box\n  HostName fe80::1%%eth0\n  Port 2200\n  User DOM\\me\n  IdentityFile \"~/my keys/id\"\n  \
             IdentityFile ~/other\n  CertificateFile \"~/my keys/cert\"\n  HostKeyAlias db\n  \
             UserKnownHostsFile \"{spaced}\" {more}\n  Ciphers +aes128-cbc\n  MACs hmac-sha1\n  \
             KexAlgorithms +diffie-hellman-group14-sha1\n  HostKeyAlgorithms +ssh-rsa\n  AddressFamily inet6\n  \
             BindAddress ::1\n  RekeyLimit 1G 3600\n  ProxyCommand connect \"a  b\" '%h' %p \\\" $HOME | cat\n\
             {EVERYTHING}"
        );
        fs::write(at("theirs"), own).unwrap();
        let before = ask(Command::new("ssh").arg("-F").arg(at("theirs")).args(["-G", "box"]));
        let defaults = ask(Command::new("ssh").args(["-F", "none", "-G", "localhost"]));
        let options = SshOptions::default();
        let entry =
            Entry::of_host("node-0", &"box".parse().unwrap(), &before, &defaults, None, &options, &files)
                .unwrap();
        let written = Written::new(&options, &[entry], files, directory);
        let after = written.ask("node-0");
        for keyword in [
            "hostname",
            "port",
            "user",
            "identityfile",
            "certificatefile",
            "hostkeyalias",
            "identityagent",
            "pkcs11provider",
            "knownhostscommand",
            "ciphers",
            "macs",
            "kexalgorithms",
            "hostkeyalgorithms",
            "pubkeyacceptedalgorithms",
            "addressfamily",
            "bindaddress",
            "rekeylimit",
            "proxycommand",
            "passwordauthentication",
        ] {
            assert_eq!(after.all(keyword), before.all(keyword), "{keyword}");
        }
        assert_eq!(after.get("hostname"), Some("fe80::1%eth0"));
        let known = format!("{} {spaced} {more}", written.files.known_hosts.display());
        assert_eq!(after.get("userknownhostsfile"), Some(known.as_str()));
        let text = fs::read_to_string(&written.files.hosts).unwrap();
        assert!(text.contains(&format!("\"{spaced}\" {more}")), "{text}");
        for keyword in ["sendenv", "setenv", "localforward", "remotecommand", "localcommand", "controlpath"] {
            assert_eq!(after.all(keyword), Vec::<&str>::new(), "{keyword}");
        }
        for (keyword, value) in
            [("forwardagent", "no"), ("stricthostkeychecking", "true"), ("tunnel", "false")]
        {
            assert_eq!(after.get(keyword), Some(value), "{keyword}");
        }
    }

    #[test]
    fn a_host_keeps_its_name_where_ssh_would_put_it() {
        assert_eq!(put_names("a %n %k %h %% %%n %p %", "b%x", Some("k")), "a b%%x k %h %% %%n %p %");
        assert_eq!(put_names("%n %k", "box", None), "box %k");
    }

    #[test]
    fn a_host_without_configuration_is_offered_what_ssh_offers() {
        let (files, directory) = place();
        let defaults = ask(Command::new("ssh").args(["-F", "none", "-G", "localhost"]));
        let options = SshOptions::default();
        let entry = Entry::of_host(
            "node-0",
            &"localhost".parse().unwrap(),
            &defaults,
            &defaults,
            None,
            &options,
            &files,
        )
        .unwrap();
        let written = Written::new(&options, &[entry], files, directory);
        let after = written.ask("node-0");
        for keyword in ["identityfile", "identitiesonly", "ciphers", "passwordauthentication"] {
            assert_eq!(after.all(keyword), defaults.all(keyword), "{keyword}");
        }
        assert_eq!(after.get("identityagent"), Some("SSH_AUTH_SOCK"));
        assert!(after.get("kexalgorithms").unwrap().starts_with("curve25519-sha256,"));
    }

    #[test]
    fn what_is_no_address_no_user_and_no_key_is_refused_by_name() {
        let (files, options) = (place().0, SshOptions::default());
        for host in [
            "",
            "$(id)",
            "a b",
            "-oProxyCommand=x",
            "a\n  ProxyCommand evil",
            "a\"b",
            "a\\b",
            "a#b",
            "a%h",
            "1.2.3.4%eth0",
            "a;b",
            "a`id`",
            "host*",
            "a\u{85}b",
            "a\0b",
            "::1\r",
        ] {
            let refused = Entry::of_machine(&machine(host, None), &options, &files).unwrap_err();
            assert!(refused.to_string().starts_with("ssh cannot be given the host `"), "{refused}");
            assert!(!refused.to_string().contains('\n'), "{refused}");
        }
        for user in
            ["", "a b", "-x", "a\nb", "$(id)", "a$b", "a;b", "a\\", "\\a", "a@", "a\\b\\c", "a\"", "%r"]
        {
            assert!(Entry::of_machine(&machine("::1", Some(user)), &options, &files).is_err(), "{user:?}");
        }
        for user in ["root", "DOMAIN\\user", "user@corp.example", "host$", "_a.b-c+d"] {
            Entry::of_machine(&machine("::1", Some(user)), &options, &files).unwrap();
        }
        for algorithms in ["a b", "-", "+", "", "a\nb", "a\"", "a;b", ",a", "--"] {
            assert!(Word::algorithms(algorithms).is_err(), "{algorithms:?}");
        }
        let machine = machine("::1", None);
        for key in
            ["", "ssh-ed25519 AAAA", "x", &format!("{KEY}\n* {KEY}"), &format!("@cert-authority {KEY}")]
        {
            assert!(known_host(&machine, key).is_err(), "{key:?}");
        }
        assert_eq!(known_host(&machine, &format!("{KEY} a comment")).unwrap(), format!("node-0 {KEY}\n"));
        for (jump, kex, user) in
            [("a,-oX=y", "+a", "u"), ("$(id)", "+a", "u"), ("a", "a b", "u"), ("a", "a", "u\nProxyCommand x")]
        {
            let own = |text: &str| Some(text.to_owned());
            let options =
                SshOptions { jump: own(jump), kex: own(kex), user: own(user), ..SshOptions::default() };
            assert!(options.check().is_err(), "{options:?}");
        }
    }

    #[test]
    fn the_way_through_a_jump_host_leaves_nothing_to_the_shell() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let bin = at("bin");
        fs::create_dir(&bin).unwrap();
        // What is reached through the shell instead of ssh says what reached it.
        let stand_in = format!("#!/bin/sh\nprintf '%s\\n' \"$@\" > '{}'\n", at("arguments").display());
        fs::write(bin.join("ssh"), stand_in).unwrap();
        fs::set_permissions(bin.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
        let odd = at("a  b $(touch evil) `touch evil` $HOME 'x' \"y\" %h; touch evil");
        let socket = at("ctl %p & touch evil");
        let proxy = Setting::proxy(CommandLine::through(JUMP, &odd, Some(&socket)).unwrap());
        let path = std::env::var("PATH").unwrap();
        let ssh =
            std::env::split_paths(&path).map(|place| place.join("ssh")).find(|ssh| ssh.exists()).unwrap();
        let mut ssh = Command::new(ssh);
        ssh.args(["-F", "none", "-o", &proxy.to_string(), "-p", "2222", "fe80::1%eth0"]);
        ssh.env("PATH", format!("{}:{path}", bin.display())).env("SHELL", "/bin/sh");
        ssh.current_dir(directory.path()).output().unwrap();
        let arguments = fs::read_to_string(at("arguments")).unwrap();
        let expected = ["-F", odd.to_str().unwrap(), "-S", socket.to_str().unwrap()];
        let expected = [&expected[..], &["-W", "[fe80::1%eth0]:2222", JUMP]].concat();
        assert_eq!(arguments.lines().collect::<Vec<_>>(), expected);
        assert!(!at("evil").exists());
        assert!(CommandLine::through(JUMP, Path::new("a\nb"), None).is_err());
    }

    /// What ssh reads in a line, as far as it can tell a program from a word.
    fn keywords(text: &str) -> Vec<String> {
        text.split(['\n', '\r', '\u{c}', '\0'])
            .filter_map(|line| line.split_whitespace().next())
            .map(|word| word.split('=').next().unwrap_or_default().to_ascii_lowercase())
            .collect()
    }

    proptest! {
        #![proptest_config(crate::fuzz::cases(256))]

        #[test]
        fn whatever_a_machine_is_said_to_be_only_our_keywords_are_written(
            host in hostile(), user in prop::option::of(hostile()), port in any::<u16>(),
            tail in "[a-z0-9.:-]{0,12}", key in hostile(),
        ) {
            let files = Files::in_directory(Path::new("/run/x"));
            for host in [host.clone(), format!("{tail}{host}"), format!("{host}{tail}"), tail] {
                let mut machine = machine(&host, user.as_deref());
                machine.login.port = Some(port);
                if let Ok(entry) = Entry::of_machine(&machine, &SshOptions::default(), &files) {
                    let wrote = keywords(&entry.to_string());
                    let expected = ["host", "hostname", "port", "hostkeyalias", "user", "identityfile"];
                    let expected = expected.into_iter().filter(|word| *word != "user" || user.is_some());
                    prop_assert_eq!(wrote, expected.collect::<Vec<_>>());
                }
                if let Ok([host, _]) = destination(&host, port) {
                    prop_assert_eq!(keywords(&host.to_string()), ["hostname"]);
                    let shown = host.to_string();
                    let value = shown.strip_prefix("HostName ").unwrap();
                    prop_assert!(value.chars().all(|c| c.is_ascii_alphanumeric() || ".:_%-".contains(c)), "{value}");
                }
            }
            for key in [key.clone(), format!("{KEY}{key}"), format!("{KEY} {key}"), format!("{key}{KEY}")] {
                if let Ok(line) = known_host(&machine("::1", None), &key) {
                    prop_assert_eq!(line, format!("node-0 {KEY}\n"));
                }
            }
        }

        #[test]
        fn whatever_ssh_says_of_a_host_only_known_keywords_are_written(
            lines in prop::collection::vec((0..COPIED.len(), hostile()), 0..6), text in hostile(),
        ) {
            let files = Files::in_directory(Path::new("/run/x"));
            let options = lines.into_iter().map(|(index, value)| (COPIED[index].0.to_ascii_lowercase(), value));
            let resolved = Resolved { options: options.collect() };
            let parsed = Resolved::parse(&text);
            for resolved in [resolved, parsed] {
                let host = "box".parse().unwrap();
                let (options, nothing) = (SshOptions::default(), Resolved::default());
                let entry = Entry::of_host("node-0", &host, &resolved, &nothing, None, &options, &files);
                let Ok(entry) = entry else { continue };
                for keyword in keywords(&entry.to_string()) {
                    let known = COPIED.iter().any(|copied| copied.0.eq_ignore_ascii_case(&keyword));
                    let ours = ["host", "stricthostkeychecking", "userknownhostsfile", "proxycommand"];
                    prop_assert!(known || ours.contains(&keyword.as_str()), "{keyword}");
                }
            }
        }

        #[test]
        fn an_address_is_read_as_it_is_shown(text in "[-a-z@\\[\\]:.0-9$ %\\\\]{0,24}", any in hostile()) {
            for text in [text, any] {
                if let Ok(host) = text.parse::<HostAddress>() {
                    prop_assert_eq!(host.to_string().parse::<HostAddress>().unwrap(), host);
                }
            }
        }
    }

    proptest! {
        // Each asks ssh itself.
        #![proptest_config(crate::fuzz::cases(24))]

        #[test]
        fn ssh_reads_a_word_as_it_was_given(
            text in hostile(), rest in "[ -~]{0,20}", zone in "no[a-z0-9]{1,6}", user in "[a-zA-Z@.\\\\$_-]{1,10}",
        ) {
            let (files, directory) = place();
            let options = SshOptions::default();
            let values: Vec<_> = [text.clone(), rest.clone(), format!("/{rest}"), format!("{rest}{text}")]
                .into_iter()
                .filter_map(|text| Some((Word::new("path", &text).ok()?, text)))
                // Only words that ssh does not put something else in place of, or fold.
                .filter(|(_, text)| !text.contains("${") && text.trim() == text)
                .collect();
            let address = format!("fe80::1%{zone}");
            let user = Some(user).filter(|user| is_user(user));
            let mut entry = Entry::of_machine(&machine(&address, user.as_deref()), &options, &files).unwrap();
            entry.settings.retain(|setting| setting.keyword != "IdentityFile");
            let all = values.iter().map(|(word, _)| Setting::new("IdentityFile", word.clone()));
            entry.settings.extend(all);
            let written = Written::new(&options, &[entry], files, directory);
            let read = written.ask("node-0");
            prop_assert_eq!(read.get("hostname"), Some(address.as_str()));
            let mut expected: Vec<&str> = Vec::new();
            for (_, text) in &values {
                if !expected.contains(&text.as_str()) {
                    expected.push(text);
                }
            }
            if !expected.is_empty() && !expected.contains(&"none") {
                prop_assert_eq!(read.all("identityfile"), expected);
            }
            if let Some(user) = &user {
                prop_assert_eq!(read.get("user"), Some(user.as_str()));
            }
            prop_assert_eq!(read.get("proxycommand"), None);
        }
    }
}
