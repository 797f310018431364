//! A person's terminal on a machine: `ssh` itself, with the run's own settings.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use rustix::process::geteuid;
use tsunami_core::{Machine, compact_script};

use crate::connector::run_config;
use crate::limits::TERMINAL_LINE_BYTES;

const SCRIPT: &str = include_str!("terminal.sh");

/// The `ssh` that gives this process's terminal to a machine of a recorded run: to the login's own shell there, or to
/// what `words` name, where one word is a line for the shell and several are a program and its arguments. Whoever runs
/// it in this process's place leaves the size of the terminal and its keys to it.
///
/// It begins in the machine's working directory, with `variables` in its environment, which may be seen there in the list
/// of processes. A variable for which a command line has no room is left out. Its status is the command's, 128 and more
/// for a signal, 125 where the working directory can't be entered, and 255 where contact is lost.
///
/// Where the machines [have no terminals](lacks_terminals), it reads lines as any script does.
///
/// # Errors
///
/// If another user may have written the run's configuration, or a word has a zero byte.
pub fn terminal(
    run_directory: &Path,
    machine: &Machine,
    variables: &[(String, String)],
    words: &[OsString],
) -> io::Result<Command> {
    let config = run_config(run_directory)?;
    machine.check().map_err(io::Error::other)?;
    let mut ssh = Command::new("ssh");
    // What a connection goes through is written for this shell, whatever the user's own is.
    ssh.env("SHELL", "/bin/sh").arg("-F").arg(config);
    let is_at_terminal = io::stdin().is_terminal() && (words.is_empty() || io::stdout().is_terminal());
    if is_at_terminal && !lacks_terminals(run_directory) {
        ssh.arg("-t");
        if !words.is_empty() {
            // It would say that the connection is closed.
            ssh.args(["-o", "LogLevel=ERROR"]);
        }
    }
    ssh.arg("--").arg(machine.name()).arg(line(machine, variables, words)?);
    Ok(ssh)
}

/// Whether nobody gets a terminal on the machines of a recorded run. They are this computer's, whose terminals are not of the
/// group that sshd wants them to be, which as an ordinary user's it can't change: it ends the session of who asks for one.
pub fn lacks_terminals(run_directory: &Path) -> bool {
    let has_group = |mount: &str| mount.contains(" devpts ") && mount.contains("gid=");
    let has_none = |mounts: String| !mounts.lines().any(has_group);
    run_directory.join("local").is_dir()
        && !geteuid().is_root()
        && fs::read_to_string("/proc/self/mounts").is_ok_and(has_none)
}

/// The line for the login shell. As with commands, it holds nothing that a shell could read in its own way: all else is in
/// octal, since standard input is the terminal's.
fn line(machine: &Machine, variables: &[(String, String)], words: &[OsString]) -> io::Result<String> {
    let quoted =
        |word: &OsStr| shlex::bytes::try_quote(word.as_bytes()).map(Vec::from).map_err(io::Error::other);
    let mut script = b"set --".to_vec();
    for word in words {
        script.push(b' ');
        script.extend(quoted(word)?);
    }
    script.extend_from_slice(b"\n_directory=");
    script.extend(quoted(machine.login.directory.as_deref().unwrap_or_default().as_ref())?);
    script.extend_from_slice(format!("\n_prompt='[{}] '\n", machine.name()).as_bytes());
    script.extend_from_slice(compact_script(SCRIPT).as_bytes());
    let mut escaped = escape(&script);
    for (name, value) in variables {
        let set = [format!("export {name}=").as_bytes(), &quoted(value.as_ref())?, b"\n"].concat();
        let set = escape(&set);
        if set.len() + escaped.len() <= TERMINAL_LINE_BYTES {
            escaped.insert_str(0, &set);
        }
    }
    Ok(format!("exec sh -c 'eval \"$(printf \"{escaped}\")\"'"))
}

