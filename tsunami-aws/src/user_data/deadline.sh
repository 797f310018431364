#!/bin/sh
# Ends this machine at its deadline. A service of systemd runs `watch`, before sshd, at every boot.
#
#   /var/lib/tsunami/deadline   the promise: AT, in seconds since 1970, and FOR, in seconds of life
#   /var/lib/tsunami/lived      the seconds it had lived, in all its boots, when that could last be written
#   /run/tsunami/beat           the uptime at which `watch` looked last, and the seconds lived by then
#
# Whichever comes first ends it. AT holds where the machine was off for a while, FOR where its clock is wrong.
set -eu
umask 022
state=${DESTDIR-}/var/lib/tsunami
beat=${DESTDIR-}/run/tsunami/beat

uptime() {
    IFS=' .' read -r _seconds _rest </proc/uptime
    echo "$_seconds"
}

# Always as long and never truncated: that takes no room on a full disk, and a crash leaves the old or the new.
note() {
    printf '%-24s\n' "$2" 1<>"$1"
}

# A promise that can't be read is over.
left() {
    read -r at for _rest <"$state/deadline" || return 1
    by_clock=$((at - $(date +%s))) by_life=$((for - lived))
    left=$((by_clock < by_life ? by_clock : by_life))
}

# Waits for no process, server or disk, any of which may hang.
end() {
    set +e
    [ -n "${DESTDIR-}" ] || echo 'tsunami: the deadline of this machine is over' >/dev/console &
    sync &
    sleep 3
    poweroff -f -f -n &
    sleep 10
    [ -n "${DESTDIR-}" ] || echo o >/proc/sysrq-trigger
    exit 1
}

case ${1-} in
watch)
    # Should any of this fail, systemd tries again, and in the end powers off.
    mkdir -p "${beat%/*}"
    # A boot counts from its beginning, where the uptime is this machine's own.
    last=0 lived=0 writer=
    [ -z "${DESTDIR-}" ] || last=$(uptime)
    if [ -s "$beat" ]; then
        read -r last lived <"$beat"
    elif [ -s "$state/lived" ]; then
        read -r lived <"$state/lived"
    fi
    while :; do
        now=$(uptime)
        lived=$((lived + now - last)) last=$now
        left || end
        [ "$left" -gt 0 ] || end
        note "$beat" "$now $lived"
        # Apart, and one at a time: a disk that hangs must not hold the deadline.
        if ! kill -0 "$writer" 2>/dev/null; then
            note "$state/lived" "$lived" 2>/dev/null &
            writer=$!
        fi
        sleep "$((left < 5 ? left : 5))"
    done
    ;;
status)
    read -r at for _rest <"$state/deadline"
    read -r seen _rest <"$beat"
    [ "$(($(uptime) - seen))" -le 30 ]
    echo "armed $at $for"
    ;;
extend)
    for number in "${2-}" "${3-}"; do
        case $number in '' | 0* | *[!0-9]* | ????????????*) exit 2 ;; esac
    done
    echo "$2 $3" >"$state/deadline.new"
    sync "$state/deadline.new"
    mv "$state/deadline.new" "$state/deadline"
    sync "$state"
    ;;
*)
    echo "usage: tsunami-deadline watch | status | extend AT FOR" >&2
    exit 2
    ;;
esac
