//! A command of the user's that leads to machines, as [`SshOptions::proxy`](crate::SshOptions::proxy) has it.
//!
//! ssh has a shell run what a connection goes through: that of the user, which may be any, and ssh itself puts things in
//! place of `%`. So the words of the command stand in neither's language: they are in a file of the run, a script for
//! `/bin/sh` that is told the machine by its arguments, and that the program takes the place of.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};
use tsunami_core::Backoff;

/// The pauses between two attempts: each takes a process, which may be a slow one.
pub(crate) const PAUSES: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));

/// What the words may hold, and the argument of the script that it is.
const PLACES: [(&str, &str); 3] = [("{host}", "\"$1\""), ("{port}", "\"$2\""), ("{id}", "\"$3\"")];

/// Linux reads no more of a script's first line.
const INTERPRETER_LIMIT: u64 = 256;

/// What is the matter with words that lead to no machine.
pub(crate) fn fault(words: &[String]) -> Option<&'static str> {
    let holds = |word: &String, place: &str| word.contains(place);
    let Some(program) = words.first() else {
        return Some("proxy without a program");
    };
    let is_no_program = |program: &String| {
        program.is_empty()
            || program.starts_with('-')
            || PLACES.iter().any(|(place, _)| holds(program, place))
    };
    if is_no_program(program) {
        Some("proxy that does not begin with a program:")
    } else if words.iter().any(|word| word.contains('\0')) {
        Some("proxy with a zero byte:")
    } else if !words.iter().any(|word| holds(word, "{host}") || holds(word, "{id}")) {
        Some("proxy that names neither {host} nor {id}, and leads all machines to one place:")
    } else {
        None
    }
}

/// Whether the machine's id is one of the words.
pub(crate) fn names_id(words: &[String]) -> bool {
    words.iter().any(|word| word.contains("{id}"))
}

/// What a word holds in braces that stands for nothing, if anything does. What a shell has in braces is its own.
#[cfg(feature = "experiment")]
pub(crate) fn unknown_place(word: &str) -> Option<&str> {
    let starts = word.match_indices('{').map(|(at, _)| at).filter(|at| !word[..*at].ends_with('$'));
    let mut places = starts.filter_map(|at| Some(&word[at..=at + word[at..].find('}')?]));
    places.find(|place| {
        let name = &place[1..place.len() - 1];
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        is_name && PLACES.iter().all(|(known, _)| known != place)
    })
}

/// Fails, saying so, if there is no such program, in a directory of `PATH` unless it is a path, or a script whose
/// interpreter isn't there.
pub(crate) fn find(program: &str) -> Result<(), String> {
    let shown = tsunami_core::shown(program);
    let found = match program.contains('/') {
        false => in_path(program).ok_or_else(|| format!("the proxy `{shown}` is in no directory of PATH"))?,
        true if runs(program.as_ref()) => program.into(),
        true if Path::new(program).is_file() => {
            return Err(format!("the proxy `{shown}` is not a program: it may not be executed (`chmod +x`)"));
        }
        true => return Err(format!("the proxy `{shown}` is not a program")),
    };
    match missing_interpreter(&found) {
        None => Ok(()),
        Some(missing) => Err(format!(
            "the proxy `{shown}` can't be run: its first line names `{}`, which is no program",
            missing.escape_debug()
        )),
    }
}

fn runs(path: &Path) -> bool {
    path.is_file() && access(path, Access::EXEC_OK).is_ok()
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| runs(path))
}

/// What is to read a script, by its first line, if that isn't there.
fn missing_interpreter(script: &Path) -> Option<String> {
    let mut start = Vec::new();
    // What may be executed and not read is no script.
    File::open(script).ok()?.take(INTERPRETER_LIMIT).read_to_end(&mut start).ok()?;
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty());
    let interpreter = words.next().unwrap_or_default();
    if !runs(interpreter.as_ref()) {
        return Some(interpreter.to_owned());
    }
    let is_name = |word: &&str| !word.starts_with('-') && !word.contains(['=', '/']);
    let named = words.next().filter(|word| interpreter.ends_with("/env") && is_name(word))?;
    in_path(named).is_none().then(|| named.to_owned())
}

