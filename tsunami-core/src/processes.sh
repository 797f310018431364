# shellcheck disable=SC1007,SC2013,SC2034,SC2046,SC2086 # numbers are split on purpose, and whoever comes after reads the rest
# Finds processes with all that belongs to them, and keeps them. Other scripts begin with this one.
#
# Whoever is ended takes with it what leads to its children: they are adopted elsewhere. So what was found once stays
# in `known`, as PID:STARTED, until it is gone.
known=

# Sets state, parent, group, terminal and started of a process.
look_at() {
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
    set -- ${line##*) }
    state=$1 parent=$2 group=$3 terminal=$5 started=${20}
}

# Adds to what is known the processes with these numbers, and all that descend from a known one or are in a group or
# a session of its. Sets `left` to the numbers of those that run.
gather() {
    all= numbers= kept= left=
    for pid; do
        [ "$pid" -gt 1 ] && numbers="$numbers $pid"
    done
    [ -n "$numbers$known" ] || return 0
    # A name has no line break there. `read` would take each byte by itself.
    set -f -- /proc/[0-9]*/stat
    IFS='
'
    for line in $(cat "$@" 2>/dev/null); do
        unset IFS
        pid=${line%% *}
        set -- ${line##*) }
        case $pid:$1 in 1:* | *:Z | *:X) continue ;; esac
        all="$all $pid:${20}:$2:$3:$4"
    done
    unset IFS
    set +f
    for one in $known; do
        case "$all " in
        *" $one:"*) ;;
        # Its number is somebody else's by now.
        *" ${one%:*}:"*) continue ;;
        esac
        kept="$kept $one" numbers="$numbers ${one%:*}"
    done
    known=$kept more=yes
    while [ -n "$more" ]; do
        more= others=
        for one in $all; do
            pid=${one%%:*} rest=${one#*:}
            started=${rest%%:*} rest=${rest#*:}
            its_parent=${rest%%:*} rest=${rest#*:}
            case "$numbers " in
            *" $pid "* | *" $its_parent "* | *" ${rest%:*} "* | *" ${rest#*:} "*) ;;
            *)
                others="$others $one"
                continue
                ;;
            esac
            left="$left $pid" numbers="$numbers $pid" more=yes
            case "$known " in *" $pid:$started "*) ;; *) known="$known $pid:$started" ;; esac
        done
        all=$others
    done
}

# Runs a command as root where that asks nothing.
as_root() {
    [ "$(id -u)" != 0 ] && command -v sudo >/dev/null && sudo -n "$@" </dev/null
}

# Sends a signal to all that is left, root's processes (`sudo …`) included. One that is stopped gets it when it goes on.
signal() {
    kill -s "$1" $left 2>/dev/null || as_root kill -s "$1" $left 2>/dev/null
    kill -s CONT $left 2>/dev/null
}

# Ends what is left: TERM, five seconds, KILL. `find_more` finds more each time. Fails if some do not end.
end_all() {
    began= kills=0 pauses='0.01 0.02 0.05 0.1'
    while [ -n "$left" ]; do
        read -r now _ </proc/uptime
        now=${now%%.*}
        if [ -z "$began" ]; then
            began=$now
            signal TERM
        elif [ $((now - began)) -gt 5 ]; then
            [ $((now - began)) -lt 9 ] || [ $kills -lt 10 ] || return 1
            kills=$((kills + 1))
            signal KILL
        fi
        sleep "${pauses%% *}"
        pauses=${pauses#* }
        find_more
    done
}
