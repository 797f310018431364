# shellcheck disable=SC1007,SC2010,SC2013,SC2015,SC2044,SC2046,SC2059,SC2086,SC2154 # process numbers are split on purpose, `a && b || c` is read as it stands, and processes.sh sets the rest
# Ends the processes of a run. Runs on the machine itself: beside the machines of `local`, on each of `hosts`.
#
#   watch RUN DIRECTORY SECONDS HOW
#                        says "armed", with the run's control group if it has one, and does what `reap` does in
#                        SECONDS, or as soon as DIRECTORY is gone. HOW is `ensure`: an older watchdog of the run goes
#                        on in its place; or `replace`: it ends them.
#   again RUN DIRECTORY CLOCK BOOT
#                        is how a watchdog goes on that its shell has given up, for want of a process: with the
#                        moments that it waits for.
#   reap RUN DIRECTORY   ends all processes of the run: TERM, five seconds, KILL. Once they are gone it removes the
#                        directory, and last the watchdogs. Prints a line for whatever is left: what it is, a tab,
#                        why it is still there.
#
# A process belongs to the run if its environment has TSUNAMI_RUN_ID=RUN, or if it is an sshd of one of the run's
# machines, or if it descends from such a process. A daemon may shed both: so one without a terminal also does if it
# works in the run's directory, runs a program of it, writes to a file in it, or listens at an address of the run's
# machines. Where the user may make a control group (cgroup v2), the run's commands begin in one of the run's own, and
# what is in that belongs to the run, whatever else it has left behind. Nothing depends on a pid that somebody did not
# come to write down.
# A watchdog keeps its deadline in itself, where no command of the run can reach it: two moments, by the clock and
# since boot, whichever comes first, so that neither a changed clock nor a suspended machine puts it off. It is known
# by its name, $0, which is the same for the same run and directory, and has this script in $TSUNAMI_WATCHDOG. What it
# can't find out counts as the end.
mode=$1 run=$2 dir=$3 name=tsunami-watchdog:$2:$3

# The directory as the kernel calls it, or as it was called if it is gone. Without a fork, which a watchdog may be
# refused.
tree=$dir from=$PWD
cd -P -- "$dir" 2>/dev/null && tree=$PWD
cd -- "$from" || cd /

# The run's control groups, if this user has made any.
control_groups() {
    while read -r _ _ _ _ mounted rest; do
        case $rest in *' - cgroup2 '*) find "$mounted" -type d -name "tsunami-$run" 2>/dev/null ;; esac
    done </proc/self/mountinfo | while read -r group; do
        [ ! -O "$group" ] || echo "$group"
    done
}

# Says which control group the run's commands join: the run's, made below this process's own unless it is there. Says
# nothing where there can be none.
offer_control_group() {
    for group in $(control_groups); do
        echo "$group"
        return
    done
    own=$(grep '^0::/' /proc/self/cgroup 2>/dev/null) || return
    while read -r _ _ _ root mounted rest; do
        case $rest in *' - cgroup2 '*) ;; *) continue ;; esac
        # A container may be shown only what is below its own.
        below=${own#0::}
        case $below/ in "${root%/}/"*) below=${below#"${root%/}"} ;; esac
        group=$mounted${below%/}/tsunami-$run
        mkdir -- "$group" 2>/dev/null || [ -O "$group" ] || continue
        echo "$group"
        return
    done </proc/self/mountinfo
}

# The processes in the run's control groups, but no sshd: it is the host's own that a command has restarted.
controlled() {
    for group in $(control_groups); do
        for pid in $(find "$group" -name cgroup.procs -exec cat {} + 2>/dev/null); do
            { read -r name_of <"/proc/$pid/comm"; } 2>/dev/null || continue
            [ "$name_of" = sshd ] || echo "$pid"
        done
    done
}

