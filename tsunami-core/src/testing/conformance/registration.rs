//! What a provider must keep where it is used from experiment files.

use crate::experiment::{Experiment, Loader, Problems};
use crate::registry::{Form, Key, Registration, Registry};

/// A value that no key takes: whoever reads the key notes it.
const WRONG: &str = "1979-05-27";

/// Every key of the provider is read where it may stand, and so is all that its value is made of: what is wrong
/// there is noted, once. A key that is accepted and forgotten would change nothing, and nobody would know.
pub fn every_key_is_read(registry: &Registry, provider: &str, group: &str) {
    let _ = group;
    let (name, registration) = (provider, find(registry, provider));
    for key in registration.keys() {
        for value in wrong_values(&key.form) {
            let head = format!("name = 'x'\nprovider = '{name}'\n");
            is_noted(registry, &format!("{head}[{name}]\n{} = {value}\n[group.a]\n", key.name));
            is_noted(registry, &format!("{head}[group.a]\n{} = {value}\n", key.name));
        }
    }
    for key in registration.group_keys() {
        for value in wrong_values(&key.form) {
            let text = format!("name = 'x'\nprovider = '{name}'\n[group.a]\n{} = {value}\n", key.name);
            is_noted(registry, &text);
        }
    }
}

/// The same for the keys of what makes connectors, where the registry has that.
pub fn every_key_of_connections_is_read(registry: &Registry, provider: &str, group: &str) {
    let _ = group;
    let Some(maker) = registry.connector_maker() else { return };
    let schema = Experiment::schema(registry);
    for Key { name, form, .. } in maker.keys() {
        assert!(schema["properties"][maker.name()]["properties"].get(name).is_some(), "{name}");
        for value in wrong_values(form) {
            let head = format!("name = 'x'\nprovider = '{provider}'\n");
            is_noted(registry, &format!("{head}[{}]\n{name} = {value}\n[group.a]\n", maker.name()));
        }
    }
}

/// A user whom a file may name is part of what is asked of the provider, wherever the file names it.
pub fn a_user_reaches_the_machines(registry: &Registry, provider: &str, group: &str) {
    if !find(registry, provider).has_users() {
        return;
    }
    const USER: &str = "user = 'somebody-else'\n";
    for (top, own) in [(USER, ""), ("", USER)] {
        let text = format!("name = 'x'\nprovider = '{provider}'\n{top}[group.a]\n{own}{group}\n");
        let experiment = load(registry, &text).unwrap_or_else(|problems| panic!("{problems}"));
        let asked = format!("{:?} {:?}", experiment.groups, experiment.settings);
        assert!(asked.contains("somebody-else"), "nobody has read `user` of\n{text}");
    }
}

fn find<'r>(registry: &'r Registry, provider: &str) -> &'r dyn Registration {
    &**registry.find(provider).unwrap_or_else(|| panic!("{provider:?} is not registered"))
}

/// Values of a form that are wrong in one place each: the whole, and each part that it may have.
fn wrong_values(form: &Form) -> Vec<String> {
    let mut values = vec![WRONG.to_owned()];
    match form {
        Form::Table(keys) => {
            for key in *keys {
                values.extend(
                    wrong_values(&key.form).iter().map(|value| format!("{{ {} = {value} }}", key.name)),
                );
            }
        }
        Form::Map(form) => {
            values.extend(wrong_values(form).iter().map(|value| format!("{{ own = {value} }}")));
        }
        Form::List(form) | Form::OneOrMore(form) => {
            values.extend(wrong_values(form).iter().map(|value| format!("[{value}]")));
        }
        Form::Either(forms) => values.extend(forms.iter().flat_map(|form| wrong_values(form).split_off(1))),
        Form::Text
        | Form::Template
        | Form::Path
        | Form::Boolean
        | Form::Integer(..)
        | Form::Number
        | Form::Duration
        | Form::Size
        | Form::Choice(_) => {}
    }
    values
}

/// Checks that the wrong value of a file is noted once, at its place.
fn is_noted(registry: &Registry, text: &str) {
    let before = text.split(WRONG).next().unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    let place = (before.matches('\n').count() + 1, line.chars().count() + 1);
    let Err(problems) = load(registry, text) else { panic!("nothing is noted of\n{text}") };
    let there = problems.iter().filter(|problem| problems.place(problem) == Some(place));
    assert_eq!(there.count(), 1, "the value is to be noted once of\n{text}\n{problems}");
}

fn load(registry: &Registry, text: &str) -> Result<Experiment, Problems> {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("x.toml");
    std::fs::write(&file, text).expect("write the file");
    Loader::new().registry(registry).load(file)
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::sync::Arc;

    use async_trait::async_trait;

    use super::*;
    use crate::registry::{Backend, ConnectRequest, GroupTable, Machines, TableReader, Values};
    use crate::{MachineSpec, ProviderError, RunRecord};

    const KEYS: &[Key] =
        &[Key::new("disk", Form::Table(DISK_KEYS), "its disk"), Key::new("ports", PORTS, "its ports")];
    const DISK_KEYS: &[Key] = &[Key::new("size", Form::Size, "how large it is")];
    const PORTS: Form = Form::List(&Form::Integer(1, 65535));

    /// A provider that may forget some of what a file says.
    #[derive(Debug, Clone, Copy)]
    struct Forgets(&'static str);

    #[async_trait]
    impl Registration for Forgets {
        fn name(&self) -> &'static str {
            "forgets"
        }

        fn keys(&self) -> &'static [Key] {
            KEYS
        }

        fn has_users(&self) -> bool {
            true
        }

        fn reader(&self) -> Box<dyn TableReader> {
            Box::new(*self)
        }

        async fn connect(&self, _: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
            unreachable!("nothing is launched")
        }

        async fn reconnect(&self, _: &RunRecord, _: &ConnectRequest<'_>) -> Result<Backend, ProviderError> {
            unreachable!("nothing is launched")
        }
    }

    impl Forgets {
        fn read(self, table: crate::registry::Table<'_>, values: &mut Values<'_, '_>) {
            let get = |key: &str| table.get(key).filter(|_| self.0 != key);
            if let Some(disk) = get("disk").and_then(|value| values.table(value)) {
                let size = disk.get("size").filter(|_| self.0 != "size");
                size.and_then(|value| values.text(value));
            }
            for port in get("ports").and_then(|value| values.list(value)).unwrap_or_default() {
                let _ = (self.0 != "port").then(|| values.port(port));
            }
        }
    }

    impl TableReader for Forgets {
        fn all(&mut self, table: crate::registry::Table<'_>, values: &mut Values<'_, '_>) {
            self.read(table, values);
        }

        fn group(&mut self, group: &GroupTable<'_>, values: &mut Values<'_, '_>) -> Option<Machines> {
            self.read(group.table, values);
            let user = group.common.user.clone().filter(|_| self.0 != "user");
            Some(Machines::of(MachineSpec::new(user)))
        }
    }

    #[test]
    fn what_a_reader_forgets_is_found_also_within_a_value() {
        let keeps = |forgotten| {
            let kept = catch_unwind(|| {
                let registry = Registry::new().with(Arc::new(Forgets(forgotten)));
                every_key_is_read(&registry, "forgets", "");
                a_user_reaches_the_machines(&registry, "forgets", "");
            });
            kept.is_ok()
        };
        assert!(keeps(""));
        for forgotten in ["disk", "size", "ports", "port", "user"] {
            assert!(!keeps(forgotten), "{forgotten}");
        }
    }
}
