# Ends the process group $1: TERM, five seconds, KILL. Prints "gone" once nothing of it runs, else "left".
# Root's processes in it (`sudo …`) are reached with sudo where that asks no questions.
group=$1 tries=0

running() {
    for file in /proc/[0-9]*/stat; do
        { read -r line <"$file"; } 2>/dev/null || continue
        rest=${line##*) }
        set -- $rest
        [ "$3" = "$group" ] || continue
        case $1 in Z | X) ;; *) return 0 ;; esac
    done
    [ ! -e /proc/self/stat ] && kill -0 -- "-$group" 2>/dev/null
}

signal() {
    kill -s "$1" -- "-$group" 2>/dev/null
    [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && sudo -n kill -s "$1" -- "-$group" 2>/dev/null; }
}

signal TERM
while running; do
    tries=$((tries + 1))
    case $tries in
    50 | 60 | 70) signal KILL ;;
    80) echo left; exit ;;
    esac
    sleep 0.1
done
echo gone
