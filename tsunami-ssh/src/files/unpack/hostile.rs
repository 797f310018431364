//! Archives that no honest machine sends.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use proptest::prelude::*;
use tar::{EntryType, Header};
use tempfile::TempDir;

use super::*;
use crate::fuzz::cases;
use crate::limits::{ARCHIVE_EXTENSION_LIMIT, PATH_DEPTH_LIMIT};

/// An archive as it is put together.
#[derive(Default)]
struct Sent(Vec<u8>);

impl Sent {
    fn entry(
        mut self,
        kind: EntryType,
        name: impl AsRef<[u8]>,
        link: impl AsRef<[u8]>,
        content: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        self.push(&mut header, kind, name.as_ref(), link.as_ref(), content);
        self
    }

    fn file(self, name: impl AsRef<[u8]>, content: &str) -> Self {
        self.entry(EntryType::Regular, name, "", content.as_bytes())
    }

    fn directory(self, name: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Directory, name, "", b"")
    }

    fn link(self, name: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Symlink, name, to, b"")
    }

    fn hard_link(self, name: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Link, name, to, b"")
    }

    /// Writes names as they are; the builder of the `tar` crate refuses what a hostile machine sends.
    fn push(&mut self, header: &mut Header, kind: EntryType, name: &[u8], link: &[u8], content: &[u8]) {
        for (text, long) in [(name, EntryType::GNULongName), (link, EntryType::GNULongLink)] {
            if text.len() > 100 {
                self.push(&mut Header::new_gnu(), long, b"././@LongLink", b"", text);
            }
        }
        header.as_old_mut().name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        header.as_old_mut().linkname[..link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    /// The whole stream, with its end mark.
    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A directory to unpack in, beside files that are nobody else's business.
struct Place {
    root: TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("canary/deep")).unwrap();
        fs::write(root.path().join("canary/key"), "private").unwrap();
        fs::write(root.path().join("canary/deep/key"), "private").unwrap();
        fs::write(root.path().join("key"), "private").unwrap();
        fs::create_dir(root.path().join("in")).unwrap();
        let before = outside(root.path());
        Self { root, before }
    }

    fn inside(&self) -> PathBuf {
        self.root.path().join("in")
    }

    fn unpack(&self, patterns: &[&str], archive: &[u8]) -> Unpacked {
        let unpacked = receive(archive, &self.inside(), patterns);
        self.check();
        unpacked
    }

    /// Whatever was sent: nothing outside has changed, nothing inside leads there, and nothing has a mode to fear.
    fn check(&self) {
        assert_eq!(outside(self.root.path()), self.before);
        let into = self.inside().canonicalize().unwrap();
        for path in walk(&into) {
            let metadata = path.symlink_metadata().unwrap();
            if metadata.is_symlink() {
                if let Ok(led) = path.canonicalize() {
                    assert!(led.starts_with(&into), "{} leads to {}", path.display(), led.display());
                }
            } else {
                assert_eq!(metadata.mode() & 0o7022, 0, "{} has mode {:o}", path.display(), metadata.mode());
                assert!(!metadata.is_file() || metadata.nlink() <= 64, "{}", path.display());
                assert!(!metadata.file_type().is_fifo() && !metadata.file_type().is_socket());
            }
            let name = path.file_name().unwrap().to_string_lossy();
            assert!(!name.starts_with(".tsunami-part-"), "{name} stayed");
        }
    }

    /// A file that was there before.
    fn write(&self, name: &str, content: &str) {
        let path = self.inside().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.inside().join(name)).ok()
    }
}

fn receive(from: impl Read, into: &Path, patterns: &[&str]) -> Unpacked {
    let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
    unpack(from, into, &patterns, || false)
}

/// All paths below a directory; links are not followed.
fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            paths.extend(walk(&entry.path()));
        }
        paths.push(entry.path());
    }
    paths
}

