//! The tests, by the name under which they can be left out where no machine can be built.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey};
use tempfile::TempDir;
use tsunami_aws::UserData;

const DEADLINE: &str = include_str!("../../src/user_data/deadline.sh");

/// What `cargo xtask aws-contract` asks of images that can't be booted here.
const IMAGE: &str = include_str!("../emulator/image.sh");

/// What the controller runs on a new machine before anything else does.
const WAIT_FOR_CLOUD_INIT: &str = include_str!("../../src/cloud_init.sh");

/// A boot takes a twentieth of it where nothing else runs.
const BOOT: Duration = Duration::from_secs(1200);

/// How long a machine takes to end once it has begun to.
const END: Duration = Duration::from_secs(60);

const HOUR: u64 = 3600;

/// In `/proc/sys/kernel/random`: another one at every boot.
const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

const STATUS: &str = "tsunami-deadline status";

/// Makes a test of each scenario with each image. What is `long` is left to `cargo xtask chaos`.
macro_rules! scenarios {
    ($($scenario:ident: $bookworm:ident $trixie:ident;)*) => {
        $(mod $scenario {
            scenario!($bookworm bookworm $scenario);
            scenario!($trixie trixie $scenario);
        })*
    };
}

macro_rules! scenario {
    (short $image:ident $scenario:ident) => {
        #[test]
        fn $image() {
            super::$scenario(stringify!($image));
        }
    };
    (long $image:ident $scenario:ident) => {
        #[test]
        #[ignore = "in the long form"]
        fn $image() {
            super::$scenario(stringify!($image));
        }
    };
}

scenarios! {
    a_machine_is_armed_and_known_by_its_pinned_key_whatever_the_users_part_does: short short;
    at_its_deadline_a_machine_powers_off_whatever_runs_on_it: short long;
    lived_time_counts_on_over_a_reboot_with_a_full_disk_and_the_clock_a_year_back: short long;
    a_moved_deadline_holds_over_a_killed_watch_and_a_reboot: short long;
    a_deadline_ends_a_shutdown_that_hangs: short long;
    a_machine_that_cannot_be_armed_lets_nobody_in_and_powers_off: short long;
    a_socket_that_starts_sshd_listens_once_the_machine_is_armed: long long;
    the_pinned_key_is_served_whatever_sshd_config_includes: long long;
    a_slow_cloud_init_lets_nobody_in_before_the_machine_is_armed: long long;
    a_cloud_init_that_hangs_holds_no_deadline_up: long long;
    a_module_that_fails_is_told_and_no_deadline_fails_with_it: long long;
    a_broken_cloud_init_lets_nobody_in_and_the_machine_ends: long long;
    a_link_that_comes_up_late_is_waited_for: long long;
    without_any_network_a_machine_ends_itself: long long;
}

fn a_machine_is_armed_and_known_by_its_pinned_key_whatever_the_users_part_does(image: &str) {
    let other = new_key();
    let private = other.to_openssh(LineEnding::LF).unwrap().replace('\n', "\n    ");
    let own = format!(
        "#cloud-config\nbootcmd:\n  - systemctl stop tsunami-deadline.service\n  - exit 7\nssh_deletekeys: true\n\
         ssh_keys:\n  ed25519_private: |\n    {private}\n  ed25519_public: {}\n",
        other.public_key().to_openssh().unwrap()
    );
    let machine = Boot { own: Some(&own), ..Boot::of(image) }.begin();
    machine.wait_for_login("");
    assert_eq!(machine.run(STATUS), machine.promise());

    // `ssh` let only the pinned key in; no other is served, though the user's was put in place.
    assert_eq!(machine.run("sudo sshd -T | grep ^hostkey\\ "), "hostkey /etc/ssh/tsunami_host_ed25519_key");
    let others = machine.run("sudo cat /etc/ssh/ssh_host_ed25519_key.pub");
    assert_eq!(others, other.public_key().to_openssh().unwrap());

    // Armed first, and for good.
    machine.was_armed_first("ssh.service");
    assert_eq!(machine.run("systemctl is-enabled tsunami-deadline.service"), "enabled");
    machine.fails("sudo systemctl stop tsunami-deadline.service");

    // cloud-init has nothing to say but that the user's own command failed, of the user's own accord.
    machine.run("cloud-init status --wait >/dev/null; sudo cloud-init schema --system");
    let complaints = machine.run("sudo grep -E 'WARNING|ERROR|CRITICAL' /var/log/cloud-init.log");
    assert!(
        complaints.contains("bootcmd") && complaints.lines().all(|line| line.contains("bootcmd")),
        "{complaints}"
    );

    // A tool that no longer runs ends the machine too.
    machine.run("echo exit 1 | sudo tee /usr/local/bin/tsunami-deadline");
    machine.run("sudo systemctl kill --signal KILL tsunami-deadline.service");
    machine.wait_for_off(Instant::now() + END);
}

