//! Builds the machine that tests boot: a small Debian with systemd, cloud-init and sshd.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;

use crate::setup::sudo_asks_nothing;
use crate::{Failure, Result, is_root, root, succeeds};

/// What debootstrap installs. It knows of no package's alternatives, hence python3-cffi-backend.
const PACKAGES: [&str; 14] = [
    "cloud-init",
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "linux-image-cloud-amd64",
    "netbase",
    "openssh-server",
    "python3-cffi-backend",
    "sudo",
    "systemd-sysv",
    "udev",
    "util-linux-extra",
];

const SCRIPT: &str = include_str!("guest.sh");

/// For a computer that has no Debian itself.
const SUITE: &str = "bookworm";

/// Where apt says nothing.
const MIRROR: &str = "http://deb.debian.org/debian";

/// Makes `root.img`, `vmlinuz` and `initrd.img` in `target/guest`, once for each recipe.
pub(crate) fn guest() -> Result {
    let suite = suite(&fs::read_to_string("/etc/os-release").unwrap_or_default());
    let packages = PACKAGES.join(",");
    let mut recipe = DefaultHasher::new();
    (&suite, &packages, SCRIPT).hash(&mut recipe);
    let recipe = format!("{:016x}", recipe.finish());

    let target = root().join("target");
    fs::create_dir_all(&target)?;
    let lock = File::create(target.join("guest.lock"))?;
    lock.lock()?;
    if fs::read_to_string(target.join("guest/recipe")).is_ok_and(|built| built.trim_end() == recipe) {
        eprintln!("xtask: the guest is up to date");
        return Ok(());
    }
    let prefix: &[&str] = match (is_root(), sudo_asks_nothing()) {
        (true, _) => &[],
        (false, true) => &["sudo", "-n"],
        (false, false) => {
            let message = "building a guest takes root, or sudo without a password".to_owned();
            return Err(Failure { message, status: 2 });
        }
    };
    let mirror = mirror(&apt_sources(Path::new("/etc/apt")), &suite).unwrap_or_else(|| MIRROR.to_owned());
    eprintln!("xtask: building a guest of Debian {suite}, which takes some minutes");
    // What debootstrap mounts is gone with the namespace, however that ends.
    let words = [prefix, &["unshare", "--mount", "sh"]].concat();
    let mut build = Command::new(words[0]);
    build.args(&words[1..]).arg(root().join("xtask/src/guest.sh")).arg(&target);
    build.args([&recipe, &suite, &mirror, &packages]);
    if succeeds(&mut build)? { Ok(()) } else { Err(Failure::new("the guest was not built: see above")) }
}

/// The release of Debian that is here, so that what apt has a mirror of is what the guest is made from.
fn suite(os_release: &str) -> String {
    let value = |name| {
        let mut lines = os_release.lines().filter_map(|line| line.split_once('='));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim_matches('"'))
    };
    match (value("ID"), value("VERSION_CODENAME")) {
        (Some("debian"), Some(codename)) => codename.to_owned(),
        _ => SUITE.to_owned(),
    }
}

/// All that apt's lists of sources say.
fn apt_sources(directory: &Path) -> String {
    let listed = fs::read_dir(directory.join("sources.list.d")).into_iter().flatten().flatten();
    let mut files: Vec<_> = listed.map(|entry| entry.path()).collect();
    files.push(directory.join("sources.list"));
    files.sort();
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).fold(String::new(), |all, text| {
        // An empty line ends the last stanza of a file.
        all + &text + "\n\n"
    })
}

/// Where apt has the main part of a release from; it says so in one of two formats.
fn mirror(sources: &str, suite: &str) -> Option<String> {
    let lines: Vec<&str> = sources.lines().map(str::trim).filter(|line| !line.starts_with('#')).collect();
    let one_line = lines.iter().filter_map(|line| {
        let rest = line.strip_prefix("deb ")?.trim_start();
        // Options are in brackets.
        let rest =
            rest.strip_prefix('[').and_then(|options| options.split_once(']')).map_or(rest, |(_, rest)| rest);
        let mut words = rest.split_whitespace();
        let (uri, listed) = (words.next()?, words.next()?);
        (listed == suite && words.any(|component| component == "main")).then_some(uri)
    });
    let stanzas = lines.split(|line| line.is_empty()).filter_map(|stanza| {
        let field = |name: &str| {
            let mut fields = stanza.iter().filter_map(|line| line.split_once(':'));
            let (_, value) = fields.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
            Some(value.split_whitespace().collect::<Vec<_>>())
        };
        let has = |name, word| field(name).is_some_and(|words| words.contains(&word));
        let main = has("Types", "deb") && has("Suites", suite) && has("Components", "main");
        if main { field("URIs")?.first().copied() } else { None }
    });
    let usable = |uri: &&str| ["http://", "https://", "file:/"].iter().any(|scheme| uri.starts_with(scheme));
    one_line.chain(stanzas).find(usable).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_that_apt_has_the_release_from() {
        let list = "# deb http://a.example/debian bookworm main\n\
                    deb-src http://b.example/debian bookworm main\n\
                    deb http://c.example/debian bookworm-updates main\n\
                    deb cdrom:[Debian]/ bookworm main\n\
                    deb [arch=amd64 signed-by=/a.gpg] http://d.example/debian bookworm main contrib\n";
        assert_eq!(mirror(list, "bookworm").as_deref(), Some("http://d.example/debian"));
        let stanzas = "Types: deb\n# a comment\nURIs: http://e.example/debian-security\n\
                       Suites: bookworm-security\nComponents: main\n\n\
                       Types: deb deb-src\nURIs: http://f.example/debian\nSuites: bookworm bookworm-updates\n\
                       Components: main\n";
        assert_eq!(mirror(stanzas, "bookworm").as_deref(), Some("http://f.example/debian"));
        assert_eq!(mirror(stanzas, "trixie"), None);
    }

    #[test]
    fn the_release_is_the_one_that_is_here_if_that_is_debian() {
        assert_eq!(suite("ID=debian\nVERSION_CODENAME=trixie\n"), "trixie");
        assert_eq!(suite("ID=ubuntu\nVERSION_CODENAME=noble\n"), SUITE);
    }
}
