# Packs what the patterns $@ match to standard output, and says on standard error how many matches each has. With an
# empty IFS an unquoted expansion is matched against file names, and split or expanded no further.
#
# GNU tar takes the names from a pipe, any number of them; others take them as arguments. Some shells let `.*` match the
# directory itself and the one above.
IFS=

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
case $(tar --version 2>/dev/null) in
*GNU*)
    for pattern; do
        with_each print_it
    done | LC_ALL=C tar --sparse --null --verbatim-files-from -T - -cf -
    exit
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
[ $# -eq 0 ] || exec tar -cf - -- "$@"
