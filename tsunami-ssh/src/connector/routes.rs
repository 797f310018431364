//! How a run's machines are reached, written down: directly, by a proxy, or through jump hosts.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::PoisonError;

use tsunami_core::{Machine, SessionError, SessionErrorKind};

use super::{RunSsh, ask_defaults};
use crate::config::{self, CommandLine, Entry, JUMP, Resolved, Setting, Unfit, jump_hosts};
use crate::hosts::HostAddress;
use crate::limits::JUMPS_LIMIT;
use crate::proxy;

impl RunSsh {
    /// Writes down how to reach a machine. Returns the address and port to probe, unless the way is not a
    /// direct one.
    pub(super) async fn route(&self, machine: &Machine) -> Result<Option<(String, u16)>, SessionError> {
        let name = machine.name();
        machine.check().map_err(|error| {
            let message = format!("{}: {error}", tsunami_core::shown(&name));
            SessionError::new(SessionErrorKind::Local, message)
        })?;
        let unfit = |error: Unfit| error.of(&name);
        if let Some(program) = self.options.proxy.as_deref().and_then(<[_]>::first) {
            let missing = |fault| SessionError::new(SessionErrorKind::Local, format!("{name}: {fault}"));
            proxy::find(program).map_err(missing)?;
        }
        if let Some(jump) = &self.options.jump {
            let write = async || self.write_jumps(jump, Some(JUMP), &mut { JUMPS_LIMIT }).await.map(drop);
            self.jump_written.get_or_try_init(write).await?;
        }
        let (entry, probe) = match &machine.login.host_key {
            Some(key) => {
                let probe = config::endpoint(machine).ok_or_else(|| {
                    SessionError::new(SessionErrorKind::Connect, format!("{name} has no address"))
                })?;
                let line = config::known_host(machine, key).map_err(unfit)?;
                self.put(&self.files.known_hosts, format!("{name} "), line);
                let entry = Entry::of_machine(machine, &self.options, &self.files);
                (entry.map_err(unfit)?, Some(probe))
            }
            None => {
                let host = HostAddress::of(&machine.login);
                let resolved =
                    self.resolver.resolve(&self.options, &host, self.options.user.as_deref(), true).await?;
                let own = config::by_proxy(&self.options, &self.files, machine.id.as_str()).map_err(unfit)?;
                let through = match (own, &self.options.jump, resolved.jumps()) {
                    (Some(proxy), ..) => Some(proxy),
                    (None, Some(_), _) => Some(self.through(JUMP).map_err(unfit)?),
                    (None, None, Some(jumps)) => {
                        let last = self.write_jumps(jumps, None, &mut { JUMPS_LIMIT }).await?;
                        Some(self.through(&last).map_err(unfit)?)
                    }
                    (None, None, None) => None,
                };
                let entry = Entry::of_host(
                    &name,
                    &host,
                    &resolved,
                    self.defaults().await?,
                    through,
                    &self.options,
                    &self.files,
                );
                let entry = entry.map_err(unfit)?;
                let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
                entries.insert(name.clone(), entry.clone());
                let host = resolved.get("hostname").unwrap_or_default().to_owned();
                let port = resolved.get("port").and_then(|port| port.parse().ok()).unwrap_or(22);
                (entry, (!resolved.is_proxied()).then_some((host, port)))
            }
        };
        self.put(&self.files.hosts, entry.head(), entry.to_string());
        self.written().await?;
        Ok(probe.filter(|_| self.options.jump.is_none() && self.options.proxy.is_none()))
    }

    /// Writes down how to reach jump hosts, the first as the user reaches it and each other one through the
    /// one before, and returns the last one's alias. At most `left` of them.
    pub(super) async fn write_jumps(
        &self,
        list: &str,
        last: Option<&str>,
        left: &mut usize,
    ) -> Result<String, SessionError> {
        let unfit = |error: Unfit| error.of(JUMP);
        let mut through: Option<String> = None;
        let hosts = jump_hosts(list).map_err(unfit)?;
        for (number, host) in (1..).zip(&hosts) {
            *left = left.checked_sub(1).ok_or_else(|| {
                let message = format!("more than {JUMPS_LIMIT} jump hosts: {}", tsunami_core::shown(list));
                SessionError::new(SessionErrorKind::Local, message)
            })?;
            // A key that was given is for hosts that were named beside it, not for what the user's ssh_config
            // names.
            let resolved = self.resolver.resolve(&self.options, host, None, last.is_some()).await?;
            if through.is_none()
                && let Some(jumps) = resolved.jumps()
            {
                through = Some(Box::pin(self.write_jumps(jumps, None, left)).await?);
            }
            let alias = match last.filter(|_| number == hosts.len()) {
                Some(alias) => alias.to_owned(),
                None => {
                    let mut hasher = DefaultHasher::new();
                    (host.to_string(), &through).hash(&mut hasher);
                    format!("{JUMP}-{:016x}", hasher.finish())
                }
            };
            let way = through.as_deref().map(|jump| self.through(jump)).transpose().map_err(unfit)?;
            let entry = Entry::of_host(
                &alias,
                host,
                &resolved,
                self.defaults().await?,
                way,
                &self.options,
                &self.files,
            );
            let entry = entry.map_err(unfit)?;
            self.put(&self.files.hosts, entry.head(), entry.to_string());
            through = Some(alias);
        }
        through.ok_or_else(|| SessionError::new(SessionErrorKind::Local, "no jump host is named"))
    }

    /// The way that leads through a jump host of the run's configuration.
    fn through(&self, jump: &str) -> Result<Setting, Unfit> {
        CommandLine::through(jump, &self.files.config, None).map(Setting::proxy)
    }

    /// What ssh does without any configuration.
    async fn defaults(&self) -> Result<&Resolved, SessionError> {
        self.defaults.get_or_try_init(ask_defaults).await.map(|known| &**known)
    }
}
