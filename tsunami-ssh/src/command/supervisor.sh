# shellcheck disable=SC2154 # the line that it reads sets what begins with `_`
# Runs one command under supervision. Expects on standard input one line of shell: the environment, the
# directory and the arguments, prepared by the controller; what follows is the command's own input. Speaks to
# the controller in notes on standard error, which begin with a mark that nobody else knows:
#
#   pid N                        the command runs in the process group N
#   no DIRECTORY                 the command's directory can't be entered
#   jobs TEXT <mark> said        what `jobs` says of it, perhaps more than once
#   end N M                      it ended: what two calls of `wait` returned
#
# and, where the header sets `_marks`, on standard output, after all that the command itself has written there:
#
#   over                         what comes now is from others
#
# `wait` alone can't tell a status of 137 from a signal 9, but `jobs` can, in every shell that this runs in, as
# long as it is asked before `wait` has answered: bash does so when the command's end interrupts it.
# A command in the background reads nothing, in shells other than bash, unless its input comes by another descriptor.
# Where bash runs it, job control gives the command a process group of its own and leaves its interrupts alone.
_n='
'
IFS= read -r _header || exit 125
exec 3>&2 2>/dev/null 4<&0
eval "$_header"
if [ -n "$_directory" ] && ! cd -- "$_directory"; then
    printf '%sno %s\n' "$_mark" "$_directory" >&3
    exit 125
fi
_jobs() {
    # The command has its environment by now, and its own language.
    LC_ALL=C
    printf '%sjobs ' "$_mark"
    jobs
    printf '%ssaid\n' "$_mark"
} >&3
if [ -n "$BASH_VERSION" ]; then
    set -m
    trap _jobs CHLD
    "$@" <&4 2>&3 3>&- 4<&- &
else
    setsid "$@" <&4 2>&3 3>&- 4<&- &
fi
_pid=$!
printf '%spid %s\n' "$_mark" "$_pid" >&3
while wait "$_pid"; _first=$?; kill -0 "$_pid"; do sleep 0.1; done
_jobs
wait "$_pid"
_second=$?
# What the command has left in the background may write on. Once nobody else reads it, somebody must: from pipes that
# were never closed in between, and long after the command's own output was taken.
if kill -0 "-$_pid" && [ -p /proc/self/fd/1 ] && [ -p /proc/self/fd/3 ]; then
    exec 5</proc/self/fd/1 6</proc/self/fd/3
    { sleep 10 && cat <&5 & sleep 10 && cat <&6; } </dev/null >/dev/null 3>&- 4<&- &
fi
[ -z "$_marks" ] || printf '%sover\n' "$_mark"
printf '%send %s %s\n' "$_mark" "$_first" "$_second" >&3
