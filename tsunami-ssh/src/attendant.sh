# shellcheck disable=SC2016,SC3013 # what is quoted is another shell's, -ef is in POSIX since 2024
# Runs scripts of tsunami's own, one after another, each in a `sh` of its own that reads nothing. $2 is a mark, and $3
# the first script. For every other one three lines come on standard input: a mark, the script's length in bytes, and the
# script. Each has $1 as its $2. On both outputs the mark comes before what the script says, and after that once more,
# with the script's status and
#
#   next                         another script may come
#   last                         none runs here any more: something of this one may hold the outputs
#
# `read` takes a byte at a time, so a long script is read by `dd`, where there is one that reads all of it. The first is
# handed over in the environment, which no other user sees.
# What is in the background reads nothing, in shells other than bash, unless its input comes by another descriptor; and no
# shell says there how it ended.
exec 3>&2 4<&0 2>/dev/null
_run='_line=$_first
unset _first
[ -n "$_line" ] || { [ "$1" -gt 4096 ] && _line=$(dd bs="$1" count=1 iflag=fullblock 2>/dev/null); } ||
    IFS= read -r _line || exit
exec </dev/null && eval "$_line"'
_mark=$2 _length=0 _first=$3
while [ -n "$_first" ] || { IFS= read -r _mark && IFS= read -r _length; }; do
    printf %s "$_mark"
    printf %s "$_mark" >&3
    _first=$_first sh -c "$_run" sh "$_length" "$1" <&4 2>&3 3>&- 4<&- &
    _script=$! _first=
    wait "$_script"
    _status=$?
    _then=next
    ! _is_held_after "$_script" || _then=last
    printf '%s%s %s\n' "$_mark" "$_status" "$_then"
    printf '%s%s %s\n' "$_mark" "$_status" "$_then" >&3
    [ "$_then" = next ] || break
done
