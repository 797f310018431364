//! What a provider must keep where it is used from experiment files.

use crate::experiment::{Experiment, Loader, Problems};
use crate::registry::{Form, Key, Registration, Registry};

/// A value that no key takes: whoever reads the key notes it.
const OF_NO_TYPE: &str = "1979-05-27";

/// Every key of the provider is read where it may stand, as its form says, and so is all that its value is made of: what
/// is wrong there is noted, once. A key that is accepted and forgotten would change nothing, and nobody would know.
pub fn every_key_is_read(registry: &Registry, provider: &str, _: &str) {
    let registration = find(registry, provider);
    for key in registration.keys() {
        is_read(registry, provider, key, &format!("[{provider}]\n"), "[group.a]\n");
    }
    for key in registration.keys().iter().chain(registration.group_keys()) {
        is_read(registry, provider, key, "[group.a]\n", "");
    }
}

/// The same for the keys of what makes connectors, where the registry has that.
pub fn every_key_of_connections_is_read(registry: &Registry, provider: &str, _: &str) {
    let Some(maker) = registry.connector_maker() else { return };
    let schema = Experiment::schema(registry);
    for key in maker.keys() {
        assert!(schema["properties"][maker.name()]["properties"].get(key.name).is_some(), "{key:?}");
        is_read(registry, provider, key, &format!("[{}]\n", maker.name()), "[group.a]\n");
    }
}

/// Checks that a key is read that stands between these.
fn is_read(registry: &Registry, provider: &str, key: &Key, before: &str, after: &str) {
    for WrongValue { whole, part } in wrong_values(&key.form) {
        let name = key.name;
        let text = format!("name = 'x'\nprovider = '{provider}'\n{before}{name} = {whole}\n{after}");
        is_noted(registry, &text, &part);
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

/// A value that is wrong in one place: the whole of it as a file has it, and what is wrong in it.
struct WrongValue {
    whole: String,
    part: String,
}

/// Wrong values of a form: of another type, out of its bounds, and the same for each part that it may have.
fn wrong_values(form: &Form) -> Vec<WrongValue> {
    let within = |form: &Form, put: &dyn Fn(String) -> String| -> Vec<WrongValue> {
        let parts = wrong_values(form).into_iter();
        parts.map(|WrongValue { whole, part }| WrongValue { whole: put(whole), part }).collect()
    };
    let whole = |part: &str| WrongValue { whole: part.to_owned(), part: part.to_owned() };
    let mut values = vec![whole(OF_NO_TYPE)];
    match form {
        Form::Table(keys) => values.extend(
            keys.iter().flat_map(|key| within(&key.form, &|value| format!("{{ {} = {value} }}", key.name))),
        ),
        Form::Map(form) => values.extend(within(form, &|value| format!("{{ own = {value} }}"))),
        Form::List(form) | Form::OneOrMore(form) => {
            values.extend(within(form, &|value| format!("[{value}]")))
        }
        // What is wrong for one of them may be right for another.
        Form::Either(_) => {}
        Form::Integer(least, most) => {
            values.extend(least.checked_sub(1).map(|less| whole(&less.to_string())));
            values.push(whole(&(u64::from(*most) + 1).to_string()));
        }
        Form::Number => values.push(whole("-1")),
        Form::Duration => values.push(whole("'0s'")),
        Form::Size => values.push(whole("'0GiB'")),
        Form::Choice(_) => values.push(whole("'none of them'")),
        Form::Text | Form::Scalar | Form::Template | Form::Path | Form::Boolean => {}
    }
    values
}

/// Checks that what is wrong in a file, where it stands last, is noted once at its place.
fn is_noted(registry: &Registry, text: &str, wrong: &str) {
    let before = text.rfind(wrong).map_or(text, |at| &text[..at]);
    let line = before.rsplit('\n').next().unwrap_or_default();
    let place = (before.matches('\n').count() + 1, line.chars().count() + 1);
    let Err(problems) = load(registry, text) else { panic!("nothing is noted of\n{text}") };
    let there = problems.iter().filter(|problem| problems.place(problem) == Some(place));
    assert_eq!(there.count(), 1, "{wrong} is to be noted once of\n{text}\n{problems}");
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
    const PORTS: Form = Form::List(&Form::PORT);

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
                let _ = match self.0 {
                    "bounds" => size.and_then(|value| values.text(value)).map(drop),
                    _ => size.and_then(|value| values.size(value)).map(drop),
                };
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
        for forgotten in ["disk", "size", "bounds", "ports", "port", "user"] {
            assert!(!keeps(forgotten), "{forgotten}");
        }
    }
}
