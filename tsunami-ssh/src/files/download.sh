# Packs what the patterns after $1 match to standard output, and says on standard error how many matches each has. With an
# empty IFS an unquoted expansion is matched against file names, and split or expanded no further.
#
# GNU tar takes the names from a pipe, any number of them; others take them as arguments. Some shells let `.*` match the
# directory itself and the one above.
#
# If $1 is not empty, it is a directory to make, in the home directory, for an archive that may go over several channels:
# in blocks, before each of which a line on standard output says where it goes, to a named pipe that a further channel has
# made in that directory, or there (9). What is not a whole block is the last. A line `-` says that all of it comes there.
IFS=
stripes=$1
shift

# Does something with each $name that $pattern matches.
with_each() {
    for name in $pattern; do
        case $name in "$pattern") ;; . | .. | */. | */..) continue ;; esac
        if [ -e "$name" ] || [ -L "$name" ]; then "$1"; fi
    done
}

count_it() {
    count=$((count + 1))
}

print_it() {
    printf '%s\0' "$name"
}

# All of it before tar begins, which speaks there too, and not in whole lines.
for pattern; do
    count=0
    with_each count_it
    echo "matches: $count" >&2
done
pack() {
    case $(tar --version 2>/dev/null) in
    *GNU*)
        for pattern; do
            with_each print_it
        done | LC_ALL=C tar --sparse --null --verbatim-files-from -T - -cf -
        return
        ;;
    esac
    i=$#
    while [ $i -gt 0 ]; do
        pattern=$1
        shift
        for name in $pattern; do
            case $name in "$pattern") ;; . | .. | */. | */..) continue ;; esac
            if [ -e "$name" ] || [ -L "$name" ]; then set -- "$@" "$name"; fi
        done
        i=$((i - 1))
    done
    [ $# -eq 0 ] || tar -cf - -- "$@"
}
split() {
    IFS=' '
    open=
    while :; do
        for n in 3 4 5 6 7 8; do
            case $open in *$n*) continue ;; esac
            if [ -p "$stripes/$n" ]; then eval "exec $n>\"\$stripes/$n\"" && open="$open $n"; fi
        done
        for n in ${open:-9}; do
            echo "$n"
            case $(LC_ALL=C dd bs=524288 count=1 iflag=fullblock 2>&1 >&"$n") in
            1+0*) ;;
            *) return ;;
            esac
        done
    done
}
if [ -z "$stripes" ]; then
    pack "$@"
else
    case $stripes in /*) ;; *) stripes=$HOME/$stripes ;; esac
    trap 'rm -rf -- "$stripes"' EXIT
    trap 'exit 143' HUP INT PIPE TERM
    if { mkdir -m 700 -- "$stripes" && mkfifo "$stripes/all" &&
        dd bs=1 count=1 iflag=fullblock </dev/null >/dev/null; } 2>/dev/null; then
        pack "$@" >"$stripes/all" &
        exec 9>&1
        split <"$stripes/all"
        # With their pipes the further channels end.
        exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&-
        wait "$!"
    else
        echo -
        pack "$@"
    fi
fi
