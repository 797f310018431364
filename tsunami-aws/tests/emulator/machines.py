"""Machines: what runs on instances. Each is a directory, what the user data's boothook puts there, and an sshd."""

import ctypes
import email
import gzip
import os
import pwd
import queue
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HOOK = "tsunami-boothook.sh"
HOST_KEY = "etc/ssh/tsunami_host_ed25519_key"
MARK = "TSUNAMI_EMULATED"
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

# The stubs find their machine by their own place, since they may be called with any environment.
_STUB = """#!/bin/sh
machine=$(cd "$(dirname "$0")/.." && pwd)
power() { echo "$1" > "$machine/power.new" && mv "$machine/power.new" "$machine/power"; }
"""
_POWER_OFF = _STUB + "power off\n"
_SYSTEMCTL = _STUB + r"""
watch() { pid=$(cat "$machine/deadline.pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null; }
start() {
    watch && return
    DESTDIR=$machine/root PATH=$machine/stubs:""" + SYSTEM_PATH + """
    export DESTDIR PATH
    # As the unit has it: started again when it ends, until that has happened too often.
    setsid sh -c 'for _ in 1 2 3 4 5; do sh "$DESTDIR/usr/local/bin/tsunami-deadline" watch; sleep 1; done; poweroff' \
        </dev/null >>"$machine/deadline.log" 2>&1 &
    echo $! > "$machine/deadline.pid"
}
verb= now= units=
for word; do
    case $word in
        --now) now=1 ;;
        -*) ;;
        *) if [ -z "$verb" ]; then verb=$word; else units="$units $word"; fi ;;
    esac
done
case $verb in poweroff | halt) power off; exit ;; reboot | kexec) power reboot; exit ;; esac
case "$units " in *" tsunami-deadline.service "* | *" tsunami-deadline "*) ;; *) exit 0 ;; esac
case $verb in
    start) start ;;
    restart) ! watch || kill -TERM "-$pid"; rm -f "$machine/deadline.pid"; start ;;
    enable) [ -z "$now" ] || start ;;
    is-active) if watch; then echo active; else echo inactive; exit 3; fi ;;
esac
exit 0
"""
_SHUTDOWN = _STUB + """
for word; do case $word in -c) exit ;; -r | --reboot) power reboot; exit ;; esac; done
power off
"""
_SUDO = """#!/bin/sh
while :; do
    case $1 in
        --) shift; break ;;
        -u | -g) shift 2 ;;
        -*) shift ;;
        *) break ;;
    esac
done
[ $# -gt 0 ] || exit 0
exec env "$@"
"""
STUBS = {"systemctl": _SYSTEMCTL, "poweroff": _POWER_OFF, "halt": _POWER_OFF, "shutdown": _SHUTDOWN,
         "reboot": _STUB + "power reboot\n", "sudo": _SUDO, "nproc": _STUB + 'cat "$machine/processors"\n',
         # The host may have one of its own, which would wait for the host.
         "cloud-init": "#!/bin/sh\necho 'status: done'\n"}

# A machine is a computer of its own, which nobody else uses: it shows a boot of its own, where the kernel lets us do so.
BOOT_ID = "/proc/sys/kernel/random/boot_id"
_ALONE = ["unshare", "--mount", "sh", "-c", f'mount --bind "$0" {BOOT_ID} && exec "$@"']


class Machine:
    def __init__(self, identity, directory, user_data, public_key, addresses, processors=0):
        self.id, self.directory, self.processors = identity, directory, processors
        self.hook, self.public_key, self.addresses = boothook(user_data), public_key, addresses
        self.status, self.ended, self.boots = "booting", False, 0
        # How it behaves while it is young, and to whoever logs in: settings of the account's.
        self.manners = {"boot_delay": 0.0, "key_delay": 0.0, "other_host_key": 0.0, "login_words": ""}
        self.sshd = None


