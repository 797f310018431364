# Ends the run's processes on a host and removes the run's directory $1; $2 is the run, $3 the watchdog's script, which
# says what is left.
directory=$1 run=$2 script=$3
case $directory in /*) ;; *) directory=$PWD/$directory ;; esac
set -- reap "$run" "$directory"
cd /
eval "$script"
