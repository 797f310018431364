# Ends all processes of trial $1, by the mark in their environment: TERM, five seconds, KILL. Fails if some are left.
# shellcheck disable=SC2046,SC2086 # names in /proc have no spaces
trial=$1 tries=0
while :; do
    set -- $(grep -lzxF -- "TSUNAMI_RUN_ID=$TSUNAMI_RUN_ID" /proc/[0-9]*/environ 2>/dev/null)
    [ $# -eq 0 ] || set -- $(grep -lzxF -- "TSUNAMI_TRIAL=$trial" "$@" 2>/dev/null)
    pids=
    for file; do
        pid=${file#/proc/}
        pids="$pids ${pid%/environ}"
    done
    [ -n "$pids" ] || exit 0
    case $tries in
    0) kill -s TERM $pids ;;
    5?) kill -s KILL $pids ;;
    60) echo "still running:$pids" >&2; exit 1 ;;
    esac
    tries=$((tries + 1))
    sleep 0.1
done