fn at_its_deadline_a_machine_powers_off_whatever_runs_on_it(image: &str) {
    // Debian 13 takes longer to boot, much longer beside others.
    let life = if image == "trixie" { 400 } else { 240 };
    let at = now() + life;
    let machine = Boot { at, life, ..Boot::of(image) }.begin();
    machine.wait_for_login("");
    let mut session = machine.ssh("trap '' HUP INT TERM; echo here; while :; do sleep 1; done");
    let mut session = session.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    machine.wait_for_off(deadline(at) + END);
    assert!(now() >= at, "it was off {} s before its time", at - now());
    assert!(machine.console().contains("tsunami: the deadline of this machine is over"));
    assert!(!session.wait().unwrap().success());
    assert!(!machine.ssh("true").output().unwrap().status.success());
}

fn lived_time_counts_on_over_a_reboot_with_a_full_disk_and_the_clock_a_year_back(image: &str) {
    let machine = Boot::of(image).begin();
    machine.wait_for_login("");
    let (_, lived) = machine.beat();
    let (at, ends) = (now() + 365 * 24 * HOUR, lived + HOUR);
    machine.run(&format!("sudo tsunami-deadline extend {at} {ends}"));
    machine.run(
        "sudo sh -c 'fallocate -l $(df --output=avail -B1 / | tail -n 1) /fill; cat /dev/zero >/fill2; \
         date -s \"1 year ago\" && hwclock --systohc --noadjfile --utc'",
    );
    sleep(Duration::from_secs(12));
    assert_eq!(
        machine.run(&format!("df --output=avail / | tail -n 1; {STATUS} | cut -d ' ' -f 1")).trim(),
        "0\narmed"
    );

    let before = machine.run(BOOT_ID);
    machine.reboot();
    machine.wait_for_login(&before);
    assert!(machine.run("date +%s").parse::<u64>().unwrap() < now() - 24 * HOUR);
    assert!(machine.run(STATUS).ends_with(&format!(" {ends}")));
    let (uptime, counted) = machine.beat();
    assert!(counted >= uptime + lived, "{counted} s, {uptime} s of them in this boot, and {lived} before");

    // Nobody knows how long a machine takes to boot beside others: how much life is left is said only now.
    let told = Instant::now();
    let left = "read -r _ lived </run/tsunami/beat; sudo rm /fill2; sudo tsunami-deadline extend";
    machine.run(&format!("{left} {at} $((lived + 30))"));
    machine.wait_for_off(Instant::now() + Duration::from_secs(30) + END);
    // The beat is some seconds old.
    assert!(told.elapsed() >= Duration::from_secs(15), "off after {:?}", told.elapsed());
}

