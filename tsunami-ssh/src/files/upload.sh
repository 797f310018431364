# Takes what is uploaded: $1 is the directory for it, $2 the mode that this gets if it is new. Standard input has lines
# that make the directories below it, up to an empty one, and then the archive.
#
#   d MODE NAME…       makes directories, unless they are there
#   l MODE LATER NAME  makes one that gets another mode once it is full: the last ones first, since those before them may
#                      hide them
#
# -o: files belong to who unpacks.
_n='
'
late='' full=''
mkdir -p ${2:+-m "$2"} -- "$1" || exit
cd -- "$1" || exit
d() {
    mode=$1
    shift
    for name; do
        shift
        [ ! -d "$name" ] || continue
        if [ -e "$name" ] || [ -L "$name" ]; then rm -f -- "$name"; fi
        set -- "$@" "$name"
    done
    [ $# -eq 0 ] || mkdir -m "$mode" -- "$@" || exit
}
l() {
    if [ -n "$full" ]; then
        chmod "$2" "$3" || exit
    elif [ ! -d "$3" ]; then
        d "$1" "$3"
        late=$line$_n$late
    fi
}
while IFS= read -r line && [ -n "$line" ]; do
    eval "$line"
done
tar -xpof - || exit
full=yes
eval "$late"
