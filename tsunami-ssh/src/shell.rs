//! The one line that goes through a login shell, and how everything else reaches the `sh` that it starts.
//!
//! A login shell may be csh, fish, a menu, or something that runs nothing, and its start-up files may print, or put
//! another program in its place. So it is given one line only, which every shell reads alike. That starts `sh`, which
//! says so on both its outputs, and then reads one line of script from its standard input. What comes before that
//! sign is noise of the host's. On a new connection nothing is sent before the sign was seen: whatever else reads
//! standard input there, such as another shell, never gets a word of it.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::{self, Read};

use tsunami_core::{SessionError, SessionErrorKind, compact_script};

use crate::limits::LOGIN_NOISE_LIMIT;
use crate::watchdog;

/// What a login shell is given: no newline, no `!`, and nothing but plain text between single quotes.
pub(crate) const LINE: &str =
    r#"exec sh -c 'printf "\036tsunami\n"; printf "\036tsunami\n" >&2; IFS= read -r _line && eval "$_line"'"#;

/// The sign that `sh` reads its line.
const SIGN: &[u8] = b"\x1etsunami\n";

/// The beginning of each line of script: `$_n` is a line break, by which scripts of several lines become one.
const LINE_BREAK: &str = r#"_n=${IFS#??} _n=${_n%"${_n#?}"}; "#;

/// The line that runs a script of tsunami's own with arguments, which are words of shell.
pub(crate) fn script_line(script: &str, words: &[impl AsRef<[u8]>]) -> Result<Vec<u8>, SessionError> {
    let mut line = [LINE_BREAK.as_bytes(), b"set --"].concat();
    for word in words {
        line.push(b' ');
        line.extend_from_slice(word.as_ref());
    }
    line.extend_from_slice(b"; eval ");
    line.extend(one_line(compact_script(script).as_bytes())?);
    line.push(b'\n');
    Ok(line)
}

/// The line that runs a line of shell, which follows it. `dd` reads that at once, where there is one that can; `read`
/// takes a byte at a time.
pub(crate) fn long_line(line: &[u8]) -> Vec<u8> {
    let length = line.len();
    let read = format!(
        "_line=$(dd bs={length} count=1 iflag=fullblock 2>/dev/null) || IFS= read -r _line && eval \"$_line\"\n"
    );
    [LINE_BREAK.as_bytes(), read.as_bytes(), line].concat()
}

/// The line that runs a script of tsunami's own in place of this `sh`, marked as the run's, in bash if there is one:
/// bash's job control gives a command a process group of its own and leaves its interrupts alone. In the run's control
/// group, if the directory `base` names one.
pub(crate) fn supervisor_line(run: &str, base: Option<&str>, script: &str) -> Result<Vec<u8>, SessionError> {
    let mut line = LINE_BREAK.as_bytes().to_vec();
    if let Some(base) = base {
        line.extend_from_slice(watchdog::join_named_in(base).as_bytes());
        line.extend_from_slice(b"; ");
    }
    line.extend_from_slice(b"export TSUNAMI_RUN_ID=");
    line.extend(one_line(run.as_bytes())?);
    line.extend_from_slice(b"; _script=");
    line.extend(one_line(compact_script(script).as_bytes())?);
    line.extend_from_slice(
        b"; command -v bash >/dev/null 2>&1 && exec bash --norc --posix -c \"$_script\"; exec sh -c \"$_script\"\n",
    );
    Ok(line)
}

/// A mark that nobody on the machine can guess. It begins with a byte that texts don't have.
pub(crate) fn mark(nonce: u64) -> String {
    format!("\u{1e}tsunami-{nonce:016x} ")
}

/// Quotes bytes for `sh` so that they stay on one line.
pub(crate) fn one_line(text: &[u8]) -> Result<Vec<u8>, SessionError> {
    if text.contains(&0) {
        return Err(SessionError::new(SessionErrorKind::Local, "no command can be given a zero byte"));
    }
    let parts: Vec<_> = text.split(|&byte| byte == b'\n').map(quote).collect();
    Ok(parts.join(b"\"$_n\"".as_slice()))
}

/// One word for `sh`.
pub(crate) fn word(text: &OsStr) -> Result<Vec<u8>, SessionError> {
    one_line(text.as_encoded_bytes())
}

/// Quotes bytes for a shell; they hold no zero byte.
fn quote(text: &[u8]) -> Vec<u8> {
    shlex::bytes::try_quote(text).map(Cow::into_owned).unwrap_or_default()
}

/// Takes off a stream what comes before the sign.
#[derive(Debug, Default)]
pub(crate) struct Preamble {
    noise: Vec<u8>,
    over: bool,
}

