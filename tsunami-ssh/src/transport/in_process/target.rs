//! What the run's ssh_config says about a connection, as a connection of this process's own understands it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use russh::keys::{Algorithm, EcdsaCurve};
use russh::{Limits, cipher, kex, mac};
use tsunami_core::{SessionError, SessionErrorKind};

use crate::config::{Setting, fits};

/// Where a connection goes, and how.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    /// `None` is whoever runs this.
    pub(super) user: Option<String>,
    /// The name by which the host's keys are known, where that is not its own.
    pub(super) key_name: Option<String>,
    /// What a shell runs to get there.
    pub(super) proxy: Option<String>,
    /// Where what it runs leaves the number of its process group, for the janitor.
    pub(super) groups: Option<PathBuf>,
    /// `None` if nobody has said which.
    pub(super) identities: Option<Vec<PathBuf>>,
    pub(super) identities_only: bool,
    pub(super) agent: Option<PathBuf>,
    pub(super) known_hosts: Vec<PathBuf>,
    pub(super) accepts_new: bool,
    pub(super) connect_timeout: Duration,
    pub(super) keepalive: Duration,
    pub(super) keepalive_limit: usize,
    pub(super) limits: Limits,
    pub(super) bind: Option<IpAddr>,
    pub(super) family: Family,
    pub(super) algorithms: Algorithms,
    /// Further ways to log in that ssh would try.
    pub(super) other_logins: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Any,
    V4,
    V6,
}

/// What is offered, most wanted first.
#[derive(Clone, Debug)]
pub(super) struct Algorithms {
    pub(super) kex: Vec<kex::Name>,
    pub(super) cipher: Vec<cipher::Name>,
    pub(super) mac: Vec<mac::Name>,
    pub(super) host_key: Vec<Algorithm>,
    /// The kinds of keys to log in with.
    pub(super) login: Vec<String>,
}

/// The best first for both sides; not sntrup761, which russh hasn't.
const KEX: [kex::Name; 9] = [
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::DH_G14_SHA256,
];

/// AES in hardware is some times as fast as anything else, for both sides.
const CIPHERS: [cipher::Name; 6] = [
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_128_CTR,
    cipher::AES_192_CTR,
    cipher::AES_256_CTR,
];

const MACS: [mac::Name; 4] = [mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM, mac::HMAC_SHA256, mac::HMAC_SHA512];

const HOST_KEYS: [Algorithm; 4] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
];

/// An agent also signs with RSA keys.
const LOGIN_KEYS: [&str; 8] = [
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-512",
    "rsa-sha2-256",
];

