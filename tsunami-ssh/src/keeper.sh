# Ends the processes of a run. Runs on the machine itself: beside the machines of `local`, on each of `hosts`.
#
#   keep DIRECTORY RUN   waits for the deadline in DIRECTORY/.deadline, then does what `reap` does.
#   reap DIRECTORY RUN   ends all processes of the run: TERM, five seconds, KILL. Removes the directory once
#                        they are gone; else prints a line for each that is left.
#
# A process belongs to the run if its environment has TSUNAMI_RUN_ID=RUN, or if it is an sshd of one of the run's
# machines, or if it descends from such a process. Nothing depends on a pid that somebody did not come to write
# down, nor on a path, which sshd shows in an encoding of its own.
# DIRECTORY/.deadline has two numbers, seconds since 1970 and seconds since boot: whichever comes first, so that
# neither a changed clock nor a suspended machine puts it off.
mode=$1 dir=$2 run=$3

marked() {
    grep -lzxF -- "TSUNAMI_RUN_ID=$run" /proc/[0-9]*/environ 2>/dev/null |
        while IFS=/ read -r _ _ pid _; do echo "$pid"; done
}

listeners() {
    set -- $(grep -lF -- "$run/local/" /proc/[0-9]*/cmdline 2>/dev/null)
    [ $# -eq 0 ] || grep -lF sshd_config "$@" 2>/dev/null |
        while IFS=/ read -r _ _ pid _; do echo "$pid"; done
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
            kill -$signal $left 2>/dev/null
            ;;
        7[0-9])
            for pid in $left; do
                echo "process $pid: $(tr '\0\n' '  ' <"/proc/$pid/cmdline" | cut -c 1-120)"
            done
            return
            ;;
        esac
        tries=$((tries + 1))
        sleep 0.1
    done
    rm -rf -- "$dir"
}

case $mode in
reap)
    if [ -e "$dir/.keeper.pid" ] && read -r pid <"$dir/.keeper.pid"; then
        grep -qF -- "$dir" "/proc/$pid/cmdline" 2>/dev/null && kill -s KILL -- "-$pid"
    fi
    reap
    ;;
keep)
    trap '' HUP INT TERM
    while [ -e "$dir/.deadline" ]; do
        read -r clock boot <"$dir/.deadline"
        read -r now _ </proc/uptime
        left=$((boot - ${now%%.*}))
        wall=$((clock - $(date +%s)))
        [ $wall -lt $left ] && left=$wall
        if [ $left -le 0 ]; then
            reap
            exit
        fi
        sleep $((left < 2 ? left : 2))
    done
    ;;
esac
