# shellcheck disable=SC2016,SC2086,SC2154,SC3013 # the lines that it reads set what begins with `_`, numbers are split on purpose, -ef is in POSIX since 2024
# Runs commands under supervision, one after another, until one fails. Expects lines of shell on standard input, made
# by the controller: the first is about the whole conversation; then comes one for each command, with its environment,
# its directory and its arguments. Where there is one command, what follows is its own input; several read nothing.
# Speaks to the controller in notes on standard error, which begin with a mark that nobody else knows:
#
#   self N                       this is process N; where there are several commands
#   pid N                        the command runs in the process group N
#   no DIRECTORY                 the command's directory can't be entered
#   jobs TEXT <mark> said        what `jobs` says of it, perhaps more than once
#   end N M next                 it ended: what two calls of `wait` returned, and the next one begins
#   end N M last                 it ended, and nothing more begins here
#   stopped                      as the controller asked (by the signal USR1), nothing more begins
#
# and, where the first line sets `_marks`, on standard output, after all that a command itself has written there:
#
#   over                         what comes now is from others
#
# `wait` alone can't tell a status of 137 from a signal 9, but `jobs` can, in every shell that this runs in, as
# long as it is asked before `wait` has answered: bash does so when the command's end interrupts it.
# A command in the background reads nothing, in shells other than bash, unless its input comes by another descriptor.
# Where bash runs it, job control gives the command a process group of its own and leaves its interrupts alone.
# A command's line is read by the process that becomes the command, so that nothing of it reaches the next one.
# Where the first line sets `_tied`, the descriptor 7 is standard input, and where that ends while the command runs, `_tied`
# is the script that ends the command: the one by which the controller has commands ended.
_n='
'
IFS= read -r _line || exit 125
exec 3>&2 2>/dev/null
eval "$_line"
# What `jobs` says is read; the commands have their own language.
_own_language='unset LC_ALL'
[ -z "${LC_ALL+set}" ] || _own_language='LC_ALL=$_language' _language=$LC_ALL
LC_ALL=C
_jobs() {
    printf '%sjobs ' "$_mark"
    # Not of the guard, which comes second.
    jobs ${_tied:+%1}
    printf '%ssaid\n' "$_mark"
} >&3
_setsid=setsid
if [ -n "$BASH_VERSION" ]; then
    _setsid=
    set -m
    trap _jobs CHLD
fi
if [ "$_left" -gt 1 ]; then
    trap '_left=0 _stopped=1' USR1
    printf '%sself %s\n' "$_mark" "$$" >&3
fi
while [ "$_left" -gt 0 ] && IFS= read -r _line; do
    _left=$((_left - 1))
    {
        eval "$_own_language; $_line"
        if [ -n "$_directory" ] && ! cd -- "$_directory"; then
            printf '%sno %s\n' "$_mark" "$_directory" >&3
            exit 125
        fi
        exec $_setsid "$@" <&4 2>&3 3>&- 4<&- 7<&-
    } &
    _pid=$!
    printf '%spid %s\n' "$_mark" "$_pid" >&3
    _guard=
    if [ -n "$_tied" ]; then
        {
            IFS= read -r _line <&7
            # From now on it goes on, however early the command itself ends.
            trap '' TERM
            # Once the end of the command was seen, another may have its number, and the supervisor may still wait for
            # somebody to read of that end.
            case $(cat "/proc/$_pid/status") in *PPid:?"$$$_n"*) ;; *) exit ;; esac
            # Where the command has just begun, it may have no group yet.
            while kill -0 "$_pid" && ! kill -0 "-$_pid"; do sleep 0.1; done
            exec sh -c "$_tied" sh "$TSUNAMI_RUN_ID" "$_pid" 7<&-
        } >/dev/null 3>&- 4<&- &
        _guard=$!
    fi
    while wait "$_pid"; _first=$?; kill -0 "$_pid"; do sleep 0.1; done
    _jobs
    wait "$_pid"
    _second=$?
    [ -z "$_guard" ] || kill -s TERM "$_guard"
    _then=last
    case $_first:$_second in
    0:* | *:0) [ "$_left" -gt 0 ] && ! kill -0 "-$_pid" && ! _is_held_after "$_pid" && _then=next ;;
    esac
    # What the command has left in the background may write on. Once nobody else reads it, somebody must: from pipes
    # that were never closed in between, and long after the command's own output was taken.
    if [ $_then = last ] && kill -0 "-$_pid" && [ -p /proc/self/fd/1 ] && [ -p /proc/self/fd/3 ]; then
        exec 5</proc/self/fd/1 6</proc/self/fd/3
        { sleep 10 && cat <&5 & sleep 10 && cat <&6; } </dev/null >/dev/null 3>&- 4<&- &
    fi
    [ -z "$_marks" ] || printf '%sover\n' "$_mark"
    printf '%send %s %s %s\n' "$_mark" "$_first" "$_second" "$_then" >&3
    [ $_then = next ] || break
done
[ -z "$_stopped" ] || printf '%sstopped\n' "$_mark" >&3
