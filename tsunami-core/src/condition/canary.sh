# Measures the machine for a little less than three seconds, and says how much of what it did in a second: a line each, a
# name and a number. The clock has ticks of a hundredth; each measurement takes at least sixty.
export LC_ALL=C
now() {
    read -r up _ </proc/uptime
    now=${up%.*}${up#*.}
}

# Repeats a command that does $1 of something until there is no more time.
rate() {
    name=$1 each=$2 done=0
    shift 2
    now
    began=$now
    while [ $((now - began)) -lt 60 ]; do
        "$@" >/dev/null 2>&1 || return
        done=$((done + each))
        now
    done
    echo "$name $((done * 100 / (now - began)))"
}

compute() {
    awk 'BEGIN { for (i = 0; i < 200000; i++) sum += i * i % 7; exit sum < 0 }'
}
copy() {
    dd if=/dev/zero of=/dev/null bs=16777216 count=8
}
store() {
    dd if=/dev/zero of=.tsunami-canary bs=1048576 count=4 conv=fsync
}

rate cpu 200000 compute
rate memory 134217728 copy
trap 'rm -f .tsunami-canary' EXIT
trap 'exit 1' HUP INT TERM
rate disk 4194304 store
