#!/bin/sh
# What an image does with tsunami's user data, told on the machine's console: `contract.py` asks it of images on EC2,
# and the tests that boot ask it of Debian's.
say() { echo "tsunami-contract: $*"; }
# A unit that was never started says 0.
began() { systemctl show --value -p InactiveExitTimestampMonotonic "$1"; }
listener=
for unit in ssh.socket sshd.socket ssh.service sshd.service; do
    began=$(began "$unit")
    [ -n "$listener" ] || [ "${began:-0}" = 0 ] || listener=$unit
done
{
    say user "$(getent passwd 1000 | cut -d : -f 1)"
    say listener "$listener"
    say deadline "$(tsunami-deadline status)"
    say began "$(began tsunami-deadline.service) $(began "$listener")"
    # Some versions tell what answered in a comment.
    say key "$(ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | grep -v '^#' | cut -d ' ' -f 2,3)"
    say version "$(cloud-init --version 2>&1)"
    say includes "$(grep -Eic '^[[:space:]]*Include[[:space:]].*sshd_config\.d/' /etc/ssh/sshd_config)"
    say selinux "$(cat /sys/fs/selinux/enforce 2>/dev/null || echo none)"
    say complete
} >/dev/console
