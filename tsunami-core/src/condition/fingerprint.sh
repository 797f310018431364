# Says what the machine is: a line for each fact that it knows, with the fact's name, a tab, and what it is. `boot` is no
# fact, but what tells machines that share a computer.
export LC_ALL=C
fact() {
    [ -z "$2" ] || printf '%s\t%s\n' "$1" "$2"
}

# The first line of a file.
line_of() {
    { IFS= read -r line <"$2"; } 2>/dev/null && fact "$1" "$line"
}

# All processors say the same; the first will do.
awk '
    $0 == "" { exit }
    {
        key = $0
        sub(/[ \t]*:.*/, "", key)
        value = substr($0, index($0, ":") + 2)
    }
    key == "model name" || key == "cpu" { model = value }
    key == "CPU implementer" || key == "CPU part" || key == "CPU variant" || key == "CPU revision" { arm = arm " " value }
    key == "flags" || key == "Features" { print "cpu_flags\t" value }
    key == "microcode" { print "microcode\t" value }
    END {
        if (model == "" && arm != "") model = "ARM" arm
        if (model != "") print "cpu_model\t" model
    }
' /proc/cpuinfo 2>/dev/null
# They would count for `nproc`.
unset OMP_NUM_THREADS OMP_THREAD_LIMIT
fact cpus "$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null)"
said=
for file in /sys/devices/system/cpu/vulnerabilities/*; do
    { IFS= read -r line <"$file"; } 2>/dev/null || continue
    case $line in 'Not affected') ;; *) said="$said; ${file##*/}: $line" ;; esac
done
fact mitigations "${said#; }"
said=
for file in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor; do
    { IFS= read -r line <"$file"; } 2>/dev/null || continue
    case " $said " in *" $line "*) ;; *) said="$said $line" ;; esac
done
fact governor "${said# }"
line_of smt /sys/devices/system/cpu/smt/control
line_of numa /sys/devices/system/node/online
line_of clock_source /sys/devices/system/clocksource/clocksource0/current_clocksource
line_of boot /proc/sys/kernel/random/boot_id
line_of kernel /proc/sys/kernel/osrelease
line_of vendor /sys/class/dmi/id/sys_vendor
line_of product /sys/class/dmi/id/product_name
if { IFS= read -r line </sys/kernel/mm/transparent_hugepage/enabled; } 2>/dev/null; then
    line=${line#*\[}
    fact huge_pages "${line%%]*}"
fi
while read -r key value _; do
    case $key in
    MemTotal:) fact memory "$((value * 1024))" ;;
    SwapTotal:)
        fact swap "$((value * 1024))"
        break
        ;;
    esac
done 2>/dev/null </proc/meminfo
line_of architecture /proc/sys/kernel/arch || fact architecture "$(uname -m)"
# It says `none` where there is nothing, and fails.
fact virtualization "$(systemd-detect-virt 2>/dev/null)"
# shellcheck disable=SC2016 # it is bash that knows
fact bash "$(bash --norc -c 'printf %s "$BASH_VERSION"' 2>/dev/null)"
libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || ldd --version 2>&1)
case $libc in
*musl*) libc="musl ${libc##*Version }" ;;
esac
fact libc "${libc%%
*}"
# The last, since a shell ends that can't make sense of it.
PRETTY_NAME=
if [ -r /etc/os-release ]; then
    # shellcheck disable=SC1091 # the machine has it
    . /etc/os-release
fi
fact os "$PRETTY_NAME"
