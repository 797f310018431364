# Ends all processes of trial $1: those that have its mark in their environment, what descends from them, and what is in
# a group or a session of theirs: TERM, five seconds, KILL. Names those that are left, and fails then.
# shellcheck disable=SC1007,SC2046,SC2086 # numbers are split on purpose
#
# Whoever is ended takes with it what leads to its children: they are adopted elsewhere. So what was found once stays
# in `known`, as PID:STARTED, until it is gone.
trial=$1 known=

marked() {
    set -- $(grep -lzxF -- "TSUNAMI_RUN_ID=$TSUNAMI_RUN_ID" /proc/[0-9]*/environ 2>/dev/null)
    [ $# -eq 0 ] || grep -lzxF -- "TSUNAMI_TRIAL=$trial" "$@" 2>/dev/null | cut -d / -f 3
}

# Adds to what is known the processes with these numbers, and all that belong to a known one. Sets `left` to the numbers
# of those that run.
gather() {
    all= numbers=" $* " kept= left=
    for file in /proc/[0-9]*/stat; do
        { read -r line <"$file"; } 2>/dev/null || continue
        pid=${line%% *}
        set -- ${line##*) }
        case $pid:$1 in 1:* | *:Z | *:X) continue ;; esac
        all="$all $pid:${20}:$2:$3:$4"
    done
    for one in $known; do
        case "$all " in
        *" $one:"*) ;;
        # Its number is somebody else's by now.
        *" ${one%:*}:"*) continue ;;
        esac
        # One that is gone still tells its children, and leads its group.
        kept="$kept $one" numbers="$numbers${one%:*} "
    done
    known=$kept more=yes
    while [ -n "$more" ]; do
        more= others=
        for one in $all; do
            IFS=:
            set -- $one
            unset IFS
            case $numbers in
            *" $1 "* | *" $3 "* | *" $4 "* | *" $5 "*) ;;
            *)
                others="$others $one"
                continue
                ;;
            esac
            left="$left $1" numbers="$numbers$1 " more=yes
            case "$known " in *" $1:$2 "*) ;; *) known="$known $1:$2" ;; esac
        done
        all=$others
    done
}

# Runs a command as root where that asks nothing: for what `sudo` has started.
as_root() {
    [ "$(id -u)" != 0 ] && command -v sudo >/dev/null && sudo -n "$@" </dev/null
}

# One that is stopped gets the signal when it goes on.
signal() {
    kill -s "$1" $left 2>/dev/null || as_root kill -s "$1" $left 2>/dev/null
    kill -s CONT $left 2>/dev/null || as_root kill -s CONT $left 2>/dev/null
}

tries=0
while gather $(marked); [ -n "$left" ]; do
    case $tries in
    0) signal TERM ;;
    5?) signal KILL ;;
    60) echo "still running:$left" >&2; exit 1 ;;
    esac
    tries=$((tries + 1))
    sleep 0.1
done
exit 0