impl Preamble {
    /// Returns what of these bytes comes after the sign.
    pub(crate) fn take<'a>(&mut self, bytes: &'a [u8]) -> io::Result<Cow<'a, [u8]>> {
        if self.over {
            return Ok(Cow::Borrowed(bytes));
        }
        let from = self.noise.len().saturating_sub(SIGN.len());
        self.noise.extend_from_slice(bytes);
        let sign = self.noise[from..].windows(SIGN.len()).position(|window| window == SIGN);
        if let Some(at) = sign {
            self.over = true;
            let rest = self.noise.split_off(from + at + SIGN.len());
            self.noise.truncate(from + at);
            return Ok(Cow::Owned(rest));
        }
        if self.noise.len() > LOGIN_NOISE_LIMIT {
            let limit = LOGIN_NOISE_LIMIT >> 10;
            return Err(io::Error::other(format!(
                "it prints more than {limit} KiB before it runs a command"
            )));
        }
        Ok(Cow::Borrowed(&[]))
    }

    /// Whether the sign was seen.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// What came before the sign.
    pub(crate) fn noise(&self) -> &[u8] {
        &self.noise
    }
}

/// Reads what comes after the sign.
#[derive(Debug)]
pub(crate) struct AfterPreamble<R> {
    inner: R,
    preamble: Preamble,
    /// What came along with the sign.
    rest: Vec<u8>,
}

impl<R: Read> AfterPreamble<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, preamble: Preamble::default(), rest: Vec::new() }
    }
}

impl<R: Read> Read for AfterPreamble<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.preamble.is_over() {
            let mut chunk = [0; 4096];
            let count = self.inner.read(&mut chunk)?;
            if count == 0 {
                return Ok(0);
            }
            self.rest = self.preamble.take(&chunk[..count])?.into_owned();
        }
        if self.rest.is_empty() {
            return self.inner.read(buffer);
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest.drain(..count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// Login shells that are here; `sh` and `busybox sh` always are.
    fn login_shells() -> Vec<Vec<&'static str>> {
        let known = ["sh", "bash", "dash", "csh", "tcsh", "fish", "zsh", "ksh", "mksh", "busybox"];
        let runs = |shell: &&str| Command::new(shell).arg("--help").stdin(Stdio::null()).output().is_ok();
        known
            .into_iter()
            .filter(runs)
            .map(|shell| if shell == "busybox" { vec![shell, "sh"] } else { vec![shell] })
            .collect()
    }

    fn through(shell: &[&str], stdin: &[u8]) -> (Vec<u8>, Vec<u8>) {
        // Some write their own files into it.
        let home = tempfile::tempdir().unwrap();
        let mut child = Command::new(shell[0]);
        child.args(&shell[1..]).args(["-c", LINE]).env("HOME", home.path());
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.stdout, output.stderr)
    }

    #[test]
    fn a_script_goes_unharmed_through_every_login_shell() {
        let odd = "it's\n\"odd\" $HOME !! `x` \\ \u{e9}";
        let script =
            "# not for machines\nif true; then\n    dir='a\nb'\n    printf '%s|%s|' \"$1\" \"$dir\"\nfi\ncat";
        for shell in login_shells() {
            let line = script_line(script, &[one_line(odd.as_bytes()).unwrap()]).unwrap();
            assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
            let (stdout, _) = through(&shell, &[&line, b"input".as_slice()].concat());
            let mut preamble = Preamble::default();
            let stdout = preamble.take(&stdout).unwrap();
            assert_eq!(String::from_utf8_lossy(&stdout), format!("{odd}|a\nb|input"), "{shell:?}");
        }
    }

    #[test]
    fn noise_is_told_from_what_was_asked_for_however_it_is_cut() {
        let stream = [b"Welcome!\n\x1etsu".as_slice(), SIGN, b"said \x1etsunami\n"].concat();
        for size in 1..=stream.len() {
            let (mut preamble, mut said) = (Preamble::default(), Vec::new());
            for chunk in stream.chunks(size) {
                said.extend_from_slice(&preamble.take(chunk).unwrap());
            }
            assert_eq!(
                (preamble.noise(), said.as_slice()),
                (b"Welcome!\n\x1etsu".as_slice(), b"said \x1etsunami\n".as_slice())
            );
            let mut read = Vec::new();
            AfterPreamble::new(stream.as_slice()).read_to_end(&mut read).unwrap();
            assert_eq!(read, b"said \x1etsunami\n");
        }
    }

    #[test]
    fn endless_noise_is_an_error() {
        let mut preamble = Preamble::default();
        let chunk = [b'x'; 4096];
        assert!((0..=LOGIN_NOISE_LIMIT / chunk.len()).any(|_| preamble.take(&chunk).is_err()));
        let endless = AfterPreamble::new(io::repeat(b'x')).read(&mut [0; 10]);
        assert!(endless.unwrap_err().to_string().contains("64 KiB"));
    }
}
