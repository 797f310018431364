# shellcheck disable=SC2015,SC2016 # `a && b || c` is read as it stands, and what is quoted is another shell's
# Makes the run's directory on a host, and has a watchdog end the run's processes there. $1 is the watchdog's script, $2
# the machine that the host is, and what follows are the watchdog's own arguments, of which the third is the directory.
# Says what the watchdog says.
#
# The directory knows whose it is, since a host may have several names. A new one stays only if the watchdog watches:
# commands begin in it, so none does before that.
TSUNAMI_WATCHDOG=$1 machine=$2 mode=$3 run=$4 directory=$5 seconds=$6 how=$7
export TSUNAMI_WATCHDOG
umask 077
new=
if [ ! -d "$directory" ]; then
    # Both at once, if nobody else makes one meanwhile: then it counts as an older one.
    if [ ! -d "${directory%/*}" ] && mkdir -- "${directory%/*}" "$directory" 2>/dev/null; then
        new=new
    else
        [ -d "${directory%/*}" ] || mkdir -p -- "${directory%/*}"
        ! mkdir -- "$directory" || new=new
    fi
fi
cd -- "$directory" || {
    ls -ld -- "${directory%/*}" "$directory" >&2
    exit 1
}
set -C
{ printf '%s\n' "$machine" >.tsunami-machine; } 2>/dev/null
set +C
read -r taken <.tsunami-machine || exit
[ "$taken" = "$machine" ] || {
    echo "the host is $taken of this run already, and can't be two machines" >&2
    exit 1
}
directory=$PWD
# A watchdog has no need of the run's name in its environment, where it would have to be looked at closer.
cd /
unset OLDPWD
# It holds its outputs until it watches.
said=$(setsid sh -c 'eval "$TSUNAMI_WATCHDOG"' "tsunami-watchdog:$run:$directory" "$mode" "$run" "$directory" "$seconds" \
    "$how" "$new" </dev/null &)
case $said in
armed*)
    [ "$said" = "armed " ] || printf '%s\n' "${said#armed }" >"$directory/.tsunami-control-group"
    echo "$said"
    ;;
*)
    [ -z "$new" ] || { rm -f -- "$directory/.tsunami-machine" && rmdir -- "$directory"; }
    echo "the watchdog of the run does not start: it said \`$said\`" >&2
    exit 1
    ;;
esac
