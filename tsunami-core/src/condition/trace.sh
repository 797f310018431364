# Says once a second what the computer has done so far, in a line of numbers: seconds since boot; ticks in which its
# processors were busy, and which a hypervisor gave to others; KiB of memory in use; bytes received and sent by all
# interfaces but the loopback; sectors of 512 bytes read from and written to its disks, leaving out what is on others.
export LC_ALL=C
disks=' '
for disk in /sys/block/*; do
    case ${disk##*/} in
    loop* | ram* | zram* | dm-* | md* | sr* | fd*) ;;
    *) disks="$disks${disk##*/} " ;;
    esac
done
# One process reads all. What it starts to wait costs it a millisecond.
exec awk -v disks="$disks" '
    function first(file) {
        text = ""
        getline text <file
        close(file)
        return split(text, field, " ")
    }
    BEGIN {
        do {
            first("/proc/uptime")
            uptime = field[1]
            first("/proc/stat")
            busy = field[2] + field[3] + field[4] + field[7] + field[8]
            steal = field[9] + 0
            total = 0
            available = 0
            while (!(total && available) && (getline line <"/proc/meminfo") > 0) {
                split(line, field, " ")
                if (field[1] == "MemTotal:") total = field[2]
                if (field[1] == "MemAvailable:") available = field[2]
            }
            close("/proc/meminfo")
            received = sent = 0
            while ((getline line <"/proc/net/dev") > 0) {
                sub(/:/, " ", line)
                split(line, field, " ")
                if (field[1] == "lo" || field[2] !~ /^[0-9]+$/) continue
                received += field[2]
                sent += field[10]
            }
            close("/proc/net/dev")
            fetched = stored = 0
            while ((getline line <"/proc/diskstats") > 0) {
                split(line, field, " ")
                if (!index(disks, " " field[3] " ")) continue
                fetched += field[6]
                stored += field[10]
            }
            close("/proc/diskstats")
            printf "%s %.0f %.0f %.0f %.0f %.0f %.0f %.0f\n", uptime, busy, steal, total - available, received, sent, \
                fetched, stored
            fflush()
        } while (system("exec sleep 1") == 0)
    }
'