class Machines:
    def __init__(self, directory, ssh_port, made):
        self.directory, self.port, self.made = directory, ssh_port, made
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.machines, self.past = {}, {}
        self.lock = threading.Lock()
        # A fork at the wrong moment would keep a script open for writing, which then could not be executed.
        self.forking = threading.Lock()
        self.started = set()
        self.ends = queue.Queue()
        self.pool = ThreadPoolExecutor(32)
        self.power_off, self.metadata = lambda identity: None, None
        self.stubs = self.directory / ".stubs"
        self.stubs.mkdir(exist_ok=True)
        for name, text in STUBS.items():
            _write(self.stubs / name, text, 0o755)
        # Orphans come to us, so that none is lost sight of.
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        self.alone = subprocess.run([*_ALONE, BOOT_ID, "true"], capture_output=True).returncode == 0
        if os.geteuid() == 0:
            # sshd insists on it, and without an init nobody has made it.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for work in (self._watch, self._end):
            threading.Thread(target=work, daemon=True).start()

    # What others ask for.

    def boot(self, identity, user_data, public_key, addresses, processors, manners):
        machine = Machine(identity, self.directory / identity, user_data, public_key, addresses, processors)
        machine.manners = {name: manners[name] for name in machine.manners}
        if machine.hook is None:
            return
        with self.lock:
            self.machines[identity] = machine
        self.pool.submit(self._guarded, self._boot, machine)

    def end(self, identity):
        """Takes the plug out. Returns at once."""
        with self.lock:
            machine = self.machines.pop(identity, None)
        if machine:
            machine.ended, machine.status = True, "ended"
            self.ends.put(machine)

    def reboot(self, identity):
        machine = self.machines.get(identity)
        if machine:
            self.pool.submit(self._guarded, self._reboot, machine)

    def end_all(self):
        with self.lock:
            machines, self.machines, self.past = list(self.machines.values()), {}, {}
        for machine in machines:
            machine.ended = True
        end_processes(machines)
        for machine in machines:
            shutil.rmtree(machine.directory, ignore_errors=True)

    def close(self, keep):
        """Ends all machines and whatever else has come to us, but for the process `keep`."""
        self.end_all()
        for pid, (parent, _) in _processes().items():
            if parent == os.getpid() and pid != keep:
                _kill(pid, signal.SIGKILL)
        clean(self.directory, self.made)

    def facts(self, identity):
        machine = self.machines.get(identity)
        return self._facts(machine) if machine else self.past.get(identity, {"machine": None})

    @staticmethod
    def _facts(machine):
        log = machine.directory / "boothook.log"
        text = log.read_text(errors="replace")[-4000:] if log.exists() else ""
        return {"machine": machine.status, "boots": machine.boots, "boothook_log": text}

    # What happens meanwhile.

    def _guarded(self, work, machine):
        try:
            work(machine)
        except Exception:
            if not machine.ended:
                machine.status = "failed: " + traceback.format_exc(limit=-1)
                traceback.print_exc()

    def _boot(self, machine):
        place = machine.directory
        with self.forking:
            if machine.ended:
                return
            for name in ("", "root", "root/run", "home"):
                (place / name).mkdir(mode=0o700, exist_ok=True)
            if not (place / "stubs").exists():
                (place / "stubs").symlink_to(self.stubs)
            _write(place / HOOK, machine.hook, 0o700)
            _write(place / "processors", f"{machine.processors}\n")
            _write(place / "boot_id", f"{uuid.uuid4()}\n")
            _write(place / "authorized_keys", "" if machine.manners["key_delay"] else machine.public_key.strip() + "\n")
            _write(place / "enter", self._enter(machine))
            _write(place / "sshd_config", self._sshd_config(machine, place / "root" / HOST_KEY))
        machine.boots += 1
        shebang = machine.hook.split(b"\n", 1)[0]
        interpreter = shebang[2:].decode().split() if shebang.startswith(b"#!") else ["sh"]
        environment = {"DESTDIR": str(place / "root"), "PATH": f"{place}/stubs:{SYSTEM_PATH}",
                       "HOME": str(place / "home"), "INSTANCE_ID": machine.id, MARK: machine.id}
        hook = self._spawn(machine, [*interpreter, str(place / HOOK)], "boothook.log", environment)
        if hook is None:
            return
        status = hook.wait()
        if machine.ended:
            return
        if status != 0:
            machine.status = f"boothook failed: {status}"
        elif not (place / "root" / HOST_KEY).exists():
            machine.status = "no host key"
        else:
            self._grow_up(machine)

    def _grow_up(self, machine):
        """Becomes what a machine is that has been there for a while, in the order of a real one's."""
        place, manners = machine.directory, machine.manners
        time.sleep(manners["boot_delay"])
        if manners["other_host_key"] and not machine.ended:
            other = place / "image_host_key"
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
            _write(place / "sshd_config.first", self._sshd_config(machine, other))
            self._listen(machine, "sshd_config.first")
            time.sleep(manners["other_host_key"])
            if machine.sshd and not machine.ended:
                machine.sshd.kill()
                machine.sshd.wait()
                (place / "sshd.log").unlink(missing_ok=True)
        self._listen(machine, "sshd_config")
        if manners["key_delay"]:
            time.sleep(manners["key_delay"])
            if not machine.ended:
                _write(place / "authorized_keys", machine.public_key.strip() + "\n")

    def _listen(self, machine, config):
        config, log = machine.directory / config, machine.directory / "sshd.log"
        alone = [*_ALONE, str(machine.directory / "boot_id")] if self.alone else []
        machine.sshd = self._spawn(
            machine, [*alone, _sshd(), "-D", "-e", "-f", str(config)], "sshd.log", {**os.environ, MARK: machine.id})
        if machine.sshd is None:
            return
        _write(machine.directory / "sshd.pid", f"{machine.sshd.pid}\n")
        until = time.monotonic() + 15
        while machine.sshd.poll() is None and time.monotonic() < until and not machine.ended:
            if log.read_text(errors="replace").count("Server listening") >= len(machine.addresses):
                machine.status = "up"
                return
            time.sleep(0.005)
        if not machine.ended:
            machine.status = "sshd failed: " + log.read_text(errors="replace")[-500:]

    def _spawn(self, machine, command, log, environment):
        """Starts a process of a machine's, unless the machine has ended."""
        with self.forking:
            if machine.ended:
                return None
            with open(machine.directory / log, "ab") as output:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/",
                                           env=environment, start_new_session=True)
                self.started.add(process.pid)
                return process

    def _reboot(self, machine):
        machine.status = "booting"
        end_processes([machine])
        for name in ("sshd.log", "sshd.pid", "deadline.pid"):
            (machine.directory / name).unlink(missing_ok=True)
        shutil.rmtree(machine.directory / "root/run", ignore_errors=True)
        if not machine.ended:
            self._boot(machine)

    def _end(self):
        while True:
            machines = [self.ends.get()]
            # One look at all processes is enough for many machines.
            while not self.ends.empty():
                machines.append(self.ends.get())
            try:
                # Whatever was being started when they ended is there by now.
                with self.forking:
                    pass
                end_processes(machines)
                for machine in machines:
                    self.past[machine.id] = self._facts(machine)
                    shutil.rmtree(machine.directory, ignore_errors=True)
            except Exception:
                traceback.print_exc()

    def _watch(self):
        """Sees machines that switched themselves off, and takes leave of their orphans."""
        while True:
            time.sleep(0.1)
            try:
                for machine in list(self.machines.values()):
                    power = machine.directory / "power"
                    if power.exists():
                        wanted = power.read_text().strip()
                        power.unlink(missing_ok=True)
                        if wanted == "reboot":
                            self.reboot(machine.id)
                        else:
                            self.power_off(machine.id)
                with self.forking:
                    self._reap()
            except Exception:
                traceback.print_exc()

    def _reap(self):
        for machine in list(self.machines.values()):
            if machine.sshd:
                machine.sshd.poll()
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            # Whoever started a process waits for it.
            if ended is None or ended.si_pid in self.started:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)

    # What a machine consists of.

    def _enter(self, machine):
        if words := machine.manners["login_words"]:
            # What cloud-init's `disable_root_opts` has such logins do.
            return f"#!/bin/sh\necho {shlex.quote(words)}; echo; sleep 10; exit 142\n"
        place = shlex.quote(str(machine.directory))
        return (
            "#!/bin/sh\n"
            f"HOME={place}/home DESTDIR={place}/root {MARK}={machine.id}\n"
            f"PATH={place}/stubs:{place}/root/usr/local/bin:/usr/local/bin:{SYSTEM_PATH}\n"
            f"AWS_EC2_METADATA_SERVICE_ENDPOINT={self.metadata}/{machine.id}\n"
            f"export HOME DESTDIR PATH {MARK} AWS_EC2_METADATA_SERVICE_ENDPOINT\n"
            'cd "$HOME" || exit\n'
            'if [ -z "$SSH_ORIGINAL_COMMAND" ]; then exec "${SHELL:-/bin/sh}"; fi\n'
            'exec "${SHELL:-/bin/sh}" -c "$SSH_ORIGINAL_COMMAND"\n')

    def _sshd_config(self, machine, host_key):
        place = machine.directory
        addresses = [f"[{address}]" if ":" in address else address for address in machine.addresses]
        lines = [f"ListenAddress {address}:{self.port}" for address in addresses]
        lines += [
            f'HostKey "{host_key}"', f'AuthorizedKeysFile "{place}/authorized_keys"',
            f"AllowUsers {self.user}", f"ForceCommand /bin/sh {shlex.quote(str(place / 'enter'))}",
            "PermitRootLogin prohibit-password", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
            f"UsePAM {'yes' if self._locked() else 'no'}", "StrictModes no", "PidFile none", "MaxStartups 100",
            "PrintMotd no", "PrintLastLog no", "X11Forwarding no",
            # A shell this deep does not read the user's own start-up files, as bash else does below sshd.
            "SetEnv SHLVL=1",
        ]
        for server in ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server"):
            if os.path.exists(server):
                lines.append(f"Subsystem sftp {server}")
                break
        return "\n".join(lines) + "\n"

    def _locked(self):
        """Whether the account is locked in the way that only PAM overlooks."""
        if os.geteuid() != 0:
            return False
        try:
            entries = Path("/etc/shadow").read_text().splitlines()
        except OSError:
            return False
        return any(line.startswith(f"{self.user}:!") for line in entries)