/// What is beside the directory `in`: every path with its content, mode and number of links.
fn outside(root: &Path) -> BTreeMap<PathBuf, String> {
    let is_inside = |path: &PathBuf| path.starts_with(root.join("in"));
    let seen = |path: PathBuf| {
        let metadata = path.symlink_metadata().unwrap();
        let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
        let content = fs::read_to_string(&path).unwrap_or_default();
        (path, format!("{:o} {links} {content}", metadata.permissions().mode()))
    };
    walk(root).into_iter().filter(|path| !is_inside(path)).map(seen).collect()
}

fn whole(unpacked: &Unpacked) {
    assert!(unpacked.left_out.is_empty() && unpacked.broken_off.is_none(), "{unpacked:?}");
}

/// Asserts that one file was left out, and why; and that the file after it came home.
fn left_out(place: &Place, unpacked: &Unpacked, why: &str) {
    assert!(unpacked.broken_off.is_none(), "{unpacked:?}");
    assert_eq!(unpacked.left_out.count, 1, "{}", unpacked.left_out);
    assert!(unpacked.left_out.to_string().contains(why), "{}", unpacked.left_out);
    assert_eq!(place.read("later").as_deref(), Some("came"));
}

#[test]
fn names_that_lead_out_are_left_out_and_the_rest_comes() {
    for name in ["/tmp/evil", "../evil", "a/../../evil", "..", "a/.."] {
        let place = Place::new();
        let sent = Sent::default().file(name, "evil").file("later", "came").end();
        left_out(&place, &place.unpack(&["."], &sent), "leads out of the directory");
    }
}

#[test]
fn links_that_lead_out_are_left_out_and_the_rest_comes() {
    for (name, to) in [
        ("link", "/etc/passwd"),
        ("link", "../key"),
        ("a/link", "../../key"),
        ("a/link", "b/../../../key"),
        ("a/link", ""),
    ] {
        let place = Place::new();
        let sent = Sent::default().file("a/b/c", "").link(name, to).file("later", "came").end();
        left_out(&place, &place.unpack(&["."], &sent), &format!("`{name}`: a link to `{to}`"));
    }
}

/// Each of the paths is harmless by itself, and as text.
#[test]
fn a_link_that_leads_out_by_way_of_another_is_left_out() {
    let place = Place::new();
    let sent = Sent::default().directory("a/b").link("a/b/up", "..").link("x", "a/b/up/../../key");
    left_out(&place, &place.unpack(&["."], &sent.file("later", "came").end()), "`x`");

    // By way of one that the user has had there.
    let place = Place::new();
    symlink(place.root.path(), place.inside().join("mine")).unwrap();
    let sent = Sent::default().link("x", "mine/key").file("later", "came").end();
    let patterns = ["x", "later", "mine"];
    left_out(&place, &receive(&*sent, &place.inside(), &patterns), "`x`: a link to `mine/key`");
    assert!(place.inside().join("x").symlink_metadata().is_err());

    // By way of one that a later archive puts into its way.
    let place = Place::new();
    place.write("key", "the user's");
    let sent = Sent::default().directory("out/d/e").link("out/b", "d/e").link("out/x", "b/../key");
    place.unpack(&["out"], &sent.file("out/y", "").end());
    place.unpack(&["out"], &Sent::default().link("out/b", ".").end());
    assert_eq!(place.read("out/x"), None);
}

#[test]
fn links_that_stay_inside_are_kept() {
    let place = Place::new();
    let sent = Sent::default()
        .link("out/latest", "v1")
        .link("out/v1/log", "../logs/a.log")
        .link("out/lock", "user@host.12")
        .file("out/v1/data", "1")
        .file("out/logs/a.log", "2")
        .hard_link("out/again", "out/latest");
    whole(&place.unpack(&["out"], &sent.end()));
    assert_eq!(place.read("out/latest/log").as_deref(), Some("2"));
    assert_eq!(place.read("out/again/data").as_deref(), Some("1"));
    assert!(place.inside().join("out/lock").is_symlink());
}

