# Takes what is uploaded: $1 is the directory for it, $2 the mode that this gets if it is new. Standard input has lines
# up to an empty one, and then the archive:
#
#   d MODE NAME…       makes directories, unless they are there
#   l MODE LATER NAME  makes one that gets another mode once it is full: the last ones first, since those before them may
#                      hide them
#   h DIGEST SIZE MODE TIME NAME PLACE…
#                      asks for a file of this content. Answered on standard output by one byte: `y` if it is there now,
#                      because it was, or as a copy of one of the places; `n` if it is to be sent
#
# Whatever is missing here, `sha256sum` above all, or fails, makes `n` of it. A file stays only as if it had just come:
# of who unpacks, under one name. -o: files belong to who unpacks.
_n='
'
late='' full='' part='' me='' home=$PWD
trap '[ -z "$part" ] || rm -f -- "$part"' EXIT
trap 'exit 143' HUP INT TERM
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
# Makes $1, a file, as it would have come.
become() {
    [ "$(sha256sum <"$1")" = "$digest  -" ] && touch -d "@$time" -- "$1" && chmod "$mode" "$1"
}
have() {
    [ -n "$me" ] || me=$(id -u)
    digest=$1 size=$2 mode=$3 time=$4 name=$5
    shift 5
    present=$(find "$name" -prune -type f -links 1 -user "$me" -size "${size}c")
    [ -z "$present" ] || ! become "$name" || return 0
    [ ! -d "$name" ] || return
    part=${name%/*}/.tsunami-part-$$
    for place; do
        case $place in /*) ;; *) place=$home/$place ;; esac
        [ -n "$(find "$place" -prune -type f -size "${size}c")" ] || continue
        cp -- "$place" "$part" && become "$part" && mv -f -- "$part" "$name" && return
        rm -f -- "$part"
    done
    return 1
}
h() {
    answer=n
    ! have "$@" 2>/dev/null || answer=y
    part=
    printf %s "$answer"
}
while IFS= read -r line && [ -n "$line" ]; do
    eval "$line"
done
tar -xpof - || exit
full=yes
eval "$late"