/// The script that leads to the host `$1` at the port `$2`, whose id is `$3`.
pub(crate) fn script(words: &[String]) -> String {
    let mut script = "# Made by tsunami for one run: leads to the host $1, port $2, id $3.\nexec".to_owned();
    for word in words {
        let mut quoted = format!("'{}'", word.replace('\'', "'\\''"));
        for (place, argument) in PLACES {
            quoted = quoted.replace(place, &format!("'{argument}'"));
        }
        script.push(' ');
        script.push_str(&quoted);
    }
    script.push('\n');
    script
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Entry, Files, SshOptions};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};
    use tsunami_core::{Addresses, Login, Machine, MachineId, MachineState};

    /// Whatever the user's shell is: `ssh -F` has it run what leads to a machine.
    #[test]
    fn every_word_reaches_the_program_as_it_stands_whatever_shell_is_on_the_way() {
        let directory = tempfile::Builder::new().prefix("it's a ").tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let program = at("program");
        fs::write(&program, "#!/bin/sh\nprintf '%s\\0' \"$@\" > \"$0.said\"\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let odd = [
            "",
            "it's",
            "a  b",
            "$(touch evil) `touch evil` $HOME",
            "\"",
            "\\",
            "a\nb",
            "!!",
            "%h %p %%",
            "*",
            "; touch evil",
            "{host}:{port}/{id}'{host}'",
            "{other} {{host}}",
            "-x",
            "é",
        ];
        let words = [program.to_str().unwrap()].into_iter().chain(odd);
        let options = SshOptions::default().proxy(words);
        options.check().unwrap();
        let files = Files::in_directory(directory.path());
        let run = "20260101-000000-aaaa".parse().unwrap();
        let machine = Machine::new(MachineId::new("i-0abc"), run, "node", 0, MachineState::Running)
            .addresses(Addresses::default().private("fe80::1%eth0"))
            .login(Login::default().port(2222).host_key(
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJhQ1mY0rN3Lk4T7m8O1x9vHb2cQnT6yZr0eWfXkUd5g",
            ));
        let entry = Entry::of_machine(&machine, &options, &files).unwrap();
        fs::write(&files.proxy, script(options.proxy.as_deref().unwrap())).unwrap();
        fs::write(&files.config, config::main_config(&options, &files, None).unwrap()).unwrap();
        fs::write(&files.hosts, entry.to_string()).unwrap();
        let expected = odd.map(|word| match word {
            "{host}:{port}/{id}'{host}'" => "fe80::1%eth0:2222/i-0abc'fe80::1%eth0'",
            "{other} {{host}}" => "{other} {fe80::1%eth0}",
            word => word,
        });
        let said = at("program.said");
        let shells = ["/bin/sh", "dash", "bash", "tcsh", "fish", "zsh"].map(|shell| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).map(|place| place.join(shell)).find(|shell| shell.exists())
        });
        for shell in shells.into_iter().flatten() {
            let mut ssh = Command::new("ssh");
            ssh.arg("-F").arg(&files.config).arg("node-0").env("SHELL", &shell).stdin(Stdio::null());
            let output = ssh.current_dir(directory.path()).output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            let heard = fs::read_to_string(&said).unwrap_or_else(|_| panic!("{}: {told}", shell.display()));
            let heard: Vec<_> = heard.split_terminator('\0').collect();
            assert_eq!(heard, expected, "{}", shell.display());
            fs::remove_file(&said).unwrap();
        }
        assert!(!at("evil").exists());
    }

    #[test]
    fn words_that_lead_to_no_machine_are_refused() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(fault(&words(&["nc", "{host}", "22"])), None);
        assert_eq!(fault(&words(&["aws", "--target={id}"])), None);
        for odd in [
            &[][..],
            &["", "{host}"],
            &["-x", "{host}"],
            &["{host}"],
            &["nc", "{port}"],
            &["nc", "{host}", "a\0b"],
        ] {
            assert!(fault(&words(odd)).is_some(), "{odd:?}");
            assert!(SshOptions::default().proxy(odd.iter().copied()).check().is_err());
        }
        assert!(SshOptions::default().proxy(["nc", "{host}"]).jump("bastion").check().is_err());
        assert!(find("sh").is_ok() && find("/bin/sh").is_ok());
        for missing in ["no-such-program", "/etc/passwd", "/etc", "./no/such"] {
            assert!(find(missing).is_err(), "{missing}");
        }
    }

    #[test]
    fn a_script_that_nobody_can_read_or_that_may_not_be_executed_is_found_before_it_is_needed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("proxy");
        let says = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            find(path.to_str().unwrap())
        };
        for good in
            ["#!/bin/sh\n", "#! /bin/sh -e\n", "#!/usr/bin/env sh\n", "#!/usr/bin/env -S sh -e\n", "true\n"]
        {
            assert_eq!(says(good, 0o755), Ok(()), "{good}");
        }
        for (bad, named) in [
            ("#!/no/such\n", "`/no/such`"),
            ("#!/bin/sh\r\n", "`/bin/sh\\r`"),
            ("#!/usr/bin/env no-such-program\n", "`no-such-program`"),
            ("#!\n", "``"),
        ] {
            let said = says(bad, 0o755).unwrap_err();
            assert!(said.contains(&format!("its first line names {named}")), "{said}");
        }
        assert!(says("#!/bin/sh\n", 0o644).unwrap_err().contains("chmod +x"));
    }

    #[cfg(feature = "experiment")]
    #[test]
    fn what_stands_for_nothing_is_told_from_what_is_anothers() {
        for (word, unknown) in [
            ("{host}:{port}", None),
            ("--target={hostname}", Some("{hostname}")),
            ("{{host}}", None),
            ("{host} {user_1}", Some("{user_1}")),
            ("${HOME} {} {a b} {", None),
        ] {
            assert_eq!(unknown_place(word), unknown, "{word}");
        }
    }

    #[test]
    fn an_id_that_a_shell_might_read_is_refused_where_it_is_a_word() {
        let files = Files::in_directory("/run/x".as_ref());
        for (id, fits) in
            [("i-0abc", true), ("me@[::1]:22", true), ("a'b", false), ("a b", false), ("", false)]
        {
            let by_id = SshOptions::default().proxy(["nc", "{id}"]);
            assert_eq!(config::by_proxy(&by_id, &files, id).is_ok(), fits, "{id}");
            let by_host = SshOptions::default().proxy(["nc", "{host}"]);
            assert!(config::by_proxy(&by_host, &files, id).is_ok());
        }
    }
}
