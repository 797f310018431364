//! What a machine is told before it first boots: its deadline, its host key, and the user's own part.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_smithy_types::base64;

/// Runs at every boot before sshd does; fails closed.
const BOOTHOOK: &str = include_str!("boothook.sh");

/// The program that ends the machine.
const DEADLINE: &str = include_str!("deadline.sh");

/// Ends the documents in the boothook.
const END_OF_DOCUMENT: &str = "TSUNAMI";

/// The most digits of a number of seconds that `tsunami-deadline` takes.
pub(crate) const DEADLINE_DIGITS: usize = 11;

/// EC2 takes no more than this, before base64.
pub const USER_DATA_LIMIT: usize = 16 << 10;

/// The user data of a run's machines.
///
/// tsunami's part is a cloud-boothook of its own: whatever a user's cloud-config sets, it neither replaces nor
/// merges with it (a second cloud-config with `bootcmd` or `ssh_keys` would replace the first one's). It comes
/// first, runs at every boot before sshd starts, and powers the machine off if it fails.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct UserData<'a> {
    /// When the machine ends.
    pub at: SystemTime,
    /// How long it may live, in all its boots.
    pub lifetime: Duration,
    /// The private host key, as OpenSSH writes it.
    pub host_key: &'a str,
    /// The user's own part: anything that cloud-init takes, as text.
    pub own: Option<&'a str>,
}

/// User data that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidUserData {
    /// It sets the keys by which the machine is known.
    #[error(
        "the user data sets `{0}`, but the run's machines are known by a host key that tsunami makes for the run"
    )]
    HostKeys(&'static str),
    /// It leaves out the user who is to log in.
    #[error(
        "the user data has `users` without `default`: then nobody gets the key that tsunami logs in with; add \
         `- default` as the first of them"
    )]
    NoLogin,
    /// The host key has something in it that no key has.
    #[error("the host key for the machines is no private key as OpenSSH writes it")]
    HostKey,
    /// The machine would end later than any clock of its own can say.
    #[error("the machines would end too far in the future")]
    TooFar,
    /// It is more than EC2 takes.
    #[error("the user data has {0} bytes with tsunami's part of it, and EC2 takes {USER_DATA_LIMIT}")]
    TooLong(usize),
    /// It is of no kind that cloud-init knows.
    #[error(
        "cloud-init would not know what the user data is: it begins neither with `#cloud-config` nor with `#!`"
    )]
    UnknownKind,
}

impl<'a> UserData<'a> {
    /// tsunami's part alone, for a machine that ends at `at`, or once it has lived so long, whichever is first.
    pub fn new(at: SystemTime, lifetime: Duration, host_key: &'a str) -> Self {
        Self { at, lifetime, host_key, own: None }
    }

    /// Sets the user's own.
    pub fn own(mut self, own: &'a str) -> Self {
        self.own = Some(own);
        self
    }
}

impl UserData<'_> {
    /// The text for EC2, before base64.
    ///
    /// ```
    /// # use std::time::{Duration, SystemTime};
    /// use tsunami_aws::UserData;
    ///
    /// let lifetime = Duration::from_secs(3600);
    /// let own = "#cloud-config\npackages: [redis-server]\n";
    /// let key = "-----BEGIN OPENSSH PRIVATE KEY-----";
    /// let user_data = UserData::new(SystemTime::now() + lifetime, lifetime, key);
    /// assert!(user_data.own(own).compose()?.contains("packages: [redis-server]"));
    /// let keys = "#cloud-config\nssh_keys: {}\n";
    /// assert!(user_data.own(keys).compose().is_err());
    /// # Ok::<(), tsunami_aws::InvalidUserData>(())
    /// ```
    pub fn compose(&self) -> Result<String, InvalidUserData> {
        let number = |seconds: u64| {
            let digits = seconds.to_string();
            if digits.len() <= DEADLINE_DIGITS { Ok(digits) } else { Err(InvalidUserData::TooFar) }
        };
        let at = self.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let boothook = BOOTHOOK
            .replace("@TOOL@", DEADLINE.trim_end())
            .replace("@AT@", &number(at)?)
            .replace("@FOR@", &number(self.lifetime.as_secs())?)
            .replace("@HOST_KEY@", in_document(self.host_key.trim_end())?);
        let own = self.own.map(own_part).transpose()?.unwrap_or_default();
        let mut boundary = "tsunami".to_owned();
        while boothook.contains(&boundary_line(&boundary)) || own.contains(&boundary_line(&boundary)) {
            boundary.push('-');
        }
        let line = boundary_line(&boundary);
        let mut text = format!(
            "Content-Type: multipart/mixed; boundary=\"==={boundary}===\"\nMIME-Version: 1.0\n\n\
             {line}\nContent-Type: text/cloud-boothook; charset=\"utf-8\"\n\
             Content-Disposition: attachment; filename=\"tsunami-boothook.sh\"\n\n{boothook}\n"
        );
        if !own.is_empty() {
            text.push_str(&format!("{line}\n{own}\n"));
        }
        text.push_str(&format!("{line}--\n"));
        if text.len() > USER_DATA_LIMIT {
            return Err(InvalidUserData::TooLong(text.len()));
        }
        Ok(text)
    }
}

