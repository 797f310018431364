//! Builds the machines that tests boot: small Debians with systemd, cloud-init and sshd.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::setup::sudo_asks_nothing;
use crate::{Failure, Result, is_root, root, succeeds};

/// The releases of Debian that are built, each with the cloud-init of its time.
const SUITES: [&str; 2] = ["bookworm", "trixie"];

/// What is installed, beside what these need.
const PACKAGES: &str = "cloud-init,dbus,e2fsprogs,initramfs-tools,iproute2,kmod,linux-image-cloud-amd64,netbase,\
                        openssh-server,sudo,systemd-sysv,udev,util-linux-extra";

const SCRIPT: &str = include_str!("guest.sh");

/// Where apt says nothing.
const MIRROR: &str = "http://deb.debian.org/debian";

/// Makes `root.img`, `vmlinuz` and `initrd.img` of each in `target/guest/SUITE`, once for each recipe.
pub(crate) fn guests() -> Result {
    let target = root().join("target/guest");
    fs::create_dir_all(&target)?;
    let lock = File::create(target.join("lock"))?;
    lock.lock()?;
    let built = |suite: &&str| {
        let built = fs::read_to_string(target.join(suite).join("recipe"));
        built.is_ok_and(|built| built.trim_end() == recipe(suite))
    };
    let missing: Vec<&str> = SUITES.into_iter().filter(|suite| !built(suite)).collect();
    if missing.is_empty() {
        eprintln!("xtask: the guests are up to date");
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
    let sources = apt_sources(Path::new("/etc/apt"));
    eprintln!("xtask: building guests of Debian {}, which takes a minute or two", missing.join(" and "));
    let build = |suite: &str| {
        // An archive that has another release has this one as well.
        let mirror = [suite].into_iter().chain(SUITES).find_map(|suite| mirror(&sources, suite));
        // What is mounted meanwhile is gone with the namespace, however that ends.
        let words = [prefix, &["unshare", "--mount", "sh"]].concat();
        let mut build = Command::new(words[0]);
        build.args(&words[1..]).arg(root().join("xtask/src/guest.sh")).arg(target.join(suite));
        build.args([&recipe(suite), suite, mirror.as_deref().unwrap_or(MIRROR), PACKAGES]);
        succeeds(&mut build)
    };
    // Side by side: each waits for the network, and then for one processor.
    let built = thread::scope(|scope| {
        let builds: Vec<_> = missing.iter().map(|suite| scope.spawn(|| build(suite))).collect();
        let joined = builds.into_iter().map(|build| build.join().unwrap_or(Ok(false)));
        joined.collect::<Result<Vec<bool>>>()
    })?;
    match built.iter().all(|built| *built) {
        true => Ok(()),
        false => Err(Failure::new("a guest was not built: see above")),
    }
}

fn recipe(suite: &str) -> String {
    let mut recipe = DefaultHasher::new();
    (suite, PACKAGES, SCRIPT).hash(&mut recipe);
    format!("{:016x}", recipe.finish())
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
}
