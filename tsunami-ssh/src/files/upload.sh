# Takes what is uploaded: $1 is the directory for it, $2 the mode that this gets if it is new. Standard input has lines
# up to an empty one, and then the archive:
#
#   d MODE NAME…       makes directories, unless they are there
#   l MODE LATER NAME  makes one that gets another mode once it is full: the last ones first, since those before them may
#                      hide them
#   h DIGEST SIZE MODE TIME NAME PLACE…
#                      asks for a file of this content. Answered on standard output by one byte: `y` if it is there now,
#                      because it was, or as a copy of one of the places; `n` if it is to be sent
#   s DIR [PART NAME]  wants to send the archive in blocks over several channels, which begin in the named pipes 3 to 9 in
#                      DIR, and on standard input. There a line before each block says where it comes from, and the last
#                      line, `-`, that the rest comes there. A single file is called PART until it is there. Answered alike
#
# Whatever is missing here, `sha256sum` above all, or fails, makes `n` of it. A file stays only as if it had just come:
# of who unpacks, under one name. -o: files belong to who unpacks.
_n='
'
late='' full='' part='' single='' stripes='' me='' home=$PWD
trap '[ -z "$part$stripes" ] || rm -rf -- ${part:+"$part"} ${stripes:+"$stripes"}' EXIT
trap 'exit 143' HUP INT TERM
[ -d "$1" ] || mkdir -p ${2:+-m "$2"} -- "$1" || exit
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
s() {
    stripes=$home/$1
    if mkdir -m 700 -- "$stripes" && (cd -- "$stripes" && mkfifo 3 4 5 6 7 8 9 all) &&
        dd bs=1 count=1 iflag=fullblock </dev/null >/dev/null; then
        part=${2-} single=${3-}
        # Open for both directions, which waits for nobody.
        for n in 3 4 5 6 7 8 9; do
            eval "exec $n<>\"\$stripes/$n\""
        done
        printf y
    else
        rm -rf -- "$stripes"
        stripes=
        printf n
    fi 2>/dev/null
}
# Puts the blocks together.
join() {
    taken=
    while IFS= read -r line; do
        case $line in
        0) ;;
        [3-9])
            # From now on its end is seen.
            case $taken in *$line*) ;; *) eval "exec $line<\"\$stripes/$line\"" && taken=$taken$line ;; esac
            ;;
        -)
            cat
            return
            ;;
        *) return 1 ;;
        esac
        dd bs=524288 count=1 iflag=fullblock <&"$line" 2>/dev/null || return
    done
    return 1
}
while IFS= read -r line && [ -n "$line" ]; do
    eval "$line"
done
if [ -z "$stripes$late" ]; then
    exec tar -xpof -
elif [ -z "$stripes" ]; then
    tar -xpof - || exit
else
    tar -xpof - <"$stripes/all" 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&- &
    join >"$stripes/all"
    joined=$?
    wait "$!" || exit
    [ $joined = 0 ] || exit 1
    if [ -n "$single" ]; then
        [ ! -d "$single" ] || { echo "$single is a directory" >&2 && exit 1; }
        mv -f -- "$part" "$single" || exit
        part=
    fi
fi
full=yes
eval "$late"