impl Target {
    /// Reads settings, of which the first of a kind counts. What they ask for and can't be done is an error.
    pub(super) fn of(settings: &[Setting]) -> Result<Self, SessionError> {
        let first = |keyword| settings.iter().find(|setting| setting.keyword() == keyword);
        let word = |keyword| first(keyword).and_then(|setting| setting.values().first().copied());
        let number = |keyword| word(keyword).and_then(|text| text.parse::<u64>().ok());
        let host = word("HostName").ok_or_else(|| local("no host is named"))?.replace("%%", "%");
        let port = word("Port").map_or(Ok(22), str::parse).map_err(|_| unfit("Port", word("Port")))?;
        let user = word("User").map(str::to_owned);
        let key_name = word("HostKeyAlias").map(str::to_owned);
        let tokens = Tokens {
            host: &host,
            port,
            user: user.as_deref(),
            key_name: key_name.as_deref().unwrap_or(&host),
        };
        let path = |keyword, value: &str| tokens.path(value).ok_or_else(|| unfit(keyword, Some(value)));
        let mut target = Self {
            proxy: None,
            groups: None,
            identities: None,
            identities_only: word("IdentitiesOnly") == Some("yes"),
            agent: None,
            known_hosts: Vec::new(),
            accepts_new: word("StrictHostKeyChecking") == Some("accept-new"),
            connect_timeout: Duration::from_secs(number("ConnectTimeout").unwrap_or(15)),
            keepalive: Duration::from_secs(number("ServerAliveInterval").unwrap_or(5).max(1)),
            keepalive_limit: number("ServerAliveCountMax").and_then(|it| it.try_into().ok()).unwrap_or(3),
            limits: Limits::default(),
            bind: None,
            family: Family::Any,
            algorithms: Algorithms {
                kex: KEX.to_vec(),
                cipher: CIPHERS.to_vec(),
                mac: MACS.to_vec(),
                host_key: HOST_KEYS.to_vec(),
                login: LOGIN_KEYS.map(str::to_owned).to_vec(),
            },
            other_logins: Vec::new(),
            host: host.clone(),
            port,
            user: user.clone(),
            key_name: key_name.clone(),
        };
        for (place, setting) in settings.iter().enumerate() {
            let keyword = setting.keyword();
            let is_later = settings[..place].iter().any(|earlier| earlier.keyword() == keyword);
            if is_later && keyword != "IdentityFile" {
                continue;
            }
            let values = setting.values();
            let value = values.first().copied().unwrap_or_default();
            match keyword {
                "ProxyCommand" if value == "none" => {}
                "ProxyCommand" => {
                    target.proxy = Some(tokens.put_into(value).ok_or_else(|| unfit(keyword, Some(value)))?);
                }
                "IdentityFile" if value == "none" => drop(target.identities.get_or_insert_default()),
                "IdentityFile" => target.identities.get_or_insert_default().push(path(keyword, value)?),
                "IdentityAgent" => {
                    target.agent = match value {
                        "none" => None,
                        "SSH_AUTH_SOCK" => std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from),
                        _ => match value.strip_prefix('$').filter(|name| !name.starts_with('{')) {
                            Some(name) => std::env::var_os(name).map(PathBuf::from),
                            None => Some(path(keyword, value)?),
                        },
                    };
                }
                "UserKnownHostsFile" => {
                    let files = values.iter().filter(|file| **file != "none" && **file != "/dev/null");
                    target.known_hosts = files.map(|file| path(keyword, file)).collect::<Result<_, _>>()?;
                }
                "StrictHostKeyChecking" if ["yes", "accept-new"].contains(&value) => {}
                "AddressFamily" => {
                    target.family = match value {
                        "any" => Family::Any,
                        "inet" => Family::V4,
                        "inet6" => Family::V6,
                        _ => return Err(unfit(keyword, Some(value))),
                    };
                }
                "BindAddress" => {
                    target.bind = Some(value.parse().map_err(|_| unfit(keyword, Some(value)))?);
                }
                "RekeyLimit" => {
                    target.limits = rekey_limits(&values).ok_or_else(|| unfit(keyword, Some(value)))?
                }
                "KexAlgorithms" => {
                    target.algorithms.kex = chosen(keyword, value, &target.algorithms.kex, kex_named)?
                }
                "Ciphers" => target.algorithms.cipher = chosen(keyword, value, &CIPHERS, cipher_named)?,
                "MACs" => target.algorithms.mac = chosen(keyword, value, &MACS, mac_named)?,
                "HostKeyAlgorithms" => {
                    target.algorithms.host_key = chosen(keyword, value, &HOST_KEYS, |name| {
                        HOST_KEYS.into_iter().find(|algorithm| algorithm.as_str() == name)
                    })?;
                }
                "PubkeyAcceptedAlgorithms" | "PubkeyAcceptedKeyTypes" => {
                    target.algorithms.login = chosen(keyword, value, &target.algorithms.login, |name| {
                        LOGIN_KEYS.contains(&name).then(|| name.to_owned())
                    })?;
                }
                // Bound to the host or not, it is the same to whoever holds the key.
                "PubkeyAuthentication" if ["yes", "true", "unbound", "host-bound"].contains(&value) => {}
                "PubkeyAuthentication" => return Err(not_here(keyword, value)),
                "PreferredAuthentications" if value.split(',').any(|method| method == "publickey") => {}
                // ssh goes on to these where no key lets it in.
                "GSSAPIAuthentication" | "HostbasedAuthentication" if value == "yes" => {
                    target.other_logins.push(keyword);
                }
                "HostName"
                | "Port"
                | "User"
                | "HostKeyAlias"
                | "IdentitiesOnly"
                | "ConnectTimeout"
                | "ServerAliveInterval"
                | "ServerAliveCountMax" => {}
                // Nobody is asked for a password (`BatchMode`); the rest is about what is never done here.
                "BatchMode"
                | "PasswordAuthentication"
                | "KbdInteractiveAuthentication"
                | "GlobalKnownHostsFile"
                | "UpdateHostKeys"
                | "VerifyHostKeyDNS"
                | "HashKnownHosts"
                | "CanonicalizeHostname"
                | "AddKeysToAgent"
                | "ForwardAgent"
                | "ForwardX11"
                | "ClearAllForwardings"
                | "Tunnel"
                | "PermitLocalCommand"
                | "ControlPersist"
                | "LogLevel" => {}
                // Host-based logins, authorities of hosts, and a socket option that is off as it is.
                "EnableSSHKeysign" | "HostbasedAcceptedAlgorithms" | "CASignatureAlgorithms" => {}
                "TCPKeepAlive" if value == "no" => {}
                _ if ["no", "none", "false"].contains(&value) => {}
                _ => return Err(not_here(keyword, &values.join(" "))),
            }
        }
        Ok(target)
    }

    /// The name by which the host's keys are known.
    pub(super) fn known_name(&self) -> String {
        match &self.key_name {
            Some(name) => name.to_ascii_lowercase(),
            None => super::known_hosts::name(&self.host, self.port),
        }
    }
}

