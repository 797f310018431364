# shellcheck disable=SC2046,SC2154 # numbers are split on purpose, and processes.sh sets the rest
# Ends all processes of trial $1, or of all trials of the run if that is empty: those that have its mark in their
# environment, what descends from them, and what is in a group or a session of theirs: TERM, five seconds, KILL. Names
# those that are left, and fails then.
trial=$1

# What has the trial's mark is rare, and looked at closer.
marked() {
    case $trial in
    '') set -- $(grep -lz '^TSUNAMI_TRIAL=' /proc/[0-9]*/environ 2>/dev/null) ;;
    *) set -- $(grep -lzxF -- "TSUNAMI_TRIAL=$trial" /proc/[0-9]*/environ 2>/dev/null) ;;
    esac
    [ $# -eq 0 ] || grep -lzxF -- "TSUNAMI_RUN_ID=$TSUNAMI_RUN_ID" "$@" 2>/dev/null | cut -d / -f 3
}

find_more() {
    gather $(marked)
}

find_more
end_all || {
    echo "still running:$left" >&2
    exit 1
}