/// A key that stands in a shell's here-document, which no line of it ends.
fn in_document(key: &str) -> Result<&str, InvalidUserData> {
    let usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '-' | ' ' | '\n');
    let is_key = key.chars().all(usual) && key.lines().all(|line| line != END_OF_DOCUMENT);
    if is_key { Ok(key) } else { Err(InvalidUserData::HostKey) }
}

fn boundary_line(boundary: &str) -> String {
    format!("--==={boundary}===")
}

/// The user's part with its headers.
fn own_part(own: &str) -> Result<String, InvalidUserData> {
    const HOST_KEYS: [&str; 3] = ["ssh_keys", "ssh_deletekeys", "ssh_genkeytypes"];
    for key in HOST_KEYS {
        // A key of YAML, also within braces or quotes, wherever it stands.
        let sets = |line: &str| {
            let line = line.trim_start_matches([' ', '\t', '{', '"', '\'']);
            line.strip_prefix(key)
                .is_some_and(|rest| rest.trim_start_matches(['"', '\'', ' ']).starts_with(':'))
        };
        if own.lines().any(sets) {
            return Err(InvalidUserData::HostKeys(key));
        }
    }
    if own.starts_with("#cloud-config") && !has_default_user(own) {
        return Err(InvalidUserData::NoLogin);
    }
    if own.starts_with("Content-Type:") || own.starts_with("MIME-Version:") {
        // A multipart of the user's own is a part as it stands.
        return Ok(own.trim_end().to_owned());
    }
    if !own.starts_with('#') {
        return Err(InvalidUserData::UnknownKind);
    }
    // cloud-init finds out what it is by its first line.
    let headers = "Content-Type: text/plain; charset=\"utf-8\"\n\
                   Content-Disposition: attachment; filename=\"user-data\"\n";
    let is_text = |byte: u8| (b' '..=b'~').contains(&byte) || matches!(byte, b'\n' | b'\t');
    Ok(match own.bytes().all(is_text) {
        true => format!("{headers}\n{}", own.trim_end()),
        false => format!("{headers}Content-Transfer-Encoding: base64\n\n{}", base64::encode(own)),
    })
}

