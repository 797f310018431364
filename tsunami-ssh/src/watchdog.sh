# shellcheck disable=SC1007,SC2010,SC2013,SC2015,SC2044,SC2046,SC2059,SC2086,SC2154 # process numbers are split on purpose, `a && b || c` is read as it stands, and processes.sh sets the rest
# Ends the processes of a run. Runs on the machine itself: beside the machines of `local`, on each of `hosts`.
#
#   watch RUN DIRECTORY SECONDS HOW [new]
#                        says "armed", with the run's control group if it has one, and does what `reap` does in
#                        SECONDS, or as soon as DIRECTORY is gone. HOW is `ensure`: an older watchdog of the run goes
#                        on in its place; or `replace`: it ends them. There is none in a directory that is new.
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
# since boot, whichever comes first, so that neither a changed clock nor a suspended machine puts it off. It looks at
# the directory and the time since boot every five seconds, and every minute at the clock. It is known
# by its name, $0, which is the same for the same run and directory, and has this script in $TSUNAMI_WATCHDOG. It works
# in the run's control group, or in /proc where there can be none. What it can't find out counts as the end.
# All of this costs the machine little: what is cheap is asked first, and the rest only where that leaves a question.
mode=$1 run=$2 dir=$3 name=tsunami-watchdog:$2:$3 own_start=
n='
'

# The directory as the kernel calls it, or as it was called if it is gone. Without a fork, which a watchdog may be
# refused.
tree=$dir from=$PWD
cd -P -- "$dir" 2>/dev/null && tree=$PWD
cd -- "$from" || cd /
# It would be in the environment of what this starts.
unset OLDPWD

# Sets `pids` to the processes of those of the files $3… in /proc that have the text $2, as grep's option $1 has it.
pick() {
    pids= option=$1 text=$2
    shift 2
    [ $# -gt 0 ] || return 0
    for file in $(grep "$option" -- "$text" "$@" 2>/dev/null); do
        file=${file#/proc/}
        pids="$pids ${file%%/*}"
    done
}

# Whether a process that may be a watchdog is older than this one: of two that begin at once, one is.
is_older() {
    [ -n "$own_start" ] || { look_at $$ && own_start=$started; } || return 1
    look_at "$1" && [ "$group" = "$1" ] && [ -O "/proc/$1" ] || return 1
    case $state in Z | X | T) return 1 ;; esac
    [ "$started" -lt "$own_start" ] || { [ "$started" = "$own_start" ] && [ "$1" -lt $$ ]; }
}

# Whether a command line is a watchdog's of this run and directory. It is short, so this takes no fork; `read` leaves out
# what is between the words.
is_watchdogs() {
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in *"${name}watch$run$dir"* | *"${name}again$run$dir"*) return ;; esac
    done <"$1"
    return 1
} 2>/dev/null

# Sets `marked`, `listeners` and `watchdogs`, which are the older ones; and `mounted` if something may be mounted in the
# run's directory. A single pass looks for the run's name, and what has it is looked at closer. The pattern does not find
# itself.
look_around() {
    environs= cmdlines= watchdogs= mounted=
    case $tree in *"$run"*) ;; *) mounted=yes ;; esac
    for file in $(LC_ALL=C grep -lE "[=:]$run|${run}[ /]" /proc/self/mountinfo /proc/[0-9]*/environ \
        /proc/[0-9]*/cmdline 2>/dev/null); do
        case $file in
        /proc/$$/*) ;;
        */environ) environs="$environs $file" ;;
        */cmdline) cmdlines="$cmdlines $file" ;;
        *) mounted=yes ;;
        esac
    done
    pick -lzxF "TSUNAMI_RUN_ID=$run" $environs
    marked=$pids
    others=
    for file in $cmdlines; do
        pid=${file#/proc/}
        pid=${pid%%/*}
        if is_older "$pid" && is_watchdogs "$file"; then
            watchdogs="$watchdogs $pid"
        else
            others="$others $file"
        fi
    done
    pick -lF "$run/local/" $others
    others=
    for pid in $pids; do
        others="$others /proc/$pid/cmdline"
    done
    pick -lF sshd_config $others
    listeners=$pids
}

# Sets `controls` to the run's control groups, if this user has made any: the one that one of these watchdogs works in.
# Where none of them tells, there may be some anywhere.
find_control_groups() {
    controls= told= from=$PWD
    for pid; do
        cd -P -- "/proc/$pid/cwd" 2>/dev/null || continue
        case $PWD in
        /proc) told=yes ;;
        */"tsunami-$run") [ ! -e cgroup.procs ] || [ ! -O . ] || controls=$PWD told=yes ;;
        esac
    done
    cd -- "$from" || cd /
    [ -z "$told" ] || return 0
    while read -r _ _ _ _ mounted_at rest; do
        case $rest in *' - cgroup2 '*) ;; *) continue ;; esac
        for control in $(find "$mounted_at" -type d -name "tsunami-$run" 2>/dev/null); do
            [ ! -O "$control" ] || controls="$controls $control"
        done
    done </proc/self/mountinfo
}

