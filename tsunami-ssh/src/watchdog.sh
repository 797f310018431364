# shellcheck disable=SC1007,SC2013,SC2015,SC2046,SC2086 # process numbers are split on purpose; `a && b || c` is read as it stands
# Ends the processes of a run. Runs on the machine itself: beside the machines of `local`, on each of `hosts`.
#
#   watch RUN DIRECTORY SECONDS HOW
#                        says "armed", and does what `reap` does in SECONDS, or as soon as DIRECTORY is gone. HOW is
#                        `ensure`: an older watchdog of the run goes on in its place; or `replace`: it ends them.
#   again RUN DIRECTORY CLOCK BOOT
#                        is how a watchdog goes on that its shell has given up, for want of a process: with the
#                        moments that it waits for.
#   reap RUN DIRECTORY   ends all processes of the run: TERM, five seconds, KILL. Once they are gone it removes the
#                        directory, and last the watchdogs. Prints a line for whatever is left: what it is, a tab,
#                        why it is still there.
#
# A process belongs to the run if its environment has TSUNAMI_RUN_ID=RUN, or if it is an sshd of one of the run's
# machines, or if it descends from such a process. Nothing depends on a pid that somebody did not come to write
# down, nor on a path, which sshd shows in an encoding of its own.
# A watchdog keeps its deadline in itself, where no command of the run can reach it: two moments, by the clock and
# since boot, whichever comes first, so that neither a changed clock nor a suspended machine puts it off. It is known
# by its name, $0, which is the same for the same run and directory, and has this script in $TSUNAMI_WATCHDOG. What it
# can't find out counts as the end.
mode=$1 run=$2 dir=$3 name=tsunami-watchdog:$2:$3

# Sets state, group and started of a process.
look_at() {
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return
    set -- ${line##*) }
    state=$1 group=$3 started=${20}
}

# The run's watchdogs that are older than this process: of two that begin at once, one is.
older_watchdogs() {
    look_at $$ || return
    own_start=$started
    for pid in $(grep -lzxF -- "$name" /proc/[0-9]*/cmdline 2>/dev/null | cut -d / -f 3); do
        look_at "$pid" && [ "$group" = "$pid" ] && [ -O "/proc/$pid" ] || continue
        case $state in Z | X | T) continue ;; esac
        [ "$started" -lt "$own_start" ] || { [ "$started" = "$own_start" ] && [ "$pid" -lt $$ ]; } || continue
        echo "$pid"
    done
}

end_watchdogs() {
    tries=0
    while left=$(older_watchdogs) && [ -n "$left" ] && [ $tries -lt 50 ]; do
        for pid in $left; do
            kill -s KILL -- "-$pid" 2>/dev/null
        done
        tries=$((tries + 1))
        sleep 0.1
    done
}

marked() {
    grep -lzxF -- "TSUNAMI_RUN_ID=$run" /proc/[0-9]*/environ 2>/dev/null | cut -d / -f 3
}

listeners() {
    set -- $(grep -lF -- "$run/local/" /proc/[0-9]*/cmdline 2>/dev/null)
    [ $# -eq 0 ] || grep -lF sshd_config "$@" 2>/dev/null | cut -d / -f 3
}

# The processes given, and all that descend from them.
trees() {
    [ $# -gt 0 ] || return 0
    all= found=" $* "
    for file in /proc/[0-9]*/stat; do
        { read -r line <"$file"; } 2>/dev/null || continue
        rest=${line##*) }
        state=${rest%% *} parent=${rest#* }
        [ "$state" = Z ] || all="$all ${line%% *}:${parent%% *}"
    done
    more=yes
    while [ -n "$more" ]; do
        more=
        for one in $all; do
            case $found in *" ${one%:*} "*) continue ;; esac
            case $found in *" ${one#*:} "*) found="$found${one%:*} " more=yes ;; esac
        done
    done
    echo $found
}

processes() {
    trees $(listeners) $(marked)
}

reap() {
    signal=TERM tries=0
    while left=$(processes) && [ -n "$left" ]; do
        case $tries in
        0 | 5[0-9] | 6[0-9])
            [ $tries -eq 0 ] || signal=KILL
            kill -s $signal $left 2>/dev/null
            ;;
        7[0-9])
            for pid in $left; do
                printf 'process %s: %s\tit does not end\n' "$pid" \
                    "$(tr '\0\n\t' '   ' <"/proc/$pid/cmdline" | cut -c 1-120)"
            done
            return 1
            ;;
        esac
        tries=$((tries + 1))
        sleep 0.1
    done
    why=$(rm -rf -- "$dir" 2>&1)
    [ -e "$dir" ] || return 0
    printf 'directory %s\t%s\n' "$dir" "$(echo "$why" | tr '\n\t' '  ' | cut -c 1-300)"
    return 1
}

# Waits until the moment $clock, or $boot, and ends the run. A shell that can't fork ends, and is begun again.
keep_watch() {
    trap '' HUP INT TERM
    trap 'exec sh -c "$TSUNAMI_WATCHDOG" "$name" again "$run" "$dir" "$clock" "$boot"' EXIT
    while [ -d "$dir" ]; do
        now=$(date +%s) && read -r up _ </proc/uptime || break
        left=$((boot - ${up%%.*}))
        [ $left -lt $((clock - now)) ] || left=$((clock - now))
        [ $left -gt 0 ] || break
        sleep $((left < 2 ? left : 2))
    done
    while reap; [ -n "$(processes)" ]; do
        sleep 10
    done
    trap - EXIT
}

case $mode in
reap)
    reap && end_watchdogs
    ;;
watch)
    clock=$(date +%s) && read -r boot _ </proc/uptime || exit
    clock=$((clock + $4)) boot=$((${boot%%.*} + $4))
    if [ "$5" = replace ]; then
        end_watchdogs
    elif [ -n "$(older_watchdogs)" ]; then
        echo armed
        exit
    fi
    cd / && echo armed && exec >/dev/null 2>&1 || exit
    keep_watch
    ;;
again)
    clock=$4 boot=$5
    keep_watch
    ;;
esac