/// The error of a setting that the other transport knows how to do.
pub(super) fn not_here(keyword: &str, value: &str) -> SessionError {
    local(&format!(
        "the in-process transport cannot do `{keyword} {value}`, which the host's ssh_config asks for"
    ))
    .help("the transport over OpenSSH can")
}

fn unfit(keyword: &str, value: Option<&str>) -> SessionError {
    local(&format!("the in-process transport cannot read `{keyword} {}`", value.unwrap_or_default()))
        .help("the transport over OpenSSH may")
}

fn local(message: &str) -> SessionError {
    SessionError::new(SessionErrorKind::Local, message)
}

/// What ssh puts in place of its tokens.
struct Tokens<'a> {
    host: &'a str,
    port: u16,
    user: Option<&'a str>,
    key_name: &'a str,
}

impl Tokens<'_> {
    /// `None` for a token that is not known here.
    fn put_into(&self, value: &str) -> Option<String> {
        let mut put = String::new();
        let mut rest = value.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                put.push(c);
                continue;
            }
            match rest.next()? {
                '%' => put.push('%'),
                'h' => put.push_str(self.host),
                'p' => put.push_str(&self.port.to_string()),
                'k' => put.push_str(self.key_name),
                'r' => put.push_str(self.user?),
                'd' => put.push_str(std::env::home_dir()?.to_str()?),
                'i' => put.push_str(&rustix::process::getuid().as_raw().to_string()),
                _ => return None,
            }
        }
        Some(put)
    }

    fn path(&self, value: &str) -> Option<PathBuf> {
        let mut value = Cow::Borrowed(value);
        while let Some(begin) = value.find("${") {
            let end = begin + value[begin..].find('}')?;
            let variable = std::env::var(&value[begin + 2..end]).ok()?;
            if variable.contains("${") {
                return None;
            }
            value = Cow::Owned([&value[..begin], &variable, &value[end + 1..]].concat());
        }
        let put = self.put_into(&value)?;
        match put.strip_prefix("~/") {
            Some(rest) => Some(std::env::home_dir()?.join(rest)),
            None if put.starts_with('~') => None,
            None => Some(PathBuf::from(put)),
        }
    }
}