/// What a machine prepares for after the end of its archive does not hold up whoever goes away.
#[test]
fn links_are_not_followed_for_nobody() {
    let place = Place::new();
    let sent = Sent::default().link("x", "y").file("y", "1").end();
    let asked = Cell::new(0);
    let given_up = || asked.replace(asked.get() + 1) > 0;
    unpack(sent.as_slice(), &place.inside(), &["*".to_owned()], given_up);
    assert!(asked.get() > 1 && place.inside().join("x").symlink_metadata().is_err());
    assert_eq!(place.read("y").as_deref(), Some("1"));
}

#[test]
fn links_without_number_are_left_out() {
    let place = Place::new();
    let target = "t/".repeat(2000);
    let links = (0..6000).map(|n| format!("out/{n}"));
    let sent = links.fold(Sent::default(), |sent, name| sent.link(name, &target)).file("later", "came").end();
    let unpacked = place.unpack(&["out", "later"], &sent);
    assert!(unpacked.left_out.to_string().contains("too many links"), "{}", unpacked.left_out);
    assert!((1000..5000).contains(&unpacked.left_out.count), "{}", unpacked.left_out.count);
    assert_eq!(place.read("later").as_deref(), Some("came"));
}

/// First a link, then a directory in its place, in one archive and in two; and the other way round.
#[test]
fn nothing_is_written_through_a_link() {
    for to in ["../canary", "/tmp", "other"] {
        let link = || Sent::default().link("out", to);
        let directory = |sent: Sent| sent.directory("out").file("out/key", "evil");
        let place = Place::new();
        place.unpack(&["out", "other"], &directory(link()).end());
        place.unpack(&["out", "other"], &link().end());
        place.unpack(&["out", "other"], &directory(Sent::default()).end());
        let place = Place::new();
        place.unpack(&["out", "other"], &directory(Sent::default()).link("out", to).end());
        assert_eq!(place.read("out/key").as_deref(), Some("evil"));
    }
    // By steps that each stay inside, until they are where they were sent to.
    let place = Place::new();
    let steps =
        Sent::default().directory("d").link("d/u", "..").link("d/v", "u/..").link("out", "d/v/canary");
    place.unpack(&["."], &steps.end());
    place.unpack(&["."], &Sent::default().directory("out").file("out/key", "evil").end());
    // Neither through one that is the user's own, except for the destination itself.
    let place = Place::new();
    symlink(place.root.path().join("canary"), place.inside().join("out")).unwrap();
    let sent = Sent::default().file("out/key", "evil").file("out", "file").file("later", "came").end();
    left_out(&place, &receive(&*sent, &place.inside(), &["*"]), "`out` is there");
    assert_eq!(outside(place.root.path()), place.before);
    assert_eq!(place.read("out").as_deref(), Some("file"));
    let way = place.root.path().join("way");
    symlink(place.inside(), &way).unwrap();
    whole(&receive(&*Sent::default().file("f", "x").end(), &way, &["f"]));
    assert_eq!(place.read("f").as_deref(), Some("x"));
}

#[test]
fn hard_links_lead_to_what_came_along() {
    let place = Place::new();
    place.write("mine", "the user's");
    for to in ["mine", "../key", "/etc/passwd", "none", "link"] {
        let sent = Sent::default().hard_link("x", to).file("later", "came");
        left_out(&place, &place.unpack(&["*"], &sent.end()), "`x`");
    }
    let sent = Sent::default().file("a", "1").hard_link("b", "a").hard_link("b", "a").hard_link("a", "a");
    whole(&place.unpack(&["*"], &sent.end()));
    assert_eq!((place.read("a"), place.read("b")), (Some("1".to_owned()), Some("1".to_owned())));
}