def boothook(user_data):
    """The script among the parts of the user data, if it is there."""
    if user_data[:2] == b"\x1f\x8b":
        user_data = gzip.decompress(user_data)
    for part in email.message_from_bytes(user_data).walk():
        if part.get_filename() == HOOK:
            return part.get_payload(decode=True)
    return None


def end_processes(machines):
    """Kills all processes of machines: those that bear their marks or are in their directories, their sshds, and the
    descendants of all."""
    marks = [f"{MARK}={machine.id}\0".encode() for machine in machines]
    places = [f"{machine.directory}/" for machine in machines]
    roots = {machine.sshd.pid for machine in machines if machine.sshd and machine.sshd.poll() is None}
    for pid in roots:
        _kill(pid, signal.SIGSTOP)
    for _ in range(100):
        family = _family(marks, places, roots)
        for pid in family:
            _kill(pid, signal.SIGKILL)
        for machine in machines:
            if machine.sshd:
                machine.sshd.poll()
        roots = {pid for pid in roots if _alive(pid)}
        if not family:
            return
        time.sleep(0.01)


def clean(directory, made):
    """Removes what is ours in the directory."""
    for entry in directory.iterdir() if directory.exists() else []:
        if entry.name == ".stubs" or re.fullmatch(r"i-[0-9a-f]+", entry.name):
            shutil.rmtree(entry, ignore_errors=True)
    if made:
        try:
            directory.rmdir()
        except OSError:
            pass