fn a_moved_deadline_holds_over_a_killed_watch_and_a_reboot(image: &str) {
    let machine = Boot::of(image).begin();
    let boot = machine.wait_for_login("").as_secs();
    let (first, at) = (now() + boot + 15, now() + HOUR);
    machine.run(&format!("sudo tsunami-deadline extend {first} {HOUR}"));
    machine.run(&format!("sudo tsunami-deadline extend {at} {HOUR}"));
    machine.fails("sudo tsunami-deadline extend 0 soon");
    let moved = format!("armed {at} {HOUR}");
    assert_eq!(machine.run(STATUS), moved);

    let watch = "systemctl show --value -p MainPID tsunami-deadline.service";
    let killed = machine.run(watch);
    machine.run(&format!("sudo kill -9 {killed} && sleep 5"));
    assert_eq!(machine.run(STATUS), moved);
    assert_ne!(machine.run(watch), killed);

    let before = machine.run(BOOT_ID);
    machine.reboot();
    machine.wait_for_login(&before);
    sleep(Duration::from_secs((first + 5).saturating_sub(now())));
    assert_eq!(machine.run(STATUS), moved);
    machine.ends_when_told();
}

fn a_deadline_ends_a_shutdown_that_hangs(image: &str) {
    let machine = Boot::of(image).begin();
    machine.wait_for_login("");
    machine.run(
        "sudo systemd-run --quiet --unit hangs -p ExecStop='sleep infinity' -p TimeoutStopSec=infinity sleep infinity",
    );
    let at = now() + 40;
    machine.run(&format!("sudo tsunami-deadline extend {at} {HOUR}"));
    machine.reboot();
    machine.wait_for_off(deadline(at) + END);
    assert!(now() >= at, "the shutdown did not hang");
}

fn a_machine_that_cannot_be_armed_lets_nobody_in_and_powers_off(image: &str) {
    let machine = Boot { tool: "#!/bin/sh\nsleep 1000\n", ..Boot::of(image) }.begin();
    machine.wait_for_off(Instant::now() + BOOT + END);
    let console = machine.console();
    assert!(console.contains("tsunami: the deadline could not be armed; powering off"), "{console}");
    assert!(!console.contains("OpenBSD Secure Shell server"));
}

fn a_socket_that_starts_sshd_listens_once_the_machine_is_armed(image: &str) {
    // As Ubuntu has it since 22.10.
    let changes = [
        Change::Gone("/etc/systemd/system/multi-user.target.wants/ssh.service"),
        Change::Gone("/etc/systemd/system/sshd.service"),
        Change::Link(
            "/etc/systemd/system/sockets.target.wants/ssh.socket",
            "/usr/lib/systemd/system/ssh.socket",
        ),
    ];
    let machine = Boot { changes: &changes, own: Some(IMAGE), ..Boot::of(image) }.begin();
    machine.wait_for_login("");
    assert_eq!(machine.run("systemctl is-enabled ssh.socket ssh.service || :"), "enabled\ndisabled");
    machine.was_armed_first("ssh.socket");
    machine.run(WAIT_FOR_CLOUD_INIT);
    machine.answers_the_contract("ssh.socket");

    let before = machine.run(BOOT_ID);
    machine.reboot();
    machine.wait_for_login(&before);
    machine.was_armed_first("ssh.socket");
    machine.ends_when_told();
}

fn the_pinned_key_is_served_whatever_sshd_config_includes(image: &str) {
    // As older images have it, and as somebody may have written it by hand.
    let own = "UsePAM yes\nPasswordAuthentication no\nHostKey /etc/ssh/ssh_host_ed25519_key\n";
    let late =
        format!("#Include /etc/ssh/sshd_config.d/*.conf\n{own}Include /etc/ssh/sshd_config.d/*.conf\n");
    let changes = [Change::File("/etc/ssh/sshd_config", own)];
    let machine = Boot { changes: &changes, ..Boot::of(image) }.begin();
    machine.wait_for_login("");
    machine.was_armed_first("ssh.service");

    let before = machine.run(BOOT_ID);
    machine.run(&format!("printf %s '{late}' | sudo tee /etc/ssh/sshd_config; sync"));
    machine.reboot();
    machine.wait_for_login(&before);
    machine.ends_when_told();
}

