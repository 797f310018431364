# shellcheck disable=SC2154 # the line before sets what begins with `_`
# What somebody at a terminal runs on a machine: the words $1, $2, …, or without any the login's own shell, in the
# machine's directory $_directory. A shell that can be told a prompt says which machine it is ($_prompt), after it has
# read the user's own files, which stay as they are.
#
# Where no terminal is, the shell reads lines as any script, without a prompt.
#
# This `sh` stays, since ssh says 255 of what a signal has ended. Ctrl-C is not for it.
if [ -n "$_directory" ] && ! cd -- "$_directory"; then
    exit 125
fi
trap : INT QUIT
_shell=${SHELL:-/bin/sh}
_prompting=
[ ! -t 0 ] || _prompting=${_shell##*/}
case $#:$_prompting in
0:bash)
    # bash reads this in place of ~/.bashrc, and then what a login reads.
    "$_shell" --rcfile /dev/fd/3 -i 3<<END
exec 3<&-
[ ! -r /etc/profile ] || . /etc/profile
for _file in ~/.bash_profile ~/.bash_login ~/.profile; do [ ! -r "\$_file" ] || { . "\$_file"; break; }; done
unset _file
PS1="$_prompt\$PS1"
END
    ;;
0:sh | 0:ash | 0:dash)
    # It reads this after what a login reads, unless that names another file.
    ENV=/dev/fd/3 "$_shell" -l 3<<END
exec 3<&-
unset ENV
PS1="$_prompt\$PS1"
END
    ;;
0:*) "$_shell" -l ;;
1:*) if command -v bash >/dev/null 2>&1; then bash -eo pipefail -c "$1"; else sh -e -c "$1"; fi ;;
*) "$@" ;;
esac
exit $?
