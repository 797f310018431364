# shellcheck disable=SC2015,SC2046,SC2086,SC2154 # process numbers are split on purpose, `a && b || c` is read as it stands, and processes.sh sets the rest
# Ends the process group $2, if it is one that a command of the run $1 has made, and what descends from it: TERM, five
# seconds, KILL. Prints "gone" once nothing of it runs, or "over" if the command itself, which has the group's number, had
# ended before that, else "left". The number comes from the machine, which may lie.
# Root's processes in it (`sudo …`) are reached with sudo where that asks no questions. The supervisor $3 of a list of
# commands, if it is the run's, is told first to begin no other.
run=$1 the_group=$2 supervisor=${3-}

# Whether a process, or one that it descends from, is marked as the run's.
is_the_runs() {
    for pid; do
        while [ "${pid:-0}" -gt 1 ]; do
            grep -qzxF -- "TSUNAMI_RUN_ID=$run" "/proc/$pid/environ" 2>/dev/null && return
            look_at "$pid" || break
            pid=$parent
        done
    done
    return 1
}

find_more() {
    gather "$the_group"
}

members() {
    for pid in $left; do
        look_at "$pid" && [ "$group" = "$the_group" ] && echo "$pid"
    done
}

[ -z "$supervisor" ] || ! is_the_runs "$supervisor" || kill -s USR1 "$supervisor" 2>/dev/null
find_more
case " $left " in
*" $the_group "*) gone=gone ;;
*)
    gone=over
    # Who runs and was not found would not be ended.
    if look_at "$the_group" && [ "$group" = "$the_group" ]; then
        case $state in
        Z | X) ;;
        *)
            echo left
            exit
            ;;
        esac
    fi
    ;;
esac
if [ "$the_group" -gt 1 ] && { [ -z "$left" ] || { is_the_runs $(members) && end_all; }; }; then
    echo $gone
else
    echo left
fi
