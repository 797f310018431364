# enter.sh [GROUP ...] -- PROGRAM [ARGUMENT ...]
# Joins control groups, then becomes a program.
while [ "$1" != -- ]; do
    echo 0 >"$1/cgroup.procs" || exit 125
    shift
done
shift
exec "$@"