/// Whoever asks for one file into a home directory gets that one.
#[test]
fn what_nobody_asked_for_is_left_out() {
    let place = Place::new();
    let sent = |name| Sent::default().file(name, "evil").file("later", "came").end();
    for (pattern, name) in [
        ("out.csv", ".bashrc"),
        ("*", ".bashrc"),
        ("[a.]*", ".bashrc"),
        ("out/*.csv", "out/.ssh"),
        ("out/*.csv", "out/x.rc"),
        ("out", "outer"),
        ("a/b", "a"),
    ] {
        left_out(&place, &place.unpack(&[pattern, "later"], &sent(name)), "nobody asked for it");
    }
    for (pattern, name) in [
        ("out", "out/a/b"),
        ("/var/log/*.log", "var/log/x.log"),
        ("../up/x", "up/x"),
        ("./a//b/", "a/b"),
        ("a?[x-z]*.b", "aäy.b"),
        (".*", ".profile"),
        ("[x", "[x"),
        (r"\*", "*"),
        ("", "anything"),
    ] {
        whole(&place.unpack(&[pattern, "later"], &sent(name)));
    }
}

#[test]
fn modes_give_others_nothing() {
    let place = Place::new();
    let mut sent = Sent::default();
    for (kind, name, mode) in [
        (EntryType::Regular, "file", 0o7777),
        (EntryType::Regular, "readable", 0o440),
        (EntryType::Directory, "directory", 0o7000),
    ] {
        let mut header = Header::new_gnu();
        header.set_mode(mode);
        sent.push(&mut header, kind, name.as_bytes(), b"", b"");
    }
    whole(&place.unpack(&["*"], &sent.file("directory/inside", "x").end()));
    let mode = |name: &str| place.inside().join(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!(mode("file") & !0o055, 0o700);
    assert_eq!(mode("readable") & !0o040, 0o400);
    assert_eq!(mode("directory"), 0o700);
    // What is there already keeps its mode.
    whole(&place.unpack(&["."], &Sent::default().directory("./").directory("directory").end()));
    assert_eq!(mode("directory"), 0o700);
}

#[test]
fn a_file_has_its_name_only_when_it_is_complete() {
    let place = Place::new();
    let whole = Sent::default().file("a", "first").file("b", &"second".repeat(1000)).end();
    for length in [0, 100, 512, 1024, 1600, 5000] {
        let unpacked = place.unpack(&["*"], &whole[..length]);
        let Some(BrokenOff::There(error)) = unpacked.broken_off else { panic!("{length}: {unpacked:?}") };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(place.read("b"), None);
    }
    assert_eq!(place.read("a").as_deref(), Some("first"));
}

#[test]
fn what_is_too_long_or_too_deep_is_left_out_and_the_rest_comes() {
    let deep = ["d/".repeat(PATH_DEPTH_LIMIT), "d/".repeat(1000), "d/".repeat(60_000), "d".repeat(300)];
    for name in deep {
        let place = Place::new();
        let sent = Sent::default().file(name.clone() + "f", "").file("later", "came").end();
        left_out(&place, &place.unpack(&["."], &sent), "`d");
        assert!(place.unpack(&["."], &sent).left_out.to_string().len() < 1000);
    }
}

/// The header alone is sent: whoever believed it would wait for the rest, and hold it.
#[test]
fn descriptions_without_bounds_end_the_archive() {
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader, EntryType::XGlobalHeader]
    {
        let place = Place::new();
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(ARCHIVE_EXTENSION_LIMIT + 1);
        header.set_cksum();
        let endless = header.as_bytes().chain(io::repeat(b'x'));
        let unpacked = receive(endless, &place.inside(), &["."]);
        let Some(BrokenOff::There(error)) = unpacked.broken_off else { panic!("{unpacked:?}") };
        assert!(error.to_string().contains("the limit is"), "{error}");
    }
    let twice = Sent::default().entry(EntryType::GNULongName, "", "", b"a").entry(
        EntryType::GNULongName,
        "",
        "",
        b"b",
    );
    let unpacked = Place::new().unpack(&["."], &twice.file("x", "").end());
    assert!(matches!(unpacked.broken_off, Some(BrokenOff::There(_))));
}

