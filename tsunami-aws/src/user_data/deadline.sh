#!/bin/sh
# Ends this machine at its deadline. A service of systemd runs `watch`, before sshd, at every boot.
#
#   /var/lib/tsunami/deadline   the promise: AT, in seconds since 1970, and FOR, in seconds of life
#   /var/lib/tsunami/lived      the seconds it has lived, in all its boots
#   /run/tsunami/beat           the uptime at which `watch` looked last
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

put() {
    printf '%s\n' "$2" >"$1.new"
    mv "$1.new" "$1"
}

# A promise that can't be read is over.
left() {
    read -r at for _rest <"$state/deadline" || return 1
    by_clock=$((at - $(date +%s))) by_life=$((for - lived))
    left=$((by_clock < by_life ? by_clock : by_life))
}

end() {
    trap - EXIT
    sync
    systemctl poweroff --force || poweroff -f || echo o >/proc/sysrq-trigger
    exit 1
}

case ${1-} in
watch)
    # However this ends, the machine does.
    trap end EXIT
    last=$(uptime) lived=0
    [ ! -s "$state/lived" ] || read -r lived <"$state/lived"
    mkdir -p "${beat%/*}"
    while left && [ "$left" -gt 0 ]; do
        put "$beat" "$last"
        sleep "$((left < 5 ? left : 5))"
        now=$(uptime)
        lived=$((lived + now - last)) last=$now
        put "$state/lived" "$lived"
    done
    ;;
status)
    read -r at for _rest <"$state/deadline"
    read -r seen <"$beat"
    [ "$(($(uptime) - seen))" -le 30 ]
    echo "armed $at $for"
    ;;
extend)
    case ${2:-x}${3:-x} in *[!0-9]*) exit 2 ;; esac
    put "$state/deadline" "$2 $3"
    sync
    ;;
*)
    echo "usage: tsunami-deadline watch | status | extend AT FOR" >&2
    exit 2
    ;;
esac
