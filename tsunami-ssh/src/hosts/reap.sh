# Ends the run's processes on a host and removes the run's directory $1; $2 is the run, $3 the watchdog's script, which
# says what is left. Where nothing is, "reaped" is said.
directory=$1 run=$2 script=$3
case $directory in
/*) ;;
*)
    # Without its home, a login is elsewhere, where the directory is not. With it, it may have gone elsewhere by itself.
    (cd) 2>/dev/null || printf 'directory ~/%s\tthe home %s can not be entered\n' "$directory" "$HOME"
    directory=$PWD/$directory
    ;;
esac
set -- reap "$run" "$directory"
cd /
if eval "$script"; then
    echo reaped
fi
