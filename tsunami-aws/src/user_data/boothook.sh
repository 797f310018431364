#!/bin/sh
# tsunami's part of every boot, before sshd accepts anyone: it arms the machine's deadline and puts the run's
# host key in place. A machine where that fails powers off.
off() {
    echo "tsunami: the deadline could not be armed; powering off" | tee /dev/console >&2
    sync
    poweroff -f -f || systemctl poweroff --force --force || echo o >/proc/sysrq-trigger
}
trap '[ $? = 0 ] || off' EXIT
set -eu
umask 022
root=${DESTDIR-}
state=$root/var/lib/tsunami
tool=$root/usr/local/bin/tsunami-deadline
unit=$root/etc/systemd/system/tsunami-deadline.service
mkdir -p "$state" "${tool%/*}" "${unit%/*}" "$root/etc/ssh/sshd_config.d"

cat >"$tool.new" <<'TSUNAMI'
@TOOL@
TSUNAMI
chmod 755 "$tool.new"
mv "$tool.new" "$tool"

# Only the first boot makes the promise; `extend` may have moved it since.
if [ ! -s "$state/deadline" ]; then
    echo '@AT@ @FOR@' >"$state/deadline.new"
    mv "$state/deadline.new" "$state/deadline"
fi

if [ ! -s "$unit" ]; then
    cat >"$unit" <<'TSUNAMI'
[Unit]
Description=The deadline of this machine (tsunami)
DefaultDependencies=no
RequiresMountsFor=/var/lib/tsunami /usr/local/bin
Conflicts=shutdown.target
Before=shutdown.target sshd.service ssh.service
RefuseManualStop=yes
StartLimitIntervalSec=60
StartLimitBurst=5
StartLimitAction=poweroff-force

[Service]
ExecStart=/bin/sh /usr/local/bin/tsunami-deadline watch
Restart=always
RestartSec=1
OOMScoreAdjust=-1000

[Install]
WantedBy=sysinit.target
TSUNAMI
    systemctl daemon-reload
    systemctl enable tsunami-deadline.service
fi
systemctl start tsunami-deadline.service
tries=0
until "$tool" status >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ]
    sleep 0.1
done

# A key of its own name: cloud-init replaces those named `ssh_host_*`.
(
    umask 077
    cat >"$root/etc/ssh/tsunami_host_ed25519_key.new" <<'TSUNAMI'
@HOST_KEY@
TSUNAMI
)
mv "$root/etc/ssh/tsunami_host_ed25519_key.new" "$root/etc/ssh/tsunami_host_ed25519_key"
line='HostKey /etc/ssh/tsunami_host_ed25519_key'
echo "$line" >"$root/etc/ssh/sshd_config.d/00-tsunami.conf"
config=$root/etc/ssh/sshd_config
if [ -f "$config" ] && ! grep -Eiq '^[[:space:]]*Include[[:space:]].*sshd_config\.d/' "$config" &&
    ! grep -qxF "$line" "$config"; then
    sed -i "1i $line" "$config"
fi