# Sets `controls` to a group that is made below this process's own, where that can be. Nearly always the groups are in
# one of two places: a long list of what is mounted is read only where they aren't.
make_control_group() {
    own=
    while read -r line; do
        case $line in 0::/*) own=${line#0::} ;; esac
    done </proc/self/cgroup
    [ -n "$own" ] || return
    for mounted_at in /sys/fs/cgroup /sys/fs/cgroup/unified; do
        [ -e "$mounted_at/cgroup.controllers" ] && make_group_in "$mounted_at${own%/}" && return
    done
    while read -r _ _ _ root mounted_at rest; do
        case $rest in *' - cgroup2 '*) ;; *) continue ;; esac
        # A container may be shown only what is below its own.
        below=$own
        case $below/ in "${root%/}/"*) below=${below#"${root%/}"} ;; esac
        ! make_group_in "$mounted_at${below%/}" || return
    done </proc/self/mountinfo
} 2>/dev/null

make_group_in() {
    [ -e "$1/cgroup.procs" ] || return
    [ -w "$1" ] && mkdir -- "$1/tsunami-$run" || [ -O "$1/tsunami-$run" ] || return
    controls=$1/tsunami-$run
}

# Whether there is a process in a control group, or below it.
is_populated() {
    [ -e "$1/cgroup.events" ] || return 0
    while read -r key value; do
        [ "$key:$value" != populated:0 ] || return 1
    done <"$1/cgroup.events"
} 2>/dev/null

# Sets `controlled` to the processes in the run's control groups, but no sshd: it is the host's own that a command has
# restarted.
find_controlled() {
    controlled=
    for control in $controls; do
        is_populated "$control" || continue
        for pid in $(find "$control" -name cgroup.procs -exec cat {} + 2>/dev/null); do
            { read -r name_of <"/proc/$pid/comm"; } 2>/dev/null || continue
            [ "$name_of" = sshd ] || controlled="$controlled $pid"
        done
    done
}

# Those that are empty, which they are once their processes have ended.
remove_control_groups() {
    for control in $controls; do
        rmdir -- "$control" 2>/dev/null || find "$control" -depth -type d -exec rmdir {} \; 2>/dev/null
    done
    return 0
}

# Ends the watchdogs that are known, and keeps those that stay. What has ended has no program any more, which is asked
# without a fork, and at first at once.
end_watchdogs() {
    ending=$watchdogs watchdogs=
    for pid in $ending; do
        is_older "$pid" || continue
        kill -s KILL -- "-$pid" 2>/dev/null
        tries=0
        while [ -e "/proc/$pid/exe" ]; do
            tries=$((tries + 1))
            [ $tries -gt 500 ] || continue
            is_older "$pid" || break
            if [ $tries -gt 550 ]; then
                watchdogs="$watchdogs $pid"
                break
            fi
            sleep 0.1
        done
    done
}

# The sockets that listen at an address of the run's machines, as the kernel calls them. Those of `local` alone have
# addresses that are nobody else's.
sockets() {
    hex=$(for config in "$dir"/*/sshd_config; do
        { read -r key address <"$config"; } 2>/dev/null && [ "$key" = ListenAddress ] || continue
        IFS=.
        set -- ${address%:*}
        unset IFS
        [ $# = 4 ] && [ "$1" = 127 ] && [ "$2" -ge 64 ] && [ "$2" -lt 128 ] || continue
        printf '|%02X%02X%02X%02X' "$4" "$3" "$2" "$1"
    done 2>/dev/null)
    [ -n "$hex" ] || return
    # Listening over TCP, or bound over UDP.
    grep -hE ": [0-9A-F]*(${hex#|}):[0-9A-F]{4} 0+:0000 (0A|07) " /proc/net/tcp /proc/net/tcp6 /proc/net/udp \
        /proc/net/udp6 2>/dev/null |
        while read -r _ _ _ _ _ _ _ _ _ inode _; do echo "socket:[$inode]"; done
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

# Sets `shown` to the links to the run's directory, or to one of the sockets given, that processes have, as `ls` puts
# them. A name may hold a line break and make up a line: it only says where to look.
look_at_links() {
    signs=/fd: links=$(ls -ln /proc/[0-9]*/cwd /proc/[0-9]*/exe /proc/[0-9]*/fd 2>/dev/null)
    for sign in "-> $tree" "$@"; do
        case $links in *"$sign"*) signs=$signs$n$sign ;; esac
    done
    shown=
    [ "$signs" = /fd: ] || shown=$(printf '%s\n' "$links" | grep -F -- "$signs")
}

