# shellcheck disable=SC2015,SC2086 # process numbers are split on purpose, and `a && b || c` is read as it stands
# Ends the process group $2, if it is one that a command of the run $1 has made: TERM, five seconds, KILL. Prints "gone"
# once nothing of it runs, else "left". The number comes from the machine, which may lie.
# Root's processes in it (`sudo …`) are reached with sudo where that asks no questions.
run=$1 group=$2 tries=0

# Sets state, parent and its_group of a process.
look_at() {
    { read -r line <"/proc/$1/stat"; } 2>/dev/null || return
    set -- ${line##*) }
    state=$1 parent=$2 its_group=$3
}

members() {
    for file in /proc/[0-9]*; do
        look_at "${file#/proc/}" && [ "$its_group" = "$group" ] || continue
        case $state in Z | X) ;; *) echo "${file#/proc/}" ;; esac
    done
}

# Whether a process of the group, or one that it descends from, is marked as the run's.
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

signal() {
    kill -s "$1" -- "-$group" 2>/dev/null
    [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n kill -s "$1" -- "-$group" 2>/dev/null; }
}

while left=$(members) && [ -n "$left" ]; do
    case $tries in
    0)
        [ "$group" -gt 1 ] && is_the_runs $left || { echo left; exit; }
        signal TERM
        ;;
    50 | 60 | 70) signal KILL ;;
    80) echo left; exit ;;
    esac
    tries=$((tries + 1))
    sleep 0.1
done
echo gone