/// A list of algorithms as ssh_config has it, applied to what is offered by default. `named` knows all that there are.
fn chosen<T: Clone + AsRef<str>>(
    keyword: &str,
    list: &str,
    default: &[T],
    named: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, SessionError> {
    let (how, names) = match list.split_at_checked(1) {
        Some((how @ ("+" | "^" | "-"), names)) => (how, names),
        _ => ("", list),
    };
    let is_in = |name: &str| names.split(',').any(|pattern| fits(pattern, name));
    let mut listed: Vec<T> = Vec::new();
    for name in names.split(',').filter_map(&named) {
        if !listed.iter().any(|it| it.as_ref() == name.as_ref()) {
            listed.push(name);
        }
    }
    let others = default.iter().filter(|it| !is_in(it.as_ref())).cloned();
    let all: Vec<T> = match how {
        "-" => others.collect(),
        "^" => listed.into_iter().chain(others).collect(),
        "+" => default
            .iter()
            .cloned()
            .chain(listed.into_iter().filter(|it| !default.iter().any(|d| d.as_ref() == it.as_ref())))
            .collect(),
        _ => listed,
    };
    if all.is_empty() { Err(not_here(keyword, list)) } else { Ok(all) }
}

fn kex_named(name: &str) -> Option<kex::Name> {
    let extra = [kex::DH_GEX_SHA256, kex::DH_G14_SHA1];
    KEX.into_iter().chain(extra).find(|kex| kex.as_ref() == name)
}

fn cipher_named(name: &str) -> Option<cipher::Name> {
    CIPHERS.into_iter().find(|cipher| cipher.as_ref() == name)
}

fn mac_named(name: &str) -> Option<mac::Name> {
    MACS.into_iter().chain([mac::HMAC_SHA1, mac::HMAC_SHA1_ETM]).find(|mac| mac.as_ref() == name)
}

/// `RekeyLimit bytes [time]`, as `ssh -G` shows it or as people write it. No more than russh allows with one key.
fn rekey_limits(values: &[&str]) -> Option<Limits> {
    const MOST: usize = 1 << 30;
    let default = Limits::default();
    let bytes = match values.first().copied()? {
        "default" | "0" => MOST,
        text => {
            let (digits, unit) = match text.strip_suffix(['K', 'k']) {
                Some(digits) => (digits, 1 << 10),
                None => match text.strip_suffix(['M', 'm']) {
                    Some(digits) => (digits, 1 << 20),
                    None => text.strip_suffix(['G', 'g']).map_or((text, 1), |digits| (digits, 1 << 30)),
                },
            };
            digits.parse::<usize>().ok()?.saturating_mul(unit).min(MOST)
        }
    };
    let time = match values.get(1).copied() {
        None | Some("none" | "0") => default.rekey_time_limit,
        Some(text) => {
            let (digits, unit) = match text.strip_suffix(['s', 'S']) {
                Some(digits) => (digits, 1),
                None => match text.strip_suffix(['m', 'M']) {
                    Some(digits) => (digits, 60),
                    None => text.strip_suffix(['h', 'H']).map_or((text, 1), |digits| (digits, 3600)),
                },
            };
            Duration::from_secs(digits.parse::<u64>().ok()?.saturating_mul(unit))
                .min(default.rekey_time_limit)
        }
    };
    Some(Limits::new(bytes, bytes, time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Word;

    fn kex(list: &str) -> Vec<String> {
        let names = chosen("KexAlgorithms", list, &KEX[..3], kex_named).unwrap_or_default();
        names.iter().map(|name| name.as_ref().to_owned()).collect()
    }

    #[test]
    fn a_list_of_algorithms_is_applied_as_ssh_applies_it() {
        let [first, second, third] = [&KEX[0], &KEX[1], &KEX[2]].map(AsRef::as_ref);
        let other = "diffie-hellman-group14-sha256";
        for (list, names) in [
            (format!("{second},unknown,{first},{second}"), vec![second, first]),
            (format!("^{third}"), vec![third, first, second]),
            (format!("^{other}"), vec![other, first, second, third]),
            (format!("+{other},{first}"), vec![first, second, third, other]),
            ("-curve25519-*".to_owned(), vec![first]),
            ("unknown".to_owned(), vec![]),
            ("-*".to_owned(), vec![]),
        ] {
            assert_eq!(kex(&list), names, "{list}");
        }
    }

    #[test]
    fn limits_are_read_as_people_and_ssh_write_them() {
        let read = |text: &str| {
            let limits = rekey_limits(&text.split(' ').collect::<Vec<_>>())?;
            Some((limits.rekey_read_limit, limits.rekey_time_limit.as_secs()))
        };
        assert_eq!(read("default none"), Some((1 << 30, 3600)));
        assert_eq!(read("0 0"), Some((1 << 30, 3600)));
        assert_eq!(read("64K"), Some((64 << 10, 3600)));
        assert_eq!(read("1048576 600"), Some((1 << 20, 600)));
        assert_eq!(read("500G 10m"), Some((1 << 30, 600)));
        for odd in ["", "much", "1K often"] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }

    #[test]
    fn tokens_are_put_in_place_and_unknown_ones_are_an_error() {
        let tokens = Tokens { host: "box", port: 2222, user: Some("me"), key_name: "key" };
        assert_eq!(tokens.put_into("nc %h %p %r %k 100%%").unwrap(), "nc box 2222 me key 100%");
        for odd in ["%", "%C", "%L"] {
            assert_eq!(tokens.put_into(odd), None, "{odd}");
        }
        let home = std::env::home_dir().unwrap();
        assert_eq!(tokens.path("~/.ssh/%h").unwrap(), home.join(".ssh/box"));
        assert_eq!(tokens.path("~other/id"), None);
        assert_eq!(tokens.path("${TSUNAMI_NO_SUCH_VARIABLE}/id"), None);
    }

    #[test]
    fn the_first_setting_of_a_kind_counts_but_all_files_of_keys_do() {
        let word = |keyword, value| Setting::new(keyword, Word::ours(value));
        let target = Target::of(&[
            word("HostName", "fe80::1%%eth0"),
            word("Port", "2222"),
            word("Port", "22"),
            word("IdentityFile", "/a%%b"),
            word("IdentityFile", "/c"),
            word("IdentityAgent", "none"),
            word("IdentityAgent", "/agent"),
        ])
        .unwrap();
        assert_eq!((target.host.as_str(), target.port), ("fe80::1%eth0", 2222));
        assert_eq!(target.identities.unwrap(), ["/a%b", "/c"].map(PathBuf::from));
        assert_eq!(target.agent, None);
    }
}