fn a_slow_cloud_init_lets_nobody_in_before_the_machine_is_armed(image: &str) {
    // Before it knows tsunami's part, and after.
    let slow = "[Service]\nExecStartPre=/bin/sleep 60\n";
    let changes = [Change::File("/etc/systemd/system/cloud-init-local.service.d/slow.conf", slow)];
    let own = "#cloud-config\nbootcmd: [sleep 60]\n";
    let machine = Boot { changes: &changes, own: Some(own), ..Boot::of(image) }.begin();
    machine.wait_for_login("");
    machine.was_armed_first("ssh.service");
    machine.run(WAIT_FOR_CLOUD_INIT);
    machine.ends_when_told();
}

fn a_cloud_init_that_hangs_holds_no_deadline_up(image: &str) {
    let at = now() + 120;
    let own = "#cloud-config\nbootcmd: [sleep infinity]\n";
    let machine = Boot { at, own: Some(own), ..Boot::of(image) }.begin();
    machine.ends_alone();
}

fn a_module_that_fails_is_told_and_no_deadline_fails_with_it(image: &str) {
    let own = "#cloud-config\nbootcmd: [exit 7]\nwrite_files: 7\nruncmd: {a: b}\n";
    let machine = Boot { own: Some(own), ..Boot::of(image) }.begin();
    machine.wait_for_login("");
    machine.was_armed_first("ssh.service");
    let refused = machine.attempt(WAIT_FOR_CLOUD_INIT).unwrap_err();
    assert!(refused.contains("exit status: 1") && refused.contains("status: error"), "{refused}");
    assert!(refused.contains("bootcmd"), "{refused}");
    machine.ends_when_told();
}

fn a_broken_cloud_init_lets_nobody_in_and_the_machine_ends(image: &str) {
    // A module that can't be loaded, of those that come before the login's key.
    let at = now() + 120;
    let module = "/usr/lib/python3/dist-packages/cloudinit/config/cc_users_groups.py";
    let changes = [Change::File(module, "raise RuntimeError('broken')\n")];
    let machine = Boot { at, changes: &changes, ..Boot::of(image) }.begin();
    machine.ends_alone();
}

fn a_link_that_comes_up_late_is_waited_for(image: &str) {
    let machine = Boot { unplugged: true, own: Some(IMAGE), ..Boot::of(image) }.begin();
    sleep(Duration::from_secs(90));
    machine.plug(true);
    machine.wait_for_login("");
    machine.was_armed_first("ssh.service");
    machine.run(WAIT_FOR_CLOUD_INIT);
    machine.answers_the_contract("ssh.service");
    machine.ends_when_told();
}

fn without_any_network_a_machine_ends_itself(image: &str) {
    let at = now() + 120;
    let machine = Boot { at, unplugged: true, ..Boot::of(image) }.begin();
    machine.ends_alone();
}

/// What is booted, if not an image as it is with nothing but tsunami's part.
#[derive(Clone, Copy, Debug)]
struct Boot<'a> {
    /// A Debian, by its release.
    image: &'a str,
    at: u64,
    life: u64,
    tool: &'a str,
    own: Option<&'a str>,
    /// How the image's files differ.
    changes: &'a [Change<'a>],
    /// Whether the network has no link, as if the cable were out.
    unplugged: bool,
}

/// What differs in an image, by the path there.
#[derive(Clone, Copy, Debug)]
enum Change<'a> {
    File(&'a str, &'a str),
    Link(&'a str, &'a str),
    Gone(&'a str),
}

impl<'a> Boot<'a> {
    fn of(image: &'a str) -> Self {
        let at = now() + HOUR;
        Self { image, at, life: HOUR, tool: DEADLINE, own: None, changes: &[], unplugged: false }
    }

