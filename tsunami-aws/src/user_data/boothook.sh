#!/bin/sh
# tsunami's part of every boot, before sshd accepts anyone: it arms the machine's deadline and puts the run's
# host key in place. A machine where that fails powers off.
off() {
    set +e
    message='tsunami: the deadline could not be armed; powering off'
    echo "$message" >&2
    [ -n "${DESTDIR-}" ] || echo "$message" >/dev/console &
    sleep 1
    poweroff -f -f -n || [ -n "${DESTDIR-}" ] || echo o >/proc/sysrq-trigger
}
trap '[ $? = 0 ] || off' EXIT
set -eu
umask 022
root=${DESTDIR-}
state=$root/var/lib/tsunami
tool=$root/usr/local/bin/tsunami-deadline
system=$root/etc/systemd/system
ssh=$root/etc/ssh

# Writes a file unless it is there already: a full disk must not end a later boot.
keep() {
    content=$(cat)
    [ "$(cat "$2" 2>/dev/null)" != "$content" ] || return 0
    mkdir -p "${2%/*}"
    (umask 077 && printf '%s\n' "$content" >"$2.new")
    chmod "$1" "$2.new"
    mv "$2.new" "$2"
}

keep 755 "$tool" <<'TSUNAMI'
@TOOL@
TSUNAMI

# It outlives every service, as a shutdown may hang.
unit=$system/tsunami-deadline.service
keep 644 "$unit" <<'TSUNAMI'
[Unit]
Description=The deadline of this machine (tsunami)
DefaultDependencies=no
RequiresMountsFor=/var/lib/tsunami /usr/local/bin
Before=sshd.service ssh.service sshd.socket ssh.socket
IgnoreOnIsolate=yes
RefuseManualStop=yes
StartLimitIntervalSec=60
StartLimitBurst=5
StartLimitAction=poweroff-immediate

[Service]
ExecStart=/bin/sh /usr/local/bin/tsunami-deadline watch
Restart=always
RestartSec=1
OOMScoreAdjust=-1000

[Install]
WantedBy=sysinit.target
TSUNAMI

# Only the first boot makes the promise; `extend` may have moved it since.
[ -s "$state/deadline" ] || keep 644 "$state/deadline" <<'TSUNAMI'
@AT@ @FOR@
TSUNAMI

if [ ! -L "$system/sysinit.target.wants/tsunami-deadline.service" ]; then
    sync "$tool" "$unit" "$state/deadline"
    systemctl enable tsunami-deadline.service
fi
systemctl start --no-block tsunami-deadline.service
timeout 30 sh -c "until '$tool' status; do sleep 0.1; done" >/dev/null 2>&1

# A key of its own name: cloud-init replaces those named `ssh_host_*`.
keep 600 "$ssh/tsunami_host_ed25519_key" <<'TSUNAMI'
@HOST_KEY@
TSUNAMI
line='HostKey /etc/ssh/tsunami_host_ed25519_key'
echo "$line" | keep 644 "$ssh/sshd_config.d/00-tsunami.conf"
# Of several keys of a kind sshd serves the first: where others come before that file is included, if it is, the line
# stands before them.
config=$ssh/sshd_config
keys='^[[:space:]]*(HostKey|Match|Include[[:space:]].*sshd_config\.d/)'
if [ -f "$config" ]; then
    case $(grep -Ei "$keys" "$config" | head -n 1) in
    *sshd_config.d/* | "$line") ;;
    *) sed -i "1i $line" "$config" ;;
    esac
fi