/// Whether a cloud-config leaves the image's own user, who gets the key: it names no `users`, or `default` among them.
/// What is written in another way than lists usually are is let be.
fn has_default_user(own: &str) -> bool {
    let mut lines = own.lines().skip_while(|line| !line.starts_with("users:"));
    let Some(first) = lines.next() else { return true };
    let is_default = |item: &str| {
        let item = item.split('#').next().unwrap_or_default();
        matches!(item.trim().trim_matches(['"', '\'']), "default")
    };
    let flow = first["users:".len()..].split('#').next().unwrap_or_default().trim();
    if let Some(list) = flow.strip_prefix('[') {
        return list.trim_end_matches(']').split(',').any(is_default) || !list.ends_with(']');
    }
    if !flow.is_empty() {
        return true;
    }
    // Items may stand as far left as the key itself.
    let list: Vec<&str> = lines
        .take_while(|line| line.is_empty() || line.starts_with([' ', '\t', '-', '#']))
        .map(str::trim_start)
        .collect();
    list.iter().any(|line| line.strip_prefix('-').is_some_and(is_default))
        || !list.iter().any(|line| line.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    fn compose(own: Option<&str>) -> Result<String, InvalidUserData> {
        let lifetime = Duration::from_secs(2700);
        let at = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        UserData { at, lifetime, host_key: "HOST KEY\n", own }.compose()
    }

    #[test]
    fn the_deadline_and_the_host_key_are_in_it() {
        let text = compose(None).unwrap();
        assert!(text.contains("\n1800000000 2700\n") && text.contains("\nHOST KEY\nTSUNAMI\n"), "{text}");
        assert!(!text.contains('@'), "a place was not filled: {text}");
        assert!(text.len() < 8 << 10, "{} bytes leave too little to the user", text.len());
    }

    #[test]
    fn nothing_but_a_key_and_numbers_stands_in_the_boothook() {
        let lifetime = Duration::from_secs(2700);
        let good = UserData { at: UNIX_EPOCH + lifetime, lifetime, host_key: "KEY", own: None };
        good.compose().unwrap();
        for host_key in ["KEY\nTSUNAMI\npoweroff", "TSUNAMI", "a\rb", "$(id)", "`id`", "a\u{0}", "@AT@"] {
            let composed = UserData { host_key, ..good }.compose();
            assert_eq!(composed, Err(InvalidUserData::HostKey), "{host_key:?}");
        }
        let far = UserData { lifetime: Duration::MAX, ..good };
        assert_eq!(far.compose(), Err(InvalidUserData::TooFar));
    }

    #[test]
    fn host_keys_of_the_users_own_are_refused_however_they_are_written() {
        for own in [
            "#cloud-config\nssh_keys:\n  ed25519_private: x",
            "#cloud-config\n{\"ssh_keys\": {}}",
            "#cloud-config\n  'ssh_deletekeys' : false",
        ] {
            assert!(matches!(compose(Some(own)), Err(InvalidUserData::HostKeys(_))), "{own}");
        }
        compose(Some("#cloud-config\nssh_authorized_keys: []\n# ssh_keys are not set")).unwrap();
    }

    #[test]
    fn users_without_the_one_who_logs_in_are_refused() {
        for own in [
            "users:\n  - name: me\n    groups: sudo\n",
            "packages: [x]\nusers:\n- name: default-ish\n- me\nruncmd:\n- default\n",
            "users: []\n",
            "users: [me]  # not default\n",
        ] {
            let own = format!("#cloud-config\n{own}");
            assert_eq!(compose(Some(&own)), Err(InvalidUserData::NoLogin), "{own}");
        }
        for own in [
            "users:\n  - default\n  - name: me\n",
            "users:\n- name: me\n- 'default' # the image's\n",
            "users: [default, me]\n",
            "packages: [x]\n",
        ] {
            compose(Some(&format!("#cloud-config\n{own}"))).unwrap_or_else(|error| panic!("{own}: {error}"));
        }
        compose(Some("#!/bin/sh\nusers: []\n")).unwrap();
    }

    #[test]
    fn what_the_user_brings_is_carried_beside_ours() {
        assert!(compose(Some("#!/bin/sh\necho hello")).unwrap().contains("\n\n#!/bin/sh\necho hello\n--"));
        let multipart = "Content-Type: multipart/mixed; boundary=\"x\"\n\n--x\n\n#!/bin/sh\n--x--\n";
        assert!(
            compose(Some(multipart)).unwrap().contains("\nContent-Type: multipart/mixed; boundary=\"x\"\n")
        );
        for odd in
            ["#!/bin/sh\necho ü", "#!/bin/sh\necho \u{0}", "#!/bin/sh\r\necho", "#!/bin/sh\necho \u{1b}]"]
        {
            assert!(compose(Some(odd)).unwrap().contains("base64"), "{odd:?}");
        }
        assert_eq!(compose(Some("hello")), Err(InvalidUserData::UnknownKind));
        assert!(matches!(
            compose(Some(&format!("#!{}", "x".repeat(16 << 10)))),
            Err(InvalidUserData::TooLong(_))
        ));
        // A boundary never occurs in what it bounds.
        let hostile = "#!/bin/sh\n--===tsunami===--\necho still here";
        assert!(compose(Some(hostile)).unwrap().contains("boundary=\"===tsunami-===\""));
    }

    #[test]
    fn the_pinned_key_comes_before_any_other_of_the_image() {
        let line = "HostKey /etc/ssh/tsunami_host_ed25519_key\n";
        let include = "Include /etc/ssh/sshd_config.d/*.conf\n";
        let configs = [
            (format!("# HostKey /x\n{include}HostKey /x\n"), ""),
            ("include \"/etc/ssh/sshd_config.d/*.conf\"\nPort 22\n".to_owned(), ""),
            (format!("HostKey /x\n{include}"), line),
            (format!("Match user x\n  {include}"), line),
            (format!("#{include}UsePAM yes\n"), line),
        ];
        // What it asks the machine for does nothing here, above all its end.
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        for stub in ["poweroff", "systemctl", "sync"] {
            let stub = place.path().join(stub);
            fs::write(&stub, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&stub, Permissions::from_mode(0o755)).unwrap();
        }
        let text = compose(None).unwrap().replace(DEADLINE.trim_end(), "#!/bin/sh");
        let hook = text.split("\n\n").skip(2).collect::<Vec<_>>().join("\n\n");
        let hook = hook.split("\n--===tsunami===").next().unwrap();
        for (config, before) in configs {
            let file = root.join("etc/ssh/sshd_config");
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, &config).unwrap();
            // Twice, as at every boot.
            for _ in 0..2 {
                let mut sh = Command::new("sh");
                sh.env("PATH", format!("{}:/usr/bin:/bin", place.path().display())).env("DESTDIR", &root);
                let done = sh.args(["-c", hook]).output().unwrap();
                assert!(done.status.success(), "{config}: {}", String::from_utf8_lossy(&done.stderr));
                assert_eq!(fs::read_to_string(&file).unwrap(), format!("{before}{config}"));
            }
        }
    }
}
