# Runs a machine in the directory $1, its sshd being the rest, until the time in `deadline`: at the latest when that file
# is gone. Everything that runs on the machine is in its PID namespace, and ends with it. As long as any of it may live,
# the file `alive` is locked.
cd "$1" || exit
shift
exec 9>alive
flock --nonblock 9 || exit
own='--user --map-current-user'
# Root's sshd insists on this directory, which a system without an init doesn't make.
[ "$(id -u)" != 0 ] || { own=; (umask 022 && mkdir -p /run/sshd); }
# `SHLVL` keeps bash from reading the user's own `~/.bashrc`, as it does for the first shell below an sshd.
# shellcheck disable=SC2086 # These are several words, or none.
setpriv --pdeathsig KILL unshare $own --pid --fork --kill-child --mount-proc "$@" -o PasswordAuthentication=no \
    -o StrictModes=no -o PidFile=none -o MaxStartups=100 -o SetEnv=SHLVL=1 9>&- 2>sshd.log &
machine=$!
while [ -e "/proc/$machine/exe" ] && [ "$(date +%s)" -lt "$(cat deadline)" ]; do
    sleep 0.2 9>&-
done
kill -KILL "$machine"
wait "$machine"
