//! The tests, by the name under which they can be left out where no machine can be built.

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey};
use tempfile::TempDir;
use tsunami_aws::UserData;

const DEADLINE: &str = include_str!("../../src/user_data/deadline.sh");

/// A boot takes a sixth of it where nothing else runs.
const BOOT: Duration = Duration::from_secs(300);

/// How long a machine takes to end once it has begun to.
const END: Duration = Duration::from_secs(30);

const HOUR: u64 = 3600;

/// In `/proc/sys/kernel/random`: another one at every boot.
const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

const STATUS: &str = "tsunami-deadline status";

#[test]
fn a_machine_is_armed_and_known_by_its_pinned_key_whatever_the_users_part_does() {
    let other = new_key();
    let private = other.to_openssh(LineEnding::LF).unwrap().replace('\n', "\n    ");
    let own = format!(
        "#cloud-config\nbootcmd:\n  - systemctl stop tsunami-deadline.service\n  - exit 7\nssh_deletekeys: true\n\
         ssh_keys:\n  ed25519_private: |\n    {private}\n  ed25519_public: {}\n",
        other.public_key().to_openssh().unwrap()
    );
    let machine = Machine::boot(now() + HOUR, HOUR, DEADLINE, Some(&own));
    machine.wait_for_login("");
    assert_eq!(machine.run(STATUS), machine.promise());

    // `ssh` let only the pinned key in; no other is served, though the user's was put in place.
    assert_eq!(machine.run("sudo sshd -T | grep ^hostkey\\ "), "hostkey /etc/ssh/tsunami_host_ed25519_key");
    let others = machine.run("sudo cat /etc/ssh/ssh_host_ed25519_key.pub");
    assert_eq!(others, other.public_key().to_openssh().unwrap());

    // Armed first, and for good.
    let started = |unit| {
        let show = format!("systemctl show --value -p ExecMainStartTimestampMonotonic {unit}");
        machine.run(&show).parse::<u64>().unwrap()
    };
    assert!(started("tsunami-deadline.service") < started("ssh.service"));
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

#[test]
fn at_its_deadline_a_machine_powers_off_whatever_runs_on_it() {
    let at = now() + 150;
    let machine = Machine::boot(at, 150, DEADLINE, None);
    machine.wait_for_login("");
    let mut session = machine.ssh("trap '' HUP INT TERM; echo here; while :; do sleep 1; done");
    let mut session = session.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    machine.wait_for_off(deadline(at) + END);
    assert!(now() >= at, "it was off {} s before its time", at - now());
    assert!(machine.console().contains("tsunami: the deadline of this machine is over"));
    assert!(!session.wait().unwrap().success());
    assert!(!machine.ssh("true").output().unwrap().status.success());
}

#[test]
fn lived_time_counts_on_over_a_reboot_with_a_full_disk_and_the_clock_a_year_back() {
    let machine = Machine::boot(now() + HOUR, HOUR, DEADLINE, None);
    let boot = machine.wait_for_login("");
    let (_, lived) = machine.beat();
    let more = 2 * boot + Duration::from_secs(50);
    let (ends, extended) = (lived + more.as_secs(), Instant::now());
    machine.run(&format!("sudo tsunami-deadline extend {} {ends}", now() + 365 * 24 * HOUR));
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
    // What it took to go down and up again is no life, of which the firmware and the kernel take a while.
    machine.wait_for_off(extended + more + boot + END);
    assert!(extended.elapsed() + Duration::from_secs(5) >= more, "off after {:?}", extended.elapsed());
}

#[test]
fn a_moved_deadline_holds_over_a_killed_watch_and_a_reboot() {
    let machine = Machine::boot(now() + HOUR, HOUR, DEADLINE, None);
    let boot = machine.wait_for_login("").as_secs();
    let (first, at) = (now() + boot + 15, now() + 2 * boot + 40);
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
    machine.wait_for_off(deadline(at) + END);
    assert!(now() >= at, "it was off {} s before its time", at - now());
}

#[test]
fn a_deadline_ends_a_shutdown_that_hangs() {
    let machine = Machine::boot(now() + HOUR, HOUR, DEADLINE, None);
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

#[test]
fn a_machine_that_cannot_be_armed_lets_nobody_in_and_powers_off() {
    let machine = Machine::boot(now() + HOUR, HOUR, "#!/bin/sh\nsleep 1000\n", None);
    machine.wait_for_off(Instant::now() + BOOT + END);
    let console = machine.console();
    assert!(console.contains("tsunami: the deadline could not be armed; powering off"), "{console}");
    assert!(!console.contains("OpenBSD Secure Shell server"));
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
    fn boot(at: u64, life: u64, tool: &str, own: Option<&str>) -> Self {
        let guest = guest();
        let directory = tempfile::Builder::new().prefix("tsunami-boot-").tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        symlink(&guest, path("guest")).unwrap();

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
        fs::write(path("seed/user-data"), user_data(at, life, &host, tool, own)).unwrap();

        // However this process ends, `timeout` ends with it, and QEMU with `timeout`.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "TERM", "timeout", "900", "setpriv", "--pdeathsig", "KILL"]);
        qemu.args(["qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-nodefaults", "-display", "none"]);
        qemu.args(["-serial", "file:console", "-kernel", "guest/vmlinuz", "-initrd", "guest/initrd.img"]);
        qemu.args(["-append", "root=LABEL=root ro console=ttyS0"]);
        qemu.args(["-drive", "file=guest/root.img,format=raw,if=virtio,snapshot=on"]);
        qemu.args(["-blockdev", "driver=vvfat,node-name=seed,dir=seed,label=CIDATA,read-only=on"]);
        qemu.args(["-device", "virtio-blk-pci,drive=seed", "-device", "virtio-net-pci,netdev=net,romfile="]);
        qemu.args(["-netdev", &format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22")]);
        qemu.current_dir(directory.path()).env("TMPDIR", directory.path()).stdin(Stdio::null());
        let said = File::create(path("qemu")).unwrap();
        let qemu = qemu.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap();
        Self { directory, port, at, life, qemu: qemu.into() }
    }

    fn promise(&self) -> String {
        format!("armed {} {}", self.at, self.life)
    }

    /// `ssh` as it is to trust nothing but the pinned key.
    fn ssh(&self, command: &str) -> Command {
        let mut ssh = Command::new("timeout");
        ssh.args(["900", "ssh", "-F", "/dev/null", "-i", "key", "-p", &self.port.to_string()]);
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

fn guest() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
    let guest = std::env::var_os("TSUNAMI_GUEST").map_or_else(built, PathBuf::from);
    assert!(guest.join("root.img").exists(), "{} is missing: `cargo xtask guest` makes it", guest.display());
    fs::canonicalize(guest).unwrap()
}

fn user_data(at: u64, life: u64, host: &PrivateKey, tool: &str, own: Option<&str>) -> String {
    let host_key = host.to_openssh(LineEnding::LF).unwrap();
    // A part of the user's own that tsunami can't look into, and so does not refuse.
    let own = own.map(|own| {
        let own = aws_smithy_types::base64::encode(own);
        format!("Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\n{own}\n")
    });
    let at = UNIX_EPOCH + Duration::from_secs(at);
    let lifetime = Duration::from_secs(life);
    let mut user_data = UserData::new(at, lifetime, &host_key);
    user_data.own = own.as_deref();
    let text = user_data.compose().unwrap();
    assert!(text.contains(DEADLINE.trim_end()));
    text.replace(DEADLINE.trim_end(), tool.trim_end())
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
