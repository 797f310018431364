# Packs what the patterns $@ match to standard output, and says on standard error how many matches each has. With an
# empty IFS an unquoted expansion is matched against file names, and split or expanded no further.
#
# GNU tar takes the names from a pipe, any number of them; others take them as arguments. Some shells let `.*` match the
# directory itself and the one above.
IFS=
case $(tar --version 2>/dev/null) in
*GNU*)
    for pattern; do
        count=0
        for name in $pattern; do
            case $name in "$pattern") ;; . | .. | */. | */..) continue ;; esac
            if [ -e "$name" ] || [ -L "$name" ]; then
                printf '%s\0' "$name"
                count=$((count + 1))
            fi
        done
        echo "matches: $count" >&2
    done | LC_ALL=C tar --sparse --null --verbatim-files-from -T - -cf -
    exit
    ;;
esac
i=$#
while [ $i -gt 0 ]; do
    pattern=$1 count=0
    shift
    for name in $pattern; do
        case $name in "$pattern") ;; . | .. | */. | */..) continue ;; esac
        if [ -e "$name" ] || [ -L "$name" ]; then
            set -- "$@" "$name"
            count=$((count + 1))
        fi
    done
    echo "matches: $count" >&2
    i=$((i - 1))
done
[ $# -eq 0 ] || exec tar -cf - -- "$@"