# Whether a process launches or uses the run's machines: it holds one of the run's locks. It may be writing to the
# directory, and ends by itself.
is_controller() {
    case $tree in */"$run/local") ;; *) return 1 ;; esac
    above_tree=${tree%/local}
    ls -ln "/proc/$1/fd" 2>/dev/null |
        grep -F -e "-> $above_tree/lock" -e "-> $above_tree/machines.lock" >/dev/null
}

# The processes that these links show, beside those that are left anyway. Those with a terminal are somebody's who looks
# around, and those above this one are on their way here.
attached() {
    sockets=$* above= pid=$$
    while [ "${pid:-0}" -gt 1 ]; do
        above="$above $pid"
        look_at "$pid" || break
        pid=$parent
    done
    seen="$above $left"
    printf '%s\n' "$shown" |
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
            ! is_controller "$pid" || continue
            seen="$seen $pid"
            echo "$pid"
        done
}

# Adds what is attached to what is known.
gather_attached() {
    look_at_links "$@"
    [ -z "$shown" ] || gather $(attached "$@")
}

find_more() {
    look_around
    find_controlled
    gather $listeners $marked $controlled
    [ -n "$left" ] || gather_attached
}

# Ends the run's processes, or says which are left. A machine's address may be another's as soon as its sshd has ended,
# so listeners are looked for only before that.
end_processes() {
    look_around
    [ "$mode" != reap ] || find_control_groups $watchdogs
    find_controlled
    gather $listeners $marked $controlled
    case $dir in */"$run/local") gather_attached $(sockets) ;; *) gather_attached ;; esac
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
    why=
    [ -z "$mounted" ] || why=$(mounts)
    if [ -n "$why" ]; then
        why="it is not removed with what is mounted in it; unmount that first: $why"
    else
        only=--one-file-system
        rm -rf $only -- "$dir" 2>/dev/null && return
        # Not every rm knows that.
        if ! rm -f $only -- 2>/dev/null; then
            only=
            rm -rf -- "$dir" 2>/dev/null && return
        fi
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

# Waits until the moment $clock, or $boot, and ends the run. A shell that can't fork ends, and is begun again. The clock
# is looked at when the machine has been up for $look seconds. Unless it has been set, it says what the other one says,
# give or take the second that both leave out.
keep_watch() {
    trap '' HUP INT TERM
    trap 'exec sh -c '\''eval "$TSUNAMI_WATCHDOG"'\'' "$name" again "$run" "$dir" "$clock" "$boot"' EXIT
    end=$boot
    while [ -d "$dir" ] && read -r up _ </proc/uptime; do
        up=${up%%.*}
        if [ "$up" -ge "$look" ]; then
            now=$(date +%s) || break
            end=$((clock - now + up)) look=$((up + 60))
            [ $((end + 1)) -lt "$boot" ] || end=$boot
        fi
        [ "$up" -lt "$end" ] || break
        sleep $((end - up < 5 ? end - up : 5))
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
    clock=$(date +%s) && read -r up _ </proc/uptime || exit
    up=${up%%.*}
    clock=$((clock + $4)) boot=$((up + $4)) look=$((up + 60)) controls=
    if [ -z "$6" ]; then
        look_around
        find_control_groups $watchdogs
    fi
    [ "$5" = ensure ] || end_watchdogs
    [ -n "$controls$watchdogs" ] || make_control_group
    set -- $controls
    if [ -n "$watchdogs" ]; then
        echo "armed $1"
        exit
    fi
    # Whoever waits for the end of standard output finds the other one closed as well: a shell may keep what one `exec`
    # puts aside until it has done all of it.
    cd -- "${1:-/proc}" && echo "armed $1" && exec 2>/dev/null && exec >&2 || exit
    keep_watch
    ;;
again)
    clock=$4 boot=$5 look=0
    find_control_groups $$
    keep_watch
    ;;
esac
