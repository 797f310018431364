# Prints for each of the patterns $2… how many of its matches are newer than the file $1, or hold something that is.
began=$1
shift
IFS=
for pattern; do
    count=0
    for name in $pattern; do
        case $name in "$pattern") ;; . | .. | */. | */..) continue ;; esac
        newer=$(find -H "./$name" -newer "$began" -print 2>/dev/null | head -n 1)
        [ -z "$newer" ] || count=$((count + 1))
    done
    echo "$count"
done