/// Bytes for `printf`, between quotes of any shell.
fn escape(bytes: &[u8]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b" ./_=:,".contains(&byte);
    let escape =
        |&byte: &u8| if plain(byte) { char::from(byte).to_string() } else { format!("\\{byte:03o}") };
    bytes.iter().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use tsunami_core::{Login, MachineId, MachineState, RunId};

    use super::*;

    fn machine(directory: &str) -> Machine {
        let run = RunId::generate(UNIX_EPOCH, 1);
        let machine = Machine::new(MachineId::new("m"), run, "node", 0, MachineState::Running);
        machine.login(Login::default().directory(directory))
    }

    /// bash, dash and busybox, each where it is all there is.
    #[test]
    fn a_shell_on_a_terminal_says_which_machine_it_is_after_the_users_own_files() {
        use std::io::Write;
        use std::process::Stdio;
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        std::fs::create_dir(at("work")).unwrap();
        std::fs::create_dir(at("bin")).unwrap();
        std::fs::write(at(".profile"), "MINE=mine PS1='own> '\n").unwrap();
        let facts = [("TSUNAMI_NAME".to_owned(), "node-0".to_owned())];
        for (shell, name) in [("/bin/bash", "bash"), ("/bin/dash", "dash"), ("/bin/busybox", "ash")] {
            let shell =
                [shell.to_owned(), format!("/usr{shell}")].into_iter().find(|path| Path::new(path).exists());
            let Some(shell) = shell else { continue };
            let (bin, shell_here) = (at("bin"), at("bin").join(name));
            std::os::unix::fs::symlink(shell, &shell_here).unwrap();
            let line = line(&machine("work"), &facts, &[]).unwrap();
            // What is in PATH is this shell alone, beside what the script that is tested says by path.
            let _ = std::os::unix::fs::symlink("/bin/sh", bin.join("sh"));
            let login = "cd; exec env -i SHELL=\"$0\" HOME=\"$1\" PATH=\"$2\" TERM=dumb \"$0\" -c \"$3\"";
            let words = ["sh", "-c", login].into_iter().map(str::to_owned);
            let paths = [&shell_here, home.path(), &bin].map(|path: &Path| path.to_str().unwrap().to_owned());
            let words: Vec<_> = words.chain(paths).chain([line]).collect();
            let words = shlex::try_join(words.iter().map(String::as_str)).unwrap();
            let mut script = Command::new("script");
            script.args(["-qec", &words, "/dev/null"]).env("SHELL", "/bin/sh").env("HOME", home.path());
            let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            let typed = "echo \"<$TSUNAMI_NAME $MINE ${PWD##*/} ${ENV-none}>\"; kill -9 $$\n";
            script.stdin.as_mut().unwrap().write_all(typed.as_bytes()).unwrap();
            let ended = script.wait_with_output().unwrap();
            let shown = String::from_utf8_lossy(&ended.stdout).into_owned();
            assert!(
                shown.contains("[node-0] own> ") && shown.contains("<node-0 mine work none>"),
                "{name}: {shown}"
            );
            assert_eq!(ended.status.code(), Some(137), "{name}");
        }
    }

    #[test]
    fn a_shell_without_a_terminal_reads_its_lines_and_says_nothing_of_its_own() {
        use std::io::Write;
        use std::process::Stdio;
        let home = tempfile::tempdir().unwrap();
        let line = line(&machine(""), &[], &[]).unwrap();
        for shell in ["/bin/bash", "/bin/sh"] {
            let mut command = Command::new("sh");
            command.args(["-c", &line]).env_clear().env("PATH", "/usr/bin:/bin").env("SHELL", shell);
            command
                .env("HOME", home.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut sh = command.spawn().unwrap();
            sh.stdin.take().unwrap().write_all(b"echo a\necho b; exit 7\n").unwrap();
            let ended = sh.wait_with_output().unwrap();
            assert_eq!(
                (ended.stdout.as_slice(), ended.stderr.as_slice()),
                (&b"a\nb\n"[..], &b""[..]),
                "{shell}"
            );
            assert_eq!(ended.status.code(), Some(7), "{shell}");
        }
    }

    #[test]
    fn words_and_facts_pass_unharmed_through_every_login_shell() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("it's\n$a !place");
        std::fs::create_dir(&place).unwrap();
        let machine = machine(place.to_str().unwrap());
        let odd = OsStr::from_bytes(b"it's\n\"odd\" $HOME !! `x` \\ \xff %s");
        let words = ["sh", "-c", "printf '%s|' \"$1\" \"$A\" \"$PWD\"; exit 7", "sh"].map(OsString::from);
        let words = [words.as_slice(), &[odd.to_owned()]].concat();
        let facts = [("A".to_owned(), "10.0.0.1 ::1".to_owned()), ("LONG".to_owned(), "-".repeat(1 << 17))];
        let line = line(&machine, &facts, &words).unwrap();
        for shell in [&["sh"][..], &["bash"], &["busybox", "sh"], &["csh"], &["tcsh"], &["fish"], &["zsh"]] {
            let mut command = Command::new(shell[0]);
            command.args(&shell[1..]).args(["-c", &line]).env("HOME", directory.path()).current_dir("/");
            let Ok(ended) = command.output() else { continue };
            let expected = [odd.as_bytes(), b"|10.0.0.1 ::1|", place.as_os_str().as_bytes(), b"|"].concat();
            assert_eq!(ended.stdout, expected, "{shell:?}: {}", String::from_utf8_lossy(&ended.stderr));
            assert_eq!(ended.status.code(), Some(7), "{shell:?}");
        }
    }
}