/// An archive that repeats one block for ever.
struct Endless(Vec<u8>, usize);

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&self.0[self.1..]).read(buffer)?;
        self.1 = (self.1 + count) % self.0.len();
        Ok(count)
    }
}

#[test]
fn an_endless_archive_ends() {
    let place = Place::new();
    for sent in [
        Sent::default().file("nobody/asked", ""),
        Sent::default().entry(EntryType::XGlobalHeader, "", "", b""),
    ] {
        let unpacked = receive(Endless(sent.0, 0), &place.inside(), &["x"]);
        let Some(BrokenOff::There(error)) = unpacked.broken_off else { panic!("{unpacked:?}") };
        assert!(error.to_string().contains("entries"), "{error}");
    }
}

/// Or the command that sends it seems to have been ended by somebody.
#[test]
fn an_archive_is_read_beyond_its_end_mark() {
    let place = Place::new();
    let sent = Sent::default().file("x", "1").end();
    let mut from = io::Cursor::new([sent.as_slice(), &[0; 4 * BUFFER]].concat());
    whole(&receive(&mut from, &place.inside(), &["x"]));
    assert_eq!(from.position(), from.get_ref().len() as u64);
    let unpacked = receive(sent.as_slice().chain(io::repeat(0)), &place.inside(), &["x"]);
    assert!(matches!(unpacked.broken_off, Some(BrokenOff::There(_))), "{unpacked:?}");
}

fn sparse(real_size: u64, map: &[(u64, u64)], content: &[u8]) -> Sent {
    let mut sent = Sent::default();
    let mut header = Header::new_gnu();
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(real_size);
    for (place, (offset, length)) in gnu.sparse.iter_mut().zip(map) {
        place.set_offset(*offset);
        place.set_length(*length);
    }
    sent.push(&mut header, EntryType::GNUSparse, b"image", b"", content);
    sent.file("later", "came")
}

#[test]
fn holes_are_kept_and_cost_nothing() {
    let place = Place::new();
    let size = 64 << 20;
    whole(&place.unpack(&["*"], &sparse(size, &[(32 << 20, 512), (size, 0)], &[b'x'; 512]).end()));
    let metadata = place.inside().join("image").metadata().unwrap();
    assert_eq!(metadata.len(), size);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
    assert_eq!(fs::read(place.inside().join("image")).unwrap()[32 << 20], b'x');
}

#[test]
fn maps_of_holes_that_lie_are_left_out_and_the_rest_comes() {
    let content = [b'x'; 1024];
    for (size, map) in [
        (u64::MAX >> 1, vec![(0, 1024)]),
        (1024, vec![(512, 1024)]),
        (4096, vec![(2048, 512), (0, 512)]),
        (4096, vec![(0, 1)]),
        (4096, vec![(0, 100), (512, 924)]),
        (4096, vec![(u64::MAX - 1, 1024)]),
    ] {
        let place = Place::new();
        left_out(&place, &place.unpack(&["*"], &sparse(size, &map, &content).end()), "`image`");
        assert_eq!(place.read("image"), None);
    }
}

#[test]
fn an_endless_map_of_holes_ends() {
    let place = Place::new();
    let mut header = Header::new_gnu();
    header.as_gnu_mut().unwrap().set_is_extended(true);
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(0);
    header.set_cksum();
    let mut more = tar::GnuExtSparseHeader::new();
    more.set_is_extended(true);
    let endless = header.as_bytes().chain(Endless(more.as_bytes().to_vec(), 0));
    let unpacked = receive(endless, &place.inside(), &["."]);
    let Some(BrokenOff::There(error)) = unpacked.broken_off else { panic!("{unpacked:?}") };
    assert!(error.to_string().contains("holes"), "{error}");
}

