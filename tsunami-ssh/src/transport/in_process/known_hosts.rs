//! Which host keys are known: known_hosts as OpenSSH reads it.

use data_encoding::BASE64;
use ring::hmac;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey, PublicKeyOrCertificate};

use crate::config::fits;

/// What is known about the keys of one host.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownKeys {
    trusted: Vec<PublicKey>,
    /// Trusted at the host's usual port.
    elsewhere: Vec<PublicKey>,
    revoked: Vec<PublicKey>,
    /// Who may vouch for the host's keys.
    authorities: Vec<PublicKey>,
}

/// What is to be thought of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Known,
    Unknown,
    /// Another key of its kind is known.
    Changed,
    Revoked,
    /// Somebody vouches for it who may, but not for this host, or not now.
    BadCertificate,
}

impl KnownKeys {
    /// Adds what a file says about a host under the name by which its keys are known.
    pub(super) fn add(&mut self, name: &str, text: &str) {
        for line in text.lines() {
            let line = line.trim();
            let (marker, rest) = match line.strip_prefix('@') {
                Some(rest) => match rest.split_once([' ', '\t']) {
                    Some((marker, rest)) => (Some(marker), rest.trim_start()),
                    None => continue,
                },
                None => (None, line),
            };
            let Some((hosts, key)) = rest.split_once([' ', '\t']).filter(|_| !rest.starts_with('#')) else {
                continue;
            };
            if !matches(hosts, name) {
                continue;
            }
            // Kinds of keys that are not known here name no key that could be shown.
            let mut words = key.split_ascii_whitespace();
            let (Some(kind), Some(blob)) = (words.next(), words.next()) else { continue };
            let Ok(key) = PublicKey::from_openssh(&format!("{kind} {blob}")) else { continue };
            match marker {
                None => self.trusted.push(key),
                Some("revoked") => self.revoked.push(key),
                Some("cert-authority") => self.authorities.push(key),
                Some(_) => {}
            }
        }
    }

    /// What to think of what a host shows that goes by this name for those who vouch for it. Times are in seconds since
    /// 1970.
    pub(super) fn standing(&self, shown: &PublicKeyOrCertificate, principal: &str, now: u64) -> Standing {
        let key = shown.public_key();
        let is_in =
            |key: &PublicKey, keys: &[PublicKey]| keys.iter().any(|it| it.key_data() == key.key_data());
        if is_in(&key, &self.revoked) {
            return Standing::Revoked;
        }
        if let Some(certificate) = shown.certificate() {
            let authority = PublicKey::from(certificate.signature_key().clone());
            if is_in(&authority, &self.revoked) {
                return Standing::Revoked;
            }
            if is_in(&authority, &self.authorities) {
                return match vouches(&authority, certificate, principal, now) {
                    true => Standing::Known,
                    false => Standing::BadCertificate,
                };
            }
            // Of somebody else's word only the key counts.
        }
        if is_in(&key, &self.trusted) || is_in(&key, &self.elsewhere) {
            Standing::Known
        } else if self.trusted.iter().any(|known| known.algorithm() == key.algorithm()) {
            Standing::Changed
        } else {
            Standing::Unknown
        }
    }

    /// Adds what a file says about the host at its usual port: a key that is known there is known, and another one is
    /// no changed one.
    pub(super) fn add_elsewhere(&mut self, name: &str, text: &str) {
        let mut elsewhere = Self::default();
        elsewhere.add(name, text);
        self.elsewhere.append(&mut elsewhere.trusted);
        self.revoked.append(&mut elsewhere.revoked);
    }

    /// Whether a certificate may tell that a key is the host's.
    pub(super) fn takes_certificates(&self) -> bool {
        !self.authorities.is_empty()
    }

