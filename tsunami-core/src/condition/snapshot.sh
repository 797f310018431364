# Says what the computer, its pressure counters, its control groups and each process have had so far. $1 is the run, $2
# the time since boot, in seconds, from which on messages of the kernel are wanted; none if it is ''.
#
#   uptime SECONDS
#   boot ID
#   cpus COUNT
#   cpu USER NICE SYSTEM IDLE IOWAIT IRQ SOFTIRQ STEAL …       in ticks
#   pressure cpu|memory|io MICROSECONDS
#   oom_kill COUNT
#   cgroup KEY VALUE FILE                                       the nearest first
#   kernel TICKS                                                of all of the kernel's own threads, if they show
#   process PID PARENT GROUP SESSION UTIME STIME CUTIME CSTIME START KIND NAME
#                               KIND is 1 if it has the run's mark, 2 if it has ended and nobody has waited for it, else 0;
#                               process 1 comes once more after all others, unless $2 is ''
#   more                                                        not all processes were told
#   message TEXT
#
# One `grep` reads all files, whichever of them are there, and one `awk` cuts them down.
run=$1 since=$2
export LC_ALL=C
set --
while IFS=: read -r _ controllers path; do
    case ,$controllers, in
    ,,) roots='/sys/fs/cgroup /sys/fs/cgroup/unified' names='cpu.stat memory.events' ;;
    *,cpu,*) roots='/sys/fs/cgroup/cpu /sys/fs/cgroup/cpu,cpuacct' names=cpu.stat ;;
    *,memory,*) roots=/sys/fs/cgroup/memory names=memory.oom_control ;;
    *) continue ;;
    esac
    # A container may see the path from outside, and its files from inside.
    path=${path%/}
    while :; do
        for root in $roots; do
            for name in $names; do
                set -- "$@" "$root$path/$name"
            done
        done
        [ -n "$path" ] || break
        path=${path%/*}
    done
done 2>/dev/null </proc/self/cgroup
# What init waits for while the others are read is in no account otherwise. At the first look that may be: it is no less
# init's afterwards.
[ -z "$since" ] || set -- "$@" /proc/1/stat
marked=$(grep -lszxF -- "TSUNAMI_RUN_ID=$run" /proc/[0-9]*/environ)
{
    printf '%s\n' "$marked"
    grep -s '' /proc/uptime /proc/sys/kernel/random/boot_id /proc/stat /proc/vmstat /proc/pressure/cpu \
        /proc/pressure/memory /proc/pressure/io /proc/[0-9]*/stat "$@"
    [ -z "$since" ] || dmesg 2>/dev/null
} | awk -v since="$since" '
    /^\/proc\/[0-9]+\/environ$/ {
        split($0, part, "/")
        marked[part[3]] = 1
        next
    }
    /^\[/ {
        if (substr($0, 2) + 0 < since || messages >= 10) next
        text = substr($0, index($0, "]") + 2)
        if (tolower(text) ~ /out of memory|oom-kill|killed process|blocked for more than|lockup|rcu.*stall|i\/o error|ext4-fs error|xfs.*corrupt|table full|page allocation failure|hardware error|machine check|temperature above|throttled|link is down|netdev watchdog|marking clocksource|nohz tick-stop error/) {
            messages++
            print "message", substr(text, 1, 200)
        }
        next
    }
    {
        at = index($0, ":")
        file = substr($0, 1, at - 1)
        line = substr($0, at + 1)
    }
    file ~ /^\/proc\/[0-9]+\/stat$/ {
        # A name may hold anything, brackets among it.
        count = split(line, part, ")")
        split(part[count], field, " ")
        if (int(field[7] / 2097152) % 2) {
            kernel += field[12] + field[13]
            threads++
            next
        }
        if (++processes > 4000) next
        from = index(line, "(")
        name = substr(line, from + 1, length(line) - length(part[count]) - from - 1)
        pid = substr(line, 1, index(line, " ") - 1)
        print "process", pid, field[2], field[3], field[4], field[12], field[13], field[14], field[15], field[20], \
            field[1] == "Z" ? 2 : (pid in marked) + 0, name
        next
    }
    file == "/proc/stat" {
        if (line ~ /^cpu /) print line
        else if (line ~ /^cpu[0-9]/) cpus++
        next
    }
    file == "/proc/vmstat" {
        if (line ~ /^oom_kill /) print line
        next
    }
    file == "/proc/uptime" {
        print "uptime", substr(line, 1, index(line, " ") - 1)
        next
    }
    file ~ /boot_id$/ {
        print "boot", line
        next
    }
    file ~ /^\/proc\/pressure\// {
        if (line ~ /^some /) {
            sub(/.*total=/, "", line)
            print "pressure", substr(file, 16), line
        }
        next
    }
    line ~ /^(usage_usec|throttled_usec|throttled_time|oom_kill) / { print "cgroup", line, file }
    END {
        if (cpus) print "cpus", cpus
        if (threads) printf "kernel %.0f\n", kernel
        if (processes > 4000) print "more"
    }
'