def guard(directory, made):
    """Leaves a process behind that cleans up should this one be killed. Gives its id."""
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(reading)
        # The other end stays open for as long as this process lives.
        return pid
    os.close(writing)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    while os.read(reading, 1):
        pass
    left = []
    for entry in directory.iterdir() if directory.exists() else []:
        if entry.name.startswith("i-"):
            machine = Machine(entry.name, entry, b"", "", [])
            machine.sshd = _Stranger.of(entry)
            left.append(machine)
    end_processes(left)
    clean(directory, made)
    os._exit(0)


class _Stranger:
    """An sshd that is not our child, found again by its file."""

    def __init__(self, pid):
        self.pid = pid

    @classmethod
    def of(cls, directory):
        try:
            pid = int((directory / "sshd.pid").read_text())
            ours = directory.name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
            return cls(pid) if ours else None
        except (OSError, ValueError):
            return None

    def poll(self):
        return None if _alive(self.pid) else 0


def _processes():
    """Parent and state of every process."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b") ")[2].split()
                found[int(entry)] = (int(fields[1]), fields[0].decode())
            except (OSError, IndexError):
                continue
    return found


def _family(marks, places, roots):
    processes = _processes()
    children = {}
    for pid, (parent, _) in processes.items():
        children.setdefault(parent, []).append(pid)
    found, left = set(), list(roots & set(processes))
    for pid in processes:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environment = file.read()
            directory = os.readlink(f"/proc/{pid}/cwd") + "/"
        except OSError:
            continue
        if any(mark in environment for mark in marks) or directory.startswith(tuple(places)):
            left.append(pid)
    while left:
        pid = left.pop()
        if pid not in found and pid != os.getpid():
            found.add(pid)
            left += children.get(pid, [])
    return {pid for pid in found if processes.get(pid, (0, "Z"))[1] != "Z"}


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] != b"Z"
    except OSError:
        return False


def _kill(pid, number):
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _sshd():
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin") or "sshd"


def _write(path, content, mode=0o600):
    data = content if isinstance(content, bytes) else content.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "wb") as file:
        file.write(data)