    /// Puts the kinds of which a key is known first, so that a host with several keys shows a known one.
    pub(super) fn prefer(&self, algorithms: &mut [Algorithm]) {
        let is_known = |algorithm: &Algorithm| {
            self.trusted.iter().chain(&self.elsewhere).any(|key| match (key.algorithm(), algorithm) {
                (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
                (known, algorithm) => known == *algorithm,
            })
        };
        algorithms.sort_by_key(|algorithm| !is_known(algorithm));
    }
}

/// Whether an authority says that a key is the host's.
fn vouches(authority: &PublicKey, certificate: &Certificate, principal: &str, now: u64) -> bool {
    let is_named = |name: &String| fits(name, principal);
    certificate.cert_type().is_host()
        && certificate.critical_options().is_empty()
        && certificate.valid_principals().iter().any(is_named)
        && certificate.validate_at(now, [&authority.fingerprint(HashAlg::Sha256)]).is_ok()
}

/// The name by which the keys of a host at a port are known.
pub(super) fn name(host: &str, port: u16) -> String {
    let host = host.to_ascii_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

/// Whether the first field of a line is about a host.
fn matches(hosts: &str, name: &str) -> bool {
    if let Some(hashed) = hosts.strip_prefix("|1|") {
        return is_hash(hashed, name).unwrap_or(false);
    }
    let mut found = false;
    for pattern in hosts.split(',') {
        match pattern.strip_prefix('!') {
            Some(excluded) if fits(excluded, name) => return false,
            Some(_) => {}
            None => found |= fits(pattern, name),
        }
    }
    found
}

/// Whether `salt|hash` is made of a name.
fn is_hash(salt_and_hash: &str, name: &str) -> Option<bool> {
    let (salt, hash) = salt_and_hash.split_once('|')?;
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &BASE64.decode(salt.as_bytes()).ok()?);
    let hash = BASE64.decode(hash.as_bytes()).ok()?;
    Some(hmac::verify(&key, name.as_bytes(), &hash).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJhQ1mY0rN3Lk4T7m8O1x9vHb2cQnT6yZr0eWfXkUd5g";
    const OTHER: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN+Wjn4+4Fcvl2JlKpggT+wCRxpSvtqqpVrQrKN1/A22";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBJUXogg9hE5U7O3qm3mSoKCQ\
                         S0ewaD6PBhJDXl/GOLH9P4pFLF8nV0Lyf4FFY+tBtZ0nFHyvEHGFRBZX8SdDYFk=";

    fn known(name: &str, text: &str) -> KnownKeys {
        let mut keys = KnownKeys::default();
        keys.add(name, text);
        keys
    }

    fn key(text: &str) -> PublicKey {
        PublicKey::from_openssh(text).unwrap()
    }

    impl KnownKeys {
        fn of_key(&self, key: &PublicKey) -> Standing {
            self.standing(&key.clone().into(), "box", 1000)
        }
    }

    #[test]
    fn a_line_is_about_the_hosts_that_it_names() {
        for (hosts, name, is_known) in [
            ("box", "box", true),
            ("Box", "box", true),
            ("a,box,b", "box", true),
            ("box", "boxes", false),
            ("[box]:2222", "[box]:2222", true),
            ("[box]:2222", "box", false),
            ("[*]:2222", "[box]:2222", true),
            ("*.example.org", "a.example.org", true),
            ("*.example.org,!a.*", "a.example.org", false),
            ("!a.*,*.example.org", "b.example.org", true),
            ("b?x", "box", true),
            ("b?x", "bx", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*", "box", true),
            ("", "box", false),
            ("|1|nothing", "box", false),
            ("|1|!|!", "box", false),
        ] {
            let standing = known(name, &format!("{hosts} {KEY} comment\n")).of_key(&key(KEY));
            assert_eq!(standing == Standing::Known, is_known, "{hosts} {name}");
        }
    }

    #[test]
    fn names_that_ssh_keygen_has_hashed_are_known() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("known");
        std::fs::write(&file, format!("box {KEY}\n[box]:2222 {OTHER}\n")).unwrap();
        let hashed = Command::new("ssh-keygen").arg("-Hf").arg(&file).output().unwrap();
        assert!(hashed.status.success());
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("|1|") && !text.contains("box"));
        assert_eq!(known("box", &text).of_key(&key(KEY)), Standing::Known);
        assert_eq!(known("box", &text).of_key(&key(OTHER)), Standing::Changed);
        assert_eq!(known("[box]:2222", &text).of_key(&key(OTHER)), Standing::Known);
        assert_eq!(known("other", &text).of_key(&key(KEY)), Standing::Unknown);
    }

    #[test]
    fn a_revoked_key_is_refused_though_it_is_known() {
        let text = format!(
            "# a comment\n\nbox {KEY}\n@revoked * {KEY}\n@other box {ECDSA}\nbox\n@revoked\nbox odd odd\n"
        );
        let keys = known("box", &text);
        assert_eq!(keys.of_key(&key(KEY)), Standing::Revoked);
        assert_eq!(keys.of_key(&key(OTHER)), Standing::Changed);
        assert!(!keys.takes_certificates());
        assert!(known("box", &format!("@cert-authority * {KEY}\n")).takes_certificates());
        assert_eq!(known("box", &format!("@cert-authority * {KEY}\n")).of_key(&key(KEY)), Standing::Unknown);
    }

    #[test]
    fn a_key_of_another_kind_is_not_a_changed_one_and_known_kinds_come_first() {
        let ecdsa = key(ECDSA);
        let keys = known("box", &format!("box {ECDSA}\n"));
        assert_eq!(keys.of_key(&key(KEY)), Standing::Unknown);
        let mut algorithms = [Algorithm::Ed25519, ecdsa.algorithm(), Algorithm::Rsa { hash: None }];
        keys.prefer(&mut algorithms);
        assert_eq!(algorithms[0], ecdsa.algorithm());
    }

    #[test]
    fn a_key_at_the_usual_port_is_known_at_another_one() {
        let mut keys = known("[box]:2222", "");
        keys.add_elsewhere("box", &format!("box {KEY}\n@revoked box {ECDSA}\n"));
        assert_eq!(keys.of_key(&key(KEY)), Standing::Known);
        assert_eq!(keys.of_key(&key(OTHER)), Standing::Unknown);
        assert_eq!(keys.of_key(&key(ECDSA)), Standing::Revoked);
    }

    #[test]
    fn a_certificate_counts_for_its_host_and_its_time_if_its_authority_may_sign() {
        use russh::keys::ssh_key::certificate::{Builder, CertType};
        use russh::keys::{PrivateKey, key::safe_rng};

        let new = || PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).unwrap();
        let (authority, host) = (new(), new());
        let text = |key: &PrivateKey| key.public_key().to_openssh().unwrap();
        let signed = |kind, name: &str, option: Option<&str>| {
            let mut builder = Builder::new_with_random_nonce(
                &mut safe_rng(),
                host.public_key().key_data().clone(),
                500,
                2000,
            )
            .unwrap();
            builder.cert_type(kind).unwrap().key_id("id").unwrap();
            builder.valid_principal(name).unwrap();
            if let Some(option) = option {
                builder.critical_option(option, "").unwrap();
            }
            PublicKeyOrCertificate::from(builder.sign(&authority).unwrap())
        };
        let good = signed(CertType::Host, "box", None);
        let theirs = known("box", &format!("@cert-authority b* {}\n", text(&authority)));
        let standing = |shown: &PublicKeyOrCertificate, now| theirs.standing(shown, "box", now);
        assert_eq!(standing(&good, 1000), Standing::Known);
        assert_eq!(standing(&signed(CertType::Host, "b?x", None), 1000), Standing::Known);
        for bad in [
            signed(CertType::User, "box", None),
            signed(CertType::Host, "other", None),
            signed(CertType::Host, "box", Some("odd")),
        ] {
            assert_eq!(standing(&bad, 1000), Standing::BadCertificate);
        }
        for odd in [499, 2000] {
            assert_eq!(standing(&good, odd), Standing::BadCertificate);
        }
        assert_eq!(theirs.of_key(host.public_key()), Standing::Unknown, "nobody vouches for the key alone");
        let mut revoked = theirs.clone();
        revoked.add("box", &format!("@revoked * {}\n", text(&authority)));
        assert_eq!(revoked.standing(&good, "box", 1000), Standing::Revoked);
        // Without that authority it is a key like any other.
        let other = known("box", &format!("@cert-authority * {}\n", text(&host)));
        assert_eq!(other.standing(&good, "box", 1000), Standing::Unknown);
        let plain = known("box", &format!("box {}\n", text(&host)));
        assert_eq!(plain.standing(&good, "box", 1000), Standing::Known);
    }

    proptest! {
        #![proptest_config(crate::fuzz::cases(64))]

        #[test]
        fn whatever_stands_in_a_file_it_is_read(text in "[ @|!*?,a-c\n1=]{0,64}", name in "[a-c*?\\[\\]:1]{1,8}") {
            prop_assert_eq!(known(&name, &text).of_key(&key(KEY)), Standing::Unknown);
        }
    }
}