#[test]
fn attributes_describe_the_next_entry_only() {
    let place = Place::new();
    let records = b"22 path=\xc3\xa4 with\nlines\n10 size=3\n";
    let sent = Sent::default().entry(EntryType::XHeader, "", "", records).file("short", "abc").file("b", "1");
    whole(&place.unpack(&["*"], &sent.end()));
    assert_eq!(place.read("ä with\nlines").as_deref(), Some("abc"));
    assert_eq!(place.read("b").as_deref(), Some("1"));
}

#[test]
fn many_that_are_left_out_are_counted() {
    let names = (0..1000).map(|n| format!("../{n}\n\u{1b}[31m"));
    let sent = names.fold(Sent::default(), |sent, name| sent.file(name, ""));
    let text = Place::new().unpack(&["."], &sent.end()).left_out.to_string();
    assert!(text.ends_with("and 980 more") && text.len() < 3000, "{text}");
    assert!(!text.contains(char::is_control), "{text}");
}

/// Names that get into each other's way.
fn name() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        8 => prop::sample::select(vec!["a", "b", "c", "in", "key", "canary", "deep"]).prop_map(String::from),
        2 => prop::sample::select(vec!["..", ".", "", "a\0b", "\n"]).prop_map(String::from),
        1 => "[a-c]{1,300}",
    ];
    let normal = prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/").into_bytes());
    prop_oneof![
        20 => normal.clone(),
        2 => normal.prop_map(|name| [b"/".as_slice(), &name].concat()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (0usize..3000).prop_map(|depth| "a/".repeat(depth).into_bytes()),
    ]
}

/// Kind, name, target, mode and content.
type Raw = (u8, Vec<u8>, Vec<u8>, u32, Vec<u8>);

fn entry() -> impl Strategy<Value = Raw> {
    let kind = prop_oneof![
        20 => prop::sample::select(b"0012225".to_vec()),
        1 => any::<u8>(),
    ];
    (kind, name(), name(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..700))
}

fn archive(entries: &[Raw]) -> Vec<u8> {
    let mut sent = Sent::default();
    for (kind, name, link, mode, content) in entries {
        let mut header = Header::new_gnu();
        header.set_mode(mode & 0o7777);
        let content = if b"125".contains(kind) { &[] } else { content.as_slice() };
        sent.push(&mut header, EntryType::new(*kind), name, link, content);
    }
    sent.end()
}

proptest! {
    #![proptest_config(cases(100))]

    /// One archive after the other into one directory; plain files of other names always arrive.
    #[test]
    fn whatever_is_sent_stays_inside(
        archives in prop::collection::vec(prop::collection::vec(entry(), 0..12), 1..4),
        all in any::<bool>(),
    ) {
        let place = Place::new();
        for entries in &archives {
            let mut sent = archive(entries);
            sent.truncate(sent.len() - 1024);
            // The first of these may be described by what was the last entry.
            let sent = Sent(sent).file("c", "").file("plain-1", "1").file("plain/2", "2").end();
            let patterns: &[&str] = if all { &["."] } else { &["a", "b*", "plain*"] };
            let unpacked = place.unpack(patterns, &sent);
            if unpacked.broken_off.is_none() {
                prop_assert_eq!(place.read("plain-1"), Some("1".to_owned()));
                prop_assert_eq!(place.read("plain/2"), Some("2".to_owned()));
            }
        }
    }

    /// Bytes that only look like an archive, here and there.
    #[test]
    fn any_bytes_are_an_archive_or_an_error(
        entries in prop::collection::vec(entry(), 0..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        fix in any::<bool>(),
        tail in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let place = Place::new();
        let mut sent = archive(&entries);
        for (at, byte) in changes {
            let at = at.index(sent.len());
            sent[at] = byte;
            if fix {
                // So that the change is believed.
                let block = at / 512 * 512;
                let mut header = Header::from_byte_slice(&sent[block..block + 512]).clone();
                header.set_cksum();
                sent[block..block + 512].copy_from_slice(header.as_bytes());
            }
        }
        sent.extend(tail);
        place.unpack(&["."], &sent);
    }
}