    fn begin(self) -> Machine {
        let guest = guest(self.image);
        let directory = tempfile::Builder::new().prefix("tsunami-boot-").tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        symlink(&guest, path("guest")).unwrap();
        let disk = self.disk(directory.path());

        let (login, host) = (new_key(), new_key());
        fs::write(path("key"), login.to_openssh(LineEnding::LF).unwrap()).unwrap();
        fs::set_permissions(path("key"), Permissions::from_mode(0o600)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let known = format!("[127.0.0.1]:{port} {}\n", host.public_key().to_openssh().unwrap());
        fs::write(path("known_hosts"), known).unwrap();

        // A directory is a disk, with QEMU's vvfat.
        fs::create_dir(path("seed")).unwrap();
        let login = login.public_key().to_openssh().unwrap();
        let meta_data = format!("instance-id: i-1\nlocal-hostname: guest\npublic-keys: [\"{login}\"]\n");
        fs::write(path("seed/meta-data"), meta_data).unwrap();
        fs::write(path("seed/user-data"), self.user_data(&host)).unwrap();

        // However this process ends, `timeout` ends with it, and QEMU with `timeout`.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "TERM", "timeout", "2400", "setpriv", "--pdeathsig", "KILL"]);
        qemu.args(["qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-nodefaults", "-display", "none"]);
        qemu.args(["-serial", "file:console", "-kernel", "guest/vmlinuz", "-initrd", "guest/initrd.img"]);
        // Mitigations are slow under emulation, and protect nothing.
        qemu.args(["-append", "root=LABEL=root ro console=ttyS0 mitigations=off"]);
        qemu.args(["-drive", &format!("file={disk},format=raw,if=virtio,snapshot=on")]);
        qemu.args(["-blockdev", "driver=vvfat,node-name=seed,dir=seed,label=CIDATA,read-only=on"]);
        qemu.args(["-device", "virtio-blk-pci,drive=seed", "-device", "virtio-net-pci,netdev=net,romfile="]);
        qemu.args(["-netdev", &format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22")]);
        qemu.args(["-qmp", "unix:qmp,server=on,wait=off", "-S"]);
        qemu.current_dir(directory.path()).env("TMPDIR", directory.path()).stdin(Stdio::null());
        let said = File::create(path("qemu")).unwrap();
        let qemu = qemu.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap();
        let Self { at, life, .. } = self;
        let machine = Machine { directory, port, at, life, qemu: qemu.into() };
        if self.unplugged {
            machine.plug(false);
        }
        machine.ask_qemu("{'execute': 'cont'}");
        machine
    }

    /// Makes a disk of its own for what differs from the image, below the machine's directory.
    fn disk(&self, directory: &Path) -> &'static str {
        if self.changes.is_empty() {
            return "guest/root.img";
        }
        let mut commands = String::new();
        for (number, change) in self.changes.iter().enumerate() {
            let (Change::File(path, _) | Change::Link(path, _) | Change::Gone(path)) = change;
            // Either may fail, for good reason.
            commands.push_str(&format!("mkdir {}\nrm {path}\n", path.rsplit_once('/').unwrap().0));
            match change {
                Change::File(path, content) => {
                    fs::write(directory.join(format!("change-{number}")), content).unwrap();
                    commands.push_str(&format!("write change-{number} {path}\n"));
                }
                Change::Link(path, target) => commands.push_str(&format!("symlink {path} {target}\n")),
                Change::Gone(_) => {}
            }
        }
        fs::write(directory.join("changes"), commands).unwrap();
        let run = |command: &[&str]| {
            let done = Command::new(command[0]).args(&command[1..]).current_dir(directory).output().unwrap();
            assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
        };
        run(&["cp", "--sparse=always", "guest/root.img", "root.img"]);
        run(&["/usr/sbin/debugfs", "-w", "-f", "changes", "root.img"]);
        "root.img"
    }

    fn user_data(&self, host: &PrivateKey) -> String {
        let host_key = host.to_openssh(LineEnding::LF).unwrap();
        // A part of the user's own that tsunami can't look into, and so does not refuse.
        let own = self.own.map(|own| {
            let own = aws_smithy_types::base64::encode(own);
            format!("Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\n{own}\n")
        });
        let at = UNIX_EPOCH + Duration::from_secs(self.at);
        let mut user_data = UserData::new(at, Duration::from_secs(self.life), &host_key);
        user_data.own = own.as_deref();
        let text = user_data.compose().unwrap();
        assert!(text.contains(DEADLINE.trim_end()));
        text.replace(DEADLINE.trim_end(), self.tool.trim_end())
    }
}

/// A machine that QEMU emulates, with a disk of its own.
#[derive(Debug)]
struct Machine {
    directory: TempDir,
    port: u16,
    at: u64,
    life: u64,
    qemu: std::cell::RefCell<Child>,
}

impl Machine {
    /// Has QEMU do something, in words of its protocol QMP, and waits until it has.
    fn ask_qemu(&self, command: &str) {
        let began = Instant::now();
        let mut stream = loop {
            match UnixStream::connect(self.directory.path().join("qmp")) {
                Ok(stream) => break stream,
                Err(error) => assert!(began.elapsed() < END, "QEMU does not listen: {error}"),
            }
            sleep(Duration::from_millis(20));
        };
        writeln!(stream, "{{'execute': 'qmp_capabilities'}} {command}").unwrap();
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let answers = lines.filter(|line| !line.contains("\"QMP\"") && !line.contains("\"event\""));
        let answers: Vec<String> = answers.take(2).collect();
        assert!(answers.iter().all(|answer| answer.starts_with("{\"return\"")), "{command}: {answers:?}");
    }

    /// Puts the network's cable in or out.
    fn plug(&self, up: bool) {
        self.ask_qemu(&format!("{{'execute': 'set_link', 'arguments': {{'name': 'net', 'up': {up}}}}}"));
    }

    fn promise(&self) -> String {
        format!("armed {} {}", self.at, self.life)
    }

    /// `ssh` as it is to trust nothing but the pinned key.
    fn ssh(&self, command: &str) -> Command {
        let mut ssh = Command::new("timeout");
        ssh.args(["2400", "ssh", "-F", "/dev/null", "-i", "key", "-p", &self.port.to_string()]);
        for option in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=yes",
            "UserKnownHostsFile=known_hosts",
            "GlobalKnownHostsFile=/dev/null",
            "ConnectTimeout=20",
            // A reboot closes no connection.
            "ServerAliveInterval=5",
        ] {
            ssh.args(["-o", option]);
        }
        ssh.args(["admin@127.0.0.1", command]).current_dir(self.directory.path()).stdin(Stdio::null());
        ssh
    }

    fn attempt(&self, command: &str) -> Result<String, String> {
        let output = self.ssh(command).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned()),
            false => {
                Err(format!("{command}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
            }
        }
    }

    #[track_caller]
    fn run(&self, command: &str) -> String {
        self.attempt(command).unwrap_or_else(|error| panic!("{error}"))
    }

    #[track_caller]
    fn fails(&self, command: &str) {
        self.run(&format!("! {command}"));
    }

    /// Until it can be logged in to, in another boot than `before`; how long that took.
    #[track_caller]
    fn wait_for_login(&self, before: &str) -> Duration {
        let began = Instant::now();
        loop {
            let refused = match self.attempt(BOOT_ID) {
                Ok(boot) if boot != before => return began.elapsed(),
                Ok(_) => "it did not go down".to_owned(),
                Err(error) => error,
            };
            assert!(!refused.contains("HOST IDENTIFICATION HAS CHANGED"), "{refused}");
            assert!(self.qemu.borrow_mut().try_wait().unwrap().is_none(), "it is off: {refused}");
            assert!(began.elapsed() < BOOT, "{refused}");
            sleep(Duration::from_secs(1));
        }
    }

    /// The connection may go down with the machine.
    fn reboot(&self) {
        let _ = self.attempt("sudo systemctl reboot");
    }

    /// What holds before anybody can log in: the machine is armed, and for what was promised.
    #[track_caller]
    fn was_armed_first(&self, listener: &str) {
        assert_eq!(self.run(STATUS), self.promise());
        let began = |unit: &str| {
            let show = format!("systemctl show --value -p InactiveExitTimestampMonotonic {unit}");
            self.run(&show).parse::<u64>().unwrap()
        };
        let (armed, listened) = (began("tsunami-deadline.service"), began(listener));
        assert!(0 < armed && armed < listened, "armed at {armed} us, and {listener} began at {listened} us");
    }

    /// What the user's part of its user data, `IMAGE`, said on the console.
    #[track_caller]
    fn answers_the_contract(&self, listener: &str) {
        let console = self.console();
        let said = |name: &str| {
            let answer = console.split(&format!("tsunami-contract: {name} ")).nth(1);
            answer.and_then(|answer| answer.lines().next()).unwrap_or_else(|| panic!("no {name}: {console}"))
        };
        assert_eq!((said("user"), said("listener")), ("admin", listener));
        assert_eq!(said("deadline"), self.promise());
        assert!(fs::read_to_string(self.directory.path().join("known_hosts")).unwrap().contains(said("key")));
        let began: Vec<u64> = said("began").split(' ').map(|began| began.parse().unwrap()).collect();
        assert!(began.len() == 2 && 0 < began[0] && began[0] < began[1], "{began:?}");
        assert!(console.contains("tsunami-contract: complete"), "{console}");
    }

    /// Its deadline is moved close, and holds.
    #[track_caller]
    fn ends_when_told(&self) {
        let at = now() + 15;
        self.run(&format!("sudo tsunami-deadline extend {at} {HOUR}"));
        self.wait_for_off(deadline(at) + END);
        assert!(now() >= at, "it was off {} s before its time", at - now());
    }

    /// It is off at its deadline, and nobody could log in before.
    #[track_caller]
    fn ends_alone(&self) {
        let until = deadline(self.at) + BOOT;
        while self.qemu.borrow_mut().try_wait().unwrap().is_none() {
            assert!(self.attempt("true").is_err(), "somebody was let in");
            assert!(Instant::now() < until, "the machine is still on");
            sleep(Duration::from_secs(2));
        }
        assert!(now() >= self.at, "it was off {} s before its time", self.at - now());
        let console = self.console();
        assert!(console.contains("tsunami: the deadline of this machine is over"), "{console}");
    }

    /// The uptime at which `watch` last looked, and the seconds lived by then.
    #[track_caller]
    fn beat(&self) -> (u64, u64) {
        let beat = self.run("cat /run/tsunami/beat");
        let (uptime, lived) = beat.split_once(' ').unwrap();
        (uptime.parse().unwrap(), lived.trim().parse().unwrap())
    }

    #[track_caller]
    fn wait_for_off(&self, until: Instant) {
        loop {
            if let Some(status) = self.qemu.borrow_mut().try_wait().unwrap() {
                assert!(status.success(), "QEMU: {status}");
                return;
            }
            assert!(Instant::now() < until, "the machine is still on");
            sleep(Duration::from_millis(200));
        }
    }

    fn console(&self) -> String {
        let console = fs::read(self.directory.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let qemu = self.qemu.get_mut();
        let _ = qemu.kill();
        let _ = qemu.wait();
        if thread::panicking() {
            let said = fs::read_to_string(self.directory.path().join("qemu")).unwrap_or_default();
            let console = self.console();
            let lines: Vec<&str> = console.lines().collect();
            eprintln!("{said}{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

fn guest(image: &str) -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
    let guest = std::env::var_os("TSUNAMI_GUEST").map_or_else(built, PathBuf::from).join(image);
    assert!(guest.join("root.img").exists(), "{} is missing: `cargo xtask guest` makes it", guest.display());
    fs::canonicalize(guest).unwrap()
}

fn new_key() -> PrivateKey {
    PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn deadline(at: u64) -> Instant {
    Instant::now() + Duration::from_secs(at.saturating_sub(now()))
}