# Those that are empty, which they are once their processes have ended.
remove_control_groups() {
    for group in $(control_groups); do
        find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null
    done
    return 0
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

# The sockets that listen at an address of the run's machines, as the kernel calls them. Those of `local` alone have
# addresses that are nobody else's.
sockets() {
    case $dir in */"$run/local") ;; *) return ;; esac
    for config in "$dir"/*/sshd_config; do
        { read -r key address <"$config"; } 2>/dev/null && [ "$key" = ListenAddress ] || continue
        IFS=.
        set -- ${address%:*}
        unset IFS
        [ $# = 4 ] && [ "$1" = 127 ] && [ "$2" -ge 64 ] && [ "$2" -lt 128 ] || continue
        hex=$(printf '%02X%02X%02X%02X' "$4" "$3" "$2" "$1")
        # Listening over TCP, or bound over UDP.
        grep -hE ": [0-9A-F]*$hex:[0-9A-F]{4} 0+:0000 (0A|07) " /proc/net/tcp /proc/net/tcp6 /proc/net/udp \
            /proc/net/udp6 2>/dev/null |
            while read -r _ _ _ _ _ _ _ _ _ inode _; do echo "socket:[$inode]"; done
    done 2>/dev/null
}

# Whether what the kernel says of a process leads to the run's directory, or is one of the sockets $2.
leads_here() {
    to=$(readlink "$1") || return
    case $to in
    "$tree" | "$tree/"* | "$tree (deleted)") ;;
    socket:*) case " $2 " in *" $to "*) ;; *) return 1 ;; esac ;;
    *) return 1 ;;
    esac
}

# The processes that the run's directory shows, or one of the sockets given, beside those that are left anyway. Those
# with a terminal are somebody's who looks around, and those above this one are on their way here.
attached() {
    sockets=$* above= pid=$$
    while [ "${pid:-0}" -gt 1 ]; do
        above="$above $pid"
        look_at "$pid" || break
        pid=$parent
    done
    seen="$above $left"
    signs=$(printf '%s\n' /fd: "-> $tree" "$@")
    # A name may hold a line break and make up a line: it only says where to look.
    ls -ln /proc/[0-9]*/cwd /proc/[0-9]*/exe /proc/[0-9]*/fd 2>/dev/null | grep -F -- "$signs" |
        while read -r line; do
            case $line in
            /proc/*/fd:)
                fds=${line%:}
                continue
                ;;
            *' -> '*) link=${line%% -> *} link=${link##* } ;;
            *) continue ;;
            esac
            case $link:$line in
            /proc/*) ;;
            *:l?w*) link=$fds/$link ;;
            *) continue ;;
            esac
            pid=${link#/proc/}
            pid=${pid%%/*}
            case "$seen " in *" $pid "*) continue ;; esac
            look_at "$pid" && [ "$terminal" = 0 ] && leads_here "$link" "$sockets" || continue
            seen="$seen $pid"
            echo "$pid"
        done
}

find_more() {
    gather $(listeners) $(marked) $(controlled)
    [ -n "$left" ] || gather $(attached)
}

# Ends the run's processes, or says which are left. A machine's address may be another's as soon as its sshd has ended,
# so listeners are looked for only before that.
end_processes() {
    gather $(listeners) $(marked) $(controlled)
    gather $(attached $(sockets))
    end_all && return
    for pid in $left; do
        printf 'process %s: %s\tit does not end\n' "$pid" \
            "$(tr '\0\n\t' '   ' <"/proc/$pid/cmdline" | cut -c 1-120)"
    done
    return 1
}

# What is mounted in the run's directory.
mounts() {
    while read -r _ _ _ _ point _; do
        # A space is written as \040.
        case $point in *\\*) point=$(printf "$(printf '%s\n' "$point" | sed 's/%/%%/g')") ;; esac
        case $point in "$tree" | "$tree/"*) echo "$point" ;; esac
    done </proc/self/mountinfo
}

# Removes the run's directory, but nothing that is mounted in it, and says what is left.
remove_directory() {
    why=$(mounts)
    if [ -n "$why" ]; then
        why="it is not removed with what is mounted in it; unmount that first: $why"
    else
        only=
        rm --one-file-system -f -- 2>/dev/null && only=--one-file-system
        rm -rf $only -- "$dir" 2>/dev/null && return
        # Some directories are made read-only, a cache of Go's modules among them.
        find "$dir" -type d ! -perm -700 -exec chmod u+rwx {} \; 2>/dev/null
        rm -rf $only -- "$dir" 2>/dev/null && return
        as_root rm -rf $only -- "$dir" 2>/dev/null && return
        why=$(rm -rf $only -- "$dir" 2>&1) && return
        why="remove it as who may: \`sudo rm -rf -- '$dir'\`; $why"
    fi
    printf 'directory %s\t%s\n' "$dir" "$(echo "$why" | tr '\n\t' '  ' | cut -c 1-600)"
    return 1
}

reap() {
    end_processes && remove_control_groups && remove_directory
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
    while reap; [ -n "$left" ]; do
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
        echo "armed $(offer_control_group)"
        exit
    fi
    cd / && echo "armed $(offer_control_group)" && exec >/dev/null 2>&1 || exit
    keep_watch
    ;;
again)
    clock=$4 boot=$5
    keep_watch
    ;;
esac
