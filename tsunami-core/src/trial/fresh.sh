# Prints what of the matches of the patterns $2… is newer than the file $1, or holds something that is. A zero ends each
# piece: `=NAME` for what is, `!` for what is not, `.` at the end of a pattern.
began=$1
shift
IFS=
for pattern; do
    for name in $pattern; do
        case $name in "$pattern") ;; . | .. | */. | */..) continue ;; esac
        if [ ! -e "$name" ] && [ ! -L "$name" ]; then continue; fi
        newer=$(find -H "./$name" -newer "$began" -print 2>/dev/null | head -n 1)
        if [ -n "$newer" ]; then printf '=%s\0' "$name"; else printf '!\0'; fi
    done
    printf '.\0'
done
